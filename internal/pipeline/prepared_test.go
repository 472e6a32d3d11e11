package pipeline

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// onServer returns the names of the statements that a free connection's server has
// prepared for it, in order.
func (k *conn) onServer(t *testing.T) (names []string) {
	t.Helper()
	k.reader = nil // of its last call
	k.setGlance(time.Time{})
	// A busy machine takes its time, and the session may have short timeouts.
	query := pgproto3.Query{String: "SET LOCAL statement_timeout = 0; SELECT name FROM pg_prepared_statements ORDER BY name COLLATE \"C\""}
	out, _ := query.Encode(nil)
	if _, err := k.net.Write(out); err != nil {
		t.Fatal(err)
	}
	for {
		msg, err := k.front.Receive()
		if err != nil {
			t.Fatal(err)
		}
		switch msg := msg.(type) {
		case *pgproto3.DataRow:
			names = append(names, string(msg.Values[0]))
		case *pgproto3.ErrorResponse:
			t.Fatal(msg.Message)
		case *pgproto3.ReadyForQuery:
			return names
		}
	}
}

// TestPool_Prepared: whatever groups end with, a connection knows what its server has
// prepared for it.
func TestPool_Prepared(t *testing.T) {
	p := openPool(t, func(c *Config) { c.Width, c.Statements = 2, 32 })
	p.exec(t, "CREATE TABLE flips (id int PRIMARY KEY, v int); INSERT INTO flips SELECT i, i FROM generate_series(0, 99) i")
	text := func(n int) string {
		switch n % 10 {
		case 0:
			return fmt.Sprintf("SELECT %d, 10 / ($1::int %% 3)", n) // fails for some
		case 1:
			return fmt.Sprintf("SELECT %d FROM missing WHERE $1::int > 0", n)
		case 2:
			return fmt.Sprintf("SELECT %d, v FROM flips WHERE id = $1", n) // is another by and by
		case 3:
			return fmt.Sprintf("SELECT %d, count(*) FROM generate_series(1, $1::int * 300) x", n) // takes long for some
		}
		return fmt.Sprintf("SELECT %d, $1::int", n)
	}
	rounds := 12
	if testing.Short() {
		rounds = 4
	}
	for round := range rounds {
		var wg sync.WaitGroup
		for g := range 32 {
			wg.Go(func() {
				for i := range 40 {
					ctx, cancel := context.WithCancel(context.Background())
					if (g+i)%13 == 0 {
						cancel() // as soon as it can
					}
					n := rand.IntN(120)
					if rand.IntN(3) > 0 {
						n = []int{0, 4, 5, 6, 10}[rand.IntN(5)] // what is prepared everywhere shares transactions
					}
					p.stmt(text(n)).alone.Store(0) // as if it had never failed
					got, err := p.query(ctx, text(n), rand.IntN(100))
					if err == nil && n%10 > 3 && got == "" {
						t.Errorf("text %d: no row", n)
					}
					cancel()
				}
			})
		}
		p.exec(t, [...]string{"ALTER TABLE flips ALTER v TYPE text", "ALTER TABLE flips ALTER v TYPE int USING v::int"}[round%2])
		wg.Wait()
		waitFor(t, "every connection to be free", func() bool { s := p.Stats(); return s.Open == s.Idle && s.Queued == 0 })
		idle := p.takeIdle()
		for _, k := range idle {
			// What it is to close is on the server still.
			want := slices.Clone(k.closing)
			for name := range k.prepared.known {
				want = append(want, name)
			}
			slices.Sort(want)
			want = slices.Compact(want)
			have := slices.DeleteFunc(k.onServer(t), func(name string) bool { return name == "" })
			if missing := slices.DeleteFunc(slices.Clone(have), func(name string) bool { return slices.Contains(want, name) }); len(missing) > 0 {
				t.Errorf("the server has %d statements that the connection knows nothing of: %q", len(missing), missing)
			}
			for name := range k.prepared.known {
				if !slices.Contains(have, name) {
					t.Errorf("the server does not have %q", name)
				}
			}
			if len(k.prepared.known) > 32 {
				t.Errorf("%d statements; want no more than 32", len(k.prepared.known))
			}
		}
		closeAll(idle)
	}
	s := p.Stats()
	t.Logf("%+v", s)
	if s.Groups == 0 || s.Skipped == 0 || s.Stale == 0 {
		t.Error("no groups, or nothing in them failed or was out of date")
	}
}
