package flightpg

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"
	"weak"

	"golang.org/x/sync/singleflight"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/flight"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// database is what all connectors to one database in a process share.
type database struct {
	flight.Epoch
	// ddl counts statements that may have changed the catalog. A set that was
	// loaded at a lower count is out of date.
	ddl   atomic.Uint64
	ddlAt atomic.Int64 // when the last of them ended, in Unix nanoseconds
	primary
}

// altered notes that such a statement has ended.
func (d *database) altered() {
	d.ddlAt.Store(time.Now().UnixNano())
	d.ddl.Add(1)
}

// goesOn returns for how long DDL is still taken to go on, if it is taken to for so long
// after each statement.
func (d *database) goesOn(lull time.Duration) time.Duration {
	at := d.ddlAt.Load()
	if at == 0 {
		return 0
	}
	since := time.Duration(time.Now().UnixNano() - at)
	if since < 0 { // somebody has set the clock
		return 0
	}
	return max(lull-since, 0)
}

// catalogs keeps a connector's picture of the database's catalog: which names
// make a statement unsafe to share. It is asked for when the connector is used first, and
// again after DDL that was seen on any session of the process, when there has been none
// for a moment (see lull): a schema script is one reason to load it, not a hundred. Until
// it is there, reads that need it bypass. Those that come while it is being loaded wait
// for it for catalogWait, until the first has waited in vain; while DDL goes on none does.
// In the background it is loaded again when it is older than its time to live, when a name
// was not found in it, and after what may have been DDL; the old picture serves until
// then, unless nobody has read for twice its time to live: who comes after that waits as
// well.
//
// Where many processes have one reason to load it, each does so at a moment of its own.
type catalogs struct {
	db    *database
	ttl   time.Duration // negative: no limit
	load  func(ctx context.Context) (*catalog.Set, error)
	hooks bool // a connection for it is opened with foreign code

	group    singleflight.Group // one load at a time
	current  atomic.Pointer[loaded]
	retryAt  atomic.Int64  // Unix nanoseconds before which a failed load is not tried again
	failing  atomic.Int32  // loads in a row that have failed
	took     atomic.Int64  // nanoseconds that the last one took that has not
	vain     atomic.Int32  // loads in a row that were out of date when they ended
	searches atomic.Int32  // loads in a row that did not have the names they were for
	maybes   atomic.Uint64 // what may have been DDL
	loading  atomic.Bool   // a load is under way
	none     atomic.Bool   // the connections are not pgx's: it cannot be asked
	slow     atomic.Bool   // somebody has waited in vain for the load under way; others need not
	lulls    atomic.Bool   // it will be loaded when DDL has ended
	closed   atomic.Bool   // nobody needs it any more

	cancel atomic.Pointer[context.CancelFunc] // of the last load

	gens     atomic.Uint64
	loads    atomic.Uint64
	failures atomic.Uint64
	lastErr  atomic.Pointer[error]
}

// loaded is one picture. It is immutable but for due and lacks.
type loaded struct {
	set *catalog.Set
	gen uint64 // counts pictures, from 1: verdicts keep it instead of the picture, which they would keep alive
	ddl uint64 // the count when the load began
	at  time.Time
	due atomic.Int64 // Unix nanoseconds from which the next reader has it loaded again; 0: there is no reason

	views views
	salt  uint64 // of a view

	lacks atomic.Bool // a name was not found in it
	over  atomic.Bool // twice its time to live has passed: nobody has read for as long
}

// expire has the picture loaded again from that moment on.
func (l *loaded) expire(at time.Time) {
	for {
		due := l.due.Load()
		if due != 0 && due <= at.UnixNano() || l.due.CompareAndSwap(due, at.UnixNano()) {
			return
		}
	}
}

const (
	// catalogWait bounds how long a reader waits for a load. After it, names
	// that only the catalog knows bypass until the load is there.
	catalogWait = 20 * time.Millisecond
	// DDL is taken to go on for so long after each statement, or for one part in
	// catalogLullPart of what a load takes; twice as long after each load in a row that was
	// out of date when it ended, up to catalogLullMost.
	catalogLull     = 100 * time.Millisecond
	catalogLullPart = 4
	catalogLullMost = time.Second
	// catalogTimeout bounds a load itself.
	catalogTimeout = 30 * time.Second
	// The pause after a load that failed, twice as long after each that fails in a row:
	// a busy standby cancels what reads too long, and not each time.
	catalogRetryFirst = 100 * time.Millisecond
	catalogRetryMost  = 5 * time.Second
	// The pause between two loads in the background, and that in which the server may
	// spend one part in catalogShare on loads.
	catalogPause = time.Second
	catalogShare = 50
	// The pause before a load for a name that was not found, twice as long after each
	// that did not have it.
	catalogSearch     = time.Second
	catalogSearchMost = 5 * time.Minute
	// Up to so much later is it loaded for such a name, each process at random: others
	// have met it at the same time.
	catalogSpread = time.Second
)

// lull returns for how long DDL is still taken to go on; 0: it does not.
func (c *catalogs) lull() time.Duration {
	least := min(max(catalogLull, time.Duration(c.took.Load())/catalogLullPart), catalogLullMost)
	return c.db.goesOn(min(least<<min(c.vain.Load(), 16), catalogLullMost))
}

// pause is the least time between two loads that nobody waits for.
func (c *catalogs) pause() time.Duration {
	return max(catalogPause, catalogShare*time.Duration(c.took.Load()))
}

// atRandom returns a part of d.
func atRandom(d time.Duration) time.Duration { return time.Duration(rand.Int64N(int64(max(d, 1)))) }

// peek returns the picture at hand, without waiting: nil if there is none that
// is known to be up to date.
func (c *catalogs) peek(ctx context.Context) *loaded {
	l := c.current.Load()
	if l == nil || l.ddl != c.db.ddl.Load() {
		return nil
	}
	c.renew(ctx, l)
	if c.tooOld(l) {
		return nil
	}
	return l
}

// tooOld reports whether readers shall wait for a new picture: who comes after a pause is
// not to be judged by one that is as old as that. One that cannot be loaded again serves.
func (c *catalogs) tooOld(l *loaded) bool { return l.over.Load() && c.failing.Load() == 0 }

// renew has a picture loaded again in the background when that is due.
func (c *catalogs) renew(ctx context.Context, l *loaded) {
	due := l.due.Load()
	if due == 0 {
		return
	}
	if now := time.Now().UnixNano(); now >= due && now >= c.retryAt.Load() && l.due.CompareAndSwap(due, 0) {
		c.start(ctx)
	}
}

// get returns a picture that is up to date as far as this process can know, nil
// if none can be had at once or soon.
func (c *catalogs) get(ctx context.Context) *loaded {
	if c.none.Load() {
		return nil
	}
	ddl := c.db.ddl.Load()
	if l := c.current.Load(); l != nil && l.ddl >= ddl {
		if c.renew(ctx, l); !c.tooOld(l) {
			return l
		}
	}
	switch {
	case c.slow.Load() && c.loading.Load(), time.Now().UnixNano() < c.retryAt.Load():
		return nil
	case c.lull() > 0:
		c.later(ctx)
		return nil
	}
	wait := time.NewTimer(catalogWait)
	defer wait.Stop()
	for {
		loading := c.start(ctx)
		if c.slow.Load() {
			return nil
		}
		select {
		case <-loading:
		case <-wait.C:
			c.slow.Store(true)
			return nil
		case <-ctx.Done():
			return nil
		}
		switch l := c.current.Load(); {
		case l != nil && l.ddl >= ddl && !c.tooOld(l):
			return l
		case time.Now().UnixNano() < c.retryAt.Load():
			return nil // it failed
		case c.lull() > 0:
			c.later(ctx)
			return nil
		}
		// The load that was under way began before the DDL: once more.
	}
}

// refresh loads the catalog now, and returns the load's error.
func (c *catalogs) refresh(ctx context.Context) error {
	// A load that is under way may have begun before what the caller knows of.
	for range 2 {
		select {
		case r := <-c.start(ctx):
			if r.Err != nil {
				return r.Err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// later has the catalog loaded when DDL has ended.
func (c *catalogs) later(ctx context.Context) {
	if c.lulls.Load() || c.lulls.Swap(true) {
		return
	}
	if ctx = context.WithoutCancel(ctx); !c.hooks {
		ctx = context.Background()
	}
	weak := weak.Make(c) // see start
	var again func()
	again = func() {
		c := weak.Value()
		if c == nil {
			return
		}
		if lull := c.lull(); lull > 0 && !c.closed.Load() {
			time.AfterFunc(lull, again)
			return
		}
		c.lulls.Store(false)
		if l := c.current.Load(); l == nil || l.ddl != c.db.ddl.Load() {
			c.wanted(ctx)
		}
	}
	time.AfterFunc(max(c.lull(), 1), again)
}

// close ends the load under way, and those to come.
func (c *catalogs) close() {
	c.closed.Store(true)
	if cancel := c.cancel.Load(); cancel != nil {
		(*cancel)()
	}
}

// start begins a load if none is under way, and returns where its end is told. Hooks see
// the values of ctx.
func (c *catalogs) start(ctx context.Context) <-chan singleflight.Result {
	if ctx = context.WithoutCancel(ctx); !c.hooks {
		ctx = context.Background()
	}
	return c.group.DoChan("", func() (any, error) {
		ctx, cancel := context.WithTimeout(ctx, catalogTimeout)
		defer cancel()
		if c.cancel.Store(&cancel); c.closed.Load() {
			cancel()
		}
		c.loading.Store(true)
		defer c.loading.Store(false)
		defer c.slow.Store(false)
		l, maybes := &loaded{ddl: c.db.ddl.Load(), at: time.Now()}, c.maybes.Load()
		c.loads.Add(1)
		set, err := c.loadSafely(ctx)
		if err != nil {
			if err == errNoCatalog {
				c.none.Store(true)
			}
			c.failures.Add(1)
			c.lastErr.Store(&err)
			pause := min(catalogRetryFirst<<min(c.failing.Add(1)-1, 16), catalogRetryMost)
			c.retryAt.Store(time.Now().Add(pause/2 + atRandom(pause/2)).UnixNano())
			if old := c.current.Load(); old != nil {
				old.expire(time.Now()) // it still serves; the reason for the load is still there
			}
			return nil, err
		}
		c.took.Store(int64(time.Since(l.at))) // one that fails has waited for a lock, say
		if c.failing.Store(0); l.ddl != c.db.ddl.Load() {
			c.vain.Add(1)
		} else {
			c.vain.Store(0)
		}
		c.lastErr.Store(nil)
		l.set, l.gen = set, c.gens.Add(1)
		if ttl := c.ttl - atRandom(c.ttl/4); ttl > 0 {
			// Nothing but a number and a weak pointer: a timer keeps what it refers to
			// alive, stopped or not, and where DDL comes often there are many.
			gen, whole, c := l.gen, c.ttl, weak.Make(c)
			time.AfterFunc(ttl, func() {
				if c := c.Value(); c != nil {
					c.aged(gen)
				}
			})
			time.AfterFunc(2*whole, func() {
				if c := c.Value(); c != nil {
					c.outlived(gen)
				}
			})
		}
		c.current.Store(l)
		if c.maybes.Load() != maybes { // meanwhile
			l.expire(time.Now().Add(c.pause()))
		}
		return nil, nil
	})
}

// aged ends the time to live of the picture of that generation, if it is still in use.
func (c *catalogs) aged(gen uint64) {
	if l := c.current.Load(); l != nil && l.gen == gen {
		l.expire(time.Now())
	}
}

// outlived notes that twice the time to live of that picture is over, if it is still in
// use, and not because the next one takes so long.
func (c *catalogs) outlived(gen uint64) {
	if l := c.current.Load(); l != nil && l.gen == gen && !c.loading.Load() {
		l.over.Store(true)
	}
}

// loadSafely makes a panic of a hook that a connection is opened with an error: in
// this goroutine nobody could recover. A flight that opens one gives the panic to
// its callers.
func (c *catalogs) loadSafely(ctx context.Context) (_ *catalog.Set, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("flightpg: panic while a connection was opened for the catalog: %v", p)
		}
	}()
	return c.load(ctx)
}

// unknown notes that a statement named something that the picture of that
// generation does not have: it may be new.
func (c *catalogs) unknown(gen uint64) {
	l := c.current.Load()
	if l == nil || l.gen != baseGeneration(gen) || l.lacks.Swap(true) {
		return
	}
	pause := max(catalogSearch, c.pause())
	at := l.at.Add(max(pause, min(pause<<min(c.searches.Add(1)-1, 16), catalogSearchMost)))
	if now := time.Now(); at.Before(now) {
		at = now
	}
	l.expire(at.Add(atRandom(catalogSpread)))
}

// found notes that a name that was not found is there now.
func (c *catalogs) found() { c.searches.Store(0) }

// wanted starts a load in the background, unless one has just failed, when no DDL goes
// on.
func (c *catalogs) wanted(ctx context.Context) {
	switch {
	case c.none.Load(), c.closed.Load(), time.Now().UnixNano() < c.retryAt.Load():
	case c.lull() > 0:
		c.later(ctx)
	default:
		c.start(ctx)
	}
}

// soon has the catalog loaded again after what may have been DDL: by the next reader,
// but not all the time.
func (c *catalogs) soon() {
	c.maybes.Add(1)
	if l := c.current.Load(); l != nil {
		at := l.at.Add(c.pause())
		if now := time.Now(); at.Before(now) {
			at = now
		}
		l.expire(at)
	}
}

// peek returns the picture of the catalog at hand, if it is up to date, as the sessions of
// the context's partition see it.
func (c *Connector) peek(ctx context.Context) *loaded {
	if c.catalogs == nil {
		return nil
	}
	l := c.catalogs.peek(ctx)
	if l == nil || !c.parted() {
		return l
	}
	return c.parting.view(l, partitionOf(ctx, c.cfg.PartitionKey))
}

// catalog returns an up-to-date picture of the catalog. It may wait for it, for where the
// sessions of the context's partition look for names for that long, and returns nil if
// none can be had.
func (c *Connector) catalog(ctx context.Context, patience time.Duration) *loaded {
	if c.catalogs == nil {
		return nil
	}
	l := c.catalogs.get(ctx)
	if l == nil || !c.parted() {
		return l
	}
	return c.partView(ctx, l, patience)
}

// changed tells everyone in the process who uses the database that something
// was written.
func (c *Connector) changed(e effect) {
	if e&effectDDL != 0 {
		c.db.altered()
		if c.catalogs != nil && !c.catalogs.hooks && c.catalogs.current.Load() != nil {
			c.catalogs.later(context.Background()) // who reads then shall not have to ask for it
		}
	}
	if e&effectMaybeDDL != 0 && c.catalogs != nil {
		c.catalogs.soon()
	}
	c.db.Raise()
}

var errNoCatalog = errors.New("flightpg: the inner connection is not pgx's, or hides it: its catalog cannot be asked")

// loadCatalog asks a flight session, whose search_path and role are those that
// the flights will have; if its connection turns out to be lost, another one.
func (c *Connector) loadCatalog(ctx context.Context) (set *catalog.Set, err error) {
	before := c.catalogs.current.Load()
	defer func() {
		if err == nil && before != nil && before.set.Path() != set.Path() && c.comparesPaths() {
			c.movePaths(before) // the sessions that are open may not have heard of it
		}
	}()
	if Reason(c.off.Load()) == ReasonHooks {
		return nil, bypassError(ReasonHooks) // nobody needs it
	}
	l, err := c.flights.borrow(ctx)
	if err != nil {
		return nil, err
	}
	set, err = l.loadCatalog(ctx)
	// The pipeline takes this connection over if it has none. Else it would lie
	// idle.
	l.bad = l.bad || c.pipe != nil && !c.pipe.Elsewhere() && c.pipe.Stats().Open > 0
	if !l.connectionLost(err) || ctx.Err() != nil {
		l.release()
		return set, err
	}
	l.bad = true
	l.release()
	if l, err = c.flights.borrowAlive(ctx); err != nil {
		return nil, err
	}
	defer l.release()
	return l.loadCatalog(ctx)
}

// loadCatalog asks the session. What bounds the application's statements in time
// is not meant for this one.
func (s *session) loadCatalog(ctx context.Context) (_ *catalog.Set, err error) {
	if s.under == nil {
		return nil, errNoCatalog
	}
	pg := s.under.PgConn()
	defer bounded(ctx, pg)()
	defer func() {
		// As in ask: nobody else could recover.
		if p := recover(); p != nil {
			s.bad = true
			_ = pg.Conn().Close()
			err = fmt.Errorf("flightpg: panic while the catalog was loaded: %v", p)
		}
	}()
	return catalog.Load(ctx, func(ctx context.Context, sql string, row func(cells []string) error) error {
		results := pg.Exec(ctx, "BEGIN READ ONLY; SET LOCAL statement_timeout = "+strconv.FormatInt(catalogTimeout.Milliseconds(), 10)+"; "+sql+"; ROLLBACK")
		var err error
		for results.NextResult() {
			rr := results.ResultReader()
			for rr.NextRow() {
				if err != nil {
					continue
				}
				cells := make([]string, len(rr.Values()))
				for i, v := range rr.Values() {
					cells[i] = string(v)
				}
				err = row(cells)
			}
		}
		err = errors.Join(err, results.Close())
		if !s.dead() && !s.idle() {
			s.rollBack(ctx, "ROLLBACK")
		}
		return err
	}, s.c.catalogOptions())
}

// catalogOptions says whether functions' bodies are read, and whether the sessions may
// have several roles: hooks can give each partition one.
func (c *Connector) catalogOptions() catalog.Options {
	opts := catalog.Options{Words: sqlscan.Words, AnyRole: c.source.doors || c.cfg.PartitionKey != nil}
	if c.cfg.TrustDeclared {
		opts.Words = nil
	}
	return opts
}

// RefreshCatalog loads the catalog of db's database again, now: after DDL that
// did not go through this process. It returns when reads are judged by the new
// one. The error says that db was not opened with flightpg over pgx, or why the
// catalog cannot be loaded; the old one then stays in use.
func RefreshCatalog(ctx context.Context, db *sql.DB) error {
	c, err := connectorOf(db)
	if err != nil {
		return err
	}
	if c.catalogs == nil {
		return errors.New("flightpg: the inner driver is not pgx: there is no catalog to load")
	}
	c.useOnce()
	return c.catalogs.refresh(ctx)
}
