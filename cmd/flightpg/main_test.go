package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

func TestMain(m *testing.M) { leak.Main(func() int { return pgtest.Run(m) }) }

// command runs the command and returns what it printed.
func command(stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(context.Background(), args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

func TestUsage(t *testing.T) {
	for _, args := range [][]string{
		{},
		{"fly"},
		{"explain"},
		{"explain", "-fast", "SELECT 1"},
		{"explain", "SELECT", "1"},
		{"explain", "-f", "file", "SELECT 1"},
		{"explain", "-dsn"},
	} {
		code, out, errs := command("", args...)
		if code != 2 || out != "" || !strings.Contains(errs, "usage: flightpg explain") {
			t.Errorf("%v: status %d, %q, %q; want 2 and the usage", args, code, out, errs)
		}
	}
	for _, args := range [][]string{{"help"}, {"-h"}, {"explain", "-h"}} {
		if code, out, _ := command("", args...); code != 0 || !strings.Contains(out, "usage:") {
			t.Errorf("%v: status %d, %q; want 0 and the usage", args, code, out)
		}
	}
}

func TestFailures(t *testing.T) {
	const password = "s3cr3t"
	for _, args := range [][]string{
		{"explain", "-f", filepath.Join(t.TempDir(), "none"), "-json"},
		{"explain", "-dsn", "host=localhost flight_mode=lazy password=" + password, "SELECT 1"},
		{"explain", "-dsn", "postgres://bob:" + password + "@127.0.0.1:1/db?connect_timeout=2", "SELECT * FROM t"},
	} {
		code, out, errs := command("", args...)
		if code != 1 || errs == "" || strings.Contains(errs, password) {
			t.Errorf("%v: status %d, %q, %q; want 1 and a message without the password", args, code, out, errs)
		}
	}
}

func decode(t *testing.T, out string) (records []map[string]string) {
	t.Helper()
	for _, line := range strings.Split(strings.TrimSuffix(out, "\n"), "\n") {
		var r map[string]string
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		records = append(records, r)
	}
	return records
}

func TestJSON(t *testing.T) {
	file := filepath.Join(t.TempDir(), "statements")
	input := `SELECT 1` + "\n" + `SELECT 'a\\'\nFROM t` + "\n\n" + `not <sql> & all` + "\r\n" + `SELECT random()`
	if err := os.WriteFile(file, []byte(input), 0o600); err != nil {
		t.Fatal(err)
	}
	want := []map[string]string{
		{"sql": "SELECT 1", "verdict": "coalesce", "reason": "none", "layer": "text", "name": ""},
		{"sql": "SELECT 'a\\'\nFROM t", "verdict": "coalesce", "reason": "none", "layer": "text", "name": ""},
		{"sql": "", "verdict": "bypass", "reason": "empty", "layer": "text", "name": ""},
		{"sql": "not <sql> & all\r", "verdict": "bypass", "reason": "not-a-read", "layer": "text", "name": "not"},
		{"sql": "SELECT random()", "verdict": "bypass", "reason": "volatile-function", "layer": "text", "name": "random"},
	}
	for _, tc := range []struct {
		stdin string
		args  []string
	}{
		{"", []string{"explain", "-json", "-f", file}},
		{input, []string{"explain", "-json", "-"}},
	} {
		code, out, errs := command(tc.stdin, tc.args...)
		if code != 0 || errs != "" {
			t.Fatalf("%v: status %d, %q", tc.args, code, errs)
		}
		got := decode(t, out)
		if len(got) != len(want) {
			t.Fatalf("%v: %d objects; want %d", tc.args, len(got), len(want))
		}
		for i := range want {
			if _, ok := got[i]["hint"]; !ok {
				t.Errorf("object %d has no hint", i)
			}
			for k, v := range want[i] {
				if got[i][k] != v {
					t.Errorf("object %d: %s = %q; want %q", i, k, got[i][k], v)
				}
			}
		}
	}
}

func TestPeople(t *testing.T) {
	code, out, _ := command("", "explain", "SELECT id,\n name FROM t WHERE id = nextval('s')")
	if code != 0 || !strings.Contains(out, "bypass") || !strings.Contains(out, "nextval") || !strings.Contains(out, "SELECT id, name FROM t") {
		t.Errorf("status %d:\n%s", code, out)
	}
	if strings.Contains(out, "\x1b") {
		t.Error("colours without a terminal")
	}
	var painted bytes.Buffer
	print := printer(&painted, true)
	v, err := judgeText("SELECT 1")
	if err != nil {
		t.Fatal(err)
	}
	_ = print("SELECT 1", &v)
	_ = print("", nil)
	if !strings.Contains(painted.String(), "\x1b[32mcoalesce") {
		t.Errorf("no colour on a terminal: %q", painted.String())
	}
	if s := oneLine("SELECT " + strings.Repeat("x", 200)); len([]rune(s)) != 100 || !strings.HasSuffix(s, "…") {
		t.Errorf("a long statement became %q", s)
	}
}

func TestDatabase(t *testing.T) {
	dsn := pgtest.Database(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), `CREATE TABLE t (id int); CREATE VIEW v AS SELECT id, random() FROM t;
		CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'`); err != nil {
		t.Fatal(err)
	}
	code, out, errs := command("SELECT * FROM t\nSELECT * FROM v\nSELECT f()\nSELECT * FROM nothing\n", "explain", "-dsn", dsn, "-json", "-")
	if code != 0 {
		t.Fatalf("status %d, %q", code, errs)
	}
	for i, want := range []string{"coalesce", "bypass unsafe-view catalog v", "bypass unsafe-function catalog f", "bypass unknown-relation catalog nothing"} {
		r := decode(t, out)[i]
		got := r["verdict"]
		if got == "bypass" {
			got = strings.Join([]string{got, r["reason"], r["layer"], r["name"]}, " ")
			if r["hint"] == "" {
				t.Errorf("%s: no hint", r["sql"])
			}
		}
		if got != want {
			t.Errorf("%s: %s; want %s", r["sql"], got, want)
		}
	}
}
