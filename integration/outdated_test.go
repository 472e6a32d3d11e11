package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
)

// withParam returns the DSN with one more parameter.
func withParam(t *testing.T, dsn, name, value string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set(name, value)
	u.RawQuery = q.Encode()
	return u.String()
}

// ways are how a caller may read.
var ways = []struct {
	name string
	read func(ctx context.Context, db *sql.DB, query string, args ...any) (string, error)
}{
	{"Query", func(ctx context.Context, db *sql.DB, query string, args ...any) (string, error) {
		rows, err := db.QueryContext(ctx, query, args...)
		return printed(rows, err)
	}},
	{"QueryRow", func(ctx context.Context, db *sql.DB, query string, args ...any) (v string, err error) {
		var n sql.NullString
		err = db.QueryRowContext(ctx, "SELECT ("+query+")::pg_catalog.text", args...).Scan(&n)
		return n.String, err
	}},
	{"Stmt", nil}, // see reader
	{"NotShared", func(ctx context.Context, db *sql.DB, query string, args ...any) (string, error) {
		rows, err := db.QueryContext(flightpg.WithMode(ctx, flightpg.ModeOff), query, args...)
		return printed(rows, err)
	}},
}

// reader returns what reads in that way, with what it keeps between its calls.
func reader(way int, query string) func(ctx context.Context, db *sql.DB, args ...any) (string, error) {
	if read := ways[way].read; read != nil {
		return func(ctx context.Context, db *sql.DB, args ...any) (string, error) {
			return read(ctx, db, query, args...)
		}
	}
	statements := make(map[*sql.DB]*sql.Stmt)
	return func(ctx context.Context, db *sql.DB, args ...any) (string, error) {
		st := statements[db]
		if st == nil {
			var err error
			if st, err = db.PrepareContext(ctx, query); err != nil {
				return "", err
			}
			statements[db] = st
		}
		rows, err := st.QueryContext(ctx, args...)
		return printed(rows, err)
	}
}

func printed(rows *sql.Rows, err error) (string, error) {
	if err != nil {
		return "", err
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return "", err
	}
	text := fmt.Sprint(names)
	for rows.Next() {
		cells := make([]any, len(names))
		for i := range cells {
			cells[i] = new(any)
		}
		if err := rows.Scan(cells...); err != nil {
			return "", err
		}
		for i := range cells {
			text += fmt.Sprintf(" %T(%v)", *cells[i].(*any), *cells[i].(*any))
		}
	}
	return text, rows.Err()
}

// answerOf is what two ways of reading must have in common.
func answerOf(text string, err error) string {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return text
	case errors.As(err, &pgErr):
		return "error " + pgErr.Code
	}
	return "error: " + err.Error()
}

// change is what another process does, and the arguments of the reads from then on.
type change struct {
	ddl  string
	args []any
}

var day = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

// outdated are texts whose description changes.
var outdated = []struct {
	name, query, row string // row: for one row and column, where that is another text
	changes          []change
}{
	{"ColumnType", "SELECT v FROM changing WHERE v = $1", "", []change{
		{"DROP TABLE IF EXISTS changing; CREATE TABLE changing AS SELECT 7 AS v", []any{7}},
		{"ALTER TABLE changing ALTER v TYPE text USING 'seven'", []any{"seven"}},
		{"ALTER TABLE changing ALTER v TYPE timestamptz USING '2024-02-29 12:00Z'", []any{day}},
		{"ALTER TABLE changing ALTER v TYPE int USING 7", []any{7}},
		{"ALTER TABLE changing ALTER v TYPE numeric", []any{7}},
		{"ALTER TABLE changing ALTER v TYPE jsonb USING '[7]'", []any{"[7]"}},
		{"ALTER TABLE changing ALTER v TYPE bool USING true", []any{true}},
		{"ALTER TABLE changing ALTER v TYPE text", []any{"true"}},
	}},
	{"ResultType", "SELECT v FROM results", "", []change{
		{"DROP TABLE IF EXISTS results; CREATE TABLE results AS SELECT 7 AS v", nil},
		{"ALTER TABLE results ALTER v TYPE numeric", nil},
		{"ALTER TABLE results ALTER v TYPE timestamptz USING '2024-02-29 12:00Z'", nil},
		{"ALTER TABLE results ALTER v TYPE jsonb USING '{\"a\": 1}'", nil},
		{"ALTER TABLE results ALTER v TYPE bytea USING '\\x00ff'", nil},
		{"ALTER TABLE results ALTER v TYPE inet USING '127.0.0.1'", nil},
		{"ALTER TABLE results ALTER v TYPE int USING 7", nil},
	}},
	{"Columns", "SELECT * FROM columns", "SELECT count(*) FROM columns", []change{
		{"DROP TABLE IF EXISTS columns; CREATE TABLE columns AS SELECT 1 AS a, 'two' AS b", nil},
		{"ALTER TABLE columns ADD c timestamptz DEFAULT '2024-02-29 12:00Z'", nil},
		{"ALTER TABLE columns DROP a", nil},
		{"ALTER TABLE columns DROP b, ADD d int DEFAULT 4", nil},
		{"ALTER TABLE columns RENAME d TO e", nil},
	}},
	{"Enum", "SELECT m FROM moods WHERE m = $1", "", []change{
		{"DROP TABLE IF EXISTS moods; DROP TYPE IF EXISTS mood; CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE moods AS SELECT 'ok'::mood AS m", []any{"ok"}},
		{"DROP TABLE moods; DROP TYPE mood; CREATE TYPE mood AS ENUM ('ok', 'happy'); CREATE TABLE moods AS SELECT 'happy'::mood AS m", []any{"happy"}},
		{"ALTER TYPE mood ADD VALUE 'glad'", []any{"glad"}},
		{"DROP TABLE moods; DROP TYPE mood; CREATE DOMAIN mood AS int; CREATE TABLE moods AS SELECT 3::mood AS m", []any{3}},
		{"DROP TABLE moods; DROP DOMAIN mood; CREATE TYPE mood AS ENUM ('ok'); CREATE TABLE moods AS SELECT 'ok'::mood AS m", []any{"ok"}},
		{"DROP TABLE moods", []any{"ok"}},
		{"CREATE TABLE moods AS SELECT 'ok'::mood AS m", []any{"ok"}},
	}},
	{"Attribute", "SELECT p FROM places WHERE p = $1", "", []change{
		{"DROP TABLE IF EXISTS places; DROP TYPE IF EXISTS place; CREATE TYPE place AS (x int); CREATE TABLE places AS SELECT row(1)::place AS p", []any{"(1)"}},
		{"DROP TABLE places; ALTER TYPE place ADD ATTRIBUTE y text; CREATE TABLE places AS SELECT row(1, 'a')::place AS p", []any{"(1,a)"}},
		{"DROP TABLE places; DROP TYPE place; CREATE TYPE place AS (z text); CREATE TABLE places AS SELECT row('b')::place AS p", []any{"(b)"}},
	}},
	{"Function", "SELECT doubled($1)", "", []change{
		{"DROP FUNCTION IF EXISTS doubled; CREATE FUNCTION doubled(int) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 2 * $1'", []any{2}},
		{"DROP FUNCTION doubled; CREATE FUNCTION doubled(text) RETURNS text IMMUTABLE LANGUAGE sql AS 'SELECT $1 || $1'", []any{"ab"}},
		{"DROP FUNCTION doubled; CREATE FUNCTION doubled(timestamptz) RETURNS timestamptz IMMUTABLE LANGUAGE sql AS 'SELECT $1'", []any{day}},
		{"DROP FUNCTION doubled", []any{day}},
		{"CREATE FUNCTION doubled(bool) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1'", []any{true}},
	}},
}

// TestOutdated: whatever another process does to what a text names, a caller gets what
// a new connection of pgx gives, rows or errors, though the connection that serves him
// knew something else.
func TestOutdated(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		admin, err := sql.Open("pgx", dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		for _, guard := range []flightpg.Guard{flightpg.GuardSession, flightpg.GuardTransaction} {
			for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
				if testing.Short() && mode != "cache_statement" && (mode != "cache_describe" || guard != flightpg.GuardSession) {
					continue
				}
				dsn := withParam(t, dsn, "default_query_exec_mode", mode)
				db, err := flightpg.OpenDB(dsn, flightpg.Config{
					Executor: flightpg.ExecutorGeneric, Guard: guard, FlightConns: 1, SessionConns: 1,
				})
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range outdated {
					for way := range ways {
						if ways[way].name == "NotShared" && mode == "cache_describe" && o.name == "ResultType" {
							continue // pgx asks for formats meant for other columns, and so does a session
						}
						name := fmt.Sprintf("guard=%v/%s/%s/%s", guard, mode, o.name, ways[way].name)
						query := o.query
						if way == 1 && o.row != "" {
							query = o.row
						}
						read := reader(way, query)
						for i, change := range o.changes {
							if _, err := admin.ExecContext(t.Context(), change.ddl); err != nil {
								t.Fatal(err)
							}
							if o.name == "Function" { // whether it reads is for the catalog to say
								if err := flightpg.RefreshCatalog(t.Context(), db); err != nil {
									t.Fatal(err)
								}
							}
							fresh, err := sql.Open("pgx", dsn)
							if err != nil {
								t.Fatal(err)
							}
							want := answerOf(reader(way, query)(t.Context(), fresh, change.args...))
							fresh.Close()
							for range 2 { // the second finds what the first has left
								if got := answerOf(read(t.Context(), db, change.args...)); got != want {
									t.Errorf("%s, change %d: %s; a new connection has %s", name, i, got, want)
								}
							}
						}
					}
				}
				db.Close()
			}
		}
	})
}

// TestOutdated_Storm is the same while the changes go on. An error is a caller's only
// if a new connection of pgx, with the same arguments, has that one too about then.
func TestOutdated_Storm(t *testing.T) {
	const about = time.Second
	length := 10 * time.Second
	if testing.Short() {
		length = 1500 * time.Millisecond
	}
	arguments := []any{7, "seven", day}
	storm := []string{
		"ALTER TABLE stormy ALTER v TYPE text USING 'seven'",
		"ALTER TABLE stormy ADD w int",
		"ALTER TABLE stormy ALTER v TYPE timestamptz USING '2024-02-29 12:00Z'",
		"ALTER TABLE stormy DROP w",
		"ALTER TABLE stormy ALTER v TYPE int USING 7",
	}
	forEachServer(t, func(t *testing.T, dsn string) {
		admin, err := sql.Open("pgx", dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer admin.Close()
		for _, tc := range []struct {
			mode  string
			guard flightpg.Guard
		}{
			{"cache_statement", flightpg.GuardSession},
			{"cache_describe", flightpg.GuardSession},
			{"cache_statement", flightpg.GuardTransaction},
		} {
			t.Run(fmt.Sprintf("%s/guard=%v", tc.mode, tc.guard), func(t *testing.T) {
				if _, err := admin.ExecContext(t.Context(), "DROP TABLE IF EXISTS stormy; CREATE TABLE stormy AS SELECT 7 AS v"); err != nil {
					t.Fatal(err)
				}
				dsn := withParam(t, dsn, "default_query_exec_mode", tc.mode)
				db, err := flightpg.OpenDB(dsn, flightpg.Config{Executor: flightpg.ExecutorGeneric, Guard: tc.guard})
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				const query = "SELECT * FROM stormy WHERE v = $1"

				fresh := func(arg int) string {
					db, err := sql.Open("pgx", dsn)
					if err != nil {
						t.Error(err)
						return ""
					}
					defer db.Close()
					return answerOf(ways[0].read(context.Background(), db, query, arguments[arg]))
				}
				// What a new connection says of each argument, whatever the table is at
				// the time: on a busy machine there are few of them during the storm.
				calm := make([][]string, len(arguments))
				for _, change := range storm {
					if _, err := admin.ExecContext(t.Context(), change); err != nil {
						t.Fatal(err)
					}
					for arg := range arguments {
						calm[arg] = append(calm[arg], fresh(arg))
					}
				}

				type failure struct {
					arg  int
					what string
					at   time.Time
				}
				var mu sync.Mutex // guards what follows
				var theirs, ours []failure
				reads, good := 0, 0
				ctx, cancel := context.WithTimeout(context.Background(), length)
				defer cancel()
				var all sync.WaitGroup
				all.Go(func() {
					for i := 0; ctx.Err() == nil; i++ {
						_, _ = admin.ExecContext(context.Background(), storm[i%len(storm)])
						// Some reads of each, however long they take: a change between any two
						// steps of a read would be met by new connections, too.
						mu.Lock()
						next := reads + 12
						mu.Unlock()
						for more := true; more && ctx.Err() == nil; {
							time.Sleep(time.Millisecond) // nothing tells: polling
							mu.Lock()
							more = reads < next
							mu.Unlock()
						}
					}
				})
				// Until a while after the last read, for what is about then.
				for arg := range arguments {
					all.Go(func() {
						for end := time.Now().Add(length + about/4); time.Now().Before(end); {
							if what := fresh(arg); strings.HasPrefix(what, "error") {
								mu.Lock()
								theirs = append(theirs, failure{arg, what, time.Now()})
								mu.Unlock()
							}
						}
					})
				}
				for i := range 6 {
					all.Go(func() {
						arg := i % len(arguments)
						read := reader(i%2*2, query) // Query, Stmt
						for ctx.Err() == nil {
							what := answerOf(read(context.Background(), db, arguments[arg]))
							mu.Lock()
							reads++
							if strings.HasPrefix(what, "error") {
								ours = append(ours, failure{arg, what, time.Now()})
							} else {
								good++
							}
							mu.Unlock()
							time.Sleep(time.Millisecond) // a steady load
						}
					})
				}
				all.Wait()
				unlike := make(map[string]int)
				for _, f := range ours {
					if !slices.Contains(calm[f.arg], f.what) && !slices.ContainsFunc(theirs, func(p failure) bool {
						return p.arg == f.arg && p.what == f.what && p.at.Sub(f.at).Abs() < about
					}) {
						unlike[fmt.Sprintf("%v: %s", arguments[f.arg], f.what)]++
					}
				}
				t.Logf("%d reads, %d of them with rows, %d run again; pgx had %d errors", reads, good, flightpg.ReadStats(db).Retries, len(theirs))
				if len(unlike) > 0 || good == 0 {
					t.Errorf("errors that no new connection of pgx had about then: %v", unlike)
				}
				// Nothing that was true during the storm is believed after it.
				for arg := range arguments {
					for range 3 {
						if want, got := fresh(arg), answerOf(ways[0].read(context.Background(), db, query, arguments[arg])); got != want {
							t.Errorf("after the storm %v: %s; want %s as on a new connection", arguments[arg], got, want)
						}
					}
				}
			})
		}
	})
}
