//go:build unix

package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"database/sql"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// authority signs certificates, which it writes into dir.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  string
}

func newAuthority(t *testing.T, name string) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	a.pem, _, a.cert, a.key = a.sign(name, func(c *x509.Certificate) {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	})
	return a
}

// sign makes a certificate; the first one signs itself.
func (a *authority) sign(name string, change func(*x509.Certificate)) (cert, key string, parsed *x509.Certificate, private *ecdsa.PrivateKey) {
	a.t.Helper()
	fatal := func(err error) {
		a.t.Helper()
		if err != nil {
			a.t.Fatal(err)
		}
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fatal(err)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	fatal(err)
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    time.Now().Add(-48 * time.Hour),
		NotAfter:     time.Now().Add(24 * time.Hour),
	}
	if change != nil {
		change(template)
	}
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = template, private
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, private.Public(), signer)
	fatal(err)
	parsed, err = x509.ParseCertificate(der)
	fatal(err)
	encoded, err := x509.MarshalPKCS8PrivateKey(private)
	fatal(err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})),
		string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded})), parsed, private
}

// file writes what a DSN names, and returns where.
func (a *authority) file(name, content string) string {
	a.t.Helper()
	path := filepath.Join(a.dir, name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

// client returns the DSN parameters of a client certificate for a user.
func (a *authority) client(user string, change func(*x509.Certificate)) string {
	a.t.Helper()
	cert, key, _, _ := a.sign(user, change)
	id := rand.Text()
	return "&sslcert=" + url.QueryEscape(a.file(id+".crt", cert)) + "&sslkey=" + url.QueryEscape(a.file(id+".key", key))
}

const password = "correct horse/battery?staple"

// authServer is a server with TLS and every way to log in, by the user's name.
func authServer(t *testing.T, ca *authority) *pgtest.Server {
	t.Helper()
	cert, key, _, _ := ca.sign("server", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)} })
	s := pgtest.New(t,
		pgtest.WithSetting("ssl", "on"), pgtest.WithSetting("ssl_ca_file", "root.crt"),
		pgtest.WithFile("server.crt", cert), pgtest.WithFile("server.key", key), pgtest.WithFile("root.crt", ca.pem),
		pgtest.WithFile("pg_hba.conf", `
local     all all trust
host      all postgres         127.0.0.1/32 trust
host      all by_scram         127.0.0.1/32 scram-sha-256
host      all by_md5           127.0.0.1/32 md5
host      all by_password      127.0.0.1/32 password
host      all by_trust         127.0.0.1/32 trust
hostssl   all by_tls           127.0.0.1/32 trust
hostnossl all by_tls           127.0.0.1/32 reject
hostnossl all by_plain         127.0.0.1/32 trust
hostssl   all by_plain         127.0.0.1/32 reject
hostssl   all by_cert          127.0.0.1/32 cert
hostssl   all by_cert_password 127.0.0.1/32 scram-sha-256 clientcert=verify-full
`))
	setUp(t, s.DSN())
	admin := connect(t, s.DSN())
	defer admin.Close(context.Background()) // the gate counts backends
	for _, q := range []string{
		"SET password_encryption = 'scram-sha-256'",
		"CREATE ROLE by_scram LOGIN PASSWORD '" + password + "'",
		"CREATE ROLE by_password LOGIN PASSWORD '" + password + "'",
		"CREATE ROLE by_cert_password LOGIN PASSWORD '" + password + "'",
		"SET password_encryption = 'md5'",
		"CREATE ROLE by_md5 LOGIN PASSWORD '" + password + "'",
		"CREATE ROLE by_trust LOGIN", "CREATE ROLE by_tls LOGIN", "CREATE ROLE by_plain LOGIN", "CREATE ROLE by_cert LOGIN", "CREATE ROLE by_nothing LOGIN",
		"CREATE TABLE gate AS SELECT 1 AS v",
		"GRANT ALL ON ALL TABLES IN SCHEMA public TO PUBLIC",
	} {
		if _, err := admin.Exec(t.Context(), q); err != nil {
			t.Fatalf("%s: %v", q, err)
		}
	}
	return s
}

// TestAuthentication logs in by every method, rightly and wrongly, with and without
// TLS. Callers get what pgx gives, all of them, and no error shows the password.
func TestAuthentication(t *testing.T) {
	ca, otherCA := newAuthority(t, "test CA"), newAuthority(t, "another CA")
	s := authServer(t, ca)
	root := "&sslrootcert=" + url.QueryEscape(ca.file("root.crt", ca.pem))
	otherRoot := "&sslrootcert=" + url.QueryEscape(otherCA.file("root.crt", otherCA.pem))
	expired := func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-24 * time.Hour) }
	address := strings.TrimPrefix(strings.SplitN(s.DSN(), "/postgres?", 2)[0], "postgres://postgres@")

	for _, tc := range []struct {
		user   string
		secret string
		params string
		fails  string // what pgx says, or ""
		tls    bool   // of every backend
		varies bool   // pgx's error depends on who hangs up first
	}{
		{"by_trust", "", "sslmode=disable", "", false, false},
		{"by_trust", "", "", "", true, false}, // prefer: the default
		{"by_trust", "", "sslmode=allow", "", false, false},
		{"by_scram", password, "sslmode=disable", "", false, false},
		{"by_scram", password, "sslmode=prefer", "", true, false},
		{"by_scram", password, "sslmode=require&channel_binding=require", "", true, false},
		{"by_scram", "wrong " + password, "sslmode=disable", "28P01", false, false},
		{"by_scram", "wrong " + password, "sslmode=prefer", "28P01", false, false},
		{"by_scram", "", "sslmode=disable", "28P01", false, false},
		{"by_md5", password, "sslmode=disable", "", false, false},
		{"by_md5", "wrong " + password, "sslmode=require", "28P01", false, false},
		{"by_password", password, "sslmode=require", "", true, false},
		{"by_password", "wrong " + password, "sslmode=disable", "28P01", false, false},
		{"by_tls", "", "sslmode=require", "", true, false},
		{"by_tls", "", "sslmode=allow", "", true, false}, // the second try
		{"by_tls", "", "sslmode=verify-ca" + root, "", true, false},
		{"by_tls", "", "sslmode=verify-full" + root, "", true, false},
		{"by_tls", "", "sslmode=disable", "28000", false, false},
		{"by_tls", "", "sslmode=verify-full" + otherRoot, "x509", false, false},
		{"by_tls", "", "sslmode=verify-full", "x509", false, false}, // the system's roots
		{"by_plain", "", "sslmode=prefer", "", false, false},        // the second try
		{"by_plain", "", "sslmode=require", "28000", false, false},
		{"by_cert", "", "sslmode=verify-full" + root + ca.client("by_cert", nil), "", true, false},
		{"by_cert", "", "sslmode=verify-full" + root, "28000", false, false}, // none
		{"by_cert", "", "sslmode=verify-full" + root + ca.client("by_trust", nil), "28000", false, false},
		{"by_cert", "", "sslmode=verify-full" + root + ca.client("by_cert", expired), "ConnectError", false, true},
		{"by_cert", "", "sslmode=verify-full" + root + otherCA.client("by_cert", nil), "ConnectError", false, true},
		{"by_cert_password", password, "sslmode=verify-full" + root + ca.client("by_cert_password", nil), "", true, false},
		{"by_cert_password", "wrong " + password, "sslmode=verify-full" + root + ca.client("by_cert_password", nil), "28P01", false, false},
		{"by_nothing", password, "sslmode=prefer", "28000", false, false}, // no line in pg_hba.conf
		{"no_such_role", password, "sslmode=disable", "28000", false, false},
	} {
		how := tc.params
		if i := strings.Index(how, "&ssl"); i >= 0 {
			how = how[:i] // file names
		}
		t.Run(fmt.Sprintf("%s/%s/fails=%s", tc.user, how, tc.fails), func(t *testing.T) {
			dsn := fmt.Sprintf("postgres://%s@%s/postgres?%s", url.UserPassword(tc.user, tc.secret), address, tc.params)
			if tc.fails == "" {
				logsIn(t, s, tc.user, dsn, tc.tls)
				return
			}
			plain := open(t, "pgx", dsn)
			ours := open(t, "flightpg", dsn)
			var wg sync.WaitGroup
			for _, u := range []use{useNamed("Read/NoTable"), useNamed("Read"), useNamed("Write")} { // a flight, after the catalog, no flight
				want := u.run(t.Context(), plain)
				if !strings.Contains(want, tc.fails) || !strings.Contains(want, "ConnectError") {
					t.Fatalf("%s over pgx: %s; want %s", u.name, want, tc.fails)
				}
				for range 3 {
					wg.Go(func() {
						got := u.run(t.Context(), ours)
						if got != want && !(tc.varies && strings.Contains(got, "ConnectError")) {
							t.Errorf("%s:\nflightpg: %s\npgx:      %s", u.name, got, want)
						}
						if strings.Contains(got, "horse") {
							t.Errorf("%s: the error shows the password: %s", u.name, got)
						}
					})
				}
			}
			wg.Wait()
			if s := flightpg.ReadStats(ours); s.Flights == 0 || s.Flying != 0 || s.FlightBackends+s.SessionBackends != 0 {
				t.Errorf("Stats = %+v; want flights that failed, and nothing left", s)
			}
		})
	}
}

// logsIn reads, writes, shares and cancels over one DSN, as pgx does.
func logsIn(t *testing.T, s *pgtest.Server, user, dsn string, tls bool) {
	plain := open(t, "pgx", dsn)
	ours := open(t, "flightpg", dsn)
	for _, u := range uses {
		want := u.run(t.Context(), plain)
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if got := u.run(t.Context(), ours); got != want {
					t.Errorf("%s:\nflightpg: %s\npgx:      %s", u.name, got, want)
				}
			})
		}
		wg.Wait()
	}
	g := newGate(t, s.DSN())
	var all, encrypted int
	err := g.eye.QueryRow(t.Context(), "SELECT count(*), count(*) FILTER (WHERE ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = $1", user).Scan(&all, &encrypted)
	if want := map[bool]int{true: all}[tls]; err != nil || all == 0 || encrypted != want {
		t.Errorf("%d of %d backends are encrypted, %v; want %d", encrypted, all, err, want)
	}
	if s := flightpg.ReadStats(ours); s.Flights == 0 || s.FlightBackends == 0 || len(s.Bypasses) != 2 { // of Tx and Conn
		t.Errorf("Stats = %+v; want the reads shared", s)
	}
	_, _ = plain.Close(), ours.Close()
	until(t, "the server is ours", func() bool { return g.backends() == 0 })
	for name, use := range map[string]func(*sql.DB){
		"Share": func(db *sql.DB) {
			storm(t, g, db, 20, 0, func() error { var v int; return db.QueryRow(gateQuery, 1).Scan(&v) })
		},
		"Cancel": func(db *sql.DB) { lastOneOut(t, g, db, true) },
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t, "flightpg", dsn)
			use(db)
			db.Close()
			until(t, "the server is ours", func() bool { return g.backends() == 0 })
		})
	}
}

// TestPasswordStaysSecret asks for errors of DSNs with a password.
func TestPasswordStaysSecret(t *testing.T) {
	for _, dsn := range []string{
		"postgres://user:%s@127.0.0.1:1/db?flight_mode=wrong",
		"postgres://user:%s@127.0.0.1:1/db?flight_nothing=1",
		"postgres://user:%s@127.0.0.1:1/db?sslmode=wrong&flight_width=2",
		"postgres://user:%s@127.0.0.1:port/db",
		"postgres://user:%s@127.0.0.1:1/db?connect_timeout=x",
		"host=127.0.0.1 port=1 password=%s sslmode=wrong",
		"host=127.0.0.1 port=1 password='%s' flight_mode=wrong",
		"host=127.0.0.1 port=1 password='%s",
		"password=%s flight_conns=-1",
		"postgres://user:%s@127.0.0.1:1/db?sslmode=disable", // nobody listens
		"postgres://user@127.0.0.1:1/db?password=%s",
		"postgres://user:%s@127.0.0.1:1,127.0.0.1:2/db?target_session_attrs=primary",
	} {
		full := fmt.Sprintf(dsn, "horsebattery")
		db, err := sql.Open("flightpg", full)
		if err == nil {
			err = db.PingContext(t.Context())
			db.Close()
		}
		if err == nil || strings.Contains(err.Error(), "horsebattery") {
			t.Errorf("%s: %v; want an error without the password", dsn, err)
		}
		var connErr *pgconn.ConnectError
		if !strings.Contains(dsn, "flight_") && !errors.As(err, &connErr) { // pgx's own
			plain, _ := sql.Open("pgx", full)
			if want := plain.PingContext(t.Context()); want == nil || want.Error() != err.Error() {
				t.Errorf("%s: %v; want what pgx says, %v", dsn, err, want)
			}
			plain.Close()
		}
	}
}
