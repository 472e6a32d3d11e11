package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
)

// simServer is the database of a simulation: a few counters, which writes raise
// and reads show, each by its id. What it is asked waits for a step that says how
// it ends. It finds out by itself what a server can: whether a write ran twice,
// two callers used one session, or a session was used that should be gone.
type simServer struct {
	w *simWorld

	mu        sync.Mutex // guards what follows; nothing waits while it is held
	sessions  []*simSession
	ops       []*simOp // that wait for their step
	lastOp    int
	rollbacks int
	version   [simKeys]int
	writes    map[int]*simWrite // by the argument that tells them apart

	// What fenced readers must see: all that was written through the handle.
	fenced [simKeys]int
	fence  int // the clock at the last such write, or fence
}

const simKeys = 3

// Texts that the simulation uses, all about the counter of a key.
const (
	simRead    = "SELECT k, version, own, op, i, n, payload FROM t WHERE k = $1"
	simPrivate = "SELECT k, version, own, op, i, n, payload, random() FROM t WHERE k = $1"
	simUpdate  = "UPDATE t SET version = version + 1 WHERE k = $1 AND $2 = $2"
	simReturn  = simUpdate + " RETURNING k, version, own, op, i, n, payload"
	simSet     = "SET search_path = elsewhere"
)

// simRows is how many rows a key's counter is shown in, and simSize how large each
// is: the last key's are over the limits of some schedules.
var (
	simRows = [simKeys]int{1, 4, 12}
	simSize = [simKeys]int{10, 20, 400}
)

func simPayload(key, version, i int) string {
	return strings.Repeat(string(rune('a'+(key+version+i)%26)), simSize[key])
}

type simWrite struct {
	key     int
	applied int // how often it ran
	when    int // the world's clock when it was committed; 0: it is not
}

type simSession struct {
	srv    *simServer
	id     int
	flight bool // of the flight pool

	// Guarded by srv.mu.
	closed bool
	failed bool // it answers nothing but driver.ErrBadConn
	told   bool // it has done so
	busy   bool
	rows   int // that are open
	tx     *simTx
}

type simTx struct {
	own    [simKeys]int // what it has added
	writes []int
}

// simOp is something that a session was asked.
type simOp struct {
	id      int
	s       *simSession
	what    string // "query", "exec", "prepare", "commit", "row", "answer", "connect"
	query   string
	key     int
	write   int      // -1: none
	call    *simCall // of the caller, or of the flight's leader; nil where nobody tells
	arrived int      // the world's clock
	deaf    bool     // does not end with its context
	early   bool     // its snapshot is of its arrival
	ctx     context.Context
	version [simKeys]int
	end     chan simEnd
}

// simEnd is how an op ends.
type simEnd uint8

const (
	endWell    simEnd = iota
	endSlow           // a query: some rows, and then it waits for another step
	endFail           // with an error of its own; nothing has happened
	endBadConn        // driver.ErrBadConn; nothing has happened
	endLost           // with an error of its own, after it has happened
	endRowsFail
	endRowsBadConn
	endPanic
	endRowsPanic
	endGoexit
	endCount
)

var simEndNames = [endCount]string{
	"succeeds", "succeeds slowly", "fails", "fails with ErrBadConn", "has its answer lost", "fails after a row",
	"fails with ErrBadConn after a row", "panics", "panics after a row", "calls runtime.Goexit",
}

// simError is an error that the server gave to one op.
type simError struct{ op int }

func (e *simError) Error() string { return fmt.Sprintf("op %d failed", e.op) }

// simConnector opens sessions of one pool.
type simConnector struct {
	srv    *simServer
	flight bool
}

func (c simConnector) Driver() driver.Driver { return fakeDriver{} }

func (c simConnector) Connect(ctx context.Context) (driver.Conn, error) {
	s := c.srv
	if s.w.slowConnect {
		if _, _, err := s.ask(ctx, &simOp{s: &simSession{srv: s, flight: c.flight}, what: "connect", key: -1, write: -1}); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	session := &simSession{srv: s, id: len(s.sessions) + 1, flight: c.flight}
	s.sessions = append(s.sessions, session)
	return session, nil
}

var errSimAbort = errors.New("the schedule was aborted")

// ask lets an op wait for its step. It returns how it ends, and the error for
// those ends that are the same for all.
func (s *simServer) ask(ctx context.Context, op *simOp) (simEnd, *simOp, error) {
	s.mu.Lock()
	if op.call == nil {
		op.call, _ = ctx.Value(simCallKey{}).(*simCall)
	}
	op.ctx = ctx
	op.end = make(chan simEnd, 1)
	s.lastOp++
	op.id = s.lastOp
	op.arrived = s.w.tick()
	op.version = s.version
	op.deaf = op.id%4 == 0 && op.what != "row" // database/sql waits for Next on a mutex
	op.early = op.id%2 == 0
	failed := op.s.failed
	op.s.told = op.s.told || failed
	if !failed {
		s.ops = append(s.ops, op)
	}
	s.mu.Unlock()
	if failed {
		return endBadConn, op, s.w.inject(op, driver.ErrBadConn)
	}
	ended := ctx.Done()
	if op.deaf {
		ended = nil
	}
	select {
	case end := <-op.end:
		switch end {
		case endFail:
			return end, op, s.w.inject(op, &simError{op.id})
		case endBadConn:
			s.mark(op.s)
			return end, op, s.w.inject(op, driver.ErrBadConn)
		case endPanic:
			panic(s.w.inject(op, &simError{op.id}))
		case endGoexit:
			_ = s.w.inject(op, errSimGoexit)
			runtime.Goexit()
		}
		return end, op, nil
	case <-ended:
		s.forget(op)
		if op.write >= 0 {
			s.mark(op.s) // as pgx does it
			if op.id%3 == 0 {
				return endLost, op, ctx.Err() // too late
			}
		}
		return endFail, op, ctx.Err()
	case <-s.w.abort:
		return endFail, op, errSimAbort
	}
}

// onItsWay lets the answer to a write wait for a step: others see what was written,
// and its caller has not heard of it.
func (s *simServer) onItsWay(ctx context.Context, op *simOp) error {
	_, _, err := s.ask(ctx, &simOp{s: op.s, what: "answer", query: op.query, key: op.key, write: -1, call: op.call})
	return err
}

var errSimGoexit = errors.New("Goexit")

func (s *simServer) forget(op *simOp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.Index(s.ops, op); i >= 0 {
		s.ops = slices.Delete(s.ops, i, i+1)
	}
}

// mark notes that a session has failed.
func (s *simServer) mark(session *simSession) {
	s.mu.Lock()
	defer s.mu.Unlock()
	session.failed, session.told = true, true
}

// open returns how many sessions of the pool are open.
func (s *simServer) open(flight bool) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, session := range s.sessions {
		if !session.closed && session.flight == flight {
			n++
		}
	}
	return n
}

// use notes that a session is in use. It returns what ends that.
func (session *simSession) use(what, query string) func() {
	s := session.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case session.closed:
		s.w.fail(simSessionsApart, "session %d is used after its end: %s %s", session.id, what, query)
	case session.busy || session.rows > 0 && what != "rollback":
		s.w.fail(simSessionsApart, "session %d is used by two at a time: %s %s", session.id, what, query)
	case session.told && session.flight:
		s.w.fail(simSessionsApart, "flight session %d is used after it has failed: %s %s", session.id, what, query)
	case session.flight && what != "ping" && (query != simRead || what == "exec"):
		s.w.fail(simSessionsApart, "flight session %d runs what is not shared: %s %s", session.id, what, query)
	}
	session.busy = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		session.busy = false
	}
}

func simArgs(args []driver.NamedValue) (key, write int) {
	key, write = -1, -1
	if len(args) > 0 {
		key = int(args[0].Value.(int64))
	}
	if len(args) > 1 {
		write = int(args[1].Value.(int64))
	}
	return key, write
}

// apply runs a write.
func (s *simServer) apply(session *simSession, key, write int) {
	if key < 0 {
		return
	}
	w := s.writes[write]
	if w == nil {
		w = &simWrite{key: key}
		s.writes[write] = w
	}
	w.applied++
	if w.applied > 1 {
		s.w.fail(simOnce, "write %d ran twice", write)
	}
	if session.tx != nil {
		session.tx.own[key]++
		session.tx.writes = append(session.tx.writes, write)
		return
	}
	s.version[key]++
	w.when = s.w.tick()
	s.fenced[key], s.fence = s.version[key], w.when
}

func (session *simSession) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	defer session.use("query", query)()
	s := session.srv
	key, write := simArgs(args)
	end, op, err := s.ask(ctx, &simOp{s: session, what: "query", query: query, key: key, write: write})
	s.mu.Lock()
	defer s.mu.Unlock()
	if write >= 0 && (err == nil || end == endLost) {
		s.apply(session, key, write)
	}
	if err != nil {
		return nil, err
	}
	if end == endLost {
		session.failed = true
		return nil, s.w.inject(op, &simError{op.id})
	}
	version := s.version
	if op.early && write < 0 {
		version = op.version
	}
	r := &simResult{s: session, op: op, end: end, version: version[key], n: simRows[key]}
	if session.tx != nil {
		r.own = session.tx.own[key]
	}
	session.rows++
	s.w.execs[op.id] = op
	return r, nil
}

func (session *simSession) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Result, error) {
	defer session.use("exec", query)()
	s := session.srv
	key, write := simArgs(args)
	end, op, err := s.ask(ctx, &simOp{s: session, what: "exec", query: query, key: key, write: write})
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil || end == endLost {
		s.apply(session, key, write)
	}
	if err != nil {
		return nil, err
	}
	if end == endLost {
		session.failed = true
		return nil, s.w.inject(op, &simError{op.id})
	}
	if end == endSlow {
		s.mu.Unlock()
		err = s.onItsWay(ctx, op)
		s.mu.Lock()
		if err != nil {
			return nil, err
		}
	}
	return driver.RowsAffected(1), nil
}

func (session *simSession) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	defer session.use("prepare", query)()
	if _, _, err := session.srv.ask(ctx, &simOp{s: session, what: "prepare", query: query, key: -1, write: -1}); err != nil {
		return nil, err
	}
	return &simStmt{session, query}, nil
}

func (session *simSession) Prepare(string) (driver.Stmt, error) { panic("not used") }
func (session *simSession) Begin() (driver.Tx, error)           { panic("not used") }

func (session *simSession) BeginTx(ctx context.Context, _ driver.TxOptions) (driver.Tx, error) {
	defer session.use("begin", "")()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	s := session.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if session.failed {
		return nil, s.w.inject(&simOp{s: session, key: -1}, driver.ErrBadConn)
	}
	session.tx = new(simTx)
	return session, nil
}

func (session *simSession) Commit() error {
	defer session.use("commit", "")()
	s := session.srv
	end, op, err := s.ask(context.Background(), &simOp{s: session, what: "commit", key: -1, write: -1})
	s.mu.Lock()
	defer s.mu.Unlock()
	tx := session.tx
	session.tx = nil
	if err != nil {
		return err
	}
	now := s.w.tick()
	for key, n := range tx.own {
		s.version[key] += n
	}
	for _, id := range tx.writes {
		w := s.writes[id]
		w.when = now
		s.fenced[w.key], s.fence = s.version[w.key], now
	}
	if end == endLost {
		session.failed = true
		return s.w.inject(op, &simError{op.id})
	}
	if end == endSlow {
		s.mu.Unlock()
		err = s.onItsWay(context.Background(), op)
		s.mu.Lock()
	}
	return err
}

func (session *simSession) Rollback() error {
	defer session.use("rollback", "")()
	s := session.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.rollbacks++; s.rollbacks%4 == 0 { // the transaction stays open
		s.lastOp++
		return s.w.inject(&simOp{id: s.lastOp, s: session, what: "rollback", key: -1}, &simError{s.lastOp})
	}
	session.tx = nil
	return nil
}

func (session *simSession) CheckNamedValue(nv *driver.NamedValue) error {
	if n, ok := nv.Value.(int); ok {
		nv.Value = int64(n)
	}
	return nil
}

func (session *simSession) Ping(ctx context.Context) error {
	defer session.use("ping", "")()
	s := session.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if session.failed {
		session.told = true
		call, _ := ctx.Value(simCallKey{}).(*simCall)
		return s.w.inject(&simOp{s: session, what: "ping", key: -1, call: call}, driver.ErrBadConn)
	}
	return nil
}

func (session *simSession) ResetSession(context.Context) error {
	session.srv.mu.Lock()
	defer session.srv.mu.Unlock()
	if session.failed && (!session.told || session.id%2 == 0) { // some that have told look well later
		session.told = true
		return driver.ErrBadConn
	}
	return nil
}

func (session *simSession) IsValid() bool { return session.ResetSession(context.Background()) == nil }

func (session *simSession) Close() error {
	session.srv.mu.Lock()
	defer session.srv.mu.Unlock()
	session.closed = true
	session.tx = nil
	return nil
}

type simStmt struct {
	s     *simSession
	query string
}

func (st *simStmt) Close() error  { return nil }
func (st *simStmt) NumInput() int { return strings.Count(st.query, "$") }

func (st *simStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return st.s.QueryContext(ctx, st.query, args)
}

func (st *simStmt) ExecContext(ctx context.Context, args []driver.NamedValue) (driver.Result, error) {
	return st.s.ExecContext(ctx, st.query, args)
}

func (st *simStmt) Query([]driver.Value) (driver.Rows, error)  { panic("not used") }
func (st *simStmt) Exec([]driver.Value) (driver.Result, error) { panic("not used") }

// simResult are the rows of a query.
type simResult struct {
	s       *simSession
	op      *simOp
	end     simEnd
	version int
	own     int
	i, n    int
	asked   bool // the step that a slow query waits for has come
	closed  bool
}

func (r *simResult) Columns() []string {
	return []string{"k", "version", "own", "op", "i", "n", "payload"}
}

func (r *simResult) Next(dest []driver.Value) error {
	w := r.s.srv.w
	if r.closed {
		w.fail(simSessionsApart, "rows of op %d are read after their end", r.op.id)
		return io.EOF
	}
	if r.i == (r.n+1)/2 {
		switch r.end {
		case endSlow:
			if !r.asked {
				r.asked = true
				op := &simOp{s: r.s, what: "row", query: r.op.query, key: r.op.key, write: -1, call: r.op.call}
				if _, _, err := r.s.srv.ask(r.op.ctx, op); err != nil {
					return err
				}
			}
		case endRowsFail:
			return w.inject(r.op, &simError{r.op.id})
		case endRowsBadConn:
			r.s.srv.mark(r.s)
			return w.inject(r.op, driver.ErrBadConn)
		case endRowsPanic:
			panic(w.inject(r.op, &simError{r.op.id}))
		}
	}
	if r.i == r.n {
		return io.EOF
	}
	dest[0], dest[1], dest[2], dest[3] = int64(r.op.key), int64(r.version), int64(r.own), int64(r.op.id)
	dest[4], dest[5], dest[6] = int64(r.i), int64(r.n), []byte(simPayload(r.op.key, r.version, r.i))
	r.i++
	return nil
}

func (r *simResult) Close() error {
	s := r.s.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if !r.closed {
		r.closed = true
		r.s.rows--
	}
	return nil
}
