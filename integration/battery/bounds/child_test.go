package bounds

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/flightpg/flightpg"
)

// envJob carries a job to the process that runs it.
const envJob = "FLIGHTPG_BOUNDS_JOB"

// job is what a process is to do.
type job struct {
	Load    string // a name in loads
	DSN     string
	Seed    uint64
	Callers int

	Rows, RowBytes int    // of each result
	Columns, Where string // of the query of "shapes"; $1 makes its results distinct
	ReadRows       int    // how many rows callers read that do not read all
	Texts, Bytes   int    // for the load of texts: how many, and how long
	Kind           string // of texts
	Native         bool   // through pgx's own driver
	Convoy         bool

	Limits limits
}

// limits are fields of flightpg.Config: zero stands for its default there.
type limits struct {
	MaxResult, Memory         int64
	FlightConns, SessionConns int
	Executor                  flightpg.Executor
	Guard                     flightpg.Guard
}

func (l limits) config() flightpg.Config {
	return flightpg.Config{MaxResult: l.MaxResult, Memory: l.Memory, FlightConns: l.FlightConns, SessionConns: l.SessionConns, Executor: l.Executor, Guard: l.Guard}
}

// figures are what the process has measured.
type figures struct {
	Before, Held, After, AfterIdle memory
	Peak                           peak
	Stats                          counts // at the end
	Extra                          map[string]int64
	Locks                          []lockDelay
}

// counts are what flightpg's Stats say, in a form that JSON gives back.
type counts struct {
	Flights, Joins, Overflows, Cancelled uint64
	Bypasses                             map[string]uint64
}

// memory is what a process needs at a moment, in bytes.
type memory struct{ Heap, Stacks, Resident int64 }

func (m memory) sum() int64 { return m.Heap + m.Stacks }

// peak is the most that a process needed between two moments, in bytes.
type peak struct {
	Live     int64 // as found by two collections in a row, and the stacks then
	Resident int64 // 0 where it cannot be told
}

// run runs the job in a process of its own.
func run(t *testing.T, j job) figures {
	t.Helper()
	enc, err := json.Marshal(j)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), jobTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0])
	for _, e := range os.Environ() {
		// Bounds are stated for the runtime's defaults.
		if name, _, _ := strings.Cut(e, "="); !slices.Contains([]string{"GOGC", "GOMEMLIMIT", "GODEBUG", "GOMAXPROCS"}, name) {
			cmd.Env = append(cmd.Env, e)
		}
	}
	cmd.Env = append(cmd.Env, envJob+"="+string(enc))
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		out := stderr.String()
		t.Fatalf("the load %q (seed %d): %v\n%s", j.Load, j.Seed, err, out[:min(len(out), 20_000)])
	}
	var f figures
	if err := json.Unmarshal(stdout.Bytes(), &f); err != nil {
		t.Fatalf("the load %q: %v in its answer %q", j.Load, err, stdout.String())
	}
	return f
}

// jobTimeout ends a process that hangs.
const jobTimeout = 10 * time.Minute

// work is the process's side of run.
func work(enc string) error {
	var j job
	if err := json.Unmarshal([]byte(enc), &j); err != nil {
		return err
	}
	load := loads[j.Load]
	if load == nil {
		return fmt.Errorf("there is no load %q", j.Load)
	}
	f, err := load(&j)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(f)
}

// measure returns what the process needs now, garbage collected.
func measure() memory {
	runtime.GC()
	runtime.GC() // twice: what the first has emptied of sync.Pools is garbage for the second
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return memory{Heap: int64(m.HeapAlloc), Stacks: int64(m.StackInuse), Resident: status("VmRSS")}
}

// status returns a figure of /proc/self/status in bytes, 0 where there is none.
func status(name string) int64 {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			n, _ := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return n << 10
		}
	}
	return 0
}

// watch measures the peak from now until the returned function is called.
func watch() (end func() peak) {
	// What is allocated while a collection goes on counts as live for it, garbage or
	// not: where that takes long, for want of a CPU, megabytes. What is needed is
	// found by the next one too.
	var live, before int64
	var cycle uint64
	sample := func() {
		s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}, {Name: "/gc/cycles/total:gc-cycles"}}
		metrics.Read(s)
		if n := s[2].Value.Uint64(); n != cycle {
			now := int64(s[0].Value.Uint64() + s[1].Value.Uint64())
			live = max(live, min(before, now))
			cycle, before = n, now
		}
	}
	var resets bool // the peak of what came before counts no more
	if f, err := os.OpenFile("/proc/self/clear_refs", os.O_WRONLY, 0); err == nil {
		_, err = f.WriteString("5")
		resets = err == nil
		_ = f.Close()
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				sample()
			case <-stop:
				return
			}
		}
	})
	return func() peak {
		close(stop)
		wg.Wait()
		sample()
		p := peak{Live: live}
		if resets {
			p.Resident = status("VmHWM")
		}
		return p
	}
}

// patience bounds a wait for callers, settled one for what is left when they have
// gone: longer is a hang.
const (
	patience = 5 * time.Minute
	settled  = time.Minute
)

// await returns when cond holds.
func await(what string, patience time.Duration, cond func() bool) error {
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			return errors.New("no end to waiting for " + what)
		}
		time.Sleep(2 * time.Millisecond) // nothing tells: polling
	}
	return nil
}
