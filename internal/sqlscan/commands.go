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
