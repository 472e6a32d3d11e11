package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/judge"
	"github.com/flightpg/flightpg/internal/pipeline"
)

// Guard says how flights are kept from writing, should a statement that writes
// have been taken for a read. PostgreSQL then refuses the write (SQLSTATE
// 25006), the statement is remembered as one that bypasses, and every caller
// runs it on a session of its own.
type Guard uint8

const (
	// GuardAuto uses GuardSession on connections that lead to a server, and
	// GuardTransaction on those that lead to a pooler such as PgBouncer, but for
	// reads that the catalog proves harmless: those go there as pgx would send
	// them, without a transaction. The default.
	GuardAuto Guard = iota
	// GuardSession makes the flights' sessions read-only, once, when they are
	// opened. Not behind a pooler that gives a server connection to several
	// clients: there the setting would leak to others.
	GuardSession
	// GuardTransaction runs each flight, also of what is proven harmless, in a
	// read-only transaction of its own, which is rolled back: BEGIN, the query and
	// ROLLBACK travel together.
	GuardTransaction
	// GuardOff sends reads as they are. What a shared statement does is then
	// for the rules alone to know.
	GuardOff
)

var guardNames = [...]string{GuardAuto: "auto", GuardSession: "session", GuardTransaction: "transaction", GuardOff: "off"}

// String returns the guard's name as in the flight_guard parameter.
func (g Guard) String() string {
	if int(g) < len(guardNames) {
		return guardNames[g]
	}
	return fmt.Sprintf("Guard(%d)", uint8(g))
}

func parseGuard(name string) (Guard, error) {
	for g, n := range guardNames {
		if n == name {
			return Guard(g), nil
		}
	}
	return 0, errRange
}

// readOnly is the setting that GuardSession sets. PostgreSQL 14 and later
// report its changes to the client.
const readOnly = "default_transaction_read_only"

// arm sets up a new flight session's guard. In one round trip it compares the
// process id that the protocol gave with the one that answers, and sets the
// session read-only where the two agree: a pooler makes up the former, and what
// is set behind it stays with a server connection that others will get.
// (Never as a startup parameter: that breaks target_session_attrs=read-write,
// and PgBouncer refuses it.)
func (s *session) arm(ctx context.Context, guard Guard) error {
	if s.under != nil {
		if !s.scannable() {
			return bypassError(ReasonSettings)
		}
		s.settings = settingsOf(s.under.PgConn())
	}
	if s.follow != nil && s.timeline() == (timeline{}) {
		return bypassError(ReasonSeveralHosts)
	}
	if s.under == nil {
		s.guard = guard
		return nil
	}
	pg := s.under.PgConn()
	if guard == GuardTransaction && s.pgx == nil {
		return bypassError(ReasonNoGuard) // it travels with the query, past what wraps pgx
	}
	if guard == GuardOff || guard == GuardTransaction {
		s.guard = guard
		if !s.c.asksPath(s) {
			return nil
		}
		results, err := ask(ctx, pg, "SELECT "+schemasShown)
		if err != nil {
			return err
		}
		return s.c.meetPath(s, cell(results, 0))
	}
	results, err := ask(ctx, pg, "SELECT CASE WHEN "+strconv.FormatBool(guard == GuardSession)+
		" OR pg_catalog.pg_backend_pid() OPERATOR(pg_catalog.=) "+strconv.FormatUint(uint64(pg.PID()), 10)+
		" THEN pg_catalog.set_config('"+readOnly+"', 'on', false) ELSE 'pooler' END, "+schemasShown)
	if err != nil {
		if s.dead() && pgconn.SafeToRetry(err) { // "conn closed", see answerLost
			err = fmt.Errorf("flightpg: the connection broke while it was opened: %w", io.ErrUnexpectedEOF)
		}
		return err
	}
	switch answer := cell(results, 0); {
	case answer == "pooler" && s.pgx == nil:
		return bypassError(ReasonNoGuard)
	case answer == "pooler":
		s.guard, s.lenient = GuardTransaction, true
	case answer != "on" || !s.armed():
		return fmt.Errorf("flightpg: the server did not make a session read-only (%s = %q): set flight_guard=transaction or flight_guard=off", readOnly, answer)
	default:
		s.guard = GuardSession
		s.c.direct.Store(true)
	}
	return s.c.meetPath(s, cell(results, 1))
}

// schemasShown is where a session looks for names, as catalog.Set.Path has it.
const schemasShown = "pg_catalog.array_to_string(pg_catalog.current_schemas(true), pg_catalog.chr(1))"

// comparesPaths reports whether all flight sessions of the connector are to look for names
// in the same places.
func (c *Connector) comparesPaths() bool {
	return c.catalogs != nil && c.depends.Load() == nil
}

// meetPath compares where a new flight session looks for names with the picture of the
// catalog by which texts are judged. If another process has changed that for those who
// connect from now on (ALTER ROLE, ALTER DATABASE, ALTER SYSTEM), the picture is none of
// theirs, nor are the verdicts by it, and the sessions that are open are not like them.
func (c *Connector) meetPath(s *session, path string) error {
	s.path = path
	if c.parted() {
		return nil // see Connector.moved
	}
	if !c.comparesPaths() || s.pooled {
		return nil
	}
	s.paths = c.paths.Load()
	l := c.catalogs.current.Load()
	if l == nil || path == "" || l.set.Path() == path {
		return nil
	}
	c.movePaths(l)
	return bypassError(ReasonSettings) // this dial is for a read that was judged before
}

// askPath asks a flight session where it looks for names: what it has said may not be so
// any more.
func (s *session) askPath(ctx context.Context) error {
	results, err := ask(ctx, s.under.PgConn(), "SELECT "+schemasShown)
	if path := cell(results, 0); err == nil && path != s.path {
		err = s.c.meetPath(s, path)
	}
	return err
}

// movePaths notes that flight sessions are to look for names in other places than those
// of a picture of the catalog.
func (c *Connector) movePaths(l *loaded) {
	if c.catalogs.current.CompareAndSwap(l, nil) {
		c.judged.Store(c.catalogs.gens.Load())
		c.paths.Add(1)
	}
}

// outdated reports whether a verdict is by a picture of the catalog for sessions that look
// for names in other places.
func (c *Connector) outdated(v *verdict) bool {
	return v.gen != 0 && baseGeneration(v.gen) <= c.judged.Load()
}

// ask runs queries of flightpg's own. These run as the application's role, and under
// its search_path: every name and operator in them is qualified, or whoever may
// create one that fits better runs code there. TestOwnQueries finds what is not.
//
// At some answers that no PostgreSQL gives pgx panics, and this may run where nobody
// could recover: while database/sql opens a connection in the background, or while
// the catalog is loaded.
func ask(ctx context.Context, pg *pgconn.PgConn, text string) (results []*pgconn.Result, err error) {
	defer bounded(ctx, pg)()
	defer func() {
		if p := recover(); p != nil {
			_ = pg.Conn().Close()
			results, err = nil, fmt.Errorf("flightpg: pgx panicked at a server's answer: %v", p)
		}
	}()
	return pg.Exec(ctx, text).ReadAll()
}

// bounded makes what is asked on the connection in the simple protocol end some time
// after ctx, until done is called: at a ReadyForQuery that comes too early pgx stops
// to watch the context, and goes on reading.
func bounded(ctx context.Context, pg *pgconn.PgConn) (done func()) {
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		late := time.NewTimer(2 * cancelPatience)
		defer late.Stop()
		select {
		case <-ended:
		case <-late.C:
			_ = pg.Conn().Close()
		}
	})
	return func() {
		stop()
		close(ended)
	}
}

// rollBack sends what ends a transaction, whatever has become of the context of
// what ran in it. Errors show in the session's state.
func (s *session) rollBack(ctx context.Context, text string) {
	if !s.dead() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closePatience)
		defer cancel()
		_, _ = ask(ctx, s.under.PgConn(), text)
	}
	s.bad = s.bad || !s.idle()
}

// cell returns a column of the first row of an answer, "" where the answer has no
// such thing: what is at the other end may not be PostgreSQL.
func cell(results []*pgconn.Result, column int) string {
	if len(results) == 0 || len(results[0].Rows) == 0 || column >= len(results[0].Rows[0]) {
		return ""
	}
	return string(results[0].Rows[0][column])
}

// scannable reports whether the session reads SQL text as the text rules do, by
// the settings that the server reports to every client: backslashes mean nothing
// in plain strings, and no ASCII byte is part of another character.
func (s *session) scannable() bool {
	pg := s.under.PgConn()
	if v := pg.ParameterStatus("standard_conforming_strings"); v != "on" && v != "" {
		return false
	}
	encoding := pg.ParameterStatus("client_encoding")
	for _, safe := range []string{"UTF8", "SQL_ASCII", "LATIN", "ISO_8859", "WIN", "KOI8", "EUC_"} {
		if strings.HasPrefix(encoding, safe) {
			return true
		}
	}
	return encoding == ""
}

// reported are settings that PostgreSQL tells each client of, when it connects and when
// they change: those that say what a text means come first; the others say how values are
// written, and where reads go.
var reported = append(slices.Clone(pipeline.Meanings), "TimeZone", "DateStyle", "IntervalStyle", "in_hot_standby")

// settings are the values of those.
type settings [9]string

func settingsOf(pg *pgconn.PgConn) (values settings) {
	for i, name := range reported {
		values[i] = pg.ParameterStatus(name)
	}
	return values
}

// unsettled looks at a session on which a read has ended. If the server has told of
// another setting, the session is not to serve anybody any more; and if that one says
// what a text means, it reports true: nobody knows what has been executed. A reload of
// the server's configuration gets to each session before its next statement, and is told
// together with the end of that.
func (s *session) unsettled() bool {
	now := settingsOf(s.under.PgConn())
	if now == s.settings {
		return false
	}
	s.bad = true
	s.c.tellStandby(s.under.PgConn())
	return !slices.Equal(now[:len(pipeline.Meanings)], s.settings[:len(pipeline.Meanings)])
}

// settled says why a session cannot be used that has reported this since it was armed.
func (s *session) settled(now map[string]string) error {
	for i, name := range pipeline.Meanings {
		if now[name] != s.settings[i] {
			return bypassError(ReasonSettings)
		}
	}
	return nil
}

// tellStandby notes whether a connection leads to a hot standby, where nobody can read
// what he has just written elsewhere. PostgreSQL 14 and later tell.
func (c *Connector) tellStandby(pg *pgconn.PgConn) {
	if on := pg.ParameterStatus("in_hot_standby") == "on"; c.standby.Load() != on {
		c.standby.Store(on)
	}
}

// armed reports whether the session is still read-only, as far as the server
// has told: a function can set and unset what it likes, even a STABLE one.
func (s *session) armed() bool {
	if s.under == nil {
		return true // there is no guard
	}
	status := s.under.PgConn().ParameterStatus(readOnly)
	return status == "on" || status == "" // before 14 the server does not tell
}

// surelyArmed reports whether the server says so.
func (s *session) surelyArmed() bool {
	return s.under.PgConn().ParameterStatus(readOnly) == "on"
}

// refused reports whether err is the server's refusal to write in a read-only
// transaction.
func refused(err error) bool {
	if err == nil {
		return false
	}
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "25006" // read_only_sql_transaction
}

// serversRefusal reports whether a refusal is the server's own, by the names of its
// functions that raise it: the statement, with these arguments, writes. A function can
// raise the same, or what it has caught; then nobody knows.
func serversRefusal(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && (pgErr.Routine == "PreventCommandIfReadOnly" || pgErr.Routine == "PreventCommandDuringRecovery")
}

// noTransaction turns the refusal of BEGIN by a pooler that gives a server
// connection to a client for one statement only (PgBouncer's pool_mode=statement)
// into a bypass: there is no guard to be had. PgBouncer has one SQLSTATE for all
// its complaints, those that pass too ("query_wait_timeout"): the text decides.
func noTransaction(err error) error {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && pgErr.Code == "08P01" && // protocol_violation
		strings.Contains(pgErr.Message, "transaction blocks not allowed") {
		return bypassError(ReasonNoGuard)
	}
	return err
}

// guarded runs a read under the session's guard.
func (s *session) guarded(ctx context.Context, r *read) (driver.Rows, error) {
	if s.pgx == nil {
		// The inner driver may change the slice; a retry needs it whole.
		return s.query(ctx, r.via, r.query, slices.Clone(r.args))
	}
	rows, err := s.guardedWire(ctx, r)
	if err != nil {
		return nil, err
	}
	return rows, nil
}

// guardedWire is guarded for pgx's connections.
func (s *session) guardedWire(ctx context.Context, r *read) (*wireRows, error) {
	if s.guard != GuardTransaction {
		return s.queryWire(ctx, r)
	}
	call := s.callOf(r)
	switch {
	case s.asPgx(r, call.mode):
		return s.queryWire(ctx, r)
	case !r.pipelines(call.mode):
		return s.queryInTx(ctx, r)
	}
	return s.queryInPipeline(ctx, call, r)
}

// bare reports whether a read runs without a guard on a session of GuardTransaction:
// flight_guard=auto has found a pooler, and the catalog proves that the read runs
// nothing but built-ins that are harmless, on plain tables. A transaction around it costs
// as much as the read. What is given up is the guard of what the picture of the catalog
// does not know yet.
func (s *session) bare(r *read) bool { return s.lenient && r.v.company == judge.Joined }

// asPgx reports whether a read without a guard is sent as pgx sends it in that mode. In
// the other modes, and as a prepared statement, pgx names statements, or takes two steps
// that may reach two of a pooler's server connections.
func (s *session) asPgx(r *read, mode pgx.QueryExecMode) bool {
	if !s.bare(r) || r.via != viaQuery {
		return false
	}
	switch mode {
	case pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol:
		return true
	}
	return false
}

// pipelines reports whether a read in that mode can travel together with its
// transaction.
func (r *read) pipelines(mode pgx.QueryExecMode) bool {
	switch mode {
	case pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec, pgx.QueryExecModeExec:
		return true
	}
	return r.via != viaQuery
}

// pgxCall is what a call asks of pgx, with its options read as pgx reads them.
type pgxCall struct {
	mode    pgx.QueryExecMode
	formats pgx.QueryResultFormatsByOID // of results; what stdlib asks for comes before pgx.QueryResultFormats
	args    []any
}

func (s *session) callOf(r *read) pgxCall {
	call := pgxCall{mode: s.config().DefaultQueryExecMode, args: stdlibArgs(r.args)}
	for len(call.args) > 0 {
		switch option := call.args[0].(type) {
		case pgx.QueryExecMode:
			call.mode = option
		case pgx.QueryResultFormatsByOID:
			call.formats = option
		case pgx.QueryResultFormats:
		default:
			return call
		}
		call.args = call.args[1:]
	}
	return call
}

// fits reports whether columns have come in the formats that are asked for of their
// types.
func (c pgxCall) fits(fields []pgconn.FieldDescription) bool {
	for i := range fields {
		if fields[i].Format != c.formats[fields[i].DataTypeOID] {
			return false
		}
	}
	return true
}

// simple reports whether pgx runs a call in the simple protocol.
func (s *session) simple(r *read) bool { return s.modeOf(r) == pgx.QueryExecModeSimpleProtocol }

// modeOf returns the mode in which pgx runs a call.
func (s *session) modeOf(r *read) pgx.QueryExecMode {
	mode := s.config().DefaultQueryExecMode
	for i := 0; i < len(r.args) && isOption(r.args[i].Value); i++ {
		if option, ok := r.args[i].Value.(pgx.QueryExecMode); ok {
			mode = option
		}
	}
	return mode
}

// describe asks for the types of a statement's parameters and columns, once for
// each text, in a transaction of its own if it needs the guard. It goes step by step,
// with pgx's own Prepare, whose errors are the ones that pgx's users know.
func (s *session) describe(ctx context.Context, r *read) (sd *pgconn.StatementDescription, err error) {
	pg := s.pgx.Conn().PgConn()
	if s.bare(r) {
		return pg.Prepare(ctx, "", r.query, nil)
	}
	end, err := s.beginReadOnly(ctx)
	if err != nil {
		return nil, err
	}
	sd, err = pg.Prepare(ctx, "", r.query, nil)
	end(err)
	return sd, err
}

// beginReadOnly opens a read-only transaction, and returns what rolls it back,
// for the error that it ended with.
func (s *session) beginReadOnly(ctx context.Context) (end func(error), err error) {
	pg := s.pgx.Conn().PgConn()
	if _, err := ask(ctx, pg, "BEGIN READ ONLY"); err != nil {
		return nil, noTransaction(err)
	}
	return func(err error) {
		text := "ROLLBACK"
		if refused(err) {
			text += "; " + unlock
		}
		s.rollBack(ctx, text)
	}, nil
}

// queryInPipeline sends BEGIN READ ONLY, the query and ROLLBACK in one write. The Sync
// between makes the server get to the ROLLBACK after an error too; without it a
// pooler's only connection would be left in a failed transaction. A read that needs no
// guard goes by itself.
// The statement is unnamed, which is right behind every kind of pooler.
func (s *session) queryInPipeline(ctx context.Context, call pgxCall, r *read) (_ *wireRows, err error) {
	conn := s.pgx.Conn()
	tracer := s.config().Tracer
	if tracer != nil {
		// What pgx does for a query of its own.
		ctx = tracer.TraceQueryStart(ctx, conn, pgx.TraceQueryStartData{SQL: r.query, Args: stdlibArgs(r.args)})
		defer func() {
			if err != nil {
				tracer.TraceQueryEnd(ctx, conn, pgx.TraceQueryEndData{Err: err})
			}
		}()
	}
	var sd *pgconn.StatementDescription
	var oids []uint32
	var formats []int16
	described := false // just now
	if call.mode != pgx.QueryExecModeExec || r.via != viaQuery {
		if sd = r.v.description.Load(); sd == nil || r.anew {
			if sd, err = s.describe(ctx, r); err != nil {
				r.v.description.Store(nil)
				return nil, err
			}
			described = true
			shape := s.c.shapes.Of(sd.Fields)
			sd.Fields = shape.Fields
			r.v.shape.Store(shape)
			r.v.description.Store(sd)
			s.c.verdicts.describe(r.v, describedGuarded, descSize(sd.Fields, len(sd.ParamOIDs)))
		}
		if len(sd.ParamOIDs) != len(call.args) { // as pgx says it
			return nil, fmt.Errorf("expected %d arguments, got %d", len(sd.ParamOIDs), len(call.args))
		}
		oids = sd.ParamOIDs
		formats = make([]int16, len(sd.Fields))
		for i := range formats {
			formats[i] = call.formats[sd.Fields[i].DataTypeOID]
		}
	}
	var eqb pgx.ExtendedQueryBuilder
	if err := eqb.Build(conn.TypeMap(), sd, call.args); err != nil {
		return nil, err
	}
	var rr *pgconn.ResultReader
	end := func(error) {}
	if s.bare(r) {
		rr = conn.PgConn().ExecParams(ctx, r.query, eqb.ParamValues, oids, eqb.ParamFormats, formats)
	} else {
		p := &txPipeline{Pipeline: conn.PgConn().StartPipeline(ctx), s: s}
		p.SendQueryParams("BEGIN READ ONLY", nil, nil, nil, nil)
		p.SendQueryParams(r.query, eqb.ParamValues, oids, eqb.ParamFormats, formats)
		p.SendPipelineSync()
		if r.v.flown.Load() {
			p.rollback(nil)
		}
		if rr, err = p.query(); err != nil {
			p.end(err) // the first error is the one that tells
			return nil, err
		}
		end = p.end
	}
	source := &pipelineSource{rr: rr}
	rows, err := newWireRows(s, source, r.v, false)
	if err != nil {
		end(err)
		return nil, err
	}
	if sd != nil && !described && !call.fits(rows.fields) {
		_ = rows.Close()
		end(nil)
		return nil, errOtherColumns
	}
	rows.done = func(err error) {
		end(err)
		if tracer != nil {
			tracer.TraceQueryEnd(ctx, conn, pgx.TraceQueryEndData{CommandTag: source.tag, Err: err})
		}
	}
	return rows, nil
}

// txPipeline is the way of a query and its transaction to the server and back. The
// first flight of a text waits for the query's end before it sends the ROLLBACK:
// that is when a write shows, and then the locks must go with it, see unlock.
type txPipeline struct {
	*pgconn.Pipeline
	s          *session
	rolledBack bool // is on its way, at least
}

// rollback queues what ends the transaction that ended with err.
func (p *txPipeline) rollback(err error) {
	p.rolledBack = true
	p.SendQueryParams("ROLLBACK", nil, nil, nil, nil)
	if refused(err) {
		p.SendQueryParams(unlock, nil, nil, nil, nil)
	}
	p.SendPipelineSync()
}

// end reads what is left of the answers; err is the query's. The session may be
// used again only if the server says that no transaction is open.
func (p *txPipeline) end(err error) {
	if !p.rolledBack && !p.s.dead() {
		p.rollback(err)
		_ = p.Flush() // its errors show in the session's state
	}
	_ = p.Close() // likewise
	if !p.s.idle() {
		p.s.bad = true
	}
}

// unlock releases what a rollback does not, nor the closing of a connection to a
// pooler: advisory locks of the session. A function that took one and was then
// refused its write leaves it on a server connection that the pooler gives to
// somebody else, and its callers would wait for it, each on another one. It must
// travel with the ROLLBACK, before the Sync that lets the pooler have the server
// connection back: later it may hit another one, and another client's locks.
const unlock = "SELECT pg_catalog.pg_advisory_unlock_all()"

// query sends what the pipeline holds and reads the answers up to the query's.
func (p *txPipeline) query() (*pgconn.ResultReader, error) {
	if err := p.Flush(); err != nil {
		return nil, err
	}
	answer, err := p.GetResults()
	if rr, ok := answer.(*pgconn.ResultReader); ok && err == nil {
		_, err = rr.Close()
	}
	if err != nil {
		return nil, noTransaction(err)
	}
	if answer, err = p.GetResults(); err != nil {
		return nil, err
	}
	rr, ok := answer.(*pgconn.ResultReader)
	if !ok {
		return nil, fmt.Errorf("flightpg: unexpected answer %T to a query", answer)
	}
	return rr, nil
}

// pipelineSource reads one query's rows in a pipeline.
type pipelineSource struct {
	rr    *pgconn.ResultReader
	ended bool
	tag   pgconn.CommandTag
	err   error
}

// Next implements wireSource.
func (p *pipelineSource) Next() bool {
	if !p.ended && p.rr.NextRow() {
		return true
	}
	p.Close()
	return false
}

// RawValues implements wireSource.
func (p *pipelineSource) RawValues() [][]byte { return p.rr.Values() }

// FieldDescriptions implements wireSource.
func (p *pipelineSource) FieldDescriptions() []pgconn.FieldDescription {
	return p.rr.FieldDescriptions()
}

// Err implements wireSource.
func (p *pipelineSource) Err() error { return p.err }

// Close implements wireSource.
func (p *pipelineSource) Close() {
	if !p.ended {
		p.ended = true
		p.tag, p.err = p.rr.Close()
	}
}

// queryInTx is what queryInPipeline does, one step after the other, for pgx's simple
// protocol, which cannot travel in a pipeline.
func (s *session) queryInTx(ctx context.Context, r *read) (*wireRows, error) {
	end, err := s.beginReadOnly(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := s.queryWire(ctx, r)
	if err != nil {
		end(err)
		return nil, err
	}
	rows.done = end
	return rows, nil
}
