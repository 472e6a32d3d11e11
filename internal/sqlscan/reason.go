package sqlscan

import "fmt"

// A Class says where a statement may run. The zero value is the unsafe one.
type Class uint8

const (
	// Other may write and may change the session: utility statements, unknown
	// functions, several statements, and all that is not understood.
	Other Class = iota
	// Read is one plain read; as far as the text tells it may be shared.
	Read
	// PrivateRead only reads and leaves the session as it was, but its answer
	// belongs to the caller's own session.
	PrivateRead
	// Write changes data or takes row locks, and leaves the session as it was.
	Write
)

var classNames = [...]string{"other", "read", "private-read", "write"}

func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return fmt.Sprintf("Class(%d)", uint8(c))
}

// Worse reports whether c must win over d when one statement earns both.
func (c Class) Worse(d Class) bool {
	return d != Other && (c == Other || c > d)
}

// A Reason says why a statement is not a Read.
type Reason uint8

const (
	None              Reason = iota // it is a Read
	Empty                           // no statement at all
	Syntax                          // not understood
	SeveralStatements               // more than one statement
	NotARead                        // utility command, DDL, transaction control
	WriteStatement                  // INSERT, UPDATE, DELETE, MERGE
	ModifyingCTE                    // one of these inside WITH
	Into                            // SELECT INTO creates a table
	RowLock                         // FOR UPDATE and its like
	TableSample                     // TABLESAMPLE without REPEATABLE
	VolatileFunction                // built-in with a new answer for every call, or an effect
	DeniedFunction                  // built-in that depends on the session or the server, or can change it
	UnknownFunction                 // not a built-in
	UnknownOperator                 // OPERATOR(schema.op) outside pg_catalog
	SessionView                     // system view of the session or of server statistics
	TempSchema                      // pg_temp
	EscapedName                     // U&"…" called, or with UESCAPE

	// What only a catalog tells; Scan itself never gives these.
	CatalogUnavailable // names that no catalog was there to ask about
	UnknownRelation    // not there when the catalog was read
	UnknownType        // likewise
	RowSecurity        // row-level security, on the relation or below a view
	ForeignTable       // read from elsewhere, outside the snapshot
	SequenceRelation   // a sequence read like a table
	UnsafeView         // reaches something that must not be shared
	UnsafeTable        // likewise, through its columns' types, partitions, policies or indexes
	UnsafeFunction     // a user's function: volatile, a procedure, or with arguments of an unsafe type
	UnsafeOperator     // bound to such a function
	UnsafeType         // whose checks, conversions or comparisons call such a function
	UnsafeCast         // one between built-in types by such a function
)

var reasonNames = [...]string{
	"none", "empty", "syntax", "several-statements", "not-a-read", "write", "modifying-cte",
	"into", "row-lock", "tablesample", "volatile-function", "denied-function", "unknown-function",
	"unknown-operator", "session-view", "temp-schema", "escaped-name",
	"catalog-unavailable", "unknown-relation", "unknown-type", "row-security", "foreign-table", "sequence",
	"unsafe-view", "unsafe-table", "unsafe-function", "unsafe-operator", "unsafe-type", "unsafe-cast",
}

func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}
