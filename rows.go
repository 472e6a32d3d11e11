package flightpg

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math/bits"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// result is what a flight yields: a buffered result that many callers replay,
// or, when it did not fit, a buffered beginning and the live rows behind it,
// which one caller may claim.
//
// It is immutable once the flight has landed, but for the counters. It is a
// flight.Value: each waiter owns a share and drops it when it has closed its
// rows; the memory is given back with the last share.
type result struct {
	cols   *columns
	chunks [][]driver.Value // row after row, each chunk a whole number of rows; what they take is used again
	raw    rawValues        // the same as the server sent it, where a Scan can want that
	first  [1][]driver.Value
	rows   int       // how many rows the chunks hold
	tail   error     // what Next ended with instead of io.EOF
	closed error     // what Close returned
	live   *liveRows // what follows the chunks, or nil
	why    Reason    // why live
	tricky bool      // some values are not for everybody as they are, see replay.own and badValue

	numInput  int      // of a prepared statement's shape; no rows then
	paramOIDs []uint32 // likewise

	budget *budget
	bytes  int64 // taken from the budget

	shares  atomic.Int64
	shared  bool // more than one waiter: what is mutable is cloned per caller
	claimed atomic.Bool

	pooled bool           // nobody keeps it beyond its last share
	spare  []driver.Value // for a row, of what it was before
}

// results are those that are not used now. Everything that a caller may keep, the
// values and what they refer to, is never used again; their order in memory is.
var results = sync.Pool{New: func() any { return new(result) }}

// keptRow is how wide a row may be whose memory is used again.
const keptRow = 32

func newResult(cols *columns, budget *budget) *result {
	r := results.Get().(*result)
	r.cols, r.budget, r.pooled = cols, budget, true
	r.chunks = r.first[:0]
	return r
}

// recycle makes the result's memory another's. Nobody has it any more.
func (r *result) recycle() {
	spare := r.spare
	for _, chunk := range r.chunks {
		clear(chunk)
		switch {
		case cap(chunk) == blockValues:
			blocks.Put((*[blockValues]driver.Value)(chunk[:blockValues]))
		case spare == nil && cap(chunk) <= keptRow:
			spare = chunk[:0]
		}
	}
	*r = result{spare: spare, raw: r.raw.again()}
	results.Put(r)
}

// blockValues is how many values a block of rows holds: with the allocator's word
// 8 KiB of them, one of its sizes.
const blockValues = chunkBytes / valueSize

// blocks are those of results that nobody reads any more, empty.
var blocks = sync.Pool{New: func() any { return new([blockValues]driver.Value) }}

// Share implements flight.Value.
func (r *result) Share(n int) {
	r.shares.Store(int64(n))
	r.shared = n > 1
	if n == 0 {
		r.free()
	}
}

// Keep implements flight.Value. Nobody is given the end of another's rows: not an
// error that they ended with, nor a connection that they are still being read from.
func (r *result) Keep() (size int64, ok bool) {
	if r.bytes == 0 { // without rows it has asked for nothing
		size = resultSize + int64(4*len(r.paramOIDs))
		if r.cols != nil {
			size += r.cols.size
		}
	}
	return size, r.tail == nil && r.closed == nil && r.live == nil
}

// Retain implements flight.Value.
func (r *result) Retain() { r.shares.Add(1) }

// Drop implements flight.Value.
func (r *result) Drop() {
	if r.shares.Add(-1) == 0 {
		r.free()
	}
}

func (r *result) free() {
	if r.live != nil && r.claim() {
		// Closing reads what is left, or waits for the server to stop: nobody
		// is there to wait for it.
		r.live.cancel()
		go r.live.close()
	}
	r.budget.give(r.bytes)
	if r.pooled && r.live == nil {
		r.recycle()
	}
}

// claim makes the caller the reader of the live rows. One caller gets them.
func (r *result) claim() bool { return r.claimed.CompareAndSwap(false, true) }

// budget bounds the memory of all buffered results of a connector, in bytes.
// Nobody waits for it (a flight that gets none streams instead), so it needs
// no semaphore: one atomic addition, undone when it was too much.
type budget struct {
	limit int64
	large int64 // what a large result takes, see mayStream
	used  atomic.Int64

	makeRoom func() bool // drops one of the results that are kept for later callers, if there is one
}

func (b *budget) take(n int64) bool {
	if b.used.Add(n) <= b.limit {
		return true
	}
	b.used.Add(-n)
	return b.makeRoom != nil && b.takeKept(n)
}

// takeKept is take at the expense of what is kept: one result after the other is
// dropped until it fits, so that many at a time drop no more than they need.
func (b *budget) takeKept(n int64) bool {
	for n <= b.limit {
		used := b.used.Load()
		switch {
		case used+n > b.limit:
			if !b.makeRoom() {
				return false
			}
		case b.used.CompareAndSwap(used, used+n):
			return true
		}
	}
	return false
}

func (b *budget) give(n int64) { b.used.Add(-n) }

// columns are the names and the metadata of a result's columns, as the inner
// driver gave them: ColumnTypeScanType can disagree with the values, so nothing
// is derived here.
type columns struct {
	names []string
	types []columnType
	size  int64        // what they take in memory, in bytes
	wire  *wireColumns // of what pgx has read, else nil; its type map is not the replays'
}

type columnType struct {
	database         string
	scan             reflect.Type
	length           int64
	hasLength        bool
	nullable         bool
	hasNullable      bool
	precision, scale int64
	hasPrecision     bool
}

func copyColumns(rows driver.Rows) *columns {
	names := rows.Columns()
	c := &columns{names: append([]string(nil), names...), types: make([]columnType, len(names)), size: int64(columnSize * len(names))}
	for i := range c.types {
		c.types[i] = typeOfColumn(rows, i)
		c.size += allocated(len(names[i]))
	}
	return c
}

var anyType = reflect.TypeFor[any]()

// typeOfColumn asks rows for what it can tell of a column; where it does not
// implement an interface, the answer is the one database/sql gives then.
func typeOfColumn(rows driver.Rows, i int) columnType {
	t := columnType{scan: anyType}
	if r, ok := rows.(driver.RowsColumnTypeDatabaseTypeName); ok {
		t.database = r.ColumnTypeDatabaseTypeName(i)
	}
	if r, ok := rows.(driver.RowsColumnTypeScanType); ok {
		t.scan = r.ColumnTypeScanType(i)
	}
	if r, ok := rows.(driver.RowsColumnTypeLength); ok {
		t.length, t.hasLength = r.ColumnTypeLength(i)
	}
	if r, ok := rows.(driver.RowsColumnTypeNullable); ok {
		t.nullable, t.hasNullable = r.ColumnTypeNullable(i)
	}
	if r, ok := rows.(driver.RowsColumnTypePrecisionScale); ok {
		t.precision, t.scale, t.hasPrecision = r.ColumnTypePrecisionScale(i)
	}
	return t
}

// Sizes of buffered values in memory, in bytes, for the limits.
const (
	valueSize  = 16 // the interface itself
	scalarSize = 8  // int64, float64, bool
	stringSize = 16
	bytesSize  = 24
	timeSize   = 24
	resultSize = 512  // a result without columns or rows
	columnSize = 112  // the metadata of a column
	fieldSize  = 48   // what pgx says of one
	chunkSize  = 48   // a chunk without rows
	chunkBytes = 8184 // what a chunk of rows grows to: with the allocator's word 8 KiB, one of its sizes
)

// allocated returns what n bytes take in memory: Go's allocator rounds up, to whole
// pages above 32 KiB and else by about an eighth.
func allocated(n int) int64 {
	step := 8
	switch {
	case n > 32<<10:
		step = 8 << 10
	case n > 128:
		step = 1 << (bits.Len(uint(n-1)) - 4)
	case n > 32:
		step = 16
	}
	return int64((n + step - 1) &^ (step - 1))
}

// badValue stands for a value that could not be decoded, among those of a row, for
// rows of which each column is scanned by itself.
type badValue struct{ err error }

// sizeOf returns a value's size behind its interface, and whether it can be
// given to several callers: driver.Value's own types and plain scalars can.
func sizeOf(v driver.Value) (int64, bool) {
	switch v := v.(type) {
	case nil:
		return 0, true
	case string:
		return stringSize + allocated(len(v)), true
	case []byte:
		return bytesSize + allocated(len(v)), true
	case time.Time:
		return timeSize, true
	case badValue:
		return stringSize, true
	case int64, float64, bool, int32, int16, int8, int, uint64, uint32, uint16, uint8, uint, float32:
		return scalarSize, true
	default:
		return 0, false
	}
}

// buffer reads rows into a result and closes them, unless they do not fit: then
// the result ends in live rows, which then own rows. So it does once it is large if
// mayStream says so.
func buffer(rows driver.Rows, budget *budget, maxResult int64, mayStream func(*read) bool, r *read) *result {
	var b buffering
	var cols *columns
	if w, ok := rows.(*wireRows); ok {
		cols = w.cols
	} else {
		cols = copyColumns(rows)
	}
	b.begin(cols, budget, maxResult)
	complete := false
	defer func() {
		if !complete { // the rows have panicked, or called runtime.Goexit
			b.discard()
		}
	}()
	for {
		raw, size, shareable, err := nextRow(rows, b.next())
		if err != nil {
			b.res.end(rows, err)
			break
		}
		if b.large() && mayStream(r) {
			b.res.why = ReasonStreamed
		}
		if b.res.why != ReasonNone || !b.add(raw, size, shareable) {
			b.res.live = &liveRows{rows: rows, first: b.row}
			break
		}
	}
	complete = true
	return b.finish()
}

// nextRow reads the next row, and what it looked like on the wire, if there was one.
// It returns the size of what the values refer to, and whether they can be given to
// several callers.
func nextRow(rows driver.Rows, row []driver.Value) (raw [][]byte, size int64, shareable bool, err error) {
	r, ok := rows.(*wireRows)
	if !ok {
		if err := rows.Next(row); err != nil {
			return nil, 0, false, err
		}
		size, shareable = copyRow(row)
		return nil, size, shareable, nil
	}
	if err := r.advance(); err != nil {
		return nil, 0, false, err
	}
	raw = r.source.RawValues()
	size, err = r.decodeRow(raw, row)
	return raw, size, true, err
}

// buffering is a result in the making.
type buffering struct {
	res            *result
	row            []driver.Value // the next one
	chunk          []driver.Value
	used, reserved int64
	maxResult      int64
	n              int  // rows that are in
	asked          bool // large has been true
}

func (b *buffering) begin(cols *columns, budget *budget, maxResult int64) {
	r := newResult(cols, budget)
	*b = buffering{
		res:       r,
		used:      resultSize + cols.size,
		maxResult: maxResult,
	}
}

// add takes the row in, whose wire form is raw, and whose values refer to memory of
// that size. It reports false if it does not fit, or cannot be given to several
// callers: then the row stays where it is.
func (b *buffering) add(raw [][]byte, size int64, shareable bool) bool {
	r, width := b.res, len(b.row)
	size += r.raw.add(raw, b.row)
	room := 0 // of a further chunk, if the row needs one
	if len(b.chunk)+width > cap(b.chunk) {
		if room = width * chunkRows(b.n, width); room > blockValues/2 && width <= blockValues {
			room = blockValues // of which the last rows may be unused
		}
		size += chunkSize + allocated(valueSize*room)
	}
	for _, v := range b.row {
		switch v.(type) {
		case []byte, badValue:
			r.tricky = true
		}
	}
	b.used += size
	switch {
	case !shareable:
		r.why = ReasonUnshareable
	case b.used > b.maxResult:
		r.why = ReasonOverflow
	case b.used > b.reserved:
		// Reserve ahead, so that a small result asks once.
		step := min(max(b.used, 2*b.reserved), b.maxResult) - b.reserved
		if !r.budget.take(step) {
			r.why = ReasonMemory
			break
		}
		b.reserved += step
	}
	if r.why != ReasonNone {
		b.used -= size
		return false
	}
	switch {
	case b.n == 0: // most results have one row, which is as it shall be
		b.chunk, b.row = b.row, nil
	case room > 0:
		r.add(b.chunk)
		if room == blockValues {
			b.chunk = blocks.Get().(*[blockValues]driver.Value)[:0]
		} else {
			b.chunk = make([]driver.Value, 0, room)
		}
		fallthrough
	default:
		b.chunk = append(b.chunk, b.row...)
	}
	b.n++
	return true
}

// large reports, once, that the rows have become many.
func (b *buffering) large() bool {
	if b.asked || b.used <= b.res.budget.large {
		return false
	}
	b.asked = true
	return true
}

// next returns the row to read into.
func (b *buffering) next() []driver.Value {
	if b.row == nil {
		width := len(b.res.cols.names)
		if spare := b.res.spare; width > 0 && width <= cap(spare) && b.n == 0 {
			b.row, b.res.spare = spare[:width], nil
		} else {
			b.row = make([]driver.Value, width)
		}
	}
	return b.row
}

// finish returns the result.
func (b *buffering) finish() *result {
	r := b.res
	r.add(b.chunk)
	r.rows = b.n
	r.bytes = min(b.used, b.reserved)
	r.budget.give(b.reserved - r.bytes)
	return r
}

// discard gives back what was taken for a result that nobody gets.
func (b *buffering) discard() {
	if b.res != nil {
		b.res.budget.give(b.reserved)
	}
	*b = buffering{}
}

func (r *result) add(chunk []driver.Value) {
	if len(chunk) > 0 {
		r.chunks = append(r.chunks, chunk)
	}
}

// end closes rows that gave err: the end of the result, unless another result
// set follows.
func (r *result) end(rows driver.Rows, err error) {
	if more, ok := rows.(driver.RowsNextResultSet); ok && err == io.EOF && more.HasNextResultSet() {
		r.why = ReasonUnshareable
		r.live = &liveRows{rows: rows, ended: true}
		return
	}
	if err != io.EOF {
		r.tail = err
	}
	r.closed = rows.Close()
}

// copyRow makes a row the driver's no more (it may reuse the memory behind a
// []byte at the next call of Next), and returns the size of what its values
// refer to, in bytes, and whether it can be given to several callers.
func copyRow(row []driver.Value) (size int64, ok bool) {
	ok = true
	for i, v := range row {
		n, shareable := sizeOf(v)
		size += n
		ok = ok && shareable
		if b, is := v.([]byte); is {
			row[i] = bytes.Clone(b)
		}
	}
	return size, ok
}

// chunkRows returns how many rows the next chunk holds when n are buffered:
// few at first, so that a one-row result takes no more than it needs.
func chunkRows(n, width int) int {
	return max(1, min(n, chunkBytes/(valueSize*max(width, 1))))
}

// liveRows are rows that are still being read from the server, behind the
// buffered beginning of a result.
type liveRows struct {
	rows   driver.Rows
	first  []driver.Value     // a row that is read but not delivered, or nil
	ended  bool               // the first result set is at its end
	lost   bool               // the session must not be used again
	cancel context.CancelFunc // ends the execution
	done   func()             // gives the session back; called once, by close
	unhook func() bool        // detaches them from their caller's context

	closing sync.Once
	err     error // of closing
}

func (l *liveRows) next(dest []driver.Value) error {
	if l.first != nil {
		copy(dest, l.first)
		l.first = nil
		return nil
	}
	if l.ended {
		l.ended = false
		return io.EOF
	}
	l.lost = true // until it returns
	err := l.rows.Next(dest)
	l.lost = errors.Is(err, driver.ErrBadConn)
	return err
}

func (l *liveRows) close() error {
	l.closing.Do(func() {
		defer l.done()
		defer l.cancel()
		lost := l.lost
		l.lost = true // until it returns
		l.err = l.rows.Close()
		l.lost = lost
	})
	return l.err
}

// replay gives one caller its copy of a flight's rows. Like every driver.Rows
// it serves one goroutine at a time.
type replay struct {
	ctx    context.Context // the caller's, for live rows
	res    *result         // nil when closed: it may be another's by then
	cols   *columns
	row    int       // rows given
	chunk  int32     // where the next one is
	pos    int32     // likewise
	live   *liveRows // claimed by this caller, or nil
	names  *[]string // where to take the slices for Columns from, or nil
	clone  bool      // somebody else reads the same values
	later  bool      // at a live second or later result set: the columns are the inner driver's
	closed bool
}

var (
	_ driver.Rows                           = (*replay)(nil)
	_ driver.RowsNextResultSet              = (*replay)(nil)
	_ driver.RowsColumnTypeScanType         = (*replay)(nil)
	_ driver.RowsColumnTypeDatabaseTypeName = (*replay)(nil)
	_ driver.RowsColumnTypeLength           = (*replay)(nil)
	_ driver.RowsColumnTypeNullable         = (*replay)(nil)
	_ driver.RowsColumnTypePrecisionScale   = (*replay)(nil)
)

// newReplay makes the caller's rows from its share of a result. With live
// rows, which the caller must have claimed, they end with the caller's ctx.
func newReplay(ctx context.Context, res *result) driver.Rows {
	r := new(replayRows)
	r.begin(ctx, res)
	return r.rows()
}

// replays is how many replays a connection makes at a time: as many as fill one of the
// allocator's sizes, as below.
const replays = 7

// replay is newReplay for the connection's caller.
func (cn *conn) replay(ctx context.Context, res *result) driver.Rows {
	if len(cn.replays) == 0 {
		cn.replays = make([]replayRows, replays)
	}
	r := &cn.replays[0] // never again: whoever has closed his may close it once more
	cn.replays = cn.replays[1:]
	r.begin(ctx, res)
	r.names = &cn.names
	return r.rows()
}

// namesBlock is for how many columns' names a connection makes room at a time.
const namesBlock = 63

func (r *replay) begin(ctx context.Context, res *result) {
	r.ctx, r.res, r.cols, r.clone, r.live = ctx, res, res.cols, res.shared, res.live
	if r.live != nil {
		r.live.unhook = context.AfterFunc(ctx, r.live.cancel)
	}
}

// Columns implements driver.Rows. The slice is its caller's own: callers change them.
func (r *replay) Columns() []string {
	if r.later && !r.closed {
		return r.live.rows.Columns()
	}
	n := len(r.cols.names)
	if r.names == nil || n > namesBlock {
		return slices.Clone(r.cols.names)
	}
	// database/sql asks for each result, to count them.
	if len(*r.names) < n {
		*r.names = make([]string, namesBlock)
	}
	names := (*r.names)[:n:n]
	*r.names = (*r.names)[n:]
	copy(names, r.cols.names)
	return names
}

// Next implements driver.Rows.
func (r *replay) Next(dest []driver.Value) error {
	if !r.closed && r.row < r.res.rows && !r.res.tricky {
		r.step()
		copy(dest, r.values())
		return nil
	}
	buffered, err := r.advance(func() error { return r.live.next(dest) })
	if buffered {
		for i, v := range r.values() {
			if bad, ok := v.(badValue); ok {
				return fmt.Errorf("convert field %d failed: %w", i, bad.err)
			}
			dest[i] = r.own(v)
		}
	}
	return err
}

// advance goes to the next row: a buffered one, or one that live reads.
func (r *replay) advance(live func() error) (buffered bool, err error) {
	switch {
	case r.closed:
		return false, io.EOF
	case r.row < r.res.rows:
		r.step()
		return true, nil
	case r.live != nil:
		err = live()
		if err != nil && err != io.EOF && r.ctx.Err() != nil {
			err = r.ctx.Err() // the caller's own end, not the flight's
		}
		return false, err
	case r.res.tail != nil:
		return false, r.res.tail
	}
	return false, io.EOF
}

// step goes to the next buffered row.
func (r *replay) step() {
	r.row++
	if width := len(r.cols.names); width > 0 { // SELECT FROM t has rows without columns
		if int(r.pos) == len(r.res.chunks[r.chunk]) {
			r.chunk, r.pos = r.chunk+1, 0
		}
		r.pos += int32(width)
	}
}

// values are those of the buffered row that advance has gone to.
func (r *replay) values() []driver.Value {
	width := len(r.cols.names)
	if width == 0 {
		return nil
	}
	return r.res.chunks[r.chunk][int(r.pos)-width : r.pos]
}

// own makes a value this caller's: sql.RawBytes and Scanner see the memory as it
// is, and one caller's must not be another's.
func (r *replay) own(v driver.Value) driver.Value {
	if b, ok := v.([]byte); ok && r.clone {
		return bytes.Clone(b)
	}
	return v
}

// Close implements driver.Rows.
func (r *replay) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	res := r.res
	defer res.Drop() // what ends live rows may panic
	err := res.closed
	if r.live != nil {
		err = r.live.close() // may have to read what is left: as long as the caller's context lasts
		r.live.unhook()
		if err != nil && r.ctx.Err() != nil {
			err = r.ctx.Err() // as in advance: not the server's word for it
		}
	}
	// The connection keeps what it has made at a time, with all that it points at.
	r.ctx, r.res, r.live, r.names = nil, nil, nil, nil
	return err
}

// HasNextResultSet implements driver.RowsNextResultSet. Only the live rows of
// another driver than pgx can have more than one.
func (r *replay) HasNextResultSet() bool {
	if r.live == nil {
		return false
	}
	return passedRows{r.live.rows}.HasNextResultSet()
}

// NextResultSet implements driver.RowsNextResultSet.
func (r *replay) NextResultSet() error {
	if r.live == nil {
		return io.EOF
	}
	r.row, r.later, r.live.ended = r.res.rows, true, false
	return passedRows{r.live.rows}.NextResultSet()
}

func (r *replay) columnType(i int) columnType {
	if r.later && !r.closed {
		return typeOfColumn(r.live.rows, i)
	}
	return r.cols.types[i]
}

// ColumnTypeScanType implements driver.RowsColumnTypeScanType.
func (r *replay) ColumnTypeScanType(i int) reflect.Type { return r.columnType(i).scan }

// ColumnTypeDatabaseTypeName implements driver.RowsColumnTypeDatabaseTypeName.
func (r *replay) ColumnTypeDatabaseTypeName(i int) string { return r.columnType(i).database }

// ColumnTypeLength implements driver.RowsColumnTypeLength.
func (r *replay) ColumnTypeLength(i int) (int64, bool) {
	t := r.columnType(i)
	return t.length, t.hasLength
}

// ColumnTypeNullable implements driver.RowsColumnTypeNullable.
func (r *replay) ColumnTypeNullable(i int) (nullable, ok bool) {
	t := r.columnType(i)
	return t.nullable, t.hasNullable
}

// ColumnTypePrecisionScale implements driver.RowsColumnTypePrecisionScale.
func (r *replay) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	t := r.columnType(i)
	return t.precision, t.scale, t.hasPrecision
}

// passedRows are the inner driver's rows. They have every optional interface,
// with the answers that database/sql gives for rows without it.
type passedRows struct{ inner driver.Rows }

// Columns implements driver.Rows.
func (r passedRows) Columns() []string { return r.inner.Columns() }

// HasNextResultSet implements driver.RowsNextResultSet.
func (r passedRows) HasNextResultSet() bool {
	more, ok := r.inner.(driver.RowsNextResultSet)
	return ok && more.HasNextResultSet()
}

// NextResultSet implements driver.RowsNextResultSet.
func (r passedRows) NextResultSet() error {
	if more, ok := r.inner.(driver.RowsNextResultSet); ok {
		return more.NextResultSet()
	}
	return io.EOF
}

// ColumnTypeScanType implements driver.RowsColumnTypeScanType.
func (r passedRows) ColumnTypeScanType(i int) reflect.Type { return typeOfColumn(r.inner, i).scan }

// ColumnTypeDatabaseTypeName implements driver.RowsColumnTypeDatabaseTypeName.
func (r passedRows) ColumnTypeDatabaseTypeName(i int) string {
	return typeOfColumn(r.inner, i).database
}

// ColumnTypeLength implements driver.RowsColumnTypeLength.
func (r passedRows) ColumnTypeLength(i int) (int64, bool) {
	t := typeOfColumn(r.inner, i)
	return t.length, t.hasLength
}

// ColumnTypeNullable implements driver.RowsColumnTypeNullable.
func (r passedRows) ColumnTypeNullable(i int) (nullable, ok bool) {
	t := typeOfColumn(r.inner, i)
	return t.nullable, t.hasNullable
}

// ColumnTypePrecisionScale implements driver.RowsColumnTypePrecisionScale.
func (r passedRows) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	t := typeOfColumn(r.inner, i)
	return t.precision, t.scale, t.hasPrecision
}
