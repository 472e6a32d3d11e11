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
// along, up to [Config.Group] of them, as one group: their Bind and Execute
// messages in a row and one Sync behind them, in one write. So nothing is ever
// delayed to make a group larger; groups grow with the load.
//
// A busy connection has one reader token. Answers come in the order of the group,
// so the token belongs to the group's head, the first call whose answer has not
// been read: its driver reads that, finishes the call, and hands the token to the
// driver of the next. The last one ends with ReadyForQuery, and frees the connection.
// Each driver waits on its call's own channel, which has room for one message: the
// token, or the news that the call is finished, or that its statement has been
// described by another meanwhile.
//
// # States
//
// A call is
//
//	new       with its driver: describing the statement, encoding the arguments
//	queued    in one of the pool's three queues, or on its way there (see below)
//	sent      in the group of one connection
//	finished  its outcome is final
//
// with these transitions:
//
//	new → queued → sent → finished
//	new → sent            a connection was free
//	new, queued → finished   given up, or there is no connection to be had
//	sent → queued         it was not executed (an earlier one of its group failed),
//	                      it has waited for long behind one that takes its time,
//	                      or must be executed again (connection lost, a cancel
//	                      request that was meant for another)
//	sent → new            its statement must be described again
//	queued → new          its statement, which it was to describe, has been
//
// A connection is free (in the pool's list), busy (it has a group, and a token),
// parked (its group is done, a cancel request is on its way still), or gone.
//
// # Invariants
//
//  1. A call is in one place: with its driver, in a queue, or in one group.
//  2. A call has one driver until it is finished. Run returns early only when
//     somebody will call Finish.
//  3. The token of a busy connection is in one place: held by a running
//     goroutine, or in the channel of the head of its group.
//  4. Only the holder of a connection's token reads from it, and finishes,
//     requeues or sends back the calls of its group. Only the one who has taken
//     the connection from the pool, and has not given the token away yet, writes.
//  5. At most one message is ever in a call's channel: the token is given to heads
//     only, and a head is finished by the token's holder only.
//  6. The pool's list is empty of free connections that a queued call could use.
//  7. A call whose last caller has gone is not sent any more; if it was sent, its
//     answer is read and thrown away, and a request to cancel it goes out first,
//     unless it is settled: settling and sending the request exclude each other.
//  8. A connection with a cancel request on its way takes no new group: what the
//     request may hit is in the group that it was sent for. A query_canceled there
//     is run again, a bounded number of times, if it was not meant; anywhere else
//     it is genuine: a statement_timeout, or a person.
//  9. A group shares one implicit transaction, so it exists only where the guard
//     makes that read-only, and the isolation level gives each statement a
//     snapshot of its own.
//
// TestModel explores every interleaving of a small model of this protocol and
// checks the invariants in each state.
//
// # The lock
//
// One mutex guards the pool's queues and lists. Nobody who submits a call waits for
// it: who finds it locked leaves the call on a list that needs no lock, and whoever
// unlocks it looks there afterwards, and takes in what has come. A mutex that thousands
// wait for would hand itself from one to the next, each time through the scheduler.
//
// # Lanes
//
// A statement that is slow must not be waited for by others. Times are learned per
// statement. Those that never take less than a moment ([slowFloor]) have a queue of
// their own, run alone, and get as many connections as they have callers: what a
// group saves is nothing to them. So many executions at a time make a fast statement
// slow, too, so when some wait for a connection, a group of them is tried now and then:
// if it takes no longer than one, the statement is fast. Those that failed lately or have large results run
// alone too. Those that are slow now and then (that have a tail) have a third queue,
// which more connections serve, with smaller groups. Since many connections make the
// machine itself late now and then, a tail must show again on few, every
// [tailProbe]. The connections of the fast queue are few: a group is as good as many
// connections, and cheaper. One whose answer does not come is not counted any more
// after a moment, and another is opened in its place; the calls behind that answer do
// not wait for it either: they are sent again on another, and what they have sent is
// executed for nobody. That is bounded, see moveCost.
package pipeline

import (
	"context"
	"errors"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// Errors that a call can finish with, beside the server's.
var (
	// ErrAbandoned is the outcome of a call that nobody waited for any more when
	// its turn came: Dispatch reported false, or Finish's context ended.
	ErrAbandoned = errors.New("flightpg: every caller of the shared read has gone")
	// ErrClosed is the outcome of calls that wait when the pool is closed.
	ErrClosed = errors.New("sql: database is closed") // as database/sql says it
	// ErrElsewhere says that the call cannot be served here, and that nothing
	// was executed: run it through pgx. It is the outcome of whatever pgx itself
	// refuses, so that its users see its own errors.
	ErrElsewhere = errors.New("flightpg: not for the pipeline")
)

// Read is what a call executes for, and where its answer goes.
type Read interface {
	// Dispatch is called just before a byte leaves for the server, each time.
	// If it reports false, nothing is sent.
	Dispatch() bool
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
	Grouped bool           // several reads may share an implicit transaction, see the package's invariant 9
	User    any            // whatever belongs to the connection
	// Taken is called when the package has taken the connection over, or has
	// closed it since it could not. May be nil.
	Taken func()
	// Expired reports that the connection must not be used any more. It may be
	// nil. It is called between Dispatch and the first byte.
	Expired func() bool
}

// Config configures a Pool. Connect must be set.
type Config struct {
	// Connect opens a connection. ctx ends when the pool is closed.
	Connect func(ctx context.Context) (*Link, error)
	// Full reports whether an error of Connect says that the server takes no
	// more connections: calls then wait for those that there are. May be nil.
	Full func(error) bool
	// Tainted is told of a statement that, alone on its connection, changed a
	// setting that the server reports. The connection is closed. May be nil.
	Tainted func(st *Stmt, setting, value string)
	// Described is told of each description of a statement, which takes the place of
	// the one before. May be nil.
	Described func(st *Stmt, d *Desc)
	// Formats says in which format results are asked for, by type.
	Formats pgx.QueryResultFormatsByOID
	// Max bounds the connections. 0 means no limit, and 1 is taken as 2: slow
	// statements need another connection than fast ones.
	Max int
	// Fast is how many connections serve the fast queue. 0 means 4, or 16 where
	// a round trip takes long.
	Fast int
	// Group bounds the calls that travel together. 0 means 16.
	Group int
	// Statements bounds the prepared statements of a connection. 0 means 512.
	Statements int
	// MaxIdle bounds the idle connections. 0 means 64; negative: none are kept.
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
	if cfg.Max == 1 {
		cfg.Max = 2
	}
	return cfg
}

// Stats are a Pool's figures. The counters only rise.
type Stats struct {
	Calls    uint64 // calls that were sent, each time
	Groups   uint64 // writes that carried more than one call
	Grouped  uint64 // calls in them
	Skipped  uint64 // calls queued again because an earlier one of their group failed
	Moved    uint64 // calls run again because an earlier one of their group took long
	Strays   uint64 // calls run again because a cancel request hit them that was not meant for them
	Stale    uint64 // calls run again because DDL had changed their statement
	Lost     uint64 // calls run again because their connection was lost
	Handed   uint64 // calls whose driver left, so that another took over
	Cancels  uint64 // requests to cancel that were sent
	Tainted  uint64 // connections closed because a statement had changed their settings
	Dials    uint64 // connections opened
	Open     int    // connections, now
	Idle     int    // free ones among them
	Queued   int    // calls waiting for a connection, now
	FastBusy int    // connections that serve the fast queue, now
}
