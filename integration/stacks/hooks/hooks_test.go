// Package hooks tests flightpg under what people hand to pgx to prepare connections:
// registrations of types, settings, health checks, tokens, dialers and tracers. Those
// that do not ask whose connection it is share; those that do never share.
package hooks_test

import (
	"context"
	"database/sql"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/await"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

func TestMain(m *testing.M) { stack.Main(m) }

// callers run into a locked table at once.
const callers = 4

// hooks are what an application hands to pgx, whichever way it opens its connections.
type hooks struct {
	before func(context.Context, *pgx.ConnConfig) error // a connection is opened
	after  func(context.Context, *pgx.Conn) error       // it is open
	reset  func(context.Context, *pgx.Conn) error       // it is used again
	ping   func(context.Context, *pgx.Conn) bool        // whether it is pinged then

	config func(*pgx.ConnConfig)                   // a tracer, a dialer
	pool   func(*pgxpool.Config)                   // what only a pool has
	ran    *atomic.Int64                           // how often any of that was called
	check  func(t testing.TB)                      // what else it must have done
	with   func(c context.Context) context.Context // what callers have in their contexts
}

// count returns the hooks, which count their calls from now on.
func (h hooks) count() hooks {
	if h.ran == nil {
		h.ran = new(atomic.Int64)
	}
	ran := h.ran
	if before := h.before; before != nil {
		h.before = func(ctx context.Context, pc *pgx.ConnConfig) error { ran.Add(1); return before(ctx, pc) }
	}
	counted := func(hook func(context.Context, *pgx.Conn) error) func(context.Context, *pgx.Conn) error {
		if hook == nil {
			return nil
		}
		return func(ctx context.Context, conn *pgx.Conn) error { ran.Add(1); return hook(ctx, conn) }
	}
	h.after, h.reset = counted(h.after), counted(h.reset)
	if h.with == nil {
		h.with = func(ctx context.Context) context.Context { return ctx }
	}
	return h
}

// stdlib returns the hooks as pgx's stdlib takes them.
func (h hooks) stdlib() (opts []stdlib.OptionOpenDB) {
	if h.before != nil {
		opts = append(opts, stdlib.OptionBeforeConnect(h.before))
	}
	if h.after != nil {
		opts = append(opts, stdlib.OptionAfterConnect(h.after))
	}
	if h.reset != nil {
		opts = append(opts, stdlib.OptionResetSession(h.reset))
	}
	if h.ping != nil {
		opts = append(opts, stdlib.OptionShouldPing(func(ctx context.Context, p stdlib.ShouldPingParams) bool { return h.ping(ctx, p.Conn) }))
	}
	return opts
}

// flightpg returns them as flightpg's Config has them.
func (h hooks) flightpg() flightpg.Config {
	cfg := flightpg.Config{BeforeConnect: h.before, AfterConnect: h.after, ResetSession: h.reset}
	if h.ping != nil {
		cfg.ShouldPing = func(ctx context.Context, p stdlib.ShouldPingParams) bool { return h.ping(ctx, p.Conn) }
	}
	return cfg
}

// connConfig returns the config for the database, with what hooks have to say of it.
func (h hooks) connConfig(e *stack.Env) *pgx.ConnConfig {
	e.Helper()
	pc, err := pgx.ParseConfig(e.DSN)
	if err != nil {
		e.Fatal(err)
	}
	if h.config != nil {
		h.config(pc)
	}
	return pc
}

// newPool returns a pool with the hooks. It is closed at the test's end.
func (h hooks) newPool(e *stack.Env) *pgxpool.Pool {
	e.Helper()
	pc, err := pgxpool.ParseConfig(e.DSN)
	if err != nil {
		e.Fatal(err)
	}
	pc.MaxConns = 2 * callers
	pc.BeforeConnect, pc.AfterConnect = h.before, h.after
	if h.reset != nil {
		pc.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) {
			err := h.reset(ctx, conn)
			return err == nil, err
		}
	}
	if h.ping != nil {
		pc.ShouldPing = func(ctx context.Context, p pgxpool.ShouldPingParams) bool { return h.ping(ctx, p.Conn) }
	}
	if h.config != nil {
		h.config(pc.ConnConfig)
	}
	if h.pool != nil {
		h.pool(pc)
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), pc)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(pool.Close)
	return pool
}

// A door is a way to open a database with hooks.
type door struct {
	name string
	pool bool // the hooks are a pool's
	long bool // not with -short: it is another's, by another name
	open func(e *stack.Env, h hooks) (*flightpg.Connector, error)
}

var doors = []door{
	{"Config", false, false, func(e *stack.Env, h hooks) (*flightpg.Connector, error) {
		if h.config == nil {
			return flightpg.NewConnector(e.DSN, h.flightpg())
		}
		return flightpg.NewConnectorWithConfig(h.connConfig(e), h.flightpg())
	}},
	{"Registered", false, true, func(e *stack.Env, h hooks) (*flightpg.Connector, error) {
		name := stdlib.RegisterConnConfig(h.connConfig(e))
		e.Cleanup(func() { stdlib.UnregisterConnConfig(name) })
		return flightpg.NewConnector(name, h.flightpg())
	}},
	{"Wrap", false, false, func(e *stack.Env, h hooks) (*flightpg.Connector, error) {
		return flightpg.Wrap(stdlib.GetConnector(*h.connConfig(e), h.stdlib()...), flightpg.Config{})
	}},
	{"Pool", true, false, func(e *stack.Env, h hooks) (*flightpg.Connector, error) {
		return flightpg.NewConnectorWithPool(h.newPool(e), flightpg.Config{})
	}},
	{"WrapPool", true, true, func(e *stack.Env, h hooks) (*flightpg.Connector, error) {
		return flightpg.Wrap(stdlib.GetPoolConnector(h.newPool(e)), flightpg.Config{})
	}},
}

// handle opens the database through a door. The handle is closed at the test's end.
func (d door) handle(e *stack.Env, h hooks) *sql.DB {
	e.Helper()
	c, err := d.open(e, h)
	if err != nil {
		e.Fatal(err)
	}
	return closing(e, c.OpenDB())
}

// closing returns the handle, which is closed at the test's end.
func closing(e *stack.Env, db *sql.DB) *sql.DB {
	stack.Keep(db)
	e.Cleanup(func() {
		if err := db.Close(); err != nil {
			e.Error(err)
		}
	})
	return db
}

// pgxHandle is the same for pgx alone.
func pgxHandle(e *stack.Env, pool bool, h hooks) *sql.DB {
	e.Helper()
	if pool {
		return closing(e, stdlib.OpenDBFromPool(h.newPool(e)))
	}
	return closing(e, stdlib.OpenDB(*h.connConfig(e), h.stdlib()...))
}

// storm has callers read a table that is locked, until all have come, and returns how many
// executions wait on the server then.
func storm(e *stack.Env, eyes [2]*pgx.Conn, db *sql.DB, table string, read func(ctx context.Context) error) int {
	e.Helper()
	if err := read(e.Context()); err != nil {
		e.Fatal(err)
	}
	gate := await.Shut(e, eyes[0], table)
	defer gate.Open()
	before := flightpg.ReadStats(db)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer gate.Open() // first, whatever happens; PostgreSQL takes a second ROLLBACK
	for range callers {
		wg.Go(func() {
			if err := read(e.Context()); err != nil {
				e.Error(err)
			}
		})
	}
	executions := 0
	await.Until(e, "all callers wait", func() bool {
		want, come := callers, callers
		if e.Driver == stack.Flightpg {
			now := flightpg.ReadStats(db)
			want = int(now.Flights - before.Flights)
			for why, n := range now.Bypasses {
				want += int(n - before.Bypasses[why])
			}
			come = want + int(now.Joins-before.Joins)
		}
		executions = await.Blocked(e, eyes[1])
		return come == callers && executions == want
	})
	return executions
}

// under returns the same database for a subtest.
func under(e *stack.Env, t *testing.T) *stack.Env {
	sub := *e
	sub.T = t
	return &sub
}

// asking is a context that notes what it is asked for. pgx alone gets it.
type asking struct {
	context.Context
	mu   sync.Mutex // guards keys
	keys map[string]bool
}

// Value implements context.Context.
func (a *asking) Value(key any) any {
	a.mu.Lock()
	defer a.mu.Unlock()
	if name := keyType(key); name != "*int" { // package context's own, for cancelling
		if a.keys == nil {
			a.keys = make(map[string]bool)
		}
		a.keys[name] = true
	}
	return a.Context.Value(key)
}

// asked returns what that was, sorted.
func (a *asking) asked() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	var all []string
	for name := range a.keys {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

// keyType names the type of a context's key with its package.
func keyType(key any) string {
	t := reflect.TypeOf(key)
	if t == nil || t.PkgPath() == "" {
		return fmt.Sprintf("%T", key)
	}
	return t.PkgPath() + "." + t.Name()
}

// The keys that do not count, by their types.
const (
	netKey     = "internal/nettrace.TraceKey"
	resolveKey = "internal/nettrace.LookupIPAltResolverKey"
	httpKey    = "net/http/httptrace.clientEventContextKey"
	spanKey    = "go.opentelemetry.io/otel/trace.traceContextKeyType"
	loggerKey  = "github.com/rs/zerolog.ctxKey"
	nameKey    = "github.com/exaring/otelpgx.metricOperationNameCtxKey"
)

// exec is a hook that runs statements.
func exec(statements string) func(context.Context, *pgx.Conn) error {
	return func(ctx context.Context, conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, statements)
		return err
	}
}

// pgExec is one of pgconn's.
func pgExec(statements string) func(context.Context, *pgconn.PgConn) error {
	return func(ctx context.Context, conn *pgconn.PgConn) error { return conn.Exec(ctx, statements).Close() }
}
