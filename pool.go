package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/puddle/v2"

	"github.com/flightpg/flightpg/internal/pipeline"
)

// pool holds the sessions of one kind, by database/sql's rules: who takes one gets the
// idle one that was used last, reset for him, or opens one; two that turn out bad then
// are passed over; what is given back and good goes to who waits, then to the idle ones.
//
// puddle keeps the slots. A session is opened, reset and closed by who has its slot, in
// his goroutine and under his context: puddle's constructor would go on when he has left,
// in a goroutine where nobody could recover, and its destructor would close what must be
// gone before its user goes on (a lock may be held there). puddle's own Close is not used:
// it waits for what is out, a deadlock when db.Close runs during a transaction.
type pool struct {
	connector sessionConnector
	slots     *puddle.Pool[*slot]
	limits    limits

	places  chan struct{}                 // one in it for each session taken, or kept back; nil: no limit
	hand    chan *puddle.Resource[*slot]  // from who gives back to who waits for a place
	closing atomic.Pointer[chan struct{}] // closed when the pool is
	shut    atomic.Bool
	wide    sync.Once
	widened atomic.Bool

	picking sync.Mutex // one at a time looks for a session of a partition

	open  atomic.Int64 // sessions, those being opened and closed included
	ready atomic.Int64 // those that have been opened
	idle  atomic.Int64 // of them; never more than limits.idle
	given atomic.Int64 // when one was given back last, see monotonic

	refusal atomic.Pointer[refusal] // the last failure to open one, or nil

	streams sync.Mutex    // guards what follows
	live    int           // sessions that readers of large results hold
	starved chan struct{} // closed while these hold all that there may be
	timer   *time.Timer   // looks for idle sessions whose time is over
	timed   atomic.Bool   // it runs, or what it starts does

	other  *pool          // of the same connector
	pipe   *pipeline.Pool // whose connections are for flights too, or nil
	closed atomic.Int64   // when idle sessions were closed to make room, in Unix nanoseconds
}

// limits are a pool's.
type limits struct {
	open     int           // sessions; 0: no limit
	kept     int           // of them; not given out before widen is called
	idle     int           // sessions that lie idle; 0 and less: none
	idleTime time.Duration // 0: no limit
	lifetime time.Duration // 0: no limit
}

// slot is a place for a session, which who has taken it has alone.
type slot struct {
	session *session      // nil: there is none yet, or no more
	opened  time.Time     // when it was
	reset   time.Duration // when it was last, for a flight, see monotonic; 0: never
	handed  bool          // by who had it before, and not counted as idle
}

// lease is a session taken from a pool.
type lease struct {
	*session
	p        *pool
	res      *puddle.Resource[*slot]
	released atomic.Bool
}

func newPool(sc sessionConnector, l limits) *pool {
	p := &pool{
		connector: sc,
		limits:    l,
		hand:      make(chan *puddle.Resource[*slot]),
		starved:   make(chan struct{}),
	}
	p.opens()
	size := int32(math.MaxInt32)
	if l.open > 0 {
		size = int32(min(l.open, math.MaxInt32))
		p.places = make(chan struct{}, size)
		for range l.kept {
			p.places <- struct{}{}
		}
	}
	slots, err := puddle.NewPool(&puddle.Config[*slot]{
		Constructor: func(context.Context) (*slot, error) { return new(slot), nil },
		Destructor:  func(*slot) {},
		MaxSize:     size,
	})
	if err != nil {
		panic(err) // a size below 1
	}
	p.slots = slots
	// The runtime keeps a timer, and what it refers to, for a while after it was stopped.
	own := weak.Make(p)
	p.timer = time.AfterFunc(math.MaxInt64, func() {
		if p := own.Value(); p != nil {
			p.clean()
		}
	})
	p.timer.Stop()
	return p
}

// errPoolClosed is database/sql's error for a pool that is closed.
var errPoolClosed = errors.New("sql: database is closed")

func (p *pool) isClosed() bool {
	select {
	case <-*p.closing.Load():
		return true
	default:
		return false
	}
}

// maxBadIdle is how many idle sessions that turn out bad are passed over, as in
// database/sql, before one is opened.
const maxBadIdle = 2

// borrow takes a session from the pool, or opens one. If that fails, it waits for one of
// those that there are.
func (p *pool) borrow(ctx context.Context) (*lease, error) {
	l, err := p.take(ctx, usual)
	if failed, ok := err.(*openError); ok {
		return p.await(ctx, failed)
	}
	return l, err
}

// openError says that a session could not be opened.
type openError struct {
	error
	others bool // another caller's attempt was just now, and this one made none
}

func (e *openError) Unwrap() error { return e.error }

// take takes a session, or opens one.
func (p *pool) take(ctx context.Context, way how) (l *lease, err error) {
	for try := 0; ; try++ {
		if try == maxBadIdle {
			way = anew
		}
		l, err = p.get(ctx, way)
		if try == maxBadIdle || !errors.Is(err, driver.ErrBadConn) {
			return l, err
		}
	}
}

// get takes a session. The error is an openError, or driver.ErrBadConn if the one that it
// found is no good.
func (p *pool) get(ctx context.Context, way how) (*lease, error) {
	part := p.partition(ctx) // a user's function: before anything is held
	res, err := p.slot(ctx, part)
	if err != nil {
		return nil, err
	}
	return p.use(ctx, res, part, way)
}

// use makes a lease of a slot.
func (p *pool) use(ctx context.Context, res *puddle.Resource[*slot], part string, way how) (*lease, error) {
	l := &lease{p: p, res: res}
	taken := false
	defer func() {
		if !taken { // a panic in a hook included
			l.drop()
		}
	}()
	sl := res.Value()
	if sl.session != nil {
		if !sl.handed {
			p.idle.Add(-1)
		}
		switch {
		case way == anew, p.anothers(part, sl.session):
			l.close()
		case p.limits.lifetime > 0 && time.Since(sl.opened) > p.limits.lifetime:
			return nil, driver.ErrBadConn
		default:
			if err := l.reset(ctx); err != nil { // database/sql goes on after others
				var panicked *HookPanicError
				switch {
				case errors.Is(err, driver.ErrBadConn):
					return nil, driver.ErrBadConn
				case errors.As(err, &panicked):
					return nil, panicked
				}
			}
			l.session, taken = sl.session, true
			return l, nil
		}
	}
	if r := p.refusal.Load(); r != nil && way == usual && monotonic() < r.until && p.ready.Load() > 0 {
		return nil, &openError{r.err, true}
	}
	p.open.Add(1)
	defer func() {
		if sl.session == nil {
			p.open.Add(-1)
		}
	}()
	dc, err := p.connector.Connect(ctx)
	if err != nil {
		p.refused(ctx, err)
		return nil, &openError{err, false}
	}
	p.ready.Add(1)
	if p.refusal.Load() != nil {
		p.refusal.Store(nil)
	}
	sl.session, sl.opened, sl.reset = dc.(*session), time.Now(), 0
	if p.isClosed() && p.connector.flights {
		return nil, errPoolClosed
	}
	l.session, taken = sl.session, true
	return l, nil
}

// cedePatience is for how long one caller of a pool waits for what the other gives back.
const cedePatience = 100 * time.Millisecond

// refusal is why no session could be opened. As long as others are open, none is tried
// for a while.
type refusal struct {
	err   error
	until time.Duration // see monotonic
}

// Times between attempts, those of package pipeline.
const (
	fullTime    = time.Second           // where the server, or who stands before it, takes no more connections
	refusedTime = 50 * time.Millisecond // else
)

// refused notes that no session could be opened.
func (p *pool) refused(ctx context.Context, err error) {
	if ctx.Err() == nil && p.mayAwait(err) {
		p.refusal.Store(refusalOf(err))
	}
}

func refusalOf(err error) *refusal {
	if tooMany(err) {
		return &refusal{err, monotonic() + fullTime}
	}
	return &refusal{err, monotonic() + refusedTime}
}

// mayAwait reports whether sessions go from one caller to the next, and a failure to open
// one is no reason to do without those that there are.
func (p *pool) mayAwait(err error) bool {
	if _, bypass := err.(bypassError); bypass || errors.Is(err, errOldPrimary) {
		return false
	}
	panicked := (*HookPanicError)(nil)
	return !errors.As(err, &panicked) && !p.connector.pooled && !p.connector.c.parted() && !p.connector.c.own()
}

// await waits for one of the sessions that there are, as none could be opened. It gives up
// when none has been given back for long: who has them may keep them for as long as they
// like. In the meantime it is tried again to open one.
func (p *pool) await(ctx context.Context, attempt *openError) (*lease, error) {
	failed, others := attempt.error, attempt.others
	if ctx.Err() != nil || !p.mayAwait(failed) && !tooMany(failed) {
		return nil, failed
	}
	alone := p.ready.Load() == 0
	began := monotonic()
	look := time.NewTicker(10 * time.Millisecond) // one may be given back in the moment before this listens
	defer look.Stop()
	wait := time.Duration(0)
	room := 0 // attempts, since another pool has made room: the backends of those closed take their time to end
	for {
		if l := p.spare(ctx, wait); l != nil {
			if wait > 0 { // there may be more
				p.refusal.Store(&refusal{failed, monotonic()})
			}
			return l, nil
		}
		wait = 0
		insist := room > 0
		switch r := p.refusal.Load(); {
		case insist:
			room--
			p.other.closeIdle()
		case alone && tooMany(failed) && p.other.makesRoom():
			insist, room = true, 100
		case r == nil: // others have had one opened since
			insist = true
		case monotonic() >= r.until:
			insist = p.refusal.CompareAndSwap(r, refusalOf(failed)) // one at a time
			if insist && tooMany(failed) {
				wait = cedePatience
			}
		}
		if insist {
			l, err := p.take(ctx, insisted)
			no, ok := err.(*openError)
			if !ok {
				return l, err
			}
			if failed, others = no.error, no.others; !tooMany(failed) {
				room = 0
			}
		}
		if room == 0 && (!p.mayAwait(failed) || !p.reaches(failed) || monotonic()-max(began, p.givenAt(failed)) > dialPatience) {
			if !others {
				return nil, failed
			}
			l, err := p.take(ctx, insisted) // an error is nobody's but his whose attempt it was
			if no, ok := err.(*openError); ok {
				err = no.error
			}
			return l, err
		}
		var hand <-chan *puddle.Resource[*slot]
		if p.mayAwait(nil) {
			hand = p.hand
		}
		select {
		case res := <-hand: // with its place
			if l, err := p.use(ctx, res, "", usual); err == nil {
				return l, nil
			}
		case <-look.C:
		case <-*p.closing.Load():
			return nil, errPoolClosed
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// reaches reports whether there are sessions that may be had some time, here or of the
// other pool's. If there is room for no more, those that are being opened count: it is they
// who have it.
func (p *pool) reaches(failed error) bool {
	o, full := p.other, tooMany(failed)
	switch {
	case p.ready.Load() > 0, full && p.open.Load() > 0:
		return true
	case !p.gets(failed):
		return false
	}
	return o.ready.Load() > 0 || full && o.open.Load() > 0 || o.pipe != nil && o.pipe.Stats().Open > 0
}

// gets reports whether the other pool's sessions are of use here: as they are, or by making
// room.
func (p *pool) gets(failed error) bool { return p.connector.c.hands() || tooMany(failed) }

// givenAt is when one of those was given back last, see monotonic.
func (p *pool) givenAt(failed error) time.Duration {
	at, o := p.lastGiven(), p.other
	if p.gets(failed) {
		at = max(at, o.lastGiven())
		if o.pipe != nil {
			at = max(at, o.pipe.Released().Sub(processStart))
		}
	}
	return at
}

// lastGiven is when a session of this pool was given back last, see monotonic.
func (p *pool) lastGiven() time.Duration {
	if at := p.given.Load(); at != 0 {
		return time.Duration(at)
	}
	return math.MinInt64 / 2 // never
}

// takeFree takes an idle session if there is one, and opens none.
func (p *pool) takeFree(ctx context.Context) *lease {
	if p.idle.Load() == 0 || !p.mayAwait(nil) {
		return nil
	}
	if p.places != nil {
		select {
		case p.places <- struct{}{}:
		default:
			return nil
		}
	}
	p.picking.Lock()
	idle := p.slots.AcquireAllIdle() // used last first
	i := slices.IndexFunc(idle, func(res *puddle.Resource[*slot]) bool { return res.Value().session != nil })
	var res *puddle.Resource[*slot]
	if i >= 0 {
		res = idle[i]
		idle = slices.Delete(idle, i, i+1)
	}
	giveBack(idle)
	p.picking.Unlock()
	if res == nil {
		p.leave()
		return nil
	}
	l, err := p.use(ctx, res, "", usual)
	if err != nil {
		return nil
	}
	return l
}

// serves reports whether sessions are to be had, though none may be opened.
func (p *pool) serves() bool {
	return p.mayAwait(nil) && p.ready.Load() > 0 &&
		(p.idle.Load() > 0 || monotonic()-p.lastGiven() < dialPatience)
}

// hold notes that a reader of a large result has a session, who may take as long as he
// likes. Who waits for one waits in vain if all are held by such.
func (p *pool) hold() { p.holds(1) }

// unhold is the end of that.
func (p *pool) unhold() { p.holds(-1) }

func (p *pool) holds(n int) {
	if p.places == nil {
		return
	}
	p.streams.Lock()
	defer p.streams.Unlock()
	before := p.live >= p.most()
	p.live += n
	switch after := p.live >= p.most(); {
	case after && !before:
		close(p.starved)
	case before && !after:
		p.starved = make(chan struct{})
	}
}

// most is how many sessions may be out.
func (p *pool) most() int {
	if p.widened.Load() {
		return p.limits.open
	}
	return p.limits.open - p.limits.kept
}

// whenStarved returns a channel that is closed when nobody who waits can get a session.
func (p *pool) whenStarved() <-chan struct{} {
	p.streams.Lock()
	defer p.streams.Unlock()
	return p.starved
}

// errStarved says that readers of large results hold all sessions of a pool.
var errStarved = bypassError(ReasonNoConnection)

// reset resets the session of the lease's slot for who takes it. pgx pings one whose last
// reset was more than a second ago, or that had none; that ends with its caller's context,
// and a flight's may never.
func (l *lease) reset(ctx context.Context) error {
	sl, p := l.res.Value(), l.p
	s, last := sl.session, sl.reset
	if !p.connector.flights {
		return s.resetSafely(ctx)
	}
	if sl.reset = monotonic(); sl.reset-last < pingPatience && last != 0 {
		return s.resetSafely(ctx)
	}
	patience := pingPatience
	if p.connector.c.source.resets { // the user's hook takes the time that it takes
		patience = dialLimit
	}
	bound, stop := context.WithTimeout(ctx, patience)
	defer stop()
	err := s.resetSafely(bound)
	if err != nil && bound.Err() != nil && ctx.Err() == nil {
		p.closeIdleSince(pingPatience) // the others are likely to be as dead
	}
	return err
}

// slot takes a slot: one that somebody gives back, one with an idle session, or a new one.
// A sql.Conn outlives db.Close, with pgx too: who has one still gets a session.
func (p *pool) slot(ctx context.Context, part string) (*puddle.Resource[*slot], error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	closing := *p.closing.Load()
	if p.isClosed() {
		if p.connector.flights {
			return nil, errPoolClosed
		}
		closing = nil
	}
	if p.places != nil {
		select {
		case p.places <- struct{}{}:
		default:
			select {
			case p.places <- struct{}{}:
			case res := <-p.hand: // with its place
				return res, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-closing:
				return nil, errPoolClosed
			case <-p.whenStarved():
				return nil, errStarved
			}
		}
	}
	res, err := p.pick(ctx, part)
	if err != nil {
		p.leave()
	}
	return res, err
}

// partition returns the context's, where sessions serve one each.
func (p *pool) partition(ctx context.Context) string {
	if c := p.connector.c; c.parted() {
		return partitionOf(ctx, c.cfg.PartitionKey)
	}
	return ""
}

// anothers reports whether a session serves another partition.
func (p *pool) anothers(part string, s *session) bool {
	return p.connector.c.parted() && s.partition != part
}

// pick takes one of puddle's slots: the one that was used last, where sessions serve one
// partition each, the last one of the context's; else a new one. If there can be none,
// that which has lain idle for longest makes room.
func (p *pool) pick(ctx context.Context, part string) (*puddle.Resource[*slot], error) {
	if !p.connector.c.parted() {
		return p.slots.Acquire(ctx)
	}
	p.picking.Lock()
	defer p.picking.Unlock()
	idle := p.slots.AcquireAllIdle() // used last first
	mine := slices.IndexFunc(idle, func(res *puddle.Resource[*slot]) bool {
		s := res.Value().session
		return s != nil && !p.anothers(part, s)
	})
	if mine < 0 && (len(idle) == 0 || p.slots.Stat().TotalResources() < p.slots.Stat().MaxResources()) {
		defer giveBack(idle)
		return p.slots.Acquire(ctx)
	}
	if mine < 0 {
		mine = len(idle) - 1
	}
	res := idle[mine]
	giveBack(slices.Delete(idle, mine, mine+1))
	return res, nil
}

// giveBack gives back slots with idle sessions as they were.
func giveBack(idle []*puddle.Resource[*slot]) {
	for _, res := range slices.Backward(idle) {
		res.ReleaseUnused()
	}
}

func (p *pool) leave() {
	if p.places != nil {
		<-p.places
	}
}

// widen gives out the places that were kept back, to those who wait first. It may be
// called at any time, and again.
func (p *pool) widen() {
	p.wide.Do(func() {
		p.streams.Lock()
		if p.live >= p.most() && p.live < p.limits.open {
			p.starved = make(chan struct{})
		}
		p.widened.Store(true)
		p.streams.Unlock()
		for range p.limits.kept {
			p.leave()
		}
	})
}

// release gives the session back; a bad one is closed. Only the first call counts.
func (l *lease) release() {
	if l.released.Swap(true) {
		return
	}
	p := l.p
	if !l.IsValid() || p.isClosed() || p.connector.c.closed.Load() || p.connector.pooled { // whose pool has hooks for who takes one
		l.drop()
		return
	}
	p.given.Store(int64(monotonic()))
	sl := l.res.Value()
	sl.handed = true
	select {
	case p.hand <- l.res:
		return
	default:
		sl.handed = false
	}
	if p.idle.Add(1) > int64(p.limits.idle) && !p.replaces() {
		p.idle.Add(-1)
		l.drop()
		return
	}
	l.res.Release()
	p.leave()
	if p.isClosed() { // meanwhile
		_ = p.sweep(func(*puddle.Resource[*slot]) bool { return true })
	} else {
		p.watch()
	}
}

// replaces makes room for an idle session, where sessions serve one partition each, by
// closing the one that has lain idle for longest: those of partitions that are in use
// would be closed after each use otherwise.
func (p *pool) replaces() bool {
	if !p.connector.c.parted() || p.limits.idle <= 0 {
		return false
	}
	p.picking.Lock()
	idle := p.slots.AcquireAllIdle()
	var oldest *puddle.Resource[*slot]
	if n := len(idle); n > 0 {
		oldest = idle[n-1]
		giveBack(idle[:n-1])
	}
	p.picking.Unlock()
	if oldest == nil {
		return false
	}
	if oldest.Value().session != nil {
		p.idle.Add(-1)
	}
	_ = (&lease{p: p, res: oldest}).close()
	oldest.Hijack()
	return true
}

// drop gives the slot back without a session. Its place is free when that is closed.
func (l *lease) drop() {
	defer l.p.leave()
	defer l.res.Hijack()
	_ = l.close()
}

// close closes the session of the lease's slot, if there is one.
func (l *lease) close() error {
	sl := l.res.Value()
	s := sl.session
	if s == nil {
		return nil
	}
	sl.session = nil
	l.p.ready.Add(-1)
	defer l.p.open.Add(-1)
	return s.Close()
}

// sweep closes those idle sessions of which gone says so.
func (p *pool) sweep(gone func(*puddle.Resource[*slot]) bool) error {
	return p.closeTaken(p.takeIdle(gone))
}

// closeIdleSince closes the idle sessions that have lain idle for so long: another may
// have died without a word, and what has been used since has not.
func (p *pool) closeIdleSince(d time.Duration) {
	gone := p.takeIdle(func(res *puddle.Resource[*slot]) bool { return res.IdleDuration() >= d })
	go p.closeTaken(gone)
}

// takeIdle takes those idle sessions out of which gone says so.
func (p *pool) takeIdle(gone func(*puddle.Resource[*slot]) bool) (goes []*puddle.Resource[*slot]) {
	// Those that stay go back in their order, the one that was used last in the end.
	for _, res := range slices.Backward(p.slots.AcquireAllIdle()) {
		switch {
		case res.Value().session == nil: // who made it had left
			goes = append(goes, res)
		case gone(res):
			p.idle.Add(-1)
			goes = append(goes, res)
		default:
			res.ReleaseUnused()
		}
	}
	return goes
}

// closeTaken closes sessions that have been taken out.
func (p *pool) closeTaken(goes []*puddle.Resource[*slot]) error {
	var errs []error
	for _, res := range goes {
		errs = append(errs, (&lease{p: p, res: res}).close())
		res.Hijack()
	}
	return errors.Join(errs...)
}

// watch sees to it that idle sessions are closed when their time is over.
func (p *pool) watch() {
	if p.timed.Load() {
		return
	}
	first := time.Duration(math.MaxInt64)
	for _, d := range []time.Duration{p.limits.idleTime, p.limits.lifetime} {
		if d > 0 {
			first = min(first, d)
		}
	}
	if first < math.MaxInt64 && p.timed.CompareAndSwap(false, true) {
		p.wake(first)
	}
}

// wake has clean called after d, unless the pool is closed by then: nothing shall keep it.
func (p *pool) wake(d time.Duration) {
	p.timer.Reset(d)
	if p.isClosed() {
		p.timer.Stop()
	}
}

// clean closes the idle sessions whose time is over.
func (p *pool) clean() {
	next := time.Duration(math.MaxInt64) // until the next one's is
	left := func(limit, since time.Duration) bool {
		if limit <= 0 {
			return false
		}
		if since >= limit {
			return true
		}
		next = min(next, limit-since)
		return false
	}
	_ = p.sweep(func(res *puddle.Resource[*slot]) bool {
		return left(p.limits.idleTime, res.IdleDuration()) || left(p.limits.lifetime, time.Since(res.Value().opened))
	})
	if next < math.MaxInt64 && !p.isClosed() {
		p.wake(max(next, time.Second))
		return
	}
	p.timed.Store(false)
	if p.idle.Load() > 0 && !p.isClosed() { // one came meanwhile
		p.watch()
	}
}

// Close closes the idle sessions and turns those away who wait for one. It waits for
// nobody: what is out is closed when it is given back.
func (p *pool) Close() error {
	if !p.shut.Swap(true) {
		close(*p.closing.Load())
	}
	p.timer.Stop()
	p.timed.Store(false)
	return p.sweep(func(*puddle.Resource[*slot]) bool { return true })
}

func (p *pool) opens() {
	open := make(chan struct{})
	p.closing.Store(&open)
}

// reopen makes the pool as it was before Close. Neither is called while the other is.
func (p *pool) reopen() {
	if p.shut.Load() {
		p.opens()
		p.shut.Store(false)
	}
}

// maxPings bounds how many dead pooled sessions are walked past, and pingPatience how long
// one may take to show that it is alive.
const (
	maxPings     = 64
	pingPatience = 500 * time.Millisecond
)

// borrowAlive takes a session that has just answered: where one was lost, the pool
// may hold others that died of the same cause.
func (p *pool) borrowAlive(ctx context.Context) (*lease, error) {
	for range maxPings {
		l, err := p.borrow(ctx)
		if err != nil {
			return nil, err
		}
		if l.fresh && l.pgx != nil && !l.pooled {
			return l, nil // just opened: it has answered to that
		}
		ping, stop := context.WithTimeout(ctx, pingPatience)
		err = l.ping(ping)
		stop()
		if err == nil {
			return l, nil
		}
		l.bad = true
		l.release()
		if ctx.Err() != nil {
			return nil, err
		}
	}
	return nil, driver.ErrBadConn
}

// makesRoom closes what lies idle. It reports false if there is nothing, and was
// nothing a moment ago: another caller may have come first, to the same end.
func (p *pool) makesRoom() bool {
	p.closeIdle()
	return time.Now().UnixNano()-p.closed.Load() < int64(time.Second)
}

// closeIdle closes what lies idle.
func (p *pool) closeIdle() {
	if p.pipe != nil && p.pipe.Stats().Idle > 0 {
		p.closed.Store(time.Now().UnixNano())
		p.pipe.CloseIdle()
	}
	if p.idle.Load() > 0 {
		p.closed.Store(time.Now().UnixNano())
		_ = p.sweep(func(*puddle.Resource[*slot]) bool { return true })
	}
}

// tooMany reports whether the server, or its role or database, takes no further
// connection.
func tooMany(err error) bool {
	if err == nil {
		return false
	}
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Code == "53300" || // too_many_connections
		pgErr.Code == "08P01" && strings.Contains(pgErr.Message, "max_client_conn")) // PgBouncer's
}
