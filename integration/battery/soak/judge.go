package main

import (
	"cmp"
	"context"
	"crypto/md5"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
)

const (
	// patience is how long anything may take that should end soon. Nothing here
	// takes so long on a machine that works.
	patience = 90 * time.Second
	// calmAfter is how long after a fault errors may still come from it: a dead
	// connection is found when somebody uses it.
	calmAfter = 15 * time.Second
	maxTold   = 100 // violations with their text; all are counted
)

// judge collects what was violated. It is safe for concurrent use.
type judge struct {
	mu       sync.Mutex // guards the rest
	byKind   map[string]int
	told     []string
	faulting int       // faults under way
	faultEnd time.Time // of the last one
	faults   int
}

func (j *judge) violate(kind, format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.byKind == nil {
		j.byKind = make(map[string]int)
	}
	j.byKind[kind]++
	if len(j.told) < maxTold {
		j.told = append(j.told, time.Now().UTC().Format("15:04:05.000 ")+kind+": "+fmt.Sprintf(format, args...))
	}
}

func (j *judge) violations() (n int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for _, k := range j.byKind {
		n += k
	}
	return n
}

func (j *judge) of(kind string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.byKind[kind]
}

func (j *judge) fault(begins bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if begins {
		j.faulting++
		j.faults++
	} else {
		j.faulting--
		j.faultEnd = time.Now()
	}
}

// calm reports whether no fault can be the cause of what happened since then.
func (j *judge) calm(since time.Time) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.faulting == 0 && since.Sub(j.faultEnd) > calmAfter
}

// class says what an error of an operation means.
type class uint8

const (
	fine      class = iota
	left            // its own caller left
	lost            // the connection, for which there was a cause
	full            // the server had no connection left, likewise
	stale           // pgx's driver and DDL: what flightpg repairs
	causeless       // a lost connection or a full server in calm times
	foreign         // somebody else's cancellation
	wrong           // any other
	classes
)

var classNames = [...]string{
	fine: "fine", left: "left", lost: "lost", full: "full", stale: "stale plan (pgx)",
	causeless: "error without a cause", foreign: "foreign cancellation", wrong: "unexpected error",
}

// class judges the error of an operation on a handle that began at some time,
// whose caller may have left.
func (j *judge) class(h *handle, callerLeft bool, begin time.Time, err error) class {
	caused := func(c class) class {
		if j.calm(begin) && !h.native { // pgx's driver gives up after two bad connections
			return causeless
		}
		return c
	}
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return fine
	case errors.As(err, &pgErr):
		switch {
		case pgErr.Code == "57014" && callerLeft:
			return left
		case pgErr.Code == "57014":
			return foreign
		case pgErr.Code == "53300":
			return caused(full)
		case slices.Contains([]string{"57P01", "57P02", "57P03"}, pgErr.Code), strings.HasPrefix(pgErr.Code, "08") && pgErr.Code != "08P01":
			return caused(lost)
		case h.native && pgErr.Code == "0A000":
			return stale
		}
		return wrong
	case callerLeft && connectionOrContext(err):
		return left
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return foreign
	case connectionOrContext(err):
		return caused(lost)
	}
	return wrong
}

// connectionOrContext reports whether an error says that a connection is gone or
// cannot be had, or that a context has ended.
func connectionOrContext(err error) bool {
	var connect *pgconn.ConnectError
	var network net.Error
	for _, target := range []error{
		context.Canceled, context.DeadlineExceeded, driver.ErrBadConn, sql.ErrConnDone, sql.ErrTxDone, errNoRaw,
		io.EOF, io.ErrUnexpectedEOF, net.ErrClosed, syscall.ECONNRESET, syscall.ECONNREFUSED, syscall.EPIPE,
	} {
		if errors.Is(err, target) {
			return true
		}
	}
	return errors.As(err, &connect) || errors.As(err, &network) || strings.Contains(err.Error(), "conn closed")
}

// gone reports whether a caller has left. Its deadline counts before the context
// knows of it: a dial is told the time, not the context.
func gone(ctx context.Context) bool {
	deadline, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && !time.Now().Before(deadline)
}

// refused reports whether an error says that the statement has done nothing: the
// server does. (pgconn.SafeToRetry does not: pgx 5.12 says it of a COMMIT whose
// answer was lost.)
func refused(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.SeverityUnlocalized == "ERROR"
}

// counter counts what came of an operation.
type counter struct {
	done    atomic.Int64
	took    atomic.Int64 // in nanoseconds
	classes [classes]atomic.Int64
}

// note counts an error, and reports it if it should not be. n may be nil.
func (s *soak) note(n *counter, c class, what func() string, err error) {
	if n != nil {
		n.classes[c].Add(1)
	}
	if c >= causeless {
		s.judge.violate(classNames[c], "%s: %T: %v", what(), err, err)
	}
}

// hashOf is what row n of a big result has.
func hashOf(set string, n int) [md5.Size]byte { return md5.Sum([]byte(set + ":" + strconv.Itoa(n))) }

// watch tells of clients that do one thing for too long.
func (s *soak) watch() {
	for _, c := range s.clients {
		d := c.doing.Load()
		if d != nil && time.Since(d.since) > patience && !d.told.Swap(true) {
			s.judge.violate("hang", "client %d: %s for %v\n%s", c.n, d.what, time.Since(d.since).Round(time.Second), stacks())
		}
	}
}

// stacks returns the stacks of all goroutines.
func stacks() string {
	buf := make([]byte, 4<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

// goroutines returns the stacks of the goroutines that are there, by their number.
// Those of the proxies do not count: a proxy is a part of the rig, and leaves some
// for connections that were cut.
func goroutines() map[string]string {
	all := make(map[string]string)
	for _, stack := range strings.Split(stacks(), "\n\n") {
		id, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		if !strings.Contains(stack, "toxiproxy") {
			all[id] = stack
		}
	}
	return all
}

// ledgerResult is what the ledger's audit has found.
type ledgerResult struct {
	acked, never, unknown   int64 // bookings
	happened                int64 // of the unknown ones
	twice, missing, refused int64 // violations
}

// last checks what is left of the load: first with the handles open, then closed.
func (s *soak) last(ctx context.Context, before map[string]string) {
	eventually := func(kind string, check func() string) {
		var last string
		for deadline := time.Now().Add(cmp.Or(s.patience, patience)); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) { // nothing tells: polling
			if last = check(); last == "" {
				return
			}
		}
		s.judge.violate(kind, "%s", last)
	}
	count := func(what, query string, args ...any) func() string {
		return func() string {
			var n int
			err := s.admin(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, query, args...).Scan(&n) })
			if err != nil || n > 0 {
				return fmt.Sprintf("%d %s (%v)", n, what, err)
			}
			return ""
		}
	}

	// With the handles open: idle, and with nothing that an idle one may not have.
	eventually("left behind", func() string {
		for _, h := range s.handles {
			st := flightpg.ReadStats(h.db)
			if use := h.db.Stats().InUse; st.Flying != 0 || st.Waiting != 0 || st.BufferedBytes != 0 || use != 0 {
				return fmt.Sprintf("on %s: %d flights, %d waiting, %d bytes, %d connections in use", h.name, st.Flying, st.Waiting, st.BufferedBytes, use)
			}
		}
		return ""
	})
	eventually("left behind", count("sessions in transactions", `SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND (xact_start IS NOT NULL OR state <> 'idle')`, role))
	eventually("left behind", count("locks", `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'`))
	for _, h := range s.handles {
		s.finalStats(h)
	}

	// With the handles closed: nothing.
	if err := s.world.close(); err != nil {
		// Statements whose connections were lost may say so.
		if s.judge.class(s.handles[0], true, time.Time{}, err) != left {
			s.judge.violate("unexpected error", "closing the handles: %v", err)
		}
	}
	// toxiproxy now and then keeps its own connection to the server when the one to us
	// is gone: what we have left of ours is counted here, and it must let go then.
	for _, p := range s.proxies {
		eventually("left behind", func() string {
			if n := connectionsTo(p.Listen); n > 0 {
				return fmt.Sprintf("%d connections to %s", n, p.Name)
			}
			return ""
		})
		p.Stop()
	}
	eventually("left behind", func() string {
		var left []string
		err := s.admin(ctx, func(conn *pgx.Conn) error {
			rows, _ := conn.Query(ctx, `SELECT format('backend %s since %s, %s: %s', pid, backend_start, state, query) FROM pg_stat_activity WHERE usename = $1`, role)
			var err error
			left, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
		if err != nil {
			left = append(left, err.Error())
		}
		return strings.Join(left, "; ")
	})
	eventually("left behind", count("prepared transactions", `SELECT count(*) FROM pg_prepared_xacts`))
	eventually("left behind", count("temporary files", `SELECT count(*) FROM pg_ls_tmpdir()`))
	if err := s.audit(ctx); err != nil {
		s.judge.violate("audit", "not possible: %v", err)
	}
	if err := s.world.stop(); err != nil {
		s.judge.violate("left behind", "%v", err)
	}
	eventually("left behind", func() string {
		var more []string
		for id, stack := range goroutines() {
			if _, ok := before[id]; !ok {
				more = append(more, stack)
			}
		}
		if len(more) == 0 {
			return ""
		}
		return fmt.Sprintf("%d goroutines, such as\n%s", len(more), more[0])
	})
	if grown := growth(s.samples); grown != "" {
		s.judge.violate("memory grows", "%s", grown)
	}
}

// connectionsTo returns how many connections are open to an address of this machine,
// where the system tells it.
func connectionsTo(address string) (n int) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return 0
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		return 0
	}
	table, err := os.ReadFile("/proc/self/net/tcp")
	if err != nil {
		return 0
	}
	const established = "01"
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line) // number, local and remote address, state, …
		if len(fields) > 3 && fields[3] == established && strings.HasSuffix(fields[2], fmt.Sprintf(":%04X", number)) {
			n++
		}
	}
	return n
}

// audit compares the tables with what the clients know. All backends have ended:
// nothing can come late.
func (s *soak) audit(ctx context.Context) error {
	return s.admin(ctx, func(conn *pgx.Conn) error {
		rows, _ := conn.Query(ctx, `SELECT client, seq, count(*) FROM ledger GROUP BY client, seq ORDER BY client, seq`)
		var n int
		var seq, times int64
		next := make([]int64, len(s.clients)) // the highest booking seen
		// absent judges bookings that have no line.
		absent := func(n int, from, to int64) {
			for seq := from; seq <= to; seq++ {
				if _, ok := s.clients[n].outcomes[seq]; !ok {
					s.ledger.missing++
					s.judge.violate("write lost", "client %d's booking %d was acknowledged, and is not there", n, seq)
				}
			}
		}
		_, err := pgx.ForEachRow(rows, []any{&n, &seq, &times}, func() error {
			if n < 0 || n >= len(s.clients) || seq > s.clients[n].booked {
				s.judge.violate("audit", "client %d's booking %d is nobody's", n, seq)
				return nil
			}
			absent(n, next[n]+1, seq-1)
			next[n] = seq
			o, ok := s.clients[n].outcomes[seq]
			switch {
			case ok && o.outcome == never:
				s.ledger.refused++
				s.judge.violate("refused write is there", "client %d's booking %d was refused or rolled back, and is there: %s", n, seq, o.why)
			case ok:
				s.ledger.happened++
			}
			if times != 1 {
				s.ledger.twice++
				s.judge.violate("write ran twice", "client %d's booking %d is there %d times", n, seq, times)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for n, c := range s.clients {
			absent(n, next[n]+1, c.booked)
			s.ledger.acked += c.booked - int64(len(c.outcomes))
			for _, o := range c.outcomes {
				if o.outcome == never {
					s.ledger.never++
				} else {
					s.ledger.unknown++
				}
			}
		}

		rows, _ = conn.Query(ctx, `SELECT a.id, a.balance, coalesce(sum(l.amount), 0)::bigint FROM accounts a LEFT JOIN ledger l ON l.account = a.id GROUP BY a.id, a.balance`)
		var id int
		var balance, sum int64
		_, err = pgx.ForEachRow(rows, []any{&id, &balance, &sum}, func() error {
			if balance != sum {
				s.judge.violate("audit", "account %d has %d, and its lines make %d", id, balance, sum)
			}
			return nil
		})
		if err != nil {
			return err
		}

		rows, _ = conn.Query(ctx, `SELECT id, ver, body FROM items`)
		var ver int64
		var body string
		_, err = pgx.ForEachRow(rows, []any{&id, &ver, &body}, func() error {
			low, high := s.items[id].acked.Load(), s.items[id].attempted.Load()
			if ver < low || ver > high || body != hexHash(id, ver) {
				s.judge.violate("audit", "item %d has version %d (acknowledged: %d, attempted: %d) and body %q", id, ver, low, high, body)
			}
			return nil
		})
		return err
	})
}

// Memory may differ by so much between the first and the last third. The room is for
// what the rig keeps: toxiproxy leaves goroutines with their buffers behind for some
// of the connections that are cut, and the clients note what became of each write.
const (
	heapFactor, heapRoom = 1.25, 12 << 20
	rssFactor, rssRoom   = 1.25, 64 << 20
	goroutineRoom        = 1.5
	enoughSamples        = 9
)

// growth compares the last third of the samples with the first, and says what has
// grown, or "".
func growth(samples []sample) string {
	first, last, ok := thirds(samples)
	if !ok {
		return ""
	}
	var grown []string
	if last.heap > first.heap*heapFactor+heapRoom {
		grown = append(grown, fmt.Sprintf("live heap: %.1f MB in the first third of the time, %.1f MB in the last", first.heap/1e6, last.heap/1e6))
	}
	if last.rss > first.rss*rssFactor+rssRoom {
		grown = append(grown, fmt.Sprintf("resident set: %.1f MB in the first third of the time, %.1f MB in the last", first.rss/1e6, last.rss/1e6))
	}
	if last.goroutines > first.goroutines*goroutineRoom+100 {
		grown = append(grown, fmt.Sprintf("goroutines: %.0f in the first third of the time, %.0f in the last", first.goroutines, last.goroutines))
	}
	return strings.Join(grown, "; ")
}

// means are of the samples of some time.
type means struct{ heap, rss, goroutines float64 }

func thirds(samples []sample) (first, last means, ok bool) {
	if len(samples) < enoughSamples {
		return first, last, false
	}
	mean := func(samples []sample) (m means) {
		n := float64(len(samples))
		for i := range samples {
			m.heap += float64(samples[i].heap) / n
			m.rss += float64(samples[i].rss) / n
			m.goroutines += float64(samples[i].goroutines) / n
		}
		return m
	}
	third := len(samples) / 3
	return mean(samples[:third]), mean(samples[len(samples)-third:]), true
}
