package flightpg

import (
	"context"
	"fmt"
	"hash/maphash"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
)

// Where sessions depend on their callers, and a Config.PartitionKey says which of these
// are alike, the sessions of each partition may look for names in schemas of its own. The
// picture of the catalog has all schemas; a view of it has the names as one search_path
// finds them.

// partitions are where the flight sessions of each partition look for names.
type partitions struct {
	mu    sync.Mutex        // guards what follows
	paths map[string]string // by partition; see catalog.Set.Path

	asks singleflight.Group // by partition
}

const (
	maxPaths = 10_000 // partitions of which that is remembered; then it is asked anew
	maxViews = 256    // of one picture; likewise
)

// path returns where the sessions of a partition look for names, if that is known.
func (p *partitions) path(partition string) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	path, ok := p.paths[partition]
	return path, ok
}

// meet notes where a new flight session looks for names. The error says that those of its
// partition did so elsewhere until now, by which a read was judged that it is for.
func (p *partitions) meet(s *session, path string) error {
	if path == "" {
		return nil
	}
	s.path = path
	p.mu.Lock()
	defer p.mu.Unlock()
	old, known := p.paths[s.partition]
	if known && old == path {
		return nil
	}
	if p.paths == nil || len(p.paths) >= maxPaths {
		p.paths = make(map[string]string)
	}
	p.paths[strings.Clone(s.partition)] = path
	if known {
		return bypassError(ReasonSettings)
	}
	return nil
}

// moved reports whether the sessions of a flight session's partition look for names
// elsewhere by now.
func (p *partitions) moved(s *session) bool {
	path, ok := p.path(s.partition)
	return ok && s.path != "" && s.path != path
}

// view returns a picture of the catalog as the sessions of a partition see it, nil if it
// is not known where they look for names.
func (p *partitions) view(l *loaded, partition string) *loaded {
	path, ok := p.path(partition)
	if !ok {
		return nil
	}
	return l.under(path)
}

// under returns the picture as sessions with another search_path see it.
func (l *loaded) under(path string) *loaded {
	if path == l.set.Path() {
		return l
	}
	l.views.mu.Lock()
	defer l.views.mu.Unlock()
	if v := l.views.byPath[path]; v != nil {
		return v
	}
	if l.views.byPath == nil || len(l.views.byPath) >= maxViews {
		l.views.byPath = make(map[string]*loaded)
	}
	l.views.made++
	v := &loaded{
		set:  l.set.Under(strings.Split(path, "\x01")),
		gen:  l.gen | l.views.made<<viewShift,
		ddl:  l.ddl,
		at:   l.at,
		salt: maphash.String(pathSeed, path) | 1,
	}
	l.views.byPath[path] = v
	return v
}

// views are a picture's, as it is seen under other paths.
type views struct {
	mu     sync.Mutex // guards what follows
	byPath map[string]*loaded
	made   uint64
}

var pathSeed = maphash.MakeSeed()

// salted keeps verdicts by a view apart from others on the same text.
func (l *loaded) salted() uint64 {
	if l == nil {
		return 0
	}
	return l.salt
}

// A view's generation is its picture's, with a number of its own above viewShift.
const viewShift = 40

// baseGeneration returns the generation of the picture that one is a view of.
func baseGeneration(gen uint64) uint64 { return gen & (1<<viewShift - 1) }

// partView is what Connector.catalog does for a partition: where its sessions look for
// names is asked of one of them, once.
func (c *Connector) partView(ctx context.Context, l *loaded) *loaded {
	partition := partitionOf(ctx, c.cfg.PartitionKey)
	if v := c.parting.view(l, partition); v != nil {
		return v
	}
	values := context.WithoutCancel(ctx)
	asked := c.parting.asks.DoChan(partition, func() (any, error) {
		ctx, cancel := context.WithTimeout(values, catalogTimeout)
		defer cancel()
		return nil, c.meetPartition(ctx)
	})
	wait := time.NewTimer(catalogWait)
	defer wait.Stop()
	select {
	case <-asked:
	case <-wait.C:
	case <-ctx.Done():
	}
	return c.parting.view(l, partition)
}

// meetPartition opens a flight session for the context's partition, if there is none.
func (c *Connector) meetPartition(ctx context.Context) (err error) {
	defer func() {
		if p := recover(); p != nil { // of a hook; nobody could in this goroutine
			err = fmt.Errorf("flightpg: panic while a connection was opened for a partition: %v", p)
		}
	}()
	l, err := c.flights.borrow(ctx)
	if err != nil {
		return err
	}
	defer l.release()
	if l.path != "" {
		return nil // it was met when it was opened
	}
	results, err := ask(ctx, l.pgx.Conn().PgConn(), "SELECT "+schemasShown)
	if err != nil {
		l.bad = true
		return err
	}
	return c.parting.meet(l.session, cell(results, 0))
}

// asksPath reports whether a flight session without another question when it is opened is
// asked where it looks for names.
func (c *Connector) asksPath(s *session) bool {
	if c.parted() {
		_, known := c.parting.path(s.partition)
		return !s.pooled || !known
	}
	return !s.pooled && c.comparesPaths()
}
