package pipeline

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/flightpg/flightpg/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// testPool is a pool over a database of its own, and a connection beside it.
type testPool struct {
	*Pool
	dsn   string
	other *pgx.Conn
	stmts sync.Map // text to *Stmt
}

func openPool(t testing.TB, change func(*Config)) *testPool {
	t.Helper()
	p := &testPool{dsn: pgtest.Database(t)}
	var err error
	if p.other, err = pgx.Connect(t.Context(), p.dsn); err != nil {
		t.Fatal(err)
	}
	cfg := Config{
		Connect: func(ctx context.Context) (*Link, error) { return connectTo(ctx, p.dsn, nil) },
		Formats: pgx.QueryResultFormatsByOID{pgtype.Int4OID: 1, pgtype.Int8OID: 1},
	}
	if change != nil {
		change(&cfg)
	}
	p.Pool = New(cfg)
	t.Cleanup(func() {
		p.Close()
		_ = p.other.Close(context.Background())
		waitFor(t, "every connection to be closed", func() bool { return p.Stats().Open == 0 })
	})
	return p
}

// connectTo opens a connection as flights have them: read-only.
func connectTo(ctx context.Context, dsn string, change func(*pgx.ConnConfig)) (*Link, error) {
	config, err := pgx.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	if change != nil {
		change(config)
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	if _, err = conn.PgConn().Exec(ctx, "SET default_transaction_read_only = on").ReadAll(); err != nil {
		_ = conn.Close(ctx)
		return nil, err
	}
	return &Link{PgConn: conn.PgConn(), Types: conn.TypeMap(), Grouped: true, Arm: "SET lock_timeout = 5; SET statement_timeout = 10", Disarm: "RESET lock_timeout; RESET statement_timeout", Patience: 10 * time.Millisecond}, nil
}

func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) { // until the condition holds
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (p *testPool) exec(t testing.TB, sql string) {
	t.Helper()
	if _, err := p.other.Exec(context.Background(), sql); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// sleeping returns how many backends are in a pg_sleep of a query like that. (State
// "active" would not do: one that only parses the query has it too.)
func (p *testPool) sleeping(t testing.TB, like string) (n int) {
	t.Helper()
	err := p.other.QueryRow(context.Background(), "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database() AND position($1 in query) > 0", like).Scan(&n)
	if err != nil {
		t.Error(err)
	}
	return n
}

func (p *testPool) stmt(text string) *Stmt {
	st, _ := p.stmts.LoadOrStore(text, NewStmt(text, nil, Joined, nil))
	return st.(*Stmt)
}

// reading is a Read that keeps what comes, up to max rows.
type reading struct {
	apart      bool
	rows       [][]string
	fields     []pgconn.FieldDescription
	max        int
	gone       bool // nobody waits
	dispatched int
	starts     int
	onRow      func()
	onDispatch func()
}

func (r *reading) Apart() bool { return r.apart }

func (r *reading) Dispatch() bool {
	r.dispatched++
	if r.onDispatch != nil {
		r.onDispatch()
	}
	return !r.gone
}

func (r *reading) Start(_ *Link, d *Desc) {
	r.starts++
	r.rows, r.fields = nil, d.Fields
}

func (r *reading) Row(values [][]byte) bool {
	row := make([]string, len(values))
	for i, v := range values {
		row[i] = string(v)
		if r.fields[i].Format == 1 {
			switch len(v) {
			case 4:
				row[i] = fmt.Sprint(int32(binary.BigEndian.Uint32(v)))
			case 8:
				row[i] = fmt.Sprint(int64(binary.BigEndian.Uint64(v)))
			}
		}
	}
	r.rows = append(r.rows, row)
	if r.onRow != nil {
		r.onRow()
	}
	return r.max == 0 || len(r.rows) < r.max
}

func (r *reading) String() string {
	rows := make([]string, len(r.rows))
	for i, row := range r.rows {
		rows[i] = strings.Join(row, ",")
	}
	return strings.Join(rows, ";")
}

// query runs a call as its only caller would: when ctx ends the call is given up
// in the background.
func (p *testPool) query(ctx context.Context, text string, args ...any) (string, error) {
	r := new(reading)
	c := p.NewCall(p.stmt(text), args, r)
	if c.Run(ctx) {
		return r.String(), c.Err()
	}
	left, cancel := context.WithCancelCause(context.Background())
	cancel(ErrAbandoned)
	go c.Finish(left)
	return "", ctx.Err()
}

func (p *testPool) want(t testing.TB, want, text string, args ...any) {
	t.Helper()
	got, err := p.query(context.Background(), text, args...)
	if err != nil || got != want {
		t.Errorf("%s %v = %q, %v; want %q", text, args, got, err, want)
	}
}

func code(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

func TestPool_Reads(t *testing.T) {
	p := openPool(t, nil)
	p.want(t, "7", "SELECT $1::int + 3", 4)
	p.want(t, "8", "SELECT $1::int + 3", 5)
	p.want(t, "1;2;3", "SELECT * FROM generate_series(1, 3)")
	p.want(t, "", "SELECT 1 WHERE false")
	p.want(t, "a,", "SELECT 'a', NULL::text")
	if s := p.Stats(); s.Open > 2 || s.Queued != 0 {
		t.Errorf("Stats = %+v; want a connection or two, and nothing queued", s)
	}
}

func TestPool_ManyAtOnce(t *testing.T) {
	p := openPool(t, nil)
	const callers, each = 64, 100
	var wg sync.WaitGroup
	for i := range callers {
		wg.Go(func() {
			for j := range each {
				n := i*each + j
				text := "SELECT $1::int"
				if n%3 == 1 {
					text = "SELECT $1::int, 'x'"
				}
				want := fmt.Sprint(n)
				if n%3 == 1 {
					want += ",x"
				}
				p.want(t, want, text, n)
			}
		})
	}
	wg.Wait()
	s := p.Stats()
	if s.Groups == 0 || s.Calls < callers*each {
		t.Errorf("Stats = %+v; want groups, and every call sent", s)
	}
	t.Logf("%+v", s)
}

// TestPool_Errors: an error is its call's alone, and what was skipped behind it
// runs.
func TestPool_Errors(t *testing.T) {
	p := openPool(t, func(c *Config) { c.Width = 1 })
	p.want(t, "1", "SELECT 10 / $1::int", 10)
	p.want(t, "1", "SELECT $1::int", 1)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for j := range 50 {
				if (i+j)%17 == 0 {
					if _, err := p.query(context.Background(), "SELECT 10 / $1::int", 0); code(err) != "22012" {
						t.Errorf("division by zero: %v", err)
					}
					continue
				}
				n := i*100 + j
				p.want(t, fmt.Sprint(n), "SELECT $1::int", n)
			}
		})
	}
	wg.Wait()
	t.Logf("%+v", p.Stats())
}

func TestPool_DDL(t *testing.T) {
	p := openPool(t, nil)
	p.exec(t, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)")
	for range 3 {
		p.want(t, "1", "SELECT * FROM t")
	}
	p.exec(t, "ALTER TABLE t ADD b text DEFAULT 'x'")
	p.want(t, "1,x", "SELECT * FROM t")
	p.exec(t, "ALTER TABLE t ALTER a TYPE text")
	p.want(t, "1,x", "SELECT * FROM t")
	p.exec(t, "DROP TABLE t")
	if _, err := p.query(context.Background(), "SELECT * FROM t"); code(err) != "42P01" && !errors.Is(err, ErrElsewhere) {
		t.Errorf("Query = %v; want an undefined table", err)
	}
	p.exec(t, "CREATE TABLE t (a int, b int); INSERT INTO t VALUES (3, 4)")
	waitFor(t, "the text to be tried again", func() bool {
		got, err := p.query(context.Background(), "SELECT * FROM t")
		return err == nil && got == "3,4"
	})
	p.want(t, "5", "SELECT $1::int", 5)
	p.CloseIdle()
	p.want(t, "3,4", "SELECT * FROM t")
	p.exec(t, "DROP TABLE t; CREATE TABLE t (a bigint, b int); INSERT INTO t VALUES (5, 6)")
	p.CloseIdle() // on a new connection nothing is refused: only the description differs
	p.want(t, "5,6", "SELECT * FROM t")
	if s := p.Stats(); s.Stale == 0 {
		t.Errorf("Stats = %+v; want stale descriptions", s)
	}
}

func TestPool_StatementsGoneOrMany(t *testing.T) {
	p := openPool(t, func(c *Config) { c.Statements, c.Group = 16, 8 })
	for i := range 100 {
		p.want(t, fmt.Sprint(i), fmt.Sprintf("SELECT %d", i%40+i-i%40))
	}
	for i := range 100 {
		p.want(t, fmt.Sprint(i), fmt.Sprintf("SELECT %d", i))
	}
	p.want(t, "true", "SELECT (count(*) <= 17)::text FROM pg_prepared_statements")
	p.want(t, "1", "SELECT 1")
	if _, err := p.query(context.Background(), "DEALLOCATE ALL"); err != nil {
		t.Fatal(err)
	}
	p.want(t, "1", "SELECT 1")
}

func TestPool_Guard(t *testing.T) {
	p := openPool(t, nil)
	p.exec(t, "CREATE TABLE t (a int)")
	var pid string
	pid, _ = p.query(context.Background(), "SELECT pg_backend_pid()")
	if _, err := p.query(context.Background(), "INSERT INTO t VALUES (1) RETURNING a"); code(err) != "25006" {
		t.Errorf("INSERT = %v; want it refused", err)
	}
	if now, _ := p.query(context.Background(), "SELECT pg_backend_pid()"); now == pid {
		t.Error("the connection of a refused statement is still in use")
	}
	var culprit atomic.Pointer[Stmt]
	q := openPool(t, func(c *Config) {
		c.Tainted = func(st *Stmt, setting, value string) {
			if setting == "default_transaction_read_only" && value == "off" {
				culprit.Store(st)
			}
		}
	})
	const flip = "SELECT set_config('default_transaction_read_only', 'off', false)"
	q.want(t, "off", flip)
	if st := culprit.Load(); st == nil || st.text != flip {
		t.Errorf("culprit = %v; want the statement that turned the guard off", st)
	}
	q.want(t, "on", "SELECT current_setting('default_transaction_read_only')")
}

// TestCall_LeaderLeaves: Run returns although the query goes on, and Finish has its
// answer, of one execution.
func TestCall_LeaderLeaves(t *testing.T) {
	p := openPool(t, nil)
	p.want(t, "1", "SELECT $1::int", 1)
	const text = "SELECT $1::int FROM pg_sleep(0.2)"
	for _, warm := range []bool{false, true} {
		if warm {
			p.want(t, "1", text, 1)
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
		r := new(reading)
		c := p.NewCall(p.stmt(text), []any{3}, r)
		if c.Run(ctx) {
			t.Fatal("Run = true; want the context to end first")
		}
		cancel()
		c.Finish(context.Background())
		trips := 2 // one to describe it
		if warm {
			trips = 1
		}
		if c.Err() != nil || r.String() != "3" || r.dispatched > trips {
			t.Errorf("Finish: %q, %v, sent %d times; want 3, %d", r, c.Err(), r.dispatched, trips)
		}
	}
	if s := p.Stats(); s.Cancels != 0 {
		t.Errorf("Stats = %+v; want nothing cancelled", s)
	}
}

// TestCall_LeavesInTheMiddleOfAnAnswer: the driver changes while rows come, and no
// row is lost or given twice.
func TestCall_LeavesInTheMiddleOfAnAnswer(t *testing.T) {
	p := openPool(t, nil)
	const text = "SELECT i, repeat('x', 3000) FROM generate_series(1, $1::int) i, pg_sleep(0.01)"
	for n := range 20 {
		ctx, cancel := context.WithCancel(context.Background())
		r := new(reading)
		r.onRow = func() {
			if len(r.rows) == 1+n*10 {
				cancel()
			}
		}
		c := p.NewCall(p.stmt(text), []any{500}, r)
		if !c.Run(ctx) {
			c.Finish(context.Background())
		}
		cancel()
		if c.Err() != nil || len(r.rows) != 500 || r.starts != 1 {
			t.Fatalf("%d rows in %d answers, %v; want 500 in one", len(r.rows), r.starts, c.Err())
		}
		for i, row := range r.rows {
			if row[0] != fmt.Sprint(i+1) || len(row[1]) != 3000 {
				t.Fatalf("row %d is %.10q", i, row)
			}
		}
	}
}

func TestCall_Abandoned(t *testing.T) {
	p := openPool(t, nil)
	const text = "SELECT $1::int FROM pg_sleep(60)"
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		waitFor(t, "the query to run", func() bool { return p.sleeping(t, "pg_sleep(60)") == 1 })
		cancel()
	}()
	if _, err := p.query(ctx, text, 1); err != context.Canceled {
		t.Errorf("Query = %v; want %v", err, context.Canceled)
	}
	waitFor(t, "the query to be cancelled", func() bool { s := p.Stats(); return s.Cancels == 1 && s.Open == s.Idle })
	p.want(t, "2", "SELECT $1::int", 2)
	if s := p.Stats(); s.Lost != 0 || uint64(s.Open) != s.Dials { // a busy machine may dial another
		t.Errorf("Stats = %+v; want the connection kept", s)
	}
}

// TestPool_WayIsLearned: a connection that was opened while the machine stood still
// finds the server far away, but not for good.
func TestPool_WayIsLearned(t *testing.T) {
	p := openPool(t, nil)
	p.want(t, "1", "SELECT $1::int", 1)
	p.way.Store(int64(time.Hour))
	p.want(t, "2", "SELECT $1::int", 2)
	if way := p.wayTime(); way >= time.Hour {
		t.Errorf("the way takes %v after an answer that did not", way)
	}
}

// TestPool_CancelStorm: callers leave at any moment, and nobody else gets an error
// or another's row.
func TestPool_CancelStorm(t *testing.T) {
	p := openPool(t, nil)
	var ok, left atomic.Int64
	var wg sync.WaitGroup
	for i := range 64 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(i)))
			for range 60 {
				ctx, cancel := context.Background(), context.CancelFunc(func() {})
				if rng.IntN(2) == 0 {
					ctx, cancel = context.WithTimeout(ctx, time.Duration(rng.IntN(4000))*time.Microsecond)
				}
				n := rng.IntN(1 << 30)
				text := "SELECT $1::int"
				switch rng.IntN(8) {
				case 0:
					text = "SELECT $1::int FROM pg_sleep(0.005)"
				case 1:
					text = "SELECT $1::int FROM pg_sleep(CASE WHEN random() < 0.1 THEN 0.02 ELSE 0 END)"
				}
				got, err := p.query(ctx, text, n)
				switch {
				case err == nil && got == fmt.Sprint(n):
					ok.Add(1)
				case err != nil && ctx.Err() != nil:
					left.Add(1)
				default:
					t.Errorf("%s %d = %q, %v", text, n, got, err)
				}
				cancel()
			}
		})
	}
	wg.Wait()
	waitFor(t, "what was left to end", func() bool { s := p.Stats(); return s.Open == s.Idle && s.Queued == 0 })
	t.Logf("%d answered, %d left, %+v", ok.Load(), left.Load(), p.Stats())
}

func TestPool_StatementTimeout(t *testing.T) {
	p := openPool(t, nil)
	p.cfg.Connect = func(ctx context.Context) (*Link, error) {
		return connectTo(ctx, p.dsn, func(c *pgx.ConnConfig) { c.RuntimeParams["statement_timeout"] = "50ms" })
	}
	r := &reading{}
	c := p.NewCall(p.stmt("SELECT pg_sleep(10)::text"), nil, r)
	if !c.Run(context.Background()) || code(c.Err()) != "57014" {
		t.Errorf("Run = %v; want the server's timeout", c.Err())
	}
	if sent := p.Stats().Calls; r.dispatched != 1 || sent != 2 {
		t.Errorf("dispatched %d times, sent %d times; want it sent to be described, and once to run, both by one dispatch", r.dispatched, sent)
	}
}

func TestPool_ConnectionLost(t *testing.T) {
	p := openPool(t, nil)
	for range 5 {
		p.want(t, "1", "SELECT $1::int", 1)
		p.exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()")
		p.want(t, "2", "SELECT $1::int", 2) // on a connection that is dead
	}
	if s := p.Stats(); s.Lost == 0 {
		t.Errorf("Stats = %+v; want calls run again", s)
	}
	// In the middle of a query, again and again: in the end an error says so.
	var stop atomic.Bool
	done := make(chan error, 1)
	go func() {
		_, err := p.query(context.Background(), "SELECT pg_sleep(30)::text")
		stop.Store(true)
		done <- err
	}()
	for !stop.Load() {
		p.exec(t, "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(30)%' AND pid <> pg_backend_pid() AND state = 'active'")
		time.Sleep(time.Millisecond) // until the condition holds
	}
	if err := <-done; code(err) != "57P01" {
		t.Errorf("Query = %v; want the server's last word", err)
	}
}

func TestPool_SlowBesideFast(t *testing.T) {
	p := openPool(t, nil)
	p.want(t, "1", "SELECT $1::int", 1)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	var slow, fast atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for ctx.Err() == nil {
				p.want(t, "1", "SELECT $1::int FROM pg_sleep(0.02)", 1)
				slow.Add(1)
			}
		})
	}
	for range 16 {
		wg.Go(func() {
			for fast.Add(1) < 20_000 {
				p.want(t, "5", "SELECT $1::int", 5)
			}
			stop()
		})
	}
	wg.Wait()
	t.Logf("%d slow, %+v", slow.Load(), p.Stats())
}

func TestRows_Live(t *testing.T) {
	p := openPool(t, nil)
	const text = "SELECT generate_series(1, $1::int)"
	live := func(ctx context.Context, n int) (*reading, *Rows) {
		r := &reading{max: 3}
		c := p.NewCall(p.stmt(text), []any{n}, r)
		if !c.Run(ctx) || c.Err() != nil || c.Live() == nil {
			t.Fatalf("Run: %v, live %v", c.Err(), c.Live())
		}
		return r, c.Live()
	}
	r, rows := live(context.Background(), 10_000)
	n := len(r.rows)
	for rows.Next() {
		n++
		if got := binary.BigEndian.Uint32(rows.RawValues()[0]); int(got) != n {
			t.Fatalf("row %d is %d", n, got)
		}
	}
	if rows.Err() != nil || n != 10_000 {
		t.Errorf("%d rows, %v; want 10000", n, rows.Err())
	}
	_, rows = live(context.Background(), 1000)
	rows.Close()
	waitFor(t, "the connection", func() bool { s := p.Stats(); return s.Open == s.Idle })

	ctx, cancel := context.WithCancel(context.Background())
	_, rows = live(ctx, 100_000_000)
	rows.Watch(ctx)
	cancel()
	rows.Close()
	if code(rows.Err()) != "57014" && !errors.Is(rows.Err(), os.ErrDeadlineExceeded) { // which of them depends on the machine
		t.Errorf("Err = %v; want the cancellation, or that it took too long", rows.Err())
	}
	waitFor(t, "the connection", func() bool { s := p.Stats(); return s.Open == s.Idle })
	p.want(t, "1", "SELECT $1::int", 1)
}

func TestPool_ConnectFails(t *testing.T) {
	boom := errors.New("boom")
	p := New(Config{Connect: func(context.Context) (*Link, error) { return nil, boom }})
	defer p.Close()
	tp := &testPool{Pool: p}
	for range 3 {
		if _, err := tp.query(context.Background(), "SELECT 1"); !errors.Is(err, boom) {
			t.Errorf("Query = %v; want %v", err, boom)
		}
	}
}

func TestPool_Close(t *testing.T) {
	p := openPool(t, func(c *Config) { c.Max, c.Width = 2, 1 })
	p.want(t, "1", "SELECT $1::int", 1)
	const text = "SELECT $1::int FROM pg_sleep(1)"
	errs := make(chan error, 8)
	for range cap(errs) {
		go func() { _, err := p.query(context.Background(), text, 1); errs <- err }()
	}
	waitFor(t, "one that runs, and a queue", func() bool { return p.sleeping(t, "pg_sleep(1)") > 0 && p.Stats().Queued > 0 })
	p.Close()
	closed := 0
	for range cap(errs) {
		if err := <-errs; err == ErrClosed {
			closed++
		} else if err != nil {
			t.Errorf("Query = %v", err)
		}
	}
	if closed == 0 || closed == cap(errs) {
		t.Errorf("%d calls were turned away; want those that waited, and only those", closed)
	}
}

// TestPool_Drop: a connection closes what it has prepared for statements that were
// dropped, when it writes next; one that is called all the same goes on.
func TestPool_Drop(t *testing.T) {
	p := openPool(t, func(cfg *Config) { cfg.Max = 2 })
	text := func(i int) string { return fmt.Sprintf("SELECT %d -- dropped", i) }
	call := func(sql string) string {
		t.Helper()
		r := &reading{max: 10}
		c := p.NewCall(p.stmt(sql), nil, r)
		if !c.Run(t.Context()) || c.Err() != nil {
			t.Fatalf("%s: %v", sql, c.Err())
		}
		return r.rows[0][0]
	}
	prepared := func() string {
		t.Helper()
		return call("SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '%-- dropped'")
	}
	for round := 0; prepared() != "20"; round++ { // on one connection; a late answer can have opened another
		if round == 50 {
			t.Fatalf("%s of 20 statements are prepared", prepared())
		}
		for i := range 20 {
			call(text(i))
		}
	}
	for i := range 15 {
		p.Drop(p.stmt(text(i)))
		p.Drop(p.stmt(text(i))) // as good as once
	}
	if n := prepared(); n != "5" {
		t.Errorf("%s statements are prepared after 15 of 20 were dropped; want 5", n)
	}
	if got := call(text(3)); got != "3" || prepared() != "6" {
		t.Errorf("a dropped statement that is called again gives %s, %s are prepared", got, prepared())
	}
	for i := range 3 * droppedNames { // more than a connection hears of
		p.dropped.add(fmt.Sprint("nobody's ", i))
	}
	if n := prepared(); n != "6" {
		t.Errorf("%s statements are prepared; want 6", n)
	}
	if err := p.Describe(t.Context(), p.stmt("SELECT $1::int -- dropped")); err != nil {
		t.Error(err)
	}
	if oids, ok := p.stmt("SELECT $1::int -- dropped").ParamOIDs(); !ok || len(oids) != 1 || oids[0] != pgtype.Int4OID {
		t.Errorf("ParamOIDs = %v, %v", oids, ok)
	}
	if err := p.Describe(t.Context(), p.stmt("SELECT nosuch -- dropped")); err == nil {
		t.Error("a statement with an error is described")
	}
}
