package flightpg

import (
	"bytes"
	"context"
	"database/sql/driver"
	"encoding/binary"
	"maps"
	"math"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// A flight key says what makes two reads identical: the SQL text as sent, the
// way it is executed, the partition, and every argument as its exact Go type
// and value. pgx chooses the wire form from the Go type ($1::text takes "1" but
// not 1), so types are never merged.
//
// The encoding is canonical and prefix-free (every part is tagged and has a
// fixed or leading length), and flights are found by comparing it in full, so
// no choice of arguments makes two different reads meet.
//
// What can be encoded is what can be copied whole: scalars, strings, []byte,
// time.Time, netip addresses, arrays and structs of such, slices and pointers.
// Anything else (maps, interfaces, channels, functions, structs with memory
// behind them) has no identity that outlives the call, and its read bypasses.

// keyBuffers hold *[]byte to encode keys in.
var keyBuffers = sync.Pool{New: func() any { return new([]byte) }}

// maxKeyArgs bounds the encoded arguments, in bytes. Larger ones bypass: the
// table would keep a copy for as long as the flight lasts.
const maxKeyArgs = 1 << 20

// Tags of the types that have an encoding of their own. Every other type gets
// tagPlan and the number of its plan.
const (
	tagNil byte = iota
	tagFalse
	tagTrue
	tagInt
	tagInt8
	tagInt16
	tagInt32
	tagInt64
	tagUint
	tagUint8
	tagUint16
	tagUint32
	tagUint64
	tagFloat32
	tagFloat64
	tagString
	tagBytesNil
	tagBytes
	tagTime
	tagExecMode
	tagFormats
	tagFormatsByOID
	tagPlan
)

// Ways of executing the same text that may give different results: pgx's exec
// and simple modes describe a prepared statement but not a plain query.
const (
	viaQuery byte = iota
	viaStmt
	viaPrepare // the flight prepares the text and yields its shape
)

// appendKey appends everything of the flight key but the SQL text. It returns
// a Reason other than ReasonNone if an argument cannot be part of a key.
func appendKey(b []byte, via byte, partition string, args []driver.NamedValue) ([]byte, Reason) {
	b = append(b, via)
	b = appendString(b, partition)
	b = binary.AppendUvarint(b, uint64(len(args)))
	for i := range args {
		b = appendString(b, args[i].Name)
		var why Reason
		if b, why = appendValue(b, args[i].Value); why != ReasonNone {
			return b, why
		}
		if len(b) > maxKeyArgs {
			break
		}
	}
	if len(b) > maxKeyArgs { // it may be cut short
		return b, ReasonArgument
	}
	return b, ReasonNone
}

func appendString(b []byte, s string) []byte {
	return appendBounded(binary.AppendUvarint(b, uint64(len(s))), s)
}

// appendBounded appends s, but no more than it takes for a key to be too long: a
// copy of all of a huge argument would be for nothing.
func appendBounded[T string | []byte](b []byte, s T) []byte {
	return append(b, s[:min(len(s), maxKeyArgs+1)]...)
}

func appendValue(b []byte, v any) ([]byte, Reason) {
	switch v := v.(type) {
	case nil:
		return append(b, tagNil), ReasonNone
	case bool:
		if v {
			return append(b, tagTrue), ReasonNone
		}
		return append(b, tagFalse), ReasonNone
	case int:
		return binary.BigEndian.AppendUint64(append(b, tagInt), uint64(v)), ReasonNone
	case int8:
		return append(b, tagInt8, byte(v)), ReasonNone
	case int16:
		return binary.BigEndian.AppendUint16(append(b, tagInt16), uint16(v)), ReasonNone
	case int32:
		return binary.BigEndian.AppendUint32(append(b, tagInt32), uint32(v)), ReasonNone
	case int64:
		return binary.BigEndian.AppendUint64(append(b, tagInt64), uint64(v)), ReasonNone
	case uint:
		return binary.BigEndian.AppendUint64(append(b, tagUint), uint64(v)), ReasonNone
	case uint8:
		return append(b, tagUint8, v), ReasonNone
	case uint16:
		return binary.BigEndian.AppendUint16(append(b, tagUint16), v), ReasonNone
	case uint32:
		return binary.BigEndian.AppendUint32(append(b, tagUint32), v), ReasonNone
	case uint64:
		return binary.BigEndian.AppendUint64(append(b, tagUint64), v), ReasonNone
	case float32:
		return binary.BigEndian.AppendUint32(append(b, tagFloat32), math.Float32bits(v)), ReasonNone
	case float64:
		return binary.BigEndian.AppendUint64(append(b, tagFloat64), math.Float64bits(v)), ReasonNone
	case string:
		return appendString(append(b, tagString), v), ReasonNone
	case []byte:
		if v == nil { // NULL to pgx; an empty slice is not
			return append(b, tagBytesNil), ReasonNone
		}
		b = binary.AppendUvarint(append(b, tagBytes), uint64(len(v)))
		return appendBounded(b, v), ReasonNone
	case time.Time:
		return appendTime(append(b, tagTime), v), ReasonNone

	case pgx.QueryExecMode:
		return binary.BigEndian.AppendUint32(append(b, tagExecMode), uint32(v)), ReasonNone
	case pgx.QueryResultFormats:
		b = binary.AppendUvarint(append(b, tagFormats), uint64(len(v)))
		for _, format := range v {
			b = binary.BigEndian.AppendUint16(b, uint16(format))
		}
		return b, ReasonNone
	case pgx.QueryResultFormatsByOID:
		b = binary.AppendUvarint(append(b, tagFormatsByOID), uint64(len(v)))
		for _, oid := range slices.Sorted(maps.Keys(v)) {
			b = binary.BigEndian.AppendUint32(b, oid)
			b = binary.BigEndian.AppendUint16(b, uint16(v[oid]))
		}
		return b, ReasonNone
	}
	p := planOf(reflect.TypeOf(v))
	if p.why != ReasonNone {
		return b, p.why
	}
	b = binary.AppendUvarint(append(b, tagPlan), p.id)
	return p.encode(b, reflect.ValueOf(v)), ReasonNone
}

// appendTime encodes what an encoder can see of a time: the instant and the
// zone offset (the wall clock follows from the two). The same instant in two
// zones gives different ::timestamp values; the monotonic reading is not sent.
func appendTime(b []byte, t time.Time) []byte {
	_, offset := t.Zone()
	b = binary.BigEndian.AppendUint64(b, uint64(t.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(t.Nanosecond()))
	return binary.BigEndian.AppendUint32(b, uint32(int32(offset)))
}

// plan is how values of one type are encoded and copied.
type plan struct {
	id     uint64 // stands for the type in keys; unique in the process
	why    Reason // not ReasonNone: values of the type cannot be part of a key
	encode func(b []byte, v reflect.Value) []byte
	shared bool                                // has memory that the caller keeps hold of
	clone  func(v reflect.Value) reflect.Value // set if shared
}

var (
	plans  sync.Map // reflect.Type → *plan; bounded by the program's types
	planID atomic.Uint64

	timeType     = reflect.TypeFor[time.Time]()
	addrType     = reflect.TypeFor[netip.Addr]()
	prefixType   = reflect.TypeFor[netip.Prefix]()
	rewriterType = reflect.TypeFor[pgx.QueryRewriter]()
)

// planOf returns the plan of a type, made at its first use.
func planOf(t reflect.Type) *plan {
	if p, ok := plans.Load(t); ok {
		return p.(*plan)
	}
	p, loaded := plans.LoadOrStore(t, newPlan(t, 0))
	_ = loaded // whoever was first: its id is the type's for good
	return p.(*plan)
}

// maxPlanDepth bounds the nesting of types; []T with T []T never ends.
const maxPlanDepth = 8

func newPlan(t reflect.Type, depth int) *plan {
	switch {
	case t.Implements(rewriterType),
		t == reflect.TypeFor[pgx.QueryExecMode](),
		t == reflect.TypeFor[pgx.QueryResultFormats](),
		t == reflect.TypeFor[pgx.QueryResultFormatsByOID]():
		return &plan{why: ReasonPgxOption}
	case depth > maxPlanDepth:
		return &plan{why: ReasonArgument}
	}
	p := &plan{id: planID.Add(1)}
	p.fill(t, depth)
	return p
}

func (p *plan) fill(t reflect.Type, depth int) {
	switch t {
	case timeType:
		// Inside another type all that can be seen counts, the names of the zone
		// and the monotonic reading: that type may be a Valuer that prints it.
		p.encode = func(b []byte, v reflect.Value) []byte {
			t := v.Interface().(time.Time)
			return appendString(appendString(appendTime(b, t), t.Location().String()), t.String())
		}
		return
	case addrType:
		p.encode = func(b []byte, v reflect.Value) []byte { return appendAddr(b, v.Interface().(netip.Addr)) }
		return
	case prefixType:
		p.encode = func(b []byte, v reflect.Value) []byte {
			pf := v.Interface().(netip.Prefix)
			return binary.BigEndian.AppendUint64(appendAddr(b, pf.Addr()), uint64(int64(pf.Bits())))
		}
		return
	}
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
		p.fillArray(t, depth)
	case reflect.Slice:
		p.fillSlice(t, depth)
	case reflect.Pointer:
		p.fillPointer(t, depth)
	case reflect.Struct:
		p.fillStruct(t, depth)
	default:
		p.why = ReasonArgument
	}
}

func appendAddr(b []byte, a netip.Addr) []byte {
	raw, _ := a.MarshalBinary() // never fails: empty, 4 or 16 bytes, then the zone
	return appendString(b, string(raw))
}

func (p *plan) fillArray(t reflect.Type, depth int) {
	elem := newPlan(t.Elem(), depth+1)
	if p.why = elem.why; p.why != ReasonNone {
		return
	}
	if t.Elem().Size() == 0 { // there may be 1<<60 of them
		p.why = ReasonArgument
		return
	}
	if elem.shared { // an array of slices: nobody has one
		p.why = ReasonArgument
		return
	}
	p.encode = func(b []byte, v reflect.Value) []byte {
		for i := 0; i < v.Len() && len(b) <= maxKeyArgs; i++ { // what is longer is no key
			b = elem.encode(b, v.Index(i))
		}
		return b
	}
}

func (p *plan) fillSlice(t reflect.Type, depth int) {
	elem := newPlan(t.Elem(), depth+1)
	if p.why = elem.why; p.why != ReasonNone {
		return
	}
	if t.Elem().Size() == 0 {
		p.why = ReasonArgument
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
func (p *plan) fillPointer(t reflect.Type, depth int) {
	elem := newPlan(t.Elem(), depth+1)
	if p.why = elem.why; p.why != ReasonNone {
		return
	}
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
		target := v.Elem()
		if elem.shared {
			target = elem.clone(target)
		}
		c := reflect.New(t.Elem())
		c.Elem().Set(target)
		return c.Convert(t)
	}
}

func (p *plan) fillStruct(t reflect.Type, depth int) {
	elems := make([]*plan, t.NumField())
	for i := range elems {
		f := t.Field(i)
		elems[i] = newPlan(f.Type, depth+1)
		special := f.Type == timeType || f.Type == addrType || f.Type == prefixType
		switch {
		case elems[i].why != ReasonNone:
			p.why = elems[i].why
		case elems[i].shared, // a struct with slices cannot be copied from outside
			special && !f.IsExported(), // nor read
			nested(f.Type) && !f.IsExported():
			p.why = ReasonArgument
		}
		if p.why != ReasonNone {
			return
		}
	}
	p.encode = func(b []byte, v reflect.Value) []byte {
		for i, e := range elems {
			b = e.encode(b, v.Field(i))
		}
		return b
	}
}

// nested reports whether values of t may hold a time or an address: types that
// reflect lets nobody read inside an unexported field.
func nested(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Struct:
		if t == timeType || t == addrType || t == prefixType {
			return true
		}
		for i := range t.NumField() {
			if nested(t.Field(i).Type) {
				return true
			}
		}
	case reflect.Array, reflect.Slice:
		return nested(t.Elem())
	}
	return false
}

// isOption reports whether an argument is one of pgx's options, which come before
// the arguments of the query.
func isOption(v any) bool {
	switch v.(type) {
	case pgx.QueryExecMode, pgx.QueryResultFormats, pgx.QueryResultFormatsByOID, pgx.QueryRewriter:
		return true
	}
	return false
}

// positional returns the query and the arguments that pgx makes of named ones
// (pgx.NamedArgs, StrictNamedArgs), which come last and alone. It leaves anything
// else as it is, and what is wrong for pgx to say.
func positional(query string, args []driver.NamedValue) (string, []driver.NamedValue) {
	last := len(args) - 1
	if last < 0 {
		return query, args
	}
	var rewriter pgx.QueryRewriter
	switch v := args[last].Value.(type) {
	case pgx.NamedArgs:
		rewriter = v
	case pgx.StrictNamedArgs:
		rewriter = v
	default:
		return query, args
	}
	text, values, err := rewriter.RewriteQuery(context.Background(), nil, query, nil) // these two need no connection
	if err != nil {
		return query, args
	}
	out := make([]driver.NamedValue, 0, last+len(values))
	for _, option := range args[:last] {
		if !isOption(option.Value) {
			return query, args
		}
		out = append(out, option)
	}
	for _, v := range values {
		if isOption(v) { // it would be one where it goes now
			return query, args
		}
		out = append(out, driver.NamedValue{Ordinal: len(out) + 1, Value: v})
	}
	return text, out
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
		switch v := c[i].Value.(type) {
		case nil, bool, int, int8, int16, int32, int64, uint, uint8, uint16, uint32, uint64,
			float32, float64, string, time.Time:
		case []byte:
			c[i].Value = bytes.Clone(v)
		case pgx.QueryExecMode:
		case pgx.QueryResultFormats:
			c[i].Value = slices.Clone(v)
		case pgx.QueryResultFormatsByOID:
			c[i].Value = maps.Clone(v)
		default:
			if p := planOf(reflect.TypeOf(v)); p.shared {
				c[i].Value = p.clone(reflect.ValueOf(v)).Interface()
			}
		}
	}
	return c
}
