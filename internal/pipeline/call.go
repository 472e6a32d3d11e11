package pipeline

import (
	"context"
	"encoding/binary"
	"math"
	"reflect"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// Call is one execution of a statement. Its exported methods are for its driver,
// one goroutine at a time.
type Call struct {
	p    *Pool
	stmt *Stmt
	read Read
	args []any

	// wake has room for one message: the token of the call's connection, or the news
	// that finished is set, or again.
	wake chan struct{}

	// The driver's.
	fresh    bool   // new: not submitted
	only     bool   // it is finished when its statement is described
	describe bool   // this round only describes the statement
	promised bool   // others wait for that
	desc     *Desc  // of this round; when describing, the one in the making
	msg      []byte // Bind and Execute
	solo     bool   // must run alone; set at each submission
	tailed   bool   // it may be slow: the answers before it are to be sent; likewise, in a group

	// Guarded by p.mu.
	queue      *queue // that it is in, or nil
	prev, next *Call  // there
	conn       *conn  // that it was sent on, or nil
	abandoned  bool   // nobody wants it: not to be queued again
	again      bool   // its statement has been described by another; it is new once more

	// The token holder's, or of whoever has taken the connection from the pool.
	parsing  bool // its Parse travels with it
	parsed   bool // and has succeeded
	begun    bool // Start was called for this answer
	stale    bool // the answer does not fit the description
	complete bool // the answer is, and the group's end is awaited
	losses   int  // connections lost
	strays   int  // cancel requests of others that hit it
	stales   int  // descriptions out of date
	moved    bool // away from behind another that took long: never again

	// Guarded by conn.cancelMu.
	settled   bool          // its answer has ended on the server
	cancelled chan struct{} // closed when the request to cancel it has returned, or nil

	// The outcome, written before the driver hears of it.
	finished bool
	err      error
	live     *Rows
	lastWord error // what the server said before a connection was lost
}

// NewCall makes a call. args must not change until it is finished, or replaced.
func (p *Pool) NewCall(st *Stmt, args []any, r Read) *Call {
	c := new(Call)
	c.Init(p, st, args, r)
	return c
}

// Init is NewCall for a Call that is part of something larger. A call that Run has
// finished may be made anew, and uses its memory again.
func (c *Call) Init(p *Pool, st *Stmt, args []any, r Read) {
	*c = Call{p: p, stmt: st, read: r, args: args, fresh: true, wake: c.wake, msg: c.msg[:0]}
}

// keptBytes is how large a message may be whose memory is used again.
const keptBytes = 1 << 10

// Forget lets go of all that a finished call refers to, but for what Init uses.
func (c *Call) Forget() {
	msg := c.msg[:0]
	if cap(msg) > keptBytes {
		msg = nil
	}
	*c = Call{wake: c.wake, msg: msg}
}

// SetArgs replaces the arguments by others of the same values. For the driver,
// between Run and Finish.
func (c *Call) SetArgs(args []any) { c.args = args }

// Err is the outcome of a finished call: nil, the server's *pgconn.PgError, or an
// error of the connection or of this package.
func (c *Call) Err() error { return c.err }

// Live returns the rest of the answer of a finished call whose Read did not take
// all of it, else nil. It must be closed.
func (c *Call) Live() *Rows { return c.live }

// Describe has the server describe a statement, if nobody has yet; then its ParamOIDs
// are known. It returns what a call of the statement would finish with otherwise.
func (p *Pool) Describe(ctx context.Context, st *Stmt) error {
	c := p.NewCall(st, nil, onlyDescribed{})
	c.only = true
	c.Finish(ctx)
	return c.err
}

// onlyDescribed is the Read of a call that executes nothing.
type onlyDescribed struct{}

func (onlyDescribed) Dispatch() bool     { return true }
func (onlyDescribed) Start(*Link, *Desc) {}
func (onlyDescribed) Row([][]byte) bool  { return true }

// Run drives the call in the caller's goroutine. It returns true when the call is
// finished. When ctx ends first it returns false at once, and the call goes on:
// somebody must call Finish.
//
// If the Read or an argument panics, Run does too, and the call is finished.
func (c *Call) Run(ctx context.Context) (finished bool) {
	if c.drive(ctx) {
		return true
	}
	c.p.stats.handed.Add(1)
	return false
}

// Finish drives the call to its end. When ctx ends nobody wants the call any more:
// it is not sent if it was not, and cancelled on the server otherwise.
func (c *Call) Finish(ctx context.Context) {
	if !c.drive(ctx) {
		c.giveUp(context.Cause(ctx))
	}
}

// drive is Run.
func (c *Call) drive(ctx context.Context) (finished bool) {
	for {
		ours := false
		if c.fresh {
			if ctx.Err() != nil || !c.prepare(ctx) {
				return false
			}
			if c.finished {
				return true
			}
			c.fresh = false
			ours = c.p.submit(c)
		}
		if !ours {
			if !c.await(ctx) {
				return false
			}
			if c.finished {
				return true
			}
			if c.again {
				c.again, c.fresh = false, true
				c.endDescribe()
				continue
			}
		}
		// The token of our connection is ours, and the next answer is for us.
		switch c.conn.answer(ctx, c) {
		case answerPoked:
			c.awaited()
			c.wake <- struct{}{} // for the next driver
			return false
		case answerEnded:
			return true
		}
		// Once more: it is queued again, or fresh.
	}
}

// awaited makes the channel. It is called before anybody else may send: a call
// that finds a connection free, and stays with its leader, needs none.
func (c *Call) awaited() {
	if c.wake == nil {
		c.wake = make(chan struct{}, 1)
	}
}

// await waits for a message.
func (c *Call) await(ctx context.Context) bool {
	done := ctx.Done()
	if done == nil {
		<-c.wake
		return true
	}
	select {
	case <-c.wake:
		return true
	case <-done:
		return false
	}
}

// prepare makes a fresh call ready to be sent. It reports false if ctx has ended.
func (c *Call) prepare(ctx context.Context) bool {
	for {
		if c.abandoned { // by this driver, if at all
			c.finish(ErrAbandoned)
			return true
		}
		if d := c.stmt.desc.Load(); d != nil {
			c.desc = d
			if c.only {
				c.finish(nil)
			} else if !c.encode() {
				c.finish(ErrElsewhere)
			}
			return true
		}
		wait := c.stmt.beginDescribe()
		if c.promised = wait == nil; !c.promised {
			late := time.NewTimer(describePatience)
			select {
			case <-wait:
				late.Stop()
				continue
			case <-ctx.Done():
				late.Stop()
				return false
			case <-late.C:
			}
		}
		c.describe, c.desc, c.msg = true, &Desc{name: newName()}, c.msg[:0]
		return true
	}
}

// describePatience is how long calls wait for another that describes their
// statement. It may be waiting for a lock.
const describePatience = 5 * time.Millisecond

func (c *Call) abandonedNow() bool {
	c.p.mu.Lock()
	defer c.p.unlock()
	return c.abandoned
}

// finish sets the outcome. Who is not the driver must send the message then.
func (c *Call) finish(err error) {
	c.endDescribe()
	c.err, c.finished = err, true
}

// endDescribe ends a round that describes the statement, however it ended.
func (c *Call) endDescribe() {
	c.describe = false
	if c.promised {
		c.promised = false
		c.stmt.endDescribe()
	}
}

// tell is finish for those who are not the driver.
func (c *Call) tell(err error) {
	c.finish(err)
	c.awaited()
	c.wake <- struct{}{}
}

// cancelGrace is how long a group with others in it gets before a call of it that
// nobody wants is cancelled: the request may hit them.
const cancelGrace = 20 * time.Millisecond

// giveUp ends a call that nobody wants.
func (c *Call) giveUp(cause error) {
	if c.fresh {
		c.finish(cause)
		return
	}
	p := c.p
	p.mu.Lock()
	p.takeInLocked()
	c.abandoned = true
	if c.queue != nil {
		c.queue.remove(c)
		p.unlock()
		c.finish(cause)
		return
	}
	k, solo := c.conn, c.solo
	p.unlock()
	// It was sent, or is finished. From now on it stays where it is.
	if k != nil {
		if solo {
			k.cancel(c)
		} else {
			defer time.AfterFunc(cancelGrace, func() { k.cancel(c) }).Stop()
		}
		defer time.AfterFunc(cancelPatience, func() { k.kill(c) }).Stop()
	}
	c.drive(context.Background())
	if k == nil {
		return
	}
	// The connection is not free before the request has returned. Who waits for
	// this call to be gone from the server may count on it.
	k.cancelMu.Lock()
	done := c.cancelled
	k.cancelMu.Unlock()
	if done != nil {
		late := time.NewTimer(cancelPatience)
		defer late.Stop()
		select {
		case <-done:
		case <-late.C:
		}
	}
}

// encoder encodes arguments. It serves one goroutine at a time: type maps
// remember what they have done.
type encoder struct {
	types *pgtype.Map
	eqb   pgx.ExtendedQueryBuilder
	usual bool // see encoders

	// What appendUsual has encoded.
	formats []int16
	values  [][]byte
	bytes   []byte
}

// encoders makes encoders from a connection's type map.
type encoders struct {
	mu    sync.Mutex  // guards base and usual
	base  *pgtype.Map // copied from, never encoded with
	usual bool        // integers are encoded by pgx's own codecs
	idle  sync.Pool
}

// learn takes over the types of the first connection. All others have the same:
// they were opened in the same way.
func (e *encoders) learn(m *pgtype.Map) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.base == nil {
		e.base = copyTypes(m)
		e.usual = usualIntegers(m)
	}
}

func (e *encoders) get() *encoder {
	if enc, _ := e.idle.Get().(*encoder); enc != nil {
		return enc
	}
	e.mu.Lock()
	base, usual := e.base, e.usual
	e.mu.Unlock()
	return &encoder{types: copyTypes(base), usual: usual}
}

// usualIntegers reports whether a type map encodes integers as pgx does if nobody
// has registered anything else.
func usualIntegers(m *pgtype.Map) bool {
	usual := pgtype.NewMap()
	if len(m.TryWrapEncodePlanFuncs) != len(usual.TryWrapEncodePlanFuncs) {
		return false
	}
	for i, f := range m.TryWrapEncodePlanFuncs {
		if reflect.ValueOf(f).Pointer() != reflect.ValueOf(usual.TryWrapEncodePlanFuncs[i]).Pointer() {
			return false
		}
	}
	for _, oid := range []uint32{pgtype.Int2OID, pgtype.Int4OID, pgtype.Int8OID} {
		have, ok := m.TypeForOID(oid)
		want, _ := usual.TypeForOID(oid)
		if !ok || have.Codec != want.Codec || m.FormatCodeForOID(oid) != pgtype.BinaryFormatCode {
			return false
		}
	}
	return true
}

// appendUsual encodes arguments of which pgx makes nothing special, integers for
// integers and strings, as pgx does, but without a copy of each. It reports false if
// there are others.
func (e *encoder) appendUsual(oids []uint32, args []any) bool {
	e.formats, e.values, e.bytes = e.formats[:0], e.values[:0], e.bytes[:0]
	if cap(e.bytes) > keptBytes {
		e.bytes = nil
	}
	if !e.usual {
		return false
	}
	for i, arg := range args {
		start := len(e.bytes)
		var n int64
		switch v := arg.(type) {
		case string:
			e.bytes = append(e.bytes, v...)
			if e.bytes == nil {
				e.bytes = []byte{} // not NULL
			}
			e.formats, e.values = append(e.formats, pgtype.TextFormatCode), append(e.values, e.bytes[start:])
			continue
		case int64:
			n = v
		case int:
			n = int64(v)
		case int32:
			n = int64(v)
		case int16:
			n = int64(v)
		default:
			return false
		}
		switch oid := oids[i]; {
		case oid == pgtype.Int8OID:
			e.bytes = binary.BigEndian.AppendUint64(e.bytes, uint64(n))
		case oid == pgtype.Int4OID && n == int64(int32(n)):
			e.bytes = binary.BigEndian.AppendUint32(e.bytes, uint32(n))
		case oid == pgtype.Int2OID && n == int64(int16(n)):
			e.bytes = binary.BigEndian.AppendUint16(e.bytes, uint16(n))
		default:
			return false
		}
		e.formats, e.values = append(e.formats, pgtype.BinaryFormatCode), append(e.values, e.bytes[start:])
	}
	return true
}

func copyTypes(m *pgtype.Map) *pgtype.Map {
	types := m.Copy()
	types.TryWrapEncodePlanFuncs = append([]pgtype.TryWrapEncodePlanFunc(nil), m.TryWrapEncodePlanFuncs...)
	return types
}

// encode makes the call's messages. It reports false for what pgx would refuse:
// its users know its errors.
func (c *Call) encode() bool {
	d := c.desc
	if len(c.args) != len(d.paramOIDs) {
		return false
	}
	var formats []int16
	var values [][]byte
	if len(c.args) > 0 {
		enc := c.p.encoders.get()
		if enc.appendUsual(d.paramOIDs, c.args) {
			ok := c.bind(enc.formats, enc.values)
			c.p.encoders.idle.Put(enc)
			return ok
		}
		for i, oid := range d.paramOIDs {
			// What a type that was registered for a Go type makes of a value, a
			// copied map does not know.
			if _, known := enc.types.TypeForOID(oid); !known && !plain(c.args[i]) {
				return false
			}
		}
		if err := enc.eqb.Build(enc.types, &pgconn.StatementDescription{ParamOIDs: d.paramOIDs}, c.args); err != nil {
			c.p.encoders.idle.Put(enc)
			return false
		}
		defer c.p.encoders.idle.Put(enc) // not after a panic in an argument's own method
		formats, values = enc.eqb.ParamFormats, enc.eqb.ParamValues
	}
	return c.bind(formats, values)
}

// maxParams is PostgreSQL's limit, of its protocol.
const maxParams = 65535

// bind makes a Bind and an Execute message.
func (c *Call) bind(formats []int16, values [][]byte) bool {
	d := c.desc
	size := 1 + 4 + 1 + len(d.name) + 1 + 2 + 2*len(formats) + 2 + 2 + 2*len(d.columns)
	for _, v := range values {
		size += 4 + len(v)
	}
	if len(values) > maxParams || size > math.MaxInt32 {
		return false
	}
	b := c.msg[:0]
	if cap(b) < size+len(executeAll) {
		b = make([]byte, 0, size+len(executeAll))
	}
	b = append(b, 'B')
	b = binary.BigEndian.AppendUint32(b, uint32(size-1))
	b = append(b, 0) // the unnamed portal
	b = append(b, d.name...)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(len(formats)))
	for _, f := range formats {
		b = binary.BigEndian.AppendUint16(b, uint16(f))
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(values)))
	for _, v := range values {
		if v == nil {
			b = binary.BigEndian.AppendUint32(b, math.MaxUint32) // NULL
			continue
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	b = binary.BigEndian.AppendUint16(b, uint16(len(d.columns)))
	for _, f := range d.columns {
		b = binary.BigEndian.AppendUint16(b, uint16(f))
	}
	c.msg = append(b, executeAll...)
	return true
}

// executeAll is an Execute message for the unnamed portal and all of its rows.
var executeAll = []byte{'E', 0, 0, 0, 9, 0, 0, 0, 0, 0}

// plain reports whether pgx needs no registered type for a value.
func plain(v any) bool {
	switch v.(type) {
	case nil, string, []byte, bool, int, int8, int16, int32, int64, uint8, uint16, uint32, uint64, float32, float64, time.Time:
		return true
	}
	return false
}
