package hooks_test

import (
	"context"
	"database/sql"
	"errors"
	"io"
	"net"
	"runtime"
	"runtime/trace"
	"sync/atomic"
	"testing"
	"weak"

	pgxdecimal "github.com/jackc/pgx-shopspring-decimal"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/await"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

// TestRuntimeTrace: while the program is traced (a flight recorder), OpenTelemetry asks for
// runtime/trace's task, which says nothing of who the caller is.
func TestRuntimeTrace(t *testing.T) {
	if err := trace.Start(io.Discard); err != nil {
		t.Fatal(err)
	}
	defer trace.Stop()
	e := stack.New(t, stack.Flightpg)
	e.SQL(things)
	h := traced(hooks{after: prepare})(e).count()
	db := pgxHandle(under(e, t), false, h)
	asks(e, db, h, readN, []string{spanKey, nameKey, "runtime/trace.traceContextKey"})
	explained(e, doors[0].handle(e, h), h)
}

// TestValues: what callers had in their contexts goes with the connections that hooks have
// set up by it.
func TestValues(t *testing.T) {
	type user struct{ _ [100]byte }
	env := stack.New(t, stack.Flightpg)
	env.SQL(things)
	for _, d := range doors {
		if d.pool {
			continue // pgxpool keeps contexts itself
		}
		t.Run(d.name, func(t *testing.T) {
			e := under(env, t)
			ask := func(ctx context.Context, _ *pgx.Conn) error { ctx.Value(ownKey{}); return nil }
			c, err := d.open(e, hooks{after: ask, reset: ask})
			if err != nil {
				t.Fatal(err)
			}
			db := c.OpenDB()
			var kept []weak.Pointer[user]
			for range 3 {
				u := &user{}
				kept = append(kept, weak.Make(u))
				ctx, cancel := context.WithCancel(context.WithValue(context.Background(), ownKey{}, u))
				for range 2 {
					if err := readN(ctx, db); err != nil {
						t.Fatal(err)
					}
				}
				cancel()
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			await.Until(t, "nobody has the callers' values", func() bool {
				runtime.GC()
				for _, p := range kept {
					if p.Value() != nil {
						return false
					}
				}
				return true
			})
			runtime.KeepAlive(db)
			runtime.KeepAlive(c)
		})
	}
}

// TestCancelled: who leaves while a connection is dialled for him gets what he gets with
// pgx, and the next caller is served. A read gets context.Canceled as it is, as from a
// flight: the dial serves others.
func TestCancelled(t *testing.T) {
	env := stack.New(t, stack.Flightpg)
	env.SQL(things)
	for name, call := range map[string]func(ctx context.Context, db *sql.DB) error{
		"read": readN,
		"Exec": func(ctx context.Context, db *sql.DB) error {
			_, err := db.ExecContext(ctx, "INSERT INTO things VALUES (7)")
			return err
		},
		"Ping": func(ctx context.Context, db *sql.DB) error { return db.PingContext(ctx) },
		"Begin": func(ctx context.Context, db *sql.DB) error {
			tx, err := db.BeginTx(ctx, nil)
			if err == nil {
				err = tx.Rollback()
			}
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := under(env, t)
			want := leaves(e, func(h hooks) *sql.DB { return pgxHandle(e, false, h) }, call)
			var dial *pgconn.ConnectError
			if !errors.Is(want, context.Canceled) || !errors.As(want, &dial) {
				t.Fatalf("with pgx who leaves gets %v", want)
			}
			if name == "read" {
				want = context.Canceled
			}
			for _, d := range doors {
				if d.pool {
					continue // who dials is pgxpool
				}
				if got := leaves(e, func(h hooks) *sql.DB { return d.handle(e, h) }, call); !errors.Is(got, context.Canceled) || got.Error() != want.Error() {
					t.Errorf("%s: who leaves gets %v; with pgx %v", d.name, got, want)
				}
			}
		})
	}
}

// leaves has a caller leave while a connection is dialled for him, and returns what he
// gets. Then another calls.
func leaves(e *stack.Env, open func(hooks) *sql.DB, call func(context.Context, *sql.DB) error) error {
	e.Helper()
	var hangs atomic.Bool
	hangs.Store(true)
	dialled, let := make(chan struct{}, 100), make(chan struct{})
	db := open(hooks{config: func(pc *pgx.ConnConfig) {
		pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			if !hangs.Load() {
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
			dialled <- struct{}{}
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-let:
				return nil, errors.New("dialled in vain")
			}
		}
	}})
	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	left := make(chan error, 1)
	go func() { left <- call(ctx, db) }()
	<-dialled
	cancel()
	err := <-left
	hangs.Store(false)
	close(let)
	if err := call(e.Context(), db); err != nil {
		e.Errorf("the next caller has %v", err)
	}
	return err
}

// TestDecimalArgument: what a registered codec makes of a decimal cannot be seen, and what
// decimal itself makes of it can.
func TestDecimalArgument(t *testing.T) {
	e := stack.New(t, stack.Flightpg)
	e.SQL(things)
	register := func(_ context.Context, conn *pgx.Conn) error { pgxdecimal.Register(conn.TypeMap()); return nil }
	for name, tc := range map[string]struct {
		h    hooks
		want uint64
	}{"registered": {hooks{after: register}, 1}, "plain": {hooks{after: prepare}, 0}} {
		db := doors[0].handle(e, tc.h)
		explained(e, db, tc.h.count())
		var n int
		if err := db.QueryRowContext(t.Context(), "SELECT n FROM things WHERE amount = $1", amount).Scan(&n); err != nil {
			t.Fatal(err)
		}
		if st := flightpg.ReadStats(db); st.Bypasses[flightpg.ReasonArgument] != tc.want || st.Flights != 1-tc.want {
			t.Errorf("%s: %d flights, bypasses %v; want %d because of the argument", name, st.Flights, st.Bypasses, tc.want)
		}
	}
}
