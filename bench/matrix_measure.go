package main

import (
	"context"
	"database/sql"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/bench/internal/stats"
)

// rival is a contender of the matrix. All may have as many connections.
type rival struct {
	name  string
	about string
	open  func(pc *pgx.ConnConfig) (*sql.DB, error)
}

// pgxAgain is the second handle of pgx: its ratios to the first are what the machine
// does to two that are the same.
const pgxAgain = "pgx again"

var rivals = []rival{
	{pgx16, "pgx's database/sql driver, 16 connections: ×1", openRivalPgx},
	{pgxAgain, "another handle of the same, in the same rounds: what two that are equal differ by on this machine", openRivalPgx},
	{byDefault, "flightpg as it is by default, flight_conns=16: the pipelined executor, but through poolers the generic one", openRivalFlight(flightpg.ExecutorAuto)},
	{generic, "flight_executor=generic, flight_conns=16", openRivalFlight(flightpg.ExecutorGeneric)},
}

func rivalNamed(name string) *rival {
	i := slices.IndexFunc(rivals, func(r rival) bool { return r.name == name })
	if i < 0 {
		return nil
	}
	return &rivals[i]
}

func openRivalPgx(pc *pgx.ConnConfig) (*sql.DB, error) {
	db := stdlib.OpenDB(*pc)
	db.SetMaxOpenConns(conns)
	db.SetMaxIdleConns(conns)
	return db, nil
}

func openRivalFlight(e flightpg.Executor) func(*pgx.ConnConfig) (*sql.DB, error) {
	return func(pc *pgx.ConnConfig) (*sql.DB, error) {
		c, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{Executor: e, FlightConns: conns, SessionConns: conns})
		if err != nil {
			return nil, err
		}
		return c.OpenDB(), nil
	}
}

// byDefault is flightpg as it is: the pipelined executor, except where pgx does not
// prepare statements, as through a pooler.
const byDefault = "default"

// handle is an open rival.
type handle struct {
	db      *sql.DB
	dialled atomic.Int64 // connections to the server's port
	opened  atomic.Int64 // those that became sessions; the others carried a cancel request, or failed
}

// newHandle opens a rival that counts its connections.
func newHandle(r *rival, dsn, application string) (*handle, error) {
	dsn, err := named(dsn, application)
	if err != nil {
		return nil, err
	}
	pc, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	h := &handle{}
	dial := pc.DialFunc
	pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		h.dialled.Add(1)
		return dial(ctx, network, addr)
	}
	pc.AfterConnect = func(context.Context, *pgconn.PgConn) error {
		h.opened.Add(1)
		return nil
	}
	h.db, err = r.open(pc)
	return h, err
}

// partFigures are what a part of a shape did in a round. Times are in nanoseconds.
type partFigures struct {
	N      number `json:"n"`
	Rate   number `json:"rate"`
	P50    number `json:"p50_ns"`
	P99    number `json:"p99_ns"`
	CPU    number `json:"cpu_ns"` // of client and server, for all calls of all parts
	Late   number `json:"late"`   // share of what arrived that took longer than tooLate, or was given up
	Offers number `json:"offers"` // arrivals in a second; 0 where each caller calls again at once
}

func (f *partFigures) get(figure string) float64 {
	switch figure {
	case figP50:
		return float64(f.P50)
	case figP99:
		return float64(f.P99)
	}
	return float64(f.Rate)
}

// tooLate is from when on an answer to what has arrived by the clock is late: not
// much for a service, and more than any query of the matrix takes.
const tooLate = 250 * time.Millisecond

// waiting is how many arrivals may be under way: more are given up at once.
const waiting = 4096

// round is what is measured at a time.
type round struct {
	s      *shape
	db     *sql.DB
	length time.Duration
	rate   float64 // arrivals in a second
	seed   uint64
	clock  *clock
	serial *atomic.Int64
	server func() float64 // its CPU time so far, in nanoseconds

	failed  atomic.Bool
	failure error // the first; written by who sets failed
}

// measure lets the callers of all parts work for a while. They end what they have
// begun, and that counts.
func (r *round) measure() ([]partFigures, error) {
	dog := time.AfterFunc(r.length+patience, func() {
		buf := make([]byte, 1<<20)
		fmt.Fprintf(os.Stderr, "bench: %s does not end\n%s\n", r.s.name(), buf[:runtime.Stack(buf, true)])
		os.Exit(1)
	})
	defer dog.Stop()
	runtime.GC()
	figures := make([]partFigures, len(r.s.parts))
	var running sync.WaitGroup
	cpu := r.cpu()
	began := time.Now()
	for i := range r.s.parts {
		p := &r.s.parts[i]
		do := r.callers
		switch {
		case r.rate > 0:
			do = r.arrivals
		case p.waves:
			do = r.waves
		}
		running.Go(func() { figures[i] = do(p, began, r.seed<<8|uint64(i)) })
	}
	running.Wait()
	cpu = r.cpu() - cpu
	for i := range figures {
		figures[i].CPU = number(cpu)
	}
	if r.failed.Load() {
		return nil, r.failure
	}
	return figures, nil
}

// cpu is the time that client and server have had so far.
func (r *round) cpu() float64 { return float64(clientCPU()) + r.server() }

// fail notes an error, which ends the round.
func (r *round) fail(err error) {
	if r.failed.CompareAndSwap(false, true) {
		r.failure = err
	}
}

func (r *round) worker(p *part, seed uint64, i int) *worker {
	return &worker{rng: rand.New(rand.NewPCG(seed, uint64(i))), serial: r.serial, clock: r.clock, part: p}
}

// once makes a call, with a context of its own as a service has one for each request.
func (r *round) once(p *part, w *worker) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := p.call(ctx, r.db, w); err != nil {
		r.fail(err)
	}
}

func figuresOf(hist []stats.Histogram, took time.Duration) partFigures {
	var all stats.Histogram
	for i := range hist {
		all.Merge(&hist[i])
	}
	return partFigures{
		N: number(all.N()), Rate: number(float64(all.N()) / took.Seconds()),
		P50: number(all.Quantile(0.5)), P99: number(all.Quantile(0.99)),
	}
}

// callers call again as soon as they have their answer, in the thirds of the round in
// which they take part.
func (r *round) callers(p *part, began time.Time, seed uint64) partFigures {
	most := slices.Max(p.callers[:])
	hist := make([]stats.Histogram, most)
	var running sync.WaitGroup
	for i := range most {
		w := r.worker(p, seed, i)
		running.Go(func() {
			// Who begins late, on a busy machine, makes a call nevertheless.
			for now, calls := time.Now(), 0; (now.Sub(began) < r.length || calls == 0 && i < p.callers[0]) && !r.failed.Load(); {
				w.phase = min(int(3*now.Sub(began)/r.length), 2)
				if i >= p.callers[w.phase] && now.Sub(began) < r.length {
					next := began.Add(r.length * time.Duration(w.phase+1) / 3)
					time.Sleep(time.Until(next) + time.Microsecond)
					now = time.Now()
					continue
				}
				r.once(p, w)
				calls++
				last := now
				now = time.Now()
				hist[i].Add(now.Sub(last))
				if p.think > 0 {
					time.Sleep(p.think)
					now = time.Now()
				}
			}
		})
	}
	running.Wait()
	return figuresOf(hist, time.Since(began))
}

// waves are callers that call all at once, and again when the last has its answer.
func (r *round) waves(p *part, began time.Time, seed uint64) partFigures {
	n := p.callers[0]
	hist := make([]stats.Histogram, n)
	for wave := 0; (wave == 0 || time.Since(began) < r.length) && !r.failed.Load(); wave++ {
		var running sync.WaitGroup
		start := time.Now()
		for i := range n {
			w := r.worker(p, seed, wave*n+i)
			running.Go(func() {
				r.once(p, w)
				hist[i].Add(time.Since(start))
			})
		}
		running.Wait()
	}
	return figuresOf(hist, time.Since(began))
}

// arrivals come by a Poisson clock, whether those before have their answer or not. What
// a call takes counts from when it should have begun.
func (r *round) arrivals(p *part, began time.Time, seed uint64) partFigures {
	rng := rand.New(rand.NewPCG(seed, math.MaxUint64))
	var mu sync.Mutex // guards hist, late
	var hist [1]stats.Histogram
	late, offers := 0, 0
	var under atomic.Int64
	var running sync.WaitGroup
	for at := time.Duration(0); ; offers++ {
		at += time.Duration(rng.ExpFloat64() / r.rate * float64(time.Second))
		if at >= r.length || r.failed.Load() {
			break
		}
		due := began.Add(at)
		if d := time.Until(due); d > 0 {
			time.Sleep(d)
		}
		if under.Load() >= waiting {
			mu.Lock()
			late++
			mu.Unlock()
			continue
		}
		under.Add(1)
		w := r.worker(p, seed, offers)
		w.phase = min(int(3*at/r.length), 2)
		running.Go(func() {
			r.once(p, w)
			took := time.Since(due)
			under.Add(-1)
			mu.Lock()
			defer mu.Unlock()
			hist[0].Add(took)
			if took > tooLate {
				late++
			}
		})
	}
	running.Wait()
	f := figuresOf(hist[:], time.Since(began))
	f.Late, f.Offers = number(float64(late)/float64(max(offers, 1))), number(float64(offers)/r.length.Seconds())
	return f
}
