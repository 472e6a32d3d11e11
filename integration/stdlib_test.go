package integration

import (
	"database/sql"
	"database/sql/driver"
	"fmt"
	"go/build"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
)

// behaviour is something that pgx's own tests of its database/sql driver pin
// down, written anew. It must hold for pgx, which is the control, and for
// flightpg: what it expects is said in so many words, not compared.
type behaviour struct {
	name string
	pins string // the test of pgx's

	// One of the two. once says itself what it opens; each gets a handle for
	// every query exec mode, and the handle must work when it is done.
	once  func(t *testing.T, s subject)
	each  func(t *testing.T, db *sql.DB)
	modes []pgx.QueryExecMode // of each; nil: all
}

// behaviours come from stdlib_conn_test.go, stdlib_query_test.go and, since Go
// 1.27, stdlib_go1.27_test.go.
var behaviours = slices.Concat(handleBehaviours, statementBehaviours, txBehaviours, queryBehaviours, columnBehaviours)

var allExecModes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement,
	pgx.QueryExecModeCacheDescribe,
	pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec,
	pgx.QueryExecModeSimpleProtocol,
}

// sqlDriver is a driver under test.
type sqlDriver struct {
	name       string
	registered []string // the names that sql.Open knows it by
	params     string   // what its DSNs have at their end
	shares     bool
	connector  func(*pgx.ConnConfig, flightpg.Config) (driver.Connector, error)
	overPool   func(*pgxpool.Pool) (*sql.DB, error)
}

var drivers = []sqlDriver{
	{
		name:       "pgx",
		registered: []string{"pgx", "pgx/v5"},
		connector: func(pc *pgx.ConnConfig, cfg flightpg.Config) (driver.Connector, error) {
			var opts []stdlib.OptionOpenDB
			if cfg.BeforeConnect != nil {
				opts = append(opts, stdlib.OptionBeforeConnect(cfg.BeforeConnect))
			}
			if cfg.AfterConnect != nil {
				opts = append(opts, stdlib.OptionAfterConnect(cfg.AfterConnect))
			}
			if cfg.ResetSession != nil {
				opts = append(opts, stdlib.OptionResetSession(cfg.ResetSession))
			}
			if cfg.ShouldPing != nil {
				opts = append(opts, stdlib.OptionShouldPing(cfg.ShouldPing))
			}
			return stdlib.GetConnector(*pc, opts...), nil
		},
		overPool: func(pool *pgxpool.Pool) (*sql.DB, error) { return stdlib.OpenDBFromPool(pool), nil },
	},
	flightpgIn(flightpg.ModeFenced),
	flightpgIn(flightpg.ModeStrict),
	flightpgIn(flightpg.ModeOff),
}

func flightpgIn(mode flightpg.Mode) sqlDriver {
	return sqlDriver{
		name:       fmt.Sprintf("flightpg-%v", mode),
		registered: []string{"flightpg"},
		params:     fmt.Sprintf("flight_mode=%v", mode),
		shares:     mode != flightpg.ModeOff,
		connector: func(pc *pgx.ConnConfig, cfg flightpg.Config) (driver.Connector, error) {
			cfg.Mode = mode
			return flightpg.NewConnectorWithConfig(pc, cfg)
		},
		overPool: func(pool *pgxpool.Pool) (*sql.DB, error) {
			c, err := flightpg.NewConnectorWithPool(pool, flightpg.Config{Mode: mode})
			if err != nil {
				return nil, err
			}
			return c.OpenDB(), nil
		},
	}
}

// subject is a driver and a database to test it on.
type subject struct {
	sqlDriver
	dsn string // without the driver's parameters
}

// config returns pgx's config for the database.
func (s subject) config(t *testing.T) *pgx.ConnConfig {
	t.Helper()
	pc, err := pgx.ParseConfig(s.dsn)
	noError(t, err)
	return pc
}

// openConfig opens a handle with pgx's config and what cfg has of hooks.
func (s subject) openConfig(t *testing.T, pc *pgx.ConnConfig, cfg flightpg.Config) *sql.DB {
	t.Helper()
	c, err := s.connector(pc, cfg)
	noError(t, err)
	db := sql.OpenDB(c) // with the limits that users of pgx have
	closesAtEnd(t, db)
	return db
}

// open opens a handle that has nothing special.
func (s subject) open(t *testing.T) *sql.DB {
	t.Helper()
	return s.openConfig(t, s.config(t), flightpg.Config{})
}

// openName opens a handle as users do, with sql.Open.
func (s subject) openName(t *testing.T, name, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(name, dsn)
	noError(t, err)
	closesAtEnd(t, db)
	return db
}

func closesAtEnd(t *testing.T, db *sql.DB) {
	t.Helper()
	t.Cleanup(func() { noError(t, db.Close()) })
}

// noError fails the test if there is an error.
func noError(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%T: %v", err, err)
	}
}

// equal fails the test if a value is not the expected one, type included.
func equal[T any](t *testing.T, what string, got, want T) {
	t.Helper()
	if !reflect.DeepEqual(got, want) {
		t.Fatalf("%s = %#v; want %#v", what, got, want)
	}
}

// execOn runs a statement and returns how many rows it changed.
func execOn(t *testing.T, q querier, query string, args ...any) int64 {
	t.Helper()
	res, err := q.ExecContext(t.Context(), query, args...)
	noError(t, err)
	n, err := res.RowsAffected()
	noError(t, err)
	return n
}

// scanRow scans the row of a query into dest.
func scanRow(t *testing.T, q querier, query string, args []any, dest ...any) {
	t.Helper()
	noError(t, q.QueryRowContext(t.Context(), query, args...).Scan(dest...))
}

// one returns the value of a query that has one.
func one[T any](t *testing.T, q querier, query string, args ...any) (v T) {
	t.Helper()
	scanRow(t, q, query, args, &v)
	return v
}

// works fails the test if the handle is of no use any more.
func works(t *testing.T, db *sql.DB) {
	t.Helper()
	rows, err := db.Query("select g * g from generate_series(1, $1) g", 6)
	noError(t, err)
	defer rows.Close()
	var squares []int32
	for rows.Next() {
		var n int32
		noError(t, rows.Scan(&n))
		squares = append(squares, n)
	}
	noError(t, rows.Err())
	equal(t, "squares", squares, []int32{1, 4, 9, 16, 25, 36})
}

// TestStdlib runs every behaviour through pgx's driver and through flightpg. With
// Go 1.26 these are as many tests for each driver as pgx's suite has: 198.
func TestStdlib(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		for _, d := range drivers {
			t.Run(d.name, func(t *testing.T) {
				if testing.Short() && d.params != "flight_mode=fenced" {
					t.Skip("NOT RUN with -short: flightpg-fenced is")
				}
				for _, b := range behaviours {
					t.Run(b.name, func(t *testing.T) { b.run(t, subject{d, dsn}) })
				}
			})
		}
	})
}

func (b behaviour) run(t *testing.T, s subject) {
	if b.each == nil {
		b.once(t, s)
		return
	}
	modes := b.modes
	if modes == nil {
		modes = allExecModes
	}
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			pc := s.config(t)
			pc.DefaultQueryExecMode = mode
			db := s.openConfig(t, pc, flightpg.Config{})
			b.each(t, db)
			works(t, db)
		})
	}
}

// TestStdlib_Shares makes sure that the modes of TestStdlib are what they say.
func TestStdlib_Shares(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		for _, d := range drivers[1:] {
			db := subject{d, dsn}.open(t)
			works(t, db)
			if s := flightpg.ReadStats(db); s.Flights == 1 != d.shares || s.Flights > 1 {
				t.Errorf("%s: %d flights for one read; sharing is %v", d.name, s.Flights, d.shares)
			}
		}
	})
}

// TestStdlib_Complete compares the behaviours with the tests that pgx has for
// this version of Go: one that comes with a new version of pgx needs its
// counterpart here.
func TestStdlib_Complete(t *testing.T) {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-f={{.Dir}}", "github.com/jackc/pgx/v5/stdlib").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	pkg, err := build.ImportDir(strings.TrimSpace(string(dir)), 0)
	noError(t, err)
	var theirs, ours []string
	for _, file := range slices.Concat(pkg.TestGoFiles, pkg.XTestGoFiles) {
		src, err := os.ReadFile(filepath.Join(pkg.Dir, file))
		noError(t, err)
		for _, m := range regexp.MustCompile(`(?m)^func (Test\w+)\(`).FindAllSubmatch(src, -1) {
			theirs = append(theirs, string(m[1]))
		}
	}
	for _, b := range behaviours {
		ours = append(ours, b.pins)
	}
	slices.Sort(theirs)
	slices.Sort(ours)
	if len(theirs) == 0 || !slices.Equal(ours, theirs) {
		t.Errorf("the behaviours pin\n%v;\npgx tests\n%v", ours, theirs)
	}
}
