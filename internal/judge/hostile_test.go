package judge

import (
	"os"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// TestHostile holds both layers to the table of statements for a database full
// of traps. What the table says is checked on the server first: a statement
// marked hit must call a volatile function, and one marked clean must not.
func TestHostile(t *testing.T) {
	conn := connect(t, database(t, "testdata/hostile.sql"))
	set := load(t, conn)
	checkTable(t, conn, "testdata/hostile.tsv", func(sql string) Verdict { return Judge(sql, set, Options{}) })
}

// TestClosure is for what is reached though no name in a statement shows it.
func TestClosure(t *testing.T) {
	conn := connect(t, database(t, "testdata/closure.sql"))
	set := load(t, conn)
	checkTable(t, conn, "testdata/closure.tsv", func(sql string) Verdict { return Judge(sql, set, Options{}) })

	// Whoever believes the declarations does not look into bodies.
	trusting, err := catalog.Load(t.Context(), queryFunc(conn), catalog.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for sql, shared := range map[string]bool{
		"SELECT swallows(1)": true, "SELECT swallows_atomic(1)": true, "SELECT pid()": true, "SELECT dynamic(1)": true, "SELECT through_view()": true,
		"SELECT logs()": false, "SELECT pid_internal()": false, "SELECT id FROM t ORDER BY j": false,
	} {
		want(t, trusting, Options{}, shared, sql)
	}
}

// TestFamilies: members that somebody has added to a built-in operator family can be
// reached by any statement.
func TestFamilies(t *testing.T) {
	conn := connect(t, database(t, "testdata/closure.sql"))
	want(t, load(t, conn), Options{}, true, "SELECT 1")
	run(t, conn, `CREATE FUNCTION in_range(float8, float8, text, bool, bool) RETURNS bool VOLATILE LANGUAGE plpgsql AS $$ BEGIN PERFORM hit(); RETURN true; END $$;
		ALTER OPERATOR FAMILY float_ops USING btree ADD FUNCTION 3 (float8, text) in_range(float8, float8, text, bool, bool)`)
	const window = "SELECT count(*) OVER (ORDER BY x::float8 RANGE BETWEEN '1'::text PRECEDING AND CURRENT ROW) FROM generate_series(1, 3) x"
	before := hits(t, conn)
	run(t, conn, window)
	if hits(t, conn) == before {
		t.Fatal("the server does not call it; then nothing is shown here")
	}
	want(t, load(t, conn), Options{}, false, window)
}

// TestHostile18 adds what only newer servers have.
func TestHostile18(t *testing.T) {
	conn := connect(t, database(t, "testdata/hostile.sql"))
	if version := load(t, conn).Version(); version < 18 {
		t.Skipf("the server is PostgreSQL %d; set FLIGHTPG_PGBIN to a newer one", version)
	}
	sql, err := os.ReadFile("testdata/hostile18.sql")
	if err != nil {
		t.Fatal(err)
	}
	run(t, conn, string(sql))
	set := load(t, conn)
	checkTable(t, conn, "testdata/hostile18.tsv", func(sql string) Verdict { return Judge(sql, set, Options{}) })
}

func checkTable(t *testing.T, conn *pgx.Conn, file string, judge func(string) Verdict) {
	t.Helper()
	for _, row := range readTSV(t, file) {
		if len(row) != 3 {
			t.Fatalf("bad row %q", row)
		}
		shared, oracle, sql := row[0] == "coalesce", row[1], row[2]
		if oracle != "-" {
			before := hits(t, conn)
			if _, err := conn.PgConn().Exec(t.Context(), sql).ReadAll(); err != nil {
				t.Errorf("%s: %v", sql, err)
			}
			if called := hits(t, conn) != before; called != (oracle == "hit") {
				t.Errorf("%s: a volatile function was called: %v; the table says %s", sql, called, oracle)
			}
		}
		v := judge(sql)
		if shared != (v.Class == sqlscan.Read) {
			t.Errorf("Judge(%q) = %v, %v %q: %s; want %s", sql, v.Class, v.Reason, v.Name, v.Hint(), row[0])
		}
		if v.Layer == Catalog && v.Hint() == "" {
			t.Errorf("Judge(%q) = %v, %v %q without a hint", sql, v.Class, v.Reason, v.Name)
		}
		if v := Judge(sql, nil, Options{}); !shared && v.Class == sqlscan.Read {
			t.Errorf("Judge(%q) without a catalog = read; want %s", sql, row[0])
		}
	}
}

// hits returns how often volatile functions have been called.
func hits(t *testing.T, conn *pgx.Conn) (n int64) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "SELECT last_value FROM public.hits").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
