package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
)

// fakeServer is a database whose every answer is the test's, for what
// go-sqlmock cannot show: which session a statement ran on, who holds one, what
// happens when a connection is bad. It is a driver.Connector.
//
// It waits on channels only, so it works inside a synctest bubble.
type fakeServer struct {
	// answer is called for each query, exec and prepare. nil answers with one
	// row: the session's number.
	answer func(ctx context.Context, s *fakeSession, query string, args []driver.NamedValue) (*fakeRows, error)
	// connect is called before a session opens; an error refuses it.
	connect func(ctx context.Context) error

	mu       sync.Mutex
	sessions []*fakeSession // all that were ever opened
	log      []string       // "session: what", in order
}

func (f *fakeServer) Connect(ctx context.Context) (driver.Conn, error) {
	if f.connect != nil {
		if err := f.connect(ctx); err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &fakeSession{server: f, id: len(f.sessions) + 1}
	f.sessions = append(f.sessions, s)
	return s, nil
}

func (f *fakeServer) Driver() driver.Driver { return fakeDriver{} }

// trustAll is for servers that have no catalog.
var trustAll = []string{allNames}

type fakeDriver struct{}

func (fakeDriver) Open(string) (driver.Conn, error) { panic("not used") }

// open returns how many sessions are open.
func (f *fakeServer) open() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, s := range f.sessions {
		if !s.closed {
			n++
		}
	}
	return n
}

// opened returns how many sessions were ever opened.
func (f *fakeServer) opened() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.sessions)
}

func (f *fakeServer) note(s *fakeSession, what string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.log = append(f.log, fmt.Sprintf("%d: %s", s.id, what))
}

// count returns how often what was logged, on any session.
func (f *fakeServer) count(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := 0
	for _, l := range f.log {
		if _, w, _ := cut(l); w == what {
			n++
		}
	}
	return n
}

// on returns the sessions on which what was logged, in order.
func (f *fakeServer) on(what string) []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	var ids []int
	for _, l := range f.log {
		if id, w, _ := cut(l); w == what {
			ids = append(ids, id)
		}
	}
	return ids
}

func cut(l string) (id int, what string, err error) {
	_, err = fmt.Sscanf(l, "%d:", &id)
	for i := range l {
		if l[i] == ' ' {
			return id, l[i+1:], err
		}
	}
	return id, "", err
}

// fakeSession is one connection of a fakeServer.
type fakeSession struct {
	server *fakeServer
	id     int

	closed  bool // guarded by server.mu
	invalid bool // IsValid reports false
	bad     bool // ResetSession gives driver.ErrBadConn
	dead    bool // only Ping finds out
}

func (s *fakeSession) run(ctx context.Context, kind, query string, args []driver.NamedValue) (*fakeRows, error) {
	s.server.note(s, kind+query)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if s.server.answer != nil {
		return s.server.answer(ctx, s, query, args)
	}
	return oneRow(int64(s.id)), nil
}

func (s *fakeSession) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := s.run(ctx, "", query, args)
	if err != nil {
		return nil, err
	}
	return rows, nil
}

func (s *fakeSession) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	if _, err := s.run(ctx, "", query, args); err != nil {
		return nil, err
	}
	return driver.RowsAffected(1), nil
}

func (s *fakeSession) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if _, err := s.run(ctx, "prepare ", query, nil); err != nil {
		return nil, err
	}
	return &fakeStmt{s, query}, nil
}

func (s *fakeSession) Prepare(query string) (driver.Stmt, error) {
	return s.PrepareContext(context.Background(), query)
}

func (s *fakeSession) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) {
	s.server.note(s, "BEGIN")
	return &fakeTx{s}, nil
}

func (s *fakeSession) Begin() (driver.Tx, error) {
	return s.BeginTx(context.Background(), driver.TxOptions{})
}

func (s *fakeSession) CheckNamedValue(*driver.NamedValue) error { return nil }

func (s *fakeSession) Ping(context.Context) error {
	s.server.note(s, "PING")
	if s.bad || s.dead {
		return driver.ErrBadConn
	}
	return nil
}

func (s *fakeSession) ResetSession(context.Context) error {
	if s.bad {
		return driver.ErrBadConn
	}
	return nil
}

func (s *fakeSession) IsValid() bool { return !s.invalid }

func (s *fakeSession) Close() error {
	s.server.note(s, "CLOSE")
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	s.closed = true
	return nil
}

type fakeStmt struct {
	s     *fakeSession
	query string
}

func (st *fakeStmt) Close() error {
	st.s.server.note(st.s, "deallocate "+st.query)
	return nil
}

func (st *fakeStmt) NumInput() int {
	n := 0
	for i := range st.query {
		if st.query[i] == '$' {
			n++
		}
	}
	return n
}

func (st *fakeStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	rows, err := st.s.run(ctx, "execute ", st.query, args)
	if err != nil {
		return nil, err
	}
	return rows, nil
}

func (st *fakeStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	if _, err := st.s.run(ctx, "execute ", st.query, args); err != nil {
		return nil, err
	}
	return driver.RowsAffected(1), nil
}

func (st *fakeStmt) Query([]driver.Value) (driver.Rows, error)  { panic("not used") }
func (st *fakeStmt) Exec([]driver.Value) (driver.Result, error) { panic("not used") }

type fakeTx struct{ s *fakeSession }

func (tx *fakeTx) end(what string) error {
	_, err := tx.s.run(context.Background(), "", what, nil)
	return err
}

func (tx *fakeTx) Commit() error   { return tx.end("COMMIT") }
func (tx *fakeTx) Rollback() error { return tx.end("ROLLBACK") }

// fakeRows yield rows, then err or io.EOF. step, if set, is called before each.
type fakeRows struct {
	names   []string
	rows    [][]driver.Value
	err     error
	step    func(n int) error
	onClose func()
	n       int
	scratch []byte // reused for every []byte, as drivers may
	reuse   bool
}

func oneRow(vs ...driver.Value) *fakeRows { return rowsOf(vs) }

func rowsOf(rows ...[]driver.Value) *fakeRows {
	r := &fakeRows{rows: rows}
	for i := range rows[0] {
		r.names = append(r.names, fmt.Sprintf("c%d", i))
	}
	return r
}

func (r *fakeRows) Columns() []string { return r.names }

func (r *fakeRows) Close() error {
	if r.reuse {
		r.scribble()
	}
	if r.onClose != nil {
		r.onClose()
		r.onClose = nil
	}
	return nil
}

func (r *fakeRows) scribble() {
	for i := range r.scratch {
		r.scratch[i] = '#'
	}
}

func (r *fakeRows) Next(dest []driver.Value) error {
	if r.reuse {
		r.scribble()
	}
	if r.step != nil {
		if err := r.step(r.n); err != nil {
			return err
		}
	}
	if r.n == len(r.rows) {
		if r.err != nil {
			return r.err
		}
		return io.EOF
	}
	copy(dest, r.rows[r.n])
	if r.reuse {
		r.scratch = r.scratch[:0]
		for i, v := range dest {
			if b, ok := v.([]byte); ok {
				start := len(r.scratch)
				r.scratch = append(slices.Grow(r.scratch, 64), b...)
				dest[i] = r.scratch[start:]
			}
		}
	}
	r.n++
	return nil
}

// openFake opens a handle over a fake server.
func openFake(t *testing.T, f *fakeServer, cfg Config) *sql.DB {
	t.Helper()
	cfg.TrustNames = trustAll
	c, err := Wrap(f, cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := c.OpenDB()
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	return db
}
