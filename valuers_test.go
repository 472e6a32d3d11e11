package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// asking is a Valuer that says what it is told to, and counts.
type asking struct {
	calls *atomic.Int32
	value func(call int32) (driver.Value, error)
}

func (v asking) Value() (driver.Value, error) { return v.value(v.calls.Add(1)) }

// answers is a Valuer with that value.
func answers(calls *atomic.Int32, value driver.Value) asking {
	return asking{calls, func(int32) (driver.Value, error) { return value, nil }}
}

// answered is the end of a read, and what it took.
type answered struct {
	rows  string
	err   string
	calls int32
}

func answerOf(db *sql.DB, query string, args []any, calls *atomic.Int32) (a answered) {
	calls.Store(0)
	rows, err := db.Query(query, args...)
	if err == nil {
		for rows.Next() {
			var v any
			err = errors.Join(err, rows.Scan(&v))
			a.rows += fmt.Sprintf("%q|", v)
		}
		err = errors.Join(err, rows.Err(), rows.Close())
	}
	if a.calls = calls.Load(); err != nil {
		a.err = err.Error()
	}
	return a
}

// TestValuers_LikePGX: what a read with Valuers gives, what its error says and how often
// they are asked is as with pgx.
func TestValuers_LikePGX(t *testing.T) {
	dsn := pgtest.Database(t)
	var calls atomic.Int32
	scratch := make([]byte, 3)
	reused := func(s string) asking {
		return asking{&calls, func(int32) (driver.Value, error) { copy(scratch, s); return scratch, nil }}
	}
	boom := errors.New("boom")
	fails := func(times int32) asking {
		return asking{&calls, func(call int32) (driver.Value, error) {
			if call <= times {
				return nil, boom
			}
			return "ok", nil
		}}
	}
	for _, tc := range []struct {
		name, query string
		args        func() []any
		but         string // what may be different: "calls"
	}{
		{"Once", "SELECT $1::text", func() []any { return []any{answers(&calls, "a")} }, ""},
		{"Two", "SELECT $1::text || $2::int", func() []any { return []any{answers(&calls, "a"), answers(&calls, int64(2))} }, ""},
		{"OneBuffer", "SELECT encode($1::bytea, 'escape') || encode($2::bytea, 'escape')", func() []any { return []any{reused("aaa"), reused("bbb")} }, ""},
		{"OneBufferInAList", "SELECT array_to_string($1::text[], ',')", func() []any { return []any{[]asking{reused("aaa"), reused("bbb")}} }, ""},
		{"ChangesAnother", "SELECT $1::text || $2::text", func() []any {
			other := new("as it was")
			return []any{other, asking{&calls, func(int32) (driver.Value, error) { *other = "changed"; return "!", nil }}}
		}, ""},
		{"BesideAList", "SELECT $1::text || ($2::json)::text", func() []any { return []any{answers(&calls, "a"), []int{1}} }, ""},
		{"BesideAListOfValuers", "SELECT $1::text || ($2::json)::text", func() []any { return []any{answers(&calls, "a"), []id{{1}}} }, ""},
		{"Fails", "SELECT $1::text", func() []any { return []any{fails(9)} }, ""},
		{"FailsOnce", "SELECT $1::text", func() []any { return []any{fails(1)} }, ""},
		{"NoSuchColumn", "SELECT $1::text, nosuch", func() []any { return []any{answers(&calls, "a")} }, ""},
		{"TooMany", "SELECT $1::text", func() []any { return []any{answers(&calls, "a"), answers(&calls, "b")} }, ""},
		{"TooFew", "SELECT $1::text || $2::text", func() []any { return []any{answers(&calls, "a")} }, ""},
		{"DoesNotFit", "SELECT $1::int4", func() []any { return []any{answers(&calls, "abc")} }, "calls"},         // the server refuses it
		{"CannotBeEncoded", "SELECT $1::text", func() []any { return []any{answers(&calls, int64(1))} }, "calls"}, // pgx asks for each format
		{"ListCannotBeEncoded", "SELECT $1::int[]", func() []any { return []any{[]asking{answers(&calls, true)}} }, "calls"},
		{"ListFails", "SELECT $1::text[]", func() []any { return []any{[]asking{answers(&calls, "a"), fails(9)}} }, "calls"},
	} {
		for _, mode := range []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol} {
			pc, err := pgx.ParseConfig(dsn)
			if err != nil {
				t.Fatal(err)
			}
			pc.DefaultQueryExecMode = mode
			native := stdlib.OpenDB(*pc)
			want := answerOf(native, tc.query, tc.args(), &calls)
			native.Close()
			for _, executor := range []Executor{ExecutorAuto, ExecutorGeneric} {
				c, err := NewConnectorWithConfig(pc, Config{Executor: executor})
				if err != nil {
					t.Fatal(err)
				}
				db := c.OpenDB()
				got := answerOf(db, tc.query, tc.args(), &calls)
				db.Close()
				if tc.but == "calls" {
					got.calls = want.calls
				}
				// Functions are printed by their addresses.
				if head, _, ok := strings.Cut(got.err, "0x"); ok && strings.HasPrefix(want.err, head) {
					got.err = want.err
				}
				if got != want {
					t.Errorf("%s, %v, %v: %+v; want %+v", tc.name, mode, executor, got, want)
				}
			}
		}
	}
}

// ticket is a Valuer whose fields do not tell what it sends.
type ticket struct{}

var tickets atomic.Int64

func (ticket) Value() (driver.Value, error) { return fmt.Sprint("ticket ", tickets.Add(1)), nil }

// TestValuers_NotByFields: each caller of such a Valuer gets what its own one has
// returned, whatever hooks have registered and whatever the inner driver is.
func TestValuers_NotByFields(t *testing.T) {
	dsn := pgtest.Database(t)
	register := func(m *pgtype.Map) {
		m.RegisterType(&pgtype.Type{Name: "foreign", OID: 99999, Codec: foreignCodec{}})
		m.TryWrapEncodePlanFuncs = append([]pgtype.TryWrapEncodePlanFunc{wrapNothing}, m.TryWrapEncodePlanFuncs...)
	}
	for name, cfg := range map[string]Config{
		"Plain":           {},
		"Generic":         {Executor: ExecutorGeneric},
		"Hooks":           {AfterConnect: func(_ context.Context, c *pgx.Conn) error { register(c.TypeMap()); return nil }},
		"HooksAndGeneric": {Executor: ExecutorGeneric, AfterConnect: func(_ context.Context, c *pgx.Conn) error { register(c.TypeMap()); return nil }},
		"Replaced": {AfterConnect: func(_ context.Context, c *pgx.Conn) error {
			c.TypeMap().RegisterType(&pgtype.Type{Name: "text", OID: pgtype.TextOID, Codec: foreignCodec{}})
			return nil
		}},
		"ReplacedLater": {
			Executor:     ExecutorGeneric,
			PartitionKey: func(context.Context) string { return "" },
			ResetSession: func(_ context.Context, c *pgx.Conn) error {
				c.TypeMap().RegisterType(&pgtype.Type{Name: "text", OID: pgtype.TextOID, Codec: foreignCodec{}})
				return nil
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			db, err := OpenDB(dsn, cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			for range 3 {
				mustInt(t, db, "SELECT 1")
			}
			if c, err := connectorOf(db); err != nil || strings.HasPrefix(name, "Replaced") && c.types.Load().asksValue(pgtype.TextOID, ticket{}) {
				t.Errorf("a codec that a hook has registered is not seen: %v", err)
			}
			var mu sync.Mutex
			seen := map[string]bool{}
			var wg sync.WaitGroup
			before := tickets.Load()
			const callers = 32
			for range callers {
				wg.Go(func() {
					var s string
					if err := db.QueryRow("SELECT $1::text", ticket{}).Scan(&s); err != nil {
						t.Error(err)
					}
					mu.Lock()
					seen[s] = true
					mu.Unlock()
				})
			}
			wg.Wait()
			if n := tickets.Load() - before; len(seen) != callers || n != callers {
				t.Errorf("%d callers got %d values, after %d calls of Value", callers, len(seen), n)
			}
		})
	}
	t.Run("OtherDriver", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		for range 3 {
			if rows, err := db.Query(hotQuery, ticket{}); err != nil {
				t.Fatal(err)
			} else if err := rows.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if s := ReadStats(db); s.Flights != 0 || s.Bypasses[ReasonArgument] != 3 {
			t.Errorf("Stats = %+v; want no flights", s)
		}
	})
}

// redacted hides what it holds from those who print it.
type redacted struct{ secret string }

func (r redacted) Value() (driver.Value, error) { return r.secret, nil }
func (r redacted) String() string               { return "[redacted]" }

type printingTracer struct {
	mu   sync.Mutex
	seen []string
}

func (p *printingTracer) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
		p.seen = append(p.seen, fmt.Sprintf(verb, data.Args))
	}
	return ctx
}

func (p *printingTracer) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestValuers_Traced: a tracer that prints arguments does not get to see what a Valuer
// hides.
func TestValuers_Traced(t *testing.T) {
	pc, err := pgx.ParseConfig(pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	tracer := &printingTracer{}
	pc.Tracer = tracer
	for _, guard := range []Guard{GuardAuto, GuardTransaction} {
		c, err := NewConnectorWithConfig(pc, Config{Guard: guard})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		for _, query := range []string{"SELECT $1::text", "SELECT $1::text FROM pg_settings LIMIT 1"} { // shared, and not
			var s string
			if err := db.QueryRow(query, redacted{"hunter2"}).Scan(&s); err != nil || s != "hunter2" {
				t.Errorf("got %q, %v", s, err)
			}
		}
		db.Close()
	}
	tracer.mu.Lock()
	defer tracer.mu.Unlock()
	for _, s := range tracer.seen {
		if strings.Contains(s, "hunter2") && !strings.Contains(s, "redacted{") { // %#v of the caller's own shows fields, as with pgx
			t.Errorf("the tracer printed %s", s)
		}
	}
	if len(tracer.seen) == 0 {
		t.Error("the tracer saw nothing")
	}
}

// TestValuers_TypeChanged: DDL of others turns an array parameter into a JSON one. A
// list of Valuers is sent as pgx sends it then.
func TestValuers_TypeChanged(t *testing.T) {
	handles, admin := openBoth(t)
	db := handles[ExecutorGeneric]
	exec := func(s string) {
		t.Helper()
		if _, err := admin.Exec(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	const create = `CREATE FUNCTION f(x %s) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT pg_typeof(x)::text'`
	exec(fmt.Sprintf(create, "bytea[]"))
	var got string
	if err := db.QueryRow("SELECT f($1)", []id{{1}}).Scan(&got); err != nil || got != "bytea[]" {
		t.Fatal(got, err)
	}
	exec("DROP FUNCTION f; " + fmt.Sprintf(create, "jsonb"))
	var wg sync.WaitGroup
	for range 20 { // the first may fail, as pgx's prepared statements do
		if err := db.QueryRow("SELECT f($1)", []id{{1}}).Scan(&got); err != nil && strings.Contains(err.Error(), "flightpg") {
			t.Errorf("an error of flightpg's own: %v", err)
		}
	}
	for range 8 {
		wg.Go(func() {
			var got string
			if err := db.QueryRow("SELECT f($1)", []id{{1}}).Scan(&got); err != nil || got != "jsonb" {
				t.Errorf("got %q, %v", got, err)
			}
		})
	}
	wg.Wait()
}
