package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
)

// database/sql says by IsValid when it puts a connection back, and the session goes back
// to its pool then. A driver that wraps this one may hide the method. Then a session is given
// back when a statement or transaction has ended, unless something of it is to be kept.
// Whether the caller goes on with it nobody knows: he may have a sql.Conn. So the
// connection gets the same session again, if nobody has needed it meanwhile.

// hidden reports whether nobody says when the connection is put back, as far as is known.
func (cn *conn) hidden() bool { return !cn.direct && !cn.c.told.Load() }

// ended has the session given back, if nobody will say when to, and nothing needs it.
func (cn *conn) ended() {
	if cn.lease == nil || cn.loose || cn.tx != nil || cn.reading > 0 || cn.raw || !cn.hidden() {
		return
	}
	if cn.inTx && cn.lease.pgx != nil && !cn.lease.idle() && !cn.lease.bad {
		return // a transaction that was begun by text
	}
	if cn.locks {
		ctx, cancel := context.WithTimeout(context.Background(), closePatience)
		cn.unlocked(ctx)
		cancel()
	}
	switch {
	case cn.broken:
		cn.detach(true)
	case cn.stays():
		cn.carried = true
	case cn.closes || cn.c.source.pooled || cn.c.parted() || !cn.lease.IsValid() || !cn.c.sessions.park(cn):
		cn.strayed = true
		cn.detach(false)
	default:
		cn.loose, cn.carried = true, true
	}
}

// retake takes a session back that might have gone to others.
func (cn *conn) retake(ctx context.Context) {
	switch {
	case !cn.loose:
		return
	case !cn.c.sessions.unpark(cn):
		cn.strayed = true
		cn.detach(false)
	case cn.lease.ResetSession(ctx) != nil:
		cn.strayed = true
		cn.detach(true)
	}
	cn.loose = false
}

// tighten gives a session back that might have gone to others.
func (cn *conn) tighten() {
	if cn.loose {
		cn.loose = false
		cn.detach(false)
	}
}

// attachFor is attach for a statement.
func (cn *conn) attachFor(ctx context.Context, query string) error {
	if cn.raw && cn.hidden() {
		cn.unraw() // the function to which it was handed out has returned
	}
	if err := cn.attach(ctx); err != nil {
		return err
	}
	if cn.strayed && (containsFold(query, "currval") || containsFold(query, "lastval")) {
		cn.ended()
		return errStrayed
	}
	return nil
}

var errStrayed = errors.New("flightpg: currval and lastval are of a session that serves others by now, as a driver around flightpg does not tell when a connection is put back: use RETURNING, a transaction, or one that has the methods of driver.Validator and driver.SessionResetter")

// reads returns the rows of a statement that is known to be a read, so that their end is
// noticed where that has to be.
func (cn *conn) reads(rows driver.Rows) driver.Rows {
	if !cn.hidden() {
		return rows
	}
	cn.reading++
	return newFencedRows(rows, cn, nil)
}

// closedRows notes the end of rows.
func (cn *conn) closedRows() {
	if cn.reading > 0 {
		cn.reading--
	}
	cn.ended()
}
