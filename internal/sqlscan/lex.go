package sqlscan

import "strings"

// A kind is the lexical kind of a token.
type kind uint8

const (
	tokEOF     kind = iota
	tokBad          // not understood: unterminated, not allowed, or junk after a number
	tokIdent        // unquoted identifier or key word
	tokQuoted       // "…"
	tokUQuoted      // U&"…"
	tokString       // '…', E'…', U&'…', N'…', $tag$…$tag$
	tokBits         // B'…', X'…'
	tokNumber
	tokParam // $1
	tokOp    // an operator, also one of + - * / < > = % ^
	tokCast  // ::
	tokAssign
	tokOpen  // (
	tokClose // )
	tokOpenBracket
	tokCloseBracket
	tokComma
	tokSemicolon
	tokDot
	tokColon
)

// A symbol is what the grammar sees of a token.
type symbol struct {
	kind kind
	kw   keyword // of an unquoted identifier that is a key word
}

// A token is a piece of the statement: src[pos:end].
type token struct {
	symbol
	capitals bool // an unquoted identifier has some
	pos, end int
}

// A lexer splits a statement by the rules of the chapter "Lexical Structure" of
// PostgreSQL's documentation, as they hold with standard_conforming_strings on
// and a client encoding of UTF8. It reads versions 15 to 18; where they differ,
// it refuses what one of them refuses, except for the number formats of 16.
type lexer struct {
	src string
	pos int

	// signs is where the operator that was read last was cut off before a row of
	// + and -. Each of them is an operator of its own: no need to look to the end
	// of the row again from each.
	signs struct{ pos, end int }
}

// Character classes. Bytes from 0x80 up are letters, so a byte order mark and a
// non-breaking space are parts of identifiers.
const (
	isSpace      = 1 << iota // blank, tab, newline, carriage return, form feed
	isIdentStart             // letter, underscore, byte ≥ 0x80
	isDigit
	isOp // may be part of an operator
	isHex
	isUpper
	isIdentPart // may be in an identifier behind its start
)

var classOf = func() (t [256]uint8) {
	set := func(chars string, class uint8) {
		for i := range len(chars) {
			t[chars[i]] |= class
		}
	}
	set(" \t\n\r\f", isSpace)
	set("0123456789", isDigit)
	set("0123456789abcdefABCDEF", isHex)
	set("+-*/<>=~!@#%^&|`?", isOp)
	set("ABCDEFGHIJKLMNOPQRSTUVWXYZ", isIdentStart|isUpper)
	set("abcdefghijklmnopqrstuvwxyz_", isIdentStart)
	for c := 0x80; c <= 0xff; c++ {
		t[c] |= isIdentStart
	}
	set("$", isIdentPart)
	for c := range t {
		if t[c]&(isIdentStart|isDigit) != 0 {
			t[c] |= isIdentPart
		}
	}
	return t
}()

// kindOf holds the kind of token that begins with a byte: of several kinds the
// plainest, tokEOF for white space, and tokBad for what begins none.
var kindOf = func() (t [256]kind) {
	for c := range t {
		t[c] = tokBad
		switch class := classOf[c]; {
		case class&isSpace != 0:
			t[c] = tokEOF
		case class&isIdentStart != 0:
			t[c] = tokIdent
		case class&isDigit != 0:
			t[c] = tokNumber
		case class&isOp != 0:
			t[c] = tokOp
		}
	}
	for c, k := range map[byte]kind{
		'\'': tokString, '"': tokQuoted, '$': tokParam,
		'(': tokOpen, ')': tokClose, '[': tokOpenBracket, ']': tokCloseBracket,
		',': tokComma, ';': tokSemicolon, '.': tokDot, ':': tokColon,
	} {
		t[c] = k
	}
	return t
}()

func is(c byte, class uint8) bool { return classOf[c]&class != 0 }

// at returns the byte at i, or 0 past the end. A NUL in the text itself is
// never accepted, so the two cannot be taken for each other.
func (l *lexer) at(i int) byte {
	if i < len(l.src) {
		return l.src[i]
	}
	return 0
}

// next returns the next token. After tokBad it must not be called again.
func (l *lexer) next() token {
	start, k := l.pos, tokEOF
	for {
		if start >= len(l.src) {
			l.pos = start
			return token{pos: start, end: start}
		}
		if k = kindOf[l.src[start]]; k != tokEOF {
			break
		}
		start++
	}
	l.pos = start
	if k == tokIdent {
		k, kw, capitals := l.word(start)
		return token{symbol{k, kw}, capitals, start, l.pos}
	}
	switch k {
	case tokNumber:
		k = l.number()
	case tokString:
		l.pos++
		k = l.quotedString(false, tokString)
	case tokQuoted:
		l.pos++
		k = l.quotedIdent(tokQuoted)
	case tokParam:
		k = l.dollar()
	case tokOp:
		if l.comment() {
			if !l.skipBlank() {
				return token{symbol: symbol{kind: tokBad}, pos: l.pos, end: len(l.src)}
			}
			return l.next()
		}
		k = l.operator()
	case tokDot:
		k = l.dot()
	case tokColon:
		k = l.colon()
	default:
		l.pos = start + 1
	}
	return token{symbol: symbol{kind: k}, pos: start, end: l.pos}
}

// comment reports whether a comment begins at the current position.
func (l *lexer) comment() bool {
	switch c, next := l.at(l.pos), l.at(l.pos+1); c {
	case '-':
		return next == '-'
	case '/':
		return next == '*'
	}
	return false
}

// skipBlank passes over white space and comments. It reports false, without
// moving past its start, for a block comment that does not end.
func (l *lexer) skipBlank() bool {
	for i := l.pos; ; {
		switch c := l.at(i); {
		case is(c, isSpace):
			i++
		case c == '-' && l.at(i+1) == '-':
			i = endOfLine(l.src, i)
		case c == '/' && l.at(i+1) == '*':
			end := endOfBlockComment(l.src, i)
			if end < 0 {
				l.pos = i
				return false
			}
			i = end
		default:
			l.pos = i
			return true
		}
	}
}

// endOfLine returns where the line at pos ends; a carriage return ends it too.
func endOfLine(src string, pos int) int {
	if i := strings.IndexAny(src[pos:], "\n\r"); i >= 0 {
		return pos + i
	}
	return len(src)
}

// endOfBlockComment returns the end of the comment that starts at pos, or -1.
// Block comments nest.
func endOfBlockComment(src string, pos int) int {
	depth := 0
	for i := pos; i+1 < len(src); {
		switch {
		case src[i] == '/' && src[i+1] == '*':
			depth++
			i += 2
		case src[i] == '*' && src[i+1] == '/':
			depth--
			i += 2
			if depth == 0 {
				return i
			}
		default:
			i++
		}
	}
	return -1
}

// word reads an identifier, a key word or a literal with a letter in front.
func (l *lexer) word(start int) (k kind, kw keyword, capitals bool) {
	src := l.src
	i, sum, classes := start, wordSum(0), uint8(0)
	for ; i < len(src); i++ {
		class := classOf[src[i]]
		if class&isIdentPart == 0 {
			break
		}
		classes |= class
		sum = sum.add(src[i])
	}
	l.pos = i
	if i == start+1 {
		if k := l.prefixed(src[start]); k != tokEOF {
			return k, notKeyword, false
		}
	}
	return tokIdent, sum.keyword(src[start:i]), classes&isUpper != 0
}

// prefixed reads the literal behind the letter c, or returns tokEOF if none
// follows directly.
func (l *lexer) prefixed(c byte) kind {
	switch next := l.at(l.pos); {
	case next == '\'':
		switch c {
		case 'b', 'B', 'x', 'X':
			l.pos++
			return l.quotedString(false, tokBits)
		case 'e', 'E':
			l.pos++
			return l.quotedString(true, tokString)
		case 'n', 'N':
			l.pos++
			return l.quotedString(false, tokString)
		}
	case next == '&' && (c == 'u' || c == 'U'):
		switch l.at(l.pos + 1) {
		case '\'':
			l.pos += 2
			return l.quotedString(false, tokString)
		case '"':
			l.pos += 2
			return l.quotedIdent(tokUQuoted)
		}
	}
	return tokEOF
}

// quotedString reads a string whose opening quote has been read, with its
// continuations. Only E strings have backslash escapes.
func (l *lexer) quotedString(escapes bool, k kind) kind {
	for l.pos < len(l.src) {
		l.pos++
		switch l.src[l.pos-1] {
		case 0:
			return tokBad
		case '\\':
			if escapes {
				if l.at(l.pos) == 0 {
					return tokBad
				}
				l.pos++
			}
		case '\'':
			if l.at(l.pos) == '\'' { // a quote, doubled
				l.pos++
			} else if next := continuation(l.src, l.pos); next >= 0 {
				l.pos = next
			} else {
				return k
			}
		}
	}
	return tokBad
}

// continuation returns the position behind the quote that continues a string
// which was closed just before pos, or -1. Strings with only white space and at
// least one newline between them are one; line comments are white space here,
// block comments are not.
func continuation(src string, pos int) int {
	newline := false
	for i := pos; i < len(src); {
		switch c := src[i]; {
		case c == '\n' || c == '\r':
			newline = true
			i++
		case is(c, isSpace):
			i++
		case c == '-' && i+1 < len(src) && src[i+1] == '-':
			// Behind the first newline a comment must end in a newline itself;
			// at the end of the text there is no quote to find anyway.
			i = endOfLine(src, i)
		case c == '\'' && newline:
			return i + 1
		default:
			return -1
		}
	}
	return -1
}

// quotedIdent reads a quoted identifier whose opening quote has been read. The
// empty one is not allowed.
func (l *lexer) quotedIdent(k kind) kind {
	start := l.pos
	for {
		i := strings.IndexAny(l.src[l.pos:], "\"\x00")
		if i < 0 {
			l.pos = len(l.src)
			return tokBad
		}
		l.pos += i + 1
		switch {
		case l.src[l.pos-1] == 0:
			return tokBad
		case l.at(l.pos) == '"':
			l.pos++
		case l.pos-1 == start:
			return tokBad
		default:
			return k
		}
	}
}

// dollar reads a parameter or a dollar-quoted string. The tag of a dollar quote
// is an identifier without dollar signs, compared exactly.
func (l *lexer) dollar() kind {
	i := l.pos + 1
	if is(l.at(i), isDigit) {
		for is(l.at(i), isDigit) {
			i++
		}
		l.pos = i
		if is(l.at(i), isIdentStart) {
			return tokBad // trailing junk
		}
		return tokParam
	}
	if is(l.at(i), isIdentStart) {
		for is(l.at(i), isIdentStart|isDigit) {
			i++
		}
	}
	if l.at(i) != '$' {
		return tokBad
	}
	i++
	tag := l.src[l.pos:i]
	n := strings.Index(l.src[i:], tag)
	if n < 0 || strings.IndexByte(l.src[i:i+n], 0) >= 0 {
		return tokBad
	}
	l.pos = i + n + len(tag)
	return tokString
}

// number reads a numeric constant. Like PostgreSQL 15 and later it refuses
// letters directly behind one.
func (l *lexer) number() kind {
	if l.src[l.pos] == '0' {
		switch l.at(l.pos + 1) {
		case 'x', 'X':
			return l.radix(isHex)
		case 'o', 'O', 'b', 'B':
			return l.radix(isDigit) // the server checks the range of the digits
		}
	}
	l.digits(isDigit)
	if l.at(l.pos) == '.' && l.at(l.pos+1) != '.' {
		l.pos++
		if is(l.at(l.pos), isDigit) {
			l.digits(isDigit)
		}
	}
	if c := l.at(l.pos); c == 'e' || c == 'E' {
		i := l.pos + 1
		if c := l.at(i); c == '+' || c == '-' {
			i++
		}
		if !is(l.at(i), isDigit) {
			return tokBad
		}
		l.pos = i
		l.digits(isDigit)
	}
	return l.endNumber()
}

// radix reads an integer behind 0x, 0o or 0b.
func (l *lexer) radix(class uint8) kind {
	l.pos += 2
	if c := l.at(l.pos); !is(c, class) && !(c == '_' && is(l.at(l.pos+1), class)) {
		return tokBad
	}
	l.digits(class)
	return l.endNumber()
}

// digits passes over digits with single underscores between them.
func (l *lexer) digits(class uint8) {
	for is(l.at(l.pos), class) || l.at(l.pos) == '_' && is(l.at(l.pos+1), class) {
		l.pos++
	}
}

func (l *lexer) endNumber() kind {
	if is(l.at(l.pos), isIdentStart) {
		return tokBad // trailing junk
	}
	return tokNumber
}

// operator reads the longest operator, by the three rules of "Operators": it
// ends before a comment; one of several characters ends in + or - only if it
// also contains one of ~ ! @ # % ^ & | ` ?.
func (l *lexer) operator() kind {
	start := l.pos
	if start >= l.signs.pos && start < l.signs.end {
		l.pos++
		return tokOp
	}
	i, special := start, false
	for ; is(l.at(i), isOp); i++ {
		if c, c2 := l.src[i], l.at(i+1); i > start && (c == '-' && c2 == '-' || c == '/' && c2 == '*') {
			break
		}
		if strings.IndexByte("~!@#%^&|`?", l.src[i]) >= 0 {
			special = true
		}
	}
	if last := l.src[i-1]; !special && (last == '+' || last == '-') {
		l.signs.end = i
		for i-start > 1 && (l.src[i-1] == '+' || l.src[i-1] == '-') {
			i--
		}
		l.signs.pos = i
	}
	l.pos = i
	return tokOp
}

// dot reads a dot, or a number that begins with one.
func (l *lexer) dot() kind {
	next := l.at(l.pos + 1)
	if is(next, isDigit) {
		return l.number()
	}
	l.pos++
	if next == '.' {
		return tokBad // the range of PL/pgSQL
	}
	return tokDot
}

// colon reads what begins with a colon.
func (l *lexer) colon() kind {
	l.pos++
	switch l.at(l.pos) {
	case ':':
		l.pos++
		return tokCast
	case '=':
		l.pos++
		return tokAssign
	}
	return tokColon
}
