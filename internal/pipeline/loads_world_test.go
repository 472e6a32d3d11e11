package pipeline

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

// What things cost, in time of a CPU. A read alone takes 33 µs of client and server
// together, in groups of 16 it takes 15 with a Sync each, and 5.6 with one for all, as
// measured with PostgreSQL on the same machine.
const (
	costWrite   = 7 * time.Microsecond  // the client's system call, and the server's process that wakes
	costReceive = 8 * time.Microsecond  // the server's
	costRead    = 4 * time.Microsecond  // the client's, with the goroutine that wakes
	costCall    = time.Microsecond      // of the client, for each call
	costExecute = 3 * time.Microsecond  // of the server, likewise
	costSync    = 10 * time.Microsecond // of the server: a transaction, and the system call
	costParse   = 25 * time.Microsecond // of the server, to parse, describe and plan
	costSet     = 6 * time.Microsecond  // of the server, to set the timeouts, beside a Sync
	costConnect = 2 * time.Millisecond  // of the server, a process and its caches

	quantum  = time.Millisecond        // after which a CPU goes to the next in the queue
	busyUse  = 3500 * time.Microsecond // of CPU time after which another process has its turn on a busy machine, on average
	patience = 10 * time.Millisecond   // of sessions with short timeouts
)

// machine has the CPUs that the server and its client share. Whoever uses one waits
// for his turn: first come, first served, and no longer than a quantum at a time.
type machine struct {
	cpus int  // 0: as many as anybody wants
	busy bool // other processes take each CPU for a slice now and then

	mu      sync.Mutex // guards what follows
	rng     *rand.Rand
	idle    int
	waiting []chan struct{}
	left    time.Duration // of use, until the next slice is another's
	used    time.Duration
}

func newMachine(cpus int, busy bool, rng *rand.Rand) *machine {
	return &machine{cpus: cpus, idle: cpus, busy: busy, rng: rng, left: busyUse}
}

// use uses a CPU for d. It reports false if that was not done within the limit, if there
// is one.
func (m *machine) use(d, limit time.Duration) (done bool) {
	if d <= 0 {
		return true
	}
	var began time.Time
	if limit > 0 {
		began = time.Now()
	}
	m.acquire(false)
	for {
		slice := d
		if m.cpus > 0 {
			slice = min(slice, quantum)
		}
		if limit > 0 {
			slice = min(slice, max(limit-time.Since(began), 0))
		}
		time.Sleep(slice + m.taken(slice)) // the bubble's time
		if d -= slice; d <= 0 {
			break
		}
		if limit > 0 && time.Since(began) >= limit {
			break
		}
		m.acquire(true)
	}
	m.release()
	return d <= 0
}

// taken returns for how long others have the CPU meanwhile.
func (m *machine) taken(d time.Duration) (others time.Duration) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.used += d
	if !m.busy {
		return 0
	}
	for m.left -= d; m.left <= 0; {
		m.left += busyUse/2 + time.Duration(m.rng.Int64N(int64(busyUse)))
		others += 3*time.Millisecond + time.Duration(m.rng.Int64N(int64(time.Millisecond)))
	}
	return others
}

// acquire waits for a CPU. Whoever has one lets the next have it first.
func (m *machine) acquire(has bool) {
	if m.cpus == 0 {
		return
	}
	m.mu.Lock()
	switch {
	case has && len(m.waiting) == 0:
		m.mu.Unlock()
		return
	case has:
		m.nextLocked()
	case m.idle > 0:
		m.idle--
		m.mu.Unlock()
		return
	}
	turn := make(chan struct{})
	m.waiting = append(m.waiting, turn)
	m.mu.Unlock()
	<-turn
}

func (m *machine) release() {
	if m.cpus == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.waiting) > 0 {
		m.nextLocked()
	} else {
		m.idle++
	}
}

func (m *machine) nextLocked() {
	close(m.waiting[0])
	m.waiting = m.waiting[1:]
}

func (m *machine) spent() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.used
}

// host is a server on a machine, and the network between it and its clients.
type host struct {
	*machine
	bound     bool          // executions use a CPU, else they wait for something else
	roundTrip time.Duration // of the network

	mu    sync.Mutex // guards what follows
	dials int
	open  int // sessions
}

// execute takes the time of an execution, and reports whether it was within the limit,
// if there is one.
func (h *host) execute(d, limit time.Duration) bool {
	if h.bound {
		return h.use(d, limit)
	}
	ended := limit > 0 && d > limit
	if ended {
		d = limit
	}
	if d > 0 {
		time.Sleep(d) // the bubble's time
	}
	return !ended
}

// The server for the pool: one that speaks the protocol. Each statement answers with one
// row, after as many nanoseconds as its parameter says.

func (h *host) dial(context.Context, string, string) (net.Conn, error) {
	h.mu.Lock()
	h.dials++
	h.open++
	id := uint32(h.dials)
	h.mu.Unlock()
	ours, theirs := pipe(1 << 20)
	s := &session{h: h, id: id, conn: &sessionEnd{pipeEnd: theirs, far: far{after: h.roundTrip / 2}}, stmts: make(map[string]struct{})}
	s.conn.s = s
	go s.serve()
	return &clientEnd{pipeEnd: ours, h: h, far: far{after: h.roundTrip / 2}}, nil
}

func (h *host) connect(ctx context.Context) (*Link, error) {
	config, err := scriptConfig()
	if err != nil {
		return nil, err
	}
	config = config.Copy()
	config.DialFunc = h.dial
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return &Link{
		PgConn: pg, Types: pgtype.NewMap(), Grouped: true, Arm: "arm", Disarm: "disarm", Patience: patience, buffered: true,
	}, nil
}

// far delivers after a time what is written, in order.
type far struct {
	after time.Duration

	mu      sync.Mutex // guards what follows
	pending [][]byte   // nil: the end
}

func (f *far) deliver(e *pipeEnd, b []byte) (int, error) {
	if f.after == 0 {
		return e.Write(b)
	}
	f.later(e, append([]byte{}, b...))
	return len(b), nil
}

func (f *far) hangUp(e *pipeEnd) error {
	if f.after == 0 {
		return e.Close()
	}
	f.later(e, nil)
	return nil
}

func (f *far) later(e *pipeEnd, b []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending = append(f.pending, b)
	time.AfterFunc(f.after, func() {
		f.mu.Lock()
		defer f.mu.Unlock() // which keeps the order
		next := f.pending[0]
		if f.pending = f.pending[1:]; next == nil {
			_ = e.Close()
			return
		}
		_, _ = e.Write(next)
	})
}

// clientEnd is the client's end of a connection: its system calls take time.
type clientEnd struct {
	*pipeEnd
	far
	h *host
}

func (e *clientEnd) Write(b []byte) (int, error) {
	cost := costWrite
	for rest := b; len(rest) >= 5; { // messages; what begins a session has none of that length
		if rest[0] == 'E' {
			cost += costCall
		}
		n := 1 + int(rest[1])<<24 + int(rest[2])<<16 + int(rest[3])<<8 + int(rest[4])
		if n > len(rest) {
			break
		}
		rest = rest[n:]
	}
	e.h.use(cost, 0)
	return e.deliver(e.pipeEnd, b)
}

func (e *clientEnd) Read(b []byte) (int, error) {
	n, err := e.pipeEnd.Read(b)
	if n > 0 {
		e.h.use(costRead, 0)
	}
	return n, err
}

func (e *clientEnd) Close() error { return e.hangUp(e.pipeEnd) }

// session is the server's side of a connection.
type session struct {
	h       *host
	id      uint32
	conn    *sessionEnd
	stmts   map[string]struct{}
	timeout time.Duration
	debt    time.Duration // CPU time that it has yet to use
}

type sessionEnd struct {
	*pipeEnd
	far
	s *session
}

func (e *sessionEnd) Write(b []byte) (int, error) { return e.deliver(e.pipeEnd, b) }

func (e *sessionEnd) Read(b []byte) (int, error) {
	n, err := e.pipeEnd.Read(b)
	e.s.debt += costReceive
	return n, err
}

func (e *sessionEnd) Close() error { return e.hangUp(e.pipeEnd) }

// pay uses the CPU time that is due.
func (s *session) pay() {
	d := s.debt
	s.debt = 0
	s.h.use(d, 0)
}

func (s *session) serve() {
	defer func() {
		_ = s.conn.Close()
		s.h.mu.Lock()
		s.h.open--
		s.h.mu.Unlock()
	}()
	b := pgproto3.NewBackend(s.conn, s.conn)
	first, err := b.ReceiveStartupMessage()
	if err != nil {
		return
	}
	if _, cancel := first.(*pgproto3.CancelRequest); cancel {
		return // nobody leaves early
	}
	s.debt += costConnect
	s.pay()
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ParameterStatus{Name: "TimeZone", Value: "UTC"})
	b.Send(&pgproto3.BackendKeyData{ProcessID: s.id, SecretKey: []byte{1, 2, 3, 4}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if b.Flush() == nil {
		s.loop(b)
	}
}

var (
	loadParams = &pgproto3.ParameterDescription{ParameterOIDs: []uint32{pgtype.TextOID}}
	loadFields = &pgproto3.RowDescription{Fields: []pgproto3.FieldDescription{{Name: []byte("a"), DataTypeOID: pgtype.TextOID, DataTypeSize: -1, TypeModifier: -1}}}
	loadValues = [][]byte{[]byte("answer")}
)

func (s *session) loop(b *pgproto3.Backend) {
	var takes time.Duration
	skip := false
	fail := func(code string) {
		skip = true
		b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: code, Message: "load " + code})
	}
	for {
		msg, err := b.Receive()
		if err != nil {
			return
		}
		_, isSync := msg.(*pgproto3.Sync)
		if skip && !isSync {
			continue
		}
		ready := false
		switch msg := msg.(type) {
		case *pgproto3.Terminate:
			return
		case *pgproto3.Query:
			s.debt += costSet
			s.timeout = 0
			if msg.String == "arm" {
				s.timeout = patience
			}
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SET")})
			ready = true
		case *pgproto3.Flush:
			s.pay()
			if b.Flush() != nil {
				return
			}
		case *pgproto3.Sync:
			skip, ready = false, true
		case *pgproto3.Parse:
			if _, taken := s.stmts[msg.Name]; taken && msg.Name != "" {
				fail("42P05")
				continue
			}
			s.debt += costParse
			s.stmts[msg.Name] = struct{}{}
			b.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Close:
			delete(s.stmts, msg.Name)
			b.Send(&pgproto3.CloseComplete{})
		case *pgproto3.Describe:
			b.Send(loadParams)
			b.Send(loadFields)
		case *pgproto3.Bind:
			if _, ok := s.stmts[msg.PreparedStatement]; !ok {
				fail("26000")
				continue
			}
			n, _ := strconv.ParseInt(string(msg.Parameters[0]), 10, 64)
			takes = time.Duration(n)
			b.Send(&pgproto3.BindComplete{})
		case *pgproto3.Execute:
			s.debt += costExecute
			if takes > 0 && !s.h.bound {
				s.pay()
			}
			if s.h.bound && takes < quantum { // in one go
				s.debt += takes
			} else if !s.h.execute(takes, s.timeout) {
				fail("57014")
				continue
			}
			b.Send(&pgproto3.DataRow{Values: loadValues})
			b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
		default:
			panic(fmt.Sprintf("unexpected %T", msg))
		}
		if ready {
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			s.debt += costSync
			s.pay()
			if b.Flush() != nil {
				return
			}
		}
	}
}

// direct is a model of pgx under database/sql on the same host: a call has a connection
// to itself, and who finds none free waits in a queue. What a session does not know is
// prepared first, with a round trip of its own. It keeps as many idle connections as the
// pool does.
type direct struct {
	h   *host
	max int // connections; 0 means no limit

	mu      sync.Mutex // guards what follows
	free    []*directConn
	open    int
	dials   int
	waiting []chan *directConn
}

type directConn struct{ prepared map[int]struct{} }

func (d *direct) call(text int, takes time.Duration) {
	k := d.take()
	h := d.h
	if _, known := k.prepared[text]; !known {
		if text >= 0 {
			k.prepared[text] = struct{}{}
		}
		d.exchange(costWrite, costReceive+costParse+costSync, 0)
	}
	if h.bound {
		d.exchange(costWrite+costCall, costReceive+costExecute+takes+costSync, 0)
	} else {
		d.exchange(costWrite+costCall, costReceive+costExecute, takes)
	}
	d.give(k)
}

// exchange is one round trip.
func (d *direct) exchange(write, server, sleeps time.Duration) {
	h := d.h
	h.use(write, 0)
	if h.roundTrip > 0 {
		time.Sleep(h.roundTrip / 2) // the bubble's time
	}
	h.use(server, 0)
	if sleeps > 0 {
		time.Sleep(sleeps) // likewise
		h.use(costSync, 0)
	}
	if h.roundTrip > 0 {
		time.Sleep(h.roundTrip / 2) // likewise
	}
	h.use(costRead, 0)
}

func (d *direct) take() *directConn {
	d.mu.Lock()
	if n := len(d.free); n > 0 {
		k := d.free[n-1]
		d.free = d.free[:n-1]
		d.mu.Unlock()
		return k
	}
	if d.max > 0 && d.open >= d.max {
		turn := make(chan *directConn, 1)
		d.waiting = append(d.waiting, turn)
		d.mu.Unlock()
		return <-turn
	}
	d.open++
	d.dials++
	d.mu.Unlock()
	d.exchange(costWrite, costReceive+costConnect, 0)
	return &directConn{prepared: make(map[int]struct{})}
}

func (d *direct) give(k *directConn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.waiting) > 0 {
		d.waiting[0] <- k
		d.waiting = d.waiting[1:]
		return
	}
	if len(d.free) == (Config{}).withDefaults().MaxIdle {
		d.open--
		return
	}
	d.free = append(d.free, k)
}

// pooled is the pool on a host.
type pooled struct {
	p       *Pool
	company Company
	stmts   []*Stmt
	done    [2]context.Context // callers' contexts: some cannot end
}

func newPooled(h *host, cfg Config, company Company, texts int) (p *pooled, stop func()) {
	cfg.Connect = h.connect
	p = &pooled{p: New(cfg), company: company}
	for i := range max(texts, 0) {
		p.stmts = append(p.stmts, NewStmt("select "+strconv.Itoa(i), nil, company, nil))
	}
	ctx, cancel := context.WithCancel(context.Background())
	p.done = [2]context.Context{context.Background(), ctx}
	return p, func() {
		cancel()
		p.p.Close()
	}
}

// pooledCall is what a caller uses again.
type pooledCall struct {
	c Call
	answered
}

// answered is a Read that notes whether the answer was right.
type answered struct{ rows int }

func (*answered) Dispatch() bool       { return true }
func (*answered) Apart() bool          { return false }
func (a *answered) Start(*Link, *Desc) { a.rows = 0 }
func (a *answered) Row(values [][]byte) bool {
	if string(values[0]) == "answer" {
		a.rows++
	}
	return true
}

func (p *pooled) call(who int, c *pooledCall, text int, takes time.Duration) error {
	var st *Stmt
	if text >= 0 {
		st = p.stmts[text]
	} else { // never again
		st = NewStmt(strings.Join([]string{"select", strconv.Itoa(-text)}, " -"), nil, p.company, nil)
	}
	c.rows = 0
	c.c.Init(p.p, st, []any{strconv.FormatInt(int64(takes), 10)}, &c.answered)
	if !c.c.Run(p.done[who%2]) {
		return fmt.Errorf("the caller was told to leave")
	}
	if err := c.c.Err(); err != nil {
		return err
	}
	if c.rows != 1 {
		return fmt.Errorf("%d rows; want 1", c.rows)
	}
	return nil
}
