package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
)

// sample is the state of things at a moment. What is counted is counted from the
// begin.
type sample struct {
	at         time.Duration
	heap       uint64 // alive at a collection
	rss        uint64 // 0: unknown here
	goroutines int
	backends   int // -1: the server did not answer
	totals
	faults     int
	violations int
}

// totals are of all handles, or of all operations.
type totals struct {
	reads, writes, states                 int64 // operations
	left, lost, full, stale               int64
	flights, joins, bypasses, execs       uint64
	overflows, retries, fenced, cancelled uint64
}

func (s *soak) totals() (t totals) {
	for i := range operations {
		n := &s.counts[i]
		switch operations[i].kind {
		case reads:
			t.reads += n.done.Load()
		case writes:
			t.writes += n.done.Load()
		case states:
			t.states += n.done.Load()
		}
		t.left += n.classes[left].Load()
		t.lost += n.classes[lost].Load()
		t.full += n.classes[full].Load()
		t.stale += n.classes[stale].Load()
	}
	for _, h := range s.handles {
		st := flightpg.ReadStats(h.db)
		t.flights += st.Flights
		t.joins += st.Joins
		t.execs += st.Execs
		t.overflows += st.Overflows
		t.retries += st.Retries
		t.fenced += st.Fenced
		t.cancelled += st.Cancelled
		for _, n := range st.Bypasses {
			t.bypasses += n
		}
	}
	return t
}

// limits are those of the handles, as the stats name them.
type limits struct{ flights, sessions int }

var handleLimits = map[string]limits{"direct": {8, 14}, "window": {3, 6}, "cut": {6, 10}, "tight": {2, 4}}

// monitor takes a sample now and then, prints it, and looks for what hangs or goes
// beyond its bounds.
func (s *soak) monitor(stop <-chan struct{}) {
	tick := time.NewTicker(s.interval)
	defer tick.Stop()
	last := s.sample()
	for {
		select {
		case <-tick.C:
		case <-stop:
			return
		}
		now := s.sample()
		s.samples = append(s.samples, now)
		fmt.Fprintln(s.out, now.line(&last))
		last = now
		s.watch()
	}
}

func (s *soak) sample() sample {
	runtime.GC()
	// What that has found alive. MemStats also has what was allocated since: on a
	// busy machine that is more.
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(live)
	v := sample{at: time.Since(s.begin), heap: live[0].Value.Uint64(), rss: resident(), goroutines: len(goroutines()), backends: -1, totals: s.totals(), violations: s.judge.violations()}
	s.judge.mu.Lock()
	v.faults = s.judge.faults
	s.judge.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	_ = s.admin(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT count(*) FROM pg_stat_activity WHERE usename = $1`, role).Scan(&v.backends)
	})
	for _, h := range s.handles {
		s.judge.limits(h.name, flightpg.ReadStats(h.db))
	}
	return v
}

// limits reports a handle that has more connections than it may.
func (j *judge) limits(name string, st flightpg.Stats) {
	most := handleLimits[name]
	if st.FlightBackends > most.flights || st.SessionBackends > most.sessions {
		j.violate("beyond a bound", "%s has %d backends for flights and %d for sessions; allowed: %v", name, st.FlightBackends, st.SessionBackends, most)
	}
}

// resident returns the resident set of the process, where the system tells it.
func resident() uint64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(statm))
	if len(fields) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(fields[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}

// writeHeapProfile writes what is on the heap, by who has put it there.
func writeHeapProfile(file string) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	runtime.GC()
	return errors.Join(pprof.WriteHeapProfile(f), f.Close())
}

// line is what is printed of a sample: rates since the last one.
func (v *sample) line(last *sample) string {
	per := func(now, before int64) float64 { return float64(now-before) / (v.at - last.at).Seconds() }
	executions := float64(v.flights-last.flights+v.bypasses-last.bypasses) / (v.at - last.at).Seconds()
	backends := "?"
	if v.backends >= 0 {
		backends = strconv.Itoa(v.backends)
	}
	return fmt.Sprintf("%8s  reads %5.0f/s  writes %4.0f/s  joins %5.0f/s  executions %5.0f/s  left %3.0f/s  lost %5.1f/s  full %5.1f/s  rss %4.0f MB  heap %5.1f MB  goroutines %4d  backends %2s  faults %3d  violations %d",
		v.at.Round(time.Second), per(v.reads, last.reads), per(v.writes, last.writes),
		float64(v.joins-last.joins)/(v.at-last.at).Seconds(), executions,
		per(v.left, last.left), per(v.lost, last.lost), per(v.full, last.full),
		float64(v.rss)/1e6, float64(v.heap)/1e6, v.goroutines, backends, v.faults, v.violations)
}

// finalStats keeps a handle's figures for the report: it is about to be closed.
func (s *soak) finalStats(h *handle) {
	if !h.native {
		s.final = append(s.final, handleStats{h.name, flightpg.ReadStats(h.db)})
	}
}

type handleStats struct {
	name string
	flightpg.Stats
}

// rowsInTable is how many lines the report's table over the time has at most.
const rowsInTable = 30

// report is the run in words and tables.
func (s *soak) report() string {
	var b bytes.Buffer
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }

	verdict := "passed"
	if n := s.judge.violations(); n > 0 {
		verdict = fmt.Sprintf("FAILED: %d violations", n)
	}
	p("flightpg's soak: %s", verdict)
	p("")
	p("  began      %s", s.begin.UTC().Format("2006-01-02 15:04:05 MST"))
	p("  duration   %v (asked for: %v)", s.took.Round(time.Second), s.duration)
	p("  clients    %d, over %d handles", len(s.clients), len(s.handles))
	p("  seed       %d", s.seed)
	p("  versions   PostgreSQL %s, %s, pgx %s, %s/%s, %d CPUs", s.version, runtime.Version(), pgxVersion(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	p("")
	p("Over the time (rates since the line before)")
	p("")
	s.table(p)
	p("")
	p("Operations")
	p("")
	p("  %-42s %10s %9s %9s %8s %8s %6s %6s", "", "done", "mean ms", "fine", "left", "lost", "full", "other")
	for i, op := range operations {
		n := &s.counts[i]
		done := n.done.Load()
		var other int64
		for c := stale; c < classes; c++ {
			other += n.classes[c].Load()
		}
		p("  %-42s %10d %9.2f %9d %8d %8d %6d %6d", op.name, done, float64(n.took.Load())/1e6/float64(max(done, 1)),
			n.classes[fine].Load(), n.classes[left].Load(), n.classes[lost].Load(), n.classes[full].Load(), other)
	}
	p("")
	p("  left: the caller's context ended; lost: its connection did, by a fault; full: the server")
	p("  had none for it; other: stale plans of pgx's own driver after DDL, and violations.")
	p("")
	p("Handles")
	p("")
	p("  %-8s %10s %10s %10s %10s %9s %9s %8s %8s %9s %9s", "", "flights", "joins", "bypasses", "execs", "fenced", "overflows", "retries", "refused", "cancelled", "evictions")
	for _, h := range s.final {
		var bypasses uint64
		for _, n := range h.Bypasses {
			bypasses += n
		}
		p("  %-8s %10d %10d %10d %10d %9d %9d %8d %8d %9d %9d", h.name, h.Flights, h.Joins, bypasses, h.Execs, h.Fenced, h.Overflows, h.Retries, h.Refused, h.Cancelled, h.Evictions)
	}
	p("")
	for _, h := range s.final {
		var why []string
		for _, r := range slices.Sorted(maps.Keys(h.Bypasses)) {
			why = append(why, fmt.Sprintf("%v %d", r, h.Bypasses[r]))
		}
		p("  %s bypassed: %s", h.name, strings.Join(why, ", "))
	}
	p("")
	p("Faults")
	p("")
	for i, f := range faults {
		p("  %-22s %5d%s", f.name, s.faulted[i].made.Load(), failedFaults(s.faulted[i].failed.Load()))
	}
	p("")
	p("Checks")
	p("")
	check := func(what, with string, kinds ...string) {
		n := 0
		for _, k := range kinds {
			n += s.judge.of(k)
		}
		held := "held"
		if n > 0 {
			held = fmt.Sprintf("VIOLATED %d times", n)
		}
		p("  %-62s %s%s", what, held, with)
	}
	check("every result complete and exact, never truncated as success", "", "wrong row", "truncated")
	check("no read older than its mode allows", "", "stale")
	check("every session its own", "", "another's session")
	l := &s.ledger
	check("each acknowledged booking there exactly once, refused ones not", fmt.Sprintf(" (%d acknowledged, %d refused or rolled back, %d lost, of which %d had happened)", l.acked, l.never, l.unknown, l.happened),
		"write lost", "write ran twice", "ran twice", "refused write is there", "audit")
	check("no error without a cause, none that is somebody else's", "", classNames[causeless], classNames[foreign], classNames[wrong])
	check("nobody hangs, nothing panics", "", "hang", "panic")
	check("no handle beyond its connections", "", "beyond a bound")
	check("nothing left: flights, backends, locks, files, goroutines", "", "left behind")
	memory := " (too short to tell)"
	if first, last, ok := thirds(s.samples); ok {
		memory = fmt.Sprintf(" (heap %.1f → %.1f MB, resident %.0f → %.0f MB, goroutines %.0f → %.0f)", first.heap/1e6, last.heap/1e6, first.rss/1e6, last.rss/1e6, first.goroutines, last.goroutines)
	}
	check("memory does not grow from the first third to the last", memory, "memory grows")
	if n := s.judge.violations(); n > 0 {
		p("")
		p("Violations (%d, the first %d in full)", n, len(s.judge.told))
		p("")
		for _, v := range s.judge.told {
			p("  %s", strings.ReplaceAll(v, "\n", "\n    "))
		}
	}
	return b.String()
}

func failedFaults(n int64) string {
	if n == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d could not be made whole)", n)
}

// table prints the samples, some of them together if they are many.
func (s *soak) table(p func(string, ...any)) {
	p("  %8s %9s %9s %9s %12s %7s %7s %7s %8s %8s %10s %8s %7s", "time", "reads/s", "writes/s", "joins/s", "executions/s", "left/s", "lost/s", "full/s", "rss MB", "heap MB", "goroutines", "backends", "faults")
	step := max(1, (len(s.samples)+rowsInTable-1)/rowsInTable)
	var last sample
	for i := step - 1; i < len(s.samples); i += step {
		v := s.samples[i]
		per := func(now, before int64) float64 { return float64(now-before) / (v.at - last.at).Seconds() }
		backends := "?"
		if v.backends >= 0 {
			backends = strconv.Itoa(v.backends)
		}
		p("  %8s %9.0f %9.0f %9.0f %12.0f %7.0f %7.1f %7.1f %8.0f %8.1f %10d %8s %7d", v.at.Round(time.Second),
			per(v.reads, last.reads), per(v.writes, last.writes), per(int64(v.joins), int64(last.joins)),
			per(int64(v.flights+v.bypasses), int64(last.flights+last.bypasses)),
			per(v.left, last.left), per(v.lost, last.lost), per(v.full, last.full),
			float64(v.rss)/1e6, float64(v.heap)/1e6, v.goroutines, backends, v.faults)
		last = v
	}
}

func pgxVersion() string {
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			if m.Path == "github.com/jackc/pgx/v5" {
				return m.Version
			}
		}
	}
	return "of unknown version"
}
