package pipeline

import (
	"cmp"
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Rows are what is left of an answer that was too much for its Read. They have the
// connection to themselves. One goroutine at a time uses them.
type Rows struct {
	k        *conn
	c        *Call
	values   [][]byte
	behind   bool // others' answers come between the rows and the group's end
	complete bool // all rows are there, and the group's end is awaited
	ended    bool
	failure  error // with which the server ended them
	err      error
	unhook   func() bool
}

// goLive makes the rest of the head's answer live rows. Calls behind it in the
// group do not wait for whoever reads them: they run again elsewhere.
func (k *conn) goLive(c *Call, row [][]byte) answer {
	p := k.p
	rest := append([]*Call(nil), k.group[k.head+1:]...)
	c.stmt.stayAlone(bigMemory)
	k.failed = true // its time is its reader's
	if k.armed {
		// The connection's timeouts are not for a reader who may take as long as he
		// likes: he gets the answer from another, from its beginning on.
		again := append([]*Call{c}, rest...)
		k.cancelMu.Lock()
		for _, r := range again {
			r.underWay = false
		}
		k.cancelMu.Unlock()
		for _, r := range again {
			if r.parsing && r != c { // nobody hears whether it succeeds
				k.prepared.remove(r.desc)
				k.closing = append(k.closing, r.desc.name)
			}
		}
		c.alone = true
		k.group, k.stmts, k.head = k.group[:0], k.stmts[:k.head+1], 0
		p.stats.parted.Add(1)
		finished := p.requeue(again, c)
		go k.drain(drainPatience)
		if finished {
			return answerEnded
		}
		return answerAgain
	}
	k.group, k.stmts = k.group[:k.head+1], k.stmts[:k.head+1]
	if len(rest) > 0 {
		k.retired = true // their answers are still to come
	}
	p.lock()
	p.vacateLocked(k)
	p.live++
	p.unlock()
	p.requeue(rest, nil)
	p.lock()
	p.elsewhereLocked()
	p.unlock()
	k.reader = nil
	c.live = &Rows{k: k, c: c, values: row, behind: len(rest) > 0 || k.moved}
	c.finish(nil)
	return answerEnded
}

// Watch makes the end of ctx cancel the query. Reading then ends in time.
func (r *Rows) Watch(ctx context.Context) {
	r.unhook = context.AfterFunc(ctx, func() {
		k := r.k
		k.cancel(r.c)
		k.cancelMu.Lock()
		if r.c.underWay {
			_ = k.net.SetReadDeadline(time.Now().Add(leavePatience))
		}
		k.cancelMu.Unlock()
		time.AfterFunc(cancelPatience, func() { k.kill(r.c) }) // nobody may be reading
	})
}

// Next goes to the next row.
func (r *Rows) Next() bool {
	k := r.k
	for !r.ended {
		msg, err := k.front.Receive()
		if err != nil {
			r.end(cmp.Or(r.failure, err), false)
			break
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			if r.complete || len(msg.Values) != len(r.c.desc.Fields) {
				r.end(errors.New("flightpg: the server sent a row of another number of columns"), false)
				break
			}
			r.values = msg.Values
			return true
		case *pgproto3.CommandComplete:
			r.complete = !r.behind
			if r.behind {
				r.end(nil, true)
			}
		case *pgproto3.ErrorResponse:
			pgErr := pgconn.ErrorResponseToPgError(msg)
			handler := k.config.OnPgError
			if handler != nil && !handler(k.link.PgConn, pgErr) {
				r.end(pgErr, false)
				break
			}
			r.failure, r.complete = pgErr, true
		case *pgproto3.EmptyQueryResponse:
			r.end(errors.New("flightpg: unexpected message from the server"), false)
		case *pgproto3.ReadyForQuery:
			if !r.complete {
				r.end(errors.New("flightpg: unexpected message from the server"), false)
				break
			}
			k.retired = k.retired || msg.TxStatus != 'I'
			if k.syncs--; k.syncs > 0 { // others' answers come
				r.end(r.failure, true)
				break
			}
			r.settled(r.failure)
			k.free()
		default:
			k.aside(msg)
		}
	}
	r.values = nil
	return false
}

// end ends the rows, and gives the connection back if it can still be used.
func (r *Rows) end(err error, usable bool) {
	r.settled(err)
	if !usable {
		r.k.abort()
		return
	}
	go r.k.drain(drainPatience)
}

// settled ends the rows.
func (r *Rows) settled(err error) {
	r.ended, r.err = true, err
	if r.unhook != nil {
		r.unhook()
	}
	k := r.k
	k.settle(r.c)
	k.p.lock()
	k.p.live--
	k.p.unlock()
	k.glance = longAgo // nobody knows whether Watch has set a deadline
	k.setGlance(time.Time{})
}

// RawValues returns the row's values, valid until the next call of Next: before the
// first, those of the row that the Read did not take any more.
func (r *Rows) RawValues() [][]byte { return r.values }

// FieldDescriptions returns the columns.
func (r *Rows) FieldDescriptions() []pgconn.FieldDescription { return r.c.desc.Fields }

// Err returns the error that ended the rows.
func (r *Rows) Err() error { return r.err }

// Close reads what is left. A query that was cancelled ends soon.
func (r *Rows) Close() {
	for r.Next() {
	}
}
