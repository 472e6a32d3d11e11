//go:build unix

package integration

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// pgBouncer starts PgBouncer in front of the server of dsn and returns the DSN
// that leads through it to the same database. It has at most size connections to
// the server, and stops when the test ends. settings are further lines of its
// configuration.
func pgBouncer(t *testing.T, dsn, poolMode string, size int, settings ...string) (pooled string) {
	t.Helper()
	program := findPgBouncer(t)
	server, err := pgconn.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, d := range []string{filepath.Dir(dir), dir} { // PgBouncer's user must get there
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	// The port is free when it is chosen; that it still is when PgBouncer takes
	// it is likely, not certain.
	to := fmt.Sprintf("host=%s port=%d user=%s", quoted(server.Host), server.Port, quoted(server.User))
	if server.Password != "" {
		to += " password=" + quoted(server.Password)
	}
	var last error
	for range 5 {
		port := freePort(t)
		// No ignore_startup_parameters: pgx sends none that PgBouncer does not
		// know, and flightpg adds none.
		config := fmt.Sprintf(`[databases]
* = %s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = %s
default_pool_size = %d
max_client_conn = 1000
log_connections = 0
log_disconnections = 0
%s
`, to, port, poolMode, size, strings.Join(settings, "\n"))
		file := filepath.Join(dir, "pgbouncer.ini")
		if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
			t.Fatal(err)
		}
		pooled = fmt.Sprintf("postgres://%s@127.0.0.1:%d/%s?sslmode=disable", server.User, port, server.Database)
		if last = runPooler(t, "PgBouncer", pooled, syscall.SIGTERM, file+".log", program, file); last == nil {
			return pooled
		}
	}
	t.Fatal(last)
	return ""
}

func findPgBouncer(t *testing.T) string {
	t.Helper()
	return findPooler(t, "PgBouncer", "pgbouncer", "pgbouncer")
}

// findPooler returns a pooler's program. Where there is none, the test is skipped,
// except in CI.
func findPooler(t *testing.T, what, program, debian string) string {
	t.Helper()
	for _, dir := range []string{"", "/usr/sbin/", "/opt/homebrew/opt/" + program + "/bin/", "/usr/local/opt/" + program + "/bin/"} {
		if path, err := exec.LookPath(dir + program); err == nil {
			return path
		}
	}
	if ci() {
		t.Fatalf("there is no %s program: .ci/install installs it", program)
	}
	if _, said := noPooler.LoadOrStore(what, true); !said {
		fmt.Fprintf(os.Stderr, "\n*** There is no %s program.\n*** Flights through %s are NOT TESTED. Install it (apt-get install %s) to test what CI does.\n\n", program, what, debian)
	}
	t.Skipf("NOT TESTED: flights through %s: there is no %s program", what, program)
	return ""
}

var noPooler sync.Map // of those that it was said of

func quoted(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

func freePort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// runPooler starts a pooler, and returns when it takes connections. stop is the signal
// that ends it, whoever is connected.
func runPooler(t *testing.T, what, pooled string, stop syscall.Signal, logFile, program string, args ...string) error {
	t.Helper()
	out, err := os.Create(logFile)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: unprivileged(t)}
	tieToParent(cmd.SysProcAttr)

	ended := make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		// The tie is to the thread that starts it: keep that while it runs.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			ended <- cmd.Wait()
			close(ended)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	log := func() string { // its last words
		b, _ := os.ReadFile(logFile)
		return string(b[max(0, len(b)-2000):])
	}
	ready := false
	t.Cleanup(func() {
		select {
		case err := <-ended:
			if ready {
				t.Errorf("%s ended by itself: %v", what, err)
			}
		default:
		}
		_ = cmd.Process.Signal(stop)
		select {
		case <-ended:
		case <-time.After(10 * time.Second): // more than it ever takes
			t.Errorf("%s does not stop", what)
			_ = cmd.Process.Kill()
		}
		if t.Failed() {
			t.Logf("%s's log:\n%s", what, log())
		}
	})
	for deadline := time.Now().Add(30 * time.Second); ; {
		conn, err := pgx.Connect(t.Context(), pooled)
		if err == nil {
			ready = true
			return conn.Close(t.Context())
		}
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) || time.Now().After(deadline) {
			t.Fatalf("%s takes no connection: %v", what, err)
		}
		select {
		case err := <-ended:
			return fmt.Errorf("%s ended: %w\n%s", program, err, log())
		case <-time.After(5 * time.Millisecond): // nothing tells when it listens: polling
		}
	}
}

// unprivileged returns who a pooler runs as: PgBouncer refuses root.
func unprivileged(t *testing.T) *syscall.Credential {
	t.Helper()
	if os.Geteuid() != 0 {
		return nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	}
	t.Fatal("a pooler does not run as root, and there is no user postgres or nobody to run it as")
	return nil
}

// poolers are the kinds that give each flight a server connection for as long as
// its transaction lasts, or longer.
var poolers = []struct {
	mode string
	size int
}{{"transaction", 1}, {"transaction", 4}, {"session", 4}}

// shownGuard is a read that tells which guard it ran under. The function is
// STABLE by its own account, so the view may be shared where that is believed.
const (
	shownGuardSchema = `
CREATE FUNCTION shown() RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN
	RETURN current_setting('default_transaction_read_only') || '/' || current_setting('transaction_read_only');
END $$;
CREATE VIEW shown_guard AS SELECT shown() AS guard;
`
	shownGuard         = "SELECT guard FROM shown_guard"
	sessionGuarded     = "on/on"
	transactionGuarded = "off/on"
	unguarded          = "off/off"
)

// TestGuardDetection asks the server which guard flights run under, on
// connections that lead to it and on those that lead to PgBouncer.
func TestGuardDetection(t *testing.T) {
	check := func(t *testing.T, dsn, want string) {
		t.Helper()
		db := open(t, "flightpg", with(dsn, "flight_trust_declared=on"))
		defer db.Close() // before leftNothing wants the server connections
		loaded(t, db)
		for range 3 {
			var got string
			if err := db.QueryRowContext(t.Context(), shownGuard).Scan(&got); err != nil || got != want {
				t.Errorf("guard = %q, %v; want %q", got, err, want)
			}
		}
		if s := flightpg.ReadStats(db); s.Flights != 3 || len(s.Bypasses) != 0 {
			t.Errorf("Stats = %+v; want three flights: else the test shows nothing", s)
		}
	}
	create := func(t *testing.T, dsn string) {
		t.Helper()
		conn, err := pgx.Connect(t.Context(), dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.Exec(t.Context(), shownGuardSchema); err != nil {
			t.Fatal(err)
		}
	}
	forEachServer(t, func(t *testing.T, dsn string) {
		create(t, dsn)
		t.Run("Direct", func(t *testing.T) {
			check(t, dsn, sessionGuarded)
			check(t, with(dsn, "flight_guard=session"), sessionGuarded)
			check(t, with(dsn, "flight_guard=transaction"), transactionGuarded)
			check(t, with(dsn, "flight_guard=off"), unguarded)
		})
		for _, p := range poolers {
			t.Run(fmt.Sprintf("pool_mode=%s/size=%d", p.mode, p.size), func(t *testing.T) {
				pooled := pgBouncer(t, dsn, p.mode, p.size)
				eye := connect(t, dsn)
				for _, mode := range []string{"cache_statement", "exec", "cache_describe", "describe_exec", "simple_protocol"} {
					t.Run(mode, func(t *testing.T) {
						check(t, with(pooled, "default_query_exec_mode="+mode), transactionGuarded)
					})
				}
				leftNothing(t, pooled, p.size, eye)
			})
		}
		t.Run("pool_mode=session/flight_guard", func(t *testing.T) {
			// The user's own risk: what session pooling resets, nobody else sees.
			pooled := pgBouncer(t, dsn, "session", 4)
			check(t, with(pooled, "flight_guard=session"), sessionGuarded)
			check(t, with(pooled, "flight_guard=off"), unguarded)
			leftNothing(t, pooled, 4, connect(t, dsn))
		})
	})
	t.Run("UnixSocket", func(t *testing.T) {
		s := pgtest.Shared(t)
		if s.SocketDSN() == "" {
			t.Skip("NOT TESTED: the server has no Unix socket that leads here")
		}
		dsn := s.Database(t)
		create(t, dsn)
		database, err := pgconn.ParseConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		check(t, with(s.SocketDSN(), "database="+database.Database), sessionGuarded)
	})
}

// leftNothing looks at each of PgBouncer's connections to the server as another
// of its clients finds them: all at the same time, so that none is missed. eye and
// others are the connections that do not go through it.
func leftNothing(t *testing.T, pooled string, size int, eye *pgx.Conn, others ...*pgx.Conn) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	count := func(query string, args ...any) (n int) {
		t.Helper()
		if err := eye.QueryRow(ctx, query, args...).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	// What a pooler's server connection keeps, it keeps: nothing here times out.
	until(t, "no transaction is open", func() bool {
		return count(`SELECT count(*) FROM pg_stat_activity
			WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'`) == 0
	})
	if n := count(`SELECT count(*) FROM pg_locks
		WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`); n != 0 {
		t.Errorf("%d advisory locks are held; want 0", n)
	}
	if _, err := eye.Exec(ctx, "CREATE TABLE IF NOT EXISTS log (what text)"); err != nil {
		t.Fatal(err)
	}
	var clients []*pgx.Conn
	var pids []int32
	for _, other := range others {
		pids = append(pids, int32(other.PgConn().PID()))
	}
	for range size {
		client, err := pgx.Connect(ctx, with(pooled, "default_query_exec_mode=exec"))
		if err != nil {
			t.Fatal(err)
		}
		defer client.Close(context.WithoutCancel(ctx))
		clients = append(clients, client)
		if _, err := client.Exec(ctx, "BEGIN"); err != nil {
			t.Fatal(err)
		}
		var pid int32
		var byDefault, now string
		var prepared int
		err = client.QueryRow(ctx, `SELECT pg_backend_pid(), current_setting('default_transaction_read_only'),
			current_setting('transaction_read_only'), (SELECT count(*) FROM pg_prepared_statements)`).Scan(&pid, &byDefault, &now, &prepared)
		if err != nil {
			t.Fatal(err)
		}
		if byDefault != "off" || now != "off" || prepared != 0 {
			t.Errorf("another client finds default_transaction_read_only = %s, transaction_read_only = %s and %d prepared statements; want off, off and 0", byDefault, now, prepared)
		}
		if _, err := client.Exec(ctx, "INSERT INTO log VALUES ('another client')"); err != nil {
			t.Errorf("another client cannot write: %v", err)
		}
		pids = append(pids, pid)
	}
	// One may be about to close: of a PgBouncer that has stopped.
	until(t, "all of the server's connections were looked at", func() bool {
		return count(`SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
			AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND pid <> ALL($1)`, pids) == 0
	})
	for _, client := range clients {
		if _, err := client.Exec(ctx, "COMMIT"); err != nil {
			t.Errorf("another client: COMMIT = %v", err)
		}
	}
}

// TestPgBouncerLeavesNothing sends flights of all kinds through transaction
// pooling, and looks for what they left on server connections that others get.
func TestPgBouncerLeavesNothing(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		for s, size := range []int{1, 4} {
			t.Run(fmt.Sprintf("size=%d", size), func(t *testing.T) {
				pooled := pgBouncer(t, dsn, "transaction", size)
				for m, mode := range []string{"exec", "cache_describe", "simple_protocol", "cache_statement"} {
					t.Run(mode, func(t *testing.T) {
						if testing.Short() && m%2 != s {
							t.Skip("NOT RUN with -short: it is with the other size")
						}
						eye := connect(t, dsn)
						before := rollbacks(t, eye)
						// Most of these reads are proven: only by name the guard is theirs.
						guard := []string{"auto", "transaction"}[(m/2+s)%2]
						s := mixedFlights(t, with(pooled, "flight_max_result=10kB&flight_guard="+guard+"&default_query_exec_mode="+mode), mode != "cache_statement")
						if s.Flights < 1000 || s.Joins == 0 || s.Cancelled == 0 || s.Overflows == 0 || s.Refused != 0 {
							t.Errorf("Stats = %+v; want 1,000 flights with joins, cancellations and overflows, none refused", s)
						}
						leftNothing(t, pooled, size, eye)
						if guard == "auto" {
							return
						}
						// Its backends report them with some seconds' delay.
						until(t, "the server has rolled back 1,000 transactions", func() bool { return rollbacks(t, eye)-before >= 1000 })
						t.Logf("%d rolled back; %+v", rollbacks(t, eye)-before, s)
					})
				}
			})
		}
	})
}

// mixedFlights lets 16 callers read, and returns the figures when nothing flies
// any more.
func mixedFlights(t *testing.T, dsn string, own bool) flightpg.Stats {
	t.Helper()
	db := open(t, "flightpg", dsn)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for caller := range 16 {
		wg.Go(func() {
			for i := range 128 {
				if err := anyRead(ctx, db, caller, i, own); err != nil {
					t.Errorf("caller %d, read %d: %v", caller, i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	until(t, "nothing flies", func() bool {
		s := flightpg.ReadStats(db)
		return s.Flying == 0 && s.Waiting == 0 && s.BufferedBytes == 0
	})
	return flightpg.ReadStats(db)
}

// rollbacks returns how many transactions of the database were rolled back, as
// far as the server has told.
func rollbacks(t *testing.T, eye *pgx.Conn) (n int64) {
	t.Helper()
	err := eye.QueryRow(t.Context(), "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()").Scan(&n)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// anyRead runs one of many reads and checks what came of it. own: callers may run
// one themselves when it is too large to share. (With pgx's default mode they
// prepare it by a name, which transaction pooling does not allow.)
func anyRead(ctx context.Context, db *sql.DB, caller, i int, own bool) error {
	id := caller*1000 + i
	var n int
	wantCode := func(err error, code string) error {
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != code {
			return fmt.Errorf("error %v; want SQLSTATE %s", err, code)
		}
		return nil
	}
	switch i % 8 {
	case 0: // hot
		err := db.QueryRowContext(ctx, "SELECT count(*) FROM items WHERE id > $1", 10).Scan(&n)
		if err == nil && n != 190 {
			err = fmt.Errorf("count = %d; want 190", n)
		}
		return err
	case 1:
		return wantCode(db.QueryRowContext(ctx, "SELECT $1::int / 0", id).Scan(&n), "22012") // division_by_zero
	case 2:
		rows, err := db.QueryContext(ctx, "SELECT 10 / (5 - g) FROM generate_series(1, 8 + $1::int) g", id)
		if err != nil {
			return wantCode(err, "22012")
		}
		defer rows.Close()
		for rows.Next() {
		}
		return wantCode(rows.Err(), "22012")
	case 3:
		return wantCode(db.QueryRowContext(ctx, "SELECT nothing FROM items WHERE id = $1", id).Scan(&n), "42703") // undefined_column
	case 4: // its caller leaves, mostly
		ctx, cancel := context.WithTimeout(ctx, time.Duration(rand.IntN(5000))*time.Microsecond)
		defer cancel()
		err := db.QueryRowContext(ctx, "SELECT count(*) FROM generate_series(1, 50000 + $1::int)", id).Scan(&n)
		if ctx.Err() != nil {
			return nil
		}
		return err
	case 5: // too large; the text is new, so nobody knows
		text := fmt.Sprintf("SELECT g, repeat('x', 100) FROM generate_series(1, 500) g WHERE g <> -%d ORDER BY g", id)
		if own && i%16 == 5 {
			text = fmt.Sprintf("SELECT g, repeat('x', 100) FROM generate_series(1, 500) g WHERE g <> -%d ORDER BY g", i)
		}
		rows, err := db.QueryContext(ctx, text)
		if err != nil {
			return err
		}
		defer rows.Close()
		for n < 500 && rows.Next() {
			var g int
			var x string
			n++
			if err := rows.Scan(&g, &x); err != nil || g != n || len(x) != 100 {
				return fmt.Errorf("row %d: %d, %d bytes, %w", n, g, len(x), err)
			}
			if i%3 == 0 && n == 300 {
				return rows.Close() // leaves the rest
			}
		}
		return rows.Err()
	default: // of this caller alone
		var name string
		err := db.QueryRowContext(ctx, "SELECT name || $2 FROM items WHERE id = $1", 1+id%200, strconv.Itoa(id)).Scan(&name)
		if want := fmt.Sprintf("item %d%d", 1+id%200, id); err == nil && name != want {
			err = fmt.Errorf("name = %q; want %q", name, want)
		}
		return err
	}
}

// asksInTwoSteps reports whether a call asks pgx for a mode that describes first
// and executes then, in two trips: on two server connections, if others come between.
func asksInTwoSteps(args []any) bool {
	return slices.ContainsFunc(args, func(arg any) bool {
		mode, ok := arg.(pgx.QueryExecMode)
		return ok && mode != pgx.QueryExecModeExec && mode != pgx.QueryExecModeSimpleProtocol
	})
}

// TestPgBouncerCompare is TestCompare through PgBouncer. Through transaction
// pooling it takes what pgx supports there: the exec modes that use no names and
// no two steps, and the paths without prepared statements.
func TestPgBouncerCompare(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		for _, tc := range []struct {
			poolMode string
			size     int
			modes    []string
			paths    []string
		}{
			{"transaction", 4, []string{"exec", "cache_describe", "simple_protocol"}, []string{"DB", "Tx", "Exec"}},
			{"transaction", 1, []string{"exec"}, []string{"DB", "Tx", "Exec"}},
			{"session", 40, []string{"cache_statement", "exec"}, []string{"DB", "Stmt", "Conn", "Tx", "TxStmt", "Exec"}},
		} {
			pooled := pgBouncer(t, dsn, tc.poolMode, tc.size)
			for _, mode := range tc.modes {
				t.Run(fmt.Sprintf("pool_mode=%s/size=%d/%s", tc.poolMode, tc.size, mode), func(t *testing.T) {
					native := with(pooled, "default_query_exec_mode="+mode)
					plain, ours := open(t, "pgx", native), open(t, "flightpg", native)
					for _, c := range cases {
						if tc.poolMode == "transaction" && asksInTwoSteps(c.args) {
							continue
						}
						for _, path := range paths {
							if !slices.Contains(tc.paths, path.name) {
								continue
							}
							want := path.run(t.Context(), plain, c.query, c.args)
							var wg sync.WaitGroup
							for range 4 {
								wg.Go(func() {
									if got := path.run(t.Context(), ours, c.query, c.args); got != want {
										t.Errorf("%s on %s:\nflightpg: %s\npgx:      %s", c.name, path.name, got, want)
									}
								})
							}
							wg.Wait()
						}
					}
					if s := flightpg.ReadStats(ours); s.Flights == 0 || s.Refused != 0 || s.Flying != 0 || s.Waiting != 0 {
						t.Errorf("Stats = %+v; want flights, none refused, nothing left", s)
					}
				})
			}
		}
	})
}

// TestPgBouncerSharedReads reads through transaction pooling in pgx's modes,
// and with prepared statements: also where pgx itself fails there, or gets
// the rows of another statement, since it prepares by name or in two steps.
// Flights do neither. What is shared must be as on a direct connection.
func TestPgBouncerSharedReads(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		for m, mode := range []string{"cache_statement", "describe_exec", "exec", "simple_protocol"} {
			t.Run(mode, func(t *testing.T) {
				param := "default_query_exec_mode=" + mode
				reads := sharedReads(t, with(dsn, param))
				for s, size := range []int{1, 4} {
					t.Run(fmt.Sprintf("size=%d", size), func(t *testing.T) {
						if testing.Short() && m%2 != s {
							t.Skip("NOT RUN with -short: it is with the other size")
						}
						pooled := pgBouncer(t, dsn, "transaction", size)
						db := open(t, "flightpg", with(pooled, param))
						loaded(t, db)
						var wg sync.WaitGroup
						for range 8 {
							wg.Go(func() {
								// Each in an order of its own: the server connections
								// get the statements mixed.
								for _, i := range rand.Perm(len(reads)) {
									r := reads[i]
									if got := r.run(t.Context(), db); got != r.want {
										t.Errorf("%s:\nthrough PgBouncer: %s\ndirect:            %s", r.name, got, r.want)
									}
								}
							})
						}
						wg.Wait()
						s := flightpg.ReadStats(db)
						t.Logf("%d kinds of reads; %+v", len(reads), s)
						if s.Flights == 0 || len(s.Bypasses) > 0 {
							t.Errorf("Stats = %+v; want flights only", s)
						}
						leftNothing(t, pooled, size, connect(t, dsn))
					})
				}
			})
		}
	})
}

// sharedRead is a query that flightpg shares, on one path.
type sharedRead struct {
	name string
	run  func(ctx context.Context, db *sql.DB) string
	want string // pgx's transcript
}

// sharedReads returns those of the cases that flightpg shares.
func sharedReads(t *testing.T, dsn string) (reads []sharedRead) {
	t.Helper()
	plain := open(t, "pgx", dsn)
	defer plain.Close() // leftNothing wants to see PgBouncer's connections only

	dbAndStmt := paths[:2]
	for _, path := range dbAndStmt {
		for _, c := range cases {
			ours := open(t, "flightpg", dsn)
			r := sharedRead{
				name: c.name + " on " + path.name,
				run:  func(ctx context.Context, db *sql.DB) string { return path.run(ctx, db, c.query, c.args) },
			}
			r.want = r.run(t.Context(), plain)
			got := r.run(t.Context(), ours)
			s := flightpg.ReadStats(ours)
			if s.Bypasses[flightpg.ReasonCatalogUnavailable] > 0 { // in time
				loaded(t, ours)
				before := s.Flights
				got = r.run(t.Context(), ours)
				s = flightpg.ReadStats(ours)
				s.Flights -= before
				delete(s.Bypasses, flightpg.ReasonCatalogUnavailable)
			}
			_ = ours.Close()
			if s.Flights == 0 || len(s.Bypasses) > 0 {
				continue // on a session of its own, where the mode is pgx's affair
			}
			if got != r.want {
				t.Errorf("%s, without PgBouncer:\nflightpg: %s\npgx:      %s", r.name, got, r.want)
			}
			reads = append(reads, r)
		}
	}
	if len(reads) < 60 {
		t.Fatalf("only %d of the cases are shared: the test shows little", len(reads))
	}
	return reads
}

// TestPgBouncerBackends is TestBackends through PgBouncer.
func TestPgBouncerBackends(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		g := newGate(t, dsn)
		for _, p := range poolers {
			t.Run(fmt.Sprintf("pool_mode=%s/size=%d/callers=500", p.mode, p.size), func(t *testing.T) {
				until(t, "the database is ours", func() bool { return g.backends() == 0 })
				db := open(t, "flightpg", pgBouncer(t, dsn, p.mode, p.size))
				storm(t, g, db, 500, 0, func() error {
					var v int
					return db.QueryRow(gateQuery, 1).Scan(&v)
				})
				if s := flightpg.ReadStats(db); s.Flights != 1 || len(s.Bypasses) > 0 {
					t.Errorf("Stats = %+v; want one flight", s)
				}
			})
		}
	})
}

// TestPgBouncerFlightConns: flights have all of flight_conns, and not one more, where the
// pipeline finds a pooler and leaves its part to the generic executor.
func TestPgBouncerFlightConns(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		g := newGate(t, dsn)
		const conns, callers = 16, 24
		db := open(t, "flightpg", with(pgBouncer(t, dsn, "session", 2*callers), "flight_conns="+strconv.Itoa(conns)))
		loaded(t, db)
		g.shut()
		var all sync.WaitGroup
		for i := range callers {
			all.Go(func() {
				var v int
				if err := db.QueryRow(gateQuery, i).Scan(&v); i != 1 && !errors.Is(err, sql.ErrNoRows) || i == 1 && err != nil {
					t.Errorf("caller %d: %v", i, err)
				}
			})
		}
		until(t, "all are used", func() bool { return g.waiting() == conns && flightpg.ReadStats(db).Waiting == callers })
		if s := flightpg.ReadStats(db); s.FlightBackends != conns || s.SessionBackends > 0 || g.waiting() != conns {
			t.Errorf("%d backends of flights, %d of sessions, %d reads under way; want %d of flights, all in use", s.FlightBackends, s.SessionBackends, g.waiting(), conns)
		}
		g.open()
		all.Wait()
	})
}

// TestPgBouncerCancel lets the last caller of a flight leave: its cancel request
// must pass through PgBouncer, and the server connection serve others at once.
func TestPgBouncerCancel(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		g := newGate(t, dsn)
		for _, p := range poolers {
			t.Run(fmt.Sprintf("pool_mode=%s/size=%d", p.mode, p.size), func(t *testing.T) {
				pooled := pgBouncer(t, dsn, p.mode, p.size)
				for _, mode := range []string{"cache_statement", "exec", "simple_protocol"} {
					for _, first := range []bool{true, false} { // the text's first flight asks for its types
						t.Run(fmt.Sprintf("%s/first=%v", mode, first), func(t *testing.T) {
							db := open(t, "flightpg", with(pooled, "default_query_exec_mode="+mode))
							lastOneOut(t, g, db, first)
							_ = db.Close() // session pooling: gives the server connection back
							leftNothing(t, pooled, p.size, g.eye, g.conn)
						})
					}
				}
			})
		}
	})
}

func lastOneOut(t *testing.T, g *gate, db *sql.DB, first bool) {
	read := func(ctx context.Context) error {
		var v int
		return db.QueryRowContext(ctx, gateQuery, 1).Scan(&v)
	}
	loaded(t, db)
	if !first {
		if err := read(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	g.shut()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if err := read(ctx); !errors.Is(err, context.Canceled) {
				t.Errorf("QueryRow = %v; want %v", err, context.Canceled)
			}
		})
	}
	until(t, "the query waits at the gate", func() bool { return g.waiting() == 1 && flightpg.ReadStats(db).Waiting == 10 })
	cancel()
	wg.Wait()
	until(t, "the query is gone from the server", func() bool { return g.waiting() == 0 })
	until(t, "the flight has landed", func() bool { return flightpg.ReadStats(db).Flying == 0 })
	if s := flightpg.ReadStats(db); s.Cancelled != 1 || s.FlightBackends != 1 {
		t.Errorf("Stats = %+v; want one cancelled flight, its connection kept", s)
	}
	g.open()
	ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := read(ctx); err != nil {
		t.Errorf("the next read: %v", err)
	}
	if s := flightpg.ReadStats(db); s.FlightBackends != 1 || s.Retries != 0 {
		t.Errorf("Stats = %+v; want the same connection to serve the next flight", s)
	}
}

// TestPgBouncerStatementPooling reads where PgBouncer refuses transactions: what is
// proven is shared. For everything else no guard is possible: once it has been asked
// for, nothing is shared, and everything works as with pgx.
func TestPgBouncerStatementPooling(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		if _, err := connect(t, dsn).Exec(t.Context(), "CREATE VIEW item_names AS SELECT id, name FROM items"); err != nil {
			t.Fatal(err)
		}
		for _, size := range []int{1, 4} {
			pooled := pgBouncer(t, dsn, "statement", size)
			for _, mode := range []string{"exec", "cache_describe", "simple_protocol"} {
				t.Run(fmt.Sprintf("size=%d/%s", size, mode), func(t *testing.T) {
					native := with(pooled, "default_query_exec_mode="+mode)
					plain, db := open(t, "pgx", native), open(t, "flightpg", native)
					loaded(t, db)
					const callers = 20
					read := func(query string) flightpg.Stats {
						t.Helper()
						var want string
						if err := plain.QueryRowContext(t.Context(), query, 7).Scan(&want); err != nil {
							t.Fatalf("pgx itself: %v", err)
						}
						var wg sync.WaitGroup
						for range callers {
							wg.Go(func() {
								var got string
								if err := db.QueryRowContext(t.Context(), query, 7).Scan(&got); err != nil || got != want {
									t.Errorf("name = %q, %v; want %q", got, err, want)
								}
							})
						}
						wg.Wait()
						return flightpg.ReadStats(db)
					}
					s := read("SELECT name FROM items WHERE id = $1")
					if s.Flights+s.Joins != callers || len(s.Bypasses) > 0 {
						t.Errorf("Stats = %+v; want %d proven reads shared", s, callers)
					}
					s = read("SELECT name FROM item_names WHERE id = $1")
					if _, err := db.ExecContext(t.Context(), "INSERT INTO log VALUES ('x')"); err != nil {
						t.Errorf("INSERT: %v", err)
					}
					unshared := uint64(0)
					for why, n := range s.Bypasses {
						if why.String() == "no-guard" {
							unshared = n
						}
					}
					if unshared != callers {
						t.Errorf("Stats = %+v; want %d reads unshared for want of a guard", s, callers)
					}
				})
			}
		}
	})
}

// TestPgBouncerBusy reads while all server connections are taken. PgBouncer has
// one SQLSTATE for every complaint, that of a refused transaction too; this one
// passes, and sharing must go on.
func TestPgBouncerBusy(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		setUp(t, dsn)
		pooled := pgBouncer(t, dsn, "transaction", 1, "query_wait_timeout = 1")
		for _, mode := range []string{"exec", "simple_protocol"} { // in a pipeline, and in steps
			t.Run(mode, func(t *testing.T) {
				plain := connect(t, with(pooled, "default_query_exec_mode=exec"))
				db := open(t, "flightpg", with(pooled, "default_query_exec_mode="+mode))
				loaded(t, db)
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				read := func() (n int, err error) {
					err = db.QueryRowContext(ctx, "SELECT count(*) FROM items").Scan(&n)
					return n, err
				}
				if n, err := read(); err != nil || n != 200 {
					t.Fatalf("read = %d, %v; want 200", n, err)
				}
				if _, err := plain.Exec(ctx, "BEGIN"); err != nil {
					t.Fatal(err)
				}
				var pgErr *pgconn.PgError
				if _, err := read(); !errors.As(err, &pgErr) || pgErr.Code != "08P01" {
					t.Errorf("read beside a taken pool = %v; want what PgBouncer says, with SQLSTATE 08P01", err)
				}
				if _, err := plain.Exec(ctx, "COMMIT"); err != nil {
					t.Fatal(err)
				}
				before := flightpg.ReadStats(db)
				if n, err := read(); err != nil || n != 200 {
					t.Errorf("read = %d, %v; want 200", n, err)
				}
				if s := flightpg.ReadStats(db); s.Flights != before.Flights+1 || len(s.Bypasses) > 0 {
					t.Errorf("Stats = %+v; want a flight again, no bypass", s)
				}
			})
		}
	})
}
