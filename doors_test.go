package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// A door is a way in which pgx gives a caller's context to foreign code that makes a
// session the caller's.
type door struct {
	name   string
	resets bool // for each use anew
	open   func(t *testing.T, dsn string, cfg Config) (*Connector, error)
}

// tenantOf is what a hook finds out, of a context.
func tenantOf(ctx context.Context) (int, bool) {
	tenant, ok := ctx.Value(tenantKey{}).(int)
	return tenant, ok
}

func setTenant(ctx context.Context, exec func(context.Context, string) error) error {
	tenant, ok := tenantOf(ctx)
	if !ok {
		return exec(ctx, "SET search_path = public")
	}
	return exec(ctx, fmt.Sprintf("SET search_path = t%d", tenant))
}

func becomeTenant(ctx context.Context, conn *pgx.Conn) error {
	return setTenant(ctx, func(ctx context.Context, text string) error {
		_, err := conn.Exec(ctx, text)
		return err
	})
}

func becomeTenantPg(ctx context.Context, conn *pgconn.PgConn) error {
	return setTenant(ctx, func(ctx context.Context, text string) error {
		return conn.Exec(ctx, text).Close()
	})
}

// tenantNet is a network connection that is somebody's.
type tenantNet struct {
	net.Conn
	ctx context.Context //nolint:containedctx // what it was opened with
}

func netTenant(ctx context.Context, conn *pgconn.PgConn) error {
	return becomeTenantPg(context.WithoutCancel(conn.Conn().(tenantNet).ctx), conn)
}

// tenantTracer makes a connection its tenant's when it has been opened.
type tenantTracer struct{}

func (tenantTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (tenantTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}
func (tenantTracer) TraceConnectStart(ctx context.Context, _ pgx.TraceConnectStartData) context.Context {
	return ctx
}

func (tenantTracer) TraceConnectEnd(ctx context.Context, data pgx.TraceConnectEndData) {
	if data.Err == nil {
		_ = becomeTenant(ctx, data.Conn)
	}
}

// tenantConnector is what people write around a driver.
type tenantConnector struct {
	driver.Connector
	resets bool
}

func (c tenantConnector) Connect(ctx context.Context) (driver.Conn, error) {
	dc, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	conn := &tenantConn{Conn: dc.(*stdlib.Conn), resets: c.resets}
	return conn, becomeTenant(ctx, conn.Conn.Conn())
}

type tenantConn struct {
	*stdlib.Conn
	resets bool
}

func (c *tenantConn) ResetSession(ctx context.Context) error {
	err := c.Conn.ResetSession(ctx)
	if err == nil && c.resets {
		err = becomeTenant(ctx, c.Conn.Conn())
	}
	return err
}

func doors() []door {
	withConfig := func(name string, change func(*pgx.ConnConfig)) door {
		return door{name, false, func(t *testing.T, dsn string, cfg Config) (*Connector, error) {
			pc := parse(t, dsn)
			change(pc)
			return NewConnectorWithConfig(pc, cfg)
		}}
	}
	withHook := func(name string, resets bool, change func(*Config)) door {
		return door{name, resets, func(t *testing.T, dsn string, cfg Config) (*Connector, error) {
			change(&cfg)
			return NewConnector(dsn, cfg)
		}}
	}
	withPool := func(name string, change func(*pgxpool.Config)) door {
		return door{name, true, func(t *testing.T, dsn string, cfg Config) (*Connector, error) {
			pc, err := pgxpool.ParseConfig(dsn)
			if err != nil {
				return nil, err
			}
			pc.MaxConns = 16
			change(pc)
			pool, err := pgxpool.NewWithConfig(t.Context(), pc)
			if err != nil {
				return nil, err
			}
			t.Cleanup(pool.Close)
			return NewConnectorWithPool(pool, cfg)
		}}
	}
	wrapping := func(name string, resets bool, hooks ...stdlib.OptionOpenDB) door {
		return door{name, resets, func(t *testing.T, dsn string, cfg Config) (*Connector, error) {
			inner := stdlib.GetConnector(*parse(t, dsn), hooks...)
			if len(hooks) == 0 {
				inner = tenantConnector{inner, resets}
			}
			return Wrap(inner, cfg)
		}}
	}
	dial := func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		return tenantNet{conn, ctx}, err
	}
	return []door{
		withHook("Config.BeforeConnect", false, func(cfg *Config) {
			cfg.BeforeConnect = func(ctx context.Context, pc *pgx.ConnConfig) error {
				if tenant, ok := tenantOf(ctx); ok {
					pc.RuntimeParams = maps.Clone(pc.RuntimeParams)
					pc.RuntimeParams["search_path"] = fmt.Sprintf("t%d", tenant)
				}
				return nil
			}
		}),
		withHook("Config.AfterConnect", false, func(cfg *Config) { cfg.AfterConnect = becomeTenant }),
		withHook("Config.ResetSession", true, func(cfg *Config) { cfg.AfterConnect, cfg.ResetSession = becomeTenant, becomeTenant }),
		withHook("Config.ShouldPing", true, func(cfg *Config) {
			cfg.AfterConnect = becomeTenant
			cfg.ShouldPing = func(ctx context.Context, p stdlib.ShouldPingParams) bool { return becomeTenant(ctx, p.Conn) != nil }
		}),
		withConfig("AfterConnect", func(pc *pgx.ConnConfig) { pc.AfterConnect = becomeTenantPg }),
		withConfig("ValidateConnect", func(pc *pgx.ConnConfig) { pc.ValidateConnect = becomeTenantPg }),
		withConfig("AfterNetConnect", func(pc *pgx.ConnConfig) {
			pc.AfterNetConnect = func(ctx context.Context, _ *pgconn.Config, conn net.Conn) (net.Conn, error) {
				return tenantNet{conn, ctx}, nil
			}
			pc.AfterConnect = netTenant
		}),
		withConfig("DialFunc", func(pc *pgx.ConnConfig) {
			pc.DialFunc = dial
			pc.AfterConnect = netTenant
		}),
		withConfig("LookupFunc", func(pc *pgx.ConnConfig) {
			lookup := pc.LookupFunc
			var last sync.Map // address: tenant; one at a time, or it is somebody else's
			var one sync.Mutex
			pc.LookupFunc = func(ctx context.Context, host string) ([]string, error) {
				one.Lock()
				tenant, _ := tenantOf(ctx)
				last.Store("tenant", tenant)
				return lookup(ctx, host)
			}
			pc.AfterConnect = func(ctx context.Context, conn *pgconn.PgConn) error {
				tenant, _ := last.Load("tenant")
				one.Unlock()
				return conn.Exec(context.WithoutCancel(ctx), fmt.Sprintf("SET search_path = t%d", tenant)).Close()
			}
		}),
		withConfig("ConnectTracer", func(pc *pgx.ConnConfig) { pc.Tracer = tenantTracer{} }),
		withPool("pgxpool.PrepareConn", func(pc *pgxpool.Config) {
			pc.PrepareConn = func(ctx context.Context, conn *pgx.Conn) (bool, error) { return true, becomeTenant(ctx, conn) }
		}),
		withPool("pgxpool.BeforeAcquire", func(pc *pgxpool.Config) {
			//lint:ignore SA1019 pgxpool honours it
			pc.BeforeAcquire = func(ctx context.Context, conn *pgx.Conn) bool { return becomeTenant(ctx, conn) == nil }
		}),
		wrapping("stdlib.BeforeConnect", false, stdlib.OptionBeforeConnect(func(ctx context.Context, pc *pgx.ConnConfig) error {
			pc.AfterConnect = becomeTenantPg
			_, _ = tenantOf(ctx)
			return nil
		})),
		wrapping("stdlib.AfterConnect", false, stdlib.OptionAfterConnect(becomeTenant)),
		wrapping("stdlib.ResetSession", true, stdlib.OptionAfterConnect(becomeTenant), stdlib.OptionResetSession(becomeTenant)),
		wrapping("Wrap", false),
		wrapping("WrapResets", true),
	}
}

// TestDoors lets tenants read at once through handles whose sessions become the caller's,
// by each of the ways in which pgx hands his context to foreign code. Every row must be
// its reader's: nothing is shared, and sessions are used again for those only who would
// get the same ones. With a PartitionKey a tenant's callers share.
func TestDoors(t *testing.T) {
	const tenants = 4
	dsn := pgtest.Database(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	for i := range tenants {
		if _, err := admin.Exec(t.Context(), fmt.Sprintf("CREATE SCHEMA t%[1]d; CREATE TABLE t%[1]d.data (tenant int); INSERT INTO t%[1]d.data VALUES (%[1]d)", i)); err != nil {
			t.Fatal(err)
		}
	}
	// The same names are not the same things.
	if _, err := admin.Exec(t.Context(), fmt.Sprintf(`CREATE TABLE data (tenant int); INSERT INTO data VALUES (-1);
		CREATE FUNCTION t1.label() RETURNS text STABLE LANGUAGE sql AS $$ SELECT 'same' $$;
		CREATE SEQUENCE calls;
		CREATE FUNCTION t%d.label() RETURNS text VOLATILE LANGUAGE sql AS $$ SELECT nextval('public.calls')::text $$`, tenants-1)); err != nil {
		t.Fatal(err)
	}
	key := func(ctx context.Context) string { return fmt.Sprint(ctx.Value(tenantKey{})) }
	configs := map[string]Config{
		"":               {},
		"PartitionKey":   {PartitionKey: key},
		"LimitedParted":  {SessionConns: 6, FlightConns: 3, PartitionKey: key},
		"LimitedWithout": {SessionConns: 6, FlightConns: 3},
	}
	idles := []int{0, 2, 100}
	total := tenantReads(t)
	if testing.Short() {
		delete(configs, "LimitedParted")
		delete(configs, "LimitedWithout")
		idles = idles[:2]
	}
	var all atomic.Int64
	for _, d := range doors() {
		for name, cfg := range configs {
			for _, idle := range idles {
				// Most reads are where most can go wrong, and a connection serves many.
				reads := int(total) / (len(doors()) * len(configs) / 2 * (len(idles) - 1) * 2 * tenants)
				if cfg.PartitionKey == nil || idle == 0 {
					reads = min(reads, 6)
				}
				all.Add(int64(2 * tenants * (reads + 1)))
				t.Run(fmt.Sprintf("%s/%s/idle=%d", d.name, name, idle), func(t *testing.T) {
					c, err := d.open(t, dsn, cfg)
					if err != nil {
						t.Fatal(err)
					}
					db := sql.OpenDB(c)
					defer db.Close()
					db.SetMaxIdleConns(idle)
					db.SetMaxOpenConns(12)
					doorRace(t, db, tenants, reads)
					if c.depends.Load() == nil {
						t.Error("nobody has asked who the caller is")
					}
					if cfg.PartitionKey == nil {
						if st, want := ReadStats(db), uint64(2*tenants*(reads+1)); st.Bypasses[ReasonHooks]+st.Bypasses[ReasonSession]+st.Bypasses[ReasonCatalogUnavailable] != want {
							t.Errorf("bypasses %v; want %d because of hooks, or of a session that is kept, or before anybody knew", st.Bypasses, want)
						}
					} else if c.catalogs != nil {
						joinUnderLock(t, db, admin)
					}
					keptSessions(t, db, tenants)
				})
			}
		}
	}
	t.Logf("%d reads through %d doors", all.Load(), len(doors()))
}

// doorRace makes reads of several tenants at once.
func doorRace(t *testing.T, db *sql.DB, tenants, reads int) {
	t.Helper()
	var wg sync.WaitGroup
	var foreign, failed atomic.Int64
	for reader := range 2 * tenants {
		tenant := reader % tenants
		ctx := context.WithValue(t.Context(), tenantKey{}, tenant)
		wg.Go(func() {
			see := func(got int, err error) {
				if err != nil {
					if failed.Add(1) == 1 {
						t.Errorf("tenant %d: %v", tenant, err)
					}
				} else if got != tenant {
					foreign.Add(1)
				}
			}
			for range reads {
				var got int
				err := db.QueryRowContext(ctx, "SELECT tenant FROM data").Scan(&got)
				see(got, err)
			}
			// With pgx a connection is made its holder's when he gets it.
			conn, err := db.Conn(ctx)
			if err != nil {
				see(tenant, err)
				return
			}
			defer conn.Close()
			var got int
			err = conn.QueryRowContext(context.Background(), "SELECT tenant FROM data").Scan(&got)
			see(got, err)
		})
	}
	wg.Wait()
	if foreign.Load() != 0 {
		t.Errorf("%d reads saw another tenant's row", foreign.Load())
	}
}

// keptSessions has tenants change their sessions, which virtual connections then keep.
func keptSessions(t *testing.T, db *sql.DB, tenants int) {
	t.Helper()
	for i := range 3 * tenants {
		tenant := (i + 1) % tenants
		ctx := context.WithValue(t.Context(), tenantKey{}, tenant)
		var got int
		if err := db.QueryRowContext(ctx, "SELECT tenant FROM data").Scan(&got); err != nil || got != tenant {
			t.Errorf("tenant %d reads %d, %v, on a connection that may have a session of another's", tenant, got, err)
		}
		if _, err := db.ExecContext(ctx, "SET application_name = 'kept'"); err != nil {
			t.Error(err)
		}
	}
}

// joinUnderLock has several callers of one tenant read a table that is locked, until they
// have joined one flight; and the last tenant's calls must not be one.
func joinUnderLock(t *testing.T, db *sql.DB, admin *pgx.Conn) {
	t.Helper()
	eventually(t, "the tenant's reads are shared", func() bool { // until the catalog is there they bypass
		before := ReadStats(db).Flights
		var got int
		if err := db.QueryRowContext(context.WithValue(t.Context(), tenantKey{}, 1), "SELECT tenant FROM data").Scan(&got); err != nil || got != 1 {
			t.Errorf("read %d, %v; want 1", got, err)
		}
		return ReadStats(db).Flights > before
	})
	var wg sync.WaitGroup
	defer wg.Wait()
	tx, err := admin.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), "LOCK TABLE t1.data"); err != nil {
		t.Fatal(err)
	}
	before := ReadStats(db).Joins
	ctx := context.WithValue(t.Context(), tenantKey{}, 1)
	for range 3 {
		wg.Go(func() {
			var got int
			if err := db.QueryRowContext(ctx, "SELECT tenant FROM data").Scan(&got); err != nil || got != 1 {
				t.Errorf("read %d, %v; want 1", got, err)
			}
		})
	}
	eventually(t, "two join the flight of the first", func() bool { return ReadStats(db).Joins >= before+2 })
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	for tenant, want := range map[int]string{1: "coalesce", 3: "bypass"} {
		if v, err := Explain(context.WithValue(t.Context(), tenantKey{}, tenant), db, "SELECT label()"); err != nil || v.Decision() != want {
			t.Errorf("label() of tenant %d: %s (%v), %v; want %s", tenant, v.Decision(), v.Reason, err, want)
		}
	}
}

// askTenant is an AfterConnect hook that fails without a tenant.
func askTenant(ctx context.Context, conn *pgx.Conn) error {
	if _, ok := tenantOf(ctx); !ok {
		return errors.New("no tenant in the context")
	}
	return becomeTenant(ctx, conn)
}

// TestHooks_Explained: what has asked, and for what, can be read.
func TestHooks_Explained(t *testing.T) {
	dsn := pgtest.Database(t)
	for name, tc := range map[string]struct {
		cfg    Config
		ctx    context.Context
		reason Reason
		hint   []string
	}{
		"Asks":        {Config{AfterConnect: becomeTenant}, t.Context(), ReasonHooks, []string{"flightpg.becomeTenant", "flightpg.tenantKey", "PartitionKey"}},
		"Fails":       {Config{AfterConnect: askTenant}, t.Context(), ReasonHooks, []string{"flightpg.tenantKey", "no tenant in the context"}},
		"FailsAsking": {Config{AfterConnect: askTenant, PartitionKey: func(context.Context) string { return "" }}, t.Context(), ReasonHookFailed, []string{"no tenant in the context"}},
		"FailsWithoutAsking": {Config{AfterConnect: func(ctx context.Context, _ *pgx.Conn) error {
			if _, ok := ctx.Deadline(); !ok {
				return nil
			}
			return errors.New("too late in the day")
		}}, t.Context(), ReasonHookFailed, []string{"too late in the day"}},
		"Foreign": {Config{AfterConnect: func(context.Context, *pgx.Conn) error { return nil }}, foreignContext{t.Context()}, ReasonHooks, []string{"flightpg.foreignContext"}},
	} {
		t.Run(name, func(t *testing.T) {
			db, err := OpenDB(dsn, tc.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			v, err := Explain(tc.ctx, db, "SELECT 1")
			if err != nil || v.Coalesce || v.Reason != tc.reason {
				t.Fatalf("Explain = %+v, %v; want %v", v, err, tc.reason)
			}
			for _, want := range tc.hint {
				if !strings.Contains(v.Hint, want) {
					t.Errorf("hint %q; want it to name %q", v.Hint, want)
				}
			}
		})
	}
}

// foreignContext is a context that a hook may know.
type foreignContext struct{ context.Context }

// TestHooks_Foreign: a context of a foreign type reaches hooks as it is.
func TestHooks_Foreign(t *testing.T) {
	var seen, other atomic.Int64
	look := func(ctx context.Context, _ *pgx.Conn) error {
		if _, ok := ctx.(foreignContext); ok {
			seen.Add(1)
		} else {
			other.Add(1)
		}
		return nil
	}
	db, err := OpenDB(pgtest.Database(t), Config{AfterConnect: look, ResetSession: look})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	for range 3 {
		if _, err := db.ExecContext(foreignContext{t.Context()}, "SELECT 1"); err != nil {
			t.Fatal(err)
		}
		var n int
		if err := db.QueryRowContext(foreignContext{t.Context()}, "SELECT 1").Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
	if seen.Load() < 6 || other.Load() != 0 {
		t.Errorf("a hook saw %d contexts of the caller's and %d others; want 6 at least, and none", seen.Load(), other.Load())
	}
	if st := ReadStats(db); st.Flights != 0 || st.Bypasses[ReasonHooks] != 3 {
		t.Errorf("%d flights, bypasses %v; want each read to bypass because of hooks", st.Flights, st.Bypasses)
	}
}

// TestHooks_ForeignTenants: a hook that looks into a context of a foreign type makes
// sessions the caller's, and nobody has seen it ask. With pgx each call has a connection
// of its own where database/sql keeps none.
func TestHooks_ForeignTenants(t *testing.T) {
	become := func(ctx context.Context, conn *pgx.Conn) error {
		own, ok := ctx.(foreignContext)
		if !ok {
			return errors.New("not a context of this application")
		}
		tenant, _ := tenantOf(own.Context)
		_, err := conn.Exec(ctx, fmt.Sprintf("SET application_name = 'tenant %d'", tenant))
		return err
	}
	db, err := OpenDB(pgtest.Database(t), Config{AfterConnect: become})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	db.SetMaxIdleConns(0)
	var wg sync.WaitGroup
	for tenant := range 6 {
		ctx := foreignContext{context.WithValue(t.Context(), tenantKey{}, tenant)}
		wg.Go(func() {
			for range 10 {
				var got string
				err := db.QueryRowContext(ctx, "SELECT current_setting('application_name')").Scan(&got)
				if want := fmt.Sprintf("tenant %d", tenant); err != nil || got != want {
					t.Errorf("tenant %d reads as %q, %v", tenant, got, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestSuits: a session that was opened for one caller serves another only if all that was
// asked for has the same answer, or was asked for again.
func TestSuits(t *testing.T) {
	type key struct{ n int }
	many := make([]question, maxAsks)
	for i := range many {
		many[i] = question{key{i}, nil}
	}
	ctx := context.WithValue(t.Context(), key{1}, "a")
	for name, tc := range map[string]struct {
		then, now []question
		want      bool
	}{
		"Nothing":     {nil, nil, true},
		"Same":        {[]question{{key{1}, "a"}}, nil, true},
		"SameNothing": {[]question{{key{2}, nil}}, nil, true},
		"Other":       {[]question{{key{1}, "b"}}, nil, false},
		"OtherType":   {[]question{{key{1}, 1}}, nil, false},
		"Missing":     {[]question{{key{2}, "a"}}, nil, false},
		"Again":       {[]question{{key{1}, "b"}}, []question{{key{1}, "a"}}, true},
		"OneAgain":    {[]question{{key{1}, "b"}, {key{2}, "b"}}, []question{{key{1}, "a"}}, false},
		"NotEqual":    {[]question{{key{1}, []string{"a"}}}, nil, false},
		"TooMany":     {many, many, false},
	} {
		if got := suits(tc.then, tc.now, ctx); got != tc.want {
			t.Errorf("%s: %v; want %v", name, got, tc.want)
		}
	}
}

// TestHooks_PartitionKey: a PartitionKey may ask, and nothing of flightpg's own does: what
// hooks ask alone tells whether sessions depend on their callers.
func TestHooks_PartitionKey(t *testing.T) {
	dsn := pgtest.Database(t)
	for _, d := range []struct {
		name string
		cfg  Config
	}{
		{"AfterConnect", Config{AfterConnect: func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) }}},
		{"ResetSession", Config{ResetSession: func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) }}},
		{"Transaction", Config{Guard: GuardTransaction, AfterConnect: func(ctx context.Context, conn *pgx.Conn) error { return conn.Ping(ctx) }}},
	} {
		t.Run(d.name, func(t *testing.T) {
			asked := 0
			var mu sync.Mutex
			d.cfg.PartitionKey = func(ctx context.Context) string {
				mu.Lock()
				defer mu.Unlock()
				asked++
				return fmt.Sprint(ctx.Value(tenantKey{}))
			}
			c, err := NewConnector(dsn, d.cfg)
			if err != nil {
				t.Fatal(err)
			}
			db := c.OpenDB()
			defer db.Close()
			for tenant := range 3 {
				ctx := WithMode(context.WithValue(t.Context(), tenantKey{}, tenant), ModeStrict)
				var n int
				if err := db.QueryRowContext(ctx, "SELECT $1::int", tenant).Scan(&n); err != nil || n != tenant {
					t.Fatalf("read %d, %v; want %d", n, err, tenant)
				}
				if _, err := db.ExecContext(ctx, "CREATE TEMP TABLE IF NOT EXISTS mine ()"); err != nil {
					t.Fatal(err)
				}
				conn, err := db.Conn(ctx)
				if err != nil {
					t.Fatal(err)
				}
				if err := conn.QueryRowContext(context.Background(), "SELECT pg_backend_pid()").Scan(&n); err != nil {
					t.Fatal(err)
				}
				conn.Close()
				if err := Forget(ctx, db, "SELECT $1::int", tenant); err != nil {
					t.Fatal(err)
				}
				if v, err := Explain(ctx, db, "SELECT 1"); err != nil || !v.Coalesce {
					t.Fatalf("Explain = %+v, %v; want that it is shared", v, err)
				}
			}
			if d := c.depends.Load(); d != nil || asked == 0 {
				t.Errorf("asked %d times; %v; want that no session depends on its caller", asked, d)
			}
		})
	}
}

// TestHarmlessKeys: what is asked for in order to observe or to cancel does not count, and
// all else does.
func TestHarmlessKeys(t *testing.T) {
	type ctxKey struct{}
	var own int
	for _, key := range []any{nil, "tenant", 1, &own, ctxKey{}, struct{}{}, []int{1}, tenantKey{}} {
		if harmlessKey(key) {
			t.Errorf("%T counts as harmless", key)
		}
	}
	c := &Connector{source: &source{doors: true}, cfg: Config{}}
	ctx, cancel := context.WithTimeout(c.watch(t.Context()), time.Minute)
	defer cancel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	_, _ = net.DefaultResolver.LookupHost(ctx, "localhost")
	_ = context.Cause(ctx)
	if d := c.depends.Load(); d != nil {
		t.Errorf("the standard library has asked: %s", d.why())
	}
	if ctx.Value(tenantKey{}); c.depends.Load() == nil || !strings.Contains(c.depends.Load().why(), "tenantKey") {
		t.Error("a key of somebody's own does not count")
	}
}
