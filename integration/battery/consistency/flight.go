//go:build unix

package consistency

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/flightpg/flightpg"
)

// flightSide is the way through flightpg.
type flightSide struct {
	handle  Handle
	mode    flightpg.Mode // of every call, if handle.Mode says so
	handles []*flightHandle
	pool    *pgxpool.Pool // under the last handle, if handle.Pool says so
}

// flightHandle is one connector and its prepared statements.
type flightHandle struct {
	db                             *sql.DB
	read, slow, write, stmtReturns *sql.Stmt
}

var _ side = (*flightSide)(nil)

func newFlightSide(ctx context.Context, p *Plan) (*flightSide, error) {
	s := &flightSide{handle: p.Handle}
	if err := s.open(ctx, p); err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// addParams adds parameters to a DSN that is a URL.
func addParams(dsn, params string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return "", err
	}
	q := u.Query()
	more, err := url.ParseQuery(params)
	if err != nil {
		return "", err
	}
	for k, v := range more {
		q[k] = v
	}
	q.Set("application_name", Victim)
	u.RawQuery = q.Encode()
	return u.String(), nil
}

func (s *flightSide) open(ctx context.Context, p *Plan) (err error) {
	if s.handle.Mode != "" {
		if s.mode, err = flightpg.ParseMode(s.handle.Mode); err != nil {
			return err
		}
	}
	for i := range s.handle.Connectors {
		var db *sql.DB
		if s.handle.Pool && i == s.handle.Connectors-1 {
			db, err = s.openPool(ctx, p)
		} else {
			var dsn string
			if dsn, err = addParams(p.DSN, s.handle.Params); err != nil {
				return err
			}
			db, err = flightpg.OpenDB(dsn, flightpg.Config{})
		}
		if err != nil {
			return err
		}
		h := &flightHandle{db: db}
		s.handles = append(s.handles, h)
		for _, st := range []struct {
			to   **sql.Stmt
			text string
		}{{&h.read, sqlRead}, {&h.slow, sqlSlow}, {&h.write, sqlWrite}, {&h.stmtReturns, sqlReturning}} {
			if *st.to, err = db.PrepareContext(ctx, st.text); err != nil {
				return err
			}
		}
	}
	return nil
}

// openPool opens a connector over a pgxpool. flightpg's parameters travel in its
// config, where the connector finds them.
func (s *flightSide) openPool(ctx context.Context, p *Plan) (*sql.DB, error) {
	dsn, err := addParams(p.DSN, "pool_max_conns=6")
	if err != nil {
		return nil, err
	}
	if s.pool, err = pgxpool.New(ctx, dsn); err != nil {
		return nil, err
	}
	// The mode and the like, read from a DSN by flightpg itself.
	params, err := url.ParseQuery(s.handle.Params)
	if err != nil {
		return nil, err
	}
	cfg := flightpg.Config{}
	if m := params.Get("flight_mode"); m != "" {
		if cfg.Mode, err = flightpg.ParseMode(m); err != nil {
			return nil, err
		}
	}
	c, err := flightpg.NewConnectorWithPool(s.pool, cfg)
	if err != nil {
		return nil, err
	}
	return c.OpenDB(), nil
}

func (s *flightSide) close() {
	for _, h := range s.handles {
		_ = h.db.Close()
	}
	if s.pool != nil {
		s.pool.Close()
	}
}

func (s *flightSide) figures(r *Result) {
	for _, h := range s.handles {
		st := flightpg.ReadStats(h.db)
		r.Joins += st.Joins
		r.Flights += st.Flights
		r.Fenced += st.Fenced
		r.Retries += st.Retries
		r.Abandoned += st.Cancelled
		for why, n := range st.Bypasses {
			r.bypassed(why.String(), n)
		}
	}
}

func (s *flightSide) context(ctx context.Context) context.Context {
	if s.handle.Mode == "" {
		return ctx
	}
	return flightpg.WithMode(ctx, s.mode)
}

// oneRow is what *sql.Row is, and what is made of *sql.Rows.
type oneRow interface{ Scan(...any) error }

// all reads rows to their end, of which there must be one.
func all(rows *sql.Rows, err error) (val int64, _ error) {
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	n := 0
	for ; rows.Next(); n++ {
		if err := rows.Scan(&val); err != nil {
			return 0, err
		}
	}
	if err := rows.Err(); err != nil {
		return 0, err
	}
	if n != 1 {
		return 0, fmt.Errorf("%d rows without an error: %w", n, errRows)
	}
	return val, rows.Close()
}

// errRows is never taken for a killed backend's.
var errRows = fmt.Errorf("want one: %w", sql.ErrNoRows)

// readVias are the ways to read, by how often they are taken.
var readVias = []Via{
	ViaQuery, ViaQuery, ViaQuery, ViaQuery, ViaQueryRow, ViaQueryRow, ViaQueryRow, ViaQueryRow, ViaQueryRow,
	ViaStmt, ViaStmt, ViaStmt, ViaStmt, ViaConn, ViaConn, ViaConnStmt,
}

func (s *flightSide) read(ctx context.Context, c *client, key int64, slow bool) (via Via, val int64, err error) {
	ctx = s.context(ctx)
	h := s.handles[c.rng.IntN(len(s.handles))]
	text, stmt := sqlRead, h.read
	if slow {
		text, stmt = sqlSlow, h.slow
	}
	via = readVias[c.rng.IntN(len(readVias))]
	if c.rng.IntN(64) == 0 {
		via = ViaTx
	}
	switch via {
	case ViaQuery:
		val, err = all(h.db.QueryContext(ctx, text, key))
	case ViaStmt:
		err = stmt.QueryRowContext(ctx, key).Scan(&val)
	case ViaConn, ViaConnStmt:
		var conn *sql.Conn
		if conn, err = h.db.Conn(ctx); err != nil {
			break
		}
		if via == ViaConn {
			val, err = all(conn.QueryContext(ctx, text, key))
		} else if stmt, err = conn.PrepareContext(ctx, text); err == nil {
			err = errors.Join(stmt.QueryRowContext(ctx, key).Scan(&val), stmt.Close())
		}
		err = errors.Join(err, conn.Close())
	case ViaTx:
		var tx *sql.Tx
		if tx, err = h.db.BeginTx(ctx, nil); err != nil {
			break
		}
		err = tx.QueryRowContext(ctx, text, key).Scan(&val)
		_ = tx.Rollback() // nothing depends on it
	default:
		via = ViaQueryRow
		err = h.db.QueryRowContext(ctx, text, key).Scan(&val)
	}
	return via, val, err
}

// writeVias are the ways to write.
var writeVias = []Via{
	ViaExec, ViaExec, ViaExec, ViaStmtExec, ViaStmtExec, ViaConnExec, ViaTxExec, ViaTxExec, ViaTxStmtExec,
	ViaReturning, ViaReturning, ViaReturnStmt, ViaReturnClosed, ViaCTE, ViaFunction,
	ViaText, ViaMulti, ViaRaw, ViaRawTx, ViaRawBatch, ViaRollback, ViaFailing,
}

func (s *flightSide) write(ctx context.Context, c *client, key, val int64) outcome {
	ctx = s.context(ctx)
	h := s.handles[c.rng.IntN(len(s.handles))]
	o := outcome{kind: Write, via: writeVias[c.rng.IntN(len(writeVias))]}
	swap := func(r oneRow) {
		o.kind = Swap
		o.err = r.Scan(&o.out)
	}
	switch o.via {
	case ViaStmtExec:
		o.err = one(h.write.ExecContext(ctx, key, val))
	case ViaTxExec, ViaTxStmtExec, ViaRollback:
		o.err, o.none = s.tx(ctx, h, o.via, key, val)
	case ViaReturning:
		swap(h.db.QueryRowContext(ctx, sqlReturning, key, val))
	case ViaReturnStmt:
		swap(h.stmtReturns.QueryRowContext(ctx, key, val))
	case ViaReturnClosed:
		var rows *sql.Rows
		if rows, o.err = h.db.QueryContext(ctx, sqlReturning, key, val); o.err == nil {
			o.err = rows.Close() // it has run: the write does not wait for who reads its rows
		}
	case ViaCTE:
		swap(h.db.QueryRowContext(ctx, sqlCTE, key, val))
	case ViaFunction:
		swap(h.db.QueryRowContext(ctx, sqlFunction, key, val))
	case ViaMulti:
		_, o.err = h.db.ExecContext(ctx, fmt.Sprintf(sqlMulti, key, val))
	case ViaFailing:
		o.err = one(h.db.ExecContext(ctx, sqlWrite, key, -val))
		o.none = o.err != nil // nobody writes this value, whatever the error is
		if o.err == nil {
			o.err = errNotRefused
		}
	case ViaConnExec, ViaText, ViaRaw, ViaRawTx, ViaRawBatch:
		o.err = s.conn(ctx, h, o.via, key, val)
	default:
		o.err = one(h.db.ExecContext(ctx, sqlWrite, key, val))
	}
	return o
}

// one checks that an UPDATE has found its row.
func one(res sql.Result, err error) error {
	if err != nil {
		return err
	}
	if n, err := res.RowsAffected(); n != 1 || err != nil {
		return fmt.Errorf("%d rows updated, %v: %w", n, err, errRows)
	}
	return nil
}

// tx writes in a transaction. none: what was written is known to be undone.
func (s *flightSide) tx(ctx context.Context, h *flightHandle, via Via, key, val int64) (err error, none bool) {
	tx, err := h.db.BeginTx(ctx, nil)
	if err != nil {
		return err, true
	}
	if via == ViaTxStmtExec {
		var before int64
		if err = tx.QueryRowContext(ctx, sqlRead, key).Scan(&before); err == nil {
			err = one(tx.StmtContext(ctx, h.write).ExecContext(ctx, key, val))
		}
	} else {
		err = one(tx.ExecContext(ctx, sqlWrite, key, val))
	}
	if err != nil || via == ViaRollback {
		_ = tx.Rollback()
		return err, true // COMMIT was never sent
	}
	return tx.Commit(), false
}

// conn writes on a connection of its own.
func (s *flightSide) conn(ctx context.Context, h *flightHandle, via Via, key, val int64) (err error) {
	conn, err := h.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() {
		if cerr := conn.Close(); err == nil {
			err = cerr
		}
	}()
	switch via {
	case ViaConnExec:
		return one(conn.ExecContext(ctx, sqlWrite, key, val))
	case ViaText:
		if _, err = conn.ExecContext(ctx, "BEGIN"); err != nil {
			return err
		}
		if err = one(conn.ExecContext(ctx, sqlWrite, key, val)); err != nil {
			return err
		}
		_, err = conn.ExecContext(ctx, "COMMIT")
		return err
	}
	return conn.Raw(func(dc any) error {
		pc := dc.(interface{ Conn() *pgx.Conn }).Conn()
		if pc == nil {
			return errNoSession
		}
		switch via {
		case ViaRawTx:
			return pgx.BeginFunc(ctx, pc, func(tx pgx.Tx) error {
				return oneTag(tx.Exec(ctx, sqlWrite, key, val))
			})
		case ViaRawBatch:
			var b pgx.Batch
			b.Queue("SELECT 1")
			b.Queue(sqlWrite, key, val)
			return pc.SendBatch(ctx, &b).Close()
		default:
			return oneTag(pc.Exec(ctx, sqlWrite, key, val))
		}
	})
}

// errNoSession is what Conn's nil means: no connection could be opened.
var errNoSession = errors.New("no *pgx.Conn")

func oneTag(tag pgconn.CommandTag, err error) error {
	if err == nil && tag.RowsAffected() != 1 {
		err = fmt.Errorf("%v: %w", tag, errRows)
	}
	return err
}
