// Package river tests flightpg under River, a job queue in PostgreSQL, by its
// driver for database/sql.
package river_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"testing"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverdatabasesql"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/riverqueue/river/rivertype"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/await"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

func TestMain(m *testing.M) { stack.Main(m) }

// payment is a job that must be done once.
type payment struct {
	Account int    `json:"account"`
	Way     string `json:"way"`
}

func (payment) Kind() string { return "payment" }

// payer notes in the ledger that it did a job. Some notes are in one transaction
// with the job's completion, the others on their own, and jobs of the way "flaky"
// fail at first.
type payer struct {
	river.WorkerDefaults[payment]
	db *sql.DB
}

func (p *payer) Work(ctx context.Context, job *river.Job[payment]) error {
	const note = "INSERT INTO ledger (job, account, way) VALUES ($1, $2, $3)"
	// An ordinary read, of what every job reads.
	var rate int
	if err := p.db.QueryRowContext(ctx, "SELECT rate FROM rates WHERE id = $1", 1).Scan(&rate); err != nil || rate != 7 {
		return fmt.Errorf("rate %d, %w", rate, err)
	}
	if job.Args.Way == "flaky" && job.Attempt == 1 {
		return errors.New("not now")
	}
	if job.Args.Account%2 == 0 {
		_, err := p.db.ExecContext(ctx, note, job.ID, job.Args.Account, job.Args.Way)
		return err
	}
	tx, err := p.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if _, err := tx.ExecContext(ctx, note, job.ID, job.Args.Account, job.Args.Way); err != nil {
		return err
	}
	if _, err := river.JobCompleteTx[*riverdatabasesql.Driver](ctx, tx, job); err != nil {
		return err
	}
	return tx.Commit()
}

// atOnce tries failed jobs again without delay.
type atOnce struct{}

func (atOnce) NextRetry(*rivertype.JobRow) time.Time { return time.Now() }

// open makes River's tables and the application's. River's migrations contain a
// DO block, whose session flightpg leaves to the connection that ran it: they
// get a handle of their own.
func open(e *stack.Env) *sql.DB {
	e.Helper()
	migrate(e, e.Open())
	return e.Open()
}

func migrate(e *stack.Env, db *sql.DB) {
	e.Helper()
	migrator, err := rivermigrate.New(riverdatabasesql.New(db), nil)
	if err != nil {
		e.Fatal(err)
	}
	if _, err := migrator.Migrate(e.Context(), rivermigrate.DirectionUp, nil); err != nil {
		e.Fatal(err)
	}
	e.SQL(`CREATE TABLE ledger (job bigint NOT NULL, account int NOT NULL, way text NOT NULL);
		CREATE TABLE rates (id int PRIMARY KEY, rate int NOT NULL); INSERT INTO rates VALUES (1, 7)`)
}

// client is one process of the application.
func client(e *stack.Env, db *sql.DB, workers int) *river.Client[*sql.Tx] {
	e.Helper()
	config := &river.Config{
		Logger:      slog.New(slog.NewTextHandler(io.Discard, nil)),
		RetryPolicy: atOnce{},
	}
	if workers > 0 {
		config.PollOnly = true
		config.FetchCooldown, config.FetchPollInterval = 5*time.Millisecond, 10*time.Millisecond
		config.Queues = map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}}
		config.Workers = river.NewWorkers()
		river.AddWorker(config.Workers, &payer{db: db})
	}
	c, err := river.NewClient(riverdatabasesql.New(db), config)
	if err != nil {
		e.Fatal(err)
	}
	return c
}

func start(e *stack.Env, c *river.Client[*sql.Tx]) (stop func()) {
	e.Helper()
	if err := c.Start(e.Context()); err != nil {
		e.Fatal(err)
	}
	return func() {
		e.Helper()
		if err := c.Stop(context.WithoutCancel(e.Context())); err != nil {
			e.Error(err)
		}
	}
}

// rates is an ordinary read.
func rates(db *sql.DB) func(ctx context.Context) error {
	return func(ctx context.Context) error {
		var rate int
		return db.QueryRowContext(ctx, "SELECT rate FROM rates WHERE id = $1", 1).Scan(&rate)
	}
}

// insertAll inserts 200 jobs in every way that River has, by many callers at
// once, and tries to insert some more that must not be there.
func insertAll(e *stack.Env, db *sql.DB, c *river.Client[*sql.Tx]) {
	e.Helper()
	e.Concurrently(20, func(ctx context.Context, i int) error {
		job := func(n int, way string) payment { return payment{Account: 10*i + n, Way: way} }
		for n := range 4 {
			if _, err := c.Insert(ctx, job(n, "single"), nil); err != nil {
				return err
			}
		}
		if _, err := c.InsertMany(ctx, []river.InsertManyParams{{Args: job(4, "many")}, {Args: job(5, "many")}}); err != nil {
			return err
		}
		if _, err := c.InsertManyFast(ctx, []river.InsertManyParams{{Args: job(6, "fast")}, {Args: job(7, "flaky")}}); err != nil {
			return err
		}
		for _, commit := range []bool{true, false} {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			if _, err := c.InsertTx(ctx, tx, job(8, "tx"), nil); err != nil {
				return err
			}
			if commit {
				err = tx.Commit()
			} else {
				err = tx.Rollback()
			}
			if err != nil {
				return err
			}
		}
		// All callers want one and the same job for ten of them.
		unique := &river.InsertOpts{UniqueOpts: river.UniqueOpts{ByArgs: true}}
		_, err := c.Insert(ctx, payment{Account: i / 10, Way: "unique"}, unique)
		return err
	})
	// 20 × (4 + 2 + 2 + 1), and 2 unique ones. Up to 200:
	for n := range 18 {
		if _, err := c.Insert(e.Context(), payment{Account: n, Way: "more"}, nil); err != nil {
			e.Fatal(err)
		}
	}
}

const jobs = 200

// TestEveryJobOnce lets three clients with ten workers each, on handles of
// their own, work 200 jobs that come meanwhile.
func TestEveryJobOnce(t *testing.T) {
	type result struct {
		Ledger map[string]int // jobs done, by the way they came
		Jobs   map[string]int // as River has them, by way, state and attempts
	}
	for _, others := range []string{stack.Flightpg, stack.Pgx} {
		t.Run("others="+others, func(t *testing.T) {
			stack.Compare(t, func(e *stack.Env) result {
				db, conn := open(e), e.Connect()
				inserter := client(e, db, 0)
				handles := []*sql.DB{db}
				for range 2 {
					other, err := sql.Open(others, e.DSN)
					if err != nil {
						e.Fatal(err)
					}
					defer other.Close()
					handles = append(handles, other)
				}
				for _, h := range handles {
					defer start(e, client(e, h, 10))()
				}
				insertAll(e, db, inserter)
				await.Until(e, "all jobs are done", func() bool {
					return await.Value[int](e, conn, "SELECT count(*) FROM river_job WHERE state <> 'completed'") == 0
				})

				type line struct {
					Job int64
					Way string
				}
				r := result{make(map[string]int), make(map[string]int)}
				times := make(map[int64]int)
				for _, l := range await.Rows[line](e, conn, "SELECT job, way FROM ledger") {
					times[l.Job]++
					r.Ledger[l.Way]++
				}
				for job, n := range times {
					if n != 1 {
						e.Errorf("job %d was done %d times", job, n)
					}
				}
				if len(times) != jobs {
					e.Errorf("%d jobs were done; want %d", len(times), jobs)
				}
				type row struct {
					Key string
					N   int
				}
				for _, s := range await.Rows[row](e, conn, `SELECT (args ->> 'way') || ' ' || state || ' ' || attempt, count(*)
					FROM river_job GROUP BY 1`) {
					r.Jobs[s.Key] = s.N
				}
				for i, h := range handles {
					if s := flightpg.ReadStats(h); s.Flights > 0 {
						e.Logf("handle %d: flights %d, joins %d, fenced %d, fences %d, execs %d, bypasses %v, %d sessions",
							i, s.Flights, s.Joins, s.Fenced, s.Fences, s.Execs, s.Bypasses, s.SessionBackends)
						if n := s.Bypasses[flightpg.ReasonSession]; n != 0 {
							e.Errorf("%d reads met a connection with a session of its own; want none", n)
						}
					}
				}
				if want := map[string]int{"single": 80, "many": 40, "fast": 20, "flaky": 20, "tx": 20, "unique": 2, "more": 18}; !maps.Equal(r.Ledger, want) {
					e.Errorf("the ledger has %v; want %v", r.Ledger, want)
				}
				return r
			})
		})
	}
}

// TestShared lets 50 callers look at the same job and at the queue, as a
// dashboard does.
func TestShared(t *testing.T) {
	stack.Each(t, func(e *stack.Env) {
		db := open(e)
		c := client(e, db, 0)
		inserted, err := c.Insert(e.Context(), payment{Account: 1, Way: "single"}, &river.InsertOpts{Tags: []string{"aaa", "bbb"}})
		if err != nil {
			e.Fatal(err)
		}
		e.SQL(`INSERT INTO river_queue (name, created_at, updated_at, metadata) VALUES ('default', now(), now(), '{}')`)
		for _, tc := range []struct {
			name  string
			read  func(ctx context.Context) error
			table string
		}{
			{"JobGet", func(ctx context.Context) error {
				job, err := c.JobGet(ctx, inserted.Job.ID)
				if err == nil && (!slices.Equal(job.Tags, []string{"aaa", "bbb"}) || !job.CreatedAt.Equal(inserted.Job.CreatedAt)) {
					err = fmt.Errorf("job %+v", job)
				}
				return err
			}, "river_job"},
			{"JobList", func(ctx context.Context) error { // its arguments are pq.Arrays
				l, err := c.JobList(ctx, river.NewJobListParams().Kinds("payment").First(10))
				if err == nil && len(l.Jobs) != 1 {
					err = fmt.Errorf("%d jobs", len(l.Jobs))
				}
				return err
			}, "river_job"},
			{"QueueGet", func(ctx context.Context) error { _, err := c.QueueGet(ctx, "default"); return err }, "river_queue"},
			{"QueueList", func(ctx context.Context) error { _, err := c.QueueList(ctx, nil); return err }, "river_queue"},
		} {
			e.Run(tc.name, func(t *testing.T) {
				sub := *e
				sub.T = t
				sub.Shared(db, 50, tc.read, tc.table)
			})
		}
	})
}

// TestNotShared asks for the verdicts on what River runs beside reads, in
// short: its texts are not exported.
func TestNotShared(t *testing.T) {
	e := stack.New(t, stack.Flightpg)
	db := open(e)
	for query, why := range map[string]flightpg.Reason{
		`WITH locked AS (SELECT id FROM river_job WHERE state = 'available' LIMIT $1 FOR UPDATE SKIP LOCKED)
			UPDATE river_job SET state = 'running' FROM locked WHERE river_job.id = locked.id RETURNING river_job.id`: flightpg.ReasonRowLock,
		"SELECT id FROM river_job FOR UPDATE SKIP LOCKED":        flightpg.ReasonRowLock,
		"SELECT pg_notify('river_insert', '{}')":                 flightpg.ReasonVolatileFunction,
		"SELECT pg_advisory_xact_lock(1)":                        flightpg.ReasonVolatileFunction,
		"LISTEN river_insert":                                    flightpg.ReasonNotRead,
		"SELECT * FROM river_job WHERE id = $1":                  flightpg.ReasonNone,
		"SELECT river_job_state_in_bitmask($1, 'available')":     flightpg.ReasonNone,
		"INSERT INTO river_leader (leader_id) VALUES ($1)":       flightpg.ReasonWrite,
		"DELETE FROM river_job WHERE id = $1 RETURNING *":        flightpg.ReasonWrite,
		"SELECT current_schema(), count(*) FROM river_migration": flightpg.ReasonNone,
	} {
		e.Explain(db, query, why)
	}
}

// TestReadYourWrites inserts, cancels and deletes jobs by many callers, each of
// whom looks at once: at the job, and at the list of all jobs, which is the same
// read for everybody.
func TestReadYourWrites(t *testing.T) {
	stack.Each(t, func(e *stack.Env) {
		db := open(e)
		c := client(e, db, 0)
		// look fails unless the job has the state, both ways; "" is for none.
		look := func(ctx context.Context, id int64, want rivertype.JobState) error {
			var state rivertype.JobState
			job, err := c.JobGet(ctx, id)
			if err == nil {
				state = job.State
			} else if !errors.Is(err, river.ErrNotFound) {
				return err
			}
			if state != want {
				return fmt.Errorf("job %d is %q; want %q", id, state, want)
			}
			list, err := c.JobList(ctx, river.NewJobListParams().Kinds("payment").First(10_000))
			if err != nil {
				return err
			}
			state = ""
			for _, job := range list.Jobs {
				if job.ID == id {
					state = job.State
				}
			}
			if state != want {
				return fmt.Errorf("job %d is %q in the list; want %q", id, state, want)
			}
			return nil
		}
		e.Concurrently(16, func(ctx context.Context, i int) error {
			for range 20 {
				r, err := c.Insert(ctx, payment{Account: i}, nil)
				if err != nil {
					return err
				}
				if err := look(ctx, r.Job.ID, rivertype.JobStateAvailable); err != nil {
					return err
				}
				if _, err := c.JobCancel(ctx, r.Job.ID); err != nil {
					return err
				}
				if err := look(ctx, r.Job.ID, rivertype.JobStateCancelled); err != nil {
					return err
				}
				if _, err := c.JobDelete(ctx, r.Job.ID); err != nil {
					return err
				}
				if err := look(ctx, r.Job.ID, ""); err != nil {
					return err
				}
			}
			return nil
		})
		if s := flightpg.ReadStats(db); e.Driver == stack.Flightpg && s.Joins == 0 {
			e.Errorf("%+v; want reads that joined", s)
		}
	})
}

// TestNotify listens beside the driver for what River sends in the transaction
// of an insert: nothing if it is rolled back.
func TestNotify(t *testing.T) {
	stack.Compare(t, func(e *stack.Env) (heard []string) {
		db, conn := open(e), e.Connect()
		c := client(e, db, 0)
		if _, err := conn.Exec(e.Context(), `LISTEN "public.river_insert"`); err != nil {
			e.Fatal(err)
		}
		for i, commit := range []bool{false, true} {
			tx, err := db.BeginTx(e.Context(), nil)
			if err != nil {
				e.Fatal(err)
			}
			defer tx.Rollback()
			// A queue of its own each time: River limits how often it tells of one.
			opts := &river.InsertOpts{Queue: fmt.Sprintf("queue_%d", i)}
			if _, err := c.InsertTx(e.Context(), tx, payment{}, opts); err != nil {
				e.Fatal(err)
			}
			if commit {
				if err := tx.Commit(); err != nil {
					e.Fatal(err)
				}
			} else if err := tx.Rollback(); err != nil {
				e.Fatal(err)
			}
		}
		n, err := conn.WaitForNotification(e.Context())
		if err != nil {
			e.Fatal(err)
		}
		if want := `{"queue": "queue_1"}`; n.Payload != want {
			e.Errorf("heard %s; want %s", n.Payload, want)
		}
		return []string{n.Channel, n.Payload}
	})
}

// TestAfterwards works jobs and then reads: no connection must have been left
// with a session of its own.
func TestAfterwards(t *testing.T) {
	stack.Each(t, func(e *stack.Env) {
		db, conn := open(e), e.Connect()
		c := client(e, db, 10)
		stop := start(e, c)
		var many []river.InsertManyParams
		for i := range 50 {
			many = append(many, river.InsertManyParams{Args: payment{Account: i}})
		}
		if _, err := c.InsertMany(e.Context(), many); err != nil {
			e.Fatal(err)
		}
		await.Until(e, "all jobs are done", func() bool {
			return await.Value[int](e, conn, "SELECT count(*) FROM river_job WHERE state <> 'completed'") == 0
		})
		// While it polls for more: each poll may write, and ends what readers
		// of the moment can join. They share all the same.
		e.Beside = true
		ev := e.Storm(db, 50, rates(db), "rates")
		if n := ev.Executions[0]; e.Driver == stack.Flightpg && n > 2 {
			e.Errorf("%d executions for 50 callers beside a polling client; want at most flight_width", n)
		}
		stop()
		if n := await.Locks(e, conn); n != 0 {
			e.Errorf("%d advisory locks are left", n)
		}
		e.Shared(db, 50, rates(db), "rates")
	})
}

// TestFirstInsert inserts through a handle that has read nothing yet. What
// River runs calls a function of River's own, of which a handle that has not
// loaded the catalog knows nothing; when it does, the connection is as good as
// any.
func TestFirstInsert(t *testing.T) {
	e := stack.New(t, stack.Flightpg)
	migrate(e, e.Open())
	db := e.Open()
	if _, err := client(e, db, 0).Insert(t.Context(), payment{}, nil); err != nil {
		t.Fatal(err)
	}
	e.Shared(db, 50, rates(db), "rates")
}
