package flight

import (
	"sync"
	"time"
	"unsafe"
)

// keeping is a flight that is kept in its window.
type keeping[V Value] struct {
	f *Flight[V]

	// Guarded by f.s.mu.
	older, newer *keeping[V]
	expires      time.Time
	given        bool // to a caller, since MakeRoom has last come by

	bytes int64 // counted for it, but its text
}

// What a kept result takes beside its value, its key and what is of a known size:
// the channel of its waiters, and its place in the map, in bytes.
const keptSize = 96 + 48

// textSize is what it takes to count a text.
const textSize = 64

// keepable counts a flight that has a value, and returns nil if it must not be kept,
// or if there is no room. It still has its key. What it returns is either kept, or
// given back with uncount.
func (f *Flight[V]) keepable(v V) *keeping[V] {
	t, sl := f.t, f.slot
	size, ok := v.Keep()
	if !ok {
		return nil
	}
	k := &keeping[V]{f: f}
	if t.opts.Take == nil {
		return k
	}
	own := unsafe.Sizeof(*sl.home) + unsafe.Sizeof(*k)
	if f != &sl.home.flight {
		own += unsafe.Sizeof(*f)
	}
	size += int64(own) + keptSize + int64(cap(sl.args))
	t.opts.Give(-t.texts.use(sl.text)) // in any case, so that each use gives back what it took
	if !t.opts.Take(size) {
		t.opts.Give(t.texts.unuse(sl.text))
		return nil
	}
	k.bytes = size
	return k
}

// uncount gives back what keepable took.
func (k *keeping[V]) uncount(t *Table[V], text string) {
	if t.opts.Take != nil {
		t.opts.Give(k.bytes + t.texts.unuse(text))
	}
}

// drop gives up a flight that is not kept any more. Nobody uses its entry again.
func (k *keeping[V]) drop() {
	k.f.val.Drop()
	k.uncount(k.f.t, k.f.slot.text)
}

// keepLocked keeps a flight, which is its key's only one.
func (s *shard[V]) keepLocked(k *keeping[V]) {
	f := k.f
	window := f.t.opts.Window
	f.slot.kept, f.keep = f, k
	f.t.kept.Add(1)
	k.expires = time.Now().Add(window)
	k.older = s.newest
	if s.newest != nil {
		s.newest.newer = k
	} else {
		s.oldest = k
	}
	s.newest = k
	switch {
	case s.expiring:
	case s.expiry == nil:
		s.expiry = time.AfterFunc(window, s.expire)
	default:
		s.expiry.Reset(window)
	}
	s.expiring = true
}

// unkeepLocked takes a kept flight off. The caller then drops it, without the lock.
func (s *shard[V]) unkeepLocked(k *keeping[V]) {
	f := k.f
	f.slot.kept, f.keep = nil, nil
	f.t.kept.Add(-1)
	if s.hand == k {
		s.hand = k.newer
	}
	if k.older != nil {
		k.older.newer = k.newer
	} else {
		s.oldest = k.newer
	}
	if k.newer != nil {
		k.newer.older = k.older
	} else {
		s.newest = k.older
	}
	k.older, k.newer = nil, nil
}

// dropBatch is how many kept flights are taken off under a lock at a time.
const dropBatch = 32

// expire ends the windows that are over. One timer for all of a shard: of windows
// that end early nothing stays behind, as their own timers would.
func (s *shard[V]) expire() {
	s.dropWhile(func(k *keeping[V], now time.Time) bool { return !now.Before(k.expires) }, true)
}

// dropWhile drops kept flights from the oldest on. The timer, if it is the caller,
// runs again for those that stay.
func (s *shard[V]) dropWhile(over func(k *keeping[V], now time.Time) bool, timer bool) {
	for {
		var dropped [dropBatch]*keeping[V]
		n := 0
		s.mu.Lock()
		now := time.Now()
		for n < dropBatch && s.oldest != nil && over(s.oldest, now) {
			k := s.oldest
			s.unkeepLocked(k)
			s.dropIfEmptyLocked(k.f.slot)
			dropped[n] = k
			n++
		}
		switch {
		case n == dropBatch || s.expiry == nil:
		case s.oldest == nil:
			s.expiring = false
			s.expiry.Stop() // it holds the table
		case timer:
			s.expiry.Reset(s.oldest.expires.Sub(now))
		}
		s.mu.Unlock()
		for _, k := range dropped[:n] {
			k.drop()
		}
		if n < dropBatch {
			return
		}
	}
}

// Clear drops every kept result. Flights under way are not touched.
func (t *Table[V]) Clear() {
	for i := range t.shards {
		t.shards[i].dropWhile(func(*keeping[V], time.Time) bool { return true }, false)
	}
}

// chances is how many kept results that somebody was given lately are passed over
// at a time, so that the lock is not held for long.
const chances = 8

// MakeRoom drops a kept result, one of the oldest, and of those one that nobody was
// given lately. It reports false if nothing is kept.
func (t *Table[V]) MakeRoom() bool {
	if t.kept.Load() == 0 {
		return false
	}
	first := t.hand.Add(1)
	for i := range uint32(shardCount) {
		s := &t.shards[(first+i)%shardCount]
		s.mu.Lock()
		k := s.leastLocked()
		if k != nil {
			s.unkeepLocked(k)
			s.dropIfEmptyLocked(k.f.slot)
		}
		s.mu.Unlock()
		if k != nil {
			k.drop()
			return true
		}
	}
	return false
}

// leastLocked returns what to drop first, nil if nothing is kept: the clock of page
// replacement. It is the hand's.
func (s *shard[V]) leastLocked() *keeping[V] {
	for range chances {
		if s.hand == nil {
			s.hand = s.oldest
		}
		if s.hand == nil || !s.hand.given {
			return s.hand
		}
		s.hand.given = false
		s.hand = s.hand.newer
	}
	if s.hand == nil {
		s.hand = s.oldest
	}
	return s.hand
}

// texts are those of kept results' keys, by identity: most keys have one that
// others have too, in the same memory, which counts once.
type texts struct {
	mu   sync.Mutex
	used map[place]int
	most int // since the map was made
}

// place is where a text is.
type place struct {
	first *byte
	n     int
}

// use returns what the text takes that nobody has used yet.
func (t *texts) use(text string) (size int64) {
	p := place{unsafe.StringData(text), len(text)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.used == nil {
		t.used = make(map[place]int)
	}
	n := t.used[p]
	t.used[p] = n + 1
	t.most = max(t.most, len(t.used))
	if n > 0 {
		return 0
	}
	return sizeOfText(text)
}

// unuse returns what use has for the text, if nobody uses it any more.
func (t *texts) unuse(text string) (size int64) {
	p := place{unsafe.StringData(text), len(text)}
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.used[p] - 1; n > 0 {
		t.used[p] = n
		return 0
	}
	delete(t.used, p)
	if len(t.used) == 0 && t.most > mapKept {
		t.used, t.most = nil, 0 // a map never gives memory back
	}
	return sizeOfText(text)
}

// sizeOfText allows for the allocator, which rounds up by about an eighth.
func sizeOfText(text string) int64 { return textSize + int64(len(text)+len(text)/8) }
