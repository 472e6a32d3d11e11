package flightpg

import (
	"database/sql"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// planted is a password that must not show.
const planted = "Zq7-S3cr3t-pw"

// plantedDSNs are DSNs with the password at every place there is, and %s where
// something else can stand.
var plantedDSNs = []string{
	"postgres://u:" + planted + "@h:1/db?%s",
	"postgresql://u:" + planted + "@h/db?sslmode=disable&%s",
	"postgres://h/db?user=u&password=" + planted + "&%s",
	"postgres://u:Zq7%%2DS3cr3t%%2Dpw@h/db?%s",
	"host=h user=u password=" + planted + " %s",
	"%s host=h password='" + planted + "'",
	"host=h sslpassword=" + planted + " %s",
	"password = '" + planted + "' host=h %s",
	`host=h password='\Zq7-S3cr3t-pw' %s`,
	"registeredConnConfig%s",
	// What should have been encoded, or in quotes.
	"postgres://u:x?flight_mode=" + planted + "@h/db",
	"postgres://u:x?flight_" + planted + "@h/db",
	"postgres://u:x#y?flight_width=" + planted + "@h/db?%s",
	"postgres://u:x?flight_mode=" + planted + "&y@h/db",
}

// TestOpen_Secret gives DSNs that are wrong in many ways, with the password in them.
func TestOpen_Secret(t *testing.T) {
	wrong := []string{
		"", "flight_mode=x", "flight_mode=", "flight_width=-1", "flight_width=99999999999999999999", "flight_memory=1XB",
		"flight_nothing=1", "flight_timeout=-1s", "flight_guard=\xff", "flight_mode=fenced flight_mode=strict",
		"flight_mode=fenced&flight_mode=strict", "flight_catalog_ttl=0", "session_conns=%zz", "flight_conns=%00",
		"sslmode=nonsense", "port=0", "sslrootcert=/nowhere", "target_session_attrs=x", "connect_timeout=x", "service=none",
	}
	for _, dsn := range plantedDSNs {
		for _, w := range wrong {
			d := dsn
			if strings.Contains(dsn, "%s") {
				d = fmt.Sprintf(dsn, w)
			}
			checkSecret(t, d)
		}
	}
}

// checkSecret opens a DSN and looks for the password in what comes of it.
func checkSecret(t *testing.T, dsn string) {
	t.Helper()
	db, err := sql.Open("flightpg", dsn)
	if err == nil {
		defer db.Close()
		c, _ := connectorOf(db)
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d", "%x"} {
			if s := fmt.Sprintf(verb, c); strings.Contains(s, planted) || strings.Contains(s, fmt.Sprintf("%x", planted)) {
				t.Errorf("%s of the connector for %q: %s", verb, dsn, s)
			}
		}
		return
	}
	said := fmt.Sprintf("%v %+v %#v", err, err, err)
	if !strings.Contains(said, planted) {
		return
	}
	// pgx quotes what it cannot parse, and hides what it takes for a password.
	if rest, _, e := splitDSN(dsn); e == nil && !strings.HasPrefix(err.Error(), "flightpg: ") {
		if _, own := pgx.ParseConfig(rest); own != nil && own.Error() == err.Error() {
			return
		}
	}
	t.Errorf("%q: %s", dsn, said)
}

// FuzzOpen opens any DSN: no panic, errors of ours or pgx's own, and never the
// password.
func FuzzOpen(f *testing.F) {
	for _, dsn := range plantedDSNs {
		f.Add(strings.ReplaceAll(dsn, "%s", "flight_mode=x"), "flight_width=0")
	}
	f.Add("host=a flight_mode='", "\\")
	f.Add("flight_mode=\x00", "=")
	f.Fuzz(func(t *testing.T, dsn, more string) {
		for _, d := range []string{dsn, dsn + more, "host=h password=" + planted + " " + more, "postgres://u:" + planted + "@h/d?" + more, more + " password=" + planted} {
			if strings.Contains(d, "service") { // reads files
				continue
			}
			c, err := NewConnector(d, Config{})
			if err == nil {
				if c.cfg.Width < 1 || c.cfg.Width > maxWidth || c.cfg.MaxResult <= 0 || c.cfg.Memory <= 0 || c.cfg.Mode > ModeOff || c.cfg.Guard > GuardOff {
					t.Fatalf("%q: config %+v", d, c.cfg)
				}
				if s := fmt.Sprintf("%+v %#v", c, c); strings.Contains(s, planted) && !strings.Contains(more+dsn, planted) {
					t.Fatalf("%q: prints as %s", d, s)
				}
				continue
			}
			own := false
			if rest, _, e := splitDSN(d); e == nil {
				_, pe := pgx.ParseConfig(rest)
				own = pe != nil && pe.Error() == err.Error()
			}
			if !own && !strings.HasPrefix(err.Error(), "flightpg: ") {
				t.Fatalf("%q: %v: neither ours nor pgx's", d, err)
			}
			if !own && strings.Contains(err.Error(), planted) && !strings.Contains(more+dsn, planted) {
				t.Fatalf("%q: %v", d, err)
			}
		}
	})
}

// TestConnector_Prints prints everything that a user holds, in every way.
func TestConnector_Prints(t *testing.T) {
	pc, err := pgx.ParseConfig("host=h user=u dbname=d password=" + planted)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{BeforeConnect: nil, Database: "d"}
	c, err := NewConnectorWithConfig(pc, cfg)
	if err != nil {
		t.Fatal(err)
	}
	db := c.OpenDB()
	defer db.Close()
	dc, err := c.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer dc.Close()
	var log strings.Builder
	for name, v := range map[string]any{
		"Connector": c, "Driver": c.Driver(), "Config": cfg, "DB": db, "Conn": dc, "Stats": c.Stats(),
		"Holder": struct {
			C any
			D *Connector
		}{c, c},
	} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%d", "%x", "%q"} {
			if s := fmt.Sprintf(verb, v); strings.Contains(s, planted) || strings.Contains(s, fmt.Sprintf("%x", planted)) {
				t.Errorf("%s of %s: %s", verb, name, s)
			}
		}
		j, _ := json.Marshal(v)
		slog.New(slog.NewTextHandler(&log, nil)).Info(name, "v", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info(name, "v", v)
		if strings.Contains(string(j)+log.String(), planted) {
			t.Errorf("%s: JSON %s, log %s", name, j, &log)
		}
	}
	if got, want := fmt.Sprintf("%+v", c), "flightpg.Connector("; !strings.HasPrefix(got, want) {
		t.Errorf("the connector prints as %s; want %s…", got, want)
	}
}

type (
	selfPointer *selfPointer
	selfSlice   []selfSlice
	selfStruct  struct {
		Next, Other *selfStruct
		Text        string
	}
	nestedTime struct{ At time.Time }
)

// TestKey_Endless: arguments without end, or of no size.
func TestKey_Endless(t *testing.T) {
	var p selfPointer
	p = &p
	s := selfSlice{nil}
	s[0] = s
	st := &selfStruct{}
	st.Next, st.Other = st, st
	for _, v := range []any{
		p, s, st, *st, make([]struct{}, 1<<40),
		[1 << 40]struct{}{},
		new([1 << 40][0]int), make([][0]string, 1<<50),
		[]any{s},
		map[string]any{"a": s},
		func() {}, make(chan int),
		struct{ F func() }{},
		new(any),
	} {
		if b, why := new(keying).appendKey(nil, viaQuery, "", namedValues([]any{v})); why == ReasonNone || len(b) > 1<<10 {
			t.Errorf("%T: %v, a key of %d bytes; want that it bypasses", v, why, len(b))
		}
	}
	// What is too large is not copied whole.
	for _, v := range []any{
		strings.Repeat("x", 64<<20), make([]byte, 64<<20), make([]int64, 8<<20), make([]string, 4<<20),
		[][]byte{make([]byte, 64<<20)},
		new([32 << 20]int16),
	} {
		b, why := new(keying).appendKey(nil, viaQuery, "", namedValues([]any{v}))
		if why != ReasonArgument || cap(b) > 8*maxKeyArgs {
			t.Errorf("%T: %v, a key of %d bytes; want ReasonArgument before it is encoded", v, why, cap(b))
		}
	}
	if _, why := new(keying).appendKey(nil, viaQuery, strings.Repeat("p", 2*maxKeyArgs), nil); why != ReasonArgument {
		t.Errorf("a partition of 2 MiB: %v; want ReasonArgument: its key is cut short", why)
	}
}

// TestKey_NestedTime: what a Valuer can see of a time is in the key.
func TestKey_NestedTime(t *testing.T) {
	at := time.Now()
	a, b := time.FixedZone("A", 3600), time.FixedZone("B", 3600)
	times := []time.Time{at, at.Round(0), at.In(a), at.In(b), at.UTC(), at.Add(time.Hour).Add(-time.Hour).Round(0).UTC().In(a)}
	for i, x := range times {
		for j, y := range times {
			kx, _ := keyOf(t, nestedTime{x})
			ky, _ := keyOf(t, nestedTime{y})
			if same := x.String() == y.String() && x.Location().String() == y.Location().String(); (kx == ky) != same {
				t.Errorf("times %d and %d (%v, %v): same key = %v; want %v", i, j, x, y, kx == ky, same)
			}
		}
	}
}

// TestKey_Tricks are pairs that look alike to an encoding that is not careful.
func TestKey_Tricks(t *testing.T) {
	type str string
	type twoStr struct{ A, B string }
	type oneStr struct{ A string }
	type twoArr [2]string
	lists := [][]any{
		{"a\x00b"},
		{"a", "b"},
		{"a\x00", "b"},
		{"a", "\x00b"},
		{"ab"},
		{str("ab")},
		{[]byte("ab")},
		{twoStr{"a", "b"}},
		{oneStr{"ab"}},
		{twoArr{"a", "b"}},
		{[]string{"a", "b"}},
		{[]string{"ab"}},
		{[]string{"a\x00b"}},
		{[][]byte{[]byte("a"), []byte("b")}},
		{"a", nil},
		{nil, "a"},
		{"a", ""},
		{"", "a"},
		{[]string{"a", ""}},
		{[]string{"", "a"}},
		{[]string{"a"}, nil},
		{string([]byte{tagString, 1, 'a'})},
		{string([]byte{1, 'a', tagString, 1, 'b'})},
		{[]byte{tagString, 1, 'a'}},
		{int64(0x6162)},
		{uint16(0x6162)},
		{[2]byte{'a', 'b'}},
		{struct{ A, B byte }{'a', 'b'}},
		{[]uint8{'a', 'b'}, nil},
		{true},
		{int8(1)},
		{uint8(1)},
		{sql.NullString{String: "ab", Valid: true}},
		{sql.NullString{String: "ab"}},
		{sql.NullString{}},
		{netip.MustParseAddr("::ffff:1.2.3.4")},
		{netip.MustParseAddr("1.2.3.4")},
		{netip.MustParseAddr("fe80::1%a")},
		{netip.MustParseAddr("fe80::1%b")},
		{netip.PrefixFrom(netip.MustParseAddr("1.2.3.4"), 32)},
		{netip.Addr{}},
		{netip.Prefix{}},
		{new("ab")},
		{(*string)(nil)},
		{new(new("ab"))},
		{(**string)(nil)},
		{new((*string)(nil))},
		{pgx.QueryExecModeExec},
		{pgx.QueryExecModeExec, int32(1)},
		{int32(pgx.QueryExecModeExec)},
		{pgx.QueryResultFormats{1, 0}},
		{[]int16{1, 0}},
		{pgx.QueryResultFormatsByOID{1: 0}},
		{pgx.QueryResultFormatsByOID{1: 1}},
		{pgx.QueryResultFormatsByOID{}},
		{1.0},
		{float32(1)},
		{int64(0x3FF0000000000000)},
		{uint64(0x3FF0000000000000)},
	}
	seen := map[string][]any{}
	for _, l := range lists {
		k, why := keyOf(t, l...)
		if why != ReasonNone {
			t.Fatalf("%#v: %v", l, why)
		}
		if other, ok := seen[k]; ok {
			t.Errorf("%#v and %#v have the same key", l, other)
		}
		seen[k] = l
	}
	// Text, way and partition are apart from the arguments.
	parts := map[string]bool{}
	for _, via := range []byte{viaQuery, viaStmt} {
		for _, partition := range []string{"", "a", "a\x00", string([]byte{0, 1}), string([]byte{1, tagNil})} {
			for _, args := range [][]any{nil, {nil}, {"a"}, {"", "a"}} {
				k, _ := new(keying).appendKey(nil, via, partition, namedValues(args))
				if parts[string(k)] {
					t.Errorf("via %d, partition %q, %v: a key that was there before", via, partition, args)
				}
				parts[string(k)] = true
			}
		}
	}
}
