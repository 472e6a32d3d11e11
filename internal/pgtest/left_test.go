//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package pgtest

import (
	"context"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestLeft plants one of each kind of what tests must not leave on a server.
func TestLeft(t *testing.T) {
	ownServer(t)
	s := New(t, WithSetting("max_prepared_transactions", "4"), WithSetting("work_mem", "64kB"))
	for _, c := range []struct {
		name, sql string
		goes      bool // with the connection
		want      string
	}{
		{"Backend", `SELECT 1`, true, "idle: SELECT 1"},
		{"Transaction", `BEGIN; SELECT 2`, true, "idle in transaction: BEGIN; SELECT 2"},
		{"AdvisoryLock", `SELECT pg_advisory_lock(7)`, true, "advisory lock of backend"},
		{"PreparedTransaction", `BEGIN; CREATE TABLE t (); PREPARE TRANSACTION 'forgotten'`, false, "prepared transaction forgotten"},
		{"TemporaryFile", `BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT generate_series(1, 300000); COMMIT`, true, "temporary file"},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx := context.Background()
			dsn, err := s.NewDatabase(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if err := s.leftIn(ctx, dsn, 0); err != nil {
				t.Errorf("before: %v", err)
			}
			conn, err := pgx.Connect(ctx, dsn)
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close(ctx)
			if _, err := conn.PgConn().Exec(ctx, c.sql).ReadAll(); err != nil {
				t.Fatal(err)
			}
			if !c.goes {
				conn.Close(ctx)
			}
			everywhere := s.leftOnServer(ctx, 0)
			if everywhere == nil || ifLeft(everywhere) == nil || !strings.Contains(everywhere.Error(), c.want) {
				t.Errorf("left on the server: %v; want %q", everywhere, c.want)
			}
			if here := s.leftIn(ctx, dsn, 0); c.name != "TemporaryFile" && (ifLeft(here) == nil || !strings.Contains(here.Error(), c.want)) {
				t.Errorf("left in the database: %v; want %q", here, c.want)
			}
			conn.Close(ctx)
			if !c.goes {
				other, err := pgx.Connect(ctx, dsn)
				if err != nil {
					t.Fatal(err)
				}
				defer other.Close(ctx)
				if _, err := other.Exec(ctx, `ROLLBACK PREPARED 'forgotten'`); err != nil {
					t.Fatal(err)
				}
				other.Close(ctx)
			}
			if err := s.leftOnServer(ctx, leavePatience); err != nil {
				t.Errorf("after: %v", err)
			}
		})
	}

	t.Run("NoServerIsNoLeak", func(t *testing.T) {
		gone := New(t)
		dsn, err := gone.NewDatabase(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := gone.Stop(); err != nil {
			t.Fatal(err)
		}
		if err := ifLeft(gone.leftIn(t.Context(), dsn, 0)); err != nil {
			t.Errorf("left on a server that is gone: %v", err)
		}
	})
}
