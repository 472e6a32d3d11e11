package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// bubble runs tests in synctest bubbles: time is theirs, and they end only
// when every goroutine has.
func bubble(t *testing.T, name string, test func(t *testing.T)) {
	t.Helper()
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

const hotQuery = "SELECT v FROM t WHERE id = $1"

// gated answers hotQuery when gate is closed, everything else at once.
func gated(gate <-chan struct{}) func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
	return func(ctx context.Context, s *fakeSession, query string, _ []driver.NamedValue) (*fakeRows, error) {
		if query == hotQuery {
			select {
			case <-gate:
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		return oneRow(int64(s.id)), nil
	}
}

func queryInt(ctx context.Context, q interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}, query string, args ...any,
) (n int64, err error) {
	err = q.QueryRowContext(ctx, query, args...).Scan(&n)
	return n, err
}

func mustInt(t *testing.T, q interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}, query string, args ...any,
) int64 {
	t.Helper()
	n, err := queryInt(context.Background(), q, query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return n
}

func mustExec(t *testing.T, e interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}, query string, args ...any,
) {
	t.Helper()
	if _, err := e.ExecContext(context.Background(), query, args...); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
}

func mustConn(t *testing.T, db *sql.DB) *sql.Conn {
	t.Helper()
	c, err := db.Conn(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// TestConn_Backends is the reason for virtual connections: however many
// callers one query has, and whatever the limits of the handle, it takes one
// session.
func TestConn_Backends(t *testing.T) {
	for _, limit := range []int{0, 1, 8, 1000} {
		bubble(t, fmt.Sprintf("QueryMaxOpen=%d", limit), func(t *testing.T) {
			gate := make(chan struct{})
			f := &fakeServer{answer: gated(gate)}
			db := openFake(t, f, Config{})
			db.SetMaxOpenConns(limit)
			var wg sync.WaitGroup
			for range 500 {
				wg.Go(func() {
					if n, err := queryInt(t.Context(), db, hotQuery, 1); n != 1 || err != nil {
						t.Errorf("Query = %v, %v; want 1 from session 1", n, err)
					}
				})
			}
			synctest.Wait()
			if n := f.count(hotQuery); n != 1 {
				t.Errorf("the query ran %d times at once; want 1", n)
			}
			close(gate)
			wg.Wait()
			if n := f.opened(); n != 1 {
				t.Errorf("%d sessions were opened; want 1", n)
			}
			if s := ReadStats(db); (limit == 0 || limit == 1000) && s.Joins != 499 {
				t.Errorf("Stats = %+v; want 499 joins", s)
			}
		})
	}
}

func TestConn_Stmt(t *testing.T) {
	bubble(t, "OnePrepareOneSession", func(t *testing.T) {
		gate := make(chan struct{})
		f := &fakeServer{}
		f.answer = func(ctx context.Context, s *fakeSession, query string, args []driver.NamedValue) (*fakeRows, error) {
			if len(args) == 0 { // prepare
				return nil, nil
			}
			return gated(gate)(ctx, s, query, args)
		}
		db := openFake(t, f, Config{})
		stmt, err := db.Prepare(hotQuery)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 40 {
			wg.Go(func() {
				var n int64
				if err := stmt.QueryRow(1).Scan(&n); n != 1 || err != nil {
					t.Errorf("QueryRow = %v, %v; want 1 from session 1", n, err)
				}
			})
		}
		synctest.Wait()
		close(gate)
		wg.Wait()
		if n := f.count("prepare " + hotQuery); n != 1 {
			t.Errorf("prepared %d times; want 1", n)
		}
		if n := f.count("execute " + hotQuery); n != 1 {
			t.Errorf("executed %d times; want 1", n)
		}
		if n := f.opened(); n != 1 {
			t.Errorf("%d sessions; want 1", n)
		}
		before := slices.Clone(f.log)
		if err := stmt.Close(); err != nil {
			t.Error(err)
		}
		if !slices.Equal(f.log, before) || f.opened() != 1 {
			t.Errorf("closing the statement did %q; want nothing", f.log[len(before):])
		}
	})
	bubble(t, "ArgumentCountIsChecked", func(t *testing.T) {
		db := openFake(t, &fakeServer{}, Config{})
		stmt, err := db.Prepare(hotQuery)
		if err != nil {
			t.Fatal(err)
		}
		defer stmt.Close()
		if _, err := stmt.Query(); err == nil || !strings.Contains(err.Error(), "expected 1 arguments, got 0") {
			t.Errorf("Query = %v; want database/sql's complaint", err)
		}
	})
	bubble(t, "PrepareErrorIsThatOfTheServer", func(t *testing.T) {
		boom := errors.New("syntax error")
		fail := true
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			if fail {
				return nil, boom
			}
			return oneRow(int64(1)), nil
		}}
		db := openFake(t, f, Config{})
		if _, err := db.Prepare(hotQuery); err != boom {
			t.Errorf("Prepare = %v; want %v", err, boom)
		}
		fail = false // a table may have been created since
		stmt, err := db.Prepare(hotQuery)
		if err != nil {
			t.Fatalf("Prepare = %v; want the error forgotten", err)
		}
		stmt.Close()
	})
	bubble(t, "InTransactionOnItsSession", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		stmt, err := tx.Prepare(hotQuery)
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			var n int64
			if err := stmt.QueryRow(1).Scan(&n); err != nil {
				t.Fatal(err)
			}
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		begin := f.on("BEGIN")
		for _, what := range []string{"prepare " + hotQuery, "execute " + hotQuery} {
			for _, id := range f.on(what) {
				if id != begin[0] {
					t.Errorf("%q ran on session %d; want %d, the transaction's", what, id, begin[0])
				}
			}
		}
		if n := f.count("prepare " + hotQuery); n != 1 {
			t.Errorf("prepared %d times; want 1", n)
		}
	})
	bubble(t, "WritesGoToASession", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		stmt, err := db.Prepare("INSERT INTO t VALUES ($1)")
		if err != nil {
			t.Fatal(err)
		}
		defer stmt.Close()
		for i := range 3 {
			if _, err := stmt.Exec(i); err != nil {
				t.Fatal(err)
			}
		}
		if n := f.count("execute INSERT INTO t VALUES ($1)"); n != 3 {
			t.Errorf("executed %d times; want 3", n)
		}
	})
}

// TestConn_State follows sessions through the states of a virtual connection.
func TestConn_State(t *testing.T) {
	bubble(t, "SessionGoesBackAtPut", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		for range 20 {
			mustExec(t, db, "INSERT INTO t VALUES (1)")
		}
		var conns []*sql.Conn
		for range 20 { // 20 virtual connections
			conns = append(conns, mustConn(t, db))
		}
		for _, c := range conns {
			c.Close()
		}
		for range 20 {
			mustExec(t, db, "UPDATE t SET v = 1")
		}
		if n := f.opened(); n != 1 {
			t.Errorf("%d sessions; want 1", n)
		}
		if s := ReadStats(db); s.Execs != 40 {
			t.Errorf("Stats = %+v; want 40 execs", s)
		}
	})
	bubble(t, "MaxIdle", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{MaxIdle: 3})
		var conns []*sql.Conn
		for range 5 {
			c := mustConn(t, db)
			mustExec(t, c, "INSERT INTO t VALUES (1)")
			conns = append(conns, c)
		}
		for _, c := range conns {
			c.Close()
		}
		if n := f.open(); n != 3 {
			t.Errorf("%d sessions are kept; want 3", n)
		}
	})
	bubble(t, "DetachedUntilSomethingBypasses", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		c := mustConn(t, db)
		defer c.Close()
		mustInt(t, c, hotQuery, 1)
		if s := ReadStats(db); s.Flights != 1 || s.SessionBackends != 0 {
			t.Errorf("Stats = %+v; want the read on a flight and no session", s)
		}
		mustExec(t, c, "INSERT INTO t VALUES (1)")
		own := f.on("INSERT INTO t VALUES (1)")[0]
		if got := mustInt(t, c, hotQuery, 1); got != int64(own) {
			t.Errorf("the read after the write ran on session %d; want %d, where the write was", got, own)
		}
		if s := ReadStats(db); s.Flights != 1 || s.Bypasses[ReasonSession] != 1 {
			t.Errorf("Stats = %+v; want one bypass for the session", s)
		}
	})
	bubble(t, "PinnedForLife", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		c := mustConn(t, db)
		mustExec(t, c, "SET search_path = a")
		own := int64(f.on("SET search_path = a")[0])
		c.Close()
		// The one virtual connection is used again and still has its session.
		if got := mustInt(t, db, hotQuery, 1); got != own {
			t.Errorf("the read ran on session %d; want %d, which the connection is pinned to", got, own)
		}
		other := mustConn(t, db)
		another := mustConn(t, db)
		for range 2 {
			mustExec(t, other, "INSERT INTO t VALUES (1)")
			mustExec(t, another, "INSERT INTO t VALUES (1)")
		}
		other.Close()
		another.Close()
		for _, c := range []*sql.Conn{mustConn(t, db), mustConn(t, db), mustConn(t, db)} {
			mustExec(t, c, "DELETE FROM t")
			defer c.Close()
		}
		seen := map[int]int{}
		for _, id := range f.on("DELETE FROM t") {
			seen[id]++
		}
		if len(seen) != 3 || seen[int(own)] != 1 {
			t.Errorf("sessions of three connections at a time: %v; want three, the pinned one for its owner only", seen)
		}
	})
	bubble(t, "KeptForNobody", func(t *testing.T) {
		// What cannot be cleaned serves who has its connection, as long as he has it; the
		// next one's reads are shared, and his writes go where they would with the driver.
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		c := mustConn(t, db)
		own := mustInt(t, c, "SELECT vol_f()")
		if got := mustInt(t, c, hotQuery, 1); got != own {
			t.Errorf("the read ran on session %d; want %d, whose state the function may have changed", got, own)
		}
		c.Close()
		if got := mustInt(t, db, hotQuery, 1); got == own {
			t.Errorf("the next one's read ran on session %d, with whatever the function has left there", got)
		}
		c, other := mustConn(t, db), mustConn(t, db)
		defer c.Close()
		defer other.Close()
		mustExec(t, c, "INSERT INTO t VALUES (1)")
		mustExec(t, other, "INSERT INTO t VALUES (1)")
		if got := f.on("INSERT INTO t VALUES (1)"); got[0] != int(own) || got[1] == int(own) {
			t.Errorf("writes ran on %v; want the first, on the same connection, on %d", got, own)
		}
	})
	bubble(t, "KeptAndOfNoConsequence", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		c := mustConn(t, db)
		mustExec(t, c, "LISTEN here")
		own := int64(f.on("LISTEN here")[0])
		if got := mustInt(t, c, hotQuery, 1); got != own {
			t.Errorf("the read ran on session %d; want %d", got, own)
		}
		c.Close()
		if got := mustInt(t, db, hotQuery, 1); got == own {
			t.Errorf("the next one's read ran on session %d, which LISTENs and no more", got)
		}
		mustExec(t, db, "INSERT INTO t VALUES (1)")
		if got := f.on("INSERT INTO t VALUES (1)"); int64(got[0]) != own {
			t.Errorf("a write on that connection ran on session %d; want %d, its own", got[0], own)
		}
	})
	bubble(t, "PinnedSessionThatDiedIsReplaced", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		for i := range 2 {
			c := mustConn(t, db)
			mustExec(t, c, "SET a = 1")
			if i == 0 {
				c.Close()
				f.sessions[0].bad = true // while it lay idle
			} else {
				f.sessions[len(f.sessions)-1].invalid = true // while it was in use
				c.Close()
			}
		}
		mustExec(t, db, "SET a = 2")
		if got := f.on("SET a = 1"); !slices.Equal(got, []int{1, 2}) {
			t.Errorf("SET a = 1 ran on %v; want session 1, then 2", got)
		}
		if got := f.on("CLOSE"); !slices.Equal(got, []int{1, 2}) {
			t.Errorf("closed %v; want 1 and 2", got)
		}
	})
	bubble(t, "TransactionKeepsItsSessionToTheEnd", func(t *testing.T) {
		end := make(chan struct{})
		f := &fakeServer{answer: func(_ context.Context, s *fakeSession, query string, _ []driver.NamedValue) (*fakeRows, error) {
			if query == "COMMIT" || query == "ROLLBACK" {
				<-end
			}
			return oneRow(int64(s.id)), nil
		}}
		db := openFake(t, f, Config{})
		var txs []*sql.Tx
		for range 2 {
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			txs = append(txs, tx)
		}
		done := make(chan error, 2)
		go func() { done <- txs[0].Commit() }()
		go func() { done <- txs[1].Rollback() }()
		synctest.Wait()
		mustExec(t, db, "INSERT INTO t VALUES (1)")
		if got := f.on("INSERT INTO t VALUES (1)"); got[0] != 3 {
			t.Errorf("a write ran on session %d, whose transaction has not ended", got[0])
		}
		close(end)
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	bubble(t, "TransactionUsesOneSession", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		own := int64(f.on("BEGIN")[0])
		for range 3 {
			if got := mustInt(t, tx, hotQuery, 1); got != own {
				t.Errorf("a read in the transaction ran on session %d; want %d", got, own)
			}
		}
		if err := tx.Rollback(); err != nil {
			t.Fatal(err)
		}
		if s := ReadStats(db); s.Flights != 0 || s.Bypasses[ReasonTransaction] != 3 {
			t.Errorf("Stats = %+v; want 3 bypasses for the transaction", s)
		}
		mustInt(t, db, hotQuery, 1)
		if s := ReadStats(db); s.Flights != 1 {
			t.Errorf("Stats = %+v; want reads to fly again after the transaction", s)
		}
	})
	bubble(t, "FailedRollbackClosesTheSession", func(t *testing.T) {
		boom := errors.New("boom")
		f := &fakeServer{answer: func(_ context.Context, s *fakeSession, query string, _ []driver.NamedValue) (*fakeRows, error) {
			if query == "ROLLBACK" {
				return nil, boom
			}
			return oneRow(int64(s.id)), nil
		}}
		db := openFake(t, f, Config{})
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if err := tx.Rollback(); err != boom {
			t.Errorf("Rollback = %v; want %v", err, boom)
		}
		if n := f.open(); n != 0 {
			t.Errorf("%d sessions are open; want the one whose rollback failed closed", n)
		}
	})
	bubble(t, "BadConnIsTriedAgainByDatabaseSQL", func(t *testing.T) {
		f := &fakeServer{}
		f.answer = func(_ context.Context, s *fakeSession, query string, _ []driver.NamedValue) (*fakeRows, error) {
			if s.id == 1 {
				return nil, driver.ErrBadConn
			}
			return oneRow(int64(s.id)), nil
		}
		db := openFake(t, f, Config{})
		mustExec(t, db, "INSERT INTO t VALUES (1)")
		if got := f.on("INSERT INTO t VALUES (1)"); !slices.Equal(got, []int{1, 2}) {
			t.Errorf("ran on sessions %v; want 1, then 2", got)
		}
		if got := f.on("CLOSE"); !slices.Equal(got, []int{1}) {
			t.Errorf("closed %v; want 1", got)
		}
	})
	bubble(t, "InvalidSessionIsClosed", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		mustExec(t, db, "INSERT INTO t VALUES (1)")
		f.sessions[0].invalid = true
		mustExec(t, db, "INSERT INTO t VALUES (2)")
		if n := f.open(); n != 0 {
			t.Errorf("%d sessions open; want the invalid one closed", n)
		}
		mustExec(t, db, "INSERT INTO t VALUES (3)")
	})
	bubble(t, "PingReachesTheServer", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{})
		if err := db.Ping(); err != nil {
			t.Fatal(err)
		}
		if n := f.count("PING"); n != 1 {
			t.Errorf("%d pings; want 1", n)
		}
	})
	bubble(t, "ConnectErrorAsItIs", func(t *testing.T) {
		boom := errors.New("connection refused")
		db := openFake(t, &fakeServer{connect: func(context.Context) error { return boom }}, Config{})
		_, qerr := db.Query(hotQuery, 1)
		_, eerr := db.Exec("INSERT INTO t VALUES (1)")
		_, perr := db.Prepare(hotQuery)
		_, berr := db.Begin()
		for _, err := range []error{qerr, eerr, perr, berr, db.Ping()} {
			if err != boom {
				t.Errorf("error = %v; want %v", err, boom)
			}
		}
	})
	bubble(t, "StatementsBeforePreparedAreBounded", func(t *testing.T) {
		for _, tc := range []struct {
			name   string
			length int
			open   bool
			keeps  int
		}{
			{"Open", 8, true, maxStmts}, {"Closed", 8, false, keptStmts + 1}, {"ClosedAndLong", keptBytes / 4, false, 4}, {"Long", stmtBytes / 4, true, 4}, {"TooLong", 2 * stmtBytes, true, 1},
		} {
			var c stmtCache
			s := &fakeSession{server: &fakeServer{}}
			text := func(i int) string { return fmt.Sprintf("%08d", i) + strings.Repeat("x", tc.length-8) }
			isOpen := func(string) bool { return tc.open }
			first := text(0)
			for i := range maxStmts + 10 {
				if tc.length > 1<<20 && i > 20 {
					break
				}
				n := len(c.order)
				old := c.put(text(i), &fakeStmt{s, text(i)}, isOpen)
				if want := n + 1 - len(old); len(c.order) != want || len(c.byText) != want || len(c.order) > tc.keeps {
					t.Fatalf("%s: after %d statements, %d evicted, %d and %d are kept; want %d, at most %d", tc.name, i, len(old), len(c.order), len(c.byText), want, tc.keeps)
				}
				c.get(first) // used all the time
			}
			if len(c.order) != tc.keeps || tc.keeps > 1 && c.get(first) == nil || !tc.open && c.get(text(1)) != nil {
				t.Errorf("%s: %d are kept, the wrong ones; want %d", tc.name, len(c.order), tc.keeps)
			}
			for _, q := range slices.Clone(c.order) {
				c.remove(q)
			}
			if c.bytes != 0 {
				t.Errorf("%s: %d bytes are left of none", tc.name, c.bytes)
			}
		}
	})
}

// TestConn_NothingShared looks at what runs where when sharing is switched off.
func TestConn_NothingShared(t *testing.T) {
	for _, tc := range []struct {
		name string
		off  Reason // of the connector
		mode Mode
		want Reason
	}{
		{"SeveralHosts", ReasonSeveralHosts, ModeFenced, ReasonSeveralHosts},
		{"ModeOff", ReasonNone, ModeOff, ReasonModeOff},
	} {
		bubble(t, tc.name, func(t *testing.T) {
			c, err := Wrap(&fakeServer{}, Config{Mode: tc.mode, TrustNames: trustAll})
			if err != nil {
				t.Fatal(err)
			}
			c.off.Store(uint32(tc.off))
			db := c.OpenDB()
			defer db.Close()
			mustInt(t, db, hotQuery, 1)
			stmt, err := db.Prepare(hotQuery)
			if err != nil {
				t.Fatal(err)
			}
			defer stmt.Close()
			if err := stmt.QueryRow(1).Scan(new(int)); err != nil {
				t.Error(err)
			}
			if s := ReadStats(db); s.Bypasses[tc.want] == 0 || s.Flights != 0 || s.FlightBackends != 0 || s.SessionBackends != 1 {
				t.Errorf("Stats = %+v; want all on one session, and bypasses as %v", s, tc.want)
			}
		})
	}
}

func TestConn_Close(t *testing.T) {
	bubble(t, "DuringTransaction", func(t *testing.T) {
		f := &fakeServer{}
		c, err := Wrap(f, Config{SessionConns: 1, FlightConns: 1, TrustNames: trustAll})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil { // would be reported as a deadlock if it waited
			t.Error(err)
		}
		_ = tx.Rollback()
		synctest.Wait()
		if n := f.open(); n != 0 {
			t.Errorf("%d sessions open after Close and Rollback; want none", n)
		}
	})
	bubble(t, "GivesKeptResultsBack", func(t *testing.T) {
		c, err := Wrap(&fakeServer{}, Config{Window: time.Hour, TrustNames: trustAll})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		mustInt(t, db, hotQuery, 1)
		if s := c.Stats(); s.BufferedBytes == 0 {
			t.Errorf("Stats = %+v; want a kept result", s)
		}
		db.Close()
		if s := c.Stats(); s.BufferedBytes != 0 || c.table.Keys() != 0 {
			t.Errorf("Stats = %+v, %d keys; want nothing kept", s, c.table.Keys())
		}
	})
	bubble(t, "OfAConnectionInATransaction", func(t *testing.T) {
		f := &fakeServer{}
		c, err := Wrap(f, Config{TrustNames: trustAll})
		if err != nil {
			t.Fatal(err)
		}
		dc, err := c.Connect(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		cn := dc.(*conn)
		if _, err := cn.BeginTx(t.Context(), driver.TxOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := cn.ExecContext(t.Context(), "INSERT INTO t VALUES (1)", nil); err != nil {
			t.Fatal(err)
		}
		before := c.Stats().Fences
		if err := cn.Close(); err != nil {
			t.Error(err)
		}
		if c.Stats().Fences == before {
			t.Error("no fence for a transaction that wrote and whose end nobody knows")
		}
		if n := f.open(); n != 0 {
			t.Errorf("%d sessions open; want the one in a transaction closed", n)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	bubble(t, "DuringFlight", func(t *testing.T) {
		gate := make(chan struct{})
		f := &fakeServer{answer: gated(gate)}
		c, err := Wrap(f, Config{TrustNames: trustAll})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() { _, _ = queryInt(context.Background(), db, hotQuery, 1) })
		}
		synctest.Wait()
		go db.Close()
		synctest.Wait()
		close(gate)
		wg.Wait()
		synctest.Wait()
		if n := f.open(); n != 0 {
			t.Errorf("%d sessions open after Close; want none", n)
		}
		if n := c.table.Keys(); n != 0 {
			t.Errorf("%d keys left; want none", n)
		}
	})
	bubble(t, "CloseTwice", func(t *testing.T) { // another handle may go on: TestTwoHandles
		c, err := Wrap(&fakeServer{}, Config{TrustNames: trustAll})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		db.Close()
		if err := c.Close(); err != nil {
			t.Errorf("second Close = %v", err)
		}
	})
}

// TestConn_SessionConns lets many goroutines share few sessions, most of them
// pinned sooner or later.
func TestConn_SessionConns(t *testing.T) {
	bubble(t, "IdlePinnedMakeRoom", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{SessionConns: 2})
		var conns []*sql.Conn
		for range 2 {
			c := mustConn(t, db)
			mustExec(t, c, "SET a = 1")
			conns = append(conns, c)
		}
		for _, c := range conns {
			time.Sleep(time.Second) // the bubble's time
			c.Close()
		}
		// Both sessions are pinned to idle connections. A third needs one.
		hold := []*sql.Conn{mustConn(t, db), mustConn(t, db), mustConn(t, db)}
		var free *sql.Conn
		for _, c := range hold {
			_ = c.Raw(func(dc any) error {
				if dc.(*conn).lease == nil {
					free = c
				}
				return nil
			})
		}
		for _, c := range hold {
			if c != free {
				c.Close() // idle again
			}
		}
		mustExec(t, free, "INSERT INTO t VALUES (1)")
		free.Close()
		if s := ReadStats(db); s.Evictions != 1 || s.SessionBackends > 2 {
			t.Errorf("Stats = %+v; want one eviction and at most 2 sessions", s)
		}
	})
	bubble(t, "LongestIdleIsClosedForGood", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{SessionConns: 2})
		first, second, third := mustConn(t, db), mustConn(t, db), mustConn(t, db)
		mustExec(t, first, "SET a = 1")
		mustExec(t, second, "SET a = 2")
		second.Close()
		first.Close()
		mustExec(t, third, "INSERT INTO t VALUES (1)") // needs room
		if got := f.on("CLOSE"); !slices.Equal(got, []int{2}) {
			t.Errorf("closed %v; want 2, idle for longest", got)
		}
		if got := f.on("INSERT INTO t VALUES (1)"); !slices.Equal(got, []int{3}) {
			t.Errorf("ran on %v; want a new session", got)
		}
		third.Close()
		// The connection that was pinned to it is gone too.
		for _, c := range []*sql.Conn{mustConn(t, db), mustConn(t, db), mustConn(t, db)} {
			mustInt(t, c, hotQuery, 1)
			defer c.Close()
		}
		if s := ReadStats(db); s.Bypasses[ReasonSession] != 1 || s.Flights != 2 {
			t.Errorf("Stats = %+v; want one read on the session still pinned, two on flights", s)
		}
		wantWanted(t, db, 1)
	})
	bubble(t, "NoneIsClosedWhileThereIsRoom", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{SessionConns: 2})
		pinned, other := mustConn(t, db), mustConn(t, db)
		defer other.Close()
		mustExec(t, pinned, "SET a = 1")
		pinned.Close()
		for range 3 {
			mustExec(t, other, "INSERT INTO t VALUES (1)")
		}
		if s := ReadStats(db); s.Evictions != 0 || f.count("CLOSE") != 0 {
			t.Errorf("Stats = %+v; want no eviction", s)
		}
	})
	bubble(t, "ThoseThatGotNoneWantNone", func(t *testing.T) {
		boom := errors.New("connection refused")
		db := openFake(t, &fakeServer{connect: func(context.Context) error { return boom }}, Config{SessionConns: 1})
		for range 3 {
			if _, err := db.Exec("INSERT INTO t VALUES (1)"); err != boom {
				t.Errorf("Exec = %v; want %v", err, boom)
			}
		}
		wantWanted(t, db, 0)
	})
	bubble(t, "PinnedThatGoesIdleWhileOthersWait", func(t *testing.T) {
		f := &fakeServer{}
		db := openFake(t, f, Config{SessionConns: 1})
		c := mustConn(t, db)
		mustExec(t, c, "SET a = 1")
		done := make(chan error)
		go func() {
			_, err := db.Exec("INSERT INTO t VALUES (1)")
			done <- err
		}()
		synctest.Wait()
		c.Close()
		if err := <-done; err != nil { // the bubble would deadlock if nobody made room
			t.Error(err)
		}
		if s := ReadStats(db); s.Evictions != 1 {
			t.Errorf("Stats = %+v; want one eviction", s)
		}
	})
	bubble(t, "ProgressForEver", func(t *testing.T) {
		f := &fakeServer{answer: func(_ context.Context, s *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			time.Sleep(time.Millisecond) // the bubble's time
			return oneRow(int64(s.id)), nil
		}}
		db := openFake(t, f, Config{SessionConns: 4, FlightConns: 2})
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute) // of the bubble's time
		defer cancel()
		var wg sync.WaitGroup
		var done atomic.Int64
		for i := range 64 {
			wg.Go(func() {
				for range 50 {
					var err error
					switch i % 5 {
					case 0:
						_, err = db.ExecContext(ctx, "INSERT INTO t VALUES (1)")
					case 1:
						var tx *sql.Tx
						if tx, err = db.BeginTx(ctx, nil); err == nil {
							_, _ = tx.ExecContext(ctx, "UPDATE t SET v = 1")
							err = tx.Commit()
						}
					case 2:
						_, err = queryInt(ctx, db, "SELECT vol_f()")
					case 3:
						var c *sql.Conn
						if c, err = db.Conn(ctx); err == nil {
							_, err = c.ExecContext(ctx, "SET a = 1")
							c.Close()
						}
					default:
						_, err = queryInt(ctx, db, hotQuery, 1)
					}
					if err != nil {
						t.Errorf("goroutine %d: %v", i, err)
						return
					}
					done.Add(1)
				}
			})
		}
		wg.Wait()
		if n := done.Load(); n != 64*50 {
			t.Errorf("%d of %d calls done", n, 64*50)
		}
		s := ReadStats(db)
		if s.SessionBackends > 4 || s.FlightBackends > 2 {
			t.Errorf("Stats = %+v; want at most 4 sessions and 2 flight backends", s)
		}
		c, _ := connectorOf(db)
		wantWanted(t, db, len(c.sessions.parked))
	})
}

// wantWanted checks the number that evictions go by: sessions that are lent.
func wantWanted(t *testing.T, db *sql.DB, want int) {
	t.Helper()
	c, _ := connectorOf(db)
	c.sessions.mu.Lock()
	defer c.sessions.mu.Unlock()
	if c.sessions.wanted != want {
		t.Errorf("%d sessions are wanted; want %d", c.sessions.wanted, want)
	}
}

func TestConn_WritesAreNotDelayed(t *testing.T) {
	bubble(t, "BehindAFlight", func(t *testing.T) {
		gate := make(chan struct{})
		f := &fakeServer{answer: gated(gate)}
		db := openFake(t, f, Config{FlightConns: 1, SessionConns: 1})
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = queryInt(context.Background(), db, hotQuery, 1)
		}()
		synctest.Wait()
		mustExec(t, db, "INSERT INTO t VALUES (1)")
		close(gate)
		<-done
	})
	bubble(t, "NeverRetriedOrMerged", func(t *testing.T) {
		boom := errors.New("broken pipe")
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			return nil, boom
		}}
		db := openFake(t, f, Config{})
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				if _, err := db.Exec("INSERT INTO t VALUES (1)"); err != boom {
					t.Errorf("Exec = %v; want %v", err, boom)
				}
				if _, err := db.Query("INSERT INTO t VALUES (1) RETURNING id"); err != boom {
					t.Errorf("Query = %v; want %v", err, boom)
				}
			})
		}
		wg.Wait()
		if n := f.count("INSERT INTO t VALUES (1)"); n != 10 {
			t.Errorf("the INSERT ran %d times; want 10", n)
		}
		if n := f.count("INSERT INTO t VALUES (1) RETURNING id"); n != 10 {
			t.Errorf("the RETURNING ran %d times; want 10", n)
		}
	})
}

// TestSessionConns_EvictedWhileClosed closes pinned connections at the moment at
// which others make room of them, under the race detector.
func TestSessionConns_EvictedWhileClosed(t *testing.T) {
	db := openFake(t, &fakeServer{}, Config{SessionConns: 2})
	db.SetMaxIdleConns(2) // what is put back beside them is closed
	// Where the callers come one after the other there is nothing to make room for.
	for round := 0; round < 100 && ReadStats(db).Evictions == 0; round++ {
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 500 {
					_, err := db.Exec("SET search_path = a")
					if err != nil && !errors.Is(err, driver.ErrBadConn) {
						t.Error(err)
					}
					runtime.Gosched()
				}
			})
		}
		wg.Wait()
	}
	if ReadStats(db).Evictions == 0 {
		t.Error("no eviction")
	}
}

// TestConn_EvictedGoesOn: a connection whose idle session was closed to make room, and
// that turns out not to have needed it, gives back those that it gets later.
func TestConn_EvictedGoesOn(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dsn := pgtest.Database(t)
	c, err := NewConnector(dsn, Config{SessionConns: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	connect := func() *conn {
		dc, err := c.Connect(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = dc.Close() })
		return dc.(*conn)
	}
	use := func(cn *conn) {
		t.Helper()
		if err := cn.ResetSession(ctx); err != nil {
			t.Fatal(err)
		}
		if err := cn.attach(ctx); err != nil {
			t.Fatal(err)
		}
	}
	one, other := connect(), connect()
	use(one)
	c.stains.Store(true) // sessions cannot be cleaned
	one.closes = true
	if !one.IsValid() || !one.parked {
		t.Fatalf("a connection whose session cannot be cleaned: %+v; want it parked", one)
	}
	use(other) // the only session there may be is closed for it
	c.stains.Store(false)
	if !other.IsValid() {
		t.Fatal("the other connection is not valid")
	}
	for range 3 { // each gets the session, and leaves it to the next
		use(one)
		if !one.IsValid() || one.lease != nil {
			t.Fatalf("%+v; want it valid, without a session", one)
		}
	}
	if n := c.Stats().SessionBackends; n > 1 {
		t.Errorf("%d sessions; want 1", n)
	}
}
