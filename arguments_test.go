package flightpg

import (
	"context"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// byPointer is a Valuer by its pointer alone.
type byPointer struct{ N int }

func (v *byPointer) Value() (driver.Value, error) {
	if v == nil {
		return "nil", nil
	}
	return int64(v.N), nil
}

// TestConvert checks what Value is asked for, and how often: as by pgx.
func TestConvert(t *testing.T) {
	calls := 0
	for _, tc := range []struct {
		name  string
		arg   any
		want  any // converted.value, or values
		calls int
	}{
		{"Value", counted{3, &calls}, int64(3), 1},
		{"Pointer", &counted{3, &calls}, int64(3), 1},
		{"PointerToPointer", new(&counted{3, &calls}), int64(3), 1},
		{"NilPointer", (*counted)(nil), nil, 0},
		{"NilPointerWithMethod", (*byPointer)(nil), "nil", 0},
		{"NilSlice", sliced(nil), "", 0},
		{"Nested", valuing{valuing{counted{5, &calls}}}, int64(5), 1},
		{"List", []counted{{1, &calls}, {2, &calls}}, []any{int64(1), int64(2)}, 2},
		{"ListOfPointers", []*counted{{1, &calls}, nil}, []any{int64(1), nil}, 1},
		{"Array", [2]counted{{1, &calls}, {2, &calls}}, []any{int64(1), int64(2)}, 2},
	} {
		calls = 0
		_, why, sent := keyAndArgs(tc.arg)
		if why != ReasonNone {
			t.Errorf("%s: %v", tc.name, why)
			continue
		}
		var got any
		switch v := sent[0].Value.(type) {
		case converted:
			for {
				again, is := v.value.(converted)
				if !is {
					break
				}
				v = again
			}
			got = v.value
		case []converted:
			values := make([]any, len(v))
			for i := range v {
				values[i] = v[i].value
			}
			got = values
		default:
			t.Errorf("%s: %T is sent", tc.name, v)
			continue
		}
		if !reflect.DeepEqual(got, tc.want) || calls != tc.calls {
			t.Errorf("%s: %#v after %d calls of Value; want %#v after %d", tc.name, got, calls, tc.want, tc.calls)
		}
	}
}

// TestConvert_LikePGX checks that a converted argument goes to the wire as its original
// does, whatever type the parameter has, and that its errors read the same.
func TestConvert_LikePGX(t *testing.T) {
	m := pgtype.NewMap()
	for _, v := range []driver.Valuer{
		valuer{7},
		&valuer{7},
		sliced{"a", "b"},
		failing{},
		valuing{nil},
		valuing{"2024-03-01"},
		valuing{"11111111-1111-1111-1111-111111111111"},
		valuing{[]byte("x")},
		valuing{true},
		valuing{1.5},
		valuing{valuing{int64(3)}},
		valuing{`{"a": 1}`},
		(*valuer)(nil), (*byPointer)(nil),
	} {
		for oid := range uint32(5000) {
			if _, known := m.TypeForOID(oid); !known && oid > 0 {
				continue
			}
			for _, format := range []int16{pgtype.TextFormatCode, pgtype.BinaryFormatCode} {
				want, wantErr := m.Encode(oid, format, v, nil)
				got, err := m.Encode(oid, format, convertValuer(v, 0), nil)
				if !slices.Equal(got, want) || (got == nil) != (want == nil) || fmt.Sprint(err) != fmt.Sprint(wantErr) {
					t.Errorf("%#v as %d, format %d: %q, %v; want %q, %v", v, oid, format, got, err, want, wantErr)
				}
			}
		}
	}
	if _, err := m.Encode(pgtype.Int4OID, 1, convertValuer(failing{}, 0), nil); !errors.Is(err, errFailing) {
		t.Errorf("error %v; want the Valuer's own", err)
	}
	if _, err := json.Marshal([]converted{{value: 1}}); err == nil {
		t.Error("a list of converted arguments becomes JSON")
	}
}

// TestFactsOf checks what a type map tells of how Valuers are encoded.
func TestFactsOf(t *testing.T) {
	if factsOf(pgtype.NewMap()) != plainTypes {
		t.Error("pgx's own type map is not plain")
	}
	text, _ := defaultTypes.TypeForOID(pgtype.TextOID)
	foreign := &pgtype.Type{Name: "x", OID: 99999, Codec: foreignCodec{}}
	for _, tc := range []struct {
		name   string
		change func(*pgtype.Map)
		asks   map[uint32]bool // parameter types
	}{
		{"Enum", func(m *pgtype.Map) {
			m.RegisterType(&pgtype.Type{Name: "mood", OID: 99999, Codec: &pgtype.EnumCodec{}})
		}, map[uint32]bool{99999: true, pgtype.TextOID: true, 0: true}},
		{"Codec", func(m *pgtype.Map) { m.RegisterType(foreign) }, map[uint32]bool{99999: false, pgtype.TextOID: true, 0: true}},
		{"Replaced", func(m *pgtype.Map) {
			m.RegisterType(&pgtype.Type{Name: "text", OID: pgtype.TextOID, Codec: foreignCodec{}})
		}, map[uint32]bool{pgtype.TextOID: false, pgtype.Int4OID: true}},
		{"Array", func(m *pgtype.Map) {
			m.RegisterType(&pgtype.Type{Name: "xs", OID: 99998, Codec: &pgtype.ArrayCodec{ElementType: foreign}})
		}, map[uint32]bool{99998: false}},
		{"Range", func(m *pgtype.Map) {
			m.RegisterType(&pgtype.Type{Name: "xr", OID: 99998, Codec: &pgtype.RangeCodec{ElementType: foreign}})
		}, map[uint32]bool{99998: false}},
		{"Composite", func(m *pgtype.Map) {
			m.RegisterType(&pgtype.Type{Name: "xc", OID: 99998, Codec: &pgtype.CompositeCodec{Fields: []pgtype.CompositeCodecField{{Name: "a", Type: text}, {Name: "b", Type: foreign}}}})
		}, map[uint32]bool{99998: false}},
		{"WrapperOfOthers", func(m *pgtype.Map) { m.TryWrapEncodePlanFuncs = append(m.TryWrapEncodePlanFuncs, wrapNothing) }, map[uint32]bool{pgtype.TextOID: true, 0: true}},
		{"Wrapper", func(m *pgtype.Map) {
			m.TryWrapEncodePlanFuncs = append([]pgtype.TryWrapEncodePlanFunc{wrapValuer}, m.TryWrapEncodePlanFuncs...)
		}, map[uint32]bool{pgtype.TextOID: false, 0: false}},
		{"DefaultType", func(m *pgtype.Map) { m.RegisterDefaultPgType(valuer{}, "int4") }, map[uint32]bool{pgtype.TextOID: true, 0: false, 99999: false}},
	} {
		m := pgtype.NewMap()
		tc.change(m)
		facts := factsOf(m)
		if facts == plainTypes {
			t.Errorf("%s: the type map counts as plain", tc.name)
		}
		if facts.and(factsOf(m)) != facts || facts.and(plainTypes) != facts {
			t.Errorf("%s: facts that say nothing new replace those that there are", tc.name)
		}
		for _, f := range []*typeFacts{facts, facts.and(plainTypes), plainTypes.and(facts)} {
			for oid, want := range tc.asks {
				if got := f.asksValue(oid, valuer{}); got != want {
					t.Errorf("%s: asksValue(%d) = %v; want %v", tc.name, oid, got, want)
				}
			}
		}
	}
	if (*typeFacts)(nil).asksValue(pgtype.TextOID, valuer{}) || (&typeFacts{opaque: true}).asksValue(pgtype.TextOID, valuer{}) {
		t.Error("what is not known is guessed")
	}
}

func wrapNothing(any) (pgtype.WrappedEncodePlanNextSetter, any, bool) { return nil, nil, false }

func wrapValuer(v any) (pgtype.WrappedEncodePlanNextSetter, any, bool) {
	_, is := v.(valuer)
	return nil, v, is
}

type foreignCodec struct{ pgtype.TextCodec }

// id is a Valuer that holds nothing but bytes.
type id [4]byte

func (v id) Value() (driver.Value, error) { return v[:], nil }

// TestConvert_Foreign checks that Valuers bypass, unless they are nothing but bytes, where
// connections may encode them in another way than by Value.
func TestConvert_Foreign(t *testing.T) {
	m := pgtype.NewMap()
	m.RegisterType(&pgtype.Type{Name: "int8", OID: pgtype.Int8OID, Codec: foreignCodec{}})
	c := &Connector{source: &source{config: defaultConfig()}}
	for name, tc := range map[string]struct {
		facts *typeFacts
		asked bool
	}{"unknown": {nil, false}, "plain": {plainTypes, true}, "foreign": {factsOf(m), false}} {
		c.types.Store(tc.facts)
		calls := 0
		key := func(arg any) (*read, Reason) {
			r := &read{args: namedValues([]any{arg}), v: new(verdict)}
			r.v.params.Store(&[]uint32{pgtype.Int8OID})
			_, why := c.convertedKey(context.Background(), nil, r, keying{})
			return r, why
		}
		if _, why := key(counted{1, &calls}); (why == ReasonNone) != tc.asked || (calls == 1) != tc.asked {
			t.Errorf("%s: %v, %d calls of Value", name, why, calls)
		}
		for _, arg := range []any{id{1}, &id{1}} {
			r, why := key(arg)
			if _, is := r.args[0].Value.(converted); why != ReasonNone || is != tc.asked {
				t.Errorf("%s: %T: %v, %T is sent", name, arg, why, r.args[0].Value)
			}
		}
	}
	// What a parameter that is no array makes of a list nobody knows.
	c.types.Store(plainTypes)
	r := &read{args: namedValues([]any{[]valuer{{1}}}), v: new(verdict)}
	r.v.params.Store(&[]uint32{pgtype.JSONBOID})
	if _, why := c.convertedKey(context.Background(), nil, r, keying{}); why != ReasonArgument {
		t.Errorf("a list for a jsonb parameter: %v", why)
	}
	for _, oid := range []uint32{pgtype.JSONArrayOID, pgtype.JSONBArrayOID, pgtype.XMLArrayOID} {
		r = &read{args: namedValues([]any{[][]valuer{{{1}}}}), v: new(verdict)}
		r.v.params.Store(&[]uint32{oid})
		if _, why := c.convertedKey(context.Background(), nil, r, keying{}); why != ReasonArgument {
			t.Errorf("a list of lists for an array of type %d: %v", oid, why)
		}
	}
	r = &read{args: namedValues([]any{pgx.QueryExecModeExec, []valuer{{1}}}), v: new(verdict)}
	if _, why := c.convertedKey(context.Background(), nil, r, keying{}); why != ReasonArgument {
		t.Errorf("a list in exec mode: %v", why)
	}
}
