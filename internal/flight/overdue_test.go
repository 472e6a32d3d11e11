package flight

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// hanging is a Watched Runner that ends when it is told to, or some time after everybody
// has left.
type hanging struct {
	end     chan struct{} // closed: it yields box
	box     *box
	heard   atomic.Bool
	usual   time.Duration
	linger  time.Duration // after everybody has left
	careful atomic.Bool   // what the flight said
	took    atomic.Int64
}

func (r *hanging) Silent() bool         { return !r.heard.Load() }
func (r *hanging) Usual() time.Duration { return r.usual }
func (r *hanging) Took(d time.Duration) { r.took.Store(int64(d)) }

func (r *hanging) Run(ctx context.Context, f *Flight[*box]) (*box, error) {
	r.careful.Store(f.Careful())
	if !f.Dispatch() {
		return nil, ErrAbandoned
	}
	select {
	case <-r.end:
		return r.box, nil
	case <-ctx.Done():
		time.Sleep(r.linger) // a request to cancel takes its time
		return nil, context.Cause(ctx)
	}
}

// hung is a table over runs that hang, until one of them is told to end.
type hung struct {
	t     *testing.T
	table *Table[*box]
	runs  []*hanging // one for each flight
	usual time.Duration
	heard bool // whether something comes from each
	said  []time.Duration
}

func newHung(t *testing.T, opts Options) *hung {
	h := &hung{t: t}
	opts.Overdue = func(ago time.Duration) { h.said = append(h.said, ago) }
	h.table = newTable(opts)
	return h
}

// call enters a caller who waits for so long; 0: without a deadline. It reports whether he
// leads a flight.
func (h *hung) call(patience time.Duration, rule Rule) (leads bool, result chan error) {
	ctx, stop := context.WithCancel(context.Background())
	if patience > 0 {
		stop()
		ctx, stop = context.WithTimeout(context.Background(), patience)
	}
	f, leads := h.table.Enter(Key{Text: "q"}, rule)
	if leads {
		r := &hanging{end: make(chan struct{}), box: new(box), usual: h.usual, linger: time.Second}
		r.heard.Store(h.heard)
		h.runs = append(h.runs, r)
		f.Launch(ctx, r)
	}
	result = make(chan error, 1)
	go func() {
		defer stop()
		v, err := f.Wait(ctx)
		if err == nil {
			v.Drop()
		}
		result <- err
	}()
	synctest.Wait()
	return leads, result
}

// finish ends all runs, and what is left.
func (h *hung) finish() {
	h.t.Helper()
	for i := 0; i < len(h.runs); i++ {
		close(h.runs[i].end)
		synctest.Wait()
	}
	time.Sleep(2 * time.Second)
	synctest.Wait()
	wantEmpty(h.t, h.table)
	if n := h.table.shards[h.table.hash(h.table.seed, Key{Text: "q"})%shardCount].slots; len(n) > 0 {
		h.t.Errorf("%d keys are left", len(n))
	}
}

// TestOverdue is about flights whose answer does not come.
func TestOverdue(t *testing.T) {
	for name, test := range map[string]func(*testing.T){
		// Callers come all the time, each with half a second: today's flight would never
		// be abandoned.
		"DeadlineAndSilence": func(t *testing.T) {
			h := newHung(t, Options{Width: 1})
			h.usual = 1
			leads, _ := h.call(500*time.Millisecond, Fenced)
			for range 24 {
				time.Sleep(20 * time.Millisecond)
				if again, _ := h.call(500*time.Millisecond, Fenced); !leads || again {
					t.Fatal("a flight is given up before anybody's deadline")
				}
			}
			time.Sleep(30 * time.Millisecond) // the leader's deadline has passed
			if leads, _ := h.call(500*time.Millisecond, Fenced); !leads || !h.runs[1].careful.Load() || h.runs[0].careful.Load() {
				t.Fatal("the caller after the deadline follows what carries nothing, or is not careful")
			}
			if len(h.said) != 1 || h.said[0] != 500*time.Millisecond {
				t.Errorf("the Runner was told of %v", h.said)
			}
			_, last := h.call(500*time.Millisecond, Fenced)
			close(h.runs[1].end)
			if err := <-last; err != nil || h.runs[1].took.Load() != 0 {
				t.Errorf("the second flight: %v, in %d", err, h.runs[1].took.Load())
			}
			h.runs = h.runs[:1]
			h.finish()
		},
		// It is slow, and lives.
		"DeadlineAndHeard": func(t *testing.T) {
			h := newHung(t, Options{Width: 1})
			h.heard = true
			h.call(500*time.Millisecond, Fenced)
			for range 200 { // for 29 s: then it is no longer known
				time.Sleep(145 * time.Millisecond)
				if leads, _ := h.call(500*time.Millisecond, Fenced); leads {
					t.Fatalf("a slow flight is given up")
				}
			}
			h.finish()
		},
		// Its text is known to be slow.
		"DeadlineAndUsual": func(t *testing.T) {
			h := newHung(t, Options{Width: 1})
			h.usual = 10 * time.Second
			h.call(500*time.Millisecond, Fenced)
			for range 190 { // for 19 s, twice as long is too long
				time.Sleep(100 * time.Millisecond)
				if leads, _ := h.call(500*time.Millisecond, Fenced); leads {
					t.Fatalf("a slow flight is given up")
				}
			}
			h.finish()
		},
		"ShortDeadlines": func(t *testing.T) {
			h := newHung(t, Options{Width: 1})
			h.usual = 1
			h.call(0, Fenced)
			for range 24 {
				time.Sleep(10 * time.Millisecond)
				if leads, _ := h.call(5*time.Millisecond, Fenced); leads {
					t.Fatal("a flight of less than 250 ms is given up")
				}
			}
			h.finish()
		},
		// Nobody has a deadline. Each that hangs on has callers, so they are bounded.
		"MuchLongerThanUsual": func(t *testing.T) {
			h := newHung(t, Options{Width: 1})
			h.usual = 1
			led := time.Now()
			for range 6000 {
				if leads, _ := h.call(0, Fenced); leads && len(h.runs) > 1 {
					if took, want := time.Since(led), time.Second<<(len(h.runs)-2); took < want || took > want+50*time.Millisecond {
						t.Errorf("flight %d is given up after %v; want %v", len(h.runs)-1, took, want)
					}
					led = time.Now()
				}
				time.Sleep(10 * time.Millisecond)
			}
			if len(h.runs) != 1+maxOverdue {
				t.Errorf("%d flights; want %d", len(h.runs), 1+maxOverdue)
			}
			h.finish()
		},
		// A fast statement waits for a lock, say.
		"MuchLongerThanUsualAndHeard": func(t *testing.T) {
			h := newHung(t, Options{Width: 1})
			h.usual, h.heard = 1, true
			h.call(0, Fenced)
			for range 30 {
				time.Sleep(999 * time.Millisecond)
				if leads, _ := h.call(500*time.Millisecond, Fenced); leads {
					t.Fatal("given up though it lives")
				}
			}
			h.finish()
		},
		"NothingIsKnown": func(t *testing.T) {
			h := newHung(t, Options{Width: 1})
			h.call(0, Fenced)
			time.Sleep(slowLong)
			if leads, _ := h.call(0, Fenced); leads {
				t.Error("given up too early")
			}
			time.Sleep(time.Millisecond)
			if leads, _ := h.call(0, Fenced); !leads {
				t.Error("not given up")
			}
			h.finish()
		},
		// Strict callers wait behind flights that they may not join.
		"Pending": func(t *testing.T) {
			h := newHung(t, Options{Width: 2})
			h.usual = 1
			_, first := h.call(0, Strict)
			_, second := h.call(0, Strict)
			_, late := h.call(300*time.Millisecond, Strict)
			if len(h.runs) != 3 {
				t.Fatalf("%d flights", len(h.runs))
			}
			_, next := h.call(0, Strict)
			if err := <-late; !errors.Is(err, context.DeadlineExceeded) {
				t.Fatal(err)
			}
			synctest.Wait()
			close(h.runs[2].end)
			if err := <-next; err != nil {
				t.Error(err)
			}
			h.runs = h.runs[:2]
			h.finish()
			if err := errors.Join(<-first, <-second); err != nil {
				t.Error(err)
			}
		},
		// Everybody has left, and it does not end: it counts for a moment only.
		"Abandoned": func(t *testing.T) {
			h := newHung(t, Options{Width: 1})
			h.heard = true
			h.call(10*time.Millisecond, Fenced)
			time.Sleep(20 * time.Millisecond)
			h.call(0, Fenced)
			if s := h.table.Stats(); s.Abandoned != 1 || s.Flying != 2 || s.Overdue != 0 {
				t.Fatalf("%+v", s)
			}
			if h.runs[1].careful.Load() {
				t.Fatal("it runs beside the first")
			}
			time.Sleep(abandonPatience)
			synctest.Wait()
			if s := h.table.Stats(); s.Overdue != 1 || !h.runs[1].careful.Load() {
				t.Errorf("%+v; want that the next one runs", s)
			}
			if len(h.said) > 0 {
				t.Errorf("what lies idle is closed for a query that takes its time to end: %v", h.said)
			}
			h.finish()
		},
	} {
		t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
	}
}
