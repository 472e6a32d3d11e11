package hostile

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
)

// secret is the password in every test of this package.
const secret = "Zq7-S3cr3t-pw"

// patience is how long callers wait for a server, in the bubble's time.
const patience = 10 * time.Second

// outcome is what came of a read.
type outcome struct {
	rows     string // columns and values
	err      error
	panicked any
	stack    []byte
}

func (o outcome) String() string {
	switch {
	case o.panicked != nil:
		return fmt.Sprintf("panic: %v", o.panicked)
	case o.err != nil:
		return fmt.Sprintf("error: %T %v", o.err, o.err)
	}
	return "rows: " + o.rows
}

// read reads a query's rows to their end.
func read(db *sql.DB, text string, stmt bool) (o outcome) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			o.panicked, o.stack = p, debug.Stack()
		}
	}()
	var rows *sql.Rows
	if stmt {
		var st *sql.Stmt
		if st, o.err = db.PrepareContext(ctx, text); o.err != nil {
			return o
		}
		defer st.Close()
		rows, o.err = st.QueryContext(ctx)
	} else {
		rows, o.err = db.QueryContext(ctx, text)
	}
	if o.err != nil {
		return o
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		o.err = err
		return o
	}
	types, err := rows.ColumnTypes()
	if err != nil {
		o.err = err
		return o
	}
	var b strings.Builder
	for i, t := range types {
		fmt.Fprintf(&b, "%q %s %v; ", names[i], t.DatabaseTypeName(), t.ScanType())
	}
	values := make([]any, len(names))
	dest := make([]any, len(names))
	for i := range dest {
		dest[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(dest...); err != nil {
			o.err = err
			return o
		}
		b.WriteString("\n")
		for _, v := range values {
			fmt.Fprintf(&b, "%T %q, ", v, fmt.Sprint(v))
		}
	}
	if o.err = rows.Err(); o.err == nil {
		o.err = rows.Close()
	}
	o.rows = b.String()
	return o
}

// code returns the SQLSTATE of an error, "" if it has none.
func code(err error) string {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code
	}
	return ""
}

// plot is a script and everything around it.
type plot struct {
	script
	text    string
	stmt    bool
	params  string // of the DSN
	plain   string // those that pgx knows too
	piped   bool   // flights run in transactions of their own
	own     bool   // flights run on flightpg's own side of the protocol, which believes less than pgx does
	alike   bool   // the conversation about the target is the same over pgx
	answers map[string]*table
}

var execModes = []string{"cache_statement", "cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"}

// moments are those at which scripts speak, the more interesting ones more often.
var moments = []moment{
	atExecute, atExecute, atExecute, atExecute, atExecute, atExecute, atDescribe, atDescribe, atDescribe,
	atStartup, atArm, atCatalog, atCancel, atBegin, atRollback, atPing, atWrite,
}

func newPlot(seed uint64, n int) *plot {
	r := battery.Rand(seed, n)
	p := &plot{script: script{seed: r.Uint64(), at: moments[r.IntN(len(moments))], pooler: r.IntN(8) == 0}}
	p.text = targetText
	if p.at == atCatalog || r.IntN(6) == 0 {
		p.text = targetTable
	}
	p.stmt = r.IntN(5) == 0
	p.once = p.at != atExecute && p.at != atDescribe && p.at != atCancel
	if p.once {
		p.nth = r.IntN(2) * r.IntN(3)
	}
	guard := []string{"auto", "auto", "session", "transaction", "off"}[r.IntN(5)]
	p.plain = "default_query_exec_mode=" + execModes[r.IntN(len(execModes))]
	p.params = p.plain + " flight_guard=" + guard
	switch r.IntN(6) {
	case 0:
		if p.at != atCancel { // see end.hush
			p.params += " flight_max_result=300" // streamed
		}
	case 1:
		p.params += " flight_conns=1 session_conns=2"
	case 2:
		p.params += " flight_mode=strict"
	case 3:
		p.params += " flight_timeout=3s"
	}
	p.alike = !strings.Contains(p.params, "timeout")
	p.piped = guard == "transaction" || guard == "auto" && p.pooler
	if mode := strings.TrimPrefix(p.plain, "default_query_exec_mode="); p.piped && (mode == "cache_statement" || mode == "describe_exec") {
		p.plain = "default_query_exec_mode=cache_describe" // as the guard's pipeline
	}
	p.answers = map[string]*table{p.text: randomTable(r), bystanderText: randomTable(r)}
	if r.IntN(2) == 0 {
		p.params += " flight_executor=generic"
	} else {
		p.own = p.plain == "default_query_exec_mode=cache_statement" && !p.piped && !strings.Contains(p.params, "flight_conns=1")
	}
	return p
}

// config is pgx's, for a server in memory.
func config(s *server, params string) (*pgx.ConnConfig, error) {
	pc, err := pgx.ParseConfig("host=127.0.0.1 port=1 user=u dbname=" + s.script.name() + " sslmode=disable connect_timeout=5 password=" + secret + " " + params)
	if err != nil {
		return nil, err
	}
	pc.DialFunc = s.dial
	return pc, nil
}

// tally counts what came of the scripts.
type tally struct {
	scripts, lies, same, errors, stricter, retried, panics, skipped atomic.Int64
}

// callers is how many read the target at a time over flightpg.
const callers = 3

// play plays one script, and returns what is wrong with flightpg. It runs in a
// bubble of its own.
func (p *plot) play(count *tally, heard func(string)) (faults []string) {
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }

	// The truth, and what pgx makes of the lies.
	tell := func(lying bool) (o outcome, s *server) {
		s = newServer(&p.script, p.answers)
		pc, err := config(s, p.plain)
		if err != nil {
			fault("%v", err)
			return o, s
		}
		plain := sql.OpenDB(stdlib.GetConnector(*pc))
		s.lying.Store(lying)
		o = read(plain, p.text, p.stmt)
		plain.Close()
		time.Sleep(time.Minute) // pgx closes in the background
		s.stop()
		return o, s
	}
	truth, _ := tell(false)
	if truth.err != nil || truth.panicked != nil {
		fault("the true answer over pgx: %v", truth)
		return faults
	}
	native, _ := tell(true)

	s := newServer(&p.script, p.answers)
	pc, err := config(s, p.params)
	if err != nil {
		fault("%v", err)
		return faults
	}
	c, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{})
	if err != nil {
		fault("%v", err)
		return faults
	}
	db := c.OpenDB()
	about := func(o outcome) string {
		// What the error says when it is printed in any way.
		if o.err != nil {
			heard(fmt.Sprintf("%v %+v %#v", o.err, o.err, o.err))
		}
		return o.String()
	}
	bystander := read(db, bystanderText, false) // what it gives when nobody lies
	if bystander.err != nil {
		fault("before the lies: %v", about(bystander))
	}
	if p.at == atStartup || p.at == atArm || p.at == atCatalog || p.at == atPing {
		// A handle that has met nothing yet.
		db.Close()
		time.Sleep(time.Minute) // the bubble's time
		s.stop()
		s = newServer(&p.script, p.answers)
		pc.DialFunc = s.dial
		if c, err = flightpg.NewConnectorWithConfig(pc, flightpg.Config{}); err != nil {
			fault("%v", err)
			return faults
		}
		db = c.OpenDB()
	}
	s.lying.Store(true)
	var wg sync.WaitGroup
	got := make([]outcome, callers)
	for i := range got {
		wg.Go(func() { got[i] = read(db, p.text, p.stmt) })
	}
	var beside outcome
	wg.Go(func() { beside = read(db, bystanderText, false) })
	if p.at == atWrite || p.at == atBegin || p.at == atRollback || p.at == atPing {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			defer func() {
				if v := recover(); v != nil && ownPanic(outcome{panicked: v, stack: debug.Stack()}) {
					panic(v)
				}
			}()
			heard(fmt.Sprint(db.PingContext(ctx)))
			_, err := db.ExecContext(ctx, writeText)
			heard(fmt.Sprint(err))
			if tx, err := db.BeginTx(ctx, nil); err == nil {
				_, err = tx.ExecContext(ctx, writeText)
				heard(fmt.Sprint(err, tx.Rollback()))
			}
		})
	}
	if p.at == atCancel {
		// A caller that goes at once, so that there is something to cancel.
		wg.Go(func() {
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			_, err := db.QueryContext(ctx, p.text)
			heard(fmt.Sprint(err))
		})
	}
	wg.Wait()
	count.scripts.Add(1)
	count.lies.Add(s.lies.Load())

	whole := p.at == atExecute || p.at == atDescribe // every execution meets the lie
	inStep := !s.trail.Load()
	// Who had to leave a pipelined flight has had another conversation.
	apart := p.piped && (p.stmt || len(flightpg.ReadStats(db).Bypasses) > 0)
	panicked := false
	for _, o := range got {
		about(o)
		switch {
		case o.panicked != nil && !ownPanic(o):
			// On a session of the caller's own it is stdlib's; see pgx's row width,
			// and its answers without a result in the simple protocol.
			count.panics.Add(1)
			panicked = true
			heard(fmt.Sprintf("%v\n%s", o.panicked, o.stack))
		case o.panicked != nil:
			fault("flightpg panics: %v\n%s\npgx: %v", o.panicked, o.stack, native)
			panicked = true
		case o.err == nil && o.rows == truth.rows && (native.err == nil || !p.alike || !whole):
			count.same.Add(1)
		case !inStep, apart, s.slow.Load() && (errors.Is(o.err, context.DeadlineExceeded) || errors.Is(native.err, context.DeadlineExceeded)):
			count.skipped.Add(1) // the answers are out of step
		case o.err == nil && native.err != nil && p.piped && s.complete.Load():
			// In a pipeline the result has come whole before the end of the
			// transaction, where something else may be wrong.
			count.same.Add(1)
		case o.err == nil && native.err == nil && p.piped && s.several.Load():
			// A pipeline's reader takes the first result, as an answer has one; pgx
			// elsewhere takes what comes last.
			count.same.Add(1)
		case o.err == nil && native.err == nil && p.own && p.at == atDescribe:
			// pgx asks for the columns once more with each execution.
			count.same.Add(1)
		case o.err == nil && native.err != nil && (whole && p.alike || o.rows != truth.rows && !whole):
			fault("flightpg gives rows where pgx gives an error:\n%v\npgx: %v\ntruth: %v", o, native, truth)
		case o.err == nil && native.panicked == nil && native.err == nil && o.rows != native.rows:
			fault("flightpg: %v\npgx: %v\ntruth: %v", o, native, truth)
		case o.err == nil:
			count.same.Add(1)
		case native.err == nil && native.panicked == nil && whole && p.alike && !p.piped && !p.own && !refuses(o.err) &&
			!(s.complete.Load() && errors.Is(o.err, io.ErrClosedPipe)): // a connection that was hung up on since its last answer
			fault("flightpg: %v\npgx: %v\ntruth: %v", o, native, truth)
		case native.err == nil:
			count.stricter.Add(1)
		default:
			count.errors.Add(1)
			if whole && p.alike && !p.piped && !p.own && inStep && code(o.err) != code(native.err) && !refuses(o.err) && !errors.Is(o.err, context.DeadlineExceeded) {
				fault("flightpg: %v\npgx: %v", o, native)
			}
		}
	}
	if about(beside); beside.panicked != nil && inStep && ownPanic(beside) {
		fault("beside the lies: %v\n%s", beside, beside.stack)
	} else if whole && inStep && !((s.slow.Load() || strings.Contains(p.params, "flight_conns=1")) && errors.Is(beside.err, context.DeadlineExceeded)) && (beside.err != nil || beside.rows != bystander.rows) {
		fault("beside the lies: %v\ntruth: %v", beside, bystander)
	}
	s.lying.Store(false)

	// Everything must work again. A connection that was found dead, or out of
	// step, costs its next user an error over pgx too.
	if inStep && !panicked {
		for i, text := range []string{p.text, bystanderText} {
			want := []outcome{truth, bystander}[i]
			var o outcome
			for range 4 {
				if o = read(db, text, false); o.err == nil && o.panicked == nil {
					break
				}
				about(o)
			}
			// What is believed of a statement's columns stays believed.
			believed := p.at == atDescribe && i == 0
			if o.err != nil && strings.Contains(o.err.Error(), "simple protocol queries must be run with") {
				believed = true // pgx keeps a connection that it can never use
			}
			if o.panicked != nil || !believed && (o.err != nil || o.rows != want.rows) {
				fault("after the lies: %v\n%s\ntruth: %v", about(o), o.stack, want)
			}
		}
	}
	st := flightpg.ReadStats(db)
	heard(fmt.Sprintf("%+v", st))
	count.retried.Add(int64(st.Retries))
	if err := db.Close(); err != nil && inStep {
		about(outcome{err: err})
	}
	time.Sleep(time.Minute) // the bubble's time
	if st := c.Stats(); st.Flying != 0 || st.Waiting != 0 || st.BufferedBytes != 0 || st.FlightBackends != 0 {
		all := make([]byte, 1<<16)
		fault("Stats = %+v; want nothing left\n%s", st, all[:runtime.Stack(all, true)])
	}
	if n := s.open(); n > 0 {
		fault("%d connections are still open", n)
	}
	s.stop()
	return faults
}

// rowWidth begins flightpg's complaint about rows that do not fit their columns, of
// which pgx makes rows with values of others, or a panic.
const rowWidth = "flightpg: the server sent a row of"

// refuses reports whether err says that flightpg does not believe an answer of which
// pgx makes a result: a row that does not fit, or in the simple protocol no word of
// how the query has ended; or that pgx refuses to use a connection again, whose
// server has told it of settings that it cannot have in the simple protocol.
func refuses(err error) bool {
	return strings.Contains(err.Error(), rowWidth) || ends(err) ||
		strings.Contains(err.Error(), "simple protocol queries must be run with")
}

// ownPanic reports whether a panic began in flightpg's own code.
func ownPanic(o outcome) bool {
	text := string(o.stack)
	if p, ok := o.panicked.(error); ok && strings.Contains(p.Error(), "\npanic(") {
		text = p.Error() // of a flight: with the stack of where it was
	}
	_, below, _ := strings.Cut(text, "\npanic(")
	for line := range strings.Lines(below) {
		if name, _, ok := strings.Cut(line, "("); ok && strings.Contains(name, "/") && !strings.HasPrefix(line, "\t") {
			return strings.HasPrefix(name, "github.com/flightpg/flightpg.") || strings.HasPrefix(name, "github.com/flightpg/flightpg/internal")
		}
	}
	return false
}

// bubble runs f in a bubble of testing/synctest, whose goroutines must all have
// ended with it. What it panics with is returned.
func bubble(t *testing.T, f func()) (panicked any) {
	defer func() {
		if p := recover(); p != nil {
			panicked = p
		}
	}()
	synctest.Test(t, func(*testing.T) { f() })
	return nil
}

func TestServer(t *testing.T) {
	t.Run("Lies", func(t *testing.T) {
		seed := battery.Seed(t)
		report := battery.Report(t, part, "a lying server: no panic, no hang, no success where pgx has an error, nothing left", seed)
		var count tally
		var leaked atomic.Int64
		heard := func(s string) {
			if strings.Contains(s, secret) {
				leaked.Add(1)
				t.Errorf("the password is in %q", s)
			}
		}
		until := time.Now().Add(battery.N(8*time.Second, 150*time.Second))
		limit := int64(battery.Quick(500, battery.N(2_000, 1_000_000)))
		var next, failed atomic.Int64
		t.Run("Plays", func(t *testing.T) {
			for worker := range 2 {
				t.Run(fmt.Sprint(worker), func(t *testing.T) {
					t.Parallel()
					for failed.Load() < 5 {
						n := next.Add(1)
						if n > limit || time.Now().After(until) {
							break
						}
						playOne(t, seed, int(n), &count, heard, &failed)
					}
				})
			}
		})
		report.Set("scripts", count.scripts.Load())
		report.Set("lies told", count.lies.Load())
		report.Set("reads as over pgx", count.same.Load())
		report.Set("errors", count.errors.Load())
		report.Set("errors where pgx has rows", count.stricter.Load())
		report.Set("out of step over any driver", count.skipped.Load())
		report.Set("panics of pgx's own", count.panics.Load())
		report.Set("flights run again", count.retried.Load())
		report.Set("violations", failed.Load())
	})
}

// handmade plays a script that is written by hand, over flightpg alone.
func handmade(t *testing.T, params string, answer *table, h hand) (o outcome) {
	t.Helper()
	s := newServer(&script{at: atExecute, hand: h}, map[string]*table{targetText: answer})
	s.lying.Store(true)
	pc, err := config(s, params)
	if err != nil {
		t.Fatal(err)
	}
	c, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{})
	if err != nil {
		t.Fatal(err)
	}
	db := c.OpenDB()
	defer s.stop()
	defer db.Close()
	return read(db, targetText, false)
}

// TestServer_RowWidth: a row of more or fewer values than there are columns is an
// error, not values of the row before it, nor a panic.
func TestServer_RowWidth(t *testing.T) {
	answer := &table{columns: []column{{"a", pgtype.TextOID}, {"b", pgtype.TextOID}}, rows: [][]any{{"a1", "b1"}, {"a2", "b2"}, {"a3", "b3"}}}
	for _, mode := range execModes[1:] {
		for _, params := range []string{"", " flight_max_result=300", " flight_guard=transaction"} {
			for _, values := range [][][]byte{{}, {[]byte("x")}, {[]byte("x"), []byte("y"), []byte("z")}} {
				for row := range 3 {
					o := handmade(t, "default_query_exec_mode="+mode+params, answer, func(frames [][]byte) [][]byte {
						frames = append([][]byte(nil), frames...)
						n := 0
						for i, f := range frames {
							if f[0] == 'D' {
								if n == row {
									frames[i] = encoded(&pgproto3.DataRow{Values: values}, nil)
								}
								n++
							}
						}
						return frames
					})
					if o.err == nil || !strings.Contains(o.err.Error(), rowWidth) || o.panicked != nil {
						t.Errorf("%s%s, row %d of %d values: %v; want an error", mode, params, row, len(values), o)
					}
				}
			}
		}
	}
}

// TestServer_CloseStalled closes rows that are streamed from a server that says no
// more: that lasts no longer than the context.
func TestServer_CloseStalled(t *testing.T) {
	answer := &table{columns: []column{{"a", pgtype.TextOID}}}
	for range 20 {
		answer.rows = append(answer.rows, []any{strings.Repeat("x", 100)})
	}
	s := newServer(&script{at: atExecute, hand: func(frames [][]byte) [][]byte { return frames[:len(frames)-5] }}, map[string]*table{targetText: answer})
	panicked := bubble(t, func() {
		s.lying.Store(true)
		pc, err := config(s, "flight_max_result=500")
		if err != nil {
			t.Error(err)
			return
		}
		c, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{})
		if err != nil {
			t.Error(err)
			return
		}
		db := c.OpenDB()
		defer s.stop()
		defer db.Close()
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		rows, err := db.QueryContext(ctx, targetText)
		if err != nil {
			t.Error(err)
			return
		}
		rows.Next()
		closed := make(chan struct{})
		go func() {
			rows.Close()
			close(closed)
		}()
		// In the bubble's time; what would wait for ever is a deadlock there.
		<-closed
		if st := c.Stats(); st.Overflows != 1 {
			t.Errorf("Stats = %+v; want rows that were streamed", st)
		}
	})
	if panicked != nil {
		t.Errorf("closing the rows: %v", panicked)
	}
}

// TestServer_GiantMessage claims a message of up to 4 GiB, and ends. What is more
// than PostgreSQL can send is refused before it is allocated.
func TestServer_GiantMessage(t *testing.T) {
	report := battery.Report(t, part, "a declared length beyond PostgreSQL's 1 GiB is refused, not allocated", 0)
	answer := &table{columns: []column{{"a", pgtype.TextOID}}, rows: [][]any{{"a"}}}
	lengths := []uint32{1 << 31, 1<<31 - 1, 1<<30 + 10, 0, 3, 1<<32 - 1}
	if !raceEnabled && battery.Full() { // pgx allocates it; the race detector would touch it
		lengths = append(lengths, 1<<30-1)
	}
	for _, length := range lengths {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		o := handmade(t, "", answer, func(frames [][]byte) [][]byte {
			f := bytes.Clone(frames[len(frames)-3])
			binary.BigEndian.PutUint32(f[1:], length)
			return [][]byte{frames[0], f, {0, 0, 0, 0}}
		})
		runtime.ReadMemStats(&after)
		mib := (after.TotalAlloc - before.TotalAlloc) >> 20
		report.Set(fmt.Sprintf("MiB allocated for %d", length), mib)
		if o.err == nil || o.panicked != nil {
			t.Errorf("length %d: %v; want an error", length, o)
		}
		if length > 1<<30 && mib > 64 {
			t.Errorf("length %d: %d MiB were allocated; want it refused", length, mib)
		}
	}
}

func playOne(t *testing.T, seed uint64, n int, count *tally, heard func(string), failed *atomic.Int64) {
	var faults []string
	p := newPlot(seed, n)
	watchdog := time.AfterFunc(2*time.Minute, func() { panic(fmt.Sprintf("seed %d, script %d hangs", seed, n)) })
	defer watchdog.Stop()
	if panicked := bubble(t, func() { faults = p.play(count, heard) }); panicked != nil {
		faults = append(faults, fmt.Sprintf("what is left behind: %v", panicked))
	}
	for _, f := range faults {
		failed.Add(1)
		t.Errorf("seed %d, script %d (repeat it with TestServer_Script, FLIGHTPG_SCRIPT=%[2]d; at %s, %s, %s, stmt=%v): %s", seed, n, p.at, p.params, p.text, p.stmt, f)
	}
}

// TestServer_Script repeats one script, given by its number and the seed.
func TestServer_Script(t *testing.T) {
	n := 0
	if _, err := fmt.Sscan(scriptVariable(), &n); err != nil {
		t.Skipf("%s is not set to the number of a script", envScript)
	}
	var count tally
	var failed atomic.Int64
	seed := battery.Seed(t)
	p := newPlot(seed, n)
	t.Logf("%+v", p)
	playOne(t, seed, n, &count, func(s string) { t.Log(s) }, &failed)
	t.Logf("%+v", &count)
}
