package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg/internal/flight"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// caught returns what f panics with.
func caught(f func()) (p any) {
	defer func() { p = recover() }()
	f()
	return nil
}

// TestPanic_Session is about panics of the inner driver outside flights: the session
// serves nobody any more, and what was written counts as written.
func TestPanic_Session(t *testing.T) {
	const (
		write = "UPDATE t SET v = 1"
		read  = "SELECT random() FROM t" // never shared
	)
	setUp := func(t *testing.T, broken string) (*fakeServer, *Connector, *sql.DB) {
		f := &fakeServer{}
		f.answer = func(_ context.Context, s *fakeSession, query string, _ []driver.NamedValue) (*fakeRows, error) {
			if query == broken && s.id == 1 {
				panic("boom")
			}
			return oneRow(int64(s.id)), nil
		}
		c, err := Wrap(f, Config{SessionConns: 1, TrustNames: trustAll})
		if err != nil {
			t.Fatal(err)
		}
		return f, c, c.OpenDB()
	}
	check := func(t *testing.T, f *fakeServer, db *sql.DB) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if n, err := queryInt(ctx, db, read); err != nil || n != 2 {
			t.Errorf("the next query ran on session %d, %v; want a new one", n, err)
		}
		if n := f.open(); n != 1 {
			t.Errorf("%d sessions are open; want 1", n)
		}
	}
	bubble(t, "Exec", func(t *testing.T) {
		f, c, db := setUp(t, write)
		before := c.db.Now()
		if p := caught(func() { _, _ = db.Exec(write) }); p != "boom" {
			t.Fatalf("Exec panicked with %v", p)
		}
		if c.db.Now() == before {
			t.Error("the epoch was not raised")
		}
		check(t, f, db)
		_ = db.Close()
	})
	bubble(t, "Query", func(t *testing.T) {
		f, _, db := setUp(t, read)
		if p := caught(func() { _, _ = db.Query(read) }); p != "boom" {
			t.Fatalf("Query panicked with %v", p)
		}
		check(t, f, db)
		go db.Close() // database/sql itself loses connections of calls that panic
	})
	bubble(t, "ExecInTx", func(t *testing.T) {
		f, _, db := setUp(t, write)
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if p := caught(func() { _, _ = tx.Exec(write) }); p != "boom" {
			t.Fatalf("Exec panicked with %v", p)
		}
		_ = tx.Rollback()
		check(t, f, db)
		_ = db.Close()
	})
}

// TestPanic_Connect is about panics while a connection is opened: they reach every
// caller, and the pool does not count what was never opened.
func TestPanic_Connect(t *testing.T) {
	bubble(t, "Flight", func(t *testing.T) {
		f := &fakeServer{connect: func(context.Context) error { panic("boom") }}
		c, err := Wrap(f, Config{FlightConns: 1, SessionConns: 1, TrustNames: trustAll})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		for range 3 {
			p, _ := caught(func() { _, _ = queryInt(t.Context(), db, hotQuery, 1) }).(*flight.PanicError)
			if p == nil || p.Value != "boom" || !strings.Contains(string(p.Stack), "fakeServer") {
				t.Fatalf("the caller got %v; want the panic, with the stack of where it came from", p)
			}
			if p := caught(func() { _, _ = db.Exec("UPDATE t SET v = 1") }); p == nil {
				t.Fatal("Exec did not panic")
			}
		}
		f.connect = nil
		mustInt(t, db, hotQuery, 1)
		if _, err := db.Exec("UPDATE t SET v = 1"); err != nil {
			t.Error(err)
		}
		if s := c.Stats(); s.FlightBackends != 1 || s.SessionBackends != 1 {
			t.Errorf("Stats = %+v; want one connection in each pool", s)
		}
		go db.Close()
	})
	// The catalog is loaded in a goroutine in which nobody can recover.
	t.Run("Catalog", func(t *testing.T) {
		pc, err := pgx.ParseConfig(pgtest.Database(t))
		if err != nil {
			t.Fatal(err)
		}
		broken := true
		db, err := OpenDB(stdlib.RegisterConnConfig(pc), Config{AfterConnect: func(context.Context, *pgx.Conn) error {
			if broken {
				panic("boom")
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		if err := RefreshCatalog(t.Context(), db); err == nil || !strings.Contains(err.Error(), "boom") {
			t.Errorf("RefreshCatalog = %v; want what the hook has panicked with", err)
		}
		var p *flight.PanicError
		if err, _ := caught(func() { _, _ = queryInt(t.Context(), db, "SELECT 1") }).(error); !errors.As(err, &p) || p.Value != "boom" {
			t.Errorf("the caller got %v; want the panic", err)
		}
		broken = false
		if n, err := queryInt(t.Context(), db, "SELECT 1"); n != 1 || err != nil {
			t.Errorf("SELECT 1 = %d, %v", n, err)
		}
		if err := RefreshCatalog(t.Context(), db); err != nil {
			t.Errorf("RefreshCatalog = %v", err)
		}
		go db.Close()
	})
}

// panickyRows panic when they are closed.
type panickyRows struct{ driver.Rows }

func (panickyRows) Close() error { panic("close") }

// TestLiveRows_ClosePanics: live rows whose driver panics when they are closed give
// their session back all the same, as one that must not be used again.
func TestLiveRows_ClosePanics(t *testing.T) {
	var cancelled, done, lost bool
	l := &liveRows{rows: panickyRows{}, cancel: func() { cancelled = true }}
	l.done = func() { done, lost = true, l.lost }
	func() {
		defer func() {
			if v := recover(); v != "close" {
				t.Errorf("close panicked with %v; want what the rows panic with", v)
			}
		}()
		_ = l.close()
	}()
	if !cancelled || !done || !lost {
		t.Errorf("cancelled %v, given back %v, as lost %v; want all of it", cancelled, done, lost)
	}
}
