package flightpg

import (
	"database/sql"
	"sync/atomic"
)

// Stats is a snapshot of what a connector has done and is doing. Counters only
// rise; they are read one after the other, so those that change together may
// be off by what happened in between.
type Stats struct {
	// Flights counts shareable reads that led: they found no flight of their
	// key that their mode allowed, and began one.
	Flights uint64 `json:"flights"`
	// Joins counts shareable reads that followed a flight, once each: also those
	// that went on to another, or led one, because the first had no connection.
	Joins uint64 `json:"joins"`
	// Bypasses counts queries (not Execs) that ran on a session of their
	// caller's own, by the reason. A read that had to leave its flight
	// (overflow, memory, streamed, unshareable) is counted in Flights or Joins and here.
	Bypasses map[Reason]uint64 `json:"bypasses"`
	// Execs counts calls of Exec, by DB, Conn, Tx or Stmt.
	Execs uint64 `json:"execs"`
	// Overflows counts flights whose result was not buffered whole: one caller
	// streamed it, the others ran their own query.
	Overflows uint64 `json:"overflows"`
	// Streams counts flights with a large result that one caller read as the server
	// sent it, as is done with statements whose results nobody shares.
	Streams uint64 `json:"streams"`
	// Fenced counts reads that found a flight of their key under way, but one
	// dispatched too early for their mode.
	Fenced uint64 `json:"fenced"`
	// Fences counts what raised the epoch of the database in this process:
	// writes, commits of transactions that wrote, raw connections given back,
	// calls of Fence. Connectors to one database share it.
	Fences uint64 `json:"fences"`
	// Retries counts executions beyond a flight's first: its connection failed before
	// the read had been under way for 500 ms, a cancel request meant for another query
	// hit it, DDL had changed its statement (or may have, by its error), or it
	// travelled behind a query that took long and ran elsewhere instead.
	Retries uint64 `json:"retries"`
	// Refused counts flights whose statement the guard stopped: it would have
	// written. Its callers ran it themselves, and it is not shared again.
	Refused uint64 `json:"refused"`
	// Cancelled counts flights that their last caller left before they landed.
	Cancelled uint64 `json:"cancelled"`
	// Panics counts flights whose execution panicked or called runtime.Goexit.
	Panics uint64 `json:"panics"`
	// Evictions counts idle pinned sessions closed to make room under
	// SessionConns.
	Evictions uint64 `json:"evictions"`

	// CatalogLoads counts how often the catalog was asked for.
	CatalogLoads uint64 `json:"catalog_loads"`
	// CatalogFailures counts loads that failed. Until one succeeds, statements
	// with names that only the catalog knows bypass.
	CatalogFailures uint64 `json:"catalog_failures"`
	// CatalogError is the error of the last load, "" if it succeeded.
	CatalogError string `json:"catalog_error,omitempty"`

	// Flying is how many flights have begun and not landed, now.
	Flying int64 `json:"flying"`
	// Waiting is how many callers wait for a flight to land, now.
	Waiting int64 `json:"waiting"`
	// BufferedBytes is the memory taken for results that are being read or
	// replayed, or kept for Window, now, in bytes as counted against Memory.
	BufferedBytes int64 `json:"buffered_bytes"`
	// FlightBackends is how many PostgreSQL connections the flight pool has
	// open, now, idle ones included.
	FlightBackends int `json:"flight_backends"`
	// SessionBackends is the same for the session pool.
	SessionBackends int `json:"session_backends"`

	// HotStandby reports whether the connection that was opened last leads to a hot
	// standby, as PostgreSQL 14 and later say. There nobody can count on reading what
	// he has just written on the primary, neither with pgx nor here.
	HotStandby bool `json:"hot_standby,omitempty"`
}

// counters are the figures that the flight table does not keep.
type counters struct {
	bypasses  [reasonCount]atomic.Uint64
	execs     atomic.Uint64
	overflows atomic.Uint64
	streams   atomic.Uint64
}

// ReadStats returns the figures of a database handle opened with flightpg. For
// any other handle it returns the zero Stats.
func ReadStats(db *sql.DB) Stats {
	c, err := connectorOf(db)
	if err != nil {
		return Stats{}
	}
	return c.Stats()
}

// Stats returns the connector's figures.
func (c *Connector) Stats() Stats {
	t := c.table.Stats()
	s := Stats{
		Flights:       t.Flights,
		Joins:         t.Joins,
		Bypasses:      make(map[Reason]uint64),
		Execs:         c.stats.execs.Load(),
		Overflows:     c.stats.overflows.Load(),
		Streams:       c.stats.streams.Load(),
		Fenced:        t.Fenced,
		Fences:        c.db.Now(),
		Cancelled:     t.Abandoned,
		Panics:        t.Panics,
		Flying:        t.Flying,
		Waiting:       t.Waiting,
		BufferedBytes: c.budget.used.Load(),
		HotStandby:    c.standby.Load(),
	}
	for r := range c.stats.bypasses {
		if n := c.stats.bypasses[r].Load(); n > 0 {
			s.Bypasses[Reason(r)] = n
		}
	}
	if c.catalogs != nil {
		s.CatalogLoads, s.CatalogFailures = c.catalogs.loads.Load(), c.catalogs.failures.Load()
		if err := c.catalogs.lastErr.Load(); err != nil {
			s.CatalogError = (*err).Error()
		}
	}
	if c.opened.Load() {
		s.Retries, s.Refused = c.exec.counts()
		s.Evictions = c.sessions.evictions.Load()
		s.FlightBackends = int(c.flights.open.Load())
		if c.pipe != nil {
			retries, refused := c.pipe.counts()
			s.Retries += retries
			s.Refused += refused
			s.FlightBackends += c.pipe.Stats().Open
		}
		s.SessionBackends = int(c.sessions.db.open.Load())
	}
	return s
}
