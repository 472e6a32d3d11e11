package main

import (
	"context"
	"database/sql"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// writers is how many goroutines write. Each has a counter of its own, whose id
// is the writer's number; all share the counter 0.
const writers = 4

// longestRace bounds the race: a slow machine makes fewer writes.
const longestRace = 15 * time.Second

// raceResult says whether callers saw what they had committed.
type raceResult struct {
	Writes int64 `json:"writes"` // committed, and each read back at once
	Stale  int64 `json:"stale"`  // of these reads: older than the write before it
	Reads  int64 `json:"reads"`  // by the readers, meanwhile
	Errors int64 `json:"errors"`
}

// race lets writers increment counters through flightpg and read them back,
// while readers keep flights of the same reads in the air.
func race(ctx context.Context, s *shop, cfg config, p *progress) (raceResult, error) {
	var none raceResult
	if cfg.writes == 0 {
		return none, nil
	}
	_, err := s.conn.Exec(ctx, s.sql("insert into SHOP.counters select n, 0 from generate_series(0, $1::int) n"), writers)
	if err != nil {
		return none, err
	}
	db, err := openFlightpg(withParams(s.dsn, "application_name", "stampede-race"), cfg)
	if err != nil {
		return none, err
	}
	defer db.Close()

	r := &racer{s: s, db: db}
	// Some milliseconds long, so that writes are committed while it runs.
	r.upTo = max(1, int(float64(s.upTo)*2/float64(cfg.query.Milliseconds())))
	r.read = s.sql(`select value, (` + revenue + `) from SHOP.counters where id = $2`)
	stop := p.watch(func() string {
		return fmt.Sprintf("flightpg  reads racing with writes: %s of %s writes, %s reads, %s stale",
			grouped(r.writes.Load()), grouped(int64(cfg.writes)), grouped(r.reads.Load()), grouped(r.stale.Load()))
	})
	defer stop()

	readCtx, done := context.WithCancel(ctx)
	defer done()
	deadline := time.Now().Add(longestRace)
	var readGroup errgroup.Group
	for i := range cfg.readers {
		readGroup.Go(func() error { return r.keepReading(readCtx, i%(writers+1)) })
	}
	var writeGroup errgroup.Group
	for i := range writers {
		share := cfg.writes / writers
		if i < cfg.writes%writers {
			share++
		}
		writeGroup.Go(func() error { return r.write(ctx, i+1, share, deadline) })
	}
	err = writeGroup.Wait()
	done() // the readers'
	readErr := readGroup.Wait()
	if ctx.Err() != nil {
		return none, ctx.Err()
	}
	for _, err := range []error{err, readErr} {
		if err != nil {
			p.say("flightpg: a call failed: " + err.Error())
		}
	}
	return raceResult{r.writes.Load(), r.stale.Load(), r.reads.Load(), r.errors.Load()}, nil
}

type racer struct {
	s    *shop
	db   *sql.DB
	read string
	upTo int

	writes, reads, stale, errors atomic.Int64
}

// value reads a counter, as everybody does.
func (r *racer) value(ctx context.Context, id int) (v int64, err error) {
	var sum sql.NullString
	err = r.db.QueryRowContext(ctx, r.read, r.upTo, id).Scan(&v, &sum)
	return v, err
}

// keepReading reads one counter until the context ends.
func (r *racer) keepReading(ctx context.Context, id int) error {
	for {
		_, err := r.value(ctx, id)
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			r.errors.Add(1)
			return err
		}
		r.reads.Add(1)
	}
}

// write commits n increments, in the ways that there are, and checks after each
// that this caller sees it. It starts none after the deadline.
func (r *racer) write(ctx context.Context, own, n int, deadline time.Time) error {
	var ownValue int64
	for i := range n {
		if time.Now().After(deadline) {
			return nil
		}
		var id int
		var committed int64
		var err error
		switch i % 3 {
		case 0: // an Exec tells no value; nobody else writes this counter
			id = own
			_, err = r.db.ExecContext(ctx, r.s.sql("update SHOP.counters set value = value + 1 where id = $1"), id)
			ownValue++
			committed = ownValue
		case 1:
			committed, err = r.incrementInTx(ctx, id)
		case 2:
			err = r.db.QueryRowContext(ctx, r.s.sql(`
				insert into SHOP.counters as c values ($1, 1)
				on conflict (id) do update set value = c.value + 1 returning value`), id).Scan(&committed)
		}
		var seen int64
		if err == nil {
			r.writes.Add(1)
			seen, err = r.value(ctx, id)
		}
		if err != nil {
			r.errors.Add(1)
			return err
		}
		if seen < committed {
			r.stale.Add(1)
		}
	}
	return nil
}

func (r *racer) incrementInTx(ctx context.Context, id int) (v int64, err error) {
	tx, err := r.db.BeginTx(ctx, nil)
	if err != nil {
		return 0, err
	}
	defer tx.Rollback() // does nothing after Commit
	err = tx.QueryRowContext(ctx, r.s.sql("update SHOP.counters set value = value + 1 where id = $1 returning value"), id).Scan(&v)
	if err != nil {
		return 0, err
	}
	return v, tx.Commit()
}
