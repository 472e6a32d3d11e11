package battery

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Edit breaks the code in one place, for a control: a file, by its path below the
// root that Overlay is given, a text that it has once, and what is put there
// instead.
type Edit [3]string

// Overlay writes edited copies of the files and returns the name of the list of
// them that go build, go test and go run take as -overlay: the compiler sees the
// copies, and the source stays as it is. It ends the test if an edit does not fit
// the code any more: if its text is not there once, or what comes of it does not
// compile.
func Overlay(t *testing.T, root string, edits ...Edit) (list string) {
	t.Helper()
	root, err := filepath.Abs(root)
	if err != nil {
		t.Fatal(err)
	}
	texts := make(map[string]string)
	for _, e := range edits {
		path, old, replacement := e[0], e[1], e[2]
		file := filepath.Join(root, filepath.FromSlash(path))
		text, ok := texts[file]
		if !ok {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			text = string(b)
		}
		if n := strings.Count(text, old); n != 1 {
			t.Fatalf("%s has %d places to break; want 1: bring the control up to date with the code:\n%s", path, n, old)
		}
		texts[file] = strings.Replace(text, old, replacement, 1)
	}
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		name = filepath.Join(dir, name)
		if err := os.WriteFile(name, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return name
	}
	var overlay struct{ Replace map[string]string }
	overlay.Replace = make(map[string]string)
	for file, text := range texts {
		overlay.Replace[file] = write(strconv.Itoa(len(overlay.Replace))+"_"+filepath.Base(file), []byte(text))
	}
	data, err := json.Marshal(overlay)
	if err != nil {
		t.Fatal(err)
	}
	list = write("overlay.json", data)
	if err := typeCheck(texts); err != nil {
		t.Fatalf("the edited code does not compile: bring the control up to date with the code:\n%v", err)
	}
	return list
}
