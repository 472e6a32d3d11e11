package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// TestDeadline_Timeout: who leaves a flight, or a queue for connections, because his time is
// over has an error that pgconn.Timeout knows, as pgx's are.
func TestDeadline_Timeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		never := make(chan struct{})
		f := &fakeServer{answer: func(ctx context.Context, _ *fakeSession, query string, _ []driver.NamedValue) (*fakeRows, error) {
			select {
			case <-ctx.Done():
				return nil, ctx.Err()
			case <-never:
				return oneRow(int64(1)), nil
			}
		}}
		db := openFake(t, f, Config{SessionConns: 1})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var n int64
		err := db.QueryRowContext(ctx, "SELECT 1").Scan(&n)
		if !pgconn.Timeout(err) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%T %v: pgconn.Timeout = %v; want true, and a context.DeadlineExceeded", err, err, pgconn.Timeout(err))
		}
		close(never)
	})
}
