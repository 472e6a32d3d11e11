package flightpg

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/maphash"
	"os"
	"strings"
	"testing"

	"github.com/flightpg/flightpg/internal/sqlscan"
)

func TestMode(t *testing.T) {
	for _, m := range []Mode{ModeFenced, ModeStrict, ModeJoin, ModeOff} {
		if got, err := ParseMode(m.String()); got != m || err != nil {
			t.Errorf("ParseMode(%q) = %v, %v", m, got, err)
		}
	}
	if _, err := ParseMode("lazy"); err == nil {
		t.Error(`ParseMode("lazy"): no error`)
	}
	if s := Mode(9).String(); s != "Mode(9)" {
		t.Errorf("Mode(9) = %q", s)
	}
	c := &Connector{cfg: Config{Mode: ModeStrict}}
	ctx := context.Background()
	for _, tc := range []struct {
		ctx  context.Context
		want Mode
	}{
		{ctx, ModeStrict},
		{WithMode(ctx, ModeJoin), ModeJoin},
		{WithMode(WithMode(ctx, ModeJoin), ModeFenced), ModeFenced},
		{WithMode(ctx, Mode(9)), ModeStrict}, // no such mode: the connector's
	} {
		if got := c.mode(tc.ctx); got != tc.want {
			t.Errorf("mode = %v; want %v", got, tc.want)
		}
	}
}

func TestReason(t *testing.T) {
	seen := make(map[string]bool)
	for r := range reasonCount {
		name := r.String()
		if name == "" || seen[name] {
			t.Errorf("reason %d has no name of its own: %q", r, name)
		}
		seen[name] = true
	}
	b, err := json.Marshal(Stats{Bypasses: map[Reason]uint64{ReasonWrite: 2}})
	if err != nil || !strings.Contains(string(b), `"write":2`) {
		t.Errorf("JSON = %s, %v", b, err)
	}
	if s := Reason(200).String(); s != "Reason(200)" {
		t.Errorf("Reason(200) = %q", s)
	}
}

// TestReason_OfScanner checks that every reason of the scanner has its
// counterpart here.
func TestReason_OfScanner(t *testing.T) {
	n := 0
	for i := range 256 {
		r := sqlscan.Reason(i)
		if strings.HasPrefix(r.String(), "Reason(") {
			break
		}
		n++
		if _, ok := reasonByName[r.String()]; !ok {
			t.Errorf("the scanner's reason %q has no counterpart", r)
		}
	}
	if n < 5 {
		t.Errorf("found %d reasons of the scanner", n)
	}
}

// TestREADME checks that the README's tables have a line for each reason and
// each parameter.
func TestREADME(t *testing.T) {
	text, err := os.ReadFile("README.md")
	if err != nil {
		t.Fatal(err)
	}
	for r := ReasonNone + 1; r < reasonCount; r++ {
		if !strings.Contains(string(text), "`"+r.String()+"`") {
			t.Errorf("the README does not explain the reason %v", r)
		}
	}
	for _, p := range params {
		if !strings.Contains(string(text), "| `"+p.name+"` |") {
			t.Errorf("the README does not explain the parameter %s", p.name)
		}
	}
}

func TestVerdictCache(t *testing.T) {
	c := newVerdictCache(rules{noCatalog: true})
	if v := c.get("SELECT 1", nil); v.reason != ReasonNone || v != c.get("SELECT 1", nil) {
		t.Error("a text has one verdict")
	}
	if v := c.get("DELETE FROM t", nil); v.reason != ReasonWrite || !v.writes() || !v.leavesSession() {
		t.Errorf("DELETE: %+v", v)
	}
	if v := c.get("SET a = 1", nil); v.reason != ReasonNotRead || v.leavesSession() {
		t.Errorf("SET: %+v", v)
	}
	// Two texts of one hash: neither gets the other's verdict.
	hash := maphash.String(c.seed, "DELETE FROM t")
	for range 2 {
		c.put(&c.shards[hash%cacheShards], hash, c.rules.judge("SELECT 2", nil))
		if v := c.get("DELETE FROM t", nil); v.reason != ReasonWrite {
			t.Errorf("DELETE: %v after another text of its hash", v.reason)
		}
	}
	for i := range 3 * cacheTexts {
		c.get(fmt.Sprintf("SELECT %d", i), nil)
	}
	if n, _ := c.size(); n > cacheTexts || n < cacheTexts/4 {
		t.Errorf("%d texts kept; want at most %d", n, cacheTexts)
	}
	for i := range 100 {
		c.get("SELECT '"+strings.Repeat("x", 1<<20)+fmt.Sprint(i)+"'", nil)
	}
	if _, n := c.size(); n > cacheBytes {
		t.Errorf("%d bytes of texts kept; want at most %d", n, cacheBytes)
	}
}

// size returns how many texts are kept, and their bytes.
func (c *verdictCache) size() (texts, bytes int) {
	for i := range c.shards {
		for _, m := range []map[uint64]*verdict{c.shards[i].young, c.shards[i].old} {
			for _, v := range m {
				texts++
				bytes += len(v.sql)
			}
		}
	}
	return texts, bytes
}

func TestVerdict_IgnoreComments(t *testing.T) {
	c := newVerdictCache(rules{noCatalog: true, ignoreComments: true})
	a, b := c.get("SELECT 1 /* trace a */ + 2", nil), c.get("SELECT 1 /* trace b */ + 2", nil)
	if a.keyed != b.keyed {
		t.Errorf("keys %q and %q; want the same", a.keyed, b.keyed)
	}
	if a, b := c.get("SELECT '/* a */'", nil), c.get("SELECT '/* b */'", nil); a.keyed == b.keyed {
		t.Errorf("a comment in a string was taken for one: %q", a.keyed)
	}
}

func BenchmarkVerdict(b *testing.B) {
	query := "SELECT u.id, u.name, lower(u.email), count(o.id) FROM users u LEFT JOIN orders o ON o.user_id = u.id " +
		"WHERE u.org = $1 AND u.created_at > now() - $2::interval GROUP BY u.id ORDER BY u.name LIMIT 20"
	b.Run("cached", func(b *testing.B) {
		c := newVerdictCache(rules{noCatalog: true})
		b.ReportAllocs()
		for b.Loop() {
			c.get(query, nil)
		}
	})
	b.Run("new", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			rules{noCatalog: true}.judge(query, nil)
		}
	})
}
