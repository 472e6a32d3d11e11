package catalog

import (
	"context"
	"strings"
	"testing"
)

// FuzzLoad: whatever a server answers to the catalog query, Load returns a Set or an
// error. Rows are lines, cells are separated by bars.
func FuzzLoad(f *testing.F) {
	const some = "v|||150004|\ns|11||pg_catalog|\ns|2200||public|\np|1||public|\n"
	for _, rows := range []string{
		"", "|", "||||", some,
		some + "r|16384|2200|items|", some + "f|16384|2200|f|", some + "t|16384|2200|t|", "r|||| \t",
		some + "r|16384|2200|items|r 16386 rls\nk|16386|||16384\ne|16384|r|t|16386 16384",
		some + "f|1|2200|f|f i -5 7 23 1\nf|1|2200|f|f v 99999999999 -1 x y z",
		some + "t|1|2200|t|d A 1\nt|2|2200|t|d A 1\na||||1 2 3\ne|1|t|t|1 2 1\ne|1|tt|t|1",
		some + "r|16384|2200|items|r 16386 exempt\nr|16385|2200|v|v 0 invoker\ne|16385|r|r|16384\ne|16384|P|f|1\ny|1|public.f(int)|sql|f( x set",
		some + "o|1|2200|+|b 1 1\nO||||text\nc|1|||1 1 i\nc|1|||\ne|1|i|r|1 2\nw|1|||lock write sample x\nb|1|||\nb|1||now|v x",
	} {
		f.Add(rows)
	}
	f.Fuzz(func(t *testing.T, rows string) {
		set, err := Load(context.Background(), func(_ context.Context, _ string, row func([]string) error) error {
			for line := range strings.SplitSeq(rows, "\n") {
				if err := row(strings.Split(line, "|")); err != nil {
					return err
				}
			}
			return nil
		}, Options{Words: func(text string, visit func(Word) bool) bool {
			after := ""
			for _, word := range strings.Fields(text) {
				name, called := strings.CutSuffix(word, "(")
				schema, name, ok := strings.Cut(name, ".")
				if !ok {
					schema, name = "", schema
				}
				if !visit(Word{Name: name, Schema: schema, Called: called, After: after}) {
					return false
				}
				after = name
			}
			return len(text)%7 != 0
		}})
		if (set == nil) == (err == nil) {
			t.Fatalf("Load = %v, %v", set, err)
		}
		if err != nil && !strings.HasPrefix(err.Error(), "flightpg: ") {
			t.Fatalf("error %v; want one of flightpg's own", err)
		}
	})
}
