package sqlscan

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// linear is seesCTE as it was before many WITH queries were counted by name.
func linear(ctes []cte, name string) bool {
	for _, c := range ctes {
		if c.name == name && !c.hidden {
			return true
		}
	}
	return false
}

// relations returns for each relation in the text, in their order, whether it is
// a WITH query. It fails the test where linear says something else.
func relations(t *testing.T, sql string) (with []bool) {
	t.Helper()
	var s scanner
	s.src, s.all = sql, true
	s.visit = func(n Name) bool {
		if n.Kind == RelationName {
			if want := s.chain.parts == 1 && linear(s.ctes, n.Name); n.CTE != want {
				t.Fatalf("%s at %d of %q is a WITH query %v; want %v of %+v", n.Name, n.Pos, sql, n.CTE, want, s.ctes)
			}
			with = append(with, n.CTE)
		}
		return true
	}
	s.run()
	return with
}

// A withGen writes nested WITH queries, and knows what each relation means.
type withGen struct {
	*rand.Rand
	strings.Builder
	scopes []string // names of the WITH queries in scope
	want   []bool
}

func (g *withGen) name() string { return fmt.Sprint("n", g.IntN(30)) }

// spelled returns a name as it may be written.
func (g *withGen) spelled(name string) string {
	switch g.IntN(4) {
	case 0:
		return strings.ToUpper(name)
	case 1:
		return `"` + name + `"`
	}
	return name
}

// query writes a query with at most depth levels below it.
func (g *withGen) query(depth int) {
	outside := len(g.scopes)
	if g.IntN(2) == 0 {
		g.with(depth)
	}
	if g.IntN(8) == 0 && depth > 0 {
		g.inParens(depth)
		g.WriteString(" UNION ")
	}
	g.WriteString("SELECT 1 FROM ")
	for i := range 1 + g.IntN(4) {
		if i > 0 {
			g.WriteString([]string{", ", " CROSS JOIN ", ", LATERAL (SELECT 1) x, "}[g.IntN(3)])
		}
		g.item(depth)
	}
	if g.IntN(4) == 0 && depth > 0 {
		g.WriteString(" WHERE EXISTS ")
		g.inParens(depth)
	}
	g.scopes = g.scopes[:outside]
}

func (g *withGen) inParens(depth int) {
	g.WriteString("(")
	g.query(depth - 1)
	g.WriteString(")")
}

func (g *withGen) with(depth int) {
	recursive := g.IntN(3) == 0
	g.WriteString("WITH ")
	if recursive {
		g.WriteString("RECURSIVE ")
	}
	n := 1 + g.IntN(4)
	if g.IntN(6) == 0 {
		n += g.IntN(2 * manyCTEs)
	}
	for i := range n {
		if i > 0 {
			g.WriteString(", ")
		}
		name := g.name()
		g.WriteString(g.spelled(name))
		g.WriteString([]string{" AS ", " (x, y) AS ", " AS MATERIALIZED ", " AS NOT MATERIALIZED "}[g.IntN(4)])
		if recursive {
			g.scopes = append(g.scopes, name)
		}
		if depth > 0 && n < manyCTEs || g.IntN(8) == 0 && depth > 0 {
			g.inParens(depth)
		} else {
			g.WriteString("(SELECT (1))")
		}
		if !recursive {
			g.scopes = append(g.scopes, name)
		}
	}
	g.WriteString(" ")
}

func (g *withGen) item(depth int) {
	switch n := g.IntN(8); {
	case n == 0 && depth > 0:
		g.inParens(depth)
		g.WriteString(" q")
	case n == 1:
		g.WriteString("s." + g.name())
		g.want = append(g.want, false)
	default:
		name := g.name()
		g.WriteString(g.spelled(name))
		g.want = append(g.want, slices.Contains(g.scopes, name))
	}
}

func makeWith(seed uint64) (sql string, want []bool) {
	g := &withGen{Rand: rand.New(rand.NewPCG(seed, 0))}
	g.query(g.IntN(5))
	return g.String(), g.want
}

// TestWith: a name is that of a WITH query where, and only where, one is in scope:
// behind the query itself, or in it if it is RECURSIVE, up to the end of what WITH
// belongs to.
func TestWith(t *testing.T) {
	visible, many := 0, 0
	for seed := range uint64(1500) {
		sql, want := makeWith(seed)
		got := relations(t, sql)
		if !slices.Equal(got, want) {
			t.Fatalf("seed %d: %q: relations are WITH queries %v; want %v", seed, sql, got, want)
		}
		if slices.Contains(want, true) {
			visible++
		}
		if strings.Count(sql, " AS ") > manyCTEs {
			many++
		}
	}
	if visible < 500 || many < 200 {
		t.Errorf("%d statements name a WITH query, %d have many", visible, many)
	}
}

// FuzzWith: counting many WITH queries by name makes no difference, whatever the
// text.
func FuzzWith(f *testing.F) {
	seeds(f)
	for seed := range uint64(50) {
		sql, _ := makeWith(seed)
		f.Add(sql)
	}
	many := "WITH z AS (SELECT 1)" + strings.Repeat(", z AS (SELECT 1)", manyCTEs)
	f.Fuzz(func(t *testing.T, sql string) {
		relations(t, sql)
		for _, before := range []string{" ", ", ", " (", " SELECT 1 FROM (WITH "} {
			relations(t, many+before+sql+"\n)")
		}
	})
}
