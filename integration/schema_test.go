package integration

import (
	"context"
	"database/sql"
	"fmt"
	"testing"
	"time"

	"github.com/flightpg/flightpg"
)

var bothExecutors = []flightpg.Executor{flightpg.ExecutorAuto, flightpg.ExecutorGeneric}

// TestSchemaScript: a schema script with reads between its statements, as migration tools
// run it, has one session, as with pgx; the catalog is loaded once for it, and when it is
// over reads are shared, by a picture that has what it made.
func TestSchemaScript(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		for _, e := range bothExecutors {
			for name, run := range map[string]func(ctx context.Context, db *sql.DB, text string) error{
				"statements": func(ctx context.Context, db *sql.DB, text string) error {
					_, err := db.ExecContext(ctx, text)
					return err
				},
				"transactions": func(ctx context.Context, db *sql.DB, text string) error {
					tx, err := db.BeginTx(ctx, nil)
					if err != nil {
						return err
					}
					defer tx.Rollback() //nolint:errcheck // after Commit it says that
					if _, err := tx.ExecContext(ctx, text); err != nil {
						return err
					}
					return tx.Commit()
				},
			} {
				t.Run(e.String()+"/"+name, func(t *testing.T) {
					dsn := newDatabase(t, dsn)
					db := openExecutor(t, dsn, e)
					execAll(t, connect(t, dsn), "CREATE TABLE done AS SELECT 1 AS n")
					loaded(t, db)
					before := flightpg.ReadStats(db)
					const steps = 60
					pids := make(map[int]bool)
					for i := range steps {
						if err := run(t.Context(), db, fmt.Sprintf("CREATE TABLE step_%d AS SELECT %d AS n", i, i)); err != nil {
							t.Fatal(err)
						}
						pids[one[int](t, db, "SELECT pg_backend_pid()")] = true
						if n := one[int](t, db, fmt.Sprintf("SELECT n FROM step_%d", i)); n != i {
							t.Fatalf("step %d: its table has %d", i, n)
						}
						if n := one[int](t, db, "SELECT count(*) FROM done"); n != 1 {
							t.Fatalf("count = %d; want 1", n)
						}
					}
					// A busy machine may pause for so long that DDL seems to be over.
					after := flightpg.ReadStats(db)
					if loads := after.CatalogLoads - before.CatalogLoads; loads > steps/4 || len(pids) > steps/4 {
						t.Errorf("%d statements with reads between them: %d loads of the catalog, %d sessions; want none, and one", steps, loads, len(pids))
					}
					query := fmt.Sprintf("SELECT n FROM step_%d", steps-1)
					until(t, "reads are shared when it is over", func() bool {
						before := flightpg.ReadStats(db)
						one[int](t, db, query)
						return flightpg.ReadStats(db).Flights > before.Flights
					})
					if _, err := db.ExecContext(t.Context(), dice("VOLATILE", rolled)); err != nil {
						t.Fatal(err)
					}
					if n := len(together(t, db, 20, "SELECT dice()")); n != 20 {
						t.Errorf("%d callers of what has been made volatile share an answer", 21-n)
					}
				})
			}
		}
	})
}

// TestColdStart_Locked: while the catalog cannot be read, one read in a while waits for
// it, for a moment; after DDL likewise.
func TestColdStart_Locked(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		for _, e := range bothExecutors {
			t.Run(e.String(), func(t *testing.T) {
				dsn := newDatabase(t, dsn)
				admin := connect(t, dsn)
				execAll(t, admin, "CREATE TABLE things AS SELECT 1 AS n")
				locker := connect(t, dsn)
				execAll(t, locker, "BEGIN; LOCK TABLE pg_catalog.pg_policy IN ACCESS EXCLUSIVE MODE")
				db := openExecutor(t, dsn, e)
				read := func(n int) {
					t.Helper()
					for range n {
						// Each would take as long as the lock is held, or a second.
						ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
						var got int
						if err := db.QueryRowContext(ctx, "SELECT n FROM things").Scan(&got); err != nil || got != 1 {
							t.Errorf("n = %d, %v; want 1", got, err)
						}
						cancel()
					}
				}
				read(100)
				s := flightpg.ReadStats(db)
				if s.Bypasses[flightpg.ReasonCatalogUnavailable] != 100 || s.Flights != 0 {
					t.Errorf("Stats = %+v; want 100 reads that bypass while the catalog is locked", s)
				}
				execAll(t, locker, "COMMIT")
				shared := func() bool {
					before := flightpg.ReadStats(db)
					read(1)
					return flightpg.ReadStats(db).Flights > before.Flights
				}
				until(t, "reads are shared when it is not locked any more", shared)
				execAll(t, locker, "BEGIN; LOCK TABLE pg_catalog.pg_policy IN ACCESS EXCLUSIVE MODE")
				if _, err := db.ExecContext(t.Context(), "CREATE TABLE others (n int)"); err != nil {
					t.Fatal(err)
				}
				before := flightpg.ReadStats(db)
				read(100)
				if s := flightpg.ReadStats(db); s.Flights != before.Flights {
					t.Errorf("%d reads after DDL were shared by a picture from before", s.Flights-before.Flights)
				}
				execAll(t, locker, "COMMIT")
				until(t, "reads are shared when it is not locked any more", shared)
			})
		}
	})
}

// TestColdStart_Asks: the catalog is there when the first read comes, if the handle was
// used before.
func TestColdStart_Asks(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		for _, e := range bothExecutors {
			dsn := newDatabase(t, dsn)
			execAll(t, connect(t, dsn), "CREATE TABLE things AS SELECT 1 AS n")
			db := openExecutor(t, dsn, e)
			if err := db.PingContext(t.Context()); err != nil {
				t.Fatal(err)
			}
			until(t, "the catalog is asked for", func() bool { return flightpg.ReadStats(db).CatalogLoads == 1 })
			until(t, "the connection that it was asked on is idle", func() bool { return flightpg.ReadStats(db).FlightBackends == 1 })
			// It cannot be seen from here that the load has ended; reads may still bypass.
			until(t, "reads are shared", func() bool {
				one[int](t, db, "SELECT n FROM things")
				return flightpg.ReadStats(db).Flights > 0
			})
			if s := flightpg.ReadStats(db); s.CatalogLoads != 1 {
				t.Errorf("%v: %d loads; want 1", e, s.CatalogLoads)
			}
		}
	})
}
