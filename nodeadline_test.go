package flightpg

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// endless is a network connection without deadlines, as that of x/crypto/ssh.
type endless struct{ net.Conn }

var errNoDeadlines = errors.New("ssh: tcpChan: deadline not supported")

func (endless) SetDeadline(time.Time) error      { return errNoDeadlines }
func (endless) SetReadDeadline(time.Time) error  { return errNoDeadlines }
func (endless) SetWriteDeadline(time.Time) error { return errNoDeadlines }

// TestNoDeadlines: over such connections who waits for an answer can leave.
func TestNoDeadlines(t *testing.T) {
	dsn := pgtest.Database(t)
	holder, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close(context.Background())
	if _, err := holder.Exec(t.Context(), "CREATE TABLE held_back (n int); BEGIN; SELECT 1"); err != nil {
		t.Fatal(err)
	}
	pc := parse(t, dsn)
	dial := pc.DialFunc
	pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return endless{c}, nil
	}
	c, err := NewConnectorWithConfig(pc, Config{})
	if err != nil {
		t.Fatal(err)
	}
	db := c.OpenDB()
	defer db.Close()
	var n int
	if err := db.QueryRow("SELECT count(*) FROM held_back").Scan(&n); err != nil {
		t.Fatal(err)
	}
	if _, err := holder.Exec(t.Context(), "COMMIT; BEGIN; LOCK TABLE held_back IN ACCESS EXCLUSIVE MODE"); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 4)
	for range 4 {
		go func() {
			ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
			defer cancel()
			var n int
			done <- db.QueryRowContext(ctx, "SELECT count(*) FROM held_back").Scan(&n)
		}()
	}
	for range 4 {
		select {
		case err := <-done:
			if !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v; want the caller's deadline", err)
			}
		case <-time.After(30 * time.Second): // for ever
			t.Fatal("a caller cannot leave")
		}
	}
	if c.pipe != nil && !c.pipe.Elsewhere() {
		t.Error("the pipeline serves connections without deadlines")
	}
}
