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

	text string

	desc atomic.Pointer[Desc] // nil until described, and after DDL

	mu         sync.Mutex    // guards describing
	describing chan struct{} // closed when the description under way has ended, however; else nil

	elsewhere atomic.Int64 // Unix nanoseconds until which the text is not for the pipeline

	times
}

// NewStmt makes a Stmt for a text.
func NewStmt(text string, user any) *Stmt { return &Stmt{text: text, User: user} }

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

// Times that decide about lanes.
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
	firstProbe   = 16                     // slow executions, while others wait, after which a group of them is tried; the next time twice as many
	lastProbe    = 4096                   // but no more than this
	probeGain    = 4                      // times the time of one call that a group of more takes: less, and it is the machine that is slow
	probeMost    = 10 * time.Millisecond  // statements that take longer are slow on any machine
)

// times is what is learned about how long a statement takes, and what else keeps
// it from travelling with others. The least time of late tells more than the mean:
// on a busy machine everything takes long on average.
type times struct {
	alone atomic.Int32 // executions for which it still runs alone
	known atomic.Bool  // it has been executed

	lmu       sync.Mutex // guards what follows
	floor     time.Duration
	nextFloor time.Duration // of the window under way
	runs      int           // in it
	slow      atomic.Bool   // written under lmu
	probeIn   int           // slow executions until a group of them is tried
	probeGap  int           // between two

	// excess is the time above the usual, on average: what a call of this
	// statement costs those that travel with it, in nanoseconds. A mean would
	// hide a tail. Written under lmu.
	excess atomic.Int64
	// tail is the same of the statement's own time, whoever waits for that, and
	// tailed says that it is no small thing.
	tail       atomic.Int64
	tailRuns   int64 // executions that it is averaged over
	tailed     atomic.Bool
	tailSeen   time.Time
	tailedFrom time.Time // since when it is tailed

	suspect atomic.Int32 // executions for which it may be the one that was slow
}

// exceeded learns from an execution that took so much longer than usual, or nothing,
// itself and for others, where a group usually takes so long. It reports whether the
// statement belongs into another queue from now on.
//
// A statement that is slow now and then is told from one that is not: the server
// keeps the answers of a group until it has all of them, or many, so those of fast
// calls would wait for a slow one behind them too. A call that may be slow lets go
// of what comes before it, at the price of one more write of the server.
func (t *times) exceeded(own, others, usual time.Duration) (other bool) {
	t.lmu.Lock()
	defer t.lmu.Unlock()
	average := func(of *atomic.Int64, d time.Duration, memory int64) int64 {
		have := of.Load()
		have += (int64(d) - have) / memory
		of.Store(have)
		return have
	}
	average(&t.excess, others, excessMemory)
	own = max(own-4*max(t.floor-usual, 0), 0) // one that never takes less has no tail
	t.tailRuns = min(max(t.tailRuns+1, tailFirst), tailMemory)
	tail, was := average(&t.tail, min(own, tailMost), t.tailRuns), t.tailed.Load()
	is := tail > int64(max(usual/4, tailFloor))
	switch {
	case is && own > 0:
		t.tailSeen = time.Now()
	case was && !is:
		// Hundreds of fast ones can come and go while the next slow one runs.
		is = time.Since(t.tailSeen) < tailPatience
	}
	if is && !was {
		t.tailedFrom = time.Now()
	}
	if is && was && time.Since(t.tailedFrom) > tailProbe {
		// The more connections are busy, the more the machine alone delays some of
		// them. Whether it is the statement shows on few.
		is, t.tailRuns = false, 0
		t.tail.Store(0)
		t.excess.Store(0)
	}
	t.tailed.Store(is)
	return was != is
}

// tailPatience is for how long a statement that was slow is expected to be so again.
const tailPatience = time.Second

// tailProbe is after how long a tail must show again.
const tailProbe = 4 * time.Second

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
// apart says that they were sent as slow ones. It reports whether the statement belongs
// into another queue from now on.
func (t *times) sample(took time.Duration, n int, apart bool) (other bool) {
	t.lmu.Lock()
	defer t.lmu.Unlock()
	d := took / time.Duration(n)
	switch {
	case apart && !t.slow.Load() && t.known.Load() && d >= t.floor:
		return false // it was on its way when the statement turned out to be fast
	case apart && n >= probeGain && d < t.floor/probeGain:
		d = min(d, slowFloor) // most of its time it waits for others
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
	slow := t.floor > slowFloor
	if slow && !t.slow.Load() {
		t.probeIn, t.probeGap = firstProbe, firstProbe
	}
	other = t.slow.Swap(slow) != slow || !t.known.Load()
	t.known.Store(true)
	return other
}

// probed reports whether a group of the slow statement shall be tried, and counts down.
func (t *times) probed() bool {
	t.lmu.Lock()
	defer t.lmu.Unlock()
	if t.alone.Load() > 0 || t.floor > probeMost {
		return false
	}
	if t.probeIn--; t.probeIn > 0 {
		return false
	}
	t.probeGap = min(2*t.probeGap, lastProbe)
	t.probeIn = t.probeGap
	return true
}

// stayAlone makes the statement run alone for at least n executions.
func (t *times) stayAlone(n int32) {
	for {
		have := t.alone.Load()
		if have >= n || t.alone.CompareAndSwap(have, n) {
			return
		}
	}
}

// ran counts down.
func (t *times) ran() {
	if n := t.alone.Load(); n > 0 {
		t.alone.CompareAndSwap(n, n-1) // losing a race costs one more
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
