package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/flight"
	"github.com/flightpg/flightpg/internal/judge"
	"github.com/flightpg/flightpg/internal/pipeline"
)

// Executor says what runs flights.
type Executor uint8

const (
	// ExecutorAuto uses ExecutorPipeline where it can, and ExecutorGeneric for
	// everything else. The default.
	ExecutorAuto Executor = iota
	// ExecutorPipeline runs flights in their leaders' goroutines, on connections
	// taken over from pgx, and sends those that wait for one together. What it
	// cannot serve (single calls in another pgx.QueryExecMode, servers behind a
	// pooler) goes the generic way all the same; a connector for which it can
	// never be used is refused.
	ExecutorPipeline
	// ExecutorGeneric runs each flight in a goroutine of its own (in its leader's, if
	// his context cannot end and no hook or tracer takes part), on a session of
	// the flight pool, through pgx or whatever the inner driver is.
	ExecutorGeneric
)

var executorNames = [...]string{ExecutorAuto: "auto", ExecutorPipeline: "pipeline", ExecutorGeneric: "generic"}

// String returns the executor's name as in the flight_executor parameter.
func (e Executor) String() string {
	if int(e) < len(executorNames) {
		return executorNames[e]
	}
	return fmt.Sprintf("Executor(%d)", uint8(e))
}

func parseExecutor(name string) (Executor, error) {
	for e, n := range executorNames {
		if n == name {
			return Executor(e), nil
		}
	}
	return 0, errRange
}

// minPipelineConns is the least Config.FlightConns with which the flight pool can
// be divided.
const minPipelineConns = 4

// noPipeline says why the pipeline cannot serve a connector at all, or "".
func (c *Connector) noPipeline() string {
	pc, cfg := c.source.config, &c.cfg
	switch {
	case pc == nil:
		return "the inner driver is not pgx"
	case c.source.pooled:
		return "the connections belong to a pool"
	case c.viaStmt == viaStmt:
		return "pgx does not prepare every statement: default_query_exec_mode, statement_cache_capacity"
	case pc.Tracer != nil:
		return "pgx's tracer must see each query"
	case !ownWatcher(pc):
		return "queries are cancelled by a handler of the application's own"
	case cfg.Guard == GuardTransaction:
		return "flight_guard=transaction"
	case cfg.ResetSession != nil, cfg.ShouldPing != nil, cfg.PartitionKey != nil:
		return "hooks look at each use of a connection"
	case cfg.FlightConns > 0 && cfg.FlightConns < minPipelineConns:
		return fmt.Sprintf("flight_conns is below %d", minPipelineConns)
	}
	return ""
}

// ownWatcher reports whether flights of a config cancel their queries as flightpg
// does.
func ownWatcher(pc *pgx.ConnConfig) bool {
	return sameFunc(cancelling(pc).BuildContextWatcherHandler, cancelRequest)
}

// pipelineExecutor runs flights through a pipeline.Pool.
type pipelineExecutor struct {
	*pipeline.Pool
	c        *Connector
	refused  atomic.Uint64
	quarter  int64        // of the flight connections: the generic executor's
	away     atomic.Int64 // those of them that calls have taken for which the pipeline had none
	borrowed atomic.Bool  // the generic executor's connection has been taken over, or tried
	launches sync.Pool    // of *pipelineLaunch that nobody holds any more
	found    atomic.Pointer[companyFound]
	generic  *poolExecutor
}

func newPipelineExecutor(c *Connector) *pipelineExecutor {
	x := &pipelineExecutor{c: c, generic: c.exec.(*poolExecutor)}
	limit := c.cfg.FlightConns
	x.quarter = int64(limit / minPipelineConns)
	limit -= int(x.quarter) // the rest is the generic executor's
	x.Pool = pipeline.New(pipeline.Config{
		Connect:     x.connect,
		For:         c.opensFor(),
		Full:        tooMany,
		Spare:       x.spare,
		Tainted:     x.tainted,
		Described:   x.described,
		Formats:     binaryResults,
		Max:         limit,
		Statements:  c.source.config.StatementCacheCapacity,
		MaxIdle:     c.cfg.MaxIdle,
		MaxIdleTime: max(c.cfg.MaxIdleTime, 0),
		MaxLifetime: c.cfg.MaxLifetime,
	})
	return x
}

// connect opens a connection for the pool, armed as any flight session.
func (x *pipelineExecutor) connect(ctx context.Context) (*pipeline.Link, error) {
	c := x.c
	// The catalog was asked for, on a connection that nobody needs any more. One that has
	// lain idle since may be dead, and not know.
	if c.flights.idle.Load() > 0 && x.borrowed.CompareAndSwap(false, true) {
		if l, err := c.flights.borrow(ctx); err == nil {
			link, err := x.link(ctx, l.session)
			l.bad = true // for its pool: nobody else shall have it
			if err == nil {
				link.Taken = l.release
				return link, nil
			}
			l.release() // it may have died idle
		}
	}
	sc := sessionConnector{inner: c.source.flights, follow: c.follow, flights: true, guard: c.cfg.Guard, c: c}
	dc, err := sc.Connect(ctx)
	if err != nil && ctx.Err() == nil {
		var wait time.Duration
		if tooMany(err) {
			wait = cedePatience
		}
		if h := c.sessions.db.cede(ctx, int64(x.Stats().Open), wait); h != nil {
			if ceded, no := sc.over(ctx, h); no == nil {
				dc, err = ceded, nil
			}
		}
	}
	if tooMany(err) && x.Stats().Open == 0 && c.sessions.db.makesRoom() {
		// The backends of those closed take their time to end.
		for n := 0; n < 100 && tooMany(err); n++ {
			select {
			case <-time.After(10 * time.Millisecond):
			case <-ctx.Done():
				return nil, err
			}
			c.sessions.db.closeIdle()
			dc, err = sc.Connect(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	s := dc.(*session)
	link, err := x.link(ctx, s)
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return link, nil
}

// link is what the pipeline needs of an armed session.
func (x *pipelineExecutor) link(ctx context.Context, s *session) (*pipeline.Link, error) {
	// A pooler; or a network connection without deadlines, as SSH's are: the pipeline's readers
	// could not leave.
	if s.guard == GuardTransaction || s.pgx.Conn().PgConn().Conn().SetReadDeadline(time.Time{}) != nil {
		// The pipeline's part of the connections is the generic executor's too.
		x.c.flights.widen()
		return nil, pipeline.ErrElsewhere
	}
	link := &pipeline.Link{
		PgConn: s.pgx.Conn().PgConn(), Types: s.pgx.Conn().TypeMap(), Odd: odditiesOf(s.pgx.Conn().TypeMap()), User: s, Expired: s.old,
		Settled: s.settled,
	}
	if s.guard == GuardSession {
		if err := x.company(ctx, link); err != nil {
			return nil, err
		}
	}
	return link, nil
}

// Timeouts of sessions on which several reads are under way, in milliseconds. Who meets
// one runs again on a session whose timeouts are the application's.
const (
	groupLockTimeout      = 5
	groupStatementTimeout = 10
)

// companySettings are what decides about it, and companyShown says whether they are what
// they were on another connection: pg_settings takes a new connection a fifth of the time
// in which it is opened.
const (
	companySettings = "SELECT name, setting, reset_val FROM pg_catalog.pg_settings WHERE name OPERATOR(pg_catalog.=) ANY (" +
		"'{default_transaction_isolation,lock_timeout,statement_timeout,transaction_timeout,deadlock_timeout}'::pg_catalog.text[])"
	companyShown = "SELECT pg_catalog.current_setting('default_transaction_isolation'), pg_catalog.current_setting('lock_timeout'), " +
		"pg_catalog.current_setting('statement_timeout'), pg_catalog.current_setting('transaction_timeout', true), " +
		"pg_catalog.current_setting('deadlock_timeout')"
)

// companyFound is what was found out about a connection.
type companyFound struct {
	shown string
	link  pipeline.Link // with nothing else
}

// company finds out what may be sent together on a session, by its settings. Whether a
// hook has set one, or the role, matters only to what sets it back; that is taken to be
// as on the last connection with the same settings.
func (x *pipelineExecutor) company(ctx context.Context, link *pipeline.Link) error {
	shown, err := ask(ctx, link.PgConn, companyShown)
	if err != nil {
		return err
	}
	now := ""
	for i := range 5 {
		now += cell(shown, i) + ";"
	}
	if f := x.found.Load(); f != nil && f.shown == now {
		link.Grouped, link.Timed, link.Apart = f.link.Grouped, f.link.Timed, f.link.Apart
		link.Arm, link.Disarm, link.Patience = f.link.Arm, f.link.Disarm, f.link.Patience
		return nil
	}
	if err := company(ctx, link); err != nil {
		return err
	}
	x.found.Store(&companyFound{now, pipeline.Link{
		Grouped: link.Grouped, Timed: link.Timed, Apart: link.Apart, Arm: link.Arm, Disarm: link.Disarm, Patience: link.Patience,
	}})
	return nil
}

// company asks.
func company(ctx context.Context, link *pipeline.Link) error {
	results, err := ask(ctx, link.PgConn, companySettings)
	if err != nil {
		return err
	}
	type setting struct {
		value, reset string
		ms           int
	}
	settings := make(map[string]setting)
	for _, r := range results {
		for _, row := range r.Rows {
			if len(row) == 3 {
				ms, _ := strconv.Atoi(string(row[1]))
				settings[string(row[0])] = setting{string(row[1]), string(row[2]), ms}
			}
		}
	}
	link.Timed = settings["statement_timeout"].ms > 0
	if settings["default_transaction_isolation"].value != "read committed" {
		// Under a higher level a group would share its snapshot, and serialization
		// failures.
		return nil
	}
	link.Grouped = true
	// A group must be gone before anybody looks for a deadlock, or is told that his
	// transaction has taken too long.
	link.Apart = settings["transaction_timeout"].ms > 0 || settings["deadlock_timeout"].ms < 10*groupLockTimeout
	shorter := func(own setting, most int) int {
		if own.ms > 0 {
			return min(most, own.ms)
		}
		return most
	}
	lock, statement := settings["lock_timeout"], settings["statement_timeout"]
	lockMS, statementMS := shorter(lock, groupLockTimeout), shorter(statement, groupStatementTimeout)
	link.Arm = "SET lock_timeout = " + strconv.Itoa(lockMS) + "; SET statement_timeout = " + strconv.Itoa(statementMS)
	link.Disarm = "RESET lock_timeout"
	if lock.value != lock.reset { // by a hook
		link.Disarm = "SET lock_timeout = " + strconv.Itoa(lock.ms)
	}
	if statement.value == statement.reset {
		link.Disarm += "; RESET statement_timeout"
	} else {
		link.Disarm += "; SET statement_timeout = " + strconv.Itoa(statement.ms)
	}
	link.Patience = groupStatementTimeout * time.Millisecond
	return nil
}

// tainted is told of a statement that changed its session's settings.
func (x *pipelineExecutor) tainted(st *pipeline.Stmt, setting, value string) {
	if setting == readOnly && value != "on" {
		st.User.(*verdict).refuse() // it turned the guard off: never again on a flight
	}
}

// described is told of a statement's description.
func (x *pipelineExecutor) described(st *pipeline.Stmt, d *pipeline.Desc) {
	v := st.User.(*verdict)
	params, _ := st.ParamOIDs()
	x.c.verdicts.describe(v, describedPipelined, descSize(d.Fields, len(params)))
}

// spare takes one of the generic executor's connections, if one is to be had.
func (x *pipelineExecutor) spare() bool {
	for {
		n := x.away.Load()
		if max(n, x.generic.flying.Load()) >= x.quarter { // it has reads of its own, too
			return false
		}
		if x.away.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

// counts returns what executor.counts does.
func (x *pipelineExecutor) counts() (retries, refused uint64) {
	s := x.Stats()
	return s.Lost + s.Strays + s.Stale + s.Moved + s.Parted, x.refused.Load()
}

// maxPipelined bounds the texts that the pipeline prepares, in bytes. Longer ones go
// through pgx, which keeps one prepared statement for each text: the server takes ten
// to a hundred times its length for one, and in the pipeline it would have another
// name whenever its verdict is made anew.
const maxPipelined = 16 << 10

// serves returns the statement if the pipeline can run the read.
func (x *pipelineExecutor) serves(r *read) *pipeline.Stmt {
	if x == nil || r.via != viaQuery || r.query == "" || len(r.query) > maxPipelined || x.Elsewhere() {
		return nil
	}
	if len(r.args) > 0 {
		switch r.args[0].Value.(type) {
		case pgx.QueryExecMode, pgx.QueryResultFormats, pgx.QueryResultFormatsByOID:
			return nil
		}
	}
	st := r.v.pipelined.Load()
	if st == nil {
		st = pipeline.NewStmt(r.query, r.v, companies[r.v.company], r.v.relations)
		if !r.v.pipelined.CompareAndSwap(nil, st) {
			st = r.v.pipelined.Load()
		}
	}
	if st.Elsewhere() {
		return nil
	}
	return st
}

// companies are what a pipeline calls them.
var companies = [...]pipeline.Company{judge.Alone: pipeline.Alone, judge.Apart: pipeline.Apart, judge.Joined: pipeline.Joined}

// pipelineLaunch is the flight.Inline of a read that the pipeline runs. It is the
// pipeline.Read as well.
type pipelineLaunch struct {
	launch
	x     *pipelineExecutor
	st    *pipeline.Stmt
	f     *flight.Flight[*result]
	call  pipeline.Call
	args  [4]any
	began bool // the call is made
	done  bool // it is finished
	ended bool // and so is the flight, in its leader's goroutine

	cols *sessionColumns // of the answer, or nil: it has not begun
	buf  buffering
	tail error // what the answer ends with, for its readers

	given atomic.Bool // to the generic executor
}

// RunInline implements flight.Inline.
func (l *pipelineLaunch) RunInline(ctx context.Context, f *flight.Flight[*result]) (res *result, err error, more bool) { //nolint:revive // as flight has it
	if l.c.cfg.Timeout > 0 {
		return nil, nil, true
	}
	l.begin(f)
	if l.done = l.call.Run(ctx); !l.done || l.call.Live() != nil || l.elsewhere() {
		return nil, nil, true
	}
	res, err = l.outcome()
	l.ended = true
	return res, err, false
}

// elsewhere reports whether the finished call is to be executed by the generic executor.
func (l *pipelineLaunch) elsewhere() bool {
	err := l.call.Err()
	return err == pipeline.ErrElsewhere || err == pipeline.ErrSpare
}

// launch returns a launch of the read on the statement.
func (x *pipelineExecutor) launch(r read, st *pipeline.Stmt) *pipelineLaunch {
	l, _ := x.launches.Get().(*pipelineLaunch)
	if l == nil {
		l = new(pipelineLaunch)
	}
	l.launch, l.x, l.st = launch{c: x.c, r: r}, x, st
	return l
}

// landed lets a launch be used again, if its leader alone has had it.
func (x *pipelineExecutor) landed(l *pipelineLaunch) {
	if !l.ended {
		return // somebody else may have it
	}
	call := l.call
	call.Forget()
	*l = pipelineLaunch{call: call}
	x.launches.Put(l)
}

// Silent implements flight.Watched.
func (l *pipelineLaunch) Silent() bool {
	if l.given.Load() {
		return l.launch.Silent()
	}
	return l.call.Silent()
}

func (l *pipelineLaunch) begin(f *flight.Flight[*result]) {
	l.f, l.r.f, l.began = f, f, true
	l.call.Init(l.x.Pool, l.st, l.values(), l)
	if f.Careful() {
		l.r.careful = true
		l.call.Careful()
	}
}

// Detach implements flight.Inline: the arguments are the caller's again when it
// returns.
func (l *pipelineLaunch) Detach() {
	l.r.args = copyArgs(l.r.args)
	if l.began {
		l.call.SetArgs(l.values())
	}
}

func (l *pipelineLaunch) values() []any {
	values := l.args[:0]
	for _, a := range l.r.args {
		values = append(values, a.Value)
	}
	return values
}

// Run implements flight.Runner: it goes on from where RunInline left off.
func (l *pipelineLaunch) Run(ctx context.Context, f *flight.Flight[*result]) (*result, error) {
	if !l.began {
		l.begin(f)
	}
	return l.run(ctx, l)
}

// execute implements execution.
func (l *pipelineLaunch) execute(ctx context.Context) (*result, error) {
	if !l.done {
		l.call.Finish(ctx)
		l.done = true
	}
	if l.elsewhere() {
		l.buf.discard() // an answer may have begun before
		if l.call.Err() == pipeline.ErrSpare {
			defer l.x.away.Add(-1)
		}
		l.given.Store(true)
		return l.c.exec.execute(ctx, &l.r)
	}
	if live := l.call.Live(); live != nil {
		live.Watch(ctx)
		res := l.buf.finish()
		res.live = &liveRows{
			rows:   &wireRows{wireColumns: l.cols.wire, s: l.cols.s, source: live},
			first:  l.buf.row,
			cancel: l.r.takeCancel(),
			done:   func() {},
		}
		return res, nil
	}
	return l.outcome()
}

// outcome is that of a finished call.
func (l *pipelineLaunch) outcome() (*result, error) {
	err := l.call.Err()
	if l.x.c.outdated(l.r.v) {
		l.buf.discard()
		return nil, bypassError(ReasonSettings)
	}
	if err == nil {
		l.r.v.landed(l.r.hash)
		res := l.buf.finish()
		res.tail = l.tail
		return res, nil
	}
	var why bypassError
	var dial *pipeline.DialError
	switch {
	case refused(err):
		l.buf.discard()
		l.r.v.learnRefusal(l.r.hash, err)
		l.x.refused.Add(1)
		return nil, bypassError(ReasonRefused)
	case errors.As(err, &why):
		l.x.c.turnOff(Reason(why)) // a matter of the server, not of the statement
		return nil, why
	case errors.As(err, &dial):
		l.buf.discard()
		return nil, &dialError{dial.Err, dial.Began.Sub(processStart)}
	case errors.Is(err, pipeline.ErrAbandoned):
		l.buf.discard()
		return nil, flight.ErrAbandoned
	case l.buf.n == 0:
		l.buf.discard()
		return nil, err
	}
	res := l.buf.finish()
	res.tail, res.closed = err, err
	return res, nil
}

// Dispatch implements pipeline.Read.
func (l *pipelineLaunch) Dispatch() bool { return l.f.Dispatch() }

// Apart implements pipeline.Read: what is now() in a transaction that others have begun
// can be earlier than what its rows say, and that is not for strict callers.
func (l *pipelineLaunch) Apart() bool { return l.f.Strict() }

// Start implements pipeline.Read.
func (l *pipelineLaunch) Start(link *pipeline.Link, d *pipeline.Desc) {
	l.buf.discard()
	l.cols, l.tail = link.User.(*session).columnsOf(d.Shape), nil
	l.buf.begin(l.cols.columns, &l.c.budget, l.c.cfg.MaxResult)
}

// Row implements pipeline.Read.
func (l *pipelineLaunch) Row(values [][]byte) bool {
	if l.tail != nil {
		return true // the rest is nobody's
	}
	size, err := l.cols.wire.decodeRow(values, l.buf.next())
	if err != nil {
		l.tail = err
		return true
	}
	if l.buf.large() && l.c.mayStream(&l.r) {
		l.buf.res.why = ReasonStreamed
		return false
	}
	return l.buf.add(values, size, true)
}

var (
	_ flight.Inline[*result] = (*pipelineLaunch)(nil)
	_ pipeline.Read          = (*pipelineLaunch)(nil)
	_ wireSource             = (*pipeline.Rows)(nil)
	_ driver.Rows            = (*wireRows)(nil)
)
