package flightpg

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"math/big"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

func keyOf(t testing.TB, args ...any) (string, Reason) {
	t.Helper()
	key, why, _ := keyAndArgs(args...)
	return key, why
}

// keyAndArgs returns the key of a read, and its arguments as they are sent.
func keyAndArgs(args ...any) (string, Reason, []driver.NamedValue) {
	c := &Connector{source: &source{config: defaultConfig()}}
	c.types.Store(plainTypes)
	r := &read{via: viaQuery, args: namedValues(args), v: new(verdict)}
	oids := slices.Repeat([]uint32{pgtype.TextArrayOID}, len(args))
	r.v.params.Store(&oids)
	b, why := new(keying).appendKey(nil, r.via, "", r.args)
	if why == reasonConvert {
		b, why = c.convertedKey(context.Background(), nil, r, keying{})
	}
	return string(b), why, r.args
}

func namedValues(args []any) []driver.NamedValue {
	named := make([]driver.NamedValue, len(args))
	for i, a := range args {
		named[i] = driver.NamedValue{Ordinal: i + 1, Value: a}
	}
	return named
}

type (
	myInt    int
	otherInt int
	myString string
	myBytes  []byte
	point    struct{ X, Y int32 }
	pair2    struct{ A, B string }
	hidden   struct{ n int }
	stamped  struct{ T time.Time }
	secret   struct{ T, t time.Time }
	valuer   struct{ N int }
	sliced   []string // a Valuer with memory behind it
	printed  []valuer // prints itself
	withPtr  struct{ P *int }
	deep     struct{ In struct{ In [2]point } }
	loop     *loop
	rewriter struct{}
)

func (rewriter) RewriteQuery(_ context.Context, _ *pgx.Conn, sql string, args []any) (string, []any, error) {
	return sql, args, nil
}

func (v valuer) Value() (driver.Value, error) { return int64(v.N), nil }
func (printed) String() string                { return "printed" }

type (
	counted struct { // counts calls of Value
		n     int
		calls *int
	}
	guarded struct {
		mu sync.Mutex
		N  int
	}
	ownWay  struct{ N int64 } // pgx asks it for an int64 first
	failing struct{}
	itself  struct{}
	valuing struct{ v any }
)

// inUse is a value that its owner is changing.
func inUse() *guarded {
	g := new(guarded)
	g.mu.Lock()
	return g
}

var errFailing = errors.New("no value")

func (v counted) Value() (driver.Value, error) {
	*v.calls++
	return int64(v.n), nil
}

func (v ownWay) Int64Value() (pgtype.Int8, error) { return pgtype.Int8{Int64: v.N, Valid: true}, nil }
func (v ownWay) Value() (driver.Value, error)     { return int64(-1), nil }
func (failing) Value() (driver.Value, error)      { return nil, errFailing }
func (v itself) Value() (driver.Value, error)     { return v, nil }
func (v valuing) Value() (driver.Value, error)    { return v.v, nil }
func (v sliced) Value() (driver.Value, error)     { return strings.Join(v, ","), nil }

// TestKey_Different holds every pair of these against each other: all differ,
// to PostgreSQL or to pgx.
func TestKey_Different(t *testing.T) {
	utc := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	east := utc.In(time.FixedZone("east", 3600))
	addr := netip.MustParseAddr("10.0.0.1")
	one := 1
	lists := [][]any{
		{},
		{nil},
		{nil, nil},
		{true},
		{false},
		{1},
		{int8(1)},
		{int16(1)},
		{int32(1)},
		{int64(1)},
		{uint(1)},
		{uint8(1)},
		{uint16(1)},
		{uint32(1)},
		{uint64(1)},
		{2},
		{-1},
		{int64(math.MinInt64)},
		{float32(1)},
		{math.Float32bits(1)},
		{math.Float64bits(1)},
		{float64(1)},
		{math.Copysign(0, -1)},
		{0.0},
		{math.NaN()},
		{math.Inf(1)},
		{"1"},
		{""},
		{"a"},
		{"ab"},
		{"a", "b"},
		{"ab", ""},
		{"", "ab"},
		{"a\x00b"},
		{[]byte(nil)},
		{[]byte{}},
		{[]byte("1")},
		{[]byte("a"), []byte("b")},
		{[]byte("ab")},
		{utc},
		{east},
		{utc.Add(1)},
		{utc.Add(time.Second)},
		{utc.String()},
		{myInt(1)},
		{otherInt(1)},
		{myString("1")},
		{myBytes("1")},
		{myBytes(nil)},
		{myBytes{}},
		{json.RawMessage("1")},
		{point{1, 2}},
		{point{2, 1}},
		{deep{}},
		{pair2{"a", "b"}},
		{pair2{"ab", ""}},
		{pair2{"", "ab"}},
		{stamped{utc}},
		{stamped{east}},
		{stamped{utc.In(time.FixedZone("west", 3600))}}, // a Valuer may print the zone
		{valuer{1}},
		{valuer{2}},
		{sliced{"a"}},
		{sliced{"b"}},
		{new(int)},
		{&one},
		{new(int64)},
		{(*int)(nil)},
		{(*int64)(nil)},
		{new(string)},
		{new([]byte)},
		{&[]byte{}},
		{new(*int)},
		{[]*int{}},
		{[]*int{nil}},
		{[]*int{&one}},
		{pgx.QueryExecModeExec},
		{pgx.QueryExecModeSimpleProtocol},
		{pgx.QueryResultFormats{}},
		{pgx.QueryResultFormats{1}},
		{pgx.QueryResultFormats{0, 1}},
		{pgx.QueryResultFormats{1, 0}},
		{pgx.QueryResultFormatsByOID{}},
		{pgx.QueryResultFormatsByOID{1: 1}},
		{pgx.QueryResultFormatsByOID{1: 1, 2: 0}},
		{pgx.QueryResultFormatsByOID{1: 0, 2: 1}},
		{[2]int{1, 2}},
		{[3]int{1, 2, 0}},
		{[16]byte{1}},
		{[]int{}},
		{[]int(nil)},
		{[]int{1}},
		{[]int{1, 2}},
		{[]int64{1, 2}},
		{[]int{1}, []int{2}},
		{[]string{"a", "b"}},
		{[]string{"ab"}},
		{[]string{"a"}, "b"},
		{[]string{}},
		{[]string(nil)},
		{[][]byte{{1}, nil}},
		{[][]byte{{1}, {}}},
		{[][]byte{{1}}},
		{[][]byte{nil, {1}}},
		{[][]byte{{1, 1, 1}}},
		{[][]byte{{1}, {1}}},
		{[]float64{0}},
		{[]float64{math.Copysign(0, -1)}},
		{[]bool{true}},
		{[]uint8{1}, 1},
		{addr},
		{netip.MustParseAddr("10.0.0.2")},
		{netip.MustParseAddr("::ffff:10.0.0.1")},
		{netip.MustParseAddr("fe80::1%a")},
		{netip.MustParseAddr("fe80::1%b")},
		{netip.Addr{}},
		{netip.PrefixFrom(addr, 8)},
		{netip.PrefixFrom(addr, 9)},
		{netip.Prefix{}},
		{net.IP{10, 0, 0, 1}},
		{net.ParseIP("10.0.0.1")},
		{sql.NullString{}},
		{sql.NullString{Valid: true}},
		{sql.NullInt64{Int64: 1, Valid: true}},
		{sql.NullTime{Time: utc, Valid: true}},
		{sql.NullTime{Time: east, Valid: true}},
		{pgtype.UUID{Bytes: [16]byte{1}, Valid: true}},
		{pgtype.UUID{Bytes: [16]byte{1}}},
		{pgtype.Int4{Int32: 1, Valid: true}},
		{pgtype.Date{Time: utc, Valid: true}},
		{time.Second},
		{time.Monday},
	}
	seen := make(map[string]string)
	for _, args := range lists {
		k, why := keyOf(t, args...)
		name := fmt.Sprintf("%T%#v", args, args)
		if why != ReasonNone {
			t.Errorf("%s: %v; want a key", name, why)
			continue
		}
		if other, ok := seen[k]; ok {
			t.Errorf("%s and %s have the same key", name, other)
		}
		seen[k] = name
		// The same again is the same key, from a copy too.
		if again, _ := keyOf(t, args...); again != k {
			t.Errorf("%s: another key the second time", name)
		}
		_, _, sent := keyAndArgs(args...)
		c, why := new(keying).appendKey(nil, viaQuery, "", copyArgs(sent))
		if string(c) != k || why != ReasonNone {
			t.Errorf("%s: its copy has another key", name)
		}
	}
}

func TestKey_Same(t *testing.T) {
	utc := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	big2 := func() any {
		return pgtype.Numeric{Int: new(big.Int).Lsh(big.NewInt(1), 200), Exp: -3, Valid: true}
	}
	for _, pair := range [][2]any{
		{utc.In(time.FixedZone("a", 3600)), utc.In(time.FixedZone("a", 3600))},
		{"x" + strings.Repeat("y", 3), "xyyy"},
		{big2(), big2()},
		{new(big.Float).SetFloat64(1.5), big.NewFloat(1.5)},
		{big.NewRat(2, 4), big.NewRat(1, 2)},
		{pgtype.Hstore{"a": nil, "b": new("x"), "c": new("")}, pgtype.Hstore{"c": new(""), "b": new("x"), "a": nil}},
		{struct{ S []string }{[]string{"a"}}, struct{ S []string }{strings.Split("a", ",")}},
		{valuer{1}, &valuer{1}},
		{valuer{1}, new(&valuer{1})},
		{valuer{7}, counted{7, new(int)}}, // what is sent is the same
		{[]valuer{{1}, {2}}, []*valuer{{1}, {2}}},
		{[2]valuer{{1}, {2}}, []valuer{{1}, {2}}},
		{[][]valuer{{{1}}, {{2}}}, [][]valuer{{{1}}, {{2}}}},
	} {
		a, why := keyOf(t, pair[0])
		b, _ := keyOf(t, pair[1])
		if a != b || why != ReasonNone {
			t.Errorf("%v and %v have different keys, or none: %v", pair[0], pair[1], why)
		}
	}
}

func TestKey_Parts(t *testing.T) {
	seen := make(map[string]bool)
	for _, via := range []byte{viaQuery, viaStmt, viaPrepare} {
		for _, partition := range []string{"", "a", "b"} {
			for _, name := range []string{"", "n"} {
				k, _ := new(keying).appendKey(nil, via, partition, []driver.NamedValue{{Name: name, Value: "x"}})
				if seen[string(k)] {
					t.Errorf("via %d, partition %q, name %q: a key that is taken", via, partition, name)
				}
				seen[string(k)] = true
			}
		}
	}
}

// TestKey_Crafted holds reads against each other that an attacker would choose:
// their values look like the encoding of what comes between values.
func TestKey_Crafted(t *testing.T) {
	unnamed := func(tag byte) string { return "\x00" + string(rune(tag)) }
	str, raw := "a"+unnamed(tagString)+"b", "a"+unnamed(tagBytes)+"b"
	named := func(s string) string { return string(rune(tagString)) + "\x01" + s }
	for _, tc := range []struct {
		name         string
		args1, args2 []driver.NamedValue
		partition2   string
	}{
		{"Strings", namedValues([]any{str, "c"}), namedValues([]any{"a", "b" + unnamed(tagString) + "c"}), ""},
		{"Bytes", namedValues([]any{[]byte(raw), []byte("c")}), namedValues([]any{[]byte("a"), []byte("b" + unnamed(tagBytes) + "c")}), ""},
		{
			"Names",
			[]driver.NamedValue{{Value: "x"}, {Name: named("y"), Value: "z"}},
			[]driver.NamedValue{{Name: named("x"), Value: "y"}, {Value: "z"}},
			"",
		},
		{"Partition", namedValues([]any{"\x00"}), nil, "\x01\x00" + string(rune(tagString)) + "\x01"},
	} {
		a, why1 := new(keying).appendKey(nil, viaQuery, "", tc.args1)
		b, why2 := new(keying).appendKey(nil, viaQuery, tc.partition2, tc.args2)
		if why1 != ReasonNone || why2 != ReasonNone {
			t.Errorf("%s: %v, %v; want keys", tc.name, why1, why2)
		}
		if string(a) == string(b) {
			t.Errorf("%s: two reads have the same key %q", tc.name, a)
		}
	}
}

func TestKey_Bypass(t *testing.T) {
	n := 1
	for _, tc := range []struct {
		arg  any
		want Reason
	}{
		{new(any), ReasonArgument},
		{loop(nil), ReasonArgument},
		{[]any{1}, ReasonArgument},
		{make(chan int), ReasonArgument},
		{func() {}, ReasonArgument},
		{complex(1, 1), ReasonArgument},
		{struct{ V any }{1}, ReasonArgument},
		{secret{t: time.Now()}, ReasonArgument},
		{sql.Out{Dest: &n}, ReasonArgument},
		{hidden{1}, ReasonArgument}, // its owner may be changing it
		{inUse(), ReasonArgument},
		{new(atomic.Int64), ReasonArgument},
		{*big.NewInt(1), ReasonArgument},
		{map[*int]int{&n: 1}, ReasonArgument},
		{ownWay{1}, ReasonArgument},
		{&ownWay{1}, ReasonArgument},
		{struct{ V valuer }{}, ReasonArgument}, // a composite, or JSON
		{map[string]valuer{}, ReasonArgument},
		{failing{}, ReasonArgument},
		{[]failing{{}}, ReasonArgument},
		{itself{}, ReasonArgument},
		{valuing{make(chan int)}, ReasonArgument},
		{valuing{[]valuer{{1}}}, ReasonArgument},
		{valuing{ownWay{1}}, ReasonArgument}, // pgx asks what Value returned in its own way
		{[2][2]valuer{}, ReasonArgument},     // what pgx refuses, as all of these
		{[][]valuer{{{1}}, {}}, ReasonArgument},
		{new((*valuer)(nil)), ReasonArgument},
		{[][]sliced{{{"a"}}}, ReasonArgument}, // to pgx an array of three dimensions
		{printed{{1}}, ReasonArgument},        // which it may send as printed
		{strings.Repeat("x", maxKeyArgs+1), ReasonArgument},
		{rewriter{}, ReasonPgxOption},
		{pgx.NamedArgs{"a": 1}, ReasonPgxOption},
		{pgx.StrictNamedArgs{"a": 1}, ReasonPgxOption},
	} {
		if _, why := keyOf(t, tc.arg); why != tc.want {
			t.Errorf("%T: %v; want %v", tc.arg, why, tc.want)
		}
	}
}

// TestCopyArgs checks that a copy shares no memory that its owner can change.
func TestCopyArgs(t *testing.T) {
	n := 1
	args := []any{
		[]byte("abc"), myBytes("abc"), json.RawMessage("abc"),
		[]int{1, 2},
		[]string{"a", "b"},
		[][]byte{[]byte("abc"), nil},
		[]point{{1, 2}},
		net.IP{1, 2, 3, 4},
		[][]int{{1}, {2}},
		&[]string{"a"},
		[]*int{&n, nil},
		&n,
		pgtype.Numeric{Int: big.NewInt(7), Valid: true},
		pgtype.Hstore{"a": new("b")},
		pgtype.Array[[]byte]{Elements: [][]byte{[]byte("a")}, Valid: true},
		pgtype.Range[*big.Int]{Lower: big.NewInt(3), Valid: true},
		big.NewInt(7), big.NewRat(1, 2), big.NewFloat(1.5),
		struct{ M map[string][]int }{map[string][]int{"a": {1}}},
		[1][]int{{1}},
		withPtr{&n},
		pgx.QueryResultFormats{1},
		pgx.QueryResultFormatsByOID{1: 1},
	}
	before, _, sent := keyAndArgs(args...)
	c := copyArgs(sent)
	for _, a := range args {
		overwrite(reflect.ValueOf(a))
	}
	if now, _ := keyOf(t, args...); now == before {
		t.Fatal("the test overwrote nothing")
	}
	after, _ := new(keying).appendKey(nil, viaQuery, "", c)
	if string(after) != before {
		t.Error("the copies changed with their originals")
	}
	for i, a := range c {
		if got, want := reflect.TypeOf(a.Value), reflect.TypeOf(sent[i].Value); got != want {
			t.Errorf("copy %d is %v; want %v", i, got, want)
		}
	}
	if copyArgs(nil) != nil {
		t.Error("copyArgs(nil) is not nil")
	}
}

func overwrite(v reflect.Value) {
	switch x := v.Interface().(type) {
	case *big.Int:
		if x != nil {
			x.Bits()[0] = 1
		}
		return
	case *big.Rat:
		x.Num().Bits()[0] = 5
		return
	case *big.Float:
		x.SetFloat64(9)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			overwrite(v.Elem())
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			overwrite(v.Index(i))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			overwrite(v.Field(i))
		}
	case reflect.Map:
		for it := v.MapRange(); it.Next(); {
			overwrite(it.Value())
		}
		v.Clear()
	default:
		if v.CanSet() {
			v.SetZero()
		}
	}
}

func TestPositional(t *testing.T) {
	mode := pgx.QueryExecModeExec
	for _, tc := range []struct {
		name, query string
		args        []any
		want        string
		wantArgs    []any
	}{
		{"Named", "SELECT @a, @b, @a", []any{pgx.NamedArgs{"a": 1, "b": "x", "c": 3}}, "SELECT $1, $2, $1", []any{1, "x"}},
		{"Swapped", "SELECT @b, @a, @b", []any{pgx.NamedArgs{"a": 1, "b": "x"}}, "SELECT $1, $2, $1", []any{"x", 1}},
		{"Missing", "SELECT @a", []any{pgx.NamedArgs{}}, "SELECT $1", []any{nil}},
		{"Strict", "SELECT @a", []any{pgx.StrictNamedArgs{"a": 1}}, "SELECT $1", []any{1}},
		{"Struct", "SELECT @a", []any{pgx.StructArgs(struct {
			A int `db:"a"`
		}{1})}, "SELECT $1", []any{1}},
		{"BehindOption", "SELECT @a", []any{mode, pgx.NamedArgs{"a": 1}}, "SELECT $1", []any{mode, 1}},
		// These are pgx's to refuse, or to understand.
		{"StrictMissing", "SELECT @a", []any{pgx.StrictNamedArgs{}}, "SELECT @a", []any{pgx.StrictNamedArgs{}}},
		{"BehindArgument", "SELECT @a", []any{1, pgx.NamedArgs{"a": 1}}, "SELECT @a", []any{1, pgx.NamedArgs{"a": 1}}},
		{"BeforeArgument", "SELECT @a", []any{pgx.NamedArgs{"a": 1}, 1}, "SELECT @a", []any{pgx.NamedArgs{"a": 1}, 1}},
		{"OptionInside", "SELECT @a", []any{pgx.NamedArgs{"a": mode}}, "SELECT @a", []any{pgx.NamedArgs{"a": mode}}},
		{"Rewriter", "SELECT @a", []any{rewriter{}}, "SELECT @a", []any{rewriter{}}},
		{"None", "SELECT @a", nil, "SELECT @a", nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			text, args := positional(tc.query, namedValues(tc.args))
			if want := namedValues(tc.wantArgs); text != tc.want || len(args)+len(want) > 0 && !reflect.DeepEqual(args, want) {
				t.Errorf("positional = %q, %v; want %q, %v", text, args, tc.want, want)
			}
		})
	}
}

// FuzzKey checks that lists of arguments have the same key if and only if they
// are the same.
func FuzzKey(f *testing.F) {
	f.Add([]byte{}, []byte{})
	f.Add([]byte{1, 1, 0}, []byte{2, 1, 0})
	f.Add([]byte{7, 3, 'a', 'b', 'c', 7, 0}, []byte{7, 0, 7, 3, 'a', 'b', 'c'})
	f.Add([]byte{8, 0}, []byte{8, 1, 0})
	f.Add([]byte{22, 4, 1, 23, 4, 1}, []byte{23, 4, 1, 22, 4, 1})
	f.Add([]byte{24, 4, 1, 22, 5, 0, 7, 0}, []byte{24, 5, 0, 22, 4, 1, 7, 0})
	f.Fuzz(func(t *testing.T, a, b []byte) {
		x, y := fuzzArgs(a), fuzzArgs(b)
		kx, why := keyOf(t, x...)
		if why != ReasonNone {
			t.Fatalf("%#v: %v", x, why)
		}
		ky, _ := keyOf(t, y...)
		if same := reflect.DeepEqual(x, y); same != (kx == ky) {
			t.Errorf("%#v and %#v: same key = %v; want %v", x, y, kx == ky, same)
		}
		c, _ := new(keying).appendKey(nil, viaQuery, "", copyArgs(namedValues(x)))
		if string(c) != kx {
			t.Errorf("%#v: its copy has another key", x)
		}
	})
}

// fuzzArgs reads a list of arguments of many types from bytes.
func fuzzArgs(b []byte) (args []any) {
	next := func() (c byte) {
		if len(b) > 0 {
			c, b = b[0], b[1:]
		}
		return c
	}
	text := func() string {
		n := min(int(next()), len(b))
		s := string(b[:n])
		b = b[n:]
		return s
	}
	for len(b) > 0 && len(args) < 8 {
		switch next() % 25 {
		case 0:
			args = append(args, nil)
		case 1:
			args = append(args, int(int8(next())))
		case 2:
			args = append(args, int64(int8(next())))
		case 3:
			args = append(args, next()%2 == 0)
		case 4:
			args = append(args, uint16(next()))
		case 5:
			args = append(args, float64(int8(next()))/4)
		case 6:
			args = append(args, float32(int8(next()))/4)
		case 7:
			args = append(args, text())
		case 8:
			args = append(args, []byte(nil))
		case 9:
			args = append(args, append([]byte{}, text()...))
		case 10:
			args = append(args, time.Unix(int64(next()), int64(next())).In(time.FixedZone("z", 60*int(int8(next())))))
		case 11:
			args = append(args, myInt(int8(next())))
		case 12:
			args = append(args, myString(text()))
		case 13:
			args = append(args, point{int32(next()), int32(next())})
		case 14:
			args = append(args, pair2{text(), text()})
		case 15:
			args = append(args, []string{text(), text()})
		case 16:
			args = append(args, []string{text()})
		case 17:
			args = append(args, [][]byte{append([]byte{}, text()...), nil})
		case 18:
			args = append(args, [2]byte{next(), next()})
		case 19:
			args = append(args, []int32{int32(next())})
		case 20:
			args = append(args, netip.AddrFrom4([4]byte{next()}))
		case 21:
			args = append(args, sql.NullString{String: text(), Valid: next()%2 == 0})
		case 22: // what is long is in keys as a digest
			args = append(args, strings.Repeat("x", maxPlain/4*int(next()%8))+string(rune(next())))
		case 23:
			args = append(args, append(bytes.Repeat([]byte("x"), maxPlain/4*int(next()%8)), next()))
		case 24:
			args = append(args, append(make([]int32, maxPlain/16*int(next()%8)), int32(next())))
		}
	}
	return args
}

func BenchmarkKey(b *testing.B) {
	for _, bc := range []struct {
		name string
		args []any
	}{
		{"int64", []any{int64(1)}},
		{"mixed", []any{int64(1), "some text", true, time.Now(), 1.5}},
		{"struct", []any{pgtype.UUID{Valid: true}}},
		{"slice", []any{[]int64{1, 2, 3, 4}}},
	} {
		b.Run(bc.name, func(b *testing.B) {
			named := namedValues(bc.args)
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				buf, _ = new(keying).appendKey(buf[:0], viaQuery, "", named)
			}
		})
	}
}

func TestCopyArgs_BytesKeepNil(t *testing.T) {
	c := copyArgs(namedValues([]any{[]byte(nil), []byte{}}))
	if c[0].Value.([]byte) != nil || c[1].Value.([]byte) == nil || !bytes.Equal(c[1].Value.([]byte), []byte{}) {
		t.Errorf("copies = %#v; want nil and empty as they were", c)
	}
}
