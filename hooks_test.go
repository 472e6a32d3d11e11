package flightpg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/http/httptrace"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestAfterConnect_Fails: nothing is left of a connection that the hook did not
// want. pgtest looks for what is left when the test ends.
func TestAfterConnect_Fails(t *testing.T) {
	boom := errors.New("boom")
	var opened []*pgx.Conn
	db, err := OpenDB(pgtest.Database(t), Config{AfterConnect: func(_ context.Context, conn *pgx.Conn) error {
		opened = append(opened, conn)
		return boom
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PingContext(t.Context()); !errors.Is(err, boom) {
		t.Errorf("Ping = %v; want %v", err, boom)
	}
	if _, err := db.ExecContext(t.Context(), `SELECT 1`); !errors.Is(err, boom) {
		t.Errorf("Exec = %v; want %v", err, boom)
	}
	if len(opened) == 0 {
		t.Error("the hook was not called")
	}
	for i, conn := range opened {
		if !conn.IsClosed() {
			t.Errorf("connection %d is still open", i)
		}
	}
}

// TestHooks_CallersValues: a connection that is opened for a caller's read is opened with the
// values of his context, though not with its end: hooks find his span, or his logger. (Here
// it is net/http/httptrace's value, which does not count either.)
func TestHooks_CallersValues(t *testing.T) {
	const readers = 5
	dsn := pgtest.Database(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	if _, err := admin.Exec(t.Context(), "CREATE TABLE spans ()"); err != nil {
		t.Fatal(err)
	}
	for _, ex := range []Executor{ExecutorAuto, ExecutorGeneric} {
		for _, before := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v/before=%v", ex, before), func(t *testing.T) {
				var mu sync.Mutex
				seen := make(map[*httptrace.ClientTrace]int)
				ended := 0
				look := func(ctx context.Context) error {
					mu.Lock()
					defer mu.Unlock()
					seen[httptrace.ContextClientTrace(ctx)]++
					if ctx.Err() != nil {
						ended++
					}
					return nil
				}
				cfg := Config{Executor: ex}
				if before {
					cfg.BeforeConnect = func(ctx context.Context, _ *pgx.ConnConfig) error { return look(ctx) }
				} else {
					cfg.AfterConnect = func(ctx context.Context, _ *pgx.Conn) error { return look(ctx) }
				}
				c, err := NewConnector(dsn, cfg)
				if err != nil {
					t.Fatal(err)
				}
				db := c.OpenDB()
				defer db.Close()
				tx, err := admin.Begin(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = tx.Rollback(context.Background()) }()
				if _, err := tx.Exec(t.Context(), "LOCK TABLE spans"); err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				defer wg.Wait()
				traces := make([]*httptrace.ClientTrace, readers)
				// The first one has the connection on which the catalog was asked for.
				loader := &httptrace.ClientTrace{}
				if v, err := Explain(httptrace.WithClientTrace(t.Context(), loader), db, "SELECT count(*) FROM spans"); err != nil || !v.Coalesce {
					t.Fatalf("Explain = %+v, %v; want that it is shared", v, err)
				}
				for i := range readers {
					traces[i] = &httptrace.ClientTrace{}
					ctx, cancel := context.WithTimeout(httptrace.WithClientTrace(t.Context(), traces[i]), time.Hour)
					defer cancel()
					wg.Go(func() { // each waits for the lock, on a connection of its own
						if _, err := queryInt(ctx, db, fmt.Sprintf("SELECT count(*) + %d FROM spans", i)); err != nil {
							t.Error(err)
						}
					})
					eventually(t, "the reader waits", func() bool {
						var waiting int
						if err := tx.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE relation = 'spans'::regclass AND NOT granted").Scan(&waiting); err != nil {
							t.Fatal(err)
						}
						return waiting == i+1
					})
				}
				if err := tx.Rollback(t.Context()); err != nil {
					t.Fatal(err)
				}
				wg.Wait()
				if _, err := db.ExecContext(httptrace.WithClientTrace(t.Context(), traces[0]), "SELECT 1"); err != nil {
					t.Error(err)
				}
				mu.Lock()
				defer mu.Unlock()
				seen[traces[0]]++
				for i, trace := range append(traces, loader) {
					if seen[trace] == 0 {
						t.Errorf("no hook has seen what the context of reader %d has", i)
					}
				}
				if seen[nil] != 0 || ended != 0 {
					t.Errorf("%d connections were opened with nobody's values, and %d for contexts that had ended", seen[nil], ended)
				}
				if d := c.depends.Load(); d != nil {
					t.Errorf("%s: want that this does not count", d.why())
				}
				if s := ReadStats(db); s.Flights != readers {
					t.Errorf("%d flights; want %d", s.Flights, readers)
				}
			})
		}
	}
	// A caller who leaves ends nothing.
	c := &Connector{source: &source{doors: true}}
	gone, cancel := context.WithCancel(httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{}))
	cancel()
	ctx, cancel := context.WithCancel(c.watch(c.opensFor()(t.Context(), gone)))
	defer cancel()
	if ctx.Err() != nil || httptrace.ContextClientTrace(ctx) == nil {
		t.Errorf("the context of a dial: %v, %v; want the values of the caller, and not his end", ctx.Err(), httptrace.ContextClientTrace(ctx))
	}
}

// assertingContext is what a web framework gives its handlers.
type assertingContext struct{ context.Context }

// TestHooks_ForeignPrepare: a hook gets a context of a foreign type as it is also where the
// first that is done with it is to prepare a statement.
func TestHooks_ForeignPrepare(t *testing.T) {
	dsn := pgtest.Database(t)
	for _, ex := range []Executor{ExecutorAuto, ExecutorGeneric} {
		for _, key := range []func(context.Context) string{nil, func(context.Context) string { return "" }} {
			lost := errors.New("the context is not what it was")
			db, err := OpenDB(dsn, Config{Executor: ex, PartitionKey: key, AfterConnect: func(ctx context.Context, _ *pgx.Conn) error {
				if _, ok := ctx.(assertingContext); !ok {
					return lost
				}
				return nil
			}})
			if err != nil {
				t.Fatal(err)
			}
			for _, via := range []func(context.Context) (*sql.Stmt, error){
				func(ctx context.Context) (*sql.Stmt, error) { return db.PrepareContext(ctx, "SELECT 1") },
				func(ctx context.Context) (*sql.Stmt, error) {
					conn, err := db.Conn(ctx)
					if err != nil {
						return nil, err
					}
					defer conn.Close()
					return conn.PrepareContext(t.Context(), "SELECT 2")
				},
			} {
				st, err := via(assertingContext{t.Context()})
				if err != nil {
					t.Errorf("%v, with a PartitionKey %v: Prepare = %v", ex, key != nil, err)
					continue
				}
				_ = st.Close()
			}
			_ = db.Close()
		}
	}
}
