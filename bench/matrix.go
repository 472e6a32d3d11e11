package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"sync/atomic"
	"time"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/bench/internal/stats"
)

// The matrix holds flightpg to a promise: no slower than pgx where nothing is shared,
// whatever the load is like. Reading order: matrix_cells.go (what is measured) →
// matrix_calls.go → matrix_measure.go → matrix.go → matrix_report.go.

// matrixOptions are the flags of
//
//	go run . matrix -o ../.cache/bench                the quick form, in less than 6 minutes
//	go run . matrix -full -budget 1h                  all workloads
//	go run . matrix -only 'reference|asleep.*64'      those whose names match, of all
type matrixOptions struct {
	full       bool
	only       string
	budget     time.Duration
	rounds     int
	length     time.Duration
	contenders []string
	out        string
	name       string
	list       bool
	profile    string
}

// matrixMain is the program when its first argument is "matrix".
func matrixMain(args []string) {
	var o matrixOptions
	f := flag.NewFlagSet("matrix", flag.ExitOnError)
	f.BoolVar(&o.full, "full", false, "all workloads: -budget is an hour then")
	f.StringVar(&o.only, "only", "", "a regular expression that the names of workloads match, of all there are")
	f.DurationVar(&o.budget, "budget", 0, "how long it may take, all in all: the length of the rounds follows from it; 5m30s by default")
	f.IntVar(&o.rounds, "rounds", 10, "rounds, after one to warm up")
	f.DurationVar(&o.length, "time", 0, "length of a round, in place of what follows from -budget")
	f.Func("contenders", "their names, with commas (pgx-16 always takes part); all by default", words(&o.contenders))
	f.StringVar(&o.out, "o", "", "a directory for what is written")
	f.StringVar(&o.name, "name", "workloads", "what the written files are called, before .md, .json and .svg")
	f.StringVar(&o.profile, "cpuprofile", "", "file for a profile of CPU time, of all contenders")
	f.BoolVar(&o.list, "list", false, "say what would be measured")
	_ = f.Parse(args) // it exits
	if o.budget == 0 {
		o.budget = 330 * time.Second
		if o.full {
			o.budget = time.Hour
		}
	}
	if f.NArg() > 0 || o.rounds < 1 {
		f.Usage()
		os.Exit(2)
	}
	plan, err := matrixPlan(o.full, o.only)
	if err == nil {
		err = o.check()
	}
	if err != nil {
		fail(err)
	}
	if o.list {
		for i := range plan {
			fmt.Println(plan[i].name())
		}
		fmt.Fprintf(os.Stderr, "%d of %d workloads\n", len(plan), len(shapes()))
		return
	}
	if o.profile != "" {
		to, err := os.Create(o.profile)
		if err == nil {
			err = pprof.StartCPUProfile(to)
		}
		if err != nil {
			fail(err)
		}
	}
	err = runMatrix(context.Background(), &o, plan)
	if o.profile != "" {
		pprof.StopCPUProfile()
	}
	if err != nil {
		fail(err)
	}
}

// check sees to it that pgx is the first contender.
func (o *matrixOptions) check() error {
	if len(o.contenders) == 0 {
		for _, r := range rivals {
			o.contenders = append(o.contenders, r.name)
		}
	}
	for _, name := range o.contenders {
		if rivalNamed(name) == nil {
			return fmt.Errorf("-contenders: there is no %q", name)
		}
	}
	o.contenders = slices.DeleteFunc(o.contenders, func(name string) bool { return name == pgx16 })
	o.contenders = append([]string{pgx16}, o.contenders...)
	return nil
}

// matrix is a run.
type matrix struct {
	*bench
	o      *matrixOptions
	clock  clock
	serial atomic.Int64
	ways   map[way]string // DSNs
	absent map[way]error  // why there is none
	stops  []func()       // of poolers
	rep    *matrixReport
	weight float64       // of the shapes to come
	around time.Duration // what came around the rounds of the last shape, for each
}

// runMatrix measures the shapes and writes the report.
func runMatrix(ctx context.Context, o *matrixOptions, plan []shape) (err error) {
	if err := o.check(); err != nil {
		return err
	}
	m := &matrix{
		bench: &bench{o: &options{rounds: o.rounds}, rep: &report{}, began: time.Now(), family: familyTimes()},
		o:     o, ways: make(map[way]string), absent: make(map[way]error), around: 30 * time.Millisecond,
	}
	m.all, m.busy = machineTimes()
	m.rep = &matrixReport{Meta: newMeta(m.bench.o)}
	defer m.stop()
	if err := m.start(ctx); err != nil {
		return err
	}
	defer m.stopPoolers()
	for _, statement := range matrixSchema {
		if _, err := m.watch.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("making the functions: %w", err)
		}
	}
	if err := m.clock.set(ctx, m.watch); err != nil {
		return fmt.Errorf("what a loop takes: %w", err)
	}
	m.ways[straight] = m.dsns[direct]
	m.rep.Meta.PostgreSQL = m.bench.rep.Meta.PostgreSQL
	for i := range plan {
		m.weight += plan[i].weighed()
	}
	for i := range plan {
		s := &plan[i]
		left := max(o.budget-time.Since(m.began), 0)
		if o.length > 0 {
			left = time.Duration(m.weight * float64(o.length) * m.turns())
		}
		if left == 0 {
			m.rep.Shapes = append(m.rep.Shapes, &shapeResult{Name: s.name(), Skipped: fmt.Sprintf("the %s of -budget were over", o.budget), shape: s})
			m.rep.Shapes[i].print(os.Stdout)
			continue
		}
		fmt.Fprintf(os.Stderr, "%d/%d %s; %s left\n", i+1, len(plan), s.name(), left.Round(time.Second))
		res, err := m.shape(ctx, s)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name(), err)
		}
		m.weight -= s.weighed()
		m.rep.Shapes = append(m.rep.Shapes, res)
		res.print(os.Stdout)
	}
	m.stopPoolers()
	m.stop() // so that the server is among the children that have ended
	m.rep.Meta.Others = m.others()
	m.rep.Meta.Took = time.Since(m.began).Round(time.Second).String()
	fmt.Println()
	fmt.Println(m.rep.summary())
	if o.out == "" {
		return nil
	}
	return m.rep.write(o.out, o.name)
}

// turns is how many rounds are measured of a shape, of all contenders.
func (m *matrix) turns() float64 {
	return float64(len(m.o.contenders)) * (float64(m.o.rounds) + warmUp)
}

// lengthOf returns how long the rounds of a shape may be, so that the run ends when it
// should.
func (m *matrix) lengthOf(s *shape) time.Duration {
	if m.o.length > 0 {
		return time.Duration(float64(m.o.length) * s.weighed())
	}
	left := float64(m.o.budget - time.Since(m.began))
	each := left/(m.turns()*m.weight)*s.weighed() - float64(m.around)
	return min(max(time.Duration(each), 60*time.Millisecond), 3*time.Second).Round(time.Millisecond)
}

// dsnOf returns the DSN of a way to the server. The error matches errNoPooler where it
// leads through what is not installed.
func (m *matrix) dsnOf(ctx context.Context, w way) (string, error) {
	if dsn, ok := m.ways[w]; ok {
		return dsn, nil
	}
	if err := m.absent[w]; err != nil {
		return "", err
	}
	dsn, stop, err := poolers[w].start(ctx, m.ways[straight])
	if err != nil {
		m.absent[w] = err
		return "", err
	}
	m.ways[w] = dsn
	m.stops = append(m.stops, stop)
	return dsn, nil
}

func (m *matrix) stopPoolers() {
	for _, stop := range m.stops {
		stop()
	}
	m.stops = nil
}

// shape measures a shape: all contenders in each round, beginning with another one each
// time.
func (m *matrix) shape(ctx context.Context, s *shape) (*shapeResult, error) {
	res := &shapeResult{Name: s.name(), shape: s}
	dsn, err := m.dsnOf(ctx, s.way)
	if err != nil {
		res.Skipped = fmt.Sprintf("%s: %v", s.way, err)
		if !errors.Is(err, errNoPooler) {
			res.Skipped = fmt.Sprintf("%s does not start: %v", s.way, err)
		}
		return res, nil
	}
	handles := make([]*handle, len(m.o.contenders))
	for i, name := range m.o.contenders {
		h, err := newHandle(rivalNamed(name), dsn, fmt.Sprintf("matrix_%d", i))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		defer h.db.Close()
		handles[i] = h
		res.Results = append(res.Results, rivalResult{Contender: name})
	}
	if s.busy {
		stop, err := busyLoops()
		if err != nil {
			return nil, err
		}
		defer stop()
	}
	length, began := m.lengthOf(s), time.Now()
	res.Length = length.String()
	rate := 0.0
	if s.open > 0 {
		closed := *s
		closed.open = 0
		r := &round{s: &closed, db: handles[0].db, length: length, clock: &m.clock, serial: &m.serial, server: m.serverCPU}
		var rates []float64
		for range 4 {
			f, err := r.measure()
			if err != nil {
				return nil, err
			}
			rates = append(rates, float64(f[0].Rate))
		}
		rate = s.open * stats.Median(rates[1:]) // the first warms up
	}
	rounds := 0
	for n := range m.o.rounds + 1 { // the first warms up
		each := length
		if n == 0 {
			each = time.Duration(float64(length) * warmUp)
		}
		for turn := range handles {
			i := (n + turn) % len(handles)
			h, got := handles[i], &res.Results[i]
			if got.Error != "" {
				continue
			}
			if n == 1 {
				got.First, got.sent = int(h.opened.Load()), int(h.dialled.Load()-h.opened.Load())
				got.before = flightpg.ReadStats(h.db)
			}
			start := time.Now()
			r := &round{s: s, db: h.db, length: each, rate: rate, seed: uint64(n), clock: &m.clock, serial: &m.serial, server: m.serverCPU}
			f, err := r.measure()
			rounds++
			if err != nil {
				got.Error = err.Error()
				fmt.Fprintf(os.Stderr, "  %s: %v\n", got.Contender, err)
				continue
			}
			if n > 0 {
				got.Rounds = append(got.Rounds, f)
				got.took += time.Since(start)
			}
		}
	}
	m.around = max(0, (time.Since(began)-time.Duration(float64(length)*m.turns()))/time.Duration(max(rounds, 1)))
	for i, h := range handles {
		res.Results[i].finish(h)
	}
	res.compare()
	return res, nil
}

// finish notes what a contender did besides.
func (r *rivalResult) finish(h *handle) {
	if r.took > 0 {
		aMinute := float64(time.Minute) / float64(r.took)
		r.Opened = number(float64(int(h.opened.Load())-r.First) * aMinute)
		// A connection that was being opened when the warm-up ended was none yet.
		r.Cancels = number(max(0, float64(int(h.dialled.Load()-h.opened.Load())-r.sent)*aMinute))
	}
	if r.Contender == pgx16 || r.Contender == pgxAgain {
		return
	}
	s := flightpg.ReadStats(h.db)
	bypasses := func(s *flightpg.Stats) (n uint64) {
		for _, b := range s.Bypasses {
			n += b
		}
		return n
	}
	r.Flights, r.Joins = s.Flights-r.before.Flights, s.Joins-r.before.Joins
	r.Bypasses, r.Retries = bypasses(&s)-bypasses(&r.before), s.Retries-r.before.Retries
}

// write writes the report's files into a directory.
func (rep *matrixReport) write(dir, name string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, f := range []struct {
		ending string
		write  func(io.Writer, string) error
	}{{".md", rep.writeMarkdown}, {".json", rep.writeJSON}, {".svg", rep.writeSVG}} {
		to, err := os.Create(filepath.Join(dir, name+f.ending))
		if err != nil {
			return err
		}
		if err := errors.Join(f.write(to, name), to.Close()); err != nil {
			return fmt.Errorf("%s%s: %w", name, f.ending, err)
		}
	}
	fmt.Printf("\nwritten: %[1]s.md, %[1]s.json, %[1]s.svg in %[2]s\n", name, dir)
	return nil
}
