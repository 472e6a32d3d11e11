package pipeline

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// dial is a connection being opened.
type dial struct {
	began  time.Time
	late   bool // it takes so long that it is not counted any more
	ended  bool // by the pool: its failure says nothing
	cancel context.CancelFunc
}

// DialError is the outcome of a call for which no connection could be opened. Nothing
// was executed.
type DialError struct {
	Err   error
	Began time.Time // of the dial
}

func (e *DialError) Error() string { return e.Err.Error() }

// Unwrap returns what Config.Connect has returned.
func (e *DialError) Unwrap() error { return e.Err }

// Limits of dials.
const (
	dialsAtOnce = 32 // a server forks for each
	// A dial that takes longer than twice the time of the last one is late, but not
	// before dialSoon; where nothing is known yet, after dialLate. Late ones go on: to
	// give them up would have a busy server accept connections for nobody, for ever. They
	// are not counted any more, and while there are any, others are begun one by one, in
	// intervals that grow from dialSoon to dialLate, up to lateDials.
	dialSoon  = 150 * time.Millisecond
	dialLate  = 500 * time.Millisecond
	lateDials = 64
	// dialLimit bounds a dial, with all that is asked before the connection is used.
	dialLimit = 30 * time.Second
	// dialPatience is how long a call is let wait for other dials than those that
	// have failed while it did.
	dialPatience = time.Second
)

// growLocked opens connections for what waits, if it may, and else sends it where others
// have some to spare.
func (p *Pool) growLocked() {
	if p.closed {
		return
	}
	p.dialLocked()
	if p.cfg.Max > 0 && p.cfg.Spare != nil && len(p.free) == 0 && len(p.conns)+p.dialing >= p.cfg.Max {
		for c := p.queue.first; c != nil && !c.only && p.mayServeLocked() && p.cfg.Spare(); c = p.queue.first {
			p.queue.remove(c)
			c.tell(ErrSpare)
		}
	}
}

func (p *Pool) dialLocked() {
	want := min(p.queue.n, p.roomLocked())
	if p.urgent > 0 { // not more than are kept
		kept := max(p.cfg.MaxIdle, leastConns)
		want = min(want, max(p.allowedLocked()-p.busy, kept-len(p.conns)+len(p.free)))
	}
	for p.dialing < min(want-len(p.free), dialsAtOnce) {
		now := time.Now()
		if p.cfg.Max > 0 && len(p.conns)+p.dialing >= p.cfg.Max || now.Before(p.fullUntil) {
			return
		}
		if late := len(p.dials) - p.dialing; late > 0 {
			if late >= lateDials || now.Before(p.nextDial) {
				return
			}
			p.nextDial = now.Add(p.dialPause)
			p.dialPause = min(2*p.dialPause, dialLate)
		}
		d := &dial{began: time.Now()}
		var ctx context.Context
		ctx, d.cancel = context.WithTimeoutCause(p.ctx, dialLimit, errDialLimit)
		if p.cfg.For != nil {
			ctx = p.cfg.For(ctx, p.dialsForLocked().ctx)
		}
		p.dials[d] = struct{}{}
		p.dialing++
		go p.open(ctx, d)
	}
}

// dialsForLocked returns the call that causes the next dial: the first one that waits, as
// many passed by as there are connections free or being opened for those before it.
func (p *Pool) dialsForLocked() *Call {
	c := p.queue.first
	for range p.dialing + len(p.free) {
		if c.next == nil {
			break
		}
		c = c.next
	}
	return c
}

var errDialLimit = fmt.Errorf("flightpg: opening a connection took longer than %v", dialLimit)

// open opens a connection.
func (p *Pool) open(ctx context.Context, d *dial) {
	k, err := p.connected(ctx)
	if err != nil && context.Cause(ctx) == errDialLimit {
		err = errDialLimit
	}
	d.cancel()
	p.lock()
	if err != nil {
		p.dialedLocked(d)
		if !d.ended {
			p.refusedLocked(d, err)
		}
		p.growLocked()
		p.tickLocked()
		p.unlock()
		return
	}
	if p.cfg.Max > 0 && len(p.conns) >= p.cfg.Max { // another has taken its place
		p.dialedLocked(d)
		p.unlock()
		k.close()
		return
	}
	p.fullUntil = time.Time{}
	took := time.Since(d.began)
	if k.link.Taken == nil { // it was opened now
		p.dialTime = took
	}
	for o := range p.dials { // they are of the time when nobody answered
		if o.late && d.began.Sub(o.began) > 4*took {
			o.ended = true
			o.cancel()
		}
	}
	p.learnWay(k.roundTrip)
	p.conns[k] = struct{}{}
	k.dial = d // it counts until what waits has the connection
	p.unlock()
	p.stats.dials.Add(1)
	p.release(k)
}

// dialedLocked ends a dial.
func (p *Pool) dialedLocked(d *dial) {
	delete(p.dials, d)
	if !d.late {
		p.dialing--
	}
}

// lateDialsLocked counts dials no more that take long, so that others are made: whoever
// accepts connections and never answers must not use up the chances of those who wait.
func (p *Pool) lateDialsLocked(now time.Time) {
	late := dialLate
	if p.dialTime > 0 {
		late = max(2*p.dialTime, dialSoon)
	}
	for d := range p.dials {
		if d.late || now.Sub(d.began) < late {
			continue
		}
		d.late = true
		p.dialing--
		if len(p.dials)-p.dialing == 1 {
			p.nextDial, p.dialPause = now, dialSoon
		}
	}
}

// connected is connect. At some answers that no PostgreSQL gives pgx panics, and
// nobody could recover in this goroutine.
func (p *Pool) connected(ctx context.Context) (k *conn, err error) {
	defer func() {
		if v := recover(); v != nil {
			k, err = nil, fmt.Errorf("flightpg: pgx panicked at a server's answer: %v", v)
		}
	}()
	return p.connect(ctx)
}

// refusedLocked says who gets the error of a connection that could not be opened: one
// call, as its caller would have had it with a connection of his own, and nobody as
// long as there are other connections to wait for. It also ends the waiting of those
// who have waited through all of this dial, for long.
func (p *Pool) refusedLocked(d *dial, err error) {
	if p.closed {
		return
	}
	if errors.Is(err, ErrElsewhere) {
		p.elsewhere.Store(true)
		for c := p.queue.first; c != nil; c = p.queue.first {
			p.refuse(c, d, err)
		}
		return
	}
	alone := len(p.conns) == p.live // readers may keep theirs for as long as they like
	switch {
	case alone:
		p.fullUntil = time.Time{}
	case p.cfg.Full != nil && p.cfg.Full(err):
		p.fullUntil = time.Now().Add(fullTime)
		return
	default:
		p.fullUntil = time.Now().Add(refusedTime)
	}
	one := alone // somebody gets it at once
	now := time.Now()
	comeBack := !alone && now.Sub(p.releasedAt) < dialPatience // those that there are
	for c := p.queue.first; c != nil; {
		next := c.next
		waited := c.since.Before(d.began) && now.Sub(c.since) > dialPatience
		if one || waited && !comeBack {
			p.refuse(c, d, err)
			one = false
		}
		c = next
	}
}

// refuse ends a queued call for which there is no connection.
func (p *Pool) refuse(c *Call, d *dial, err error) {
	p.queue.remove(c)
	switch {
	case c.lastWord != nil: // says more than that nobody answers
		c.tell(c.lastWord)
	case errors.Is(err, ErrElsewhere):
		c.tell(ErrElsewhere)
	default:
		c.tell(&DialError{err, d.began})
	}
}
