package sqlscan

import "strings"

// Command is the beginning of one statement of a text.
type Command struct {
	Words [4]string // its first four words, in lower case; "" where there is none or something else stands
	Text  string    // the statement, without its semicolon
}

// Commands calls visit with each statement of the text, empty ones left out,
// until it returns false. It reports whether it read the whole text and visit
// never returned false. It splits at semicolons outside quotes, comments and
// parentheses; what that tears apart (BEGIN ATOMIC … END) begins with words
// that are no commands.
func Commands(sql string, visit func(Command) bool) bool {
	l := lexer{src: sql}
	var c Command
	start, words, depth := 0, 0, 0
	for {
		t := l.next()
		switch t.kind {
		case tokBad:
			return false
		case tokOpen, tokOpenBracket:
			depth++
		case tokClose, tokCloseBracket:
			depth--
		}
		if t.kind == tokEOF || t.kind == tokSemicolon && depth <= 0 {
			if words > 0 {
				c.Text = sql[start:t.pos]
				if !visit(c) {
					return false
				}
			}
			if t.kind == tokEOF {
				return depth == 0
			}
			c, words, depth, start = Command{}, 0, 0, t.end
			continue
		}
		if words < len(c.Words) {
			if t.kind == tokIdent {
				c.Words[words] = strings.ToLower(sql[t.pos:t.end])
			}
		}
		words++
	}
}

// LastArgument returns the last argument of the call with whose function's name sql
// begins, as it stands there; "" if it cannot be told.
func LastArgument(sql string) string {
	l := lexer{src: sql}
	depth, begin, end := 0, 0, 0
	for {
		switch t := l.next(); t.kind {
		case tokBad, tokEOF, tokSemicolon:
			return ""
		case tokOpen, tokOpenBracket:
			if depth++; depth == 1 {
				begin, end = t.end, t.end
				continue
			}
			end = t.end
		case tokClose, tokCloseBracket:
			if depth--; depth == 0 {
				return strings.TrimSpace(sql[begin:end])
			}
			end = t.end
		case tokComma:
			if depth == 1 {
				begin = t.end
			}
			end = t.end
		default:
			end = t.end
		}
	}
}

// Behind returns where in the text the words end that are given in lower case, the first
// time that they follow one another outside of parentheses and quotes; 0 if they do not.
func Behind(sql string, words ...string) int {
	l := lexer{src: sql}
	depth, found := 0, 0
	for {
		t := l.next()
		switch t.kind {
		case tokBad, tokEOF:
			return 0
		case tokOpen, tokOpenBracket:
			depth++
		case tokClose, tokCloseBracket:
			depth--
		}
		switch is := t.kind == tokIdent && depth == 0; {
		case is && strings.EqualFold(sql[t.pos:t.end], words[found]):
			if found++; found == len(words) {
				return t.end
			}
		case is && strings.EqualFold(sql[t.pos:t.end], words[0]):
			found = 1
		default:
			found = 0
		}
	}
}
