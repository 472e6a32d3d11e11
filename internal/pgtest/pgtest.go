// Package pgtest starts throw-away PostgreSQL servers for tests and examples.
//
// A server takes about a second to start, listens on loopback only, and does
// not outlive the process that started it, however that process ends. Nothing
// has to be set up: [Start] takes the first server it can find, in this order:
//
//  1. the server that FLIGHTPG_TEST_DSN names. It is used as it is: databases
//     with random names are created and dropped, nothing else of it is touched;
//  2. the programs in the directory FLIGHTPG_PGBIN;
//  3. the programs beside the initdb on PATH;
//  4. the newest ones where packages put them (Debian, Red Hat, Homebrew);
//  5. those that scripts/fetch-postgres put into the checkout's .cache;
//  6. Docker, with the image FLIGHTPG_TEST_IMAGE or else postgres:17-alpine.
//
// Where there is none, the error says what to run. No test is ever skipped for
// want of a server: [New] and [Shared] fail it.
//
// Servers of this package trust every local user and give up durability: keep
// nothing in them.
//
// Reading order: pgtest.go (servers and databases) → testing.go (for tests) →
// find.go (which server) → cluster.go (initdb, start, stop, sweep) → child.go
// (processes that end with their parent) → container.go, external.go.
package pgtest

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"net"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// The environment variables that choose a server.
const (
	EnvDSN   = "FLIGHTPG_TEST_DSN"   // a running server, as a URL or in keyword/value form
	EnvBin   = "FLIGHTPG_PGBIN"      // a directory with initdb and postgres
	EnvImage = "FLIGHTPG_TEST_IMAGE" // a container image that behaves like Docker's official postgres
)

// DefaultImage is the container image used when FLIGHTPG_TEST_IMAGE is unset.
const DefaultImage = "postgres:17-alpine"

// startTimeout bounds a start or a restart whose context has no deadline. It
// leaves room for pulling an image.
const startTimeout = 3 * time.Minute

// An Option changes how a server is started.
type Option func(*options)

type options struct {
	settings  []setting
	preload   []string
	files     []file
	standbyOf *Server
	binDir    string
	docker    bool
}

// programsOnly returns the error of options that only a server from PostgreSQL's
// programs on this machine can follow.
func (o *options) programsOnly(other string) error {
	if o.standbyOf == nil && len(o.files) == 0 {
		return nil
	}
	return fmt.Errorf("WithFile and WithStandbyOf are %w by %s: they need PostgreSQL's programs on this machine", errors.ErrUnsupported, other)
}

type (
	setting struct{ name, value string }
	file    struct{ name, content string }
)

// WithSetting sets a line of postgresql.conf. The value is taken literally and
// needs no quotes; the last one of a name wins.
//
// With FLIGHTPG_TEST_DSN it becomes a setting of the databases made there, and
// starting fails if that is not possible and the server has another value.
func WithSetting(name, value string) Option {
	return func(o *options) { o.settings = append(o.settings, setting{name, value}) }
}

// WithPreload adds to shared_preload_libraries those of the named extensions,
// such as pg_stat_statements, that the server has files for. Ask
// [Server.HasExtension] which those are. It does nothing with FLIGHTPG_TEST_DSN.
func WithPreload(extensions ...string) Option {
	return func(o *options) { o.preload = append(o.preload, extensions...) }
}

// WithFile writes a file into the data directory before the server starts, in
// place of what initdb made: pg_hba.conf, or a certificate. It belongs to the
// server's user, and nobody else can read it. Whatever pg_hba.conf says must let
// user postgres in from loopback without a password: Database needs it.
//
// The error of Start matches [errors.ErrUnsupported] unless the server runs from
// PostgreSQL's programs on this machine.
func WithFile(name, content string) Option {
	return func(o *options) { o.files = append(o.files, file{name, content}) }
}

// WithStandbyOf makes the server a hot standby: it starts with a copy of the
// primary's data and follows it (asynchronously) until it is told
//
//	SELECT pg_promote()
//
// The primary is restarted for the copy, which ends its sessions. Both must be
// of one version, and run from PostgreSQL's programs on this machine; else the
// error of Start matches [errors.ErrUnsupported].
func WithStandbyOf(primary *Server) Option {
	return func(o *options) { o.standbyOf = primary }
}

// WithBinDir uses the programs in dir, whatever the environment says: for tests
// that run on several versions of PostgreSQL.
func WithBinDir(dir string) Option {
	return func(o *options) { o.binDir = dir }
}

// WithDocker uses Docker, whatever the environment says.
func WithDocker() Option {
	return func(o *options) { o.docker = true }
}

// An instance is a running server of one kind.
type instance interface {
	stop() error                                    // for good, with everything it stored
	restart(ctx context.Context) error              // in order if it is up; start it otherwise
	crash(ctx context.Context, sig os.Signal) error // and return when it is down
	pid() int                                       // of the postmaster, or 0
	log() string                                    // what it wrote so far
	addresses() (tcp, socket *url.URL)              // socket may be nil
}

// Server is a PostgreSQL server that belongs to this process. Its methods may be
// called from several goroutines at once.
type Server struct {
	// Written once by Start.
	inst   instance
	tcp    *url.URL
	socket *url.URL // nil if there is none
	opts   options
	owned  bool // false for the server of FLIGHTPG_TEST_DSN

	mu        sync.Mutex // guards databases and stopped; no I/O is done under it
	databases []string   // to be dropped by Stop
	stopped   bool
}

// Start starts a server and returns when it takes connections. The context
// bounds the start only, not the server's life: call [Server.Stop].
func Start(ctx context.Context, opts ...Option) (*Server, error) {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	for _, s := range o.settings {
		if !settingName.MatchString(s.name) {
			return nil, fmt.Errorf("pgtest: bad setting name %q", s.name)
		}
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}

	s := &Server{opts: o, owned: true}
	var err error
	if dsn := os.Getenv(EnvDSN); dsn != "" && o.binDir == "" && !o.docker {
		s.owned = false
		if err = o.programsOnly("the server of " + EnvDSN); err == nil {
			s.inst, err = openExternal(dsn)
		}
	} else {
		s.inst, err = startOwn(ctx, &s.opts)
	}
	if err != nil {
		return nil, fmt.Errorf("pgtest: %w", err)
	}
	s.tcp, s.socket = s.inst.addresses()
	if !s.owned {
		// DSN and SocketDSN must not lead to a database that was there before.
		name, err := s.createDatabase(ctx)
		if err != nil {
			return nil, fmt.Errorf("pgtest: the server of %s: %w", EnvDSN, err)
		}
		s.tcp = withDatabase(s.tcp, name)
		if s.socket != nil {
			s.socket = withDatabase(s.socket, name)
		}
	}
	return s, nil
}

var settingName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.]*$`)

// startOwn starts a server of our own from the first place that has one.
func startOwn(ctx context.Context, o *options) (instance, error) {
	if !o.docker {
		dir, err := findPrograms(o.binDir)
		if err != nil {
			return nil, err
		}
		if dir != "" {
			return startCluster(ctx, dir, o)
		}
	}
	if err := o.programsOnly("a container"); err != nil {
		return nil, err
	}
	docker, err := findDocker(ctx)
	if err != nil {
		return nil, &NotFoundError{Docker: err}
	}
	return startContainer(ctx, docker, o)
}

// DSN returns a URL that leads over TCP to a database of the server: postgres,
// or with FLIGHTPG_TEST_DSN one made for this Server (then the transport is that
// variable's choice).
func (s *Server) DSN() string { return s.tcp.String() }

// SocketDSN returns what DSN returns, but over a Unix socket. It is empty if the
// server has no socket that can be reached from here, as with Docker.
func (s *Server) SocketDSN() string {
	if s.socket == nil {
		return ""
	}
	return s.socket.String()
}

// NewDatabase creates an empty database with a random name and returns a DSN for
// it, of the kind that [Server.DSN] returns. Stop drops it.
func (s *Server) NewDatabase(ctx context.Context) (dsn string, err error) {
	name, err := s.createDatabase(ctx)
	if err != nil {
		return "", fmt.Errorf("pgtest: new database: %w", err)
	}
	return withDatabase(s.tcp, name).String(), nil
}

// DropDatabase drops a database that NewDatabase made, and ends the sessions
// that are still in it. Any other DSN is an error.
func (s *Server) DropDatabase(ctx context.Context, dsn string) error {
	u, err := url.Parse(dsn)
	if err != nil {
		return errors.New("pgtest: drop database: not a DSN of this server")
	}
	name := strings.TrimPrefix(u.Path, "/")
	s.mu.Lock()
	i := slices.Index(s.databases, name)
	if i >= 0 {
		s.databases = slices.Delete(s.databases, i, i+1)
	}
	s.mu.Unlock()
	if i < 0 {
		return errors.New("pgtest: drop database: not made by this server's NewDatabase")
	}
	return s.dropDatabases(ctx, name)
}

// HasExtension reports whether create extension can find the named extension.
func (s *Server) HasExtension(ctx context.Context, name string) (bool, error) {
	var has bool
	err := s.maintain(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx,
			"select exists (select from pg_available_extensions where name = $1)", name).Scan(&has)
	})
	return has, err
}

// Restart shuts the server down in order (open sessions are ended) and starts it
// again with the same data and addresses; after [Server.Crash] it only starts
// it. The error matches [errors.ErrUnsupported] unless the server runs from
// PostgreSQL's programs on this machine.
func (s *Server) Restart(ctx context.Context) error {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	if err := s.inst.restart(ctx); err != nil {
		return fmt.Errorf("pgtest: restart: %w", err)
	}
	return nil
}

// Crash sends sig to the postmaster and returns when that has ended. SIGKILL is
// a crash, SIGQUIT an immediate shutdown, SIGINT a fast one, and SIGTERM waits
// for the sessions to end. The server stays down until Restart. As there, the
// error may match [errors.ErrUnsupported].
func (s *Server) Crash(ctx context.Context, sig os.Signal) error {
	if err := s.inst.crash(ctx, sig); err != nil {
		return fmt.Errorf("pgtest: crash: %w", err)
	}
	return nil
}

// PID returns the process id of the postmaster, or 0 if it is down or is not a
// child of this process.
func (s *Server) PID() int { return s.inst.pid() }

// Log returns what the server has logged so far, or nothing with
// FLIGHTPG_TEST_DSN.
func (s *Server) Log() string { return s.inst.log() }

// Stop ends the server and removes everything it stored. With FLIGHTPG_TEST_DSN
// it drops the databases that were made. Only the first call does anything.
func (s *Server) Stop() error {
	s.mu.Lock()
	stopped, names := s.stopped, s.databases
	s.stopped, s.databases = true, nil
	s.mu.Unlock()
	if stopped {
		return nil
	}
	var dropErr error
	if !s.owned {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		dropErr = s.dropDatabases(ctx, names...)
	}
	if err := errors.Join(dropErr, s.inst.stop()); err != nil {
		return fmt.Errorf("pgtest: stop: %w", err)
	}
	return nil
}

// createDatabase makes an empty database that Stop will drop.
func (s *Server) createDatabase(ctx context.Context) (name string, err error) {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	name = "flightpg_test_" + hex.EncodeToString(id[:])

	// Registered first: a create that fails here may have succeeded there.
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		return "", errors.New("the server is stopped")
	}
	s.databases = append(s.databases, name)
	s.mu.Unlock()

	err = s.maintain(ctx, func(conn *pgx.Conn) error {
		// Not template1: two creates at once would refuse each other.
		if _, err := conn.Exec(ctx, "create database "+name+" template template0"); err != nil {
			return err
		}
		if s.owned {
			return nil
		}
		return s.applySettings(ctx, conn, name)
	})
	if err != nil {
		s.mu.Lock()
		s.databases = slices.DeleteFunc(s.databases, func(n string) bool { return n == name })
		s.mu.Unlock()
		// The first error is the one worth reading.
		_ = s.dropDatabases(context.WithoutCancel(ctx), name)
		return "", err
	}
	return name, nil
}

// applySettings gives a database of a server that is not ours the settings that
// were asked for, as far as a database can have them.
func (s *Server) applySettings(ctx context.Context, conn *pgx.Conn, database string) error {
	for _, want := range s.opts.settings {
		var same bool
		if err := conn.QueryRow(ctx, "select current_setting($1) = $2", want.name, want.value).Scan(&same); err != nil {
			return fmt.Errorf("setting %s: %w", want.name, err)
		}
		if same {
			continue
		}
		value := "'" + strings.ReplaceAll(want.value, "'", "''") + "'"
		if _, err := conn.Exec(ctx, "alter database "+database+" set "+want.name+" = "+value); err != nil {
			return fmt.Errorf("it must be configured with %s = %s: %w", want.name, value, err)
		}
	}
	return nil
}

func (s *Server) dropDatabases(ctx context.Context, names ...string) error {
	if len(names) == 0 {
		return nil
	}
	return s.maintain(ctx, func(conn *pgx.Conn) error {
		var errs []error
		for _, name := range names {
			_, err := conn.Exec(ctx, "drop database if exists "+name+" with (force)")
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// maintain calls f with a connection to the database that the server had when it
// was found, which is none of those that tests use.
func (s *Server) maintain(ctx context.Context, f func(*pgx.Conn) error) error {
	u, _ := s.inst.addresses()
	conn, err := connect(ctx, u)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return f(conn)
}

func connect(ctx context.Context, u *url.URL) (*pgx.Conn, error) {
	cfg, err := pgx.ParseConfig(u.String())
	if err != nil {
		return nil, err
	}
	// FLIGHTPG_TEST_DSN may lead through a pooler: no prepared statements.
	cfg.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
	return pgx.ConnectConfig(ctx, cfg)
}

// throwAway are the settings of every server of ours: fast, and alike everywhere.
// Those of WithSetting come after them and win.
var throwAway = []setting{
	{"fsync", "off"},
	{"synchronous_commit", "off"},
	{"full_page_writes", "off"},
	{"max_connections", "200"},
	{"timezone", "UTC"},
}

// freePort returns a loopback port that is free now. It is below the range that
// the system gives to outgoing connections: one of those could take the port
// while the server is down for a restart.
func freePort() (int, error) {
	var err error
	for range 100 {
		port := 20000 + mathrand.IntN(12000)
		var l net.Listener
		if l, err = net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port)); err == nil {
			return port, l.Close()
		}
	}
	return 0, fmt.Errorf("no free port: %w", err)
}

// withDatabase returns u with another database.
func withDatabase(u *url.URL, database string) *url.URL {
	v := *u
	v.Path = "/" + database
	return &v
}
