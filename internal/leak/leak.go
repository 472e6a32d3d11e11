// Package leak fails a package's tests when they leave something behind in their
// own process: goroutines, by go.uber.org/goleak, or memory. What they leave on a
// server, package pgtest looks for.
//
//	func TestMain(m *testing.M) { leak.Main(m.Run) }
//	func TestMain(m *testing.M) { leak.Main(func() int { return pgtest.Run(m) }) }
package leak

import (
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"time"

	"go.uber.org/goleak"
)

const (
	// patience is how long goroutines may take to end after the tests.
	patience = 20 * time.Second
	// heapRoom is how much more heap than before the tests there may be after
	// them: for what packages keep for the life of a process. A leak of results,
	// or of servers' answers, is more.
	heapRoom = 48 << 20
)

// Main runs the tests of a package by run, which returns the status for os.Exit,
// and ends the process: with a status that is not 0 if something is left.
func Main(run func() int, ignore ...goleak.Option) {
	os.Exit(status(run, os.Stderr, patience, heapRoom, ignore))
}

// Goroutines is Main without the check of memory, for packages whose tests keep
// much of it on purpose.
func Goroutines(run func() int, ignore ...goleak.Option) {
	os.Exit(status(run, os.Stderr, patience, math.MaxInt64/2, ignore))
}

// Toxiproxy says which goroutines github.com/Shopify/toxiproxy leaves behind where
// it cut a connection: they wait for ever for the other end of a channel.
func Toxiproxy() []goleak.Option {
	const path = "github.com/Shopify/toxiproxy/v2"
	return []goleak.Option{
		goleak.IgnoreAnyFunction(path + ".(*ToxicLink).read"),
		goleak.IgnoreAnyFunction(path + ".(*ToxicLink).write"),
		goleak.IgnoreAnyFunction(path + "/toxics.(*ToxicStub).Run"),
	}
}

func status(run func() int, w io.Writer, patience time.Duration, room uint64, ignore []goleak.Option) int {
	ignore = append(ignore, goleak.IgnoreCurrent())
	before := heap()
	code := run()
	var err error
	for deadline := time.Now().Add(patience); ; {
		if err = goleak.Find(ignore...); err == nil || !time.Now().Before(deadline) {
			break
		}
	}
	if err != nil {
		fmt.Fprintf(w, "leak: after the tests: %v\n", err)
		code = max(code, 1)
	}
	if after := heap(); after > before+room {
		fmt.Fprintf(w, "leak: after the tests: %d MB on the heap; before: %d MB\n", after>>20, before>>20)
		code = max(code, 1)
	}
	return code
}

// heap returns what is on the heap after a collection.
func heap() uint64 {
	var mem runtime.MemStats
	runtime.GC()
	runtime.GC() // what pools and finalizers kept through the first
	runtime.ReadMemStats(&mem)
	return mem.HeapAlloc
}
