package faults

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestCancelStorm has half of very many callers leave at random moments, leaders and
// followers alike. The others get their rows; nobody gets another's cancellation.
func TestCancelStorm(t *testing.T) {
	callers := battery.Quick(6_000, battery.N(20_000, 1_000_000))
	const wave = 5_000 // at a time
	w := newWorld(t, pgtest.Shared(t), "leader-cancel storms")
	for _, params := range []string{"", "&flight_guard=transaction", "&flight_width=1&flight_mode=strict"} {
		db, err := flightpg.OpenDB(with(w.direct, "flight_conns=8&session_conns=8&application_name=faults&flight_max_result=64MB"+params), flightpg.Config{})
		if err != nil {
			t.Fatal(err)
		}
		w.add(&handle{name: "storm" + params, db: db})
	}
	for _, h := range w.handles {
		if err := flightpg.RefreshCatalog(t.Context(), h.db); err != nil {
			t.Fatal(err)
		}
	}
	// The work makes it last; the rows come with it.
	const query = "SELECT set, idx, total, pad, sum FROM items WHERE set = $1 AND (SELECT count(*) FROM generate_series(1, $2::int)) > 0 ORDER BY idx"
	var left atomic.Int64
	for from := 0; from < callers; from += wave {
		var wg sync.WaitGroup
		for i := from; i < min(from+wave, callers); i++ {
			wg.Go(func() {
				r := battery.Rand(w.seed, i)
				h := w.handles[r.IntN(len(w.handles))]
				set := 1 + r.Int64N(4)
				if r.IntN(20) == 0 {
					set = 11
				}
				ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errHangs)
				defer cancel()
				if i%2 == 0 {
					timer := time.AfterFunc(time.Duration(r.Int64N(int64(20*time.Millisecond))), cancel)
					defer timer.Stop()
				}
				rows, err := h.db.QueryContext(ctx, query, set, 1000+200*r.IntN(20))
				n, wrong, err := drain(rows, err, set, sizeOf(set))
				if !w.read(ctx, fmt.Sprintf("caller %d of %s", i, h.name), n, wrong, err) && i%2 == 0 {
					left.Add(1)
				}
			})
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(2 * patience): // which is for ever
			w.hang(fmt.Sprintf("the callers from %d return", from))
		}
		w.hurt.Add(1)
	}
	w.report.Set("callers", callers)
	w.report.Set("left", left.Load())
	if left.Load() == 0 {
		t.Error("nobody left: nothing was shown")
	}
	w.finish()
}

// TestAbsentReader has callers that claim the live rows of large results and do not
// read on, or stop in the middle. The others go on, and the slow ones get their
// exact rows whenever they read them.
func TestAbsentReader(t *testing.T) {
	w := newWorld(t, pgtest.Shared(t), "slow and absent readers of live rows")
	for _, h := range []struct{ name, params string }{
		{"cap", "flight_max_result=16kB"},
		{"memory", "flight_max_result=1MB&flight_memory=64kB"},
		{"transaction", "flight_guard=transaction&flight_max_result=16kB"},
	} {
		db, err := flightpg.OpenDB(with(w.direct, h.params+"&application_name=faults"), flightpg.Config{})
		if err != nil {
			t.Fatal(err)
		}
		w.add(&handle{name: h.name, db: db, fresh: 16})
	}
	w.start(readers/3, writers/4)
	type absent struct {
		set    int64
		read   int64
		rows   *sql.Rows
		cancel context.CancelFunc
	}
	next := func(a *absent, n int64) (int64, string, error) {
		var bad error
		return judgeRows(a.set, n, func(r *row) bool {
			if bad == nil && a.rows.Next() {
				bad = a.rows.Scan(&r.set, &r.idx, &r.total, &r.pad, &r.sum)
				r.idx -= a.read // as it counts from 0
				if bad == nil && r.sum == (&row{r.set, r.idx + a.read, r.total, r.pad, 0}).checksum() {
					r.sum = r.checksum()
				}
				return bad == nil
			}
			return false
		}, func() error {
			if bad != nil {
				return bad
			}
			return a.rows.Err()
		})
	}
	absents, lates := 0, 0
	w.rounds(battery.Quick(1, battery.N(2, 30)), func(r *rand.Rand) {
		var held []*absent
		for i, h := range w.handles {
			for range 2 {
				a := &absent{set: 21 + r.Int64N(2)}
				ctx, cancel := context.WithCancel(context.Background())
				a.cancel = cancel
				defer cancel()
				var err error
				if a.rows, err = h.db.QueryContext(ctx, fmt.Sprintf("%s /* %d %d */", readSet, i, r.Uint64()), a.set); err != nil {
					w.failed(ctx, "an absent reader", err)
					continue
				}
				n := r.Int64N(500)
				got, wrong, err := next(a, n)
				if wrong != "" || err != nil || got != n {
					w.violation("an absent reader's first rows: %d, %s %v", got, wrong, err)
				}
				a.read = got
				held = append(held, a)
				absents++
			}
		}
		// Everybody goes on, and on the same handles.
		w.progress(50, patience)
		w.recovered()
		for _, a := range held {
			switch r.IntN(3) {
			case 0: // it reads on
				rest := sizeOf(a.set) - a.read
				got, wrong, err := next(a, rest)
				w.read(context.Background(), "a late reader", got, wrong, err)
				if wrong == "" && err == nil && got != rest {
					w.violation("a late reader has %d rows of %d", got, rest)
				}
				if a.rows.Next() {
					w.violation("a late reader has more rows than there are")
				}
				if err := a.rows.Err(); err != nil {
					w.failed(context.Background(), "a late reader", err)
				}
				lates++
			case 1: // it closes them
				if err := a.rows.Close(); err != nil {
					w.failed(context.Background(), "Close of an absent reader", err)
				}
			default: // its context ends, and Rows end with it
				a.cancel()
			}
			_ = a.rows.Close()
		}
	})
	w.report.Set("absent readers", absents)
	w.report.Set("read late", lates)
	w.finish()
}

// TestCloseInTheMiddle closes the handles while all is under way.
func TestCloseInTheMiddle(t *testing.T) {
	w := newWorld(t, pgtest.Shared(t), "db.Close in the middle of everything",
		"handle closed", badConn+lasting, "connection done", "transaction done", "closed")
	p, dsn := newProxy(t, w.direct)
	for round := range battery.Quick(3, battery.N(6, 150)) {
		r := battery.Rand(w.seed, 10+round)
		w.handles = nil
		w.open(dsn)
		w.stopping = make(chan struct{})
		w.stopLoad = sync.OnceFunc(func() { close(w.stopping) })
		var remove func()
		if round%3 == 2 {
			remove = p.add("latency", "downstream", 0.5, map[string]any{"latency": 5})
		}
		w.start(readers, writers)
		if round == 0 {
			w.shares()
		}
		w.progress(r.Int64N(battery.N[int64](100, 400)), patience)
		var wg sync.WaitGroup
		for _, h := range w.handles {
			wg.Go(func() { _ = h.db.Close() }) // its error is of a connection under way
		}
		closed := make(chan struct{})
		go func() { wg.Wait(); close(closed) }()
		select {
		case <-closed:
		case <-time.After(patience): // which is for ever
			w.hang("Close returns")
		}
		w.progress(50, time.Second)
		w.stopLoad()
		w.loading.Wait()
		if remove != nil {
			remove()
		}
		for _, h := range w.handles {
			w.until(h.name+": nothing flies after Close", func() bool {
				s := flightpg.ReadStats(h.db)
				return s.Flying == 0 && s.Waiting == 0 && s.BufferedBytes == 0 && s.FlightBackends == 0 && s.SessionBackends == 0
			})
			s := flightpg.ReadStats(h.db)
			w.past.Flights, w.past.Joins = w.past.Flights+s.Flights, w.past.Joins+s.Joins
		}
		w.gone()
	}
	w.handles = nil // their figures are in the sum
	w.finish(p.Stop)
}
