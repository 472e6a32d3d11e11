package main

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flightpg/flightpg/bench/internal/stats"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// figures are what one measurement gave. Times are in nanoseconds; those per
// operation, and the allocations, are of all classes together. What could not be
// measured is NaN.
type figures struct {
	N         float64
	Seconds   float64
	Rate      float64 // operations of the first class in a second
	P50, P99  float64 // of it
	ClientCPU float64 // for an operation
	ServerCPU float64
	Allocs    float64
	Bytes     float64
	SlowRate  float64 // of the second class
	SlowP99   float64
}

// bench is a run.
type bench struct {
	o      *options
	rep    *report
	server *pgtest.Server // nil with -dsn
	watch  *sql.DB        // for questions about the server
	dsns   map[string]string
	links  []*exec.Cmd
	stdins []*os.File

	began          time.Time
	all, busy      float64       // the machine's times then, and
	family         float64       // this process's with its children's
	planned, done  float64       // in measurements
	took, measured time.Duration // by the cells so far; and by the measurements in them
	hist           map[int][]stats.Histogram
}

// start makes the server ready, and the proxies.
func (b *bench) start(ctx context.Context) error {
	dsn := b.o.dsn
	if dsn == "" {
		s, err := pgtest.Start(ctx, pgtest.WithSetting("max_connections", "400"))
		if err != nil {
			return err
		}
		b.server, dsn = s, s.DSN()
	}
	b.dsns = map[string]string{direct: dsn}
	var err error
	if b.watch, err = sql.Open("pgx", dsn); err != nil {
		return err
	}
	b.watch.SetMaxOpenConns(1)
	if err := prepareDatabase(ctx, b.watch); err != nil {
		return err
	}
	return b.watch.QueryRowContext(ctx, "SHOW server_version").Scan(&b.rep.Meta.PostgreSQL)
}

// others returns the share of the machine's CPUs that was not this benchmark's, nor
// idle: NaN if nobody knows.
func (b *bench) others() number {
	all, busy := machineTimes()
	return number((busy - b.busy - (familyTimes() - b.family)) / (all - b.all)) // 0/0 where they are not known
}

// stop ends the server and the proxies. Only the first call does anything.
func (b *bench) stop() {
	if b.watch != nil {
		_ = b.watch.Close()
	}
	for i, l := range b.links {
		_ = b.stdins[i].Close() // its sign to end
		_ = l.Wait()
	}
	b.links = nil
	if b.server != nil {
		if err := b.server.Stop(); err != nil {
			fmt.Fprintln(os.Stderr, "bench:", err)
		}
	}
}

// dsn returns the DSN for a way to the server.
func (b *bench) dsn(link string) (string, error) {
	if dsn, ok := b.dsns[link]; ok {
		return dsn, nil
	}
	delay := time.Duration(0)
	if link == delayed {
		delay = oneWay
	}
	u, err := url.Parse(b.dsns[direct])
	if err != nil || u.Host == "" || strings.HasPrefix(u.Host, "/") {
		return "", fmt.Errorf("the proxy needs a DSN that is a URL with a host")
	}
	addr, err := b.proxy(u.Host, delay)
	if err != nil {
		return "", err
	}
	u.Host = addr
	b.dsns[link] = u.String()
	return b.dsns[link], nil
}

// schedule notes what is to be done.
func (b *bench) schedule(cells []*cell) {
	for _, c := range cells {
		b.planned += b.work(c)
	}
}

// work is what a cell takes, in measurements.
func (b *bench) work(c *cell) float64 {
	return float64(len(c.Contenders)) * (float64(b.o.rounds) + warmUp)
}

// warmUp is how long the round before the first is, of the others' length.
const warmUp = 0.5

// lengthNow returns how long a measurement of the next cell may take, so that the
// run ends when it should: what comes around each (connecting, garbage collection,
// operations that end later) takes as long as it did so far.
func (b *bench) lengthNow() time.Duration {
	if b.o.length > 0 {
		return b.o.length
	}
	around := 80 * time.Millisecond
	if b.done > 0 {
		around = time.Duration(float64(b.took-b.measured) / b.done)
	}
	left := b.o.budget - time.Since(b.began)
	each := time.Duration(float64(left)/(b.planned-b.done)) - around
	return min(max(each, 100*time.Millisecond), 3*time.Second).Round(time.Millisecond)
}

// left says how much longer the cells take, by what they have taken so far.
func (b *bench) left() string {
	if b.done == 0 {
		return ""
	}
	left := time.Duration(float64(b.took) * (b.planned - b.done) / b.done)
	if b.o.length == 0 {
		left = max(b.o.budget-time.Since(b.began), 0)
	}
	return "; " + left.Round(time.Second).String() + " left"
}

// cell measures a cell: all contenders in each round, beginning with another one
// each time.
func (b *bench) cell(ctx context.Context, c *cell) (*cellResult, error) {
	fmt.Fprintf(os.Stderr, "%s%s\n", c, b.left())
	dsn, err := b.dsn(c.Link)
	if err != nil {
		return nil, err
	}
	began, length := time.Now(), b.lengthNow()
	defer func() {
		b.took += time.Since(began)
		b.measured += time.Duration(b.work(c) * float64(length))
		b.done += b.work(c)
	}()
	res := &cellResult{cell: *c, Length: length.String()}
	clients := make([]client, len(c.Contenders))
	for i, name := range c.Contenders {
		// The name tells the connections of one cell from those of another.
		app := fmt.Sprintf("bench_%d_%s", len(b.rep.Cells), name)
		named, err := named(dsn, app)
		if err != nil {
			return nil, err
		}
		if clients[i], err = contenderNamed(name).open(ctx, named); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		defer clients[i].close()
		res.Results = append(res.Results, contenderResult{Contender: name, app: app, Backends: math.NaN(), profile: make(profiled)})
	}
	w := workloadNamed(c.Workload)
	for round := range b.o.rounds + 1 { // the first warms up
		each := length
		if round == 0 {
			each = time.Duration(float64(length) * warmUp)
		}
		for turn := range clients {
			i := (round + turn) % len(clients)
			r := &res.Results[i]
			if r.Error != "" {
				continue
			}
			measure := func() (figures, error) { return b.measure(w, clients[i], c, each, uint64(round)) }
			if b.o.profile && round > 0 {
				plain := measure
				measure = func() (figures, error) { return r.profile.profiling(plain) }
			}
			f, err := measure()
			if err != nil {
				// The others' figures stand.
				r.Error = err.Error()
				fmt.Fprintf(os.Stderr, "  %s: %v\n", r.Contender, err)
				continue
			}
			if round > 0 {
				r.Rounds = append(r.Rounds, f)
			}
		}
	}
	for i := range res.Results {
		r := &res.Results[i]
		if contenderNamed(r.Contender).reads {
			continue
		}
		var n int
		if err := b.watch.QueryRowContext(ctx, "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1", r.app).Scan(&n); err == nil {
			r.Backends = float64(n)
		}
	}
	res.compare()
	return res, nil
}

// patience is how much longer than it should a measurement may take before the
// run ends with the stacks of all goroutines.
const patience = 2 * time.Minute

// measure lets the goroutines of a cell work for a while. They end what they have
// begun, and that counts.
func (b *bench) measure(w *workload, cl client, c *cell, length time.Duration, round uint64) (figures, error) {
	counts := make([]int, len(w.classes))
	total := 0
	for i := range w.classes {
		if counts[i] = w.classes[i].goroutines; counts[i] == 0 {
			counts[i] = c.Goroutines
		}
		total += counts[i]
	}
	hist := b.histograms(total)
	var stop atomic.Bool
	var failure atomic.Pointer[error]
	start := make(chan struct{})
	var running sync.WaitGroup
	at := 0
	for i := range w.classes {
		next := w.classes[i].next
		for range counts[i] {
			h := &hist[at]
			me := &caller{
				rng:  rand.New(rand.NewPCG(round, uint64(at))),
				keys: int64(rowCount / total),
			}
			me.first = 1 + int64(at)*me.keys
			me.n = me.rng.Int64N(me.keys)
			running.Go(func() {
				<-start
				last := time.Now()
				for !stop.Load() {
					var o op
					next(me, &o)
					if err := callOnce(cl, c.Context, &o); err != nil {
						failure.CompareAndSwap(nil, &err)
						return
					}
					now := time.Now()
					h.Add(now.Sub(last))
					last = now
				}
			})
			at++
		}
	}
	dog := time.AfterFunc(length+patience, func() {
		buf := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "bench: %s does not end\n%s\n", c, buf[:runtime.Stack(buf, true)])
		os.Exit(1)
	})
	defer dog.Stop()

	runtime.GC()
	var before, after runtime.MemStats
	server := b.serverCPU()
	runtime.ReadMemStats(&before)
	cpu := clientCPU()
	began := time.Now()
	close(start)
	time.Sleep(length)
	stop.Store(true)
	running.Wait()
	took := time.Since(began)
	cpu = clientCPU() - cpu
	runtime.ReadMemStats(&after)
	server = b.serverCPU() - server
	if err := failure.Load(); err != nil {
		return figures{}, *err
	}

	var all [2]stats.Histogram
	at = 0
	for i := range w.classes {
		for range counts[i] {
			all[min(i, 1)].Merge(&hist[at])
			at++
		}
	}
	n := float64(all[0].N() + all[1].N())
	f := figures{
		N:         n,
		Seconds:   took.Seconds(),
		Rate:      float64(all[0].N()) / took.Seconds(),
		P50:       all[0].Quantile(0.5),
		P99:       all[0].Quantile(0.99),
		ClientCPU: float64(cpu) / n,
		ServerCPU: server / n,
		Allocs:    float64(after.Mallocs-before.Mallocs) / n,
		Bytes:     float64(after.TotalAlloc-before.TotalAlloc) / n,
		SlowRate:  math.NaN(),
		SlowP99:   math.NaN(),
	}
	if len(w.classes) > 1 {
		f.SlowRate = float64(all[1].N()) / took.Seconds()
		f.SlowP99 = all[1].Quantile(0.99)
	}
	return f, nil
}

// callOnce does an operation with a context of the cell's kind.
func callOnce(cl client, kind string, o *op) error {
	ctx := context.Background()
	if kind == timeout {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Minute)
		defer cancel()
	}
	return cl.do(ctx, o)
}

// histograms returns empty ones, which are used again in the next measurement.
func (b *bench) histograms(n int) []stats.Histogram {
	if b.hist == nil {
		b.hist = make(map[int][]stats.Histogram)
	}
	h := b.hist[n]
	if h == nil {
		clear(b.hist) // those of the last cell
		h = make([]stats.Histogram, n)
		b.hist[n] = h
	}
	for i := range h {
		h[i].Reset()
	}
	return h
}
