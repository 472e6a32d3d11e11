package integration

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"

	"github.com/flightpg/flightpg"
)

// traced is a driver that wraps another, as tracers do: by a field, an embedded interface, or
// with a method that unwraps; or so that nobody finds what is below.
type traced struct {
	driver.Connector
	wrap func(full) driver.Conn
}

// full is what pgx's connection can do.
type full interface {
	driver.Conn
	driver.ConnBeginTx
	driver.ConnPrepareContext
	driver.ExecerContext
	driver.QueryerContext
	driver.NamedValueChecker
	driver.Pinger
	driver.SessionResetter
	driver.Validator
}

// validating adds what stdlib's connection does not have.
type validating struct{ *stdlib.Conn }

func (validating) IsValid() bool { return true }

func (c traced) Connect(ctx context.Context) (driver.Conn, error) {
	dc, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return c.wrap(validating{dc.(*stdlib.Conn)}), nil
}

type embedding struct{ full }

type holding struct {
	driver.Conn // without anything that is optional
	_           int
}

type unwrapping struct {
	*sync.Mutex
	inner func() driver.Conn
	full1
}

type full1 interface { // under another name than full, so that no field holds a driver.Conn
	Begin() (driver.Tx, error)
	Close() error
	Prepare(query string) (driver.Stmt, error)
}

func (u unwrapping) Unwrap() driver.Conn { return u.inner() }

// hiding is made of functions: nobody finds what is below.
type hiding struct {
	prepare func(string) (driver.Stmt, error)
	end     func() error
	begin   func() (driver.Tx, error)
}

func (h hiding) Prepare(q string) (driver.Stmt, error) { return h.prepare(q) }
func (h hiding) Close() error                          { return h.end() }
func (h hiding) Begin() (driver.Tx, error)             { return h.begin() }

// TestWrapped_ViewThatWrites lets ten callers at once read a view that writes a row, through
// drivers that hide pgx more or less, and lib/pq: ten rows. Where pgx is found a read of a
// table is shared; elsewhere it is where the user has named the table.
func TestWrapped_ViewThatWrites(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		g := newGate(t, dsn)
		for _, s := range []string{
			"CREATE FUNCTION writes() RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN INSERT INTO log(what) VALUES ('view'); PERFORM pg_sleep(0.05); RETURN 1; END $$",
			"CREATE VIEW writing AS SELECT writes() AS v",
		} {
			g.exec(s)
		}
		config, err := pgx.ParseConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		over := func(wrap func(full) driver.Conn) driver.Connector {
			return traced{stdlib.GetConnector(*config), wrap}
		}
		libpq, err := pq.NewConnector(dsn)
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			name  string
			inner driver.Connector
			found bool // pgx is
		}{
			{"embedding", over(func(c full) driver.Conn { return &embedding{c} }), true},
			{"embedding twice", over(func(c full) driver.Conn { return &embedding{&embedding{c}} }), true},
			{"by value", over(func(c full) driver.Conn { return holding{Conn: c} }), true},
			{"Unwrap", over(func(c full) driver.Conn {
				return unwrapping{inner: func() driver.Conn { return c }, full1: c}
			}), true},
			{"hiding", over(func(c full) driver.Conn { return hiding{c.Prepare, c.Close, c.Begin} }), false},
			{"lib/pq", libpq, false},
		} {
			t.Run(tc.name, func(t *testing.T) {
				for _, trust := range [][]string{nil, {"gate"}} {
					c, err := flightpg.Wrap(tc.inner, flightpg.Config{TrustNames: trust})
					if err != nil {
						t.Fatal(err)
					}
					db := c.OpenDB()
					defer db.Close()
					g.exec("DELETE FROM log")
					var wg sync.WaitGroup
					for range 10 {
						wg.Go(func() {
							var v int
							if err := db.QueryRow("SELECT v FROM writing").Scan(&v); err != nil {
								t.Error(err)
							}
						})
					}
					wg.Wait()
					var n int
					if err := g.eye.QueryRow(t.Context(), "SELECT count(*) FROM log").Scan(&n); err != nil || n != 10 {
						t.Errorf("TrustNames %v: ten readers wrote %d rows, %v; want 10", trust, n, err)
					}
					if !tc.found && trust == nil {
						var v int
						if err := db.QueryRow("SELECT v FROM gate").Scan(&v); err != nil {
							t.Error(err)
						}
						if s := c.Stats(); s.Flights > 0 {
							t.Errorf("Stats = %+v; want nothing shared that names a relation", s)
						}
						continue
					}
					g.shut()
					for range 10 {
						wg.Go(func() {
							var v int
							if err := db.QueryRow("SELECT v FROM gate").Scan(&v); err != nil {
								t.Error(err)
							}
						})
					}
					until(t, "the callers have gathered", func() bool { return c.Stats().Waiting == 10 && g.waiting() > 0 })
					if n := g.waiting(); n != 1 {
						t.Errorf("TrustNames %v: ten readers of a table are %d executions; want 1", trust, n)
					}
					g.open()
					wg.Wait()
				}
			})
		}
	})
}

// TestWrapped_CopyIn copies with lib/pq's statements, which end with their execution, again
// and again, on one connection and on several, closed or not.
func TestWrapped_CopyIn(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		inner, err := pq.NewConnector(dsn)
		if err != nil {
			t.Fatal(err)
		}
		c, err := flightpg.Wrap(inner, flightpg.Config{})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		defer db.Close()
		copies := func(tx *sql.Tx, closes bool) error {
			st, err := tx.Prepare(pq.CopyIn("log", "what"))
			if err != nil {
				return fmt.Errorf("Prepare: %w", err)
			}
			for i := range 3 {
				if _, err := st.Exec(fmt.Sprint(i)); err != nil {
					return fmt.Errorf("Exec: %w", err)
				}
			}
			if _, err := st.Exec(); err != nil {
				return fmt.Errorf("the last Exec: %w", err)
			}
			if closes {
				return st.Close()
			}
			return nil
		}
		want := 0
		for round := range 4 {
			tx, err := db.Begin()
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := copies(tx, round%2 == 0); err != nil {
					t.Fatalf("round %d: %v", round, err)
				}
				want += 3
			}
			st, err := tx.Prepare("SELECT count(*) FROM log")
			if err != nil {
				t.Fatal(err)
			}
			var n int
			if err := st.QueryRow().Scan(&n); err != nil || n != want {
				t.Errorf("round %d: %d rows, %v; want %d", round, n, err, want)
			}
			if err := tx.Commit(); err != nil {
				t.Fatalf("round %d: Commit: %v", round, err)
			}
		}
	})
}
