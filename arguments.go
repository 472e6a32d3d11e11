package flightpg

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
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
// has returned takes the argument's place in the key and in the query.
//
// What has no identity bypasses: structs with unexported fields (which may be locked,
// counted or cached by their owner), interfaces, channels, functions, recursive types,
// and types with methods by which pgx asks for a value in its own way (pgtype's
// Int64Valuer and their like) that are not pgx's own.

// converted stands for an argument that is a driver.Valuer, or for one of a list.
// To pgx it is nothing but that, so it goes the same way to the wire.
type converted struct {
	value driver.Value // what Value has returned
	err   error        // likewise: then it is for its caller alone
	from  any          // the argument, for pgx's errors, which print it; nil in a copy
}

var _ driver.Valuer = converted{}

// Value implements driver.Valuer.
func (c converted) Value() (driver.Value, error) { return c.value, c.err }

// GoString implements fmt.GoStringer.
func (c converted) GoString() string {
	if c.from != nil {
		return fmt.Sprintf("%#v", c.from)
	}
	return fmt.Sprintf("%#v", c.value)
}

var errNotJSON = errors.New("flightpg: a list of converted arguments is not for JSON")

// MarshalJSON implements json.Marshaler. A list whose parameter has become a JSON one
// since the statement was described is not to be sent like this.
func (c converted) MarshalJSON() ([]byte, error) { return nil, errNotJSON }

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
	shared  bool                                // has memory that the caller keeps hold of
	clone   func(v reflect.Value) reflect.Value // set if shared
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
			b, why := appendValue(b, v.Interface().(converted), false)
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
	plainBytes := t.Elem().Kind() == reflect.Uint8
	p.encode = func(b []byte, v reflect.Value) []byte {
		if v.IsNil() {
			return append(b, 0)
		}
		b = binary.AppendUvarint(append(b, 1), uint64(v.Len()))
		if plainBytes {
			return appendBounded(b, v.Bytes())
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
	elems := make([]*plan, t.NumField())
	for i := range elems {
		f := t.Field(i)
		if !f.IsExported() && f.Name != "_" {
			p.why = ReasonArgument
		}
		elems[i] = p.part(pl, f.Type, convertNever)
		if p.why != ReasonNone {
			return
		}
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
		return converted{value: copyValue(v.value), err: v.err}
	default:
		if p := planOf(reflect.TypeOf(v)); p.shared {
			return p.clone(reflect.ValueOf(v)).Interface()
		}
	}
	return v
}

// convert puts what they send in the place of a read's arguments that need it. It
// reports false if that cannot be told. The read's own caller calls it: so Value is
// called as often as by pgx, and not any more when the call has returned; nor before
// the server has taken the statement, where pgx describes it first.
func (c *Connector) convert(ctx context.Context, r *read) (ok bool) {
	options := 0
	for options < len(r.args) && isOption(r.args[options].Value) {
		options++
	}
	var oids []uint32 // of the parameters; nil if the way it is executed does not look at them
	if c.describes(r, options) {
		if oids, ok = c.paramOIDs(ctx, r); !ok || len(oids) != len(r.args)-options {
			return false // for pgx to say
		}
	}
	args := slices.Clone(r.args)
	r.args, r.converted = args, true // those that were asked are not asked again, whatever comes of the others
	for i := options; i < len(args); i++ {
		v := args[i].Value
		switch v.(type) {
		case nil, string, int, int64, bool, []byte, time.Time:
			continue
		}
		for planOf(reflect.TypeOf(v)).convert == convertPointer {
			p := reflect.ValueOf(v)
			if p.IsNil() {
				v = nil
				break
			}
			v = p.Elem().Interface()
			if e := p.Elem(); e.Kind() == reflect.Pointer && e.IsNil() {
				return false // pgx may refuse that, or panic
			}
		}
		if v == nil {
			args[i].Value = nil
			continue
		}
		switch planOf(reflect.TypeOf(v)).convert {
		case convertValue:
			asked := convertValuer(v.(driver.Valuer), 0)
			asked.from = args[i].Value
			args[i].Value = asked
		case convertList:
			nested := planOf(reflect.TypeOf(v).Elem()).convert == convertList
			if oids == nil || !arrayOf(oids[i-options], nested) {
				return false
			}
			list, ok := any(nil), false
			if even(reflect.ValueOf(v)) {
				list, ok = convertElems(reflect.ValueOf(v))
			}
			if !ok {
				return false
			}
			args[i].Value = list
		}
	}
	return true
}

// convertValuer asks a Valuer for its value, as pgx does (and database/sql): not where
// it is a nil pointer to a type that has the method itself.
func convertValuer(from driver.Valuer, depth int) converted {
	if v := reflect.ValueOf(from); v.Kind() == reflect.Pointer && v.IsNil() && v.Type().Elem().Implements(valuerType) {
		return converted{from: from}
	}
	c := converted{from: from}
	c.value, c.err = from.Value()
	if again, is := c.value.(driver.Valuer); is && c.err == nil && depth < maxValuers && planOf(reflect.TypeOf(again)).convert == convertValue {
		c.value = convertValuer(again, depth+1)
	}
	return c
}

// maxValuers bounds Valuers that return Valuers; what goes on has no identity.
const maxValuers = 8

// even reports whether the lists in a list of lists are as long as each other, and none
// is nil. Else pgx refuses it, or takes part of it.
func even(v reflect.Value) bool {
	if planOf(v.Type().Elem()).convert != convertList {
		return true
	}
	for i := range v.Len() {
		if e := v.Index(i); e.IsNil() || e.Len() != v.Index(0).Len() || !even(e) {
			return false
		}
	}
	return true
}

// convertElems returns a list of the converted elements, of as many dimensions. It
// reports false if one of them has an error, for pgx to say.
func convertElems(v reflect.Value) (list any, ok bool) {
	switch {
	case v.Kind() == reflect.Slice && v.IsNil():
		return nil, true
	case planOf(v.Type().Elem()).convert == convertValue:
		out := make([]converted, v.Len())
		for i := range out {
			out[i] = convertValuer(v.Index(i).Interface().(driver.Valuer), 0)
			if out[i].err != nil {
				return nil, false
			}
			out[i].from = nil
		}
		return out, true
	case planOf(v.Type().Elem()).convert != convertList:
		return nil, false
	}
	var out reflect.Value
	for i := range v.Len() {
		elem, ok := convertElems(v.Index(i))
		if !ok || elem == nil {
			return nil, false
		}
		if !out.IsValid() {
			out = reflect.MakeSlice(reflect.SliceOf(reflect.TypeOf(elem)), 0, v.Len())
		}
		if out.Type().Elem() != reflect.TypeOf(elem) {
			return nil, false
		}
		out = reflect.Append(out, reflect.ValueOf(elem))
	}
	if !out.IsValid() {
		return []converted{}, true
	}
	return out.Interface(), true
}

// defaultTypes is pgx's type map as it is made, to look types up in, and for nothing
// else: what it encodes it would remember.
var defaultTypes = pgtype.NewMap()

// arrayOf reports whether a parameter is an array that pgx knows: whose elements it
// encodes one by one. Where nested is set they are in lists of lists: those would be
// elements themselves to a type that takes anything.
func arrayOf(oid uint32, nested bool) bool {
	t, ok := defaultTypes.TypeForOID(oid)
	if !ok {
		return false
	}
	array, ok := t.Codec.(*pgtype.ArrayCodec)
	if !ok {
		return false
	}
	switch array.ElementType.Codec.(type) {
	case *pgtype.JSONCodec, *pgtype.JSONBCodec, *pgtype.XMLCodec:
		return !nested
	}
	return true
}

// describes reports whether pgx describes a read's statement before it encodes the
// arguments, of which some are options.
func (c *Connector) describes(r *read, options int) bool {
	if r.via != viaQuery {
		return true
	}
	mode := c.source.config.DefaultQueryExecMode
	for _, a := range r.args[:options] {
		if m, is := a.Value.(pgx.QueryExecMode); is {
			mode = m
		}
	}
	switch mode {
	case pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec:
		return true
	}
	return false
}

// paramOIDs returns the types of the parameters of a read's statement. It asks the
// server once for each text, and reports false if that does not take it.
func (c *Connector) paramOIDs(ctx context.Context, r *read) (oids []uint32, ok bool) {
	if oids := r.v.params.Load(); oids != nil {
		return *oids, true
	}
	if st := c.pipe.serves(r); st != nil {
		if oids, ok = st.ParamOIDs(); ok {
			return oids, true
		}
		if c.pipe.Describe(ctx, st) == nil {
			return st.ParamOIDs()
		}
		return nil, false
	}
	return c.describeOnce(ctx, r.v, r.query)
}

// describeOnce is paramOIDs without the pipeline. Callers at the same moment ask once.
func (c *Connector) describeOnce(ctx context.Context, v *verdict, query string) (oids []uint32, ok bool) {
	answer := c.describing.DoChan(partitionOf(ctx, c.cfg.PartitionKey)+"\x00"+query, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), describeTimeout)
		defer cancel()
		return c.askParams(ctx, query)
	})
	select {
	case a := <-answer:
		if a.Err != nil {
			return nil, false
		}
		c.learnParams(v, a.Val.([]uint32))
		return a.Val.([]uint32), true
	case <-ctx.Done():
		return nil, false
	}
}

// describeTimeout bounds how long the server may take to describe a statement for
// callers who may all have gone.
const describeTimeout = 30 * time.Second

// askParams asks a flight session. It runs in a goroutine where nobody could recover.
func (c *Connector) askParams(ctx context.Context, query string) (oids []uint32, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("flightpg: panic while a statement was described: %v", p)
		}
	}()
	l, err := c.flights.borrow(ctx)
	if err != nil {
		return nil, err
	}
	l.bad = true // until it returns
	defer l.release()
	_, oids, err = l.numInput(ctx, c.viaStmt == viaStmt && l.guard != GuardTransaction, query)
	l.bad = ctx.Err() != nil
	return oids, err
}

// notEncoded reports whether err is pgx's, of an argument that it cannot encode. It
// prints the argument, so its caller should have it from a query of its own.
func notEncoded(err error) bool {
	text := err.Error()
	return strings.HasPrefix(text, "failed to encode args[") || strings.HasPrefix(text, "unable to encode ")
}

// typeStates say whether a connector's connections encode as pgx does by itself.
// Where hooks register codecs and wrappers for types of their own, a Valuer may go to
// the wire in another way than by Value.
const (
	typesUnknown uint32 = iota
	typesPlain
	typesForeign // for good
)

// learnTypes looks at the type map of a connection that was opened.
func (c *Connector) learnTypes(m *pgtype.Map) {
	if c.types.Load() == typesForeign {
		return
	}
	if plainTypes(m) {
		c.types.CompareAndSwap(typesUnknown, typesPlain)
	} else {
		c.types.Store(typesForeign)
	}
}

// plainTypes reports whether all codecs of a type map are pgx's own, for its own types
// or for others (enums, composites, domains), and the rest is as pgx has made it. What
// has been registered a map does not tell; TestPlainTypes notices if it keeps it in
// another way.
func plainTypes(m *pgtype.Map) bool {
	own := pgtype.NewMap()
	if len(m.TryWrapEncodePlanFuncs) != len(own.TryWrapEncodePlanFuncs) {
		return false
	}
	for i, f := range m.TryWrapEncodePlanFuncs {
		if !sameFunc(f, own.TryWrapEncodePlanFuncs[i]) {
			return false
		}
	}
	v := reflect.ValueOf(m).Elem()
	goTypes, types := v.FieldByName("reflectTypeToName"), v.FieldByName("oidToType")
	if goTypes.Kind() != reflect.Map || goTypes.Len() > 0 || types.Kind() != reflect.Map || types.Type().Key().Kind() != reflect.Uint32 {
		return false
	}
	for it := types.MapRange(); it.Next(); {
		t, ok := m.TypeForOID(uint32(it.Key().Uint()))
		if !ok {
			return false
		}
		codec := reflect.TypeOf(t.Codec)
		for codec.Kind() == reflect.Pointer {
			codec = codec.Elem()
		}
		if codec.PkgPath() != pgtypePath {
			return false
		}
	}
	return true
}
