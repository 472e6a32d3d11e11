package main

import (
	"context"
	"io"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
)

// TestSoak is the soak's short form, which says that the rig works and finds
// nothing in a few seconds. Then each of its judges must find what is planted.
func TestSoak(t *testing.T) {
	t.Run("Short", func(t *testing.T) {
		seed := battery.Seed(t)
		e := battery.Report(t, "soak", "mixed load and faults violate nothing", seed)
		s := soakFor(t, config{duration: battery.N(5*time.Second, time.Minute), clients: 20, seed: seed, pause: 700 * time.Millisecond, interval: time.Second})
		total := s.totals()
		e.Set("reads", total.reads)
		e.Set("writes", total.writes)
		e.Set("joins", total.joins)
		e.Set("executions", total.flights+total.bypasses)
		e.Set("lost", total.lost)
		e.Set("faults", s.judge.faults)
		e.Set("violations", s.judge.violations())
		if s.judge.violations() > 0 {
			t.Errorf("%s", s.report())
		}
		if total.joins == 0 || total.writes == 0 || s.judge.faults == 0 {
			t.Errorf("%d joins, %d writes, %d faults: want some of each\n%s", total.joins, total.writes, s.judge.faults, s.report())
		}
	})

	t.Run("FindsJoinForFenced", func(t *testing.T) {
		seed := battery.Seed(t)
		e := battery.Report(t, "soak", "control: join taken for fenced is found", seed)
		found := 0
		for try := uint64(0); try < 30 && found == 0; try++ { // on a busy machine few callers meet
			s := soakFor(t, config{
				duration: 2 * time.Second, clients: 30, seed: seed + try, calm: true, slower: 50, fenced: flightpg.ModeJoin,
				only: func(o *operation) bool { return o.name == "slow read" || o.name == "update" },
			})
			found += s.judge.of("stale")
		}
		e.Set("stale reads found", found)
		if found == 0 {
			t.Error("no stale read found; want some")
		}
	})

	t.Run("FindsWhatIsPlanted", func(t *testing.T) {
		seed := battery.Seed(t)
		e := battery.Report(t, "soak", "control: each planted fault is found", seed)
		end := make(chan struct{})
		defer close(end)
		s := soakFor(t, config{
			duration: 300 * time.Millisecond, clients: 10, seed: seed, calm: true, patience: 500 * time.Millisecond,
			only: func(o *operation) bool { return o.kind == reads },
			plant: func(s *soak) error {
				for i, booked := range []struct {
					n     int64
					known map[int64]known
				}{
					0: {1, nil},                                  // acknowledged, and not there
					1: {1, map[int64]known{1: {outcome: never}}}, // refused, and there
					2: {1, nil},                                  // there twice
				} {
					s.clients[i].booked = booked.n
					maps.Copy(s.clients[i].outcomes, booked.known)
				}
				s.items[5].attempted.Store(3)
				s.items[5].acked.Store(3)
				err := s.admin(t.Context(), func(conn *pgx.Conn) error {
					_, err := conn.Exec(t.Context(), `INSERT INTO ledger VALUES (1, 1, 1, 0), (2, 1, 1, 0), (2, 1, 1, 0);
						UPDATE accounts SET balance = balance + 1 WHERE id = 7`)
					return err
				})
				if err != nil {
					return err
				}
				s.handles[0].db.SetConnMaxLifetime(0)
				var locked bool
				if err := s.handles[0].db.QueryRow(`SELECT pg_try_advisory_lock(99)`).Scan(&locked); err != nil {
					return err
				}
				tx, err := s.handles[2].db.Begin()
				if err != nil {
					return err
				}
				t.Cleanup(func() { _ = tx.Rollback() }) // its goroutine
				go func() { <-end }()
				return nil
			},
		})
		told := strings.Join(s.judge.told, "\n")
		for _, want := range []string{
			"write lost: client 0's booking 1",
			"refused write is there: client 1's booking 1",
			"write ran twice: client 2's booking 1 is there 2 times",
			"audit: item 5 has version 0",
			"audit: account 7 has 1",
			"left behind: on cut: 0 flights, 0 waiting, 0 bytes, 1 connections in use",
			"left behind: 1 sessions in transactions",
			"left behind: 1 locks",
			"left behind: 2 goroutines", // and that of the transaction
		} {
			if !strings.Contains(told, want) {
				t.Errorf("violations without %q:\n%s", want, told)
			}
		}
		e.Set("found", len(s.judge.told))
	})
}

func soakFor(t *testing.T, cfg config) *soak {
	t.Helper()
	cfg.out = io.Discard
	if testing.Verbose() {
		cfg.out = t.Output()
	}
	if cfg.interval == 0 {
		cfg.interval = time.Second
	}
	s, err := run(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestGrowth feeds the judge of the memory with what it must and must not report.
func TestGrowth(t *testing.T) {
	series := func(n int, heap func(i int) float64) (samples []sample) {
		for i := range n {
			samples = append(samples, sample{heap: uint64(heap(i) * 1e6), rss: 100e6, goroutines: 300})
		}
		return samples
	}
	for _, c := range []struct {
		name    string
		samples []sample
		want    bool
	}{
		{"Steady", series(90, func(i int) float64 { return 20 + float64(i%7) }), false},
		{"Leak", series(90, func(i int) float64 { return 20 + float64(i) }), true},
		{"OnePeak", series(90, func(i int) float64 {
			if i == 80 {
				return 200
			}
			return 20
		}), false},
		{"TooShort", series(enoughSamples-1, func(i int) float64 { return 100 * float64(i) }), false},
	} {
		if got := growth(c.samples); (got != "") != c.want {
			t.Errorf("%s: growth = %q; want some: %v", c.name, got, c.want)
		}
	}
	grown := series(30, func(int) float64 { return 20 })
	for i := range grown {
		grown[i].goroutines += 50 * i
	}
	if growth(grown) == "" {
		t.Error("goroutines grow from 300 to 1750 and nobody says so")
	}
}

// TestJudge has what watches the load see what it must report: once each, and
// nothing else.
func TestJudge(t *testing.T) {
	name := slices.Sorted(maps.Keys(handleLimits))[0]
	most := handleLimits[name]
	s := &soak{clients: []*client{{n: 0}, {n: 1}, {n: 2}}}
	s.clients[0].doing.Store(&doing{what: "a read", since: time.Now().Add(-2 * patience)})
	s.clients[1].doing.Store(&doing{what: "a read", since: time.Now()})
	s.watch()
	s.watch() // it is told once
	c := &client{s: s, n: 3}
	fails := &operation{name: "a read", do: func(*client, context.Context, request) error { panic("planted") }}
	if err := c.safely(t.Context(), fails, request{h: &handle{name: name}}); err != nil {
		t.Errorf("safely: %v", err)
	}
	s.judge.limits(name, flightpg.Stats{FlightBackends: most.flights, SessionBackends: most.sessions})
	s.judge.limits(name, flightpg.Stats{FlightBackends: most.flights + 1})
	s.judge.limits(name, flightpg.Stats{SessionBackends: most.sessions + 1})
	want := map[string]int{"hang": 1, "panic": 1, "beyond a bound": 2}
	if !maps.Equal(s.judge.byKind, want) {
		t.Errorf("violations: %v; want %v\n%s", s.judge.byKind, want, strings.Join(s.judge.told, "\n"))
	}
}

// TestConnectionsTo opens some.
func TestConnectionsTo(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := os.Stat("/proc/self/net/tcp"); err != nil {
		t.Skipf("the system has no list of connections: %v", err)
	}
	for want := range 3 {
		if got := connectionsTo(l.Addr().String()); got != want {
			t.Errorf("%d connections; want %d", got, want)
		}
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
}

// TestClass says what the judge makes of errors.
func TestClass(t *testing.T) {
	var j judge
	h, native := &handle{}, &handle{native: true}
	now := time.Now()
	for _, c := range []struct {
		name string
		h    *handle
		left bool
		err  error
		want class
	}{
		{"None", h, false, nil, fine},
		{"OwnCancel", h, true, context.Canceled, left},
		{"ForeignCancel", h, false, context.Canceled, foreign},
		{"ForeignDeadline", h, false, context.DeadlineExceeded, foreign},
		{"OwnServerCancel", h, true, pgError("57014"), left},
		{"ForeignServerCancel", h, false, pgError("57014"), foreign},
		{"Lost", h, false, io.EOF, causeless}, // there was no fault yet
		{"Terminated", h, false, pgError("57P01"), causeless},
		{"Full", h, false, pgError("53300"), causeless},
		{"WroteOnAFlight", h, false, pgError("25006"), wrong},
		{"WroteOnAFlightAndLeft", h, true, pgError("25006"), wrong},
		{"StalePlan", h, false, pgError("0A000"), wrong},
		{"StalePlanOfPgx", native, false, pgError("0A000"), stale},
	} {
		if got := j.class(c.h, c.left, now, c.err); got != c.want {
			t.Errorf("%s: class = %s; want %s", c.name, classNames[got], classNames[c.want])
		}
	}
	j.fault(true)
	if got := j.class(h, false, now, io.EOF); got != lost {
		t.Errorf("in a fault: class = %s; want lost", classNames[got])
	}
	j.fault(false)
	if got := j.class(h, false, now, io.EOF); got != lost {
		t.Errorf("after a fault: class = %s; want lost", classNames[got])
	}
}

func pgError(code string) error { return &pgconn.PgError{Severity: "ERROR", Code: code} }
