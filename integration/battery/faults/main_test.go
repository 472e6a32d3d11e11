// Package faults breaks what flightpg stands on, while it works, and judges what
// its callers get: servers that crash, restart, hang, fill up and refuse
// connections; networks that cut and stall; drivers that panic; callers that leave,
// that do not read, that close the handle.
//
// Meanwhile a load reads and writes through several handles, see load_test.go, and a
// judge keeps the books, see judge_test.go:
//
//   - A read gives its complete, exact rows, or an error. Each row says which it is
//     and of how many, and has a checksum: a result that was cut short, or two that
//     were mixed, show.
//   - A caller sees only errors that the fault explains, and none that belong to
//     another caller. Each test lists them.
//   - A write that was acknowledged is in the ledger once; one that failed, once or
//     not at all; one that was never committed, not at all. The balances of the
//     accounts are the sums of the ledger.
//   - When the fault is over, reads and writes succeed again on the same handles. In
//     the end nothing is left: no goroutine, flight, buffered byte, backend, idle
//     transaction or advisory lock.
//
// TestJudge plants violations and expects the judge to see them.
//
// A seed decides what the callers and the faults do; when they do it is the
// machine's to decide, so a seed repeats the plan of a run, not each interleaving.
package faults

import (
	"os"
	"testing"

	"github.com/rs/zerolog"

	"github.com/flightpg/flightpg/internal/pgtest"
)

func TestMain(m *testing.M) {
	zerolog.SetGlobalLevel(zerolog.Disabled) // toxiproxy's
	// The heap grows by what toxiproxy never gives back, its goroutines with it: each
	// test looks for what is left of flightpg's by itself.
	os.Exit(pgtest.Run(m))
}
