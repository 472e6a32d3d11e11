//go:build !race

package flightpg

import (
	"bufio"
	"context"
	"database/sql"
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg/internal/flight"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// The gate: figures of the driver's paths that are the same on every machine, in
// every mood of it, held against those on record in testdata. A time is never
// asserted, but what costs time is: allocations, goroutines, channels, timers, and
// how often the network is written to and read from, with how much.
//
// A figure that is worse than the one on record fails. One that is better is told,
// and the line that should go on record. FLIGHTPG_GATE_UPDATE=1 writes the file.

// spent is what an operation takes.
type spent [len(gateFigures)]float64

const (
	gateAllocs = iota
	gateBytes
	gateGoroutines
	gateChannels
	gateTimers
	gateWrites
	gateReads
	gateDeadlines
	gateSent
	gateReceived
)

// gateFigures are the figures, and how much worse one may be than on record without
// being another: what the runtime does now and then counts in the first two.
var gateFigures = [...]struct {
	name            string
	slack, relative float64
}{
	gateAllocs:     {"allocs", 0.3, 0.002},
	gateBytes:      {"bytes", 24, 0.02},
	gateGoroutines: {"goroutines", 0.1, 0},
	gateChannels:   {"channels", 0.1, 0},
	gateTimers:     {"timers", 0.1, 0},
	gateWrites:     {"writes", 0.1, 0},    // to the network
	gateReads:      {"reads", 0.1, 0},     // from it
	gateDeadlines:  {"deadlines", 0.5, 0}, // set on it; some only when an answer takes long
	gateSent:       {"sent", 0.5, 0},      // bytes
	gateReceived:   {"received", 0.5, 0},  // bytes
}

// traffic counts what goes over connections.
type traffic struct{ writes, reads, deadlines, sent, received atomic.Int64 }

func (tr *traffic) add(s *spent, sign float64) {
	for i, n := range map[int]*atomic.Int64{
		gateWrites: &tr.writes, gateReads: &tr.reads, gateDeadlines: &tr.deadlines, gateSent: &tr.sent, gateReceived: &tr.received,
	} {
		s[i] += sign * float64(n.Load())
	}
}

// dial is a pgconn.DialFunc.
func (tr *traffic) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &countedConn{c, tr}, nil
}

type countedConn struct {
	net.Conn
	tr *traffic
}

// NetConn says that the connection is the system's.
func (c *countedConn) NetConn() net.Conn { return c.Conn }

func (c *countedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.tr.reads.Add(1)
	c.tr.received.Add(int64(n))
	return n, err
}

func (c *countedConn) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	c.tr.writes.Add(1)
	c.tr.sent.Add(int64(n))
	return n, err
}

func (c *countedConn) SetDeadline(t time.Time) error {
	c.tr.deadlines.Add(1)
	return c.Conn.SetDeadline(t)
}

func (c *countedConn) SetReadDeadline(t time.Time) error {
	c.tr.deadlines.Add(1)
	return c.Conn.SetReadDeadline(t)
}

func (c *countedConn) SetWriteDeadline(t time.Time) error {
	c.tr.deadlines.Add(1)
	return c.Conn.SetWriteDeadline(t)
}

// gate measures paths and compares them with the record.
type gate struct {
	t      *testing.T
	record map[string]spent
	update bool
	now    []string // lines
	cases  []string
}

// attempts is how often a path is measured: what counts is the least of each figure,
// as whatever else goes on in the process only adds.
const attempts = 7

// spentBy returns what one call of run takes, which calls an operation ops times.
func spentBy(tr *traffic, ops int, run func()) spent {
	sample := func(profile bool) (s spent) {
		if profile {
			runtime.MemProfileRate = 1
			defer func() { runtime.MemProfileRate = 0 }()
			runtime.GC() // publishes what was counted before
			runtime.GC()
			s[gateChannels], s[gateTimers] = made()
			run()
			runtime.GC()
			runtime.GC()
			channels, timers := made()
			s[gateChannels], s[gateTimers] = channels-s[gateChannels], timers-s[gateTimers]
		} else {
			created := []metrics.Sample{{Name: "/sched/goroutines-created:goroutines"}}
			var before, after runtime.MemStats
			metrics.Read(created)
			runtime.ReadMemStats(&before)
			s[gateGoroutines] = -float64(created[0].Value.Uint64())
			tr.add(&s, -1)
			runtime.ReadMemStats(&before) // what tr.add takes is no operation's
			run()
			runtime.ReadMemStats(&after)
			tr.add(&s, 1)
			metrics.Read(created)
			s[gateGoroutines] += float64(created[0].Value.Uint64())
			s[gateAllocs] = float64(after.Mallocs - before.Mallocs)
			s[gateBytes] = float64(after.TotalAlloc - before.TotalAlloc)
		}
		for i := range s {
			s[i] /= float64(ops)
		}
		return s
	}
	run()
	run()
	best := sample(true)
	best[gateAllocs] = math.Inf(1)
	for range attempts {
		s := sample(false)
		if math.IsInf(best[gateAllocs], 1) {
			s[gateChannels], s[gateTimers] = best[gateChannels], best[gateTimers]
			best = s
			continue
		}
		for i := range s {
			if i != gateChannels && i != gateTimers {
				best[i] = min(best[i], s[i])
			}
		}
	}
	return best
}

// made returns how many channels and timers the profile of allocations has.
func made() (channels, timers float64) {
	records := make([]runtime.MemProfileRecord, 4096)
	for {
		n, ok := runtime.MemProfile(records, true)
		if ok {
			records = records[:n]
			break
		}
		records = make([]runtime.MemProfileRecord, 2*n)
	}
	for i := range records {
		frames := runtime.CallersFrames(records[i].Stack())
		for more := true; more; {
			var f runtime.Frame
			f, more = frames.Next()
			switch f.Function {
			case "runtime.makechan":
				channels += float64(records[i].AllocObjects)
				more = false
			case "time.newTimer":
				timers += float64(records[i].AllocObjects)
				more = false
			}
		}
	}
	return channels, timers
}

// round drops what the runtime has added to few of the calls.
func (s spent) round() spent {
	for i := range s {
		scale := 10.0
		if i == gateBytes {
			scale = 1
		}
		s[i] = math.Round(s[i]*scale) / scale
		if whole := math.Round(s[i]); i != gateBytes && math.Abs(s[i]-whole) < 0.15 {
			s[i] = whole
		}
		s[i] += 0 // no -0
	}
	return s
}

// check compares a path with its record.
func (g *gate) check(name string, got spent) {
	g.t.Helper()
	got = got.round()
	line := name + ":"
	for i, f := range gateFigures {
		line += fmt.Sprintf(" %s=%g", f.name, got[i])
	}
	g.now = append(g.now, line)
	g.cases = append(g.cases, name)
	if g.update {
		return
	}
	want, ok := g.record[name]
	if !ok {
		g.t.Errorf("not on record:\n%s", line)
		return
	}
	better := false
	for i, f := range gateFigures {
		slack := f.slack + f.relative*want[i]
		switch {
		case got[i] > want[i]+slack:
			g.t.Errorf("%s: %s = %g; the record is %g", name, f.name, got[i], want[i])
		case got[i] < want[i]-slack:
			better = true
		}
	}
	if better {
		g.t.Logf("better than the record: put this into %s\n%s", gateFile(), line)
	}
}

// gateFile has the record for this version of Go: its library is part of the figures.
func gateFile() string {
	v := runtime.Version()
	if parts := strings.SplitN(v, ".", 3); len(parts) == 3 {
		v = parts[0] + "." + parts[1]
	}
	return filepath.Join("testdata", "gate_"+v+".txt")
}

// parseGate reads a record.
func parseGate(text string) (map[string]spent, error) {
	record := make(map[string]spent)
	for s := bufio.NewScanner(strings.NewReader(text)); s.Scan(); {
		line := strings.TrimSpace(s.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		name, rest, ok := strings.Cut(line, ":")
		var sp spent
		for _, field := range strings.Fields(rest) {
			key, value, _ := strings.Cut(field, "=")
			i := slices.IndexFunc(gateFigures[:], func(f struct {
				name            string
				slack, relative float64
			},
			) bool {
				return f.name == key
			})
			v, err := strconv.ParseFloat(value, 64)
			if i < 0 || err != nil {
				return nil, fmt.Errorf("%q in %q", field, line)
			}
			sp[i] = v
		}
		if _, twice := record[name]; !ok || twice {
			return nil, fmt.Errorf("%q: no name, or one that was there before", line)
		}
		record[name] = sp
	}
	return record, nil
}

const gateHeader = `# What one operation takes on each path of the driver, with all that is below it:
# database/sql, the caller's context, pgx. TestGate holds the driver to it; see there.
# A worse figure fails the test. FLIGHTPG_GATE_UPDATE=1 make gate writes the file.
`

func TestGate(t *testing.T) {
	if math.MaxInt == math.MaxInt32 {
		t.Skip("the record is of 64-bit machines")
	}
	if os.Getenv(pgtest.EnvDSN) != "" {
		t.Skip("the record is of a server without a pooler in between; this one's is not known")
	}
	update := os.Getenv("FLIGHTPG_GATE_UPDATE") != ""
	text, err := os.ReadFile(gateFile())
	switch {
	case os.IsNotExist(err) && !update:
		t.Skipf("there is no record for %s: FLIGHTPG_GATE_UPDATE=1 make gate writes one", runtime.Version())
	case err != nil && !os.IsNotExist(err):
		t.Fatal(err)
	}
	record, err := parseGate(string(text))
	if err != nil {
		t.Fatalf("%s: %v", gateFile(), err)
	}
	g := &gate{t: t, record: record, update: update}

	// One processor and no garbage collection but ours: neither is an operation's.
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	defer func(rate int) { runtime.MemProfileRate = rate }(runtime.MemProfileRate)
	runtime.MemProfileRate = 0

	gateParts(g)
	gateReadsOf(g)
	gateFollowers(g)
	gateWritesOf(g)

	if update {
		if err := os.WriteFile(gateFile(), []byte(gateHeader+"\n"+strings.Join(g.now, "\n")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		t.Skipf("%s is written: nothing was compared", gateFile())
	}
	for name := range record {
		if !slices.Contains(g.cases, name) {
			t.Errorf("%s is on record, but nobody measures it", name)
		}
	}
}

// gateParts measures parts of the driver alone.
func gateParts(g *gate) {
	const ops = 1000
	var off traffic
	repeat := func(op func()) func() {
		return func() {
			for range ops {
				op()
			}
		}
	}
	const query = "SELECT name, n FROM items WHERE id = $1"
	cache := newVerdictCache(rules{noCatalog: true})
	g.check("verdict, cached", spentBy(&off, ops, repeat(func() { cache.get(query, nil) })))

	var buf []byte
	for _, k := range []struct {
		name string
		args []any
	}{
		{"an int64", []any{int64(1 << 40)}},
		{"five types", []any{int64(1 << 40), "some text", true, time.Unix(1, 2), 1.5}},
	} {
		named := namedValues(k.args)
		buf, _ = new(keying).appendKey(buf[:0], viaQuery, "", named)
		g.check("key of "+k.name, spentBy(&off, ops, repeat(func() { buf, _ = new(keying).appendKey(buf[:0], viaQuery, "", named) })))
	}

	table := flight.New[gateValue](new(flight.Epoch), flight.Options{Width: 2})
	var key [8]byte
	n := uint64(0)
	g.check("flight table, leader", spentBy(&off, ops, repeat(func() {
		n++
		binary.BigEndian.PutUint64(key[:], n)
		f, _ := table.Enter(flight.Key{Text: query, Args: key[:]}, flight.Fenced)
		_, _ = f.Lead(context.Background(), gateRunner{})
	})))
	g.check("flight table, leader in a goroutine", spentBy(&off, ops, repeat(func() {
		n++
		binary.BigEndian.PutUint64(key[:], n)
		f, _ := table.Enter(flight.Key{Text: query, Args: key[:]}, flight.Fenced)
		f.Launch(context.Background(), gateRunner{})
		_, _ = f.Wait(context.Background())
	})))

	hold := make(chan chan struct{})
	callers := newGateCallers(func() {
		f, leader := table.Enter(flight.Key{Text: query}, flight.Join)
		if leader {
			_, _ = f.Lead(context.Background(), gateRunner{hold})
		} else {
			_, _ = f.Wait(context.Background())
		}
	})
	defer callers.stop()
	g.check("flight table, follower", callers.marginal(&off, func() int64 { return table.Stats().Waiting }, func() (land func()) {
		release := make(chan struct{})
		return func() {
			hold <- release
			close(release)
		}
	}))
}

// gateValue is a flight.Value of nothing.
type gateValue struct{}

func (gateValue) Share(int)           {}
func (gateValue) Keep() (int64, bool) { return 0, false }
func (gateValue) Retain()             {}
func (gateValue) Drop()               {}

// gateRunner is a flight.Inline that does nothing but wait for a message on hold,
// if there is one.
type gateRunner struct{ hold chan chan struct{} }

func (r gateRunner) Run(_ context.Context, f *flight.Flight[gateValue]) (gateValue, error) {
	f.Dispatch()
	if r.hold != nil {
		<-<-r.hold
	}
	return gateValue{}, nil
}

func (r gateRunner) RunInline(ctx context.Context, f *flight.Flight[gateValue]) (v gateValue, err error, more bool) { //nolint:revive // as flight has it
	v, err = r.Run(ctx, f)
	return v, err, false
}

func (gateRunner) Detach() {}

// gateCallers are goroutines that do something when they are told to, at the same
// time.
type gateCallers struct {
	tell    []chan struct{}
	done    sync.WaitGroup // of a round
	running sync.WaitGroup
}

// Followers are measured as what so many more of them take.
const (
	fewCallers  = 8
	manyCallers = 72
)

func newGateCallers(do func()) *gateCallers {
	c := &gateCallers{}
	for range manyCallers {
		tell := make(chan struct{})
		c.tell = append(c.tell, tell)
		c.running.Go(func() {
			for range tell {
				do()
				c.done.Done()
			}
		})
	}
	return c
}

func (c *gateCallers) stop() {
	for _, tell := range c.tell {
		close(tell)
	}
	c.running.Wait()
}

// marginal returns what one more follower takes. prepare makes the flight wait until
// land is called.
func (c *gateCallers) marginal(tr *traffic, waiting func() int64, prepare func() (land func())) spent {
	round := func(n int) func() {
		return func() {
			land := prepare()
			c.done.Add(n)
			for i := range n {
				c.tell[i] <- struct{}{}
			}
			for waiting() < int64(n) {
				runtime.Gosched()
			}
			land()
			c.done.Wait()
		}
	}
	few, many := spentBy(tr, 1, round(fewCallers)), spentBy(tr, 1, round(manyCallers))
	for i := range many {
		many[i] = (many[i] - few[i]) / (manyCallers - fewCallers)
	}
	return many
}

// gateDB is a handle whose traffic is counted.
type gateDB struct {
	*sql.DB
	c  *Connector // nil for pgx
	tr traffic
}

// openGate opens a handle through flightpg, or with pgx's driver where cfg is nil.
func openGate(t *testing.T, dsn string, cfg *Config) *gateDB {
	t.Helper()
	pc, err := pgx.ParseConfig(dsn)
	if err != nil {
		t.Fatal(err)
	}
	db := &gateDB{}
	pc.DialFunc = db.tr.dial
	if cfg == nil {
		db.DB = stdlib.OpenDB(*pc)
	} else {
		if db.c, err = NewConnectorWithConfig(pc, *cfg); err != nil {
			t.Fatal(err)
		}
		db.DB = db.c.OpenDB()
	}
	t.Cleanup(func() { _ = db.Close() })
	return db
}

// gateWays are the ways of running a read.
var gateWays = []struct {
	name string
	cfg  *Config
}{
	{"pgx", nil},
	{"generic", &Config{Executor: ExecutorGeneric, CatalogTTL: -1}},
	{"pipeline", &Config{Executor: ExecutorPipeline, CatalogTTL: -1}},
}

const (
	gateOne  = "SELECT name, n FROM gate_items WHERE id = $1"
	gateMany = "SELECT id, name, n FROM gate_items WHERE id BETWEEN $1 AND $2"
)

// gateDSN makes a database with a table.
func gateDSN(t *testing.T) string {
	t.Helper()
	dsn := pgtest.Database(t)
	db := openGate(t, dsn, nil)
	// Text and numbers of one length: the bytes of all rows are as many.
	mustExec(t, db, "CREATE TABLE gate_items (id int PRIMARY KEY, name text, n bigint)")
	mustExec(t, db, "INSERT INTO gate_items SELECT i, 'item ' || i, i * 7 FROM generate_series(10000, 99999) i")
	mustExec(t, db, "ANALYZE gate_items")
	return dsn
}

// readOne reads one row with a context that has a timeout.
func (db *gateDB) readOne(t *testing.T, id int64) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var name string
	var n int64
	if err := db.QueryRowContext(ctx, gateOne, id).Scan(&name, &n); err != nil || n != id*7 {
		t.Errorf("item %d is %q, %d, %v", id, name, n, err)
	}
}

// readMany reads a hundred rows.
func (db *gateDB) readMany(t *testing.T, from int64) {
	rows, err := db.QueryContext(context.Background(), gateMany, from, from+99)
	if err != nil {
		t.Error(err)
		return
	}
	defer rows.Close()
	count := 0
	var id, n int64
	var name string
	for rows.Next() {
		if err := rows.Scan(&id, &name, &n); err != nil {
			t.Error(err)
		}
		count++
	}
	if err := rows.Err(); err != nil || count != 100 {
		t.Errorf("%d rows, %v", count, err)
	}
}

// gateReadsOf measures reads that nobody shares, and ones that are replayed from a
// result that is kept.
func gateReadsOf(g *gate) {
	t := g.t
	dsn := gateDSN(t)
	for _, way := range gateWays {
		db := openGate(t, dsn, way.cfg)
		id := int64(10_000)
		next := func() int64 { id = 10_000 + (id-9_999)%80_000; return id }
		const ops = 300
		g.check("read of a row alone, "+way.name, spentBy(&db.tr, ops, func() {
			for range ops {
				db.readOne(t, next())
			}
		}))
		const opsMany = 40
		g.check("read of 100 rows alone, "+way.name, spentBy(&db.tr, opsMany, func() {
			for range opsMany {
				db.readMany(t, next())
			}
		}))
	}

	kept := openGate(t, dsn, &Config{Executor: ExecutorPipeline, CatalogTTL: -1, Window: time.Hour})
	const ops = 300
	g.check("replay of a row", spentBy(&kept.tr, ops, func() {
		for range ops {
			kept.readOne(t, 10_000)
		}
	}))
	const opsMany = 100
	g.check("replay of 100 rows", spentBy(&kept.tr, opsMany, func() {
		for range opsMany {
			kept.readMany(t, 10_000)
		}
	}))
}

// gateFollowers measures followers of a flight that waits for a lock until all of
// them have joined it.
func gateFollowers(g *gate) {
	t := g.t
	dsn := gateDSN(t)
	locker := openGate(t, dsn, nil)
	for _, way := range gateWays {
		if way.cfg == nil {
			continue
		}
		db := openGate(t, dsn, way.cfg)
		db.readOne(t, 10_000) // the catalog comes before the lock
		callers := newGateCallers(func() { db.readOne(t, 10_000) })
		got := callers.marginal(&db.tr, func() int64 { return db.c.table.Stats().Waiting }, func() (land func()) {
			tx, err := locker.Begin()
			if err == nil {
				_, err = tx.Exec("LOCK TABLE gate_items IN ACCESS EXCLUSIVE MODE")
			}
			if err != nil {
				t.Fatal(err)
			}
			return func() {
				if err := tx.Rollback(); err != nil {
					t.Error(err)
				}
			}
		})
		callers.stop()
		g.check("read of a row as a follower, "+way.name, got)
	}
}

// gateWritesOf measures what is passed through.
func gateWritesOf(g *gate) {
	t := g.t
	dsn := gateDSN(t)
	for _, way := range gateWays {
		db := openGate(t, dsn, way.cfg)
		const ops = 200
		write := func(e interface {
			ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
		},
		) {
			if _, err := e.ExecContext(context.Background(), "UPDATE gate_items SET n = n + 7 WHERE id = $1", int64(20_000)); err != nil {
				t.Error(err)
			}
		}
		g.check("write, "+way.name, spentBy(&db.tr, ops, func() {
			for range ops {
				write(db)
			}
		}))
		g.check("transaction of a write, "+way.name, spentBy(&db.tr, ops, func() {
			for range ops {
				tx, err := db.Begin()
				if err != nil {
					t.Fatal(err)
				}
				write(tx)
				if err := tx.Commit(); err != nil {
					t.Error(err)
				}
			}
		}))
	}
}

func TestParseGate(t *testing.T) {
	got, err := parseGate("# x\n\na, b: allocs=1.5 sent=3\nc: reads=2\n")
	if err != nil || len(got) != 2 || got["a, b"][gateAllocs] != 1.5 || got["a, b"][gateSent] != 3 || got["c"][gateReads] != 2 {
		t.Errorf("parseGate = %v, %v", got, err)
	}
	for _, bad := range []string{"a: allocs=x", "a: nonsense=1", "a", "a: allocs=1\na: allocs=2"} {
		if _, err := parseGate(bad); err == nil {
			t.Errorf("parseGate(%q) has no error", bad)
		}
	}
}
