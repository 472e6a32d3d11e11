package flight

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/battery/schedule"
)

// TestSimulation runs random schedules of all that callers, executions and the
// rest of a process can do to a table. After each step, when every goroutine has
// come to rest, the table must be what the model says, and everybody must have
// what is due to them. Steps are as fine as the table's critical sections: a
// caller can be held between its reading of the epoch and the table, between
// Enter, Launch and Wait, an execution before and after its dispatch; leaders
// launch their flight, or execute it themselves until their context ends. Some
// steps let a caller and an execution race; then each order is right, but nothing else.
func TestSimulation(t *testing.T) {
	var total events
	schedule.Test(t, "the table of flights keeps its invariants after each step of every schedule", battery.N(4_000, 800_000), 1000, eventNames[:], total[:], func(p *schedule.Plan) *schedule.Violation {
		return simulate(p, &total)
	})
}

// Invariants.
const (
	rulesHold        = "nobody follows a flight that its rule forbids"
	notAbandoned     = "nobody follows an abandoned flight"
	notLanded        = "nobody follows a landed flight"
	windowsEnd       = "nobody follows a flight after its window"
	keysApart        = "keys are kept apart"
	everyCallReturns = "every call returns exactly once"
	atMostWidth      = "a key has no more executions than the width"
	noForeignError   = "no error is another's"
	leadersOwn       = "a leader's cancellation is its own"
	removedFirst     = "the key is removed before waiters wake"
	sharesWhatItCan  = "a caller shares what it may"
	tableIsRight     = "the table is what the model says"
	statsAddUp       = "the stats add up"
	sharesAddUp      = "a value is released exactly once"
	usedAfterRelease = "a value is not used after its release"
	countsAddUp      = "what is kept is counted, and given back once"
)

// events counts what happened in all schedules: a simulation in which nothing
// happens finds nothing.
type events [eventCount]atomic.Int64

const (
	steps = iota
	joins
	leads
	pendingJoins
	keptJoins
	heldCallers
	fencedCallers
	cancelled
	abandonments
	values
	liveValues
	failures
	panics
	goexits
	races
	collisions
	inlineRuns
	handedOn
	roomMade
	unkeptValues
	eventCount
)

var eventNames = [eventCount]string{
	"steps", "joins", "leads", "joins of pending flights", "joins in a window", "callers held before the table",
	"callers fenced off", "cancelled callers", "abandoned flights", "values", "values read live", "failures", "panics", "calls of Goexit",
	"races", "keys that collide", "executions in their leader", "of them handed on",
	"kept results that made room", "results not kept for want of room",
}

// world is one schedule: a table, its model, and who is about.
type world struct {
	model
	table  *Table[*cargo]
	ep     *Epoch
	names  []Key
	shards []*shard[*cargo]              // of the names, each once
	park   atomic.Pointer[chan struct{}] // where the next caller of hash waits
	abort  chan struct{}                 // closed: everybody goes home
	byReal map[*Flight[*cargo]]*modelFlight
	live   []*modelFlight // not landed, or with shares that are out
	taken  atomic.Int64   // what is counted for kept results, in bytes

	callers []*caller // that have not ended
	began   int       // how many callers there were

	total *events
	step  int
	plan  *schedule.Plan
	trace []string
	fault atomic.Pointer[schedule.Violation] // the first one seen, in any goroutine
}

// caller is one caller of the table.
type caller struct {
	id     int
	key    int
	rule   Rule
	epoch  uint64 // at its start
	ctx    context.Context
	cancel context.CancelFunc

	hold    chan struct{} // not nil: it is held before the table
	entered atomic.Bool
	real    *Flight[*cargo]
	leader  bool

	f        *modelFlight
	leads    *modelFlight // by Lead
	launched bool
	waiting  bool // has called Wait
	gone     bool // its context has ended
	due      bool // Wait must have returned
	either   bool // with the outcome or its own context's error, as it comes

	returned atomic.Int32
	v        *cargo
	err      error
	panic    any
	holds    bool // a share
}

// cargo is the Value of a simulation.
type cargo struct {
	w      *world
	f      *Flight[*cargo]
	id     int
	shares atomic.Int64
	shared atomic.Bool
	freed  atomic.Bool
	brief  bool               // not for later callers
	cancel context.CancelFunc // of a value that is still being read
}

func (c *cargo) Share(n int) {
	if c.shared.Swap(true) {
		c.w.fail(sharesAddUp, "value %d was shared out twice", c.id)
	}
	select {
	case <-c.f.done:
		c.w.fail(removedFirst, "the waiters of flight %d woke before it was removed", c.id)
	default:
	}
	c.shares.Store(int64(n))
	if n == 0 {
		c.free()
	}
}

func (c *cargo) Keep() (int64, bool) { return 0, !c.brief }

func (c *cargo) Retain() {
	if c.freed.Load() {
		c.w.fail(usedAfterRelease, "value %d got another holder", c.id)
	}
	c.shares.Add(1)
}

func (c *cargo) Drop() {
	switch n := c.shares.Add(-1); {
	case n == 0:
		c.free()
	case n < 0:
		c.w.fail(sharesAddUp, "value %d was released once too often", c.id)
	}
}

func (c *cargo) free() {
	if c.freed.Swap(true) {
		c.w.fail(sharesAddUp, "value %d was released twice", c.id)
	}
	if c.cancel != nil {
		c.cancel()
	}
}

// run is a Runner whose every move is a step.
type run struct {
	w        *world
	f        *modelFlight
	obedient bool // ends when its context does
	moves    chan move

	inline       atomic.Bool // it is in its leader's goroutine
	next         chan move   // what it is to do first when it has been handed on
	began, ended atomic.Bool
	ctx          context.Context
	dispatched   atomic.Int32 // what the last Dispatch said: 1 yes, -1 no
	owns         bool         // its context, beyond the landing

	// How it ended.
	value *cargo
	err   error
	panic any
}

type move uint8

const (
	moveDispatch move = iota
	moveValue
	moveLive
	moveFail
	movePanic
	moveGoexit
)

var moveNames = [...]string{"is dispatched", "ends with a value", "ends with a value that is still being read", "fails", "panics", "calls runtime.Goexit"}

type runError struct{ id int }

func (e *runError) Error() string { return fmt.Sprintf("run %d failed", e.id) }

// RunInline implements Inline.
func (r *run) RunInline(ctx context.Context, f *Flight[*cargo]) (v *cargo, err error, more bool) { //nolint:revive // as Inline has it
	r.w.total[inlineRuns].Add(1)
	r.begin(ctx, f)
	r.inline.Store(true)
	defer func() {
		if !more {
			r.ended.Store(true)
		}
	}()
	for {
		select {
		case <-ctx.Done():
			r.w.total[handedOn].Add(1)
			return nil, nil, true
		case m := <-r.moves:
			if m == moveLive { // it takes the flight's own context
				r.next <- m
				return nil, nil, true
			}
			if v, err, done := r.do(f, m); done {
				return v, err, false
			}
		case <-r.w.abort:
			r.err = errAborted
			return nil, r.err, false
		}
	}
}

// Detach implements Inline.
func (r *run) Detach() {}

func (r *run) begin(ctx context.Context, f *Flight[*cargo]) {
	if r.began.Swap(true) {
		r.w.fail(everyCallReturns, "flight %d ran twice", r.f.id)
	}
	r.ctx = ctx
	if r.w.byReal[f] != r.f {
		r.w.fail(tableIsRight, "run %d was given another flight", r.f.id)
	}
}

func (r *run) Run(ctx context.Context, f *Flight[*cargo]) (*cargo, error) {
	if r.inline.Swap(false) {
		r.ctx = ctx
	} else {
		r.begin(ctx, f)
	}
	defer r.ended.Store(true)
	var ends <-chan struct{}
	if r.obedient {
		ends = ctx.Done()
	}
	for {
		select {
		case <-r.w.abort:
			r.err = errAborted
			return nil, r.err
		case <-ends:
			r.err = context.Cause(ctx)
			return nil, r.err
		case m := <-r.next:
			v, err, _ := r.do(f, m)
			return v, err
		case m := <-r.moves:
			if v, err, done := r.do(f, m); done {
				return v, err
			}
		}
	}
}

// do makes a move, and reports whether the execution has ended.
func (r *run) do(f *Flight[*cargo], m move) (_ *cargo, err error, done bool) { //nolint:revive // as RunInline has it
	switch m {
	case moveDispatch:
		if !f.Dispatch() {
			r.dispatched.Store(-1)
			r.err = ErrAbandoned
			return nil, r.err, true
		}
		r.dispatched.Store(1)
		return nil, nil, false
	case moveFail:
		r.err = &runError{r.f.id}
		return nil, r.err, true
	case movePanic:
		r.panic = r.f.id
		panic(r.f.id)
	case moveGoexit:
		r.err = ErrGoexit
		runtime.Goexit()
	}
	r.value = &cargo{w: r.w, f: f, id: r.f.id, brief: r.f.id%4 == 0}
	if m == moveLive {
		r.owns = true
		r.value.cancel = f.TakeCancel()
	}
	return r.value, nil, true
}

var errAborted = errors.New("the schedule was aborted")

func (w *world) fail(invariant, format string, args ...any) {
	w.fault.CompareAndSwap(nil, &schedule.Violation{Invariant: invariant, Detail: fmt.Sprintf(format, args...), Step: w.step})
}

func (w *world) say(format string, args ...any) {
	if w.plan.Tracing {
		w.trace = append(w.trace, fmt.Sprintf("%d: ", w.step)+fmt.Sprintf(format, args...))
	}
}

var ruleNames = [...]string{Fenced: "fenced", Strict: "strict", Join: "join"}

// simulate runs one schedule.
func simulate(p *schedule.Plan, total *events) *schedule.Violation {
	r := p.Setup()
	w := &world{
		ep:     new(Epoch),
		abort:  make(chan struct{}),
		byReal: make(map[*Flight[*cargo]]*modelFlight),
		plan:   p,
		total:  total,
	}
	w.width = 1 + r.IntN(3)
	if r.IntN(3) == 0 {
		w.window = 10*time.Millisecond + 1 // sleeps are whole milliseconds: never to the moment
	}
	w.table = New[*cargo](w.ep, Options{Width: w.width, Window: w.window, Take: w.take, Give: w.give})
	for i := range 1 + r.IntN(3) {
		w.names = append(w.names, Key{Text: "select"[:6-i/2], Args: []byte{0, byte(i % 2)}})
		w.keys = append(w.keys, new(modelKey))
	}
	constant := r.IntN(3) == 0
	if constant && len(w.names) > 1 {
		total[collisions].Add(int64(len(w.names)))
	}
	w.table.hash = func(seed maphash.Seed, k Key) uint64 {
		if held := w.park.Swap(nil); held != nil {
			select {
			case <-*held:
			case <-w.abort:
			}
		}
		if constant {
			return 42
		}
		return hashKey(seed, k)
	}
	for _, k := range w.names {
		if s := &w.table.shards[w.table.hash(w.table.seed, k)%shardCount]; !slices.Contains(w.shards, s) {
			w.shards = append(w.shards, s)
		}
	}
	w.trace = append(w.trace, fmt.Sprintf("width %d, window %v, %d keys, all of one hash: %v", w.width, w.window, len(w.names), constant))

	n := 8 + r.IntN(40)
	for w.step = 0; w.step < n && w.fault.Load() == nil; w.step++ {
		if r, ok := p.Step(w.step); ok {
			w.one(r)
			w.check()
		}
	}
	for w.fault.Load() == nil && w.windUp() {
		w.check()
		w.step++
	}
	total[steps].Add(int64(w.step))
	total[fencedCallers].Add(int64(w.stats.Fenced))
	v := w.fault.Load()
	if v == nil {
		return nil
	}
	v.Trace = w.trace
	close(w.abort)
	for _, c := range w.callers {
		c.cancel()
		if c.hold != nil {
			close(c.hold)
		}
	}
	synctest.Wait()
	time.Sleep(time.Second) // what is in its window
	return v
}

// one makes a random step.
func (w *world) one(r *rand.Rand) {
	switch n := r.IntN(100); {
	case n < 30:
		w.start(r)
	case n < 36:
		w.pick(r, func(c *caller) bool { return c.hold != nil }, w.letGo)
	case n < 40:
		w.pick(r, func(c *caller) bool { return c.f != nil && c.leader && !c.launched }, func(c *caller) { w.launch(c, r) })
	case n < 46:
		w.pick(r, func(c *caller) bool { return c.f != nil && !c.waiting && (!c.leader || c.launched) }, w.wait)
	case n < 57:
		w.pick(r, func(c *caller) bool { return !c.gone && c.returned.Load() == 0 }, w.cancelCaller)
	case n < 62:
		w.pick(r, func(c *caller) bool { return c.holds }, w.drop)
	case n < 67:
		w.say("the epoch rises")
		w.raises++
		w.ep.Raise()
	case n < 69:
		w.say("the epoch is held")
		w.holds++
		w.ep.Hold()
	case n < 71 && w.holds > 0:
		w.release(r.IntN(2) == 0)
	case n < 74:
		i := r.IntN(len(w.names))
		w.say("key %d is forgotten", i)
		w.forget(i)
		w.table.Forget(w.names[i])
	case n < 75:
		w.say("every kept result is dropped")
		for _, k := range w.keys {
			w.unkeep(k)
		}
		w.table.Clear()
	case n < 77:
		w.makeRoom()
	case n < 78:
		w.full = !w.full
		w.say("there is no memory to keep anything: %v", w.full)
	case n < 81:
		d := time.Duration(1+r.IntN(12)) * time.Millisecond
		w.say("%v pass", d)
		time.Sleep(d) // the bubble's time
		w.tick()
	case n < 87:
		w.race(r)
	default:
		w.advance(r)
	}
}

// take and give are the memory for what is kept.
func (w *world) take(n int64) bool {
	if w.full {
		w.total[unkeptValues].Add(1)
		return false
	}
	w.taken.Add(n)
	return true
}

func (w *world) give(n int64) { w.taken.Add(-n) }

// makeRoom has the table drop a kept result; which one is its choice.
func (w *world) makeRoom() {
	w.say("a kept result makes room")
	var before []*modelKey
	for _, k := range w.keys {
		if k.kept != nil {
			before = append(before, k)
		}
	}
	want := len(before)
	if w.table.MakeRoom() {
		w.total[roomMade].Add(1)
		want--
	} else if want > 0 {
		w.fail(sharesWhatItCan, "no room was made, though %d results are kept", want)
	}
	for i, k := range w.keys {
		if k.kept != nil && w.real(i).kept == nil {
			w.unkeep(k)
			before = before[1:]
		}
	}
	if len(before) != want {
		w.fail(tableIsRight, "%d results are kept now; want %d", len(before), want)
	}
}

// pick does something with a random caller that can.
func (w *world) pick(r *rand.Rand, can func(*caller) bool, do func(*caller)) {
	n := 0
	var picked *caller
	for _, c := range w.callers {
		if can(c) {
			if n++; r.IntN(n) == 0 {
				picked = c
			}
		}
	}
	if picked != nil {
		do(picked)
	}
}

// newCaller makes a caller that has not begun.
func (w *world) newCaller(key int, rule Rule) *caller {
	w.began++
	c := &caller{id: w.began, key: key, rule: rule}
	c.ctx, c.cancel = context.WithCancel(context.WithValue(context.Background(), valueKey{}, c.id))
	w.callers = append(w.callers, c)
	return c
}

// begin notes what counts for a caller at the moment of its call.
func (w *world) begin(c *caller) {
	c.epoch = w.raises
	if c.rule == Fenced && w.holds > 0 {
		c.rule = Strict
	}
}

func (w *world) start(r *rand.Rand) {
	c := w.newCaller(r.IntN(len(w.names)), Rule(r.IntN(3)))
	given := c.rule
	w.begin(c)
	if r.IntN(20) == 0 {
		w.say("caller %d comes with a context that has ended", c.id)
		c.gone = true
		c.cancel()
	}
	if r.IntN(5) == 0 {
		w.say("caller %d calls Enter of key %d under %s, and is held before it gets to the table", c.id, c.key, ruleNames[given])
		w.total[heldCallers].Add(1)
		c.hold = make(chan struct{})
		w.park.Store(&c.hold)
		go func() {
			c.real, c.leader = w.table.Enter(w.names[c.key], given)
			c.entered.Store(true)
		}()
		return
	}
	w.say("caller %d calls Enter of key %d under %s", c.id, c.key, ruleNames[given])
	c.real, c.leader = w.table.Enter(w.names[c.key], given)
	w.enter(c)
	if c.leader && r.IntN(4) > 0 && w.fault.Load() == nil {
		w.launch(c, r)
	}
	if !c.waiting && (!c.leader || c.launched) && r.IntN(5) > 0 && w.fault.Load() == nil {
		w.wait(c)
	}
}

// letGo lets a held caller get to the table.
func (w *world) letGo(c *caller) {
	w.say("caller %d gets to the table", c.id)
	close(c.hold)
	c.hold = nil
	synctest.Wait()
	if !c.entered.Load() {
		w.fail(everyCallReturns, "Enter of caller %d has not returned", c.id)
		return
	}
	w.enter(c)
}

// enter judges what the table gave a caller.
func (w *world) enter(c *caller) {
	if c.leader {
		if before := w.byReal[c.real]; before != nil && !before.leadersAlone() {
			w.fail(tableIsRight, "caller %d leads a flight that was there", c.id)
			return
		}
		if f := w.model.enter(c.key, c.rule, c.epoch); f != nil {
			w.fail(sharesWhatItCan, "caller %d leads a flight of key %d; want it to follow flight %d", c.id, c.key, f.id)
			return
		}
		f := &modelFlight{id: c.id, key: c.key, leader: c}
		w.lead(f)
		w.byReal[c.real] = f
		w.live = append(w.live, f)
		c.f = f
		w.total[leads].Add(1)
		w.say("  it leads flight %d", f.id)
		return
	}
	f := w.byReal[c.real]
	if f == nil {
		w.fail(tableIsRight, "caller %d follows a flight that nobody leads", c.id)
		return
	}
	if wrong := w.mayFollow(f, c.key, c.rule, c.epoch); wrong != "" {
		w.fail(wrong, "caller %d, under %s at epoch %d, follows flight %d (dispatched: %v at epoch %d, abandoned: %v, landed: %v)",
			c.id, ruleNames[c.rule], c.epoch, f.id, f.dispatched, f.epoch, f.abandoned, f.landed)
		return
	}
	if want := w.model.enter(c.key, c.rule, c.epoch); want != f {
		w.fail(sharesWhatItCan, "caller %d follows flight %d; want another", c.id, f.id)
		return
	}
	c.f, f.followed = f, true
	w.total[joins].Add(1)
	switch {
	case f.landed:
		w.total[keptJoins].Add(1)
	case !f.cleared:
		w.total[pendingJoins].Add(1)
	}
	w.say("  it follows flight %d", f.id)
}

func (w *world) launch(c *caller, r *rand.Rand) {
	run := &run{w: w, f: c.f, obedient: r.IntN(2) == 0, moves: make(chan move, 1), next: make(chan move, 1)}
	c.launched, c.f.launched, c.f.run = true, true, run
	if r.IntN(2) == 0 {
		w.say("caller %d executes flight %d itself, which heeds its context: %v", c.id, c.f.id, run.obedient)
		c.leads = c.f
		w.await(c, func() (*cargo, error) { return c.real.Lead(c.ctx, run) })
		return
	}
	w.say("caller %d launches flight %d, which heeds its context: %v", c.id, c.f.id, run.obedient)
	c.real.Launch(c.ctx, run)
}

func (w *world) wait(c *caller) {
	w.say("caller %d waits for flight %d", c.id, c.f.id)
	w.await(c, func() (*cargo, error) { return c.real.Wait(c.ctx) })
}

// await lets a caller wait in a goroutine of its own.
func (w *world) await(c *caller, outcome func() (*cargo, error)) {
	c.waiting = true
	s := c.real.s
	go func() {
		defer func() {
			c.panic = recover()
			c.returned.Add(1)
		}()
		c.v, c.err = outcome()
		// Woken: whoever comes from now on must not find it.
		f := c.real
		s.mu.Lock()
		defer s.mu.Unlock()
		if f.slot == nil || f.done == nil && f.state != landed {
			return // it was its leader's alone, and may be another's by now
		}
		if (c.err == nil || c.err != c.ctx.Err()) && (f.slot.newest == f || f.slot.pending == f) {
			w.fail(removedFirst, "caller %d woke while its flight was in the table", c.id)
		}
	}()
	switch {
	case c.f.landed:
		c.due, c.either = true, c.gone
	case c.gone:
		w.leaves(c)
	}
}

// leaves takes a caller off a flight that has not landed.
func (w *world) leaves(c *caller) {
	c.due = true
	f := c.f
	w.leave(f)
	c.f = nil
	if f.abandoned {
		w.abandoned(f)
	}
}

// abandoned notes what follows when a flight's last waiter has left.
func (w *world) abandoned(f *modelFlight) {
	w.total[abandonments].Add(1)
	if f.cleared && f.run.obedient {
		synctest.Wait()
		w.lands(f)
	}
}

// lands ends a flight whose run has ended.
func (w *world) lands(f *modelFlight) {
	if !f.run.ended.Load() {
		w.fail(everyCallReturns, "run %d has not ended", f.id)
		return
	}
	w.land(f)
	for _, c := range w.callers {
		if c.f == f && c.waiting {
			c.due = true
		}
	}
}

func (w *world) cancelCaller(c *caller) {
	w.say("caller %d's context ends", c.id)
	w.total[cancelled].Add(1)
	c.gone = true
	c.cancel()
	if c.waiting && !c.due {
		w.leaves(c)
	}
}

func (w *world) drop(c *caller) {
	w.say("caller %d drops its share of flight %d's value", c.id, c.f.id)
	c.holds = false
	c.f.shares--
	if c.v.freed.Load() {
		w.fail(usedAfterRelease, "flight %d's value was released while caller %d held it", c.f.id, c.id)
	}
	c.v.Drop()
}

func (w *world) release(lift bool) {
	w.say("a hold on the epoch ends, which rises")
	w.holds--
	w.raises++
	if lift {
		w.ep.Raise()
		w.ep.Lift()
		return
	}
	w.ep.Release()
}

// runs returns the flights that are executing.
func (w *world) runs() []*modelFlight {
	var fs []*modelFlight
	for _, f := range w.live {
		if f.run != nil && f.run.began.Load() && !f.landed {
			fs = append(fs, f)
		}
	}
	return fs
}

// advance moves a random execution.
func (w *world) advance(r *rand.Rand) {
	fs := w.runs()
	if len(fs) == 0 {
		return
	}
	f := fs[r.IntN(len(fs))]
	m := w.anEnd(r)
	if n := r.IntN(10); !f.dispatched && n < 8 || n < 2 { // again: a repeated execution
		m = moveDispatch
	}
	w.move(f, m)
}

func (w *world) anEnd(r *rand.Rand) move {
	switch n := r.IntN(20); {
	case n < 10:
		return moveValue
	case n < 13:
		return moveLive
	case n < 16:
		return moveFail
	case n < 18:
		return movePanic
	}
	return moveGoexit
}

func (w *world) move(f *modelFlight, m move) {
	w.say("flight %d %s", f.id, moveNames[m])
	f.run.moves <- m
	synctest.Wait()
	if m != moveDispatch {
		w.ended(m)
		w.lands(f)
		return
	}
	want := int32(1)
	if f.waiters == 0 {
		want = -1
	}
	if got := f.run.dispatched.Load(); got != want {
		w.fail(tableIsRight, "Dispatch of flight %d = %d; want %d, with %d waiters", f.id, got, want, f.waiters)
		return
	}
	if want < 0 {
		w.lands(f)
	} else if !f.dispatched {
		f.dispatched, f.epoch = true, w.raises
	}
}

func (w *world) ended(m move) {
	w.total[map[move]int{moveValue: values, moveLive: liveValues, moveFail: failures, movePanic: panics, moveGoexit: goexits}[m]].Add(1)
}

// race lets an execution end while some of its waiters leave, or while another
// caller comes. The order in which that happened shows in what came of it.
func (w *world) race(r *rand.Rand) {
	var fs []*modelFlight
	for _, f := range w.runs() {
		if f.waiters > 0 {
			fs = append(fs, f)
		}
	}
	if len(fs) == 0 {
		return
	}
	f := fs[r.IntN(len(fs))]
	m := w.anEnd(r)
	w.total[races].Add(1)
	if w.window == 0 && w.keys[f.key].newest == f && r.IntN(2) == 0 {
		w.raceEnter(f, m)
	} else {
		w.raceLeave(r, f, m)
	}
}

// raceEnter lets a caller that may follow a flight come while that ends.
func (w *world) raceEnter(f *modelFlight, m move) {
	c := w.newCaller(f.key, Join)
	w.begin(c)
	w.say("caller %d calls Enter of key %d under join, while flight %d %s", c.id, c.key, f.id, moveNames[m])
	go func() {
		c.real, c.leader = w.table.Enter(w.names[c.key], Join)
		c.entered.Store(true)
	}()
	f.run.moves <- m
	synctest.Wait()
	w.ended(m)
	if !c.entered.Load() {
		w.fail(everyCallReturns, "Enter of caller %d has not returned", c.id)
		return
	}
	first := w.byReal[c.real] == f && !c.leader // it came before the landing
	if first {
		w.enter(c)
	}
	w.lands(f)
	if !first {
		w.enter(c)
	}
}

// raceLeave lets some waiters leave a flight while that ends.
func (w *world) raceLeave(r *rand.Rand, f *modelFlight, m move) {
	var leaving []*caller
	all := r.IntN(2) == 0
	for _, c := range w.callers {
		if c.f == f && c.waiting && !c.gone && (all || r.IntN(2) == 0) {
			leaving = append(leaving, c)
		}
	}
	w.say("%d of the %d waiters of flight %d leave, while it %s", len(leaving), f.waiters, f.id, moveNames[m])
	before := w.stats.Abandoned
	later := r.IntN(2) == 0
	if !later {
		f.run.moves <- m
	}
	for _, c := range leaving {
		c.gone = true
		c.cancel()
	}
	if later {
		f.run.moves <- m
	}
	synctest.Wait()
	w.ended(m)
	w.total[cancelled].Add(int64(len(leaving)))
	if w.shardStats().Abandoned > before {
		if f.waiters > len(leaving) {
			w.fail(notAbandoned, "flight %d was abandoned by %d of %d waiters", f.id, len(leaving), f.waiters)
			return
		}
		w.total[abandonments].Add(1)
		for _, c := range leaving {
			w.leave(f)
			c.f, c.due = nil, true
		}
		w.lands(f)
		return
	}
	w.lands(f)
	for _, c := range leaving {
		c.either = true // check takes back the share of who did not get it
	}
}

// check compares everything with the model, when all has come to rest.
func (w *world) check() {
	synctest.Wait()
	if w.fault.Load() != nil {
		return
	}
	w.checkCallers()
	if w.fault.Load() != nil {
		return
	}
	w.checkFlights()
	if s := w.shardStats(); s != w.stats {
		w.fail(statsAddUp, "Stats = %+v; want %+v", s, w.stats)
	}
	if schedule.InControl() {
		return // there a break must show in what the table does, not in what is in it
	}
	for i, k := range w.keys {
		w.checkKey(i, k)
	}
	kept := 0
	for _, k := range w.keys {
		if k.kept != nil {
			kept++
		}
	}
	if n := w.taken.Load(); n < int64(kept*keptSize) || kept == 0 && n != 0 {
		w.fail(countsAddUp, "%d bytes are counted for %d kept results", n, kept)
	}
}

// shardStats is what the table's Stats are, from the shards that can have any: the
// others are looked at when the schedule ends.
func (w *world) shardStats() (sum Stats) {
	for i := range w.shards {
		s := w.shards[i]
		s.mu.Lock()
		st := s.stats
		s.mu.Unlock()
		sum.Flights += st.Flights
		sum.Joins += st.Joins
		sum.Fenced += st.Fenced
		sum.Abandoned += st.Abandoned
		sum.Panics += st.Panics
		sum.Flying += st.Flying
		sum.Waiting += st.Waiting
	}
	return sum
}

func (w *world) checkCallers() {
	kept := w.callers[:0]
	for _, c := range w.callers {
		switch n := c.returned.Load(); {
		case n == 0 && c.due:
			w.fail(everyCallReturns, "caller %d has not returned", c.id)
		case n > 1 || n == 1 && !c.due && !c.holds && c.v == nil:
			w.fail(everyCallReturns, "Wait of caller %d returned %d times: %v, %v, panic %v", c.id, n, c.v, c.err, c.panic)
		case n == 1 && c.due:
			c.due = false
			w.judge(c)
		}
		if c.returned.Load() == 0 || c.holds {
			kept = append(kept, c)
		} else {
			c.cancel()
		}
	}
	w.callers = kept
}

// judge says whether what Wait gave a caller was due to it.
func (w *world) judge(c *caller) {
	f := c.f
	switch {
	case f == nil || c.either && c.err != nil && c.err == c.ctx.Err():
		if c.v != nil || c.panic != nil || c.err == nil || c.err != c.ctx.Err() {
			w.fail(noForeignError, "caller %d, which left, got %v, %v, panic %v; want its context's %v", c.id, c.v, c.err, c.panic, c.ctx.Err())
		}
		if f != nil && f.value != nil {
			f.shares-- // given back when it left
		}
	case f == c.leads && f.run.inline.Load() && f.err == ErrGoexit: //nolint:errorlint // it is the value
		if c.v != nil || c.panic != nil || c.err != nil {
			w.fail(noForeignError, "caller %d, which called runtime.Goexit, got %v, %v, panic %v", c.id, c.v, c.err, c.panic)
		}
	case f.panic != nil:
		if p, ok := c.panic.(*PanicError); !ok || p.Value != f.panic {
			w.fail(noForeignError, "caller %d got %v, %v, panic %v; want flight %d's panic", c.id, c.v, c.err, c.panic, f.id)
		}
	case f.err != nil:
		if c.err != f.err || c.v != nil || c.panic != nil || errors.Is(c.err, ErrAbandoned) {
			w.fail(noForeignError, "caller %d got %v, %v, panic %v; want flight %d's error %v", c.id, c.v, c.err, c.panic, f.id, f.err)
		}
	default:
		if c.v == nil || c.v != f.value || c.err != nil || c.panic != nil {
			w.fail(noForeignError, "caller %d got %v, %v, panic %v; want flight %d's value", c.id, c.v, c.err, c.panic, f.id)
			return
		}
		if c.v.freed.Load() {
			w.fail(usedAfterRelease, "caller %d got flight %d's value after its release", c.id, f.id)
		}
		c.holds = true
	}
}

func (w *world) checkFlights() {
	executing := make([]int, len(w.keys))
	live := w.live[:0]
	for _, f := range w.live {
		if f.value != nil {
			w.checkValue(f)
		}
		if run := f.run; run != nil && f.cleared {
			began, ended := run.began.Load(), run.ended.Load()
			if !began || ended != f.landed {
				w.fail(everyCallReturns, "run %d has begun: %v, ended: %v; want it begun, and ended: %v", f.id, began, ended, f.landed)
				continue
			}
			if !ended {
				executing[f.key]++
			}
			if want := f.leader.id; run.ctx.Value(valueKey{}) != want {
				w.fail(noForeignError, "run %d has the context values of caller %v; want %d", f.id, run.ctx.Value(valueKey{}), want)
			}
			over := f.abandoned || f.landed && (!run.owns || run.value.freed.Load())
			if cause := context.Cause(run.ctx); (cause != nil) != over && !run.inline.Load() { // inline it has its leader's
				w.fail(leadersOwn, "the context of run %d has ended: %v; want that only when its waiters have left or its value is done with: %v", f.id, cause, over)
			}
		} else if run != nil && run.began.Load() {
			w.fail(atMostWidth, "flight %d of key %d runs, though %d others do", f.id, f.key, w.keys[f.key].running)
		}
		// One that was abandoned while pending never lands.
		done := f.landed && f.shares == 0 || f.abandoned && !f.cleared
		if !done {
			live = append(live, f)
		}
	}
	w.live = live
	for i, n := range executing {
		if n > w.width {
			w.fail(atMostWidth, "%d executions of key %d; want at most %d", n, i, w.width)
		}
	}
}

func (w *world) checkValue(f *modelFlight) {
	v := f.value
	if n := v.shares.Load(); n != int64(f.shares) || v.freed.Load() != (f.shares == 0) {
		w.fail(sharesAddUp, "flight %d's value has %d shares, released: %v; want %d", f.id, n, v.freed.Load(), f.shares)
	}
}

// real returns the table's state of a key.
func (w *world) real(i int) (sl slot[*cargo]) {
	h := w.table.hash(w.table.seed, w.names[i])
	s := &w.table.shards[h%shardCount]
	s.mu.Lock()
	defer s.mu.Unlock()
	if found := s.findLocked(h, w.names[i]); found != nil {
		sl = *found
	}
	return sl
}

func (w *world) checkKey(i int, k *modelKey) {
	if w.fault.Load() != nil {
		return
	}
	sl := w.real(i)
	for _, e := range []struct {
		what string
		got  *Flight[*cargo]
		want *modelFlight
	}{{"newest", sl.newest, k.newest}, {"pending", sl.pending, k.pending}, {"kept", sl.kept, k.kept}} {
		if e.got == nil && e.want == nil || e.got != nil && w.byReal[e.got] == e.want {
			continue
		}
		w.fail(tableIsRight, "key %d: %s is %s; want %s", i, e.what, w.byReal[e.got].name(), e.want.name())
		return
	}
	if k.used() != (sl.text != "") {
		w.fail(tableIsRight, "key %d is in the table: %v; want %v", i, sl.text != "", k.used())
	}
	if sl.running != k.running {
		w.fail(tableIsRight, "key %d: %d running; want %d", i, sl.running, k.running)
	}
}

// leadersAlone reports whether nobody but its leader has ever had the flight, so
// that the table may use its memory again.
func (f *modelFlight) leadersAlone() bool {
	return f.landed && !f.followed && f.run.inline.Load()
}

func (f *modelFlight) name() string {
	if f == nil {
		return "none"
	}
	return fmt.Sprintf("flight %d", f.id)
}

// windUp makes one step towards the end. It reports false when nothing is left.
func (w *world) windUp() bool {
	for w.holds > 0 {
		w.release(false)
		return true
	}
	for _, c := range w.callers {
		switch {
		case c.hold != nil:
			w.letGo(c)
		case c.leader && !c.launched:
			w.launch(c, w.plan.Setup())
		case !c.waiting:
			w.wait(c)
		case c.holds:
			w.drop(c)
		default:
			continue
		}
		return true
	}
	if fs := w.runs(); len(fs) > 0 {
		w.move(fs[0], moveValue)
		return true
	}
	for _, k := range w.keys {
		if k.kept != nil {
			w.say("the window ends")
			time.Sleep(w.window) // the bubble's time
			w.tick()
			return true
		}
	}
	switch s := w.table.Stats(); {
	case s != w.stats:
		w.fail(statsAddUp, "Stats = %+v; want %+v", s, w.stats)
	case len(w.callers) > 0 || len(w.live) > 0:
		w.fail(everyCallReturns, "%d callers and %d flights are left", len(w.callers), len(w.live))
	case w.taken.Load() != 0:
		w.fail(countsAddUp, "%d bytes are counted for nothing", w.taken.Load())
	case w.table.Keys() > 0 || s.Flying != 0 || s.Waiting != 0:
		w.fail(schedule.NothingLeft, "%d keys, Stats = %+v", w.table.Keys(), s)
	}
	return false
}
