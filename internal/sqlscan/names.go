package sqlscan

import (
	"strings"
	"unicode/utf8"

	"github.com/flightpg/flightpg/internal/catalog"
)

// A NameKind says where a name stands.
type NameKind uint8

const (
	// OtherName may be anything the text does not tell: a column, an alias.
	OtherName NameKind = iota
	RelationName
	FunctionName
	TypeName
	// AttributeName stands behind a dot. t.f and (t).f may call f(t), or convert
	// to a type of that name.
	AttributeName
	OperatorName
	// GrammarType is a type that the grammar itself knows, by the first word of its name.
	GrammarType
)

// A Name is a name in a statement as the server reads it: folded, decoded and
// cut to 63 bytes.
type Name struct {
	Kind   NameKind
	Schema string // "" if not qualified; "?" if it cannot be told
	Name   string
	Pos    int  // byte offset
	Args   int  // FunctionName: how many arguments the call has; -1 if that cannot be told
	Item   bool // FunctionName: a FROM item, whose alias then stands for its result
	CTE    bool // RelationName: a WITH query of this name is in scope
	Maybe  bool // TypeName: or it is a word before a string, such as PATH '$'
	Value  bool // TypeName: a string is read as one, and nothing is converted
	Bare   bool // AttributeName: of an expression, which can be of any type, and not of a table
}

// Names calls visit with every name and operator in the text, until it returns
// false. It reports whether the whole text was read; text behind something that
// is not understood is not.
//
// The kinds err on one side only: a name that is not a FunctionName, and not an
// AttributeName, is not called; a relation is a RelationName; a type is a
// TypeName, or a GrammarType (int, double precision). A function is visited when its arguments have been. Key words that
// stand for operators are visited as these.
func Names(sql string, visit func(Name) bool) bool {
	var s scanner
	ok := true
	s.src, s.all = sql, true
	s.visit = func(n Name) bool {
		ok = ok && visit(n)
		return ok
	}
	s.run()
	return ok && s.prev.kind == tokEOF
}

// report visits a name.
func (s *scanner) report(n Name) {
	if !s.visit(n) {
		s.done = true
	}
}

// nameOf returns an identifier as the server stores it, other tokens as they are.
func (s *scanner) nameOf(t token) string {
	raw := s.src[t.pos:t.end]
	switch t.kind {
	case tokIdent:
		if t.kw != notKeyword {
			return t.kw.String()
		}
		if t.capitals {
			raw = foldASCII(start(raw, 1))
		}
		return clip(raw)
	case tokQuoted:
		raw = start(raw[1:len(raw)-1], 2)
		if strings.Contains(raw, `""`) {
			raw = strings.ReplaceAll(raw, `""`, `"`)
		}
		return clip(raw)
	case tokUQuoted:
		raw = strings.ReplaceAll(start(raw[3:len(raw)-1], 16), `""`, `"`) // an escape has up to 8, and one may be cut
		return clip(unescape(raw))
	case tokBad:
		return ""
	}
	return raw
}

// foldASCII makes unquoted identifiers lower case. With a multi-byte encoding,
// which UTF8 is, the server leaves other letters alone.
func foldASCII(s string) string {
	b := []byte(s)
	for i := range b {
		if is(b[i], isUpper) {
			b[i] += 'a' - 'A'
		}
	}
	return string(b)
}

// maxName is PostgreSQL's NAMEDATALEN less its terminator.
const maxName = 63

// start cuts a name in a text short, to at least what clip leaves of it, if n bytes
// of the text stand for one of the name at most. What is decoded is a copy, and
// should not be as long as a text can be.
func start(raw string, n int) string {
	return raw[:min(len(raw), n*(maxName+1))]
}

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
	if t.capitals {
		raw = foldASCII(start(raw, 1))
	}
	return catalog.Lookup(raw) // no built-in has a name that is too long
}

// hasPG reports whether the text at i starts with pg_, in any case.
func (s *scanner) hasPG(i int) bool {
	return s.at(i)|0x20 == 'p' && s.at(i+1)|0x20 == 'g' && s.at(i+2) == '_'
}

// called keeps a call until its arguments are counted.
func (s *scanner) called(schema string, args int32) {
	if s.visit != nil {
		s.opening.callee, s.opening.schema, s.opening.args = s.cur, schema, args
		s.opening.fromItem = s.chain.relation
	}
}

// visitFunction visits the function whose arguments are in f.
func (s *scanner) visitFunction(f *frame) {
	s.report(Name{
		Kind: FunctionName, Schema: f.schema, Name: s.nameOf(f.callee), Pos: f.callee.pos,
		Args: int(max(f.args, -1)), Item: f.fromItem,
	})
}

// visitItem visits a reserved word where a FROM item begins as the function it
// is, unless a query or a relation follows: FROM CAST (1 AS int) AS x.
func (s *scanner) visitItem() {
	switch s.cur.kw {
	case kwSelect, kwWith, kwTable, kwOnly, kwLateral:
		return
	}
	if s.visit != nil {
		s.report(Name{Kind: FunctionName, Schema: "pg_catalog", Name: s.cur.kw.String(), Pos: s.cur.pos, Args: -1, Item: true})
	}
}

func (s *scanner) visitOperator(schema, op string, pos int) {
	if op == "!=" {
		op = "<>"
	}
	if s.visit != nil && op != "=>" {
		s.report(Name{Kind: OperatorName, Schema: schema, Name: op, Pos: pos})
	}
}

// visitName visits a name that is not called.
func (s *scanner) visitName() {
	if s.visit == nil {
		return
	}
	c, f := &s.chain, s.top()
	switch keywordList[s.cur.kw].category {
	case reserved, functionName:
		return // syntax, unless called
	}
	kind, declares := OtherName, false
	switch {
	case c.relation:
		kind = RelationName
	case c.parts == 1 && f.clause == withClause && s.namesCTE(c.before, c.beforeThat) && (s.next.kw == kwAs || s.next.kind == tokOpen):
		declares = true // a WITH query
	case c.before.kind == tokCast, c.before.kw == kwAs && f.kind == castArgs, f.kind == columnDefs && s.typeInDefs(),
		c.before.kw == kwReturning && f.kind == call, s.next.kind == tokString && !(s.cur.kw == kwZone && c.before.kw == kwTime):
		kind = TypeName
	case c.parts > 1:
		kind = AttributeName
	}
	if kind == OtherName && !declares && !s.all {
		return
	}

	n := Name{Kind: kind, Name: s.nameOf(s.cur), Pos: s.cur.pos}
	switch {
	case c.parts == 2 && c.first.kind != tokDot:
		n.Schema = s.nameOf(c.first)
	case c.parts > 1:
		n.Schema = "?"
	}
	switch kind {
	case RelationName:
		n.CTE = c.parts == 1 && s.seesCTE(n.Name)
	case TypeName:
		if s.grammarType(n.Name) {
			n.Kind = GrammarType
			break
		}
		n.Maybe = s.next.kind == tokString && s.beforeString()
		switch {
		case c.before.kind == tokCast, c.before.kw == kwAs && f.kind == castArgs:
			n.Value = c.beforeThat.kind == tokString && s.bareString
		case f.kind != columnDefs && c.before.kw != kwReturning:
			n.Value = !n.Maybe
		}
	case AttributeName:
		n.Bare = c.first.kind == tokDot
	case OtherName:
		if declares {
			s.addCTE(cte{n.Name, s.depth, !f.recursive})
		}
	}
	s.report(n)
}

// startsExpression reports whether an expression begins with the current token, so
// that it has no type yet if it is a string.
func (s *scanner) startsExpression() bool {
	switch s.prev.kind {
	case tokOpen, tokOpenBracket, tokComma, tokOp:
		return true
	}
	return s.prev.kw != notKeyword && keywordList[s.prev.kw].category == reserved
}

// plainString reports whether the current string is of no type: N'x' is.
func (s *scanner) plainString() bool {
	switch s.at(s.cur.pos) {
	case '\'', 'e', 'E', '$':
		return true
	}
	return false
}

// typeInDefs reports whether the current chain stands where a type does in a
// list of columns: right behind a column's name.
func (s *scanner) typeInDefs() bool {
	c := &s.chain
	switch c.before.kind {
	case tokIdent, tokQuoted, tokUQuoted:
	default:
		return false
	}
	if keywordList[c.before.kw].category == reserved {
		return false
	}
	switch c.beforeThat.kind {
	case tokOpen, tokComma:
		return true
	}
	return c.beforeThat.kw == kwColumns
}

// grammarType reports whether the current word, which is a type, is one that
// means a built-in type whatever the user's types are called.
func (s *scanner) grammarType(name string) bool {
	if s.cur.kind != tokIdent || s.chain.parts > 1 {
		return false
	}
	switch kw := lookupKeyword(name); kw {
	case kwSetof, kwJson: // json is a key word from 17 on, and compared by users' code if at all
		return false
	case kwDouble:
		return s.next.kw == kwPrecision
	default:
		return keywordList[kw].category == columnName
	}
}

// beforeString reports whether the current word is one that the grammar puts
// before strings, so that no type need be meant.
func (s *scanner) beforeString() bool {
	switch s.cur.kw {
	case kwZone, kwEscape, kwUescape, kwPath, kwValue, kwVersion, kwDocument, kwContent, kwRef, kwKey, kwBy, kwTo,
		kwRange, kwRows, kwGroups, kwFirst, kwNext, kwNested, kwPassing, kwOffset:
		return true
	}
	return false
}

// manyCTEs is how many WITH queries are counted by name. Fewer are as soon looked
// through, and that takes no memory.
const manyCTEs = 16

// addCTE begins the scope of a WITH query.
func (s *scanner) addCTE(c cte) {
	s.ctes = append(s.ctes, c)
	switch {
	case s.shown != nil:
		s.count(&c, 1)
	case len(s.ctes) == manyCTEs:
		s.shown = make(map[string]int, 2*manyCTEs)
		for i := range s.ctes {
			s.count(&s.ctes[i], 1)
		}
	}
}

// count counts a WITH query that is not hidden, or with -1 no longer.
func (s *scanner) count(c *cte, n int) {
	if s.shown == nil || c.hidden {
		return
	}
	if n += s.shown[c.name]; n > 0 {
		s.shown[c.name] = n
	} else {
		delete(s.shown, c.name)
	}
}

// seesCTE reports whether a WITH query of that name is in scope.
func (s *scanner) seesCTE(name string) bool {
	if s.shown != nil {
		return s.shown[name] > 0
	}
	for i := range s.ctes {
		if c := &s.ctes[i]; c.name == name && !c.hidden {
			return true
		}
	}
	return false
}

// closeCTEs ends the scope of the WITH queries of the frame that was closed, and
// shows the one whose query that was.
func (s *scanner) closeCTEs(kind frameKind) {
	last := len(s.ctes) - 1
	if last < 0 {
		return
	}
	for ; last >= 0 && s.ctes[last].depth > s.depth; last-- {
		s.count(&s.ctes[last], -1)
	}
	s.ctes = s.ctes[:last+1]
	if kind != plain || s.top().clause != withClause {
		return
	}
	// Those before it in the clause have been shown.
	for i := last; i >= 0 && s.ctes[i].depth == s.depth && s.ctes[i].hidden; i-- {
		s.ctes[i].hidden = false
		s.count(&s.ctes[i], 1)
	}
}

// attribute judges a name behind a dot as the function it may be: SELECT
// ('s'::regclass).nextval draws from the sequence.
func (s *scanner) attribute() {
	if s.chain.relation || s.chain.before.kind == tokCast {
		return
	}
	raw := s.src[s.cur.pos:s.cur.end]
	if s.cur.kind == tokIdent && len(raw) < len("uuidv7") && (len(raw) < 3 || raw[2] != '_') {
		return // too short for all but pg_…, lo_…, ts_…
	}
	name := s.nameOf(s.cur)
	switch catalog.Attribute(name) {
	case catalog.Private:
		s.note(PrivateRead, DeniedFunction, s.cur)
	case catalog.NeutralWrite:
		s.note(Write, VolatileFunction, s.cur)
	case catalog.Denied:
		s.note(Other, DeniedFunction, s.cur)
	}
}

// impliedOperators visits the operators behind the current key word.
func (s *scanner) impliedOperators() {
	if s.visit == nil {
		return
	}
	for _, op := range implied(s.cur.kw) {
		s.visitOperator("", op, s.cur.pos)
	}
}

// implied returns the operators that a key word stands for.
func implied(kw keyword) []string {
	switch kw {
	case kwLike:
		return []string{"~~", "!~~"}
	case kwIlike:
		return []string{"~~*", "!~~*"}
	case kwSimilar:
		return []string{"~", "!~"}
	case kwBetween:
		return []string{">=", "<=", "<", ">"}
	case kwIn, kwDistinct, kwNullif, kwNatural, kwUsing, kwCase:
		return []string{"=", "<>"}
	}
	return nil
}
