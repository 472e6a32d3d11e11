// Package schedule runs simulations: many short schedules of steps, each a pure
// function of a seed and its number, in testing/synctest's bubbles. A schedule
// that violates an invariant is run again with fewer and fewer steps; what is left
// is printed, with what repeats it.
//
// How much a simulation is worth shows in what it finds. [Controls] runs it over a
// broken variants of the code, which must be found out, by the invariant that the
// break violates.
//
// Variables that it reads, beside those of package battery:
//
//	FLIGHTPG_SCHEDULE=N   runs the schedule of that number only
//	FLIGHTPG_SCHEDULES=N  runs that many schedules
package schedule

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flightpg/flightpg/internal/battery"
)

// Names of the variables.
const (
	EnvSchedule  = "FLIGHTPG_SCHEDULE"
	EnvSchedules = "FLIGHTPG_SCHEDULES"
)

// NothingLeft is the invariant that a schedule violates whose goroutines do not
// end, or wait for each other.
const NothingLeft = "nothing is left"

// Violation says which invariant a schedule has violated.
type Violation struct {
	Invariant string   // "every call returns"
	Detail    string   // what was seen, and what was expected
	Step      int      // the step after which it was seen
	Trace     []string // the steps up to there, if the Plan asks for them
}

// Plan is where a schedule takes its choices from. Each step has randomness of its
// own, so that one can be left out and the others stay what they were, as far as
// they can.
type Plan struct {
	Seed    uint64
	Number  int
	Tracing bool // the Violation must have a Trace

	skip map[int]bool
	pcg  rand.PCG

	mu    sync.Mutex // guards what follows
	last  int        // the step that was taken last
	trace []string
}

// Setup returns the randomness for what is decided before the first step.
func (p *Plan) Setup() *rand.Rand { return p.rand(0) }

// Step returns the randomness of step i, counted from 0. It reports false for a
// step that is left out. What the step before was given must not be used any more.
func (p *Plan) Step(i int) (*rand.Rand, bool) {
	if p.skip[i] {
		return nil, false
	}
	p.mu.Lock()
	p.last = i
	p.mu.Unlock()
	return p.rand(uint64(i) + 1), true
}

// Say adds a line to the trace, if there is to be one, that of a Violation without a
// trace of its own.
func (p *Plan) Say(format string, args ...any) {
	if !p.Tracing {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.trace = append(p.trace, fmt.Sprintf("%d: %s", p.last, fmt.Sprintf(format, args...)))
}

// done completes what the schedule has violated.
func (p *Plan) done(v *Violation) *Violation {
	p.mu.Lock()
	defer p.mu.Unlock()
	if v.Trace == nil {
		v.Trace = p.trace
	}
	return v
}

func (p *Plan) rand(i uint64) *rand.Rand {
	// Neighbouring numbers must not give similar streams: the finalizer of
	// splitmix64.
	z := uint64(p.Number)<<16 + i + 0x9E3779B97F4A7C15
	z = (z ^ z>>30) * 0xBF58476D1CE4E5B9
	z = (z ^ z>>27) * 0x94D049BB133111EB
	p.pcg.Seed(p.Seed, z^z>>31)
	return rand.New(&p.pcg)
}

// perBubble is how many schedules share a bubble: opening one costs about as much
// as ten steps.
const perBubble = 40

// Test runs count schedules and reports how many, and how often each of what has a name
// came about, by counts. From least schedules on everything must. In a control it reports
// nothing: see Mutant.
func Test(t *testing.T, about string, count, least int, names []string, counts []atomic.Int64, run func(*Plan) *Violation) {
	t.Helper()
	seed := battery.Seed(t)
	if InControl() {
		Run(t, seed, count, run)
		return
	}
	report := battery.Report(t, "simulation", about, seed)
	n := Run(t, seed, count, run)
	if t.Failed() {
		return
	}
	report.Set("schedules", n)
	for i, name := range names {
		came := counts[i].Load()
		report.Set(name, came)
		if came == 0 && n >= least {
			t.Errorf("%d schedules had no %s", n, name)
		}
	}
}

// Run runs count schedules, several at a time, until one violates an invariant:
// then the test fails. It returns how many it ran.
func Run(t *testing.T, seed uint64, count int, run func(*Plan) *Violation) int {
	t.Helper()
	first := 0
	if n, ok := number(t, EnvSchedules); ok {
		count = n
	}
	if n, ok := number(t, EnvSchedule); ok {
		first, count = n, 1
	}
	var mu sync.Mutex // guards failure
	var failure *failed
	var next, done atomic.Int64
	var stop atomic.Bool
	defer progress(t, count, &done)()
	t.Run("schedules", func(t *testing.T) {
		for i := range runtime.GOMAXPROCS(0) {
			t.Run(strconv.Itoa(i), func(t *testing.T) {
				t.Parallel()
				for !stop.Load() {
					from := int(next.Add(perBubble)) - perBubble
					to := min(from+perBubble, count)
					if from >= to {
						return
					}
					f, n := batch(t, seed, first+from, first+to, run)
					done.Add(int64(n))
					if f != nil {
						stop.Store(true)
						mu.Lock()
						if failure == nil || f.number < failure.number {
							failure = f
						}
						mu.Unlock()
					}
				}
			})
		}
	})
	if failure != nil {
		t.Error(failure.explain(t, seed, run))
	}
	return int(done.Load())
}

// progress says now and then how far a long run has come, until the function is called
// that it returns.
func progress(t *testing.T, count int, done *atomic.Int64) (end func()) {
	const every, long = 30 * time.Second, 50_000
	if count < long {
		return func() {}
	}
	ended, gone := make(chan struct{}), make(chan struct{})
	began := time.Now()
	go func() {
		defer close(gone)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				t.Logf("%d of %d schedules after %v", done.Load(), count, time.Since(began).Round(time.Second))
			case <-ended:
				return
			}
		}
	}()
	return func() {
		close(ended)
		<-gone
	}
}

func number(t *testing.T, variable string) (n int, ok bool) {
	t.Helper()
	s := os.Getenv(variable)
	if s == "" {
		return 0, false
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 0 {
		t.Fatalf("%s=%q: want a number without sign", variable, s)
	}
	return n, true
}

// failed is a schedule that violated an invariant.
type failed struct {
	number int
	v      *Violation
}

// batch runs some schedules in one bubble and returns how many it ran.
func batch(t *testing.T, seed uint64, from, to int, run func(*Plan) *Violation) (f *failed, n int) {
	stuck := bubble(t, func() {
		for i := from; i < to; i++ {
			n++
			if v := run(&Plan{Seed: seed, Number: i}); v != nil {
				f = &failed{i, v}
				return
			}
		}
	})
	if stuck == "" || f != nil {
		return f, n
	}
	for i := from; i < to; i++ {
		if v := alone(t, &Plan{Seed: seed, Number: i}, run); v != nil {
			return &failed{i, v}, n
		}
	}
	return &failed{from, &Violation{Invariant: NothingLeft, Detail: fmt.Sprintf("%s, in one of the schedules %d to %d, but in none of them when it runs alone", stuck, from, to-1)}}, n
}

// bubble runs f in a bubble and returns what synctest has to say of goroutines that
// it leaves behind.
func bubble(t *testing.T, f func()) (stuck string) {
	defer func() {
		if p := recover(); p != nil {
			stuck = fmt.Sprint(p)
		}
	}()
	synctest.Test(t, func(*testing.T) { f() })
	return ""
}

// alone runs one schedule in a bubble of its own.
func alone(t *testing.T, p *Plan, run func(*Plan) *Violation) (v *Violation) {
	if stuck := bubble(t, func() { v = run(p) }); stuck != "" && v == nil {
		p.mu.Lock()
		v = &Violation{Invariant: NothingLeft, Detail: stuck, Step: p.last}
		p.mu.Unlock()
		if p.Tracing {
			v.Detail += "\n" + blocked()
		}
	}
	if v != nil {
		p.done(v)
	}
	return v
}

// blocked returns the stacks of the goroutines in the youngest bubble.
func blocked() string {
	buf := make([]byte, 4<<20)
	stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	var young []string
	most := 0
	for _, stack := range stacks {
		first, _, _ := strings.Cut(stack, "\n")
		_, after, _ := strings.Cut(first, "synctest bubble ")
		n, _ := strconv.Atoi(strings.TrimRight(after, "]:"))
		switch {
		case n > most:
			young, most = []string{stack}, n
		case n == most && n > 0:
			young = append(young, stack)
		}
	}
	return strings.Join(young, "\n\n")
}

// again runs the schedule until it fails as before, but not for ever: a little is
// left to chance, as to which of two callers a pool gives its connection.
func (f *failed) again(t *testing.T, p *Plan, run func(*Plan) *Violation) *Violation {
	for range 20 {
		v := alone(t, &Plan{Seed: p.Seed, Number: f.number, skip: p.skip, Tracing: true}, run)
		if v != nil && v.Invariant == f.v.Invariant {
			return v
		}
	}
	return nil
}

// maxShrink bounds how often a schedule is run to find out which of its steps
// matter.
const maxShrink = 300

// explain finds the steps that it takes and says how to repeat them.
func (f *failed) explain(t *testing.T, seed uint64, run func(*Plan) *Violation) string {
	v, skip, runs := f.v, make(map[int]bool), 0
	for again := v.Step > 0; again && runs < maxShrink; {
		again = false
		for i := v.Step; i >= 0 && runs < maxShrink; i-- {
			if skip[i] {
				continue
			}
			runs++
			skip[i] = true
			if w := alone(t, &Plan{Seed: seed, Number: f.number, skip: skip}, run); w != nil && w.Invariant == v.Invariant {
				again = true
				continue
			}
			delete(skip, i)
		}
	}
	steps := "the steps that it takes"
	w := f.again(t, &Plan{Seed: seed, skip: skip}, run)
	if w == nil {
		steps = "all its steps, not all of which it may take"
		w = f.again(t, &Plan{Seed: seed}, run)
	}
	if w == nil {
		steps = "it has not failed again, so it takes some chance too; its steps"
		w = v
	}
	v = w
	name, _, _ := strings.Cut(t.Name(), "/")
	var b strings.Builder
	fmt.Fprintf(&b, "schedule %d of seed %d: %s: %s\n", f.number, seed, v.Invariant, v.Detail)
	fmt.Fprintf(&b, "%s=%d %s=%d go test -run '^%s$' repeats it; %s:\n", battery.EnvSeed, seed, EnvSchedule, f.number, name, steps)
	for _, line := range v.Trace {
		b.WriteString("\t" + line + "\n")
	}
	return b.String()
}
