package flightpg

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/flight"
)

// many runs n callers at once and returns their errors.
func many(n int, call func(i int) error) []error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = call(i) })
	}
	wg.Wait()
	return errs
}

func TestShared_Errors(t *testing.T) {
	bubble(t, "PgErrorForEveryCaller", func(t *testing.T) {
		gate := make(chan struct{})
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			<-gate
			return nil, &pgconn.PgError{Code: "42P01", Message: `relation "t" does not exist`}
		}}
		db := openFake(t, f, Config{})
		go func() {
			synctest.Wait()
			close(gate)
		}()
		for i, err := range many(20, func(int) error { _, err := queryInt(context.Background(), db, hotQuery, 1); return err }) {
			var pgErr *pgconn.PgError
			if !errors.As(err, &pgErr) || pgErr.Code != "42P01" {
				t.Errorf("caller %d: %v; want the PgError", i, err)
			}
		}
		if n := f.count(hotQuery); n != 1 {
			t.Errorf("ran %d times; want 1", n)
		}
	})
	bubble(t, "AfterSomeRows", func(t *testing.T) {
		boom := errors.New("division by zero")
		gate := make(chan struct{})
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			<-gate
			r := rowsOf([]driver.Value{int64(1)}, []driver.Value{int64(2)})
			r.err = boom
			return r, nil
		}}
		db := openFake(t, f, Config{})
		go func() {
			synctest.Wait()
			close(gate)
		}()
		for _, err := range many(5, func(int) error {
			rows, err := db.Query(hotQuery, 1)
			if err != nil {
				return err
			}
			defer rows.Close()
			n := 0
			for rows.Next() {
				n++
			}
			if n != 2 {
				return fmt.Errorf("%d rows before the error; want 2", n)
			}
			return rows.Err()
		}) {
			if err != boom {
				t.Errorf("rows ended with %v; want %v", err, boom)
			}
		}
	})
	bubble(t, "PanicInEveryCallersGoroutine", func(t *testing.T) {
		gate := make(chan struct{})
		f := &fakeServer{}
		f.answer = func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			<-gate
			panic("boom")
		}
		c, err := Wrap(f, Config{})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		go func() {
			synctest.Wait()
			close(gate)
		}()
		_ = many(5, func(i int) error {
			defer func() {
				if p, ok := recover().(*flight.PanicError); !ok || p.Value != "boom" {
					t.Errorf("caller %d did not get the panic", i)
				}
			}()
			_, err := queryInt(context.Background(), db, hotQuery, 1)
			t.Errorf("caller %d: %v; want a panic", i, err)
			return nil
		})
		f.answer = nil
		mustInt(t, db, hotQuery, 1) // the key is usable again
		go db.Close()               // database/sql itself loses connections of calls that panic
	})
	bubble(t, "GoexitReleasesCallers", func(t *testing.T) {
		f := &fakeServer{}
		f.answer = func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			runtime.Goexit()
			return nil, nil
		}
		db := openFake(t, f, Config{})
		if _, err := queryInt(context.Background(), db, hotQuery, 1); !errors.Is(err, flight.ErrGoexit) {
			t.Errorf("Query = %v; want %v", err, flight.ErrGoexit)
		}
		f.answer = nil
		mustInt(t, db, hotQuery, 1)
	})
}

func TestShared_Retry(t *testing.T) {
	// lost fails the first n executions as a broken connection would.
	lost := func(n int, rows *fakeRows) *fakeServer {
		f := &fakeServer{}
		f.answer = func(_ context.Context, s *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			if n--; n >= 0 {
				s.bad = true
				if rows != nil {
					return rows, nil
				}
				return nil, driver.ErrBadConn
			}
			return oneRow(int64(s.id)), nil
		}
		return f
	}
	bubble(t, "OnceOnAFreshConnection", func(t *testing.T) {
		f := lost(1, nil)
		db := openFake(t, f, Config{})
		if got := mustInt(t, db, hotQuery, 1); got != 2 {
			t.Errorf("the answer came from session %d; want 2", got)
		}
		if s := ReadStats(db); s.Retries != 1 || s.Flights != 1 {
			t.Errorf("Stats = %+v; want one flight and one retry", s)
		}
	})
	bubble(t, "AfterSomeRows", func(t *testing.T) {
		r := rowsOf([]driver.Value{int64(1)})
		r.err = driver.ErrBadConn
		db := openFake(t, lost(1, r), Config{})
		rows, err := db.Query(hotQuery, 1)
		if err != nil {
			t.Fatal(err)
		}
		defer rows.Close()
		n := 0
		for rows.Next() {
			n++
		}
		if n != 1 || rows.Err() != nil {
			t.Errorf("%d rows, error %v; want the whole result once", n, rows.Err())
		}
		rows.Close()
		if n := ReadStats(db).BufferedBytes; n != 0 {
			t.Errorf("%d bytes are still counted", n)
		}
	})
	bubble(t, "PastOtherDeadSessions", func(t *testing.T) {
		f := lost(0, nil)
		db := openFake(t, f, Config{})
		var conns []*lease
		c, _ := connectorOf(db)
		mustInt(t, db, hotQuery, 1)
		for range 20 {
			l, err := c.flights.borrow(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			conns = append(conns, l)
		}
		for _, l := range conns {
			l.release()
		}
		f.answer = func(_ context.Context, s *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			if s.id <= 20 {
				for _, s := range f.sessions[:20] {
					s.dead = true // the server restarted, and nobody knows
				}
				return nil, driver.ErrBadConn
			}
			return oneRow(int64(s.id)), nil
		}
		if got := mustInt(t, db, hotQuery, 1); got != 21 {
			t.Errorf("the answer came from session %d; want 21", got)
		}
		if n := f.count(hotQuery); n != 3 {
			t.Errorf("ran %d times; want 3: before the restart, on one dead session, on a live one", n)
		}
	})
	bubble(t, "AfterACancelThatCameLate", func(t *testing.T) {
		late := &pgconn.PgError{Code: "57014", Message: "canceling statement due to user request"}
		fail := func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) { return nil, late }
		f := &fakeServer{answer: fail}
		db := openFake(t, f, Config{})
		// A session on which nothing was cancelled: the server's own reason.
		if _, err := queryInt(context.Background(), db, hotQuery, 1); err != late {
			t.Errorf("Query = %v; want %v", err, late)
		}
		f.answer = gated(nil)
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := queryInt(ctx, db, hotQuery, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Query = %v; want %v", err, context.DeadlineExceeded)
		}
		synctest.Wait()
		first := true
		f.answer = func(_ context.Context, s *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			if first {
				first = false
				return nil, late // the request to cancel the query before
			}
			return oneRow(int64(s.id)), nil
		}
		mustInt(t, db, hotQuery, 1)
		if s := ReadStats(db); s.Retries != 1 || f.opened() != 1 {
			t.Errorf("Stats = %+v; want one retry, on the one session", s)
		}
		f.answer = fail // it has come: this one is another's
		if _, err := queryInt(context.Background(), db, hotQuery, 1); err != late {
			t.Errorf("Query = %v; want %v", err, late)
		}
		if s := ReadStats(db); s.Retries != 1 {
			t.Errorf("Stats = %+v; want no second retry", s)
		}
	})
	bubble(t, "NotOnTheSessionThatFailed", func(t *testing.T) {
		f := &fakeServer{answer: func(_ context.Context, s *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			if s.id == 1 { // which looks well in all other ways
				return nil, driver.ErrBadConn
			}
			return oneRow(int64(s.id)), nil
		}}
		db := openFake(t, f, Config{})
		mustInt(t, db, hotQuery, 1)
		if got := f.on(hotQuery); !slices.Equal(got, []int{1, 2}) {
			t.Errorf("ran on sessions %v; want 1, then 2", got)
		}
		if got := f.on("CLOSE"); !slices.Equal(got, []int{1}) {
			t.Errorf("closed %v; want 1", got)
		}
	})
	bubble(t, "NotAfterAnyOtherError", func(t *testing.T) {
		boom := errors.New("division by zero")
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			return nil, boom
		}}
		db := openFake(t, f, Config{})
		if _, err := queryInt(context.Background(), db, hotQuery, 1); err != boom {
			t.Errorf("Query = %v; want %v", err, boom)
		}
		if n := f.count(hotQuery); n != 1 {
			t.Errorf("ran %d times; want 1", n)
		}
	})
	bubble(t, "NotTwice", func(t *testing.T) {
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			return nil, fmt.Errorf("dead: %w", driver.ErrBadConn)
		}}
		db := openFake(t, f, Config{})
		if _, err := queryInt(context.Background(), db, hotQuery, 1); !errors.Is(err, driver.ErrBadConn) {
			t.Errorf("Query = %v; want the connection's error", err)
		}
	})
}

func TestShared_Cancel(t *testing.T) {
	bubble(t, "LeaderLeavesFollowersStay", func(t *testing.T) {
		gate := make(chan struct{})
		f := &fakeServer{answer: gated(gate)}
		db := openFake(t, f, Config{})
		ctx, cancel := context.WithCancel(context.Background())
		leader := make(chan error, 1)
		go func() {
			_, err := queryInt(ctx, db, hotQuery, 1)
			leader <- err
		}()
		synctest.Wait()
		follower := make(chan error, 1)
		go func() {
			_, err := queryInt(context.Background(), db, hotQuery, 1)
			follower <- err
		}()
		synctest.Wait()
		cancel()
		if err := <-leader; !errors.Is(err, context.Canceled) {
			t.Errorf("leader: %v; want its own cancellation", err)
		}
		close(gate)
		if err := <-follower; err != nil {
			t.Errorf("follower: %v", err)
		}
		if n := f.count(hotQuery); n != 1 {
			t.Errorf("ran %d times; want 1", n)
		}
	})
	bubble(t, "LastOneOutCancelsTheServer", func(t *testing.T) {
		f := &fakeServer{answer: gated(nil)} // answers cancellation only
		db := openFake(t, f, Config{})
		errs := many(10, func(i int) error {
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(i+1)*time.Second)
			defer cancel()
			_, err := queryInt(ctx, db, hotQuery, 1)
			return err
		})
		for i, err := range errs {
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("caller %d: %v; want its own deadline", i, err)
			}
		}
		synctest.Wait()
		if s := ReadStats(db); s.Cancelled != 1 || s.Flying != 0 || s.Waiting != 0 {
			t.Errorf("Stats = %+v; want one cancelled flight and nothing left", s)
		}
	})
	bubble(t, "Storm", func(t *testing.T) {
		f := &fakeServer{answer: func(ctx context.Context, s *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			select {
			case <-time.After(10 * time.Millisecond): // the bubble's time
				return oneRow(int64(s.id)), nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}}
		db := openFake(t, f, Config{})
		errs := many(10_000, func(i int) error {
			time.Sleep(time.Duration(rand.IntN(30_000)) * time.Microsecond) // callers come at any moment; the bubble's time
			ctx := context.Background()
			if i%2 == 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(15_000))*time.Microsecond)
				defer cancel()
			}
			_, err := queryInt(ctx, db, hotQuery, 1)
			if err != nil && ctx.Err() == nil {
				return fmt.Errorf("caller %d: foreign error %w", i, err)
			}
			return nil
		})
		if err := errors.Join(errs...); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		c, _ := connectorOf(db)
		if s := ReadStats(db); s.Flying != 0 || s.Waiting != 0 || s.BufferedBytes != 0 || c.table.Keys() != 0 {
			t.Errorf("Stats = %+v, %d keys; want nothing left", s, c.table.Keys())
		}
	})
	bubble(t, "FlightTimeout", func(t *testing.T) {
		f := &fakeServer{answer: gated(nil)}
		db := openFake(t, f, Config{Timeout: time.Second})
		start := time.Now()
		_, err := queryInt(context.Background(), db, hotQuery, 1)
		if err == nil || !strings.Contains(err.Error(), "flight_timeout") || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Query = %v; want an error that names flight_timeout and is context.DeadlineExceeded", err)
		}
		if d := time.Since(start); d != time.Second {
			t.Errorf("after %v; want 1s", d)
		}
	})
	bubble(t, "FlightTimeoutAfterSomeRows", func(t *testing.T) {
		f := &fakeServer{answer: func(ctx context.Context, _ *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			r := bigRows(100, 1000)
			r.step = func(n int) error {
				if n == 50 {
					<-ctx.Done()
				}
				return ctx.Err()
			}
			return r, nil
		}}
		db := openFake(t, f, Config{Timeout: time.Second})
		if err := countRows(context.Background(), db, 100); err == nil || !strings.Contains(err.Error(), "flight_timeout") || errors.Is(err, context.Canceled) {
			t.Errorf("rows ended with %v; want an error that names flight_timeout: nobody cancelled anything", err)
		}
		if s := ReadStats(db); s.BufferedBytes != 0 {
			t.Errorf("Stats = %+v; want no memory held", s)
		}
	})
}

// TestShared_WaitingForASession: a flight that has no connection yet is not
// dispatched, so that even strict reads and reads after a write join it.
func TestShared_WaitingForASession(t *testing.T) {
	bubble(t, "TakesEverybody", func(t *testing.T) {
		gate := make(chan struct{})
		f := &fakeServer{answer: gated(gate)}
		db := openFake(t, f, Config{FlightConns: 1, Mode: ModeStrict})
		done := make(chan error, 11)
		read := func(arg int) { _, err := queryInt(context.Background(), db, hotQuery, arg); done <- err }
		go read(1) // has the one connection
		synctest.Wait()
		for range 10 {
			go read(2)
			synctest.Wait()
			mustExec(t, db, "INSERT INTO t VALUES (1)")
		}
		if s := ReadStats(db); s.Flights != 2 || s.Joins != 9 {
			t.Errorf("Stats = %+v; want 2 flights and 9 joins", s)
		}
		close(gate)
		for range 11 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
		if n := f.count(hotQuery); n != 2 {
			t.Errorf("%d executions; want 2", n)
		}
	})
}

func TestShared_Comments(t *testing.T) {
	for ignore, flights := range map[bool]uint64{false: 2, true: 1} {
		bubble(t, fmt.Sprintf("IgnoreComments=%v", ignore), func(t *testing.T) {
			gate := make(chan struct{})
			f := &fakeServer{answer: func(_ context.Context, s *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
				<-gate
				return oneRow(int64(s.id)), nil
			}}
			db := openFake(t, f, Config{IgnoreComments: ignore})
			go func() {
				synctest.Wait()
				close(gate)
			}()
			err := errors.Join(many(2, func(i int) error {
				_, err := queryInt(context.Background(), db, fmt.Sprintf("SELECT 1 /* trace %d */", i))
				return err
			})...)
			if s := ReadStats(db); err != nil || s.Flights != flights {
				t.Errorf("Stats = %+v, %v; want %d flights", s, err, flights)
			}
		})
	}
}

// TestShared_Width: constant strict reads of one key cost that many executions
// at a time.
func TestShared_Width(t *testing.T) {
	for _, tc := range []struct{ width, want int }{{0, 2}, {1, 1}, {3, 3}} {
		bubble(t, fmt.Sprintf("Width=%d", tc.width), func(t *testing.T) {
			gate := make(chan struct{})
			f := &fakeServer{answer: gated(gate)}
			db := openFake(t, f, Config{Mode: ModeStrict, Width: tc.width})
			done := make(chan error, 6)
			for range 6 {
				go func() { _, err := queryInt(context.Background(), db, hotQuery, 1); done <- err }()
				synctest.Wait()
			}
			if n := f.count(hotQuery); n != tc.want {
				t.Errorf("%d executions at a time; want %d", n, tc.want)
			}
			close(gate)
			for range 6 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			if n := f.count(hotQuery); n != tc.want+1 {
				t.Errorf("%d executions in all; want %d: those who came later wait together", n, tc.want+1)
			}
		})
	}
}

func TestShared_Isolation(t *testing.T) {
	const secret = "the one true value"
	// readAndSpoil reads all rows and overwrites them, which RawBytes allows
	// nobody, and somebody does.
	readAndSpoil := func(db *sql.DB, i int) error {
		rows, err := db.Query(hotQuery, 1)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var raw sql.RawBytes
			if err := rows.Scan(&raw); err != nil {
				return err
			}
			if string(raw) != secret {
				return fmt.Errorf("caller %d read %q", i, raw)
			}
			for j := range raw {
				raw[j] = byte(i)
			}
		}
		return rows.Err()
	}
	for _, callers := range []int{2, 50} {
		bubble(t, fmt.Sprintf("EveryCallerItsOwnBytes/callers=%d", callers), func(t *testing.T) {
			gate := make(chan struct{})
			f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
				<-gate
				r := rowsOf([]driver.Value{[]byte(secret)}, []driver.Value{[]byte(secret)})
				r.reuse = true // the driver overwrites its memory
				return r, nil
			}}
			db := openFake(t, f, Config{})
			go func() {
				synctest.Wait()
				close(gate)
			}()
			for _, err := range many(callers, func(i int) error { return readAndSpoil(db, i) }) {
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	bubble(t, "KeptResultIsNobodys", func(t *testing.T) {
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			return oneRow([]byte(secret)), nil
		}}
		db := openFake(t, f, Config{Window: time.Second})
		for i := range 3 { // a sole caller each time, but not the last
			if err := readAndSpoil(db, i); err != nil {
				t.Error(err)
			}
		}
		if s := ReadStats(db); s.Joins != 2 {
			t.Errorf("Stats = %+v; want 2 joins of the kept result", s)
		}
		time.Sleep(2 * time.Second) // the window's end
	})
	bubble(t, "KeptResultIsWhole", func(t *testing.T) {
		boom := errors.New("division by zero")
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			r := bigRows(2, 1)
			r.err = boom
			return r, nil
		}}
		db := openFake(t, f, Config{Window: time.Second})
		for i := range 3 {
			if err := countRows(context.Background(), db, 2); err != boom {
				t.Errorf("rows ended with %v; want %v", err, boom)
			}
			if n := f.count(hotQuery); n != i+1 {
				t.Errorf("ran %d times; want %d: nobody gets another's error later", n, i+1)
			}
		}
	})
	bubble(t, "KeptResultIsBuffered", func(t *testing.T) {
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			return bigRows(100, 1000), nil
		}}
		db := openFake(t, f, Config{Window: time.Hour, MaxResult: 10_000})
		if err := countRows(context.Background(), db, 100); err != nil {
			t.Error(err)
		}
		if s := ReadStats(db); s.Overflows != 1 || s.BufferedBytes != 0 {
			t.Errorf("Stats = %+v; want one overflow, and no memory held", s)
		}
	})
	bubble(t, "ArgumentsAreTheFlightsOwn", func(t *testing.T) {
		start, gate := make(chan struct{}), make(chan struct{})
		var seen []byte
		f := &fakeServer{
			connect: func(context.Context) error { // the flight is under way, its arguments not yet read
				close(start)
				<-gate
				return nil
			},
			answer: func(_ context.Context, _ *fakeSession, _ string, args []driver.NamedValue) (*fakeRows, error) {
				seen = bytes.Clone(args[0].Value.([]byte))
				return oneRow(int64(1)), nil
			},
		}
		db := openFake(t, f, Config{})
		arg := []byte(secret)
		ctx, cancel := context.WithCancel(context.Background())
		leader := make(chan struct{})
		go func() {
			defer close(leader)
			_, _ = queryInt(ctx, db, hotQuery, arg)
		}()
		<-start
		follower := make(chan error)
		go func() {
			_, err := queryInt(context.Background(), db, hotQuery, []byte(secret))
			follower <- err
		}()
		synctest.Wait()
		cancel()
		<-leader
		copy(arg, "overwritten by its owner")
		close(gate)
		if err := <-follower; err != nil {
			t.Fatal(err)
		}
		if string(seen) != secret {
			t.Errorf("the flight ran with %q; want %q", seen, secret)
		}
	})
}

// bigRows yields n rows of size bytes each.
func bigRows(n, size int) *fakeRows {
	r := &fakeRows{names: []string{"v"}}
	for i := range n {
		b := bytes.Repeat([]byte{byte(i)}, size)
		r.rows = append(r.rows, []driver.Value{b})
	}
	return r
}

func countRows(ctx context.Context, db *sql.DB, want int) error {
	rows, err := db.QueryContext(ctx, hotQuery, 1)
	if err != nil {
		return err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var b []byte
		if err := rows.Scan(&b); err != nil {
			return err
		}
		if len(b) == 0 || b[0] != byte(n) || b[len(b)-1] != byte(n) {
			return fmt.Errorf("row %d is not itself", n)
		}
		n++
	}
	if rows.Err() == nil && n != want {
		return fmt.Errorf("%d rows; want %d", n, want)
	}
	return rows.Err()
}

func TestShared_Overflow(t *testing.T) {
	const callers = 20
	for _, tc := range []struct {
		name   string
		cfg    Config
		reason Reason
	}{
		{"MaxResult", Config{MaxResult: 10_000}, ReasonOverflow},
		{"Memory", Config{Memory: 10_000}, ReasonMemory},
	} {
		bubble(t, tc.name, func(t *testing.T) {
			gate := make(chan struct{})
			f := &fakeServer{}
			f.answer = func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
				<-gate
				return bigRows(100, 1000), nil
			}
			db := openFake(t, f, tc.cfg)
			go func() {
				synctest.Wait()
				close(gate)
			}()
			for _, err := range many(callers, func(int) error { return countRows(context.Background(), db, 100) }) {
				if err != nil {
					t.Error(err)
				}
			}
			// One streams what was read, the others run their own.
			s := ReadStats(db)
			if s.Overflows != 1 || s.Bypasses[tc.reason] != callers-1 || f.count(hotQuery) != callers {
				t.Errorf("Stats = %+v, %d executions; want 1 overflow, %d bypasses", s, f.count(hotQuery), callers-1)
			}
			if s.BufferedBytes != 0 {
				t.Errorf("%d bytes are still counted", s.BufferedBytes)
			}
			if tc.reason != ReasonOverflow {
				// That is no fault of the statement's.
				if err := countRows(context.Background(), db, 100); err != nil {
					t.Error(err)
				}
				if s := ReadStats(db); s.Flights != 2 {
					t.Errorf("Stats = %+v; want the statement to be tried again at once", s)
				}
				return
			}
			// The statement is remembered for a while, then tried again.
			if err := countRows(context.Background(), db, 100); err != nil {
				t.Error(err)
			}
			if s := ReadStats(db); s.Flights != 1 {
				t.Errorf("Stats = %+v; want the statement to bypass at once", s)
			}
			time.Sleep(overflowMemory + time.Second) // the bubble's time
			if err := countRows(context.Background(), db, 100); err != nil {
				t.Error(err)
			}
			if s := ReadStats(db); s.Flights != 2 {
				t.Errorf("Stats = %+v; want the statement to be tried again", s)
			}
		})
	}
	bubble(t, "LiveRowsEndWithTheirCaller", func(t *testing.T) {
		f := &fakeServer{}
		closed := make(chan struct{})
		f.answer = func(ctx context.Context, _ *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			r := bigRows(100, 1000)
			r.step = func(int) error { return ctx.Err() }
			r.onClose = func() { close(closed) }
			return r, nil
		}
		db := openFake(t, f, Config{MaxResult: 10_000})
		ctx, cancel := context.WithCancel(context.Background())
		rows, err := db.QueryContext(ctx, hotQuery, 1)
		if err != nil {
			t.Fatal(err)
		}
		for range 20 { // past the buffered beginning
			if !rows.Next() {
				t.Fatal(rows.Err())
			}
		}
		cancel()
		<-closed
		rows.Close()
		synctest.Wait()
		if s := ReadStats(db); s.BufferedBytes != 0 {
			t.Errorf("Stats = %+v; want no memory held", s)
		}
	})
	bubble(t, "LiveRowsThatHangEndWithTheirCaller", func(t *testing.T) {
		f := &fakeServer{}
		f.answer = func(ctx context.Context, _ *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			r := bigRows(100, 1000)
			r.step = func(n int) error {
				if n < 50 {
					return nil
				}
				<-ctx.Done() // database/sql waits for Next before it closes rows
				return ctx.Err()
			}
			return r, nil
		}
		db := openFake(t, f, Config{MaxResult: 10_000})
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		if err := countRows(ctx, db, 100); !errors.Is(err, context.Canceled) {
			t.Errorf("rows ended with %v; want %v", err, context.Canceled)
		}
	})
	bubble(t, "FlightTimeoutSparesLiveRows", func(t *testing.T) {
		f := &fakeServer{}
		f.answer = func(ctx context.Context, _ *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			r := bigRows(100, 1000)
			r.step = func(int) error {
				time.Sleep(time.Millisecond) // the bubble's time
				return ctx.Err()
			}
			return r, nil
		}
		db := openFake(t, f, Config{MaxResult: 10_000, Timeout: 20 * time.Millisecond})
		if err := countRows(context.Background(), db, 100); err != nil {
			t.Errorf("the stream ended with %v", err)
		}
		if s := ReadStats(db); s.Overflows != 1 || s.BufferedBytes != 0 {
			t.Errorf("Stats = %+v; want one overflow", s)
		}
	})
	bubble(t, "LostWithItsConnection", func(t *testing.T) {
		for name, fail := range map[string]func() error{
			"ErrBadConn": func() error { return driver.ErrBadConn },
			"panic":      func() error { panic("boom") },
		} {
			f := &fakeServer{} // whose session looks well in all other ways
			f.answer = func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
				r := bigRows(100, 1000)
				r.step = func(n int) error {
					if n == 50 {
						return fail()
					}
					return nil
				}
				return r, nil
			}
			db := openFake(t, f, Config{MaxResult: 10_000})
			rows, err := db.Query(hotQuery, 1)
			if err != nil {
				t.Fatal(err)
			}
			func() {
				defer rows.Close()
				defer func() { _ = recover() }()
				for rows.Next() {
				}
			}()
			f.answer = nil
			time.Sleep(overflowMemory + time.Second) // the bubble's time
			mustInt(t, db, hotQuery, 1)
			if got := f.on(hotQuery); !slices.Equal(got, []int{1, 2}) {
				t.Errorf("%s: ran on sessions %v; want another one after the first was lost", name, got)
			}
		}
	})
	bubble(t, "FlightTimeoutBeforeLiveRows", func(t *testing.T) {
		f := &fakeServer{answer: func(ctx context.Context, _ *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			time.Sleep(time.Second) // deaf to its context
			r := bigRows(100, 1000)
			r.step = func(n int) error {
				if n > 50 {
					return ctx.Err()
				}
				return nil
			}
			return r, nil
		}}
		db := openFake(t, f, Config{MaxResult: 10_000, FlightConns: 1, Timeout: 20 * time.Millisecond})
		if err := countRows(context.Background(), db, 100); err == nil || !strings.Contains(err.Error(), "flight_timeout") {
			t.Errorf("the stream ended with %v; want an error that names flight_timeout", err)
		}
		synctest.Wait()
		f.answer = nil
		mustInt(t, db, hotQuery, 1) // the session is back
		if s := ReadStats(db); s.Overflows != 0 || s.BufferedBytes != 0 {
			t.Errorf("Stats = %+v; want no overflow, and no memory held", s)
		}
	})
	bubble(t, "LiveRowsEndWithTheCallersOwnError", func(t *testing.T) {
		f := &fakeServer{}
		f.answer = func(ctx context.Context, _ *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			r := bigRows(100, 1000)
			r.step = func(n int) error {
				if n > 20 {
					<-ctx.Done()
				}
				return ctx.Err()
			}
			return r, nil
		}
		c, err := Wrap(f, Config{MaxResult: 10_000})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		defer db.Close()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		conn, err := c.Connect(ctx) // database/sql would replace the error by its own
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		rows, err := conn.(driver.QueryerContext).QueryContext(ctx, hotQuery, namedValues([]any{1}))
		if err != nil {
			t.Fatal(err)
		}
		for err == nil {
			err = rows.Next(make([]driver.Value, 1))
		}
		if err != context.DeadlineExceeded {
			t.Errorf("the rows ended with %v; want %v", err, context.DeadlineExceeded)
		}
		rows.Close()
	})
	bubble(t, "ClosedEarly", func(t *testing.T) {
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			return bigRows(100, 1000), nil
		}}
		db := openFake(t, f, Config{MaxResult: 10_000, FlightConns: 1})
		for range 3 {
			rows, err := db.Query(hotQuery, 1)
			if err != nil {
				t.Fatal(err)
			}
			rows.Next()
			rows.Close()
			time.Sleep(overflowMemory + time.Second) // the one flight session must be back
		}
		if s := ReadStats(db); s.Overflows != 3 {
			t.Errorf("Stats = %+v; want 3 overflows", s)
		}
	})
	bubble(t, "NobodyLeftToStream", func(t *testing.T) {
		gate := make(chan struct{})
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			<-gate // deaf to its context
			return bigRows(100, 1000), nil
		}}
		db := openFake(t, f, Config{MaxResult: 10_000, FlightConns: 1})
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = countRows(ctx, db, 100)
		}()
		synctest.Wait()
		cancel()
		<-done
		close(gate)
		synctest.Wait()
		f.answer = nil
		time.Sleep(overflowMemory + time.Second) // the bubble's time
		mustInt(t, db, hotQuery, 1)              // the session is back
		if s := ReadStats(db); s.BufferedBytes != 0 {
			t.Errorf("Stats = %+v; want no memory held", s)
		}
	})
	bubble(t, "PanicAfterSomeRows", func(t *testing.T) {
		for name, fail := range map[string]func(){
			"panic":  func() { panic("boom") },
			"Goexit": runtime.Goexit,
		} {
			f := &fakeServer{}
			f.answer = func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
				r := bigRows(100, 1000)
				r.step = func(n int) error {
					if n == 5 {
						fail()
					}
					return nil
				}
				return r, nil
			}
			db := openFake(t, f, Config{Memory: 20_000, FlightConns: 1})
			for range 20 { // more than memory or connections would last
				_ = func() error {
					defer func() { _ = recover() }()
					return countRows(context.Background(), db, 100)
				}()
			}
			if s := ReadStats(db); s.Panics != 20 || s.Overflows != 0 || s.BufferedBytes != 0 {
				t.Errorf("%s: Stats = %+v; want 20 panics, and no memory held", name, s)
			}
			f.answer = nil
			mustInt(t, db, hotQuery, 1) // the session is back
		}
	})
	bubble(t, "NegativeMaxResultSharesNothing", func(t *testing.T) {
		db := openFake(t, &fakeServer{}, Config{MaxResult: -1})
		mustInt(t, db, hotQuery, 1)
		if s := ReadStats(db); s.Flights != 0 || s.Bypasses[ReasonOverflow] != 1 {
			t.Errorf("Stats = %+v; want a bypass", s)
		}
	})
	bubble(t, "ForeignValuesAreNotShared", func(t *testing.T) {
		f := &fakeServer{answer: func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			return rowsOf([]driver.Value{int64(1)}, []driver.Value{new(int)}), nil
		}}
		db := openFake(t, f, Config{})
		rows, err := db.Query(hotQuery, 1)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for rows.Next() {
			n++
		}
		rows.Close()
		if s := ReadStats(db); n != 2 || s.Overflows != 1 {
			t.Errorf("%d rows, Stats = %+v; want 2 rows, streamed", n, s)
		}
	})
}

// TestShared_Stream: a large result of a statement that nobody shares is streamed to
// its only caller, and to nobody who has company.
func TestShared_Stream(t *testing.T) {
	const size = 100 << 10 // of a result, in 100 rows
	learn := func(t *testing.T, db *sql.DB) {
		t.Helper()
		for range unsharedRun + 1 {
			if err := countRows(context.Background(), db, 100); err != nil {
				t.Fatal(err)
			}
		}
		if s := ReadStats(db); s.Streams != 0 {
			t.Fatalf("Stats = %+v; want nothing streamed yet", s)
		}
	}
	answer := func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
		return bigRows(100, size/100), nil
	}
	bubble(t, "ASoleCallers", func(t *testing.T) {
		db := openFake(t, &fakeServer{answer: answer}, Config{})
		learn(t, db)
		for range 2 * unsharedTry {
			if err := countRows(context.Background(), db, 100); err != nil {
				t.Fatal(err)
			}
		}
		// Each 16th is there for others, too.
		if s := ReadStats(db); s.Streams != 2*unsharedTry-2 || s.Overflows != 0 || len(s.Bypasses) != 0 || s.BufferedBytes != 0 {
			t.Errorf("Stats = %+v; want %d streamed, and no memory held", s, 2*unsharedTry-2)
		}
	})
	bubble(t, "NotASmallOne", func(t *testing.T) {
		f := &fakeServer{answer: answer}
		db := openFake(t, f, Config{})
		learn(t, db) // other arguments had large ones
		f.answer = func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			return bigRows(100, 100), nil
		}
		for range 4 * unsharedRun {
			if err := countRows(context.Background(), db, 100); err != nil {
				t.Fatal(err)
			}
		}
		if s := ReadStats(db); s.Streams != 0 {
			t.Errorf("Stats = %+v; want nothing streamed", s)
		}
	})
	bubble(t, "WithCompany", func(t *testing.T) {
		f := &fakeServer{answer: answer}
		db := openFake(t, f, Config{})
		learn(t, db)
		gate := make(chan struct{})
		f.answer = func(context.Context, *fakeSession, string, []driver.NamedValue) (*fakeRows, error) {
			<-gate
			return bigRows(100, size/100), nil
		}
		go func() {
			synctest.Wait()
			close(gate)
		}()
		for _, err := range many(2, func(int) error { return countRows(context.Background(), db, 100) }) {
			if err != nil {
				t.Error(err)
			}
		}
		if s := ReadStats(db); s.Joins != 1 || s.Streams != 0 {
			t.Errorf("Stats = %+v; want one result for two", s)
		}
		// It is shared, so it is kept for others again.
		for range unsharedRun {
			if err := countRows(context.Background(), db, 100); err != nil {
				t.Fatal(err)
			}
		}
		if s := ReadStats(db); s.Streams != 0 {
			t.Errorf("Stats = %+v; want nothing streamed", s)
		}
	})
	bubble(t, "OnlySoMany", func(t *testing.T) {
		// Who reads slowly holds a connection: only some of them may be held so.
		const conns = 8
		db := openFake(t, &fakeServer{answer: answer}, Config{FlightConns: conns})
		learn(t, db)
		for round := range 2 {
			var open []*sql.Rows
			for i := range 2 * conns {
				rows, err := db.Query(hotQuery, i)
				if err != nil {
					t.Fatal(err)
				}
				open = append(open, rows)
			}
			if s, want := ReadStats(db), uint64(round+1)*conns/streamPart; s.Streams != want || s.Overflows != 0 {
				t.Errorf("Stats = %+v; want %d streamed", s, want)
			}
			for _, rows := range open {
				rows.Close()
			}
		}
	})
	bubble(t, "TheRestEndsWithItsCaller", func(t *testing.T) {
		f := &fakeServer{answer: answer}
		db := openFake(t, f, Config{})
		learn(t, db)
		closed := make(chan struct{})
		f.answer = func(ctx context.Context, _ *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
			r := bigRows(1000, size/100)
			r.step = func(int) error { return ctx.Err() }
			r.onClose = func() { close(closed) }
			return r, nil
		}
		ctx, cancel := context.WithCancel(context.Background())
		rows, err := db.QueryContext(ctx, hotQuery, 1)
		if err != nil {
			t.Fatal(err)
		}
		if !rows.Next() {
			t.Fatal(rows.Err())
		}
		cancel()
		<-closed
		rows.Close()
		synctest.Wait()
		if s := ReadStats(db); s.Streams != 1 || s.BufferedBytes != 0 {
			t.Errorf("Stats = %+v; want no memory held", s)
		}
	})
}

// TestFence holds every way to write against a read that follows: under
// ModeFenced it must not join a flight dispatched before the write's end.
func TestFence(t *testing.T) {
	ctx := context.Background()
	writes := []struct {
		name  string
		fence bool
		write func(t *testing.T, db *sql.DB)
	}{
		{"Exec", true, func(t *testing.T, db *sql.DB) { mustExec(t, db, "INSERT INTO t VALUES (1)") }},
		{"ExecThatFails", true, func(_ *testing.T, db *sql.DB) { _, _ = db.Exec("UPDATE t SET fail = 1") }},
		{"ExecOfARead", true, func(t *testing.T, db *sql.DB) { mustExec(t, db, "SELECT 1") }},
		{"QueryReturning", true, func(t *testing.T, db *sql.DB) { mustInt(t, db, "INSERT INTO t VALUES (1) RETURNING id") }},
		{"QueryReturningClosedEarly", true, func(t *testing.T, db *sql.DB) {
			rows, err := db.Query("INSERT INTO t VALUES (1) RETURNING id")
			if err != nil {
				t.Fatal(err)
			}
			rows.Close()
		}},
		{"QueryThatFails", true, func(_ *testing.T, db *sql.DB) { _, _ = db.Query("UPDATE t SET fail = 1 RETURNING id") }},
		{"VolatileFunction", true, func(t *testing.T, db *sql.DB) {
			c := mustConn(t, db) // pinned from now on, and not for the read that follows
			t.Cleanup(func() { c.Close() })
			mustInt(t, c, "SELECT vol_f()")
		}},
		{"Commit", true, func(t *testing.T, db *sql.DB) {
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			mustExec(t, tx, "INSERT INTO t VALUES (1)")
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
		}},
		{"CommitOfReturning", true, func(t *testing.T, db *sql.DB) {
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			mustInt(t, tx, "INSERT INTO t VALUES (1) RETURNING id")
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
		}},
		{"CommitOfReads", false, func(t *testing.T, db *sql.DB) {
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			mustInt(t, tx, "SELECT 2")
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
		}},
		{"StmtExec", true, func(t *testing.T, db *sql.DB) {
			st, err := db.Prepare("INSERT INTO t VALUES (1)")
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			if _, err := st.Exec(); err != nil {
				t.Fatal(err)
			}
		}},
		{"StmtQuery", true, func(t *testing.T, db *sql.DB) {
			st, err := db.Prepare("INSERT INTO t VALUES (1) RETURNING id")
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			if err := st.QueryRow().Scan(new(int)); err != nil {
				t.Fatal(err)
			}
		}},
		{"ConnExec", true, func(t *testing.T, db *sql.DB) {
			c := mustConn(t, db)
			defer c.Close()
			mustExec(t, c, "INSERT INTO t VALUES (1)")
		}},
		{"Fence", true, func(t *testing.T, db *sql.DB) {
			if err := Fence(db); err != nil {
				t.Fatal(err)
			}
		}},
		{"Forget", true, func(t *testing.T, db *sql.DB) {
			if err := Forget(ctx, db, hotQuery, int64(1)); err != nil {
				t.Fatal(err)
			}
		}},
		{"ForgetAnother", false, func(t *testing.T, db *sql.DB) {
			if err := Forget(ctx, db, hotQuery, int64(2)); err != nil {
				t.Fatal(err)
			}
		}},
		{"Read", false, func(t *testing.T, db *sql.DB) { mustInt(t, db, "SELECT 2") }},
		{"Ping", false, func(t *testing.T, db *sql.DB) {
			if err := db.Ping(); err != nil {
				t.Fatal(err)
			}
		}},
	}
	modes := []struct {
		mode         Mode
		joins, after bool // joins a dispatched flight: without, with a write between
	}{
		{ModeFenced, true, false},
		{ModeStrict, false, false},
		{ModeJoin, true, true},
	}
	for _, m := range modes {
		for _, w := range writes {
			bubble(t, fmt.Sprintf("mode=%v/%s", m.mode, w.name), func(t *testing.T) {
				value := int64(1)
				var mu sync.Mutex
				gates := make(chan chan struct{}, 10)
				f := &fakeServer{}
				f.answer = func(_ context.Context, _ *fakeSession, query string, _ []driver.NamedValue) (*fakeRows, error) {
					mu.Lock()
					defer mu.Unlock()
					switch {
					case query == hotQuery:
						seen := value // the snapshot
						gate := make(chan struct{})
						gates <- gate
						mu.Unlock()
						<-gate
						mu.Lock()
						return oneRow(seen), nil
					case strings.HasPrefix(query, "SELECT 2"):
					default:
						value++
					}
					if strings.Contains(query, "fail") {
						return nil, errors.New("boom")
					}
					return oneRow(value), nil
				}
				db := openFake(t, f, Config{Mode: m.mode})
				first, second := make(chan int64, 1), make(chan int64, 1)
				read := func(to chan int64) {
					n, err := queryInt(ctx, db, hotQuery, int64(1))
					if err != nil {
						t.Error(err)
					}
					to <- n
				}
				go read(first)
				synctest.Wait() // dispatched
				w.write(t, db)
				go read(second)
				synctest.Wait()
				join := m.joins
				if w.fence {
					join = m.after && w.name != "Forget"
				}
				close(<-gates)
				<-first
				want := int64(1)
				if !join {
					close(<-gates)
					mu.Lock()
					want = value
					mu.Unlock()
				}
				if got := <-second; got != want {
					t.Errorf("the read after it gave %d; want %d", got, want)
				}
				if got := ReadStats(db).Joins == 1; got != join {
					t.Errorf("joined = %v; want %v", got, join)
				}
			})
		}
	}
	bubble(t, "SharedByConnectorsToOneDatabase", func(t *testing.T) {
		gate := make(chan struct{})
		f := &fakeServer{answer: gated(gate)}
		a := openFake(t, f, Config{Database: "TestFence/db"})
		b := openFake(t, f, Config{Database: "TestFence/db"})
		other := openFake(t, f, Config{})
		before := ReadStats(a).Fences // an epoch outlives its connectors
		done := make(chan error, 2)
		read := func() { _, err := queryInt(ctx, a, hotQuery, 1); done <- err }
		go read()
		synctest.Wait()
		mustExec(t, other, "INSERT INTO t VALUES (1)")
		if n := ReadStats(a).Fences - before; n != 0 {
			t.Errorf("%d fences through another database's connector", n)
		}
		mustExec(t, b, "INSERT INTO t VALUES (1)")
		if n := ReadStats(a).Fences - before; n != 1 {
			t.Errorf("%d fences; want 1", n)
		}
		go read()
		synctest.Wait()
		if n := f.count(hotQuery); n != 2 {
			t.Errorf("%d executions; want 2: a write through another connector was not seen", n)
		}
		close(gate)
		for range 2 {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	bubble(t, "WithMode", func(t *testing.T) {
		gate := make(chan struct{})
		f := &fakeServer{answer: gated(gate)}
		db := openFake(t, f, Config{})
		results := make(chan error, 4)
		read := func(ctx context.Context) {
			_, err := queryInt(ctx, db, hotQuery, 1)
			results <- err
		}
		go read(ctx)
		synctest.Wait()
		for _, step := range []struct {
			mode Mode
			runs int
		}{{ModeFenced, 1}, {ModeStrict, 2}, {ModeOff, 3}} {
			go read(WithMode(ctx, step.mode))
			synctest.Wait()
			if n := f.count(hotQuery); n != step.runs {
				t.Errorf("after a read with mode %v: %d executions; want %d", step.mode, n, step.runs)
			}
		}
		if s := ReadStats(db); s.Bypasses[ReasonModeOff] != 1 || s.Fenced != 1 {
			t.Errorf("Stats = %+v; want one bypass for the mode, and one read that found a flight too old", s)
		}
		close(gate)
		for range 4 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	})
}

// TestFence_Moment holds every way to write at its last step on the server. A
// flight dispatched meanwhile may have missed the write: a read that begins
// when the write's call has returned must not join it.
func TestFence_Moment(t *testing.T) {
	const insert, returning = "INSERT INTO t VALUES (1)", "INSERT INTO t VALUES (1) RETURNING id"
	const atCall, atEOF, atClose = "call", "EOF", "close"
	boom := errors.New("boom")
	inTx := func(t *testing.T, db *sql.DB, step func(tx *sql.Tx)) error {
		t.Helper()
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		step(tx)
		return tx.Commit()
	}
	for _, w := range []struct {
		name  string
		query string // the statement that is held
		at    string // where in it
		err   error  // what it ends with
		write func(t *testing.T, db *sql.DB) error
	}{
		{"Exec", insert, atCall, nil, func(_ *testing.T, db *sql.DB) error {
			_, err := db.Exec(insert)
			return err
		}},
		{"ExecThatFails", insert, atCall, boom, func(_ *testing.T, db *sql.DB) error {
			_, err := db.Exec(insert)
			return err
		}},
		{"QueryReturning", returning, atEOF, nil, func(_ *testing.T, db *sql.DB) error {
			_, err := queryAll(db, returning)
			return err
		}},
		{"QueryReturningThatFails", returning, atEOF, boom, func(_ *testing.T, db *sql.DB) error {
			_, err := queryAll(db, returning)
			return err
		}},
		{"QueryReturningClosedEarly", returning, atClose, nil, func(_ *testing.T, db *sql.DB) error {
			rows, err := db.Query(returning)
			if err != nil {
				return err
			}
			rows.Next()
			return rows.Close()
		}},
		{"Commit", "COMMIT", atCall, nil, func(t *testing.T, db *sql.DB) error {
			return inTx(t, db, func(tx *sql.Tx) { mustExec(t, tx, insert) })
		}},
		{"CommitThatFails", "COMMIT", atCall, boom, func(t *testing.T, db *sql.DB) error {
			return inTx(t, db, func(tx *sql.Tx) { mustExec(t, tx, insert) })
		}},
		{"CommitOfReturning", "COMMIT", atCall, nil, func(t *testing.T, db *sql.DB) error {
			return inTx(t, db, func(tx *sql.Tx) { mustInt(t, tx, returning) })
		}},
		{"CommitOfVolatileFunction", "COMMIT", atCall, nil, func(t *testing.T, db *sql.DB) error {
			return inTx(t, db, func(tx *sql.Tx) { mustInt(t, tx, "SELECT vol_f()") })
		}},
	} {
		bubble(t, w.name, func(t *testing.T) {
			gate, end := make(chan struct{}), make(chan struct{})
			f := &fakeServer{}
			f.answer = func(ctx context.Context, s *fakeSession, query string, args []driver.NamedValue) (*fakeRows, error) {
				if query != w.query {
					return gated(gate)(ctx, s, query, args)
				}
				rows := oneRow(int64(1))
				switch w.at {
				case atCall:
					<-end
					return rows, w.err
				case atEOF:
					rows.err = w.err
					rows.step = func(n int) error {
						if n == 1 {
							<-end
						}
						return nil
					}
				case atClose:
					rows.onClose = func() { <-end }
				}
				return rows, nil
			}
			db := openFake(t, f, Config{})
			readers := []*sql.Conn{mustConn(t, db), mustConn(t, db)} // without a session, whatever the write does
			reads := make(chan error, len(readers))
			read := func(c *sql.Conn) {
				_, err := queryInt(context.Background(), c, hotQuery, 1)
				reads <- err
			}
			written := make(chan error)
			go func() { written <- w.write(t, db) }()
			synctest.Wait()
			go read(readers[0])
			synctest.Wait()
			close(end)
			if err := <-written; err != w.err {
				t.Errorf("the write gave %v; want %v", err, w.err)
			}
			go read(readers[1])
			synctest.Wait()
			if n := f.count(hotQuery); n != 2 {
				t.Errorf("%d executions; want 2: the read joined a flight dispatched before the write's end", n)
			}
			close(gate)
			for _, c := range readers {
				if err := <-reads; err != nil {
					t.Error(err)
				}
				defer c.Close()
			}
		})
	}
}

func queryAll(db *sql.DB, query string) (n int, err error) {
	rows, err := db.Query(query)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for rows.Next() {
		n++
	}
	return n, rows.Err()
}

// TestFence_UnderWay: others may see a write before its caller hears of its end,
// so until then no fenced read joins a dispatched flight. A write in a transaction
// is seen by nobody before that is committed.
func TestFence_UnderWay(t *testing.T) {
	ctx := context.Background()
	for _, w := range []struct {
		name  string
		gate  string // the statement that is under way
		join  bool
		write func(db *sql.DB, end <-chan struct{}) error
	}{
		{"Exec", "UPDATE t SET v = 2", false, func(db *sql.DB, _ <-chan struct{}) error {
			_, err := db.Exec("UPDATE t SET v = 2")
			return err
		}},
		{"ExecThatFails", "UPDATE t SET fail = 2", false, func(db *sql.DB, _ <-chan struct{}) error {
			if _, err := db.Exec("UPDATE t SET fail = 2"); err == nil {
				return errors.New("no error")
			}
			return nil
		}},
		{"Returning", "UPDATE t SET v = 2 RETURNING id", false, func(db *sql.DB, _ <-chan struct{}) error {
			_, err := queryInt(ctx, db, "UPDATE t SET v = 2 RETURNING id")
			return err
		}},
		{"ReturningThatFails", "UPDATE t SET fail = 2 RETURNING id", false, func(db *sql.DB, _ <-chan struct{}) error {
			if _, err := queryInt(ctx, db, "UPDATE t SET fail = 2 RETURNING id"); err == nil {
				return errors.New("no error")
			}
			return nil
		}},
		{"ReturningNotRead", "", false, func(db *sql.DB, end <-chan struct{}) error { // its rows end the statement, not its query
			rows, err := db.Query("UPDATE t SET v = 2 RETURNING id")
			if err != nil {
				return err
			}
			<-end
			return rows.Close()
		}},
		{"ExecInTx", "UPDATE t SET v = 2", true, func(db *sql.DB, _ <-chan struct{}) error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			if _, err := tx.Exec("UPDATE t SET v = 2"); err != nil {
				return err
			}
			return tx.Commit()
		}},
		{"Commit", "COMMIT", false, func(db *sql.DB, _ <-chan struct{}) error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			if _, err := tx.Exec("UPDATE t SET v = 2"); err != nil {
				return err
			}
			return tx.Commit()
		}},
		{"CommitOfReads", "COMMIT", true, func(db *sql.DB, _ <-chan struct{}) error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			if _, err := queryInt(ctx, tx, "SELECT 2"); err != nil {
				return err
			}
			return tx.Commit()
		}},
		{"CommitAsText", "COMMIT", false, func(db *sql.DB, _ <-chan struct{}) error {
			tx, err := db.Begin()
			if err != nil {
				return err
			}
			defer func() { _ = tx.Rollback() }()
			_, err = tx.Exec("COMMIT")
			return err
		}},
	} {
		bubble(t, w.name, func(t *testing.T) {
			read, write := make(chan struct{}), make(chan struct{})
			f := &fakeServer{answer: func(_ context.Context, _ *fakeSession, query string, _ []driver.NamedValue) (*fakeRows, error) {
				switch query {
				case hotQuery:
					<-read
				case w.gate:
					<-write
				}
				if strings.Contains(query, "fail") {
					return nil, errors.New("boom")
				}
				return oneRow(int64(1)), nil
			}}
			db := openFake(t, f, Config{})
			done := make(chan error, 3)
			reads := func() {
				_, err := queryInt(ctx, db, hotQuery, int64(1))
				done <- err
			}
			go reads()
			synctest.Wait() // dispatched
			go func() { done <- w.write(db, write) }()
			synctest.Wait() // the server may have done it
			go reads()
			synctest.Wait()
			if got := ReadStats(db).Joins == 1; got != w.join {
				t.Errorf("joined a flight dispatched before, while the write is under way = %v; want %v", got, w.join)
			}
			close(write)
			close(read)
			for range 3 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			if w.name == "CommitAsText" {
				return // its connection is pinned, and may be that of the next read
			}
			// The hold has ended: a dispatched flight can be joined again.
			before := ReadStats(db).Joins
			read = make(chan struct{})
			for range 2 {
				go reads()
				synctest.Wait()
			}
			if got := ReadStats(db).Joins - before; got != 1 {
				t.Errorf("%d joins after the write; want 1", got)
			}
			close(read)
			for range 2 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// TestFence_Database: connectors share their fences if and only if their DSNs
// name the same server and database.
func TestFence_Database(t *testing.T) {
	for dsn, shared := range map[string]bool{
		"host=TestFence dbname=x":                    true,
		"postgres://u:p@TestFence/x?sslmode=disable": true,
		"host=TestFence dbname=y":                    false,
		"host=TestFence2 dbname=x":                   false,
		"host=TestFence port=1 dbname=x":             false,
		"host=TestFence,TestFence2 dbname=x":         false,
	} {
		a, err := NewConnector("host=TestFence dbname=x", Config{})
		if err != nil {
			t.Fatal(err)
		}
		b, err := NewConnector(dsn, Config{})
		if err != nil {
			t.Fatal(err)
		}
		db := b.OpenDB()
		defer db.Close()
		before := a.Stats().Fences
		if err := Fence(db); err != nil {
			t.Fatal(err)
		}
		if got := a.Stats().Fences != before; got != shared {
			t.Errorf("%s: shares its fences = %v; want %v", dsn, got, shared)
		}
	}
}

// TestForget_Partition: the flight to forget is that of the context's partition.
func TestForget_Partition(t *testing.T) {
	bubble(t, "OfTheContext", func(t *testing.T) {
		type key struct{}
		gate := make(chan struct{})
		f := &fakeServer{answer: gated(gate)}
		db := openFake(t, f, Config{Mode: ModeJoin, PartitionKey: func(ctx context.Context) string {
			s, _ := ctx.Value(key{}).(string)
			return s
		}})
		a, b := context.WithValue(t.Context(), key{}, "a"), context.WithValue(t.Context(), key{}, "b")
		results := make(chan error, 3)
		read := func(ctx context.Context) { _, err := queryInt(ctx, db, hotQuery, int64(1)); results <- err }
		go read(a)
		synctest.Wait()
		for _, step := range []struct {
			forget context.Context
			runs   int
		}{{b, 1}, {a, 2}} { // another partition's, then its own
			if err := Forget(step.forget, db, hotQuery, int64(1)); err != nil {
				t.Fatal(err)
			}
			go read(a)
			synctest.Wait()
			if n := f.count(hotQuery); n != step.runs {
				t.Errorf("%d executions; want %d", n, step.runs)
			}
		}
		close(gate)
		for range 3 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	})
}

func TestFence_NotOurHandle(t *testing.T) {
	db := sql.OpenDB(&fakeServer{})
	defer db.Close()
	if err := Fence(db); err == nil {
		t.Error("Fence of another driver's handle = nil error")
	}
	if err := Forget(context.Background(), db, hotQuery); err == nil {
		t.Error("Forget of another driver's handle = nil error")
	}
	if err := Fence(nil); err == nil {
		t.Error("Fence(nil) = nil error")
	}
	if s := ReadStats(db); s.Flights != 0 || s.Bypasses != nil {
		t.Errorf("ReadStats of another driver's handle = %+v; want zero", s)
	}
	ours := openFake(t, &fakeServer{}, Config{})
	if err := Forget(context.Background(), ours, hotQuery, []any{1}); err == nil {
		t.Error("Forget with an interface = nil error; want: no such flight")
	}
}

func TestReplay_NoColumns(t *testing.T) {
	r := &result{cols: &columns{}, rows: 3}
	r.Share(1)
	rows := newReplay(context.Background(), r)
	for i := range 3 {
		if err := rows.Next(nil); err != nil {
			t.Fatalf("row %d: %v", i, err)
		}
	}
	if err := rows.Next(nil); err != io.EOF {
		t.Errorf("Next = %v; want io.EOF", err)
	}
}
