//go:build unix

package consistency

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// change breaks the driver in one place: a text of one of its files, and what is
// put there instead.
type change struct{ file, old, new string }

// apply returns the texts of the files with the changes, by the files' paths.
func apply(t *testing.T, changes ...change) (root string, texts map[string]string) {
	t.Helper()
	root, err := filepath.Abs("../../..")
	if err != nil {
		t.Fatal(err)
	}
	texts = make(map[string]string)
	for _, c := range changes {
		file := filepath.Join(root, filepath.FromSlash(c.file))
		text, ok := texts[file]
		if !ok {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
		}
		if n := strings.Count(text, c.old); n != 1 {
			t.Fatalf("%s has %d times the text that this control replaces, want one: the control must follow the code\n%s", c.file, n, c.old)
		}
		texts[file] = strings.Replace(text, c.old, c.new, 1)
	}
	return root, texts
}

// breakDriver builds a worker over a driver with these changes. The source
// stays as it is: the compiler is given other text for the files (go build
// -overlay).
func breakDriver(t *testing.T, changes ...change) (binary string) {
	t.Helper()
	root, texts := apply(t, changes...)
	dir := t.TempDir()
	overlay := struct{ Replace map[string]string }{make(map[string]string)}
	for file, text := range texts {
		broken := filepath.Join(dir, strings.ReplaceAll(strings.TrimPrefix(file, root), string(filepath.Separator), "_"))
		if err := os.WriteFile(broken, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		overlay.Replace[file] = broken
	}
	b, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	list := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(list, b, 0o600); err != nil {
		t.Fatal(err)
	}
	binary = filepath.Join(dir, "worker")
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
