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

	"github.com/flightpg/flightpg/internal/battery"
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
	st := p.Stats()
	if st.Open != st.Idle || st.Queued != 0 || st.FastBusy != 0 {
		t.Errorf("at rest: %+v; want every connection free and nothing queued", st)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.slowConns != 0 || p.mixedConns != 0 || p.dialing != 0 {
		t.Errorf("at rest: %d connections count as slow, %d as mixed, %d as being opened", p.slowConns, p.mixedConns, p.dialing)
	}
	for k := range p.conns {
		if k.cancels != 0 || k.parked || k.lane != nil {
			t.Errorf("at rest: a connection with %d requests to cancel, parked %v, lane %v", k.cancels, k.parked, k.lane)
		}
	}
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

func oneFast(c *Config) { c.Fast = 1 }

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
	bubble(t, "NotMoreThanTheLimit", func(c *Config) { c.Fast, c.Group = 1, 2 }, func(t *testing.T, s *script, p *testPool) {
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
		c.Fast = 1
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
	bubble(t, "NoMoreThanFitsIntoTheBuffers", oneFast, func(t *testing.T, s *script, p *testPool) {
		p.warm(t, "echo", "sleep 200us")
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = p.query(context.Background(), "sleep 200us", "hold") })
		synctest.Wait()
		for _, size := range []int{groupBytes / 2, groupBytes / 2, 100, 4 * groupBytes} {
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
			if len(group) > 1 && n > groupBytes {
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
	bubble(t, "NoNewGroupBeforeTheRequestHasReturned", func(c *Config) { c.Max, c.Fast = 2, 1 }, func(t *testing.T, s *script, p *testPool) {
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
			if apart := calls / (conns - 1) * time.Millisecond; text != "busy" && (took > apart+apart/20 || st.Grouped > calls/10) {
				t.Errorf("%d calls took %v, %d of them in groups; want no more than %v and a twentieth, and few of them", calls, took, st.Grouped, apart)
			}
		})
	}
}

// TestSimulation runs random loads against the scripted server: callers come, leave
// and hand over at random moments, statements fail, hang and break connections.
// Each call must end with its own answer, its own error, or its own context's end;
// nothing runs more often than the reasons to run it again allow; nothing is left.
func TestSimulation(t *testing.T) {
	seed := battery.Seed(t)
	rounds := battery.N(150, 20_000)
	var sum Stats
	for round := range rounds {
		if t.Failed() {
			break
		}
		synctest.Test(t, func(t *testing.T) {
			st := simulate(t, battery.Rand(seed, round), fmt.Sprintf("seed %d, round %d", seed, round))
			sum.Calls += st.Calls
			sum.Grouped += st.Grouped
			sum.Handed += st.Handed
			sum.Cancels += st.Cancels
			sum.Strays += st.Strays
			sum.Lost += st.Lost
			sum.Skipped += st.Skipped
			sum.Moved += st.Moved
			sum.Stale += st.Stale
		})
	}
	for name, n := range map[string]uint64{"handed over": sum.Handed, "cancelled": sum.Cancels, "lost": sum.Lost, "skipped": sum.Skipped, "moved": sum.Moved, "grouped": sum.Grouped} {
		if n == 0 {
			t.Errorf("no call was %s: the simulation does not get there", name)
		}
	}
	t.Logf("%d rounds: %+v", rounds, sum)
}

func simulate(t *testing.T, rng *rand.Rand, name string) Stats {
	s := newScript()
	cfg := Config{Connect: s.connect, Fast: 1 + rng.IntN(3), Group: 1 + rng.IntN(8)}
	if rng.IntN(2) == 0 {
		cfg.Max = 2 + rng.IntN(4)
	}
	if rng.IntN(3) == 0 {
		s.wrap = func(n int, c net.Conn) net.Conn {
			if n%3 == 0 {
				return &cutConn{c, 100 + n*n*37%3000}
			}
			return c
		}
	}
	s.delay = time.Duration(rng.IntN(4)) * time.Millisecond
	p := &testPool{Pool: New(cfg)}
	texts := []string{"echo", "echo", "echo", "rows 5", "sleep 1ms", "sleep 4ms", "maybe 30ms", "maybe 30ms", "failing 22012", "failing 22012", "fail 22012", "dieonce", "cached 1", "taint TimeZone Mars", "sleep 10m0s"}
	var wg sync.WaitGroup
	callers := 2 + rng.IntN(24)
	for i := range callers {
		rng := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
		wg.Go(func() {
			for j := range 1 + rng.IntN(8) {
				time.Sleep(time.Duration(rng.IntN(3)) * time.Millisecond) // the bubble's time
				text := texts[rng.IntN(len(texts))]
				arg := fmt.Sprint(i, "-", j, "-", rng.IntN(10))
				leader, cancel := context.WithCancel(context.Background())
				stays, leave := context.WithCancelCause(context.Background())
				if text == "sleep 10m0s" || rng.IntN(2) == 0 {
					time.AfterFunc(time.Duration(rng.IntN(8000))*time.Microsecond, cancel)
				}
				if text == "sleep 10m0s" || rng.IntN(3) == 0 {
					time.AfterFunc(time.Duration(rng.IntN(12000))*time.Microsecond, func() { leave(ErrAbandoned) })
				}
				r := new(reading)
				if rng.IntN(8) == 0 {
					r.max = 2
				}
				c := p.NewCall(p.stmt(text), []any{arg}, r)
				began := time.Now()
				if !c.Run(leader) {
					if leader.Err() == nil {
						t.Errorf("%s: Run returned although its context goes on", name)
					}
					_ = began
					c.Finish(stays)
				}
				n := len(r.rows)
				if live := c.Live(); live != nil {
					if rng.IntN(2) == 0 {
						live.Watch(stays)
					}
					for live.Next() {
						n++
					}
					live.Close()
					if err := live.Err(); err != nil && stays.Err() == nil {
						t.Logf("%s: live rows ended with %v", name, err) // cut
					} else if err == nil && text == "rows 5" && n != 5 {
						t.Errorf("%s: %d live rows; want 5", name, n)
					}
				} else {
					check(t, name, text, arg, r, c, stays)
				}
				cancel()
				leave(nil)
			}
		})
	}
	wg.Wait()
	atRest(t, p)
	st := p.Stats()
	p.Close()
	s.end()
	synctest.Wait()
	for what, n := range s.ran {
		if n > 1+maxLosses+maxStrays+maxStales+1 { // once from behind one that took long
			t.Errorf("%s: %q ran %d times", name, what, n)
		}
	}
	if p.Stats().Open != 0 {
		t.Errorf("%s: %d connections are left", name, p.Stats().Open)
	}
	return st
}

func check(t *testing.T, name, text, arg string, r *reading, c *Call, stays context.Context) {
	err := c.Err()
	want := arg
	switch text {
	case "rows 5":
		want = ""
		for i := range 5 {
			want += fmt.Sprintf(";%s,%d", arg, i)
		}
		want = want[1:]
	case "fail 22012":
		if code(err) == "22012" {
			return
		}
	case "failing 22012":
		if strings.HasSuffix(arg, "3") {
			if err == nil {
				t.Errorf("%s: %s %s = %q; want an error", name, text, arg, r)
			}
			if code(err) == "22012" {
				return
			}
		}
	}
	switch {
	case err == nil && r.String() == want && text != "fail 22012":
	case err == nil:
		t.Errorf("%s: %s %s = %q; want %q", name, text, arg, r, want)
	case stays.Err() != nil: // nobody wanted it
	case errors.Is(err, ErrElsewhere) && text == "fail 22012":
	case code(err) == "57014":
		t.Errorf("%s: %s %s: a foreign cancellation: %v", name, text, arg, err)
	case code(err) != "":
		t.Errorf("%s: %s %s: a foreign error: %v", name, text, arg, err)
	}
}
