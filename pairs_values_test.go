package flightpg

import (
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	_ "time/tzdata" // the zones of TestArguments, on every machine

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgtype/zeronull"
)

// The values of TestArguments: of every type that pgx takes, and of types that it does
// not, made by reflection. The same seed makes the same value, in other memory.

// Types as applications have them.
type (
	argInt     int
	argInt8    int8
	argInt32   int32
	argInt64   int64
	argUint32  uint32
	argFloat   float64
	argFloat32 float32
	argBool    bool
	argString  string
	argBytes   []byte
	argStrings []string
	argInts    []int
	argUUID    [16]byte
	argShout   string // String
	argGrade   int    // String, for several values the same
	argLabel   string // MarshalText
	argDoc     struct{ Name string }
	argPair    struct{ N, Hidden int32 } // MarshalJSON
	argRecord  struct {
		N    int32
		Mood string
	}
	argWide struct {
		S   string
		B   []byte
		T   time.Time
		P   *int32
		M   map[string]int
		L   []string
		In  argRecord
		F   float64
		Off int `json:"-"`
	}
	argLocked struct {
		sync.Mutex
		N int
	}
	argHidden  struct{ n int }
	argNode    struct{ Next *argNode }
	argAnyOf   struct{ V any }
	argMyTime  time.Time
	argEmbeds  struct{ time.Time }
	argNumbers map[int]string

	// Valuers.
	argValInt    struct{ N int64 }
	argValText   struct{ S string }
	argValBytes  struct{ B []byte } // returns its own memory
	argValTime   struct{ T time.Time }
	argValFloat  struct{ F float64 }
	argValBool   bool
	argValNil    struct{ N int }
	argValErr    struct{ N int }
	argValAny    struct{ V any }       // another Valuer, or anything
	argValPtr    struct{ N int64 }     // by its pointer
	argValList   []string              // an array as text
	argValMap    map[string]string     // a Valuer with memory behind it
	argValChunk  struct{ N, M int64 }  // tells less than it holds
	argValLookup struct{ Name string } // is no function of its fields
	argValSealed struct {              // has none that can be looked at
		mu *sync.Mutex
		n  int64
	}
	argValJSON  struct{ N int }    // Value and MarshalJSON
	argValTitle struct{ S string } // Value and String
	argTitles   []argValTitle      // a list of Valuers that prints itself
	argValEven  struct{ N int64 }  // an error for odd numbers

	// pgx asks these in its own way.
	argOwnInt  struct{ N int64 }
	argOwnText struct{ S string }
	argOwnUUID [16]byte
)

func (v argShout) String() string { return strings.ToUpper(string(v)) + "!" }
func (v argGrade) String() string { return strconv.Itoa(int(v)/2) + "0" }
func (v argLabel) MarshalText() ([]byte, error) {
	return []byte("label " + strings.ToLower(string(v))), nil
}
func (v argDoc) String() string                { return v.Name }
func (v argPair) MarshalJSON() ([]byte, error) { return fmt.Appendf(nil, `{"n": %d}`, v.N), nil }

var errNoArg = errors.New("no value")

// argWorld is what argValLookup looks at.
var argWorld int64

func (v argValInt) Value() (driver.Value, error)    { return v.N, nil }
func (v argValText) Value() (driver.Value, error)   { return v.S, nil }
func (v argValBytes) Value() (driver.Value, error)  { return v.B, nil }
func (v argValTime) Value() (driver.Value, error)   { return v.T, nil }
func (v argValFloat) Value() (driver.Value, error)  { return v.F, nil }
func (v argValBool) Value() (driver.Value, error)   { return bool(v), nil }
func (v argValNil) Value() (driver.Value, error)    { return nil, nil }
func (v argValErr) Value() (driver.Value, error)    { return nil, errNoArg }
func (v argValAny) Value() (driver.Value, error)    { return v.V, nil }
func (v argValList) Value() (driver.Value, error)   { return "{" + strings.Join(v, ",") + "}", nil }
func (v argValMap) Value() (driver.Value, error)    { return json.Marshal(map[string]string(v)) }
func (v argValChunk) Value() (driver.Value, error)  { return v.N, nil }
func (v argValSealed) Value() (driver.Value, error) { return v.n, nil }
func (v argValJSON) Value() (driver.Value, error)   { return int64(v.N), nil }
func (v argValJSON) MarshalJSON() ([]byte, error)   { return []byte(`"marshalled"`), nil }
func (v argValTitle) Value() (driver.Value, error)  { return v.S, nil }
func (v argValTitle) String() string                { return "Title " + v.S }
func (v argTitles) String() string                  { return fmt.Sprintf("%d titles", len(v)) }

func (v *argValPtr) Value() (driver.Value, error) {
	if v == nil {
		return "0", nil
	}
	return v.N, nil
}

func (v argValLookup) Value() (driver.Value, error) {
	return int64(len(v.Name)) + argWorld, nil
}

func (v argValEven) Value() (driver.Value, error) {
	if v.N%2 != 0 {
		return nil, errNoArg
	}
	return v.N, nil
}

func (v argOwnInt) Int64Value() (pgtype.Int8, error) {
	return pgtype.Int8{Int64: v.N, Valid: true}, nil
}

func (v argOwnText) TextValue() (pgtype.Text, error) {
	return pgtype.Text{String: v.S, Valid: true}, nil
}
func (v argOwnText) Value() (driver.Value, error)    { return "no, " + v.S, nil }
func (v argOwnUUID) UUIDValue() (pgtype.UUID, error) { return pgtype.UUID{Bytes: v, Valid: true}, nil }

func typesOf(values ...any) (types []reflect.Type) {
	for _, v := range values {
		types = append(types, reflect.TypeOf(v))
	}
	return types
}

// scalarTypes can be parts of others; they are met most.
var scalarTypes = slices.Concat(
	typesOf(false, 0, int8(0), int16(0), int32(0), int64(0), uint(0), uint8(0), uint16(0), uint32(0), uint64(0), float32(0), 0.0, ""),
	typesOf([]byte(nil), time.Time{}, time.Duration(0), time.Month(0), net.IP(nil), net.IPNet{}, net.HardwareAddr(nil), netip.Addr{}, netip.Prefix{}),
	typesOf((*big.Int)(nil), (*big.Rat)(nil), (*big.Float)(nil), json.RawMessage(nil), json.Number(""), [16]byte{}),
	typesOf(argInt(0), argInt8(0), argInt32(0), argInt64(0), argUint32(0), argFloat(0), argFloat32(0), argBool(false), argString(""), argBytes(nil)),
	typesOf(argUUID{}, argShout(""), argGrade(0), argLabel(""), argDoc{}, argPair{}, argRecord{}),
	typesOf(argValInt{}, argValText{}, argValBytes{}, argValTime{}, argValFloat{}, argValBool(false), argValNil{}, argValErr{}, argValAny{}, argValPtr{}),
	typesOf(argValList(nil), argValMap(nil), argValChunk{}, argValLookup{}, argValSealed{}, argValJSON{}, argValTitle{}, argValEven{}),
	typesOf(sql.NullBool{}, sql.NullByte{}, sql.NullFloat64{}, sql.NullInt16{}, sql.NullInt32{}, sql.NullInt64{}, sql.NullString{}, sql.NullTime{}),
	typesOf(sql.Null[string]{}, sql.Null[int64]{}, sql.Null[time.Time]{}, sql.Null[[]byte]{}, sql.Null[argValInt]{}, sql.Null[argString]{}, sql.Null[pgtype.UUID]{}),
	typesOf(pgtype.Bits{}, pgtype.Bool{}, pgtype.Box{}, pgtype.Circle{}, pgtype.Date{}, pgtype.Float4{}, pgtype.Float8{}, pgtype.Hstore(nil)),
	typesOf(pgtype.Int2{}, pgtype.Int4{}, pgtype.Int8{}, pgtype.Interval{}, pgtype.Line{}, pgtype.Lseg{}, pgtype.Numeric{}, pgtype.Path{}),
	typesOf(pgtype.Point{}, pgtype.Polygon{}, pgtype.Text{}, pgtype.TID{}, pgtype.Time{}, pgtype.Timestamp{}, pgtype.Timestamptz{}, pgtype.TSVector{}),
	typesOf(pgtype.Uint32{}, pgtype.Uint64{}, pgtype.UUID{}, pgtype.Range[pgtype.Int4]{}, pgtype.Range[pgtype.Timestamptz]{}),
)

// otherTypes are met whole.
var otherTypes = slices.Concat(
	typesOf(argStrings(nil), argInts(nil), argWide{}, &argLocked{}, argHidden{}, argNode{}, &argNode{}, argAnyOf{}, argMyTime{}, argEmbeds{}, argNumbers(nil)),
	typesOf(argTitles(nil), []argTitles(nil), argOwnInt{}, argOwnText{}, argOwnUUID{}, []argOwnInt(nil), [][]argValInt(nil), [2][2]argValInt{}, []*argValInt(nil)),
	typesOf(map[string]string(nil), map[string]*string(nil), map[string]any(nil), []any(nil), pgtype.CompositeFields(nil), struct{}{}, complex64(0), [0]int{}, []struct{}(nil)),
	typesOf(pgtype.Array[int32]{}, pgtype.Array[*string]{}, pgtype.Array[pgtype.Text]{}, pgtype.Array[argValInt]{}, pgtype.FlatArray[int64](nil), pgtype.FlatArray[string](nil), pgtype.FlatArray[argValInt](nil)),
	typesOf(pgtype.Range[int32]{}, pgtype.Range[*big.Int]{}, pgtype.Range[time.Time]{}, pgtype.Range[argValInt]{}, pgtype.Range[pgtype.Numeric]{}, pgtype.Range[float64]{}),
	typesOf(pgtype.Multirange[pgtype.Range[pgtype.Int4]](nil), []pgtype.Range[pgtype.Int4](nil), pgtype.Multirange[pgtype.Range[int32]](nil)),
	typesOf(pgtype.DriverBytes(nil), pgtype.PreallocBytes(nil), pgtype.UndecodedBytes(nil), pgtype.Infinity, pgtype.Empty),
	typesOf(zeronull.Int8(0), zeronull.Text(""), zeronull.UUID{}, zeronull.Timestamptz{}, zeronull.Float8(0)),
	typesOf([][]string(nil), [][][]int32(nil), [][]time.Time(nil), [3]float64{}, [2]string{}, [][2]int(nil), [2][]string{}),
)

// argMaker makes values.
type argMaker struct {
	r     *rand.Rand
	start time.Time // has a monotonic reading
}

func one[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

var argZones = func() []*time.Location {
	zones := []*time.Location{
		time.UTC, time.Local, time.FixedZone("UTC", 0), time.FixedZone("", 0), time.FixedZone("CET", 3600), time.FixedZone("MEZ", 3600),
		time.FixedZone("", 3600), time.FixedZone("odd", 1172), time.FixedZone("west", -7*3600), time.FixedZone("+01", 3600),
	}
	for _, name := range []string{"Europe/Berlin", "Europe/Paris", "America/New_York", "Asia/Kolkata", "Etc/UTC"} {
		zone, err := time.LoadLocation(name)
		if err != nil {
			panic(err)
		}
		zones = append(zones, zone)
	}
	return zones
}()

func (g *argMaker) time() time.Time {
	r := g.r
	t := one(r,
		time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC), time.Date(2026, 7, 2, 0, 0, 0, 0, time.UTC), time.Date(1883, 11, 18, 17, 0, 0, 1000, time.UTC),
		time.Date(1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-43, 3, 15, 12, 0, 0, 999, time.UTC), time.Date(294276, 12, 31, 23, 59, 59, 0, time.UTC),
		time.Unix(0, 0), time.Time{}, time.Unix(r.Int64N(4e9), r.Int64N(1e9)), g.start, g.start.Add(time.Duration(r.Int64N(1e15))),
	)
	if r.IntN(2) == 0 {
		t = t.In(argZones[r.IntN(len(argZones))])
	}
	return t
}

var argTexts = []string{
	"", " ", "a", "b", "x'y\"z\\", "ünïcödé ☃ 𝄞", "line\nbreak", "NULL", "t", "f", "true", "0", "1", "-1", "2", "42", "127", "32768", "2147483648",
	"9223372036854775807", "1.5", "-0", "1e-7", "NaN", "Infinity", "123456789012345678901234567890.5", "1.50", "01",
	"2026-01-02", "infinity", "2026-01-02 03:04:05.678901", "2026-01-02 03:04:05.678901+05:30", "03:04:05", "1 day", "P1Y2M",
	"{}", "[]", `{"a": 1}`, `{"a":1}`, "null", `"text"`, "<a/>", `\x`, `\xdead`, "101", "10.0.0.1", "10.0.0.0/8", "::1", "08:00:2b:01:02:03",
	"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "(1,2)", "[(1,2),(3,4)]", "<(1,2),3>", "{1,-1,0}", "(0,1)",
	"[1,5)", "empty", "{[1,5)}", "{1,2}", "{1,2,NULL}", "{a,b}", "happy", "ok", "(1,ok)", `"a"=>"1"`, "'a':1A", "\xff", "\xfe", strings.Repeat("long ", 40),
	strings.Repeat("long ", maxPlain/4), strings.Repeat("long ", maxPlain/4) + "b", // in keys as digests
}

func (g *argMaker) text() string {
	if g.r.IntN(8) == 0 {
		return strconv.Itoa(g.r.IntN(1000))
	}
	return one(g.r, argTexts...)
}

var argNaN = math.Float64frombits(0x7ff8000000000001 | 1<<40)

func (g *argMaker) float() float64 {
	if g.r.IntN(4) == 0 {
		return float64(g.r.IntN(100)) / 4
	}
	return one(g.r, 0, math.Copysign(0, -1), 1, -1, 1.5, math.NaN(), argNaN, math.Inf(1), math.Inf(-1), 1e300, 5e-324, 0.1, float64(float32(0.1)), 1<<53, 1e10)
}

func (g *argMaker) int() int64 {
	if g.r.IntN(3) == 0 {
		return g.r.Int64N(10)
	}
	return one[int64](g.r, 0, 1, -1, 2, 42, 127, -128, 255, 256, 32767, -32768, 65535, 1<<31-1, -1<<31, 1<<32-1, math.MaxInt64, math.MinInt64)
}

func (g *argMaker) addr() netip.Addr {
	return netip.MustParseAddr(one(g.r, "10.0.0.1", "10.0.0.2", "::1", "::ffff:10.0.0.1", "2001:db8::7", "fe80::1%a", "fe80::1%b", "fe80::1"))
}

func (g *argMaker) prefix() netip.Prefix {
	return netip.PrefixFrom(g.addr(), one(g.r, 0, 8, 24, 32, 64, 128, -1))
}

func (g *argMaker) bytes() []byte {
	switch g.r.IntN(6) {
	case 0:
		return nil
	case 1:
		return []byte{}
	case 2:
		return []byte(g.text())
	}
	b := make([]byte, one(g.r, 1, 4, 6, 8, 16, 16, 17, 3), 20)
	for i := range b {
		b[i] = byte(g.r.IntN(4))
	}
	return b
}

func (g *argMaker) bigInt() *big.Int {
	if g.r.IntN(8) == 0 {
		return nil
	}
	x := big.NewInt(g.int())
	if g.r.IntN(3) == 0 {
		x.Lsh(x, uint(g.r.IntN(200)))
	}
	return x
}

func (g *argMaker) numeric() pgtype.Numeric {
	n := pgtype.Numeric{Int: g.bigInt(), Exp: int32(g.r.IntN(9) - 6), Valid: g.r.IntN(6) > 0}
	switch g.r.IntN(8) {
	case 0:
		n.NaN = true
	case 1:
		n.InfinityModifier = one(g.r, pgtype.Infinity, pgtype.NegativeInfinity)
	}
	if n.Int == nil && n.Valid && g.r.IntN(2) == 0 {
		n.Int = big.NewInt(7)
	}
	return n
}

// madeWhole are types whose values are not to be made of their parts.
var madeWhole = map[reflect.Type]func(*argMaker) any{
	timeType:   func(g *argMaker) any { return g.time() },
	addrType:   func(g *argMaker) any { return one(g.r, g.addr(), g.addr(), netip.Addr{}) },
	prefixType: func(g *argMaker) any { return one(g.r, g.prefix(), g.prefix(), netip.Prefix{}) },
	intType:    func(g *argMaker) any { return g.bigInt() },
	ratType: func(g *argMaker) any {
		return one(g.r, nil, big.NewRat(1, 2), big.NewRat(2, 4), big.NewRat(g.r.Int64N(9), 3))
	},
	floatType: func(g *argMaker) any {
		return one(g.r, nil, big.NewFloat(1.5), new(big.Float).SetPrec(200).SetFloat64(1.5), new(big.Float).SetMode(big.ToZero).SetInt64(g.r.Int64N(5)))
	},
	reflect.TypeFor[pgtype.Numeric]():  func(g *argMaker) any { return g.numeric() },
	reflect.TypeFor[json.RawMessage](): func(g *argMaker) any { return json.RawMessage(one(g.r, "{}", "1", `{"a": 1}`, `{"a":1}`, "null", "")) },
	reflect.TypeFor[json.Number]():     func(g *argMaker) any { return json.Number(one(g.r, "1", "1.0", "7", "")) },
	reflect.TypeFor[net.IP](): func(g *argMaker) any {
		return one(g.r, nil, net.IP{10, 0, 0, 1}, net.ParseIP("10.0.0.1"), net.ParseIP("::1"), net.IP{1, 2, 3}, net.IP{}, net.IP{10, 0, 0, byte(g.r.IntN(3))})
	},
	reflect.TypeFor[net.IPMask](): func(g *argMaker) any {
		return one(g.r, nil, net.CIDRMask(8, 32), net.CIDRMask(24, 32), net.CIDRMask(8, 128), net.CIDRMask(96+8, 128), net.IPMask{255, 0, 255, 0}, net.IPMask{0, 255, 0, 0})
	},
	reflect.TypeFor[net.HardwareAddr](): func(g *argMaker) any {
		return one(g.r, nil, net.HardwareAddr{8, 0, 43, 1, 2, byte(g.r.IntN(3))}, net.HardwareAddr{8, 0, 43, 1, 2, 3, 4, 5}, net.HardwareAddr{})
	},
	reflect.TypeFor[pgtype.InfinityModifier](): func(g *argMaker) any {
		return one(g.r, pgtype.Finite, pgtype.Finite, pgtype.Infinity, pgtype.NegativeInfinity)
	},
	reflect.TypeFor[pgtype.BoundType](): func(g *argMaker) any {
		return one(g.r, pgtype.Inclusive, pgtype.Exclusive, pgtype.Inclusive, pgtype.Unbounded, pgtype.Empty)
	},
	reflect.TypeFor[pgtype.TSVectorWeight](): func(g *argMaker) any { return one(g.r, pgtype.TSVectorWeightA, pgtype.TSVectorWeightD) },
	reflect.TypeFor[pgtype.Bits](): func(g *argMaker) any {
		n := g.r.IntN(20)
		b := pgtype.Bits{Bytes: make([]byte, (n+7)/8), Len: int32(n), Valid: g.r.IntN(5) > 0}
		for i := range b.Bytes {
			b.Bytes[i] = byte(g.r.IntN(256))
		}
		return b
	},
	reflect.TypeFor[argMyTime]():            func(g *argMaker) any { return argMyTime(g.time()) },
	reflect.TypeFor[argValSealed]():         func(g *argMaker) any { return argValSealed{new(sync.Mutex), g.int()} },
	reflect.TypeFor[argHidden]():            func(g *argMaker) any { return argHidden{g.r.IntN(3)} },
	reflect.TypeFor[*argLocked]():           func(g *argMaker) any { return &argLocked{N: g.r.IntN(3)} },
	reflect.TypeFor[argValLookup]():         func(g *argMaker) any { return argValLookup{one(g.r, "", "a", "b", "ab")} },
	reflect.TypeFor[zeronull.Timestamptz](): func(g *argMaker) any { return zeronull.Timestamptz(g.time()) },
}

// value makes a value of a type.
func (g *argMaker) value(t reflect.Type, depth int) reflect.Value {
	r := g.r
	v := reflect.New(t).Elem()
	if mk := madeWhole[t]; mk != nil {
		if x := mk(g); x != nil {
			v.Set(reflect.ValueOf(x))
		}
		return v
	}
	switch t.Kind() {
	case reflect.Bool:
		v.SetBool(r.IntN(3) > 0) // Valid, too
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(g.int())
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(g.int()))
	case reflect.Float32, reflect.Float64:
		v.SetFloat(g.float())
	case reflect.Complex64:
		v.SetComplex(complex(g.float(), 0))
	case reflect.String:
		v.SetString(g.text())
	case reflect.Interface:
		if depth < 4 && r.IntN(8) > 0 {
			v.Set(g.value(scalarTypes[r.IntN(len(scalarTypes))], depth+1))
		}
	case reflect.Pointer:
		if depth < 6 && r.IntN(7) > 0 {
			p := reflect.New(t.Elem())
			p.Elem().Set(g.value(t.Elem(), depth+1))
			v.Set(p)
		}
	case reflect.Array:
		for i := range v.Len() {
			v.Index(i).Set(g.value(t.Elem(), depth+1))
		}
	case reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			v.Set(reflect.ValueOf(g.bytes()).Convert(t))
			break
		}
		n := r.IntN(5) - 1
		if n < 0 || depth > 5 {
			break
		}
		v.Set(reflect.MakeSlice(t, n, n+r.IntN(3)))
		for i := range n {
			v.Index(i).Set(g.value(t.Elem(), depth+1))
		}
	case reflect.Map:
		if r.IntN(7) == 0 {
			break
		}
		v.Set(reflect.MakeMap(t))
		for range r.IntN(4) {
			v.SetMapIndex(g.value(t.Key(), depth+1), g.value(t.Elem(), depth+1))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				f.Set(g.value(f.Type(), depth+1))
			}
		}
		if strings.HasPrefix(t.Name(), "Array[") { // pgtype.Array
			n := v.FieldByName("Elements").Len()
			dims := []pgtype.ArrayDimension{{Length: int32(n), LowerBound: one(r, int32(1), 1, 0)}}
			switch {
			case n == 0:
				dims = one(r, nil, []pgtype.ArrayDimension{})
			case n == 2 && r.IntN(2) == 0:
				dims = append(dims, pgtype.ArrayDimension{Length: 1, LowerBound: 1})
			}
			v.FieldByName("Dims").Set(reflect.ValueOf(dims))
		}
	}
	return v
}

// pick returns a type.
func (g *argMaker) pick() reflect.Type {
	r := g.r
	if r.IntN(4) == 0 {
		return otherTypes[r.IntN(len(otherTypes))]
	}
	t := scalarTypes[r.IntN(len(scalarTypes))]
	switch r.IntN(20) {
	case 0, 1:
		return reflect.PointerTo(t)
	case 2:
		return reflect.PointerTo(reflect.PointerTo(t))
	case 3, 4:
		return reflect.SliceOf(t)
	case 5:
		return reflect.SliceOf(reflect.PointerTo(t))
	case 6:
		return reflect.ArrayOf(2, t)
	case 7:
		return reflect.SliceOf(reflect.SliceOf(t))
	case 8:
		return reflect.MapOf(reflect.TypeFor[string](), t)
	case 9:
		return reflect.StructOf([]reflect.StructField{{Name: "A", Type: t}, {Name: "B", Type: reflect.TypeFor[string]()}})
	case 10:
		return reflect.PointerTo(reflect.SliceOf(t))
	}
	return t
}

// changes collects what may be changed in a value, which can be set.
func (g *argMaker) changes(v reflect.Value, depth int, list []func()) []func() {
	if !v.CanSet() || depth > 8 {
		return list
	}
	r := g.r
	t := v.Type()
	add := func(change ...func()) { list = append(list, change...) }
	set := func(x any) func() {
		return func() {
			v.Set(reflect.ValueOf(x))
		}
	}
	switch x := v.Interface().(type) {
	case time.Time:
		add(set(x.Add(1)), set(x.Add(time.Microsecond)), set(x.Add(time.Hour)), set(x.Round(0)), set(x.In(argZones[r.IntN(len(argZones))])),
			set(g.start.Add(x.Sub(g.start)).In(x.Location())), set(x.UTC()))
		name, offset := x.Zone()
		add(set(x.In(time.FixedZone(name, offset))), set(x.In(time.FixedZone(name+"X", offset))))
		return list
	case *big.Int:
		if x != nil {
			add(set(new(big.Int).Set(x)), set(new(big.Int).Add(x, big.NewInt(1))), set(new(big.Int).Neg(x)))
		}
	case *big.Float:
		if x != nil {
			add(set(new(big.Float).SetPrec(x.Prec()+1).SetMode(x.Mode()).Set(x)), set(new(big.Float).Neg(x)))
		}
	case pgtype.Numeric:
		if x.Int != nil {
			n := x
			n.Int, n.Exp = new(big.Int).Mul(x.Int, big.NewInt(10)), x.Exp-1
			m := x
			m.Int, m.Exp = new(big.Int).Mul(x.Int, big.NewInt(10000)), x.Exp-4
			add(set(n), set(m))
		}
	case net.IP:
		if len(x) == 4 {
			add(func() { v.Set(reflect.ValueOf(x.To16())) })
		} else if x.To4() != nil {
			add(func() { v.Set(reflect.ValueOf(x.To4())) })
		}
	}
	anew := func() { v.Set(g.value(t, depth)) }
	if madeWhole[t] != nil && t.Kind() != reflect.Slice && t != reflect.TypeFor[pgtype.Numeric]() && t != reflect.TypeFor[pgtype.Bits]() {
		add(anew)
		return list
	}
	switch t.Kind() {
	case reflect.Bool:
		add(func() { v.SetBool(!v.Bool()) })
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		add(func() { v.SetInt(v.Int() + 1) }, func() { v.SetInt(v.Int() ^ 1<<9) })
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		add(func() { v.SetUint(v.Uint() + 1) })
	case reflect.Float32, reflect.Float64:
		f := v.Float()
		other := math.Float64frombits(math.Float64bits(f) ^ 1<<35)
		if t.Kind() == reflect.Float64 {
			add(func() { v.SetFloat(math.Nextafter(f, 0)) })
		}
		add(func() { v.SetFloat(-f) }, func() { v.SetFloat(other) }, anew)
	case reflect.String:
		add(func() { v.SetString(v.String() + " ") }, func() { v.SetString(strings.Clone(v.String())) }, func() { v.SetString(strings.ToLower(v.String())) }, anew)
	case reflect.Slice:
		if v.IsNil() {
			add(func() { v.Set(reflect.MakeSlice(t, 0, 0)) }, func() { v.Set(reflect.MakeSlice(t, 0, 5)) })
			break
		}
		n := v.Len()
		add(func() { // other memory, more room
			c := reflect.MakeSlice(t, n, n+3)
			reflect.Copy(c, v)
			v.Set(c)
		}, func() { v.SetZero() }, func() { v.Set(reflect.Append(v, reflect.Zero(t.Elem()))) })
		if n > 0 {
			add(func() { v.Set(v.Slice(0, n-1)) }, func() { v.Set(v.Slice(1, n)) })
		}
		for i := range min(n, 20) {
			list = g.changes(v.Index(i), depth+1, list)
		}
	case reflect.Array:
		for i := range min(v.Len(), 20) {
			list = g.changes(v.Index(i), depth+1, list)
		}
	case reflect.Map:
		if v.IsNil() {
			add(func() { v.Set(reflect.MakeMap(t)) })
			break
		}
		add(func() { v.SetZero() }, anew)
		for _, k := range sortedKeys(v) {
			add(func() { v.SetMapIndex(k, reflect.Value{}) })
			add(func() {
				e := reflect.New(t.Elem()).Elem()
				e.Set(v.MapIndex(k))
				if inner := g.changes(e, depth+1, nil); len(inner) > 0 {
					inner[r.IntN(len(inner))]()
				}
				v.SetMapIndex(k, e)
			})
		}
	case reflect.Pointer:
		if v.IsNil() {
			add(func() { v.Set(reflect.New(t.Elem())) })
			break
		}
		add(func() { v.SetZero() }, func() {
			p := reflect.New(t.Elem())
			if t.Elem() != reflect.TypeFor[argLocked]() {
				p.Elem().Set(v.Elem())
			}
			v.Set(p)
		})
		list = g.changes(v.Elem(), depth+1, list)
	case reflect.Interface:
		add(anew)
	case reflect.Struct:
		for i := range v.NumField() {
			list = g.changes(v.Field(i), depth+1, list)
		}
	}
	return list
}

func sortedKeys(m reflect.Value) []reflect.Value {
	keys := m.MapKeys()
	slices.SortFunc(keys, func(a, b reflect.Value) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return keys
}

// changed returns a value with one of its parts changed, a little.
func (g *argMaker) changed(arg any) any {
	if arg == nil {
		return one[any](g.r, []byte(nil), (*int)(nil), "", argValNil{})
	}
	v := reflect.New(reflect.TypeOf(arg)).Elem()
	v.Set(reflect.ValueOf(arg))
	if list := g.changes(v, 0, nil); len(list) > 0 {
		list[g.r.IntN(len(list))]()
	}
	return v.Interface()
}

// kin are types that values may be converted to.
var kin = func() (kin []reflect.Type) {
	for _, t := range slices.Concat(scalarTypes, otherTypes) {
		switch t.Kind() {
		case reflect.Struct, reflect.Pointer, reflect.Map:
		default:
			kin = append(kin, t)
		}
	}
	return kin
}()

// retyped returns a value of another Go type that says the same, more or less.
func (g *argMaker) retyped(arg any) any {
	r := g.r
	var list []any
	switch x := arg.(type) {
	case nil:
		return one[any](r, (*int)(nil), []byte(nil), sql.NullString{}, argValNil{}, pgtype.Int4{})
	case string:
		list = []any{[]byte(x), pgtype.Text{String: x, Valid: true}, sql.NullString{String: x, Valid: true}, argValText{x}, json.RawMessage(x), argLabel(x), argDoc{x}, argOwnText{x}}
	case []byte:
		list = []any{string(x), argValBytes{x}, pgtype.DriverBytes(x), pgtype.UndecodedBytes(x), sql.Null[[]byte]{V: x, Valid: true}}
	case int64:
		list = []any{strconv.FormatInt(x, 10), pgtype.Int8{Int64: x, Valid: true}, sql.NullInt64{Int64: x, Valid: true}, argValInt{x}, &argValPtr{x}, argOwnInt{x}, big.NewInt(x), float64(x)}
	case bool:
		list = []any{pgtype.Bool{Bool: x, Valid: true}, argValBool(x), sql.NullBool{Bool: x, Valid: true}}
	case float64:
		list = []any{pgtype.Float8{Float64: x, Valid: true}, argValFloat{x}, float32(x)}
	case time.Time:
		list = []any{
			pgtype.Timestamptz{Time: x, Valid: true},
			pgtype.Timestamp{Time: x, Valid: true},
			pgtype.Date{Time: x, Valid: true},
			argValTime{x},
			sql.NullTime{Time: x, Valid: true},
			x.String(),
			argEmbeds{x},
		}
	case []string:
		list = []any{pgtype.FlatArray[string](x), argStrings(x), argValList(x), pgtype.Array[string]{Elements: x, Dims: []pgtype.ArrayDimension{{Length: int32(len(x)), LowerBound: 1}}, Valid: true}}
	case [16]byte:
		list = []any{pgtype.UUID{Bytes: x, Valid: true}, argUUID(x), x[:], argOwnUUID(x)}
	case netip.Addr:
		list = []any{netip.PrefixFrom(x, x.BitLen()), net.IP(x.AsSlice())}
	case map[string]*string:
		list = []any{pgtype.Hstore(x)}
	case argValInt:
		list = []any{x.N, argValChunk{x.N, 1}, argValPtr(x), &argValPtr{x.N}}
	case argValText:
		list = []any{x.S, argValTitle(x), argValAny{x.S}}
	}
	list = append(list, argValAny{arg})
	v := reflect.ValueOf(arg)
	p := reflect.New(v.Type())
	p.Elem().Set(v)
	list = append(list, p.Interface())
	for v.Kind() == reflect.Pointer && !v.IsNil() {
		v = v.Elem()
		list = append(list, v.Interface())
	}
	if k := v.Kind(); k != reflect.Struct && k != reflect.Map && k != reflect.Pointer {
		t := kin[r.IntN(len(kin))]
		for range 20 { // until one fits
			if v.CanConvert(t) && (t.Kind() == reflect.String) == (k == reflect.String) && t != v.Type() {
				list = append(list, v.Convert(t).Interface())
				break
			}
			t = kin[r.IntN(len(kin))]
		}
	}
	if v.Kind() == reflect.Array {
		s := reflect.MakeSlice(reflect.SliceOf(v.Type().Elem()), v.Len(), v.Len())
		reflect.Copy(s, v)
		list = append(list, s.Interface())
	}
	return list[r.IntN(len(list))]
}

// argOptions are what may come before the arguments.
func (g *argMaker) options() []any {
	switch g.r.IntN(20) {
	case 0:
		return []any{one(g.r, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, pgx.QueryExecModeCacheDescribe)}
	case 1:
		return []any{one(g.r, pgx.QueryResultFormats{0}, pgx.QueryResultFormats{1}, nil)}
	case 2:
		return []any{pgx.QueryResultFormatsByOID{25: int16(g.r.IntN(2))}}
	}
	return nil
}

// scribble changes all memory that is reached through a value and that its owner may
// change as soon as its call has returned.
func scribble(v reflect.Value, depth int) {
	if !v.IsValid() || !v.CanInterface() || depth > 10 {
		return
	}
	switch x := v.Interface().(type) {
	case time.Time, netip.Addr, netip.Prefix:
		return
	case *big.Int:
		if x != nil {
			x.SetInt64(77777)
		}
		return
	case *big.Rat:
		if x != nil {
			x.SetInt64(77777)
		}
		return
	case *big.Float:
		if x != nil {
			x.SetInt64(77777)
		}
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			scribble(v.Elem(), depth+1)
			if v.Elem().CanSet() && v.Type() != reflect.TypeFor[*argLocked]() {
				v.Elem().SetZero()
			}
		}
	case reflect.Interface:
		scribble(v.Elem(), depth+1)
	case reflect.Slice:
		for i := range v.Len() {
			scribble(v.Index(i), depth+1)
			if v.Type().Elem().Kind() == reflect.Uint8 {
				v.Index(i).SetUint('#')
			} else {
				v.Index(i).SetZero()
			}
		}
	case reflect.Array:
		for i := range v.Len() {
			scribble(v.Index(i), depth+1)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			scribble(v.Field(i), depth+1)
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			scribble(it.Value(), depth+1)
		}
		v.Clear()
	}
}
