package flightpg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/pgtest"
	"github.com/flightpg/flightpg/internal/pipeline"
)

// openPipeline opens a handle whose flights go through the pipeline, to a database
// of the test's own, and a plain one beside it.
func openPipeline(t *testing.T, cfg Config) (db, plain *sql.DB) {
	t.Helper()
	dsn := pgtest.Database(t)
	cfg.Executor = ExecutorPipeline
	db, err := OpenDB(dsn, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if plain, err = sql.Open("pgx", dsn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = db.Close()
		_ = plain.Close()
	})
	mustExec(t, plain, "CREATE TABLE items (id int PRIMARY KEY, name text); INSERT INTO items SELECT i, 'item ' || i FROM generate_series(1, 1000) i")
	return db, plain
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) { // until the condition holds
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func TestPipeline_Serves(t *testing.T) {
	db, _ := openPipeline(t, Config{})
	c, _ := connectorOf(db)
	var wg sync.WaitGroup
	for i := range 32 {
		wg.Go(func() {
			for j := range 30 {
				id := 1 + (i*30+j)%1000
				var name string
				if err := db.QueryRow("SELECT name FROM items WHERE id = $1", id).Scan(&name); err != nil || name != fmt.Sprint("item ", id) {
					t.Errorf("item %d is %q, %v", id, name, err)
				}
			}
		})
	}
	wg.Wait()
	if s := c.pipe.Stats(); s.Calls < 900 || c.flights.open.Load() != 0 {
		t.Errorf("pipeline %+v, generic %d connections; want all of it through the pipeline", s, c.flights.open.Load())
	}
	if s := ReadStats(db); s.BufferedBytes != 0 || s.Flying != 0 {
		t.Errorf("Stats = %+v; want nothing left", s)
	}
}

// TestPipeline_ArgumentsAreTheCallers: they may be changed the moment QueryContext
// has returned, although the flight goes on for others.
func TestPipeline_ArgumentsAreTheCallers(t *testing.T) {
	db, plain := openPipeline(t, Config{Mode: ModeJoin})
	mustExec(t, plain, "CREATE TABLE gate ()")
	const query = "SELECT encode($1::bytea, 'escape') FROM items, (SELECT count(*) FROM gate) g WHERE id = 1"
	var got string
	if err := RefreshCatalog(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	tx, err := plain.Begin()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec("LOCK TABLE gate"); err != nil {
		t.Fatal(err)
	}
	arg := []byte("mine")
	ctx, cancel := context.WithCancel(t.Context())
	led, followed := make(chan error, 1), make(chan error, 1)
	go func() {
		err := db.QueryRowContext(ctx, query, arg).Scan(new(string))
		copy(arg, "gone")
		led <- err
	}()
	c, _ := connectorOf(db)
	eventually(t, "the flight", func() bool { return c.pipe.Stats().Calls == 1 && ReadStats(db).Waiting == 1 })
	go func() { followed <- db.QueryRow(query, []byte("mine")).Scan(&got) }()
	eventually(t, "the follower", func() bool { return ReadStats(db).Waiting == 2 })
	cancel()
	if err := <-led; !errors.Is(err, context.Canceled) {
		t.Errorf("the leader: %v", err)
	}
	// The statement is being described behind the lock: its arguments are encoded
	// only now.
	_ = tx.Rollback()
	if err := <-followed; err != nil || got != "mine" {
		t.Errorf("the follower got %q, %v; want %q", got, err, "mine")
	}
}

func TestPipeline_ErrorsArePgx(t *testing.T) {
	db, plain := openPipeline(t, Config{})
	for _, tc := range []struct {
		query string
		args  []any
	}{
		{"SELECT name FROM nothing", nil},
		{"SELECT nme FROM items", nil},
		{"SELECT name FROM items WHERE", nil},
		{"SELECT id / $1 FROM items", []any{0}},
		{"SELECT name FROM items WHERE id = $1", nil},
		{"SELECT name FROM items WHERE id = $1", []any{"x"}},
		{"SELECT name FROM items WHERE id = $1", []any{1, 2}},
		{"SELECT $1::text FROM items", []any{7}},
		{"SELECT id / (id - 500) FROM items ORDER BY id", nil},
	} {
		for range 3 {
			run := func(db *sql.DB) string {
				rows, err := db.Query(tc.query, tc.args...)
				if err != nil {
					return fmt.Sprintf("%T %v", err, err)
				}
				defer rows.Close()
				n := 0
				for rows.Next() {
					n++
				}
				return fmt.Sprintf("%d rows, %T %v", n, rows.Err(), rows.Err())
			}
			if got, want := run(db), run(plain); got != want {
				t.Errorf("%s %v:\nflightpg %s\npgx      %s", tc.query, tc.args, got, want)
			}
		}
	}
}

func TestPipeline_Overflow(t *testing.T) {
	db, _ := openPipeline(t, Config{MaxResult: 8 << 10})
	for range 3 {
		rows, err := db.Query("SELECT id, name FROM items ORDER BY id")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for rows.Next() {
			var id int
			var name string
			if err := rows.Scan(&id, &name); err != nil || id != n+1 || name != fmt.Sprint("item ", id) {
				t.Fatalf("row %d is %d %q, %v", n, id, name, err)
			}
			n++
		}
		if rows.Err() != nil || n != 1000 {
			t.Errorf("%d rows, %v; want 1000", n, rows.Err())
		}
		c, _ := connectorOf(db)
		c.verdicts.get("SELECT id, name FROM items ORDER BY id", c.peek(t.Context())).avoid.Store(0) // it may fly again
	}
	c, _ := connectorOf(db)
	eventually(t, "the connection to be free", func() bool { s := c.pipe.Stats(); return s.Open == s.Idle })
	if s := ReadStats(db); s.Overflows == 0 || s.BufferedBytes != 0 {
		t.Errorf("Stats = %+v; want overflows, and no memory held", s)
	}
}

func TestPipeline_Stream(t *testing.T) {
	db, _ := openPipeline(t, Config{})
	for range 3 * unsharedRun {
		rows, err := db.Query("SELECT id, repeat(name, 20) FROM items ORDER BY id")
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for rows.Next() {
			var id int
			var name string
			if err := rows.Scan(&id, &name); err != nil || id != n+1 || name != strings.Repeat(fmt.Sprint("item ", id), 20) {
				t.Fatalf("row %d is %d %q, %v", n, id, name, err)
			}
			n++
		}
		if rows.Err() != nil || n != 1000 {
			t.Errorf("%d rows, %v; want 1000", n, rows.Err())
		}
	}
	c, _ := connectorOf(db)
	eventually(t, "the connection to be free", func() bool { s := c.pipe.Stats(); return s.Open == s.Idle })
	if s := ReadStats(db); s.Streams != 2*unsharedRun-2 || s.Overflows != 0 || len(s.Bypasses) != 0 || s.BufferedBytes != 0 {
		t.Errorf("Stats = %+v; want %d streamed, and no memory held", s, 2*unsharedRun-2)
	}
}

func TestPipeline_Guard(t *testing.T) {
	db, plain := openPipeline(t, Config{TrustDeclared: true})
	// What the rules let pass as stable, and is not.
	mustExec(t, plain, "CREATE FUNCTION write() RETURNS int LANGUAGE plpgsql VOLATILE AS 'BEGIN INSERT INTO items VALUES (5000, NULL); RETURN 1; END'")
	mustExec(t, plain, "CREATE FUNCTION sneaky() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN write(); END'")
	var n int
	if err := db.QueryRow("SELECT sneaky()").Scan(&n); err != nil || n != 1 {
		t.Errorf("Query = %d, %v; want the caller's own execution", n, err)
	}
	if s := ReadStats(db); s.Refused != 1 || s.Bypasses[ReasonRefused] != 1 {
		t.Errorf("Stats = %+v; want it refused once", s)
	}
	// One that turns the guard off is never shared again.
	mustExec(t, plain, "CREATE FUNCTION unguard() RETURNS text LANGUAGE sql STABLE AS $$SELECT set_config('default_transaction_read_only', 'off', false)$$")
	if err := RefreshCatalog(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := db.QueryRow("SELECT unguard()").Scan(new(string)); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "the statement to be known", func() bool {
		if err := db.QueryRow("SELECT unguard()").Scan(new(string)); err != nil {
			t.Error(err)
		}
		return ReadStats(db).Bypasses[ReasonRefused] > 1
	})
}

func TestPipeline_Timeout(t *testing.T) {
	// A busy machine may take a tenth of that for the next read.
	db, _ := openPipeline(t, Config{Timeout: time.Second})
	eventually(t, "flights", func() bool { // without the catalog, which a busy machine may have to wait for, the read would go on for ever
		_ = db.QueryRow("SELECT name FROM items WHERE id = 1").Scan(new(string))
		return ReadStats(db).Flights > 0
	})
	err := db.QueryRow("SELECT count(*) FROM items a, items b, items c, items d").Scan(new(int))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "flight_timeout") {
		t.Errorf("Query = %v; want flight_timeout", err)
	}
	var name string
	if err := db.QueryRow("SELECT name FROM items WHERE id = 7").Scan(&name); err != nil || name != "item 7" {
		t.Errorf("the next read: %q, %v", name, err)
	}
}

func TestPipeline_CannotServe(t *testing.T) {
	dsn := pgtest.Database(t)
	for name, tc := range map[string]struct {
		dsn string
		cfg Config
		say string
	}{
		"ExecMode":     {with(dsn, "default_query_exec_mode=exec"), Config{}, "prepare every statement"},
		"Guard":        {with(dsn, "flight_guard=transaction"), Config{}, "flight_guard=transaction"},
		"FewConns":     {with(dsn, "flight_conns=2"), Config{}, "flight_conns"},
		"PartitionKey": {dsn, Config{PartitionKey: func(context.Context) string { return "" }}, "hooks"},
		"ResetSession": {dsn, Config{ResetSession: func(context.Context, *pgx.Conn) error { return nil }}, "hooks"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := tc.cfg
			cfg.Executor = ExecutorPipeline
			if _, err := NewConnector(tc.dsn, cfg); err == nil || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("NewConnector = %v; want an error that says %q", err, tc.say)
			}
			cfg.Executor = ExecutorAuto // with the tag flightpg_generic there is none anyway
			db, err := OpenDB(tc.dsn, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			var n int
			if err := db.QueryRow("SELECT 7").Scan(&n); err != nil || n != 7 {
				t.Errorf("Query = %d, %v; want it served the generic way", n, err)
			}
			if c, _ := connectorOf(db); c.pipe != nil {
				t.Error("there is a pipeline")
			}
		})
	}
	if _, err := Wrap(&fakeServer{}, Config{Executor: ExecutorPipeline}); err == nil {
		t.Error("Wrap of another driver: no error")
	}
	t.Run("Tracer", func(t *testing.T) {
		pc, err := pgx.ParseConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		pc.Tracer = tracer{}
		if _, err := NewConnectorWithConfig(pc, Config{Executor: ExecutorPipeline}); err == nil {
			t.Error("no error")
		}
	})
	t.Run("OneCall", func(t *testing.T) {
		db, _ := openPipeline(t, Config{})
		var n int
		if err := db.QueryRow("SELECT 7", pgx.QueryExecModeExec).Scan(&n); err != nil || n != 7 {
			t.Errorf("Query = %d, %v", n, err)
		}
		if c, _ := connectorOf(db); c.pipe.Stats().Calls != 0 {
			t.Error("it went through the pipeline")
		}
	})
	if _, err := NewConnector(with(dsn, "flight_executor=fast"), Config{}); err == nil {
		t.Error("flight_executor=fast: no error")
	}
}

// with adds a parameter to a DSN.
func with(dsn, param string) string {
	if strings.Contains(dsn, "?") {
		return dsn + "&" + param
	}
	return dsn + "?" + param
}

type tracer struct{}

func (tracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}
func (tracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestRefusedIsNoDDL: a function that is not there has done nothing, however often it is
// asked for; the catalog is not loaded again for what it might have done.
func TestRefusedIsNoDDL(t *testing.T) {
	db, _ := openPipeline(t, Config{})
	mustInt(t, db, "SELECT 1 FROM items LIMIT 1")
	c, err := connectorOf(db)
	if err != nil {
		t.Fatal(err)
	}
	before := c.catalogs.maybes.Load()
	for range 3 {
		if _, err := db.Exec("SELECT no_such_function(1)"); err == nil {
			t.Error("Exec: no error")
		}
		if err := db.QueryRow("SELECT no_such_function($1)", 1).Scan(new(int)); err == nil {
			t.Error("Query: no error")
		}
	}
	if n := c.catalogs.maybes.Load(); n != before {
		t.Errorf("%d times it was taken for what may be DDL", n-before)
	}
	mustExec(t, db, "DO 'BEGIN END'")
	if n := c.catalogs.maybes.Load(); n != before+1 {
		t.Errorf("DO was taken for DDL %d times; want once", n-before)
	}
}

// TestPipeline_Settled: a connection whose settings have changed while it was set up is not
// used: what they say of a text is not what was looked at.
func TestPipeline_Settled(t *testing.T) {
	db, _ := openPipeline(t, Config{})
	mustInt(t, db, "SELECT 1 FROM items LIMIT 1")
	c, err := connectorOf(db)
	if err != nil {
		t.Fatal(err)
	}
	link, err := c.pipe.connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer link.PgConn.Conn().Close()
	if link.Settled == nil {
		t.Fatal("nobody looks at what was reported meanwhile")
	}
	reported := func(changed string) map[string]string {
		m := map[string]string{"TimeZone": "Mars"} // which says nothing about texts
		for _, name := range pipeline.Meanings {
			m[name] = link.PgConn.ParameterStatus(name)
		}
		if changed != "" {
			m[changed] += " changed"
		}
		return m
	}
	if err := link.Settled(reported("")); err != nil {
		t.Errorf("as it was: %v", err)
	}
	for _, name := range pipeline.Meanings {
		if err := link.Settled(reported(name)); err != error(bypassError(ReasonSettings)) {
			t.Errorf("with another %s: %v; want that it is not used", name, err)
		}
	}
}
