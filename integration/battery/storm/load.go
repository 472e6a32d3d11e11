package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/flightpg/flightpg/internal/battery"
)

// tick is the time between two moments at which callers begin, half of them at each:
// many at once, as they do behind a queue, so that reads find connections busy.
const tick = 80 * time.Millisecond

// caller asks one thing after the other.
type caller struct {
	n     int
	s     *side
	doing atomic.Pointer[call]
}

// call is a read that has not returned.
type call struct {
	text     *text
	key      int
	begin    time.Duration // since the storm's
	deadline time.Duration // after begin; 0: none
}

// load is all callers of a side.
type load struct {
	callers []*caller
	running sync.WaitGroup
}

// callers begin on both sides; each has a twin on the other one, which asks the same
// in the same order.
func (st *storm) load(ctx context.Context, s *side) *load {
	l := new(load)
	for n := range st.callers {
		c := &caller{n: n, s: s}
		l.callers = append(l.callers, c)
		l.running.Go(func() { c.run(ctx, st) })
	}
	return l
}

func (c *caller) run(ctx context.Context, st *storm) {
	rng := battery.Rand(st.seed, c.n)
	for {
		tick := time.Duration(st.tick.Load())
		wait := tick - st.now()%tick + tick*time.Duration(rng.IntN(2))
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		t, k := st.asked[rng.IntN(len(st.asked))], rng.IntN(keys)
		// Callers without a deadline have a context that cannot end, or one that could.
		callCtx, cancel := context.Background(), context.CancelFunc(func() {})
		deadline := time.Duration(0)
		switch rng.IntN(4) {
		case 0, 1:
			deadline = 250*time.Millisecond + time.Duration(rng.Int64N(int64(1750*time.Millisecond)))
			callCtx, cancel = context.WithTimeout(callCtx, deadline)
		case 2:
			callCtx, cancel = context.WithCancel(callCtx)
		}
		begin := st.now()
		c.doing.Store(&call{t, k, begin, deadline})
		wrong, err := c.safely(callCtx, t, k)
		if st.lie != nil && c.s == st.sides[flight] {
			wrong, err = st.lie(t.name, wrong, err)
		}
		end := st.now()
		left := gone(callCtx)
		cancel()
		c.doing.Store(nil)
		if errors.Is(err, sql.ErrNoRows) {
			wrong, err = "no row", nil
		}
		o := outcome{begin: begin, end: end, deadline: deadline, wrong: wrong}
		if err != nil {
			o.kind = kindOf(err, left)
		}
		if wrong != "" || o.kind != "" {
			o.what = fmt.Sprintf("%s, key %d", t.name, k)
			if err != nil {
				o.what += ": " + err.Error()
			}
		}
		c.s.book.note(o, st.name())
	}
}

// gone reports whether a caller's deadline has passed. The time tells before the
// context knows.
func gone(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ok && !time.Now().Before(deadline)
}

func (c *caller) safely(ctx context.Context, t *text, k int) (wrong string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v\n%s", errPanic, p, debug.Stack())
		}
	}()
	return t.ask(ctx, c.s, t.query, k)
}

var errPanic = errors.New("storm: panic")
