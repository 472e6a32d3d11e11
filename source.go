package flightpg

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// source is where a connector's connections come from, and what is known of them.
type source struct {
	flights, sessions driver.Connector
	config            *pgx.ConnConfig // nil: they are not pgx's
	doors             bool            // foreign code gets the context for which a connection is opened or used, see hooks.go
	resets            bool            // … whenever one is used again, and the session with it
	fresh             bool            // no code but flightpg's and the hooks of its Config sees a connection first
	pooled            bool            // somebody else's pool has them: they are borrowed for as long as they are in use

	// handed is the source of one connection, which is handed over; nil where hooks
	// decide what for a connection is.
	handed func(flights bool, h *handover, from *pgconn.HijackedConn) driver.Connector
	sets   bool // foreign code may set a connection up when it is opened, or used again
}

// fromConfig is the source of new connections with pgx's config, which it may
// change, and the hooks of cfg. flightpg's parameters in it go to cfg.
func fromConfig(pc *pgx.ConnConfig, cfg *Config) (source, error) {
	if err := takeParams(pc, cfg); err != nil {
		return source{}, err
	}
	hooks := cfg.hooks()
	to := pc.Copy()
	if len(hosts(&pc.Config)) > 1 && primaryOnly(&pc.Config) {
		databaseOf(databaseName(&pc.Config)).passOld(to)
	}
	flights := cancelling(to)
	if flights.ConnectTimeout == 0 {
		flights.ConnectTimeout = dialLimit
	}
	s := source{
		flights:  stdlib.GetConnector(*flights, hooks...),
		sessions: stdlib.GetConnector(*to, hooks...),
		config:   pc,
		doors:    len(hooks) > 0 || hasDoors(pc),
		resets:   cfg.ResetSession != nil,
		fresh:    true,
		sets:     cfg.AfterConnect != nil || cfg.ResetSession != nil || setsUp(pc),
	}
	if cfg.BeforeConnect == nil {
		s.handed = func(forFlights bool, h *handover, from *pgconn.HijackedConn) driver.Connector {
			pc := to
			if forFlights {
				pc = flights
			}
			return stdlib.GetConnector(*handedOver(pc, h, from), hooks...)
		}
	}
	return s, nil
}

// setsUp reports whether code of a config's own gets at connections that are open.
func setsUp(pc *pgx.ConnConfig) bool {
	return pc.AfterConnect != nil || pc.ValidateConnect != nil && !pgxValidates(pc.ValidateConnect)
}

// takeParams takes flightpg's parameters out of a config that was parsed without
// knowing them, as settings for the server.
func takeParams(pc *pgx.ConnConfig, cfg *Config) error {
	var found []pair
	for key, value := range pc.RuntimeParams {
		if ours(key) {
			found = append(found, pair{key: key, value: value})
		}
	}
	for _, f := range found {
		delete(pc.RuntimeParams, f.key)
	}
	slices.SortFunc(found, func(a, b pair) int { return strings.Compare(a.key, b.key) }) // the same error each time
	return setParams(cfg, found)
}

// cancelling returns the config for flights, whose queries are cancelled when
// nobody waits any more, see cancel.go, and whose connections notice that the server has
// gone, see keepalive.go. A handler or dialer of the user's own stays.
func cancelling(pc *pgx.ConnConfig) *pgx.ConnConfig {
	fc := pc.Copy()
	if own := fc.BuildContextWatcherHandler; own == nil || sameFunc(own, defaultConfig().BuildContextWatcherHandler) {
		fc.BuildContextWatcherHandler = cancelRequest
	}
	noticing(fc)
	return fc
}

// defaultConfig is a config of pgx's that nobody has changed.
var defaultConfig = sync.OnceValue(func() *pgx.ConnConfig {
	pc, err := pgx.ParseConfig("host=/ user=nobody passfile=/ servicefile=/ sslmode=disable")
	if err != nil {
		return &pgx.ConnConfig{}
	}
	return pc
})

func sameFunc(f, g any) bool { return reflect.ValueOf(f).Pointer() == reflect.ValueOf(g).Pointer() }

// fromPool is the source of connections that a pool has.
func fromPool(pool *pgxpool.Pool, inner driver.Connector) source {
	pc := pool.Config()
	return source{
		flights:  inner,
		sessions: inner,
		config:   pc.ConnConfig,
		doors:    poolHasDoors(pc),
		pooled:   true,
	}
}

// fromConnector is the source over another connector.
func fromConnector(inner driver.Connector) source {
	s := source{flights: inner, sessions: inner, doors: true, resets: true, sets: true}
	v := reflect.ValueOf(inner)
	if v.Kind() != reflect.Struct || v.Type().PkgPath() != reflect.TypeFor[stdlib.Conn]().PkgPath() {
		return s
	}
	// pgx's own. stdlib gives no other way to ask than to look: it is a struct,
	// whose exported fields are the config and the hooks, which are functions of
	// stdlib's own by default. TestWrap_Pgx notices if that changes.
	field := func(name string, t reflect.Type) (reflect.Value, bool) {
		f := v.FieldByName(name)
		return f, f.IsValid() && f.Type() == t
	}
	resets := true // be careful where it is not the connector we know
	if hook, ok := field("ResetSession", typeOfReset); ok {
		resets = !stdlibsOwn(hook)
	}
	if pool, ok := field("pool", reflect.TypeFor[*pgxpool.Pool]()); ok && !pool.IsNil() {
		s = fromPool((*pgxpool.Pool)(pool.UnsafePointer()), inner)
		s.doors, s.resets = s.doors || resets, resets
		return s
	}
	config, ok := field("ConnConfig", reflect.TypeFor[pgx.ConnConfig]())
	if !ok {
		return s
	}
	pc := config.Interface().(pgx.ConnConfig)
	s.config, s.resets = &pc, resets
	before, opens := field("BeforeConnect", typeOfBefore)
	after, opened := field("AfterConnect", typeOfReset)
	ping, pings := field("ShouldPing", typeOfPing)
	s.doors = resets || !opens || !opened || !pings || !stdlibsOwn(before) || !stdlibsOwn(after) || !ping.IsNil() || hasDoors(&pc)
	s.sets = resets || !opened || !stdlibsOwn(after) || setsUp(&pc)
	fc := reflect.New(v.Type()).Elem()
	fc.Set(v)
	fc.FieldByName("ConnConfig").Set(reflect.ValueOf(*cancelling(&pc)))
	s.flights = fc.Interface().(driver.Connector)
	return s
}

var (
	typeOfBefore = reflect.TypeOf(Config{}.BeforeConnect)
	typeOfReset  = reflect.TypeOf(Config{}.ResetSession) // and of AfterConnect
	typeOfPing   = reflect.TypeOf(Config{}.ShouldPing)
)

// stdlibsOwn reports whether a hook is the one that does nothing.
func stdlibsOwn(hook reflect.Value) bool {
	name := runtime.FuncForPC(hook.Pointer()).Name()
	pkg := reflect.TypeFor[stdlib.Conn]().PkgPath()
	return strings.HasPrefix(name, pkg+".GetConnector.") || strings.HasPrefix(name, pkg+".GetPoolConnector.")
}

// registered is what names from stdlib.RegisterConnConfig begin with.
const registered = "registeredConnConfig"

// registeredConfig returns a copy of the config that stdlib.RegisterConnConfig
// gave the name to. stdlib keeps them to itself, so this looks into it, under
// its lock; TestRegisteredConfig notices if they are kept in another way.
func registeredConfig(name string) (*pgx.ConnConfig, error) {
	d := reflect.ValueOf(stdlib.GetDefaultDriver()).Elem()
	mu, configs := d.FieldByName("configMutex"), d.FieldByName("configs")
	if !mu.IsValid() || mu.Type() != reflect.TypeFor[sync.Mutex]() ||
		!configs.IsValid() || configs.Type() != reflect.TypeFor[map[string]*pgx.ConnConfig]() {
		return nil, errors.New("flightpg: this version of pgx keeps registered configs in a way that flightpg does not know: use flightpg.NewConnectorWithConfig")
	}
	lock := (*sync.Mutex)(mu.Addr().UnsafePointer())
	lock.Lock()
	defer lock.Unlock()
	config := configs.MapIndex(reflect.ValueOf(name))
	if !config.IsValid() || config.IsNil() {
		return nil, fmt.Errorf("flightpg: no config is registered under the name %sthat was given: call stdlib.RegisterConnConfig before sql.Open", quoted(name))
	}
	return (*pgx.ConnConfig)(config.UnsafePointer()).Copy(), nil
}

// parsed reports whether pgx will take the config: it insists on those that come
// from pgx.ParseConfig, and panics.
func parsed(pc *pgx.ConnConfig) bool {
	made := reflect.ValueOf(pc).Elem().FieldByName("createdByParseConfig")
	return !made.IsValid() || made.Kind() != reflect.Bool || made.Bool()
}

// databaseName identifies a database by its hosts, ports and name as the DSN
// has them, in any order.
func databaseName(pc *pgconn.Config) string {
	var b strings.Builder
	for _, h := range slices.Sorted(slices.Values(hosts(pc))) {
		b.WriteString(h)
		b.WriteByte(',')
	}
	return b.String() + "/" + pc.Database
}

// hosts returns the addresses that the config may connect to. pgx lists one
// several times when it tries it with and without TLS.
func hosts(pc *pgconn.Config) []string {
	var hs []string
	add := func(host string, port uint16) {
		if filepath.IsAbs(host) {
			host = filepath.Clean(host) // a socket's directory
		}
		h := net.JoinHostPort(host, strconv.Itoa(int(port)))
		if !slices.Contains(hs, h) {
			hs = append(hs, h)
		}
	}
	add(pc.Host, pc.Port)
	for _, f := range pc.Fallbacks {
		add(f.Host, f.Port)
	}
	return hs
}

// primaryOnly reports whether target_session_attrs makes sure that every
// session goes to the one server that takes writes. pgx keeps the parameter as
// the function that checks it.
func primaryOnly(pc *pgconn.Config) bool {
	return pc.ValidateConnect != nil &&
		(sameFunc(pc.ValidateConnect, pgconn.ValidateConnectTargetSessionAttrsPrimary) ||
			sameFunc(pc.ValidateConnect, pgconn.ValidateConnectTargetSessionAttrsReadWrite))
}
