package sqlscan

import (
	"bufio"
	"os"
	"strings"
	"testing"
)

// readTSV reads a table of tab-separated values with \n, \t, \r and \\ escapes,
// without its first line.
func readTSV(t testing.TB, file string) [][]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t", `\r`, "\r", `\f`, "\f", `\v`, "\v", `\0`, "\x00")
	var rows [][]string
	for s := bufio.NewScanner(f); s.Scan(); {
		fields := strings.Split(s.Text(), "\t")
		for i := range fields {
			fields[i] = unescape.Replace(fields[i])
		}
		rows = append(rows, fields)
	}
	return rows[1:]
}

// TestClassifyCases holds the scanner to the project's shared cases: exactly to
// those that a text decides; those that need a catalog may not be too strict here.
func TestClassifyCases(t *testing.T) {
	for _, row := range readTSV(t, "testdata/classify.tsv") {
		sql, verdict, needs, why := row[0], row[1], row[2], row[3]
		got := Scan(sql)
		if coalesce := verdict == "coalesce"; needs == "text" && coalesce != (got.Class == Read) {
			t.Errorf("Scan(%q) = %v, %v %q; want %s (%s)", sql, got.Class, got.Reason, got.Name, verdict, why)
		}
	}
}
