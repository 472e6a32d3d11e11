package sqlscan

import (
	"strings"
	"testing"
)

// seeds adds the statements of both tables to a fuzz target's corpus.
func seeds(f *testing.F) {
	for _, row := range readTSV(f, "testdata/verdicts.tsv") {
		f.Add(row[len(row)-1])
	}
	for _, row := range readTSV(f, "testdata/classify.tsv") {
		f.Add(row[0])
	}
}

// tokens returns the text's tokens, and whether all of it was understood.
func tokens(sql string) (list []token, ok bool) {
	l := lexer{src: sql}
	for {
		t := l.next()
		list = append(list, t)
		switch t.kind {
		case tokEOF:
			return list, true
		case tokBad:
			return list, false
		}
	}
}

// FuzzLexer: tokens are in order, lie within the text, and between them there is
// only white space and comments.
func FuzzLexer(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, sql string) {
		list, ok := tokens(sql)
		end := 0
		for i, tok := range list {
			last := i == len(list)-1
			if tok.pos < end || tok.end < tok.pos || tok.end > len(sql) || tok.end == tok.pos && !last {
				t.Fatalf("token %d of %q is %+v behind %d", i, sql, tok, end)
			}
			if gap := sql[end:tok.pos]; strings.TrimLeft(gap, " \t\n\r\f") != "" && !strings.Contains(gap, "--") && !strings.Contains(gap, "/*") {
				t.Fatalf("%q is passed over in %q", gap, sql)
			}
			end = tok.end
		}
		if ok && strings.Contains(sql, "\x00") {
			if _, again := tokens(strings.ReplaceAll(sql, "\x00", "\x01")); !again {
				t.Fatalf("NUL accepted in %q", sql)
			}
		}
	})
}

// FuzzScan: no text makes the scanner fail, and a read is a read however it is
// wrapped, while nothing added to it can be hidden.
func FuzzScan(f *testing.F) {
	seeds(f)
	f.Fuzz(func(t *testing.T, sql string) {
		for _, version := range []int{0, 16, 18} {
			got := Options{Version: version}.Scan(sql)
			if got.Pos < 0 || got.Pos > len(sql) || (got.Class == Read) != (got.Reason == None) {
				t.Fatalf("Scan(%q) = %+v", sql, got)
			}
		}
		got := Scan(sql)
		complete := Names(sql, func(n Name) bool {
			if n.Pos < 0 || n.Pos >= len(sql) {
				t.Fatalf("Names(%q) visits %+v", sql, n)
			}
			return true
		})
		if got.Class != Other && !complete {
			t.Fatalf("Scan(%q) = %v, but Names did not read it all", sql, got)
		}
		if got.Class != Read {
			return
		}
		list, ok := tokens(sql)
		if !ok {
			t.Fatalf("Scan(%q) is a read, but not understood", sql)
		}
		// Whatever is appended is seen: no quote and no comment is open.
		for _, more := range []string{"\n; DELETE FROM t", "\n; SELECT 1", "\n'", "\n\"", "\n/*", "\n$$", "\n)"} {
			if now := Scan(sql + more); now.Class == Read {
				t.Fatalf("Scan(%q) is a read", sql+more)
			}
		}
		for _, more := range []string{"\n-- '", " /* \" /* */ $$ */ ", "\n;", "\n;\r;"} {
			if now := Scan(sql + more); now.Class != Read {
				t.Fatalf("Scan(%q) = %+v; want a read", sql+more, now)
			}
		}
		// Blanks and comments before it change nothing; one statement in
		// parentheses is one.
		if now := Scan("/* ' */ -- \"\n" + sql); now.Class != Read {
			t.Fatalf("Scan with a comment before %q = %+v; want a read", sql, now)
		}
		if len(list) < 2 {
			return
		}
		switch last := list[len(list)-2]; last.kind {
		case tokString, tokBits, tokNumber, tokParam, tokQuoted, tokClose, tokCloseBracket:
			for _, bad := range []string{"FOR UPDATE", ", nextval('s')", "UNION SELECT vol_f()", "WHERE pg_settings.a = 1"} {
				if now := Scan(sql + "\n" + bad); now.Class == Read {
					t.Fatalf("Scan(%q) is a read", sql+"\n"+bad)
				}
			}
		}
	})
}

// FuzzStripComments: the text without comments has the same tokens, the same
// verdict, and no comments.
func FuzzStripComments(f *testing.F) {
	seeds(f)
	f.Add("SELECT 'a' /* c */ \n 'b'")
	f.Add("SELECT 1 +-- c\n2 -/**/- 3 */**/ 4")
	f.Fuzz(func(t *testing.T, sql string) {
		stripped := string(StripComments([]byte("x"), sql))
		if stripped[0] != 'x' {
			t.Fatalf("StripComments(%q) changed what was there", sql)
		}
		stripped = stripped[1:]
		want, ok := tokens(sql)
		if !ok {
			if stripped != sql {
				t.Fatalf("StripComments(%q) = %q; want it unchanged", sql, stripped)
			}
			return
		}
		got, ok := tokens(stripped)
		if !ok || len(got) != len(want) {
			t.Fatalf("StripComments(%q) = %q: other tokens", sql, stripped)
		}
		for i := range want {
			if g, w := got[i], want[i]; g.kind != w.kind || stripped[g.pos:g.end] != sql[w.pos:w.end] {
				t.Fatalf("StripComments(%q) = %q: token %d is %q; want %q", sql, stripped, i, stripped[g.pos:g.end], sql[w.pos:w.end])
			}
		}
		if again := string(StripComments(nil, stripped)); again != stripped {
			t.Fatalf("StripComments(%q) = %q; want no change", stripped, again)
		}
		if a, b := Scan(sql), Scan(stripped); a.Class != b.Class || a.Reason != b.Reason {
			t.Fatalf("Scan(%q) = %v; stripped %v", sql, a, b)
		}
	})
}
