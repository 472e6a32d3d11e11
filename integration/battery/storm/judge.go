package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// outcome is what came of a read.
type outcome struct {
	begin, end time.Duration // since the storm's begin
	deadline   time.Duration // after begin; 0: none
	wrong      string        // what is wrong with its rows
	kind       string        // of its error
	what       string        // was asked, if something is wrong
}

// tally are a side's figures: all that the verdict looks at.
type tally struct {
	calls      int
	wrong      int                       // with rows that are not theirs
	errors     map[string]map[string]int // by weather and kind
	longest    time.Duration             // of a call without a deadline
	overrun    time.Duration             // the longest by which a call outlived its deadline
	hangs      int                       // calls that had not returned in the end
	shared     int                       // uses of one codec by two at once
	migrations int
	refused    map[string]int // migrations that failed, by kind
	slowest    time.Duration  // of the migrations
}

// book keeps a side's figures. It is safe for concurrent use.
type book struct {
	mu sync.Mutex // guards the rest
	tally
	strange map[string]int      // wrong rows, by weather
	told    map[string][]string // the first of each kind
	events  []outcome           // since the last fault's begin
}

func newBook() *book {
	return &book{
		tally:   tally{errors: make(map[string]map[string]int), refused: make(map[string]int)},
		strange: make(map[string]int), told: make(map[string][]string),
	}
}

// wrongRow is how the report calls one.
const wrongRow = "WRONG ROW"

// note counts what came of a read while some weather went on.
func (b *book) note(o outcome, weather string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.calls++
	took := o.end - o.begin
	if o.deadline == 0 {
		b.longest = max(b.longest, took)
	} else {
		b.overrun = max(b.overrun, took-o.deadline)
	}
	b.events = append(b.events, o)
	kind := o.kind
	switch {
	case o.wrong != "":
		b.wrong++
		b.strange[weather]++
		kind = wrongRow
	case kind == "":
		return
	case b.errors[weather] == nil:
		b.errors[weather] = map[string]int{kind: 1}
	default:
		b.errors[weather][kind]++
	}
	if what := weather + ": " + o.what; len(b.told[kind]) < maxTold {
		if o.wrong != "" {
			what += ": " + o.wrong
		}
		b.told[kind] = append(b.told[kind], what)
	}
}

const maxTold = 3

// migrated counts a migration.
func (b *book) migrated(name string, took time.Duration, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.migrations++
	b.slowest = max(b.slowest, took)
	if err != nil {
		kind := kindOf(err, false)
		b.refused[kind]++
		b.told["migration: "+kind] = append(b.told["migration: "+kind], fmt.Sprintf("%s, after %v: %v", name, took.Round(time.Millisecond), err))
	}
}

// settled forgets missed deadlines of the time in which everybody connects.
func (b *book) settled() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, kinds := range b.errors {
		delete(kinds, deadline)
	}
}

// since forgets what came before a fault.
func (b *book) since() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.events = nil
}

// after returns what came of reads that began after a moment, in the order of their
// ends.
func (b *book) after(moment time.Duration) (events []outcome) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := range b.events {
		if b.events[i].begin >= moment {
			events = append(events, b.events[i])
		}
	}
	return events
}

// kindOf names an error: by its SQLSTATE, or by what happened to the connection. Of a
// caller whose deadline has passed, what ends its call is the deadline.
func kindOf(err error, left bool) string {
	var pgErr *pgconn.PgError
	var network net.Error
	switch {
	case err == nil:
		return ""
	case errors.Is(err, errPanic):
		return "panic"
	case errors.As(err, &pgErr):
		if left && pgErr.Code == "57014" {
			return deadline
		}
		return pgErr.Code
	}
	kind := ""
	for _, k := range []struct {
		target error
		name   string
	}{
		{syscall.ECONNREFUSED, "refused"},
		{syscall.ECONNRESET, "reset"},
		{syscall.EPIPE, "pipe"},
		{io.EOF, "EOF"},
		{io.ErrUnexpectedEOF, "EOF"},
		{net.ErrClosed, "closed"},
		{context.DeadlineExceeded, "another's deadline"},
		{context.Canceled, "another's cancellation"},
		{driver.ErrBadConn, "bad connection"},
	} {
		if errors.Is(err, k.target) {
			kind = k.name
			break
		}
	}
	text := err.Error()
	switch {
	case kind != "":
	case strings.Contains(text, "conn closed"):
		kind = "closed"
	case errors.As(err, &network):
		kind = "network"
	case strings.Contains(text, "can't scan"), strings.Contains(text, "cannot scan"), strings.Contains(text, "Scan error"), strings.Contains(text, "convert field"):
		return "scan"
	default:
		return "other: " + text[:min(len(text), 60)]
	}
	if left {
		return deadline
	}
	return kind
}

// Kinds that are one to an application. Which of them a caller meets depends on the
// moment: whether the server's last word arrived before the connection broke, and
// whether a statement was described before the DDL or after it.
var classes = []struct {
	name  string
	kinds []string
}{
	{connectionLost, []string{"57P01", "57P02", "57P03", "08000", "08001", "08003", "08006", "EOF", "reset", "pipe", "refused", "closed", "network", "bad connection"}},
	{staleStatement, []string{"0A000", "XX000", "26000", "08P01", "42703", "42704", "42883"}},
}

const (
	connectionLost = "connection lost"
	staleStatement = "stale statement"
	deadline       = "deadline"
)

// classOf returns the class of a kind, which may be one of its own.
func classOf(kind string) string {
	for _, c := range classes {
		if slices.Contains(c.kinds, kind) {
			return c.name
		}
	}
	return kind
}

// recovery is how long a fault's end was ago when reads succeeded again as they did
// before: negative, if they did not while anybody looked, which was so long.
type recovery struct {
	weather string
	normal  [sides]time.Duration
	looked  time.Duration
	moody   int // how often the machine stood still meanwhile
}

// result is a storm as its judge sees it.
type result struct {
	callers    int
	together   bool           // weathers follow one another so soon that no error is one's own
	came       map[string]int // how often each weather did
	moody      map[string]int // how often the machine stood still meanwhile, for a window or less
	stood      time.Duration  // the longest time that it did
	sides      [sides]tally
	recoveries []recovery
}

// Slack, so that no verdict hangs on the machine's mood. With pgx on both sides the
// counts of errors differ by up to a quarter, and those of missed deadlines by up to
// a dozen among 256 callers besides: which calls a fault meets is chance.
const (
	// share is how many times pgx's errors of a class, relative to calls, are the same,
	// and deadlineShare that of missed deadlines: on a machine that has too much to do,
	// who waits in which pool is chance.
	share         = 1.3
	deadlineShare = 2
	// perFault is the part of the callers that may have errors on top with each fault.
	// Those who wait for one thing miss their deadlines together, and a read that is
	// made again meets more than one of the connections that a fault cuts.
	perFault = 1. / 16
	// patience is how much longer than with pgx anything may take.
	patience = 5 * time.Second
	// recoverIn is how much later than with pgx reads must succeed as before.
	recoverIn = time.Second
	// moodTime is how long nothing is done when the machine stands still, and what
	// it takes to catch up.
	moodTime = 2 * window
)

// allowed is how many errors of a class there may be with so many faults, those of the
// machine among them, beside pgx's.
func (r *result) allowed(class string, faults float64, pgx int) int {
	calls := max(1, float64(r.sides[flight].calls)/float64(max(1, r.sides[plain].calls)))
	most := float64(pgx) * calls
	slack := faults * max(2, float64(r.callers)*perFault)
	switch class {
	case deadline:
		return int(most*deadlineShare + slack)
	case connectionLost:
		return int(most*share + slack)
	}
	return int(most * share) // no fault explains more, or flightpg repairs it
}

// classes returns the errors by class and weather.
func (t *tally) classes() map[string]map[string]int {
	m := make(map[string]map[string]int)
	for weather, kinds := range t.errors {
		for kind, n := range kinds {
			class := classOf(kind)
			if m[class] == nil {
				m[class] = make(map[string]int)
			}
			m[class][weather] += n
		}
	}
	return m
}

// kinds returns the errors by kind.
func (t *tally) kinds() map[string]int {
	m := make(map[string]int)
	for _, kinds := range t.errors {
		for kind, n := range kinds {
			m[kind] += n
		}
	}
	return m
}

// violations is the verdict: nothing, if flightpg was as good as pgx.
func (r *result) violations() (v []string) {
	tell := func(format string, args ...any) { v = append(v, fmt.Sprintf(format, args...)) }
	f, p := &r.sides[flight], &r.sides[plain]
	if f.wrong > 0 {
		tell("%d wrong rows", f.wrong)
	}
	if p.wrong > 0 {
		tell("%d wrong rows with pgx: the storm is wrong", p.wrong)
	}
	if f.shared > p.shared {
		tell("%d times two used one connection's codec at once", f.shared)
	}
	here, there := f.classes(), p.classes()
	for _, class := range slices.Sorted(maps.Keys(here)) {
		// (That its time is over says nothing about a call: only how many there are does.)
		if len(there[class]) == 0 && class != deadline {
			tell("%d errors of class %q, which pgx's callers never had", sum(here[class]), class)
			continue
		}
		// What is stale, a connection finds out when it is used again: in any weather.
		if r.together || class == staleStatement {
			n, pgx := sum(here[class]), sum(there[class])
			if class == deadline { // as below
				pgx += max(0, sum(there[connectionLost])-sum(here[connectionLost]))
			}
			// A quarter of the weathers has such errors.
			if most := r.allowed(class, float64(sum(r.came))/4+float64(sum(r.moody)), pgx); n > most {
				tell("%d errors of class %q; pgx had %d, which allows %d", n, class, pgx, most)
			}
			continue
		}
		for _, weather := range slices.Sorted(maps.Keys(here[class])) {
			n, pgx := here[class][weather], there[class][weather]
			if class == deadline {
				// Who hears with pgx that his connection is lost waits with flightpg for
				// another one, and it is his deadline that he may meet.
				pgx += max(0, there[connectionLost][weather]-here[connectionLost][weather])
			}
			if most := r.allowed(class, float64(max(1, r.came[weather])+r.moody[weather]), pgx); n > most {
				tell("in %q: %d errors of class %q; pgx had %d, which allows %d", weather, n, class, pgx, most)
			}
		}
	}
	if f.hangs > p.hangs {
		tell("%d calls hung; with pgx %d", f.hangs, p.hangs)
	}
	for _, c := range []struct {
		what    string
		of, pgx time.Duration
	}{
		{"a call without a deadline took %v; with pgx at most %v", f.longest, p.longest},
		{"a call outlived its deadline by %v; with pgx by at most %v", f.overrun, p.overrun},
		{"a migration took %v; beside pgx at most %v", f.slowest, p.slowest},
	} {
		if c.of > max(c.pgx, 0)+patience+r.stood {
			tell(c.what, c.of.Round(time.Millisecond), max(c.pgx, 0).Round(time.Millisecond))
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(f.refused)) {
		if f.refused[kind] > p.refused[kind] {
			tell("%d migrations failed with %s; beside pgx %d", f.refused[kind], kind, p.refused[kind])
		}
	}
	for _, c := range r.recoveries {
		if c.late() {
			tell("after %q reads were not as before %v after its end; with pgx after %v", c.weather, c.looked.Round(10*time.Millisecond), c.normal[plain])
		}
	}
	return v
}

// late reports whether flightpg was back later than it may be. Where pgx is not back
// either, nobody can tell.
func (c *recovery) late() bool {
	f, p := c.normal[flight], c.normal[plain]
	if p < 0 {
		return false
	}
	most := p + recoverIn + time.Duration(c.moody)*moodTime
	if f < 0 {
		return c.looked >= most
	}
	return f > most
}

// window is the time in which reads must succeed at their usual rate, without an
// error, to be as before.
const window = 100 * time.Millisecond

// windows counts what came of reads that began after a fault, window by window.
func windows(events []outcome, end, now time.Duration) (ok, failed []int) {
	n := int((now - end) / window)
	ok, failed = make([]int, n), make([]int, n)
	for _, e := range events {
		i := int((e.end - end) / window)
		if i >= n {
			continue
		}
		if e.kind != "" || e.wrong != "" {
			failed[i]++
		} else {
			ok[i]++
		}
	}
	return ok, failed
}

// backToNormal returns when, after a fault's end, the first window begins in which no
// read failed that began after it, and at least half as many succeeded as usual: or,
// on flightpg's side, as with pgx in the same window, if those are fewer. Negative: in
// none so far.
func backToNormal(events [sides][]outcome, usual [sides]float64, end, now time.Duration) (normal [sides]time.Duration) {
	pgxOK, pgxFailed := windows(events[plain], end, now)
	ok, failed := windows(events[flight], end, now)
	first := func(good func(i int) bool) time.Duration {
		for i := range pgxOK {
			if good(i) {
				return time.Duration(i) * window
			}
		}
		return -1
	}
	normal[plain] = first(func(i int) bool { return pgxFailed[i] == 0 && float64(pgxOK[i]) >= usual[plain]/2 })
	normal[flight] = first(func(i int) bool {
		return failed[i] == 0 && ok[i] > 0 && float64(ok[i]) >= min(usual[flight], float64(pgxOK[i]))/2
	})
	return normal
}
