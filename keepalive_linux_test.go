package flightpg

import (
	"context"
	"net"
	"reflect"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// options are a connection's: when keepalive begins, how often it asks, how many times, and
// for how long what is sent may go without an answer.
type options struct{ idle, interval, count, user int }

func optionsOf(t *testing.T, c net.Conn) (o options) {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for opt, to := range map[int]*int{
			syscall.TCP_KEEPIDLE: &o.idle, syscall.TCP_KEEPINTVL: &o.interval, syscall.TCP_KEEPCNT: &o.count, tcpUserTimeout: &o.user,
		} {
			if *to, err = syscall.GetsockoptInt(int(fd), syscall.IPPROTO_TCP, opt); err != nil {
				t.Error(err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
	return o
}

// TestKeepAlive: flights' connections notice that the server has gone, as the documentation
// says when. What a dialer of the user's own says counts, and sessions are pgx's.
func TestKeepAlive(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const dsn = "host=127.0.0.1 user=u database=d sslmode=disable"
	ours, gos := options{15, 5, 3, 30_000}, options{15, 15, 9, 0}
	for _, tc := range []struct {
		name, params string
		change       func(*pgx.ConnConfig)
		want         options
	}{
		{"Default", "", nil, ours},
		{"ConnectTimeout", " connect_timeout=3", nil, ours},
		{"OwnFunction", "", func(pc *pgx.ConnConfig) {
			pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, addr)
			}
		}, gos},
		{"OwnKeepAlive", "", func(pc *pgx.ConnConfig) {
			pc.DialFunc = (&net.Dialer{KeepAlive: time.Minute}).DialContext
		}, options{60, 15, 9, 30_000}},
		{"OwnUserTimeout", "", func(pc *pgx.ConnConfig) {
			d := &net.Dialer{Control: func(_, _ string, c syscall.RawConn) error {
				return c.Control(func(fd uintptr) {
					_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, tcpUserTimeout, 7_000)
				})
			}}
			pc.DialFunc = d.DialContext
		}, options{15, 5, 3, 7_000}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pc, err := pgx.ParseConfig(dsn + tc.params)
			if err != nil {
				t.Fatal(err)
			}
			if tc.change != nil {
				tc.change(pc)
			}
			src, err := fromConfig(pc, new(Config))
			if err != nil {
				t.Fatal(err)
			}
			// The flights' own config, and that of stdlib's connector under Wrap.
			for name, connector := range map[string]any{"OpenDB": src.flights, "Wrap": fromConnector(src.sessions).flights} {
				if got := dialed(t, connector, l); got != tc.want {
					t.Errorf("%s: a flight's connection has %+v; want %+v", name, got, tc.want)
				}
			}
			if tc.change == nil {
				if got := dialed(t, src.sessions, l); got != gos {
					t.Errorf("a session's connection has %+v; want %+v, as pgx's", got, gos)
				}
			}
		})
	}
}

// dialed has stdlib's connector open the way to a server.
func dialed(t *testing.T, connector any, l net.Listener) options {
	t.Helper()
	pc := reflect.ValueOf(connector).FieldByName("ConnConfig").Interface().(pgx.ConnConfig)
	c, err := pc.DialFunc(t.Context(), "tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return optionsOf(t, c)
}
