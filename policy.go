package flightpg

import (
	"context"
	"fmt"
	"hash/maphash"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

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
	// ReasonHooks: hooks set sessions up from the context, and no
	// Config.PartitionKey says which contexts are alike.
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
	// ReasonUnknownRelation: a table or view that was not there when the
	// catalog was loaded; it is loaded again soon.
	ReasonUnknownRelation
	// ReasonUnknownType: likewise, a type.
	ReasonUnknownType
	// ReasonRowSecurity: a table with row-level security, and Config.RLS is not
	// set.
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
	class   sqlscan.Class
	reason  Reason // ReasonNone: a read that may be shared
	effects effect
	keyed   string // the text as it stands in flight keys
	wants   bool   // judged without a catalog, which may say something else
	several bool   // there is more than one statement in it

	// Under GuardTransaction: the types of parameters and columns, or nil.
	description atomic.Pointer[pgconn.StatementDescription]

	pipelined atomic.Pointer[pipeline.Stmt] // what the pipeline knows of it, or nil
	params    atomic.Pointer[[]uint32]      // the types of its parameters, where they were asked for

	flown    atomic.Bool   // a flight has landed that the guard did not stop
	refused  atomic.Bool   // the guard has stopped it
	numInput atomic.Int32  // of the prepared statement; shapeUnknown until known
	avoid    atomic.Int64  // Unix nanoseconds until which the text bypasses
	avoidWhy atomic.Uint32 // with that Reason

	exceptions atomic.Pointer[[]exception] // the oldest first; never changed, but replaced
	oddSince   atomic.Int64                // Unix nanoseconds since which are counted, or 0:
	odd        atomic.Uint32               // reads that became exceptions
	good       atomic.Uint32               // and those that were shared

	unshared atomic.Uint32 // large results in a row that a single caller has read

	hash      uint64                // of the text in the cache
	size      int                   // bytes that it counts there; guarded by the shard's lock
	described [describedSources]int // bytes in it of what describes the statement; likewise
}

const shapeUnknown = -2 // -1 is database/sql's "do not check"

// What became of a read (too large a result, a refusal of the guard) is remembered for
// the same arguments first: one caller's must not end the others' sharing. For all of the
// text it counts when most of its reads end so.
const (
	exceptionFirst = time.Second      // how long the same arguments bypass, the first time; the next time twice as long,
	overflowMemory = 10 * time.Second // and at most so long for results that are too large,
	refusedMemory  = 5 * time.Minute  // or so long
	exceptionKept  = time.Minute      // after that; then it is a first time again
	maxExceptions  = 16               // of a text; the oldest makes room, and is found out again

	oddLeast  = 8                // so many exceptions are looked at together,
	oddWithin = time.Second      // that came in more than this time (others may have come at one moment)
	oddMemory = 10 * time.Second // and less than this; for as long the text bypasses
)

// An exception is a read of a text, by a hash of its arguments, that bypasses for a
// while.
type exception struct {
	args  uint64
	why   Reason
	times uint8
	until int64 // Unix nanoseconds
}

func (e *exception) over(now int64) bool { return e.until+int64(exceptionKept) < now }

// except makes the reads with these arguments bypass for a while.
func (v *verdict) except(args uint64, why Reason, most time.Duration) {
	now := time.Now().UnixNano()
	for {
		have := v.exceptions.Load()
		e := exception{args: args, why: why}
		list := make([]exception, 0, maxExceptions)
		if have != nil {
			for _, x := range *have {
				switch {
				case x.over(now):
				case x.args == args:
					e.times = min(x.times+1, 16)
				default:
					list = append(list, x)
				}
			}
		}
		if len(list) == maxExceptions {
			list = append(list[:0], list[1:]...)
		}
		e.until = now + int64(min(exceptionFirst<<e.times, most))
		list = append(list, e)
		if v.exceptions.CompareAndSwap(have, &list) {
			return
		}
	}
}

// excepted says why a read with these arguments bypasses, ReasonNone if it does not.
func (v *verdict) excepted(args uint64) Reason {
	list := v.exceptions.Load()
	if list == nil {
		return ReasonNone
	}
	now, over := time.Now().UnixNano(), true
	for i := range *list {
		e := &(*list)[i]
		if e.args == args && now < e.until {
			return e.why
		}
		over = over && e.over(now)
	}
	if over {
		v.exceptions.CompareAndSwap(list, nil)
	}
	return ReasonNone
}

// forgive forgets that reads with these arguments were exceptions.
func (v *verdict) forgive(args uint64) {
	for {
		have := v.exceptions.Load()
		if have == nil || !slices.ContainsFunc(*have, func(e exception) bool { return e.args == args }) {
			return
		}
		list := slices.DeleteFunc(slices.Clone(*have), func(e exception) bool { return e.args == args })
		if v.exceptions.CompareAndSwap(have, &list) {
			return
		}
	}
}

// learnOdd is told of each read that became an exception. It reports whether most have,
// so that the text bypasses for a while.
func (v *verdict) learnOdd(why Reason) bool {
	now := time.Now().UnixNano()
	since := v.oddSince.Load()
	if since == 0 || now-since > int64(oddMemory) {
		v.good.Store(0)
		v.odd.Store(1)
		v.oddSince.Store(now)
		return false
	}
	if odd := v.odd.Add(1); odd < oddLeast || now-since < int64(oddWithin) {
		return false
	} else if odd <= v.good.Load() {
		v.oddSince.Store(0)
		return false
	}
	v.oddSince.Store(0)
	v.avoidWhy.Store(uint32(why))
	v.avoid.Store(now + int64(oddMemory))
	return true
}

// refuse makes the text bypass for good: for as long as this verdict lasts.
func (v *verdict) refuse() { v.refused.Store(true) }

// learnRefusal is told of each flight that ended with read_only_sql_transaction. A
// function can raise that for reasons of its own, and for some arguments: so can the
// server, for a function that writes for some.
func (v *verdict) learnRefusal(args uint64, err error) {
	v.except(args, ReasonRefused, refusedMemory)
	if !serversRefusal(err) {
		return
	}
	if (v.judged.Params == 0 || v.learnOdd(ReasonRefused)) && !v.flown.Load() {
		v.refuse() // it has never done anything else
	}
}

// learnOverflow is told of each flight whose result was too large to share.
func (v *verdict) learnOverflow(args uint64) {
	v.except(args, ReasonOverflow, overflowMemory)
	v.learnOdd(ReasonOverflow)
}

// landed is told of each flight that has landed whole.
func (v *verdict) landed(args uint64) {
	if !v.flown.Load() {
		v.flown.Store(true)
	}
	if v.exceptions.Load() != nil {
		v.forgive(args)
	}
	if since := v.oddSince.Load(); since != 0 && time.Now().UnixNano()-since > int64(oddMemory) {
		v.oddSince.CompareAndSwap(since, 0)
	}
}

// shared is told of each caller that got rows of a flight.
func (v *verdict) shared() {
	if v.oddSince.Load() != 0 {
		v.good.Add(1)
	}
}

// avoided says why the text bypasses now, whatever the arguments; ReasonNone if it does
// not.
func (v *verdict) avoided() Reason {
	if until := v.avoid.Load(); until != 0 && time.Now().UnixNano() < until {
		return Reason(v.avoidWhy.Load())
	}
	return ReasonNone
}

// A large result that one caller reads is streamed to it while the server still
// sends, as without flightpg: put together first, for others who may come, its first
// row would be late, and the memory for nobody. Others may come as long as it is not
// streamed, so that must be learned.
const (
	largeResult = 64 << 10 // bytes in memory
	unsharedRun = 16       // so many in a row that nobody shared, and the next ones are streamed,
	unsharedTry = 16       // but for each 16th
)

// streams reports whether a large result shall be streamed if it has one caller.
func (v *verdict) streams() bool {
	n := v.unshared.Load()
	return n >= unsharedRun && n%unsharedTry != 0
}

// learnSharing is told of each large result whether callers shared it.
func (v *verdict) learnSharing(shared bool) {
	switch {
	case !shared:
		v.unshared.Add(1)
	case v.unshared.Load() != 0:
		v.unshared.Store(0)
	}
}

// effect is what a statement may do to its session and to the database, beside
// changing rows.
type effect uint8

const (
	// effectPins: the session's state may be another one, and the caller may
	// count on it. Its connection keeps the session for life.
	effectPins effect = 1 << iota
	// effectCloses: it ran code that may have changed the session's state (DDL
	// evaluates expressions and fires event triggers), but nothing that anyone
	// counts on. The session is closed instead of serving others.
	effectCloses
	// effectDDL: the catalog may be another one.
	effectDDL
	// effectMaybeDDL: likewise, but seldom: DO, CALL. The catalog is loaded
	// again in the background.
	effectMaybeDDL
	// effectLocks: the session may hold advisory locks, which the server can be
	// asked for. Until it holds none, its connection keeps it.
	effectLocks
	// effectTx: it begins or ends a transaction by text. Whether one is open the
	// protocol tells; pinned only where the inner driver is another one.
	effectTx
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
			e := queryEffects(c.Text, j)
			if e == effectPins && r.onlyLocks(c.Text, j, set) {
				e = effectLocks
			}
			return e
		})
		return true
	})
	if !ok {
		e |= effectPins | effectMaybeDDL
	}
	return e, n != 1
}

// queryEffects is for statements that are judged: queries, INSERT and so on.
func queryEffects(sql string, j judge.Verdict) effect {
	switch {
	case j.Class != sqlscan.Other:
		return 0
	case j.Reason == sqlscan.UnknownRelation, j.Reason == sqlscan.UnknownType:
		return effectCloses // for as long as the name is new
	case j.Reason == sqlscan.CatalogUnavailable && sqlscan.Scan(sql).Class != sqlscan.Other:
		return 0 // names are taken at their word
	}
	return effectPins
}

// onlyLocks reports whether all that a query, judged as j, may do to its session is
// to take and release advisory locks: with functions in their place that release
// theirs by themselves, it would do nothing.
func (r rules) onlyLocks(sql string, j judge.Verdict, set *catalog.Set) bool {
	if !sessionLock(j.Name) {
		return false
	}
	var at [][2]int // where such functions' names begin and end
	sqlscan.Names(sql, func(n sqlscan.Name) bool {
		if n.Kind == sqlscan.FunctionName && sessionLock(n.Name) && strings.HasPrefix(sql[n.Pos:], n.Name) {
			at = append(at, [2]int{n.Pos, n.Pos + len(n.Name)})
		}
		return true
	})
	slices.SortFunc(at, func(a, b [2]int) int { return a[0] - b[0] })
	var b strings.Builder
	end := 0
	for _, name := range at {
		b.WriteString(sql[end:name[0]])
		b.WriteString("pg_advisory_xact_lock")
		end = name[1]
	}
	b.WriteString(sql[end:])
	return judge.Judge(b.String(), set, r.options()).Class != sqlscan.Other
}

// sessionLock reports whether a built-in takes or releases advisory locks of the
// session.
func sessionLock(name string) bool {
	switch name {
	case "pg_advisory_lock", "pg_advisory_lock_shared", "pg_try_advisory_lock", "pg_try_advisory_lock_shared",
		"pg_advisory_unlock", "pg_advisory_unlock_shared", "pg_advisory_unlock_all":
		return true
	}
	return false
}

// commandEffects judges one statement by its first words; query judges those
// that are no commands. What is not listed pins.
func commandEffects(c sqlscan.Command, query func() effect) effect {
	first, second, third := c.Words[0], c.Words[1], c.Words[2]
	switch first {
	case "create", "alter", "drop", "import":
		switch second {
		case "temp", "temporary", "local", "global":
			return effectPins
		}
		if strings.Contains(strings.ToLower(c.Text), "pg_temp") {
			return effectPins
		}
		return effectCloses | effectDDL
	case "truncate", "grant", "revoke", "comment", "analyze", "vacuum", "reindex", "cluster", "refresh":
		return effectCloses
	case "set":
		switch second {
		case "local", "transaction", "constraints": // end with the transaction
			return 0
		}
	case "savepoint", "release", "lock", "notify":
		return 0
	case "rollback":
		if second == "to" || (second == "work" || second == "transaction") && third == "to" {
			return 0
		}
		return effectTx
	case "begin", "start", "commit", "end", "abort":
		return effectTx
	case "do", "call":
		return effectPins | effectMaybeDDL
	case "select", "values", "table", "with", "insert", "update", "delete", "merge", "show", "":
		return query()
	}
	return effectPins
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
	noCatalog      bool // there is none to be had: names are taken at their word
}

func (r rules) options() judge.Options { return judge.Options{RLS: r.rls, TrustNames: r.noCatalog} }

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

// verdictCache bounds what is remembered of SQL texts: at most cacheTexts texts, and
// cacheBytes bytes of them, of their verdicts and of the descriptions of their
// parameters and columns. (Texts with the same columns share what describes these; it
// is counted for each.) Each shard keeps two generations; a full young one becomes the
// old one, whose texts are forgotten unless asked for again. Reading allocates nothing,
// and takes no lock for texts that are read all the time: even a shared one is a place
// where all CPUs meet.
type verdictCache struct {
	seed   maphash.Seed
	rules  rules
	recent [cacheRecent]atomic.Pointer[verdict] // by the text's hash, whichever was read last
	shards [cacheShards]verdictShard
}

const (
	cacheShards = 16
	cacheTexts  = 10_000
	cacheBytes  = 32 << 20
	cacheRecent = 256
	recentText  = 4 << 10   // bytes of a text among those, at most
	recentBytes = 32 << 10  // and with what it counts in all: here they are not counted
	maxText     = 512 << 10 // bytes of a text that is remembered, at most
)

type verdictShard struct {
	mu         sync.RWMutex        // guards what follows; nothing is scanned while it is held
	young, old map[uint64]*verdict // by the text's hash; of two texts with one hash the later stays
	bytes      int                 // that the young generation counts
}

func newVerdictCache(r rules) *verdictCache {
	return &verdictCache{seed: maphash.MakeSeed(), rules: r}
}

// get returns the verdict on a text by a picture of the catalog, which may be
// nil.
func (c *verdictCache) get(sql string, by *loaded) *verdict {
	hash := maphash.String(c.seed, sql)
	recent := &c.recent[hash/cacheShards%cacheRecent]
	if v := recent.Load(); v != nil && v.sql == sql && v.gen == by.generation() {
		return v
	}
	v := c.find(hash, sql, by)
	if len(sql) <= recentText {
		recent.Store(v)
	}
	return v
}

// descSize returns what the description of a statement takes in memory, in bytes: its
// parameters' types and its columns, with what results keep of these.
func descSize(fields []pgconn.FieldDescription, params int) int {
	const column = fieldSize + columnSize + stringSize + 4
	size := 256 + 4*params + column*len(fields)
	for i := range fields {
		size += int(allocated(len(fields[i].Name)))
	}
	return size
}

// Who describes a statement.
const (
	describedPipelined = iota
	describedGuarded   // under GuardTransaction
	describedParams    // asked for the types of its parameters
	describedSources
)

// describe notes how much what one of the sources knows of a text's parameters and
// columns takes now, in bytes.
func (c *verdictCache) describe(v *verdict, source, bytes int) {
	s := &c.shards[v.hash%cacheShards]
	s.mu.Lock()
	v.described[source], bytes = bytes, bytes-v.described[source]
	v.size += bytes
	large := v.size > recentBytes
	if s.young[v.hash] == v {
		s.bytes += bytes
		s.ageLocked(0)
	}
	s.mu.Unlock()
	if large {
		c.recent[v.hash/cacheShards%cacheRecent].CompareAndSwap(v, nil)
	}
}

// find is get in the shards.
func (c *verdictCache) find(hash uint64, sql string, by *loaded) *verdict {
	s := &c.shards[hash%cacheShards]
	s.mu.RLock()
	v := s.young[hash]
	young := v != nil && v.sql == sql
	if !young {
		if v = s.old[hash]; v != nil && v.sql != sql {
			v = nil
		}
	}
	s.mu.RUnlock()
	if v != nil && v.gen == by.generation() {
		if !young {
			s.put(hash, v)
		}
		return v
	}
	n := c.rules.judge(sql, by)
	n.hash = hash
	if v != nil { // what does not depend on the catalog stays known
		n.numInput.Store(v.numInput.Load())
		n.avoidWhy.Store(v.avoidWhy.Load())
		n.avoid.Store(v.avoid.Load())
	}
	return s.put(hash, n)
}

// generation returns the picture's, 0 for none.
func (l *loaded) generation() uint64 {
	if l == nil {
		return 0
	}
	return l.gen
}

func (s *verdictShard) put(hash uint64, v *verdict) *verdict {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.young[hash]
	if first != nil && first.sql == v.sql && first.gen == v.gen {
		return first
	}
	if len(v.sql) > maxText {
		return v // remembering it would cost all others
	}
	if first != nil {
		s.bytes -= first.size
		delete(s.young, hash)
	}
	s.ageLocked(v.size)
	s.bytes += v.size
	s.young[hash] = v
	return v
}

// ageLocked makes the young generation the old one if there is no room for so many
// bytes more.
func (s *verdictShard) ageLocked(bytes int) {
	const texts, most = cacheTexts / cacheShards / 2, cacheBytes / cacheShards / 2
	if s.young == nil || len(s.young) >= texts || s.bytes+bytes > most {
		s.old, s.young, s.bytes = s.young, make(map[uint64]*verdict), 0
	}
}

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
