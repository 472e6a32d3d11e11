package flightpg

import (
	"bytes"
	"context"
	"database/sql/driver"
	"errors"
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// brokenRows end with an error when they are closed.
type brokenRows struct{ err error }

func (brokenRows) Columns() []string         { return []string{"v"} }
func (brokenRows) Next([]driver.Value) error { return io.EOF }
func (r brokenRows) Close() error            { return r.err }
func (brokenRows) HasNextResultSet() bool    { return false }
func (brokenRows) NextResultSet() error      { return io.EOF }

// TestReplay_CloseAfterCancel closes live rows whose caller has left: the error is its
// context's, whatever the server says of the query that was cancelled for it.
func TestReplay_CloseAfterCancel(t *testing.T) {
	cancelled := &pgconn.PgError{Code: "57014", Message: "canceling statement due to user request"}
	for _, left := range []bool{false, true} {
		res := &result{cols: &columns{names: []string{"v"}}, budget: new(budget)}
		res.live = &liveRows{rows: brokenRows{cancelled}, cancel: func() {}, done: func() {}}
		res.Share(1)
		res.claim()
		ctx, cancel := context.WithCancel(t.Context())
		rows := newReplay(ctx, res)
		want := error(cancelled)
		if left {
			cancel()
			want = context.Canceled
		}
		if err := rows.Close(); !errors.Is(err, want) {
			t.Errorf("left = %v: Close = %v; want %v", left, err, want)
		}
		cancel()
	}
}

// cuttingConn is a connection that breaks when something is sent: the other side gets it,
// but its answer does not come back, however soon it is there.
type cuttingConn struct {
	net.Conn
	cut    func(sent []byte) bool
	broken *atomic.Bool
}

func (c cuttingConn) Write(b []byte) (int, error) {
	cut := c.cut(b)
	if cut {
		c.broken.Store(true)
	}
	n, err := c.Conn.Write(b)
	if cut {
		_ = c.Conn.Close()
	}
	return n, err
}

func (c cuttingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.broken.Load() {
		return 0, net.ErrClosed
	}
	return n, err
}

// TestLost_EachTime is a network on which every connection breaks, when a query is sent
// and when it is asked for a sign of life. The callers get what happened, not
// driver.ErrBadConn, and few connections are opened for it.
func TestLost_EachTime(t *testing.T) {
	pc, err := pgx.ParseConfig(pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	var broken atomic.Bool
	var dials atomic.Int64
	dial := pc.DialFunc
	pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		conn, err := dial(ctx, network, addr)
		return cuttingConn{conn, func(sent []byte) bool {
			// The pipeline's statement has a name, behind the portal's empty one. Timeouts may
			// be set in the same write.
			bound := bytes.Contains(sent, []byte("\x00flightpg_"))
			return broken.Load() && (bytes.Contains(sent, []byte("-- ping")) || bytes.Contains(sent, []byte("SELECT 4711")) || bound)
		}, new(atomic.Bool)}, err
	}
	for _, guard := range []Guard{GuardSession, GuardTransaction} {
		c, err := NewConnectorWithConfig(pc, Config{Guard: guard})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		defer db.Close()
		if n := mustInt(t, db, "SELECT 4711"); n != 4711 {
			t.Fatalf("SELECT = %d", n)
		}
		broken.Store(true)
		dials.Store(0)
		_, err = queryInt(t.Context(), db, "SELECT 4711")
		if err == nil || errors.Is(err, driver.ErrBadConn) {
			t.Errorf("guard %v: %v; want that the connection broke", guard, err)
		}
		if n := dials.Load(); n > 8 { // those of cancel requests included
			t.Errorf("guard %v: %d connections were opened; want a few", guard, n)
		}
		broken.Store(false)
		mustInt(t, db, "SELECT 4711")
	}
}
