package flightpg

import (
	"database/sql/driver"
	"maps"
	"reflect"
	"slices"

	"github.com/jackc/pgx/v5/pgtype"

	"github.com/flightpg/flightpg/internal/pipeline"
)

// typeFacts are what is known of how a connector's connections encode Valuers. pgx asks
// Value where no codec knows the type and no wrapper takes it; hooks can register both.
// Facts are never changed, only replaced.
type typeFacts struct {
	opaque  bool                           // it cannot be told
	goTypes bool                           // Go types have types of their own where a parameter's is not known
	wraps   []pgtype.TryWrapEncodePlanFunc // beside pgx's own
	foreign map[uint32]bool                // types registered with a codec that is not pgx's: true; with one that is: false
}

// plainTypes are the facts of connections on which nobody has registered anything.
var plainTypes = &typeFacts{}

// factsOf looks at a type map. What has been registered it does not tell;
// TestFactsOf notices if it keeps it in another way.
func factsOf(m *pgtype.Map) *typeFacts {
	own := defaultTypes.TryWrapEncodePlanFuncs
	f := &typeFacts{}
	for _, wrap := range m.TryWrapEncodePlanFuncs {
		if !slices.ContainsFunc(own, func(o pgtype.TryWrapEncodePlanFunc) bool { return sameFunc(wrap, o) }) {
			f.wraps = append(f.wraps, wrap)
		}
	}
	v := reflect.ValueOf(m).Elem()
	goTypes, types := v.FieldByName("reflectTypeToName"), v.FieldByName("oidToType")
	if goTypes.Kind() != reflect.Map || types.Kind() != reflect.Map || types.Type().Key().Kind() != reflect.Uint32 {
		return &typeFacts{opaque: true}
	}
	f.goTypes = goTypes.Len() > 0
	for it := types.MapRange(); it.Next(); {
		oid := uint32(it.Key().Uint())
		t, ok := m.TypeForOID(oid)
		if f.foreign == nil {
			f.foreign = make(map[uint32]bool)
		}
		f.foreign[oid] = !ok || !ownCodec(t.Codec)
	}
	if f.wraps == nil && f.foreign == nil && !f.goTypes {
		return plainTypes
	}
	return f
}

// odditiesOf returns what a type map has otherwise than pgx, as far as it matters to what
// arguments are encoded as; nil: nothing.
func odditiesOf(m *pgtype.Map) *pipeline.Oddities {
	f := factsOf(m)
	if f == plainTypes {
		return nil
	}
	o := &pipeline.Oddities{All: f.opaque || f.wraps != nil, Types: make(map[uint32]struct{}, len(f.foreign))}
	for oid, foreign := range f.foreign {
		if foreign || !encodesAsUsual(m, oid) {
			o.Types[oid] = struct{}{}
		}
	}
	if !o.All && len(o.Types) == 0 {
		return nil
	}
	return o
}

// encodesAsUsual reports whether a registered codec of pgx's encodes what pgx's own does
// for that type.
func encodesAsUsual(m *pgtype.Map, oid uint32) bool {
	have, ok := m.TypeForOID(oid)
	if !ok {
		return false
	}
	usual, ok := defaultTypes.TypeForOID(oid)
	if !ok {
		return false
	}
	switch have.Codec.(type) {
	case *pgtype.TimestampCodec, *pgtype.TimestamptzCodec: // what they can be told is about scanning
		return reflect.TypeOf(have.Codec) == reflect.TypeOf(usual.Codec)
	}
	t := reflect.TypeOf(have.Codec)
	return t == reflect.TypeOf(usual.Codec) && t.Comparable() && t.Kind() != reflect.Pointer && have.Codec == usual.Codec
}

// ownCodec reports whether a codec, and those of its parts, are pgx's.
func ownCodec(c pgtype.Codec) bool {
	t := reflect.TypeOf(c)
	if t == nil {
		return false
	}
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if t.PkgPath() != pgtypePath {
		return false
	}
	own := func(t *pgtype.Type) bool { return t == nil || ownCodec(t.Codec) }
	switch c := c.(type) {
	case *pgtype.ArrayCodec:
		return own(c.ElementType)
	case *pgtype.RangeCodec:
		return own(c.ElementType)
	case *pgtype.MultirangeCodec:
		return own(c.ElementType)
	case *pgtype.CompositeCodec:
		for _, f := range c.Fields {
			if !own(f.Type) {
				return false
			}
		}
	}
	return true
}

// and returns what holds for connections of both kinds. Hooks need not register the
// same on all.
func (f *typeFacts) and(g *typeFacts) *typeFacts {
	if f == nil || f == g {
		return g
	}
	all := &typeFacts{opaque: f.opaque || g.opaque, goTypes: f.goTypes || g.goTypes, wraps: slices.Clone(f.wraps), foreign: make(map[uint32]bool)}
	for _, wrap := range g.wraps {
		if !slices.ContainsFunc(f.wraps, func(w pgtype.TryWrapEncodePlanFunc) bool { return sameFunc(w, wrap) }) {
			all.wraps = append(all.wraps, wrap)
		}
	}
	for _, m := range []map[uint32]bool{f.foreign, g.foreign} {
		for oid, foreign := range m {
			all.foreign[oid] = all.foreign[oid] || foreign
		}
	}
	if all.opaque == f.opaque && all.goTypes == f.goTypes && len(all.wraps) == len(f.wraps) && maps.Equal(all.foreign, f.foreign) {
		return f // nothing new
	}
	return all
}

// learnTypes looks at the type map of a connection that was opened.
func (c *Connector) learnTypes(m *pgtype.Map) {
	for {
		have := c.types.Load()
		facts := have.and(factsOf(m))
		if facts == have || c.types.CompareAndSwap(have, facts) {
			return
		}
	}
}

// asksValue reports whether pgx asks a Valuer for its value, for a parameter of that
// type; 0: the way it is executed does not look at types.
func (f *typeFacts) asksValue(oid uint32, v driver.Valuer) bool {
	switch {
	case f == nil, f.opaque:
		return false
	case f == plainTypes:
		return true
	}
	if foreign, registered := f.foreign[oid]; foreign || !registered && f.goTypes && !known(oid) {
		return false
	}
	for _, wrap := range f.wraps {
		if _, _, ok := wrap(v); ok {
			return false
		}
	}
	return true
}

// asksElems is asksValue for a list of Valuers, of which there is one.
func (f *typeFacts) asksElems(oid uint32, list any, elem driver.Valuer) bool {
	if f == plainTypes {
		return true
	}
	if f == nil || f.opaque || f.foreign[oid] {
		return false
	}
	for _, wrap := range f.wraps {
		if _, _, ok := wrap(list); ok {
			return false
		}
	}
	return f.asksValue(elementOf(oid), elem)
}

// defaultTypes is pgx's type map as it is made, to look types up in, and for nothing
// else: what it encodes it would remember.
var defaultTypes = pgtype.NewMap()

// known reports whether pgx knows a type by itself.
func known(oid uint32) bool {
	_, ok := defaultTypes.TypeForOID(oid)
	return ok
}

// elementOf returns the type of an array's elements, 0 if pgx does not know it.
func elementOf(oid uint32) uint32 {
	if t, ok := defaultTypes.TypeForOID(oid); ok {
		if array, ok := t.Codec.(*pgtype.ArrayCodec); ok {
			return array.ElementType.OID
		}
	}
	return 0
}
