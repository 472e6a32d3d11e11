// Package growth measures, for tests, how the time and the memory that a
// function takes for a text grow with the text's length.
package growth

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	// maxExponent is far from 1, and n log n, on one side and from 2 on the
	// other: what a cache or a busy machine adds does not reach it.
	maxExponent = 1.5

	// floor is the time that counts as none.
	floor = 10 * time.Microsecond
)

// A Func is what is measured: it does something with a text.
type Func struct {
	Name string
	Do   func(sql string)
}

// Texts are a shape's texts, each four times as long as the one before.
type Texts [3]string

// Sizes returns how long a shape's texts are to be. FLIGHTPG_GROWTH_N is the
// length of the longest; without it, short.
func Sizes(t testing.TB, short int) [3]int {
	n := short
	if env := os.Getenv("FLIGHTPG_GROWTH_N"); env != "" {
		var err error
		if n, err = strconv.Atoi(env); err != nil || n < 1<<10 {
			t.Fatalf("FLIGHTPG_GROWTH_N=%s: want a number of bytes, 1024 or more", env)
		}
	}
	return [3]int{n / 16, n / 4, n}
}

// Check runs each function on a shape's texts. It fails the test for time that
// grows clearly faster than the text, and for more memory from the allocator than
// bytes for each byte of the text. It returns a line for a table.
func Check(t testing.TB, shape string, texts Texts, bytes float64, funcs []Func) string {
	t.Helper()
	var total [len(texts)]time.Duration
	worst, exponent, most := "", 0.0, 0.0
	for _, f := range funcs {
		var times [len(texts)]time.Duration
		for i, sql := range texts {
			n := allocated(f, sql, &times[i])
			most = max(most, n/float64(len(sql)))
			if limit := constant + bytes*float64(len(sql)); n > limit {
				t.Errorf("%s: %s allocates %.0f bytes for a text of %d; want at most %.0f", shape, f.Name, n, len(sql), limit)
			}
		}
		e := 0.0
		// Noise only adds time, and mostly to some of the sizes: each try keeps the
		// shortest times of those before, and a function that is slow by itself
		// stays above the limit.
		for try := range 4 {
			for i, sql := range texts {
				times[i] = min(times[i], shortest(f, sql, 1<<try))
			}
			if e = fit(texts, times); e <= maxExponent {
				break
			}
		}
		if e > maxExponent {
			t.Errorf("%s: the time of %s grows with the power %.2f of the length: %v", shape, f.Name, e, times)
		}
		if worst == "" || e > exponent {
			worst, exponent = f.Name, e
		}
		for i := range times {
			total[i] += times[i]
		}
	}
	line := fmt.Sprintf("%-34s", shape)
	for i, sql := range texts {
		line += fmt.Sprintf(" %8d %10v", len(sql), total[i].Round(time.Microsecond))
	}
	return line + fmt.Sprintf("  %5.2f %-9s %6.1f", exponent, worst, most)
}

// Header is that of the table.
func Header() string {
	line := fmt.Sprintf("%-34s", "shape")
	return line + strings.Repeat(fmt.Sprintf(" %8s %10s", "bytes", "CPU"), len(Texts{})) + "  worst exponent   alloc/byte"
}

// constant is what a function may allocate for any text.
const constant = 16 << 10

// shortest returns the shortest time of some runs, fewer if they are long.
func shortest(f Func, sql string, runs int) time.Duration {
	runtime.LockOSThread() // the clock is the thread's
	defer runtime.UnlockOSThread()
	least := time.Duration(math.MaxInt64)
	for spent := time.Duration(0); runs > 0; runs-- {
		start := cpuTime()
		f.Do(sql)
		d := cpuTime() - start
		least = min(least, d)
		if spent += d; spent > time.Second {
			break
		}
	}
	return least
}

// allocated returns the bytes that a function takes from the allocator, and sets
// took to its time.
func allocated(f Func, sql string, took *time.Duration) float64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	*took = shortest(f, sql, 1)
	runtime.ReadMemStats(&after)
	return float64(after.TotalAlloc - before.TotalAlloc)
}

// fit returns the exponent of the power of the length that the times come
// closest to, by least squares of the logarithms.
func fit(texts Texts, times [len(Texts{})]time.Duration) float64 {
	var sx, sy, sxx, sxy float64
	for i := range texts {
		x, y := math.Log(float64(len(texts[i]))), math.Log(float64(max(times[i], floor)))
		sx, sy, sxx, sxy = sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	n := float64(len(texts))
	return (n*sxy - sx*sy) / (n*sxx - sx*sx)
}
