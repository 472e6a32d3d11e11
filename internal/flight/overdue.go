package flight

import "time"

// Watched is a Runner that can tell how its execution goes. A connection can cease to
// carry anything without a word; then its flight never lands, and as long as callers come
// before those who wait have left, it is never abandoned either. So a flight whose answer
// should have come long ago is overdue: it takes no new followers and does not count
// towards the width any more. Those who wait for it go on to. What says so:
//
//   - Whoever waits for a flight of its key leaves at his own deadline, and not a byte has
//     come for it ([silentLeast]).
//   - A caller comes when it has taken much longer than its text does ([slowLeast]).
//   - Everybody has left, and its end does not come ([abandonPatience]).
//
// A slow execution is no dead one. Its text is known to take long, or a part of its answer
// has come; one that takes the place of an overdue one asks for that, see [Flight.Careful].
//
// The methods are called with the table's locks held: they must be quick, and not call it.
type Watched interface {
	// Silent reports whether not a byte has come since the last dispatch, as far as is
	// known.
	Silent() bool
	// Usual is how long an execution of the text takes, as it was told to Took last: 0 if
	// nothing is known.
	Usual() time.Duration
	// Took is called when the flight has landed with a value, with the time since its
	// dispatch.
	Took(time.Duration)
}

// When a flight is overdue.
const (
	silentLeast = 250 * time.Millisecond // and twice what is usual,
	silentMost  = 30 * time.Second       // at most: without a byte, and a waiter's deadline has passed

	slowLeast = time.Second      // and slowTimes what is usual,
	slowLong  = 30 * time.Second // where something has come, or nothing is known of the text,
	slowTimes = 8
	slowMost  = 5 * time.Minute // at most; twice as long for each of the key that is overdue already: for who comes then

	// A request to cancel has come back by then, from most servers.
	abandonPatience = 100 * time.Millisecond

	// maxOverdue bounds the flights of a key that are overdue at a time: there may be
	// callers without a deadline on each of them.
	maxOverdue = 4
)

var processStart = time.Now()

// clock tells the time, by half the clocks that time.Now looks at.
func clock() time.Duration { return time.Since(processStart) }

// Careful reports whether the flight has taken the place of one that is overdue: it should
// be executed on a connection that is known to answer. It is for the Runner.
func (f *Flight[V]) Careful() bool { return f.careful }

// aftermath is what is left to be done without the lock.
type aftermath[V Value] struct {
	silence time.Duration // not 0: a flight is overdue that was dispatched so long ago
	next    *Flight[V]    // may fly now
}

func (a *aftermath[V]) do(t *Table[V]) {
	if a.silence > 0 && t.opts.Overdue != nil {
		t.opts.Overdue(a.silence)
	}
	if a.next != nil {
		go a.next.fly()
	}
}

// overdueLocked gives a flight up that was dispatched so long ago, but for those who wait
// for it, if there may be one more.
func (f *Flight[V]) overdueLocked(ago time.Duration, after *aftermath[V]) {
	s, sl := f.s, f.slot
	if sl.overdue >= maxOverdue {
		return
	}
	f.overdue = true
	sl.running--
	sl.overdue++
	s.stats.Overdue++
	if sl.newest == f {
		sl.newest = nil
	}
	after.silence = max(after.silence, ago)
	if next := sl.pending; next != nil && sl.running < f.t.opts.Width {
		sl.pending = nil
		next.clearLocked()
		if next.run != nil { // else its leader is about to call Launch
			after.next = next
		}
	}
}

// watchedLocked returns what is known of a flight if it can become overdue.
func (f *Flight[V]) watchedLocked() Watched {
	if f.state != dispatched || f.overdue {
		return nil
	}
	return f.watched
}

// slowLocked looks for flights that take longer than they ever should.
func (sl *slot[V]) slowLocked(after *aftermath[V]) {
	for f := sl.out; f != nil; f = f.under {
		w := f.watchedLocked()
		if w == nil {
			continue
		}
		ago := clock() - f.sent
		if ago <= slowLeast {
			continue
		}
		usual, least := w.Usual(), slowLong
		if usual > 0 && w.Silent() {
			least = slowLeast
		}
		if ago > min(max(slowTimes*usual, least), slowMost)<<sl.overdue {
			f.overdueLocked(ago, after)
		}
	}
}

// silentLocked looks for flights from which not a byte has come, when a waiter's deadline
// has passed.
func (sl *slot[V]) silentLocked(after *aftermath[V]) {
	for f := sl.out; f != nil; f = f.under {
		w := f.watchedLocked()
		if w == nil {
			continue
		}
		if ago := clock() - f.sent; ago >= max(min(2*w.Usual(), silentMost), silentLeast) && w.Silent() {
			f.overdueLocked(ago, after)
		}
	}
}

// abandoned sees to it that an abandoned flight does not count for long.
func (f *Flight[V]) abandoned() {
	time.AfterFunc(abandonPatience, func() {
		var after aftermath[V]
		f.s.mu.Lock()
		if f.watchedLocked() != nil {
			f.overdueLocked(abandonPatience, &after)
		}
		f.s.mu.Unlock()
		after.silence = 0 // its query may take its time to end
		after.do(f.t)
	})
}

// landedLocked takes a flight off those that are out, and learns from it.
func (f *Flight[V]) landedLocked(failed bool) {
	sl := f.slot
	if f.overdue {
		sl.overdue--
	} else {
		sl.running--
	}
	for p := &sl.out; *p != nil; p = &(*p).under {
		if *p == f {
			*p = f.under
			break
		}
	}
	if w := f.watched; w != nil && !failed && f.sent != 0 {
		w.Took(clock() - f.sent)
	}
	f.watched, f.under = nil, nil
}
