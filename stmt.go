package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
)

// stmt is a prepared statement over a virtual connection. It is its text and
// its shape; which sessions have it prepared is the sessions' business.
type stmt struct {
	cn       *conn
	query    string
	numInput int
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
func (cn *conn) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if cn.broken {
		return nil, driver.ErrBadConn
	}
	var n int
	var err error
	if cn.lease == nil && cn.c.mode(ctx) != ModeOff && cn.c.off.Load() == uint32(ReasonNone) {
		n, err = cn.c.shape(ctx, cn.c.verdicts.get(query, cn.c.peek()), query)
	} else if err = cn.attach(ctx); err == nil {
		n, err = cn.lease.numInput(ctx, cn.c.viaStmt == viaStmt, query)
		cn.ran(err)
	}
	if err != nil {
		return nil, err
	}
	return &stmt{cn: cn, query: query, numInput: n}, nil
}

// Prepare implements driver.Conn. database/sql calls PrepareContext.
func (cn *conn) Prepare(query string) (driver.Stmt, error) {
	return cn.PrepareContext(context.Background(), query)
}

// Close implements driver.Stmt. It has nothing to do: database/sql can call it
// under its global lock and after the session has gone back, so a session
// closes prepared statements itself, when it has too many.
func (s *stmt) Close() error { return nil }

// NumInput implements driver.Stmt.
func (s *stmt) NumInput() int { return s.numInput }

// QueryContext implements driver.StmtQueryContext.
func (s *stmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.cn.query(ctx, s.cn.c.viaStmt, s.query, args)
}

// ExecContext implements driver.StmtExecContext.
func (s *stmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return s.cn.exec(ctx, s.cn.c.viaStmt, s.query, args)
}

var errNoContext = errors.New("flightpg: not implemented: use the method with a context")

// Exec implements driver.Stmt. Like pgx's it does nothing: database/sql calls
// ExecContext.
func (s *stmt) Exec([]driver.Value) (driver.Result, error) { return nil, errNoContext }

// Query implements driver.Stmt. Like pgx's it does nothing: database/sql calls
// QueryContext.
func (s *stmt) Query([]driver.Value) (driver.Rows, error) { return nil, errNoContext }
