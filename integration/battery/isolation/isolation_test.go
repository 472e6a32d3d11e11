package isolation

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// handle is where rounds take place.
type handle struct {
	db      *sql.DB
	stmt    *sql.Stmt
	query   string
	columns []columnKind
	table   func(key int64) table
	arg     func(key int64) any
	live    bool // results do not all fit, and callers read live rows
	window  bool // results are kept for a moment
}

const (
	workers = 4 // how many rounds there are at a time
	plain   = 8 // how many times as many are on the first handle
)

// campaign runs rounds on the handles until they have had that many flights.
func campaign(t *testing.T, e *battery.Entry, seed uint64, flights uint64, handles []*handle) {
	t.Helper()
	defer debug.SetGCPercent(debug.SetGCPercent(800)) // the heap is small, and the memory there
	sum := func() (s flightpg.Stats) {
		s.Bypasses = make(map[flightpg.Reason]uint64)
		for _, h := range handles {
			hs := flightpg.ReadStats(h.db)
			s.Flights += hs.Flights
			s.Joins += hs.Joins
			s.Overflows += hs.Overflows
			for why, n := range hs.Bypasses {
				s.Bypasses[why] += n
			}
		}
		return s
	}
	before := sum()
	var next, callers, failures atomic.Int64
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for failures.Load() == 0 {
				n := int(next.Add(1))
				if n%64 == 0 && sum().Flights >= flights {
					return
				}
				rnd := battery.Rand(seed, n)
				h := handles[max(0, rnd.IntN(plain+len(handles))-plain)]
				for _, err := range h.round(n, rnd, &callers) {
					failures.Add(1)
					t.Errorf("seed %d, round %d: %v", seed, n, err)
				}
			}
		})
	}
	wg.Wait()
	s := sum()
	e.Set("flights", s.Flights)
	e.Set("joins", s.Joins)
	e.Set("callers", callers.Load())
	e.Set("rounds", next.Load()-workers)
	e.Set("with live rows", s.Overflows)
	e.Set("changed by others", failures.Load())
	if s.Joins < s.Flights/8 { // as many, on a machine that is not busy
		t.Errorf("%d joins of %d flights: hardly any had more than one caller", s.Joins, s.Flights)
	}
	var bypasses uint64
	for why, n := range s.Bypasses {
		n -= before.Bypasses[why]
		if n > 0 && why != flightpg.ReasonMemory {
			t.Errorf("%d queries were not shared: %v", n, why)
		}
		bypasses += n
	}
	e.Set("queries of callers that got no live rows", bypasses)
	for _, h := range handles {
		if s := flightpg.ReadStats(h.db); h.live && s.Overflows == 0 {
			t.Error("no caller had live rows")
		}
	}
}

// round has the callers of one key read, and returns what they found. Where results
// are kept, a second lot of callers reads them.
func (h *handle) round(n int, rnd *rand.Rand, callers *atomic.Int64) (errs []error) {
	key := int64(mix(uint64(n)))
	viaStmt := rnd.IntN(3) == 0
	lots := 1
	if h.window {
		lots = 2
	}
	for range lots {
		many := []int{1, 2, 2, 2, 2, 2, 2, 2, 3, 4}[rnd.IntN(10)] // alone, too: without a copy
		r := &round{
			n: n, key: key, columns: h.columns, table: h.table(key), callers: many, live: h.live,
			entered: make(chan struct{}), barrier: newBarrier(many),
		}
		ctx := context.WithValue(context.Background(), roundKey{}, r)
		found := make([]error, many)
		var wg sync.WaitGroup
		for who := range many {
			c := &caller{round: r, who: who, rnd: rand.New(rand.NewPCG(rnd.Uint64(), uint64(who))), mild: rnd.IntN(4) == 0}
			h.way(c, rnd, viaStmt)
			wg.Go(func() {
				if err := c.run(ctx); err != nil {
					found[who] = fmt.Errorf("caller %d of %d: %w", who, many, err)
				}
			})
		}
		wg.Wait()
		callers.Add(int64(many))
		for _, err := range found {
			if err != nil {
				errs = append(errs, err)
			}
		}
	}
	return errs
}

// way chooses how a caller reads.
func (h *handle) way(c *caller, rnd *rand.Rand, viaStmt bool) {
	arg := h.arg(c.key)
	switch way := rnd.IntN(4); {
	case viaStmt && way == 0 && len(c.table) == 1:
		c.one = func(ctx context.Context) *sql.Row { return h.stmt.QueryRowContext(ctx, arg) }
	case viaStmt && way == 1: // one of its own
		c.open = func(ctx context.Context) (*sql.Rows, error) {
			stmt, err := h.db.PrepareContext(ctx, h.query)
			if err != nil {
				return nil, err
			}
			c.end = stmt.Close
			return stmt.QueryContext(ctx, arg)
		}
	case viaStmt:
		c.open = func(ctx context.Context) (*sql.Rows, error) { return h.stmt.QueryContext(ctx, arg) }
	case way == 0 && len(c.table) == 1:
		c.one = func(ctx context.Context) *sql.Row { return h.db.QueryRowContext(ctx, h.query, arg) }
	case way == 1:
		c.open = func(ctx context.Context) (*sql.Rows, error) {
			conn, err := h.db.Conn(ctx)
			if err != nil {
				return nil, err
			}
			c.end = conn.Close
			return conn.QueryContext(ctx, h.query, arg)
		}
	default:
		c.open = func(ctx context.Context) (*sql.Rows, error) { return h.db.QueryContext(ctx, h.query, arg) }
	}
}

const (
	keptFor   = 200 * time.Millisecond
	fewBytes  = 1300 // flight_memory that does not take all results
	innerText = "SELECT bytes, text, number, more FROM made WHERE key = $1"
)

func TestIsolation(t *testing.T) {
	seed := battery.Seed(t)
	configs := []flightpg.Config{
		{PartitionKey: partition},
		{PartitionKey: partition, Window: keptFor},
		{PartitionKey: partition, Memory: fewBytes},
	}
	t.Run("Inner", func(t *testing.T) {
		e := battery.Report(t, "isolation", "callers that write over all they are given change nothing for others: an inner driver that reuses its memory", seed)
		var handles []*handle
		for i, cfg := range configs {
			cfg.TrustNames = []string{"*"}
			c, err := flightpg.Wrap(inner{}, cfg)
			if err != nil {
				t.Fatal(err)
			}
			h := &handle{
				db: c.OpenDB(), query: innerText, columns: []columnKind{kindBytes, kindText, kindNumber, kindBytes}, table: made,
				arg: func(key int64) any { return key }, window: i == 1, live: i == 2,
			}
			h.ready(t)
			handles = append(handles, h)
		}
		campaign(t, e, seed, battery.N[uint64](5_000, 970_000), handles)
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		e := battery.Report(t, "isolation", "callers that write over all they are given change nothing for others: PostgreSQL", seed)
		dsn := pgtest.Database(t)
		var handles []*handle
		for i, cfg := range configs {
			db, err := flightpg.OpenDB(dsn, cfg)
			if err != nil {
				t.Fatal(err)
			}
			h := &handle{
				db: db, query: postgresQuery, columns: postgresColumns, table: postgresTable, arg: postgresArg,
				window: i == 1, live: i == 2,
			}
			h.ready(t)
			if err := shared(db, postgresQuery, postgresArg(0)); err != nil {
				t.Fatal(err)
			}
			handles = append(handles, h)
		}
		campaign(t, e, seed, battery.N[uint64](400, 30_000), handles)
	})
}

// ready prepares the handle's statement, and closes all at the test's end.
func (h *handle) ready(t *testing.T) {
	t.Helper()
	var err error
	if h.stmt, err = h.db.Prepare(h.query); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.stmt.Close(); err != nil {
			t.Error(err)
		}
		if err := h.db.Close(); err != nil {
			t.Error(err)
		}
	})
}
