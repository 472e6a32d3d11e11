package main

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// measure lets all callers ask through one driver, in several rounds.
func measure(ctx context.Context, s *shop, cfg config, name string, open opener, p *progress) (sd side, err error) {
	app := "stampede-" + name
	db, err := open(withParams(s.dsn, "application_name", app), cfg)
	if err != nil {
		return sd, err
	}
	defer db.Close()
	if err := warm(ctx, db, cfg.pgxConns); err != nil {
		return sd, fmt.Errorf("%s: %w", name, err)
	}
	before, err := s.executions(ctx, appAlone)
	if err != nil {
		return sd, err
	}
	sm, err := s.sample(ctx, app)
	if err != nil {
		return sd, err
	}
	defer sm.stop()

	query := s.query()
	ask := func() error {
		var got string
		if err := db.QueryRowContext(ctx, query, s.upTo).Scan(&got); err != nil {
			return err
		}
		if got != s.want {
			return fmt.Errorf("the answer was %s; want %s", got, s.want)
		}
		return nil
	}
	var all, alone []time.Duration
	var elapsed time.Duration
	for round := range cfg.rounds {
		took, err := s.askAlone(ctx, 3)
		if err != nil {
			return sd, err
		}
		alone = append(alone, took...)
		var answered atomic.Int64
		begin := time.Now()
		stop := p.watch(func() string {
			return fmt.Sprintf("%-8s  round %d of %d: %s of %s calls answered after %s", name, round+1, cfg.rounds,
				grouped(answered.Load()), grouped(int64(cfg.callers)), shortDuration(time.Since(begin)))
		})
		middle := time.AfterFunc(cfg.query/2, sm.poke)
		r := stampede(cfg.callers, ask, &answered)
		middle.Stop()
		stop()
		if ctx.Err() != nil {
			return sd, ctx.Err()
		}
		all = append(all, r.latencies...)
		elapsed += r.elapsed
		sd.Calls += cfg.callers
		sd.Errors += r.errors
		if r.err != nil {
			p.say(fmt.Sprintf("%s: %d calls failed, as with: %v", name, r.errors, r.err))
		}
	}
	if sd.BackendsPeak, err = sm.stop(); err != nil {
		return sd, err
	}
	if err := db.Close(); err != nil {
		return sd, err
	}
	after, err := s.executions(ctx, app)
	if err != nil {
		return sd, err
	}
	sd.Executions = after - before
	slices.Sort(all)
	sd.QueryMS = milliseconds(median(alone))
	sd.P50 = milliseconds(percentile(all, 50))
	sd.P99 = milliseconds(percentile(all, 99))
	sd.CallsPerS = rounded(float64(len(all)) / elapsed.Seconds())
	return sd, nil
}

// warm opens the connections that the pool may have, where the driver opens
// any: they are not what is measured.
func warm(ctx context.Context, db *sql.DB, n int) error {
	for range n {
		conn, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer conn.Close() // all are out at a time, so that they are n
		var one int
		if err := conn.QueryRowContext(ctx, "select 1").Scan(&one); err != nil {
			return err
		}
	}
	return nil
}

// outcome is what one round measured.
type outcome struct {
	latencies []time.Duration // of the calls that were answered
	elapsed   time.Duration   // until the last one was
	errors    int
	err       error // the first
}

// stampede lets callers ask all at once: each is a goroutine that waits at a
// gate until all are there. It counts answers while they arrive.
func stampede(callers int, ask func() error, answered *atomic.Int64) outcome {
	var ready, end sync.WaitGroup
	var start time.Time // written before the gate opens
	gate := make(chan struct{})
	took := make([]time.Duration, callers)
	errs := make([]error, callers)
	ready.Add(callers)
	for i := range callers {
		end.Go(func() {
			ready.Done()
			<-gate
			errs[i] = ask()
			took[i] = time.Since(start)
			if errs[i] == nil {
				answered.Add(1)
			}
		})
	}
	ready.Wait()
	start = time.Now()
	close(gate)
	end.Wait()

	o := outcome{elapsed: time.Since(start)}
	for i, err := range errs {
		if err == nil {
			o.latencies = append(o.latencies, took[i])
			continue
		}
		o.errors++
		if o.err == nil {
			o.err = err
		}
	}
	return o
}
