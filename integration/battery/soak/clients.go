package main

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
)

// operation is something that clients do.
type operation struct {
	name   string
	weight int
	kind   kind
	do     func(c *client, ctx context.Context, r request) error
}

type kind uint8

const (
	reads kind = iota
	writes
	states // of sessions
)

// request is how an operation is to be done.
type request struct {
	h      *handle
	mode   flightpg.Mode // as judged
	leaves bool          // the caller's context will end
}

// operations are what clients do, and how often.
var operations = []operation{
	{"point read", 260, reads, (*client).point},
	{"prepared read", 120, reads, (*client).preparedRead},
	{"range read", 60, reads, (*client).rangeRead},
	{"slow read", 60, reads, (*client).slowRead},
	{"result over a cap", 12, reads, (*client).big},
	{"rows closed early", 12, reads, (*client).closedEarly},
	{"read of changing columns", 20, reads, (*client).side},
	{"storm of leavers", 4, reads, (*client).storm},
	{"read in a transaction", 15, reads, (*client).readTx},
	{"update", 60, writes, (*client).update},
	{"update RETURNING", 30, writes, (*client).updateReturning},
	{"prepared update", 30, writes, (*client).preparedUpdate},
	{"update in a transaction", 20, writes, (*client).updateTx},
	{"update on a raw connection", 3, writes, (*client).updateRaw},
	{"booking", 40, writes, (*client).book},
	{"booking without arguments", 20, writes, (*client).bookText},
	{"booking by a function", 4, writes, (*client).bookByFunction},
	{"booking in a transaction", 20, writes, (*client).bookTx},
	{"booking between BEGIN and COMMIT as texts", 6, writes, (*client).bookByText},
	{"booking with COPY", 3, writes, (*client).bookCopy},
	{"booking rolled back", 10, writes, (*client).bookRolledBack},
	{"session with settings", 3, states, (*client).settings},
	{"session with a temporary table", 2, states, (*client).temporary},
	{"advisory lock", 8, states, (*client).lock},
	{"ping", 4, states, (*client).ping},
	{"DDL", 1, states, (*client).ddl},
}

// outcome is what is known of a write.
type outcome uint8

const (
	acked   outcome = iota
	never           // the server has refused it, or never got it
	unknown         // its answer was lost
)

// known is what is known of a write that was not acknowledged, and from what.
type known struct {
	outcome
	why string
}

// client does one thing after the other.
type client struct {
	s    *soak
	n    int
	h    *handle // its own: what it writes goes through this one
	rng  *rand.Rand
	zipf *rand.Zipf
	own  []int // the items that nobody else writes

	booked   int64           // the last booking's number
	outcomes map[int64]known // of those that are not acked

	doing atomic.Pointer[doing] // for the monitor
	ddls  int
}

type doing struct {
	what  string
	since time.Time
	told  atomic.Bool
}

func newClient(s *soak, n int) *client {
	c := &client{s: s, n: n, h: s.handles[n%len(s.handles)], rng: battery.Rand(s.seed, n), outcomes: make(map[int64]known)}
	c.zipf = rand.NewZipf(c.rng, 1.4, 2, items-1)
	// The clients of a domain divide its items.
	mates, me := 0, 0
	for i := range s.config.clients {
		if s.handles[i%len(s.handles)].domain == c.h.domain {
			if i == n {
				me = mates
			}
			mates++
		}
	}
	for id, k := c.h.domain, 0; id < items; id, k = id+domains, k+1 {
		if k%mates == me {
			c.own = append(c.own, id)
		}
	}
	return c
}

func (c *client) run(ctx context.Context) {
	total := 0
	for _, op := range operations {
		total += op.weight
	}
	for ctx.Err() == nil {
		pick := c.rng.IntN(total)
		i := 0
		for ; pick >= operations[i].weight; i++ {
			pick -= operations[i].weight
		}
		if c.s.only == nil || c.s.only(&operations[i]) {
			c.once(i)
		}
		pause := time.NewTimer(time.Duration(c.rng.ExpFloat64() * float64(2*time.Millisecond)))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
		}
	}
	c.doing.Store(nil)
}

// once does one operation and judges its error. It goes on when the load has
// ended: only what it is itself ends its context.
func (c *client) once(i int) {
	op := &operations[i]
	ctx, r := context.Background(), request{h: c.h}
	switch p := c.rng.IntN(100); {
	case p < 55:
		r.mode = flightpg.ModeFenced
		ctx = flightpg.WithMode(ctx, c.s.fenced)
	case p < 80:
		r.mode = flightpg.ModeStrict
		ctx = flightpg.WithMode(ctx, r.mode)
	case p < 93:
		r.mode = flightpg.ModeJoin
		ctx = flightpg.WithMode(ctx, r.mode)
	default:
		r.mode = flightpg.ModeOff
		ctx = flightpg.WithMode(ctx, r.mode)
	}
	if op.kind == reads && c.rng.IntN(4) == 0 {
		r.h = c.s.handles[c.rng.IntN(len(c.s.handles))]
	}
	switch p := c.rng.IntN(100); {
	case p < 10:
		r.leaves = true
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(c.rng.Int64N(int64(12*time.Millisecond))))
		defer cancel()
	case p < 40: // a context that could end, and does not
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
	}

	begin := time.Now()
	c.doing.Store(&doing{what: op.name + " on " + r.h.name, since: begin})
	err := c.safely(ctx, op, r)
	c.s.counts[i].done.Add(1)
	c.s.counts[i].took.Add(int64(time.Since(begin)))
	c.s.note(&c.s.counts[i], c.s.judge.class(r.h, gone(ctx), begin, err), func() string {
		return fmt.Sprintf("client %d, %s, %v, on %s (leaves: %v, after %v)", c.n, op.name, r.mode, r.h.name, r.leaves, time.Since(begin).Round(time.Millisecond))
	}, err)
}

func (c *client) safely(ctx context.Context, op *operation, r request) (err error) {
	defer func() {
		if p := recover(); p != nil {
			c.s.judge.violate("panic", "client %d, %s on %s: %v\n%s", c.n, op.name, r.h.name, p, debug.Stack())
		}
	}()
	return op.do(c, ctx, r)
}

// wrong reports a result that must not be.
func (c *client) wrong(kind string, r request, format string, args ...any) {
	c.s.judge.violate(kind, "client %d, %v, on %s: %s", c.n, r.mode, r.h.name, fmt.Sprintf(format, args...))
}

func (c *client) pick() int { return int(c.zipf.Uint64()) }

// floor returns the version that a read of an item, which begins now, must see at
// least.
func (c *client) floor(r request, id int) int64 {
	switch {
	case r.h.native, r.mode == flightpg.ModeStrict, r.mode == flightpg.ModeOff:
	case r.mode == flightpg.ModeFenced && r.h.domain == domainOf(id):
	default:
		return 0
	}
	return c.s.items[id].acked.Load()
}

const selectItem = `SELECT id, ver, body, raw FROM items WHERE id = $1`

// itemRow is a row of items. The caller may write into it.
type itemRow struct {
	id   int
	ver  int64
	body []byte
	raw  sql.RawBytes
}

func (i *itemRow) dest() []any { return []any{&i.id, &i.ver, &i.body, &i.raw} }

// checkItem judges a row, and then spoils it: nobody else may see that.
func (c *client) checkItem(r request, row *itemRow, id int, floor int64) {
	h := hash(row.id, row.ver)
	switch top := c.s.items[id].attempted.Load(); {
	case row.id != id:
		c.wrong("wrong row", r, "asked for item %d, got %d", id, row.id)
	case string(row.body) != hexHash(row.id, row.ver), row.raw != nil && !bytes.Equal(row.raw, h[:]):
		c.wrong("wrong row", r, "item %d version %d has body %q and raw %x; want the hash %x", id, row.ver, row.body, []byte(row.raw), h)
	case row.ver < floor:
		c.wrong("stale", r, "item %d has version %d, but %d was acknowledged before the read began", id, row.ver, floor)
	case row.ver > top:
		c.wrong("wrong row", r, "item %d has version %d, which nobody has written (last: %d)", id, row.ver, top)
	}
	for _, b := range [][]byte{row.body, row.raw} {
		for i := range b {
			b[i] = '#'
		}
	}
}

// one reads the one item that rows must have.
func (c *client) one(r request, rows *sql.Rows, err error, id int, floor int64) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var row itemRow
		if err := rows.Scan(row.dest()...); err != nil {
			return err
		}
		c.checkItem(r, &row, id, floor)
		n++
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if n != 1 {
		c.wrong("truncated", r, "%d rows of item %d and no error", n, id)
	}
	return nil
}

func (c *client) point(ctx context.Context, r request) error {
	id := c.pick()
	floor := c.floor(r, id)
	if c.rng.IntN(2) == 0 {
		var row itemRow
		raw := []byte(nil) // QueryRow takes no RawBytes
		err := r.h.db.QueryRowContext(ctx, selectItem, id).Scan(&row.id, &row.ver, &row.body, &raw)
		if errors.Is(err, sql.ErrNoRows) {
			c.wrong("truncated", r, "no row of item %d and no error", id)
			return nil
		}
		if err == nil {
			row.raw = raw
			c.checkItem(r, &row, id, floor)
		}
		return err
	}
	rows, err := r.h.db.QueryContext(ctx, selectItem, id)
	return c.one(r, rows, err, id, floor)
}

func (c *client) preparedRead(ctx context.Context, r request) error {
	id := c.pick()
	floor := c.floor(r, id)
	rows, err := r.h.readStmt.QueryContext(ctx, id)
	return c.one(r, rows, err, id, floor)
}

const (
	selectSlowItem = `SELECT id, ver, body, raw FROM slow_item($1, $2)`
	slowItems      = 12 // which ones are read slowly
	slowness       = 4  // in milliseconds
)

func (c *client) slowRead(ctx context.Context, r request) error {
	id := c.pick() % slowItems
	floor := c.floor(r, id)
	rows, err := r.h.db.QueryContext(ctx, selectSlowItem, id, slowness+c.s.slower)
	return c.one(r, rows, err, id, floor)
}

// rangeRead reads several items, each of which has its own floor.
func (c *client) rangeRead(ctx context.Context, r request) error {
	const width = 16
	from := min(c.pick()/width*width, items-width)
	var floors [width]int64
	for i := range floors {
		floors[i] = c.floor(r, from+i)
	}
	return c.readRange(ctx, r, r.h.db, from, floors[:])
}

type queryer interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
}

func (c *client) readRange(ctx context.Context, r request, q queryer, from int, floors []int64) error {
	rows, err := q.QueryContext(ctx, `SELECT id, ver, body, raw FROM items WHERE id >= $1 AND id < $2 ORDER BY id`, from, from+len(floors))
	if err != nil {
		return err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		var row itemRow
		if err := rows.Scan(row.dest()...); err != nil {
			return err
		}
		if n == len(floors) {
			c.wrong("wrong row", r, "more than %d rows from item %d", n, from)
			return nil
		}
		c.checkItem(r, &row, from+n, floors[n])
		n++
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if n != len(floors) {
		c.wrong("truncated", r, "%d rows from item %d and no error; want %d", n, from, len(floors))
	}
	return nil
}

const selectBig = `SELECT g, md5($1::text || ':' || g) || repeat('x', 60) FROM generate_series(1, $2::int) g`

var padding = strings.Repeat("x", 60)

// bigRow checks a row of selectBig.
func (c *client) bigRow(r request, rows *sql.Rows, set string, n int) error {
	var g int
	var text []byte
	if err := rows.Scan(&g, &text); err != nil {
		return err
	}
	// A sample of the hashes: they cost more than all the rest of the client.
	if g != n || len(text) != 32+len(padding) || g%16 == 1 && string(text) != fmt.Sprintf("%x", hashOf(set, n))+padding {
		c.wrong("wrong row", r, "row %d of big result %s is (%d, %q)", n, set, g, text)
	}
	for i := range text {
		text[i] = '#'
	}
	return nil
}

// big reads a result that is over some cap of some handle, to its end.
func (c *client) big(ctx context.Context, r request) error {
	size := []int{100, 1_000, 14_000}[c.rng.IntN(3)]
	set := fmt.Sprint(c.rng.IntN(3))
	rows, err := r.h.db.QueryContext(ctx, selectBig, set, size)
	if err != nil {
		return err
	}
	defer rows.Close()
	n := 0
	for rows.Next() {
		n++
		if err := c.bigRow(r, rows, set, n); err != nil {
			return err
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if n != size {
		c.wrong("truncated", r, "%d rows of %d and no error", n, size)
	}
	return nil
}

// closedEarly reads some rows and has enough, or dawdles over them.
func (c *client) closedEarly(ctx context.Context, r request) error {
	set := fmt.Sprint(c.rng.IntN(3))
	rows, err := r.h.db.QueryContext(ctx, selectBig, set, 14_000)
	if err != nil {
		return err
	}
	enough := c.rng.IntN(12_000)
	for n := 1; n <= enough; n++ {
		if !rows.Next() {
			if rows.Err() == nil {
				c.wrong("truncated", r, "no row %d of 14000 and no error", n)
			}
			break
		}
		if err := c.bigRow(r, rows, set, n); err != nil {
			return errors.Join(err, rows.Close())
		}
		if n%4_000 == 0 {
			time.Sleep(time.Duration(c.rng.Int64N(int64(20 * time.Millisecond)))) // load, not synchronisation
		}
	}
	return errors.Join(rows.Err(), rows.Close())
}

// side reads a table whose columns change: what came must be of one moment.
func (c *client) side(ctx context.Context, r request) error {
	rows, err := r.h.db.QueryContext(ctx, `SELECT * FROM side ORDER BY id`)
	if err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	values, dest := make([]int, len(columns)), make([]any, len(columns))
	for i := range values {
		dest[i] = &values[i]
	}
	n := 0
	for rows.Next() {
		n++
		if err := rows.Scan(dest...); err != nil {
			return err
		}
		for i, name := range columns {
			want := n
			switch name {
			case "id":
			case "fixed":
				want = 3 * n
			default:
				_, _ = fmt.Sscanf(name, "c%d", &want)
			}
			if values[i] != want {
				c.wrong("wrong row", r, "row %d of side: column %s of %v is %d; want %d", n, name, columns, values[i], want)
			}
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if n != sideRows {
		c.wrong("truncated", r, "%d rows of side and no error; want %d", n, sideRows)
	}
	return nil
}

// storm asks for one slow row many times at once, and most of the callers leave.
func (c *client) storm(ctx context.Context, r request) error {
	id := c.pick() % slowItems
	var all sync.WaitGroup
	for i := range 24 {
		patience := time.Duration(c.rng.Int64N(int64(10 * time.Millisecond)))
		all.Go(func() {
			begin, floor := time.Now(), c.floor(r, id)
			ctx := ctx
			if i%4 > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, patience)
				defer cancel()
			}
			rows, err := r.h.db.QueryContext(ctx, selectSlowItem, id, slowness+2)
			err = c.one(r, rows, err, id, floor)
			c.s.note(nil, c.s.judge.class(r.h, gone(ctx), begin, err), func() string {
				return fmt.Sprintf("client %d, caller %d of a storm, %v, on %s", c.n, i, r.mode, r.h.name)
			}, err)
		})
	}
	all.Wait()
	return nil
}

// readTx reads the same rows twice in a snapshot.
func (c *client) readTx(ctx context.Context, r request) error {
	from := c.rng.IntN(items - 8)
	floors := make([]int64, 8)
	for i := range floors {
		floors[i] = c.s.items[from+i].acked.Load() // a transaction is never shared
	}
	tx, err := r.h.db.BeginTx(ctx, &sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true})
	if err != nil {
		return err
	}
	defer tx.Rollback()
	sums := [2]sql.NullString{}
	for i := range sums {
		if err := c.readRange(ctx, r, tx, from, floors); err != nil {
			return err
		}
		err := tx.QueryRowContext(ctx, `SELECT string_agg(ver::text, ',' ORDER BY id) FROM items WHERE id >= $1 AND id < $2`, from, from+8).Scan(&sums[i])
		if err != nil {
			return err
		}
	}
	if sums[0] != sums[1] {
		c.wrong("wrong row", r, "a snapshot has changed: %v", sums)
	}
	return tx.Commit()
}

const updateItem = `UPDATE items SET ver = $2, body = $3, raw = $4 WHERE id = $1 AND ver < $2`

type change struct {
	id  int
	ver int64
}

// next returns a new version for one of the client's items: one of its most read
// ones, half the time.
func (c *client) next() change {
	id := c.own[c.rng.IntN(len(c.own))]
	if c.rng.IntN(2) == 0 {
		id = c.own[0]
	}
	return change{id, c.s.items[id].attempted.Add(1)}
}

func (w change) args() []any {
	h := hash(w.id, w.ver)
	return []any{w.id, w.ver, hexHash(w.id, w.ver), h[:]}
}

// changed notes that a write was acknowledged, and reads it back now and then.
func (c *client) changed(ctx context.Context, r request, w change, rows int64) error {
	if rows != 1 {
		c.wrong("ran twice", r, "the update of item %d to version %d found %d rows; want 1", w.id, w.ver, rows)
	}
	c.s.items[w.id].acked.Store(w.ver)
	if c.rng.IntN(2) == 0 {
		return nil
	}
	floor := c.floor(r, w.id)
	if w.id < slowItems { // there may be a flight that began before the write
		got, err := r.h.db.QueryContext(ctx, selectSlowItem, w.id, slowness)
		return c.one(r, got, err, w.id, floor)
	}
	got, err := r.h.db.QueryContext(ctx, selectItem, w.id)
	return c.one(r, got, err, w.id, floor)
}

func affected(res sql.Result, err error) (int64, error) {
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (c *client) update(ctx context.Context, r request) error {
	w := c.next()
	n, err := affected(r.h.db.ExecContext(ctx, updateItem, w.args()...))
	if err != nil {
		return err
	}
	return c.changed(ctx, r, w, n)
}

func (c *client) preparedUpdate(ctx context.Context, r request) error {
	w := c.next()
	n, err := affected(r.h.writeStmt.ExecContext(ctx, w.args()...))
	if err != nil {
		return err
	}
	return c.changed(ctx, r, w, n)
}

func (c *client) updateReturning(ctx context.Context, r request) error {
	w := c.next()
	var ver int64
	err := r.h.db.QueryRowContext(ctx, updateItem+` RETURNING ver`, w.args()...).Scan(&ver)
	if errors.Is(err, sql.ErrNoRows) {
		return c.changed(ctx, r, w, 0)
	}
	if err != nil {
		return err
	}
	return c.changed(ctx, r, w, 1)
}

func (c *client) updateTx(ctx context.Context, r request) error {
	w := c.next()
	tx, err := r.h.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	n, err := affected(tx.ExecContext(ctx, updateItem, w.args()...))
	if err != nil {
		return err
	}
	// In its transaction it sees its own row.
	rows, err := tx.QueryContext(ctx, selectItem, w.id)
	if err := c.one(r, rows, err, w.id, w.ver); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	return c.changed(ctx, r, w, n)
}

// raw calls f with the pgx connection of a connection of the handle's.
func raw(ctx context.Context, h *handle, f func(*pgx.Conn) error) (err error) {
	conn, err := h.db.Conn(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeConn(conn)) }()
	return conn.Raw(func(dc any) error {
		p := dc.(interface{ Conn() *pgx.Conn }).Conn()
		if p == nil { // its server could not be reached: a connect error that Raw has no way to give
			return errNoRaw
		}
		return f(p)
	})
}

var errNoRaw = errors.New("soak: no raw connection")

// closeConn puts a connection back. That it is broken already is no news.
func closeConn(conn *sql.Conn) error {
	if err := conn.Close(); err != nil && !errors.Is(err, sql.ErrConnDone) {
		return err
	}
	return nil
}

func (c *client) updateRaw(ctx context.Context, r request) error {
	w := c.next()
	var n int64
	err := raw(ctx, r.h, func(conn *pgx.Conn) error {
		tag, err := conn.Exec(ctx, updateItem, w.args()...)
		n = tag.RowsAffected()
		return err
	})
	if err != nil {
		return err
	}
	return c.changed(ctx, r, w, n)
}

// booking is a line of the ledger, and a sum on an account.
type booking struct {
	seq     int64
	account int
	amount  int64
}

func (c *client) booking() booking {
	c.booked++
	return booking{c.booked, c.rng.IntN(accounts), c.rng.Int64N(1000) - 300}
}

func (c *client) bookingArgs(b booking) []any { return []any{c.n, b.seq, b.account, b.amount} }

// because says what the client is doing, and what came of it. There are many of
// these in a long run: callers that left, most of them, make no new text.
func (c *client) because(err error) string {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return "its caller had left"
	}
	return fmt.Sprintf("%s at %s: %T: %v", c.doing.Load().what, time.Now().UTC().Format("15:04:05.000"), err, err)
}

// outcome notes what is known of a booking by its error. committing: it may have
// happened, whatever the error.
func (c *client) outcome(b booking, err error, committing bool) error {
	switch {
	case err == nil:
	case !committing, refused(err):
		c.outcomes[b.seq] = known{never, c.because(err)}
	default:
		c.outcomes[b.seq] = known{unknown, ""}
	}
	return err
}

const (
	insertLedger = `INSERT INTO ledger VALUES ($1, $2, $3, $4)`
	addToAccount = `UPDATE accounts SET balance = balance + $2 WHERE id = $1`
	// A text that never comes again.
	literalBooking = `WITH line AS (INSERT INTO ledger VALUES (%d, %d, %d, %d)) UPDATE accounts SET balance = balance + %[4]d WHERE id = %[3]d`
)

func (c *client) book(ctx context.Context, r request) error {
	b := c.booking()
	_, err := r.h.db.ExecContext(ctx, `WITH line AS (`+insertLedger+`) UPDATE accounts SET balance = balance + $4 WHERE id = $3`, c.bookingArgs(b)...)
	return c.outcome(b, err, true)
}

// bookText books with a text that has everything in it: pgx sends it another way.
// And what pgx's own driver makes of a lost answer there (it sends the text again)
// is not for this soak to judge.
func (c *client) bookText(ctx context.Context, r request) error {
	if r.h.native {
		return nil
	}
	b := c.booking()
	_, err := r.h.db.ExecContext(ctx, fmt.Sprintf(literalBooking, c.bookingArgs(b)...))
	return c.outcome(b, err, true)
}

func (c *client) bookByFunction(ctx context.Context, r request) error {
	b := c.booking()
	var seq int64
	err := r.h.db.QueryRowContext(ctx, `SELECT book($1, $2, $3, $4)`, c.bookingArgs(b)...).Scan(&seq)
	if err == nil && seq != b.seq {
		c.wrong("wrong row", r, "booking %d returned %d", b.seq, seq)
	}
	return c.outcome(b, err, true)
}

type execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

func (c *client) bookOn(ctx context.Context, e execer, b booking) error {
	if _, err := e.ExecContext(ctx, insertLedger, c.bookingArgs(b)...); err != nil {
		return err
	}
	_, err := e.ExecContext(ctx, addToAccount, b.account, b.amount)
	return err
}

func (c *client) bookTx(ctx context.Context, r request) error {
	b := c.booking()
	tx, err := r.h.db.BeginTx(ctx, nil)
	if err != nil {
		return c.outcome(b, err, false)
	}
	defer tx.Rollback()
	if c.rng.IntN(4) == 0 {
		if _, err := tx.ExecContext(ctx, `SET LOCAL work_mem = '1MB'`); err != nil {
			return c.outcome(b, err, false)
		}
	}
	if err := c.bookOn(ctx, tx, b); err != nil {
		return c.outcome(b, err, false)
	}
	return c.outcome(b, tx.Commit(), true)
}

func (c *client) bookRolledBack(ctx context.Context, r request) error {
	b := c.booking()
	c.outcomes[b.seq] = known{never, "rolled back"}
	tx, err := r.h.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	if err := c.bookOn(ctx, tx, b); err != nil {
		tx.Rollback()
		return err
	}
	if err := tx.Rollback(); err != nil && !errors.Is(err, sql.ErrTxDone) {
		return err
	}
	return nil
}

// onConn calls f with a connection. After an error it is given up: nobody knows
// what it has.
func onConn(ctx context.Context, h *handle, f func(*sql.Conn) error) error {
	conn, err := h.db.Conn(ctx)
	if err != nil {
		return err
	}
	err = f(conn)
	if err != nil {
		_ = conn.Raw(func(any) error { return driver.ErrBadConn })
	}
	return errors.Join(err, closeConn(conn))
}

func (c *client) bookByText(ctx context.Context, r request) error {
	b := c.booking()
	committing := false
	err := onConn(ctx, r.h, func(conn *sql.Conn) error {
		if _, err := conn.ExecContext(ctx, `BEGIN`); err != nil {
			return err
		}
		if err := c.bookOn(ctx, conn, b); err != nil {
			return err
		}
		committing = true
		_, err := conn.ExecContext(ctx, `COMMIT`)
		return err
	})
	return c.outcome(b, err, committing)
}

func (c *client) bookCopy(ctx context.Context, r request) error {
	b := c.booking()
	committing := false
	err := raw(ctx, r.h, func(conn *pgx.Conn) error {
		tx, err := conn.Begin(ctx)
		if err != nil {
			return err
		}
		defer tx.Rollback(context.WithoutCancel(ctx))
		if _, err := tx.CopyFrom(ctx, pgx.Identifier{"ledger"}, []string{"client", "seq", "account", "amount"}, pgx.CopyFromRows([][]any{c.bookingArgs(b)})); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, addToAccount, b.account, b.amount); err != nil {
			return err
		}
		committing = true
		return tx.Commit(ctx)
	})
	return c.outcome(b, err, committing)
}

// settings changes a session, and expects to find it changed.
func (c *client) settings(ctx context.Context, r request) error {
	return onConn(ctx, r.h, func(conn *sql.Conn) error {
		name := fmt.Sprintf("soak %d.%d", c.n, c.rng.IntN(4))
		if _, err := conn.ExecContext(ctx, `SET application_name = '`+name+`'`); err != nil {
			return err
		}
		for range 2 {
			var got string
			if err := conn.QueryRowContext(ctx, `SELECT current_setting('application_name')`).Scan(&got); err != nil {
				return err
			}
			if got != name {
				c.wrong("another's session", r, "application_name is %q; want %q", got, name)
			}
		}
		_, err := conn.ExecContext(ctx, `RESET application_name`)
		return err
	})
}

func (c *client) temporary(ctx context.Context, r request) error {
	return onConn(ctx, r.h, func(conn *sql.Conn) error {
		if _, err := conn.ExecContext(ctx, `CREATE TEMPORARY TABLE mine (client int)`); err != nil {
			return err
		}
		if _, err := conn.ExecContext(ctx, `INSERT INTO mine VALUES ($1)`, c.n); err != nil {
			return err
		}
		var got int
		if err := conn.QueryRowContext(ctx, `SELECT client FROM mine`).Scan(&got); err != nil {
			return err
		}
		if got != c.n {
			c.wrong("another's session", r, "the temporary table has %d; want %d", got, c.n)
		}
		_, err := conn.ExecContext(ctx, `DROP TABLE mine`)
		return err
	})
}

func (c *client) lock(ctx context.Context, r request) error {
	return onConn(ctx, r.h, func(conn *sql.Conn) error {
		key := c.rng.IntN(4)
		var locked, unlocked bool
		if err := conn.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, key).Scan(&locked); err != nil || !locked {
			return err
		}
		if err := conn.QueryRowContext(ctx, `SELECT pg_advisory_unlock($1)`, key).Scan(&unlocked); err != nil {
			return err
		}
		if !unlocked {
			c.wrong("another's session", r, "the session has lost its advisory lock")
		}
		return nil
	})
}

func (c *client) ping(ctx context.Context, r request) error { return r.h.db.PingContext(ctx) }

// ddl adds and drops columns of side. It belongs to one client: two at a time
// would tell nothing more.
func (c *client) ddl(ctx context.Context, r request) error {
	if c.n != 0 {
		return nil
	}
	c.ddls++
	column := c.ddls / 2 % 3
	text := fmt.Sprintf(`ALTER TABLE side ADD COLUMN IF NOT EXISTS c%[1]d int NOT NULL DEFAULT %[1]d`, column)
	if c.ddls%2 == 1 {
		text = fmt.Sprintf(`ALTER TABLE side DROP COLUMN IF EXISTS c%d`, column)
	}
	_, err := r.h.db.ExecContext(ctx, text)
	return err
}
