package judge

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// This file writes statements over a world: mostly what applications send, with each way
// of meaning something without naming it among it. A type is kept in mind for each
// expression, so that most of them are accepted.

// An item is what FROM has.
type item struct {
	alias   string
	columns []aColumn
	hasID   bool
	row     *aRelation // whose rows the alias stands for
}

func (i item) prefix() string { return i.alias + "." }

func (w *world) begin() { w.scope, w.params, w.depth = nil, nil, 0 }

func (w *world) ref(refs []string) string { return refs[w.IntN(len(refs))] }

// literal writes a constant of a type.
func (w *world) literal(t *aType) string {
	lit := pick(w.Rand, t.lits)
	ref := w.ref(t.refs)
	switch n := w.IntN(10); {
	case t == tInt && n < 8:
		return lit
	case t == tText && n < 6:
		return quote(lit)
	case t == tBool && n < 8:
		return lit
	case n == 0:
		return fmt.Sprintf("CAST(%s AS %s)", quote(lit), ref)
	case n == 1 && !strings.ContainsAny(ref, " "):
		return ref + " " + quote(lit)
	case n == 2 && !w.quiet:
		w.params = append(w.params, lit)
		return fmt.Sprintf("$%d::%s", len(w.params), ref)
	case n == 3:
		return "NULL::" + ref
	}
	return quote(lit) + "::" + ref
}

// column writes a column of a type, or "".
func (w *world) column(t *aType) string {
	var found []string
	for _, it := range w.scope {
		for _, c := range it.columns {
			if c.typ == t {
				found = append(found, it.prefix()+c.ref)
				if len(w.scope) == 1 {
					found = append(found, c.ref, c.ref)
				}
			}
		}
	}
	if len(found) == 0 {
		return ""
	}
	return pick(w.Rand, found)
}

// someType picks a type that a column in scope has, or any.
func (w *world) someType() *aType {
	if len(w.scope) > 0 && !w.one(4) {
		if it := pick(w.Rand, w.scope); len(it.columns) > 0 {
			return pick(w.Rand, it.columns).typ
		}
	}
	return w.anyType()
}

func (w *world) leaf(t *aType) string {
	if !w.one(5) {
		if c := w.column(t); c != "" {
			return c
		}
	}
	return w.literal(t)
}

// expr writes an expression of a type.
func (w *world) expr(t *aType, depth int) string {
	if depth > 0 && !w.one(3) {
		for range 5 {
			if s := w.compound(t, depth-1); s != "" {
				return s
			}
		}
	}
	return w.leaf(t)
}

func (w *world) exprs(types []*aType, depth int) string {
	list := make([]string, len(types))
	for i, t := range types {
		list[i] = w.expr(t, depth)
	}
	return strings.Join(list, ", ")
}

// matching picks one of the functions that return a type, or nil.
func (w *world) matching(list []*aFunction, t *aType) *aFunction {
	var found []*aFunction
	for _, f := range list {
		if f.ret == t && !f.set {
			found = append(found, f)
		}
	}
	if len(found) == 0 {
		return nil
	}
	return pick(w.Rand, found)
}

// compound writes an expression with parts, or "".
func (w *world) compound(t *aType, depth int) string {
	switch w.IntN(12) {
	case 0, 1:
		f := w.matching(w.functions, t)
		if f == nil {
			return ""
		}
		return w.call(f, depth)
	case 2:
		for _, o := range w.operators {
			if o.ret == t && w.one(2) {
				if o.left == nil {
					return fmt.Sprintf("(%s %s)", w.ref(o.refs), w.expr(o.right, depth))
				}
				return fmt.Sprintf("(%s %s %s)", w.expr(o.left, depth), w.ref(o.refs), w.expr(o.right, depth))
			}
		}
		return ""
	case 3, 4:
		return w.conversion(t, depth)
	case 5:
		switch w.IntN(4) {
		case 0:
			return fmt.Sprintf("CASE WHEN %s THEN %s ELSE %s END", w.expr(tBool, depth), w.expr(t, depth), w.expr(t, depth))
		case 1:
			return fmt.Sprintf("COALESCE(%s, %s)", w.expr(t, depth), w.expr(t, depth))
		case 2:
			if !t.sorts {
				return ""
			}
			return fmt.Sprintf("%s(%s, %s)", pick(w.Rand, []string{"greatest", "LEAST", "NULLIF"}), w.expr(t, depth), w.expr(t, depth))
		}
		s := w.someType()
		return fmt.Sprintf("CASE %s WHEN %s THEN %s END", w.expr(s, depth), w.expr(s, 0), w.expr(t, depth))
	case 6:
		return w.subquery(t, depth)
	case 7:
		return fmt.Sprintf("(ARRAY[%s, %s])[1]", w.expr(t, depth), w.expr(t, 0))
	case 8:
		// A field, or a function or conversion that looks like one.
		for _, c := range w.types {
			if c.kind != 'c' || !w.one(2) {
				continue
			}
			for _, f := range c.fields {
				if f.typ == t {
					return fmt.Sprintf("(%s).%s", w.expr(c, depth), f.ref)
				}
			}
		}
		if f := w.matching(w.functions, t); f != nil && len(f.args) == 1 && (f.args[0].kind == 'c') {
			return fmt.Sprintf("(%s).%s", w.expr(f.args[0], depth), f.refs[len(f.refs)-1])
		}
		return ""
	}
	switch t {
	case tBool:
		return w.condition(depth)
	case tText:
		s := w.someType()
		switch w.IntN(6) {
		case 0:
			return fmt.Sprintf("%s(%s)", pick(w.Rand, []string{"lower", "upper", "quote_literal"}), w.expr(tText, depth))
		case 1:
			return fmt.Sprintf("(%s || %s)", w.expr(tText, depth), w.expr(tText, depth))
		case 2:
			return fmt.Sprintf("format('%%s', %s)", w.expr(s, depth))
		case 3:
			return fmt.Sprintf("to_json(%s)::text", w.expr(s, depth))
		case 4:
			return fmt.Sprintf("(ARRAY[%s])::text", w.expr(s, depth))
		}
		return fmt.Sprintf("(%s)::text", w.expr(s, depth))
	case tInt:
		switch w.IntN(4) {
		case 0:
			return fmt.Sprintf("abs(%s)", w.expr(tInt, depth))
		case 1:
			return fmt.Sprintf("length(%s)", w.expr(tText, depth))
		case 2:
			return fmt.Sprintf("(%s %s %s)", w.expr(tInt, depth), pick(w.Rand, []string{"+", "*", "-"}), w.expr(tInt, depth))
		}
		return fmt.Sprintf("cardinality(ARRAY[%s])", w.expr(w.someType(), depth))
	case tJSON:
		return fmt.Sprintf("%s(%s)", pick(w.Rand, []string{"to_json", "json_build_array"}), w.expr(w.someType(), depth))
	case tJSONB:
		return fmt.Sprintf("to_jsonb(%s)", w.expr(w.someType(), depth))
	}
	return ""
}

func (w *world) call(f *aFunction, depth int) string {
	ref := w.ref(f.refs)
	if f.row == nil {
		return fmt.Sprintf("%s(%s)", ref, w.exprs(f.args, depth))
	}
	for _, it := range w.scope {
		if it.row != f.row {
			continue
		}
		if !strings.ContainsAny(ref, ".") {
			return pick(w.Rand, []string{it.alias + "." + ref, fmt.Sprintf("(%s).%s", it.alias, ref), fmt.Sprintf("%s(%s)", ref, it.alias)})
		}
		return fmt.Sprintf("%s(%s)", ref, it.alias)
	}
	return ""
}

// conversion makes a value of another type one of t.
func (w *world) conversion(t *aType, depth int) string {
	ref := w.ref(t.refs)
	write := func(s string) string {
		if w.one(3) {
			return fmt.Sprintf("CAST(%s AS %s)", s, ref)
		}
		return fmt.Sprintf("(%s)::%s", s, ref)
	}
	for _, c := range w.casts {
		if c.to == t && w.one(2) {
			return write(w.expr(c.from, depth))
		}
	}
	for _, d := range w.types {
		if d.kind == 'd' && d.base == t && w.one(2) {
			return write(w.expr(d, depth))
		}
	}
	switch {
	case t.kind == 'd':
		return write(w.expr(t.base, depth))
	case t.kind == 'c' && w.one(2):
		types := []*aType{}
		for _, f := range t.fields {
			types = append(types, f.typ)
		}
		return write("ROW(" + w.exprs(types, depth) + ")")
	case t.kind == 'm' && !strings.ContainsAny(t.refs[len(t.refs)-1], ". "):
		return fmt.Sprintf("%s(%s)", t.refs[len(t.refs)-1], w.expr(t.base, depth))
	case t == tText:
		return write(w.expr(w.someType(), depth))
	case t == tInt:
		return write(w.expr(pick(w.Rand, []*aType{tBool, tFloat, tNumeric}), depth))
	case t == tJSON:
		return write(w.expr(tJSONB, depth))
	case t.kind == 'e' || w.one(4):
		return write("(" + quote(pick(w.Rand, t.lits)) + "::text)")
	}
	return ""
}

// subquery writes one that has one value.
func (w *world) subquery(t *aType, depth int) string {
	if w.depth > 1 || len(w.relations) == 0 {
		return ""
	}
	scope := w.scope
	defer func() { w.scope = scope; w.depth-- }()
	w.depth++
	outer := slices.Clone(scope)
	from := w.fromOne()
	if w.one(2) {
		w.scope = append(outer, w.scope...)
	}
	switch w.IntN(4) {
	case 0:
		if f := w.matching(w.aggregates, t); f != nil {
			return fmt.Sprintf("(SELECT %s(%s) FROM %s)", w.ref(f.refs), w.exprs(f.args, depth), from)
		}
	case 1:
		if t == tInt {
			return fmt.Sprintf("(SELECT count(%s)::int FROM %s)", w.expr(w.someType(), depth), from)
		}
		if f := w.matching(w.ordered, t); f != nil {
			return fmt.Sprintf("(SELECT %s() WITHIN GROUP (ORDER BY %s) FROM %s)", w.ref(f.refs), w.exprs(f.args, depth), from)
		}
	case 2:
		if t.sorts && t.kind != 'c' && t != tBool && t != tJSONB && t.kind != 'd' && t.kind != 'r' && t.kind != 'm' {
			return fmt.Sprintf("(SELECT max(%s) FROM %s)", w.expr(t, depth), from)
		}
	}
	return fmt.Sprintf("(SELECT %s FROM %s LIMIT 1)", w.expr(t, depth), from)
}

// condition writes a comparison.
func (w *world) condition(depth int) string {
	t := w.someType()
	if !t.sorts {
		return fmt.Sprintf("(%s IS NOT NULL)", w.expr(t, depth))
	}
	e := func() string { return w.expr(t, depth) }
	lit := func() string { // of no type
		if w.one(2) {
			return quote(pick(w.Rand, t.lits))
		}
		return w.literal(t)
	}
	switch w.IntN(12) {
	case 0, 1, 2:
		return fmt.Sprintf("(%s %s %s)", e(), pick(w.Rand, []string{"=", "=", "<", "<>", ">=", "IS DISTINCT FROM"}), lit())
	case 3:
		return fmt.Sprintf("(%s IN (%s, %s))", e(), lit(), lit())
	case 4:
		return fmt.Sprintf("(%s BETWEEN %s AND %s)", e(), lit(), lit())
	case 5:
		return fmt.Sprintf("(%s %s %s)", w.expr(tText, depth), pick(w.Rand, []string{"LIKE", "~~", "ILIKE", "~", "SIMILAR TO"}), quote("a%"))
	case 6:
		return fmt.Sprintf("(ROW(%s, 1) %s ROW(%s, 2))", e(), pick(w.Rand, []string{"=", "<", "<>"}), e())
	case 7:
		return fmt.Sprintf("(%s = ANY (ARRAY[%s, %s]))", e(), e(), lit())
	case 8:
		return fmt.Sprintf("(%s IN (SELECT %s))", e(), e())
	case 9:
		return fmt.Sprintf("(ARRAY[%s] %s ARRAY[%s])", e(), pick(w.Rand, []string{"=", "<", "&&", "@>"}), e())
	case 10:
		return fmt.Sprintf("(%s %s %s)", w.expr(tBool, depth), pick(w.Rand, []string{"AND", "OR"}), w.expr(tBool, depth))
	}
	if w.depth > 1 || len(w.relations) == 0 {
		return "(NOT " + w.expr(tBool, depth) + ")"
	}
	scope := w.scope
	defer func() { w.scope = scope; w.depth-- }()
	w.depth++
	outer := slices.Clone(scope)
	from := w.fromOne()
	w.scope = append(outer, w.scope...)
	return fmt.Sprintf("EXISTS (SELECT FROM %s WHERE %s)", from, w.expr(tBool, depth))
}

func (w *world) alias() string {
	return "t" + strconv.Itoa(len(w.scope)) + string(rune('a'+w.depth))
}

// fromOne writes one relation, which is then all that is in scope.
func (w *world) fromOne() string {
	alias := w.alias()
	r := pick(w.Rand, w.relations)
	w.scope = []item{{alias, r.columns, true, r}}
	only := ""
	if w.one(20) {
		only = "ONLY "
	}
	return only + w.ref(r.refs) + " " + pick(w.Rand, []string{"", "AS "}) + alias
}

// from writes what a query reads, and puts it in scope.
func (w *world) from() string {
	if len(w.relations) == 0 {
		w.scope = []item{{"t0", nil, false, nil}}
		return "(SELECT 1 AS id) t0"
	}
	from := w.fromOne()
	if !w.one(3) {
		return from
	}
	first := w.scope[0]
	alias := "j" + string(rune('a'+w.depth))
	switch w.IntN(6) {
	case 0, 1:
		r := pick(w.Rand, w.relations)
		w.scope = append(w.scope, item{alias, r.columns, true, r})
		on := "USING (id)"
		if w.one(2) {
			on = fmt.Sprintf("ON %s.id = %s.id", first.alias, alias)
		} else {
			// A second one, if both have it.
			for _, c := range r.columns[1:] {
				for _, d := range first.columns[1:] {
					if c == d && c.typ.sorts {
						on = "USING (id, " + c.ref + ")"
					}
				}
			}
		}
		return fmt.Sprintf("%s %s JOIN %s %s %s", from, pick(w.Rand, []string{"", "LEFT", "INNER"}), w.ref(r.refs), alias, on)
	case 2:
		t := w.anyType()
		e := w.expr(t, 2)
		w.scope = append(w.scope, item{alias, []aColumn{{"x", t}}, false, nil})
		return fmt.Sprintf("%s, LATERAL (SELECT %s AS x) %s", from, e, alias)
	case 3:
		for _, f := range w.functions {
			if f.set && f.row == nil && w.one(2) {
				e := w.exprs(f.args, 1)
				w.scope = append(w.scope, item{alias, []aColumn{{"x", f.ret}}, false, nil})
				if f.ret.kind == 'c' {
					w.scope[1].columns = f.ret.fields
					return fmt.Sprintf("%s, %s(%s) %s", from, w.ref(f.refs), e, alias)
				}
				return fmt.Sprintf("%s, %s(%s) %s(x)", from, w.ref(f.refs), e, alias)
			}
		}
	case 4:
		t := w.anyType()
		e, lit := w.expr(t, 1), w.literal(t)
		w.scope = append(w.scope, item{alias, []aColumn{{"x", t}}, false, nil})
		if t.kind == 'c' {
			w.scope[1].columns = nil
		}
		return fmt.Sprintf("%s, unnest(ARRAY[%s, %s]) %s(x)", from, e, lit, alias)
	case 5:
		t := w.anyType()
		if t.kind == 'c' || t.kind == 'm' {
			break
		}
		w.scope = append(w.scope, item{alias, []aColumn{{"x", t}}, false, nil})
		return fmt.Sprintf(`%s, json_to_record(%s) AS %s(x %s)`, from, quote(`{"x": "`+strings.NewReplacer(`"`, `\"`, `\`, `\\`).Replace(pick(w.Rand, t.lits))+`"}`), alias, w.ref(t.refs))
	}
	return from
}

// sortable picks a type in scope that has an order.
func (w *world) sortable() *aType {
	for range 8 {
		if t := w.someType(); t.sorts {
			return t
		}
	}
	return tInt
}

// statement writes one, and fills in w.params.
func (w *world) statement() string {
	w.begin()
	if len(w.relations) == 0 {
		return "SELECT " + w.expr(w.anyType(), 3)
	}
	switch w.IntN(16) {
	case 0:
		return "SELECT " + w.expr(w.anyType(), 3)
	case 1:
		from := w.fromOne()
		if w.one(4) {
			return "TABLE " + w.ref(w.scope[0].row.refs)
		}
		return fmt.Sprintf("SELECT * FROM %s WHERE id = %s", from, pick(w.Rand, []string{"1", "2", "'3'"}))
	case 2:
		from := w.from()
		t := w.sortable()
		key := w.leaf(t)
		e := w.expr(tInt, 2)
		if f := w.aggregate(); f != nil {
			e = fmt.Sprintf("%s(%s)", w.ref(f.refs), w.exprs(f.args, 1))
		} else {
			e = "max(" + e + ")"
		}
		return fmt.Sprintf("SELECT %s, %s FROM %s GROUP BY %s%s", key, e, from, pick(w.Rand, []string{"1", key}), pick(w.Rand, []string{"", " HAVING count(*) > 0", " ORDER BY 1"}))
	case 3:
		a := w.fromOne()
		t := w.sortable()
		x := w.expr(t, 1)
		b := w.fromOne()
		op := pick(w.Rand, []string{"UNION", "UNION ALL", "EXCEPT", "INTERSECT"})
		if w.one(4) { // one of them becomes the other
			for _, c := range w.casts {
				if c.implicit {
					t = c.from
				}
			}
		}
		return fmt.Sprintf("SELECT %s FROM %s %s SELECT %s FROM %s", x, a, op, w.expr(t, 1), b)
	case 4:
		from := w.from()
		t := w.someType()
		e := w.expr(t, 2)
		if w.one(3) {
			return fmt.Sprintf("WITH x AS %s(SELECT %s AS c FROM %s) SELECT * FROM x", pick(w.Rand, []string{"", "MATERIALIZED "}), e, from)
		}
		w.scope = []item{{"x", []aColumn{{"c", t}}, false, nil}}
		return fmt.Sprintf("WITH x AS (SELECT %s AS c FROM %s) SELECT c, %s FROM x", e, from, w.expr(w.anyType(), 1))
	case 5:
		from := w.from()
		e := "count(*)"
		if f := w.aggregate(); f != nil {
			e = fmt.Sprintf("%s(%s)", w.ref(f.refs), w.exprs(f.args, 1))
		}
		frame := pick(w.Rand, []string{"", "", " ROWS BETWEEN 1 PRECEDING AND CURRENT ROW"})
		return fmt.Sprintf("SELECT %s OVER (PARTITION BY %s ORDER BY %s%s) FROM %s", e, w.leaf(w.sortable()), w.leaf(w.sortable()), frame, from)
	case 6:
		from := w.fromOne()
		a := w.scope[0].alias
		return "SELECT " + pick(w.Rand, []string{a + "::text", "row_to_json(" + a + ")", "array_agg(" + a + ")::text", "count(DISTINCT " + a + ".id)", "to_jsonb(" + a + ")", "json_agg(" + a + ")", a}) + " FROM " + from
	case 7:
		t := w.anyType()
		if !t.sorts {
			break
		}
		return fmt.Sprintf("VALUES (%s, 1), (%s, 2) ORDER BY 1", w.expr(t, 1), w.expr(t, 1))
	case 8:
		from := w.fromOne()
		for _, c := range w.scope[0].columns {
			if c.typ.kind == 'r' {
				return fmt.Sprintf("SELECT %s FROM %s", pick(w.Rand, []string{"range_agg(" + c.ref + ")", "range_agg(" + c.ref + ")::text", "max(upper_inf(" + c.ref + ")::int)"}), from)
			}
		}
		c := pick(w.Rand, w.scope[0].columns)
		return fmt.Sprintf("SELECT %s FROM %s", pick(w.Rand, []string{"array_agg(" + c.ref + ")", "array_agg(" + c.ref + ")::text", "json_agg(" + c.ref + ")", "count(" + c.ref + ")"}), from)
	case 9:
		from := w.from()
		t := w.sortable()
		return fmt.Sprintf("SELECT DISTINCT %s FROM %s ORDER BY 1", w.expr(t, 2), from)
	case 10, 11:
		// What applications send most.
		from := w.fromOne()
		r := w.scope[0]
		c, d := pick(w.Rand, r.columns), pick(w.Rand, r.columns)
		if !d.typ.sorts {
			d = r.columns[0]
		}
		w.params = append(w.params, pick(w.Rand, d.typ.lits))
		return fmt.Sprintf("SELECT id, %s FROM %s WHERE %s = $1 ORDER BY id LIMIT 10", c.ref, from, d.ref)
	}
	from := w.from()
	list := []string{}
	for range 1 + w.IntN(2) {
		list = append(list, w.expr(w.someType(), 2))
	}
	sql := fmt.Sprintf("SELECT %s FROM %s", strings.Join(list, ", "), from)
	if w.one(2) {
		sql += " WHERE " + w.condition(1)
	}
	if w.one(3) {
		sql += " ORDER BY " + w.leaf(w.sortable())
	}
	return sql
}

// aggregate picks an aggregate at times.
func (w *world) aggregate() *aFunction {
	if len(w.aggregates) == 0 || w.one(3) {
		return nil
	}
	return pick(w.Rand, w.aggregates)
}
