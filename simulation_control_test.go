package flightpg

import (
	"testing"

	"github.com/flightpg/flightpg/internal/battery/schedule"
)

// TestSimulationControls breaks the driver in one way after the other. The
// simulation must find each of them out.
func TestSimulationControls(t *testing.T) {
	schedule.Controls(t, "each break of the driver is found out", 60_000, simMutants)
}

const flightGo = "internal/flight/flight.go"

var simMutants = []schedule.Mutant{
	{
		Name:  "FencesAreIgnored",
		File:  flightGo,
		Edits: [][2]string{{"return f.epoch >= epoch", "return true"}},
		Want:  []string{simFresh},
	},
	{
		Name:  "StrictJoinsDispatchedFlights",
		File:  flightGo,
		Edits: [][2]string{{"return rule == Join", "return true"}},
		Want:  []string{simFresh},
	},
	{
		Name:  "WidthIsIgnored",
		File:  flightGo,
		Edits: [][2]string{{"\tif sl.running < t.opts.Width {", "\tif true {"}},
		Want:  []string{simWidth},
	},
	{
		Name:  "AbandonedFlightsStay",
		File:  flightGo,
		Edits: [][2]string{{"\tcase sl.newest:\n\t\tsl.newest = nil\n\t}\n", "\t}\n"}},
		Want:  []string{simNoForeign, simFresh},
	},
	{
		Name:  "LeadersCancellationIsShared",
		File:  flightGo,
		Edits: [][2]string{{"context.WithCancelCause(context.WithoutCancel(ctx))", "context.WithCancelCause(ctx)"}},
		Want:  []string{simNoForeign},
	},
	{
		Name:  "CollidingKeysAreOne",
		File:  flightGo,
		Edits: [][2]string{{"if sl.text == k.Text && string(sl.args) == string(k.Args) {", "if true {"}},
		Want:  []string{simExact, simNoForeign},
	},
	{
		Name:  "WritesDoNotFence",
		File:  "conn.go",
		Edits: [][2]string{{"\tif cn.tx == nil || cn.lease.idle() || v.effects&effectTx != 0 {\n\t\tcn.c.changed(e)\n", "\t\tif false {\n"}},
		Want:  []string{simFresh},
	},
	{
		Name:  "CommitsDoNotFence",
		File:  "conn.go",
		Edits: [][2]string{{"\tt.cn.tx = nil\n\tif t.wrote {\n", "\tt.cn.tx = nil\n\tif false {\n"}},
		Want:  []string{simFresh},
	},
	{
		Name:  "WritesUnderWayHoldNothing",
		File:  "conn.go",
		Edits: [][2]string{{"\t\tcn.c.db.Hold()\n\t}\n}\n\n// lifts", "\t\tcn.held = false\n\t}\n}\n\n// lifts"}},
		Want:  []string{simFresh},
	},
	{
		Name:  "TransactionsShare",
		File:  "conn.go",
		Edits: [][2]string{{"case cn.tx != nil && !cn.c.noSessionLayer:", "case false:"}, {"case cn.lease != nil && !cn.sharesOn() && !cn.c.noSessionLayer:", "case false:"}},
		Want:  []string{simUncommitted, simFresh},
	},
	{
		Name:  "FailedWritesRunAgain",
		File:  "conn.go",
		Edits: [][2]string{{"n < maxRenewals && !v.several && cn.lease.outdated(err); n++ {\n\t\tres, err", "n < 1 && err != nil; n++ {\n\t\tres, err"}},
		Want:  []string{simOnce},
	},
	{
		Name:  "OpenTransactionsAreLent",
		File:  "conn.go",
		Edits: [][2]string{{"cn.lease.bad = cn.lease.bad || bad", ""}, {"\t\tt.cn.lease.bad = true\n\t\tt.cn.broken", "\t\tt.cn.broken"}},
		Want:  []string{simUncommitted, simSessionsApart, simOnce, schedule.NothingLeft},
		Rare:  true,
	},
	{
		Name:  "LostConnectionsAreNotTriedAgain",
		File:  "executor.go",
		Edits: [][2]string{{"(lost && !long || l.strayCancel(failure))", "l.strayCancel(failure)"}},
		Want:  []string{simNoForeign},
	},
	{
		Name:  "FailedFlightSessionsStay",
		File:  "executor.go",
		Edits: [][2]string{{"\t\tif lost || stopped {\n", "\t\tif stopped {\n"}},
		Want:  []string{simSessionsApart},
	},
	{
		Name:  "PanicsKeepTheSession",
		File:  "executor.go",
		Edits: [][2]string{{"\t\tif !returned {\n\t\t\tl.bad = true\n", "\t\tif false && !returned {\n\t\t\tl.bad = true\n"}},
		Want:  []string{schedule.NothingLeft, simReturns},
	},
	{
		Name:  "TimeoutsAreForeign",
		File:  "executor.go",
		Edits: [][2]string{{"\tcase res.live == nil:\n\t\tfailure = res.tail\n", "\tcase res.live == nil:\n"}},
		Want:  []string{simNoForeign},
		Rare:  true,
	},
	{
		Name:  "TimeoutsLeaveLiveRows",
		File:  "executor.go",
		Edits: [][2]string{{"\t\tfailure = errFlightTimeout // their", "\t\tfailure = nil // their"}},
		Want:  []string{simNoForeign},
		Rare:  true,
	},
	{
		Name:  "EndsOfRowsAreLost",
		File:  "rows.go",
		Edits: [][2]string{{"\t\tr.tail = err\n", "\t\t_ = err\n"}},
		Want:  []string{simExact},
	},
	{
		Name:  "EveryoneStreams",
		File:  "rows.go",
		Edits: [][2]string{{"return r.claimed.CompareAndSwap(false, true)", "return true"}},
		Want:  []string{simExact, simSessionsApart},
	},
	{
		Name:  "BytesAreShared",
		File:  "rows.go",
		Edits: [][2]string{{"ok && r.clone {", "ok && false {"}},
		Want:  []string{simExact},
	},
	{
		Name:  "FailedResultsAreKept",
		File:  "rows.go",
		Edits: [][2]string{{"return size, r.tail == nil && r.closed == nil && r.live == nil", "return size, true"}},
		Want:  []string{simNoForeign},
	},
	{
		Name:  "MemoryIsNotGivenBack",
		File:  "rows.go",
		Edits: [][2]string{{"\tr.budget.give(r.bytes)\n\tif r.pooled", "\tif r.pooled"}},
		Want:  []string{schedule.NothingLeft},
	},
	{
		Name:  "StreamsAreCountedForEver",
		File:  "executor.go",
		Edits: [][2]string{{"\t\t\tl.c.streaming.Add(-1)\n", ""}},
		Want:  []string{schedule.NothingLeft},
	},
	{
		Name:  "PanicsKeepMemory",
		File:  "rows.go",
		Edits: [][2]string{{"\t\tif !complete {", "\t\tif false && !complete {"}},
		Want:  []string{schedule.NothingLeft},
	},
	{
		Name:  "MemoryHasNoLimit",
		File:  "rows.go",
		Edits: [][2]string{{"if b.used.Add(n) <= b.limit {", "if b.used.Add(n) > 0 {"}},
		Want:  []string{simMemory},
	},
}
