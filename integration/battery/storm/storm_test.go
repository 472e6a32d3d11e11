package main

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestStorm has flightpg beside pgx go through each weather at least once.
func TestStorm(t *testing.T) {
	seed := battery.Seed(t)
	e := battery.Report(t, "storm", "through bad weather flightpg's callers fare no worse than pgx's", seed)
	st := stormFor(t, config{driver: "auto", duration: battery.Quick(0, battery.N(40*time.Second, 5*time.Minute)), short: battery.Quick(true, false), seed: seed})
	r := &st.result
	e.Set("calls", r.sides[flight].calls)
	e.Set("calls of pgx", r.sides[plain].calls)
	e.Set("weather", sum(r.came))
	e.Set("errors", listed(r.sides[flight].kinds()))
	e.Set("errors of pgx", listed(r.sides[plain].kinds()))
	e.Set("violations", len(r.violations()))
	if len(r.violations()) > 0 {
		t.Error("\n" + st.report())
	}
	for i := range weathers {
		if r.came[weathers[i].name] == 0 {
			t.Errorf("there was no %q", weathers[i].name)
		}
	}
	if len(r.sides[plain].kinds()) < 3 {
		t.Errorf("pgx's callers had the errors %v only: this was no storm", r.sides[plain].kinds())
	}
}

// TestControls plants faults on flightpg's side, for which pgx's own driver stands in,
// and the storm must find them; and nothing where there is nothing.
func TestControls(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN with -short: half a minute; TestVerdict and TestTexts have the judge see as much")
	}
	planted := errors.New("planted")
	lie := func(wrong string, err error) func(string, string, error) (string, error) {
		return func(name, w string, e error) (string, error) {
			if name == "document" {
				return wrong, err
			}
			return w, e
		}
	}
	release := make(chan struct{})
	var conns atomic.Int64
	for _, tc := range []struct {
		name  string
		plant config
		want  string // a violation
	}{
		{"Nothing", config{}, ""},
		{"OthersSettings", config{hook: func(ctx context.Context, conn *pgx.Conn) error {
			if conns.Add(1)%4 != 0 {
				return nil
			}
			_, err := conn.Exec(ctx, `SET TimeZone = 'America/Caracas'`)
			return err
		}}, "wrong rows"},
		{"Deadlocks", config{lie: lie("", &pgconn.PgError{Code: "40P01"})}, `errors of class "40P01", which pgx's callers never had`},
		{"AnotherError", config{lie: lie("", planted)}, `errors of class "other: planted", which pgx's callers never had`},
		{"Hang", config{lie: func(name, w string, e error) (string, error) {
			if name == "document" {
				<-release
			}
			return w, e
		}}, "calls hung; with pgx 0"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg := tc.plant
			cfg.driver, cfg.short, cfg.seed = "pgx", true, battery.Seed(t)
			cfg.callers, cfg.conns = 96, 48
			if tc.want == "" { // DDL keeps pgx's callers busy for as long as chance will have it
				cfg.weather = regexp.MustCompile("LOCK|INDEX|VACUUM|terminated|stalls|never|reset|slow")
			} else {
				cfg.weather = regexp.MustCompile("CREATE INDEX")
				cfg.callers, cfg.conns = 32, 8
			}
			e := battery.Report(t, "storm", "control: "+tc.name, cfg.seed)
			st := stormFor(t, cfg)
			if tc.name == "Hang" {
				close(release)
				time.Sleep(50 * time.Millisecond) // their goroutines end; TestMain waits for them anyway
			}
			told := strings.Join(st.result.violations(), "\n")
			e.Set("found", len(st.result.violations()))
			if tc.want == "" && told != "" || !strings.Contains(told, tc.want) {
				t.Errorf("violations:\n%s\nwant: %q\n%s", told, tc.want, st.report())
			}
		})
	}
}

// testConns is how many connections each side may have in the longest test.
const testConns = 64

func stormFor(t *testing.T, cfg config) *storm {
	t.Helper()
	cfg.out = io.Discard
	if testing.Verbose() {
		cfg.out = t.Output()
	}
	if cfg.callers == 0 {
		cfg.callers, cfg.conns = battery.Quick(96, 256), battery.Quick(48, testConns)
	}
	cfg.server = pgtest.Shared(t)
	st, err := run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// TestVerdict feeds the judge with figures.
func TestVerdict(t *testing.T) {
	pgx := func() tally {
		return tally{
			calls: 10_000, longest: time.Second, overrun: 10 * time.Millisecond, migrations: 20, slowest: time.Second,
			errors:  map[string]map[string]int{"x": {"57P01": 50, "reset": 10, "deadline": 100, "0A000": 40}},
			refused: map[string]int{},
		}
	}
	failing := func(kind string, n int) func(*tally) {
		return func(t *tally) { t.errors["x"][kind] = n }
	}
	for _, tc := range []struct {
		name string
		do   func(f *tally)
		want string // part of the one violation; empty: there is none
	}{
		{"Same", func(*tally) {}, ""},
		{"Better", func(f *tally) { f.errors = nil }, ""},
		{"WrongRow", func(f *tally) { f.wrong = 1 }, "1 wrong rows"},
		{"SharedCodec", func(f *tally) { f.shared = 1 }, "codec"},
		{"NewKind", failing("42501", 1), `"42501"`},
		{"Deadlock", failing("40P01", 1), `"40P01"`},
		{"NoConversion", failing("scan", 1), `"scan"`},
		{"OneClass", failing("EOF", 12), ""},
		{"MoreLost", failing("EOF", 40), `"connection lost"`},
		{"SomeMoreDeadlines", failing("deadline", 200), ""},
		{"ManyMoreDeadlines", failing("deadline", 230), `"deadline"`},
		{"FirstDeadlines", func(f *tally) { f.errors["y"] = map[string]int{"deadline": 10} }, ""},
		{"MoreStale", failing("0A000", 60), `"stale statement"`},
		{"MoreCalls", func(f *tally) { f.calls, f.errors["x"]["0A000"] = 20_000, 80 }, ""},
		{"InAnotherWeather", func(f *tally) { f.errors["y"] = map[string]int{"deadline": 60} }, `in "y"`},
		{"Hang", func(f *tally) { f.hangs = 1 }, "1 calls hung"},
		{"LongCall", func(f *tally) { f.longest = 7 * time.Second }, "without a deadline took 7s"},
		{"LateCall", func(f *tally) { f.overrun = 6 * time.Second }, "outlived"},
		{"LongMigration", func(f *tally) { f.slowest = 7 * time.Second }, "a migration took 7s"},
		{"LongMigrationOfAMoodyMachine", nil, ""},
		{"MigrationDeadlock", func(f *tally) { f.refused["40P01"] = 1 }, "1 migrations failed with 40P01"},
		{"MigrationLockTimeout", func(f *tally) { f.refused["55P03"] = 1 }, "1 migrations failed with 55P03"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := result{callers: 256, came: map[string]int{"x": 1, "y": 1}, sides: [sides]tally{pgx(), pgx()}}
			if tc.do != nil {
				tc.do(&r.sides[flight])
			} else {
				r.sides[flight].slowest, r.stood = 7*time.Second, 3*time.Second
			}
			got := r.violations()
			if tc.want == "" && len(got) > 0 || tc.want != "" && (len(got) != 1 || !strings.Contains(got[0], tc.want)) {
				t.Errorf("violations = %q; want one with %q", got, tc.want)
			}
		})
	}
	t.Run("Excused", func(t *testing.T) { // what pgx had too
		r := result{callers: 256, came: map[string]int{"x": 1}, sides: [sides]tally{pgx(), pgx()}}
		for i := range r.sides {
			r.sides[i].hangs, r.sides[i].longest = 1, 20*time.Second
			r.sides[i].refused["55P03"] = 1
			r.sides[i].errors["x"]["40P01"] = 1
		}
		if got := r.violations(); len(got) > 0 {
			t.Errorf("violations = %q; want none", got)
		}
	})
	t.Run("Together", func(t *testing.T) {
		for n, want := range map[int]int{250: 0, 300: 1} { // twice 100 of pgx's, and 4 times 16
			r := result{callers: 256, together: true, came: map[string]int{"x": 8, "y": 8}, sides: [sides]tally{pgx(), pgx()}}
			r.sides[flight].errors["y"] = map[string]int{"deadline": n - 100}
			if got := r.violations(); len(got) != want {
				t.Errorf("with %d missed deadlines: violations = %q; want %d", n, got, want)
			}
		}
	})
	t.Run("Moody", func(t *testing.T) {
		r := result{callers: 256, came: map[string]int{"x": 1}, moody: map[string]int{"x": 4}, sides: [sides]tally{pgx(), pgx()}}
		r.sides[flight].errors["x"]["deadline"] = 270 // of which 80 are the fault's and the machine's
		if got := r.violations(); len(got) > 0 {
			t.Errorf("violations = %q; want none", got)
		}
	})
	t.Run("WrongWithPgx", func(t *testing.T) {
		r := result{sides: [sides]tally{pgx(), pgx()}}
		r.sides[plain].wrong = 1
		if got := r.violations(); len(got) != 1 {
			t.Errorf("violations = %q; want that the storm is wrong", got)
		}
	})
}

// TestRecovery has the judge see when a side is back to normal.
func TestRecovery(t *testing.T) {
	const end, now = 10 * time.Second, 13 * time.Second
	usual := [sides]float64{10, 10}
	// from the window, so many reads succeed in each.
	from := func(window, n int) (events []outcome) {
		for w := window; w < 30; w++ {
			at := end + time.Duration(w)*100*time.Millisecond + 50*time.Millisecond
			for range n {
				events = append(events, outcome{begin: at - time.Millisecond, end: at})
			}
		}
		return events
	}
	failing := func(events []outcome, windows int) []outcome {
		for w := range windows {
			at := end + time.Duration(w)*100*time.Millisecond + 60*time.Millisecond
			events = append(events, outcome{begin: at - time.Millisecond, end: at, kind: "EOF"})
		}
		return events
	}
	for _, tc := range []struct {
		name        string
		flight, pgx []outcome
		want        [sides]time.Duration
		late        bool
	}{
		{"Both", from(0, 10), from(0, 10), [sides]time.Duration{0, 0}, false},
		{"OneSecondLater", from(15, 10), from(5, 10), [sides]time.Duration{1500 * time.Millisecond, 500 * time.Millisecond}, false},
		{"TooLate", from(16, 10), from(5, 10), [sides]time.Duration{1600 * time.Millisecond, 500 * time.Millisecond}, true},
		{"Errors", failing(from(0, 10), 12), from(0, 10), [sides]time.Duration{1200 * time.Millisecond, 0}, true},
		{"Slow", from(0, 3), from(0, 10), [sides]time.Duration{-1, 0}, true},
		{"AsSlowAsPgx", from(0, 3), from(0, 5), [sides]time.Duration{0, 0}, false},
		{"Never", nil, from(0, 10), [sides]time.Duration{-1, 0}, true},
		{"AMoodyMachine", from(16, 10), from(5, 10), [sides]time.Duration{1600 * time.Millisecond, 500 * time.Millisecond}, false},
		{"NobodyCanTell", nil, nil, [sides]time.Duration{-1, -1}, false},
	} {
		got := backToNormal([sides][]outcome{tc.flight, tc.pgx}, usual, end, now)
		r := recovery{normal: got, looked: now - end}
		if tc.name == "AMoodyMachine" {
			r.moody = 1
		}
		if got != tc.want || r.late() != tc.late {
			t.Errorf("%s: back to normal after %v, late: %v; want %v, %v", tc.name, got, r.late(), tc.want, tc.late)
		}
	}
}

// TestKind says what the judge calls errors.
func TestKind(t *testing.T) {
	pg := func(code string) error { return fmt.Errorf("read: %w", &pgconn.PgError{Code: code}) }
	for _, tc := range []struct {
		err  error
		left bool
		want string
	}{
		{nil, false, ""},
		{nil, true, ""},
		{pg("40P01"), false, "40P01"},
		{pg("40P01"), true, "40P01"},
		{pg("57014"), true, "deadline"},
		{pg("57014"), false, "57014"},
		{context.DeadlineExceeded, true, "deadline"},
		{context.DeadlineExceeded, false, "another's deadline"},
		{context.Canceled, false, "another's cancellation"},
		{io.EOF, false, "EOF"},
		{io.ErrUnexpectedEOF, true, "deadline"},
		{syscall.ECONNRESET, false, "reset"},
		{syscall.ECONNREFUSED, false, "refused"},
		{driver.ErrBadConn, false, "bad connection"},
		{errors.New("conn closed"), false, "closed"},
		{errors.New(`sql: Scan error on column index 1`), false, "scan"},
		{fmt.Errorf("%w: x", errPanic), true, "panic"},
		{errors.New("planted"), true, "other: planted"},
	} {
		if got := kindOf(tc.err, tc.left); got != tc.want {
			t.Errorf("kindOf(%v, %v) = %q; want %q", tc.err, tc.left, got, tc.want)
		}
	}
}

// TestTexts has each text tell wrong rows: in a database in which everything is
// another's, none may be content.
func TestTexts(t *testing.T) {
	cfg := config{driver: "pgx", callers: 1, conns: 1, server: pgtest.Shared(t)}
	w, err := newWorld(t.Context(), &cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := w.stop(); err != nil {
			t.Error(err)
		}
	}()
	s := w.sides[plain]
	ask := func(db string) map[string]string {
		told := make(map[string]string)
		for i := range texts {
			for k := range keys {
				wrong, err := texts[i].ask(t.Context(), s, texts[i].query, k)
				if err != nil {
					t.Fatalf("%s: %s: %v", db, texts[i].name, err)
				}
				if wrong != "" {
					told[texts[i].name] += fmt.Sprintf("%d: %s\n", k, wrong)
				}
			}
		}
		return told
	}
	if told := ask("as it is"); len(told) > 0 {
		t.Fatalf("wrong rows: %v", told)
	}
	const everything = `
		UPDATE items SET body = hash('items', id + 1, 0);
		UPDATE orders SET body = hash('orders', id + 1, 0);
		UPDATE refill SET body = hash('refill', id + 1, 0), ver = id %% 2;
		UPDATE moods SET body = hash('moods', id + 1, 0), m = 'sad', t = (enum_range(NULL::tint))[2 - id %% 2];
		UPDATE docs SET body = hash('docs', id + 1, 0);
		UPDATE logs SET body = hash('logs', id + 1, 0);
		UPDATE locka SET body = hash('locka', id + 1, 0);
		UPDATE lockb SET body = hash('lockb', id + 1, 0);
		ALTER ROLE %[1]s SET TimeZone = 'UTC';
		ALTER ROLE %[1]s SET lock_timeout = '71ms';
		CREATE OR REPLACE FUNCTION in_zone(k int) RETURNS text LANGUAGE sql STABLE AS $$ SELECT k || ' UTC' $$;
		CREATE OR REPLACE FUNCTION as_other(k int) RETURNS text LANGUAGE sql STABLE AS $$ SELECT k || ' %[1]s' $$;
		CREATE OR REPLACE FUNCTION with_limits(k int) RETURNS text LANGUAGE sql STABLE AS $$ SELECT k || ' 7s' $$`
	if err := s.migrator(t.Context(), func(conn *pgx.Conn) error {
		_, err := conn.Exec(t.Context(), fmt.Sprintf(everything, s.role))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	s.db.SetMaxIdleConns(0) // the next connection has the new defaults
	s.db.SetMaxIdleConns(1)
	told := ask("with everything another's")
	for i := range texts {
		if told[texts[i].name] == "" {
			t.Errorf("%s is content with another's rows", texts[i].name)
		}
	}
}

// TestCodec has two use one connection's codec at once.
func TestCodec(t *testing.T) {
	var shared atomic.Int64
	c := &ownCodec{shared: &shared, seen: make(map[string]int)}
	for range 2 { // one after the other
		if err := c.own([]byte("a"), func([]byte) error { return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if n := shared.Load(); n != 0 {
		t.Errorf("%d uses by two at once; want none", n)
	}
	_ = c.own([]byte("a"), func([]byte) error { return c.own([]byte("b"), func([]byte) error { return nil }) })
	if n := shared.Load(); n != 1 {
		t.Errorf("%d uses by two at once; want 1", n)
	}
	if want := map[string]int{"a": 3}; !maps.Equal(c.seen, want) {
		t.Errorf("seen = %v; want %v", c.seen, want)
	}
}
