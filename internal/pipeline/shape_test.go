package pipeline

import (
	"runtime"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

func TestShapes(t *testing.T) {
	var s Shapes
	fields := func(change func(*pgconn.FieldDescription)) []pgconn.FieldDescription {
		f := []pgconn.FieldDescription{{Name: "a", DataTypeOID: 23}, {Name: "b", TableOID: 1, TableAttributeNumber: 2, DataTypeOID: 25, DataTypeSize: -1, TypeModifier: -1, Format: 1}}
		change(&f[1])
		return f
	}
	first := s.Of(fields(func(*pgconn.FieldDescription) {}))
	if s.Of(fields(func(*pgconn.FieldDescription) {})) != first {
		t.Error("the same columns have two shapes")
	}
	all := []*Shape{first}
	for name, change := range map[string]func(f *pgconn.FieldDescription){
		"name":      func(f *pgconn.FieldDescription) { f.Name = "c" },
		"table":     func(f *pgconn.FieldDescription) { f.TableOID = 2 },
		"attribute": func(f *pgconn.FieldDescription) { f.TableAttributeNumber = 3 },
		"type":      func(f *pgconn.FieldDescription) { f.DataTypeOID = 26 },
		"size":      func(f *pgconn.FieldDescription) { f.DataTypeSize = 4 },
		"modifier":  func(f *pgconn.FieldDescription) { f.TypeModifier = 4 },
		"format":    func(f *pgconn.FieldDescription) { f.Format = 0 },
	} {
		sh := s.Of(fields(change))
		if sh == first {
			t.Errorf("another %s has the same shape", name)
		}
		all = append(all, sh)
	}
	if s.Of(nil) == nil || s.Of(nil) == first {
		t.Error("no columns have a shape of their own")
	}
	runtime.KeepAlive(all)

	// What nobody uses is forgotten.
	first, all = nil, nil
	for end := time.Now().Add(10 * time.Second); ; {
		runtime.GC()
		s.mu.Lock()
		n := len(s.byHash)
		s.mu.Unlock()
		if n == 0 {
			break
		}
		if time.Now().After(end) {
			t.Fatalf("%d shapes are kept that nobody uses", n)
		}
		time.Sleep(time.Millisecond) // cleanups run in a goroutine of the runtime's
	}
}

// TestShapes_KeepNothing checks that Shapes do not keep alive what their table is a part
// of, though that refers to them.
func TestShapes_KeepNothing(t *testing.T) {
	type owner struct {
		Shapes
		use *Shape
		_   [1 << 20]byte
	}
	gone := make(chan struct{})
	func() {
		o := new(owner)
		o.use = o.Of([]pgconn.FieldDescription{{Name: "a"}})
		runtime.AddCleanup(o, func(struct{}) { close(gone) }, struct{}{})
	}()
	for end := time.Now().Add(10 * time.Second); ; {
		runtime.GC()
		select {
		case <-gone:
			return
		case <-time.After(time.Millisecond): // nothing tells what the collector does
		}
		if time.Now().After(end) {
			t.Fatal("what has a table of Shapes in it is never collected")
		}
	}
}
