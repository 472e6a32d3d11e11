package judge

import (
	"context"
	"strings"
	"testing"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// expressions and relations of the hostile database, of which none may be
// shared wherever it stands …
var (
	unsafeExpressions = []string{
		"vol()", "vol(1)", "PUBLIC.Vol ( 1 )", `"vol"/**/(1)`, "two(1, 2)", "upper(1)::int", "app.only_app(1)", "with_default(1)",
		"vol_named(c => 3, a => 1)", "vol_many(1, 2, 3)", "(vol_out(1)).b", "vol_agg(1)", "vol_ordered(1) WITHIN GROUP (ORDER BY 1)",
		"1::vol_domain", "CAST(1 AS vol_domain)", "vol_domain '1'", "vol_domain('1')", "(ARRAY[1]::vol_domain[])[1]", "(1).vol_domain",
		"(ROW(1, 'x')::vol_pair).a", "('(1,x)'::public.vol_pair).a", "1::app.app_domain", `1::"Odd Domain"`, "takes_domain(1)",
		"(1 === 2)::int", "(1 OPERATOR(public.===) 2)::int", "### 1", "('red'::color = 'red')::int", "(favourite() IN ('red'))::int",
		"ROW(1)::src::int", "(1::dst).a", "(1).vol", "(t).row_f", "t.row_f", "('hits'::regclass).nextval::int", "random()::int",
		"(SELECT max(v) FROM v_vol)", "(SELECT 1 FROM v_random2 LIMIT 1)", "(SELECT count(*) FROM remote)", "(SELECT id FROM rls)",
		"(SELECT last_value FROM hits)", "(SELECT 1 FROM no_such_relation)", "no_such_function(1)", "1::no_such_type",
		"(SELECT id FROM v_lock LIMIT 1)", "(SELECT x.vol FROM unnest(ARRAY[1]) x)", "(SELECT a FROM json_to_record('{}') AS j(a vol_domain))",
		"(WITH w AS (SELECT vol() AS v) SELECT v FROM w)", "(VALUES (vol()))", "(TABLE v_limit LIMIT 1)", "nullif(favourite(), 'red')::text::int",
	}
	unsafeRelations = []string{
		"v_vol", "public.v_vol", `"v_vol"`, `"V Quoted"`, "app.v_app", "v_rls2", "rls", "foreign_t", "remote", "hits", "has_domain_array",
		"vol_set()", "ROWS FROM (vol_set())", "LATERAL vol()", "(SELECT vol()) s", "(v_vol CROSS JOIN u)", "ONLY v_vol", "no_such_relation",
		"json_to_record('{}') AS j(a vol_domain)", "indexed", "(SELECT 1 FROM colored WHERE c = 'red') x", "t TABLESAMPLE bernoulli (10)", "(VALUES (vol())) v", "(TABLE v_vol) v",
		"xmltable('/r' PASSING '<r/>' COLUMNS a vol_domain PATH 'a')", "v_stat", "pg_stat_activity", "mother2",
	}
	// … and such that may be, wherever they stand.
	safeExpressions = []string{
		"1", "$1", "'vol()'", "stable_f(1)", "public.stable_f(two(1))", "app.safe_app(1)", "good_default(1, c => now())", "length('x')",
		"good_many(1, 2, 3)", "good_agg(1)", "(with_out(1)).b", "1::good_domain", "CAST(1 AS good_domain)", "good_domain '1'", "1::bigint::int",
		"(ROW(1, 'x')::pair).a", "(1 ~=~ 2)::int", "(1::gdst).a", "(t).row_good", "t.row_good", "t.id", "(t).id", "(SELECT max(id) FROM v_over)",
		"(SELECT count(*) FROM parts)", "(SELECT x FROM unnest(ARRAY[1]) x)", "(SELECT a FROM json_to_record('{}') AS j(a good_domain, b numeric(3)))",
		"(WITH w AS (SELECT 1 AS v) SELECT v FROM w)", "CASE WHEN 1 = 2 THEN 3 ELSE 4 END", "coalesce(1, 2)", "extract(year FROM now())::int",
		"CAST(1 AS double precision)", "(SELECT count(*) FROM pg_class)", "array_length(ARRAY[1, 2], 1)", "(now() AT TIME ZONE 'UTC')::date - date '2020-01-01'",
		`"MixedCase" . id`, "abs(-1)", "1 /* vol() */", "(VALUES (1))", "position('a' IN 'b')", "char_length('vol')",
	}
	safeRelations = []string{
		"t", "public.t", "v_plain", "v_builtins", "v_agg", "parts", "mv", "stable_set(2)", "ROWS FROM (stable_set(2))", "LATERAL stable_f(1)",
		"(SELECT 1) s", "(t CROSS JOIN u)", "ONLY t", "json_to_record('{}') AS j(a good_domain)", "t TABLESAMPLE bernoulli (10) REPEATABLE (1)",
		"(VALUES (1)) v", "(TABLE t) v", "xmltable('/r' PASSING '<r/>' COLUMNS a good_domain PATH 'a', n FOR ORDINALITY)", "pg_class",
		"information_schema.tables", "v_mv", "rls_off", "stored", `public."t"`, "app.inside", "mother3",
	}
	expressionContexts = []string{
		"SELECT ?", "SELECT ? AS vol FROM t", "VALUES (1, ?)", "SELECT (?)", "SELECT id FROM t WHERE id = ?", "SELECT id FROM t WHERE id IN (1, ?)",
		"SELECT id FROM t WHERE id = ANY (ARRAY[?])", "SELECT id FROM t WHERE id BETWEEN 1 AND ?", "SELECT id FROM t ORDER BY ?", "SELECT 1 FROM t GROUP BY ?",
		"SELECT 1 FROM t GROUP BY GROUPING SETS ((id, ?), ())", "SELECT 1 FROM t GROUP BY ROLLUP (?), CUBE (id)", "SELECT 1 FROM t HAVING ? > 0",
		"SELECT id FROM t LIMIT ?", "SELECT id FROM t OFFSET ? ROWS", "SELECT id FROM t FETCH FIRST (?) ROWS WITH TIES",
		"SELECT DISTINCT ON (?) id FROM t", "SELECT CASE WHEN ? = 1 THEN 1 END", "SELECT CASE ? WHEN 1 THEN 2 ELSE 3 END", "SELECT coalesce(NULL, ?)",
		"SELECT lower((?)::text)", "SELECT make_interval(days => ?)", "SELECT format('%s', VARIADIC ARRAY[?])", "SELECT ARRAY[1, ?]", "SELECT ROW(1, ?)",
		"SELECT (ARRAY[1])[?]", "SELECT substring('abc' FROM 1 FOR ?)", "SELECT extract(day FROM to_timestamp(?))", "SELECT sum(id) OVER (ORDER BY ?) FROM t",
		"SELECT sum(id) OVER w FROM t WINDOW w AS (PARTITION BY ? ORDER BY id)", "SELECT sum(id) FILTER (WHERE ? > 1) FROM t",
		"SELECT array_agg(id ORDER BY ?) FROM t", "SELECT percentile_disc(0.5) WITHIN GROUP (ORDER BY ?) FROM t", "SELECT 1 UNION ALL SELECT ?",
		"(SELECT 1) UNION (SELECT ? ORDER BY 1)", "WITH x AS (SELECT ?) SELECT 1", "WITH RECURSIVE r AS (SELECT 1 AS n UNION SELECT ? FROM r) SELECT * FROM r",
		"SELECT * FROM t JOIN u ON u.id = ?", "SELECT * FROM t LEFT JOIN LATERAL (SELECT ?) l ON true", "SELECT EXISTS (SELECT 1 WHERE ? = 1)",
		"SELECT * FROM t WHERE id IN (SELECT ?)", "SELECT * FROM generate_series(1, ?)", "SELECT * FROM unnest(ARRAY[?]) WITH ORDINALITY AS x(a, b)",
		"SELECT 1 + ?", "SELECT NOT ? = 1", "SELECT ?::text COLLATE \"C\"", "SELECT * FROM t TABLESAMPLE system (1) REPEATABLE (?)",
		"SELECT xmlelement(name a, xmlattributes(? AS b))", "SELECT (?) IS DISTINCT FROM 1", "SELECT x FROM (SELECT ?) AS s(x)", "SELECT ? id FROM t key",
	}
	relationContexts = []string{
		"SELECT * FROM ?", "SELECT 1 FROM t, ?", "SELECT 1 FROM t CROSS JOIN ?", "SELECT count(*) FROM (SELECT * FROM ?) x", "SELECT * FROM t WHERE EXISTS (SELECT FROM ?)",
		"WITH x AS (SELECT * FROM ?) SELECT 1", "SELECT 1 UNION SELECT 1 FROM ?", "SELECT (SELECT count(*) FROM ?)", "SELECT * FROM u, LATERAL (SELECT 1 FROM ?) x",
		"SELECT ARRAY(SELECT 1 FROM ?)", "SELECT 1 FROM t a JOIN (u b CROSS JOIN ?) ON a.id = 1", "(SELECT 1 FROM ?) LIMIT 1", "SELECT id FROM t ORDER BY (SELECT 1 FROM ?)",
		"SELECT 1 FROM t NATURAL JOIN ?", "SELECT 1 FROM\n--\n? ", "SELECT lower(name) IN (SELECT 'x' FROM ?) FROM t", "SELECT 1 FROM t x(a, b), ?",
	}
)

// TestComposed puts every expression and relation into every context.
func TestComposed(t *testing.T) {
	set := load(t, connect(t, database(t, "testdata/hostile.sql")))
	for _, part := range []struct {
		contexts, pieces []string
		shared           bool
	}{
		{expressionContexts, unsafeExpressions, false},
		{relationContexts, unsafeRelations, false},
		{expressionContexts, safeExpressions, true},
		{relationContexts, safeRelations, true},
	} {
		for _, context := range part.contexts {
			for _, piece := range part.pieces {
				sql := strings.Replace(context, "?", piece, 1)
				for _, sql := range []string{sql, strings.ReplaceAll(sql, " ", "\n\t/* ' */ ")} {
					v := Judge(sql, set, Options{})
					if part.shared != (v.Class == sqlscan.Read) {
						t.Errorf("Judge(%q) = %v, %v %q; want shared %v", sql, v.Class, v.Reason, v.Name, part.shared)
					}
				}
			}
		}
	}
}

// smallSet returns a set that no server was asked for.
func smallSet(t testing.TB) *catalog.Set {
	t.Helper()
	rows := [][]string{
		{"v", "", "", "180000", ""},
		{"s", "11", "", "pg_catalog", ""},
		{"s", "2200", "", "public", ""},
		{"p", "1", "", "pg_catalog", ""},
		{"p", "2", "", "public", ""},
		{"r", "20000", "2200", "t", "r 20001"},
		{"r", "20002", "2200", "v_vol", "v 20003"},
		{"f", "20004", "2200", "vol", "f v 0 0 0 0 23"},
		{"f", "20007", "2200", "stable_f", "f s 1 0 0 0 23 23"},
		{"t", "25", "11", "text", "b S 0"},
		{"t", "1082", "11", "date", "b D 0"},
		{"t", "20005", "2200", "vol_domain", "d N 0"},
		{"o", "20006", "2200", "===", "b 23 23 16"},
		{"e", "20002", "r", "f", "20004"},
		{"e", "20005", "t", "f", "20004"},
		{"e", "20006", "o", "f", "20004"},
	}
	for _, op := range strings.Fields("= <> < > <= >= + - * / % ^ || ~~ !~~ ~~* !~~* ~ !~ -> ->> @> ? && | &") {
		rows = append(rows, []string{"O", "", "", op, ""})
	}
	set, err := catalog.Load(t.Context(), func(_ context.Context, _ string, row func([]string) error) error {
		for _, cells := range rows {
			if err := row(cells); err != nil {
				return err
			}
		}
		return nil
	}, catalog.Options{Words: sqlscan.Words})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// FuzzJudge: no text makes Judge fail, and a statement that is shared is not
// shared any more when something unsafe is added to it.
func FuzzJudge(f *testing.F) {
	set := smallSet(f)
	for _, row := range readTSV(f, "testdata/hostile.tsv") {
		f.Add(row[2])
	}
	for _, row := range readTSV(f, "../sqlscan/testdata/classify.tsv") {
		f.Add(row[0])
	}
	f.Fuzz(func(t *testing.T, sql string) {
		v := Judge(sql, set, Options{})
		if v.Pos < 0 || v.Pos > len(sql) || (v.Class == sqlscan.Read) != (v.Reason == sqlscan.None) {
			t.Fatalf("Judge(%q) = %+v", sql, v)
		}
		v.Hint()
		if v := Judge(sql, nil, Options{}); v.Class == sqlscan.Read && sqlscan.Scan(sql).Class != sqlscan.Read {
			t.Fatalf("Judge(%q) without a catalog is a read, but the text is not", sql)
		}
		if v.Class != sqlscan.Read {
			return
		}
		for _, part := range []struct{ before, after string }{
			{"WITH unsafe AS (SELECT vol()) ", ""},
			{"WITH unsafe AS (SELECT * FROM v_vol) (", "\n)"},
			{"(", "\n) UNION SELECT 1::vol_domain"},
			{"SELECT 1 === 2 UNION ALL (", "\n)"},
		} {
			if v := Judge(part.before+sql+part.after, set, Options{}); v.Class == sqlscan.Read {
				t.Fatalf("Judge(%q) is a read", part.before+sql+part.after)
			}
		}
	})
}
