package integration

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/judge"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// companySchema has code of users at the end of every way there is.
const companySchema = `
CREATE FUNCTION f(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'select $1';
CREATE FUNCTION tf(text) RETURNS bool LANGUAGE plpgsql STABLE AS 'begin return true; end';
CREATE FUNCTION okay(int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'select $1 > 0';
CREATE FUNCTION trim_it(text, int) RETURNS text LANGUAGE sql IMMUTABLE AS 'select $1';
CREATE SCHEMA app;
CREATE FUNCTION app.upper(text) RETURNS text LANGUAGE sql IMMUTABLE AS 'select $1';
CREATE FUNCTION reverse(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'select $1';
CREATE AGGREGATE add_up(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE AGGREGATE avg(text) (SFUNC = textcat, STYPE = text);

CREATE OPERATOR !@! (FUNCTION = f, RIGHTARG = int);
CREATE FUNCTION same(int, text) RETURNS bool LANGUAGE sql IMMUTABLE AS 'select true';
CREATE OPERATOR ~* (FUNCTION = same, LEFTARG = int, RIGHTARG = text);

CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TYPE tint AS ENUM ('red', 'blue');
CREATE FUNCTION tint_eq(tint, tint) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'begin return true; end';
CREATE OPERATOR = (FUNCTION = tint_eq, LEFTARG = tint, RIGHTARG = tint);
CREATE FUNCTION tint_add(tint, tint) RETURNS tint LANGUAGE plpgsql IMMUTABLE AS 'begin return $1; end';
CREATE OPERATOR + (FUNCTION = tint_add, LEFTARG = tint, RIGHTARG = tint);
CREATE FUNCTION initcap(tint) RETURNS tint LANGUAGE plpgsql IMMUTABLE AS 'begin return $1; end';
CREATE FUNCTION tint_get(tint, text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS 'begin return $2; end';
CREATE OPERATOR -> (FUNCTION = tint_get, LEFTARG = tint, RIGHTARG = text);
CREATE OPERATOR <#> (FUNCTION = tint_get, LEFTARG = tint, RIGHTARG = text);
CREATE DOMAIN plain AS int CHECK (VALUE > 0 AND char_length(VALUE::text) < 9);
CREATE DOMAIN checked AS int CHECK (okay(VALUE));
CREATE DOMAIN over_checked AS checked;
CREATE DOMAIN dated AS date CHECK (VALUE < age('2030-01-01'::timestamp, '2000-01-01') + '2020-01-01'::timestamp);
CREATE DOMAIN named AS regtype;
CREATE TYPE pair AS (a int, b text);
CREATE TYPE checked_pair AS (a checked, b text);
CREATE TYPE named_pair AS (a regtype, b text);
CREATE TYPE span AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE FUNCTION diff(float8, float8) RETURNS float8 LANGUAGE plpgsql IMMUTABLE AS 'begin return $1 - $2; end';
CREATE TYPE user_span AS RANGE (subtype = float8, subtype_diff = diff);
CREATE TYPE cast_to AS ENUM ('a');
CREATE FUNCTION to_cast(int) RETURNS cast_to LANGUAGE plpgsql IMMUTABLE AS 'begin return ''a''; end';
CREATE CAST (int AS cast_to) WITH FUNCTION to_cast(int);
CREATE TYPE cast_in_out AS ENUM ('a');
CREATE CAST (varchar AS cast_in_out) WITH INOUT AS IMPLICIT;

CREATE TABLE t (id int PRIMARY KEY, name text, at timestamptz, data jsonb, m mood, p pair, x plain, s span, tags text[]);
CREATE TABLE u (id int, t_id int, age int, upper text, initcap text);
CREATE TABLE with_checked (id int, c checked);
CREATE TABLE with_array (id int, c checked[]);
CREATE TABLE with_pair (id int, c checked_pair);
CREATE TABLE with_named (id int, c regtype);
CREATE TABLE with_tint (id int, c tint);
CREATE TABLE with_span (id int, c user_span);
CREATE TABLE with_io (id int, c cast_in_out);
CREATE TABLE with_target (id int, c cast_to);
CREATE TABLE secured (id int);
ALTER TABLE secured ENABLE ROW LEVEL SECURITY;
CREATE TABLE unsecured (id int);
CREATE POLICY p ON unsecured USING (okay(id));
CREATE TABLE parts (id int) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10);
CREATE TABLE mixed (id int) PARTITION BY RANGE (id);
CREATE TABLE mixed_1 PARTITION OF mixed FOR VALUES FROM (0) TO (10);
ALTER TABLE mixed_1 ADD CHECK (id > f(3));
CREATE TABLE mother (id int);
CREATE TABLE child (c checked) INHERITS (mother);
CREATE TABLE partial (id int);
CREATE INDEX ON partial (id) WHERE id > f(3);
CREATE TABLE expression (id int);
CREATE INDEX ON expression (f(id));
CREATE TABLE plain_index (id int, name text);
CREATE INDEX ON plain_index (lower(name)) WHERE id > 3;
CREATE TABLE counted (id int);
CREATE STATISTICS counted_s ON (f(id)) FROM counted;
CREATE TABLE parts_by (id int) PARTITION BY RANGE (f(id));
CREATE FUNCTION cmp(int, int) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'begin return btint4cmp($1, $2); end';
CREATE FUNCTION lt(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS 'select $1 < $2';
CREATE OPERATOR <<< (FUNCTION = lt, LEFTARG = int, RIGHTARG = int);
CREATE OPERATOR CLASS user_ops FOR TYPE int USING btree AS OPERATOR 1 <<<, FUNCTION 1 cmp(int, int);
CREATE TABLE classed (id int);
CREATE INDEX ON classed (id user_ops);
CREATE TABLE stored (id int, d int GENERATED ALWAYS AS (f(id)) STORED);
CREATE SEQUENCE numbers;
CREATE TABLE shown (id int);
CREATE FUNCTION show_row(shown) RETURNS text LANGUAGE sql STABLE AS $$select 'x'$$;
CREATE CAST (shown AS text) WITH FUNCTION show_row(shown);
CREATE TABLE sorted (id int);
CREATE FUNCTION sorted_cmp(sorted, sorted) RETURNS int LANGUAGE sql IMMUTABLE AS 'select 0';
CREATE FUNCTION sorted_lt(sorted, sorted) RETURNS bool LANGUAGE sql IMMUTABLE AS 'select false';
CREATE OPERATOR <<<< (LEFTARG = sorted, RIGHTARG = sorted, FUNCTION = sorted_lt);
CREATE OPERATOR CLASS sorted_ops DEFAULT FOR TYPE sorted USING btree AS OPERATOR 1 <<<<, FUNCTION 1 sorted_cmp(sorted, sorted);
CREATE VIEW shown_too AS SELECT id FROM shown;
CREATE FUNCTION show_view(shown_too) RETURNS text LANGUAGE sql STABLE AS $$select 'x'$$;
CREATE CAST (shown_too AS text) WITH FUNCTION show_view(shown_too);

CREATE FUNCTION of_row(t) RETURNS int LANGUAGE sql STABLE AS 'select 1';
CREATE VIEW v AS SELECT id, lower(name) AS l, at > now() - interval '1 day' AS fresh, data ->> 'a' AS a, m FROM t WHERE m = 'ok' ORDER BY at::date;
CREATE VIEW v2 AS SELECT v.id, u.age FROM v JOIN u ON u.t_id = v.id;
CREATE VIEW v_f AS SELECT f(id) AS id FROM t;
CREATE VIEW v_f2 AS SELECT 1 AS one FROM u WHERE EXISTS (SELECT FROM v_f);
CREATE VIEW v_agg AS SELECT add_up(id) FROM t;
CREATE VIEW v_op AS SELECT !@! id AS id FROM t;
CREATE VIEW v_checked AS SELECT id::checked::int AS c FROM t;
CREATE VIEW v_secured AS SELECT id FROM secured;
CREATE VIEW v_age AS SELECT age(at) FROM t;
CREATE VIEW v_xml AS SELECT xmlelement(name x, id)::text AS x FROM t;
CREATE VIEW v_xmltable AS SELECT b FROM xmltable('/r' PASSING '<r/>' COLUMNS b int PATH 'b');
CREATE VIEW v_search AS SELECT to_tsvector('simple', name) @@ to_tsquery('simple', 'x') AS hit FROM t;
CREATE VIEW v_search_text AS SELECT name @@ 'x' AS hit FROM t;
CREATE VIEW v_class AS SELECT relname FROM pg_class;
CREATE VIEW v_definition AS SELECT pg_get_viewdef('v'::regclass);
CREATE VIEW v_columns AS SELECT column_name FROM information_schema.columns;
CREATE VIEW v_tables AS SELECT table_name FROM information_schema.tables;
CREATE MATERIALIZED VIEW frozen AS SELECT f(id) AS id FROM t;
CREATE VIEW v_frozen AS SELECT id FROM frozen;
`

// companies are statements on it and their companies.
const companies = `
joined SELECT 1
joined SELECT id, name FROM t WHERE id = $1
joined SELECT * FROM t WHERE id IN (1, 2) AND name LIKE 'a%' AND id BETWEEN $1 AND $2 ORDER BY at DESC LIMIT 10
joined SELECT t.id, count(*), coalesce(sum(u.id), 0) FROM t LEFT JOIN u ON u.t_id = t.id WHERE t.at > now() - interval '7 days' GROUP BY t.id
joined SELECT lower(name), length(name), substring(name FROM 1 FOR 2), trim(name), position('a' IN name), extract(year FROM at) FROM t
joined SELECT CURRENT_TIMESTAMP, current_date, LOCALTIME, CURRENT_USER, session_user, current_schema, current_database()
joined SELECT concat(id, name), concat_ws(',', id), format('%s', id), array_to_string(tags, ','), to_char(at, 'YYYY'), date_trunc('day', at) FROM t
joined SELECT json_agg(t), jsonb_build_object('a', id), row_to_json(u), to_jsonb(u.*) FROM t, u GROUP BY t.id, u.*
joined SELECT data->>'a', data @> '{}', data #> '{a}', data ? 'a', data || '{}' FROM t
joined SELECT id::bigint, $1::numeric(10, 2), 'x'::varchar(3), CAST(id AS double precision), date '2020-01-01', interval '1' day, at AT TIME ZONE 'UTC' FROM t
joined SELECT m, m = 'ok', 'ok'::mood, mood 'ok' FROM t WHERE m IN ('ok', $1)
joined SELECT 3::plain, x, p, (p).a, ROW(1, 'x')::pair, s, '[1,2]'::span FROM t
joined SELECT 1 + 2, 'a' = 'b', NULL = NULL, $1 = $2, $1 + $2, initcap('x'), initcap($1)
joined SELECT upper(name) FROM t
joined SELECT u.upper, u.age, u.initcap, t.* FROM u, t
apart SELECT * FROM v
alone SELECT shown::text FROM shown
alone SELECT string_agg(s::text, ',') FROM shown s
alone SELECT id FROM sorted s ORDER BY s
alone SELECT v::text FROM shown_too v
apart SELECT * FROM v2
joined SELECT * FROM frozen
apart SELECT * FROM v_frozen
joined SELECT * FROM parts
joined SELECT * FROM unsecured
joined SELECT * FROM plain_index WHERE lower(name) = 'x'
joined SELECT * FROM stored
joined WITH secret AS (SELECT id FROM t) SELECT * FROM secret
joined WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT * FROM r
joined SELECT g FROM generate_series(1, $1) g
joined SELECT array_agg(id ORDER BY id) FILTER (WHERE id > 1), string_agg(name, ','), max(id) FROM t GROUP BY ROLLUP (name)
joined SELECT row_number() OVER (PARTITION BY name ORDER BY id) FROM t
joined SELECT * FROM t TABLESAMPLE system (10) REPEATABLE (1)
joined SELECT nullif(id, 1), greatest(id, 2), CASE id WHEN 1 THEN 2 END, id IS DISTINCT FROM 2 FROM t
joined SELECT regexp_replace(name, 'a', 'b'), name ~ 'x', name SIMILAR TO 'x' FROM t
joined SELECT make_interval(days => 3), jsonb_path_query_first(data, '$.a') FROM t
joined SELECT id FROM t WHERE id = ANY($1) AND (id, name) < (1, 'x')

apart SELECT age(at) FROM t
apart SELECT (at).age FROM t
apart SELECT x.age FROM unnest(ARRAY[now()]) x
apart SELECT 't'::regclass, id FROM t
apart SELECT regclass('t')
apart SELECT tableoid::regclass FROM t
apart SELECT pg_typeof(id) FROM t
apart SELECT t.pg_typeof FROM t
apart SELECT has_table_privilege('t', 'select')
apart SELECT pg_size_pretty(1::bigint)
apart SELECT to_tsvector('simple', name) FROM t
apart SELECT * FROM t WHERE name @@ 'x'
apart SELECT xmlelement(name a, 1)
apart SELECT '<a/>'::xml
apart SELECT xpath('/a', $1)
apart SELECT jsonb_populate_record(NULL::pair, '{}')
apart SELECT relname FROM pg_class
apart SELECT * FROM pg_tables
apart SELECT * FROM information_schema.tables
apart SELECT row_security_active('t')
apart SELECT x.a FROM json_to_recordset('[]') AS x(a int)
apart SELECT getdatabaseencoding()
apart SELECT convert_from('x', 'LATIN1')
apart SELECT enum_range(NULL::mood)
apart SELECT * FROM v_age
apart SELECT * FROM v_xml
apart SELECT * FROM v_xmltable
apart SELECT * FROM v_search
apart SELECT * FROM v_search_text
apart SELECT * FROM v_class
apart SELECT * FROM v_tables
apart SELECT '2020-01-01'::dated
apart SELECT * FROM information_schema.schemata
apart SELECT inet_merge('1.2.3.4', '1.2.3.5')

alone SELECT f(1)
alone SELECT span(1, 2)
alone SELECT public.f(id) FROM t
alone SELECT tf('x')
alone SELECT reverse('x')
alone SELECT pg_catalog.reverse('x'), reverse(1)
alone SELECT app.upper('x')
alone SELECT add_up(id) FROM t
alone SELECT avg(id) FROM t
alone SELECT id FROM t WHERE okay(id)
alone SELECT !@! 1
alone SELECT name ~* 'x' FROM t
alone SELECT OPERATOR(public.!@!) 2
alone SELECT 'red' OPERATOR(public.=) 'red'
alone SELECT public.initcap('red')
alone SELECT data -> 'a', 1 <#> 'x' FROM t
alone SELECT (1).f
alone SELECT (id).f FROM t
alone SELECT x.f FROM unnest(ARRAY[1]) x
alone SELECT t.of_row FROM t
alone SELECT (t).of_row FROM t
alone SELECT checked('1')
alone SELECT tint('red')
alone SELECT 1::checked
alone SELECT checked '1'
alone SELECT CAST($1 AS over_checked)
alone SELECT '(1,x)'::checked_pair
alone SELECT a FROM json_to_record('{}') AS j(a checked)
alone SELECT 'int4'::regtype
alone SELECT '(int4,x)'::named_pair
alone SELECT 'int4'::named
alone SELECT 'int4'::_regtype
alone SELECT to_regtype('int4')
alone SELECT format_type(23, 4)
alone SELECT pg_get_viewdef('v'::regclass)
alone SELECT (oid).pg_get_viewdef FROM pg_class
alone SELECT 'red'::tint
alone SELECT '[1,2]'::user_span
alone SELECT 1::cast_to
alone SELECT 'a'::cast_in_out
alone SELECT * FROM with_checked
alone SELECT id FROM with_array
alone SELECT * FROM with_pair
alone SELECT * FROM with_tint
alone SELECT * FROM with_span
alone SELECT * FROM with_io
alone SELECT * FROM secured
alone SELECT * FROM mixed
alone SELECT * FROM mother
alone SELECT * FROM partial
alone SELECT * FROM expression
alone SELECT * FROM counted
alone SELECT * FROM parts_by
alone SELECT * FROM classed
alone SELECT * FROM v_f
alone SELECT * FROM v_f2
alone SELECT * FROM v_agg
alone SELECT * FROM v_op
alone SELECT * FROM v_checked
alone SELECT * FROM v_secured
alone SELECT * FROM v_definition
alone SELECT * FROM v_columns
alone SELECT * FROM information_schema.columns
alone SELECT * FROM pg_stats
alone SELECT * FROM pg_attribute
alone SELECT * FROM pg_indexes
alone SELECT * FROM t, v_f
alone WITH v_f AS (SELECT 1) SELECT * FROM v_f
alone SELECT * FROM pg_settings
alone SELECT current_setting('a.b')
alone SHOW lock_timeout
alone SELECT * FROM pg_stat_activity
alone SELECT pg_stat_get_numscans(1)
alone SELECT last_value FROM numbers
alone SELECT query_to_xml('SELECT f(1)', true, true, '')
alone SELECT random()
alone INSERT INTO u (id) VALUES (1)
alone SELECT * FROM not_there
alone SELECT id FROM t FOR UPDATE
alone SELECT 1; SELECT 2
`

// loadSet reads a session's catalog.
func loadSet(t *testing.T, conn *pgx.Conn) *catalog.Set {
	t.Helper()
	set, err := catalog.Load(t.Context(), func(ctx context.Context, sql string, row func([]string) error) error {
		results, err := conn.PgConn().Exec(ctx, "BEGIN READ ONLY; "+sql+"; ROLLBACK").ReadAll()
		if err != nil {
			return err
		}
		for _, result := range results {
			for _, raw := range result.Rows {
				cells := make([]string, len(raw))
				for i, v := range raw {
					cells[i] = string(v)
				}
				if err := row(cells); err != nil {
					return err
				}
			}
		}
		return nil
	}, catalog.Options{Words: sqlscan.Words, AnyRole: true}) // its own is a superuser, to whom no row-level security applies
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func execAll(t *testing.T, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%.300s: %v", sql, err)
	}
}

// checkCompanies holds statements to their companies, one a line.
func checkCompanies(t *testing.T, set *catalog.Set, table string) {
	t.Helper()
	for line := range strings.Lines(table) {
		want, sql, ok := strings.Cut(strings.TrimSpace(line), " ")
		if !ok {
			continue
		}
		if v := judge.Judge(sql, set, judge.Options{RLS: true}); v.Company.String() != want {
			t.Errorf("Judge(%q).Company = %v, %v %q; want %s", sql, v.Company, v.Reason, v.Name, want)
		}
		if v := judge.Judge(sql, nil, judge.Options{TrustNames: true}); v.Company != judge.Alone {
			t.Errorf("Judge(%q).Company = %v without a catalog", sql, v.Company)
		}
	}
}

// TestCompany judges statements on a schema with everything in it.
func TestCompany(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		conn := connect(t, dsn)
		execAll(t, conn, companySchema)
		set := loadSet(t, conn)
		checkCompanies(t, set, companies)
		if serverVersion(t, dsn) >= 18 {
			// (The server refuses functions and types of users in one.)
			execAll(t, conn, "CREATE TABLE computed (id int, at timestamp, a int GENERATED ALWAYS AS (abs(id)) VIRTUAL)")
			checkCompanies(t, loadSet(t, conn), "joined SELECT * FROM computed")
			execAll(t, conn, "ALTER TABLE computed ADD old interval GENERATED ALWAYS AS (age(at, at)) VIRTUAL")
			checkCompanies(t, loadSet(t, conn), "apart SELECT * FROM computed")
		}
		// A search_path with a function that a built-in's name may mean.
		execAll(t, conn, "SET search_path = app, public")
		checkCompanies(t, loadSet(t, conn), "alone SELECT upper(name) FROM t\njoined SELECT pg_catalog.upper(name) FROM t")
		execAll(t, conn, "SET search_path = public")

		t.Run("everything", func(t *testing.T) {
			const sql = "SELECT id FROM t"
			for _, change := range []string{
				`CREATE FUNCTION to_point(text) RETURNS point LANGUAGE plpgsql IMMUTABLE AS 'begin return point(1, 2); end';
					CREATE CAST (text AS point) WITH FUNCTION to_point(text) AS IMPLICIT`,
				`CREATE FUNCTION point_cmp(point, point) RETURNS int LANGUAGE plpgsql IMMUTABLE AS 'begin return 0; end';
					CREATE FUNCTION point_lt(point, point) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'begin return false; end';
					CREATE OPERATOR <<< (FUNCTION = point_lt, LEFTARG = point, RIGHTARG = point);
					CREATE OPERATOR CLASS point_order DEFAULT FOR TYPE point USING btree AS OPERATOR 1 <<<, FUNCTION 1 point_cmp(point, point)`,
				`CREATE FUNCTION near(text, text, int, bool, bool) RETURNS bool LANGUAGE plpgsql IMMUTABLE AS 'begin return true; end';
					ALTER OPERATOR FAMILY text_ops USING btree ADD FUNCTION 3 (text, int) near(text, text, int, bool, bool)`,
				`CREATE DEFAULT CONVERSION mine FOR 'LATIN1' TO 'UTF8' FROM iso8859_1_to_utf8`,
			} {
				execAll(t, conn, change)
				checkCompanies(t, loadSet(t, conn), "alone "+sql)
				undo(t, conn)
				checkCompanies(t, loadSet(t, conn), "joined "+sql)
			}
		})
	})
}

// undo removes what TestCompany's everything made.
func undo(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	execAll(t, conn, `DROP CAST IF EXISTS (text AS point); DROP OPERATOR CLASS IF EXISTS point_order USING btree;
		DO $$ BEGIN ALTER OPERATOR FAMILY text_ops USING btree DROP FUNCTION 3 (text, int); EXCEPTION WHEN OTHERS THEN END $$;
		DROP CONVERSION IF EXISTS mine`)
}

// TestCompany_Extensions: what an extension brings is Alone, and changes nothing for
// who does not use it.
func TestCompany_Extensions(t *testing.T) {
	for _, extension := range []struct{ name, table string }{
		{"citext", `
			joined SELECT name = 'x', 'a' = 'b', max(name), min($1), replace(name, 'a', 'b'), split_part(name, 'a', 1) FROM plain
			joined SELECT name LIKE 'x', name ~ 'x', 'x' ~ 'y', $1 <> $2 FROM plain
			alone SELECT * FROM special
			alone SELECT 'x'::citext
			alone SELECT citext('x')
			alone SELECT public.max('x')`},
		{"hstore", `
			joined SELECT name = 'x', data @> '{}', data ? 'a', data ->> 'a', data - 'a', id - 1, name || 'x' FROM plain
			alone SELECT data -> 'a' FROM plain
			alone SELECT * FROM special
			alone SELECT 'a=>1'::hstore`},
		{"ltree", `
			joined SELECT name = 'x', id < 3, name || 'x' FROM plain
			alone SELECT * FROM special`},
		{"pg_trgm", `
			joined SELECT name = 'x', name LIKE 'x' FROM plain
			alone SELECT name % 'x' FROM plain
			alone SELECT similarity(name, 'x') FROM plain
			alone SELECT * FROM special`},
		{"btree_gin", `
			joined SELECT name = 'x', id < 3 FROM plain
			alone SELECT * FROM special`},
		{"unaccent", `
			joined SELECT name = 'x' FROM plain
			alone SELECT to_tsvector(name) FROM plain
			alone SELECT name @@ 'x' FROM plain
			alone SELECT to_tsvector('simple', name) @@ to_tsquery('x') FROM plain
			alone SELECT unaccent(name) FROM plain`},
		{"tablefunc", `
			joined SELECT name = 'x' FROM plain
			alone SELECT * FROM crosstab('SELECT 1') AS x(a int)`},
	} {
		t.Run(extension.name, func(t *testing.T) {
			forEachServer(t, func(t *testing.T, dsn string) {
				conn := connect(t, dsn)
				var there bool
				noError(t, conn.QueryRow(t.Context(), "SELECT count(*) > 0 FROM pg_available_extensions WHERE name = $1", extension.name).Scan(&there))
				if !there {
					t.Skip("NOT TESTED: the server does not have this extension") // some come without contrib
				}
				execAll(t, conn, "CREATE EXTENSION "+extension.name)
				execAll(t, conn, "CREATE TABLE plain (id int, name text, data jsonb)")
				switch extension.name {
				case "citext", "hstore", "ltree":
					execAll(t, conn, "CREATE TABLE special (id int, x "+extension.name+")")
				case "pg_trgm":
					execAll(t, conn, "CREATE TABLE special (id int, x text); CREATE INDEX ON special USING gin (x gin_trgm_ops)")
				case "btree_gin":
					execAll(t, conn, "CREATE TABLE special (id int, x text); CREATE INDEX ON special USING gin (id)")
				}
				checkCompanies(t, loadSet(t, conn), extension.table)
			})
		})
	}
}

// TestCompany_Relations: a verdict has the tables that a statement reads.
func TestCompany_Relations(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		conn := connect(t, dsn)
		execAll(t, conn, companySchema)
		execAll(t, conn, "DO $$ BEGIN FOR i IN 1..17 LOOP EXECUTE 'CREATE TABLE n' || i || ' (id int)'; END LOOP; END $$")
		all := func(n int) (names []string) {
			for i := range n {
				names = append(names, fmt.Sprintf("n%d", i+1))
			}
			return names
		}
		execAll(t, conn, "CREATE VIEW many AS SELECT 1 AS a FROM "+strings.Join(all(17), ", "))
		set := loadSet(t, conn)
		for sql, want := range map[string]string{
			"SELECT 1":                                     "",
			"SELECT * FROM t":                              "t",
			"SELECT * FROM t, t x WHERE t.id = x.id":       "t",
			"SELECT * FROM v":                              "t",
			"SELECT * FROM v2":                             "t,u",
			"SELECT * FROM u, v":                           "t,u",
			"SELECT * FROM v2, plain_index":                "t,u,plain_index",
			"SELECT * FROM parts":                          "parts",
			"SELECT * FROM v_frozen":                       "frozen",
			"SELECT * FROM mother":                         "mother",
			"SELECT * FROM v_f2":                           "t,u",
			"WITH x AS (SELECT * FROM u) SELECT * FROM x":  "u",
			"SELECT * FROM v_tables":                       "information_schema.tables",
			"SELECT random() FROM t":                       "",
			"SELECT 1 FROM " + strings.Join(all(16), ", "): strings.Join(all(16), ","),
			"SELECT 1 FROM " + strings.Join(all(17), ", "): "",
			"SELECT * FROM many":                           "",
			"SELECT * FROM t, many":                        "",
		} {
			var oids []uint32
			if want != "" {
				if err := conn.QueryRow(t.Context(), "SELECT array_agg(x::regclass::oid ORDER BY x::regclass::oid) FROM unnest($1::text[]) x",
					strings.Split(want, ",")).Scan(&oids); err != nil {
					t.Fatal(err)
				}
			}
			v := judge.Judge(sql, set, judge.Options{})
			if len(v.Relations) != len(oids) {
				t.Errorf("Judge(%q).Relations = %v; want %v (%s)", sql, v.Relations, oids, want)
				continue
			}
			for i, oid := range oids {
				if v.Relations[i] != oid {
					t.Errorf("Judge(%q).Relations = %v; want %v (%s)", sql, v.Relations, oids, want)
				}
			}
		}
	})
}

// TestCompany_Builtins: a function is Joined if it is immutable, in each overload, or
// one of few stable ones, and none of some types is.
func TestCompany_Builtins(t *testing.T) {
	stable := map[string]bool{}
	for _, name := range strings.Fields(`
		now transaction_timestamp statement_timestamp make_timestamptz timezone date_trunc date_part extract date_add date_subtract
		overlaps generate_series date time timetz timestamp timestamptz interval timestamptz_pl_interval timestamptz_mi_interval
		interval_pl_timestamptz to_char to_date to_timestamp to_number numeric money
		concat concat_ws format array_to_string quote_literal quote_nullable anytextcat textanycat length
		to_json to_jsonb json_agg json_agg_strict jsonb_agg jsonb_agg_strict json_object_agg json_object_agg_strict
		json_object_agg_unique json_object_agg_unique_strict jsonb_object_agg jsonb_object_agg_strict jsonb_object_agg_unique
		jsonb_object_agg_unique_strict json_build_array json_build_object jsonb_build_array jsonb_build_object row_to_json
		array_to_json current_user session_user current_schema current_schemas current_database`) {
		stable[name] = true
	}
	for _, op := range strings.Fields("eq ne lt le gt ge cmp") {
		for _, types := range []string{"date_%_timestamptz", "timestamp_%_timestamptz", "timestamptz_%_date", "timestamptz_%_timestamp"} {
			stable[strings.Replace(types, "%", op, 1)] = true
		}
	}
	forEachServer(t, func(t *testing.T, dsn string) {
		conn := connect(t, dsn)
		set := loadSet(t, conn)
		type function struct {
			Name             string
			Immutable, Never bool
		}
		n := 0
		for _, f := range collect(t, conn, `
			SELECT proname::text, bool_and(provolatile = 'i'),
				bool_or(prorettype::regtype::text ~ '^(reg|xml|ts(vector|query))' OR proargtypes::regtype[]::text ~ '(reg[a-z]+|xml|tsvector|tsquery)')
					OR proname ~ '^(pg|txid|has|inet|lo|ts)_'
			FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace AND oid < 16384 GROUP BY proname`, pgx.RowToStructByPos[function]) {
			sql := `SELECT pg_catalog."` + f.Name + `"()`
			v := judge.Judge(sql, set, judge.Options{})
			if v.Company != judge.Joined {
				continue
			}
			n++
			if !f.Immutable && !stable[f.Name] {
				t.Errorf("Judge(%q).Company = joined, and it is neither immutable nor on the list", sql)
			}
			// (Those that convert or measure such values search for nothing.)
			if f.Never && f.Name != "length" && f.Name != "text" && f.Name != "unnest" || v.Class != sqlscan.Read {
				t.Errorf("Judge(%q).Company = joined, and it should not be by its name or types", sql)
			}
		}
		t.Logf("%d names are joined", n)
		if n < 1000 {
			t.Error("that is too few")
		}
	})
}
