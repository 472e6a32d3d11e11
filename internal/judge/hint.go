package judge

import (
	"fmt"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// Hint says in one sentence what was found and what would change the verdict, as
// far as the catalog layer knows. It is empty for what the text layer decided, but for
// settings.
func (v *Verdict) Hint() string {
	if v.Layer != Catalog {
		switch {
		case v.Reason == sqlscan.DeniedFunction && v.Name == "current_setting", v.Reason == sqlscan.SessionView && v.Name == "pg_settings":
			return "a setting is shared as current_setting('name'), if no session can have its own value of it, like server_version or max_connections"
		}
		return ""
	}
	switch v.Reason {
	case sqlscan.CatalogUnavailable:
		return "the database's catalog could not be read, so what " + v.Name + " does is not known"
	case sqlscan.UnknownRelation, sqlscan.UnknownType, sqlscan.UnknownFunction, sqlscan.UnknownOperator:
		return v.Name + " was not in the search_path when the catalog was read; if it is new, the next reading finds it"
	}
	f := v.fault
	if f == nil {
		return ""
	}
	subject := ""
	if f.Object != v.Name {
		subject = v.Name + " reaches "
	}
	switch f.Cause {
	case catalog.Volatile:
		return subject + volatile(f, subject != "")
	case catalog.MayWrite:
		return fmt.Sprintf("%sfunction %s could write, or run SQL from a string, by its body: if it only reads, whatever its arguments, set flight_trust_declared=on", subject, f.Object)
	case catalog.Dangerous:
		return fmt.Sprintf("%sbuilt-in function %s, whose answer belongs to one call or session, or which has an effect", subject, f.Object)
	case catalog.Misdeclared:
		return fmt.Sprintf("%sfunction %s of an extension, which is declared STABLE or IMMUTABLE, but has an effect, or an answer that belongs to one call, session or moment", subject, f.Object)
	case catalog.Elsewhere:
		return fmt.Sprintf("%sfunction %s, whose answer comes from other programs, which no snapshot of this database covers", subject, f.Object)
	case catalog.RunsSQL:
		return fmt.Sprintf("%sfunction %s runs SQL from a string, or reads what an argument names", subject, f.Object)
	case catalog.RowSecurity:
		return fmt.Sprintf("%stable %s has row-level security: what a read sees depends on who asks", subject, f.Object)
	case catalog.Foreign:
		return fmt.Sprintf("%sforeign table %s, which no snapshot of this database covers", subject, f.Object)
	case catalog.Sequence:
		return fmt.Sprintf("%ssequence %s, which no snapshot covers", subject, f.Object)
	case catalog.SystemView:
		return fmt.Sprintf("%s%s, which shows a session, its settings or the server's statistics", subject, f.Object)
	case catalog.Locks:
		return "view " + v.Name + " locks rows, or is over one that does"
	case catalog.Writes:
		return "view " + v.Name + " writes, or is over one that does"
	case catalog.Samples:
		return "view " + v.Name + " has TABLESAMPLE without REPEATABLE, or is over one that does"
	}
	return ""
}

// volatile says what is known of a volatile function beside its declaration. reached: by
// what the sentence has begun with.
func volatile(f *catalog.Fault, reached bool) string {
	function := fmt.Sprintf("function %s is volatile", f.Object)
	if reached {
		function = fmt.Sprintf("function %s, which is volatile", f.Object)
	}
	switch {
	case len(f.Alter) > 0:
		hint := function + ", as functions are if nothing is declared, but by its body only reads; " +
			"declared STABLE, it does so by the snapshot of the statement that calls it, and is shared"
		for i, signature := range f.Alter {
			hint = fmt.Sprintf("%s%c ALTER FUNCTION %s STABLE", hint, ":;"[min(i, 1)], signature)
		}
		return hint
	case f.Why == nil:
		return function + ", and has no body that flightpg can read"
	}
	return function + ", and " + does(f.Why, f.Object)
}

// does says what a function does at worst.
func does(why *catalog.Fault, function string) string {
	switch why.Cause {
	case catalog.MayWrite:
		const what = "could write, or run SQL from a string"
		if why.Object != function {
			return fmt.Sprintf("reaches function %s, which %s", why.Object, what)
		}
		return "by its body " + what
	case catalog.Dangerous:
		return "reaches built-in function " + why.Object
	case catalog.Locks, catalog.Writes, catalog.Samples:
		return "reaches a view that does more than read"
	}
	return "reaches " + why.Object
}
