package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flightpg/flightpg/internal/flight"
)

// backends are connections, counted as a server counts them: from the first packet until
// they are closed.
type backends struct {
	dial  func(ctx context.Context) error // or nil: at once
	close time.Duration                   // that closing one takes
	reset func(*backend) error            // or nil

	open    atomic.Int64 // those that dial or close included
	most    atomic.Int64 // of open
	dials   atomic.Int64
	usable  atomic.Int64 // those that neither dial nor close
	invalid atomic.Int64 // closed twice
}

type backend struct {
	b      *backends
	id     int64
	bad    bool
	closed atomic.Bool
}

func (b *backends) Connect(ctx context.Context) (driver.Conn, error) {
	id := b.dials.Add(1)
	n := b.open.Add(1)
	for most := b.most.Load(); n > most && !b.most.CompareAndSwap(most, n); most = b.most.Load() {
	}
	open := false
	defer func() {
		if !open {
			b.open.Add(-1)
		}
	}()
	if b.dial != nil {
		if err := b.dial(ctx); err != nil {
			return nil, err
		}
	}
	open = true
	b.usable.Add(1)
	return &backend{b: b, id: id}, nil
}

func (b *backends) Driver() driver.Driver { return fakeDriver{} }

func (c *backend) Close() error {
	if c.closed.Swap(true) {
		c.b.invalid.Add(1)
		return nil
	}
	c.b.usable.Add(-1)
	time.Sleep(c.b.close) // the bubble's time
	c.b.open.Add(-1)
	return nil
}

func (c *backend) ResetSession(context.Context) error {
	if c.b.reset != nil {
		return c.b.reset(c)
	}
	return nil
}

func (c *backend) IsValid() bool                       { return !c.bad }
func (c *backend) Prepare(string) (driver.Stmt, error) { panic("not used") }
func (c *backend) Begin() (driver.Tx, error)           { panic("not used") }

// pool returns a pool of them.
func (b *backends) pool(l limits, d *dials) *pool {
	return newPool(sessionConnector{inner: b, dials: d, c: &Connector{source: new(source)}}, l)
}

// wantAll checks that nothing of the pool's is out: as many can be taken as it may have,
// and not one more.
func (b *backends) wantAll(t *testing.T, p *pool) {
	t.Helper()
	var ls []*lease
	for range p.limits.open {
		l, err := p.borrow(context.Background())
		if err != nil {
			t.Fatalf("borrow = %v; want that all can be taken", err)
		}
		ls = append(ls, l)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if _, err := p.borrow(ctx); err != context.DeadlineExceeded {
		t.Errorf("borrow = %v; want %v: all are taken", err, context.DeadlineExceeded)
	}
	for _, l := range ls {
		l.release()
		l.release() // which does nothing
	}
	if n := b.open.Load(); n > int64(min(p.limits.open, p.limits.idle)) || n != p.open.Load() || n != p.idle.Load() {
		t.Errorf("%d are open, by the pool's count %d, %d of them idle; want the same, %d at the most", n, p.open.Load(), p.idle.Load(), p.limits.idle)
	}
}

// wantNone closes the pool and checks that nothing is left.
func (b *backends) wantNone(t *testing.T, p *pool) {
	t.Helper()
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if n := b.open.Load(); n != 0 || p.open.Load() != 0 || p.idle.Load() != 0 {
		t.Errorf("%d are open, by the pool's count %d, %d of them idle; want none: it is closed", n, p.open.Load(), p.idle.Load())
	}
	if n := b.invalid.Load(); n > 0 {
		t.Errorf("%d were closed twice", n)
	}
}

// TestPool_Limits: whatever comes of the sessions and of their callers, there are never
// more of them than there may be, and no place is lost.
func TestPool_Limits(t *testing.T) {
	boom := errors.New("connection refused")
	full, rest := 0, 0 // runs in which all were open at a time, and some idle
	defer func() {
		if full < 24 || rest < 24 {
			t.Errorf("all were open in %d runs, some idle in %d; want most of 48", full, rest)
		}
	}()
	for _, hedged := range []bool{false, true} {
		for seed := range uint64(24) {
			bubble(t, fmt.Sprintf("hedged=%t/%d", hedged, seed), func(t *testing.T) {
				var mu sync.Mutex // guards rnd
				rnd := rand.New(rand.NewPCG(seed, 1))
				one := func(n int) bool { // in n
					mu.Lock()
					defer mu.Unlock()
					return rnd.IntN(n) == 0
				}
				upTo := func(d time.Duration) time.Duration {
					mu.Lock()
					defer mu.Unlock()
					return time.Duration(rnd.Int64N(int64(d)))
				}
				l := limits{open: 1 + int(seed%8), idle: 1 + int(seed/8%3)*3, idleTime: 50 * time.Millisecond, lifetime: 500 * time.Millisecond}
				l.kept = int(seed) % l.open
				b := &backends{close: 3 * time.Millisecond}
				slow := 10 * time.Millisecond
				var d *dials
				if hedged {
					d, slow, b.close = &dials{limit: 5 * time.Second}, 3*dialPace, 0
				}
				b.dial = func(ctx context.Context) error {
					switch {
					case one(20):
						panic("a hook")
					case one(4):
						return takes(ctx, upTo(slow), boom)
					case one(20):
						return driver.ErrBadConn
					case one(3):
						return nil
					}
					return takes(ctx, upTo(slow), nil)
				}
				b.reset = func(*backend) error {
					switch {
					case one(8):
						return driver.ErrBadConn
					case one(50):
						panic("a hook")
					}
					return nil
				}
				p := b.pool(l, d)
				var lent atomic.Int64
				call := func() {
					defer func() {
						if v := recover(); v != nil {
							if e, ok := v.(*flight.PanicError); v != "a hook" && (!ok || e.Value != "a hook") {
								panic(v)
							}
						}
					}()
					ctx, cancel := context.WithCancel(context.Background())
					if one(3) {
						ctx, cancel = context.WithTimeout(ctx, upTo(2*slow))
					}
					defer cancel()
					l, err := p.borrow(ctx)
					if err != nil {
						return
					}
					lent.Add(1)
					time.Sleep(upTo(slow)) // the bubble's time
					l.bad = one(5)
					lent.Add(-1)
					l.release()
				}
				var all sync.WaitGroup
				for range 4 * l.open {
					all.Go(func() {
						for range 40 {
							call()
							if one(4) {
								time.Sleep(upTo(20 * slow)) // the bubble's time
							}
						}
					})
				}
				all.Go(func() {
					for range 20 {
						time.Sleep(upTo(10 * slow)) // the bubble's time
						p.closeIdle()
					}
					p.widen()
				})
				done := make(chan struct{})
				go func() {
					all.Wait()
					close(done)
				}()
				var idle int64
				for running := true; running; {
					select {
					case <-done:
						running = false
					case <-time.After(slow / 7): // the bubble's time
					}
					synctest.Wait()
					if hedged {
						if n := b.open.Load() - d.beside.Load(); n > int64(l.open) {
							t.Fatalf("%d are open, beside attempts that another will win; want %d at the most", n, l.open)
						}
					}
					n := b.usable.Load() - lent.Load()
					if idle = max(idle, n); n > int64(l.idle) {
						t.Fatalf("%d are idle; want %d at the most", n, l.idle)
					}
				}
				if n := b.most.Load(); !hedged && n > int64(l.open) {
					t.Errorf("%d were open at a time; want %d at the most", n, l.open)
				} else if n >= int64(l.open) {
					full++
				}
				if idle > 0 {
					rest++
				}
				b.dial, b.reset = nil, nil
				b.wantAll(t, p)
				b.wantNone(t, p)
			})
		}
	}
}

// waiters are callers of a pool who wait for a session, one after the other.
type waiters struct {
	p    *pool
	mu   sync.Mutex // guards got, errs
	got  []int      // who has had one, in order
	errs []error
}

// wait has caller i wait for a session. He gives it back when then says so.
func (w *waiters) wait(ctx context.Context, i int, then func(*lease)) {
	go func() {
		l, err := w.p.borrow(ctx)
		w.mu.Lock()
		if err != nil {
			w.errs = append(w.errs, err)
		} else {
			w.got = append(w.got, i)
		}
		w.mu.Unlock()
		if err == nil {
			then(l)
		}
	}()
	synctest.Wait()
}

func TestPool_Waiting(t *testing.T) {
	ctx := context.Background()
	take := func(t *testing.T, p *pool) *lease {
		t.Helper()
		l, err := p.borrow(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	for _, bad := range []bool{false, true} {
		bubble(t, fmt.Sprintf("InTurn/bad=%t", bad), func(t *testing.T) {
			b := &backends{close: time.Second, dial: func(ctx context.Context) error { return takes(ctx, time.Second, nil) }}
			p := b.pool(limits{open: 1, idle: 1}, nil)
			w := &waiters{p: p}
			l := take(t, p)
			give := func(l *lease) {
				l.bad = bad
				l.release()
			}
			for i := range 5 {
				w.wait(ctx, i, give)
			}
			gone, leave := context.WithCancel(ctx)
			w.wait(gone, 5, give)
			w.wait(ctx, 6, give)
			leave()
			synctest.Wait()
			give(l)
			l = take(t, p) // at once, and after all who wait
			w.mu.Lock()
			if want := []int{0, 1, 2, 3, 4, 6}; !slices.Equal(w.got, want) || len(w.errs) != 1 || w.errs[0] != context.Canceled {
				t.Errorf("%v had a session, and then who gave it back; want %v; errors: %v", w.got, want, w.errs)
			}
			w.mu.Unlock()
			l.release()
			if n := b.dials.Load(); !bad && n != 1 {
				t.Errorf("%d were opened; want the one to be handed on", n)
			}
			b.wantAll(t, p)
			b.wantNone(t, p)
		})
	}
	bubble(t, "Widened", func(t *testing.T) {
		b := &backends{}
		p := b.pool(limits{open: 16, kept: 12, idle: 16}, nil)
		w := &waiters{p: p}
		var ls []*lease
		for i := range 17 {
			w.wait(ctx, i, func(l *lease) {
				w.mu.Lock()
				defer w.mu.Unlock()
				ls = append(ls, l)
			})
			if n := b.open.Load(); n != int64(min(i+1, 4)) {
				t.Fatalf("%d are open after %d callers; want 4 at the most", n, i+1)
			}
		}
		p.widen()
		p.widen()
		synctest.Wait()
		w.mu.Lock()
		if n := b.open.Load(); n != 16 || len(w.got) != 16 || slices.Contains(w.got, 16) {
			t.Errorf("%d are open, %v have them; want 16, and the last to wait", n, w.got)
		}
		w.mu.Unlock()
		ls[0].release()
		synctest.Wait()
		for _, l := range ls {
			l.release()
		}
		b.wantAll(t, p)
		b.wantNone(t, p)
	})
	bubble(t, "NoLimit", func(t *testing.T) {
		b := &backends{}
		p := b.pool(limits{idle: 2}, nil)
		var ls []*lease
		for range 100 {
			ls = append(ls, take(t, p))
		}
		p.widen()
		for _, l := range ls {
			l.release()
		}
		if n := b.open.Load(); n != 2 {
			t.Errorf("%d are idle; want 2", n)
		}
		b.wantNone(t, p)
	})
	bubble(t, "Closed", func(t *testing.T) {
		b := &backends{}
		p := b.pool(limits{open: 3, idle: 3}, nil)
		p.connector.flights = true // the pool of sessions still serves who has a sql.Conn
		out, idle := take(t, p), take(t, p)
		b.dial = func(context.Context) error {
			time.Sleep(time.Hour) // the bubble's time
			return nil
		}
		w := &waiters{p: p}
		w.wait(ctx, 0, func(*lease) {}) // dials
		for i := range 3 {
			w.wait(ctx, i, func(*lease) {})
		}
		idle.release() // to the first of those
		began := time.Now()
		synctest.Wait()
		if len(w.got) != 1 {
			t.Fatalf("%v have a session; want one to have been handed on", w.got)
		}
		if err := p.Close(); err != nil || time.Since(began) > 0 {
			t.Errorf("Close = %v after %v; want that it waits for nobody", err, time.Since(began))
		}
		synctest.Wait()
		w.mu.Lock() // who dials is not done yet
		if len(w.errs) != 2 || w.errs[0] != errPoolClosed || w.errs[1] != errPoolClosed {
			t.Errorf("who waited got %v; want %v", w.errs, errPoolClosed)
		}
		w.mu.Unlock()
		if _, err := p.borrow(ctx); err != errPoolClosed {
			t.Errorf("borrow = %v; want %v", err, errPoolClosed)
		}
		time.Sleep(time.Hour) // what was opened meanwhile
		synctest.Wait()
		if len(w.errs) != 3 || w.errs[2] != errPoolClosed || b.open.Load() != 2 {
			t.Errorf("who opened one got %v, %d are open; want %v, and the two that are out", w.errs, b.open.Load(), errPoolClosed)
		}
		out.release()
		if n := b.open.Load(); n != 1 {
			t.Errorf("%d are open; want what was given back closed", n)
		}
		if err := p.Close(); err != nil {
			t.Errorf("Close = %v; want nothing, again", err)
		}
	})
}

func TestPool_Times(t *testing.T) {
	ctx := context.Background()
	fill := func(t *testing.T, p *pool, n int) {
		t.Helper()
		var ls []*lease
		for range n {
			l, err := p.borrow(ctx)
			if err != nil {
				t.Fatal(err)
			}
			ls = append(ls, l)
		}
		for _, l := range ls {
			l.release()
		}
	}
	open := func(t *testing.T, b *backends, want int64) {
		t.Helper()
		synctest.Wait()
		if n := b.open.Load(); n != want {
			t.Errorf("%d are open; want %d", n, want)
		}
	}
	bubble(t, "Idle", func(t *testing.T) {
		b := &backends{}
		p := b.pool(limits{open: 4, idle: 4, idleTime: time.Minute}, nil)
		fill(t, p, 4)
		time.Sleep(40 * time.Second) // the bubble's time
		fill(t, p, 2)                // those that were used last
		time.Sleep(19 * time.Second) // the bubble's time
		open(t, b, 4)
		time.Sleep(time.Second) // the bubble's time
		open(t, b, 2)
		time.Sleep(39 * time.Second) // the bubble's time
		open(t, b, 2)
		time.Sleep(time.Second) // the bubble's time
		open(t, b, 0)
		fill(t, p, 3)           // and again
		time.Sleep(time.Minute) // the bubble's time
		open(t, b, 0)
		b.wantNone(t, p)
	})
	bubble(t, "Lifetime", func(t *testing.T) {
		b := &backends{}
		p := b.pool(limits{open: 4, idle: 4, lifetime: time.Minute}, nil)
		fill(t, p, 2)
		for range 2 {
			time.Sleep(25 * time.Second) // the bubble's time
			fill(t, p, 2)                // they are in use again and again
		}
		time.Sleep(9 * time.Second) // the bubble's time
		open(t, b, 2)
		time.Sleep(time.Second) // the bubble's time
		open(t, b, 0)
		l, err := p.borrow(ctx)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + time.Nanosecond) // the bubble's time
		l.release()
		open(t, b, 1)
		fill(t, p, 1) // not with that one
		open(t, b, 1)
		if n := b.dials.Load(); n != 4 {
			t.Errorf("%d were opened; want 4", n)
		}
		b.wantNone(t, p)
	})
	bubble(t, "ForEver", func(t *testing.T) {
		b := &backends{}
		p := b.pool(limits{open: 4, idle: 3}, nil)
		fill(t, p, 4)
		time.Sleep(1000 * time.Hour) // the bubble's time
		open(t, b, 3)
		b.wantNone(t, p)
	})
	bubble(t, "NoneIdle", func(t *testing.T) {
		b := &backends{}
		p := b.pool(limits{open: 4, idle: -1}, nil)
		fill(t, p, 4)
		open(t, b, 0)
		b.wantNone(t, p)
	})
}
