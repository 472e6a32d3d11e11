package pipeline

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// bubble runs a test against a scripted server in a synctest bubble, and checks
// that nothing is left at the end.
func bubble(t *testing.T, name string, change func(*Config), test func(t *testing.T, s *script, p *testPool)) {
	t.Helper()
	t.Run(name, func(t *testing.T) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			t.Helper()
			s := newScript()
			cfg := Config{Connect: s.connect}
			if change != nil {
				change(&cfg)
			}
			p := &testPool{Pool: New(cfg)}
			test(t, s, p)
			atRest(t, p)
			p.Close()
			s.end()
		})
	})
}

// atRest waits until everything that can happen has happened, and checks what must
// hold then.
func atRest(t *testing.T, p *testPool) {
	t.Helper()
	time.Sleep(time.Minute) // the bubble's time: every patience has ended
	synctest.Wait()
	if what := resting(p.Pool); what != "" {
		t.Errorf("at rest: %s", what)
	}
}

// resting returns what does not hold of a pool with nothing to do.
func resting(p *Pool) string {
	if st := p.Stats(); st.Open != st.Idle || st.Queued != 0 || st.Busy != 0 {
		return fmt.Sprintf("%+v; want every connection free and nothing queued", st)
	}
	p.lock()
	defer p.unlock()
	if p.busy != 0 || p.sent != 0 || p.live != 0 || len(p.dials) != 0 || p.dialing != 0 {
		return fmt.Sprintf("%d connections count as busy, with %d calls, %d as live, %d as being opened", p.busy, p.sent, p.live, p.dialing)
	}
	for k := range p.conns {
		if k.cancels != 0 || k.parked || k.busy || k.writing != nil {
			return fmt.Sprintf("a connection with %d requests to cancel, parked %v, busy %v, writing %v", k.cancels, k.parked, k.busy, k.writing != nil)
		}
	}
	return ""
}

func (p *testPool) warm(t *testing.T, texts ...string) {
	t.Helper()
	for _, text := range texts {
		for range 2 {
			_, _ = p.query(context.Background(), text, "warm")
		}
	}
}

// together submits reads while the only fast connection is held, so that they form
// groups, and returns their outcomes.
func (p *testPool) together(texts ...string) (got []string, errs []error) {
	got, errs = make([]string, len(texts)), make([]error, len(texts))
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = p.query(context.Background(), "sleep 200us", "hold") })
	synctest.Wait()
	for i, text := range texts {
		wg.Go(func() { got[i], errs[i] = p.query(context.Background(), text, fmt.Sprint(i)) })
		synctest.Wait()
	}
	wg.Wait()
	return got, errs
}

func oneFast(c *Config) { c.Width = 1 }

func TestScript_Groups(t *testing.T) {
	bubble(t, "WhoWaitsTravelsTogether", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us")
		got, errs := p.together("echo", "echo", "echo", "echo", "echo")
		for i := range got {
			if errs[i] != nil || got[i] != fmt.Sprint(i) {
				t.Errorf("call %d = %q, %v", i, got[i], errs[i])
			}
		}
		if st := p.Stats(); st.Grouped != 5 || st.Groups != 1 || st.Open != 1 {
			t.Errorf("Stats = %+v; want one group of 5 on one connection", st)
		}
	})
	bubble(t, "NotMoreThanTheLimit", func(c *Config) { c.Width, c.Group = 1, 2 }, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us")
		p.together("echo", "echo", "echo", "echo", "echo")
		if st := p.Stats(); st.Grouped != 4 || st.Groups != 2 {
			t.Errorf("Stats = %+v; want groups of 2, 2 and 1", st)
		}
	})
	bubble(t, "ErrorIsItsCallsAlone", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us", "rows 3")
		p.stmt("fail 22012").known.Store(true) // as if it had always gone well
		_, _ = p.query(context.Background(), "fail 22012", "first")
		p.stmt("fail 22012").alone.Store(0)
		got, errs := p.together("echo", "fail 22012", "echo", "rows 3")
		if code(errs[1]) != "22012" || got[0] != "0" || got[2] != "2" || got[3] != "3,0;3,1;3,2" || errs[0] != nil || errs[2] != nil || errs[3] != nil {
			t.Errorf("got %q, %v", got, errs)
		}
		if n := s.count("echo 2"); n != 1 {
			t.Errorf("the call behind the failure ran %d times; want 1: it was skipped and then run", n)
		}
		if st := p.Stats(); st.Skipped != 2 {
			t.Errorf("Stats = %+v; want 2 skipped", st)
		}
	})
	bubble(t, "SkippedParseIsSentAgain", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us", "rows 2", "fail 22012")
		p.CloseIdle()
		p.warm(t, "sleep 200us") // on a connection that knows no other statement
		p.stmt("fail 22012").alone.Store(0)
		p.stmt("fail 22012").known.Store(true)
		got, errs := p.together("fail 22012", "echo", "rows 2", "echo")
		if code(errs[0]) != "22012" || got[1] != "1" || got[2] != "2,0;2,1" || got[3] != "3" {
			t.Errorf("got %q, %v", got, errs)
		}
		if st := p.Stats(); st.Stale != 0 || st.Lost != 0 {
			t.Errorf("Stats = %+v; want nothing stale", st)
		}
	})
	bubble(t, "WhatFailedGoesAlone", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us", "fail 22012")
		before := p.Stats()
		p.together("echo", "fail 22012", "echo")
		if st := p.Stats(); st.Skipped != before.Skipped || st.Grouped != before.Grouped+2 {
			t.Errorf("Stats = %+v; want the two that go well in a group", st)
		}
	})
	bubble(t, "LiveRowsWithAnswersOfCallsBehindThemThatHaveMovedOn", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us")
		for range 40 {
			_, _ = p.query(context.Background(), "maybe 30ms", "fast")
		}
		r := &reading{max: 1}
		c := p.NewCall(p.stmt("maybe 30ms"), []any{"7"}, r)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = p.query(context.Background(), "sleep 200us", "hold") })
		synctest.Wait()
		wg.Go(func() { c.Run(context.Background()) })
		synctest.Wait()
		for range 2 {
			wg.Go(func() { p.want(t, "x", "echo", "x") })
			synctest.Wait()
		}
		wg.Wait()
		if st := p.Stats(); st.Moved != 2 || c.Live() == nil {
			t.Fatalf("Stats = %+v, live %v; want two calls moved, and live rows", st, c.Live())
		}
		if c.Live().Next() || c.Live().Err() != nil {
			t.Errorf("a row after the last one, or an error: %q, %v", c.Live().RawValues(), c.Live().Err())
		}
		c.Live().Close()
	})
	bubble(t, "NotWhereTheGuardDoesNotHold", func(c *Config) {
		connect := c.Connect
		c.Width = 1
		c.Connect = func(ctx context.Context) (*Link, error) {
			l, err := connect(ctx)
			if l != nil {
				l.Grouped = false
			}
			return l, err
		}
	}, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us")
		p.together("echo", "echo", "echo")
		if st := p.Stats(); st.Groups != 0 {
			t.Errorf("Stats = %+v; want no groups", st)
		}
	})
	bubble(t, "WhereTimeoutsAreRefused", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us")
		for _, code := range []string{"57014", "42501"} { // a request to cancel that came early; a server that does not know them
			before := p.Stats()
			s.mu.Lock()
			s.unarmed = code
			s.mu.Unlock()
			got, errs := p.together("echo", "echo", "echo")
			for i := range got {
				if errs[i] != nil || got[i] != fmt.Sprint(i) {
					t.Errorf("%s: call %d = %q, %v", code, i, got[i], errs[i])
				}
			}
			if st := p.Stats(); st.Groups != before.Groups+1 || st.Lost != 0 || p.alone.Load() != (code == "42501") {
				t.Errorf("%s: Stats = %+v, no more groups: %v", code, st, p.alone.Load())
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		for what, n := range s.ran {
			if n > 2 && strings.HasPrefix(what, "echo ") && what != "echo warm" {
				t.Errorf("%q ran %d times; want once in each group", what, n)
			}
		}
	})
	bubble(t, "NoMoreThanFitsIntoTheBuffers", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us")
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = p.query(context.Background(), "sleep 200us", "hold") })
		synctest.Wait()
		for _, size := range []int{writeBytes / 2, writeBytes / 2, 100, 4 * writeBytes} {
			arg := string(make([]byte, size))
			wg.Go(func() {
				if got, err := p.query(context.Background(), "echo", arg); err != nil || got != arg {
					t.Errorf("%d bytes: %d, %v", size, len(got), err)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, group := range s.all[0].groups {
			n := 0
			for _, g := range group {
				n += len(g)
			}
			if len(group) > 1 && n > writeBytes {
				t.Errorf("a group of %d has %d bytes", len(group), n)
			}
		}
	})
}

func TestScript_Cancel(t *testing.T) {
	bubble(t, "LeaderLeavesTheQueue", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us")
		go func() { _, _ = p.query(context.Background(), "sleep 200us", "hold") }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { _, err := p.query(ctx, "echo", "x"); done <- err }()
		synctest.Wait()
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Query = %v", err)
		}
		time.Sleep(time.Second) // the bubble's time
		if n := s.count("echo x"); n != 0 {
			t.Errorf("ran %d times; want 0", n)
		}
		if st := p.Stats(); st.Cancels != 0 {
			t.Errorf("Stats = %+v; want no request to cancel", st)
		}
	})
	bubble(t, "HandedOverWhereverItIs", oneFast, func(t *testing.T, s *script, p *testPool) {
		// Callers whose contexts end at every moment of a group's life, each
		// followed by somebody who takes the call over.
		p.warm(t, "echo", "sleep 1ms", "sleep 3ms")
		for after := range 12 {
			var wg sync.WaitGroup
			for i := range 6 {
				text := []string{"sleep 1ms", "echo", "sleep 3ms"}[i%3]
				wg.Go(func() {
					ctx, cancel := context.WithTimeout(context.Background(), time.Duration(after)*500*time.Microsecond)
					defer cancel()
					r := new(reading)
					c := p.NewCall(p.stmt(text), []any{fmt.Sprint(after, "/", i)}, r)
					began := time.Now()
					if !c.Run(ctx) {
						if d := time.Since(began); d > time.Duration(after)*500*time.Microsecond+2*glanceTime {
							t.Errorf("Run returned %v after its context's end", d)
						}
						c.Finish(context.Background())
					}
					if c.Err() != nil || r.String() != fmt.Sprint(after, "/", i) {
						t.Errorf("%s: %q, %v", text, r, c.Err())
					}
					if n := s.count(text + " " + fmt.Sprint(after, "/", i)); n != 1 {
						t.Errorf("%s ran %d times; want 1", text, n)
					}
				})
			}
			wg.Wait()
		}
		if st := p.Stats(); st.Handed == 0 || st.Cancels != 0 {
			t.Errorf("Stats = %+v; want calls handed over, and none cancelled", st)
		}
	})
	bubble(t, "MatesOfACancelledCallRunAgain", oneFast, func(t *testing.T, s *script, p *testPool) {
		s.patience = 2 * time.Hour
		p.warm(t, "echo", "sleep 200us", "sleep 1h0m0s")
		_ = p.stmt("sleep 1h0m0s")
		st := p.stmt("maybe 1h0m0s")
		for range 20 {
			_, _ = p.query(context.Background(), "maybe 1h0m0s", "fast")
		}
		if st.solo() {
			t.Fatal("the statement is not thought to be fast")
		}
		go func() { _, _ = p.query(context.Background(), "sleep 200us", "hold") }()
		synctest.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = p.query(context.Background(), "echo", "before") })
		synctest.Wait()
		wg.Go(func() {
			if _, err := p.query(ctx, "maybe 1h0m0s", "7"); err != context.Canceled {
				t.Errorf("Query = %v", err)
			}
		})
		synctest.Wait()
		for i := range 3 {
			wg.Go(func() {
				if got, err := p.query(context.Background(), "echo", fmt.Sprint(i)); err != nil || got != fmt.Sprint(i) {
					t.Errorf("echo %d = %q, %v", i, got, err)
				}
			})
			synctest.Wait()
		}
		time.Sleep(2 * time.Millisecond) // the group is on its way
		cancel()
		wg.Wait()
		if st := p.Stats(); st.Cancels != 1 || st.Lost != 0 {
			t.Errorf("Stats = %+v; want one request to cancel", st)
		}
	})
	bubble(t, "RequestThatFailsWhileItsConnectionIsParked", nil, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "sleep 2ms")
		p.stmt("sleep 2ms").stayAlone(100) // so that it is cancelled at once
		p.CloseIdle()
		p.want(t, "x", "sleep 2ms", "x")
		s.mu.Lock()
		s.refuse, s.refusing = errors.New("refused"), 4*time.Millisecond
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		if _, err := p.query(ctx, "sleep 2ms", "x"); err != context.DeadlineExceeded {
			t.Errorf("Query = %v", err)
		}
		time.Sleep(10 * time.Millisecond) // the bubble's time
		if st := p.Stats(); st.Cancels != 1 || st.Open != 0 {
			t.Errorf("Stats = %+v; want the connection closed: the request may be on its way still", st)
		}
	})
	bubble(t, "GivenUpWhileItIsPrepared", func(c *Config) {
		connect := c.Connect
		c.Connect = func(ctx context.Context) (*Link, error) {
			l, err := connect(ctx)
			if l != nil {
				l.Timed = true
			}
			return l, err
		}
	}, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "sleep 10s")
		p.CloseIdle()
		s.mu.Lock()
		s.lag = time.Millisecond
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Microsecond)
		defer cancel()
		if _, err := p.query(ctx, "sleep 10s", "x"); err != context.DeadlineExceeded {
			t.Errorf("Query = %v", err)
		}
		time.Sleep(10 * time.Millisecond) // the bubble's time
		if n := s.count("sleep 10s x"); n != 0 {
			t.Errorf("ran %d times; want 0: nobody wanted it when it was prepared", n)
		}
		if st := p.Stats(); st.Cancels != 1 || st.Idle != 1 {
			t.Errorf("Stats = %+v; want one request to cancel, and the connection free", st)
		}
		s.mu.Lock()
		s.lag = 0
		s.mu.Unlock()
	})
	bubble(t, "NotBeforeTheTimeoutsAreSet", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us")
		for range 20 {
			_, _ = p.query(context.Background(), "maybe 10s", "fast")
		}
		s.mu.Lock()
		s.lag = 500 * time.Microsecond // timeouts take twice that to be set
		s.mu.Unlock()
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = p.query(context.Background(), "sleep 200us", "hold") })
		synctest.Wait()
		wg.Go(func() { p.want(t, "x", "echo", "x") })
		synctest.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		c := p.NewCall(p.stmt("maybe 10s"), []any{"7"}, &reading{onDispatch: func() {
			cancel()
			time.Sleep(2 * cancelGrace) // the bubble's time
		}})
		wg.Go(func() { c.Finish(ctx) })
		began := time.Now()
		wg.Wait()
		if took := time.Since(began); took > 100*time.Millisecond || p.Stats().Cancels != 1 || p.Stats().Grouped != 2 || p.alone.Load() {
			t.Errorf("took %v, Stats = %+v; want the call cancelled when the timeouts were set", took, p.Stats())
		}
		s.mu.Lock()
		s.lag = 0
		s.mu.Unlock()
	})
	bubble(t, "AfterManyStraysAlone", func(c *Config) {
		connect := c.Connect
		c.Width = 1
		c.Connect = func(ctx context.Context) (*Link, error) {
			l, err := connect(ctx)
			if l != nil {
				l.Arm = "" // else it is alone after the first long wait
			}
			return l, err
		}
	}, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us")
		for range 20 {
			_, _ = p.query(context.Background(), "maybe 1h0m0s", "fast")
		}
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = p.query(context.Background(), "sleep 200us", "hold") })
		synctest.Wait()
		r := new(reading)
		c := p.NewCall(p.stmt("maybe 1h0m0s"), []any{"7"}, r)
		c.strays = maxStrays - 1
		wg.Go(func() { c.Run(context.Background()) })
		synctest.Wait()
		ctx, cancel := context.WithCancel(context.Background())
		wg.Go(func() { _, _ = p.query(ctx, "echo", "x") })
		synctest.Wait()
		p.lock()
		p.spare = 0 // nobody moves on
		p.unlock()
		time.Sleep(time.Millisecond) // the group is on its way
		cancel()
		wg.Wait()
		if !c.alone || c.Err() != nil || r.String() != "7" || p.Stats().Strays != 1 {
			t.Errorf("alone %v, %q, %v, Stats = %+v; want the answer of a call that is alone", c.alone, r, c.Err(), p.Stats())
		}
	})
	bubble(t, "NoNewGroupBeforeTheRequestHasReturned", func(c *Config) { c.Max, c.Width = 2, 1 }, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "sleep 1ms", "sleep 2ms", "sleep 1ms")
		p.stmt("sleep 2ms").stayAlone(100) // so that it is cancelled at once
		s.delay = 4 * time.Millisecond
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		if _, err := p.query(ctx, "sleep 2ms", "x"); err != context.DeadlineExceeded {
			t.Errorf("Query = %v", err)
		}
		time.Sleep(time.Millisecond) // its answer has come, the request is on its way
		for range 10 {
			p.want(t, "y", "sleep 1ms", "y")
		}
		if st := p.Stats(); st.Cancels != 1 || st.Strays != 0 {
			t.Errorf("Stats = %+v; want one request, that hit nobody", st)
		}
	})
	bubble(t, "OnlyOursAreRunAgain", nil, func(t *testing.T, s *script, p *testPool) {
		if _, err := p.query(context.Background(), "fail 57014", "x"); code(err) != "57014" {
			t.Errorf("Query = %v; want the server's own", err)
		}
		if n := s.count("fail 57014 x"); n != 1 {
			t.Errorf("ran %d times; want 1", n)
		}
	})
	bubble(t, "ServerThatDoesNotCancel", nil, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo")
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		s.mu.Lock()
		clear(s.conns) // requests find nobody
		s.mu.Unlock()
		if _, err := p.query(ctx, "sleep 20s", "x"); err != context.DeadlineExceeded {
			t.Errorf("Query = %v", err)
		}
		time.Sleep(2 * time.Second) // the bubble's time
		if st := p.Stats(); st.Open != 0 && st.Open != st.Idle {
			t.Errorf("Stats = %+v; want the connection closed when patience has ended", st)
		}
	})
}

func TestScript_Stale(t *testing.T) {
	bubble(t, "CachedPlan", nil, func(t *testing.T, s *script, p *testPool) {
		p.want(t, "x", "cached 1", "x")
	})
	bubble(t, "NotForEver", nil, func(t *testing.T, s *script, p *testPool) {
		if _, err := p.query(context.Background(), "cached 100", "x"); code(err) != "0A000" {
			t.Errorf("Query = %v; want the server's error", err)
		}
	})
	bubble(t, "OtherColumnsOnANewConnection", nil, func(t *testing.T, s *script, p *testPool) {
		p.want(t, "", "twocolumns", "x")
		s.mu.Lock()
		s.columns = 2
		s.mu.Unlock()
		p.CloseIdle()
		p.want(t, ",", "twocolumns", "x")
		if st := p.Stats(); st.Stale != 1 {
			t.Errorf("Stats = %+v; want one stale description", st)
		}
	})
	bubble(t, "StatementsGone", nil, func(t *testing.T, s *script, p *testPool) {
		p.want(t, "x", "echo", "x")
		s.mu.Lock()
		clear(s.all[0].stmts) // the server is at rest
		s.mu.Unlock()
		p.want(t, "y", "echo", "y")
	})
	bubble(t, "CannotBeDescribed", nil, func(t *testing.T, s *script, p *testPool) {
		for range 2 {
			if _, err := p.query(context.Background(), "undefined", "x"); code(err) != "42P01" {
				t.Errorf("Query = %v; want the server's error", err)
			}
		}
	})
}

func TestScript_Altered(t *testing.T) {
	bubble(t, "MatesOfWhoPreparesIt", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "sleep 200us", "table")
		s.alter("08P01")
		p.CloseIdle()
		p.warm(t, "sleep 200us") // on a connection that knows nothing of the table
		got, errs := p.together("table", "table", "table")
		for i := range got {
			if errs[i] != nil || got[i] != fmt.Sprint(i, ",1") {
				t.Errorf("call %d = %q, %v; want the columns of version 1", i, got[i], errs[i])
			}
		}
		if st := p.Stats(); st.Grouped != 3 || st.Stale != 3 || st.Lost != 0 {
			t.Errorf("Stats = %+v; want a group of 3, all of them stale", st)
		}
	})
	bubble(t, "WhoPreparesItFails", nil, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "table 22012")
		s.alter("08P01")
		p.CloseIdle()
		if _, err := p.query(context.Background(), "table 22012", "3"); code(err) != "22012" {
			t.Errorf("Query = %v; want the error of its execution", err)
		}
		p.want(t, "4,1", "table 22012", "4")
		if st := p.Stats(); st.Lost != 0 {
			t.Errorf("Stats = %+v; want none lost", st)
		}
	})
	bubble(t, "ArgumentsOfAnotherType", nil, func(t *testing.T, s *script, p *testPool) {
		s.alter("08P01")
		p.want(t, "10035,1", "table 22012", int64(10035))
		s.alter("08P01") // to a text, as which the number ends in 3
		p.CloseIdle()
		if _, err := p.query(context.Background(), "table 22012", int64(10035)); err != ErrElsewhere {
			t.Errorf("Query = %v; want ErrElsewhere", err)
		}
	})
}

func TestScript_Arguments(t *testing.T) {
	bubble(t, "NotForTheParameter", nil, func(t *testing.T, s *script, p *testPool) {
		if _, err := p.query(context.Background(), "echo", 5); err != ErrElsewhere {
			t.Errorf("Query = %v; want ErrElsewhere", err)
		}
	})
	bubble(t, "NotForAConnectionsCodec", func(c *Config) {
		connect := c.Connect
		c.Connect = func(ctx context.Context) (*Link, error) {
			l, err := connect(ctx)
			if err == nil && l.PgConn.PID() == 1 {
				l.Types.RegisterType(&pgtype.Type{Name: "int8", OID: pgtype.Int8OID, Codec: &oddCodec{id: l.PgConn.PID()}})
				l.Odd = &Oddities{All: true}
			}
			return l, err
		}
	}, func(t *testing.T, s *script, p *testPool) {
		p.want(t, "odd 1 10", "number", int64(10))
		if _, err := p.query(context.Background(), "number", int64(13)); err != ErrElsewhere {
			t.Errorf("Query = %v; want ErrElsewhere", err)
		}
		p.want(t, "odd 1 10", "number", int64(10))
		// It starts anew, since it was no number before, and loses its connection then.
		p.want(t, "x", "table", "x")
		s.alter("08P01")
		s.mu.Lock()
		s.dies = 1
		s.mu.Unlock()
		p.odd.Store(nil) // as if it had been encoded before that was known
		p.want(t, "10,1", "table", int64(10))
	})
}

func TestScript_Broken(t *testing.T) {
	bubble(t, "RunsOnceMore", nil, func(t *testing.T, s *script, p *testPool) {
		p.want(t, "x", "dieonce", "x")
	})
	bubble(t, "ThenItIsAnError", nil, func(t *testing.T, s *script, p *testPool) {
		if _, err := p.query(context.Background(), "die", "x"); err == nil || code(err) != "" {
			t.Errorf("Query = %v; want the connection's failure", err)
		}
		if n := s.count("die x"); n != 2 {
			t.Errorf("ran %d times; want 2", n)
		}
	})
	bubble(t, "SurpriseMessage", nil, func(t *testing.T, s *script, p *testPool) {
		if _, err := p.query(context.Background(), "ready", "x"); err == nil {
			t.Error("Query: no error")
		}
		p.want(t, "x", "copy", "x") // as pgx
		p.want(t, "x", "echo", "x")
	})
	bubble(t, "LiveRows", nil, func(t *testing.T, s *script, p *testPool) {
		for text, want := range map[string]string{
			"changed 40001": "40001", // the session's end is not the answer's
			"emptied":       "",
		} {
			c := p.NewCall(p.stmt(text), []any{"x"}, &reading{max: 1})
			if !c.Run(context.Background()) || c.Live() == nil {
				t.Fatalf("%s: Run: %v, live %v", text, c.Err(), c.Live())
			}
			c.Live().Close()
			if err := c.Live().Err(); err == nil || code(err) != want {
				t.Errorf("%s: the rows end with %v; want an error %s", text, err, want)
			}
		}
		p.want(t, "x", "echo", "x")
	})
	bubble(t, "ErrorAtTheTransactionsEnd", nil, func(t *testing.T, s *script, p *testPool) {
		// As a serializable one can have.
		if _, err := p.query(context.Background(), "commit 40001", "x"); code(err) != "40001" {
			t.Errorf("Query = %v; want the error 40001", err)
		}
		p.want(t, "x", "echo", "x")
	})
	bubble(t, "TaintedSession", nil, func(t *testing.T, s *script, p *testPool) {
		p.want(t, "x", "taint TimeZone Mars", "x")
		time.Sleep(time.Millisecond) // the bubble's time
		if st := p.Stats(); st.Tainted != 1 || st.Open != 0 {
			t.Errorf("Stats = %+v; want the connection closed", st)
		}
		p.want(t, "x", "taint TimeZone UTC", "x") // as it was
		if st := p.Stats(); st.Tainted != 1 {
			t.Errorf("Stats = %+v; want nothing tainted", st)
		}
	})
	// A session hears of a reload of the server's configuration before the next message,
	// and tells of it when the transaction ends: what it has parsed meanwhile may mean
	// anything.
	bubble(t, "TextsMeanSomethingElse", oneFast, func(t *testing.T, s *script, p *testPool) {
		reload := func() {
			s.mu.Lock()
			s.reading++
			s.mu.Unlock()
		}
		elsewhere := func(text string) {
			t.Helper()
			reload()
			if got, err := p.query(context.Background(), text, "x"); !errors.Is(err, ErrElsewhere) {
				t.Errorf("%s, parsed just after a reload: %q, %v; want ErrElsewhere", text, got, err)
			}
			synctest.Wait()
			if st := p.Stats(); st.Open != 0 {
				t.Errorf("Stats = %+v; want the connection closed", st)
			}
			s.mu.Lock()
			s.reading = 0
			s.mu.Unlock()
		}
		p.warm(t, "echo", "sleep 200us")
		elsewhere("literal;described there")
		p.warm(t, "literal")
		p.CloseIdle()
		p.warm(t, "echo", "sleep 200us") // on a connection that has not parsed the other
		elsewhere("literal")
		// What was parsed before means what it did; so it is with pgx.
		p.want(t, "x 0", "literal", "x")
		reload()
		p.want(t, "x 0", "literal", "x")
		s.mu.Lock()
		s.reading = 0
		s.mu.Unlock()
		// In company.
		p.warm(t, "literal", "echo", "sleep 200us")
		p.CloseIdle()
		p.warm(t, "echo", "sleep 200us")
		reload()
		got, errs := p.together("echo", "literal", "literal", "echo")
		for i, want := range []string{"0", "1 0", "2 0", "3"} {
			if errs[i] != nil && !errors.Is(errs[i], ErrElsewhere) || errs[i] == nil && got[i] != want {
				t.Errorf("call %d = %q, %v; want %q, or ErrElsewhere", i, got[i], errs[i], want)
			}
		}
	})
	// … or while it was set up.
	bubble(t, "UnsettledWhenTakenOver", nil, func(t *testing.T, s *script, p *testPool) {
		unsettled := errors.New("not what it was")
		connect := p.cfg.Connect
		p.cfg.Connect = func(ctx context.Context) (*Link, error) {
			l, err := connect(ctx)
			if err == nil {
				l.Settled = func(reported map[string]string) error {
					if reported["TimeZone"] != "UTC" {
						t.Errorf("reported %v; want the settings", reported)
					}
					return unsettled
				}
			}
			return l, err
		}
		if _, err := p.query(context.Background(), "echo", "x"); !errors.Is(err, unsettled) {
			t.Errorf("Query = %v; want %v", err, unsettled)
		}
		p.cfg.Connect = connect
		p.want(t, "x", "echo", "x")
	})
	bubble(t, "PanicInARead", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 1ms")
		for _, end := range []func(){func() { panic("boom") }, runtime.Goexit} {
			go func() { _, _ = p.query(context.Background(), "sleep 1ms", "hold") }()
			synctest.Wait()
			r := &reading{onRow: end}
			c := p.NewCall(p.stmt("echo"), []any{"x"}, r)
			done := make(chan any)
			go func() {
				defer func() { done <- recover() }()
				c.Run(context.Background())
			}()
			synctest.Wait()
			mates := make(chan string, 3)
			for i := range cap(mates) {
				go func() {
					got, err := p.query(context.Background(), "echo", fmt.Sprint(i))
					if err != nil {
						t.Error(err)
					}
					mates <- got
				}()
				synctest.Wait()
			}
			<-done
			for range cap(mates) {
				<-mates
			}
		}
	})
	bubble(t, "CutAtEveryByte", oneFast, func(t *testing.T, s *script, p *testPool) {
		// The connection that all others queue for dies after n bytes.
		for n := 1; ; n++ {
			p.CloseIdle()
			s.mu.Lock()
			s.wrap = func(_ int, c net.Conn) net.Conn {
				s.wrap = nil // the next one is whole
				return &cutConn{c, 60 + n}
			}
			s.mu.Unlock()
			var wg sync.WaitGroup
			for i, text := range []string{"sleep 1ms", "echo", "rows 3", "echo", "rows 2"} {
				wg.Go(func() {
					arg := fmt.Sprint(n, ".", i)
					got, err := p.query(context.Background(), text, arg)
					want := arg
					switch text {
					case "rows 3":
						want = arg + ",0;" + arg + ",1;" + arg + ",2"
					case "rows 2":
						want = arg + ",0;" + arg + ",1"
					}
					if err != nil && got != "" || err == nil && got != want {
						t.Errorf("cut after %d: %s = %q, %v; want %q or an error", n, text, got, err, want)
					}
					if ran := s.count(text + " " + arg); ran > 2 {
						t.Errorf("cut after %d: %s ran %d times", n, text, ran)
					}
				})
				synctest.Wait()
			}
			wg.Wait()
			s.mu.Lock()
			whole := s.wrap != nil
			s.mu.Unlock()
			if n > 900 || whole {
				break
			}
		}
		if st := p.Stats(); st.Lost < 50 {
			t.Errorf("Stats = %+v; want many connections lost", st)
		}
	})
	bubble(t, "NoServer", nil, func(t *testing.T, s *script, p *testPool) {
		p.want(t, "x", "echo", "x")
		s.mu.Lock()
		s.refuse = errors.New("refused")
		for _, c := range s.all {
			_ = c.conn.Close()
		}
		s.mu.Unlock()
		if _, err := p.query(context.Background(), "echo", "x"); err == nil {
			t.Error("Query: no error")
		}
		s.mu.Lock()
		s.refuse = nil
		s.mu.Unlock()
		p.want(t, "y", "echo", "y")
	})
}

func TestScript_Lanes(t *testing.T) {
	bubble(t, "SlowOnesGetTheirOwn", nil, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 50ms")
		for range 3 {
			_, _ = p.query(context.Background(), "sleep 50ms", "x")
		}
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() { p.want(t, "s", "sleep 50ms", "s") })
		}
		synctest.Wait()
		began := time.Now()
		for i := range 100 {
			p.want(t, fmt.Sprint(i), "echo", fmt.Sprint(i))
		}
		if d := time.Since(began); d > 10*time.Millisecond {
			t.Errorf("100 fast reads took %v of the bubble's time beside slow ones", d)
		}
		wg.Wait()
		if d := time.Since(began); d > 60*time.Millisecond {
			t.Errorf("20 slow reads took %v; want them side by side", d)
		}
	})
	bubble(t, "UnknownOneThatHangs", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo")
		var wg sync.WaitGroup
		for range 5 {
			wg.Go(func() { p.want(t, "s", "sleep 10s", "s") })
		}
		synctest.Wait()
		began := time.Now()
		for i := range 10 {
			p.want(t, fmt.Sprint(i), "echo", fmt.Sprint(i))
		}
		if d := time.Since(began); d > 100*time.Millisecond {
			t.Errorf("10 fast reads took %v behind one that hangs", d)
		}
		wg.Wait()
		if d := time.Since(began); d > 11*time.Second {
			t.Errorf("5 slow reads took %v; want them side by side", d)
		}
	})
	bubble(t, "NoMoreThanTheLimit", func(c *Config) { c.Max = 3 }, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 50ms", "sleep 50ms")
		var wg sync.WaitGroup
		for i := range 12 {
			wg.Go(func() { p.want(t, "s", "sleep 50ms", "s") })
			wg.Go(func() { p.want(t, fmt.Sprint(i), "echo", fmt.Sprint(i)) })
		}
		synctest.Wait()
		if st := p.Stats(); st.Open > 3 {
			t.Errorf("Stats = %+v; want 3 connections at most", st)
		}
		wg.Wait()
	})
	bubble(t, "NoConnectionForWhatMustWait", func(c *Config) { c.Max, c.MaxIdle = 2, -1 }, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 50ms")
		s.mu.Lock()
		most := s.dials + 3
		s.wrap = func(n int, c net.Conn) net.Conn {
			if n > most {
				s.refuse = errors.New("too many") // so that it ends
			}
			return c
		}
		s.mu.Unlock()
		var wg sync.WaitGroup
		for range 2 {
			wg.Go(func() { p.want(t, "s", "sleep 50ms", "s") })
		}
		wg.Wait()
		if s.refuse != nil {
			t.Errorf("more than 3 connections were opened for two slow reads, one after the other")
		}
	})
	bubble(t, "IdleOnesAreClosed", func(c *Config) { c.MaxIdleTime, c.MaxIdle = time.Minute, 2 }, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "sleep 50ms", "sleep 50ms")
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() { p.want(t, "s", "sleep 50ms", "s") })
		}
		wg.Wait()
		if st := p.Stats(); st.Idle != 2 {
			t.Errorf("Stats = %+v; want 2 idle", st)
		}
		time.Sleep(3 * time.Minute) // the bubble's time
		if st := p.Stats(); st.Open != 0 {
			t.Errorf("Stats = %+v; want none left", st)
		}
	})
	bubble(t, "OldOnesAreClosed", func(c *Config) { c.MaxIdleTime, c.MaxLifetime, c.MaxIdle = time.Hour, 10*time.Minute, 2 }, func(t *testing.T, s *script, p *testPool) {
		began := time.Now()
		p.warm(t, "sleep 50ms")
		time.Sleep(9 * time.Minute)       // the bubble's time
		p.want(t, "s", "sleep 50ms", "s") // it is used, and young enough
		if st := p.Stats(); st.Idle != 1 {
			t.Errorf("Stats = %+v; want it idle", st)
		}
		time.Sleep(time.Until(began.Add(10*time.Minute + time.Second))) // the bubble's time
		if st := p.Stats(); st.Open != 0 {
			t.Errorf("Stats = %+v; want it closed at the end of its life", st)
		}
	})
}

// tailedTime is what a number of connections take for the calls, each taking the
// next when it is free.
func tailedTime(numbers []int, conns int) (took time.Duration) {
	free := make([]time.Duration, conns)
	for _, n := range numbers {
		d := 20 * time.Microsecond
		if n%50 == 0 {
			d = 20 * time.Millisecond
		}
		slices.Sort(free)
		free[0] += d
		took = max(took, free[0])
	}
	return took
}

// TestScript_Tail: a text that is slow now and then is served no worse than by a pool
// of 16 connections, whoever calls it, and its fast calls wait for a slow one no
// longer than until its connection counts as stuck.
func TestScript_Tail(t *testing.T) {
	for _, callers := range []int{1, 4, 16, 64, 256} {
		bubble(t, fmt.Sprint(callers), nil, func(t *testing.T, s *script, p *testPool) {
			p.warm(t, "echo", "tailed")
			const each = 100
			numbers := rand.New(rand.NewPCG(1, 2)).Perm(2 * callers * each) // of which the first half is warming up
			var mu sync.Mutex
			var worst time.Duration
			run := func(numbers []int) time.Duration {
				began := time.Now()
				var wg sync.WaitGroup
				var next atomic.Int64
				for range callers {
					wg.Go(func() {
						for {
							i := int(next.Add(1)) - 1
							if i >= len(numbers) {
								return
							}
							n := numbers[i]
							sent := time.Now()
							p.want(t, fmt.Sprint(n), "tailed", fmt.Sprint(n))
							if n%50 != 0 {
								mu.Lock()
								worst = max(worst, time.Since(sent))
								mu.Unlock()
							}
						}
					})
				}
				wg.Wait()
				return time.Since(began)
			}
			run(numbers[:callers*each])
			worst = 0
			before := p.Stats()
			took := run(numbers[callers*each:])
			st := p.Stats()
			pgx := tailedTime(numbers[callers*each:], min(callers, 16))
			t.Logf("%d callers: %v, %.2f of what 16 connections take; the slowest of the fast ones %v; %d groups, %d grouped; %+v", callers, took, float64(took)/float64(pgx), worst,
				st.Groups-before.Groups, st.Grouped-before.Grouped, st)
			if took > pgx+pgx/10 {
				t.Errorf("%d callers take %v of the bubble's time; want no more than 16 connections take, %v", callers, took, pgx)
			}
			if limit := 2*stuckTime + time.Duration(callers)*30*time.Microsecond; worst > limit {
				t.Errorf("a fast call took %v of the bubble's time; want at most %v", worst, limit)
			}
			if moved := st.Moved - before.Moved; moved > (st.Calls-before.Calls)/moveCost+maxSpare {
				t.Errorf("%d of %d calls were executed again", moved, st.Calls-before.Calls)
			}
		})
	}
}

// TestScript_Contention: a statement that takes long only because so many are executed
// at a time, each on a connection of its own, is found to be fast, and grouped; one
// that is slow stays apart, and what trying that takes is little.
func TestScript_Contention(t *testing.T) {
	const callers, each, conns = 64, 200, 16
	for _, text := range []string{"busy", "sleep 1ms"} {
		bubble(t, strings.Fields(text)[0], func(c *Config) { c.Max = conns }, func(t *testing.T, s *script, p *testPool) {
			p.warm(t, "echo", text)
			began := time.Now()
			var wg sync.WaitGroup
			for i := range callers {
				wg.Go(func() {
					for j := range each {
						p.want(t, fmt.Sprint(i*each+j), text, fmt.Sprint(i*each+j))
					}
				})
			}
			wg.Wait()
			took, st := time.Since(began), p.Stats()
			t.Logf("%v of the bubble's time; %+v", took, st)
			const calls = callers * each
			if apart := calls * 410 * time.Microsecond; text == "busy" && (took > apart/2 || st.Grouped < calls/2) {
				t.Errorf("%d calls took %v, %d of them in groups; want half of %v, and half of them", calls, took, st.Grouped, apart)
			}
			if apart := calls / (conns - 1) * time.Millisecond; text != "busy" && (took > apart+apart/10 || st.Grouped > calls/10) {
				t.Errorf("%d calls took %v, %d of them in groups; want no more than %v and a tenth, and few of them", calls, took, st.Grouped, apart)
			}
		})
	}
}

// failingRead is a connection of which nothing can be read.
type failingRead struct{ net.Conn }

func (failingRead) Read([]byte) (int, error) { return 0, errors.New("reset by the test") }

func TestScript_CancelRequests(t *testing.T) {
	late := func(p *testPool) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
		defer cancel()
		_, _ = p.query(ctx, "sleep 2ms", "x")
	}
	bubble(t, "OneThatFailsCostsTheConnection", nil, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "sleep 1ms", "sleep 2ms", "sleep 1ms")
		p.stmt("sleep 2ms").stayAlone(100) // so that it is cancelled at once
		before := p.Stats()
		requests := 0
		s.wrap = func(n int, c net.Conn) net.Conn {
			if requests++; requests == 1 {
				return failingRead{c}
			}
			return c
		}
		late(p)
		time.Sleep(time.Second) // the bubble's time
		if st := p.Stats(); st.Cancels != 1 || st.Open != before.Open-1 {
			t.Errorf("Stats = %+v; want one request, and a connection less than %d", st, before.Open)
		}
		p.want(t, "y", "sleep 1ms", "y")
	})
	bubble(t, "WhoseConnectionIsClosedForAnotherRunsAgain", oneFast, func(t *testing.T, s *script, p *testPool) {
		s.patience, s.cuts = 2*time.Hour, true
		p.warm(t, "echo", "sleep 200us")
		for range 20 {
			_, _ = p.query(context.Background(), "maybe 1h0m0s", "fast")
		}
		for range 3 { // more often than a connection may be lost by itself
			go func() { _, _ = p.query(context.Background(), "sleep 200us", "hold") }()
			synctest.Wait()
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			wg.Go(func() { _, _ = p.query(ctx, "maybe 1h0m0s", "7") })
			synctest.Wait()
			c := p.NewCall(p.stmt("echo"), []any{"x"}, new(reading))
			c.losses = maxLosses
			wg.Go(func() {
				if !c.Run(context.Background()) || c.Err() != nil {
					t.Errorf("a call beside one that is cancelled: %v", c.Err())
				}
			})
			synctest.Wait()
			p.lock()
			p.spare = 0 // nobody moves on
			p.unlock()
			time.Sleep(time.Millisecond) // the group is on its way
			cancel()
			wg.Wait()
		}
	})
}

// dispatching is a reading that looks when it is dispatched.
type dispatching struct {
	reading
	look func()
}

func (d *dispatching) Dispatch() bool {
	d.look()
	return d.reading.Dispatch()
}

func TestScript_Refused(t *testing.T) {
	bubble(t, "WhatIsBehindIsNotUnderWay", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us")
		p.stmt("fail 25006").known.Store(true) // as if it had always gone well
		_, _ = p.query(context.Background(), "fail 25006", "first")
		p.stmt("fail 25006").alone.Store(0)
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = p.query(context.Background(), "sleep 200us", "hold") })
		synctest.Wait()
		wg.Go(func() { _, _ = p.query(context.Background(), "fail 25006", "x") })
		synctest.Wait()
		r := &dispatching{reading: reading{apart: true}}
		c := p.NewCall(p.stmt("echo"), []any{"y"}, r)
		times := 0
		r.look = func() {
			if times++; c.underWay {
				t.Error("a call is under way that is about to be sent: a request to cancel it would hit others")
			}
		}
		wg.Go(func() { c.Run(context.Background()) })
		wg.Wait()
		if times != 2 || r.String() != "y" {
			t.Errorf("dispatched %d times, %q; want twice: its connection was closed under it", times, r)
		}
	})
}

func TestScript_Fair(t *testing.T) {
	bubble(t, "WhoMustBeAloneIsServedToo", nil, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "sleep 50us")
		p.stmt("sleep 100us").company = Alone
		s.mu.Lock()
		s.refuse = errors.New("refused by the test")
		s.mu.Unlock()
		done := make(chan struct{})
		var wg sync.WaitGroup
		for g := range 200 { // somebody waits always
			wg.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-done:
						return
					default:
					}
					want := fmt.Sprint(g, " ", n)
					p.want(t, want, "sleep 50us", want)
				}
			})
		}
		began := time.Now()
		for n := range 20 {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			if _, err := p.query(ctx, "sleep 100us", fmt.Sprint(n)); err != nil {
				t.Errorf("call %d: %v", n, err)
			}
			cancel()
		}
		if took := time.Since(began); took > time.Second/2 && !t.Failed() {
			t.Errorf("20 calls took %v of the bubble's time beside fast ones", took)
		}
		close(done)
		wg.Wait()
	})
	bubble(t, "NoneIsKeptForWhoDoesNotCome", func(c *Config) { c.Max = 3 }, func(t *testing.T, s *script, p *testPool) {
		p.stmt("sleep 20ms").company = Alone
		began := time.Now()
		var wg sync.WaitGroup
		for g := range 30 {
			wg.Go(func() { p.want(t, fmt.Sprint(g), "sleep 20ms", fmt.Sprint(g)) })
		}
		wg.Wait()
		if took := time.Since(began); took > 250*time.Millisecond {
			t.Errorf("30 calls of 20 ms took %v of the bubble's time on 3 connections", took)
		}
	})
	bubble(t, "OneElsewhereIsUsed", func(c *Config) {
		c.Max = 2
		spare := 1
		c.Spare = func() bool { spare--; return spare >= 0 }
	}, func(t *testing.T, s *script, p *testPool) {
		p.stmt("sleep 20ms").company = Alone
		p.want(t, "x", "sleep 20ms", "x")
		p.want(t, "x", "sleep 20ms", "x")
		var wg sync.WaitGroup
		var spared atomic.Int64
		for g := range 3 {
			wg.Go(func() {
				switch _, err := p.query(context.Background(), "sleep 20ms", fmt.Sprint(g)); {
				case err == ErrSpare:
					spared.Add(1)
				case err != nil:
					t.Error(err)
				}
			})
			synctest.Wait()
		}
		wg.Wait()
		if spared.Load() != 1 {
			t.Errorf("%d calls have been given a connection elsewhere; want 1", spared.Load())
		}
	})
}
