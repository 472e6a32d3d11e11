package main

import (
	"bytes"
	"fmt"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/flightpg/flightpg"
)

// line is what is printed after a weather.
func (st *storm) line(name string, begin, end time.Duration, r *recovery) string {
	back := ""
	if r != nil {
		back = fmt.Sprintf("  back to normal after %s, pgx after %s", ago(r.normal[flight]), ago(r.normal[plain]))
	}
	var errs [sides]string
	for i, s := range st.sides {
		s.book.mu.Lock()
		errs[i] = fmt.Sprintf("%7d calls %5d wrong %5d errors", s.book.calls, s.book.wrong, sum(s.book.kinds()))
		s.book.mu.Unlock()
	}
	return fmt.Sprintf("%8s  %-34s %5d ms  %s; pgx: %s%s", begin.Round(time.Second), name, (end - begin).Milliseconds(), errs[flight], errs[plain], back)
}

func ago(d time.Duration) string {
	if d < 0 {
		return "never"
	}
	return d.String()
}

// report is the storm in words and tables.
func (st *storm) report() string {
	var b bytes.Buffer
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	violations := st.result.violations()
	verdict := "passed"
	if len(violations) > 0 {
		verdict = fmt.Sprintf("FAILED: %d violations", len(violations))
	}
	f, x := &st.result.sides[flight], &st.result.sides[plain]
	p("flightpg's storm: %s", verdict)
	p("")
	p("  began      %s", st.begin.UTC().Format("2006-01-02 15:04:05 MST"))
	p("  duration   %v (asked for: %v)", st.took.Round(time.Second), st.duration)
	p("  callers    %d of each side, with at most %d connections", st.callers, st.conns)
	p("  driver     %s, beside pgx's own", st.driver)
	p("  seed       %d", st.seed)
	p("  versions   PostgreSQL %s, %s, pgx %s, %s/%s, %d CPUs", st.version, runtime.Version(), pgxVersion(), runtime.GOOS, runtime.GOARCH, runtime.NumCPU())
	p("")
	if len(violations) > 0 {
		p("Violations")
		p("")
		for _, v := range violations {
			p("  %s", v)
		}
		p("")
	}
	p("Side by side")
	p("")
	row := func(name string, a, b any) { p("  %-50s %14v %14v", name, a, b) }
	ms := func(d time.Duration) string { return fmt.Sprintf("%d ms", max(d, 0).Milliseconds()) }
	row("", st.sides[flight].name, "pgx")
	row("calls", f.calls, x.calls)
	row("wrong rows", f.wrong, x.wrong)
	row("uses of one codec by two at once", f.shared, x.shared)
	row("calls that hung", f.hangs, x.hangs)
	row("longest call without a deadline", ms(f.longest), ms(x.longest))
	row("longest beyond a deadline", ms(f.overrun), ms(x.overrun))
	row("migrations", f.migrations, x.migrations)
	row("slowest migration", ms(f.slowest), ms(x.slowest))
	for _, k := range union(f.refused, x.refused) {
		row("migrations failed: "+k, f.refused[k], x.refused[k])
	}
	fk, xk := f.kinds(), x.kinds()
	for _, kind := range union(fk, xk) {
		name := "errors: " + kind
		if class := classOf(kind); class != kind {
			name += " (" + class + ")"
		}
		row(name, fk[kind], xk[kind])
	}
	var usual [sides]string
	for i := range usual {
		usual[i] = fmt.Sprintf("%.0f/s", st.usual[i]*float64(time.Second/window))
	}
	row("reads in calm times", usual[flight], usual[plain])
	p("")
	p("  the machine stood still for %d times %v or less, at most for %v at a time", sum(st.result.moody), window, st.result.stood.Round(time.Millisecond))
	if st.driver != "pgx" {
		s := flightpg.ReadStats(st.sides[flight].db)
		p("")
		p("  flightpg: %d flights, %d joins, %d retries", s.Flights, s.Joins, s.Retries)
	}
	p("")
	p("Weather: how often, wrong rows and errors while it lasted and until the next")
	p("")
	p("  %-36s %6s %9s %7s  %13s %7s  %s", "", "times", "flightpg", "pgx", "worst return", "pgx's", "wrong rows and errors of flightpg | of pgx")
	calm := []string{"calm"}
	for _, w := range weathers {
		calm = append(calm, w.name)
	}
	for _, name := range calm {
		var seen [sides]map[string]int
		for i, s := range st.sides {
			seen[i] = make(map[string]int)
			maps.Copy(seen[i], s.book.errors[name])
			if n := s.book.strange[name]; n > 0 {
				seen[i][wrongRow] = n
			}
		}
		a, b := seen[flight], seen[plain]
		worst, worstPgx := "", ""
		var back [sides]time.Duration
		for i, any := 0, false; i < len(st.result.recoveries); i++ {
			r := &st.result.recoveries[i]
			if r.weather != name {
				continue
			}
			for k, d := range r.normal {
				if d < 0 {
					d = time.Hour // never
				}
				if !any || d > back[k] {
					back[k] = d
				}
			}
			any = true
			worst, worstPgx = worstOf(back[flight]), worstOf(back[plain])
		}
		p("  %-36s %6d %9d %7d  %13s %7s  %s | %s", name, st.result.came[name], sum(a), sum(b), worst, worstPgx, listed(a), listed(b))
	}
	for _, s := range st.sides {
		if len(s.book.told) == 0 {
			continue
		}
		p("")
		p("The first of each kind: %s", s.name)
		p("")
		for _, kind := range slices.Sorted(maps.Keys(s.book.told)) {
			for _, t := range s.book.told[kind] {
				if len(t) > 400 && kind != "panic" {
					t = t[:400] + "…"
				}
				p("  %s: %s", kind, strings.ReplaceAll(t, "\n", "\n    "))
			}
		}
	}
	if len(st.hung) > 0 {
		p("")
		p("Calls that hung")
		p("")
		for _, h := range st.hung {
			p("  %s", h)
		}
	}
	return b.String()
}

func worstOf(d time.Duration) string {
	if d == time.Hour {
		return "never"
	}
	return d.String()
}

func union(a, b map[string]int) []string {
	m := maps.Clone(a)
	maps.Copy(m, b)
	return slices.Sorted(maps.Keys(m))
}

func sum(m map[string]int) (n int) {
	for _, k := range m {
		n += k
	}
	return n
}

func listed(m map[string]int) string {
	if len(m) == 0 {
		return "-"
	}
	var parts []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s %d", k, m[k]))
	}
	return strings.Join(parts, ", ")
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
