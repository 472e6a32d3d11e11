package judge

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/pgtest"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// verboseClosures logs what the server refuses.
var verboseClosures = os.Getenv("FLIGHTPG_CLOSURES_VERBOSE") != ""

// A reader is a session that hears of volatile functions.
type reader struct {
	conn  *pgx.Conn
	heard int
}

func newReader(t *testing.T, dsn, role string) *reader {
	t.Helper()
	cfg, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	r := &reader{}
	cfg.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
		if n.Message == "hit" {
			r.heard++
		}
	}
	cfg.RuntimeParams["statement_timeout"] = "400ms" // functions that read may take as long as they like
	cfg.RuntimeParams["search_path"] = "public, app"
	cfg.RuntimeParams["client_min_messages"] = "warning"
	if r.conn, err = pgx.ConnectConfig(t.Context(), cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.conn.Close(context.Background()) })
	run(t, r.conn, "SET ROLE "+role)
	return r
}

// read executes a statement, and returns its rows, how many calls it made, and whether
// the server took it.
func (r *reader) read(t *testing.T, sql string, args []string) (rows string, hits int, ok bool) {
	t.Helper()
	r.heard = 0
	params := make([][]byte, len(args))
	for i, a := range args {
		params[i] = []byte(a)
	}
	rr := r.conn.PgConn().ExecParams(t.Context(), sql, params, nil, nil, nil)
	var b strings.Builder
	for rr.NextRow() {
		for _, v := range rr.Values() {
			fmt.Fprintf(&b, "%t %s,", v == nil, v)
		}
		b.WriteByte('\n')
	}
	_, err := rr.Close()
	var pgErr *pgconn.PgError
	if err != nil && !errors.As(err, &pgErr) {
		t.Fatalf("%s: %v", sql, err)
	}
	if err != nil && verboseClosures {
		t.Logf("error: %s: %v", sql, err)
	}
	return b.String(), r.heard, err == nil
}

// closures are worlds, one after the other.
type closures struct {
	t    *testing.T
	dsn  string
	role string // which policies apply to
	conn *pgx.Conn
	seed uint64

	shares []int // of a world one: so many of its functions in a hundred are volatile

	objects, refused int
}

func newClosures(t *testing.T, seed uint64) *closures {
	t.Helper()
	c := &closures{t: t, dsn: pgtest.Database(t), role: fmt.Sprintf("closures_%d", time.Now().UnixNano()), seed: seed, shares: []int{0, 2, 5, 10, 20, 40, 60}}
	c.conn = connect(t, c.dsn)
	run(t, c.conn, "CREATE ROLE "+c.role)
	t.Cleanup(func() {
		ctx := context.Background() // the test's has ended
		conn, err := pgx.Connect(ctx, c.dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, "DROP OWNED BY "+c.role+"; DROP ROLE "+c.role, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Error(err)
		}
	})
	return c
}

// An execution is a statement that was run twice.
type execution struct {
	sql    string
	params []string
	hits   int  // calls of volatile functions, in both sessions
	ok     bool // the server took it
	same   bool // the two answers are equal
}

// each runs n statements in world i, and calls visit with each.
func (c *closures) each(i, n int, made func(*world), visit func(*world, *execution)) {
	c.t.Helper()
	w := makeWorld(c.t, c.conn, battery.Rand(c.seed, i), c.role, c.shares)
	c.objects, c.refused = c.objects+len(w.made)+w.refused, c.refused+w.refused
	made(w)
	a, b := newReader(c.t, c.dsn, c.role), newReader(c.t, c.dsn, c.role)
	for range n {
		e := execution{sql: w.statement()}
		e.params = w.params
		rows, hits, ok := a.read(c.t, e.sql, e.params)
		again, more, okAgain := b.read(c.t, e.sql, e.params)
		e.hits, e.ok, e.same = hits+more, ok && okAgain, rows == again
		visit(w, &e)
	}
	a.conn.Close(context.Background())
	b.conn.Close(context.Background())
}

// TestClosures runs statements over schemas that are made at random, each in two
// sessions, and hears of each volatile function that is called: by nothing that is
// shared.
//
//	FLIGHTPG_SEED      of what is generated
//	FLIGHTPG_CLOSURES  how many statements; 1,500 with -short, else 10,000
func TestClosures(t *testing.T) {
	seed, n := battery.Seed(t), battery.Quick(1500, 10_000)
	if s := os.Getenv("FLIGHTPG_CLOSURES"); s != "" {
		var err error
		if n, err = strconv.Atoi(s); err != nil {
			t.Fatal(err)
		}
	}
	c := newClosures(t, seed)
	perWorld := min(max(n/400, 125), 500)
	type counts struct{ shared, careful int }
	byShare := map[int]*counts{}
	var ran, failed, reached, shared, careful, mention, violations int
	causes, examples := map[string]int{}, map[string]string{}
	end, limited := t.Deadline()
	for i := 0; i*perWorld < n && violations < 20; i++ {
		if limited && time.Until(end) < 15*time.Second {
			t.Errorf("%d of %d statements when the time of go test was over", ran, n)
			break
		}
		var set *catalog.Set
		c.each(i, min(perWorld, n-i*perWorld), func(*world) { set = load(t, c.conn) }, func(w *world, e *execution) {
			v := Judge(e.sql, set, Options{RLS: true})
			if byShare[w.share] == nil {
				byShare[w.share] = &counts{}
			}
			read := v.Class == sqlscan.Read
			ran++
			if !e.ok {
				failed++
			}
			switch {
			case e.hits > 0:
				reached++
				if !read {
					return
				}
				if violations++; violations == 1 || verboseClosures {
					t.Logf("world %d of FLIGHTPG_SEED=%d:\n%s", i, seed, strings.Join(w.made, ";\n"))
				}
				t.Errorf("shared, and it calls something volatile: %s %q (world %d of FLIGHTPG_SEED=%d)", e.sql, e.params, i, seed)
			case !e.ok:
			case read:
				shared++
				byShare[w.share].shared++
				if !e.same {
					t.Errorf("shared, and there are two answers: %s %q (world %d of FLIGHTPG_SEED=%d)", e.sql, e.params, i, seed)
				}
			default:
				// What the text means, though nothing called it, is no excess of care.
				if unsafe, _ := w.reaches(inline(e.sql, e.params)); unsafe {
					mention++
					return
				}
				careful++
				byShare[w.share].careful++
				cause := fmt.Sprint(v.Reason)
				if causes[cause]++; examples[cause] == "" || w.one(20) {
					examples[cause] = fmt.Sprintf("%s [%s]", e.sql, v.Hint())
				}
			}
		})
	}
	share := 100 * float64(careful) / float64(max(1, shared+careful))
	t.Logf("%d statements, each in two sessions; %d (%.1f%%) refused by the server or too slow; %d called something volatile, of which %d were shared; %d of the others mean something volatile",
		ran, failed, 100*float64(failed)/float64(ran), reached, violations, mention)
	t.Logf("%d of %d that reach nothing volatile bypassed: %.2f%%; %d of %d objects refused by the server", careful, shared+careful, share, c.refused, c.objects)
	for _, share := range slices.Sorted(maps.Keys(byShare)) {
		n := byShare[share]
		t.Logf("  where %2d%% of the functions are volatile: %d of %d, %.2f%%", share, n.careful, n.shared+n.careful,
			100*float64(n.careful)/float64(max(1, n.shared+n.careful)))
	}
	const telling = 20_000 // statements; of fewer, chance makes the shares
	if n := byShare[0]; ran >= telling && n != nil && n.careful > (n.shared+n.careful)/50 {
		t.Errorf("%d of %d bypassed where nothing is volatile; want 2%% at most", n.careful, n.shared+n.careful)
	}
	for _, cause := range slices.Sorted(maps.Keys(causes)) {
		t.Logf("%6d %s: %s", causes[cause], cause, examples[cause])
	}
	if failed > ran/3 || reached < ran/200 || ran >= telling && (failed > ran/5 || reached < ran/50) {
		t.Error("too many are refused, or too few reach anything: that shows little")
	}
}

// inline puts values in the place of parameters, as of no type.
func inline(sql string, params []string) string {
	for i := len(params) - 1; i >= 0; i-- {
		sql = strings.ReplaceAll(sql, fmt.Sprintf("$%d", i+1), quote(params[i]))
	}
	return sql
}

// A closureMutant is a rule of the catalog layer that is left out.
type closureMutant struct {
	name      string
	old, with string                    // of catalog.sql
	drop      func(cells []string) bool // rows that it does not have
	words     func(w catalog.Word) bool // words of bodies that it reads; nil: all
	rare      bool                      // it takes more worlds than there is time for with -short
}

func dropEdges(from, to string) func([]string) bool {
	return func(cells []string) bool { return cells[0] == "e" && cells[2] == from && cells[3] == to }
}

var closureMutants = []closureMutant{
	{name: "checks of domains", drop: dropEdges("t", "f")},
	{name: "operator classes", drop: dropEdges("t", "m")},
	{name: "functions of operators", drop: dropEdges("o", "f")},
	{name: "functions in views", drop: dropEdges("r", "f")},
	{name: "trees of functions", drop: func(cells []string) bool { return cells[0] == "e" && cells[2] == "F" }},
	{name: "implicit casts", drop: func(cells []string) bool { return cells[0] == "c" && strings.HasSuffix(cells[4], " i") }},
	{name: "explicit casts", drop: func(cells []string) bool { return cells[0] == "c" && strings.HasSuffix(cells[4], " e") }},
	{name: "types of columns", drop: func(cells []string) bool { return cells[0] == "k" }},
	{name: "policies", old: "where relrowsecurity and polcmd", with: "where false and relrowsecurity and polcmd"},
	{name: "parts of aggregates", old: "where a.aggfnoid operator(pg_catalog.>=) 16384 and p ", with: "where false and p "},
	{name: "bodies", words: func(catalog.Word) bool { return false }},
	{name: "operators in bodies", words: func(w catalog.Word) bool { return !w.Operator }, rare: true},
	{name: "what bodies do not call", words: func(w catalog.Word) bool { return w.Called }},
}

func (m *closureMutant) load(t *testing.T, conn *pgx.Conn) *catalog.Set {
	t.Helper()
	query := func(ctx context.Context, sql string, row func([]string) error) error {
		if m.old != "" {
			if n := strings.Count(sql, m.old); n != 1 {
				t.Fatalf("catalog.sql has %d places to break; want 1: bring the control up to date: %s", n, m.old)
			}
			sql = strings.Replace(sql, m.old, m.with, 1)
		}
		return queryFunc(conn)(ctx, sql, func(cells []string) error {
			if m.drop != nil && m.drop(cells) {
				return nil
			}
			return row(cells)
		})
	}
	words := func(text string, visit func(catalog.Word) bool) bool {
		return sqlscan.Words(text, func(w catalog.Word) bool { return m.words != nil && !m.words(w) || visit(w) })
	}
	set, err := catalog.Load(t.Context(), query, catalog.Options{Words: words})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// TestControls_Closures leaves out one rule of the catalog layer after the other. What
// the generator writes must show each.
func TestControls_Closures(t *testing.T) {
	c := newClosures(t, 1)
	c.shares = []int{5, 10, 20, 40}
	found := map[string]string{} // by name: a statement
	// Those that are known to show one come first.
	worlds := []int{0, 2, 3, 7, 17, 30, 135}
	for i := range 300 {
		if !slices.Contains(worlds, i) {
			worlds = append(worlds, i)
		}
	}
	mutants := closureMutants
	if testing.Short() {
		mutants = slices.DeleteFunc(slices.Clone(mutants), func(m closureMutant) bool {
			if m.rare {
				t.Logf("NOT TRIED with -short: without %s", m.name)
			}
			return m.rare
		})
	}
	for _, i := range worlds {
		if len(found) == len(mutants) {
			break
		}
		sets := map[string]*catalog.Set{}
		c.each(i, 100, func(*world) {
			for _, m := range mutants {
				if found[m.name] == "" {
					sets[m.name] = m.load(t, c.conn)
				}
			}
		}, func(_ *world, e *execution) {
			if e.hits == 0 {
				return
			}
			for name, set := range sets {
				if found[name] == "" && Judge(e.sql, set, Options{RLS: true}).Class == sqlscan.Read {
					found[name] = e.sql
					t.Logf("without %s, world %d: %s", name, i, e.sql)
				}
			}
		})
	}
	for _, m := range mutants {
		if found[m.name] == "" {
			t.Errorf("without %s nothing goes wrong in %d worlds", m.name, len(worlds))
		}
	}
}
