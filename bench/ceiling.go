package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"io"
	"runtime"
	"sync"
)

// ceiling is a driver.Connector without a server: it has all answers. With a lot,
// readers wait until a common answer comes; a goroutine brings that to all who wait
// as often as it is scheduled.
type ceiling struct {
	lot     *lot   // or nil
	answers func() // called before each answer, or nil
}

// lot is where readers park.
type lot struct {
	mu      sync.Mutex // guards waiting and arrived
	waiting int
	arrived chan struct{} // closed when the answer comes for those who wait
	wanted  chan struct{} // holds a message while somebody waits
	closing chan struct{}
}

func newLot() *lot {
	l := &lot{arrived: make(chan struct{}), wanted: make(chan struct{}, 1), closing: make(chan struct{})}
	go l.serve()
	return l
}

func (l *lot) serve() {
	for {
		select {
		case <-l.wanted:
		case <-l.closing:
			return
		}
		runtime.Gosched() // as long as an answer takes at least
		l.mu.Lock()
		arrived := l.arrived
		l.arrived, l.waiting = make(chan struct{}), 0
		l.mu.Unlock()
		close(arrived)
	}
}

func (l *lot) park(ctx context.Context) error {
	l.mu.Lock()
	arrived := l.arrived
	l.waiting++
	first := l.waiting == 1
	l.mu.Unlock()
	if first {
		l.wanted <- struct{}{}
	}
	select {
	case <-arrived:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func openCeiling(park bool) func(context.Context, string) (client, error) {
	return func(context.Context, string) (client, error) {
		c := &ceiling{}
		if park {
			c.lot = newLot()
		}
		db := sql.OpenDB(c)
		db.SetMaxIdleConns(10_000) // as flightpg.OpenDB
		return &ceilingClient{sqlClient{db}, c.lot}, nil
	}
}

type ceilingClient struct {
	sqlClient
	lot *lot
}

func (c *ceilingClient) close() {
	c.sqlClient.close()
	if c.lot != nil {
		close(c.lot.closing)
	}
}

// Connect implements driver.Connector.
func (c *ceiling) Connect(context.Context) (driver.Conn, error) { return &ceilingConn{c: c}, nil }

// Driver implements driver.Connector.
func (c *ceiling) Driver() driver.Driver { return ceilingDriver{} }

type ceilingDriver struct{}

func (ceilingDriver) Open(string) (driver.Conn, error) { return nil, errReadsOnly }

var errReadsOnly = errors.New("the ceilings do nothing but read")

type ceilingConn struct{ c *ceiling }

var (
	_ driver.QueryerContext    = (*ceilingConn)(nil)
	_ driver.NamedValueChecker = (*ceilingConn)(nil)
	_ driver.SessionResetter   = (*ceilingConn)(nil)
	_ driver.Validator         = (*ceilingConn)(nil)
)

func (*ceilingConn) Prepare(string) (driver.Stmt, error)        { return nil, errReadsOnly }
func (*ceilingConn) Begin() (driver.Tx, error)                  { return nil, errReadsOnly }
func (*ceilingConn) Close() error                               { return nil }
func (*ceilingConn) IsValid() bool                              { return true }
func (*ceilingConn) ResetSession(context.Context) error         { return nil }
func (*ceilingConn) CheckNamedValue(v *driver.NamedValue) error { return nil }

func (cn *ceilingConn) QueryContext(ctx context.Context, _ string, args []driver.NamedValue) (driver.Rows, error) {
	if cn.c.lot != nil {
		if err := cn.c.lot.park(ctx); err != nil {
			return nil, err
		}
	}
	if cn.c.answers != nil {
		cn.c.answers()
	}
	if len(args) == 1 {
		return &ceilingRows{columns: rowColumns, left: 1}, nil
	}
	return &ceilingRows{columns: rowsColumns, left: args[1].Value.(int64) - args[0].Value.(int64) + 1}, nil
}

var (
	rowColumns  = []string{"name", "n"}
	rowsColumns = []string{"id", "name", "n"}
	answer      = []driver.Value{int64(42), "item 42", int64(294)} // boxed once
)

type ceilingRows struct {
	columns []string
	left    int64
}

func (r *ceilingRows) Columns() []string { return r.columns }
func (r *ceilingRows) Close() error      { return nil }

func (r *ceilingRows) Next(dest []driver.Value) error {
	if r.left == 0 {
		return io.EOF
	}
	r.left--
	copy(dest, answer[len(answer)-len(dest):])
	return nil
}
