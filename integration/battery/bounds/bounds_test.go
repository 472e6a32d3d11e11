package bounds

import (
	"fmt"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

const (
	kB = 1 << 10
	mB = 1 << 20

	maxResult = 1 * mB  // flight_max_result's default
	maxMemory = 64 * mB // flight_memory's default
)

// The fixed costs, in bytes, stacks of goroutines included, with perCaller and
// perFlight. Measured are 5 kB for a caller and 10 kB for a flight with its caller,
// of which 4 and 8 are stacks; the next larger stacks fit. Beside them stand the
// arguments of the callers, of which a flight has two copies.
const (
	// heapOfCaller and heapOfFlight are what in those is not stacks.
	heapOfCaller = 2 * kB
	heapOfFlight = 4 * kB
	// perConn and rowsPerConn are for a connection, of which pgx's own maps and
	// caches are 71 kB, and how many of its rows it may hold: the one that came, as
	// the server sent it and decoded, before it is known whether it fits, or while a
	// caller streams.
	perConn     = 96 * kB
	rowsPerConn = 3
	// countedWithin is the part of flight_memory that its count may be off by: the
	// allocator's sizes are known in rough, and what it does with the smallest
	// values depends on what was allocated between them.
	countedWithin = 8
	// perText is for a text in the cache of verdicts, beside itself, and remembered is
	// for all of them together.
	perText    = 1536
	remembered = 32 * mB
	// keptOfCaller is what stays of each caller there ever was at a time: the
	// lists of database/sql, which never become shorter.
	keptOfCaller = 96
	// slack is for everything else that has one size: the pools, the connections'
	// type maps, the sampling itself.
	slack = 4 * mB
)

// bound is what a load may take, in bytes.
type bound struct {
	held    int64 // 0: nobody is held
	live    int64
	garbage int64 // the heap in that: it grows to twice as much between collections
}

// check reports the figures of a load and compares them with the bound. It returns
// what exceeds it.
func check(e *battery.Entry, f figures, n int64, b bound) (exceeded []string) {
	over := func(what string, got, limit int64) {
		e.Set(what+" (bytes)", got)
		e.Set(what+" at most", limit)
		if got > limit {
			exceeded = append(exceeded, fmt.Sprintf("%s: %d bytes; want at most %d", what, got, limit))
		}
	}
	if b.held > 0 {
		over("held", f.Held.sum()-f.Before.sum(), b.held)
	}
	over("peak live heap and stacks", f.Peak.Live-f.Before.sum(), b.live)
	if f.Peak.Resident > 0 && !raceEnabled {
		// A quarter is for what the allocator does not use of its pages, and what
		// it notes of them.
		all := b.live + b.garbage
		over("peak resident", f.Peak.Resident-f.Before.Resident, all+all/4+16*mB)
	}
	over("kept afterwards", f.AfterIdle.sum()-f.Before.sum(), slack+n*keptOfCaller)
	return exceeded
}

// hold fails the test where a bound is exceeded.
func hold(t *testing.T, e *battery.Entry, f figures, n int, b bound) {
	t.Helper()
	for _, what := range check(e, f, int64(n), b) {
		t.Error(what)
	}
	if t.Failed() {
		t.Logf("figures: %+v", f)
	}
}

// notice fails the test unless a bound is exceeded: by the heap, whatever else is.
func notice(t *testing.T, e *battery.Entry, f figures, n int, b bound) {
	t.Helper()
	found := slices.ContainsFunc(check(e, f, int64(n), b), func(what string) bool { return strings.HasPrefix(what, "peak live") })
	e.Set("noticed", found)
	if !found {
		t.Errorf("without limits the bounds held: the measurement measures nothing: %+v", f)
	}
}

func TestBounds(t *testing.T) {
	seed := battery.Seed(t)
	dsn := pgtest.Database(t)
	const unlimited = 1 << 40

	large := job{
		Load: "one large", DSN: dsn, Seed: seed,
		Callers: battery.N(100, 1000), Rows: battery.N(32, 1024) * mB / (8 * kB), RowBytes: 8 * kB, ReadRows: 256,
		Limits: limits{FlightConns: 8, SessionConns: 16},
	}
	largeBound := func(j *job) bound {
		conns := int64(j.Limits.FlightConns + j.Limits.SessionConns)
		held := slack + int64(j.Callers)*perCaller
		live := slack + maxResult + int64(j.Callers)*perFlight + conns*(perConn+rowsPerConn*int64(j.RowBytes))
		return bound{held, live, live}
	}
	t.Run("OneLargeResult", func(t *testing.T) {
		j := large
		e := report(t, &j, "a result far over flight_max_result, asked for by all callers at once, is streamed, never buffered")
		f := run(t, j)
		hold(t, e, f, j.Callers, largeBound(&j))
		e.Set("result (bytes)", j.Rows*j.RowBytes)
		for _, name := range []string{"read whole", "read in part", "gave up", "bytes read"} {
			e.Set(name, f.Extra[name])
		}
		s := f.Stats
		if got := f.Extra["read whole"] + f.Extra["read in part"] + f.Extra["gave up"]; got != int64(j.Callers) || f.Extra["read whole"] == 0 {
			t.Errorf("of %d callers %v", j.Callers, f.Extra)
		}
		// One streams the flight, the others run their own, but for those who left
		// before.
		own := s.Bypasses["overflow"]
		if s.Overflows != 1 || own < uint64(j.Callers-1-j.Callers/10) || own > uint64(j.Callers-1) {
			t.Errorf("Stats = %+v; want 1 overflow, and nearly all others with a query of their own", s)
		}
	})
	t.Run("OneLargeResult/Control", func(t *testing.T) {
		j := large
		j.Callers, j.Rows = 20, battery.N(32, 256)*mB/j.RowBytes
		j.Limits.MaxResult, j.Limits.Memory = unlimited, unlimited
		e := report(t, &j, "control: without flight_max_result, the measurement notices")
		notice(t, e, run(t, j), j.Callers, largeBound(&j))
	})

	// 15 rows of 64 kB are the most that fit.
	many := job{
		Load: "many large", DSN: dsn, Seed: seed,
		Callers: battery.N(150, 10_000), Rows: 15, RowBytes: 64 * kB,
		Limits: limits{FlightConns: 16, SessionConns: 16}, // sessions serve, where streams hold the others
	}
	manyBound := func(j *job) bound {
		held := slack + maxMemory + maxMemory/countedWithin + int64(j.Callers)*perFlight + int64(j.Limits.FlightConns+j.Limits.SessionConns)*(perConn+rowsPerConn*int64(j.RowBytes))
		return bound{held, held, held}
	}
	t.Run("ManyLargeResults", func(t *testing.T) {
		j := many
		e := report(t, &j, "distinct results of nearly 1 MiB, all at once, their callers not reading: flight_memory holds")
		f := run(t, j)
		hold(t, e, f, j.Callers, manyBound(&j))
		e.Set("flights", f.Stats.Flights)
		e.Set("streamed", f.Stats.Overflows)
		e.Set("buffered when all was stuck (bytes)", f.Extra["buffered"])
		e.Set("callers with rows when all was stuck", f.Extra["holding"])
		if n := f.Extra["buffered"]; n > maxMemory || n < maxMemory/2 {
			t.Errorf("%d bytes buffered when no flight could go on; want nearly flight_memory", n)
		}
	})
	t.Run("ManyLargeResults/Control", func(t *testing.T) {
		j := many
		j.Callers = 150
		j.Limits.MaxResult, j.Limits.Memory = unlimited, unlimited
		e := report(t, &j, "control: without flight_memory, the measurement notices")
		notice(t, e, run(t, j), j.Callers, manyBound(&j))
	})

	t.Run("Shapes", func(t *testing.T) {
		shapes := []struct {
			columns       string
			rows, callers int
			rowBytes      int64
		}{
			{"$1::text" + strings.Repeat(", i", 200), 1, 700, 4 * kB},
			{"rpad($1::text, 32780, 'x')", 30, 40, 33 * kB},
			{"i + 1000, $1::text = ''", 9_000, 60, 64},
			{"$1::text" + strings.Repeat(", i + 1000", 50), 7, 1500, 2 * kB},
			{"rpad($1::text, 1040000, 'x')", 1, 40, mB},
			{"rpad($1::text, 4097, 'x')::bytea", 180, 40, 5 * kB},
			{"left($1::text, 9)::bytea, i::numeric", 5_000, 60, 128},
			{"now(), NULL, $1::text, to_jsonb(i)", 3_000, 60, 256},
			{"array[i, i], left($1::text, 1), 1.5::float8", 5_000, 60, 256},
			{"$1::text WHERE false", 1, 2_000, 64},
		}
		shapes = shapes[:battery.Quick(1, battery.N(2, len(shapes)))]
		// A result is counted for what it takes, whatever it looks like.
		const memory = 8 * mB
		e := battery.Report(t, "bounds", "flight_memory counts results of every shape for what they take", seed)
		e.Set("shapes", len(shapes))
		worst := 0.0
		for _, s := range shapes {
			columns, where, _ := strings.Cut(s.columns, " WHERE ")
			j := job{
				Load: "shapes", DSN: dsn, Seed: seed, Callers: s.callers, Rows: s.rows, Columns: columns, Where: where,
				Limits: limits{FlightConns: 4, SessionConns: 4, Memory: memory, MaxResult: 2 * mB},
			}
			f := run(t, j)
			limit := memory + memory/countedWithin + int64(j.Callers)*heapOfFlight + 8*(perConn+rowsPerConn*s.rowBytes)
			got := f.Held.Heap - f.Before.Heap
			worst = max(worst, float64(got)/float64(limit))
			if got > limit {
				t.Errorf("%d rows of %.60q: %d bytes held; want at most %d: %+v", s.rows, s.columns, got, limit, f)
			}
		}
		e.Set("largest part of the bound", worst)
	})

	short := 20_000
	if raceEnabled {
		short = 5_000
	}
	waiting := job{DSN: dsn, Seed: seed, Callers: battery.N(short, 400_000), Limits: limits{FlightConns: 8}}
	one, distinct := waiting, waiting
	one.Load, distinct.Load = "one key", "distinct keys"
	t.Run("OneKey", func(t *testing.T) {
		e := report(t, &one, "callers that wait for one flight cost a fixed amount each")
		n := int64(one.Callers)
		f := withoutConvoy(t, e, one)
		hold(t, e, f, one.Callers, bound{slack + n*perCaller, slack + n*perCaller, n * heapOfCaller})
		perWaiter(e, f, n)
		if s := f.Stats; s.Flights != 2 || s.Joins != uint64(n-1) {
			t.Errorf("Stats = %+v; want one flight for all", s)
		}
	})
	t.Run("DistinctKeys", func(t *testing.T) {
		e := report(t, &distinct, "callers that wait for a flight of their own each cost a fixed amount")
		n := int64(distinct.Callers)
		f := withoutConvoy(t, e, distinct)
		hold(t, e, f, distinct.Callers, bound{slack + n*perFlight, slack + n*perFlight, n * heapOfFlight})
		perWaiter(e, f, n)
		if s := f.Stats; s.Flights != uint64(n+1) || s.Joins != 0 {
			t.Errorf("Stats = %+v; want a flight for each", s)
		}
	})
	t.Run("OneKey/Control", func(t *testing.T) {
		j := one
		j.Callers, j.Convoy = 2_000, true
		e := report(t, &j, "control: a lock that all callers queue for is noticed")
		f := run(t, j)
		waits, _ := waitsFor(e, f, "github.com/flightpg/flightpg/integration/battery/bounds")
		e.Set("noticed", waits > int64(j.Callers)/2)
		if waits <= int64(j.Callers)/2 {
			t.Errorf("%d waits for the lock that %d callers take: %v", waits, j.Callers, f.Locks)
		}
	})

	t.Run("Texts", func(t *testing.T) {
		for _, length := range battery.N([]int{64 * kB}, []int{100, 64 * kB}) {
			j := job{
				Load: "texts", DSN: withParam(t, dsn, "statement_cache_capacity", "32"), Seed: seed, Callers: 8,
				Texts: 100_000, Bytes: length, Limits: limits{FlightConns: 4},
			}
			if length > kB {
				j.Texts = battery.N(800, 5_000)
			}
			e := battery.Report(t, "bounds", fmt.Sprintf("texts of %d bytes that are never the same: what is remembered of them is bounded", length), seed)
			e.Set("texts", j.Texts)
			f := run(t, j)
			cached := min(int64(j.Texts), 10_000)
			b := bound{live: slack + min(cached*(int64(length)+perText), remembered) +
				int64(j.Limits.FlightConns)*(perConn+(32+rowsPerConn)*(int64(length)+perText))}
			got := f.After.sum() - f.Before.sum()
			e.Set("remembered (bytes)", got)
			e.Set("remembered at most", b.live)
			if got > b.live {
				t.Errorf("%d bytes are remembered of %d texts of %d bytes; want at most %d", got, j.Texts, length, b.live)
			}
			if total := int64(j.Texts) * (int64(length) + perText); total < b.live {
				t.Errorf("%d bytes of text in all do not test a bound of %d", total, b.live)
			}
		}
	})
}

// report begins the entry of a load.
func report(t *testing.T, j *job, claim string) *battery.Entry {
	e := battery.Report(t, "bounds", claim, j.Seed)
	e.Set("callers", j.Callers)
	return e
}

// perWaiter reports what one caller has cost.
func perWaiter(e *battery.Entry, f figures, n int64) {
	e.Set("heap of a caller (bytes)", (f.Held.Heap-f.Before.Heap)/n)
	e.Set("stacks of a caller (bytes)", (f.Held.Stacks-f.Before.Stacks)/n)
	e.Set("a bare goroutine (bytes)", f.Extra["bare goroutine"])
}

// withoutConvoy runs the job, and fails the test if most callers wait for one of
// flightpg's locks. How long they wait says little: a machine with other work
// makes any wait long. That can also stop a goroutine that holds a lock, and then
// many wait; but not each time, as they would for a lock that is held for too long.
//
// database/sql's own lock is a convoy in that sense, with every driver, when so
// many callers come at once. It is in the report beside ours. That of the pool of
// flight connections counts as database/sql's.
func withoutConvoy(t *testing.T, e *battery.Entry, j job) figures {
	t.Helper()
	for attempt := 1; ; attempt++ {
		f := run(t, j)
		ours, all := waitsFor(e, f, "github.com/flightpg/flightpg")
		if ours <= int64(j.Callers)/2 {
			e.Set("runs until most callers waited for none of flightpg's locks", attempt)
			return f
		}
		if attempt == 3 {
			t.Errorf("%d waits (of %d) for flightpg's locks with %d callers, three times: %v", ours, all, j.Callers, f.Locks)
			return f
		}
	}
}

// waitsFor reports how often goroutines waited for a lock that code of the package
// (and those below it) held, and for any.
func waitsFor(e *battery.Entry, f figures, pkg string) (ours, all int64) {
	var longest []string
	for i, l := range f.Locks {
		all += l.Waits
		if strings.HasPrefix(l.Function, pkg) {
			ours += l.Waits
			e.Set("waits for "+strings.TrimPrefix(l.Function, pkg), fmt.Sprintf("%d, %v together", l.Waits, l.Delay))
		}
		if i < 3 {
			longest = append(longest, fmt.Sprintf("%s (%d waits, %v together)", short(l.Function), l.Waits, l.Delay))
		}
	}
	e.Set("waits for flightpg's locks", ours)
	e.Set("waits for any lock", all)
	e.Set("longest waits", strings.Join(longest, "; "))
	return ours, all
}

func short(function string) string {
	return strings.ReplaceAll(function, "github.com/flightpg/flightpg/", "")
}

func withParam(t *testing.T, dsn, name, value string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}
