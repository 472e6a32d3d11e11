package flightpg

import (
	"context"
	"database/sql/driver"
	"slices"
	"sync/atomic"
	"time"

	"github.com/flightpg/flightpg/internal/flight"
)

// How flights' connections are opened. A caller that dials for himself waits as long as
// he likes; a flight's dial can have callers without end, each with a little patience:
// at an address that accepts connections and never answers, all reads of its key would
// be lost for as long as it does not end.

const (
	// dialLimit bounds each step of opening a connection that nothing else bounds: the
	// way to a host up to its first ReadyForQuery, where there is no connect_timeout,
	// hooks, and what flightpg asks. It is longer than any server takes that answers
	// at all.
	dialLimit = 30 * time.Second
	// dialPace is how long attempts have before the next one begins beside them. Few
	// dials to a server that answers take as long.
	dialPace = time.Second
	// maxBeside is how many attempts one dial has beside its first. Then the oldest of
	// them makes room for the next; the first one goes on, for servers that are slow.
	maxBeside = 3
	// maxAllBeside bounds those of a connector: a server that is slow because too many
	// connect must not get several times as many.
	maxAllBeside = 64
)

// dials opens a pool's connections.
type dials struct {
	limit  time.Duration // of an attempt
	beside atomic.Int64  // attempts beside a first one, now
}

// newDials returns what opens connections of a source for flights, nil where a pool has
// them: who waits for a turn there gets none by asking twice.
func newDials(src *source) *dials {
	switch {
	case src.pooled:
		return nil
	case src.config == nil:
		return &dials{limit: dialLimit}
	}
	limit := src.config.ConnectTimeout
	if limit == 0 {
		limit = dialLimit
	}
	// A host's name may stand for several addresses, each of which has its time.
	return &dials{limit: 4 * time.Duration(len(hosts(&src.config.Config))) * limit}
}

// attempt is what has come of one.
type attempt struct {
	cancel context.CancelFunc
	first  bool
	conn   driver.Conn
	err    error
}

// dial opens a connection. While that takes long, it tries again beside the attempts
// under way; what succeeds first serves, and the others are cancelled. The error is the
// first attempt's.
func (d *dials) dial(ctx context.Context, connect func(context.Context) (driver.Conn, error)) (driver.Conn, error) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	defer func() {
		close(ended)
		cancel()
	}()
	answers := make(chan *attempt)
	begin := func(first bool) *attempt {
		ctx, cancel := context.WithTimeout(ctx, d.limit)
		a := &attempt{cancel: cancel, first: first}
		go func() {
			a.err = flight.ErrGoexit
			defer func() {
				if p := recover(); p != nil { // nobody could there
					a.err = hookPanic(p)
				}
				cancel()
				if !first {
					d.beside.Add(-1)
				}
				select {
				case answers <- a:
				case <-ended:
					if a.err == nil {
						_ = a.conn.Close()
					}
				}
			}()
			a.conn, a.err = connect(ctx)
		}()
		return a
	}
	begin(true)
	var beside []*attempt // oldest first
	var failed *attempt   // the first
	next := time.NewTimer(dialPace)
	defer next.Stop()
	for {
		select {
		case a := <-answers:
			if a.err == nil {
				return a.conn, nil
			}
			beside = slices.DeleteFunc(beside, func(b *attempt) bool { return b == a })
			if a.first {
				failed = a
				next.Reset(dialPace) // the others may have begun just now
			}
			if failed != nil && (len(beside) == 0 || ctx.Err() != nil) {
				return nil, failed.err
			}
		case <-next.C:
			if failed != nil {
				return nil, failed.err
			}
			next.Reset(dialPace)
			if ctx.Err() != nil {
				continue // the first one is about to say so
			}
			if len(beside) == maxBeside {
				beside[0].cancel()
				beside = slices.Delete(beside, 0, 1)
			}
			if d.beside.Add(1) > maxAllBeside {
				d.beside.Add(-1)
				continue
			}
			beside = append(beside, begin(false))
		}
	}
}
