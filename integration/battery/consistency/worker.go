//go:build unix

package consistency

import (
	"context"
	"database/sql"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// EnvWorker makes the test binary a worker.
const EnvWorker = "FLIGHTPG_BATTERY_WORKER"

// Message is what the parent tells a worker: prepare for this plan, or, without
// one, begin. The worker answers the first with a Result that has only Err, the
// second with the whole.
type Message struct{ Plan *Plan }

// Work is the life of a worker: it does what it is told on r, answers on w, and
// ends with r.
func Work(r io.Reader, w io.Writer) error {
	told := make(chan Message)
	go func() {
		in := gob.NewDecoder(r)
		for {
			var m Message
			if err := in.Decode(&m); err != nil {
				if errors.Is(err, io.EOF) {
					os.Exit(0) // the parent has ended, or wants no more
				}
				fmt.Fprintln(os.Stderr, "worker:", err)
				os.Exit(1)
			}
			told <- m
		}
	}()
	var wk worker
	out := gob.NewEncoder(w)
	for m := range told {
		var res *Result
		if m.Plan != nil {
			res = new(Result)
			if err := wk.prepare(m.Plan); err != nil {
				res.Err = fmt.Sprintf("worker %d cannot begin: %v", m.Plan.Worker, err)
			}
		} else {
			res = wk.run()
		}
		if err := out.Encode(res); err != nil {
			return err
		}
	}
	return nil
}

// side is a way to the database: through flightpg, or not.
type side interface {
	read(ctx context.Context, c *client, key int64, slow bool) (via Via, val int64, err error)
	write(ctx context.Context, c *client, key, val int64) outcome
	figures(*Result)
	close()
}

// outcome is what became of a write.
type outcome struct {
	kind Kind
	via  Via
	out  int64 // what a Swap saw
	err  error
	none bool // the error says that nothing was written
}

// worker is one process.
type worker struct {
	plan   *Plan
	clock  *Clock
	killer *pgx.Conn // for one client at a time, under mu
	mu     sync.Mutex

	side   side
	handle Handle // of side
	killed bool   // backends have been killed since side is there: idle connections may be dead
	dsn    string // of side and killer

	cancelled, lost, refused, kills atomic.Uint64
	before                          Result
}

// client is one of a worker's goroutines.
type client struct {
	w   *worker
	id  int
	rng *rand.Rand
	n   int64 // of values written
	ops []Op
}

func (w *worker) prepare(p *Plan) (err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if w.clock == nil {
		if w.clock, err = OpenClock(p.Clock); err != nil {
			return err
		}
	}
	if w.dsn != p.DSN {
		if w.killer != nil {
			_ = w.killer.Close(ctx)
		}
		if w.killer, err = pgx.Connect(ctx, p.DSN); err != nil {
			return err
		}
	}
	if w.side == nil || w.dsn != p.DSN || w.handle != p.Handle {
		if w.side != nil {
			w.side.close()
		}
		w.killed = false
		if p.Role == RolePgx {
			w.side, err = newPgxSide(ctx, p)
		} else {
			w.side, err = newFlightSide(ctx, p)
		}
		if err != nil {
			return err
		}
	}
	w.plan, w.dsn, w.handle = p, p.DSN, p.Handle
	w.killed = w.killed || p.Kill > 0
	w.before = Result{}
	w.side.figures(&w.before)
	return nil
}

// run makes the clients of a history work until no operation is left.
func (w *worker) run() *Result {
	p := w.plan
	res := new(Result)
	var mu sync.Mutex // guards res
	var wg sync.WaitGroup
	for i := range p.Clients {
		wg.Go(func() {
			c := &client{w: w, id: i, rng: rand.New(rand.NewPCG(p.Seed, uint64(p.Worker)<<32|uint64(i)))}
			err := c.run()
			mu.Lock()
			defer mu.Unlock()
			res.Ops = append(res.Ops, c.ops...)
			if err != nil && res.Err == "" {
				res.Err = fmt.Sprintf("worker %d client %d: %v", p.Worker, i, err)
				w.clock.Grant(0) // nobody need go on
			}
		})
	}
	wg.Wait()
	w.side.figures(res)
	res.Joins -= w.before.Joins
	res.Flights -= w.before.Flights
	res.Fenced -= w.before.Fenced
	for why, n := range w.before.Bypasses {
		res.Bypasses[why] -= n
	}
	res.Retries -= w.before.Retries
	res.Abandoned -= w.before.Abandoned
	res.Cancelled = w.cancelled.Swap(0)
	res.Lost = w.lost.Swap(0)
	res.Refused = w.refused.Swap(0)
	res.Killed = w.kills.Swap(0)
	return res
}

func (c *client) run() error {
	p := c.w.plan
	for {
		left := c.w.clock.Draw()
		if left < 0 {
			return nil
		}
		if p.Kill > 0 && left%p.Kill == p.Kill/2 {
			if err := c.w.kill(); err != nil {
				return err
			}
		}
		key := p.Keys[c.rng.IntN(len(p.Keys))]
		var err error
		if c.rng.Float64() < p.Writes {
			err = c.write(key)
		} else {
			err = c.read(key)
		}
		if err != nil {
			return err
		}
	}
}

// context returns the context of a call: with the given probability it is
// cancelled after a moment, which may be before the call ends.
func (c *client) context(ends float64) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	if c.rng.Float64() < ends {
		time.AfterFunc(time.Duration(c.rng.Int64N(int64(time.Millisecond))), cancel)
	}
	return ctx, cancel
}

func (c *client) read(key int64) error {
	p := c.w.plan
	ctx, cancel := c.context(p.Cancel)
	defer cancel()
	slow := c.rng.Float64() < p.Slow
	call := c.w.clock.Tick()
	via, val, err := c.w.side.read(ctx, c, key, slow)
	ret := c.w.clock.Tick()
	switch {
	case err == nil:
		c.record(Op{Kind: Read, Via: via, Key: key, Out: val, Call: call, Return: ret})
	case errors.Is(ctx.Err(), context.Canceled):
		c.w.cancelled.Add(1)
	case c.w.killed && lost(err):
		c.w.lost.Add(1)
	default:
		return fmt.Errorf("%v of key %d: %w", via, key, err)
	}
	return nil
}

func (c *client) write(key int64) error {
	p := c.w.plan
	ctx, cancel := c.context(p.Unknown)
	defer cancel()
	c.n++
	val := int64(p.Worker+1)<<48 | int64(c.id)<<32 | c.n
	call := c.w.clock.Tick()
	o := c.w.side.write(ctx, c, key, val)
	ret := c.w.clock.Tick()
	op := Op{Kind: o.kind, Via: o.via, Key: key, In: val, Out: o.out, Call: call, Return: ret}
	excused := errors.Is(ctx.Err(), context.Canceled) || c.w.killed && lost(o.err)
	switch {
	case o.none && (o.err == nil || excused || o.via == ViaFailing && refused(o.err)):
		c.w.refused.Add(1)
	case o.err == nil:
		c.record(op)
	case excused && !o.none:
		op.Kind, op.Out, op.Return = Write, 0, Open // if it took effect, nobody saw what was there before
		c.record(op)
	default:
		return fmt.Errorf("%v of key %d: %w", o.via, key, o.err)
	}
	return nil
}

func (c *client) record(op Op) {
	op.Worker, op.Client = int16(c.w.plan.Worker), int16(c.id)
	c.ops = append(c.ops, op)
}

// kill ends one of the backends that work for a history.
func (w *worker) kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w.mu.Lock()
	defer w.mu.Unlock()
	tag, err := w.killer.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity
		WHERE datname = current_database() AND application_name = $1 ORDER BY random() LIMIT 1`, Victim)
	if err != nil {
		return fmt.Errorf("killing a backend: %w", err)
	}
	w.kills.Add(uint64(tag.RowsAffected()))
	return nil
}

// lost reports whether err is what a killed backend leaves: the server's last
// word, or none.
func lost(err error) bool {
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) {
		return pgErr.Code == "57P01"
	}
	return !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, sql.ErrNoRows) && !errors.Is(err, errNotRefused)
}

// refused reports whether err is what the table's constraint says.
func refused(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "23514"
}

// errNotRefused is what must not happen to ViaFailing.
var errNotRefused = errors.New("a value below zero was written, against the table's constraint")
