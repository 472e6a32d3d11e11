package sqlscan

import (
	"strings"

	"github.com/flightpg/flightpg/internal/catalog"
)

// Words calls visit with each word of a text that need not be a statement, such as a
// function's body in PL/pgSQL, until that returns false. It reports whether it read the
// whole text: whether that follows SQL's lexical rules, and visit never returned false.
// In strings and comments there are no words. Operators are words, too, also those that
// a key word stands for.
func Words(text string, visit func(catalog.Word) bool) bool {
	var s scanner // whose lexer and names these are
	s.src = text
	t := s.loose()
	var w catalog.Word                       // the last one, if nothing is between
	dot, dotted, first := false, false, true // behind a word and a dot, or just a dot; a statement may begin
	for t.kind != tokEOF {
		next := s.loose()
		switch t.kind {
		case tokBad:
			return false
		case tokDot:
			if dot = w.Name != ""; !dot {
				w = catalog.Word{}
			}
			dotted = true
		case tokIdent, tokQuoted, tokUQuoted:
			if t.kind == tokUQuoted && next.kw == kwUescape { // a name that is not decoded here
				return false
			}
			n := catalog.Word{Name: s.nameOf(t), Quoted: t.kind != tokIdent, Called: next.kind == tokOpen, Dotted: dotted}
			switch {
			case dot:
				n.Schema = w.Name
			case !w.Quoted:
				n.After = w.Name
			}
			n.First = !dot && (first || opensBlock(n.After))
			if !visit(n) {
				return false
			}
			if n.Dotted {
				t.kw = notKeyword
			}
			for _, op := range implied(t.kw) {
				if !visit(catalog.Word{Name: op, Operator: true}) {
					return false
				}
			}
			w, dot, dotted = n, false, false
		case tokOp:
			n := catalog.Word{Name: s.src[t.pos:t.end], Operator: true}
			if n.Name == "!=" {
				n.Name = "<>"
			}
			if dot {
				n.Schema = w.Name
			}
			if !visit(n) {
				return false
			}
			w, dot, dotted = catalog.Word{}, false, false
		default:
			w, dot, dotted = catalog.Word{}, false, false
		}
		first = t.kind == tokSemicolon
		t = next
	}
	return true
}

// opensBlock reports whether statements follow a word of PL/pgSQL, among others.
func opensBlock(word string) bool {
	switch word {
	case "begin", "atomic", "then", "else", "loop":
		return true
	}
	return false
}

// loose is next for PL/pgSQL, which has ranges: FOR i IN 1..n.
func (s *scanner) loose() token {
	t := s.lexer.next()
	if t.kind != tokBad {
		return t
	}
	i := t.pos
	for i < len(s.src) && is(s.src[i], isDigit) {
		i++
	}
	if !strings.HasPrefix(s.src[i:], "..") {
		return t
	}
	s.pos = i + len("..")
	return token{symbol: symbol{kind: tokComma}, pos: t.pos, end: s.pos}
}
