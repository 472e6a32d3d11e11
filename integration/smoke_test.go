package integration

import (
	"database/sql"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"
)

// The servers themselves are tested, with no flightpg in between.
func TestServers(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		db, err := sql.Open("pgx", dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		var one, tables int
		var version, database string
		err = db.QueryRowContext(t.Context(), `
			select 1, version(), current_database(),
				(select count(*) from pg_tables where schemaname = 'public')`).Scan(&one, &version, &database, &tables)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s in %s", version, database)
		if one != 1 || !strings.HasPrefix(version, "PostgreSQL ") {
			t.Errorf("select 1, version() = %d, %s; want 1, PostgreSQL …", one, version)
		}
		if tables != 0 {
			t.Errorf("the database has %d tables; want a fresh one", tables)
		}
	})
}
