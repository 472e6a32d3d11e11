package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver to compare with

	"github.com/flightpg/flightpg"
)

// querier is what DB, Conn and Tx have in common.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// paths are the ways to run a query with database/sql. Each must behave as
// pgx's driver does on it.
var paths = []struct {
	name string
	run  func(ctx context.Context, db *sql.DB, query string, args []any) string
}{
	{"DB", func(ctx context.Context, db *sql.DB, query string, args []any) string {
		return transcript(db.QueryContext(ctx, query, args...))
	}},
	{"Stmt", func(ctx context.Context, db *sql.DB, query string, args []any) string {
		return viaStmt(ctx, db, query, args)
	}},
	{"Conn", func(ctx context.Context, db *sql.DB, query string, args []any) string {
		c, err := db.Conn(ctx)
		if err != nil {
			return describe(err)
		}
		defer c.Close()
		return transcript(c.QueryContext(ctx, query, args...)) + viaStmt(ctx, c, query, args)
	}},
	{"Tx", func(ctx context.Context, db *sql.DB, query string, args []any) string {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return describe(err)
		}
		defer tx.Rollback()
		return transcript(tx.QueryContext(ctx, query, args...))
	}},
	{"TxStmt", func(ctx context.Context, db *sql.DB, query string, args []any) string {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return describe(err)
		}
		defer tx.Rollback()
		return viaStmt(ctx, tx, query, args)
	}},
	{"Exec", func(ctx context.Context, db *sql.DB, query string, args []any) string {
		res, err := db.ExecContext(ctx, query, args...)
		if err != nil {
			return describe(err)
		}
		n, err := res.RowsAffected()
		_, errID := res.LastInsertId()
		return fmt.Sprintln("affected", n, err, errID)
	}},
}

func viaStmt(ctx context.Context, q querier, query string, args []any) string {
	st, err := q.PrepareContext(ctx, query)
	if err != nil {
		return "prepare: " + describe(err)
	}
	defer st.Close()
	return transcript(st.QueryContext(ctx, args...))
}

// transcript writes down all that a caller can see of a query.
func transcript(rows *sql.Rows, err error) string {
	if err != nil {
		return describe(err)
	}
	defer rows.Close()
	var b strings.Builder
	types, err := rows.ColumnTypes()
	if err != nil {
		return describe(err)
	}
	for _, ct := range types {
		length, hasLength := ct.Length()
		nullable, hasNullable := ct.Nullable()
		precision, scale, hasPrecision := ct.DecimalSize()
		fmt.Fprintln(&b, "column", ct.Name(), ct.DatabaseTypeName(), ct.ScanType(), length, hasLength,
			nullable, hasNullable, precision, scale, hasPrecision)
	}
	for rows.Next() {
		plain := make([]any, len(types))
		raw := make([]sql.RawBytes, len(types))
		text := make([]sql.NullString, len(types))
		for _, dest := range []func(i int) any{
			func(i int) any { return &plain[i] },
			func(i int) any { return &text[i] },
			func(i int) any { return &raw[i] }, // last: it holds the row until Next
		} {
			to := make([]any, len(types))
			for i := range to {
				to[i] = dest(i)
			}
			fmt.Fprintln(&b, "scan", describe(rows.Scan(to...)))
		}
		for i := range types {
			fmt.Fprintf(&b, "%T %#v raw %#v text %#v\n", plain[i], plain[i], raw[i], text[i])
		}
	}
	fmt.Fprintln(&b, "end", describe(rows.Err()), describe(rows.Close()), rows.NextResultSet())
	return b.String()
}

// describe writes down an error: its text, its type and what PostgreSQL said.
func describe(err error) string {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return "no error"
	case errors.As(err, &pgErr):
		e := *pgErr
		e.Line = 0 // of the server's source
		return fmt.Sprintf("%T %v %+v\n", err, err, e)
	default:
		return fmt.Sprintf("%T %v\n", err, err)
	}
}

type label string

var (
	five = 5
	text = "text"
)

// cases are the queries that every path runs.
var cases = []struct {
	name  string
	query string
	args  []any
}{
	{"Types", `SELECT true, 1::int2, 2::int4, 3::int8, 1.5::float4, 2.5::float8, 1.23::numeric(10,2), 'x'::text, 'y'::varchar(9),
		'z'::char(3), 'n'::name, '\xdead'::bytea, '{"a": 1}'::json, '{"a": 1}'::jsonb, '<a/>'::xml, '2026-01-02'::date,
		'2026-01-02 03:04:05.678'::timestamp, '2026-01-02 03:04:05.678+02'::timestamptz, '03:04:05'::time, '1 day'::interval,
		'{1,2}'::int4[], '{a,b}'::text[], '10.0.0.1'::inet, '10.0.0.0/8'::cidr, 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11'::uuid,
		'(1,2)'::point, int4range(1,5), B'101', 5::oid, 'infinity'::timestamptz, '-infinity'::date, 'NaN'::numeric, 'NaN'::float8,
		'infinity'::float8, ROW(1,'a'), '{}'::int4[], ''::text, '\x'::bytea`, nil},
	{"Nulls", `SELECT NULL::int, NULL::text, NULL::bytea, NULL::jsonb, NULL::timestamptz, NULL`, nil},
	{"NoRows", `SELECT id, name FROM items WHERE false`, nil},
	{"NoColumns", `SELECT FROM items`, nil},
	{"ManyRows", `SELECT id, name, data, note FROM items ORDER BY id`, nil},
	{"DuplicateNames", `SELECT 1 AS a, 2 AS a, 3`, nil},
	{"Values", `VALUES (1,'a'),(2,NULL)`, nil},
	{"Table", `TABLE empty`, nil},
	{"With", `WITH x AS (SELECT id FROM items WHERE id < 3) SELECT count(*) FROM x`, nil},
	{"ArgInt", `SELECT name FROM items WHERE id = $1`, []any{3}},
	{"ArgInt64", `SELECT $1::int8`, []any{int64(1) << 40}},
	{"ArgString", `SELECT $1::text || $2`, []any{"a'b", "ü\\"}},
	{"ArgIntAsText", `SELECT $1::text`, []any{1}},
	{"ArgStringAsInt", `SELECT $1::int`, []any{"12"}},
	{"ArgBytes", `SELECT $1::bytea, length($1)`, []any{[]byte{0, 1, 255}}},
	{"ArgNilBytes", `SELECT $1::bytea IS NULL, $2::bytea IS NULL`, []any{[]byte(nil), []byte{}}},
	{"ArgNil", `SELECT $1::int`, []any{nil}},
	{"ArgTime", `SELECT $1::timestamptz, $2::timestamp`, []any{
		time.Date(2026, 1, 2, 3, 4, 5, 6000, time.UTC), time.Date(2026, 1, 2, 3, 4, 5, 6000, time.FixedZone("x", 7200)),
	}},
	{"ArgFloat", `SELECT $1::float8, $2::float4`, []any{1.1, float32(2.2)}},
	{"ArgBool", `SELECT $1::bool`, []any{true}},
	{"ArgSlice", `SELECT id FROM items WHERE id = ANY($1) ORDER BY id`, []any{[]int64{1, 3, 5}}},
	{"ArgStrings", `SELECT $1::text[]`, []any{[]string{"a", "b,c", `"`}}},
	{"ArgNamedType", `SELECT $1::text`, []any{label("x")}},
	{"ArgNullString", `SELECT $1::text, $2::text`, []any{sql.NullString{String: "x", Valid: true}, sql.NullString{}}},
	{"ArgPointer", `SELECT $1::int`, []any{new(int)}},
	{"ArgUUID", `SELECT $1::uuid`, []any{pgtype.UUID{Bytes: [16]byte{1, 2, 3}, Valid: true}}},
	{"ArgMap", `SELECT $1::jsonb`, []any{map[string]any{"a": 1}}},
	{"ArgPointers", `SELECT $1::int, $2::text, $3::int[]`, []any{&five, &text, &[]int{1, 2}}},
	{"ArgNilPointers", `SELECT $1::int, $2::timestamptz`, []any{(*int)(nil), (*time.Time)(nil)}},
	{"ArgNamedArgs", `SELECT @n::int, @m::text, @n::int8`, []any{pgx.NamedArgs{"n": 4, "m": "x", "unused": 1}}},
	{"ArgNamedArgsMissing", `SELECT @n::int`, []any{pgx.NamedArgs{}}},
	{"ArgStrictNamedArgs", `SELECT name FROM items WHERE id = @id AND name <> '@id' -- @id`, []any{pgx.StrictNamedArgs{"id": 4}}},
	{"ArgStrictMissing", `SELECT @n::int, @m::int`, []any{pgx.StrictNamedArgs{"n": 4}}},
	{"ArgStrictUnused", `SELECT @n::int`, []any{pgx.StrictNamedArgs{"n": 4, "m": 5}}},
	{"ArgNamedArgsWrong", `SELECT @n::int / 0, @n::text`, []any{pgx.NamedArgs{"n": 4}}},
	{"ArgNamedInsert", `INSERT INTO log(what) VALUES (@what)`, []any{pgx.NamedArgs{"what": "x"}}},
	{"ArgStruct", `SELECT @id::int`, []any{pgx.StructArgs(struct {
		ID int `db:"id"`
	}{4})}},
	{"ArgExecMode", `SELECT $1::int`, []any{pgx.QueryExecModeSimpleProtocol, 5}},
	{"ArgExecModeExec", `SELECT $1::text`, []any{pgx.QueryExecModeExec, "5"}},
	{"ArgExecModeCacheDescribe", `SELECT $1::int, 'x'::text`, []any{pgx.QueryExecModeCacheDescribe, 5}},
	{"ArgExecModeNamed", `SELECT @a::int`, []any{pgx.QueryExecModeDescribeExec, pgx.NamedArgs{"a": 5}}},
	{"ArgExecModeUnknown", `SELECT 1`, []any{pgx.QueryExecMode(99)}},
	{"ArgFormats", `SELECT 1::int4`, []any{pgx.QueryResultFormats{0}}},
	{"ArgFormatsSome", `SELECT 1::int4, '2026-01-02'::date, 1.5::numeric`, []any{pgx.QueryResultFormats{1, 0, 1}}},
	{"ArgFormatsWrong", `SELECT 1::int4, 2`, []any{pgx.QueryResultFormats{0, 0, 0}}},
	{"ArgFormatsByOID", `SELECT 1::int4, 1.5::numeric, '{1,2}'::int4[]`, []any{pgx.QueryResultFormatsByOID{pgtype.Int4OID: 0, pgtype.NumericOID: 1, pgtype.Int4ArrayOID: 1}}},
	{"ArgOptionLast", `SELECT $1::int`, []any{5, pgx.QueryExecModeExec}},
	{"TooFewArgs", `SELECT $1::int, $2::int`, []any{1}},
	{"TooManyArgs", `SELECT $1::int`, []any{1, 2}},
	{"WrongArg", `SELECT $1::int`, []any{struct{}{}}},
	{"SyntaxError", `SELEC 1`, nil},
	{"SyntaxErrorInRead", `SELECT 1 FROM WHERE`, nil},
	{"NoTable", `SELECT * FROM nothing_there`, nil},
	{"NoColumn", `SELECT nme FROM items`, nil},
	{"DivisionByZero", `SELECT 1/0`, nil},
	{"ErrorAfterRows", `SELECT 10/(5-g) FROM generate_series(1,8) g`, nil},
	{"CastError", `SELECT 'x'::int`, nil},
	// Not the empty text: pgx prepares it twice under one name on a connection.
	{"Comment", `-- nothing`, nil},
	{"Clock", `SELECT now() IS NOT NULL, current_date IS NOT NULL`, nil},
	{"Volatile", `SELECT random() < 2`, nil},
	{"UserFunction", `SELECT twice(4)`, nil},
	{"ForUpdate", `SELECT id FROM items WHERE id = 1 FOR UPDATE`, nil},
	{"Returning", `UPDATE items SET note = note WHERE id = 3 RETURNING id`, nil},
	{"Insert", `INSERT INTO log(what) VALUES ($1)`, []any{"x"}},
	{"InsertError", `INSERT INTO items(id) VALUES (1)`, nil},
	{"Update", `UPDATE items SET name = name WHERE id = 5`, nil}, // one row: several could dead-lock
	{"ModifyingCTE", `WITH d AS (DELETE FROM empty RETURNING id) SELECT count(*) FROM d`, nil},
	{"Set", `SET application_name = 'x'`, nil},
	{"Show", `SHOW standard_conforming_strings`, nil},
	{"Do", `DO $$ BEGIN END $$`, nil},
	{"Explain", `EXPLAIN (COSTS off) SELECT 1`, nil},
	{"SeveralStatements", `SELECT 1; SELECT 2`, nil},
	{"Raise", `DO $$ BEGIN RAISE EXCEPTION 'boom' USING ERRCODE = 'P0007', HINT = 'h', DETAIL = 'd' ; END $$`, nil},
}

const schema = `
CREATE TABLE items (id int PRIMARY KEY, name text NOT NULL, data jsonb, note bytea);
INSERT INTO items SELECT g, 'item ' || g, jsonb_build_object('g', g), decode(lpad(to_hex(g), 4, '0'), 'hex') FROM generate_series(1, 200) g;
CREATE TABLE empty (id int);
CREATE TABLE log (what text);
CREATE TABLE counters (id int PRIMARY KEY, n bigint NOT NULL);
CREATE FUNCTION twice(int) RETURNS int LANGUAGE sql VOLATILE AS 'SELECT $1 * 2';
`

// open opens a handle with a driver and closes it when the test ends.
func open(t *testing.T, driver, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open(driver, dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Errorf("%s: Close = %v", driver, err)
		}
	})
	return db
}

func setUp(t *testing.T, dsn string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), schema); err != nil {
		t.Fatal(err)
	}
}

func with(dsn, params string) string {
	if params == "" {
		return dsn
	}
	if strings.Contains(dsn, "?") {
		return dsn + "&" + params
	}
	return dsn + "?" + params
}

// TestCompare runs every case on every path through pgx's driver and through
// flightpg, alone and by several callers at once, in every mode and with every
// way that pgx executes queries. What callers see must be the same.
func TestCompare(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		all := []string{
			"", "flight_guard=transaction", "flight_mode=join", "flight_mode=strict", "flight_mode=off", "flight_window=1s",
			"default_query_exec_mode=simple_protocol", "default_query_exec_mode=exec", "default_query_exec_mode=describe_exec",
			"flight_guard=transaction&flight_max_result=100", "flight_max_result=100", "flight_guard=off",
			"flight_guard=transaction&default_query_exec_mode=exec", "flight_guard=transaction&default_query_exec_mode=simple_protocol",
			"default_query_exec_mode=cache_describe",
		}
		if !strings.Contains(t.Name(), "/pgtest") {
			all = all[:2] // a server is a server
		}
		for i, params := range all {
			t.Run("params="+params, func(t *testing.T) {
				if testing.Short() && i%3 != 0 {
					t.Skip("NOT RUN with -short: every third is")
				}
				var native []string // what is pgx's too
				for _, p := range strings.Split(params, "&") {
					if !strings.HasPrefix(p, "flight_") {
						native = append(native, p)
					}
				}
				plain, ours := open(t, "pgx", with(dsn, strings.Join(native, "&"))), open(t, "flightpg", with(dsn, params))
				for _, tc := range cases {
					for _, path := range paths {
						want := path.run(t.Context(), plain, tc.query, tc.args)
						var wg sync.WaitGroup
						for range 4 {
							wg.Go(func() {
								if got := path.run(t.Context(), ours, tc.query, tc.args); got != want {
									t.Errorf("%s on %s:\nflightpg: %s\npgx:      %s", tc.name, path.name, got, want)
								}
							})
						}
						wg.Wait()
					}
				}
				s := flightpg.ReadStats(ours)
				if off := params == "flight_mode=off"; (s.Flights == 0) != off {
					t.Errorf("Stats = %+v: the comparison shared nothing", s)
				}
				if s.Flying != 0 || s.Waiting != 0 {
					t.Errorf("Stats = %+v; want nothing left", s)
				}
			})
		}
	})
}
