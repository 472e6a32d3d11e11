package flightpg

import (
	"context"
	"database/sql"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/pgtest"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// notOwn are directories whose SQL never reaches a user's server.
var notOwn = map[string]string{
	"bench":                 "a module of its own, on servers that it starts",
	"examples":              "what a user writes",
	"integration":           "tests, a module of its own",
	"internal/catalog/gen":  "a generator, run by hand on fresh servers",
	"internal/pgtest":       "for tests",
	"internal/judge/growth": "shapes of texts, for tests; nobody sends them",
	"internal/battery":      "for tests",
	"internal/extensions":   "a survey, run by hand on servers that it starts",
}

// values are the calls whose results may stand in an own query, and what the tests
// put in their place: none can hold a name.
var values = map[string]string{"strconv.Itoa": "0", "strconv.FormatInt": "0", "strconv.FormatUint": "0", "strconv.FormatBool": "false"}

// wholes are variables that hold SQL which is judged where it comes from.
var wholes = map[string]string{"catalogs.go: sql": "internal/catalog/catalog.sql"}

// An ownText is a piece of SQL in the source.
type ownText struct {
	where, sql string
	holes      []string // what it is put together from that is neither constant nor a value
}

// ownTexts finds the SQL that the module sends: string literals, with what is added
// to them, and .sql files.
func ownTexts(t *testing.T) []ownText {
	t.Helper()
	files := map[string][]string{} // by directory
	var texts []ownText
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (notOwn[filepath.ToSlash(path)] != "" || d.Name() == "testdata" || len(d.Name()) > 1 && d.Name()[0] == '.'):
			return filepath.SkipDir
		case filepath.Ext(path) == ".go" && !strings.HasSuffix(path, "_test.go"):
			files[filepath.Dir(path)] = append(files[filepath.Dir(path)], path)
		case filepath.Ext(path) == ".sql":
			text, err := os.ReadFile(path)
			texts = append(texts, ownText{where: filepath.ToSlash(path), sql: string(text)})
			return err
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, paths := range files {
		sources := map[string]any{}
		for _, path := range paths {
			sources[path] = nil
		}
		texts = append(texts, sqlIn(t, sources)...)
	}
	slices.SortFunc(texts, func(a, b ownText) int { return strings.Compare(a.where, b.where) })
	return texts
}

// sqlIn finds the SQL in a package: sources by file name, nil for those on disk.
func sqlIn(t *testing.T, sources map[string]any) []ownText {
	t.Helper()
	fset := token.NewFileSet()
	var files []*ast.File
	consts := map[string]ast.Expr{}
	for path, src := range sources {
		file, err := parser.ParseFile(fset, path, src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, file)
		ast.Inspect(file, func(n ast.Node) bool {
			if decl, ok := n.(*ast.GenDecl); ok && decl.Tok == token.CONST {
				for _, spec := range decl.Specs {
					spec := spec.(*ast.ValueSpec)
					for i, name := range spec.Names {
						if i < len(spec.Values) {
							consts[name.Name] = spec.Values[i]
						}
					}
				}
			}
			return true
		})
	}
	var texts []ownText
	for _, file := range files {
		var visit func(n ast.Node) bool
		visit = func(n ast.Node) bool {
			expr, ok := n.(ast.Expr)
			if !ok {
				return true
			}
			var text ownText
			var holes []ast.Expr
			switch e := expr.(type) {
			case *ast.BasicLit:
				if e.Kind != token.STRING {
					return true
				}
			case *ast.BinaryExpr:
				if e.Op != token.ADD {
					return true
				}
			default:
				return true
			}
			text.sql = fold(expr, consts, &holes)
			pos := fset.Position(expr.Pos())
			for _, part := range holes {
				name := "an expression"
				if id, ok := part.(*ast.Ident); ok {
					name = id.Name
				}
				text.holes = append(text.holes, name)
				ast.Inspect(part, visit)
			}
			if startsSQL.MatchString(text.sql) {
				text.where = fmt.Sprintf("%s:%d", filepath.ToSlash(pos.Filename), pos.Line)
				texts = append(texts, text)
			}
			return false
		}
		ast.Inspect(file, visit)
	}
	return texts
}

// startsSQL matches a statement's beginning. One word alone is a name for something.
var startsSQL = regexp.MustCompile(`(?i)^[\s;(]*(SELECT|WITH|VALUES|TABLE|INSERT|UPDATE|DELETE|MERGE|SHOW|SET|RESET|BEGIN|START|COMMIT|END|ROLLBACK|ABORT|` +
	`SAVEPOINT|RELEASE|DISCARD|PREPARE|EXECUTE|DEALLOCATE|DECLARE|FETCH|MOVE|CLOSE|EXPLAIN|CALL|DO|COPY|LISTEN|UNLISTEN|NOTIFY|LOCK|` +
	`CREATE|ALTER|DROP|GRANT|REVOKE|TRUNCATE|ANALYZE|VACUUM|REFRESH)[\s(;]+\S`)

// hole stands for what is not known: white space to SQL.
const hole = "/* ? */"

// fold returns a string expression's value, with a 0 for each value, and a hole for
// what is not known.
func fold(e ast.Expr, consts map[string]ast.Expr, holes *[]ast.Expr) string {
	switch e := e.(type) {
	case *ast.BasicLit:
		if text, err := strconv.Unquote(e.Value); e.Kind == token.STRING && err == nil {
			return text
		}
	case *ast.BinaryExpr:
		if e.Op == token.ADD {
			return fold(e.X, consts, holes) + fold(e.Y, consts, holes)
		}
	case *ast.ParenExpr:
		return fold(e.X, consts, holes)
	case *ast.Ident:
		if value, ok := consts[e.Name]; ok {
			others := maps.Clone(consts) // another one of this name may be in its value
			delete(others, e.Name)
			return fold(value, others, holes)
		}
	case *ast.CallExpr:
		if f, ok := e.Fun.(*ast.SelectorExpr); ok {
			if pkg, ok := f.X.(*ast.Ident); ok && values[pkg.Name+"."+f.Sel.Name] != "" {
				return values[pkg.Name+"."+f.Sel.Name]
			}
		}
	}
	*holes = append(*holes, e)
	return hole
}

// statements takes a text apart. A semicolon in a string would leave two pieces that
// cannot be read, which is found.
func statements(text string) (list []string) {
	text = regexp.MustCompile(`(?m)^\s*--.*$`).ReplaceAllString(text, "")
	for s := range strings.SplitSeq(strings.ReplaceAll(text, hole, " "), ";") {
		if s = strings.TrimSpace(s); s != "" {
			list = append(list, s)
		}
	}
	return list
}

// isQuery reports whether a statement has expressions.
func isQuery(statement string) bool {
	return regexp.MustCompile(`(?i)^\(*(SELECT|WITH|VALUES)\b`).MatchString(statement)
}

// complaints says what in a piece of SQL is looked up in the search_path.
func complaints(text ownText) (list []string) {
	for _, part := range text.holes {
		file, _, _ := strings.Cut(text.where, ":")
		if wholes[file+": "+part] == "" {
			list = append(list, part+" is a part that is not judged")
		}
	}
	for _, s := range statements(text.sql) {
		if !isQuery(s) {
			if !regexp.MustCompile(`(?i)^(BEGIN|ROLLBACK|SET|RESET|SHOW|DISCARD)\b`).MatchString(s) {
				list = append(list, fmt.Sprintf("a kind of statement that is not judged: %.20q", s))
			}
			continue
		}
		read := sqlscan.Names(s, func(n sqlscan.Name) bool {
			kind := map[sqlscan.NameKind]string{
				sqlscan.RelationName: "relation", sqlscan.FunctionName: "function", sqlscan.TypeName: "type", sqlscan.OperatorName: "operator",
			}[n.Kind]
			switch {
			case n.Kind == sqlscan.AttributeName && n.Bare:
				list = append(list, fmt.Sprintf("(…).%s may be a function", n.Name))
			case kind != "" && n.Schema != "pg_catalog" && !n.CTE:
				list = append(list, fmt.Sprintf("%s %s, at %.30q", kind, n.Name, s[n.Pos:]))
			}
			return true
		})
		if !read {
			list = append(list, fmt.Sprintf("not read to its end: %.60q", s))
		}
		for _, m := range regexp.MustCompile(`(?i)\bCOLLATE\s+(\S+)`).FindAllStringSubmatch(s, -1) {
			if !strings.HasPrefix(m[1], "pg_catalog.") {
				list = append(list, "collation "+m[1])
			}
		}
	}
	return list
}

// TestOwnQueries: what flightpg itself sends runs as the application's role. A name
// or an operator in it that is not qualified can be somebody else's.
func TestOwnQueries(t *testing.T) {
	texts := ownTexts(t)
	queries, files := 0, map[string]bool{}
	for _, text := range texts {
		for _, c := range complaints(text) {
			t.Errorf("%s: %s; see ask", text.where, c)
		}
		file, _, _ := strings.Cut(text.where, ":")
		files[file] = true
		for _, s := range statements(text.sql) {
			if isQuery(s) {
				queries++
			}
		}
	}
	t.Logf("%d texts, %d queries", len(texts), queries)
	for _, file := range []string{"internal/catalog/catalog.sql", "catalogs.go", "conn.go", "failover.go", "guard.go", "pipeline.go"} {
		if !files[file] {
			t.Errorf("no SQL found in %s", file)
		}
	}
}

// TestOwnQueries_Complaints: the lint finds what it is for.
func TestOwnQueries_Complaints(t *testing.T) {
	for expr, want := range map[string]string{
		`"SELECT pg_catalog.now() WHERE pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) 1"`:                                      "",
		`"SELECT oid::pg_catalog.text FROM pg_catalog.pg_class c WHERE c.oid OPERATOR(pg_catalog.=) ANY ('{1}'::pg_catalog.oid[])"`: "",
		`"WITH w AS (SELECT 1 AS a) SELECT a, count FROM w, pg_catalog.unnest('{2}'::pg_catalog.int4[]) u(a) ORDER BY a"`:           "",
		`"SELECT CASE WHEN true THEN coalesce(1, 2) END, 'a' COLLATE pg_catalog.\"C\", 'x = y'"`:                                    "",
		`"SELECT " + strconv.Itoa(1) + "; ROLLBACK"`:                                                                                "",
		`"BEGIN READ ONLY"`:                                  "",
		`"SET LOCAL x = 1; SELECT 1; SHOW x"`:                "",
		`"set in the DSN"`:                                   "",
		`"SELECT 1 = 2"`:                                     "operator =",
		`"SELECT " + one + " = 2"`:                           "operator =",
		`"SELECT 1" + " = " + "2"`:                           "operator =",
		"`\n select 1 = 2`":                                  "operator =",
		`"(SELECT 1 OPERATOR(public.=) 2)"`:                  "operator =",
		`"; SELECT 1 = 2"`:                                   "operator =",
		`"BEGIN; SELECT 1 = 2; ROLLBACK"`:                    "operator =",
		`"SELECT -- x\n 1 = 2"`:                              "operator =",
		`"SELECT now()"`:                                     "function now",
		`"SELECT public.now()"`:                              "function now",
		`"SELECT a FROM unnest('{1}'::pg_catalog.int4[]) a"`: "function unnest",
		`"SELECT 1::oid"`:                                    "type oid",
		`"SELECT CAST (1 AS oid)"`:                           "type oid",
		`"SELECT oid '1'"`:                                   "type oid",
		`"SELECT '{1}'::oid[]"`:                              "type oid",
		`"SELECT a FROM pg_class"`:                           "relation pg_class",
		`"TABLE pg_class"`:                                   "a kind of statement",
		`"WITH w AS (SELECT 1) SELECT a FROM w, v"`:          "relation v",
		`"SELECT 1 IN (1, 2)"`:                               "operator =",
		`"SELECT 'a' LIKE 'b'"`:                              "operator ~~",
		`"SELECT 'a' SIMILAR TO 'b'"`:                        "operator ~",
		`"SELECT 1 BETWEEN 2 AND 3"`:                         "operator >=",
		`"SELECT 1 IS DISTINCT FROM 2"`:                      "operator =",
		`"SELECT NULLIF(1, 2)"`:                              "operator =",
		`"SELECT CASE 1 WHEN 2 THEN 3 END"`:                  "operator =",
		`"SELECT (1, 2) <> (3, 4)"`:                          "operator <>",
		`"SELECT 1 <> ALL ('{1}'::pg_catalog.int4[])"`:       "operator <>",
		`"SELECT a FROM pg_catalog.pg_class a JOIN pg_catalog.pg_class b USING (x)"`: "operator =",
		`"SELECT a FROM pg_catalog.pg_class NATURAL JOIN pg_catalog.pg_type"`:        "operator =",
		`"SELECT a FROM pg_catalog.pg_class a ORDER BY 1 USING <"`:                   "operator <",
		`"SELECT (a).f FROM pg_catalog.pg_class a"`:                                  "(…).f may be a function",
		`"SELECT 'a' COLLATE german"`:                                                "collation german",
		`"SELECT " + variable`:                                                       "variable is a part",
		`"SELECT 1 " + f("x", "SELECT 1 = 2")`:                                       "operator =",
		`"SELECT 'a"`:                                                                "not read to its end",
		`"DO $$ BEGIN END $$"`:                                                       "a kind of statement",
		`"EXPLAIN SELECT 1"`:                                                         "a kind of statement",
	} {
		src := "package p\nconst one = `1`\nvar x = " + expr
		var got []string
		for _, text := range sqlIn(t, map[string]any{"x.go": src}) {
			got = append(got, complaints(text)...)
		}
		if found := slices.ContainsFunc(got, func(c string) bool { return strings.HasPrefix(c, want) }); want == "" && got != nil || !found && want != "" {
			t.Errorf("%s: complaints %q; want %q", expr, got, want)
		}
	}
}

// decoys fills public with all that an own query could take for what it names, if it
// looked: functions and operators of the names in it with every pair of the types of
// the relations that it reads, copies of those in pg_catalog, types, relations. They
// say so when they are called.
const decoys = `
SET search_path = '';
CREATE FUNCTION public.called(what text) RETURNS void LANGUAGE plpgsql AS
	'BEGIN RAISE EXCEPTION ''a decoy was called: %%'', what; END';
DO $do$
DECLARE
	types regtype[] := array(
		SELECT DISTINCT atttypid FROM pg_attribute a JOIN pg_type t ON t.oid = atttypid
		WHERE attrelid = ANY (SELECT oid FROM pg_class WHERE relnamespace = 11 AND relname = ANY (%[3]s)) AND typtype <> 'p'
		UNION SELECT unnest('{int4,int8,bool,text,name,oid,regclass,regproc,text[],name[],oid[]}'::regtype[]));
	body text := ' LANGUAGE plpgsql AS $f$ BEGIN PERFORM public.called(%%L); RETURN NULL; END $f$';
	a regtype; b regtype; f text; o text; r record;
BEGIN
	FOREACH a IN ARRAY types LOOP
		FOREACH f IN ARRAY %[1]s::text[] LOOP
			EXECUTE format('CREATE FUNCTION public.%%I(%%s) RETURNS bool' || format(body, f), f, a);
		END LOOP;
		FOREACH b IN ARRAY types LOOP
			EXECUTE format('CREATE FUNCTION public.decoy(%%s, %%s) RETURNS bool' || format(body, 'operator'), a, b);
			FOREACH o IN ARRAY %[2]s::text[] LOOP
				EXECUTE format('CREATE OPERATOR public.%%s (FUNCTION = public.decoy, LEFTARG = %%s, RIGHTARG = %%s)', o, a, b);
			END LOOP;
			FOREACH f IN ARRAY %[5]s::text[] LOOP
				EXECUTE format('CREATE FUNCTION public.%%I(%%s, %%s) RETURNS bool' || format(body, f), f, a, b);
			END LOOP;
		END LOOP;
	END LOOP;
	FOR r IN SELECT oid, prokind, pg_get_function_arguments(oid) AS args FROM pg_proc
		WHERE pronamespace = 11 AND proname = ANY (%[1]s) AND prokind <> 'a' LOOP
		BEGIN
			EXECUTE replace(pg_get_functiondef(r.oid), ' FUNCTION pg_catalog.', ' FUNCTION public.');
		EXCEPTION WHEN invalid_function_definition OR invalid_parameter_value THEN NULL; -- one of the above
		END;
	END LOOP;
	FOR r IN SELECT p.proname, g.*, pg_get_function_arguments(p.oid) AS args FROM pg_proc p JOIN pg_aggregate g ON aggfnoid = p.oid
		WHERE pronamespace = 11 AND proname = ANY (%[1]s) LOOP
		BEGIN
			EXECUTE format('CREATE AGGREGATE public.%%I (%%s) (SFUNC = %%s, STYPE = %%s%%s%%s)', r.proname, coalesce(nullif(r.args, ''), '*'),
				r.aggtransfn::regproc, r.aggtranstype::regtype, ', FINALFUNC = ' || nullif(r.aggfinalfn::oid, 0)::regproc, ', INITCOND = ' || quote_literal(r.agginitval));
		EXCEPTION WHEN duplicate_function THEN NULL;
		END;
	END LOOP;
	FOR r IN SELECT oprname, oprleft::regtype AS l, oprright::regtype AS r, oprresult::regtype AS t FROM pg_operator
		WHERE oprnamespace = 11 AND oprname = ANY (%[2]s) AND oprleft <> 0 AND NOT (oprleft = ANY (types) AND oprright = ANY (types)) LOOP
		EXECUTE format('CREATE OR REPLACE FUNCTION public.decoy(%%s, %%s) RETURNS bool' || format(body, 'operator'), r.l, r.r);
		EXECUTE format('CREATE OPERATOR public.%%s (FUNCTION = public.decoy, LEFTARG = %%s, RIGHTARG = %%s)', r.oprname, r.l, r.r);
	END LOOP;
	FOREACH f IN ARRAY %[3]s::text[] LOOP
		EXECUTE format('CREATE VIEW public.%%I AS SELECT %%s FROM pg_catalog.%%I', f, (
			SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
			WHERE attrelid = ('pg_catalog.' || f)::regclass AND attnum > 0 AND atttypid <> 'anyarray'::regtype), f);
	END LOOP;
	FOREACH f IN ARRAY %[4]s::text[] LOOP
		EXECUTE format('CREATE DOMAIN public.%%I AS pg_catalog.%%I', f, f);
	END LOOP;
END $do$;
`

// TestOwnQueries_Resolve has a server resolve every name and operator in flightpg's
// own queries where public comes first and has an exact match for each. A function made
// of a query depends on what these have been found to mean.
func TestOwnQueries_Resolve(t *testing.T) {
	var queries []ownText
	names := map[string]map[string]bool{"functions": {}, "pairs": {}, "operators": {}, "types": {}, "relations": {}}
	for _, text := range ownTexts(t) {
		for _, s := range statements(text.sql) {
			if !isQuery(s) {
				continue
			}
			queries = append(queries, ownText{where: text.where, sql: s})
			sqlscan.Names(s, func(n sqlscan.Name) bool {
				switch {
				case n.Kind == sqlscan.FunctionName:
					names["functions"][n.Name] = true
					if n.Args == 2 {
						names["pairs"][n.Name] = true
					}
				case n.Kind == sqlscan.OperatorName:
					names["operators"][n.Name] = true
				case n.Kind == sqlscan.TypeName:
					names["types"][n.Name] = true
				case n.Kind == sqlscan.RelationName && !n.CTE:
					names["relations"][n.Name] = true
				}
				return true
			})
		}
	}
	array := func(kind string) string {
		var list []string
		for name := range names[kind] {
			list = append(list, "'"+name+"'")
		}
		return "ARRAY[" + strings.Join(list, ", ") + "]"
	}
	conn, err := pgx.Connect(t.Context(), pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	run := func(text string) [][][]byte {
		t.Helper()
		results, err := conn.PgConn().Exec(t.Context(), text).ReadAll()
		if err != nil {
			t.Fatalf("%.100s: %v", text, err)
		}
		var rows [][][]byte
		for _, r := range results {
			rows = append(rows, r.Rows...)
		}
		return rows
	}
	run("SET client_min_messages = warning; CREATE TABLE public.items (id int); CREATE VIEW public.tokens AS SELECT gen_random_uuid() AS token, id FROM items")
	run(fmt.Sprintf(decoys, array("functions"), array("operators"), array("relations"), array("types"), array("pairs")))
	made := run(`SELECT (SELECT count(*) FROM pg_proc WHERE pronamespace = 'public'::regnamespace), (SELECT count(*) FROM pg_operator WHERE oprnamespace = 'public'::regnamespace)`)
	t.Logf("%d queries; %s functions, %s operators, %d types, %d relations in public", len(queries), made[0][0], made[0][1], len(names["types"]), len(names["relations"]))
	const hostile, clean = "SET search_path = public, pg_catalog", "SET search_path = pg_catalog"

	// reached returns what is not PostgreSQL's own in a query.
	reached := func(query string) (list []string) {
		t.Helper()
		run(hostile)
		_, err := conn.PgConn().Exec(t.Context(), "CREATE FUNCTION public.judged() RETURNS void BEGIN ATOMIC "+query+"; END").ReadAll()
		run(clean)
		if err != nil {
			return []string{err.Error()}
		}
		for _, row := range run(`SELECT pg_describe_object(refclassid, refobjid, 0) FROM pg_depend WHERE classid = 'pg_proc'::regclass
			AND objid = 'public.judged'::regproc AND refobjid >= 16384`) {
			list = append(list, string(row[0]))
		}
		run("DROP FUNCTION public.judged()")
		return list
	}
	run(hostile)
	if _, err := conn.PgConn().Exec(t.Context(), "SELECT 1::pg_catalog.oid >= 2").ReadAll(); err == nil || !strings.Contains(err.Error(), "a decoy was called") {
		t.Fatalf("a decoy gives error %v: the test shows nothing", err)
	}
	run(clean)
	for _, q := range queries {
		if list := reached(q.sql); list != nil {
			t.Errorf("%s reaches %q", q.where, list)
		}
	}
	// What is not qualified is seen, in each query that has the like.
	for qualified, bare := range map[string]string{
		"operator(pg_catalog.>=)": ">=", "operator(pg_catalog.!~)": "!~", "pg_catalog.strpos(": "strpos(", "OPERATOR(pg_catalog.=)": "=",
		"pg_catalog.regexp_matches(": "regexp_matches(", "pg_catalog.concat_ws(": "concat_ws(", "pg_catalog.string_agg(": "string_agg(", "pg_catalog.count(": "count(",
		"::pg_catalog.text": "::text", "::pg_catalog.oid": "::oid", "::pg_catalog.regclass": "::regclass",
		"pg_catalog.pg_class ": "pg_class ", "pg_catalog.pg_locks": "pg_locks",
	} {
		found := false
		for _, q := range queries {
			if mutant := strings.Replace(q.sql, qualified, bare, 1); mutant != q.sql {
				found = true
				if reached(mutant) == nil {
					t.Errorf("%s with %s for %s reaches nothing: the test shows nothing", q.where, bare, qualified)
				}
			}
		}
		if !found {
			t.Errorf("no query has %s", qualified)
		}
	}
	// The answers are the same.
	answer := func(path, query string) []string {
		t.Helper()
		run(path)
		defer run(clean)
		var list []string
		for _, row := range run("BEGIN READ ONLY; " + query + "; ROLLBACK") {
			cells := strings.Fields(string(row[len(row)-1])) // lists have no order
			slices.Sort(cells)
			if len(row) < 5 || string(row[0]) != "p" {
				list = append(list, fmt.Sprintf("%q %q", row[:len(row)-1], cells))
			}
		}
		slices.Sort(list)
		return list
	}
	for _, text := range ownTexts(t) {
		if len(text.holes) > 0 || !slices.ContainsFunc(statements(text.sql), isQuery) {
			continue
		}
		asked := strings.Replace(text.sql, schemasShown, "'its own path'", 1) // which is another one here
		got, want := answer(hostile, asked), answer(clean, asked)
		if !slices.Equal(got, want) || len(got) == 0 {
			t.Errorf("%s: %d rows with decoys in the search_path, %d without, or others", text.where, len(got), len(want))
		}
		t.Logf("%s: %d rows", text.where, len(got))
	}
}

// TestOwnQueries_Hijack: who may create objects in public does not run code with the
// application's rights, and does not make flightpg share what must not be shared.
func TestOwnQueries_Hijack(t *testing.T) {
	role := "flightpg_hijacker_" + strconv.Itoa(os.Getpid())
	evil := `
		GRANT CREATE ON SCHEMA public TO ` + role + `;
		CREATE VIEW public.tokens AS SELECT pg_catalog.gen_random_uuid()::pg_catalog.text AS token;
		SET ROLE ` + role + `;
		CREATE FUNCTION public.strike() RETURNS void LANGUAGE plpgsql AS 'BEGIN PERFORM pg_catalog.pg_advisory_lock(4711, 1); END';
		CREATE FUNCTION public.pg_backend_pid() RETURNS int LANGUAGE plpgsql AS 'BEGIN PERFORM public.strike(); RETURN 0; END';
		CREATE FUNCTION public.current_schemas(bool) RETURNS name[] LANGUAGE plpgsql AS 'BEGIN PERFORM public.strike(); RETURN NULL; END';
		CREATE FUNCTION public.pg_advisory_unlock_all() RETURNS void LANGUAGE plpgsql AS 'BEGIN PERFORM public.strike(); END';
		CREATE FUNCTION public.struck(text) RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM public.strike(); RETURN true; END';
	`
	for i, pair := range []string{"oid, int4", "int4, oid", "regproc, int4", "oid, regclass", "regclass, oid", "name, text", "oid, oid", `"char", "char"`, "text, text", "int4, int4"} {
		left, right, _ := strings.Cut(pair, ", ")
		evil += fmt.Sprintf("CREATE FUNCTION public.evil%d(%s) RETURNS bool LANGUAGE plpgsql AS 'BEGIN PERFORM public.strike(); RETURN false; END';", i, pair)
		for _, op := range strings.Fields("= <> >= < ~ !~ ~~") {
			evil += fmt.Sprintf("CREATE OPERATOR public.%s (FUNCTION = public.evil%d, LEFTARG = %s, RIGHTARG = %s);", op, i, left, right)
		}
	}
	evil += "CREATE DOMAIN public.text AS pg_catalog.text CHECK (public.struck(VALUE)); RESET ROLE;"

	dsn := pgtest.Database(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	exec := func(text string) {
		t.Helper()
		if _, err := admin.Exec(context.Background(), text); err != nil {
			t.Fatal(err)
		}
	}
	exec("CREATE ROLE " + role + "; GRANT " + role + " TO CURRENT_USER")
	defer exec("DROP OWNED BY " + role + "; DROP ROLE " + role)
	exec(evil)
	for _, path := range []string{`"$user", public`, `public, pg_catalog`} {
		t.Run(path, func(t *testing.T) {
			exec(fmt.Sprintf("ALTER DATABASE %s SET search_path = %s", pgx.Identifier{admin.Config().Database}.Sanitize(), path))
			db, err := sql.Open("flightpg", dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			if err := RefreshCatalog(t.Context(), db); err != nil {
				t.Fatal(err)
			}
			var mu sync.Mutex
			seen := map[string]bool{}
			var wg sync.WaitGroup
			for range 64 {
				wg.Go(func() {
					var token string
					if err := db.QueryRowContext(t.Context(), "SELECT token FROM tokens").Scan(&token); err != nil {
						t.Error(err)
					}
					mu.Lock()
					defer mu.Unlock()
					seen[token] = true
				})
			}
			wg.Wait()
			if len(seen) != 64 {
				t.Errorf("64 callers got %d tokens", len(seen))
			}
			// A connection that may hold locks is asked about them when it is used again.
			for _, query := range []string{"SELECT pg_catalog.pg_advisory_lock(1)", "SELECT pg_catalog.pg_advisory_unlock(1)", "SELECT token FROM tokens"} {
				if _, err := db.ExecContext(t.Context(), query); err != nil {
					t.Fatal(err)
				}
			}
			var strikes int
			if err := admin.QueryRow(t.Context(), "SELECT pg_catalog.count(*) FROM pg_catalog.pg_locks WHERE classid OPERATOR(pg_catalog.=) 4711").Scan(&strikes); err != nil {
				t.Fatal(err)
			}
			if strikes > 0 {
				t.Errorf("somebody else's code ran on %d connections", strikes)
			}
		})
	}
}
