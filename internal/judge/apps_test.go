package judge

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/pgtest"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// TestApps judges what applications of eleven kinds read, as a role that is no superuser,
// against the table of what is expected. Each statement is one that the server accepts.
// docs/sharing.md has the shares.
func TestApps(t *testing.T) {
	dsn := pgtest.Database(t)
	conn := connect(t, dsn)
	role := fmt.Sprintf("app_%d", time.Now().UnixNano())
	run(t, conn, `CREATE EXTENSION citext; CREATE EXTENSION hstore; CREATE EXTENSION ltree; CREATE EXTENSION pg_trgm; CREATE EXTENSION unaccent;
		CREATE EXTENSION cube; CREATE EXTENSION earthdistance; CREATE EXTENSION pgcrypto;
		CREATE ROLE `+role+`; GRANT ALL ON SCHEMA public TO `+role+`; SET ROLE `+role)
	t.Cleanup(func() {
		_, _ = conn.Exec(context.Background(), "RESET ROLE; DROP OWNED BY "+role+" CASCADE; DROP ROLE "+role)
	})
	schema, err := os.ReadFile("testdata/apps.sql")
	if err != nil {
		t.Fatal(err)
	}
	run(t, conn, string(schema))
	set, err := catalog.Load(t.Context(), queryFunc(conn), catalog.Options{Words: sqlscan.Words})
	if err != nil {
		t.Fatal(err)
	}

	type share struct{ all, locks, shared int }
	var apps []string
	shares, reasons := map[string]share{}, map[string]int{}
	seen := map[string]bool{}
	for _, row := range readTSV(t, "testdata/apps.tsv") {
		if len(row) != 3 {
			t.Fatalf("bad row %q", row)
		}
		app, want, sql := row[0], row[1], row[2]
		if seen[sql] {
			t.Errorf("%s is there twice", sql)
		}
		seen[sql] = true
		if _, err := conn.PgConn().Prepare(t.Context(), "", sql, nil); err != nil {
			t.Errorf("%s: %v", sql, err)
		}
		v := Judge(sql, set, Options{})
		got := "coalesce"
		if v.Class != sqlscan.Read {
			got = v.Reason.String()
			reasons[got]++
		}
		if got != want {
			t.Errorf("Judge(%q) = %s %q: %s; want %s", sql, got, v.Name, v.Hint(), want)
		}
		if !slices.Contains(apps, app) {
			apps = append(apps, app)
		}
		for _, name := range []string{app, "all"} {
			s := shares[name]
			s.all++
			switch got {
			case "coalesce":
				s.shared++
			case "row-lock":
				s.locks++
			}
			shares[name] = s
		}
	}
	var table []string
	for _, app := range append(apps, "all") {
		s := shares[app]
		table = append(table, fmt.Sprintf("| %s | %d | %d | %.1f%% | %.1f%% |", app, s.all, s.shared,
			100*float64(s.shared)/float64(s.all), 100*float64(s.shared)/float64(s.all-s.locks)))
	}
	for _, reason := range slices.SortedFunc(maps.Keys(reasons), func(a, b string) int { return 2*(reasons[b]-reasons[a]) + strings.Compare(a, b) }) {
		table = append(table, fmt.Sprintf("| `%s` | %d |", reason, reasons[reason]))
	}
	t.Logf("%s", strings.Join(table, "\n"))
	if all := shares["all"].all; all < 400 {
		t.Errorf("%d statements; want 400 at least", all)
	}
	doc, err := os.ReadFile("../../docs/sharing.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range table {
		if !strings.Contains(string(doc), "\n"+line) {
			t.Errorf("docs/sharing.md lacks %s", line)
		}
	}
}
