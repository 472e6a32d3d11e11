package integration

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// gate holds back every read of table gate, on the server: a lock that a
// transaction beside the driver under test takes and gives back.
type gate struct {
	t    *testing.T
	conn *pgx.Conn // holds the lock
	eye  *pgx.Conn // looks on: a transaction sees one state of pg_stat_activity
}

func newGate(t *testing.T, dsn string) *gate {
	t.Helper()
	g := &gate{t: t, conn: connect(t, dsn), eye: connect(t, dsn)}
	g.exec("CREATE TABLE IF NOT EXISTS gate AS SELECT 1 AS v")
	return g
}

func connect(t *testing.T, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(context.Background(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) })
	return conn
}

func (g *gate) exec(query string) {
	g.t.Helper()
	if _, err := g.conn.Exec(context.Background(), query); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gate) shut() {
	g.t.Helper()
	g.exec("BEGIN; LOCK TABLE gate IN ACCESS EXCLUSIVE MODE")
}
func (g *gate) open() { g.t.Helper(); g.exec("COMMIT") }

// waiting returns how many backends wait at the gate.
func (g *gate) waiting() (n int) {
	g.t.Helper()
	err := g.eye.QueryRow(context.Background(), `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND wait_event_type = 'Lock' AND pid <> pg_backend_pid()`).Scan(&n)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

// backends returns how many connections the database has beside the gate's.
func (g *gate) backends() (n int) {
	g.t.Helper()
	err := g.eye.QueryRow(context.Background(), `SELECT count(*) FROM pg_stat_activity
		WHERE datname = current_database() AND backend_type = 'client backend' AND pid NOT IN (pg_backend_pid(), $1)`, g.conn.PgConn().PID()).Scan(&n)
	if err != nil {
		g.t.Fatal(err)
	}
	return n
}

const gateQuery = "SELECT v FROM gate WHERE v = $1"

// until polls what the server or the figures say, for what no channel tells.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) { // nothing tells: polling
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 30 s", what)
		}
	}
}

// TestBackends counts, on the server, what many callers of one query cost.
func TestBackends(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		g := newGate(t, dsn)
		for _, limit := range []int{0, 16, 1000} {
			t.Run(fmt.Sprintf("callers=500/MaxOpenConns=%d", limit), func(t *testing.T) {
				db := open(t, "flightpg", dsn)
				db.SetMaxOpenConns(limit)
				storm(t, g, db, 500, limit, func() error {
					var v int
					return db.QueryRow(gateQuery, 1).Scan(&v)
				})
			})
		}
		t.Run("callers=40/SharedStmt", func(t *testing.T) {
			db := open(t, "flightpg", dsn)
			stmt, err := db.Prepare(gateQuery)
			if err != nil {
				t.Fatal(err)
			}
			defer stmt.Close()
			storm(t, g, db, 40, 0, func() error {
				var v int
				return stmt.QueryRow(1).Scan(&v)
			})
		})
	})
}

// loaded loads the catalog. Reads wait for it for a second only, which on a busy
// machine is too short, and are not shared then.
func loaded(t *testing.T, db *sql.DB) {
	t.Helper()
	if err := flightpg.RefreshCatalog(t.Context(), db); err != nil {
		t.Fatal(err)
	}
}

// storm lets callers run into the shut gate, counts backends, and opens it.
func storm(t *testing.T, g *gate, db *sql.DB, callers, limit int, call func() error) {
	t.Helper()
	loaded(t, db)
	g.shut()
	before := flightpg.ReadStats(db)
	var wg sync.WaitGroup
	for range callers {
		wg.Go(func() {
			if err := call(); err != nil {
				t.Error(err)
			}
		})
	}
	all := int64(callers)
	if limit > 0 {
		all = min(all, int64(limit)) // the others wait in database/sql
	}
	until(t, "the callers have gathered", func() bool { return flightpg.ReadStats(db).Waiting == all })
	until(t, "the query waits at the gate", func() bool { return g.waiting() > 0 })
	// Those of a handle that was closed just before take their time to end. One that this
	// handle does not need would stay.
	until(t, fmt.Sprintf("%d callers have one backend", callers), func() bool { return g.backends() == 1 })
	if n := g.waiting(); n != 1 {
		t.Errorf("%d executions wait for %d callers; want 1", n, callers)
	}
	g.open()
	wg.Wait()
	if s := flightpg.ReadStats(db); limit == 0 && s.Joins-before.Joins != uint64(callers-1) {
		t.Errorf("%d joins; want %d", s.Joins-before.Joins, callers-1)
	}
}

// TestCancel checks what cancelled callers leave behind: nothing.
func TestCancel(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		g := newGate(t, dsn)
		t.Run("LastOneOutCancelsOnTheServer", func(t *testing.T) {
			db := open(t, "flightpg", dsn)
			loaded(t, db)
			g.shut()
			defer g.open()
			ctx, cancel := context.WithCancel(context.Background())
			var wg sync.WaitGroup
			for range 10 {
				wg.Go(func() {
					var v int
					if err := db.QueryRowContext(ctx, gateQuery, 1).Scan(&v); !errors.Is(err, context.Canceled) {
						t.Errorf("QueryRow = %v; want %v", err, context.Canceled)
					}
				})
			}
			until(t, "the query waits at the gate", func() bool { return g.waiting() == 1 && flightpg.ReadStats(db).Waiting == 10 })
			cancel()
			wg.Wait()
			until(t, "the query is gone from the server", func() bool { return g.waiting() == 0 })
			until(t, "the flight has landed", func() bool { return flightpg.ReadStats(db).Flying == 0 })
			if s := flightpg.ReadStats(db); s.Cancelled != 1 || s.FlightBackends != 1 {
				t.Errorf("Stats = %+v; want one cancelled flight, its connection kept", s)
			}
		})
		t.Run("LeaderLeavesFollowersStay", func(t *testing.T) {
			db := open(t, "flightpg", dsn)
			loaded(t, db)
			g.shut()
			ctx, cancel := context.WithCancel(context.Background())
			errs := make(chan error, 2)
			read := func(ctx context.Context) { var v int; errs <- db.QueryRowContext(ctx, gateQuery, 1).Scan(&v) }
			go read(ctx)
			until(t, "the leader waits", func() bool { return g.waiting() == 1 })
			go read(context.Background())
			until(t, "the follower waits", func() bool { return flightpg.ReadStats(db).Joins == 1 })
			cancel()
			if err := <-errs; !errors.Is(err, context.Canceled) {
				t.Errorf("leader: %v; want its cancellation", err)
			}
			g.open()
			if err := <-errs; err != nil {
				t.Errorf("follower: %v", err)
			}
			if s := flightpg.ReadStats(db); s.Flights != 1 {
				t.Errorf("Stats = %+v; want one flight", s)
			}
		})
		t.Run("Storm", func(t *testing.T) {
			goroutines := runtime.NumGoroutine()
			db, err := sql.Open("flightpg", with(dsn, "flight_conns=4"))
			if err != nil {
				t.Fatal(err)
			}
			var wg sync.WaitGroup
			var cancelled atomic.Int64
			for i := range 10_000 {
				wg.Go(func() {
					time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond) // spreads the callers; nothing hangs on it
					ctx := context.Background()
					if i%2 == 0 {
						var cancel context.CancelFunc
						ctx, cancel = context.WithTimeout(ctx, time.Duration(rand.IntN(20_000))*time.Microsecond)
						defer cancel()
					}
					var n int
					err := db.QueryRowContext(ctx, "SELECT count(*) FROM generate_series(1, 20000 + $1::int)", i%3).Scan(&n)
					switch {
					case err == nil:
					case ctx.Err() != nil:
						cancelled.Add(1)
					default:
						t.Errorf("caller %d: %v, which is not its own", i, err)
					}
				})
			}
			wg.Wait()
			if cancelled.Load() == 0 {
				t.Error("nobody was cancelled: the test shows nothing")
			}
			until(t, "nothing flies", func() bool {
				s := flightpg.ReadStats(db)
				return s.Flying == 0 && s.Waiting == 0 && s.BufferedBytes == 0
			})
			t.Logf("%d cancelled; %+v", cancelled.Load(), flightpg.ReadStats(db))
			if err := db.Close(); err != nil {
				t.Error(err)
			}
			until(t, "no backend is left", func() bool { return g.backends() == 0 })
			until(t, "no goroutine is left", func() bool { return runtime.NumGoroutine() <= goroutines })
		})
	})
}

// TestConsistency lets hot readers keep flights going while a writer changes
// the row. A reader that begins after a write must see it: under strict the
// write of any connection, under fenced the writes of this process. Under join
// it need not, and if it always did, the test would show nothing.
func TestConsistency(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		conn := connect(t, dsn)
		if _, err := conn.Exec(t.Context(), "INSERT INTO counters VALUES (1, 0), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0)"); err != nil {
			t.Fatal(err)
		}
		plain := open(t, "pgx", dsn)
		plain.SetMaxOpenConns(4)
		inTx := func(db *sql.DB, id int) (n int64, err error) {
			tx, err := db.Begin()
			if err != nil {
				return 0, err
			}
			defer tx.Rollback()
			if err = tx.QueryRow("UPDATE counters SET n = n + 1 WHERE id = $1 RETURNING n", id).Scan(&n); err != nil {
				return 0, err
			}
			return n, tx.Commit()
		}
		returning := func(db *sql.DB, id int) (n int64, err error) {
			err = db.QueryRow("UPDATE counters SET n = n + 1 WHERE id = $1 RETURNING n", id).Scan(&n)
			return n, err
		}
		for i, tc := range []struct {
			name  string
			mode  string
			write func(ours *sql.DB, id int) (int64, error)
			stale bool // may be
		}{
			{"strict/OtherConnections", "strict", func(_ *sql.DB, id int) (int64, error) { return inTx(plain, id) }, false},
			{"strict/OwnProcess", "strict", returning, false},
			{"fenced/Tx", "fenced", inTx, false},
			{"fenced/Returning", "fenced", returning, false},
			{"fenced/Raw", "fenced", viaRaw, false},
			{"join/Tx", "join", inTx, true},
		} {
			t.Run(tc.name, func(t *testing.T) {
				id := i + 1
				ours := open(t, "flightpg", with(dsn, "flight_mode="+tc.mode))
				ours.SetMaxIdleConns(100)
				// A query that takes long enough to be joined half-way.
				const read = "SELECT n, (SELECT count(*) FROM generate_series(1, 10000)) FROM counters WHERE id = $1"
				var done atomic.Bool
				var committed, stale, reads atomic.Int64
				var wg sync.WaitGroup
				for range 32 {
					wg.Go(func() {
						for !done.Load() {
							// Callers that come at any moment; those woken by one
							// flight would all begin the next together.
							time.Sleep(time.Duration(rand.IntN(5000)) * time.Microsecond) // spreads the callers; nothing hangs on it
							least := committed.Load()
							var n, rest int64
							if err := ours.QueryRow(read, id).Scan(&n, &rest); err != nil {
								t.Error(err)
								return
							}
							reads.Add(1)
							if n < least {
								stale.Add(1)
							}
						}
					})
				}
				// Where stale reads are to be seen, until one is.
				for i := 0; i < 300 || tc.stale && stale.Load() == 0 && i < 20_000; i++ {
					n, err := tc.write(ours, id)
					if err != nil {
						t.Error(err)
						break
					}
					committed.Store(n)
				}
				done.Store(true)
				wg.Wait()
				s := flightpg.ReadStats(ours)
				t.Logf("%d reads, %d stale, %d flights, %d joins", reads.Load(), stale.Load(), s.Flights, s.Joins)
				if got := stale.Load() > 0; got != tc.stale {
					t.Errorf("%d of %d reads were stale; want stale reads = %v", stale.Load(), reads.Load(), tc.stale)
				}
				if s.Joins == 0 {
					t.Error("nobody joined: the test shows nothing")
				}
			})
		}
	})
}

// viaRaw writes where no driver can see it.
func viaRaw(db *sql.DB, id int) (n int64, err error) {
	c, err := db.Conn(context.Background())
	if err != nil {
		return 0, err
	}
	defer c.Close()
	err = c.Raw(func(dc any) error {
		conn := dc.(interface{ Conn() *pgx.Conn }).Conn()
		return conn.QueryRow(context.Background(), "UPDATE counters SET n = n + 1 WHERE id = $1 RETURNING n", id).Scan(&n)
	})
	return n, err
}

// TestSessionConns lets 64 goroutines of every kind share four sessions.
func TestSessionConns(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		g := newGate(t, dsn)
		db := open(t, "flightpg", with(dsn, "session_conns=4&flight_conns=4"))
		db.SetMaxIdleConns(64)
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var wg sync.WaitGroup
		for i := range 64 {
			wg.Go(func() {
				for range 40 {
					if err := mixed(ctx, db, i); err != nil {
						t.Errorf("goroutine %d: %v", i, err)
						return
					}
				}
			})
		}
		wg.Wait()
		s := flightpg.ReadStats(db)
		t.Logf("%+v", s)
		if n := g.backends(); n > 8 || s.SessionBackends > 4 {
			t.Errorf("%d backends, %d of them sessions; want at most 8 and 4", n, s.SessionBackends)
		}
	})
}

func mixed(ctx context.Context, db *sql.DB, kind int) error {
	var n int64
	switch kind % 6 {
	case 0:
		_, err := db.ExecContext(ctx, "INSERT INTO log VALUES ('x')")
		return err
	case 1:
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err = tx.ExecContext(ctx, "INSERT INTO log VALUES ('y')"); err != nil {
			return err
		}
		return tx.Commit()
	case 2:
		return db.QueryRowContext(ctx, "SELECT twice(2)").Scan(&n) // volatile: pins
	case 3:
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.ExecContext(ctx, "SET application_name = 'pinned'")
		return err
	case 4:
		return db.QueryRowContext(ctx, "INSERT INTO log VALUES ('z') RETURNING 1").Scan(&n)
	default:
		return db.QueryRowContext(ctx, "SELECT count(*) FROM items").Scan(&n)
	}
}

// TestRaw checks what sql.Conn.Raw gives and what it does to the connection.
func TestRaw(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		db := open(t, "flightpg", dsn)
		c, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = c.Raw(func(dc any) error {
			conn := dc.(interface{ Conn() *pgx.Conn }).Conn()
			n, err := conn.CopyFrom(t.Context(), pgx.Identifier{"log"}, []string{"what"}, pgx.CopyFromRows([][]any{{"a"}, {"b"}}))
			if n != 2 {
				t.Errorf("CopyFrom = %d; want 2", n)
			}
			if err != nil {
				return err
			}
			_, err = conn.Exec(t.Context(), "SET application_name = 'raw'")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		// The state stays with the connection, as with pgx.
		var name string
		if err := c.QueryRowContext(t.Context(), "SELECT current_setting('application_name')").Scan(&name); err != nil || name != "raw" {
			t.Errorf("application_name = %q, %v; want raw", name, err)
		}
		var n int
		if err := c.QueryRowContext(t.Context(), "SELECT count(*) FROM log").Scan(&n); err != nil || n != 2 {
			t.Errorf("count = %d, %v; want 2", n, err)
		}
		if s := flightpg.ReadStats(db); s.Flights != 0 {
			t.Errorf("Stats = %+v; want no flight on behalf of a raw connection", s)
		}
		c.Close()
		other, err := db.Conn(t.Context()) // the same virtual connection
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		if err := other.QueryRowContext(t.Context(), "SELECT current_setting('application_name')").Scan(&name); err != nil || name != "raw" {
			t.Errorf("application_name = %q, %v; want raw: pinned for life", name, err)
		}
	})
}

// TestRawFence writes through a raw connection, where no driver can see it.
// While the connection is out, no read may join a dispatched flight; afterwards
// all is as before.
func TestRawFence(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		g := newGate(t, dsn)
		for _, tc := range []struct {
			name string
			end  func(c *sql.Conn) // gives the raw connection back
		}{
			{"Close", func(c *sql.Conn) { _ = c.Close() }},
			{"ErrBadConn", func(c *sql.Conn) { _ = c.Raw(func(any) error { return driver.ErrBadConn }) }},
		} {
			t.Run(tc.name, func(t *testing.T) {
				db := open(t, "flightpg", dsn)
				db.SetMaxIdleConns(10)
				done := make(chan error, 10)
				reads := 0
				// read begins one more read, which waits at the gate, and returns
				// how many have joined a flight.
				read := func() uint64 {
					t.Helper()
					reads++
					go func() { var v int; done <- db.QueryRow(gateQuery, 1).Scan(&v) }()
					until(t, "the reads wait", func() bool { return flightpg.ReadStats(db).Waiting == int64(reads) })
					return flightpg.ReadStats(db).Joins
				}
				finish := func() {
					t.Helper()
					g.open()
					for ; reads > 0; reads-- {
						if err := <-done; err != nil {
							t.Error(err)
						}
					}
				}
				c, err := db.Conn(t.Context())
				if err != nil {
					t.Fatal(err)
				}
				raw := func() {
					t.Helper()
					err := c.Raw(func(dc any) error {
						_, err := dc.(interface{ Conn() *pgx.Conn }).Conn().Exec(t.Context(), "INSERT INTO log VALUES ('raw')")
						return err
					})
					if err != nil {
						t.Error(err)
					}
				}
				raw() // the connection is out from now on
				g.shut()
				read()
				until(t, "the flight is dispatched", func() bool { return g.waiting() == 1 })
				raw()
				if n := read(); n != 0 {
					t.Errorf("%d joins; want none: the write through the raw connection may be missing", n)
				}
				until(t, "the second flight is dispatched", func() bool { return g.waiting() == 2 })
				finish()

				tc.end(c)
				same, err := db.Conn(t.Context()) // if it is still there: not for the reads
				if err != nil {
					t.Fatal(err)
				}
				defer same.Close()
				g.shut()
				read()
				until(t, "the flight is dispatched", func() bool { return g.waiting() == 1 })
				if n := read(); n != 1 {
					t.Errorf("%d joins; want one: the raw connection is back", n)
				}
				finish()
			})
		}
	})
}

// TestRawKeepsItsSession checks that a session whose *pgx.Conn was handed out
// serves nobody else, whatever ran on it.
func TestRawKeepsItsSession(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		db := open(t, "flightpg", dsn)
		pid := func(c *sql.Conn) (pid uint32) {
			t.Helper()
			err := c.Raw(func(dc any) error {
				pid = dc.(interface{ Conn() *pgx.Conn }).Conn().PgConn().PID()
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			return pid
		}
		conns := make([]*sql.Conn, 2)
		take := func(i int) {
			t.Helper()
			var err error
			if conns[i], err = db.Conn(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		take(0)
		own := pid(conns[0])
		conns[0].Close()
		take(0) // the same virtual connection
		take(1)
		if n := pid(conns[1]); n == own {
			t.Error("another connection got the session of a raw one")
		}
		if n := pid(conns[0]); n != own {
			t.Errorf("the raw connection has session %d now; want %d, its own", n, own)
		}
		for _, c := range conns {
			c.Close()
		}
	})
}

// TestStmtAfterDDL changes the result of a prepared statement. PostgreSQL may
// refuse the next execution on each session that has it, not those after.
func TestStmtAfterDDL(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		for _, params := range []string{"", "default_query_exec_mode=exec", "flight_mode=off&default_query_exec_mode=exec"} {
			t.Run("params="+params, func(t *testing.T) {
				db := open(t, "flightpg", with(dsn, params))
				st, err := db.Prepare("SELECT * FROM empty")
				if err != nil {
					t.Fatal(err)
				}
				defer st.Close()
				read := func() error {
					rows, err := st.Query()
					if err != nil {
						return err
					}
					defer rows.Close()
					for rows.Next() {
					}
					return rows.Err()
				}
				if err := read(); err != nil {
					t.Fatal(err)
				}
				ddl := connect(t, dsn)
				if _, err := ddl.Exec(t.Context(), "ALTER TABLE empty ADD COLUMN more"+fmt.Sprint(rand.Uint32())+" int"); err != nil {
					t.Fatal(err)
				}
				if err := read(); err != nil {
					t.Logf("the first execution after it: %v", err)
				}
				if err := read(); err != nil {
					t.Errorf("the second execution after it: %v", err)
				}
			})
		}
	})
}

// TestCommitInText ends a transaction by a statement's text: what it wrote is
// there from then on, not from Commit.
func TestCommitInText(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		db := open(t, "flightpg", dsn)
		for name, end := range map[string]func(tx *sql.Tx) error{
			"Exec":              func(tx *sql.Tx) error { _, err := tx.Exec("COMMIT"); return err },
			"SeveralStatements": func(tx *sql.Tx) error { _, err := tx.Exec("INSERT INTO log VALUES ('y'); COMMIT"); return err },
		} {
			t.Run(name, func(t *testing.T) {
				tx, err := db.Begin()
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback()
				if _, err := tx.Exec("INSERT INTO log VALUES ('x')"); err != nil {
					t.Fatal(err)
				}
				before := flightpg.ReadStats(db).Fences
				if err := end(tx); err != nil {
					t.Fatal(err)
				}
				if n := flightpg.ReadStats(db).Fences; n == before {
					t.Error("no fence for the commit")
				}
				before = flightpg.ReadStats(db).Fences
				if _, err := tx.Exec("INSERT INTO log VALUES ('on its own')"); err != nil {
					t.Fatal(err)
				}
				if n := flightpg.ReadStats(db).Fences; n == before {
					t.Error("no fence for a write after the transaction")
				}
			})
		}
	})
}

// TestWriteIsNotRepeated kills the backends of writes: as with pgx they fail,
// for nobody knows what they did.
func TestWriteIsNotRepeated(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		g := newGate(t, dsn)
		db := open(t, "flightpg", dsn)
		const insert = "INSERT INTO log SELECT 'x' FROM gate"
		st, err := db.Prepare(insert)
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		for name, write := range map[string]func() error{
			"Exec":  func() error { _, err := db.Exec(insert); return err },
			"Query": func() error { var s string; return db.QueryRow(insert + " RETURNING what").Scan(&s) },
			"Stmt":  func() error { _, err := st.Exec(); return err },
		} {
			t.Run(name, func(t *testing.T) {
				g.shut()
				done := make(chan error, 1)
				go func() { done <- write() }()
				until(t, "the write waits", func() bool { return g.waiting() == 1 })
				var pid int
				var killed bool
				err := g.eye.QueryRow(t.Context(), `SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity
					WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&pid, &killed)
				if err != nil || !killed {
					t.Fatalf("backend killed = %v, %v", killed, err)
				}
				until(t, "the backend is gone", func() (gone bool) {
					err := g.eye.QueryRow(t.Context(), "SELECT NOT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid).Scan(&gone)
					return gone && err == nil
				})
				g.open()
				if err := <-done; err == nil {
					t.Error("the write succeeded, though its backend was killed")
				}
				var n int
				if err := g.eye.QueryRow(t.Context(), "SELECT count(*) FROM log").Scan(&n); err != nil || n != 0 {
					t.Errorf("%d rows written, %v; want none", n, err)
				}
			})
		}
	})
}

// TestServerLost crashes the server under flights and sessions.
func TestServerLost(t *testing.T) {
	s := pgtest.New(t)
	setUp(t, s.DSN())
	g := newGate(t, s.DSN())
	db := open(t, "flightpg", s.DSN())
	read := func() error { var n int; return db.QueryRow("SELECT count(*) FROM items").Scan(&n) }
	// Several idle flight sessions, all about to die.
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			var n int
			if err := db.QueryRow("SELECT count(*) FROM items, generate_series(1, 1000) WHERE id > $1", i).Scan(&n); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for range 3 {
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := read(); err != nil {
			t.Errorf("the read after a restart: %v; want it run again on a fresh connection", err)
		}
		if _, err := db.Exec("INSERT INTO log VALUES ('after')"); err != nil {
			// As with pgx: a write that may have been sent is not repeated.
			t.Logf("the write after a restart: %v", err)
		}
	}

	g = newGate(t, s.DSN()) // the restarts have cut the first one's connections
	callers := func() chan error {
		g.shut()
		done := make(chan error, 20)
		for range 20 {
			go func() { var v int; done <- db.QueryRow(gateQuery, 1).Scan(&v) }()
		}
		until(t, "the query waits", func() bool { return g.waiting() == 1 && flightpg.ReadStats(db).Waiting == 20 })
		return done
	}
	t.Run("BackendKilledInMidFlight", func(t *testing.T) {
		before := flightpg.ReadStats(db)
		done := callers()
		var killed int
		err := g.eye.QueryRow(t.Context(), `SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
			WHERE datname = current_database() AND wait_event_type = 'Lock'`).Scan(&killed)
		if err != nil || killed != 1 {
			t.Fatalf("%d backends killed, %v; want 1", killed, err)
		}
		until(t, "the flight runs again", func() bool { return flightpg.ReadStats(db).Retries == before.Retries+1 && g.waiting() == 1 })
		g.open()
		for range 20 {
			if err := <-done; err != nil {
				t.Errorf("caller: %v; want rows from the second execution", err)
			}
		}
	})
	t.Run("ServerDownInMidFlight", func(t *testing.T) {
		done := callers()
		if err := s.Crash(t.Context(), syscall.SIGQUIT); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			err := <-done
			var pgErr *pgconn.PgError
			var connErr *pgconn.ConnectError
			if !errors.As(err, &pgErr) && !errors.As(err, &connErr) {
				t.Errorf("caller: %v; want the server's last word, or that there is no server", err)
			}
		}
		if st := flightpg.ReadStats(db); st.Flying != 0 || st.Waiting != 0 || st.BufferedBytes != 0 {
			t.Errorf("Stats = %+v; want nothing left", st)
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := read(); err != nil {
			t.Errorf("the read after the restart: %v", err)
		}
	})
}

// TestCloseDuringTransaction checks that Close waits for nobody.
func TestCloseDuringTransaction(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		g := newGate(t, dsn)
		db, err := sql.Open("flightpg", with(dsn, "session_conns=1"))
		if err != nil {
			t.Fatal(err)
		}
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		closed := make(chan error, 1)
		go func() { closed <- db.Close() }()
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(20 * time.Second): // for ever, as far as a test can tell
			t.Error("Close waits for a transaction")
		}
		_ = tx.Rollback()
		until(t, "no backend is left", func() bool { return g.backends() == 0 })
	})
}

// TestOverflow reads a result that is too large to share, by many at once.
func TestOverflow(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		g := newGate(t, dsn)
		for _, params := range []string{"flight_max_result=10kB", "flight_memory=10kB"} {
			t.Run(params, func(t *testing.T) {
				db := open(t, "flightpg", with(dsn, params))
				loaded(t, db)
				g.shut()
				const callers, rows = 10, 5000
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						r, err := db.Query("SELECT g, repeat('x', 100) FROM gate, generate_series(1, 5000) g ORDER BY g")
						if err != nil {
							t.Error(err)
							return
						}
						defer r.Close()
						n := 0
						for r.Next() {
							var g int
							var x []byte
							if err := r.Scan(&g, &x); err != nil || len(x) != 100 || g != n+1 {
								t.Errorf("row %d: %d, %d bytes, %v", n, g, len(x), err)
							}
							n++
						}
						if n != rows || r.Err() != nil {
							t.Errorf("%d rows, %v; want %d", n, r.Err(), rows)
						}
					})
				}
				until(t, "the callers have gathered", func() bool { return flightpg.ReadStats(db).Waiting == callers })
				g.open()
				wg.Wait()
				if s := flightpg.ReadStats(db); s.Overflows != 1 || s.BufferedBytes != 0 {
					t.Errorf("Stats = %+v; want one overflow and no memory held", s)
				}
			})
		}
	})
}

// TestWriteIsNotDelayed writes while a flight of the same table hangs.
func TestWriteIsNotDelayed(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		g := newGate(t, dsn)
		db := open(t, "flightpg", with(dsn, "flight_conns=1&session_conns=1"))
		loaded(t, db)
		g.shut()
		done := make(chan error, 1)
		go func() { var v int; done <- db.QueryRow(gateQuery, 1).Scan(&v) }()
		until(t, "the flight hangs", func() bool { return g.waiting() == 1 })
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if _, err := db.ExecContext(ctx, "INSERT INTO log VALUES ('x')"); err != nil {
			t.Errorf("Exec beside a hanging flight: %v", err)
		}
		g.open()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
