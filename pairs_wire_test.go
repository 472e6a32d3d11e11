package flightpg

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"math/big"
	"math/rand/v2"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"
)

// argWays are the ways from a call to the server.
var argWays = []struct {
	name     string
	mode     pgx.QueryExecMode
	executor Executor
	guard    Guard
}{
	{"Pipeline", pgx.QueryExecModeCacheStatement, ExecutorPipeline, GuardAuto},
	{"Generic", pgx.QueryExecModeCacheStatement, ExecutorGeneric, GuardAuto},
	{"Pipeline", pgx.QueryExecModeCacheStatement, ExecutorPipeline, GuardAuto}, // again: half of all go one of these ways
	{"GenericCacheDescribe", pgx.QueryExecModeCacheDescribe, ExecutorGeneric, GuardAuto},
	{"GenericDescribeExec", pgx.QueryExecModeDescribeExec, ExecutorGeneric, GuardAuto},
	{"GenericExec", pgx.QueryExecModeExec, ExecutorGeneric, GuardAuto},
	{"GenericSimple", pgx.QueryExecModeSimpleProtocol, ExecutorGeneric, GuardAuto},
	{"Transaction", pgx.QueryExecModeCacheStatement, ExecutorGeneric, GuardTransaction},
	{"TransactionExec", pgx.QueryExecModeExec, ExecutorGeneric, GuardTransaction},
	{"TransactionSimple", pgx.QueryExecModeSimpleProtocol, ExecutorGeneric, GuardTransaction},
}

// argSent is an execution of a statement as it was seen on its way to the server.
type argSent struct {
	text string
	oids []uint32 // that the client chose
	form wireForm
}

// argRecorder records what its connections send.
type argRecorder struct {
	mu   sync.Mutex
	sent []argSent
}

func (rec *argRecorder) take() []argSent {
	rec.mu.Lock()
	defer rec.mu.Unlock()
	sent := rec.sent
	rec.sent = nil
	return sent
}

// dial is a pgconn.DialFunc.
func (rec *argRecorder) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &argConn{Conn: c, rec: rec, parsed: make(map[string]argSent)}, nil
}

type argConn struct {
	net.Conn
	rec     *argRecorder
	mu      sync.Mutex
	buf     []byte
	started bool
	parsed  map[string]argSent
}

func (c *argConn) Write(b []byte) (int, error) {
	c.mu.Lock()
	c.buf = append(c.buf, b...)
	for c.message() {
	}
	c.mu.Unlock()
	return c.Conn.Write(b)
}

// message takes a message from the buffer, if there is a whole one.
func (c *argConn) message() bool {
	header := 5
	if !c.started {
		header = 4
	}
	if len(c.buf) < header {
		return false
	}
	size := header - 4 + int(binary.BigEndian.Uint32(c.buf[header-4:]))
	if len(c.buf) < size {
		return false
	}
	kind, m := c.buf[0], argMessage(c.buf[header:size])
	c.buf = c.buf[size:]
	if !c.started {
		const sslRequest, cancelRequest = 80877103, 80877102
		code := m.uint32()
		c.started = code != sslRequest && code != cancelRequest
		return true
	}
	switch kind {
	case 'P':
		name := m.text()
		s := argSent{text: m.text()}
		for range m.uint16() {
			s.oids = append(s.oids, m.uint32())
		}
		c.parsed[name] = s
	case 'B':
		m.text()
		s := c.parsed[m.text()]
		for range m.uint16() {
			s.form.formats = append(s.form.formats, int16(m.uint16()))
		}
		for range m.uint16() {
			var v []byte
			if n := m.uint32(); n != 1<<32-1 {
				v = append([]byte{}, m[:n]...)
				m = m[n:]
			}
			s.form.values = append(s.form.values, v)
		}
		c.record(s)
	case 'Q':
		c.record(argSent{text: m.text()})
	}
	return true
}

func (c *argConn) record(s argSent) {
	c.rec.mu.Lock()
	c.rec.sent = append(c.rec.sent, s)
	c.rec.mu.Unlock()
}

// argMessage reads a message of the protocol.
type argMessage []byte

func (m *argMessage) text() string {
	s, rest, _ := bytes.Cut(*m, []byte{0})
	*m = rest
	return string(s)
}

func (m *argMessage) uint16() uint16 {
	v := binary.BigEndian.Uint16(*m)
	*m = (*m)[2:]
	return v
}

func (m *argMessage) uint32() uint32 {
	v := binary.BigEndian.Uint32(*m)
	*m = (*m)[4:]
	return v
}

// interpolated returns a text with literals for its parameters, as pgx makes it for
// the simple protocol.
func interpolated(text string, values [][]byte) string {
	for i, v := range values {
		literal := "null"
		if v != nil {
			literal = "'" + strings.ReplaceAll(string(v), "'", "''") + "'"
		}
		text = strings.Replace(text, "$"+strconv.Itoa(i+1)+"::", " "+literal+" ::", 1)
	}
	return text
}

func (s *argServer) open(t *testing.T, mode pgx.QueryExecMode, rec *argRecorder, cfg *Config) *sql.DB {
	t.Helper()
	pc, err := pgx.ParseConfig(s.dsn)
	if err != nil {
		t.Fatal(err)
	}
	pc.DefaultQueryExecMode = mode
	if rec != nil {
		pc.DialFunc, pc.TLSConfig, pc.Fallbacks = rec.dial, nil, nil
	}
	var db *sql.DB
	if cfg == nil {
		db = stdlib.OpenDB(*pc, stdlib.OptionAfterConnect(registerArgTypes))
	} else {
		cfg.AfterConnect = registerArgTypes
		c, err := NewConnectorWithConfig(pc, *cfg)
		if err != nil {
			t.Fatal(err)
		}
		db = c.OpenDB()
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// drain runs a query and returns its rows as text.
func drain(ctx context.Context, db *sql.DB, text string, args []any) (out []string, err error) {
	rows, err := db.QueryContext(ctx, text, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	for rows.Next() {
		dest := make([]any, len(columns))
		for i := range dest {
			dest[i] = new(any)
		}
		if err := rows.Scan(dest...); err != nil {
			return nil, err
		}
		for _, d := range dest {
			out = append(out, fmt.Sprintf("%v", *d.(*any)))
		}
	}
	return out, rows.Err()
}

// argRun is a query of TestArguments_OnTheWire.
type argRun struct {
	recipe
	mode pgx.QueryExecMode
	text string
	oids []uint32
}

// newArgRun makes one for a connector of that mode.
func newArgRun(server *argServer, r *rand.Rand, mode pgx.QueryExecMode, start time.Time) argRun {
	run := argRun{
		recipe: recipe{seed: r.Uint64(), change: r.IntN(changeOptions), again: r.Uint64(), options: r.Uint64()},
		mode:   mode,
		text:   "SELECT ",
	}
	for _, a := range run.args(start) {
		if isOption(a) {
			if m, ok := a.(pgx.QueryExecMode); ok {
				run.mode = m
			}
			continue
		}
		c := server.casts[r.IntN(len(server.casts))]
		if run.oids = append(run.oids, c.oid); len(run.oids) > 1 {
			run.text += ", "
		}
		run.text += "$" + strconv.Itoa(len(run.oids)) + "::" + c.name
	}
	return run
}

// differs runs the query and says what of it is not as pgx encodes it, or refuses it.
func (run argRun) differs(ctx context.Context, db *sql.DB, rec *argRecorder, want wireForm, args []any) string {
	rec.take()
	_, err := drain(ctx, db, run.text, args)
	sent := rec.take()
	if want.err != nil {
		if err == nil || withoutAddresses(err) != withoutAddresses(want.err) {
			return fmt.Sprintf("refused: %v; want %v", err, want.err)
		}
		return ""
	}
	maps := hasMap(reflect.ValueOf(args), 0)
	seen := 0
	for _, s := range sent {
		if run.mode == pgx.QueryExecModeSimpleProtocol {
			want, _, _ := strings.Cut(interpolated(run.text, want.values), "\x00") // where the message's text ends
			if s.text == want || maps && len(s.text) == len(want) {
				seen++
			} else if strings.HasPrefix(s.text, "SELECT  ") {
				return fmt.Sprintf("sent %q; want %q", s.text, want)
			}
			continue
		}
		if s.text != run.text {
			continue
		}
		seen++
		if len(s.oids) > 0 && !slices.Equal(s.oids, run.oids) {
			return fmt.Sprintf("parameters of types %v; want %v", s.oids, run.oids)
		}
		if !s.form.equal(want) && !(maps && s.form.reordered(want)) {
			return fmt.Sprintf("sent %v; want %v", s.form, want)
		}
	}
	if seen == 0 {
		return fmt.Sprintf("not sent: %v; want %v", err, want)
	}
	return ""
}

// TestArguments_OnTheWire runs queries with TestArguments' arguments and looks at what
// is sent: what pgx's encoders make of them, by themselves, is there, on each way. What
// they refuse is refused with the same words.
//
// For some lists that fit a parameter badly pgx's choice between its two forms, or to
// refuse, depends on what the connection has encoded before. Where something differs
// it must not on connections that have encoded nothing.
func TestArguments_OnTheWire(t *testing.T) {
	server := newArgServer(t)
	executions, seed := argPairs(t)/20/len(argWays), argSeed(t)
	start := time.Now()
	counts := make(map[string]int)
	for n, way := range argWays {
		open := func() (*sql.DB, *argRecorder) {
			rec := new(argRecorder)
			return server.open(t, way.mode, rec, &Config{Executor: way.executor, Guard: way.guard}), rec
		}
		db, rec := open()
		side := newArgSide(server)
		r := rand.New(rand.NewPCG(seed, uint64(n)+100))
		failures := 0
		for done := 0; done < executions; {
			run := newArgRun(server, r, way.mode, start)
			want := side.encoded(run.mode, run.oids, run.args(start))
			if want.err != nil && (r.IntN(4) > 0 || strings.HasPrefix(want.err.Error(), "panic")) {
				continue // enough of those
			}
			done++
			counts["executions: "+way.name]++
			if want.err != nil {
				counts["executions that pgx refuses"]++
			}
			differs := run.differs(t.Context(), db, rec, want, run.args(start))
			if differs != "" {
				counts["executions again on new connections"]++
				side.types = nil
				want = side.encoded(run.mode, run.oids, run.args(start))
				side.types = nil
				fresh, freshRec := open()
				differs = run.differs(t.Context(), fresh, freshRec, want, run.args(start))
				// A map's text, where that is packed into bits, is other bytes in each order.
				for n := 0; n < 50 && differs != "" && hasMap(reflect.ValueOf(run.args(start)), 0); n++ {
					side.types = nil
					want = side.encoded(run.mode, run.oids, run.args(start))
					differs = run.differs(t.Context(), fresh, freshRec, want, run.args(start))
				}
				fresh.Close()
			}
			if differs != "" {
				if failures++; failures <= 10 {
					t.Errorf("%s, %s, %s, %+v: %s", way.name, shownArgs(run.args(start)), run.text, run.recipe, differs)
				}
			}
		}
		stats := ReadStats(db)
		counts["flights"] += int(stats.Flights)
		if stats.Flights < uint64(executions/2) {
			t.Errorf("%s: %d flights of %d executions: the test shows little", way.name, stats.Flights, executions)
		}
		if failures > 0 {
			t.Errorf("%s: %d failures", way.name, failures)
		}
		db.Close()
	}
	logCounts(t, counts)
}

// sameRefusal reports whether pgx refuses two lists with the same words, where its type
// map has seen nothing. It may print a map in any order.
func (s *argSide) sameRefusal(mode pgx.QueryExecMode, oids []uint32, a, b []any) bool {
	s.types = nil
	x := s.encoded(mode, oids, a)
	s.types = nil
	y := s.encoded(mode, oids, b)
	s.types = nil
	return withoutAddresses(x.err) == withoutAddresses(y.err) || x.err != nil && y.err != nil && hasMap(reflect.ValueOf(a), 0)
}

// asked is a Valuer that notes how it is asked.
type asked struct {
	V   any
	log *askedLog
}

type askedLog struct {
	owner string // its goroutine
	calls atomic.Int64
	ended atomic.Bool // the call has returned
	fault atomic.Value
}

func newAskedLog() *askedLog { return &askedLog{owner: goroutineID()} }

func goroutineID() string {
	b := make([]byte, 64)
	return strings.Fields(string(b[:runtime.Stack(b, false)]))[1]
}

func (a asked) Value() (driver.Value, error) {
	a.log.calls.Add(1)
	if a.log.ended.Load() {
		a.log.fault.Store("asked when its call had returned")
	}
	if id := goroutineID(); id != a.log.owner {
		a.log.fault.Store("asked in goroutine " + id + ", not " + a.log.owner)
	}
	return a.V, nil
}

// askedByPtr is one by its pointer.
type askedByPtr struct{ A asked }

func (a *askedByPtr) Value() (driver.Value, error) { return a.A.Value() }

// askedArgs are arguments with Valuers in them.
var askedArgs = []struct {
	cast string
	make func(l *askedLog) any
}{
	{"int8", func(l *askedLog) any { return asked{int64(7), l} }},
	{"int8", func(l *askedLog) any { return &asked{int64(7), l} }},
	{"int8", func(l *askedLog) any { return new(&asked{int64(7), l}) }},
	{"int8", func(l *askedLog) any { return &askedByPtr{asked{int64(7), l}} }},
	{"int8", func(l *askedLog) any { return asked{"7", l} }},
	{"int8", func(l *askedLog) any { return asked{nil, l} }},
	{"int8", func(l *askedLog) any { return asked{asked{int64(7), l}, l} }},
	{"text", func(l *askedLog) any { return asked{"text", l} }},
	{"bytea", func(l *askedLog) any { return asked{[]byte("bytes"), l} }},
	{"float8", func(l *askedLog) any { return asked{1.5, l} }},
	{"bool", func(l *askedLog) any { return asked{true, l} }},
	{"timestamptz", func(l *askedLog) any { return asked{time.Unix(1e9, 0), l} }},
	{"timestamptz", func(l *askedLog) any { return asked{"2026-01-02 03:04:05+00", l} }},
	{"timestamptz", func(l *askedLog) any { return asked{"yesterday", l} }}, // no text that pgx reads
	{"uuid", func(l *askedLog) any { return asked{"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", l} }},
	{"numeric", func(l *askedLog) any { return asked{"1.50", l} }},
	{"int4[]", func(l *askedLog) any { return asked{"{1,2}", l} }},
	{"jsonb", func(l *askedLog) any { return asked{`{"a": 1}`, l} }},
	{"jsonb", func(l *askedLog) any { return asked{[]byte(`{"a": 1}`), l} }},
	{"mood", func(l *askedLog) any { return asked{"ok", l} }},
	{"unknown_mood", func(l *askedLog) any { return asked{"ok", l} }},
	{"int8[]", func(l *askedLog) any { return []asked{{int64(1), l}, {int64(2), l}, {nil, l}} }},
	{"int8[]", func(l *askedLog) any { return []*asked{{int64(1), l}, nil} }},
	{"int8[]", func(l *askedLog) any { return [2]asked{{int64(1), l}, {int64(2), l}} }},
	{"int8[]", func(l *askedLog) any { return [][]asked{{{int64(1), l}}, {{int64(2), l}}} }},
	{"text[]", func(l *askedLog) any { return &[]asked{{"a", l}, {"b", l}} }},
	{"date[]", func(l *askedLog) any { return []asked{{"2026-01-02", l}, {"tomorrow", l}} }},
	{"jsonb[]", func(l *askedLog) any { return []asked{{`{}`, l}, {`[]`, l}} }},
	{"pair", func(l *askedLog) any {
		return struct{ N, Mood asked }{asked{int64(1), l}, asked{"ok", l}}
	}},
	{"mood[]", func(l *askedLog) any { return []asked{{"ok", l}, {"sad", l}} }},
	{"int8range", func(l *askedLog) any {
		return pgtype.Range[asked]{Lower: asked{int64(1), l}, Upper: asked{int64(5), l}, LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true}
	}},
}

// TestArguments_Asked checks that Valuers are asked as often as by pgx, alone and where
// many callers share a read, by their callers only and before their calls return.
func TestArguments_Asked(t *testing.T) {
	server := newArgServer(t)
	type call struct {
		rows []string
		err  error
		log  *askedLog
	}
	run := func(db *sql.DB, text string, mk func(*askedLog) any, second bool) (c call) {
		c.log = newAskedLog()
		args := []any{mk(c.log)}
		if second { // beside one that bypasses
			args = append(args, struct{ V any }{1})
		}
		c.rows, c.err = drain(context.Background(), db, text, args)
		c.log.ended.Store(true)
		return c
	}
	const callers = 32
	fewer := 0
	for _, mode := range argModes {
		native := server.open(t, mode, nil, nil)
		dbs := map[string]*sql.DB{
			"generic": server.open(t, mode, nil, &Config{Executor: ExecutorGeneric, Mode: ModeJoin, Window: time.Hour}),
		}
		if mode == pgx.QueryExecModeCacheStatement {
			dbs["pipeline"] = server.open(t, mode, nil, &Config{Executor: ExecutorPipeline, Mode: ModeJoin, Window: time.Hour})
		}
		for i, tc := range askedArgs {
			for _, second := range []bool{false, true} {
				text := fmt.Sprintf("SELECT $1::%s AS c%d", tc.cast, i)
				if second {
					text += ", $2::jsonb"
				}
				want := run(native, text, tc.make, second)
				if want = run(native, text, tc.make, second); want.err != nil {
					continue
				}
				calls := want.log.calls.Load()
				check := func(how string, got call) {
					t.Helper()
					if got.err != nil || !slices.Equal(got.rows, want.rows) {
						t.Errorf("%v, %s, %s: %q, %v; want %q", mode, text, how, got.rows, got.err, want.rows)
					}
					switch n := got.log.calls.Load(); {
					case n < calls && (tc.cast == "timestamptz" || tc.cast == "date[]"):
						fewer++ // pgx asks again for the text, when it cannot read it for the binary form
					case n != calls:
						t.Errorf("%v, %s of %T, %s: Value was called %d times; by pgx %d times", mode, text, tc.make(newAskedLog()), how, n, calls)
					}
					if fault := got.log.fault.Load(); fault != nil {
						t.Errorf("%v, %s, %s: %v", mode, text, how, fault)
					}
				}
				for name, db := range dbs {
					check(name+", alone", run(db, text, tc.make, second))
					got := make([]call, callers)
					var wg sync.WaitGroup
					for n := range got {
						wg.Go(func() { got[n] = run(db, text, tc.make, second) })
					}
					wg.Wait()
					for _, c := range got {
						check(name+", with others", c)
					}
				}
			}
		}
		for _, db := range dbs {
			if mode == pgx.QueryExecModeCacheStatement && ReadStats(db).Joins == 0 {
				t.Error("nobody joined: the test shows nothing")
			}
			db.Close()
		}
		native.Close()
	}
	if fewer == 0 {
		t.Error("pgx asks once where it was known to ask twice")
	}
}

// leftArgs are arguments with memory that their owners change as soon as they may.
var leftArgs = []struct {
	cast string
	make func(l *askedLog) any
}{
	{"bytea", func(*askedLog) any { return []byte("bytes") }},
	{"text[]", func(*askedLog) any { return []string{"a", "b"} }},
	{"bytea[]", func(*askedLog) any { return [][]byte{[]byte("a"), nil, []byte("b")} }},
	{"text", func(*askedLog) any { return new("text") }},
	{"numeric", func(*askedLog) any { return pgtype.Numeric{Int: big.NewInt(123456), Exp: -2, Valid: true} }},
	{"jsonb", func(*askedLog) any { return json.RawMessage(`{"a": 1}`) }},
	{"jsonb", func(*askedLog) any {
		return struct {
			L []string
			M map[string][]int
			P *int
		}{[]string{"a"}, map[string][]int{"b": {1}}, new(7)}
	}},
	{"jsonb", func(*askedLog) any { return &argWide{S: "s", B: []byte("b"), P: new(int32(3)), L: []string{"l"}} }},
	{"inet", func(*askedLog) any { return net.IP{10, 0, 0, 1} }},
	{"pair", func(*askedLog) any {
		return &struct {
			N    *int32
			Mood string
		}{new(int32(5)), "ok"}
	}},
	{"bytea", func(l *askedLog) any { return asked{[]byte("its own"), l} }},
	{"bytea[]", func(l *askedLog) any { return []asked{{[]byte("its"), l}, {[]byte("own"), l}} }},
	{"int8", func(l *askedLog) any { return new(&askedByPtr{asked{int64(7), l}}) }},
}

// TestArguments_Left checks what the others get when a caller leaves a read that goes on
// and changes his arguments. The read waits for a lock before its statement is described,
// so that its arguments are encoded when their first owner has gone.
func TestArguments_Left(t *testing.T) {
	server := newArgServer(t)
	native := server.open(t, pgx.QueryExecModeCacheStatement, nil, nil)
	locker := server.open(t, pgx.QueryExecModeCacheStatement, nil, nil)
	for _, executor := range []Executor{ExecutorPipeline, ExecutorGeneric} {
		db := server.open(t, pgx.QueryExecModeCacheStatement, nil, &Config{Executor: executor, Mode: ModeJoin})
		if _, err := drain(t.Context(), db, "SELECT n FROM held", nil); err != nil { // connects, and has the catalog
			t.Fatal(err)
		}
		for i, tc := range leftArgs {
			text := fmt.Sprintf("SELECT $1::%s, n AS c%d FROM held", tc.cast, i)
			want, err := drain(t.Context(), native, text, []any{tc.make(newAskedLog())})
			if err != nil {
				t.Fatal(err)
			}
			if arg := tc.make(newAskedLog()); planOf(reflect.TypeOf(arg)).convert != convertNever {
				// A Valuer is asked when its statement has been described, as by pgx.
				if _, err := drain(t.Context(), db, text, []any{arg}); err != nil {
					t.Fatal(err)
				}
			}
			tx, err := locker.Begin()
			if err != nil {
				t.Fatal(err)
			}
			if _, err := tx.Exec("LOCK TABLE held IN ACCESS EXCLUSIVE MODE"); err != nil {
				t.Fatal(err)
			}
			const callers = 8
			var wg, left sync.WaitGroup
			ctx, leave := context.WithCancel(t.Context())
			before := ReadStats(db)
			waiting := func(n uint64) {
				t.Helper()
				for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) { // nothing tells when the last caller has joined: polling
					s := ReadStats(db)
					if s.Flights+s.Joins-before.Flights-before.Joins >= n {
						return
					}
					if time.Now().After(deadline) {
						t.Fatalf("%v, %s: %+v", executor, text, s)
					}
				}
			}
			logs := make([]*askedLog, callers)
			for n := range callers {
				leaves := n%2 == 0 // the leader first
				if leaves {
					left.Add(1)
				}
				wg.Go(func() {
					logs[n] = newAskedLog()
					arg := tc.make(logs[n])
					if leaves {
						defer left.Done()
						_, err := drain(ctx, db, text, []any{arg})
						logs[n].ended.Store(true)
						scribble(reflect.ValueOf(arg), 0)
						if err == nil {
							t.Errorf("%v, %s: a caller who leaves has rows", executor, text)
						}
						return
					}
					got, err := drain(t.Context(), db, text, []any{arg})
					logs[n].ended.Store(true)
					scribble(reflect.ValueOf(arg), 0)
					if err != nil || !slices.Equal(got, want) {
						t.Errorf("%v, %s of %T: %q, %v; want %q", executor, text, arg, got, err, want)
					}
				})
				waiting(uint64(n + 1))
			}
			leave()
			left.Wait()
			if err := tx.Rollback(); err != nil {
				t.Error(err)
			}
			wg.Wait()
			for _, l := range logs {
				if fault := l.fault.Load(); fault != nil {
					t.Errorf("%v, %s: %v", executor, text, fault)
				}
			}
		}
		db.Close()
	}
}
