package pipeline

import (
	"testing"

	"github.com/flightpg/flightpg/internal/battery/schedule"
)

// TestSimulationControls breaks the pipeline in one way after the other. The
// simulation must find each of them out.
func TestSimulationControls(t *testing.T) {
	schedule.Controls(t, "each break of the pipeline is found out", 60_000, mutants)
}

var mutants = []schedule.Mutant{
	// Requests to cancel.
	{
		Name:  "CallsAreCancelledBeforeTheyAreSent",
		File:  "conn.go",
		Edits: [][2]string{{"\tif !c.underWay {\n\t\tc.unwanted = true", "\tif c.finished {\n\t\tc.unwanted = true"}},
		Want:  []string{simRequest},
		Rare:  true,
	},
	{
		Name:  "ConnectionsAreFreeWhileARequestIsOnItsWay",
		File:  "conn.go",
		Edits: [][2]string{{"\tif asked {\n", "\tif asked && false {\n"}},
		Want:  []string{simRequest, simCancelled},
	},
	{
		Name:  "KilledConnectionsStay",
		File:  "conn.go",
		Edits: [][2]string{{"\tif killed {\n", "\tif killed && false {\n"}},
		Want:  []string{simRest, simAnswer},
		Rare:  true,
	},
	{
		Name:  "SkippedCallsStayUnderWay",
		File:  "conn.go",
		Edits: [][2]string{{"\tfor _, r := range k.group[k.head : last+1] {\n\t\tr.underWay = false\n\t}\n", ""}},
		Want:  []string{simRequest},
		Rare:  true,
	},
	{
		Name:  "UnwantedCallsAreNotCancelled",
		File:  "conn.go",
		Edits: [][2]string{{"\tfor _, c := range unwanted {\n\t\tk.cancel(c)\n\t}\n", "\t_ = unwanted\n"}},
		Want:  []string{simTime},
		Rare:  true,
	},
	{
		Name:  "StraysAreTheirCallsOutcome",
		File:  "conn.go",
		Edits: [][2]string{{"\tcase stray && wanted:\n", "\tcase stray && !wanted:\n"}, {`(err.Code == "55P03" || err.Code == "57014"): //`, `(err.Code == "55P03" || err.Code == "57014" && !stray): //`}},
		Want:  []string{simCancelled},
		Rare:  true,
	},
	{
		Name:  "ParkedConnectionsAreNotLeft",
		File:  "conn.go",
		Edits: [][2]string{{"const parkPatience = 250 * time.Millisecond", "const parkPatience = time.Hour"}},
		Want:  []string{simParked},
	},
	// Transactions and timeouts.
	{
		Name:  "ErrorsSkipTheWholeGroup",
		File:  "conn.go",
		Edits: [][2]string{{"\tfor last < len(k.group)-1 && !k.group[last].ends {\n", "\tfor last < len(k.group)-1 {\n"}},
		Want:  []string{simOnce, simRest, schedule.NothingLeft},
	},
	{
		Name:  "EverythingIsJoined",
		File:  "conn.go",
		Edits: [][2]string{{"\treturn c.stmt.company == Joined && !c.apart && !c.tailed && !k.link.Apart\n", "\treturn true\n"}},
		Want:  []string{simCompany},
	},
	{
		Name:  "ReadsAreNotApart",
		File:  "conn.go",
		Edits: [][2]string{{"c.apart = c.read.Apart()", "c.apart = c.read.Apart() && false"}},
		Want:  []string{simCompany},
	},
	{
		Name:  "NobodyIsAlone",
		File:  "pool.go",
		Edits: [][2]string{{"\treturn c.stmt.company == Alone || c.describe", "\treturn c.describe"}},
		Want:  []string{simCompany},
	},
	{
		Name:  "GroupsHaveLongTimeouts",
		File:  "conn.go",
		Edits: [][2]string{{"arm := len(k.group) > 1 || k.armed && !k.long", "arm := k.armed && len(k.group) > 1"}},
		Want:  []string{simCompany, simStranger},
	},
	{
		Name:  "WhatIsAloneHasShortTimeouts",
		File:  "conn.go",
		Edits: [][2]string{{"arm := len(k.group) > 1 || k.armed && !k.long", "arm := len(k.group) > 1 || k.armed"}},
		Want:  []string{simCompany, simCancelled},
	},
	{
		Name:  "ShortTimeoutsAreTheirCallsOutcome",
		File:  "conn.go",
		Edits: [][2]string{{"\tcase k.armed && wanted && !c.alone &&", "\tcase k.armed && wanted && !c.alone && c.finished &&"}},
		Want:  []string{simCancelled},
	},
	{
		Name:  "LiveRowsHaveShortTimeouts",
		File:  "live.go",
		Edits: [][2]string{{"\tif k.armed {\n", "\tif k.armed && c.finished {\n"}},
		Want:  []string{simCancelled},
	},
	// What is written.
	{
		Name:  "OthersCodecsEncode",
		File:  "conn.go",
		Edits: [][2]string{{"\tif k.odd(c) {\n\t\tc.late = true", "\tif k.odd(c) && false {\n\t\tc.late = true"}},
		Want:  []string{simCodec},
	},
	{
		Name:  "OthersCodecsEncodeForGroups",
		File:  "pool.go",
		Edits: [][2]string{{"mates <= len(k.group) || k.odd(c) {", "mates <= len(k.group) {"}},
		Want:  []string{simCodec},
	},
	{
		Name:  "WritesBlockReading",
		File:  "conn.go",
		Edits: [][2]string{{"\tif k.buffered && len(out) <= writeBytes {\n", "\tif k.buffered || len(out) <= writeBytes {\n"}},
		Want:  []string{schedule.NothingLeft, simTime},
	},
	{
		Name:  "ArgumentsThatDoNotEncodeAreAwaited",
		File:  "call.go",
		Edits: [][2]string{{"\t\t\tif c.fresh {\n\t\t\t\tcontinue // its", "\t\t\tif c.fresh && false {\n\t\t\t\tcontinue // its"}},
		Want:  []string{schedule.NothingLeft},
	},
	{
		Name:  "ArgumentsThatPgxRefusesAreAwaited",
		File:  "conn.go",
		Edits: [][2]string{{"\t\t\t\tk.free()\n\t\t\t\treturn answerEnded\n", "\t\t\t\tk.free()\n\t\t\t\treturn answerAgain\n"}},
		Want:  []string{schedule.NothingLeft},
	},
	// Descriptions and prepared statements.
	{
		Name:  "MatesDoNotHearOfChanges",
		File:  "conn.go",
		Edits: [][2]string{{"r.stale = r.stale || r.desc == c.desc", "r.stale = r.stale || r == c"}},
		Want:  []string{simAnswer},
	},
	{
		Name:  "ErrorsOfBindAreTheirCallsOutcome",
		File:  "conn.go",
		Edits: [][2]string{{"\tcase (!c.bound || c.stale || stalePlan(err)) &&", "\tcase stalePlan(err) &&"}},
		Want:  []string{simAnswer},
	},
	{
		Name:  "GenuineErrorsAreNotBelieved",
		File:  "conn.go",
		Edits: [][2]string{{"\treturn c.renews && c.doubted != nil &&", "\treturn c.finished && c.doubted != nil &&"}},
		Want:  []string{simOnce},
	},
	{
		Name:  "ChangesAreNotSeen",
		File:  "conn.go",
		Edits: [][2]string{{"\t\t\tif !c.desc.fits(msg) {\n", "\t\t\tif !c.desc.fits(msg) && false {\n"}},
		Want:  []string{simAnswer},
	},
	{
		Name:  "EvictedStatementsStay",
		File:  "conn.go",
		Edits: [][2]string{{"\t\tfor _, name := range evicted {\n\t\t\tout = k.closeStmt(out, name)\n", "\t\tfor _, name := range evicted {\n\t\t\t_ = name\n"}},
		Want:  []string{simPrepared},
	},
	{
		Name:  "WhatWasSkippedIsPrepared",
		File:  "conn.go",
		Edits: [][2]string{{"\t\tif r.parsing && !r.parsed {\n", "\t\tif r.parsing && r.parsed {\n"}},
		Want:  []string{simPrepared},
	},
	{
		Name:  "ClosesComeLater",
		File:  "conn.go",
		Edits: [][2]string{{"\tk.stmts = k.stmts[:0]\n\tfor i, c := range k.group {\n", "\tk.stmts = k.stmts[:0]\n\tfor i, c := range k.group {\n\t\tfor _, name := range k.closing {\n\t\t\tout = k.closeStmt(out, name)\n\t\t}\n"}, {"\t\tout = k.closeStmt(out, name)\n\t}\n\tk.closing = k.closing[:0]\n", "\t\tdefer func() { k.closing = k.closing[:0]; _ = name }()\n\t}\n"}},
		Want:  []string{simPrepared},
	},
	// Connections.
	{
		Name:  "FailedDialsFailAll",
		File:  "dial.go",
		Edits: [][2]string{{"\t\t\tone = false\n", ""}},
		Want:  []string{simDials},
	},
	{
		Name:  "SilentServersAreAwaited",
		File:  "dial.go",
		Edits: [][2]string{{"\t\tif d.late || now.Sub(d.began) < late {\n", "\t\tif d.late || now.Sub(d.began) < late+time.Hour {\n"}},
		Want:  []string{simTime},
	},
	{
		Name:  "ConnectionsAreOpenedForWhatMustWait",
		File:  "dial.go",
		Edits: [][2]string{{"want := min(p.queue.n, p.roomLocked())", "want := p.queue.n"}},
		Want:  []string{simDials},
	},
	{
		Name:  "RequestsHitTheTimeouts",
		File:  "conn.go",
		Edits: [][2]string{{"\tif !k.arming {\n\t\tunwanted", "\tif k.head == 0 {\n\t\tunwanted"}},
		Want:  []string{simRequest},
	},
	{
		Name:  "WhoUnlocksDoesNotLook",
		File:  "pool.go",
		Edits: [][2]string{{"\tp.mu.Unlock()\n\tif p.intake.Load() != nil {\n", "\tp.mu.Unlock()\n\tif p.intake.Load() == nil {\n"}},
		Want:  []string{schedule.NothingLeft, simTime},
	},
}
