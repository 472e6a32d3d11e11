package main

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	xsync "golang.org/x/sync/singleflight"
	resenje "resenje.org/singleflight"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/bench/internal/stats"
	"github.com/flightpg/flightpg/internal/flight"
)

// Parts of the driver alone, and what others have in their place.

// layerResult is a figure of a part, from each round.
type layerResult struct {
	What      string    `json:"what"`
	Contender string    `json:"contender"`
	Rounds    []float64 `json:"rounds"`
}

const (
	layerDistinct256  = "distinct keys, 256 goroutines, calls/s"
	layerDistinct400k = "distinct keys, 400,000 goroutines, calls/s"
	layerWaiterKB     = "400,000 waiters on one flight, KB each"
	layerWaiterLast   = "400,000 waiters on one flight, s until the last has returned"
	layerReaderKB     = "400,000 readers of one row through the driver over a stub, KB each"
	layerReaderLast   = "400,000 readers of one row through the driver over a stub, s until the last has returned"
	layerLateness     = "a cancelled caller's lateness, p99 over a bare timer's, ms"
	layerTableCost    = "flight table, a leader alone, µs over a call of the execution"
	layerTableAllocs  = "flight table, a leader alone, allocations over a call of the execution"
	layerDriverCost   = "driver over a stub, unique keys, µs over the stub"
	layerDriverAllocs = "driver over a stub, unique keys, allocations over the stub"

	layerBareClient = "a unique read in bare groups of 16, µs of the client's CPU"
	layerBareServer = "a unique read in bare groups of 16, µs of the server's CPU"

	layerBare    = "bare groups"
	layerOurs    = "flightpg"
	layerXSync   = "x/sync singleflight"
	layerResenje = "resenje.org/singleflight"
)

func (rep *report) layer(what, contender string) []float64 {
	for _, l := range rep.Layers {
		if l.What == what && l.Contender == contender {
			return l.Rounds
		}
	}
	return nil
}

func (rep *report) addLayer(what, contender string, v float64) {
	if math.IsNaN(v) {
		return
	}
	for i := range rep.Layers {
		if l := &rep.Layers[i]; l.What == what && l.Contender == contender {
			l.Rounds = append(l.Rounds, v)
			return
		}
	}
	rep.Layers = append(rep.Layers, layerResult{what, contender, []float64{v}})
}

// layerRounds is how often the parts are measured, at most.
const layerRounds = 3

// many400k is what the targets mean by many.
const many400k = 400_000

// layers measures the parts.
func (b *bench) layers(ctx context.Context) error {
	tables := []string{layerOurs, layerXSync, layerResenje}
	began := time.Now()
	for round := range layerRounds {
		if took := time.Since(began); round > 0 && took+took/time.Duration(round) > b.o.budget/4 {
			break // on a slow or busy machine: the workloads need the time
		}
		fmt.Fprintf(os.Stderr, "parts alone, round %d of %d\n", round+1, layerRounds)
		for turn := range tables {
			name := tables[(round+turn)%len(tables)]
			// In a process of its own: the runtime keeps goroutines for later.
			for _, part := range []struct {
				what  string
				names []string
			}{
				{"distinct 256 2000", []string{layerDistinct256}},
				{fmt.Sprint("distinct ", many400k, " 5"), []string{layerDistinct400k}},
				{fmt.Sprint("waiters ", many400k), []string{layerWaiterKB, layerWaiterLast}},
			} {
				if err := b.inProcess(ctx, part.what+" "+name, name, part.names...); err != nil {
					return err
				}
			}
		}
		if err := b.inProcess(ctx, fmt.Sprint("readers ", many400k), layerOurs, layerReaderKB, layerReaderLast); err != nil {
			return err
		}
		if err := b.floors(ctx); err != nil {
			return err
		}
		cost, allocs := tableCost(costCalls)
		b.rep.addLayer(layerTableCost, layerOurs, cost)
		b.rep.addLayer(layerTableAllocs, layerOurs, allocs)
		cost, allocs, err := driverCost(costCalls)
		if err != nil {
			return err
		}
		b.rep.addLayer(layerDriverCost, layerOurs, cost)
		b.rep.addLayer(layerDriverAllocs, layerOurs, allocs)
		for _, c := range []struct {
			name     string
			executor flightpg.Executor
		}{{layerOurs, flightpg.ExecutorPipeline}, {"flightpg, generic executor", flightpg.ExecutorGeneric}} {
			late, err := lateness(ctx, b.dsns[direct], c.executor)
			if err != nil {
				return err
			}
			b.rep.addLayer(layerLateness, c.name, late)
		}
	}
	for _, l := range b.rep.Layers {
		fmt.Printf("%-72s %-28s %s [%s–%s]\n", l.What, l.Contender, short(stats.Median(l.Rounds)), short(stats.Quantile(l.Rounds, 0)), short(stats.Quantile(l.Rounds, 1)))
	}
	return nil
}

// envLayer makes this program measure one part, and write its figures as JSON.
const envLayer = "FLIGHTPG_BENCH_LAYER"

// inProcess measures a part in a process of its own, and notes its figures under
// their names.
func (b *bench) inProcess(ctx context.Context, part, contender string, names ...string) error {
	values, err := inProcess(ctx, part)
	if err != nil {
		return fmt.Errorf("%s: %w", part, err)
	}
	for i, name := range names {
		b.rep.addLayer(name, contender, values[i])
	}
	return nil
}

func inProcess(ctx context.Context, part string) (values []float64, err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), envLayer+"="+part)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, err
	}
	return values, json.Unmarshal(out, &values)
}

// layered measures a part if this process is for that.
func layered() bool {
	part := os.Getenv(envLayer)
	if part == "" {
		return false
	}
	f := strings.SplitN(part, " ", 3)
	n, err := strconv.Atoi(f[1])
	if err != nil {
		fail(err)
	}
	var values []float64
	switch f[0] {
	case "distinct":
		calls, name, _ := strings.Cut(f[2], " ")
		each, err := strconv.Atoi(calls)
		if err != nil {
			fail(err)
		}
		values = []float64{distinct(newTable(name), n, each)}
	case "waiters":
		t := newTable(f[2])
		kb, last := waiters(n, nil, func(run func()) func() { return t.caller(0, run) })
		values = []float64{kb, last}
	case "readers":
		kb, last, err := readers(n)
		if err != nil {
			fail(err)
		}
		values = []float64{kb, last}
	}
	if err := json.NewEncoder(os.Stdout).Encode(values); err != nil {
		fail(err)
	}
	return true
}

// table is a way to run something once for all who ask meanwhile.
type table interface {
	// caller returns a function for one goroutine, which calls run for the key
	// number i, or waits for who does.
	caller(i int, run func()) func()
}

func newTable(name string) table {
	switch name {
	case layerXSync:
		return &xsyncTable{}
	case layerResenje:
		return &resenjeTable{}
	}
	return &ourTable{flight.New[nothing](new(flight.Epoch), flight.Options{Width: 2})}
}

type xsyncTable struct{ g xsync.Group }

func (t *xsyncTable) caller(i int, run func()) func() {
	key := strconv.Itoa(i)
	return func() {
		_, _, _ = t.g.Do(key, func() (any, error) { run(); return nil, nil })
	}
}

type resenjeTable struct {
	g resenje.Group[string, struct{}]
}

func (t *resenjeTable) caller(i int, run func()) func() {
	key := strconv.Itoa(i)
	return func() {
		_, _, _ = t.g.Do(context.Background(), key, func(context.Context) (struct{}, error) { run(); return struct{}{}, nil })
	}
}

type ourTable struct{ t *flight.Table[nothing] }

func (t *ourTable) caller(i int, run func()) func() {
	args := binary.BigEndian.AppendUint64(nil, uint64(i))
	r := &stubRunner{run}
	return func() {
		f, leader := t.t.Enter(flight.Key{Text: rowText, Args: args}, flight.Join)
		if leader {
			_, _ = f.Lead(context.Background(), r)
		} else {
			_, _ = f.Wait(context.Background())
		}
	}
}

// nothing is a flight.Value.
type nothing struct{}

func (nothing) Share(int)           {}
func (nothing) Keep() (int64, bool) { return 0, false }
func (nothing) Retain()             {}
func (nothing) Drop()               {}

// stubRunner is a flight.Inline.
type stubRunner struct{ run func() }

func (r *stubRunner) Run(_ context.Context, f *flight.Flight[nothing]) (nothing, error) {
	if !f.Dispatch() {
		return nothing{}, flight.ErrAbandoned
	}
	r.run()
	return nothing{}, nil
}

func (r *stubRunner) RunInline(ctx context.Context, f *flight.Flight[nothing]) (v nothing, err error, more bool) { //nolint:revive // as flight has it
	v, err = r.Run(ctx, f)
	return v, err, false
}

func (r *stubRunner) Detach() {}

// distinct returns how many calls a second n goroutines make, each with a key of
// its own.
func distinct(t table, n, calls int) float64 {
	start := make(chan struct{})
	var ready, running sync.WaitGroup
	for i := range n {
		call := t.caller(i, func() {})
		ready.Add(1)
		running.Go(func() {
			call() // has its stack now
			ready.Done()
			<-start
			for range calls {
				call()
			}
		})
	}
	ready.Wait()
	runtime.GC()
	began := time.Now()
	close(start)
	running.Wait()
	return float64(n) * float64(calls) / time.Since(began).Seconds()
}

// waiters lets n callers wait for one execution, and returns what each takes in
// memory and how long it takes until the last has returned. joined says that all of them
// wait, if anything does: nil counts the goroutines that do.
func waiters(n int, joined func() bool, caller func(run func()) func()) (kb, last float64) {
	landing, running := make(chan struct{}), make(chan struct{})
	lead := caller(func() { close(running); <-landing })
	var all sync.WaitGroup
	all.Go(lead)
	<-running
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		all.Go(func() { caller(func() {})() })
	}
	for parked() < uint64(n) || joined != nil && !joined() {
		time.Sleep(time.Millisecond)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	kb = float64(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse) / float64(n) / 1024
	began := time.Now()
	close(landing)
	all.Wait()
	return kb, time.Since(began).Seconds()
}

// readers is waiters through database/sql and the whole driver, over a stub that
// answers when it is told to.
func readers(n int) (kb, last float64, err error) {
	inner := &ceiling{}
	c, err := flightpg.Wrap(inner, flightpg.Config{TrustNames: []string{"*"}})
	if err != nil {
		return 0, 0, err
	}
	db := c.OpenDB()
	defer db.Close()
	var failure atomic.Pointer[error]
	joined := func() bool { return c.Stats().Joins >= uint64(n) }
	kb, last = waiters(n, joined, func(run func()) func() {
		if inner.answers == nil {
			inner.answers = run // the first one's: the leader's
		}
		return func() {
			var it item
			if err := db.QueryRow(rowText, 42).Scan(&it.name, &it.n); err != nil {
				failure.CompareAndSwap(nil, &err)
			}
		}
	})
	if err := failure.Load(); err != nil {
		return 0, 0, *err
	}
	if s := c.Stats(); s.Flights != 1 || s.Joins != uint64(n) {
		err = fmt.Errorf("%d flights and %d joins; want 1 and %d", s.Flights, s.Joins, n)
	}
	return kb, last, err
}

// parked returns how many goroutines wait for something.
func parked() uint64 {
	s := []metrics.Sample{{Name: "/sched/goroutines/waiting:goroutines"}}
	metrics.Read(s)
	return s[0].Value.Uint64()
}

// costCalls is how many calls a cost is measured with.
const costCalls = 100_000

// costOf returns what a call takes, in µs and allocations.
func costOf(calls int, call func()) (us, allocs float64) {
	for range calls / 10 {
		call()
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	for range calls {
		call()
	}
	took := time.Since(began)
	runtime.ReadMemStats(&after)
	return float64(took.Nanoseconds()) / float64(calls) / 1e3, float64(after.Mallocs-before.Mallocs) / float64(calls)
}

// tableCost returns what the flight table adds to an execution that does nothing:
// a new key each time.
func tableCost(calls int) (us, allocs float64) {
	t := flight.New[nothing](new(flight.Epoch), flight.Options{Width: 2})
	var args [8]byte
	n := uint64(0)
	run := &stubRunner{func() { n++ }}
	direct, _ := costOf(calls, run.run)
	us, allocs = costOf(calls, func() {
		binary.BigEndian.PutUint64(args[:], n)
		f, _ := t.Enter(flight.Key{Text: rowText, Args: args[:]}, flight.Fenced)
		_, _ = f.Lead(context.Background(), run)
	})
	return us - direct, allocs
}

// driverCost returns what flightpg adds to a driver that answers at once.
func driverCost(calls int) (us, allocs float64, err error) {
	read := func(db *sql.DB) func() {
		n := int64(1000)
		return func() {
			n++
			var it item
			if e := db.QueryRow(rowText, n).Scan(&it.name, &it.n); e != nil {
				err = e
			}
		}
	}
	open := func(c driver.Connector) *sql.DB {
		db := sql.OpenDB(c)
		db.SetMaxIdleConns(10_000)
		return db
	}
	alone := open(&ceiling{})
	defer alone.Close()
	c, err := flightpg.Wrap(&ceiling{}, flightpg.Config{TrustNames: []string{"*"}})
	if err != nil {
		return 0, 0, err
	}
	wrapped := open(c)
	defer wrapped.Close()
	baseUS, baseAllocs := costOf(calls, read(alone))
	us, allocs = costOf(calls, read(wrapped))
	if s := c.Stats(); s.Flights == 0 {
		err = errors.Join(err, errors.New("the driver over a stub has no flights"))
	}
	return us - baseUS, allocs - baseAllocs, err
}

// lateness returns by how much later than a bare timer callers hear of the end of
// their contexts who wait for a flight, p99 in ms. Both kinds run at the same time,
// beside some readers that take turns with pauses.
func lateness(ctx context.Context, dsn string, executor flightpg.Executor) (float64, error) {
	const (
		callers = 64 // of each kind
		calls   = 40
		readers = 4
	)
	db, err := flightpg.OpenDB(dsn, flightpg.Config{Executor: executor, FlightConns: conns})
	if err != nil {
		return 0, err
	}
	defer db.Close()
	// A patient caller keeps the flight in the air.
	ctx, land := context.WithCancel(ctx)
	defer land()
	slow := func(ctx context.Context) error {
		var it item
		return db.QueryRowContext(ctx, waitText, 1, 60_000).Scan(&it.name, &it.n)
	}
	var patient, readersDone, done sync.WaitGroup
	patient.Go(func() { _ = slow(ctx) })
	for flightpg.ReadStats(db).Flying == 0 {
		time.Sleep(time.Millisecond)
	}
	var stop atomic.Bool
	for i := range readers {
		readersDone.Go(func() {
			for n := int64(i); !stop.Load(); n += readers {
				var it item
				_ = db.QueryRow(rowText, n%rowCount+1).Scan(&it.name, &it.n)
				time.Sleep(time.Millisecond)
			}
		})
	}
	kinds := []func(context.Context) error{
		func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		slow,
	}
	late := make([][]stats.Histogram, len(kinds))
	var failure atomic.Pointer[error]
	for k, wait := range kinds {
		late[k] = make([]stats.Histogram, callers)
		for i := range callers {
			done.Go(func() {
				for j := range calls {
					deadline := time.Now().Add(time.Duration(5+(i*7+j*13)%20) * time.Millisecond)
					ctx, cancel := context.WithDeadline(ctx, deadline)
					err := wait(ctx)
					late[k][i].Add(time.Since(deadline))
					cancel()
					if !errors.Is(err, context.DeadlineExceeded) {
						failure.CompareAndSwap(nil, &err)
						return
					}
				}
			})
		}
	}
	done.Wait()
	stop.Store(true)
	readersDone.Wait()
	land()
	patient.Wait()
	if err := failure.Load(); err != nil {
		return 0, fmt.Errorf("lateness: %v; want the deadline's error", *err)
	}
	var sums [2]stats.Histogram
	for k := range late {
		for i := range late[k] {
			sums[k].Merge(&late[k][i])
		}
	}
	return (sums[1].Quantile(0.99) - sums[0].Quantile(0.99)) / 1e6, nil
}
