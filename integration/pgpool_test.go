//go:build unix

package integration

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// pgpoolSize is how many clients pgPool serves at a time: each has a server connection
// of its own, as long as it is connected.
const pgpoolSize = 32

// pgPool starts Pgpool-II in front of the server of dsn, which must ask for no
// password, and returns the DSN that leads through it to the same database. It stops
// when the test ends.
func pgPool(t *testing.T, dsn string) (pooled string) {
	t.Helper()
	program := findPooler(t, "Pgpool-II", "pgpool", "pgpool2")
	server, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	// Not t.TempDir: the path of a Unix socket is short.
	dir, err := os.MkdirTemp("", "pgpool")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	if u := unprivileged(t); u != nil {
		if err := os.Chown(dir, int(u.Uid), int(u.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var last error
	for range 5 {
		port := freePort(t)
		files := map[string]string{
			"pcp.conf": "", "pool_hba.conf": "",
			"pgpool.conf": fmt.Sprintf(`
backend_clustering_mode = 'raw'
listen_addresses = '127.0.0.1'
port = %d
socket_dir = %[2]s
pcp_listen_addresses = ''
pcp_port = %[3]d
pcp_socket_dir = %[2]s
pid_file_name = %[4]s
logdir = %[2]s
work_dir = %[2]s
backend_hostname0 = %[5]s
backend_port0 = %[6]d
backend_flag0 = 'DISALLOW_TO_FAILOVER'
num_init_children = %[7]d
max_pool = 1
enable_pool_hba = off
pool_passwd = ''
load_balance_mode = off
memqcache_total_size = 2MB
log_min_messages = warning
`, port, quoted(dir), freePort(t), quoted(filepath.Join(dir, "pid")), quoted(server.Host), server.Port, pgpoolSize),
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		pooled = fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", server.User, port, server.Database)
		last = runPooler(t, "Pgpool-II", pooled, syscall.SIGINT, filepath.Join(dir, "log"), program, "-n",
			"-f", filepath.Join(dir, "pgpool.conf"), "-F", filepath.Join(dir, "pcp.conf"), "-a", filepath.Join(dir, "pool_hba.conf"))
		if last == nil {
			return pooled
		}
	}
	t.Fatal(last)
	return ""
}

// spy stands between a pooler and the server, and counts what the server is sent.
type spy struct {
	begins atomic.Int64 // transactions of the guard
}

// newSpy returns a spy, and the DSN that leads through it to the server.
func newSpy(t *testing.T, dsn string) (s *spy, through string) {
	t.Helper()
	server, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s = new(spy)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer client.Close()
				to, err := net.Dial("tcp", net.JoinHostPort(server.Host, fmt.Sprint(server.Port)))
				if err != nil {
					t.Errorf("the server behind the pooler: %v", err)
					return
				}
				defer to.Close()
				wg.Go(func() {
					_, _ = io.Copy(client, to)
					_ = client.Close()
				})
				// Counted first: the answer may come before this goroutine goes on.
				_, _ = io.Copy(io.MultiWriter(&counter{of: []byte("BEGIN READ ONLY"), n: &s.begins}, to), client)
			})
		}
	})
	return s, fmt.Sprintf("postgres://%s:%s@%s/%s?sslmode=disable", server.User, server.Password, l.Addr(), server.Database)
}

// counter counts how often a text is written to it.
type counter struct {
	of   []byte
	n    *atomic.Int64
	tail []byte // what may be its beginning
}

func (c *counter) Write(b []byte) (int, error) {
	all := append(c.tail, b...)
	c.n.Add(int64(bytes.Count(all, c.of)))
	if i := bytes.LastIndex(all, c.of); i >= 0 {
		all = all[i+len(c.of):]
	}
	c.tail = bytes.Clone(all[max(0, len(all)-len(c.of)+1):])
	return len(b), nil
}

// throughPoolers are the ways through a pooler on which flights have the guard of
// transactions, if any.
var throughPoolers = []struct {
	name  string
	start func(t *testing.T, dsn string) (pooled string)
}{
	{"PgBouncer/transaction", func(t *testing.T, dsn string) string { return pgBouncer(t, dsn, "transaction", 4) }},
	{"PgBouncer/session", func(t *testing.T, dsn string) string { return pgBouncer(t, dsn, "session", 40) }},
}

// TestPoolerProven counts the transactions of the guard that get to the server
// through PgBouncer. Reads that are proven harmless have none, everything else has one
// for each execution, and all have one where the guard is asked for by name.
func TestPoolerProven(t *testing.T) {
	const reads = 20
	dsn := pgtest.Database(t)
	setUp(t, dsn)
	eye := connect(t, dsn)
	if _, err := eye.Exec(t.Context(), "CREATE VIEW item_names AS SELECT id, name FROM items;"+shownGuardSchema); err != nil {
		t.Fatal(err)
	}
	const (
		proven   = "SELECT name FROM items WHERE id = $1"
		unproven = "SELECT name FROM item_names WHERE id = $1" // a view can be replaced, and no connection hears of it
		opaque   = "SELECT 'item ' || $1::int WHERE shown() <> ''"
	)
	for _, p := range throughPoolers {
		t.Run(p.name, func(t *testing.T) {
			s, through := newSpy(t, dsn)
			pooled := p.start(t, through)
			for _, mode := range []string{"exec", "cache_describe", "simple_protocol", "cache_statement", "describe_exec"} {
				for _, guard := range []string{"auto", "transaction"} {
					for _, executor := range []string{"auto", "generic"} {
						t.Run(mode+"/"+guard+"/"+executor, func(t *testing.T) {
							db := open(t, "flightpg", with(pooled, "default_query_exec_mode="+mode+"&flight_guard="+guard+"&flight_trust_declared=on&flight_executor="+executor))
							defer db.Close()
							loaded(t, db)
							for _, query := range []string{proven, unproven, opaque} {
								run := func(id int) {
									t.Helper()
									var name string
									if err := db.QueryRowContext(t.Context(), query, id).Scan(&name); err != nil || name != fmt.Sprintf("item %d", id) {
										t.Fatalf("%s = %q, %v; want item %d", query, name, err, id)
									}
								}
								run(1) // it may have to be described
								before, flights := s.begins.Load(), flightpg.ReadStats(db).Flights
								for id := range reads {
									run(2 + id)
								}
								want := int64(reads)
								if query == proven && guard == "auto" {
									want = 0
								}
								if n := s.begins.Load() - before; n != want {
									t.Errorf("%s: %d reads began %d read-only transactions; want %d", query, reads, n, want)
								}
								if n := flightpg.ReadStats(db).Flights - flights; n != reads {
									t.Errorf("%s: %d flights; want %d: else the test shows nothing", query, n, reads)
								}
							}
						})
					}
				}
			}
		})
	}
}

// TestPoolerPrepared reads with sql.Stmt, a proven read too, and with several types of
// arguments and columns, in the modes that name statements: nothing is left behind, and
// a column that changes its type is read as what it is.
func TestPoolerPrepared(t *testing.T) {
	dsn := pgtest.Database(t)
	setUp(t, dsn)
	eye := connect(t, dsn)
	pooled := pgBouncer(t, dsn, "transaction", 2)
	for _, mode := range []string{"cache_statement", "cache_describe", "exec"} {
		t.Run(mode, func(t *testing.T) {
			db := open(t, "flightpg", with(pooled, "default_query_exec_mode="+mode))
			if _, err := eye.Exec(t.Context(), "DROP TABLE IF EXISTS kinds; CREATE TABLE kinds (id int, v int); INSERT INTO kinds VALUES (1, 7)"); err != nil {
				t.Fatal(err)
			}
			loaded(t, db)
			st, err := db.PrepareContext(t.Context(), "SELECT v FROM kinds WHERE id = $1")
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			read := func() string {
				t.Helper()
				var a, b any
				if err := st.QueryRowContext(t.Context(), 1).Scan(&a); err != nil {
					t.Fatalf("Stmt: %v", err)
				}
				if err := db.QueryRowContext(t.Context(), "SELECT v FROM kinds WHERE id = $1", 1).Scan(&b); err != nil {
					t.Fatalf("DB: %v", err)
				}
				return fmt.Sprintf("%T %v, %T %v", a, a, b, b)
			}
			for range 3 {
				if got, want := read(), "int64 7, int64 7"; got != want {
					t.Errorf("read = %s; want %s", got, want)
				}
			}
			if _, err := eye.Exec(t.Context(), "ALTER TABLE kinds ALTER v TYPE text USING 'seven'"); err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if got, want := read(), "string seven, string seven"; got != want {
					t.Errorf("after ALTER TABLE: read = %s; want %s", got, want)
				}
			}
			if s := flightpg.ReadStats(db); s.Flights < 12 || len(s.Bypasses) > 0 {
				t.Errorf("Stats = %+v; want flights only", s)
			}
			_ = db.Close()
			leftNothing(t, pooled, 2, eye)
		})
	}
}

// TestPgpool reads through Pgpool-II. Its clients have a server connection each, and
// its protocol tells the server's own process id: flights have the guard of sessions,
// which Pgpool-II resets when a client leaves.
func TestPgpool(t *testing.T) {
	dsn := pgtest.Database(t)
	setUp(t, dsn)
	eye := connect(t, dsn)
	if _, err := eye.Exec(t.Context(), shownGuardSchema); err != nil {
		t.Fatal(err)
	}
	pooled := pgPool(t, dsn)
	for _, mode := range []string{"cache_statement", "exec", "cache_describe", "simple_protocol"} {
		reads := flyingReads(t, with(dsn, "default_query_exec_mode="+mode))
		for _, executor := range []string{"auto", "generic"} {
			t.Run(mode+"/"+executor, func(t *testing.T) {
				ours := open(t, "flightpg", with(pooled, "default_query_exec_mode="+mode+"&flight_conns=8&session_conns=8&flight_trust_declared=on&flight_executor="+executor))
				defer ours.Close()
				loaded(t, ours)
				var got string
				if err := ours.QueryRowContext(t.Context(), shownGuard).Scan(&got); err != nil || got != sessionGuarded {
					t.Errorf("guard = %q, %v; want %q", got, err, sessionGuarded)
				}
				var wg sync.WaitGroup
				for range 8 {
					wg.Go(func() {
						for _, i := range rand.Perm(len(reads)) {
							r := reads[i]
							if got := r.run(t.Context(), ours); got != r.want {
								t.Errorf("%s:\nthrough Pgpool-II: %s\ndirect:            %s", r.name, got, r.want)
							}
						}
					})
				}
				wg.Wait()
				if s := flightpg.ReadStats(ours); s.Flights == 0 || len(s.Bypasses) > 0 {
					t.Errorf("Stats = %+v; want flights only", s)
				}
				_ = ours.Close()
				// The next clients get the same server connections.
				for range pgpoolSize / 4 {
					other := open(t, "pgx", with(pooled, "default_query_exec_mode=exec"))
					checkClean(t, other)
				}
			})
		}
	}
}

// flyingReads are those of the cases that fly, by one connector's figures, with pgx's
// transcripts.
func flyingReads(t *testing.T, dsn string) (reads []sharedRead) {
	t.Helper()
	plain, ours := open(t, "pgx", dsn), open(t, "flightpg", dsn)
	loaded(t, ours)
	for _, path := range paths[:2] { // DB and Stmt
		for _, c := range cases {
			before := flightpg.ReadStats(ours)
			if got, want := path.run(t.Context(), ours, c.query, c.args), path.run(t.Context(), plain, c.query, c.args); got == want {
				bypasses := func(s flightpg.Stats) (n uint64) {
					for _, m := range s.Bypasses {
						n += m
					}
					return n
				}
				if s := flightpg.ReadStats(ours); s.Flights > before.Flights && bypasses(s) == bypasses(before) && s.Execs == before.Execs {
					reads = append(reads, sharedRead{
						c.name + " on " + path.name,
						func(ctx context.Context, db *sql.DB) string { return path.run(ctx, db, c.query, c.args) }, want,
					})
				}
			}
		}
	}
	if len(reads) < 40 {
		t.Fatalf("only %d of the cases fly: the test shows little", len(reads))
	}
	return reads
}

// checkClean looks at a server connection as another client of a pooler finds it.
func checkClean(t *testing.T, db *sql.DB) {
	t.Helper()
	var byDefault string
	var prepared, locks int
	err := db.QueryRowContext(context.WithoutCancel(t.Context()), `SELECT current_setting('default_transaction_read_only'),
		(SELECT count(*) FROM pg_prepared_statements), (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')`).Scan(&byDefault, &prepared, &locks)
	if err != nil || byDefault != "off" || prepared != 0 || locks != 0 {
		t.Errorf("another client finds default_transaction_read_only = %s, %d prepared statements, %d advisory locks, %v; want off, none, none", byDefault, prepared, locks, err)
	}
}
