package catalog

import (
	"context"
	_ "embed"
	"fmt"
	"strconv"
	"strings"
)

//go:embed catalog.sql
var catalogSQL string

// A QueryFunc runs statements, separated by semicolons, in one transaction that is
// rolled back, and calls row with the cells of each row of their answers, none of
// which is NULL. It may reuse the slice, but not the strings. It returns row's
// error, if there is one.
type QueryFunc func(ctx context.Context, sql string, row func(cells []string) error) error

// Options adapt Load to what its caller knows.
type Options struct {
	// Words reads the bodies of functions; nil: their declaration is believed.
	Words WordsFunc

	// AnyRole: the Set is for sessions of other roles, too. No table is taken for exempt
	// from row-level security.
	AnyRole bool
}

// Load reads what a session's database says about its names, in one round trip, for
// any role. Names are resolved as in that session, so it must have the search_path
// of the sessions that the Set is used for, and no temporary objects.
func Load(ctx context.Context, query QueryFunc, opts Options) (*Set, error) {
	l := loader{
		opts: opts,
		set: &Set{
			schemas: map[string]*schema{},
			builtin: map[string]Company{},
			types:   map[string]Use{},
		},
		schemas: map[string]*schema{},
		rowType: map[string]node{}, elem: map[node]node{},
		textual: map[string]bool{}, overloads: map[string][][]node{}, volatile: map[node]string{},
		users:  map[node][]node{},
		paired: paired{inBodies: map[node][]node{}},
	}
	if err := query(ctx, catalogSQL, l.row); err != nil {
		return nil, err
	}
	if l.set.version == 0 || len(l.names) == 0 {
		return nil, fmt.Errorf("flightpg: the catalog query gave no answer")
	}
	l.readBodies(opts.Words)
	l.link()
	l.collectTables()
	l.spread()
	l.spreadCompany()
	l.readers()
	l.fill()
	return l.set, nil
}

// A node is an object: a letter for its kind, and its OID.
//
//	f function   o operator   m operator family   c cast
//	r relation that is read   t type whose values are used   T type that is converted to
//	A type that is assigned to   s syntax that looks like a function
//
// A value of type t has been read, compared or put out; a conversion to it can
// do more, and T stands for that. A is for the conversions that need not be written,
// which functions apply to what they return, take and assign.
type node uint64

func nodeOf(kind byte, oid string) node {
	n, _ := strconv.ParseUint(oid, 10, 32)
	return node(kind)<<32 | node(n)
}

func (n node) oid() uint32 { return uint32(n) }

// user reports whether the object was made by a user.
func (n node) user() bool { return n.oid() >= 16384 }

func (n node) as(kind byte) node { return node(kind)<<32 | node(n.oid()) }

// loader puts the rows of catalog.sql together.
type loader struct {
	opts    Options
	set     *Set
	names   []string           // of the schemas in search_path
	schemas map[string]*schema // by OID

	relations []namedRelation
	functions []namedFunction
	types     []namedType
	operators []namedOperator
	casts     []cast
	bodies    []body
	volatile  map[node]string // functions that are volatile by their declaration, at least: what ALTER FUNCTION calls them
	ifStable  graph           // … and what they do
	columns   [][2]string     // type, list of relations
	rowType   map[string]node // by OID of the relation
	isRow     map[node]bool   // the values of rowType
	elem      map[node]node   // of arrays
	kinds     map[node]namedType
	textual   map[string]bool // symbols of built-in operators on two texts

	users  map[node][]node // object: those that use it
	faults map[node]*Fault
	rows   map[node]*Fault // relations with row-level security, and views over them
	roots  []root
	paired           // see pairs.go
	parent [][2]node // inheritance: parent, child

	policies [][2]node       // relation, and what its policies use
	guarded  map[node][]node // relations with row-level security, and where they are subject to it

	// Of company.go.
	builtins  []builtinFunction
	overloads map[string][][]node // built-in functions that users' have the names of, operators: types of arguments
	plans     [][2]node           // relation, and what planning a read of it may run
	syntax    []node              // relations whose trees have functions without a name
	companies map[node]Company
	tables    map[node][]uint32
}

type root struct {
	node
	fault *Fault
}

type namedRelation struct {
	in   *schema
	name string
	node node
	kind byte
	rls  security
	am   bool // a table access method of an extension

	invoker bool // a view that reads with the rights of this role: of who reads it, or as its owner
}

// security is whether row-level security applies to a relation.
type security uint8

const (
	noSecurity security = iota
	exempt              // not to this role, which owns the table or has BYPASSRLS
	secured
)

type namedFunction struct {
	in        *schema
	name      string
	node      node
	kind      byte // pg_proc.prokind
	args      int
	defaults  int
	variadic  bool
	named     bool   // it can be called with the names of its arguments
	firstType node   // of its first argument
	types     []node // of them all; nil if no built-in function has the name
}

// takesOne reports whether the function can be called with one argument.
func (f *namedFunction) takesOne() bool {
	return f.kind == 'a' || f.args-f.defaults <= 1+btoi(f.variadic) && (f.args >= 1 || f.variadic)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

type namedType struct {
	in   *schema
	name string
	node node
	kind byte // pg_type.typtype
	list bool // an array

	text      bool // of the category of strings
	preferred bool
}

type namedOperator struct {
	in          *schema
	name        string
	node        node
	left, right node
}

type cast struct {
	node
	source, target     node
	implicit, explicit bool // the context; neither is assignment
}

// uses records that user is unsafe if used is.
func (l *loader) uses(user, used node) {
	if user != used {
		l.users[used] = append(l.users[used], user)
	}
}

func (l *loader) usesType(user, used node) {
	l.uses(user.as('t'), used.as('t'))
	l.uses(user.as('T'), used.as('T'))
	l.uses(user.as('A'), used.as('A'))
}

// polymorphic is assigned to where a function in a language of users takes or returns what
// its caller says, which can be any type.
const polymorphic = node('A') << 32

func polymorphicType(oid string) bool {
	switch oid {
	case "2249", // record
		"2277", "2283", "2776", "3500", "3831", "4537", // anyarray, -element, -nonarray, -enum, -range, -multirange
		"5077", "5078", "5079", "5080", "4538": // anycompatible…
		return true
	}
	return false
}

func (l *loader) fault(n node, cause Cause, object string, class Class) {
	l.roots = append(l.roots, root{n, &Fault{Cause: cause, Object: object, Class: class}})
}

// row takes one row of catalog.sql.
func (l *loader) row(cells []string) error {
	if len(cells) != 5 || cells[0] == "" {
		return fmt.Errorf("flightpg: a row of the catalog query has %d columns", len(cells))
	}
	kind, oid, in, name := cells[0], cells[1], l.schemas[cells[2]], cells[3]
	var more []string
	if kind != "y" {
		more = strings.Fields(cells[4])
	}
	field := func(i int) string {
		if i < len(more) {
			return more[i]
		}
		return ""
	}
	if field(0) == "" {
		switch kind {
		case "r", "f", "t": // there is a letter
			return fmt.Errorf("flightpg: a row of the catalog query is of kind %q, without the kind of %q", kind, name)
		}
	}
	switch kind {
	case "v": // server_version_num
		n, err := strconv.Atoi(name)
		if err != nil {
			return fmt.Errorf("flightpg: server version %q: %w", name, err)
		}
		l.set.version = n / 10000
	case "s": // schema
		s := &schema{
			relations: map[string]relation{}, types: map[string]typeUse{}, functions: map[string][]function{},
			operators: map[string]Use{}, mixed: map[string]Use{}, unary: map[string]unary{},
		}
		l.schemas[oid], l.set.schemas[name] = s, s
	case "p": // place in search_path
		l.names = append(l.names, name)
	case "r": // relation: kind, row type, security, access method, rights
		if in == nil {
			return nil
		}
		r := namedRelation{in: in, name: name, node: nodeOf('r', oid), kind: field(0)[0]}
		for _, what := range more[min(2, len(more)):] {
			switch what {
			case "rls":
				r.rls = secured
			case "exempt":
				if r.rls = exempt; l.opts.AnyRole {
					r.rls = secured
				}
			case "am":
				r.am = true
			case "invoker":
				r.invoker = true
			}
		}
		if row := nodeOf('t', field(1)); row.oid() != 0 {
			l.rowType[oid] = row
		}
		l.relations = append(l.relations, r)
	case "w": // what a view does besides reading
		n := nodeOf('r', oid)
		for _, what := range more {
			switch what {
			case "lock":
				l.fault(n, Locks, "", NeutralWrite)
			case "write":
				l.fault(n, Writes, "", Denied)
			case "sample":
				l.fault(n, Samples, "", Private)
			case "syntax":
				l.syntax = append(l.syntax, n)
			}
		}
	case "B": // built-in function: types of arguments
		l.overloads[name] = append(l.overloads[name], typesOf(more))
	case "f": // function: kind, whether arguments have names and its language is not C, volatility, arguments, defaults, variadic, symbol of its code in C, types
		f := namedFunction{
			in: in, name: name, node: nodeOf('f', oid), kind: field(0)[0], named: strings.Contains(field(0)[1:], "n"), variadic: field(4) != "0",
		}
		f.args, _ = strconv.Atoi(field(2))
		f.defaults, _ = strconv.Atoi(field(3))
		if f.args > 0 {
			f.firstType = nodeOf('t', field(7))
		}
		if f.args > 0 && 7+f.args <= len(more) && l.overloads[name] != nil {
			f.types = typesOf(more[7 : 7+f.args])
		}
		for i := 6; i < len(more); i++ {
			if t := nodeOf('t', more[i]); t.user() {
				l.uses(f.node, t)
				l.uses(f.node, t.as('A'))
			}
			// (OUT arguments make a record, too)
			if polymorphicType(more[i]) && strings.Contains(field(0)[1:], "l") && (i > 6 || more[i] != "2249" || len(more) == 7+f.args) {
				l.uses(f.node, polymorphic)
			}
		}
		switch {
		case f.kind != 'p' && field(1) == "v" && leavesNothing(field(5)):
			l.fault(f.node, Volatile, name, Private)
		case f.kind == 'p', f.kind != 'a' && field(1) == "v":
			l.fault(f.node, Volatile, name, Denied)
		default:
			if cause, class, wrong := misdeclared(field(5)); wrong {
				l.fault(f.node, cause, name, class)
			}
		}
		if in != nil {
			l.functions = append(l.functions, f)
		}
	case "q": // built-in type that users' code compares
		for _, name := range constructors(nodeOf('t', oid).oid()) {
			f := namedFunction{in: l.set.schemas["pg_catalog"], name: name, node: node(len(l.functions)) | node('s')<<32, kind: 'a'}
			l.uses(f.node, nodeOf('t', oid))
			l.functions = append(l.functions, f)
		}
	case "Q": // built-in function that yields such a value
		if in != nil {
			l.functions = append(l.functions, namedFunction{in: in, name: name, node: nodeOf('f', oid), kind: 'a'})
		}
	case "y": // body of a function: its signature if it is volatile, language or "", text
		if signature := cells[2]; signature != "" && l.opts.Words != nil {
			l.volatile[nodeOf('f', oid)] = signature
		}
		l.bodies = append(l.bodies, body{nodeOf('f', oid), name, cells[4]})
	case "b": // built-in function that something refers to: volatility, internal
		l.builtins = append(l.builtins, builtinFunction{in, name, nodeOf('f', oid)})
		info := Lookup(name)
		class := info.Class
		volatile, internal := field(0) == "v" && !(info.Volatile && class == Safe), field(1) != ""
		if volatile && class == Safe { // not in the list's versions
			class = Denied
		}
		// What only the server itself calls is not on the list of the safe ones.
		if volatile || class != Safe && !internal {
			if class == Unknown {
				class = Denied
			}
			l.fault(nodeOf('f', oid), Dangerous, name, class)
		}
	case "t": // type: kind, category, element, preferred
		t := namedType{
			in: in, name: name, node: nodeOf('t', oid), kind: field(0)[0], list: field(1) == "A",
			text: field(1) == "S", preferred: field(3) != "",
		}
		if elem := nodeOf('t', field(2)); elem.oid() != 0 {
			l.elem[t.node] = elem
			l.usesType(t.node, elem)
			if t.node.user() {
				l.uses(elem, t.node) // array_agg makes one of it
			}
		}
		if in != nil {
			l.types = append(l.types, t)
		}
	case "a": // arrays of rows: type, element, type, element…
		for i := 0; i+1 < len(more); i += 2 {
			array, elem := nodeOf('t', more[i]), nodeOf('t', more[i+1])
			l.elem[array] = elem
			l.usesType(array, elem)
			l.uses(elem, array)
		}
	case "k": // columns: type, relations
		l.columns = append(l.columns, [2]string{oid, cells[4]})
	case "o": // operator: kind, operands, result
		l.operators = append(l.operators, namedOperator{in, name, nodeOf('o', oid), nodeOf('t', field(1)), nodeOf('t', field(2))})
	case "O": // symbol of built-in operators: text, types
		l.set.builtin[name] = Joined
		for _, what := range more {
			if left, right, ok := strings.Cut(what, ","); ok {
				l.overloads[name] = append(l.overloads[name], []node{nodeOf('t', left), nodeOf('t', right)})
			} else {
				l.textual[name] = true
			}
		}
	case "u": // code of users that no name tells
		for _, what := range more {
			l.set.alone = l.set.alone || what == "all"
			l.set.search = l.set.search || what == "search"
		}
	case "c": // cast: source, target, context
		l.casts = append(l.casts, cast{nodeOf('c', oid), nodeOf('t', field(0)), nodeOf('t', field(1)), field(2) == "i", field(2) == "e"})
	case "e": // an object, and the objects of a kind that it uses
		from, to := cells[2], cells[3]
		if len(from) != 1 || len(to) != 1 {
			return fmt.Errorf("flightpg: a row of the catalog query is of kinds %q, %q", from, to)
		}
		for _, target := range more {
			switch n := nodeOf(to[0], target); from[0] {
			case 'F':
				if l.opts.Words != nil {
					l.uses(nodeOf('f', oid), n)
				}
			case 't':
				if to[0] == 't' {
					l.usesType(nodeOf('t', oid), n)
				}
				l.uses(nodeOf('t', oid), n)
			case 'd': // a value of the first can become one of the second
				l.uses(nodeOf('t', oid), n)
			case 'x':
				l.plans = append(l.plans, [2]node{nodeOf('r', oid), n})
			case 'P':
				l.policies = append(l.policies, [2]node{nodeOf('r', oid), n})
			case 'i':
				l.parent = append(l.parent, [2]node{nodeOf('r', oid), n})
			default:
				l.uses(nodeOf(from[0], oid), n)
			}
		}
	}
	return nil
}

// constructors are what yields a value of the type without being a function: syntax that
// looks like one.
func constructors(oid uint32) []string {
	switch oid {
	case 114: // json
		return []string{"json", "json_array", "json_arrayagg", "json_object", "json_objectagg", "json_scalar"}
	case 142: // xml
		return []string{"xmlconcat", "xmlelement", "xmlforest", "xmlparse", "xmlpi", "xmlroot"}
	}
	return nil
}

// link adds what follows from the rows together.
func (l *loader) link() {
	l.isRow = make(map[node]bool, len(l.rowType))
	for rel, row := range l.rowType {
		l.isRow[row] = true
		l.uses(row.as('T'), row)
		l.uses(nodeOf('r', rel), row) // t::text, ORDER BY t
	}
	l.kinds = make(map[node]namedType, len(l.types)) // readBodies may not have run
	for _, t := range l.types {
		l.uses(t.node.as('T'), t.node)
		l.kinds[t.node] = t
	}
	for _, c := range l.columns {
		t := nodeOf('t', c[0])
		for rel := range strings.FieldsSeq(c[1]) {
			if row, ok := l.rowType[rel]; ok {
				l.usesType(row, t)
			}
		}
	}
	pgCatalog := l.set.schemas["pg_catalog"]
	for _, r := range l.relations {
		switch {
		case r.kind == 'S':
			l.fault(r.node, Sequence, r.name, Private)
		case r.kind == 'f':
			l.fault(r.node, Foreign, r.name, Private)
		case r.in == pgCatalog && SessionView(r.name):
			l.fault(r.node, SystemView, r.name, Private)
		}
	}
	l.linkPolicies()
	for _, c := range l.casts {
		switch {
		case c.implicit && c.source.user():
			l.uses(c.source, c.node) // there must be a value of it
		case c.implicit && c.target.user():
			l.uses(c.target, c.node)
		case c.pairs():
		case c.target.user():
			l.uses(c.target.as('T'), c.node)
			if elem, ok := l.elem[c.target]; ok { // x::t[] names that
				l.uses(elem.as('T'), c.node)
			}
			if !c.explicit {
				l.uses(c.target.as('A'), c.node)
			}
		case c.source.user():
			// It is the source that tells the statements that can use it.
			l.uses(c.source, c.node)
		}
	}
}

// linkPolicies finds out where row-level security applies. A table that it does not apply
// to for this role may be reached with the rights of another: through a view, which has its
// owner's, or a function.
func (l *loader) linkPolicies() {
	invoker := map[node]bool{}
	for _, r := range l.relations {
		if r.invoker {
			invoker[r.node] = true
		}
	}
	l.guarded = map[node][]node{}
	linked := map[[2]node]bool{}
	for again := true; again; {
		again = false
		for _, r := range l.relations {
			switch r.rls {
			case secured:
				l.guarded[r.node] = []node{r.node}
			case exempt:
				l.guarded[r.node] = l.withRights(r.node, invoker)
			}
		}
		for _, p := range l.policies {
			for _, n := range l.guarded[p[0]] {
				if edge := [2]node{n, p[1]}; !linked[edge] {
					linked[edge] = true
					l.uses(n, p[1])
					again = again || p[1]>>32 == 'r' // which has policies, perhaps
				}
			}
		}
	}
}

// withRights returns what reads a relation with the rights of another role.
func (l *loader) withRights(r node, invoker map[node]bool) (by []node) {
	seen := map[node]bool{r: true}
	for queue := []node{r}; len(queue) > 0; {
		n := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, user := range l.users[n] {
			if seen[user] {
				continue
			}
			if seen[user] = true; invoker[user] {
				queue = append(queue, user)
			} else {
				by = append(by, user)
			}
		}
	}
	return by
}

// spread finds all that reaches a fault.
func (l *loader) spread() {
	// Row-level security is the table's own: a parent's query applies none of its
	// children's policies. It reaches views, and nothing else that a statement names.
	l.faults = map[node]*Fault{}
	for _, r := range l.relations {
		for _, n := range l.guarded[r.node] {
			l.reach(n, &Fault{Cause: RowSecurity, Object: r.name, Class: Private}, true)
		}
	}
	l.rows = l.faults

	for _, p := range l.parent {
		l.uses(p[0], p[1])
	}
	l.markFaults(l.roots)
}

// markFaults finds all that reaches one of the roots.
func (l *loader) markFaults(roots []root) {
	l.faults = map[node]*Fault{}
	// What does most comes first, so that it is what an object is known for.
	for _, class := range []Class{Denied, NeutralWrite, Private} {
		for _, r := range roots {
			if r.fault.Class == class {
				l.reach(r.node, r.fault, false)
			}
		}
	}
	l.spreadPairs()
}

// reach gives a fault to an object and to all that use it.
func (l *loader) reach(n node, f *Fault, relations bool) {
	queue := []node{n}
	for len(queue) > 0 {
		n, queue = queue[len(queue)-1], queue[:len(queue)-1]
		if l.faults[n] != nil || relations && n>>32 != 'r' {
			continue
		}
		l.faults[n] = f
		queue = append(queue, l.users[n]...)
	}
}

// private reports whether an operator can only be meant where a value of one of
// its types is there already: no other value becomes one by itself, and literals
// of no type are taken for text.
func (l *loader) private(o namedOperator) bool {
	return l.textual[o.name] && l.privateType(o.left) && l.privateType(o.right)
}

func (l *loader) privateType(t node) bool {
	if !t.user() {
		return false
	}
	for _, c := range l.casts {
		if c.implicit && c.target == t && c.source != t {
			return false
		}
	}
	switch known := l.kinds[t]; known.kind {
	case 'b', 'e', 'r', 'm': // base, enum, range, multirange
		return !known.list
	}
	return false
}

func (l *loader) rowTypeOf(r namedRelation) node {
	return l.rowType[strconv.FormatUint(uint64(r.node.oid()), 10)]
}

// use returns what was found of an object.
func (l *loader) use(n node) Use {
	return Use{l.faults[n], l.company(n), l.has[n], l.needs[n]}
}

func (l *loader) useType(t node) typeUse { return typeUse{l.use(t.as('T')), l.use(t)} }

// fill makes the set of what was found.
func (l *loader) fill() {
	s := l.set
	s.searched = strings.Join(l.names, "\x01")
	for _, name := range l.names {
		if in := s.schemas[name]; in != nil {
			s.path = append(s.path, in)
		}
	}
	note := func(name string, u Use) {
		if u != harmless {
			add(s.types, name, u)
		}
	}
	for _, r := range l.relations {
		v := relation{
			kind: r.kind, read: l.use(r.node), policy: l.rows[r.node], row: l.useType(l.rowTypeOf(r)),
			tables: l.tables[r.node],
		}
		r.in.relations[r.name] = v
		note(r.name, v.row.convert)
	}
	for _, t := range l.types {
		u := l.useType(t.node)
		t.in.types[t.name] = u
		note(t.name, u.convert)
		if t.in == s.schemas["pg_catalog"] && u.convert.Needs != 0 {
			for _, word := range grammarNames(t.name) {
				note(word, Use{Company: Joined, Needs: u.convert.Needs})
			}
		}
	}
	for n, f := range l.faults {
		if n>>32 == 'm' && !n.user() { // somebody has added to a built-in family
			s.anything = worse(s.anything, f)
		}
	}
	rowsConvert := false // rows of tables become values by themselves
	tables := map[node]bool{}
	for _, r := range l.relations {
		if r.kind != 'c' {
			tables[l.rowTypeOf(r)] = true
		}
	}
	for _, c := range l.casts {
		if c.implicit && tables[c.source] {
			rowsConvert = true
		}
		if !c.source.user() && !c.target.user() {
			s.anything = worse(s.anything, l.faults[c.node])
			s.alone = true
		}
	}
	for _, f := range l.functions {
		if f.node.user() && f.in == s.schemas["pg_catalog"] && Function(f.name) != Unknown {
			s.alone = true // AT TIME ZONE, OVERLAPS and their like can mean it
		}
		u := l.use(f.node)
		u.Company = l.functionCompany(f)
		v := function{u, l.bits[f.node], l.hiddenFunction(&f), int16(f.args - f.defaults), int16(f.args)}
		if f.variadic {
			v.min, v.max = max(v.min-1, 0), anyNumber
		}
		if f.kind == 'a' {
			v.min, v.max = 0, anyNumber // WITHIN GROUP adds arguments
		}
		f.in.functions[f.name] = append(f.in.functions[f.name], v)
		if v.min > 1 || v.max < 1 {
			continue
		}
		called, ok := f.in.unary[f.name]
		if !ok {
			called = unary{harmless, harmless}
		}
		// A domain may be one over rows; pseudo-types take rows.
		if kind := l.kinds[f.firstType].kind; rowsConvert || l.isRow[f.firstType] || kind == 'd' || kind == 'p' {
			called.row = called.row.or(v.Use)
		} else if u := v.paired(); !v.hidden || u.Fault != nil || u.Needs != 0 {
			called.value = called.value.or(u)
		}
		f.in.unary[f.name] = called
	}
	for _, o := range l.operators {
		if o.in == nil {
			continue
		}
		u := l.use(o.node)
		u.Company = l.operatorCompany(o)
		add(o.in.operators, o.name, u)
		if bit := l.bits[o.node]; bit != 0 {
			u.Fault, u.Needs = nil, u.Needs|bit
		}
		if l.behindTypes(o) {
			u.Has = 0
		}
		if l.hiddenOperator(o) {
			u.Company = Joined
		}
		add(o.in.mixed, o.name, u)
	}
	s.pairs, s.textBits = l.pairs, l.textBits
	s.merge()
}
