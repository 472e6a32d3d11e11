package flightpg

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
	"weak"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// slowCatalog is a load that takes what time it likes.
type slowCatalog struct {
	loads atomic.Int64
	takes atomic.Int64 // nanoseconds
	err   error
}

func (s *slowCatalog) load(ctx context.Context) (*catalog.Set, error) {
	s.loads.Add(1)
	select {
	case <-time.After(time.Duration(s.takes.Load())): // the bubble's time
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if s.err != nil {
		return nil, s.err
	}
	return new(catalog.Set), nil
}

// A picture takes memory by the megabyte, and DDL may come often.
func TestCatalogs_KeepOnePicture(t *testing.T) {
	c := &catalogs{db: new(database), ttl: time.Hour, load: new(slowCatalog).load}
	if err := c.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	old := weak.Make(c.current.Load())
	if err := c.refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	if old.Value() != nil {
		t.Error("the picture before is still in memory")
	}
}

func TestCatalogs(t *testing.T) {
	make := func(takes, ttl time.Duration) (*catalogs, *slowCatalog) {
		s := &slowCatalog{}
		s.takes.Store(int64(takes))
		return &catalogs{db: new(database), ttl: ttl, load: s.load}, s
	}
	ctx := context.Background()
	bubble(t, "FirstReadersShareOneLoad", func(t *testing.T) {
		c, s := make(100*time.Millisecond, time.Hour)
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if c.get(ctx) == nil {
					t.Error("get = nil; want the set")
				}
			})
		}
		wg.Wait()
		if n := s.loads.Load(); n != 1 {
			t.Errorf("%d loads; want 1", n)
		}
	})
	bubble(t, "WaitsASecondAtMost", func(t *testing.T) {
		c, _ := make(3*time.Second, time.Hour)
		start := time.Now()
		if c.get(ctx) != nil || time.Since(start) != catalogWait {
			t.Errorf("get returned after %v; want nil after %v", time.Since(start), catalogWait)
		}
		time.Sleep(3 * time.Second) // the bubble's time
		if c.peek(t.Context()) == nil {
			t.Error("peek = nil after the load has arrived")
		}
	})
	// It cannot be read (somebody has locked it, or streams hold all connections): not each
	// reader waits for that.
	bubble(t, "OneWaitsInVain", func(t *testing.T) {
		c, s := make(20*time.Second, time.Hour)
		start := time.Now()
		for range 100 {
			if c.get(ctx) != nil {
				t.Fatal("a set before it can be there")
			}
		}
		if d := time.Since(start); d != catalogWait {
			t.Errorf("100 readers, one after the other, waited for %v; want %v", d, catalogWait)
		}
		time.Sleep(20 * time.Second) // the bubble's time
		synctest.Wait()
		s.takes.Store(int64(100 * time.Millisecond))
		c.db.ddl.Add(1)
		if c.get(ctx) == nil || s.loads.Load() != 2 {
			t.Errorf("after it came nobody waits any more for the next one (%d loads)", s.loads.Load())
		}
	})
	bubble(t, "CallersContextEndsItsWait", func(t *testing.T) {
		c, _ := make(500*time.Millisecond, time.Hour)
		ctx, cancel := context.WithTimeout(ctx, 100*time.Millisecond)
		defer cancel()
		start := time.Now()
		if c.get(ctx) != nil || time.Since(start) != 100*time.Millisecond {
			t.Errorf("get returned after %v; want 100ms", time.Since(start))
		}
		time.Sleep(time.Second) // the bubble's time
		if c.peek(t.Context()) == nil {
			t.Error("the load ended with its first caller")
		}
	})
	bubble(t, "TimeToLiveIsOffTheCallersPath", func(t *testing.T) {
		c, s := make(100*time.Millisecond, time.Minute)
		first := c.get(ctx)
		time.Sleep(time.Minute + time.Second) // the bubble's time
		start := time.Now()
		if got := c.get(ctx); got != first || time.Since(start) != 0 {
			t.Errorf("get waited %v for another set", time.Since(start))
		}
		synctest.Wait()
		time.Sleep(time.Second) // the bubble's time
		if got := c.get(ctx); got == first || s.loads.Load() != 2 {
			t.Errorf("%d loads; want a second one by now", s.loads.Load())
		}
	})
	bubble(t, "DDLMakesReadersWait", func(t *testing.T) {
		c, s := make(100*time.Millisecond, time.Hour)
		first := c.get(ctx)
		c.db.ddl.Add(1)
		if c.peek(t.Context()) != nil {
			t.Error("peek gives a set that is out of date")
		}
		if got := c.get(ctx); got == nil || got == first {
			t.Error("get gives no new set after DDL")
		}
		// DDL in the middle of a load: that load is not enough.
		c.db.ddl.Add(1)
		go c.get(ctx)
		time.Sleep(50 * time.Millisecond) // the bubble's time
		c.db.ddl.Add(1)
		if c.get(ctx) == nil || c.current.Load().ddl != 3 || s.loads.Load() != 4 {
			t.Errorf("the set is of DDL %d after %d loads; want 3 after 4", c.current.Load().ddl, s.loads.Load())
		}
	})
	bubble(t, "FailureIsNotRepeatedAtOnce", func(t *testing.T) {
		c, s := make(0, time.Hour)
		s.err = errors.New("permission denied")
		for range 10 {
			if c.get(ctx) != nil {
				t.Error("get = a set that could not be loaded")
			}
		}
		if n := s.loads.Load(); n != 1 {
			t.Errorf("%d loads; want 1", n)
		}
		if err := c.refresh(ctx); err != s.err {
			t.Errorf("refresh = %v; want %v", err, s.err)
		}
		s.err = nil
		time.Sleep(catalogRetryMost) // the bubble's time
		if c.get(ctx) == nil {
			t.Error("get = nil after the pause")
		}
	})
	// A hot standby cancels what reads while its primary cleans up; the picture from
	// before serves meanwhile.
	bubble(t, "FailureIsRepeatedSoon", func(t *testing.T) {
		c, s := make(0, time.Minute)
		first := c.get(ctx)
		s.err = errors.New("canceling statement due to conflict with recovery")
		var at []time.Duration
		for begin, n := time.Now(), int64(1); time.Since(begin) < 2*time.Minute && len(at) < 9; time.Sleep(time.Millisecond) { // the bubble's time
			if c.peek(t.Context()) != first {
				t.Fatal("the old picture does not serve while a new one cannot be loaded")
			}
			synctest.Wait()
			if loads := s.loads.Load(); loads != n {
				n = loads
				at = append(at, time.Since(begin))
			}
		}
		if len(at) < 9 || at[0] > time.Minute+time.Millisecond {
			t.Fatalf("loads at %v; want nine, the first within its time to live", at)
		}
		for i := 1; i < len(at); i++ {
			most := min(catalogRetryFirst<<(i-1), catalogRetryMost)
			if d := at[i] - at[i-1]; d < most/2 || d > most+2*time.Millisecond {
				t.Errorf("pause %d is %v; want between %v and %v", i, d, most/2, most)
			}
		}
		s.err = nil
		time.Sleep(catalogRetryMost) // the bubble's time
		c.peek(t.Context())
		synctest.Wait()
		if c.peek(t.Context()) == first {
			t.Error("no new picture when it can be loaded again")
		}
	})
	// Readers of a picture that is there never ask for more than that.
	bubble(t, "TimeToLiveIsSeenByThoseWhoPeek", func(t *testing.T) {
		c, s := make(100*time.Millisecond, time.Minute)
		first := c.get(ctx)
		for range 61 {
			time.Sleep(time.Second) // the bubble's time
			if c.peek(t.Context()) == nil {
				t.Fatal("peek = nil while the picture is loaded again")
			}
		}
		time.Sleep(time.Second) // the bubble's time
		if c.peek(t.Context()) == first || s.loads.Load() != 2 {
			t.Errorf("%d loads after the time to live; want a second one", s.loads.Load())
		}
		time.Sleep(time.Hour) // the bubble's time
		if s.loads.Load() != 2 {
			t.Errorf("%d loads while nobody reads; want none", s.loads.Load()-2)
		}
	})
	// Who comes when nobody has read for long is not judged by what was there then.
	bubble(t, "AfterAPauseReadersWait", func(t *testing.T) {
		c, s := make(100*time.Millisecond, time.Minute)
		first := c.get(ctx)
		time.Sleep(time.Hour) // the bubble's time
		if c.peek(t.Context()) != nil {
			t.Error("peek gives a picture of an hour ago")
		}
		start := time.Now()
		if got := c.get(ctx); got == nil || got == first || time.Since(start) > 100*time.Millisecond || s.loads.Load() != 2 {
			t.Errorf("get waited %v, %d loads; want a new picture", time.Since(start), s.loads.Load())
		}
		// One that cannot be loaded again is better than none.
		time.Sleep(time.Hour) // the bubble's time
		s.err = errors.New("permission denied")
		c.get(ctx)
		if c.peek(t.Context()) == nil || c.get(ctx) == nil {
			t.Error("no picture, though there is one that cannot be loaded again")
		}
	})
	bubble(t, "SlowLoadIsNoPause", func(t *testing.T) {
		c, s := make(100*time.Millisecond, time.Second)
		first := c.get(ctx)
		s.takes.Store(int64(10 * time.Second))
		for range 90 {
			time.Sleep(100 * time.Millisecond) // the bubble's time
			if c.peek(t.Context()) != first {
				t.Fatal("the old picture does not serve while the next one takes long")
			}
		}
		time.Sleep(10 * time.Second) // the bubble's time
	})
	bubble(t, "FleetIsSpread", func(t *testing.T) {
		const fleet = 40
		when := map[string]map[time.Duration]bool{"time to live": {}, "unknown name": {}}
		var wg sync.WaitGroup
		var mu sync.Mutex
		for range fleet {
			for what, seen := range when {
				wg.Go(func() {
					c, s := make(0, time.Minute)
					l := c.get(ctx)
					begin := time.Now()
					for s.loads.Load() == 1 && time.Since(begin) < 2*time.Minute {
						time.Sleep(10 * time.Millisecond) // the bubble's time
						if what == "unknown name" {
							c.unknown(l.gen)
						}
						c.peek(t.Context())
					}
					mu.Lock()
					seen[time.Since(begin)] = true
					mu.Unlock()
					if d := time.Since(begin); d > time.Minute+20*time.Millisecond {
						t.Errorf("%s: the next load after %v", what, d)
					}
				})
			}
		}
		wg.Wait()
		for what, seen := range when {
			if len(seen) < fleet/2 {
				t.Errorf("%s: %d processes load at %d moments", what, fleet, len(seen))
			}
		}
	})
	bubble(t, "MaybeDDLIsSeenSoon", func(t *testing.T) {
		c, s := make(100*time.Millisecond, time.Hour)
		first := c.get(ctx)
		time.Sleep(time.Minute) // the bubble's time
		begin := time.Now()
		for time.Since(begin) < time.Minute {
			c.soon() // all the time
			if c.peek(t.Context()) == nil {
				t.Fatal("peek = nil after what may have been DDL")
			}
			time.Sleep(10 * time.Millisecond) // the bubble's time
		}
		if c.peek(t.Context()) == first {
			t.Error("the picture is the old one a minute later")
		}
		if n := s.loads.Load() - 1; n < 10 || n > 15 { // 100 ms each are a part in 50 of 5 s
			t.Errorf("%d loads in a minute in which there may have been DDL all the time; want a dozen", n)
		}
		// It comes in the middle of a load, too.
		time.Sleep(time.Minute) // the bubble's time
		c.peek(t.Context())
		time.Sleep(time.Minute) // the bubble's time
		n := s.loads.Load()
		c.soon()
		c.peek(t.Context())
		time.Sleep(50 * time.Millisecond) // the bubble's time
		c.soon()
		for range 100 {
			time.Sleep(time.Second) // the bubble's time
			c.peek(t.Context())
		}
		if got := s.loads.Load() - n; got != 2 {
			t.Errorf("%d loads; want another one for what came in the middle of the first", got)
		}
	})
	bubble(t, "UnknownNameRefreshesSoon", func(t *testing.T) {
		c, s := make(0, -1)
		until := func() (d time.Duration) {
			n := s.loads.Load()
			for begin := time.Now(); s.loads.Load() == n; time.Sleep(10 * time.Millisecond) { // the bubble's time
				c.unknown(c.get(ctx).gen)
				synctest.Wait()
				d = time.Since(begin)
			}
			return d
		}
		c.get(ctx)
		// As long as nobody finds it, it is looked for ever less often.
		for n := range 12 {
			want := min(catalogSearch<<n, catalogSearchMost)
			if d := until(); d < want || d > want+catalogSpread+20*time.Millisecond {
				t.Errorf("load %d for a name that is not there after %v; want %v, or up to %v more", n, d, want, catalogSpread)
			}
		}
		c.found()
		if d := until(); d > catalogSearch+catalogSpread+20*time.Millisecond {
			t.Errorf("after a name was found the next load came after %v", d)
		}
		c.unknown(c.get(ctx).gen - 1) // of a picture before
		if c.current.Load().due.Load() != 0 {
			t.Error("an old picture's want has the new one loaded again")
		}
	})
}

func TestEffects(t *testing.T) {
	for sql, want := range map[string]effect{
		"SELECT 1":                           0,
		"SELECT nextval('s')":                0,
		"SELECT now() FROM t FOR UPDATE":     0,
		"INSERT INTO t VALUES (1)":           0,
		"SELECT f()":                         effectPins | effectMaybeDDL,
		"SELECT set_config('a', 'b', false)": effectPins,
		"SELECT pg_advisory_lock(1)":         effectLocks,
		"SELECT pg_try_advisory_lock(1), pg_advisory_unlock (2), lower('x')": effectLocks,
		"SELECT pg_try_advisory_lock_shared(g) FROM generate_series(1, 9) g": effectLocks,
		"SELECT pg_advisory_lock(1), set_config('a', 'b', false)":            effectPins,
		"SELECT set_config('a', 'b', false), pg_advisory_unlock_all()":       effectPins,
		"SELECT pg_advisory_lock(f())":                                       effectPins,
		"SELECT app.pg_advisory_lock(1)":                                     effectPins | effectMaybeDDL,
		"SELECT pg_advisory_lock(1); SET a = 1":                              effectPins | effectLocks,
		"SELECT \"pg_advisory_lock\"(1)":                                     effectPins, // nobody writes it so
		"SET a = 1":                                                          effectPins,
		"SET SESSION a = 1":                                                  effectPins,
		"SET ROLE x":                                                         effectPins,
		"SET LOCAL a = 1":                                                    0,
		"SET TRANSACTION READ ONLY":                                          0,
		"SAVEPOINT a":                                                        0,
		"RELEASE a":                                                          0,
		"ROLLBACK TO a":                                                      0,
		"ROLLBACK WORK TO SAVEPOINT a":                                       0,
		"ROLLBACK":                                                           effectTx,
		"BEGIN":                                                              effectTx,
		"COMMIT":                                                             effectTx,
		"LISTEN a":                                                           effectPins,
		"PREPARE p AS SELECT 1":                                              effectPins,
		"DISCARD ALL":                                                        effectPins,
		"DO $$ BEGIN END $$":                                                 effectPins | effectMaybeDDL,
		"CALL p()":                                                           effectPins | effectMaybeDDL,
		"CREATE TABLE t (a int)":                                             effectCloses | effectDDL,
		"create temp table t (a int)":                                        effectPins,
		"CREATE TABLE pg_temp.t (a int)":                                     effectPins,
		"CREATE OR REPLACE TEMP VIEW v AS SELECT 1":                          effectPins,
		"CREATE OR REPLACE VIEW v AS SELECT 1":                               effectCloses | effectDDL,
		"ALTER TABLE t ADD b int":                                            effectCloses | effectDDL,
		"DROP FUNCTION f":                                                    effectCloses | effectDDL,
		"TRUNCATE t":                                                         effectCloses,
		"CREATE TABLE t (a int); INSERT INTO t VALUES (1); CREATE INDEX ON t (a)": effectCloses | effectDDL,
		"SELECT 1; SELECT 2":      0,
		"SELECT 1; SET a = 1":     effectPins,
		"SELECT 1; SELECT f()":    effectPins | effectMaybeDDL,
		"SELECT 'open":            effectPins | effectMaybeDDL,
		"SELECT 1; SAVEPOINT a":   0,
		"SELECT * INTO t2 FROM t": effectPins,
	} {
		v := rules{noCatalog: true}.judge(sql, nil)
		if v.effects != want {
			t.Errorf("%s: effects %04b; want %04b", sql, v.effects, want)
		}
	}
}

// TestExempt: to a superuser no row-level security applies, but a connector whose hooks may
// give its sessions other roles does not count on that.
func TestExempt(t *testing.T) {
	dsn := pgtest.Database(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	if _, err := admin.Exec(t.Context(), "CREATE TABLE doc (id int); ALTER TABLE doc ENABLE ROW LEVEL SECURITY"); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		cfg  Config
		want Reason
	}{
		{Config{}, ReasonNone},
		{Config{PartitionKey: func(context.Context) string { return "" }}, ReasonRowSecurity},
	} {
		db, err := OpenDB(dsn, test.cfg)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := Explain(t.Context(), db, "SELECT id FROM doc"); err != nil || v.Reason != test.want {
			t.Errorf("with a PartitionKey: %v: %+v, %v; want %v", test.cfg.PartitionKey != nil, v, err, test.want)
		}
		_ = db.Close()
	}
}

// TestExplain asks a real server, and changes it.
func TestExplain(t *testing.T) {
	ctx := t.Context()
	dsn := pgtest.Database(t)
	admin, err := pgx.Connect(ctx, dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	// A superuser would be exempt from row-level security.
	role := fmt.Sprintf("flightpg_explained_%d", os.Getpid())
	if _, err := admin.Exec(ctx, "CREATE ROLE "+role+" LOGIN PASSWORD 'asks'; GRANT CREATE ON SCHEMA public TO "+role); err != nil {
		t.Fatal(err)
	}
	defer func() { _, _ = admin.Exec(context.Background(), "DROP OWNED BY "+role+" CASCADE; DROP ROLE "+role) }()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword(role, "asks")
	dsn = u.String()
	c, err := NewConnector(dsn, Config{})
	if err != nil {
		t.Fatal(err)
	}
	db := c.OpenDB()
	defer db.Close()
	check := func(query string, want Reason, layer string) Verdict {
		t.Helper()
		v, err := Explain(ctx, db, query)
		if err != nil || v.Reason != want || v.Layer != layer || v.Coalesce != (want == ReasonNone) {
			t.Errorf("Explain(%q) = %+v, %v; want %v by %s", query, v, err, want, layer)
		}
		return v
	}
	check("SELECT 1", ReasonNone, "text")
	check("SELECT * FROM later", ReasonUnknownRelation, "catalog")
	mustExec(t, db, "CREATE TABLE later (id int)") // seen: the next reader has it
	check("SELECT * FROM later", ReasonNone, "text")

	mustExec(t, db, "CREATE FUNCTION f(int) RETURNS int LANGUAGE sql STABLE AS 'SELECT $1'")
	check("SELECT f(1) FROM later", ReasonNone, "text")
	mustExec(t, db, "ALTER FUNCTION f(int) VOLATILE")
	v := check("SELECT  f(1) FROM later", ReasonUnsafeFunction, "catalog")
	if v.Name != "f" || v.Pos != 8 || !strings.Contains(v.Hint, "STABLE") {
		t.Errorf("verdict = %+v; want f at 8 and a hint to declare it STABLE", v)
	}
	mustExec(t, db, "CREATE VIEW over AS SELECT f(id) FROM later")
	v = check("SELECT * FROM over", ReasonUnsafeView, "catalog")
	_, alter, _ := strings.Cut(v.Hint, ": ")
	mustExec(t, db, alter)
	check("SELECT * FROM over", ReasonNone, "text")
	mustExec(t, db, "DROP VIEW over; ALTER FUNCTION f(int) VOLATILE")

	// To its owner row-level security does not apply, unless it is forced.
	mustExec(t, db, "ALTER TABLE later ENABLE ROW LEVEL SECURITY")
	check("SELECT * FROM later", ReasonNone, "text")

	// In a transaction DDL is seen by others at its end.
	tx, err := db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	mustExec(t, tx, "ALTER TABLE later FORCE ROW LEVEL SECURITY")
	check("SELECT * FROM later", ReasonNone, "text")
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	check("SELECT * FROM later", ReasonRowSecurity, "catalog")
	rows, err := db.Query("SELECT * FROM later")
	if err != nil {
		t.Fatal(err)
	}
	_ = rows.Close()
	if s := ReadStats(db); s.Bypasses[ReasonRowSecurity] != 1 {
		t.Errorf("Stats = %+v; want one bypass for row-level security", s)
	}

	// DDL of others is seen when asked for.
	if _, err := admin.Exec(ctx, "ALTER TABLE later DISABLE ROW LEVEL SECURITY"); err != nil {
		t.Fatal(err)
	}
	check("SELECT * FROM later", ReasonRowSecurity, "catalog")
	if err := RefreshCatalog(ctx, db); err != nil {
		t.Fatal(err)
	}
	check("SELECT * FROM later", ReasonNone, "text")

	// Another connector of the process sees DDL too.
	other, err := NewConnector(dsn, Config{RLS: true})
	if err != nil {
		t.Fatal(err)
	}
	odb := other.OpenDB()
	defer odb.Close()
	mustInt(t, odb, "SELECT count(*) FROM later")
	mustExec(t, odb, "ALTER TABLE later ENABLE ROW LEVEL SECURITY")
	check("SELECT * FROM later", ReasonRowSecurity, "catalog")
	if v, err := Explain(ctx, odb, "SELECT * FROM later"); err != nil || !v.Coalesce {
		t.Errorf("with flight_rls: %+v, %v; want it shared", v, err)
	}

	// What only the catalog knows to run unknown code keeps its session.
	mustExec(t, db, "CREATE VIEW writes AS SELECT f(id) FROM later; CREATE VIEW plain AS SELECT id FROM later")
	check("SELECT * FROM writes", ReasonUnsafeView, "catalog")
	for query, want := range map[string]effect{
		"SELECT * FROM writes":                    effectPins | effectMaybeDDL,
		"(SELECT * FROM writes)":                  effectPins | effectMaybeDDL,
		"SELECT 1; TABLE writes":                  effectPins | effectMaybeDDL,
		"INSERT INTO later SELECT f FROM writes":  effectPins | effectMaybeDDL,
		"SELECT random() FROM plain":              0,
		"SELECT * FROM nowhere":                   effectCloses,
		"INSERT INTO later VALUES (1)":            0,
		"SELECT 1; INSERT INTO later VALUES (1);": 0,
	} {
		if got := c.verdicts.get(query, c.peek(t.Context())).effects; got != want {
			t.Errorf("%s: effects %04b; want %04b", query, got, want)
		}
		if got := c.verdicts.get(query, nil).effects; got != 0 {
			t.Errorf("%s, without a catalog: effects %04b; want the text's word taken", query, got)
		}
	}

	check("SELECT random()", ReasonVolatileFunction, "text")
	if _, err := Explain(ctx, nil, "SELECT 1"); err == nil {
		t.Error("Explain(nil): no error")
	}
	if err := RefreshCatalog(ctx, openFake(t, &fakeServer{}, Config{})); err == nil {
		t.Error("RefreshCatalog over another driver: no error")
	}
	off, err := NewConnector(dsn+"&flight_mode=off", Config{})
	if err != nil {
		t.Fatal(err)
	}
	offDB := off.OpenDB()
	defer offDB.Close()
	if v, _ := Explain(ctx, offDB, "SELECT 1"); v.Reason != ReasonModeOff || v.Layer != "session" || v.Decision() != "bypass" {
		t.Errorf("with flight_mode=off: %+v", v)
	}
	if v := ExplainText("SELECT * FROM anything"); v.Decision() != "coalesce" {
		t.Errorf("ExplainText = %+v; want tables taken at their word", v)
	}
}
