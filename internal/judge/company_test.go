package judge

import (
	"slices"
	"testing"

	"github.com/flightpg/flightpg/internal/sqlscan"
)

// TestCompany judges texts by a small catalog. (The integration tests have many more,
// by servers'.)
func TestCompany(t *testing.T) {
	set := smallSet(t)
	for sql, want := range map[string]Company{
		"SELECT 1": Joined,
		"SELECT id, now(), lower(name), coalesce(a, 'b'), CURRENT_DATE FROM t WHERE id = $1 AND x IN (1, 2)": Joined,
		"WITH t2 AS (SELECT 1) SELECT * FROM t2":             Joined,
		"SELECT t.age FROM t":                                Joined,
		"SELECT (t.a).age FROM t":                            Apart,
		"SELECT x.age FROM unnest($1) x":                     Apart,
		"SELECT x.age, y.a FROM t x, unnest($1) y":           Apart,
		"SELECT age(a) FROM t":                               Apart,
		"SELECT xmlelement(name a)":                          Apart,
		"SELECT pg_catalog.age(a), now()":                    Apart,
		"SELECT stable_f(1)":                                 Alone,
		"SELECT 1 FROM t WHERE public.stable_f(a)":           Alone,
		"SELECT (1).stable_f":                                Alone,
		"SELECT t.pg_typeof FROM t":                          Apart,
		"SELECT vol_domain(1)":                               Alone,
		"SELECT pg_get_expr(a, b) FROM t":                    Alone,
		"SELECT (a).pg_get_viewdef, t.pg_get_viewdef FROM t": Alone,
		"SELECT 1 === 2":                                     Alone,
		"SELECT vol()":                                       Alone,
		"SELECT 1::vol_domain":                               Alone,
		"SELECT random()":                                    Alone,
		"SELECT a.b.c(1)":                                    Alone,
		"INSERT INTO t VALUES (1)":                           Alone,
		"SELECT * FROM nowhere":                              Alone,
		"SELECT":                                             Joined,
		"":                                                   Alone,
	} {
		v := Judge(sql, set, Options{})
		if v.Company != want {
			t.Errorf("Judge(%q).Company = %v, %v %q; want %v", sql, v.Company, v.Reason, v.Name, want)
		}
		if v.Class != sqlscan.Read && (v.Company != Alone || v.Relations != nil) {
			t.Errorf("Judge(%q) = %v, %v %v", sql, v.Class, v.Company, v.Relations)
		}
		for _, opts := range []Options{{}, {TrustNames: true}} {
			if v := Judge(sql, nil, opts); v.Company != Alone || v.Relations != nil {
				t.Errorf("Judge(%q) without a catalog: %v %v", sql, v.Company, v.Relations)
			}
		}
	}
	if v := Judge("SELECT * FROM t a, t b", set, Options{}); !slices.Equal(v.Relations, []uint32{20000}) {
		t.Errorf("Relations = %v; want that of t", v.Relations)
	}
}

// TestCompanyAllocs: to keep a verdict's company costs nothing; its tables are those of
// the catalog as long as they are one relation's.
func TestCompanyAllocs(t *testing.T) {
	set := smallSet(t)
	const sql = "SELECT t.id, lower(t.name) FROM t WHERE t.id = $1 AND (a).age > 3"
	if n := testing.AllocsPerRun(100, func() { Judge(sql, set, Options{}) }); n >= 1 {
		t.Errorf("Judge allocates %v times", n)
	}
}
