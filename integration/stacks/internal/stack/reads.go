package stack

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"

	"github.com/flightpg/flightpg"
)

// Callers is how many callers of a read a storm of [Reads] has.
const Callers = 20

// Read is a read as users of a library write it. H is the library's handle.
type Read[H any] struct {
	Name   string
	Do     func(ctx context.Context, h H) (any, error) // the result is its caller's own
	Tables []string                                    // as for Storm
	Bypass flightpg.Reason                             // why flightpg does not share it; ReasonNone: it does
}

// Reads runs every read by many callers at once, over both drivers, each time
// in a database that setUp has filled. It fails unless all results, over both,
// are deeply equal, and unless the server's count of executions is what Bypass
// says.
func Reads[H any](t *testing.T, setUp func(e *Env) (H, *sql.DB), reads []Read[H]) {
	t.Helper()
	Compare(t, func(e *Env) map[string]any {
		h, db := setUp(e)
		results := make(map[string]any)
		for _, r := range reads {
			e.Run(r.Name, func(t *testing.T) {
				e := e.in(t)
				var first same
				read := func(ctx context.Context) error {
					v, err := r.Do(ctx, h)
					if err != nil {
						return err
					}
					return first.check(v)
				}
				if r.Bypass == flightpg.ReasonNone {
					e.Shared(db, Callers, read, r.Tables...)
				} else {
					e.Bypassed(db, Callers, r.Bypass, read, r.Tables[0])
				}
				v, err := r.Do(e.Context(), h)
				if err != nil {
					e.Fatal(err)
				}
				results[r.Name] = v
			})
		}
		return results
	})
}

// in returns the same database for a subtest.
func (e *Env) in(t *testing.T) *Env {
	sub := *e
	sub.T = t
	return &sub
}

// same holds the results of many callers to the first one's.
type same struct {
	mu    sync.Mutex // guards first
	first any
}

// check compares a result. Then it writes over the bytes in it, which are its
// caller's own: that would show in somebody's result if they were not.
func (s *same) check(v any) error {
	s.mu.Lock()
	if s.first == nil {
		s.first = v
		s.mu.Unlock()
		return nil
	}
	first := s.first
	s.mu.Unlock()
	if !reflect.DeepEqual(v, first) {
		return fmt.Errorf("one caller has\n%s\nanother\n%s", dump(v), dump(first))
	}
	scribble(reflect.ValueOf(v))
	return nil
}

// scribble inverts all byte slices that v leads to.
func scribble(v reflect.Value) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			scribble(v.Elem())
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				scribble(v.Field(i))
			}
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			scribble(v.MapIndex(key))
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			for i, b := range v.Bytes() {
				v.Bytes()[i] = ^b
			}
			return
		}
		for i := range v.Len() {
			scribble(v.Index(i))
		}
	}
}

// LeavesAlone fails unless a caller that gives up a read gets its own
// cancellation, at once, and those who wait with it get their rows.
func (e *Env) LeavesAlone(db *sql.DB, read func(ctx context.Context) error, table string) {
	e.Helper()
	e.loaded(db)
	if err := read(e.Context()); err != nil {
		e.Fatal(err)
	}
	g := e.shut(table)
	var others crowd
	defer others.wg.Wait()
	defer g.open()

	ctx, cancel := context.WithCancel(e.Context())
	defer cancel()
	mark := queriesOf(flightpg.ReadStats(db))
	gone := make(chan error, 1)
	go func() { gone <- read(ctx) }()
	e.until("the first caller waits", func() bool { return e.blocked() == 1 })
	others.send(e, Callers, read)
	others.n++ // who waits for the gate: the first one too
	e.gather(db, &others, mark, others.n)
	others.n--
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		e.Errorf("the caller that left has %v; want %v", err, context.Canceled)
	}
	e.gather(db, &others, mark, others.n)
	g.open()
}
