package judge

import (
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestServerSettings: no session, role or database can have a value of its own of a
// setting that current_setting is shared for, and two sessions have the same.
func TestServerSettings(t *testing.T) {
	dsn := pgtest.Database(t)
	conn := connect(t, dsn)
	sep := "?"
	if strings.Contains(dsn, "?") {
		sep = "&"
	}
	other := connect(t, dsn+sep+"options=-c%20work_mem%3D8MB%20-c%20timezone%3DAsia/Tokyo")
	type setting struct {
		Name, Value string
	}
	rows, _ := conn.Query(t.Context(), "SELECT name, current_setting(name) FROM pg_settings ORDER BY name")
	settings, err := pgx.CollectRows(rows, pgx.RowToStructByPos[setting])
	if err != nil {
		t.Fatal(err)
	}
	shared := 0
	for _, s := range settings {
		if !catalog.ServerSetting(s.Name) {
			continue
		}
		shared++
		for _, sql := range []string{"SET %s = $$%v$$", "SET %s = DEFAULT", "ALTER ROLE CURRENT_USER SET %s = $$%v$$"} {
			sql = strings.NewReplacer("%s", s.Name, "$$%v$$", "'"+strings.ReplaceAll(s.Value, "'", "''")+"'").Replace(sql)
			_, err := conn.Exec(t.Context(), sql)
			if pg := (*pgconn.PgError)(nil); !errors.As(err, &pg) || pg.Code != "55P02" { // cant_change_runtime_param
				t.Errorf("%s: %v; want it refused", sql, err)
			}
		}
		var value string
		if err := other.QueryRow(t.Context(), "SELECT current_setting($1)", s.Name).Scan(&value); err != nil || value != s.Value {
			t.Errorf("%s is %q in one session and %q, %v, in another", s.Name, s.Value, value, err)
		}
	}
	if t.Logf("%d of %d settings", shared, len(settings)); shared < 100 {
		t.Error("that is too few")
	}
	set := load(t, conn)
	want(t, set, Options{}, true, "SELECT current_setting('server_version_num')::int, version(), pg_is_in_recovery()")
	want(t, set, Options{}, false, "SELECT current_setting('TimeZone')")

	// A user's function of that name is looked at as any other.
	run(t, conn, "CREATE FUNCTION current_setting(text, int) RETURNS text VOLATILE LANGUAGE sql AS 'SELECT random()::text'")
	set = load(t, conn)
	want(t, set, Options{}, true, "SELECT current_setting('server_version_num')")
	want(t, set, Options{}, false, "SELECT current_setting('server_version_num', true)")
}

// TestCatalogViews: a user's view over system catalogs is shared if they are.
func TestCatalogViews(t *testing.T) {
	conn := connect(t, pgtest.Database(t))
	views := map[string]bool{
		"SELECT relname FROM pg_class":                                        true,
		"SELECT table_name FROM information_schema.tables":                    true,
		"SELECT * FROM pg_indexes":                                            true,
		"SELECT tablename, n_distinct FROM pg_stats":                          true,
		"SELECT rolname FROM pg_roles":                                        true,
		"SELECT relname, pg_total_relation_size(oid) FROM pg_class":           true,
		"SELECT sum(pg_database_size(oid)) FROM pg_database":                  true,
		"SELECT version(), pg_is_in_recovery()":                               true,
		"SELECT pg_get_viewdef(oid) FROM pg_class WHERE relkind = 'v'":        true,
		"SELECT oid FROM pg_namespace WHERE NOT pg_is_other_temp_schema(oid)": true,
		"SELECT oid FROM pg_class WHERE relnamespace <> pg_my_temp_schema()":  true,
		"SELECT * FROM information_schema.sequences":                          true,
		"SELECT pid FROM pg_locks":                                            false,
		"SELECT name, setting FROM pg_settings":                               false,
		"SELECT current_setting('server_version')":                            false, // in the tree the name is not looked at
		"SELECT relname, n_live_tup FROM pg_stat_user_tables":                 false,
		"SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid()":      false,
		"SELECT name FROM pg_timezone_names":                                  false,
		"SELECT sequencename, last_value FROM pg_sequences":                   false,
		"SELECT pg_current_wal_lsn() WHERE NOT pg_is_in_recovery()":           false,
		"SELECT slot_name FROM pg_replication_slots":                          false,
		"SELECT oid, pg_relation_filepath(oid) FROM pg_class":                 false,
		"SELECT relname FROM pg_class WHERE pg_try_advisory_lock(oid::int8)":  false,
		"SELECT query_to_xml('SELECT 1', true, true, '') FROM pg_class":       false,
	}
	for query := range views {
		run(t, conn, "CREATE VIEW "+viewName(query)+" AS "+query+"; CREATE VIEW over_"+viewName(query)+" AS SELECT * FROM "+viewName(query))
	}
	set := load(t, conn)
	for query, shared := range views {
		want(t, set, Options{}, shared, "SELECT * FROM "+viewName(query)+" -- "+query)
		want(t, set, Options{}, shared, "SELECT * FROM over_"+viewName(query)+" -- "+query)
	}
}

// viewName makes a name of a query.
func viewName(query string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' {
			return r
		}
		return '_'
	}, strings.ToLower(query[:min(len(query), 55)]))
}
