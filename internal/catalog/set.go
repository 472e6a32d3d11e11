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
	schemas  map[string]*schema
	builtin  map[string]struct{} // symbols of built-in operators
	types    map[string]*Fault   // unsafe types of any schema
	anything *Fault              // what makes every statement unsafe

	// What unqualified names can mean where the schemas of the path do not hide
	// each other. It follows from the above, and saves a look at each schema.
	functions  map[string][]function
	operators  map[string]*Fault // built-in ones too
	attributes map[string]attribute
}

type schema struct {
	relations map[string]relation // composite types too: they share the name space
	types     map[string]*Fault   // all but the row types of relations; nil if safe
	functions map[string][]function
	operators map[string]*Fault // the worst of each symbol; nil if safe
	unary     map[string]unary
}

type relation struct {
	kind   byte   // pg_class.relkind
	fault  *Fault // of reading it
	policy *Fault // row-level security applies to it or below it
	row    *Fault // of naming its row type
}

type function struct {
	fault    *Fault
	min, max int16 // numbers of arguments it can be called with
}

// unary is what is wrong with the functions of a name that take one argument.
type unary struct {
	row   *Fault // of those that may take a row of a table
	value *Fault // of the others
}

// attribute is what is wrong with what x.name can mean.
type attribute struct {
	unary
	conversion *Fault // of x to a type of that name in any schema
}

const anyNumber = 1 << 14 // of arguments: more than a call can have

// A Fault says why something must not be shared.
type Fault struct {
	Cause  Cause
	Object string // what is at fault, which a view or type may reach through others
	Class  Class  // what it does at worst: Private, NeutralWrite, or Denied if that is not known
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
)

// Version returns the server's major version.
func (s *Set) Version() int { return s.version }

// Everything returns what makes every statement of the database unsafe, such as
// an implicit cast between built-in types by a volatile function, or nil.
func (s *Set) Everything() *Fault { return s.anything }

// A Relation is what is known about a table, view or the like.
type Relation struct {
	View   bool
	Fault  *Fault // nil if it may be read
	Policy *Fault // nil if no row-level security applies
}

// Relation looks a table, view or the like up; schema is "" for an unqualified
// name. It reports false if there is none.
func (s *Set) Relation(schema, name string) (Relation, bool) {
	r, ok := s.relation(schema, name)
	if !ok || r.kind == 'c' {
		return Relation{}, false
	}
	return Relation{View: r.kind == 'v', Fault: r.fault, Policy: r.policy}, true
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
// any number if args is -1, can mean. It returns what is wrong with one of them,
// and reports whether there are any. Built-ins are not found.
func (s *Set) Function(schema, name string, args int) (fault *Fault, found bool) {
	if schema != "" {
		if in := s.schemas[schema]; in != nil {
			return callable(in.functions[name], args)
		}
		return nil, false
	}
	// Overloads are chosen by their types among all schemas of the path.
	return callable(s.functions[name], args)
}

// callable is Function for the functions of one name.
func callable(overloads []function, args int) (fault *Fault, found bool) {
	for _, f := range overloads {
		if args < 0 || int(f.min) <= args && args <= int(f.max) {
			found = true
			fault = worse(fault, f.fault)
		}
	}
	return fault, found
}

// Type looks a type up, and returns what is wrong with a conversion to it.
func (s *Set) Type(schema, name string) (fault *Fault, found bool) {
	if schema != "" {
		if in := s.schemas[schema]; in != nil {
			return in.typ(name)
		}
		return nil, false
	}
	for _, in := range s.path {
		if fault, found = in.typ(name); found {
			return fault, true
		}
	}
	return nil, false
}

func (in *schema) typ(name string) (fault *Fault, found bool) {
	if fault, found = in.types[name]; found {
		return fault, true
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
	return nil, false
}

// UnsafeType returns what is wrong with the types of that name in any schema.
func (s *Set) UnsafeType(name string) *Fault {
	if len(s.types) == 0 {
		return nil
	}
	return s.types[name]
}

// Operator looks up the operators with that symbol, built-in ones too, and
// returns what is wrong with one of them.
func (s *Set) Operator(schema, symbol string) (fault *Fault, found bool) {
	if schema != "" {
		if schema == "pg_catalog" {
			_, found = s.builtin[symbol]
		}
		if in := s.schemas[schema]; in != nil {
			f, ok := in.operators[symbol]
			return f, found || ok
		}
		return nil, found
	}
	fault, found = s.operators[symbol]
	return fault, found
}

// Attribute returns what is wrong with functions that x.name can call: row if x
// is a row, value if it is anything else. conversion is what UnsafeType returns.
func (s *Set) Attribute(name string) (row, value, conversion *Fault) {
	a := s.attributes[name]
	return a.row, a.value, a.conversion
}

// merge fills in what follows from the rest.
func (s *Set) merge() {
	s.functions = map[string][]function{}
	s.operators = map[string]*Fault{}
	s.attributes = map[string]attribute{}
	for symbol := range s.builtin {
		s.operators[symbol] = nil
	}
	for _, in := range s.path {
		for name, overloads := range in.functions {
			s.functions[name] = append(s.functions[name], overloads...)
		}
		for symbol, f := range in.operators {
			s.operators[symbol] = worse(s.operators[symbol], f)
		}
		for name, u := range in.unary {
			a := s.attributes[name]
			a.row, a.value = worse(a.row, u.row), worse(a.value, u.value)
			s.attributes[name] = a
		}
	}
	for name, f := range s.types {
		a := s.attributes[name]
		a.conversion = f
		s.attributes[name] = a
	}
}

// worse returns the fault that does more.
func worse(f, g *Fault) *Fault {
	if f == nil || g != nil && g.Class > f.Class {
		return g
	}
	return f
}
