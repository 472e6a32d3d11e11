package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// conn is a virtual connection: what database/sql takes for a connection. It
// costs next to nothing, so that N callers of one flight can hold N of them
// while PostgreSQL sees one.
//
//	Detached  no session. Shareable reads fly.
//	Attached  has a session, from the first statement that must not be shared
//	          until database/sql puts the connection back. All reads of that
//	          time use the session: they may depend on what happened there.
//	Pinned    keeps its session for life: a statement said that it changes the
//	          session's state. For advisory locks, until it holds none. What ran
//	          and says nothing of it (functions of somebody's, or its *pgx.Conn was
//	          handed out) has the session cleaned when the connection is put back.
//	Broken    database/sql will drop it.
//
// It serves one goroutine at a time, as database/sql promises; only what the session
// pool's lock guards is touched by others.
type conn struct {
	c       *Connector
	lease   *lease // nil: detached
	carried bool   // the session is from an earlier use of the connection, and nothing has run on it in this one
	direct  bool   // database/sql has it as it is, and says when it puts it back
	notes
	broken   bool
	tx       *tx
	prepared map[string]int // how many statements are open, by their text
	owners   []*stmt        // those that have one of the session's inner driver
	closed   bool
	replays  []replayRows // that nobody has had
	names    []string     // likewise, for columns
	raw      bool         // its *pgx.Conn is in the user's hands, and the epoch held
	held     bool         // the epoch is held for a write under way

	// Of who has it, for what has no context of its own: Conn.Raw.
	checkout context.Context //nolint:containedctx // the connection is his for as long

	// Where nobody says when it is put back, see hidden.go.
	loose   bool // the session may go to others
	strayed bool // it has, and what sequences gave there is gone
	reading int  // rows that are open

	lies bool // it has parked; then guarded by c.sessions.mu:

	parked, evicted bool
	lent            bool      // while parked: see lends
	end             time.Time // … when its time is over; zero: never
}

// notes are what is known of a connection's session that others must not have.
type notes struct {
	pinned bool // the caller may count on its state
	keeps  bool // he may, but no read that may be shared can depend on it
	closes bool // it is not to serve others as it is, but nobody counts on its state
	locks  bool // it may hold advisory locks
	inTx   bool // a transaction that was begun by text may be open
}

var (
	_ driver.Conn               = (*conn)(nil)
	_ driver.ConnBeginTx        = (*conn)(nil)
	_ driver.ConnPrepareContext = (*conn)(nil)
	_ driver.ExecerContext      = (*conn)(nil)
	_ driver.QueryerContext     = (*conn)(nil)
	_ driver.NamedValueChecker  = (*conn)(nil)
	_ driver.Pinger             = (*conn)(nil)
	_ driver.SessionResetter    = (*conn)(nil)
	_ driver.Validator          = (*conn)(nil)
)

// attach gives the connection a session if it has none.
func (cn *conn) attach(ctx context.Context) error {
	if cn.broken {
		return cn.refuse()
	}
	cn.retake(ctx)
	cn.carried = false
	if cn.lease != nil {
		return nil
	}
	l, err := cn.c.sessions.acquire(cn.opening(ctx))
	if err != nil {
		return err
	}
	cn.lease = l
	return nil
}

// refuse is for what a broken connection is asked for. In a transaction that has been
// lost then, whatever Commit would say.
func (cn *conn) refuse() error {
	if cn.tx != nil {
		cn.tx.lost = true
	}
	return driver.ErrBadConn
}

// detach gives the session back. bad: nobody may use it again.
func (cn *conn) detach(bad bool) {
	cn.unraw()
	if cn.lease == nil {
		return
	}
	for _, s := range cn.owners {
		s.disown(cn.lease.session)
	}
	cn.owners = nil
	if cn.c.sessions.leave(cn) { // else it was closed to make room
		if cn.lease.bad = cn.lease.bad || bad; cn.closes {
			cn.c.giveBack(cn.lease)
		} else {
			cn.c.sessions.release(cn.lease)
		}
	}
	cn.lease, cn.notes = nil, notes{}
}

// unraw ends the use of a connection whose *pgx.Conn was handed out: whatever ran on it
// may have been DDL.
func (cn *conn) unraw() {
	if cn.raw {
		cn.raw = false
		cn.c.db.Release()
		if cn.c.catalogs != nil {
			cn.c.catalogs.soon()
		}
	}
}

// begins notes what a statement that is about to run may do to the session.
func (cn *conn) begins(ctx context.Context, v *verdict) {
	if v.wants && v.effects != 0 && !v.several && v.sql != "" {
		cn.c.catalogs.wanted(ctx)
	}
	cn.judged(v)
}

// judged notes what a statement may do to the session.
func (cn *conn) judged(v *verdict) {
	cn.pinned = cn.pinned || v.effects&effectPins != 0
	cn.keeps = cn.keeps || v.effects&effectKeeps != 0
	cn.closes = cn.closes || v.effects&effectCloses != 0
	cn.locks = cn.locks || v.effects&effectLocks != 0
	cn.inTx = cn.inTx || v.effects&effectTx != 0
}

// refusedByParser reports whether err is PostgreSQL's complaint about the text or
// the names of a statement (SQLSTATE class 42), with the place in that statement:
// it comes before anything is executed. A function's own statements give theirs
// with Where or InternalQuery.
func refusedByParser(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && strings.HasPrefix(pgErr.Code, "42") &&
		pgErr.Position > 0 && pgErr.Where == "" && pgErr.InternalQuery == "" && pgErr.InternalPosition == 0
}

// stays reports whether the session stays with the connection while that lies
// idle, as far as can be told without asking the server.
func (cn *conn) stays() bool {
	if cn.inTx && cn.lease != nil {
		cn.inTx = false
		cn.pinned = cn.pinned || cn.lease.under == nil
		// With an open one pgx drops a connection before it is used again.
		cn.lease.bad = cn.lease.bad || cn.lease.under != nil && !cn.lease.idle()
	}
	return cn.counts() || cn.c.own() || cn.closes && (!cn.c.source.pooled && !cn.c.cleans() || cn.c.altering())
}

// altering reports whether DDL goes on. A session that is to be closed stays with its
// connection as long: a schema script runs on one, as with pgx, and the reads between its
// statements are not shared anyway.
func (c *Connector) altering() bool {
	switch {
	case c.cfg.MaxIdle <= 0: // nothing lies idle
		return false
	case c.catalogs == nil:
		return c.db.goesOn(catalogLull) > 0
	}
	return c.catalogs.lull() > 0
}

// counts reports whether somebody may count on the session's state while the connection
// lies idle.
func (cn *conn) counts() bool { return cn.pinned || cn.keeps || cn.locks }

// lends reports whether the session stays with the connection only because sessions depend
// on their callers, or may go to others until it is used again. It may go to another one,
// who is asked for: see suits.
func (cn *conn) lends() bool { return !cn.counts() && !cn.closes }

// sharesOn reports whether reads are shared though the connection has a session: it is
// from an earlier use, and what was left there cannot matter to them, or nobody counts
// on it.
func (cn *conn) sharesOn() bool {
	return cn.carried && !cn.pinned && !cn.locks && (cn.loose || !cn.c.own())
}

// unlocked asks the server whether the session holds advisory locks, if it may.
func (cn *conn) unlocked(ctx context.Context) {
	if !cn.locks || cn.pinned || cn.lease.under == nil {
		return
	}
	results, err := ask(ctx, cn.lease.under.PgConn(), "SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks"+
		" WHERE locktype OPERATOR(pg_catalog.=) 'advisory' AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()")
	if err == nil && cell(results, 0) == "0" {
		cn.locks = false
	}
}

// wrote notes that a statement that is not known to be a read has ended, or
// failed, on the server: readers must see what it did. In a transaction they
// do when that ends.
func (cn *conn) wrote(v *verdict) {
	if v != nil {
		cn.did(v, v.effects)
	}
}

// did is wrote for a statement of which it is known what it has done.
func (cn *conn) did(v *verdict, e effect) {
	if cn.tx != nil {
		cn.tx.wrote = true
		cn.tx.effects |= e
		e = cn.tx.effects
	}
	// COMMIT AND CHAIN ends one, and begins the next.
	if cn.tx == nil || cn.lease.idle() || v.effects&effectTx != 0 {
		cn.c.changed(e)
	}
}

// rewrites reports whether pgx runs another text than the one it is given, which nobody
// has judged.
func rewrites(args []driver.NamedValue) bool {
	for _, a := range args {
		switch a.Value.(type) {
		case pgx.NamedArgs, pgx.StrictNamedArgs:
		case pgx.QueryRewriter:
			return true
		}
	}
	return false
}

// holds makes fenced reads strict while a write is under way, until lifts. The
// server shows what was written before the writer hears of it: to a transaction,
// to a flight of another text, to other programs. Who has seen it there, and then
// reads, must not get an older answer from a flight that took off before it.
// Nobody sees what a transaction writes until that ends.
func (cn *conn) holds(v *verdict) {
	if cn.tx == nil || v.effects&effectTx != 0 {
		cn.hold()
	}
}

func (cn *conn) hold() {
	if !cn.held {
		cn.held = true
		cn.c.db.Hold()
	}
}

// lifts ends what holds began, after the write has raised the epoch.
func (cn *conn) lifts() {
	if cn.held {
		cn.held = false
		cn.c.db.Lift()
	}
}

// lost notes that the inner driver has not returned from a statement (a panic,
// runtime.Goexit): nobody knows what it did, nor what state the session is in.
func (cn *conn) lost(v *verdict, writes bool) {
	cn.broken, cn.lease.bad = true, true
	if writes {
		cn.wrote(v)
	}
}

// ran notes what err, from the session, says about the session.
func (cn *conn) ran(err error) {
	dead := cn.lease.dead()
	if errors.Is(err, driver.ErrBadConn) {
		// stdlib makes that of "conn busy" too: rows are open. In a transaction
		// database/sql goes on with the connection, and so does pgx.
		if cn.tx == nil || dead {
			cn.broken = true
		}
		cn.lease.bad = cn.lease.bad || cn.lease.under == nil // nobody can tell
	}
	cn.lease.bad = cn.lease.bad || dead
}

// bypass says why a query may not be shared here and now.
func (cn *conn) bypass(ctx context.Context, v *verdict) (Mode, Reason) {
	mode := cn.c.mode(ctx)
	switch {
	case mode == ModeOff:
		return mode, ReasonModeOff
	case cn.tx != nil && !cn.c.noSessionLayer:
		return mode, ReasonTransaction
	case cn.lease != nil && !cn.sharesOn() && !cn.c.noSessionLayer:
		if cn.c.own() && !cn.pinned {
			return mode, ReasonHooks
		}
		return mode, ReasonSession
	case v.wants && cn.c.cfg.PartitionKey == nil && cn.foreign(ctx):
		return mode, ReasonHooks // not for want of the catalog: hooks would be called for nobody
	case v.reason != ReasonNone && !(v.wants && cn.c.off.Load() != uint32(ReasonNone)):
		return mode, v.reason
	case cn.c.source.doors && cn.anothers(ctx):
		return mode, ReasonHooks
	case cn.c.off.Load() != uint32(ReasonNone):
		return mode, Reason(cn.c.off.Load())
	case v.refused.Load():
		return mode, ReasonRefused
	case cn.c.closed.Load(): // who has a sql.Conn may still use it
		return mode, ReasonSession
	case cn.c.cfg.MaxResult < 0:
		return mode, ReasonOverflow
	}
	return mode, v.avoided()
}

// query runs a query for the connection and for its statements: shared if it
// may be, else on the session.
func (cn *conn) query(ctx context.Context, via byte, query string, args []driver.NamedValue) (rows driver.Rows, err error) {
	if cn.broken {
		return nil, cn.refuse()
	}
	if err := ctx.Err(); err != nil && cn.lease == nil && cn.c.source.config != nil {
		if cn.c.source.config.DefaultQueryExecMode == pgx.QueryExecModeExec {
			return nil, leftError(ctx, err)
		}
		return nil, driver.ErrBadConn // as pgx says that it has sent nothing
	}
	text, values := query, args // as they can be shared
	if via == viaQuery && cn.c.source.config != nil {
		text, values = positional(query, args)
	}
	v := cn.c.verdicts.get(text, cn.c.peek(ctx))
	mode, why := cn.bypass(ctx, v)
	if v.wants && why == v.reason {
		by := cn.c.catalog(ctx, catalogWait)
		if err := ctx.Err(); by == nil && err != nil {
			return nil, err
		}
		v = cn.c.verdicts.get(text, by)
		mode, why = cn.bypass(ctx, v)
	}
	if v.judged.Stale && why == v.reason {
		cn.c.catalogs.unknown(v.gen)
	}
	if why == ReasonCatalogUnavailable && cn.c.hookError() != nil {
		why = ReasonHookFailed
	}
	if why == ReasonNone {
		var res *result
		var err error
		r := &read{via: via, query: text, args: values, v: v}
		res, why, err = cn.c.fly(ctx, mode, r)
		if err != nil {
			return nil, leftError(ctx, err)
		}
		if res != nil {
			return cn.replay(ctx, res), nil
		}
		if r.converted {
			query, args = text, r.args
		}
	}
	cn.c.stats.bypasses[why].Add(1)
	if err := cn.attachFor(ctx, query); err != nil {
		return nil, err
	}
	defer func() {
		if rows == nil {
			cn.ended()
		}
	}()
	// What the guard has stopped writes, whatever it was judged.
	writes := v.writes() || why == ReasonRefused || rewrites(args)
	before := cn.notes
	cn.begins(ctx, v)
	cn.showPrepared(ctx, v)
	if writes {
		cn.holds(v)
	}
	ended, returned := true, false
	defer func() {
		if !returned {
			cn.lost(v, writes)
			if cn.tx == nil {
				cn.detach(true) // database/sql does not give a connection back whose query has panicked
			}
		}
		if ended {
			cn.lifts()
		}
	}()
	if v.judged.Stale {
		args = cn.lease.asNew(via, query, args)
	}
	alive := !cn.lease.dead()
	rows, err = cn.lease.query(ctx, via, query, args)
	for n := 0; n < maxRenewals && (!v.several && cn.lease.outdated(err) || n == 0 && !writes && cn.lease.doubts(via, query, args, err)); n++ {
		rows, err = cn.lease.query(ctx, via, query, args)
	}
	if writes {
		err = cn.lease.answerLost(alive, &read{via: via, query: query, args: args}, false, err)
	}
	returned = true
	cn.ran(err)
	effects := v.effects
	if refusedByParser(err) && !v.several {
		cn.notes, effects = before, 0
	}
	switch {
	case err != nil && writes:
		cn.did(v, effects) // nobody knows what it did before it failed
		return nil, err
	case err != nil:
		return nil, err
	case !writes:
		return cn.reads(rows), nil
	case cn.tx != nil && v.leavesSession():
		cn.tx.wrote = true
		return rows, nil
	}
	ended = false
	cn.strayed = false
	cn.reading++
	return newFencedRows(rows, cn, v), nil
}

// QueryContext implements driver.QueryerContext.
func (cn *conn) QueryContext(ctx context.Context, query string, args []driver.NamedValue) (_ driver.Rows, err error) {
	if cn.c.cfg.PartitionKey != nil {
		defer recovered(&err)
	}
	return cn.query(ctx, viaQuery, query, args)
}

// exec runs a statement without rows on the session, for the connection and
// for its statements.
func (cn *conn) exec(ctx context.Context, via byte, query string, args []driver.NamedValue) (driver.Result, error) {
	cn.c.stats.execs.Add(1)
	if ctx.Err() != nil && cn.lease == nil && cn.c.source.config != nil {
		return nil, driver.ErrBadConn // as pgx says that it has sent nothing
	}
	if err := cn.attachFor(ctx, query); err != nil {
		return nil, err
	}
	defer cn.ended()
	v := cn.c.verdicts.get(query, cn.c.peek(ctx))
	if v.judged.Stale {
		cn.c.catalogs.unknown(v.gen)
	}
	before := cn.notes
	cn.begins(ctx, v)
	if v.writes() || rewrites(args) {
		cn.holds(v)
	}
	defer cn.lifts()
	returned := false
	defer func() {
		if !returned {
			cn.lost(v, v.writes() || rewrites(args))
		}
	}()
	if v.judged.Stale {
		args = cn.lease.asNew(via, query, args)
	}
	alive := !cn.lease.dead()
	res, err := cn.lease.exec(ctx, via, query, args)
	for n := 0; n < maxRenewals && !v.several && cn.lease.outdated(err); n++ {
		res, err = cn.lease.exec(ctx, via, query, args)
	}
	if v.writes() {
		err = cn.lease.answerLost(alive, &read{via: via, query: query, args: args}, true, err)
	}
	returned = true
	cn.ran(err)
	effects := v.effects
	if refusedByParser(err) && !v.several {
		cn.notes, effects = before, 0
	}
	cn.strayed = cn.strayed && err != nil
	cn.did(v, effects)
	return res, err
}

// ExecContext implements driver.ExecerContext.
func (cn *conn) ExecContext(ctx context.Context, query string, args []driver.NamedValue) (_ driver.Result, err error) {
	if cn.c.cfg.PartitionKey != nil {
		defer recovered(&err)
	}
	return cn.exec(ctx, viaQuery, query, args)
}

// CheckNamedValue implements driver.NamedValueChecker. pgx takes every value
// as it is; for other inner drivers the session converts.
func (cn *conn) CheckNamedValue(*driver.NamedValue) error { return nil }

// Ping implements driver.Pinger. It reaches the server.
func (cn *conn) Ping(ctx context.Context) (err error) {
	if cn.c.cfg.PartitionKey != nil {
		defer recovered(&err)
	}
	if err := cn.attach(ctx); err != nil {
		return err
	}
	err = cn.lease.ping(ctx)
	cn.ran(err)
	cn.ended()
	return err
}

// BeginTx implements driver.ConnBeginTx.
func (cn *conn) BeginTx(ctx context.Context, opts driver.TxOptions) (_ driver.Tx, err error) {
	if cn.c.cfg.PartitionKey != nil {
		defer recovered(&err)
	}
	if err := cn.attach(ctx); err != nil {
		return nil, leftError(ctx, err)
	}
	inner, err := cn.lease.begin(ctx, opts)
	cn.ran(err)
	if err != nil {
		cn.ended()
		return nil, err
	}
	cn.tx = &tx{cn: cn, inner: inner}
	return cn.tx, nil
}

// Begin implements driver.Conn. database/sql calls BeginTx.
func (cn *conn) Begin() (driver.Tx, error) {
	return cn.BeginTx(context.Background(), driver.TxOptions{})
}

// ResetSession implements driver.SessionResetter: database/sql takes the
// connection into use again.
func (cn *conn) ResetSession(ctx context.Context) error {
	cn.checkout = ctx
	if cn.broken {
		return driver.ErrBadConn
	}
	cn.tighten()
	cn.c.revive()
	if cn.lease == nil {
		return nil
	}
	if !cn.stays() {
		cn.detach(false)
		return nil
	}
	if !cn.c.sessions.unpark(cn) {
		cn.broken = true
		return driver.ErrBadConn
	}
	returned := false
	defer func() {
		if !returned { // a hook has panicked, as it would with pgx: database/sql forgets the connection
			cn.broken = true
			cn.detach(true)
		}
	}()
	err := cn.reset(ctx)
	returned = true
	return err
}

// reset makes the session that the connection has kept ready for its next user.
func (cn *conn) reset(ctx context.Context) error {
	if p := cn.c.sessions.db; p.anothers(p.partition(ctx), cn.lease.session) {
		cn.broken = true
		return driver.ErrBadConn
	}
	if err := cn.lease.ResetSession(ctx); err != nil {
		return err
	}
	cn.carried = true
	if cn.unlocked(ctx); !cn.stays() {
		cn.detach(false)
	}
	return nil
}

// IsValid implements driver.Validator: database/sql puts the connection back.
// The session goes back to its pool here, unless it is pinned. database/sql
// calls this after every use that did not end in driver.ErrBadConn, when all
// rows and the transaction are closed.
func (cn *conn) IsValid() bool {
	cn.checkout = nil
	if !cn.c.told.Load() {
		cn.c.told.Store(true)
	}
	cn.unraw()
	cn.tighten()
	switch {
	case cn.broken:
		return false
	case cn.lease == nil:
		return true
	case !cn.stays():
		cn.detach(false)
		return true
	case cn.c.source.pooled, !cn.lease.IsValid():
		cn.broken = true
		return false
	case !cn.c.sessions.park(cn):
		if cn.lends() || cn.closes && !cn.counts() && !cn.c.own() {
			cn.detach(false)
			return true
		}
		cn.broken = true
		return false
	}
	return true
}

// Close implements driver.Conn. A session that is still attached is closed: its
// state is unknown, or it is in a transaction that db.Close has overtaken.
func (cn *conn) Close() error {
	cn.broken = true
	if cn.tx != nil && cn.tx.wrote {
		cn.c.changed(cn.tx.effects)
	}
	cn.detach(!cn.loose) // where it may go to others there is nothing wrong with it
	if !cn.closed {
		cn.closed = true
		cn.c.leave()
	}
	return nil
}

// Conn returns the *pgx.Conn of the connection's session, for sql.Conn.Raw:
//
//	err := conn.Raw(func(dc any) error {
//		pgxConn := dc.(interface{ Conn() *pgx.Conn }).Conn()
//		...
//	})
//
// Until the connection goes back to the pool the session is its own, and every fenced read
// of the process behaves as a strict one: nobody can tell what is written through a raw
// connection. Then the session is cleaned, or closed.
// Where no session can be had while the context of db.Conn lasts, everything that is asked
// of the *pgx.Conn fails with the error that db.Conn would have had with pgx; likewise if
// the inner driver is not pgx. It panics with a [*HookPanicError] if a hook
// does.
func (cn *conn) Conn() *pgx.Conn {
	ctx := cn.checkout
	switch {
	case ctx == nil:
		ctx = context.Background()
	case ctx.Err() != nil: // with pgx the connection has been there since
		ctx = context.WithoutCancel(ctx)
	}
	if err := cn.attach(ctx); err != nil {
		if panicked := (*HookPanicError)(nil); errors.As(err, &panicked) {
			panic(panicked) // in Raw database/sql expects it
		}
		return unconnected(cn.c, err)
	}
	if cn.lease.under == nil {
		return unconnected(cn.c, errNotPgx)
	}
	cn.closes = true
	if !cn.raw {
		cn.raw = true
		cn.c.db.Hold()
	}
	return cn.lease.under
}

// tx is a transaction on the connection's session.
type tx struct {
	cn      *conn
	inner   driver.Tx
	wrote   bool
	lost    bool   // a statement has not reached it
	effects effect // of the statements in it
}

// Commit implements driver.Tx.
func (t *tx) Commit() error {
	if t.lost {
		_ = t.Rollback()
		return driver.ErrBadConn
	}
	if t.wrote {
		t.cn.hold()
		defer t.cn.lifts()
	}
	ended := false
	defer func() {
		if !ended { // a tracer has panicked: it may have happened, and the transaction may be open
			t.cn.lease.bad = true
			t.cn.broken = true
			_ = t.end(nil)
		}
	}()
	err := t.inner.Commit()
	ended = true
	return t.end(err)
}

// Rollback implements driver.Tx.
func (t *tx) Rollback() error {
	err := t.inner.Rollback()
	if err != nil {
		// database/sql keeps a connection whose driver has ResetSession and
		// IsValid after a rollback; this one is not known to have ended.
		t.cn.lease.bad = true
		t.cn.broken = true
	}
	return t.end(err)
}

// end raises the epoch on errors too: a commit whose answer was lost may have
// happened.
func (t *tx) end(err error) error {
	t.cn.tx = nil
	if t.wrote {
		t.cn.c.changed(t.effects)
	}
	t.cn.ran(err)
	t.cn.ended()
	return err
}

// fencedRows are rows of a statement that may have written. They raise the
// epoch when the statement has ended on the server: at the end of the rows, at
// an error and when they are closed, whatever the caller gets to.
type fencedRows struct {
	passedRows
	cn *conn
	v  *verdict // nil: it is known to be a read, see conn.reads
}

// Next implements driver.Rows.
func (r *fencedRows) Next(dest []driver.Value) error {
	err := r.inner.Next(dest)
	if err != nil {
		r.cn.wrote(r.v)
	}
	return err
}

// Close implements driver.Rows.
func (r *fencedRows) Close() error {
	if r.v != nil {
		defer r.cn.lifts()
	}
	defer r.cn.closedRows()
	defer r.cn.wrote(r.v)
	return r.inner.Close()
}
