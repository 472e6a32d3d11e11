package faults

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/flight"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestJudge plants violations of each kind. The judge must see every one, and none
// where nothing is wrong.
func TestJudge(t *testing.T) {
	report := battery.Report(t, "faults", "control: the judge sees planted violations", 0)
	seen := 0
	check := func(name, want string, plant func(j *judge)) {
		t.Run(name, func(t *testing.T) {
			j := newJudge("EOF", "57P0?")
			plant(j)
			switch all := strings.Join(j.violations, "\n"); {
			case want == "" && all != "":
				t.Errorf("violations where there is none: %s", all)
			case want != "" && j.violated != 1 || !strings.Contains(all, want):
				t.Errorf("%d violations: %q; want one, of %q", j.violated, all, want)
			case want != "":
				seen++
			}
		})
	}
	ctx := t.Context()
	ended, cancel := context.WithCancel(ctx)
	cancel()

	// rows judges a result that a broken driver would give.
	rows := func(set int64, change func(rs []row) []row, end error) func(j *judge) {
		return func(j *judge) {
			var rs []row
			for idx := range sizeOf(set) {
				rs = append(rs, makeRow(set, idx))
			}
			rs = change(rs)
			n, wrong, err := judgeRows(set, sizeOf(set), func(r *row) bool {
				if len(rs) == 0 {
					return false
				}
				*r, rs = rs[0], rs[1:]
				return true
			}, func() error { return end })
			j.read(ctx, "a read", n, wrong, err)
		}
	}
	whole := func(rs []row) []row { return rs }
	truncated := func(rs []row) []row { return rs[:57] }
	check("Whole", "", rows(11, whole, nil))
	check("TruncatedWithError", "", rows(11, truncated, io.ErrUnexpectedEOF))
	check("Truncated", "truncated", rows(11, truncated, nil))
	check("Empty", "truncated", rows(1, func([]row) []row { return nil }, nil))
	check("LastRowMissing", "truncated", rows(11, func(rs []row) []row { return rs[:99] }, nil))
	check("RowMissing", "index 13", rows(11, func(rs []row) []row { return append(rs[:12], rs[13:]...) }, nil))
	check("RowRepeated", "index 11", rows(11, func(rs []row) []row { return append(rs[:12:12], rs[11:]...) }, nil))
	check("Mixed", "mixed", rows(11, func(rs []row) []row { rs[50] = makeRow(12, 50); return rs }, nil))
	check("Damaged", "damaged", rows(11, func(rs []row) []row { rs[50].pad += "x"; return rs }, nil))
	check("OtherTotal", "damaged", rows(11, func(rs []row) []row { rs[50].total = 51; return rs }, nil))

	// Errors.
	fails := func(ctx context.Context, err error) func(j *judge) {
		return func(j *judge) { j.read(ctx, "a read", 0, "", err) }
	}
	check("Explained", "", fails(ctx, &pgconn.PgError{Code: "57P01"}))
	check("OwnCancellation", "", fails(ended, fmt.Errorf("timeout: %w", context.Canceled)))
	check("ForeignCancellation", "does not explain", fails(ctx, fmt.Errorf("timeout: %w", context.Canceled)))
	check("ForeignDeadline", "does not explain", fails(ctx, context.DeadlineExceeded))
	check("OthersDeadline", "does not explain", fails(ended, context.DeadlineExceeded))
	check("Abandoned", "does not explain", fails(ctx, flight.ErrAbandoned))
	check("BadConn", "does not explain", fails(ctx, driver.ErrBadConn))
	check("Unexplained", "does not explain", fails(ctx, &pgconn.PgError{Code: "40001"}))
	check("Panic", "does not explain", fails(ctx, &flight.PanicError{Value: 1}))
	check("NoRows", "does not explain", fails(ctx, sql.ErrNoRows))
	check("Other", "does not explain", fails(ctx, errors.New("what is that?")))
	hangs, stop := context.WithTimeoutCause(ctx, 0, errHangs)
	defer stop()
	<-hangs.Done()
	check("Hung", "hung", fails(hangs, context.DeadlineExceeded))

	// Writes, on a server.
	server := pgtest.Shared(t)
	ledger := func(change ...string) func(j *judge) {
		return func(j *judge) {
			ctx := context.Background()
			dsn := server.Database(t)
			conn, err := pgx.Connect(ctx, dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(ctx)
			exec := func(query string, args ...any) {
				if _, err := conn.Exec(ctx, query, args...); err != nil {
					t.Fatalf("%s: %v", query, err)
				}
			}
			exec(setUp)
			for i := range int64(9) {
				id := j.begin(1+i%3, 10*i)
				f := []fate{acknowledged, unknown, never}[i%3]
				if f == acknowledged || i == 4 { // one that is unknown was made, too
					exec(both, id, 1+i%3, 10*i)
				}
				j.wrote(ctx, "a write", id, f, nil)
			}
			for _, query := range change {
				exec(query)
			}
			if err := j.audit(ctx, conn); err != nil {
				t.Fatal(err)
			}
		}
	}
	check("Ledger", "", ledger())
	check("LostWrite", "acknowledged and is lost", ledger("DELETE FROM ledger WHERE id = 4", "UPDATE accounts SET balance = balance - 30, moves = moves - 1 WHERE id = 1"))
	check("DoubledRow", "there 2 times", ledger("INSERT INTO journal SELECT * FROM ledger WHERE id = 1"))
	check("DoubledUnknown", "there 2 times", ledger("INSERT INTO journal SELECT * FROM ledger WHERE id = 5"))
	check("NeverCommitted", "never committed and is there", ledger("INSERT INTO journal VALUES (3, 3, 20)"))
	check("RanTwice", "balance", ledger("UPDATE accounts SET balance = balance + 30, moves = moves + 1 WHERE id = 1"))
	check("HalfATransaction", "balance", ledger("UPDATE accounts SET balance = balance - 30, moves = moves - 1 WHERE id = 1"))
	check("OtherAmount", "want", ledger("INSERT INTO journal VALUES (2, 2, 11)"))
	check("Unasked", "want", ledger("INSERT INTO journal VALUES (1000, 1, 1)"))

	report.Set("planted and seen", seen)
}
