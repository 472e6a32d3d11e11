package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// plainConn is a connection as drivers write it that wrap others and do not forward
// driver.Validator and driver.SessionResetter.
type plainConn struct{ driver.Conn }

func (c plainConn) QueryContext(ctx context.Context, q string, a []driver.NamedValue) (driver.Rows, error) {
	return c.Conn.(driver.QueryerContext).QueryContext(ctx, q, a)
}

func (c plainConn) ExecContext(ctx context.Context, q string, a []driver.NamedValue) (driver.Result, error) {
	return c.Conn.(driver.ExecerContext).ExecContext(ctx, q, a)
}

func (c plainConn) BeginTx(ctx context.Context, o driver.TxOptions) (driver.Tx, error) {
	return c.Conn.(driver.ConnBeginTx).BeginTx(ctx, o)
}

func (c plainConn) PrepareContext(ctx context.Context, q string) (driver.Stmt, error) {
	return c.Conn.(driver.ConnPrepareContext).PrepareContext(ctx, q)
}

func (c plainConn) CheckNamedValue(v *driver.NamedValue) error {
	return c.Conn.(driver.NamedValueChecker).CheckNamedValue(v)
}

func (c plainConn) Ping(ctx context.Context) error { return c.Conn.(driver.Pinger).Ping(ctx) }

// resettingConn forwards driver.SessionResetter only.
type resettingConn struct{ plainConn }

func (c resettingConn) ResetSession(ctx context.Context) error {
	return c.Conn.(driver.SessionResetter).ResetSession(ctx)
}

// forwardingConn forwards both.
type forwardingConn struct{ resettingConn }

func (c forwardingConn) IsValid() bool { return c.Conn.(driver.Validator).IsValid() }

type plainConnector struct {
	driver.Connector
	wrap func(driver.Conn) driver.Conn
}

func (c plainConnector) Connect(ctx context.Context) (driver.Conn, error) {
	cn, err := c.Connector.Connect(ctx)
	if err != nil {
		return nil, err
	}
	return c.wrap(cn), nil
}

var wrappers = map[string]func(driver.Conn) driver.Conn{
	"Plain":     func(c driver.Conn) driver.Conn { return plainConn{c} },
	"Resetting": func(c driver.Conn) driver.Conn { return resettingConn{plainConn{c}} },
}

// TestHidden: where a driver around this one hides when connections are put back, sessions
// are given back all the same.
func TestHidden(t *testing.T) {
	for name, wrap := range wrappers {
		open := func(t *testing.T, f *fakeServer, cfg Config) (*sql.DB, *Connector) {
			t.Helper()
			c, err := Wrap(f, cfg)
			if err != nil {
				t.Fatal(err)
			}
			db := sql.OpenDB(plainConnector{c, wrap})
			db.SetMaxIdleConns(100)
			t.Cleanup(func() { _ = db.Close() })
			return db, c
		}
		bubble(t, name+"WritersGoOn", func(t *testing.T) {
			f := &fakeServer{answer: func(_ context.Context, s *fakeSession, _ string, _ []driver.NamedValue) (*fakeRows, error) {
				time.Sleep(time.Millisecond) // the bubble's time
				return oneRow(int64(s.id)), nil
			}}
			db, c := open(t, f, Config{SessionConns: 2})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // of the bubble's time
			defer cancel()
			var wg sync.WaitGroup
			for i := range 20 {
				wg.Go(func() {
					for range 10 {
						var err error
						switch i % 5 {
						case 0:
							_, err = db.ExecContext(ctx, "UPDATE t SET v = 1")
						case 1:
							_, err = queryInt(ctx, db, "INSERT INTO t VALUES (1) RETURNING id")
						case 2:
							_, err = queryInt(ctx, db, "SELECT random()")
						case 3:
							err = db.PingContext(ctx)
						case 4:
							var tx *sql.Tx
							if tx, err = db.BeginTx(ctx, nil); err == nil {
								_, _ = tx.ExecContext(ctx, "UPDATE t SET v = 1")
								_, _ = queryInt(ctx, tx, "SELECT random()")
								err = tx.Commit()
							}
						}
						if err != nil {
							t.Errorf("kind %d: %v", i%5, err)
							return
						}
					}
				})
			}
			wg.Wait()
			if n := f.open(); n > 2 {
				t.Errorf("%d sessions; want at most 2", n)
			}
			c.sessions.mu.Lock()
			if c.sessions.wanted != len(c.sessions.parked) {
				t.Errorf("%d sessions are wanted, %d lie idle", c.sessions.wanted, len(c.sessions.parked))
			}
			c.sessions.mu.Unlock()
			for range 20 {
				if _, err := queryInt(ctx, db, hotQuery, 1); err != nil {
					t.Error(err)
				}
			}
			if s := c.Stats(); s.Flights != 20 || s.Bypasses[ReasonSession] != 0 {
				t.Errorf("Stats = %+v; want reads on flights", s)
			}
		})
		bubble(t, name+"SameSessionAgain", func(t *testing.T) {
			f := &fakeServer{}
			db, _ := open(t, f, Config{SessionConns: 1})
			conn, other := mustConn(t, db), mustConn(t, db)
			defer conn.Close()
			defer other.Close()
			mustExec(t, conn, "INSERT INTO t VALUES (1)")
			mustInt(t, conn, "SELECT lastval()")
			if n := f.opened(); n != 1 {
				t.Errorf("%d sessions; want 1", n)
			}
			mustExec(t, other, "INSERT INTO t VALUES (2)") // takes the session
			if _, err := queryInt(t.Context(), conn, "SELECT lastval()"); !errors.Is(err, errStrayed) {
				t.Errorf("lastval of another's session: %v; want %v", err, errStrayed)
			}
			mustExec(t, conn, "INSERT INTO t VALUES (3)")
			mustInt(t, conn, "SELECT lastval()")
		})
		bubble(t, name+"SaidOpenlyStays", func(t *testing.T) {
			f := &fakeServer{}
			db, _ := open(t, f, Config{})
			conn, other := mustConn(t, db), mustConn(t, db)
			defer conn.Close()
			defer other.Close()
			mustExec(t, conn, "SET a = 1")
			own := int64(f.on("SET a = 1")[0])
			mustExec(t, other, "INSERT INTO t VALUES (1)")
			if got := mustInt(t, conn, hotQuery, 1); got != own {
				t.Errorf("the read ran on session %d; want %d", got, own)
			}
			if got := int64(f.on("INSERT INTO t VALUES (1)")[0]); got == own {
				t.Error("another got the session")
			}
		})
		bubble(t, name+"WhileRowsAreOpen", func(t *testing.T) {
			f := &fakeServer{}
			db, _ := open(t, f, Config{})
			rows, err := db.Query("SELECT random()")
			if err != nil {
				t.Fatal(err)
			}
			mustExec(t, db, "INSERT INTO t VALUES (1)")
			if got := f.on("INSERT INTO t VALUES (1)"); got[0] == f.on("SELECT random()")[0] {
				t.Error("the session of rows that are open served another")
			}
			rows.Close()
			synctest.Wait()
		})
	}
	bubble(t, "Forwarding", func(t *testing.T) {
		f := &fakeServer{}
		c, err := Wrap(f, Config{})
		if err != nil {
			t.Fatal(err)
		}
		db := sql.OpenDB(plainConnector{c, func(c driver.Conn) driver.Conn { return forwardingConn{resettingConn{plainConn{c}}} }})
		defer db.Close()
		mustExec(t, db, "INSERT INTO t VALUES (1)") // after which it is told
		conn := mustConn(t, db)
		defer conn.Close()
		mustExec(t, conn, "INSERT INTO t VALUES (1)")
		if got := mustInt(t, conn, hotQuery, 1); got != int64(f.on("INSERT INTO t VALUES (1)")[1]) {
			t.Errorf("the read ran on session %d; want the one that the connection has", got)
		}
	})
}
