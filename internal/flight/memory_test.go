package flight

import (
	"context"
	"runtime"
	"strconv"
	"testing"
)

// TestTable_GivesMemoryBack: what many keys at a time have taken does not stay.
func TestTable_GivesMemoryBack(t *testing.T) {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const keys = 20_000
	var epoch Epoch
	table := New[*box](&epoch, Options{})
	load := func() {
		flights := make([]*Flight[*box], keys)
		for i := range flights {
			f, leader := table.Enter(Key{Text: "select", Args: strconv.AppendInt(nil, int64(i), 10)}, Fenced)
			if !leader {
				t.Fatalf("key %d was there", i)
			}
			flights[i] = f
		}
		for i, f := range flights {
			f.Launch(context.Background(), instant(i)) // one at a time: goroutines leave something behind too
			v, err := f.Wait(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			v.Drop()
		}
	}
	before := heap()
	load()
	if n := table.Keys(); n != 0 {
		t.Errorf("%d keys are left", n)
	}
	if kept := heap() - before; kept > 2*keys {
		t.Errorf("%d bytes are kept after %d keys", kept, keys)
	}
	runtime.KeepAlive(table)
}

// TestFlight_LeadersAloneAllocateNothing: a flight that nobody joins takes no memory,
// and its key none.
func TestFlight_LeadersAloneAllocateNothing(t *testing.T) {
	var epoch Epoch
	table := New[*box](&epoch, Options{})
	run := &inlined{script: newScript(0), leader: make(chan string, 1)}
	close(run.finish)
	key := []byte("arguments 0")
	allocs := testing.AllocsPerRun(1000, func() {
		key[len(key)-1]++
		f, leader := table.Enter(Key{Text: "select", Args: key}, Fenced)
		if !leader {
			t.Fatal("a flight was there")
		}
		if _, err := f.Lead(context.Background(), run); err != nil {
			t.Fatal(err)
		}
		<-run.leader
	})
	if allocs > 0 {
		t.Errorf("a flight that nobody joins takes %v allocations; want none", allocs)
	}
}
