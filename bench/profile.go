package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime/pprof"
	"slices"
	"strings"

	"github.com/google/pprof/profile"
)

// What the CPU time of an operation goes to: each measurement is profiled by itself,
// and each sample is somebody's.

// owners are whom samples are attributed to: the first frame from the innermost one on
// that has an owner decides. Locks, maps, copies and the like have none of their own.
var owners = []struct {
	name     string
	prefixes []string
}{
	{"memory: allocation, collection", []string{"runtime.mallocgc", "runtime.newobject", "runtime.makeslice", "runtime.growslice", "runtime.gcBgMarkWorker", "runtime.gcAssistAlloc", "runtime.gcStart", "runtime.bgsweep", "runtime.bgscavenge", "runtime.wbBufFlush", "runtime.gcWriteBarrier", "runtime.deductAssistCredit"}},
	{"network reads and writes", []string{"net."}},
	{"goroutines, channels, timers", []string{"runtime.schedule", "runtime.findRunnable", "runtime.mcall", "runtime.mstart", "runtime.gopark", "runtime.goready", "runtime.chan", "runtime.closechan", "runtime.selectgo", "runtime.newproc", "runtime.goexit", "runtime.sysmon", "runtime.netpoll", "runtime.semrelease", "runtime.semacquire", "runtime.wakep", "runtime.morestack", "runtime.newstack", "time."}},
	{"context", []string{"context."}},
	{"database/sql", []string{"database/sql."}},
	{"flightpg: table of flights", []string{"github.com/flightpg/flightpg/internal/flight."}},
	{"flightpg: pipeline", []string{"github.com/flightpg/flightpg/internal/pipeline."}},
	{"the benchmark", []string{"main.", "github.com/flightpg/flightpg/bench"}},
	{"flightpg: verdict, key, decoding, replay", []string{"github.com/flightpg/flightpg"}},
	{"pgx", []string{"github.com/jackc/"}},
}

const ownerless = "the rest of the runtime"

// profiled are an owner's samples, in nanoseconds.
type profiled map[string]int64

// ownerOf returns a sample's owner.
func ownerOf(s *profile.Sample) string {
	for _, at := range s.Location {
		for _, line := range at.Line { // what is inlined comes first
			name := line.Function.Name
			for _, o := range owners {
				if slices.ContainsFunc(o.prefixes, func(p string) bool { return strings.HasPrefix(name, p) }) {
					return o.name
				}
			}
		}
	}
	return ownerless
}

// profiling profiles what measure does.
func (p profiled) profiling(measure func() (figures, error)) (figures, error) {
	var raw bytes.Buffer
	if err := pprof.StartCPUProfile(&raw); err != nil {
		return figures{}, err
	}
	f, err := measure()
	pprof.StopCPUProfile()
	if err != nil {
		return f, err
	}
	prof, err := profile.Parse(&raw)
	if err != nil {
		return f, err
	}
	for _, s := range prof.Sample {
		p[ownerOf(s)] += s.Value[1] // nanoseconds; the first value is how many samples
	}
	return f, nil
}

// profilePlan has what a target is missed in, or was, with the ceilings beside it.
func profilePlan() []*cell {
	return []*cell{
		{"hot 1 row", 16, background, direct, []string{pgx16, pipelined, parking}},
		{"hot 1 row", 256, background, direct, []string{pgx16, pipelined, parking}},
		{"hot 10000 rows", 64, background, direct, []string{pgx16, pipelined, parking}},
		{"unique 1 row", 1, timeout, direct, []string{pgx16, pipelined, parking}},
		{"unique 1 row", 64, timeout, direct, []string{pgx16, pipelined, parking}},
		{"unique 10000 rows", 1, timeout, direct, []string{pgx16, pipelined}},
		{"zipf mix", 64, background, direct, []string{pgx16, pipelined}},
		{"writes", 1, timeout, direct, []string{pgx16, pipelined}},
		{"transactions", 1, timeout, direct, []string{pgx16, pipelined}},
	}
}

func (rep *report) writeProfile(to *os.File) error {
	m := &rep.Meta
	var b strings.Builder
	fmt.Fprintf(&b, "# Where the time goes\n\nWritten by `make bench-profile`. CPU time of an operation, by whose code runs: each sample of the profiles belongs to the innermost frame that has an owner. Microseconds, medians of the rounds, shared out by the samples.\n\n")
	fmt.Fprintf(&b, "Commit %s; %s, %s, %d CPUs (%s); %s, PostgreSQL %s. %d rounds of %s each.%s\n", m.Commit, m.Date, m.OS, m.CPUs, m.CPU, m.Go, m.PostgreSQL, m.Rounds, rep.lengths(), m.quiet())
	for _, c := range rep.Cells {
		fmt.Fprintf(&b, "\n## %s\n\n| |", c.String())
		row := func(name string, of func(r *contenderResult) string) {
			fmt.Fprintf(&b, "\n| %s |", name)
			for i := range c.Results {
				fmt.Fprintf(&b, " %s |", of(&c.Results[i]))
			}
		}
		for i := range c.Results {
			fmt.Fprintf(&b, " %s |", c.Results[i].Contender)
		}
		fmt.Fprintf(&b, "\n|---|%s", strings.Repeat("---|", len(c.Results)))
		names := []string{}
		for _, o := range owners {
			names = append(names, o.name)
		}
		for _, name := range append(names, ownerless) {
			row(name, func(r *contenderResult) string {
				all := int64(0)
				for _, n := range r.profile {
					all += n
				}
				if r.profile[name] == 0 {
					return "-"
				}
				return fmt.Sprintf("%.2f", r.median(clientTime)/1000*float64(r.profile[name])/float64(all))
			})
		}
		micro := func(get func(*figures) *float64) func(r *contenderResult) string {
			return func(r *contenderResult) string { return fmt.Sprintf("%.2f", r.median(get)/1000) }
		}
		row("**client**", micro(clientTime))
		row("**server**", micro(serverTime))
		row("rate, of pgx-16's", func(r *contenderResult) string { return fmt.Sprintf("%.2f", r.Ratio) })
		b.WriteByte('\n')
	}
	_, err := to.WriteString(b.String())
	return err
}
