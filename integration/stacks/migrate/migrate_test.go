// Package migrate tests flightpg under golang-migrate: migrations, their lock,
// and what they leave behind.
package migrate_test

import (
	"context"
	"database/sql"
	"errors"
	"maps"
	"strings"
	"sync/atomic"
	"testing"
	"testing/fstest"

	"github.com/golang-migrate/migrate/v4"
	"github.com/golang-migrate/migrate/v4/database"
	pgxdriver "github.com/golang-migrate/migrate/v4/database/pgx/v5"
	"github.com/golang-migrate/migrate/v4/database/postgres"
	"github.com/golang-migrate/migrate/v4/source/iofs"
	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/await"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

func TestMain(m *testing.M) { stack.Main(m) }

// migrations note in the ledger that they ran. golang-migrate sends each file
// as it is, which makes one transaction of its statements. (CREATE INDEX
// CONCURRENTLY is none for it: that waits for the snapshots of those who wait
// for the lock.)
var migrations = fstest.MapFS{
	"1_shop.up.sql": {Data: []byte(`
		CREATE TABLE shop (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
		INSERT INTO shop (name) SELECT 'shop ' || i FROM generate_series(1, 11) AS i;
		INSERT INTO ledger VALUES (1);`)},
	"1_shop.down.sql": {Data: []byte(`DROP TABLE shop`)},
	"2_price.up.sql": {Data: []byte(`
		ALTER TABLE shop ADD COLUMN price numeric(8, 2) NOT NULL DEFAULT 9.99;
		CREATE FUNCTION net(gross numeric) RETURNS numeric STABLE LANGUAGE plpgsql AS $$
		BEGIN
			RETURN round(gross / 1.19, 2);
		END $$;
		INSERT INTO ledger VALUES (2);`)},
	"2_price.down.sql": {Data: []byte(`DROP FUNCTION net; ALTER TABLE shop DROP COLUMN price`)},
	"3_index.up.sql":   {Data: []byte(`CREATE INDEX shop_name ON shop (name)`)},
	"3_index.down.sql": {Data: []byte(`DROP INDEX shop_name`)},
	"4_cheap.up.sql":   {Data: []byte(`BEGIN; UPDATE shop SET price = 1 WHERE id = 1; INSERT INTO ledger VALUES (4); COMMIT`)},
	"4_cheap.down.sql": {Data: []byte(`UPDATE shop SET price = 9.99`)},
}

const newest = 4

var once = map[int64]int{1: 1, 2: 1, 4: 1} // what the ledger says when all is well

// A way to give golang-migrate a handle.
type way struct {
	name string
	open func(ctx context.Context, db *sql.DB) (database.Driver, error)
}

var (
	viaPgx = way{"pgx/v5", func(_ context.Context, db *sql.DB) (database.Driver, error) {
		return pgxdriver.WithInstance(db, &pgxdriver.Config{})
	}}
	viaPostgres = way{"postgres", func(_ context.Context, db *sql.DB) (database.Driver, error) {
		return postgres.WithInstance(db, &postgres.Config{})
	}}
	viaConn = way{"postgres.WithConnection", func(ctx context.Context, db *sql.DB) (database.Driver, error) {
		conn, err := db.Conn(ctx)
		if err != nil {
			return nil, err
		}
		return postgres.WithConnection(ctx, conn, &postgres.Config{})
	}}
	ways = []way{viaPgx, viaPostgres, viaConn}
)

// migrator returns a migrator, which keeps a connection until the end of the test.
func migrator(ctx context.Context, tb testing.TB, db *sql.DB, w way, files fstest.MapFS) (*migrate.Migrate, error) {
	source, err := iofs.New(files, ".")
	if err != nil {
		return nil, err
	}
	driver, err := w.open(ctx, db)
	if err != nil {
		return nil, err
	}
	m, err := migrate.NewWithInstance("files", source, "db", driver)
	if err == nil {
		tb.Cleanup(func() { _, _ = m.Close() })
	}
	return m, err
}

func makeLedger(e *stack.Env) { e.SQL("CREATE TABLE ledger (version bigint NOT NULL)") }

// checkLedger fails unless each migration ran once.
func checkLedger(e *stack.Env, conn *pgx.Conn) {
	e.Helper()
	ran := make(map[int64]int)
	for _, r := range await.Rows[struct{ Version int64 }](e, conn, "SELECT version FROM ledger") {
		ran[r.Version]++
	}
	if !maps.Equal(ran, once) {
		e.Errorf("migrations ran so often: %v; want %v", ran, once)
	}
}

// shops is an ordinary read of the new schema.
func shops(db *sql.DB) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		var n int
		if err := db.QueryRowContext(ctx, "SELECT count(*) FROM shop WHERE net(price) > 1").Scan(&n); err != nil {
			return err
		}
		if n != 10 {
			return errors.New("the shops are not those of the new schema")
		}
		return nil
	}
}

// TestSame compares what golang-migrate says and does.
func TestSame(t *testing.T) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			type result struct {
				Steps   []string
				Version []uint
				Dirty   []bool
				Columns [][]string
			}
			stack.Compare(t, func(e *stack.Env) (r result) {
				makeLedger(e)
				db, conn := e.Open(), e.Connect()
				broken := maps.Clone(migrations)
				broken["5_broken.up.sql"] = &fstest.MapFile{Data: []byte("CREATE TABLE half (n int);\nSELECT no_such_column FROM shop")}
				m, err := migrator(e.Context(), e, db, w, broken)
				if err != nil {
					e.Fatal(err)
				}
				step := func(name string, err error) {
					e.Helper()
					if err == nil {
						err = errors.New("nil")
					}
					r.Steps = append(r.Steps, name+": "+err.Error())
					version, dirty, err := m.Version()
					if err != nil {
						r.Steps = append(r.Steps, "Version: "+err.Error())
					}
					r.Version, r.Dirty = append(r.Version, version), append(r.Dirty, dirty)
					r.Columns = append(r.Columns, await.Value[[]string](e, conn,
						`SELECT coalesce(array_agg(table_name || '.' || column_name || ' ' || data_type ORDER BY table_name, column_name), '{}')
							FROM information_schema.columns WHERE table_schema = 'public'`))
				}
				step("at first", nil)
				step("Steps(1)", m.Steps(1))
				step("Migrate(4)", m.Migrate(newest))
				checkLedger(e, conn)
				step("Migrate(4) again", m.Migrate(newest))
				step("Steps(-2)", m.Steps(-2))
				step("Up", m.Up()) // fails at the last
				step("Up when dirty", m.Up())
				step("Force(4)", m.Force(newest))
				step("Down", m.Down())
				step("Drop", m.Drop())
				if n := await.Locks(e, conn); n != 0 {
					e.Errorf("%d advisory locks are left", n)
				}
				if len(r.Version) != 10 || r.Version[2] != newest || !r.Dirty[5] {
					e.Errorf("versions %v, dirty %v: the test shows nothing", r.Version, r.Dirty)
				}
				return r
			})
		})
	}
}

// TestTwoHandles lets two handles, as of two processes, migrate at once. The
// second comes while the first is held up in its first migration, and waits for
// the lock.
func TestTwoHandles(t *testing.T) {
	for _, w := range []way{viaPgx, viaPostgres} {
		for _, drivers := range [][2]string{{stack.Flightpg, stack.Flightpg}, {stack.Flightpg, stack.Pgx}, {stack.Pgx, stack.Flightpg}} {
			t.Run(w.name+"/"+strings.Join(drivers[:], "+"), func(t *testing.T) {
				e := stack.New(t, stack.Flightpg)
				makeLedger(e)
				conn := e.Connect()
				gate := await.Shut(e, e.Connect(), "ledger")
				defer gate.Open()

				var results [2]chan error
				start := func(i int) {
					db, err := sql.Open(drivers[i], e.DSN)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { _ = db.Close() })
					results[i] = make(chan error, 1)
					go func() {
						m, err := migrator(context.WithoutCancel(t.Context()), t, db, w, migrations)
						if err == nil {
							err = m.Up()
						}
						results[i] <- err
					}()
				}
				start(0)
				await.Until(t, "the first is in its migration", func() bool { return await.Blocked(t, conn) == 1 })
				start(1)
				await.Until(t, "the second waits for the lock", func() bool { return await.Blocked(t, conn) == 2 && await.Locks(t, conn) == 2 })
				gate.Open()
				if err := <-results[0]; err != nil {
					t.Errorf("the first: %v", err)
				}
				if err := <-results[1]; !errors.Is(err, migrate.ErrNoChange) {
					t.Errorf("the second: %v; want %v", err, migrate.ErrNoChange)
				}
				checkLedger(e, conn)
				if n := await.Locks(t, conn); n != 0 {
					t.Errorf("%d advisory locks are left", n)
				}
			})
		}
	}
}

// TestManyHandles lets eight handles start together, as after a deployment.
func TestManyHandles(t *testing.T) {
	e := stack.New(t, stack.Flightpg)
	makeLedger(e)
	conn := e.Connect()
	var changed atomic.Int64
	e.Concurrently(8, func(ctx context.Context, i int) error {
		db, err := sql.Open([...]string{stack.Flightpg, stack.Pgx}[i%2], e.DSN)
		if err != nil {
			return err
		}
		defer db.Close()
		m, err := migrator(ctx, t, db, ways[i%len(ways)], migrations)
		if err != nil {
			return err
		}
		err = m.Up()
		if errors.Is(err, migrate.ErrNoChange) {
			return nil
		}
		changed.Add(1)
		return err
	})
	if n := changed.Load(); n != 1 {
		t.Errorf("%d handles say that they migrated; want one", n)
	}
	checkLedger(e, conn)
	if n := await.Locks(t, conn); n != 0 {
		t.Errorf("%d advisory locks are left", n)
	}
}

// TestAfterwards migrates through the handle that then serves reads. They must
// be shared, and see the new schema.
func TestAfterwards(t *testing.T) {
	for _, w := range ways {
		t.Run(w.name, func(t *testing.T) {
			stack.Each(t, func(e *stack.Env) {
				makeLedger(e)
				conn, db := e.Connect(), e.Open()
				// The handle knows the schema of before.
				var n int
				if err := db.QueryRowContext(e.Context(), "SELECT count(*) FROM shop").Scan(&n); err == nil {
					e.Fatal("there is a shop before the migration")
				}
				m, err := migrator(e.Context(), e, db, w, migrations)
				if err != nil {
					e.Fatal(err)
				}
				if err := m.Up(); err != nil {
					e.Fatal(err)
				}
				checkLedger(e, conn)
				if n := await.Locks(e, conn); n != 0 {
					e.Errorf("%d advisory locks are left", n)
				}
				// WithInstance keeps its connection, and Close would close the
				// handle: there is nothing more to do. WithConnection's is given
				// back.
				if w.name == viaConn.name {
					if source, err := m.Close(); source != nil || err != nil {
						e.Fatal(source, err)
					}
					e.Shared(db, 50, shops(db), "shop")
				}
				e.Shared(db, 50, shops(db), "shop")
				e.Explain(db, "SELECT count(*) FROM shop WHERE net(price) > 1", flightpg.ReasonNone)
			})
		})
	}
}

// TestLockKeepsReadsApart checks that what golang-migrate reads under its lock
// is read in the session that has the lock.
func TestLockKeepsReadsApart(t *testing.T) {
	for _, w := range []way{viaPgx, viaPostgres} {
		t.Run(w.name, func(t *testing.T) {
			e := stack.New(t, stack.Flightpg)
			makeLedger(e)
			db := e.Open()
			m, err := migrator(e.Context(), e, db, w, migrations)
			if err != nil {
				t.Fatal(err)
			}
			before := flightpg.ReadStats(db)
			if err := m.Up(); err != nil {
				t.Fatal(err)
			}
			if err := m.Up(); !errors.Is(err, migrate.ErrNoChange) {
				t.Errorf("Up again: %v; want %v", err, migrate.ErrNoChange)
			}
			after := flightpg.ReadStats(db)
			if after.Flights != before.Flights || after.Bypasses[flightpg.ReasonSession] != before.Bypasses[flightpg.ReasonSession]+2 {
				t.Errorf("%+v, then %+v; want no flight, and both reads of the version in the session", before, after)
			}
		})
	}
}
