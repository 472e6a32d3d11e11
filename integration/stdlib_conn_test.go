package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/jackc/pgx/v5/tracelog"

	"github.com/flightpg/flightpg"
)

// handleBehaviours are about handles, their connections and what they call.
var handleBehaviours = []behaviour{
	{name: "OpenByName", pins: "TestSQLOpen", once: func(t *testing.T, s subject) {
		pc := s.config(t)
		sslmode := "disable"
		if pc.TLSConfig != nil {
			sslmode = "require"
		}
		keywords := fmt.Sprintf("host='%s' port=%d user='%s' password='%s' dbname='%s' sslmode=%s %s",
			pc.Host, pc.Port, pc.User, pc.Password, pc.Database, sslmode, s.params)
		for form, dsn := range map[string]string{"URL": with(s.dsn, s.params), "Keywords": keywords} {
			t.Run(form, func(t *testing.T) {
				for _, name := range s.registered {
					works(t, s.openName(t, name, dsn))
				}
			})
		}
	}},

	{name: "OverPool", pins: "TestSQLOpenFromPool", once: func(t *testing.T, s subject) {
		pool, err := pgxpool.New(t.Context(), s.dsn)
		noError(t, err)
		defer pool.Close()
		db, err := s.overPool(pool)
		noError(t, err)
		works(t, db)
		equal(t, "connections that the idle handle keeps from the pool", pool.Stat().AcquiredConns(), 0)
		noError(t, db.Close())
		noError(t, pool.Ping(t.Context())) // it is not the handle's to close
	}},

	{name: "RegisteredConfig", pins: "TestRegisterConnConfig", once: func(t *testing.T, s subject) {
		pc, err := pgx.ParseConfig(with(s.dsn, s.params))
		noError(t, err)
		var log queryLog
		pc.Tracer = &tracelog.TraceLog{Logger: &log, LogLevel: tracelog.LogLevelInfo}

		first := stdlib.RegisterConnConfig(pc)
		stdlib.UnregisterConnConfig(first)
		name := stdlib.RegisterConnConfig(pc)
		defer stdlib.UnregisterConnConfig(name)
		if name == first {
			t.Errorf("the name %q is given again", name)
		}

		db := s.openName(t, s.registered[0], name)
		equal(t, "the row", one[int](t, db, "select 8 * 9"), 72)
		if !slices.Contains(log.queries(), "select 8 * 9") {
			t.Errorf("the config's tracer saw %q; want the query among them", log.queries())
		}
	}},

	{name: "BeforeAndAfterConnect", pins: "TestOptionBeforeAfterConnect", once: func(t *testing.T, s subject) {
		pc := s.config(t)
		var before []*pgx.ConnConfig
		var after []*pgx.Conn
		db := s.openConfig(t, pc, flightpg.Config{
			BeforeConnect: func(_ context.Context, pc *pgx.ConnConfig) error {
				before = append(before, pc)
				return nil
			},
			AfterConnect: func(_ context.Context, c *pgx.Conn) error {
				after = append(after, c)
				return nil
			},
		})
		db.SetMaxIdleConns(0) // each statement opens a connection
		execOn(t, db, "select 1")
		execOn(t, db, "select 1")
		if len(before) != 2 || len(after) != 2 {
			t.Fatalf("BeforeConnect was called %d times, AfterConnect %d times; want 2 each", len(before), len(after))
		}
		if before[0] == before[1] || before[0] == pc || before[1] == pc {
			t.Error("BeforeConnect had no config of its own to change")
		}
		if after[0] == after[1] {
			t.Error("AfterConnect had one connection twice")
		}
	}},

	{name: "RandomHostOrder", pins: "TestRandomizeHostOrderFunc", once: func(t *testing.T, s subject) {
		pc, err := pgx.ParseConfig("postgres://nobody@alpha,beta,gamma/none?sslmode=disable")
		noError(t, err)
		var dialled []string
		pc.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
		pc.DialFunc = func(_ context.Context, _, addr string) (net.Conn, error) {
			host, _, err := net.SplitHostPort(addr)
			dialled = append(dialled, host)
			return nil, errors.Join(err, errors.New("nobody is there"))
		}
		db := s.openConfig(t, pc, flightpg.Config{BeforeConnect: stdlib.RandomizeHostOrderFunc})
		first := make(map[string]bool)
		for range 1000 { // a wrong verdict once in 10^175
			dialled = nil
			if err := db.Ping(); err == nil {
				t.Fatal("Ping succeeded without a server")
			}
			if len(dialled) != 3 {
				t.Fatalf("dialled %v; want each host once", dialled)
			}
			first[dialled[0]] = true
			slices.Sort(dialled)
			equal(t, "hosts dialled", dialled, []string{"alpha", "beta", "gamma"})
			if len(first) == 3 {
				return
			}
		}
		t.Errorf("only %v were ever first", first)
	}},

	{name: "ResetSessionHook", pins: "TestResetSessionHookCalled", once: func(t *testing.T, s subject) {
		calls := 0
		db := s.openConfig(t, s.config(t), flightpg.Config{
			ResetSession: func(_ context.Context, c *pgx.Conn) error {
				calls++
				return c.Ping(context.Background())
			},
		})
		noError(t, db.Ping())
		equal(t, "calls for a new connection", calls, 0)
		noError(t, db.Ping())
		equal(t, "calls when it is used again", calls, 1)
	}},

	{name: "ShouldPingHook", pins: "TestOptionShouldPing_HookCalledOnReuse", once: func(t *testing.T, s subject) {
		var calls []stdlib.ShouldPingParams
		db := s.openConfig(t, s.config(t), flightpg.Config{
			ShouldPing: func(_ context.Context, p stdlib.ShouldPingParams) bool {
				calls = append(calls, p)
				return false
			},
		})
		db.SetMaxOpenConns(1)
		db.SetMaxIdleConns(1)
		noError(t, db.Ping())
		equal(t, "calls for a new connection", len(calls), 0)
		execOn(t, db, "select 1")
		if len(calls) != 1 || calls[0].Conn == nil {
			t.Errorf("calls when it is used again: %+v; want one, with the connection", calls)
		}
	}},

	{name: "DeadIdleConnections", pins: "TestCheckIdleConn", once: func(t *testing.T, s subject) {
		killer, db := s.open(t), s.openName(t, s.registered[0], with(s.dsn, s.params))
		var checkedOut []*sql.Conn
		for range 3 {
			c, err := db.Conn(t.Context())
			noError(t, err)
			checkedOut = append(checkedOut, c)
		}
		equal(t, "open connections", db.Stats().OpenConnections, 3)

		var dead []*pgx.Conn
		var pids []uint32
		for _, c := range checkedOut {
			raw(t, c, func(pc *pgx.Conn) error {
				dead = append(dead, pc)
				pids = append(pids, pc.PgConn().PID())
				return nil
			})
			noError(t, c.Close())
		}
		execOn(t, killer, "select pg_terminate_backend(pid) from unnest($1::int[]) pid", pids)

		// A connection that was idle for more than a second is asked for a sign
		// of life before it is used. pgx has no clock to turn forward.
		time.Sleep(1100 * time.Millisecond) // stdlib asks for a sign of life after a second without use
		noError(t, db.Ping())
		equal(t, "open connections when the dead ones are found out", db.Stats().OpenConnections, 1)

		c, err := db.Conn(t.Context())
		noError(t, err)
		defer c.Close()
		raw(t, c, func(pc *pgx.Conn) error {
			// Not by process id: the server may give one again.
			if slices.Contains(dead, pc) {
				t.Error("a connection that was terminated is given out")
			}
			return nil
		})
		works(t, db)
	}},

	{name: "Raw", pins: "TestConnRaw", each: func(t *testing.T, db *sql.DB) {
		c, err := db.Conn(t.Context())
		noError(t, err)
		defer c.Close()
		var n int
		raw(t, c, func(pc *pgx.Conn) error { return pc.QueryRow(context.Background(), "select 6 * 7").Scan(&n) })
		equal(t, "the row", n, 42)
	}},

	{name: "Ping", pins: "TestConnPingContextSuccess", each: func(t *testing.T, db *sql.DB) {
		noError(t, db.PingContext(t.Context()))
	}},

	// Fifty callers write, each a row of its own, and then read what they wrote.
	{name: "ManyCallers", pins: "TestConnConcurrency", each: func(t *testing.T, db *sql.DB) {
		const callers = 50
		// The server's slots may still be those of the handle before.
		until(t, "earlier backends have ended", func() bool {
			var n int
			noError(t, db.QueryRow("select count(*) from pg_stat_activity where backend_type = 'client backend'").Scan(&n))
			return n < 30
		})
		execOn(t, db, "create table many (id int primary key, name text, took interval)")
		defer execOn(t, db, "drop table many")

		inParallel := func(f func(ctx context.Context, id int) error) {
			t.Helper()
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			var wg sync.WaitGroup
			for id := range callers {
				wg.Go(func() {
					if err := f(ctx, id); err != nil {
						t.Errorf("caller %d: %v", id, err)
					}
				})
			}
			wg.Wait()
		}
		inParallel(func(ctx context.Context, id int) error {
			for _, w := range []struct {
				query string
				args  []any
			}{
				{"insert into many values ($1)", []any{id}},
				{"update many set name = $1 where id = $2", []any{fmt.Sprint("no. ", id), id}},
				{"update many set took = $1 where id = $2", []any{time.Duration(id) * time.Minute, id}},
			} {
				if _, err := db.ExecContext(ctx, w.query, w.args...); err != nil {
					return fmt.Errorf("%s: %w", w.query, err)
				}
			}
			return nil
		})
		inParallel(func(ctx context.Context, id int) error {
			var gotID int
			var name string
			var took pgtype.Interval
			err := db.QueryRowContext(ctx, "select id, name, took from many where id = $1", id).Scan(&gotID, &name, &took)
			wrote := pgtype.Interval{Microseconds: int64(id) * time.Minute.Microseconds(), Valid: true}
			if err != nil || gotID != id || name != fmt.Sprint("no. ", id) || took != wrote {
				return fmt.Errorf("read (%d, %q, %+v), %v; want what it wrote", gotID, name, took, err)
			}
			return nil
		})
	}},
}

// statementBehaviours are about prepared statements and Exec.
var statementBehaviours = []behaviour{
	{name: "PreparedQuery", pins: "TestNormalLifeCycle", once: func(t *testing.T, s subject) {
		db := s.open(t)
		st := prepared(t, db, labelsQuery)
		readLabels(t, 4, 9)(st.Query(int32(4), int32(9)))
		works(t, db)
	}},

	{name: "PreparedQueryContext", pins: "TestStmtQueryContextSuccess", once: func(t *testing.T, s subject) {
		db := s.open(t)
		st := prepared(t, db, "select * from generate_series(1, $1::int4) n")
		rows, err := st.QueryContext(t.Context(), 5)
		noError(t, err)
		equal(t, "the rows", column[int64](t, rows), []int64{1, 2, 3, 4, 5})
		works(t, db)
	}},

	{name: "RowsClosedEarly", pins: "TestQueryCloseRowsEarly", once: func(t *testing.T, s subject) {
		db := s.open(t)
		st := prepared(t, db, labelsQuery)
		rows, err := st.Query(int32(1), int32(10))
		noError(t, err)
		noError(t, rows.Close())
		readLabels(t, 1, 10)(st.Query(int32(1), int32(10)))
		works(t, db)
	}},

	// The transaction is still open when the handle is closed.
	{name: "PreparedExecInTx", pins: "TestStmtExec", once: func(t *testing.T, s subject) {
		db := s.open(t)
		tx, err := db.Begin()
		noError(t, err)
		execStmt := func(query string, args ...any) int64 {
			t.Helper()
			st, err := tx.Prepare(query)
			noError(t, err)
			res, err := st.Exec(args...)
			noError(t, err)
			noError(t, st.Close())
			n, err := res.RowsAffected()
			noError(t, err)
			return n
		}
		execStmt("create temporary table letters (l varchar not null)")
		equal(t, "rows inserted", execStmt("insert into letters values ($1::text), ($2::text)", "a", "b"), 2)
		works(t, db)
		noError(t, db.Close())
		_ = tx.Rollback() // nobody can close the connection of a transaction for its owner
	}},

	{name: "PreparedExec", pins: "TestStmtExecContextSuccess", once: func(t *testing.T, s subject) {
		db := s.open(t)
		execOn(t, db, "create temporary table numbers (n int primary key)")
		st := prepared(t, db, "insert into numbers (n) values ($1::int4)")
		_, err := st.ExecContext(t.Context(), 42)
		noError(t, err)
		equal(t, "the row", one[int](t, db, "select n from numbers"), 42)
		works(t, db)
	}},

	{name: "PreparedExecDeadline", pins: "TestStmtExecContextCancel", once: func(t *testing.T, s subject) {
		db := s.open(t)
		execOn(t, db, "create temporary table slow (n int primary key)")
		st := prepared(t, db, "insert into slow (n) select $1::int4 from pg_sleep(30)")
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := st.ExecContext(ctx, 42); !pgconn.Timeout(err) {
			t.Errorf("ExecContext = %v; want a timeout", err)
		}
		works(t, db)
	}},

	{name: "Prepare", pins: "TestConnPrepareContextSuccess", each: func(t *testing.T, db *sql.DB) {
		st, err := db.PrepareContext(t.Context(), "select current_date")
		noError(t, err)
		noError(t, st.Close())
	}},

	// A text that is prepared twice on a connection is one statement on the
	// server, until the second of the two is closed.
	{name: "PrepareTwice", pins: "TestConnMultiplePrepareAndDeallocate", each: func(t *testing.T, db *sql.DB) {
		const text = "select 'prepared twice'"
		onServer := func() int64 {
			t.Helper()
			return one[int64](t, db, "select count(*) from pg_prepared_statements where statement = $1", text)
		}
		first, err := db.PrepareContext(t.Context(), text)
		noError(t, err)
		second, err := db.PrepareContext(t.Context(), text)
		noError(t, err)
		noError(t, first.Close())
		equal(t, "statements on the server when one is closed", onServer(), 1)
		noError(t, second.Close())
		equal(t, "statements on the server when both are closed", onServer(), 0)
	}},

	{name: "Exec", pins: "TestConnExec", each: func(t *testing.T, db *sql.DB) {
		_, err := db.Exec("create temporary table words (w varchar not null)")
		noError(t, err)
		equal(t, "rows inserted", execOn(t, db, "insert into words values ('one'), ('two'), ('three')"), 3)
		equal(t, "rows changed", execOn(t, db, "update words set w = upper(w) where w like 't%'"), 2)
	}},

	{name: "ExecContext", pins: "TestConnExecContextSuccess", each: func(t *testing.T, db *sql.DB) {
		_, err := db.ExecContext(t.Context(), "create temporary table serials (id serial primary key)")
		noError(t, err)
	}},
}

// txBehaviours are about transactions.
var txBehaviours = []behaviour{
	{name: "RollbackAndCommit", pins: "TestTransactionLifeCycle", each: func(t *testing.T, db *sql.DB) {
		execOn(t, db, "create temporary table ledger (entry text not null)")
		for _, end := range []struct {
			how  func(*sql.Tx) error
			want int64
		}{{(*sql.Tx).Rollback, 0}, {(*sql.Tx).Commit, 1}} {
			tx, err := db.Begin()
			noError(t, err)
			execOn(t, tx, "insert into ledger values ('paid')")
			equal(t, "rows that the transaction sees", one[int64](t, tx, "select count(*) from ledger"), 1)
			noError(t, end.how(tx))
			equal(t, "rows after it", one[int64](t, db, "select count(*) from ledger"), end.want)
		}
	}},

	{name: "Isolation", pins: "TestConnBeginTxIsolation", each: func(t *testing.T, db *sql.DB) {
		for level, want := range map[sql.IsolationLevel]string{
			sql.LevelDefault:         one[string](t, db, "show transaction_isolation"),
			sql.LevelReadUncommitted: "read uncommitted",
			sql.LevelReadCommitted:   "read committed",
			sql.LevelRepeatableRead:  "repeatable read",
			sql.LevelSnapshot:        "repeatable read",
			sql.LevelSerializable:    "serializable",
		} {
			tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: level})
			noError(t, err)
			equal(t, level.String(), one[string](t, tx, "show transaction_isolation"), want)
			noError(t, tx.Rollback())
		}
		for _, level := range []sql.IsolationLevel{sql.LevelWriteCommitted, sql.LevelLinearizable} {
			if tx, err := db.BeginTx(t.Context(), &sql.TxOptions{Isolation: level}); err == nil {
				_ = tx.Rollback()
				t.Errorf("BeginTx with %v = nil; want an error", level)
			}
		}
	}},

	{name: "ReadOnly", pins: "TestConnBeginTxReadOnly", each: func(t *testing.T, db *sql.DB) {
		tx, err := db.BeginTx(t.Context(), &sql.TxOptions{ReadOnly: true})
		noError(t, err)
		defer tx.Rollback()
		equal(t, "transaction_read_only", one[string](t, tx, "show transaction_read_only"), "on")
	}},

	{name: "CancelledTx", pins: "TestBeginTxContextCancel", each: func(t *testing.T, db *sql.DB) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		tx, err := db.BeginTx(ctx, nil)
		noError(t, err)
		execOn(t, tx, "create table never_committed (id serial)")
		cancel()
		if err := tx.Commit(); !errors.Is(err, context.Canceled) && !errors.Is(err, sql.ErrTxDone) {
			t.Errorf("Commit = %v; want %v or %v", err, context.Canceled, sql.ErrTxDone)
		}
		var n int
		err = db.QueryRow("select count(*) from never_committed").Scan(&n)
		equal(t, "SQLSTATE of a read of its table", code(err), "42P01") // undefined_table
	}},

	{name: "OpenTxDiscarded", pins: "TestOpenTransactionsDiscarded", once: func(t *testing.T, s subject) {
		db := s.open(t)
		db.SetMaxOpenConns(1)
		for range 3 {
			c, err := db.Conn(t.Context())
			noError(t, err)
			execOn(t, c, "begin;")
			execOn(t, c, "create temporary table left_open (id int)") // which fails if it is there already
			noError(t, c.Close())
		}
		works(t, db)
	}},

	// What is checked when a statement's own transaction commits is an error of
	// the statement, though its row has arrived by then.
	{name: "DeferredConstraint", pins: "TestConnQueryRowConstraintErrors", each: func(t *testing.T, db *sql.DB) {
		execOn(t, db, "create temporary table rated (id text primary key, stars int not null, unique (stars), "+
			"unique (stars) deferrable initially deferred)")
		execOn(t, db, `create or replace function no_six() returns trigger language plpgsql as $$
			begin
				if new.stars = 6 then
					raise exception 'six stars are too many';
				end if;
				return new;
			end $$`)
		execOn(t, db, "create constraint trigger no_six after insert or update on rated "+
			"deferrable initially deferred for each row execute function no_six()")
		execOn(t, db, "insert into rated values ('a', 1), ('b', 2), ('c', 3)")
		var id string
		err := db.QueryRow("insert into rated values ('d', 6) returning id").Scan(&id)
		equal(t, "SQLSTATE of the insert", code(err), "P0001") // raise_exception
	}},
}

// raw calls f with the connection's *pgx.Conn, in the way that works with both.
func raw(t *testing.T, c *sql.Conn, f func(*pgx.Conn) error) {
	t.Helper()
	noError(t, c.Raw(func(dc any) error { return f(dc.(interface{ Conn() *pgx.Conn }).Conn()) }))
}

// prepared prepares a statement that the test's end closes.
func prepared(t *testing.T, q querier, query string) *sql.Stmt {
	t.Helper()
	st, err := q.PrepareContext(t.Context(), query)
	noError(t, err)
	t.Cleanup(func() { noError(t, st.Close()) })
	return st
}

// queryLog is a tracelog.Logger that keeps the text of queries.
type queryLog struct {
	mu    sync.Mutex // guards texts
	texts []string
}

func (l *queryLog) Log(_ context.Context, _ tracelog.LogLevel, msg string, data map[string]any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if text, ok := data["sql"].(string); ok && strings.EqualFold(msg, "query") {
		l.texts = append(l.texts, text)
	}
}

func (l *queryLog) queries() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.texts)
}
