package pipeline

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/battery/schedule"
)

// TestSimulation runs random schedules of calls and of what can happen to them on a
// scripted server: callers come, leave and hand over at any moment; statements fail,
// hang, wait for locks and break connections; tables change; servers do not answer,
// requests to cancel are late or lost, buffers are full. Each call must end in time
// with its own rows or its own error, nothing is executed more often than the reasons
// for it allow, what travels together is what may, and nothing is left.
func TestSimulation(t *testing.T) {
	var total simTotals
	schedule.Test(t, "the pipeline keeps its promises in every schedule", battery.N(battery.Quick(300, 4000), 200_000), 4000, simTotalNames[:], total[:], func(p *schedule.Plan) *schedule.Violation {
		return simulate(p, &total)
	})
}

// Invariants.
const (
	simAnswer    = "each call gets its own rows or its own error"
	simCancelled = "no call is cancelled by another's request"
	simRequest   = "a request to cancel meets the group that it was sent for"
	simCompany   = "what is sent together may be"
	simPrepared  = "what the client takes for prepared is, and no more"
	simOnce      = "nothing is executed more often than there are reasons"
	simStranger  = "no stranger waits for a group that waits for him"
	simCodec     = "codecs are their own connection's, and serve one at a time"
	simTime      = "every call ends in time"
	simDials     = "a failed dial fails one call"
	simGroups    = "groups are given up only where the server refuses them"
	simParked    = "no connection waits for its request to cancel for long"
	simRest      = "at rest every connection is free, and fit for use"
)

type simTotals [simTotalCount]atomic.Int64

const (
	simCalls = iota
	simGrouped
	simShared
	simSkipped
	simMoved
	simParted
	simStrays
	simStale
	simLost
	simHanded
	simRequests
	simUnwanted
	simRefusals
	simLive
	simDialErrors
	simElsewhere
	simSpares
	simStrangers
	simAlters
	simOdd
	simLarge
	simServerErrors
	simTotalCount
)

var simTotalNames = [simTotalCount]string{
	"calls", "calls in groups", "calls in shared transactions", "calls skipped", "calls moved", "calls parted", "strays", "stale descriptions",
	"calls of lost connections", "calls handed over", "requests to cancel", "calls sent though unwanted", "refused dispatches",
	"live rows", "failed dials that a call heard of", "calls sent elsewhere", "calls given a connection elsewhere", "strangers", "altered tables",
	"arguments of odd codecs", "messages larger than the buffers", "errors of the server",
}

// sim is one schedule.
type sim struct {
	plan  *schedule.Plan
	total *simTotals
	s     *script
	p     *Pool
	cfg   Config
	step  int
	stats Stats // at the end

	began       time.Time
	failedDials atomic.Int64
	dialErrors  atomic.Int64
	alters      atomic.Int64
	panicked    atomic.Int64
	large       atomic.Int64  // results that became live rows
	spares      atomic.Int64  // connections elsewhere, less those that calls have got
	strangers   chan struct{} // holds who is one
	cuts        bool          // connections break
	killing     bool          // requests to cancel may come so late that connections are closed; guarded by s.mu
	slowWorld   atomic.Int64  // nanoseconds for which the server may not have served anybody

	stmts     map[string]*Stmt
	companies map[string]Company

	mu    sync.Mutex // guards what follows
	calls map[string]*simCall
	fault *schedule.Violation
}

// simCall is a call, found by its argument.
type simCall struct {
	text    string
	arg     string
	args    []any
	company Company
	apart   bool
	refuse  int  // the Dispatch that is refused, counted from one
	knows   bool // it refuses it when everybody has left
	max     int
	panics  bool
	thinks  time.Duration // that its Dispatch takes
	dreams  time.Duration // that each of its rows takes
	leader  time.Duration // until its leader leaves, or negative
	stays   time.Duration // until everybody has
	slow    time.Duration // that its live rows' reader takes for each
	watch   bool

	left context.Context // ends when everybody has left

	// Guarded by sim.mu.
	succeeded int // executions
	history   string
	failed    int
}

func (m *sim) violate(invariant, format string, args ...any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault == nil {
		m.fault = &schedule.Violation{Invariant: invariant, Detail: fmt.Sprintf(format, args...), Step: m.step}
	}
}

// simTexts are what calls execute, the usual ones more than once.
var simTexts = []string{
	"echo", "echo", "echo", "echo", "echo;1", "rows 5", "rows 40", "sleep 1ms", "sleep 4ms", "maybe 30ms", "maybe 30ms", "failing 22012", "failing 22012",
	"fail 22012", "dieonce", "cached 1", "taint TimeZone Mars", "sleep 10m0s", "sleep 1s", "locked 0 0", "locked 0 0", "locked 1 0", "locked 1 1ms", "locked 2 0",
	"table", "table", "table 22012", "number", "number", "refused 22P02", "big 30", "undefined",
}

// longText does not fit into a small buffer.
var longText = "echo;" + strings.Repeat(" ", 3000)

func simulate(plan *schedule.Plan, total *simTotals) *schedule.Violation {
	rng := plan.Setup()
	m := &sim{
		plan: plan, total: total, s: newScript(), stmts: make(map[string]*Stmt), companies: make(map[string]Company),
		calls: make(map[string]*simCall), strangers: make(chan struct{}, 1), began: time.Now(),
	}
	m.setup(rng)
	var wg sync.WaitGroup
	steps := 3 + rng.IntN(8)
	for i := range steps {
		rng, ok := plan.Step(i)
		if !ok {
			continue
		}
		m.mu.Lock()
		m.step = i
		over := m.fault != nil
		m.mu.Unlock()
		if over {
			break
		}
		m.take(&wg, rng, i)
		if rng.IntN(3) > 0 {
			time.Sleep(moment(rng, 3)) // the bubble's time
		}
	}
	wg.Wait()
	m.s.mu.Lock()
	m.s.delay, m.s.lag = min(m.s.delay, time.Second), 0
	m.s.mu.Unlock()
	if m.fault == nil {
		before := m.parked()
		time.Sleep(longParked) // likewise
		for _, k := range m.parked() {
			if slices.Contains(before, k) {
				m.violate(simParked, "connection %d is parked for more than %v", k.link.PgConn.PID(), longParked)
			}
		}
		time.Sleep(time.Minute) // likewise: every patience has ended
		synctest.Wait()
		m.atRest()
	}
	m.p.Close()
	m.s.end()
	m.count()
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.fault
}

// longParked is longer than any connection may be parked.
const longParked = 251 * time.Millisecond

// parked returns the connections that are.
func (m *sim) parked() (parked []*conn) {
	m.p.lock()
	defer m.p.unlock()
	for k := range m.p.conns {
		k.cancelMu.Lock()
		if k.parked {
			parked = append(parked, k)
		}
		k.cancelMu.Unlock()
	}
	return parked
}

func chance(rng *rand.Rand, one int) bool { return rng.IntN(one) == 0 }

// setup decides what kind of world it is.
func (m *sim) setup(rng *rand.Rand) {
	s := m.s
	s.watch = m
	if chance(rng, 3) {
		s.buffer = []int{64, 700, 5000}[rng.IntN(3)]
		s.buffered = false
	}
	s.lag = time.Duration([]int{0, 0, 20, 300}[rng.IntN(4)]) * time.Microsecond
	switch {
	case chance(rng, 15):
		s.delay, m.killing = 2*cancelTimeout, true
	case chance(rng, 12):
		s.delay, m.killing = time.Duration(rng.IntN(2000))*time.Millisecond, true
	default:
		s.delay = time.Duration(rng.IntN(3000)) * time.Microsecond
	}
	if chance(rng, 30) {
		s.unarmed = "42501"
	}
	if chance(rng, 5) {
		m.cuts = true
		least, spread := 100+rng.IntN(300), 1+rng.IntN(3000)
		s.wrap = func(n int, c net.Conn) net.Conn {
			if n%3 == 0 {
				return &cutConn{c, least + n*n*37%spread}
			}
			return c
		}
	}
	cfg := Config{Width: 1 + rng.IntN(3), Group: 1 + rng.IntN(8)}
	if chance(rng, 2) {
		cfg.Max = 2 + rng.IntN(4)
	}
	if chance(rng, 3) {
		cfg.Statements = 1
	}
	if chance(rng, 8) {
		cfg.MaxIdle = -1 + 2*rng.IntN(2)
	}
	odd, apart, ungrouped, timed := chance(rng, 3), chance(rng, 10), chance(rng, 20), chance(rng, 4)
	if chance(rng, 6) {
		var asked atomic.Int64
		cfg.Spare = func() bool {
			spare := asked.Add(1)%3 == 0
			if spare {
				m.spares.Add(1)
			}
			return spare
		}
	}
	oddFrom := uint32(rng.IntN(4))
	cfg.Connect = func(ctx context.Context) (*Link, error) {
		l, err := s.connect(ctx)
		if err != nil {
			return nil, err
		}
		l.Apart, l.Grouped, l.Timed = apart, !ungrouped, timed
		if id := l.PgConn.PID(); odd && (id+oddFrom)%3 == 0 {
			l.Types.RegisterType(&pgtype.Type{Name: "int8", OID: pgtype.Int8OID, Codec: &oddCodec{m: m, id: id}})
			l.Odd = &Oddities{Types: map[uint32]struct{}{pgtype.Int8OID: {}}}
			if id%2 == 0 {
				l.Odd = &Oddities{All: true}
			}
			s.mu.Lock()
			s.conns[id].client.odd.Store(true)
			s.mu.Unlock()
		}
		return l, nil
	}
	m.cfg = cfg
	m.p = New(cfg)
	known := chance(rng, 4)
	for _, text := range append(simTexts, longText) {
		if m.stmts[text] != nil {
			continue
		}
		company := []Company{Joined, Joined, Joined, Apart, Alone}[rng.IntN(5)]
		var relations []uint32
		if strings.HasPrefix(text, "locked") && chance(rng, 2) {
			relations = []uint32{uint32(text[7])}
		}
		st := NewStmt(text, nil, company, relations)
		m.stmts[text], m.companies[text] = st, company
		if known || chance(rng, 6) {
			continue
		}
		// As if it had been executed before.
		st.known.Store(true)
		if text == "undefined" || chance(rng, 4) {
			continue
		}
		st.desc.Store(m.described(text))
	}
}

// described returns what a connection says of a text.
func (m *sim) described(text string) *Desc {
	word, _, _ := strings.Cut(text, ";")
	st := preparedText{text: word}
	d := &Desc{name: newName(), paramOIDs: st.params()}
	for _, f := range (&scripted{s: m.s}).describe(st).Fields {
		d.Fields = append(d.Fields, pgconn.FieldDescription{Name: string(f.Name), DataTypeOID: f.DataTypeOID, DataTypeSize: f.DataTypeSize, TypeModifier: f.TypeModifier})
	}
	(&conn{p: m.p}).complete(d)
	return d
}

// take takes a step.
func (m *sim) take(wg *sync.WaitGroup, rng *rand.Rand, step int) {
	s := m.s
	for range 1 + rng.IntN(2) {
		if !chance(rng, 3) {
			break
		}
		switch rng.IntN(12) {
		case 0, 1, 2:
			which := rng.Perm(relations)[:1+rng.IntN(relations)]
			pause, hold := time.Duration(rng.IntN(8000))*time.Microsecond, time.Duration(rng.IntN(30))*time.Millisecond
			select {
			case m.strangers <- struct{}{}: // one at a time
			default:
				continue
			}
			m.plan.Say("a stranger takes %v, each after %v, and keeps them for %v", which, pause, hold)
			m.total[simStrangers].Add(1)
			wg.Go(func() {
				waited := s.stranger(which, pause, hold)
				if most := s.patience*time.Duration(m.p.cfg.Group) + 5*time.Millisecond; waited > most && s.unarmed == "" {
					m.violate(simStranger, "a stranger has waited for %v; want %v at most", waited, most)
				}
				<-m.strangers
			})
		case 3, 4:
			if m.alters.Load() >= 3 {
				continue
			}
			m.alters.Add(1)
			m.total[simAlters].Add(1)
			broken := []string{"0A000", "42883", "XX000", "08P01", "26000"}[rng.IntN(5)]
			m.plan.Say("the table is altered: %s", broken)
			s.alter(broken)
		case 5:
			hold, refusing := time.Duration(rng.IntN(200))*time.Millisecond, moment(rng, 6)
			m.plan.Say("connections are refused for %v", hold)
			m.weather(wg, hold, func(on bool) {
				s.refuse, s.refusing, m.killing = nil, refusing, true // requests to cancel find nobody, too
				if on {
					s.refuse = errors.New("refused")
				}
			})
		case 6:
			hold := time.Duration(rng.IntN(700)) * time.Millisecond
			m.plan.Say("who connects is not answered, for %v", hold)
			m.weather(wg, hold, func(on bool) { s.silent = on })
		case 7:
			hold := time.Duration(rng.IntN(300)) * time.Millisecond
			m.plan.Say("requests to cancel have no effect for %v", hold)
			m.weather(wg, hold, func(on bool) { s.deaf, m.killing = on, true })
		case 8:
			m.plan.Say("idle connections are closed")
			m.p.CloseIdle()
		case 9:
			text := simTexts[rng.IntN(len(simTexts))]
			m.plan.Say("%s is dropped", text)
			m.p.Drop(m.stmts[text])
		case 10:
			s.mu.Lock()
			if len(s.all) > 0 && m.cuts {
				c := s.all[rng.IntN(len(s.all))]
				m.plan.Say("connection %d is cut", c.id)
				_ = c.conn.Close()
			}
			s.mu.Unlock()
		case 11:
			s.mu.Lock()
			if len(s.all) > 0 {
				c := s.all[rng.IntN(len(s.all))]
				m.plan.Say("connection %d forgets what is prepared", c.id)
				if !c.busy { // else it has described what it does not know
					clear(c.stmts)
					c.forgot = true
				}
			}
			s.mu.Unlock()
		}
	}
	if chance(rng, 3) {
		wg.Go(func() { // somebody has the lock, and is not let run
			m.p.lock()
			defer m.p.unlock()
			for range 20 {
				runtime.Gosched()
			}
		})
	}
	n := 1
	if chance(rng, 2) {
		n = 2 + rng.IntN(7)
	}
	same := simTexts[rng.IntN(len(simTexts))]
	for i := range n {
		c := m.newCall(rng, same, step*100+i)
		if chance(rng, 3) {
			same = simTexts[rng.IntN(len(simTexts))]
		}
		m.mu.Lock()
		m.calls[c.arg] = c
		m.mu.Unlock()
		if c.text == "sleep 1s" {
			m.slowWorld.Add(int64(time.Second))
		}
		m.plan.Say("%s", c)
		wg.Go(func() { m.run(c) })
	}
}

// weather changes the world for a while.
func (m *sim) weather(wg *sync.WaitGroup, hold time.Duration, change func(on bool)) {
	m.slowWorld.Add(int64(hold))
	m.s.mu.Lock()
	change(true)
	m.s.mu.Unlock()
	wg.Go(func() {
		time.Sleep(hold) // the bubble's time
		m.s.mu.Lock()
		change(false)
		m.s.mu.Unlock()
	})
}

func (m *sim) newCall(rng *rand.Rand, text string, n int) *simCall {
	c := &simCall{text: text, apart: chance(rng, 6), knows: chance(rng, 2), leader: -1, stays: -1}
	if text == "echo;1" && chance(rng, 2) {
		c.text = longText
	}
	c.company = m.companies[c.text]
	id := 10*n + rng.IntN(10)
	c.arg = strconv.Itoa(id)
	c.args = []any{c.arg}
	switch {
	case text == "number", strings.HasPrefix(text, "table") && chance(rng, 3):
		c.args = []any{int64(id)}
	case text == "echo" && chance(rng, 10):
		c.arg += ":" + strings.Repeat("x", []int{3000, 9000, 20000}[rng.IntN(3)])
		c.args = []any{c.arg}
	}
	if chance(rng, 8) {
		c.refuse = 1 + rng.IntN(2)
	}
	if chance(rng, 8) {
		c.max = 1 + rng.IntN(3)
		c.slow = time.Duration(rng.IntN(3)*rng.IntN(3)) * time.Millisecond
		c.watch = chance(rng, 2)
	}
	c.panics = chance(rng, 60)
	if chance(rng, 8) {
		c.thinks = moment(rng, 4)
		if chance(rng, 4) {
			c.thinks = moment(rng, 30)
		}
	}
	if m.s.buffered && chance(rng, 60) && text != "big 30" && text != "rows 40" {
		c.dreams = cancelPatience + 200*time.Millisecond // somebody's patience ends meanwhile
		m.slowWorld.Add(int64(8 * c.dreams))
		m.s.mu.Lock()
		m.killing = true
		m.s.mu.Unlock()
	}
	if text == "sleep 10m0s" || chance(rng, 3) {
		c.leader = moment(rng, 8)
	}
	if text == "sleep 10m0s" || c.leader >= 0 && chance(rng, 2) {
		c.stays = moment(rng, 14)
		if text == "sleep 1s" && chance(rng, 2) {
			c.leader, c.stays = 0, 0 // patience ends when it does
		}
		if chance(rng, 10) {
			c.stays *= 10
		}
	}
	return c
}

// moment returns up to so many milliseconds, often a whole number of them: then things
// happen at the same time.
func moment(rng *rand.Rand, ms int) time.Duration {
	if chance(rng, 2) {
		return time.Duration(rng.IntN(ms)) * time.Millisecond
	}
	return time.Duration(rng.IntN(ms*1000)) * time.Microsecond
}

func (c *simCall) String() string {
	arg := c.arg
	if len(arg) > 20 {
		arg = fmt.Sprintf("%.10s… (%d bytes)", arg, len(arg))
	}
	text, _, _ := strings.Cut(c.text, " ;")
	b := fmt.Sprintf("call of %.20q with %s (%T), company %d", text, arg, c.args[0], c.company)
	for _, o := range []struct {
		is   bool
		what string
	}{
		{c.apart, "apart"},
		{c.refuse > 0, fmt.Sprintf("dispatch %d refused", c.refuse)},
		{c.max > 0, fmt.Sprintf("%d rows, then live, each %v, watched %v", c.max, c.slow, c.watch)},
		{c.panics, "panics"},
		{c.thinks > 0, fmt.Sprintf("dispatched in %v", c.thinks)},
		{c.dreams > 0, fmt.Sprintf("%v for each row", c.dreams)},
		{c.leader >= 0, fmt.Sprintf("leader leaves after %v", c.leader)},
		{c.stays >= 0, fmt.Sprintf("all leave after %v", c.stays)},
	} {
		if o.is {
			b += ", " + o.what
		}
	}
	return b
}

// simReading is the Read of a call.
type simReading struct {
	m          *sim
	c          *simCall
	rows       [][]string
	columns    int
	dispatched int
	refused    bool
	started    bool
}

func (r *simReading) Dispatch() bool {
	time.Sleep(r.c.thinks) // the bubble's time
	r.dispatched++
	r.refused = r.dispatched == r.c.refuse || r.c.knows && r.c.left.Err() != nil
	if r.refused {
		r.m.total[simRefusals].Add(1)
	}
	if !r.refused && r.c.left.Err() != nil {
		r.m.total[simUnwanted].Add(1)
	}
	return !r.refused
}

func (r *simReading) Apart() bool { return r.c.apart }

func (r *simReading) Start(_ *Link, d *Desc) {
	r.rows, r.columns, r.started = nil, len(d.Fields), true
}

func (r *simReading) Row(values [][]byte) bool {
	if !r.started || len(values) != r.columns {
		r.m.violate(simAnswer, "%s: a row of %d columns, %d described", r.c, len(values), r.columns)
	}
	if r.c.panics {
		panic(errSimulated)
	}
	time.Sleep(r.c.dreams) // the bubble's time
	r.add(values)
	if r.c.max > 0 && len(r.rows) >= r.c.max {
		r.m.large.Add(1)
		return false
	}
	return true
}

func (r *simReading) add(values [][]byte) {
	row := make([]string, len(values))
	for i, v := range values {
		row[i] = string(v)
	}
	r.rows = append(r.rows, row)
}

var errSimulated = errors.New("simulated")

// run runs a call, and judges how it ended.
func (m *sim) run(c *simCall) {
	m.total[simCalls].Add(1)
	leader, stays := context.Background(), context.Background()
	if c.leader >= 0 {
		var cancel context.CancelFunc
		leader, cancel = context.WithTimeout(leader, c.leader)
		defer cancel()
	}
	if c.stays >= 0 {
		var cancel context.CancelFunc
		stays, cancel = context.WithTimeout(stays, c.stays)
		defer cancel()
	}
	c.left = stays
	m.s.mu.Lock()
	version := m.s.version
	m.s.mu.Unlock()
	began := time.Now()
	r := &simReading{m: m, c: c}
	call := m.p.NewCall(m.stmts[c.text], c.args, r)
	if panicked := m.drive(call, leader, stays, c); panicked {
		return
	}
	took := time.Since(began)
	late := time.Duration(m.slowWorld.Load()) + 6*time.Second
	if m.s.unarmed != "" {
		late += time.Hour // groups are sent before it is known that nothing ends them
	}
	if live := call.Live(); live != nil {
		m.total[simLive].Add(1)
		m.readLive(c, r, live, stays, version)
	} else {
		m.judge(c, r, false, call.Err(), stays, version)
	}
	if took > late {
		m.violate(simTime, "%s: took %v; want %v at most", c, took, late)
	}
	if c.stays >= 0 && took > c.stays+2*cancelPatience+100*time.Millisecond+time.Duration(m.slowWorld.Load()) {
		m.violate(simTime, "%s: took %v; want %v after the last caller has left", c, took, 2*cancelPatience)
	}
	m.s.mu.Lock()
	punctual := !m.killing && m.s.unarmed == ""
	m.s.mu.Unlock()
	if c.stays >= 0 && call.Live() == nil && punctual && took > c.stays+500*time.Millisecond {
		m.violate(simTime, "%s: took %v, though it was to be cancelled", c, took)
	}
}

func (m *sim) drive(call *Call, leader, stays context.Context, c *simCall) (panicked bool) {
	defer func() {
		if v := recover(); v != nil {
			if v != errSimulated { //nolint:errorlint // itself
				panic(v)
			}
			panicked = true
			m.panicked.Add(1)
			if !call.finished {
				m.violate(simAnswer, "%s: has panicked and is not finished", c)
			}
		}
	}()
	if call.Run(leader) {
		return false
	}
	if leader.Err() == nil {
		m.violate(simTime, "%s: Run has returned although its context goes on", c)
	}
	call.Finish(stays)
	return false
}

func (m *sim) readLive(c *simCall, r *simReading, live *Rows, stays context.Context, version int) {
	if c.watch {
		live.Watch(stays)
	}
	for live.Next() {
		r.add(live.RawValues())
		time.Sleep(c.slow) // the bubble's time
	}
	live.Close()
	m.judge(c, r, true, live.Err(), stays, version)
}

// rows returns what a call must have got.
func (c *simCall) want() (rows [][]string, code string) {
	word, rest, _ := strings.Cut(c.text, " ")
	digit := c.arg[len(c.arg)-1]
	switch word {
	case "rows", "big":
		n, _ := strconv.Atoi(rest)
		for i := range n {
			row := []string{c.arg, strconv.Itoa(i)}
			if word == "big" {
				row[1] = padding
			}
			rows = append(rows, row)
		}
		return rows, ""
	case "fail", "refused":
		return nil, rest
	case "undefined":
		return nil, "42P01"
	case "failing", "table":
		if rest != "" && digit == '3' {
			return nil, rest
		}
	}
	return [][]string{{c.arg}}, ""
}

// judge says whether a call may end like that. version is the table's when it began.
func (m *sim) judge(c *simCall, r *simReading, live bool, err error, stays context.Context, version int) {
	want, wantCode := c.want()
	got := r.rows
	if err == nil && strings.HasPrefix(c.text, "table") {
		m.s.mu.Lock()
		now := m.s.version
		m.s.mu.Unlock()
		for v := version; v <= now; v++ {
			row := make([]string, columnsOf(v))
			for i := range row {
				row[i] = strconv.Itoa(v)
			}
			row[0] = c.arg
			if len(got) == 1 && slices.Equal(got[0], row) && r.columns == len(row) {
				return
			}
		}
		m.violate(simAnswer, "%s: got %.100q of a table of versions %d to %d", c, got, version, now)
		return
	}
	var dial *DialError
	errCode := code(err)
	if errCode != "" {
		m.total[simServerErrors].Add(1)
	}
	left := stays.Err() != nil
	if c.stays >= 0 && c.max > 0 {
		left = left || c.watch && stays.Err() != nil
	}
	switch {
	case err == nil && wantCode == "" && slices.EqualFunc(got, want, slices.Equal[[]string]):
	case err == nil:
		m.violate(simAnswer, "%s: got %d rows %.100q; want %d %.100q, error %q", c, len(got), got, len(want), want, wantCode)
	case errCode != "" && errCode == wantCode:
	case left: // nobody wanted it
	case r.refused && errors.Is(err, ErrAbandoned):
	case errors.As(err, &dial):
		m.total[simDialErrors].Add(1)
		if n := m.dialErrors.Add(1); n > m.failedDials.Load() && !m.cuts {
			m.violate(simDials, "%s: %v, the %dth call, of %d dials that failed", c, err, n, m.failedDials.Load())
		}
	case errors.Is(err, ErrSpare):
		m.total[simSpares].Add(1)
		if m.spares.Add(-1) < 0 {
			m.violate(simAnswer, "%s: %v, and there is none for it", c, err)
		}
	case errors.Is(err, ErrElsewhere):
		m.total[simElsewhere].Add(1)
		if c.text != "number" && !strings.HasPrefix(c.text, "table") && m.cfg.Max == 0 {
			m.violate(simAnswer, "%s: %v", c, err)
		}
	case errCode == "57014", errCode == "55P03":
		m.violate(simCancelled, "%s: %v", c, err)
	case errCode != "":
		m.violate(simAnswer, "%s: another's error, %v", c, err)
	case errors.Is(err, ErrAbandoned), errors.Is(err, ErrClosed):
		m.violate(simAnswer, "%s: %v, though it is wanted", c, err)
	case !m.breaks(live):
		m.violate(simAnswer, "%s: %v, where no connection breaks", c, err)
	}
}

// breaks reports whether a call may have lost its connection twice, or its live rows
// theirs.
func (m *sim) breaks(live bool) bool {
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	return m.cuts || m.s.unarmed != "" || m.s.died > 1 || m.s.died > 0 && live || m.killing
}

// mostTries is more than there are reasons to execute a call.
const mostTries = 100

// executed is told of an execution's end, and returns how many there were.
func (m *sim) executed(on *scripted, arg, code string, err error) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.calls[arg]
	if c == nil {
		return 0
	}
	if m.plan.Tracing {
		c.history += fmt.Sprintf("; on %d at %v: %q, %v", on.id, time.Since(m.began), code, err)
	}
	if code == "" && err == nil {
		c.succeeded++
	} else {
		c.failed++
	}
	n := c.succeeded + c.failed
	if n > mostTries && m.fault == nil {
		m.fault = &schedule.Violation{Invariant: simOnce, Detail: fmt.Sprintf("%s: is executed again and again", c), Step: m.step}
	}
	return n
}

// requested is told of a request to cancel that is delivered. It is called with the
// server's lock held.
func (m *sim) requested(target *scripted) {
	m.plan.Say("%v: a request to cancel reaches connection %d", time.Since(m.began), target.id)
	switch {
	case !target.busy: // it comes too early, or too late
		m.killing = true
		return
	case target.conn.in.hasEnded(): // what runs is nobody's
		return
	}
	v := target.client
	v.mu.Lock()
	group := v.group
	v.mu.Unlock()
	if len(group) == 0 {
		return
	}
	for _, u := range group {
		m.mu.Lock()
		c := m.calls[u.arg]
		m.mu.Unlock()
		if c == nil || c.left.Err() != nil { // of a description nobody knows whose it is
			return
		}
	}
	m.violate(simRequest, "connection %d: a request to cancel is delivered while nothing is on it but %v", target.id, group)
}

// encoded is told of an int8 that a connection was sent, and returns it as a text.
func (m *sim) encoded(c *scripted, param string) string {
	words := strings.Fields(param)
	n := words[len(words)-1]
	m.mu.Lock()
	call := m.calls[n]
	m.mu.Unlock()
	if call == nil {
		return n
	}
	_, typed := call.args[0].(int64)
	odd := len(words) == 3
	if odd {
		m.total[simOdd].Add(1)
	}
	switch {
	case odd && words[1] != strconv.Itoa(int(c.id)):
		m.violate(simCodec, "connection %d is sent what connection %s has encoded", c.id, words[1])
	case odd != (typed && c.client.odd.Load()):
		m.violate(simCodec, "connection %d, of odd codecs %v, is sent %q for %s", c.id, c.client.odd.Load(), param, call)
	}
	return n
}

// oddCodec encodes int8 in its own way, which says of which connection it is. It
// refuses numbers that end in 3.
type oddCodec struct {
	pgtype.Int8Codec
	m    *sim
	id   uint32
	busy atomic.Int32
}

func (*oddCodec) FormatSupported(format int16) bool { return format == pgtype.TextFormatCode }
func (*oddCodec) PreferredFormat() int16            { return pgtype.TextFormatCode }

func (o *oddCodec) PlanEncode(_ *pgtype.Map, _ uint32, format int16, value any) pgtype.EncodePlan {
	if _, ok := value.(int64); !ok || format != pgtype.TextFormatCode {
		return nil
	}
	return oddPlan{o}
}

type oddPlan struct{ o *oddCodec }

func (p oddPlan) Encode(value any, buf []byte) ([]byte, error) {
	o := p.o
	if o.busy.Swap(1) != 0 {
		o.m.violate(simCodec, "the codec of connection %d encodes for two at a time", o.id)
	}
	runtime.Gosched()
	o.busy.Store(0)
	if value.(int64)%10 == 3 {
		return nil, errors.New("no number that ends in 3")
	}
	return append(buf, fmt.Sprintf("odd %d %d", o.id, value)...), nil
}

// clientView is what a connection's client writes.
type clientView struct {
	sim    *sim
	server *scripted
	odd    atomic.Bool

	mu    sync.Mutex // guards what follows
	begun bool       // it has introduced itself
	names map[string]string
	armed bool
	group []simUnit // that it has written last
}

// simUnit is a call as it is sent: a text that is described, an execution, or both.
type simUnit struct {
	text, arg string
	executes  bool
	ends      bool // a transaction
}

func (u simUnit) String() string {
	what := fmt.Sprintf("%.20s", u.text)
	if u.executes {
		what += fmt.Sprintf(" %.10s", u.arg)
	}
	if u.ends {
		what += "."
	}
	return what
}

// wrote looks at a write, which is a group.
func (v *clientView) wrote(b []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if !v.begun { // a start, or a request to cancel
		v.begun = true
		v.names = make(map[string]string)
		return
	}
	m := v.sim
	if len(b) > m.s.buffer {
		m.total[simLarge].Add(1)
	}
	var units []simUnit
	closes := true
	for len(b) > 0 {
		kind, size := b[0], int(binary.BigEndian.Uint32(b[1:]))
		body := b[5 : 1+size]
		b = b[1+size:]
		switch kind {
		case 'Q':
			v.armed = strings.HasPrefix(string(body), "arm")
		case 'X':
			return
		case 'C':
			if !closes {
				m.violate(simPrepared, "a Close comes behind what it does not belong to")
			}
		case 'P':
			closes = false
			name, rest, _ := strings.Cut(string(body), "\x00")
			text, _, _ := strings.Cut(rest, "\x00")
			v.names[name] = text
			units = append(units, simUnit{text: text})
		case 'B':
			closes = false
			text, arg := v.bind(body)
			if n := len(units); n > 0 && !units[n-1].executes && !units[n-1].ends && units[n-1].text == text {
				units[n-1].arg, units[n-1].executes = arg, true
			} else {
				units = append(units, simUnit{text: text, arg: arg, executes: true})
			}
		case 'S':
			if n := len(units); n > 0 {
				units[n-1].ends = true
			}
		}
	}
	if len(units) == 0 {
		return
	}
	v.group = units
	m.plan.Say("%v: connection %d is sent %v, short timeouts %v", time.Since(m.began), v.server.id, units, v.armed)
	m.judgeGroup(v.server, units, v.armed)
}

// unarmed notes that the server has not changed the timeouts.
func (v *clientView) unarmed(was bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.armed = was
}

// bind returns the text and the parameter of a Bind message.
func (v *clientView) bind(body []byte) (text, arg string) {
	name, rest, _ := strings.Cut(string(body[1:]), "\x00")
	n := int(binary.BigEndian.Uint16([]byte(rest)))
	formats, rest := rest[2:2+2*n], rest[2+2*n:]
	rest = rest[2:] // one parameter
	size := int(binary.BigEndian.Uint32([]byte(rest)))
	arg = rest[4 : 4+size]
	switch {
	case n > 0 && formats[1] == 1 && size == 8:
		arg = strconv.Itoa(int(binary.BigEndian.Uint64([]byte(arg))))
	case strings.HasPrefix(arg, "odd "):
		arg = strings.Fields(arg)[2]
	}
	return v.names[name], arg
}

// judgeGroup says whether a connection's group may be one.
func (m *sim) judgeGroup(c *scripted, units []simUnit, armed bool) {
	several := len(units) > 1
	for i, u := range units {
		m.mu.Lock()
		call := m.calls[u.arg]
		m.mu.Unlock()
		company := m.companies[u.text]
		first := i == 0 || units[i-1].ends
		shared := !first || !u.ends
		switch {
		case several && !armed:
			m.violate(simCompany, "connection %d: %v are sent with long timeouts", c.id, units)
		case several && (company == Alone || !u.executes):
			m.violate(simCompany, "connection %d: %v must be alone, not among %v", c.id, u, units)
		case company == Alone && armed:
			m.violate(simCompany, "connection %d: %v is sent with short timeouts", c.id, u)
		case shared && (company != Joined || call != nil && call.apart):
			m.violate(simCompany, "connection %d: %v shares a transaction, among %v", c.id, u, units)
		}
		if several {
			m.total[simGrouped].Add(1)
			if shared {
				m.total[simShared].Add(1)
			}
		}
	}
}

// atRest checks what must hold when everything has happened that can.
func (m *sim) atRest() {
	if what := resting(m.p); what != "" {
		m.violate(simRest, "%s", what)
	}
	if m.p.alone.Load() && m.s.unarmed == "" {
		m.violate(simGroups, "nothing is grouped any more")
	}
	m.stats = m.p.Stats()
	m.s.mu.Lock()
	defer m.s.mu.Unlock()
	m.p.lock()
	defer m.p.unlock()
	for k := range m.p.conns {
		c := m.s.conns[k.link.PgConn.PID()]
		if c.ended || k.closed || k.killed {
			if !m.cutNow(c) {
				m.violate(simRest, "a connection in the pool is closed")
			}
			continue
		}
		if k.armed != (c.timeout > 0) {
			m.violate(simRest, "the timeouts are short: %v; the client believes %v", c.timeout > 0, k.armed)
		}
		if n := len(k.prepared.known); n > k.prepared.limit {
			m.violate(simPrepared, "%d statements are prepared; want %d at most", n, k.prepared.limit)
		}
		for name := range k.prepared.known {
			if _, ok := c.stmts[name]; !ok && !c.forgot {
				m.violate(simPrepared, "connection %d: %s is not prepared", c.id, name)
			}
		}
		for name := range c.stmts {
			if k.prepared.known[name] == nil && name != "" && !slices.Contains(k.closing, name) {
				m.violate(simPrepared, "connection %d: %s is prepared for ever", c.id, name)
			}
		}
	}
	m.mu.Lock()
	calls := m.calls
	m.mu.Unlock()
	st := &m.p.stats
	for _, c := range calls {
		most := 1 + int(m.panicked.Load()+m.large.Load()) // their mates are executed again
		if st.moved.Load() > 0 {
			most++
		}
		if st.lost.Load() > 0 {
			most += maxLosses
			if st.cancels.Load() > 0 {
				most += maxStrays // they count as such
			}
		}
		if strings.HasPrefix(c.text, "table") {
			most += int(m.alters.Load())
		}
		if c.succeeded > most {
			m.violate(simOnce, "%s: was executed %d times; want %d at most%s: %+v", c, c.succeeded, most, c.history, m.stats)
		}
		tries := 1 + maxStales + maxStrays + maxLosses + 1
		if strings.HasPrefix(c.text, "refused") {
			tries = 2 + int(m.panicked.Load()+m.large.Load()+int64(st.lost.Load()+st.moved.Load()+st.strays.Load())) // what the server says twice is true
		}
		if c.failed > tries {
			m.violate(simOnce, "%s: was tried %d times", c, c.failed)
		}
	}
}

// cutNow reports whether the server has closed a connection that lies idle.
func (m *sim) cutNow(c *scripted) bool { return m.cuts }

func (m *sim) count() {
	st := &m.p.stats
	for i, n := range map[int]uint64{
		simSkipped: st.skipped.Load(), simMoved: st.moved.Load(), simParted: st.parted.Load(), simStrays: st.strays.Load(), simStale: st.stale.Load(),
		simLost: st.lost.Load(), simHanded: st.handed.Load(), simRequests: st.cancels.Load(),
	} {
		m.total[i].Add(int64(n))
	}
}
