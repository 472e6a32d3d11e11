package catalog

import "strings"

// A Set is what one database says about the names in it, as one of its sessions
// would resolve them. It is immutable: any number of goroutines may use it. No
// lookup allocates.
//
// Built-in functions and operators are not in it: a name that is not found may
// still be one of them.
type Set struct {
	version  int       // major version of the server
	path     []*schema // in the order of search_path, pg_catalog included
	searched string    // their names
	schemas  map[string]*schema
	builtin  map[string]Company // built-in operators, by their symbols
	types    map[string]Use     // types of any schema that are unsafe or not Joined
	anything *Fault             // what makes every statement unsafe
	alone    bool               // every statement can reach a user's code without naming it
	search   bool               // … or each that searches texts
	pairs    []pair             // what it takes two names to reach
	textBits uint64             // Needs of || among built-in operators

	// What unqualified names can mean where the schemas of the path do not hide
	// each other. It follows from the above, and saves a look at each schema.
	functions  map[string][]function
	operators  map[string]Use // built-in ones too
	attributes map[string]attribute
}

type schema struct {
	relations map[string]relation // composite types too: they share the name space
	types     map[string]typeUse  // all but the row types of relations
	functions map[string][]function
	operators map[string]Use // the worst of each symbol, named with the schema
	mixed     map[string]Use // … and without: among built-in ones
	unary     map[string]unary
}

type relation struct {
	kind   byte // pg_class.relkind
	read   Use
	policy *Fault   // row-level security applies to it or below it
	row    typeUse  // of its row type's name
	tables []uint32 // Relation.Tables
}

// typeUse is what a type's name can mean.
type typeUse struct {
	convert Use // a conversion to it
	value   Use // a constant of it
}

type function struct {
	Use
	pair     uint64 // its bit, if its fault is one of Set.pairs
	hidden   bool   // without its schema's name it is not meant; see loader.hides
	min, max int16  // numbers of arguments it can be called with
}

// unary is what calls of a name's functions that take one argument can mean.
type unary struct {
	row   Use // of those that may take a row of a table
	value Use // of the others
}

// attribute is what x.name can mean.
type attribute struct {
	unary
	conversion Use // of x to a type of that name in any schema
}

// A Use is the worst that the use of a name can mean.
type Use struct {
	Fault   *Fault // why it must not be shared, or nil
	Company Company

	// What must not be shared if two names meet: bits of Set.pairs. See pairs.go.
	Has, Needs uint64
}

// harmless is the use of what nobody has made.
var harmless = Use{Company: Joined}

const anyNumber = 1 << 14 // of arguments: more than a call can have

// A Fault says why something must not be shared.
type Fault struct {
	Cause  Cause
	Object string // what is at fault, which a view or type may reach through others
	Class  Class  // what it does at worst: Private, NeutralWrite, or Denied if that is not known

	// Of a volatile function that has been looked into:
	Alter []string // what ALTER FUNCTION calls those that are to be declared STABLE, if all that is reached only reads
	Why   *Fault   // what it does beside that, or nil
}

// A Cause is what is wrong with an object.
type Cause uint8

const (
	Volatile    Cause = iota // a function declared VOLATILE, or a procedure
	Dangerous                // a built-in that this package does not call Safe
	RunsSQL                  // a function that runs SQL from a string, whatever it is declared
	RowSecurity              // row-level security is enabled on the table
	Foreign                  // a foreign table
	Sequence                 // a sequence, which no snapshot covers
	SystemView               // a SessionView
	Locks                    // a view that locks rows
	Writes                   // a view that writes
	Samples                  // a view with TABLESAMPLE and no REPEATABLE
	MayWrite                 // a function whose body could write, or run a text
	Misdeclared              // a function of an extension that is not what it is declared
	Elsewhere                // a function that other programs answer
)

// Path returns the schemas in which names are looked for, in their order, separated by
// the character U+0001.
func (s *Set) Path() string { return s.searched }

// Under returns the set as a session with another search_path sees it: path has its
// schemas in their order, pg_catalog included. It shares what does not depend on that.
func (s *Set) Under(path []string) *Set {
	u := *s
	u.searched, u.path = strings.Join(path, "\x01"), nil
	for _, name := range path {
		if in := s.schemas[name]; in != nil {
			u.path = append(u.path, in)
		}
	}
	u.merge()
	return &u
}

// Version returns the server's major version.
func (s *Set) Version() int { return s.version }

// Everything returns what makes every statement of the database unsafe, such as
// an implicit cast between built-in types by a volatile function, or nil.
func (s *Set) Everything() *Fault { return s.anything }

// Company returns Alone if there is code of users that any statement of the
// database may reach without naming it, such as an implicit cast between built-in
// types.
func (s *Set) Company() Company {
	if s.alone {
		return Alone
	}
	return Joined
}

// Builtin returns the company of a call of the built-in functions called name.
func (s *Set) Builtin(name string) Company {
	return builtinCompany(name, s.search)
}

// A Relation is what is known about a table, view or the like.
type Relation struct {
	View   bool
	Use           // of reading it
	Policy *Fault // nil if no row-level security applies

	// Tables are the OIDs of the tables that reading it reads, through views, sorted;
	// more than MaxTables if there are too many to tell. It must not be changed.
	Tables []uint32
}

// MaxTables is how many tables of a relation or a statement are told.
const MaxTables = 16

// Relation looks a table, view or the like up; schema is "" for an unqualified
// name. It reports false if there is none.
func (s *Set) Relation(schema, name string) (Relation, bool) {
	r, ok := s.relation(schema, name)
	if !ok || r.kind == 'c' {
		return Relation{}, false
	}
	return Relation{View: r.kind == 'v', Use: r.read, Policy: r.policy, Tables: r.tables}, true
}

func (s *Set) relation(schema, name string) (relation, bool) {
	if schema != "" {
		if in := s.schemas[schema]; in != nil {
			r, ok := in.relations[name]
			return r, ok
		}
		return relation{}, false
	}
	for _, in := range s.path {
		if r, ok := in.relations[name]; ok {
			return r, true
		}
	}
	return relation{}, false
}

// Function looks up the functions that a call with that many arguments, or with
// any number if args is -1, can mean, and reports whether there are any. Built-ins
// are not found.
func (s *Set) Function(schema, name string, args int) (u Use, found bool) {
	if schema != "" {
		if in := s.schemas[schema]; in != nil {
			return callable(in.functions[name], args)
		}
		return harmless, false
	}
	// Overloads are chosen by their types among all schemas of the path.
	return callable(s.functions[name], args)
}

// callable is Function for the functions of one name.
func callable(overloads []function, args int) (u Use, found bool) {
	u = harmless
	for i := range overloads {
		f := &overloads[i]
		if args < 0 || int(f.min) <= args && args <= int(f.max) {
			found = true
			u = u.or(f.Use)
		}
	}
	return u, found
}

// Type looks a type up, and returns what a conversion to it means.
func (s *Set) Type(schema, name string) (u Use, found bool) {
	t, found := s.typ(schema, name)
	return t.convert, found
}

// Constant looks a type up, and returns what a constant of it means, which is read from a
// string: no value of another type is converted. What reads the string may need company of
// its own kind, as a conversion does.
func (s *Set) Constant(schema, name string) (u Use, found bool) {
	t, found := s.typ(schema, name)
	t.value.Company = min(t.value.Company, t.convert.Company)
	return t.value, found
}

func (s *Set) typ(schema, name string) (u typeUse, found bool) {
	if schema != "" {
		if in := s.schemas[schema]; in != nil {
			return in.typ(name)
		}
		return typeUse{harmless, harmless}, false
	}
	for _, in := range s.path {
		if u, found = in.typ(name); found {
			return u, true
		}
	}
	return typeUse{harmless, harmless}, false
}

func (in *schema) typ(name string) (u typeUse, found bool) {
	if u, found = in.types[name]; found {
		return u, true
	}
	if r, ok := in.relations[name]; ok {
		return r.row, true
	}
	// Arrays of rows are not listed. Their names are those of the rows behind an
	// underscore, if that was free.
	if row, ok := strings.CutPrefix(name, "_"); ok {
		if r, ok := in.relations[row]; ok {
			return r.row, true
		}
	}
	return typeUse{harmless, harmless}, false
}

// AnyType returns what a conversion to the types of that name in any schema means.
func (s *Set) AnyType(name string) Use {
	if u, ok := s.types[name]; ok {
		return u
	}
	return harmless
}

// Operator looks up the operators with that symbol, built-in ones too.
func (s *Set) Operator(schema, symbol string) (u Use, found bool) {
	if schema != "" {
		u = harmless
		if schema == "pg_catalog" {
			if c, ok := s.builtin[symbol]; ok {
				u, found = s.builtinOperator(symbol, c), true
			}
		}
		if in := s.schemas[schema]; in != nil {
			if v, ok := in.operators[symbol]; ok {
				u, found = u.or(v), true
			}
		}
		return u, found
	}
	u, found = s.operators[symbol]
	return u, found
}

// Attribute returns what functions that x.name can call mean: row if x is a row,
// value if it is anything else. conversion is what AnyType returns. Built-in
// functions do not count.
func (s *Set) Attribute(name string) (row, value, conversion Use) {
	if a, ok := s.attributes[name]; ok {
		return a.row, a.value, a.conversion
	}
	return harmless, harmless, harmless
}

// merge fills in what follows from the rest.
func (s *Set) merge() {
	s.functions = map[string][]function{}
	s.operators = map[string]Use{}
	s.attributes = map[string]attribute{}
	for symbol, c := range s.builtin {
		s.operators[symbol] = s.builtinOperator(symbol, c)
	}
	for _, in := range s.path {
		for name, overloads := range in.functions {
			for _, f := range overloads {
				if f.hidden {
					f.Company = Joined
				}
				f.Use = f.paired()
				s.functions[name] = append(s.functions[name], f)
			}
		}
		for symbol, u := range in.mixed {
			add(s.operators, symbol, u)
		}
		for name, u := range in.unary {
			a := s.attribute(name)
			a.row, a.value = a.row.or(u.row), a.value.or(u.value)
			s.attributes[name] = a
		}
	}
	for name, u := range s.types {
		a := s.attribute(name)
		a.conversion = u
		s.attributes[name] = a
	}
}

func (s *Set) builtinOperator(symbol string, c Company) Use {
	u := Use{Company: c}
	if symbol == "||" {
		u.Needs = s.textBits
	}
	return u
}

func (s *Set) attribute(name string) attribute {
	if a, ok := s.attributes[name]; ok {
		return a
	}
	return attribute{unary{harmless, harmless}, harmless}
}

// or returns the worst of two.
func (u Use) or(v Use) Use {
	return Use{worse(u.Fault, v.Fault), min(u.Company, v.Company), u.Has | v.Has, u.Needs | v.Needs}
}

// add makes a name mean u, too.
func add(uses map[string]Use, name string, u Use) {
	if v, ok := uses[name]; ok {
		u = v.or(u)
	}
	uses[name] = u
}

// worse returns the fault that does more.
func worse(f, g *Fault) *Fault {
	if f == nil || g != nil && g.Class > f.Class {
		return g
	}
	return f
}
