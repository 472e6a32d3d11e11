package sqlscan

import (
	"fmt"
	"strings"
	"testing"

	"github.com/flightpg/flightpg/internal/catalog"
)

func TestWords(t *testing.T) {
	for _, tc := range []struct {
		text, want string
		ok         bool
	}{
		{"", "", true},
		{"SELECT public . F (1), \"G\"(2)", "select,public<select,public.^f(,!G(", true},
		{"INSERT INTO t VALUES (1) -- hit()\n", "insert,into<insert,t<into,values(<t", true},
		{"PERFORM hit() /* x() */; x := 'y()' || $d$ z() $d$", "perform,hit(<perform,x,@||", true},
		{"FOR i IN 1..n LOOP x := a[1]; END LOOP", "for,i<for,in<i,@=,@<>,n,loop<n,x<loop,a,end,loop<end", true},
		{"FOR i IN lo..hi LOOP", "for,i<for,in<i,@=,@<>,lo<in,hi,loop<hi", true},
		{"FOR i IN REVERSE 10 .. 1 LOOP", "for,i<for,in<i,@=,@<>,reverse<in,loop", true},
		{"x := 1..2..3; y(", "x,y(", true},
		{"<<outer>> v t.a%TYPE; EXIT outer WHEN x", "@<<,outer,@>>,v,t<v,t.^a,@%,type,exit,outer<exit,when<outer,x<when", true},
		{"x = y.a OPERATOR(p.+) 1 != 2 AND (z).b", "x,@=,y,y.^a,operator(<a,p,p@+,@<>,and(,z,^b", true},
		{"x IN (1) OR y NOT LIKE 'a' OR t.case, a*b", "x,in(<x,@=,@<>,or,y<or,not<y,like<not,@~~,@!~~,or,t<or,t.^case,a,@*,b", true},
		{`SELECT U&"\0066"(1), U&'!0066' UESCAPE '!'`, "select,!f(<select,uescape", true},
		{`SELECT U&"!0066" /* x */ Uescape '!' (1)`, "select", false},
		{"SELECT 'open", "select", false},
		{"SELECT 1x", "select", false},
	} {
		var got []string
		ok := Words(tc.text, func(w catalog.Word) bool {
			s := w.Name
			switch {
			case w.Operator:
				s = "@" + s
			case w.Dotted:
				s = "^" + s
			}
			if w.Schema != "" {
				s = w.Schema + map[bool]string{false: ".", true: ""}[w.Operator] + s
			}
			if w.Quoted {
				s = "!" + s
			}
			if w.Called {
				s += "("
			}
			if w.After != "" {
				s += "<" + w.After
			}
			got = append(got, s)
			return true
		})
		if s := strings.Join(got, ","); s != tc.want || ok != tc.ok {
			t.Errorf("Words(%q) = %s, %v; want %s, %v", tc.text, s, ok, tc.want, tc.ok)
		}
	}
	n := 0
	if Words("a b c", func(catalog.Word) bool { n++; return n < 2 }) || n != 2 {
		t.Errorf("%d words visited; want 2, and false", n)
	}
	// Whatever the text, it ends.
	for _, text := range []string{"1..", "..", "...", "1...2", "....", "1..1..", "\x00..", "'..", "x..y..z"} {
		_ = fmt.Sprint(Words(text, func(catalog.Word) bool { return true }))
	}
}
