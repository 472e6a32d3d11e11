package integration

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"fmt"
	"maps"
	"math/big"
	"net"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestValues reads values of every type of the server through every kind of scan
// destination, natively and on every way that rows take through flightpg. What a
// caller gets, values and errors, must be the same.
//
// The values are found by asking the server: each type gets those of the
// candidates that its input function takes.
func TestValues(t *testing.T) {
	dsn := pgtest.Database(t) // one server: the versions differ, and scripts/test-matrix has them
	types := valuesOfTypes(t, dsn)
	native := stdlib.OpenDB(*config(t, dsn), stdlib.OptionAfterConnect(registerTypes))
	t.Cleanup(func() { native.Close() })
	total := 0
	want := make([]*answers, len(types)) // what pgx gives
	for i, ty := range types {
		want[i] = &answers{ask: func() string { return scanEverything(native.QueryContext(t.Context(), ty.query())) }}
		want[i].repeat()
		total += len(ty.values)
	}
	t.Logf("%d types, %d values, %d destinations", len(types), total, len(destinations))

	for _, way := range []struct {
		name, params string
		calls        int
		joins, live  bool
	}{
		{"Solo", "", 1, false, false},
		{"Follower", "flight_window=1h&flight_mode=join", 2, true, false}, // of the result that the first has left
		{"Live", "flight_max_result=1", 1, false, true},
		{"PassedThrough", "flight_mode=off", 1, false, false},
		{"Transaction", "flight_guard=transaction", 2, false, false},
		{"TransactionLive", "flight_guard=transaction&flight_max_result=1", 1, false, true},
		{"FollowerOfTransaction", "flight_guard=transaction&flight_window=1h&flight_mode=join", 2, true, false},
	} {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			c, err := flightpg.NewConnector(with(dsn, way.params), flightpg.Config{AfterConnect: registerTypes})
			if err != nil {
				t.Fatal(err)
			}
			db := c.OpenDB()
			defer db.Close()
			bypassed := 0
			for i, ty := range types {
				before := flightpg.ReadStats(db)
				for call := range way.calls {
					got := scanEverything(db.QueryContext(t.Context(), ty.query()))
					if diff := want[i].differ(got); diff != "" {
						t.Errorf("%s, call %d:\n%s", ty.name, call, diff)
					}
				}
				after := flightpg.ReadStats(db)
				if after.Flights+after.Joins == before.Flights+before.Joins {
					bypassed++
				} else if live := after.Overflows > before.Overflows; live != way.live {
					t.Errorf("%s: live rows: %v; want %v", ty.name, live, way.live)
				} else if joins := after.Joins - before.Joins; joins > 0 != way.joins {
					t.Errorf("%s: %d joins", ty.name, joins)
				}
			}
			if all := way.name == "PassedThrough"; (bypassed == len(types)) != all || !all && bypassed > len(types)/10 {
				t.Errorf("%d of %d types bypassed", bypassed, len(types))
			}
		})
	}

	t.Run("Together", func(t *testing.T) {
		t.Parallel()
		c, err := flightpg.NewConnector(dsn, flightpg.Config{AfterConnect: registerTypes})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		defer db.Close()
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for i, ty := range types { // in step, more or less
					if diff := want[i].differ(scanEverything(db.QueryContext(t.Context(), ty.query()))); diff != "" {
						t.Errorf("%s:\n%s", ty.name, diff)
					}
				}
			})
		}
		wg.Wait()
	})

	// Every mode has formats of its own, and a caller can ask for others.
	formats, few := [][]any{nil}, slices.Clone(types)
	for i := range few {
		few[i].values = few[i].values[:min(len(few[i].values), 1+i%2)]
	}
	if os.Getenv("FLIGHTPG_VALUES") != "" {
		few = types
		formats = append(formats, []any{pgx.QueryResultFormats{1}}, []any{pgx.QueryResultFormats{0}})
	}
	for _, mode := range execModes {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			pc := config(t, with(dsn, mode))
			plain := stdlib.OpenDB(*pc, stdlib.OptionAfterConnect(registerTypes))
			defer plain.Close()
			c, err := flightpg.NewConnector(with(dsn, mode+"&flight_window=1h&flight_mode=join"), flightpg.Config{AfterConnect: registerTypes})
			if err != nil {
				t.Fatal(err)
			}
			db := c.OpenDB()
			defer db.Close()
			for _, ty := range few {
				for _, args := range formats {
					want := &answers{ask: func() string { return scanEverything(plain.QueryContext(t.Context(), ty.query(), args...)) }}
					want.repeat()
					for call := range 2 {
						if diff := want.differ(scanEverything(db.QueryContext(t.Context(), ty.query(), args...))); diff != "" {
							t.Errorf("%s %v, call %d:\n%s", ty.name, args, call, diff)
						}
					}
				}
			}
		})
	}
}

func config(t *testing.T, dsn string) *pgx.ConnConfig {
	t.Helper()
	pc, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	return pc
}

// userTypes are what a database adds to PostgreSQL's types.
const userTypes = `
	CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
	CREATE DOMAIN positive AS int CHECK (VALUE > 0);
	CREATE TYPE pair AS (n int, mood mood);
	CREATE TYPE floatrange AS RANGE (subtype = float8);
`

// registerTypes is the hook that applications use for types of their own.
func registerTypes(ctx context.Context, conn *pgx.Conn) error {
	types, err := conn.LoadTypes(ctx, []string{"mood", "_mood", "pair", "_pair", "floatrange"})
	if err != nil {
		return err
	}
	conn.TypeMap().RegisterTypes(types)
	return nil
}

type valuesOfType struct {
	name   string
	values []string // literals
}

// query returns the values and a NULL, in one column.
func (ty valuesOfType) query() string {
	var b strings.Builder
	for i, v := range ty.values {
		fmt.Fprintf(&b, "(%d, %s::%s), ", i, v, ty.name)
	}
	return fmt.Sprintf("SELECT v FROM (VALUES %s(%d, NULL::%s)) AS t(n, v) ORDER BY n", b.String(), len(ty.values), ty.name)
}

// valuesOfTypes asks the server which candidates each of its types takes.
func valuesOfTypes(t *testing.T, dsn string) (types []valuesOfType) {
	t.Helper()
	conn := connect(t, dsn)
	if _, err := conn.Exec(t.Context(), userTypes+`
		CREATE FUNCTION output(candidate text, type text) RETURNS text LANGUAGE plpgsql AS $$
		DECLARE result text;
		BEGIN
			EXECUTE format('SELECT %L::%s::text', candidate, type) INTO result;
			RETURN result;
		EXCEPTION WHEN OTHERS THEN
			RETURN NULL;
		END $$`); err != nil {
		t.Fatal(err)
	}
	rows, err := conn.Query(t.Context(), `
		SELECT format_type(ty.oid, NULL), array_agg(quote_literal(c) ORDER BY n)
		FROM pg_type ty, LATERAL (
			SELECT DISTINCT ON (o) c, n
			FROM unnest($1::text[]) WITH ORDINALITY AS candidates(c, n), output(c, format_type(ty.oid, NULL)) AS o
			WHERE o IS NOT NULL
			ORDER BY o, n
		) AS accepted
		WHERE ty.typtype IN ('b', 'd', 'e', 'm', 'r') AND ty.typisdefined
			AND (ty.typnamespace = 'pg_catalog'::regnamespace OR ty.typnamespace = 'public'::regnamespace)
			AND NOT EXISTS (SELECT FROM pg_class r WHERE r.oid IN (ty.typrelid, (SELECT e.typrelid FROM pg_type e WHERE e.oid = ty.typelem)) AND r.relkind <> 'c')
			OR ty.typname IN ('pair', '_pair')
		GROUP BY ty.oid ORDER BY ty.oid`, candidates)
	if err != nil {
		t.Fatal(err)
	}
	types, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (ty valuesOfType, err error) {
		err = row.Scan(&ty.name, &ty.values)
		return ty, err
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range types {
		// Neighbours in the list of candidates are alike: take every n-th.
		all, most := types[i].values, maxValues(t)
		if len(all) > most {
			types[i].values = nil
			for n := range most {
				types[i].values = append(types[i].values, all[(n*len(all)+i%len(all))/most%len(all)])
			}
		}
	}
	return types
}

// maxValues returns the bound of the values of one type; text takes every
// candidate. FLIGHTPG_VALUES sets it: make values takes them all.
func maxValues(t *testing.T) int {
	t.Helper()
	if env := os.Getenv("FLIGHTPG_VALUES"); env != "" {
		n, err := strconv.Atoi(env)
		if err != nil {
			t.Fatalf("FLIGHTPG_VALUES: %v", err)
		}
		return n
	}
	return 3
}

// candidates are texts at the edges of what types take.
var candidates = append([]string{
	"", " ", "a", "x'y\"z\\", "ünïcödé ☃ 𝄞", "line\nbreak\ttab", "NULL", "null", "t", "f", "true", "0", "1", "-1", "2",
	"127", "255", "32767", "-32768", "32768", "65535", "2147483647", "-2147483648", "2147483648", "4294967295",
	"9223372036854775807", "-9223372036854775808", "18446744073709551615", "9007199254740993",
	"1.5", "-0", "1e-7", "1.0000000000000002", "3.4028235e38", "1.17549435e-38", "1.7976931348623157e308", "5e-324", "NaN", "Infinity", "-Infinity",
	"123456789012345678901234567890.123456789", "1e400", "0.000", "$1,234.56", "-92233720368547758.08",
	"2026-01-02", "0001-01-01", "0044-03-15 BC", "5874897-12-31", "294276-12-31 23:59:59.999999", "4714-11-24 00:00:00 BC", "infinity", "-infinity",
	"2026-01-02 03:04:05.678901", "2026-01-02 03:04:05.678901+05:30", "1883-11-18 12:00:00 America/New_York", "1969-12-31 23:59:59.999999+00",
	"00:00", "24:00", "03:04:05.678901", "03:04:05.678901-07:30", "23:59:60",
	"1 year 2 mons -3 days 04:05:06.789", "-178000000 years", "P1Y2M3DT4H5M6S", "00:00:00.000001",
	"{}", "[]", "[1, 2, {\"a\": null}]", "{\"b\": [true, 1.0, \"x\"], \"a\": {\"b\": null}}", "\"text\"", "{\"n\": 123456789012345678901234567890}",
	"<a>b</a>", "<?xml version=\"1.0\"?><a/>", `\x`, `\xdeadbeef00ff`, `\\000\\377`, "101", "0000000000000001", "B101", "xFF",
	"10.0.0.1", "10.0.0.0/8", "::1", "2001:db8::/32", "08:00:2b:01:02:03", "08:00:2b:01:02:03:04:05",
	"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000",
	"(1,2)", "(1.5,-2.5)", "((1,2),(3,4))", "[(1,2),(3,4)]", "((0,0),(1,1),(2,0))", "<(1,2),3>", "{1,-1,0}",
	"a & b | !c", "'a':1A 'b':2,3", "0/0", "16/B374D848", "(0,1)", "(4294967295,65535)", "10:20:10,14,15", "1 2 3",
	"[1,5)", "(,)", "empty", "[,5]", "[2026-01-01,2026-02-01)", "[1.5,2.5]", "{[1,5),[7,9)}", "{[2026-01-01,2026-02-01)}", "{(,)}",
	"happy", "(1,ok)", "(,)", "(-2147483648,)", "pg_class", "int4", "pg_catalog", "english", "simple", "+", "abs(int4)", "=(int4,int4)", "postgres",
	"{1,2,NULL}", "{{1,2},{3,4}}", "[0:1]={1,2}", "{a,\"b,c\",\"\\\"\",NULL,\"NULL\",\"\"}", "{t,f,NULL}", "{1.5,NaN,Infinity}",
	"{2026-01-02,infinity}", "{\"2026-01-02 03:04:05+00\",NULL}", "{\"(1,2)\"}", "{\"[1,5)\",empty}", "{\"{}\",null}", "{\"\\\\xdead\"}",
	"{10.0.0.1,::1}", "{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}", "{happy,sad,NULL}", "{\"(1,ok)\",NULL}", "{\"1 day\"}", "{\"{[1,2)}\"}",
}, strings.Repeat("long ", 200))

// destination is one thing to scan into.
type destination struct {
	name string
	make func() any
}

// destinations are every kind of thing that people scan into.
var destinations = slices.Concat(
	into[string]("string"), into[[]byte]("bytes"), into[any]("any"), into[bool]("bool"),
	into[int]("int"), into[int8]("int8"), into[int16]("int16"), into[int32]("int32"), into[int64]("int64"),
	into[uint]("uint"), into[uint8]("uint8"), into[uint16]("uint16"), into[uint32]("uint32"), into[uint64]("uint64"),
	into[float32]("float32"), into[float64]("float64"), into[time.Time]("time"), into[time.Duration]("duration"),
	into[label]("label"), into[json.RawMessage]("rawmessage"), into[net.IP]("ip"), into[netip.Addr]("addr"), into[netip.Prefix]("prefix"),
	into[complex128]("complex"), into[*big.Int]("bigint"), into[[16]byte]("uuid"),
	into[[]int64]("int64s"), into[[]int32]("int32s"), into[[]*int32]("int32ptrs"), into[[]string]("strings"), into[[]*string]("stringptrs"),
	into[[]bool]("bools"), into[[]float64]("float64s"), into[[]time.Time]("times"), into[[][]byte]("byteslices"), into[[]any]("anys"),
	into[[][]int32]("int32matrix"), into[[2]int]("twoints"), into[map[string]any]("map"), into[map[string]*string]("stringmap"),
	into[struct {
		N    *int
		Mood *string
	}]("struct"), into[[]struct {
		N    *int
		Mood *string
	}]("structs"),
	into[pgtype.Bits]("pgBits"), into[pgtype.Bool]("pgBool"), into[pgtype.Box]("pgBox"), into[pgtype.Circle]("pgCircle"),
	into[pgtype.Date]("pgDate"), into[pgtype.Float4]("pgFloat4"), into[pgtype.Float8]("pgFloat8"), into[pgtype.Hstore]("pgHstore"),
	into[pgtype.Int2]("pgInt2"), into[pgtype.Int4]("pgInt4"), into[pgtype.Int8]("pgInt8"), into[pgtype.Interval]("pgInterval"),
	into[pgtype.Line]("pgLine"), into[pgtype.Lseg]("pgLseg"), into[pgtype.Numeric]("pgNumeric"), into[pgtype.Path]("pgPath"),
	into[pgtype.Point]("pgPoint"), into[pgtype.Polygon]("pgPolygon"), into[pgtype.TID]("pgTID"), into[pgtype.Text]("pgText"),
	into[pgtype.Time]("pgTime"), into[pgtype.Timestamp]("pgTimestamp"), into[pgtype.Timestamptz]("pgTimestamptz"),
	into[pgtype.UUID]("pgUUID"), into[pgtype.Uint32]("pgUint32"), into[pgtype.Uint64]("pgUint64"), into[pgtype.TSVector]("pgTSVector"),
	into[pgtype.Range[pgtype.Int4]]("pgInt4Range"), into[pgtype.Range[pgtype.Int8]]("pgInt8Range"), into[pgtype.Range[pgtype.Numeric]]("pgNumRange"),
	into[pgtype.Range[pgtype.Date]]("pgDateRange"), into[pgtype.Range[pgtype.Timestamptz]]("pgTstzRange"), into[pgtype.Range[float64]]("pgFloatRange"),
	[]destination{{multirange, func() any { return new(pgtype.Multirange[pgtype.Range[pgtype.Int4]]) }}},
	into[pgtype.Array[*string]]("pgArray"), into[pgtype.FlatArray[pgtype.Int4]]("pgFlatArray"), into[pgtype.FlatArray[byte]]("pgFlatBytes"),
	into[pgtype.UndecodedBytes]("pgUndecodedBytes"), into[pgtype.DriverBytes]("pgDriverBytes"), into[pgtype.PreallocBytes]("pgPreallocBytes"),
	[]destination{
		{"nil", func() any { return nil }},
		{"nilpointer", func() any { return (*string)(nil) }},
		{"notpointer", func() any { return 0 }},
		{"scanner", func() any { return new(recorder) }},
		{"scannerpointer", func() any { p := new(recorder); return &p }},
		{"refuser", func() any { return new(refuser) }},
		{"rawbytes", func() any { return new(sql.RawBytes) }}, // last: it holds the row until Next
	},
)

// What is not the same in pgx's errors from one time to the next: addresses, and
// which of all the codecs that it tries in vain refuses a NULL last.
var (
	address  = regexp.MustCompile("0x[0-9a-f]{6,}")
	intoNull = regexp.MustCompile("(anyArrayArrayReflect: )?cannot scan NULL into .*")
)

// multirange is scanned into from multiranges only: pgx panics where it meets a
// composite.
const multirange = "pgInt4Multirange"

// into are a type's own destination and those made of it.
func into[T any](name string) []destination {
	return []destination{
		{name, func() any { return new(T) }},
		{name + " pointer", func() any { return new(*T) }},
		{name + " null", func() any { return new(sql.Null[T]) }},
	}
}

// recorder is a sql.Scanner that keeps what it was given.
type recorder struct{ got any }

func (r *recorder) Scan(src any) error {
	if b, ok := src.([]byte); ok {
		src = slices.Clone(b)
	}
	r.got = src
	return nil
}

// refuser is a sql.Scanner that takes nothing.
type refuser struct{}

func (*refuser) Scan(src any) error { return fmt.Errorf("refused a %T", src) }

// everyNth of the destinations is scanned into with one value, other ones with the
// next; all of them in make values.
var everyNth = func() int {
	if os.Getenv("FLIGHTPG_VALUES") != "" {
		return 1
	}
	return 5
}()

// scanEverything writes down what the destinations get of every row.
func scanEverything(rows *sql.Rows, err error) string {
	if err != nil {
		return describe(err)
	}
	defer rows.Close()
	var b strings.Builder
	types, err := rows.ColumnTypes()
	if err != nil {
		return describe(err)
	}
	for _, ct := range types {
		length, hasLength := ct.Length()
		precision, scale, hasPrecision := ct.DecimalSize()
		fmt.Fprintln(&b, ct.Name(), ct.DatabaseTypeName(), ct.ScanType(), length, hasLength, precision, scale, hasPrecision)
	}
	for row := 0; rows.Next(); row++ {
		for i, d := range destinations {
			if (i+row+len(types[0].DatabaseTypeName()))%everyNth != 0 && d.name != "rawbytes" {
				continue
			}
			if d.name == multirange && !strings.HasSuffix(types[0].DatabaseTypeName(), "MULTIRANGE") {
				continue
			}
			dest := d.make()
			err := scan(rows, dest)
			fmt.Fprintf(&b, "row %d into %s: ", row, d.name)
			if err != nil {
				text := address.ReplaceAllString(err.Error(), "0x…")
				b.WriteString(intoNull.ReplaceAllString(text, "cannot scan NULL") + "; ")
			}
			render(&b, reflect.ValueOf(dest))
			b.WriteByte('\n')
			if raw, ok := dest.(*sql.RawBytes); ok {
				for i := range *raw { // a caller's bytes are its own
					(*raw)[i] = 0xff
				}
			}
		}
	}
	fmt.Fprintln(&b, "end", describe(rows.Err()), describe(rows.Close()))
	return b.String()
}

// scan scans the row's only column. database/sql of Go 1.26 panics where a typed
// nil is no destination, and so with every driver.
func scan(rows *sql.Rows, dest any) (err error) {
	if v := reflect.ValueOf(dest); v.Kind() == reflect.Pointer && v.IsNil() && !scansColumns {
		return nil
	}
	return rows.Scan(dest)
}

// scansColumns: rows implement driver.RowsColumnScanner in this version of Go.
var scansColumns = func() bool {
	_, ok := reflect.TypeFor[*stdlib.Rows]().MethodByName("ScanColumn")
	return ok
}()

// render writes a value down, whatever is behind its pointers.
func render(b *strings.Builder, v reflect.Value) {
	if !v.IsValid() {
		b.WriteString("nil")
		return
	}
	if v.CanInterface() {
		switch x := v.Interface().(type) {
		case time.Time:
			fmt.Fprintf(b, "time %s %s", x.Format(time.RFC3339Nano), x.Location())
			return
		case *big.Int:
			fmt.Fprintf(b, "big %s", x)
			return
		case driver.Value:
			if s, ok := x.([]byte); ok {
				fmt.Fprintf(b, "%T %q nil=%v", x, s, s == nil)
				return
			}
		}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			fmt.Fprintf(b, "%v nil", v.Type())
			return
		}
		b.WriteByte('&')
		render(b, v.Elem())
	case reflect.Struct:
		fmt.Fprintf(b, "%v{", v.Type())
		for i := range v.NumField() {
			render(b, v.Field(i))
			b.WriteByte(' ')
		}
		b.WriteByte('}')
	case reflect.Slice, reflect.Array:
		fmt.Fprintf(b, "%v", v.Type())
		if v.Kind() == reflect.Slice && v.IsNil() {
			b.WriteString(" nil")
			return
		}
		b.WriteByte('[')
		for i := range v.Len() {
			render(b, v.Index(i))
			b.WriteByte(' ')
		}
		b.WriteByte(']')
	case reflect.Map:
		fmt.Fprintf(b, "%v", v.Type())
		keys := v.MapKeys()
		sort.Slice(keys, func(i, j int) bool { return keys[i].String() < keys[j].String() })
		for _, k := range keys {
			fmt.Fprintf(b, " %q:", k.String())
			render(b, v.MapIndex(k))
		}
	case reflect.Float32, reflect.Float64:
		fmt.Fprintf(b, "%v %s", v.Type(), strconv.FormatFloat(v.Float(), 'g', -1, 64))
	case reflect.String:
		fmt.Fprintf(b, "%v %q", v.Type(), v.String())
	default:
		fmt.Fprintf(b, "%v %v", v.Type(), v)
	}
}

// answers are what pgx gives for a query, line by line. Where a type and a
// destination do not go together pgx goes through a map to find a way, so that its
// answer is one of several: each is right.
type answers struct {
	ask func() string

	mu    sync.Mutex // guards what follows
	lines []map[string]bool
	times int
}

// mostAnswers bounds how often pgx is asked for an answer that it has not given.
const mostAnswers = 60

// repeat asks once more.
func (a *answers) repeat() {
	a.times++
	for i, line := range strings.Split(a.ask(), "\n") {
		if i == len(a.lines) {
			a.lines = append(a.lines, make(map[string]bool))
		}
		a.lines[i][line] = true
	}
}

// differ returns the first line that pgx does not give, and what it gives.
func (a *answers) differ(got string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	lines := strings.Split(got, "\n")
	for i, line := range lines {
		for i < len(a.lines) && !a.lines[i][line] && a.times < mostAnswers {
			a.repeat()
		}
		if i >= len(a.lines) || !a.lines[i][line] {
			want := []string{"(nothing)"}
			if i < len(a.lines) {
				want = slices.Sorted(maps.Keys(a.lines[i]))
			}
			return fmt.Sprintf("flightpg: %.500s\npgx:      %.500s", line, strings.Join(want, "\n      or: "))
		}
	}
	if len(lines) < len(a.lines) {
		return fmt.Sprintf("flightpg: %d lines; pgx: %d", len(lines), len(a.lines))
	}
	return ""
}
