package flightpg

import (
	"context"
	"database/sql"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/battery/schedule"
	"github.com/flightpg/flightpg/internal/flight"
)

// TestSimulation runs random schedules of what callers do with a handle, and of
// what a server may answer them, on a server whose every answer is a step of the
// schedule. After each step, when every goroutine has come to rest, what the
// callers got is judged by what the server knows: each read by the age of its rows
// under its mode, and by their number and contents, each error by who caused it,
// each write by how often it ran. At the end nothing may be left.
func TestSimulation(t *testing.T) {
	var total simEvents
	schedule.Test(t, "the driver keeps its invariants after each step of every schedule", battery.N(1000, 220_000), 1000, simEventNames[:], total[:], func(p *schedule.Plan) *schedule.Violation {
		return simulate(p, &total)
	})
}

// Invariants.
const (
	simReturns       = "every call returns exactly once"
	simWidth         = "a key has no more executions than the width"
	simFresh         = "no read is older than its mode allows"
	simUncommitted   = "nobody sees what is not committed but who wrote it"
	simExact         = "rows are complete and exact, or there is an error"
	simNoForeign     = "no error is another's"
	simOnce          = "every write is executed exactly once"
	simSessionsApart = "a session serves one caller at a time, while it is fit for it"
	simMemory        = "buffered memory stays within its limit"
	simLimits        = "connections stay within their limits"
	simStats         = "the stats add up"
)

type simEvents [simEventCount]atomic.Int64

const (
	simSteps = iota
	simCalls
	simReads
	simJoins
	simFlightsBegun
	simWritesDone
	simTxsDone
	simErrors
	simCancelled
	simPanics
	simGoexits
	simRetries
	simOverflows
	simStreams
	simBudget
	simAbandoned
	simFencedOff
	simKept
	simClosedEarly
	simClosedHandles
	simEventCount
)

var simEventNames = [simEventCount]string{
	"steps", "calls", "reads that were judged", "joins", "flights", "writes", "transactions", "errors that were judged", "cancelled calls",
	"panics", "calls of Goexit", "retries", "overflows", "streams", "overflows of the memory", "abandoned flights", "callers fenced off", "schedules with a window",
	"rows closed early", "handles closed in the middle",
}

type simCallKey struct{}

// simWorld is one schedule.
type simWorld struct {
	plan    *schedule.Plan
	total   *simEvents
	step    int
	patient bool // it has waited at the end for what takes its time
	trace   []string
	fault   atomic.Pointer[schedule.Violation]
	abort   chan struct{}
	now     atomic.Int64 // the clock: rises with everything that has an order

	cfg         Config
	maxOpen     int
	slowConnect bool
	streams     bool
	hot         int // the key that most ask for
	srv         *simServer
	c           *Connector
	db          *sql.DB
	closing     bool

	mu       sync.Mutex // guards what follows
	injected []simInjected
	running  map[string]int // executions of each key
	execs    map[int]*simOp // queries, by their id; guarded by srv.mu

	clients   []*simClient
	lastCall  int
	lastWrite int
}

// simInjected is an error that the server has given.
type simInjected struct {
	op   *simOp
	err  error
	when int
}

// tick moves the clock and returns it.
func (w *simWorld) tick() int { return int(w.now.Add(1)) }

func (w *simWorld) inject(op *simOp, err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.injected = append(w.injected, simInjected{op, err, w.tick()})
	return err
}

func (w *simWorld) fail(invariant, format string, args ...any) {
	w.fault.CompareAndSwap(nil, &schedule.Violation{Invariant: invariant, Detail: fmt.Sprintf(format, args...), Step: w.step})
}

// say adds to the trace, of which there may be no second: which of two callers
// database/sql's pool gives a connection is left to chance.
func (w *simWorld) say(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%d: ", w.step)+fmt.Sprintf(format, args...))
}

// simExecutor counts the executions of each key.
type simExecutor struct {
	executor
	w *simWorld
}

func (e *simExecutor) execute(ctx context.Context, r *read) (*result, error) {
	key := fmt.Sprint(r.via, r.query, r.args)
	e.w.mu.Lock()
	e.w.running[key]++
	n := e.w.running[key]
	e.w.mu.Unlock()
	if n > e.w.cfg.Width {
		e.w.fail(simWidth, "%d executions of %q with %v; want at most %d", n, r.query, r.args, e.w.cfg.Width)
	}
	defer func() {
		e.w.mu.Lock()
		e.w.running[key]--
		e.w.mu.Unlock()
	}()
	return e.executor.execute(ctx, r)
}

// simClient makes one call at a time, and may hold rows, a transaction or a
// connection between them.
type simClient struct {
	id   int
	call *simCall // under way
	rows *simReading
	tx   *sql.Tx
	conn *sql.Conn
	stmt *sql.Stmt
	own  [simKeys]int // what the transaction has written
	txs  []int        // the same, by the writes' ids

	cancelTx  context.CancelFunc
	cancelled bool // of the transaction
	since     int  // when it took its connection or began its transaction
	lost      bool // it has panicked on a connection: database/sql lets nobody have that again
}

// simReading is a read and what it has given so far.
type simReading struct {
	call *simCall // that began it
	rows *sql.Rows
	n    int // rows that were given
	op   *simOp
	all  int // how many there must be
	done bool
}

// simCall is one call of the handle.
type simCall struct {
	id     int
	client *simClient
	what   string
	key    int // -1: none
	mode   Mode
	write  int // its id, or 0
	own    [simKeys]int

	ctx       context.Context
	cancel    context.CancelFunc
	cancelled bool

	start  int // the clock
	fence  int // what a fenced read must not be older than
	oldest [simKeys]int

	returned atomic.Int32
	err      error
	panicked any
}

const simWindow = 10*time.Millisecond + 1

// simulate runs one schedule.
func simulate(p *schedule.Plan, total *simEvents) *schedule.Violation {
	r := p.Setup()
	w := &simWorld{plan: p, total: total, abort: make(chan struct{}), running: make(map[string]int), execs: make(map[int]*simOp)}
	w.cfg = Config{
		Mode:         Mode(r.IntN(3)),
		Width:        1 + r.IntN(3),
		MaxResult:    []int64{0, 4096}[r.IntN(2)],
		Memory:       []int64{0, 7000}[r.IntN(2)],
		FlightConns:  max(0, r.IntN(5)-2),
		SessionConns: max(0, r.IntN(5)-2),
		MaxIdle:      r.IntN(3) - 1,
		TrustNames:   trustAll,
	}
	if r.IntN(4) == 0 {
		w.cfg.Window = simWindow
		total[simKept].Add(1)
	}
	if r.IntN(4) == 0 {
		w.cfg.Timeout = 25*time.Millisecond + 1
	}
	if r.IntN(3) == 0 {
		w.maxOpen = 2 + r.IntN(3)
	}
	w.slowConnect = r.IntN(4) == 0
	w.srv = &simServer{w: w, writes: make(map[int]*simWrite)}
	c, err := newConnector(source{flights: simConnector{w.srv, true}, sessions: simConnector{w.srv, false}}, w.cfg)
	if err != nil {
		panic(err)
	}
	constant := r.IntN(3) == 0
	if constant {
		constantHash(c.table)
	}
	w.streams = r.IntN(3) == 0
	if w.streams { // what would be large, and read by one caller each, for hours
		c.budget.large = 1000
		c.verdicts.get(simRead, nil).unshared.Store(unsharedRun + 1)
	}
	c.open.Do(c.openPools)
	c.exec = &simExecutor{c.exec, w}
	w.c, w.db = c, c.OpenDB()
	w.db.SetMaxOpenConns(w.maxOpen)
	w.hot = r.IntN(simKeys)
	for i := range 3 + r.IntN(7) {
		w.clients = append(w.clients, &simClient{id: i + 1})
	}
	w.trace = append(w.trace, fmt.Sprintf("mode %v, width %d, max result %d, memory %d, %d flight and %d session connections, %d virtual ones, window %v, timeout %v, connecting takes steps: %v, all keys of one hash: %v, large results are streamed: %v",
		w.cfg.Mode, w.cfg.Width, w.cfg.MaxResult, w.cfg.Memory, w.cfg.FlightConns, w.cfg.SessionConns, w.maxOpen, w.cfg.Window, w.cfg.Timeout, w.slowConnect, constant, w.streams))

	n := 10 + r.IntN(60)
	for w.step = 0; w.step < n && w.fault.Load() == nil; w.step++ {
		if r, ok := p.Step(w.step); ok {
			w.one(r)
			w.check()
		}
	}
	for w.fault.Load() == nil && w.windUp() {
		w.check()
		if w.step++; w.step > n+500 {
			w.fail(simReturns, "the schedule does not come to its end")
		}
	}
	total[simSteps].Add(int64(w.step))
	s := c.Stats()
	total[simJoins].Add(int64(s.Joins))
	total[simFlightsBegun].Add(int64(s.Flights))
	total[simRetries].Add(int64(s.Retries))
	total[simOverflows].Add(int64(s.Overflows))
	total[simStreams].Add(int64(s.Streams))
	total[simBudget].Add(int64(s.Bypasses[ReasonMemory]))
	total[simAbandoned].Add(int64(s.Cancelled))
	total[simFencedOff].Add(int64(s.Fenced))
	v := w.fault.Load()
	if v != nil {
		v.Trace = w.trace
		w.goHome()
	}
	return v
}

// constantHash gives all keys of a table the same hash.
func constantHash(table *flight.Table[*result]) {
	field := reflect.ValueOf(table).Elem().FieldByName("hash")
	f := (*func(maphash.Seed, flight.Key) uint64)(field.Addr().UnsafePointer())
	*f = func(maphash.Seed, flight.Key) uint64 { return 42 }
}

var _ unsafe.Pointer // what constantHash does is not safe

// goHome ends a schedule that has failed, as far as that is possible.
func (w *simWorld) goHome() {
	close(w.abort)
	for _, cl := range w.clients {
		if cl.call != nil {
			cl.call.cancel()
		}
		if cl.rows != nil {
			cl.rows.call.cancel()
		}
		if cl.cancelTx != nil && !cl.lost {
			cl.cancelTx()
		}
	}
	synctest.Wait()
	for _, cl := range w.clients {
		if cl.rows != nil {
			go cl.rows.rows.Close()
		}
		if cl.tx != nil && !cl.lost {
			go cl.tx.Rollback()
		}
		if cl.conn != nil && !cl.lost {
			go cl.conn.Close()
		}
	}
	synctest.Wait()
	go w.db.Close()
	time.Sleep(time.Minute) // the bubble's time
}

// one makes a random step.
func (w *simWorld) one(r *rand.Rand) {
	n := r.IntN(100)
	if n < 45 {
		if idle := w.idle(); len(idle) > 0 {
			w.act(r, idle[r.IntN(len(idle))])
			return
		}
	}
	switch {
	case n < 80:
		if ops := w.ops(); len(ops) > 0 {
			op := ops[r.IntN(len(ops))]
			w.answer(op, w.anEnd(r, op))
		}
	case n < 87:
		w.cancelOne(r)
	case n < 90:
		w.say("Fence")
		w.fenceNow()
	case n < 92:
		key := r.IntN(simKeys)
		w.say("another process writes to key %d", key)
		w.srv.mu.Lock()
		w.srv.version[key]++
		w.srv.mu.Unlock()
		w.tick()
	case n < 96:
		d := time.Duration(1+r.IntN(30)) * time.Millisecond
		w.say("%v pass", d)
		time.Sleep(d) // the bubble's time
	case n < 97:
		key := r.IntN(simKeys)
		w.say("key %d is forgotten", key)
		if err := Forget(context.Background(), w.db, simRead, key); err != nil {
			w.fail(simNoForeign, "Forget = %v", err)
		}
	case n < 99:
		w.kill(r)
	default:
		if !w.closing && r.IntN(4) == 0 {
			w.total[simClosedHandles].Add(1)
			w.closeHandle()
		}
	}
}

// kill ends a session that lies idle, without telling anybody.
func (w *simWorld) kill(r *rand.Rand) {
	w.srv.mu.Lock()
	defer w.srv.mu.Unlock()
	var idle []*simSession
	for _, s := range w.srv.sessions {
		if !s.closed && !s.busy && s.rows == 0 && s.tx == nil {
			idle = append(idle, s)
		}
	}
	if len(idle) > 0 {
		s := idle[r.IntN(len(idle))]
		w.say("session %d dies", s.id)
		s.failed = true
	}
}

func (w *simWorld) fenceNow() {
	if err := Fence(w.db); err != nil {
		w.fail(simNoForeign, "Fence = %v", err)
	}
	w.srv.mu.Lock()
	defer w.srv.mu.Unlock()
	w.srv.fenced, w.srv.fence = w.srv.version, w.tick()
}

// idle returns the clients that can make a call.
func (w *simWorld) idle() (idle []*simClient) {
	for _, cl := range w.clients {
		if cl.call == nil {
			idle = append(idle, cl)
		}
	}
	return idle
}

// ops returns what waits for an answer, in an order that does not depend on who
// came first.
func (w *simWorld) ops() []*simOp {
	w.srv.mu.Lock()
	defer w.srv.mu.Unlock()
	ops := slices.Clone(w.srv.ops)
	number := func(op *simOp) int {
		if op.call == nil {
			return 0
		}
		return op.call.id
	}
	slices.SortStableFunc(ops, func(a, b *simOp) int { return number(a) - number(b) })
	return ops
}

// answer ends an op.
func (w *simWorld) answer(op *simOp, end simEnd) {
	who := "nobody's"
	if op.call != nil {
		who = fmt.Sprintf("call %d's", op.call.id)
	}
	w.say("op %d, %s %s %s on session %d, %s", op.id, who, op.what, op.query, op.s.id, simEndNames[end])
	switch end {
	case endPanic, endRowsPanic:
		w.total[simPanics].Add(1)
	case endGoexit:
		w.total[simGoexits].Add(1)
	}
	w.srv.forget(op)
	op.end <- end
}

// anEnd chooses how an op ends. Flights may panic: on a session that is a caller's
// own, database/sql itself loses the connection then, and where there are few of
// them the others wait for ever.
func (w *simWorld) anEnd(r *rand.Rand, op *simOp) simEnd {
	n := r.IntN(40)
	switch {
	case n < 22:
		return endWell
	case (op.what == "query" || op.what == "exec" || op.what == "commit") && n < 26:
		return endSlow
	case op.what == "answer":
		return endWell
	case n < 29:
		return endFail
	case n < 31 && op.what != "commit":
		return endBadConn
	case op.what == "row" || op.what == "prepare" || op.what == "connect":
		return endWell
	case op.what == "commit" || op.write >= 0:
		if n < 35 {
			return endLost
		}
		return endWell
	case op.what != "query":
		return endWell
	case n < 33:
		return endRowsFail
	case n < 35:
		return endRowsBadConn
	case op.s.flight && w.maxOpen == 0 && n < 36:
		return endPanic
	case op.s.flight && w.maxOpen == 0 && n < 37:
		return endRowsPanic
	case op.s.flight && n < 38:
		return endGoexit
	}
	return endWell
}

// cancelOne ends the context of a random call.
func (w *simWorld) cancelOne(r *rand.Rand) {
	var calls []*simCall
	for _, cl := range w.clients {
		if cl.call != nil && !cl.call.cancelled {
			calls = append(calls, cl.call)
		} else if cl.rows != nil && !cl.rows.call.cancelled {
			calls = append(calls, cl.rows.call)
		}
	}
	for _, cl := range w.clients {
		if cl.tx != nil && cl.call == nil && !cl.cancelled && r.IntN(4) == 0 { // database/sql waits for the call on a mutex
			w.say("the context of client %d's transaction ends", cl.id)
			cl.cancelled = true
			cl.cancelTx()
			return
		}
	}
	if len(calls) == 0 {
		return
	}
	c := calls[r.IntN(len(calls))]
	w.say("call %d is cancelled", c.id)
	w.total[simCancelled].Add(1)
	c.cancelled = true
	c.cancel()
}

// closeHandle closes the handle, whatever is going on.
func (w *simWorld) closeHandle() {
	w.closing = true
	w.say("the handle is closed")
	cl := &simClient{}
	w.clients = append(w.clients, cl)
	w.begin(cl, "close", -1, ModeOff, func(*simCall) error { return w.db.Close() })
}
