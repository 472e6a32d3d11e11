package pipeline

import (
	"encoding/binary"
	"hash/maphash"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"weak"

	"github.com/jackc/pgx/v5/pgconn"
)

// Shape is what the rows of a result look like. All descriptions with the same columns
// have the same Shape, as long as one of them is in use.
type Shape struct {
	// Fields are the columns, in the formats that results come in. They must not be
	// changed.
	Fields []pgconn.FieldDescription
	// User is whatever belongs to the columns.
	User atomic.Value
}

// Shapes are those that are in use. The zero value is ready, for several goroutines at
// once.
type Shapes struct {
	once sync.Once
	seed maphash.Seed

	mu     sync.Mutex // guards byHash
	byHash map[uint64][]weak.Pointer[Shape]
}

// Of returns the Shape with these columns, which must not be changed any more.
func (s *Shapes) Of(fields []pgconn.FieldDescription) *Shape {
	s.once.Do(func() {
		s.seed = maphash.MakeSeed()
		s.byHash = make(map[uint64][]weak.Pointer[Shape])
	})
	hash := s.hash(fields)
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.byHash[hash] {
		if sh := w.Value(); sh != nil && slices.Equal(sh.Fields, fields) {
			return sh
		}
	}
	sh := &Shape{Fields: fields}
	s.byHash[hash] = append(s.byHash[hash], weak.Make(sh))
	runtime.AddCleanup(sh, forgetShape, shapePlace{weak.Make(s), hash})
	return sh
}

// shapePlace is where a Shape is found. It does not keep the table alive, nor all that the
// table is a part of: what refers to Shapes, which would then never go.
type shapePlace struct {
	in   weak.Pointer[Shapes]
	hash uint64
}

// forgetShape removes what has no Shape any more.
func forgetShape(at shapePlace) {
	s, hash := at.in.Value(), at.hash
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	left := slices.DeleteFunc(s.byHash[hash], func(w weak.Pointer[Shape]) bool { return w.Value() == nil })
	if len(left) == 0 {
		delete(s.byHash, hash)
		return
	}
	s.byHash[hash] = left
}

func (s *Shapes) hash(fields []pgconn.FieldDescription) uint64 {
	var h maphash.Hash
	h.SetSeed(s.seed)
	var b [24]byte
	for i := range fields {
		f := &fields[i]
		binary.LittleEndian.PutUint32(b[0:], uint32(len(f.Name)))
		binary.LittleEndian.PutUint32(b[4:], f.TableOID)
		binary.LittleEndian.PutUint32(b[8:], f.DataTypeOID)
		binary.LittleEndian.PutUint32(b[12:], uint32(f.TypeModifier))
		binary.LittleEndian.PutUint16(b[16:], f.TableAttributeNumber)
		binary.LittleEndian.PutUint16(b[18:], uint16(f.DataTypeSize))
		binary.LittleEndian.PutUint16(b[20:], uint16(f.Format))
		_, _ = h.Write(b[:])
		_, _ = h.WriteString(f.Name)
	}
	return h.Sum64()
}
