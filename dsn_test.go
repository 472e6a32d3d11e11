package flightpg

import (
	"database/sql"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

func TestDSN(t *testing.T) {
	for _, tc := range []struct {
		dsn, rest string
		want      Config
	}{
		{"", "", Config{}},
		{"host=h", "host=h", Config{}},
		{"postgres://u:p@h/db", "postgres://u:p@h/db", Config{}},
		{"postgres://u:p@h/db?sslmode=disable&flight_mode=strict", "postgres://u:p@h/db?sslmode=disable", Config{Mode: ModeStrict}},
		{"postgresql://h/db?flight_mode=join", "postgresql://h/db", Config{Mode: ModeJoin}},
		{"postgres://h/db?flight_mode=off&a=1&flight_width=3&b=2#f", "postgres://h/db?a=1&b=2#f", Config{Mode: ModeOff, Width: 3}},
		{"postgres://h/db?flight%5Fwidth=%33", "postgres://h/db", Config{Width: 3}},
		{"host=h flight_mode=strict dbname=d", "host=h dbname=d", Config{Mode: ModeStrict}},
		{"flight_mode = 'join' host=h", "host=h", Config{Mode: ModeJoin}},
		{`password='it\'s flight_mode=off' flight_width=4 user=u`, `password='it\'s flight_mode=off' user=u`, Config{Width: 4}},
		{`password=a\ flight_mode=off session_conns=7`, `password=a\ flight_mode=off`, Config{SessionConns: 7}},
		{"host=h flight_max_result=512kB flight_memory=1GB", "host=h", Config{MaxResult: 512 << 10, Memory: 1 << 30}},
		{"host=h flight_max_result=4096", "host=h", Config{MaxResult: 4096}},
		{"host=h flight_conns=5 session_conns=6", "host=h", Config{FlightConns: 5, SessionConns: 6}},
		{"host=h flight_timeout=1500ms flight_window=20ms", "host=h", Config{Timeout: 1500 * time.Millisecond, Window: 20 * time.Millisecond}},
		{"host=h flight_guard=transaction", "host=h", Config{Guard: GuardTransaction}},
		{"host=h flight_timeout=0", "host=h", Config{}},
		{"host=h flight_ignore_comments=on", "host=h", Config{IgnoreComments: true}},
		{"host=h broken flight_mode=join", "host=h broken flight_mode=join", Config{}}, // pgx's to refuse
	} {
		rest, found, err := splitDSN(tc.dsn)
		if err != nil {
			t.Errorf("%q: %v", tc.dsn, err)
			continue
		}
		var cfg Config
		if err := setParams(&cfg, found); err != nil {
			t.Errorf("%q: %v", tc.dsn, err)
		}
		if rest != tc.rest {
			t.Errorf("%q: pgx gets %q; want %q", tc.dsn, rest, tc.rest)
		}
		if !reflect.DeepEqual(cfg, tc.want) {
			t.Errorf("%q: %+v; want %+v", tc.dsn, cfg, tc.want)
		}
	}
}

func TestDSN_Errors(t *testing.T) {
	const password = "s3cr3t"
	for _, tc := range []struct {
		param string
		want  []string // in the error
	}{
		{"flight_mode=lazy", []string{"flight_mode", "lazy", "fenced, strict, join or off"}},
		{"flight_width=0", []string{"flight_width", "1 to 1000"}},
		{"flight_width=1001", []string{"flight_width"}},
		{"flight_width=two", []string{"flight_width"}},
		{"flight_max_result=-1", []string{"flight_max_result", "size"}},
		{"flight_max_result=0", []string{"flight_max_result"}},
		{"flight_max_result=1XB", []string{"flight_max_result"}},
		{"flight_memory=99999999999TB", []string{"flight_memory"}},
		{"flight_memory=", []string{"flight_memory"}},
		{"flight_conns=-1", []string{"flight_conns"}},
		{"session_conns=many", []string{"session_conns"}},
		{"flight_timeout=5", []string{"flight_timeout", "500ms"}},
		{"flight_timeout=-1s", []string{"flight_timeout"}},
		{"flight_window=soon", []string{"flight_window"}},
		{"flight_guard=maybe", []string{"flight_guard", "auto, session, transaction or off"}},
		{"flight_ignore_comments=maybe", []string{"flight_ignore_comments", "on or off"}},
		{"flight_speed=9", []string{"flight_speed", "unknown", "flight_mode"}},
		{"port=none", nil},
		{"sslmode=never", nil},
	} {
		for form, dsn := range map[string]string{
			"URL":      "postgres://bob:" + password + "@localhost/db?" + tc.param,
			"keywords": "user=bob password=" + password + " host=localhost " + tc.param,
		} {
			db, err := sql.Open("flightpg", dsn)
			if err == nil {
				db.Close()
				t.Errorf("%s, %s: no error", tc.param, form)
				continue
			}
			for _, want := range tc.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%s, %s: error %q does not say %q", tc.param, form, err, want)
				}
			}
			if strings.Contains(err.Error(), password) {
				t.Errorf("%s, %s: error %q shows the password", tc.param, form, err)
			}
		}
	}
	for _, dsn := range []string{
		"postgres://bob:" + password + "@localhost:port/db",
		"postgres://bob:" + password + "@[::1/db",
		"postgres://bob:" + password + "@localhost/db?flight_mode=%zz",
		"postgres://bob:" + password + "%zz@localhost/db",
		"user=bob password='" + password,
		"user=bob password=" + password + " host",
		"user=bob flight_width=2 flight_width=3 password=" + password,
	} {
		db, err := sql.Open("flightpg", dsn)
		if err == nil {
			db.Close()
			t.Errorf("%s: no error", dsn)
		} else if strings.Contains(err.Error(), password) {
			t.Errorf("%s: error %q shows the password", dsn, err)
		}
	}
}

func TestConfig(t *testing.T) {
	for _, tc := range []struct {
		cfg  Config
		want string
	}{
		{Config{Mode: 9}, "Mode"},
		{Config{Width: -1}, "Width"},
		{Config{Width: 1001}, "Width"},
		{Config{Memory: -1}, "Memory"},
		{Config{FlightConns: -1}, "FlightConns"},
		{Config{SessionConns: -1}, "SessionConns"},
		{Config{Timeout: -1}, "Timeout"},
		{Config{Window: -1}, "Window"},
		{Config{MaxLifetime: -1}, "MaxLifetime"},
		{Config{Guard: 9}, "Guard"},
	} {
		if _, err := NewConnector("host=localhost", tc.cfg); err == nil || !strings.Contains(err.Error(), "Config."+tc.want) {
			t.Errorf("NewConnector(%+v) = %v; want an error that names Config.%s", tc.cfg, err, tc.want)
		}
		if _, err := Wrap(&fakeServer{}, tc.cfg); err == nil {
			t.Errorf("Wrap(%+v): no error", tc.cfg)
		}
	}
	if _, err := Wrap(nil, Config{}); err == nil {
		t.Error("Wrap(nil): no error")
	}
	c, err := NewConnector("host=localhost flight_width=7", Config{Width: 3, Mode: ModeStrict})
	if err != nil {
		t.Fatal(err)
	}
	if c.cfg.Width != 7 || c.cfg.Mode != ModeStrict {
		t.Errorf("config = %+v; want the DSN's width and the struct's mode", c.cfg)
	}
}

func TestConnector_Hosts(t *testing.T) {
	for _, tc := range []struct {
		dsn  string
		want Reason
	}{
		{"host=a", ReasonNone},
		{"host=a sslmode=prefer", ReasonNone},
		{"host=a,b", ReasonSeveralHosts},
		{"host=a,b target_session_attrs=any", ReasonSeveralHosts},
		{"host=a,b target_session_attrs=standby", ReasonSeveralHosts},
		{"host=a,b target_session_attrs=read-write", ReasonNone},
		{"host=a,b target_session_attrs=primary", ReasonNone},
		{"postgres://a:1,a:2/db", ReasonSeveralHosts},
	} {
		c, err := NewConnector(tc.dsn, Config{})
		if err != nil {
			t.Fatal(err)
		}
		if got := Reason(c.off.Load()); got != tc.want {
			t.Errorf("%s: %v; want %v", tc.dsn, got, tc.want)
		}
	}
	a, _ := NewConnector("host=a dbname=x", Config{})
	b, _ := NewConnector("postgres://u:p@a/x?sslmode=disable", Config{})
	other, _ := NewConnector("host=a dbname=y", Config{})
	if a.db != b.db || a.db == other.db {
		t.Error("connectors share their fences if and only if they name the same database")
	}
}

func TestConnector_ViaStmt(t *testing.T) {
	for dsn, want := range map[string]byte{
		"host=a":                              viaQuery,
		"host=a default_query_exec_mode=exec": viaStmt,
		"host=a default_query_exec_mode=simple_protocol": viaStmt,
		"host=a statement_cache_capacity=0":              viaStmt,
	} {
		c, err := NewConnector(dsn, Config{})
		if err != nil {
			t.Fatal(err)
		}
		if c.viaStmt != want {
			t.Errorf("%s: prepared statements run via %d; want %d", dsn, c.viaStmt, want)
		}
	}
}

// FuzzDSN checks that a DSN without parameters of ours reaches pgx untouched,
// and that one with them leaves pgx the same config as without.
func FuzzDSN(f *testing.F) {
	f.Add("host=a dbname=b", "strict")
	f.Add("postgres://u:p@h:1/db?sslmode=disable", "join")
	f.Add(`user='a\'b' password=x\ y`, "off")
	f.Fuzz(func(t *testing.T, dsn, value string) {
		rest, found, err := splitDSN(dsn)
		if err == nil && len(found) == 0 && rest != dsn {
			t.Fatalf("%q became %q", dsn, rest)
		}
		if len(found) > 0 || err != nil || strings.ContainsAny(dsn, "#") {
			return
		}
		plain, err := pgx.ParseConfig(dsn)
		if err != nil {
			return
		}
		url := strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
		with := "flight_width=2 " + dsn
		if url {
			sep := "?"
			if strings.Contains(dsn, "?") {
				sep = "&"
			}
			with = dsn + sep + "flight_width=2"
		}
		rest, found, err = splitDSN(with)
		if err != nil || len(found) != 1 || found[0] != (pair{key: "flight_width", value: "2"}) {
			t.Fatalf("splitDSN(%q) = %q, %v, %v; want flight_width", with, rest, found, err)
		}
		again, err := pgx.ParseConfig(rest)
		if err != nil {
			t.Fatalf("pgx takes %q but not %q: %v", dsn, rest, err)
		}
		if again.Host != plain.Host || again.User != plain.User || again.Password != plain.Password || again.Database != plain.Database {
			t.Fatalf("%q became %q for pgx", dsn, rest)
		}
		_ = value
	})
}
