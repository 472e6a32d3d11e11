package flightpg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// openBoth opens a handle for each executor, and one of pgx's own to set things up.
func openBoth(t *testing.T) (handles map[Executor]*sql.DB, admin *pgx.Conn) {
	t.Helper()
	dsn := pgtest.Database(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = admin.Close(context.Background()) })
	handles = make(map[Executor]*sql.DB)
	for _, e := range []Executor{ExecutorPipeline, ExecutorGeneric} {
		db, err := OpenDB(dsn, Config{Executor: e, TrustDeclared: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		handles[e] = db
	}
	return handles, admin
}

// shares reports whether a read leads or joins a flight.
func shares(t *testing.T, db *sql.DB, query string, args ...any) bool {
	t.Helper()
	before := ReadStats(db)
	rows, err := db.Query(query, args...)
	if err == nil {
		for rows.Next() {
		}
		err = errors.Join(rows.Err(), rows.Close())
	}
	var pgErr *pgconn.PgError
	if err != nil && !errors.As(err, &pgErr) {
		t.Errorf("%s: %v", query, err)
	}
	after := ReadStats(db)
	bypasses := func(s Stats) (n uint64) {
		for _, m := range s.Bypasses {
			n += m
		}
		return n
	}
	return after.Flights+after.Joins > before.Flights+before.Joins && bypasses(after) == bypasses(before)
}

// TestRemember_ByArguments: what happened to one caller's read does not end the sharing
// of the others', who have other arguments.
func TestRemember_ByArguments(t *testing.T) {
	handles, admin := openBoth(t)
	if _, err := admin.Exec(t.Context(), `CREATE TABLE audit (n int);
		CREATE FUNCTION raises(n int) RETURNS int LANGUAGE plpgsql STABLE AS $$
			BEGIN IF n % 2 = 1 THEN RAISE EXCEPTION 'not today' USING ERRCODE = '25006'; END IF; RETURN n; END $$;
		CREATE FUNCTION audits(n int) RETURNS int LANGUAGE sql AS 'INSERT INTO audit VALUES (n) RETURNING n';
		CREATE FUNCTION writes(n int) RETURNS int LANGUAGE plpgsql STABLE AS $$
			BEGIN IF n % 2 = 1 THEN PERFORM audits(n); END IF; RETURN n; END $$`); err != nil {
		t.Fatal(err)
	}
	for executor, db := range handles {
		t.Run(executor.String(), func(t *testing.T) {
			const large = "SELECT repeat('x', $1::int)"
			wrote := 0 // by the last of them
			for _, tc := range []struct {
				name, query string
				bad, good   func(n int) any
				ends        bool // of the text's sharing, when nothing else comes
			}{
				{"TooLarge", large, func(n int) any { return 2<<20 + n }, func(n int) any { return 10 + n }, true},
				{"Raised", "SELECT raises($1)", func(n int) any { return 2*n + 1 }, func(n int) any { return 2 * n }, false},
				{"Refused", "SELECT writes($1)", func(n int) any { return 2*n + 1 }, func(n int) any { return 2 * n }, true},
			} {
				t.Run(tc.name, func(t *testing.T) {
					wrote = 0
					if !shares(t, db, tc.query, tc.good(0)) {
						t.Fatal("it is not shared to begin with")
					}
					for n := range 2 * oddLeast {
						if shares(t, db, tc.query, tc.bad(n)) && tc.name != "TooLarge" { // whose only caller streams it
							t.Error("what the guard stopped was shared")
						}
						flights := ReadStats(db).Flights
						if shares(t, db, tc.query, tc.bad(n)); ReadStats(db).Flights != flights {
							t.Error("the same again flies at once")
						}
						for range 3 { // most are good, however long it takes
							if !shares(t, db, tc.query, tc.good(n)) {
								t.Errorf("one caller's arguments have ended the others' sharing, the %d. time", n+1)
							}
						}
					}
					// What was counted before, good ones too, has to be outweighed first.
					shared, n := true, 0
					for round := 0; shared && (round == 0 || tc.ends && round < 10); round++ {
						for end := time.Now().Add(2 * oddWithin); time.Now().Before(end) || n < 3*oddLeast; n++ {
							shares(t, db, tc.query, tc.bad(100+n))
						}
						shared = shares(t, db, tc.query, tc.good(1000))
					}
					wrote += n
					if shared == tc.ends {
						t.Errorf("after %d in a row it is shared = %v; want %v", n, shared, !tc.ends)
					}
				})
			}
			var rows, distinct int
			if err := admin.QueryRow(t.Context(), "SELECT count(*), count(DISTINCT n) FROM audit").Scan(&rows, &distinct); err != nil {
				t.Fatal(err)
			}
			if want := 2*2*oddLeast + wrote; rows != want {
				t.Errorf("%d rows were written (%d of them distinct); want %d: once for each call", rows, distinct, want)
			}
			if _, err := admin.Exec(t.Context(), "TRUNCATE audit"); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestExceptions checks what a verdict remembers of arguments, and for how long.
func TestExceptions(t *testing.T) {
	bubble(t, "Arguments", func(t *testing.T) {
		v := new(verdict)
		for args := range uint64(3 * maxExceptions) {
			v.except(args, ReasonOverflow, overflowMemory)
		}
		for args := range uint64(3 * maxExceptions) {
			want := ReasonOverflow
			if args < 2*maxExceptions {
				want = ReasonNone // it made room
			}
			if why := v.excepted(args); why != want {
				t.Errorf("arguments %d: %v; want %v", args, why, want)
			}
		}
		v.forgive(3*maxExceptions - 1)
		if v.excepted(3*maxExceptions-1) != ReasonNone || v.excepted(3*maxExceptions-2) != ReasonOverflow {
			t.Error("not the one that was forgiven")
		}
		time.Sleep(exceptionFirst + exceptionKept + 1) // the bubble's time
		if v.excepted(1) != ReasonNone || v.exceptions.Load() != nil {
			t.Error("what is over is kept")
		}
	})
	bubble(t, "LongerEachTime", func(t *testing.T) {
		for most, want := range map[time.Duration][]int{overflowMemory: {1, 2, 4, 8, 10, 10}, refusedMemory: {1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300}} {
			v := new(verdict)
			for _, seconds := range want {
				v.except(7, ReasonRefused, most)
				start := time.Now()
				for v.excepted(7) != ReasonNone {
					time.Sleep(time.Second) // the bubble's time
				}
				if got := time.Since(start); got != time.Duration(seconds)*time.Second {
					t.Errorf("at most %v: it bypasses for %v; want %d s", most, got, seconds)
				}
			}
			v.landed(7)
			v.except(7, ReasonRefused, most)
			if time.Sleep(exceptionFirst); v.excepted(7) != ReasonNone { // the bubble's time
				t.Error("it was not forgiven when it landed")
			}
		}
	})
	bubble(t, "AllOfTheText", func(t *testing.T) {
		step := func(v *verdict, odd, good int) {
			for range odd {
				v.learnOdd(ReasonOverflow)
			}
			for range good {
				v.shared()
			}
			time.Sleep(50 * time.Millisecond) // the bubble's time
		}
		for _, tc := range []struct {
			name      string
			odd, good int // in each twentieth of a second
			first     int // odd ones at one moment before
			avoids    bool
		}{
			{"NothingElse", 1, 0, 0, true},
			{"Most", 2, 1, 0, true},
			{"Few", 1, 20, 0, false},
			{"ABurst", 0, 20, 100, false},
			{"ABurstAndSomeMore", 1, 20, 100, false},
			{"Seldom", 0, 0, 1, false},
		} {
			v := new(verdict)
			step(v, tc.first, 0)
			avoided := false
			for range 100 {
				step(v, tc.odd, tc.good)
				avoided = avoided || v.avoided() != ReasonNone
			}
			if avoided != tc.avoids {
				t.Errorf("%s: the text bypasses = %v; want %v", tc.name, avoided, tc.avoids)
			}
			if time.Sleep(oddMemory); v.avoided() != ReasonNone { // the bubble's time
				t.Errorf("%s: for good", tc.name)
			}
		}
	})
}

// TestRemember_Burst: callers with arguments of their own, all at one moment, do not end
// the sharing of a hot read beside them, whose flights take longer than theirs.
func TestRemember_Burst(t *testing.T) {
	handles, admin := openBoth(t)
	if _, err := admin.Exec(t.Context(), `CREATE TABLE audit (n int);
		CREATE FUNCTION audits(n int) RETURNS int LANGUAGE sql AS 'INSERT INTO audit VALUES (n) RETURNING n';
		CREATE FUNCTION takes(n int) RETURNS int LANGUAGE plpgsql STABLE AS $$
			BEGIN IF n = 0 THEN PERFORM count(*) FROM generate_series(1, 50000); ELSE PERFORM audits(n); END IF; RETURN n; END $$`); err != nil {
		t.Fatal(err)
	}
	for executor, db := range handles {
		mustInt(t, db, "SELECT takes($1)", 0)
		before := ReadStats(db)
		var hot, odd sync.WaitGroup
		done := make(chan struct{})
		var calls atomic.Int64
		for range 16 {
			hot.Go(func() {
				for {
					select {
					case <-done:
						return
					default:
					}
					if _, err := queryInt(t.Context(), db, "SELECT takes($1)", 0); err != nil {
						t.Error(err)
					}
					calls.Add(1)
				}
			})
		}
		n := 0
		for end := time.Now().Add(2 * oddWithin); time.Now().Before(end); time.Sleep(oddWithin / 4) { // bursts, and not all the time
			for range 2 * oddLeast {
				n++
				arg := n
				odd.Go(func() {
					if _, err := queryInt(t.Context(), db, "SELECT takes($1)", arg); err != nil {
						t.Error(err)
					}
				})
			}
			odd.Wait()
		}
		close(done)
		hot.Wait()
		after := ReadStats(db)
		bypassed := int64(after.Bypasses[ReasonRefused]-before.Bypasses[ReasonRefused]) - int64(n)
		if bypassed > calls.Load()/20 {
			t.Errorf("%v: %d of %d hot calls bypassed beside %d odd ones", executor, bypassed, calls.Load(), n)
		}
		t.Logf("%v: %d of %d hot calls bypassed beside %d odd ones", executor, bypassed, calls.Load(), n)
	}
}

// TestRemember_BigText: a text that is too long for the pipeline, or to be remembered at
// all, is prepared once by each connection, as by pgx.
func TestRemember_BigText(t *testing.T) {
	dsn := pgtest.Database(t)
	for _, length := range []int{maxPipelined + 1, maxText + 1} {
		for _, executor := range []Executor{ExecutorPipeline, ExecutorGeneric} {
			pc, err := pgx.ParseConfig(dsn)
			if err != nil {
				t.Fatal(err)
			}
			var sent, dials atomic.Int64
			pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				dials.Add(1)
				conn, err := new(net.Dialer).DialContext(ctx, network, addr)
				return &sending{conn, &sent}, err
			}
			c, err := NewConnectorWithConfig(pc, Config{Executor: executor})
			if err != nil {
				t.Fatal(err)
			}
			db := c.OpenDB()
			query := "SELECT 1 AS n -- " + strings.Repeat("x", length)
			for range 20 {
				mustInt(t, db, query)
			}
			if n, most := sent.Load(), (dials.Load()+1)*int64(length+4096); n > most {
				t.Errorf("%v, text of %d: 20 executions on %d connections sent %d bytes; want at most %d", executor, length, dials.Load(), n, most)
			}
			if flew := ReadStats(db).Flights > 0; flew != (length <= maxText) {
				t.Errorf("%v, text of %d: shared = %v", executor, length, flew)
			}
			if c.pipe != nil && c.pipe.Stats().Calls > 0 {
				t.Errorf("text of %d: the pipeline has prepared it", length)
			}
			if n := ReadStats(db).Bypasses[ReasonTooLong]; (n == 20) != (length > maxText) {
				t.Errorf("%v, text of %d: %d times too long", executor, length, n)
			}
			if v, err := Explain(t.Context(), db, query); err != nil || v.Coalesce != (length <= maxText) || v.Reason == ReasonTooLong && v.Hint == "" {
				t.Errorf("%v, text of %d: Explain = %+v, %v", executor, length, v, err)
			}
			db.Close()
		}
	}
}

type sending struct {
	net.Conn
	sent *atomic.Int64
}

func (c *sending) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.sent.Add(int64(n))
	return n, err
}

// TestRemember_PreparedBytes: statements come and go on few connections, whose prepared
// statements are bounded by what their texts take; each call has its own answer.
func TestRemember_PreparedBytes(t *testing.T) {
	handles, _ := openBoth(t)
	db := handles[ExecutorPipeline]
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			const texts = 5 * 1 << 20 / maxPipelined // more than fit
			for i := range texts {
				n := (g*7 + i) % texts
				var got int
				if err := db.QueryRow(fmt.Sprintf("SELECT %d -- %s", n, strings.Repeat("x", maxPipelined-100))).Scan(&got); err != nil || got != n {
					t.Errorf("got %d, %v; want %d", got, err, n)
				}
			}
		})
	}
	wg.Wait()
	if c, err := connectorOf(db); err != nil || c.pipe.Stats().Open == 0 {
		t.Errorf("the pipeline was not used: %v", err)
	}
}

// TestColumns_CallersOwn: what a caller does to the slice of columns' names is his own
// affair.
func TestColumns_CallersOwn(t *testing.T) {
	handles, _ := openBoth(t)
	var wide strings.Builder
	for i := range namesBlock + 1 {
		fmt.Fprintf(&wide, ", %d AS w%d", i, i)
	}
	for executor, db := range handles {
		for _, query := range []string{"SELECT 1 AS id, 'x' AS name", "SELECT 1 AS id" + wide.String()} {
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					for range 50 {
						rows, err := db.Query(query)
						if err != nil {
							t.Error(err)
							return
						}
						for range 2 {
							names, err := rows.Columns()
							if err != nil || names[0] != "id" || names[len(names)-1] == "changed" {
								t.Errorf("%v: columns %q, %v", executor, names, err)
							}
							for i := range names {
								names[i] = "changed"
							}
							_ = append(names, "more")
							rows.Next()
						}
						rows.Close()
					}
				})
			}
			wg.Wait()
		}
	}
}

// TestDatabases: what connectors to one database share goes with the last of them.
func TestDatabases(t *testing.T) {
	const name = "a database of this test's own"
	known := func() bool {
		databases.mu.Lock()
		defer databases.mu.Unlock()
		_, ok := databases.m[name]
		return ok
	}
	d := databaseOf(name)
	d.Raise()
	if databaseOf(name) != d {
		t.Error("two connectors to one database share nothing")
	}
	runtime.GC()
	if !known() || databaseOf(name).Now() != 1 {
		t.Error("a database that is open was forgotten")
	}
	runtime.KeepAlive(d)
	for end := time.Now().Add(10 * time.Second); known(); {
		if time.Now().After(end) {
			t.Fatal("a database that nobody has open is kept")
		}
		runtime.GC()
		time.Sleep(time.Millisecond) // cleanups run in a goroutine of the runtime's
	}
}

// TestForget_IgnoreComments: the flight is found by its key, whatever is known of the
// catalog at the moment.
func TestForget_IgnoreComments(t *testing.T) {
	db, err := OpenDB(pgtest.Database(t), Config{IgnoreComments: true, Window: time.Hour, Mode: ModeJoin})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if _, err := db.Exec("CREATE TABLE t AS SELECT 1 AS v"); err != nil {
		t.Fatal(err)
	}
	const query = "SELECT v FROM t /* a trace */"
	if got := mustInt(t, db, query); got != 1 {
		t.Fatal(got)
	}
	if _, err := db.Exec("UPDATE t SET v = 2"); err != nil {
		t.Fatal(err)
	}
	if got := mustInt(t, db, query); got != 1 {
		t.Fatalf("it read %d; want what is kept", got)
	}
	if _, err := db.Exec("CREATE TABLE other ()"); err != nil { // no picture of the catalog is up to date now
		t.Fatal(err)
	}
	if err := Forget(t.Context(), db, query); err != nil {
		t.Fatal(err)
	}
	if got := mustInt(t, db, query); got != 2 {
		t.Errorf("it read %d after Forget; want 2", got)
	}
}

// TestConnector_Collected: nothing is left of a connector that was used and closed.
func TestConnector_Collected(t *testing.T) {
	dsn := pgtest.Database(t)
	for name, cfg := range map[string]Config{"pipeline": {}, "generic": {Executor: ExecutorGeneric}, "transactions": {Guard: GuardTransaction}} {
		gone := make(chan struct{})
		used := make(chan struct{})
		go func() { // whose stack goes with it
			defer close(used)
			c, err := NewConnector(dsn, cfg)
			if err != nil {
				t.Error(err)
				return
			}
			runtime.AddCleanup(c, func(struct{}) { close(gone) }, struct{}{})
			db := c.OpenDB()
			mustInt(t, db, "SELECT count(*) FROM pg_class WHERE relname = $1", "x")
			mustInt(t, db, "SELECT $1::int", sql.NullInt32{Int32: 1, Valid: true})
			if err := db.Close(); err != nil {
				t.Error(err)
			}
		}()
		<-used
		for end := time.Now().Add(30 * time.Second); ; {
			runtime.GC()
			select {
			case <-gone:
			case <-time.After(time.Millisecond): // nothing tells what the collector does
				if time.Now().Before(end) {
					continue
				}
				t.Errorf("%s: a connector that was closed is kept", name)
			}
			break
		}
	}
}

// TestRemember_ClosedStatements: statements that are prepared, run and closed once do not
// fill the server: few stay prepared on the sessions and on the pipeline's connections,
// and those that are open all stay.
func TestRemember_ClosedStatements(t *testing.T) {
	handles, _ := openBoth(t)
	db := handles[ExecutorPipeline]
	ctx := t.Context()
	conn, err := db.Conn(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.ExecContext(ctx, "SET application_name = 'kept'"); err != nil { // it has a session of its own
		t.Fatal(err)
	}
	long := strings.Repeat("x", maxPipelined)
	var open []*sql.Stmt
	for i := range 3 * keptStmts {
		st, err := conn.PrepareContext(ctx, fmt.Sprintf("SELECT %d -- %s", i, long))
		if err != nil {
			t.Fatal(err)
		}
		if got := mustStmt(t, st); got != i {
			t.Errorf("statement %d gives %d", i, got)
		}
		if i%8 == 0 {
			open = append(open, st)
		} else if err := st.Close(); err != nil {
			t.Error(err)
		}
	}
	count := func() (n int) {
		t.Helper()
		err := conn.Raw(func(dc any) error {
			pc := dc.(interface{ Conn() *pgx.Conn }).Conn()
			return pc.QueryRow(ctx, "SELECT count(*) FROM pg_prepared_statements WHERE statement LIKE '% -- xxx%'").Scan(&n)
		})
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	few := keptBytes/maxPipelined + 1
	if n := count(); n < len(open) || n > len(open)+few {
		t.Errorf("%d statements are prepared; want the %d that are open, and at most %d more", n, len(open), few)
	}
	for i, st := range open {
		if got := mustStmt(t, st); got != 8*i {
			t.Errorf("statement %d gives %d", 8*i, got)
		}
	}
	if n := count(); n < len(open) {
		t.Errorf("%d statements are prepared; want all %d that are open", n, len(open))
	}
}

func mustStmt(t *testing.T, st *sql.Stmt) (n int) {
	t.Helper()
	if err := st.QueryRow().Scan(&n); err != nil {
		t.Error(err)
	}
	return n
}

// TestRemember_LongShapes: statements whose texts are too long to be kept with their
// verdicts have shapes of their own, also when they are prepared at one moment.
func TestRemember_LongShapes(t *testing.T) {
	handles, _ := openBoth(t)
	long := strings.Repeat("x", maxText)
	for executor, db := range handles {
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				query, args := "SELECT 0"+strings.Repeat(" + $1::int", min(i, 1)), []any{}
				for n := range i {
					query += fmt.Sprintf(" + $%d::int", n+1)
					args = append(args, 1)
				}
				st, err := db.Prepare(query + " -- " + long)
				if err != nil {
					t.Error(err)
					return
				}
				defer st.Close()
				var got int
				if err := st.QueryRow(args...).Scan(&got); err != nil || got != i+min(i, 1) {
					t.Errorf("%v: with %d arguments %d, %v", executor, i, got, err)
				}
			})
		}
		wg.Wait()
	}
}
