package faults

import (
	"context"
	"database/sql/driver"
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// mine is what breaks the driver below flightpg at random points: by a panic, or by
// runtime.Goexit.
type mine struct {
	goexit bool

	mu   sync.Mutex // guards what follows
	r    *rand.Rand
	rate int            // one call in so many; 0: none
	hits map[string]int // by the point
}

func (m *mine) set(rate int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.rate = rate
}

// points returns how many points were hit.
func (m *mine) points() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.hits)
}

// step breaks something, or not.
func (m *mine) step(point string) {
	m.mu.Lock()
	hit := m.rate > 0 && m.r.IntN(m.rate) == 0
	if hit {
		m.hits[point]++
	}
	m.mu.Unlock()
	switch {
	case hit && m.goexit:
		runtime.Goexit()
	case hit:
		panic("mine: " + point)
	}
}

// mined reports whether a text is one of the reads, whose flights are to break. What
// breaks in a caller's own goroutine is database/sql's to bear, with any driver.
func mined(query string) bool { return strings.Contains(query, "FROM items") }

// badConnector is a driver over pgx's that breaks.
type badConnector struct {
	driver.Connector
	m *mine
}

func (c badConnector) Connect(ctx context.Context) (driver.Conn, error) {
	dc, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return &bad{Conn: dc.(*stdlib.Conn), m: c.m}, nil
}

type bad struct {
	*stdlib.Conn
	m *mine
}

func (b *bad) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (driver.Rows, error) {
	if !mined(query) {
		return b.Conn.QueryContext(ctx, query, args)
	}
	b.m.step("before the query")
	rows, err := b.Conn.QueryContext(ctx, query, args)
	if err != nil {
		return nil, err
	}
	b.m.step("after the query")
	return &badRows{rows, b.m}, nil
}

func (b *bad) PrepareContext(ctx context.Context, query string) (driver.Stmt, error) {
	if mined(query) {
		b.m.step("prepare")
	}
	st, err := b.Conn.PrepareContext(ctx, query)
	if err != nil || !mined(query) {
		return st, err
	}
	return &badStmt{st, b.m}, nil
}

type badStmt struct {
	driver.Stmt
	m *mine
}

func (s *badStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	s.m.step("before the statement's query")
	rows, err := s.Stmt.(driver.StmtQueryContext).QueryContext(ctx, args)
	if err != nil {
		return nil, err
	}
	return &badRows{rows, s.m}, nil
}

type badRows struct {
	driver.Rows
	m *mine
}

func (r *badRows) Next(dest []driver.Value) error {
	if r.m.rare(50) {
		r.m.step("next row")
	}
	return r.Rows.Next(dest)
}

func (r *badRows) Close() error {
	r.m.step("close of the rows")
	return r.Rows.Close()
}

// rare thins out points that are passed for every row.
func (m *mine) rare(n int) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.r.IntN(n) == 0
}

// badTracer is a tracer of pgx's that breaks.
type badTracer struct{ m *mine }

type tracedQuery struct{}

func (b badTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if mined(data.SQL) {
		b.m.step("start of the query")
		ctx = context.WithValue(ctx, tracedQuery{}, true)
	}
	return ctx
}

func (b badTracer) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if ctx.Value(tracedQuery{}) != nil {
		b.m.step("end of the query")
	}
}

// TestPanics breaks flights in the driver below, by panics and runtime.Goexit. Every
// caller gets the panic in its own goroutine, or an error; the connections on which
// it happened serve nobody any more, and none is lost.
func TestPanics(t *testing.T) {
	for _, tc := range []struct {
		name   string
		goexit bool
	}{{"Panic", false}, {"Goexit", true}} {
		for _, way := range []string{"Driver", "Tracer", "TracerTransaction"} {
			t.Run(tc.name+"/"+way, func(t *testing.T) {
				kind := map[bool]string{false: "panic", true: "goexit"}[tc.goexit]
				w := newWorld(t, pgtest.Shared(t), fmt.Sprintf("%s in a flight, below flightpg (%s)", strings.ToLower(tc.name), way), kind)
				m := &mine{goexit: tc.goexit, r: battery.Rand(w.seed, 1), hits: map[string]int{}}
				pc, err := pgx.ParseConfig(with(w.direct, "application_name=faults"))
				if err != nil {
					t.Fatal(err)
				}
				// A lost connection would be missed.
				cfg := flightpg.Config{FlightConns: 4, MaxResult: 64 << 20, Memory: 1 << 30}
				var c *flightpg.Connector
				if way == "Driver" {
					cfg.Database = t.Name()
					cfg.TrustNames = []string{"*"}
					c, err = flightpg.Wrap(badConnector{stdlib.GetConnector(*pc), m}, cfg)
				} else {
					if way == "TracerTransaction" {
						cfg.Guard = flightpg.GuardTransaction
					}
					pc.Tracer = badTracer{m}
					c, err = flightpg.NewConnectorWithConfig(pc, cfg)
				}
				if err != nil {
					t.Fatal(err)
				}
				db := c.OpenDB()
				if way != "Driver" {
					if err := flightpg.RefreshCatalog(t.Context(), db); err != nil {
						t.Fatal(err)
					}
				}
				w.add(&handle{name: way, db: db, flown: true})
				w.start(readers/2, writers/2)
				enough := func() bool {
					w.mu.Lock()
					defer w.mu.Unlock()
					return w.errs[kind] > 0 && m.points() >= 2
				}
				w.roundsUntil(battery.Quick(1, battery.N(2, 20)), enough, func(r *rand.Rand) {
					m.set(3 + r.IntN(10))
					w.progress(battery.N[int64](100, 500), patience)
					m.set(0)
				})
				w.report.Set("points", fmt.Sprint(m.hits))
				if !enough() {
					t.Errorf("callers got a %s at %v: too few", kind, m.hits)
				}
				w.finish()
			})
		}
	}
}
