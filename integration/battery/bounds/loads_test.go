package bounds

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
)

// loads are what a process can be told to do. Each returns an error if a caller
// got anything but what it should have.
var loads = map[string]func(*job) (*figures, error){
	"one large":     oneLarge,
	"many large":    manyLarge,
	"shapes":        manyLarge,
	"one key":       func(j *job) (*figures, error) { return waiters(j, false) },
	"distinct keys": func(j *job) (*figures, error) { return waiters(j, true) },
	"texts":         texts,
	"remembered":    rememberedTexts,
}

// bench is what all loads start with: a handle, and the gate.
type bench struct {
	j    *job
	db   *sql.DB
	gate *pgx.Conn // holds the lock while the gate is closed
	f    figures
	end  func() peak

	goroutines int // before the load
}

var background = context.Background()

// open opens a handle, lets it meet the server, and takes the first measurement.
// goroutines is the most that the load will have at a time: the runtime never gives
// back what it notes of a goroutine (not its stack), so that is paid for before.
func (j *job) open(goroutines int) (*bench, error) {
	b := &bench{j: j, f: figures{Extra: make(map[string]int64)}}
	var err error
	if b.db, err = flightpg.OpenDB(j.DSN, j.Limits.config()); err != nil {
		return nil, err
	}
	if b.gate, err = pgx.Connect(background, j.DSN); err != nil {
		return nil, err
	}
	if _, err = b.gate.Exec(background, "CREATE TABLE IF NOT EXISTS gate (); TRUNCATE gate; INSERT INTO gate DEFAULT VALUES"); err != nil {
		return nil, err
	}
	// The catalog is loaded, pools are open, plans made. The first reads are not
	// shared if the catalog takes its time.
	werr := await("a read to be shared", patience, func() bool {
		var n int
		err = b.db.QueryRow("SELECT 1 FROM gate").Scan(&n)
		return err != nil || flightpg.ReadStats(b.db).Flights > 0
	})
	if err = errors.Join(werr, err); err != nil {
		return nil, err
	}

	bare := measure()
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() { <-done })
	}
	parked := measure()
	close(done)
	wg.Wait()
	b.f.Extra["bare goroutine"] = (parked.sum() - bare.sum()) / int64(max(goroutines, 1))
	debug.FreeOSMemory() // what the goroutines have taken is not resident any more
	b.f.Before, b.goroutines = measure(), runtime.NumGoroutine()
	b.f.Extra["kept of a goroutine"] = (b.f.Before.Heap - bare.Heap) / int64(max(goroutines, 1))
	b.end = watch()
	return b, nil
}

func (b *bench) closeGate() error {
	_, err := b.gate.Exec(background, "BEGIN; LOCK TABLE gate")
	return err
}

func (b *bench) openGate() error {
	_, err := b.gate.Exec(background, "COMMIT")
	return err
}

// finish takes the last measurements: the load is over, the handle still open.
func (b *bench) finish() (*figures, error) {
	b.f.Peak = b.end()
	// What a flight leaves behind it (closing rows that nobody wants) may take
	// longer than its callers.
	err := await("the end of all flights", settled, func() bool {
		s := flightpg.ReadStats(b.db)
		return s.Flying == 0 && s.Waiting == 0 && s.BufferedBytes == 0
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %+v", err, flightpg.ReadStats(b.db))
	}
	s := flightpg.ReadStats(b.db)
	b.f.Stats = counts{Flights: s.Flights, Joins: s.Joins, Overflows: s.Overflows, Cancelled: s.Cancelled, Bypasses: make(map[string]uint64)}
	for why, n := range s.Bypasses {
		b.f.Stats.Bypasses[why.String()] = n
	}
	b.f.After = b.settle()
	b.db.SetMaxIdleConns(-1) // what OpenDB's handles keep is stated, and not the load's
	b.f.AfterIdle = b.settle()
	return &b.f, errors.Join(b.db.Close(), b.gate.Close(background))
}

// settle measures when what is on its way out has gone. A goroutine that has called
// Done, or closes a connection, still has its stack: on a busy machine for long. The
// connections' own goroutines, a few, may stay.
func (b *bench) settle() memory {
	_ = await("the load's goroutines", settled, func() bool { return runtime.NumGoroutine() <= b.goroutines+64 })
	m := measure()
	for range 20 {
		time.Sleep(10 * time.Millisecond) // nothing tells that the last bytes were freed
		next := measure()
		if next.sum() >= m.sum() {
			break
		}
		m = next
	}
	return m
}

// failures collects what callers found wrong, and keeps the first.
type failures struct {
	n     atomic.Int64
	first atomic.Pointer[error]
}

func (f *failures) add(err error) {
	if err != nil && f.n.Add(1) == 1 {
		f.first.Store(&err)
	}
}

func (f *failures) err() error {
	if err := f.first.Load(); err != nil {
		return fmt.Errorf("%d callers failed, the first with: %w", f.n.Load(), *err)
	}
	return nil
}

// filled makes the texts of rows: a number in 16 digits, and then x up to the size.
type filled struct{ rest []byte }

func fill(size int) filled { return filled{bytes.Repeat([]byte("x"), size-16)} }

// is reports whether text is that of the number.
func (f filled) is(n int, text []byte) bool {
	return len(text) >= 16 && string(text[:16]) == fmt.Sprintf("%016d", n) && bytes.Equal(text[16:], f.rest)
}

// oneLarge is a result far over flight_max_result, asked for by all callers at
// once. The first caller that gets rows reads all of them, and so does the first
// caller of all; every tenth gives up without reading; the others read the first
// ReadRows rows and leave, by ending their context: closing rows alone would read
// the rest, in pgx's driver too.
func oneLarge(j *job) (*figures, error) {
	b, err := j.open(2 * j.Callers)
	if err != nil {
		return nil, err
	}
	if err = b.closeGate(); err != nil {
		return nil, err
	}
	query := fmt.Sprintf("SELECT i, lpad(i::text, 16, '0') || repeat('x', %d) FROM gate, generate_series(1, %d) i", j.RowBytes-16, j.Rows)
	row := fill(j.RowBytes)
	var failed failures
	var begun, whole, left, gaveUp, bytesRead atomic.Int64
	opened := make(chan struct{})
	call := func(n int) error {
		ctx, cancel := context.WithCancel(background)
		defer cancel()
		if n%10 == 9 {
			go func() {
				<-opened
				cancel()
			}()
		}
		rows, err := b.db.QueryContext(ctx, query)
		if n%10 == 9 && errors.Is(err, context.Canceled) {
			gaveUp.Add(1)
			return nil
		}
		if err != nil {
			return err
		}
		defer rows.Close()
		all := begun.Add(1) == 1 || n == 0
		var raw sql.RawBytes
		for i := 1; rows.Next(); i++ {
			var got int
			if err := rows.Scan(&got, &raw); err != nil {
				return fmt.Errorf("row %d: %w", i, err)
			}
			if got != i || !row.is(i, raw) {
				return fmt.Errorf("row %d is number %d, %.40q", i, got, raw)
			}
			bytesRead.Add(int64(len(raw)))
			switch {
			case i == j.Rows:
				whole.Add(1)
			case i == j.ReadRows && !all:
				left.Add(1)
				cancel()
				return nil
			}
		}
		if n%10 == 9 && errors.Is(rows.Err(), context.Canceled) {
			gaveUp.Add(1)
			return nil
		}
		if err := rows.Err(); err != nil {
			return err
		}
		return nil
	}
	var wg sync.WaitGroup
	for n := range j.Callers {
		wg.Go(func() {
			if err := call(n); err != nil {
				failed.add(fmt.Errorf("caller %d: %w", n, err))
			}
		})
	}
	if err = await("all callers to wait", patience, func() bool { return flightpg.ReadStats(b.db).Waiting == int64(j.Callers) }); err != nil {
		return nil, err
	}
	b.f.Held = measure()
	if err = b.openGate(); err != nil {
		return nil, err
	}
	close(opened)
	wg.Wait()
	if err = failed.err(); err != nil {
		return nil, err
	}
	b.f.Extra["read whole"] = whole.Load()
	b.f.Extra["read in part"] = left.Load()
	b.f.Extra["gave up"] = gaveUp.Load()
	b.f.Extra["bytes read"] = bytesRead.Load()
	return b.finish()
}

// manyLarge are results just under flight_max_result, each with a caller of its
// own. Callers hold their rows open, unread, until no flight can go on: the
// memory is all taken, and every flight connection streams to a caller that does
// not read. That is when the measurement is taken.
func manyLarge(j *job) (*figures, error) {
	b, err := j.open(2 * j.Callers)
	if err != nil {
		return nil, err
	}
	if err = b.closeGate(); err != nil {
		return nil, err
	}
	columns := j.Columns
	if columns == "" {
		columns = fmt.Sprintf("i, rpad($1::text, %d, 'x')", j.RowBytes)
	}
	query := fmt.Sprintf("SELECT %s FROM gate, generate_series(1, %d) i", columns, j.Rows)
	if j.Where != "" {
		query += " WHERE " + j.Where
	}
	row := fill(max(j.RowBytes, 16))
	var failed failures
	var holding atomic.Int64
	read := make(chan struct{})
	call := func(n int) error {
		key := fmt.Sprintf("%016d", n)
		rows, err := b.db.QueryContext(background, query, key)
		if err != nil {
			return err
		}
		defer rows.Close()
		holding.Add(1)
		<-read
		var raw sql.RawBytes
		i := 0
		for ; rows.Next(); i++ {
			if j.Columns != "" { // counted only
				continue
			}
			var got int
			if err := rows.Scan(&got, &raw); err != nil {
				return err
			}
			if got != i+1 || !row.is(n, raw) {
				return fmt.Errorf("row %d is number %d, %.40q", i+1, got, raw)
			}
		}
		if rows.Err() == nil && i != j.Rows && j.Where == "" {
			return fmt.Errorf("%d rows of %d, and no error", i, j.Rows)
		}
		return rows.Err()
	}
	var wg sync.WaitGroup
	for n := range j.Callers {
		wg.Go(func() {
			if err := call(n); err != nil {
				failed.add(fmt.Errorf("caller %d: %w", n, err))
			}
		})
	}
	if err = await("all callers to wait", patience, func() bool { return flightpg.ReadStats(b.db).Waiting == int64(j.Callers) }); err != nil {
		return nil, err
	}
	if s := flightpg.ReadStats(b.db); s.Flying != int64(j.Callers) {
		return nil, fmt.Errorf("%d flights under way; want one for each of %d callers", s.Flying, j.Callers)
	}
	if err = b.openGate(); err != nil {
		return nil, err
	}
	err = await("flights to be stuck", patience, func() bool {
		s := flightpg.ReadStats(b.db)
		return holding.Load() == int64(j.Callers) || s.Overflows+s.Streams >= uint64(j.Limits.FlightConns) || failed.n.Load() > 0
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %d callers hold rows, %+v", err, holding.Load(), flightpg.ReadStats(b.db))
	}
	b.f.Held = measure()
	b.f.Extra["holding"] = holding.Load()
	b.f.Extra["buffered"] = flightpg.ReadStats(b.db).BufferedBytes
	close(read)
	wg.Wait()
	if err = failed.err(); err != nil {
		return nil, err
	}
	return b.finish()
}

// waiters are callers that all wait at one moment, for one flight or each for its
// own.
func waiters(j *job, distinct bool) (*figures, error) {
	goroutines := j.Callers
	if distinct {
		goroutines *= 2 // a flight's execution has its own
	}
	b, err := j.open(goroutines)
	if err != nil {
		return nil, err
	}
	if err = b.closeGate(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(background)
	defer cancel()
	var failed failures
	var convoy sync.Mutex
	call := func(n int) error {
		want := int64(42)
		if distinct {
			want = int64(n)
		}
		var got int64
		if err := b.db.QueryRowContext(ctx, "SELECT $1::bigint FROM gate", want).Scan(&got); err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("got %d; want %d", got, want)
		}
		if j.Convoy {
			convoy.Lock()
			runtime.Gosched() // whoever runs now meets the lock
			convoy.Unlock()
		}
		return nil
	}
	var wg sync.WaitGroup
	profile := startContention()
	for n := range j.Callers {
		wg.Go(func() {
			if err := call(n); err != nil {
				failed.add(fmt.Errorf("caller %d: %w", n, err))
			}
		})
	}
	if err = await("all callers to wait", patience, func() bool {
		return flightpg.ReadStats(b.db).Waiting == int64(j.Callers) || failed.n.Load() > 0
	}); err != nil {
		return nil, err
	}
	b.f.Held = measure()
	if err = b.openGate(); err != nil {
		return nil, err
	}
	wg.Wait()
	b.f.Locks = profile()
	if err = failed.err(); err != nil {
		return nil, err
	}
	return b.finish()
}

// texts are reads whose SQL text is never the same twice, as from an application
// that writes values into its statements. Each has the length that the job says.
func texts(j *job) (*figures, error) {
	b, err := j.open(j.Callers)
	if err != nil {
		return nil, err
	}
	rnd := battery.Rand(j.Seed, 0)
	filler := make([]byte, j.Bytes)
	for i := range filler {
		filler[i] = byte('a' + rnd.IntN(26))
	}
	var failed failures
	var next atomic.Int64
	var wg sync.WaitGroup
	for range j.Callers {
		wg.Go(func() {
			for {
				n := int(next.Add(1))
				if n > j.Texts {
					return
				}
				head := fmt.Sprintf("SELECT %d FROM gate -- ", n)
				query := head + string(filler[:max(0, j.Bytes-len(head))])
				var got int
				var err error
				if n%2 == 0 {
					err = b.db.QueryRow(query).Scan(&got)
				} else {
					var stmt *sql.Stmt
					if stmt, err = b.db.Prepare(query); err == nil {
						err = errors.Join(stmt.QueryRow().Scan(&got), stmt.Close())
					}
				}
				if err == nil && got != n {
					err = fmt.Errorf("got %d", got)
				}
				if err != nil {
					failed.add(fmt.Errorf("text %d, %.60q: %w", n, strings.TrimSpace(query), err))
				}
			}
		})
	}
	wg.Wait()
	if err = failed.err(); err != nil {
		return nil, err
	}
	return b.finish()
}
