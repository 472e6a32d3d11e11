package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

const keptSchema = `
CREATE TABLE small AS SELECT i AS id, 'v' || i AS v FROM generate_series(1, 100) i;
CREATE TABLE lw (n int);
CREATE SEQUENCE seq;
CREATE EXTENSION IF NOT EXISTS pgcrypto;
CREATE EXTENSION IF NOT EXISTS "uuid-ossp";
CREATE FUNCTION add_one(n int) RETURNS int LANGUAGE sql AS 'INSERT INTO lw VALUES (n) RETURNING n';
CREATE PROCEDURE proc() LANGUAGE sql AS 'INSERT INTO lw VALUES (1)';
CREATE FUNCTION leaves() RETURNS int LANGUAGE plpgsql AS $$ BEGIN
	PERFORM set_config('search_path', 'elsewhere', false), set_config('statement_timeout', '12345', false), pg_advisory_lock(4711), nextval('public.seq'), setseed(0.5);
	CREATE TEMP TABLE small AS SELECT 1 AS id, 'temp'::text AS v;
	LISTEN here;
	EXECUTE 'PREPARE left_over AS SELECT 1';
	EXECUTE 'DECLARE left_open CURSOR WITH HOLD FOR SELECT 1';
	EXECUTE 'SET ROLE ' || CASE session_user WHEN 'kept_login' THEN 'NONE' ELSE 'kept_other' END;
	RETURN 1;
END $$;
`

// unknowns are calls whose effect on their session nobody knows, and some that are known to
// have none.
func unknowns() map[string]func(context.Context, *sql.DB) error {
	one := func(query string, args ...any) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			var v any
			return db.QueryRowContext(ctx, query, args...).Scan(&v)
		}
	}
	exec := func(query string) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, query)
			return err
		}
	}
	inTx := func(queries ...string) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			for _, q := range queries {
				if _, err := tx.ExecContext(ctx, q); err != nil {
					return errors.Join(fmt.Errorf("%s: %w", q, err), tx.Rollback())
				}
			}
			return tx.Commit()
		}
	}
	raw := func(f func(context.Context, *pgx.Conn) error) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			c, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			err = c.Raw(func(dc any) error { return f(ctx, dc.(interface{ Conn() *pgx.Conn }).Conn()) })
			return errors.Join(err, c.Close())
		}
	}
	return map[string]func(context.Context, *sql.DB) error{
		"OwnFunction": one("SELECT add_one($1)", 1),
		"TempTable":   inTx("CREATE TEMP TABLE batch (n int) ON COMMIT DROP", "INSERT INTO batch VALUES (1)", "INSERT INTO lw SELECT n FROM batch"),
		"SetConfig":   inTx("SELECT set_config('app.tenant', '1', true)"),
		"CopyFrom": raw(func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.CopyFrom(ctx, pgx.Identifier{"lw"}, []string{"n"}, pgx.CopyFromRows([][]any{{1}}))
			return err
		}),
		"SendBatch": raw(func(ctx context.Context, conn *pgx.Conn) error {
			b := &pgx.Batch{}
			b.Queue("SELECT 1")
			return conn.SendBatch(ctx, b).Close()
		}),
		"Call":          exec("CALL proc()"),
		"Do":            exec("DO $$ BEGIN PERFORM 1; END $$"),
		"Explain":       one("EXPLAIN SELECT v FROM small"),
		"LargeObject":   one("SELECT lo_unlink(lo_from_bytea(0, 'x'))"),
		"Cursor":        inTx("DECLARE c CURSOR FOR SELECT id FROM small", "FETCH 10 FROM c", "CLOSE c"),
		"Checkpoint":    exec("CHECKPOINT"),
		"Unlisten":      exec("UNLISTEN *"),
		"DeallocateAll": exec("DEALLOCATE ALL"),
		"DiscardAll":    exec("DISCARD ALL"),
		"Reset":         exec("RESET statement_timeout"),
		"RandomUUID":    one("SELECT gen_random_uuid()"),
		"Crypt":         one("SELECT crypt('secret', gen_salt('md5'))"),
		"RandomBytes":   one("SELECT gen_random_bytes(8)"),
		"UUIDv4":        one("SELECT uuid_generate_v4()"),
		"Show":          one("SHOW server_version"),
	}
}

// TestUnknownEffects: where one call of fifty does what nobody knows to its session, reads
// go on to be shared, and no more sessions are open than there may be.
func TestUnknownEffects(t *testing.T) {
	const readers, rounds, sessions = 20, 25, 4
	forEachServer(t, func(t *testing.T, dsn string) {
		kept(t, dsn)
		for name, call := range unknowns() {
			for _, executor := range []flightpg.Executor{flightpg.ExecutorAuto, flightpg.ExecutorGeneric} {
				t.Run(fmt.Sprint(name, "/", executor), func(t *testing.T) {
					db, err := flightpg.OpenDB(dsn, flightpg.Config{SessionConns: sessions, Executor: executor})
					if err != nil {
						t.Fatal(err)
					}
					defer db.Close()
					db.SetMaxOpenConns(readers)
					var v string
					const read = "SELECT v FROM small WHERE id = 3"
					if err := db.QueryRow(read).Scan(&v); err != nil {
						t.Fatal(err)
					}
					before := flightpg.ReadStats(db)
					var wg sync.WaitGroup
					for i := range readers {
						wg.Go(func() {
							for n := range rounds {
								if (n*readers+i)%50 == 7 {
									if err := call(t.Context(), db); err != nil {
										t.Error(err)
									}
									continue
								}
								var v string
								if err := db.QueryRow(read).Scan(&v); err != nil || v != "v3" {
									t.Errorf("read %q, %v", v, err)
								}
								if n := flightpg.ReadStats(db).SessionBackends; n > sessions {
									t.Errorf("%d sessions are open; want at most %d", n, sessions)
								}
							}
						})
					}
					wg.Wait()
					after := flightpg.ReadStats(db)
					shares := after.Flights + after.Joins - before.Flights - before.Joins
					if reads := uint64(readers * rounds * 49 / 50); shares < reads*9/10 {
						t.Errorf("of %d reads %d went through flights; bypasses: %v", reads, shares, after.Bypasses)
					}
				})
			}
		}
	})
}

func kept(t *testing.T, dsn string) {
	t.Helper()
	admin := connect(t, dsn)
	if _, err := admin.Exec(t.Context(), keptSchema); err != nil {
		t.Fatal(err)
	}
}

// TestUnknownEffects_Gone: what a function of somebody's has left in a session is there for
// who called it, as long as he has his connection, and for nobody else.
func TestUnknownEffects_Gone(t *testing.T) {
	probes := map[string]string{
		"settings":  "SELECT current_setting('search_path') || ', ' || current_setting('statement_timeout')",
		"role":      "SELECT session_user || ', ' || current_user",
		"temporary": "SELECT v FROM small WHERE id = 1",
		"prepared":  "SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_over'",
		"cursors":   "SELECT count(*) FROM pg_cursors WHERE name = 'left_open'",
		"channels":  "SELECT count(*) FROM pg_listening_channels()",
		"locks":     "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND objid = 4711 AND pid = pg_backend_pid()",
		"sequences": "SELECT lastval()",
	}
	state := func(t *testing.T, c *sql.Conn) map[string]string {
		t.Helper()
		found := map[string]string{}
		if _, err := c.ExecContext(t.Context(), "UPDATE public.lw SET n = n"); err != nil { // has a session
			t.Fatal(err)
		}
		for name, q := range probes {
			var v string
			if err := c.QueryRowContext(t.Context(), q).Scan(&v); err != nil {
				v = code(err)
			}
			found[name] = v
		}
		return found
	}
	forEachServer(t, func(t *testing.T, dsn string) {
		admin := connect(t, dsn)
		for _, q := range []string{
			"CREATE ROLE kept_other", "CREATE ROLE kept_login LOGIN", "GRANT kept_other TO kept_login", keptSchema,
			"GRANT ALL ON ALL TABLES IN SCHEMA public TO kept_login, kept_other", "GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO kept_login, kept_other",
			"GRANT CREATE ON SCHEMA public TO kept_login, kept_other", "DO $$ BEGIN EXECUTE 'GRANT TEMP ON DATABASE ' || quote_ident(current_database()) || ' TO kept_login, kept_other'; END $$",
			"ALTER ROLE kept_login SET role = kept_other",
		} {
			if _, err := admin.Exec(t.Context(), q); err != nil {
				t.Fatalf("%s: %v", q, err)
			}
		}
		t.Cleanup(func() {
			admin := connect(t, dsn)
			for _, q := range []string{"DROP OWNED BY kept_other, kept_login", "DROP ROLE kept_other, kept_login"} {
				if _, err := admin.Exec(context.Background(), q); err != nil {
					t.Error(err)
				}
			}
		})
		for _, tc := range []struct {
			name string
			dirt func(context.Context, *sql.Conn) error
		}{
			{"Function", func(ctx context.Context, c *sql.Conn) error {
				var n int
				return c.QueryRowContext(ctx, "SELECT leaves()").Scan(&n)
			}},
			{"Do", func(ctx context.Context, c *sql.Conn) error {
				_, err := c.ExecContext(ctx, "DO $$ BEGIN PERFORM public.leaves(); END $$")
				return err
			}},
			{"Raw", func(ctx context.Context, c *sql.Conn) error {
				return c.Raw(func(dc any) error {
					_, err := dc.(interface{ Conn() *pgx.Conn }).Conn().Exec(ctx, "SELECT public.leaves()")
					return err
				})
			}},
		} {
			t.Run(tc.name, func(t *testing.T) {
				for _, login := range []string{"", "kept_login"} {
					from := dsn
					if login != "" {
						from = with(dsn, "user="+login)
					}
					db, err := flightpg.OpenDB(from, flightpg.Config{SessionConns: 1}) // everybody has the same
					if err != nil {
						t.Fatal(err)
					}
					defer db.Close()
					held, err := db.Conn(t.Context()) // with pgx he would see nothing of it
					if err != nil {
						t.Fatal(err)
					}
					defer held.Close()
					c, err := db.Conn(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					clean := state(t, c)
					if err := tc.dirt(t.Context(), c); err != nil {
						t.Fatal(err)
					}
					if dirty := state(t, c); dirty["temporary"] != "42501" && dirty["temporary"] != "temp" || dirty["settings"] == clean["settings"] || dirty["role"] == clean["role"] || dirty["locks"] != "1" ||
						dirty["channels"] != "1" || dirty["prepared"] != "1" || dirty["cursors"] != "1" {
						t.Errorf("who called the function has %v; want all that it left", dirty)
					}
					if err := c.Close(); err != nil {
						t.Fatal(err)
					}
					if got := state(t, held); fmt.Sprint(got) != fmt.Sprint(clean) {
						t.Errorf("another has %v; want %v", got, clean)
					}
					held.Close()
					if c, err = db.Conn(t.Context()); err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					if got := state(t, c); fmt.Sprint(got) != fmt.Sprint(clean) {
						t.Errorf("the connection's next user has %v; want %v", got, clean)
					}
					c.Close()
				}
			})
		}
	})
}

// TestUnknownEffects_Notifications: what a session has heard, its next user does not.
func TestUnknownEffects_Notifications(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		db, err := flightpg.OpenDB(dsn, flightpg.Config{SessionConns: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		raw := func(f func(*pgx.Conn) error) {
			t.Helper()
			c, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Raw(func(dc any) error { return f(dc.(interface{ Conn() *pgx.Conn }).Conn()) }); err != nil {
				t.Fatal(err)
			}
		}
		var pid uint32
		raw(func(conn *pgx.Conn) error {
			pid = conn.PgConn().PID()
			_, err := conn.Exec(t.Context(), "LISTEN here; NOTIFY here")
			return err
		})
		raw(func(conn *pgx.Conn) error {
			if n := conn.PgConn().PID(); n != pid {
				t.Errorf("backend %d; want %d, cleaned", n, pid)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if n, err := conn.WaitForNotification(ctx); err == nil {
				t.Errorf("another's notification: %+v", n)
			}
			return nil
		})
	})
}

// TestUnknownEffects_Hooks: what hooks have set up is there for everybody, and reads go on
// to be shared.
func TestUnknownEffects_Hooks(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		kept(t, dsn)
		db, err := flightpg.OpenDB(dsn, flightpg.Config{AfterConnect: func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "SET application_name = 'set by a hook'")
			return err
		}})
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		db.SetMaxOpenConns(3)
		for range 10 {
			var n int
			var name string
			if err := db.QueryRow("SELECT add_one(1)").Scan(&n); err != nil {
				t.Fatal(err)
			}
			if err := db.QueryRow("SELECT current_setting('application_name') FROM add_one(1)").Scan(&name); err != nil || name != "set by a hook" {
				t.Errorf("application_name = %q, %v", name, err)
			}
			if err := db.QueryRow("SELECT v FROM small WHERE id = 1").Scan(&name); err != nil {
				t.Fatal(err)
			}
		}
		if s := flightpg.ReadStats(db); s.Flights < 9 || s.SessionBackends > 3 {
			t.Errorf("Stats = %+v; want reads on flights", s)
		}
	})
}

// TestKeptOpenly: what a statement says that it leaves in a session stays on its
// connection, as with pgx, however often that is taken.
func TestKeptOpenly(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		kept(t, dsn)
		for name, tc := range map[string]struct {
			say    []string
			read   string
			want   string
			shares bool // reads that it cannot matter to are shared
		}{
			"Set":         {[]string{"SET search_path = nowhere, pg_catalog"}, "SELECT to_regclass('small') IS NULL", "true", false},
			"SetConfig":   {[]string{"SELECT set_config('DateStyle', 'German', false)"}, "SELECT '2026-01-02'::date::text", "02.01.2026", false},
			"TempTable":   {[]string{"CREATE TEMP TABLE small AS SELECT 3 AS id, 'mine' AS v"}, "SELECT v FROM small WHERE id = 3", "mine", false},
			"Lock":        {[]string{"SELECT pg_advisory_lock(7)"}, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()", "1", false},
			"Listen":      {[]string{"LISTEN here"}, "SELECT count(*) FROM pg_listening_channels()", "1", true},
			"Prepare":     {[]string{"PREPARE p AS SELECT 5"}, "EXECUTE p", "5", true},
			"Cursor":      {[]string{"DECLARE c CURSOR WITH HOLD FOR SELECT 6"}, "FETCH c", "6", true},
			"Name":        {[]string{"SET application_name = 'mine'"}, "SELECT current_setting('application_name')", "mine", true},
			"AndFunction": {[]string{"SET DateStyle = German", "SELECT add_one(1)"}, "SELECT '2026-01-02'::date::text", "02.01.2026", false},
		} {
			t.Run(name, func(t *testing.T) {
				for _, driver := range []string{"pgx", "flightpg"} {
					db := open(t, driver, dsn)
					db.SetMaxOpenConns(1)
					for _, q := range tc.say {
						if _, err := db.Exec(q); err != nil {
							t.Fatalf("%s: %s: %v", driver, q, err)
						}
					}
					for i := range 3 {
						var got, v string
						if name == "Cursor" && i > 0 {
							break
						}
						if driver == "flightpg" && tc.shares {
							before := flightpg.ReadStats(db).Flights
							if err := db.QueryRow("SELECT v FROM small WHERE id = 3").Scan(&v); err != nil || v != "v3" {
								t.Errorf("read %q, %v", v, err)
							}
							if flightpg.ReadStats(db).Flights != before+1 {
								t.Error("a read that the session's state cannot matter to was not shared")
							}
						}
						if err := db.QueryRow(tc.read).Scan(&got); err != nil || got != tc.want {
							t.Errorf("%s: %s = %q, %v; want %q", driver, tc.read, got, err, tc.want)
						}
					}
					db.Close()
				}
			})
		}
	})
}

// TestKeptOpenly_Limits: MaxIdle, MaxIdleTime and MaxLifetime hold for sessions that are
// kept.
func TestKeptOpenly_Limits(t *testing.T) {
	dsn := pgtest.Database(t)
	set := func(t *testing.T, db *sql.DB, n int) {
		t.Helper()
		var conns []*sql.Conn
		for range n {
			c, err := db.Conn(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ExecContext(t.Context(), "SET DateStyle = German"); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		for _, c := range conns {
			c.Close()
		}
	}
	left := func(t *testing.T, db *sql.DB, want int) {
		t.Helper()
		until(t, fmt.Sprintf("%d sessions are left", want), func() bool { return flightpg.ReadStats(db).SessionBackends == want })
	}
	for name, tc := range map[string]struct {
		cfg  flightpg.Config
		want int
	}{
		"MaxIdle":     {flightpg.Config{MaxIdle: 2}, 2},
		"MaxIdleTime": {flightpg.Config{MaxIdleTime: 50 * time.Millisecond}, 0},
		"MaxLifetime": {flightpg.Config{MaxLifetime: 100 * time.Millisecond}, 0},
		"Default":     {flightpg.Config{}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			db, err := flightpg.OpenDB(dsn, tc.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			set(t, db, 5)
			left(t, db, tc.want)
			set(t, db, 1) // database/sql goes on
			var s string
			if err := db.QueryRow("SELECT '2026-01-02'::date::text").Scan(&s); err != nil || !strings.Contains(s, "2026") {
				t.Errorf("read %q, %v", s, err)
			}
		})
	}
}
