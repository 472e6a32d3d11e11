package hostile

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// Arguments with a mind of their own.
type (
	panics     struct{}
	odd        struct{ N int }
	fails      struct{}
	nilPointer struct{ N int }
	endless    *endless
	endlessS   []endlessS
	endlessM   map[string]endlessM
	endlessT   struct{ Next *endlessT }
	named      string
	rewrites   struct{}
	rewriteBad struct{}
	textual    struct{ S string }
)

func (panics) Value() (driver.Value, error)        { panic("a Valuer") }
func (odd) Value() (driver.Value, error)           { return textual{"not a driver.Value"}, nil } // itself exhausts the stack in pgx
func (fails) Value() (driver.Value, error)         { return nil, errors.New("a Valuer fails") }
func (n *nilPointer) Value() (driver.Value, error) { return int64(n.N), nil }
func (t textual) String() string                   { return t.S }
func (rewrites) RewriteQuery(_ context.Context, _ *pgx.Conn, _ string, args []any) (string, []any, error) {
	return "SELECT $1::text", []any{"rewritten"}, nil
}

func (rewriteBad) RewriteQuery(context.Context, *pgx.Conn, string, []any) (string, []any, error) {
	return "", nil, errors.New("no")
}

func oddities() map[string][]any {
	var e endless
	e = &e
	s := endlessS{nil}
	s[0] = s
	m := endlessM{}
	m["m"] = m
	t := &endlessT{}
	t.Next = t
	var typedNil *string
	var nilValuer *nilPointer
	out := 1
	deep := any(1)
	for range 1000 {
		deep = &deep
	}
	return map[string][]any{
		"EndlessPointer": {e}, "EndlessSlice": {s}, "EndlessMap": {m}, "EndlessStruct": {t}, "Deep": {deep},
		"Chan": {make(chan int)}, "Func": {func() {}}, "Map": {map[string]any{"a": func() {}}}, "Nested": {struct{ A, B any }{1, make(chan int)}},
		"Huge": {make([]byte, 2<<20)}, "HugeText": {strings.Repeat("x", 2<<20)}, "HugeSlice": {make([]int64, 1<<18)},
		"NaN": {math.NaN()}, "Inf": {math.Inf(-1)}, "NegativeZero": {math.Copysign(0, -1)}, "MaxUint": {uint64(math.MaxUint64)},
		"Panics": {panics{}}, "Odd": {odd{1}}, "Fails": {fails{}}, "TypedNil": {typedNil}, "NilValuer": {nilValuer}, "Nil": {nil},
		"NamedArg": {sql.Named("a", 1)}, "NamedArgs": {pgx.NamedArgs{"a": 1}}, "StrictNamedArgs": {pgx.StrictNamedArgs{"b": 1}}, "NilNamedArgs": {pgx.NamedArgs(nil)},
		"EndlessNamed": {pgx.NamedArgs{"a": s}}, "PanicNamed": {pgx.NamedArgs{"a": panics{}}},
		"Out": {sql.Out{Dest: &out}}, "NullString": {sql.NullString{}}, "NullAny": {sql.Null[any]{V: func() {}, Valid: true}},
		"Rewriter": {rewrites{}}, "RewriteFails": {rewriteBad{}}, "NilRewriter": {(*rewrites)(nil)},
		"Mode": {pgx.QueryExecModeExec, "a"}, "BadMode": {pgx.QueryExecMode(99), "a"}, "ModeTwice": {pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol, "a"},
		"Formats": {pgx.QueryResultFormats{1}, "a"}, "BadFormats": {pgx.QueryResultFormats{7, -1, 3}, "a"}, "FormatsByOID": {pgx.QueryResultFormatsByOID{25: 7}, "a"},
		"ModeLast": {"a", pgx.QueryExecModeExec}, "OnlyMode": {pgx.QueryExecModeExec},
		"Many": make([]any, 70_000), "Two": {1, 2}, "None": {}, "Any": {any(any("a"))}, "Stringer": {textual{"a"}}, "Error": {errors.New("a")},
		"BigInt": {big.NewInt(1)}, "BigRat": {big.NewRat(1, 3)}, "Time": {time.Time{}}, "FarTime": {time.Unix(1<<60, 0)}, "Addr": {netip.Addr{}}, "Prefix": {netip.Prefix{}},
		"NotUTF8": {"\xff\xfe"}, "NUL": {"a\x00b"}, "Named": {named("a")}, "Runes": {[]rune("a")}, "Any slice": {[]any{1, "a", nil, func() {}}},
		"Numeric": {pgtype.Numeric{Valid: true, Int: big.NewInt(1), Exp: 5000}}, "Range": {pgtype.Range[int]{Valid: true}}, "Value": {reflect.ValueOf(1)}, "Type": {reflect.TypeFor[int]()},
		"DB": {&sql.DB{}}, "Rows": {&sql.Rows{}}, "Ctx": {context.Background()}, "Complex": {complex(1, 2)}, "Uintptr": {uintptr(1)}, "Unsafe": {reflect.ValueOf(&out).UnsafePointer()},
	}
}

// randomValue makes a value of a type made at random.
func randomValue(r *rand.Rand, depth int) reflect.Value {
	t := randomType(r, depth)
	v := reflect.New(t).Elem()
	fill(r, v, depth)
	return v
}

var basicTypes = []reflect.Type{
	reflect.TypeFor[bool](), reflect.TypeFor[int](), reflect.TypeFor[int8](), reflect.TypeFor[int16](), reflect.TypeFor[int32](), reflect.TypeFor[int64](),
	reflect.TypeFor[uint](), reflect.TypeFor[uint8](), reflect.TypeFor[uint32](), reflect.TypeFor[uint64](), reflect.TypeFor[float32](), reflect.TypeFor[float64](),
	reflect.TypeFor[string](), reflect.TypeFor[[]byte](), reflect.TypeFor[time.Time](), reflect.TypeFor[netip.Addr](), reflect.TypeFor[any](), reflect.TypeFor[named](),
	reflect.TypeFor[textual](), reflect.TypeFor[sql.NullInt64](), reflect.TypeFor[pgtype.UUID](), reflect.TypeFor[pgtype.Date](), reflect.TypeFor[odd](), reflect.TypeFor[fails](),
	reflect.TypeFor[error](), reflect.TypeFor[complex128](), reflect.TypeFor[func()](), reflect.TypeFor[chan int](),
}

func randomType(r *rand.Rand, depth int) reflect.Type {
	if depth == 0 || r.IntN(3) == 0 {
		return basicTypes[r.IntN(len(basicTypes))]
	}
	switch r.IntN(6) {
	case 0, 1:
		return reflect.SliceOf(randomType(r, depth-1))
	case 2:
		return reflect.PointerTo(randomType(r, depth-1))
	case 3:
		return reflect.ArrayOf(r.IntN(4), randomType(r, depth-1))
	case 4:
		return reflect.MapOf(reflect.TypeFor[string](), randomType(r, depth-1))
	}
	fields := make([]reflect.StructField, r.IntN(4))
	for i := range fields {
		fields[i] = reflect.StructField{Name: fmt.Sprintf("F%d", i), Type: randomType(r, depth-1)}
	}
	return reflect.StructOf(fields)
}

func fill(r *rand.Rand, v reflect.Value, depth int) {
	if depth < -2 || r.IntN(8) == 0 {
		return // as it is: zero, nil
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(r.IntN(2) == 0)
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		v.SetInt(int64(r.Uint64()) >> r.IntN(64))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(r.Uint64() >> r.IntN(64))
	case reflect.Float32, reflect.Float64:
		v.SetFloat([]float64{0, 1.5, -1e300, math.NaN(), math.Inf(1)}[r.IntN(5)])
	case reflect.String:
		v.SetString(word(r))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), r.IntN(4), 4))
		for i := range v.Len() {
			fill(r, v.Index(i), depth-1)
		}
	case reflect.Array:
		for i := range v.Len() {
			fill(r, v.Index(i), depth-1)
		}
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(r, v.Elem(), depth-1)
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		e := reflect.New(v.Type().Elem()).Elem()
		fill(r, e, depth-1)
		v.SetMapIndex(reflect.ValueOf(word(r)), e)
	case reflect.Interface:
		if v.NumMethod() == 0 {
			v.Set(randomValue(r, min(depth-1, 1)))
		}
	case reflect.Struct:
		switch v.Addr().Interface().(type) {
		case *time.Time:
			v.Set(reflect.ValueOf(time.Unix(int64(r.Uint32()), 0).UTC()))
			return
		case *netip.Addr:
			v.Set(reflect.ValueOf(netip.AddrFrom4([4]byte{10, 0, 0, byte(r.IntN(256))})))
			return
		}
		for i := range v.NumField() {
			if f := v.Field(i); f.CanSet() {
				fill(r, f, depth-1)
			}
		}
	}
}

// with runs a query with arguments and says what came of it.
func with(db *sql.DB, query string, args []any) (o outcome) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			o.panicked, o.stack = p, debug.Stack()
		}
	}()
	var v any
	o.err = db.QueryRowContext(ctx, query, args...).Scan(&v)
	o.rows = fmt.Sprintf("%T %v", v, v)
	return o
}

// sameEnd reports whether flightpg's outcome is pgx's.
func sameEnd(ours, native outcome) bool {
	switch {
	case ours.panicked != nil || native.panicked != nil:
		return (ours.panicked != nil) == (native.panicked != nil)
	case ours.err != nil || native.err != nil:
		if ours.err == nil || native.err == nil {
			return false
		}
		// Some of pgx's errors print addresses; and what it says of a value that it
		// cannot encode depends on what the connection has met before.
		const cannot = "failed to encode args["
		a, b := ours.err.Error(), native.err.Error()
		return a == b || strings.Contains(b, "0x") || strings.HasPrefix(a, cannot) && strings.HasPrefix(b, cannot)
	}
	return ours.rows == native.rows || strings.Contains(native.rows, "0x")
}

func TestArguments(t *testing.T) {
	seed := battery.Seed(t)
	report := battery.Report(t, part, "bad arguments: what pgx says, and no panic of flightpg's own", seed)
	dsn := pgtest.Shared(t).Database(t)
	queries := []string{"SELECT $1::text", "SELECT $1::int4", "SELECT $1::int8[]", "SELECT $1::jsonb", "SELECT $1::timestamptz", "SELECT @a::text", "SELECT $1"}
	count, shared, violations, again := 0, uint64(0), 0, 0
	for _, mode := range []string{"cache_statement", "exec", "simple_protocol"} {
		open := func(name string) *sql.DB {
			sep := "?"
			if strings.Contains(dsn, "?") {
				sep = "&"
			}
			db, err := sql.Open(name, dsn+sep+"application_name="+name+"&default_query_exec_mode="+mode)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { db.Close() })
			return db
		}
		native, ours := open("pgx"), open("flightpg")
		check := func(what, query string, args []any) {
			want, got := with(native, query, args), with(ours, query, args)
			count++
			if !sameEnd(got, want) {
				// What pgx can encode depends on what it has met on a connection
				// before: again on new ones.
				a, b := open("pgx"), open("flightpg")
				want, got = with(a, query, args), with(b, query, args)
				a.Close()
				b.Close()
				again++
			}
			if !sameEnd(got, want) {
				violations++
				t.Errorf("seed %d, %s, %s, %s, %.200s:\nflightpg: %.600v\n%s\npgx:      %.600v", seed, mode, what, query, fmt.Sprintf("%T", args), got, got.stack, want)
			}
		}
		for name, args := range oddities() {
			for _, query := range queries {
				if name == "Many" && query != queries[0] || strings.HasPrefix(name, "Huge") && query != queries[0] {
					continue
				}
				if strings.HasPrefix(name, "Endless") {
					continue // pgx itself exhausts the stack with some; TestKey_Endless has ours
				}
				check(name, query, args)
			}
		}
		for n := range battery.Quick(60, battery.N(300, 20_000)) {
			r := battery.Rand(seed, n)
			v := randomValue(r, 3)
			check(fmt.Sprintf("value %d %v", n, v.Type()), queries[r.IntN(len(queries))], []any{v.Interface()})
		}
		native.Close()
		ours.Close()
		s := flightpg.ReadStats(ours)
		shared += s.Flights
		if s.Flying != 0 || s.Waiting != 0 || s.BufferedBytes != 0 {
			t.Errorf("Stats = %+v; want nothing left", s)
		}
	}
	// pgx's own driver loses a connection with each panic of a Valuer.
	eye, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer eye.Close()
	left := func() (n int) {
		t.Helper()
		if err := eye.QueryRow(`SELECT count(*) FILTER (WHERE application_name = 'flightpg'), count(pg_terminate_backend(pid)) FILTER (WHERE application_name = 'pgx')
			FROM pg_stat_activity WHERE datname = current_database()`).Scan(&n, new(int)); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for deadline := time.Now().Add(time.Minute); left() > 0; time.Sleep(10 * time.Millisecond) { // nothing tells: polling
		if time.Now().After(deadline) {
			t.Errorf("%d of flightpg's connections are left", left())
			break
		}
	}
	report.Set("calls", count)
	report.Set("shared", shared)
	report.Set("compared again on new connections", again)
	report.Set("violations", violations)
	if shared == 0 {
		t.Error("nothing was shared: the test shows nothing")
	}
}
