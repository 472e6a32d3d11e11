package catalog

import (
	"math/bits"
	"slices"
)

// This file is about what it takes two names to reach: a cast that must be written needs
// a value of its source and a conversion to its target; an operator or function that only
// a value of a new type can mean needs that type and its symbol or name. Each such cast,
// operator or function that is at fault has a bit. A Use has the bit if it can bring the
// value, and needs it if it can bring the rest; a statement with both is at fault.

// pair is what a bit stands for.
type pair struct {
	kind  byte // of the node
	fault *Fault
}

// paired is the part of the loader that knows of pairs.
type paired struct {
	pairs      []pair
	bits       map[node]uint64
	has, needs map[node]uint64
	textBits   uint64          // of conversions to text
	inBodies   map[node][]node // private operator: functions whose bodies have its symbol
}

// polymorphicSQL are the built-in functions in SQL that convert what they are given to
// text: quote_literal and quote_nullable of anything, text || anything, anything || text.
var polymorphicSQL = []uint32{1285, 1290, 2003, 2004}

// toJSON are the built-in functions and the syntax that use a cast to json of what they
// are given, if there is one.
var toJSON = []string{
	"array_to_json", "json_agg", "json_agg_strict", "json_build_array", "json_build_object", "json_object_agg",
	"json_object_agg_strict", "json_object_agg_unique", "json_object_agg_unique_strict", "jsonb_agg", "jsonb_agg_strict",
	"jsonb_build_array", "jsonb_build_object", "jsonb_object_agg", "jsonb_object_agg_strict", "jsonb_object_agg_unique",
	"jsonb_object_agg_unique_strict", "row_to_json", "to_json", "to_jsonb",
	"json_agg_transfn", "json_agg_strict_transfn", "json_object_agg_transfn", "json_object_agg_strict_transfn",
	"json_object_agg_unique_transfn", "json_object_agg_unique_strict_transfn", "jsonb_agg_transfn", "jsonb_agg_strict_transfn",
	"jsonb_object_agg_transfn", "jsonb_object_agg_strict_transfn", "jsonb_object_agg_unique_transfn", "jsonb_object_agg_unique_strict_transfn",
	"json_array", "json_arrayagg", "json_exists", "json_object", "json_objectagg", "json_query", "json_scalar", "json_serialize", "json_table", "json_value",
}

const jsonOID = 114

// maxPairs is how many there are bits for. What is above is at fault by one name.
const maxPairs = 64

// pairs reports whether a cast takes two names: functions in SQL and PL/pgSQL never use
// one that must be written, for what they return or assign.
func (c *cast) pairs() bool { return c.explicit && c.source.user() }

// spreadPairs finds what has and what needs each bit, and what has both by itself.
func (l *loader) spreadPairs() {
	l.bits, l.has, l.needs = map[node]uint64{}, map[node]uint64{}, map[node]uint64{}
	for again := true; again; {
		again = l.givePairs()
		for _, c := range l.casts {
			if f := l.faults[c.node]; f != nil && !c.explicit && c.target.user() && l.faults[polymorphic] == nil {
				l.uses(polymorphic, c.node)
				l.reach(polymorphic, f, false)
				again = true
			}
		}
		// Values of what is behind a type are there when that is.
		for _, o := range l.operators {
			if h := l.has[o.node]; h != 0 && l.behindTypes(o) {
				again = l.mark(l.has, o.left, h) || again
				again = l.mark(l.has, o.right, h) || again
			}
		}
		for i := range l.functions {
			f := &l.functions[i]
			if h := l.has[f.node]; h != 0 && l.hiddenFunction(f) {
				for _, t := range f.types {
					if l.newType(t) {
						again = l.mark(l.has, t, h) || again
					}
				}
			}
		}
		for n, h := range l.has {
			if both := h & l.needs[n]; both != 0 && l.faults[n] == nil {
				l.reach(n, l.pairs[bits.TrailingZeros64(both)].fault, false)
				again = true
			}
		}
	}
}

// givePairs gives a bit to each fault that takes two names and has none, and reports
// whether there was one.
func (l *loader) givePairs() bool {
	again := false
	give := func(n node, types ...node) (bit uint64) {
		f := l.faults[n]
		if f == nil || l.bits[n] != 0 {
			return 0
		}
		if len(l.pairs) == maxPairs {
			return 0
		}
		again = true
		bit = 1 << len(l.pairs)
		l.pairs, l.bits[n] = append(l.pairs, pair{byte(n >> 32), f}), bit
		for _, t := range types {
			l.mark(l.has, t, bit)
		}
		return bit
	}
	for _, c := range l.casts {
		if !c.pairs() {
			continue
		}
		bit := give(c.node, c.source)
		switch {
		case bit != 0:
			l.mark(l.needs, c.target.as('T'), bit)
			if elem, ok := l.elem[c.target]; ok { // x::t[] names that
				l.mark(l.needs, elem.as('T'), bit)
			}
			if c.target.oid() == jsonOID {
				for _, f := range l.builtins {
					if slices.Contains(toJSON, f.name) {
						l.mark(l.needs, f.node, bit)
					}
				}
			}
			if c.target.oid() == textOID {
				l.textBits |= bit
				for _, oid := range polymorphicSQL {
					l.mark(l.needs, node('f')<<32|node(oid), bit)
				}
			}
			if !c.target.user() { // of a row, columns of built-in types are not known
				for _, row := range l.rowType {
					l.mark(l.needs, row.as('T'), bit)
				}
			}
		case l.faults[c.node] != nil && l.bits[c.node] == 0 && l.faults[c.source] == nil:
			l.reach(c.source, l.faults[c.node], false)
			again = true
		}
	}
	for _, o := range l.operators {
		if l.faults[o.node] == nil || !l.behindTypes(o) {
			continue
		}
		for _, t := range l.newTypes(o.left, o.right) {
			if bit := give(o.node, l.newTypes(o.left, o.right)...); bit != 0 {
				for _, f := range l.inBodies[o.node] {
					l.mark(l.needs, f, bit)
				}
			} else if l.bits[o.node] == 0 && l.private(o) && l.faults[t] == nil {
				l.reach(t, l.faults[o.node], false)
				again = true
			}
		}
	}
	for i := range l.functions {
		if f := &l.functions[i]; l.faults[f.node] != nil && l.hiddenFunction(f) {
			give(f.node, l.newTypes(f.types...)...)
		}
	}
	return again
}

// behindTypes reports whether an operator can only be meant where a value of one of its
// new types is.
func (l *loader) behindTypes(o namedOperator) bool { return l.private(o) || l.hiddenOperator(o) }

// newTypes are those whose values are there only if that type is.
func (l *loader) newTypes(types ...node) (list []node) {
	for _, t := range types {
		if l.newType(t) || l.privateType(t) {
			list = append(list, t)
		}
	}
	return list
}

// mark gives a bit to an object and to all that use it, and reports whether that is new.
func (l *loader) mark(to map[node]uint64, n node, bit uint64) bool {
	if n.oid() == 0 || to[n]&bit == bit {
		return false
	}
	queue := []node{n}
	for len(queue) > 0 {
		n, queue = queue[len(queue)-1], queue[:len(queue)-1]
		if to[n]&bit == bit {
			continue
		}
		to[n] |= bit
		queue = append(queue, l.users[n]...)
	}
	return true
}

// paired is the function's use where it is called by its bare name, by which built-in
// ones go before it.
func (f *function) paired() Use {
	u := f.Use
	if f.hidden {
		u.Has = 0
		if f.pair != 0 {
			u.Fault, u.Needs = nil, u.Needs|f.pair
		}
	}
	return u
}

// Pair returns what a statement is at fault for that has and needs these bits, or nil,
// and the kind of that: c cast, o operator, f function.
func (s *Set) Pair(has, needs uint64) (*Fault, byte) {
	if both := has & needs; both != 0 {
		p := s.pairs[bits.TrailingZeros64(both)]
		return p.fault, p.kind
	}
	return nil, 0
}

// grammarNames are the words with which the grammar begins the name of a built-in type,
// where that is not its name, and what else converts to it.
func grammarNames(typ string) []string {
	switch typ {
	case "text": // not the grammar's: see polymorphicSQL
		return []string{"quote_literal", "quote_nullable"}
	case "json":
		return toJSON
	case "jsonb":
		return []string{"json_exists", "json_query", "json_table", "json_value"}
	case "int2":
		return []string{"smallint"}
	case "int4":
		return []string{"int", "integer"}
	case "int8":
		return []string{"bigint"}
	case "float4":
		return []string{"real", "float"}
	case "float8":
		return []string{"double", "float"}
	case "numeric":
		return []string{"decimal", "dec"}
	case "bool":
		return []string{"boolean"}
	case "bpchar":
		return []string{"char", "character", "nchar", "national"}
	case "varchar":
		return []string{"char", "character", "nchar", "national"}
	case "varbit":
		return []string{"bit"}
	case "timetz":
		return []string{"time"}
	case "timestamptz":
		return []string{"timestamp"}
	}
	return nil
}
