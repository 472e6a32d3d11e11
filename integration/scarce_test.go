package integration

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// What happens when there are fewer connections than callers want.

var eitherExecutor = map[string]flightpg.Executor{"Pipeline": flightpg.ExecutorPipeline, "Generic": flightpg.ExecutorGeneric}

// TestScarce_Drain: while no connection can be opened, those that are open serve whoever
// needs one, for reads or for writes.
func TestScarce_Drain(t *testing.T) {
	for name, executor := range eitherExecutor {
		for _, before := range []struct{ readers, writers int }{{16, 4}, {16, 0}, {0, 8}} {
			t.Run(fmt.Sprintf("%s/%dReaders%dWriters", name, before.readers, before.writers), func(t *testing.T) {
				dsn := pgtest.Database(t)
				execAll(t, connect(t, dsn), "CREATE TABLE hot (id int PRIMARY KEY, n int DEFAULT 0); INSERT INTO hot SELECT generate_series(1, 100)")
				door, dsn := newDoor(t, dsn)
				door.open.Store(true)
				db, err := flightpg.OpenDB(dsn, flightpg.Config{Executor: executor, FlightConns: 16, SessionConns: 16})
				noError(t, err)
				closesAtEnd(t, db)
				var found faults
				load := func(readers, writers int, calls int64) {
					read := crowd(readers, times(calls), func(_, i int) {
						var id int
						if err := db.QueryRow("SELECT id FROM hot WHERE id = $1", 1+i%100).Scan(&id); err != nil || id != 1+i%100 {
							found.add("read: %d, %v", id, err)
						}
					})
					crowd(writers, times(calls), func(_, i int) {
						if _, err := db.Exec("UPDATE hot SET n = n + 1 WHERE id = $1", 1+i%100); err != nil {
							found.add("write: %v", err)
						}
					})()
					read()
				}
				load(before.readers, before.writers, 500)
				door.refuses.Store(true)
				load(4, 12, 500)
				load(16, 1, 500)
				found.report(t)
				noError(t, db.Close())
			})
		}
	}
}

// TestScarce_Role: a role that may have few connections is enough for many callers, and
// no connection is closed to open another all the time.
func TestScarce_Role(t *testing.T) {
	for name, executor := range eitherExecutor {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.Database(t)
			admin := connect(t, dsn)
			role := fmt.Sprintf("scarce_%d", time.Now().UnixNano())
			execAll(t, admin, "CREATE TABLE hot (id int PRIMARY KEY, n int DEFAULT 0); INSERT INTO hot SELECT generate_series(1, 100); CREATE ROLE "+role+" LOGIN CONNECTION LIMIT 10; GRANT ALL ON hot TO "+role)
			u, err := url.Parse(dsn)
			noError(t, err)
			u.User = url.User(role)
			opened := func() (n int) {
				t.Helper()
				noError(t, admin.QueryRow(t.Context(), "SELECT sessions FROM pg_stat_database WHERE datname = current_database()").Scan(&n))
				return n
			}
			before := opened()
			db := openExecutor(t, u.String(), executor)
			var found faults
			crowd(64, times(4000), halfWrites(db, &found))()
			found.report(t)
			n := opened() - before
			t.Logf("%d connections opened", n)
			if n > 100 {
				t.Errorf("%d connections opened, where 10 are enough", n)
			}
		})
	}
}

// TestScarce_PgBouncer: the same, where it is a pooler that takes no more.
func TestScarce_PgBouncer(t *testing.T) {
	dsn := pgtest.Database(t)
	execAll(t, connect(t, dsn), "CREATE TABLE hot (id int PRIMARY KEY, n int DEFAULT 0); INSERT INTO hot SELECT generate_series(1, 100)")
	dsn = withParam(t, pgBouncer(t, dsn, "transaction", 8, "max_client_conn = 12"), "default_query_exec_mode", "exec")
	db := openExecutor(t, dsn, flightpg.ExecutorAuto)
	var found faults
	crowd(64, times(4000), halfWrites(db, &found))()
	found.report(t)
}

// halfWrites returns calls of which every other one writes.
func halfWrites(db *sql.DB, found *faults) func(g, i int) {
	return func(g, i int) {
		if g%2 == 0 {
			if _, err := db.Exec("UPDATE hot SET n = n + 1 WHERE id = $1", 1+i%100); err != nil {
				found.add("write: %v", err)
			}
			return
		}
		var id int
		if err := db.QueryRow("SELECT id FROM hot WHERE id = $1 AND $2::int8 > 0", 1+i%100, i).Scan(&id); err != nil || id != 1+i%100 {
			found.add("read: %d, %v", id, err)
		}
	}
}

// TestScarce_Exports: who reads a large result, and something else for each of its rows,
// gets that though all flight connections are held by others like him.
func TestScarce_Exports(t *testing.T) {
	for name, executor := range eitherExecutor {
		t.Run(name, func(t *testing.T) {
			dsn := pgtest.Database(t)
			execAll(t, connect(t, dsn), "CREATE TABLE big AS SELECT i, repeat('x', 1000) AS pad FROM generate_series(1, 4000) i")
			db, err := flightpg.OpenDB(dsn, flightpg.Config{Executor: executor, FlightConns: 8, SessionConns: 16, MaxResult: 100_000})
			noError(t, err)
			closesAtEnd(t, db)
			var found faults
			var wg, all sync.WaitGroup
			all.Add(12) // all have begun before one goes on
			for g := range 12 {
				wg.Go(func() {
					rows, err := db.Query("SELECT i, pad, $1::int FROM big", g)
					if err != nil {
						all.Done()
						found.add("export: %v", err)
						return
					}
					defer rows.Close()
					n := 0
					for rows.Next() {
						if n++; n == 1 {
							all.Done()
							all.Wait()
						}
						if n%500 == 0 {
							var one int
							if err := db.QueryRowContext(context.Background(), "SELECT i FROM big WHERE i = $1 LIMIT 1", n).Scan(&one); err != nil || one != n {
								found.add("look-up: %d, %v", one, err)
							}
						}
					}
					if rows.Err() != nil || n != 4000 {
						found.add("%d rows, %v", n, rows.Err())
					}
				})
			}
			wg.Wait()
			found.report(t)
		})
	}
}

// TestScarce_HandedOver: a connection that has gone from one pool to the other and back is
// like a new one each time: encrypted, cleared, set up by the hooks, and what runs on it can
// be cancelled.
func TestScarce_HandedOver(t *testing.T) {
	ca := newAuthority(t, "test CA")
	s := authServer(t, ca)
	admin := connect(t, s.DSN())
	execAll(t, admin, `ALTER ROLE by_scram CONNECTION LIMIT 1; CREATE TABLE t AS SELECT 1 AS id; CREATE FUNCTION prepared() RETURNS bigint STABLE LANGUAGE sql AS $$ SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'flightpg%' $$;
		CREATE TABLE noted (round int, read_only text DEFAULT current_setting('default_transaction_read_only'), path text DEFAULT current_setting('search_path'), prepared int DEFAULT prepared()); GRANT ALL ON t, noted TO by_scram;
		CREATE FUNCTION slow(n int8) RETURNS int8 STABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(600); RETURN n; END $$`)
	u, err := url.Parse(s.DSN())
	noError(t, err)
	u.User, u.RawQuery = url.UserPassword("by_scram", password), "sslmode=require&require_auth=scram-sha-256&channel_binding=require&application_name=handed"
	for name, executor := range eitherExecutor {
		t.Run(name, func(t *testing.T) {
			var setUp atomic.Int64
			pc, err := pgx.ParseConfig(u.String())
			noError(t, err)
			c, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{
				Executor: executor, TrustDeclared: true,
				AfterConnect: func(ctx context.Context, conn *pgx.Conn) error {
					setUp.Add(1)
					_, err := conn.Exec(ctx, "SET search_path = public, pg_temp")
					return err
				},
			})
			noError(t, err)
			db := sql.OpenDB(c)
			closesAtEnd(t, db)
			activity := func(what string) (got string) {
				t.Helper()
				noError(t, admin.QueryRow(t.Context(), "SELECT coalesce(max("+what+"::text), 'none') FROM pg_stat_activity JOIN pg_stat_ssl USING (pid) WHERE application_name = 'handed'").Scan(&got))
				return got
			}
			pid := ""
			for round := range 3 {
				noError(t, db.QueryRow("SELECT id FROM t WHERE id = $1", 1).Scan(new(int)))
				if pid == "" {
					pid = activity("pid")
				}
				flights := flightpg.ReadStats(db).Flights
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond) // it sleeps
				if err := db.QueryRowContext(ctx, "SELECT slow($1)", round).Scan(new(int)); err == nil {
					t.Error("600 s are over")
				}
				cancel()
				if n := flightpg.ReadStats(db).Flights; n == flights {
					t.Errorf("the slow read is not on a flight: %v", flightpg.ReadStats(db).Bypasses)
				}
				until(t, "the slow read is cancelled", func() bool { return activity("state") == "idle" })
				_, err := db.Exec("INSERT INTO noted (round) VALUES ($1)", round)
				noError(t, err)
				var readOnly, path, prepared string
				noError(t, admin.QueryRow(t.Context(), "DELETE FROM noted RETURNING read_only, path, prepared::text").Scan(&readOnly, &path, &prepared))
				equal(t, "read-only", readOnly, "off")
				equal(t, "search_path", path, "public, pg_temp")
				equal(t, "prepared by flights", prepared, "0")
				equal(t, "encrypted", activity("ssl"), "true")
				equal(t, "backend", activity("pid"), pid)
			}
			if n := setUp.Load(); n < 6 {
				t.Errorf("the hook has seen %d connections; want one for each time that it went from pool to pool", n)
			}
		})
	}
}
