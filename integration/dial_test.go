package integration

import (
	"context"
	"database/sql"
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
)

// door passes connections on to a server, if it is open when they come. Else it takes
// them and is silent; or, after a while, it opens and closes them.
type door struct {
	net.Listener
	open  atomic.Bool
	after atomic.Int64 // nanoseconds
	taken atomic.Int64
	all   sync.WaitGroup
}

// newDoor returns a door, and the DSN of the server behind it.
func newDoor(t *testing.T, dsn string) (*door, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	upstream := u.Host
	u.Host = l.Addr().String()
	d := &door{Listener: l}
	t.Cleanup(func() {
		l.Close()
		d.all.Wait()
	})
	d.all.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			d.taken.Add(1)
			d.all.Go(func() { d.pass(client, upstream) })
		}
	})
	return d, u.String()
}

func (d *door) pass(client net.Conn, upstream string) {
	defer client.Close()
	if !d.open.Load() {
		if after := d.after.Load(); after > 0 {
			time.Sleep(time.Duration(after)) // while callers come
			d.open.Store(true)
			return
		}
		_, _ = io.Copy(io.Discard, client)
		return
	}
	server, err := net.Dial("tcp", upstream)
	if err != nil {
		return
	}
	defer server.Close()
	d.all.Go(func() {
		_, _ = io.Copy(server, client)
		server.Close()
	})
	_, _ = io.Copy(client, server)
}

// generic opens a handle whose flights the generic executor runs.
func generic(t *testing.T, dsn string) *sql.DB { return openExecutor(t, dsn, flightpg.ExecutorGeneric) }

func openExecutor(t *testing.T, dsn string, e flightpg.Executor) *sql.DB {
	t.Helper()
	db, err := flightpg.OpenDB(dsn, flightpg.Config{Executor: e})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return db
}

// TestDial_OneFails: of all who wait for a connection that cannot be opened, one hears
// of it.
func TestDial_OneFails(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		door, dsn := newDoor(t, dsn)
		db := generic(t, dsn)
		door.after.Store(int64(200 * time.Millisecond))
		const callers = 30
		errs := make(chan error, callers)
		for range callers {
			go func() {
				var n int
				errs <- db.QueryRowContext(t.Context(), "SELECT 1").Scan(&n)
			}()
		}
		failed := 0
		for range callers {
			if err := <-errs; err != nil {
				t.Log(err)
				failed++
			}
		}
		if failed != 1 {
			t.Errorf("%d of %d callers have an error; want one", failed, callers)
		}
		if s := flightpg.ReadStats(db); s.Flights+s.Joins != callers {
			t.Errorf("Stats = %+v; want each of %d callers counted once", s, callers)
		}
	})
}

// TestDial_Silent: the address accepts connections and does not answer, and then it
// does. Reads of one key, of which somebody always waits, come back with it, on both
// executors, and so do reads of keys of their own.
func TestDial_Silent(t *testing.T) {
	for _, e := range []flightpg.Executor{flightpg.ExecutorGeneric, flightpg.ExecutorPipeline} {
		for _, same := range []bool{true, false} {
			t.Run(fmt.Sprintf("%v/same=%v", e, same), func(t *testing.T) {
				t.Parallel() // they wait most of the time
				silentDials(t, e, same)
			})
		}
	}
}

func silentDials(t *testing.T, e flightpg.Executor, same bool) {
	forEachServer(t, func(t *testing.T, dsn string) {
		door, dsn := newDoor(t, dsn)
		db := openExecutor(t, dsn, e)
		var key atomic.Int64
		time.AfterFunc(1500*time.Millisecond, func() { door.open.Store(true) })
		start := time.Now()
		var all sync.WaitGroup
		var mu sync.Mutex // guards what follows
		var first time.Duration
		lost, late := 0, 0
		for i := range 8 {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 90 * time.Millisecond) // they come one after the other
				for time.Since(start) < 4*time.Second {
					began := time.Since(start)
					ctx, cancel := context.WithTimeout(t.Context(), 700*time.Millisecond)
					n, want := 0, 1
					if !same {
						want = int(key.Add(1))
					}
					err := db.QueryRowContext(ctx, "SELECT $1::int", want).Scan(&n)
					cancel()
					mu.Lock()
					switch {
					case err == nil && n != want:
						t.Errorf("%d; want %d", n, want)
					case err == nil && first == 0:
						first = time.Since(start)
					case err == nil:
					case !errors.Is(err, context.DeadlineExceeded):
						t.Errorf("at %v: %v", began, err)
					default:
						lost++
						if began > 3*time.Second {
							late++
						}
					}
					mu.Unlock()
					time.Sleep(50 * time.Millisecond) // a steady load, not all at once
				}
			})
		}
		all.Wait()
		t.Logf("%d reads were lost; the first came back at %v, of an outage of 1.5s; %d connections", lost, first, door.taken.Load())
		if lost == 0 || late > 0 || first == 0 {
			t.Errorf("%d reads were lost, %d of them long after the outage", lost, late)
		}
	})
}
