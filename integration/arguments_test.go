package integration

import (
	"database/sql"
	"fmt"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/lib/pq"
	"github.com/shopspring/decimal"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestArguments_OfLibraries passes values of the types that applications have from
// libraries. The rows are those of pgx, two equal values share a flight, and another
// value does not join it. (TestArguments, beside the driver, has the rest.)
func TestArguments_OfLibraries(t *testing.T) {
	dsn := pgtest.Database(t)
	id := func(n byte) uuid.UUID { return uuid.UUID{0: 0xa0, 15: n} }
	number := func(s string) decimal.Decimal { return decimal.RequireFromString(s) }
	type record struct {
		ID    string   `json:"id"`
		Names []string `json:"names"`
	}
	for _, mode := range execModes {
		native := stdlib.OpenDB(*config(t, with(dsn, mode)))
		defer native.Close()
		dbs := map[string]*sql.DB{}
		for _, executor := range []string{"generic", "pipeline"} {
			if executor == "pipeline" && !strings.Contains(mode, "cache_statement") {
				continue
			}
			db, err := flightpg.OpenDB(with(dsn, mode+"&flight_window=1h&flight_mode=join&flight_executor="+executor), flightpg.Config{})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			dbs[executor] = db
		}
		for i, tc := range []struct {
			cast       string
			make       func() any
			other      any
			unshared   bool // structs and lists that have no key
			everywhere bool // in modes without the parameters' types, too
		}{
			{"uuid", func() any { return id(1) }, id(2), false, true},
			{"uuid", func() any { return new(id(1)) }, new(id(2)), false, true},
			{"uuid", func() any { return uuid.NullUUID{UUID: id(1), Valid: true} }, uuid.NullUUID{}, false, true},
			{"text", func() any { return id(1) }, id(2), false, true},
			{"uuid[]", func() any { return []uuid.UUID{id(1), id(2)} }, []uuid.UUID{id(2), id(1)}, false, false},
			{"uuid[]", func() any { return [][]uuid.UUID{{id(1)}, {id(2)}} }, [][]uuid.UUID{{id(1), id(2)}}, false, false},
			{"uuid[]", func() any { return pq.Array([]uuid.UUID{id(1), id(2)}) }, pq.Array([]uuid.UUID{id(2)}), false, true},
			{"numeric", func() any { return number("1.50") }, number("1.6"), false, true},
			{"numeric", func() any { return new(number("1.50")) }, decimal.Zero, false, true},
			{"numeric", func() any { return decimal.NewNullDecimal(number("7")) }, decimal.NullDecimal{}, false, true},
			{"text", func() any { return number("1.50") }, number("1.6"), false, true},
			{"numeric[]", func() any { return []decimal.Decimal{number("1"), number("2")} }, []decimal.Decimal{number("1")}, false, false},
			{"text[]", func() any { return pq.StringArray{"a", "b,c"} }, pq.StringArray{"a", "b", "c"}, false, true},
			{"int8[]", func() any { return pq.Array([]int64{1, 2}) }, pq.Int64Array{1}, false, true},
			{"bytea[]", func() any { return pq.ByteaArray{[]byte("a"), nil} }, pq.ByteaArray{nil}, false, true},
			{"text[]", func() any { return pq.GenericArray{A: [][]string{{"a"}, {"b"}}} }, pq.GenericArray{A: []string{"a"}}, false, true},
			{"timestamptz", func() any { return pq.NullTime{} }, pq.NullTime{Valid: true}, false, true},
			{"jsonb", func() any { return record{"a", []string{"b"}} }, record{"a", []string{"c"}}, false, false},
			{"jsonb", func() any { return []uuid.UUID{id(1)} }, []uuid.UUID{id(2)}, true, false},
			{"jsonb", func() any { return struct{ ID uuid.UUID }{id(1)} }, struct{ ID uuid.UUID }{id(2)}, true, false},
		} {
			query := fmt.Sprintf("SELECT $1::%s::text AS c%d", tc.cast, i)
			read := func(db *sql.DB, arg any) string {
				var got sql.NullString
				err := db.QueryRowContext(t.Context(), query, arg).Scan(&got)
				return fmt.Sprint(got, err)
			}
			want, wantOther := read(native, tc.make()), read(native, tc.other)
			unshared := tc.unshared || !tc.everywhere && (strings.Contains(mode, "=exec") || strings.Contains(mode, "simple"))
			for name, db := range dbs {
				before := flightpg.ReadStats(db)
				one, two, other := read(db, tc.make()), read(db, tc.make()), read(db, tc.other)
				after := flightpg.ReadStats(db)
				if one != want || two != want || other != wantOther {
					t.Errorf("%s, %s, %s of %T: %s, %s and %s; by pgx %s and %s", mode, name, tc.cast, tc.other, one, two, other, want, wantOther)
				}
				joins := after.Joins - before.Joins
				if !strings.Contains(want, "<nil>") { // an error; nothing is kept of that
					continue
				}
				if unshared != (joins == 0) || joins > 1 {
					t.Errorf("%s, %s, %s of %T: %d joins of 3 reads, 2 of them the same", mode, name, tc.cast, tc.other, joins)
				}
			}
		}
	}
}
