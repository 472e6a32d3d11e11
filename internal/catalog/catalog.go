// Package catalog knows PostgreSQL's built-in functions and system views: what a
// statement that mentions one of them may do, judged by name alone.
//
// The lists are generated from running servers (see gen) and never edited by
// hand; decisions that pg_proc cannot express are in the generator, each with
// its reason. A name that is not listed is Unknown, and Unknown is unsafe.
package catalog

import (
	"fmt"
	"strings"
)

//go:generate go run ./gen

// A Class says what calling a function of some name may do. Overloads share
// their name's class, which is that of the worst of them.
type Class uint8

// The classes. The zero value is the unsafe one.
const (
	Unknown      Class = iota // not a built-in: a user's function, or newer than the list
	Safe                      // same answer for every pristine session at one moment
	Private                   // only reads, but the answer belongs to the caller's own session or moment
	NeutralWrite              // others can see its effect; the session is left as it was
	Denied                    // may change the session, or runs SQL or code named by its arguments
)

var classNames = [...]string{"unknown", "safe", "private", "neutral-write", "denied"}

func (c Class) String() string {
	if int(c) < len(classNames) {
		return classNames[c]
	}
	return fmt.Sprintf("Class(%d)", uint8(c))
}

// A Company says with what the execution of a read may share a connection at a
// time. The zero value is the safe one.
type Company uint8

// The companies.
const (
	// Alone: nothing. It has a connection to itself, with the settings that the
	// application gave it.
	Alone Company = iota
	// Apart: others may be sent in the same write, but it has an implicit
	// transaction of its own. The connection may have short timeouts.
	Apart
	// Joined: others may be in one implicit transaction with it.
	Joined
)

var companyNames = [...]string{"alone", "apart", "joined"}

func (c Company) String() string {
	if int(c) < len(companyNames) {
		return companyNames[c]
	}
	return fmt.Sprintf("Company(%d)", uint8(c))
}

// An Info is what is known about a built-in function's name.
type Info struct {
	Class    Class
	Volatile bool // an overload is declared VOLATILE
	Since    int  // first major version that has it; Oldest if that one has it
	Company  Company
}

// Function returns the class of the built-in functions called name, in any
// server version that the list covers. The name is compared as the server
// would after folding and decoding: exactly.
func Function(name string) Class {
	return builtin(name).Class
}

// Attribute returns the class of the built-in functions that x.name can call: those that
// can take one argument. It is Unknown if there are none, or only Safe ones.
func Attribute(name string) Class {
	if !unaryDenied(name) {
		return Unknown
	}
	switch class := Function(name); {
	case class == Safe:
		return Unknown
	case class == Unknown && strings.HasPrefix(name, "binary_upgrade_"): // minor versions bring new ones
		return Denied
	default:
		return class
	}
}

// unaryDenied reports whether a built-in function called name may be one that is
// not Safe and takes one argument. All names with the prefixes are looked up;
// nobody gives them to columns.
func unaryDenied(name string) bool {
	if len(name) > 3 && name[2] == '_' {
		switch name[:3] {
		case "pg_", "lo_", "ts_":
			return true
		}
	}
	switch name {
	case "nextval", "currval", "setseed", "current_setting", "txid_status", "mxid_age", "random_normal", "uuidv7",
		"array_shuffle", "amvalidate", "brin_summarize_new_values", "gin_clean_pending_list", "interval_avg",
		"fmgr_c_validator", "fmgr_internal_validator", "fmgr_sql_validator", "plpgsql_validator":
		return true
	}
	return strings.HasPrefix(name, "binary_upgrade_")
}

// Lookup returns all that is known about the built-in functions called name.
func Lookup(name string) Info {
	return builtin(name)
}

// SessionView reports whether name is a system view whose rows depend on the
// session that asks, on settings or on server statistics, so that no two
// callers may share them.
func SessionView(name string) bool {
	// Every listed name starts with pg_ (a test holds the list to it), and so do
	// the views of the statistics extensions, which no server lists.
	if !strings.HasPrefix(name, "pg_") {
		return false
	}
	return sessionView(name) || strings.HasPrefix(name, "pg_stat_") || strings.HasPrefix(name, "pg_statio_")
}

// ServerSetting reports whether all sessions of a server have one value of a setting,
// whatever they and their roles have set: its contexts in pg_settings say so. The name is
// not folded.
func ServerSetting(name string) bool { return serverSetting(strings.ToLower(name)) }
