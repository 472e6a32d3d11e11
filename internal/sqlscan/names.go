package sqlscan

import (
	"strings"
	"unicode/utf8"

	"github.com/flightpg/flightpg/internal/catalog"
)

// A NameKind says where a name stands.
type NameKind uint8

const (
	// OtherName may be anything the text does not tell: a column, an alias, a type.
	OtherName NameKind = iota
	RelationName
	FunctionName
	TypeName
	// AttributeName stands behind a dot. t.f and (t).f may call f(t).
	AttributeName
	OperatorName
)

// A Name is a name in a statement as the server reads it: folded, decoded and
// cut to 63 bytes.
type Name struct {
	Kind   NameKind
	Schema string // "" if not qualified; "?" if it cannot be told
	Name   string
	Pos    int // byte offset
}

// Names calls visit with every name and operator in the text, until it returns
// false. It reports whether the whole text was read; text behind something that
// is not understood is not. The kinds err on one side only: a name that is not a
// FunctionName, and not an AttributeName, is not called; a relation is a
// RelationName; but a type can also be an OtherName (column definitions, typed
// literals of two words), so unsafe types must be looked for among all names.
// Key words that stand for operators are visited as these.
func Names(sql string, visit func(Name) bool) bool {
	s := scanner{lexer: lexer{src: sql}}
	ok := true
	s.visit = func(n Name) bool {
		ok = ok && visit(n)
		if !ok {
			s.done = true
		}
		return ok
	}
	s.run()
	return ok && s.prev.kind == tokEOF
}

// nameOf returns an identifier as the server stores it, other tokens as they are.
func (s *scanner) nameOf(t token) string {
	raw := s.src[t.pos:t.end]
	switch t.kind {
	case tokIdent:
		return clip(foldASCII(raw))
	case tokQuoted:
		raw = raw[1 : len(raw)-1]
		if strings.Contains(raw, `""`) {
			raw = strings.ReplaceAll(raw, `""`, `"`)
		}
		return clip(raw)
	case tokUQuoted:
		raw = strings.ReplaceAll(raw[3:len(raw)-1], `""`, `"`)
		return clip(unescape(raw))
	case tokBad:
		return ""
	}
	return raw
}

// foldASCII makes unquoted identifiers lower case. With a multi-byte encoding,
// which UTF8 is, the server leaves other letters alone.
func foldASCII(s string) string {
	for i := range len(s) {
		if is(s[i], isUpper) {
			b := []byte(s)
			for ; i < len(b); i++ {
				if is(b[i], isUpper) {
					b[i] += 'a' - 'A'
				}
			}
			return string(b)
		}
	}
	return s
}

// maxName is PostgreSQL's NAMEDATALEN less its terminator.
const maxName = 63

// clip cuts a name like the server does, at a character's boundary.
func clip(name string) string {
	if len(name) <= maxName {
		return name
	}
	i := maxName
	for i > 0 && !utf8.RuneStart(name[i]) {
		i--
	}
	return name[:i]
}

// unescape decodes \XXXX and \+XXXXXX of U&"…". What is not an escape stays as
// it is; the server refuses it.
func unescape(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			i++
			continue
		}
		i++
		n := 4
		switch {
		case i < len(s) && s[i] == '\\':
			b.WriteByte('\\')
			i++
			continue
		case i < len(s) && s[i] == '+':
			i++
			n = 6
		}
		var r rune
		for ; n > 0 && i < len(s) && is(s[i], isHex); n-- {
			c := s[i] | 0x20
			if c <= '9' {
				r = r<<4 | rune(c-'0')
			} else {
				r = r<<4 | rune(c-'a'+10)
			}
			i++
		}
		b.WriteRune(r)
	}
	return b.String()
}

// builtin looks a called name up.
func (s *scanner) builtin(t token) catalog.Info {
	raw := s.src[t.pos:t.end]
	if t.kind == tokQuoted {
		return catalog.Lookup(raw[1 : len(raw)-1]) // no built-in has a quote in its name
	}
	for i := range len(raw) {
		if is(raw[i], isUpper) {
			return catalog.Lookup(foldASCII(raw))
		}
	}
	return catalog.Lookup(raw) // no built-in has a name that is too long
}

// hasPG reports whether the text at i starts with pg_, in any case.
func (s *scanner) hasPG(i int) bool {
	return s.at(i)|0x20 == 'p' && s.at(i+1)|0x20 == 'g' && s.at(i+2) == '_'
}

func (s *scanner) visitFunction(schema string, t token) {
	if s.visit != nil {
		s.visit(Name{FunctionName, schema, s.nameOf(t), t.pos})
	}
}

func (s *scanner) visitOperator(schema, op string, pos int) {
	if op == "!=" {
		op = "<>"
	}
	if s.visit != nil && op != "=>" {
		s.visit(Name{OperatorName, schema, op, pos})
	}
}

// visitName visits the last part of a chain that is not called, and those
// before it that may be columns or tables.
func (s *scanner) visitName() {
	if s.visit == nil {
		return
	}
	switch keywordList[s.cur.kw].category {
	case reserved, functionName:
		return // syntax, unless called
	}
	c, n := &s.chain, Name{Name: s.nameOf(s.cur), Pos: s.cur.pos}
	switch {
	case c.parts == 2 && c.first.kind != tokDot:
		n.Schema = s.nameOf(c.first)
	case c.parts > 1:
		n.Schema = "?"
	}
	switch {
	case c.relation:
		n.Kind = RelationName
	case c.before.kind == tokCast || s.next.kind == tokString:
		n.Kind = TypeName
	case c.parts > 1:
		n.Kind = AttributeName
	}
	s.visit(n)
}

// impliedOperators visits the operators behind a key word.
func (s *scanner) impliedOperators() {
	if s.visit == nil {
		return
	}
	var ops []string
	switch s.cur.kw {
	case kwLike:
		ops = []string{"~~", "!~~"}
	case kwIlike:
		ops = []string{"~~*", "!~~*"}
	case kwSimilar:
		ops = []string{"~", "!~"}
	case kwBetween:
		ops = []string{">=", "<=", "<", ">"}
	default:
		ops = []string{"=", "<>"}
	}
	for _, op := range ops {
		s.visitOperator("", op, s.cur.pos)
	}
}
