package hooks_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"database/sql"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/exaring/otelpgx"
	"github.com/google/uuid"
	pgxdecimal "github.com/jackc/pgx-shopspring-decimal"
	pgxzerolog "github.com/jackc/pgx-zerolog"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/multitracer"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jackc/pgx/v5/tracelog"
	"github.com/rs/zerolog"
	"github.com/shopspring/decimal"
	pgxuuid "github.com/vgarvardt/pgx-google-uuid/v5"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

const things = `CREATE TYPE mood AS ENUM ('calm', 'wild');
	CREATE TYPE part AS (n int, name text);
	CREATE TYPE level AS RANGE (subtype = int4);
	CREATE DOMAIN price AS numeric CHECK (VALUE >= 0);
	CREATE TABLE things (n int, id uuid, amount numeric(10, 2), mood mood, part part, level level, price price);
	INSERT INTO things VALUES (7, '5c3ef6a2-6ab2-4b4a-9b3b-0d6f3ad0a6f1', 12.34, 'wild', '(1,one)', '[1,5)', 3)`

// A kind is something that people hand to pgx and that does not ask whose connection it
// is.
type kind struct {
	name   string
	asks   []string // the types of the keys that pgx's callers are asked for, but for net's and context's
	pooled bool     // only pools have it
	read   func(ctx context.Context, db *sql.DB) error
	hooks  func(e *stack.Env) hooks
}

// after is a kind that has an AfterConnect hook only.
func after(hook func(context.Context, *pgx.Conn) error) func(*stack.Env) hooks {
	return func(*stack.Env) hooks { return hooks{after: hook} }
}

func readN(ctx context.Context, db *sql.DB) error {
	var n int
	if err := db.QueryRowContext(ctx, "SELECT n FROM things").Scan(&n); err != nil {
		return err
	}
	if n != 7 {
		return errors.New("another row than the one that there is")
	}
	return nil
}

var (
	thing  = uuid.MustParse("5c3ef6a2-6ab2-4b4a-9b3b-0d6f3ad0a6f1")
	amount = decimal.RequireFromString("12.34")
)

func readTypes(ctx context.Context, db *sql.DB) error {
	var id uuid.UUID
	var sum decimal.Decimal
	err := db.QueryRowContext(ctx, "SELECT id, amount FROM things WHERE id = $1", thing).Scan(&id, &sum)
	if err == nil && (id != thing || !sum.Equal(amount)) {
		err = errors.New("other values than those that there are")
	}
	return err
}

func readMoods(ctx context.Context, db *sql.DB) error {
	var mood, part, level, price string
	err := db.QueryRowContext(ctx, "SELECT mood, part, level, price FROM things WHERE mood = ANY($1)", []string{"calm", "wild"}).Scan(&mood, &part, &level, &price)
	if err == nil && mood+part+level+price != "wild(1,one)[1,5)3" {
		err = errors.New("other values than those that there are: " + mood + part + level + price)
	}
	return err
}

// loadTypes is how pgx's documentation registers types of a database.
func loadTypes(ctx context.Context, conn *pgx.Conn) error {
	for _, name := range []string{"mood", "_mood", "part", "_part", "level", "_level", "price", "_price"} {
		t, err := conn.LoadType(ctx, name)
		if err != nil {
			return err
		}
		conn.TypeMap().RegisterType(t)
	}
	return nil
}

// loadTypesAtOnce does the same in one trip.
func loadTypesAtOnce(ctx context.Context, conn *pgx.Conn) error {
	types, err := conn.LoadTypes(ctx, []string{"mood", "_mood", "part", "level", "price"})
	if err != nil {
		return err
	}
	conn.TypeMap().RegisterTypes(types)
	return nil
}

func prepare(ctx context.Context, conn *pgx.Conn) error {
	_, err := conn.Prepare(ctx, "one", "SELECT n FROM things")
	return err
}

func ping(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) }

// spans are what OpenTelemetry has seen.
func spans() (*tracetest.SpanRecorder, *sdktrace.TracerProvider) {
	seen := tracetest.NewSpanRecorder()
	return seen, sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(seen))
}

// traced is for callers that have a span, and hooks that run beside the tracer.
func traced(h hooks, more ...otelpgx.Option) func(*stack.Env) hooks {
	return func(*stack.Env) hooks {
		h := h
		seen, provider := spans()
		h.config = func(pc *pgx.ConnConfig) {
			pc.Tracer = otelpgx.NewTracer(append(more, otelpgx.WithTracerProvider(provider))...)
		}
		h.with = func(ctx context.Context) context.Context {
			ctx, _ = provider.Tracer("").Start(ctx, "request") //nolint:spancheck // it is not looked at
			return ctx
		}
		h.check = func(t testing.TB) {
			if !slices.ContainsFunc(seen.Ended(), func(s sdktrace.ReadOnlySpan) bool { return s.Name() == "connect" && s.Parent().IsValid() }) {
				t.Error("no connection is seen as its caller's")
			}
		}
		return h
	}
}

// syncBuffer may be written to by several at once.
type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// logged is for callers that have a logger of zerolog's.
func logged(h hooks) func(*stack.Env) hooks {
	return func(*stack.Env) hooks {
		h := h
		var lines syncBuffer
		h.config = func(pc *pgx.ConnConfig) {
			pc.Tracer = &tracelog.TraceLog{Logger: pgxzerolog.NewContextLogger(), LogLevel: tracelog.LogLevelTrace}
		}
		h.with = zerolog.New(&lines).With().Str("request", "r1").Logger().WithContext
		h.check = func(t testing.TB) {
			if got := lines.String(); !strings.Contains(got, `"request":"r1"`) || !strings.Contains(got, `"message":"Connect"`) {
				t.Errorf("the callers' logger has %q; want that it connects", got)
			}
		}
		return h
	}
}

func tracedAndLogged(e *stack.Env) hooks {
	t, l := traced(hooks{})(e), logged(hooks{})(e)
	return hooks{
		config: func(pc *pgx.ConnConfig) {
			t.config(pc)
			first := pc.Tracer
			l.config(pc)
			pc.Tracer = multitracer.New(first, pc.Tracer)
		},
		with:  func(ctx context.Context) context.Context { return l.with(t.with(ctx)) },
		check: func(tb testing.TB) { t.check(tb); l.check(tb) },
	}
}

// tokens is a service that gives out passwords, over HTTP/2.
func tokens(e *stack.Env) (*http.Client, string) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "token") }))
	srv.EnableHTTP2 = true
	srv.StartTLS()
	e.Cleanup(srv.Close)
	return srv.Client(), srv.URL
}

func fetch(ctx context.Context, client *http.Client, url string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// iam sets the password that a service gives for each connection, as for databases in a
// cloud. The callers trace HTTP, as those do who measure what a request waits for.
func iam(e *stack.Env) hooks {
	client, url := tokens(e)
	var traced atomic.Int64
	return hooks{
		before: func(ctx context.Context, pc *pgx.ConnConfig) (err error) {
			pc.Password, err = fetch(ctx, client, url)
			return err
		},
		with: func(ctx context.Context) context.Context {
			return httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
				GotConn:          func(httptrace.GotConnInfo) { traced.Add(1) },
				TLSHandshakeDone: func(tls.ConnectionState, error) { traced.Add(1) },
			})
		},
		check: func(t testing.TB) {
			if traced.Load() == 0 {
				t.Error("the callers' trace has seen nothing")
			}
		},
	}
}

// relay passes connections to a listener on to the database.
func relay(e *stack.Env, ln net.Listener) {
	e.Helper()
	pc, err := pgx.ParseConfig(e.DSN)
	if err != nil {
		e.Fatal(err)
	}
	network, addr := pgconn.NetworkAddress(pc.Host, pc.Port)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial(network, addr)
			if err != nil {
				client.Close()
				continue
			}
			pass := func(to, from net.Conn) {
				_, _ = io.Copy(to, from)
				to.Close()
				from.Close()
			}
			wg.Go(func() { pass(client, server) })
			wg.Go(func() { pass(server, client) })
		}
	})
	e.Cleanup(func() {
		ln.Close()
		wg.Wait()
	})
}

func listen(e *stack.Env) net.Listener {
	e.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		e.Fatal(err)
	}
	return ln
}

// tunnel dials by another host, as over SSH: what it gets for the database's address is a
// connection to that one.
func tunnel(e *stack.Env) hooks {
	ln := listen(e)
	relay(e, ln)
	ran := new(atomic.Int64)
	return hooks{ran: ran, config: func(pc *pgx.ConnConfig) {
		pc.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
			ran.Add(1)
			var d net.Dialer
			_, port, _ := net.SplitHostPort(ln.Addr().String())
			return d.DialContext(ctx, "tcp", net.JoinHostPort("localhost", port))
		}
	}}
}

// cloud dials as connectors of clouds do: it asks a service where to, then speaks TLS of
// its own with what is there.
func cloud(e *stack.Env) hooks {
	srv := httptest.NewTLSServer(nil)
	e.Cleanup(srv.Close)
	plain := listen(e)
	relay(e, tls.NewListener(plain, &tls.Config{Certificates: srv.TLS.Certificates}))
	trusted := srv.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs
	client, url := tokens(e)
	ran := new(atomic.Int64)
	return hooks{ran: ran, config: func(pc *pgx.ConnConfig) {
		pc.DialFunc = func(ctx context.Context, _, _ string) (net.Conn, error) {
			ran.Add(1)
			if _, err := fetch(ctx, client, url); err != nil {
				return nil, err
			}
			d := tls.Dialer{Config: &tls.Config{RootCAs: trusted, ServerName: "example.com"}}
			return d.DialContext(ctx, "tcp", plain.Addr().String())
		}
	}}
}

// resolve looks the host's name up itself.
func resolve(*stack.Env) hooks {
	ran := new(atomic.Int64)
	return hooks{ran: ran, config: func(pc *pgx.ConnConfig) {
		pc.LookupFunc = func(ctx context.Context, _ string) ([]string, error) {
			ran.Add(1)
			_, err := net.DefaultResolver.LookupHost(ctx, "localhost")
			return []string{"127.0.0.1"}, err
		}
	}}
}

// randomHost is for one of two names of the server, by stdlib's own hook.
func randomHost(*stack.Env) hooks {
	return hooks{
		before: stdlib.RandomizeHostOrderFunc,
		config: func(pc *pgx.ConnConfig) {
			pc.ValidateConnect = pgconn.ValidateConnectTargetSessionAttrsPrimary
			pc.Fallbacks = append(pc.Fallbacks, &pgconn.FallbackConfig{Host: "localhost", Port: pc.Port, TLSConfig: pc.TLSConfig})
		},
	}
}

var kinds = []kind{
	{name: "decimal", read: readTypes, hooks: after(func(_ context.Context, conn *pgx.Conn) error { pgxdecimal.Register(conn.TypeMap()); return nil })},
	{name: "uuid", read: readTypes, hooks: after(func(_ context.Context, conn *pgx.Conn) error { pgxuuid.Register(conn.TypeMap()); return nil })},
	{name: "LoadType", read: readMoods, hooks: after(loadTypes)},
	{name: "LoadTypes", read: readMoods, hooks: after(loadTypesAtOnce)},
	{name: "LoadTypeAtReset", read: readMoods, hooks: func(*stack.Env) hooks { return hooks{reset: loadTypes} }},
	{name: "statement_timeout", hooks: after(exec("SET statement_timeout = '1min'"))},
	{name: "TimeZone", hooks: after(exec("SET TIME ZONE 'Europe/Berlin'"))},
	{name: "SettingsByPgconn", hooks: func(*stack.Env) hooks {
		ran := new(atomic.Int64)
		set := pgExec("SET statement_timeout = '1min'; SET TIME ZONE 'UTC'")
		return hooks{ran: ran, config: func(pc *pgx.ConnConfig) {
			pc.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error { ran.Add(1); return set(ctx, conn) }
		}}
	}},
	{name: "Prepare", hooks: after(prepare)},
	{name: "PingAtReset", hooks: func(*stack.Env) hooks { return hooks{reset: ping} }},
	{name: "ShouldPing", hooks: func(*stack.Env) hooks {
		ran := new(atomic.Int64)
		return hooks{ran: ran, ping: func(_ context.Context, conn *pgx.Conn) bool { ran.Add(1); return !conn.IsClosed() }}
	}},
	{name: "BeforeAcquire", pooled: true, hooks: func(*stack.Env) hooks {
		ran := new(atomic.Int64)
		return hooks{ran: ran, pool: func(pc *pgxpool.Config) {
			//lint:ignore SA1019 pgxpool honours it
			pc.BeforeAcquire = func(ctx context.Context, conn *pgx.Conn) bool { ran.Add(1); return conn.Ping(ctx) == nil }
		}}
	}},
	{name: "IAM", asks: []string{httpKey}, hooks: iam},
	{name: "RandomizeHostOrder", hooks: randomHost},
	{name: "Tunnel", hooks: tunnel},
	{name: "Cloud", asks: []string{httpKey}, hooks: cloud},
	{name: "Lookup", hooks: resolve},
	{name: "otelpgx", asks: []string{spanKey, nameKey}, hooks: traced(hooks{})},
	{name: "otelpgxLoadType", asks: []string{spanKey, nameKey}, read: readMoods, hooks: traced(hooks{after: loadTypes})},
	{name: "otelpgxPing", asks: []string{spanKey, nameKey}, hooks: traced(hooks{after: prepare, reset: ping})},
	{name: "zerolog", asks: []string{loggerKey}, hooks: logged(hooks{})},
	{name: "zerologSET", asks: []string{loggerKey}, hooks: logged(hooks{after: exec("SET statement_timeout = '1min'")})},
	{name: "multitracer", asks: []string{spanKey, nameKey, loggerKey}, hooks: tracedAndLogged},
}

// TestShares hands each kind to flightpg by each way to open a database. Callers of one
// read, with what they have in their contexts, are one execution. With pgx each is its
// own, and it is seen there what the callers' contexts are asked for.
func TestShares(t *testing.T) {
	env := stack.New(t, stack.Flightpg)
	env.SQL(things)
	eyes := [2]*pgx.Conn{env.Connect(), env.Connect()}
	for _, k := range kinds {
		read := k.read
		if read == nil {
			read = readN
		}
		each := func(name, driver string, f func(e *stack.Env, h hooks)) {
			t.Run(k.name+"/"+name, func(t *testing.T) {
				e := under(env, t)
				e.Driver = driver
				h := k.hooks(e).count()
				f(e, h)
				if h.check != nil {
					h.check(t)
				} else if h.ran.Load() == 0 {
					t.Error("the hook was not called")
				}
			})
		}
		for _, d := range doors {
			if k.pooled && !d.pool || testing.Short() && d.long {
				continue
			}
			each(d.name, stack.Flightpg, func(e *stack.Env, h hooks) {
				db := d.handle(e, h)
				explained(e, db, h)
				n := storm(e, eyes, db, "things", func(ctx context.Context) error { return read(h.with(ctx), db) })
				if st := flightpg.ReadStats(db); n != 1 || len(st.Bypasses) != 0 {
					e.Errorf("%d executions for %d callers, bypasses %v; want one, and none", n, callers, st.Bypasses)
				}
				explained(e, db, h)
			})
		}
		for name, pool := range map[string]bool{"pgx": false, "pgxpool": true} {
			if k.pooled && !pool {
				continue
			}
			each(name, stack.Pgx, func(e *stack.Env, h hooks) { asks(e, pgxHandle(e, pool, h), h, read, k.asks) })
		}
	}
	t.Run("control", func(t *testing.T) {
		e := under(env, t)
		e.Driver = stack.Pgx
		db := pgxHandle(e, false, hooks{after: prepare})
		if n := storm(e, eyes, db, "things", func(ctx context.Context) error { return readN(ctx, db) }); n != callers {
			e.Errorf("%d executions with pgx; want %d", n, callers)
		}
	})
}

// explained fails unless a read of a caller's would be shared.
func explained(e *stack.Env, db *sql.DB, h hooks) {
	e.Helper()
	if v, err := flightpg.Explain(h.with(e.Context()), db, "SELECT n FROM things"); err != nil || v.Decision() != "coalesce" {
		e.Fatalf("Explain = %+v, %v; want coalesce", v, err)
	}
}

// asks fails unless a caller of pgx is asked for these keys, and at most for net's
// besides, when a connection is opened for him and used again.
func asks(e *stack.Env, db *sql.DB, h hooks, read func(context.Context, *sql.DB) error, want []string) {
	e.Helper()
	a := &asking{Context: h.with(e.Context())}
	for range 2 {
		if err := read(a, db); err != nil {
			e.Fatal(err)
		}
	}
	got := slices.DeleteFunc(a.asked(), func(key string) bool { return key == netKey || key == resolveKey })
	if want = slices.Sorted(slices.Values(want)); !slices.Equal(got, want) {
		e.Errorf("the context is asked for %q; want %q", got, want)
	}
}
