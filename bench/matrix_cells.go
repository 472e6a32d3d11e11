package main

import (
	"fmt"
	"regexp"
	"slices"
	"time"
)

// shape is one workload of the matrix. Nothing in it is shared: no two calls that are
// under way are the same.
type shape struct {
	group, label string
	quick        bool // in the quick form too
	parts        []part
	way          way
	open         float64 // calls arrive by a clock, at this share of the rate that pgx serves; 0: each caller calls again at once
	busy         bool    // two busy loops a core run beside
	weight       float64 // of its rounds' length; 0 is 1
	strict       bool    // generic must reach 0.95
}

func (s *shape) name() string { return s.group + ": " + s.label }

// weighed is how long its rounds are, beside others'.
func (s *shape) weighed() float64 {
	if s.weight == 0 {
		return 1
	}
	return s.weight
}

// limit is the ratio to pgx below which a figure is marked.
func (s *shape) limit(contender string) float64 {
	if s.strict && contender == generic {
		return 0.95
	}
	return 0.9
}

// part is callers that do the same.
type part struct {
	name    string
	callers [3]int // in each third of a round
	call    call
	think   time.Duration // pause of a caller after each call
	waves   bool          // all call at once, and again when all have their answer
	figures []string      // what counts: figRate by default
}

// Figures of a part. All are written as ratios in which more is better: the rate over
// pgx's, and pgx's times over ours.
const (
	figRate = "rate"
	figP50  = "p50"
	figP99  = "p99"
)

// counted returns what counts of a part.
func (p *part) counted() []string {
	if len(p.figures) == 0 {
		return []string{figRate}
	}
	return p.figures
}

func always(n int) [3]int { return [3]int{n, n, n} }

// of is callers of one kind.
func of(n int, c call) []part { return []part{{callers: always(n), call: c}} }

// arriving is what comes by a clock, in place of callers. The rate is that which pgx
// serves 16 callers.
func arriving(c call) []part {
	return []part{{callers: always(conns), call: c, figures: []string{figP50, figP99}}}
}

// way is how a shape's contenders reach the server.
type way string

const (
	straight   way = ""
	pgBouncer  way = "PgBouncer" // transaction pooling, default_query_exec_mode=exec
	pgpoolTwo  way = "Pgpool-II"
	streamRows     = 20_000 // 20 MB
)

const ms = time.Millisecond

// shapes is the matrix.
func shapes() []shape {
	var all []shape
	add := func(s shape) { all = append(all, s) }

	// What was found to be slow once comes first: it is measured in any case.
	const reference = "reference"
	for _, n := range []int{16, 64, 256} {
		waves := []part{{callers: always(n), call: neverRepeated(asleep, fixed(20*ms)), waves: true, figures: []string{figRate, figP50}}}
		add(shape{group: reference, label: fmt.Sprintf("distinct waves of %d", n), quick: n == 64, parts: waves})
	}
	for _, n := range []int{8, 32} {
		fast := part{name: "fast", callers: always(n), call: argument(1), think: ms, figures: []string{figP50, figP99}}
		slow := part{name: "slow", callers: always(n), call: neverRepeated(asleep, fixed(20*ms))}
		add(shape{group: reference, label: fmt.Sprintf("mixed %d fast %d slow", n, n), quick: true, parts: []part{fast, slow}})
	}

	const rows = "unique rows"
	for _, n := range []int{1, 4, 16, 64, 256, 1024} {
		add(shape{group: rows, label: fmt.Sprintf("%d callers", n), quick: n != 4 && n != 1024, strict: n <= 256, parts: of(n, uniqueRow(1))})
	}

	const sleeps = "asleep, fixed"
	for _, n := range []int{16, 64} {
		for _, d := range []time.Duration{ms, 5 * ms, 20 * ms, 100 * ms} {
			s := shape{group: sleeps, label: fmt.Sprintf("%s %d callers", in(d), n), parts: of(n, takes(asleep, fixed(d)))}
			s.quick = n == 64 && d != 5*ms || n == 16 && d == 20*ms
			if d == 100*ms {
				s.weight = 2
			}
			add(s)
		}
	}
	for _, n := range []int{1, 4, 256, 1024} {
		add(shape{group: sleeps, label: fmt.Sprintf("%s %d callers", in(5*ms), n), parts: of(n, takes(asleep, fixed(5*ms)))})
	}

	for _, kind := range []struct {
		group string
		s     service
	}{{"CPU, user's function", spun}, {"CPU, built-in functions", builtIn}} {
		for _, d := range []time.Duration{ms / 20, 3 * ms / 10, ms, 5 * ms, 20 * ms, 100 * ms} {
			s := shape{group: kind.group, label: in(d) + " 16 callers", parts: of(16, takes(kind.s, fixed(d)))}
			s.quick = d == 3*ms/10 || d == 5*ms
			switch d {
			case 20 * ms:
				s.weight = 2
			case 100 * ms: // 16 of them take the two CPUs of a small machine for 0.8 s
				s.weight, s.parts = 4, of(4, takes(kind.s, fixed(d)))
				s.label = in(d) + " 4 callers"
			}
			add(s)
		}
		for _, d := range []time.Duration{3 * ms / 10, 5 * ms} {
			add(shape{group: kind.group, label: in(d) + " 64 callers", parts: of(64, takes(kind.s, fixed(d)))})
		}
	}

	const texts = "texts"
	for _, n := range []int{16, 256, 1000} {
		add(shape{group: texts, label: fmt.Sprintf("%d rows 64 callers", n), quick: n == 256, parts: of(64, uniqueRow(n))})
	}
	add(shape{group: texts, label: "distinct texts rows 16 callers", parts: of(16, uniqueRow(0))})
	add(shape{group: texts, label: "distinct texts rows 64 callers", quick: true, parts: of(64, uniqueRow(0))})
	for _, n := range []int{16, 256} {
		add(shape{group: texts, label: fmt.Sprintf("%d asleep 5 ms 64 callers", n), parts: of(64, takes(asleep, among(n, fixed(5*ms))))})
	}
	add(shape{group: texts, label: "distinct texts asleep 5 ms 64 callers", parts: of(64, neverRepeated(asleep, fixed(5*ms)))})
	add(shape{group: texts, label: "distinct texts asleep 20 ms 16 callers", quick: true, parts: of(16, neverRepeated(asleep, fixed(20*ms)))})
	add(shape{group: texts, label: "distinct texts 1 ms built-in 16 callers", quick: true, parts: of(16, neverRepeated(builtIn, fixed(ms)))})
	add(shape{group: texts, label: "distinct texts 1 ms spun 16 callers", parts: of(16, neverRepeated(spun, fixed(ms)))})

	for _, percent := range []float64{1, 2, 10, 50, 90, 95, 99} {
		quick := percent == 2 || percent == 50 || percent == 95
		add(shape{group: "some slow, within a text", label: fmt.Sprintf("%g %% asleep 20 ms 64 callers", percent), quick: quick, parts: of(64, takes(asleep, bimodal(percent, 20*ms, false)))})
	}
	for _, percent := range []float64{1, 2, 10, 50, 90, 95, 99} {
		quick := percent == 2 || percent == 50
		add(shape{group: "some slow, by text", label: fmt.Sprintf("%g %% asleep 20 ms 64 callers", percent), quick: quick, parts: of(64, takes(asleep, bimodal(percent, 20*ms, true)))})
	}
	for _, percent := range []float64{2, 10, 50} {
		add(shape{group: "some slow, built-in", label: fmt.Sprintf("%g %% CPU 20 ms within", percent), quick: percent == 2, weight: 1.5, parts: of(64, takes(builtIn, bimodal(percent, 20*ms, false)))})
	}
	for _, percent := range []float64{2, 10, 50} {
		add(shape{group: "some slow, built-in", label: fmt.Sprintf("%g %% CPU 20 ms by text", percent), weight: 1.5, parts: of(64, takes(builtIn, bimodal(percent, 20*ms, true)))})
	}

	const tails = "tails"
	add(shape{group: tails, label: "exponential asleep 5 ms", quick: true, parts: of(64, takes(asleep, exponential(5*ms)))})
	add(shape{group: tails, label: "exponential asleep by text", parts: of(64, takes(asleep, ofText(16, exponential(5*ms))))})
	add(shape{group: tails, label: "exponential built-in 1 ms", parts: of(64, takes(builtIn, exponential(ms)))})
	add(shape{group: tails, label: "Pareto asleep 2 ms", parts: of(64, takes(asleep, pareto(2*ms)))})
	add(shape{group: tails, label: "Pareto asleep by text", parts: of(64, takes(asleep, ofText(16, pareto(2*ms))))})
	add(shape{group: tails, label: "Pareto built-in 0.1 ms", quick: true, parts: of(64, takes(builtIn, pareto(ms/10)))})
	add(shape{group: tails, label: "Pareto spun 0.1 ms", parts: of(64, takes(spun, pareto(ms/10)))})

	for _, size := range []struct {
		label string
		bytes int
		n     int
	}{{"10 B", 10, 16}, {"1 kB", 1000, 16}, {"10 kB", 10_000, 16}, {"100 kB", 100_000, 16}, {"1 MB", 1_000_000, 16}, {"10 kB", 10_000, 64}} {
		add(shape{group: "arguments", label: fmt.Sprintf("%s %d callers", size.label, size.n), quick: size.bytes == 100_000, parts: of(size.n, argument(size.bytes))})
	}

	const results = "results"
	add(shape{group: results, label: "100 kB 16 callers", parts: of(16, stream(100, reads))})
	add(shape{group: results, label: "1 MB 16 callers", parts: of(16, stream(1000, reads))})
	add(shape{group: results, label: "20 MB 4 callers", weight: 2, parts: of(4, stream(streamRows, reads))})
	for _, how := range []struct {
		label string
		r     reader
	}{{"20 MB read", reads}, {"20 MB pausing", pauses}, {"20 MB closed early", stops}, {"20 MB cancelled early", cancels}} {
		small := part{name: "small reads", callers: always(16), call: uniqueRow(1)}
		large := part{name: "streams", callers: always(4), call: stream(streamRows, how.r)}
		add(shape{group: results, label: how.label, quick: how.r == pauses, weight: 2, parts: []part{small, large}})
	}

	const open = "arrivals"
	for _, s := range []shape{
		{label: "rows", open: 0.6, quick: true, parts: arriving(uniqueRow(1))},
		{label: "rows distinct texts", open: 0.5, parts: arriving(uniqueRow(0))},
		{label: "asleep 5 ms", open: 0.6, quick: true, parts: arriving(takes(asleep, fixed(5*ms)))},
		{label: "2 % asleep 20 ms", open: 0.6, quick: true, parts: arriving(takes(asleep, bimodal(2, 20*ms, false)))},
		{label: "50 % asleep 20 ms", open: 0.6, parts: arriving(takes(asleep, bimodal(50, 20*ms, true)))},
		{label: "distinct texts asleep 20 ms", open: 0.7, parts: arriving(neverRepeated(asleep, fixed(20*ms)))},
		{label: "built-in 1 ms", open: 0.6, parts: arriving(takes(builtIn, fixed(ms)))},
		{label: "spun 1 ms", open: 0.6, parts: arriving(takes(spun, fixed(ms)))},
		{label: "Pareto asleep 2 ms", open: 0.7, parts: arriving(takes(asleep, pareto(2*ms)))},
	} {
		s.group = open
		add(s)
	}

	const changes = "load that changes"
	surge := [3]int{16, 256, 16}
	add(shape{group: changes, label: "16, 256, 16 callers rows", quick: true, weight: 1.5, parts: []part{{callers: surge, call: uniqueRow(1)}}})
	add(shape{group: changes, label: "16, 256, 16 callers asleep 5 ms", weight: 1.5, parts: []part{{callers: surge, call: takes(asleep, fixed(5*ms))}}})
	for _, n := range []int{16, 64} {
		add(shape{group: changes, label: fmt.Sprintf("0, 20, 0 ms asleep %d callers", n), quick: n == 64, weight: 1.5, parts: of(n, takes(asleep, byPhase(fixed(0), fixed(20*ms), fixed(0))))})
	}
	add(shape{group: changes, label: "0, 5, 0 ms built-in 64 callers", weight: 1.5, parts: of(64, takes(builtIn, byPhase(fixed(0), fixed(5*ms), fixed(0))))})

	const busy = "busy loops beside"
	for _, s := range []shape{
		{label: "rows 16 callers", quick: true, parts: of(16, uniqueRow(1))},
		{label: "rows 64 callers", parts: of(64, uniqueRow(1))},
		{label: "asleep 5 ms 16 callers", parts: of(16, takes(asleep, fixed(5*ms)))},
		{label: "asleep 5 ms 64 callers", parts: of(64, takes(asleep, fixed(5*ms)))},
		{label: "2 % asleep 20 ms 64 callers", quick: true, parts: of(64, takes(asleep, bimodal(2, 20*ms, false)))},
		{label: "distinct texts asleep 20 ms", parts: of(16, neverRepeated(asleep, fixed(20*ms)))},
		{label: "arrivals rows", open: 0.5, parts: arriving(uniqueRow(1))},
		{label: "arrivals asleep 5 ms", open: 0.6, parts: arriving(takes(asleep, fixed(5*ms)))},
	} {
		s.group, s.busy, s.weight = busy, true, 1.5
		add(s)
	}

	for _, w := range []way{pgBouncer, pgpoolTwo} {
		for _, s := range []shape{
			{label: "rows 1 caller", parts: of(1, uniqueRow(1))},
			{label: "rows 16 callers", parts: of(16, uniqueRow(1))},
			{label: "rows 64 callers", quick: true, parts: of(64, uniqueRow(1))},
			{label: "asleep 5 ms 64 callers", parts: of(64, takes(asleep, fixed(5*ms)))},
			{label: "10 % asleep 20 ms 64 callers", parts: of(64, takes(asleep, bimodal(10, 20*ms, false)))},
			{label: "distinct texts asleep 20 ms", quick: w == pgBouncer, parts: of(16, neverRepeated(asleep, fixed(20*ms)))},
		} {
			s.group, s.way = "through "+string(w), w
			add(s)
		}
	}
	return all
}

// in writes a duration as the labels do.
func in(d time.Duration) string { return fmt.Sprintf("%g ms", float64(d)/float64(ms)) }

// matrixPlan returns the shapes whose name matches: of the quick form, or with full or
// a pattern of all.
func matrixPlan(full bool, only string) ([]shape, error) {
	match, err := regexp.Compile(only)
	if err != nil {
		return nil, fmt.Errorf("-only: %w", err)
	}
	all := slices.DeleteFunc(shapes(), func(s shape) bool {
		return !match.MatchString(s.name()) || !full && only == "" && !s.quick
	})
	if len(all) == 0 {
		return nil, fmt.Errorf("-only %s: no workload has such a name", only)
	}
	return all, nil
}
