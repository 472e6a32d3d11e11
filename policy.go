package flightpg

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/flight"
	"github.com/flightpg/flightpg/internal/judge"
	"github.com/flightpg/flightpg/internal/pipeline"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// Mode says which flights a read may join, and so how old its rows may be.
type Mode uint8

const (
	// ModeFenced lets a read join a flight that is not dispatched, or that was
	// dispatched after everything that had been written through this process
	// when the read began. It gives read-your-writes for all writes made
	// through flightpg in this process, and each value is at most one flight
	// old. The default.
	ModeFenced Mode = iota
	// ModeStrict lets a read join only a flight that is not dispatched yet:
	// the rows are exactly what the read could have got by itself, whoever
	// writes and from wherever.
	ModeStrict
	// ModeJoin lets a read join any flight of its key, as singleflight does.
	// A read may miss the caller's own last write.
	ModeJoin
	// ModeOff coalesces nothing: plain pgx.
	ModeOff
)

var modeNames = [...]string{ModeFenced: "fenced", ModeStrict: "strict", ModeJoin: "join", ModeOff: "off"}

// String returns the mode's name as in the flight_mode parameter.
func (m Mode) String() string {
	if int(m) < len(modeNames) {
		return modeNames[m]
	}
	return fmt.Sprintf("Mode(%d)", uint8(m))
}

// ParseMode returns the mode of that name: fenced, strict, join or off.
func ParseMode(name string) (Mode, error) {
	for m, n := range modeNames {
		if n == name {
			return Mode(m), nil
		}
	}
	return 0, fmt.Errorf("flightpg: %q is not a mode: use %s", name, strings.Join(modeNames[:], ", "))
}

func (m Mode) rule() flight.Rule {
	switch m {
	case ModeStrict:
		return flight.Strict
	case ModeJoin:
		return flight.Join
	default:
		return flight.Fenced
	}
}

type modeKey struct{}

// WithMode returns a context whose reads use mode m, whatever the connector's
// default is.
func WithMode(ctx context.Context, m Mode) context.Context {
	return context.WithValue(ctx, modeKey{}, m)
}

func (c *Connector) mode(ctx context.Context) Mode {
	if m, ok := ctx.Value(modeKey{}).(Mode); ok && m <= ModeOff {
		return m
	}
	return c.cfg.Mode
}

// Reason says why a query was not shared. Each is counted in [Stats].
type Reason uint8

// The reasons, in the order in which they are looked for.
const (
	// ReasonNone: the query may be shared.
	ReasonNone Reason = iota

	// ReasonModeOff: the mode in force is ModeOff.
	ReasonModeOff
	// ReasonSeveralHosts: the DSN names several hosts and does not say with
	// target_session_attrs=primary or read-write that all sessions go to one.
	ReasonSeveralHosts
	// ReasonHooks: what sets sessions up (a hook, a dialer, a connector) has asked
	// its caller's context who that is, or could have, and no Config.PartitionKey says
	// which contexts are alike; or there is one, and the read's own context is not that
	// of its sql.Conn, or of a type that is not the standard library's.
	ReasonHooks
	// ReasonSettings: standard_conforming_strings is off, or client_encoding is
	// one in which ASCII bytes are parts of other characters.
	ReasonSettings
	// ReasonNoGuard: the pooler before the server refuses transactions, so that
	// flights cannot be kept from writing.
	ReasonNoGuard
	// ReasonTransaction: in a transaction a read sees the transaction's own
	// writes and snapshot.
	ReasonTransaction
	// ReasonSession: the connection (a sql.Conn, or one whose session is
	// pinned) has a session of its own, whose state the read may depend on.
	ReasonSession

	// ReasonSyntax: the text is not understood, by PostgreSQL's lexical rules
	// or by flightpg.
	ReasonSyntax
	// ReasonEmpty: nothing but white space and comments.
	ReasonEmpty
	// ReasonSeveralStatements: more than one statement in one text.
	ReasonSeveralStatements
	// ReasonNotRead: not SELECT, VALUES, TABLE or WITH.
	ReasonNotRead
	// ReasonWrite: INSERT, UPDATE, DELETE or MERGE.
	ReasonWrite
	// ReasonModifyingCTE: a WITH query that writes.
	ReasonModifyingCTE
	// ReasonInto: SELECT INTO makes a table.
	ReasonInto
	// ReasonRowLock: FOR UPDATE, FOR SHARE and their like.
	ReasonRowLock
	// ReasonTableSample: TABLESAMPLE without REPEATABLE.
	ReasonTableSample
	// ReasonVolatileFunction: a built-in that gives each call its own answer,
	// or that has an effect.
	ReasonVolatileFunction
	// ReasonDeniedFunction: a built-in that depends on its session, its
	// transaction or the server's state, or that runs SQL from a string.
	ReasonDeniedFunction
	// ReasonUnknownFunction: a function that is not a known built-in.
	ReasonUnknownFunction
	// ReasonUnknownOperator: OPERATOR(schema.op) outside pg_catalog.
	ReasonUnknownOperator
	// ReasonEscapedName: a function called by a name in U&"…" escapes.
	ReasonEscapedName
	// ReasonSessionView: a system view that shows a session, its settings or
	// the server's statistics.
	ReasonSessionView
	// ReasonTempSchema: pg_temp is another schema in each session.
	ReasonTempSchema

	// ReasonCatalogUnavailable: the statement has names that only the catalog
	// can judge, and it could not be loaded in time.
	ReasonCatalogUnavailable
	// ReasonHookFailed: … and it cannot be loaded since a hook fails, or a connector or
	// dialer of the application's own, where a connection is opened for that.
	ReasonHookFailed
	// ReasonUnknownRelation: a table or view that was not there when the
	// catalog was loaded; it is loaded again soon.
	ReasonUnknownRelation
	// ReasonUnknownType: likewise, a type.
	ReasonUnknownType
	// ReasonRowSecurity: a table with row-level security that applies to the role, or
	// may apply where a view of another owner reads it, and Config.RLS is not set.
	ReasonRowSecurity
	// ReasonForeignTable: read from elsewhere, outside the snapshot.
	ReasonForeignTable
	// ReasonSequence: a sequence read like a table.
	ReasonSequence
	// ReasonUnsafeView: a view that reaches something that must not be shared.
	ReasonUnsafeView
	// ReasonUnsafeTable: a table that does, by its columns' types, its
	// partitions, policies or indexes.
	ReasonUnsafeTable
	// ReasonUnsafeFunction: a user's function that is volatile, or a procedure.
	ReasonUnsafeFunction
	// ReasonUnsafeOperator: an operator bound to such a function.
	ReasonUnsafeOperator
	// ReasonUnsafeType: a type whose checks, conversions or comparisons call
	// such a function.
	ReasonUnsafeType
	// ReasonUnsafeCast: a cast between built-in types by such a function.
	ReasonUnsafeCast

	// ReasonTooLong: the text is too long to be remembered (512 KiB), and so are a
	// verdict on it and what would be learned.
	ReasonTooLong

	// ReasonPgxOption: an argument is a pgx.QueryRewriter other than NamedArgs, or
	// one of those where pgx refuses it.
	ReasonPgxOption
	// ReasonArgument: an argument has no identity that could be compared (an
	// interface, a struct with unexported fields and no Value method, a Value method
	// that fails), or all together are over 1 MiB.
	ReasonArgument

	// ReasonRefused: the guard has stopped the statement, with these arguments or
	// with any: it writes, or turned the guard off, though it was taken for a read.
	ReasonRefused
	// ReasonOverflow: the result did not fit MaxResult, now or the last time that
	// the statement ran with these arguments, a moment ago (with any, if most of its
	// results were).
	ReasonOverflow
	// ReasonMemory: all flights together had reached Memory.
	ReasonMemory
	// ReasonStreamed: the read came when its flight's only caller had begun to
	// stream a large result.
	ReasonStreamed
	// ReasonUnshareable: the inner driver gave values, or several result sets,
	// that cannot be given to more than one caller.
	ReasonUnshareable
	// ReasonNoConnection: no connection was to be had for a flight, as readers of
	// large results hold all of them, or none can be opened; a session served.
	ReasonNoConnection

	reasonCount
)

var reasonNames = [reasonCount]string{
	ReasonNone:               "none",
	ReasonModeOff:            "mode-off",
	ReasonSeveralHosts:       "several-hosts",
	ReasonHooks:              "hooks",
	ReasonSettings:           "settings",
	ReasonNoGuard:            "no-guard",
	ReasonTransaction:        "transaction",
	ReasonSession:            "session",
	ReasonSyntax:             "syntax",
	ReasonEmpty:              "empty",
	ReasonSeveralStatements:  "several-statements",
	ReasonNotRead:            "not-a-read",
	ReasonWrite:              "write",
	ReasonModifyingCTE:       "modifying-cte",
	ReasonInto:               "into",
	ReasonRowLock:            "row-lock",
	ReasonTableSample:        "tablesample",
	ReasonVolatileFunction:   "volatile-function",
	ReasonDeniedFunction:     "denied-function",
	ReasonUnknownFunction:    "unknown-function",
	ReasonUnknownOperator:    "unknown-operator",
	ReasonEscapedName:        "escaped-name",
	ReasonSessionView:        "session-view",
	ReasonTempSchema:         "temp-schema",
	ReasonCatalogUnavailable: "catalog-unavailable",
	ReasonHookFailed:         "hook-failed",
	ReasonUnknownRelation:    "unknown-relation",
	ReasonUnknownType:        "unknown-type",
	ReasonRowSecurity:        "row-security",
	ReasonForeignTable:       "foreign-table",
	ReasonSequence:           "sequence",
	ReasonUnsafeView:         "unsafe-view",
	ReasonUnsafeTable:        "unsafe-table",
	ReasonUnsafeFunction:     "unsafe-function",
	ReasonUnsafeOperator:     "unsafe-operator",
	ReasonUnsafeType:         "unsafe-type",
	ReasonUnsafeCast:         "unsafe-cast",
	ReasonTooLong:            "too-long",
	ReasonPgxOption:          "pgx-option",
	ReasonArgument:           "argument",
	ReasonRefused:            "refused",
	ReasonOverflow:           "overflow",
	ReasonMemory:             "memory",
	ReasonStreamed:           "streamed",
	ReasonUnshareable:        "unshareable",
	ReasonNoConnection:       "no-connection",
}

// String returns the reason's name, as in the README's table and in JSON.
func (r Reason) String() string {
	if r < reasonCount {
		return reasonNames[r]
	}
	return fmt.Sprintf("Reason(%d)", uint8(r))
}

// MarshalText makes a Reason its name in JSON, as a key too.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// verdict is what is known of one SQL text. It is made once for each picture of
// the catalog and kept in the connector's cache; what is learned about the text
// later is kept with it.
type verdict struct {
	sql     string // the text
	judged  judge.Verdict
	gen     uint64 // of the picture of the catalog that it was judged by; 0: none
	path    string // where names were looked for by that; "": nowhere
	class   sqlscan.Class
	reason  Reason // ReasonNone: a read that may be shared
	effects effect
	keyed   string // the text as it stands in flight keys
	wants   bool   // judged without a catalog, which may say something else
	several bool   // there is more than one statement in it

	company   judge.Company // with what it may be executed
	relations []uint32      // the tables that it reads; see judge.Verdict.Relations

	// Under GuardTransaction: the types of parameters and columns, or nil.
	description atomic.Pointer[pgconn.StatementDescription]
	shape       atomic.Pointer[pipeline.Shape] // of its columns, which others may have too

	answered  atomic.Pointer[pipeline.Shape] // the columns of its last result, without the pipeline
	pipelined atomic.Pointer[pipeline.Stmt]  // what the pipeline knows of it, or nil
	params    atomic.Pointer[[]uint32]       // the types of its parameters, where they were asked for

	flown    atomic.Bool   // a flight has landed that the guard did not stop
	refused  atomic.Bool   // the guard has stopped it
	similar  atomic.Bool   // large arguments had the same samples, and were others
	numInput atomic.Int32  // of the prepared statement; shapeUnknown until known
	open     *atomic.Int32 // how many sql.Stmt of the text are; the same for its next verdict
	avoid    atomic.Int64  // Unix nanoseconds until which the text bypasses
	avoidWhy atomic.Uint32 // with that Reason

	exceptions atomic.Pointer[[]exception] // the oldest first; never changed, but replaced
	oddSince   atomic.Int64                // Unix nanoseconds since which are counted, or 0:
	odd        atomic.Uint32               // reads that became exceptions
	good       atomic.Uint32               // and those that were shared

	took     atomic.Int64  // how long its last flight took, see learnTime; 0: not known
	alone    aloneness     // of its reads
	unshared atomic.Uint32 // large results in a row that a single caller has read

	hash      uint64                // of the text in the cache
	size      int                   // bytes that it counts there; guarded by the shard's lock
	described [describedSources]int // bytes in it of what describes the statement; likewise
}

const shapeUnknown = -2 // -1 is database/sql's "do not check"

// effect is what a statement may do to its session and to the database, beside
// changing rows.
type effect uint8

const (
	// effectPins: the statement says that it changes the session's state (SET, a
	// temporary table), and the caller may count on it. Its connection keeps the
	// session for life.
	effectPins effect = 1 << iota
	// effectCloses: it ran code that may have changed the session's state (functions
	// of somebody's, DO, CALL; DDL evaluates expressions and fires event triggers),
	// but says nothing of it, so nobody counts on that once the session is given
	// back. It is cleaned before it serves others, see clean.go.
	effectCloses
	// effectDDL: the catalog may be another one.
	effectDDL
	// effectMaybeDDL: likewise, but seldom: DO, CALL, functions that nobody knows.
	// The catalog is loaded again in the background.
	effectMaybeDDL
	// effectLocks: the session may hold advisory locks, which the server can be
	// asked for. Until it holds none, its connection keeps it.
	effectLocks
	// effectTx: it begins or ends a transaction by text. Whether one is open the
	// protocol tells; pinned only where the inner driver is another one.
	effectTx
	// effectKeeps is effectPins for what cannot matter to a read that may be shared:
	// LISTEN, PREPARE and their like.
	effectKeeps
)

// effects says what a text that was judged as j may do, if it is not known to
// leave the session as it was, and whether it is several statements.
func (r rules) effects(sql string, j judge.Verdict, set *catalog.Set) (e effect, several bool) {
	if j.Class != sqlscan.Other {
		return 0, false
	}
	n := 0
	ok := sqlscan.Commands(sql, func(c sqlscan.Command) bool {
		n++
		e |= commandEffects(c, func() effect {
			if len(c.Text) != len(sql) {
				j = judge.Judge(c.Text, set, r.options())
			}
			return r.queryEffects(c.Text, j, set)
		}, func(text string) effect {
			return r.queryEffects(text, judge.Judge(text, set, r.options()), set)
		})
		return true
	})
	if !ok {
		e |= effectPins | effectMaybeDDL
	}
	return e, n != 1
}

// queryEffects is for statements that are judged: queries, INSERT and so on.
func (r rules) queryEffects(sql string, j judge.Verdict, set *catalog.Set) effect {
	switch {
	case j.Class != sqlscan.Other:
		return 0
	case j.Reason == sqlscan.UnknownRelation, j.Reason == sqlscan.UnknownType:
		return effectCloses // for as long as the name is new
	case j.Reason == sqlscan.CatalogUnavailable && sqlscan.Scan(sql).Class != sqlscan.Other:
		return 0 // names are taken at their word
	case j.Reason == sqlscan.SessionView: // UPDATE pg_settings
		return effectPins
	case j.Reason == sqlscan.Into && containsFold(sql, "temp"):
		return effectPins
	}
	open, rest := openCalls(sql, set)
	if rest != sql {
		if j = judge.Judge(rest, set, r.options()); j.Class != sqlscan.Other {
			return open
		}
	}
	open |= effectCloses
	if j.Layer == judge.Catalog || j.Reason == sqlscan.UnknownFunction {
		open |= effectMaybeDDL // a function of somebody's can do anything
	}
	return open
}

// openCalls says what the calls of built-ins in a query do to its session, of those that
// are there to do something to one, and returns the query with functions in their place
// that leave it as it was.
func openCalls(sql string, set *catalog.Set) (e effect, rest string) {
	var at [][2]int // where such functions' names begin and end
	sqlscan.Names(sql, func(n sqlscan.Name) bool {
		if n.Kind != sqlscan.FunctionName || n.Schema != "" && n.Schema != "pg_catalog" {
			return true
		}
		if set != nil && n.Schema == "" {
			if u, users := set.Function("", n.Name, n.Args); users || u.Fault != nil {
				return true // it may be a user's
			}
		}
		does, known := sessionCall(n.Name)
		if n.Name == "set_config" && known && strings.EqualFold(sqlscan.LastArgument(sql[n.Pos:]), "true") {
			does = 0 // SET LOCAL
		}
		if known && strings.HasPrefix(sql[n.Pos:], n.Name) { // else nobody writes it so
			at = append(at, [2]int{n.Pos, n.Pos + len(n.Name)})
		}
		e |= does
		return true
	})
	if len(at) == 0 {
		return e, sql
	}
	slices.SortFunc(at, func(a, b [2]int) int { return a[0] - b[0] })
	var b strings.Builder
	end := 0
	for _, name := range at {
		b.WriteString(sql[end:name[0]])
		b.WriteString("pg_advisory_xact_lock")
		end = name[1]
	}
	b.WriteString(sql[end:])
	return e, b.String()
}

// sessionCall says what a call of a built-in does to its session, as far as that is
// known of one that the scanner denies. Large objects are open for a transaction.
func sessionCall(name string) (does effect, known bool) {
	switch name {
	case "pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock", "pg_try_advisory_lock_shared",
		"pg_advisory_unlock", "pg_advisory_unlock_shared", "pg_advisory_unlock_all":
		return effectLocks, true
	case "set_config", "setseed", "pg_backup_start", "pg_replication_origin_session_setup":
		return effectPins, true
	case "lo_close", "lo_creat", "lo_create", "lo_export", "lo_from_bytea", "lo_get", "lo_import", "lo_lseek", "lo_lseek64",
		"lo_open", "lo_put", "lo_tell", "lo_tell64", "lo_truncate", "lo_truncate64", "lo_unlink", "loread", "lowrite",
		"pg_cancel_backend", "pg_terminate_backend":
		return 0, true
	}
	return 0, false
}

// containsFold reports whether a text contains a word in lower case, in any case.
func containsFold(text, word string) bool { return strings.Contains(strings.ToLower(text), word) }

// commandEffects judges one statement by its first words; query judges those
// that are no commands, and within queries in others. What is not listed may do anything.
func commandEffects(c sqlscan.Command, query func() effect, within func(string) effect) effect {
	first, second, third := c.Words[0], c.Words[1], c.Words[2]
	switch first {
	case "create", "alter", "drop", "import":
		kind := second
		if second == "or" { // REPLACE
			kind = c.Words[3]
		}
		switch kind {
		case "temp", "temporary", "local", "global":
			if first == "create" && sqlscan.Behind(c.Text, "on", "commit", "drop") > 0 {
				return effectCloses
			}
			return effectPins
		}
		if strings.Contains(strings.ToLower(c.Text), "pg_temp") {
			return effectPins
		}
		return effectCloses | effectDDL
	case "grant", "revoke": // also of roles, whose members row-level security may not apply to
		return effectCloses | effectMaybeDDL
	case "reassign":
		return effectCloses | effectDDL
	case "truncate", "comment", "analyze", "vacuum", "reindex", "cluster", "refresh":
		return effectCloses
	case "set":
		switch second {
		case "local", "transaction", "constraints": // end with the transaction
			return 0
		case "application_name":
			return effectKeeps
		}
		return effectPins
	case "load", "use": // the latter is other databases'
		return effectPins
	case "listen":
		return effectKeeps
	case "prepare":
		if second == "transaction" {
			return effectTx
		}
		return effectKeeps
	case "declare":
		if i := cmp.Or(sqlscan.Behind(c.Text, "cursor", "for"), sqlscan.Behind(c.Text, "cursor", "without", "hold", "for")); i > 0 {
			return within(c.Text[i:])
		}
		return effectKeeps | effectCloses // WITH HOLD
	case "explain":
		if planned := plannedOnly(c.Text); planned != "" {
			// For the plan functions are called that are STABLE, or say so.
			return within(planned) & (effectCloses | effectMaybeDDL)
		}
		return effectCloses | effectMaybeDDL
	case "savepoint", "release", "lock", "notify", "unlisten", "checkpoint", "fetch", "move", "close", "show":
		return 0
	case "rollback":
		if second == "to" || (second == "work" || second == "transaction") && third == "to" {
			return 0
		}
		return effectTx
	case "begin", "start", "commit", "end", "abort":
		return effectTx
	case "do", "call":
		return effectCloses | effectMaybeDDL
	case "select", "values", "table", "with", "insert", "update", "delete", "merge", "":
		return query()
	}
	return effectCloses
}

// plannedOnly returns the statement that EXPLAIN does not execute, "" if it may.
func plannedOnly(explain string) string {
	rest := strings.TrimLeft(explain[sqlscan.Behind(explain, "explain"):], " \t\r\n")
	options, statement, _ := strings.Cut(rest, ")")
	if !strings.HasPrefix(rest, "(") || strings.TrimSpace(statement) == "" || strings.Contains(options[1:], "(") {
		options, statement, _ = strings.Cut(rest, " ") // a word, or the statement begins
		if !strings.EqualFold(options, "verbose") {
			statement = rest
		}
	}
	if containsFold(options, "analy") || containsFold(statement[:min(len(statement), len("analyze "))], "analy") { // ANALYSE, too
		return ""
	}
	return statement
}

// leavesSession reports whether a session is the same after the statement as
// before it, so that it may serve others.
func (v *verdict) leavesSession() bool { return v.effects == 0 }

// writes reports whether the statement may change what others read.
func (v *verdict) writes() bool { return v.class == sqlscan.Write || v.class == sqlscan.Other }

// rules are what a connector judges texts by, beside the catalog.
type rules struct {
	ignoreComments bool
	rls            bool
	noCatalog      bool                           // there is none to be had: names are taken at their word
	trusted        func(schema, name string) bool // likewise, those of relations; nil: of none
}

func (r rules) options() judge.Options {
	return judge.Options{RLS: r.rls, TrustNames: r.noCatalog, Trusted: r.trusted}
}

func (r rules) judge(sql string, by *loaded) *verdict {
	var set *catalog.Set
	if by != nil {
		set = by.set
	}
	tooLong := len(sql) > maxText
	if !tooLong {
		sql = strings.Clone(sql) // a text cut from a larger one must not keep that alive
	}
	j := judge.Judge(sql, set, r.options())
	v := &verdict{sql: sql, judged: j, gen: by.generation(), class: j.Class, reason: reasonOf(j.Result), keyed: sql}
	v.effects, v.several = r.effects(sql, j, set)
	v.company, v.relations = j.Company, j.Relations
	if set != nil {
		v.path = set.Path()
	}
	if set == nil && !r.noCatalog {
		switch v.reason {
		case ReasonCatalogUnavailable, ReasonUnknownFunction, ReasonUnknownOperator, ReasonUnknownRelation, ReasonUnknownType:
			v.wants = true
		}
	}
	if tooLong && (v.reason == ReasonNone || v.wants) {
		v.reason, v.wants = ReasonTooLong, false
	}
	if r.ignoreComments && (v.reason == ReasonNone || v.wants) { // the same one by any picture of the catalog
		v.keyed = string(sqlscan.StripComments(nil, sql))
	}
	v.numInput.Store(shapeUnknown)
	v.open = new(atomic.Int32)
	v.size = verdictSize + len(sql)
	if len(v.keyed) != len(sql) {
		v.size += len(v.keyed)
	}
	return v
}

// verdictSize is what a verdict takes beside its texts and what is learned of its
// columns, in bytes: with its entry in a map, what the pipeline knows of it, and its
// exceptions.
const verdictSize = 1536

// reasonOf translates the scanner's reason: the two packages give them the same
// names.
func reasonOf(r sqlscan.Result) Reason {
	if r.Class == sqlscan.Read {
		return ReasonNone
	}
	if why, ok := reasonByName[r.Reason.String()]; ok && why != ReasonNone {
		return why
	}
	return ReasonSyntax
}

var reasonByName = func() map[string]Reason {
	m := make(map[string]Reason, reasonCount)
	for r := range reasonCount {
		m[reasonNames[r]] = r
	}
	return m
}()
