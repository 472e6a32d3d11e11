package main

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/flightpg/flightpg/bench/internal/zipf"
)

// rowCount is how many rows the tables have.
const rowCount = 100_000

// zipfKeys is how many keys Zipf workloads draw from.
const zipfKeys = 10_000

// schema makes the tables. bench_wait is how a query takes its time: it is stable,
// as far as PostgreSQL is told, as pg_sleep is not.
var schema = []string{
	"CREATE TABLE IF NOT EXISTS bench_items (id int PRIMARY KEY, name text NOT NULL, n bigint NOT NULL)",
	"CREATE TABLE IF NOT EXISTS bench_mix (id int PRIMARY KEY, name text NOT NULL, n bigint NOT NULL) WITH (fillfactor = 50)",
	"CREATE TABLE IF NOT EXISTS bench_counters (id int PRIMARY KEY, n bigint NOT NULL) WITH (fillfactor = 50)",
	fmt.Sprintf("INSERT INTO bench_items SELECT i, 'item ' || i, i * 7 FROM generate_series(1, %d) i ON CONFLICT DO NOTHING", rowCount),
	fmt.Sprintf("INSERT INTO bench_mix SELECT i, 'item ' || i, i * 7 FROM generate_series(1, %d) i ON CONFLICT DO NOTHING", zipfKeys),
	fmt.Sprintf("INSERT INTO bench_counters SELECT i, 0 FROM generate_series(1, %d) i ON CONFLICT DO NOTHING", rowCount),
	`CREATE OR REPLACE FUNCTION bench_wait(ms int) RETURNS int LANGUAGE plpgsql STABLE AS
		$$ BEGIN IF ms > 0 THEN PERFORM pg_catalog.pg_sleep(ms / 1000.0); END IF; RETURN ms; END $$`,
	"VACUUM ANALYZE bench_items, bench_mix, bench_counters",
}

// prepareDatabase makes the tables in a database, or leaves them if they are there.
func prepareDatabase(ctx context.Context, db *sql.DB) error {
	for _, statement := range schema {
		if _, err := db.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("making the tables: %w", err)
		}
	}
	return nil
}

// op is what a caller does once: a read or a write.
type op struct {
	kind kind
	text string
	a, b int64 // the arguments; b is not used by readRow and write
}

type kind uint8

const (
	readRow  kind = iota // one row of name and n, for the key a
	readWait             // the same, of a query that takes b ms
	readRows             // rows of id, name and n, from a to b
	write                // changes the row a
	inTx                 // reads the row a and changes it, in a transaction
)

const (
	rowText     = "SELECT name, n FROM bench_items WHERE id = $1"
	rowsText    = "SELECT id, name, n FROM bench_items WHERE id BETWEEN $1 AND $2"
	waitText    = "SELECT name, n FROM bench_items, bench_wait($2) WHERE id = $1"
	mixText     = "SELECT name, n FROM bench_mix WHERE id = $1"
	mixWrite    = "UPDATE bench_mix SET n = n + 1 WHERE id = $1"
	writeText   = "UPDATE bench_counters SET n = n + 1 WHERE id = $1"
	lockingText = "SELECT n FROM bench_counters WHERE id = $1 FOR UPDATE"
)

// caller is one goroutine's state.
type caller struct {
	rng         *rand.Rand
	n           int64 // calls so far
	first, keys int64 // the keys that are its alone
}

// own returns a key that no other caller uses.
func (c *caller) own() int64 {
	c.n++
	return c.first + c.n%c.keys
}

// class is callers that do the same.
type class struct {
	name       string
	goroutines int // 0: the cell's
	next       func(c *caller, o *op)
}

// workload is what is asked of a contender. The first class is the one whose
// figures are compared.
type workload struct {
	name    string
	classes []class
	most    int  // goroutines in the full plan, at most; 0: no limit
	ceiling bool // contenders without a server can take part
}

var mixed = zipf.New8020(zipfKeys)

func zipfKey(c *caller) int64 { return int64(mixed.Draw(c.rng)) + 1 }

func hotKey(*caller) int64 { return 42 }

func ownKey(c *caller) int64 { return c.own() }

func one(key func(*caller) int64) []class {
	return []class{{next: func(c *caller, o *op) { *o = op{kind: readRow, text: rowText, a: key(c)} }}}
}

func waits(ms int64, key func(*caller) int64) []class {
	return []class{{next: func(c *caller, o *op) { *o = op{kind: readWait, text: waitText, a: key(c), b: ms} }}}
}

// many reads rows from a key on, all of which there are.
func many(rows int64, key func(*caller) int64) []class {
	return []class{{next: func(c *caller, o *op) {
		from := 1 + (key(c)-1)*(rowCount-rows+1)/rowCount // in the same order as the keys
		*o = op{kind: readRows, text: rowsText, a: from, b: from + rows - 1}
	}}}
}

var workloads = []workload{
	{name: "hot 1 row", classes: one(hotKey), ceiling: true},
	{name: "zipf 1 row", classes: one(zipfKey), ceiling: true},
	{name: "unique 1 row", classes: one(ownKey), ceiling: true},
	{name: "hot 100 rows", classes: many(100, hotKey), ceiling: true, most: 1024},
	{name: "zipf 100 rows", classes: many(100, zipfKey), ceiling: true, most: 1024},
	{name: "unique 100 rows", classes: many(100, ownKey), ceiling: true, most: 1024},
	{name: "hot 10000 rows", classes: many(10_000, hotKey), ceiling: true, most: 64},
	{name: "zipf 10000 rows", classes: many(10_000, zipfKey), ceiling: true, most: 64},
	{name: "unique 10000 rows", classes: many(10_000, ownKey), ceiling: true, most: 64},
	{name: "unique 1 ms", classes: waits(1, ownKey), most: 1024},
	{name: "hot 10 ms", classes: waits(10, hotKey), most: 1024},
	{name: "zipf 10 ms", classes: waits(10, zipfKey), most: 1024},
	{name: "unique 10 ms", classes: waits(10, ownKey), most: 1024},
	{name: "zipf mix", classes: []class{{next: func(c *caller, o *op) {
		if c.rng.IntN(20) == 0 {
			*o = op{kind: write, text: mixWrite, a: zipfKey(c)}
		} else {
			*o = op{kind: readRow, text: mixText, a: zipfKey(c)}
		}
	}}}},
	{name: "fast beside slow", classes: []class{
		{name: "fast", next: func(c *caller, o *op) { *o = op{kind: readRow, text: rowText, a: c.own()} }},
		{name: "slow", goroutines: 8, next: func(c *caller, o *op) {
			*o = op{kind: readWait, text: waitText, a: c.own(), b: 20 + c.rng.Int64N(31)}
		}},
	}},
	{name: "2% slow", classes: []class{{next: func(c *caller, o *op) {
		*o = op{kind: readWait, text: waitText, a: c.own()}
		if c.rng.IntN(50) == 0 {
			o.b = 20
		}
	}}}},
	{name: "writes", classes: []class{{next: func(c *caller, o *op) { *o = op{kind: write, text: writeText, a: c.own()} }}}},
	{name: "transactions", classes: []class{{next: func(c *caller, o *op) { *o = op{kind: inTx, a: c.own()} }}}},
}

func workloadNamed(name string) *workload {
	i := slices.IndexFunc(workloads, func(w workload) bool { return w.name == name })
	return &workloads[i]
}

func workloadNames() (names []string) {
	for _, w := range workloads {
		names = append(names, w.name)
	}
	return names
}
