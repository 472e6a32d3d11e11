package pipeline

import (
	"cmp"
	"context"
	"encoding/binary"
	"maps"
	"math"
	"reflect"
	"slices"
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
	careful  bool   // its connection shall say something before the answer
	describe bool   // this round only describes the statement
	promised bool   // others wait for that
	desc     *Desc  // of this round; when describing, the one in the making
	msg      []byte // Bind and Execute
	typed    bool   // its arguments are encoded by their types: not all are strings or NULL
	late     bool   // they are encoded by the connection that it is sent on
	renews   bool   // it is described on its own connection, and executed there at once; see renew
	kept     *Desc  // why: the description that all have, which may be out of date
	doubted  *Desc  // the one that it was executed with last
	doubt    string // what the server said then, or ""
	solo     bool   // must run alone; set whenever it is taken from the queue
	long     bool   // and may take as long as the application lets it
	tailed   bool   // it may be slow: it has a transaction of its own; likewise, in a group

	ctx context.Context //nolint:containedctx // with which it was submitted, where there is Config.For; read while it is queued

	// Guarded by p.mu.
	queued     bool      // it is in the queue
	prev, next *Call     // in it
	conn       *conn     // that it was sent on, or is granted, or nil
	abandoned  bool      // nobody wants it: not to be queued again
	again      bool      // its statement has been described by another; it is new once more
	since      time.Time // when it was queued first; zero if it never was

	// The token holder's, or of whoever has taken the connection from the pool.
	first    bool // only what prepares it has been sent
	granted  bool // the connection is its driver's, who is to send
	apart    bool // it has a transaction of its own, whatever its statement is
	ends     bool // the last one of its transaction
	parsing  bool // its Parse travels with it
	parsed   bool // and has succeeded
	bound    bool // its arguments have been taken
	begun    bool // Start was called for this answer
	stale    bool // the answer does not fit the description
	misread  bool // its text was parsed when it may have meant something else
	complete bool // the answer is, and the transaction's end is awaited
	losses   int  // connections lost
	strays   int  // cancel requests of others that hit it
	stales   int  // descriptions out of date
	alone    bool // it has been too long for company: never in a group again
	moved    bool // away from behind another that took long: never in a group again, either

	// Guarded by conn.cancelMu.
	underWay  bool          // it has been sent, and its answer has not ended on the server
	held      bool          // it has been sent, but is not under way before the timeouts are set
	unwanted  bool          // it is to be cancelled as soon as it is under way
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

// Careful has the call's connection say something at once, before the statement is
// executed, so that Silent tells a slow statement from a connection that carries nothing
// any more. For the driver, before Run.
func (c *Call) Careful() { c.careful = true }

// Silent reports whether the call has been sent, and nothing has come from its connection
// since. Anybody may ask, until the call is finished.
func (c *Call) Silent() bool {
	c.p.lock()
	k := c.conn
	c.p.unlock()
	return k != nil && !k.heard.Load()
}

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
func (onlyDescribed) Apart() bool        { return true }
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
			if c.p.cfg.For != nil {
				c.ctx = ctx
			}
			ours = c.p.submit(c)
			if c.fresh {
				continue // its connection's own codecs do not take its arguments
			}
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
			if c.granted {
				c.granted = false
				if !c.conn.sendOwn(c) {
					continue // it is queued again, or a message says what has become of it
				}
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
		if c.renews {
			c.describe, c.desc, c.msg = true, new(Desc), c.msg[:0]
			return true
		}
		if d := c.stmt.desc.Load(); d != nil {
			c.desc = d
			if c.only {
				c.finish(nil)
			} else if !c.encode() {
				c.renew("") // it may take others now
				continue
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
	c.p.lock()
	defer c.p.unlock()
	return c.abandoned
}

// finish sets the outcome. Who is not the driver must send the message then.
func (c *Call) finish(err error) {
	c.endDescribe()
	c.err, c.finished = err, true
}

// renew makes a call that has not been sent, or whose answer was not what its
// description says, start anew as on a connection that knows nothing: it has the
// connection to itself, has its statement described there, and executes it, as pgx
// does. said is the server's error, if that was the reason. If the description is
// another then, or if all goes well, the one that all have is forgotten.
func (c *Call) renew(said string) {
	if !c.renews {
		c.renews, c.kept = true, c.desc
	}
	c.doubted, c.doubt = c.desc, said
	c.endDescribe()
	c.fresh = true
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
	p.lock()
	p.takeInLocked()
	c.abandoned = true
	if c.queued {
		p.queue.remove(c)
		p.unlock()
		c.finish(cause)
		return
	}
	k, solo := c.conn, c.solo
	p.unlock()
	// It was sent, or is about to be, or is finished. From now on it stays where it is.
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

// typeMaps are pgx's, as they are made: no codec of theirs keeps anything, or is
// anybody's. But they remember what they have done, so each serves one goroutine at a
// time.
var typeMaps = sync.Pool{New: func() any { return pgtype.NewMap() }}

// knownTypes is one that is only asked which types there are.
var knownTypes = pgtype.NewMap()

// encode makes the call's messages, before anybody knows on which connection it will be
// sent. It reports false for what pgx would refuse. Where a connection may have
// another codec than pgx's, that one's own encodes, in encodeLate: codecs serve one
// goroutine at a time, and what one connection has registered says nothing of another.
//
// Values are encoded where they belong in the message: no other copy of them is made.
func (c *Call) encode() bool {
	oids := c.desc.paramOIDs
	if len(c.args) != len(oids) || len(oids) > maxParams {
		return false
	}
	c.late, c.typed = false, false
	odd := c.p.odd.Load()
	size := 0
	for i, oid := range oids {
		switch v := c.args[i].(type) {
		case string: // sent as it is, whatever codec its parameter's type has
			size += len(v)
			continue
		case nil:
			continue
		case []byte:
			size += len(v)
		}
		c.typed = true
		if _, known := knownTypes.TypeForOID(oid); !known || odd.has(oid) {
			c.late, c.msg = true, c.msg[:0]
			return true
		}
		size += sizeOfList(c.args[i])
	}
	b, formats := c.beginBind(len(oids), size+valueSize*len(oids))
	var types *pgtype.Map
	for i, oid := range oids {
		at := len(b)
		b = append(b, 0, 0, 0, 0) // its length
		ok, format := false, int16(pgtype.TextFormatCode)
		switch v := c.args[i].(type) {
		case string:
			b, ok = append(b, v...), true
		case nil:
			b, ok = binary.BigEndian.AppendUint32(b[:at], math.MaxUint32), true // NULL
			format = knownTypes.FormatCodeForOID(oid)
			at = -1
		case int64:
			b, ok = appendInteger(b, oid, v)
			format = pgtype.BinaryFormatCode
		case int:
			b, ok = appendInteger(b, oid, int64(v))
			format = pgtype.BinaryFormatCode
		case int32:
			b, ok = appendInteger(b, oid, int64(v))
			format = pgtype.BinaryFormatCode
		case int16:
			b, ok = appendInteger(b, oid, int64(v))
			format = pgtype.BinaryFormatCode
		}
		if !ok {
			if types == nil {
				types = typeMaps.Get().(*pgtype.Map)
			}
			value, f, err := appendValue(types, b, oid, c.args[i])
			switch {
			case err != nil:
				typeMaps.Put(types)
				return false
			case value == nil:
				b, at = binary.BigEndian.AppendUint32(b[:at], math.MaxUint32), -1
			default:
				b = value
			}
			format = f
		}
		if len(b) > math.MaxInt32 {
			return false
		}
		if at >= 0 {
			binary.BigEndian.PutUint32(b[at:], uint32(len(b)-at-4))
		}
		binary.BigEndian.PutUint16(b[formats+2*i:], uint16(format))
	}
	if types != nil {
		typeMaps.Put(types) // not after a panic in an argument's own method
	}
	return c.endBind(b)
}

// valueSize is what a value takes in a message that has no bytes of its own: a number
// and its length.
const valueSize = 4 + 8

// sizeOfList returns about how many bytes the elements of a list take in a message, so
// that they need not be moved while there come more. It may be off.
func sizeOfList(arg any) int {
	v := reflect.ValueOf(arg)
	if v.Kind() != reflect.Slice || v.Type().Elem().Size() <= 1 {
		return 0
	}
	return v.Len() * (4 + int(v.Type().Elem().Size()))
}

// appendInteger appends an integer to a parameter of such a type, as pgx does.
func appendInteger(b []byte, oid uint32, n int64) ([]byte, bool) {
	switch {
	case oid == pgtype.Int8OID:
		return binary.BigEndian.AppendUint64(b, uint64(n)), true
	case oid == pgtype.Int4OID && n == int64(int32(n)):
		return binary.BigEndian.AppendUint32(b, uint32(n)), true
	case oid == pgtype.Int2OID && n == int64(int16(n)):
		return binary.BigEndian.AppendUint16(b, uint16(n)), true
	}
	return b, false
}

// appendValue appends an argument as pgx.ExtendedQueryBuilder does, which would make a
// copy of its own: in the format that its type prefers, or else the other. It returns
// nil for NULL.
func appendValue(types *pgtype.Map, b []byte, oid uint32, arg any) (value []byte, format int16, err error) {
	format = types.FormatCodeForOID(oid)
	if _, text := arg.(*string); text {
		format = pgtype.TextFormatCode
	}
	if value, err = types.Encode(oid, format, arg, b); err == nil {
		return value, format, nil
	}
	format = pgtype.TextFormatCode + pgtype.BinaryFormatCode - format
	if value, other := types.Encode(oid, format, arg, b); other == nil {
		return value, format, nil
	}
	return nil, 0, err
}

// encodeLate is encode by a connection that is the caller's, with what is registered
// there.
func (c *Call) encodeLate(k *conn) bool {
	if len(c.args) != len(c.desc.paramOIDs) {
		return false
	}
	if len(c.args) == 0 {
		return c.bind(nil, nil)
	}
	var eqb pgx.ExtendedQueryBuilder
	if eqb.Build(k.link.Types, &pgconn.StatementDescription{ParamOIDs: c.desc.paramOIDs}, c.args) != nil {
		return false
	}
	return c.bind(eqb.ParamFormats, eqb.ParamValues)
}

// Oddities are what is registered on connections otherwise than pgx does by itself, as
// far as it matters to what arguments are encoded as. They are never changed. The zero
// value is a connection as pgx makes it.
type Oddities struct {
	// Types have another codec.
	Types map[uint32]struct{}
	// All says that any may.
	All bool
}

func (o *Oddities) has(oid uint32) bool {
	if o == nil {
		return false
	}
	_, odd := o.Types[oid]
	return odd || o.All
}

func (o *Oddities) any(oids []uint32) bool {
	return o != nil && slices.ContainsFunc(oids, o.has)
}

// and returns what may be odd on a connection of either kind.
func (o *Oddities) and(other *Oddities) *Oddities {
	if o == nil || other == nil {
		return cmp.Or(o, other)
	}
	both := &Oddities{Types: maps.Clone(o.Types), All: o.All || other.All}
	for oid := range other.Types {
		if both.Types == nil {
			both.Types = make(map[uint32]struct{})
		}
		both.Types[oid] = struct{}{}
	}
	if both.All == o.All && len(both.Types) == len(o.Types) {
		return o // nothing new
	}
	return both
}

// maxParams is PostgreSQL's limit, of its protocol.
const maxParams = 65535

// bind makes a Bind and an Execute message.
func (c *Call) bind(formats []int16, values [][]byte) bool {
	if len(values) > maxParams {
		return false
	}
	size := 0
	for _, v := range values {
		size += 4 + len(v)
	}
	if size > math.MaxInt32 {
		return false
	}
	b, at := c.beginBind(len(values), size)
	for i, v := range values {
		binary.BigEndian.PutUint16(b[at+2*i:], uint16(formats[i]))
		if v == nil {
			b = binary.BigEndian.AppendUint32(b, math.MaxUint32) // NULL
			continue
		}
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return c.endBind(b)
}

// beginBind begins a Bind message for so many values, which take about so many bytes. It
// returns where their formats go.
func (c *Call) beginBind(values, size int) (b []byte, formats int) {
	d := c.desc
	size += 1 + 4 + 1 + len(d.name) + 1 + 2 + 2*values + 2 + 2 + 2*len(d.columns) + len(executeAll)
	b = c.msg[:0]
	if cap(b) > keptBytes {
		b = nil // it may be on its way still, on a connection that was given up
	}
	if cap(b) < size {
		b = make([]byte, 0, size)
	}
	b = append(b, 'B', 0, 0, 0, 0)
	b = append(b, 0) // the unnamed portal
	b = append(b, d.name...)
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(values))
	formats = len(b)
	for range values {
		b = append(b, 0, 0)
	}
	return binary.BigEndian.AppendUint16(b, uint16(values)), formats
}

// endBind ends the Bind message, and appends the Execute message. It reports false if
// that is too long.
func (c *Call) endBind(b []byte) bool {
	d := c.desc
	b = binary.BigEndian.AppendUint16(b, uint16(len(d.columns)))
	for _, f := range d.columns {
		b = binary.BigEndian.AppendUint16(b, uint16(f))
	}
	if len(b) > math.MaxInt32 {
		return false
	}
	binary.BigEndian.PutUint32(b[1:], uint32(len(b)-1))
	c.msg = append(b, executeAll...)
	return true
}

// executeAll is an Execute message for the unnamed portal and all of its rows.
var executeAll = []byte{'E', 0, 0, 0, 9, 0, 0, 0, 0, 0}
