package growth

import (
	"fmt"
	"strings"
)

// A Shape is a kind of text.
type Shape struct {
	Name string
	Read bool               // a read that may be shared, at any length
	Make func(n int) string // with a length of about n bytes
}

// Texts returns the shape's texts of these lengths.
func (s Shape) Texts(sizes [3]int) (texts Texts) {
	for i, n := range sizes {
		texts[i] = s.Make(n)
	}
	return texts
}

// deep is a nesting that PostgreSQL still accepts if there is nothing else open.
const deep = 9000

// row returns before, as many parts as there is room for, and after.
func row(before, part, separator, after string) func(int) string {
	return rowOf(before, func(int) string { return part }, separator, after)
}

// rowOf is row where part i is part(i).
func rowOf(before string, part func(i int) string, separator, after string) func(int) string {
	return func(n int) string {
		var b strings.Builder
		b.WriteString(before)
		for i := 0; i == 0 || b.Len() < n-len(after); i++ {
			if i > 0 {
				b.WriteString(separator)
			}
			b.WriteString(part(i))
		}
		b.WriteString(after)
		return b.String()
	}
}

// halves returns before and two rows, each half as long as the text.
func halves(before string, first func(i int) string, separator, between string, second func(i int) string, after string) func(int) string {
	return func(n int) string {
		return rowOf(before, first, separator, between)(n/2) + rowOf("", second, separator, after)(n/2)
	}
}

// nest returns nested parts, no deeper than depth: after that comes the next of
// them.
func nest(before, open, inner, end, separator, after string, depth int) func(int) string {
	return func(n int) string {
		var b strings.Builder
		b.WriteString(before)
		for i := 0; i == 0 || b.Len() < n; i++ {
			if i > 0 {
				b.WriteString(separator)
			}
			d := min(depth, 1+(n-b.Len())/len(open+end))
			b.WriteString(strings.Repeat(open, d) + inner + strings.Repeat(end, d))
		}
		b.WriteString(after)
		return b.String()
	}
}

// fill returns before and after with as many bytes of part as fit between.
func fill(before, part, after string) func(int) string {
	return func(n int) string {
		return before + strings.Repeat(part, max(1, (n-len(before+after))/len(part))) + after
	}
}

func numbered(format string) func(int) string {
	return func(i int) string { return fmt.Sprintf(format, i) }
}

// Shapes are texts with which a scanner that looks back, looks ahead or keeps
// lists takes more time than it should. The reads name what is built in, and a
// table t and a function stable_f.
var Shapes = []Shape{
	// WITH
	{"many WITH queries", true, rowOf("WITH ", numbered("a%d AS (SELECT 1)"), ", ", " SELECT 1 FROM a0")},
	{"WITH queries, each from the last", true, rowOf("WITH a0 AS (SELECT 1)", func(i int) string {
		return fmt.Sprintf(", a%d AS (SELECT 1 FROM a%d)", i+1, i)
	}, "", " SELECT 1")},
	{"WITH queries, each from all before", true, func(n int) string {
		s, all := "WITH RECURSIVE a AS (SELECT 1)", "a"
		var b strings.Builder
		b.WriteString(s)
		for i := 0; b.Len() < n; i++ {
			fmt.Fprintf(&b, ", a%d AS (SELECT 1 FROM %s)", i, all)
			all += fmt.Sprintf(", a%d", i)
		}
		return b.String() + " SELECT 1"
	}},
	{"WITH queries, then tables", true, halves("WITH ", numbered("a%d AS (TABLE t)"), ",", " SELECT 1 FROM ", func(int) string { return "t" }, "")},
	{"empty WITH queries, then tables", true, halves("WITH ", numbered("a%d AS()"), ",", " SELECT 1 FROM ", func(int) string { return "t" }, "")},
	{"WITH queries, then each of them", true, halves("WITH ", numbered("a%d AS (TABLE t)"), ",", " SELECT 1 FROM ", func(i int) string { return fmt.Sprint("a", i/6) }, "")},
	{"WITH queries of one name", true, halves("WITH ", func(int) string { return "a AS (TABLE t)" }, ",", " SELECT 1 FROM ", func(int) string { return "a" }, "")},
	{"WITH without queries", true, halves("WITH ", numbered("a%d AS"), ",", " ", func(int) string { return "()" }, "")},
	{"WITH with columns", true, rowOf("WITH ", numbered("a%d (x, y) AS NOT MATERIALIZED (SELECT 1, 2)"), ", ", " SELECT 1 FROM a0")},
	{"nested WITH", true, nest("SELECT ", "(WITH a AS ", "(TABLE t)", " SELECT 1 FROM a)", "+", "", deep)},
	{"nested WITH, many tables", true, func(n int) string {
		d := min(n/2/28, deep)
		return strings.Repeat("WITH a AS (", d) + "SELECT 1 FROM t" + strings.Repeat(", t", n/6) + strings.Repeat(") SELECT 1 FROM a", d)
	}},
	{"subqueries with WITH", true, row("SELECT ", "(WITH x AS (SELECT 1) SELECT 1 FROM x)", ", ", "")},

	// nesting
	{"nested parentheses", true, nest("SELECT ", "(", "1", ")", "+", "", deep)},
	{"nested queries", true, nest("SELECT ", "(SELECT ", "1", ")", "+", "", deep)},
	{"nested joins", true, nest("SELECT 1 FROM ", "(", "t CROSS JOIN t u", ")", ",", "", deep)},
	{"nested brackets", true, nest("SELECT ", "ARRAY[", "1", "]", ",", "", deep)},
	{"nested calls", true, nest("SELECT ", "abs(", "1", ")", "+", "", deep)},
	{"nested CASE", true, nest("SELECT ", "CASE WHEN true THEN ", "1", " END", "+", "", 1<<30)},
	{"nested casts", true, nest("SELECT ", "CAST(", "1", " AS int)", "+", "", deep)},
	{"nested grouping sets", true, nest("SELECT 1 GROUP BY ", "GROUPING SETS (", "()", ")", ",", "", deep)},
	{"opening parentheses", false, fill("SELECT ", "(", "")},
	{"opening parentheses first", false, fill("", "(", "")},
	{"opening brackets", false, fill("SELECT a", "[", "")},
	{"opening calls", false, fill("SELECT ", "abs(", "")},
	{"closing parentheses", false, fill("SELECT ", ")", "")},
	{"parentheses and brackets", true, row("SELECT ", "(ARRAY[(1)])", ",", "")},

	// comments and blanks
	{"nested comments", true, nest("SELECT ", "/*", "", "*/", "", "1", 1<<30)},
	{"nested comments, not ended", false, fill("SELECT 1", "/* ", "")},
	{"comments", true, row("SELECT ", "/**/", "1+", "1")},
	{"a comment of stars", true, fill("SELECT 1 /*", "*", "*/")},
	{"line comments", true, row("SELECT ", "--\n", "", "1")},
	{"carriage returns", true, row("SELECT ", "--\r1", "+", "\r")},
	{"blanks", true, fill("SELECT", " \n", "1")},
	{"nothing but blanks", false, fill("", "\t", "")},

	// quotes
	{"a string, then blanks", true, fill("SELECT 'a'", "\n ", "")},
	{"a string, then line comments", true, fill("SELECT 'a'\n", "-- b\n", "")},
	{"a string, then a comment", true, fill("SELECT 'a'/*", " ", "*/")},
	{"strings with blanks behind", true, row("SELECT ", "'a'\n--\n\n", ",", "1")},
	{"a string of many pieces", true, row("SELECT ", "'a'", "\n-- '\n", "")},
	{"a string of quotes", true, fill("SELECT 'a", "''", "'")},
	{"a string of backslashes", true, fill("SELECT E'", `\\\'`, "'")},
	{"a string, not ended", false, fill("SELECT 'a", "''", "")},
	{"strings, the last not ended", false, row("SELECT ", "'a'\n", ",", "'")},
	{"dollar quotes", true, row("SELECT ", "$a$ $b$a$", ",", "")},
	{"dollar quotes, not ended", false, rowOf("SELECT ", numbered("$a%d$"), " ", "")},
	{"dollars in dollar quotes", true, fill("SELECT $a$", "$", "a$")},
	{"a long dollar tag", true, func(n int) string {
		tag := strings.Repeat("a", n/4)
		return "SELECT $" + tag + "$ $" + tag + " $" + tag + "$"
	}},
	{"a dollar tag, almost found", true, fill("SELECT $aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa$",
		"$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaab", "$aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa$")},
	{"quoted names", true, row("SELECT ", `"a""B"."c"`, ",", " FROM t")},
	{"a quoted name of quotes", true, fill(`SELECT "a`, `""`, `" FROM t`)},
	{"quoted names, not ended", false, row("SELECT ", `"a""b"`, ",", `"a""`)},
	{"U& names", true, row("SELECT ", `U&"d\0061t\+000061"`, ",", " FROM t")},
	{"a long U& name", true, fill(`SELECT U&"`, `\0061""`, `" FROM t`)},
	{"U& names, called", false, row("SELECT ", `U&"d\0061t\+000061"(1)`, ",", "")},
	{"a long name", true, fill("SELECT ", "Ab", " FROM t")},
	{"a long called name", false, fill("SELECT ", "Ab", "(1)")},
	{"a long number", true, fill("SELECT 1", "_0", "")},
	{"a long parameter", true, fill("SELECT $1", "0", "")},

	// operators
	{"rows of + and -", true, fill("SELECT 1 ", "+-", "+1")},
	{"rows of + and -, apart", true, row("SELECT 1", "+-+-+-1", "", "")},
	{"a row of + and - before a comment", true, fill("SELECT 1 ", "+-", "+/**/1")},
	{"one long operator", false, fill("SELECT 1 ", "@-", "@1")},
	{"a long operator, then signs", false, func(n int) string { return "SELECT 1 " + strings.Repeat("<", n/2) + strings.Repeat("+-", n/4) + "1" }},
	{"OPERATOR()", true, row("SELECT 1", " OPERATOR(pg_catalog.+) 1", "", "")},
	{"OPERATOR( with blanks", true, row("SELECT 1", " OPERATOR(/*     */pg_catalog\n.+/**/) 1", "", "")},
	{"nested OPERATOR(", false, fill("SELECT 1 ", "OPERATOR(", "")},
	{"OPERATOR( of a long chain", false, fill("SELECT 1 OPERATOR(", "operator.", "+) 1")},
	{"OPERATOR( of a long row", true, fill("SELECT 1 OPERATOR(", "+-", ") 1")},
	{"LIKE and BETWEEN", true, row("SELECT 1 WHERE ", "'a' NOT LIKE 'b' AND 1 BETWEEN 2 AND 3", " OR ", "")},

	// names and the like
	{"a chain of names", true, fill("SELECT t", ".a", " FROM t")},
	{"attributes", true, row("SELECT ", "(t).id.a", ",", " FROM t")},
	{"qualified names", true, row("SELECT ", "t.id", ",", " FROM t")},
	{"casts", true, row("SELECT 1", "::date", "", "")},
	{"literals of a type", true, row("SELECT ", "date '2020-01-01'", ",", "")},
	{"calls", true, row("SELECT ", "stable_f(1)", ",", "")},
	{"calls of built-ins", true, row("SELECT ", "pg_catalog.Lower('a')", ",", "")},
	{"a call with many arguments", true, fill("SELECT concat(1", ",1", ")")},
	{"parameters", true, rowOf("SELECT ", numbered("$%d"), ",", "")},
	{"a long IN list", true, fill("SELECT 1 FROM t WHERE id IN (1", ", 234567", ")")},
	{"key words as names", true, row("SELECT ", "t.select", ",", " FROM t")},

	// clauses
	{"joins", true, row("SELECT 1 FROM t ", "JOIN t x ON x.id = t.id", " ", "")},
	{"tables", true, fill("SELECT 1 FROM t", ",t", "")},
	{"calls as FROM items", true, row("SELECT x.id FROM ", "stable_f(1) AS x (id)", ",", "")},
	{"XMLTABLE", true, rowOf("SELECT 1 FROM XMLTABLE('/r' PASSING '<r/>' COLUMNS ", numbered("a%d text PATH 'a'"), ",", ")")},
	{"many XMLTABLE", true, row("SELECT 1 FROM ", "XMLTABLE('/r' PASSING '<r/>' COLUMNS a date, b FOR ORDINALITY)", ",", "")},
	{"JSON_TABLE", true, rowOf("SELECT 1 FROM JSON_TABLE('{}', '$' COLUMNS (", numbered("a%d text PATH '$.a'"), ",", "))")},
	{"nested JSON_TABLE columns", true, nest("SELECT 1 FROM JSON_TABLE('{}', '$' COLUMNS (a text", ", NESTED PATH '$' COLUMNS (b text", "", ")", "", "))", deep)},
	{"UNION", true, row("", "SELECT 1 FROM t", " UNION ALL ", "")},
	{"VALUES", true, row("VALUES ", "(1, 'a', NULL)", ", ", "")},
	{"CASE with many arms", true, fill("SELECT CASE 1", " WHEN 2 THEN 3", " END")},
	{"window functions", true, row("SELECT ", "sum(id) FILTER (WHERE true) OVER (ORDER BY id)", ",", " FROM t")},

	// other statements
	{"INSERT with many rows", false, row("INSERT INTO t VALUES ", "($1, 'a')", ",", "")},
	{"ON CONFLICT", false, row("INSERT INTO t VALUES (1) ", "ON CONFLICT (a) DO NOTHING", " ", "")},
	{"WITH that writes", false, rowOf("WITH ", numbered("a%d AS (DELETE FROM t)"), ", ", " SELECT 1")},
	{"statements", false, row("", "SELECT 1", ";", "")},
	{"statements that lock", false, row("", "SELECT pg_advisory_lock(1)", ";", "")},
	{"statements that set", false, row("", "SET x = 1", ";", "")},
	{"statements that create", false, row("", "CREATE TABLE Ab ()", ";", "")},
	{"semicolons", true, fill("SELECT 1", ";", "")},
	{"semicolons first", false, fill("", ";", "SELECT 1")},
	{"locks", false, row("SELECT ", "pg_advisory_lock(1)", ",", "")},
	{"nested locks", false, nest("SELECT ", "pg_advisory_lock(", "1", ")", ",", "", deep)},
	{"a lock and names", false, row("SELECT pg_advisory_lock(1),", "t.id", ",", " FROM t")},
	{"SHOW", false, fill("SHOW a", ".a", "")},
}
