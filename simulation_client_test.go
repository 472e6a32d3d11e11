package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing/synctest"
	"time"

	"github.com/flightpg/flightpg/internal/battery/schedule"
	"github.com/flightpg/flightpg/internal/flight"
)

// simQuerier is what a client makes its calls with.
type simQuerier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// act lets an idle client make a random call.
func (w *simWorld) act(r *rand.Rand, cl *simClient) {
	if cl.lost {
		return
	}
	key := w.hot
	if r.IntN(3) == 0 {
		key = r.IntN(simKeys)
	}
	mode := w.cfg.Mode
	if r.IntN(2) == 0 {
		mode = Mode(r.IntN(4))
	}
	n := r.IntN(100)
	if cl.rows != nil {
		if n < 50 {
			w.next(cl, 1+r.IntN(8))
		} else {
			w.closeRows(cl)
		}
		return
	}
	var q simQuerier = w.db
	switch {
	case cl.tx != nil:
		q = cl.tx
		switch {
		case n < 25:
			w.commit(cl)
			return
		case n < 35:
			w.rollback(cl)
			return
		}
		n = r.IntN(80)
	case cl.conn != nil:
		q = cl.conn
		if n < 20 {
			w.closeConn(cl)
			return
		}
		n = r.IntN(84)
	}
	switch {
	case n < 30:
		w.query(cl, q, "reads", simRead, key, mode)
	case n < 42:
		w.hold(cl, q, key, mode)
	case n < 50:
		w.queryRow(cl, q, key, mode)
	case n < 54:
		w.query(cl, q, "reads privately", simPrivate, key, ModeOff)
	case n < 66:
		w.write(cl, q, key)
	case n < 72:
		w.writeReturning(cl, q, key)
	case n < 80 && q == w.db:
		w.prepared(cl, key, mode)
	case n < 82 && q != w.db:
		w.begin(cl, "sets a parameter", -1, mode, func(c *simCall) error {
			_, err := q.ExecContext(c.ctx, simSet)
			return err
		})
	case n < 90 && cl.tx == nil:
		w.beginTx(cl)
	case n < 96 && cl.tx == nil && cl.conn == nil:
		w.begin(cl, "takes a connection", -1, mode, func(c *simCall) (err error) {
			cl.conn, err = w.db.Conn(c.ctx)
			return err
		})
	default:
		w.begin(cl, "pings", -1, mode, func(c *simCall) error { return w.db.PingContext(c.ctx) })
	}
}

// begin makes a call.
func (w *simWorld) begin(cl *simClient, what string, key int, mode Mode, f func(c *simCall) error) {
	w.total[simCalls].Add(1)
	w.lastCall++
	c := &simCall{id: w.lastCall, client: cl, what: what, key: key, mode: mode, own: cl.own}
	ctx := context.WithValue(context.Background(), simCallKey{}, c)
	if mode != w.cfg.Mode {
		ctx = WithMode(ctx, mode)
	}
	c.ctx, c.cancel = context.WithCancel(ctx)
	w.srv.mu.Lock()
	c.oldest = w.srv.version
	fenced, fence := w.srv.fenced, w.srv.fence
	w.srv.mu.Unlock()
	c.start = w.tick()
	c.fence = c.start
	switch {
	case cl.tx != nil:
	case mode == ModeFenced:
		c.oldest, c.fence = fenced, fence
	case mode == ModeJoin:
		c.oldest, c.fence = [simKeys]int{}, 0
	}
	cl.call = c
	on := ""
	if cl.tx != nil {
		on = " in its transaction"
	} else if cl.conn != nil {
		on = " on its connection"
	}
	w.say("client %d%s, call %d: %s, key %d, mode %v", cl.id, on, c.id, what, key, mode)
	go func() {
		defer func() {
			c.panicked = recover()
			c.returned.Add(1)
		}()
		c.err = f(c)
	}()
}

// scan takes the row that rows are at and judges it.
func (w *simWorld) scan(rd *simReading) error {
	var k, version, own, op, i, n int
	var payload simBytes
	if err := rd.rows.Scan(&k, &version, &own, &op, &i, &n, &payload); err != nil {
		return err
	}
	w.judgeRow(rd, k, version, own, op, i, n, string(payload))
	return nil
}

// simBytes takes bytes out of the driver's memory and spoils what was there: it is
// this caller's.
type simBytes string

// Scan implements sql.Scanner.
func (s *simBytes) Scan(src any) error {
	b, ok := src.([]byte)
	if !ok {
		return fmt.Errorf("%T", src)
	}
	*s = simBytes(b)
	for i := range b {
		b[i] = '#'
	}
	return nil
}

// judgeRow judges a row by what the server knows of its query.
func (w *simWorld) judgeRow(rd *simReading, k, version, own, op, i, n int, payload string) {
	c := rd.call
	w.srv.mu.Lock()
	query := w.srv.w.execs[op]
	newest := w.srv.version[max(c.key, 0)]
	w.srv.mu.Unlock()
	if query == nil || k != c.key || n != simRows[c.key] || rd.op != nil && query != rd.op || i != rd.n || payload != simPayload(k, version, i) {
		w.fail(simExact, "call %d got row %d of op %d of key %d, of %d; want row %d of key %d", c.id, i, op, k, n, rd.n, c.key)
		return
	}
	rd.op, rd.all = query, n
	rd.n++
	if own != c.own[k] {
		w.fail(simUncommitted, "call %d sees %d writes that are not committed; want its transaction's %d", c.id, own, c.own[k])
	}
	if version < c.oldest[k] || version > newest || query.arrived < c.fence {
		w.fail(simFresh, "call %d, under %v, got version %d of key %d, read at %d; want %d to %d, read after %d", c.id, c.mode, version, k, query.arrived, c.oldest[k], newest, c.fence)
	}
}

// drain reads rows to their end.
func (w *simWorld) drain(rd *simReading) error {
	defer rd.rows.Close()
	for rd.rows.Next() {
		if err := w.scan(rd); err != nil {
			return err
		}
	}
	return w.ended(rd)
}

// ended judges rows after the last of them.
func (w *simWorld) ended(rd *simReading) error {
	rd.done = true
	err := rd.rows.Err()
	if err == nil && (rd.op == nil || rd.n != rd.all) {
		w.fail(simExact, "call %d got %d rows and no error; want %d", rd.call.id, rd.n, simRows[rd.call.key])
	}
	if closed := rd.rows.Close(); err == nil {
		err = closed
	}
	w.total[simReads].Add(1)
	return err
}

func (w *simWorld) query(cl *simClient, q simQuerier, what, text string, key int, mode Mode) {
	w.begin(cl, what, key, mode, func(c *simCall) error {
		rows, err := q.QueryContext(c.ctx, text, key)
		if err != nil {
			return err
		}
		return w.drain(&simReading{call: c, rows: rows})
	})
}

// hold begins a read whose rows the client takes later.
func (w *simWorld) hold(cl *simClient, q simQuerier, key int, mode Mode) {
	w.begin(cl, "reads and holds its rows", key, mode, func(c *simCall) error {
		rows, err := q.QueryContext(c.ctx, simRead, key)
		if err != nil {
			return err
		}
		cl.rows = &simReading{call: c, rows: rows}
		return nil
	})
}

func (w *simWorld) next(cl *simClient, n int) {
	rd := cl.rows
	w.begin(cl, "takes rows", rd.call.key, rd.call.mode, func(*simCall) error {
		for range n {
			if !rd.rows.Next() {
				return w.ended(rd)
			}
			if err := w.scan(rd); err != nil {
				return err
			}
		}
		return nil
	})
	cl.call.start = rd.call.start // its errors may be older
}

func (w *simWorld) closeRows(cl *simClient) {
	rd := cl.rows
	if !rd.done {
		w.total[simClosedEarly].Add(1)
	}
	w.begin(cl, "closes its rows", rd.call.key, rd.call.mode, func(*simCall) error {
		rd.done = true
		return rd.rows.Close()
	})
	cl.call.start = rd.call.start
}

func (w *simWorld) queryRow(cl *simClient, q simQuerier, key int, mode Mode) {
	w.begin(cl, "reads a row", key, mode, func(c *simCall) error {
		var k, version, own, op, i, n int
		var payload string
		if err := q.QueryRowContext(c.ctx, simRead, key).Scan(&k, &version, &own, &op, &i, &n, &payload); err != nil {
			return err
		}
		w.judgeRow(&simReading{call: c}, k, version, own, op, i, n, payload)
		return nil
	})
}

func (w *simWorld) prepared(cl *simClient, key int, mode Mode) {
	w.begin(cl, "reads by a prepared statement", key, mode, func(c *simCall) error {
		if cl.stmt == nil {
			st, err := w.db.PrepareContext(c.ctx, simRead)
			if err != nil {
				return err
			}
			cl.stmt = st
		}
		rows, err := cl.stmt.QueryContext(c.ctx, key)
		if err != nil {
			return err
		}
		return w.drain(&simReading{call: c, rows: rows})
	})
}

func (w *simWorld) newWrite(cl *simClient) int {
	w.lastWrite++
	if cl.tx != nil {
		cl.txs = append(cl.txs, w.lastWrite)
	}
	return w.lastWrite
}

func (w *simWorld) write(cl *simClient, q simQuerier, key int) {
	id := w.newWrite(cl)
	w.begin(cl, "writes", key, ModeOff, func(c *simCall) error {
		_, err := q.ExecContext(c.ctx, simUpdate, key, id)
		return err
	})
	cl.call.write = id
}

func (w *simWorld) writeReturning(cl *simClient, q simQuerier, key int) {
	id := w.newWrite(cl)
	w.begin(cl, "writes and reads what it wrote", key, ModeOff, func(c *simCall) error {
		if cl.tx != nil {
			c.own[key]++
		} else {
			c.oldest[key]++
		}
		rows, err := q.QueryContext(c.ctx, simReturn, key, id)
		if err != nil {
			return err
		}
		return w.drain(&simReading{call: c, rows: rows})
	})
	cl.call.write = id
}

func (w *simWorld) beginTx(cl *simClient) {
	var ctx context.Context
	w.begin(cl, "begins a transaction", -1, ModeOff, func(c *simCall) (err error) {
		ctx, cl.cancelTx = context.WithCancel(context.WithValue(context.Background(), simCallKey{}, c))
		stop := context.AfterFunc(c.ctx, cl.cancelTx)
		defer stop()
		if cl.conn != nil {
			cl.tx, err = cl.conn.BeginTx(ctx, nil)
		} else {
			cl.tx, err = w.db.BeginTx(ctx, nil)
		}
		return err
	})
}

func (w *simWorld) commit(cl *simClient) {
	w.total[simTxsDone].Add(1)
	w.begin(cl, "commits", -1, ModeOff, func(*simCall) error { return cl.tx.Commit() })
}

func (w *simWorld) rollback(cl *simClient) {
	w.begin(cl, "rolls back", -1, ModeOff, func(*simCall) error { return cl.tx.Rollback() })
}

func (w *simWorld) closeConn(cl *simClient) {
	w.begin(cl, "gives its connection back", -1, ModeOff, func(*simCall) error { return cl.conn.Close() })
}

// check judges what has come of the last step, when all has come to rest.
func (w *simWorld) check() {
	synctest.Wait()
	for _, cl := range w.clients {
		if c := cl.call; c != nil {
			switch n := c.returned.Load(); {
			case n > 1:
				w.fail(simReturns, "call %d returned %d times", c.id, n)
			case n == 1:
				cl.call = nil
				w.returned(cl, c)
			}
		}
	}
	s := w.c.table.Stats()
	used := w.c.budget.used.Load()
	if used < 0 || used > w.c.cfg.Memory {
		w.fail(simMemory, "%d bytes are buffered; want 0 to %d", used, w.c.cfg.Memory)
	}
	w.mu.Lock()
	running := 0
	for _, n := range w.running {
		running += n
	}
	w.mu.Unlock()
	if s.Flying < int64(running) || s.Waiting < 0 {
		w.fail(simStats, "Stats = %+v with %d executions", s, running)
	}
	for _, flight := range []bool{true, false} {
		limit := w.cfg.SessionConns
		if flight {
			limit = w.cfg.FlightConns
		}
		if n := w.srv.open(flight); limit > 0 && n > limit {
			w.fail(simLimits, "%d connections are open, for flights: %v; want at most %d", n, flight, limit)
		}
	}
}

// returned judges what a call returned, and notes what follows from it.
func (w *simWorld) returned(cl *simClient, c *simCall) {
	if p, ok := c.panicked.(*flight.PanicError); ok {
		w.say("  call %d panicked: %v", c.id, p.Value)
	} else {
		w.say("  call %d returned %v", c.id, c.err)
	}
	if c.err != nil || c.panicked != nil {
		w.judgeError(cl, c)
	}
	if _, ok := c.panicked.(*flight.PanicError); ok && (cl.conn != nil || cl.tx != nil) {
		cl.lost = true // in a call that got no rows to close: database/sql waits for them for ever
	}
	if c.write != 0 {
		w.judgeWrite(cl, c)
	}
	switch c.what {
	case "begins a transaction":
		if c.err != nil {
			cl.tx = nil
		}
		cl.cancelled = c.cancelled
		if cl.conn == nil {
			cl.since = c.start
		}
	case "commits", "rolls back":
		w.committed(cl, c)
		cl.tx, cl.own, cl.txs, cl.cancelled = nil, [simKeys]int{}, nil, false
		cl.cancelTx()
	case "gives its connection back":
		cl.conn = nil
	case "takes a connection":
		if c.err != nil {
			cl.conn = nil
		}
		cl.since = c.start
	}
	if cl.rows != nil && cl.rows.done {
		cl.rows.call.cancel()
		cl.rows = nil
	}
	if cl.rows == nil || cl.rows.call != c {
		c.cancel()
	}
}

// judgeWrite judges how often a write ran.
func (w *simWorld) judgeWrite(cl *simClient, c *simCall) {
	w.srv.mu.Lock()
	defer w.srv.mu.Unlock()
	w.total[simWritesDone].Add(1)
	done := w.srv.writes[c.write]
	if done == nil {
		if c.err == nil {
			w.fail(simOnce, "write %d was acknowledged and never ran", c.write)
		}
		return
	}
	if cl.tx != nil {
		cl.own[c.key]++
	}
}

// committed judges the end of a transaction.
func (w *simWorld) committed(cl *simClient, c *simCall) {
	w.srv.mu.Lock()
	defer w.srv.mu.Unlock()
	for _, id := range cl.txs {
		done := w.srv.writes[id]
		switch {
		case done == nil:
		case done.when == 0:
			if c.what == "commits" && c.err == nil {
				w.fail(simOnce, "write %d is not there, though its transaction was committed", id)
			}
		case c.what == "rolls back" && c.err == nil:
			w.fail(simOnce, "write %d is there, though its transaction was rolled back", id)
		}
	}
}

// judgeError says whether an error, or a panic, was due to the call that got it.
func (w *simWorld) judgeError(cl *simClient, c *simCall) {
	w.total[simErrors].Add(1)
	err := c.err
	if c.panicked != nil {
		err, _ = c.panicked.(error)
		if p, ok := err.(*flight.PanicError); ok {
			err = p.Unwrap()
		} else if err == nil || !w.mayStream(c) { // the rows panic where they are read
			w.fail(simNoForeign, "call %d panicked with %v", c.id, c.panicked)
			return
		}
	}
	begun := c // of the rows, where it reads some
	if cl.rows != nil {
		begun = cl.rows.call
	}
	var own *simError
	switch {
	case errors.As(err, &own):
		if w.caused(c, func(i simInjected) bool { return i.err == own }) == 0 {
			w.fail(simNoForeign, "call %d got %v, which was another's", c.id, err)
		}
	case errors.Is(err, driver.ErrBadConn):
		start := c.start
		if cl.conn != nil || cl.tx != nil {
			start = cl.since // there, one is for good
		}
		mine := w.causedSince(start, c, func(i simInjected) bool { return i.err == driver.ErrBadConn && !i.op.s.flight })
		flights := 0
		leaders := make(map[*simCall]int)
		w.caused(c, func(i simInjected) bool { // what a follower gets may have begun before it came
			if i.err == driver.ErrBadConn && i.op.s.flight && i.op.call != nil {
				leaders[i.op.call] = 0
			}
			return false
		})
		w.causedSince(0, c, func(i simInjected) bool {
			if _, ok := leaders[i.op.call]; ok && i.err == driver.ErrBadConn {
				leaders[i.op.call]++
				flights = max(flights, leaders[i.op.call])
			}
			return false
		})
		if mine == 0 && flights < 2 && (flights == 0 || !w.mayStream(c)) {
			w.fail(simNoForeign, "call %d got %v, after %d of a flight; want it to be tried again", c.id, err, flights)
		}
	case errors.Is(err, flight.ErrGoexit):
		if w.caused(c, func(i simInjected) bool { return i.err == errSimGoexit }) == 0 {
			w.fail(simNoForeign, "call %d got %v, which was another's", c.id, err)
		}
	case strings.Contains(err.Error(), "flight_timeout"):
		if w.cfg.Timeout == 0 || !errors.Is(err, context.DeadlineExceeded) {
			w.fail(simNoForeign, "call %d got %v", c.id, err)
		}
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		if !c.cancelled && !begun.cancelled && !cl.cancelled {
			w.fail(simNoForeign, "call %d got %v, which was another's", c.id, err)
		}
	case errors.Is(err, sql.ErrTxDone):
		if cl.tx == nil && !cl.cancelled {
			w.fail(simNoForeign, "call %d got %v", c.id, err)
		}
	case errors.Is(err, sql.ErrConnDone):
		// After a connection's own end.
		if cl.conn == nil && cl.tx == nil && !w.closing {
			w.fail(simNoForeign, "call %d got %v", c.id, err)
		}
	case strings.Contains(err.Error(), "closed"):
		if !w.closing {
			w.fail(simNoForeign, "call %d got %v, though nobody has closed anything", c.id, err)
		}
	default:
		w.fail(simNoForeign, "call %d got %v", c.id, err)
	}
}

// mayStream reports whether a call may have got rows that are still being read: a
// connection that is lost then cannot be made up for.
func (w *simWorld) mayStream(c *simCall) bool {
	return c.key >= 0 && (simRows[c.key] > 1 && w.cfg.MaxResult > 0 || w.cfg.Memory > 0 || w.streams)
}

// caused returns how many of the errors that the server has given, and that are
// asked for, the call can have got: those of its own statements, and those of
// flights of its key, while it was under way. Connections are opened for whoever
// comes first.
func (w *simWorld) caused(c *simCall, is func(simInjected) bool) (n int) {
	return w.causedSince(c.start, c, is)
}

func (w *simWorld) causedSince(start int, c *simCall, is func(simInjected) bool) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, i := range w.injected {
		if i.when < start || !is(i) {
			continue
		}
		switch {
		case i.op.what == "connect":
		case i.op.s.flight && i.op.what == "prepare":
		case i.op.s.flight:
			if i.op.key != c.key {
				continue
			}
		case i.op.call != nil && i.op.call.client != c.client:
			continue
		}
		n++
	}
	return n
}

// windUp makes one step towards the end. It reports false when nothing is left.
func (w *simWorld) windUp() bool {
	if ops := w.ops(); len(ops) > 0 {
		w.answer(ops[0], endWell)
		return true
	}
	busy := 0
	settled := !slices.ContainsFunc(w.clients, func(cl *simClient) bool { return cl.call != nil })
	for _, cl := range w.clients {
		switch {
		case cl.call != nil:
			busy++
			continue
		case cl.lost:
			continue
		case cl.rows != nil:
			w.closeRows(cl)
		case cl.tx != nil:
			w.rollback(cl)
		case cl.conn != nil:
			w.closeConn(cl)
		case cl.stmt != nil && settled: // database/sql waits for connections in use on a mutex
			st := cl.stmt
			cl.stmt = nil
			w.begin(cl, "closes its statement", -1, ModeOff, func(*simCall) error { return st.Close() })
		default:
			continue
		}
		return true
	}
	if busy > 0 {
		w.fail(simReturns, "%d calls have not returned, though nothing is under way for them", busy)
		return false
	}
	if !w.closing {
		w.closeHandle()
		return true
	}
	time.Sleep(time.Minute) // windows
	synctest.Wait()
	s := w.c.Stats()
	switch keys := w.c.table.Keys(); {
	case s.Flying != 0 || s.Waiting != 0 || keys != 0:
		w.fail(schedule.NothingLeft, "%d keys, Stats = %+v", keys, s)
	case w.c.streaming.Load() != 0:
		w.fail(schedule.NothingLeft, "%d results count as being streamed", w.c.streaming.Load())
	case s.BufferedBytes != 0:
		w.fail(schedule.NothingLeft, "%d bytes are counted as buffered", s.BufferedBytes)
	case w.srv.open(true) > 0 || w.srv.open(false) > 0:
		w.fail(schedule.NothingLeft, "%d flight and %d session connections are open", w.srv.open(true), w.srv.open(false))
	case s.Execs > 0 && w.lastCall == 0:
		w.fail(simStats, "Stats = %+v without a call", s)
	}
	return false
}
