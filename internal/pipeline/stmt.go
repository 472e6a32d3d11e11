package pipeline

import (
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
)

// Stmt is what a pool knows of one SQL text. It is safe for concurrent use.
type Stmt struct {
	// User is whatever belongs to the statement. It must not change.
	User any

	text      string
	company   Company
	relations []uint32 // that it locks, as far as is known

	desc atomic.Pointer[Desc] // nil until described, and after DDL

	mu         sync.Mutex    // guards describing
	describing chan struct{} // closed when the description under way has ended, however; else nil

	elsewhere    atomic.Int64 // Unix nanoseconds until which the text is not for the pipeline
	blockedUntil atomic.Int64 // likewise, until which it runs alone since it has waited for a lock

	times
}

// Company says what a connection may do beside a statement.
type Company uint8

const (
	// Alone: nothing. The statement has the settings of whoever opened the
	// connection, and waits for locks as long as these allow.
	Alone Company = iota
	// Apart: other calls may be sent with it, but it has a transaction of its own.
	// Nothing that it executes reports the connection's timeouts, or can tell that they
	// are short.
	Apart
	// Joined: it may share an implicit transaction. Nothing that it executes changes
	// a setting, the transaction or the session, or depends on what another such
	// statement does in it.
	Joined
)

// NewStmt makes a Stmt for a text. relations are the OIDs of what it locks: while one of
// them is locked by somebody, its statements run alone.
func NewStmt(text string, user any, company Company, relations []uint32) *Stmt {
	return &Stmt{text: text, User: user, company: company, relations: relations}
}

// ParamOIDs returns the types of the statement's parameters, if they are known. They
// must not be changed.
func (s *Stmt) ParamOIDs() (oids []uint32, known bool) {
	if d := s.desc.Load(); d != nil {
		return d.paramOIDs, true
	}
	return nil, false
}

// Drop says that a statement will hardly be called again. What connections have prepared
// for it they close when they write next; a call that comes all the same describes it
// anew.
func (p *Pool) Drop(st *Stmt) {
	if d := st.desc.Swap(nil); d != nil {
		p.dropped.add(d.name)
	}
}

// dropped are the names of prepared statements that connections may close, the latest
// of them: what a connection has missed goes when others push it out.
type dropped struct {
	count atomic.Uint64 // of all there ever were; written under mu

	mu    sync.Mutex           // guards names
	names [droppedNames]string // the n-th one is at n modulo their number
}

const droppedNames = 1024

func (d *dropped) add(name string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.count.Load()
	d.names[n%droppedNames] = name
	d.count.Store(n + 1)
}

// since appends the names from the n-th one on, and returns the number of the next.
func (d *dropped) since(names []string, n uint64) ([]string, uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	count := d.count.Load()
	if count > droppedNames {
		n = max(n, count-droppedNames)
	}
	for ; n < count; n++ {
		names = append(names, d.names[n%droppedNames])
	}
	return names, count
}

// Desc describes a statement as the server prepared it, under a name of its own.
// It is immutable.
type Desc struct {
	name      string
	paramOIDs []uint32
	columns   []int16 // formats that results are asked for in

	// Fields are the columns, in the formats that results come in. They must
	// not be changed.
	Fields []pgconn.FieldDescription
	// Shape has the same columns, once the description is complete.
	Shape *Shape
}

// names numbers the prepared statements of the process. A new description gets a
// new name, so a connection can never mistake one for another.
var names atomic.Uint64

func newName() string { return "flightpg_" + strconv.FormatUint(names.Add(1), 36) }

// fieldsOf copies a row description.
func fieldsOf(msg *pgproto3.RowDescription) []pgconn.FieldDescription {
	fields := make([]pgconn.FieldDescription, len(msg.Fields))
	for i, f := range msg.Fields {
		fields[i] = pgconn.FieldDescription{
			Name:                 string(f.Name),
			TableOID:             f.TableOID,
			TableAttributeNumber: f.TableAttributeNumber,
			DataTypeOID:          f.DataTypeOID,
			DataTypeSize:         f.DataTypeSize,
			TypeModifier:         f.TypeModifier,
			Format:               f.Format,
		}
	}
	return fields
}

// fits reports whether a row description is the one that the statement was
// described with, but for the formats.
func (d *Desc) fits(msg *pgproto3.RowDescription) bool {
	if len(msg.Fields) != len(d.Fields) {
		return false
	}
	for i, f := range msg.Fields {
		have := &d.Fields[i]
		if string(f.Name) != have.Name || f.DataTypeOID != have.DataTypeOID || f.DataTypeSize != have.DataTypeSize ||
			f.TypeModifier != have.TypeModifier || f.TableOID != have.TableOID || f.TableAttributeNumber != have.TableAttributeNumber {
			return false
		}
	}
	return true
}

// same reports whether two descriptions say the same.
func (d *Desc) same(o *Desc) bool {
	return slices.Equal(d.paramOIDs, o.paramOIDs) && slices.Equal(d.Fields, o.Fields)
}

// takesParams reports whether the server's parameters are those described.
func (d *Desc) takesParams(msg *pgproto3.ParameterDescription) bool {
	return slices.Equal(msg.ParameterOIDs, d.paramOIDs)
}

// beginDescribe makes the caller the one who describes the statement, or returns
// the channel that ends its wait for another who does.
func (s *Stmt) beginDescribe() (wait chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.describing != nil {
		return s.describing
	}
	s.describing = make(chan struct{})
	return nil
}

func (s *Stmt) endDescribe() {
	s.mu.Lock()
	defer s.mu.Unlock()
	close(s.describing)
	s.describing = nil
}

// forget throws a description away that turned out to be out of date.
func (s *Stmt) forget(d *Desc) { s.desc.CompareAndSwap(d, nil) }

// elsewherePatience is how long a text that could not be described is left to pgx
// alone: long enough for an application that repeats its mistake not to pay twice,
// short enough for a table that is created a moment later.
const elsewherePatience = time.Second

func (s *Stmt) sendElsewhere() {
	s.elsewhere.Store(time.Now().Add(elsewherePatience).UnixNano())
}

// Elsewhere reports whether calls of the statement would finish with ErrElsewhere,
// as far as is known.
func (s *Stmt) Elsewhere() bool {
	until := s.elsewhere.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// Times that decide about company.
const (
	slowFloor    = 300 * time.Microsecond // a statement that never takes less is slow: what travelling with others saves is nothing to it
	tailTime     = 5 * time.Millisecond   // a group that takes longer is looked into
	excessMemory = 256                    // executions over which the excess is averaged
	tailFirst    = 512                    // the same for a tail, at first
	tailMemory   = 1024                   // and later on: on a busy machine some executions are late together
	tailMost     = 16 * time.Millisecond  // that one execution counts for, for the same reason
	tailFloor    = 100 * time.Microsecond // on average: less is no tail
	failMemory   = 16                     // executions for which a statement that failed runs alone
	probeRuns    = 4                      // the same for one of a group that took too long
	suspectRuns  = 64                     // executions that show whether a statement is the slow one of a group of several
	bigMemory    = 64                     // the same for one with a large result
	bigResult    = 64 << 10               // bytes
	windowRuns   = 64                     // executions after which an old minimum is forgotten
	probeTime    = 5 * time.Millisecond   // statements that take longer are slow on any machine
	probeCalls   = 16                     // slow ones sent together, to see whether they take less so
	probeGap     = 512                    // executions, each begun while others waited, after which that is tried
)

// times is what is learned about how long a statement takes, and what else keeps
// it from travelling with others. The least time of late tells more than the mean:
// on a busy machine everything takes long on average.
type times struct {
	alone  atomic.Int32 // executions for which it still runs alone
	single atomic.Int32 // likewise, but among the fast ones: which of a group was it?
	known  atomic.Bool  // it has been executed

	lmu       sync.Mutex // guards what follows
	floor     time.Duration
	nextFloor time.Duration // of the window under way
	runs      int           // in it
	probeIn   int           // executions, each begun while others waited, until several are sent together
	slow      atomic.Bool   // written under lmu

	// excess is the time above the usual, on average: what a call of this
	// statement costs those that travel with it, in nanoseconds. A mean would
	// hide a tail. Written under lmu.
	excess   atomic.Int64
	executed int64 // executions that it is averaged over
	// tail is the same of the statement's own time, whoever waits for that, and
	// tailed says that it is no small thing.
	tail     atomic.Int64
	tailRuns int64 // executions that it is averaged over
	tailed   atomic.Bool

	suspect atomic.Int32 // executions for which it may be the one that was slow
}

// exceeded learns from an execution that took so much longer than usual, or nothing,
// itself and for others, where a group usually takes so long.
//
// A statement that is slow now and then is told from one that is not: the server
// keeps the answers of a group until it has all of them, or many, so those of fast
// calls would wait for a slow one behind them too. A call that may be slow lets go
// of what comes before it, at the price of one more write of the server.
func (t *times) exceeded(own, others, usual time.Duration) {
	t.lmu.Lock()
	defer t.lmu.Unlock()
	average := func(of *atomic.Int64, d time.Duration, memory int64) int64 {
		have := of.Load()
		have += (int64(d) - have) / memory
		of.Store(have)
		return have
	}
	t.executed = min(t.executed+1, excessMemory)
	average(&t.excess, others, t.executed)
	own = max(own-4*max(t.floor-usual, 0), 0) // one that never takes less has no tail
	t.tailRuns = min(max(t.tailRuns+1, tailFirst), tailMemory)
	least := tailFloor
	if t.tailed.Load() {
		least /= 4 // hundreds of fast ones can come and go while the next slow one runs
	}
	t.tailed.Store(average(&t.tail, min(own, tailMost), t.tailRuns) > int64(least))
}

// suspected reports whether a call of the statement may be a slow one, and counts
// down.
func (t *times) suspected() bool {
	n := t.suspect.Load()
	if n > 0 {
		t.suspect.CompareAndSwap(n, n-1) // losing a race costs one more
	}
	return n > 0 || t.tailed.Load()
}

// mates returns how many calls may travel with one of the statement, itself
// included, where a group usually takes so long: what the tail costs all of them
// must not be more than what they would wait for anyway. On a machine that is busy
// with other things everything has a tail, and takes long.
func (t *times) mates(usual time.Duration, limit int) int {
	excess := t.excess.Load()
	if excess <= 0 {
		return limit
	}
	return int(max(1, min(int64(limit), 2*int64(usual)/excess)))
}

// sample learns from a call that had the connection to itself, or from n of a group of
// the one statement; took is the time of all, without the way to the server and back.
func (t *times) sample(took time.Duration, n int) {
	t.lmu.Lock()
	defer t.lmu.Unlock()
	d := took / time.Duration(n)
	if n >= probeCalls/4 && t.slow.Load() && d < t.floor/2 {
		// Most of its time it waited for others, and that was not its own slowness.
		d = min(d, slowFloor)
		t.tail.Store(0)
		t.tailed.Store(false)
		t.excess.Store(0)
	}
	if !t.known.Load() || d < t.floor {
		t.floor = d
	}
	if t.runs == 0 || d < t.nextFloor {
		t.nextFloor = d
	}
	if t.runs++; t.runs == windowRuns {
		t.floor, t.runs = t.nextFloor, 0
	}
	t.slow.Store(t.floor > slowFloor)
	t.known.Store(true)
}

// probed reports whether several executions of the slow statement shall be sent
// together, and counts down.
func (t *times) probed() bool {
	t.lmu.Lock()
	defer t.lmu.Unlock()
	if t.floor > probeTime {
		return false
	}
	t.probeIn--
	if t.probeIn < 0 {
		t.probeIn = probeGap
	}
	return t.probeIn == 0
}

// stayAlone makes the statement run alone for at least n executions.
func (t *times) stayAlone(n int32) { raise(&t.alone, n) }

// staySingle makes the statement run by itself for at least n executions, as a group of
// one.
func (t *times) staySingle(n int32) { raise(&t.single, n) }

func raise(to *atomic.Int32, n int32) {
	for {
		have := to.Load()
		if have >= n || to.CompareAndSwap(have, n) {
			return
		}
	}
}

// ran counts down.
func (t *times) ran() {
	for _, of := range [...]*atomic.Int32{&t.alone, &t.single} {
		if n := of.Load(); n > 0 {
			of.CompareAndSwap(n, n-1) // losing a race costs one more
		}
	}
}

// solo reports whether the statement must run alone now.
func (t *times) solo() bool { return !t.known.Load() || t.alone.Load() > 0 }

// preparedSet are the prepared statements of one connection, the least recently
// used first to go. It belongs to whoever has the connection. It keeps their names, not
// their descriptions, which others may have forgotten.
type preparedSet struct {
	limit int
	bytes int // of their texts: the server keeps up to a hundred times as much
	known map[string]*preparedStmt
	first *preparedStmt // least recently used
	last  *preparedStmt

	evicted []string // by the last use; its memory is used again
}

// preparedBytes bounds the texts of one connection's prepared statements, but for the
// one that was used last.
const preparedBytes = 4 << 20

type preparedStmt struct {
	name       string
	bytes      int
	prev, next *preparedStmt
}

// use notes that a statement is about to be executed, and reports whether it must
// be prepared first, and which ones are to be closed to make room, until the next use.
func (s *preparedSet) use(d *Desc, bytes int) (prepare bool, evicted []string) {
	if p := s.known[d.name]; p != nil {
		if s.last != p {
			s.unlink(p)
			s.append(p)
		}
		return false, nil
	}
	evicted = s.evicted[:0]
	for s.first != nil && (len(s.known) >= s.limit || s.bytes+bytes > preparedBytes) {
		evicted = append(evicted, s.first.name)
		s.drop(s.first)
	}
	s.evicted = evicted
	p := &preparedStmt{name: d.name, bytes: bytes}
	s.known[d.name] = p
	s.bytes += bytes
	s.append(p)
	return true, evicted
}

// has reports whether a statement is prepared.
func (s *preparedSet) has(d *Desc) bool { return s.known[d.name] != nil }

// remove forgets a statement.
func (s *preparedSet) remove(d *Desc) { s.forget(d.name) }

// forget forgets the statement of that name, and reports whether there was one.
func (s *preparedSet) forget(name string) bool {
	p := s.known[name]
	if p != nil {
		s.drop(p)
	}
	return p != nil
}

func (s *preparedSet) drop(p *preparedStmt) {
	delete(s.known, p.name)
	s.bytes -= p.bytes
	s.unlink(p)
}

func (s *preparedSet) append(p *preparedStmt) {
	p.prev, p.next = s.last, nil
	if s.last != nil {
		s.last.next = p
	} else {
		s.first = p
	}
	s.last = p
}

func (s *preparedSet) unlink(p *preparedStmt) {
	if p.prev != nil {
		p.prev.next = p.next
	} else {
		s.first = p.next
	}
	if p.next != nil {
		p.next.prev = p.prev
	} else {
		s.last = p.prev
	}
	p.prev, p.next = nil, nil
}
