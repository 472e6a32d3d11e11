package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"time"
)

// matrixSchema is what the matrix has beyond the other tables. The functions take their
// time asleep, without any CPU (a server with CPUs to spare), or spinning. They are
// declared STABLE, and are the user's: what reads them has no company.
var matrixSchema = []string{
	`CREATE OR REPLACE FUNCTION bench_sleep(us bigint) RETURNS bigint LANGUAGE plpgsql STABLE AS
		$$ BEGIN IF us > 0 THEN PERFORM pg_catalog.pg_sleep(us / 1000000.0); END IF; RETURN us; END $$`,
	`CREATE OR REPLACE FUNCTION bench_spin(turns bigint) RETURNS bigint LANGUAGE plpgsql STABLE AS
		$$ DECLARE x bigint := 1; BEGIN FOR i IN 1..turns LOOP x := (x * 31 + i) % 1000003; END LOOP; RETURN turns; END $$`,
}

// service is how a query takes its time.
type service uint8

const (
	asleep  service = iota // in a function of the user's, which sleeps: whole milliseconds
	spun                   // in a function of the user's, which takes CPU
	builtIn                // CPU, in nothing but built-in functions
	services
)

func (s service) String() string { return [...]string{"asleep", "spun", "built-in"}[s] }

// text is a query that takes its time as the expression long says, and returns how
// long that was and the number of the call. tag makes it another text.
func (s service) text(long, number, tag string) string {
	switch s {
	case asleep:
		return fmt.Sprintf("SELECT bench_sleep(%s), %s::int8 AS n%s", long, number, tag)
	case spun:
		return fmt.Sprintf("SELECT bench_spin(%s), %s::int8 AS n%s", long, number, tag)
	}
	return fmt.Sprintf("SELECT count(*) / 50, %s::int8 AS n%s FROM generate_series(1, 50) a, generate_series(1, %s::int) b", number, tag, long)
}

// clock says how much of what a query takes.
type clock struct{ perMicrosecond [services]float64 }

// turns is the argument with which a query of the service takes so long.
func (c *clock) turns(s service, d time.Duration) int64 {
	return int64(math.Round(float64(d) / float64(time.Microsecond) * c.perMicrosecond[s]))
}

// set measures what a turn takes: the least of some trials, as others use the machine
// too.
func (c *clock) set(ctx context.Context, db *sql.DB) error {
	c.perMicrosecond[asleep] = 1
	for s := spun; s < services; s++ {
		n := int64(100)
		for {
			best := time.Duration(math.MaxInt64)
			for range 7 {
				began := time.Now()
				var got, number int64
				if err := db.QueryRowContext(ctx, s.text("$1", "$2", ""), n, 1).Scan(&got, &number); err != nil {
					return err
				}
				best = min(best, time.Since(began))
			}
			if best > 10*time.Millisecond || n > 1<<30 {
				c.perMicrosecond[s] = float64(n) / (float64(best) / float64(time.Microsecond))
				break
			}
			n *= 4
		}
	}
	return nil
}

// worker is who makes calls: a goroutine of its own at a time.
type worker struct {
	rng    *rand.Rand
	serial *atomic.Int64 // numbers of calls, of which no two are the same
	clock  *clock
	phase  int // 0, 1, 2: the third of the round
	part   *part
}

// call is what a worker does once. Every answer is checked.
type call func(ctx context.Context, db *sql.DB, w *worker) error

// length is how long a query shall take, and by which of a number of texts it is
// asked.
type length func(w *worker) (d time.Duration, text int)

func fixed(d time.Duration) length {
	return func(*worker) (time.Duration, int) { return d, 0 }
}

// among chooses one of n texts at random for each call.
func among(n int, l length) length {
	return func(w *worker) (time.Duration, int) {
		d, _ := l(w)
		return d, w.rng.IntN(n)
	}
}

// bimodal is slow for some of a hundred calls, and else takes no time: with one text,
// or with texts of which some are always slow.
func bimodal(percent float64, slow time.Duration, byText bool) length {
	return func(w *worker) (time.Duration, int) {
		text := 0
		if byText {
			text = w.rng.IntN(8)
		}
		if w.rng.Float64()*100 >= percent {
			return 0, text
		}
		if byText {
			text += 8
		}
		return slow, text
	}
}

func exponential(mean time.Duration) length {
	return func(w *worker) (time.Duration, int) {
		return min(time.Duration(w.rng.ExpFloat64()*float64(mean)), 20*mean), 0
	}
}

// pareto has a tail that is so heavy (exponent 1.2) that a few calls are most of the
// time: up to a hundred times the least.
func pareto(least time.Duration) length {
	return func(w *worker) (time.Duration, int) {
		return min(time.Duration(float64(least)*math.Pow(1-w.rng.Float64(), -1/1.2)), 100*least), 0
	}
}

// ofText gives each of n texts a length of its own, drawn once from l: the same in
// every round.
func ofText(n int, l length) length {
	lengths := make([]time.Duration, n)
	w := &worker{rng: rand.New(rand.NewPCG(1, uint64(n)))}
	for i := range lengths {
		lengths[i], _ = l(w)
	}
	return func(w *worker) (time.Duration, int) {
		i := w.rng.IntN(n)
		return lengths[i], i
	}
}

// byPhase takes another length in each third of a round.
func byPhase(first, second, third length) length {
	return func(w *worker) (time.Duration, int) { return [...]length{first, second, third}[w.phase](w) }
}

// takes is a call of a query that takes its time: no two are the same, as each has an
// argument of its own.
func takes(s service, l length) call {
	return func(ctx context.Context, db *sql.DB, w *worker) error {
		d, i := l(w)
		tag := ""
		if i > 0 {
			tag = fmt.Sprint(i)
		}
		turns, n := w.clock.turns(s, d), w.serial.Add(1)
		return w.row(ctx, db, s.text("$1", "$2", tag), []any{turns, n}, turns, n)
	}
}

// neverRepeated is the same with literals: each call has a text of its own.
func neverRepeated(s service, l length) call {
	return func(ctx context.Context, db *sql.DB, w *worker) error {
		d, _ := l(w)
		turns, n := w.clock.turns(s, d), w.serial.Add(1)
		return w.row(ctx, db, s.text(fmt.Sprint(turns), fmt.Sprint(n), ""), nil, turns, n)
	}
}

var errWrongRow = errors.New("another's row")

// row reads two numbers, and holds them to what they should be.
func (w *worker) row(ctx context.Context, db *sql.DB, text string, args []any, a, b int64) error {
	var gotA, gotB int64
	if err := db.QueryRowContext(ctx, text, args...).Scan(&gotA, &gotB); err != nil {
		return err
	}
	if gotA != a || gotB != b {
		return fmt.Errorf("%w: %d, %d; want %d, %d", errWrongRow, gotA, gotB, a, b)
	}
	return nil
}

// key is one that no other call under way has.
func (w *worker) key() int64 { return 1 + w.serial.Add(1)%rowCount }

// uniqueRow reads a row by its primary key: by one text, or one of several, or with
// n 0 by a text of its own.
func uniqueRow(texts int) call {
	return func(ctx context.Context, db *sql.DB, w *worker) error {
		key := w.key()
		text, args := "SELECT id, n FROM bench_items WHERE id = $1", []any{key}
		switch {
		case texts == 0:
			text, args = fmt.Sprintf("SELECT id, n, %d FROM bench_items WHERE id = %d", w.serial.Add(1), key), nil
			var id, n, number int64
			if err := db.QueryRowContext(ctx, text).Scan(&id, &n, &number); err != nil {
				return err
			}
			if id != key || n != 7*key {
				return errWrongRow
			}
			return nil
		case texts > 1:
			text = fmt.Sprintf("SELECT id, n AS n%d FROM bench_items WHERE id = $1", w.rng.IntN(texts))
		}
		return w.row(ctx, db, text, args, key, 7*key)
	}
}

// argument sends so many bytes.
func argument(bytes int) call {
	value := strings.Repeat("x", bytes)
	return func(ctx context.Context, db *sql.DB, w *worker) error {
		n := w.serial.Add(1)
		return w.row(ctx, db, "SELECT length($1::text)::int8, $2::int8", []any{value, n}, int64(bytes), n)
	}
}

// reader says how a large result is read.
type reader uint8

const (
	reads   reader = iota // all of it, at once
	pauses                // all of it, with 40 pauses of 2 ms
	stops                 // the first row; then the rows are closed
	cancels               // the first row; then the context is cancelled
)

// stream reads rows of 1,000 bytes.
func stream(rows int, how reader) call {
	return func(ctx context.Context, db *sql.DB, w *worker) error {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		got, err := db.QueryContext(ctx, "SELECT i, repeat('x', 1000) FROM generate_series(1, $1::int) i WHERE $2::int8 > 0", rows, w.serial.Add(1))
		if err != nil {
			return err
		}
		defer got.Close()
		var text sql.RawBytes
		i := 0
		for got.Next() {
			var number int
			if err := got.Scan(&number, &text); err != nil {
				return err
			}
			if i++; number != i || len(text) != 1000 {
				return errWrongRow
			}
			switch {
			case how == stops:
				return got.Close()
			case how == cancels:
				cancel()
				_ = got.Close() // its error is the cancellation
				return nil
			case how == pauses && i%max(rows/40, 1) == 0:
				time.Sleep(2 * time.Millisecond)
			}
		}
		if err := got.Err(); err != nil {
			return err
		}
		if i != rows {
			return fmt.Errorf("%d rows; want %d", i, rows)
		}
		return nil
	}
}
