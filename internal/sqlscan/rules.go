package sqlscan

import (
	"strings"

	"github.com/flightpg/flightpg/internal/catalog"
)

// word deals with an identifier or key word.
func (s *scanner) word() {
	switch {
	case s.prev.kind == tokDot, s.prev.kind == tokCast:
		s.cur.kw = notKeyword // ColLabel: any word is a name here
	case s.prev.kw == kwAs && !s.materialized():
		s.cur.kw = notKeyword
	}
	if s.cur.kind == tokUQuoted && s.next.kw == kwUescape {
		s.fail(EscapedName, s.cur)
		return
	}
	item := s.top().item
	if s.cur.kw != notKeyword {
		if s.keyword(); s.done || s.cur.kind != tokIdent {
			return
		}
	}
	s.link(item)
	s.systemName()
	switch s.next.kind {
	case tokDot:
		if s.chain.first.kind == tokDot { // (t).f.g
			s.attribute()
			s.visitName()
		}
	case tokOpen:
		s.opening.kind = s.parenthesis()
	default:
		if s.chain.parts > 1 {
			s.attribute()
		}
		s.visitName()
	}
}

// endsExpression reports whether the token before COLUMNS may be the end of an
// expression: else the word is a column of that name.
func (s *scanner) endsExpression() bool {
	switch s.prev.kind {
	case tokQuoted, tokUQuoted, tokString, tokBits, tokNumber, tokParam, tokClose, tokCloseBracket:
		return true
	case tokIdent:
	default:
		return false
	}
	if s.prev.kw == kwPassing {
		return s.beforePrev.kw == kwPassing // a column too
	}
	category := keywordList[s.prev.kw].category
	return s.prev.kw == notKeyword || category == unreserved || category == columnName || endsOperand[s.prev.kw]
}

// primaryOnly reports whether the grammar takes no operator in front of what
// begins here (its c_expr), so that OPERATOR (a.*) is a call of a function.
func (s *scanner) primaryOnly(f *frame) bool {
	switch s.prev.kw {
	case kwPassing:
		return true
	case kwRef, kwValue:
		return s.beforePrev.kw == kwBy
	case kwFirst, kwNext:
		return s.beforePrev.kw == kwFetch
	}
	switch s.prev.kind {
	case tokOpen, tokComma:
		return f.callee.kw == kwXmltable && f.kind != columnDefs || f.callee.kw == kwXmlexists
	}
	return false
}

// materialized reports whether the current word belongs to AS [NOT] MATERIALIZED (.
func (s *scanner) materialized() bool {
	return s.cur.kw == kwMaterialized && s.next.kind == tokOpen ||
		s.cur.kw == kwNot && s.next.kw == kwMaterialized
}

// link makes the current word a part of the chain of names. item: it stands
// where a FROM item begins.
func (s *scanner) link(item bool) {
	if s.prev.kind == tokDot {
		s.chain.parts++
		return
	}
	// One field at a time: a composite literal would be made elsewhere and copied.
	c := &s.chain
	c.first, c.parts = s.cur, 1
	c.before, c.beforeThat = s.prev, s.beforePrev
	c.behindOperand, c.behindNot = s.operand, s.prev.kw == kwNot && s.infixNot
	c.relation = false
	if !item {
		return
	}
	if f := s.top(); f.item {
		switch {
		case s.cur.kw == kwOnly, s.cur.kw == kwLateral:
		case keywordList[s.cur.kw].category == reserved, s.cur.kw == kwCollation: // no relation
			s.visitItem()
			// A function ends the item: FROM current_user JOIN t. The other reserved
			// words do not begin one.
			f.item = !endsOperand[s.cur.kw] && s.cur.kw != kwCast && s.cur.kw != kwCollation
		case s.cur.kw == kwRows && s.next.kw == kwFrom:
			f.item = false
		default:
			f.item = false
			c.relation = true
		}
	}
}

// keyword deals with a word that is a key word where it stands. The grammar's
// own words are told from columns of the same name by their neighbours.
func (s *scanner) keyword() {
	f := s.top()
	if f.kind == forArgs && s.separatesArgs() {
		f.schema, f.args = "pg_catalog", -1 // it cannot be a user's function then
	}
	switch s.cur.kw {
	case kwWith:
		// WITH begins a query; elsewhere it is WITH TIES, ORDINALITY, TIME ZONE…
		if s.depth == 0 && s.prev.kind == tokEOF || s.prev.kind == tokOpen || f.clause == intoClause {
			f.clause, f.item, f.recursive = withClause, false, s.next.kw == kwRecursive
		}
	case kwSelect:
		f.query, f.clause, f.item = true, anyClause, false
	case kwValues:
		// The word can also be a column, the name of a CTE or an alias: FROM t values(a).
		if s.next.kind == tokOpen && !(f.clause == withClause && s.namesCTE(s.prev, s.beforePrev)) &&
			(f.clause != fromClause || f.item) {
			f.query, f.clause, f.item = true, anyClause, false
		}
	case kwTable:
		f.query, f.clause, f.item = true, anyClause, false
		s.wantRelation()
	case kwInsert, kwUpdate, kwDelete, kwMerge:
		s.modification(f)

	case kwFrom:
		// IS DISTINCT FROM, extract(… FROM …) and their like are no clauses, and
		// ROWS FROM is an item of one. But SELECT a rows FROM, SELECT a distinct FROM
		// are: these words are labels there.
		isDistinct := s.prev.kw == kwDistinct && (s.beforePrev.kw == kwIs || s.beforePrev.kw == kwNot)
		if f.query && !isDistinct && (s.prev.kw != kwRows || f.clause != fromClause) {
			f.clause, f.item = fromClause, true
		}
	case kwJoin:
		if f.clause == fromClause {
			f.item = true
		}
	case kwUsing:
		f.item = f.command != notKeyword && s.next.kind != tokOpen
		if s.next.kind == tokOpen {
			s.impliedOperators()
		}
	case kwOn:
		f.item = false
		if s.next.kw == kwConflict && f.command == kwInsert && f.conflicts < 2 {
			f.conflicts++
		}
	case kwDo:
		f.resolved = true
	case kwGroup:
		if s.prev.kw != kwWithin {
			f.clause, f.item = groupByClause, false
		}
	case kwColumns:
		if f.callee.kw == kwXmltable && s.endsExpression() {
			f.kind = columnDefs // XMLTABLE (… PASSING … COLUMNS …)
		}
	case kwVariadic:
		f.args = min(f.args, -1)
	case kwWhere, kwHaving, kwWindow, kwOrder, kwLimit, kwOffset, kwFetch, kwUnion, kwIntersect, kwExcept, kwReturning:
		f.clause, f.item = anyClause, false
		f.ordered = f.ordered || s.cur.kw == kwOrder

	case kwFor:
		s.locking(f)
	case kwInto:
		if f.clause != intoClause {
			s.note(Other, Into, s.cur)
		}
		s.wantRelation()
	case kwCase:
		f.cases++
		if s.next.kw != kwWhen {
			s.impliedOperators()
		}
	case kwEnd:
		f.cases = max(0, f.cases-1)
	case kwOperator:
		if s.next.kind == tokOpen && (!f.item || s.operand) && !s.primaryOnly(f) { // FROM operator(*) calls an aggregate
			s.qualifiedOperator()
		}
	case kwLike, kwIlike, kwSimilar, kwIn, kwBetween, kwDistinct, kwNullif, kwNatural:
		s.impliedOperators()
	}
}

// separatesArgs reports whether the current key word stands between arguments of
// substring or overlay.
func (s *scanner) separatesArgs() bool {
	switch s.cur.kw {
	case kwFrom:
		return s.prev.kw != kwDistinct
	case kwSimilar:
		return s.next.kw != kwTo
	}
	return s.cur.kw == kwFor || s.cur.kw == kwPlacing
}

// wantRelation makes the next word a relation for Names.
func (s *scanner) wantRelation() { s.top().item = true }

// modification recognizes the start of a data-modifying command. All four words
// are unreserved, so they are also columns, tables and labels; the command has
// its second word, and it comes first in its parenthesis, behind WITH at most.
func (s *scanner) modification(f *frame) {
	if f.query && s.prev.kind != tokClose || f.kind == call || f.kind == forArgs || f.kind == columnDefs {
		return
	}
	next := s.next
	switch s.cur.kw {
	case kwInsert, kwMerge:
		if next.kw != kwInto || f.query { // SELECT max(a) insert INTO …: a label
			return
		}
	case kwDelete:
		if next.kw != kwFrom {
			return
		}
	case kwUpdate:
		switch next.kind {
		case tokQuoted, tokUQuoted:
		case tokIdent:
			switch keywordList[next.kw].category {
			case reserved, functionName: // no table has such a name
				if next.kw != kwOnly {
					return
				}
			}
		default:
			return
		}
	}
	reason := WriteStatement
	if s.depth > 0 {
		reason = ModifyingCTE
	}
	s.note(Write, reason, s.cur)
	f.query, f.command, f.clause, f.item = true, s.cur.kw, anyClause, false
	switch s.cur.kw {
	case kwInsert, kwMerge:
		f.clause = intoClause
	case kwUpdate:
		f.item = true
	}
}

// locking judges FOR: row locks, FOR READ ONLY, FOR ORDINALITY, COLLATION FOR
// and the arguments of substring and overlay.
func (s *scanner) locking(f *frame) {
	if f.kind == forArgs || s.prev.kw == kwCollation && s.next.kind == tokOpen {
		return
	}
	switch s.next.kw {
	case kwUpdate, kwShare, kwNo, kwKey:
		s.note(Write, RowLock, s.cur)
	case kwRead, kwOrdinality:
	default:
		s.fail(Syntax, s.cur)
		return
	}
	f.clause, f.item = anyClause, false
}

// parenthesis says what the parenthesis behind the current word is, and judges
// the call if it is one. It is one unless the grammar says otherwise.
func (s *scanner) parenthesis() frameKind {
	c, f := &s.chain, s.top()
	switch {
	case s.cur.kw == kwMaterialized && f.kind != castArgs && (c.before.kw == kwAs || c.before.kw == kwNot && c.beforeThat.kw == kwAs):
		return plain // AS MATERIALIZED (query)
	case c.before.kind == tokCast:
		s.visitName()
		return plain // type(modifier)
	case c.before.kw == kwAs:
		if f.kind == castArgs {
			s.visitName()
			return plain
		}
		return columnDefs // alias (columns)
	case c.before.kw == kwInto:
		return plain // INSERT INTO table (columns)
	case c.before.kw == kwTablesample:
		return s.sampling()
	case f.clause == withClause && c.parts == 1 && s.namesCTE(c.before, c.beforeThat):
		s.visitName()
		return cteColumns
	case f.kind == columnDefs && s.typeInDefs():
		s.visitName()
		return plain
	}
	if c.parts == 1 && s.cur.kind == tokIdent {
		switch keywordList[s.cur.kw].category {
		case reserved:
			if s.cur.kw != kwSystemUser { // not reserved before 16
				return s.reservedParens(f)
			}
		case columnName:
			if p := columnParens[s.cur.kw]; p.since != 0 && s.version >= p.since {
				if p.frame == call {
					s.called("pg_catalog", -1)
				} else if p.frame == forArgs {
					s.called("", 1) // with commas it can be a user's function
				}
				return p.frame
			}
		}
	}
	if c.parts == 1 {
		if c.behindOperand {
			// An expression cannot begin here: it is an alias with columns, a type
			// in a column definition, or a word like OVER, FILTER, ESCAPE, JOIN. For
			// those that are not told apart it is all the same.
			switch s.cur.kw {
			case kwJoin:
				return fromItems
			case kwOver, kwFilter:
				return plain
			}
			return columnDefs // an alias with columns, JSON_TABLE (… COLUMNS (…))
		}
		if kind, ok := s.syntaxParens(f); ok {
			return kind
		}
	}
	s.call()
	return call
}

// namesCTE reports whether WITH expects a name behind these two tokens.
func (s *scanner) namesCTE(before, beforeThat symbol) bool {
	return before.kw == kwWith || before.kind == tokComma ||
		before.kw == kwRecursive && beforeThat.kw == kwWith
}

// reservedParens: a reserved word names no function, so this is syntax.
func (s *scanner) reservedParens(f *frame) frameKind {
	switch s.cur.kw {
	case kwFrom:
		if f.item || s.prev.kw == kwRows {
			return fromItems
		}
	case kwOn:
		if s.prev.kw == kwDistinct {
			return notOperand
		}
	case kwWith: // RETURNING WITH (OLD AS o) expression
		return notOperand
	case kwLateral, kwOnly:
		if f.item {
			return fromItems
		}
	case kwAs:
		if f.clause == fromClause { // function() AS (columns)
			return columnDefs
		}
	case kwCast:
		return castArgs
	case kwFor:
		if s.prev.kw == kwCollation {
			return call
		}
	}
	return plain
}

// syntaxParens knows the unreserved words that have a parenthesis of their own
// when certain words come before them, and are function names otherwise.
func (s *scanner) syntaxParens(f *frame) (frameKind, bool) {
	c := &s.chain
	before, beforeThat := c.before.kw, c.beforeThat.kw
	switch s.cur.kw {
	case kwBy:
		return plain, before == kwGroup || before == kwOrder || before == kwPartition
	case kwSets:
		return groupingSets, before == kwGrouping
	case kwRollup, kwCube:
		ok := f.clause == groupByClause && (before == kwBy || before == kwDistinct || before == kwAll || c.before.kind == tokComma) ||
			f.kind == groupingSets && (c.before.kind == tokOpen || c.before.kind == tokComma)
		return plain, ok // in their lists both are functions again
	case kwFirst, kwNext:
		return plain, before == kwFetch
	case kwJoin:
		switch before {
		case kwLeft, kwRight, kwFull, kwInner, kwCross, kwNatural, kwOuter:
			return fromItems, true
		}
	case kwLike, kwIlike:
		return plain, c.behindNot
	case kwSecond:
		return plain, before == kwTo && (beforeThat == kwDay || beforeThat == kwHour || beforeThat == kwMinute)
	case kwRef, kwValue:
		return plain, before == kwBy && beforeThat == kwPassing
	case kwConflict:
		return plain, before == kwOn && f.command == kwInsert
	case kwInsert:
		return plain, before == kwThen && f.command == kwMerge && f.cases == 0
	case kwSet:
		return plain, before == kwUpdate
	}
	return plain, false
}

// sampling judges TABLESAMPLE method ( : only the two built-in methods are
// known, and close sees whether REPEATABLE follows.
func (s *scanner) sampling() frameKind {
	c := &s.chain
	ok := c.parts == 1 || c.parts == 2 && s.nameOf(c.first) == "pg_catalog"
	switch s.nameOf(s.cur) {
	case "bernoulli", "system":
	default:
		ok = false
	}
	if !ok {
		s.note(Other, TableSample, s.cur)
	}
	return sample
}

// qualifiedOperator reads OPERATOR ( [schema .] operator ) and makes it the
// current token. A call of a function named operator has no such arguments, save
// the star of an aggregate, and that is taken for an operator in an expression.
func (s *scanner) qualifiedOperator() {
	l := lexer{src: s.src, pos: s.next.end}
	var schema token
	parts := 0
	for {
		t := l.next()
		switch t.kind {
		case tokIdent, tokQuoted, tokUQuoted:
			schema = t
			parts++
			if l.next().kind != tokDot {
				return
			}
			continue
		case tokOp:
			if l.next().kind != tokClose {
				return
			}
		default:
			return
		}
		name := ""
		if parts > 0 {
			name = s.nameOf(schema)
			if parts > 1 || name != "pg_catalog" && s.visit == nil {
				s.note(Other, UnknownOperator, t)
			}
		}
		s.visitOperator(name, s.src[t.pos:t.end], t.pos)
		s.cur = token{symbol: symbol{kind: tokOp}, pos: s.cur.pos, end: l.pos}
		s.lexer.pos = l.pos
		s.peek()
		return
	}
}

// call judges the call of the current chain of names.
func (s *scanner) call() {
	t, c := s.cur, &s.chain
	if t.kind == tokUQuoted {
		s.note(Other, EscapedName, t)
		return
	}
	schema, class, volatile := "", catalog.Unknown, false
	switch {
	case c.parts == 1:
	case c.parts == 2 && c.first.kind != tokDot:
		schema = s.nameOf(c.first)
	default:
		schema = "?" // database.schema.function, or something odd
	}
	if schema == "" || schema == "pg_catalog" {
		if info := s.builtin(t); info.Since <= s.version {
			class, volatile = info.Class, info.Volatile
		}
	}
	if class == catalog.Private && s.readsServerSetting() {
		class = catalog.Safe
	}
	if class == catalog.Unknown && schema != "?" {
		switch {
		case s.visit != nil && !s.all:
			class = catalog.Safe
		case s.function != nil:
			class = s.function(schema, s.nameOf(t))
		}
	}
	s.called(schema, 1)
	reason := DeniedFunction
	if volatile {
		reason = VolatileFunction
	}
	switch class {
	case catalog.Safe:
	case catalog.Private:
		s.note(PrivateRead, reason, t)
	case catalog.NeutralWrite:
		s.note(Write, reason, t)
	case catalog.Denied:
		s.note(Other, DeniedFunction, t)
	default:
		s.note(Other, UnknownFunction, t)
	}
}

// readsServerSetting reports whether the current call is one of current_setting with the
// name of a setting that all sessions share, as a literal: current_setting('x' [, true]).
func (s *scanner) readsServerSetting() bool {
	if s.nameOf(s.cur) != "current_setting" {
		return false
	}
	l := lexer{src: s.src, pos: s.next.end}
	name := l.next()
	if raw := s.src[name.pos:name.end]; name.kind != tokString || len(raw) < 2 || raw[0] != '\'' || !catalog.ServerSetting(raw[1:len(raw)-1]) {
		return false
	}
	t := l.next()
	if t.kind == tokComma {
		if t = l.next(); t.kw != kwTrue && t.kw != kwFalse {
			return false
		}
		t = l.next()
	}
	return t.kind == tokClose
}

// systemName looks for session views and temporary schemas.
func (s *scanner) systemName() {
	switch s.cur.kind {
	case tokIdent:
		if !s.hasPG(s.cur.pos) {
			return
		}
	case tokQuoted:
		if !s.hasPG(s.cur.pos + 1) {
			return
		}
	}
	name := s.nameOf(s.cur)
	switch {
	case name == "pg_temp", strings.HasPrefix(name, "pg_temp_"), strings.HasPrefix(name, "pg_toast_temp"):
		s.noteSystem(TempSchema, name)
	case catalog.SessionView(name) && (s.next.kind != tokOpen || catalog.Function(name) == catalog.Unknown):
		s.noteSystem(SessionView, name)
	}
}

func (s *scanner) noteSystem(r Reason, name string) {
	if s.system.Reason == None {
		s.system = Result{Reason: r, Name: name, Pos: s.cur.pos}
	}
	s.note(PrivateRead, r, s.cur)
}
