package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestWindow_MemoryHolds: what is kept in a window is within Memory, keys and all.
func TestWindow_MemoryHolds(t *testing.T) {
	const (
		memory = 16 << 20
		slack  = 4 << 20
		texts  = 32 << 20 // that a connector remembers, see docs/reliability.md
	)
	fake := func(t *testing.T, cfg Config) *sql.DB {
		f := new(fakeServer)
		f.answer = func(_ context.Context, _ *fakeSession, query string, _ []driver.NamedValue) (*fakeRows, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.log = nil // it has the texts
			if strings.HasSuffix(query, "false") {
				return &fakeRows{names: slices.Repeat([]string{"a column"}, 40)}, nil
			}
			return oneRow(int64(1)), nil
		}
		return openFake(t, f, cfg)
	}
	server := func(t *testing.T, cfg Config) *sql.DB {
		db, err := OpenDB(pgtest.Database(t), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = db.Close() })
		return db
	}
	for _, tc := range []struct {
		name  string
		open  func(t *testing.T, cfg Config) *sql.DB
		reads int
		query func(i int) string
		arg   func(i int) string
		cfg   Config
	}{
		{
			"LargeArguments", fake, 200,
			func(int) string { return "SELECT length($1)" },
			func(i int) string { return strings.Repeat("x", 900_000) + strconv.Itoa(i) },
			Config{},
		},
		{
			"NoRows", fake, 20_000,
			func(int) string { return "SELECT length($1) WHERE false" },
			strconv.Itoa,
			Config{Memory: memory},
		},
		{
			"Pipeline", server, 200,
			func(int) string { return "SELECT length($1)::int8" },
			func(i int) string { return strings.Repeat("x", 900_000) + strconv.Itoa(i) },
			Config{CatalogTTL: -1},
		},
		{
			"Generic", server, 200,
			func(int) string { return "SELECT length($1)::int8" },
			func(i int) string { return strings.Repeat("x", 900_000) + strconv.Itoa(i) },
			Config{CatalogTTL: -1, Executor: ExecutorGeneric},
		},
		{ // the last one: some of what it leaves is collected later, which would count as less for the next
			"LongTexts", fake, 400,
			func(i int) string {
				return "SELECT length($1) /* " + strings.Repeat("x", 300_000) + strconv.Itoa(i) + " */"
			},
			strconv.Itoa,
			Config{Mode: ModeJoin},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			tc.cfg.Memory, tc.cfg.Window = memory, time.Hour
			db := tc.open(t, tc.cfg)
			read := func(i int) {
				rows, err := db.Query(tc.query(i), tc.arg(i))
				if err != nil {
					t.Fatal(err)
				}
				for rows.Next() {
				}
				if err := rows.Close(); err != nil {
					t.Fatal(err)
				}
			}
			for i := range 3 { // what the first ones take stays
				read(-1 - i)
			}
			before := heapInUse()
			for same, n := 0, 0; same < 5 && n < 200; n++ { // what is left of the tests before goes when their goroutines do
				time.Sleep(10 * time.Millisecond) // nothing tells: polling
				now := heapInUse()
				if same++; before-now > 64<<10 || now-before > 64<<10 {
					same = 0
				}
				before = now
			}
			for i := range tc.reads {
				read(i)
			}
			took, s := heapInUse()-before, ReadStats(db)
			t.Logf("%d bytes are kept, %d are counted", took, s.BufferedBytes)
			if s.BufferedBytes > memory {
				t.Errorf("%d bytes are counted; want at most %d", s.BufferedBytes, memory)
			}
			limit := int64(memory + slack)
			if tc.name == "LongTexts" {
				limit += texts
			}
			if took > limit {
				t.Errorf("%d bytes are kept; want at most %d", took, limit)
			}
			if len(tc.arg(0)) > 1<<10 { // keys hold digests of what is large
				if most := int64(tc.reads) * 4 << 10; took > most || s.BufferedBytes > most {
					t.Errorf("%d bytes are kept, %d are counted; want less than %d: no argument as it is", took, s.BufferedBytes, most)
				}
			} else if took < memory/4 || s.BufferedBytes < memory/2 {
				t.Errorf("%d bytes are kept, %d are counted; want memory used", took, s.BufferedBytes)
			}
			runtime.KeepAlive(db)
		})
	}
}

// TestWindow_MakesRoom: what is kept does not keep others from sharing.
func TestWindow_MakesRoom(t *testing.T) {
	bubble(t, "HotRead", func(t *testing.T) {
		f := &fakeServer{answer: func(_ context.Context, _ *fakeSession, query string, _ []driver.NamedValue) (*fakeRows, error) {
			if query == hotQuery {
				time.Sleep(20 * time.Millisecond) // the bubble's time
				return oneRow(int64(1), strings.Repeat("x", 10_000)), nil
			}
			return oneRow(int64(1)), nil
		}}
		db := openFake(t, f, Config{Window: time.Minute, Memory: 1 << 20})
		for i := range 3000 {
			if _, err := queryInt(context.Background(), db, "SELECT $1", i); err != nil {
				t.Fatal(err)
			}
		}
		for round := range 3 {
			for _, err := range many(32, func(int) error {
				var n int
				var text string
				return db.QueryRow(hotQuery, round).Scan(&n, &text)
			}) {
				if err != nil {
					t.Error(err)
				}
			}
			if n := f.count(hotQuery); n != round+1 {
				t.Errorf("32 callers at a time, %d times, ran the read %d times", round+1, n)
			}
		}
		if s := ReadStats(db); s.Overflows != 0 || s.BufferedBytes < 1<<19 {
			t.Errorf("Stats = %+v; want no overflow, and results kept", s)
		}
		time.Sleep(time.Minute) // the bubble's time
	})
}
