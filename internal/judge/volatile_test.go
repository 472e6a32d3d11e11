package judge

import (
	"strings"
	"testing"

	"github.com/flightpg/flightpg/internal/sqlscan"
)

// TestVolatile: a function that is volatile by declaration alone is named with what
// declares it otherwise, which is enough for the statement to be shared; one that does
// more is not.
func TestVolatile(t *testing.T) {
	conn := connect(t, database(t, "testdata/volatile.sql"))
	set := load(t, conn)
	for _, test := range []struct{ sql, alter string }{
		{"SELECT price(1)", "public.price(integer)"},
		{"SELECT * FROM prices", "public.price(integer)"},
		{"SELECT * FROM prices2", "public.price(integer)"},
		{"SELECT * FROM generated", "public.price(integer)"},
		{"SELECT total(1)", "public.total(integer); public.price(integer)"},
		{"SELECT total(1) FROM prices", "public.total(integer); public.price(integer)"},
		{"SELECT * FROM both_of_them", "public.price(integer); public.atomic(integer)"},
		{"SELECT recursive(3)", "public.recursive(integer)"},
		{"SELECT atomic(1)", "public.atomic(integer)"},
		{`SELECT "Odd Schema"."Odd Name"('a', '{1}')`, `"Odd Schema"."Odd Name"("Odd Schema"."Odd Type",integer[])`},
		{"SELECT latest(VARIADIC '{a,b}'::text[])", "public.latest(text[])"},
		{"SELECT loops(3)", "public.loops(integer)"},
		{"SELECT sized('item')", "public.sized(text)"},
		{"SELECT secured(1)", "public.secured(integer)"},
		{"SELECT 1 <~> 2", "public.near(integer,integer)"},
		{"SELECT summed(id) FROM item", "public.summed_step(integer,integer)"},
		{"SELECT 1::small", "public.is_small(integer)"},
		{"SELECT shipped(1)", ""},
		{"SELECT inserts(1)", ""},
		{"SELECT * FROM inserting", ""},
		{"SELECT truncates()", ""},
		{"SELECT creates()", ""},
		{"SELECT makes_table()", ""},
		{"SELECT locks(1)", ""},
		{"SELECT locks_table()", ""},
		{"SELECT atomic_write(1)", ""},
		{"SELECT atomic_lock(1)", ""},
		{"SELECT dynamic('SELECT 1')", ""},
		{"SELECT notifies()", ""},
		{"SELECT sets()", ""},
		{"SELECT resets()", ""},
		{"SELECT configures()", ""},
		{"SELECT draws()", ""},
		{"SELECT atomic_draws()", ""},
		{"SELECT calls_writer(1)", ""},
		{"SELECT not_read()", ""},
		{"SELECT calls_not_read()", ""},
		{"SELECT looks_at_sessions()", ""},
		{"SELECT digest('a', 'sha1')", "-"}, // an extension's, as it is declared
		{"SELECT gen_salt('bf')", ""},
	} {
		v := Judge(test.sql, set, Options{})
		if test.alter == "-" {
			want(t, set, Options{}, true, test.sql)
			continue
		}
		want(t, set, Options{}, false, test.sql)
		_, alter, _ := strings.Cut(v.Hint(), ": ALTER FUNCTION ")
		got := strings.ReplaceAll(strings.ReplaceAll(alter, "ALTER FUNCTION ", ""), " STABLE", "")
		if got != test.alter || strings.Contains(v.Hint(), "STABLE") != (test.alter != "") {
			t.Errorf("Judge(%q): hint %q; want one to alter %q", test.sql, v.Hint(), test.alter)
			continue
		}
		if alter == "" {
			continue
		}
		// What it says is what is to be done, and all of it.
		run(t, conn, "BEGIN; ALTER FUNCTION "+alter)
		want(t, load(t, conn), Options{}, true, test.sql)
		run(t, conn, test.sql+"; ROLLBACK")
	}
}

// TestVolatileHint is what a hint says of functions that are not to be altered.
func TestVolatileHint(t *testing.T) {
	conn := connect(t, database(t, "testdata/volatile.sql"))
	set := load(t, conn)
	for sql, want := range map[string]string{
		"SELECT price(1)": "function price is volatile, as functions are if nothing is declared, but by its body only reads; " +
			"declared STABLE, it does so by the snapshot of the statement that calls it, and is shared: ALTER FUNCTION public.price(integer) STABLE",
		"SELECT * FROM inserting": "inserting reaches function inserts, which is volatile, and by its body could write, or run SQL from a string",
		"SELECT inserts(1)":       "function inserts is volatile, and by its body could write, or run SQL from a string",
		"SELECT calls_writer(1)":  "function calls_writer is volatile, and reaches function inserts, which could write, or run SQL from a string",
		"SELECT draws()":          "function draws is volatile, and reaches built-in function random",
		"SELECT not_read()":       "function not_read is volatile, and has no body that flightpg can read",
	} {
		if v := Judge(sql, set, Options{}); v.Class == sqlscan.Read || v.Hint() != want {
			t.Errorf("Judge(%q): %v, hint %q; want %q", sql, v.Class, v.Hint(), want)
		}
	}
}
