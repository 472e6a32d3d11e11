package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// caught returns what f panics with.
func caught(f func()) (p any) {
	defer func() { p = recover() }()
	f()
	return nil
}

// TestPanic_Session is about panics of the inner driver outside flights: the session
// serves nobody any more, and what was written counts as written.
func TestPanic_Session(t *testing.T) {
	const (
		write = "UPDATE t SET v = 1"
		read  = "SELECT random() FROM t" // never shared
	)
	setUp := func(t *testing.T, broken string) (*fakeServer, *Connector, *sql.DB) {
		f := &fakeServer{}
		f.answer = func(_ context.Context, s *fakeSession, query string, _ []driver.NamedValue) (*fakeRows, error) {
			if query == broken && s.id == 1 {
				panic("boom")
			}
			return oneRow(int64(s.id)), nil
		}
		c, err := Wrap(f, Config{SessionConns: 1})
		if err != nil {
			t.Fatal(err)
		}
		return f, c, c.OpenDB()
	}
	check := func(t *testing.T, f *fakeServer, db *sql.DB) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if n, err := queryInt(ctx, db, read); err != nil || n != 2 {
			t.Errorf("the next query ran on session %d, %v; want a new one", n, err)
		}
		if n := f.open(); n != 1 {
			t.Errorf("%d sessions are open; want 1", n)
		}
	}
	bubble(t, "Exec", func(t *testing.T) {
		f, c, db := setUp(t, write)
		before := c.db.Now()
		if p := caught(func() { _, _ = db.Exec(write) }); p != "boom" {
			t.Fatalf("Exec panicked with %v", p)
		}
		if c.db.Now() == before {
			t.Error("the epoch was not raised")
		}
		check(t, f, db)
		_ = db.Close()
	})
	bubble(t, "Query", func(t *testing.T) {
		f, _, db := setUp(t, read)
		if p := caught(func() { _, _ = db.Query(read) }); p != "boom" {
			t.Fatalf("Query panicked with %v", p)
		}
		check(t, f, db)
		go db.Close() // database/sql itself loses connections of calls that panic
	})
	bubble(t, "ExecInTx", func(t *testing.T) {
		f, _, db := setUp(t, write)
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if p := caught(func() { _, _ = tx.Exec(write) }); p != "boom" {
			t.Fatalf("Exec panicked with %v", p)
		}
		_ = tx.Rollback()
		check(t, f, db)
		_ = db.Close()
	})
}

// TestPanic_Connect is about panics while a connection is opened: each caller has an error,
// and the pool does not count what was never opened.
func TestPanic_Connect(t *testing.T) {
	bubble(t, "Flight", func(t *testing.T) {
		f := &fakeServer{connect: func(context.Context) error { panic("boom") }}
		c, err := Wrap(f, Config{FlightConns: 1, SessionConns: 1})
		if err != nil {
			t.Fatal(err)
		}
		db := c.OpenDB()
		for range 3 {
			_, err := queryInt(t.Context(), db, hotQuery, 1)
			var p *HookPanicError
			if !errors.As(err, &p) || p.Value != "boom" || !strings.Contains(string(p.Stack), "fakeServer") || !strings.Contains(err.Error(), "TestPanic_Connect") {
				t.Fatalf("the caller got %v; want the panic, with the stack of where it came from", err)
			}
			if _, err := db.Exec("UPDATE t SET v = 1"); !errors.As(err, &p) {
				t.Fatalf("Exec = %v; want the panic", err)
			}
		}
		f.connect = nil
		mustInt(t, db, hotQuery, 1)
		if _, err := db.Exec("UPDATE t SET v = 1"); err != nil {
			t.Error(err)
		}
		if s := c.Stats(); s.FlightBackends != 1 || s.SessionBackends != 1 {
			t.Errorf("Stats = %+v; want one connection in each pool", s)
		}
		_ = db.Close()
	})
	// The catalog is loaded in a goroutine in which nobody can recover.
	t.Run("Catalog", func(t *testing.T) {
		pc, err := pgx.ParseConfig(pgtest.Database(t))
		if err != nil {
			t.Fatal(err)
		}
		broken := true
		db, err := OpenDB(stdlib.RegisterConnConfig(pc), Config{AfterConnect: func(context.Context, *pgx.Conn) error {
			if broken {
				panic("boom")
			}
			return nil
		}})
		if err != nil {
			t.Fatal(err)
		}
		var p *HookPanicError
		if err := RefreshCatalog(t.Context(), db); !errors.As(err, &p) || p.Value != "boom" {
			t.Errorf("RefreshCatalog = %v; want what the hook has panicked with", err)
		}
		if v, err := Explain(t.Context(), db, "SELECT count(*) FROM nowhere"); err != nil || v.Reason != ReasonHookFailed || !strings.Contains(v.Hint, "boom") {
			t.Errorf("Explain = %+v, %v; want that a hook has failed", v, err)
		}
		if _, err := queryInt(t.Context(), db, "SELECT 1"); !errors.As(err, &p) || p.Value != "boom" {
			t.Errorf("the caller got %v; want the panic", err)
		}
		broken = false
		if n, err := queryInt(t.Context(), db, "SELECT 1"); n != 1 || err != nil {
			t.Errorf("SELECT 1 = %d, %v", n, err)
		}
		if err := RefreshCatalog(t.Context(), db); err != nil {
			t.Errorf("RefreshCatalog = %v", err)
		}
		_ = db.Close()
	})
}

// TestPanic_Hooks: a hook panics, on each way on which a connection is opened or taken into
// use for somebody. With pgx that is in db.Conn or the like, where database/sql holds no lock;
// here it would be where it holds those that Close waits for.
func TestPanic_Hooks(t *testing.T) {
	dsn := pgtest.Database(t)
	boom := errors.New("boom")
	hooks := map[string]func(cfg *Config, hook func()){
		"BeforeConnect": func(cfg *Config, hook func()) {
			cfg.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { hook(); return nil }
		},
		"AfterConnect": func(cfg *Config, hook func()) {
			cfg.AfterConnect = func(context.Context, *pgx.Conn) error { hook(); return nil }
		},
		"ResetSession": func(cfg *Config, hook func()) {
			cfg.ResetSession = func(context.Context, *pgx.Conn) error { hook(); return nil }
		},
		"ShouldPing": func(cfg *Config, hook func()) {
			cfg.ShouldPing = func(context.Context, stdlib.ShouldPingParams) bool { hook(); return false }
		},
		"PartitionKey": func(cfg *Config, hook func()) {
			cfg.PartitionKey = func(context.Context) string { hook(); return "" }
		},
	}
	const read = "SELECT 1"
	rows := func(rows *sql.Rows, err error) error {
		if err != nil {
			return err
		}
		for rows.Next() {
		}
		return errors.Join(rows.Err(), rows.Close())
	}
	onConn := func(use func(ctx context.Context, conn *sql.Conn) error) func(context.Context, *sql.DB) error {
		return func(ctx context.Context, db *sql.DB) error {
			conn, err := db.Conn(ctx)
			if err != nil {
				return err
			}
			defer conn.Close() // as everybody has it
			return use(ctx, conn)
		}
	}
	inTx := func(ctx context.Context, begin func(context.Context, *sql.TxOptions) (*sql.Tx, error)) error {
		tx, err := begin(ctx, nil)
		if err != nil {
			return err
		}
		defer func() { _ = tx.Rollback() }()
		return rows(tx.QueryContext(ctx, read))
	}
	withStmt := func(ctx context.Context, prepare func(context.Context, string) (*sql.Stmt, error), text string) error {
		st, err := prepare(ctx, text)
		if err != nil {
			return err
		}
		defer st.Close()
		if _, err := st.ExecContext(ctx); err != nil {
			return err
		}
		return rows(st.QueryContext(ctx))
	}
	ways := map[string]func(context.Context, *sql.DB) error{
		"Query": func(ctx context.Context, db *sql.DB) error { return rows(db.QueryContext(ctx, read)) },
		"Bypass": func(ctx context.Context, db *sql.DB) error {
			return rows(db.QueryContext(ctx, "SELECT pg_catalog.pg_backend_pid()"))
		},
		"Exec": func(ctx context.Context, db *sql.DB) error { _, err := db.ExecContext(ctx, read); return err },
		"Ping": func(ctx context.Context, db *sql.DB) error { return db.PingContext(ctx) },
		"Tx":   func(ctx context.Context, db *sql.DB) error { return inTx(ctx, db.BeginTx) },
		"Stmt": func(ctx context.Context, db *sql.DB) error { return withStmt(ctx, db.PrepareContext, read) },
		"StmtBypass": func(ctx context.Context, db *sql.DB) error {
			return withStmt(ctx, db.PrepareContext, "SELECT random()")
		},
		"Conn/Query": onConn(func(ctx context.Context, conn *sql.Conn) error { return rows(conn.QueryContext(ctx, read)) }),
		"Conn/Bypass": onConn(func(ctx context.Context, conn *sql.Conn) error {
			return rows(conn.QueryContext(ctx, "SELECT pg_catalog.pg_backend_pid()"))
		}),
		"Conn/Exec": onConn(func(ctx context.Context, conn *sql.Conn) error { _, err := conn.ExecContext(ctx, read); return err }),
		"Conn/Ping": onConn(func(ctx context.Context, conn *sql.Conn) error { return conn.PingContext(ctx) }),
		"Conn/Tx":   onConn(func(ctx context.Context, conn *sql.Conn) error { return inTx(ctx, conn.BeginTx) }),
		"Conn/Stmt": onConn(func(ctx context.Context, conn *sql.Conn) error { return withStmt(ctx, conn.PrepareContext, read) }),
		"Conn/Raw": onConn(func(_ context.Context, conn *sql.Conn) (err error) {
			defer func() {
				if p := recover(); p != nil {
					err = p.(error) // there is no error to be had, and database/sql is ready for it
				}
			}()
			return conn.Raw(func(dc any) error {
				if dc.(interface{ Conn() *pgx.Conn }).Conn() == nil {
					return errors.New("no connection")
				}
				return nil
			})
		}),
	}
	for _, ex := range []Executor{ExecutorAuto, ExecutorGeneric} {
		for hook, set := range hooks {
			resets := hook == "ResetSession" || hook == "ShouldPing"
			t.Run(ex.String()+"/"+hook, func(t *testing.T) {
				t.Parallel()
				for way, use := range ways {
					kept := way == "Conn/Raw" // its connection keeps its session: TestPanic_Kept
					if kept && resets {
						continue
					}
					var broken atomic.Bool
					cfg := Config{Executor: ex, FlightConns: minPipelineConns, SessionConns: 2}
					set(&cfg, func() {
						if broken.Load() {
							panic(boom)
						}
					})
					c, err := NewConnector(dsn, cfg)
					if err != nil {
						t.Fatal(err)
					}
					db := c.OpenDB()
					try := func() error {
						done := make(chan error, 1)
						go func() {
							defer func() {
								if p := recover(); p != nil {
									done <- fmt.Errorf("a panic instead of an error: %v", p)
								}
							}()
							done <- use(t.Context(), db)
						}()
						select {
						case err := <-done:
							return err
						case <-time.After(time.Minute): // for ever, as far as a test can tell
							return errors.New("it does not return")
						}
					}
					if !kept {
						if err := try(); err != nil {
							t.Fatalf("%s, before: %v", way, err)
						}
					}
					calls := 4 // more than there are sessions
					if resets {
						calls = 1 // then there is none to be used again
					} else if !kept {
						c.flights.closeIdle()
						c.sessions.db.closeIdle()
					}
					broken.Store(true)
					for range calls {
						var p *HookPanicError
						if err := try(); !errors.As(err, &p) || p.Value != boom || !errors.Is(err, boom) || !strings.Contains(err.Error(), "TestPanic_Hooks") {
							t.Errorf("%s: %v; want what the hook has panicked with", way, err)
						}
					}
					broken.Store(false)
					if err := try(); err != nil {
						t.Fatalf("%s, afterwards: %v", way, err)
					}
					_ = db.Close()
				}
			})
		}
	}
}

// TestPanic_Kept: the hook of a connection that has kept its session panics in db.Conn, as
// with pgx, and the session's place is free again.
func TestPanic_Kept(t *testing.T) {
	var broken atomic.Bool
	db, err := OpenDB(pgtest.Database(t), Config{SessionConns: 1, ResetSession: func(context.Context, *pgx.Conn) error {
		if broken.Load() {
			panic("boom")
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.ExecContext(t.Context(), "SET application_name = 'kept'"); err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	if p := caught(func() { _, _ = db.Conn(t.Context()) }); p != "boom" {
		t.Errorf("db.Conn panics with %v; want the hook's panic", p)
	}
	broken.Store(false)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var name string
	if err := db.QueryRowContext(ctx, "SHOW application_name").Scan(&name); err != nil || name == "kept" {
		t.Errorf("application_name = %q, %v; want a new session", name, err)
	}
	_ = db.Close()
}

// panickyRows panic when they are closed.
type panickyRows struct{ driver.Rows }

func (panickyRows) Close() error { panic("close") }

// TestLiveRows_ClosePanics: live rows whose driver panics when they are closed give
// their session back all the same, as one that must not be used again.
func TestLiveRows_ClosePanics(t *testing.T) {
	var cancelled, done, lost bool
	l := &liveRows{rows: panickyRows{}, cancel: func() { cancelled = true }}
	l.done = func() { done, lost = true, l.lost }
	func() {
		defer func() {
			if v := recover(); v != "close" {
				t.Errorf("close panicked with %v; want what the rows panic with", v)
			}
		}()
		_ = l.close()
	}()
	if !cancelled || !done || !lost {
		t.Errorf("cancelled %v, given back %v, as lost %v; want all of it", cancelled, done, lost)
	}
}
