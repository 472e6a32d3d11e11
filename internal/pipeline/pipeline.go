// Package pipeline executes reads on PostgreSQL connections of its own, without a
// goroutine for each: whoever waits for an answer reads it, and reads that find
// every connection busy travel together.
//
// It knows nothing of flights, of verdicts or of database/sql. What a call asks
// and where its answer goes is a [Read]; where connections come from is
// [Config.Connect].
//
// # How it works
//
// A [Call] is one execution of one statement. It has, at every moment until it is
// finished, exactly one driver: the goroutine in [Call.Run], or the one in
// [Call.Finish] that took over when Run returned early because its context had
// ended. A call that finds a connection free is written to it by its driver at
// once. Otherwise it queues, and whoever frees a connection takes the queued calls
// along, up to [Config.Group] of them, as one group, in one write. So nothing is ever
// delayed to make a group larger; groups grow with the load.
//
// What must be encoded by its connection's own codecs, or is more than can be written
// without waiting, is not sent by whoever has taken the connection: it is granted to
// the driver of the one call, who sends.
//
// A busy connection has one reader token. Answers come in the order of the group,
// so the token belongs to the group's head, the first call whose answer has not
// been read: its driver reads that, finishes the call, and hands the token to the
// driver of the next. The last one ends with ReadyForQuery, and frees the connection.
// Each driver waits on its call's own channel, which has room for one message: the
// token, the grant of a connection, or the news that the call is finished, or that its
// statement has been described by another meanwhile.
//
// # Transactions
//
// A group is cut into transactions by the Syncs in it ([Call].ends): neighbours share
// one if both are [Joined] and neither must be apart. An error takes along what is
// behind it in its transaction, and nothing else: that is queued again, and the next
// transaction's head reads the end of this one before its own answer ([conn].skip).
//
// A group can wait for a lock, and hold others meanwhile. So groups are sent on
// sessions whose timeouts are short ([Link].Arm): whoever waits for something that it
// holds waits no longer than that. A call that meets such a timeout, or turns out to be
// large there, runs again, alone, on a session with the timeouts of its own, and
// the statements of a relation that was locked run alone for a while.
//
// # Descriptions
//
// A statement is described once, for all connections, and prepared under that
// description's name on each. When what a connection prepares is not what was described, or
// Parse or Bind fails, nothing of the answer is believed, of none that executes the same
// in that group: each such call starts anew as on a connection that knows nothing
// ([Call].renew). What the server says there is its outcome.
//
// # States
//
// A call is
//
//	new       with its driver: describing the statement, encoding the arguments
//	queued    in the pool's queue, or on its way there (see below)
//	taken     in the group of one connection, which is not sent yet
//	sent      and that is: under way, until its answer has ended on the server
//	finished  its outcome is final
//
// with these transitions:
//
//	new → queued → taken → sent → finished
//	new → taken           a connection was free
//	new, queued → finished   given up, or there is no connection to be had
//	taken → finished      nobody wants it: its dispatch is refused
//	taken → queued        the connection has expired
//	taken → new           its arguments do not encode on that connection
//	sent → queued         it was not executed (an earlier one of its transaction failed),
//	                      it has waited for long behind one that takes its time,
//	                      or must be executed again (connection lost, a cancel
//	                      request that was meant for another, a short timeout, a
//	                      large result)
//	sent → new            its statement must be described again
//	queued → new          its statement, which it was to describe, has been
//
// A connection is free (in the pool's list), taken (it has a group), busy (that is sent,
// and there is a token), parked (its group is done, a cancel request is on its way still),
// draining (its group is answered or gone, and answers for nobody are read), live (see
// [Rows]), or gone.
//
// # Invariants
//
//  1. A call is in one place: with its driver, in a queue, or in one group.
//  2. A call has one driver until it is finished. Run returns early only when
//     somebody will call Finish.
//  3. The token of a busy connection is in one place: held by a running
//     goroutine, or in the channel of the head of its group. A taken one belongs to
//     whoever has taken it, or to the driver that it is granted to.
//  4. Only the holder of a connection's token reads from it, and finishes,
//     requeues or sends back the calls of its group. Only who has taken it sends a
//     group, and only the token's holder what a call sends after that.
//  5. At most one message is ever in a call's channel: the token is given to heads
//     only, a connection to the one call of its group, and a head is finished by the
//     token's holder only.
//  6. The pool's list is empty of free connections that a queued call could use, and
//     of closed ones: what was killed under its reader is not given back.
//  7. A call whose last caller has gone is not queued again. A request to cancel it goes out
//     only while it is under way, as soon as it is: one that was decided before, or while
//     the timeouts are being set, follows at once. That its answer ends and that a request is sent exclude each other.
//  8. A connection with a cancel request on its way takes no new group: what the
//     request may hit is in the group that it was sent for. A query_canceled there
//     is run again if it was not meant, and alone in the end; anywhere else
//     it is genuine: a statement_timeout, or a person. A parked connection is closed when
//     its request does not come back for long.
//  9. A group exists only where the guard makes its transactions read-only, the
//     isolation level gives each statement a snapshot of its own, and the timeouts
//     are short. What must be alone never has company, and never short timeouts.
//
// TestModel explores every interleaving of a small model of this protocol, in worlds in
// which different things can happen, and checks the invariants in each state.
// TestSimulation runs the code against a scripted server.
//
// # The lock
//
// One mutex guards the pool's queues and lists. Nobody who submits a call waits for
// it: who finds it locked leaves the call on a list that needs no lock, and whoever
// unlocks it looks there afterwards, and takes in what has come. A mutex that thousands
// wait for would hand itself from one to the next, each time through the scheduler. That
// a TryLock fails says nothing of who holds the lock: who leaves a call goes only when he
// has seen that somebody holds it ([Pool].held), who will look.
//
// # How many connections
//
// What waits is in one queue, first come, first served. A connection that is free takes
// the first call, and what may travel with it. How many connections are in use at a time
// is decided by what comes of it, see [pace]; what is learned of a statement chooses its
// company only. One whose answer is late does not count, so that another takes its place;
// the calls behind that answer do not wait for it either: they are sent again on another,
// and what they have sent is executed for nobody. That is bounded, see moveCost. If
// nothing at all is answered for a moment, all that waits is sent at once ([quietTime]).
//
// A statement that never takes less than a moment ([slowFloor]) travels alone: what a
// group saves is nothing to it. Many executions at a time make a fast statement slow,
// too, so now and then some that wait are sent together: if they take no longer than one,
// it is fast. Those that are slow now and then (that have a tail) have a Sync each, in
// smaller groups, and travel with no more than what their tail costs the others allows.
//
// Where [Config.Max] bounds the connections, what cannot have one may have one elsewhere,
// see [Config.Spare].
package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// Meanings are the settings that say what a text means, and to whom, as far as PostgreSQL
// tells its clients of them, when they connect and when they change. (search_path is told
// from 18 on.) It must not be changed.
var Meanings = []string{"standard_conforming_strings", "client_encoding", "session_authorization", "is_superuser", "search_path"}

// Errors that a call can finish with, beside the server's.
var (
	// ErrAbandoned is the outcome of a call that nobody waited for any more when
	// its turn came: Dispatch reported false, or Finish's context ended.
	ErrAbandoned = errors.New("flightpg: every caller of the shared read has gone")
	// ErrClosed is the outcome of calls that wait when the pool is closed.
	ErrClosed = errors.New("sql: database is closed") // as database/sql says it
	// ErrElsewhere says that the call cannot be served here: run it through pgx. It
	// is the outcome of whatever pgx itself refuses, so that its users see its own
	// errors; then nothing was executed. It is also that of what the session may have
	// taken for something else, see Meanings; then it has an answer that does not count.
	ErrElsewhere = errors.New("flightpg: not for the pipeline")
	// ErrSpare is ErrElsewhere for a call that has been given a connection elsewhere,
	// by Config.Spare.
	ErrSpare = errors.New("flightpg: no connection of the pipeline is free")
)

// Read is what a call executes for, and where its answer goes.
type Read interface {
	// Dispatch is called just before a byte leaves for the server, each time.
	// If it reports false, nothing is sent.
	Dispatch() bool
	// Apart is called after each Dispatch, and reports whether the call must have a
	// transaction of its own, whatever its statement is.
	Apart() bool
	// Start is called when the answer begins, or begins anew on another
	// connection: what came before is void. The link is for this goroutine
	// alone until the answer has ended.
	Start(l *Link, d *Desc)
	// Row is called with each row, whose values are valid until it returns. If
	// it reports false, the call finishes with live rows: the rest of the
	// answer, from the row after this one.
	Row(values [][]byte) bool
}

// Link is one connection, as Config.Connect opened it.
type Link struct {
	PgConn  *pgconn.PgConn // idle; the package hijacks it
	Types   *pgtype.Map    // the connection's own
	Grouped bool           // several reads may be sent together, see the package's invariant 9
	User    any            // whatever belongs to the connection
	// Odd is what Types has otherwise than pgx, or nil.
	Odd *Oddities
	// Arm is SQL that makes the session's timeouts short, for locks and for
	// statements, which may take Patience then; Disarm makes them what they were.
	Arm, Disarm string
	Patience    time.Duration
	// Apart says that no two calls may share a transaction here.
	Apart bool
	// Timed says that the application bounds the time of statements: what prepares one
	// has its own time then.
	Timed    bool
	buffered bool // as a connection of the system's is; for tests
	// Taken is called when the package has taken the connection over, or has
	// closed it since it could not. May be nil.
	Taken func()
	// Settled is told what the session has reported until it was taken over, and says
	// why it cannot be used if that is not what Config.Connect has looked at. It may
	// be nil.
	Settled func(reported map[string]string) error
	// Expired reports that the connection must not be used any more. It may be
	// nil. It is called between Dispatch and the first byte.
	Expired func() bool
}

// Config configures a Pool. Connect must be set.
type Config struct {
	// Connect opens a connection. ctx ends when the pool is closed.
	Connect func(ctx context.Context) (*Link, error)
	// For returns the context with which Connect is called for a call that waits: ctx
	// with the values of that with which the call is driven. May be nil; then ctx is used.
	For func(ctx, call context.Context) context.Context
	// Full reports whether an error of Connect says that the server takes no
	// more connections: calls then wait for those that there are. May be nil.
	Full func(error) bool
	// Spare takes a connection elsewhere, if there is one, for a call that cannot have
	// one here, and will finish with ErrSpare. It is called with the pool locked. May
	// be nil.
	Spare func() bool
	// Tainted is told of a statement that, alone on its connection, changed a
	// setting that the server reports. The connection is closed. May be nil.
	Tainted func(st *Stmt, setting, value string)
	// Described is told of each description of a statement, which takes the place of
	// the one before. May be nil.
	Described func(st *Stmt, d *Desc)
	// Formats says in which format results are asked for, by type.
	Formats pgx.QueryResultFormatsByOID
	// Max bounds the connections. 0 means no limit.
	Max int
	// Width fixes how many connections are used at a time, those not counted whose
	// answers are late. 0: at least 4, as many as pays.
	Width int
	// Group bounds the calls that travel together. 0 means 16.
	Group int
	// Statements bounds the prepared statements of a connection. 0 means 512.
	Statements int
	// MaxIdle bounds the idle connections while no call is under way. 0 means 64;
	// negative: none are kept, ever.
	MaxIdle int
	// MaxIdleTime closes a connection that was idle for so long. 0: never.
	MaxIdleTime time.Duration
	// MaxLifetime closes an idle connection that is older. 0: never.
	MaxLifetime time.Duration
}

func (cfg Config) withDefaults() Config {
	if cfg.Group == 0 {
		cfg.Group = 16
	}
	if cfg.Statements == 0 {
		cfg.Statements = 512
	}
	if cfg.MaxIdle == 0 {
		cfg.MaxIdle = 64
	}
	cfg.Group = min(cfg.Group, cfg.Statements) // each may be of another
	return cfg
}

// leastConns is how many connections are used at least, if there are calls for them.
const leastConns = 4

// pace returns what decides how many connections are used.
func (cfg Config) pace() pace {
	if cfg.Width > 0 {
		return pace{limit: cfg.Width, fixed: true}
	}
	p := pace{least: leastConns, most: cfg.Max}
	if cfg.Max > 0 {
		p.least = min(p.least, cfg.Max)
		if cfg.Spare != nil {
			p.most = 2 * cfg.Max // what is elsewhere counts as well
		}
	}
	p.limit = p.least
	return p
}

// Stats are a Pool's figures. The counters only rise.
type Stats struct {
	Calls   uint64 // calls that were sent, each time
	Groups  uint64 // writes that carried more than one call
	Grouped uint64 // calls in them
	Skipped uint64 // calls queued again because an earlier one of their group failed
	Moved   uint64 // calls run again because an earlier one of their group took long
	Parted  uint64 // calls run again, alone, because they took long, waited for a lock or had a large result
	Strays  uint64 // calls run again because a cancel request hit them that was not meant for them
	Stale   uint64 // calls run again because DDL had changed their statement
	Lost    uint64 // calls run again because their connection was lost
	Handed  uint64 // calls whose driver left, so that another took over
	Cancels uint64 // requests to cancel that were sent
	Tainted uint64 // connections closed because a statement had changed their settings
	Dials   uint64 // connections opened
	Open    int    // connections, now
	Idle    int    // free ones among them
	Queued  int    // calls waiting for a connection, now
	Busy    int    // connections in use whose answers are not late, now
	Limit   int    // how many of them there may be, now
}
