package flightpg_test

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
)

// One word changes in an application that uses pgx's driver.
func Example() {
	db, err := sql.Open("flightpg", "postgres://app@localhost/shop?flight_mode=strict")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
	var name string
	_ = db.QueryRow("SELECT name FROM products WHERE id = $1", 7).Scan(&name)
}

// OpenDB sets the handle's pool as well: virtual connections need no limit,
// PostgreSQL's connections do.
func ExampleOpenDB() {
	db, err := flightpg.OpenDB("postgres://app@localhost/shop", flightpg.Config{
		FlightConns:  8,  // for shared reads
		SessionConns: 16, // for everything else
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer db.Close()
}

// A bad parameter is an error of Open that says what is allowed.
func ExampleConfig_dsn() {
	_, err := sql.Open("flightpg", "host=localhost password=hush flight_mode=lazy")
	fmt.Println(err)
	// Output:
	// flightpg: parameter flight_mode in the DSN: "lazy" is not allowed: use fenced, strict, join or off
}

// WithMode changes the mode for the reads of one context.
func ExampleWithMode() {
	ctx := flightpg.WithMode(context.Background(), flightpg.ModeStrict)
	db, err := flightpg.Wrap(slowDatabase{}, flightpg.Config{TrustNames: []string{"*"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	handle := db.OpenDB()
	defer handle.Close()
	var balance int
	if err := handle.QueryRowContext(ctx, "SELECT balance FROM accounts WHERE id = $1", 1).Scan(&balance); err != nil {
		fmt.Println(err)
	}
	fmt.Println(balance)
	// Output: 42
}

// Wrap works over any connector, pgx's with options among them.
func ExampleWrap() {
	config, err := pgx.ParseConfig("postgres://app@localhost/shop")
	if err != nil {
		fmt.Println(err)
		return
	}
	c, err := flightpg.Wrap(stdlib.GetConnector(*config), flightpg.Config{Database: "localhost/shop"})
	if err != nil {
		fmt.Println(err)
		return
	}
	db := c.OpenDB()
	defer db.Close()
}

// Many callers, one execution.
func ExampleReadStats() {
	slow := slowDatabase{gate: make(chan struct{})}
	c, err := flightpg.Wrap(slow, flightpg.Config{TrustNames: []string{"*"}})
	if err != nil {
		fmt.Println(err)
		return
	}
	db := c.OpenDB()
	defer db.Close()
	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			var balance int
			_ = db.QueryRow("SELECT balance FROM accounts WHERE id = $1", 1).Scan(&balance)
		})
	}
	for flightpg.ReadStats(db).Waiting < 100 { // until all are there
	}
	close(slow.gate)
	wg.Wait()
	s := flightpg.ReadStats(db)
	fmt.Println(s.Flights, "flight,", s.Joins, "joins")
	// Output: 1 flight, 99 joins
}

// slowDatabase answers every query with 42, when its gate opens.
type slowDatabase struct{ gate chan struct{} }

func (d slowDatabase) Connect(context.Context) (driver.Conn, error) {
	return slowConn{gate: d.gate}, nil
}
func (d slowDatabase) Driver() driver.Driver { return nil }

type slowConn struct {
	driver.Conn
	gate chan struct{}
}

func (c slowConn) QueryContext(context.Context, string, []driver.NamedValue) (driver.Rows, error) {
	if c.gate != nil {
		<-c.gate
	}
	return &oneRow{}, nil
}
func (slowConn) Close() error { return nil }

type oneRow struct{ done bool }

func (*oneRow) Columns() []string { return []string{"balance"} }
func (*oneRow) Close() error      { return nil }
func (r *oneRow) Next(dest []driver.Value) error {
	if r.done {
		return io.EOF
	}
	dest[0], r.done = int64(42), true
	return nil
}
