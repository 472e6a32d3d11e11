package faults

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/flight"
)

// row is one of table items. Everything in it follows from set and idx.
type row struct {
	set, idx, total int64
	pad             string
	sum             int64
}

// sizes of the sets: set 10*n+i has sizes[n] rows.
var sizes = []int64{1, 100, 10_000}

func sizeOf(set int64) int64 { return sizes[set/10] }

func makeRow(set, idx int64) row {
	r := row{set: set, idx: idx, total: sizeOf(set)}
	r.pad = strings.Repeat(string(rune('a'+(set+idx)%26)), int((set*31+idx*17)%90))
	r.sum = r.checksum()
	return r
}

// checksum is FNV-1a's.
func (r *row) checksum() int64 {
	h := uint64(14695981039346656037)
	add := func(b byte) { h = (h ^ uint64(b)) * 1099511628211 }
	for _, n := range []int64{r.set, r.idx, r.total} {
		for i := range 8 {
			add(byte(n >> (8 * i)))
		}
	}
	for i := range len(r.pad) {
		add(r.pad[i])
	}
	return int64(h)
}

// judgeRows says what is wrong with the rows of a read of a set, which next gives
// one by one, and with how they ended; "" if nothing is.
//
// wanted is how many rows the reader reads at most: it may stop early.
func judgeRows(set int64, wanted int64, next func(*row) bool, end func() error) (n int64, wrong string, err error) {
	total := sizeOf(set)
	var r row
	for n < wanted && next(&r) {
		switch {
		case r.set != set:
			return n, fmt.Sprintf("row %d is of set %d: results are mixed", n, r.set), nil
		case r.idx != n:
			return n, fmt.Sprintf("row %d has index %d: rows are missing, repeated or mixed", n, r.idx), nil
		case r.total != total || r.sum != r.checksum():
			return n, fmt.Sprintf("row %d is damaged: %+v", n, r), nil
		}
		n++
	}
	err = end()
	if err == nil && n < min(wanted, total) {
		return n, fmt.Sprintf("%d of %d rows, and no error: a truncated result was taken for a whole one", n, total), nil
	}
	return n, "", err
}

// fate is what the client side knows of a write.
type fate uint8

const (
	unknown      fate = iota // it failed, or its answer was lost: once or not at all
	acknowledged             // once
	never                    // it was not committed: not at all
)

func (f fate) String() string { return [...]string{"unknown", "acknowledged", "never committed"}[f] }

// entry is a row of the ledger, as it should be.
type entry struct {
	account, amount int64
	fate            fate
}

// judge keeps the books of a fault. It is safe for concurrent use.
type judge struct {
	kinds []string // of errors that callers may see: patterns of package path

	mu         sync.Mutex // guards what follows
	reads      int        // complete results
	rows       int64
	writes     int // acknowledged
	errs       map[string]int
	violations []string
	violated   int
	ledger     map[int64]entry
	nextID     int64
}

func newJudge(kinds ...string) *judge {
	return &judge{kinds: kinds, errs: make(map[string]int), ledger: make(map[int64]entry)}
}

// maxViolations are kept in words; the others are counted.
const maxViolations = 20

func (j *judge) violation(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.violationLocked(format, args...)
}

func (j *judge) violationLocked(format string, args ...any) {
	if j.violated++; j.violated <= maxViolations {
		j.violations = append(j.violations, fmt.Sprintf(format, args...))
	}
}

// read notes how a read ended. The caller's context says which errors are its own.
func (j *judge) read(ctx context.Context, what string, n int64, wrong string, err error) (ok bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.rows += n
	switch {
	case wrong != "":
		j.violationLocked("%s: %s", what, wrong)
	case err != nil:
		j.failedLocked(ctx, what, err)
	default:
		j.reads++
		return true
	}
	return false
}

// begin takes the id of a write that is about to be made.
func (j *judge) begin(account, amount int64) (id int64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.nextID++
	j.ledger[j.nextID] = entry{account, amount, unknown}
	return j.nextID
}

// wrote notes how a write ended.
func (j *judge) wrote(ctx context.Context, what string, id int64, f fate, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	e := j.ledger[id]
	e.fate = f
	j.ledger[id] = e
	if f == acknowledged {
		j.writes++
	}
	if err != nil {
		j.failedLocked(ctx, fmt.Sprintf("%s %d", what, id), err)
	}
}

// failed notes an error that a caller got.
func (j *judge) failed(ctx context.Context, what string, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.failedLocked(ctx, what, err)
}

func (j *judge) failedLocked(ctx context.Context, what string, err error) {
	kind := kindOf(ctx, err)
	if kind == badConn && strings.Contains(what, lasting) {
		kind = badConn + lasting
	}
	j.errs[kind]++
	if kind == ownEnd {
		return
	}
	for _, pattern := range j.kinds {
		if ok, _ := path.Match(pattern, kind); ok {
			return
		}
	}
	j.violationLocked("%s: an error that the fault does not explain (%s): %v", what, kind, err)
}

// errors returns how many there were of each kind.
func (j *judge) errors() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	var s []string
	for kind, n := range j.errs {
		s = append(s, fmt.Sprintf("%s: %d", kind, n))
	}
	slices.Sort(s)
	return strings.Join(s, "; ")
}

// Kinds of errors that callers may see whatever the fault is, or never.
const (
	ownEnd  = "own context"     // the caller's own context has ended
	foreign = "foreign context" // a context ended, but not the caller's
	hung    = "hung"            // nothing came in patience: see world.ctx
	badConn = "bad connection"  // which database/sql is there to hide, but for
	lasting = " of a Conn or Tx"
)

// errHangs is the cause of the end of a context that is there to detect hangs.
var errHangs = errors.New("no answer in time")

// kindOf names the kind of an error.
func kindOf(ctx context.Context, err error) string {
	var connect *pgconn.ConnectError
	var pg *pgconn.PgError
	var p *flight.PanicError
	var n net.Error
	prefix := ""
	if errors.As(err, &connect) {
		prefix = "connect "
	}
	own := ctx.Err() != nil
	late := false // a dialer's clock is a little ahead of the context's
	if deadline, ok := ctx.Deadline(); ok && errors.As(err, &n) && n.Timeout() {
		late = !time.Now().Before(deadline)
	}
	switch text := err.Error(); {
	case own && errors.Is(context.Cause(ctx), errHangs):
		return hung
	case late, own && errors.Is(err, ctx.Err()):
		return ownEnd
	case own && (errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrTxDone) || errors.Is(err, sql.ErrConnDone)):
		return ownEnd // what its end has ended
	case errors.As(err, &pg):
		return prefix + pg.Code
	case errors.As(err, &p):
		return "panic"
	case errors.Is(err, flight.ErrGoexit):
		return "goexit"
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.Is(err, flight.ErrAbandoned):
		return prefix + foreign
	case errors.Is(err, driver.ErrBadConn):
		return prefix + badConn
	case errors.Is(err, sql.ErrTxDone):
		return "transaction done"
	case errors.Is(err, sql.ErrConnDone):
		return "connection done"
	case errors.Is(err, sql.ErrNoRows):
		return "no rows" // each set has one: the result was cut short
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return prefix + "EOF"
	case errors.Is(err, syscall.ECONNREFUSED):
		return prefix + "refused"
	case errors.Is(err, syscall.ECONNRESET):
		return prefix + "reset"
	case errors.Is(err, syscall.EPIPE):
		return prefix + "pipe"
	case errors.Is(err, net.ErrClosed), errors.Is(err, pgconn.ErrConnClosed):
		return prefix + "closed"
	case errors.As(err, &n) && n.Timeout():
		return prefix + "timeout"
	case text == "sql: database is closed", text == "flightpg: the connector is closed":
		return "handle closed"
	default:
		return prefix + "other"
	}
}

// audit compares the ledger with what the server has. No write may be under way
// any more.
func (j *judge) audit(ctx context.Context, conn *pgx.Conn) error {
	type account struct{ balance, moves int64 }
	sums := make(map[int64]account)
	rows, err := conn.Query(ctx, `SELECT id, account, amount, unique_id FROM (
		SELECT id, account, amount, true AS unique_id FROM ledger UNION ALL SELECT id, account, amount, false FROM journal) l`)
	if err != nil {
		return err
	}
	var got []ledgerRow
	var l ledgerRow
	_, err = pgx.ForEachRow(rows, []any{&l.id, &l.account, &l.amount, &l.unique}, func() error {
		got = append(got, l)
		return nil
	})
	if err != nil {
		return err
	}
	j.auditLedger(got)
	for _, l := range got {
		if l.unique {
			sum := sums[l.account]
			sums[l.account] = account{sum.balance + l.amount, sum.moves + 1}
		}
	}
	rows, err = conn.Query(ctx, "SELECT id, balance, moves FROM accounts")
	if err != nil {
		return err
	}
	var id int64
	var a account
	_, err = pgx.ForEachRow(rows, []any{&id, &a.balance, &a.moves}, func() error {
		if a != sums[id] {
			j.violation("account %d has a balance of %d by %d writes; the ledger's sum is %d of %d", id, a.balance, a.moves, sums[id].balance, sums[id].moves)
		}
		return nil
	})
	return err
}

// ledgerRow is a row of the ledger, or of the journal, which has no unique index.
type ledgerRow struct {
	id, account, amount int64
	unique              bool
}

// auditLedger compares the writes with the rows that came of them.
func (j *judge) auditLedger(rows []ledgerRow) {
	j.mu.Lock()
	defer j.mu.Unlock()
	times := make(map[int64]int)
	for _, r := range rows {
		times[r.id]++
		if want, known := j.ledger[r.id]; !known || r.account != want.account || r.amount != want.amount {
			j.violationLocked("write %d: the ledger has %+v; want %+v", r.id, r, want)
		}
	}
	for id, e := range j.ledger {
		n := times[id]
		switch {
		case n > 1:
			j.violationLocked("write %d, %v: it is there %d times", id, e.fate, n)
		case n == 0 && e.fate == acknowledged:
			j.violationLocked("write %d was acknowledged and is lost", id)
		case n == 1 && e.fate == never:
			j.violationLocked("write %d was never committed and is there", id)
		}
	}
}
