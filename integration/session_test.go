package integration

import (
	"context"
	"database/sql"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestSessionState changes the state of one caller's session in every way that
// PostgreSQL has. That caller's reads must see it, on its connection, and no
// other caller's may: flights run on sessions where nothing but reads ran.
func TestSessionState(t *testing.T) {
	ctx := context.Background()
	exec := func(queries ...string) func(*testing.T, *sql.Conn) {
		return func(t *testing.T, c *sql.Conn) {
			t.Helper()
			for _, q := range queries {
				if _, err := c.ExecContext(ctx, q); err != nil {
					t.Fatalf("%s: %v", q, err)
				}
			}
		}
	}
	inTx := func(queries ...string) func(*testing.T, *sql.Conn) {
		return func(t *testing.T, c *sql.Conn) {
			t.Helper()
			tx, err := c.BeginTx(ctx, nil)
			if err != nil {
				t.Fatal(err)
			}
			defer tx.Rollback()
			for _, q := range queries {
				if _, err := tx.ExecContext(ctx, q); err != nil {
					t.Fatalf("%s: %v", q, err)
				}
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
		}
	}
	query := func(q string) func(*testing.T, *sql.Conn) {
		return func(t *testing.T, c *sql.Conn) {
			t.Helper()
			rows, err := c.QueryContext(ctx, q)
			if err != nil {
				t.Fatal(err)
			}
			defer rows.Close()
			for rows.Next() {
			}
			if rows.Err() != nil {
				t.Fatal(rows.Err())
			}
		}
	}
	for _, tc := range []struct {
		name   string
		change func(*testing.T, *sql.Conn)
		read   string
		own    string // what the caller itself must see
		others string // what everybody else must see
	}{
		{"SET", exec("SET search_path = other"), "SELECT v FROM pathed", "other", "public"},
		{"SetConfigQuery", query("SELECT set_config('search_path', 'other', false)"), "SELECT v FROM pathed", "other", "public"},
		{"SetConfigPrepared", func(t *testing.T, c *sql.Conn) {
			st, err := c.PrepareContext(ctx, "SELECT set_config('search_path', $1, false)")
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			var s string
			if err := st.QueryRowContext(ctx, "other").Scan(&s); err != nil {
				t.Fatal(err)
			}
		}, "SELECT v FROM pathed", "other", "public"},
		{"SetInTransaction", inTx("SET search_path = other"), "SELECT v FROM pathed", "other", "public"},
		{"SetLocalEndsWithIt", inTx("SET LOCAL search_path = other"), "SELECT v FROM pathed", "public", "public"},
		{"SetRole", exec("SET ROLE session_test"), "SELECT current_user = 'session_test'", "true", "false"},
		{"TimeZone", exec("SET timezone = 'Asia/Tokyo'"), "SELECT '2026-01-01 00:00:00+00'::timestamptz::text", "2026-01-01 09:00:00+09", "2026-01-01 00:00:00+00"},
		{"DateStyle", exec("SET datestyle = 'German'"), "SELECT '2026-01-02'::date::text", "02.01.2026", "2026-01-02"},
		{"TriggerOfPlainInsert", exec("INSERT INTO switcher VALUES ('other')"), "SELECT v FROM pathed", "other", "public"},
		{"TriggerByReturning", query("INSERT INTO switcher VALUES ('other') RETURNING v"), "SELECT v FROM pathed", "other", "public"},
		{"TempTableShadows", exec("CREATE TEMP TABLE pathed AS SELECT 'temp' AS v"), "SELECT v FROM pathed", "temp", "public"},
		{"VolatileFunctionMakesTempTable", query("SELECT mk_temp()"), "SELECT v FROM pathed", "temp", "public"},
		{"DoMakesTempTable", exec("DO $$ BEGIN PERFORM mk_temp(); END $$"), "SELECT v FROM pathed", "temp", "public"},
		{"SeveralStatements", exec("SELECT 1; SET search_path = other"), "SELECT v FROM pathed", "other", "public"},
		{"DiscardAfterSet", exec("SET search_path = other", "DISCARD ALL"), "SELECT v FROM pathed", "public", "public"},
		{"Raw", func(t *testing.T, c *sql.Conn) {
			err := c.Raw(func(dc any) error {
				_, err := dc.(interface{ Conn() *pgx.Conn }).Conn().Exec(ctx, "SET search_path = other")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}, "SELECT v FROM pathed", "other", "public"},
		{"Listen", exec("LISTEN here"), "SELECT count(*) FROM pg_listening_channels()", "1", "0"},
		{"Prepare", exec("PREPARE p AS SELECT 1"), "SELECT count(*) FROM pg_prepared_statements WHERE name = 'p'", "1", "0"},
		{
			"AdvisoryLock", query("SELECT pg_advisory_lock(42)"),
			"SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND pid = pg_backend_pid()", "1", "0",
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			forEachServer(t, func(t *testing.T, dsn string) {
				admin := connect(t, dsn)
				if _, err := admin.Exec(ctx, sessionSchema); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { // a role belongs to the server
					if _, err := connect(t, dsn).Exec(ctx, "DROP ROLE IF EXISTS session_test"); err != nil {
						t.Error(err)
					}
				})
				db := open(t, "flightpg", with(dsn, "timezone=UTC"))
				c, err := db.Conn(ctx)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				tc.change(t, c)
				var got string
				if err := c.QueryRowContext(ctx, tc.read).Scan(&got); err != nil || got != tc.own {
					t.Errorf("the caller itself reads %q, %v; want %q", got, err, tc.own)
				}
				if s := flightpg.ReadStats(db); s.Flights != 0 && !strings.Contains(tc.name, "Prepared") {
					t.Errorf("Stats = %+v; want no flight on behalf of the changed session", s)
				}
				var wg sync.WaitGroup
				for range 20 {
					wg.Go(func() {
						var got string
						if err := db.QueryRowContext(ctx, tc.read).Scan(&got); err != nil || got != tc.others {
							t.Errorf("another caller reads %q, %v; want %q", got, err, tc.others)
						}
					})
				}
				wg.Wait()
			})
		})
	}
}

const sessionSchema = `
CREATE SCHEMA other;
CREATE TABLE pathed AS SELECT 'public' AS v;
CREATE TABLE other.pathed AS SELECT 'other' AS v;
DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'session_test') THEN CREATE ROLE session_test; END IF; END $$;
CREATE TABLE switcher (v text);
CREATE FUNCTION switch() RETURNS trigger LANGUAGE plpgsql AS
	$$ BEGIN PERFORM set_config('search_path', NEW.v, false); RETURN NEW; END $$;
CREATE TRIGGER switch BEFORE INSERT ON switcher FOR EACH ROW EXECUTE FUNCTION switch();
CREATE FUNCTION mk_temp() RETURNS int LANGUAGE plpgsql AS
	$$ BEGIN CREATE TEMP TABLE pathed AS SELECT 'temp' AS v; RETURN 1; END $$;
`

// TestSessionComesBack runs what may change a session but has not, in ways that
// applications do. The connection must share reads again afterwards: database/sql
// hands out the one that was used last.
func TestSessionComesBack(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		setup := connect(t, dsn)
		if _, err := setup.Exec(t.Context(), `
			CREATE FUNCTION stable_f(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1';
			CREATE FUNCTION volatile_f(int) RETURNS int LANGUAGE plpgsql AS $$BEGIN PERFORM set_config('app.x', 'y', false); RETURN $1; END$$`); err != nil {
			t.Fatal(err)
		}
		onConn := func(ctx context.Context, db *sql.DB, queries ...string) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			for _, query := range queries {
				if _, err = c.ExecContext(ctx, query); err != nil {
					break
				}
			}
			return errors.Join(err, c.Close())
		}
		for _, tc := range []struct {
			name  string
			run   func(ctx context.Context, db *sql.DB) error
			stays bool   // the connection keeps its session
			state string // the error's SQLSTATE
		}{
			{"StableFunctionInExec", func(ctx context.Context, db *sql.DB) error {
				_, err := db.ExecContext(ctx, "INSERT INTO counters SELECT stable_f(1), 0")
				return err
			}, false, ""},
			{"StableFunctionInTx", func(ctx context.Context, db *sql.DB) error {
				tx, err := db.BeginTx(ctx, nil)
				if err != nil {
					return err
				}
				var n int
				return errors.Join(tx.QueryRowContext(ctx, "SELECT stable_f(1)").Scan(&n), tx.Commit())
			}, false, ""},
			{"VolatileFunctionInExec", func(ctx context.Context, db *sql.DB) error {
				_, err := db.ExecContext(ctx, "INSERT INTO counters SELECT volatile_f(2), 0")
				return err
			}, false, ""},
			{"LockedAndUnlocked", func(ctx context.Context, db *sql.DB) error {
				return onConn(ctx, db, "SELECT pg_advisory_lock(1)", "SELECT pg_try_advisory_lock(2, 3)", "SELECT pg_advisory_unlock(1)", "SELECT pg_advisory_unlock(2, 3)")
			}, false, ""},
			{"Locked", func(ctx context.Context, db *sql.DB) error {
				return onConn(ctx, db, "SELECT pg_advisory_lock(1)")
			}, true, ""},
			{"LockedAndSet", func(ctx context.Context, db *sql.DB) error {
				return onConn(ctx, db, "SELECT pg_advisory_lock(1), set_config('app.x', 'y', false)", "SELECT pg_advisory_unlock_all()")
			}, true, ""},
			{"TransactionInText", func(ctx context.Context, db *sql.DB) error {
				return onConn(ctx, db, "BEGIN", "INSERT INTO counters VALUES (3, 0)", "COMMIT", "START TRANSACTION READ ONLY", "ROLLBACK")
			}, false, ""},
			{"OpenTransaction", func(ctx context.Context, db *sql.DB) error {
				return onConn(ctx, db, "BEGIN", "INSERT INTO counters VALUES (4, 0)")
			}, false, ""},
			{"SetInTransaction", func(ctx context.Context, db *sql.DB) error {
				return onConn(ctx, db, "BEGIN", "SET app.x = 'y'", "COMMIT")
			}, true, ""},
			{"NoSuchFunction", func(ctx context.Context, db *sql.DB) error {
				var n int
				return db.QueryRowContext(ctx, "SELECT no_such_function(1)").Scan(&n)
			}, false, "42883"},
			{"SyntaxError", func(ctx context.Context, db *sql.DB) error { return onConn(ctx, db, "SET SET") }, false, "42601"},
			{"ErrorInFunction", func(ctx context.Context, db *sql.DB) error {
				return onConn(ctx, db, "DO $$BEGIN PERFORM set_config('app.x', 'y', false); PERFORM no_such_function(1); END$$")
			}, false, "42883"},
			{"ErrorBehindSet", func(ctx context.Context, db *sql.DB) error {
				c, err := db.Conn(ctx)
				if err != nil {
					return err
				}
				_, err = c.ExecContext(ctx, "SET app.x = 'y'; COMMIT; SELECT no_such_function(1)", pgx.QueryExecModeSimpleProtocol)
				return errors.Join(err, c.Close())
			}, true, "42883"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				db := open(t, "flightpg", dsn)
				if err := tc.run(t.Context(), db); code(err) != tc.state || (err == nil) != (tc.state == "") {
					t.Fatalf("%v; want SQLSTATE %q", err, tc.state)
				}
				if err := flightpg.RefreshCatalog(t.Context(), db); err != nil {
					t.Fatal(err)
				}
				before := flightpg.ReadStats(db)
				for range 10 {
					var name string
					if err := db.QueryRowContext(t.Context(), "SELECT name FROM items WHERE id = 1").Scan(&name); err != nil {
						t.Fatal(err)
					}
				}
				after := flightpg.ReadStats(db)
				flights, bypasses := after.Flights-before.Flights, after.Bypasses[flightpg.ReasonSession]-before.Bypasses[flightpg.ReasonSession]
				if want := uint64(10); tc.stays && (bypasses != want || flights != 0) || !tc.stays && (flights != want || bypasses != 0) {
					t.Errorf("%d flights, %d reads on the session; want it to stay: %v", flights, bypasses, tc.stays)
				}
			})
		}
	})
}

// TestConnOutlivesClose: a sql.Conn that was taken before db.Close works until it is
// closed, used before or not, and its connection goes then.
func TestConnOutlivesClose(t *testing.T) {
	ctx := t.Context()
	dsn := pgtest.Database(t)
	for _, driver := range []string{"pgx", "flightpg"} {
		db, err := sql.Open(driver, dsn)
		if err != nil {
			t.Fatal(err)
		}
		var conns [2]*sql.Conn
		for i := range conns {
			if conns[i], err = db.Conn(ctx); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := conns[0].ExecContext(ctx, "SELECT 1"); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatalf("%s: Close = %v", driver, err)
		}
		for i, conn := range conns {
			var one, pid int
			if err := conn.QueryRowContext(ctx, "SELECT 1").Scan(&one); err != nil || one != 1 {
				t.Errorf("%s, connection %d: read %d, %v; want 1", driver, i, one, err)
			}
			tx, err := conn.BeginTx(ctx, nil)
			if err != nil {
				t.Errorf("%s, connection %d: BeginTx = %v", driver, i, err)
				continue
			}
			if err := tx.QueryRowContext(ctx, "SELECT pg_backend_pid()").Scan(&pid); err != nil {
				t.Errorf("%s, connection %d: %v", driver, i, err)
			}
			if err := tx.Commit(); err != nil {
				t.Errorf("%s, connection %d: Commit = %v", driver, i, err)
			}
			if err := conn.Close(); err != nil {
				t.Errorf("%s, connection %d: Close = %v", driver, i, err)
			}
			awaitGone(t, dsn, pid)
		}
		if _, err := db.ExecContext(ctx, "SELECT 1"); err == nil || err.Error() != "sql: database is closed" {
			t.Errorf("%s: Exec after Close = %v", driver, err)
		}
	}
}

// awaitGone waits until a backend has ended.
func awaitGone(t *testing.T, dsn string, pid int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	for range 1000 {
		var there bool
		if err := conn.QueryRow(t.Context(), "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid).Scan(&there); err != nil {
			t.Fatal(err)
		}
		if !there {
			return
		}
		time.Sleep(5 * time.Millisecond) // until the server has ended it
	}
	t.Errorf("backend %d is still there", pid)
}
