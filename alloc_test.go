//go:build !race

package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"io"
	"testing"
	"time"
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
