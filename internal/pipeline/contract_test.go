package pipeline

import (
	"context"
	"errors"
	"os"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestContract pins what this package uses of pgx beyond its promise of
// compatibility: a connection that was hijacked, and the frontend over it. When it
// fails after an update of pgx, look at conn.go before anything else.
func TestContract(t *testing.T) {
	ctx := t.Context()
	dsn := pgtest.Database(t)
	hijack := func(t *testing.T) (*pgconn.PgConn, *pgconn.HijackedConn) {
		t.Helper()
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			t.Fatal(err)
		}
		pg := conn.PgConn()
		if err := pg.SyncConn(ctx); err != nil {
			t.Fatal(err)
		}
		h, err := pg.Hijack()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = h.Conn.Close() })
		return pg, h
	}
	query := func(sql string) []byte {
		msg, err := (&pgproto3.Query{String: sql}).Encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		return msg
	}

	t.Run("HijackedConnIsDeadToPgx", func(t *testing.T) {
		pg, h := hijack(t)
		if !pg.IsClosed() {
			t.Error("IsClosed = false")
		}
		if err := pg.Close(ctx); err != nil {
			t.Errorf("Close = %v", err)
		}
		if _, err := h.Conn.Write(syncMessage); err != nil {
			t.Errorf("the connection after Close: %v", err)
		}
	})
	t.Run("SettingsAndCustomDataAreTheSameMaps", func(t *testing.T) {
		pg, h := hijack(t)
		h.ParameterStatuses["flightpg"] = "x"
		h.CustomData["flightpg"] = 1
		if pg.ParameterStatus("flightpg") != "x" || pg.CustomData()["flightpg"] != 1 {
			t.Error("the hijacked connection has copies")
		}
		if h.TxStatus != 'I' || h.PID != pg.PID() || h.Config == nil || h.Config.BuildFrontend == nil {
			t.Errorf("HijackedConn = %+v", h)
		}
	})
	t.Run("CancelRequestStillWorks", func(t *testing.T) {
		pg, h := hijack(t)
		front := h.Config.BuildFrontend(h.Conn, h.Conn)
		if _, err := h.Conn.Write(query("SELECT pg_sleep(60)")); err != nil {
			t.Fatal(err)
		}
		stop := make(chan struct{})
		defer close(stop)
		go func() {
			for { // the first may come before the query
				_ = pg.CancelRequest(context.Background())
				select {
				case <-stop:
					return
				case <-time.After(50 * time.Millisecond): // not a storm: others have their turn
				}
			}
		}()
		for {
			msg, err := front.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if e, ok := msg.(*pgproto3.ErrorResponse); ok {
				if e.Code != "57014" {
					t.Errorf("error %s", e.Code)
				}
				return
			}
		}
	})
	t.Run("FrontendGoesOnAfterATimeout", func(t *testing.T) {
		// In the middle of a message too, again and again.
		_, h := hijack(t)
		front := h.Config.BuildFrontend(h.Conn, h.Conn)
		if _, err := h.Conn.Write(query("SELECT repeat('x', 3000000), pg_sleep(0.05) FROM generate_series(1, 3)")); err != nil {
			t.Fatal(err)
		}
		rows, timeouts := 0, 0
		for {
			_ = h.Conn.SetReadDeadline(time.Now().Add(100 * time.Microsecond))
			msg, err := front.Receive()
			if errors.Is(err, os.ErrDeadlineExceeded) {
				timeouts++
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if row, ok := msg.(*pgproto3.DataRow); ok {
				rows++
				if len(row.Values) != 2 || len(row.Values[0]) != 3_000_000 || row.Values[0][0] != 'x' || row.Values[0][2_999_999] != 'x' {
					t.Fatal("a row is not whole")
				}
			}
			if _, ok := msg.(*pgproto3.ReadyForQuery); ok {
				break
			}
		}
		if rows != 3 || timeouts == 0 {
			t.Errorf("%d rows with %d timeouts; want 3, with some", rows, timeouts)
		}
	})
	t.Run("PrepareErrorHoldsTheServers", func(t *testing.T) {
		c := &Call{parsed: true, stmt: NewStmt("", nil, Joined, nil)}
		pgErr := &pgconn.PgError{Code: "42601"}
		var wrapped *pgconn.PrepareError
		if err := c.prepareError(pgErr); !errors.As(err, &wrapped) || !wrapped.ParseComplete || wrapped.Unwrap() != error(pgErr) {
			t.Errorf("prepareError = %#v", err)
		}
	})
	t.Run("ErrorsAreConvertedAsByPgx", func(t *testing.T) {
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		_, err = conn.Exec(ctx, "SELECT 1/0")
		var theirs *pgconn.PgError
		if !errors.As(err, &theirs) {
			t.Fatal(err)
		}
		_, h := hijack(t)
		front := h.Config.BuildFrontend(h.Conn, h.Conn)
		if _, err := h.Conn.Write(query("SELECT 1/0")); err != nil {
			t.Fatal(err)
		}
		for {
			msg, err := front.Receive()
			if err != nil {
				t.Fatal(err)
			}
			if e, ok := msg.(*pgproto3.ErrorResponse); ok {
				if ours := pgconn.ErrorResponseToPgError(e); *ours != *theirs {
					t.Errorf("error %+v; want %+v", ours, theirs)
				}
				return
			}
		}
	})
}
