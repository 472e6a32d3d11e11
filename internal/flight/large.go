package flight

import "sync"

// Large is what of a key is too long to be in it, by reference: it belongs to the
// caller who enters with it, who calls Done before his call returns. Most keys meet no
// other with the same Args, and then nobody ever looks at what is in Large; else what
// Digest makes of both decides whether they are the same. Args should tell most apart.
type Large struct {
	// Digest makes of Parts what no two have the same that differ. It must not call the
	// table.
	Digest func(parts [][]byte) string

	mu    sync.Mutex // guards what follows; it is taken without the table's locks
	Parts [][]byte   // nil when Done
	sum   string     // the digest, once somebody has asked for it

	shard   *sync.Mutex // of the key that has it, or had; set once, by who enters
	slotted bool        // one has it; guarded by *shard
	known   string      // sum, for who has the lock; guarded by it

	// Met is set for who enters where another key had the same Args, and other Parts.
	Met bool
}

// digest returns what Parts make. It reports false if that cannot be known any more: then
// their flight has landed.
func (l *Large) digest() (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sum == "" && l.Parts != nil {
		l.sum = l.Digest(l.Parts)
	}
	return l.sum, l.sum != ""
}

// Done ends the use of Parts. Where the flight goes on without its caller, others may
// still look for it: its digest stays.
func (l *Large) Done() {
	if l.shard != nil {
		l.shard.Lock()
		slotted := l.slotted
		l.shard.Unlock()
		if slotted {
			l.digest()
		}
	}
	l.mu.Lock()
	l.Parts = nil
	l.mu.Unlock()
}

// comparison is what is known of whether two keys are the same.
type comparison uint8

const (
	different comparison = iota
	same
	unknown // until decide
)

// compareLocked compares what is not in Args. The shard's lock is held.
func (l *Large) compareLocked(other *Large) comparison {
	switch {
	case l == nil || other == nil:
		if l == other {
			return same
		}
		return different
	case l.known == "" || other.known == "":
		return unknown
	case l.known == other.known:
		return same
	}
	return different
}

// decide finds out what compareLocked must know of two. The shard's lock, which is held
// when it is called and when it returns, is not held meanwhile.
func (s *shard[V]) decide(theirs, own *Large) {
	s.mu.Unlock()
	a, there := theirs.digest()
	b, _ := own.digest()
	s.mu.Lock()
	own.known = b
	switch {
	case there:
		theirs.known = a
		own.Met = own.Met || a != b
	case theirs.slotted: // cannot be, see Done; nobody asks again
		theirs.known = "?"
	}
}
