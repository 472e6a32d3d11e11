package hooks_test

import (
	"context"
	"database/sql"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/baggage"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

// A teller is a way to tell, by a context, whose it is.
type teller struct {
	name string
	key  string // its type, as Explain names it
	tell func(ctx context.Context, who string) context.Context
	who  func(ctx context.Context) string // "": it does not say
}

type (
	ownKey struct{}
	numKey int
	ptrKey struct{ _ string }
)

var pointer = &ptrKey{}

// request is a context of a web framework's: a type of its own, which has what there is
// to know.
type request struct {
	context.Context
	who string
}

// attrsKey has what a logger adds to its lines.
type attrsKey struct{}

// attrs is a handler of slog's that does so, as slog-context and its like.
type attrs struct {
	slog.Handler
	who *string
}

func (h attrs) Handle(ctx context.Context, r slog.Record) error {
	*h.who, _ = ctx.Value(attrsKey{}).(string)
	return h.Handler.Handle(ctx, r)
}

func valueOf(key any) teller {
	return teller{
		tell: func(ctx context.Context, who string) context.Context { return context.WithValue(ctx, key, who) },
		who:  func(ctx context.Context) string { who, _ := ctx.Value(key).(string); return who },
	}
}

func named(name, key string, t teller) teller {
	t.name, t.key = name, key
	return t
}

var tellers = []teller{
	{
		"baggage", "baggage.baggageContextKeyType(0)",
		func(ctx context.Context, who string) context.Context {
			m, _ := baggage.NewMember("tenant", who)
			b, _ := baggage.New(m)
			return baggage.ContextWithBaggage(ctx, b)
		},
		func(ctx context.Context) string { return baggage.FromContext(ctx).Member("tenant").Value() },
	},
	{
		"pprof", "pprof.labelContextKey",
		func(ctx context.Context, who string) context.Context {
			return pprof.WithLabels(ctx, pprof.Labels("tenant", who))
		},
		func(ctx context.Context) string { who, _ := pprof.Label(ctx, "tenant"); return who },
	},
	{
		"ServerContextKey", "*http.contextKey",
		func(ctx context.Context, who string) context.Context {
			return context.WithValue(ctx, http.ServerContextKey, &http.Server{Addr: who})
		},
		func(ctx context.Context) string {
			if srv, ok := ctx.Value(http.ServerContextKey).(*http.Server); ok {
				return srv.Addr
			}
			return ""
		},
	},
	{
		"LocalAddrContextKey", "*http.contextKey",
		func(ctx context.Context, who string) context.Context {
			return context.WithValue(ctx, http.LocalAddrContextKey, &net.UnixAddr{Name: who, Net: "unix"})
		},
		func(ctx context.Context) string {
			if addr, ok := ctx.Value(http.LocalAddrContextKey).(net.Addr); ok {
				return addr.String()
			}
			return ""
		},
	},
	named("string", `string("tenant")`, valueOf("tenant")),
	named("struct", "hooks_test.ownKey", valueOf(ownKey{})),
	named("number", "hooks_test.numKey(3)", valueOf(numKey(3))),
	named("pointer", "*hooks_test.ptrKey", valueOf(pointer)),
	named("anonymous", "struct {}", valueOf(struct{}{})),
	{
		"slog", "hooks_test.attrsKey", valueOf(attrsKey{}).tell,
		func(ctx context.Context) (who string) {
			slog.New(attrs{slog.NewTextHandler(io.Discard, nil), &who}).InfoContext(ctx, "connected")
			return who
		},
	},
	{
		"request", "hooks_test.request",
		func(ctx context.Context, who string) context.Context { return request{ctx, who} },
		func(ctx context.Context) string { r, _ := ctx.(request); return r.who },
	},
	{
		"*request", "*hooks_test.request",
		func(ctx context.Context, who string) context.Context { return &request{ctx, who} },
		func(ctx context.Context) string {
			if r, ok := ctx.(*request); ok {
				return r.who
			}
			return ""
		},
	},
}

// A listener is a hook that makes the session that of whom a context tells of. It notes
// what it hears.
type listener struct {
	teller
	mu    sync.Mutex // guards heard
	heard []string
}

func (l *listener) listen(ctx context.Context, conn *pgx.Conn) error {
	who := l.who(ctx)
	l.mu.Lock()
	l.heard = append(l.heard, who)
	l.mu.Unlock()
	if who == "" {
		who = "public"
	}
	_, err := conn.Exec(ctx, "SET search_path = "+who)
	return err
}

// hear returns what it has heard, once each and sorted, and forgets it.
func (l *listener) hear() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.Compact(slices.Sorted(slices.Values(l.heard)))
	l.heard = nil
	return all
}

// TestAsks has hooks that ask whose connection it is, by all kinds of keys. No two callers
// share, not even those of one tenant; each has his own rows; flightpg says which hook it
// is, and what it asks for; and it hears what it would hear with pgx.
func TestAsks(t *testing.T) {
	env := stack.New(t, stack.Flightpg)
	tenants := []string{"ann", "bob", "eve"}
	env.SQL("CREATE TABLE me (who text); INSERT INTO me VALUES ('nobody')")
	for _, who := range tenants {
		env.SQL(fmt.Sprintf("CREATE SCHEMA %[1]s; CREATE TABLE %[1]s.me (who text); INSERT INTO %[1]s.me VALUES ('%[1]s')", who))
	}
	eyes := [2]*pgx.Conn{env.Connect(), env.Connect()}
	const text = "SELECT who FROM me"
	for _, tell := range tellers {
		own := strings.HasSuffix(tell.key, "request")
		read := func(ctx context.Context, db *sql.DB, who string) error {
			var got string
			if err := db.QueryRowContext(tell.tell(ctx, who), text).Scan(&got); err != nil {
				return err
			}
			if got != who {
				return fmt.Errorf("%s has the rows of %s", who, got)
			}
			return nil
		}
		for _, d := range doors {
			if testing.Short() && (d.long || d.name == "Wrap") { // TestAsks_Doors has it
				continue
			}
			t.Run(tell.name+"/"+d.name, func(t *testing.T) {
				e := under(env, t)
				l := &listener{teller: tell}
				h, hook := hooks{after: l.listen}, "hooks_test.(*listener).listen"
				if d.pool {
					h, hook = hooks{reset: l.listen}, "hooks_test.hooks.newPool.func1" // PrepareConn
				}
				db := d.handle(e, h)
				for i, who := range tenants {
					v, err := flightpg.Explain(tell.tell(e.Context(), who), db, text)
					if err != nil || v.Decision() != "bypass" || v.Reason != flightpg.ReasonHooks {
						e.Fatalf("Explain = %+v, %v; want a bypass because of hooks", v, err)
					}
					if !strings.Contains(v.Hint, tell.key) || !own && (!strings.Contains(v.Hint, hook) || !strings.Contains(v.Name, hook)) {
						e.Errorf("%q of %q; want that it tells of %s and %s", v.Hint, v.Name, hook, tell.key)
					}
					if i > 0 {
						continue
					}
					n := storm(e, eyes, db, who+".me", func(ctx context.Context) error { return read(ctx, db, who) })
					if st := flightpg.ReadStats(db); n != callers || st.Flights+st.Joins != 0 {
						e.Errorf("%d executions for %d callers, %d flights; want as many, and none", n, callers, st.Flights)
					}
				}
				// One after the other, on connections of their own.
				heard := func(db *sql.DB) map[string][]string {
					db.SetMaxIdleConns(0)
					l.hear()
					all := make(map[string][]string)
					for _, who := range tenants {
						if err := read(e.Context(), db, who); err != nil {
							e.Fatal(err)
						}
						all[who] = l.hear()
					}
					return all
				}
				beside := heard(pgxHandle(e, d.pool, h))
				if got := heard(d.handle(e, h)); !maps.EqualFunc(got, beside, slices.Equal) {
					e.Errorf("the hook hears %q; with pgx %q", got, beside)
				}

				if own && !d.pool {
					return // as with pgx, an open connection is anybody's
				}
				e.Concurrently(2*len(tenants), func(ctx context.Context, i int) error {
					for range 5 {
						if err := read(ctx, db, tenants[i%len(tenants)]); err != nil {
							return err
						}
					}
					return nil
				})
				if st := flightpg.ReadStats(db); st.Flights+st.Joins != 0 || len(st.Bypasses) != 1 {
					e.Errorf("%d flights, bypasses %v; want those because of hooks only", st.Flights, st.Bypasses)
				}
			})
		}
	}
}

// TestAsks_Doors asks at the other times at which pgx calls somebody: each ends sharing,
// and is named.
func TestAsks_Doors(t *testing.T) {
	env := stack.New(t, stack.Flightpg)
	env.SQL(things)
	for name, h := range map[string]hooks{
		"BeforeConnect": {before: func(ctx context.Context, _ *pgx.ConnConfig) error { ask(ctx); return nil }},
		"ResetSession":  {reset: func(ctx context.Context, _ *pgx.Conn) error { ask(ctx); return nil }},
		"ShouldPing":    {ping: func(ctx context.Context, _ *pgx.Conn) bool { ask(ctx); return false }},
		"DialFunc": {config: func(pc *pgx.ConnConfig) {
			pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				ask(ctx)
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
		}},
		"LookupFunc": {config: func(pc *pgx.ConnConfig) {
			pc.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
				ask(ctx)
				return net.DefaultResolver.LookupHost(ctx, host)
			}
		}},
		"ConnectTracer": {config: func(pc *pgx.ConnConfig) { pc.Tracer = tracer{} }},
		"BeforeAcquire": {pool: func(pc *pgxpool.Config) {
			//lint:ignore SA1019 pgxpool honours it
			pc.BeforeAcquire = func(ctx context.Context, _ *pgx.Conn) bool { ask(ctx); return true }
		}},
	} {
		for _, d := range doors {
			if h.pool != nil && !d.pool || testing.Short() && d.long {
				continue
			}
			t.Run(name+"/"+d.name, func(t *testing.T) {
				e := under(env, t)
				db := d.handle(e, h)
				for range 2 { // who resets and pings does so at the second use
					if err := readN(e.Context(), db); err != nil {
						e.Fatal(err)
					}
				}
				v, err := flightpg.Explain(e.Context(), db, "SELECT n FROM things")
				if err != nil || v.Reason != flightpg.ReasonHooks || !strings.Contains(v.Hint, "hooks_test.ownKey") || !strings.Contains(v.Name, "hooks_test.") {
					e.Errorf("Explain = %+v, %v; want a bypass because of a hook of this package's, and the key", v, err)
				}
			})
		}
	}
}

// ask is what a hook does that wants to know whose connection it is.
func ask(ctx context.Context) { ctx.Value(ownKey{}) }

// tracer asks when a connection is opened.
type tracer struct{}

func (tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

func (tracer) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	ask(ctx)
	return ctx
}
func (tracer) TraceConnectEnd(context.Context, pgx.TraceConnectEndData) {}
