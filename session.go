package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg/internal/pipeline"
)

// session is one connection of the inner driver and what flightpg knows of it.
// It serves one goroutine at a time.
//
// It is a driver.Conn, with what database/sql asks of one that it pools: pool
// asks the same.
type session struct {
	c         *Connector // whose it is
	dc        driver.Conn
	pgx       *stdlib.Conn // dc if it is pgx's, else nil
	under     *pgx.Conn    // pgx's connection, if dc wraps it too; else nil
	using     driver.Stmt  // of the inner driver: the one that is being executed; or nil
	stmts     stmtCache
	columns   map[*pipeline.Shape]*sessionColumns // of results that have come
	width     int                                 // of those together
	pgxConfig *pgx.ConnConfig                     // see config
	canceller *canceller                          // of a flight session, or nil: it is cancelled as others want it
	follow    *primary                            // where there are several hosts, else nil
	bad       bool                                // must not serve anybody any more
	pooled    bool                                // the inner connection goes back to somebody else's pool
	guard     Guard                               // of a flight session, as it turned out when it was opened
	lenient   bool                                // not for reads that are proven harmless
	settings  settings                            // of a flight session, as its hooks have left them
	flights   bool                                // it is one
	paths     uint64                              // Connector.paths, when it was opened
	asked     []question                          // what the context for which it was opened, or reset last, was asked for
	partition string                              // of who had it opened, or reset last
	path      string                              // of a flight session: where it looks for names, as it has said last; see schemasShown

	fresh  bool   // has not been reset since it was opened
	used   bool   // a flight has run on it
	failed string // the text that failed here when it ran last: nothing is known of it any more

	// cancelled is set when a query on this session was cancelled. The request
	// may reach the server late and hit the next query: a 57014 there that
	// nobody asked for is ours, once.
	cancelled bool
}

// sessionConnector opens sessions over the inner connector.
type sessionConnector struct {
	inner   driver.Connector
	follow  *primary // or nil
	flights bool     // the sessions are for flights, and get a guard
	pooled  bool     // the inner connections go back to somebody else's pool
	guard   Guard
	c       *Connector
	dials   *dials // or nil: one attempt
}

func (sc sessionConnector) Connect(ctx context.Context) (_ driver.Conn, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = hookPanic(p)
		}
	}()
	if sc.dials != nil {
		return sc.dials.dial(ctx, sc.open)
	}
	return sc.open(ctx)
}

func (sc sessionConnector) open(ctx context.Context) (driver.Conn, error) {
	for range maxPings {
		s, err := sc.connect(ctx)
		if err == errOldPrimary && sc.pooled {
			continue // the pool may have others
		}
		if err != nil {
			return nil, err
		}
		return s, nil
	}
	return nil, errOldPrimary
}

func (sc sessionConnector) connect(ctx context.Context) (*session, error) {
	opening := sc.c.watch(ctx)
	part := partitionOf(ctx, sc.c.cfg.PartitionKey)
	dc, err := sc.dialled(opening)
	if sc.flights {
		if p, ok := dc.(*stdlib.Conn); ok && err == nil && sc.c.source.doors && sc.c.elsewhere(p) {
			sc.c.turnOff(ReasonHooks)
		}
		if sc.c.hooked(err); sc.c.off.Load() == uint32(ReasonHooks) {
			if err == nil {
				_ = dc.Close()
			}
			err = bypassError(ReasonHooks) // it is, or would be, like its caller
		}
	}
	if err != nil {
		return nil, err
	}
	s := &session{c: sc.c, dc: dc, follow: sc.follow, pooled: sc.pooled, fresh: true, asked: askedOf(opening), partition: part}
	s.pgx, _ = dc.(*stdlib.Conn)
	if s.pgx == nil {
		s.under = pgxUnder(dc)
	} else {
		s.under = s.pgx.Conn()
	}
	if s.under != nil {
		sc.c.tellStandby(s.under.PgConn())
	}
	if s.pgx != nil {
		s.canceller, _ = s.pgx.Conn().PgConn().CustomData()[cancellerKey].(*canceller)
		sc.c.learnTypes(s.pgx.Conn().TypeMap())
	}
	if sc.flights {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, dialLimit)
		defer cancel()
	}
	if s.follow != nil {
		if err := s.follow.follow(ctx, s.pgx.Conn().PgConn()); err != nil {
			s.bad = true
			_ = s.Close()
			return nil, err
		}
	}
	if sc.flights {
		s.flights = true
		if err := s.arm(ctx, sc.guard); err != nil {
			_ = dc.Close()
			return nil, err
		}
	}
	return s, nil
}

// dialled opens a connection of the inner driver.
func (sc sessionConnector) dialled(ctx context.Context) (_ driver.Conn, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = hookPanic(p)
		}
	}()
	return sc.inner.Connect(ctx)
}

func partitionOf(ctx context.Context, key func(context.Context) string) string {
	if key == nil {
		return ""
	}
	return key(ctx)
}

var (
	_ driver.Conn            = (*session)(nil)
	_ driver.SessionResetter = (*session)(nil)
	_ driver.Validator       = (*session)(nil)
)

// ResetSession implements driver.SessionResetter for the pool: it is called
// before the session is used again.
func (s *session) ResetSession(ctx context.Context) error {
	if s.bad || s.old() {
		return driver.ErrBadConn
	}
	s.fresh = false
	r, ok := s.dc.(driver.SessionResetter)
	if !ok {
		if s.c.own() && (s.flights || !suits(s.asked, nil, ctx)) {
			return driver.ErrBadConn
		}
		return nil
	}
	using := ctx
	if s.c.prepares() {
		using = s.c.watch(ctx)
	}
	err := r.ResetSession(using)
	now := askedOf(using)
	if s.c.own() && (s.flights || !suits(s.asked, now, ctx)) {
		return driver.ErrBadConn
	}
	if len(now) > 0 {
		s.asked = append(slices.DeleteFunc(s.asked, func(a question) bool {
			return slices.ContainsFunc(now, func(b question) bool { return equalValues(a.key, b.key) })
		}), now...)
	}
	s.partition = partitionOf(ctx, s.c.cfg.PartitionKey)
	if s.under != nil && s.c.source.resets {
		s.c.learnTypes(s.under.TypeMap()) // a hook may have registered some
		s.forgetColumns()
		if err == nil && s.guard == GuardSession && !s.surelyArmed() {
			// RESET ALL, DISCARD ALL. It is no statement's fault.
			if s.arm(ctx, GuardSession) != nil {
				err = driver.ErrBadConn
			}
		}
		s.settings = settingsOf(s.under.PgConn())
		if err == nil && s.flights && (s.c.parted() || s.c.comparesPaths()) && s.askPath(ctx) != nil {
			err = driver.ErrBadConn
		}
	}
	return err
}

// resetSafely is ResetSession, but makes an error of a hook's panic.
func (s *session) resetSafely(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = hookPanic(p)
		}
	}()
	return s.ResetSession(ctx)
}

// IsValid implements driver.Validator for the pool: it is called when the
// session is given back. It does no I/O.
func (s *session) IsValid() bool {
	if s.bad || s.dead() {
		return false
	}
	if v, ok := s.dc.(driver.Validator); ok {
		return v.IsValid()
	}
	return true
}

// config returns the config of a pgx connection, which must not be changed. pgx
// makes a copy each time it is asked.
func (s *session) config() *pgx.ConnConfig {
	if s.pgxConfig == nil {
		s.pgxConfig = s.under.Config()
	}
	return s.pgxConfig
}

// dead reports whether the connection is known to be closed.
func (s *session) dead() bool {
	return s.under != nil && (s.under.IsClosed() || s.canceller != nil && s.canceller.closed.Load())
}

// answerLost returns the error of a write, which is err but for one case: pgx says
// of a connection that breaks after a simple query was sent on it, and before the
// answer came, that the query was never sent, and stdlib makes driver.ErrBadConn of
// that (pgx 5.12: MultiResultReader.NextResult peeks first, and what it then reads
// is "conn closed", which is SafeToRetry). database/sql would run the write a second
// time. alive: the connection was, as far as was known, before. exec: it was an Exec,
// which pgx sends as a simple query wherever there are no arguments.
func (s *session) answerLost(alive bool, r *read, exec bool, err error) error {
	if !alive || s.under == nil || r.via != viaQuery || !errors.Is(err, driver.ErrBadConn) || !s.dead() {
		return err
	}
	if !s.simple(r) && !(exec && !slices.ContainsFunc(r.args, func(a driver.NamedValue) bool { return !isOption(a.Value) })) {
		return err // in the extended protocol pgx knows
	}
	return errAnswerLost
}

var errAnswerLost = fmt.Errorf("flightpg: the connection broke before the server answered, and the statement may have run: %w", io.ErrUnexpectedEOF)

// Close implements driver.Conn. Where the connection goes back to a pool, nothing
// of this session does: no prepared statement, and none that may have been
// changed.
func (s *session) Close() error {
	if s.pooled && s.pgx != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closePatience)
		defer cancel()
		if s.bad {
			_ = s.pgx.Conn().Close(ctx) // the pool sees that it is closed
		}
		for _, st := range s.stmts.byText {
			_ = st.Close() // a failure shows at the connection's next use
		}
	}
	return s.dc.Close()
}

// closePatience is how long the closing of a connection may take, as in stdlib.
const closePatience = 5 * time.Second

// Prepare implements driver.Conn; nobody calls it.
func (s *session) Prepare(query string) (driver.Stmt, error) { return s.dc.Prepare(query) }

// Begin implements driver.Conn; nobody calls it.
func (s *session) Begin() (driver.Tx, error) {
	return s.begin(context.Background(), driver.TxOptions{})
}

func (s *session) begin(ctx context.Context, opts driver.TxOptions) (driver.Tx, error) {
	if b, ok := s.dc.(driver.ConnBeginTx); ok {
		return b.BeginTx(ctx, opts)
	}
	// The rules of database/sql's ctxDriverBegin.
	if opts.Isolation != 0 {
		return nil, errors.New("sql: driver does not support non-default isolation level")
	}
	if opts.ReadOnly {
		return nil, errors.New("sql: driver does not support read-only transactions")
	}
	//lint:ignore SA1019 the only way with a driver that has no BeginTx
	return s.dc.Begin()
}

func (s *session) ping(ctx context.Context) error {
	if p, ok := s.dc.(driver.Pinger); ok {
		return p.Ping(ctx)
	}
	return nil
}

// idle reports whether the server says that no transaction is open. Other
// drivers than pgx do not tell: false.
func (s *session) idle() bool { return s.under != nil && s.under.PgConn().TxStatus() == 'I' }

// query runs a query, on a prepared statement if that is how the caller asked
// for it or the only way the driver has.
func (s *session) query(ctx context.Context, via byte, query string, args []driver.NamedValue) (driver.Rows, error) {
	if q, ok := s.dc.(driver.QueryerContext); ok && via == viaQuery {
		s.forget(query)
		args, err := s.convert(nil, args)
		if err != nil {
			return nil, err
		}
		rows, err := q.QueryContext(ctx, query, args)
		if err != driver.ErrSkip { // database/sql compares with != too
			return rows, err
		}
	}
	st, err := s.stmt(ctx, query)
	if err != nil {
		return nil, err
	}
	if args, err = s.convert(st, args); err != nil {
		return nil, err
	}
	if q, ok := st.(driver.StmtQueryContext); ok {
		rows, err := q.QueryContext(ctx, args)
		s.check(query, err)
		return rows, err
	}
	values, err := withoutNames(args)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 the only way with a driver that has no StmtQueryContext
	return st.Query(values)
}

// queryWire runs a read as stdlib does, but keeps hold of what the server sends.
// The connection is pgx's.
func (s *session) queryWire(ctx context.Context, r *read) (*wireRows, error) {
	if s.dead() {
		return nil, driver.ErrBadConn
	}
	if r.via == viaQuery {
		s.forget(r.query)
	} else if _, err := s.stmt(ctx, r.query); err != nil {
		return nil, err
	}
	mode := s.modeOf(r)
	// A description that pgx keeps may ask for formats that are meant for other columns.
	mayMisfit := r.via == viaQuery && mode == pgx.QueryExecModeCacheDescribe && !s.describes(r)
	rows, err := s.pgx.Conn().Query(ctx, r.query, stdlibArgs(r.args)...)
	if err == nil {
		var wire *wireRows
		wire, err = newWireRows(s, rows, r.v, r.via == viaQuery && mode == pgx.QueryExecModeSimpleProtocol)
		switch {
		case err != nil:
		case mayMisfit && wire.ahead && !s.callOf(r).fits(wire.fields):
			err = rows.Scan(misfit{}) // ends them with the error, for which pgx forgets the description
		default:
			return wire, nil
		}
	} else if pgconn.SafeToRetry(err) {
		err = driver.ErrBadConn
	}
	if r.via == viaStmt && (stalePlan(err) || doubtful(err)) {
		s.forget(r.query) // as pgx does with those that it keeps itself
	}
	return nil, err
}

// asNew returns the arguments with which a statement is described anew here, whatever is
// known of it: for one with names that the catalog did not have, which come and go. It may
// do anything, so it cannot be run again if what is known is out of date.
func (s *session) asNew(via byte, query string, args []driver.NamedValue) []driver.NamedValue {
	switch {
	case s.pgx == nil:
		return args
	case via == viaStmt:
		s.forget(query)
		return args
	case !keeps(s.modeOf(&read{args: args})):
		return args
	}
	return append([]driver.NamedValue{{Value: pgx.QueryExecModeDescribeExec}}, args...)
}

// misfit is a pgx.RowScanner for rows that were described as others.
type misfit struct{}

func (misfit) ScanRow(pgx.Rows) error { return errOtherColumns }

// describes reports whether the read's statement will be described anew when it is
// executed here. Then what the server says of it is so; where it is not known, it is
// looked at twice.
func (s *session) describes(r *read) bool {
	if s.pgx == nil || r.via == viaPrepare {
		return true
	}
	mode := s.modeOf(r)
	switch {
	case s.guard == GuardTransaction && r.pipelines(mode) && !s.asPgx(r, mode):
		return r.anew || r.v.description.Load() == nil || mode == pgx.QueryExecModeExec && r.via == viaQuery
	case r.via == viaStmt:
		return s.stmts.byText[r.query] == nil
	case !s.used && s.c.source.fresh && s.c.cfg.AfterConnect == nil && s.c.cfg.ResetSession == nil:
		return true // nobody has asked it anything yet
	case keeps(mode):
		return s.failed == r.query // pgx forgets a statement at any error
	}
	return true
}

// overtaken reports whether the parser has refused, with err, a statement that it had
// taken when it was described: DDL came between, however short a time ago that was.
func (s *session) overtaken(r *read, err error) bool {
	var prepare *pgconn.PrepareError
	if r.via == viaPrepare || !refusedByParser(err) || errors.As(err, &prepare) {
		return false
	}
	mode := s.modeOf(r)
	return r.via == viaStmt || mode == pgx.QueryExecModeDescribeExec || keeps(mode)
}

// keeps reports whether pgx keeps descriptions in that mode.
func keeps(mode pgx.QueryExecMode) bool {
	return mode == pgx.QueryExecModeCacheStatement || mode == pgx.QueryExecModeCacheDescribe
}

// met notes what a read has ended with.
func (s *session) met(r *read, res *result, failure error) {
	s.used = true
	switch {
	case failure != nil && res == nil:
		s.failed = r.query
	case s.failed == r.query:
		s.failed = ""
	}
}

// doubts reports whether a read that has failed with err before its first row may have
// failed because what this connection knew of its statement was out of date. It is
// thrown away then.
func (s *session) doubts(via byte, query string, args []driver.NamedValue, err error) bool {
	if s.pgx == nil || !doubtful(err) || !s.idle() {
		return false
	}
	if slices.ContainsFunc(args, func(a driver.NamedValue) bool {
		return a.Value != nil && !isOption(a.Value) && planOf(reflect.TypeOf(a.Value)).convert != convertNever
	}) {
		return false // a Valuer would be asked again
	}
	if via == viaStmt {
		s.forget(query)
		return true
	}
	return keeps(s.modeOf(&read{args: args}))
}

// stdlibArgs returns the arguments as stdlib passes them to pgx.
func stdlibArgs(args []driver.NamedValue) []any {
	out := make([]any, 1, 1+len(args))
	out[0] = binaryResults
	for _, a := range args {
		out = append(out, a.Value)
	}
	return out
}

// exec is query for statements without rows.
func (s *session) exec(ctx context.Context, via byte, query string, args []driver.NamedValue) (driver.Result, error) {
	if e, ok := s.dc.(driver.ExecerContext); ok && via == viaQuery {
		s.forget(query)
		args, err := s.convert(nil, args)
		if err != nil {
			return nil, err
		}
		res, err := e.ExecContext(ctx, query, args)
		if err != driver.ErrSkip {
			return res, err
		}
	}
	st, err := s.stmt(ctx, query)
	if err != nil {
		return nil, err
	}
	if args, err = s.convert(st, args); err != nil {
		return nil, err
	}
	if e, ok := st.(driver.StmtExecContext); ok {
		res, err := e.ExecContext(ctx, args)
		s.check(query, err)
		return res, err
	}
	values, err := withoutNames(args)
	if err != nil {
		return nil, err
	}
	//lint:ignore SA1019 the only way with a driver that has no StmtExecContext
	return st.Exec(values)
}

func withoutNames(args []driver.NamedValue) ([]driver.Value, error) {
	values := make([]driver.Value, len(args))
	for i, a := range args {
		if a.Name != "" {
			return nil, errors.New("sql: driver does not support the use of Named Parameters")
		}
		values[i] = a.Value
	}
	return values, nil
}

// convert does for the inner driver what database/sql's driverArgsConnLocked
// did not do for ours, because our CheckNamedValue lets everything pass: the
// statement's checker masks the connection's, and without one the default
// converter applies. pgx converts nothing.
func (s *session) convert(st driver.Stmt, args []driver.NamedValue) ([]driver.NamedValue, error) {
	if s.pgx != nil || len(args) == 0 {
		return args, nil
	}
	checker, ok := st.(driver.NamedValueChecker)
	if !ok {
		checker, _ = s.dc.(driver.NamedValueChecker)
	}
	//lint:ignore SA1019 database/sql honours it
	columns, _ := st.(driver.ColumnConverter)
	out := make([]driver.NamedValue, 0, len(args))
	for _, a := range args {
		err := driver.ErrSkip
		if checker != nil {
			err = checker.CheckNamedValue(&a)
		}
		if err == driver.ErrSkip {
			conv := driver.ValueConverter(driver.DefaultParameterConverter)
			if columns != nil {
				conv = columns.ColumnConverter(a.Ordinal - 1)
			}
			a.Value, err = conv.ConvertValue(a.Value)
		}
		switch err {
		case nil:
			a.Ordinal = len(out) + 1
			out = append(out, a)
		case driver.ErrRemoveArgument:
		default:
			return nil, fmt.Errorf("sql: converting argument $%d type: %w", a.Ordinal, err)
		}
	}
	return out, nil
}

// stmt returns the session's prepared statement of the text, made at its first
// use here. database/sql closes its statements under a global lock and after
// the session is gone, so nothing is closed then: the statement that was used
// least recently makes room.
func (s *session) stmt(ctx context.Context, query string) (driver.Stmt, error) {
	if s.using != nil {
		return s.using, nil
	}
	if st := s.stmts.get(query); st != nil {
		return st, nil
	}
	st, err := s.prepare(ctx, query)
	if err != nil {
		return nil, err
	}
	s.keep(query, st)
	return st, nil
}

// prepare prepares a statement with the inner driver.
func (s *session) prepare(ctx context.Context, query string) (driver.Stmt, error) {
	if p, ok := s.dc.(driver.ConnPrepareContext); ok {
		return p.PrepareContext(ctx, query)
	}
	return s.dc.Prepare(query)
}

// keep keeps a prepared statement for the next use of its text here.
func (s *session) keep(query string, st driver.Stmt) {
	for _, old := range s.stmts.put(query, st, s.c.verdicts.opened) {
		_ = old.Close() // a failure shows at the connection's next use
	}
}

// forget closes the prepared statement of the text, if there is one. pgx finds
// prepared statements by their text and would use it for a plain query, which
// has another result in its exec and simple modes.
func (s *session) forget(query string) {
	if s.under == nil {
		return
	}
	if st := s.stmts.remove(query); st != nil {
		_ = st.Close() // a failure shows at the connection's next use
	}
}

// check drops a prepared statement that the server refuses since DDL has
// changed its result, or does not know any more.
func (s *session) check(query string, err error) {
	if stalePlan(err) {
		s.forget(query)
	}
}

// outdated reports whether err says that what this connection knew of a statement
// was out of date, so that the server has run nothing of it, and that it can run
// now: pgx has thrown away what was wrong, and no transaction has failed. The
// names are those of PostgreSQL's functions that raise the errors, before they
// execute a statement: RevalidateCachedQuery raises "cached plan must not change
// result type". A function's own statement can raise that too, after others, and
// then Where is set.
func (s *session) outdated(err error) bool {
	var pgErr *pgconn.PgError
	if err == nil || !errors.As(err, &pgErr) || pgErr.Where != "" || !s.idle() {
		return false
	}
	switch pgErr.Routine {
	case "RevalidateCachedQuery":
		return pgErr.Code == "0A000" // feature_not_supported
	case "FetchPreparedStatement":
		return pgErr.Code == "26000" // invalid_sql_statement_name: the prepared statement is gone
	case "PortalSetResultFormat":
		return pgErr.Code == "08P01" // protocol_violation: it has another number of columns now
	}
	return false
}

// numInput asks the server for the number of parameters of a statement, and, where
// the inner driver is pgx, for their types.
// prepared: the statement will be executed as a prepared one here.
func (s *session) numInput(ctx context.Context, prepared bool, query string) (n int, oids []uint32, err error) {
	if s.dead() {
		return 0, nil, driver.ErrBadConn
	}
	if prepared || s.pgx == nil {
		st, err := s.stmt(ctx, query)
		if err != nil {
			return 0, nil, err
		}
		if s.pgx == nil {
			return st.NumInput(), nil, nil
		}
		// stdlib has prepared it under its text: pgx knows it, and asks nobody.
		sd, err := s.pgx.Conn().Prepare(ctx, query, query)
		if err != nil {
			return 0, nil, err
		}
		return st.NumInput(), sd.ParamOIDs, nil
	}
	// pgx prepares it under a name of its own when it runs. An unnamed
	// one leaves nothing behind that DDL could make stale.
	sd, err := s.pgx.Conn().PgConn().Prepare(ctx, "", query, nil)
	if err != nil {
		return 0, nil, err
	}
	return len(sd.ParamOIDs), sd.ParamOIDs, nil
}

// maxStmts is how many prepared statements a session keeps, the number that
// pgx's own cache holds by default, and stmtBytes bounds their texts.
const (
	maxStmts  = 512
	stmtBytes = 4 << 20
)

// stmtCache keeps prepared statements in the order of their last use. Sessions
// have few; a scan is as good as a list.
type stmtCache struct {
	byText map[string]driver.Stmt
	order  []string // least recently used first
	bytes  int      // of the texts
}

func (c *stmtCache) get(query string) driver.Stmt {
	st := c.byText[query]
	if st != nil && c.order[len(c.order)-1] != query {
		i := slices.Index(c.order, query)
		c.order = append(slices.Delete(c.order, i, i+1), query)
	}
	return st
}

func (c *stmtCache) remove(query string) driver.Stmt {
	st := c.byText[query]
	if st != nil {
		delete(c.byText, query)
		c.bytes -= len(query)
		i := slices.Index(c.order, query)
		c.order = slices.Delete(c.order, i, i+1)
	}
	return st
}

// put adds a statement, and returns those that have to go for it. opened reports whether
// an application has one of that text: of the others a few are kept.
func (c *stmtCache) put(query string, st driver.Stmt, opened func(string) bool) (evicted []driver.Stmt) {
	if c.byText == nil {
		c.byText = make(map[string]driver.Stmt)
	}
	for len(c.order) > 0 && (len(c.order) >= maxStmts || c.bytes+len(query) > stmtBytes) {
		evicted = append(evicted, c.remove(c.order[0]))
	}
	for looks := 0; looks < 4 && len(c.order) > 0 && (len(c.order) > keptStmts || c.bytes+len(query) > keptBytes); looks++ {
		if oldest := c.order[0]; opened(oldest) {
			c.order = append(slices.Delete(c.order, 0, 1), oldest) // its turn comes again
		} else {
			evicted = append(evicted, c.remove(oldest))
		}
	}
	c.byText[query] = st
	c.order = append(c.order, query)
	c.bytes += len(query)
	return evicted
}

// connectionLost reports whether err means that the connection failed, not the
// statement: the same read on another connection may well succeed.
func (s *session) connectionLost(err error) bool {
	if err == nil {
		return false
	}
	if s.under != nil {
		return s.dead() || errors.Is(err, driver.ErrBadConn)
	}
	return errors.Is(err, driver.ErrBadConn)
}

// delivers reports whether a cancel request has always arrived before the next
// query leaves, see canceller.
func (s *session) delivers() bool {
	return s.pgx != nil && sameFunc(s.config().BuildContextWatcherHandler, cancelRequest)
}

// strayCancel reports whether err is a cancellation that nobody on this query
// asked for: PostgreSQL's cancel requests name a session, not a query, so one
// that is late hits the next.
func (s *session) strayCancel(err error) bool {
	if !s.cancelled {
		return false
	}
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "57014" // query_canceled
}

// sessionPool lends sessions to virtual connections, and keeps the idle pinned ones:
// sessions that belong to a virtual connection which itself lies idle in database/sql's
// pool. Such a
// session promises nothing to anybody, so where their number is capped, the one idle for
// longest is closed when another caller needs room, and the limits of idle sessions hold
// for these, too. Without that rule a few pinned sessions would
// starve all writers.
type sessionPool struct {
	db   *pool
	cap  int // 0: none
	idle int // idle pinned ones

	idleTime time.Duration // of those whose state somebody may count on; 0: no limit
	restTime time.Duration // of the others
	lifetime time.Duration
	timer    *time.Timer // closes those whose time is over

	mu     sync.Mutex // guards what follows and conn.parked, conn.evicted, conn.end; no I/O while it is held
	next   time.Time  // when the timer fires
	wanted int        // sessions lent, pinned ones included, and callers waiting for one
	parked []*conn    // idle and pinned, longest idle first

	evictions atomic.Uint64
}

func newSessionPool(db *pool, c *Connector) *sessionPool {
	p := &sessionPool{
		db: db, cap: c.cfg.SessionConns, idle: max(c.cfg.MaxIdle, 0),
		idleTime: c.keptIdle, restTime: max(c.cfg.MaxIdleTime, 0), lifetime: c.cfg.MaxLifetime,
	}
	own := weak.Make(p) // as in newPool
	p.timer = time.AfterFunc(math.MaxInt64, func() {
		if p := own.Value(); p != nil {
			p.expire()
		}
	})
	p.timer.Stop()
	return p
}

// ends returns when the time of a parked connection's session is over.
func (p *sessionPool) ends(c *conn, now time.Time) (end time.Time) {
	limit := p.restTime
	if c.counts() {
		limit = p.idleTime
	}
	if limit > 0 {
		end = now.Add(limit)
	}
	if p.lifetime > 0 {
		if old := c.lease.res.Value().opened.Add(p.lifetime); end.IsZero() || old.Before(end) {
			end = old
		}
	}
	return end
}

// expire closes the parked sessions whose time is over. Their connections are dropped
// when they are to be used again.
func (p *sessionPool) expire() {
	var gone []*lease
	p.mu.Lock()
	now := time.Now()
	p.next = time.Time{}
	p.parked = slices.DeleteFunc(p.parked, func(c *conn) bool {
		switch {
		case c.end.IsZero():
		case c.end.After(now):
			if p.next.IsZero() || c.end.Before(p.next) {
				p.next = c.end
			}
		default:
			c.parked, c.evicted = false, true
			p.wanted--
			gone = append(gone, c.lease)
			return true
		}
		return false
	})
	if !p.next.IsZero() {
		p.timer.Reset(time.Until(p.next))
	}
	p.mu.Unlock()
	for _, l := range gone {
		l.bad = true
		l.release()
	}
}

// acquire lends a session.
func (p *sessionPool) acquire(ctx context.Context) (*lease, error) {
	p.mu.Lock()
	var room *lease
	lends := false
	if p.cap > 0 && p.wanted >= p.cap && len(p.parked) > 0 {
		victim := p.parked[0]
		room = victim.lease // now: its connection may be closed in the next moment, and forgets it
		lends = victim.lent
		p.parked = slices.Delete(p.parked, 0, 1)
		victim.parked, victim.evicted = false, true
		p.wanted--
	}
	p.wanted++
	p.mu.Unlock()
	if room != nil {
		if !lends {
			p.evictions.Add(1)
			room.bad = true
		}
		room.release()
	}
	l, err := p.db.borrow(ctx)
	if err != nil {
		p.unwant()
		return nil, err
	}
	return l, nil
}

// release takes a session back.
func (p *sessionPool) release(l *lease) {
	l.release()
	p.unwant()
}

func (p *sessionPool) unwant() {
	p.mu.Lock()
	p.wanted--
	p.mu.Unlock()
}

// park notes that a pinned connection lies idle from now on. It reports false
// if somebody is waiting for room, or too many are idle: the connection should rather
// be closed.
func (p *sessionPool) park(c *conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c.parked || c.evicted {
		return !c.evicted // IsValid can run twice in a row
	}
	if p.cap > 0 && p.wanted > p.cap {
		p.evictions.Add(1)
		return false
	}
	if len(p.parked) >= p.idle {
		return false
	}
	c.lies = true
	c.parked, c.lent = true, c.lends()
	p.parked = append(p.parked, c)
	if c.end = p.ends(c, time.Now()); !c.end.IsZero() && (p.next.IsZero() || c.end.Before(p.next)) {
		p.next = c.end
		p.timer.Reset(time.Until(p.next))
	}
	return true
}

// leave takes a connection's session from it. It reports false if that has been closed
// to make room; the connection, which may go on with another one, starts anew.
func (p *sessionPool) leave(c *conn) bool {
	kept := p.unpark(c)
	if !kept {
		p.mu.Lock()
		c.lies, c.evicted = false, false
		p.mu.Unlock()
	}
	return kept
}

// unpark takes a pinned connection back into use. It reports false if its
// session has been closed meanwhile.
func (p *sessionPool) unpark(c *conn) bool {
	if !c.lies { // then nobody else can have touched it
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	c.lies = c.evicted
	if c.parked {
		c.parked = false
		i := slices.Index(p.parked, c)
		p.parked = slices.Delete(p.parked, i, i+1)
	}
	return !c.evicted
}
