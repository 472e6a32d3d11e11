package integration

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// together returns how many different answers so many callers get who ask at once.
func together(t *testing.T, db *sql.DB, callers int, query string) (answers map[string]int) {
	t.Helper()
	answers = make(map[string]int)
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			rows, err := db.QueryContext(t.Context(), query)
			text, err := printed(rows, err)
			if err != nil {
				t.Errorf("%s: %v", query, err)
			}
			mu.Lock()
			answers[text]++
			mu.Unlock()
		})
	}
	wg.Wait()
	return answers
}

// dice returns what makes a function whose callers must not share, or may.
func dice(volatility, body string) string {
	return "CREATE OR REPLACE FUNCTION dice() RETURNS text " + volatility + " LANGUAGE sql AS $d$SELECT " + body + "$d$"
}

const (
	constant = "'constant'"
	rolled   = "random()::text || count(*) FROM generate_series(1, 100000)" // slow enough that callers meet
)

// The catalog is loaded again when its time to live is over, and for names that were
// not there: nobody has to come who finds none at all.
func TestFresh_Elsewhere(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		for _, e := range []flightpg.Executor{flightpg.ExecutorAuto, flightpg.ExecutorGeneric} {
			t.Run(e.String(), func(t *testing.T) {
				t.Parallel()
				dsn := newDatabase(t, dsn)
				other := connect(t, dsn) // another process
				exec := func(text string) {
					t.Helper()
					if _, err := other.Exec(t.Context(), text); err != nil {
						t.Fatal(err)
					}
				}
				exec(dice("STABLE", constant))
				db := openExecutor(t, withParam(t, dsn, "flight_catalog_ttl", "1s"), e)
				loaded(t, db) // or the first callers have sessions of their own
				if n := len(together(t, db, 20, "SELECT dice()")); n != 1 {
					t.Fatalf("%d answers; want 1", n)
				}
				exec("CREATE TABLE later AS SELECT 1 AS n; CREATE FUNCTION laterfn() RETURNS int STABLE LANGUAGE sql AS 'SELECT 1'")
				read := func(query string) {
					rows, err := db.QueryContext(t.Context(), query)
					if _, err := printed(rows, err); err != nil {
						t.Error(err)
					}
				}
				for range 300 {
					read("SELECT n FROM later")
					read("SELECT laterfn()")
				}
				// One that stays with its connection until the name is known; flights, the catalog.
				if s := flightpg.ReadStats(db); s.SessionBackends > 2 || s.Evictions > 0 {
					t.Errorf("%d session connections for names that the catalog did not have; want no more than 2", s.SessionBackends)
				}
				until(t, "a new table is known", func() bool { // Explain would wait for it
					before := flightpg.ReadStats(db)
					read("SELECT n FROM later")
					read("SELECT laterfn()")
					after := flightpg.ReadStats(db)
					return after.Flights == before.Flights+2
				})
				before := flightpg.ReadStats(db)
				for range 20 {
					together(t, db, 4, "SELECT laterfn()")
				}
				if after := flightpg.ReadStats(db); after.Bypasses[flightpg.ReasonSession] != before.Bypasses[flightpg.ReasonSession] {
					t.Errorf("%d reads ran on a session that was kept for a name that is known now",
						after.Bypasses[flightpg.ReasonSession]-before.Bypasses[flightpg.ReasonSession])
				}
				exec(dice("VOLATILE", rolled))
				until(t, "callers of what another process made volatile have answers of their own", func() bool {
					return len(together(t, db, 20, "SELECT dice()")) == 20
				})
			})
		}
	})
}

// What may have been DDL on a session of this process is seen without a time to live.
func TestFresh_Maybe(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		for name, change := range map[string]func(ctx context.Context, db *sql.DB) error{
			"DO": func(ctx context.Context, db *sql.DB) error {
				_, err := db.ExecContext(ctx, "DO $do$ BEGIN EXECUTE $e$"+dice("VOLATILE", rolled)+"$e$; END $do$")
				return err
			},
			"CALL": func(ctx context.Context, db *sql.DB) error {
				_, err := db.ExecContext(ctx, "CALL changes_by_procedure()")
				return err
			},
			"function": func(ctx context.Context, db *sql.DB) error {
				_, err := db.ExecContext(ctx, "SELECT changes()")
				return err
			},
			"functions rows": func(ctx context.Context, db *sql.DB) error {
				return db.QueryRowContext(ctx, "SELECT changes()").Scan(new(any))
			},
			"function in a transaction": func(ctx context.Context, db *sql.DB) error {
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					return err
				}
				defer tx.Rollback() //nolint:errcheck // after Commit it says that
				if _, err = tx.ExecContext(ctx, "SELECT changes()"); err != nil {
					return err
				}
				return tx.Commit()
			},
			"Raw": func(ctx context.Context, db *sql.DB) error {
				conn, err := db.Conn(ctx)
				if err != nil {
					return err
				}
				defer conn.Close()
				return conn.Raw(func(dc any) error {
					_, err := dc.(interface{ Conn() *pgx.Conn }).Conn().Exec(ctx, dice("VOLATILE", rolled))
					return err
				})
			},
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				dsn := newDatabase(t, dsn)
				db, err := flightpg.OpenDB(dsn, flightpg.Config{CatalogTTL: -1})
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				for _, text := range []string{
					dice("STABLE", constant),
					"CREATE FUNCTION changes() RETURNS void LANGUAGE plpgsql AS $f$ BEGIN EXECUTE $e$" + dice("VOLATILE", rolled) + "$e$; END $f$",
					"CREATE PROCEDURE changes_by_procedure() LANGUAGE plpgsql AS $f$ BEGIN EXECUTE $e$" + dice("VOLATILE", rolled) + "$e$; END $f$",
				} {
					if _, err := db.ExecContext(t.Context(), text); err != nil {
						t.Fatal(err)
					}
				}
				if n := len(together(t, db, 20, "SELECT dice()")); n != 1 {
					t.Fatalf("%d answers; want 1", n)
				}
				if err := change(t.Context(), db); err != nil {
					t.Fatal(err)
				}
				until(t, "callers have answers of their own", func() bool {
					return len(together(t, db, 20, "SELECT dice()")) == 20
				})
			})
		}
	})
}

// The server is told to read string literals in another way while connections are open.
// What they mean then is not what was judged; when the setting is back, so is sharing.
func TestSettings_Reload(t *testing.T) {
	for _, e := range []flightpg.Executor{flightpg.ExecutorAuto, flightpg.ExecutorGeneric} {
		t.Run(e.String(), func(t *testing.T) {
			t.Parallel()
			s := pgtest.New(t)
			admin := connect(t, s.DSN())
			set := func(value string) {
				t.Helper()
				for _, text := range []string{"ALTER SYSTEM SET standard_conforming_strings = " + value, "SELECT pg_reload_conf()"} {
					if _, err := admin.Exec(t.Context(), text, pgx.QueryExecModeSimpleProtocol); err != nil {
						t.Fatal(err)
					}
				}
				until(t, "the server has loaded its configuration", func() (done bool) {
					conn, err := pgx.Connect(t.Context(), s.DSN())
					if err != nil {
						t.Fatal(err)
					}
					defer conn.Close(context.Background())
					return conn.PgConn().ParameterStatus("standard_conforming_strings") == value
				})
			}
			db, err := flightpg.OpenDB(s.Database(t), flightpg.Config{Executor: e, SessionConns: 40})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			// One string with the setting on, and else a string, random(), and a comment.
			read := func(n int) string {
				return fmt.Sprintf(`SELECT /* %d */ '\''||pg_sleep(0.01)::text||random()::text --'`, n)
			}
			together(t, db, 64, "SELECT pg_sleep(0.01)") // connections
			constant := ""
			for n := range 8 {
				got := together(t, db, 64, read(n))
				if len(got) != 1 {
					t.Fatalf("%d answers to a constant: %v", len(got), got)
				}
				for constant = range got {
				}
			}
			set("off")
			var wg sync.WaitGroup
			for n := range 16 { // some have been prepared on some connections
				wg.Go(func() {
					for text, callers := range together(t, db, 64, read(n)) {
						if callers > 1 && text != constant {
							t.Errorf("read %d: %d callers have got %s", n, callers, text)
						}
					}
				})
			}
			wg.Wait()
			set("on")
			until(t, "reads are shared again", func() bool {
				before := flightpg.ReadStats(db)
				together(t, db, 64, "SELECT count(*) FROM generate_series(1, 100000)")
				after := flightpg.ReadStats(db)
				return after.Joins > before.Joins+32
			})
		})
	}
}

// Where reads go to a hot standby, nobody can count on what he has written elsewhere.
func TestHotStandby(t *testing.T) {
	primary, standby := twoServers(t)
	for name, tc := range map[string]struct {
		s    *pgtest.Server
		want bool
	}{"primary": {primary, false}, "standby": {standby, true}} {
		db := open(t, "flightpg", tc.s.DSN())
		if err := db.QueryRowContext(t.Context(), "SELECT v FROM kv WHERE id = 1").Scan(new(string)); err != nil {
			t.Fatal(err)
		}
		v, err := flightpg.Explain(t.Context(), db, "SELECT v FROM kv WHERE id = 1")
		if got := flightpg.ReadStats(db).HotStandby; err != nil || got != tc.want || v.HotStandby != tc.want || !v.Coalesce {
			t.Errorf("%s: Stats.HotStandby = %v, Explain = %+v, %v; want %v", name, got, v, err, tc.want)
		}
	}
	// After its promotion connections that are opened, and those that are open, say so.
	db := openExecutor(t, standby.DSN(), flightpg.ExecutorGeneric)
	read := func() {
		if err := db.QueryRowContext(t.Context(), "SELECT v FROM kv WHERE id = 1").Scan(new(string)); err != nil {
			t.Error(err)
		}
	}
	read()
	promote(t, standby)
	until(t, "it is told", func() bool {
		read()
		return !flightpg.ReadStats(db).HotStandby
	})
}

// TestHookResetsAll: a hook that resets the session's settings turns the guard off. That
// is no statement's fault, and the next read is guarded.
func TestHookResetsAll(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		execAll(t, connect(t, dsn), shownGuardSchema)
		for _, text := range []string{"RESET ALL", "DISCARD ALL"} {
			db, err := flightpg.OpenDB(dsn, flightpg.Config{
				TrustDeclared: true,
				PartitionKey:  func(context.Context) string { return "" },
				ResetSession: func(ctx context.Context, conn *pgx.Conn) error {
					_, err := conn.Exec(ctx, text)
					return err
				},
			})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			loaded(t, db)
			for range 10 {
				if got := one[string](t, db, shownGuard); got != sessionGuarded {
					t.Errorf("%s: the guard is %q; want %q", text, got, sessionGuarded)
				}
			}
			if s := flightpg.ReadStats(db); s.Flights != 10 || s.FlightBackends != 1 || len(s.Bypasses) != 0 {
				t.Errorf("%s: Stats = %+v; want ten flights on one connection", text, s)
			}
		}
	})
}

// TestRawContext: Conn.Raw takes a connection under the context of its sql.Conn.
func TestRawContext(t *testing.T) {
	dsn := pgtest.Database(t)
	db, err := flightpg.OpenDB(dsn, flightpg.Config{SessionConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	raw := func(ctx context.Context, end bool) (there bool) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
		defer cancel()
		conn, err := db.Conn(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if end {
			cancel()
		}
		err = conn.Raw(func(dc any) error {
			there = dc.(interface{ Conn() *pgx.Conn }).Conn() != nil
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		return there
	}
	tx, err := db.Begin() // has the only session
	if err != nil {
		t.Fatal(err)
	}
	if raw(t.Context(), false) {
		t.Error("a second session where one is the limit")
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	for _, ended := range []bool{false, true} {
		if !raw(t.Context(), ended) {
			t.Errorf("no session, though one is free (context ended: %v)", ended)
		}
	}
}

// TestPath_Changed: another process changes where those who connect from now on look for
// names. What was judged by the old names is not shared with the new ones, and what is
// harmless by these is shared again.
func TestPath_Changed(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		for _, e := range []flightpg.Executor{flightpg.ExecutorAuto, flightpg.ExecutorGeneric} {
			t.Run(e.String(), func(t *testing.T) {
				dsn := newDatabase(t, dsn)
				admin := connect(t, dsn)
				execAll(t, admin, `CREATE TABLE things AS SELECT 'constant'::text AS v; CREATE TABLE plain AS SELECT 1 AS n;
					CREATE SCHEMA evil; CREATE VIEW evil.things AS SELECT v FROM (SELECT `+strings.Replace(rolled, "100000", "2000", 1)+`) x(v)`)
				db := openExecutor(t, dsn, e)
				if n := len(together(t, db, 32, "SELECT v FROM things")); n != 1 {
					t.Fatalf("%d answers; want 1", n)
				}
				execAll(t, admin, fmt.Sprintf("ALTER DATABASE %q SET search_path = evil, public", admin.Config().Database))
				execAll(t, admin, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
				var mu sync.Mutex
				seen := make(map[string]int)
				var wg sync.WaitGroup
				for range 32 {
					wg.Go(func() {
						for range 5 {
							rows, err := db.QueryContext(t.Context(), "SELECT v FROM things")
							text, err := printed(rows, err)
							mu.Lock()
							if seen[text]++; err != nil {
								delete(seen, text) // a connection that was terminated
							}
							mu.Unlock()
						}
					})
				}
				wg.Wait()
				for text, n := range seen {
					if n > 1 && text != "[v] string(constant)" {
						t.Errorf("%d callers have got %s", n, text)
					}
				}
				if len(seen) < 100 {
					t.Errorf("%d answers; want hundreds, or this shows nothing", len(seen))
				}
				until(t, "what is harmless is shared", func() bool {
					before := flightpg.ReadStats(db)
					together(t, db, 32, "SELECT count(n) FROM plain, generate_series(1, 100000)")
					return flightpg.ReadStats(db).Joins > before.Joins+8
				})
			})
		}
	})
}
