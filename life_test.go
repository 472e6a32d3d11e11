package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// closerless is a connector under a wrapper that does not let db.Close reach it.
type closerless struct{ c driver.Connector }

func (h closerless) Connect(ctx context.Context) (driver.Conn, error) { return h.c.Connect(ctx) }
func (h closerless) Driver() driver.Driver                            { return h.c.Driver() }

// TestTwoHandles closes one of two handles over one connector: the other goes on, with
// connections that it had, and with new ones, and shares.
func TestTwoHandles(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{}
		c, err := Wrap(f, Config{TrustNames: trustAll})
		if err != nil {
			t.Fatal(err)
		}
		one, two := sql.OpenDB(c), sql.OpenDB(c)
		use := func(db *sql.DB) {
			t.Helper()
			before := c.Stats().Flights
			var n int64
			if err := db.QueryRow("SELECT 1").Scan(&n); err != nil {
				t.Fatalf("read: %v", err)
			}
			if _, err := db.Exec("UPDATE t SET v = 1"); err != nil {
				t.Fatalf("write: %v", err)
			}
			if c.Stats().Flights == before {
				t.Error("the read was not shared")
			}
		}
		use(one)
		use(two)
		held, err := one.Begin()
		if err != nil {
			t.Fatal(err)
		}
		one.Close()
		use(two) // on a connection that it had
		if err := held.Commit(); err != nil {
			t.Errorf("Commit of a transaction that Close has overtaken: %v", err)
		}
		use(two)
		two.SetMaxIdleConns(-1) // now there is none
		time.Sleep(2 * restAfter)
		use(two)
		three := sql.OpenDB(c)
		use(three)
		two.Close()
		use(three)
		three.Close()
		synctest.Wait()
		if n := f.open(); n != 0 {
			t.Errorf("%d connections are open; want none", n)
		}
		if !c.shut.Load() {
			t.Error("the pools are open")
		}
	})
}

// TestHiddenCloser closes a handle whose wrapper hides Close: what was in use at that moment
// is closed when it is given back.
func TestHiddenCloser(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeServer{}
		c, err := Wrap(f, Config{TrustNames: trustAll})
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(closerless{c})
		var n int64
		if err := db.QueryRow("SELECT 1").Scan(&n); err != nil {
			t.Fatal(err)
		}
		l, err := c.flights.borrow(t.Context()) // as a load of the catalog does
		if err != nil {
			t.Fatal(err)
		}
		db.Close()
		time.Sleep(2 * restAfter)
		l.release()
		if n := f.open(); n != 0 {
			t.Errorf("%d connections are open; want none", n)
		}
		again := sql.OpenDB(closerless{c})
		if err := again.QueryRow("SELECT 1").Scan(&n); err != nil {
			t.Errorf("after that: %v", err)
		}
		again.Close()
	})
}

// byOpen is a driver that wraps another by Driver.Open, as many do.
type byOpen struct{ d driver.Driver }

func (b byOpen) Open(dsn string) (driver.Conn, error) { return b.d.Open(dsn) }

// TestOpenShares wraps the driver by its Open: the connections of a DSN share, the catalog is
// loaded once, also for a pool that keeps no idle connection, and nothing is left.
func TestOpenShares(t *testing.T) {
	dsn := pgtest.Database(t)
	sql.Register(t.Name(), byOpen{&Driver{}})
	before := runtime.NumGoroutine()
	db, err := sql.Open(t.Name(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec("CREATE TABLE lives (n int)"); err != nil {
		t.Fatal(err)
	}
	for _, idle := range []int{0, 10} {
		db.SetMaxIdleConns(idle)
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				for range 20 {
					var n int
					if err := db.QueryRow("SELECT count(*) FROM lives").Scan(&n); err != nil {
						t.Error(err)
					}
				}
			})
		}
		wg.Wait()
	}
	opens.mu.Lock()
	c := opens.m[dsn]
	opens.mu.Unlock()
	if c == nil {
		t.Fatal("there is no connector of the DSN")
	}
	s := c.Stats()
	if s.CatalogLoads > 3 || s.Flights == 0 || s.Flights+s.Joins < 300 {
		t.Errorf("Stats = %+v; want the catalog loaded once, or again after DDL, and reads shared", s)
	}
	db.Close()
	for begin := time.Now(); ; time.Sleep(10 * time.Millisecond) { // for what is closed to end
		left, backends := runtime.NumGoroutine()-before, c.Stats().FlightBackends+c.Stats().SessionBackends
		if left <= 0 && backends == 0 {
			break
		}
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("%d goroutines and %d backends are left", left, backends)
		}
	}
	if again, err := new(Driver).Open(dsn); err != nil {
		t.Error(err)
	} else if again.(*conn).c != c {
		t.Error("another connector, a moment later")
	} else if again.Close(); c.life.gone == nil {
		t.Error("it is never forgotten")
	}
}
