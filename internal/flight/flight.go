// Package flight is the table of flights: executions that are under way, found
// by key, with everyone who waits for them.
//
// It owns all state that callers of one key share, and knows nothing of SQL or
// of databases: what a flight executes is a [Runner], what it yields is a
// [Value]. Waiting is done on channels only, mutexes are held for a few
// instructions, so a test can drive the package with testing/synctest.
//
// A caller enters with a key. It either becomes the leader of a new flight,
// which it must then launch, or follows a flight that is there:
//
//	f, leader := table.Enter(key, flight.Fenced)
//	if leader {
//		f.Launch(ctx, runner)
//	}
//	v, err := f.Wait(ctx)
//
// The leader is no more than the first waiter: when its context ends it leaves
// like any other, and the flight goes on for those who stay.
package flight

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Rule says which flights of its key a caller may follow.
type Rule uint8

const (
	// Fenced allows a flight that is not dispatched, or that was dispatched at
	// an epoch that has not risen since: what was written through this process
	// before the caller came is in the flight's result.
	Fenced Rule = iota
	// Strict allows only a flight that is not dispatched: the result is what
	// the caller's own execution could have given.
	Strict
	// Join allows any flight, as golang.org/x/sync/singleflight does.
	Join
)

// ErrGoexit is what waiters get when the execution ended its goroutine with
// runtime.Goexit instead of returning.
var ErrGoexit = errors.New("flightpg: the execution of a shared read called runtime.Goexit")

// ErrAbandoned is the cancellation cause of a flight that its last waiter left.
var ErrAbandoned = errors.New("flightpg: every caller of the shared read has gone")

// PanicError is the value that every waiter panics with when the execution
// panicked.
type PanicError struct {
	Value any    // what the execution panicked with
	Stack []byte // its stack at that moment
}

func (p *PanicError) Error() string {
	return fmt.Sprintf("flightpg: panic in the execution of a shared read: %v\n\n%s", p.Value, p.Stack)
}

// Unwrap returns Value if it is an error.
func (p *PanicError) Unwrap() error {
	err, _ := p.Value.(error)
	return err
}

// Value is what a flight yields. It is shared: the table hands out one share
// per waiter, and each holder drops its share when it has done with it.
type Value interface {
	// Share is called once, before anyone sees the value, with the number of
	// shares that are handed out. Zero means that nobody is left to want it.
	Share(n int)
	// Keep reports whether further callers may have the value within its window,
	// and what it takes in memory beyond what it has been counted for, in bytes. It
	// is called before Share.
	Keep() (size int64, ok bool)
	// Retain adds a share. The table calls it only while it holds one itself.
	Retain()
	// Drop gives one share back.
	Drop()
}

// Runner is what a flight executes, once, in a goroutine of its own.
//
// ctx carries the leader's values but not its cancellation; it is cancelled
// with [ErrAbandoned] when the last waiter leaves. Run calls f.Dispatch just
// before the first byte leaves for the server, and returns [ErrAbandoned] if
// that reports false (ctx may not be cancelled yet then).
type Runner[V Value] interface {
	Run(ctx context.Context, f *Flight[V]) (V, error)
}

// Inline is a Runner whose first stretch the leader can run itself, without a
// goroutine for the flight.
type Inline[V Value] interface {
	Runner[V]
	// RunInline executes in the leader's goroutine, under the leader's own
	// context. It returns more == true when the flight must go on without this
	// goroutine, because ctx has ended or for reasons of its own: Run is then
	// called, in a goroutine, and goes on from there. f.TakeCancel must not be
	// called.
	RunInline(ctx context.Context, f *Flight[V]) (v V, err error, more bool)
	// Detach is called in the leader's goroutine before Run, which goes on when
	// the leader may have returned: what is the caller's must be copied.
	Detach()
}

// Epoch counts what may have changed the database. One Epoch serves all tables
// of a database in a process. The zero value is ready; all methods are safe for
// concurrent use.
type Epoch struct {
	n    atomic.Uint64
	open atomic.Int64
}

// Raise marks a point after which flights dispatched earlier are too old for
// new followers under [Fenced]. Call it after the write has completed on the
// server and before its caller hears of it.
func (e *Epoch) Raise() { e.n.Add(1) }

// Hold makes every fenced caller behave as a strict one until Release or Lift:
// for a write under way, which others may see before its caller hears of it, and
// for writes whose end nobody reports, on a raw connection in the user's hands.
func (e *Epoch) Hold() { e.open.Add(1) }

// Lift ends a Hold for a write that has raised the epoch by itself.
func (e *Epoch) Lift() { e.open.Add(-1) }

// Release ends a Hold, and raises the epoch.
func (e *Epoch) Release() {
	e.n.Add(1) // before the hold ends, so that no reader slips between
	e.open.Add(-1)
}

// Now returns the current epoch: the number of raises so far.
func (e *Epoch) Now() uint64 { return e.n.Load() }

// Key is what makes two reads identical. Keys are compared in full; the hash
// only finds the place to look.
type Key struct {
	Text string // kept by reference
	Args []byte // copied when a flight is made

	Large *Large // or nil: there is nothing that is too long for Args
}

// shardCount bounds how many callers of different keys can meet on one lock.
// A power of two.
const shardCount = 64

// mapKept is for how many keys a shard without any keeps its map's memory.
const mapKept = 128

// Options configure a Table.
type Options struct {
	// Width is how many flights of one key may run at a time. At least 1.
	Width int
	// Window is how long a finished flight still takes followers (never under
	// Strict, and under Fenced only while its epoch stands). Zero: not at all.
	Window time.Duration
	// Take and Give, if there are any, count what is kept in a window beside the
	// values: keys, and the table's own. Take reports false where there is no room
	// for so many bytes; then nothing is kept. It may call MakeRoom.
	Take func(n int64) bool
	Give func(n int64)
	// Overdue, if there is one, is called when a flight is overdue that was dispatched so
	// long ago, before another takes its place: what its Runner has that has lain idle
	// since may be as dead. See Watched.
	Overdue func(ago time.Duration)
}

// Table holds the flights of one connector. It is safe for concurrent use.
type Table[V Value] struct {
	epoch  *Epoch
	opts   Options
	seed   maphash.Seed
	hash   func(seed maphash.Seed, k Key) uint64 // replaced by tests to force collisions
	shards [shardCount]shard[V]

	kept  atomic.Int64  // results
	hand  atomic.Uint32 // where MakeRoom has looked last
	texts texts
}

type shard[V Value] struct {
	// mu guards everything below, every slot of the shard and the fields of
	// its flights that say so. Nothing that can block, and no code of a Runner
	// or a caller, runs while it is held; a Value's methods do and must be
	// quick.
	mu    sync.Mutex
	slots map[uint64]*slot[V]
	most  int // keys in slots at a time, since it was made
	stats Stats
	spare []*entry[V] // of keys that are gone; at most spareEntries

	oldest, newest *keeping[V] // what is kept, in the order of landing: of expiry, too
	hand           *keeping[V] // what MakeRoom looks at next; nil: the oldest
	expiry         *time.Timer // of the oldest, or of one that is gone
	expiring       bool        // it runs

	_ [64]byte // a cache line between the locks of neighbours
}

// slot is the state of one key. It exists while a flight of the key does.
//
//	newest ── running, may take followers      running: how many execute,
//	pending ─ gathers callers until one lands  abandoned ones included,
//	kept ──── finished, within its window      but not those that are overdue
type slot[V Value] struct {
	next *slot[V] // another key with the same hash
	hash uint64
	text string
	args []byte
	home *entry[V] // that it is part of

	large *Large // of who made it, or nil

	running int
	overdue int
	out     *Flight[V] // the last of these that began, linked by under
	newest  *Flight[V]
	pending *Flight[V]
	kept    *Flight[V]
}

// entry is a key with its first flight: most have no other. One that nobody but
// its leader has ever held is used again, by the same shard: what still points at
// it looks at it under the shard's lock, by identity.
type entry[V Value] struct {
	slot   slot[V]
	flight Flight[V]
}

// Limits of what is kept to be used again, in each shard.
const (
	spareEntries = 16
	spareArgs    = 256 // bytes
)

// entryLocked returns an entry for a key that has none.
func (s *shard[V]) entryLocked(h uint64, k Key) *entry[V] {
	var e *entry[V]
	var args []byte
	if n := len(s.spare) - 1; n >= 0 {
		e, s.spare[n] = s.spare[n], nil
		s.spare = s.spare[:n]
		args = e.slot.args[:0]
	} else {
		e = new(entry[V])
	}
	e.slot = slot[V]{hash: h, text: k.Text, args: append(args, k.Args...), home: e, large: k.Large}
	if k.Large != nil {
		k.Large.shard, k.Large.slotted = &s.mu, true
	}
	return e
}

// spareLocked keeps an entry that nobody holds any more.
func (s *shard[V]) spareLocked(e *entry[V]) {
	if len(s.spare) >= spareEntries {
		return
	}
	args := e.slot.args[:0]
	if cap(args) > spareArgs {
		args = nil
	}
	*e = entry[V]{slot: slot[V]{args: args}}
	s.spare = append(s.spare, e)
}

type state uint8

const (
	waiting    state = iota // not yet dispatched: may still see everything
	dispatched              // its query is on the way: sees what was there
	landed                  // its outcome is published
)

// Flight is one execution and everyone waiting for it.
type Flight[V Value] struct {
	t *Table[V]
	s *shard[V]

	// Guarded by s.mu.
	slot    *slot[V]
	state   state
	refs    int         // waiters; never rises from 0: who finds nobody waiting starts anew
	epoch   uint64      // at dispatch
	strict  atomic.Bool // one of its callers is; not changed any more once it is dispatched
	cleared bool        // may run: false only while it is pending
	run     Runner[V]
	ctx     context.Context
	cancel  context.CancelCauseFunc // nil when taken over by the Runner
	keep    *keeping[V]             // while kept
	watched Watched                 // its Runner, or nil; set before it is dispatched
	sent    time.Duration           // when it was dispatched last, if it is watched; see clock
	overdue bool                    // see Watched
	under   *Flight[V]              // the flight of its key that began before it and has not landed

	careful bool // set when it is cleared
	atOnce  bool // cleared when it was made; its leader's

	// done is closed when the flight has landed. It is made, under s.mu, by who
	// first has to wait: a leader that runs its flight itself does not.
	done chan struct{}

	// Written once before done is closed, read after.
	val   V
	err   error
	panic *PanicError
}

// Stats are a Table's figures. The first group only rises. A caller is counted once, as
// he entered first: Again changes none of that group, whatever he becomes.
type Stats struct {
	Flights   uint64 // flights begun: callers that found none they might follow
	Joins     uint64 // callers that followed a flight
	Fenced    uint64 // callers that found a flight of their key under way, but dispatched too early for their rule
	Abandoned uint64 // flights that their last waiter left before they landed
	Panics    uint64 // executions that panicked or called runtime.Goexit
	Overdue   uint64 // flights that were given up but for those who waited, see Watched

	Flying  int64 // flights begun and not landed, now
	Waiting int64 // callers waiting for a flight to land, now
}

// New makes a Table. Tables of one database share its epoch.
func New[V Value](epoch *Epoch, opts Options) *Table[V] {
	if opts.Width < 1 {
		opts.Width = 1
	}
	t := &Table[V]{epoch: epoch, opts: opts, seed: maphash.MakeSeed(), hash: hashKey}
	for i := range t.shards {
		t.shards[i].slots = make(map[uint64]*slot[V])
	}
	return t
}

func hashKey(seed maphash.Seed, k Key) uint64 {
	h := maphash.String(seed, k.Text)
	if len(k.Args) > 0 {
		h = h*0x9E3779B97F4A7C15 ^ maphash.Bytes(seed, k.Args)
	}
	return h
}

// Enter adds the caller to a flight of the key that its rule allows, or makes
// one. A caller that gets leader == true must call Launch; every caller must
// then call Wait, once.
func (t *Table[V]) Enter(k Key, rule Rule) (f *Flight[V], leader bool) { return t.enter(k, rule, 1) }

// Again is Enter for a caller whose flight has landed without an outcome for him. He
// was counted then.
func (t *Table[V]) Again(k Key, rule Rule) (f *Flight[V], leader bool) { return t.enter(k, rule, 0) }

// enter counts the caller as so many.
func (t *Table[V]) enter(k Key, rule Rule, count uint64) (f *Flight[V], leader bool) {
	if rule == Fenced && t.epoch.open.Load() > 0 {
		rule = Strict
	}
	// The epoch is read after the call began: at worst the caller asks for
	// more than it must.
	epoch := t.epoch.Now()
	h := t.hash(t.seed, k)
	s := &t.shards[h%shardCount]

	var after aftermath[V]
	s.mu.Lock()
	defer func() {
		s.mu.Unlock()
		if after.silence > 0 {
			after.do(t)
		}
	}()
	sl := s.findLocked(h, k)
	if sl == nil {
		e := s.entryLocked(h, k)
		sl, f = &e.slot, &e.flight
		sl.next = s.slots[h]
		s.slots[h] = sl
		s.most = max(s.most, len(s.slots))
		s.leadLocked(t, sl, f, count)
		f.enteredLocked(rule)
		return f, true
	}
	if f := sl.kept; f != nil && f.allowsLocked(rule, epoch) && time.Now().Before(f.keep.expires) {
		f.val.Retain()
		f.keep.given = true
		f.awaitLocked()
		s.stats.Joins += count
		return f, false
	}
	if sl.out != nil {
		sl.slowLocked(&after)
	}
	if f := sl.newest; f != nil {
		if f.allowsLocked(rule, epoch) {
			f.joinLocked(count)
			f.enteredLocked(rule)
			return f, false
		}
		s.stats.Fenced += count
	}
	if f := sl.pending; f != nil {
		f.joinLocked(count)
		f.enteredLocked(rule)
		return f, false
	}

	f = new(Flight[V])
	s.leadLocked(t, sl, f, count)
	f.enteredLocked(rule)
	return f, true
}

// leadLocked makes f a flight of the key, with its leader.
func (s *shard[V]) leadLocked(t *Table[V], sl *slot[V], f *Flight[V], count uint64) {
	f.t, f.s, f.slot, f.refs = t, s, sl, 1
	s.stats.Flights += count
	s.stats.Flying++
	s.stats.Waiting++
	if sl.running < t.opts.Width {
		f.atOnce = true
		f.clearLocked()
	} else {
		sl.pending = f
	}
}

// landedAlready is the done channel of those who find a flight landed.
var landedAlready = func() chan struct{} {
	c := make(chan struct{})
	close(c)
	return c
}()

// awaitLocked makes done for somebody who is going to wait.
func (f *Flight[V]) awaitLocked() {
	switch {
	case f.done != nil:
	case f.state == landed:
		f.done = landedAlready
	default:
		f.done = make(chan struct{})
	}
}

func (f *Flight[V]) allowsLocked(rule Rule, epoch uint64) bool {
	switch {
	case f.state == waiting:
		return true
	case rule == Fenced:
		return f.epoch >= epoch
	default:
		return rule == Join
	}
}

func (f *Flight[V]) joinLocked(count uint64) {
	f.awaitLocked()
	f.refs++
	f.s.stats.Joins += count
	f.s.stats.Waiting++
}

// clearLocked lets the flight run and offers it to the callers to come.
func (f *Flight[V]) clearLocked() {
	sl := f.slot
	f.cleared, f.careful = true, sl.overdue > 0
	f.under, sl.out = sl.out, f
	sl.running++
	sl.newest = f
}

// Launch hands over what the flight executes: at once, or when an earlier
// flight of the key lands. Only the leader calls it, once.
func (f *Flight[V]) Launch(ctx context.Context, run Runner[V]) {
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	f.s.mu.Lock()
	f.ctx, f.cancel, f.run = ctx, cancel, run
	if f.watched == nil {
		f.watched, _ = run.(Watched)
	}
	f.awaitLocked()
	cleared := f.cleared
	f.s.mu.Unlock()
	if cleared {
		go f.fly()
	}
}

// Lead is Launch and Wait for a leader that executes the flight itself. When its
// context ends first, the flight goes on in a goroutine for those who stay. So
// does one that an earlier flight of the key keeps from running yet. Only the
// leader calls it, once.
func (f *Flight[V]) Lead(ctx context.Context, run Inline[V]) (V, error) {
	f.watched, _ = run.(Watched) // nobody looks before it is dispatched
	// A flight that was not cleared may be so by now: Launch sees.
	if f.atOnce {
		v, panicked, err, landed := f.inline(ctx, run)
		if panicked != nil {
			panic(panicked)
		}
		if landed {
			return v, err // the flight may be another's by now
		}
	}
	run.Detach()
	f.Launch(ctx, run)
	return f.Wait(ctx)
}

// inline executes the flight in the leader's goroutine, and reports whether it
// has landed, and its outcome then. As the leader is one of the waiters, nobody
// else can be the last to leave.
func (f *Flight[V]) inline(ctx context.Context, run Inline[V]) (v V, panicked *PanicError, err error, landed bool) { //nolint:revive // as Inline has it
	err = ErrGoexit
	returned, more := false, false
	defer func() {
		if !returned {
			panicked = panicError(recover())
			f.panic = panicked
		}
		if landed = !more; landed {
			f.land(v, err)
		}
	}()
	v, err, more = run.RunInline(ctx, f)
	returned = true
	return v, nil, err, !more
}

// Dispatch marks the flight as dispatched: from now on its result is as old as
// the server's next snapshot. It reports false if nobody waits any more; the
// Runner should then return without executing anything. Calling it again, for
// a repeated execution, changes nothing: the first dispatch counts.
func (f *Flight[V]) Dispatch() bool {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	if f.refs == 0 {
		return false
	}
	if f.state == waiting {
		f.state = dispatched
		f.epoch = f.t.epoch.Now()
	}
	if f.watched != nil {
		f.sent = clock()
	}
	return true
}

// enteredLocked notes what a caller expects of the flight.
func (f *Flight[V]) enteredLocked(rule Rule) {
	if rule == Strict { // it is not dispatched, see allowsLocked
		f.strict.Store(true)
	}
}

// Strict reports whether one of those who will get the flight's value entered it with
// the Strict rule. It is for the Runner, behind Dispatch: then that does not change any
// more.
func (f *Flight[V]) Strict() bool { return f.strict.Load() }

// Sole reports whether nobody but one caller waits, now.
func (f *Flight[V]) Sole() bool {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	return f.refs <= 1
}

// TakeCancel makes the Runner the owner of its context: the table does not
// cancel it on landing, as a value that is still being read needs. The last
// waiter's leaving before then cancels it all the same.
func (f *Flight[V]) TakeCancel() context.CancelFunc {
	f.s.mu.Lock()
	defer f.s.mu.Unlock()
	cancel := f.cancel
	f.cancel = nil
	return func() { cancel(nil) }
}

// fly executes the flight and publishes its outcome, whatever the Runner does.
func (f *Flight[V]) fly() {
	var v V
	err := ErrGoexit
	returned := false
	defer func() {
		if !returned {
			f.panic = panicError(recover())
		}
		f.land(v, err)
	}()
	v, err = f.run.Run(f.ctx, f)
	returned = true
}

// panicError returns what the waiters of an execution panic with that ended in
// such a panic: nil for runtime.Goexit.
func panicError(p any) *PanicError {
	switch p := p.(type) {
	case nil:
		return nil
	case *PanicError: // it has come from another goroutine, with the stack there
		return p
	default:
		return &PanicError{Value: p, Stack: debug.Stack()}
	}
}

// land removes the flight from the table and then wakes its waiters, in this
// order: a caller that comes later never gets a finished result unless a
// window is configured. It lets the key's pending flight go.
func (f *Flight[V]) land(v V, err error) {
	t, s, sl := f.t, f.s, f.slot
	failed := err != nil || f.panic != nil
	var k, expired *keeping[V]
	if t.opts.Window > 0 && !failed {
		k = f.keepable(v) // before the lock: it may have to make room
	}

	s.mu.Lock()
	f.val, f.err = v, err
	f.state = landed
	shares := f.refs
	f.landedLocked(failed)
	if sl.newest == f { // by identity: a newer flight's entry is not ours to remove
		sl.newest = nil
		if k != nil && f.refs > 0 {
			if sl.kept != nil {
				expired = sl.kept.keep
				s.unkeepLocked(expired)
			}
			s.keepLocked(k)
			shares++
		}
	}
	unkept, text := k != nil && sl.kept != f, sl.text
	if !failed {
		v.Share(shares)
	}
	s.stats.Flying--
	s.stats.Waiting -= int64(f.refs)
	if f.panic != nil || err == ErrGoexit {
		s.stats.Panics++
	}
	next := sl.pending
	if next != nil && sl.running < t.opts.Width {
		sl.pending = nil
		next.clearLocked()
	} else {
		next = nil
	}
	launched := next != nil && next.run != nil
	cancel, done := f.cancel, f.done
	f.run, f.ctx, f.cancel = nil, nil, nil // one that is kept holds nothing of its leader's
	if s.dropIfEmptyLocked(sl) && done == nil && f.panic == nil && f == &sl.home.flight {
		s.spareLocked(sl.home) // its leader alone has had it, and does not look again
	}
	s.mu.Unlock()

	if done != nil {
		close(done)
	}
	if cancel != nil {
		cancel(nil)
	}
	if expired != nil {
		expired.drop()
	}
	if unkept {
		k.uncount(t, text) // the flight may be another's by now
	}
	if launched { // else its leader is about to call Launch
		go next.fly()
	}
}

// Wait returns the flight's outcome, or ctx's error if that ends first. The
// caller then has left the flight; the last one to leave cancels it. If the
// execution panicked, Wait panics with a [*PanicError].
//
// A caller that gets a value owns one share of it.
func (f *Flight[V]) Wait(ctx context.Context) (V, error) {
	end := ctx.Done()
	if end == nil { // a receive costs half as much as a select
		<-f.done
		return f.outcome()
	}
	select {
	case <-f.done:
	case <-end:
		err := ctx.Err()
		f.leave(err == context.DeadlineExceeded)
		var none V
		return none, err
	}
	return f.outcome()
}

func (f *Flight[V]) outcome() (V, error) {
	if f.panic != nil {
		panic(f.panic)
	}
	return f.val, f.err
}

// leave takes one waiter off. The last one out removes the flight from the
// table in the same critical section: nobody can follow what is being given up. late: the
// waiter's deadline has passed.
func (f *Flight[V]) leave(late bool) {
	s := f.s
	s.mu.Lock()
	if f.state == landed {
		s.mu.Unlock()
		<-f.done
		if f.err == nil && f.panic == nil {
			f.val.Drop()
		}
		return
	}
	f.refs--
	s.stats.Waiting--
	sl := f.slot
	var after aftermath[V]
	if late {
		sl.silentLocked(&after)
	}
	if f.refs > 0 {
		s.mu.Unlock()
		after.do(f.t)
		return
	}
	s.stats.Abandoned++
	lingers := f.watchedLocked() != nil
	switch f {
	case sl.pending: // never ran, never will
		sl.pending = nil
		s.stats.Flying--
	case sl.newest:
		sl.newest = nil
	}
	s.dropIfEmptyLocked(sl)
	cancel := f.cancel
	s.mu.Unlock()
	if cancel != nil {
		cancel(ErrAbandoned)
	}
	after.do(f.t)
	if lingers {
		f.abandoned()
	}
}

// Forget closes the key's dispatched flight, and one kept in its window, to
// new followers. Those who wait for it keep it. A flight that is not
// dispatched yet stays open: it is as fresh as a new one.
func (t *Table[V]) Forget(k Key) {
	h := t.hash(t.seed, k)
	s := &t.shards[h%shardCount]
	s.mu.Lock()
	sl := s.findLocked(h, k)
	if sl == nil {
		s.mu.Unlock()
		return
	}
	if sl.newest != nil && sl.newest.state != waiting {
		sl.newest = nil
	}
	var kept *keeping[V]
	if sl.kept != nil {
		kept = sl.kept.keep
		s.unkeepLocked(kept)
	}
	s.dropIfEmptyLocked(sl)
	s.mu.Unlock()
	if kept != nil {
		kept.drop()
	}
}

// Stats returns the sum over the shards. Shards are read one after the other,
// so figures that change together may be off by what happened in between.
func (t *Table[V]) Stats() Stats {
	var sum Stats
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		st := s.stats
		s.mu.Unlock()
		sum.Flights += st.Flights
		sum.Joins += st.Joins
		sum.Fenced += st.Fenced
		sum.Abandoned += st.Abandoned
		sum.Panics += st.Panics
		sum.Overdue += st.Overdue
		sum.Flying += st.Flying
		sum.Waiting += st.Waiting
	}
	return sum
}

// Keys returns how many keys the table holds.
func (t *Table[V]) Keys() int {
	n := 0
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for _, first := range s.slots {
			for sl := first; sl != nil; sl = sl.next {
				n++
			}
		}
		s.mu.Unlock()
	}
	return n
}

// findLocked returns the slot of a key. It may let go of the lock for as long as it takes
// to digest what is large: then what it returns is as of the end.
func (s *shard[V]) findLocked(h uint64, k Key) *slot[V] {
	for sl := s.slots[h]; sl != nil; {
		if sl.text == k.Text && string(sl.args) == string(k.Args) {
			switch sl.large.compareLocked(k.Large) {
			case same:
				return sl
			case unknown:
				s.decide(sl.large, k.Large)
				sl = s.slots[h] // what has come and gone meanwhile
				continue
			}
		}
		sl = sl.next
	}
	return nil
}

// dropIfEmptyLocked removes a key that has no flight, and reports whether it has.
func (s *shard[V]) dropIfEmptyLocked(sl *slot[V]) bool {
	if sl.running > 0 || sl.newest != nil || sl.overdue > 0 || sl.pending != nil || sl.kept != nil {
		return false
	}
	if sl.large != nil {
		sl.large.slotted = false
	}
	first := s.slots[sl.hash]
	if first == sl {
		if sl.next == nil {
			delete(s.slots, sl.hash)
			if len(s.slots) == 0 && s.most > mapKept {
				s.slots, s.most = make(map[uint64]*slot[V]), 0 // a map never gives memory back
			}
		} else {
			s.slots[sl.hash] = sl.next
		}
		return true
	}
	for prev := first; prev != nil; prev = prev.next {
		if prev.next == sl {
			prev.next = sl.next
			return true
		}
	}
	return false
}
