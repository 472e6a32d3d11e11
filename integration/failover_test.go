//go:build unix

package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
	"github.com/flightpg/flightpg/internal/pipeline"
)

// twoServers starts a primary with table kv and a standby that has it too.
func twoServers(t *testing.T) (primary, standby *pgtest.Server) {
	t.Helper()
	primary = pgtest.New(t)
	standby = pgtest.New(t, pgtest.WithStandbyOf(primary))
	admin := connect(t, primary.DSN())
	if _, err := admin.Exec(t.Context(), "CREATE TABLE kv (id int PRIMARY KEY, v text); INSERT INTO kv VALUES (1, 'old'); CREATE TABLE gate AS SELECT 1 AS v; "+
		"CREATE ROLE app LOGIN; GRANT ALL ON kv, gate TO app"); err != nil {
		t.Fatal(err)
	}
	eye := connect(t, standby.DSN())
	until(t, "the standby follows", func() (there bool) {
		err := eye.QueryRow(t.Context(), "SELECT to_regclass('gate') IS NOT NULL").Scan(&there)
		return err == nil && there
	})
	return primary, standby
}

func promote(t *testing.T, s *pgtest.Server) {
	t.Helper()
	var done bool
	if err := connect(t, s.DSN()).QueryRow(t.Context(), "SELECT pg_promote()").Scan(&done); err != nil || !done {
		t.Fatalf("pg_promote() = %v, %v\n%s", done, err, s.Log())
	}
}

// hostsDSN returns a DSN with the servers in that order, for a user without
// privileges.
func hostsDSN(t *testing.T, params string, servers ...*pgtest.Server) string {
	t.Helper()
	var hosts []string
	var u *url.URL
	for _, s := range servers {
		var err error
		if u, err = url.Parse(s.DSN()); err != nil {
			t.Fatal(err)
		}
		hosts = append(hosts, u.Host)
	}
	return with(fmt.Sprintf("postgres://app@%s%s?%s", strings.Join(hosts, ","), u.Path, u.RawQuery), params)
}

// port returns where the server listens.
func port(t *testing.T, s *pgtest.Server) int {
	t.Helper()
	cfg, err := pgconn.ParseConfig(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	return int(cfg.Port)
}

// TestTargetSessionAttrs reads with every value of the parameter, by a primary and
// a standby in both orders. Callers come to the server that pgx takes them to, and
// share only where every session goes to the primary.
func TestTargetSessionAttrs(t *testing.T) {
	primary, standby := twoServers(t)
	const where = "SELECT pg_is_in_recovery(), inet_server_port(), v FROM kv" // never shared
	const callers = 8
	check := func(t *testing.T, dsn string, ours *sql.DB, shared bool) {
		t.Helper()
		plain := open(t, "pgx", dsn)
		for _, query := range []string{where, "SELECT v FROM kv", "SELECT 1"} {
			want := transcript(plain.QueryContext(t.Context(), query))
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					if got := transcript(ours.QueryContext(t.Context(), query)); got != want {
						t.Errorf("%s:\nflightpg: %s\npgx:      %s", query, got, want)
					}
				})
			}
			wg.Wait()
		}
		if got, want := execTranscript(ours, "UPDATE kv SET v = v"), execTranscript(plain, "UPDATE kv SET v = v"); got != want {
			t.Errorf("a write:\nflightpg: %s\npgx:      %s", got, want)
		}
		s := flightpg.ReadStats(ours)
		unshared := s.Bypasses[flightpg.ReasonSeveralHosts]
		if shared && (unshared != 0 || s.Flights+s.Joins != 2*callers) || !shared && (unshared != 2*callers || s.Flights != 0) {
			t.Errorf("Stats = %+v; want %d reads shared = %v", s, 2*callers, shared)
		}
	}
	for order, servers := range map[string][]*pgtest.Server{"PrimaryFirst": {primary, standby}, "StandbyFirst": {standby, primary}} {
		t.Run(order, func(t *testing.T) {
			for attrs, shared := range map[string]bool{
				"": false, "any": false, "read-only": false, "standby": false, "prefer-standby": false,
				"primary": true, "read-write": true,
			} {
				t.Run("attrs="+attrs, func(t *testing.T) {
					params := ""
					if attrs != "" {
						params = "target_session_attrs=" + attrs
					}
					dsn := hostsDSN(t, params, servers...)
					check(t, dsn, open(t, "flightpg", dsn), shared)
					if order != "PrimaryFirst" {
						return
					}
					pc, err := pgx.ParseConfig(dsn)
					if err != nil {
						t.Fatal(err)
					}
					t.Run("Wrap", func(t *testing.T) {
						c, err := flightpg.Wrap(stdlib.GetConnector(*pc), flightpg.Config{})
						if err != nil {
							t.Fatal(err)
						}
						db := c.OpenDB()
						defer db.Close()
						check(t, dsn, db, shared)
					})
					t.Run("Registered", func(t *testing.T) {
						name := stdlib.RegisterConnConfig(pc)
						defer stdlib.UnregisterConnConfig(name)
						check(t, dsn, open(t, "flightpg", name), shared)
					})
				})
			}
		})
	}
	// One host, whatever it is: every session goes there.
	for attrs, s := range map[string]*pgtest.Server{"any": standby, "standby": standby, "prefer-standby": standby, "read-only": standby, "primary": primary} {
		for _, guard := range []string{"session", "transaction"} {
			t.Run("OneHost/attrs="+attrs+"/guard="+guard, func(t *testing.T) {
				dsn := with(s.DSN(), "target_session_attrs="+attrs)
				check(t, dsn, open(t, "flightpg", with(dsn, "flight_guard="+guard)), true)
			})
		}
	}
	// Where the role may not ask which of several primaries a server is, all works.
	t.Run("NotAllowedToAsk", func(t *testing.T) {
		admin := connect(t, primary.DSN())
		for _, f := range []string{"pg_control_system()", "pg_walfile_name(pg_lsn)", "pg_current_wal_lsn()"} {
			if _, err := admin.Exec(t.Context(), "REVOKE EXECUTE ON FUNCTION "+f+" FROM PUBLIC"); err != nil {
				t.Fatal(err)
			}
		}
		dsn := hostsDSN(t, "target_session_attrs=primary", standby, primary)
		plain, ours := open(t, "pgx", dsn), open(t, "flightpg", dsn)
		for _, query := range []string{"SELECT v FROM kv", "SELECT 1"} {
			want := transcript(plain.QueryContext(t.Context(), query))
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					if got := transcript(ours.QueryContext(t.Context(), query)); got != want {
						t.Errorf("%s:\nflightpg: %s\npgx:      %s", query, got, want)
					}
				})
			}
			wg.Wait()
		}
		if got, want := execTranscript(ours, "UPDATE kv SET v = v"), execTranscript(plain, "UPDATE kv SET v = v"); got != want {
			t.Errorf("a write:\nflightpg: %s\npgx:      %s", got, want)
		}
	})
	t.Run("NoneFits", func(t *testing.T) {
		dsn := with(standby.DSN(), "target_session_attrs=primary")
		ours, plain := open(t, "flightpg", dsn), open(t, "pgx", dsn)
		want := transcript(plain.QueryContext(t.Context(), "SELECT 1"))
		if !strings.Contains(want, "ConnectError") {
			t.Fatalf("pgx itself: %s", want)
		}
		var wg sync.WaitGroup
		for range callers {
			wg.Go(func() {
				if got := transcript(ours.QueryContext(t.Context(), "SELECT 1")); got != want {
					t.Errorf("flightpg: %s\npgx:      %s", got, want)
				}
			})
		}
		wg.Wait()
	})
}

func execTranscript(db *sql.DB, query string) string {
	res, err := db.ExecContext(context.Background(), query)
	if err != nil {
		return describe(err)
	}
	n, err := res.RowsAffected()
	return fmt.Sprintln("affected", n, err)
}

// unreachable says that err is what a caller may get when its server goes away:
// that server's last word, that there is no server, or that the connection broke.
func unreachable(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		switch pgErr.Code {
		case "57P01", "57P02", "57P03", "57P05": // shutdown, crash, cannot connect now, idle too long
			return true
		}
		return false
	}
	var connErr *pgconn.ConnectError
	return errors.As(err, &connErr) || strings.Contains(err.Error(), "unexpected EOF") ||
		errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// TestFailover kills the primary with a flight under way, before and after its
// standby is promoted.
func TestFailover(t *testing.T) {
	// A promotion takes its time: the flight may have been under way for longer.
	defer func(d time.Duration) { pipeline.RetryWithin = d }(pipeline.RetryWithin)
	pipeline.RetryWithin = time.Hour
	for _, promoted := range []bool{true, false} {
		t.Run(fmt.Sprintf("promoted=%v", promoted), func(t *testing.T) {
			a, b := twoServers(t)
			g := newGate(t, a.DSN())
			const callers = 100
			db := open(t, "flightpg", hostsDSN(t, "target_session_attrs=read-write", a, b))
			read := func() (v string, err error) {
				err = db.QueryRowContext(t.Context(), "SELECT v FROM kv WHERE id = $1", 1).Scan(&v)
				return v, err
			}
			if v, err := read(); err != nil || v != "old" {
				t.Fatalf("read = %q, %v; want old", v, err)
			}
			if _, err := db.ExecContext(t.Context(), "UPDATE kv SET v = 'old' WHERE id = 1"); err != nil { // an idle session
				t.Fatal(err)
			}
			g.shut()
			done := make(chan error, callers)
			for range callers {
				go func() { var v int; done <- db.QueryRow(gateQuery, 1).Scan(&v) }()
			}
			until(t, "the callers wait", func() bool { return flightpg.ReadStats(db).Waiting == callers && g.waiting() == 1 })
			if promoted {
				promote(t, b)
			}
			if err := a.Crash(t.Context(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			for range callers {
				if err := <-done; err != nil && (promoted || !unreachable(err)) {
					t.Errorf("caller: %v; want rows from the new primary, promoted = %v", err, promoted)
				}
			}
			if s := flightpg.ReadStats(db); s.Flying != 0 || s.Waiting != 0 || s.Retries != 1 {
				t.Errorf("Stats = %+v; want one retry and nothing left", s)
			}
			if !promoted {
				if _, err := read(); err == nil || !strings.Contains(err.Error(), "read only connection") || !strings.Contains(err.Error(), "refused") {
					t.Errorf("read without a primary = %v; want what both hosts say", err)
				}
				promote(t, b)
			}
			// A session that died is as pgx has it: its write may fail once.
			var err error
			for range 2 {
				if _, err = db.ExecContext(t.Context(), "UPDATE kv SET v = 'new' WHERE id = 1"); err == nil {
					break
				}
				t.Logf("the write after it: %v", err)
			}
			if err != nil {
				t.Errorf("the second write after it: %v", err)
			}
			before := flightpg.ReadStats(db)
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					if v, err := read(); err != nil || v != "new" {
						t.Errorf("read = %q, %v; want new", v, err)
					}
				})
			}
			wg.Wait()
			s := flightpg.ReadStats(db)
			delete(s.Bypasses, flightpg.ReasonCatalogUnavailable) // the load can take longer than readers wait
			if s.Flights == before.Flights || len(s.Bypasses) > 0 {
				t.Errorf("Stats = %+v; want the reads shared again", s)
			}
		})
	}
}

// TestFailoverFence leaves the flights' idle connections to the old primary alive,
// when new ones already go to the new one, and writes there. Fenced and strict
// reads must see the write: none may be served by the old primary, which lives on
// and answers. (pgx's pool has no such promise, nor needs it: a caller who writes
// and reads may meet both servers there.)
func TestFailoverFence(t *testing.T) {
	for _, tc := range []struct {
		name   string
		bFirst bool   // in the DSN
		params string // of the DSN
		turn   func(t *testing.T, a *pgtest.Server) (resume func())
	}{
		{"SplitBrain", true, "target_session_attrs=read-write", nil},
		{"OldPrimaryMadeReadOnly", false, "target_session_attrs=read-write", func(t *testing.T, a *pgtest.Server) func() {
			admin := connect(t, a.DSN())
			for _, q := range []string{"ALTER SYSTEM SET default_transaction_read_only = on", "SELECT pg_reload_conf()"} {
				if _, err := admin.Exec(t.Context(), q); err != nil {
					t.Fatal(err)
				}
			}
			until(t, "the old primary is read-only", func() (is bool) {
				err := admin.QueryRow(t.Context(), "SELECT current_setting('default_transaction_read_only') = 'on'").Scan(&is)
				return err == nil && is
			})
			return nil
		}},
		// It hangs, as a machine does that is paused, and goes on when all is over.
		{"OldPrimaryHangs", false, "target_session_attrs=read-write&connect_timeout=1", func(t *testing.T, a *pgtest.Server) func() {
			pid := a.PID()
			if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			resume := sync.OnceFunc(func() {
				if err := syscall.Kill(pid, syscall.SIGCONT); err != nil {
					t.Error(err)
				}
			})
			t.Cleanup(resume)
			return resume
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a, b := twoServers(t)
			g := newGate(t, a.DSN())
			dsn := hostsDSN(t, tc.params, a, b)
			if tc.bFirst {
				dsn = hostsDSN(t, tc.params, b, a)
			}
			handles := map[string]*sql.DB{}
			for _, mode := range []string{"fenced", "strict"} {
				handles[mode] = open(t, "flightpg", with(dsn, "flight_mode="+mode))
			}
			writer := open(t, "flightpg", dsn) // writes through another handle count as well
			// Several idle flight connections each, all to the old primary, and
			// flights that are under way there.
			const conns, callers = 4, 20
			begin := func(n int) (done chan error) {
				done = make(chan error, 2*n)
				before := g.waiting()
				for _, db := range handles {
					for i := range n {
						go func() {
							var v int
							done <- db.QueryRow("SELECT v FROM gate WHERE v > $1", -i).Scan(&v)
						}()
					}
				}
				until(t, "the reads wait at the gate", func() bool { return g.waiting() == before+2*n })
				return done
			}
			g.shut()
			first := begin(conns)
			g.open()
			for range 2 * conns {
				if err := <-first; err != nil {
					t.Fatal(err)
				}
			}
			g.shut()
			under := begin(2)

			promote(t, b)
			var resume func()
			if tc.turn != nil {
				resume = tc.turn(t, a)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			var at int
			if err := writer.QueryRowContext(ctx, "UPDATE kv SET v = 'new' WHERE id = 1 RETURNING inet_server_port()").Scan(&at); err != nil || at != port(t, b) {
				t.Fatalf("the write went to port %d, %v; want %d, the new primary's: else the test shows nothing", at, err, port(t, b))
			}
			if resume != nil {
				resume()
			}
			for mode, db := range handles {
				before := flightpg.ReadStats(db)
				var wg sync.WaitGroup
				for i := range callers {
					wg.Go(func() {
						var v string
						// Different ones too, so that all idle connections are tried.
						if err := db.QueryRowContext(ctx, "SELECT v FROM kv WHERE id > $1", -(i % 5)).Scan(&v); err != nil || v != "new" {
							t.Errorf("%s read = %q, %v; want new: it is the old primary's", mode, v, err)
						}
					})
				}
				wg.Wait()
				s := flightpg.ReadStats(db)
				delete(s.Bypasses, flightpg.ReasonCatalogUnavailable) // the old primary may keep a load waiting for longer than readers wait
				if s.Flights == before.Flights || len(s.Bypasses) > 0 {
					t.Errorf("Stats = %+v; want the reads shared", s)
				}
			}
			g.open()
			for range 4 {
				if err := <-under; err != nil {
					t.Errorf("a flight under way meanwhile: %v", err)
				}
			}
		})
	}
}

// TestFailoverSessions is about the other pool: once a new connection has met the
// new primary, no write goes to the old one over a connection that lay idle.
func TestFailoverSessions(t *testing.T) {
	a, b := twoServers(t)
	db := open(t, "flightpg", hostsDSN(t, "target_session_attrs=primary", b, a))
	write := func(v string) (at int) {
		t.Helper()
		if err := db.QueryRowContext(t.Context(), "UPDATE kv SET v = $1 WHERE id = 1 RETURNING inet_server_port()", v).Scan(&at); err != nil {
			t.Fatal(err)
		}
		return at
	}
	read := func() (v string) {
		t.Helper()
		if err := db.QueryRowContext(t.Context(), "SELECT v FROM kv WHERE id = 1").Scan(&v); err != nil {
			t.Fatal(err)
		}
		return v
	}
	if at := write("before"); at != port(t, a) {
		t.Fatalf("the write went to port %d; want %d", at, port(t, a))
	}
	promote(t, b)
	read() // the first flight, on the new primary
	if at := write("after"); at != port(t, b) {
		t.Errorf("the write went to port %d; want %d, where the flights are", at, port(t, b))
	}
	if v := read(); v != "after" {
		t.Errorf("read = %q; want after, its own write", v)
	}
}

// TestOldPrimaryReturns brings the old primary back, as a server that takes writes
// and comes first in the DSN, after the process has written to the new one.
func TestOldPrimaryReturns(t *testing.T) {
	a, b := twoServers(t)
	db := open(t, "flightpg", hostsDSN(t, "target_session_attrs=read-write", a, b))
	read := func() (v string, err error) {
		err = db.QueryRowContext(t.Context(), "SELECT v FROM kv WHERE id = 1").Scan(&v)
		return v, err
	}
	if v, err := read(); err != nil || v != "old" {
		t.Fatalf("read = %q, %v; want old", v, err)
	}
	if err := a.Crash(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	promote(t, b)
	if _, err := db.ExecContext(t.Context(), "UPDATE kv SET v = 'new' WHERE id = 1"); err != nil {
		t.Fatal(err)
	}
	if err := a.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	// New connections, of both pools.
	if _, err := connect(t, b.DSN()).Exec(t.Context(), `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if v, err := read(); err != nil || v != "new" {
			t.Errorf("read = %q, %v; want new: it is the old primary's", v, err)
		}
	}
}
