package isolation

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"reflect"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// word is a named type of bytes, as uuid.UUID's and decimal's are.
type word []byte

// point is a struct of scalars.
type point struct {
	X, Y int64
	Name string
}

// argument makes an argument, the same for the same number, and what writes over
// all the memory that it shares with its owner.
type argument func(n uint64) (value any, scribble func())

var arguments = []argument{
	func(n uint64) (any, func()) { b := pattern(n, 24); return b, func() { clear(b) } },
	func(n uint64) (any, func()) { b := word(pattern(n, 9)); return b, func() { clear(b) } },
	func(n uint64) (any, func()) { v := int64(n); return &v, func() { v = -1 } },
	func(n uint64) (any, func()) { v := string(pattern(n, 12)); return &v, func() { v = "scribbled" } },
	func(n uint64) (any, func()) {
		b := pattern(n, 24)
		return &b, func() { clear(b); b = nil }
	},
	func(n uint64) (any, func()) {
		v := []int64{int64(n), int64(n) + 1, int64(n) + 2}
		return v, func() { clear(v) }
	},
	func(n uint64) (any, func()) {
		v := []string{string(pattern(n, 5)), string(pattern(n+1, 6))}
		return v, func() { clear(v) }
	},
	func(n uint64) (any, func()) {
		v := [][]byte{pattern(n, 5), pattern(n+1, 6)}
		return v, func() { clear(v[0]); clear(v[1]); clear(v) }
	},
	func(n uint64) (any, func()) {
		s := string(pattern(n, 7))
		v := []*string{&s, nil}
		return v, func() { s = "scribbled"; v[1] = &s }
	},
	func(n uint64) (any, func()) {
		v := point{int64(n), 2, string(pattern(n, 3))}
		return &v, func() { v = point{} }
	},
	func(n uint64) (any, func()) {
		v := time.Unix(int64(n%1e9), 0).UTC()
		return &v, func() { v = time.Time{} }
	},
	func(n uint64) (any, func()) {
		b := pattern(n, 16)
		return sql.Named("arg", b), func() { clear(b) }
	},
	func(n uint64) (any, func()) {
		v := []point{{int64(n), 1, "a"}, {2, int64(n), "b"}}
		return v, func() { clear(v) }
	},
	func(n uint64) (any, func()) {
		v := [4]int32{int32(n), 2, 3, 4}
		return &v, func() { clear(v[:]) }
	},
}

// show prints a value with what is behind its pointers.
func show(v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() {
			return "nil"
		}
		return "&" + show(v.Elem())
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return fmt.Sprintf("%q", v.Bytes())
		}
		var b strings.Builder
		for i := range v.Len() {
			b.WriteString(show(v.Index(i)) + ",")
		}
		return "[" + b.String() + "]"
	}
	return fmt.Sprint(v.Interface())
}

func showAll(args []driver.NamedValue) string {
	var b strings.Builder
	for _, a := range args {
		fmt.Fprintf(&b, "%s=%s ", a.Name, show(reflect.ValueOf(a.Value)))
	}
	return b.String()
}

// slow is an inner driver whose executions look at their arguments at their
// beginning and at their end, between which the test writes over them, and give
// back what they saw.
type slow struct{ innerConn }

// execution is what a test knows of one.
type execution struct {
	began   chan string   // what the arguments are
	release chan struct{} // closed when it may end
	lost    atomic.Int32  // how many times the connection fails first
}

type executionKey struct{}

func (*slow) Connect(context.Context) (driver.Conn, error) { return &slow{}, nil }
func (*slow) Driver() driver.Driver                        { return nil }

func (*slow) QueryContext(ctx context.Context, _ string, args []driver.NamedValue) (driver.Rows, error) {
	x := ctx.Value(executionKey{}).(*execution)
	first := showAll(args)
	x.began <- first
	<-x.release
	if x.lost.Add(-1) >= 0 {
		args[0].Value = "the inner driver's own scribble"
		return nil, driver.ErrBadConn
	}
	return &shown{[]string{first, showAll(args)}}, nil
}

// shown are rows of text.
type shown struct{ rows []string }

func (r *shown) Columns() []string { return []string{"shown"} }
func (r *shown) Close() error      { return nil }
func (r *shown) Next(dest []driver.Value) error {
	if len(r.rows) == 0 {
		return io.EOF
	}
	dest[0], r.rows = r.rows[0], r.rows[1:]
	return nil
}

func TestArguments(t *testing.T) {
	seed := battery.Seed(t)
	t.Run("Inner", func(t *testing.T) {
		e := battery.Report(t, "isolation", "arguments that their caller writes over as soon as its call returns are the flight's as they were", seed)
		c, err := flightpg.Wrap(&slow{}, flightpg.Config{TrustNames: []string{"*"}})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		defer db.Close()
		rounds := battery.N(300, 30_000)
		failures := 0
		for n := 1; n <= rounds && failures == 0; n++ {
			if err := argumentsRound(db, battery.Rand(seed, n), uint64(n)); err != nil {
				failures++
				t.Errorf("seed %d, round %d: %v", seed, n, err)
			}
		}
		s := flightpg.ReadStats(db)
		e.Set("rounds", rounds)
		e.Set("kinds of arguments", len(arguments))
		e.Set("flights", s.Flights)
		e.Set("run again on another connection", s.Retries)
		e.Set("arguments changed", failures)
		if failures > 0 {
			return
		}
		if len(s.Bypasses) > 0 || s.Flights != uint64(rounds) || s.Retries == 0 {
			t.Errorf("Stats = %+v; want a flight for each of %d rounds", s, rounds)
		}
	})
	t.Run("PostgreSQL", func(t *testing.T) {
		e := battery.Report(t, "isolation", "arguments written over while their flight waits for a connection reach PostgreSQL as they were", seed)
		dsn := pgtest.Database(t)
		rounds := battery.N(10, 500)
		e.Set("rounds", rounds)
		argumentsInPostgres(t, dsn, seed, rounds)
	})
}

// argumentsRound: a leader, one or two that leave early and one that stays share a
// flight. Those who leave write over their arguments at once; the flight, which may
// have to run twice, must not notice.
func argumentsRound(db *sql.DB, rnd *rand.Rand, n uint64) error {
	var makers []argument
	for range 1 + rnd.IntN(3) {
		makers = append(makers, arguments[rnd.IntN(len(arguments))])
	}
	give := func() (args []any, scribble func()) {
		var all []func()
		for i, m := range makers {
			v, s := m(mix(n<<8 + uint64(i)))
			args, all = append(args, v), append(all, s)
		}
		args = append(args, n) // no two rounds are one
		return args, func() {
			for _, s := range all {
				s()
			}
		}
	}
	x := &execution{began: make(chan string), release: make(chan struct{})}
	if rnd.IntN(4) == 0 {
		x.lost.Store(1)
	}
	ctx := context.WithValue(context.Background(), executionKey{}, x)
	query := "SELECT shown FROM made WHERE $1 IS NOT NULL"
	callers := int64(0)
	begin := func(ctx context.Context) <-chan error {
		callers++
		ended := make(chan error, 1)
		args, scribble := give()
		go func() {
			rows, err := db.QueryContext(ctx, query, args...)
			scribble()
			if err == nil {
				err = readShown(rows, n)
			}
			ended <- err
		}()
		return ended
	}
	leaving, leave := context.WithCancel(ctx)
	defer leave()
	leader := begin(leaving)
	original := <-x.began
	var early []<-chan error
	for range rnd.IntN(3) {
		early = append(early, begin(leaving))
	}
	stays := begin(ctx)
	// All must be in the flight before the first one goes: it would end with its last.
	if err := await("all callers to wait", func() bool { return flightpg.ReadStats(db).Waiting == callers }); err != nil {
		return err
	}
	leave()
	for _, ended := range append(early, leader) {
		if err := <-ended; !errors.Is(err, context.Canceled) {
			return fmt.Errorf("a caller that left got %v; want %v", err, context.Canceled)
		}
	}
	again := x.lost.Load() > 0
	close(x.release) // all who left have written over what they gave
	if again {
		if second := <-x.began; second != original {
			return fmt.Errorf("the arguments were %s in the first execution and were changed by their caller to %s in the second", original, second)
		}
	}
	if err := <-stays; err != nil {
		return fmt.Errorf("%w; they were %s", err, original)
	}
	return nil
}

func readShown(rows *sql.Rows, n uint64) error {
	defer rows.Close()
	var all []string
	for rows.Next() {
		var s string
		if err := rows.Scan(&s); err != nil {
			return err
		}
		all = append(all, s)
	}
	if err := rows.Err(); err != nil {
		return err
	}
	switch {
	case len(all) != 2:
		return fmt.Errorf("%d rows", len(all))
	case all[0] != all[1]:
		return fmt.Errorf("the arguments were %s at the beginning of the execution and were changed by their caller to %s", all[0], all[1])
	}
	return nil
}

// patience bounds every wait for a condition: longer is a hang.
const patience = time.Minute

// await returns when cond holds.
func await(what string, cond func() bool) error {
	deadline := time.Now().Add(patience)
	for !cond() {
		if time.Now().After(deadline) {
			return errors.New("no end to waiting for " + what)
		}
		runtime.Gosched()
	}
	return nil
}

// argumentsInPostgres has flights wait for the only connection while their leaders
// leave and write over what they passed.
func argumentsInPostgres(t *testing.T, dsn string, seed uint64, rounds int) {
	ctx := t.Context()
	db, err := flightpg.OpenDB(dsn, flightpg.Config{FlightConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	gate, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer gate.Close(context.WithoutCancel(ctx))
	run := func(sql string) {
		t.Helper()
		if _, err := gate.Exec(ctx, sql); err != nil {
			t.Fatal(err)
		}
	}
	run("CREATE TABLE gate ()")
	if err := shared(db, "SELECT count(*) FROM gate"); err != nil {
		t.Fatal(err)
	}
	before := flightpg.ReadStats(db)
	const (
		positional = "SELECT $1::bytea::text, $2::text[]::text, $3::text, $4::bigint[]::text, $5::bytea[]::text"
		named      = "SELECT @bytes::bytea::text, @texts::text[]::text, @text::text, @numbers::bigint[]::text, @many::bytea[]::text"
	)
	for round := range rounds {
		run("BEGIN; LOCK TABLE gate")
		blocked := make(chan error, 1)
		go func() {
			var n int
			blocked <- db.QueryRowContext(ctx, "SELECT count(*) FROM gate").Scan(&n)
		}()
		waiting := func(n int64) {
			t.Helper()
			if err := await("callers to wait", func() bool { return flightpg.ReadStats(db).Waiting == n }); err != nil {
				t.Fatalf("seed %d, round %d: %v: %+v", seed, round, err, flightpg.ReadStats(db))
			}
		}
		waiting(1)
		// It must have the connection before others come.
		err := await("the gate", func() bool {
			var n int
			err := gate.QueryRow(ctx, "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'gate'::regclass").Scan(&n)
			return err != nil || n > 0
		})
		if err != nil {
			t.Fatal(err)
		}
		begin := func(ctx context.Context) <-chan error {
			ended := make(chan error, 1)
			number := int64(mix(seed + uint64(round)))
			b, text := pattern(uint64(number), 8), fmt.Sprint(number)
			texts, numbers, many := []string{text, "b"}, []int64{number, 2}, [][]byte{[]byte(text), {1}}
			query, args := positional, []any{b, texts, &text, numbers, many}
			byName := pgx.NamedArgs{"bytes": b, "texts": texts, "text": &text, "numbers": numbers, "many": many}
			if round%2 == 1 {
				query, args = named, []any{byName}
			}
			want := [...]string{
				fmt.Sprintf(`\x%x`, b), "{" + text + ",b}", text, fmt.Sprintf("{%d,2}", number), fmt.Sprintf(`{"\\x%x","\\x01"}`, text),
			}
			go func() {
				var got [5]string
				row := db.QueryRowContext(ctx, query, args...)
				clear(b)
				clear(texts)
				clear(numbers)
				clear(many[0])
				clear(many)
				clear(byName)
				text = "scribbled"
				err := row.Scan(&got[0], &got[1], &got[2], &got[3], &got[4])
				if err == nil && got != want {
					err = fmt.Errorf("PostgreSQL got %q; want %q", got, want)
				}
				ended <- err
			}()
			return ended
		}
		leaving, leave := context.WithCancel(ctx)
		leader := begin(leaving)
		waiting(2)
		stays := begin(ctx)
		waiting(3)
		leave()
		if err := <-leader; !errors.Is(err, context.Canceled) {
			t.Errorf("seed %d, round %d: the leader got %v; want %v", seed, round, err, context.Canceled)
		}
		run("COMMIT")
		if err := errors.Join(<-stays, <-blocked); err != nil {
			t.Errorf("seed %d, round %d: %v", seed, round, err)
		}
	}
	s := flightpg.ReadStats(db)
	if !maps.Equal(s.Bypasses, before.Bypasses) || s.Flights-before.Flights != uint64(2*rounds) || s.Joins != uint64(rounds) {
		t.Errorf("Stats = %+v, before %+v; want two flights in each of %d rounds, one with a follower", s, before, rounds)
	}
}

// shared reads until a read is shared: the first ones are not if the catalog takes
// its time to come.
func shared(db *sql.DB, query string, args ...any) error {
	var err error
	done := func() bool {
		before := flightpg.ReadStats(db)
		var rows *sql.Rows
		if rows, err = db.Query(query, args...); err != nil {
			return true
		}
		err = rows.Close()
		return err != nil || flightpg.ReadStats(db).Flights > before.Flights
	}
	return errors.Join(await("a read to be shared", done), err)
}
