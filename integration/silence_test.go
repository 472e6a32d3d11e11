package integration

import (
	"bytes"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// impatient passes connections on to a server. It counts what it passes on with a mark
// in it, and closes a connection on which nothing was sent for a while after that, as
// proxies do.
type impatient struct {
	net.Listener
	silence time.Duration
	mark    []byte
	marked  atomic.Int64
	all     sync.WaitGroup
}

func newImpatient(t *testing.T, upstream, mark string, silence time.Duration) *impatient {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &impatient{Listener: l, silence: silence, mark: []byte(mark)}
	t.Cleanup(func() {
		l.Close()
		p.all.Wait()
	})
	p.all.Go(func() {
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
			var marked atomic.Bool
			pass := func(to, from net.Conn, count bool) {
				defer to.Close()
				defer from.Close()
				buf := make([]byte, 1<<16)
				for {
					n, err := from.Read(buf)
					if err != nil {
						return
					}
					if found := bytes.Count(buf[:n], p.mark); count && found > 0 {
						p.marked.Add(int64(found))
						marked.Store(true)
					}
					if marked.Load() {
						end := time.Now().Add(p.silence) // on either side
						_, _ = from.SetReadDeadline(end), to.SetReadDeadline(end)
					}
					if _, err := to.Write(buf[:n]); err != nil {
						return
					}
				}
			}
			p.all.Go(func() { pass(server, client, true) })
			p.all.Go(func() { pass(client, server, false) })
		}
	})
	return p
}

// TestLost_Silence: reads that take longer than a proxy lets a connection be silent. They
// fail as with pgx, each after one execution: another one would end in the same way.
func TestLost_Silence(t *testing.T) {
	upstream, err := url.Parse(pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	admin := open(t, "pgx", upstream.String())
	if _, err := admin.Exec(`CREATE FUNCTION slow(mark text, seconds float8) RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN PERFORM pg_sleep(seconds); RETURN mark; END $$`); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the server does not look whether somebody waits
		if _, err := admin.Exec(`SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'SELECT slow%'`); err != nil {
			t.Error(err)
		}
	})
	const callers = 16
	const mark = "a-read-that-takes-long"
	for _, name := range []string{"pgx", "pipeline", "generic"} {
		for _, same := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/same=%t", name, same), func(t *testing.T) {
				t.Parallel()
				p := newImpatient(t, upstream.Host, mark, time.Second)
				u := *upstream
				u.Host = p.Addr().String()
				handle, params := "pgx", ""
				if name != "pgx" {
					handle, params = "flightpg", "flight_executor="+name
				}
				db := open(t, handle, with(u.String(), params))
				db.SetMaxIdleConns(callers)
				const query = `SELECT slow($1, $2)`
				var got string
				if err := db.QueryRow(query, "quick", 0).Scan(&got); err != nil {
					t.Fatal(err)
				}
				led := flightpg.ReadStats(db).Flights
				errs := make([]error, callers)
				var all sync.WaitGroup
				for i := range callers {
					all.Go(func() {
						arg := mark
						if !same {
							arg += fmt.Sprint(i)
						}
						var got string
						errs[i] = db.QueryRow(query, arg, 60).Scan(&got)
					})
				}
				all.Wait()
				for i, err := range errs {
					if !errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, driver.ErrBadConn) {
						t.Errorf("caller %d: %v; want that the connection broke", i, err)
					}
				}
				want := int64(callers)
				if name != "pgx" {
					want = int64(flightpg.ReadStats(db).Flights - led)
				}
				if n := p.marked.Load(); n != want || n > callers {
					t.Errorf("%d executions for %d callers; want %d", n, callers, want)
				}
			})
		}
	}
}
