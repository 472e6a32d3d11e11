package flightpg

import (
	"bytes"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"math/big"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// What an argument is for its flight: how it is encoded into the key, and how it is
// copied, since the flight may outlive the call.
//
// A value is encoded with all that its type holds, by a plan made once per type:
// scalars, strings, times, addresses, big numbers, and slices, arrays, pointers, maps
// and structs of such. That is more than any encoder of pgx's looks at, so equal keys
// are equal bytes on the wire. (Its methods String, MarshalJSON and MarshalText are
// taken for functions of the value; a map's entries reach hstore in any order.)
//
// A type with a method Value says itself what it sends, and its fields may not tell.
// So Value is called, once, by the caller and before its call returns, and what it
// has returned takes the argument's place in the key and in the query: see valuers.go.
//
// What has no identity bypasses: structs with unexported fields (which may be locked,
// counted or cached by their owner), interfaces, channels, functions, recursive types,
// and types with methods by which pgx asks for a value in its own way (pgtype's
// Int64Valuer and their like) that are not pgx's own.

// conversion says what has to become of an argument before it has an identity.
type conversion uint8

const (
	convertNever   conversion = iota
	convertValue              // it is a driver.Valuer
	convertPointer            // it points at one that needs conversion
	convertList               // a slice or array of such
)

// reasonConvert is the Reason of arguments that need conversion. Nobody sees it.
const reasonConvert = reasonCount

// plan is how values of one type are encoded and copied.
type plan struct {
	id      uint64 // stands for the type in keys; unique in the process
	why     Reason // not ReasonNone: values of the type cannot be part of a key as they are
	convert conversion
	encode  func(b []byte, v reflect.Value) []byte
	plain   bool                                // holds bytes, in an array, and nothing else; or a list or pointer of such
	shared  bool                                // has memory that the caller keeps hold of
	clone   func(v reflect.Value) reflect.Value // set if shared
	scalar  bool                                // is its own memory: two values are the same if that is
	memory  func(v reflect.Value) []byte        // that of a slice of scalars, which is not nil; else nil
}

var (
	plans  sync.Map // reflect.Type → *plan; bounded by the program's types
	planID atomic.Uint64
)

// planOf returns the plan of a type, made at its first use.
func planOf(t reflect.Type) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	// Whoever is first: its id is the type's for good.
	p, _ := plans.LoadOrStore(t, planner{}.plan(t))
	return p.(*plan)
}

// planner makes the plan of a type, with those of its parts. The parts under way are
// in it as nil: a type that is met again inside itself is recursive.
type planner map[reflect.Type]*plan

func (pl planner) plan(t reflect.Type) *plan {
	if p, met := pl[t]; met {
		if p == nil {
			return &plan{why: ReasonArgument}
		}
		return p
	}
	pl[t] = nil
	p := &plan{id: planID.Add(1)}
	switch {
	case t.Implements(rewriterType), t == execModeType, t == formatsType, t == formatsByOIDType:
		p.why = ReasonPgxOption
	case p.special(t):
	case !trusted(t) && asksItsOwnWay(t):
		p.why = ReasonArgument
	default:
		p.fill(pl, t)
		if p.convert == convertList && !listed(t) {
			p.why, p.convert = ReasonArgument, convertNever
		}
		if !trusted(t) && t.Kind() != reflect.Interface && t.Implements(valuerType) {
			p.convert = convertValue
		}
	}
	pl[t] = p
	return p
}

var (
	timeType         = reflect.TypeFor[time.Time]()
	addrType         = reflect.TypeFor[netip.Addr]()
	prefixType       = reflect.TypeFor[netip.Prefix]()
	intType          = reflect.TypeFor[*big.Int]()
	ratType          = reflect.TypeFor[*big.Rat]()
	floatType        = reflect.TypeFor[*big.Float]()
	convertedType    = reflect.TypeFor[converted]()
	valuerType       = reflect.TypeFor[driver.Valuer]()
	stringerType     = reflect.TypeFor[fmt.Stringer]()
	rewriterType     = reflect.TypeFor[pgx.QueryRewriter]()
	execModeType     = reflect.TypeFor[pgx.QueryExecMode]()
	formatsType      = reflect.TypeFor[pgx.QueryResultFormats]()
	formatsByOIDType = reflect.TypeFor[pgx.QueryResultFormatsByOID]()

	pgtypePath = reflect.TypeFor[pgtype.Map]().PkgPath()
	sqlPath    = reflect.TypeFor[sql.NullString]().PkgPath()
)

// trusted reports whether what a type's methods tell is known to follow from what it
// holds, its Value method included: pgtype's own types, and database/sql's. (A generic
// one's arguments are its fields' types.)
func trusted(t reflect.Type) bool {
	if t.Kind() == reflect.Pointer && t.Name() == "" {
		t = t.Elem()
	}
	switch t.PkgPath() {
	case pgtypePath:
		return true
	case sqlPath:
		return !strings.Contains(t.Name(), "[") // sql.Null[T] asks T
	}
	return false
}

// ownWays are the interfaces by which pgx's codecs ask a value, before they come to
// driver.Valuer.
var ownWays = []reflect.Type{
	reflect.TypeFor[pgtype.ArrayGetter](), reflect.TypeFor[pgtype.BitsValuer](), reflect.TypeFor[pgtype.BoolValuer](),
	reflect.TypeFor[pgtype.BoxValuer](), reflect.TypeFor[pgtype.BytesValuer](), reflect.TypeFor[pgtype.CircleValuer](),
	reflect.TypeFor[pgtype.CompositeIndexGetter](), reflect.TypeFor[pgtype.DateValuer](), reflect.TypeFor[pgtype.Float64Valuer](),
	reflect.TypeFor[pgtype.HstoreValuer](), reflect.TypeFor[pgtype.NetipPrefixValuer](), reflect.TypeFor[pgtype.Int64Valuer](),
	reflect.TypeFor[pgtype.IntervalValuer](), reflect.TypeFor[pgtype.LineValuer](), reflect.TypeFor[pgtype.LsegValuer](),
	reflect.TypeFor[pgtype.MultirangeGetter](), reflect.TypeFor[pgtype.NumericValuer](), reflect.TypeFor[pgtype.PathValuer](),
	reflect.TypeFor[pgtype.PointValuer](), reflect.TypeFor[pgtype.PolygonValuer](), reflect.TypeFor[pgtype.RangeValuer](),
	reflect.TypeFor[pgtype.TextValuer](), reflect.TypeFor[pgtype.TIDValuer](), reflect.TypeFor[pgtype.TimeValuer](),
	reflect.TypeFor[pgtype.TimestampValuer](), reflect.TypeFor[pgtype.TimestamptzValuer](), reflect.TypeFor[pgtype.TSVectorValuer](),
	reflect.TypeFor[pgtype.Uint32Valuer](), reflect.TypeFor[pgtype.Uint64Valuer](), reflect.TypeFor[pgtype.UUIDValuer](),
}

func asksItsOwnWay(t reflect.Type) bool {
	return t.Kind() != reflect.Interface && slices.ContainsFunc(ownWays, t.Implements)
}

// listed reports whether pgx takes a list apart: slices, and slices of slices. It may
// send one that can print itself as what that prints.
func listed(t reflect.Type) bool {
	e := t.Elem()
	if e.Implements(valuerType) {
		return !t.Implements(stringerType)
	}
	switch e.Kind() {
	case reflect.Array:
		return false
	case reflect.Slice:
		// In there a Valuer that is a slice itself is one more dimension to pgx.
		if inner := e.Elem(); t.Kind() != reflect.Slice || inner.Kind() == reflect.Slice && inner.Implements(valuerType) {
			return false
		}
	}
	return !t.Implements(stringerType)
}

// special fills in the plan of a type that is not encoded by its fields.
func (p *plan) special(t reflect.Type) bool {
	switch t {
	case timeType:
		// Inside another type all that can be seen counts, the zone's own name too: that
		// type may print it.
		p.encode = func(b []byte, v reflect.Value) []byte {
			t := v.Interface().(time.Time)
			return appendString(appendString(appendTime(b, t), t.Location().String()), t.String())
		}
	case addrType:
		p.encode = func(b []byte, v reflect.Value) []byte { return appendAddr(b, v.Interface().(netip.Addr)) }
	case prefixType:
		p.encode = func(b []byte, v reflect.Value) []byte {
			pf := v.Interface().(netip.Prefix)
			return binary.BigEndian.AppendUint64(appendAddr(b, pf.Addr()), uint64(int64(pf.Bits())))
		}
	case intType:
		fillBig(p, func(b []byte, x *big.Int) []byte { return x.Append(b, 62) }, func(x *big.Int) *big.Int { return new(big.Int).Set(x) })
	case ratType:
		fillBig(p, func(b []byte, x *big.Rat) []byte { return append(b, x.String()...) }, func(x *big.Rat) *big.Rat { return new(big.Rat).Set(x) })
	case floatType:
		fillBig(p, func(b []byte, x *big.Float) []byte {
			b = binary.AppendUvarint(b, uint64(x.Prec()))
			return x.Append(append(b, byte(x.Mode()), byte(x.Acc())), 'p', 0)
		}, func(x *big.Float) *big.Float { return new(big.Float).Copy(x) })
	case convertedType:
		p.shared = true
		p.encode = func(b []byte, v reflect.Value) []byte {
			start := len(b)
			b, why := new(keying).appendValue(b, v.Interface().(converted))
			if why != ReasonNone {
				return append(b[:start], make([]byte, maxKeyArgs+1)...) // none: too long
			}
			return b
		}
		p.clone = func(v reflect.Value) reflect.Value { return reflect.ValueOf(copyValue(v.Interface())) }
	default:
		return false
	}
	return true
}

// fillBig fills in the plan of a big number's pointer.
func fillBig[T any](p *plan, appendTo func([]byte, *T) []byte, clone func(*T) *T) {
	p.shared = true
	p.encode = func(b []byte, v reflect.Value) []byte {
		x := v.Interface().(*T)
		if x == nil {
			return append(b, 0)
		}
		return appendString(append(b, 1), string(appendTo(nil, x)))
	}
	p.clone = func(v reflect.Value) reflect.Value {
		if v.IsNil() {
			return v
		}
		return reflect.ValueOf(clone(v.Interface().(*T)))
	}
}

func appendAddr(b []byte, a netip.Addr) []byte {
	raw, _ := a.MarshalBinary() // never fails: empty, 4 or 16 bytes, then the zone
	return appendString(b, string(raw))
}

// fill fills in the plan of a type that is encoded by what it is made of.
func (p *plan) fill(pl planner, t reflect.Type) {
	p.scalar = t.Kind() >= reflect.Bool && t.Kind() <= reflect.Float64 && t.Kind() != reflect.Uintptr
	switch t.Kind() {
	case reflect.Bool:
		p.encode = func(b []byte, v reflect.Value) []byte {
			if v.Bool() {
				return append(b, 1)
			}
			return append(b, 0)
		}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		p.encode = func(b []byte, v reflect.Value) []byte {
			return binary.BigEndian.AppendUint64(b, uint64(v.Int()))
		}
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		p.encode = func(b []byte, v reflect.Value) []byte {
			return binary.BigEndian.AppendUint64(b, v.Uint())
		}
	case reflect.Float32:
		p.encode = func(b []byte, v reflect.Value) []byte {
			return binary.BigEndian.AppendUint32(b, math.Float32bits(float32(v.Float())))
		}
	case reflect.Float64:
		p.encode = func(b []byte, v reflect.Value) []byte {
			return binary.BigEndian.AppendUint64(b, math.Float64bits(v.Float()))
		}
	case reflect.String:
		p.encode = func(b []byte, v reflect.Value) []byte { return appendString(b, v.String()) }
	case reflect.Array:
		p.fillArray(pl, t)
	case reflect.Slice:
		p.fillSlice(pl, t)
	case reflect.Pointer:
		p.fillPointer(pl, t)
	case reflect.Map:
		p.fillMap(pl, t)
	case reflect.Struct:
		p.fillStruct(pl, t)
	default:
		p.why = ReasonArgument
	}
}

// part returns the plan of a part of a type. Without one the whole has none either; if
// the part needs conversion, the whole is what inside says.
func (p *plan) part(pl planner, t reflect.Type, inside conversion) *plan {
	part := pl.plan(t)
	if p.why == ReasonNone {
		p.why = part.why
	}
	if part.convert != convertNever {
		if inside == convertNever && p.why == ReasonNone {
			p.why = ReasonArgument
		}
		p.convert = inside
	}
	p.shared = p.shared || part.shared
	p.plain = part.plain && inside != convertNever
	return part
}

// copyOf returns a copy of a part that shares no memory.
func (p *plan) copyOf(v reflect.Value) reflect.Value {
	if p.shared {
		return p.clone(v)
	}
	return v
}

func (p *plan) fillArray(pl planner, t reflect.Type) {
	elem := p.part(pl, t.Elem(), convertList)
	if t.Elem().Size() == 0 { // there may be 1<<60 of them
		p.why, p.convert = ReasonArgument, convertNever
		return
	}
	p.plain = p.plain || t.Elem().Kind() == reflect.Uint8
	p.encode = func(b []byte, v reflect.Value) []byte {
		for i := 0; i < v.Len() && len(b) <= maxKeyArgs; i++ { // what is longer is no key
			b = elem.encode(b, v.Index(i))
		}
		return b
	}
	p.clone = func(v reflect.Value) reflect.Value {
		c := reflect.New(t).Elem()
		for i := range v.Len() {
			c.Index(i).Set(elem.copyOf(v.Index(i)))
		}
		return c
	}
}

func (p *plan) fillSlice(pl planner, t reflect.Type) {
	elem := p.part(pl, t.Elem(), convertList)
	if t.Elem().Size() == 0 {
		p.why, p.convert = ReasonArgument, convertNever
		return
	}
	p.shared = true
	if elem.scalar {
		size := int(t.Elem().Size())
		p.memory = func(v reflect.Value) []byte {
			return unsafe.Slice((*byte)(v.UnsafePointer()), v.Len()*size)
		}
	}
	p.encode = func(b []byte, v reflect.Value) []byte {
		if v.IsNil() {
			return append(b, 0)
		}
		b = binary.AppendUvarint(append(b, 1), uint64(v.Len()))
		if p.memory != nil {
			return appendBounded(b, p.memory(v))
		}
		for i := 0; i < v.Len() && len(b) <= maxKeyArgs; i++ {
			b = elem.encode(b, v.Index(i))
		}
		return b
	}
	p.clone = func(v reflect.Value) reflect.Value {
		if v.IsNil() {
			return v
		}
		c := reflect.MakeSlice(t, v.Len(), v.Len())
		if !elem.shared {
			reflect.Copy(c, v)
			return c
		}
		for i := range v.Len() {
			c.Index(i).Set(elem.clone(v.Index(i)))
		}
		return c
	}
}

// fillPointer takes a pointer for what it points at: pgx does, at once.
func (p *plan) fillPointer(pl planner, t reflect.Type) {
	elem := p.part(pl, t.Elem(), convertPointer)
	p.shared = true
	p.encode = func(b []byte, v reflect.Value) []byte {
		if v.IsNil() {
			return append(b, 0)
		}
		return elem.encode(append(b, 1), v.Elem())
	}
	p.clone = func(v reflect.Value) reflect.Value {
		if v.IsNil() {
			return v
		}
		c := reflect.New(t.Elem())
		c.Elem().Set(elem.copyOf(v.Elem()))
		return c.Convert(t)
	}
}

// fillMap encodes a map as its entries, in the order of their encodings.
func (p *plan) fillMap(pl planner, t reflect.Type) {
	key, elem := p.part(pl, t.Key(), convertNever), p.part(pl, t.Elem(), convertNever)
	if key.shared { // a pointer: two keys may point at equal values
		p.why = ReasonArgument
	}
	p.shared = true
	p.encode = func(b []byte, v reflect.Value) []byte {
		if v.IsNil() {
			return append(b, 0)
		}
		entries := make([][]byte, 0, min(v.Len(), maxKeyArgs))
		size := 0
		for it := v.MapRange(); it.Next() && size <= maxKeyArgs; {
			e := elem.encode(key.encode(nil, it.Key()), it.Value())
			size += len(e)
			entries = append(entries, e)
		}
		slices.SortFunc(entries, bytes.Compare)
		b = binary.AppendUvarint(append(b, 1), uint64(v.Len()))
		for _, e := range entries {
			b = appendBounded(b, e)
		}
		return b
	}
	p.clone = func(v reflect.Value) reflect.Value {
		if v.IsNil() {
			return v
		}
		c := reflect.MakeMapWithSize(t, v.Len())
		for it := v.MapRange(); it.Next(); {
			c.SetMapIndex(it.Key(), elem.copyOf(it.Value()))
		}
		return c
	}
}

func (p *plan) fillStruct(pl planner, t reflect.Type) {
	elems, told := make([]*plan, t.NumField()), false
	for i := range elems {
		f := t.Field(i)
		if !f.IsExported() && f.Name != "_" {
			p.why = ReasonArgument
		}
		elems[i] = p.part(pl, f.Type, convertNever)
		if p.why != ReasonNone {
			return
		}
		told = told || f.Name != "_"
	}
	if !told && len(elems) > 0 { // nothing to encode: there may be any number of them
		p.why = ReasonArgument
		return
	}
	p.encode = func(b []byte, v reflect.Value) []byte {
		for i, e := range elems {
			if t.Field(i).Name != "_" {
				b = e.encode(b, v.Field(i))
			}
		}
		return b
	}
	p.clone = func(v reflect.Value) reflect.Value {
		c := reflect.New(t).Elem()
		for i, e := range elems {
			if t.Field(i).Name != "_" {
				c.Field(i).Set(e.copyOf(v.Field(i)))
			}
		}
		return c
	}
}

// copyArgs returns arguments that share no memory with the caller's: a flight
// may outlive the call that led it, and database/sql's callers may change what
// they passed as soon as the call returns. Only for arguments that appendKey
// has accepted.
func copyArgs(args []driver.NamedValue) []driver.NamedValue {
	if len(args) == 0 {
		return nil
	}
	c := make([]driver.NamedValue, len(args))
	copy(c, args)
	for i := range c {
		c[i].Value = copyValue(c[i].Value)
	}
	return c
}

func copyValue(v any) any {
	switch v := v.(type) {
	case nil, bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64,
		float32, float64, string, time.Time, pgx.QueryExecMode:
	case []byte:
		return bytes.Clone(v)
	case pgx.QueryResultFormats:
		return slices.Clone(v)
	case pgx.QueryResultFormatsByOID:
		return maps.Clone(v)
	case converted:
		return converted{value: copyValue(v.value), err: v.err, typ: v.typ}
	default:
		if p := planOf(reflect.TypeOf(v)); p.shared {
			return p.clone(reflect.ValueOf(v)).Interface()
		}
	}
	return v
}
