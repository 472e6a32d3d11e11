package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/flightpg/flightpg"
)

// side is what was measured of one driver.
type side struct {
	Calls        int     `json:"calls"`
	Executions   int64   `json:"executions"`    // of the query, as the server counted them
	BackendsPeak int     `json:"backends_peak"` // connections that the server saw at a time
	P50          float64 `json:"p50_ms"`
	P99          float64 `json:"p99_ms"`
	CallsPerS    float64 `json:"calls_per_s"`
	Errors       int     `json:"errors"`
	QueryMS      float64 `json:"query_ms"` // the query alone, between the rounds
}

// report is all that was measured: the object that -json prints.
type report struct {
	config config

	Pgx            side       `json:"pgx"`
	Flightpg       side       `json:"flightpg"`
	ReadYourWrites raceResult `json:"read_your_writes"`

	QueryMS   float64 `json:"query_ms"` // flightpg's
	Callers   int     `json:"callers"`
	Rounds    int     `json:"rounds"`
	PgxConns  int     `json:"pgx_conns"`
	Mode      string  `json:"mode"`
	CountedBy string  `json:"counted_by"`
	Server    string  `json:"server_version"`
}

func (r report) writeJSON(w io.Writer) error {
	out, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	_, err = w.Write(append(out, '\n'))
	return err
}

// failure says why the run does not show what it should.
func (r report) failure() error {
	var errs []error
	if n := int64(r.Pgx.Errors+r.Flightpg.Errors) + r.ReadYourWrites.Errors; n > 0 {
		errs = append(errs, fmt.Errorf("%d calls failed", n))
	}
	if n := r.ReadYourWrites.Stale; n > 0 && r.config.mode != flightpg.ModeJoin {
		errs = append(errs, fmt.Errorf("%d stale reads", n))
	}
	return errors.Join(errs...)
}

func (r report) writeTable(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "\n%s callers ask the same query at once, %s.\n\n",
		grouped(int64(r.Callers)), plural(int64(r.Rounds), "time", "times"))

	line := func(name, pgx, flightpg, note string) {
		b.WriteString(strings.TrimRight(fmt.Sprintf("  %-14s %10s %10s   %s", name, pgx, flightpg, note), " ") + "\n")
	}
	p, f := r.Pgx, r.Flightpg
	line("", "pgx", "flightpg", "")
	line("calls", grouped(int64(p.Calls)), grouped(int64(f.Calls)), "")
	line("executions", grouped(p.Executions), grouped(f.Executions), times(float64(p.Executions), float64(f.Executions), "fewer", "more"))
	line("peak backends", grouped(int64(p.BackendsPeak)), grouped(int64(f.BackendsPeak)), "")
	line("query alone", shortMS(p.QueryMS), shortMS(f.QueryMS), "")
	line("p50", shortMS(p.P50), shortMS(f.P50), times(p.P50, f.P50, "faster", "slower"))
	line("p99", shortMS(p.P99), shortMS(f.P99), times(p.P99, f.P99, "faster", "slower"))
	line("calls per s", grouped(int64(p.CallsPerS)), grouped(int64(f.CallsPerS)), times(f.CallsPerS, p.CallsPerS, "more", "fewer"))
	line("errors", grouped(int64(p.Errors)), grouped(int64(f.Errors)), "")

	fmt.Fprintf(&b, "\npgx ran the query %s, flightpg %s: %s executions per call.\n",
		plural(p.Executions, "time", "times"), plural(f.Executions, "time", "times"), ratio(float64(f.Executions), float64(f.Calls)))
	if y := r.ReadYourWrites; y.Writes > 0 {
		fmt.Fprintf(&b, "Read your writes (mode %s): %s, each read back at once among %s other reads: %s stale.\n",
			r.Mode, plural(y.Writes, "write", "writes"), grouped(y.Reads), grouped(y.Stale))
	}
	fmt.Fprintf(&b, `
Executions are those that PostgreSQL %s counted in %s, backends
the connections in its pg_stat_activity, looked at every %v. Both drivers
may open %d, and had opened theirs before the clock started.
`, r.Server, r.CountedBy, sampleEvery, r.PgxConns)
	_, err := io.WriteString(w, b.String())
	return err
}

// median returns the middle one of values in any order.
func median(values []time.Duration) time.Duration {
	return percentile(slices.Sorted(slices.Values(values)), 50)
}

// percentile returns the value that p percent of the sorted values do not
// exceed: the nearest rank. Of none it is 0.
func percentile(sorted []time.Duration, p float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

func milliseconds(d time.Duration) float64 { return rounded(float64(d) / float64(time.Millisecond)) }

// rounded keeps two decimals.
func rounded(f float64) float64 { return math.Round(f*100) / 100 }

func shortMS(ms float64) string { return shortDuration(time.Duration(ms * float64(time.Millisecond))) }

// shortDuration writes a duration with two or three digits.
func shortDuration(d time.Duration) string {
	switch {
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", d.Seconds()*1000)
	case d < time.Second:
		return fmt.Sprintf("%.0f ms", d.Seconds()*1000)
	default:
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
}

// grouped writes a number with commas between thousands.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func plural(n int64, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return grouped(n) + " " + many
}

// times says how many times a is b, or nothing if they are about the same.
func times(a, b float64, more, less string) string {
	switch {
	case a <= 0 || b <= 0:
		return ""
	case a >= b*1.05:
		return ratio(a, b) + "× " + more
	case b >= a*1.05:
		return ratio(b, a) + "× " + less
	default:
		return ""
	}
}

func ratio(a, b float64) string {
	switch {
	case b == 0:
		return "no"
	case a/b >= 10:
		return grouped(int64(math.Round(a / b)))
	case a/b >= 0.1:
		return strconv.FormatFloat(a/b, 'f', 1, 64)
	default:
		return strconv.FormatFloat(a/b, 'g', 1, 64)
	}
}

// progress tells what is going on.
type progress struct {
	w        io.Writer
	terminal bool
	begin    time.Time
	mu       sync.Mutex // guards w
}

func newProgress(w io.Writer) *progress {
	p := &progress{w: w, begin: time.Now()}
	if f, ok := w.(*os.File); ok {
		info, err := f.Stat()
		p.terminal = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	return p
}

// say writes a line that stays.
func (p *progress) say(text string) { p.write(text, "\n") }

func (p *progress) write(text, end string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	begin := ""
	if p.terminal {
		begin = "\r\x1b[K" // in place of a line that did not end
	}
	fmt.Fprintf(p.w, "%s%5.1fs  %s%s", begin, time.Since(p.begin).Seconds(), text, end)
}

// watch writes what status says, until stop is called and then once more: on a
// terminal in one line that changes, else in a line every two seconds.
func (p *progress) watch(status func() string) (stop func()) {
	every, end := 2*time.Second, "\n"
	if p.terminal {
		every, end = 100*time.Millisecond, ""
	}
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.write(status(), end)
			case <-quit:
				p.say(status())
				return
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}
