//go:build go1.27

package flightpg

import (
	"bytes"
	"database/sql"
	"database/sql/driver"
	"errors"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// Since Go 1.27 database/sql lets the driver scan (driver.RowsColumnScanner), and
// pgx does, so that Scan(&[]int64) works on a bigint[]. Here it must on every
// path: replays keep what the server has sent, where the driver.Value that was
// made of it is not the same.

var (
	_ driver.RowsColumnScanner = (*wireRows)(nil)
	_ driver.RowsColumnScanner = (*scanReplay)(nil)
	_ driver.RowsColumnScanner = (*fencedScanRows)(nil)
)

// NextRow implements driver.RowsColumnScanner.
func (r *wireRows) NextRow() error { return r.advance() }

// ScanColumn implements driver.RowsColumnScanner.
func (r *wireRows) ScanColumn(ctx driver.ScanContext, i int, dest any) error {
	if err := checkDest(dest); err != nil {
		return err
	}
	src := r.source.RawValues()[i]
	if !takesValues(reflect.TypeOf(dest)) {
		return r.types.Scan(r.fields[i].DataTypeOID, r.fields[i].Format, src, dest)
	}
	if src == nil {
		return sql.ConvertAssign(ctx, dest, nil)
	}
	v, err := r.decodeOther(i, src) // by itself: others of its row may never be asked for
	if err != nil {
		return err
	}
	return sql.ConvertAssign(ctx, dest, v)
}

// checkDest refuses what nothing can be scanned into, in pgx's words.
func checkDest(dest any) error {
	if dest == nil {
		return errors.New("destination not a pointer")
	}
	if v := reflect.ValueOf(dest); v.Kind() == reflect.Pointer && v.IsNil() {
		return errors.New("destination pointer is nil")
	}
	return nil
}

// destKinds remembers takesValues: from reflect.Type to bool.
var destKinds sync.Map

// takesValues reports whether a destination of the type is scanned as database/sql
// always did, from a driver.Value: scalars, times, bytes, any, sql.Scanner and
// pointers to those. pgx scans into all others itself. The line between is pgx's.
func takesValues(dest reflect.Type) bool {
	if known, ok := destKinds.Load(dest); ok {
		return known.(bool)
	}
	takes := takesValuesUncached(dest)
	destKinds.Store(dest, takes)
	return takes
}

func takesValuesUncached(t reflect.Type) bool {
	seen := make(map[reflect.Type]bool) // type P *P
	for {
		switch {
		case t.Implements(reflect.TypeFor[sql.Scanner]()):
			return true
		case t.Implements(reflect.TypeFor[pgtype.ArraySetter]()), t.Implements(reflect.TypeFor[pgtype.BytesScanner]()):
			return false // byte slices with a mind of their own
		}
		if t.Kind() != reflect.Pointer {
			break
		}
		if seen[t] {
			return false
		}
		seen[t] = true
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Bool, reflect.String, reflect.Interface, reflect.Float32, reflect.Float64,
		reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return true
	case reflect.Slice:
		return t.Elem().Kind() == reflect.Uint8
	case reflect.Struct:
		return t.ConvertibleTo(reflect.TypeFor[time.Time]())
	}
	return false
}

// scansColumns says that database/sql asks for each column by itself.
const scansColumns = true

// rawValues are the values of a result as the server has sent them, row after row.
type rawValues struct {
	spans []span
	data  []byte
}

// span is where in data a value is.
type span struct{ start, length int32 }

const spanSize = 8 // bytes

// sameValue is the length of a value that needs no bytes here: it is NULL, or text
// or bytes that are the same on the wire.
const sameValue = -1

// add keeps a row, and returns by how many bytes more memory is taken for it.
func (r *rawValues) add(raw [][]byte, row []driver.Value) (size int64) {
	before := r.size()
	for i, src := range raw {
		s := span{int32(len(r.data)), sameValue}
		if !sameBytes(src, row[i]) {
			s.length = int32(len(src))
			r.data = append(r.data, src...)
		}
		r.spans = append(r.spans, s)
	}
	return r.size() - before
}

// again returns what can be used again of it: little, which the size of a result
// allows for. Who has scanned has copies.
func (r *rawValues) again() (kept rawValues) {
	if cap(r.spans) <= 8 {
		kept.spans = r.spans[:0]
	}
	if cap(r.data) <= 64 {
		kept.data = r.data[:0]
	}
	return kept
}

func (r *rawValues) size() int64 { return int64(spanSize*cap(r.spans) + cap(r.data)) }

func sameBytes(src []byte, v driver.Value) bool {
	switch v := v.(type) {
	case nil:
		return src == nil
	case string:
		return string(src) == v
	case []byte:
		return bytes.Equal(src, v)
	}
	return false
}

// copy returns the i-th value, whose decoded form is v, in memory of its own.
func (r *rawValues) copy(i int, v driver.Value) []byte {
	s := r.spans[i]
	if s.length != sameValue {
		return append([]byte{}, r.data[s.start:s.start+s.length]...)
	}
	switch v := v.(type) {
	case string:
		return []byte(v)
	case []byte:
		return append([]byte{}, v...)
	}
	return nil
}

// typeReaders scan what a flight has read, after the flight: the connection's own
// type map is in use by the next one. They know the types that were registered
// before the connection's first flight. Safe for concurrent use.
type typeReaders struct {
	types *pgtype.Map // copied from, never scanned with
	idle  sync.Pool   // of *typeReader
}

// typeReaders returns those of the connection, which keeps them.
func (s *session) typeReaders() *typeReaders {
	const key = "flightpg.typeReaders"
	data := s.pgx.Conn().PgConn().CustomData()
	readers, _ := data[key].(*typeReaders)
	if readers == nil {
		readers = &typeReaders{types: copyTypes(s.pgx.Conn().TypeMap())} // now: the connection is ours
		data[key] = readers
	}
	return readers
}

// copyTypes copies a type map with all that scanning depends on. The copy shares no
// state with it: pgx's own Copy shares the codecs, and EnumCodec keeps what it has
// decoded, also as the type of an element or a field.
func copyTypes(m *pgtype.Map) *pgtype.Map {
	types := m.Copy()
	types.TryWrapScanPlanFuncs = slices.Clone(m.TryWrapScanPlanFuncs)
	own := make(map[*pgtype.Type]*pgtype.Type)
	for _, oid := range registeredTypes(types) {
		if t, ok := types.TypeForOID(oid); ok {
			if c := ownType(t, own); c != t {
				types.RegisterType(c)
			}
		}
	}
	return types
}

// registeredTypes returns the OIDs of a map's types. pgx has no way to ask for them.
func registeredTypes(m *pgtype.Map) (oids []uint32) {
	types := reflect.ValueOf(m).Elem().FieldByName("oidToType")
	if types.Kind() != reflect.Map {
		return nil
	}
	for _, oid := range types.MapKeys() {
		oids = append(oids, uint32(oid.Uint()))
	}
	return oids
}

// typeReader serves one goroutine at a time.
type typeReader struct{ types *pgtype.Map }

func (t *typeReaders) scan(oid uint32, format int16, src []byte, dest any) error {
	r, _ := t.idle.Get().(*typeReader)
	if r == nil {
		r = &typeReader{copyTypes(t.types)}
	}
	err := r.types.Scan(oid, format, src, dest)
	t.idle.Put(r) // not after a panic in a destination's own method
	return err
}

// ownType returns a type that shares no state with t: t itself, if it has none. own
// are those that were made before.
func ownType(t *pgtype.Type, own map[*pgtype.Type]*pgtype.Type) *pgtype.Type {
	if c, ok := own[t]; ok {
		return c
	}
	own[t] = t // a type that contains itself ends here
	with := func(c pgtype.Codec) *pgtype.Type {
		own[t] = &pgtype.Type{Name: t.Name, OID: t.OID, Codec: c}
		return own[t]
	}
	switch c := t.Codec.(type) {
	case *pgtype.EnumCodec:
		return with(new(pgtype.EnumCodec))
	case *pgtype.ArrayCodec:
		if e := ownType(c.ElementType, own); e != c.ElementType {
			return with(&pgtype.ArrayCodec{ElementType: e})
		}
	case *pgtype.RangeCodec:
		if e := ownType(c.ElementType, own); e != c.ElementType {
			return with(&pgtype.RangeCodec{ElementType: e})
		}
	case *pgtype.MultirangeCodec:
		if e := ownType(c.ElementType, own); e != c.ElementType {
			return with(&pgtype.MultirangeCodec{ElementType: e})
		}
	case *pgtype.CompositeCodec:
		fields := slices.Clone(c.Fields)
		changed := false
		for i, f := range c.Fields {
			fields[i].Type = ownType(f.Type, own)
			changed = changed || fields[i].Type != f.Type
		}
		if changed {
			return with(&pgtype.CompositeCodec{Fields: fields})
		}
	}
	return t
}

// replayRows is a replay as database/sql shall see it: it scans if pgx has read the
// result.
type replayRows = scanReplay

func (r *replayRows) rows() driver.Rows {
	if r.cols.wire == nil {
		return &r.replay
	}
	return r
}

// scanReplay replays what pgx has read.
type scanReplay struct {
	replay
	atLive bool // the current row is not a buffered one
}

// NextRow implements driver.RowsColumnScanner.
func (r *scanReplay) NextRow() error {
	buffered, err := r.advance(func() error { return r.live.nextRow() })
	r.atLive = !buffered
	return err
}

// nextRow is next for rows that scan: the row that was read but not delivered is
// still the one that they are at.
func (l *liveRows) nextRow() error {
	if l.first != nil {
		l.first = nil
		return nil
	}
	return l.rows.(driver.RowsColumnScanner).NextRow()
}

// ScanColumn implements driver.RowsColumnScanner.
func (r *scanReplay) ScanColumn(ctx driver.ScanContext, i int, dest any) error {
	switch {
	case r.closed, r.row == 0 && !r.atLive, r.atLive && r.live == nil:
		return errors.New("flightpg: ScanColumn without a row: call NextRow first")
	case r.atLive:
		return r.live.rows.(driver.RowsColumnScanner).ScanColumn(ctx, i, dest)
	}
	if err := checkDest(dest); err != nil {
		return err
	}
	values := r.values()
	if takesValues(reflect.TypeOf(dest)) {
		if bad, ok := values[i].(badValue); ok {
			return bad.err
		}
		return sql.ConvertAssign(ctx, dest, r.own(values[i]))
	}
	// A destination may keep the bytes: they are its own.
	wire := r.cols.wire
	src := r.res.raw.copy((r.row-1)*len(values)+i, values[i])
	return wire.readers.scan(wire.fields[i].DataTypeOID, wire.fields[i].Format, src, dest)
}

// newFencedRows fences rows; those that scan scan on.
func newFencedRows(rows driver.Rows, cn *conn, v *verdict) driver.Rows {
	fenced := fencedRows{passedRows{rows}, cn, v}
	if scanner, ok := rows.(driver.RowsColumnScanner); ok {
		return &fencedScanRows{fenced, scanner}
	}
	return &fenced
}

// fencedScanRows are fencedRows that scan.
type fencedScanRows struct {
	fencedRows
	scanner driver.RowsColumnScanner
}

// NextRow implements driver.RowsColumnScanner.
func (r *fencedScanRows) NextRow() error {
	err := r.scanner.NextRow()
	if err != nil {
		r.cn.wrote(r.v)
	}
	return err
}

// ScanColumn implements driver.RowsColumnScanner.
func (r *fencedScanRows) ScanColumn(ctx driver.ScanContext, i int, dest any) error {
	return r.scanner.ScanColumn(ctx, i, dest)
}
