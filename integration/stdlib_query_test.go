package integration

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"math"
	"reflect"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgtype"
)

// queryBehaviours are about queries, arguments and values.
var queryBehaviours = []behaviour{
	{name: "Query", pins: "TestConnQuery", each: func(t *testing.T, db *sql.DB) {
		readLabels(t, 3, 12)(db.Query(labelsQuery, int32(3), int32(12)))
	}},

	{name: "QueryContext", pins: "TestConnQueryContextSuccess", each: func(t *testing.T, db *sql.DB) {
		rows, err := db.QueryContext(t.Context(), "select n from generate_series(1, 7) n")
		noError(t, err)
		equal(t, "the rows", column[int64](t, rows), []int64{1, 2, 3, 4, 5, 6, 7})
	}},

	{name: "SeveralArgumentsAndNoRows", pins: "TestQueryLifeCycle", each: func(t *testing.T, db *sql.DB) {
		readLabels(t, 1, 8)(db.Query(labelsQuery+" where 3 = $3", 1, 8, 3))
		rows, err := db.Query("select 1 where 1 = 2")
		noError(t, err)
		equal(t, "the rows", column[int64](t, rows), nil)
	}},

	// A scan of each column needs a plan of its own (pgx's issue 781). The rows
	// stay open until the test ends.
	{name: "ColumnsOfTwoTypes", pins: "TestConnQueryDifferentScanPlansIssue781", each: func(t *testing.T, db *sql.DB) {
		rows, err := db.Query("select 'yes', true")
		noError(t, err)
		t.Cleanup(func() { _ = rows.Close() })
		equal(t, "Next", rows.Next(), true)
		var s string
		var b bool
		noError(t, rows.Scan(&s, &b))
		equal(t, "the text", s, "yes")
		equal(t, "the bool", b, true)
	}},

	{name: "Null", pins: "TestConnQueryNull", each: func(t *testing.T, db *sql.DB) {
		rows, err := db.Query("select $1::int", nil)
		noError(t, err)
		equal(t, "the rows", column[sql.NullInt64](t, rows), []sql.NullInt64{{}})
	}},

	{name: "Bytes", pins: "TestConnQueryRowByteSlice", each: func(t *testing.T, db *sql.DB) {
		equal(t, "the bytes", one[[]byte](t, db, `select '\x00c0ffee'::bytea`), []byte{0x00, 0xc0, 0xff, 0xee})
	}},

	{name: "SyntaxError", pins: "TestConnQueryFailure", each: func(t *testing.T, db *sql.DB) {
		_, err := db.Query("select 'no end")
		equal(t, "SQLSTATE", code(err), "42601") // syntax_error
	}},

	{name: "SliceArgument", pins: "TestConnSimpleSlicePassThrough", each: func(t *testing.T, db *sql.DB) {
		equal(t, "cardinality", one[int64](t, db, "select cardinality($1::text[])", []string{"x", "y,z", `"`, ""}), 4)
	}},

	{name: "ScanSlice", pins: "TestConnQueryScanGoArray", each: func(t *testing.T, db *sql.DB) {
		var list []int64
		scanRow(t, db, "select '{10,20,30}'::bigint[]", nil, pgtype.NewMap().SQLScanner(&list))
		equal(t, "the slice", list, []int64{10, 20, 30})
	}},

	{name: "ScanArray", pins: "TestConnQueryScanArray", each: func(t *testing.T, db *sql.DB) {
		m := pgtype.NewMap()
		var a pgtype.Array[int64]
		scanRow(t, db, "select '{7,8}'::bigint[]", nil, m.SQLScanner(&a))
		equal(t, "the array", a, pgtype.Array[int64]{
			Elements: []int64{7, 8},
			Dims:     []pgtype.ArrayDimension{{Length: 2, LowerBound: 1}},
			Valid:    true,
		})
		scanRow(t, db, "select null::bigint[]", nil, m.SQLScanner(&a))
		equal(t, "the null array", a, pgtype.Array[int64]{})
	}},

	{name: "ScanRange", pins: "TestConnQueryScanRange", each: func(t *testing.T, db *sql.DB) {
		var r pgtype.Range[pgtype.Int4]
		scanRow(t, db, "select int4range(10, 20)", nil, pgtype.NewMap().SQLScanner(&r))
		equal(t, "the range", r, int4Range(10, 20))
	}},

	// pgx has a binary form of these two, which is no driver.Value: text.
	{name: "ArrayAsText", pins: "TestConnQueryRowPgxBinary", each: func(t *testing.T, db *sql.DB) {
		equal(t, "the array", one[string](t, db, "select $1::int4[]", "{4,5,6}"), "{4,5,6}")
	}},
	{name: "PointAsText", pins: "TestConnQueryRowUnknownType", each: func(t *testing.T, db *sql.DB) {
		equal(t, "the point", one[string](t, db, "select $1::point", "(3,4)"), "(3,4)")
	}},

	{name: "JSONAsBytes", pins: "TestConnQueryJSONIntoByteSlice", each: func(t *testing.T, db *sql.DB) {
		_, err := db.Exec(`create temporary table papers (body json not null);
			insert into papers values ('{"title": "on flight"}')`)
		noError(t, err)
		equal(t, "the body", one[[]byte](t, db, "select * from papers"), []byte(`{"title": "on flight"}`))
		execOn(t, db, "drop table papers")
	}},

	// Not in simple protocol: there bytes are always a bytea literal.
	{name: "BytesAsJSON", pins: "TestConnExecInsertByteSliceIntoJSON", once: func(t *testing.T, s subject) {
		db := s.open(t)
		body := []byte(`{"title": "on landing"}`)
		execOn(t, db, "create temporary table papers (body json not null)")
		execOn(t, db, "insert into papers (body) values ($1)", body)
		equal(t, "the body", one[[]byte](t, db, "select body from papers"), body)
		execOn(t, db, "drop table papers")
	}},

	{name: "JSONAsRawMessage", pins: "TestScanJSONIntoJSONRawMessage", each: func(t *testing.T, db *sql.DB) {
		equal(t, "the message", one[json.RawMessage](t, db, `select '{"a":[]}'::json`), json.RawMessage(`{"a":[]}`))
	}},
}

// columnBehaviours are about what is known of a result's columns.
var columnBehaviours = []behaviour{
	{name: "ColumnTypes", pins: "TestRowsColumnTypes", each: func(t *testing.T, db *sql.DB) {
		equal(t, "the columns", describeColumns(t, db,
			"select 5::bigint as number, 'x'::text as word, 3.14159::numeric(7, 3) as price, '10:30'::timetz as at, now() as since"),
			[]columnFacts{
				{name: "number", database: "INT8", scan: reflect.TypeFor[int64]()},
				{name: "word", database: "TEXT", length: math.MaxInt64, hasLength: true, scan: reflect.TypeFor[string]()},
				{name: "price", database: "NUMERIC", precision: 7, scale: 3, hasPrecision: true, scan: reflect.TypeFor[float64]()},
				{name: "at", database: "1266", scan: reflect.TypeFor[string]()}, // a type that pgx does not know has its OID
				{name: "since", database: "TIMESTAMPTZ", scan: reflect.TypeFor[time.Time]()},
			})
	}},

	{name: "ColumnDatabaseType", pins: "TestRowsColumnTypeDatabaseTypeName", each: func(t *testing.T, db *sql.DB) {
		rows, err := db.Query("select 5::bigint")
		noError(t, err)
		types, err := rows.ColumnTypes()
		noError(t, err)
		equal(t, "columns", len(types), 1)
		equal(t, "the type's name", types[0].DatabaseTypeName(), "INT8")
		noError(t, rows.Close()) // without having read them
	}},

	{name: "ColumnLength", pins: "TestRowsColumnTypeLength", each: func(t *testing.T, db *sql.DB) {
		execOn(t, db, "create temporary table lengths (a text, b bytea, c varchar(40), d char(7), e varbit(12), f int)")
		var lengths []int64
		var has []bool
		for _, c := range describeColumns(t, db, "select * from lengths") {
			lengths, has = append(lengths, c.length), append(has, c.hasLength)
		}
		equal(t, "lengths", lengths, []int64{math.MaxInt64, math.MaxInt64, 40, 7, 12, 0})
		equal(t, "whether there is one", has, []bool{true, true, true, true, true, false})
	}},
}

// labelsQuery has rows with a text and a number.
const labelsQuery = "select 'row', n from generate_series($1::int, $2::int) n"

// readLabels returns a function that checks the rows of labelsQuery, which are
// from first to last.
func readLabels(t *testing.T, first, last int64) func(*sql.Rows, error) {
	return func(rows *sql.Rows, err error) {
		t.Helper()
		noError(t, err)
		want := first
		for ; rows.Next(); want++ {
			var s string
			var n int64
			noError(t, rows.Scan(&s, &n))
			equal(t, "row", fmt.Sprint(s, n), fmt.Sprint("row", want))
		}
		noError(t, rows.Err())
		equal(t, "the row after the last", want, last+1)
		noError(t, rows.Close())
	}
}

// column reads and closes rows of one column.
func column[T any](t *testing.T, rows *sql.Rows) (values []T) {
	t.Helper()
	for rows.Next() {
		var v T
		noError(t, rows.Scan(&v))
		values = append(values, v)
	}
	noError(t, rows.Err())
	noError(t, rows.Close())
	return values
}

func int4Range(lower, upper int32) pgtype.Range[pgtype.Int4] {
	return pgtype.Range[pgtype.Int4]{
		Lower:     pgtype.Int4{Int32: lower, Valid: true},
		Upper:     pgtype.Int4{Int32: upper, Valid: true},
		LowerType: pgtype.Inclusive,
		UpperType: pgtype.Exclusive,
		Valid:     true,
	}
}

// columnFacts are what a sql.ColumnType tells.
type columnFacts struct {
	name, database                             string
	length, precision, scale                   int64
	hasLength, hasPrecision, nullable, hasNull bool
	scan                                       reflect.Type
}

func describeColumns(t *testing.T, db *sql.DB, query string) (facts []columnFacts) {
	t.Helper()
	rows, err := db.Query(query)
	noError(t, err)
	defer rows.Close()
	types, err := rows.ColumnTypes()
	noError(t, err)
	for _, c := range types {
		f := columnFacts{name: c.Name(), database: c.DatabaseTypeName(), scan: c.ScanType()}
		f.length, f.hasLength = c.Length()
		f.precision, f.scale, f.hasPrecision = c.DecimalSize()
		f.nullable, f.hasNull = c.Nullable()
		facts = append(facts, f)
	}
	return facts
}
