package pgtest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// leavePatience is how long a backend may take to notice that its client has
// gone: those that a test closed last are on their way out when it ends.
const leavePatience = 20 * time.Second

// leftIn returns the error that says what a test has left in a database: backends,
// with what they last did, and whether a transaction is open; session-level and
// other advisory locks; prepared transactions. It gives them until patience to go.
func (s *Server) leftIn(ctx context.Context, dsn string, patience time.Duration) error {
	u, err := url.Parse(dsn)
	if err != nil {
		return err
	}
	return s.left(ctx, patience, `
		SELECT 'backend ' || pid || ', ' || coalesce(state, '') || ': ' || left(query, 200) FROM pg_stat_activity
			WHERE datname = $1 AND backend_type = 'client backend' AND pid <> pg_backend_pid()
		UNION ALL SELECT 'advisory lock of backend ' || coalesce(pid::text, '?') FROM pg_locks
			WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = $1)
		UNION ALL SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts WHERE database = $1`,
		strings.TrimPrefix(u.Path, "/"))
}

// leftOnServer is leftIn for a whole server of ours, and its temporary files.
func (s *Server) leftOnServer(ctx context.Context, patience time.Duration) error {
	return s.left(ctx, patience, `
		SELECT 'backend ' || pid || ' in ' || coalesce(datname, '') || ', ' || coalesce(state, '') || ': ' || left(query, 200) FROM pg_stat_activity
			WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
		UNION ALL SELECT 'advisory lock of backend ' || coalesce(pid::text, '?') FROM pg_locks WHERE locktype = 'advisory'
		UNION ALL SELECT 'prepared transaction ' || gid FROM pg_prepared_xacts
		UNION ALL SELECT 'temporary file ' || name FROM pg_ls_tmpdir()`)
}

func (s *Server) left(ctx context.Context, patience time.Duration, query string, args ...any) error {
	return s.maintain(ctx, func(conn *pgx.Conn) error {
		for deadline := time.Now().Add(patience); ; time.Sleep(pollLeft) {
			rows, _ := conn.Query(ctx, query, args...)
			what, err := pgx.CollectRows(rows, pgx.RowTo[string])
			if err != nil {
				return err
			}
			if len(what) == 0 {
				return nil
			}
			if !time.Now().Before(deadline) {
				return &leftError{what}
			}
		}
	})
}

// pollLeft is how often a server is looked at: it has no event for this.
const pollLeft = 5 * time.Millisecond

// leftError says what was left on a server.
type leftError struct{ what []string }

func (e *leftError) Error() string {
	return fmt.Sprintf("pgtest: left on the server:\n\t%s", strings.Join(e.what, "\n\t"))
}

// ifLeft returns err if it says that something was left. Any other says that the
// server could not be asked: the test may have stopped it.
func ifLeft(err error) error {
	if left := new(leftError); errors.As(err, &left) {
		return err
	}
	return nil
}
