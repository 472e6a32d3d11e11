package hostile

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/flightpg/flightpg/internal/battery"
)

// root is flightpg's own directory.
const root = "../../.."

// TestCollisions builds flightpg with hashes that are all the same, and runs
// TestConstantHash (in the file of its name) with it: keys are found by comparing
// them, or not at all. A second build that compares no keys must fail there.
func TestCollisions(t *testing.T) {
	report := battery.Report(t, part, "with all hashes equal every answer is its caller's", 0)
	constant := []battery.Edit{
		{"internal/flight/flight.go", "\treturn h\n}\n\n// Enter adds", "\treturn 42 + 0*h\n}\n\n// Enter adds"},
		{"verdicts.go", "{ return maphash.String(c.seed, sql) }", "{ return 42 + 0*maphash.String(c.seed, sql) }"},
	}
	t.Run("Constant", func(t *testing.T) {
		out, err := runOverlaid(t, constant)
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		for line := range strings.Lines(out) {
			if _, figures, ok := strings.Cut(line, "figures: "); ok {
				report.Set("with equal hashes", strings.TrimSpace(figures))
			}
		}
	})
	t.Run("Control", func(t *testing.T) {
		out, err := runOverlaid(t, append(constant[:1:1], battery.Edit{
			"internal/flight/flight.go", "sl.text == k.Text && string(sl.args) == string(k.Args)", "sl.text == k.Text",
		}))
		if err == nil || !strings.Contains(out, "an answer of another") {
			t.Errorf("flights found by their text alone: the test finds nothing wrong: %v\n%s", err, out)
		}
	})
	report.Set("control", "keys not compared: detected")
	if !battery.Full() {
		return
	}
	t.Run("Suites", func(t *testing.T) {
		overlay := battery.Overlay(t, root, constant...)
		cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout=4m", "-overlay="+overlay, "-skip", "Simulation|Fuzz|Benchmark|VerdictCache", ".", "./internal/flight")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "GOWORK=off", battery.EnvReport+"=", battery.EnvLength+"=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("the driver's own tests: %v\n%s", err, out)
		}
		report.Set("the driver's own tests", "passed")
	})
}

// runOverlaid runs TestConstantHash with changed files.
func runOverlaid(t *testing.T, changes []battery.Edit) (string, error) {
	t.Helper()
	overlay := battery.Overlay(t, root, changes...)
	args := []string{"test", "-count=1", "-v", "-vet=off", "-timeout=4m", "-tags=constanthash", "-overlay=" + overlay, "-run=^TestConstantHash$"}
	if raceEnabled {
		args = append(args, "-race") // what is built that way already
	}
	cmd := exec.CommandContext(t.Context(), "go", append(args, ".")...)
	cmd.Env = append(os.Environ(), "GOWORK=off", battery.EnvReport+"=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
