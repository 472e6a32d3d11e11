// Package isolation tests that callers who share a flight share nothing else: what
// one does to the memory that it was given, or that it gave, no other can see.
//
// A round has one query and a few callers, who read it at the same moment, each on
// a way of its own through database/sql and into destinations of its own. Each
// compares what it got with what the row must be. Then, all at the same time, they
// write over all that they hold: sql.RawBytes and a Scanner's source are the
// driver's own memory. And then each looks whether its memory still holds what
// itself has written, or, if it wrote nothing, the row. The race detector, under
// which this runs, sees what the eye does not.
//
// Most rounds run over an inner driver of the test's own, which uses one buffer for
// every []byte that it hands out; some over PostgreSQL, with its types.
//
// The arguments' side: callers write over what they passed as soon as their call
// has returned, while the flight that they led goes on for others.
//
// The controls break the driver where it copies, with go test -overlay, and must be
// found out.
//
// Reading order: isolation_test.go (rounds) → caller_test.go (what a caller does) →
// inner_test.go, postgres_test.go (what it reads) → arguments_test.go →
// control_test.go.
package isolation

import (
	"testing"

	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

func TestMain(m *testing.M) { leak.Main(func() int { return pgtest.Run(m) }) }
