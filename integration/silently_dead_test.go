package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// blackhole passes connections on to a server, until some are told to carry nothing any
// more. They stay open, and what is sent is acknowledged: so do balancers that hang, and
// firewalls that have forgotten a connection look much the same to who waits.
type blackhole struct {
	net.Listener
	all sync.WaitGroup

	mu   sync.Mutex
	open []*atomic.Bool // of each connection: it is dead
	ends []net.Conn
}

func newBlackhole(t *testing.T, upstream string) *blackhole {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &blackhole{Listener: l}
	t.Cleanup(func() {
		l.Close()
		b.mu.Lock()
		for _, c := range b.ends {
			c.Close()
		}
		b.mu.Unlock()
		b.all.Wait()
	})
	b.all.Go(func() {
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
			dead := new(atomic.Bool)
			b.mu.Lock()
			b.open, b.ends = append(b.open, dead), append(b.ends, client, server)
			b.mu.Unlock()
			pass := func(to, from net.Conn) {
				buf := make([]byte, 1<<16)
				for {
					n, err := from.Read(buf)
					switch {
					case dead.Load(): // what was read is lost, an end too
						if err != nil {
							return
						}
					case err != nil:
						to.Close()
						return
					default:
						_, _ = to.Write(buf[:n])
					}
				}
			}
			b.all.Go(func() { pass(server, client) })
			b.all.Go(func() { pass(client, server) })
		}
	})
	return b
}

// swallow makes all connections that are open carry nothing any more.
func (b *blackhole) swallow() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, dead := range b.open {
		dead.Store(true)
	}
}

// TestLost_SilentlyDead: all connections die without a word, and callers come all the time,
// each with a deadline: before all who wait for a read have left, there are others. Reads
// must come back as with pgx, whose callers each find that their own connection is dead. One
// caller has no deadline: nobody can help him, but he must not take the others along.
func TestLost_SilentlyDead(t *testing.T) {
	upstream, err := url.Parse(pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, executor := range []string{"pgx", "pipeline", "generic"} {
		for _, mode := range []string{"fenced", "strict"} {
			for _, patient := range []int{0, 2} {
				if executor == "pgx" && mode == "strict" {
					continue // is the same
				}
				t.Run(fmt.Sprintf("%s/%s/patient=%d", executor, mode, patient), func(t *testing.T) {
					t.Parallel()
					b := newBlackhole(t, upstream.Host)
					u := *upstream
					u.Host = b.Addr().String()
					handle, params := "pgx", ""
					if executor != "pgx" {
						handle, params = "flightpg", "flight_executor="+executor+"&flight_mode="+mode
					}
					db := open(t, handle, with(u.String(), params))
					const conns = 8
					db.SetMaxIdleConns(conns)
					read := func(ctx context.Context, n int) error {
						var got int
						return db.QueryRowContext(ctx, "SELECT $1::int", n).Scan(&got)
					}
					var all sync.WaitGroup
					for i := range 10 * conns {
						all.Go(func() {
							if err := read(t.Context(), 1+i%conns); err != nil {
								t.Error(err)
							}
						})
					}
					all.Wait()
					b.swallow()
					ctx, stop := context.WithCancel(t.Context())
					defer all.Wait()
					defer stop()
					for range patient {
						all.Go(func() { _ = read(ctx, 7) })
					}
					var back atomic.Bool
					until(t, "a read has an answer again", func() bool {
						all.Go(func() {
							ctx, stop := context.WithTimeout(t.Context(), time.Second/2)
							defer stop()
							switch err := read(ctx, 7); {
							case err == nil:
								back.Store(true)
							case !errors.Is(err, context.DeadlineExceeded):
								t.Error(err)
							}
						})
						time.Sleep(18 * time.Millisecond) // callers come one after the other
						return back.Load()
					})
				})
			}
		}
	}
}

// TestLost_SlowNotTwice: a read takes long, and lives; callers come all the time, whose
// deadlines are shorter. One execution more can be what shows that the first one's
// connection may carry nothing; there is no third, and the caller without a deadline has
// his answer from the first one.
func TestLost_SlowNotTwice(t *testing.T) {
	for _, executor := range []string{"pipeline", "generic"} {
		for _, known := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/known=%t", executor, known), func(t *testing.T) {
				dsn := pgtest.Database(t)
				g := newGate(t, dsn)
				db := open(t, "flightpg", with(dsn, "flight_executor="+executor))
				read := func(ctx context.Context) error {
					var v int
					return db.QueryRowContext(ctx, "SELECT v FROM gate WHERE v > -5").Scan(&v)
				}
				if known {
					if err := read(t.Context()); err != nil {
						t.Fatal(err)
					}
				}
				g.shut()
				patient := make(chan error, 1)
				go func() { patient <- read(t.Context()) }()
				until(t, "the read waits", func() bool { return g.waiting() == 1 })
				var all sync.WaitGroup
				for range 60 {
					all.Go(func() {
						ctx, stop := context.WithTimeout(t.Context(), 300*time.Millisecond)
						defer stop()
						if err := read(ctx); !errors.Is(err, context.DeadlineExceeded) {
							t.Error(err)
						}
					})
					time.Sleep(20 * time.Millisecond) // callers come one after the other
				}
				n := g.waiting()
				all.Wait()
				if n < 1 || n > 2 {
					t.Errorf("%d executions; want 2 at most", n)
				}
				g.open()
				if err := <-patient; err != nil {
					t.Error(err)
				}
			})
		}
	}
}
