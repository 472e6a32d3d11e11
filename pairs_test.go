package flightpg

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// These files are behind gate_test.go in the order of their names, in which tests run:
// the names of prepared statements, which TestGate counts, grow with their number.

// argCasts are the types of the parameters. A type in front of "=" is not registered
// with pgx.
var argCasts = strings.Fields(`
	text varchar name bpchar "char" bytea int2 int4 int8 oid numeric float4 float8 bool uuid
	timestamptz timestamp date time timetz interval inet cidr macaddr macaddr8 json jsonb xml jsonpath
	int2[] int4[] int8[] text[] varchar[] bytea[] uuid[] bool[] float8[] numeric[] timestamptz[] date[] inet[] json[] jsonb[] xml[]
	int4range int8range numrange tstzrange int4multirange int4range[] point box path polygon line lseg circle
	varbit bit(5) tid tsvector tsquery pg_lsn money xid8 mood mood[] pair pair[] positive unknown_mood unknown_pair
	hstore hstore[]`)

const argTypes = `
	CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
	CREATE TYPE unknown_mood AS ENUM ('sad', 'ok', 'happy');
	CREATE DOMAIN positive AS int CHECK (VALUE > 0);
	CREATE TYPE pair AS (n int, mood mood);
	CREATE TYPE unknown_pair AS (n int, t text);
	CREATE TABLE held (n int);
	INSERT INTO held VALUES (1);
`

var argRegistered = []string{"mood", "_mood", "pair", "_pair"}

// argServer is a database with types of its own, and what pgx knows of its types.
type argServer struct {
	dsn   string
	types *pgtype.Map
	casts []argCast
}

type argCast struct {
	name string
	oid  uint32
}

// registerArgTypes is a Config.AfterConnect.
func registerArgTypes(ctx context.Context, conn *pgx.Conn) error {
	types, err := conn.LoadTypes(ctx, argRegistered)
	if err != nil {
		return err
	}
	conn.TypeMap().RegisterTypes(types)
	var oid, array uint32
	if err := conn.QueryRow(ctx, "SELECT oid, typarray FROM pg_type WHERE typname = 'hstore' AND typtype = 'b'").Scan(&oid, &array); err == nil {
		hstore := &pgtype.Type{Name: "hstore", OID: oid, Codec: pgtype.HstoreCodec{}}
		conn.TypeMap().RegisterType(hstore)
		conn.TypeMap().RegisterType(&pgtype.Type{Name: "_hstore", OID: array, Codec: &pgtype.ArrayCodec{ElementType: hstore}})
	}
	return nil
}

func newArgServer(t *testing.T) *argServer {
	t.Helper()
	s := &argServer{dsn: pgtest.Database(t)}
	conn, err := pgx.Connect(t.Context(), s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), argTypes); err != nil {
		t.Fatal(err)
	}
	casts := argCasts
	if _, err := conn.Exec(t.Context(), "CREATE EXTENSION hstore"); err != nil {
		t.Logf("without hstore: %v", err)
		casts = slices.DeleteFunc(slices.Clone(casts), func(c string) bool { return strings.HasPrefix(c, "hstore") })
	}
	if err := registerArgTypes(t.Context(), conn); err != nil {
		t.Fatal(err)
	}
	for _, cast := range casts {
		sd, err := conn.PgConn().Prepare(t.Context(), "", "SELECT $1::"+cast, nil)
		if err != nil {
			t.Fatalf("%s: %v", cast, err)
		}
		s.casts = append(s.casts, argCast{cast, sd.ParamOIDs[0]})
	}
	s.types = conn.TypeMap()
	return s
}

var argModes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
}

// argSide makes the keys and the bytes of arguments.
type argSide struct {
	server     *argServer
	types      *pgtype.Map
	uses       int
	connectors map[pgx.QueryExecMode]*Connector
}

func newArgSide(s *argServer) *argSide {
	side := &argSide{server: s, connectors: make(map[pgx.QueryExecMode]*Connector)}
	for _, mode := range argModes {
		pc := defaultConfig().Copy()
		pc.DefaultQueryExecMode = mode
		c := &Connector{source: &source{config: pc}}
		c.types.Store(plainTypes)
		side.connectors[mode] = c
	}
	return side
}

// typeMap returns pgx's type map. It remembers a plan for each Go type that it has
// seen, so there is a new one now and then.
func (s *argSide) typeMap() *pgtype.Map {
	if s.uses--; s.types == nil || s.uses < 0 {
		s.types, s.uses = s.server.types.Copy(), 4000
	}
	return s.types
}

// wireForm is what leaves for the server: the parameters, NULL being nil.
type wireForm struct {
	options []any // the result formats
	formats []int16
	values  [][]byte
	err     error // pgx's refusal
}

// encoded returns what pgx makes of arguments, options among them.
func (s *argSide) encoded(mode pgx.QueryExecMode, oids []uint32, args []any) (w wireForm) {
	defer func() {
		if p := recover(); p != nil {
			w.err = fmt.Errorf("panic: %v", p)
		}
	}()
	for len(args) > 0 && isOption(args[0]) {
		if m, ok := args[0].(pgx.QueryExecMode); ok {
			mode = m
		} else {
			w.options = append(w.options, args[0])
		}
		args = args[1:]
	}
	m := s.typeMap()
	var eqb pgx.ExtendedQueryBuilder
	switch mode {
	case pgx.QueryExecModeExec:
		w.err = eqb.Build(m, nil, args)
	case pgx.QueryExecModeSimpleProtocol:
		for _, a := range args {
			v, err := m.Encode(0, pgtype.TextFormatCode, a, []byte{})
			if err != nil {
				w.err = err
				return w
			}
			w.values = append(w.values, v)
		}
		return w
	default:
		w.err = eqb.Build(m, &pgconn.StatementDescription{ParamOIDs: oids}, args)
	}
	w.formats = eqb.ParamFormats
	for _, v := range eqb.ParamValues {
		w.values = append(w.values, bytes.Clone(v))
	}
	return w
}

func (w wireForm) equal(o wireForm) bool {
	return (w.err != nil) == (o.err != nil) && (w.err != nil ||
		slices.Equal(w.formats, o.formats) && slices.EqualFunc(w.values, o.values, sameParam))
}

// sameForm reports whether two argument lists are the same to pgx for what neither list
// has to do with: the order in which it goes through a map, and what its type map has
// encoded before, which decides between two forms of some values.
func (s *argSide) sameForm(mode pgx.QueryExecMode, oids []uint32, a, b []any) bool {
	maps := hasMap(reflect.ValueOf(a), 0)
	for range 64 {
		s.types = nil
		x := s.encoded(mode, oids, a)
		s.types = nil
		y := s.encoded(mode, oids, b)
		if s.types = nil; x.equal(y) {
			return true
		}
		if !maps || x.err != nil || y.err != nil || !slices.Equal(x.formats, y.formats) {
			return false
		}
		// Of two maps that are equal, ranges may never have the same order.
		if x.reordered(y) {
			return true
		}
	}
	return false
}

// reordered reports whether two forms are of the same bytes, in another order.
func (w wireForm) reordered(o wireForm) bool {
	return slices.Equal(w.formats, o.formats) && slices.EqualFunc(w.values, o.values, func(a, b []byte) bool {
		x, y := bytes.Clone(a), bytes.Clone(b)
		slices.Sort(x)
		slices.Sort(y)
		return bytes.Equal(x, y) && (a == nil) == (b == nil)
	})
}

func hasMap(v reflect.Value, depth int) bool {
	if !v.IsValid() || depth > 10 {
		return false
	}
	switch v.Kind() {
	case reflect.Map:
		return v.Len() > 1
	case reflect.Pointer, reflect.Interface:
		return hasMap(v.Elem(), depth+1)
	case reflect.Slice, reflect.Array:
		for i := range min(v.Len(), 100) {
			if hasMap(v.Index(i), depth+1) {
				return true
			}
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if hasMap(v.Field(i), depth+1) {
				return true
			}
		}
	}
	return false
}

func sameParam(a, b []byte) bool { return bytes.Equal(a, b) && (a == nil) == (b == nil) }

func (w wireForm) String() string {
	if w.err != nil {
		return "refused: " + w.err.Error()
	}
	return fmt.Sprintf("%v %q", w.formats, w.values)
}

// outcome is what becomes of a call's arguments.
type outcome struct {
	text    string
	key     string
	why     Reason
	args    []any // as the caller's query has them, converted
	form    wireForm
	refused bool     // when converted
	found   []string // what is wrong with it
}

// addresses are printed by pgx's errors; a copy has others.
var addresses = regexp.MustCompile(`0x[0-9a-f]{6,}`)

func withoutAddresses(err error) string { return addresses.ReplaceAllString(fmt.Sprint(err), "0x") }

// of returns what becomes of the arguments that make makes, which it may change.
func (s *argSide) of(mode pgx.QueryExecMode, text string, oids []uint32, args []any, named bool) (o outcome) {
	// pgx first: what it makes of the arguments as they are.
	native := args
	o.text = text
	if named {
		na := pgx.NamedArgs{}
		options := 0
		for options < len(args) && isOption(args[options]) {
			options++
		}
		for i, a := range args[options:] {
			na["p"+strconv.Itoa(i+1)] = a
		}
		text = strings.ReplaceAll(text, "$", "@p")
		rewritten, values, err := na.RewriteQuery(context.Background(), nil, text, nil)
		if err != nil {
			panic(err)
		}
		native = append(slices.Clone(args[:options]), values...)
		args = append(slices.Clone(args[:options]), na)
		o.text = rewritten
	}
	o.form = s.encoded(mode, oids, native)

	r := &read{via: viaQuery, v: new(verdict)}
	r.v.params.Store(&oids)
	r.query, r.args = positional(text, namedValues(args))
	if r.query != o.text {
		o.found = append(o.found, fmt.Sprintf("the query is %q; pgx has %q", r.query, o.text))
	}
	var key []byte
	func() {
		defer func() {
			if p := recover(); p != nil {
				o.why = ReasonArgument
				if o.form.err == nil || !strings.HasPrefix(o.form.err.Error(), "panic") {
					o.found = append(o.found, fmt.Sprintf("flightpg panics: %v", p))
				}
			}
		}()
		c := s.connectors[mode]
		key, o.why = new(keying).appendKey(nil, r.via, "", r.args)
		if o.why == reasonConvert {
			key, o.why = c.convertedKey(context.Background(), key[:0], r, keying{})
		}
	}()
	o.key = string(key)
	for _, a := range r.args {
		o.args = append(o.args, a.Value)
	}
	if o.why != ReasonNone {
		if r.converted { // they are sent instead of the caller's
			if sent := s.encoded(mode, oids, o.args); !sent.equal(o.form) && !s.sameForm(mode, oids, native, o.args) {
				o.found = append(o.found, fmt.Sprintf("bypassed as %v; pgx has %v", sent, o.form))
			}
		}
		return o
	}
	switch sent := s.encoded(mode, oids, o.args); {
	case sent.err != nil && r.converted: // the caller's query has his own
		o.refused = true
	case !sent.equal(o.form) && !s.sameForm(mode, oids, native, o.args):
		o.found = append(o.found, fmt.Sprintf("sent as %v; pgx has %v", sent, o.form))
	case sent.err != nil && o.form.err != nil && withoutAddresses(sent.err) != withoutAddresses(o.form.err) && !s.sameRefusal(mode, oids, native, o.args):
		o.found = append(o.found, fmt.Sprintf("refused: %v; by pgx: %v", sent.err, o.form.err))
	}
	return o
}

// copied checks a copy of the arguments, while their owner does as he likes.
func (s *argSide) copied(o *outcome, mode pgx.QueryExecMode, oids []uint32, owners []any, again func() []any) {
	c := copyArgs(namedValues(o.args))
	if key, why := new(keying).appendKey(nil, viaQuery, "", c); string(key) != o.key || why != ReasonNone {
		o.found = append(o.found, fmt.Sprintf("the copy has another key: %q, %v", key, why))
	}
	values := make([]any, len(c))
	for i := range c {
		values[i] = c[i].Value
	}
	for _, a := range owners {
		scribble(reflect.ValueOf(a), 0)
	}
	if sent := s.encoded(mode, oids, values); !sent.equal(o.form) && !s.sameForm(mode, oids, again(), values) {
		o.found = append(o.found, fmt.Sprintf("the copy is sent as %v; pgx has %v", sent, o.form))
	}
}

// argKinds is the stated list: why arguments that are the same on the wire have
// different keys, or none.
var argKinds = map[string]string{
	"another Go type":                       "pgx chooses the wire form by it",
	"other options":                         "they choose the protocol and the formats of the result",
	"converted or not":                      "what a Valuer returned goes another way through pgx than the same value",
	"nil pointer or NULL":                   "NULL of different Go types",
	"time: instant":                         "the parameter's type keeps less of a time: microseconds, a day, an hour, or nothing",
	"time: offset":                          "the parameter's type is an instant, or the text that shows it is somewhere else",
	"time: zone's abbreviation":             "only parameters of text types print it",
	"time: monotonic reading":               "only parameters of text types print it",
	"time: location's name":                 "inside another type, which may print it",
	"float: NaN's bits":                     "a key has floats by their bits",
	"float: sign of zero":                   "a key has floats by their bits",
	"float: digits":                         "the parameter's type keeps less of them",
	"number: representation":                "numbers with other scales, precisions, rounding modes or weights",
	"duration below a microsecond":          "an interval keeps microseconds",
	"fields of NULL":                        "a value that is not Valid may hold anything",
	"fields beside infinity or NaN":         "a value that is infinite or no number may hold anything",
	"bounds of an open range":               "a bound that is unbounded, or of an empty range, may hold anything",
	"IP address: form":                      "4 or 16 bytes, a zone, a mask or prefix that is none",
	"nil or empty":                          "they are different to most parameters, but not to this one",
	"bytes beyond the type":                 "pgx takes the first 16 for a UUID, and as many as there are; the first 6 for a macaddr",
	"method that tells less":                "String, MarshalText, MarshalJSON of the value tell less than its fields",
	"not shown in JSON or XML":              "fields or strings that the encoders leave out or replace",
	"field of a composite":                  "pgx encodes as many fields as the composite has",
	"beyond an array's dimensions":          "what its dimensions leave out: Valid and elements of a pgtype.Array, lists of lists that are ragged",
	"bits beyond the length":                "the rest of the last byte, and bytes after it",
	"text that pgx reads for the parameter": "where a Valuer returns a text and pgx sends a value, two texts may be one value",
	"number beyond the type":                "an integer as a float, which has fewer digits, or as a single byte",
	"no key: any":                           "an interface may hold what has no identity",
	"no key: list of lists of Valuers":      "pgx takes apart slices of slices only, and none that is nil inside",
	"no key: refused when converted":        "pgx gets what the caller has, from each",
	"no key: list that prints itself":       "pgx may send what it prints",
	"no key: nil behind a pointer":          "pgx panics, or looks whether it would take the type",
	"no key: unexported fields":             "their owner may be changing them",
	"no key: Valuers inside":                "composites, maps and JSON of Valuers, which pgx asks at each place",
	"no key: list of Valuers":               "in modes and for parameters that do not take it one by one",
	"no key: pgx's own interfaces":          "the type tells pgx its value in another way than by Value",
	"no key: recursive":                     "a type that contains itself",
	"no key: elements of no size":           "there may be very many",
	"no key: a value pgx asks again":        "a Valuer in a Valuer in a Valuer",
	"no key: function or channel":           "and complex numbers",
}

// comparison tells two arguments apart.
type comparison struct {
	casts []string
	kinds map[string]bool
}

func (c *comparison) say(kind string) { c.kinds[kind] = true }

// valued stands for a Valuer around what it has returned.
type valued struct{}

var valuedType = reflect.TypeFor[valued]()

// values compares what is sent. in are the structs, lists and pointers around it.
func (c *comparison) values(a, b reflect.Value, in []reflect.Value) {
	for a.IsValid() && a.Kind() == reflect.Interface {
		a = a.Elem()
	}
	for b.IsValid() && b.Kind() == reflect.Interface {
		b = b.Elem()
	}
	switch {
	case !a.IsValid() && !b.IsValid():
		return
	case !a.IsValid() || !b.IsValid():
		c.say("nil pointer or NULL")
		return
	}
	x, xConverted := a.Interface().(converted)
	y, yConverted := b.Interface().(converted)
	if xConverted && yConverted {
		c.values(reflect.ValueOf(x.value), reflect.ValueOf(y.value), append(slices.Clone(in), reflect.ValueOf(valued{})))
		return
	}
	if xConverted != yConverted {
		c.say("converted or not")
		return
	}
	if a.Type() != b.Type() {
		c.say("another Go type")
		return
	}
	if c.context(a, b, in) {
		return
	}
	if (ragged(a) || ragged(b)) && !reflect.DeepEqual(a.Interface(), b.Interface()) {
		c.say("beyond an array's dimensions")
		return
	}
	switch x := a.Interface().(type) {
	case time.Time:
		c.times(x, b.Interface().(time.Time), len(in) > 0)
		return
	case netip.Addr, netip.Prefix:
		if x != b.Interface() {
			c.say("IP address: form")
		}
		return
	case net.IP:
		if string(x) != string(b.Interface().(net.IP)) || (x == nil) != b.IsNil() {
			c.say("IP address: form")
		}
		return
	case net.IPMask:
		if !bytes.Equal(x, b.Interface().(net.IPMask)) || (x == nil) != b.IsNil() {
			c.say("IP address: form")
		}
		return
	case *big.Int:
		y := b.Interface().(*big.Int)
		if (x == nil) != (y == nil) || x != nil && x.Cmp(y) != 0 {
			c.say("number: representation")
		}
		return
	case *big.Rat:
		y := b.Interface().(*big.Rat)
		if (x == nil) != (y == nil) || x != nil && x.Cmp(y) != 0 {
			c.say("number: representation")
		}
		return
	case *big.Float:
		y := b.Interface().(*big.Float)
		if (x == nil) != (y == nil) || x != nil && fmt.Sprintf("%v %v %v %v", x, x.Prec(), x.Mode(), x.Acc()) != fmt.Sprintf("%v %v %v %v", y, y.Prec(), y.Mode(), y.Acc()) {
			c.say("number: representation")
		}
		return
	}
	in = append(in, a)
	switch a.Kind() {
	case reflect.Pointer:
		if a.IsNil() || b.IsNil() {
			if a.IsNil() != b.IsNil() {
				c.say("nil pointer or NULL")
			}
			return
		}
		c.values(a.Elem(), b.Elem(), in)
	case reflect.Slice, reflect.Map:
		if a.IsNil() != b.IsNil() {
			c.say("nil or empty")
			return
		}
		if a.Kind() == reflect.Map {
			c.maps(a, b, in)
			return
		}
		if a.Type().Elem().Kind() == reflect.Uint8 {
			if !bytes.Equal(a.Bytes(), b.Bytes()) {
				c.unequal(a, b, in)
			}
			return
		}
		if a.Len() != b.Len() {
			c.unequal(a, b, in)
			return
		}
		fallthrough
	case reflect.Array:
		for i := range a.Len() {
			c.values(a.Index(i), b.Index(i), in)
		}
	case reflect.Struct:
		for i := range a.NumField() {
			if a.Type().Field(i).IsExported() {
				if a.Type().Field(i).Tag.Get("json") == "-" {
					if !a.Field(i).Equal(b.Field(i)) {
						c.say("not shown in JSON or XML")
					}
					continue
				}
				c.values(a.Field(i), b.Field(i), in)
			}
		}
	case reflect.Float32, reflect.Float64:
		x, y := a.Float(), b.Float()
		switch {
		case math.Float64bits(x) == math.Float64bits(y):
		case math.IsNaN(x) && math.IsNaN(y):
			c.say("float: NaN's bits")
		case x == 0 && y == 0:
			c.say("float: sign of zero")
		default:
			c.say("float: digits")
		}
	default:
		if !a.Equal(b) {
			c.unequal(a, b, in)
		}
	}
}

// context says what two structs differ in if it is hidden by what they are.
func (c *comparison) context(a, b reflect.Value, _ []reflect.Value) bool {
	if a.Kind() != reflect.Struct || reflect.DeepEqual(a.Interface(), b.Interface()) {
		return false
	}
	both := func(name string, hidden func(reflect.Value) bool) bool {
		x, y := a.FieldByName(name), b.FieldByName(name)
		return x.IsValid() && hidden(x) && hidden(y)
	}
	switch {
	case both("Valid", func(v reflect.Value) bool { return !v.Bool() }):
		c.say("fields of NULL")
	case a.Type().PkgPath() != pgtypePath:
		return false
	case both("NaN", reflect.Value.Bool), both("InfinityModifier", func(v reflect.Value) bool { return !v.IsZero() }):
		c.say("fields beside infinity or NaN")
	case both("LowerType", func(v reflect.Value) bool { return pgtype.BoundType(v.Uint()) == pgtype.Empty }),
		both("UpperType", func(v reflect.Value) bool { return pgtype.BoundType(v.Uint()) == pgtype.Empty }),
		both("LowerType", func(v reflect.Value) bool { return pgtype.BoundType(v.Uint()) == pgtype.Unbounded }),
		both("UpperType", func(v reflect.Value) bool { return pgtype.BoundType(v.Uint()) == pgtype.Unbounded }),
		emptyRange(a) && emptyRange(b):
		c.say("bounds of an open range")
	case strings.HasPrefix(a.Type().Name(), "Array["):
		x, y := a.FieldByName("Dims"), b.FieldByName("Dims")
		if x.Len() > 0 && x.Len() == y.Len() && a.FieldByName("Elements").Len() == b.FieldByName("Elements").Len() && a.FieldByName("Valid").Equal(b.FieldByName("Valid")) {
			return false
		}
		c.say("beyond an array's dimensions")
	case a.Type() == reflect.TypeFor[pgtype.Bits]() && a.FieldByName("Len").Equal(b.FieldByName("Len")):
		c.say("bits beyond the length")
	case a.Type() == reflect.TypeFor[pgtype.Numeric]():
		c.say("number: representation")
	default:
		return false
	}
	return true
}

func emptyRange(v reflect.Value) bool {
	for _, name := range []string{"LowerType", "UpperType"} {
		if f := v.FieldByName(name); f.IsValid() && pgtype.BoundType(f.Uint()) == pgtype.Empty {
			return true
		}
	}
	return false
}

// cast reports whether one of the parameters has a type of that kind.
func (c *comparison) cast(part string) bool {
	return slices.ContainsFunc(c.casts, func(cast string) bool { return strings.Contains(cast, part) })
}

// ragged reports whether a list of lists has nothing in one of its lists, or not as many
// in each. pgx looks at the first ones, if it does not refuse it.
func ragged(v reflect.Value) bool {
	if v.Kind() != reflect.Slice || v.Type().Elem().Kind() != reflect.Slice {
		return false
	}
	for i := range v.Len() {
		if n := v.Index(i).Len(); n == 0 || n != v.Index(0).Len() || ragged(v.Index(i)) {
			return true
		}
	}
	return v.Len() == 0
}

func (c *comparison) times(x, y time.Time, inside bool) {
	nameX, offsetX := x.Zone()
	nameY, offsetY := y.Zone()
	if !x.Equal(y) && !x.Round(0).Equal(y.Round(0)) {
		c.say("time: instant")
	}
	if offsetX != offsetY {
		c.say("time: offset")
	}
	if nameX != nameY {
		c.say("time: zone's abbreviation")
	}
	if (x == x.Round(0)) != (y == y.Round(0)) || x.Sub(y) != x.Round(0).Sub(y.Round(0)) {
		c.say("time: monotonic reading")
	}
	if inside && x.Location().String() != y.Location().String() {
		c.say("time: location's name")
	}
}

func (c *comparison) maps(a, b reflect.Value, in []reflect.Value) {
	if a.Len() != b.Len() {
		c.unequal(a, b, in)
		return
	}
	for _, k := range a.MapKeys() {
		if v := b.MapIndex(k); v.IsValid() {
			c.values(a.MapIndex(k), v, in)
		} else {
			c.unequal(a, b, in)
		}
	}
}

// unequal says why parts that differ are the same on the wire.
func (c *comparison) unequal(a, b reflect.Value, in []reflect.Value) {
	for _, t := range append(slices.Clone(in), a) {
		switch t.Type() {
		case reflect.TypeFor[argGrade](), reflect.TypeFor[argLabel](), reflect.TypeFor[argShout](), reflect.TypeFor[argPair](), reflect.TypeFor[argTitles]():
			c.say("method that tells less")
			return
		}
	}
	inValuer := slices.ContainsFunc(in, func(v reflect.Value) bool { return v.Type() == valuedType || v.Type().Implements(valuerType) })
	isBytes := (a.Kind() == reflect.Slice || a.Kind() == reflect.Array) && a.Type().Elem().Kind() == reflect.Uint8
	switch {
	case inValuer && (a.Kind() == reflect.String || !c.cast("float")):
		c.say("text that pgx reads for the parameter")
	case a.Type() == reflect.TypeFor[time.Duration]():
		c.say("duration below a microsecond")
	case (a.CanInt() || a.CanUint()) && (c.cast("float") || c.cast("char")):
		c.say("number beyond the type")
	case isBytes && (c.cast("uuid") || c.cast("macaddr")):
		c.say("bytes beyond the type")
	case c.cast("pair"):
		c.say("field of a composite")
	case c.cast("xml"), c.cast("json") && a.Kind() == reflect.String:
		c.say("not shown in JSON or XML")
	default:
		around := ""
		for _, v := range in {
			around += v.Type().String() + " > "
		}
		c.say(fmt.Sprintf("%v %s%v %#v and %#v", c.casts, around, a.Type(), a, b))
	}
}

// noKey says why an argument that pgx takes has no key.
func noKey(v reflect.Value, listsOK bool, depth int) string {
	if !v.IsValid() {
		return ""
	}
	t := v.Type()
	for p := v; p.Kind() == reflect.Pointer && !p.IsNil(); p = p.Elem() {
		if e := p.Elem(); e.Kind() == reflect.Pointer && e.IsNil() && planOf(t).convert == convertPointer {
			return "no key: nil behind a pointer"
		}
	}
	if x, ok := v.Interface().(converted); ok {
		if why := noKey(reflect.ValueOf(x.value), listsOK, depth+1); why != "" {
			return why
		}
		if depth >= maxValuers {
			return "no key: a value pgx asks again"
		}
		return ""
	}
	return noKeyType(t, listsOK, nil)
}

func noKeyType(t reflect.Type, listsOK bool, in []reflect.Type) string {
	if slices.Contains(in, t) {
		return "no key: recursive"
	}
	switch {
	case t == timeType, t == addrType, t == prefixType, t == intType, t == ratType, t == floatType, t == convertedType:
		return ""
	case t.Kind() == reflect.Interface:
		return "no key: any"
	case !trusted(t) && asksItsOwnWay(t):
		return "no key: pgx's own interfaces"
	case !trusted(t) && t.Implements(valuerType) && len(in) > 0:
		for _, around := range in {
			if around.Kind() == reflect.Struct || around.Kind() == reflect.Map {
				return "no key: Valuers inside"
			}
		}
		lists := 0
		for _, around := range in {
			if k := around.Kind(); k == reflect.Slice || k == reflect.Array {
				lists++
				if around.Implements(stringerType) {
					return "no key: list that prints itself"
				}
			}
		}
		switch {
		case !listsOK:
			return "no key: list of Valuers"
		case lists > 1:
			return "no key: list of lists of Valuers"
		}
		return ""
	}
	in = append(slices.Clone(in), t)
	switch t.Kind() {
	case reflect.Chan, reflect.Func, reflect.Complex64, reflect.Complex128:
		return "no key: function or channel"
	case reflect.Slice, reflect.Array, reflect.Pointer:
		if t.Kind() != reflect.Pointer && t.Elem().Size() == 0 {
			return "no key: elements of no size"
		}
		return noKeyType(t.Elem(), listsOK, in)
	case reflect.Map:
		if why := noKeyType(t.Key(), listsOK, in); why != "" {
			return why
		}
		return noKeyType(t.Elem(), listsOK, in)
	case reflect.Struct:
		for i := range t.NumField() {
			if !t.Field(i).IsExported() {
				return "no key: unexported fields"
			}
			if why := noKeyType(t.Field(i).Type, listsOK, in); why != "" {
				return why
			}
		}
	}
	return ""
}

// argPairs returns how many pairs TestArguments makes. `make arguments` makes a million.
func argPairs(t *testing.T) int {
	n := 30_000
	if smallest > scalarSize { // under the race detector
		n = 6_000
	}
	if v := os.Getenv("FLIGHTPG_ARGUMENTS"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil {
			t.Fatalf("FLIGHTPG_ARGUMENTS: %v", err)
		}
	}
	return n
}

func argSeed(t *testing.T) uint64 {
	seed := uint64(1)
	if v := os.Getenv("FLIGHTPG_SEED"); v != "" {
		var err error
		if seed, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("FLIGHTPG_SEED: %v", err)
		}
	}
	return seed
}

// recipe makes a list of arguments, the same ones at each call.
type recipe struct {
	seed    uint64
	change  int // of one argument: none, a part, the type
	again   uint64
	world   int64
	options uint64
}

const (
	changeNothing = iota
	changePart
	changeType
	changeOptions
	changeWorld
	changesAll
)

func (rc recipe) args(start time.Time) []any {
	argWorld = rc.world
	g := &argMaker{rand.New(rand.NewPCG(rc.seed, 1)), start}
	args := make([]any, 1+g.r.IntN(7)/6)
	for i := range args {
		if g.r.IntN(50) > 0 {
			args[i] = g.value(g.pick(), 0).Interface()
		}
	}
	g.r = rand.New(rand.NewPCG(rc.again, 2))
	i := g.r.IntN(len(args))
	switch rc.change {
	case changePart:
		args[i] = g.changed(args[i])
	case changeType:
		args[i] = g.retyped(args[i])
	}
	g.r = rand.New(rand.NewPCG(rc.options, 3))
	return append(g.options(), args...)
}

// TestArguments makes pairs of argument lists that are alike, as they are or with a
// small change, for parameters of many types in all of pgx's modes. If two lists have
// one key, pgx sends the same bytes for both; and if it sends the same bytes for both,
// they have one key, but for the reasons of a list. What flightpg sends for a list, or a
// copy of it that is taken while the owner changes his own, is what pgx sends.
func TestArguments(t *testing.T) {
	server := newArgServer(t)
	pairs, seed := argPairs(t), argSeed(t)
	t.Logf("%d pairs, FLIGHTPG_SEED=%d, %d types of parameters, %d and more of arguments", pairs, seed, len(server.casts), len(scalarTypes)+len(otherTypes))
	side := newArgSide(server)
	start := time.Now()
	r := rand.New(rand.NewPCG(seed, 0))
	counts := make(map[string]int)
	failures := 0
	fail := func(format string, args ...any) {
		t.Helper()
		if failures++; failures <= 30 {
			t.Errorf(format, args...)
		}
	}
	for n := 0; n < pairs; {
		first := recipe{seed: r.Uint64(), options: r.Uint64()}
		mode := argModes[r.IntN(len(argModes))]
		named := r.IntN(10) == 0
		var text string
		var casts []string
		var oids []uint32
		run := func(rc recipe) (outcome, string) {
			args := rc.args(start)
			shown := shownArgs(args)
			o := side.of(mode, text, oids, args, named)
			counts["lists"]++
			switch {
			case o.refused && o.form.err == nil:
				counts["lists that bypass since pgx refuses them converted"]++
			case o.why == ReasonNone && o.form.err == nil:
				counts["lists with a key"]++
				side.copied(&o, mode, oids, args, func() []any { return rc.args(start) })
			case o.form.err != nil:
				counts["lists that pgx refuses"]++
			default:
				counts["lists that bypass"]++
			}
			for _, what := range o.found {
				fail("%s, %s, %v, seed %+v: %s", shown, text, mode, rc, what)
			}
			return o, shown
		}
		// Types that take the arguments are worth more.
		var a outcome
		var shownA string
		for try := 0; ; try++ {
			args := first.args(start)
			casts, oids, text = nil, nil, "SELECT "
			for i := range args {
				if isOption(args[i]) {
					continue
				}
				c := server.casts[r.IntN(len(server.casts))]
				casts, oids = append(casts, c.name), append(oids, c.oid)
				if len(oids) > 1 {
					text += ", "
				}
				text += "$" + strconv.Itoa(len(oids)) + "::" + c.name
			}
			if a, shownA = run(first); a.form.err == nil || try == 5 || r.IntN(10) == 0 {
				break
			}
		}
		for change := range changesAll {
			second := recipe{seed: first.seed, change: change, again: r.Uint64(), options: first.options}
			switch change {
			case changeOptions:
				if r.IntN(10) > 0 {
					continue
				}
				second.options = r.Uint64()
			case changeWorld:
				if !strings.Contains(shownA, "argValLookup") {
					continue
				}
				second.world = 1
			}
			b, shownB := run(second)
			n++
			counts["pairs"]++
			sameKey := a.why == ReasonNone && b.why == ReasonNone && !a.refused && !b.refused && a.key == b.key && a.text == b.text
			sameForm := a.form.equal(b.form) && a.form.err == nil
			if sameKey {
				counts["pairs of one key"]++
				if !a.form.equal(b.form) {
					if second.world == first.world && side.sameForm(mode, oids, first.args(start), second.args(start)) {
						counts["pairs of one key, a map in two orders or encoded by another of pgx's plans"]++
						continue
					}
					fail("%s and %s have one key for %s, %v, seed %+v and %+v:\n%v\n%v", shownA, shownB, text, mode, first, second, a.form, b.form)
				}
				continue
			}
			if !sameForm {
				counts["pairs that differ on the wire, or are refused"]++
				continue
			}
			counts["pairs of the same bytes without a common key"]++
			kinds := whyApart(first.args(start), a, second.args(start), b, casts, mode, oids, side)
			for kind := range kinds {
				counts["because: "+kind]++
				if argKinds[kind] == "" {
					fail("%s and %s are the same for %s, %v, and have no common key: %q; seed %+v and %+v", shownA, shownB, text, mode, kind, first, second)
				}
			}
			if len(kinds) == 0 {
				fail("%s and %s are the same for %s, %v, and have no common key, for no reason; seed %+v and %+v", shownA, shownB, text, mode, first, second)
			}
		}
	}
	logCounts(t, counts)
	if failures > 0 {
		t.Errorf("%d failures", failures)
	}
}

func shownArgs(args []any) string {
	s := fmt.Sprintf("%#v", args)
	types := ""
	for _, a := range args {
		types += fmt.Sprintf("%T ", a)
	}
	return types + s[:min(len(s), 500)]
}

// whyApart says why two lists have no common key.
func whyApart(argsA []any, a outcome, argsB []any, b outcome, casts []string, mode pgx.QueryExecMode, oids []uint32, side *argSide) map[string]bool {
	c := &comparison{casts: casts, kinds: make(map[string]bool)}
	for _, o := range []struct {
		outcome
		args []any
	}{{a, argsA}, {b, argsB}} {
		if o.why == ReasonNone && !o.refused {
			continue
		}
		if o.refused {
			c.say("no key: refused when converted")
			return c.kinds
		}
		options := 0
		for _, v := range o.args {
			if isOption(v) {
				options++
				if m, ok := v.(pgx.QueryExecMode); ok {
					mode = m
				}
			}
		}
		for i, v := range o.args[options:] {
			lists := mode != pgx.QueryExecModeExec && mode != pgx.QueryExecModeSimpleProtocol && arrayOf(oids[i], false)
			if why := noKey(reflect.ValueOf(v), lists, 0); why != "" {
				c.say(why)
			}
		}
		return c.kinds
	}
	// What is sent: the outcomes' arguments may be scribbled on.
	x := side.of(mode, a.text, oids, argsA, false).args
	y := side.of(mode, b.text, oids, argsB, false).args
	skip := func(args []any) (options, rest []any) {
		for len(args) > 0 && isOption(args[0]) {
			options, args = append(options, args[0]), args[1:]
		}
		return options, args
	}
	optionsX, x := skip(x)
	optionsY, y := skip(y)
	if !reflect.DeepEqual(optionsX, optionsY) {
		c.say("other options")
	}
	for i := range x {
		c.values(reflect.ValueOf(x[i]), reflect.ValueOf(y[i]), nil)
	}
	return c.kinds
}

func logCounts(t *testing.T, counts map[string]int) {
	t.Helper()
	var b strings.Builder
	names := make([]string, 0, len(counts))
	for name := range counts {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&b, "%9d %s", counts[name], name)
		if why := argKinds[strings.TrimPrefix(name, "because: ")]; why != "" {
			fmt.Fprintf(&b, " (%s)", why)
		}
		b.WriteByte('\n')
	}
	t.Logf("\n%s", b.String())
}
