package schedule

import (
	"context"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flightpg/flightpg/internal/battery"
)

// Mutant is a broken variant of the code under test.
type Mutant struct {
	Name  string
	File  string      // relative to the package's directory, which tests run in
	Edits [][2]string // what is replaced by what; the former must be there, once
	Want  []string    // the invariants that it violates, as a rule
	Rare  bool        // it takes thousands of schedules: at full length only
}

func (m *Mutant) edits() (edits []battery.Edit) {
	for _, e := range m.Edits {
		edits = append(edits, battery.Edit{m.File, e[0], e[1]})
	}
	return edits
}

// EnvControl is set in the process that runs a simulation over a Mutant.
const EnvControl = "FLIGHTPG_CONTROL"

// InControl reports whether the code under test is a Mutant.
func InControl() bool { return os.Getenv(EnvControl) != "" }

// Controls runs TestSimulation of the current package, of that many schedules, over each
// of the mutants; with -short over one of them, which the seed chooses. It reports how
// many were found out.
func Controls(t *testing.T, about string, schedules int, mutants []Mutant) {
	t.Helper()
	if InControl() {
		t.Skip("NOT RUN in a control, whose own controls would have theirs, and so on")
	}
	seed := battery.Seed(t)
	report := battery.Report(t, "simulation", about, seed)
	report.Set("breaks", len(mutants))
	found := 0
	for _, m := range mutants {
		battery.Overlay(t, ".", m.edits()...) // all must fit the code, also those that do not run
	}
	if !battery.Full() {
		mutants = slices.DeleteFunc(slices.Clone(mutants), func(m Mutant) bool { return m.Rare })
		i := int(seed % uint64(len(mutants)))
		mutants = battery.Quick(mutants[i:i+1], mutants)
	}
	for _, m := range mutants {
		if t.Run(m.Name, func(t *testing.T) { control(t, seed, schedules, m) }) {
			found++
		}
	}
	report.Set("found out", found)
}

// control fails unless the test finds the mutant out.
func control(t *testing.T, seed uint64, schedules int, m Mutant) {
	t.Helper()
	overlay := battery.Overlay(t, ".", m.edits()...)

	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	args := []string{"test", "-overlay", overlay, "-run", "^TestSimulation$", "-count=1", "-vet=off", "-timeout", "4m"}
	// Without the race detector, which it does not take to find a break: of bubbles in which
	// goroutines are left behind it crashes or hangs now and then (go.dev/issue/78156).
	cmd := exec.CommandContext(ctx, "go", append(args, ".")...)
	cmd.Env = append(os.Environ(),
		EnvControl+"=1", EnvSchedule+"=", EnvSchedules+"="+strconv.Itoa(schedules),
		battery.EnvSeed+"="+strconv.FormatUint(seed, 10), battery.EnvReport+"=", battery.EnvLength+"=")
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s: the simulation did not end:\n%s", m.Name, out)
	}
	if err == nil {
		t.Fatalf("%s: not found out in %d schedules of seed %d", m.Name, schedules, seed)
	}
	for _, want := range m.Want {
		if strings.Contains(string(out), ": "+want+": ") {
			t.Logf("%s: found out: %s", m.Name, firstLine(string(out), ": "+want+": "))
			return
		}
	}
	// In some schedules a break shows elsewhere first, such as in a counter. That is a
	// violation, too; a simulation that fails without one has not found it.
	if other := firstLine(string(out), " of seed "+strconv.FormatUint(seed, 10)+": "); other != "" {
		t.Logf("%s: found out by another invariant than %q: %s", m.Name, m.Want, other)
		return
	}
	t.Fatalf("%s: the simulation failed, but without a violation:\n%s", m.Name, out)
}

// firstLine returns the first line of out that contains s.
func firstLine(out, s string) string {
	for line := range strings.Lines(out) {
		if strings.Contains(line, s) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
