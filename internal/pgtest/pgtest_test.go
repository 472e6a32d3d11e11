//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package pgtest

import (
	"context"
	"errors"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/leak"
)

func TestMain(m *testing.M) {
	if os.Getenv(childEnv) != "" {
		childMain()
		return
	}
	leak.Main(func() int { return Run(m) })
}

// queryString returns the one value that a query gives.
func queryString(t *testing.T, dsn, sql string) string {
	t.Helper()
	s, err := query(t.Context(), dsn, sql)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func query(ctx context.Context, dsn, sql string) (s string, err error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return "", err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	err = conn.QueryRow(ctx, sql).Scan(&s)
	return s, err
}

func TestServer(t *testing.T) {
	ownServer(t)
	begin := time.Now()
	s := New(t, WithSetting("max_connections", "33"), WithSetting("cluster_name", `it's a \ name`),
		WithPreload("pg_stat_statements", "no_such_extension"))
	t.Logf("started after %v", time.Since(begin).Round(time.Millisecond))

	t.Run("ListensOnLoopbackAndSocket", func(t *testing.T) {
		const where = "select coalesce(host(inet_server_addr()), 'socket')"
		if got := queryString(t, s.DSN(), where); got != "127.0.0.1" {
			t.Errorf("DSN leads to %s; want 127.0.0.1", got)
		}
		if got := queryString(t, s.SocketDSN(), where); got != "socket" {
			t.Errorf("SocketDSN leads to %s; want socket", got)
		}
		if got := queryString(t, s.DSN(), "show listen_addresses"); got != "127.0.0.1" {
			t.Errorf("listen_addresses = %s; want 127.0.0.1", got)
		}
	})
	t.Run("Settings", func(t *testing.T) {
		for name, want := range map[string]string{
			"max_connections": "33", "cluster_name": `it's a \ name`, "fsync": "off", "timezone": "UTC",
			"server_encoding": "UTF8", "lc_collate": "C",
		} {
			if got := queryString(t, s.DSN(), "select setting from pg_settings where name ilike '"+name+"' union all "+
				"select datcollate from pg_database where datname = current_database() and '"+name+"' = 'lc_collate' limit 1"); got != want {
				t.Errorf("%s = %s; want %s", name, got, want)
			}
		}
	})
	t.Run("Preload", func(t *testing.T) {
		has, err := s.HasExtension(t.Context(), "pg_stat_statements")
		if err != nil {
			t.Fatal(err)
		}
		want := ""
		if has {
			want = "pg_stat_statements"
		}
		if got := queryString(t, s.DSN(), "show shared_preload_libraries"); got != want {
			t.Errorf("shared_preload_libraries = %q; want %q", got, want)
		}
		if has, err := s.HasExtension(t.Context(), "no_such_extension"); has || err != nil {
			t.Errorf("HasExtension(no_such_extension) = %v, %v; want false, nil", has, err)
		}
	})
	t.Run("Databases", func(t *testing.T) {
		a, b := s.Database(t), s.Database(t)
		queryString(t, a, "with x as (select 1) select 'create' from x")
		if an, bn := queryString(t, a, "select current_database()"), queryString(t, b, "select current_database()"); an == bn {
			t.Errorf("two databases are both named %s", an)
		}
		if err := s.DropDatabase(t.Context(), s.DSN()); err == nil {
			t.Error("DropDatabase of postgres = nil; want an error")
		}
		dsn, err := s.NewDatabase(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		conn, err := pgx.Connect(t.Context(), dsn) // does not prevent the drop
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if err := s.DropDatabase(t.Context(), dsn); err != nil {
			t.Error(err)
		}
		if err := conn.Ping(t.Context()); err == nil {
			t.Error("the session in the dropped database lives on")
		}
	})
}

func TestWithFile(t *testing.T) {
	ownServer(t)
	s := New(t, WithFile("pg_hba.conf", "host all postgres 127.0.0.1/32 trust\n"), WithFile("extra.conf", "work_mem = '1234kB'\n"),
		WithSetting("include_if_exists", "data/extra.conf"))
	if got := queryString(t, s.DSN(), "show work_mem"); got != "1234kB" {
		t.Errorf("work_mem = %s; want what the file says, 1234kB", got)
	}
	if _, err := query(t.Context(), s.SocketDSN(), "select 'in'"); err == nil || !strings.Contains(err.Error(), "no pg_hba.conf entry") {
		t.Errorf("over the socket: %v; want to be refused", err)
	}
	queryString(t, s.Database(t), "select 'in'")
}

func TestWithStandbyOf(t *testing.T) {
	ownServer(t)
	primary := New(t)
	const recovery = "select pg_is_in_recovery()::text"
	before := primary.DSN()
	standby := New(t, WithStandbyOf(primary))
	if primary.DSN() != before {
		t.Errorf("the primary moved from %s to %s", before, primary.DSN())
	}
	for dsn, want := range map[string]string{primary.DSN(): "false", standby.DSN(): "true"} {
		if got := queryString(t, dsn, recovery); got != want {
			t.Errorf("%s: in recovery = %s; want %s", dsn, got, want)
		}
	}
	name := queryString(t, primary.Database(t), "select current_database()")       // the standby must hear of it
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(pollInterval) { // nothing tells: polling
		if queryString(t, standby.DSN(), "select count(*)::text from pg_database where datname = '"+name+"'") == "1" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the standby does not follow:\n%s", standby.Log())
		}
	}
	if got := queryString(t, standby.DSN(), "select pg_promote()::text"); got != "true" {
		t.Errorf("pg_promote = %s; want true", got)
	}
	if got := queryString(t, standby.DSN(), recovery); got != "false" {
		t.Errorf("promoted: in recovery = %s; want false", got)
	}
	if err := primary.Crash(t.Context(), syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if _, err := Start(t.Context(), WithStandbyOf(primary)); err == nil || !strings.Contains(err.Error(), "down") {
		t.Errorf("Start as the standby of a dead server = %v; want an error that says so", err)
	}
}

// Options that only PostgreSQL's programs can follow say so elsewhere.
func TestProgramsOnly(t *testing.T) {
	ownServer(t)
	other := New(t)
	t.Setenv(EnvDSN, other.DSN())
	for name, opt := range map[string]Option{"WithFile": WithFile("x", ""), "WithStandbyOf": WithStandbyOf(other)} {
		if _, err := Start(t.Context(), opt); !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), name) {
			t.Errorf("Start with %s on the server of %s = %v; want %v that names it", name, EnvDSN, err, errors.ErrUnsupported)
		}
	}
	external, err := Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer external.Stop()
	t.Setenv(EnvDSN, "")
	if _, err := Start(t.Context(), WithStandbyOf(external)); !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("Start as the standby of another's server = %v; want %v", err, errors.ErrUnsupported)
	}
}

func TestServer_Stop(t *testing.T) {
	ownServer(t)
	s, err := Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pgx.Connect(t.Context(), s.DSN()) // open sessions don't hinder it
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	dir := s.inst.(*cluster).dir
	begin := time.Now()
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("stopped after %v", time.Since(begin).Round(time.Millisecond))
	if exists(dir) {
		t.Errorf("%s is still there", dir)
	}
	if pid := s.PID(); pid != 0 {
		t.Errorf("PID = %d; want 0", pid)
	}
	if err := s.Stop(); err != nil {
		t.Errorf("second Stop = %v; want nil", err)
	}
	if _, err := s.NewDatabase(t.Context()); err == nil {
		t.Error("NewDatabase after Stop = nil; want an error")
	}
}

func TestServer_Restart(t *testing.T) {
	ownServer(t)
	s := New(t)
	dsn := s.Database(t)
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "create table kept as select 'kept' as v"); err != nil {
		t.Fatal(err)
	}

	pid := s.PID()
	if err := s.Restart(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s.PID() == pid {
		t.Error("Restart left the postmaster as it was")
	}
	if err := conn.Ping(t.Context()); err == nil {
		t.Error("a session survived Restart")
	}
	for _, sig := range crashSignals {
		if err := s.Crash(t.Context(), sig); err != nil {
			t.Fatalf("Crash(%v) = %v", sig, err)
		}
		if s.PID() != 0 {
			t.Errorf("PID after Crash(%v) = %d; want 0", sig, s.PID())
		}
		if err := s.Crash(t.Context(), sig); err == nil {
			t.Error("Crash of a crashed server = nil; want an error")
		}
		if err := s.Restart(t.Context()); err != nil {
			t.Fatalf("Restart after Crash(%v) = %v", sig, err)
		}
		if got := queryString(t, dsn, "select v from kept"); got != "kept" {
			t.Errorf("after Crash(%v), v = %q; want kept", sig, got)
		}
	}
}

func TestStart_Fails(t *testing.T) {
	ownServer(t)
	t.Run("BadSetting", func(t *testing.T) {
		_, err := Start(t.Context(), WithSetting("max_connections", "none"))
		if err == nil || !strings.Contains(err.Error(), "max_connections") {
			t.Errorf("Start = %v; want the server's words on max_connections", err)
		}
	})
	t.Run("BadName", func(t *testing.T) {
		if _, err := Start(t.Context(), WithSetting("a = 1\nb", "")); err == nil {
			t.Error("Start = nil; want an error")
		}
	})
	t.Run("Context", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := Start(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("Start = %v; want %v", err, context.Canceled)
		}
	})
	t.Run("NoPrograms", func(t *testing.T) {
		t.Setenv(EnvBin, t.TempDir())
		if _, err := Start(t.Context()); err == nil || !strings.Contains(err.Error(), EnvBin) {
			t.Errorf("Start = %v; want an error that names %s", err, EnvBin)
		}
		if _, err := Start(t.Context(), WithBinDir(t.TempDir())); err == nil || !strings.Contains(err.Error(), "WithBinDir") {
			t.Errorf("Start = %v; want an error that names WithBinDir", err)
		}
	})
}

func TestNotFoundError(t *testing.T) {
	reason := errors.New("docker is not installed")
	text := (&NotFoundError{Docker: reason}).Error()
	for _, want := range []string{EnvDSN, EnvBin, reason.Error(), "Install one:\n\t"} {
		if !strings.Contains(text, want) {
			t.Errorf("the error lacks %q:\n%s", want, text)
		}
	}
	for _, tt := range []struct{ goos, manager, want string }{
		{"linux", "apt-get", "apt-get install -y postgresql"},
		{"linux", "apk", "apk add postgresql postgresql-contrib"},
		{"linux", "", "scripts/fetch-postgres 17"},
		{"darwin", "", "brew install postgresql@17"},
	} {
		got := installLine(tt.goos, func(name string) (string, error) {
			if name == tt.manager {
				return name, nil
			}
			return "", exec.ErrNotFound
		})
		if got != tt.want {
			t.Errorf("installLine(%s, %s) = %q; want %q", tt.goos, tt.manager, got, tt.want)
		}
	}
}

func TestNewest(t *testing.T) {
	dirs := []string{"/usr/lib/postgresql/9.6/bin", "/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/10/bin"}
	slices.SortFunc(dirs, func(a, b string) int { return slices.Compare(versionNumbers(a), versionNumbers(b)) })
	if dirs[2] != "/usr/lib/postgresql/17/bin" || dirs[0] != "/usr/lib/postgresql/9.6/bin" {
		t.Errorf("sorted by version: %v", dirs)
	}
}

func TestExternal(t *testing.T) {
	ownServer(t)
	other := New(t)
	const names = "select string_agg(datname, ' ' order by datname) from pg_database"
	before := queryString(t, other.DSN(), names)

	socket, err := url.Parse(other.SocketDSN())
	if err != nil {
		t.Fatal(err)
	}
	for name, dsn := range map[string]string{
		"URL":       other.DSN(),
		"SocketURL": other.SocketDSN(),
		"Query":     other.DSN() + "&dbname=template1",
		"Keywords":  "host=" + socket.Query().Get("host") + " port = " + socket.Query().Get("port") + " user='postgres' dbname=postgres",
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv(EnvDSN, dsn)
			s, err := Start(t.Context(), WithSetting("work_mem", "1234kB"))
			if err != nil {
				t.Fatal(err)
			}
			defer s.Stop() // of a test that fails before it does
			more, err := s.NewDatabase(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			var made []string
			for _, dsn := range []string{s.DSN(), more} {
				db := queryString(t, dsn, "select current_database()")
				if !strings.HasPrefix(db, "flightpg_test_") {
					t.Errorf("%s leads to database %s", dsn, db)
				}
				made = append(made, db)
				if got := queryString(t, dsn, "show work_mem"); got != "1234kB" {
					t.Errorf("work_mem = %s; want 1234kB", got)
				}
			}
			want := strings.Fields(before)
			want = append(want, made...)
			slices.Sort(want)
			if got := queryString(t, other.DSN(), names); got != strings.Join(want, " ") {
				t.Errorf("databases while it runs: %s; want %s", got, want)
			}
			if err := s.Restart(t.Context()); !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("Restart = %v; want %v", err, errors.ErrUnsupported)
			}
			if err := s.Stop(); err != nil {
				t.Fatal(err)
			}
			if got := queryString(t, other.DSN(), names); got != before {
				t.Errorf("databases after Stop: %s; want %s", got, before)
			}
		})
	}

	t.Run("SettingOfTheServer", func(t *testing.T) {
		t.Setenv(EnvDSN, other.DSN())
		if _, err := Start(t.Context(), WithSetting("max_connections", "12345")); err == nil || !strings.Contains(err.Error(), "max_connections") {
			t.Errorf("Start = %v; want an error that names max_connections", err)
		}
		if got := queryString(t, other.DSN(), names); got != before {
			t.Errorf("databases after a failed Start: %s; want %s", got, before)
		}
	})
	t.Run("Unreachable", func(t *testing.T) {
		t.Setenv(EnvDSN, "postgres://user:secret@127.0.0.1:1/x")
		_, err := Start(t.Context())
		if err == nil || !strings.Contains(err.Error(), EnvDSN) || strings.Contains(err.Error(), "secret") {
			t.Errorf("Start = %v; want an error that names %s and hides the password", err, EnvDSN)
		}
	})
	t.Run("Malformed", func(t *testing.T) {
		for _, dsn := range []string{"postgres://user:secret@%zz/x", "password='secret", "secret"} {
			t.Setenv(EnvDSN, dsn)
			_, err := Start(t.Context())
			if err == nil || strings.Contains(err.Error(), "secret") {
				t.Errorf("Start with %s = %v; want an error that hides the password", dsn, err)
			}
		}
	})
}

func TestKeywordValues(t *testing.T) {
	for dsn, want := range map[string]string{
		``:                            ``,
		`host=a  port = 1`:            `host=a&port=1`,
		`password='it\'s \\ a' user=`: `password=it%27s+%5C+a&user=`,
		`user=a\ b`:                   `user=a+b`,
	} {
		got, err := keywordValues(dsn)
		if err != nil || got.Encode() != want {
			t.Errorf("keywordValues(%s) = %s, %v; want %s", dsn, got.Encode(), err, want)
		}
	}
}

func TestShared(t *testing.T) {
	if a, b := Shared(t), Shared(t); a != b {
		t.Error("Shared starts a server for each call")
	}
	var name string
	t.Run("Database", func(t *testing.T) {
		name = queryString(t, Database(t), "select current_database()")
	})
	got := queryString(t, Shared(t).DSN(), "select count(*)::text from pg_database where datname = '"+name+"'")
	if got != "0" {
		t.Errorf("database %s outlives its test", name)
	}
}

// ownServer makes a test use PostgreSQL's programs even if the environment names
// a server.
func ownServer(t *testing.T) {
	t.Helper()
	t.Setenv(EnvDSN, "")
	if dir, err := findPrograms(""); dir == "" || err != nil {
		t.Fatalf("no PostgreSQL programs (%v): %s", err, (&NotFoundError{Docker: errors.New("not tried")}).Error())
	}
}
