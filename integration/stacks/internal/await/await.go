// Package await asks the server, beside the driver under test, how far things
// have come.
package await

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// Until polls for what no channel tells.
func Until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) { // nothing tells: polling
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within a minute", what)
		}
	}
}

// Value returns the one value of a query's one row.
func Value[T any](t testing.TB, conn *pgx.Conn, query string, args ...any) (v T) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), query, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return v
}

// Rows returns the rows of a query, each as one struct with its columns in
// order.
func Rows[T any](t testing.TB, conn *pgx.Conn, query string, args ...any) []T {
	t.Helper()
	rows, err := conn.Query(t.Context(), query, args...)
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	all, err := pgx.CollectRows(rows, pgx.RowToStructByPos[T])
	if err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return all
}

// Locks returns how many advisory locks sessions of this database hold or wait
// for.
func Locks(t testing.TB, conn *pgx.Conn) int {
	t.Helper()
	return Value[int](t, conn, `SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`)
}

// Blocked returns how many statements wait for a lock, on a table or an
// advisory one.
func Blocked(t testing.TB, conn *pgx.Conn) int {
	t.Helper()
	return Value[int](t, conn, `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND backend_type = 'client backend' AND wait_event_type = 'Lock'`)
}

// A Gate holds statements back that read or write a table.
type Gate struct {
	t    testing.TB
	conn *pgx.Conn
}

// Shut locks a table, by a connection that does nothing else meanwhile.
func Shut(t testing.TB, conn *pgx.Conn, table string) Gate {
	t.Helper()
	if _, err := conn.Exec(t.Context(), "BEGIN; LOCK TABLE "+table+" IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	return Gate{t, conn}
}

// Open gives the table free.
func (g Gate) Open() {
	g.t.Helper()
	if _, err := g.conn.Exec(g.t.Context(), "ROLLBACK"); err != nil {
		g.t.Error(err)
	}
}
