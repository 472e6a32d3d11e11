//go:build unix

package integration

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"net/url"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// use is something that applications do with a handle, as a transcript.
type use struct {
	name   string
	shared bool // it is a read that flies
	run    func(context.Context, *sql.DB) string
}

// uses need setUp.
var uses = []use{
	{"Conn", false, func(ctx context.Context, db *sql.DB) string {
		c, err := db.Conn(ctx)
		if err != nil {
			return describe(err)
		}
		// What keeps its session shares nothing any more: not for others to find.
		defer c.Raw(func(any) error { return driver.ErrBadConn })
		if _, err := c.ExecContext(ctx, "SET application_name = 'pinned'"); err != nil {
			return describe(err)
		}
		return transcript(c.QueryContext(ctx, "SELECT current_setting('application_name')"))
	}},
	{"Read", true, func(ctx context.Context, db *sql.DB) string {
		return transcript(db.QueryContext(ctx, "SELECT name FROM items WHERE id = $1", 7))
	}},
	{"Read/NoTable", true, func(ctx context.Context, db *sql.DB) string {
		return transcript(db.QueryContext(ctx, "SELECT 1"))
	}},
	{"Stmt", true, func(ctx context.Context, db *sql.DB) string {
		return viaStmt(ctx, db, "SELECT name FROM items WHERE id < $1", []any{3})
	}},
	{"Write", false, func(ctx context.Context, db *sql.DB) string {
		if _, err := db.ExecContext(ctx, "INSERT INTO log VALUES ('x')"); err != nil {
			return describe(err)
		}
		return "written"
	}},
	{"Tx", false, func(ctx context.Context, db *sql.DB) string {
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return describe(err)
		}
		defer tx.Rollback()
		return transcript(tx.QueryContext(ctx, "SELECT name FROM items WHERE id = 8")) + describe(tx.Commit())
	}},
}

func useNamed(name string) use {
	return uses[slices.IndexFunc(uses, func(u use) bool { return u.name == name })]
}

// TestRestartInMidFlight restarts the server while many callers wait for a flight.
func TestRestartInMidFlight(t *testing.T) {
	s := pgtest.New(t)
	setUp(t, s.DSN())
	for _, tc := range []struct {
		name    string
		restart func() error
	}{
		{"fast", func() error { return s.Restart(t.Context()) }},
		{"immediate", func() error { return errors.Join(s.Crash(t.Context(), syscall.SIGQUIT), s.Restart(t.Context())) }},
		{"crash", func() error { return errors.Join(s.Crash(t.Context(), syscall.SIGKILL), s.Restart(t.Context())) }},
	} {
		for _, guard := range []string{"session", "transaction"} {
			t.Run(tc.name+"/guard="+guard, func(t *testing.T) {
				g := newGate(t, s.DSN())
				goroutines := runtime.NumGoroutine()
				db, err := sql.Open("flightpg", with(s.DSN(), "flight_guard="+guard))
				if err != nil {
					t.Fatal(err)
				}
				defer db.Close()
				db.SetMaxIdleConns(300)
				for _, u := range uses { // idle connections in both pools
					if got := u.run(t.Context(), db); strings.Contains(got, "Error") {
						t.Fatalf("%s: %s", u.name, got)
					}
				}
				before := flightpg.ReadStats(db)
				const callers = 200
				g.shut()
				type answer struct {
					v   int
					err error
				}
				done := make(chan answer, callers)
				for range callers {
					go func() {
						var a answer
						a.err = db.QueryRow(gateQuery, 1).Scan(&a.v)
						done <- a
					}()
				}
				until(t, "the callers wait", func() bool { return flightpg.ReadStats(db).Waiting == callers && g.waiting() == 1 })
				if err := tc.restart(); err != nil {
					t.Fatal(err)
				}
				rows := 0
				for range callers {
					switch a := <-done; {
					case a.err == nil && a.v == 1:
						rows++
					case a.err == nil:
						t.Errorf("v = %d; want 1", a.v)
					case !unreachable(a.err):
						t.Errorf("caller: %v; want rows, or what pgx says of a server that goes away", a.err)
					}
				}
				st := flightpg.ReadStats(db)
				t.Logf("%d of %d callers got rows; %d flights, %d retries", rows, callers, st.Flights-before.Flights, st.Retries)
				if st.Flying != 0 || st.Waiting != 0 || st.BufferedBytes != 0 || st.Flights-before.Flights != 1 || st.Retries-before.Retries != 1 {
					t.Errorf("Stats = %+v; want one flight that was run again, and nothing left", st)
				}
				// Reads must work at once. A write may meet one dead connection, as
				// over pgx, whose error closes it.
				g = newGate(t, s.DSN()) // the first one's connections are gone
				for _, u := range uses {
					got := u.run(t.Context(), db)
					if strings.Contains(got, "Error") && !u.shared {
						t.Logf("%s after the restart: %s", u.name, got)
						got = u.run(t.Context(), db)
					}
					if strings.Contains(got, "Error") {
						t.Errorf("%s after the restart: %s", u.name, got)
					}
				}
				if s := flightpg.ReadStats(db); s.Flights == st.Flights {
					t.Errorf("Stats = %+v; want reads to be shared again", s)
				}
				if err := db.Close(); err != nil {
					t.Error(err)
				}
				until(t, "no backend is left", func() bool { return g.backends() == 0 })
				untilGone(t, goroutines)
			})
		}
	}
}

// TestIdleSessionTimeout lets the server end idle sessions before the pools do.
// Nothing fails that does not over pgx: pgx asks a connection whether it lives
// when it was idle for a second or more, and sooner or later if it is told to.
func TestIdleSessionTimeout(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		eye := connect(t, dsn)
		const timeout = "idle_session_timeout=300"
		gone := func() {
			t.Helper()
			until(t, "the server has ended the idle sessions", func() bool {
				var n int
				err := eye.QueryRow(t.Context(), `SELECT count(*) FROM pg_stat_activity
					WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()`).Scan(&n)
				if err != nil {
					t.Fatal(err)
				}
				return n == 0
			})
		}
		for _, ping := range []bool{true, false} {
			t.Run(fmt.Sprintf("ping=%v", ping), func(t *testing.T) {
				pc, err := pgx.ParseConfig(with(dsn, timeout))
				if err != nil {
					t.Fatal(err)
				}
				inner := stdlib.GetConnector(*pc, stdlib.OptionShouldPing(func(context.Context, stdlib.ShouldPingParams) bool { return ping }))
				plain := sql.OpenDB(inner)
				defer plain.Close()
				c, err := flightpg.Wrap(inner, flightpg.Config{})
				if err != nil {
					t.Fatal(err)
				}
				ours := c.OpenDB()
				defer ours.Close()
				for _, u := range uses {
					for _, db := range []*sql.DB{plain, ours} {
						for _, leave := range []use{u, useNamed("Write")} { // at least one idle connection
							got := leave.run(t.Context(), db)
							if strings.Contains(got, "Error") { // of one that died idle
								got = leave.run(t.Context(), db)
							}
							if strings.Contains(got, "Error") {
								t.Fatalf("%s: %s", leave.name, got)
							}
						}
					}
					gone()
					want := u.run(t.Context(), plain)
					if failed := strings.Contains(want, "57P05"); failed == ping {
						t.Fatalf("%s over pgx: %s: the test shows nothing", u.name, want)
					}
					if !u.shared { // alone: there is one idle session, as over pgx
						if got := u.run(t.Context(), ours); got != want {
							t.Errorf("%s:\nflightpg: %s\npgx:      %s", u.name, got, want)
						}
						continue
					}
					var wg sync.WaitGroup
					for range 8 {
						wg.Go(func() {
							if got := u.run(t.Context(), ours); strings.Contains(got, "Error") {
								t.Errorf("%s: %s; want a shared read to be run again", u.name, got)
							}
						})
					}
					wg.Wait()
				}
				if s := flightpg.ReadStats(ours); !ping && s.Retries == 0 {
					t.Errorf("Stats = %+v; want retries: else the test shows nothing", s)
				}
			})
		}
		t.Run("Open", func(t *testing.T) {
			ours := open(t, "flightpg", with(dsn, timeout))
			for range 3 {
				for _, u := range uses {
					if got := u.run(t.Context(), ours); u.shared && strings.Contains(got, "Error") {
						t.Errorf("%s: %s", u.name, got)
					}
				}
				gone()
			}
		})
	})
}

// TestStatementTimeout sets a timeout in each way there is. The server's error goes
// to every caller, whole, and the statement is not run again.
func TestStatementTimeout(t *testing.T) {
	s := pgtest.New(t)
	g := newGate(t, s.DSN())
	g.exec("CREATE ROLE hasty LOGIN; ALTER ROLE hasty SET statement_timeout = 200; GRANT SELECT ON gate TO hasty")
	u, err := url.Parse(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User("hasty")
	n := 0
	for name, dsn := range map[string]string{
		"Parameter":        with(s.DSN(), "statement_timeout=200"),
		"Options":          with(s.DSN(), "options=-c%20statement_timeout%3D200"),
		"Role":             u.String(),
		"TransactionGuard": with(u.String(), "flight_guard=transaction"),
	} {
		t.Run(name, func(t *testing.T) {
			n++
			query := fmt.Sprintf("SELECT v FROM gate /* %d */", n)
			plain, _, _ := strings.Cut(dsn, "&flight_guard")
			g.shut()
			defer g.open()
			want := transcript(open(t, "pgx", plain).QueryContext(t.Context(), query+" -- pgx"))
			if !strings.Contains(want, "57014") {
				t.Fatalf("pgx itself: %s", want)
			}
			ours := open(t, "flightpg", dsn)
			// The timeout is the catalog's too.
			until(t, "the catalog is loaded", func() bool { return flightpg.RefreshCatalog(t.Context(), ours) == nil })
			check := func(callers int) {
				t.Helper()
				before, count := flightpg.ReadStats(ours), strings.Count(s.Log(), query+"\n")
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						if got := transcript(ours.QueryContext(t.Context(), query)); got != want {
							t.Errorf("flightpg: %s\npgx:      %s", got, want)
						}
					})
				}
				wg.Wait()
				st := flightpg.ReadStats(ours)
				flights := st.Flights - before.Flights
				if n := strings.Count(s.Log(), query+"\n") - count; uint64(n) != flights || flights == 0 || flights > 2 || st.Retries != 0 {
					t.Errorf("%d executions by %d flights, %d retries; want one each", n, flights, st.Retries)
				}
			}
			check(50)
			// Also on a connection whose last query was cancelled by its callers.
			ctx, cancel := context.WithCancel(t.Context())
			left := make(chan error, 1)
			go func() { left <- ours.QueryRowContext(ctx, "SELECT v + 1 FROM gate").Scan(new(int)) }()
			until(t, "the read waits", func() bool { return g.waiting() == 1 })
			cancel()
			<-left
			until(t, "nothing flies", func() bool { return flightpg.ReadStats(ours).Flying == 0 && g.waiting() == 0 })
			check(50)
		})
	}
}

// untilGone waits until there are no more goroutines than before.
func untilGone(t *testing.T, before int) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > before; time.Sleep(2 * time.Millisecond) { // nothing tells: polling
		if time.Now().After(deadline) {
			var left strings.Builder
			_ = pprof.Lookup("goroutine").WriteTo(&left, 1)
			t.Fatalf("%d goroutines after a minute; %d before:\n%s", runtime.NumGoroutine(), before, left.String())
		}
	}
}

// TestTooManyConnections takes all of the server's connections.
func TestTooManyConnections(t *testing.T) {
	s := pgtest.New(t, pgtest.WithSetting("max_connections", "12"), pgtest.WithSetting("superuser_reserved_connections", "3"))
	setUp(t, s.DSN())
	admin := connect(t, s.DSN()) // of those kept for superusers, as eye is
	if _, err := admin.Exec(t.Context(), "CREATE ROLE app LOGIN; GRANT ALL ON ALL TABLES IN SCHEMA public TO app; GRANT SELECT ON log TO app"); err != nil {
		t.Fatal(err)
	}
	g := newGate(t, s.DSN())
	g.exec("GRANT SELECT ON gate TO app")
	u, err := url.Parse(s.DSN())
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.User("app")
	dsn := u.String()

	backends := func() (n int) {
		t.Helper()
		if err := admin.QueryRow(t.Context(), "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	// take takes all that there is for the role: 12 less 3 that are kept for
	// superusers and the 3 that look on here. Backends that have ended count for a
	// moment longer than they are to be seen.
	const all = 6
	take := func(t *testing.T) (free func()) {
		t.Helper()
		until(t, "the connections are free", func() bool { return backends() == 0 })
		var taken []*pgx.Conn
		free = sync.OnceFunc(func() {
			for _, c := range taken {
				_ = c.Close(context.Background())
			}
		})
		t.Cleanup(free)
		until(t, "all connections are taken", func() bool {
			c, err := pgx.Connect(t.Context(), dsn)
			if err == nil {
				taken = append(taken, c)
			} else if !tooMany(err) {
				t.Fatal(err)
			}
			return len(taken) == all
		})
		return free
	}
	// outcome shortens the server's refusal: its words depend on who else is about
	// to log in.
	outcome := func(transcript string) string {
		if strings.HasPrefix(strings.TrimPrefix(transcript, "prepare: "), "*pgconn.ConnectError failed to connect to") && strings.Contains(transcript, "SQLSTATE 53300") {
			return "53300"
		}
		return transcript
	}
	const callers = 20

	for _, params := range []string{"", "flight_conns=2&session_conns=2", "flight_guard=transaction"} {
		t.Run("Full/params="+params, func(t *testing.T) {
			free := take(t)
			plain, ours := open(t, "pgx", dsn), open(t, "flightpg", with(dsn, params))
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for _, u := range uses {
				want := outcome(u.run(ctx, plain))
				if want != "53300" {
					t.Fatalf("%s over pgx: %s", u.name, want)
				}
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						if got := outcome(u.run(ctx, ours)); got != want {
							t.Errorf("%s:\nflightpg: %s\npgx:      %s", u.name, got, want)
						}
					})
				}
				wg.Wait()
			}
			if s := flightpg.ReadStats(ours); s.Flying != 0 || s.Waiting != 0 || s.Flights == 0 {
				t.Errorf("Stats = %+v; want flights, and nothing left", s)
			}
			free()
			until(t, "a connection is to be had", func() bool { return outcome(useNamed("Write").run(ctx, plain)) != "53300" })
			for _, u := range uses {
				var got string
				until(t, u.name+" meets no full server", func() bool { got = u.run(ctx, ours); return outcome(got) != "53300" })
				if strings.Contains(got, "Error") {
					t.Errorf("%s when connections are free again: %s", u.name, got)
				}
			}
			if err := flightpg.RefreshCatalog(ctx, ours); err != nil { // sooner than by itself
				t.Error(err)
			}
			before := flightpg.ReadStats(ours)
			useNamed("Read").run(ctx, ours)
			if s := flightpg.ReadStats(ours); s.Flights != before.Flights+1 {
				t.Errorf("Stats = %+v; want reads to be shared again", s)
			}
			plain.Close()
			ours.Close()
			until(t, "no backend is left", func() bool { return backends() == 0 })
		})
	}

	// Flights and sessions compete for the last connections: some callers fail, none
	// waits for ever, and afterwards all is well.
	t.Run("Compete", func(t *testing.T) {
		ours := open(t, "flightpg", dsn)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute) // each refusal costs the server a process
		defer cancel()
		var failed, ok int
		var mu sync.Mutex // guards both
		var wg sync.WaitGroup
		for caller := range 40 {
			wg.Go(func() {
				for i := range 10 {
					var err error
					switch (caller + i) % 4 {
					case 0:
						_, err = ours.ExecContext(ctx, "INSERT INTO log VALUES ('x')")
					case 1:
						var n int
						err = inTransaction(ctx, ours, func(tx *sql.Tx) error {
							// A shared read beside it, while its session is taken.
							if err := ours.QueryRowContext(ctx, "SELECT count(*) FROM items WHERE id > $1", caller*10+i).Scan(&n); err != nil {
								return err
							}
							return tx.QueryRowContext(ctx, "SELECT count(*) FROM log").Scan(&n)
						})
					default:
						var n int
						err = ours.QueryRowContext(ctx, "SELECT count(*) FROM items, generate_series(1, 100) WHERE id > $1", caller*10+i).Scan(&n)
					}
					mu.Lock()
					switch {
					case err == nil:
						ok++
					case tooMany(err):
						failed++
					default:
						t.Errorf("caller %d: %v; want success or SQLSTATE 53300", caller, err)
					}
					mu.Unlock()
				}
			})
		}
		wg.Wait()
		t.Logf("%d succeeded, %d met SQLSTATE 53300", ok, failed)
		until(t, "everything works again", func() bool {
			for _, u := range uses {
				if strings.Contains(u.run(ctx, ours), "Error") {
					return false
				}
			}
			return true
		})
	})

	// Idle connections of the one pool give way to the other's: the same callers
	// fail nowhere over pgx, whose one pool has them all.
	for _, last := range []string{"Write", "Read/NoTable"} {
		t.Run("IdleGivesWay/"+last, func(t *testing.T) {
			until(t, "the connections are free", func() bool { return backends() == 0 })
			ours := open(t, "flightpg", dsn)
			g.shut()
			done := make(chan error, 100)
			n := 0
			begin := func() {
				n++
				id := -n
				go func() {
					if last == "Write" {
						done <- ours.QueryRowContext(t.Context(), "SELECT v FROM gate WHERE v > $1", id).Scan(new(int))
						return
					}
					done <- inTransaction(t.Context(), ours, func(tx *sql.Tx) error {
						return tx.QueryRowContext(t.Context(), "SELECT v FROM gate WHERE v > $1", id).Scan(new(int))
					})
				}()
			}
			if last == "Write" {
				// The catalog is asked for by a flight connection, before.
				if err := flightpg.RefreshCatalog(t.Context(), ours); err != nil {
					t.Fatal(err)
				}
			}
			for backends() < all || n < all {
				begin()
				until(t, "the read waits at the gate", func() bool { return g.waiting() == n })
			}
			g.open()
			for range n {
				if err := <-done; err != nil {
					t.Fatal(err)
				}
			}
			if got := backends(); got != all {
				t.Fatalf("%d idle backends; want all %d: else the test shows nothing", got, all)
			}
			if got := useNamed(last).run(t.Context(), ours); strings.Contains(got, "Error") {
				t.Errorf("%s beside idle connections of the other pool: %s", last, got)
			}
			ours.Close()
		})
	}
}

func tooMany(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "53300"
}

func inTransaction(ctx context.Context, db *sql.DB, f func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	if err := f(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// TestUnixSocket does over a socket what is done over TCP elsewhere.
func TestUnixSocket(t *testing.T) {
	s := pgtest.Shared(t)
	if s.SocketDSN() == "" {
		t.Skip("NOT TESTED: the server has no Unix socket that leads here")
	}
	tcp := s.Database(t)
	setUp(t, tcp)
	g := newGate(t, tcp)
	cfg, err := pgconn.ParseConfig(s.SocketDSN())
	if err != nil {
		t.Fatal(err)
	}
	other, err := pgconn.ParseConfig(tcp)
	if err != nil {
		t.Fatal(err)
	}
	dir, name := cfg.Host, other.Database
	socket := fmt.Sprintf("postgres://%s@/%s?host=%s&port=%d&sslmode=disable", cfg.User, name, url.QueryEscape(dir), cfg.Port)

	t.Run("Compare", func(t *testing.T) {
		plain, ours := open(t, "pgx", socket), open(t, "flightpg", socket)
		for _, tc := range cases {
			for _, path := range paths {
				want := path.run(t.Context(), plain, tc.query, tc.args)
				var wg sync.WaitGroup
				for range 2 {
					wg.Go(func() {
						if got := path.run(t.Context(), ours, tc.query, tc.args); got != want {
							t.Errorf("%s on %s:\nflightpg: %s\npgx:      %s", tc.name, path.name, got, want)
						}
					})
				}
				wg.Wait()
			}
		}
	})
	until(t, "the database is ours", func() bool { return g.backends() == 0 })
	t.Run("Share", func(t *testing.T) {
		db := open(t, "flightpg", socket)
		storm(t, g, db, 200, 0, func() error { var v int; return db.QueryRow(gateQuery, 1).Scan(&v) })
	})
	for _, guard := range []string{"auto", "transaction"} {
		t.Run("Cancel/guard="+guard, func(t *testing.T) {
			until(t, "the database is ours", func() bool { return g.backends() == 0 })
			lastOneOut(t, g, open(t, "flightpg", with(socket, "flight_guard="+guard)), true)
		})
	}
	// All of these are one database, whose fences are shared.
	t.Run("Fences", func(t *testing.T) {
		ours := open(t, "flightpg", socket)
		for form, dsn := range map[string]string{
			"Same":          socket,
			"Keywords":      fmt.Sprintf("host=%s port=%d user=%s dbname=%s sslmode=disable", dir, cfg.Port, cfg.User, name),
			"Authority":     fmt.Sprintf("postgres://%s@%s:%d/%s", cfg.User, url.PathEscape(dir), cfg.Port, name),
			"OtherUser":     strings.Replace(socket, "postgres://"+cfg.User+"@", "postgres://"+cfg.User+":ignored@", 1),
			"TrailingSlash": strings.Replace(socket, url.QueryEscape(dir), url.QueryEscape(dir+"/"), 1),
		} {
			t.Run(form, func(t *testing.T) {
				writer := open(t, "flightpg", dsn)
				loaded(t, ours)
				g.shut()
				done := make(chan error, 2)
				read := func() { done <- ours.QueryRow(gateQuery, 1).Scan(new(int)) }
				go read()
				until(t, "the flight is dispatched", func() bool { return g.waiting() == 1 })
				before := flightpg.ReadStats(ours)
				if _, err := writer.ExecContext(t.Context(), "INSERT INTO log VALUES ('x')"); err != nil {
					t.Fatal(err)
				}
				go read() // must not join it
				until(t, "the second read waits", func() bool { return flightpg.ReadStats(ours).Waiting == 2 })
				g.open()
				for range 2 {
					if err := <-done; err != nil {
						t.Error(err)
					}
				}
				if s := flightpg.ReadStats(ours); s.Fenced != before.Fenced+1 || s.Joins != before.Joins {
					t.Errorf("Stats = %+v; want the second read fenced", s)
				}
			})
		}
	})
}
