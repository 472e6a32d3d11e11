package catalog

import (
	"context"
	"slices"
	"strings"
	"testing"
)

// loadRows loads a set from rows as in FuzzLoad: one a line, cells separated by bars.
func loadRows(t *testing.T, rows string) *Set {
	t.Helper()
	set, err := Load(context.Background(), func(_ context.Context, _ string, row func([]string) error) error {
		for line := range strings.Lines(rows) {
			line = strings.TrimSpace(line)
			if line == "" {
				continue
			}
			if err := row(strings.Split(line, "|")); err != nil {
				return err
			}
		}
		return nil
	}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// companyRows: tables t and u, view v over t, view w over v and u, views that call
// now, age, pg_get_viewdef and a user's function f, and a type in between.
const companyRows = `v|||150004|
	s|11||pg_catalog|
	s|2200||public|
	p|1||pg_catalog|
	p|2||public|
	r|20000|2200|t|r 0
	r|20001|2200|u|r 0
	r|20002|2200|v|v 0
	r|20003|2200|w|v 0
	r|20004|2200|v_now|v 0
	r|20005|2200|v_age|v 0
	r|20006|2200|v_def|v 0
	r|20007|2200|v_f|v 0
	r|20008|2200|v_unknown|v 0
	r|20009|2200|secured|r 0 rls
	r|20010|2200|columns|r 0 am
	r|20011|2200|planned|r 0
	r|20012|2200|typed|r 20013
	r|20014|2200|exempt|r 0 exempt
	r|20015|2200|v_exempt|v 0
	r|20016|2200|v_mine|v 0 invoker
	r|1259|11|pg_class|r 0
	r|1260|11|pg_stats|v 0
	f|20020|2200|f|f i 1 0 0 0 23 23
	f|20021|2200|abs|f i 1 0 0 0 20030 20030
	f|20022|2200|upper|fn i 1 0 0 0 20030 20030
	t|23|11|int4|b N 0
	t|25|11|text|b S 0 preferred
	t|2206|11|regtype|b N 0
	t|2205|11|regclass|b N 0
	t|20030|2200|tint|e E 0
	t|20031|2200|mood|e E 0
	t|20032|2200|odd|d N 0
	o|20040|2200|=|b 20030 20030 16
	o|20041|2200|+|b 20030 20030 16
	o|20042|2200|<#>|b 20030 20030 16
	O|||=|text 25,25 23,23
	O|||+|23,23
	O|||@@|25,25
	e|20002|r|r|20000
	e|20003|r|r|20002 20001
	e|20004|r|f|100
	e|20005|r|f|101
	e|20006|r|f|102
	e|20007|r|f|20020
	e|20008|r|f|103
	e|20011|x|f|20020
	e|20015|r|r|20014
	e|20016|r|r|20014
	e|20014|P|f|100
	e|20032|t|f|20020
	b|100|11|now|s
	b|101|11|age|s
	b|102|11|pg_get_viewdef|s
	k|20032|||20012
	`

func TestCompany(t *testing.T) {
	set := loadRows(t, companyRows)
	for name, want := range map[string]Company{
		"t": Joined, "v": Apart, "w": Apart, "v_now": Apart, "v_age": Apart, "v_def": Alone, "v_f": Alone, "v_unknown": Alone,
		"secured": Alone, "exempt": Joined, "v_exempt": Alone, "v_mine": Apart, "columns": Alone, "planned": Alone, "typed": Alone, "pg_class": Apart, "pg_stats": Alone,
	} {
		if r, ok := set.Relation("", name); !ok || r.Company != want {
			t.Errorf("Relation(%s) = %v, %v; want %v", name, r.Company, ok, want)
		}
	}
	for name, want := range map[string][]uint32{
		"t": {20000}, "v": {20000}, "w": {20000, 20001}, "v_now": nil, "pg_class": {1259},
	} {
		if r, _ := set.Relation("", name); !slices.Equal(r.Tables, want) {
			t.Errorf("Relation(%s).Tables = %v; want %v", name, r.Tables, want)
		}
	}
	for name, want := range map[string]Company{
		"int4": Joined, "mood": Joined, "tint": Alone, "odd": Alone, "regtype": Alone, "regclass": Apart,
	} {
		if u, ok := set.Type("", name); !ok || u.Company != want || set.AnyType(name).Company != want {
			t.Errorf("Type(%s) = %v, %v; AnyType = %v; want %v", name, u.Company, ok, set.AnyType(name).Company, want)
		}
	}
	for symbol, want := range map[string]Company{"=": Joined, "@@": Apart, "<#>": Alone, "+": Joined} {
		if u, ok := set.Operator("", symbol); !ok || u.Company != want {
			t.Errorf("Operator(%s) = %v, %v; want %v", symbol, u.Company, ok, want)
		}
	}
	if u, ok := set.Operator("public", "="); !ok || u.Company != Alone {
		t.Errorf("Operator(public.=) = %v, %v; want alone", u.Company, ok)
	}
	if u, ok := set.Operator("pg_catalog", "="); !ok || u.Company != Joined {
		t.Errorf("Operator(pg_catalog.=) = %v, %v; want joined", u.Company, ok)
	}
	for name, want := range map[string]Company{"f": Alone, "abs": Alone, "upper": Alone} {
		if u, ok := set.Function("", name, 1); !ok || u.Company != want {
			t.Errorf("Function(%s) = %v, %v; want %v", name, u.Company, ok, want)
		}
	}
	if set.Company() != Joined {
		t.Errorf("Company = %v", set.Company())
	}
}

// TestCompany_Hidden: a user's overload with a new type is not meant where a built-in
// goes before it.
func TestCompany_Hidden(t *testing.T) {
	for more, want := range map[string]Company{
		"":                                    Alone,
		"B|||abs|23":                          Joined,
		"B|||abs|23 23":                       Alone, // another number of arguments
		"B|||abs|23\nc|20050|||23 20030 i":    Alone, // a number is one by itself
		"B|||abs|23\nc|20050|||20031 20030 i": Joined,
		"B|||abs|2283\nt|2283|11|any|p P 0":   Alone,
	} {
		set := loadRows(t, strings.Replace(companyRows, "f|20020|", more+"\nf|20020|", 1))
		if u, ok := set.Function("", "abs", 1); !ok || u.Company != want {
			t.Errorf("with %q: Function(abs) = %v, %v; want %v", more, u.Company, ok, want)
		}
		if u, ok := set.Function("public", "abs", 1); !ok || u.Company != Alone {
			t.Errorf("with %q: Function(public.abs) = %v, %v; want alone", more, u.Company, ok)
		}
		if u, ok := set.Type("", "tint"); !ok || u.Company != Alone {
			t.Errorf("with %q: Type(tint) = %v, %v; want alone", more, u.Company, ok)
		}
	}
}

// TestCompany_HiddenNot: functions that can be called in ways that no built-in goes
// before, and what one that is hidden makes of its type.
func TestCompany_HiddenNot(t *testing.T) {
	set := loadRows(t, companyRows+`
		t|20060|2200|hue|e E 0
		t|20061|2200|best|b U 0 preferred
		t|20062|2200|string|b S 0
		t|20063|2200|list|b A 20060
		B|||hidden|23
		B|||named|23
		B|||defaults|23
		B|||defaults|23 23
		B|||variadic|23
		B|||preferred|23
		B|||string|23
		B|||strings|25
		B|||list|23
		f|20070|2200|hidden|f i 1 0 0 0 23 20060
		f|20071|2200|named|fn i 1 0 0 0 23 20060
		f|20072|2200|defaults|f i 2 1 0 0 23 20060 23
		f|20073|2200|variadic|f i 1 0 23 0 23 20060
		f|20074|2200|preferred|f i 1 0 0 0 23 20061
		f|20075|2200|string|f i 1 0 0 0 23 20062
		f|20076|2200|strings|f i 1 0 0 0 23 20062
		f|20077|2200|list|f i 1 0 0 0 23 20063
		`)
	for name, want := range map[string]Company{
		"hidden": Joined, "named": Alone, "defaults": Alone, "variadic": Alone, "preferred": Alone, "string": Alone, "strings": Joined, "list": Alone,
	} {
		if u, ok := set.Function("", name, 1); !ok || u.Company != want {
			t.Errorf("Function(%s) = %v, %v; want %v", name, u.Company, ok, want)
		}
	}
	if u, ok := set.Type("", "hue"); !ok || u.Company != Alone {
		t.Errorf("Type(hue) = %v, %v; want alone", u.Company, ok)
	}
}

// TestCompany_Everything: code that no name tells.
func TestCompany_Everything(t *testing.T) {
	for more, want := range map[string]Company{
		"u||||": Joined, "u||||search": Joined, "u||||all": Alone, "c|20050|||25 600 e": Alone, "c|20050|||25 20031 e": Joined,
		"f|20051|11|timezone|f i 2 0 0 0 1114 25 1114": Alone, "f|20051|11|my_own|f i 0 0 0 0 23": Joined,
	} {
		if got := loadRows(t, companyRows+more).Company(); got != want {
			t.Errorf("with %q: Company = %v; want %v", more, got, want)
		}
	}
	set := loadRows(t, companyRows+"u||||search")
	if c := set.Builtin("to_tsvector"); c != Alone {
		t.Errorf("Builtin(to_tsvector) = %v; want alone", c)
	}
	if u, _ := set.Operator("", "@@"); u.Company != Alone {
		t.Errorf("Operator(@@) = %v; want alone", u.Company)
	}
}

func TestBuiltinCompany(t *testing.T) {
	for want, names := range map[Company]string{
		Joined: "lower abs now concat to_char date_trunc json_agg jsonb_build_object row_to_json count max length generate_series current_user",
		Apart:  "age pg_typeof has_table_privilege inet_merge to_tsvector xpath enum_range jsonb_populate_record regclass convert_from getdatabaseencoding version pg_table_size pg_is_in_recovery",
		Alone: `random pg_backend_pid current_setting pg_get_viewdef pg_get_expr format_type to_regtype regtype has_function_privilege query_to_xml
			ts_stat pg_stat_get_numscans set_config nextval no_such_function`,
	} {
		for _, name := range strings.Fields(names) {
			if c := builtinCompany(name, false); c != want {
				t.Errorf("builtinCompany(%q) = %v; want %v", name, c, want)
			}
		}
	}
}
