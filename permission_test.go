package flightpg

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestPermissionsLag: what another program takes away is gone for a strict read that
// begins afterwards. A fenced one may join a flight from before, as the README says:
// until that has landed, permissions lag as values do.
func TestPermissionsLag(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dsn := pgtest.Database(t)
	admin, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	run := func(statements string) {
		t.Helper()
		if _, err := admin.Exec(ctx, statements); err != nil {
			t.Fatal(err)
		}
	}
	reader := fmt.Sprintf("flightpg_reader_%d", os.Getpid()) // roles are the whole server's
	run("CREATE ROLE " + reader + " LOGIN PASSWORD 'reads'; CREATE TABLE secrets AS SELECT 1 AS v; GRANT SELECT ON secrets TO " + reader)
	defer func() {
		_, _ = admin.Exec(context.Background(), "DROP TABLE secrets; DROP ROLE "+reader)
	}()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(reader, "reads")
	for _, mode := range []Mode{ModeFenced, ModeStrict} {
		t.Run(mode.String(), func(t *testing.T) {
			db, err := OpenDB(u.String(), Config{Mode: mode})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			const slow = "SELECT count(*) FROM secrets, generate_series(1, 3000000)"
			mustInt(t, db, "SELECT v FROM secrets") // the catalog is there
			first := make(chan error, 1)
			go func() {
				_, err := queryInt(ctx, db, slow)
				first <- err
			}()
			for active := 0; active == 0; { // on the server
				if err := admin.QueryRow(ctx, "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1", slow).Scan(&active); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(20 * time.Millisecond) // where its permissions have been checked; if not, the first fails
			run("REVOKE SELECT ON secrets FROM " + reader)
			var rows atomic.Int64
			var wg sync.WaitGroup
			for range 40 {
				wg.Go(func() {
					_, err := queryInt(ctx, db, slow)
					var pgErr *pgconn.PgError
					switch {
					case err == nil:
						rows.Add(1)
					case !errors.As(err, &pgErr) || pgErr.Code != "42501": // insufficient_privilege
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if err := <-first; err != nil {
				t.Logf("the first read had no permission any more: %v", err)
			}
			t.Logf("%d of 40 reads begun after the REVOKE got rows", rows.Load())
			if mode == ModeStrict && rows.Load() > 0 {
				t.Errorf("%d strict reads got rows that they had no permission for when they began", rows.Load())
			}
			run("GRANT SELECT ON secrets TO " + reader)
		})
	}
}
