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
	mu    sync.Mutex           // guards what follows
	paths map[string]namesPath // by partition
	bytes int                  // of the partitions' names

	asks singleflight.Group // by partition
	slow map[string]bool    // those for which somebody has waited in vain, by partition
}

// namesPath is where sessions look for names, as catalog.Set.Path has it. It is asked anew
// with each picture of the catalog: a schema that is created appears in it by itself.
type namesPath struct {
	path string
	gen  uint64 // of the picture
}

const (
	maxPaths = 10_000 // partitions of which that is remembered; then it is asked anew
	maxViews = 256    // of one picture; likewise

	maxPathBytes = 1 << 20 // of the partitions' names
)

// path returns where the sessions of a partition look for names, if that is known for the
// picture of that generation.
func (p *partitions) path(partition string, gen uint64) (string, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	n, ok := p.paths[partition]
	return n.path, ok && n.gen == gen
}

// meet notes where a flight session looks for names, after the picture of that generation
// was made.
func (p *partitions) meet(s *session, gen uint64) {
	if s.path == "" {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	old, known := p.paths[s.partition]
	switch {
	case known && old.gen > gen:
		return
	case !known && (p.paths == nil || len(p.paths) >= maxPaths || p.bytes+len(s.partition) > maxPathBytes):
		p.paths, p.bytes = make(map[string]namesPath), 0
	}
	if !known {
		p.bytes += len(s.partition)
	}
	p.paths[strings.Clone(s.partition)] = namesPath{s.path, gen}
}

// moved reports whether a flight session looks for names elsewhere than a read was judged
// that is for it.
func (c *Connector) moved(s *session, v *verdict) bool {
	return c.parted() && s.path != "" && v.path != "" && v.path != s.path
}

// view returns a picture of the catalog as the sessions of a partition see it, nil if it
// is not known where they look for names.
func (p *partitions) view(l *loaded, partition string) *loaded {
	path, ok := p.path(partition, l.gen)
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
// names is asked of one of them, once. Readers wait for the answer for as long as their
// patience lasts, until the first has waited in vain.
func (c *Connector) partView(ctx context.Context, l *loaded, patience time.Duration) *loaded {
	partition := partitionOf(ctx, c.cfg.PartitionKey)
	if v := c.parting.view(l, partition); v != nil {
		return v
	}
	values := context.WithoutCancel(ctx)
	asked := c.parting.asks.DoChan(partition, func() (any, error) {
		ctx, cancel := context.WithTimeout(values, catalogTimeout)
		defer cancel()
		defer c.parting.setSlow(partition, false)
		return nil, c.meetPartition(ctx, l.gen)
	})
	if patience <= catalogWait && c.parting.isSlow(partition) {
		return nil
	}
	wait := time.NewTimer(patience)
	defer wait.Stop()
	select {
	case <-asked:
	case <-wait.C:
		c.parting.setSlow(partition, true)
	case <-ctx.Done():
	}
	return c.parting.view(l, partition)
}

func (p *partitions) isSlow(partition string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.slow[partition]
}

// setSlow notes whether somebody has waited in vain for what is asked now. If the answer
// comes at that very moment, the next one is not waited for.
func (p *partitions) setSlow(partition string, slow bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case !slow:
		delete(p.slow, partition)
	case p.slow == nil || len(p.slow) >= maxPaths:
		p.slow = map[string]bool{strings.Clone(partition): true}
	default:
		p.slow[strings.Clone(partition)] = true
	}
}

// meetPartition asks a flight session of the context's partition where it looks for names.
func (c *Connector) meetPartition(ctx context.Context, gen uint64) (err error) {
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
	if err := l.askPath(ctx); err != nil {
		l.bad = true
		return err
	}
	c.parting.meet(l.session, gen)
	return nil
}

// asksPath reports whether a flight session without another question when it is opened is
// asked where it looks for names.
func (c *Connector) asksPath(s *session) bool {
	return !s.pooled && (c.parted() || c.comparesPaths())
}
