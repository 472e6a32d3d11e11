package flightpg

import (
	"context"
	"errors"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestAfterConnect_Fails: nothing is left of a connection that the hook did not
// want. pgtest looks for what is left when the test ends.
func TestAfterConnect_Fails(t *testing.T) {
	boom := errors.New("boom")
	var opened []*pgx.Conn
	db, err := OpenDB(pgtest.Database(t), Config{AfterConnect: func(_ context.Context, conn *pgx.Conn) error {
		opened = append(opened, conn)
		return boom
	}})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.PingContext(t.Context()); !errors.Is(err, boom) {
		t.Errorf("Ping = %v; want %v", err, boom)
	}
	if _, err := db.ExecContext(t.Context(), `SELECT 1`); !errors.Is(err, boom) {
		t.Errorf("Exec = %v; want %v", err, boom)
	}
	if len(opened) == 0 {
		t.Error("the hook was not called")
	}
	for i, conn := range opened {
		if !conn.IsClosed() {
			t.Errorf("connection %d is still open", i)
		}
	}
}
