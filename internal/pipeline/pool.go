package pipeline

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// Pool runs calls on the connections that it opens as it needs them. It is safe
// for concurrent use.
type Pool struct {
	cfg       Config
	ctx       context.Context // ends when the pool is closed
	stop      context.CancelFunc
	encoders  encoders
	shapes    Shapes
	dropped   dropped
	elsewhere atomic.Bool // the server cannot be served here

	way    atomic.Int64         // to the server and back: the least that was measured, in nanoseconds, or 0
	intake atomic.Pointer[Call] // submitted while others had mu, the last one first; linked by next

	mu sync.Mutex // unlocked by unlock; guards what follows, and what says so in Call and conn; no I/O and nothing of a Read's while it is held

	closed     bool
	conns      map[*conn]struct{} // all that are open
	free       []*conn            // the last one was used last
	fast       queue
	mixed      queue // of statements that are slow now and then
	slow       queue
	fastConns  int // busy with calls of the fast queue, and not stuck
	mixedConns int // likewise of the mixed queue
	slowConns  int // busy otherwise, stuck ones not included
	live       int // whose answers are live rows: counted nowhere else
	dialing    int
	fullUntil  time.Time // the server takes no more connections, as far as is known
	groupTime  median    // that a fast group takes
	spare      int       // how many calls may be executed once more than they must, times moveCost
	ticking    bool
	tickAt     time.Time
	ticker     *time.Timer
	aging      bool
	ager       *time.Timer

	stats counters
}

type counters struct {
	calls, groups, grouped, skipped, moved, strays, stale, lost, handed, cancels, tainted, dials atomic.Uint64
}

// New makes a pool. It opens no connection.
func New(cfg Config) *Pool {
	p := &Pool{cfg: cfg.withDefaults(), conns: make(map[*conn]struct{})}
	p.ctx, p.stop = context.WithCancel(context.Background())
	return p
}

// queue is a list of calls, first come, first served.
type queue struct {
	first, last *Call
	n           int
}

func (q *queue) push(c *Call) {
	c.queue, c.prev, c.next = q, q.last, nil
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
	c.queue, c.prev, c.next = q, nil, q.first
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
	c.queue, c.prev, c.next = nil, nil, nil
	q.n--
}

// Limits of a group.
const (
	// groupBytes bounds what a group sends: nobody reads its answers while it
	// is written, so it must fit into the buffers on the way, whatever the
	// server has to say meanwhile. A single call of any size is read whole
	// before its answer begins.
	groupBytes = 16 << 10
	// inlineBytes is what a driver writes itself: an idle connection's send
	// buffer takes it at once, even when the network stands still.
	inlineBytes = 8 << 10
	// lookahead is how many calls that must run alone are passed by to fill a
	// group.
	lookahead = 32
)

// Times of the fast queue.
const (
	tickTime  = time.Millisecond     // how often those who wait are looked at
	stuckTime = 2 * time.Millisecond // after which a connection's answer is awaited no more; at least
	farAway   = 400 * time.Microsecond
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
		m.typical += max(m.typical/8, 1)
	default:
		m.typical -= m.typical / 9
	}
}

// submit sends the call if a connection is free for it, else queues it. It reports
// true if the caller has the connection's token.
func (p *Pool) submit(c *Call) bool {
	if !p.mu.TryLock() {
		// Who has the lock takes the call in: a mutex that thousands wait for hands
		// itself from one to the next, which takes long.
		c.awaited()
		for {
			c.next = p.intake.Load()
			if p.intake.CompareAndSwap(c.next, c) {
				break
			}
		}
		if p.mu.TryLock() {
			p.takeInLocked()
			p.unlock()
		}
		return false
	}
	lane := p.laneOf(c)
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
	case len(p.free) > 0 && lane.n == 0 && p.mayServeLocked(lane):
		k := p.popFreeLocked()
		k.group = append(k.group[:0], c)
		c.conn, c.tailed = k, false
		p.occupyLocked(k, lane)
		k.sole = c.stmt
		p.unlock()
		if len(c.msg) > inlineBytes {
			c.awaited()
			go k.launch()
			return false
		}
		return k.sendOwn()
	}
	c.awaited()
	lane.push(c)
	p.growLocked()
	p.tickLocked()
	p.unlock()
	return false
}

// unlock unlocks mu. What was submitted meanwhile is taken in by whoever has locked it
// last.
func (p *Pool) unlock() {
	for {
		p.mu.Unlock()
		if p.intake.Load() == nil || !p.mu.TryLock() {
			return
		}
		p.takeInLocked()
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
			p.laneOf(c).push(c)
		}
		c = next
	}
	p.serveLocked()
	p.growLocked()
	p.tickLocked()
}

// mayServeLocked reports whether one more connection may serve a queue.
func (p *Pool) mayServeLocked(lane *queue) bool {
	switch {
	case lane == &p.fast:
		return p.fastConns < p.widthLocked()
	case p.cfg.Max > 0 && p.slowConns+p.mixedConns >= p.cfg.Max-1:
		return false // one is for fast calls
	}
	return lane == &p.slow || p.mixedConns < p.mixedWidthLocked()
}

// mixedWidthLocked is widthLocked for the mixed queue. Each slow call keeps a
// connection until it is late, and fast ones shall not wait for that.
func (p *Pool) mixedWidthLocked() int { return 4 * p.widthLocked() }

// widthLocked is how many connections serve the fast queue: few, unless what they
// wait for is the network.
func (p *Pool) widthLocked() int {
	n := p.cfg.Fast
	if n == 0 {
		n = 4
		if p.wayTime() > farAway {
			n = 16
		}
	}
	if p.cfg.Max > 0 {
		n = min(n, p.cfg.Max-1)
	}
	return n
}

// takeLocked forms the next group for a connection that is free, and reports
// whether there is one.
func (p *Pool) takeLocked(k *conn) bool {
	k.group = k.group[:0]
	p.describedLocked()
	switch {
	case p.fast.n > 0 && p.mayServeLocked(&p.fast):
		p.groupLocked(k, &p.fast)
		return true
	case p.mixed.n > 0 && p.mayServeLocked(&p.mixed):
		p.groupLocked(k, &p.mixed)
		return true
	case p.slow.n > 0 && p.mayServeLocked(&p.slow):
		p.slowLocked(k)
		return true
	}
	return false
}

// describedLocked sends calls back to their drivers that wait to describe a statement
// which has been described meanwhile.
func (p *Pool) describedLocked() {
	for _, q := range []*queue{&p.fast, &p.mixed, &p.slow} {
		for c := q.first; c != nil && c.describe && c.stmt.desc.Load() != nil; c = q.first {
			q.remove(c)
			c.again = true
			c.wake <- struct{}{}
		}
	}
}

// groupLocked makes a group of what is in a queue.
func (p *Pool) groupLocked(k *conn, lane *queue) {
	p.occupyLocked(k, lane)
	c := lane.first
	p.addLocked(k, c)
	if c.solo || !k.link.Grouped {
		return
	}
	most := p.cfg.Group
	if lane == &p.mixed {
		most = (most + 1) / 2 // any of them may be the slow one
	}
	bytes, passed := len(c.msg), 0
	limit := c.stmt.mates(p.groupTime.typical, most)
	for c = lane.first; c != nil && len(k.group) < limit && passed < lookahead; {
		next := c.next
		mates := c.stmt.mates(p.groupTime.typical, most)
		if c.solo || bytes+len(c.msg) > groupBytes || mates <= len(k.group) {
			passed++
		} else {
			limit = min(limit, mates)
			bytes += len(c.msg)
			p.addLocked(k, c)
		}
		c = next
	}
}

// slowLocked sends a slow call off, alone, or now and then a group of its statement:
// with as many executions at a time as there are connections each can take long for
// want of CPUs alone, however fast the statement is, and for as long as that goes on.
// In a group that shows: it takes no longer than one. Only what waits for a connection
// anyway is put into it.
func (p *Pool) slowLocked(k *conn) {
	c := p.slow.first
	p.occupyLocked(k, &p.slow)
	p.addLocked(k, c)
	if p.slow.n == 0 || !k.link.Grouped || c.describe || c.moved || !c.stmt.probed() {
		return
	}
	bytes, passed := len(c.msg), 0
	for m := p.slow.first; m != nil && len(k.group) < p.cfg.Group && passed < lookahead; {
		next := m.next
		if m.stmt != c.stmt || m.describe || m.moved || bytes+len(m.msg) > groupBytes {
			passed++
		} else {
			bytes += len(m.msg)
			p.addLocked(k, m)
			m.solo = false
		}
		m = next
	}
	c.solo = len(k.group) == 1
}

func (p *Pool) addLocked(k *conn, c *Call) {
	c.queue.remove(c)
	c.conn, c.tailed = k, !c.solo && c.stmt.suspected()
	k.group = append(k.group, c)
	k.sole = c.stmt
	if len(k.group) > 1 {
		k.sole = nil
	}
}

// occupyLocked counts a connection as busy.
func (p *Pool) occupyLocked(k *conn, lane *queue) {
	k.lane, k.stuck, k.began = lane, false, time.Now()
	*p.busyLocked(lane)++
}

// busyLocked returns the count of the connections that serve a queue.
func (p *Pool) busyLocked(lane *queue) *int {
	switch lane {
	case &p.fast:
		return &p.fastConns
	case &p.mixed:
		return &p.mixedConns
	}
	return &p.slowConns
}

// vacateLocked undoes occupyLocked.
func (p *Pool) vacateLocked(k *conn) {
	if k.lane != nil && !k.stuck {
		*p.busyLocked(k.lane)--
	}
	k.lane = nil
}

// release takes a connection back whose group is done, and sends it off with the
// next one.
func (p *Pool) release(k *conn) {
	for {
		p.mu.Lock()
		p.vacateLocked(k)
		if k.retired || p.closed || p.cfg.MaxLifetime > 0 && time.Since(k.opened) > p.cfg.MaxLifetime {
			p.dropLocked(k)
			p.unlock()
			k.close()
			return
		}
		if !p.takeLocked(k) {
			k.idleSince = time.Now()
			clear(k.group[:cap(k.group)]) // what it refers to is not kept by an idle connection
			p.free = append(p.free, k)
			var surplus *conn
			if p.cfg.MaxIdle < len(p.free) {
				surplus = p.free[0]
				p.free = slices.Delete(p.free, 0, 1)
				p.dropLocked(surplus)
			}
			p.ageLocked()
			p.unlock()
			if surplus != nil {
				surplus.close()
			}
			return
		}
		p.unlock()
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
	for _, q := range []*queue{&p.fast, &p.mixed, &p.slow} {
		for c := q.first; c != nil; c = q.first {
			q.remove(c)
			c.tell(ErrElsewhere)
		}
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
	p.mu.Lock()
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
			p.laneOf(c).pushFront(c)
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
	for len(p.free) > 0 {
		k := p.free[len(p.free)-1]
		if !p.takeLocked(k) {
			return
		}
		p.popFreeLocked()
		go k.launch()
	}
}

// growLocked opens connections for what waits, if it may.
func (p *Pool) growLocked() {
	if p.closed {
		return
	}
	want := p.slow.n
	if p.fast.n > 0 {
		width := p.widthLocked()
		more := min(p.fast.n, max(width-p.fastConns, 0))
		if len(p.conns) > width {
			more = min(more, 1) // in place of those that are stuck, by and by
		}
		want += more
	}
	if p.mixed.n > 0 {
		want += min(p.mixed.n, max(p.mixedWidthLocked()-p.mixedConns, 0))
	}
	const atOnce = 8 // a server forks for each
	for p.dialing < min(want-len(p.free), atOnce) && (p.cfg.Max == 0 || len(p.conns)+p.dialing < p.cfg.Max) {
		if !p.fullUntil.IsZero() && time.Now().Before(p.fullUntil) {
			return
		}
		p.dialing++
		go p.dial()
	}
}

// dial opens a connection.
func (p *Pool) dial() {
	k, err := p.connected()
	p.mu.Lock()
	p.dialing--
	if err != nil {
		p.refusedLocked(err)
		p.unlock()
		return
	}
	p.fullUntil = time.Time{}
	p.learnWay(k.roundTrip)
	p.conns[k] = struct{}{}
	p.unlock()
	p.stats.dials.Add(1)
	p.release(k)
}

// connected is connect. At some answers that no PostgreSQL gives pgx panics, and
// nobody could recover in this goroutine.
func (p *Pool) connected() (k *conn, err error) {
	defer func() {
		if v := recover(); v != nil {
			k, err = nil, fmt.Errorf("flightpg: pgx panicked at a server's answer: %v", v)
		}
	}()
	return p.connect()
}

// refusedLocked says who gets the error of a connection that could not be opened:
// nobody, as long as there are others to wait for. A slow statement may wait for
// ever for one, though.
func (p *Pool) refusedLocked(err error) {
	if p.closed {
		return
	}
	if errors.Is(err, ErrElsewhere) {
		p.elsewhere.Store(true)
	}
	alone := len(p.conns) == 0 && p.dialing == 0 || p.elsewhere.Load()
	full := p.cfg.Full != nil && p.cfg.Full(err)
	switch {
	case alone:
		p.fullUntil = time.Time{}
	case full:
		p.fullUntil = time.Now().Add(fullTime)
	default:
		p.fullUntil = time.Now().Add(refusedTime)
	}
	fail := func(c *Call) {
		c.queue.remove(c)
		if c.lastWord != nil { // says more than that nobody answers
			c.tell(c.lastWord)
			return
		}
		c.tell(err)
	}
	if c := p.slow.first; c != nil && !full {
		fail(c)
	}
	for alone && p.slow.n > 0 {
		fail(p.slow.first)
	}
	for _, lane := range []*queue{&p.fast, &p.mixed} {
		for (alone || !full && *p.busyLocked(lane) == 0 && p.dialing == 0) && lane.n > 0 {
			fail(lane.first)
		}
	}
	p.growLocked()
	p.tickLocked()
}

// tickLocked makes somebody look after what waits.
func (p *Pool) tickLocked() {
	if p.ticking || p.closed || p.fast.n+p.mixed.n+p.slow.n == 0 {
		return
	}
	p.ticking, p.tickAt = true, time.Now().Add(tickTime)
	if p.ticker == nil {
		p.ticker = time.AfterFunc(tickTime, p.tick)
	} else {
		p.ticker.Reset(tickTime)
	}
}

// lateLocked returns after how much time an answer of the fast queue is late.
func (p *Pool) lateLocked() time.Duration { return max(stuckTime+p.wayTime(), 4*p.groupTime.typical) }

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
	p.mu.Lock()
	defer p.unlock()
	return p.lateLocked()
}

// stuckLocked counts a connection no more whose answer does not come.
func (p *Pool) stuckLocked(k *conn) {
	if k.lane != nil && k.lane != &p.slow && !k.stuck {
		k.stuck = true
		*p.busyLocked(k.lane)--
	}
}

// tick counts connections no more whose answers do not come, so that others take
// their place, and learns from unknown statements on them.
func (p *Pool) tick() {
	p.mu.Lock()
	defer p.unlock()
	p.ticking = false
	if p.closed {
		return
	}
	now := time.Now()
	// On a busy machine everything takes long, this function's timer too.
	late := p.lateLocked() + 4*max(now.Sub(p.tickAt), 0)
	other := false
	for k := range p.conns {
		if k.lane == nil || k.lane == &p.slow || k.stuck || now.Sub(k.began) < late {
			continue
		}
		p.stuckLocked(k)
		if st := k.sole; st != nil && !st.known.Load() {
			other = st.sample(max(now.Sub(k.began), slowFloor+1), 1, false) || other // at least
		}
	}
	if other {
		p.sortLocked()
	}
	p.serveLocked()
	p.growLocked()
	p.tickLocked()
}

// sortLocked puts each call into the queue that it belongs in, by what is known of
// its statement now.
func (p *Pool) sortLocked() {
	for _, from := range []*queue{&p.fast, &p.mixed, &p.slow} {
		for c := from.first; c != nil; {
			next := c.next
			if to := p.laneOf(c); to != from {
				from.remove(c)
				to.push(c)
			}
			c = next
		}
	}
}

// laneOf returns the queue for a call, and notes whether it must run alone.
func (p *Pool) laneOf(c *Call) *queue {
	if c.stmt.slow.Load() && !c.describe {
		c.solo = true
		return &p.slow
	}
	c.solo = c.describe || c.moved || c.stmt.solo() || len(c.msg) > groupBytes
	if c.stmt.tailed.Load() && !c.describe {
		return &p.mixed
	}
	return &p.fast
}

// ageLocked makes somebody close connections that have been idle for too long.
func (p *Pool) ageLocked() {
	if p.aging || p.cfg.MaxIdleTime <= 0 {
		return
	}
	p.aging = true
	if p.ager == nil {
		p.ager = time.AfterFunc(p.cfg.MaxIdleTime, p.age)
	} else {
		p.ager.Reset(p.cfg.MaxIdleTime)
	}
}

func (p *Pool) age() {
	now := time.Now()
	p.mu.Lock()
	p.aging = false
	n := 0
	for n < len(p.free) && now.Sub(p.free[n].idleSince) >= p.cfg.MaxIdleTime {
		n++
	}
	old := p.takeFreeLocked(n)
	if len(p.free) > 0 && !p.closed {
		p.ageLocked()
	}
	p.unlock()
	closeAll(old)
}

// popFreeLocked takes the free connection out that was used last.
func (p *Pool) popFreeLocked() *conn {
	n := len(p.free) - 1
	k := p.free[n]
	p.free[n] = nil
	p.free = p.free[:n]
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
func (p *Pool) CloseIdle() {
	p.mu.Lock()
	old := p.takeFreeLocked(len(p.free))
	p.unlock()
	closeAll(old)
}

// Close closes the free connections, and those in use when they are given back. It
// waits for none. Calls that wait for a connection finish with ErrClosed.
func (p *Pool) Close() {
	p.mu.Lock()
	if p.closed {
		p.unlock()
		return
	}
	p.closed = true
	old := p.takeFreeLocked(len(p.free))
	for _, q := range []*queue{&p.fast, &p.mixed, &p.slow} {
		for q.n > 0 {
			c := q.first
			q.remove(c)
			c.tell(ErrClosed)
		}
	}
	for _, t := range []*time.Timer{p.ticker, p.ager} {
		if t != nil {
			t.Stop()
		}
	}
	p.unlock()
	p.stop()
	closeAll(old)
}

// Elsewhere reports whether every call would finish with ErrElsewhere: the
// connections are not of a kind that the pool can use.
func (p *Pool) Elsewhere() bool { return p.elsewhere.Load() }

// Stats returns the pool's figures.
func (p *Pool) Stats() Stats {
	c := &p.stats
	s := Stats{
		Calls: c.calls.Load(), Groups: c.groups.Load(), Grouped: c.grouped.Load(), Skipped: c.skipped.Load(), Moved: c.moved.Load(),
		Strays: c.strays.Load(), Stale: c.stale.Load(), Lost: c.lost.Load(), Handed: c.handed.Load(),
		Cancels: c.cancels.Load(), Tainted: c.tainted.Load(), Dials: c.dials.Load(),
	}
	p.mu.Lock()
	defer p.unlock()
	s.Open, s.Idle, s.Queued, s.FastBusy = len(p.conns), len(p.free), p.fast.n+p.mixed.n+p.slow.n, p.fastConns+p.mixedConns
	return s
}
