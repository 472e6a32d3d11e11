package flight

import (
	"context"
	"hash/maphash"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// memory is what a table's kept results are counted against.
type memory struct {
	limit    int64
	used     atomic.Int64
	makeRoom func() bool
}

func (m *memory) take(n int64) bool {
	for {
		used := m.used.Load()
		switch {
		case used+n > m.limit:
			if !m.makeRoom() {
				return false
			}
		case m.used.CompareAndSwap(used, used+n):
			return true
		}
	}
}

func (m *memory) give(n int64) { m.used.Add(-n) }

// newKeeper makes a table that keeps what fits into so many bytes.
func newKeeper(window time.Duration, limit int64) (*Table[*box], *memory) {
	m := &memory{limit: limit}
	table := New[*box](new(Epoch), Options{Width: 2, Window: window, Take: m.take, Give: m.give})
	m.makeRoom = table.MakeRoom
	return table, m
}

func numbered(i int) Key { return Key{Text: "select", Args: strconv.AppendInt(nil, int64(i), 10)} }

// fly has a flight of the key land, and returns what it gave.
func fly(t *testing.T, table *Table[*box], k Key, n int) *box {
	t.Helper()
	f, leader := table.Enter(k, Join)
	if leader {
		f.Launch(context.Background(), instant(n))
	}
	v, err := f.Wait(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	v.Drop()
	return v
}

// isKept reports whether the key's result is kept, and counts as a caller that was
// given it if so.
func isKept(t *testing.T, table *Table[*box], k Key) bool {
	t.Helper()
	f, leader := table.Enter(k, Join)
	if !leader {
		v, err := f.Wait(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		v.Drop()
		return true
	}
	s := instant(0)
	s.box.brief = true
	f.Launch(context.Background(), s)
	if _, err := f.Wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	return false
}

func TestWindow_Memory(t *testing.T) {
	const window = time.Minute
	for _, tc := range []struct {
		name string
		test func(t *testing.T)
	}{
		{"KeysCount", func(t *testing.T) {
			table, m := newKeeper(window, 10<<20)
			for i := range 300 {
				k := Key{Text: "select", Args: append(make([]byte, 900_000), strconv.Itoa(i)...)}
				fly(t, table, k, i)
			}
			if n := table.Keys(); n < 5 || n > 11 {
				t.Errorf("%d results with keys of 900 kB are kept in 10 MiB; want 5 to 11", n)
			}
			if used := m.used.Load(); used < int64(table.Keys())*900_000 {
				t.Errorf("%d bytes are counted for %d keys of 900 kB", used, table.Keys())
			}
		}},
		{"TextsCountOnce", func(t *testing.T) {
			table, m := newKeeper(window, 10<<20)
			text := strings.Repeat("x", 1<<20)
			for i := range 100 {
				fly(t, table, Key{Text: text, Args: numbered(i).Args}, i)
			}
			if n, used := table.Keys(), m.used.Load(); n != 100 || used < 1<<20 || used > 2<<20 {
				t.Errorf("%d results of one text of 1 MiB are kept, and counted for %d bytes; want 100, and the text once", n, used)
			}
			for i := range 100 {
				fly(t, table, Key{Text: strings.Clone(text), Args: numbered(i).Args[:1:1]}, i)
			}
			for i := range 100 {
				fly(t, table, Key{Text: strings.Repeat(string(rune('0'+i)), 1<<19)}, i)
			}
			if n := table.Keys(); n > 20 {
				t.Errorf("%d results are kept, most with a text of 512 kiB; want them to fit 10 MiB", n)
			}
		}},
		{"WhatDoesNotFitIsGivenToItsCallers", func(t *testing.T) {
			table, m := newKeeper(window, 1000)
			if v := fly(t, table, Key{Text: "select", Args: make([]byte, 2000)}, 1); v.n != 1 || !v.freed.Load() {
				t.Errorf("got box %d, freed: %v; want box 1, freed", v.n, v.freed.Load())
			}
			if n, used := table.Keys(), m.used.Load(); n != 0 || used != 0 {
				t.Errorf("%d results are kept, %d bytes are counted; want none", n, used)
			}
		}},
		{"OldestMakeRoom", func(t *testing.T) {
			table, m := newKeeper(window, 1<<20)
			table.hash = func(maphash.Seed, Key) uint64 { return 0 }
			for i := range 100 {
				fly(t, table, numbered(i), i)
			}
			for range 40 {
				if !table.MakeRoom() {
					t.Fatal("no room was made")
				}
			}
			for i := range 100 {
				if kept, want := isKept(t, table, numbered(i)), i >= 40; kept != want {
					t.Errorf("result %d is kept: %v; want %v", i, kept, want)
				}
			}
			for table.MakeRoom() {
			}
			if n, used := table.Keys(), m.used.Load(); n != 0 || used != 0 {
				t.Errorf("%d results are kept, %d bytes are counted; want none", n, used)
			}
		}},
		{"WhatIsAskedForStays", func(t *testing.T) {
			table, _ := newKeeper(window, 1<<20)
			fly(t, table, testKey, -1)
			for i := range 20_000 {
				fly(t, table, numbered(i), i)
				if !isKept(t, table, testKey) {
					t.Fatalf("the hot result is gone after %d others", i)
				}
			}
			if n := table.Keys(); n > 10_000 {
				t.Errorf("%d results are kept in 1 MiB", n)
			}
		}},
		{"ManyAtATimeDropWhatTheyNeed", func(t *testing.T) {
			table, m := newKeeper(window, 1<<40)
			const kept, flights = 10_000, 64
			for i := range kept {
				fly(t, table, numbered(i), i)
			}
			used := m.used.Load()
			m.limit = used
			var wg sync.WaitGroup
			for range flights {
				wg.Go(func() {
					if !m.take(used / 10 / flights) {
						t.Error("no room was made")
					}
				})
			}
			wg.Wait()
			if n := table.Keys(); n < kept*9/10-2*flights || n > kept*9/10 {
				t.Errorf("%d of %d results are kept after a tenth of the memory was asked for", n, kept)
			}
			m.give(used / 10 / flights * flights)
		}},
		{"ReadersKeepWhatTheyHave", func(t *testing.T) {
			table, _ := newKeeper(window, 1<<20)
			v := fly(t, table, testKey, 1)
			f, _ := table.Enter(testKey, Join)
			if !table.MakeRoom() || table.MakeRoom() {
				t.Error("want one result to make room")
			}
			if v.freed.Load() {
				t.Error("the value was released before its reader has done")
			}
			if got, err := f.Wait(context.Background()); got != v || err != nil {
				t.Errorf("Wait = %v, %v", got, err)
			}
			v.Drop()
			if !v.freed.Load() {
				t.Error("the value was not released")
			}
		}},
		{"EachWindowEndsInTime", func(t *testing.T) {
			table, _ := newKeeper(window, 1<<20)
			table.hash = func(maphash.Seed, Key) uint64 { return 0 }
			for i := range 100 {
				fly(t, table, numbered(i), i)
				time.Sleep(time.Second / 10) // the bubble's time
			}
			table.Forget(numbered(0)) // whose end the timer is for
			table.Forget(numbered(50))
			time.Sleep(window - 5*time.Second - time.Second/20) // the 50 first ones are older now
			synctest.Wait()
			if n := table.Keys(); n != 49 {
				t.Errorf("%d results are kept; want 49", n)
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				tc.test(t)
				time.Sleep(window) // the bubble's time
			})
		})
	}
}

// TestWindow_CountsWhatIsKept holds what kept results are counted for to what the
// table takes for them.
func TestWindow_CountsWhatIsKept(t *testing.T) {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const keys, boxes = 30_000, 64 + 8
	table, m := newKeeper(time.Hour, 1<<40)
	before := heap()
	for i := range keys {
		ctx := context.WithValue(context.Background(), valueKey{}, make([]byte, 10_000)) // which must not stay
		f, _ := table.Enter(numbered(i), Join)
		f.Launch(ctx, instant(i))
		v, err := f.Wait(ctx)
		if err != nil {
			t.Fatal(err)
		}
		v.Drop()
	}
	took, counted := heap()-before-keys*boxes, m.used.Load()
	t.Logf("a kept result takes %d bytes and is counted for %d", took/keys, counted/keys)
	if took > counted+counted/16 || counted > took+took/4 {
		t.Errorf("%d kept results took %d bytes, and were counted for %d", keys, took, counted)
	}
	for range keys - 10 {
		table.MakeRoom()
	}
	if left := heap() - before; left > 500_000 {
		t.Errorf("%d bytes are left of %d that made room", left, took)
	}
	table.Clear()
	if n := m.used.Load(); n != 0 {
		t.Errorf("%d bytes are still counted", n)
	}
}
