package flightpg

import (
	"context"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
)

// canceller makes a flight whose callers have all left cancel its query on the
// server and keep its connection. pgx's own default closes the connection; that
// stays the way for sessions.
//
// pgx's CancelRequestContextWatcherHandler does the same, but hangs up on the
// cancel request as soon as the query has ended. PgBouncer 1.18 dies of that
// (FATAL "bad client state": its issue 801), with everybody's connections. So
// the server, or the pooler, is always left to close first: then it has also
// delivered the request, and the next query on the connection is safe from it.
type canceller struct {
	pg       *pgconn.PgConn
	patient  atomic.Bool   // nobody waits for the query to end, so it may take its time
	deadline time.Time     // of the query that is being cancelled
	done     chan struct{} // closed when the request has ended
	closed   atomic.Bool   // a request may be on its way still: nobody can use the connection any more
}

const (
	cancelPatience = time.Second           // for the query to end; else the connection is closed
	leavePatience  = 10 * time.Millisecond // while a caller waits for that, who wants to leave
	cancelTimeout  = 15 * time.Second      // for the request, which nobody waits for then
)

// cancellerKey is where a connection's canceller is kept, among what pgx keeps for others.
const cancellerKey = "flightpg.canceller"

func cancelRequest(pg *pgconn.PgConn) ctxwatch.Handler {
	c := &canceller{pg: pg}
	pg.CustomData()[cancellerKey] = c
	return c
}

// HandleCancel implements ctxwatch.Handler: the query's context has ended.
func (c *canceller) HandleCancel(context.Context) {
	if c.closed.Load() {
		return
	}
	patience := leavePatience
	if c.patient.Load() {
		patience = cancelPatience
	}
	c.deadline = time.Now().Add(patience)
	_ = c.pg.Conn().SetDeadline(c.deadline)
	done := make(chan struct{})
	c.done = done
	go func() {
		defer close(done)
		ctx, stop := context.WithTimeout(context.Background(), cancelTimeout)
		defer stop()
		_ = c.pg.CancelRequest(ctx) // returns when the other side has closed; if it fails, the deadline comes
	}()
}

// HandleUnwatchAfterCancel implements ctxwatch.Handler: the query has ended too.
func (c *canceller) HandleUnwatchAfterCancel() {
	if c.closed.Load() {
		return
	}
	late := time.NewTimer(time.Until(c.deadline))
	defer late.Stop()
	select {
	case <-c.done:
		_ = c.pg.Conn().SetDeadline(time.Time{})
	case <-late.C:
		c.closed.Store(true)
		_ = c.pg.Conn().Close()
	}
}
