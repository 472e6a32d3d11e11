//go:build unix

package consistency

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/flightpg/flightpg/internal/battery"
)

// breakDriver builds a worker over a driver with these changes.
func breakDriver(t *testing.T, changes ...battery.Edit) (binary string) {
	t.Helper()
	list := battery.Overlay(t, "../../..", changes...)
	binary = filepath.Join(t.TempDir(), "worker")
	args := []string{"build", "-overlay", list, "-o", binary}
	if raceEnabled { // what the test needs is compiled already
		args = append(args, "-race")
	}
	cmd := exec.CommandContext(t.Context(), "go", append(args, "./worker")...)
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the broken worker: %v\n%s", err, out)
	}
	return binary
}
