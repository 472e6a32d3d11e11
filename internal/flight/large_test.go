package flight

import (
	"context"
	"crypto/sha256"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
)

// largeKey has the parts beside Args that are the same for all.
func largeKey(asked *atomic.Int64, parts ...[]byte) Key {
	return Key{Text: "x", Args: []byte{1}, Large: &Large{Parts: parts, Digest: func(parts [][]byte) string {
		asked.Add(1)
		h := sha256.New()
		for _, p := range parts {
			sum := sha256.Sum256(p)
			h.Write(sum[:])
		}
		return string(h.Sum(nil))
	}}}
}

func TestLarge(t *testing.T) {
	for _, tc := range []struct {
		name string
		test func(t *testing.T)
	}{
		{"NobodyLooksAtWhatMeetsNoOther", testLargeAlone},
		{"EqualOnesMeet", testLargeEqual},
		{"OthersDoNot", testLargeOther},
		{"WhatALeaderLeavesKeepsItsDigest", testLargeLeader},
		{"WhatWasAbandonedKeepsItsDigest", testLargeAbandoned},
		{"Forget", testLargeForget},
	} {
		t.Run(tc.name, func(t *testing.T) { synctest.Test(t, tc.test) })
	}
}

func testLargeAlone(t *testing.T) {
	table := newTable(Options{Width: 2})
	var asked atomic.Int64
	for range 3 {
		k := largeKey(&asked, []byte("a"))
		begin(table, k, Fenced, instant(1)).wantValue(t, 1)
		k.Large.Done()
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("%d digests; want none", n)
	}
	wantEmpty(t, table)
}

func testLargeEqual(t *testing.T) {
	table := newTable(Options{Width: 2})
	var asked atomic.Int64
	s := newScript(1)
	calls := []*call{begin(table, largeKey(&asked, []byte("a"), []byte("b")), Fenced, s)}
	for range 3 {
		k := largeKey(&asked, []byte("a"), []byte("b"))
		calls = append(calls, begin(table, k, Fenced, nil))
		if k.Large.Met {
			t.Error("Met, though they are the same")
		}
	}
	if n := asked.Load(); n != 4 {
		t.Errorf("%d digests; want one of each caller's", n)
	}
	close(s.dispatch)
	close(s.finish)
	for i, c := range calls {
		if c.leader != (i == 0) {
			t.Errorf("call %d: leader = %v", i, c.leader)
		}
		c.wantValue(t, 1)
	}
	wantEmpty(t, table)
}

func testLargeOther(t *testing.T) {
	table := newTable(Options{Width: 2})
	var asked atomic.Int64
	var scripts []*script
	var calls []*call
	plain := Key{Text: "x", Args: []byte{1}}
	for i, k := range []Key{largeKey(&asked, []byte("a")), plain, largeKey(&asked, []byte("b")), largeKey(&asked, []byte("a"), nil)} {
		scripts = append(scripts, newScript(i))
		calls = append(calls, begin(table, k, Fenced, scripts[i]))
		if !calls[i].leader {
			t.Fatalf("key %d joined another key's flight", i)
		}
		if k.Large != nil && k.Large.Met != (i > 0) {
			t.Errorf("key %d: Met = %v", i, k.Large.Met)
		}
	}
	follower := begin(table, largeKey(&asked, []byte("b")), Fenced, nil)
	for i, s := range scripts {
		close(s.dispatch)
		close(s.finish)
		calls[i].wantValue(t, i)
	}
	follower.wantValue(t, 2)
	wantEmpty(t, table)
}

// The leader's memory is his again when he has gone.
func testLargeLeader(t *testing.T) {
	table := newTable(Options{Width: 2})
	var asked atomic.Int64
	s := newScript(1)
	memory := []byte("a")
	k := largeKey(&asked, memory)
	leader := begin(table, k, Fenced, s)
	stays := begin(table, largeKey(&asked, []byte("a")), Fenced, nil)
	leader.cancel()
	leader.wantErr(t, context.Canceled)
	k.Large.Done()
	memory[0] = 'b'
	asA := begin(table, largeKey(&asked, []byte("a")), Fenced, nil)
	asB := begin(table, largeKey(&asked, []byte("b")), Fenced, instant(2))
	if asA.leader || !asB.leader {
		t.Errorf("leaders: %v, %v; want the flight to be known by what it was", asA.leader, asB.leader)
	}
	close(s.dispatch)
	close(s.finish)
	stays.wantValue(t, 1)
	asA.wantValue(t, 1)
	asB.wantValue(t, 2)
	wantEmpty(t, table)
}

// deaf is a Runner that does not hear of the end of its context.
type deaf chan struct{}

func (s deaf) Run(_ context.Context, f *Flight[*box]) (*box, error) {
	f.Dispatch()
	<-s
	return &box{}, nil
}

// A key stays for as long as what everybody has left is running.
func testLargeAbandoned(t *testing.T) {
	table := newTable(Options{Width: 2})
	var asked atomic.Int64
	memory := []byte("a")
	k := largeKey(&asked, memory)
	ctx, cancel := context.WithCancel(t.Context())
	f, _ := table.Enter(k, Fenced)
	runs := make(deaf)
	f.Launch(ctx, runs)
	synctest.Wait()
	cancel()
	if _, err := f.Wait(ctx); err != context.Canceled {
		t.Fatal(err)
	}
	k.Large.Done()
	memory[0] = 'b'
	for i, part := range []string{"b", "a"} {
		s := newScript(i)
		c := begin(table, largeKey(&asked, []byte(part)), Fenced, s)
		if n, want := table.Keys(), 2-i; n != want {
			t.Errorf("the table has %d keys beside %q; want %d", n, part, want)
		}
		close(s.dispatch)
		close(s.finish)
		c.wantValue(t, i)
	}
	close(runs)
	synctest.Wait()
	wantEmpty(t, table)
}

func testLargeForget(t *testing.T) {
	table := newTable(Options{Width: 2})
	var asked atomic.Int64
	old := newScript(1)
	a := begin(table, largeKey(&asked, []byte("a")), Join, old)
	close(old.dispatch)
	synctest.Wait()
	table.Forget(largeKey(&asked, []byte("b")))
	b := begin(table, largeKey(&asked, []byte("a")), Join, nil)
	table.Forget(largeKey(&asked, []byte("a")))
	c := begin(table, largeKey(&asked, []byte("a")), Join, instant(2))
	if b.leader || !c.leader {
		t.Errorf("leaders: %v, %v; want the flight to be there until it is forgotten", b.leader, c.leader)
	}
	close(old.finish)
	a.wantValue(t, 1)
	b.wantValue(t, 1)
	c.wantValue(t, 2)
}

// TestLarge_Memory has callers change their memory as soon as they are Done, while others
// look for what was in it: for the race detector, and for who gets another's value.
func TestLarge_Memory(t *testing.T) {
	table := newTable(Options{Width: 1})
	var asked atomic.Int64
	var callers sync.WaitGroup
	for i := range 8 {
		callers.Go(func() {
			memory := make([]byte, 64)
			for n := range 300 {
				want := (n + i) % 2
				memory[40] = byte(want)
				k := largeKey(&asked, memory)
				ctx, cancel := context.WithCancel(t.Context())
				f, leader := table.Enter(k, Fenced)
				if leader {
					f.Launch(ctx, instant(want))
				}
				if n%3 == 0 {
					cancel()
				}
				v, err := f.Wait(ctx)
				k.Large.Done()
				clear(memory)
				cancel()
				switch {
				case err == context.Canceled:
				case err != nil:
					t.Error(err)
				case v.n != want:
					t.Errorf("got %d; want %d", v.n, want)
				default:
					v.Drop()
				}
			}
		})
	}
	callers.Wait()
	if asked.Load() == 0 {
		t.Error("nobody has met another")
	}
	wantEmpty(t, table)
}
