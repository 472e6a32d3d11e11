package integration

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// What callers who know nothing of each other can do to each other on the connections
// that their reads share. Each test has pgx's driver as its measure, or what PostgreSQL
// says of a connection that belongs to one caller.

// strangers opens flightpg with the pipeline, or fails where that could not be used.
func strangers(t *testing.T, dsn string, cfg flightpg.Config, change func(*pgx.ConnConfig)) *sql.DB {
	t.Helper()
	pc := config(t, dsn)
	if change != nil {
		change(pc)
	}
	cfg.Executor = flightpg.ExecutorPipeline
	c, err := flightpg.NewConnectorWithConfig(pc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	closesAtEnd(t, db)
	return db
}

// crowd calls f from n goroutines, each until until says so, with a number that no other
// call has.
func crowd(n int, until func() bool, f func(g, i int)) (wait func()) {
	var wg sync.WaitGroup
	var calls atomic.Int64
	for g := range n {
		wg.Go(func() {
			for !until() {
				f(g, int(calls.Add(1)))
			}
		})
	}
	return wg.Wait
}

// times ends a crowd's goroutines after so many calls altogether.
func times(n int64) func() bool {
	var left atomic.Int64
	left.Store(n)
	return func() bool { return left.Add(-1) < 0 }
}

// faults collects what went wrong, each kind once.
type faults struct {
	mu   sync.Mutex
	seen map[string]int
}

func (f *faults) add(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.seen == nil {
		f.seen = make(map[string]int)
	}
	f.seen[fmt.Sprintf(format, args...)]++
}

func (f *faults) report(t *testing.T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	shown := 0
	for what, n := range f.seen {
		if shown++; shown <= 20 {
			t.Errorf("%d × %s", n, what)
		}
	}
}

func short(long, short int64) int64 {
	if testing.Short() {
		return short
	}
	return long
}

// TestStrangers_Settings: what a function sets for its transaction is nobody else's.
func TestStrangers_Settings(t *testing.T) {
	dsn := with(pgtest.Database(t), "timezone=UTC")
	admin := connect(t, dsn)
	role := "auditor_" + strings.ToLower(admin.Config().Database)
	execAll(t, admin, `CREATE TABLE secrets (s text); INSERT INTO secrets VALUES ('top'); REVOKE ALL ON secrets FROM PUBLIC;
		CREATE ROLE `+role+`;
		CREATE FUNCTION in_zone(t timestamptz, zone text) RETURNS text LANGUAGE plpgsql STABLE AS $$
		BEGIN PERFORM set_config('TimeZone', zone, true); RETURN t::text; END $$;
		CREATE FUNCTION as_auditor() RETURNS text LANGUAGE plpgsql STABLE AS $$
		BEGIN PERFORM set_config('role', '`+role+`', true); RETURN current_user; END $$;
		CREATE FUNCTION limited() RETURNS text LANGUAGE plpgsql STABLE AS $$
		BEGIN PERFORM set_config('statement_timeout', '1', true); PERFORM set_config('enable_seqscan', 'off', true);
		RETURN current_setting('statement_timeout'); END $$`)
	t.Cleanup(func() { dropRole(t, dsn, role) })
	db := strangers(t, dsn, flightpg.Config{TrustDeclared: true}, nil)
	me := one[string](t, db, "SELECT current_user")
	var found faults
	ask := func(want, query string, i int) {
		var got string
		if err := db.QueryRow(query, i).Scan(&got); err != nil {
			got = describe(err)
		}
		if got != want {
			found.add("%s: %q; want %q", query, got, want)
		}
	}
	crowd(48, times(short(40_000, 6_000)), func(g, i int) {
		switch g % 8 {
		case 0:
			ask("2026-01-01 09:00:00+09", "SELECT in_zone('2026-01-01 00:00:00+00', 'Asia/Tokyo') WHERE $1::int8 > 0", i)
		case 1:
			ask(role, "SELECT as_auditor() WHERE $1::int8 > 0", i)
		case 2:
			ask("1ms", "SELECT limited() WHERE $1::int8 > 0", i)
		case 3:
			ask("top", "SELECT s FROM secrets WHERE $1::int8 > 0", i)
		case 4:
			ask("00:00 UTC", "SELECT to_char('2026-01-01 00:00:00+00'::timestamptz, 'HH24:MI TZ') WHERE $1::int8 > 0", i)
		case 5:
			ask(me, "SELECT current_user WHERE $1::int8 > 0", i)
		case 6:
			ask("2026-01-01 00:00:00+00", "SELECT '2026-01-01 00:00:00+00'::timestamptz::text WHERE $1::int8 > 0", i)
		case 7:
			ask(fmt.Sprint(i), "SELECT $1::int8::text FROM secrets", i)
		}
	})()
	found.report(t)
	if s := flightpg.ReadStats(db); s.Flights == 0 {
		t.Errorf("Stats = %+v; want shared reads", s)
	}
}

// TestStrangers_Reported: a session's timeouts are what its application says, for every
// statement that looks, whatever runs beside it.
func TestStrangers_Reported(t *testing.T) {
	dsn := pgtest.Database(t)
	setUp(t, dsn)
	for name, c := range map[string]struct {
		params string
		hook   string
	}{
		"Defaults": {},
		"DSN":      {params: "lock_timeout=4321&statement_timeout=54321"},
		"Short":    {params: "lock_timeout=3&statement_timeout=60000"},
		"Hook":     {hook: "SET lock_timeout = 7654; SET statement_timeout = 65432"},
	} {
		t.Run(name, func(t *testing.T) {
			dsn := with(dsn, c.params)
			hook := func(ctx context.Context, conn *pgx.Conn) error {
				_, err := conn.Exec(ctx, c.hook)
				return err
			}
			if c.hook == "" {
				hook = nil
			}
			db := strangers(t, dsn, flightpg.Config{AfterConnect: hook}, nil)
			var opts []stdlib.OptionOpenDB
			if hook != nil {
				opts = append(opts, stdlib.OptionAfterConnect(hook))
			}
			plain := stdlib.OpenDB(*config(t, dsn), opts...)
			closesAtEnd(t, plain)
			queries := []string{
				"SELECT current_setting('lock_timeout') || ' ' || current_setting('statement_timeout') WHERE $1::int8 > 0",
				"SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN ('lock_timeout', 'statement_timeout', 'transaction_timeout', 'deadlock_timeout') AND $1::int8 > 0",
				"SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_show_all_settings() WHERE name IN ('lock_timeout', 'statement_timeout') AND $1::int8 > 0",
			}
			want := make([]string, len(queries))
			for n, q := range queries {
				want[n] = one[string](t, plain, q, 1)
			}
			var found faults
			crowd(32, times(short(8_000, 2_000)), func(g, i int) {
				if g >= 2*len(queries) {
					var n int64
					if err := db.QueryRow("SELECT $1::int8 FROM items LIMIT 1", i).Scan(&n); err != nil || n != int64(i) {
						found.add("beside: %v", err)
					}
					return
				}
				var got string
				if err := db.QueryRow(queries[g/2], i).Scan(&got); err != nil || got != want[g/2] {
					found.add("%s: %q, %v; want %q", queries[g/2], got, err, want[g/2])
				}
			})()
			found.report(t)
		})
	}
}

// tables makes tables a and b of 100 rows.
func tables(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	for _, name := range []string{"a", "b"} {
		execAll(t, conn, "CREATE TABLE "+name+" (id int8 PRIMARY KEY, v text); INSERT INTO "+name+" SELECT i, '"+name+"' || i FROM generate_series(0, 99) i")
	}
}

func readTable(ctx context.Context, db *sql.DB, table string, i int) error {
	var v string
	err := db.QueryRowContext(ctx, "SELECT v FROM "+table+" WHERE id = $1", i%100).Scan(&v)
	if want := fmt.Sprint(table, i%100); err == nil && v != want {
		return fmt.Errorf("row %q; want %q", v, want)
	}
	return err
}

// TestStrangers_LockedTable: while somebody has locked one table, reads of another go on.
func TestStrangers_LockedTable(t *testing.T) {
	dsn := pgtest.Database(t)
	admin := connect(t, dsn)
	tables(t, admin)
	db := strangers(t, dsn, flightpg.Config{}, nil)
	var found faults
	both := func(g, i int) {
		if err := readTable(context.Background(), db, string(rune('a'+g%2)), i*7919); err != nil {
			found.add("%v", err)
		}
	}
	crowd(64, times(2000), both)()
	execAll(t, admin, "BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
	var burst sync.WaitGroup
	var locked, free atomic.Int64
	for i := range 64 {
		burst.Go(func() {
			both(i, i)
			if i%2 == 0 {
				locked.Add(1)
			} else {
				free.Add(1)
			}
		})
	}
	until(t, "the reads of the table that nobody has locked", func() bool { return free.Load() == 32 })
	// And those that come later.
	crowd(32, times(1000), func(_, i int) {
		if err := readTable(context.Background(), db, "b", i); err != nil {
			found.add("%v", err)
		}
	})()
	if locked.Load() > 0 {
		t.Errorf("%d reads of a locked table have ended", locked.Load())
	}
	execAll(t, admin, "COMMIT")
	burst.Wait()
	found.report(t)
}

// TestStrangers_Migration: who locks tables one after the other is no part of a deadlock
// with reads of one table each, nor are they.
func TestStrangers_Migration(t *testing.T) {
	dsn := pgtest.Database(t)
	admin := connect(t, dsn)
	tables(t, admin)
	db := strangers(t, dsn, flightpg.Config{}, nil)
	var found faults
	var done atomic.Bool
	wait := crowd(48, done.Load, func(g, i int) {
		if err := readTable(context.Background(), db, string(rune('a'+i%2)), i*31+g*7919); err != nil {
			found.add("read: %v", err)
		}
		time.Sleep(100 * time.Microsecond) // pace: so that groups are of both tables
	})
	for range short(12, 4) {
		execAll(t, admin, "BEGIN; LOCK TABLE b IN ACCESS EXCLUSIVE MODE")
		time.Sleep(30 * time.Millisecond) // hold: reads of b come to wait, some of them behind reads of a
		if _, err := admin.Exec(context.Background(), "LOCK TABLE a IN ACCESS EXCLUSIVE MODE; ALTER TABLE a ADD COLUMN x int; ALTER TABLE a DROP COLUMN x"); err != nil {
			found.add("migration: %v", err)
		}
		execAll(t, admin, "ROLLBACK")
		time.Sleep(30 * time.Millisecond) // pace: reads go on
	}
	done.Store(true)
	wait()
	found.report(t)
}

// TestStrangers_OwnTransaction: a program that empties one table in a transaction and
// reads another through the same handle goes on, whoever reads the first.
func TestStrangers_OwnTransaction(t *testing.T) {
	dsn := pgtest.Database(t)
	admin := connect(t, dsn)
	tables(t, admin)
	execAll(t, admin, "CREATE TABLE c AS SELECT * FROM a")
	db := strangers(t, dsn, flightpg.Config{}, nil)
	var found faults
	var done atomic.Bool
	wait := crowd(32, done.Load, func(_, i int) {
		if err := readTable(context.Background(), db, string(rune('a'+i%2)), i); err != nil {
			found.add("read: %v", err)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // a hang is a failure
	defer cancel()
	for range short(10, 4) {
		tx, err := db.BeginTx(ctx, nil)
		noError(t, err)
		execOn(t, tx, "TRUNCATE a")
		for i := range 20 {
			if err := readTable(ctx, db, "b", i); err != nil {
				found.add("b beside the transaction: %v", err)
			}
		}
		execOn(t, tx, "INSERT INTO a SELECT id, v FROM c")
		noError(t, tx.Commit())
	}
	done.Store(true)
	wait()
	found.report(t)
}

// TestStrangers_SmallPool: readers of a locked table do not hold all connections that
// flights may have, be they few.
func TestStrangers_SmallPool(t *testing.T) {
	dsn := pgtest.Database(t)
	admin := connect(t, dsn)
	tables(t, admin)
	for _, known := range []bool{false, true} {
		db := strangers(t, dsn, flightpg.Config{FlightConns: 4}, nil)
		loaded(t, db)
		if known {
			crowd(4, times(100), func(g, i int) { _ = readTable(context.Background(), db, string(rune('a'+g%2)), i) })()
		}
		execAll(t, admin, "BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
		var locked sync.WaitGroup
		for i := range 3 {
			locked.Go(func() {
				if err := readTable(context.Background(), db, "a", i); err != nil {
					t.Error(err)
				}
			})
		}
		until(t, "three reads that wait for the lock", func() bool {
			var n int
			noError(t, admin.QueryRow(context.Background(), "SELECT count(*) FROM pg_locks WHERE relation = 'a'::regclass AND NOT granted").Scan(&n))
			return n == 3
		})
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second) // a hang is a failure
		for i := range 5 {
			if err := readTable(ctx, db, "b", i); err != nil {
				t.Errorf("known %v: %v", known, err)
			}
		}
		cancel()
		execAll(t, admin, "COMMIT")
		locked.Wait()
	}
}

// TestStrangers_Streams: readers who stop in the middle of large results keep their
// connections. Where there is no limit to these, nobody else waits for one of theirs:
// neither a further reader nor small reads.
func TestStrangers_Streams(t *testing.T) {
	dsn := pgtest.Database(t)
	admin := connect(t, dsn)
	tables(t, admin)
	for _, executor := range []flightpg.Executor{flightpg.ExecutorPipeline, flightpg.ExecutorGeneric} {
		c, err := flightpg.NewConnectorWithConfig(config(t, dsn), flightpg.Config{Executor: executor})
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(c)
		loaded(t, db)
		const streams = 40
		ctx, stop := context.WithTimeout(t.Context(), time.Minute) // a hang is a failure
		var begun atomic.Int64
		var all sync.WaitGroup
		for i := range streams {
			all.Go(func() {
				rows, err := db.QueryContext(ctx, "SELECT x, repeat('x', 1000) FROM generate_series($1::int, $1::int + 20000) x", i)
				if err != nil {
					t.Errorf("stream %d: %v", i, err)
					return
				}
				defer rows.Close()
				if !rows.Next() {
					t.Errorf("stream %d: %v; want a row", i, rows.Err())
				}
				begun.Add(1)
				<-ctx.Done()
			})
		}
		until(t, "each has its first row", func() bool { return begun.Load() == streams || t.Failed() })
		crowd(20, times(400), func(_, i int) {
			if err := readTable(ctx, db, "b", i); err != nil {
				t.Errorf("beside them: %v", err)
			}
		})()
		if ctx.Err() != nil {
			t.Error("it took a minute")
		}
		stop()
		all.Wait()
		_ = db.Close()
	}
}

// TestStrangers_TimeToPrepare: what prepares a statement has a time of its own, as with
// pgx, which does so in a round trip of its own.
func TestStrangers_TimeToPrepare(t *testing.T) {
	dsn := pgtest.Database(t)
	admin := connect(t, dsn)
	tables(t, admin)
	execAll(t, admin, "CREATE FUNCTION slp(x int8) RETURNS int8 LANGUAGE plpgsql STABLE AS $$ BEGIN PERFORM pg_sleep(2); RETURN x; END $$")
	db := strangers(t, with(dsn, "statement_timeout=3500"), flightpg.Config{}, nil)
	const query = "SELECT slp($1) FROM a WHERE id = 1"
	equal(t, "first", one[int64](t, db, query, 0), 0) // the text is known
	execAll(t, admin, "BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
	var wg sync.WaitGroup
	var failed atomic.Int64
	for i := range 6 {
		wg.Go(func() {
			var got int64
			if err := db.QueryRow(query, i).Scan(&got); err != nil {
				failed.Add(1)
			} else if got != int64(i) {
				t.Errorf("%d; want %d", got, i)
			}
		})
	}
	until(t, "reads that wait for the lock", func() bool {
		var n int
		noError(t, admin.QueryRow(context.Background(), "SELECT count(*) FROM pg_locks WHERE relation = 'a'::regclass AND NOT granted").Scan(&n))
		return n == 6
	})
	time.Sleep(1900 * time.Millisecond) // the lock is held for less than the timeout, and for more than it leaves to the function
	execAll(t, admin, "COMMIT")
	wg.Wait()
	// The one connection that knew the statement waits where it is executed.
	if n := failed.Load(); n > 1 {
		t.Errorf("%d of 6 failed", n)
	}
}

// TestStrangers_OwnTimeouts: the application's timeouts end its statements, no sooner and
// with their own errors, and nothing else does.
func TestStrangers_OwnTimeouts(t *testing.T) {
	dsn := pgtest.Database(t)
	admin := connect(t, dsn)
	tables(t, admin)
	const slow = "SELECT count(*) FROM generate_series(1, $1::int8) x"
	count := func(db *sql.DB, n int) (int, error) {
		var got int
		err := db.QueryRow(slow, n).Scan(&got)
		return got, err
	}
	t.Run("None", func(t *testing.T) {
		db := strangers(t, dsn, flightpg.Config{}, nil)
		var found faults
		crowd(24, times(1500), func(g, i int) {
			n := i
			if i%50 == 0 {
				n = 1_000_000 + i // some hundred ms
			}
			if got, err := count(db, n); err != nil || got != n {
				found.add("%d, %v; want %d", got, err, n)
			}
		})()
		found.report(t)
	})
	t.Run("Statement", func(t *testing.T) {
		db := strangers(t, with(dsn, "statement_timeout=150"), flightpg.Config{}, nil)
		var found faults
		crowd(24, times(600), func(g, i int) {
			if i%100 != 0 {
				if _, err := count(db, i); err != nil && code(err) != "57014" { // a busy machine
					found.add("fast: %v", err)
				}
				return
			}
			began := time.Now()
			if _, err := count(db, 200_000_000+i); code(err) != "57014" || time.Since(began) < 150*time.Millisecond {
				found.add("slow: %v; want statement_timeout's error, no sooner than it says", err)
			}
		})()
		found.report(t)
	})
	t.Run("Lock", func(t *testing.T) {
		db := strangers(t, with(dsn, "lock_timeout=300"), flightpg.Config{}, nil)
		var found faults
		crowd(16, times(500), func(_, i int) { _ = readTable(context.Background(), db, "a", i) })()
		execAll(t, admin, "BEGIN; LOCK TABLE a IN ACCESS EXCLUSIVE MODE")
		crowd(16, times(48), func(_, i int) {
			began := time.Now()
			if err := readTable(context.Background(), db, "a", i); code(err) != "55P03" || time.Since(began) < 300*time.Millisecond {
				found.add("locked: %v; want lock_timeout's error, no sooner than it says", err)
			}
		})()
		execAll(t, admin, "COMMIT")
		found.report(t)
	})
}

// TestStrangers_HeldBack: who travels with a call that takes long does not wait for it.
func TestStrangers_HeldBack(t *testing.T) {
	db := strangers(t, pgtest.Database(t), flightpg.Config{}, nil)
	var found faults
	count := func(n int) {
		var got int
		if err := db.QueryRow("SELECT count(*) FROM generate_series(1, $1::int8) x", n).Scan(&got); err != nil || got != n {
			found.add("%d, %v; want %d", got, err, n)
		}
	}
	for round := range int(short(5, 2)) {
		crowd(32, times(3000), func(_, i int) { count(i % 64) })() // it has always been fast
		var slow, fast sync.WaitGroup
		var ended atomic.Bool
		for i := range 32 {
			if i == 16 {
				slow.Go(func() { count(8_000_000 + round); ended.Store(true) })
			}
			fast.Go(func() {
				for n := range 4 {
					count(1000 + 8*i + n)
				}
			})
		}
		fast.Wait()
		if ended.Load() {
			t.Error("the fast ones have waited for the slow one")
		}
		slow.Wait()
	}
	found.report(t)
}

// token is an argument for which a codec of the application's own is needed.
type token struct{ n int64 }

// scratchCodec belongs to one connection, as pgx promises, and so needs no lock for what
// it keeps.
type scratchCodec struct {
	pgtype.TextCodec
	mark   string
	buf    []byte
	uses   map[int64]int
	inUse  atomic.Bool
	shared *atomic.Bool
}

func (c *scratchCodec) PreferredFormat() int16 { return pgtype.TextFormatCode }

func (c *scratchCodec) DecodeDatabaseSQLValue(_ *pgtype.Map, _ uint32, _ int16, src []byte) (driver.Value, error) {
	return string(src), nil
}

func (c *scratchCodec) PlanEncode(m *pgtype.Map, oid uint32, format int16, v any) pgtype.EncodePlan {
	if _, ok := v.(token); ok {
		return scratchPlan{c}
	}
	return c.TextCodec.PlanEncode(m, oid, format, v)
}

type scratchPlan struct{ c *scratchCodec }

func (p scratchPlan) Encode(v any, buf []byte) ([]byte, error) {
	if !p.c.inUse.CompareAndSwap(false, true) {
		p.c.shared.Store(true)
	}
	defer p.c.inUse.Store(false)
	n := v.(token).n
	p.c.uses[n%16]++
	p.c.buf = fmt.Appendf(p.c.buf[:0], "%s%08d", p.c.mark, n)
	runtime.Gosched() // work, as encryption is
	return append(buf, p.c.buf...), nil
}

// TestStrangers_Codecs: a connection's codecs encode for one caller at a time, and for
// what is sent on it only. Not all connections have the same.
func TestStrangers_Codecs(t *testing.T) {
	dsn := pgtest.Database(t)
	for _, kinds := range []int{1, 2} {
		t.Run(fmt.Sprint(kinds), func(t *testing.T) {
			var opened atomic.Int64
			var shared atomic.Bool
			hook := func(_ context.Context, conn *pgx.Conn) error {
				mark := string(rune('A' + int(opened.Add(1))%kinds))
				if kinds == 2 && mark == "A" {
					return nil // this one knows nothing of it
				}
				c := &scratchCodec{mark: mark, uses: make(map[int64]int), shared: &shared}
				conn.TypeMap().RegisterType(&pgtype.Type{Name: "text", OID: pgtype.TextOID, Codec: c})
				return nil
			}
			db := strangers(t, dsn, flightpg.Config{AfterConnect: hook}, nil)
			var found faults
			var right atomic.Int64
			crowd(32, times(short(12_000, 3_000)), func(g, i int) {
				var got string
				if g%4 == 0 { // what needs no codec is beside it
					if err := db.QueryRow("SELECT $1::text", fmt.Sprint(i)).Scan(&got); err != nil || got != fmt.Sprint(i) {
						found.add("a string: %v", err)
					}
					return
				}
				err := db.QueryRow("SELECT $1::text", token{int64(i)}).Scan(&got)
				switch {
				case err != nil && kinds == 2: // on a connection that knows nothing of it, as with pgx
				case err != nil:
					found.add("%v", err)
				case len(got) != 9 || got[1:] != fmt.Sprintf("%08d", i):
					found.add("somebody else's row")
				default:
					right.Add(1)
				}
			})()
			if shared.Load() {
				t.Error("a connection's codec has encoded for two at a time")
			}
			if right.Load() == 0 {
				t.Error("no argument has been encoded")
			}
			found.report(t)
		})
	}
}

// TestStrangers_Wrappers is about functions that pgx asks for plans.
func TestStrangers_Wrappers(t *testing.T) {
	var shared atomic.Bool
	hook := func(_ context.Context, conn *pgx.Conn) error {
		kept := map[string]int{}
		var inUse atomic.Bool
		m := conn.TypeMap()
		m.TryWrapEncodePlanFuncs = append([]pgtype.TryWrapEncodePlanFunc{func(v any) (pgtype.WrappedEncodePlanNextSetter, any, bool) {
			if !inUse.CompareAndSwap(false, true) {
				shared.Store(true)
			}
			defer inUse.Store(false)
			kept[fmt.Sprintf("%T", v)]++
			runtime.Gosched()
			return nil, nil, false
		}}, m.TryWrapEncodePlanFuncs...)
		return nil
	}
	db := strangers(t, pgtest.Database(t), flightpg.Config{AfterConnect: hook}, nil)
	var found faults
	type own int64
	crowd(32, times(short(8_000, 2_000)), func(g, i int) {
		var got int64
		if err := db.QueryRow("SELECT $1::int8", own(i)).Scan(&got); err != nil || got != int64(i) {
			found.add("%d, %v; want %d", got, err, i)
		}
	})()
	if shared.Load() {
		t.Error("a connection's wrapper has been asked by two at a time")
	}
	found.report(t)
}

// TestStrangers_Definitions: other processes change what statements are about. Who calls
// when they have done so gets what a new connection of pgx gives.
func TestStrangers_Definitions(t *testing.T) {
	type change struct {
		name  string
		setUp string
		query string
		arg   func(i int) any
		to    []string // one after the other, again and again
		later bool     // it cannot be read while it changes
	}
	text := func(i int) any { return fmt.Sprint(i % 100) }
	number := func(i int) any { return i % 100 }
	instant := func(i int) any { return time.Date(2026, 1, 1, 0, 0, i%100, 0, time.UTC) }
	changes := []change{
		{
			"Column", "CREATE TABLE t (k int, v int); INSERT INTO t SELECT i, i FROM generate_series(0, 99) i", "SELECT v::text FROM t WHERE k = $1", text,
			[]string{"ALTER TABLE t ALTER k TYPE text", "ALTER TABLE t ALTER k TYPE int8 USING k::int8", "ALTER TABLE t ALTER k TYPE numeric", "ALTER TABLE t ALTER k TYPE int USING k::int"},
			false,
		},
		{
			"ColumnBinary", "CREATE TABLE t (k int, v int); INSERT INTO t SELECT i, i FROM generate_series(0, 99) i", "SELECT v FROM t WHERE k = $1", number,
			[]string{"ALTER TABLE t ALTER k TYPE text", "ALTER TABLE t ALTER k TYPE int8 USING k::int8", "ALTER TABLE t ALTER v TYPE text", "ALTER TABLE t ALTER v TYPE int USING v::int", "ALTER TABLE t ALTER k TYPE int USING k::int"},
			false,
		},
		{
			"Columns", "CREATE TABLE t (k int, v int); INSERT INTO t SELECT i, i FROM generate_series(0, 99) i", "SELECT * FROM t WHERE k = $1", number,
			[]string{"ALTER TABLE t ADD x text DEFAULT 'x'", "ALTER TABLE t ADD y int DEFAULT 1", "ALTER TABLE t DROP x, DROP y"},
			false,
		},
		{
			"Time", "CREATE TABLE t (k timestamp, v int); INSERT INTO t SELECT '2026-01-01'::timestamp + i * interval '1 second', i FROM generate_series(0, 99) i", "SELECT v FROM t WHERE k = $1", instant,
			[]string{"ALTER TABLE t ALTER k TYPE timestamptz", "ALTER TABLE t ALTER k TYPE text USING to_char(k, 'YYYY-MM-DD HH24:MI:SS')", "ALTER TABLE t ALTER k TYPE timestamp USING k::timestamp"},
			false,
		},
		{
			"Enum", "CREATE TYPE e AS ENUM ('0', '1', '2'); CREATE TABLE t (k e, v int); INSERT INTO t SELECT i::text::e, i FROM generate_series(0, 2) i", "SELECT v FROM t WHERE k = $1", func(i int) any { return fmt.Sprint(i % 3) },
			[]string{"ALTER TABLE t ALTER k TYPE text; DROP TYPE e; CREATE TYPE e AS ENUM ('2', '1', '0'); ALTER TABLE t ALTER k TYPE e USING k::e"},
			false,
		},
		{
			"Signature", "CREATE FUNCTION f(x int) RETURNS int STABLE LANGUAGE sql AS 'SELECT x'", "SELECT f($1)", number,
			[]string{"DROP FUNCTION f; CREATE FUNCTION f(x text) RETURNS text STABLE LANGUAGE sql AS 'SELECT x'", "DROP FUNCTION f; CREATE FUNCTION f(x int) RETURNS int STABLE LANGUAGE sql AS 'SELECT x'"},
			true,
		},
		{
			"Path", "CREATE SCHEMA other; CREATE TABLE t (k int, v int); INSERT INTO t SELECT i, i FROM generate_series(0, 99) i; CREATE TABLE other.t AS SELECT k::text, v::int8 FROM t", "SELECT v FROM t WHERE k = $1", text,
			[]string{"SET path other, public", "SET path public"},
			false,
		},
	}
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			dsn := pgtest.Database(t)
			admin := connect(t, dsn)
			execAll(t, admin, c.setUp)
			db := strangers(t, dsn, flightpg.Config{}, nil)
			fresh := func(i int) string {
				conn, err := sql.Open("pgx", dsn)
				noError(t, err)
				defer conn.Close()
				return transcript(conn.Query(c.query, c.arg(i)))
			}
			var epoch atomic.Int64 // odd while something changes
			var done atomic.Bool
			var found faults
			var beside, steady atomic.Int64
			wait := crowd(16, done.Load, func(_, i int) {
				before := epoch.Load()
				rows, err := db.Query(c.query, c.arg(i))
				got := transcript(rows, err)
				if before%2 == 1 || epoch.Load() != before {
					if strings.Contains(got, "ERROR") {
						beside.Add(1)
					}
					return
				}
				steady.Add(1)
				if strings.Contains(got, "ERROR") {
					found.add("%s", got)
					return
				}
				if i%64 == 0 {
					if want := fresh(i); epoch.Load() == before && want != got && c.name != "Path" {
						found.add("%s; a new connection says %s", got, want)
					}
				}
			})
			for range short(6, 2) {
				for _, ddl := range c.to {
					epoch.Add(1)
					if path, ok := strings.CutPrefix(ddl, "SET path "); ok {
						ddl = "ALTER DATABASE " + admin.Config().Database + " SET search_path = " + path + "; " +
							"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND pid % 2 = 0"
					}
					execAll(t, admin, "SET lock_timeout = '30s'; "+ddl)
					epoch.Add(1)
					calls := steady.Load()
					until(t, "calls that nothing excuses", func() bool { return steady.Load() >= calls+100 })
				}
			}
			done.Store(true)
			wait()
			found.report(t)
			t.Logf("%d calls while nothing changed, %d errors beside changes", steady.Load(), beside.Load())
		})
	}
}

// TestStrangers_Composite: types that a hook has registered are their connection's. When
// all connections are new, nothing is left of the type as it was.
func TestStrangers_Composite(t *testing.T) {
	type point2 struct{ X, Y int32 }
	type point3 struct{ X, Y, Z int32 }
	dsn := pgtest.Database(t)
	admin := connect(t, dsn)
	execAll(t, admin, "CREATE TYPE place AS (x int, y int)")
	db := strangers(t, dsn, flightpg.Config{AfterConnect: func(ctx context.Context, conn *pgx.Conn) error {
		typ, err := conn.LoadType(ctx, "place")
		if err == nil {
			conn.TypeMap().RegisterType(typ)
		}
		return err
	}}, nil)
	equal(t, "before", one[string](t, db, "SELECT ($1::place)::text", point2{1, 2}), "(1,2)")
	execAll(t, admin, "ALTER TYPE place ADD ATTRIBUTE z int; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	until(t, "connections that know the type as it is", func() bool {
		var got string
		return db.QueryRow("SELECT ($1::place)::text", point3{1, 2, 3}).Scan(&got) == nil && got == "(1,2,3)"
	})
	var found faults
	crowd(16, times(400), func(_, i int) {
		var got string
		if err := db.QueryRow("SELECT ($1::place)::text", point3{int32(i), 2, 3}).Scan(&got); err != nil || got != fmt.Sprintf("(%d,2,3)", i) {
			found.add("%q, %v", got, err)
		}
	})()
	found.report(t)
}

// TestStrangers_Cancels: callers that leave early are nobody's trouble.
func TestStrangers_Cancels(t *testing.T) {
	dsn := pgtest.Database(t)
	admin := connect(t, dsn)
	tables(t, admin)
	execAll(t, admin, `CREATE FUNCTION slowly(us float8, i int8) RETURNS int8 LANGUAGE plpgsql STABLE AS $$
		BEGIN PERFORM pg_sleep(us / 1e6); RETURN i; END $$`)
	db := strangers(t, dsn, flightpg.Config{FlightConns: 16}, nil)
	var found faults
	var cut atomic.Int64
	crowd(96, times(short(60_000, 8_000)), func(g, i int) {
		ctx, cancel := context.Background(), context.CancelFunc(func() {})
		innocent := g%8 == 0
		if !innocent {
			ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.ExpFloat64()*float64(time.Millisecond)))
		}
		defer cancel()
		query, args := "SELECT $1::int8 FROM a WHERE id = 1", []any{i}
		switch i % 4 {
		case 0:
			query, args = "SELECT slowly($2, $1)", []any{i, rand.ExpFloat64() * 500}
		case 1:
			query, args = "SELECT $1::int8 FROM generate_series(1, $2::int8) x LIMIT 1", []any{i, 1 + rand.IntN(3000)}
		}
		var got int64
		switch err := db.QueryRowContext(ctx, query, args...).Scan(&got); {
		case err == nil && got != int64(i):
			found.add("somebody else's row")
		case err != nil && innocent:
			found.add("a caller without a deadline: %v", err)
		case err != nil && !errors.Is(err, context.DeadlineExceeded):
			found.add("a caller with a deadline: %v", err)
		case err != nil:
			cut.Add(1)
		}
	})()
	if cut.Load() == 0 {
		t.Error("nobody has left early")
	}
	found.report(t)
	crowd(16, times(200), func(_, i int) { // and all is well afterwards
		if err := readTable(context.Background(), db, "b", i); err != nil {
			t.Error(err)
		}
	})()
}

// TestStrangers_FailedDial: a connection that cannot be opened is one caller's error.
func TestStrangers_FailedDial(t *testing.T) {
	for _, key := range []string{"Same", "Distinct"} {
		t.Run(key, func(t *testing.T) {
			var dials, fail atomic.Int64
			refused := errors.New("refused by the test")
			dsn := pgtest.Database(t)
			admin := connect(t, dsn)
			db := strangers(t, dsn, flightpg.Config{MaxIdleTime: time.Millisecond}, func(pc *pgx.ConnConfig) {
				dial := pc.DialFunc
				pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
					dials.Add(1)
					if fail.Add(-1) >= 0 {
						return nil, refused
					}
					return dial(ctx, network, addr)
				}
			})
			loaded(t, db)
			for round := range 10 {
				var found faults
				var failed atomic.Int64
				until(t, "every connection to be closed", func() bool {
					var n int
					noError(t, admin.QueryRow(context.Background(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()").Scan(&n))
					return n == 1
				})
				const refusals = 3
				fail.Store(refusals)
				var wg sync.WaitGroup
				for i := range 48 {
					wg.Go(func() {
						n := round
						if key == "Distinct" {
							n = 1000*round + i
						}
						var got int
						switch err := db.QueryRow("SELECT $1::int", n).Scan(&got); {
						case errors.Is(err, refused):
							failed.Add(1)
						case err != nil || got != n:
							found.add("%d, %v; want %d", got, err, n)
						}
					})
				}
				wg.Wait()
				found.report(t)
				if n := failed.Load(); n > refusals {
					t.Errorf("%d callers failed for %d dials", n, refusals)
				}
			}
		})
	}
}

// TestStrangers_FullBuffers: large texts, large arguments and large results at once, over
// connections that hold little.
func TestStrangers_FullBuffers(t *testing.T) {
	dial := func(pc *pgx.ConnConfig) {
		dial := pc.DialFunc
		pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
			c, err := dial(ctx, network, addr)
			if tcp, ok := c.(*net.TCPConn); ok {
				_, _ = tcp.SetReadBuffer(4096), tcp.SetWriteBuffer(4096)
			}
			return c, err
		}
	}
	db := strangers(t, pgtest.Database(t), flightpg.Config{MaxResult: 4 << 20}, dial)
	texts := make([]string, 8)
	for i := range texts {
		texts[i] = fmt.Sprintf("SELECT repeat('x', $2::int) || $1::text WHERE %d >= 0 /*%s*/", i, strings.Repeat("-", 15_000))
	}
	var found faults
	sizes := []int{10, 1000, 10_000, 60_000}
	crowd(32, times(short(1600, 160)), func(g, i int) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // a hang is a failure
		defer cancel()
		arg := strings.Repeat("y", sizes[rand.IntN(len(sizes))])
		n := sizes[rand.IntN(len(sizes))]
		var got string
		if err := db.QueryRowContext(ctx, texts[g%len(texts)], arg, n).Scan(&got); err != nil || len(got) != n+len(arg) {
			found.add("%d bytes, %v", len(got), err)
		}
	})()
	found.report(t)
}

// TestStrangers_Transactions: who must have a transaction of his own has one. The server
// counts them: where several reads share one, there are fewer than reads.
func TestStrangers_Transactions(t *testing.T) {
	dsn := pgtest.Database(t)
	admin := connect(t, dsn)
	tables(t, admin)
	commits := func() (n int) {
		t.Helper()
		noError(t, admin.QueryRow(context.Background(), "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()").Scan(&n))
		return n
	}
	backends := func() (n int) {
		t.Helper()
		noError(t, admin.QueryRow(context.Background(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()").Scan(&n))
		return n
	}
	const strict = flightpg.ModeStrict
	all := []struct {
		name, params, query string
		mode                flightpg.Mode
		shared              bool
	}{
		{"Plain", "", "SELECT $1::int8 FROM a WHERE id = 1", flightpg.ModeFenced, true},
		{"Strict", "", "SELECT $1::int8 FROM a WHERE id = 1 AND now() IS NOT NULL", strict, false},
		{"View", "", "SELECT $1::int8 FROM v WHERE id = 1", flightpg.ModeFenced, false},
		{"Function", "", "SELECT own($1) FROM a WHERE id = 1", flightpg.ModeFenced, false},
		{"DeadlockTimeout", "deadlock_timeout=20", "SELECT $1::int8 FROM a WHERE id = 1", flightpg.ModeFenced, false},
		{"Serializable", "default_transaction_isolation=serializable", "SELECT $1::int8 FROM a WHERE id = 1", flightpg.ModeFenced, false},
	}
	if serverVersion(t, dsn) >= 17 {
		all = append(all, all[0])
		last := &all[len(all)-1]
		last.name, last.params, last.shared = "TransactionTimeout", "transaction_timeout=60000", false
	}
	execAll(t, admin, "CREATE VIEW v AS SELECT id FROM a; CREATE FUNCTION own(x int8) RETURNS int8 LANGUAGE sql STABLE AS 'SELECT x'")
	for _, c := range all {
		t.Run(c.name, func(t *testing.T) {
			pc := config(t, with(dsn, c.params))
			const reads = 1000
			transactions := func() int {
				t.Helper()
				until(t, "no other connection", func() bool { return backends() == 1 })
				before := commits()
				connector, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{Executor: flightpg.ExecutorPipeline, Mode: c.mode, FlightConns: 4}) // so that reads wait
				noError(t, err)
				db := sql.OpenDB(connector)
				var found faults
				crowd(64, times(reads), func(_, i int) {
					var got int64
					if err := db.QueryRow(c.query, i).Scan(&got); err != nil || got != int64(i) {
						found.add("%d, %v; want %d", got, err, i)
					}
				})()
				found.report(t)
				noError(t, db.Close())
				until(t, "no other connection", func() bool { return backends() == 1 }) // each counts when it ends
				return commits() - before
			}
			if c.shared { // on a busy machine every read may look slow for a while, and only some are sent together
				rounds := 1
				for ; rounds < 100 && transactions() == reads; rounds++ {
				}
				if rounds == 100 {
					t.Error("no transaction of several reads")
				}
			} else if n := transactions(); n < reads {
				t.Errorf("%d transactions for %d reads; want one for each", n, reads)
			}
		})
	}
}

// TestStrangers_NewConnections: a connection that is opened when the type of a column has
// changed takes arguments for what it is now.
func TestStrangers_NewConnections(t *testing.T) {
	dsn := with(pgtest.Database(t), "timezone=Asia/Tokyo")
	admin := connect(t, dsn)
	execAll(t, admin, "CREATE TABLE t (k timestamp, v int); INSERT INTO t VALUES ('2026-01-01 12:00:00', 1)")
	db := strangers(t, dsn, flightpg.Config{}, nil)
	const query = "SELECT v FROM t WHERE k = $1"
	// As a timestamp it is noon; as a timestamptz, the noon of Tokyo, three o'clock.
	noon, three := time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC), time.Date(2026, 1, 1, 3, 0, 0, 0, time.UTC)
	read := func(at time.Time) string { return transcript(db.Query(query, at)) }
	for range 3 {
		read(three)
	}
	equal(t, "a timestamp", one[int](t, db, query, noon), 1)
	execAll(t, admin, "ALTER TABLE t ALTER k TYPE timestamptz; SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()")
	until(t, "connections that are all new", func() bool {
		var n int
		noError(t, admin.QueryRow(context.Background(), "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()").Scan(&n))
		return n == 1
	})
	plain := open(t, "pgx", dsn)
	for range 20 {
		for _, at := range []time.Time{noon, three} {
			if got, want := read(at), transcript(plain.Query(query, at)); got != want {
				t.Errorf("%v: %s; pgx says %s", at, got, want)
			}
		}
	}
}

// dropRole is for the end of a test, when its context has ended.
func dropRole(t *testing.T, dsn, role string) {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	noError(t, err)
	defer conn.Close(context.Background())
	_, err = conn.Exec(context.Background(), "DROP ROLE "+role)
	noError(t, err)
}
