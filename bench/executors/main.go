//go:build unix

// Command executors compares what runs flights: pgx's database/sql driver alone,
// flightpg with the generic executor, and flightpg with the pipeline. It prints
// ratios to pgx, medians of interleaved rounds: on a machine whose mood changes,
// times say nothing.
//
//	go run ./bench/executors -dsn postgres://… -rounds 7 -time 400ms
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

type contender struct {
	name string
	db   *sql.DB
}

type workload struct {
	name string
	// op runs one read; n differs with each call, of all goroutines.
	op func(ctx context.Context, db *sql.DB, n int64) error
}

type measured struct {
	rate, p50, p99, allocs float64
	cpu                    float64 // of this process, for one operation
}

func main() {
	dsn := flag.String("dsn", "", "the database; without it a throw-away server is started")
	rounds := flag.Int("rounds", 5, "rounds of each measurement")
	length := flag.Duration("time", 300*time.Millisecond, "length of each")
	cpuProfile := flag.String("cpuprofile", "", "file for a profile of CPU time")
	profile := flag.String("memprofile", "", "file for a profile of allocations")
	clients := flag.String("clients", "1,4,16,64,256", "goroutines")
	only := flag.String("only", "", "workloads, by a part of their names")
	timeout := flag.Bool("timeout", true, "give each read a context with a timeout of its own")
	contenders := flag.String("contenders", "", "parts of the names of those to compare with pgx, with commas")
	flag.Parse()
	if *cpuProfile != "" {
		f, err := os.Create(*cpuProfile)
		if err == nil {
			err = pprof.StartCPUProfile(f)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		defer pprof.StopCPUProfile()
	}
	if err := run(*dsn, *rounds, *length, *clients, *only, *contenders, *timeout); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	if *profile != "" {
		f, err := os.Create(*profile)
		if err == nil {
			err = errors.Join(pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

func run(dsn string, rounds int, length time.Duration, clients, only, which string, timeout bool) error {
	ctx := context.Background()
	if dsn == "" {
		s, err := pgtest.Start(ctx)
		if err != nil {
			return err
		}
		defer func() { _ = s.Stop() }()
		dsn = s.DSN()
	}
	plain, err := sql.Open("pgx", dsn)
	if err != nil {
		return err
	}
	defer plain.Close()
	plain.SetMaxOpenConns(16)
	plain.SetMaxIdleConns(16)
	if _, err := plain.Exec("CREATE TABLE IF NOT EXISTS bench_items (id int PRIMARY KEY, name text, n bigint); INSERT INTO bench_items SELECT i, 'item ' || i, i * 7 FROM generate_series(1, 100000) i ON CONFLICT DO NOTHING; ANALYZE bench_items"); err != nil {
		return err
	}
	open := func(e flightpg.Executor, conns int) (*sql.DB, error) {
		return flightpg.OpenDB(dsn, flightpg.Config{Executor: e, FlightConns: conns})
	}
	generic, err := open(flightpg.ExecutorGeneric, 16)
	if err != nil {
		return err
	}
	defer generic.Close()
	piped, err := open(flightpg.ExecutorPipeline, 0)
	if err != nil {
		return err
	}
	defer piped.Close()
	contenders := []contender{{"pgx-16", plain}, {"generic", generic}, {"pipeline", piped}}
	contenders = slices.DeleteFunc(contenders, func(c contender) bool {
		return c.name != "pgx-16" && !strings.Contains(","+which+",", ","+c.name+",") && which != ""
	})

	one := func(ctx context.Context, db *sql.DB, id int64) error {
		var name string
		var n int64
		return db.QueryRowContext(ctx, "SELECT name, n FROM bench_items WHERE id = $1", id).Scan(&name, &n)
	}
	many := func(rows int) func(ctx context.Context, db *sql.DB, n int64) error {
		return func(ctx context.Context, db *sql.DB, n int64) error {
			rs, err := db.QueryContext(ctx, "SELECT id, name, n FROM bench_items WHERE id BETWEEN $1 AND $2", n%50_000+1, n%50_000+int64(rows))
			if err != nil {
				return err
			}
			defer rs.Close()
			for rs.Next() {
				var id, n int64
				var name string
				if err := rs.Scan(&id, &name, &n); err != nil {
					return err
				}
			}
			return rs.Err()
		}
	}
	workloads := []workload{
		{"unique 1 row", func(ctx context.Context, db *sql.DB, n int64) error { return one(ctx, db, n%100_000+1) }},
		{"hot 1 row", func(ctx context.Context, db *sql.DB, _ int64) error { return one(ctx, db, 42) }},
		{"unique 100 rows", many(100)},
		{"2% take 20 ms", func(ctx context.Context, db *sql.DB, n int64) error {
			var x int64
			ms := 0
			if n%50 == 0 {
				ms = 20
			}
			return db.QueryRowContext(ctx, "SELECT n FROM bench_items, pg_sleep($2::int * 0.001) WHERE id = $1", n%100_000+1, ms).Scan(&x)
		}},
	}
	fmt.Printf("%s, %d CPUs; ratios to pgx with 16 connections, medians of %d rounds of %v, timeout per read: %v\n", runtime.Version(), runtime.NumCPU(), rounds, length, timeout)
	for _, w := range workloads {
		if !strings.Contains(w.name, only) {
			continue
		}
		for _, c := range strings.Split(clients, ",") {
			var callers int
			if _, err := fmt.Sscan(c, &callers); err != nil {
				return err
			}
			if err := compare(w, contenders, callers, rounds, length, timeout); err != nil {
				return fmt.Errorf("%s, %d clients: %w", w.name, callers, err)
			}
		}
	}
	return nil
}

func compare(w workload, contenders []contender, callers, rounds int, length time.Duration, timeout bool) error {
	ratios := make([][]measured, len(contenders))
	for r := range rounds + 1 { // the first warms up
		var base measured
		for i := range contenders {
			m, err := measure(w, contenders[i].db, callers, length, timeout)
			if err != nil {
				return fmt.Errorf("%s: %w", contenders[i].name, err)
			}
			if i == 0 {
				base = m
			}
			if r > 0 {
				ratios[i] = append(ratios[i], measured{m.rate / base.rate, m.p50 / base.p50, m.p99 / base.p99, m.allocs, m.cpu / base.cpu})
			}
		}
	}
	median := func(of []measured, get func(measured) float64) float64 {
		values := make([]float64, len(of))
		for i := range of {
			values[i] = get(of[i])
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	for i, c := range contenders {
		fmt.Printf("%-16s clients=%-4d %-9s rate ×%-6.2f p50 ×%-5.2f p99 ×%-5.2f client cpu ×%-5.2f allocs %.0f\n", w.name, callers, c.name,
			median(ratios[i], func(m measured) float64 { return m.rate }),
			median(ratios[i], func(m measured) float64 { return m.p50 }),
			median(ratios[i], func(m measured) float64 { return m.p99 }),
			median(ratios[i], func(m measured) float64 { return m.cpu }),
			median(ratios[i], func(m measured) float64 { return m.allocs }))
	}
	return nil
}

var next atomic.Int64

func measure(w workload, db *sql.DB, callers int, length time.Duration, timeout bool) (measured, error) {
	var stop atomic.Bool
	var failure atomic.Pointer[error]
	times := make([][]time.Duration, callers)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	cpuBefore := cpuTime()
	began := time.Now()
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for !stop.Load() {
				ctx, cancel := context.Background(), context.CancelFunc(func() {})
				if timeout {
					ctx, cancel = context.WithTimeout(ctx, time.Minute)
				}
				start := time.Now()
				err := w.op(ctx, db, next.Add(1))
				cancel()
				if err != nil {
					failure.CompareAndSwap(nil, &err)
					return
				}
				times[i] = append(times[i], time.Since(start))
			}
		})
	}
	time.Sleep(length)
	stop.Store(true)
	wg.Wait()
	took := time.Since(began)
	cpu := cpuTime() - cpuBefore
	runtime.ReadMemStats(&after)
	if err := failure.Load(); err != nil {
		return measured{}, *err
	}
	all := slices.Concat(times...)
	slices.Sort(all)
	n := float64(len(all))
	return measured{
		rate:   n / took.Seconds(),
		p50:    float64(all[len(all)/2]),
		p99:    float64(all[len(all)*99/100]),
		allocs: float64(after.Mallocs-before.Mallocs) / n,
		cpu:    float64(cpu) / n,
	}, nil
}

// cpuTime returns the time that this process has had.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 1
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
