package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

func TestMain(m *testing.M) {
	leak.Main(func() int { return pgtest.Run(m, pgtest.WithPreload("pg_stat_statements")) })
}

// small are flags for a run that takes a second or two.
var small = []string{"-json", "-callers", "40", "-rounds", "2", "-pgx-conns", "4", "-query-ms", "20", "-writes", "60", "-readers", "30"}

func TestRun(t *testing.T) {
	for _, countedBy := range []string{"pg_stat_statements", "pg_stat_user_tables"} {
		t.Run(countedBy, func(t *testing.T) {
			dsn := pgtest.Database(t)
			if countedBy == "pg_stat_statements" {
				if has, err := pgtest.Shared(t).HasExtension(t.Context(), countedBy); err != nil || !has {
					t.Skipf("the server has no %s (%v)", countedBy, err)
				}
				execute(t, dsn, "create extension pg_stat_statements")
			}
			var stdout, stderr bytes.Buffer
			if got := run(t.Context(), append(small, "-dsn", dsn), &stdout, &stderr); got != 0 {
				t.Fatalf("run = %d; want 0\n%s", got, &stderr)
			}
			var rep report
			dec := json.NewDecoder(&stdout)
			if err := dec.Decode(&rep); err != nil {
				t.Fatalf("stdout is not JSON: %v", err)
			}
			if dec.More() {
				t.Error("stdout has more than one object")
			}
			if rep.CountedBy != countedBy {
				t.Errorf("counted_by = %s; want %s", rep.CountedBy, countedBy)
			}
			p, f := rep.Pgx, rep.Flightpg
			if p.Calls != 80 || f.Calls != 80 || p.Errors != 0 || f.Errors != 0 {
				t.Errorf("calls and errors: pgx %d, %d, flightpg %d, %d; want 80, 0 of each", p.Calls, p.Errors, f.Calls, f.Errors)
			}
			// One per round; more if the machine has no time for all callers
			// while the query runs.
			if p.Executions != 80 || f.Executions < 2 || f.Executions > 8 {
				t.Errorf("executions: pgx %d, flightpg %d; want 80 and a few", p.Executions, f.Executions)
			}
			if p.BackendsPeak != 4 || f.BackendsPeak < 1 || f.BackendsPeak > 4 {
				t.Errorf("backends: pgx %d, flightpg %d; want 4 and 1 to 4", p.BackendsPeak, f.BackendsPeak)
			}
			if p.P50 > p.P99 || f.P50 > f.P99 || p.P50 <= 0 || f.P50 <= 0 || p.CallsPerS <= 0 || f.CallsPerS <= 0 {
				t.Errorf("latencies: pgx %+v, flightpg %+v", p, f)
			}
			if y := rep.ReadYourWrites; y.Writes != 60 || y.Stale != 0 || y.Errors != 0 {
				t.Errorf("read_your_writes = %+v; want 60 writes, none stale, no errors", y)
			}
			if got := schemas(t, dsn); got != "" {
				t.Errorf("left behind: %s\n%s", got, &stderr)
			}
		})
	}
}

// A check that finds nothing must be able to: in mode join, callers do miss
// their own writes.
func TestRace_SeesStaleReads(t *testing.T) {
	cfg := config{
		dsn: pgtest.Database(t), pgxConns: 16, query: 20 * time.Millisecond,
		writes: 400, readers: 100, mode: flightpg.ModeJoin,
	}
	s, err := openShop(t.Context(), cfg.dsn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	p := newProgress(t.Output())
	if _, err := s.load(t.Context(), cfg.query, p); err != nil {
		t.Fatal(err)
	}
	got, err := race(t.Context(), s, cfg, p)
	if err != nil || got.Errors > 0 {
		t.Fatalf("race = %+v, %v", got, err)
	}
	if got.Stale == 0 {
		t.Errorf("race in mode join = %+v; want some stale", got)
	}
}

func TestRun_Interrupted(t *testing.T) {
	dsn := pgtest.Database(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	stderr := &trigger{text: "loading", do: cancel}
	var stdout bytes.Buffer
	if got := run(ctx, append(small, "-dsn", dsn), &stdout, stderr); got != 1 {
		t.Errorf("run = %d; want 1", got)
	}
	if !strings.Contains(stderr.String(), "stampede: interrupted") || stdout.Len() > 0 {
		t.Errorf("stderr = %s, stdout = %s", stderr, &stdout)
	}
	if got := schemas(t, dsn); got != "" {
		t.Errorf("left behind: %s", got)
	}
}

// trigger is a buffer that does something once a text has been written.
type trigger struct {
	bytes.Buffer
	text string
	do   func()
}

func (w *trigger) Write(b []byte) (int, error) {
	if strings.Contains(string(b), w.text) {
		w.do()
	}
	return w.Buffer.Write(b)
}

func TestRun_Refuses(t *testing.T) {
	for _, tt := range []struct {
		args   string
		status int
		want   string
	}{
		{"-rounds 0", 2, "use a number from 1"},
		{"-callers 5x", 2, "use a number from 1"},
		{"-mode fast", 2, "use fenced, strict, join, off"},
		{"-nope", 2, "-nope"},
		{"again", 2, `unexpected argument "again"`},
		{"-dsn postgres://u:secret@%zz/x", 2, "not a DSN"},
		{"-dsn password='secret", 2, "not a DSN"},
		{"-dsn secret", 2, "not a DSN"},
		{"-dsn postgres://u:secret@127.0.0.1:1/x", 1, "127.0.0.1"},
		{"-help", 0, "-callers"},
	} {
		var stdout, stderr bytes.Buffer
		got := run(t.Context(), strings.Fields(tt.args), &stdout, &stderr)
		if got != tt.status || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%s: status %d; want %d and %q in\n%s", tt.args, got, tt.status, tt.want, &stderr)
		}
		if strings.Contains(stderr.String(), "secret") || stdout.Len() > 0 {
			t.Errorf("%s: stdout %q, stderr %q", tt.args, &stdout, &stderr)
		}
	}
}

func TestWithParams(t *testing.T) {
	for _, dsn := range []string{
		"postgres://u@h/d", "postgresql://u@h/d?application_name=theirs", "host=h user=u dbname=d application_name=theirs",
	} {
		cfg, err := pgx.ParseConfig(withParams(dsn, "application_name", `it's a \ name`, "jit", "off"))
		if err != nil {
			t.Errorf("%s: %v", dsn, err)
			continue
		}
		if got := cfg.RuntimeParams; got["application_name"] != `it's a \ name` || got["jit"] != "off" || cfg.Database != "d" {
			t.Errorf("%s: database %s, parameters %v", dsn, cfg.Database, got)
		}
	}
}

func TestStampede(t *testing.T) {
	var inside, answered atomic.Int64
	all := make(chan struct{})
	o := stampede(100, func() error {
		n := inside.Add(1)
		if n == 100 {
			close(all)
		}
		<-all // nobody gets here before everybody asks
		if n%10 == 0 {
			return fmt.Errorf("call %d", n)
		}
		return nil
	}, &answered)
	if len(o.latencies) != 90 || o.errors != 10 || o.err == nil || answered.Load() != 90 {
		t.Errorf("stampede = %d latencies, %d failed (%v), %d answered; want 90, 10, 90", len(o.latencies), o.errors, o.err, answered.Load())
	}
	if slowest := slices.Max(o.latencies); slowest > o.elapsed || slices.Min(o.latencies) <= 0 {
		t.Errorf("latencies up to %v in %v", slowest, o.elapsed)
	}
}

func schemas(t *testing.T, dsn string) (names string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	err = conn.QueryRow(t.Context(), "select coalesce(string_agg(nspname, ' '), '') from pg_namespace where nspname like 'stampede%'").Scan(&names)
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func execute(t *testing.T, dsn, sql string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	if _, err := conn.Exec(t.Context(), sql); err != nil {
		t.Fatal(err)
	}
}

// A query still running locks the tables in an order of its own, so that it and
// the drop wait for each other.
func TestShop_DropsWhatIsInUse(t *testing.T) {
	deadlocks := 0
	for _, held := range []string{"products", "orders", "counters"} {
		dsn := pgtest.Database(t)
		s, err := openShop(t.Context(), dsn, config{dsn: dsn, pgxConns: 1})
		if err != nil {
			t.Fatal(err)
		}
		reader, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer reader.Close(context.Background())
		// PostgreSQL shall end the drop, not the reader.
		read := func(sql string) {
			t.Helper()
			if _, err := reader.Exec(t.Context(), s.sql(sql)); err != nil {
				t.Fatal(err)
			}
		}
		read("set deadlock_timeout = '1min'")
		read("begin")
		read("lock SHOP." + held + " in access share mode")
		dropped := make(chan error, 1)
		go func() { dropped <- s.close() }()
		awaitLockWait(t, dsn)
		read("lock SHOP.products, SHOP.orders, SHOP.counters in access share mode")
		deadlocks += strings.Count(pgtest.Shared(t).Log(), "deadlock detected")
		read("rollback")
		if err := <-dropped; err != nil {
			t.Errorf("%s held: close = %v", held, err)
		}
		if got := schemas(t, dsn); got != "" {
			t.Errorf("%s held: left behind: %s", held, got)
		}
	}
	if deadlocks == 0 {
		t.Error("no deadlock came about: nothing was tested")
	}
}

// awaitLockWait returns when a session of the database waits for a lock.
func awaitLockWait(t *testing.T, dsn string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for waits := false; !waits; {
		err := conn.QueryRow(t.Context(), `select exists (select from pg_stat_activity
			where datname = current_database() and wait_event_type = 'Lock')`).Scan(&waits)
		if err != nil {
			t.Fatal(err)
		}
	}
}
