package flightpg

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"testing"
	"time"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestAlone_Claims: live rows of a flight that its leader has run himself are his: they
// end with his context, and nobody else shall have them by then.
func TestAlone_Claims(t *testing.T) {
	c, err := NewConnector(pgtest.Database(t), Config{Executor: ExecutorGeneric, MaxResult: 10_000})
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	defer db.Close()
	if err := db.PingContext(t.Context()); err != nil { // opens the pools
		t.Fatal(err)
	}
	const query = "SELECT repeat('x', 1000) FROM generate_series(1, 1000)"
	r := read{via: viaQuery, query: query, v: c.verdicts.get(query, nil)}
	for range aloneRun {
		c.alone.learn(true, 0) // of other texts
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	f, _, why := c.enter(ctx, ModeJoin, &r, false)
	if why != ReasonNone {
		t.Fatal(why)
	}
	l := &launch{c: c, r: r}
	res, err := f.Lead(ctx, l)
	if err != nil || res.live == nil {
		t.Fatalf("%+v, %v; want live rows", res, err)
	}
	if !l.owns || res.claim() {
		t.Errorf("owns = %t, and others can claim them; want that they are the leader's", l.owns)
	}
	rows := newReplay(ctx, res)
	if err := rows.Next(make([]driver.Value, 1)); err != nil {
		t.Error(err)
	}
	_ = rows.Close()
}

// TestLearnAlone: what makes a text one whose leaders run their flights themselves.
func TestLearnAlone(t *testing.T) {
	a := new(aloneness)
	learn := func(n int, alone bool, took time.Duration) bool {
		for range n {
			a.learn(alone, took)
		}
		return a.expected()
	}
	for _, step := range []struct {
		what  string
		n     int
		alone bool
		took  time.Duration
		want  bool
	}{
		{"few", aloneRun - 1, true, 0, false},
		{"enough", 1, true, quickRead - 1, true},
		{"a slow one", 1, true, quickRead, false},
		{"many", 10 * aloneMost, true, 0, true},
		{"a slow one then", 1, true, time.Hour, true},
		{"slow ones", aloneMost/aloneSlow - 1, true, time.Hour, false},
		{"many again", aloneMost, true, 0, true},
		{"a shared one", 1, false, 0, false},
	} {
		if got := learn(step.n, step.alone, step.took); got != step.want {
			t.Errorf("after %s: %t; want %t", step.what, got, step.want)
		}
	}
}

// TestLearnAlone_First: a text that was not read before is taken for one like others, until
// it turns out to be another.
func TestLearnAlone_First(t *testing.T) {
	c := new(Connector)
	text := func() *verdict { return new(verdict) }
	if c.goesAlone(text()) {
		t.Error("nothing is known, and the first read is taken for one that nobody shares")
	}
	for range aloneRun {
		c.learnAlone(text(), true, true, 0)
	}
	v := text()
	if !c.goesAlone(v) {
		t.Error("after many that nobody shared the next one is not taken for one")
	}
	c.learnAlone(v, true, true, 0)
	v.flown.Store(true)
	if !c.goesAlone(v) {
		t.Error("its second read is not")
	}
	c.learnAlone(v, false, false, 0)
	if c.goesAlone(v) || !c.goesAlone(text()) {
		t.Error("that one of its reads was shared does not count for it, or counts for others")
	}
	c.learnAlone(text(), true, false, 0)
	if c.goesAlone(text()) {
		t.Error("after a first read that was shared the next one is taken for one that nobody shares")
	}
}
