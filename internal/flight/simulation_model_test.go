package flight

import "time"

// model is what a table must be like: the rules of design §4 and §5 once more, as
// plainly as they can be put. It is told of every step and says what that must
// lead to.
type model struct {
	width  int
	window time.Duration
	full   bool // there is no memory to keep anything

	raises uint64
	holds  int
	stats  Stats
	keys   []*modelKey
}

type modelKey struct {
	running               int
	newest, pending, kept *modelFlight
}

type modelFlight struct {
	id      int
	key     int
	leader  *caller
	waiters int // who entered and has neither left nor seen it land

	cleared, launched, dispatched, abandoned, landed bool
	followed                                         bool // by anybody, ever

	epoch   uint64 // at dispatch
	expires time.Time
	run     *run // once it is launched

	// Of one that has landed with a value.
	value  *cargo
	shares int // that are out

	err   error // likewise, without a value
	panic any
}

// mayFollow is the promise to every follower, whatever the table is like: it returns
// the invariant that is violated if a caller that began at that epoch follows the
// flight, or "".
func (m *model) mayFollow(f *modelFlight, key int, rule Rule, epoch uint64) string {
	switch {
	case f.key != key:
		return keysApart
	case f.abandoned:
		return notAbandoned
	case f.landed && m.keys[key].kept != f:
		return notLanded
	case f.landed && !time.Now().Before(f.expires):
		return windowsEnd
	case !m.allows(f, rule, epoch):
		return rulesHold
	}
	return ""
}

func (m *model) allows(f *modelFlight, rule Rule, epoch uint64) bool {
	return !f.dispatched && !f.landed || rule == Join || rule == Fenced && epoch <= f.epoch
}

// enter says which flight a caller must get: nil for a new one.
func (m *model) enter(key int, rule Rule, epoch uint64) *modelFlight {
	k := m.keys[key]
	if f := k.kept; f != nil && m.allows(f, rule, epoch) && time.Now().Before(f.expires) {
		f.shares++
		m.stats.Joins++
		return f
	}
	if f := k.newest; f != nil {
		if m.allows(f, rule, epoch) {
			m.follow(f)
			return f
		}
		m.stats.Fenced++
	}
	if k.pending != nil {
		m.follow(k.pending)
	}
	return k.pending
}

func (m *model) follow(f *modelFlight) {
	f.waiters++
	m.stats.Joins++
	m.stats.Waiting++
}

// lead adds a new flight.
func (m *model) lead(f *modelFlight) {
	f.waiters = 1
	m.stats.Flights++
	m.stats.Flying++
	m.stats.Waiting++
	k := m.keys[f.key]
	if k.running < m.width {
		m.clear(f)
	} else {
		k.pending = f
	}
}

func (m *model) clear(f *modelFlight) {
	k := m.keys[f.key]
	f.cleared = true
	k.running++
	k.newest = f
}

// leave takes a waiter off a flight that has not landed.
func (m *model) leave(f *modelFlight) {
	f.waiters--
	m.stats.Waiting--
	if f.waiters > 0 {
		return
	}
	f.abandoned = true
	m.stats.Abandoned++
	k := m.keys[f.key]
	if k.pending == f {
		k.pending = nil
		m.stats.Flying--
	}
	if k.newest == f {
		k.newest = nil
	}
}

// land ends a flight as its run has ended.
func (m *model) land(f *modelFlight) {
	k := m.keys[f.key]
	f.landed = true
	f.value, f.err, f.panic = f.run.value, f.run.err, f.run.panic
	k.running--
	m.stats.Flying--
	m.stats.Waiting -= int64(f.waiters)
	if f.value != nil {
		f.shares = f.waiters
	}
	if k.newest == f {
		k.newest = nil
		if m.window > 0 && !m.full && f.value != nil && !f.value.brief && f.waiters > 0 {
			m.unkeep(k)
			k.kept = f
			f.expires = time.Now().Add(m.window)
			f.shares++
		}
	}
	if f.panic != nil || f.err == ErrGoexit {
		m.stats.Panics++
	}
	if p := k.pending; p != nil && k.running < m.width {
		k.pending = nil
		m.clear(p)
	}
}

func (m *model) unkeep(k *modelKey) {
	if k.kept != nil {
		k.kept.shares--
		k.kept = nil
	}
}

// forget closes the key's dispatched flight to followers.
func (m *model) forget(key int) {
	k := m.keys[key]
	m.unkeep(k)
	if k.newest != nil && k.newest.dispatched {
		k.newest = nil
	}
}

// tick ends the windows that are over.
func (m *model) tick() {
	for _, k := range m.keys {
		if k.kept != nil && !time.Now().Before(k.kept.expires) {
			m.unkeep(k)
		}
	}
}

// used reports whether something is going on with the key, or kept of it.
func (k *modelKey) used() bool {
	return k.running > 0 || k.newest != nil || k.pending != nil || k.kept != nil
}
