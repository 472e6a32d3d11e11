package pipeline

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flightpg/flightpg/internal/battery"
)

// TestLoads compares the pool with a model of pgx under database/sql, which may have as
// many connections, on the same host and with the same calls in the same order. Time is
// the bubble's, and what things cost is said in loads_world_test.go. However much or
// little time statements take, whatever they wait for and however many call them, the
// pool must execute at least 0.9 as many, in the median of the rounds and in the worst;
// where calls come at times of their own, pgx's mean response and its 99th percentile
// must be at least 0.9 of the pool's.
//
// Each load runs for a while before the first round, and for a second or less after each
// change, and what the change itself takes.
// The loads are the same for a seed. In which order goroutines run that could at the
// same moment is the scheduler's choice, though.
//
// FLIGHTPG_LOADS=1000 adds so many loads at random; FLIGHTPG_LOADS=17:18 runs only
// the one with the number 17.
func TestLoads(t *testing.T) {
	if battery.RaceDetector {
		t.Skip("NOT RUN with -race, whose own counters it overflows: make test runs it without")
	}
	seed := battery.Seed(t)
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // cheaper, and more alike from run to run
	loads := usualLoads()
	which := os.Getenv("FLIGHTPG_LOADS")
	if which != "" {
		var first, end int
		if _, err := fmt.Sscanf(which, "%d:%d", &first, &end); err == nil {
			loads = nil
		} else if end, err = strconv.Atoi(which); err != nil {
			t.Fatalf("FLIGHTPG_LOADS=%q: want a number, or two with a colon between them", which)
		}
		for i := first; i < end; i++ {
			loads = append(loads, randomLoad(seed, i))
		}
	}
	table := []string{fmt.Sprintf("%-58s %9s %9s %6s %6s %6s %6s %6s %6s %6s %7s %7s", "", "pgx/s", "pool/s", "median", "worst", "p99", "back", "conns", "opened", "open", "pgx µs", "pool µs")}
	began := time.Now()
	for i := range loads {
		l := &loads[i]
		if l.long && testing.Short() && which == "" {
			continue
		}
		t.Run(l.name(), func(t *testing.T) {
			began := time.Now()
			row := l.compare(t, seed)
			table = append(table, row+fmt.Sprintf("  %.1fs", time.Since(began).Seconds()))
		})
	}
	t.Logf("%d loads in %v; µs are CPU time for a call\n%s", len(table)-1, time.Since(began).Round(time.Second), strings.Join(table, "\n"))
}

// load is what is asked of both.
type load struct {
	cpus      int  // 0: as many as anybody wants
	bound     bool // statements use CPUs; else they sleep
	busy      bool // others use the CPUs, too
	roundTrip time.Duration
	max       int // connections; 0 means no limit
	company   Company
	texts     int     // 0: none is called twice
	byText    bool    // how long a call takes depends on the text
	open      float64 // calls come at times of their own, as many as take this part of what pgx can do; 0: each caller has one at a time
	phases    []phase
	long      bool   // not in the short form
	label     string // of those at random
}

// phase is a time for which the load is the same.
type phase struct {
	callers int
	service service
}

// service is how long statements take.
type service struct {
	kind       string // "fixed", "two", "exp" or "pareto"
	fast, slow time.Duration
	share      float64 // of slow ones
}

const longest = 100 * time.Millisecond

// quantile returns the time below which that part of all is.
func (s service) quantile(u float64) time.Duration {
	switch s.kind {
	case "two":
		if u >= 1-s.share {
			return s.slow
		}
	case "exp":
		return min(time.Duration(-math.Log(1-u)*float64(s.fast)), longest)
	case "pareto":
		return min(time.Duration(float64(s.fast)*math.Pow(1-u, -1/1.2)), longest)
	}
	return s.fast
}

func (s service) mean() (mean time.Duration) {
	for i := range 100 {
		mean += s.quantile((float64(i)+0.5)/100) / 100
	}
	return mean
}

func (s service) String() string {
	if s.kind == "two" {
		return fmt.Sprintf("%v|%v:%g%%", s.fast, s.slow, s.share*100)
	}
	return fmt.Sprintf("%s:%v", s.kind, s.fast)
}

func (l *load) name() string {
	var b strings.Builder
	b.WriteString(l.label)
	for i, p := range l.phases {
		if i > 0 {
			b.WriteString(">")
		}
		fmt.Fprintf(&b, "%dx%v", p.callers, p.service)
	}
	fmt.Fprintf(&b, ",max%d,cpus%d", l.max, l.cpus)
	for _, is := range []struct {
		so   bool
		name string
	}{
		{l.bound, "bound"},
		{l.busy, "busy"},
		{l.roundTrip > 0, "far"},
		{l.texts == 0, "distinct"},
		{l.texts > 1, strconv.Itoa(l.texts) + "texts"},
		{l.byText, "bytext"},
		{l.company == Alone, "alone"},
		{l.company == Apart, "apart"},
		{l.open > 0, "open"},
	} {
		if is.so {
			b.WriteString("," + is.name)
		}
	}
	return b.String()
}

// span is when a phase is measured.
type span struct {
	warm, round time.Duration
	rate        float64 // calls in a second, at most
}

const rounds = 10

// atOnce is how many calls are executed at a time.
func (l *load) atOnce(p phase) float64 {
	if l.max > 0 {
		return float64(min(p.callers, l.max))
	}
	return float64(p.callers)
}

// span returns when the phase with that number is measured. What all connections take to be
// opened, and what is left of the phase before, is over then.
func (l *load) span(i int) span {
	p := l.phases[i]
	s := l.settled(p)
	took := time.Duration(0)
	if l.cpus > 0 {
		took = costConnect * time.Duration(l.atOnce(p)) / time.Duration(l.cpus)
	}
	if i > 0 {
		was := l.phases[i-1]
		each := was.service.mean()
		if l.bound && l.cpus > 0 {
			each = time.Duration(float64(each) * max(l.atOnce(was)/float64(l.cpus), 1))
		}
		took += time.Duration(float64(each) * float64(was.callers) / l.atOnce(was))
	}
	if l.busy {
		took *= 2
	}
	s.warm += 2 * took
	return s
}

// settled is span without that.
func (l *load) settled(p phase) span {
	atOnce, mean := l.atOnce(p), p.service.mean()
	const alone = costWrite + costReceive + costRead + costCall + costExecute + costSync
	least := mean + alone + l.roundTrip
	long := max(p.service.fast, 2*mean)
	if p.service.kind == "two" {
		long = p.service.slow
	}
	rate := atOnce / least.Seconds()
	if l.cpus > 0 {
		cost := alone
		if l.texts == 0 {
			cost += costWrite + costReceive + costRead + costParse + costSync
		}
		if l.bound {
			cost += mean
			long = max(long, time.Duration(float64(long)*atOnce/float64(l.cpus)))
		}
		if l.busy {
			cost *= 2
		}
		rate = min(rate, float64(l.cpus)/cost.Seconds())
	}
	// Long enough for a slow one to be done several times, and for as many calls that chance
	// means little, but where there are thousands of calls in that time.
	s := span{warm: time.Second, round: 300 * time.Millisecond, rate: rate}
	if many := time.Duration(3000 / rate * float64(time.Second)); many < s.round {
		s.round = max(many, 60*time.Millisecond)
		if l.busy {
			s.round = max(s.round, 150*time.Millisecond)
		}
		s.warm = max(s.warm/4, 4*s.round)
	}
	several := 20 * long
	if rate*several.Seconds() > 3000 {
		several = 10 * long
	}
	s.round = max(s.round, several, time.Duration(300/rate*float64(time.Second)))
	s.warm = max(s.warm, 5*long)
	return s
}

// draws are the calls, in the order in which they begin. Of each hundred as many take so
// long as the service says.
type draws struct {
	l       *load
	service service

	mu    sync.Mutex // guards what follows
	rng   *rand.Rand
	block []int
	n     int
}

func (d *draws) next() (text int, takes time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.block) == 0 {
		d.block = d.rng.Perm(100)
	}
	u := (float64(d.block[0]) + 0.5) / 100
	d.block = d.block[1:]
	d.n++
	switch {
	case d.l.texts == 0:
		return -d.n, d.service.quantile(u)
	case d.l.byText:
		text = int(u * float64(d.l.texts))
		return text, d.service.quantile((float64(text) + 0.5) / float64(d.l.texts))
	}
	return d.rng.IntN(d.l.texts), d.service.quantile(u)
}

// outcome is what one of the two has done.
type outcome struct {
	counts    []int64 // calls, by round
	total     int64   // all
	responses [][]time.Duration
	dials     int           // that there were
	open      int           // connections, at the end
	cpu       time.Duration // for a call
	err       error
}

// rate returns how many calls a second a phase had, in the median of its rounds.
func (o *outcome) rate(phase int, s span) float64 {
	counts := slices.Sorted(slices.Values(o.counts[phase*rounds : (phase+1)*rounds]))
	return float64(counts[rounds/2]) / s.round.Seconds()
}

// caller makes what one caller calls.
type caller func(who int) func(text int, takes time.Duration) error

func (l *load) host(seed uint64) *host {
	return &host{machine: newMachine(l.cpus, l.busy, battery.Rand(seed, 1)), bound: l.bound, roundTrip: l.roundTrip}
}

// direct runs the load on the model of pgx, changed as said.
func (l *load) direct(t *testing.T, seed uint64, rate float64, how ...func(*direct)) (o *outcome) {
	synctest.Test(t, func(*testing.T) {
		h := l.host(seed)
		d := &direct{h: h, max: l.max}
		for _, f := range how {
			f(d)
		}
		o = l.run(seed, rate, func(int) func(int, time.Duration) error {
			return func(text int, takes time.Duration) error {
				d.call(text, takes)
				return nil
			}
		})
		o.dials, o.open, o.cpu = d.dials, d.open, h.spent()/time.Duration(max(o.total, 1))
	})
	return o
}

// pooled runs it on the pool.
func (l *load) pooled(t *testing.T, seed uint64, rate float64) (o *outcome) {
	synctest.Test(t, func(*testing.T) {
		h := l.host(seed)
		p, stop := newPooled(h, Config{Max: l.max}, l.company, l.texts)
		o = l.run(seed, rate, func(who int) func(int, time.Duration) error {
			c := new(pooledCall)
			return func(text int, takes time.Duration) error { return p.call(who, c, text, takes) }
		})
		st := p.p.Stats()
		o.dials, o.open, o.cpu = int(st.Dials), st.Open, h.spent()/time.Duration(max(o.total, 1))
		stop()
		time.Sleep(time.Minute) // the bubble's time: until nobody is patient any more
		if h.mu.Lock(); h.open > 0 {
			t.Errorf("%d connections are left", h.open)
		}
		h.mu.Unlock()
	})
	return o
}

// run runs the load on either. Where rate is not 0, calls come so often.
func (l *load) run(seed uint64, rate float64, callers caller) *outcome {
	n := len(l.phases) * rounds
	o := &outcome{counts: make([]int64, n), responses: make([][]time.Duration, n)}
	var mu sync.Mutex // guards o.err and o.responses
	var failed atomic.Bool
	fail := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		if !failed.Swap(true) {
			o.err = err
		}
	}
	began := time.Now()
	var total atomic.Int64
	var wg sync.WaitGroup
	if rate > 0 {
		p := l.phases[0]
		s, d := l.span(0), &draws{l: l, service: p.service, rng: battery.Rand(seed, 2)}
		s.round = max(s.round, time.Duration(1000/rate*float64(time.Second)))
		gaps := battery.Rand(seed, 3)
		var under atomic.Int64
		at := began
		for i := 0; !failed.Load(); i++ {
			at = at.Add(time.Duration(gaps.ExpFloat64() / rate * float64(time.Second)))
			time.Sleep(time.Until(at)) // the bubble's time
			round := -1
			if since := at.Sub(began) - s.warm; since >= 0 {
				round = int(since / s.round)
			}
			if round >= rounds {
				break
			}
			text, takes := d.next()
			if under.Add(1) > 20_000 {
				fail(errors.New("more calls wait than are answered"))
			}
			wg.Go(func() {
				began := time.Now()
				if err := callers(i)(text, takes); err != nil {
					fail(err)
				}
				under.Add(-1)
				total.Add(1)
				if round >= 0 {
					mu.Lock()
					o.responses[round] = append(o.responses[round], time.Since(began))
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		o.total = total.Load()
		return o
	}
	most := 0
	var ds []*draws
	for i, p := range l.phases {
		most = max(most, p.callers)
		ds = append(ds, &draws{l: l, service: p.service, rng: battery.Rand(seed, 2+i)})
	}
	for who := range most {
		wg.Go(func() {
			call := callers(who)
			start := began
			for i, p := range l.phases {
				s := l.span(i)
				end := start.Add(s.warm + rounds*s.round)
				if who >= p.callers {
					time.Sleep(time.Until(end)) // the bubble's time
				} else if long := p.service.mean(); long > 0 { // not all at once
					time.Sleep(long * time.Duration(who) / time.Duration(p.callers)) // the bubble's time
				}
				for !failed.Load() && time.Now().Before(end) {
					if err := call(ds[i].next()); err != nil {
						fail(err)
					}
					total.Add(1)
					if since := time.Since(start) - s.warm; since >= 0 && since < rounds*s.round {
						atomic.AddInt64(&o.counts[i*rounds+int(since/s.round)], 1)
					}
				}
				start = end
			}
		})
	}
	wg.Wait()
	o.total = total.Load()
	return o
}

// enough is the part of what pgx does that the pool must do.
const enough = 0.9

// verdict says how the one does beside the other.
type verdict struct {
	median, worst float64 // of the rounds
	late          float64 // the same of the 99th percentiles of all responses, or 1
	back          float64 // what it does when the load is what it was once more, beside what it did, or 1
}

func (v verdict) passes() bool {
	return v.median >= enough && v.worst >= enough && v.late >= enough && v.back >= 0.95
}

func (v verdict) String() string {
	return fmt.Sprintf("%.2f of what pgx does, %.2f in the worst round, %.2f by the 99th percentile, and %.2f of what it was when the load is what it was", v.median, v.worst, v.late, v.back)
}

func (l *load) judge(pgx, other *outcome, rate float64) verdict {
	v := verdict{late: 1, back: 1}
	var ratios []float64
	if rate > 0 {
		for i := range rounds {
			ratios = append(ratios, mean(pgx.responses[i])/mean(other.responses[i]))
		}
		v.late = late(pgx) / late(other)
	} else {
		for i := range pgx.counts {
			ratios = append(ratios, float64(other.counts[i])/float64(pgx.counts[i]))
		}
	}
	slices.Sort(ratios)
	v.median, v.worst = ratios[len(ratios)/2], ratios[0]
	if last := len(l.phases) - 1; last > 0 && l.phases[0] == l.phases[last] && rate == 0 {
		v.back = other.rate(last, l.span(last)) / other.rate(0, l.span(0))
	}
	return v
}

// rate returns how many calls come in a second, or 0 where each caller has one at a time.
func (l *load) rate(t *testing.T, seed uint64) float64 {
	if l.open == 0 {
		return 0
	}
	closed := *l
	closed.phases = slices.Clone(l.phases)
	closed.phases[0].callers = 2 * l.max
	return l.open * closed.direct(t, seed, 0).rate(0, closed.span(0))
}

// compare runs a load on both, and returns a line of the table.
func (l *load) compare(t *testing.T, seed uint64) string {
	rate := l.rate(t, seed)
	pgx, pool := l.direct(t, seed, rate), l.pooled(t, seed, rate)
	v := l.judge(pgx, pool, rate)
	mark := ""
	switch {
	case pool.err != nil:
		t.Errorf("a call failed: %v", pool.err)
		mark = " FAIL"
	case !v.passes():
		t.Errorf("the pool does %v; want %v, and 0.95 of what it was", v, enough)
		mark = " FAIL"
	}
	a, b := rate, rate
	if s := l.span(0); rate == 0 {
		a, b = pgx.rate(0, s), pool.rate(0, s)
	}
	return fmt.Sprintf("%-58s %9.0f %9.0f %6.2f %6.2f %6.2f %6.2f %6d %6d %6d %7.1f %7.1f%s", l.name(), a, b, v.median, v.worst, v.late, v.back,
		pgx.dials, pool.dials, pool.open, float64(pgx.cpu)/1e3, float64(pool.cpu)/1e3, mark)
}

func mean(of []time.Duration) float64 {
	var sum time.Duration
	for _, d := range of {
		sum += d
	}
	return float64(sum) / float64(len(of))
}

// late returns the 99th percentile of all responses.
func late(o *outcome) float64 {
	all := slices.Sorted(slices.Values(slices.Concat(o.responses...)))
	if len(all) == 0 {
		return math.NaN()
	}
	return float64(all[len(all)*99/100])
}

func fixed(d time.Duration) service { return service{kind: "fixed", fast: d} }

func twofold(fast, slow time.Duration, share float64) service {
	return service{kind: "two", fast: fast, slow: slow, share: share}
}

const (
	us = time.Microsecond
	ms = time.Millisecond
)

// usualLoads are the small cases: one thing at a time is other than usual, then some
// together. long ones are not in the short form.
func usualLoads() (loads []load) {
	usual := load{cpus: 2, company: Joined, texts: 1, max: 16}
	add := func(length bool, callers int, s service, how ...func(*load)) {
		l := usual
		l.long, l.phases = length, []phase{{callers, s}}
		for _, f := range how {
			f(&l)
		}
		loads = append(loads, l)
	}
	const short, long = false, true
	max := func(n int) func(*load) { return func(l *load) { l.max = n } }
	cpus := func(n int) func(*load) { return func(l *load) { l.cpus = n } }
	company := func(c Company) func(*load) { return func(l *load) { l.company = c } }
	texts := func(n int) func(*load) { return func(l *load) { l.texts = n } }
	bound := func(l *load) { l.bound = true }
	busy := func(l *load) { l.busy = true }
	far := func(l *load) { l.roundTrip = ms }
	open := func(l *load) { l.open = 0.6 }
	byText := func(l *load) { l.texts, l.byText = 20, true }
	distinct := texts(0)
	then := func(callers int, s service) func(*load) {
		return func(l *load) { l.phases = append(l.phases, phase{callers, s}) }
	}
	exp := func(d time.Duration) service { return service{kind: "exp", fast: d} }
	pareto := func(d time.Duration) service { return service{kind: "pareto", fast: d} }

	// How long statements take.
	for _, d := range []time.Duration{50 * us, 300 * us, ms, 5 * ms, 20 * ms, 100 * ms} {
		add(d < 5*ms, 64, fixed(d))
	}
	for _, share := range []float64{0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99} {
		add(share != 0.05 && share != 0.5 && share != 0.95, 64, twofold(50*us, 20*ms, share))
	}
	add(short, 64, exp(ms))
	add(short, 64, exp(20*ms))
	add(long, 64, pareto(200*us))
	add(short, 64, pareto(2*ms))
	// Which texts.
	for _, share := range []float64{0.05, 0.5, 0.95} {
		add(share != 0.5, 64, twofold(50*us, 20*ms, share), byText)
	}
	add(long, 64, exp(5*ms), byText)
	add(long, 64, twofold(50*us, 20*ms, 0.5), texts(20))
	add(long, 64, fixed(50*us), distinct)
	add(short, 64, fixed(20*ms), distinct)
	add(long, 64, twofold(50*us, 20*ms, 0.5), distinct)
	add(long, 256, fixed(20*ms), distinct, max(64))
	add(long, 256, fixed(20*ms), distinct, max(0))
	// What may be beside them.
	for _, c := range []Company{Alone, Apart} {
		add(long, 64, fixed(50*us), company(c))
		add(c == Alone, 64, twofold(50*us, 20*ms, 0.25), company(c))
		add(c == Apart, 64, fixed(20*ms), company(c))
	}
	// How many connections.
	for _, n := range []int{0, 4, 64} {
		add(long, 256, twofold(50*us, 20*ms, 0.05), max(n))
		add(n == 0, 256, twofold(50*us, 20*ms, 0.5), max(n))
		add(n != 4, 256, fixed(20*ms), max(n))
		add(long, 256, twofold(50*us, 20*ms, 0.5), max(n), byText)
	}
	add(short, 32, fixed(20*ms), max(0))
	// How many callers.
	for _, n := range []int{1, 16, 256, 1024} {
		add(long, n, fixed(50*us))
		add(n != 16, n, twofold(50*us, 20*ms, 0.25))
		add(n > 1, n, fixed(20*ms))
	}
	// CPUs.
	add(short, 64, fixed(20*us), bound)
	add(short, 64, fixed(ms), bound)
	add(long, 64, fixed(200*us), bound)
	add(long, 64, fixed(5*ms), bound)
	for _, share := range []float64{0.01, 0.1, 0.5} {
		add(share != 0.5, 64, twofold(20*us, 20*ms, share), bound)
	}
	add(long, 256, exp(ms), bound, max(64))
	add(long, 16, fixed(50*us), cpus(0))
	add(long, 64, twofold(50*us, 20*ms, 0.25), cpus(0))
	add(long, 256, fixed(20*ms), cpus(0), max(0))
	add(long, 64, fixed(5*ms), cpus(0), bound)
	// A busy machine.
	add(long, 64, fixed(50*us), busy)
	add(short, 64, fixed(5*ms), busy)
	add(long, 64, twofold(50*us, 20*ms, 0.05), busy)
	add(long, 64, twofold(50*us, 20*ms, 0.5), busy)
	add(long, 64, fixed(20*us), busy, bound)
	add(long, 64, exp(ms), busy, bound)
	// A network.
	add(long, 64, fixed(50*us), far)
	add(short, 64, fixed(20*ms), far)
	add(short, 64, twofold(50*us, 20*ms, 0.5), far)
	add(long, 64, fixed(20*us), far, bound)
	add(long, 64, fixed(50*us), far, max(4))
	// Calls at times of their own.
	add(long, 1, fixed(50*us), open)
	add(short, 1, fixed(5*ms), open)
	add(long, 1, twofold(50*us, 20*ms, 0.05), open)
	add(long, 1, twofold(50*us, 20*ms, 0.5), open)
	add(long, 1, twofold(50*us, 20*ms, 0.5), open, byText)
	add(long, 1, exp(5*ms), open)
	add(long, 1, pareto(ms), open)
	add(long, 1, fixed(200*us), open, bound)
	// Changes.
	add(long, 16, fixed(ms), then(256, fixed(ms)), then(16, fixed(ms)))
	add(long, 16, fixed(20*ms), then(256, fixed(20*ms)), then(16, fixed(20*ms)), max(0))
	add(short, 4, fixed(20*ms), then(64, fixed(20*ms)), then(4, fixed(20*ms)), max(0))
	add(long, 16, twofold(50*us, 20*ms, 0.25), then(256, twofold(50*us, 20*ms, 0.25)), then(16, twofold(50*us, 20*ms, 0.25)), max(64))
	add(long, 16, fixed(300*us), then(16, fixed(20*ms)), then(16, fixed(300*us)))
	add(short, 1, fixed(50*us), then(32, fixed(20*ms)), then(1, fixed(50*us)))
	add(long, 64, fixed(50*us), then(64, fixed(20*ms)), then(64, fixed(50*us)), max(0))
	add(long, 64, fixed(20*us), then(64, fixed(5*ms)), then(64, fixed(20*us)), bound)
	return loads
}

// randomLoad is one of those that nobody has thought of.
func randomLoad(seed uint64, n int) load {
	rng := battery.Rand(seed, 1000+n)
	l := load{
		label: fmt.Sprintf("%d:", n), cpus: pick(rng, 2, 2, 0), bound: rng.IntN(4) == 0, busy: rng.IntN(4) == 0,
		roundTrip: pick(rng, 0, 0, ms), max: pick(rng, 0, 4, 16, 64), company: pick(rng, Joined, Joined, Apart, Alone), texts: pick(rng, 1, 1, 20, 0),
	}
	l.byText = l.texts > 1 && rng.IntN(2) == 0
	callers := 1 << rng.IntN(11)
	s := randomService(rng, l.bound)
	l.phases = []phase{{callers, s}}
	switch rng.IntN(8) {
	case 0:
		l.phases = append(l.phases, phase{min(16*callers, 1024), s}, l.phases[0])
	case 1:
		l.phases = append(l.phases, phase{callers, randomService(rng, l.bound)}, l.phases[0])
	case 2, 3:
		if l.max > 0 {
			l.open = 0.6
		}
	}
	if l.cpus == 0 { // which could do more than anybody has time to wait for
		for i := range l.phases {
			p := &l.phases[i]
			for p.callers > 1 && l.settled(*p).rate > 200_000 {
				p.callers /= 2
			}
		}
	}
	return l
}

func randomService(rng *rand.Rand, bound bool) service {
	between := func(least, most time.Duration) time.Duration { // as likely in each order of magnitude
		d := time.Duration(float64(least) * math.Pow(float64(most)/float64(least), rng.Float64()))
		return d.Round(time.Duration(math.Pow10(int(math.Log10(float64(d))) - 1)))
	}
	most := longest
	if bound {
		most = 5 * ms
	}
	switch rng.IntN(4) {
	case 0:
		return fixed(between(50*us, most))
	case 1:
		return service{kind: "exp", fast: between(50*us, most/4)}
	case 2:
		return service{kind: "pareto", fast: between(50*us, most/10)}
	}
	return twofold(between(50*us, ms), min(20*ms, most), float64(pick(rng, 1, 2, 5, 10, 25, 50, 75, 90, 95, 99))/100)
}

func pick[T any](rng *rand.Rand, of ...T) T { return of[rng.IntN(len(of))] }

// TestLoadsControl checks that the comparison tells what it must: the model of pgx passes
// beside itself where chance takes another course, and fails with too few connections, or
// when it stands still for a part of one round.
func TestLoadsControl(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for _, l := range []load{
		{cpus: 2, texts: 1, max: 16, phases: []phase{{64, fixed(20 * ms)}}},
		{cpus: 2, texts: 1, max: 16, phases: []phase{{64, twofold(50*us, 20*ms, 0.25)}}},
		{cpus: 2, texts: 20, max: 4, phases: []phase{{64, twofold(50*us, 20*ms, 0.95)}}},
		{cpus: 2, texts: 1, max: 16, phases: []phase{{64, service{kind: "pareto", fast: 5 * ms}}}},
		{cpus: 2, texts: 1, max: 16, busy: true, phases: []phase{{64, fixed(5 * ms)}}},
		{cpus: 2, texts: 1, max: 16, open: 0.6, phases: []phase{{1, fixed(20 * ms)}}},
	} {
		t.Run(l.name(), func(t *testing.T) {
			rate := l.rate(t, 1)
			pgx := l.direct(t, 1, rate)
			// Everything comes in another order.
			again := l.direct(t, 1, rate, func(d *direct) { d.h.roundTrip = us })
			v := l.judge(pgx, again, rate)
			t.Logf("pgx beside itself: %v", v)
			if !v.passes() {
				t.Errorf("pgx beside itself: %v; want it to pass", v)
			}
			few := l.max * 3 / 4
			if rate > 0 {
				few = l.max * 5 / 8 // they would suffice for all but chance
			}
			if v := l.judge(pgx, l.direct(t, 1, rate, func(d *direct) { d.max = few }), rate); v.passes() {
				t.Errorf("%d connections beside %d: %v; want it to fail", few, l.max, v)
			}
			if rate > 0 {
				return
			}
			stands := l.direct(t, 1, rate)
			stands.counts[5] -= stands.counts[5] / 4
			if v := l.judge(pgx, stands, rate); v.passes() || v.median < enough {
				t.Errorf("one round of less: %v; want that to fail alone", v)
			}
		})
	}
}

// TestLoadsShrink checks that a pool that has grown shrinks again: when the load falls, it
// keeps hardly more connections than one that has never had more to do.
func TestLoadsShrink(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	const idle = 2 * time.Second
	few := phase{2, fixed(5 * ms)}
	kept := func(t *testing.T, phases ...phase) (most, open int) {
		l := &load{cpus: 2, company: Joined, texts: 1, phases: phases}
		synctest.Test(t, func(t *testing.T) {
			p, stop := newPooled(l.host(1), Config{MaxIdleTime: idle}, l.company, l.texts)
			var wg sync.WaitGroup
			wg.Go(func() {
				o := l.run(1, 0, func(who int) func(int, time.Duration) error {
					c := new(pooledCall)
					return func(text int, takes time.Duration) error { return p.call(who, c, text, takes) }
				})
				if o.err != nil {
					t.Error(o.err)
				}
			})
			var end time.Duration
			for i := range phases {
				s := l.span(i)
				end += s.warm + rounds*s.round
			}
			for began := time.Now(); time.Since(began) < end-ms; time.Sleep(ms) { // the bubble's time
				open = p.p.Stats().Open
				most = max(most, open)
			}
			wg.Wait()
			stop()
			time.Sleep(time.Minute) // likewise
		})
		return most, open
	}
	_, want := kept(t, few, few, few)
	for _, many := range []phase{{64, fixed(20 * ms)}, {64, twofold(50*us, 20*ms, 0.5)}} {
		most, open := kept(t, many, few, few, few)
		t.Logf("%dx%v: %d connections, %d in the end; %d where the load was always low", many.callers, many.service, most, open, want)
		if most <= 2*want+2 {
			t.Errorf("%dx%v: %d connections; want more", many.callers, many.service, most)
		}
		if open > 2*want+2 {
			t.Errorf("%dx%v: %d connections of %d are left after %v; want %d, or a few more", many.callers, many.service, open, most, idle, want)
		}
	}
}
