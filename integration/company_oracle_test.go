package integration

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/judge"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// This file makes databases full of functions of users that tell when they run, and
// statements that may reach them: none that is judged to fit company runs one.

// hitPieces are what a database is made of, each left out at times. BODY is that of
// a function that tells.
var hitPieces = strings.Split(strings.ReplaceAll(strings.TrimSpace(`
CREATE FUNCTION f(int) RETURNS int LANGUAGE plpgsql STABLE AS BODY1
CREATE FUNCTION g(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS BODY1
CREATE FUNCTION c(int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS BODYT
CREATE FUNCTION lower(int) RETURNS text LANGUAGE plpgsql IMMUTABLE AS BODYX
CREATE FUNCTION upper(text) RETURNS text LANGUAGE plpgsql STABLE AS BODY1; DROP FUNCTION upper(text)
CREATE FUNCTION app.upper(text) RETURNS text LANGUAGE plpgsql STABLE AS BODY1
CREATE FUNCTION any_f(anyelement) RETURNS int LANGUAGE plpgsql STABLE AS BODYN
CREATE FUNCTION name_of(t) RETURNS int LANGUAGE plpgsql STABLE AS BODYN
CREATE FUNCTION f_set(int) RETURNS SETOF int LANGUAGE plpgsql STABLE AS BODYS
CREATE FUNCTION with_default(a int, b int DEFAULT g(1)) RETURNS int LANGUAGE sql STABLE AS 'select $1'
CREATE FUNCTION many(VARIADIC int[]) RETURNS int LANGUAGE plpgsql STABLE AS BODYN
CREATE AGGREGATE agg(int) (SFUNC = addf, STYPE = int, INITCOND = '0')
CREATE AGGREGATE max(mood) (SFUNC = mood_f, STYPE = mood)
CREATE AGGREGATE sum(text) (SFUNC = text_f, STYPE = text)
CREATE FUNCTION initcap(mood) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS BODY1
CREATE FUNCTION initcap(x mood, y int) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS BODY1
CREATE FUNCTION replace(mood, mood, text) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS BODY1
CREATE FUNCTION length(mood) RETURNS int LANGUAGE plpgsql IMMUTABLE AS BODYN
CREATE FUNCTION abs(mood) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS BODY1
CREATE FUNCTION abs(a mood) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS BODY1
CREATE FUNCTION left(mood, int) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS BODY1
CREATE FUNCTION left(tint, bool) RETURNS tint LANGUAGE plpgsql IMMUTABLE AS BODY1
CREATE FUNCTION age(int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS BODY1
CREATE OPERATOR = (FUNCTION = mood_b, LEFTARG = mood, RIGHTARG = mood)
CREATE OPERATOR + (FUNCTION = mood_f, LEFTARG = mood, RIGHTARG = mood)
CREATE OPERATOR || (FUNCTION = mood_f, LEFTARG = mood, RIGHTARG = mood)
CREATE OPERATOR - (FUNCTION = mood_un, RIGHTARG = mood)
CREATE OPERATOR - (FUNCTION = mood_int, LEFTARG = mood, RIGHTARG = int)
CREATE OPERATOR + (FUNCTION = mood_int, LEFTARG = mood, RIGHTARG = int)
CREATE OPERATOR -> (FUNCTION = mood_text, LEFTARG = mood, RIGHTARG = text)
CREATE OPERATOR -> (FUNCTION = mood_int, LEFTARG = mood, RIGHTARG = int)
CREATE OPERATOR ? (FUNCTION = mood_text, LEFTARG = mood, RIGHTARG = text)
CREATE OPERATOR #> (FUNCTION = mood_text, LEFTARG = mood, RIGHTARG = text)
CREATE OPERATOR @> (FUNCTION = mood_b, LEFTARG = mood, RIGHTARG = mood)
CREATE OPERATOR && (FUNCTION = mood_tint, LEFTARG = mood, RIGHTARG = tint)
CREATE OPERATOR = (FUNCTION = mood_tint, LEFTARG = mood, RIGHTARG = tint)
CREATE OPERATOR <@@> (FUNCTION = mood_b, LEFTARG = mood, RIGHTARG = mood)
CREATE OPERATOR ~~ (FUNCTION = int_text, LEFTARG = int, RIGHTARG = text)
CREATE OPERATOR = (FUNCTION = int_text, LEFTARG = int, RIGHTARG = text)
CREATE OPERATOR !@! (FUNCTION = f, RIGHTARG = int)
CREATE OPERATOR app.+ (FUNCTION = addf, LEFTARG = int, RIGHTARG = int)
CREATE CAST (mood AS int) WITH FUNCTION mood_to_int(mood)
CREATE CAST (int AS mood) WITH FUNCTION int_to_mood(int) AS IMPLICIT
CREATE CAST (tint AS mood) WITH FUNCTION tint_to_mood(tint) AS IMPLICIT
CREATE CAST (tint AS text) WITH FUNCTION tint_to_text(tint) AS IMPLICIT
CREATE CAST (mood AS json) WITH FUNCTION mood_to_json(mood)
CREATE CAST (pair AS text) WITH FUNCTION pair_to_text(pair) AS ASSIGNMENT
CREATE CAST (text AS point) WITH FUNCTION text_to_point(text) AS IMPLICIT
CREATE CAST (bool AS jsonb) WITH FUNCTION bool_to_jsonb(bool)
CREATE CAST (t AS int) WITH FUNCTION name_of(t) AS IMPLICIT
CREATE DOMAIN checked AS int CHECK (c(VALUE))
CREATE DOMAIN over_checked AS checked
CREATE DOMAIN fine AS int CHECK (VALUE > 0)
CREATE DOMAIN moody AS mood CHECK (VALUE <> 'sad')
CREATE DOMAIN listed AS int[] CHECK (c(cardinality(VALUE)))
CREATE TYPE checked_pair AS (a checked, b text)
CREATE TYPE pairs AS (p checked_pair, q checked_pair[])
CREATE TYPE span AS RANGE (subtype = int, subtype_diff = diff)
CREATE TYPE mood_span AS RANGE (subtype = mood)
CREATE TYPE fine_span AS RANGE (subtype = float8, subtype_diff = float8mi)
CREATE TABLE has_checked (id int, x checked); INSERT INTO has_checked VALUES (1, 1), (2, NULL)
CREATE TABLE has_pair (id int, x checked_pair); INSERT INTO has_pair VALUES (1, (1, 'a'))
CREATE TABLE has_moody (id int, x moody); INSERT INTO has_moody VALUES (1, 'ok')
CREATE TABLE has_list (id int, x checked[]); INSERT INTO has_list VALUES (1, '{1}')
CREATE TABLE has_span (id int, x span); CREATE INDEX ON has_span USING gist (x); INSERT INTO has_span SELECT g, span(g, g + 2) FROM generate_series(1, 50) g
CREATE TABLE partial (id int); INSERT INTO partial SELECT generate_series(1, 20); CREATE INDEX ON partial (id) WHERE id > g(3)
CREATE TABLE expression (id int); INSERT INTO expression SELECT generate_series(1, 20); CREATE INDEX ON expression ((id + g(3)))
CREATE TABLE constrained (id int CHECK (id > g(0))); CREATE TABLE below (CHECK (id < g(90))) INHERITS (constrained); INSERT INTO below VALUES (2)
CREATE TABLE counted (id int, n int); INSERT INTO counted VALUES (1, 2); CREATE STATISTICS counted_s ON (id + g(1)), n FROM counted; ANALYZE counted
CREATE TABLE parts (id int, n int) PARTITION BY RANGE ((id + g(0))); CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (50); INSERT INTO parts VALUES (1, 2)
CREATE TABLE ranged (id int) PARTITION BY LIST (id user_ops); CREATE TABLE ranged_1 PARTITION OF ranged FOR VALUES IN (1, 2, 3); CREATE TABLE ranged_2 PARTITION OF ranged FOR VALUES IN (4); INSERT INTO ranged VALUES (1)
CREATE TABLE classed (id int); INSERT INTO classed SELECT generate_series(1, 50); CREATE INDEX ON classed (id user_ops)
CREATE TABLE secured (id int); INSERT INTO secured VALUES (1); ALTER TABLE secured ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY; CREATE POLICY p ON secured USING (c(id))
CREATE TABLE stored (id int, x int GENERATED ALWAYS AS (g(id)) STORED); INSERT INTO stored VALUES (1)
CREATE TABLE computed (id int, x int GENERATED ALWAYS AS (id + 1) VIRTUAL); INSERT INTO computed VALUES (1)
CREATE VIEW v_f AS SELECT f(id) AS id FROM t
CREATE VIEW v_agg AS SELECT agg(id) AS id FROM t
CREATE VIEW v_def AS SELECT with_default(id) AS id FROM t
CREATE VIEW v_checked AS SELECT id::checked::int AS id FROM t
CREATE VIEW v_op AS SELECT id FROM mine WHERE m = 'ok'
CREATE VIEW v_cast AS SELECT m::int AS id FROM mine
CREATE VIEW v_row AS SELECT t.name_of AS id FROM t
CREATE VIEW v_over AS SELECT x.id FROM v_f x JOIN u USING (id)
CREATE VIEW v_secured AS SELECT id FROM secured
CREATE MATERIALIZED VIEW frozen AS SELECT g(id) AS id FROM t
CREATE OPERATOR CLASS mood_order DEFAULT FOR TYPE mood USING btree AS OPERATOR 1 <<< (mood, mood), FUNCTION 1 mood_cmp(mood, mood)
CREATE OPERATOR CLASS point_order DEFAULT FOR TYPE point USING btree AS OPERATOR 1 <<< (point, point), FUNCTION 1 point_cmp(point, point)
ALTER OPERATOR FAMILY text_ops USING btree ADD FUNCTION 3 (text, int) near(text, text, int, bool, bool)`),
	"\n", "\x00"), "\x00")

// hitBase is in each of them.
const hitBase = `
CREATE SCHEMA app;
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE tint AS ENUM ('red', 'ok');
CREATE TYPE plain AS ENUM ('x', 'ok');
CREATE TYPE pair AS (a int, b text);
CREATE TABLE t (id int PRIMARY KEY, name text, at timestamptz, data jsonb, k plain, nums int[]);
INSERT INTO t SELECT g, 'name ' || g, now(), '{"a": 1}', 'x', ARRAY[g] FROM generate_series(1, 20) g;
CREATE TABLE u (age int, lower text, f int, LIKE t);
INSERT INTO u SELECT t.id, 'x', t.id, t.* FROM t WHERE id < 6;
CREATE TABLE mine (m mood, n tint, p pair, LIKE t);
INSERT INTO mine SELECT 'ok', 'ok', (id, 'x')::pair, t.* FROM t;
CREATE VIEW v_plain AS SELECT id, lower(name) AS name, at, data, k, nums FROM t WHERE at > now() - interval '1 day';
CREATE VIEW v_system AS SELECT t.*, c.relname FROM t, pg_class c WHERE c.oid = 1259;
CREATE FUNCTION addf(int, int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS BODY1;
CREATE FUNCTION mood_f(mood, mood) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS BODY1;
CREATE FUNCTION text_f(text, text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS BODY1;
CREATE FUNCTION mood_b(mood, mood) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS BODYT;
CREATE FUNCTION mood_tint(mood, tint) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS BODYT;
CREATE FUNCTION mood_un(mood) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS BODY1;
CREATE FUNCTION mood_int(mood, int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS BODYT;
CREATE FUNCTION mood_text(mood, text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS BODYT;
CREATE FUNCTION int_text(int, text) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS BODYT;
CREATE FUNCTION mood_to_int(mood) RETURNS int LANGUAGE plpgsql IMMUTABLE AS BODYN;
CREATE FUNCTION int_to_mood(int) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS $$begin raise notice 'hit'; return 'ok'; end$$;
CREATE FUNCTION tint_to_mood(tint) RETURNS mood LANGUAGE plpgsql IMMUTABLE AS $$begin raise notice 'hit'; return 'ok'; end$$;
CREATE FUNCTION tint_to_text(tint) RETURNS text LANGUAGE plpgsql IMMUTABLE AS BODYX;
CREATE FUNCTION mood_to_json(mood) RETURNS json LANGUAGE plpgsql IMMUTABLE AS $$begin raise notice 'hit'; return '1'; end$$;
CREATE FUNCTION pair_to_text(pair) RETURNS text LANGUAGE plpgsql IMMUTABLE AS BODYX;
CREATE FUNCTION text_to_point(text) RETURNS point LANGUAGE plpgsql IMMUTABLE AS $$begin raise notice 'hit'; return point(1, 2); end$$;
CREATE FUNCTION bool_to_jsonb(bool) RETURNS jsonb LANGUAGE plpgsql IMMUTABLE AS $$begin raise notice 'hit'; return '1'; end$$;
CREATE FUNCTION diff(int, int) RETURNS float8 LANGUAGE plpgsql IMMUTABLE AS BODYN;
CREATE FUNCTION cmp(int, int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$begin raise notice 'hit'; return btint4cmp($1, $2); end$$;
CREATE FUNCTION lt(int, int) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS $$begin raise notice 'hit'; return $1 < $2; end$$;
CREATE FUNCTION mood_cmp(mood, mood) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$begin raise notice 'hit'; return 0; end$$;
CREATE FUNCTION point_cmp(point, point) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$begin raise notice 'hit'; return 0; end$$;
CREATE FUNCTION point_lt(point, point) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS BODYT;
CREATE FUNCTION near(text, text, int, bool, bool) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS BODYT;
CREATE OPERATOR <<< (FUNCTION = lt, LEFTARG = int, RIGHTARG = int);
CREATE OPERATOR =~= (FUNCTION = lt, LEFTARG = int, RIGHTARG = int);
CREATE OPERATOR <<< (FUNCTION = mood_b, LEFTARG = mood, RIGHTARG = mood);
CREATE OPERATOR <<< (FUNCTION = point_lt, LEFTARG = point, RIGHTARG = point);
CREATE OPERATOR CLASS user_ops FOR TYPE int USING btree AS OPERATOR 1 <<<, OPERATOR 3 =~=, FUNCTION 1 cmp(int, int);
`

// hitBodies stand for the letters in the above.
var hitBodies = strings.NewReplacer(
	"BODY1", "$$begin raise notice 'hit'; return $1; end$$",
	"BODYT", "$$begin raise notice 'hit'; return true; end$$",
	"BODYX", "$$begin raise notice 'hit'; return 'x'; end$$",
	"BODYN", "$$begin raise notice 'hit'; return 1; end$$",
	"BODYS", "$$begin raise notice 'hit'; return next $1; end$$",
)

// A hitWriter writes statements: mostly of built-in names, and now and then of one that
// a user may have made.
type hitWriter struct {
	*rand.Rand
	wild int // so many in a hundred
}

func (w *hitWriter) pick(list ...string) string { return list[w.IntN(len(list))] }

// word picks one of the built-in words, or of all.
func (w *hitWriter) word(builtin, all []string) string {
	if w.IntN(100) < w.wild {
		return w.pick(all...)
	}
	return w.pick(builtin...)
}

var (
	someRelations = strings.Fields("t t t u u v_plain v_system")
	allRelations  = strings.Fields(`mine mine has_checked has_pair has_moody has_list has_span partial expression constrained below counted
		parts ranged classed secured stored computed v_f v_agg v_def v_checked v_op v_cast v_row v_over v_secured frozen w0 w1 w2 w3`)
	someTypes = strings.Fields("int text bool json jsonb numeric date plain pair fine regclass int[] plain[]")
	allTypes  = strings.Fields(`int text mood tint plain bool point json jsonb numeric date pair checked over_checked fine moody listed checked_pair
		pairs span mood_span fine_span t has_checked has_pair xml mood[] checked[] tint[]`)
	allFunctions = strings.Fields(`f g lower upper initcap length abs left replace max min sum avg any_f name_of with_default many agg age
		app.upper public.max pg_catalog.max public.initcap f_set mood tint text int4 point checked json checked_pair span`)
	textFunctions  = strings.Fields("lower upper initcap concat format quote_literal replace left to_json to_jsonb json_build_object string_agg max min pg_typeof text")
	countFunctions = strings.Fields("abs length count sum avg max min coalesce greatest nullif hashtext ascii cardinality int4 numeric age")
	anyOperators   = strings.Fields(`= <> < > + - * / || -> ->> @> <@ ? #> && <@@> ~~ ~ !~~ <<< =~= OPERATOR(public.=) OPERATOR(pg_catalog.=)
		OPERATOR(app.+) OPERATOR(public.+) !@! % <->`)
	literals   = strings.Fields("'ok' 'ok' '1' 'x' 'red' '(1,x)' '{1}' '{ok}' '[1,2]' '{}' 'a' NULL $1 $2")
	allColumns = strings.Fields(`id name at data m p k nums x age lower f n t.id u.f (p).a (p).f t.name_of (t).name_of (id).f (m).initcap
		(m).length x.lower m m t t.* k.abs (t).id`)
)

// The kinds of expressions: what they are mostly.
const (
	aNumber = iota
	aText
	aBoolean
	anything
)

func (w *hitWriter) expr(kind, depth int) string {
	if w.IntN(100) < w.wild {
		kind = w.IntN(anything + 1)
	}
	n, x, b, e := func() string { return w.expr(aNumber, depth-1) }, func() string { return w.expr(aText, depth-1) },
		func() string { return w.expr(aBoolean, depth-1) }, func() string { return w.expr(w.IntN(anything+1), depth-1) }
	if kind == anything {
		switch {
		case depth <= 0:
			return w.word(literals, allColumns)
		case w.IntN(100) < w.wild:
			return w.odd(e)
		}
		switch w.IntN(9) {
		case 0:
			return fmt.Sprintf("(%s)::%s", e(), w.word(someTypes, allTypes))
		case 1:
			return fmt.Sprintf("CAST(%s AS %s)", w.word(literals, literals), w.word(someTypes, allTypes))
		case 2:
			return fmt.Sprintf("(%s %s %s)", w.pick(literals...), w.pick(anyOperators...), w.pick(literals...))
		case 3:
			return fmt.Sprintf("%s(%s)", w.word(textFunctions, allFunctions), w.pick(literals...))
		case 4:
			return fmt.Sprintf("(data %s %s)", w.pick("->", "->>", "@>", "?", "#>", "-", "||"), w.pick(literals...))
		case 5:
			return fmt.Sprintf("ARRAY[%s, %s]", n(), n())
		case 6:
			return fmt.Sprintf("ROW(%s, %s)", n(), x())
		case 7:
			return w.pick("k", "nums", "data", "at", "(t).id", "t", "(k = 'ok')", "(k IN ('ok', 'x'))", "(at > now())", "at::date", "age(at)", "current_user")
		}
		return w.expr(w.IntN(anything), depth)
	}
	if depth <= 0 {
		return map[int]func() string{
			aNumber: func() string { return w.word([]string{"id", "id", "1", "2", "1.5", "$1", "length(name)"}, allColumns) },
			aText: func() string {
				return w.word([]string{"name", "name", "'ok'", "'x'", "id::text", "lower(name)"}, allColumns)
			},
			aBoolean: func() string {
				return w.word([]string{"true", "(id = 1)", "(name = 'x')", "(id = ANY (nums))", "(k = 'ok')"}, allColumns)
			},
		}[kind]()
	}
	switch {
	case w.IntN(100) < w.wild:
		return w.odd(e)
	case w.IntN(12) == 0:
		return fmt.Sprintf("(SELECT %s FROM %s LIMIT 1)", w.expr(kind, depth-1), w.word(someRelations, allRelations))
	case w.IntN(12) == 0:
		return fmt.Sprintf("CASE WHEN %s THEN %s ELSE %s END", b(), w.expr(kind, depth-1), w.expr(kind, depth-1))
	}
	switch kind {
	case aNumber:
		switch w.IntN(5) {
		case 0, 1:
			return fmt.Sprintf("(%s %s %s)", n(), w.pick("+", "-", "*"), n())
		case 2:
			return fmt.Sprintf("max(%s) OVER (ORDER BY %s%s)", n(), w.pick("name", "id", x()), w.pick("", "", " RANGE BETWEEN 1 PRECEDING AND CURRENT ROW"))
		}
		return fmt.Sprintf("%s(%s)", w.word(countFunctions, allFunctions), w.pick(n(), n(), x(), w.pick(literals...)))
	case aText:
		switch w.IntN(4) {
		case 0:
			return fmt.Sprintf("(%s || %s)", x(), w.pick(x(), n(), w.pick(literals...)))
		case 1:
			return fmt.Sprintf("(%s)::text", w.pick(n(), e()))
		}
		return fmt.Sprintf("%s(%s)", w.word(textFunctions, allFunctions),
			w.pick(x(), x(), x()+", "+w.pick(n(), x()), x()+", "+x()+", "+w.pick(literals...), w.pick(literals...), "a => "+x()))
	}
	switch w.IntN(7) {
	case 0:
		return fmt.Sprintf("(%s %s %s)", n(), w.pick("=", "<", ">", "<>", "IS DISTINCT FROM"), n())
	case 1:
		return fmt.Sprintf("(%s %s %s)", x(), w.pick("=", "<", "LIKE", "~", "SIMILAR TO"), x())
	case 2:
		return fmt.Sprintf("(%s IN (%s, %s))", n(), n(), n())
	case 3:
		return fmt.Sprintf("(%s AND %s)", b(), b())
	case 4:
		return fmt.Sprintf("(%s = %s)", e(), w.pick(literals...))
	case 5:
		return fmt.Sprintf("(%s BETWEEN %s AND %s)", n(), n(), n())
	}
	return fmt.Sprintf("EXISTS (SELECT FROM %s WHERE %s)", w.word(someRelations, allRelations), b())
}

// odd writes what reaches a user's object by its syntax.
func (w *hitWriter) odd(e func() string) string {
	switch w.IntN(8) {
	case 0:
		return fmt.Sprintf("(%s %s %s)", e(), w.pick(anyOperators...), e())
	case 1:
		return w.pick(allFunctions...) + "(" + strings.Join([]string{e(), e(), e()}[:1+w.IntN(3)], ", ") + ")"
	case 2:
		return fmt.Sprintf("(%s)::%s", e(), w.pick(allTypes...))
	case 3:
		return w.pick("mood", "tint", "checked", "span", "date", "point", "moody", "pair", "plain") + " " + w.pick("'ok'", "'1'", "'[1,2]'", "'(1,x)'", "'today'")
	case 4:
		return fmt.Sprintf("CASE %s WHEN %s THEN %s ELSE %s END", e(), e(), e(), e())
	case 5:
		return fmt.Sprintf("(%s).%s", e(), w.pick("f", "a", "b", "initcap", "abs", "length", "any_f", "name_of", "mood", "checked", "lower", "text"))
	case 6:
		return fmt.Sprintf("%s %s ANY (%s)", e(), w.pick(anyOperators...), w.pick("ARRAY["+e()+"]", "'{ok}'", "(SELECT "+e()+")", "nums"))
	}
	return w.pick("!@! ", "- ", "NOT ", "@ ") + e()
}

func (w *hitWriter) from() string {
	item := w.word(someRelations, allRelations)
	if w.IntN(3) > 0 {
		return item
	}
	switch w.IntN(5) {
	case 0:
		return fmt.Sprintf("%s(%s) x", w.word([]string{"unnest", "generate_series"}, []string{"f", "f_set", "any_f"}), w.pick("nums", "1, 3", w.expr(anything, 1)))
	case 1:
		return fmt.Sprintf("t x JOIN %s USING (id, name, at, data, k, nums)", item)
	case 2:
		return fmt.Sprintf("(SELECT id AS nr FROM t) t LEFT JOIN %s s ON t.nr = s.id", item)
	case 3:
		return fmt.Sprintf("(SELECT id, %s AS x, name, at, data, k, nums FROM t) s", w.expr(anything, 2))
	}
	return fmt.Sprintf("json_to_record('{\"a\": 1, \"b\": \"ok\"}') AS s(id %s, name %s)", w.word(someTypes, allTypes), w.word(someTypes, allTypes))
}

// simple writes a short statement, which has fewer ways to fail.
func (w *hitWriter) simple() string {
	w.wild = 60
	relation, columns := w.word(someRelations, allRelations), strings.Fields("m n p id name k x nums at data")
	value := func() string {
		switch w.IntN(4) {
		case 0:
			return w.pick(columns...)
		case 1:
			return fmt.Sprintf("%s::%s", w.pick(literals...), w.pick(allTypes...))
		}
		return w.word(literals, columns)
	}
	switch w.IntN(9) {
	case 0:
		return "SELECT * FROM " + relation
	case 1:
		return fmt.Sprintf("SELECT * FROM %s WHERE id %s 3", relation, w.pick("=", ">", "<", "<> 4 AND id <"))
	case 2:
		return fmt.Sprintf("SELECT max(id) FROM %s WHERE id IN (2, 3) GROUP BY %s", relation, w.pick("id", "x", "id, x"))
	case 3:
		return fmt.Sprintf("SELECT DISTINCT %s FROM mine ORDER BY 1", w.pick(columns...))
	case 4:
		return fmt.Sprintf("SELECT %s %s %s FROM mine", value(), w.pick(anyOperators...), value())
	case 5:
		return fmt.Sprintf("SELECT %s(%s) FROM mine", w.word(textFunctions, allFunctions), strings.Join([]string{value(), value(), value()}[:1+w.IntN(3)], ", "))
	case 6:
		return fmt.Sprintf("SELECT %s::%s FROM mine", value(), w.pick(allTypes...))
	case 7:
		return fmt.Sprintf("SELECT %s FROM mine", w.word([]string{"(id).f", "(m).initcap", "(m).abs", "mine.any_f", "(1).mood", "(m).int4", "m = 'ok'", "m = n", "p::text"}, allColumns))
	}
	return fmt.Sprintf("SELECT %s, %s", value(), w.odd(value))
}

func (w *hitWriter) statement() string {
	if w.IntN(3) == 0 {
		return w.simple()
	}
	w.wild = []int{0, 0, 1, 3, 10, 40}[w.IntN(6)]
	var b strings.Builder
	if w.IntN(12) == 0 {
		fmt.Fprintf(&b, "WITH x AS (SELECT %s AS id) ", w.expr(anything, 2))
	}
	fmt.Fprintf(&b, "SELECT %s%s", w.pick("", "", "DISTINCT "), w.expr(w.IntN(anything+1), 1+w.IntN(2)))
	if w.IntN(3) == 0 {
		b.WriteString(", " + w.expr(w.IntN(anything+1), 1))
	}
	fmt.Fprintf(&b, " FROM %s", w.from())
	if w.IntN(2) == 0 {
		b.WriteString(" WHERE " + w.pick("id = 2", "id > 1", "id = $1", "id < 30 AND "+w.expr(aBoolean, 1), w.expr(aBoolean, 2), w.expr(anything, 1)+" = "+w.expr(anything, 1)))
	}
	switch w.IntN(8) {
	case 0:
		b.WriteString(" GROUP BY 1")
	case 1:
		b.WriteString(" ORDER BY " + w.pick("1", w.expr(anything, 1)))
	case 2:
		fmt.Fprintf(&b, " %s SELECT %s", w.pick("UNION", "EXCEPT", "UNION ALL"), w.expr(anything, 1))
	}
	return b.String()
}

// TestCompany_Oracle runs what is judged Joined or Apart in databases that are made at
// random, and hears of each function of a user that it runs.
//
//	FLIGHTPG_SEED       of what is generated; 1
//	FLIGHTPG_COMPANY_N  how many statements to run; 3,000 with -short, else 10,000
func TestCompany_Oracle(t *testing.T) {
	const perDatabase = 250
	forEachServer(t, func(t *testing.T, dsn string) {
		seed, n := envInt(t, "FLIGHTPG_SEED", 1), int(envInt(t, "FLIGHTPG_COMPANY_N", battery.Quick[uint64](3000, 10_000)))
		t.Logf("PostgreSQL %d, FLIGHTPG_SEED=%d FLIGHTPG_COMPANY_N=%d", serverVersion(t, dsn), seed, n)
		var company, worked [3]int
		hitAlone := 0
		for i := 0; i*perDatabase < n && !t.Failed(); i++ {
			w := &hitWriter{Rand: battery.Rand(seed, i)}
			made := []string{}
			conn, heard := hitDatabase(t, dsn, w, &made)
			set := loadSet(t, conn)
			for range min(perDatabase, n-i*perDatabase) {
				sql := w.statement()
				v := judge.Judge(sql, set, judge.Options{RLS: true})
				company[v.Company]++
				if v.Class != sqlscan.Read {
					continue
				}
				*heard = 0
				params := make([][]byte, sqlscan.Scan(sql).Params)
				for i := range params {
					params[i] = []byte(w.pick("1", "ok", "x"))
				}
				_, err := conn.PgConn().ExecParams(t.Context(), sql, params, nil, nil, nil).Close()
				var pgErr *pgconn.PgError
				if err != nil && !errors.As(err, &pgErr) {
					t.Fatalf("%s: %v", sql, err)
				}
				if err == nil {
					worked[v.Company]++
				}
				switch {
				case *heard == 0:
				case v.Company == judge.Alone:
					hitAlone++
				default:
					t.Errorf("%v, and it runs a function of a user: %s\n(database %d of FLIGHTPG_SEED=%d: %s)", v.Company, sql, i, seed, strings.Join(made, ";\n"))
				}
			}
			conn.Close(context.Background())
		}
		t.Logf("joined %d (%d without an error), apart %d (%d), alone %d; %d of those alone ran a function of a user",
			company[judge.Joined], worked[judge.Joined], company[judge.Apart], worked[judge.Apart], company[judge.Alone], hitAlone)
		if worked[judge.Joined] < n/50 || worked[judge.Apart] < n/500 || hitAlone < n/200 {
			t.Error("that is too few")
		}
	})
}

// hitDatabase makes one, in place of the last. What of it cannot be made, because
// something that it needs is not there, is left out. heard counts the functions that
// have run.
func hitDatabase(t *testing.T, dsn string, w *hitWriter, made *[]string) (conn *pgx.Conn, heard *int) {
	t.Helper()
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	heard = new(int)
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Message == "hit" {
			*heard++
		}
	}
	cfg.RuntimeParams["statement_timeout"] = "5s"
	conn, err = pgx.ConnectConfig(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	execAll(t, conn, "SET client_min_messages = warning; DROP SCHEMA IF EXISTS app CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
	execAll(t, conn, "DROP CAST IF EXISTS (bool AS jsonb); DROP CAST IF EXISTS (text AS point)")
	execAll(t, conn, hitBodies.Replace(hitBase))
	few := w.IntN(3) == 0
	for _, piece := range hitPieces {
		switch {
		case strings.Contains(piece, "TABLE") || strings.Contains(piece, "VIEW"):
			if w.IntN(3) == 0 {
				continue
			}
		case strings.Contains(piece, "AS point)"), strings.Contains(piece, "AS jsonb)"), strings.Contains(piece, "point_order"), strings.Contains(piece, "text_ops"):
			if w.IntN(40) > 0 { // after which all is alone
				continue
			}
		case strings.Contains(piece, "LEFTARG = int"), strings.Contains(piece, "any_f"): // after which most is
			if w.IntN(6) > 0 {
				continue
			}
		case few && w.IntN(12) > 0, !few && w.IntN(3) > 0:
			continue
		}
		if _, err := conn.PgConn().Exec(t.Context(), hitBodies.Replace(piece)).ReadAll(); err == nil {
			*made = append(*made, piece)
		}
	}
	for i := range 4 {
		sql := w.statement()
		if _, err := conn.PgConn().Exec(t.Context(), fmt.Sprintf("CREATE VIEW w%d (id) AS %s", i, sql)).ReadAll(); err == nil {
			*made = append(*made, fmt.Sprintf("CREATE VIEW w%d (id) AS %s", i, sql))
		}
	}
	execAll(t, conn, "SET client_min_messages = notice")
	return conn, heard
}
