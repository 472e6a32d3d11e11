package judge

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/pgtest"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// want fails the test unless the statement is shared as wanted.
func want(t *testing.T, set *catalog.Set, opts Options, shared bool, sql string) {
	t.Helper()
	if v := Judge(sql, set, opts); shared != (v.Class == sqlscan.Read) {
		t.Errorf("Judge(%q) = %v, %v %q: %s; want shared %v", sql, v.Class, v.Reason, v.Name, v.Hint(), shared)
	}
}

// TestSearchPath: names mean what they mean in the session that loaded the set.
func TestSearchPath(t *testing.T) {
	conn := connect(t, database(t, "testdata/hostile.sql"))
	// The paths with which a statement is shared.
	const (
		public = `"$user", public`
		app    = `app`
		both   = `app, "no such schema", public`
	)
	paths := []string{public, app, both, `public, pg_catalog`, `''`}
	sets := map[string]*catalog.Set{}
	for _, path := range paths {
		run(t, conn, "SET search_path = "+path)
		sets[path] = load(t, conn)
	}
	for sql, in := range map[string][]string{
		"SELECT safe_app(1)":               {app, both},
		"SELECT only_app(1)":               {},
		"SELECT lower('x')":                paths,
		"SELECT upper('x')":                {`''`}, // app.upper(text), public.upper(int)
		"SELECT pg_catalog.upper('x')":     paths,
		"SELECT 1 +@+ 2":                   {app, both},
		"SELECT 1 OPERATOR(app.+@+) 2":     paths,
		"SELECT 1 @@@ 2":                   {public, `public, pg_catalog`, `''`}, // a built-in, too
		"SELECT * FROM inside":             {app, both},
		"SELECT * FROM app.inside":         paths,
		"SELECT * FROM v_app":              {},
		"SELECT * FROM t":                  {public, both, `public, pg_catalog`},
		"SELECT 'a'::apptype":              {app, both},
		"SELECT 1::app_domain":             {},
		"SELECT 1::good_domain":            {public, both, `public, pg_catalog`},
		"SELECT (t).only_app FROM pg_am t": {public, `public, pg_catalog`, `''`}, // no such column
	} {
		for _, path := range paths {
			t.Run(path+"/"+sql, func(t *testing.T) { want(t, sets[path], Options{}, slices.Contains(in, path), sql) })
		}
	}
}

// TestRLS: Options.RLS lets policies pass, but not what they reach.
func TestRLS(t *testing.T) {
	set := load(t, connect(t, database(t, "testdata/hostile.sql")))
	for sql, shared := range map[string]bool{
		"SELECT * FROM rls":         true,
		"SELECT * FROM v_rls2":      true,
		"SELECT * FROM rls_insert":  true,
		"SELECT * FROM rls_vol":     false,
		"SELECT * FROM rls_setting": false,
		"SELECT * FROM rls_sub":     false,
	} {
		want(t, set, Options{RLS: true}, shared, sql)
		want(t, set, Options{}, false, sql)
	}
}

// TestClasses: what is not shared is told apart by what it may do, so that only
// what may change a session keeps it.
func TestClasses(t *testing.T) {
	set := load(t, connect(t, database(t, "testdata/hostile.sql")))
	for sql, want := range map[string]sqlscan.Class{
		"SELECT vol()":                            sqlscan.Other,
		"SELECT random(), vol()":                  sqlscan.Other,
		"INSERT INTO log VALUES (vol())":          sqlscan.Other,
		"INSERT INTO log VALUES (no_such_f())":    sqlscan.Other,
		"INSERT INTO log VALUES (1)":              sqlscan.Write,
		"INSERT INTO not_known VALUES (1)":        sqlscan.Write,
		"INSERT INTO log SELECT id FROM v_vol":    sqlscan.Other,
		"INSERT INTO log SELECT id FROM v_random": sqlscan.Write,
		"SELECT * FROM v_vol, v_random":           sqlscan.Other,
		"SELECT * FROM not_known":                 sqlscan.Other,
		"SELECT random() FROM not_known":          sqlscan.Other,
		"SELECT * FROM v_random":                  sqlscan.PrivateRead,
		"SELECT * FROM rls":                       sqlscan.PrivateRead,
		"SELECT * FROM foreign_t":                 sqlscan.PrivateRead,
		"SELECT * FROM hits":                      sqlscan.PrivateRead,
		"SELECT * FROM v_nextval":                 sqlscan.Write,
		"SELECT * FROM v_lock":                    sqlscan.Write,
		"SELECT * FROM rls_vol":                   sqlscan.Other,
	} {
		if v := Judge(sql, set, Options{}); v.Class != want {
			t.Errorf("Judge(%q) = %v, %v %q; want %v", sql, v.Class, v.Reason, v.Name, want)
		}
	}
	for sql, stale := range map[string]bool{
		"SELECT * FROM not_known": true, "SELECT not_known(1)": true, "SELECT 1::not_known": true, "SELECT 1 @#@# 2": true,
		"SELECT * FROM t": false, "SELECT vol()": false, "SELECT random()": false,
	} {
		if v := Judge(sql, set, Options{}); v.Stale != stale {
			t.Errorf("Judge(%q).Stale = %v; want %v", sql, v.Stale, stale)
		}
	}
}

// TestVerdict checks what a verdict points at.
func TestVerdict(t *testing.T) {
	set := load(t, connect(t, database(t, "testdata/hostile.sql")))
	for sql, want := range map[string]string{
		"SELECT lower('x'), Vol(1)":          `catalog unsafe-function vol 19 function vol is volatile, and by its body could write, or run SQL from a string`,
		"SELECT * FROM v_vol_sub":            `catalog unsafe-view v_vol_sub 14 v_vol_sub reaches function vol, which is volatile, and by its body could write, or run SQL from a string`,
		"SELECT * FROM v_rls2":               `catalog row-security v_rls2 14 v_rls2 reaches table rls has row-level security: what a read sees depends on who asks`,
		"SELECT * FROM remote":               `catalog foreign-table remote 14 remote reaches foreign table remote_1a, which no snapshot of this database covers`,
		"SELECT * FROM has_vol_domain":       `catalog unsafe-table has_vol_domain 14 has_vol_domain reaches function vol_true, which is volatile, and by its body could write, or run SQL from a string`,
		"SELECT 1::over_domain":              `catalog unsafe-type over_domain 10 over_domain reaches function vol_true, which is volatile, and by its body could write, or run SQL from a string`,
		"SELECT 1 === 2":                     `catalog unsafe-operator === 9 === reaches function op_vol, which is volatile, and by its body could write, or run SQL from a string`,
		"SELECT last_value FROM hits":        `catalog sequence hits 23 sequence hits, which no snapshot covers`,
		"SELECT * FROM v_setting":            `catalog unsafe-view v_setting 14 v_setting reaches built-in function current_setting, whose answer belongs to one call or session, or which has an effect`,
		"SELECT * FROM nope":                 `catalog unknown-relation nope 14 nope was not in the search_path when the catalog was read; if it is new, the next reading finds it`,
		"SELECT random()":                    `text volatile-function random 7 `,
		"SELECT current_setting('TimeZone')": `text denied-function current_setting 7 a setting is shared as current_setting('name'), if no session can have its own value of it, like server_version or max_connections`,
		"SELECT pg_backend_pid()":            `text denied-function pg_backend_pid 7 `,
		"SELECT id FROM t WHERE id = 1":      `text none  0 `,
	} {
		v := Judge(sql, set, Options{})
		if got := fmt.Sprintf("%v %v %s %d %s", v.Layer, v.Reason, v.Name, v.Pos, v.Hint()); got != want {
			t.Errorf("Judge(%q) = %s; want %s", sql, got, want)
		}
	}
}

// TestWithoutCatalog: no set and no trust leaves what nobody can have redefined.
func TestWithoutCatalog(t *testing.T) {
	for sql, shared := range map[string]bool{
		"SELECT 1": true,
		"SELECT $1::int, CAST($2 AS double precision)":            true,
		"SELECT * FROM pg_catalog.pg_class":                       true,
		"SELECT * FROM information_schema.tables":                 true,
		"WITH x AS (SELECT 1) SELECT * FROM x":                    true,
		"SELECT pg_catalog.lower('A') OPERATOR(pg_catalog.||) ''": true,
		"SELECT * FROM t":    false,
		"SELECT now(1)":      false,
		"SELECT dpos '1'":    false,
		"SELECT 1::dpos":     false,
		"SELECT 1 === 2":     false,
		"SELECT (1).f":       false,
		"SELECT pg_sleep(1)": false,
	} {
		want(t, nil, Options{}, shared, sql)
	}
	if v := Judge("SELECT 1 FROM t", nil, Options{}); v.Reason != sqlscan.CatalogUnavailable || v.Layer != Catalog || v.Name != "t" {
		t.Errorf("without a catalog: %+v", v)
	}
}

// TestCasts: a cast between built-in types by a volatile function can be
// anywhere.
func TestCasts(t *testing.T) {
	conn := connect(t, pgtest.Database(t))
	run(t, conn, `CREATE TABLE t (id int);
		CREATE FUNCTION to_point(int) RETURNS point LANGUAGE plpgsql AS 'begin return point(1, 2); end'`)
	want(t, load(t, conn), Options{}, true, "SELECT id FROM t")
	run(t, conn, "CREATE CAST (int AS point) WITH FUNCTION to_point(int)")
	set := load(t, conn)
	want(t, set, Options{}, false, "SELECT id FROM t")
	if v := Judge("SELECT id FROM t", set, Options{}); v.Reason != sqlscan.UnsafeCast || v.Hint() == "" {
		t.Errorf("cast: %+v", v)
	}
	run(t, conn, "ALTER FUNCTION to_point IMMUTABLE")
	want(t, load(t, conn), Options{}, true, "SELECT id FROM t")
}

// TestUnprivileged: a role that may do nothing gets the same answers.
func TestUnprivileged(t *testing.T) {
	dsn := database(t, "testdata/hostile.sql")
	conn := connect(t, dsn)
	role := fmt.Sprintf("nobody_%d", time.Now().UnixNano())
	run(t, conn, "CREATE ROLE "+role+"; REVOKE ALL ON ALL TABLES IN SCHEMA public FROM public; SET ROLE "+role)
	set := load(t, conn)
	run(t, conn, "RESET ROLE; DROP ROLE "+role)
	for _, row := range readTSV(t, "testdata/hostile.tsv") {
		want(t, set, Options{}, row[0] == "coalesce", row[2])
	}
}

// TestBuiltins: no built-in object is unknown or at fault.
func TestBuiltins(t *testing.T) {
	conn := connect(t, pgtest.Database(t))
	set := load(t, conn)
	list := func(sql string) (names []string) {
		rows, err := conn.Query(t.Context(), sql)
		if err != nil {
			t.Fatal(err)
		}
		if names, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(names) < 10 {
			t.Fatalf("%s: %d rows, %v", sql, len(names), err)
		}
		return names
	}
	for _, name := range list(`SELECT quote_ident(typname) FROM pg_type WHERE typnamespace = 'pg_catalog'::regnamespace AND typname !~ '^_?pg_'`) {
		want(t, set, Options{}, true, "SELECT $1::"+name+", CAST($2 AS pg_catalog."+name+"[])")
	}
	for _, name := range list(`SELECT DISTINCT oprname FROM pg_operator`) {
		want(t, set, Options{}, true, "SELECT $1 "+name+" $2, $3 OPERATOR(pg_catalog."+name+") $4")
	}
	for _, name := range list(`SELECT relname FROM pg_class WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind IN ('r', 'v')`) {
		want(t, set, Options{}, !catalog.SessionView(name), "SELECT * FROM "+name)
		want(t, set, Options{}, !catalog.SessionView(name), "TABLE pg_catalog."+name)
	}
	for _, name := range list(`SELECT relname FROM pg_class WHERE relnamespace = 'information_schema'::regnamespace AND relkind IN ('r', 'v')`) {
		want(t, set, Options{}, true, "SELECT * FROM information_schema."+name)
	}
	// x.f and (x).f call functions of one argument.
	for _, name := range list(`SELECT DISTINCT proname FROM pg_proc
		WHERE pronamespace = 'pg_catalog'::regnamespace AND oid < 16384 AND 2281 <> ALL (proargtypes) AND prorettype <> 2281
		AND pronargs >= 1 AND pronargs - pronargdefaults - (provariadic <> 0)::int <= 1`) {
		if class := catalog.Function(name); class == catalog.Safe || strings.HasSuffix(name, "in") || strings.HasSuffix(name, "out") ||
			strings.HasSuffix(name, "recv") || strings.HasSuffix(name, "send") {
			continue // those of types take cstring or internal, which no value in a query is
		}
		for _, sql := range []string{"SELECT ($1).%s", "SELECT x.%s FROM unnest($1) x", "SELECT (a[1]).b.%q"} {
			sql = fmt.Sprintf(sql, name)
			if v := sqlscan.Scan(sql); v.Class == sqlscan.Read {
				t.Errorf("Scan(%q) is a read", sql)
			}
		}
	}
}

// TestLoadErrors: a failed query is a failed load, and so is one without rows.
func TestLoadErrors(t *testing.T) {
	broken := errors.New("broken")
	for _, query := range []catalog.QueryFunc{
		func(context.Context, string, func([]string) error) error { return broken },
		func(_ context.Context, _ string, row func([]string) error) error { return nil },
		func(_ context.Context, _ string, row func([]string) error) error { return row([]string{"v"}) },
		func(_ context.Context, _ string, row func([]string) error) error {
			return row([]string{"v", "", "", "x", ""})
		},
	} {
		if set, err := catalog.Load(t.Context(), query, catalog.Options{Words: sqlscan.Words}); err == nil || set != nil {
			t.Errorf("Load = %v, %v; want an error", set, err)
		}
	}
}

// TestLarge logs what a large catalog costs.
func TestLarge(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN with -short: a large catalog takes seconds")
	}
	conn := connect(t, pgtest.Database(t))
	tables, views := 1500, 300
	for i := 0; i < tables; i += 100 {
		run(t, conn, fmt.Sprintf(`DO $$ BEGIN FOR i IN %d..%d LOOP EXECUTE format(
			'CREATE TABLE table_%%s (id int PRIMARY KEY, a text, b text, c timestamptz, d jsonb, e numeric, f bool)', i); END LOOP; END $$`, i, i+99))
	}
	run(t, conn, fmt.Sprintf(`CREATE TYPE mood AS ENUM ('a');
		DO $$ BEGIN FOR i IN 0..%d LOOP EXECUTE format(
		'CREATE VIEW view_%%1$s AS SELECT t.id, lower(t.a) AS a, count(*), max(u.c) AS c, ''a''::mood AS m FROM table_%%1$s t JOIN table_%%2$s u ON t.id = u.id AND t.e > 1 WHERE t.a LIKE ''x'' AND u.f GROUP BY 1, 2', i, i + 1);
		END LOOP; END $$; ANALYZE`, views-1))
	for range 3 {
		start, rows := time.Now(), 0
		_, err := catalog.Load(t.Context(), func(ctx context.Context, sql string, row func([]string) error) error {
			return queryFunc(conn)(ctx, sql, func(cells []string) error { rows++; return row(cells) })
		}, catalog.Options{Words: sqlscan.Words})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%d tables, %d views: %d rows in %v", tables, views, rows, time.Since(start))
	}
}
