package integration

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
)

// TestPool takes connections from a pool that others use at the same time: reads
// are shared, and nothing of it is left on the pool's connections.
func TestPool(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		g := newGate(t, dsn)
		for _, mode := range execModes {
			t.Run(mode, func(t *testing.T) {
				pool, err := pgxpool.New(t.Context(), with(dsn, mode+"&pool_max_conns=4"))
				if err != nil {
					t.Fatal(err)
				}
				defer pool.Close()
				c, err := flightpg.NewConnectorWithPool(pool, flightpg.Config{})
				if err != nil {
					t.Fatal(err)
				}
				db := c.OpenDB()
				defer db.Close()
				storm(t, g, db, 100, 0, func() error {
					var v int
					return db.QueryRow(gateQuery, 1).Scan(&v)
				})
				st, err := db.Prepare("SELECT name FROM items WHERE id = $1")
				if err != nil {
					t.Fatal(err)
				}
				var wg sync.WaitGroup
				for i := range 40 {
					wg.Go(func() {
						var name string
						err := st.QueryRow(i%3 + 1).Scan(&name)
						if i%4 == 0 {
							_, e := db.Exec("SET application_name = 'changed'")
							err = errors.Join(err, e)
						}
						if i%5 == 0 {
							_, e := db.Exec("UPDATE counters SET n = n + 1 WHERE id = -1")
							err = errors.Join(err, e)
						}
						if err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				st.Close()
				until(t, "all connections are back", func() bool { return pool.Stat().AcquiredConns() == 0 })
				if n := pool.Stat().TotalConns(); n > 4 {
					t.Errorf("%d connections; want the pool's limit", n)
				}
				// Every connection is as its owner would have it.
				var held []*pgxpool.Conn
				for range 4 {
					conn, err := pool.Acquire(t.Context())
					if err != nil {
						t.Fatal(err)
					}
					held = append(held, conn)
					var readOnly, name string
					var prepared int
					err = conn.QueryRow(t.Context(), `SELECT current_setting('default_transaction_read_only'), current_setting('application_name'),
						(SELECT count(*) FROM pg_prepared_statements WHERE name NOT LIKE 'stmtcache%')`, pgx.QueryExecModeSimpleProtocol).Scan(&readOnly, &name, &prepared)
					if err != nil || readOnly != "off" || name == "changed" || prepared != 0 {
						t.Errorf("default_transaction_read_only = %s, application_name = %s, %d prepared statements, %v", readOnly, name, prepared, err)
					}
				}
				for _, conn := range held {
					conn.Release()
				}
			})
		}
	})
}

// traces is a pgx.QueryTracer that keeps what it sees.
type traces struct {
	mu     sync.Mutex // guards the rest
	starts []string   // the value of traceKey in the context, and the text
	ends   int
	failed int
}

type traceKey struct{}

func (tr *traces) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	who, _ := ctx.Value(traceKey{}).(string)
	tr.starts = append(tr.starts, who+": "+data.SQL)
	return ctx
}

func (tr *traces) TraceQueryEnd(_ context.Context, _ *pgx.Conn, data pgx.TraceQueryEndData) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	tr.ends++
	if data.Err != nil {
		tr.failed++
	}
}

// TestTracer lets 20 callers share a read: the tracer sees its execution once,
// with the context of the caller that led it.
func TestTracer(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		g := newGate(t, dsn)
		for _, params := range []string{"", "flight_guard=transaction", "flight_mode=off"} {
			t.Run("params="+params, func(t *testing.T) {
				tr := new(traces)
				pc := config(t, with(dsn, params))
				pc.Tracer = tr
				c, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{})
				if err != nil {
					t.Fatal(err)
				}
				db := c.OpenDB()
				defer db.Close()
				if params != "flight_mode=off" {
					storm(t, g, db, 20, 0, func() error {
						var v int
						return db.QueryRowContext(context.WithValue(t.Context(), traceKey{}, "caller"), gateQuery, 1).Scan(&v)
					})
					if want := []string{"caller: " + gateQuery}; !slices.Equal(tr.starts, want) || tr.ends != 1 || tr.failed != 0 {
						t.Errorf("20 callers: %q, %d ends, %d failed; want %q once", tr.starts, tr.ends, tr.failed, want)
					}
				}
				*tr = traces{}
				ctx := context.WithValue(t.Context(), traceKey{}, "I")
				for _, query := range []string{"SELECT 1/0 FROM items", "SELECT nothing FROM items", "UPDATE counters SET n = 0", "SELECT 1"} {
					if rows, err := db.QueryContext(ctx, query); err == nil {
						rows.Close()
					}
				}
				want := []string{"I: SELECT 1/0 FROM items", "I: SELECT nothing FROM items", "I: UPDATE counters SET n = 0", "I: SELECT 1"}
				if !slices.Equal(tr.starts, want) || tr.ends != len(want) {
					t.Errorf("%q, %d ends; want %q", tr.starts, tr.ends, want)
				}
			})
		}
	})
}

// TestNotices reads what raises a notice: the handler is called, once for all who
// share the read, as it is for a session's.
func TestNotices(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setup := connect(t, dsn)
		if _, err := setup.Exec(t.Context(), "CREATE FUNCTION notable(int) RETURNS int LANGUAGE plpgsql STABLE AS $$BEGIN RAISE NOTICE 'noted %', $1 USING HINT = 'h'; RETURN $1; END$$"); err != nil {
			t.Fatal(err)
		}
		var mu sync.Mutex
		var got []string
		pc := config(t, dsn)
		pc.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, n.Severity+" "+n.Message+" "+n.Hint)
		}
		c, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		defer db.Close()
		for _, query := range []string{"SELECT notable(1)", "SELECT notable(2) WHERE random() < 2"} {
			var n int
			if err := db.QueryRowContext(t.Context(), query).Scan(&n); err != nil {
				t.Fatal(err)
			}
		}
		if want := []string{"NOTICE noted 1 h", "NOTICE noted 2 h"}; !slices.Equal(got, want) {
			t.Errorf("notices %q; want %q", got, want)
		}
		if s := flightpg.ReadStats(db); s.Flights != 1 {
			t.Errorf("%d flights; want 1", s.Flights)
		}
	})
}

// TestRawLargeObjectsAndListen does through Raw what database/sql has no words
// for, over both drivers.
func TestRawLargeObjectsAndListen(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		for name, db := range map[string]*sql.DB{"pgx": stdlib.OpenDB(*config(t, dsn)), "flightpg": open(t, "flightpg", dsn)} {
			t.Run(name, func(t *testing.T) {
				defer db.Close()
				content := bytes.Repeat([]byte("large\x00"), 50_000)
				c, err := db.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				err = c.Raw(func(dc any) error {
					conn := dc.(interface{ Conn() *pgx.Conn }).Conn()
					return pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error {
						objects := tx.LargeObjects()
						oid, err := objects.Create(t.Context(), 0)
						if err != nil {
							return err
						}
						o, err := objects.Open(t.Context(), oid, pgx.LargeObjectModeWrite|pgx.LargeObjectModeRead)
						if err != nil {
							return err
						}
						if _, err = o.Write(content); err != nil {
							return err
						}
						if _, err = o.Seek(0, io.SeekStart); err != nil {
							return err
						}
						got, err := io.ReadAll(o)
						if !bytes.Equal(got, content) {
							t.Errorf("%d bytes came back; want %d", len(got), len(content))
						}
						return err
					})
				})
				if err != nil {
					t.Fatal(err)
				}
				err = c.Raw(func(dc any) error {
					conn := dc.(interface{ Conn() *pgx.Conn }).Conn()
					if _, err := conn.Exec(t.Context(), "LISTEN news"); err != nil {
						return err
					}
					if _, err := db.ExecContext(t.Context(), "SELECT pg_notify('news', 'now')"); err != nil {
						return err
					}
					n, err := conn.WaitForNotification(t.Context())
					if err == nil && (n.Channel != "news" || n.Payload != "now") {
						t.Errorf("notification %+v", n)
					}
					return err
				})
				if err != nil {
					t.Fatal(err)
				}
			})
		}
	})
}
