package bounds

import (
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestTexts checks that what a connector remembers of SQL texts stays within its bound
// in bytes, whatever is remembered: the texts, what was found out about them, or how
// their results look. The same texts go through pgx's own driver, for comparison.
func TestTexts(t *testing.T) {
	seed := battery.Seed(t)
	dsn := pgtest.Database(t)
	const conns = 4
	for _, kind := range []string{"wide", "wide alike", "long", "erring", "prepared", "many parameters"} {
		for _, way := range []struct {
			name   string
			limits limits
		}{
			{"pipeline", limits{Executor: flightpg.ExecutorPipeline}},
			{"generic", limits{Executor: flightpg.ExecutorGeneric}},
			{"transactions", limits{Guard: flightpg.GuardTransaction}},
		} {
			if !battery.Full() && way.name != "pipeline" && kind != "wide" {
				continue // the same cache, filled in one other way
			}
			t.Run(strings.ReplaceAll(kind, " ", "_")+"/"+way.name, func(t *testing.T) {
				way.limits.FlightConns, way.limits.SessionConns = conns, conns
				j := job{
					Load: "remembered", Kind: kind, Seed: seed, Callers: 8, Texts: battery.N(300, 100_000),
					DSN: withParam(t, dsn, "statement_cache_capacity", "32"), Limits: way.limits,
				}
				e := battery.Report(t, "bounds", fmt.Sprintf("what is remembered of texts that never come again is bounded: %s, %s", kind, way.name), seed)
				e.Set("texts", j.Texts)
				f := run(t, j)
				// A connection of pgx's own keeps 32 statements with their columns, and each
				// connection of the pipeline the columns of 16 Ki at most.
				atMost := int64(slack+remembered+conns*2*perConn) + conns*connMemory
				got := f.After.sum() - f.Before.sum()
				e.Set("remembered (bytes)", got)
				e.Set("remembered at most", atMost)
				if got > atMost {
					t.Errorf("%d bytes are remembered of %d texts; want at most %d", got, j.Texts, atMost)
				}
				if way.name != "pipeline" {
					return
				}
				// What one text takes in the driver that everybody knows: 512 on each connection.
				j.Native, j.Texts = true, min(j.Texts, 2_048) // twice what is kept
				j.DSN = dsn
				native := run(t, j)
				e.Set("pgx, 512 texts a connection (bytes)", native.After.sum()-native.Before.sum())
			})
		}
	}
}

// connMemory is what a connection may remember of columns: a shape's in the pipeline,
// or in pgx those of its 32 statements, at 1,600 columns each.
const connMemory = 6 * mB

// wideColumns is how many columns the results of wide texts have.
const wideColumns = 1_600

// remembered are reads of many kinds whose texts never come again.
func rememberedTexts(j *job) (*figures, error) {
	b, err := j.open(j.Callers)
	if err != nil {
		return nil, err
	}
	db := b.db
	if j.Native {
		if db, err = sql.Open("pgx", j.DSN); err != nil {
			return nil, err
		}
		defer db.Close()
		db.SetMaxOpenConns(2)
		db.SetMaxIdleConns(2)
	}
	if err = makeWide(db); err != nil {
		return nil, err
	}
	filler := strings.Repeat("x", 16<<10)
	var failed failures
	var next atomic.Int64
	var wg sync.WaitGroup
	for range j.Callers {
		wg.Go(func() {
			for n := int(next.Add(1)); n <= j.Texts; n = int(next.Add(1)) {
				failed.add(ask(db, j.Kind, n, filler))
			}
		})
	}
	wg.Wait()
	if err = failed.err(); err != nil {
		return nil, err
	}
	if j.Native {
		b.f.Peak = b.end()
		b.f.After = measure()
		return &b.f, errors.Join(b.db.Close(), b.gate.Close(background))
	}
	return b.finish()
}

func makeWide(db *sql.DB) error {
	var columns strings.Builder
	for i := range wideColumns - 1 {
		fmt.Fprintf(&columns, ", c%d_of_a_wide_table bool", i)
	}
	_, err := db.Exec("CREATE TABLE IF NOT EXISTS wide (c bool" + columns.String() + ")")
	return err
}

// ask reads with the n-th text of a kind.
func ask(db *sql.DB, kind string, n int, filler string) error {
	var query string
	var args []any
	switch kind {
	case "wide": // a result like no other
		query = fmt.Sprintf("SELECT *, 1 AS c%d FROM wide", n)
	case "wide alike":
		query = fmt.Sprintf("SELECT * FROM wide WHERE %d > 0", n)
	case "long":
		query = fmt.Sprintf("SELECT %d FROM gate -- %s", n, filler)
	case "erring":
		query = fmt.Sprintf("SELECT c%d FROM gate", n)
	case "prepared":
		query = fmt.Sprintf("SELECT %d FROM gate", n)
	case "many parameters":
		query = fmt.Sprintf("SELECT %d FROM gate WHERE ARRAY[$1%s] IS NOT NULL", n, strings.Repeat("::int, $1", 500)+"::int")
		args = []any{n}
	}
	if kind == "prepared" {
		stmt, err := db.Prepare(query)
		if err != nil {
			return err
		}
		defer stmt.Close()
		rows, err := stmt.Query(args...)
		if err != nil {
			return err
		}
		return drain(rows)
	}
	rows, err := db.Query(query, args...)
	if err == nil {
		err = drain(rows)
	}
	var pgErr *pgconn.PgError
	if kind == "erring" {
		if !errors.As(err, &pgErr) || pgErr.Code != "42703" { // undefined_column
			return fmt.Errorf("an unknown column: %w", err)
		}
		return nil
	}
	return err
}

func drain(rows *sql.Rows) error {
	defer rows.Close()
	for rows.Next() {
	}
	return rows.Err()
}
