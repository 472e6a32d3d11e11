// Package bounds holds flightpg to its limits on memory: whatever the callers do,
// what the process needs stays within flight_memory plus a fixed cost for each
// caller that waits and for each connection; and it is given back afterwards.
//
// Each load runs on a real PostgreSQL and in a process of its own (the test's
// binary, executed again with a job in its environment), so that its peak is
// nobody else's. Three figures are taken there, each less what the process needed
// before the load:
//
//   - held: the heap after a collection, and the stacks, at a moment when all
//     callers are known to be parked. It is exact, the same in each run, and
//     what the fixed costs below are stated in;
//   - the largest live heap that a collection found during the load;
//   - the peak of the resident memory (VmHWM), garbage included. Linux only, and
//     not under the race detector, which multiplies it.
//
// The callers are parked by a table, gate, that every read selects from and that
// the test locks: flights stay under way until it lets them go.
//
// A measurement that cannot fail proves nothing: the controls lift the limits and
// must be seen to exceed the bounds.
//
// Reading order: bounds_test.go (claims and bounds) → loads_test.go (what the
// callers do) → child_test.go (processes and figures) → contention_test.go (who
// waits for which lock).
package bounds

import (
	"fmt"
	"os"
	"testing"

	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

func TestMain(m *testing.M) {
	if job := os.Getenv(envJob); job != "" {
		if err := work(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Compiling its queries is all that the server would do in new sessions.
	leak.Main(func() int { return pgtest.Run(m, pgtest.WithSetting("jit", "off")) })
}
