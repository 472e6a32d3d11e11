package bounds

import (
	"bytes"
	"fmt"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"time"
)

// lockDelay is how long goroutines waited for the locks that one function lets
// go, together.
type lockDelay struct {
	Function string
	Delay    time.Duration
	Waits    int64
}

// startContention begins to record who waits for which lock, all waits, and
// returns what ends it: the locks, those waited for longest first.
func startContention() (end func() []lockDelay) {
	before := contention()
	old := runtime.SetMutexProfileFraction(1)
	return func() []lockDelay {
		runtime.SetMutexProfileFraction(old)
		sum := contention()
		for name, d := range before {
			s := sum[name]
			sum[name] = lockDelay{name, s.Delay - d.Delay, s.Waits - d.Waits}
		}
		var locks []lockDelay
		for _, d := range sum {
			if d.Waits > 0 {
				locks = append(locks, d)
			}
		}
		slices.SortFunc(locks, func(a, b lockDelay) int { return int(b.Delay - a.Delay) })
		return locks
	}
}

// contention sums the mutex profile by the function that holds the lock: the first
// outside sync and internal/sync.
func contention() map[string]lockDelay {
	var records []runtime.BlockProfileRecord
	n, ok := runtime.MutexProfile(nil)
	for !ok {
		records = make([]runtime.BlockProfileRecord, n+64)
		n, ok = runtime.MutexProfile(records)
	}
	perSecond := cyclesPerSecond()
	sum := make(map[string]lockDelay)
	for _, r := range records[:n] {
		name := holder(r.Stack())
		s := sum[name]
		sum[name] = lockDelay{name, s.Delay + time.Duration(float64(r.Cycles)/perSecond*1e9), s.Waits + r.Count}
	}
	return sum
}

// holder names the lock's holder: the first function outside sync, and if that is
// database/sql's, on whose behalf.
func holder(stack []uintptr) string {
	frames := runtime.CallersFrames(stack)
	name := ""
	for more := true; more; {
		var f runtime.Frame
		f, more = frames.Next()
		switch {
		case strings.HasPrefix(f.Function, "sync."), strings.HasPrefix(f.Function, "internal/sync."):
		case name == "":
			name = f.Function
			if !strings.HasPrefix(name, "database/sql.") {
				return name
			}
		case !strings.HasPrefix(f.Function, "database/sql."):
			return name + " for " + f.Function
		}
	}
	return name
}

// cyclesPerSecond returns the unit of the profile's delays, which only the
// printed profile tells.
func cyclesPerSecond() float64 {
	var b bytes.Buffer
	_ = pprof.Lookup("mutex").WriteTo(&b, 1)
	n := 1e9
	_, header, _ := strings.Cut(b.String(), "cycles/second=")
	_, _ = fmt.Sscanf(header, "%g", &n)
	return n
}
