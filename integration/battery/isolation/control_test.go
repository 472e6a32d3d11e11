package isolation

import (
	"context"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flightpg/flightpg/internal/battery"
)

// controls are broken variants of the driver, and the tests that find each out, by
// what they then say.
var controls = []struct {
	name  string
	edits []battery.Edit
	tests map[string]string
}{
	{
		"SharedBytes",
		[]battery.Edit{{"rows.go", "ok && r.clone {", "ok && r.clone && false {"}},
		map[string]string{"TestIsolation/Inner": "; want "},
	},
	{
		"SharedArguments",
		[]battery.Edit{{"executor.go", "l.r.args = copyArgs(l.r.args)", "_ = copyArgs"}},
		map[string]string{"TestArguments/Inner": "were changed by their caller"},
	},
	{
		"ShallowArguments",
		[]battery.Edit{{"arguments.go", "c.Elem().Set(elem.copyOf(v.Elem()))", "c.Elem().Set(v.Elem())"}, {"arguments.go", "c.Index(i).Set(elem.clone(v.Index(i)))", "c.Index(i).Set(v.Index(i))"}},
		map[string]string{"TestArguments/Inner": "were changed by their caller"},
	},
	{
		"InnerDriversMemory",
		[]battery.Edit{{"rows.go", "row[i] = bytes.Clone(b)", "row[i] = b"}},
		map[string]string{"TestIsolation/Inner": "; want "},
	},
}

// envControl is set in the process that tests a broken variant.
const envControl = "FLIGHTPG_ISOLATION_CONTROL"

func TestControls(t *testing.T) {
	if os.Getenv(envControl) != "" {
		t.Skip("NOT RUN in a control, whose own controls would have theirs, and so on")
	}
	seed := battery.Seed(t)
	todo := controls
	if !battery.Full() { // one build for two: they break different things
		for _, c := range controls[2:] {
			battery.Overlay(t, "../../..", c.edits...) // at least the code is as it expects
		}
		both := controls[0]
		both.name += "AndArguments"
		both.edits = append(both.edits[:1:1], controls[1].edits...)
		both.tests = map[string]string{"TestIsolation/Inner": "; want ", "TestArguments/Inner": "were changed by their caller"}
		todo = []struct {
			name  string
			edits []battery.Edit
			tests map[string]string
		}{both}
	}
	for _, c := range todo {
		t.Run(c.name, func(t *testing.T) {
			e := battery.Report(t, "isolation", "control: "+c.name+": a driver that does not copy is found out", seed)
			overlay := battery.Overlay(t, "../../..", c.edits...)
			for test, want := range c.tests {
				out := broken(t, overlay, test, seed)
				if !strings.Contains(out, want) {
					t.Errorf("%s failed, but not with %q:\n%s", test, want, out)
				}
				e.Set("found out by "+test, firstWith(out, want))
			}
		})
	}
}

// broken runs a test over the edited driver and returns its output. The test must
// fail.
func broken(t *testing.T, overlay, test string, seed uint64) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	args := []string{"test", "-overlay", overlay, "-run", "^" + strings.ReplaceAll(test, "/", "$/^") + "$", "-count=1", "-vet=off", "-timeout", "4m"}
	if raceEnabled {
		args = append(args, "-race") // as all else is built already
	}
	cmd := exec.CommandContext(ctx, "go", append(args, ".")...)
	cmd.Env = append(os.Environ(), envControl+"=1", battery.EnvLength+"=", battery.EnvReport+"=", battery.EnvSeed+"="+strconv.FormatUint(seed, 10))
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("%s passed over a broken driver (seed %d):\n%s", test, seed, out)
	}
	if !strings.Contains(string(out), "--- FAIL: "+test) {
		t.Fatalf("%s did not run to its end: %v\n%s", test, err, out)
	}
	return string(out)
}

// firstWith returns the first line that has s.
func firstWith(out, s string) string {
	for line := range strings.Lines(out) {
		if strings.Contains(line, s) {
			return strings.TrimSpace(line)
		}
	}
	return ""
}
