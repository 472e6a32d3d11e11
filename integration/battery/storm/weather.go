package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// weather is something that happens to a server or a network. It happens to both
// sides at the same moment.
type weather struct {
	name string
	do   func(st *storm, ctx context.Context, rng *rand.Rand)
}

// Migrations name the schema: some connections have another search_path.
var weathers = []weather{
	{"ADD or DROP COLUMN", func(st *storm, ctx context.Context, rng *rand.Rand) {
		st.migrate(ctx, rng, func(s *side) string {
			if s.column {
				return `ALTER TABLE public.items DROP COLUMN IF EXISTS extra`
			}
			return `ALTER TABLE public.items ADD COLUMN IF NOT EXISTS extra text NOT NULL DEFAULT 'added'`
		}, func(s *side) { s.column = !s.column })
	}},
	{"int to bigint and back", func(st *storm, ctx context.Context, rng *rand.Rand) {
		st.migrate(ctx, rng, func(s *side) string {
			return `ALTER TABLE public.items ALTER COLUMN n TYPE ` + either(s.bigint, "int", "bigint")
		}, func(s *side) { s.bigint = !s.bigint })
	}},
	{"timestamp to timestamptz and back", func(st *storm, ctx context.Context, rng *rand.Rand) {
		st.migrate(ctx, rng, func(s *side) string {
			return `ALTER TABLE public.orders ALTER COLUMN at TYPE ` + either(s.tz, "timestamp", "timestamptz") + ` USING at AT TIME ZONE 'UTC'`
		}, func(s *side) { s.tz = !s.tz })
	}},
	{"TRUNCATE and refill", (*storm).refill},
	{"LOCK TABLE b, then a", (*storm).lock},
	{"CREATE INDEX", func(st *storm, ctx context.Context, rng *rand.Rand) {
		st.migrate(ctx, rng, func(s *side) string {
			return fmt.Sprintf(`DROP INDEX IF EXISTS public.by_body_%d; CREATE INDEX by_body_%d ON public.logs (body)`, s.indexes, s.indexes+1)
		}, func(s *side) { s.indexes++ })
	}},
	{"VACUUM FULL", func(st *storm, ctx context.Context, _ *rand.Rand) {
		st.both(ctx, "VACUUM FULL", func(ctx context.Context, s *side) error {
			return s.migrator(ctx, func(conn *pgx.Conn) error {
				if _, err := conn.Exec(ctx, `SET lock_timeout = '5s'`); err != nil {
					return err
				}
				_, err := conn.Exec(ctx, `VACUUM FULL public.logs`)
				return err
			})
		})
	}},
	{"ADD VALUE to an enum", func(st *storm, ctx context.Context, rng *rand.Rand) {
		st.migrate(ctx, rng, func(s *side) string {
			return fmt.Sprintf(`ALTER TYPE public.mood ADD VALUE IF NOT EXISTS 'mood %d'`, s.labels)
		}, func(s *side) { s.labels++ })
	}},
	{"DROP and CREATE TYPE", func(st *storm, ctx context.Context, rng *rand.Rand) {
		st.migrate(ctx, rng, func(*side) string {
			return `ALTER TABLE public.moods DROP COLUMN t; DROP TYPE public.tint; CREATE TYPE public.tint AS ENUM ('red', 'blue');
				ALTER TABLE public.moods ADD COLUMN t public.tint; UPDATE public.moods SET t = (enum_range(NULL::public.tint))[1 + id % 2]; ALTER TABLE public.moods ALTER COLUMN t SET NOT NULL`
		}, nil)
	}},
	{"functions changed", func(st *storm, ctx context.Context, rng *rand.Rand) {
		st.migrate(ctx, rng, func(s *side) string {
			return fmt.Sprintf(`
				CREATE OR REPLACE FUNCTION public.limits() RETURNS text LANGUAGE plpgsql STABLE AS $$ DECLARE n int := %d; BEGIN
					RETURN concat_ws(',', current_user, current_setting('TimeZone'), current_setting('lock_timeout'), current_setting('statement_timeout'));
				END $$;
				DROP FUNCTION public.in_zone(int);
				CREATE FUNCTION public.in_zone(k int) RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN
					PERFORM set_config('TimeZone', 'America/Caracas', true);
					RETURN k || ' ' || current_setting('TimeZone');
				END $$`, s.bodies)
		}, func(s *side) { s.bodies++ })
	}},
	{"another search_path", func(st *storm, ctx context.Context, rng *rand.Rand) {
		st.searchPath(ctx, "SET search_path = alt, public")
		st.hold(rng, 200*time.Millisecond)
		st.searchPath(ctx, "RESET search_path")
	}},
	{"backends terminated", func(st *storm, ctx context.Context, rng *rand.Rand) {
		st.terminate(ctx, 0.2+0.8*rng.Float64())
	}},
	{"network stalls", func(st *storm, _ context.Context, rng *rand.Rand) {
		var release [sides]func()
		for i, s := range st.sides {
			release[i] = s.proxy.stall()
		}
		st.hold(rng, 300*time.Millisecond)
		for _, f := range release {
			f()
		}
	}},
	{"connections never answered", func(st *storm, ctx context.Context, rng *rand.Rand) {
		closing, dead := rng.IntN(2) == 0, rng.IntN(2) == 0
		var answer [sides]func()
		var end [sides]func(closing bool)
		for i, s := range st.sides {
			answer[i], end[i] = s.proxy.silence()
		}
		// Otherwise nobody would open any.
		st.terminate(ctx, 0.3+0.7*rng.Float64())
		st.hold(rng, 200*time.Millisecond)
		if dead {
			// New ones are answered, those that wait already are not.
			for _, f := range answer {
				f()
			}
			st.hold(rng, 200*time.Millisecond)
		}
		for _, f := range end {
			f(closing)
		}
	}},
	{"connections reset", func(st *storm, _ context.Context, rng *rand.Rand) {
		for n := 1 + rng.IntN(2); n > 0; n-- {
			for _, s := range st.sides {
				s.proxy.reset()
			}
			time.Sleep(50 * time.Millisecond) // some are open again
		}
	}},
	{"slow network, small buffers", func(st *storm, _ context.Context, rng *rand.Rand) {
		for _, s := range st.sides {
			s.proxy.setSlow(true)
		}
		st.hold(rng, 200*time.Millisecond)
		for _, s := range st.sides {
			s.proxy.setSlow(false)
		}
	}},
}

func either(first bool, a, b string) string {
	if first {
		return a
	}
	return b
}

// hold lets a weather last: from a tenth of a second to two, or in the short form up to
// twice as long as is said.
func (st *storm) hold(rng *rand.Rand, short time.Duration) {
	d := 100*time.Millisecond + time.Duration(rng.Int64N(int64(1900*time.Millisecond)))
	if st.short {
		d = short + time.Duration(rng.Int64N(int64(short)))
	}
	time.Sleep(d) // how long a fault lasts; nothing hangs on it
}

// both does something on both sides at the same moment, and counts it as a migration.
// One that lost its connection is done again: that is the weather's doing.
func (st *storm) both(ctx context.Context, name string, do func(ctx context.Context, s *side) error) {
	var wg sync.WaitGroup
	for _, s := range st.sides {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
			defer cancel()
			begin := time.Now()
			err := do(ctx, s)
			for tries := 0; tries < 100 && err != nil && classOf(kindOf(err, false)) == "connection lost"; tries++ {
				err = do(ctx, s)
			}
			s.book.migrated(name, time.Since(begin), err)
		})
	}
	wg.Wait()
}

// migrate runs statements in a transaction: through the side's own handle, or past
// it, as another process does.
func (st *storm) migrate(ctx context.Context, rng *rand.Rand, statements func(*side) string, done func(*side)) {
	own := rng.IntN(2) == 0
	st.both(ctx, st.name(), func(ctx context.Context, s *side) error {
		text := statements(s)
		err := s.inTransaction(ctx, own, func(exec func(string) error) error { return exec(text) })
		if err == nil && done != nil {
			done(s)
		}
		return err
	})
}

// inTransaction calls f with what executes a text in a transaction that does not wait
// for ever for a lock.
func (s *side) inTransaction(ctx context.Context, own bool, f func(exec func(string) error) error) error {
	const limit = `SET LOCAL lock_timeout = '5s'`
	if own {
		tx, err := s.db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		exec := func(text string) error {
			_, err := tx.ExecContext(ctx, text)
			return err
		}
		if err := exec(limit); err != nil {
			return err
		}
		if err := f(exec); err != nil {
			return err
		}
		return tx.Commit()
	}
	return s.migrator(ctx, func(conn *pgx.Conn) error {
		exec := func(text string) error {
			_, err := conn.Exec(ctx, text)
			return err
		}
		for _, text := range []string{`BEGIN`, limit} {
			if err := exec(text); err != nil {
				return err
			}
		}
		if err := f(exec); err != nil {
			return err // the connection is closed, the transaction with it
		}
		return exec(`COMMIT`)
	})
}

// refill empties a table and fills it again, with rows of a new version, and meanwhile
// reads another table: in its transaction, and beside it, through the handle. Who
// reads for it may not wait for who waits for it.
func (st *storm) refill(ctx context.Context, rng *rand.Rand) {
	k := rng.IntN(keys)
	pause := time.Duration(rng.Int64N(int64(80 * time.Millisecond)))
	document := &texts[0]
	for i := range texts {
		if texts[i].name == "document" {
			document = &texts[i]
		}
	}
	st.both(ctx, st.name(), func(ctx context.Context, s *side) error {
		version := s.written.Load() + 1
		s.attempted.Store(version)
		err := s.inTransaction(ctx, true, func(exec func(string) error) error {
			if err := exec(`TRUNCATE public.refill`); err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(ctx, patience)
			defer cancel()
			for range 10 {
				time.Sleep(pause / 10) // readers come to wait
				if _, err := document.ask(ctx, s, document.query, k); err != nil {
					return fmt.Errorf("read beside the transaction: %w", err)
				}
			}
			return exec(fmt.Sprintf(`INSERT INTO public.refill SELECT id, %[1]d, public.hash('refill', id, %[1]d) FROM generate_series(0, %[2]d - 1) id; SELECT count(*) FROM public.logs`, version, keys))
		})
		if err == nil {
			s.written.Store(version)
		}
		return err
	})
}

// lock takes two tables for itself, one after the other, for a while.
func (st *storm) lock(ctx context.Context, rng *rand.Rand) {
	before := 10*time.Millisecond + time.Duration(rng.Int64N(int64(60*time.Millisecond)))
	most := 1400 * time.Millisecond
	if st.short {
		most = 200 * time.Millisecond
	}
	hold := 40*time.Millisecond + time.Duration(rng.Int64N(int64(most)))
	st.both(ctx, st.name(), func(ctx context.Context, s *side) error {
		return s.inTransaction(ctx, false, func(exec func(string) error) error {
			if err := exec(`LOCK TABLE public.lockb IN ACCESS EXCLUSIVE MODE`); err != nil {
				return err
			}
			time.Sleep(before) // readers of it come to wait
			if err := exec(`LOCK TABLE public.locka IN ACCESS EXCLUSIVE MODE`); err != nil {
				return err
			}
			time.Sleep(hold) // how long the lock lasts
			return nil
		})
	})
}

// searchPath changes what the roles' new connections have, and ends a part of those
// that there are.
func (st *storm) searchPath(ctx context.Context, change string) {
	st.administer(ctx, func(conn *pgx.Conn) error {
		for _, s := range st.sides {
			if _, err := conn.Exec(ctx, `ALTER ROLE `+s.role+` `+change); err != nil {
				return err
			}
		}
		return nil
	})
	st.terminate(ctx, 0.5)
}

// terminate ends a part of both sides' backends.
func (st *storm) terminate(ctx context.Context, part float64) {
	st.administer(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM (
			SELECT pid, row_number() OVER (PARTITION BY usename ORDER BY random()) AS n, count(*) OVER (PARTITION BY usename) AS of
			FROM pg_stat_activity WHERE usename IN ($1, $2) AND application_name <> $3) AS backends
			WHERE n <= ceil(of * $4::float8)`, st.sides[flight].role, st.sides[plain].role, adminName, part)
		return err
	})
}

// administer does something to the server. That it cannot is the storm's own failure.
func (st *storm) administer(ctx context.Context, f func(*pgx.Conn) error) {
	if err := st.admin(ctx, f); err != nil && ctx.Err() == nil {
		st.fail(fmt.Errorf("storm: %s: %w", st.name(), err))
	}
}
