package flight

import (
	"testing"

	"github.com/flightpg/flightpg/internal/battery/schedule"
)

// TestSimulationControls breaks the table in one way after the other. The
// simulation must find each of them out.
func TestSimulationControls(t *testing.T) {
	schedule.Controls(t, "each break of the table of flights is found out", 10_000, mutants)
}

var mutants = []schedule.Mutant{
	{
		Name:  "FencesAreIgnored",
		File:  "flight.go",
		Edits: [][2]string{{"return f.epoch >= epoch", "return true"}},
		Want:  []string{rulesHold},
	},
	{
		Name:  "HoldsAreIgnored",
		File:  "flight.go",
		Edits: [][2]string{{"\t\trule = Strict\n", "\t\trule = Fenced\n"}},
		Want:  []string{rulesHold},
	},
	{
		Name:  "StrictJoinsDispatchedFlights",
		File:  "flight.go",
		Edits: [][2]string{{"return rule == Join", "return true"}},
		Want:  []string{rulesHold},
	},
	{
		Name:  "TheLastDispatchCounts",
		File:  "flight.go",
		Edits: [][2]string{{"\tif f.state == waiting {\n\t\tf.state", "\tif true {\n\t\tf.state"}},
		Want:  []string{rulesHold},
		Rare:  true,
	},
	{
		Name:  "RemovalWithoutIdentity",
		File:  "flight.go",
		Edits: [][2]string{{"if sl.newest == f { // by identity", "if true { // by identity"}},
		Want:  []string{sharesWhatItCan},
	},
	{
		Name:  "AbandonedFlightsStay",
		File:  "flight.go",
		Edits: [][2]string{{"\tcase sl.newest:\n\t\tsl.newest = nil\n\t}\n", "\t}\n"}},
		Want:  []string{notAbandoned},
	},
	{
		Name: "WakingBeforeRemoval",
		File: "flight.go",
		Edits: [][2]string{
			{"\ts.mu.Lock()\n\tf.val, f.err = v, err\n", "\ts.mu.Lock()\n\tf.val, f.err = v, err\n\tif f.done != nil {\n\t\tclose(f.done)\n\t}\n\ts.mu.Unlock()\n\ts.mu.Lock()\n"},
			{"\t\tclose(done)\n", ""},
		},
		Want: []string{removedFirst},
	},
	{
		Name:  "LandedFlightsStay",
		File:  "flight.go",
		Edits: [][2]string{{"\t\tsl.newest = nil\n\t\tif k != nil", "\t\tif k != nil"}},
		Want:  []string{notLanded, removedFirst},
	},
	{
		Name:  "WidthIsIgnored",
		File:  "flight.go",
		Edits: [][2]string{{"\tif sl.running < t.opts.Width {", "\tif true {"}},
		Want:  []string{atMostWidth},
	},
	{
		Name:  "LeadersDoNotWaitTheirTurn",
		File:  "flight.go",
		Edits: [][2]string{{"\tif f.atOnce {\n\t\tv, p", "\t{\n\t\tv, p"}},
		Want:  []string{atMostWidth},
	},
	{
		Name:  "LeadersKeepWhatTheyGot",
		File:  "flight.go",
		Edits: [][2]string{{"\t\tif landed = !more; landed {", "\t\tif landed = !more; false {"}},
		Want:  []string{everyCallReturns, sharesAddUp},
	},
	{
		Name:  "AbandonedRunsDoNotCount",
		File:  "flight.go",
		Edits: [][2]string{{"\tcase sl.newest:\n\t\tsl.newest = nil\n", "\tcase sl.newest:\n\t\tsl.newest = nil\n\t\tsl.running--\n\t\tdefer func() { sl.running++ }()\n"}, {"\tcancel := f.cancel\n\ts.mu.Unlock()\n\tif cancel != nil {\n\t\tcancel(ErrAbandoned)", "\tif next := sl.pending; next != nil && next.run != nil {\n\t\tsl.pending = nil\n\t\tnext.clearLocked()\n\t\tgo next.fly()\n\t}\n\tcancel := f.cancel\n\ts.mu.Unlock()\n\tif cancel != nil {\n\t\tcancel(ErrAbandoned)"}},
		Want:  []string{atMostWidth},
	},
	{
		Name:  "LeadersCancellationIsShared",
		File:  "flight.go",
		Edits: [][2]string{{"context.WithCancelCause(context.WithoutCancel(ctx))", "context.WithCancelCause(ctx)"}},
		Want:  []string{leadersOwn, everyCallReturns, statsAddUp},
	},
	{
		Name:  "AbandonedRunsAreNotCancelled",
		File:  "flight.go",
		Edits: [][2]string{{"\t\tcancel(ErrAbandoned)\n", ""}},
		Want:  []string{leadersOwn, everyCallReturns},
	},
	{
		Name:  "CollidingKeysAreOne",
		File:  "flight.go",
		Edits: [][2]string{{"if sl.text == k.Text && string(sl.args) == string(k.Args) {", "if true {"}},
		Want:  []string{keysApart},
	},
	{
		Name:  "FollowedFlightsAreUsedAgain",
		File:  "flight.go",
		Edits: [][2]string{{"&& done == nil && f.panic == nil", "&& f.panic == nil"}},
		Want:  []string{tableIsRight, noForeignError, sharesAddUp, everyCallReturns},
	},
	{
		Name:  "SharesOfLeaversAreLost",
		File:  "flight.go",
		Edits: [][2]string{{"\t\t<-f.done\n\t\tif f.err == nil && f.panic == nil {\n\t\t\tf.val.Drop()\n\t\t}\n", "\t\t<-f.done\n"}},
		Want:  []string{sharesAddUp},
	},
	{
		Name:  "WindowsHoldNoShare",
		File:  "flight.go",
		Edits: [][2]string{{"\t\t\tshares++\n", ""}},
		Want:  []string{sharesAddUp, usedAfterRelease},
	},
	{
		Name:  "RoomIsMadeOfOthersShares",
		File:  "window.go",
		Edits: [][2]string{{"\t\t\ts.unkeepLocked(k)\n\t\t\ts.dropIfEmptyLocked(k.f.slot)\n\t\t}", "\t\t}"}},
		Want:  []string{tableIsRight, sharesAddUp, usedAfterRelease},
	},
	{
		Name:  "RoomIsNotMade",
		File:  "window.go",
		Edits: [][2]string{{"\t\tif k != nil {\n\t\t\tk.drop()", "\t\tif k != nil {\n\t\t\tk.uncount(t, k.f.slot.text)"}},
		Want:  []string{sharesAddUp},
	},
	{
		Name:  "WhatIsNotKeptStaysCounted",
		File:  "flight.go",
		Edits: [][2]string{{"\tif unkept {", "\tif false && unkept {"}},
		Want:  []string{countsAddUp},
	},
	{
		Name:  "PendingFlightsStay",
		File:  "flight.go",
		Edits: [][2]string{{"\tif next != nil && sl.running < t.opts.Width {", "\tif false {"}},
		Want:  []string{everyCallReturns},
	},
	{
		Name:  "KeysAreNeverRemoved",
		File:  "flight.go",
		Edits: [][2]string{{"sl.running > 0 || sl.newest", "true || sl.running > 0 || sl.newest"}},
		Want:  []string{schedule.NothingLeft},
	},
}
