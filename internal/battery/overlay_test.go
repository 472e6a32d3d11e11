package battery

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestTypeCheck: what the compiler would not take is told, and what it takes is not.
func TestTypeCheck(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(root, "internal", "flight", "flight.go")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ more, want string }{
		{"", ""},
		{"func _() { var unused int }\n", "declared and not used"},
		{"func _() int { return \"\" }\n", "cannot use"},
		{"func _() {\n", "expected"},
	} {
		err := typeCheck(map[string]string{file: string(text) + tc.more})
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("with %q: error %v; want %q", tc.more, err, tc.want)
		}
	}
	if err := typeCheck(map[string]string{filepath.Join(root, "nowhere", "x.go"): "package x"}); err == nil {
		t.Error("a file of no package: no error")
	}
}
