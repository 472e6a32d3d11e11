//go:build unix

// Package consistency records what several processes did to registers in one
// PostgreSQL at the same time, so that a judge can say whether the reads could
// have been answered by one copy of the data, one operation after the other.
//
// A register is a row of a table: a key and a value. A history is some thousands
// of operations on a few registers, made by worker processes: those of role
// RoleFlight through flightpg, in every way that database/sql has (Query, QueryRow,
// Stmt, Conn, Tx, Raw, several connectors), those of role RolePgx through a pgxpool
// and no flightpg. Every value is written at most once. Each operation carries the
// time of its call and that of its return; a write whose outcome nobody knows, since
// it was cancelled or its backend killed, has none, and may take effect at any time
// after its call or never.
//
// The times come from a counter in memory that all workers share, raised by one
// with each call and return (clock.go). That one operation returned before another
// was called is so exactly if its number is smaller: no clock of the machine has to
// be trusted, no two events are at the same time, and it holds across processes,
// since an atomic addition to shared memory is one order for all of them.
//
// The judges are in the package's tests: porcupine, which searches for an order of
// each key's operations that a register allows, and a count of versions for
// read-your-writes. What is judged, and of which broken drivers the judges must
// not approve, is in consistency_test.go.
//
// Reading order: history.go (operations, and the plan of a history) → clock.go →
// worker.go (a worker process) → flight.go and pgx.go (the ways to read and write).
package consistency
