package judge

import (
	"testing"

	"github.com/flightpg/flightpg/internal/pgtest"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// TestExtensions holds flightpg to what functions of extensions do, whatever they are
// declared. A statement marked hit must call a volatile function, or the table is wrong.
func TestExtensions(t *testing.T) {
	for extension, statements := range map[string][]struct {
		oracle string // hit, or - if what is wrong cannot be counted
		shared bool
		sql    string
	}{
		"tablefunc": {
			{"hit", false, "SELECT * FROM crosstab('SELECT hit()::text, ''a''::text, ''b''::text') AS x(id text, a text)"},
			{"hit", false, "SELECT * FROM crosstab('SELECT 1, 2, 3', 'SELECT hit()') AS x(id int, a int)"},
			{"hit", false, "SELECT * FROM crosstab2('SELECT hit()::text, ''a''::text, ''b''::text')"},
			{"hit", false, "SELECT * FROM connectby('counted', 'id', 'parent', '1', 0) AS x(id int, parent int, level int)"},
			{"-", false, "SELECT * FROM normal_rand(3, 1, 1)"},
			{"-", false, "SELECT * FROM by_crosstab()"},
		},
		"xml2": {
			{"hit", false, "SELECT * FROM xpath_table('id', 'xml', 'documents', '/a', 'hit() > 0') AS x(id int, a text)"},
			{"-", true, "SELECT xpath_string('<a>x</a>', '/a')"},
		},
		"isn": {
			{"-", false, "SELECT isn_weak()"},
			{"-", false, "SELECT isn_weak(true)"},
			{"-", true, "SELECT isbn('978-0-393-04002-9') = '0-393-04002-X'"},
			{"-", true, "SELECT is_valid(isbn13 '978-0-393-04002-9')"},
		},
		"pg_trgm":            {{"-", false, "SELECT set_limit(0.5)"}, {"-", true, "SELECT similarity('abc', 'abd'), 'abc' % 'abd'"}},
		"uuid-ossp":          {{"-", false, "SELECT uuid_generate_v4()"}, {"-", true, "SELECT uuid_generate_v5(uuid_ns_dns(), 'x')"}},
		"pgcrypto":           {{"-", false, "SELECT gen_salt('bf')"}, {"-", true, "SELECT digest('x', 'sha256')"}},
		"dblink":             {{"-", false, "SELECT * FROM dblink('dbname=x', 'SELECT 1') AS x(i int)"}, {"-", false, "SELECT dblink_get_connections()"}},
		"sslinfo":            {{"-", false, "SELECT ssl_is_used()"}},
		"pageinspect":        {{"-", false, "SELECT page_header(get_raw_page('documents', 0))"}},
		"pgstattuple":        {{"-", false, "SELECT * FROM pgstattuple('documents')"}},
		"pg_buffercache":     {{"-", false, "SELECT count(*) FROM pg_buffercache"}},
		"pg_stat_statements": {{"-", false, "SELECT * FROM pg_stat_statements"}, {"-", false, "SELECT * FROM pg_stat_statements_info"}},
		"postgres_fdw":       {{"-", false, "SELECT * FROM postgres_fdw_get_connections()"}},
		"tsm_system_rows":    {{"-", false, "SELECT * FROM documents TABLESAMPLE system_rows(1)"}},
		"lo":                 {{"-", false, "SELECT lo_oid(1), lo_creat(1)"}},
		"unaccent":           {{"-", true, "SELECT unaccent('é')"}},
		"citext":             {{"-", true, "SELECT 'A'::citext = 'a'"}},
		"hstore":             {{"-", true, "SELECT 'a=>1'::hstore -> 'a'"}},
		"ltree":              {{"-", true, "SELECT 'a.b'::ltree <@ 'a'"}},
	} {
		t.Run(extension, func(t *testing.T) {
			if has, err := pgtest.Shared(t).HasExtension(t.Context(), extension); err != nil || !has {
				t.Skipf("the server has no files for extension %s: install what your system has of PostgreSQL's contrib (error: %v)", extension, err)
			}
			conn := connect(t, database(t, "testdata/extensions.sql"))
			run(t, conn, `CREATE EXTENSION "`+extension+`"`)
			if extension == "tablefunc" {
				run(t, conn, `CREATE FUNCTION by_crosstab() RETURNS SETOF tablefunc_crosstab_2 STABLE LANGUAGE sql AS $$SELECT crosstab2('SELECT 1')$$`)
			}
			set := load(t, conn)
			for _, s := range statements {
				if s.oracle == "hit" {
					before := hits(t, conn)
					run(t, conn, s.sql)
					if hits(t, conn) == before {
						t.Errorf("%s: no volatile function was called; the table says hit", s.sql)
					}
				}
				v := Judge(s.sql, set, Options{})
				if s.shared != (v.Class == sqlscan.Read) {
					t.Errorf("Judge(%q) = %v, %v %q: %s; want shared %v", s.sql, v.Class, v.Reason, v.Name, v.Hint(), s.shared)
				}
				if v.Layer == Catalog && v.Hint() == "" {
					t.Errorf("Judge(%q) = %v, %v %q without a hint", s.sql, v.Class, v.Reason, v.Name)
				}
			}
			for _, sql := range []string{"SELECT id, lower(doc) FROM documents WHERE id = 1 AND doc = 'x' ORDER BY doc", "SELECT count(*) FROM documents"} {
				want(t, set, Options{}, true, sql)
			}
		})
	}
}

// TestElsewhere: what a function in PL/sh answers is not in this database, whatever it is
// declared.
func TestElsewhere(t *testing.T) {
	if has, err := pgtest.Shared(t).HasExtension(t.Context(), "plsh"); err != nil || !has {
		t.Skipf("the server has no files for language plsh (error: %v)", err)
	}
	conn := connect(t, database(t))
	run(t, conn, "CREATE EXTENSION plsh; CREATE FUNCTION there() RETURNS text STABLE LANGUAGE plsh AS $$#!/bin/sh\ndate$$")
	v := Judge("SELECT there()", load(t, conn), Options{})
	if v.Class != sqlscan.PrivateRead || v.Hint() == "" {
		t.Errorf("%v, %v %q: %s; want a private read", v.Class, v.Reason, v.Name, v.Hint())
	}
}
