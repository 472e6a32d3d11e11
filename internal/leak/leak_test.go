package leak

import (
	"strings"
	"testing"
	"time"
)

// hoard is memory that a test has kept.
var hoard []byte

// TestStatus is the control: what is left behind is noticed.
func TestStatus(t *testing.T) {
	end := make(chan struct{})
	defer close(end)
	for _, c := range []struct {
		name string
		run  func() int
		want int
		says string
	}{
		{"Nothing", func() int { return 0 }, 0, ""},
		{"TestsFailed", func() int { return 2 }, 2, ""},
		{"Goroutine", func() int { go func() { <-end }(); return 0 }, 1, "found unexpected goroutines"},
		{"GoroutineAndTestsFailed", func() int { go func() { <-end }(); return 2 }, 2, "found unexpected goroutines"},
		{"GoroutineThatEnds", func() int {
			go time.Sleep(10 * time.Millisecond) // it is on its way out
			return 0
		}, 0, ""},
		{"Memory", func() int { hoard = make([]byte, heapRoom+1<<20); return 0 }, 1, "MB on the heap"},
	} {
		t.Run(c.name, func(t *testing.T) {
			defer func() { hoard = nil }()
			var out strings.Builder
			if got := status(c.run, &out, 0, heapRoom, nil); got != c.want {
				t.Errorf("status = %d; want %d\n%s", got, c.want, &out)
			}
			if !strings.Contains(out.String(), c.says) || c.says == "" && out.Len() > 0 {
				t.Errorf("it says %q; want %q", &out, c.says)
			}
		})
	}
}

func TestMain(m *testing.M) { Main(m.Run) }
