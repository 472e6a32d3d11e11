package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"slices"
	"strings"
)

// stmt is a prepared statement over a virtual connection. It is its text and
// its shape; which sessions have it prepared is the sessions' business.
type stmt struct {
	cn       *conn
	query    string
	v        *verdict // of the query, when it was prepared
	numInput int
	closed   bool

	own driver.Stmt // of the inner driver, on the connection's session; see PrepareContext
}

var (
	_ driver.Stmt             = (*stmt)(nil)
	_ driver.StmtExecContext  = (*stmt)(nil)
	_ driver.StmtQueryContext = (*stmt)(nil)
)

// PrepareContext implements driver.ConnPrepareContext. database/sql prepares a
// statement once on each connection it runs on, so every caller of a shared
// sql.Stmt on a fresh connection comes here: a detached connection asks the
// server once per text, an attached one its own session, which may see more
// (temporary tables, its transaction's DDL).
//
// With other drivers than pgx a statement can be more than its text: lib/pq's CopyIn ends
// with its execution. There one that is prepared on a session is the inner driver's own,
// and is closed with it, for as long as the connection has that session.
func (cn *conn) PrepareContext(ctx context.Context, query string) (_ driver.Stmt, err error) {
	if cn.c.cfg.PartitionKey != nil {
		defer recovered(&err)
	}
	if cn.broken {
		return nil, cn.refuse()
	}
	var n int
	var own driver.Stmt
	v := cn.c.verdicts.get(query, cn.c.peek(ctx))
	// A context of a foreign type is not for a flight, see bypass.
	if (cn.lease == nil || cn.sharesOn()) && cn.c.mode(ctx) != ModeOff && !cn.foreign(ctx) && cn.c.off.Load() == uint32(ReasonNone) {
		n, err = cn.c.shape(ctx, v, query)
	} else if err = cn.attach(ctx); err == nil && cn.lease.under == nil {
		if own, err = cn.lease.prepare(ctx, query); err == nil {
			n = own.NumInput()
		}
		cn.ran(err)
	} else if err == nil {
		n, _, err = cn.lease.numInput(ctx, cn.c.stmtsVia(query) == viaStmt, query)
		cn.ran(err)
		cn.ended()
	}
	if err != nil {
		return nil, leftError(ctx, err)
	}
	if cn.prepared == nil {
		cn.prepared = make(map[string]int)
	}
	cn.prepared[query]++
	v.open.Add(1)
	s := &stmt{cn: cn, query: query, v: v, numInput: n, own: own}
	if own != nil {
		cn.owners = append(cn.owners, s)
	}
	return s, nil
}

// stmtsVia says how statements of a text are executed. A long one is not left to pgx's
// cache of plain queries, which would keep it prepared when it was closed.
func (c *Connector) stmtsVia(query string) byte {
	if len(query) > maxPipelined {
		return viaStmt
	}
	return c.viaStmt
}

// Prepare implements driver.Conn. database/sql calls PrepareContext.
func (cn *conn) Prepare(query string) (driver.Stmt, error) {
	return cn.PrepareContext(context.Background(), query)
}

// Close implements driver.Stmt. It asks nobody: database/sql can call it under
// its global lock and after the session has gone back, so a session closes
// prepared statements itself, when it has too many or when somebody looks.
func (s *stmt) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	var err error
	if s.own != nil {
		s.cn.owners = slices.DeleteFunc(s.cn.owners, func(o *stmt) bool { return o == s })
		err = s.own.Close()
		s.own = nil
	}
	if s.cn.prepared[s.query]--; s.cn.prepared[s.query] == 0 {
		delete(s.cn.prepared, s.query)
	}
	if s.v.open.Add(-1) == 0 {
		for _, gone := range s.cn.c.closedStmts.closed(s.v) {
			s.cn.c.verdicts.drop(gone)
		}
	}
	return err
}

// disown gives the inner driver's statement to the session, which goes back to its pool,
// for the next use of the text there; or closes it.
func (s *stmt) disown(on *session) {
	if on.bad || s.v.effects != 0 || on.stmts.byText[s.query] != nil {
		_ = s.own.Close() // a failure shows at the connection's next use
	} else {
		on.keep(s.query, s.own)
	}
	s.own = nil
}

// use has the session execute the statement's own one, until what is returned is called.
func (s *stmt) use() func() {
	if s.own == nil || s.cn.lease == nil {
		return func() {}
	}
	on := s.cn.lease.session
	on.using = s.own
	return func() { on.using = nil }
}

// showPrepared makes the session's prepared statements those that are open on
// this connection, if the query is one that looks at them: nobody else can tell
// when and where a statement is prepared.
func (cn *conn) showPrepared(ctx context.Context, v *verdict) {
	if v.reason != ReasonSessionView || !strings.Contains(v.sql, "pg_prepared_statements") || cn.lease.pgx == nil {
		return
	}
	for _, query := range slices.Clone(cn.lease.stmts.order) {
		if cn.prepared[query] == 0 {
			cn.lease.forget(query)
		}
	}
	if !cn.lease.idle() {
		return // a statement that cannot be prepared any more would fail the transaction
	}
	for query := range cn.prepared {
		_, _ = cn.lease.stmt(ctx, query) // it fails where DDL has changed something, and with pgx at its next use
	}
}

// NumInput implements driver.Stmt.
func (s *stmt) NumInput() int { return s.numInput }

// QueryContext implements driver.StmtQueryContext.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (_ driver.Rows, err error) {
	if s.cn.c.cfg.PartitionKey != nil {
		defer recovered(&err)
	}
	defer s.use()()
	return s.cn.query(ctx, s.cn.c.stmtsVia(s.query), s.query, args)
}

// ExecContext implements driver.StmtExecContext.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (_ driver.Result, err error) {
	if s.cn.c.cfg.PartitionKey != nil {
		defer recovered(&err)
	}
	defer s.use()()
	return s.cn.exec(ctx, s.cn.c.stmtsVia(s.query), s.query, args)
}

var errNoContext = errors.New("flightpg: not implemented: use the method with a context")

// Exec implements driver.Stmt. Like pgx's it does nothing: database/sql calls
// ExecContext.
func (s *stmt) Exec([]driver.Value) (driver.Result, error) { return nil, errNoContext }

// Query implements driver.Stmt. Like pgx's it does nothing: database/sql calls
// QueryContext.
func (s *stmt) Query([]driver.Value) (driver.Rows, error) { return nil, errNoContext }
