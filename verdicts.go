package flightpg

import (
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/pipeline"
)

// What is learned of texts, and how the verdicts on them are kept.

// What became of a read (too large a result, a refusal of the guard) is remembered for
// the same arguments first: one caller's must not end the others' sharing. For all of the
// text it counts when most of its reads end so.
const (
	exceptionFirst = time.Second      // how long the same arguments bypass, the first time; the next time twice as long,
	overflowMemory = 10 * time.Second // and at most so long for results that are too large,
	refusedMemory  = 5 * time.Minute  // or so long
	exceptionKept  = time.Minute      // after that; then it is a first time again
	maxExceptions  = 16               // of a text; the oldest makes room, and is found out again

	oddLeast  = 8                // so many exceptions are looked at together,
	oddWithin = time.Second      // that came in more than this time (others may have come at one moment)
	oddMemory = 10 * time.Second // and less than this; for as long the text bypasses
)

// An exception is a read of a text, by a hash of its arguments, that bypasses for a
// while.
type exception struct {
	args  uint64
	why   Reason
	times uint8
	until int64 // Unix nanoseconds
}

func (e *exception) over(now int64) bool { return e.until+int64(exceptionKept) < now }

// except makes the reads with these arguments bypass for a while.
func (v *verdict) except(args uint64, why Reason, most time.Duration) {
	now := time.Now().UnixNano()
	for {
		have := v.exceptions.Load()
		e := exception{args: args, why: why}
		list := make([]exception, 0, maxExceptions)
		if have != nil {
			for _, x := range *have {
				switch {
				case x.over(now):
				case x.args == args:
					e.times = min(x.times+1, 16)
				default:
					list = append(list, x)
				}
			}
		}
		if len(list) == maxExceptions {
			list = append(list[:0], list[1:]...)
		}
		e.until = now + int64(min(exceptionFirst<<e.times, most))
		list = append(list, e)
		if v.exceptions.CompareAndSwap(have, &list) {
			return
		}
	}
}

// excepted says why a read with these arguments bypasses, ReasonNone if it does not.
func (v *verdict) excepted(args uint64) Reason {
	list := v.exceptions.Load()
	if list == nil {
		return ReasonNone
	}
	now, over := time.Now().UnixNano(), true
	for i := range *list {
		e := &(*list)[i]
		if e.args == args && now < e.until {
			return e.why
		}
		over = over && e.over(now)
	}
	if over {
		v.exceptions.CompareAndSwap(list, nil)
	}
	return ReasonNone
}

// forgive forgets that reads with these arguments were exceptions.
func (v *verdict) forgive(args uint64) {
	for {
		have := v.exceptions.Load()
		if have == nil || !slices.ContainsFunc(*have, func(e exception) bool { return e.args == args }) {
			return
		}
		list := slices.DeleteFunc(slices.Clone(*have), func(e exception) bool { return e.args == args })
		if v.exceptions.CompareAndSwap(have, &list) {
			return
		}
	}
}

// learnOdd is told of each read that became an exception. It reports whether most have,
// so that the text bypasses for a while.
func (v *verdict) learnOdd(why Reason) bool {
	now := time.Now().UnixNano()
	since := v.oddSince.Load()
	if since == 0 || now-since > int64(oddMemory) {
		v.good.Store(0)
		v.odd.Store(1)
		v.oddSince.Store(now)
		return false
	}
	if odd := v.odd.Add(1); odd < oddLeast || now-since < int64(oddWithin) {
		return false
	} else if odd <= v.good.Load() {
		v.oddSince.Store(0)
		return false
	}
	v.oddSince.Store(0)
	v.avoidWhy.Store(uint32(why))
	v.avoid.Store(now + int64(oddMemory))
	return true
}

// refuse makes the text bypass for good: for as long as this verdict lasts.
func (v *verdict) refuse() { v.refused.Store(true) }

// learnRefusal is told of each flight that ended with read_only_sql_transaction. A
// function can raise that for reasons of its own, and for some arguments: so can the
// server, for a function that writes for some.
func (v *verdict) learnRefusal(args uint64, err error) {
	v.except(args, ReasonRefused, refusedMemory)
	if !serversRefusal(err) {
		return
	}
	if (v.judged.Params == 0 || v.learnOdd(ReasonRefused)) && !v.flown.Load() {
		v.refuse() // it has never done anything else
	}
}

// learnOverflow is told of each flight whose result was too large to share.
func (v *verdict) learnOverflow(args uint64) {
	v.except(args, ReasonOverflow, overflowMemory)
	v.learnOdd(ReasonOverflow)
}

// landed is told of each flight that has landed whole.
func (v *verdict) landed(args uint64) {
	if !v.flown.Load() {
		v.flown.Store(true)
	}
	if v.exceptions.Load() != nil {
		v.forgive(args)
	}
	if since := v.oddSince.Load(); since != 0 && time.Now().UnixNano()-since > int64(oddMemory) {
		v.oddSince.CompareAndSwap(since, 0)
	}
}

// shared is told of each caller that got rows of a flight.
func (v *verdict) shared() {
	if v.oddSince.Load() != 0 {
		v.good.Add(1)
	}
}

// A read that takes less than this is not slow, see flight.Watched.
const slowRead = 100 * time.Millisecond

// learnTime is told how long an execution has taken.
func (v *verdict) learnTime(took time.Duration) {
	if took < slowRead {
		took = 1 // known to be fast
	}
	if v.took.Load() != int64(took) {
		v.took.Store(int64(took))
	}
}

// avoided says why the text bypasses now, whatever the arguments; ReasonNone if it does
// not.
func (v *verdict) avoided() Reason {
	if until := v.avoid.Load(); until != 0 && time.Now().UnixNano() < until {
		return Reason(v.avoidWhy.Load())
	}
	return ReasonNone
}

// A large result that one caller reads is streamed to it while the server still
// sends, as without flightpg: put together first, for others who may come, its first
// row would be late, and the memory for nobody. Others may come as long as it is not
// streamed, so that must be learned.
const (
	largeResult = 64 << 10 // bytes in memory
	unsharedRun = 16       // so many in a row that nobody shared, and the next ones are streamed,
	unsharedTry = 16       // but for each 16th
)

// streams reports whether a large result shall be streamed if it has one caller.
func (v *verdict) streams() bool {
	n := v.unshared.Load()
	return n >= unsharedRun && n%unsharedTry != 0
}

// learnSharing is told of each large result whether callers shared it.
func (v *verdict) learnSharing(shared bool) {
	switch {
	case !shared:
		v.unshared.Add(1)
	case v.unshared.Load() != 0:
		v.unshared.Store(0)
	}
}

// A leader who may leave early runs a read himself, without a goroutine for the flight,
// if those of its text before it had one caller each and were answered soon: so many in a
// row that aloneRun is reached. A slow one counts as aloneSlow of them, so that one now and
// then, as on a busy machine, does no harm.
const (
	aloneRun  = 16
	aloneMost = 64
	aloneSlow = 16
	quickRead = 10 * time.Millisecond
)

// aloneness counts such reads, up to aloneMost.
type aloneness struct{ n atomic.Int32 }

// expected reports whether a read is taken for one of that kind.
func (a *aloneness) expected() bool { return a.n.Load() >= aloneRun }

// learn is told of each read without the pipeline whether it had one caller, who has not
// left, and how long it took.
func (a *aloneness) learn(alone bool, took time.Duration) {
	n := a.n.Load()
	switch {
	case !alone:
		if n != 0 {
			a.n.Store(0)
		}
	case took >= quickRead:
		a.n.Store(max(n-aloneSlow, 0))
	case n < aloneMost:
		a.n.Store(n + 1)
	}
}

// goesAlone reports whether a read is taken for one of that kind: one of a text that was
// not read before by what became of others that were not.
func (c *Connector) goesAlone(v *verdict) bool {
	if v.flown.Load() {
		return v.alone.expected()
	}
	return c.alone.expected()
}

// learnAlone is told what became of a read. first: of the first one of its text.
func (c *Connector) learnAlone(v *verdict, first, alone bool, took time.Duration) {
	if !first {
		v.alone.learn(alone, took)
		return
	}
	if alone && took < quickRead && c.alone.expected() {
		v.alone.n.Store(aloneRun) // as others
	}
	c.alone.learn(alone, took)
}

// verdictCache bounds what is remembered of SQL texts: at most cacheTexts texts, and
// cacheBytes bytes of them, of their verdicts and of the descriptions of their
// parameters and columns. (Texts with the same columns share what describes these; it
// is counted for each.) Each shard keeps two generations; a full young one becomes the
// old one, whose texts are forgotten unless asked for again. Reading allocates nothing,
// and takes no lock for texts that are read all the time: even a shared one is a place
// where all CPUs meet.
type verdictCache struct {
	seed   maphash.Seed
	rules  rules
	found  func()                               // is told of names that an earlier picture of the catalog did not have; or nil
	recent [cacheRecent]atomic.Pointer[verdict] // by the text's hash, whichever was read last
	shards [cacheShards]verdictShard
	long   longVerdicts
	pipe   atomic.Pointer[pipeline.Pool] // is told which statements are not remembered any more; or nil
}

const (
	cacheShards = 16
	cacheTexts  = 10_000
	cacheBytes  = 32 << 20
	cacheRecent = 256
	recentText  = 4 << 10   // bytes of a text among those, at most
	recentBytes = 32 << 10  // and with what it counts in all: here they are not counted
	maxText     = 512 << 10 // bytes of a text that is remembered, at most
)

type verdictShard struct {
	mu         sync.RWMutex        // guards what follows; nothing is scanned while it is held
	young, old map[uint64]*verdict // by the text's hash; of two texts with one hash the later stays
	bytes      int                 // that the young generation counts
}

func newVerdictCache(r rules) *verdictCache {
	return &verdictCache{seed: maphash.MakeSeed(), rules: r}
}

func (c *verdictCache) hash(sql string) uint64 { return maphash.String(c.seed, sql) }

// get returns the verdict on a text by a picture of the catalog, which may be
// nil.
func (c *verdictCache) get(sql string, by *loaded) *verdict {
	if len(sql) > maxText {
		return c.getLong(sql, by)
	}
	hash := c.hash(sql) ^ by.salted()
	recent := &c.recent[hash/cacheShards%cacheRecent]
	if v := recent.Load(); v != nil && v.sql == sql && v.gen == by.generation() {
		return v
	}
	v := c.find(hash, sql, by)
	if len(sql) <= recentText {
		recent.Store(v)
	}
	return v
}

// descSize returns what the description of a statement takes in memory, in bytes: its
// parameters' types and its columns, with what results keep of these.
func descSize(fields []pgconn.FieldDescription, params int) int {
	const column = fieldSize + columnSize + stringSize + 4
	size := 256 + 4*params + column*len(fields)
	for i := range fields {
		size += int(allocated(len(fields[i].Name)))
	}
	return size
}

// Who describes a statement.
const (
	describedPipelined = iota
	describedGuarded   // under GuardTransaction
	describedParams    // asked for the types of its parameters
	describedAnswer    // by its last result
	describedSources
)

// describe notes how much what one of the sources knows of a text's parameters and
// columns takes now, in bytes.
func (c *verdictCache) describe(v *verdict, source, bytes int) {
	s := &c.shards[v.hash%cacheShards]
	s.mu.Lock()
	v.described[source], bytes = bytes, bytes-v.described[source]
	v.size += bytes
	large := v.size > recentBytes
	if s.young[v.hash] == v {
		s.bytes += bytes
		c.ageLocked(s, 0)
	}
	s.mu.Unlock()
	if large {
		c.recent[v.hash/cacheShards%cacheRecent].CompareAndSwap(v, nil)
	}
}

// find is get in the shards.
func (c *verdictCache) find(hash uint64, sql string, by *loaded) *verdict {
	s := &c.shards[hash%cacheShards]
	s.mu.RLock()
	v := s.young[hash]
	young := v != nil && v.sql == sql
	if !young {
		if v = s.old[hash]; v != nil && v.sql != sql {
			v = nil
		}
	}
	s.mu.RUnlock()
	if v != nil && v.gen == by.generation() {
		if !young {
			c.put(s, hash, v)
		}
		return v
	}
	n := c.rules.judge(sql, by)
	n.hash = hash
	if v != nil { // what does not depend on the catalog stays known
		n.open = v.open
		n.numInput.Store(v.numInput.Load())
		n.avoidWhy.Store(v.avoidWhy.Load())
		n.avoid.Store(v.avoid.Load())
		defer c.drop(v)
		if v.judged.Stale && !n.judged.Stale && baseGeneration(n.gen) > baseGeneration(v.gen) && c.found != nil {
			c.found()
		}
	}
	return c.put(s, hash, n)
}

// drop lets connections close what they have prepared for a verdict that has gone, or
// whose last sql.Stmt was closed.
func (c *verdictCache) drop(v *verdict) {
	if pool, st := c.pipe.Load(), v.pipelined.Load(); pool != nil && st != nil {
		pool.Drop(st)
	}
}

// opened reports whether there is an open sql.Stmt of a text, as far as is known.
func (c *verdictCache) opened(sql string) bool {
	if len(sql) > maxText {
		v := c.long.find(c.long.key(sql))
		return v != nil && v.open.Load() > 0
	}
	hash := c.hash(sql)
	s := &c.shards[hash%cacheShards]
	s.mu.RLock()
	defer s.mu.RUnlock()
	for _, v := range []*verdict{s.young[hash], s.old[hash]} {
		if v != nil && v.sql == sql && v.open.Load() > 0 {
			return true
		}
	}
	return false
}

// generation returns the picture's, 0 for none.
func (l *loaded) generation() uint64 {
	if l == nil {
		return 0
	}
	return l.gen
}

func (c *verdictCache) put(s *verdictShard, hash uint64, v *verdict) *verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.young[hash]
	if first != nil && first.sql == v.sql && first.gen == v.gen {
		return first
	}
	if first != nil {
		s.bytes -= first.size
		delete(s.young, hash)
	}
	c.ageLocked(s, v.size)
	s.bytes += v.size
	s.young[hash] = v
	return v
}

// ageLocked makes the young generation the old one if there is no room for so many
// bytes more. What then is in neither is forgotten, but for what is read all the time.
func (c *verdictCache) ageLocked(s *verdictShard, bytes int) {
	const texts, most = cacheTexts / cacheShards / 2, cacheBytes / cacheShards / 2
	if s.young != nil && len(s.young) < texts && s.bytes+bytes <= most {
		return
	}
	gone := s.old
	s.old, s.young, s.bytes = s.young, make(map[uint64]*verdict), 0
	for hash, v := range gone {
		switch {
		case s.old[hash] == v:
		case c.recent[hash/cacheShards%cacheRecent].Load() == v:
			s.young[hash] = v
			s.bytes += v.size
		default:
			c.drop(v)
		}
	}
}

// longVerdicts are those on texts that are too long to be remembered: they are found by
// a hash of 128 bits, of seeds that nobody knows, and the text is not kept.
type longVerdicts struct {
	once       sync.Once
	seeds      [2]maphash.Seed
	mu         sync.Mutex // guards what follows; nothing is scanned while it is held
	young, old map[[2]uint64]*verdict
}

// maxLong is how many of them are in each of two generations.
const maxLong = 128

func (l *longVerdicts) key(sql string) [2]uint64 {
	l.once.Do(func() { l.seeds = [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()} })
	return [2]uint64{maphash.String(l.seeds[0], sql), maphash.String(l.seeds[1], sql)}
}

func (l *longVerdicts) find(key [2]uint64) *verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	if v := l.young[key]; v != nil {
		return v
	}
	return l.old[key]
}

// getLong is get for a long text.
func (c *verdictCache) getLong(sql string, by *loaded) *verdict {
	l := &c.long
	key := l.key(sql)
	v := l.find(key)
	if v == nil || v.gen != by.generation() {
		n := c.rules.judge(sql, by)
		n.judged.Name = strings.Clone(n.judged.Name)
		n.sql, n.keyed = "", ""
		if v != nil {
			n.open = v.open
		}
		v = n
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.young == nil || len(l.young) >= maxLong {
		l.old, l.young = l.young, make(map[[2]uint64]*verdict)
	}
	l.young[key] = v
	return v
}

// closedStmts are the texts whose last sql.Stmt was closed not long ago. They may well be
// prepared again; what is pushed out by others is closed on the server, too.
type closedStmts struct {
	mu    sync.Mutex // guards what follows
	list  []*verdict // closed for longest first
	bytes int        // of their texts
}

// Bounds of the closed statements that stay prepared: of their number, and of the bytes
// of their texts, but for the last one.
const (
	keptStmts = 32
	keptBytes = 64 << 10
)

// closed is told of a text whose last sql.Stmt was closed. It returns those that have
// been closed for longest, if there are too many.
func (c *closedStmts) closed(v *verdict) (gone []*verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if slices.Contains(c.list, v) {
		return nil
	}
	c.list = append(c.list, v)
	c.bytes += len(v.sql)
	for len(c.list) > keptStmts || c.bytes > keptBytes && len(c.list) > 1 {
		old := c.list[0]
		c.list = slices.Delete(c.list, 0, 1)
		if c.bytes -= len(old.sql); old.open.Load() == 0 {
			gone = append(gone, old)
		}
	}
	return gone
}
