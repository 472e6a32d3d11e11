package integration

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

var (
	programSeed  = flag.Uint64("programs.seed", 0, "of the programs of TestPrograms; 0: of the time")
	programCount = flag.Int("programs", 400, "how many programs TestPrograms runs; a tenth of them with -short")
)

// A program is what one goroutine does with database/sql: calls on a handle, a connection,
// transactions, statements and rows, each in any state, with contexts that may have ended. It
// is drawn while it runs, by what it has open, from its own seed; the same calls are drawn
// over each driver as long as their outcomes are the same.
type program struct {
	rnd   *rand.Rand
	db    *sql.DB
	conn  *sql.Conn
	tx    *sql.Tx
	stmts []*sql.Stmt
	rows  *sql.Rows
	busy  bool   // they are of conn: database/sql waits for their end if that finds itself busy
	id    string // the table of this program is named by it
	log   []string
}

// querier of the program's calls: by chance the handle, or what is open.
func (p *program) on() (string, querier) {
	type choice struct {
		name string
		q    querier
	}
	all := []choice{{"db", p.db}}
	if p.conn != nil && !p.busy {
		all = append(all, choice{"conn", p.conn}, choice{"conn", p.conn})
	}
	if p.tx != nil {
		all = []choice{{"tx", p.tx}} // what waits for its locks elsewhere would wait for ever
	}
	c := all[p.rnd.IntN(len(all))]
	return c.name, c.q
}

// ctx is mostly one that does not end.
func (p *program) ctx() (string, context.Context) {
	if p.rnd.IntN(12) > 0 {
		return "", context.Background()
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return " cancelled", ctx
}

// endedWith says of an error what programs look at: its SQLSTATE, or which it is.
func endedWith(err error) string {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return "ok"
	case errors.As(err, &pgErr):
		return pgErr.Code
	case errors.Is(err, driver.ErrBadConn):
		return "ErrBadConn"
	case errors.Is(err, sql.ErrNoRows):
		return "ErrNoRows"
	case errors.Is(err, sql.ErrTxDone):
		return "ErrTxDone"
	case errors.Is(err, sql.ErrConnDone):
		return "ErrConnDone"
	case errors.Is(err, context.Canceled):
		return fmt.Sprintf("canceled timeout=%v", pgconn.Timeout(err))
	}
	return err.Error()
}

var programReads = []string{
	"SELECT count(*), coalesce(sum(v), 0) FROM {t}", "SELECT v FROM {t} ORDER BY v", "SELECT 1, 2", "SELECT 1/0, 1", "SELECT nope, 1 FROM {t}", "SELEC 1",
	"SELECT v, v FROM {t} WHERE v > $1 ORDER BY v", "SELECT * FROM {t} ORDER BY 1",
}

var programWrites = []string{
	"INSERT INTO {t}(v) VALUES (1)", "INSERT INTO {t}(v) SELECT max(v) + 1 FROM {t}", "UPDATE {t} SET v = v + 1", "DELETE FROM {t} WHERE v > 5", "INSERT INTO {t}(v) VALUES (1/0)",
	"INSERT INTO {t}(v) VALUES ($1)", "ALTER TABLE {t} ADD COLUMN IF NOT EXISTS w int", "ALTER TABLE {t} DROP COLUMN IF EXISTS w", "SAVEPOINT a", "ROLLBACK TO a", "SET LOCAL work_mem = '1MB'",
}

// step does one call, and writes it down with its outcome.
func (p *program) step() {
	note := func(format string, args ...any) { p.log = append(p.log, fmt.Sprintf(format, args...)) }
	text := func(from []string) (string, []any) {
		q := from[p.rnd.IntN(len(from))]
		var args []any
		if strings.Contains(q, "$1") {
			args = []any{p.rnd.IntN(4)}
		}
		return strings.ReplaceAll(q, "{t}", "t"+p.id), args
	}
	switch k := p.rnd.IntN(20); {
	case k < 5: // a read, whole
		name, q := p.on()
		when, ctx := p.ctx()
		query, args := text(programReads)
		rows, err := q.QueryContext(ctx, query, args...)
		note("%s.Query%s %s %v: %s", name, when, query, args, p.drain(rows, err))
	case k < 9:
		name, q := p.on()
		when, ctx := p.ctx()
		query, args := text(programWrites)
		if strings.Contains(query, "SAVEPOINT") || strings.Contains(query, "ROLLBACK") || strings.Contains(query, "LOCAL") {
			if p.tx == nil {
				return
			}
		}
		if p.tx == nil && p.rows != nil && strings.Contains(query, "ALTER") {
			return // it would wait for the rows
		}
		res, err := q.ExecContext(ctx, query, args...)
		n := int64(0)
		if err == nil {
			n, _ = res.RowsAffected()
		}
		note("%s.Exec%s %s %v: %s %d", name, when, query, args, endedWith(err), n)
	case k < 11: // rows that stay open
		if p.rows != nil && p.tx == nil { // beside what has ended stdlib can panic
			more := p.rows.Next()
			note("rows.Next: %v", more)
			return
		}
		if p.rows != nil {
			return
		}
		name, q := p.on()
		query, args := text(programReads[:4]) // at an error behind its rows stdlib can panic
		rows, err := q.QueryContext(context.Background(), query, args...)
		note("%s.Query, to stay open, %s: %s", name, query, endedWith(err))
		if err == nil {
			p.rows, p.busy = rows, name == "conn"
		}
	case k < 13:
		if p.rows != nil {
			err := p.rows.Close()
			note("rows.Close: %s", endedWith(errors.Join(err, p.rows.Err())))
			p.rows, p.busy = nil, false
		}
	case k < 14:
		if p.tx == nil && !p.busy {
			when, ctx := p.ctx()
			var err error
			if p.conn != nil {
				p.tx, err = p.conn.BeginTx(ctx, nil)
			} else {
				p.tx, err = p.db.BeginTx(ctx, nil)
			}
			note("Begin%s: %s", when, endedWith(err))
			if err != nil {
				p.tx = nil
			}
		}
	case k < 16:
		if p.tx != nil {
			if p.rnd.IntN(3) > 0 {
				note("Commit: %s", endedWith(p.tx.Commit()))
			} else {
				note("Rollback: %s", endedWith(p.tx.Rollback()))
			}
			p.tx = nil
		}
	case k < 17:
		if p.conn == nil {
			var err error
			if p.conn, err = p.db.Conn(context.Background()); err != nil {
				p.conn = nil
			}
			note("Conn: %s", endedWith(err))
		} else if p.tx == nil && p.rows == nil { // it waits for rows
			note("conn.Close: %s", endedWith(p.conn.Close()))
			p.conn = nil
		}
	case k < 18:
		name, q := p.on()
		when, ctx := p.ctx()
		query, _ := text(programReads)
		st, err := q.PrepareContext(ctx, query)
		note("%s.Prepare%s %s: %s", name, when, query, endedWith(err))
		if err == nil {
			p.stmts = append(p.stmts, st)
		}
	case len(p.stmts) > 0 && !p.busy:
		i := p.rnd.IntN(len(p.stmts))
		st := p.stmts[i]
		switch k := p.rnd.IntN(4); {
		case k == 0:
			note("stmt %d.Close: %s", i, endedWith(st.Close()))
			p.stmts = slices.Delete(p.stmts, i, i+1)
		case p.tx != nil:
			rows, err := p.tx.Stmt(st).Query()
			note("tx.Stmt %d: %s", i, p.drain(rows, err))
		default:
			rows, err := st.Query()
			note("stmt %d.Query: %s", i, p.drain(rows, err))
		}
	}
}

// stale reports whether a call met what its connection knew of a statement before DDL.
func stale(call string) bool {
	return strings.HasSuffix(call, ": 0A000") || strings.HasSuffix(call, ": 08P01")
}

// drain reads rows to their end.
func (p *program) drain(rows *sql.Rows, err error) string {
	if err != nil {
		return endedWith(err)
	}
	defer rows.Close()
	columns, _ := rows.Columns()
	values := make([]any, len(columns))
	to := make([]any, len(columns))
	for i := range to {
		to[i] = &values[i]
	}
	var b strings.Builder
	for rows.Next() {
		err := rows.Scan(to...)
		fmt.Fprint(&b, values, endedWith(err), " ")
	}
	return b.String() + endedWith(rows.Err())
}

// end closes what is open, and returns what the program has left in its table.
func (p *program) end(t *testing.T, dsn string) string {
	if p.rows != nil {
		p.rows.Close()
	}
	if p.tx != nil {
		p.tx.Rollback()
	}
	for _, st := range p.stmts {
		st.Close()
	}
	if p.conn != nil {
		p.conn.Close()
	}
	var left string
	conn := connect(t, dsn)
	if err := conn.QueryRow(context.Background(), "SELECT coalesce(string_agg(v::text, ',' ORDER BY v), '') FROM t"+p.id).Scan(&left); err != nil {
		left = endedWith(err)
	}
	_, _ = conn.Exec(context.Background(), "DROP TABLE t"+p.id)
	_ = conn.Close(context.Background())
	return left
}

// TestPrograms runs programs at random over pgx's driver and over flightpg with each
// executor. Each call must have the same outcome: rows, SQLSTATE or kind of error; and the
// table must be the same in the end, so that no Commit says what is not so. The first
// difference ends a program: what is drawn afterwards differs.
func TestPrograms(t *testing.T) {
	seed := *programSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	count := *programCount
	if testing.Short() {
		count /= 10
	}
	forEachServer(t, func(t *testing.T, dsn string) {
		drivers := []struct{ name, driver, params string }{
			{"pgx", "pgx", ""}, {"default", "flightpg", ""}, {"generic", "flightpg", "flight_executor=generic"},
		}
		admin := connect(t, dsn)
		for _, mode := range []string{"", "default_query_exec_mode=exec", "default_query_exec_mode=cache_describe"} {
			steps := 0
			for n := range count {
				at := seed + uint64(n)
				var want *program
				var wantLeft string
				for _, d := range drivers {
					p := &program{rnd: rand.New(rand.NewPCG(at, 1)), id: fmt.Sprintf("_%d", n)}
					if _, err := admin.Exec(context.Background(), "CREATE TABLE t"+p.id+" (v int); INSERT INTO t"+p.id+" VALUES (0), (1), (2)"); err != nil {
						t.Fatal(err)
					}
					p.db = open(t, d.driver, with(dsn, strings.Trim(mode+"&"+d.params, "&")))
					for range 30 {
						p.step()
					}
					left := p.end(t, dsn)
					p.db.Close()
					steps += len(p.log)
					if want == nil {
						want, wantLeft = p, left
						continue
					}
					for i := range min(len(p.log), len(want.log)) {
						if stale(want.log[i]) != stale(p.log[i]) {
							break // which connection has it is chance; docs/switching.md
						}
						if strings.ReplaceAll(p.log[i], "conn busy", "ErrBadConn") == strings.ReplaceAll(want.log[i], "conn busy", "ErrBadConn") {
							continue // pgx says the former where it describes the statement first
						}
						if p.log[i] != want.log[i] {
							t.Errorf("%s, %s, -programs.seed=%d -programs=1:\n  %s\n%s: %s\npgx: %s", d.name, mode, at, strings.Join(want.log[:i], "\n  "), d.name, p.log[i], want.log[i])
							break
						}
					}
					if slices.Equal(p.log, want.log) && left != wantLeft {
						t.Errorf("%s, %s, -programs.seed=%d -programs=1: left %s; pgx: %s\n%s", d.name, mode, at, left, wantLeft, strings.Join(p.log, "\n  "))
					}
				}
			}
			t.Logf("%q: %d steps of %d programs, seed %d", mode, steps, count, seed)
		}
	})
}
