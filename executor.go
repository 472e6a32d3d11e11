package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/flight"
	"github.com/flightpg/flightpg/internal/pipeline"
)

// read is what a flight executes: one read, with arguments of its own.
type read struct {
	via       byte
	anew      bool // what is known of the statement's columns was out of date
	converted bool // the arguments are not the caller's any more
	inline    bool // it runs in its leader's goroutine, under his context
	owns      bool // the result's live rows are this caller's
	query     string
	args      []driver.NamedValue
	v         *verdict      // of the query
	hash      uint64        // of what the key tells of the arguments
	large     *flight.Large // what it has samples of, or nil
	came      time.Duration // when it followed a flight first, see monotonic
	took      time.Duration // its last execution
	careful   bool          // it shall have a connection that answers
	heard     uint32        // atomic; 1: something has come from its connection, as far as is known

	f *flight.Flight[*result] // that it is for
}

// executor runs reads for flights. It calls Dispatch of the read's flight just before
// the first byte of the query leaves for the server, and executes nothing when that
// reports false: then nobody waits any more. The context is cancelled when the last
// caller has gone; takeCancel makes the result's live rows the owner of that.
type executor interface {
	// counts returns how many flights ran twice, and how many the guard stopped.
	counts() (retries, refused uint64)
	execute(ctx context.Context, r *read) (*result, error)
}

// takeCancel is flight.Flight.TakeCancel, for live rows. Those of a leader who runs his
// flight himself are his, and end with his context.
func (r *read) takeCancel() context.CancelFunc {
	if r.inline {
		return func() {}
	}
	return r.f.TakeCancel()
}

// done ends the use of the caller's arguments for a key.
func (r *read) done() {
	if r.large != nil {
		r.large.Done()
		r.large = nil
	}
}

// bypassError is the outcome of a flight whose callers must run the read
// themselves, for that Reason.
type bypassError Reason

func (e bypassError) Error() string { return "flightpg: not shared: " + Reason(e).String() }

// launch is the flight.Inline of one read.
type launch struct {
	c    *Connector
	r    read
	owns bool // the result's live rows are the leader's
}

// Silent implements flight.Watched.
func (l *launch) Silent() bool { return atomic.LoadUint32(&l.r.heard) == 0 }

// Usual implements flight.Watched.
func (l *launch) Usual() time.Duration { return time.Duration(l.r.v.took.Load()) }

// Took implements flight.Watched.
func (l *launch) Took(d time.Duration) { l.r.v.learnTime(d) }

// Run implements flight.Runner.
func (l *launch) Run(ctx context.Context, f *flight.Flight[*result]) (*result, error) {
	l.r.f = f
	l.r.careful = l.r.careful || f.Careful()
	return l.run(ctx, l)
}

// execute implements execution.
func (l *launch) execute(ctx context.Context) (*result, error) { return l.c.exec.execute(ctx, &l.r) }

// RunInline implements flight.Inline. pgx cannot stop in the middle of an answer and go
// on in another goroutine, so a leader who may leave early runs only what nobody else
// waits for as a rule, and what is answered soon. When he leaves all the same, the read
// is cancelled, and starts anew for those who stay.
func (l *launch) RunInline(ctx context.Context, f *flight.Flight[*result]) (res *result, err error, more bool) { //nolint:revive // as flight has it
	leaves := ctx.Done() != nil
	if l.c.source.config == nil || leaves && !l.c.goesAlone(l.r.v) { // other drivers may be late to return
		return nil, nil, true
	}
	l.r.f, l.r.inline, l.r.careful = f, true, f.Careful()
	res, err = l.run(ctx, l)
	l.r.inline = false
	if leaves && ctx.Err() != nil && (err != nil || res.tail != nil || res.closed != nil) {
		l.c.learnAlone(l.r.v, !l.r.v.flown.Load(), false, 0)
		if res != nil {
			res.Share(0)
		}
		l.r.careful = true // the others may have waited for nothing
		return nil, nil, true
	}
	if err == nil && res.live != nil {
		l.owns = res.claim() // they end with his context
	}
	return res, err, false
}

// Detach implements flight.Inline.
func (l *launch) Detach() { l.r.args = copyArgs(l.r.args) }

// execution is a launch, of whichever executor.
type execution interface {
	execute(ctx context.Context) (*result, error)
}

// run executes the flight under the connector's timeout.
func (l *launch) run(ctx context.Context, by execution) (res *result, err error) {
	timeout := l.c.cfg.Timeout
	inTime := func() bool { return true }
	if timeout > 0 {
		// No deadline on the context: live rows outlast the flight, under their
		// caller's own.
		var cancel context.CancelCauseFunc
		ctx, cancel = context.WithCancelCause(ctx)
		timer := time.AfterFunc(timeout, func() { cancel(errFlightTimeout) })
		inTime = timer.Stop
		defer func() {
			timer.Stop()
			if res == nil || res.live == nil {
				cancel(nil)
				return
			}
			done := res.live.done
			res.live.done = func() {
				done()
				cancel(nil)
			}
		}()
	}
	res, err = by.execute(ctx)
	if err == nil && res.live != nil && res.why == ReasonStreamed {
		done := res.live.done
		res.live.done = func() {
			done()
			l.c.streaming.Add(-1)
		}
	}
	failure := err
	switch {
	case err != nil:
	case res.live == nil:
		failure = res.tail
	case !inTime():
		failure = errFlightTimeout // their context has ended
	}
	if failure != nil && (failure == errFlightTimeout || context.Cause(ctx) == errFlightTimeout) {
		if res != nil {
			res.Share(0)
		}
		return nil, fmt.Errorf("flightpg: the shared read took longer than flight_timeout (%v): %w", timeout, context.DeadlineExceeded)
	}
	if err == nil && res.live != nil {
		l.live(res.why)
	}
	return res, err
}

// mayStream reports whether a flight's result, which has become large, shall be
// streamed. Its connection is taken then until its reader has done, who may be slow:
// that must not happen to all of them.
func (c *Connector) mayStream(r *read) bool {
	if !r.v.streams() || !r.f.Sole() {
		return false
	}
	limit := int64(maxStreams)
	if n := c.cfg.FlightConns; n > 0 {
		limit = int64(n / streamPart)
	}
	if c.streaming.Add(1) > limit {
		c.streaming.Add(-1)
		return false
	}
	return true
}

// At most one in streamPart of the flight pool's connections is used for streams of
// results that could be buffered, and maxStreams where their number has no limit.
const (
	streamPart = 4
	maxStreams = 16
)

// live counts a result that is streamed, and learns from it.
func (l *launch) live(why Reason) {
	switch why {
	case ReasonStreamed:
		l.c.stats.streams.Add(1)
		l.r.v.learnSharing(false)
		return
	case ReasonOverflow:
		l.r.v.learnOverflow(l.r.hash)
	}
	l.c.stats.overflows.Add(1)
}

var errFlightTimeout = errors.New("flight_timeout")

// poolExecutor runs each read on a session of the flight pool, over any inner
// driver, in the flight's own goroutine or its leader's.
type poolExecutor struct {
	db        *pool // of flight sessions
	budget    *budget
	maxResult int64
	prepared  bool         // database/sql's statements run as prepared ones
	off       func(Reason) // ends all sharing
	mayStream func(*read) bool

	flying  atomic.Int64 // executions that have a connection, or wait for one
	retries atomic.Uint64
	refused atomic.Uint64
}

func (e *poolExecutor) counts() (retries, refused uint64) { return e.retries.Load(), e.refused.Load() }

func (e *poolExecutor) execute(ctx context.Context, r *read) (*result, error) {
	e.flying.Add(1)
	defer e.flying.Add(-1)
	res, err := e.fly(ctx, r)
	if why, ok := err.(bypassError); ok && Reason(why) != ReasonRefused && Reason(why) != ReasonNoConnection {
		e.off(Reason(why)) // a matter of the server, not of the statement
	}
	return res, err
}

func (e *poolExecutor) fly(ctx context.Context, r *read) (*result, error) {
	var began time.Duration
	idle := e.db.idle.Load() > 0
	if !idle {
		began = monotonic()
	}
	borrow := e.db.borrow
	if r.careful {
		borrow = e.db.borrowAlive
	}
	l, err := borrow(ctx)
	if err != nil {
		if idle { // others have come first
			began = monotonic()
		}
		return nil, failedDial(ctx, began, err)
	}
	again, renewed := false, 0 // has run again: after a failure, with a new plan
	var said error             // why it has run with a new plan
	described := false         // the statement is described anew, on this connection
	for {
		for {
			if l.c.moved(l.session, r.v) && (l.askPath(ctx) != nil || l.c.moved(l.session, r.v)) {
				l.bad = true
				l.release()
				return nil, bypassError(ReasonSettings)
			}
			heard := uint32(0)
			if r.careful || again { // it has answered a moment ago
				heard = 1
			}
			atomic.StoreUint32(&r.heard, heard)
			if !r.f.Dispatch() {
				l.release()
				return nil, flight.ErrAbandoned
			}
			if !l.old() { // as of now: no write before this moment went to another primary
				break
			}
			l.bad = true
			l.release()
			began = monotonic()
			if l, err = e.db.borrow(ctx); err != nil {
				return nil, failedDial(ctx, began, err)
			}
		}
		described = described || l.describes(r)
		sent := monotonic()
		patient := l.canceller != nil && !r.inline
		if patient {
			l.canceller.patient.Store(true)
		}
		res, err := e.attempt(ctx, l, r)
		if patient {
			l.canceller.patient.Store(false) // for live rows, and what is done before the next read
		}
		r.took = monotonic() - sent
		if res != nil && res.live != nil {
			res.live.cancel = r.takeCancel()
			e.db.hold()
			res.live.done = func() {
				l.bad = l.bad || res.live.lost
				e.db.unhold()
				l.release()
			}
			return res, nil
		}
		failure := err
		if res != nil && res.tail != nil {
			failure = res.tail
		}
		lost := l.connectionLost(failure)
		if said != nil && errors.Is(err, driver.ErrBadConn) {
			err = fmt.Errorf("%w: %w", said, driver.ErrBadConn) // what the server said says more
			failure = err
		}
		long := lost && r.took > pipeline.RetryWithin
		if long && errors.Is(err, driver.ErrBadConn) {
			err = errAnswerLost // database/sql would run it again
			failure = err
		}
		stopped := refused(failure)
		if lost || stopped {
			// A refused statement may have taken a session lock before: its
			// session must be gone before its callers run it themselves.
			l.bad = true
		}
		if l.guard == GuardSession && !l.armed() {
			l.bad, stopped = true, stopped || failure != nil
			r.v.refuse() // it turned the guard off: never again on a flight
		}
		unsettled := l.under != nil && l.unsettled() || l.c.outdated(r.v)
		_, passed := failure.(bypassError)
		l.met(r, res, failure)
		if renewed < maxRenewals && !l.bad && ctx.Err() == nil &&
			(stalePlan(failure) || res == nil && l.pgx != nil && (l.overtaken(r, failure) || doubtful(failure) && !(described && (said == nil || saysTheSame(said, failure))))) {
			// On the same connection, which has thrown away what was stale:
			// after DDL, each of the others has its own to throw away.
			renewed++
			r.anew, said, described = true, failure, true
			if res != nil {
				res.Share(0)
			}
			e.retries.Add(1)
			continue
		}
		retry := !again && !passed && ctx.Err() == nil && (lost && !long || l.strayCancel(failure))
		l.cancelled = ctx.Err() != nil && !l.delivers()
		l.release()
		if unsettled && !lost && !passed {
			if res != nil {
				res.Share(0)
			}
			return nil, bypassError(ReasonSettings)
		}
		if !retry && !stopped {
			if failure == nil && r.via != viaPrepare {
				r.v.landed(r.hash)
				if renewed > 0 {
					r.v.params.Store(nil) // they may be others now
				}
			}
			return res, err
		}
		if res != nil {
			res.Share(0)
		}
		if stopped {
			r.v.learnRefusal(r.hash, failure)
			e.refused.Add(1)
			return nil, bypassError(ReasonRefused)
		}
		// It was a read and nobody has seen a row: run it once more, on a
		// connection that answers.
		again, described = true, false
		e.retries.Add(1)
		began = monotonic()
		if l, err = e.db.borrowAlive(ctx); err != nil {
			var last *pgconn.PgError
			if lost && ctx.Err() == nil && (errors.As(failure, &last) || errors.Is(err, driver.ErrBadConn)) {
				return nil, failure // the server's last word says more than that nobody answers
			}
			return nil, failedDial(ctx, began, err)
		}
	}
}

// maxRenewals is how often a statement is run again because what was known of it was
// out of date. DDL may go on meanwhile, and a connection that takes the place of a lost
// one has a stale plan of its own.
const maxRenewals = 3

// stalePlan reports whether err says that DDL has changed the result of a
// prepared statement ("cached plan must not change result type"), that the
// server has lost it, or that a description kept here has other columns ("bind
// message has 6 result formats but query has 5 columns"). What was stale has been
// thrown away by now: the next execution starts anew.
//
// The names are those of PostgreSQL's functions that raise the errors. Others raise
// these codes for other reasons; what has no name may be a pooler's.
func stalePlan(err error) bool {
	if err == nil {
		return false
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err == errOtherColumns
	}
	switch pgErr.Code + pgErr.Routine {
	case "0A000", "26000", "08P01", "0A000RevalidateCachedQuery", "26000FetchPreparedStatement", "08P01PortalSetResultFormat":
		return true
	}
	return false
}

// errOtherColumns says that a statement's columns have come in formats that were meant
// for others.
var errOtherColumns = errors.New("flightpg: the columns of a statement have other types than it was described with")

// doubtful reports whether err can come of a description that is out of date, before the
// statement is executed: parameters or columns of other types, or functions, relations
// and types that have another's name now. It can be genuine as well; an execution that
// starts anew tells. So does this one, if it comes of describing the statement.
func doubtful(err error) bool {
	var prepare *pgconn.PrepareError
	if errors.As(err, &prepare) {
		return false
	}
	var pgErr *pgconn.PgError
	if !errors.As(err, &pgErr) {
		return err != nil && (notEncoded(err) || strings.Contains(err.Error(), " arguments, got "))
	}
	switch pgErr.Code {
	case "XX000", "0A000", "26000", "08P01", "3F000":
		return true
	case "22012": // division_by_zero: of what is executed
		return false
	}
	return strings.HasPrefix(pgErr.Code, "42") || strings.HasPrefix(pgErr.Code, "22")
}

// saysTheSame reports whether two executions have failed for one reason.
func saysTheSame(a, b error) bool {
	var pgA, pgB *pgconn.PgError
	if errors.As(a, &pgA) && errors.As(b, &pgB) {
		return pgA.Code == pgB.Code && pgA.Message == pgB.Message
	}
	return a.Error() == b.Error()
}

// attempt runs the read once. If that does not return (a panic, runtime.Goexit),
// neither does attempt, and the session is closed.
func (e *poolExecutor) attempt(ctx context.Context, l *lease, r *read) (res *result, err error) {
	returned := false
	defer func() {
		if !returned {
			l.bad = true
			l.release()
		}
	}()
	if l.pgx != nil && l.simple(r) {
		defer bounded(ctx, l.pgx.Conn().PgConn())()
	}
	res, err = e.once(ctx, l.session, r)
	returned = true
	return res, err
}

func (e *poolExecutor) once(ctx context.Context, s *session, r *read) (*result, error) {
	if r.via == viaPrepare {
		// By name only where the session is ours: what a pooler's server
		// connection has prepared stays there, for others to trip over.
		n, oids, err := s.numInput(ctx, e.prepared && s.guard != GuardTransaction, r.query)
		if err != nil {
			return nil, err
		}
		return &result{numInput: n, paramOIDs: oids, budget: e.budget}, nil
	}
	rows, err := s.guarded(ctx, r)
	if err != nil {
		return nil, err
	}
	atomic.StoreUint32(&r.heard, 1) // pgx waits for the first row
	return buffer(rows, e.budget, e.maxResult, e.mayStream, r), nil
}

// fly gives the caller a share of the flight of its read: the one under way if
// the mode allows it, else one that it leads. A Reason other than ReasonNone
// says that the caller must run the read on a session of its own.
//
// It takes the read by reference, and waits here: the stack of a caller that waits is
// most of what it costs, and doubles with a few words more.
func (c *Connector) fly(ctx context.Context, mode Mode, r *read) (*result, Reason, error) {
	f, leader, why := c.enter(ctx, mode, r, false)
	if why != ReasonNone {
		return nil, why, nil
	}
	if r.large != nil {
		defer r.done()
	}
	var res *result
	var err error
	if leader {
		res, err = c.lead(ctx, f, r)
	} else {
		r.came = monotonic()
		res, err = f.Wait(ctx)
	}
	if err != nil {
		if _, ok := err.(*dialError); ok {
			if c.sessions.db.serves() {
				return nil, ReasonNoConnection, nil
			}
			res, err = c.flyAgain(ctx, mode, r, leader, err)
		}
		if why, ok := err.(bypassError); ok {
			return nil, Reason(why), nil
		}
	}
	if err != nil {
		if r.converted && notEncoded(err) {
			r.v.params.Store(nil) // they may be others now
			// pgx takes, or refuses, what the caller has.
			r.converted = false
			return nil, ReasonArgument, nil
		}
		return nil, ReasonNone, err
	}
	if res.live != nil && !r.owns && !res.claim() {
		why = res.why
		res.Drop()
		return nil, why, nil
	}
	r.v.shared()
	return res, ReasonNone, nil
}

// enter enters the table for a read. again: it has before, and its key is known to be
// one.
func (c *Connector) enter(ctx context.Context, mode Mode, r *read, again bool) (f *flight.Flight[*result], leader bool, why Reason) {
	buf := keyBuffers.Get().(*[]byte)
	r.done()
	how := keying{asIs: again && r.converted}
	var large [][]byte
	if c.cfg.Window <= 0 && !r.v.similar.Load() { // else keys outlive their callers, or meet others
		how.large = &large
	}
	key, why := how.appendKey((*buf)[:0], r.via, partitionOf(ctx, c.cfg.PartitionKey), r.args)
	if why == reasonConvert {
		large = nil
		key, why = c.convertedKey(ctx, key[:0], r, how)
	}
	if why != ReasonNone {
		keyBuffers.Put(buf)
		return nil, false, why
	}
	r.hash = maphash.Bytes(c.verdicts.seed, key)
	if why = r.v.excepted(r.hash); why != ReasonNone {
		*buf = key
		keyBuffers.Put(buf)
		return nil, false, why
	}
	text := r.v.keyed
	if text == "" { // too long to be kept with its verdict
		text = r.query
	}
	if large != nil {
		r.large = &flight.Large{Parts: large, Digest: digestOf}
	}
	if again {
		f, leader = c.table.Again(flight.Key{Text: text, Args: key, Large: r.large}, mode.rule())
	} else {
		f, leader = c.table.Enter(flight.Key{Text: text, Args: key, Large: r.large}, mode.rule())
	}
	if r.large != nil && r.large.Met {
		r.v.similar.Store(true)
	}
	*buf = key
	keyBuffers.Put(buf)
	return f, leader, ReasonNone
}

// overdue is told of a flight whose answer should have come long ago. What has lain idle
// since it was dispatched may have died as its connection has, without a word.
func (c *Connector) overdue(ago time.Duration) {
	if c.pipe != nil {
		c.pipe.CloseIdleSince(ago)
	}
	c.flights.closeIdleSince(ago)
}

// monotonic tells the time, by half the clocks that time.Now looks at: a look takes as
// long as a lock.
func monotonic() time.Duration { return time.Since(processStart) }

// dialError is the outcome of a flight for which no connection could be opened. Only
// its leader gets the error: with pgx, too, each caller that opens a connection has
// his own.
type dialError struct {
	err   error         // a caller sees this one
	began time.Duration // when the connection was asked for, see monotonic
}

func (e *dialError) Error() string { return e.err.Error() }
func (e *dialError) Unwrap() error { return e.err }

// failedDial returns the outcome of a flight that was asked for a connection at began,
// and has err. What is no failure of the dial is everybody's: a context that has ended,
// and what says that flights cannot be guarded here.
func failedDial(ctx context.Context, began time.Duration, err error) error {
	if _, bypass := err.(bypassError); bypass || ctx.Err() != nil || err == flight.ErrGoexit {
		return err
	}
	return &dialError{err, began}
}

// dialPatience is for how long a caller waits for connections that others try to open,
// one after the other. It is more than a listener takes that starts again, or a limit
// of connections that is reached for a moment; in an outage that lasts, callers without
// a deadline shall hear of it as soon as with pgx, or little later.
const dialPatience = time.Second

// flyAgain goes on with a read whose flight had no connection, for err, a dialError. A
// leader gets the error, a follower enters the table again: one of them leads.
func (c *Connector) flyAgain(ctx context.Context, mode Mode, r *read, leader bool, err error) (res *result, _ error) {
	for {
		failed, ok := err.(*dialError)
		switch {
		case !ok:
			return res, err
		case leader, c.closed.Load():
			return nil, failed.err
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case failed.began > r.came && monotonic()-r.came > dialPatience:
			return nil, failed.err
		}
		var f *flight.Flight[*result]
		var why Reason
		if f, leader, why = c.enter(ctx, mode, r, true); why != ReasonNone {
			return nil, bypassError(why)
		}
		if leader {
			res, err = c.lead(ctx, f, r)
		} else {
			res, err = f.Wait(ctx)
		}
	}
}

// convertedKey is appendKey for a read whose arguments need conversion first.
func (c *Connector) convertedKey(ctx context.Context, key []byte, r *read, how keying) ([]byte, Reason) {
	if c.source.config != nil && !c.convert(ctx, r) {
		return key, ReasonArgument
	}
	how.asIs = true
	key, why := how.appendKey(key, r.via, partitionOf(ctx, c.cfg.PartitionKey), r.args)
	if why == reasonConvert {
		why = ReasonArgument
	}
	return key, why
}

// lead runs a flight, or has it run, and waits for it.
func (c *Connector) lead(ctx context.Context, f *flight.Flight[*result], r *read) (*result, error) {
	res, err := c.launch(ctx, f, r)
	if err == nil && res.bytes > c.budget.large && res.live == nil {
		r.v.learnSharing(res.shared)
	}
	return res, err
}

func (c *Connector) launch(ctx context.Context, f *flight.Flight[*result], r *read) (*result, error) {
	if st := c.pipe.serves(r); st != nil {
		l := c.pipe.launch(*r, st)
		res, err := f.Lead(ctx, l)
		c.pipe.landed(l)
		return res, err
	}
	first := !r.v.flown.Load()
	l := &launch{c: c, r: *r}
	res, err := f.Lead(ctx, l)
	if err == nil {
		r.owns = l.owns
		c.learnAlone(r.v, first, !res.shared && res.live == nil, l.r.took)
	}
	return res, err
}

// learnParams notes the types of a statement's parameters.
func (c *Connector) learnParams(v *verdict, oids []uint32) {
	v.params.Store(&oids)
	c.verdicts.describe(v, describedParams, 4*len(oids))
}

// shape returns the number of parameters of a statement, or the error that
// PostgreSQL has for it when it is prepared. It asks once per connector:
// database/sql prepares a statement on every connection that it meets, and
// most never execute it.
func (c *Connector) shape(ctx context.Context, v *verdict, query string) (int, error) {
	if n := v.numInput.Load(); n != shapeUnknown {
		return int(n), nil
	}
	res, why, err := c.fly(ctx, ModeFenced, &read{via: viaPrepare, query: query, v: v})
	if err != nil {
		return 0, err
	}
	if why != ReasonNone { // cannot be: it has no arguments and no rows
		return -1, nil
	}
	defer res.Drop()
	v.numInput.Store(int32(res.numInput))
	if res.paramOIDs != nil {
		c.learnParams(v, res.paramOIDs)
	}
	return res.numInput, nil
}
