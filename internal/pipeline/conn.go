package pipeline

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"reflect"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// conn is one connection. Whoever has taken it from the pool, and then whoever
// holds its token, has all of it but what says otherwise.
type conn struct {
	p         *Pool
	link      *Link
	net       net.Conn
	config    *pgconn.Config
	front     *pgproto3.Frontend
	reported  map[string]string // settings, as the server has reported them; link.PgConn's own
	opened    time.Time
	roundTrip time.Duration // the least that was measured when it was opened; on a busy machine that is too much

	out      []byte
	prepared preparedSet
	closing  []string // prepared statements to close with the next write
	dropped  uint64   // how many of the pool's dropped ones it has heard of
	group    []*Call
	stmts    []*Stmt       // of the group's calls, which are somebody else's once they are finished
	head     int           // of group: the next whose answer comes
	failed   bool          // something in the group has failed: its time says nothing
	fresh    bool          // its one call has learned its description: the same
	moved    bool          // calls behind one that took long are answered elsewhere, and here for nobody
	wasted   time.Duration // that they had waited until then
	late     int           // the call of the group whose answer took more than a moment, or -1
	flushed  bool          // the server sends each answer when it is there, so that was the one indeed
	several  bool          // the group has several statements
	blind    bool          // its reader did not look how long an answer takes
	missed   time.Time     // when the reader of that call saw that its answer takes more than a moment
	answered time.Time     // when it was there, if others have moved on
	retired  bool          // to be closed instead of taking another group
	drains   bool          // what is read is nobody's, and a deadline is set
	changed  [2]string
	closed   bool

	// Guarded by p.mu. lane is written by whoever has the connection only, who may
	// read it without.
	lane      *queue // that it is busy for, or nil
	stuck     bool   // its answer takes long: not counted any more
	sole      *Stmt  // of a group of one
	began     time.Time
	idleSince time.Time

	poking struct {
		mu    sync.Mutex // guards what follows, and the read deadline
		armed bool
		done  bool // the deadline is in the past
	}
	reader context.Context // whose end interrupts reading; nil: nobody's
	poke   func()
	glance time.Time // the read deadline at which the reader's context is looked at, or zero

	cancelMu  sync.Mutex // guards what follows, and settled of the group's calls
	cancels   int        // requests on their way
	cancelled bool       // one was sent since the group began
	parked    bool       // the group is done, and the last request releases the connection
}

// What answer ended with.
type answer uint8

const (
	answerEnded answer = iota // the call is finished
	answerAgain               // it is queued again, or fresh
	answerPoked               // the driver's context has ended; it has the token still
)

// What ends a Read of whoever has the token, which goes on with another.
var (
	errPoked = errors.New("flightpg: the reader's context has ended")
	errLate  = errors.New("flightpg: others wait behind an answer that takes long")
)

// connect opens a connection and takes it over from pgx.
func (p *Pool) connect() (*conn, error) {
	link, err := p.cfg.Connect(p.ctx)
	if err != nil {
		return nil, err
	}
	if link.Taken != nil {
		defer link.Taken()
	}
	pg := link.PgConn
	ours := false
	defer func() {
		if !ours { // it has panicked, or failed
			_ = pg.Conn().Close()
		}
	}()
	if err := pg.SyncConn(p.ctx); err != nil {
		return nil, err
	}
	h, err := pg.Hijack()
	if err != nil {
		return nil, err
	}
	k := &conn{
		p: p, link: link, net: h.Conn, dropped: p.dropped.count.Load(), config: h.Config, reported: h.ParameterStatuses, opened: time.Now(),
		prepared: preparedSet{limit: max(p.cfg.Statements, 2*p.cfg.Group), known: make(map[string]*preparedStmt)},
	}
	k.poke = k.interrupt
	k.front = h.Config.BuildFrontend(k, h.Conn)
	if n := h.Config.MaxProtocolMessageBodyLen; n > 0 {
		k.front.SetMaxBodyLen(n)
	}
	if err := k.measure(); err != nil {
		return nil, err
	}
	p.encoders.learn(link.Types)
	ours = true
	return k, nil
}

// measure takes the time to the server and back.
func (k *conn) measure() error {
	stop := context.AfterFunc(k.p.ctx, func() { _ = k.net.Close() })
	defer stop()
	for range 2 {
		began := time.Now()
		if _, err := k.net.Write(syncMessage); err != nil {
			return err
		}
		for {
			msg, err := k.front.Receive()
			if err != nil {
				return err
			}
			if pgErr, ok := msg.(*pgproto3.ErrorResponse); ok { // it shuts down
				return pgconn.ErrorResponseToPgError(pgErr)
			}
			if !k.aside(msg) {
				if _, ok := msg.(*pgproto3.ReadyForQuery); !ok {
					return fmt.Errorf("flightpg: unexpected answer %T to a Sync", msg)
				}
				break
			}
		}
		if d := time.Since(began); k.roundTrip == 0 || d < k.roundTrip {
			k.roundTrip = d
		}
	}
	return nil
}

var (
	syncMessage      = []byte{'S', 0, 0, 0, 4}
	flushMessage     = []byte{'H', 0, 0, 0, 4}
	terminateMessage = []byte{'X', 0, 0, 0, 4}
)

// close ends the connection. It must be nobody else's by now.
func (k *conn) close() {
	k.closed = true
	_ = k.net.SetWriteDeadline(time.Now().Add(time.Second)) // its buffer may be full only after a failure
	_, _ = k.net.Write(terminateMessage)
	_ = k.net.Close()
}

// gone reports whether the connection was given up while its group was sent.
func (k *conn) gone() bool { return k.closed }

// launch sends the group that the connection was taken with, from a goroutine of
// its own.
func (k *conn) launch() {
	if k.send() {
		k.group[0].wake <- struct{}{}
		return
	}
	if !k.gone() {
		k.p.release(k)
	}
}

// sendOwn sends a group of one for its driver, and reports whether that has the
// token now.
func (k *conn) sendOwn() bool {
	if k.send() {
		return true
	}
	if !k.gone() {
		k.p.release(k)
	}
	return false
}

// send writes the group. It reports false if there is nothing to wait for: nobody
// wanted any of it, or the connection is gone.
func (k *conn) send() bool {
	k.head, k.failed, k.fresh, k.moved = 0, false, false, false
	k.flushed, k.several, k.late, k.blind = true, false, -1, false
	kept := k.group[:0]
	for _, c := range k.group {
		if !c.read.Dispatch() {
			c.tell(ErrAbandoned)
			continue
		}
		kept = append(kept, c)
	}
	clear(k.group[len(kept):])
	k.group = kept
	if len(kept) == 0 {
		return false
	}
	if k.link.Expired != nil && k.link.Expired() {
		k.abort()
		k.p.requeue(kept, nil)
		return false
	}
	k.cancelMu.Lock()
	k.cancelled = false
	for _, c := range kept {
		c.settled = false
	}
	k.cancelMu.Unlock()

	out := k.out[:0]
	for _, name := range k.closing {
		out = k.closeStmt(out, name)
	}
	k.closing = k.closing[:0]
	if k.p.dropped.count.Load() != k.dropped {
		var names []string
		for names, k.dropped = k.p.dropped.since(nil, k.dropped); len(names) > 0; names = names[1:] {
			if k.prepared.forget(names[0]) {
				out = k.closeStmt(out, names[0])
			}
		}
	}
	k.stmts = k.stmts[:0]
	for i, c := range kept {
		k.stmts = append(k.stmts, c.stmt)
		k.several = k.several || c.stmt != k.stmts[0]
		if k.flushed = k.flushed && c.tailed; c.tailed && i > 0 {
			out = append(out, flushMessage...)
		}
		c.parsing, c.parsed, c.begun, c.stale, c.complete = false, false, false, false, false
		prepare, evicted := k.prepared.use(c.desc, len(c.stmt.text))
		for _, name := range evicted {
			out = k.closeStmt(out, name)
		}
		if prepare {
			c.parsing = true
			parse := pgproto3.Parse{Name: c.desc.name, Query: c.stmt.text}
			if !c.describe {
				parse.ParameterOIDs = c.desc.paramOIDs // as the arguments are encoded
			}
			describe := pgproto3.Describe{ObjectType: 'S', Name: c.desc.name}
			out, _ = parse.Encode(out) // fails on texts of a gigabyte, which nobody has read that far
			out, _ = describe.Encode(out)
		}
		if !c.describe {
			out = append(out, c.msg...)
		}
	}
	out = append(out, syncMessage...)
	s := &k.p.stats
	s.calls.Add(uint64(len(kept)))
	if len(kept) > 1 {
		s.groups.Add(1)
		s.grouped.Add(uint64(len(kept)))
	}
	_, err := k.net.Write(out)
	if k.out = out; cap(out) > 4*groupBytes {
		k.out = nil
	}
	if err != nil {
		k.lost(nil, err)
		return false
	}
	return true
}

func (k *conn) closeStmt(out []byte, name string) []byte {
	msg := pgproto3.Close{ObjectType: 'S', Name: name}
	out, _ = msg.Encode(out)
	return out
}

// Read reads from the network for the frontend. It is interrupted when the
// reader's context ends, and when others wait behind an answer that takes long;
// pgproto3 can go on from there, in the middle of a message too.
func (k *conn) Read(b []byte) (int, error) {
	ctx := k.reader
	if k.drains {
		return k.net.Read(b)
	}
	watched := ctx != nil && ctx.Done() != nil
	others := len(k.group) > k.head+1 && k.lane != &k.p.slow
	if !watched && !others {
		k.blind = k.blind || k.head < len(k.group)
		k.setGlance(time.Time{})
		return k.net.Read(b)
	}
	if k.p.wayTime() > glanceTime/2 {
		// Every answer takes long. That says nothing.
		k.blind, k.late, k.missed = true, k.head, time.Now()
	} else {
		// Most answers come before it pays to look at anything. One that takes long
		// meets the deadline first.
		if d := k.glance.Sub(k.began); d < glanceTime/2 || d > 2*glanceTime {
			k.setGlance(time.Now().Add(glanceTime))
		}
		if n, err := k.net.Read(b); n > 0 || err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		k.late, k.missed = k.head, time.Now()
	}
	var late time.Time
	if others {
		late = k.missed.Add(k.p.late())
	}
	for {
		k.setGlance(late)
		if !watched {
			n, err := k.net.Read(b)
			if n > 0 || err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
				return n, err
			}
			return 0, errLate
		}
		k.poking.mu.Lock()
		k.poking.armed = true
		k.poking.mu.Unlock()
		stop := context.AfterFunc(ctx, k.poke)
		n, err := k.net.Read(b)
		stop()
		// The function may be running, or about to: it finds itself disarmed, or
		// interrupts another reader, who looks at its own context and goes on.
		k.poking.mu.Lock()
		k.poking.armed = false
		if k.poking.done {
			k.poking.done, k.glance = false, time.Time{}
			_ = k.net.SetReadDeadline(time.Time{})
		}
		k.poking.mu.Unlock()
		if n > 0 || err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if ctx.Err() != nil {
			return 0, errPoked
		}
		if others && !time.Now().Before(late) {
			return 0, errLate
		}
	}
}

// glanceTime is how long an answer may take before the reader's context is watched:
// by so much may a caller that leaves early come back late.
const glanceTime = 400 * time.Microsecond

func (k *conn) setGlance(t time.Time) {
	if k.glance != t {
		k.glance = t
		_ = k.net.SetReadDeadline(t)
	}
}

// longAgo is a deadline that has passed.
var longAgo = time.Unix(1, 0)

// interrupt ends the Read under way.
func (k *conn) interrupt() {
	k.poking.mu.Lock()
	defer k.poking.mu.Unlock()
	if k.poking.armed {
		k.poking.done = true
		_ = k.net.SetReadDeadline(longAgo)
	}
}

// aside handles messages that are no part of an answer.
func (k *conn) aside(msg pgproto3.BackendMessage) bool {
	switch msg := msg.(type) {
	case *pgproto3.NoticeResponse:
		if k.config.OnNotice != nil {
			k.config.OnNotice(k.link.PgConn, (*pgconn.Notice)(pgconn.ErrorResponseToPgError((*pgproto3.ErrorResponse)(msg))))
		}
	case *pgproto3.NotificationResponse:
		if k.config.OnNotification != nil {
			k.config.OnNotification(k.link.PgConn, &pgconn.Notification{PID: msg.PID, Channel: msg.Channel, Payload: msg.Payload})
		}
	case *pgproto3.ParameterStatus:
		// The session is not what it was when it was opened. What it reads from
		// now on may have another meaning.
		if was, known := k.reported[msg.Name]; msg.Name != "application_name" && (!known || was != msg.Value) {
			k.retired = true
			k.changed = [2]string{msg.Name, msg.Value}
		}
		k.reported[msg.Name] = msg.Value
	default:
		return false
	}
	return true
}

// answer reads the answer of the call that is the head, for its driver, and hands
// the token on, unless it was poked.
func (k *conn) answer(ctx context.Context, c *Call) (end answer) {
	returned := false
	defer func() {
		if !returned { // a panic, or Goexit, in what the user gave us
			k.abort()
			if !c.finished {
				c.finish(errors.New("flightpg: the execution ended in the middle of an answer"))
			}
			k.p.requeue(k.group[min(k.head+1, len(k.group)):], nil)
		}
	}()
	k.reader = ctx
	end = k.read(ctx, c)
	returned = true
	return end
}

func (k *conn) read(ctx context.Context, c *Call) answer {
	for {
		msg, err := k.front.Receive()
		if err != nil {
			switch err {
			case errPoked:
				return answerPoked
			case errLate:
				k.moveOn()
				continue
			}
			return k.lost(c, err)
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			if c.describe || c.complete || len(msg.Values) != len(c.desc.Fields) && !c.stale {
				return k.lost(c, fmt.Errorf("flightpg: the server sent a row of %d columns in a result of %d", len(msg.Values), len(c.desc.Fields)))
			}
			if c.stale {
				continue
			}
			k.begin(c)
			if !c.read.Row(msg.Values) {
				return k.goLive(c, msg.Values)
			}
		case *pgproto3.BindComplete, *pgproto3.CloseComplete:
		case *pgproto3.CommandComplete, *pgproto3.EmptyQueryResponse:
			if _, empty := msg.(*pgproto3.EmptyQueryResponse); c.describe || empty && len(c.desc.Fields) > 0 {
				return k.unexpected(c, msg)
			}
			if c.stale {
				return k.restart(ctx, c)
			}
			k.begin(c)
			if k.head == len(k.group)-1 && !k.moved {
				c.complete = true // but for what the end of the transaction says
				continue
			}
			c.stmt.ran()
			c.finish(nil)
			return k.pass(ctx, c, answerEnded)
		case *pgproto3.ParseComplete:
			c.parsed = true
		case *pgproto3.ParameterDescription:
			if c.describe {
				c.desc.paramOIDs = append([]uint32(nil), msg.ParameterOIDs...)
			} else if !c.desc.takesParams(msg) {
				c.stale = true
			}
		case *pgproto3.RowDescription:
			if c.describe {
				c.desc.Fields = fieldsOf(msg)
				c.complete = true
				continue
			}
			c.stale = c.stale || !c.desc.fits(msg)
		case *pgproto3.NoData:
			if c.describe {
				c.complete = true
				continue
			}
			c.stale = c.stale || len(c.desc.Fields) > 0
		case *pgproto3.ErrorResponse:
			return k.fail(ctx, c, pgconn.ErrorResponseToPgError(msg))
		case *pgproto3.ReadyForQuery:
			if !c.complete {
				return k.unexpected(c, msg)
			}
			k.retired = k.retired || msg.TxStatus != 'I'
			k.settle(c)
			k.head++
			end := answerEnded
			if c.describe {
				end = k.described(c)
			} else {
				c.stmt.ran()
				c.finish(nil)
			}
			k.free()
			return end
		default:
			k.aside(msg) // what is no part of an answer pgx passes over, too
		}
	}
}

func (k *conn) begin(c *Call) {
	if !c.begun {
		c.begun = true
		c.read.Start(k.link, c.desc)
	}
}

func (k *conn) unexpected(c *Call, msg pgproto3.BackendMessage) answer {
	return k.lost(c, fmt.Errorf("flightpg: unexpected message %T from the server", msg))
}

// described ends a round that described the statement.
func (k *conn) described(c *Call) answer {
	d := c.desc
	d.columns = make([]int16, len(d.Fields))
	for i := range d.Fields {
		d.columns[i] = k.p.cfg.Formats[d.Fields[i].DataTypeOID]
		d.Fields[i].Format = d.columns[i]
	}
	d.Shape = k.p.shapes.Of(d.Fields)
	d.Fields = d.Shape.Fields
	c.stmt.desc.Store(d)
	if k.p.cfg.Described != nil {
		k.p.cfg.Described(c.stmt, d)
	}
	c.fresh, k.fresh = true, true
	c.endDescribe()
	return answerAgain
}

// restart makes a call describe its statement again, whose answer was not what
// the description says.
func (k *conn) restart(ctx context.Context, c *Call) answer {
	k.p.stats.stale.Add(1)
	c.stmt.forget(c.desc)
	k.prepared.remove(c.desc)
	k.closing = append(k.closing, c.desc.name)
	if c.stales++; c.stales > maxStales {
		c.finish(fmt.Errorf("flightpg: the columns of the result change with every execution"))
		return k.pass(ctx, c, answerEnded)
	}
	c.fresh, k.fresh = true, true
	return k.pass(ctx, c, answerAgain)
}

// How often a call is run again, each for its reason.
const (
	maxStales = 3
	maxStrays = 3
	maxLosses = 1
)

// stalePlan reports whether an error of a statement says that DDL has changed its
// result ("cached plan must not change result type"), that the server has lost it,
// or that it has another number of columns now; or that its name is taken.
func stalePlan(err *pgconn.PgError) bool {
	switch err.Code {
	case "0A000", "26000", "08P01", "42P05":
		return true
	}
	return false
}

// prepareError returns the server's refusal to prepare the call's statement as pgx
// returns it: as a type that only pgx itself can make. Where that has changed, pgx
// shall say it.
func (c *Call) prepareError(err *pgconn.PgError) error {
	wrapped := &pgconn.PrepareError{ParseComplete: c.parsed}
	f := reflect.ValueOf(wrapped).Elem().FieldByName("err")
	if !f.IsValid() || f.Type() != reflect.TypeFor[error]() {
		c.stmt.sendElsewhere()
		return ErrElsewhere
	}
	*(*error)(f.Addr().UnsafePointer()) = err
	return wrapped
}

// settle notes that the call's answer has ended on the server: it is not to be
// cancelled any more.
func (k *conn) settle(c *Call) {
	k.cancelMu.Lock()
	c.settled = true
	k.cancelMu.Unlock()
}

// pass gives the token away after an answer of the head.
func (k *conn) pass(ctx context.Context, c *Call, end answer) answer {
	k.settle(c)
	if k.moved {
		k.answered = time.Now()
	}
	if k.head++; k.head < len(k.group) {
		k.group[k.head].wake <- struct{}{}
		return end
	}
	k.finishGroup(ctx)
	return end
}

// fail handles an error of the server for the head. Nothing behind it in the group
// was executed.
func (k *conn) fail(ctx context.Context, c *Call, err *pgconn.PgError) answer {
	if handler := k.config.OnPgError; handler != nil && !handler(k.link.PgConn, err) {
		c.lastWord = err
		return k.lost(c, err)
	}
	rest := k.group[k.head+1:]
	for _, r := range k.group[k.head:] {
		if r.parsing && !r.parsed {
			k.prepared.remove(r.desc)
		}
	}
	k.failed = true
	k.p.stats.skipped.Add(uint64(len(rest)))
	c.stmt.ran()

	k.cancelMu.Lock()
	c.settled = true
	stray := err.Code == "57014" && k.cancelled && c.strays < maxStrays // query_canceled
	k.cancelMu.Unlock()
	stray = stray && !c.abandonedNow()

	end := answerEnded
	switch {
	case stray:
		c.strays++
		k.p.stats.strays.Add(1)
		end = answerAgain
	case c.describe:
		c.finish(c.prepareError(err))
	case stalePlan(err) && c.stales < maxStales:
		c.stales++
		k.p.stats.stale.Add(1)
		c.stmt.forget(c.desc)
		if !c.parsing || c.parsed {
			k.prepared.remove(c.desc)
			k.closing = append(k.closing, c.desc.name)
		}
		c.fresh = true
		end = answerAgain
	case c.parsing && !c.parsed:
		c.stmt.forget(c.desc)
		c.finish(c.prepareError(err))
	default:
		c.stmt.stayAlone(failMemory)
		c.finish(err)
	}
	again := append([]*Call(nil), rest...)
	k.stmts = k.stmts[:k.head+1]
	k.group, k.head = k.group[:0], 0 // nothing of it is on the connection any more
	if err.Code == "25006" {         // read_only_sql_transaction
		// It may have taken a session lock before: the session must be gone
		// before its callers run it themselves.
		k.abort()
		k.p.requeue(again, nil)
		return end
	}
	if stray {
		again = append([]*Call{c}, again...)
	}
	if k.p.requeue(again, c) {
		end = answerEnded
	}
	k.finishGroup(ctx)
	return end
}

// moveOn lets the calls behind the head, whose answer takes long, be answered
// elsewhere. What they have sent here is executed all the same, when the head is
// done, and its answers are thrown away; so there is a limit to that.
func (k *conn) moveOn() {
	p := k.p
	rest := append([]*Call(nil), k.group[k.head+1:]...)
	p.mu.Lock()
	took := time.Since(k.began)
	ok := p.spare >= moveCost*len(rest)
	if ok {
		p.spare -= moveCost * len(rest)
		p.stuckLocked(k)
	}
	p.unlock()
	if !ok {
		return
	}
	k.moved, k.wasted = true, took
	k.cancelMu.Lock()
	for _, c := range rest {
		c.settled = true
	}
	k.cancelMu.Unlock()
	for _, c := range rest {
		c.moved = true
		if c.parsing { // nobody hears whether it succeeds
			k.prepared.remove(c.desc)
			k.closing = append(k.closing, c.desc.name)
		}
	}
	k.group = k.group[:k.head+1]
	p.stats.moved.Add(uint64(len(rest)))
	p.requeue(rest, nil)
}

// finishGroup reads up to ReadyForQuery and frees the connection. The caller's
// call has ended, and nobody waits for this: when ctx ends, a goroutine goes on.
func (k *conn) finishGroup(ctx context.Context) {
	if k.moved { // there is more to read than nothing
		go k.drain(drainPatience)
		return
	}
	switch err := k.ready(); {
	case err == errPoked:
		go k.drain(cancelPatience)
	case err != nil:
		k.abort()
	default:
		k.free()
	}
}

// drainPatience is how long the answers may take of calls that have moved on. Then
// the connection is closed, and what runs on it cancelled.
const drainPatience = 15 * time.Second

// drain is finishGroup in a goroutine of its own.
func (k *conn) drain(patience time.Duration) {
	returned := false
	defer func() {
		if !returned { // a handler of notices has panicked, and nobody's call can
			_ = recover()
			k.abort()
		}
	}()
	k.reader = nil
	k.setGlance(time.Now().Add(patience)) // the server may say no more
	k.drains = true
	err := k.ready()
	k.drains = false
	returned = true
	if err != nil {
		k.abort()
		if patience == drainPatience {
			ctx, stop := context.WithTimeout(context.Background(), cancelTimeout)
			defer stop()
			_ = k.link.PgConn.CancelRequest(ctx)
		}
		return
	}
	k.free()
}

// ready reads up to ReadyForQuery.
func (k *conn) ready() error {
	for {
		msg, err := k.front.Receive()
		if err != nil {
			return err
		}
		if z, ok := msg.(*pgproto3.ReadyForQuery); ok {
			k.retired = k.retired || z.TxStatus != 'I'
			return nil
		}
		k.aside(msg)
	}
}

// free gives the connection back, unless a request to cancel is on its way, which
// then does.
func (k *conn) free() {
	k.learn()
	k.cancelMu.Lock()
	k.parked = k.cancels > 0
	parked := k.parked
	k.cancelMu.Unlock()
	if !parked {
		k.p.release(k)
	}
}

// learn takes a lesson from the group.
func (k *conn) learn() {
	p := k.p
	took := time.Since(k.began)
	if k.changed[0] != "" {
		p.stats.tainted.Add(1)
		for _, st := range k.stmts {
			if len(k.stmts) > 1 {
				st.stayAlone(probeRuns) // which of them?
			} else if p.cfg.Tainted != nil {
				p.cfg.Tainted(st, k.changed[0], k.changed[1])
			}
		}
	}
	if k.failed {
		return
	}
	if p.wayTime() > took {
		p.learnWay(took) // it was opened while the machine was busy
	}
	own := k.longest(took)
	if k.moved {
		took = k.wasted // the rest was nobody's loss
	}
	other := false
	way := p.wayTime()
	if !k.several && !k.fresh && !k.moved {
		other = k.stmts[0].sample(max(took-way, 0), len(k.stmts), k.lane == &p.slow)
	}
	p.mu.Lock()
	usual := p.groupTime.typical
	p.spare = min(p.spare+len(k.stmts), moveCost*maxSpare)
	if k.lane != nil && k.lane != &p.slow {
		p.groupTime.learn(took)
	}
	p.unlock()
	n := time.Duration(len(k.stmts))
	longer := func(d time.Duration) time.Duration { return max(min(d, own)-way-4*usual, 0) }
	for i, st := range k.stmts {
		changed := false
		switch {
		case n > 1 && !k.flushed && k.several: // whichever it was
			changed = st.exceeded(0, longer(took)/n, usual)
			if k.late >= 0 && longer(own) > 0 {
				st.suspect.Store(suspectRuns)
			}
		case n > 1 && !k.flushed:
			changed = st.exceeded(longer(own)/n, longer(took)/n, usual)
		case n == 1 || i == k.late:
			changed = st.exceeded(longer(own), longer(took), usual)
		default:
			changed = st.exceeded(0, 0, usual)
		}
		other = other || changed
	}
	if other {
		p.mu.Lock()
		p.sortLocked()
		p.serveLocked()
		p.unlock()
	}
	if len(k.stmts) > 1 && k.lane != &p.slow && !k.moved && took > max(tailTime, 8*usual) {
		for _, st := range k.stmts {
			st.stayAlone(probeRuns)
		}
	}
}

// longest returns how long one answer of a group took that took so long altogether:
// from the moment that its reader saw that it was not there. If the reader has not
// come to see that, it was this process that was late.
func (k *conn) longest(took time.Duration) time.Duration {
	switch {
	case k.moved:
		return k.answered.Sub(k.missed) + glanceTime
	case k.blind:
		return took
	case k.late < 0:
		return 0
	}
	return time.Since(k.missed) + glanceTime
}

// abort closes the connection and takes it out of the pool. The token ends with it.
func (k *conn) abort() {
	k.cancelMu.Lock()
	for _, c := range k.group[min(k.head, len(k.group)):] { // those before are settled, and their drivers' again
		c.settled = true
	}
	k.cancelMu.Unlock()
	k.close()
	k.p.mu.Lock()
	k.p.dropLocked(k)
	k.p.unlock()
}

// lost gives up a connection that failed. What it has not answered runs once more
// elsewhere: they are reads, and nobody has got any of it. c is the head, if that
// is the caller's, else nil.
func (k *conn) lost(c *Call, err error) (end answer) {
	calls := append([]*Call(nil), k.group[k.head:]...)
	k.abort()
	// What lies idle may have died of the same cause.
	k.p.CloseIdle()
	again := calls[:0]
	end = answerAgain
	for _, r := range calls {
		if r.losses++; r.losses <= maxLosses {
			k.p.stats.lost.Add(1)
			again = append(again, r)
			continue
		}
		final := err
		if r.lastWord != nil {
			final = r.lastWord
		} else {
			final = fmt.Errorf("flightpg: the connection failed: %w", err)
		}
		if r == c {
			r.finish(final)
			end = answerEnded
		} else {
			r.tell(final)
		}
	}
	if k.p.requeue(again, c) {
		end = answerEnded
	}
	return end
}

// Patience with queries that are being cancelled.
const (
	cancelPatience = time.Second      // for the query to end; else the connection is closed
	cancelTimeout  = 15 * time.Second // for the request, which nobody waits for then
)

// cancel asks the server to end the call, unless its answer has ended. The request
// names the connection only, so it may hit another call of the group.
func (k *conn) cancel(c *Call) {
	k.cancelMu.Lock()
	defer k.cancelMu.Unlock()
	if c.settled {
		return
	}
	k.cancels++
	k.cancelled = true
	k.p.stats.cancels.Add(1)
	done := make(chan struct{})
	c.cancelled = done
	go func() {
		defer close(done)
		ctx, stop := context.WithTimeout(context.Background(), cancelTimeout)
		defer stop()
		_ = k.link.PgConn.CancelRequest(ctx) // returns when the other side has closed; if it fails, patience ends
		k.cancelMu.Lock()
		k.cancels--
		release := k.parked && k.cancels == 0
		k.parked = k.parked && !release
		k.cancelMu.Unlock()
		if release {
			k.p.release(k)
		}
	}()
}

// kill closes the connection under a call that does not end. Its reader notices, but
// the server does not: if the query had not begun when it was cancelled, it would run
// on for nobody. So it is cancelled once more.
func (k *conn) kill(c *Call) {
	k.cancel(c)
	k.cancelMu.Lock()
	defer k.cancelMu.Unlock()
	if !c.settled {
		_ = k.net.Close()
	}
}
