// Package goose tests flightpg under goose: migrations, their lock, and what
// they leave behind.
package goose_test

import (
	"context"
	"database/sql"
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/await"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

func TestMain(m *testing.M) { stack.Main(m) }

// migrations use what goose offers: several statements, a function's body, one
// file outside a transaction; and Go code, below. Each notes in the ledger that
// it ran.
var migrations = fstest.MapFS{
	"1_shop.sql": {Data: []byte(`
-- +goose Up
CREATE TABLE shop (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL);
INSERT INTO shop (name) SELECT 'shop ' || i FROM generate_series(1, 10) AS i;
INSERT INTO ledger VALUES (1);
-- +goose Down
DROP TABLE shop;
`)},
	"2_price.sql": {Data: []byte(`
-- +goose Up
ALTER TABLE shop ADD COLUMN price numeric(8, 2) NOT NULL DEFAULT 9.99;
-- +goose StatementBegin
CREATE FUNCTION net(gross numeric) RETURNS numeric STABLE LANGUAGE plpgsql AS $$
BEGIN
	RETURN round(gross / 1.19, 2);
END $$;
-- +goose StatementEnd
INSERT INTO ledger VALUES (2);
-- +goose Down
DROP FUNCTION net;
ALTER TABLE shop DROP COLUMN price;
`)},
	"3_index.sql": {Data: []byte(`
-- +goose NO TRANSACTION
-- +goose Up
CREATE INDEX CONCURRENTLY shop_name ON shop (name);
INSERT INTO ledger VALUES (3);
-- +goose Down
DROP INDEX CONCURRENTLY shop_name;
`)},
}

var once = map[int64]int{1: 1, 2: 1, 3: 1, 4: 1} // what the ledger says when all is well

// inGo is migration 4. It reads what those before it made.
func inGo() *goose.Migration {
	return goose.NewGoMigration(4,
		&goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			var n int
			if err := tx.QueryRowContext(ctx, "SELECT count(*) FROM shop WHERE price = 9.99").Scan(&n); err != nil {
				return err
			}
			if _, err := tx.ExecContext(ctx, "INSERT INTO shop (name, price) VALUES ('shop ' || $1::int, 1)", n+1); err != nil {
				return err
			}
			_, err := tx.ExecContext(ctx, "INSERT INTO ledger VALUES (4)")
			return err
		}},
		&goose.GoFunc{RunTx: func(ctx context.Context, tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, "DELETE FROM shop WHERE price = 1")
			return err
		}})
}

// provider sets goose up with its lock in the session.
func provider(t testing.TB, db *sql.DB, files fs.FS) *goose.Provider {
	t.Helper()
	locker, err := lock.NewPostgresSessionLocker(lock.WithLockTimeout(1, 120), lock.WithUnlockTimeout(1, 60))
	if err != nil {
		t.Fatal(err)
	}
	return with(t, db, files, goose.WithSessionLocker(locker))
}

func with(t testing.TB, db *sql.DB, files fs.FS, opts ...goose.ProviderOption) *goose.Provider {
	t.Helper()
	p, err := goose.NewProvider(goose.DialectPostgres, db, files, append(opts, goose.WithGoMigrations(inGo()))...)
	if err != nil {
		t.Fatal(err)
	}
	return p
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
		if err := db.QueryRowContext(ctx, "SELECT count(*) FROM shop WHERE net(price) > 0.5").Scan(&n); err != nil {
			return err
		}
		if n != 11 {
			return errors.New("the shops are not those of the new schema")
		}
		return nil
	}
}

type step struct {
	Version int64
	Source  string
	Empty   bool
	Err     string
}

func steps(results []*goose.MigrationResult) (all []step) {
	for _, r := range results {
		s := step{Version: r.Source.Version, Source: r.Source.Path, Empty: r.Empty}
		if r.Error != nil {
			s.Err = r.Error.Error()
		}
		all = append(all, s)
	}
	return all
}

type column struct{ Table, Name, Type, Default string }

func schema(e *stack.Env, conn *pgx.Conn) []column {
	e.Helper()
	return await.Rows[column](e, conn, `SELECT table_name::text, column_name::text, data_type::text, coalesce(column_default, '')
		FROM information_schema.columns WHERE table_schema = 'public' ORDER BY 1, 2`)
}

// TestSame compares what goose says and does.
func TestSame(t *testing.T) {
	type result struct {
		Up, Down, Again, Broken, Tos []step
		Pending                      []bool
		Versions                     []int64
		Status                       []string
		Schemas                      [][]column
		Errors                       []string
		Code                         string
	}
	stack.Compare(t, func(e *stack.Env) (r result) {
		makeLedger(e)
		db, conn := e.Open(), e.Connect()
		look := func(p *goose.Provider) {
			e.Helper()
			pending, err := p.HasPending(e.Context())
			if err != nil {
				e.Fatal(err)
			}
			version, err := p.GetDBVersion(e.Context())
			if err != nil {
				e.Fatal(err)
			}
			status, err := p.Status(e.Context())
			if err != nil {
				e.Fatal(err)
			}
			for _, s := range status {
				r.Status = append(r.Status, string(s.State)+" "+s.Source.Path)
			}
			r.Pending, r.Versions = append(r.Pending, pending), append(r.Versions, version)
			r.Schemas = append(r.Schemas, schema(e, conn))
		}
		run := func(results []*goose.MigrationResult, err error) []step {
			if err != nil {
				r.Errors = append(r.Errors, err.Error())
			}
			return steps(results)
		}
		one := func(result *goose.MigrationResult, err error) []step {
			if result == nil {
				return run(nil, err)
			}
			return run([]*goose.MigrationResult{result}, err)
		}

		p := provider(e, db, migrations)
		look(p)
		r.Up = run(p.Up(e.Context()))
		look(p)
		checkLedger(e, conn)
		r.Again = run(p.Up(e.Context()))
		r.Down = one(p.Down(e.Context()))
		r.Tos = run(p.DownTo(e.Context(), 2))
		look(p)

		broken := maps.Clone(migrations)
		broken["5_broken.sql"] = &fstest.MapFile{Data: []byte("-- +goose Up\nCREATE TABLE half (n int);\nSELECT 1/0;\n")}
		p = provider(e, db, broken)
		results, err := p.Up(e.Context())
		r.Broken = run(results, err)
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) {
			r.Code = pgErr.Code
		}
		if r.Code != "22012" {
			e.Errorf("Up of the broken one = %v; want a division by zero", err)
		}
		look(p)
		if n := await.Locks(e, conn); n != 0 {
			e.Errorf("%d advisory locks are left", n)
		}
		return r
	})
}

// TestTwoHandles lets two handles, as of two processes, migrate at once. The
// second comes while the first is held up in its first migration, and finds the
// lock taken.
func TestTwoHandles(t *testing.T) {
	for _, drivers := range [][2]string{{stack.Flightpg, stack.Flightpg}, {stack.Flightpg, stack.Pgx}, {stack.Pgx, stack.Flightpg}} {
		t.Run(strings.Join(drivers[:], "+"), func(t *testing.T) {
			e := stack.New(t, stack.Flightpg)
			makeLedger(e)
			conn := e.Connect()
			gate := await.Shut(e, e.Connect(), "ledger")
			defer gate.Open()

			var handles [2]*sql.DB
			var results [2]chan int
			start := func(i int) {
				db, err := sql.Open(drivers[i], e.DSN)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = db.Close() })
				handles[i], results[i] = db, make(chan int, 1)
				p := provider(e, db, migrations)
				go func() {
					did, err := p.Up(context.WithoutCancel(t.Context()))
					if err != nil {
						t.Error(err)
					}
					results[i] <- len(did)
				}()
			}
			start(0)
			await.Until(t, "the first is in its migration", func() bool { return await.Blocked(t, conn) == 1 })
			start(1)
			await.Until(t, "the second has asked for the lock", func() bool {
				return await.Value[bool](t, conn, `SELECT EXISTS (SELECT FROM pg_stat_activity
					WHERE datname = current_database() AND query LIKE 'SELECT pg_try_advisory_lock%' AND state = 'idle')`)
			})
			if n := await.Locks(t, conn); n != 1 {
				t.Errorf("%d advisory locks; want the first handle's", n)
			}
			gate.Open()
			if first, second := <-results[0], <-results[1]; first != len(once) || second != 0 {
				t.Errorf("%d and %d migrations; want all %d by the first handle", first, second, len(once))
			}
			checkLedger(e, conn)
			if n := await.Locks(t, conn); n != 0 {
				t.Errorf("%d advisory locks are left", n)
			}
			for i, db := range handles {
				if s := flightpg.ReadStats(db); drivers[i] == stack.Flightpg && s.Bypasses[flightpg.ReasonDeniedFunction] == 0 {
					t.Errorf("handle %d: %+v; want the lock to bypass", i, s)
				}
			}
		})
	}
}

// TestManyHandles lets eight handles start together, as after a deployment.
func TestManyHandles(t *testing.T) {
	e := stack.New(t, stack.Flightpg)
	makeLedger(e)
	conn := e.Connect()
	var wg sync.WaitGroup
	var mu sync.Mutex // guards did
	var did []int64
	for i := range 8 {
		driver := [...]string{stack.Flightpg, stack.Pgx}[i%2]
		db, err := sql.Open(driver, e.DSN)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		p := provider(e, db, migrations)
		wg.Go(func() {
			results, err := p.Up(e.Context())
			if err != nil {
				t.Errorf("%s: %v", driver, err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, r := range results {
				did = append(did, r.Source.Version)
			}
		})
	}
	wg.Wait()
	slices.Sort(did)
	if want := slices.Sorted(maps.Keys(once)); !slices.Equal(did, want) {
		t.Errorf("the handles together say that they applied %v; want %v", did, want)
	}
	checkLedger(e, conn)
	if n := await.Locks(t, conn); n != 0 {
		t.Errorf("%d advisory locks are left", n)
	}
}

// TestAfterwards migrates through the handle that then serves reads. They must
// be shared, and see the new schema.
func TestAfterwards(t *testing.T) {
	ways := []struct {
		name    string
		migrate func(e *stack.Env, db *sql.DB) error
	}{
		{"NoLock", func(e *stack.Env, db *sql.DB) error {
			_, err := with(e, db, migrations).Up(e.Context())
			return err
		}},
		{"LockInTable", func(e *stack.Env, db *sql.DB) error {
			locker, err := lock.NewPostgresTableLocker()
			if err != nil {
				return err
			}
			_, err = with(e, db, migrations, goose.WithLocker(locker)).Up(e.Context())
			return err
		}},
		{"Functions", func(e *stack.Env, db *sql.DB) error { // goose's older interface, with its global state
			goose.SetLogger(goose.NopLogger())
			goose.SetBaseFS(migrations)
			defer goose.SetBaseFS(nil)
			if err := goose.SetDialect("postgres"); err != nil {
				return err
			}
			if err := goose.UpContext(e.Context(), db, "."); err != nil {
				return err
			}
			_, err := with(e, db, migrations).Up(e.Context()) // the one in Go
			return err
		}},
		{"HandleOfItsOwn", func(e *stack.Env, _ *sql.DB) error {
			db, err := sql.Open(e.Driver, e.DSN)
			if err != nil {
				return err
			}
			defer db.Close()
			_, err = provider(e, db, migrations).Up(e.Context())
			return err
		}},
		{"LockInSession", func(e *stack.Env, db *sql.DB) error {
			if _, err := provider(e, db, migrations).Up(e.Context()); err != nil {
				return err
			}
			e.Shared(db, 50, shops(db), "shop")
			return nil
		}},
	}
	for _, way := range ways {
		t.Run(way.name, func(t *testing.T) {
			stack.Each(t, func(e *stack.Env) {
				makeLedger(e)
				conn, db := e.Connect(), e.Open()
				// The handle knows the schema of before.
				var n int
				if err := db.QueryRowContext(e.Context(), "SELECT count(*) FROM shop").Scan(&n); err == nil {
					e.Fatal("there is a shop before the migration")
				}
				if err := way.migrate(e, db); err != nil {
					e.Fatal(err)
				}
				checkLedger(e, conn)
				if n := await.Locks(e, conn); n != 0 {
					e.Errorf("%d advisory locks are left", n)
				}
				e.Shared(db, 50, shops(db), "shop")
				e.Explain(db, "SELECT count(*) FROM shop WHERE net(price) > 0.5", flightpg.ReasonNone)
			})
		})
	}
}

// TestLockKeepsReadsApart lets goose take its lock and read, with nothing left
// to do: what it reads under the lock it reads in the session that has the lock.
func TestLockKeepsReadsApart(t *testing.T) {
	e := stack.New(t, stack.Flightpg)
	makeLedger(e)
	if _, err := provider(e, e.Open(), migrations).Up(e.Context()); err != nil {
		t.Fatal(err)
	}
	db := e.Open()
	if did, err := provider(e, db, migrations).DownTo(e.Context(), 4); err != nil || len(did) != 0 {
		t.Fatalf("DownTo = %v, %v; want nothing to do", did, err)
	}
	s := flightpg.ReadStats(db)
	if s.Flights != 0 || s.Bypasses[flightpg.ReasonDeniedFunction] != 1 || s.Bypasses[flightpg.ReasonSession] < 2 {
		t.Errorf("%+v; want no flight, one bypass for taking the lock, and the others for its session", s)
	}
	e.Explain(db, "SELECT pg_try_advisory_lock($1)", flightpg.ReasonDeniedFunction)
	e.Explain(db, "SELECT pg_advisory_unlock($1)", flightpg.ReasonDeniedFunction)
}
