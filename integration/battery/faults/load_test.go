package faults

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/url"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"go.uber.org/goleak"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/flight"
	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// patience is when something that must come is given up. It is no limit for how
// long anything may take: it tells what hangs.
const patience = 90 * time.Second

// world is a database, handles to it, what is done with them, and who judges it.
type world struct {
	*testing.T
	*judge
	seed   uint64
	report *battery.Entry
	server *pgtest.Server
	direct string // the DSN, around all proxies
	eye    *pgx.Conn
	config flightpg.Config // of the handles that open makes

	handles  []*handle
	counts   sync.Map // of successes, by name: *atomic.Int64
	ended    atomic.Int64
	hurt     atomic.Int64
	stopping chan struct{}
	stopLoad func()
	loading  sync.WaitGroup
	before   goleak.Option
	panics   atomic.Int64   // that callers have caught
	past     flightpg.Stats // of handles that are closed
}

// handle is a database handle opened with flightpg.
type handle struct {
	name string
	db   *sql.DB
	stmt *sql.Stmt // a read, shared by all
	// fresh is after how many reads they get a new text, if not 0: a result that
	// was too large to share keeps those of its text from being shared for a while.
	fresh int64
	reads atomic.Int64
	// flown: its reads are all shared, by Query, QueryRow and Stmt. For drivers
	// that panic: database/sql itself loses connections of calls that panic.
	flown bool
}

// setUp makes the tables.
const setUp = `
	CREATE TABLE items (set bigint, idx bigint, total bigint NOT NULL, pad text NOT NULL, sum bigint NOT NULL, PRIMARY KEY (set, idx));
	CREATE TABLE ledger (id bigint PRIMARY KEY, account bigint NOT NULL, amount bigint NOT NULL);
	CREATE TABLE journal (id bigint, account bigint NOT NULL, amount bigint NOT NULL);
	CREATE TABLE accounts (id bigint PRIMARY KEY, balance bigint NOT NULL, moves bigint NOT NULL);
	INSERT INTO accounts SELECT i, 0, 0 FROM generate_series(1, 64) i`

// sets are those that are read.
var sets = []int64{1, 2, 3, 4, 11, 12, 21, 22}

// anySet returns a set to read: few reads are large, but most rows are theirs.
func anySet(r *rand.Rand) int64 {
	switch n := r.IntN(100); {
	case n < 30:
		return 1
	case n < 60:
		return 2 + r.Int64N(3)
	case n < battery.N(99, 98):
		return 11 + r.Int64N(2)
	default:
		return 21 + r.Int64N(2)
	}
}

// newWorld makes the database of a fault, on a server. The test ends with finish.
func newWorld(t *testing.T, server *pgtest.Server, claim string, kinds ...string) *world {
	t.Helper()
	seed := battery.Seed(t)
	w := &world{T: t, judge: newJudge(kinds...), seed: seed, server: server, report: battery.Report(t, "faults", claim, seed)}
	w.direct = server.Database(t)
	var items [][]any
	for _, set := range sets {
		for idx := range sizeOf(set) {
			r := makeRow(set, idx)
			items = append(items, []any{r.set, r.idx, r.total, r.pad, r.sum})
		}
	}
	w.admin(func(conn *pgx.Conn) error {
		if _, err := conn.Exec(t.Context(), setUp); err != nil {
			return err
		}
		if _, err := conn.CopyFrom(t.Context(), pgx.Identifier{"items"}, []string{"set", "idx", "total", "pad", "sum"}, pgx.CopyFromRows(items)); err != nil {
			return err
		}
		_, err := conn.Exec(t.Context(), "VACUUM ANALYZE items")
		return err
	})
	w.before = goleak.IgnoreCurrent()
	w.stopping = make(chan struct{})
	w.stopLoad = sync.OnceFunc(func() { close(w.stopping) })
	t.Cleanup(func() {
		w.stopLoad()
		for _, h := range w.handles {
			go h.db.Close() // what hangs must not keep the others from running
		}
		if w.eye != nil {
			_ = w.eye.Close(context.Background())
		}
	})
	return w
}

// with adds parameters to a DSN.
func with(dsn, params string) string {
	u, err := url.Parse(dsn)
	if err != nil {
		panic(err)
	}
	q := u.Query()
	more, err := url.ParseQuery(params)
	if err != nil {
		panic(err)
	}
	maps.Copy(q, more)
	u.RawQuery = q.Encode()
	return u.String()
}

// open opens the handles whose flights go the three ways that there are: on
// read-only sessions, in read-only transactions, and with results that are too
// large to buffer and are streamed. Their modes are the seed's choice.
func (w *world) open(dsn string) {
	w.Helper()
	r := battery.Rand(w.seed, 1)
	for _, h := range []struct{ name, params string }{
		{"session", "flight_guard=session&flight_max_result=64MB&flight_memory=1GB"},
		{"transaction", "flight_guard=transaction&flight_max_result=64MB&flight_memory=1GB"},
		{"live", "flight_max_result=16kB"},
	} {
		mode := []string{"fenced", "strict", "join"}[r.IntN(3)]
		db, err := flightpg.OpenDB(with(dsn, h.params+"&application_name=faults&flight_mode="+mode), w.config)
		if err != nil {
			w.Fatal(err)
		}
		w.add(&handle{name: h.name + "/" + mode, db: db, fresh: map[string]int64{"live": 16}[h.name]})
	}
}

func (w *world) add(h *handle) {
	w.Helper()
	var err error
	if h.stmt, err = h.db.Prepare(readSet); err != nil {
		w.Fatal(err)
	}
	w.handles = append(w.handles, h)
}

const readSet = "SELECT set, idx, total, pad, sum FROM items WHERE set = $1 ORDER BY idx"

// text returns the text of a read.
func (h *handle) text() string {
	n := h.reads.Add(1)
	if h.fresh == 0 {
		return readSet
	}
	return fmt.Sprintf("%s /* %d */", readSet, n/h.fresh)
}

// start begins the load.
func (w *world) start(readers, writers int) {
	for i := range readers {
		r := battery.Rand(w.seed, 1000+i)
		w.loading.Go(func() {
			for n := 0; !w.stopped(); n++ {
				w.readOnce(r, w.handles[(i+n)%len(w.handles)])
				w.ended.Add(1)
			}
		})
	}
	for i := range writers {
		r := battery.Rand(w.seed, 2000+i)
		w.loading.Go(func() {
			for n := 0; !w.stopped(); n++ {
				w.writeOnce(r, w.handles[(i+n)%len(w.handles)])
				w.ended.Add(1)
			}
		})
	}
}

func (w *world) stopped() bool {
	select {
	case <-w.stopping:
		return true
	default:
		return false
	}
}

// count counts successes.
func (w *world) count(name string) *atomic.Int64 {
	n, ok := w.counts.Load(name)
	if !ok {
		n, _ = w.counts.LoadOrStore(name, new(atomic.Int64))
	}
	return n.(*atomic.Int64)
}

// ctx returns a caller's context: some end soon, most only when the call hangs.
func (w *world) ctx(r *rand.Rand) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errHangs)
	soon := time.Duration(r.Int64N(int64(30 * time.Millisecond)))
	switch r.IntN(12) {
	case 0:
		ctx, stop := context.WithTimeout(ctx, soon)
		return ctx, func() { stop(); cancel() }
	case 1:
		ctx, stop := context.WithCancel(ctx)
		timer := time.AfterFunc(soon, stop)
		return ctx, func() { timer.Stop(); stop(); cancel() }
	}
	return ctx, cancel
}

// readOnce makes one read, in one of the ways there are.
func (w *world) readOnce(r *rand.Rand, h *handle) {
	set := anySet(r)
	wanted := sizeOf(set)
	ctx, cancel := w.ctx(r)
	defer cancel()
	way := r.IntN(20)
	if h.flown {
		way = way % 17
	}
	what := fmt.Sprintf("%s: read of set %d, way %d", h.name, set, way)
	if way >= 17 {
		what += lasting
	}
	defer func() {
		if p := recover(); p != nil {
			w.panicked(what, p)
		}
	}()
	done := func(n int64, wrong string, err error) {
		if w.read(ctx, what, n, wrong, err) {
			w.count("read " + h.name).Add(1)
		}
	}
	switch {
	case way < 3:
		var got row
		err := h.db.QueryRowContext(ctx, h.text(), set).Scan(&got.set, &got.idx, &got.total, &got.pad, &got.sum)
		one := err == nil
		done(judgeRows(set, 1, func(r *row) bool { *r = got; return one }, func() error { return err }))
	case way < 6:
		rows, err := h.stmt.QueryContext(ctx, set)
		done(drain(rows, err, set, wanted))
	case way < 8: // Rows closed early
		rows, err := h.db.QueryContext(ctx, h.text(), set)
		done(drain(rows, err, set, r.Int64N(wanted+1)))
	case way < 17:
		rows, err := h.db.QueryContext(ctx, h.text(), set)
		done(drain(rows, err, set, wanted))
	case way < 18:
		conn, err := h.db.Conn(ctx)
		if err != nil {
			done(0, "", err)
			return
		}
		defer conn.Close()
		rows, err := conn.QueryContext(ctx, h.text(), set)
		done(drain(rows, err, set, wanted))
	default:
		tx, err := h.db.BeginTx(ctx, &sql.TxOptions{ReadOnly: way == 18})
		if err != nil {
			done(0, "", err)
			return
		}
		defer tx.Rollback()
		rows, err := tx.QueryContext(ctx, h.text(), set)
		done(drain(rows, err, set, wanted))
	}
}

// drain reads up to wanted rows.
func drain(rows *sql.Rows, err error, set, wanted int64) (int64, string, error) {
	if err != nil {
		return 0, "", err
	}
	defer rows.Close()
	var bad error
	return judgeRows(set, wanted, func(r *row) bool {
		if bad == nil && rows.Next() {
			bad = rows.Scan(&r.set, &r.idx, &r.total, &r.pad, &r.sum)
			return bad == nil
		}
		return false
	}, func() error {
		err := rows.Err()
		if bad != nil && err != nil {
			return err // why there was nothing to scan
		}
		return errors.Join(bad, err, rows.Close())
	})
}

// panicked notes a panic that a caller has caught: none but a flight's may come.
func (w *world) panicked(what string, p any) {
	w.panics.Add(1)
	if err, ok := p.(*flight.PanicError); ok {
		w.failed(context.Background(), what, err)
		return
	}
	w.failed(context.Background(), what, fmt.Errorf("panic: %v\n%s", p, stack()))
}

func stack() []byte {
	buf := make([]byte, 8<<10)
	return buf[:runtime.Stack(buf, false)]
}

// Statements of the ledger.
const (
	insert = "INSERT INTO ledger (id, account, amount) VALUES ($1, $2, $3)"
	move   = "UPDATE accounts SET balance = balance + $2, moves = moves + 1 WHERE id = $1"
	both   = "WITH l AS (" + insert + " RETURNING id, account, amount) " +
		"UPDATE accounts a SET balance = a.balance + l.amount, moves = a.moves + 1 FROM l WHERE a.id = l.account"
	journal = "INSERT INTO journal (id, account, amount) VALUES ($1, $2, $3)"
)

// writeOnce makes one write, in one of the ways there are.
func (w *world) writeOnce(r *rand.Rand, h *handle) {
	ctx, cancel := w.ctx(r)
	defer cancel()
	w.writeWay(ctx, r, h, r.IntN(12))
}

// write makes one write, whose context ends only when it hangs.
func (w *world) write(r *rand.Rand, h *handle, way int) {
	ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errHangs)
	defer cancel()
	w.writeWay(ctx, r, h, way)
}

func (w *world) writeWay(ctx context.Context, r *rand.Rand, h *handle, way int) {
	account, amount := 1+r.Int64N(64), r.Int64N(2001)-1000
	id := w.begin(account, amount)
	what := fmt.Sprintf("%s: write, way %d,", h.name, way)
	if way >= 8 {
		what = fmt.Sprintf("%s: write%s, way %d,", h.name, lasting, way)
	}
	done := func(f fate, err error) {
		w.wrote(ctx, what, id, f, err)
		if f == acknowledged {
			w.count("write " + h.name).Add(1)
		}
	}
	returned := false
	defer func() {
		if p := recover(); p != nil {
			if !returned {
				w.wrote(ctx, what, id, unknown, nil)
			}
			w.panicked(what, p)
		}
	}()
	switch {
	case way < 4:
		res, err := h.db.ExecContext(ctx, both, id, account, amount)
		returned = true
		done(acked(err), err)
		if err == nil {
			if n, err := res.RowsAffected(); n != 1 || err != nil {
				w.violation("%s %d was acknowledged with %d rows affected (%v)", what, id, n, err)
			}
			w.readBack(ctx, h, id, amount)
		}
	case way < 6:
		_, err := h.db.ExecContext(ctx, journal, id, account, amount)
		returned = true
		done(acked(err), err)
	case way < 8:
		var got int64
		err := h.db.QueryRowContext(ctx, both+" RETURNING l.id", id, account, amount).Scan(&got)
		returned = true
		done(acked(err), err)
		if err == nil && got != id {
			w.violation("%s %d returned %d", what, id, got)
		}
	default:
		f, err := w.transaction(ctx, h, way, id, account, amount)
		returned = true
		done(f, err)
	}
}

func acked(err error) fate {
	if err == nil {
		return acknowledged
	}
	return unknown
}

// transaction writes in one. Ways 8 to 10 commit, 11 does not.
func (w *world) transaction(ctx context.Context, h *handle, way int, id, account, amount int64) (fate, error) {
	tx, err := h.db.BeginTx(ctx, nil)
	if err != nil {
		return never, err
	}
	defer tx.Rollback()
	if way == 9 {
		if _, err := tx.ExecContext(ctx, "SELECT pg_advisory_xact_lock($1)", account); err != nil {
			return never, err
		}
	}
	if _, err := tx.ExecContext(ctx, insert, id, account, amount); err != nil {
		return never, err
	}
	var own int64
	switch err := tx.QueryRowContext(ctx, "SELECT amount FROM ledger WHERE id = $1", id).Scan(&own); {
	case err != nil:
		return never, err
	case own != amount:
		w.violation("%s: write %d does not see itself in its transaction: %d", h.name, id, own)
	}
	if _, err := tx.ExecContext(ctx, move, account, amount); err != nil {
		return never, err
	}
	if way == 11 {
		return never, tx.Rollback()
	}
	err = tx.Commit()
	return acked(err), err
}

// readBack reads a write that was acknowledged. Under join it may be missed.
func (w *world) readBack(ctx context.Context, h *handle, id, amount int64) {
	var got int64
	switch err := h.db.QueryRowContext(ctx, "SELECT amount FROM ledger WHERE id = $1", id).Scan(&got); {
	case errors.Is(err, sql.ErrNoRows):
		w.violation("%s: write %d was acknowledged, and is not seen", h.name, id)
	case err != nil:
		w.failed(ctx, h.name+": read of a write", err)
	case got != amount:
		w.violation("%s: write %d of %d is read as %d", h.name, id, amount, got)
	}
}

// admin calls f with a connection around flightpg, a new one if it must be.
func (w *world) admin(f func(conn *pgx.Conn) error) {
	w.Helper()
	if err := w.try(f); err != nil {
		w.Fatalf("seed %d: %v", w.seed, err)
	}
}

func (w *world) try(f func(conn *pgx.Conn) error) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for range 3 {
		if w.eye == nil || w.eye.IsClosed() {
			if w.eye, err = pgx.Connect(ctx, with(w.direct, "application_name=eye")); err != nil {
				return err
			}
		}
		if err = f(w.eye); err == nil || !w.eye.IsClosed() {
			return err
		}
	}
	return err
}

// number asks the server for one, -1 if it does not answer.
func (w *world) number(query string, args ...any) (n int64) {
	err := w.try(func(conn *pgx.Conn) error { return conn.QueryRow(context.Background(), query, args...).Scan(&n) })
	if err != nil {
		return -1
	}
	return n
}

// until waits for what no channel tells.
func (w *world) until(what string, ok func() bool) {
	w.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) { // nothing tells: polling
		if time.Now().After(deadline) {
			w.hang(what)
		}
	}
}

// hang ends the test with what hangs.
func (w *world) hang(what string) {
	w.Helper()
	var stacks strings.Builder
	_ = pprof.Lookup("goroutine").WriteTo(&stacks, 1)
	stats := ""
	for _, h := range w.handles {
		stats += fmt.Sprintf("%s: %+v\n", h.name, flightpg.ReadStats(h.db))
	}
	w.complain()
	w.Fatalf("seed %d: %s: not in %v\n%serrors so far: %s\n%s", w.seed, what, patience, stats, w.errors(), stacks.String())
}

// progress waits until so many operations have ended, well or not, and at most for
// long: in some faults all wait for its end.
func (w *world) progress(n int64, long time.Duration) {
	for from, deadline := w.ended.Load(), time.Now().Add(long); w.ended.Load() < from+n && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // nothing tells: polling
	}
	w.hurt.Add(1)
}

// recovered waits until reads and writes succeed on each handle.
func (w *world) recovered() {
	w.Helper()
	before := make(map[string]int64)
	for _, h := range w.handles {
		for _, op := range []string{"read ", "write "} {
			before[op+h.name] = w.count(op + h.name).Load()
		}
	}
	for name, n := range before {
		w.until("after the fault: a "+name, func() bool { return w.count(name).Load() > n+1 })
	}
}

// shares waits until a caller has joined another's flight. On a busy machine they
// may not meet for a while.
func (w *world) shares() {
	w.Helper()
	w.until("somebody joins a flight", func() bool {
		return slices.ContainsFunc(w.handles, func(h *handle) bool { return flightpg.ReadStats(h.db).Joins > 0 })
	})
}

// rounds does a fault so many times, with time to recover between.
func (w *world) rounds(n int, fault func(r *rand.Rand)) {
	w.Helper()
	w.roundsUntil(n, func() bool { return true }, fault)
}

// roundsUntil does more of them, within reason, until it was shown what they are to
// show: that depends on who comes when.
func (w *world) roundsUntil(n int, shown func() bool, fault func(r *rand.Rand)) {
	w.Helper()
	w.recovered() // it works before
	w.shares()
	for i := 0; i < n || i < n+50 && !shown(); i++ {
		fault(battery.Rand(w.seed, 10+i))
		w.recovered()
	}
}

// complain reports the violations so far.
func (w *world) complain() {
	w.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, v := range w.violations {
		w.Errorf("seed %d: %s", w.seed, v)
	}
	if w.violated > len(w.violations) {
		w.Errorf("seed %d: %d violations in all", w.seed, w.violated)
	}
}

// finish ends the load and judges. Cleanup ends what else the test has begun.
func (w *world) finish(cleanup ...func()) {
	w.Helper()
	w.stopLoad()
	gone := make(chan struct{})
	go func() { w.loading.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-time.After(2 * patience): // which is for ever
		w.hang("the callers return")
	}
	sum := w.past
	for _, h := range w.handles {
		w.until(h.name+": nothing flies, waits, is buffered", func() bool {
			s := flightpg.ReadStats(h.db)
			return s.Flying == 0 && s.Waiting == 0 && s.BufferedBytes == 0
		})
		s := flightpg.ReadStats(h.db)
		sum.Flights, sum.Joins, sum.Retries, sum.Overflows, sum.Cancelled, sum.Panics = sum.Flights+s.Flights, sum.Joins+s.Joins, sum.Retries+s.Retries, sum.Overflows+s.Overflows, sum.Cancelled+s.Cancelled, sum.Panics+s.Panics
	}
	w.until("no transaction is left open on the server, and no lock", func() bool {
		return w.number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
			AND backend_type = 'client backend' AND (state <> 'idle' OR xact_start IS NOT NULL)`) == 0 &&
			w.number(`SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
				AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`) == 0
	})
	for _, h := range w.handles {
		if h.stmt != nil {
			_ = h.stmt.Close()
		}
		if err := h.db.Close(); err != nil {
			w.Logf("%s: Close: %v", h.name, err) // of a connection that was broken
		}
	}
	w.gone()
	for _, f := range cleanup {
		f()
	}
	w.admin(func(conn *pgx.Conn) error { return w.audit(context.Background(), conn) })
	w.noGoroutine()
	w.figures(sum)
	w.complain()
}

// gone waits until the server has no connection of ours.
func (w *world) gone() {
	w.Helper()
	w.until("no backend is left", func() bool {
		return w.number(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
			AND backend_type = 'client backend'`) == 0
	})
}

func (w *world) noGoroutine() {
	w.Helper()
	var err error
	ignore := append(leak.Toxiproxy(), w.before,
		goleak.IgnoreAnyFunction("github.com/flightpg/flightpg/internal/pgtest.startChild.func1")) // a server that was restarted
	for deadline := time.Now().Add(patience); ; {
		err = goleak.Find(ignore...)
		if err == nil || time.Now().After(deadline) {
			break
		}
	}
	if err != nil {
		w.Errorf("seed %d: goroutines are left: %v", w.seed, err)
	}
}

func (w *world) figures(sum flightpg.Stats) {
	w.Helper()
	w.mu.Lock()
	reads, rows, writes, attempts, violated := w.reads, w.rows, w.writes, len(w.ledger), w.violated
	w.mu.Unlock()
	w.report.Set("rounds", w.hurt.Load())
	w.report.Set("reads", reads)
	w.report.Set("rows", rows)
	w.report.Set("writes", attempts)
	w.report.Set("acknowledged", writes)
	w.report.Set("flights", sum.Flights)
	w.report.Set("joins", sum.Joins)
	w.report.Set("retries", sum.Retries)
	w.report.Set("overflows", sum.Overflows)
	w.report.Set("cancelled flights", sum.Cancelled)
	w.report.Set("errors", w.errors())
	w.report.Set("violations", violated)
	if reads == 0 || sum.Flights == 0 || sum.Joins == 0 {
		w.Errorf("seed %d: %d reads, %+v: nothing was shared, so nothing was shown", w.seed, reads, sum)
	}
}
