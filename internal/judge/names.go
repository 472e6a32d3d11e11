package judge

import (
	"sync"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// judge collects what a catalog says about the names of one statement.
type judge struct {
	visitor func(sqlscan.Name) bool // visit of this judge, made once

	set *catalog.Set
	rls bool

	company    Company
	tables     tables
	has, needs uint64 // bits of pairs, see catalog.Use

	worst   finding
	unknown finding // the first relation that the catalog does not have

	// A function in FROM makes its alias a value of any type: x.f can call f with
	// it. The function can come later in the text than the first such f.
	item   bool
	ofItem finding

	itemCompany Company // likewise
}

// judges are ready for a statement. They are kept because a judge and the
// function that visits it would be allocated for each statement.
var judges = sync.Pool{New: func() any {
	j := &judge{worst: finding{class: sqlscan.Read}, company: Joined, itemCompany: Joined}
	j.visitor = func(n sqlscan.Name) bool { return j.visit(&n) }
	return j
}}

// release makes the judge ready for the next statement.
func (j *judge) release() {
	*j = judge{visitor: j.visitor, worst: finding{class: sqlscan.Read}, company: Joined, itemCompany: Joined}
	judges.Put(j)
}

// A finding is something that the catalog knows against a statement.
type finding struct {
	class  sqlscan.Class
	reason sqlscan.Reason
	name   string
	pos    int
	stale  bool
	fault  *catalog.Fault
}

// take keeps a finding if it is worse than those before.
func (j *judge) take(f *finding) {
	if f.reason != sqlscan.None && f.class.Worse(j.worst.class) {
		j.worst = *f
	}
}

// find records that a name is at fault.
func (j *judge) find(r sqlscan.Reason, f *catalog.Fault, n *sqlscan.Name) {
	found := findingOf(r, f, n)
	j.take(&found)
}

func findingOf(r sqlscan.Reason, f *catalog.Fault, n *sqlscan.Name) finding {
	found := finding{class: sqlscan.Other, reason: r, name: n.Name, pos: n.Pos, fault: f}
	switch f.Class {
	case catalog.Private:
		found.class = sqlscan.PrivateRead
	case catalog.NeutralWrite:
		found.class = sqlscan.Write
	}
	return found
}

// miss records that the catalog does not have a name, so that it can mean
// anything.
func (j *judge) miss(r sqlscan.Reason, n *sqlscan.Name) {
	f := finding{class: sqlscan.Other, reason: r, name: n.Name, pos: n.Pos, stale: true}
	if r != sqlscan.UnknownRelation {
		j.take(&f)
	} else if j.unknown.reason == sqlscan.None {
		j.unknown = f
	}
}

// visit judges one name, and reports whether the others matter.
func (j *judge) visit(n *sqlscan.Name) bool {
	switch n.Kind {
	case sqlscan.RelationName:
		j.relation(n)
	case sqlscan.FunctionName:
		j.function(n)
	case sqlscan.OperatorName:
		j.operator(n)
	case sqlscan.TypeName:
		j.typ(n)
	case sqlscan.AttributeName:
		j.attribute(n)
	case sqlscan.GrammarType:
		j.pair(j.set.AnyType(n.Name))
	}
	return j.worst.class != sqlscan.Other
}

// pair takes into account what a name is half of.
func (j *judge) pair(u catalog.Use) {
	j.has |= u.Has
	j.needs |= u.Needs
}

func (j *judge) relation(n *sqlscan.Name) {
	r, ok := j.set.Relation(n.Schema, n.Name)
	if !ok {
		if !n.CTE {
			j.miss(sqlscan.UnknownRelation, n)
		}
		return
	}
	// A WITH query hides the relation of its name, but not in its own text and
	// not everywhere in the statement: the relation counts all the same.
	j.meet(r.Company)
	j.pair(r.Use)
	j.tables.add(r.Tables)
	if f := r.Fault; f != nil {
		reason := sqlscan.UnsafeTable
		switch {
		case r.View:
			reason = sqlscan.UnsafeView
		case f.Cause == catalog.Sequence:
			reason = sqlscan.SequenceRelation
		case f.Cause == catalog.Foreign:
			reason = sqlscan.ForeignTable
		}
		j.find(reason, f, n)
	}
	if f := r.Policy; f != nil && !j.rls {
		j.find(sqlscan.RowSecurity, f, n)
	}
}

func (j *judge) function(n *sqlscan.Name) {
	if n.Item {
		j.item = true
	}
	u, found := j.set.Function(n.Schema, n.Name, n.Args)
	j.meet(u.Company)
	j.pair(u)
	if u.Fault != nil {
		j.find(sqlscan.UnsafeFunction, u.Fault, n)
		return
	}
	// name(x) is also a conversion to a type, and name(1) '…' a literal of it. It
	// is a function if there is one that fits, but that depends on types.
	t := j.set.AnyType(n.Name)
	j.meet(t.Company)
	j.pair(t)
	if t.Fault != nil {
		j.find(sqlscan.UnsafeType, t.Fault, n)
		return
	}
	company, builtin := j.builtin(n)
	j.meet(company)
	if found || n.Schema == "?" || builtin {
		return // what the text layer has judged
	}
	if _, ok := j.set.Type(n.Schema, n.Name); !ok {
		j.miss(sqlscan.UnknownFunction, n)
	}
}

// builtin reports whether a call can mean a built-in function, or syntax that
// looks like one, and that one's company.
func (j *judge) builtin(n *sqlscan.Name) (c Company, ok bool) {
	switch n.Schema {
	case "pg_catalog":
		if sqlscan.FunctionSyntax(n.Name, j.set.Version()) {
			return syntaxCompany(n.Name), true
		}
	case "":
	case "?":
		return Alone, false
	default:
		return Joined, false
	}
	info := catalog.Lookup(n.Name)
	if info.Class == catalog.Unknown || info.Since > max(j.set.Version(), catalog.Oldest) {
		return Joined, false
	}
	return j.set.Builtin(n.Name), true
}

func (j *judge) operator(n *sqlscan.Name) {
	u, found := j.set.Operator(n.Schema, n.Name)
	j.meet(u.Company)
	j.pair(u)
	switch {
	case u.Fault != nil:
		j.find(sqlscan.UnsafeOperator, u.Fault, n)
	case !found:
		j.miss(sqlscan.UnknownOperator, n)
	}
}

func (j *judge) typ(n *sqlscan.Name) {
	look := j.set.Type
	if n.Value {
		look = j.set.Constant
	}
	u, found := look(n.Schema, n.Name)
	j.meet(u.Company)
	j.pair(u)
	switch {
	case u.Fault != nil:
		j.find(sqlscan.UnsafeType, u.Fault, n)
	case !found && !n.Maybe:
		j.miss(sqlscan.UnknownType, n)
	}
}

// attribute judges x.name: mostly a column, but also a function called with x,
// or a conversion of x.
func (j *judge) attribute(n *sqlscan.Name) {
	row, value, conversion := j.set.Attribute(n.Name)
	j.meetAttribute(n, row, value, conversion)
	for _, u := range [...]catalog.Use{row, value, conversion} {
		j.pair(u)
	}
	if row.Fault != nil {
		j.find(sqlscan.UnsafeFunction, row.Fault, n)
	}
	fault, reason := value.Fault, sqlscan.UnsafeFunction
	if fault == nil {
		fault, reason = conversion.Fault, sqlscan.UnsafeType
	}
	switch {
	case fault == nil:
	case n.Bare || j.item:
		j.find(reason, fault, n)
	case j.ofItem.reason == sqlscan.None:
		j.ofItem = findingOf(reason, fault, n)
	}
}
