package flightpg

import (
	"context"
	"crypto/tls"
	"database/sql"
	"database/sql/driver"
	"net"
	"reflect"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

func parse(t *testing.T, dsn string) *pgx.ConnConfig {
	t.Helper()
	pc, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return pc
}

// flightConfig returns the config that flights connect with.
func flightConfig(t *testing.T, c *Connector) pgx.ConnConfig {
	t.Helper()
	f := reflect.ValueOf(c.source.flights).FieldByName("ConnConfig")
	if !f.IsValid() {
		t.Fatalf("%T has no config", c.source.flights)
	}
	return f.Interface().(pgx.ConnConfig)
}

// TestRegisteredConfig also holds that stdlib keeps the configs as
// registeredConfig thinks.
func TestRegisteredConfig(t *testing.T) {
	pc := parse(t, "host=a,b port=1 dbname=shop flight_mode=strict default_query_exec_mode=exec")
	name := stdlib.RegisterConnConfig(pc)
	t.Cleanup(func() { stdlib.UnregisterConnConfig(name) })
	db, err := sql.Open("flightpg", name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	c, err := connectorOf(db)
	if err != nil {
		t.Fatal(err)
	}
	if c.cfg.Mode != ModeStrict || c.viaStmt != viaStmt || Reason(c.off.Load()) != ReasonSeveralHosts || c.cfg.Database != "a:1,b:1,/shop" {
		t.Errorf("mode %v, via %d, off %v, database %q; want the registered config's", c.cfg.Mode, c.viaStmt, Reason(c.off.Load()), c.cfg.Database)
	}
	fc := flightConfig(t, c)
	if !sameFunc(fc.BuildContextWatcherHandler, cancelRequest) || fc.RuntimeParams["flight_mode"] != "" {
		t.Errorf("flights connect with %v; want a canceller, and no parameter of ours", fc.RuntimeParams)
	}
	if pc.RuntimeParams["flight_mode"] == "" {
		t.Error("the registered config was changed")
	}
	if _, err := sql.Open("flightpg", "registeredConnConfig-1"); err == nil || !strings.Contains(err.Error(), "RegisterConnConfig") {
		t.Errorf("sql.Open of an unknown name = %v; want what to do", err)
	}
}

func TestNewConnectorWithConfig(t *testing.T) {
	for _, pc := range []*pgx.ConnConfig{nil, {}, {Config: pgconn.Config{Host: "a"}}} {
		if _, err := NewConnectorWithConfig(pc, Config{}); err == nil || !strings.Contains(err.Error(), "pgx.ParseConfig") {
			t.Errorf("%+v: %v; want an error that says what to do", pc, err)
		}
	}
	pc := parse(t, "host=a password=secret flight_width=0")
	if _, err := NewConnectorWithConfig(pc, Config{}); err == nil || !strings.Contains(err.Error(), "flight_width") || strings.Contains(err.Error(), "secret") {
		t.Errorf("flight_width=0: %v; want an error of that", err)
	}
	own := func(*pgconn.PgConn) ctxwatch.Handler { return nil }
	pc = parse(t, "host=a flight_width=5")
	pc.BuildContextWatcherHandler = own
	c, err := NewConnectorWithConfig(pc, Config{Width: 3})
	if err != nil {
		t.Fatal(err)
	}
	if c.cfg.Width != 5 {
		t.Errorf("Width = %d; want the config's", c.cfg.Width)
	}
	if !sameFunc(flightConfig(t, c).BuildContextWatcherHandler, own) {
		t.Error("the user's handler was replaced")
	}
	pc.Host = "changed"
	if flightConfig(t, c).Host != "a" {
		t.Error("the config was not copied")
	}
}

// TestWrap_Pgx also holds that stdlib's connectors look as fromConnector thinks.
func TestWrap_Pgx(t *testing.T) {
	pool := func(change func(*pgxpool.Config)) *pgxpool.Pool {
		pc, err := pgxpool.ParseConfig("host=a port=1 dbname=shop")
		if err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(pc)
		}
		p, err := pgxpool.NewWithConfig(t.Context(), pc)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.Close)
		return p
	}
	config := *parse(t, "host=a port=1 dbname=shop")
	before := stdlib.OptionBeforeConnect(func(context.Context, *pgx.ConnConfig) error { return nil })
	after := stdlib.OptionAfterConnect(func(context.Context, *pgx.Conn) error { return nil })
	reset := stdlib.OptionResetSession(func(context.Context, *pgx.Conn) error { return nil })
	ping := stdlib.OptionShouldPing(func(context.Context, stdlib.ShouldPingParams) bool { return true })
	type test struct {
		name   string
		inner  driver.Connector
		pooled bool
		doors  bool // foreign code gets the contexts of callers
	}
	for _, tc := range []test{
		{"Config", stdlib.GetConnector(config), false, false},
		{"AfterConnect", stdlib.GetConnector(config, after), false, true},
		{"ShouldPing", stdlib.GetConnector(config, ping), false, true},
		{"BeforeConnect", stdlib.GetConnector(config, before), false, true},
		{"ResetSession", stdlib.GetConnector(config, reset), false, true},
		{"Pool", stdlib.GetPoolConnector(pool(nil)), true, false},
		{"PoolResetSession", stdlib.GetPoolConnector(pool(nil), reset), true, true},
		{"PoolBeforeConnect", stdlib.GetPoolConnector(pool(func(pc *pgxpool.Config) {
			pc.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return nil }
		})), true, true},
		{"PoolPrepareConn", stdlib.GetPoolConnector(pool(func(pc *pgxpool.Config) {
			pc.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) { return true, nil }
		})), true, true},
		{"PoolBeforeAcquire", stdlib.GetPoolConnector(pool(func(pc *pgxpool.Config) {
			//lint:ignore SA1019 pgxpool honours it
			pc.BeforeAcquire = func(context.Context, *pgx.Conn) bool { return true }
		})), true, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Wrap(tc.inner, Config{})
			if err != nil {
				t.Fatal(err)
			}
			if c.source.doors != tc.doors || c.off.Load() != uint32(ReasonNone) {
				t.Errorf("doors = %v, off = %v; want %v, none: nobody has asked yet", c.source.doors, Reason(c.off.Load()), tc.doors)
			}
			if c.cfg.Database != "a:1,/shop" || c.catalogs == nil || c.viaStmt != viaQuery || c.source.pooled != tc.pooled {
				t.Errorf("database %q, via %d, pooled %v; want all that pgx's config says", c.cfg.Database, c.viaStmt, c.source.pooled)
			}
			if tc.pooled != (c.cfg.Guard == GuardTransaction) {
				t.Errorf("Guard = %v", c.cfg.Guard)
			}
			if !tc.pooled && !sameFunc(flightConfig(t, c).BuildContextWatcherHandler, cancelRequest) {
				t.Error("flights do not cancel on the server")
			}
		})
	}
	hook := func(context.Context, *pgx.ConnConfig) error { return nil }
	for _, cfg := range []Config{{Guard: GuardSession}, {BeforeConnect: hook}} {
		if _, err := NewConnectorWithPool(pool(nil), cfg); err == nil {
			t.Errorf("NewConnectorWithPool(%+v): no error", cfg)
		}
	}
	if _, err := NewConnectorWithPool(nil, Config{}); err == nil {
		t.Error("NewConnectorWithPool(nil): no error")
	}
}

// TestConfig_PasswordStaysInside holds every error of a source to show no password.
func TestConfig_PasswordStaysInside(t *testing.T) {
	pc := parse(t, "host=127.0.0.1 port=1 password=hunter2 sslmode=disable connect_timeout=1")
	pc.TLSConfig = &tls.Config{}
	pc.DialFunc = func(context.Context, string, string) (net.Conn, error) { return nil, net.ErrClosed }
	c, err := NewConnectorWithConfig(pc, Config{})
	if err != nil {
		t.Fatal(err)
	}
	db := c.OpenDB()
	defer db.Close()
	if err := db.PingContext(t.Context()); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("Ping = %v; want an error without the password", err)
	}
}
