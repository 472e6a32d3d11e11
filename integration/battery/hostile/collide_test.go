package hostile

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/flightpg/flightpg/internal/battery"
)

// TestCollisions builds flightpg with hashes that are all the same, and runs
// TestConstantHash (in the file of its name) with it: keys are found by comparing
// them, or not at all. A second build that compares no keys must fail there.
func TestCollisions(t *testing.T) {
	report := battery.Report(t, part, "with all hashes equal every answer is its caller's", 0)
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	constant := []replacement{
		{"internal/flight/flight.go", "\treturn h\n}\n\n// Enter adds", "\treturn 42 + 0*h\n}\n\n// Enter adds"},
		{"policy.go", "hash := maphash.String(c.seed, sql)", "hash := 42 + 0*maphash.String(c.seed, sql)"},
	}
	t.Run("Constant", func(t *testing.T) {
		out, err := runOverlaid(t, root, constant)
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
		out, err := runOverlaid(t, root, append(constant[:1:1], replacement{
			"internal/flight/flight.go", "sl.text == k.Text && sl.args == string(k.Args)", "sl.text == k.Text",
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
		overlay := writeOverlay(t, root, constant)
		cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-timeout=4m", "-overlay="+overlay, "-skip", "Simulation|Fuzz|Benchmark|VerdictCache", ".", "./internal/flight")
		cmd.Dir = root
		cmd.Env = append(os.Environ(), "GOWORK=off", battery.EnvReport+"=", battery.EnvLength+"=")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("the driver's own tests: %v\n%s", err, out)
		}
		report.Set("the driver's own tests", "passed")
	})
}

type replacement struct{ file, old, new string }

// writeOverlay writes changed copies of files, and the list of them that go takes.
func writeOverlay(t *testing.T, root string, changes []replacement) string {
	t.Helper()
	dir := t.TempDir()
	texts := map[string]string{}
	for _, c := range changes {
		name := filepath.Join(root, filepath.FromSlash(c.file))
		if _, ok := texts[name]; !ok {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			texts[name] = string(data)
		}
		if n := strings.Count(texts[name], c.old); n != 1 {
			t.Fatalf("%s has %q %d times; want once: the test must follow the code", c.file, c.old, n)
		}
		texts[name] = strings.Replace(texts[name], c.old, c.new, 1)
	}
	var overlay struct{ Replace map[string]string }
	overlay.Replace = map[string]string{}
	for name, text := range texts {
		copied := filepath.Join(dir, filepath.Base(name))
		if err := os.WriteFile(copied, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[name] = copied
	}
	data, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// runOverlaid runs TestConstantHash with changed files.
func runOverlaid(t *testing.T, root string, changes []replacement) (string, error) {
	t.Helper()
	overlay := writeOverlay(t, root, changes)
	cmd := exec.CommandContext(t.Context(), "go", "test", "-count=1", "-v", "-timeout=4m", "-tags=constanthash", "-overlay="+overlay, "-run=^TestConstantHash$", ".")
	cmd.Env = append(os.Environ(), "GOWORK=off", battery.EnvReport+"=")
	out, err := cmd.CombinedOutput()
	return string(out), err
}
