package hostile

import (
	"database/sql"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
)

// tall are texts that grow: what costs stack, or time that is not in proportion.
var tall = []struct {
	name string
	text func(n int) string // of about n bytes
}{
	{"Parentheses", func(n int) string { return "SELECT " + strings.Repeat("(", n/2) + "1" + strings.Repeat(")", n/2) }},
	{"OpenParentheses", func(n int) string { return "SELECT " + strings.Repeat("(", n) }},
	{"Brackets", func(n int) string { return "SELECT a" + strings.Repeat("[", n/2) + strings.Repeat("]", n/2) }},
	{"Mixed", func(n int) string { return "SELECT " + strings.Repeat("([", n/2) }},
	{"Comments", func(n int) string { return strings.Repeat("/*", n/4) + strings.Repeat("*/", n/4) + "SELECT 1" }},
	{"OpenComments", func(n int) string { return "SELECT 1 " + strings.Repeat("/*", n/2) }},
	{"LineComments", func(n int) string { return strings.Repeat("--\n", n/3) + "SELECT 1" }},
	{"Dollars", func(n int) string { return "SELECT " + strings.Repeat("$a$", n/3) }},
	{"OpenDollars", func(n int) string { return "SELECT " + manyTags(n) }},
	{"Quotes", func(n int) string { return "SELECT '" + strings.Repeat("''", n/2) }},
	{"ContinuedStrings", func(n int) string { return "SELECT " + strings.Repeat("'a'\n", n/4) }},
	{"Escapes", func(n int) string { return "SELECT E'" + strings.Repeat(`\\`, n/2) + "'" }},
	{"Unicode", func(n int) string { return `SELECT U&"` + strings.Repeat(`\0061`, n/5) + `"` }},
	{"Names", func(n int) string { return "SELECT " + strings.Repeat("a.", n/2) + "b" }},
	{"Columns", func(n int) string { return "SELECT " + strings.Repeat("a,", n/2) + "b FROM items" }},
	{"Functions", func(n int) string { return "SELECT " + strings.Repeat("abs(", n/5) + "1" + strings.Repeat(")", n/5) }},
	{"Unknown", func(n int) string { return "SELECT " + strings.Repeat("f(", n/3) + "1" + strings.Repeat(")", n/3) }},
	{"Selects", func(n int) string {
		return "SELECT " + strings.Repeat("(SELECT ", n/9) + "1" + strings.Repeat(")", n/9)
	}},
	{"Withs", func(n int) string {
		return strings.Repeat("WITH a AS (", n/12) + "SELECT 1" + strings.Repeat(") SELECT 1", n/20)
	}},
	{"CTEs", func(n int) string {
		return "WITH " + strings.Repeat("a AS (SELECT 1),", n/16) + "b AS (SELECT 1) SELECT 1"
	}},
	{"Froms", func(n int) string { return "SELECT 1 FROM " + strings.Repeat("items,", n/6) + "items" }},
	{"Joins", func(n int) string { return "SELECT 1 FROM items" + strings.Repeat(" JOIN items ON true", n/19) }},
	{"Unions", func(n int) string { return "SELECT 1" + strings.Repeat(" UNION SELECT 1", n/15) }},
	{"Statements", func(n int) string { return strings.Repeat("SELECT 1;", n/9) }},
	{"Semicolons", func(n int) string { return strings.Repeat(";", n) }},
	{"Locks", func(n int) string { return "SELECT " + strings.Repeat("pg_advisory_lock(1),", n/20) + "1" }},
	{"Operators", func(n int) string { return "SELECT 1 " + strings.Repeat("+", n) + " 1" }},
	{"OperatorWords", func(n int) string { return "SELECT 1 " + strings.Repeat("OPERATOR(pg_catalog.+) 1 ", n/25) }},
	{"Casts", func(n int) string { return "SELECT 1" + strings.Repeat("::int", n/5) }},
	{"Cases", func(n int) string { return "SELECT " + strings.Repeat("CASE WHEN ", n/10) }},
	{"Parameters", func(n int) string { return "SELECT " + strings.Repeat("$1,", n/3) + "1" }},
	{"HugeParameter", func(n int) string { return "SELECT $" + strings.Repeat("9", n) }},
	{"Digits", func(n int) string { return "SELECT " + strings.Repeat("9", n) }},
	{"NULs", func(n int) string { return "SELECT 1" + strings.Repeat("\x00", n) }},
	{"NotUTF8", func(n int) string { return "SELECT '" + strings.Repeat("\xff\xc0", n/2) + "'" }},
	{"Blanks", func(n int) string { return strings.Repeat(" \t\r\n\f\v", n/6) + "SELECT 1" }},
	{"Inserts", func(n int) string { return "INSERT INTO log VALUES " + strings.Repeat("(1),", n/4) + "(1)" }},
	{"Set", func(n int) string { return "SET a = " + strings.Repeat("b,", n/2) }},
	{"Dos", func(n int) string { return strings.Repeat("DO $$$$;", n/8) }},
}

// manyTags opens dollar quotes of different tags, none of which is closed.
func manyTags(n int) string {
	var b strings.Builder
	for i := 0; b.Len() < n; i++ {
		fmt.Fprintf(&b, "$t%d$", i)
	}
	return b.String()
}

// overMemory opens a handle over a server in memory that tells the truth, and
// pgx's own beside it.
func overMemory(t *testing.T, seed uint64, params string) (ours, plain *sql.DB, s *server) {
	t.Helper()
	s = newServer(&script{seed: seed, at: "never"}, map[string]*table{})
	pc, err := config(s, params)
	if err != nil {
		t.Fatal(err)
	}
	plain = sql.OpenDB(stdlib.GetConnector(*pc))
	c, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{})
	if err != nil {
		t.Fatal(err)
	}
	ours = c.OpenDB()
	t.Cleanup(func() {
		ours.Close()
		plain.Close()
		s.stop()
	})
	return ours, plain, s
}

func TestText(t *testing.T) {
	t.Run("Tall", func(t *testing.T) {
		report := battery.Report(t, part, "SQL made to be expensive: no exhausted stack, time in proportion to length", 0)
		ours, _, _ := overMemory(t, 1, "")
		size := battery.Quick(1<<13, battery.N(1<<14, 1<<19))
		worst, name := 0.0, ""
		for _, tc := range tall {
			var took [2]time.Duration
			for i, n := range []int{size, 4 * size} {
				for again := range 3 {
					text := fmt.Sprintf("%s-- %d", tc.text(n), again) // not one that is remembered
					begin := time.Now()
					if _, err := flightpg.Explain(t.Context(), ours, text); err != nil {
						t.Fatalf("%s: %v", tc.name, err)
					}
					if d := time.Since(begin); took[i] == 0 || d < took[i] {
						took[i] = d
					}
					if !battery.Full() {
						break
					}
				}
				read(ours, tc.text(n), false) // the rest of the way
			}
			// Four times the length takes four times the time; sixteen if it is
			// squared. Only where it is long enough to tell.
			t.Logf("%s: %v for %d bytes, %v for %d", tc.name, took[0], size, took[1], 4*size)
			ratio := float64(took[1]) / float64(took[0])
			if took[1] > 50*time.Millisecond && ratio > worst {
				worst, name = ratio, tc.name
			}
			if battery.Full() && took[1] > 200*time.Millisecond && ratio > 10 {
				t.Errorf("%s: %v for %d bytes, %v for %d: want time in proportion to length", tc.name, took[0], size, took[1], 4*size)
			}
		}
		report.Set("texts", len(tall))
		report.Set("bytes of the longest", 4*size)
		report.Set("time for four times the length, at most", fmt.Sprintf("%.1f (%s)", worst, name))
	})
	t.Run("Soup", func(t *testing.T) {
		seed := battery.Seed(t)
		report := battery.Report(t, part, "random SQL through the whole driver: no panic, the same end as over pgx", seed)
		var count, shared, violations int
		for _, params := range []string{"", "default_query_exec_mode=exec", "default_query_exec_mode=simple_protocol", "flight_ignore_comments=on"} {
			ours, _, s := overMemory(t, seed, params)
			plain := plainBeside(t, s, strings.TrimSuffix(params, "flight_ignore_comments=on"))
			for n := range battery.Quick(60, battery.N(250, 25_000)) {
				text := soup(battery.Rand(seed, n))
				v, err := flightpg.Explain(t.Context(), ours, text)
				if err != nil {
					t.Fatalf("seed %d, text %d %q: Explain: %v", seed, n, text, err)
				}
				want, got := read(plain, text, false), read(ours, text, false)
				count++
				if v.Coalesce {
					shared++
				}
				if got.panicked != nil && want.panicked == nil || (got.err == nil) != (want.err == nil) && got.panicked == nil && want.panicked == nil && !ends(got.err) {
					violations++
					t.Errorf("seed %d, text %d %q: %v\n%s\npgx: %v", seed, n, text, got, got.stack, want)
				}
			}
		}
		report.Set("texts", count)
		report.Set("shared", shared)
		report.Set("violations", violations)
		if shared == 0 {
			t.Error("no text was shared: the test shows nothing")
		}
	})
}

// ends reports whether err is our refusal of an answer that pgx panics at, or
// passes over.
func ends(err error) bool {
	return err != nil && strings.HasPrefix(err.Error(), "flightpg: the server ended a query without a result")
}

func plainBeside(t *testing.T, s *server, params string) *sql.DB {
	t.Helper()
	pc, err := config(s, params)
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(stdlib.GetConnector(*pc))
	t.Cleanup(func() { db.Close() })
	return db
}

var ingredients = []string{
	"SELECT", "select", "1", "'a'", "\"b\"", "(", ")", "[", "]", ",", ";", ".", "::", "int", "FROM", "items", "WHERE", "AND", "=", "<>", "||", "-", "--", "\n",
	"/*", "*/", "$1", "$$", "$a$", "E'\\''", "U&\"\\0061\"", "U&'\\+000061'", "UESCAPE '!'", "B'1'", "X'f'", "N'a'", "now()", "abs(1)", "random()", "nextval('s')",
	"WITH a AS", "VALUES", "TABLE items", "UNION", "ORDER BY", "LIMIT", "FOR UPDATE", "INTO", "INSERT INTO log VALUES (1)", "DELETE FROM log", "SET a = 1",
	"BEGIN", "COMMIT", "ROLLBACK", "\x00", "\xff\xfe", "\ufeff", "\u00a0", "é", "😀", "\\", "'", "\"", "@a", ":b", "?", "0x1F", "1e", "1.5e-3", "1_000", "…", "\r", "\f", "\v", "\b",
	"pg_advisory_lock(1)", "pg_temp.x", "OPERATOR(pg_catalog.+)", "CASE WHEN", "END", "NULL", "COLLATE \"C\"", "AT TIME ZONE 'UTC'", "TABLESAMPLE system (1)", "LATERAL",
}

func soup(r *rand.Rand) string {
	var b strings.Builder
	if r.IntN(2) == 0 {
		b.WriteString("SELECT ")
	}
	for range r.IntN(12) {
		b.WriteString(ingredients[r.IntN(len(ingredients))])
		if r.IntN(3) > 0 {
			b.WriteByte(' ')
		}
	}
	text := b.String()
	if r.IntN(6) == 0 && len(text) > 0 {
		raw := []byte(text)
		raw[r.IntN(len(raw))] = byte(r.Uint32())
		text = string(raw)
	}
	return text
}
