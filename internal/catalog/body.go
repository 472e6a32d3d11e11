package catalog

import "strings"

// This file looks into the bodies of functions that are declared STABLE or IMMUTABLE:
// what they call, and whether they could write. PostgreSQL believes the declaration; it
// refuses only commands of theirs that write by themselves, not calls of functions that
// do.
//
// Of functions that are volatile, which is what they are if nobody says anything, it finds
// those that would be harmless if they were declared STABLE (readers.go).

// A Word is an identifier, key word or operator of a text.
type Word struct {
	Name     string // as the server stores it
	Schema   string // what stands before it and a dot, or ""
	Quoted   bool
	Operator bool
	Dotted   bool   // it stands behind a dot
	Called   bool   // an opening parenthesis is next
	After    string // the unquoted word right before it, or ""
	First    bool   // a statement may begin with it
}

// A WordsFunc calls visit with each word of a text that need not be a statement, by the
// lexical rules of SQL, until that returns false. The operators that key words stand for
// come behind these. It reports whether it read the whole
// text.
type WordsFunc func(text string, visit func(Word) bool) bool

// body is what a function is written in.
type body struct {
	node           node
	language, text string // language: what reads it, whatever it is called; "" if that is not known
}

// readBodies adds what functions reach through their bodies.
func (l *loader) readBodies(words WordsFunc) {
	if words == nil {
		return
	}
	functions := make(map[string][]*namedFunction)
	for i := range l.functions {
		f := &l.functions[i]
		functions[f.name] = append(functions[f.name], f)
	}
	relations := make(map[string][]*namedRelation)
	for i := range l.relations {
		r := &l.relations[i]
		relations[r.name] = append(relations[r.name], r)
	}
	types := make(map[string][]*namedType)
	l.kinds = make(map[node]namedType, len(l.types))
	for i := range l.types {
		t := &l.types[i]
		types[t.name] = append(types[t.name], t)
		l.kinds[t.node] = *t
	}
	grammar := make(map[string][]node)
	for _, t := range l.types {
		if t.in == l.set.schemas["pg_catalog"] {
			for _, word := range grammarNames(t.name) {
				grammar[word] = append(grammar[word], t.node)
			}
		}
	}
	operators := make(map[string][]*namedOperator)
	for i := range l.operators {
		if o := &l.operators[i]; o.node.user() {
			operators[o.name] = append(operators[o.name], o)
		}
	}
	names := make(map[node]string, len(l.functions))
	for _, f := range l.functions {
		names[f.node] = f.name
	}
	for _, b := range l.bodies {
		_, volatile := l.volatile[b.node]
		fault, uses := l.fault, l.uses
		if volatile {
			fault, uses = l.ifStable.fault, l.ifStable.use
		}
		writes := func() { fault(b.node, MayWrite, names[b.node], Denied) }
		switch b.language {
		case "sql", "plpgsql":
		case "": // nobody knows
			writes()
			continue
		case "plsh": // (PL/Proxy wants its functions to be declared volatile)
			fault(b.node, Elsewhere, names[b.node], Private)
			continue
		default:
			if runsStatements(b.text) {
				writes()
			}
			continue
		}
		update := false
		whole := words(b.text, func(w Word) bool {
			in := l.set.schemas[w.Schema]
			if w.Operator {
				if w.Name == "||" {
					uses(b.node, node('T')<<32|textOID)
				}
				for _, o := range operators[w.Name] {
					switch {
					case w.Schema != "" && o.in != in:
					case w.Schema == "" && !volatile && l.private(*o):
						l.inBodies[o.node] = append(l.inBodies[o.node], b.node)
					default:
						uses(b.node, o.node)
					}
				}
				return true
			}
			// x::t, t 'x', DECLARE x t, t(x), t%ROWTYPE
			for _, t := range types[w.Name] {
				if in == nil || t.in == in {
					uses(b.node, t.node.as('T'))
				}
			}
			if w.Schema == "" && !w.Quoted || w.Called {
				for _, t := range grammar[w.Name] {
					uses(b.node, t.as('T'))
				}
			}
			for _, r := range relations[w.Name] {
				if in == nil || r.in == in {
					uses(b.node, r.node)
					row := l.rowTypeOf(*r)
					switch {
					case row.oid() == 0:
					case w.After != "from" && w.After != "join":
						uses(b.node, row.as('T'))
					case b.language == "plpgsql": // SELECT * INTO v FROM r; v.x := …
						uses(b.node, row.as('A'))
					}
				}
			}
			switch {
			case w.Quoted, w.Schema != "":
			case w.Name == "into" && (w.After == "insert" || w.After == "merge"), w.Name == "from" && w.After == "delete",
				w.Name == "set" && update, w.Name == "execute" && w.After != "on" && w.After != "grant":
				writes()
			case volatile && (w.First && command(w.Name) || w.After == "for" && rowLock(w.Name) || w.Name == "into" && b.language == "sql"):
				writes() // what PostgreSQL refuses in a function that is not
			case w.Name == "update":
				update = update || w.After != "for" && w.After != "key"
			}
			if w.Called {
				known := false
				for _, f := range functions[w.Name] {
					if in == nil || f.in == in {
						known = true
						uses(b.node, f.node)
					}
				}
				if w.Schema == "" || w.Schema == "pg_catalog" {
					switch class := Function(w.Name); {
					case class == Safe, w.Name == "pg_sleep", w.Name == "pg_sleep_for", w.Name == "pg_sleep_until":
						known = true // what only takes time changes no answer
					case class != Unknown:
						fault(b.node, Dangerous, w.Name, class)
					}
				}
				if !known && w.After == "perform" {
					writes()
				}
				return true
			}
			if SessionView(w.Name) && (w.Schema == "" || w.Schema == "pg_catalog") {
				fault(b.node, SystemView, w.Name, Private)
			}
			if w.Dotted { // x.f can call f
				if class := Attribute(w.Name); class != Unknown {
					fault(b.node, Dangerous, w.Name, class)
				}
				for _, f := range functions[w.Name] {
					if f.takesOne() {
						uses(b.node, f.node)
					}
				}
			}
			return true
		})
		if !whole {
			writes() // nobody knows
		}
	}
}

// command reports whether a statement that begins with a word may do more than read. In
// PL/pgSQL the word can also be a variable; then nothing is lost but a hint.
func command(word string) bool {
	switch word {
	case "abort", "alter", "analyze", "call", "checkpoint", "cluster", "comment", "commit", "copy", "create",
		"deallocate", "delete", "discard", "do", "drop", "execute", "explain", "grant", "import", "insert", "listen",
		"load", "lock", "merge", "notify", "prepare", "reassign", "refresh", "reindex", "release", "reset", "revoke",
		"rollback", "savepoint", "security", "set", "start", "truncate", "unlisten", "update", "vacuum":
		return true
	}
	return false
}

// rowLock reports whether a word behind FOR begins a row lock.
func rowLock(word string) bool {
	return word == "update" || word == "share" || word == "no" || word == "key"
}

// runsStatements reports whether a body in another language has what statements are
// executed with there.
func runsStatements(text string) bool {
	text = strings.ToLower(text)
	for _, call := range []string{
		"spi_", "spi.", "spi::", // Perl, Tcl; R; Rust
		"plpy.", "plv8.", "server.", "subtransaction", // Python, JavaScript, Lua
		"pg.", "dbi", "dbgetquery", "execute", "jdbc",
	} {
		if strings.Contains(text, call) {
			return true
		}
	}
	return false
}
