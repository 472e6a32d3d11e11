// Package flightpg is a database/sql driver for PostgreSQL that runs identical
// concurrent reads once. It wraps pgx: an application changes one word,
//
//	db, err := sql.Open("flightpg", dsn) // was: sql.Open("pgx", dsn)
//
// or, better, lets flightpg set up the handle's pool too:
//
//	db, err := flightpg.OpenDB(dsn, flightpg.Config{FlightConns: 8, SessionConns: 16})
//
// A read that may be shared (one plain SELECT, VALUES, TABLE or WITH, which by the
// text and the database's catalog gives every session the same answer) becomes a
// flight: callers with the same text and the same arguments that come
// while it is under way wait for its rows, and each gets its own copy. Nothing
// is kept after the last of them. Everything else reaches PostgreSQL as pgx
// would send it. [ReadStats] counts both, with the reason of every bypass.
//
// Which flights a read may join is its [Mode]; the default lets every caller see
// what was written through this process before it asked.
//
// # Reading the code
//
// policy.go (may this text be shared?) → keying.go (what makes two reads
// identical) → internal/flight (who waits for whom) → executor.go (one
// execution) → rows.go (its rows, for many) → conn.go and session.go (virtual
// connections and the real ones behind them). Around these: source.go (where
// connections come from), catalogs.go (what the database says about names),
// guard.go (flights cannot write), cancel.go (nobody waits any more), failover.go
// (which host is the primary), wire.go and rows_go1.27.go (values as pgx's driver
// gives them). stmt.go, driver.go, dsn.go, explain.go and stats.go are what their
// names say.
//
// # Context
//
// Each caller waits on its own context. A flight runs with the values of its
// leader's context (so trace spans of the leader see the execution) but not its
// cancellation; it is cancelled on the server when its last caller has gone.
package flightpg
