package flightpg

import (
	"context"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
)

// A flight can have callers without end and without a deadline, so its connection must
// notice by itself that the other side has gone: a machine that has lost its power, a
// firewall that has forgotten the connection. Go's own keepalive takes 150 s for that, and
// the system's retransmissions of what was not acknowledged take a quarter of an hour.
// (Only the other side's system answers for it: a process there that hangs is not noticed,
// see flight.Watched.)
const (
	keepAliveIdle     = 15 * time.Second // as Go
	keepAliveInterval = 5 * time.Second
	keepAliveCount    = 3
	// goneAfter is when a connection is given up whose other side says nothing.
	goneAfter = keepAliveIdle + keepAliveCount*keepAliveInterval
)

// noticing has a config's connections notice within goneAfter that the other side has
// gone. A dialer of the user's own is left alone; so is what his own net.Dialer has set,
// which looks like pgx's.
func noticing(pc *pgx.ConnConfig) {
	dial := pc.DialFunc
	if dial == nil || !sameFunc(dial, defaultConfig().DialFunc) {
		return
	}
	pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := dial(ctx, network, addr)
		if tcp, ok := c.(*net.TCPConn); ok && err == nil {
			notice(tcp)
		}
		return c, err
	}
}
