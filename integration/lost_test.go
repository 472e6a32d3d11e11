package integration

import (
	"bytes"
	"context"
	"database/sql"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// relay passes connections on to a server, and cuts one when it is told to: where
// the server's answer says that a write is done.
type relay struct {
	net.Listener
	done atomic.Pointer[string] // what the answer says; nil: do not cut
	all  sync.WaitGroup
}

func newRelay(t *testing.T, upstream string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l}
	t.Cleanup(func() {
		l.Close()
		r.all.Wait()
	})
	r.all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", upstream)
			if err != nil {
				client.Close()
				continue
			}
			r.all.Go(func() { _, _ = io.Copy(server, client); server.Close() })
			r.all.Go(func() { r.answers(client, server) })
		}
	})
	return r
}

func (r *relay) answers(client, server net.Conn) {
	defer client.Close()
	defer server.Close()
	buf := make([]byte, 1<<16)
	for {
		n, err := server.Read(buf)
		if err != nil {
			return
		}
		if done := r.done.Load(); done != nil && bytes.Contains(buf[:n], []byte(*done)) && r.done.CompareAndSwap(done, nil) {
			return
		}
		if _, err := client.Write(buf[:n]); err != nil {
			return
		}
	}
}

// TestWrite_AnswerLost: the connection breaks when a write has run and its answer
// is on the way. It may not run again, whatever the driver below says of the error.
// (pgx's own driver.Conn tells database/sql that it never sent a simple query, which
// is then sent again: the log has its count.)
func TestWrite_AnswerLost(t *testing.T) {
	upstream, err := url.Parse(pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	eye := open(t, "pgx", upstream.String())
	if _, err := eye.Exec(`CREATE TABLE written (n int)`); err != nil {
		t.Fatal(err)
	}
	returning := func(ctx context.Context, q interface {
		QueryRowContext(context.Context, string, ...any) *sql.Row
	}, query string, args ...any,
	) error {
		var n string
		return q.QueryRowContext(ctx, query, args...).Scan(&n)
	}
	writes := []struct {
		name string
		do   func(ctx context.Context, db *sql.DB, arm func(done string)) error
	}{
		{"Exec", func(ctx context.Context, db *sql.DB, arm func(done string)) error {
			arm("INSERT 0 1")
			_, err := db.ExecContext(ctx, `INSERT INTO written VALUES (1)`)
			return err
		}},
		{"ExecWithArguments", func(ctx context.Context, db *sql.DB, arm func(done string)) error {
			if _, err := db.ExecContext(ctx, `INSERT INTO written SELECT $1::int WHERE $2`, 1, false); err != nil {
				return err
			}
			arm("INSERT 0 1")
			_, err := db.ExecContext(ctx, `INSERT INTO written SELECT $1::int WHERE $2`, 1, true)
			return err
		}},
		{"Returning", func(ctx context.Context, db *sql.DB, arm func(done string)) error {
			arm("INSERT 0 1")
			return returning(ctx, db, `INSERT INTO written VALUES (1) RETURNING n`)
		}},
		{"ReturningWithArguments", func(ctx context.Context, db *sql.DB, arm func(done string)) error {
			arm("INSERT 0 1")
			return returning(ctx, db, `INSERT INTO written VALUES ($1) RETURNING n`, 1)
		}},
		{"Prepared", func(ctx context.Context, db *sql.DB, arm func(done string)) error {
			stmt, err := db.PrepareContext(ctx, `INSERT INTO written SELECT 1 WHERE $1`)
			if err != nil {
				return err
			}
			defer stmt.Close()
			if _, err := stmt.ExecContext(ctx, false); err != nil {
				return err
			}
			arm("INSERT 0 1")
			_, err = stmt.ExecContext(ctx, true)
			return err
		}},
		{"Function", func(ctx context.Context, db *sql.DB, arm func(done string)) error {
			arm("it is written")
			return returning(ctx, db, `SELECT write_one()`)
		}},
		{"Commit", func(ctx context.Context, db *sql.DB, arm func(done string)) error {
			tx, err := db.BeginTx(ctx, nil)
			if err != nil {
				return err
			}
			defer tx.Rollback()
			if _, err := tx.ExecContext(ctx, `INSERT INTO written VALUES (1)`); err != nil {
				return err
			}
			arm("COMMIT")
			return tx.Commit()
		}},
	}
	if _, err := eye.Exec(`CREATE FUNCTION write_one() RETURNS text LANGUAGE sql VOLATILE AS $$ INSERT INTO written VALUES (1) RETURNING 'it is ' || 'written' $$`); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []string{"cache_statement", "exec", "simple_protocol"} {
		for _, w := range writes {
			for _, driver := range []string{"pgx", "flightpg"} {
				t.Run(mode+"/"+w.name+"/"+driver, func(t *testing.T) {
					if _, err := eye.Exec(`TRUNCATE written`); err != nil {
						t.Fatal(err)
					}
					r := newRelay(t, upstream.Host)
					u := *upstream
					u.Host = r.Addr().String()
					db := open(t, driver, with(u.String(), "default_query_exec_mode="+mode))
					ctx := t.Context()
					if err := db.PingContext(ctx); err != nil { // the session's connection is there
						t.Fatal(err)
					}
					err := w.do(ctx, db, func(done string) { r.done.Store(&done) })
					if r.done.Load() != nil {
						t.Fatalf("nothing was cut (%v)", err)
					}
					var n int
					if err := eye.QueryRow(`SELECT count(*) FROM written`).Scan(&n); err != nil {
						t.Fatal(err)
					}
					t.Logf("it ran %d times: %v", n, err)
					if driver == "flightpg" && (n != 1 || err == nil) {
						t.Errorf("ran %d times, error %v; want once, and an error", n, err)
					}
				})
			}
		}
	}
}
