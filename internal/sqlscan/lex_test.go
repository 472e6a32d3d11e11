package sqlscan

import (
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

// kindNames are for tests and their messages.
var kindNames = [...]string{
	"eof", "bad", "ident", "quoted", "uquoted", "string", "bits", "number", "param", "op", "cast", "assign",
	"(", ")", "[", "]", ",", ";", ".", ":",
}

// TestLexer: the rules of "Lexical Structure", one by one. Tokens are written
// kind:text; those of a fixed text just as that text.
func TestLexer(t *testing.T) {
	tests := []struct{ name, sql, want string }{
		{"identifiers", `a _b c1 d$ e$1 été`, "ident:a ident:_b ident:c1 ident:d$ ident:e$1 ident:été"},
		{"no identifier", "1a", "bad"},
		{"byte order mark", "\ufeffa", "ident:\ufeffa"},
		{"non-breaking space", "a\u00a0b", "ident:a\u00a0b"},
		{"quoted", `"a" "a""b" "A;" "--"`, `quoted:"a" quoted:"a""b" quoted:"A;" quoted:"--"`},
		{"quoted, empty", `""`, "bad"},
		{"quoted, adjacent", `"a"b"c"`, `quoted:"a" ident:b quoted:"c"`},
		{"quoted, Unicode", `U&"a" u&"b" U &"c" U& "d"`, `uquoted:U&"a" uquoted:u&"b" ident:U op:& quoted:"c" ident:U op:& quoted:"d"`},
		{"string", `'a' 'it''s' '' 'a\'`, `string:'a' string:'it''s' string:'' string:'a\'`},
		{"string, continued", "'a'\n'b'", "string:'a'\n'b'"},
		{"string, continued behind comments", "'a' -- x\n -- y\n 'b'", "string:'a' -- x\n -- y\n 'b'"},
		{"string, continued behind a carriage return", "'a'\r'b'", "string:'a'\r'b'"},
		{"string, not continued on the line", "'a' 'b'", "string:'a' string:'b'"},
		{"string, not continued behind a block comment", "'a' /* */\n'b'", "string:'a' string:'b'"},
		{"string, not continued by another kind", "'a'\nE'b\\''", "string:'a' string:E'b\\''"},
		{"escape string", `E'a\'b' e'\\' E'\''''`, `string:E'a\'b' string:e'\\' string:E'\''''`},
		{"escape string, continued", "E'a'\n'\\''", "string:E'a'\n'\\''"},
		{"escape string, then a plain one", `E'a' '\'`, `string:E'a' string:'\'`},
		{"E is an identifier", `E 'a\'`, `ident:E string:'a\'`},
		{"E ends an identifier", `nameE'a\'`, `ident:nameE string:'a\'`},
		{"Unicode string", `U&'\0061' U&'\' UESCAPE '!'`, `string:U&'\0061' string:U&'\' ident:UESCAPE string:'!'`},
		{"bit strings", `B'1' b'0' X'1F' x'a'`, `bits:B'1' bits:b'0' bits:X'1F' bits:x'a'`},
		{"national string", `N'a\'`, `string:N'a\'`},
		{"dollar quotes", `$$a$$ $x$ $$ $x$ $x$$X$$x$`, `string:$$a$$ string:$x$ $$ $x$ string:$x$$X$$x$`},
		{"dollar quote, tag in front of the end", `$a$ $b$a$`, `string:$a$ $b$a$`},
		{"dollar quote, letters beyond ASCII", `$é$'$é$`, `string:$é$'$é$`},
		{"dollar quote, digit in the tag", `$a1$ $a1$`, `string:$a1$ $a1$`},
		{"dollar in an identifier", `a$$ b$x$`, `ident:a$$ ident:b$x$`},
		{"dollar alone", `$`, "bad"},
		{"dollar tag, not ended", `$a `, "bad"},
		{"parameters", `$1 $20`, "param:$1 param:$20"},
		{"parameter with junk", `$1a`, "bad"},
		{"numbers", `1 1.5 .5 1. 1e5 1.e-5 1E+5 007`, "number:1 number:1.5 number:.5 number:1. number:1e5 number:1.e-5 number:1E+5 number:007"},
		{"numbers of 16", `1_000 0x1F 0o17 0b01 0x_1 1_0.0_1e1_0`, "number:1_000 number:0x1F number:0o17 number:0b01 number:0x_1 number:1_0.0_1e1_0"},
		{"number, double underscore", `1__0`, "bad"},
		{"number, radix alone", `0x`, "bad"},
		{"number, exponent alone", `1e+`, "bad"},
		{"number, range", `1..2`, "number:1 bad"},
		{
			"operators", `+ - * / < > = ^ % <> != <= >= => -> ->> #>> @> <@ ?| || ~* !~ |/ @-@`,
			"op:+ op:- op:* op:/ op:< op:> op:= op:^ op:% op:<> op:!= op:<= op:>= op:=> op:-> op:->> op:#>> op:@> op:<@ op:?| op:|| op:~* op:!~ op:|/ op:@-@",
		},
		{"operator, longest", `a<=-1 b=-1 c@-1 d*-+-1`, "ident:a op:<= op:- number:1 ident:b op:= op:- number:1 ident:c op:@- number:1 ident:d op:* op:- op:+ op:- number:1"},
		{"operator, plus at its end", `~+ +~+ *+`, "op:~+ op:+~+ op:* op:+"},
		{"operator before a comment", "+-- x\n*/* x */-/**/-", "op:+ op:* op:- op:-"},
		{"operator, no comment", "-*/ - -", "op:-*/ op:- op:-"},
		{"punctuation", `()[],;.:::=::`, "( ) [ ] , ; . cast::: assign::= cast:::"},
		{"line comment", "a -- b\nc--d\re", "ident:a ident:c ident:e"},
		{"block comment", "a/*b*/c/*/*d*/*/e/***/f/*/ */g", "ident:a ident:c ident:e ident:f ident:g"},
		{"block comment, quotes in it", `a/*'*/b`, "ident:a ident:b"},
		{"block comment in a string", `'/*' a '*/'`, "string:'/*' ident:a string:'*/'"},
		{"block comment, not ended", "a /* /* */", "ident:a bad"},
		{"string, not ended", "'a", "bad"},
		{"string, not ended behind a quote", "'a''", "bad"},
		{"escape string, not ended", `E'a\'`, "bad"},
		{"quoted, not ended", `"a`, "bad"},
		{"NUL", "a\x00", "ident:a bad"},
		{"NUL in a string", "'\x00'", "bad"},
		{"NUL in an escape", "E'\\\x00'", "bad"},
		{"NUL in a quoted identifier", "\"\x00\"", "bad"},
		{"NUL in a dollar quote", "$$\x00$$", "bad"},
		{"vertical tab", "\v", "bad"},
		{"braces", "{", "bad"},
		{"backslash", `\`, "bad"},
	}
	for _, tt := range tests {
		list, _ := tokens(tt.sql)
		var got []string
		for _, tok := range list {
			switch {
			case tok.kind == tokEOF:
			case tok.kind >= tokOpen, tok.kind == tokBad:
				got = append(got, kindNames[tok.kind])
			default:
				got = append(got, kindNames[tok.kind]+":"+tt.sql[tok.pos:tok.end])
			}
		}
		if g := strings.Join(got, " "); g != tt.want {
			t.Errorf("%s: tokens of %q = %s; want %s", tt.name, tt.sql, g, tt.want)
		}
	}
}

// TestKeywords: every key word is found, in any case, and nothing else is.
func TestKeywords(t *testing.T) {
	for i, k := range keywordList {
		if i == 0 {
			continue
		}
		for _, sql := range []string{k.word, strings.ToUpper(k.word), strings.ToUpper(k.word[:1]) + k.word[1:]} {
			if list, _ := tokens(sql); list[0].kw != keyword(i) {
				t.Errorf("key word of %q = %v; want %v", sql, list[0].kw, k.word)
			}
		}
		for _, sql := range []string{k.word + "_", k.word + "1", "x" + k.word, `"` + k.word + `"`} {
			if list, _ := tokens(sql); list[0].kw != notKeyword && list[0].kw.String() != sql {
				t.Errorf("key word of %q = %v; want none", sql, list[0].kw)
			}
		}
		if strings.Trim(k.word, "abcdefghijklmnopqrstuvwxyz_") != "" {
			t.Errorf("%q is not made of lower-case letters and underscores", k.word)
		}
	}
}

// TestFunctionSyntax: the name is one that the server has folded and decoded, so
// it is compared exactly.
func TestFunctionSyntax(t *testing.T) {
	for name, want := range map[string]bool{
		"coalesce": true, "json_arrayagg": true, "COALESCE": false, "coalesc": false, "json_arrayagG": false,
		"treat": false, "select": false, "count": false, "": false, "\x03oalesce": false,
	} {
		if got := FunctionSyntax(name, 18); got != want {
			t.Errorf("FunctionSyntax(%q) = %v; want %v", name, got, want)
		}
	}
	if FunctionSyntax("json_arrayagg", 15) {
		t.Error("json_arrayagg has a syntax of its own in 15")
	}
}

// TestStripComments shows what is replaced and what is not.
func TestStripComments(t *testing.T) {
	tests := []struct{ sql, want string }{
		{"SELECT 1", "SELECT 1"},
		{"SELECT 1 -- x", "SELECT 1  "},
		{"/* a /* b */ */SELECT/**/1--x\n+2", " SELECT 1 \n+2"},
		{"SELECT '-- x', \"/* y */\", $$--$$, E'\\'--'", "SELECT '-- x', \"/* y */\", $$--$$, E'\\'--'"},
		{"SELECT 'a' -- x\n'b'", "SELECT 'a' -- x\n'b'"}, // one string
		{"SELECT 'a' /* x */\n'b'", "SELECT 'a' /**/\n'b'"},
		{"SELECT 1 /* x", "SELECT 1 /* x"},
		{"SELECT 1 /* x */ 'a", "SELECT 1 /* x */ 'a"},
		{"", ""},
	}
	for _, tt := range tests {
		if got := string(StripComments([]byte("key:"), tt.sql)); got != "key:"+tt.want {
			t.Errorf("StripComments(%q) = %q; want %q", tt.sql, got, "key:"+tt.want)
		}
	}
}

// TestNames_Value: a string that is read as a type is told from a value that is converted.
func TestNames_Value(t *testing.T) {
	for sql, want := range map[string]bool{
		"SELECT 'a'::mood": true, "SELECT mood 'a'": true, "SELECT f('a'::mood)": true, "SELECT CAST('a' AS mood)": true,
		"SELECT CAST($$a$$ AS app.mood)": true, "SELECT 1 WHERE m = E'a'::mood": true, "SELECT ARRAY['a'::mood]": true,
		"SELECT CASE WHEN true THEN 'a'::mood END": true, "SELECT 1, '{a}'::mood[]": true, "SELECT app.mood 'a'": true,
		"SELECT text 'a'::mood": false, "SELECT CAST(text 'a' AS mood)": false, "SELECT varchar(3) 'a'::mood": false,
		"SELECT N'a'::mood": false, "SELECT B'1'::mood": false, "SELECT $1::mood": false, "SELECT ('a')::mood": false,
		"SELECT m::mood": false, "SELECT interval '1' day::mood": false, "SELECT 'a'::text::mood": false, "SELECT date'a'::mood": false,
		"SELECT ARRAY['a']::mood[]": false, "SELECT CAST(m AS mood)": false, "SELECT x COLLATE \"C\"::mood": false,
	} {
		got, seen := false, false
		Names(sql, func(n Name) bool {
			if n.Kind == TypeName && n.Name == "mood" {
				got, seen = n.Value, true
			}
			return true
		})
		if got != want || !seen {
			t.Errorf("Names(%q): mood is of a string: %v, visited %v; want %v", sql, got, seen, want)
		}
	}
}

// TestNames checks kinds and decoding.
func TestNames(t *testing.T) {
	long := strings.Repeat("x", 62) + "é" // 64 bytes: the server cuts it before é
	tests := []struct{ sql, want string }{
		{
			`SELECT a, B."C", lower(d) FROM s.T x JOIN "U" ON x.f = 1`,
			`other:a attribute:b.C operator:= relation:s.t relation:U function:lower other:d other:x attribute:x.f`,
		},
		{`SELECT 1::app.Dpos, dpos '1', CAST($1 AS "D")`, `type:app.dpos type:dpos type:D`},
		{
			`SELECT 1 FROM a JOIN user JOIN u ON b, current_date JOIN v ON true`,
			`relation:a function:pg_catalog.user relation:u other:b function:pg_catalog.current_date relation:v`,
		},
		{`SELECT 1 FROM CAST(1 AS int) JOIN u ON true, COLLATION FOR ('a') JOIN v ON true`, `relation:u relation:v`},
		{`SELECT XMLEXISTS(operator(a.*) PASSING operator(b.*)) FROM t FETCH FIRST operator(t.*) ROWS ONLY`, `function:operator relation:t`},
		{`SELECT 1::int, CAST(2 AS DOUBLE precision), numeric '1', 3::numeric(2), 4::timestamp(3) with time zone`, `grammar:int grammar:double grammar:numeric grammar:timestamp`},
		{`SELECT 1 table FROM u`, `relation:u`},
		{`SELECT 1 FROM XMLTABLE(columns PASSING f() COLUMNS a dpos)`, `other:columns other:passing function:f other:columns other:a type:dpos function:pg_catalog.xmltable`},
		{`SELECT (t).rowfn, t.rowfn FROM t`, `attribute:?.rowfn attribute:t.rowfn relation:t`},
		{`SELECT 1 === ALL (SELECT 2), 3 != 4, 5 OPERATOR(app.@@@) 6`, `operator:=== operator:<> operator:app.@@@`},
		{
			`SELECT a LIKE b FROM t, ONLY (u), LATERAL f(1), (v JOIN (w CROSS JOIN y) ON true)`,
			`operator:~~ operator:!~~ other:a other:b relation:t relation:u function:f relation:v relation:w relation:y`,
		},
		{`TABLE ONLY "x""y"`, `relation:x"y`},
		{`SELECT * FROM ` + long, `relation:` + long[:62]},
		{`SELECT U&"d\0061ta" FROM U&"a\+00005fb"`, `other:data relation:a_b`},
		{`SELECT app.f(1), x.y.f(2), db.s.f(3)`, `function:app.f function:?.f function:?.f`},
		{`SELECT extract(year FROM now()), substring('a' FROM 1 FOR 2)`, `function:pg_catalog.extract function:now function:pg_catalog.substring`},
		{`WITH c(x) AS (SELECT 1) SELECT x FROM c`, `other:x relation:c`},
	}
	for _, tt := range tests {
		seen := map[string]bool{}
		if !Names(tt.sql, func(n Name) bool {
			kind := [...]string{"other", "relation", "function", "type", "attribute", "operator", "grammar"}[n.Kind]
			name := n.Name
			if n.Schema != "" {
				name = n.Schema + "." + name
			}
			seen[kind+":"+name] = true
			if n.Kind != OperatorName && !utf8.ValidString(n.Name) {
				t.Errorf("Names(%q) visits %q", tt.sql, n.Name)
			}
			return true
		}) {
			t.Errorf("Names(%q) = false", tt.sql)
		}
		for _, want := range strings.Fields(tt.want) {
			if !seen[want] {
				t.Errorf("Names(%q) misses %s; has %s", tt.sql, want, fmt.Sprint(seen))
			}
		}
	}
	n := 0
	if Names("SELECT a, b, c", func(Name) bool { n++; return n < 2 }) || n != 2 {
		t.Errorf("Names did not stop: %d visits", n)
	}
	if Names("SELECT a, 'b", func(Name) bool { return true }) {
		t.Error("Names = true for a text that is not understood")
	}
}
