// Package sqlscan reads SQL text by PostgreSQL's lexical rules and says what the
// statement may do, as far as the text alone can tell.
//
// Reading order: reason.go (the verdicts), lex.go (tokens), scan.go (the state
// that is kept while reading), rules.go (what each key word and each parenthesis
// means), names.go (identifiers as the server decodes them), keywords.go (tables).
//
// It is no parser. It knows just enough of the grammar to find, in every
// statement that PostgreSQL accepts, each place where data is written, a row is
// locked, a table is made or a function is called by name. A statement that
// PostgreSQL refuses may get any verdict: it has no effect. What is not
// understood is Other.
//
// The text does not tell everything. What a user's operator, cast, domain, view,
// policy or column-style function call t.f does is for the catalog layer, which
// gets every name from Names; so is a user's function that hides a built-in by
// a better matching argument list.
package sqlscan

import (
	"github.com/flightpg/flightpg/internal/catalog"
)

// A Result is the verdict on one text.
type Result struct {
	Class  Class
	Reason Reason // why it is not a Read
	Name   string // the offending name or word as the server reads it; "" if there is none
	Pos    int    // byte offset of the offending token
	Params int    // highest parameter number; of what was read, if the verdict is Other
}

// Options adapt Scan to one server. The zero value fits all of them.
type Options struct {
	// Version is the server's major version. 0 means the oldest supported one:
	// newer built-ins are unknown, since a user's function may have their name.
	Version int

	// Function is asked about called names that are no built-ins. The schema is
	// "" for an unqualified name. nil: they are all Unknown.
	Function func(schema, name string) catalog.Class

	// Visit is called with every name and operator, as far as the text is read,
	// until it returns false; see Names. OtherNames are left out. It answers for
	// what is no built-in: user functions and OPERATOR(schema.op) make no text
	// Other then.
	Visit func(Name) bool
}

// Scan judges a text without knowing the server.
func Scan(sql string) Result {
	return Options{}.Scan(sql)
}

// Scan judges a text.
func (o Options) Scan(sql string) Result {
	var s scanner // no composite literal: the large struct would be made twice
	s.src, s.version, s.function, s.visit = sql, o.Version, o.Function, o.Visit
	s.run()
	return s.res
}

// A frame is what is open: the statement, a parenthesis or a bracket.
type frame struct {
	kind      frameKind
	clause    clause
	command   keyword // which data-modifying command began here, if one did
	query     bool    // … or a SELECT, VALUES or TABLE
	item      bool    // a FROM item begins with the next token
	recursive bool    // WITH RECURSIVE began it
	conflicts uint8   // number of ON CONFLICT seen; 2 is as good as more
	resolved  bool    // DO was seen
	cases     int32   // CASE expressions open

	// Of a call, for Names.
	ordered  bool  // ORDER BY was seen: no arguments follow
	fromItem bool  // the call is a FROM item
	args     int32 // commas between arguments, and one; -1 if they cannot be counted
	callee   token
	schema   string
}

// maxDepth is how many parentheses and brackets may be open. Each stands on the
// stack of PostgreSQL's parser until it is closed, and that has room for 10,000
// symbols (Bison's YYMAXDEPTH): the server refuses what is nested deeper with
// "memory exhausted". What version 15 accepts, whatever its max_stack_depth:
//
//	SELECT ((1))            9993    a[a[1]]              4996
//	((SELECT 1))            9989    abs(abs(1))          4996
//	1 IN ((1))              9987    CAST(CAST(1 AS …     4996
//	FROM ((a JOIN b))       9988    SELECT (SELECT 1)    1997
//
// CASE and what else nests without a parenthesis is only counted.
const maxDepth = 10_000

// A frameKind says what a parenthesis is.
type frameKind uint8

const (
	plain        frameKind = iota // an expression, a subquery or a list
	castArgs                      // CAST (expression AS type) and its like
	columnDefs                    // names of columns, each with a type or without
	call                          // arguments of a function
	forArgs                       // … of substring or overlay, where FOR is no lock
	fromItems                     // around FROM items
	groupingSets                  // GROUPING SETS (…)
	notOperand                    // DISTINCT ON (…), RETURNING WITH (…): an expression may follow directly
	cteColumns                    // WITH name (…) AS
	sample                        // TABLESAMPLE method (…)
	subscript                     // […]
)

// A clause is the part of a query that is being read, as far as it matters.
type clause uint8

const (
	anyClause clause = iota
	withClause
	fromClause
	groupByClause
	intoClause // INSERT up to its query
)

// A chain is a name with its qualifications: a.b.c.
type chain struct {
	first         token // tokDot if it hangs on a parenthesis or bracket
	parts         int
	before        symbol // the two tokens before it
	beforeThat    symbol
	behindOperand bool // an operand ends right before it
	behindNot     bool // before is NOT behind an operand: NOT LIKE and so on
	relation      bool // where a FROM item begins
}

// A cte is a WITH query that FROM can name.
type cte struct {
	name   string
	depth  int  // of the frame with the WITH clause
	hidden bool // its own query is being read, and WITH is not RECURSIVE
}

// scanner holds the state while a text is read, one token after the other.
type scanner struct {
	lexer
	version  int
	function func(schema, name string) catalog.Class
	visit    func(Name) bool // nil if nobody asks for names
	all      bool            // read on behind what makes the text Other
	res      Result

	cur, next        token
	prev, beforePrev symbol // key words that are only names there are no key words here
	operand          bool   // an operand ends right before cur
	bareString       bool   // the last string is a constant of no type
	infixNot         bool   // the last NOT was behind an operand
	opening          frame  // of the parenthesis that follows the current word
	chain            chain
	ctes             []cte          // visible or about to be; for Names
	shown            map[string]int // how many of many ctes have a name and are not hidden; nil for few
	system           Result         // the first session view or temporary schema
	begun            bool           // the first word was read
	done             bool

	// What is open, outermost first. An array keeps the scanner off the heap.
	depth  int // of the innermost frame
	frames [12]frame
	deep   []*[moreFrames]frame // those that do not fit
}

// moreFrames is how many more there is room for at a time. They stay where they
// are: copying them would double what a deep nesting takes.
const moreFrames = 8

// run reads the whole text, or up to the first thing that makes it Other.
func (s *scanner) run() {
	s.res.Class = Read
	s.version = max(s.version, catalog.Oldest)
	s.next = s.lexer.next()
	s.advance()
	for !s.done {
		s.token()
		s.advance()
	}
	if s.res.Class == Write && s.system.Reason != None {
		// Writing to pg_settings is SET, writing to pg_temp is session state.
		s.system.Class, s.system.Params = Other, s.res.Params
		s.res = s.system
	}
}

// peek reads the token behind cur, which itself is in next if it is the last.
func (s *scanner) peek() {
	if s.cur.kind != tokEOF && s.cur.kind != tokBad {
		s.next = s.lexer.next()
	}
}

// advance makes the next token the current one.
func (s *scanner) advance() {
	if s.cur.kw == kwNot {
		s.infixNot = s.operand
	}
	switch s.cur.kind {
	case tokIdent:
		s.operand = endsOperand[s.cur.kw]
	case tokClose:
		// closing has set it
	default:
		s.operand = isOperand[s.cur.kind]
	}
	s.beforePrev, s.prev, s.cur = s.prev, s.cur.symbol, s.next
	s.peek()
}

// isOperand holds the kinds of tokens that always end an operand.
var isOperand = [tokColon + 1]bool{
	tokQuoted: true, tokUQuoted: true, tokString: true, tokBits: true, tokNumber: true, tokParam: true,
	tokCloseBracket: true,
}

// note records what the text has been found to be, if that is worse than before.
func (s *scanner) note(c Class, r Reason, t token) {
	if !c.Worse(s.res.Class) {
		return
	}
	s.res.Class, s.res.Reason, s.res.Pos = c, r, t.pos
	s.res.Name = s.nameOf(t)
	if c == Other && !s.all {
		s.done = true
	}
}

// fail gives up on the text.
func (s *scanner) fail(r Reason, t token) {
	s.note(Other, r, t)
	s.done = true
}

// top returns the innermost frame.
func (s *scanner) top() *frame {
	if s.depth < len(s.frames) {
		return &s.frames[s.depth]
	}
	i := s.depth - len(s.frames)
	return &s.deep[i/moreFrames][i%moreFrames]
}

func (s *scanner) push(f frame) {
	if s.depth == maxDepth {
		s.fail(Syntax, s.cur)
		return
	}
	s.depth++
	if i := s.depth - len(s.frames); i == len(s.deep)*moreFrames {
		s.deep = append(s.deep, new([moreFrames]frame))
	}
	*s.top() = f
}

// token deals with the current token.
func (s *scanner) token() {
	if !s.begun && !s.head() {
		return
	}
	switch s.cur.kind {
	case tokEOF:
		s.done = true
		if s.depth > 0 {
			s.fail(Syntax, s.cur)
		}
		s.leave()
	case tokBad:
		s.fail(Syntax, s.cur)
	case tokSemicolon:
		s.end()
	case tokIdent, tokQuoted, tokUQuoted:
		s.word()
	case tokString:
		if s.prev.kind == tokDot {
			s.fail(Syntax, s.cur) // a.N'x' is a literal of the type a.nchar
		}
		s.bareString = s.plainString() && s.startsExpression()
	case tokParam:
		s.param()
	case tokOpen:
		s.open()
	case tokOpenBracket:
		s.push(frame{kind: subscript})
	case tokClose, tokCloseBracket:
		s.close()
	case tokComma:
		f := s.top()
		if f.clause == fromClause {
			f.item = true
		}
		if f.args > 0 && !f.ordered {
			f.args++
		}
	case tokDot:
		switch s.prev.kind {
		case tokIdent, tokQuoted, tokUQuoted:
		default:
			s.chain = chain{first: s.cur, parts: 1}
		}
	case tokOp:
		if op := s.src[s.cur.pos:s.cur.end]; op != "*" || !s.star() {
			s.visitOperator("", op, s.cur.pos)
		}
	}
}

// star reports whether the current * is that of SELECT *, t.* or count(*): it has
// no operand on either side. Words that are not known as operands may be some.
func (s *scanner) star() bool {
	switch {
	case s.prev.kind == tokDot:
		return true
	case s.operand, s.prev.kw == kwUsing:
		return false
	}
	switch s.next.kind {
	case tokEOF, tokSemicolon, tokComma, tokClose:
		return true
	}
	switch s.next.kw {
	case kwFrom, kwInto, kwWhere, kwGroup, kwHaving, kwWindow, kwUnion, kwIntersect, kwExcept,
		kwOrder, kwLimit, kwOffset, kwFetch, kwFor:
		return true
	}
	return false
}

// head looks at the tokens up to the first word, which says what the statement
// is. It reports whether the token is to be dealt with like any other.
func (s *scanner) head() bool {
	t := s.cur
	switch {
	case t.kind == tokOpen:
		return true
	case s.depth > 0 && t.kind != tokIdent:
		s.fail(Syntax, t)
		return false
	case t.kind == tokEOF:
		s.done = true
		s.res.Class, s.res.Reason = PrivateRead, Empty
		return false
	case t.kind == tokSemicolon:
		s.end()
		if s.done && s.res.Class == Read {
			s.res.Class, s.res.Reason = PrivateRead, Empty
		}
		return false
	}
	s.begun = true
	switch t.kw {
	case kwSelect, kwValues, kwTable, kwWith, kwInsert, kwUpdate, kwDelete, kwMerge:
		return true
	case kwShow:
		s.show()
	case notKeyword:
		s.fail(Syntax, t)
	default:
		s.fail(NotARead, t)
	}
	return false
}

// show judges SHOW: it reads one setting or all of them.
func (s *scanner) show() {
	s.note(PrivateRead, NotARead, s.cur)
	for s.advance(); !s.done; s.advance() {
		switch s.cur.kind {
		case tokIdent, tokQuoted, tokDot:
		case tokSemicolon:
			s.end()
		case tokEOF:
			s.done = true
		default:
			s.fail(Syntax, s.cur)
		}
	}
}

// end reads the text behind a semicolon: nothing but semicolons may follow.
func (s *scanner) end() {
	if s.depth > 0 {
		s.fail(Syntax, s.cur)
		return
	}
	s.leave()
	for s.cur.kind == tokSemicolon {
		s.advance()
	}
	switch s.cur.kind {
	case tokEOF:
	case tokBad:
		s.fail(Syntax, s.cur)
	default:
		s.fail(SeveralStatements, s.cur)
	}
	s.done = true
}

// param keeps the highest parameter number; the server refuses those that do
// not fit.
func (s *scanner) param() {
	n := 0
	for i := s.cur.pos + 1; i < s.cur.end && n <= 65535; i++ {
		n = n*10 + int(s.src[i]-'0')
	}
	s.res.Params = max(s.res.Params, n)
}

// open enters a parenthesis, which the word before it may have declared.
func (s *scanner) open() {
	f := s.opening
	if top := s.top(); top.item {
		top.item = false
		if f.kind == plain {
			f.kind = fromItems
		}
	}
	if f.kind == fromItems {
		f.clause, f.item = fromClause, true
	}
	if f.args > 0 && (s.next.kind == tokClose || s.src[s.next.pos:s.next.end] == "*") {
		f.args = 0
	}
	s.opening = frame{}
	s.push(f)
}

// close leaves a parenthesis or bracket and checks what must follow it.
func (s *scanner) close() {
	f := s.top()
	if s.depth == 0 || (f.kind == subscript) != (s.cur.kind == tokCloseBracket) {
		s.fail(Syntax, s.cur)
		return
	}
	s.leave()
	kind := f.kind
	if f.callee.kind != tokEOF {
		s.visitFunction(f)
	}
	s.depth--
	s.closeCTEs(kind)
	s.operand = kind != notOperand
	switch kind {
	case cteColumns:
		if s.next.kw != kwAs {
			s.fail(Syntax, s.cur)
		}
	case sample:
		if s.next.kw != kwRepeatable {
			s.note(PrivateRead, TableSample, s.next)
		}
	}
}

// leave checks a frame at its end.
func (s *scanner) leave() {
	// ON CONFLICT (…) without DO was a call: JOIN … ON conflict(…).
	if f := s.top(); f.conflicts > 1 || f.conflicts > 0 && !f.resolved {
		s.note(Other, UnknownFunction, s.cur)
	}
}
