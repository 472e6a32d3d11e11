package judge

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// This file makes schemas at random, in which some functions are volatile and tell when
// they are called. closures_statements_test.go writes statements over them, and
// closures_test.go holds the judge to what the server does.

// A thing is what the generator knows of an object. Only the oracle looks at what is
// volatile.
type (
	aType struct {
		refs   []string // how statements may name it
		kind   byte     // b built-in, e enum, c composite, d domain, r range, m multirange
		lits   []string // what reads as a value of it
		base   *aType   // of a domain, the subtype of a range, the range of a multirange
		fields []aColumn
		sorts  bool // it can be compared
	}
	aColumn struct {
		ref string
		typ *aType
	}
	aFunction struct {
		refs []string
		args []*aType
		ret  *aType
		row  *aRelation // of which a row is the argument
		set  bool
	}
	anOperator struct {
		refs        []string
		left, right *aType // left is nil for a prefix operator
		ret         *aType
	}
	aCast struct {
		from, to *aType
		implicit bool
	}
	aRelation struct {
		refs    []string
		columns []aColumn
	}
)

// A world is a database.
type world struct {
	*rand.Rand
	t    *testing.T
	conn *pgx.Conn // of a superuser, who makes it

	share   int // so many functions in a hundred are volatile
	unsafe  map[uint32]bool
	made    []string // statements
	refused int

	types      []*aType
	functions  []*aFunction
	aggregates []*aFunction // of one argument
	ordered    []*aFunction
	operators  []*anOperator
	casts      []aCast
	relations  []*aRelation
	taken      map[string]bool

	// Of the statement that is being written.
	scope  []item
	params []string
	quiet  bool // no parameters
	depth  int  // of subqueries
}

// The built-in types.
var (
	tInt     = &aType{refs: []string{"int", "int4", "integer", "pg_catalog.int4"}, kind: 'b', lits: []string{"1", "2", "3"}, sorts: true}
	tText    = &aType{refs: []string{"text", "text", "pg_catalog.text", `"text"`}, kind: 'b', lits: []string{"a", "b", "ok"}, sorts: true}
	tBool    = &aType{refs: []string{"bool", "boolean"}, kind: 'b', lits: []string{"true", "false"}, sorts: true}
	tFloat   = &aType{refs: []string{"float8", "double precision"}, kind: 'b', lits: []string{"1.5", "2.5"}, sorts: true}
	tNumeric = &aType{refs: []string{"numeric", "decimal"}, kind: 'b', lits: []string{"1.25", "7"}, sorts: true}
	tDate    = &aType{refs: []string{"date"}, kind: 'b', lits: []string{"2026-01-02", "2026-03-04"}, sorts: true}
	tJSON    = &aType{refs: []string{"json"}, kind: 'b', lits: []string{`{"a": 1}`, "2"}}
	tJSONB   = &aType{refs: []string{"jsonb"}, kind: 'b', lits: []string{`{"a": 1}`, "[1, 2]"}, sorts: true}
	tPoint   = &aType{refs: []string{"point"}, kind: 'b', lits: []string{"(1,2)", "(3,4)"}}
	builtins = []*aType{tInt, tInt, tText, tText, tBool, tFloat, tNumeric, tDate, tJSON, tJSONB, tPoint}
)

func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// one reports whether something that happens once in n times happens.
func (w *world) one(n int) bool { return w.IntN(n) == 0 }

// closureSchemas are where objects are made; the last is not in search_path.
var closureSchemas = []string{"public", "app", `"Hid den"`}

// closureReset is run before each world. hit tells that it is called in two ways: the
// sequence counts, whatever becomes of the transaction.
const closureReset = `RESET ROLE; SET client_min_messages = warning;
	DROP SCHEMA public CASCADE; DROP SCHEMA IF EXISTS app CASCADE; DROP SCHEMA IF EXISTS "Hid den" CASCADE;
	CREATE SCHEMA public; CREATE SCHEMA app; CREATE SCHEMA "Hid den";
	SET search_path = public, app;
	CREATE SEQUENCE hits;
	CREATE FUNCTION hit() RETURNS int VOLATILE LANGUAGE plpgsql AS
		$$ BEGIN PERFORM nextval('public.hits'); RAISE WARNING 'hit'; RETURN 1; END $$`

// try makes something, and reports whether the server took it.
func (w *world) try(format string, args ...any) bool {
	sql := fmt.Sprintf(format, args...)
	_, err := w.conn.PgConn().Exec(w.t.Context(), sql).ReadAll()
	var pgErr *pgconn.PgError
	if err != nil && !errors.As(err, &pgErr) {
		w.t.Fatalf("%s: %v", sql, err)
	}
	if err != nil {
		w.refused++
		if verboseClosures {
			w.t.Logf("refused: %s: %v", sql, err)
		}
		return false
	}
	w.made = append(w.made, sql)
	return true
}

// oid returns a value that is an OID.
func (w *world) oid(sql string) uint32 {
	w.t.Helper()
	var n uint32
	if err := w.conn.QueryRow(w.t.Context(), sql).Scan(&n); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
	return n
}

// names are those of anything: in need of quotes or not, and those of columns,
// functions and types at once.
var (
	names     = []string{"mood", "Mood", "größe", "ключ", "order", "a b", `x"y`, "status", "value", "name", "total", "ItemKind", "area", "zone"}
	plainName = regexp.MustCompile(`^[a-zа-яäöüß_][a-z0-9а-яäöüß_]*$`)
)

// ident writes a name in one of the ways that mean it.
func (w *world) ident(name string) string {
	switch {
	case plainName.MatchString(name) && name != "order" && !w.one(6):
		if w.one(10) {
			return foldUp(name)
		}
		return name
	case w.one(8) && !strings.ContainsAny(name, `"\`):
		var b strings.Builder
		for _, r := range name {
			if r < 0x80 {
				b.WriteRune(r)
			} else {
				fmt.Fprintf(&b, `\%04X`, r)
			}
		}
		return `U&"` + b.String() + `"`
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// foldUp makes ASCII letters capitals: the server folds no others.
func foldUp(s string) string {
	return strings.Map(func(r rune) rune {
		if 'a' <= r && r <= 'z' {
			return r - 'a' + 'A'
		}
		return r
	}, s)
}

// refs makes up a name of one kind that nothing has, and returns how to write it, the
// qualified name first.
func (w *world) refs(kind string) []string {
	name := ""
	for i := 0; name == "" || w.taken[kind+name]; i++ {
		name = pick(w.Rand, names)
		if i > 2 || w.one(2) {
			name += "_" + strconv.Itoa(w.IntN(1000))
		}
	}
	w.taken[kind+name] = true
	return w.refsIn(w.schema(), name)
}

func (w *world) schema() int {
	switch w.IntN(10) {
	case 0:
		return 2
	case 1, 2, 3:
		return 1
	}
	return 0
}

func (w *world) refsIn(schema int, name string) []string {
	refs := []string{closureSchemas[schema] + "." + pgx.Identifier{name}.Sanitize(), closureSchemas[schema] + "." + w.ident(name)}
	if schema < 2 {
		refs = append(refs, w.ident(name), w.ident(name), w.ident(name), w.ident(name))
	}
	return refs
}

// anyType picks a type, a user's at least every second time.
func (w *world) anyType() *aType {
	if len(w.types) > 0 && w.one(2) {
		return pick(w.Rand, w.types)
	}
	return pick(w.Rand, builtins)
}

// makeWorld makes one in place of the last.
func makeWorld(t *testing.T, conn *pgx.Conn, r *rand.Rand, role string, shares []int) *world {
	t.Helper()
	run(t, conn, closureReset)
	// Casts between built-in types are in no schema.
	rows, err := conn.Query(t.Context(), `SELECT format('DROP CAST (%s AS %s)', castsource::regtype, casttarget::regtype) FROM pg_cast WHERE oid >= 16384`)
	if err != nil {
		t.Fatal(err)
	}
	drops, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	run(t, conn, strings.Join(drops, ";"))

	w := &world{Rand: r, t: t, conn: conn, unsafe: map[uint32]bool{}, taken: map[string]bool{"f\x00hit": true}, quiet: true}
	w.share = pick(r, shares)
	w.unsafe[w.oid("SELECT 'public.hit'::regproc::oid")] = true
	w.makeTypes()
	for range 6 + w.IntN(8) {
		w.makeFunction("", nil, nil, false)
	}
	w.makeDomains()
	w.makeRanges()
	w.makeOperators()
	w.makeCasts()
	w.makeClasses()
	w.makeAggregates()
	for range 3 + w.IntN(4) {
		w.makeTable()
	}
	w.makeRowFunctions()
	w.makePolicies()
	for range 3 + w.IntN(5) {
		w.makeFunction("", nil, nil, true)
	}
	for range 3 + w.IntN(3) {
		w.makeView()
	}
	for _, s := range closureSchemas {
		run(t, conn, "GRANT USAGE ON SCHEMA "+s+" TO "+role+"; GRANT ALL ON ALL TABLES IN SCHEMA "+s+" TO "+role+"; GRANT ALL ON ALL SEQUENCES IN SCHEMA "+s+" TO "+role)
	}
	w.try("SET statement_timeout = 1000; ANALYZE")
	run(t, conn, "RESET statement_timeout")
	w.quiet = false
	return w
}

func (w *world) makeTypes() {
	for range 1 + w.IntN(3) {
		t := &aType{refs: w.refs("t"), kind: 'e', lits: []string{"ok", "a", "b"}, sorts: true}
		if w.try("CREATE TYPE %s AS ENUM ('ok', 'a', 'b')", t.refs[0]) {
			w.types = append(w.types, t)
		}
	}
	for range w.IntN(3) {
		w.makeComposite()
	}
}

func (w *world) makeComposite() {
	t := &aType{refs: w.refs("t"), kind: 'c', sorts: true}
	lits, sql := [2][]string{}, []string{}
	for i := range 1 + w.IntN(2) {
		c := aColumn{[]string{"a", "b"}[i], w.anyType()}
		t.fields, sql = append(t.fields, c), append(sql, c.ref+" "+c.typ.refs[0])
		t.sorts = t.sorts && c.typ.sorts
		for j := range lits {
			lits[j] = append(lits[j], `"`+strings.NewReplacer(`"`, `""`, `\`, `\\`).Replace(pick(w.Rand, c.typ.lits))+`"`)
		}
	}
	for _, l := range lits {
		t.lits = append(t.lits, "("+strings.Join(l, ",")+")")
	}
	if w.try("CREATE TYPE %s AS (%s)", t.refs[0], strings.Join(sql, ", ")) {
		w.types = append(w.types, t)
	}
}

// body writes what a function of no columns does, and whether that is volatile.
func (w *world) body(ret *aType, reads bool) (sql string, unsafe bool) {
	if !reads { // or a policy would apply to what it reads
		relations := w.relations
		w.relations = nil
		defer func() { w.relations = relations }()
	}
	if !reads && w.one(3) || w.one(3) {
		sql = w.literal(ret)
	} else {
		sql = w.expr(ret, 2)
	}
	unsafe, ok := w.reaches("SELECT " + sql)
	if !ok {
		sql = w.literal(ret)
		unsafe, _ = w.reaches("SELECT " + sql)
	}
	return sql, unsafe
}

// volatile says whether the next function is one.
func (w *world) volatile() bool { return w.IntN(100) < w.share }

// makeFunction makes a function. What it returns and takes, and its name, are made up
// where they are not given. reads: it may read tables.
func (w *world) makeFunction(name string, args []*aType, ret *aType, reads bool) *aFunction {
	f := &aFunction{ret: ret, args: args}
	given := args != nil
	if !given {
		for range []int{0, 1, 1, 1, 1, 2, 2, 3}[w.IntN(8)] {
			f.args = append(f.args, w.anyType())
		}
	}
	if ret == nil {
		f.ret = w.anyType()
	}
	switch {
	case name != "":
		f.refs = w.refsIn(w.schema(), name)
	case w.one(12): // an overload of a built-in, or of another user's
		f.refs = w.refsIn(w.schema(), pick(w.Rand, []string{"lower", "abs", "max", "length", "id", "total", "status"}))
	default:
		f.refs = w.refs("f")
	}
	f.set = !given && ret == nil && w.one(8)
	if !w.define(f, reads, "") {
		return nil
	}
	if !given {
		w.functions = append(w.functions, f)
	}
	return f
}

// define creates a function with a body, and remembers whether that is volatile.
func (w *world) define(f *aFunction, reads bool, arg string) bool {
	types := make([]string, len(f.args))
	for i, a := range f.args {
		types[i] = a.refs[0]
	}
	if arg != "" {
		types = []string{arg}
	}
	signature := fmt.Sprintf("%s(%s)", f.refs[0], strings.Join(types, ", "))
	ret := f.ret.refs[0]
	if f.set {
		ret = "SETOF " + ret
	}
	sql, unsafe := w.body(f.ret, reads)
	declared := pick(w.Rand, []string{"STABLE", "IMMUTABLE"})
	hits := w.volatile()
	if hits && !w.one(4) {
		declared = "VOLATILE"
	}
	unsafe = unsafe || hits
	var body string
	switch w.IntN(3) {
	case 0:
		if hits {
			sql = fmt.Sprintf("CASE WHEN public.hit() > 0 THEN %s END", sql)
		}
		body = "LANGUAGE sql AS $body$SELECT " + sql + "$body$"
	case 1:
		if hits {
			sql = fmt.Sprintf("CASE WHEN public.hit() > 0 THEN %s END", sql)
		}
		body = "LANGUAGE sql BEGIN ATOMIC SELECT " + sql + "; END"
	default:
		perform, give := "", "RETURN "
		if hits {
			perform = "PERFORM public.hit(); "
		}
		if f.set {
			give = "RETURN NEXT "
		}
		body = "LANGUAGE plpgsql AS $body$ BEGIN " + perform + give + sql + "; END $body$"
	}
	if !w.try("CREATE FUNCTION %s RETURNS %s %s %s", signature, ret, declared, body) {
		return false
	}
	if unsafe {
		w.unsafe[w.oid("SELECT '"+strings.ReplaceAll(signature, "'", "''")+"'::regprocedure::oid")] = true
	}
	return true
}

// helper makes a function that something else is made of.
func (w *world) helper(ret *aType, args ...*aType) *aFunction {
	if args == nil {
		args = []*aType{}
	}
	return w.makeFunction("fn_"+strconv.Itoa(w.IntN(1_000_000)), args, ret, false)
}

func (w *world) makeDomains() {
	for range w.IntN(3) {
		t := &aType{refs: w.refs("t"), kind: 'd', base: w.anyType()}
		t.lits, t.sorts, t.fields = t.base.lits, t.base.sorts, t.base.fields
		check := ""
		if !w.one(3) {
			if f := w.helper(tBool, t.base); f != nil {
				check = fmt.Sprintf("CHECK (%s(VALUE) IS NOT NULL)", f.refs[0])
			}
		}
		if !w.try("CREATE DOMAIN %s AS %s %s", t.refs[0], t.base.refs[0], check) {
			continue
		}
		w.types = append(w.types, t)
		w.markType(t)
	}
	if w.one(2) {
		w.makeComposite()
	}
}

// markType remembers a domain whose checks are volatile.
func (w *world) markType(t *aType) {
	oid := w.oid("SELECT " + quote(t.refs[0]) + "::regtype::oid")
	rows, err := w.conn.Query(w.t.Context(), `SELECT conbin::text FROM pg_constraint WHERE contypid = $1
		UNION ALL SELECT ':resulttype ' || typbasetype FROM pg_type WHERE oid = $1`, oid)
	if err != nil {
		w.t.Fatal(err)
	}
	trees, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.t.Fatal(err)
	}
	if w.mentions(strings.Join(trees, " ")) {
		w.unsafe[oid] = true
	}
}

func (w *world) makeRanges() {
	if w.one(2) {
		return
	}
	sub := pick(w.Rand, append([]*aType{tFloat, tInt, tText}, w.types...))
	if !sub.sorts {
		return
	}
	t := &aType{refs: w.refs("t"), kind: 'r', base: sub, sorts: true}
	m := &aType{refs: w.refs("t"), kind: 'm', base: t, sorts: true}
	for _, l := range sub.lits {
		l = `"` + strings.NewReplacer(`"`, `""`, `\`, `\\`).Replace(l) + `"`
		t.lits, m.lits = append(t.lits, "["+l+",]"), append(m.lits, "{["+l+",]}")
	}
	multi := m.refs[0]
	more := ""
	if f := w.helper(tFloat, sub, sub); f != nil && w.one(2) {
		more = ", subtype_diff = " + f.refs[0]
	}
	if w.try("CREATE TYPE %s AS RANGE (subtype = %s%s, multirange_type_name = %s)", t.refs[0], sub.refs[0], more, multi) {
		w.types = append(w.types, t, m)
	}
}

var symbols = []string{"=", "<", "||", "~~", "&&", "+", "-", "->", "===", "<#>", "@@@", ">", "<>"}

func (w *world) makeOperators() {
	for range w.IntN(6) {
		o := &anOperator{left: w.anyType(), right: w.anyType(), ret: w.anyType()}
		symbol := pick(w.Rand, symbols)
		switch {
		case strings.ContainsAny(symbol, "=<>~"):
			o.ret = tBool
		case w.one(6):
			o.left, symbol = nil, pick(w.Rand, []string{"!!", "-", "@#"})
		}
		// An operator on built-in types alone is not what people make of a built-in symbol.
		user := o.right.kind != 'b' || o.left != nil && o.left.kind != 'b'
		if !user && !w.one(8) && symbol != "===" && symbol != "<#>" && symbol != "@#" {
			continue
		}
		args := []*aType{o.left, o.right}
		left := ""
		if o.left == nil {
			args = args[1:]
		} else {
			left = "LEFTARG = " + o.left.refs[0] + ", "
		}
		f := w.helper(o.ret, args...)
		if f == nil {
			continue
		}
		schema := w.schema()
		in := closureSchemas[schema]
		if schema < 2 {
			o.refs = []string{symbol, symbol, symbol}
		}
		o.refs = append(o.refs, fmt.Sprintf("OPERATOR(%s.%s)", in, symbol))
		if w.try("CREATE OPERATOR %s.%s (FUNCTION = %s, %sRIGHTARG = %s)", in, symbol, f.refs[0], left, o.right.refs[0]) {
			w.operators = append(w.operators, o)
		}
	}
}

func (w *world) makeCasts() {
	for range w.IntN(8) {
		c := aCast{from: w.anyType(), to: w.anyType()}
		user := c.from.kind != 'b' || c.to.kind != 'b'
		if c.from == c.to || !user && !w.one(30) || c.from.kind == 'd' || c.to.kind == 'd' {
			continue
		}
		context := pick(w.Rand, []string{"", "", "", " AS ASSIGNMENT", " AS IMPLICIT"})
		c.implicit = context == " AS IMPLICIT"
		with := "WITH INOUT"
		if !w.one(5) {
			f := w.helper(c.to, c.from)
			if f == nil {
				continue
			}
			with = fmt.Sprintf("WITH FUNCTION %s(%s)", f.refs[0], c.from.refs[0])
		}
		if w.try("CREATE CAST (%s AS %s) %s%s", c.from.refs[0], c.to.refs[0], with, context) {
			w.casts = append(w.casts, c)
		}
	}
}

// makeClasses makes operator classes: of users' types, and now and then of built-in ones.
func (w *world) makeClasses() {
	types := []*aType{}
	for _, t := range w.types {
		if (t.kind == 'e' || t.kind == 'c' || t.kind == 'r') && w.one(4) {
			types = append(types, t)
		}
	}
	if w.one(12) {
		types = append(types, pick(w.Rand, []*aType{tJSON, tPoint}))
	}
	if w.one(20) {
		types = append(types, tInt) // not the default
	}
	for _, t := range types {
		if t.kind == 'b' && w.one(2) || t.kind != 'b' && w.one(4) {
			w.makeHashClass(t)
			continue
		}
		cmp := w.comparison("int", t, "-1 + (($1::text > $2::text)::int) + (($1::text >= $2::text)::int)")
		if cmp == "" {
			continue
		}
		class := "" // not DEFAULT
		if t != tInt && !w.one(4) {
			class = "DEFAULT "
		}
		members, whole := []string{}, true
		suffix := strconv.Itoa(len(w.made))
		for i, op := range []string{"<", "<=", "=", ">=", ">"} {
			f := w.comparison("bool", t, fmt.Sprintf("$1::text %s $2::text", op))
			symbol := []string{"<~", "<=~", "=~", ">=~", ">~"}[i]
			whole = whole && f != "" && w.try("CREATE OPERATOR public.%s (FUNCTION = %s, LEFTARG = %s, RIGHTARG = %s)", symbol, f, t.refs[0], t.refs[0])
			members = append(members, fmt.Sprintf("OPERATOR %d public.%s", i+1, symbol))
		}
		if whole && w.try("CREATE OPERATOR CLASS public.class_%s %sFOR TYPE %s USING btree AS %s, FUNCTION 1 %s(%s, %s)",
			suffix, class, t.refs[0], strings.Join(members, ", "), cmp, t.refs[0], t.refs[0]) {
			t.sorts = t.sorts || class != ""
		}
	}
}

func (w *world) makeHashClass(t *aType) {
	eq, hash := w.comparison("bool", t, "$1::text = $2::text"), ""
	name := "public.fn_" + strconv.Itoa(len(w.made))
	hits := w.volatile()
	body := "RETURN hashtext($1::text)"
	if hits {
		body = "PERFORM public.hit(); " + body
	}
	if w.try("CREATE FUNCTION %s(%s) RETURNS int IMMUTABLE LANGUAGE plpgsql AS $body$ BEGIN %s; END $body$", name, t.refs[0], body) {
		hash = name
		if hits {
			w.unsafe[w.oid("SELECT "+quote(name)+"::regproc::oid")] = true
		}
	}
	if eq != "" && hash != "" && w.try("CREATE OPERATOR public.=# (FUNCTION = %s, LEFTARG = %s, RIGHTARG = %s, HASHES)", eq, t.refs[0], t.refs[0]) {
		w.try("CREATE OPERATOR CLASS public.class_%d DEFAULT FOR TYPE %s USING hash AS OPERATOR 1 public.=#, FUNCTION 1 %s(%s)", len(w.made), t.refs[0], hash, t.refs[0])
	}
}

// comparison makes a function of two values, which the server may need to be sound.
func (w *world) comparison(ret string, t *aType, sql string) string {
	name := "public.fn_" + strconv.Itoa(len(w.made))
	declared, body := "IMMUTABLE", "RETURN "+sql
	hits := w.volatile()
	if hits {
		body = "PERFORM public.hit(); " + body
		if w.one(2) {
			declared = "VOLATILE"
		}
	}
	if !w.try("CREATE FUNCTION %s(%s, %s) RETURNS %s %s LANGUAGE plpgsql AS $body$ BEGIN %s; END $body$", name, t.refs[0], t.refs[0], ret, declared, body) {
		return ""
	}
	if hits {
		w.unsafe[w.oid("SELECT "+quote(name)+"::regproc::oid")] = true
	}
	return name
}

func (w *world) makeAggregates() {
	for range w.IntN(4) {
		arg, state := w.anyType(), pick(w.Rand, []*aType{tInt, tText})
		sf := w.helper(state, state, arg)
		if sf == nil {
			continue
		}
		parts := []string{"SFUNC = " + sf.refs[0], "STYPE = " + state.refs[0], "INITCOND = " + quote(state.lits[0])}
		f := &aFunction{args: []*aType{arg}, ret: state}
		functions := []string{sf.refs[0]}
		if w.one(2) {
			if ff := w.helper(w.anyType(), state); ff != nil {
				f.ret = ff.ret
				parts, functions = append(parts, "FINALFUNC = "+ff.refs[0]), append(functions, ff.refs[0])
			}
		}
		list, ordered := arg.refs[0], w.one(4)
		if ordered {
			list = "ORDER BY " + list
		} else if w.one(3) {
			if ms, mi := w.helper(state, state, arg), w.helper(state, state, arg); ms != nil && mi != nil && f.ret == state {
				parts = append(parts, "MSFUNC = "+ms.refs[0], "MINVFUNC = "+mi.refs[0], "MSTYPE = "+state.refs[0], "MINITCOND = "+quote(state.lits[0]))
				functions = append(functions, ms.refs[0], mi.refs[0])
				if len(parts) > 7 { // (the final function of the plain form is wanted for the other, too)
					parts = append(parts, strings.Replace(parts[3], "FINALFUNC", "MFINALFUNC", 1))
				}
			}
		}
		f.refs = w.refs("f")
		if w.one(6) && !ordered {
			f.refs = w.refsIn(w.schema(), pick(w.Rand, []string{"max", "sum", "total"}))
		}
		if !w.try("CREATE AGGREGATE %s(%s) (%s)", f.refs[0], list, strings.Join(parts, ", ")) {
			continue
		}
		for _, part := range functions {
			if w.unsafe[w.oid("SELECT "+quote(part)+"::regproc::oid")] {
				w.unsafe[w.oid(fmt.Sprintf("SELECT '%s(%s)'::regprocedure::oid", strings.ReplaceAll(f.refs[0], "'", "''"), arg.refs[0]))] = true
			}
		}
		if ordered {
			w.ordered = append(w.ordered, f)
		} else {
			w.aggregates = append(w.aggregates, f)
		}
	}
}

func (w *world) makeTable() {
	r := &aRelation{refs: w.refs("t"), columns: []aColumn{{"id", tInt}}} // types and relations share their names
	defs := []string{"id int"}
	values := [3][]string{{"1"}, {"2"}, {"3"}}
	seen := map[string]bool{"id": true}
	for range 2 + w.IntN(4) {
		name := pick(w.Rand, names)
		if seen[name] {
			continue
		}
		seen[name] = true
		c := aColumn{w.ident(name), w.anyType()}
		r.columns = append(r.columns, c)
		defs = append(defs, c.ref+" "+c.typ.refs[0])
		for i := range values {
			values[i] = append(values[i], quote(c.typ.lits[i%len(c.typ.lits)]))
		}
	}
	parent := ""
	if len(w.relations) > 0 && w.one(5) {
		p := pick(w.Rand, w.relations)
		parent = " INHERITS (" + p.refs[0] + ")"
	}
	partitioned := parent == "" && w.one(6)
	if partitioned {
		parent = " PARTITION BY RANGE (id)"
	}
	if !w.try("CREATE TABLE %s (%s)%s", r.refs[0], strings.Join(defs, ", "), parent) {
		return
	}
	if partitioned {
		part := w.refs("t")[0]
		w.try("CREATE TABLE %s PARTITION OF %s FOR VALUES FROM (0) TO (100)", part, r.refs[0])
	}
	rows := []string{}
	list := []string{}
	for _, c := range r.columns {
		list = append(list, c.ref)
	}
	for _, v := range values {
		rows = append(rows, "("+strings.Join(v, ", ")+")")
	}
	if !w.try("INSERT INTO %s (%s) VALUES %s", r.refs[0], strings.Join(list, ", "), strings.Join(rows, ", ")) {
		return
	}
	w.relations = append(w.relations, r)
	c := pick(w.Rand, r.columns)
	if w.one(4) {
		w.try("CREATE INDEX ON %s (%s)", r.refs[0], c.ref)
	}
	if w.one(5) {
		if f := w.helper(w.anyType(), c.typ); f != nil {
			name := "g_" + strconv.Itoa(w.IntN(100))
			if w.try("ALTER TABLE %s ADD COLUMN %s %s GENERATED ALWAYS AS (%s(%s)) STORED", r.refs[0], name, f.ret.refs[0], f.refs[0], c.ref) {
				r.columns = append(r.columns, aColumn{name, f.ret})
			}
		}
	}
	if w.one(5) {
		if f := w.helper(c.typ); f != nil {
			w.try("ALTER TABLE %s ALTER COLUMN %s SET DEFAULT %s()", r.refs[0], c.ref, f.refs[0])
		}
	}
}

// makeRowFunctions makes functions that take rows, which t.f calls.
func (w *world) makeRowFunctions() {
	for _, r := range w.relations {
		if !w.one(4) {
			continue
		}
		f := &aFunction{ret: w.anyType(), row: r}
		f.refs = w.refs("f")
		if w.define(f, false, r.refs[0]) {
			w.functions = append(w.functions, f)
		}
	}
}

func (w *world) makePolicies() {
	for _, r := range w.relations {
		if !w.one(5) {
			continue
		}
		c := pick(w.Rand, r.columns)
		f := w.helper(tBool, c.typ)
		if f == nil {
			continue
		}
		w.try("ALTER TABLE %s ENABLE ROW LEVEL SECURITY; CREATE POLICY p ON %s USING (%s(%s) IS NOT NULL)", r.refs[0], r.refs[0], f.refs[0], c.ref)
		w.markRelation(r.refs[0])
	}
}

// makeView makes a view, or a materialized one, which is no more than a table.
func (w *world) makeView() {
	w.begin()
	n := 1 + w.IntN(3)
	from := w.from()
	columns := []aColumn{{"id", tInt}}
	list := []string{w.scope[0].prefix() + "id AS id"}
	seen := map[string]bool{"id": true}
	for range n {
		name := pick(w.Rand, names)
		if seen[name] {
			continue
		}
		seen[name] = true
		t := w.anyType()
		c := aColumn{w.ident(name), t}
		columns = append(columns, c)
		list = append(list, w.expr(t, 1+w.IntN(2))+" AS "+c.ref)
	}
	if !w.scope[0].hasID {
		return
	}
	r := &aRelation{refs: w.refs("t"), columns: columns}
	kind := "VIEW"
	if w.one(5) {
		kind = "MATERIALIZED VIEW"
	}
	if !w.try("CREATE %s %s AS SELECT %s FROM %s", kind, r.refs[0], strings.Join(list, ", "), from) {
		return
	}
	// What fails, or takes long, would do so in each statement that reads it.
	if !w.try("SET statement_timeout = 50; SELECT x::text FROM %s x", r.refs[0]) {
		run(w.t, w.conn, "DROP "+kind+" "+r.refs[0])
		w.made = w.made[:len(w.made)-1]
	} else {
		run(w.t, w.conn, "RESET statement_timeout")
		w.relations = append(w.relations, r)
		w.markRelation(r.refs[0])
	}
}

// markRelation remembers a view or table that reaches something volatile.
func (w *world) markRelation(ref string) {
	oid := w.oid("SELECT " + quote(ref) + "::regclass::oid")
	rows, err := w.conn.Query(w.t.Context(), `SELECT ev_action::text FROM pg_rewrite JOIN pg_class c ON c.oid = ev_class WHERE ev_class = $1 AND relkind = 'v'
		UNION ALL SELECT polqual::text FROM pg_policy WHERE polrelid = $1`, oid)
	if err != nil {
		w.t.Fatal(err)
	}
	trees, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		w.t.Fatal(err)
	}
	if w.mentions(strings.Join(trees, " ")) {
		w.unsafe[oid] = true
	}
}

var oidsOfTree = regexp.MustCompile(`:(?:funcid|opfuncid|aggfnoid|winfnoid|relid|resulttype) (\d+)`)

// mentions reports whether a stored tree has the OID of something volatile.
func (w *world) mentions(tree string) bool {
	for _, m := range oidsOfTree.FindAllStringSubmatch(tree, -1) {
		n, _ := strconv.ParseUint(m[1], 10, 32)
		if w.unsafe[uint32(n)] {
			return true
		}
	}
	return false
}

// reaches has the server resolve a statement's names, and reports whether one of them
// means something volatile. What that is, the generator knows: it made it.
func (w *world) reaches(sql string) (unsafe, ok bool) {
	ctx := w.t.Context()
	results, err := w.conn.PgConn().Exec(ctx, "BEGIN; CREATE TEMP VIEW closure_tree AS SELECT FROM ("+sql+
		") x; SELECT ev_action::text FROM pg_catalog.pg_rewrite WHERE ev_class = 'pg_temp.closure_tree'::pg_catalog.regclass").ReadAll()
	if _, err := w.conn.PgConn().Exec(context.WithoutCancel(ctx), "ROLLBACK").ReadAll(); err != nil {
		w.t.Fatal(err)
	}
	if err != nil || len(results) == 0 || len(results[len(results)-1].Rows) != 1 {
		return false, false
	}
	return w.mentions(string(results[len(results)-1].Rows[0][0])), true
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }
