package hostile

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"expvar"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// spellings are those of the password that must not show in any text.
var spellings = []string{secret, url.QueryEscape(secret), "Zq7%2DS3cr3t%2Dpw", fmt.Sprintf("%x", secret), `Zq7\-S3cr3t\-pw`}

// refusing is a server that does one thing wrong.
func refusing(t *testing.T, serve func(net.Conn)) (host, port string) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				serve(c)
			}()
		}
	}()
	host, port, _ = net.SplitHostPort(l.Addr().String())
	return host, port
}

// TestSecret fails in every way there is, with a password that each of the ways to
// give one gives, and looks for it in what is said.
func TestSecret(t *testing.T) {
	report := battery.Report(t, part, "no password in an error, a figure, a print or the command's output", 0)
	var texts int
	check := func(where string, said ...any) {
		t.Helper()
		for _, v := range said {
			for _, verb := range []string{"%v", "%+v", "%#v", "%s"} {
				texts++
				text := fmt.Sprintf(verb, v)
				for _, s := range spellings {
					if strings.Contains(text, s) {
						t.Errorf("%s: %s has the password: %.400s", where, verb, text)
						return
					}
				}
			}
			for err, _ := v.(error); err != nil; err = errors.Unwrap(err) {
				texts++
				if strings.Contains(err.Error(), secret) {
					t.Errorf("%s: the password is in %v", where, err)
				}
			}
		}
	}

	real, err := pgconn.ParseConfig(pgtest.Shared(t).Database(t))
	if err != nil {
		t.Fatal(err)
	}
	hangs, hangsPort := refusing(t, func(c net.Conn) { c.Read(make([]byte, 1<<10)) })
	garbles, garblesPort := refusing(t, func(c net.Conn) { c.Write([]byte(strings.Repeat("HTTP/1.1 400\r\n", 1000))) })
	asks, asksPort := refusing(t, func(c net.Conn) { // for the password, and repeats it
		back := pgproto3.NewBackend(c, c)
		if _, err := back.ReceiveStartupMessage(); err != nil {
			return
		}
		back.Send(&pgproto3.AuthenticationMD5Password{Salt: [4]byte{1, 2, 3, 4}})
		back.Flush()
		back.SetAuthType(pgproto3.AuthTypeMD5Password)
		back.Receive()
		back.Send(&pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"})
		back.Flush()
	})
	targets := map[string]string{
		"Refused": "host=127.0.0.1 port=1", "UnknownHost": "host=nowhere.invalid port=5432", "NoSocket": "host=/nowhere port=1",
		"Hangs": "host=" + hangs + " port=" + hangsPort + " connect_timeout=1", "Garbles": "host=" + garbles + " port=" + garblesPort,
		"Asks": "host=" + asks + " port=" + asksPort, "TLS": fmt.Sprintf("host=%s port=%d sslmode=require", real.Host, real.Port),
		"NoDatabase": fmt.Sprintf("host=%s port=%d dbname=nowhere user=%s", real.Host, real.Port, real.User),
		"NoRole":     fmt.Sprintf("host=%s port=%d dbname=%s user=nobody_here", real.Host, real.Port, real.Database),
		"Works":      fmt.Sprintf("host=%s port=%d dbname=%s user=%s", real.Host, real.Port, real.Database, real.User),
	}
	dir := t.TempDir()
	passfile, service := filepath.Join(dir, "pass"), filepath.Join(dir, "service")
	if err := errors.Join(
		os.WriteFile(passfile, []byte("*:*:*:*:"+secret+"\n"), 0o600),
		os.WriteFile(service, []byte("[s]\npassword="+secret+"\nuser=u\n"), 0o600),
	); err != nil {
		t.Fatal(err)
	}
	ways := map[string]string{
		"Keyword": "password=" + secret, "Quoted": `password='Zq7\-S3cr3t-pw'`, "Passfile": "passfile=" + passfile,
		"Service": "servicefile=" + service + " service=s", "Environment": "",
	}
	for way, password := range ways {
		t.Run(way, func(t *testing.T) {
			if way == "Environment" {
				t.Setenv("PGPASSWORD", secret)
			}
			for name, target := range targets {
				if !battery.Full() && way != "Keyword" && name != "Asks" && name != "NoRole" {
					continue
				}
				dsn := target + " " + password
				if !strings.Contains(dsn, "sslmode") {
					dsn += " sslmode=disable"
				}
				if !strings.Contains(dsn, "user=") && way != "Service" {
					dsn += " user=u dbname=d"
				}
				where := way + ", " + name
				db, err := sql.Open("flightpg", dsn)
				if err != nil {
					t.Fatalf("%s: %v", where, err)
				}
				func() {
					defer db.Close()
					ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
					defer cancel()
					said := []any{db, db.Driver(), db.Stats()}
					say := func(v any) { said = append(said, v) }
					say(db.PingContext(ctx))
					say(read(db, "SELECT 1", false).err)
					say(read(db, "SELECT id FROM nowhere", false).err)
					say(read(db, "SELECT", true).err)
					_, err := db.ExecContext(ctx, "INSERT INTO nowhere VALUES (1)")
					say(err)
					_, err = db.BeginTx(ctx, nil)
					say(err)
					say(flightpg.RefreshCatalog(ctx, db))
					v, err := flightpg.Explain(ctx, db, "SELECT id FROM nowhere")
					said = append(said, v, err)
					say(flightpg.Forget(ctx, db, "SELECT 1", make(chan int)))
					st := flightpg.ReadStats(db)
					j, _ := json.Marshal(st)
					said = append(said, st, string(j), expvar.Func(func() any { return st }).String())
					var log strings.Builder
					slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "stats", st, "db", db, "driver", db.Driver(), "err", err)
					slog.New(slog.NewTextHandler(&log, nil)).Info("x", "stats", st, "driver", db.Driver(), "err", err)
					say(log.String())
					if c, err := db.Conn(ctx); err == nil {
						say(c.Raw(func(dc any) error { check(where+", driver.Conn", dc); return fmt.Errorf("%v", dc) }))
						c.Close()
					}
					check(where, said...)
				}()
			}
		})
	}
	t.Run("Command", func(t *testing.T) {
		bin := filepath.Join(dir, "flightpg")
		args := []string{"build", "-o", bin}
		if raceEnabled {
			args = append(args, "-race") // what is built that way already
		}
		build := exec.Command("go", append(args, "github.com/flightpg/flightpg/cmd/flightpg")...)
		build.Env = append(os.Environ(), "GOWORK=off")
		if out, err := build.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		bad := "postgres://u:" + secret + "@127.0.0.1:1/db?sslmode=disable"
		for _, args := range [][]string{
			{bad},
			{"explain"},
			{"explain", "-dsn", bad, "SELECT 1"},
			{"explain", "-dsn=" + bad, "-json", "SELECT id FROM t"},
			{"explain", "-dns=" + bad, "SELECT 1"},
			{"explain", "-dsn", bad + "&flight_mode=x", "SELECT 1"},
			{"explain", "-dsn", bad + "&sslmode=x", "SELECT 1"},
			{"explain", "-dsn", "host=127.0.0.1 port=x password=" + secret, "SELECT 1"},
		} {
			out, _ := exec.Command(bin, args...).CombinedOutput()
			check(fmt.Sprintf("flightpg %.30q", args), string(out))
		}
	})
	report.Set("texts searched", texts)
	report.Set("ways to give a password", len(ways))
	report.Set("ways to fail", len(targets))
}
