package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
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
	hijacked  *pgconn.HijackedConn
	config    *pgconn.Config
	front     *pgproto3.Frontend
	reported  map[string]string // settings, as the server has reported them; link.PgConn's own
	opened    time.Time
	dial      *dial         // that it comes from, until it is used; guarded by p.mu
	roundTrip time.Duration // the least that was measured when it was opened; on a busy machine that is too much

	buffered  bool // the system takes what is written, up to writeBytes, while nothing is under way
	gathers   bool // the system writes what is in several places at once
	out       []byte
	large     []byte                // to be written behind out, as it is, and then a Sync; or nil
	unwritten atomic.Pointer[error] // why the connection was closed, if that is it
	writing   chan struct{}         // closed when what is being written in the background is; else nil
	syncs     int                   // ReadyForQuery messages that are to come
	skip      int                   // those of them that come before the head's answer
	armed     bool                  // its timeouts are short
	arming    bool                  // the first ReadyForQuery says whether they have been changed
	prepared  preparedSet
	closing   []string // prepared statements to close with the next write
	dropped   uint64   // how many of the pool's dropped ones it has heard of
	group     []*Call
	stmts     []*Stmt       // of the group's calls, which are somebody else's once they are finished
	head      int           // of group: the next whose answer comes
	failed    bool          // something in the group has failed: its time says nothing
	fresh     bool          // its one call has learned its description: the same
	moved     bool          // calls behind one that took long are answered elsewhere, and here for nobody
	wasted    time.Duration // that they had waited until then
	late      int           // the call of the group whose answer took more than a moment, or -1
	flushed   bool          // the server sends each answer when it is there, so that was the one indeed
	several   bool          // the group has several statements
	long      bool          // its one call may take long
	blind     bool          // its reader did not look how long an answer takes
	missed    time.Time     // when the reader of that call saw that its answer takes more than a moment
	answered  time.Time     // when it was there, if others have moved on
	retired   bool          // to be closed instead of taking another group
	drains    bool          // what is read is nobody's, and a deadline is set
	changed   [2]string
	closed    bool

	heard atomic.Bool // something has come since the group was sent

	// Guarded by p.mu. began is written by whoever has the connection only, who may
	// read it without.
	busy      bool          // with a group
	stuck     bool          // its answer is late: not counted any more
	solo      bool          // its group is one call, which may not have company
	load      int           // calls of the group, as it was taken
	waiters   int           // those of them that have waited for it
	waited    time.Duration // how long, altogether
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

	cancelMu  sync.Mutex // guards what follows, and what says so of the group's calls
	cancels   int        // requests on their way
	cancelled bool       // one was sent since the group began
	parked    bool       // the group is done, and the last request releases the connection
	parking   *time.Timer
	killed    bool // it was closed under its reader
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

// connect opens a connection and takes it over from pgx. ctx bounds every step.
func (p *Pool) connect(ctx context.Context) (*conn, error) {
	link, err := p.cfg.Connect(ctx)
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
	if err := pg.SyncConn(ctx); err != nil {
		return nil, err
	}
	h, err := pg.Hijack()
	if err != nil {
		return nil, err
	}
	if link.Settled != nil {
		if err := link.Settled(h.ParameterStatuses); err != nil {
			return nil, err
		}
	}
	k := &conn{
		p: p, link: link, net: h.Conn, dropped: p.dropped.count.Load(), config: h.Config, reported: h.ParameterStatuses, opened: time.Now(),
		prepared: preparedSet{limit: p.cfg.Statements, known: make(map[string]*preparedStmt)},
		buffered: link.buffered || buffered(h.Conn), hijacked: h,
	}
	switch h.Conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		k.gathers = true // what wraps one would make a packet, or a record, of each
	}
	k.poke = k.interrupt
	k.front = h.Config.BuildFrontend(k, h.Conn)
	if n := h.Config.MaxProtocolMessageBodyLen; n > 0 {
		k.front.SetMaxBodyLen(n)
	}
	if err := k.measure(ctx); err != nil {
		return nil, err
	}
	p.learnOdd(link.Odd)
	ours = true
	return k, nil
}

// buffered reports whether a connection is one of the system's, which takes some bytes
// without waiting for the other side. One that wraps it, as TLS does, tells with NetConn.
func buffered(c net.Conn) bool {
	for {
		switch own := c.(type) {
		case *net.TCPConn, *net.UnixConn:
			return true
		case interface{ NetConn() net.Conn }:
			c = own.NetConn()
		default:
			return false
		}
	}
}

// learnOdd is told what is odd about a connection that was opened.
func (p *Pool) learnOdd(o *Oddities) {
	for {
		have := p.odd.Load()
		all := have.and(o)
		if all == have || p.odd.CompareAndSwap(have, all) {
			return
		}
	}
}

// measure takes the time to the server and back.
func (k *conn) measure(ctx context.Context) (err error) {
	stop := context.AfterFunc(ctx, func() { _ = k.net.Close() })
	defer func() {
		if !stop() && err == nil { // it is closed, or about to be
			err = context.Cause(ctx)
		}
	}()
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
	terminateMessage = []byte{'X', 0, 0, 0, 4}
)

// close ends the connection. It must be nobody else's by now.
func (k *conn) close() {
	k.closed = true
	k.hangUp()
}

func (k *conn) hangUp() {
	if k.writing == nil {
		_ = k.net.SetWriteDeadline(time.Now().Add(time.Second)) // its buffer may be full only after a failure
		_, _ = k.net.Write(terminateMessage)
	}
	_ = k.net.Close()
}

// gone reports whether the connection was given up while its group was sent.
func (k *conn) gone() bool { return k.closed }

// launch sends the group that the connection was taken with, or grants the connection
// to the driver of the one call of it that must do so itself.
func (k *conn) launch() {
	if c := k.group[0]; k.grants(c) {
		c.granted = true
		c.wake <- struct{}{}
		return
	}
	if k.send() {
		k.group[0].wake <- struct{}{}
		return
	}
	if !k.gone() {
		k.p.release(k)
	}
}

// grants reports whether the driver of a call must send it: its arguments are encoded
// by this connection, or it is more than can be written without waiting.
func (k *conn) grants(c *Call) bool {
	if len(k.group) > 1 {
		return false
	}
	if k.odd(c) {
		c.late = true // pgx's codecs are not this one's
	}
	return c.late || !k.buffered || k.size(c) > writeBytes
}

// odd reports whether a connection has other codecs for a call's arguments than those
// they have been encoded with.
func (k *conn) odd(c *Call) bool {
	return c.typed && !c.late && !c.describe && k.link.Odd.any(c.desc.paramOIDs)
}

// size returns how many bytes a call takes, and what is to be prepared for it, at most.
func (k *conn) size(c *Call) int {
	n := len(c.msg)
	if text := c.stmt.text; len(text) <= shortText || !k.prepared.has(c.desc) {
		n += len(text) + preparing
	}
	return n
}

const (
	shortText = 256 // it does not pay to look whether it is prepared
	preparing = 128 // bytes of the messages around the text
)

// sendOwn sends a group of one for its driver, and reports whether that has the
// token now.
func (k *conn) sendOwn(c *Call) bool {
	returned := false
	defer func() {
		if !returned { // a panic in an argument's own method, or in a codec
			k.group = k.group[:0]
			c.finish(errEnded)
			k.p.release(k)
		}
	}()
	k.grants(c)
	sent := false
	if c.late && !c.describe && !c.encodeLate(k) {
		k.group = k.group[:0]
		c.renew("")
	} else {
		sent = k.send()
	}
	returned = true
	if !sent && !k.gone() {
		k.p.release(k)
	}
	return sent
}

var errEnded = errors.New("flightpg: the execution ended in the middle of an answer")

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
		c.apart = c.read.Apart()
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
	out := k.compose(k.out[:0])
	k.heard.Store(false)
	k.cancelMu.Lock()
	k.cancelled = false
	for _, c := range kept {
		c.held = k.arming
	}
	k.cancelMu.Unlock()
	var unwanted []*Call
	if !k.arming {
		unwanted = k.begins()
	}
	s := &k.p.stats
	s.calls.Add(uint64(len(kept)))
	if len(kept) > 1 {
		s.groups.Add(1)
		s.grouped.Add(uint64(len(kept)))
	}
	if err := k.write(out); err != nil {
		k.lost(nil, err)
		return false
	}
	for _, c := range unwanted {
		k.cancel(c)
	}
	return true
}

// begins notes that the group is under way, and returns those of it that are to be
// cancelled. While the timeouts are being set it is not: a request to cancel would hit
// that, and the group would be executed with long ones.
func (k *conn) begins() (unwanted []*Call) {
	k.cancelMu.Lock()
	defer k.cancelMu.Unlock()
	for _, c := range k.group[k.head:] {
		c.underWay, c.held = true, false
		if c.unwanted {
			unwanted = append(unwanted, c)
		}
	}
	return unwanted
}

// compose appends the group's messages, but a large one. What closes prepared statements comes first: a
// call that fails takes all behind it in its transaction along.
func (k *conn) compose(out []byte) []byte {
	k.syncs, k.skip, k.arming, k.large = 0, 0, false, nil
	// What is sent alone may take long at nobody's cost. But it does not pay to change
	// a session for what is fast.
	k.long = k.group[0].long
	arm := len(k.group) > 1 || k.armed && !k.long
	if arm != k.armed && k.link.Arm != "" {
		text := k.link.Arm
		if !arm {
			text = k.link.Disarm
		}
		set := pgproto3.Query{String: text}
		out, _ = set.Encode(out)
		k.armed, k.arming = arm, true
		k.syncs, k.skip = 1, 1
	}
	if !k.arming && slices.ContainsFunc(k.group, func(c *Call) bool { return c.careful }) {
		out = append(out, syncMessage...) // is answered at once, if anything is
		k.syncs, k.skip = 1, 1
	}
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
	for _, c := range k.group {
		c.parsing = c.renews
		if c.renews {
			continue // it has no name
		}
		var evicted []string
		c.parsing, evicted = k.prepared.use(c.desc, len(c.stmt.text))
		for _, name := range evicted {
			out = k.closeStmt(out, name)
		}
	}
	k.stmts = k.stmts[:0]
	for i, c := range k.group {
		k.stmts = append(k.stmts, c.stmt)
		k.several = k.several || c.stmt != k.stmts[0]
		k.flushed = k.flushed && !k.joins(c)
		c.parsed, c.bound, c.begun, c.stale, c.misread, c.complete = false, false, false, false, false, false
		if c.parsing {
			// As it stands, so that the server says what it takes it for now.
			parse := pgproto3.Parse{Name: c.desc.name, Query: c.stmt.text}
			describe := pgproto3.Describe{ObjectType: 'S', Name: c.desc.name}
			out, _ = parse.Encode(out) // fails on texts of a gigabyte, which nobody has read that far
			out, _ = describe.Encode(out)
		}
		c.first = c.parsing && !c.describe && k.link.Timed && len(k.group) == 1
		switch {
		case c.describe, c.first:
		case k.gathers && len(k.group) == 1 && len(c.msg) > writeBytes:
			k.large = c.msg // whose memory is not used again
		default:
			out = append(out, c.msg...)
		}
		// What is parsed now has an end of its own: with that the server tells whether it
		// reads texts as before.
		if c.ends = i == len(k.group)-1 || c.parsing || !k.joins(c) || !k.joins(k.group[i+1]); c.ends {
			if k.large == nil {
				out = append(out, syncMessage...)
			}
			k.syncs++
		}
	}
	return out
}

// joins reports whether a call may share a transaction with its neighbours in the group.
func (k *conn) joins(c *Call) bool {
	return c.stmt.company == Joined && !c.apart && !c.tailed && !k.link.Apart
}

// write sends messages. What the other side may have to read before it is all taken is
// sent in the background, while the answers are read: the server may not read before
// its own are taken.
func (k *conn) write(out []byte) error {
	if large := k.large; large != nil {
		k.large = nil
		k.writeBehind(out, large, syncMessage)
		return nil
	}
	if k.buffered && len(out) <= writeBytes {
		_, err := k.net.Write(out)
		k.out = out
		return err
	}
	k.writeBehind(out)
	return nil
}

// writeBehind writes messages in the background.
func (k *conn) writeBehind(messages ...[]byte) {
	done := make(chan struct{})
	k.writing, k.out = done, nil
	go func() {
		defer close(done)
		all := net.Buffers(messages)
		if _, err := all.WriteTo(k.net); err != nil {
			k.unwritten.Store(&err) // whoever reads finds out
			_ = k.net.Close()
		}
	}()
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
		return k.receive(b)
	}
	watched := ctx != nil && ctx.Done() != nil
	others := len(k.group) > k.head+1
	if !watched && !others {
		k.blind = k.blind || k.head < len(k.group)
		k.setGlance(time.Time{})
		return k.receive(b)
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
		if n, err := k.receive(b); n > 0 || err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
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
			n, err := k.receive(b)
			if n > 0 || err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
				return n, err
			}
			return 0, errLate
		}
		k.poking.mu.Lock()
		k.poking.armed = true
		k.poking.mu.Unlock()
		stop := context.AfterFunc(ctx, k.poke)
		n, err := k.receive(b)
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

// receive reads from the network, and notes that something has come.
func (k *conn) receive(b []byte) (int, error) {
	n, err := k.net.Read(b)
	if n > 0 && !k.heard.Load() {
		k.heard.Store(true)
	}
	return n, err
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
			if !slices.Contains(Meanings, k.changed[0]) { // which must be known in the end
				k.changed = [2]string{msg.Name, msg.Value}
			}
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
				c.finish(errEnded)
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
			if w := k.unwritten.Load(); w != nil && errors.Is(err, net.ErrClosed) {
				err = *w
			}
			return k.lost(c, err)
		}
		if k.skip > 0 {
			if end, ended := k.before(c, msg); ended {
				return end
			}
			continue
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
		case *pgproto3.BindComplete:
			c.bound = true
		case *pgproto3.CloseComplete:
		case *pgproto3.CommandComplete, *pgproto3.EmptyQueryResponse:
			if _, empty := msg.(*pgproto3.EmptyQueryResponse); c.describe || empty && len(c.desc.Fields) > 0 && !c.stale {
				return k.unexpected(c, msg)
			}
			if !c.stale {
				k.begin(c)
			}
			if c.ends && (c.parsing || !k.moved) {
				c.complete = true // but for what the end of the transaction says
				continue
			}
			return k.pass(ctx, c, k.conclude(c))
		case *pgproto3.ParseComplete:
			c.parsed = true
		case *pgproto3.ParameterDescription:
			if c.describe {
				c.desc.paramOIDs = append([]uint32(nil), msg.ParameterOIDs...)
			} else if !c.desc.takesParams(msg) {
				k.unfit(c)
			}
		case *pgproto3.RowDescription:
			if c.describe {
				c.desc.Fields = fieldsOf(msg)
				c.complete = true
				continue
			}
			if !c.desc.fits(msg) {
				k.unfit(c)
			}
		case *pgproto3.NoData:
			if c.describe {
				c.complete = true
				continue
			}
			if len(c.desc.Fields) > 0 {
				k.unfit(c)
			}
		case *pgproto3.ErrorResponse:
			return k.fail(ctx, c, pgconn.ErrorResponseToPgError(msg))
		case *pgproto3.ReadyForQuery:
			if !c.complete && !(c.first && c.parsed) {
				return k.unexpected(c, msg)
			}
			k.syncs--
			k.retired = k.retired || msg.TxStatus != 'I'
			if (c.parsing || c.describe) && slices.Contains(Meanings, k.changed[0]) {
				// A reload of the server's configuration, say, reached the session just
				// before the text. Nobody knows what it has been taken for.
				for _, r := range k.group[k.head:] {
					r.misread = r.misread || r.desc == c.desc
				}
				return k.pass(ctx, c, k.conclude(c))
			}
			if c.first && !c.stale || c.describe && c.renews {
				if k.second(c) {
					continue
				}
				k.free()
				return answerEnded
			}
			if !c.describe {
				return k.pass(ctx, c, k.conclude(c))
			}
			k.described(c)
			if k.goesOn(c) {
				continue
			}
			return k.pass(ctx, c, answerAgain)
		default:
			k.aside(msg) // what is no part of an answer pgx passes over, too
		}
	}
}

// before reads what comes before the head's answer: the end of what set the
// connection's timeouts, or of a transaction in which an earlier call has failed.
func (k *conn) before(c *Call, msg pgproto3.BackendMessage) (end answer, ended bool) {
	switch msg := msg.(type) {
	case *pgproto3.ReadyForQuery:
		k.skip--
		k.syncs--
		k.retired = k.retired || msg.TxStatus != 'I'
		if k.arming {
			k.arming = false
			for _, c := range k.begins() {
				k.cancel(c)
			}
		}
	case *pgproto3.ErrorResponse:
		err := pgconn.ErrorResponseToPgError(msg)
		if !k.arming || !k.armed {
			return k.lost(c, err), true
		}
		// The group is there already and executed all the same, with long timeouts.
		k.armed = false
		if err.Code != "57014" { // somebody has cancelled it
			k.p.ungroup() // some stranger's server: it can do without company
		}
	case *pgproto3.CommandComplete, *pgproto3.EmptyQueryResponse:
		if !k.arming {
			return k.unexpected(c, msg), true
		}
	default:
		if !k.aside(msg) {
			return k.unexpected(c, msg), true
		}
	}
	return answerAgain, false
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

// conclude ends a call whose answer is complete, or has it run again if that was not
// what the description says.
func (k *conn) conclude(c *Call) answer {
	if c.misread {
		c.finish(ErrElsewhere)
		return answerEnded
	}
	if c.stale {
		return k.restart(c)
	}
	if c.renews {
		c.stmt.forget(c.kept)
	}
	c.stmt.ran()
	c.finish(nil)
	return answerEnded
}

// described ends a round that described the statement.
func (k *conn) described(c *Call) {
	k.complete(c.desc)
	c.stmt.desc.Store(c.desc)
	if k.p.cfg.Described != nil {
		k.p.cfg.Described(c.stmt, c.desc)
	}
	c.fresh, k.fresh = true, true
	c.endDescribe()
}

// complete makes a description of what the server has said.
func (k *conn) complete(d *Desc) {
	d.columns = make([]int16, len(d.Fields))
	for i := range d.Fields {
		d.columns[i] = k.p.cfg.Formats[d.Fields[i].DataTypeOID]
		d.Fields[i].Format = d.columns[i]
	}
	d.Shape = k.p.shapes.Of(d.Fields)
	d.Fields = d.Shape.Fields
}

// second executes a call whose statement has been prepared in a transaction of its own.
// It reports false if the call is finished instead.
func (k *conn) second(c *Call) bool {
	switch {
	case c.abandonedNow(): // the request to cancel it may have come too early for what follows
		c.finish(ErrAbandoned)
	case c.describe && !k.renewed(c):
		c.finish(ErrElsewhere)
	default:
		k.execute(c)
		return true
	}
	k.settle(c)
	k.head++
	k.fresh = true
	return false
}

// renewed makes a call ready that has had its statement described for itself. It
// reports false if its arguments are not for that.
func (k *conn) renewed(c *Call) bool {
	k.complete(c.desc)
	c.describe, c.late = false, true // what is encoded now is for this connection only
	if c.kept != nil && !c.desc.same(c.kept) {
		c.stmt.forget(c.kept)
	}
	return c.encodeLate(k)
}

// goesOn executes a call that has described its statement, on the same connection. It
// reports false if the call must start anew.
func (k *conn) goesOn(c *Call) bool {
	if c.only || c.abandonedNow() || !c.encode() || c.late && !c.encodeLate(k) {
		return false
	}
	now := time.Now()
	k.p.lock()
	k.waited += now.Sub(k.began)
	k.began = now
	k.p.unlock()
	c.fresh, k.fresh = false, false
	k.p.stats.calls.Add(1)
	k.execute(c)
	return true
}

// execute sends a call that has the connection to itself, and whose statement has been
// prepared.
func (k *conn) execute(c *Call) {
	c.first, c.parsing, c.bound, c.complete = false, false, false, false
	k.syncs = 1
	if err := k.write(append(append(k.out[:0], c.msg...), syncMessage...)); err != nil {
		k.unwritten.Store(&err) // its reader finds out
		_ = k.net.Close()
	}
}

// unfit notes that what has been prepared for the head is not what its description
// says. Those behind it that execute the same hear of it from nobody else.
func (k *conn) unfit(c *Call) {
	for _, r := range k.group[k.head:] {
		r.stale = r.stale || r.desc == c.desc
	}
	if !c.renews {
		c.stmt.forget(c.desc)
		k.unprepare(c)
	}
}

// unprepare has the call's prepared statement closed with the next write.
func (k *conn) unprepare(c *Call) {
	if k.prepared.forget(c.desc.name) {
		k.closing = append(k.closing, c.desc.name)
	}
}

// restart makes a call start anew, whose answer was not what the description says.
func (k *conn) restart(c *Call) answer {
	k.p.stats.stale.Add(1)
	if c.stales++; c.stales > maxStales {
		c.finish(fmt.Errorf("flightpg: the columns of the result change with every execution"))
		return answerEnded
	}
	k.fresh = true
	c.renew("")
	return answerAgain
}

// How often a call is run again, each for its reason.
const (
	maxStales = 5
	maxStrays = 3
	maxLosses = 1
)

// RetryWithin is for how long a read may have been under way when its connection is lost
// and still run again. A connection that was dead before is found out in a round trip or
// two, to far away too. What has run for longer than that was lost as it ran: something
// on the way may cut off each that takes so long, and who waits has waited once. Only
// tests set it.
var RetryWithin = 500 * time.Millisecond

// stalePlan reports whether an error of an execution says that DDL has changed the
// statement's result ("cached plan must not change result type"), or that the server
// has lost it.
func stalePlan(err *pgconn.PgError) bool { return err.Code == "0A000" || err.Code == "26000" }

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
	k.p.answers.Add(1)
	k.cancelMu.Lock()
	c.underWay = false
	k.cancelMu.Unlock()
}

// pass gives the token away after an answer of the head, or frees the connection.
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

// fail handles an error of the server for the head. Nothing behind it in its
// transaction was executed.
func (k *conn) fail(ctx context.Context, c *Call, err *pgconn.PgError) answer {
	if handler := k.config.OnPgError; handler != nil && !handler(k.link.PgConn, err) {
		c.lastWord = err
		return k.lost(c, err)
	}
	last := k.head // of the transaction
	for last < len(k.group)-1 && !k.group[last].ends {
		last++
	}
	skipped := append([]*Call(nil), k.group[k.head+1:last+1]...)
	for _, r := range k.group[k.head : last+1] {
		if r.parsing && !r.parsed {
			k.prepared.remove(r.desc)
		}
	}
	k.failed = true
	k.p.stats.skipped.Add(uint64(len(skipped)))
	c.stmt.ran()

	k.cancelMu.Lock()
	for _, r := range k.group[k.head : last+1] {
		r.underWay = false
	}
	stray := err.Code == "57014" && k.cancelled && c.strays < maxStrays // query_canceled
	k.cancelMu.Unlock()

	wanted := !c.abandonedNow()
	end := answerEnded
	switch {
	case stray && wanted:
		if c.strays++; c.strays == maxStrays {
			c.alone = true // where there are none
		}
		k.p.stats.strays.Add(1)
		end = answerAgain
		skipped = append([]*Call{c}, skipped...)
	case k.armed && wanted && !c.alone && (err.Code == "55P03" || err.Code == "57014"): // lock_not_available
		// It was too long for company. Alone it waits as long as its caller likes.
		c.alone = true
		k.p.stats.parted.Add(1)
		if err.Code == "55P03" {
			k.p.block(c.stmt)
		} else {
			c.stmt.exceeded(k.link.Patience, k.link.Patience, 0) // at least
		}
		end = answerAgain
		skipped = append([]*Call{c}, skipped...)
	case c.describe:
		if c.renews {
			c.stmt.forget(c.kept)
		}
		c.finish(c.prepareError(err))
	case (!c.bound || c.stale || stalePlan(err)) && c.stales < maxStales && !c.genuine(err):
		c.stales++
		k.p.stats.stale.Add(1)
		if !c.renews && (!c.parsing || c.parsed) {
			k.prepared.remove(c.desc)
			k.closing = append(k.closing, c.desc.name)
		}
		c.renew(err.Code)
		end = answerAgain
	default:
		c.stmt.stayAlone(failMemory)
		c.finish(err)
	}
	if err.Code == "25006" { // read_only_sql_transaction
		// It may have taken a session lock before: the session must be gone
		// before its callers run it themselves.
		again := append(skipped, k.group[last+1:]...)
		k.head = last + 1
		k.abort()
		k.p.requeue(again, nil)
		return end
	}
	// What is behind the transaction is answered when its end has been read.
	k.head = last + 1
	more := k.head < len(k.group)
	if more {
		k.skip = 1
	} else {
		k.group, k.head = k.group[:0], 0 // nothing of it is on the connection any more
	}
	if k.p.requeue(skipped, c) {
		end = answerEnded
	}
	if more {
		k.group[k.head].wake <- struct{}{}
		return end
	}
	k.finishGroup(ctx)
	return end
}

// genuine reports whether an error of a statement's Parse or Bind is what a connection
// that knows nothing says: it has just been described, was the same before, and the
// server said the same.
func (c *Call) genuine(err *pgconn.PgError) bool {
	return c.renews && c.doubted != nil && c.doubt == err.Code && c.desc.same(c.doubted)
}

// moveOn lets the calls behind the head, whose answer takes long, be answered
// elsewhere. What they have sent here is executed all the same, when the head is
// done, and its answers are thrown away; so there is a limit to that.
func (k *conn) moveOn() {
	p := k.p
	rest := append([]*Call(nil), k.group[k.head+1:]...)
	p.lock()
	took := time.Since(k.began)
	ok := p.spare >= moveCost*len(rest)
	if ok {
		p.spare -= moveCost * len(rest)
		p.stuckLocked(k)
		if k.busy {
			k.load -= len(rest)
			p.sent -= len(rest)
		}
	}
	p.unlock()
	if !ok {
		return
	}
	k.moved, k.wasted = true, took
	k.cancelMu.Lock()
	for _, c := range rest {
		c.underWay, c.held = false, false
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

// finishGroup reads up to the last ReadyForQuery and frees the connection. The caller's
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

// ready reads up to the last ReadyForQuery.
func (k *conn) ready() error {
	for k.syncs > 0 {
		msg, err := k.front.Receive()
		if err != nil {
			return err
		}
		if z, ok := msg.(*pgproto3.ReadyForQuery); ok {
			k.syncs--
			k.retired = k.retired || z.TxStatus != 'I'
			continue
		}
		k.aside(msg)
	}
	return nil
}

// parkPatience is for how long a connection is kept whose request to cancel does not
// come back.
const parkPatience = 250 * time.Millisecond

// free gives the connection back, unless a request to cancel is on its way, which
// then does.
func (k *conn) free() {
	k.learn()
	if k.writing != nil { // the server has read it all
		<-k.writing
		k.writing = nil
	}
	k.cancelMu.Lock()
	killed, asked := k.killed, k.cancels > 0
	k.cancelMu.Unlock()
	if killed {
		k.abort()
		return
	}
	if asked {
		k.p.vacate(k) // nobody need wait for this one
		k.cancelMu.Lock()
		if k.parked = k.cancels > 0; k.parked {
			k.parking = time.AfterFunc(parkPatience, k.leave)
		}
		parked := k.parked
		k.cancelMu.Unlock()
		if parked {
			return
		}
	}
	k.p.release(k)
}

// leave closes a connection that has been parked for too long.
func (k *conn) leave() {
	k.cancelMu.Lock()
	parked := k.parked
	k.parked = false
	k.cancelMu.Unlock()
	if parked {
		k.abort()
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
				st.staySingle(probeRuns) // which of them?
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
	way := p.wayTime()
	if !k.several && !k.fresh && !k.moved {
		k.stmts[0].sample(max(took-way, 0), len(k.stmts))
	}
	p.lock()
	usual := p.groupTime.typical
	p.spare = min(p.spare+len(k.stmts), moveCost*maxSpare)
	p.groupTime.learn(took)
	each := max(took-way, 0) / time.Duration(len(k.stmts))
	p.callTime.learn(each)
	p.callLeast.learn(each)
	p.unlock()
	n := time.Duration(len(k.stmts))
	longer := func(d time.Duration) time.Duration { return max(min(d, own)-way-4*usual, 0) }
	for i, st := range k.stmts {
		switch {
		case n > 1 && !k.flushed && k.several: // whichever it was
			st.exceeded(0, longer(took)/n, usual)
			if k.late >= 0 && longer(own) > 0 {
				st.suspect.Store(suspectRuns)
			}
		case n > 1 && !k.flushed:
			st.exceeded(longer(own)/n, longer(took)/n, usual)
		case n == 1 || i == k.late:
			st.exceeded(longer(own), longer(took), usual)
		default:
			st.exceeded(0, 0, usual)
		}
	}
	if n > 1 && !k.moved && took > max(tailTime, 8*usual) {
		for _, st := range k.stmts {
			st.staySingle(probeRuns)
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
	for _, c := range k.group[min(k.head, len(k.group)):] { // those before are done, and their drivers' again
		c.underWay, c.held = false, false
	}
	k.cancelMu.Unlock()
	k.closed = true
	go k.hangUp() // which may take a moment, where the other side does not read
	k.p.lock()
	k.p.dropLocked(k)
	k.p.unlock()
}

// lost gives up a connection that failed. What it has not answered runs once more
// elsewhere: they are reads, and nobody has got any of it. But one that was under way
// for longer than RetryWithin does not: that is the head. c is the head, if that is the
// caller's, else nil.
func (k *conn) lost(c *Call, err error) (end answer) {
	calls := append([]*Call(nil), k.group[k.head:]...)
	k.cancelMu.Lock()
	cancelled := k.cancelled
	k.cancelMu.Unlock()
	k.abort()
	// What lies idle may have died of the same cause.
	go closeAll(k.p.takeIdle())
	again := calls[:0]
	end = answerAgain
	long := time.Since(k.began) > RetryWithin
	for i, r := range calls {
		stray := cancelled && r.strays < maxStrays // what came between closes connections for that
		if stray {
			if r.strays++; r.strays == maxStrays {
				r.alone = true
			}
		} else {
			r.losses++
		}
		if stray || r.losses <= maxLosses && !(long && i == 0) {
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
	cancelPatience = time.Second           // for the query to end; else the connection is closed
	leavePatience  = 10 * time.Millisecond // while its reader waits for that, who wants to leave
	cancelTimeout  = 15 * time.Second      // for the request, which nobody waits for then
)

// cancel asks the server to end the call, as soon as it is under way and unless its
// answer has ended. The request names the connection only, so it may hit another call
// of the group.
func (k *conn) cancel(c *Call) {
	k.cancelMu.Lock()
	defer k.cancelMu.Unlock()
	if !c.underWay {
		c.unwanted = true // if it is yet to be sent
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
		err := k.requestCancel(ctx)
		k.cancelMu.Lock()
		k.cancels--
		if err != nil {
			k.killed = true // it may be on its way still
		}
		release, killed := k.parked && k.cancels == 0, k.killed
		if release {
			k.parked = false
			k.parking.Stop()
		}
		k.cancelMu.Unlock()
		switch {
		case release && killed:
			k.abort()
		case release:
			k.p.release(k)
		}
	}()
}

// requestCancel sends a request to cancel, and returns when the other side has closed:
// then it has been delivered. pgx does not tell whether that is how it ended.
func (k *conn) requestCancel(ctx context.Context) error {
	h, config := *k.hijacked, *k.hijacked.Config
	var failed atomic.Pointer[error]
	config.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := k.hijacked.Config.DialFunc(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return &heardConn{c, &failed}, nil
	}
	h.Config = &config
	h.CustomData = make(map[string]any) // who watches a connection's contexts may write to it
	pg, err := pgconn.Construct(&h)
	if err != nil {
		return err
	}
	if err := pg.CancelRequest(ctx); err != nil {
		return err
	}
	if err := failed.Load(); err != nil {
		return *err
	}
	return nil
}

// heardConn notes how reading has failed, unless the other side has closed.
type heardConn struct {
	net.Conn
	failed *atomic.Pointer[error]
}

func (c *heardConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil && err != io.EOF {
		c.failed.Store(&err)
	}
	return n, err
}

// kill closes the connection under a call that does not end. Its reader notices, but
// the server does not: if the query had not begun when it was cancelled, it would run
// on for nobody. So it is cancelled once more.
func (k *conn) kill(c *Call) {
	k.cancel(c)
	k.cancelMu.Lock()
	defer k.cancelMu.Unlock()
	if c.underWay || c.held {
		k.killed = true // it may have all of the answer, and be about to give the connection back
		_ = k.net.Close()
	}
}
