package catalog

import (
	"slices"
	"strings"
)

// This file finds what runs code of users, which is Alone whatever it is declared,
// and what runs built-in functions that are not known to fit a transaction with
// others.

// builtinCompany returns the company of the built-in functions called name. custom:
// there are text search parsers or templates of users.
func builtinCompany(name string, custom bool) Company {
	c := builtin(name).Company
	if custom && c != Alone && textSearch(name) {
		return Alone
	}
	return c
}

// textSearch reports whether a built-in function runs the parser and dictionaries of
// a configuration.
func textSearch(name string) bool {
	switch name {
	case "to_tsvector", "json_to_tsvector", "jsonb_to_tsvector", "to_tsquery", "plainto_tsquery", "phraseto_tsquery",
		"websearch_to_tsquery", "ts_headline", "ts_lexize", "ts_parse", "ts_token_type", "ts_debug", "ts_match_tt", "ts_match_tq":
		return true
	}
	return false
}

// typeCompany returns the company of a conversion to a built-in type.
func typeCompany(name string) Company {
	switch name = strings.TrimPrefix(name, "_"); name {
	case "regtype", "regprocedure", "regoperator":
		return Alone // their input runs functions of the types that it names
	case "xml", "regclass", "regcollation", "regconfig", "regdatabase", "regdictionary", "regnamespace", "regoper", "regproc", "regrole":
		return Apart
	}
	return Joined
}

// builtinFunction is one that something refers to.
type builtinFunction struct {
	in   *schema
	name string
	node node
}

// company returns an object's company, once that has spread.
func (l *loader) company(n node) Company {
	if c, ok := l.companies[n]; ok {
		return c
	}
	return Joined
}

func (l *loader) functionCompany(f namedFunction) Company {
	if f.node.user() {
		return Alone
	}
	return Apart // of the information schema
}

func (l *loader) operatorCompany(o namedOperator) Company {
	if o.node.user() {
		return Alone
	}
	return Joined
}

// spreadCompany finds the company of all objects.
func (l *loader) spreadCompany() {
	l.companies = map[node]Company{}
	for _, p := range l.plans {
		l.uses(p[0], p[1])
	}
	for _, c := range l.casts {
		switch {
		case !c.pairs():
		case c.target.user(): // it is named, or what it is an array of
			l.uses(c.target.as('T'), c.node)
			if elem, ok := l.elem[c.target]; ok {
				l.uses(elem.as('T'), c.node)
			}
		default:
			l.uses(c.source, c.node)
		}
	}
	known := make(map[node]Company, len(l.builtins))
	for _, f := range l.builtins {
		if f.in == nil || f.in == l.set.schemas["pg_catalog"] {
			known[f.node] = builtinCompany(f.name, l.set.search)
		} else {
			known[f.node] = Apart
		}
	}
	for _, symbol := range []string{"@@", "@@@"} { // of texts, too
		if _, ok := l.set.builtin[symbol]; ok {
			l.set.builtin[symbol] = builtinCompany("ts_match_tt", l.set.search)
		}
	}
	var alone, apart []node
	root := func(n node, c Company) {
		switch c {
		case Alone:
			alone = append(alone, n)
		case Apart:
			apart = append(apart, n)
		}
	}
	for n := range l.users {
		switch n >> 32 {
		case 'f':
			if n.user() {
				root(n, Alone)
			} else {
				root(n, known[n]) // Alone if it is not
			}
		case 'o', 'm', 'c':
			root(n, Alone)
		}
	}
	for _, t := range l.types {
		switch {
		case !t.node.user():
			root(t.node.as('T'), typeCompany(t.name))
		case t.kind == 'b' && !t.list, t.kind == 'p':
			root(t.node, Alone)
		}
	}
	for _, r := range l.relations {
		switch {
		case r.rls == secured, r.am:
			root(r.node, Alone)
		case r.kind == 'v' && r.node.user():
			// Anybody may put another query in its place, which no connection hears of.
			root(r.node, Apart)
		case r.node.user():
		case anyColumns(r.name), r.kind == 'v' && !plainView(r.name):
			root(r.node, Alone)
		default:
			root(r.node, Apart)
		}
	}
	for _, by := range l.guarded {
		for _, n := range by {
			root(n, Alone)
		}
	}
	for _, n := range l.syntax {
		root(n, Apart)
	}
	l.reachCompany(alone, Alone)
	// What is hidden behind a type is as good as a part of it.
	hide := func(types ...node) {
		for _, t := range types {
			if l.newType(t) {
				l.reachCompany([]node{t}, Alone)
			}
		}
	}
	for _, o := range l.operators {
		if l.hiddenOperator(o) {
			hide(o.left, o.right)
		}
	}
	for i := range l.functions {
		if f := &l.functions[i]; l.hiddenFunction(f) {
			hide(f.types...)
		}
	}
	l.reachCompany(apart, Apart)
}

// reachCompany gives a company to objects and to all that use them. The worst ones
// come first.
func (l *loader) reachCompany(queue []node, c Company) {
	for len(queue) > 0 {
		var n node
		n, queue = queue[len(queue)-1], queue[:len(queue)-1]
		if _, ok := l.companies[n]; ok {
			continue
		}
		l.companies[n] = c
		queue = append(queue, l.users[n]...)
	}
}

// hiddenOperator and hiddenFunction report whether a user's operator or function can
// only be meant where a value of one of its types is there already, so that having
// citext, hstore or vector in a database changes nothing for who uses none.

func (l *loader) hiddenOperator(o namedOperator) bool {
	return o.node.user() && l.hides(l.overloads[o.name], []node{o.left, o.right})
}

func (l *loader) hiddenFunction(f *namedFunction) bool {
	return f.node.user() && !f.named && !f.variadic && f.defaults == 0 && l.hides(l.overloads[f.name], f.types)
}

// hides reports whether one of the built-in overloads of a name goes before what has
// arguments of these types, or is as good, so that the call is ambiguous, unless an
// argument is of one of the new types. Where none is, a literal of no type (or NULL,
// or a parameter) stands in the place of each new type. An overload with the same
// types in the other places is then left out only for one that takes a string or a
// preferred type in such a place: but that leaves the other out, too.
//
// (func_select_candidate of PostgreSQL; "Operator Type Resolution" in the manual.)
func (l *loader) hides(overloads [][]node, types []node) bool {
	if !slices.ContainsFunc(types, l.newType) {
		return false
	}
	return slices.ContainsFunc(overloads, func(builtin []node) bool {
		if len(builtin) != len(types) {
			return false
		}
		for i, b := range builtin {
			t := types[i]
			switch {
			case l.kinds[b].kind == 'p', (b.oid() == 0) != (t.oid() == 0):
				return false
			case b == t:
			case !l.newType(t), l.kinds[t].text && b.oid() != textOID:
				return false
			}
		}
		return true
	})
}

const textOID = 25

// newType reports whether a value of a user's type is only there where that type, or
// another of users' types, is.
func (l *loader) newType(t node) bool {
	if !t.user() {
		return false
	}
	for _, c := range l.casts {
		if c.implicit && c.target == t && !c.source.user() {
			return false
		}
	}
	switch known := l.kinds[t]; known.kind {
	case 'b', 'e', 'r', 'm': // base, enum, range, multirange
		return !known.list && !known.preferred
	}
	return false
}

// typesOf returns the types with these OIDs.
func typesOf(oids []string) []node {
	types := make([]node, len(oids))
	for i, oid := range oids {
		types[i] = nodeOf('t', oid)
	}
	return types
}

// collectTables finds the tables that reading a relation reads.
func (l *loader) collectTables() {
	l.tables = make(map[node][]uint32, len(l.relations))
	seen := map[node]bool{}
	for _, r := range l.relations {
		if r.kind == 'c' || r.kind == 'v' && r.node.user() {
			continue
		}
		clear(seen)
		queue := []node{r.node}
		for len(queue) > 0 {
			var n node
			n, queue = queue[len(queue)-1], queue[:len(queue)-1]
			if n>>32 != 'r' || seen[n] {
				continue
			}
			seen[n] = true
			if have := l.tables[n]; len(have) <= MaxTables {
				l.tables[n] = append(have, r.node.oid())
			}
			queue = append(queue, l.users[n]...)
		}
	}
	for n, list := range l.tables {
		slices.Sort(list)
		l.tables[n] = slices.Clip(list)
	}
}
