// Command soak runs flightpg under a mixed load, with faults at random, for as
// long as it is told, and says what it sees: a line every few seconds, and at the
// end a report with a table over the time, the checks and their verdicts.
//
//	go run ./soak [-duration 30m] [-seed N] [-clients N] [-o soak.txt]
//
// The load is what applications do: reads of hot and of Zipf-distributed rows,
// results over every cap, rows closed early, writes in all forms, transactions,
// connections with state, prepared statements, raw pgx, DDL, callers that leave;
// in every mode, over five handles: one straight to the server, a second one
// beside it with a result window, one behind a network that fails, one with hardly
// any connection or memory behind another such network, and pgx's own driver.
// The faults are those of servers and networks (see fault).
//
// What is judged, while it runs and at the end:
//
//   - Every result is complete and exact: each row says by a hash of its own key
//     and version what it must contain. A truncated one as success is a violation.
//   - No read is older than its mode allows: fenced reads see all that was written
//     through the handles to the same address, strict ones and pgx everything.
//   - Every write that was acknowledged is there exactly once, every one that was
//     refused is not there, and one that was lost is there at most once.
//   - Errors have a cause: a caller that left, or a fault. In calm times, and of
//     other kinds, none is right. A caller that stayed never gets a cancellation.
//   - Nobody hangs. Nothing is left at the end: no flight, no backend, no lock, no
//     goroutine, no buffered byte.
//   - Memory does not grow: the heap after a collection, and the resident set, of
//     the last third of the time against the first.
//
// It ends with status 1 if anything was violated. What the clients and the faults
// do follows from the seed; at which moment, does not.
//
// Reading order: main.go (the run) → world.go (tables, handles) → clients.go (what
// they do) → faults.go → judge.go (what is right) → report.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
)

// config says how a soak runs. The zero value of the fields below seed is what
// the command does; tests plant with them what the soak must find.
type config struct {
	duration time.Duration
	clients  int
	seed     uint64
	interval time.Duration // between two lines
	out      io.Writer     // for the lines
	pause    time.Duration // between two faults, on average

	fenced flightpg.Mode         // what a fenced read asks for: ModeFenced, unless to be caught
	plant  func(*soak) error     // called when the load is over, before the last checks
	only   func(*operation) bool // which operations; nil: all
	calm   bool                  // no faults
	slower int                   // by how many milliseconds slow reads are slower

	patience time.Duration // of the last checks; 0: a long one

	profile string // a file for the heap's profile at the end of the load
}

func main() {
	cfg := config{out: os.Stdout}
	flag.DurationVar(&cfg.duration, "duration", 30*time.Minute, "how `long`")
	flag.IntVar(&cfg.clients, "clients", 40, "`number` of clients")
	flag.Uint64Var(&cfg.seed, "seed", rand.Uint64(), "what clients and faults do follows from this `number`")
	flag.DurationVar(&cfg.interval, "interval", 10*time.Second, "`time` between two lines")
	flag.DurationVar(&cfg.pause, "pause", 6*time.Second, "mean `time` between two faults")
	flag.StringVar(&cfg.profile, "memprofile", "", "write a profile of the heap at the end of the load to this `file`")
	file := flag.String("o", "", "write the report to this `file` too")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	s, err := run(ctx, cfg)
	if err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
	report := s.report()
	fmt.Fprint(cfg.out, "\n"+report)
	if *file != "" {
		if err := errors.Join(os.MkdirAll(filepath.Dir(*file), 0o755), os.WriteFile(*file, []byte(report), 0o644)); err != nil {
			fmt.Fprintf(os.Stderr, "soak: %v\n", err)
			os.Exit(1)
		}
	}
	if s.judge.violations() > 0 {
		os.Exit(1)
	}
}

// soak is one run.
type soak struct {
	config
	*world
	judge   judge
	clients []*client
	begin   time.Time
	took    time.Duration
	version string // of the server

	counts  []counter // by operation
	samples []sample  // by the monitor alone, until the load is over
	faulted []faultCount
	ledger  ledgerResult
	final   []handleStats // when the load was over
}

// run makes a world, loads it for the time that cfg says or until ctx ends, and
// checks what is left. The error is the rig's; what is wrong with flightpg is in
// the judge.
func run(ctx context.Context, cfg config) (_ *soak, err error) {
	s := &soak{config: cfg, counts: make([]counter, len(operations)), faulted: make([]faultCount, len(faults))}
	before := goroutines()
	if s.world, err = newWorld(ctx, &s.config); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, s.world.stop()) }()
	if s.version, err = s.world.version(ctx); err != nil {
		return nil, err
	}
	fmt.Fprintf(cfg.out, "soak: seed %d, %v, %d clients, PostgreSQL %s, %s\n", cfg.seed, cfg.duration, cfg.clients, s.version, runtime.Version())

	s.begin = time.Now()
	loadCtx, cancel := context.WithTimeout(ctx, cfg.duration)
	defer cancel()
	var clients, others sync.WaitGroup
	for i := range cfg.clients {
		c := newClient(s, i)
		s.clients = append(s.clients, c)
		clients.Go(func() { c.run(loadCtx) })
	}
	// The faults go on until the clients have ended, so that none waits for ever
	// for something that a fault has stopped.
	stopOthers := make(chan struct{})
	if !cfg.calm {
		others.Go(func() { s.disturb(stopOthers, battery.Rand(cfg.seed, -1)) })
	}
	others.Go(func() { s.monitor(stopOthers) })

	ended := make(chan struct{})
	go func() { clients.Wait(); close(ended) }()
	<-loadCtx.Done()
	select {
	case <-ended:
	case <-time.After(patience):
		s.judge.violate("hang", "clients have not ended %v after the load:\n%s", patience, stacks())
	}
	close(stopOthers)
	others.Wait()
	s.took = time.Since(s.begin)
	if s.judge.of("hang") > 0 {
		return s, nil // nothing more can be told, and handles cannot be closed under their callers
	}
	if cfg.profile != "" {
		if err := writeHeapProfile(cfg.profile); err != nil {
			return nil, err
		}
	}
	if cfg.plant != nil {
		if err := cfg.plant(s); err != nil {
			return nil, fmt.Errorf("what is to be found: %w", err)
		}
	}
	// The load's context has ended; what is left is looked at whatever happens.
	s.last(context.WithoutCancel(ctx), before)
	return s, nil
}
