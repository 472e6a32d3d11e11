package flightpg

import (
	"bytes"
	"context"
	"database/sql"
	"database/sql/driver"
	"fmt"
	"io"
	"runtime"
	"testing"

	"github.com/jackc/pgx/v5"
)

// TestRecycling: results use each other's memory again, and callers may keep what
// they got.
func TestRecycling(t *testing.T) {
	t.Run("Values", func(t *testing.T) {
		for _, e := range []Executor{ExecutorGeneric, ExecutorPipeline} {
			t.Run(e.String(), func(t *testing.T) {
				db, plain := openPipeline(t, Config{})
				if e == ExecutorGeneric {
					db = openGeneric(t, plain)
				}
				// Of rows with numbers and texts, numbers alone, texts alone, and
				// what pgx decodes; of few and of many.
				for _, columns := range []string{
					"i, i::float8 / 3, 'text ' || i, (i % 1000)::int2, NULL::int, (i % 7)::bigint, i::float4 / 4",
					"i, -i::bigint",
					"'a' || i, 'b' || i",
					"'\\x01'::bytea || decode(i::text, 'escape'), now() + i * interval '1 s' > now(), i::numeric / 7, '{\"a\": ' || i || '}', 'epoch'::timestamptz + i * interval '1 s'",
				} {
					query := "SELECT " + columns + " FROM generate_series($1::int, $2::int) i"
					var kept, want [][]any
					for n := 1; n <= 3000; n = n*2 + 1 {
						for from := n; from < n+3; from++ {
							kept = append(kept, allRows(t, db, query, from*1000, from*1000+n)...)
							want = append(want, allRows(t, plain, query, from*1000, from*1000+n)...)
						}
					}
					for i := range want {
						if fmt.Sprintf("%T %[1]v", kept[i]) != fmt.Sprintf("%T %[1]v", want[i]) {
							t.Fatalf("%s: a row that was kept is %v; want %v", columns, kept[i], want[i])
						}
					}
				}
			})
		}
	})

	t.Run("NothingIsKept", func(t *testing.T) {
		// Not of a result that was streamed, either: its connection may lie idle for long.
		const row = 2 << 20
		db, _ := openPipeline(t, Config{MaxResult: row + row/2})
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		heap := func() int64 {
			runtime.GC()
			runtime.GC() // what the first has emptied of sync.Pools
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc)
		}
		var before int64
		for i := range replays {
			if i == 1 { // the connections' own buffers are as large as a row by now
				before = heap()
			}
			n := 0
			rows, err := conn.QueryContext(t.Context(), fmt.Sprintf("SELECT %d, repeat('x', %d) FROM generate_series(1, 3)", i, row))
			if err != nil {
				t.Fatal(err)
			}
			for rows.Next() {
				n++
			}
			if err := rows.Close(); err != nil || rows.Err() != nil || n != 3 {
				t.Fatalf("%d rows, %v, %v", n, rows.Err(), err)
			}
		}
		if s := ReadStats(db); s.Overflows != replays {
			t.Fatalf("Stats = %+v; want each result streamed", s)
		}
		if kept := heap() - before; kept > 2*row {
			t.Errorf("%d bytes are kept of %d results, of which %d each were buffered", kept, replays-1, row)
		}
	})

	t.Run("ClosedTwice", func(t *testing.T) {
		db, _ := openPipeline(t, Config{})
		conn, err := db.Conn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		err = conn.Raw(func(dc any) error {
			query := func(from int) driver.Rows {
				rows, err := dc.(driver.QueryerContext).QueryContext(context.Background(), "SELECT name FROM items WHERE id BETWEEN $1 AND $1 + 3 ORDER BY id",
					[]driver.NamedValue{{Ordinal: 1, Value: int64(from)}})
				if err != nil {
					t.Fatal(err)
				}
				return rows
			}
			row := make([]driver.Value, 1)
			var closed []driver.Rows
			for i := range 40 {
				rows := query(i + 1)
				for _, c := range closed {
					if err := c.Close(); err != nil {
						t.Errorf("a second Close = %v", err)
					}
					if err := c.Next(row); err != io.EOF {
						t.Errorf("Next of closed rows = %v", err)
					}
					if names := c.Columns(); len(names) != 1 || names[0] != "name" {
						t.Errorf("columns of closed rows: %q", names)
					}
				}
				for j := range 4 {
					if err := rows.Next(row); err != nil || row[0] != fmt.Sprint("item ", i+1+j) {
						t.Errorf("row %d from %d = %v, %v", j, i+1, row[0], err)
					}
				}
				if err := rows.Next(row); err != io.EOF {
					t.Errorf("Next at the end = %v", err)
				}
				if err := rows.Close(); err != nil {
					t.Error(err)
				}
				closed = append(closed, rows)
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
		if s := ReadStats(db); s.BufferedBytes != 0 {
			t.Errorf("%d bytes are still counted", s.BufferedBytes)
		}
	})

	t.Run("BytesOfTheDriver", func(t *testing.T) {
		db, _ := openPipeline(t, Config{})
		var kept [][]byte
		for i := range 50 {
			rows, err := db.Query("SELECT decode(repeat($1, 40), 'escape'), decode(repeat($1, 40), 'escape') FROM generate_series(1, 3)", string(rune('a'+i%26)))
			if err != nil {
				t.Fatal(err)
			}
			for rows.Next() {
				var raw sql.RawBytes
				var own []byte
				if err := rows.Scan(&raw, &own); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(raw, bytes.Repeat([]byte{byte('a' + i%26)}, 40)) {
					t.Errorf("RawBytes = %q", raw)
				}
				for j := range raw {
					raw[j] = '!' // nobody else's
				}
				kept = append(kept, own)
			}
			_ = rows.Close()
		}
		for i, b := range kept {
			if !bytes.Equal(b, bytes.Repeat([]byte{byte('a' + i/3%26)}, 40)) {
				t.Errorf("kept %q", b)
			}
		}
	})
}

// openGeneric opens a handle to the same database whose flights go through pgx.
func openGeneric(t *testing.T, plain *sql.DB) *sql.DB {
	t.Helper()
	var dsn string
	conn, err := plain.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.Raw(func(dc any) error {
		dsn = dc.(interface{ Conn() *pgx.Conn }).Conn().Config().ConnString()
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	db, err := OpenDB(dsn, Config{Executor: ExecutorGeneric})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

func allRows(t *testing.T, db *sql.DB, query string, args ...any) (all [][]any) {
	t.Helper()
	rows, err := db.Query(query, args...)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	names, _ := rows.Columns()
	for rows.Next() {
		row, dest := make([]any, len(names)), make([]any, len(names))
		for i := range row {
			dest[i] = &row[i]
		}
		if err := rows.Scan(dest...); err != nil {
			t.Fatal(err)
		}
		all = append(all, row)
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return all
}
