//go:build constanthash

package hostile

import (
	"context"
	"database/sql"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestConstantHash reads with very many keys at the same time, each of which has one
// right answer, on a real server: arguments of several types, texts, and texts that
// differ in comments. TestCollisions builds it with hashes that are all the same.
func TestConstantHash(t *testing.T) {
	dsn := pgtest.Shared(t).Database(t)
	db, err := flightpg.OpenDB(dsn, flightpg.Config{FlightConns: 8, SessionConns: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	ctx := context.Background()
	if _, err := db.ExecContext(ctx, "CREATE TABLE items AS SELECT id, 'name ' || id AS name FROM generate_series(0, 4095) id"); err != nil {
		t.Fatal(err)
	}
	if err := flightpg.RefreshCatalog(ctx, db); err != nil {
		t.Fatal(err)
	}
	keys := battery.N(4_000, 20_000)
	const callers = 64
	var wrong, reads atomic.Int64
	check := func(what string, want string, got string, err error) {
		reads.Add(1)
		if err != nil || got != want {
			if wrong.Add(1) <= 5 {
				t.Errorf("%s: %q, %v; want %q: an answer of another", what, got, err, want)
			}
		}
	}
	var wg sync.WaitGroup
	for caller := range callers {
		wg.Go(func() {
			for i := caller / 2; i < keys && wrong.Load() < 5; i += callers / 2 { // each key by two callers
				var got string
				switch i % 4 {
				case 0:
					err := db.QueryRowContext(ctx, "SELECT $1::text", fmt.Sprint("key ", i)).Scan(&got)
					check("text", fmt.Sprint("key ", i), got, err)
				case 1:
					err := db.QueryRowContext(ctx, "SELECT name FROM items WHERE id = $1", i%4096).Scan(&got)
					check("row", fmt.Sprint("name ", i%4096), got, err)
				case 2:
					err := db.QueryRowContext(ctx, fmt.Sprintf("SELECT 'of its own %d'", i)).Scan(&got)
					check("own text", fmt.Sprint("of its own ", i), got, err)
				case 3:
					var n sql.NullInt64
					err := db.QueryRowContext(ctx, "SELECT sum(x) FROM unnest($1::int8[]) x", []int64{int64(i), 1}).Scan(&n)
					check("slice", fmt.Sprint(i+1), fmt.Sprint(n.Int64), err)
				}
			}
		})
	}
	wg.Wait()
	s := flightpg.ReadStats(db)
	if s.Flights == 0 || s.Joins == 0 {
		t.Errorf("Stats = %+v; want flights, and joins", s)
	}
	t.Logf("figures: %d reads of %d keys by %d callers, %d flights, %d joins, %d wrong", reads.Load(), keys, callers, s.Flights, s.Joins, wrong.Load())
}
