// Package stack holds libraries that people put over database/sql against
// flightpg, and against pgx's own driver beside it.
//
// What a test wants to know, it asks the server. An [Env] is a fresh database
// and one of the two drivers. [Env.Storm] lets callers of a read run into a
// locked table until all of them wait, counts the executions that wait on the
// server, and then lets them go. [Env.Stale] does the same with a read whose
// execution already has its snapshot, and writes meanwhile. [Env.Watch] counts
// writes by triggers.
package stack

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver to compare with
	"go.uber.org/goleak"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// The drivers under test, as sql.Open knows them.
const (
	Pgx      = "pgx"
	Flightpg = "flightpg"
)

// Main runs the tests of a package, which share a server, and stops it.
//
//	func TestMain(m *testing.M) { stack.Main(m) }
//
// ignore are goroutines that the library under test leaves behind.
func Main(m *testing.M, ignore ...goleak.Option) {
	leak.Main(func() int { return pgtest.Run(m, pgtest.WithPreload("pg_stat_statements")) }, ignore...)
}

// Way skips a test with -short unless its way to use a library is one of the first
// two: the others differ in settings of pgx, or of the library, and each runs all of
// the same.
func Way(t *testing.T, i int) {
	t.Helper()
	if testing.Short() && i > 1 {
		t.Skip("NOT RUN with -short: two other ways are")
	}
}

// Env is a fresh database and the driver to reach it by.
type Env struct {
	*testing.T
	Driver string // Pgx or Flightpg
	DSN    string // a URL, without parameters of flightpg
	Wide   int    // how many queries one caller has under way at once; 0 is 1
	Beside bool   // somebody writes beside the callers, who all ask one query

	eye        *pgx.Conn // looks on, beside the driver under test
	statements bool      // the server has pg_stat_statements
}

// New makes a database for one test.
func New(t *testing.T, driver string) *Env {
	t.Helper()
	e := &Env{T: t, Driver: driver, DSN: pgtest.Database(t)}
	e.eye = e.Connect()
	// A server that we did not start may not have it, or not have it loaded.
	_, err := e.eye.Exec(t.Context(), `CREATE SCHEMA stack_statements;
		CREATE EXTENSION pg_stat_statements SCHEMA stack_statements;
		SELECT FROM stack_statements.pg_stat_statements LIMIT 1`)
	e.statements = err == nil
	return e
}

// Each runs f over both drivers, each with a database of its own.
func Each(t *testing.T, f func(e *Env)) {
	t.Helper()
	for _, driver := range []string{Pgx, Flightpg} {
		t.Run(driver, func(t *testing.T) { f(New(t, driver)) })
	}
}

// Compare runs f over both drivers, each with a database of its own, and
// reports if the results are not deeply equal.
func Compare[R any](t *testing.T, f func(e *Env) R) {
	t.Helper()
	results := make(map[string]R)
	Each(t, func(e *Env) { results[e.Driver] = f(e) })
	if t.Failed() {
		return
	}
	if got, want := results[Flightpg], results[Pgx]; !reflect.DeepEqual(got, want) {
		t.Errorf("over flightpg:\n%s\nover pgx:\n%s\n%s", dump(got), dump(want), firstDifference(got, want))
	}
}

func dump(v any) string {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		return err.Error()
	}
	return b.String()
}

// firstDifference finds the line at which two dumps part. If there is none, the
// values differ in what JSON does not show.
func firstDifference(got, want any) string {
	g, w := strings.Split(dump(got), "\n"), strings.Split(dump(want), "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return "first: " + g[i] + " ≠ " + w[i]
		}
	}
	return "the types differ, or nil and empty"
}

// Connect opens a connection beside the driver under test. It is closed at the
// test's end.
func (e *Env) Connect() *pgx.Conn {
	e.Helper()
	conn, err := pgx.Connect(e.Context(), e.DSN)
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

// SQL runs statements beside the driver under test.
func (e *Env) SQL(statements string) {
	e.Helper()
	if _, err := e.eye.Exec(e.Context(), statements); err != nil {
		e.Fatal(err)
	}
}

// URL returns the DSN for the driver under test with more parameters. Those of
// flightpg ("flight_mode=strict") are for flightpg only.
func (e *Env) URL(params ...string) string {
	e.Helper()
	u, err := url.Parse(e.DSN)
	if err != nil {
		e.Fatal(err)
	}
	all := strings.Split(u.RawQuery, "&")
	for _, p := range params {
		if e.Driver == Flightpg || !strings.HasPrefix(p, "flight_") {
			all = append(all, p)
		}
	}
	u.RawQuery = strings.Join(all, "&")
	return u.String()
}

// Open opens the database with the driver under test. The handle is closed at
// the test's end.
func (e *Env) Open(params ...string) *sql.DB {
	e.Helper()
	db, err := sql.Open(e.Driver, e.URL(params...))
	if err != nil {
		e.Fatal(err)
	}
	e.Cleanup(func() {
		if err := db.Close(); err != nil {
			e.Error(err)
		}
	})
	Keep(db)
	return db
}

// Keep lets a handle keep the connections of a storm for the next one. Open
// does it.
func Keep(db *sql.DB) { db.SetMaxIdleConns(50) }

// until polls for what no channel tells.
func (e *Env) until(what string, ok func() bool) {
	e.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) { // nothing tells: polling
		if time.Now().After(deadline) {
			e.Fatalf("%s: not within 30 s", what)
		}
	}
}

// gate is a table locked by a transaction of its own.
type gate struct{ tx pgx.Tx }

func (e *Env) shut(table string) gate {
	e.Helper()
	tx, err := e.Connect().Begin(e.Context())
	if err != nil {
		e.Fatal(err)
	}
	name := pgx.Identifier(strings.Split(table, ".")).Sanitize()
	if _, err := tx.Exec(e.Context(), "LOCK TABLE "+name+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		e.Fatal(err)
	}
	return gate{tx}
}

// open may be called again.
func (g gate) open() { _ = g.tx.Rollback(context.Background()) }

// blocked returns how many backends wait for a lock, which is how many
// executions are under way: gates and eye never wait.
func (e *Env) blocked() (n int) {
	e.Helper()
	err := e.eye.QueryRow(e.Context(), `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND backend_type = 'client backend' AND wait_event_type = 'Lock'`).Scan(&n)
	if err != nil {
		e.Fatal(err)
	}
	return n
}

// crowd are callers that run into a gate.
type crowd struct {
	wg   sync.WaitGroup
	n    int          // how many have been sent
	wide int          // how often each waits; 0 is 1
	done atomic.Int64 // how many have returned
}

func (c *crowd) send(e *Env, callers int, call func(ctx context.Context) error) {
	c.n += callers
	for range callers {
		c.wg.Go(func() {
			defer c.done.Add(1)
			if err := call(e.Context()); err != nil {
				e.Error(err)
			}
		})
	}
}

// width is how many flights of a query are executed at a time: flight_width, by
// default.
const width = 2

// gather waits until all callers that were sent wait on the server, on their
// own or with others for a flight, and returns how many executions that makes.
// With flights, that takes so many queries since mark: a caller that has not
// woken up from its last flight counts as waiting, too. Beside a writer, a query has
// flights that wait for an earlier one of its own and execute nothing yet.
func (e *Env) gather(db *sql.DB, c *crowd, mark uint64, queries int) (executions int) {
	e.Helper()
	e.until("the callers have gathered", func() bool {
		if n := c.done.Load(); n > 0 {
			e.Fatalf("%d of %d callers returned before the gate was open", n, c.n)
		}
		blocked := e.blocked()
		s := flightpg.ReadStats(db) // zeros, if it is another driver's
		again := e.blocked()
		executions = blocked
		executing := int(s.Flying)
		if e.Beside {
			executing = min(executing, width)
		}
		if s.Waiting > 0 && queriesOf(s)-mark < uint64(queries) {
			return false
		}
		return blocked == again && blocked-executing+int(s.Waiting) == c.n*max(c.wide, 1)
	})
	return executions
}

// queriesOf returns how many calls flightpg has seen come.
func queriesOf(s flightpg.Stats) uint64 {
	n := s.Flights + s.Joins + s.Execs
	for _, bypasses := range s.Bypasses {
		n += bypasses
	}
	return n
}

// Evidence is what a storm was for the server, and for flightpg.
type Evidence struct {
	Callers    int
	Executions []int // under way when all callers had come, for each table
	Calls      []int // by pg_stat_statements in the whole storm, for each table; nil if it is missing

	Flights, Joins uint64
	Bypasses       map[flightpg.Reason]uint64
}

// loaded loads the catalog. Reads wait for it for a second only, which on a busy
// machine is too short, and are not shared then.
func (e *Env) loaded(db *sql.DB) {
	e.Helper()
	if e.Driver != Flightpg {
		return
	}
	if err := flightpg.RefreshCatalog(e.Context(), db); err != nil {
		e.Fatal(err)
	}
}

// Storm runs a read by so many callers at the same time. The tables are locked
// and given free one after the other, each when all callers have come to it. A
// read that asks for several, in queries of their own (a relation that is loaded
// after its parents), names them in that order; of a join one is enough.
//
// The read runs once before, so that neither catalogs nor prepared statements
// are loaded in the storm.
func (e *Env) Storm(db *sql.DB, callers int, read func(ctx context.Context) error, tables ...string) Evidence {
	e.Helper()
	e.loaded(db)
	if err := read(e.Context()); err != nil {
		e.Fatal(err)
	}
	gates := make([]gate, len(tables))
	for i, table := range tables {
		gates[i] = e.shut(table)
	}
	var c crowd
	defer c.wg.Wait() // and not before the gates are open, whatever happens
	for _, g := range gates {
		defer g.open()
	}
	ev := Evidence{Callers: callers, Bypasses: make(map[flightpg.Reason]uint64)}
	before, calls := flightpg.ReadStats(db), e.calls(tables)

	c.wide = e.Wide
	c.send(e, callers, read)
	for i, g := range gates {
		ev.Executions = append(ev.Executions, e.gather(db, &c, queriesOf(before), (i+1)*callers*max(e.Wide, 1)))
		g.open()
	}
	c.wg.Wait()

	after := flightpg.ReadStats(db)
	ev.Flights, ev.Joins = after.Flights-before.Flights, after.Joins-before.Joins
	for why, n := range after.Bypasses {
		if n -= before.Bypasses[why]; n > 0 {
			ev.Bypasses[why] = n
		}
	}
	if e.statements {
		for i, n := range e.calls(tables) {
			ev.Calls = append(ev.Calls, n-calls[i])
		}
	}
	e.Logf("%s: %d callers, %v executions waiting, %v calls; flights %d, joins %d, bypasses %v",
		e.Driver, ev.Callers, ev.Executions, ev.Calls, ev.Flights, ev.Joins, ev.Bypasses)
	return ev
}

// calls returns, for each table, how often statements that begin as reads do
// and name it have been executed. It is nil without pg_stat_statements.
func (e *Env) calls(tables []string) (n []int) {
	e.Helper()
	if !e.statements {
		return nil
	}
	for _, table := range tables {
		var calls int
		err := e.eye.QueryRow(e.Context(), `SELECT coalesce(sum(calls), 0) FROM stack_statements.pg_stat_statements AS s
			JOIN pg_database AS d ON d.oid = s.dbid
			WHERE d.datname = current_database() AND query ~* '^(\s|/\*[^*]*\*/|--[^\n]*\n)*(select|with|table|values)\M' AND query ~ ('\m' || $1 || '\M')`,
			table).Scan(&calls)
		if err != nil {
			e.Fatal(err)
		}
		n = append(n, calls)
	}
	return n
}

// Shared is a Storm that fails unless each table's read ran once for all
// callers over flightpg, and once for each caller over pgx: it shows that the
// count counts.
func (e *Env) Shared(db *sql.DB, callers int, read func(ctx context.Context) error, tables ...string) Evidence {
	e.Helper()
	ev := e.Storm(db, callers, read, tables...)
	want := make([]int, len(tables))
	for i := range want {
		if want[i] = callers; e.Driver == Flightpg {
			want[i] = 1
		}
	}
	if !slices.Equal(ev.Executions, want) {
		e.Errorf("%v executions for %d callers; want %v", ev.Executions, callers, want)
	}
	if ev.Calls != nil && !slices.Equal(ev.Calls, want) {
		e.Errorf("pg_stat_statements counts %v calls for %d callers; want %v", ev.Calls, callers, want)
	}
	if e.Driver != Flightpg {
		return ev
	}
	if flights := uint64(len(tables)); ev.Flights != flights || ev.Joins != flights*uint64(callers-1) || len(ev.Bypasses) != 0 {
		e.Errorf("%d flights, %d joins, bypasses %v; want %d, %d and none",
			ev.Flights, ev.Joins, ev.Bypasses, flights, flights*uint64(callers-1))
	}
	return ev
}

// Bypassed is a Storm of a read that flightpg must leave alone, for the reason
// given: each caller has its own execution, over both drivers.
func (e *Env) Bypassed(db *sql.DB, callers int, why flightpg.Reason, read func(ctx context.Context) error, table string) {
	e.Helper()
	ev := e.Storm(db, callers, read, table)
	if ev.Executions[0] != callers {
		e.Errorf("%d executions for %d callers; want as many", ev.Executions[0], callers)
	}
	if e.Driver == Flightpg && ev.Bypasses[why] != uint64(callers) {
		e.Errorf("bypasses %v; want %d for %s", ev.Bypasses, callers, why)
	}
}

// Explain fails unless flightpg gives the reason for the statement's verdict.
// Over pgx it does nothing.
func (e *Env) Explain(db *sql.DB, query string, want flightpg.Reason) {
	e.Helper()
	if e.Driver != Flightpg {
		return
	}
	if v, err := flightpg.Explain(e.Context(), db, query); err != nil || v.Reason != want {
		e.Errorf("Explain(%s) = %+v, %v; want %s", query, v, err, want)
	}
}

// Hold makes the function stack_hold(bigint), which gives back its argument
// but waits where Stale has its gate. Reads that call it, by a view or in their
// text, can be given to Stale. Call it before the handle under test is used.
func (e *Env) Hold() {
	e.Helper()
	e.SQL(`CREATE TABLE stack_gate ();
		CREATE FUNCTION stack_hold(n bigint) RETURNS bigint STABLE LANGUAGE plpgsql AS
			'BEGIN PERFORM FROM stack_gate; RETURN n; END'`)
}

// Stale shows whether readers see a write. Callers begin to read, and their
// executions are held back when they have their snapshots. Then write runs, in
// the test's goroutine, and when it has returned as many callers again begin to
// read. Stale returns what the first and the second read, once each value; the
// second must see the write. The read is one that stack_hold holds back.
func (e *Env) Stale(db *sql.DB, callers int, read func(ctx context.Context) (int64, error), write func(ctx context.Context) error) (first, second []int64) {
	e.Helper()
	e.loaded(db)
	if _, err := read(e.Context()); err != nil {
		e.Fatal(err)
	}
	g := e.shut("stack_gate")
	var c crowd
	defer c.wg.Wait()
	defer g.open()

	var mu sync.Mutex // guards the values, while callers run
	seen := func(values *[]int64) func(context.Context) error {
		return func(ctx context.Context) error {
			v, err := read(ctx)
			mu.Lock()
			defer mu.Unlock()
			if !slices.Contains(*values, v) {
				*values = append(*values, v)
			}
			return err
		}
	}
	mark := queriesOf(flightpg.ReadStats(db))
	c.send(e, callers, seen(&first))
	before := e.gather(db, &c, mark, callers)
	if err := write(e.Context()); err != nil {
		e.Fatal(err)
	}
	mark = queriesOf(flightpg.ReadStats(db))
	c.send(e, callers, seen(&second))
	after := e.gather(db, &c, mark, callers)
	g.open()
	c.wg.Wait()
	e.Logf("%s: %d callers, %d executions, write, %d more callers, %d executions: %v, then %v",
		e.Driver, callers, before, callers, after-before, first, second)
	return first, second
}

// SeesWrites is a Stale that fails unless the first callers read was and the
// second is.
func (e *Env) SeesWrites(db *sql.DB, was, is int64, read func(ctx context.Context) (int64, error), write func(ctx context.Context) error) {
	e.Helper()
	first, second := e.Stale(db, 8, read, write)
	if !slices.Equal(first, []int64{was}) || !slices.Equal(second, []int64{is}) {
		e.Errorf("read %v before and %v after the write; want %d and %d", first, second, was, is)
	}
}

// Watch counts statements that write to the tables from now on, rolled back
// ones too.
func (e *Env) Watch(tables ...string) {
	e.Helper()
	// A sequence does not roll back.
	e.SQL(`CREATE SCHEMA IF NOT EXISTS stack_writes;
		CREATE OR REPLACE FUNCTION stack_writes.count() RETURNS trigger LANGUAGE plpgsql AS
			$$BEGIN PERFORM nextval(format('stack_writes.%I', TG_OP || ' ' || TG_TABLE_NAME)); RETURN NULL; END$$`)
	for _, table := range tables {
		for _, op := range []string{"INSERT", "UPDATE", "DELETE"} {
			e.SQL("CREATE SEQUENCE stack_writes." + pgx.Identifier{op + " " + table}.Sanitize())
		}
		e.SQL("CREATE TRIGGER stack_writes AFTER INSERT OR UPDATE OR DELETE ON " + pgx.Identifier{table}.Sanitize() +
			" FOR EACH STATEMENT EXECUTE FUNCTION stack_writes.count()")
	}
}

// Writes returns how many statements wrote to watched tables, as
// "INSERT users". An INSERT with ON CONFLICT DO UPDATE counts as an UPDATE too.
func (e *Env) Writes() map[string]int {
	e.Helper()
	rows, err := e.eye.Query(e.Context(), `SELECT sequencename::text, last_value::int FROM pg_sequences
		WHERE schemaname = 'stack_writes' AND last_value IS NOT NULL`)
	if err != nil {
		e.Fatal(err)
	}
	n := make(map[string]int)
	var name string
	var count int
	if _, err := pgx.ForEachRow(rows, []any{&name, &count}, func() error { n[name] = count; return nil }); err != nil {
		e.Fatal(err)
	}
	return n
}

// Wrote fails unless Writes are these.
func (e *Env) Wrote(want map[string]int) {
	e.Helper()
	if got := e.Writes(); !maps.Equal(got, want) {
		e.Errorf("writes on the server: %v; want %v", got, want)
	}
}

// Concurrently runs f n times at once, with 0 to n-1, and reports errors.
func (e *Env) Concurrently(n int, f func(ctx context.Context, i int) error) {
	e.Helper()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := f(e.Context(), i); err != nil {
				e.Errorf("caller %d: %v", i, err)
			}
		})
	}
	wg.Wait()
}
