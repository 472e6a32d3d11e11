package flight

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// box is the Value of these tests. It knows whether its shares were all given
// back, and shouts when one is given back twice.
type box struct {
	n      int
	shares atomic.Int64
	freed  atomic.Bool
	landed atomic.Bool
	brief  bool  // not to be kept
	size   int64 // that it has not been counted for
}

func (b *box) Share(n int) {
	b.shares.Store(int64(n))
	b.landed.Store(true)
	if n == 0 {
		b.freed.Store(true)
	}
}
func (b *box) Keep() (int64, bool) { return b.size, !b.brief }
func (b *box) Retain()             { b.shares.Add(1) }
func (b *box) Drop() {
	switch n := b.shares.Add(-1); {
	case n == 0:
		b.freed.Store(true)
	case n < 0:
		panic("a share was dropped twice")
	}
}

// script is a Runner that a test drives step by step.
type script struct {
	dispatch chan struct{} // closed: dispatch now
	finish   chan struct{} // closed: return now
	box      *box
	err      error
	fail     func() // instead of returning

	began     atomic.Bool
	refused   atomic.Bool // Dispatch said that nobody waits
	cancelled atomic.Bool
	cause     error
	value     any // of the context's valueKey
}

type valueKey struct{}

func newScript(n int) *script {
	return &script{dispatch: make(chan struct{}), finish: make(chan struct{}), box: &box{n: n}}
}

// instant is a script that does not stop on its way.
func instant(n int) *script {
	s := newScript(n)
	close(s.dispatch)
	close(s.finish)
	return s
}

func (s *script) Run(ctx context.Context, f *Flight[*box]) (*box, error) {
	s.began.Store(true)
	s.value = ctx.Value(valueKey{})
	select {
	case <-s.dispatch:
	case <-ctx.Done():
		s.cause = context.Cause(ctx)
		s.cancelled.Store(true)
		return nil, s.cause
	}
	if !f.Dispatch() {
		s.refused.Store(true)
		return nil, ErrAbandoned
	}
	select {
	case <-s.finish:
	case <-ctx.Done():
		s.cause = context.Cause(ctx)
		s.cancelled.Store(true)
		return nil, s.cause
	}
	if s.fail != nil {
		s.fail()
	}
	if s.err != nil {
		return nil, s.err
	}
	return s.box, nil
}

// call is one caller, in a goroutine of its own.
type call struct {
	leader bool
	ctx    context.Context
	cancel context.CancelFunc
	done   chan struct{}
	v      *box
	err    error
	panic  any
}

var testKey = Key{Text: "select 1", Args: []byte{1, 2}}

// begin enters the table and waits in the background. s is launched if the
// call leads.
func begin(t *Table[*box], k Key, rule Rule, s *script) *call {
	ctx, cancel := context.WithCancel(context.WithValue(context.Background(), valueKey{}, "of the leader"))
	c := &call{ctx: ctx, cancel: cancel, done: make(chan struct{})}
	f, leader := t.Enter(k, rule)
	c.leader = leader
	if leader {
		f.Launch(ctx, s)
	}
	go func() {
		defer close(c.done)
		defer func() { c.panic = recover() }()
		c.v, c.err = f.Wait(ctx)
	}()
	return c
}

func newTable(opts Options) *Table[*box] { return New[*box](new(Epoch), opts) }

// wantValue waits for the call and checks that it got box n.
func (c *call) wantValue(t *testing.T, n int) {
	t.Helper()
	<-c.done
	if c.err != nil || c.panic != nil || c.v == nil {
		t.Fatalf("Wait = %v, %v, panic %v; want box %d", c.v, c.err, c.panic, n)
	}
	if c.v.n != n {
		t.Fatalf("Wait = box %d; want box %d", c.v.n, n)
	}
	c.v.Drop()
}

func (c *call) wantErr(t *testing.T, want error) {
	t.Helper()
	<-c.done
	if c.err != want || c.v != nil {
		t.Fatalf("Wait = %v, %v; want error %v", c.v, c.err, want)
	}
}

func wantEmpty(t *testing.T, table *Table[*box]) {
	t.Helper()
	if n := table.Keys(); n != 0 {
		t.Errorf("the table holds %d keys; want none", n)
	}
	if s := table.Stats(); s.Flying != 0 || s.Waiting != 0 {
		t.Errorf("Stats = %+v; want nothing flying and nobody waiting", s)
	}
}

func TestFlight(t *testing.T) {
	for _, tc := range []struct {
		name string
		test func(t *testing.T)
	}{
		{"FollowersShareOneExecution", testFollowersShare},
		{"LeaderCancelKeepsFollowers", testLeaderCancel},
		{"FollowerCancelKeepsLeader", testFollowerCancel},
		{"LastLeaveCancelsExecution", testLastLeave},
		{"AbandonedFlightTakesNoFollowers", testAbandoned},
		{"AbandonedBeforeDispatchNeverRuns", testAbandonedBeforeDispatch},
		{"AbandonedFlightLeavesThePendingOne", testAbandonedBesidePending},
		{"LeavingAfterLandingGivesTheShareBack", testLeaveLanded},
		{"KeyIsGoneBeforeWaitersWake", testKeyGone},
		{"OldFlightKeepsNewersEntry", testIdentity},
		{"ErrorIsShared", testError},
		{"PanicReachesEveryWaiter", testPanic},
		{"GoexitReleasesEveryWaiter", testGoexit},
		{"LeadersValuesTravel", testValues},
		{"SameHashDifferentKeys", testCollision},
		{"ArgsAreCopied", testArgsCopied},
		{"ForgetClosesTheDispatchedFlight", testForget},
		{"RunnerOwnsItsCancel", testTakeCancel},
		{"FirstDispatchCounts", testDispatchTwice},
	} {
		t.Run(tc.name, func(t *testing.T) { synctest.Test(t, tc.test) })
	}
}

func testFollowersShare(t *testing.T) {
	table := newTable(Options{Width: 2})
	s := newScript(1)
	calls := []*call{begin(table, testKey, Fenced, s)}
	for range 99 {
		calls = append(calls, begin(table, testKey, Fenced, nil))
	}
	close(s.dispatch)
	synctest.Wait()
	if got := table.Stats(); got.Flights != 1 || got.Joins != 99 || got.Waiting != 100 || got.Flying != 1 {
		t.Errorf("Stats = %+v; want 1 flight, 99 joins, 100 waiting, 1 flying", got)
	}
	close(s.finish)
	for i, c := range calls {
		if c.leader != (i == 0) {
			t.Errorf("call %d: leader = %v", i, c.leader)
		}
		c.wantValue(t, 1)
	}
	if !s.box.freed.Load() {
		t.Error("the value is still held after every share was dropped")
	}
	wantEmpty(t, table)
}

func testLeaderCancel(t *testing.T) {
	table := newTable(Options{Width: 2})
	s := newScript(1)
	leader := begin(table, testKey, Fenced, s)
	follower := begin(table, testKey, Fenced, nil)
	close(s.dispatch)
	synctest.Wait()
	leader.cancel()
	leader.wantErr(t, context.Canceled)
	late := begin(table, testKey, Fenced, nil)
	close(s.finish)
	follower.wantValue(t, 1)
	late.wantValue(t, 1)
	if s.cancelled.Load() {
		t.Error("the execution was cancelled with its leader")
	}
	wantEmpty(t, table)
}

func testFollowerCancel(t *testing.T) {
	table := newTable(Options{Width: 2})
	s := newScript(1)
	leader := begin(table, testKey, Fenced, s)
	follower := begin(table, testKey, Fenced, nil)
	synctest.Wait()
	follower.cancel()
	follower.wantErr(t, context.Canceled)
	close(s.dispatch)
	close(s.finish)
	leader.wantValue(t, 1)
	wantEmpty(t, table)
}

func testLastLeave(t *testing.T) {
	table := newTable(Options{Width: 2})
	s := newScript(1)
	a, b := begin(table, testKey, Fenced, s), begin(table, testKey, Fenced, nil)
	close(s.dispatch)
	synctest.Wait()
	a.cancel()
	synctest.Wait()
	if s.cancelled.Load() {
		t.Fatal("cancelled while somebody waits")
	}
	b.cancel()
	synctest.Wait()
	if !s.cancelled.Load() || s.cause != ErrAbandoned {
		t.Fatalf("cancelled = %v with cause %v; want %v", s.cancelled.Load(), s.cause, ErrAbandoned)
	}
	if n := table.Stats().Abandoned; n != 1 {
		t.Errorf("Abandoned = %d; want 1", n)
	}
	wantEmpty(t, table)
}

// stubborn is a Runner that does not heed its context.
type stubborn struct {
	finish chan struct{}
	box    *box
}

func (s *stubborn) Run(_ context.Context, f *Flight[*box]) (*box, error) {
	f.Dispatch()
	<-s.finish
	return s.box, nil
}

func testAbandoned(t *testing.T) {
	table := newTable(Options{Width: 2})
	ctx, cancel := context.WithCancel(context.Background())
	old := &stubborn{finish: make(chan struct{}), box: &box{n: 1}}
	f, _ := table.Enter(testKey, Join)
	f.Launch(ctx, old)
	synctest.Wait()
	cancel()
	if _, err := f.Wait(ctx); err != context.Canceled {
		t.Fatalf("Wait = %v; want %v", err, context.Canceled)
	}
	// The flight is still under way, but nobody may join it any more.
	s := newScript(2)
	next := begin(table, testKey, Join, s)
	if !next.leader {
		t.Fatal("joined a flight that everybody has left")
	}
	close(old.finish)
	close(s.dispatch)
	synctest.Wait()
	follower := begin(table, testKey, Join, nil) // the old one's landing took nothing away
	if follower.leader {
		t.Error("an abandoned flight removed a newer one's entry")
	}
	close(s.finish)
	next.wantValue(t, 2)
	follower.wantValue(t, 2)
	if !old.box.freed.Load() {
		t.Error("the abandoned flight's value is still held")
	}
	wantEmpty(t, table)
}

func testAbandonedBeforeDispatch(t *testing.T) {
	table := newTable(Options{Width: 1})
	first, second := newScript(1), newScript(2)
	a := begin(table, testKey, Strict, first)
	close(first.dispatch)
	synctest.Wait()
	b := begin(table, testKey, Strict, second) // pending
	synctest.Wait()
	b.cancel()
	b.wantErr(t, context.Canceled)
	close(first.finish)
	a.wantValue(t, 1)
	synctest.Wait()
	if second.began.Load() {
		t.Error("a pending flight ran though everybody had left it")
	}
	wantEmpty(t, table)

	f, _ := table.Enter(testKey, Fenced)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	s := &script{dispatch: make(chan struct{})}
	f.leave(false)
	f.Launch(ctx, s) // cannot happen through Wait; Dispatch must refuse all the same
	close(s.dispatch)
	synctest.Wait()
	if !s.refused.Load() {
		t.Error("Dispatch = true with nobody waiting")
	}
}

func testAbandonedBesidePending(t *testing.T) {
	table := newTable(Options{Width: 1})
	ctx, cancel := context.WithCancel(context.Background())
	old := &stubborn{finish: make(chan struct{}), box: &box{n: 1}}
	f, _ := table.Enter(testKey, Strict)
	f.Launch(ctx, old)
	synctest.Wait()
	pending := begin(table, testKey, Strict, instant(2))
	cancel()
	if _, err := f.Wait(ctx); err != context.Canceled {
		t.Fatalf("Wait = %v; want %v", err, context.Canceled)
	}
	follower := begin(table, testKey, Strict, nil)
	if follower.leader {
		t.Error("the pending flight went with the one before it")
	}
	close(old.finish)
	pending.wantValue(t, 2)
	if !follower.leader {
		follower.wantValue(t, 2)
	}
	wantEmpty(t, table)
}

func testLeaveLanded(t *testing.T) {
	table := newTable(Options{Width: 1})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for range 100 { // select chooses at random between the two that are ready
		s := instant(1)
		f, _ := table.Enter(testKey, Fenced)
		f.Launch(context.Background(), s)
		synctest.Wait()
		if v, err := f.Wait(ctx); err == nil {
			v.Drop()
		}
		if !s.box.freed.Load() {
			t.Fatal("a share is held by nobody")
		}
	}
	wantEmpty(t, table)
}

func testKeyGone(t *testing.T) {
	table := newTable(Options{Width: 2})
	for _, rule := range []Rule{Fenced, Strict, Join} {
		begin(table, testKey, rule, instant(1)).wantValue(t, 1)
		// Woken: whoever comes now must lead.
		c := begin(table, testKey, rule, instant(2))
		if !c.leader {
			t.Fatalf("rule %d: joined a flight that had landed", rule)
		}
		c.wantValue(t, 2)
	}
	wantEmpty(t, table)
}

func testIdentity(t *testing.T) {
	table := newTable(Options{Width: 2})
	old, new := newScript(1), newScript(2)
	a := begin(table, testKey, Strict, old)
	close(old.dispatch)
	synctest.Wait()
	b := begin(table, testKey, Strict, new)
	if !b.leader {
		t.Fatal("strict joined a dispatched flight")
	}
	synctest.Wait()
	close(old.finish)
	a.wantValue(t, 1)
	c := begin(table, testKey, Strict, nil)
	if c.leader {
		t.Fatal("landing removed the entry of a newer flight")
	}
	close(new.dispatch)
	close(new.finish)
	b.wantValue(t, 2)
	c.wantValue(t, 2)
	wantEmpty(t, table)
}

func testError(t *testing.T) {
	table := newTable(Options{Width: 2})
	boom := errors.New("boom")
	s := newScript(1)
	s.err = boom
	a, b := begin(table, testKey, Fenced, s), begin(table, testKey, Fenced, nil)
	close(s.dispatch)
	close(s.finish)
	a.wantErr(t, boom)
	b.wantErr(t, boom)
	begin(table, testKey, Fenced, instant(2)).wantValue(t, 2)
	wantEmpty(t, table)
}

func testPanic(t *testing.T) {
	table := newTable(Options{Width: 2})
	boom := errors.New("boom")
	s := newScript(1)
	s.fail = func() { panic(boom) }
	a, b := begin(table, testKey, Fenced, s), begin(table, testKey, Fenced, nil)
	close(s.dispatch)
	close(s.finish)
	for _, c := range []*call{a, b} {
		<-c.done
		p, ok := c.panic.(*PanicError)
		if !ok || !errors.Is(p, boom) || len(p.Stack) == 0 {
			t.Fatalf("panic = %v; want a PanicError of %v with its stack", c.panic, boom)
		}
	}
	begin(table, testKey, Fenced, instant(2)).wantValue(t, 2)
	if n := table.Stats().Panics; n != 1 {
		t.Errorf("Panics = %d; want 1", n)
	}
	wantEmpty(t, table)
}

func testGoexit(t *testing.T) {
	table := newTable(Options{Width: 2})
	s := newScript(1)
	s.fail = runtime.Goexit
	a, b := begin(table, testKey, Fenced, s), begin(table, testKey, Fenced, nil)
	close(s.dispatch)
	close(s.finish)
	a.wantErr(t, ErrGoexit)
	b.wantErr(t, ErrGoexit)
	if n := table.Stats().Panics; n != 1 {
		t.Errorf("Panics = %d; want 1", n)
	}
	begin(table, testKey, Fenced, instant(2)).wantValue(t, 2)
	wantEmpty(t, table)
}

func testValues(t *testing.T) {
	table := newTable(Options{Width: 2})
	s := instant(1)
	begin(table, testKey, Fenced, s).wantValue(t, 1)
	if s.value != "of the leader" {
		t.Errorf("context value = %v; want the leader's", s.value)
	}
}

func testCollision(t *testing.T) {
	table := newTable(Options{Width: 2})
	table.hash = func(maphash.Seed, Key) uint64 { return 7 }
	keys := []Key{
		{Text: "a"},
		{Text: "b"},
		{Text: "a", Args: []byte{1}},
		{Text: "a", Args: []byte{2}},
	}
	var scripts []*script
	var calls []*call
	for i, k := range keys {
		scripts = append(scripts, newScript(i))
		calls = append(calls, begin(table, k, Fenced, scripts[i]))
		if !calls[i].leader {
			t.Fatalf("key %d joined another key's flight", i)
		}
	}
	for i, k := range keys {
		calls = append(calls, begin(table, k, Fenced, nil))
		if calls[len(calls)-1].leader {
			t.Fatalf("key %d did not find its flight", i)
		}
	}
	for _, i := range []int{2, 0, 3, 1} { // out of the chain's middle, end and head
		close(scripts[i].dispatch)
		close(scripts[i].finish)
		calls[i].wantValue(t, i)
		calls[i+len(keys)].wantValue(t, i)
	}
	wantEmpty(t, table)
}

func testArgsCopied(t *testing.T) {
	table := newTable(Options{Width: 2})
	args := []byte{1, 2, 3}
	s := newScript(1)
	a := begin(table, Key{Text: "x", Args: args}, Fenced, s)
	args[0] = 9
	if b := begin(table, Key{Text: "x", Args: []byte{1, 2, 3}}, Fenced, nil); b.leader {
		t.Error("the table's key changed with the caller's memory")
	} else {
		defer b.wantValue(t, 1)
	}
	close(s.dispatch)
	close(s.finish)
	a.wantValue(t, 1)
}

func testForget(t *testing.T) {
	table := newTable(Options{Width: 2})
	old, fresh := newScript(1), newScript(2)
	a := begin(table, testKey, Join, old)
	table.Forget(testKey) // not dispatched: as fresh as a new one
	if c := begin(table, testKey, Join, nil); c.leader {
		t.Fatal("Forget closed a flight that was not dispatched")
	} else {
		defer c.wantValue(t, 1)
	}
	close(old.dispatch)
	synctest.Wait()
	table.Forget(testKey)
	b := begin(table, testKey, Join, fresh)
	if !b.leader {
		t.Fatal("joined a forgotten flight")
	}
	close(old.finish)
	a.wantValue(t, 1)
	close(fresh.dispatch)
	close(fresh.finish)
	b.wantValue(t, 2)
	table.Forget(Key{Text: "nothing there"})
	wantEmpty(t, table)
}

// taker keeps its context after it has returned, as live rows do.
type taker struct{ ctx chan context.Context }

func (r taker) Run(ctx context.Context, f *Flight[*box]) (*box, error) {
	f.Dispatch()
	cancel := f.TakeCancel()
	r.ctx <- ctx
	context.AfterFunc(ctx, func() {})
	_ = cancel
	return &box{}, nil
}

func testTakeCancel(t *testing.T) {
	table := newTable(Options{Width: 2})
	r := taker{make(chan context.Context, 1)}
	f, _ := table.Enter(testKey, Fenced)
	f.Launch(context.Background(), r)
	v, err := f.Wait(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	v.Drop()
	if ctx := <-r.ctx; ctx.Err() != nil {
		t.Errorf("landing cancelled a context that the Runner had taken: %v", ctx.Err())
	}
	wantEmpty(t, table)
}

// twice is a Runner that executes a second time.
type twice struct{ again, finish chan struct{} }

func (r twice) Run(_ context.Context, f *Flight[*box]) (*box, error) {
	f.Dispatch()
	<-r.again
	f.Dispatch()
	<-r.finish
	return &box{n: 1}, nil
}

func testDispatchTwice(t *testing.T) {
	epoch := new(Epoch)
	table := New[*box](epoch, Options{Width: 2})
	r := twice{make(chan struct{}), make(chan struct{})}
	f, _ := table.Enter(testKey, Fenced)
	f.Launch(context.Background(), r)
	synctest.Wait()
	epoch.Raise()
	close(r.again)
	synctest.Wait()
	c := begin(table, testKey, Fenced, instant(2))
	if !c.leader {
		t.Error("a repeated execution made its flight younger")
	}
	close(r.finish)
	if v, err := f.Wait(context.Background()); err != nil {
		t.Error(err)
	} else {
		v.Drop()
	}
	<-c.done
	wantEmpty(t, table)
}

// TestRules holds each rule against a flight in each state.
func TestRules(t *testing.T) {
	type step int
	const (
		undispatched step = iota
		current           // dispatched, the epoch has not risen since
		fenced            // dispatched, the epoch has risen since
		held              // dispatched, and a raw connection is out
	)
	for _, tc := range []struct {
		rule Rule
		at   step
		join bool
	}{
		{Fenced, undispatched, true},
		{Fenced, current, true},
		{Fenced, fenced, false},
		{Fenced, held, false},
		{Strict, undispatched, true},
		{Strict, current, false},
		{Strict, fenced, false},
		{Strict, held, false},
		{Join, undispatched, true},
		{Join, current, true},
		{Join, fenced, true},
		{Join, held, true},
	} {
		t.Run(fmt.Sprintf("rule=%d/state=%d", tc.rule, tc.at), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				epoch := new(Epoch)
				epoch.Raise()
				table := New[*box](epoch, Options{Width: 2})
				s := newScript(1)
				a := begin(table, testKey, tc.rule, s)
				if tc.at == undispatched {
					epoch.Raise() // a flight that is not dispatched will see it
				} else {
					close(s.dispatch)
					synctest.Wait()
				}
				switch tc.at {
				case fenced:
					epoch.Raise()
				case held:
					epoch.Hold()
				}
				s2 := instant(2)
				b := begin(table, testKey, tc.rule, s2)
				if b.leader == tc.join {
					t.Errorf("joined = %v; want %v", !b.leader, tc.join)
				}
				if tc.at == undispatched {
					close(s.dispatch)
				}
				close(s.finish)
				a.wantValue(t, 1)
				<-b.done
				if tc.at == held {
					epoch.Release()
				}
				wantEmpty(t, table)
			})
		})
	}
}

func TestHold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		epoch := new(Epoch)
		table := New[*box](epoch, Options{Width: 1})
		epoch.Hold()
		s := newScript(1)
		a := begin(table, testKey, Fenced, s)
		close(s.dispatch)
		synctest.Wait()
		epoch.Release()
		// What was written until the release may be missing from the flight.
		s2 := instant(2)
		b := begin(table, testKey, Fenced, s2)
		if !b.leader {
			t.Error("joined a flight dispatched before the release")
		}
		close(s.finish)
		a.wantValue(t, 1)
		b.wantValue(t, 2)
		wantEmpty(t, table)
	})
}

// TestWidth checks that constant fences cost a key Width executions at a time,
// and that everybody else waits for one pending flight.
func TestWidth(t *testing.T) {
	for _, width := range []int{1, 2, 5} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				table := newTable(Options{Width: width})
				var running []*script
				var calls []*call
				for i := range width {
					s := newScript(i)
					running = append(running, s)
					calls = append(calls, begin(table, testKey, Strict, s))
					close(s.dispatch)
					synctest.Wait()
				}
				pending := newScript(100)
				var gathered []*call
				for i := range 50 {
					c := begin(table, testKey, Strict, pending)
					if c.leader != (i == 0) {
						t.Fatalf("call %d: leader = %v", i, c.leader)
					}
					gathered = append(gathered, c)
				}
				synctest.Wait()
				if pending.began.Load() {
					t.Fatal("more flights run than the width allows")
				}
				close(running[0].finish)
				calls[0].wantValue(t, 0)
				synctest.Wait()
				if !pending.began.Load() {
					t.Fatal("the pending flight did not start when another landed")
				}
				// Not dispatched: still open.
				late := begin(table, testKey, Strict, nil)
				if late.leader {
					t.Error("a promoted flight that is not dispatched took no follower")
				}
				close(pending.dispatch)
				close(pending.finish)
				for _, c := range append(gathered, late) {
					c.wantValue(t, 100)
				}
				for i := 1; i < width; i++ {
					close(running[i].finish)
					calls[i].wantValue(t, i)
				}
				wantEmpty(t, table)
			})
		})
	}
}

// TestPendingLeader checks the gap between Enter and Launch: the flight before
// may land in it.
func TestPendingLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := newTable(Options{Width: 1})
		s := newScript(1)
		a := begin(table, testKey, Strict, s)
		close(s.dispatch)
		synctest.Wait()
		f, leader := table.Enter(testKey, Strict)
		if !leader {
			t.Fatal("want a pending flight")
		}
		close(s.finish)
		a.wantValue(t, 1)
		synctest.Wait()
		f.Launch(context.Background(), instant(2))
		v, err := f.Wait(context.Background())
		if err != nil || v.n != 2 {
			t.Fatalf("Wait = %v, %v; want box 2", v, err)
		}
		v.Drop()
		wantEmpty(t, table)
	})
}

func TestWindow(t *testing.T) {
	const window = time.Second
	run := func(name string, test func(t *testing.T, epoch *Epoch, table *Table[*box])) {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				epoch := new(Epoch)
				table := New[*box](epoch, Options{Width: 2, Window: window})
				test(t, epoch, table)
				time.Sleep(2 * window) // the bubble's time
				synctest.Wait()
				wantEmpty(t, table)
			})
		})
	}
	run("KeepsTheResult", func(t *testing.T, _ *Epoch, table *Table[*box]) {
		s := instant(1)
		begin(table, testKey, Fenced, s).wantValue(t, 1)
		for range 3 {
			c := begin(table, testKey, Fenced, nil)
			if c.leader {
				t.Fatal("the result was not kept")
			}
			c.wantValue(t, 1)
		}
		if s.box.freed.Load() {
			t.Error("freed within the window")
		}
		time.Sleep(window) // the bubble's time
		synctest.Wait()
		if !s.box.freed.Load() {
			t.Error("held beyond the window")
		}
		begin(table, testKey, Fenced, instant(2)).wantValue(t, 2)
	})
	run("EndsThoughItsTimerIsLate", func(t *testing.T, _ *Epoch, table *Table[*box]) {
		f, _ := table.Enter(testKey, Join)
		f.Launch(context.Background(), instant(1))
		if v, err := f.Wait(context.Background()); err != nil {
			t.Error(err)
		} else {
			v.Drop()
		}
		f.s.mu.Lock()
		f.keep.expires = time.Now()
		f.s.mu.Unlock()
		begin(table, testKey, Join, instant(2)).wantValue(t, 2)
	})
	run("IsNotForEveryValue", func(t *testing.T, _ *Epoch, table *Table[*box]) {
		s := instant(1)
		s.box.brief = true
		c := begin(table, testKey, Fenced, s)
		c.wantValue(t, 1)
		if !s.box.freed.Load() {
			t.Error("held though it must not be kept")
		}
		begin(table, testKey, Join, instant(2)).wantValue(t, 2)
	})
	run("EndsWithAFence", func(t *testing.T, epoch *Epoch, table *Table[*box]) {
		begin(table, testKey, Fenced, instant(1)).wantValue(t, 1)
		epoch.Raise()
		begin(table, testKey, Join, nil).wantValue(t, 1)
		begin(table, testKey, Fenced, instant(2)).wantValue(t, 2)
		begin(table, testKey, Fenced, nil).wantValue(t, 2)
	})
	run("IsAsOldAsItsDispatch", func(t *testing.T, epoch *Epoch, table *Table[*box]) {
		s := newScript(1)
		a := begin(table, testKey, Fenced, s)
		close(s.dispatch)
		synctest.Wait()
		epoch.Raise() // a write that the flight may have missed
		close(s.finish)
		a.wantValue(t, 1)
		begin(table, testKey, Fenced, instant(2)).wantValue(t, 2)
	})
	run("StrictNeverUsesIt", func(t *testing.T, _ *Epoch, table *Table[*box]) {
		begin(table, testKey, Fenced, instant(1)).wantValue(t, 1)
		begin(table, testKey, Strict, instant(2)).wantValue(t, 2)
	})
	run("ForgetEndsIt", func(t *testing.T, _ *Epoch, table *Table[*box]) {
		begin(table, testKey, Join, instant(1)).wantValue(t, 1)
		table.Forget(testKey)
		begin(table, testKey, Join, instant(2)).wantValue(t, 2)
	})
	run("ClearEndsAll", func(t *testing.T, _ *Epoch, table *Table[*box]) {
		s := instant(1)
		begin(table, testKey, Join, s).wantValue(t, 1)
		table.Clear()
		if !s.box.freed.Load() {
			t.Error("held after Clear")
		}
		wantEmpty(t, table)
	})
	run("ErrorsAreNotKept", func(t *testing.T, _ *Epoch, table *Table[*box]) {
		s := instant(1)
		s.err = errors.New("boom")
		begin(table, testKey, Fenced, s).wantErr(t, s.err)
		begin(table, testKey, Fenced, instant(2)).wantValue(t, 2)
	})
	run("ForgottenFlightIsNotKept", func(t *testing.T, _ *Epoch, table *Table[*box]) {
		s := newScript(1)
		a := begin(table, testKey, Fenced, s)
		close(s.dispatch)
		synctest.Wait()
		table.Forget(testKey)
		close(s.finish)
		a.wantValue(t, 1)
		begin(table, testKey, Fenced, instant(2)).wantValue(t, 2)
	})
}

// storm is a Runner with a mind of its own.
type storm struct {
	running *atomic.Int64
	width   int64
	over    *atomic.Bool
	made    *sync.Map
}

func (r storm) Run(_ context.Context, f *Flight[*box]) (*box, error) {
	defer r.running.Add(-1)
	if r.running.Add(1) > r.width {
		r.over.Store(true)
	}
	pause := func() {
		for range rand.IntN(20) {
			runtime.Gosched()
		}
	}
	pause()
	if !f.Dispatch() {
		return nil, ErrAbandoned
	}
	pause()
	if rand.IntN(10) == 0 {
		return nil, errStorm
	}
	b := &box{n: 1}
	r.made.Store(b, nil)
	return b, nil
}

var errStorm = errors.New("storm")

// TestStorm lets many callers come and go as they like and checks what must
// hold whatever the order: no more executions than the width, no error that is
// not the caller's own or the flight's, every share given back, nothing left.
func TestStorm(t *testing.T) {
	const callers, rounds = 64, 300
	for _, window := range []time.Duration{0, time.Microsecond, time.Millisecond} {
		t.Run(window.String(), func(t *testing.T) {
			epoch := new(Epoch)
			var taken atomic.Int64
			table := New[*box](epoch, Options{
				Width: 2, Window: window,
				Take: func(n int64) bool { taken.Add(n); return true },
				Give: func(n int64) { taken.Add(-n) },
			})
			keys := []Key{{Text: "a"}, {Text: "b"}, {Text: "c"}}
			var running [3]atomic.Int64
			var over atomic.Bool
			var made sync.Map
			var wg sync.WaitGroup
			for range callers {
				wg.Go(func() {
					var last *Flight[*box] // that this caller has seen land
					for range rounds {
						i := rand.IntN(len(keys))
						ctx, cancel := context.WithCancel(context.Background())
						f, leader := table.Enter(keys[i], Rule(rand.IntN(3)))
						if f == last && window == 0 {
							t.Error("a flight that has landed took a caller")
						}
						if leader {
							f.Launch(ctx, storm{&running[i], 2, &over, &made})
						}
						switch rand.IntN(4) {
						case 0:
							cancel()
						case 1:
							go cancel()
						case 2:
							epoch.Raise()
						}
						v, err := f.Wait(ctx)
						switch {
						case err == nil:
							v.Drop()
							last = f
						case err == errStorm:
							last = f
						case err == context.Canceled && ctx.Err() != nil:
						default:
							t.Errorf("Wait = %v; want nobody else's error", err)
						}
						if rand.IntN(50) == 0 {
							table.Forget(keys[i])
						}
						if rand.IntN(10) == 0 {
							table.MakeRoom()
						}
						cancel()
					}
				})
			}
			wg.Wait()
			if over.Load() {
				t.Error("more than two executions of one key at a time")
			}
			for deadline := time.Now().Add(10 * time.Second); table.Keys() > 0 && time.Now().Before(deadline); {
				runtime.Gosched() // abandoned executions and windows end on their own
			}
			wantEmpty(t, table)
			// Whoever ends a window drops its share after the key has gone.
			for deadline := time.Now().Add(10 * time.Second); ; runtime.Gosched() {
				var held *box
				made.Range(func(k, _ any) bool {
					if b := k.(*box); !b.freed.Load() {
						held = b
					}
					return held == nil
				})
				if held == nil && taken.Load() == 0 {
					break
				}
				if time.Now().After(deadline) {
					t.Errorf("values are held by shares of nobody: %v; %d bytes are counted", held, taken.Load())
					break
				}
			}
		})
	}
}

// atOnce is an execution that takes no time.
type atOnce struct{ *script }

func (r *atOnce) RunInline(_ context.Context, f *Flight[*box]) (*box, error, bool) { //nolint:revive // as Inline has it
	f.Dispatch()
	return r.box, nil, false
}

func (r *atOnce) Detach() {}

func BenchmarkTable(b *testing.B) {
	b.Run("unique", func(b *testing.B) {
		table := newTable(Options{Width: 2})
		var id atomic.Uint64
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			var args [8]byte
			n := id.Add(1) << 40
			r := instant(1)
			r.box.shares.Store(1 << 60)
			for pb.Next() {
				n++
				for i := range args {
					args[i] = byte(n >> (8 * i))
				}
				f, _ := table.Enter(Key{Text: "select", Args: args[:]}, Fenced)
				f.Launch(context.Background(), r)
				if _, err := f.Wait(context.Background()); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("led", func(b *testing.B) { // what a leader that executes its flight itself pays
		table := newTable(Options{Width: 2})
		var id atomic.Uint64
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			var args [8]byte
			n := id.Add(1) << 40
			r := &atOnce{instant(1)}
			r.box.shares.Store(1 << 60)
			for pb.Next() {
				n++
				for i := range args {
					args[i] = byte(n >> (8 * i))
				}
				f, _ := table.Enter(Key{Text: "select", Args: args[:]}, Fenced)
				if _, err := f.Lead(context.Background(), r); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("hot", func(b *testing.B) {
		table := newTable(Options{Width: 2})
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				f, leader := table.Enter(testKey, Join)
				if leader {
					f.Launch(context.Background(), instant(1))
				}
				if v, err := f.Wait(context.Background()); err == nil {
					v.Drop()
				}
			}
		})
	})
}

// TestStrict: a flight knows of its strict callers when it is dispatched.
func TestStrict(t *testing.T) {
	for _, c := range []struct {
		leader, follower Rule
		want             bool
	}{
		{Fenced, Join, false},
		{Join, Fenced, false},
		{Strict, Join, true},
		{Fenced, Strict, true},
	} {
		table := newTable(Options{})
		f, leader := table.Enter(testKey, c.leader)
		if g, follower := table.Enter(testKey, c.follower); g != f || !leader || follower {
			t.Fatalf("%v does not follow %v, before it is dispatched", c.follower, c.leader)
		}
		f.Dispatch()
		if got := f.Strict(); got != c.want {
			t.Errorf("%v, followed by %v: Strict = %v", c.leader, c.follower, got)
		}
	}
}
