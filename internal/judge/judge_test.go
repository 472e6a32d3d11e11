package judge

import (
	"bufio"
	"context"
	"os"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

func TestMain(m *testing.M) { leak.Main(func() int { return pgtest.Run(m) }) }

// connect returns a session that ends with the test.
func connect(t testing.TB, dsn string) *pgx.Conn {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

// database returns a database with the statements of a file run in it.
func database(t testing.TB, files ...string) string {
	t.Helper()
	dsn := pgtest.Database(t)
	for _, file := range files {
		sql, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// Each file in a session of its own, which it may change.
		run(t, connect(t, dsn), string(sql))
	}
	return dsn
}

// run executes statements.
func run(t testing.TB, conn *pgx.Conn, sql string) {
	t.Helper()
	if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
		t.Fatalf("%.200s: %v", sql, err)
	}
}

// load reads a session's catalog, for any role: the session's own is a superuser, and
// exempt from row-level security.
func load(t testing.TB, conn *pgx.Conn) *catalog.Set {
	t.Helper()
	set, err := catalog.Load(t.Context(), queryFunc(conn), catalog.Options{Words: sqlscan.Words, AnyRole: true})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func queryFunc(conn *pgx.Conn) catalog.QueryFunc {
	return func(ctx context.Context, sql string, row func([]string) error) error {
		results, err := conn.PgConn().Exec(ctx, "BEGIN READ ONLY; "+sql+"; ROLLBACK").ReadAll()
		if err != nil {
			return err
		}
		for _, result := range results {
			for _, raw := range result.Rows {
				cells := make([]string, len(raw))
				for i, v := range raw {
					cells[i] = string(v)
				}
				if err := row(cells); err != nil {
					return err
				}
			}
		}
		return nil
	}
}

// readTSV reads a table of tab-separated values with \n, \t, \r and \\ escapes,
// without its first line, empty lines and comments.
func readTSV(t testing.TB, file string) [][]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t", `\r`, "\r")
	var rows [][]string
	for s := bufio.NewScanner(f); s.Scan(); {
		if s.Text() == "" || strings.HasPrefix(s.Text(), "#") {
			continue
		}
		fields := strings.Split(s.Text(), "\t")
		for i := range fields {
			fields[i] = unescape.Replace(fields[i])
		}
		rows = append(rows, fields)
	}
	if len(rows) < 2 {
		t.Fatalf("%s is empty", file)
	}
	return rows[1:]
}

// TestClassifyCases holds both layers together to the project's shared cases.
func TestClassifyCases(t *testing.T) {
	set := load(t, connect(t, database(t, "testdata/schema.sql")))
	for _, row := range readTSV(t, "../sqlscan/testdata/classify.tsv") {
		sql, shared, needs, why := row[0], row[1] == "coalesce", row[2], row[3]
		if v := Judge(sql, set, Options{}); shared != (v.Class == sqlscan.Read) {
			t.Errorf("Judge(%q) = %v, %v %q; want %s (%s)", sql, v.Class, v.Reason, v.Name, row[1], why)
		}
		if v := Judge(sql, nil, Options{TrustNames: true}); needs == "text" && shared != (v.Class == sqlscan.Read) {
			t.Errorf("Judge(%q) with trust = %v, %v %q; want %s (%s)", sql, v.Class, v.Reason, v.Name, row[1], why)
		}
		if v := Judge(sql, nil, Options{}); !shared && v.Class == sqlscan.Read {
			t.Errorf("Judge(%q) without a catalog = read; want %s (%s)", sql, row[1], why)
		}
	}
}
