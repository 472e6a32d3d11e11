package sqlscan

import (
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/flightpg/flightpg/internal/catalog"
)

// TestVerdicts holds the scanner to the table of verdicts: class, reason, server
// version, statement.
func TestVerdicts(t *testing.T) {
	for _, row := range readTSV(t, "testdata/verdicts.tsv") {
		if strings.HasPrefix(row[0], "#") {
			continue
		}
		version, err := strconv.Atoi(row[2])
		if err != nil || len(row) != 4 {
			t.Fatalf("bad row %q", row)
		}
		got := Options{Version: version}.Scan(row[3])
		if got.Class.String() != row[0] || got.Reason.String() != row[1] {
			t.Errorf("Scan(%q) = %v, %v %q; want %s, %s", row[3], got.Class, got.Reason, got.Name, row[0], row[1])
		}
	}
}

// TestResult checks what a verdict points at.
func TestResult(t *testing.T) {
	tests := []struct {
		sql  string
		want Result
	}{
		{"SELECT $1, $12, $3", Result{Class: Read, Params: 12}},
		{"SELECT  Vol_F()", Result{Other, UnknownFunction, "vol_f", 8, 0}},
		{`SELECT $1, app . "Vol""F" ()`, Result{Other, UnknownFunction, `Vol"F`, 17, 1}},
		{"SELECT random(), nextval('s'), $2", Result{Write, VolatileFunction, "nextval", 17, 2}},
		{"UPDATE PG_settings SET setting = $1", Result{Other, SessionView, "pg_settings", 7, 1}},
		{"SELECT 1 FOR UPDATE", Result{Write, RowLock, "for", 9, 0}},
		{"SELECT 'a", Result{Other, Syntax, "", 7, 0}},
	}
	for _, tt := range tests {
		if got := Scan(tt.sql); got != tt.want {
			t.Errorf("Scan(%q) = %+v; want %+v", tt.sql, got, tt.want)
		}
	}
}

// TestBuiltins calls every listed function in several ways: the verdict must be
// that of its class.
func TestBuiltins(t *testing.T) {
	for _, name := range builtinNames(t) {
		info := catalog.Lookup(name)
		want := map[catalog.Class]Class{
			catalog.Safe: Read, catalog.Private: PrivateRead, catalog.NeutralWrite: Write, catalog.Denied: Other,
		}[info.Class]
		quoted := `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
		for _, call := range []string{quoted + "()", `pg_catalog.` + quoted + ` ($1)`, "abs(" + quoted + "(1,2))"} {
			sql := "SELECT 1 FROM t WHERE " + call + " = 1"
			if got := (Options{Version: catalog.Newest}).Scan(sql); got.Class != want {
				t.Errorf("Scan(%q) = %v; want %v", sql, got.Class, want)
			}
			if got := (Options{Version: info.Since - 1}).Scan(sql); info.Since > catalog.Oldest && got.Class != Other {
				t.Errorf("Scan(%q) on %d = %v; want other", sql, info.Since-1, got.Class)
			}
		}
		// Unquoted, in capitals. Some names are key words with their own syntax.
		if kw := lookupKeyword(name); strings.ToLower(name) == name && keywordList[kw].category != reserved && keywordList[kw].category != columnName {
			sql := "SELECT " + strings.ToUpper(name) + "(1)"
			if got := (Options{Version: catalog.Newest}).Scan(sql); got.Class != want {
				t.Errorf("Scan(%q) = %v; want %v", sql, got.Class, want)
			}
		}
		for _, sql := range []string{"SELECT public." + quoted + "()", "SELECT " + quoted + ".f()"} {
			if got := Scan(sql); got.Class != Other {
				t.Errorf("Scan(%q) = %v; want other", sql, got.Class)
			}
		}
	}
}

// builtinNames reads the names from the generated list.
func builtinNames(t *testing.T) []string {
	t.Helper()
	src, err := os.ReadFile("../catalog/builtins_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	list, _, ok := strings.Cut(string(src), "func sessionView")
	var names []string
	for _, q := range regexp.MustCompile(`"[^"]+"`).FindAllString(list, -1) {
		names = append(names, strings.Trim(q, `"`))
	}
	if !ok || len(names) < 2000 {
		t.Fatalf("%d built-in names; want thousands", len(names))
	}
	return names
}

// TestResolver checks that a catalog can allow unknown functions.
func TestResolver(t *testing.T) {
	var asked []string
	o := Options{Function: func(schema, name string) catalog.Class {
		asked = append(asked, schema+"."+name)
		if name == "imm_f" {
			return catalog.Safe
		}
		return catalog.Unknown
	}}
	if got := o.Scan(`SELECT lower('x'), Imm_F(1), app."imm_f"(2)`); got.Class != Read {
		t.Errorf("allowed functions: %+v; want a read", got)
	}
	if got := o.Scan(`SELECT imm_f(1), vol_f(2)`); got.Class != Other || got.Name != "vol_f" {
		t.Errorf("unknown function: %+v; want other", got)
	}
	if got, want := fmt.Sprint(asked), "[.imm_f app.imm_f .imm_f .vol_f]"; got != want {
		t.Errorf("asked for %s; want %s", got, want)
	}
	o.Function = func(string, string) catalog.Class { return catalog.Safe }
	for _, sql := range []string{"SELECT set_config('a','b',false)", "SELECT random()", `SELECT U&"f"()`, "SELECT a.b.c.f()", "SELECT (t).f()"} {
		if got := o.Scan(sql); got.Class == Read {
			t.Errorf("Scan(%q) = %+v with everything allowed; want no read", sql, got)
		}
	}
}

// TestDepth: neither deep nesting nor long texts are a problem, up to what the
// server refuses.
func TestDepth(t *testing.T) {
	const n = 200_000
	for sql, want := range map[string]Class{
		strings.Repeat("(", n):                                                         Other,
		"SELECT " + nested("(", "1", ")", n):                                           Other,
		"SELECT " + nested("(", "1", ")", maxDepth+1):                                  Other,
		"SELECT " + nested("(", "1", ")", maxDepth):                                    Read,
		"SELECT " + nested("(", "vol_f()", ")", maxDepth-1):                            Other,
		"SELECT a" + nested("[", "1", "]", maxDepth):                                   Read,
		"SELECT a" + nested("[", "1", "]", maxDepth+1):                                 Other,
		"SELECT " + nested("(a[", "1", "])", maxDepth/2):                               Read,
		nested("(", "SELECT 1 FOR UPDATE", ")", maxDepth):                              Write,
		"SELECT 1 " + nested("/*", "", "*/", n):                                        Read,
		"SELECT 1 " + strings.Repeat("/*", n):                                          Other,
		"SELECT " + strings.Repeat("-", n) + "\n1":                                     Read,
		"SELECT " + strings.Repeat("'a'\n", n):                                         Read,
		"SELECT " + strings.Repeat("a.", n) + "f()":                                    Other,
		"SELECT " + strings.Repeat("CASE WHEN a THEN ", n) + strings.Repeat("END ", n): Read,
	} {
		if got := Scan(sql); got.Class != want {
			t.Errorf("Scan(%.40q…) = %v, %v; want %v", sql, got.Class, got.Reason, want)
		}
	}
}

func nested(open, inner, end string, depth int) string {
	return strings.Repeat(open, depth) + inner + strings.Repeat(end, depth)
}

// TestDepthMemory: what is too deep for the server takes no more memory than what
// is not, however long it is.
func TestDepthMemory(t *testing.T) {
	var before, after runtime.MemStats
	for _, sql := range []string{strings.Repeat("(", 1_000_000), "SELECT a" + strings.Repeat("[", 1_000_000)} {
		runtime.ReadMemStats(&before)
		Scan(sql)
		runtime.ReadMemStats(&after)
		if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
			t.Errorf("Scan(%.20q…) allocates %d bytes; want less than 1 MiB", sql, n)
		} else {
			t.Logf("Scan(%.20q…) allocates %d bytes", sql, n)
		}
	}
}

const benchQuery = `SELECT u.id, u.name, count(o.id) AS orders, coalesce(sum(o.total), 0) FROM users u LEFT JOIN orders o ON o.user_id = u.id WHERE u.id = $1 AND o.created_at > now() - interval '7 days' GROUP BY u.id, u.name`

func BenchmarkScan(b *testing.B) {
	for name, sql := range map[string]string{
		"bytes=200":       benchQuery,
		"bytes=200/upper": strings.ToUpper(benchQuery),
		"bytes=35":        "SELECT id, name FROM t WHERE id = $1",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(sql)))
			for b.Loop() {
				if Scan(sql).Class != Read {
					b.Fatal("not a read")
				}
			}
		})
	}
}
