package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestStalePlan: after DDL, each pooled connection has a prepared statement of its
// own that the server refuses once, whichever of them a flight gets.
func TestStalePlan(t *testing.T) {
	stale := &pgconn.PgError{Severity: "ERROR", Code: "0A000", Message: "cached plan must not change result type", Routine: "RevalidateCachedQuery"}
	// Each session fails as long as failures has something for it.
	server := func(failures map[int][]error) *fakeServer {
		return &fakeServer{answer: func(_ context.Context, s *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			if left := failures[s.id]; len(left) > 0 {
				failures[s.id] = left[1:]
				return nil, left[0]
			}
			return oneRow(int64(s.id)), nil
		}}
	}
	// broken are the failures of the first n sessions, where they break then.
	broken := func(n int) map[int][]error {
		failures := make(map[int][]error)
		for id := 1; id <= n; id++ {
			failures[id] = []error{stale, driver.ErrBadConn}
		}
		return failures
	}
	for _, c := range []struct {
		name     string
		failures map[int][]error
		want     []int // the sessions on which it ran
		err      error
	}{
		{"RunsAgainOnItsConnection", map[int][]error{1: {stale}, 2: {stale}}, []int{1, 1}, nil},
		{"AlsoAfterALostConnection", map[int][]error{1: {driver.ErrBadConn}, 2: {stale}}, []int{1, 2, 2}, nil},
		{"AndThenALostConnection", map[int][]error{1: {stale, driver.ErrBadConn}}, []int{1, 1, 2}, nil},
		{"AndTheNextOneIsStaleToo", map[int][]error{1: {stale, driver.ErrBadConn}, 2: {stale}}, []int{1, 1, 2, 2}, nil},
		{"WhileDDLGoesOn", map[int][]error{1: {stale, stale}}, []int{1, 1, 1}, nil},
		{"AndThatIsLostToo", broken(2), []int{1, 1, 2, 2, 3}, nil}, // database/sql tries again
		{"AndAllOfThem", broken(6), []int{1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6}, stale},
		{"NotForEver", map[int][]error{1: {stale, stale, stale, stale, stale}}, []int{1, 1, 1, 1}, stale},
	} {
		bubble(t, c.name, func(t *testing.T) {
			f := server(c.failures)
			db := openFake(t, f, Config{MaxIdle: -1}) // no connection is used twice but on purpose
			got, err := queryInt(context.Background(), db, hotQuery, 1)
			if !errors.Is(err, c.err) || c.err == nil && got != int64(c.want[len(c.want)-1]) {
				t.Errorf("Query = %d, %v; want session %d's answer or error %v", got, err, c.want[len(c.want)-1], c.err)
			}
			if on := f.on(hotQuery); !slices.Equal(on, c.want) {
				t.Errorf("ran on sessions %v; want %v", on, c.want)
			}
			if s := ReadStats(db); s.Retries != uint64(len(c.want))-s.Flights || s.BufferedBytes != 0 {
				t.Errorf("Stats = %+v; want a retry for each of %d executions but the first of a flight, and no byte kept", s, len(c.want))
			}
		})
	}
}

// TestStaleDescription: flights behind a pooler share what is known of a text's
// columns, and one that began before DDL may note what it was told after another
// has found out.
func TestStaleDescription(t *testing.T) {
	pc, err := pgx.ParseConfig(pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	before := &beforeQuery{}
	pc.Tracer = before
	c, err := NewConnectorWithConfig(pc, Config{Guard: GuardTransaction})
	if err != nil {
		t.Fatal(err)
	}
	db := c.OpenDB()
	defer db.Close()
	const query = "SELECT * FROM shrinks"
	mustExec(t, db, "CREATE TABLE shrinks (a int); INSERT INTO shrinks VALUES (7)")
	if err := RefreshCatalog(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	mustInt(t, db, query)
	v := c.verdicts.get(query, c.peek(t.Context()))
	old := *v.description.Load()
	old.Fields = append(slices.Clone(old.Fields), old.Fields[0])

	before.query = func(text string) {
		if text == query {
			v.description.Store(&old)
		}
	}
	if got := mustInt(t, db, query); got != 7 {
		t.Errorf("a = %d; want 7", got)
	}
	if s := ReadStats(db); s.Retries != 1 {
		t.Errorf("Stats = %+v; want a read that was run again, once", s)
	}
}

// beforeQuery is a pgx.QueryTracer that does something before each query.
type beforeQuery struct{ query func(text string) }

func (b *beforeQuery) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if b.query != nil {
		b.query(data.SQL)
	}
	return ctx
}

func (b *beforeQuery) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestDoubtful_Genuine: an error that is the arguments' own costs its caller, and nobody
// else, another execution; and only where the statement was known before.
func TestDoubtful_Genuine(t *testing.T) {
	dsn := pgtest.Database(t)
	for _, guard := range []Guard{GuardSession, GuardTransaction} {
		c, err := NewConnector(dsn, Config{Executor: ExecutorGeneric, Guard: guard, FlightConns: 1})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		defer db.Close()
		const query = "SELECT 6 / $1::int4"
		for i, call := range []struct {
			arg     any
			code    string
			retries uint64 // of guard=session
		}{
			{"x", "22P02", 0}, // the first on its connection
			{2, "", 0},
			{3, "", 0},
			{"x", "22P02", 1},
			{"y", "22P02", 0}, // pgx has forgotten the statement
			{2, "", 0},
			{0, "22012", 0}, // it was executed
			{2, "", 0},
		} {
			before := ReadStats(db).Retries
			_, err := queryInt(t.Context(), db, query, call.arg)
			var pgErr *pgconn.PgError
			if errors.As(err, &pgErr); (err == nil) != (call.code == "") || err != nil && (pgErr == nil || pgErr.Code != call.code) {
				t.Errorf("guard %v, call %d: %v; want %q", guard, i, err, call.code)
			}
			n := ReadStats(db).Retries - before
			if guard == GuardSession && n != call.retries || n > 1 || call.code != "22P02" && n > 0 {
				t.Errorf("guard %v, call %d: run again %d times; want %d", guard, i, n, call.retries)
			}
			if v := c.verdicts.get(query, c.peek(t.Context())); guard == GuardTransaction && v.description.Load() == nil {
				t.Errorf("guard %v, call %d: others have to describe the statement again", guard, i)
			}
		}
	}
}
