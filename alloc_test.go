//go:build !race

package flightpg

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestAllocations bounds what one call takes from the allocator, all of it: the
// caller's context and what database/sql takes for itself included. Unlike times,
// these figures are the same on every machine.
func TestAllocations(t *testing.T) {
	db, plain := openPipeline(t, Config{})
	mustExec(t, plain, "ALTER TABLE items ADD n bigint NOT NULL DEFAULT 7000000")
	none := sql.OpenDB(noDriver{})
	defer none.Close()
	allocs := func(db *sql.DB) float64 {
		id := int64(0)
		return testing.AllocsPerRun(2000, func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			id++
			var name string
			var n int64
			if err := db.QueryRowContext(ctx, "SELECT name, n FROM items WHERE id = $1", id%1000+1).Scan(&name, &n); err != nil {
				t.Error(err)
			}
		})
	}
	got, with, without := allocs(db), allocs(plain), allocs(none)
	t.Logf("a read of one row: %v allocations; with pgx %v, with a driver that does nothing %v", got, with, without)
	if limit := 24.0; got > limit {
		t.Errorf("a read of one row takes %v allocations; want at most %v", got, limit)
	}
	// Two are the driver's: the text, and what the values' interfaces point at. One
	// of database/sql's own comes and goes with the scheduler.
	if limit := without + 4; got > limit {
		t.Errorf("a read of one row takes %v allocations; want at most %v, those of database/sql and 4", got, limit)
	}
}

// noDriver is a driver that does nothing, and takes no memory for it. It serves one
// caller.
type noDriver struct{ rows *noRows }

func (noDriver) Driver() driver.Driver                        { return nil }
func (noDriver) Connect(context.Context) (driver.Conn, error) { return noDriver{new(noRows)}, nil }

func (noDriver) Prepare(string) (driver.Stmt, error) { return nil, driver.ErrSkip }

func (noDriver) Begin() (driver.Tx, error)                { return nil, driver.ErrSkip }
func (noDriver) Close() error                             { return nil }
func (noDriver) IsValid() bool                            { return true }
func (noDriver) ResetSession(context.Context) error       { return nil }
func (noDriver) CheckNamedValue(*driver.NamedValue) error { return nil }
func (d noDriver) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	d.rows.ended = false
	return d.rows, nil
}

type noRows struct{ ended bool }

var (
	noNames = []string{"name", "n"}
	noRow   = [2]driver.Value{"item", int64(7_000_000)}
)

func (*noRows) Columns() []string { return noNames }
func (*noRows) Close() error      { return nil }
func (r *noRows) Next(dest []driver.Value) error {
	if r.ended {
		return io.EOF
	}
	r.ended = true
	copy(dest, noRow[:])
	return nil
}

// TestAllocations_Large bounds the bytes that one read with large arguments takes: with
// the pipeline one copy of them, the message to the server; else what pgx takes and one
// copy, as the flight may outlast the call.
func TestAllocations_Large(t *testing.T) {
	dsn := pgtest.Database(t)
	plain := openPGX(t, dsn)
	const size = 1_000_000
	numbers := make([]int64, size/12) // as long on the wire
	for _, tc := range []struct {
		name, query string
		arg         func(i byte) any
		pipeline    float64 // copies, at most
		generic     float64 // more than pgx's, at most
	}{
		{"Text", "SELECT length($1::text)", func(i byte) any { return strings.Repeat(string(rune('a'+i)), size) }, 1, 0},
		{"Bytes", "SELECT length($1::bytea)", func(i byte) any { return bytes.Repeat([]byte{i}, size) }, 1, 1},
		{"Ints", "SELECT cardinality($1::bigint[])", func(i byte) any { numbers[0] = int64(i); return numbers }, 3, 1},
	} {
		copies := func(db *sql.DB) (made float64) {
			const calls = 8
			var args [calls + 1]any
			var n int
			for i := range args {
				args[i] = tc.arg(byte(i))
			}
			if err := db.QueryRow(tc.query, args[calls]).Scan(&n); err != nil {
				t.Fatal(err)
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			for _, arg := range args[:calls] {
				if err := db.QueryRow(tc.query, arg).Scan(&n); err != nil {
					t.Fatal(err)
				}
			}
			runtime.ReadMemStats(&after)
			return float64(after.TotalAlloc-before.TotalAlloc) / calls / size
		}
		pgx := copies(plain)
		for _, executor := range []Executor{ExecutorPipeline, ExecutorGeneric} {
			db, err := OpenDB(dsn, Config{Executor: executor})
			if err != nil {
				t.Fatal(err)
			}
			got := copies(db)
			_ = db.Close()
			limit := tc.pipeline
			if executor == ExecutorGeneric {
				limit = pgx + tc.generic
			}
			t.Logf("%s, %v: %.2f copies; pgx %.2f", tc.name, executor, got, pgx)
			if got > limit+0.1 {
				t.Errorf("%s, %v: a read takes %.2f times its argument; want at most %.1f (pgx: %.2f)", tc.name, executor, got, limit, pgx)
			}
		}
	}
}
