package sqlscan

// StripComments appends sql to dst with a space for every comment, and returns
// the extended buffer. Quotes are left alone, and so is a text that is not
// understood. The result has the same tokens as sql, so that texts with equal
// results differ in comments and nothing else. (Hints that an extension reads
// from comments are comments.)
func StripComments(dst []byte, sql string) []byte {
	l := lexer{src: sql}
	start, written := len(dst), 0
	for {
		gap := l.pos
		t := l.next()
		if t.kind == tokBad {
			return append(dst[:start], sql...)
		}
		// Between gap and the token there are only white space and comments.
		for i := gap; i < t.pos; {
			switch sql[i] {
			case '-':
				end := endOfLine(sql, i)
				dst = append(append(dst, sql[written:i]...), ' ')
				i, written = end, end
			case '/':
				end := endOfBlockComment(sql, i)
				dst = append(dst, sql[written:i]...)
				if behindString(sql, gap) {
					// 'a' /* */ <newline> 'b' is an error, but 'a' <newline> 'b' is one string.
					dst = append(dst, "/**/"...)
				} else {
					dst = append(dst, ' ')
				}
				i, written = end, end
			default:
				i++
			}
		}
		if t.kind == tokEOF {
			return append(dst, sql[written:]...)
		}
	}
}

// behindString reports whether the token that ends at pos may be a string with
// quotes, which a string behind it could continue.
func behindString(sql string, pos int) bool {
	return pos > 0 && sql[pos-1] == '\''
}
