package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sync/singleflight"

	"github.com/flightpg/flightpg/internal/flight"
	"github.com/flightpg/flightpg/internal/pipeline"
)

func init() { sql.Register("flightpg", &Driver{}) }

// Driver is the database/sql driver, registered as "flightpg".
type Driver struct {
	c *Connector // set in the Driver that a Connector returns: how ReadStats finds it
}

var (
	_ driver.Driver        = (*Driver)(nil)
	_ driver.DriverContext = (*Driver)(nil)
	_ driver.Connector     = (*Connector)(nil)
)

// Open implements driver.Driver, for wrappers: database/sql calls OpenConnector. All
// connections of a DSN that are open at a time belong to one Connector.
func (d *Driver) Open(dsn string) (driver.Conn, error) { return openConn(dsn) }

// OpenConnector implements driver.DriverContext. It parses the DSN, so a bad
// one is an error of sql.Open.
func (d *Driver) OpenConnector(dsn string) (driver.Connector, error) {
	return NewConnector(dsn, Config{})
}

// Config are the settings of a connector. The zero value is the safe default.
// A parameter in the DSN, whose name is given with each field, comes before the
// field.
type Config struct {
	// Mode says which flights a read may join. The zero value is ModeFenced.
	// DSN: flight_mode=fenced|strict|join|off.
	Mode Mode

	// Width is how many flights of one key may run at a time; callers that may
	// join none of them wait together for the next. 0 means 2; at most 1000.
	// DSN: flight_width.
	Width int

	// MaxResult bounds one buffered result, in bytes of memory. A larger one
	// is streamed to one caller, and the others run their own query. 0 means
	// 1 MiB; negative: no result is shared. DSN: flight_max_result, with an
	// optional unit (kB, MB, GB: powers of 1024).
	MaxResult int64

	// Memory bounds all results that are buffered at a time, in bytes, and what is
	// kept for Window, keys and all. 0 means 64 MiB; negative is an error. DSN:
	// flight_memory, with an optional unit.
	Memory int64

	// FlightConns bounds the PostgreSQL connections that flights run on. Reads
	// that find none free wait, and more callers can join them. A quarter is for
	// reads that the pipeline cannot serve (see Executor), and with fewer than 4
	// there is none. 0 means no limit, as in database/sql. DSN: flight_conns.
	FlightConns int

	// SessionConns bounds the PostgreSQL connections for everything that is
	// not shared: writes, transactions, Conn, Ping. 0 means no limit. DSN:
	// session_conns.
	SessionConns int

	// Timeout bounds the execution of one flight, whatever its callers'
	// contexts say, waiting for a connection included. 0 means no limit. DSN:
	// flight_timeout, as 500ms or 5s.
	Timeout time.Duration

	// Guard says how flights are kept from writing. The zero value is
	// GuardAuto. Inner drivers other than pgx have none. DSN:
	// flight_guard=auto|session|transaction|off.
	Guard Guard

	// Executor says what runs flights. The zero value is ExecutorAuto. DSN:
	// flight_executor=auto|pipeline|generic.
	Executor Executor

	// CatalogTTL is how old the picture of the database's catalog may become.
	// It is also loaded again after DDL through this process; this is for the
	// DDL of others. It is loaded up to a quarter earlier, at random, by the next
	// read, which does not wait; a read that comes when it is twice as old, as after
	// a pause, does, for a second at most. 0 means 5 minutes; negative: no limit. DSN:
	// flight_catalog_ttl.
	CatalogTTL time.Duration

	// RLS lets reads of tables with row-level security be shared: it says that
	// every session of this connector (and partition) has the same identity and
	// the same settings that policies ask for. DSN: flight_rls=on|off.
	RLS bool

	// TrustDeclared believes what functions are declared: STABLE and IMMUTABLE ones
	// may be shared whatever they do. Without it their bodies are looked into as well,
	// as far as these can be read (SQL, PL/pgSQL, what other languages have statements
	// executed with): none is shared that calls, or may call, what must not be, or that
	// could write. DSN: flight_trust_declared=on|off.
	TrustDeclared bool

	// PartitionKey says which callers are alike: reads of different partitions
	// never share. It is called with each call's context, and must be quick
	// and safe for concurrent use. Give it where hooks set up sessions from
	// the context (a tenant, a role), or where connectors or dialers of your own do.
	// Then each PostgreSQL connection serves the partition only that it was opened for,
	// and names are looked up where the sessions of the partition do. Without it,
	// sharing ends as soon as a hook asks its context for anything but what is
	// harmless (a deadline, a trace span, a logger), and each connection of database/sql
	// has a PostgreSQL connection of its own, as with pgx.
	// Its panic is the call's error, a [*HookPanicError].
	PartitionKey func(context.Context) string

	// BeforeConnect is called before a connection is opened, with a copy of its
	// config to change. As stdlib.OptionBeforeConnect.
	BeforeConnect func(context.Context, *pgx.ConnConfig) error

	// AfterConnect is called when a connection has been opened, for flights
	// and for sessions: it may register types, or set what all connections
	// have in common. As stdlib.OptionAfterConnect.
	AfterConnect func(context.Context, *pgx.Conn) error

	// ResetSession is called before a connection is used again, with the
	// context of who takes it. As stdlib.OptionResetSession.
	ResetSession func(context.Context, *pgx.Conn) error

	// ShouldPing decides whether a connection is asked for a sign of life before
	// it is used again. By default it is after a second without use. As
	// stdlib.OptionShouldPing.
	ShouldPing func(context.Context, stdlib.ShouldPingParams) bool

	// Window is how long a finished result is given to further callers,
	// without asking the server. Under ModeFenced it ends with the next write
	// made through this process; ModeStrict never uses it. Writes made
	// elsewhere stay unseen for as long. What is kept makes room within Memory
	// for what is under way. 0, the default, keeps nothing. DSN: flight_window.
	Window time.Duration

	// IgnoreComments lets reads that differ in comments only share a flight,
	// which then runs with the comments of its leader: for applications in
	// which something adds a trace comment to each statement. DSN:
	// flight_ignore_comments=on|off.
	IgnoreComments bool

	// MaxIdle bounds the idle connections that each of the two pools keeps. 0
	// means 64; negative: none are kept. While the pipeline has reads under way it keeps
	// what is idle, until MaxIdleTime. It takes the place of DB.SetMaxIdleConns, which
	// here bounds virtual connections; but where that leaves no virtual
	// connection, no other is kept.
	MaxIdle int

	// MaxIdleTime closes a connection that was idle for so long. 0 means 5
	// minutes; negative: never. It takes the place of DB.SetConnMaxIdleTime. The
	// default does not close one that is kept for what somebody has SET.
	MaxIdleTime time.Duration

	// MaxLifetime closes a connection, when it is idle, that is older. 0 means
	// no limit. It takes the place of DB.SetConnMaxLifetime.
	MaxLifetime time.Duration

	// TrustNames are relations, as statements name them ("items", "shop.items", in lower
	// case where they are not quoted), which are tables, or views that only read; with
	// one, functions, operators and types are taken for built-in. "*" stands for all
	// names. It is for Wrap over drivers other than pgx, whose catalog cannot be asked,
	// and which have no guard: without it they share nothing that names a relation.
	TrustNames []string

	// Database names the database for Wrap, so that connectors to the same one
	// share their fences: a write through one is then seen by fenced reads
	// through the other. Without it, a wrapped connector stands alone. Not
	// used where there is a DSN, which says it.
	Database string
}

// withDefaults checks the config and fills in what is not set.
func (cfg Config) withDefaults() (Config, error) {
	check := func(field string, ok bool, want string) error {
		if ok {
			return nil
		}
		return fmt.Errorf("flightpg: Config.%s is out of range: use %s", field, want)
	}
	err := errors.Join(
		check("Mode", cfg.Mode <= ModeOff, "ModeFenced, ModeStrict, ModeJoin or ModeOff"),
		check("Guard", cfg.Guard <= GuardOff, "GuardAuto, GuardSession, GuardTransaction or GuardOff"),
		check("Executor", cfg.Executor <= ExecutorGeneric, "ExecutorAuto, ExecutorPipeline or ExecutorGeneric"),
		check("Width", cfg.Width >= 0 && cfg.Width <= maxWidth, "1 to 1000, or 0 for 2"),
		check("Memory", cfg.Memory >= 0, "a number of bytes, or 0 for 64 MiB"),
		check("FlightConns", cfg.FlightConns >= 0, "0 for no limit, or more"),
		check("SessionConns", cfg.SessionConns >= 0, "0 for no limit, or more"),
		check("Timeout", cfg.Timeout >= 0, "0 for no limit, or more"),
		check("Window", cfg.Window >= 0, "0 for none, or more"),
		check("MaxLifetime", cfg.MaxLifetime >= 0, "0 for no limit, or more"),
	)
	if err != nil {
		return cfg, err
	}
	if cfg.Executor == ExecutorAuto {
		cfg.Executor = autoExecutor
	}
	if cfg.Width == 0 {
		cfg.Width = 2
	}
	if cfg.MaxResult == 0 {
		cfg.MaxResult = 1 << 20
	}
	if cfg.Memory == 0 {
		cfg.Memory = 64 << 20
	}
	if cfg.CatalogTTL == 0 {
		cfg.CatalogTTL = 5 * time.Minute
	}
	if cfg.MaxIdle == 0 {
		cfg.MaxIdle = 64
	}
	if cfg.MaxIdleTime == 0 {
		cfg.MaxIdleTime = 5 * time.Minute
	}
	return cfg, nil
}

// Connector is a driver.Connector that coalesces identical reads. Flights are
// shared between the connections of one Connector, never between Connectors.
// It is safe for concurrent use, by several handles too; sql.DB.Close closes it, and where
// a wrapper hides that, it rests when its last connection is closed.
type Connector struct {
	cfg       Config
	driver    *Driver
	off       atomic.Uint32              // a Reason; not ReasonNone: nothing is shared
	depends   atomic.Pointer[dependence] // of sessions on their callers, or nil
	hookErr   atomic.Pointer[error]      // see hookError
	alone     aloneness                  // of the first reads of texts
	viaStmt   byte                       // how prepared statements run: viaQuery where pgx makes no difference
	db        *database
	table     *flight.Table[*result]
	verdicts  *verdictCache
	catalogs  *catalogs // nil: there is none to be had
	budget    budget
	streaming atomic.Int64 // results that are streamed though they could be buffered, now
	stats     counters

	types  atomic.Pointer[typeFacts] // how arguments are encoded; nil: not known yet
	shapes pipeline.Shapes           // of what sessions have described

	closedStmts closedStmts
	describing  singleflight.Group // of statements, for their parameters

	noSessionLayer bool // for a test that must fail without it

	source *source  // by reference: what prints the connector does not print pgx's config
	follow *primary // where there are several hosts

	virtual atomic.Int64 // how many connections database/sql has
	direct  atomic.Bool  // no pooler stands before the server
	told    atomic.Bool  // database/sql says when it puts them back: see conn.hidden

	stains    atomic.Bool   // sessions cannot be cleaned, see clean.go
	cleanedBy atomic.Uint64 // the last picture of the catalog for which it was found that they can
	keptIdle  time.Duration // MaxIdleTime as it was set, for what somebody counts on

	standby atomic.Bool // the last connection that told leads to a hot standby

	paths   atomic.Uint64 // how often it has changed where flight sessions look for names
	judged  atomic.Uint64 // the last picture of the catalog before that
	parting partitions    // where those of each partition do

	open   sync.Once // opens the pools, at the first connection
	opened atomic.Bool
	closed atomic.Bool // by one handle, and not used by another since
	shut   atomic.Bool // the pools are, see life
	life   life

	// Set by open.
	flights  *pool
	sessions *sessionPool
	exec     executor
	pipe     *pipelineExecutor // nil: flights go through exec only
}

// NewConnector makes a connector for a DSN in any form that pgx takes: a URL,
// keywords and values, or a name from stdlib.RegisterConnConfig. flightpg's own
// parameters in the DSN come before cfg.
func NewConnector(dsn string, cfg Config) (*Connector, error) {
	if strings.HasPrefix(dsn, registered) {
		pc, err := registeredConfig(dsn)
		if err != nil {
			return nil, err
		}
		return NewConnectorWithConfig(pc, cfg)
	}
	rest, found, err := splitDSN(dsn)
	if err != nil {
		return nil, err
	}
	if err = setParams(&cfg, found); err != nil {
		return nil, err
	}
	pc, err := pgx.ParseConfig(rest)
	if err != nil {
		return nil, err
	}
	return NewConnectorWithConfig(pc, cfg)
}

// NewConnectorWithConfig makes a connector for a config from pgx.ParseConfig,
// with all that a DSN cannot say: a tracer, a dialer, TLS. It copies pc.
// flightpg's parameters among its RuntimeParams come before cfg, and go no
// further.
func NewConnectorWithConfig(pc *pgx.ConnConfig, cfg Config) (*Connector, error) {
	if pc == nil || !parsed(pc) {
		return nil, errors.New("flightpg: NewConnectorWithConfig needs a config made by pgx.ParseConfig")
	}
	src, err := fromConfig(pc.Copy(), &cfg)
	if err != nil {
		return nil, err
	}
	return newConnector(src, cfg)
}

// NewConnectorWithPool makes a connector whose connections, for flights and for
// sessions, all come from a pool that others use too. They go back to it as soon
// as they are not in use; those whose session may have been changed are closed
// instead. So that no setting reaches the others, flights are guarded by
// transactions of their own: cfg.Guard must not be GuardSession. Limits, hooks
// for connecting and lifetimes are the pool's. Closing the connector does not
// close the pool.
func NewConnectorWithPool(pool *pgxpool.Pool, cfg Config) (*Connector, error) {
	if pool == nil {
		return nil, errors.New("flightpg: NewConnectorWithPool needs a pool, not nil")
	}
	if cfg.BeforeConnect != nil || cfg.AfterConnect != nil || cfg.ShouldPing != nil {
		return nil, errors.New("flightpg: Config.BeforeConnect, AfterConnect and ShouldPing are the pool's with NewConnectorWithPool: set them in its pgxpool.Config")
	}
	src := fromPool(pool, stdlib.GetPoolConnector(pool, cfg.hooks()...))
	src.doors, src.resets = src.doors || cfg.ResetSession != nil, cfg.ResetSession != nil
	return newConnector(src, cfg)
}

// Wrap makes a connector over another one, of any driver. pgx's own
// (stdlib.GetConnector, stdlib.GetPoolConnector) give the most: their config
// names the database, their hooks are seen, and flights are guarded. Under what wraps
// pgx (a tracer, a logger) its connections are looked for: the catalog is asked through
// them, and flights are guarded, behind a pooler not shared; rows are scanned from
// driver.Values. With other drivers, and where pgx is hidden, only what the text of a
// statement proves is shared: nothing that names a table, which could be a view that
// writes. See Config.TrustNames. The hooks in cfg are not used.
func Wrap(inner driver.Connector, cfg Config) (*Connector, error) {
	if inner == nil {
		return nil, errors.New("flightpg: Wrap needs a driver.Connector, not nil")
	}
	return newConnector(fromConnector(inner), cfg)
}

// turnOff ends sharing. The first reason stays; but settings can be changed again.
func (c *Connector) turnOff(why Reason) {
	if c.off.CompareAndSwap(uint32(ReasonNone), uint32(why)) && why == ReasonSettings {
		time.AfterFunc(settingsPause, func() { c.off.CompareAndSwap(uint32(ReasonSettings), uint32(ReasonNone)) })
	}
}

// settingsPause is how long reads bypass when a session reads another SQL than the text
// rules do, before the next one is looked at.
const settingsPause = time.Second

// hooks returns the config's hooks as pgx takes them.
func (cfg *Config) hooks() (opts []stdlib.OptionOpenDB) {
	if cfg.BeforeConnect != nil {
		opts = append(opts, stdlib.OptionBeforeConnect(cfg.BeforeConnect))
	}
	if cfg.AfterConnect != nil {
		opts = append(opts, stdlib.OptionAfterConnect(orClosed(cfg.AfterConnect)))
	}
	if cfg.ResetSession != nil {
		opts = append(opts, stdlib.OptionResetSession(cfg.ResetSession))
	}
	if cfg.ShouldPing != nil {
		opts = append(opts, stdlib.OptionShouldPing(cfg.ShouldPing))
	}
	return opts
}

// orClosed returns an AfterConnect hook that closes the connection where hook fails
// or panics: stdlib would leave it to the server.
func orClosed(hook func(context.Context, *pgx.Conn) error) func(context.Context, *pgx.Conn) error {
	return func(ctx context.Context, conn *pgx.Conn) error {
		ok := false
		defer func() {
			if !ok {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closePatience)
				defer cancel()
				_ = conn.Close(ctx)
			}
		}()
		err := hook(ctx, conn)
		ok = err == nil
		return err
	}
}

// newConnector makes a connector over a source.
func newConnector(src source, cfg Config) (*Connector, error) {
	keptIdle := max(cfg.MaxIdleTime, 0)
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if key := cfg.PartitionKey; key != nil {
		cfg.PartitionKey = panicking(key)
	}
	if src.pooled {
		if cfg.Guard == GuardSession {
			return nil, errors.New("flightpg: flight_guard=session would change connections that a pool gives to others: use auto or transaction")
		}
		if cfg.Guard == GuardAuto {
			cfg.Guard = GuardTransaction
		}
		cfg.MaxIdle = -1
	}
	pc := src.config
	if pc != nil {
		cfg.Database = databaseName(&pc.Config)
	}
	c := &Connector{
		cfg:      cfg,
		source:   &src,
		keptIdle: keptIdle,
		viaStmt:  viaStmt,
		db:       databaseOf(cfg.Database),
		verdicts: newVerdictCache(rules{ignoreComments: cfg.IgnoreComments, rls: cfg.RLS, noCatalog: pc == nil && slices.Contains(cfg.TrustNames, allNames), trusted: trustedNames(pc, cfg.TrustNames)}),
		budget:   budget{limit: cfg.Memory, large: largeResult},
	}
	c.driver = &Driver{c: c}
	c.table = flight.New[*result](&c.db.Epoch, flight.Options{Width: cfg.Width, Window: cfg.Window, Take: c.budget.take, Give: c.budget.give, Overdue: c.overdue})
	c.budget.makeRoom = c.table.MakeRoom
	if pc == nil {
		if cfg.Executor == ExecutorPipeline {
			return nil, fmt.Errorf("flightpg: flight_executor=pipeline cannot be used: %s", c.noPipeline())
		}
		if !slices.Contains(cfg.TrustNames, allNames) {
			c.askCatalog()
		}
		return c, nil
	}
	if cfg.AfterConnect == nil && cfg.ResetSession == nil && src.fresh && pc.Tracer == nil {
		c.types.Store(plainTypes) // nobody gets at a type map
	}
	c.askCatalog()
	if pc.DefaultQueryExecMode == pgx.QueryExecModeCacheStatement && pc.StatementCacheCapacity > 0 {
		c.viaStmt = viaQuery // pgx prepares every query, and finds the one it has by its text
	}
	if len(hosts(&pc.Config)) > 1 {
		if primaryOnly(&pc.Config) {
			c.follow = &c.db.primary
		} else {
			c.turnOff(ReasonSeveralHosts)
		}
	}
	if why := c.noPipeline(); why != "" && cfg.Executor == ExecutorPipeline {
		return nil, fmt.Errorf("flightpg: flight_executor=pipeline cannot be used: %s", why)
	}
	return c, nil
}

func (c *Connector) askCatalog() {
	c.catalogs = &catalogs{db: c.db, ttl: c.cfg.CatalogTTL, load: c.loadCatalog, hooks: c.source.doors}
	c.verdicts.found = c.catalogs.found
}

// allNames is in Config.TrustNames for all.
const allNames = "*"

// trustedNames is judge.Options.Trusted for a connector.
func trustedNames(pc *pgx.ConnConfig, names []string) func(schema, name string) bool {
	if pc != nil || len(names) == 0 {
		return nil
	}
	return func(schema, name string) bool {
		if schema != "" {
			name = schema + "." + name
		}
		return slices.Contains(names, name)
	}
}

// OpenDB opens a database handle for a DSN and sets its pool as flightpg likes
// it: connections there are virtual and cost next to nothing, so there is no
// limit on open ones and a large one on idle ones. PostgreSQL's connections are
// bounded by Config.FlightConns and Config.SessionConns.
func OpenDB(dsn string, cfg Config) (*sql.DB, error) {
	c, err := NewConnector(dsn, cfg)
	if err != nil {
		return nil, err
	}
	return c.OpenDB(), nil
}

// maxIdleVirtual is how many idle virtual connections OpenDB's handles keep.
const maxIdleVirtual = 10_000

// OpenDB opens a database handle over the connector, as the function OpenDB
// does.
func (c *Connector) OpenDB() *sql.DB {
	db := sql.OpenDB(c)
	db.SetMaxIdleConns(maxIdleVirtual)
	return db
}

// Connect implements driver.Connector. It asks nobody: a virtual connection
// takes a PostgreSQL connection when it needs one.
func (c *Connector) Connect(ctx context.Context) (driver.Conn, error) {
	c.enterUse()
	return &conn{c: c, checkout: ctx, direct: directly()}, nil
}

// directly reports whether database/sql itself has called Connect, and so has the
// connection as it is.
func directly() bool {
	var caller [1]uintptr
	if runtime.Callers(3, caller[:]) == 0 {
		return false
	}
	frame, _ := runtime.CallersFrames(caller[:]).Next()
	return strings.HasPrefix(frame.Function, "database/sql.")
}

func (c *Connector) openPools() {
	pipelined := c.cfg.Executor != ExecutorGeneric && c.noPipeline() == ""
	kept := 0
	if pipelined { // the rest is the pipeline's, unless it turns out to serve nothing here
		kept = c.cfg.FlightConns - c.cfg.FlightConns/minPipelineConns
	}
	open := func(inner driver.Connector, flights bool, limit, kept int) *pool {
		sc := sessionConnector{inner: inner, follow: c.follow, flights: flights, pooled: c.source.pooled, guard: c.cfg.Guard, c: c}
		if flights {
			sc.dials = newDials(c.source)
		}
		return newPool(sc, limits{open: limit, kept: kept, idle: c.cfg.MaxIdle, idleTime: max(c.cfg.MaxIdleTime, 0), lifetime: c.cfg.MaxLifetime})
	}
	c.flights = open(c.source.flights, true, c.cfg.FlightConns, kept)
	c.sessions = newSessionPool(open(c.source.sessions, false, c.cfg.SessionConns, 0), c)
	c.flights.other, c.sessions.db.other = c.sessions.db, c.flights
	c.exec = &poolExecutor{db: c.flights, budget: &c.budget, maxResult: c.cfg.MaxResult, prepared: c.viaStmt == viaStmt, off: c.turnOff, mayStream: c.mayStream}
	if pipelined {
		c.pipe = newPipelineExecutor(c)
		c.flights.pipe = c.pipe.Pool
		c.verdicts.pipe.Store(c.pipe.Pool)
	}
	c.opened.Store(true)
	// Who uses a connector first is likely to read. Hooks must see a caller's context, so
	// with these the first read asks.
	if c.catalogs != nil && !c.catalogs.hooks && c.cfg.Mode != ModeOff && c.off.Load() == uint32(ReasonNone) {
		c.catalogs.wanted(context.Background())
	}
}

// String says which database it is for.
func (c *Connector) String() string { return "flightpg.Connector(" + c.cfg.Database + ")" }

// Format implements fmt.Formatter: with any verb it prints String, and never what
// pgx's config in it holds, a password.
func (c *Connector) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// Driver implements driver.Connector.
func (c *Connector) Driver() driver.Driver { return c.driver }

// Fence makes every fenced read from now on see what is in the database at
// this moment: it joins no flight that is under way, and no kept result. Call
// it after a write that did not go through flightpg in this process, or when
// told of one. It serves all connectors to the same database. The error says
// that db was not opened with flightpg.
func Fence(db *sql.DB) error {
	c, err := connectorOf(db)
	if err != nil {
		return err
	}
	c.db.Raise()
	return nil
}

// Forget makes the flight of one query and its arguments take no new followers:
// the next caller's rows are read anew, in every mode. Callers that wait for it
// keep it. ctx says which partition, where there is a Config.PartitionKey. The
// error says that db was not opened with flightpg, or that an argument cannot be
// part of a key, so that there is no such flight.
func Forget(ctx context.Context, db *sql.DB, query string, args ...any) error {
	c, err := connectorOf(db)
	if err != nil {
		return err
	}
	named := make([]driver.NamedValue, len(args))
	for i, a := range args {
		named[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
		if n, ok := a.(sql.NamedArg); ok {
			named[i].Name, named[i].Value = n.Name, n.Value
		}
	}
	if c.source.config != nil {
		query, named = positional(query, named)
	}
	for _, via := range slices.Compact([]byte{viaQuery, c.stmtsVia(query)}) {
		r := &read{via: via, query: query, args: named, v: c.verdicts.get(query, c.peek(ctx))}
		var large [][]byte
		for _, how := range []keying{{}, {large: &large}} { // it may be known by both
			key, why := how.appendKey(nil, via, partitionOf(ctx, c.cfg.PartitionKey), r.args)
			if why == reasonConvert {
				large = nil
				key, why = c.convertedKey(ctx, nil, r, how)
			}
			if why != ReasonNone {
				return fmt.Errorf("flightpg: no flight to forget: the arguments are never shared (%v)", why)
			}
			k := flight.Key{Text: r.v.keyed, Args: key}
			if large != nil {
				k.Large = &flight.Large{Parts: large, Digest: digestOf}
			}
			c.table.Forget(k)
		}
	}
	return nil
}

func connectorOf(db *sql.DB) (*Connector, error) {
	if db != nil {
		if d, ok := db.Driver().(*Driver); ok && d.c != nil {
			return d.c, nil
		}
	}
	return nil, errors.New(`flightpg: the database handle was not opened with flightpg: use flightpg.OpenDB or sql.Open("flightpg", …)`)
}

// databases are the databases of this process that somebody has open: what is kept of
// one goes with its last connector.
var databases = struct {
	mu sync.Mutex // guards m
	m  map[string]weak.Pointer[database]
}{m: make(map[string]weak.Pointer[database])}

// databaseOf returns what all connectors to a database share.
func databaseOf(name string) *database {
	if name == "" {
		return new(database)
	}
	databases.mu.Lock()
	defer databases.mu.Unlock()
	if d := databases.m[name].Value(); d != nil {
		return d
	}
	d := new(database)
	databases.m[name] = weak.Make(d)
	runtime.AddCleanup(d, forgetDatabase, name)
	return d
}

func forgetDatabase(name string) {
	databases.mu.Lock()
	defer databases.mu.Unlock()
	if databases.m[name].Value() == nil { // it may be open again
		delete(databases.m, name)
	}
}
