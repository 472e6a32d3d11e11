package pipeline

import (
	"context"
	"math"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/jackc/pgx/v5/pgconn"
)

// Pool runs calls on the connections that it opens as it needs them. It is safe
// for concurrent use.
type Pool struct {
	cfg       Config
	ctx       context.Context // ends when the pool is closed
	stop      context.CancelFunc
	odd       atomic.Pointer[Oddities] // of any connection that there has been
	shapes    Shapes
	dropped   dropped
	elsewhere atomic.Bool // the server cannot be served here
	alone     atomic.Bool // it does not let timeouts be set: no groups

	way    atomic.Int64         // to the server and back: the least that was measured, in nanoseconds, or 0
	intake atomic.Pointer[Call] // submitted while others had mu, the last one first; linked by next

	answers atomic.Uint64 // to calls, all that there were

	held atomic.Bool // whoever has mu looks at intake before he lets go of it, or right after

	mu sync.Mutex // locked by lock or tryLock, unlocked by unlock; guards what follows, and what says so in Call and conn; no I/O and nothing of a Read's while it is held

	closed     bool
	conns      map[*conn]struct{}   // all that are open
	free       []*conn              // the last one was used last
	queue      queue                // calls that wait
	busy       int                  // connections in use, late ones not counted
	solo       int                  // of these, with a call that may not have company
	sent       int                  // calls under way on any
	live       int                  // connections whose answers are live rows: counted nowhere else
	pace       pace                 // how many may be busy
	urgent     int                  // how many more, once each: see tick
	tickCount  uint64               // answers, when the next tick was set
	releasedAt time.Time            // when a connection was given back last
	blocked    map[uint32]time.Time // relations that somebody had locked, until they are taken to be free again
	dials      map[*dial]struct{}   // connections being opened
	dialing    int                  // those of them that are not late
	dialTime   time.Duration        // that the last one took
	nextDial   time.Time            // while some are late
	dialPause  time.Duration        // after that
	fullUntil  time.Time            // the server takes no more connections, as far as is known
	groupTime  median               // that a group takes
	callTime   median               // of that for each of its calls, without the way
	callLeast  least                // likewise, the least
	spare      int                  // how many calls may be executed once more than they must, times moveCost
	draining   bool
	ticking    bool
	tickAt     time.Time
	ticker     *time.Timer
	aging      bool
	agesAt     time.Time
	ager       *time.Timer

	stats counters
}

type counters struct {
	calls, groups, grouped, skipped, moved, parted, strays, stale, lost, handed, cancels, tainted, dials atomic.Uint64
}

// New makes a pool. It opens no connection.
func New(cfg Config) *Pool {
	p := &Pool{cfg: cfg.withDefaults(), conns: make(map[*conn]struct{}), dials: make(map[*dial]struct{})}
	p.pace = p.cfg.pace()
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// queue is a list of calls, first come, first served.
type queue struct {
	first, last *Call
	n           int
}

func (q *queue) push(c *Call) {
	c.queued, c.prev, c.next = true, q.last, nil
	if q.last != nil {
		q.last.next = c
	} else {
		q.first = c
	}
	q.last = c
	q.n++
}

// pushFront is for calls that have waited before.
func (q *queue) pushFront(c *Call) {
	c.queued, c.prev, c.next = true, nil, q.first
	if q.first != nil {
		q.first.prev = c
	} else {
		q.last = c
	}
	q.first = c
	q.n++
}

func (q *queue) remove(c *Call) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		q.first = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	} else {
		q.last = c.prev
	}
	c.queued, c.prev, c.next = false, nil, nil
	q.n--
}

// Limits of a group.
const (
	// writeBytes bounds what is written without reading at the same time, and so what
	// a group sends: an idle connection's send buffer takes it at once, even when the
	// network stands still.
	writeBytes = 8 << 10
	// lookahead is how many calls that must run alone are passed by to fill a
	// group.
	lookahead = 32
)

// Times of what waits.
const (
	quietTime = 500 * time.Microsecond // and a round trip: if nothing is answered meanwhile, what waits is sent
	tickSlack = time.Millisecond       // by so much is a timer late where nothing else goes on: Go's poller counts in milliseconds
	stuckTime = 2 * time.Millisecond   // after which an answer is late, and its connection does not count; at least
	usualMost = 5 * stuckTime / 4      // what counts as usual where nearly everything takes longer
	// No connection is tried for a while after the server was full, or refused
	// one for another reason, unless there is none.
	fullTime    = time.Second
	refusedTime = 50 * time.Millisecond
)

// Calls behind one that takes long may be executed again elsewhere, if that is no
// more than one in moveCost of those that are executed. Where everything takes long
// that helps nobody: it would only be more of it.
const (
	moveCost = 8
	maxSpare = 64 // that are saved up
)

// median follows the median of what it learns: unlike an average it does not change
// when one in ten takes a hundred times as long.
type median struct{ typical time.Duration }

func (m *median) learn(d time.Duration) {
	switch {
	case m.typical == 0: // the first may be one in a hundred
		m.typical = min(max(d, 1), stuckTime/4)
	case d > m.typical:
		m.typical = min(m.typical+max(m.typical/8, 1), usualMost)
	default:
		m.typical -= m.typical / 9
	}
}

// least follows the least of what it learns, of the last hundreds.
type least struct {
	now, last time.Duration
	n         int
}

const leastMemory = 256

func (m *least) learn(d time.Duration) {
	if m.n == 0 || d < m.now {
		m.now = d
	}
	if m.n++; m.n == leastMemory {
		m.last, m.n = m.now, 0
	}
}

func (m *least) of() time.Duration {
	switch {
	case m.last == 0:
		return m.now
	case m.n == 0:
		return m.last
	}
	return min(m.now, m.last)
}

// submit sends the call if a connection is free for it, else queues it. It reports
// true if the caller has the connection's token.
func (p *Pool) submit(c *Call) bool {
	if !p.tryLock() {
		// Who has the lock takes the call in: a mutex that thousands wait for hands
		// itself from one to the next, which takes long.
		c.awaited()
		for {
			c.next = p.intake.Load()
			if p.intake.CompareAndSwap(c.next, c) {
				break
			}
		}
		p.attend()
		return false
	}
	switch {
	case p.closed:
		p.unlock()
		c.tell(ErrClosed)
		return false
	case p.elsewhere.Load():
		p.unlock()
		c.tell(ErrElsewhere)
		return false
	case p.allLiveLocked():
		p.unlock()
		c.tell(ErrElsewhere)
		return false
	case len(p.free) > 0 && p.queue.n == 0 && p.mayServeLocked():
		p.soloLocked(c)
		k := p.popFreeLocked(false)
		k.group = append(k.group[:0], c)
		c.conn = k
		p.occupyLocked(k)
		p.unlock()
		return k.sendOwn(c)
	}
	c.awaited()
	c.waits()
	p.queue.push(c)
	p.growLocked()
	p.tickLocked()
	p.unlock()
	return false
}

// waits notes since when the call has waited for a connection.
func (c *Call) waits() {
	if c.since.IsZero() {
		c.since = time.Now()
	}
}

func (p *Pool) lock() {
	p.mu.Lock()
	p.held.Store(true)
}

func (p *Pool) tryLock() bool {
	ok := p.mu.TryLock()
	if ok {
		p.held.Store(true)
	}
	return ok
}

// unlock unlocks mu. What was submitted meanwhile is taken in by whoever has locked it
// last.
func (p *Pool) unlock() {
	p.held.Store(false)
	p.mu.Unlock()
	if p.intake.Load() != nil {
		p.attend()
	}
}

// attend makes sure that what has been submitted is taken in. A TryLock that fails says
// nothing by itself: Go's memory model lets it fail for no reason, and orders nothing
// by it. But who is seen to hold the lock looks at intake after that, since all of
// these are atomic operations, which have one order.
func (p *Pool) attend() {
	for p.intake.Load() != nil && !p.held.Load() {
		if p.tryLock() {
			p.takeInLocked()
			p.held.Store(false)
			p.mu.Unlock()
			continue
		}
		runtime.Gosched() // somebody is about to hold it, or has just ceased to
	}
}

// takeInLocked queues what was submitted while others had the lock.
func (p *Pool) takeInLocked() {
	var calls *Call // in the order in which they came
	for c := p.intake.Swap(nil); c != nil; {
		next := c.next
		c.next, calls = calls, c
		c = next
	}
	if calls == nil {
		return
	}
	for c := calls; c != nil; {
		next := c.next
		c.next = nil
		switch {
		case p.closed:
			c.tell(ErrClosed)
		case p.elsewhere.Load(), p.allLiveLocked():
			c.tell(ErrElsewhere)
		default:
			c.waits()
			p.queue.push(c)
		}
		c = next
	}
	p.serveLocked()
	p.growLocked()
	p.tickLocked()
}

// mayServeLocked reports whether one more connection may be used.
func (p *Pool) mayServeLocked() bool { return p.roomLocked() > 0 }

// roomLocked is how many more connections may be used.
func (p *Pool) roomLocked() int { return max(p.allowedLocked()-p.busy, 0) + p.urgent }

// allowedLocked returns how many connections may be busy. Fewer are tried for what could
// travel together then; what goes alone in any case has what it has otherwise.
func (p *Pool) allowedLocked() int {
	allowed := p.pace.allowed()
	if most := p.pace.limit; allowed < most {
		allowed = min(allowed+p.solo, most)
	}
	return allowed
}

// takeLocked forms the next group for a connection that is free, and reports
// whether there is one.
func (p *Pool) takeLocked(k *conn) bool {
	k.group = k.group[:0]
	p.describedLocked()
	if p.queue.n == 0 || !p.mayServeLocked() {
		return false
	}
	p.groupLocked(k)
	return true
}

// describedLocked sends calls back to their drivers that wait to describe a statement
// which has been described meanwhile.
func (p *Pool) describedLocked() {
	for c := p.queue.first; c != nil && c.describe && !c.renews && c.stmt.desc.Load() != nil; c = p.queue.first {
		p.queue.remove(c)
		c.again = true
		c.wake <- struct{}{}
	}
}

// groupLocked makes a group of what waits, for a connection.
func (p *Pool) groupLocked(k *conn) {
	defer p.occupyLocked(k)
	c := p.queue.first
	p.soloLocked(c)
	p.addLocked(k, c)
	probe := c.solo && p.queue.n > 0 && p.probesLocked(c)
	if c.solo && !probe || !k.link.Grouped || k.odd(c) {
		return
	}
	bytes, passed, first := k.size(c), 0, c
	limit := p.matesLocked(c)
	switch {
	case probe:
		limit = probeCalls
	case p.callTime.typical > slowFloor:
		// Company saves little of that, and who waits behind others waits long: each
		// connection shall have as many.
		limit = min(limit, 1+p.queue.n/p.allowedLocked())
	}
	for c = p.queue.first; c != nil && len(k.group) < limit && passed < lookahead; {
		next := c.next
		p.soloLocked(c)
		mates, alone := p.matesLocked(c), c.solo
		if probe {
			mates, alone = limit, c.stmt != first.stmt || c.moved || p.mustBeAloneLocked(c)
		}
		if size := k.size(c); alone || bytes+size > writeBytes || mates <= len(k.group) || k.odd(c) {
			passed++
		} else {
			limit = min(limit, mates)
			bytes += size
			p.addLocked(k, c)
			c.solo, c.long = false, false
		}
		c = next
	}
	if len(k.group) > 1 {
		first.solo, first.long = false, false
	}
}

// matesLocked returns how many calls may travel with one, itself included.
func (p *Pool) matesLocked(c *Call) int {
	most := p.cfg.Group
	if c.stmt.tailed.Load() {
		most = (most + 1) / 2 // any of them may be the slow one
	}
	return c.stmt.mates(p.groupTime.typical, most)
}

// probesLocked reports whether a slow call shall be sent with others of its statement, to
// see whether that is slow: with as many executions at a time as there are connections,
// each can take long for want of CPUs alone, however fast the statement is. A group of
// what is fast takes no longer than one.
func (p *Pool) probesLocked(c *Call) bool {
	return c.stmt.slow.Load() && !p.mustBeAloneLocked(c) && !c.moved && c.stmt.single.Load() == 0 && c.stmt.probed()
}

func (p *Pool) addLocked(k *conn, c *Call) {
	p.queue.remove(c)
	c.conn, c.tailed = k, !c.solo && c.stmt.suspected()
	k.group = append(k.group, c)
}

// occupyLocked counts a connection as busy with its group.
func (p *Pool) occupyLocked(k *conn) {
	if p.busy >= p.allowedLocked() {
		p.urgent--
	}
	k.busy, k.stuck, k.began = true, false, time.Now()
	p.busy++
	if k.solo = len(k.group) == 1 && k.group[0].solo; k.solo {
		p.solo++
	}
	k.load, k.waiters, k.waited = len(k.group), 0, 0
	for _, c := range k.group {
		if !c.since.IsZero() {
			k.waiters++
			k.waited += k.began.Sub(c.since)
		}
	}
	p.sent += k.load
}

// vacateLocked undoes occupyLocked.
func (p *Pool) vacateLocked(k *conn) {
	if k.busy {
		if !k.stuck {
			p.stuckLocked(k)
		}
		p.sent -= k.load
	}
	k.busy, k.load = false, 0
}

// vacate is vacateLocked for a connection that cannot be used yet. Others may be opened.
func (p *Pool) vacate(k *conn) {
	p.lock()
	defer p.unlock()
	p.vacateLocked(k)
	p.serveLocked()
	p.growLocked()
}

// slowLocked reports whether calls take so long that company saves them nothing. Of many
// at a time most take long on a busy machine, but not all.
func (p *Pool) slowLocked() bool { return p.callLeast.of() > slowFloor }

// answeredLocked notes that a connection's group has been answered.
func (p *Pool) answeredLocked(k *conn, now time.Time) {
	if !k.busy {
		return
	}
	p.pace.answered(now, tally{k.load, k.waiters, 1, k.waited + time.Duration(k.load)*now.Sub(k.began)},
		demand{busy: p.busy, all: len(p.conns) - len(p.free) - p.live, open: len(p.conns), queued: p.queue.n, calls: p.sent, slow: p.slowLocked()})
}

// release takes a connection back whose group is done, and sends it off with the
// next one.
func (p *Pool) release(k *conn) {
	for {
		p.lock()
		if k.dial != nil {
			p.dialedLocked(k.dial)
			k.dial = nil
		}
		now := time.Now()
		p.releasedAt = now
		p.answeredLocked(k, now)
		p.vacateLocked(k)
		if k.retired || p.closed || p.draining || p.cfg.MaxLifetime > 0 && now.Sub(k.opened) > p.cfg.MaxLifetime {
			p.dropLocked(k)
			p.unlock()
			k.close()
			return
		}
		if !p.takeLocked(k) {
			k.idleSince = now
			clear(k.group[:cap(k.group)]) // what it refers to is not kept by an idle connection
			p.free = append(p.free, k)
			var surplus []*conn
			// While there is something to do, all may be needed in a moment.
			if n := len(p.free) - p.cfg.MaxIdle; n > 0 && (p.sent == 0 || p.cfg.MaxIdle <= 0) {
				surplus = p.takeFreeLocked(min(n, len(p.free)))
				p.growLocked()
			}
			p.ageLocked(now, k)
			p.unlock()
			closeAll(surplus)
			return
		}
		p.unlock()
		if c := k.group[0]; k.grants(c) {
			c.granted = true
			c.wake <- struct{}{}
			return
		}
		if k.send() {
			k.group[0].wake <- struct{}{}
			return
		}
		if k.gone() {
			return
		}
	}
}

// allLiveLocked reports whether each connection that there may be is held by a
// reader, who may take as long as he likes.
func (p *Pool) allLiveLocked() bool { return p.cfg.Max > 0 && p.live >= p.cfg.Max }

// elsewhereLocked sends what waits elsewhere if no connection is to be expected.
func (p *Pool) elsewhereLocked() {
	if !p.allLiveLocked() {
		return
	}
	for c := p.queue.first; c != nil; c = p.queue.first {
		p.queue.remove(c)
		c.tell(ErrElsewhere)
	}
}

// dropLocked takes a connection out of the pool, for ever. What waits gets others.
func (p *Pool) dropLocked(k *conn) {
	p.vacateLocked(k)
	delete(p.conns, k)
	p.growLocked()
	p.tickLocked()
}

// requeue puts calls of a connection's group back, in their order, before those
// that came later. One that nobody wants is finished. self, if it is among them, is
// the caller's: it gets no message, but true is returned if it is finished.
func (p *Pool) requeue(calls []*Call, self *Call) (finished bool) {
	if len(calls) == 0 {
		return false
	}
	p.lock()
	defer p.unlock()
	for i := len(calls) - 1; i >= 0; i-- {
		c := calls[i]
		c.conn = nil
		err := error(nil)
		switch {
		case c.abandoned:
			err = ErrAbandoned
		case p.closed:
			err = ErrClosed
		}
		if err == nil {
			c.awaited()
			c.waits()
			p.queue.pushFront(c)
			continue
		}
		if c == self {
			c.finish(err)
			finished = true
		} else {
			c.tell(err)
		}
	}
	// A free connection may be there, when slow statements have left it.
	p.serveLocked()
	p.growLocked()
	p.tickLocked()
	return finished
}

// serveLocked gives free connections to what waits.
func (p *Pool) serveLocked() {
	for len(p.free) > 0 && p.mayServeLocked() {
		p.describedLocked()
		if p.queue.n == 0 {
			return
		}
		k := p.popFreeLocked(p.queue.n > 1)
		k.group = k.group[:0]
		p.groupLocked(k) // not takeLocked: a statement may have been described since
		go k.launch()
	}
}

// suitedLocked returns the free connection that was used last, of those whose timeouts
// are as they must be if there is one.
func (p *Pool) suitedLocked(short bool) *conn {
	for i := len(p.free) - 1; i >= 0; i-- {
		if p.free[i].armed == short {
			return p.free[i]
		}
	}
	return p.free[len(p.free)-1]
}

// tickLocked makes somebody look after what waits.
func (p *Pool) tickLocked() {
	if p.ticking || p.closed || p.queue.n == 0 {
		return
	}
	d := quietTime + p.wayTime()
	p.ticking, p.tickAt, p.tickCount = true, time.Now().Add(d), p.answers.Load()
	if p.ticker == nil {
		p.ticker = p.afterFunc(d, (*Pool).tick)
	} else {
		p.ticker.Reset(d)
	}
}

// afterFunc is time.AfterFunc for a method, unless nobody has the pool any more by then:
// the runtime keeps a timer, and what it refers to, for a while after it was stopped.
func (p *Pool) afterFunc(d time.Duration, f func(*Pool)) *time.Timer {
	own := weak.Make(p)
	return time.AfterFunc(d, func() {
		if p := own.Value(); p != nil {
			f(p)
		}
	})
}

// lateLocked returns after how much time an answer is late.
func (p *Pool) lateLocked() time.Duration {
	return p.wayTime() + max(stuckTime, 4*p.groupTime.typical)
}

// learnWay is told that something was answered within d.
func (p *Pool) learnWay(d time.Duration) {
	for {
		way := p.way.Load()
		if d <= 0 || way != 0 && int64(d) >= way || p.way.CompareAndSwap(way, int64(d)) {
			return
		}
	}
}

// wayTime is how long a message takes to the server and back.
func (p *Pool) wayTime() time.Duration { return time.Duration(p.way.Load()) }

// late is lateLocked for those who wait behind an answer.
func (p *Pool) late() time.Duration {
	p.lock()
	defer p.unlock()
	return p.lateLocked()
}

// stuckLocked counts a connection no more whose answer does not come.
func (p *Pool) stuckLocked(k *conn) {
	if k.busy && !k.stuck {
		k.stuck = true
		p.busy--
		if k.solo {
			p.solo--
		}
	}
}

// tick looks after what waits: connections whose answers are late do not count any more,
// and if nothing has been answered for a moment, all that waits now is sent, however many
// connections that takes.
func (p *Pool) tick() {
	p.lock()
	defer p.unlock()
	p.ticking = false
	if p.closed {
		return
	}
	now := time.Now()
	p.lateDialsLocked(now)
	// On a busy machine everything is late, this function too: it knows nothing then.
	delay := max(now.Sub(p.tickAt), 0)
	late := p.lateLocked() + 4*delay
	for k := range p.conns {
		if k.busy && !k.stuck && now.Sub(k.began) >= late {
			p.stuckLocked(k)
		}
	}
	p.urgent = 0
	more := len(p.free) > 0 || p.cfg.Max == 0 || len(p.conns)+p.dialing < p.cfg.Max
	if more && p.queue.n > 0 && delay < tickSlack && p.answers.Load() == p.tickCount {
		p.urgent = p.queue.n
		p.pace.silent()
	}
	p.serveLocked()
	p.growLocked()
	p.tickLocked()
}

// soloLocked notes whether a call must run alone, and whether it may take long.
func (p *Pool) soloLocked(c *Call) {
	c.long = c.stmt.slow.Load() && !c.describe || p.mustBeAloneLocked(c)
	c.solo = c.long || c.moved || c.stmt.single.Load() > 0
}

// mustBeAloneLocked reports whether nothing may be sent with a call, or with its
// statement at present.
func (p *Pool) mustBeAloneLocked(c *Call) bool {
	return c.stmt.company == Alone || c.describe || c.late || c.alone || len(c.msg) > writeBytes/2 ||
		c.stmt.solo() || p.alone.Load() || p.blockedLocked(c.stmt)
}

// blockTime is for how long the statements of a relation that somebody had locked run
// alone.
const blockTime = time.Second

// block notes that a statement has waited for a lock.
func (p *Pool) block(st *Stmt) {
	p.lock()
	defer p.unlock()
	until := time.Now().Add(blockTime)
	st.blockedUntil.Store(until.UnixNano())
	if p.blocked == nil {
		p.blocked = make(map[uint32]time.Time)
	}
	for _, oid := range st.relations {
		p.blocked[oid] = until
	}
}

// ungroup makes every call run alone from now on.
func (p *Pool) ungroup() { p.alone.Store(true) }

func (p *Pool) blockedLocked(st *Stmt) bool {
	until := st.blockedUntil.Load()
	if until == 0 && len(p.blocked) == 0 {
		return false
	}
	now := time.Now()
	blocked := until > now.UnixNano()
	for _, oid := range st.relations {
		switch until, ok := p.blocked[oid]; {
		case !ok:
		case now.Before(until):
			blocked = true
		default:
			delete(p.blocked, oid)
		}
	}
	return blocked
}

// ageLocked makes somebody close free connections that have been idle for too long, or
// are too old.
func (p *Pool) ageLocked(now time.Time, free ...*conn) {
	next := time.Duration(math.MaxInt64)
	for _, k := range free {
		next = min(next, p.leftLocked(k, now))
	}
	at := now.Add(next)
	if next == math.MaxInt64 || p.closed || p.aging && !at.Before(p.agesAt) {
		return
	}
	p.aging, p.agesAt = true, at
	if p.ager == nil {
		p.ager = p.afterFunc(next, (*Pool).age)
	} else {
		p.ager.Reset(next)
	}
}

// leftLocked returns how long a free connection may stay.
func (p *Pool) leftLocked(k *conn, now time.Time) time.Duration {
	left := time.Duration(math.MaxInt64)
	if p.cfg.MaxIdleTime > 0 {
		left = p.cfg.MaxIdleTime - now.Sub(k.idleSince)
	}
	if p.cfg.MaxLifetime > 0 {
		left = min(left, p.cfg.MaxLifetime-now.Sub(k.opened))
	}
	return left
}

func (p *Pool) age() {
	now := time.Now()
	p.lock()
	p.aging = false
	var old []*conn
	p.free = slices.DeleteFunc(p.free, func(k *conn) bool {
		if p.leftLocked(k, now) > 0 {
			return false
		}
		delete(p.conns, k)
		old = append(old, k)
		return true
	})
	p.ageLocked(now, p.free...)
	p.unlock()
	closeAll(old)
}

// popFreeLocked takes the free connection out that was used last, of those whose
// timeouts are as they must be if there is one.
func (p *Pool) popFreeLocked(short bool) *conn {
	k := p.suitedLocked(short)
	i := slices.Index(p.free, k)
	p.free = slices.Delete(p.free, i, i+1)
	return k
}

// takeFreeLocked takes the n free connections out that were idle for longest.
func (p *Pool) takeFreeLocked(n int) []*conn {
	old := append([]*conn(nil), p.free[:n]...)
	p.free = slices.Delete(p.free, 0, n)
	for _, k := range old {
		delete(p.conns, k)
	}
	return old
}

func closeAll(conns []*conn) {
	for _, k := range conns {
		k.close()
	}
}

// CloseIdle closes the free connections.
func (p *Pool) CloseIdle() { closeAll(p.takeIdle()) }

// Cede takes the free connection out that has been idle for longest, for somebody else: if
// there are more than so many, or it has been idle for so long. It returns nil if there is
// none.
func (p *Pool) Cede(most int64, idle time.Duration) *pgconn.HijackedConn {
	p.lock()
	if len(p.free) == 0 || int64(len(p.conns)) <= most && time.Since(p.free[0].idleSince) < idle {
		p.unlock()
		return nil
	}
	k := p.takeFreeLocked(1)[0]
	p.unlock()
	if k.front.ReadBufferLen() > 0 { // a notice, say: it would be lost
		k.close()
		return nil
	}
	k.closed = true
	k.setGlance(time.Time{})
	return k.hijacked
}

// Released is when a connection was given back last.
func (p *Pool) Released() time.Time {
	p.lock()
	defer p.unlock()
	return p.releasedAt
}

// CloseIdleSince closes the free connections that have lain idle for so long: another may
// have died without a word, and what has been used since has not.
func (p *Pool) CloseIdleSince(d time.Duration) {
	since := time.Now().Add(-d)
	p.lock()
	n := 0 // the list is in the order of their last use
	for n < len(p.free) && p.free[n].idleSince.Before(since) {
		n++
	}
	old := p.takeFreeLocked(n)
	p.unlock()
	go closeAll(old)
}

// takeIdle takes the free connections out.
func (p *Pool) takeIdle() []*conn {
	p.lock()
	defer p.unlock()
	return p.takeFreeLocked(len(p.free))
}

// Close closes the free connections, and those in use when they are given back. It
// waits for none. Calls that wait for a connection finish with ErrClosed.
func (p *Pool) Close() {
	p.lock()
	if p.closed {
		p.unlock()
		return
	}
	p.closed = true
	stop := p.stop
	for d := range p.dials {
		d.ended = true // nobody gets its error
	}
	old := p.takeFreeLocked(len(p.free))
	for c := p.queue.first; c != nil; c = p.queue.first {
		p.queue.remove(c)
		c.tell(ErrClosed)
	}
	for _, t := range []*time.Timer{p.ticker, p.ager} {
		if t != nil {
			t.Stop()
		}
	}
	p.unlock()
	stop()
	closeAll(old)
}

// Drain says whether connections are closed when they are given back. Calls are served.
func (p *Pool) Drain(on bool) {
	p.lock()
	defer p.unlock()
	p.draining = on
}

// Reopen makes a closed pool serve again.
func (p *Pool) Reopen() {
	p.lock()
	defer p.unlock()
	if p.closed {
		p.closed, p.ticking, p.aging = false, false, false // its timers are stopped
		p.ctx, p.stop = context.WithCancel(context.Background())
	}
}

// Elsewhere reports whether every call would finish with ErrElsewhere: the
// connections are not of a kind that the pool can use.
func (p *Pool) Elsewhere() bool { return p.elsewhere.Load() }

// Stats returns the pool's figures.
func (p *Pool) Stats() Stats {
	c := &p.stats
	s := Stats{
		Calls: c.calls.Load(), Groups: c.groups.Load(), Grouped: c.grouped.Load(), Skipped: c.skipped.Load(), Moved: c.moved.Load(), Parted: c.parted.Load(),
		Strays: c.strays.Load(), Stale: c.stale.Load(), Lost: c.lost.Load(), Handed: c.handed.Load(),
		Cancels: c.cancels.Load(), Tainted: c.tainted.Load(), Dials: c.dials.Load(),
	}
	p.lock()
	defer p.unlock()
	s.Open, s.Idle, s.Queued, s.Busy, s.Limit = len(p.conns), len(p.free), p.queue.n, p.busy, p.pace.limit
	return s
}
