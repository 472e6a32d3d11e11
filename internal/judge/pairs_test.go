package judge

import (
	"fmt"
	"testing"

	"github.com/flightpg/flightpg/internal/pgtest"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// TestPairs_Many: there are more casts at fault than bits for them. None is forgotten;
// what has no bit is at fault by its type alone.
func TestPairs_Many(t *testing.T) {
	conn := connect(t, pgtest.Database(t))
	const n = 80
	run(t, conn, fmt.Sprintf(`CREATE TABLE plain (id int);
		DO $$ BEGIN FOR i IN 1..%d LOOP
			EXECUTE format('CREATE TYPE e%%1$s AS ENUM (''a'')', i);
			EXECUTE format('CREATE FUNCTION f%%1$s(e%%1$s) RETURNS int VOLATILE LANGUAGE plpgsql AS ''BEGIN RETURN 1; END''', i);
			EXECUTE format('CREATE CAST (e%%1$s AS int) WITH FUNCTION f%%1$s(e%%1$s)', i);
			EXECUTE format('CREATE TABLE t%%1$s (x e%%1$s)', i);
		END LOOP; END $$`, n))
	set := load(t, conn)
	shared := 0
	for i := 1; i <= n; i++ {
		want(t, set, Options{}, false, fmt.Sprintf("SELECT x::int FROM t%d", i))
		if Judge(fmt.Sprintf("SELECT x FROM t%d", i), set, Options{}).Class == sqlscan.Read {
			shared++
		}
	}
	if shared != 64 {
		t.Errorf("%d tables are shared; want one for each bit", shared)
	}
	want(t, set, Options{}, true, "SELECT id::int FROM plain")
}

// TestPolymorphicSQL: what converts to text without saying so is known by its OID.
func TestPolymorphicSQL(t *testing.T) {
	conn := connect(t, pgtest.Database(t))
	var functions string
	if err := conn.QueryRow(t.Context(), `SELECT string_agg(oid::regprocedure || ' ' || oid::int, ', ' ORDER BY oid) FROM pg_proc
		WHERE prolang = 14 AND oid < 16384 AND prosrc ~ '::' AND EXISTS (SELECT FROM unnest(proargtypes) a JOIN pg_type t ON t.oid = a WHERE typtype = 'p')`,
	).Scan(&functions); err != nil {
		t.Fatal(err)
	}
	if want := "quote_literal(anyelement) 1285, quote_nullable(anyelement) 1290, textanycat(text,anynonarray) 2003, anytextcat(anynonarray,text) 2004"; functions != want {
		t.Errorf("built-in functions in SQL that convert what they are given: %s; want %s", functions, want)
	}
}

// TestPairs_Verdict checks what is said of a fault that takes two names.
func TestPairs_Verdict(t *testing.T) {
	conn := connect(t, database(t, "testdata/closure.sql"))
	set := load(t, conn)
	for sql, want := range map[string]string{
		"SELECT w::int FROM has_written":     "unsafe-cast written_int",
		"SELECT w LIKE w FROM has_written":   "unsafe-operator written_eq",
		"SELECT initcap(w) FROM has_written": "unsafe-function initcap",
	} {
		v := Judge(sql, set, Options{})
		if got := fmt.Sprintf("%v %s", v.Reason, v.Name); got != want || v.Hint() == "" || v.Layer != Catalog {
			t.Errorf("Judge(%q) = %s, hint %q; want %s", sql, got, v.Hint(), want)
		}
	}
}
