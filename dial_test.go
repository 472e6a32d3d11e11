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
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// dialing is a fake server's way in, which a test answers dial by dial.
type dialing struct {
	dials atomic.Int64
	open  atomic.Int64 // now
	most  atomic.Int64 // at a time
}

// way returns a fakeServer.connect. answer is called for the nth dial, from 1.
func (d *dialing) way(answer func(ctx context.Context, n int) error) func(context.Context) error {
	return func(ctx context.Context) error {
		n := int(d.dials.Add(1))
		if open := d.open.Add(1); open > d.most.Load() {
			d.most.Store(open)
		}
		defer d.open.Add(-1)
		return answer(ctx, n)
	}
}

// takes is a dial that takes so long, and has err then.
func takes(ctx context.Context, long time.Duration, err error) error {
	select {
	case <-time.After(long): // the bubble's time
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// count returns how many errors are err itself, and fails the test for others.
func count(t *testing.T, errs []error, err error) (n int) {
	t.Helper()
	for i, got := range errs {
		switch got {
		case nil:
		case err:
			n++
		default:
			t.Errorf("caller %d: %v; want none, or %v itself", i, got, err)
		}
	}
	return n
}

func TestDial_Fails(t *testing.T) {
	boom := errors.New("connection refused")
	read := func(db *sql.DB) func(int) error {
		return func(int) error { _, err := queryInt(context.Background(), db, hotQuery, 1); return err }
	}
	for _, cfg := range []Config{{}, {Mode: ModeStrict}, {Mode: ModeJoin, Width: 1}, {Width: 3, Window: time.Minute}, {FlightConns: 1}, {Timeout: time.Minute}} {
		bubble(t, fmt.Sprintf("OneCaller/%v,%d,%d,%v", cfg.Mode, cfg.Width, cfg.FlightConns, cfg.Timeout), func(t *testing.T) {
			d, gate := dialing{}, make(chan struct{})
			f := &fakeServer{connect: d.way(func(_ context.Context, n int) error {
				if n == 1 {
					<-gate
					return boom
				}
				return nil
			})}
			f.answer = func(_ context.Context, s *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
				time.Sleep(time.Millisecond) // until all are there
				return oneRow(int64(s.id)), nil
			}
			db := openFake(t, f, cfg)
			go func() {
				synctest.Wait()
				close(gate)
			}()
			if n := count(t, many(20, read(db)), boom); n != 1 {
				t.Errorf("%d callers have the error; want the leader alone", n)
			}
			if s := ReadStats(db); s.Flights != 1 || s.Joins != 19 || s.Fenced != 0 || s.Retries != 0 || s.Waiting != 0 || s.Flying != 0 {
				t.Errorf("Stats = %+v; want one flight, and 19 callers that followed", s)
			}
			if n := f.count(hotQuery); n < 1 || n > 3 {
				t.Errorf("%d executions; want one, or few where callers may not join it", n)
			}
		})
	}
	bubble(t, "Prepare", func(t *testing.T) {
		d, gate := dialing{}, make(chan struct{})
		f := &fakeServer{connect: d.way(func(_ context.Context, n int) error {
			if n == 1 {
				<-gate
				return boom
			}
			return nil
		})}
		db := openFake(t, f, Config{})
		go func() {
			synctest.Wait()
			close(gate)
		}()
		if n := count(t, many(20, func(int) error {
			st, err := db.Prepare(hotQuery)
			if err == nil {
				st.Close()
			}
			return err
		}), boom); n != 1 {
			t.Errorf("%d callers have the error; want one", n)
		}
	})
	bubble(t, "LeaderHasGone", func(t *testing.T) {
		d, gate := dialing{}, make(chan struct{})
		f := &fakeServer{connect: d.way(func(_ context.Context, n int) error {
			if n == 1 {
				<-gate
				return boom
			}
			return nil
		})}
		db := openFake(t, f, Config{})
		ctx, cancel := context.WithCancel(context.Background())
		led := make(chan error, 1)
		go func() { _, err := queryInt(ctx, db, hotQuery, 1); led <- err }()
		synctest.Wait()
		go func() {
			synctest.Wait()
			cancel()
			synctest.Wait()
			close(gate)
		}()
		if n := count(t, many(5, read(db)), nil); n != 0 {
			t.Errorf("%d followers have an error; want none", n)
		}
		if err := <-led; err != context.Canceled {
			t.Errorf("leader: %v", err)
		}
	})
	bubble(t, "EachOfHisOwn", func(t *testing.T) { // as with pgx
		denied := error(&pgconn.PgError{Code: "28P01", Message: "password authentication failed"})
		d := dialing{}
		f := &fakeServer{connect: d.way(func(ctx context.Context, _ int) error { return takes(ctx, time.Millisecond, denied) })}
		db := openFake(t, f, Config{})
		if n := count(t, many(20, read(db)), denied); n != 20 {
			t.Errorf("%d callers have the error; want all", n)
		}
		if n := d.dials.Load(); n != 20 {
			t.Errorf("%d dials of 20 callers; want each one's", n)
		}
	})
	// Nobody waits for all the others, one after the other.
	for _, long := range []time.Duration{100 * time.Millisecond, 700 * time.Millisecond, 10 * time.Second} {
		bubble(t, fmt.Sprintf("AnOutage/%v", long), func(t *testing.T) {
			d := dialing{}
			f := &fakeServer{connect: d.way(func(ctx context.Context, _ int) error { return takes(ctx, long, boom) })}
			db := openFake(t, f, Config{})
			var most atomic.Int64
			if n := count(t, many(50, func(i int) error {
				start := time.Now()
				err := read(db)(i)
				if took := int64(time.Since(start)); took > most.Load() {
					most.Store(took)
				}
				return err
			}), boom); n != 50 {
				t.Errorf("%d callers have the error; want all", n)
			}
			if took, limit := time.Duration(most.Load()), dialPatience+2*long+2*dialPace; took > limit {
				t.Errorf("a caller waited for %v; want at most %v", took, limit)
			}
		})
	}
	bubble(t, "WhoCameLateWaitsForAnother", func(t *testing.T) {
		over := time.Now().Add(4500 * time.Millisecond) // no attempt begins then
		d := dialing{}
		f := &fakeServer{connect: d.way(func(ctx context.Context, _ int) error {
			if left := time.Until(over); left > 0 {
				return takes(ctx, left, boom)
			}
			return takes(ctx, time.Second/2, nil)
		})}
		db := openFake(t, f, Config{})
		led := make(chan error, 1)
		go func() { led <- read(db)(0) }()
		time.Sleep(2 * time.Second) // the bubble's time
		if n := count(t, many(5, read(db)), boom); n != 0 {
			t.Errorf("%d callers have the error; want none", n)
		}
		if err := <-led; err != boom {
			t.Errorf("leader: %v", err)
		}
	})
	bubble(t, "ContextsEnd", func(t *testing.T) {
		d := dialing{}
		f := &fakeServer{connect: d.way(func(ctx context.Context, _ int) error { return takes(ctx, 100*time.Millisecond, boom) })}
		db := openFake(t, f, Config{})
		led := make(chan error, 1)
		go func() { led <- read(db)(0) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		defer cancel()
		start := time.Now()
		if _, err := queryInt(ctx, db, hotQuery, 1); err != context.DeadlineExceeded || time.Since(start) != 50*time.Millisecond {
			t.Errorf("%v after %v; want the end of his context", err, time.Since(start))
		}
		<-led
	})
	bubble(t, "AfterALostConnection", func(t *testing.T) {
		d, gate := dialing{}, make(chan struct{})
		f := &fakeServer{
			connect: d.way(func(_ context.Context, n int) error {
				if n == 2 {
					return boom
				}
				return nil
			}),
			answer: func(_ context.Context, s *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
				if s.id == 1 {
					<-gate
					return nil, fmt.Errorf("broken: %w", driver.ErrBadConn)
				}
				return oneRow(int64(s.id)), nil
			},
		}
		db := openFake(t, f, Config{})
		go func() {
			synctest.Wait()
			close(gate)
		}()
		failed := 0
		for _, err := range many(10, read(db)) {
			if err != nil {
				failed++
			}
		}
		if failed > 1 {
			t.Errorf("%d callers have an error; want at most the leader", failed)
		}
	})
	bubble(t, "Closed", func(t *testing.T) {
		d, gate := dialing{}, make(chan struct{})
		f := &fakeServer{connect: d.way(func(context.Context, int) error { <-gate; return boom })}
		db := openFake(t, f, Config{})
		go func() {
			synctest.Wait()
			db.Close()
			close(gate)
		}()
		if n := count(t, many(5, read(db)), boom); n != 5 {
			t.Errorf("%d callers have the error; want all", n)
		}
	})
	bubble(t, "Panics", func(t *testing.T) {
		d, gate := dialing{}, make(chan struct{})
		f := &fakeServer{connect: d.way(func(context.Context, int) error { <-gate; panic("boom") })}
		db := openFake(t, f, Config{})
		go func() {
			synctest.Wait()
			close(gate)
		}()
		for i, err := range many(5, read(db)) {
			var p *HookPanicError
			if !errors.As(err, &p) || p.Value != "boom" || !strings.Contains(string(p.Stack), "dialing") {
				t.Errorf("caller %d: %v; want the hook's panic and stack", i, err)
			}
		}
		db.Close()
	})
	bubble(t, "FlightTimeout", func(t *testing.T) { // is everybody's
		f := &fakeServer{connect: func(ctx context.Context) error { return takes(ctx, time.Hour, nil) }}
		db := openFake(t, f, Config{Timeout: 300 * time.Millisecond})
		start := time.Now()
		for i, err := range many(5, read(db)) {
			if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "flight_timeout") {
				t.Errorf("caller %d: %v", i, err)
			}
		}
		if took := time.Since(start); took != 300*time.Millisecond {
			t.Errorf("took %v", took)
		}
	})
}

// TestDial_Hangs is an address that accepts connections and does not answer.
func TestDial_Hangs(t *testing.T) {
	// until returns a way in that is open to dials from then on.
	until := func(d *dialing, over time.Time) func(context.Context) error {
		return d.way(func(ctx context.Context, _ int) error {
			if time.Now().Before(over) {
				<-ctx.Done()
				return ctx.Err()
			}
			return nil
		})
	}
	for _, outage := range []time.Duration{1500 * time.Millisecond, 20 * time.Second} {
		bubble(t, fmt.Sprintf("ReadsComeBack/%v", outage), func(t *testing.T) {
			over := time.Now().Add(outage)
			d := dialing{}
			f := &fakeServer{connect: until(&d, over)}
			db := openFake(t, f, Config{})
			// Of one key, so that somebody always waits.
			var wg sync.WaitGroup
			var lost, late atomic.Int64
			for begin := time.Now(); begin.Before(over.Add(5 * time.Second)); begin = begin.Add(100 * time.Millisecond) {
				wg.Go(func() {
					time.Sleep(time.Until(begin)) // the bubble's time
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					defer cancel()
					if _, err := queryInt(ctx, db, hotQuery, 1); err != nil {
						lost.Add(1)
						if begin.After(over.Add(dialPace)) {
							late.Add(1)
						}
					}
				})
			}
			wg.Wait()
			if late.Load() > 0 {
				t.Errorf("%d reads were lost that began more than %v after the outage", late.Load(), dialPace)
			}
			if lost.Load() == 0 {
				t.Error("no read was lost: there was no outage")
			}
			if n := d.most.Load(); n > maxBeside+2 {
				t.Errorf("%d dials at a time; want at most %d", n, maxBeside+2)
			}
			time.Sleep(time.Minute) // the bubble's time
			if n := d.open.Load(); n != 0 {
				t.Errorf("%d dials are still under way", n)
			}
			if n := f.open(); n > 1 {
				t.Errorf("%d connections are open; want those that came too late closed", n)
			}
		})
	}
	bubble(t, "TheFirstIsAsGood", func(t *testing.T) { // a server that is slow
		d := dialing{}
		f := &fakeServer{connect: d.way(func(ctx context.Context, _ int) error { return takes(ctx, 6*time.Second, nil) })}
		db := openFake(t, f, Config{})
		start := time.Now()
		mustInt(t, db, hotQuery, 1)
		if took := time.Since(start); took != 6*time.Second {
			t.Errorf("took %v; want the time of one dial, 6s", took)
		}
		synctest.Wait()
		if n := f.open(); n != 1 {
			t.Errorf("%d connections are open", n)
		}
	})
	bubble(t, "WhatComesTooLateIsClosed", func(t *testing.T) {
		d := dialing{}
		f := &fakeServer{connect: d.way(func(_ context.Context, n int) error {
			if n == 1 {
				time.Sleep(time.Minute) // whatever its context says
			}
			return nil
		})}
		db := openFake(t, f, Config{})
		start := time.Now()
		mustInt(t, db, hotQuery, 1)
		if took := time.Since(start); took != dialPace {
			t.Errorf("took %v; want %v", took, dialPace)
		}
		time.Sleep(2 * time.Minute) // the bubble's time
		if f.opened() != 2 || f.open() > 1 {
			t.Errorf("%d connections of %d are open; want one of two", f.open(), f.opened())
		}
	})
	bubble(t, "NotForEver", func(t *testing.T) {
		f := &fakeServer{connect: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }}
		db := openFake(t, f, Config{})
		start := time.Now()
		_, err := queryInt(context.Background(), db, hotQuery, 1)
		if took := time.Since(start); err != context.DeadlineExceeded || took < dialLimit || took > dialLimit+dialPace {
			t.Errorf("%v after %v; want a timeout after %v", err, took, dialLimit)
		}
	})
	bubble(t, "TheFirstError", func(t *testing.T) {
		first := errors.New("connection reset by peer")
		d := dialing{}
		f := &fakeServer{connect: d.way(func(ctx context.Context, n int) error {
			if n == 1 {
				return takes(ctx, 2500*time.Millisecond, first)
			}
			return errors.New("too many connections")
		})}
		db := openFake(t, f, Config{})
		start := time.Now()
		if _, err := queryInt(context.Background(), db, hotQuery, 1); err != first || time.Since(start) != 2500*time.Millisecond {
			t.Errorf("%v after %v; want %v", err, time.Since(start), first)
		}
		if n := d.dials.Load(); n != 3 {
			t.Errorf("%d dials; want 3", n)
		}
	})
	bubble(t, "TheLastOneLeaves", func(t *testing.T) {
		d := dialing{}
		f := &fakeServer{connect: d.way(func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() })}
		db := openFake(t, f, Config{})
		ctx, cancel := context.WithTimeout(context.Background(), 2500*time.Millisecond)
		defer cancel()
		if _, err := queryInt(ctx, db, hotQuery, 1); err != context.DeadlineExceeded {
			t.Errorf("Query = %v", err)
		}
		synctest.Wait()
		if n := d.open.Load(); n != 0 {
			t.Errorf("%d dials are still under way", n)
		}
	})
	bubble(t, "AllTogetherHaveALimit", func(t *testing.T) {
		d := dialing{}
		f := &fakeServer{connect: d.way(func(ctx context.Context, _ int) error { <-ctx.Done(); return ctx.Err() })}
		db := openFake(t, f, Config{})
		const keys = 100
		many(keys, func(i int) error {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			_, err := queryInt(ctx, db, hotQuery, i)
			return err
		})
		if n := d.most.Load(); n > keys+maxAllBeside+maxBeside {
			t.Errorf("%d dials at a time, for %d flights", n, keys)
		}
		synctest.Wait()
	})
	bubble(t, "SessionsWaitAsWithPgx", func(t *testing.T) {
		d := dialing{}
		f := &fakeServer{connect: d.way(func(ctx context.Context, _ int) error { return takes(ctx, time.Minute, nil) })}
		db := openFake(t, f, Config{})
		mustExec(t, db, "INSERT INTO t VALUES (1)")
		if n := d.dials.Load(); n != 1 {
			t.Errorf("%d dials; want 1", n)
		}
	})
}
