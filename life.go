package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"sync"
	"time"
)

// A connector lives for as long as database/sql has virtual connections from it. When there
// is none for a moment, its pools are shut: nothing of it runs then, nor has a PostgreSQL
// connection, and what is still in use is closed when it is given back. With the next use
// they are open again. So a handle whose wrapper hides Close from db.Close leaves nothing
// behind, one of two handles over one connector can be closed, and a pool that has no idle
// connection between two calls keeps what was learned.

// restAfter is how long the pools of a connector that nobody uses stay open, unless Close is
// called: opening them is cheap, but a dial, or a load of the catalog, shall not end in
// the middle because the only connection was closed and another is opened.
const restAfter = time.Second

// life is the state of a connector's pools.
type life struct {
	mu   sync.Mutex  // guards opening, shutting and what follows
	rest *time.Timer // shuts them when nobody uses them
	dsn  string      // by which Driver.Open finds the connector, or ""
	gone *time.Timer // forgets it there
}

// use opens the pools, unless they are. Who has no virtual connection rests afterwards.
func (c *Connector) use() {
	c.open.Do(c.openPools)
	if !c.shut.Load() {
		return
	}
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	if c.shut.Load() {
		c.flights.reopen()
		c.sessions.db.reopen()
		if c.pipe != nil {
			c.pipe.Reopen()
		}
		if c.catalogs != nil {
			c.catalogs.closed.Store(false)
		}
		c.shut.Store(false)
	}
}

// useOnce is use for what is done without a virtual connection.
func (c *Connector) useOnce() {
	c.use()
	if c.virtual.Load() == 0 {
		c.restSoon()
	}
}

// enterUse is the beginning of a virtual connection.
func (c *Connector) enterUse() {
	c.virtual.Add(1) // first: see rests
	c.use()
	c.revive()
}

// revive notes that a handle uses the connector, though another has closed it.
func (c *Connector) revive() {
	if c.closed.Load() && c.closed.Swap(false) && c.pipe != nil {
		c.pipe.Drain(false)
	}
}

// leave is the end of a virtual connection. When database/sql keeps none of them
// (SetMaxIdleConns(0), or all too old), the pools keep none either: the next use
// connects anew, with the hooks for that.
func (c *Connector) leave() {
	if c.virtual.Add(-1) > 0 {
		return
	}
	if c.closed.Load() {
		_ = c.rests()
		return
	}
	c.flights.closeIdle()
	c.sessions.db.closeIdle()
	c.restSoon()
	forgetSoon(c)
}

// restSoon shuts the pools after a moment, if nobody uses them by then.
func (c *Connector) restSoon() {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	if c.life.rest == nil {
		c.life.rest = time.AfterFunc(restAfter, func() { _ = c.rests() })
	} else {
		c.life.rest.Reset(restAfter)
	}
}

// rests shuts the pools, unless there are virtual connections.
func (c *Connector) rests() error {
	if !c.opened.Load() {
		return nil
	}
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	// Either we see his connection here, or who opens one sees this, and waits for us.
	if c.shut.Swap(true) {
		return nil
	}
	if c.virtual.Load() > 0 {
		c.shut.Store(false)
		return nil
	}
	if c.life.rest != nil {
		c.life.rest.Stop()
	}
	if c.catalogs != nil {
		c.catalogs.close()
	}
	if c.pipe != nil {
		c.pipe.Close()
	}
	return errors.Join(c.flights.Close(), c.sessions.db.Close())
}

// Close implements io.Closer; sql.DB.Close calls it. It closes idle PostgreSQL connections,
// and waits for none: those in use close when they are given back. Other handles over the
// connector are not closed with it, as with pgx's: a connector that is used again is open.
func (c *Connector) Close() error {
	if c.closed.Swap(true) || !c.opened.Load() {
		return nil
	}
	c.table.Clear()
	// There may be transactions, and other handles; or a connection that database/sql does
	// not give back, since a query on it has panicked.
	if c.pipe != nil {
		c.pipe.Drain(true)
	}
	c.flights.closeIdle()
	c.sessions.db.closeIdle()
	return c.rests()
}

// opens are the connectors that Driver.Open has made, by their DSNs. Many wrappers know
// nothing but that method, and database/sql calls theirs for each connection.
var opens = struct {
	mu sync.Mutex // guards m, and the first connection of each; taken before life.mu
	m  map[string]*Connector
}{m: make(map[string]*Connector)}

// openPatience is how long a connector of Driver.Open is kept without a connection. A pool
// that has none idle between two calls would have the catalog loaded, and all texts judged,
// for each of them. It has no PostgreSQL connection and runs nothing meanwhile: what is kept
// is memory.
const openPatience = time.Minute

// openConn opens a virtual connection of the connector that all connections of a DSN share.
func openConn(dsn string) (driver.Conn, error) {
	opens.mu.Lock()
	defer opens.mu.Unlock()
	c := opens.m[dsn]
	if c == nil {
		var err error
		if c, err = NewConnector(dsn, Config{}); err != nil {
			return nil, err
		}
		c.life.dsn = dsn
		opens.m[dsn] = c
	}
	return c.Connect(context.Background())
}

// forgetSoon forgets a connector of Driver.Open when it has had no connection for long.
func forgetSoon(c *Connector) {
	c.life.mu.Lock()
	defer c.life.mu.Unlock()
	if c.life.dsn == "" {
		return
	}
	if c.life.gone != nil {
		c.life.gone.Reset(openPatience)
		return
	}
	c.life.gone = time.AfterFunc(openPatience, func() {
		opens.mu.Lock()
		defer opens.mu.Unlock()
		if c.virtual.Load() == 0 && opens.m[c.life.dsn] == c {
			delete(opens.m, c.life.dsn)
			_ = c.Close()
		}
	})
}
