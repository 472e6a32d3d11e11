//go:build go1.27

package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/flightpg/flightpg"
)

func init() { behaviours = append(behaviours, scanBehaviours...) }

// scanBehaviours are about Scan since Go 1.27, which lets the driver scan: what
// database/sql has no conversion for goes through pgx's types.
var scanBehaviours = []behaviour{
	{name: "DirectSlice", pins: "TestGoArray", each: func(t *testing.T, db *sql.DB) {
		roundTrip(t, db, "text[]", "array['Ada', 'Grace', 'Mary']", []string{"Ada", "Grace", "Mary"})
	}},

	// A slice of what is no type of pgx's: as an argument it needs the type of
	// the parameter, which is not known in every mode.
	{
		name: "DirectSliceOfValuers", pins: "TestGoArrayOfDriverValuer",
		modes: []pgx.QueryExecMode{pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec},
		each: func(t *testing.T, db *sql.DB) {
			roundTrip(t, db, "text[]", "array['Ada', null]", []sql.NullString{{String: "Ada", Valid: true}, {}})
		},
	},

	{name: "DirectFlatArray", pins: "TestPGTypeFlatArray", each: func(t *testing.T, db *sql.DB) {
		roundTrip(t, db, "text[]", "array['a,b', '\"']", pgtype.FlatArray[string]{"a,b", `"`})
	}},

	{name: "DirectMatrix", pins: "TestPGTypeArray", each: func(t *testing.T, db *sql.DB) {
		roundTrip(t, db, "bigint[]", "'{{1,2},{3,4},{5,6}}'", pgtype.Array[int64]{
			Elements: []int64{1, 2, 3, 4, 5, 6},
			Dims:     []pgtype.ArrayDimension{{Length: 3, LowerBound: 1}, {Length: 2, LowerBound: 1}},
			Valid:    true,
		})
	}},

	{name: "DirectRange", pins: "TestConnQueryPGTypeRange", each: func(t *testing.T, db *sql.DB) {
		roundTrip(t, db, "int4range", "'[2,5]'", int4Range(2, 6))
	}},

	{name: "DirectMultirange", pins: "TestConnQueryPGTypeMultirange", each: func(t *testing.T, db *sql.DB) {
		roundTrip(t, db, "int4multirange", "'{[1,3),[10,20)}'",
			pgtype.Multirange[pgtype.Range[pgtype.Int4]]{int4Range(1, 3), int4Range(10, 20)})
	}},

	{name: "BoolAsString", pins: "TestScanBoolToString", each: func(t *testing.T, db *sql.DB) {
		equal(t, "1 < 2", one[string](t, db, "select 1 < 2"), "true") // and not the server's t
		equal(t, "1 > 2", one[string](t, db, "select 1 > 2"), "false")
	}},

	{name: "AnyIsDriverValue", pins: "TestScanInterfacePreservesDatabaseSQLValues", each: func(t *testing.T, db *sql.DB) {
		for query, want := range map[string]any{
			"select 7::int2":                          int64(7),
			"select 7::int4":                          int64(7),
			"select 7::int8":                          int64(7),
			"select 0.25::float4":                     0.25,
			"select 7.50::numeric":                    "7.50",
			"select array[3,4]::int4[]":               "{3,4}",
			"select '12345678901234567890'::jsonb":    []byte("12345678901234567890"),
			"select 'null'::jsonb":                    []byte("null"),
			"select null::int4":                       nil,
			"select '2026-02-03'::date":               time.Date(2026, 2, 3, 0, 0, 0, 0, time.UTC),
			"select int4range(1, 2), 'second column'": "[1,2)",
		} {
			t.Run(query, func(t *testing.T) {
				var more sql.NullString
				scan := func(dest any) {
					t.Helper()
					rows, err := db.Query(query)
					noError(t, err)
					defer rows.Close()
					columns, err := rows.Columns()
					noError(t, err)
					equal(t, "Next", rows.Next(), true)
					noError(t, rows.Scan([]any{dest, &more}[:len(columns)]...))
				}
				var got any
				scan(&got)
				equal(t, "any", got, want)
				var pointer *any
				scan(&pointer)
				switch {
				case want == nil:
					equal(t, "*any", pointer, nil)
				case pointer == nil:
					t.Error("*any = nil")
				default:
					equal(t, "*any", *pointer, want)
				}
			})
		}
	}},

	{name: "ScalarsAsBefore", pins: "TestScanScalarPreservesDatabaseSQLConversions", each: func(t *testing.T, db *sql.DB) {
		for query, want := range map[string]string{
			"select 3 > 2":                  "true",
			"select '2026-02-03'::date":     "2026-02-03T00:00:00Z",
			"select decode('666c79','hex')": "fly",
		} {
			t.Run(query, func(t *testing.T) {
				equal(t, "string", one[string](t, db, query), want)
				equal(t, "[]byte", one[[]byte](t, db, query), []byte(want))
				equal(t, "*string", *one[*string](t, db, query), want)
				rows, err := db.Query(query)
				noError(t, err)
				defer rows.Close()
				equal(t, "Next", rows.Next(), true)
				var b sql.RawBytes
				noError(t, rows.Scan(&b))
				equal(t, "sql.RawBytes", string(b), want)
				noError(t, rows.Close())
			})
		}
		equal(t, "a string type", one[callsign](t, db, "select decode('666c79','hex')"), "fly")
		var s string
		if err := db.QueryRow("select null::jsonb").Scan(&s); err == nil {
			t.Error("Scan of NULL into a string = nil; want an error")
		}
	}},

	{name: "ScannerErrorOnce", pins: "TestScanPreservesScannerError", each: func(t *testing.T, db *sql.DB) {
		for _, query := range []string{"select 7::int4", "select '[7]'::jsonb", "select null::text"} {
			s := pickyScanner{refuses: errors.New("not this one")}
			if err := db.QueryRow(query).Scan(&s); !errors.Is(err, s.refuses) {
				t.Errorf("%s: Scan = %v; want the scanner's error", query, err)
			}
			equal(t, "calls of Scan", s.calls, 1)
		}
	}},

	{name: "NilDestination", pins: "TestScanRejectsNilDestination", each: func(t *testing.T, db *sql.DB) {
		for _, query := range []string{"select 7::int4", "select null::int4"} {
			for _, dest := range []any{nil, (*int32)(nil), (*string)(nil), (*[]int64)(nil), (*sql.NullInt64)(nil), (*pgtype.Int4)(nil)} {
				if err := db.QueryRow(query).Scan(dest); err == nil {
					t.Errorf("%s: Scan(%T(nil)) = nil; want an error", query, dest)
				}
			}
		}
	}},

	// Slices of bytes that are not just bytes.
	{name: "BytesWithMethods", pins: "TestScanNativeByteSlices", each: func(t *testing.T, db *sql.DB) {
		equal(t, "FlatArray[byte]", one[pgtype.FlatArray[byte]](t, db, "select '{9,8,7}'::int2[]"), pgtype.FlatArray[byte]{9, 8, 7})
		room := make([]byte, 8)
		b := pgtype.PreallocBytes(room)
		scanRow(t, db, "select decode('666c79','hex')", nil, &b)
		equal(t, "PreallocBytes", string(b), "fly")
		if &b[0] != &room[0] {
			t.Error("PreallocBytes are not in the room that was given")
		}
	}},

	// What pgx's test asks a function that decides, this one asks Scan.
	{name: "Destinations", pins: "TestIsSQLScanDestination", each: func(t *testing.T, db *sql.DB) {
		text, date := "fly", time.Date(2026, 2, 3, 0, 0, 0, 0, time.UTC)
		// database/sql's conversions.
		scansTo(t, db, "select '12'::text", int64(12))
		scansTo(t, db, "select 3 > 2", "true")
		scansTo(t, db, "select 'fly'", &text)
		scansTo(t, db, "select decode('666c79','hex')", callsign("fly"))
		scansTo(t, db, "select decode('666c79','hex')", new(callsign("fly")))
		scansTo(t, db, "select array[1]", any("{1}"))
		scansTo(t, db, "select 3 > 2", []byte("true"))
		scansTo(t, db, "select '2026-02-03'::date", date)
		scansTo(t, db, "select '2026-02-03'::date", &date)
		scansTo(t, db, "select 12", sql.NullString{String: "12", Valid: true})
		scansTo(t, db, "select 12", &sql.NullString{String: "12", Valid: true})
		embeds := embedsScanner{new(sql.NullString)}
		scanRow(t, db, "select 12", nil, &embeds)
		equal(t, "embedded scanner", *embeds.NullString, sql.NullString{String: "12", Valid: true})
		// No pointers to a sql.Scanner, but its own: database/sql is asked, and declines.
		scanFails(t, db, "select 12", valuePointer(new(valueScanner)), "unsupported Scan")
		scanFails(t, db, "select 12", new(valuePointer(new(valueScanner))), "unsupported Scan")
		scanFails(t, db, "select 12", new(sql.Scanner), "unsupported Scan")

		// pgx's.
		scansTo(t, db, "select '{1,2}'::int4[]", []int32{1, 2})
		scansTo(t, db, "select '{a,b}'::text[]", []string{"a", "b"})
		scansTo(t, db, "select '{1,2}'::int2[]", pgtype.FlatArray[byte]{1, 2})
		scansTo(t, db, "select '{1,2}'::int2[]", &pgtype.FlatArray[byte]{1, 2})
		scansTo(t, db, "select '{a,b}'::text[]", pgtype.FlatArray[string]{"a", "b"})
		scansTo(t, db, "select '{a,b}'::text[]", &pgtype.FlatArray[string]{"a", "b"})
		scansTo(t, db, "select int4range(1,5)", pgtype.Range[int32]{
			Lower: 1, Upper: 5, LowerType: pgtype.Inclusive, UpperType: pgtype.Exclusive, Valid: true,
		})
		scanFails(t, db, "select '{1,2}'::int2[]", new(pgtype.ArraySetter), "cannot scan")
		scanFails(t, db, "select decode('666c79','hex')", new(pgtype.BytesScanner), "cannot scan")
		scanFails(t, db, "select 12", new(endless), "cannot scan")
	}},
}

type (
	callsign      string
	embedsScanner struct{ *sql.NullString }
	endless       *endless
	valueScanner  struct{}
	valuePointer  *valueScanner
)

func (valueScanner) Scan(any) error { return nil }

// pickyScanner refuses the first value.
type pickyScanner struct {
	calls   int
	refuses error
}

func (s *pickyScanner) Scan(any) error {
	s.calls++
	if s.calls == 1 {
		return s.refuses
	}
	return nil
}

// roundTrip scans a value, sends it back and scans NULL, which leaves nothing.
func roundTrip[T any](t *testing.T, db *sql.DB, sqlType, literal string, want T) {
	t.Helper()
	var got T
	scanRow(t, db, fmt.Sprintf("select %s::%s", literal, sqlType), nil, &got)
	equal(t, "the value", got, want)
	equal(t, "whether it comes back as it went",
		one[bool](t, db, fmt.Sprintf("select %s::%s = $1::%s", literal, sqlType, sqlType), got), true)
	scanRow(t, db, fmt.Sprintf("select null::%s", sqlType), nil, &got)
	equal(t, "NULL", got, *new(T))
}

func scansTo[T any](t *testing.T, db *sql.DB, query string, want T) {
	t.Helper()
	equal(t, query, one[T](t, db, query), want)
}

// scanFails checks that nobody can scan into dest, and by its words who tried.
func scanFails(t *testing.T, db *sql.DB, query string, dest any, words string) {
	t.Helper()
	if err := db.QueryRow(query).Scan(dest); err == nil || !strings.Contains(err.Error(), words) {
		t.Errorf("%s: Scan into %T = %v; want an error with %q", query, dest, err, words)
	}
}

// TestStdlib_DirectScan scans what only pgx can, on every path that rows can
// come from, by several callers at once.
func TestStdlib_DirectScan(t *testing.T) {
	const query = `select '{1,2}'::bigint[], '{a,NULL}'::text[], int4range(1, 5), '{"k":[1]}'::jsonb, '{7}'::int2[], 'word'`
	type found struct {
		ints  []int64
		texts []*string
		span  pgtype.Range[pgtype.Int4]
		doc   sql.RawBytes // driver memory
		bytes pgtype.FlatArray[byte]
		any   any
	}
	a := "a"
	want := found{[]int64{1, 2}, []*string{&a, nil}, int4Range(1, 5), sql.RawBytes(`{"k": [1]}`), pgtype.FlatArray[byte]{7}, "word"}

	read := func(ctx context.Context, q querier, prepare bool, query string) error {
		f := q.QueryContext
		if prepare {
			st, err := q.PrepareContext(ctx, query)
			if err != nil {
				return err
			}
			defer st.Close()
			f = func(ctx context.Context, _ string, args ...any) (*sql.Rows, error) {
				return st.QueryContext(ctx, args...)
			}
		}
		rows, err := f(ctx, query)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var got found
			var doc []byte
			for _, dest := range []any{&doc, &got.doc} { // a row can be scanned again
				if err := rows.Scan(&got.ints, &got.texts, &got.span, dest, &got.bytes, &got.any); err != nil {
					return err
				}
			}
			if !reflect.DeepEqual(got, want) || string(doc) != string(want.doc) {
				return fmt.Errorf("%+v, %q; want %+v", got, doc, want)
			}
			// It is the caller's: nobody else may see this.
			got.ints[0], *got.texts[0], got.doc[0], got.bytes[0] = 0, "X", 'X', 0
		}
		return errors.Join(rows.Err(), rows.Close())
	}
	onTx := func(ctx context.Context, db *sql.DB, f func(querier) error) error {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		return errors.Join(f(tx), tx.Rollback())
	}

	forEachServer(t, func(t *testing.T, dsn string) {
		_, err := connect(t, dsn).Exec(t.Context(), "create table scanned (n int)")
		noError(t, err)
		for _, d := range drivers {
			for _, cfg := range []struct {
				name string
				flightpg.Config
			}{
				{"Buffered", flightpg.Config{}},
				{"Overflowing", flightpg.Config{MaxResult: 1}},
				{"PartlyOverflowing", flightpg.Config{MaxResult: 4 << 10}},
				{"GuardedByTransaction", flightpg.Config{Guard: flightpg.GuardTransaction}},
			} {
				if cfg.name != "Buffered" && !d.shares {
					continue
				}
				for _, mode := range allExecModes {
					t.Run(fmt.Sprintf("%s/%s/%v", d.name, cfg.name, mode), func(t *testing.T) {
						s := subject{d, dsn}
						pc := s.config(t)
						pc.DefaultQueryExecMode = mode
						db := s.openConfig(t, pc, cfg.Config)
						for _, on := range []struct {
							name  string
							with  func(context.Context, *sql.DB, func(querier) error) error
							query string
						}{
							{"DB", onDB, query},
							{"Conn", onConn, query},
							{"Tx", onTx, query},
							{"ManyRows", onDB, query + " from generate_series(1, 40)"},
							{"Volatile", onDB, query + " where random() < 2"},
							{"Returning", onDB, "insert into scanned values (1) returning " + query[len("select "):]},
						} {
							var wg sync.WaitGroup
							for i := range 4 {
								wg.Go(func() {
									err := on.with(t.Context(), db, func(q querier) error { return read(t.Context(), q, i%2 == 1, on.query) })
									if err != nil {
										t.Errorf("%s, prepared %v: %v", on.name, i%2 == 1, err)
									}
								})
							}
							wg.Wait()
						}
						works(t, db)
					})
				}
			}
		}
	})
}
