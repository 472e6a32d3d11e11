package flightpg

import (
	"bytes"
	"context"
	"crypto/md5"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// largeKinds make arguments of about so many bytes, of many types, of which the one at
// a place is another.
var largeKinds = map[string]func(size, place int) any{
	"Text":     func(size, place int) any { return string(largeBytes(size, place)) },
	"MyString": func(size, place int) any { return myString(largeBytes(size, place)) },
	"Bytes":    func(size, place int) any { return largeBytes(size, place) },
	"JSON":     func(size, place int) any { return json.RawMessage(largeBytes(size, place)) },
	"Pointer":  func(size, place int) any { return new(string(largeBytes(size, place))) },
	"Valuer":   func(size, place int) any { return valuing{largeBytes(size, place)} },
	"Bools":    func(size, place int) any { return largeList(size, place, 1, true) },
	"Int16s":   func(size, place int) any { return largeList(size, place, 2, int16(-1)) },
	"Int32s":   func(size, place int) any { return largeList(size, place, 4, int32(-1)) },
	"Int64s":   func(size, place int) any { return largeList(size, place, 8, int64(-1)) },
	"Floats":   func(size, place int) any { return largeList(size, place, 8, -1.5) },
	"MyInts":   func(size, place int) any { return largeList(size, place, 8, myInt(-1)) },
	"Texts":    func(size, place int) any { return largeList(size, place, 8, "changed") },
	"Pointers": func(size, place int) any { return largeList(size, place, 16, new(7)) },
	"Lists":    func(size, place int) any { return [][]int32{largeList(size, place, 4, int32(-1))} },
	"Pieces":   func(size, place int) any { return slices.Collect(slices.Chunk(largeBytes(size, place), 100)) },
	"Map":      func(size, place int) any { return map[string]string{"a": string(largeBytes(size, place))} },
}

func largeBytes(size, place int) []byte {
	b := bytes.Repeat([]byte("large "), size/6+1)[:size]
	if place >= 0 {
		b[place] = '!'
	}
	return b
}

func largeList[T any](size, place, elem int, changed T) []T {
	list := make([]T, size/elem)
	if place >= 0 {
		list[place/elem] = changed
	}
	return list
}

// TestKey_Large: the key of large arguments is short, and tells them apart all the same,
// wherever they differ; with either digest.
func TestKey_Large(t *testing.T) {
	own := digester
	defer func() { digester = own }()
	for _, digest := range []struct {
		name string
		of   func() func(b, data []byte) []byte
	}{{"GHASH", own}, {"SHA256", func() func(b, data []byte) []byte { return appendSHA }}} {
		t.Run(digest.name, func(t *testing.T) {
			digester = digest.of
			seen := make(map[string]string)
			add := func(what string, args ...any) {
				t.Helper()
				key, why := keyOf(t, args...)
				if why != ReasonNone || len(key) > 2*maxPlain {
					t.Errorf("%s: %v, a key of %d bytes; want one of at most %d", what, why, len(key), 2*maxPlain)
				}
				if other, taken := seen[key]; taken {
					t.Errorf("%s and %s have the same key", what, other)
				}
				seen[key] = what
				if again, _ := keyOf(t, args...); again != key {
					t.Errorf("%s: its key changes", what)
				}
			}
			for name, of := range largeKinds {
				for _, size := range []int{maxPlain - 16, maxPlain, maxPlain + 16, 10_000, 100_000} {
					for _, place := range []int{-1, 0, size / 2, size - 1} {
						what := fmt.Sprintf("%s of %d, changed at %d", name, size, place)
						add(what, of(size, place))
						if size == 10_000 {
							add("nothing before "+what, nil, of(size, place))
							add("nothing behind "+what, of(size, place), nil)
						}
					}
				}
			}
			if key, why := keyOf(t, string(largeBytes(maxKeyArgs, -1))); why != ReasonNone || len(key) > 2*maxPlain {
				t.Errorf("of %d bytes: %v, a key of %d bytes", maxKeyArgs, why, len(key))
			}
			// Many that are small are large together.
			var many []any
			for i := range 1000 {
				many = append(many, i)
			}
			add("many", many...)
			many[500] = -1
			add("many others", many...)

			// What looks like the digest.
			text := string(largeBytes(10_000, -1))
			sum := string(appendDigest(nil, []byte(text)))
			add("the digest", sum)
			add("the digest as bytes", []byte(sum))
			whole, _ := keyOf(t, many...)
			for _, via := range []byte{viaQuery, viaStmt, viaPrepare} {
				for _, partition := range []string{"", whole, whole[1:], whole[2:]} {
					key, why := new(keying).appendKey(nil, via, partition, nil)
					if why != ReasonNone || seen[string(key)] != "" {
						t.Errorf("via %d, partition %q: %v, the key of %s", via, partition, why, seen[string(key)])
					}
				}
			}
		})
	}
}

// TestKey_LargeTypes: the same bytes under other types are other arguments.
func TestKey_LargeTypes(t *testing.T) {
	raw := largeBytes(10_000, -1)
	seen := make(map[string]reflect.Type)
	for _, v := range []any{
		string(raw), raw, json.RawMessage(raw), myString(raw),
		[]string{string(raw)},
		[][]byte{raw},
		valuing{raw},
		valuing{string(raw)},
		make([]int16, 10_000), make([]uint16, 10_000), make([]int32, 10_000), make([]float32, 10_000), make([]bool, 10_000), make([]int8, 10_000),
		make([]int64, 10_000), make([]float64, 10_000), make([]myInt, 10_000), make([]byte, 10_000), make([]byte, 20_000),
		[][]int64{make([]int64, 10_000)},
		[][]int64{make([]int64, 5_000), make([]int64, 5_000)},
		new(make([]int64, 10_000)),
	} {
		key, why := keyOf(t, v)
		if why != ReasonNone || seen[key] != nil {
			t.Errorf("%T: %v, the key of %v", v, why, seen[key])
		}
		seen[key] = reflect.TypeOf(v)
	}
}

func openPGX(t *testing.T, dsn string) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// TestLarge_LikePGX: large arguments have the rows and errors that pgx has for them.
func TestLarge_LikePGX(t *testing.T) {
	dsn := pgtest.Database(t)
	plain := openPGX(t, dsn)
	text := string(largeBytes(1_000_000, -1))
	numbers := make([]int32, 100_000)
	for i := range numbers {
		numbers[i] = int32(i)
	}
	texts := make([]string, 50_000)
	for i := range texts {
		texts[i] = fmt.Sprint("element ", i)
	}
	for _, executor := range []Executor{ExecutorPipeline, ExecutorGeneric} {
		t.Run(executor.String(), func(t *testing.T) {
			db, err := OpenDB(dsn, Config{Executor: executor})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			for _, tc := range []struct {
				query string
				args  []any
			}{
				{"SELECT length($1::text), md5($1)", []any{text}},
				{"SELECT length($1::bytea), md5($1)", []any{[]byte(text)}},
				{"SELECT length($1::bytea), md5($1)", []any{json.RawMessage(text)}},
				{"SELECT length($1::text), md5($1)", []any{[]byte(text)}},
				{"SELECT length($1::text), md5($1)", []any{valuing{text}}},
				{"SELECT $1::bytea", []any{[]byte(text)}},
				{"SELECT cardinality($1::int[]), md5($1::int[]::text)", []any{numbers}},
				{"SELECT cardinality($1::bigint[]), md5($1::bigint[]::text)", []any{numbers}},
				{"SELECT cardinality($1::text[]), md5($1::text[]::text)", []any{texts}},
				{"SELECT count(*) FROM generate_series(1, 1000) i WHERE i = ANY($1::int[])", []any{numbers}},
				{"SELECT length($1::text), $2::int, length($3::bytea), $4::text", []any{text, 7, []byte(text), nil}},
				{"SELECT length($1::text) / $2::int", []any{text, 0}},
				{"SELECT $1::int", []any{text}},
				{"SELECT length($1::text)", []any{text + "\x00"}},
				{"SELECT length($1::text)", []any{text + "\xff"}},
				{"SELECT cardinality($1::int[])", []any{texts}},
				{"SELECT cardinality($1::int[])", []any{text}},
				{"SELECT length($1::text)", []any{text, text}},
				{"SELECT length($1::text) FROM nothing", []any{text}},
			} {
				answer := func(db *sql.DB) string {
					var found []string
					rows, err := db.Query(tc.query, tc.args...)
					if err == nil {
						defer rows.Close()
						names, _ := rows.Columns()
						row := make([]any, len(names))
						dest := make([]any, len(names))
						for i := range row {
							dest[i] = &row[i]
						}
						for rows.Next() {
							if err := rows.Scan(dest...); err != nil {
								return err.Error()
							}
							found = append(found, fmt.Sprintf("%T %x", row[0], md5.Sum(fmt.Append(nil, row))))
						}
						err = rows.Err()
					}
					var pgErr *pgconn.PgError
					if errors.As(err, &pgErr) {
						return fmt.Sprintf("%v, %T %x", found, err, md5.Sum(fmt.Append(nil, *pgErr)))
					}
					return fmt.Sprintf("%v, %T %x", found, err, md5.Sum([]byte(fmt.Sprint(err))))
				}
				for range 2 {
					if got, want := answer(db), answer(plain); got != want {
						t.Errorf("%s with %T: %s; want %s", tc.query, tc.args[0], got, want)
					}
				}
			}
			if s := ReadStats(db); s.Flights < 30 {
				t.Errorf("Stats = %+v; want that large arguments fly", s)
			}
		})
	}
}

// TestLarge_AreTheCallers: a caller may change what he has passed as soon as his call has
// returned, although its flight, which waits for a connection or for a lock, goes on for
// others.
func TestLarge_AreTheCallers(t *testing.T) {
	const conns = minPipelineConns
	for _, executor := range []Executor{ExecutorPipeline, ExecutorGeneric} {
		for _, tc := range []struct {
			name, query string
			arg         func() any
		}{
			{"Bytes", "SELECT md5($1::bytea) FROM (SELECT count(*) FROM gate) g", func() any { return largeBytes(1_000_000, -1) }},
			{"Ints", "SELECT md5($1::int[]::text) FROM (SELECT count(*) FROM gate) g", func() any { return slices.Repeat([]int32{7}, 100_000) }},
			{"Texts", "SELECT md5($1::text[]::text) FROM (SELECT count(*) FROM gate) g", func() any { return slices.Repeat([]string{"text"}, 100_000) }},
			{"ListOfBytes", "SELECT md5($1::bytea[]::text) FROM (SELECT count(*) FROM gate) g", func() any { return [][]byte{largeBytes(500_000, -1), largeBytes(400_000, 1)} }},
		} {
			t.Run(executor.String()+"/"+tc.name, func(t *testing.T) {
				dsn := pgtest.Database(t)
				plain := openPGX(t, dsn)
				mustExec(t, plain, "CREATE TABLE gate ()")
				db, err := OpenDB(dsn, Config{Executor: executor, FlightConns: conns, Mode: ModeJoin})
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				var want, got string
				if err := plain.QueryRow(tc.query, tc.arg()).Scan(&want); err != nil {
					t.Fatal(err)
				}
				if err := db.QueryRow(tc.query, tc.arg()).Scan(&got); err != nil || got != want { // its statement is known
					t.Fatalf("%q, %v; want %q", got, err, want)
				}
				if err := db.QueryRow("SELECT count(*) + $1::int FROM gate", 0).Scan(new(int)); err != nil {
					t.Fatal(err)
				}
				tx, err := plain.Begin()
				if err != nil {
					t.Fatal(err)
				}
				defer tx.Rollback()
				if _, err := tx.Exec("LOCK TABLE gate"); err != nil {
					t.Fatal(err)
				}
				const blocked = 4 * conns // more than there are connections, however they are sent
				ends := make(chan error, blocked)
				for i := range blocked {
					go func() { ends <- db.QueryRow("SELECT count(*) + $1::int FROM gate", i).Scan(new(int)) }()
				}
				eventually(t, "connections to be taken", func() bool { // one may be kept for fast reads, and another opened late
					var n int
					err := plain.QueryRow("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'").Scan(&n)
					return err == nil && n >= conns/2
				})

				mine := tc.arg()
				ctx, cancel := context.WithCancel(t.Context())
				led, followed := make(chan error, 1), make(chan error, 1)
				go func() {
					err := db.QueryRowContext(ctx, tc.query, mine).Scan(new(string))
					scribble(reflect.ValueOf(mine), 0)
					led <- err
				}()
				eventually(t, "the leader", func() bool { return ReadStats(db).Waiting == blocked+1 })
				go func() { followed <- db.QueryRow(tc.query, tc.arg()).Scan(&got) }()
				eventually(t, "the follower", func() bool { return ReadStats(db).Waiting == blocked+2 })
				cancel()
				if err := <-led; !errors.Is(err, context.Canceled) {
					t.Errorf("the leader: %v", err)
				}
				if reflect.DeepEqual(mine, tc.arg()) {
					t.Fatal("the argument has not been changed")
				}
				_ = tx.Rollback()
				if err := <-followed; err != nil || got != want {
					t.Errorf("the follower got %q, %v; want %q", got, err, want)
				}
				for range blocked {
					if err := <-ends; err != nil {
						t.Error(err)
					}
				}
			})
		}
	}
}

// TestLargeArguments: callers of a text whose large arguments differ in a byte that no
// key has a sample of, and who use their memory again as soon as their calls return, get
// what they asked for.
func TestLargeArguments(t *testing.T) {
	docs := [2][]byte{bytes.Repeat([]byte("x"), 10_000), nil}
	key := func(doc []byte) string {
		var large [][]byte
		k := keying{large: &large}
		b, why := k.appendKey(nil, viaQuery, "", namedValues([]any{doc}))
		if why != ReasonNone || len(large) != 1 || len(b) > maxPlain {
			t.Fatalf("a key of %d bytes, %d large parts, %v", len(b), len(large), why)
		}
		return string(b)
	}
	for at := range 10_000 {
		docs[1] = bytes.Clone(docs[0])
		if docs[1][at] = 'y'; key(docs[0]) == key(docs[1]) {
			break
		}
	}
	if key(docs[0]) != key(docs[1]) || bytes.Equal(docs[0], docs[1]) {
		t.Fatal("each byte is in the sample")
	}
	dsn := pgtest.Database(t)
	for _, executor := range []Executor{ExecutorGeneric, ExecutorAuto} {
		t.Run(executor.String(), func(t *testing.T) {
			db, err := OpenDB(dsn, Config{Executor: executor})
			if err != nil {
				t.Fatal(err)
			}
			defer db.Close()
			const text = "SELECT md5($1::bytea), md5($2::text)"
			similar := func() bool {
				c, _ := connectorOf(db)
				return c.verdicts.get(text, c.peek(t.Context())).similar.Load()
			}
			eventually(t, "arguments that are similar to be met, and shared ones", func() bool {
				var callers sync.WaitGroup
				for i := range 8 {
					callers.Go(func() {
						memory := make([]byte, 10_000)
						for n := range 20 {
							doc := docs[(i+n/4)%2]
							copy(memory, doc)
							want := fmt.Sprintf("%x", md5.Sum(doc))
							ctx, cancel := context.WithCancel(t.Context())
							if n%5 == 4 {
								time.AfterFunc(100*time.Microsecond, cancel)
							}
							var a, b string
							err := db.QueryRowContext(ctx, text, memory, string(doc)).Scan(&a, &b)
							clear(memory)
							cancel()
							if err == nil && (a != want || b != want) || err != nil && n%5 != 4 {
								t.Errorf("got %s, %s, %v; want %s", a, b, err, want)
							}
						}
					})
				}
				callers.Wait()
				return similar() && ReadStats(db).Joins > 0
			})
		})
	}
}
