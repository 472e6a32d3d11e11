package flight

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// inlined is a script whose first stretch runs in its leader.
type inlined struct {
	*script
	more   chan struct{} // closed: leave the leader's goroutine
	leader chan string   // of the goroutines that ran it
}

func newInlined(n int) *inlined {
	return &inlined{script: newScript(n), more: make(chan struct{}), leader: make(chan string, 4)}
}

func (s *inlined) RunInline(ctx context.Context, f *Flight[*box]) (*box, error, bool) { //nolint:revive // as Inline has it
	s.leader <- "inline"
	if !f.Dispatch() {
		return nil, ErrAbandoned, false
	}
	select {
	case <-s.finish:
	case <-s.more:
		return nil, nil, true
	case <-ctx.Done():
		return nil, nil, true
	}
	if s.fail != nil {
		s.fail()
	}
	return s.box, s.err, false
}

func (s *inlined) Detach() { s.leader <- "detached" }

func (s *inlined) Run(ctx context.Context, f *Flight[*box]) (*box, error) {
	s.leader <- "goroutine"
	select {
	case <-s.dispatch:
	default:
		close(s.dispatch)
	}
	return s.script.Run(ctx, f)
}

func TestFlight_Lead(t *testing.T) {
	lead := func(t *testing.T, tab *Table[*box], ctx context.Context, s *inlined) (*box, error) {
		f, leader := tab.Enter(testKey, Join)
		if !leader {
			t.Error("not the leader")
		}
		return f.Lead(ctx, s)
	}
	follow := func(tab *Table[*box], ctx context.Context, done chan<- error) {
		f, leader := tab.Enter(testKey, Join)
		if leader {
			done <- errors.New("leader")
			return
		}
		v, err := f.Wait(ctx)
		if err == nil {
			v.Drop()
		}
		done <- err
	}
	bubble := func(name string, test func(t *testing.T, tab *Table[*box])) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tab := New[*box](new(Epoch), Options{Width: 1})
				test(t, tab)
				synctest.Wait()
				if s := tab.Stats(); s.Flying != 0 || s.Waiting != 0 || tab.Keys() != 0 {
					t.Errorf("Stats = %+v, %d keys; want nothing left", s, tab.Keys())
				}
			})
		})
	}
	bubble("Inline", func(t *testing.T, tab *Table[*box]) {
		s := newInlined(7)
		go func() {
			synctest.Wait()
			close(s.finish)
		}()
		v, err := lead(t, tab, t.Context(), s)
		if err != nil || v.n != 7 {
			t.Errorf("Lead = %v, %v", v, err)
		}
		if len(s.leader) != 1 || <-s.leader != "inline" {
			t.Error("not run by its leader alone")
		}
		v.Drop()
		if !s.box.freed.Load() {
			t.Error("a share is left")
		}
	})
	bubble("LeaderLeavesFollowersStay", func(t *testing.T, tab *Table[*box]) {
		s := newInlined(7)
		ctx, cancel := context.WithCancel(t.Context())
		led, followed := make(chan error, 1), make(chan error, 1)
		go func() { _, err := lead(t, tab, ctx, s); led <- err }()
		synctest.Wait()
		go follow(tab, t.Context(), followed)
		synctest.Wait()
		cancel()
		if err := <-led; err != context.Canceled {
			t.Errorf("leader: %v", err)
		}
		synctest.Wait()
		if s.cancelled.Load() {
			t.Error("the flight was cancelled although somebody waits")
		}
		close(s.finish)
		if err := <-followed; err != nil {
			t.Errorf("follower: %v", err)
		}
	})
	bubble("LastOneLeaves", func(t *testing.T, tab *Table[*box]) {
		s := newInlined(7)
		ctx, cancel := context.WithCancel(t.Context())
		led := make(chan error, 1)
		go func() { _, err := lead(t, tab, ctx, s); led <- err }()
		synctest.Wait()
		cancel()
		if err := <-led; err != context.Canceled {
			t.Errorf("leader: %v", err)
		}
		synctest.Wait()
		if !s.cancelled.Load() && !s.refused.Load() {
			t.Error("the execution does not know that nobody waits")
		}
		if st := tab.Stats(); st.Abandoned != 1 {
			t.Errorf("Stats = %+v; want one abandoned", st)
		}
	})
	bubble("GoesOnByItself", func(t *testing.T, tab *Table[*box]) {
		s := newInlined(7)
		close(s.more)
		go func() {
			synctest.Wait()
			close(s.finish)
		}()
		if v, err := lead(t, tab, t.Context(), s); err != nil {
			t.Errorf("Lead = %v", err)
		} else {
			v.Drop()
		}
		if <-s.leader != "inline" || <-s.leader != "detached" || <-s.leader != "goroutine" {
			t.Error("want the leader first, then a goroutine")
		}
	})
	bubble("PendingRunsInAGoroutine", func(t *testing.T, tab *Table[*box]) {
		first, second := newInlined(1), newInlined(2)
		var wg sync.WaitGroup
		wg.Go(func() {
			v, err := lead(t, tab, t.Context(), first)
			if err != nil || v.n != 1 {
				t.Errorf("first: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			f, leader := tab.Enter(testKey, Strict)
			if !leader {
				t.Error("joined a flight that was dispatched")
			}
			v, err := f.Lead(t.Context(), second)
			if err != nil || v.n != 2 {
				t.Errorf("second: %v", err)
			}
		})
		synctest.Wait()
		if len(second.leader) != 1 {
			t.Error("runs beside the first: the width is 1")
		}
		close(second.finish)
		close(first.finish)
		wg.Wait()
		if <-second.leader != "detached" || <-second.leader != "goroutine" {
			t.Error("a pending flight ran in its leader")
		}
	})
	bubble("PanicAndGoexit", func(t *testing.T, tab *Table[*box]) {
		s := newInlined(7)
		s.fail = func() { panic("boom") }
		close(s.finish)
		func() {
			defer func() {
				if p, ok := recover().(*PanicError); !ok || p.Value != "boom" {
					t.Errorf("the leader panicked with %v", p)
				}
			}()
			_, _ = lead(t, tab, t.Context(), s)
		}()
		s = newInlined(7)
		s.fail = runtime.Goexit
		followed := make(chan error, 1)
		exited := make(chan struct{})
		go func() {
			defer close(exited)
			_, _ = lead(t, tab, t.Context(), s)
			t.Error("Lead returned")
		}()
		synctest.Wait()
		go follow(tab, t.Context(), followed)
		synctest.Wait()
		close(s.finish)
		<-exited
		if err := <-followed; err != ErrGoexit {
			t.Errorf("follower: %v; want %v", err, ErrGoexit)
		}
		if st := tab.Stats(); st.Panics != 2 {
			t.Errorf("Stats = %+v; want 2 panics", st)
		}
	})
}
