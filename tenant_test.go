package flightpg

import (
	"context"
	"database/sql"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

func TestMain(m *testing.M) {
	leak.Main(func() int { return pgtest.Run(m) })
}

const tenants = 64

// tenantSchema has a schema and a role for each tenant. data is another table
// in each search_path, mine shows another row to each role, and an INSERT into
// switcher sets the search_path of its session by a trigger.
func tenantSchema() string {
	s := `CREATE TABLE public.data (tenant int); INSERT INTO public.data VALUES (-1);
		CREATE TABLE public.owned (owner name, tenant int); INSERT INTO public.owned VALUES (current_user, -1);
		CREATE VIEW public.mine AS SELECT tenant FROM public.owned WHERE owner = current_user;
		CREATE TABLE public.switcher (tenant int);
		CREATE FUNCTION public.switch() RETURNS trigger LANGUAGE plpgsql AS
			$$ BEGIN PERFORM set_config('search_path', 't' || NEW.tenant, false); RETURN NEW; END $$;
		CREATE TRIGGER switch BEFORE INSERT ON public.switcher FOR EACH ROW EXECUTE FUNCTION public.switch();
	`
	for i := range tenants {
		s += fmt.Sprintf(`CREATE SCHEMA t%[1]d; CREATE TABLE t%[1]d.data (tenant int); INSERT INTO t%[1]d.data VALUES (%[1]d);
			CREATE ROLE %[2]s; GRANT %[2]s TO CURRENT_USER; GRANT SELECT ON public.owned, public.mine TO %[2]s;
			INSERT INTO public.owned VALUES ('%[2]s', %[1]d);
		`, i, tenantRole(i))
	}
	return s
}

var rolePrefix = "flightpg_tenant_" + strconv.Itoa(os.Getpid()) + "_" // roles belong to the server, not to the database

func tenantRole(i int) string { return rolePrefix + strconv.Itoa(i) }

type tenantKey struct{}

// tenantReads is how many reads TestTenants makes: a short form by default.
// `make tenants` makes two million.
func tenantReads(t *testing.T) int64 {
	n := int64(20_000)
	if v := os.Getenv("FLIGHTPG_TENANT_READS"); v != "" {
		var err error
		if n, err = strconv.ParseInt(v, 10, 64); err != nil {
			t.Fatalf("FLIGHTPG_TENANT_READS: %v", err)
		}
	}
	return n
}

// TestTenants lets 64 tenants read the same statements at once, while each
// becomes itself in another of the ways that PostgreSQL has. Every row must be
// its reader's. With the session layer taken out, it must fail.
func TestTenants(t *testing.T) {
	dsn := pgtest.Database(t)
	admin, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close(context.Background())
	if _, err := admin.Exec(t.Context(), tenantSchema()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		conn, err := pgx.Connect(context.Background(), dsn)
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close(context.Background())
		for i := range tenants {
			if _, err := conn.Exec(context.Background(), fmt.Sprintf("DROP OWNED BY %[1]s; DROP ROLE %[1]s", tenantRole(i))); err != nil {
				t.Error(err)
			}
		}
	})
	total := tenantReads(t)
	t.Run("EveryRowIsItsReaders", func(t *testing.T) {
		if foreign := tenantRace(t, dsn, total, false); foreign != 0 {
			t.Errorf("%d reads saw another tenant's row", foreign)
		}
	})
	t.Run("FailsWithoutTheSessionLayer", func(t *testing.T) {
		if foreign := tenantRace(t, dsn, min(total, 20_000), true); foreign == 0 {
			t.Error("no read saw another tenant's row: the test shows nothing")
		}
	})
}

// tenantRace makes total reads and returns how many saw a row that is not
// their reader's.
func tenantRace(t *testing.T, dsn string, total int64, noSessionLayer bool) (foreign int64) {
	openDB := func(cfg Config) *sql.DB {
		cfg.SessionConns, cfg.FlightConns = tenants, 4
		c, err := NewConnector(dsn, cfg)
		if err != nil {
			t.Fatal(err)
		}
		c.noSessionLayer = noSessionLayer
		db := c.OpenDB()
		t.Cleanup(func() { db.Close() })
		return db
	}
	db := openDB(Config{})
	become := func(ctx context.Context, conn *pgx.Conn) error {
		tenant, ok := ctx.Value(tenantKey{}).(int)
		if !ok {
			return nil // a connection opened in the background: reset before it is used
		}
		_, err := conn.Exec(ctx, fmt.Sprintf("SET search_path = t%d", tenant))
		return err
	}
	hooked := openDB(Config{
		AfterConnect: become,
		ResetSession: become,
		PartitionKey: func(ctx context.Context) string { return fmt.Sprint(ctx.Value(tenantKey{})) },
	})

	var reads, wrong, failed atomic.Int64
	var wg sync.WaitGroup
	for tenant := range tenants {
		wg.Go(func() {
			for reads.Load() < total && failed.Load() == 0 {
				err := tenantTurn(db, hooked, tenant, func(got, want int) {
					reads.Add(1)
					if got != want {
						wrong.Add(1)
					}
				})
				if err != nil {
					failed.Add(1)
					t.Errorf("tenant %d: %v", tenant, err)
				}
			}
		})
	}
	wg.Wait()
	a, b := ReadStats(db), ReadStats(hooked)
	t.Logf("%d reads, %d foreign; %d and %d joins", reads.Load(), wrong.Load(), a.Joins, b.Joins)
	if a.Joins == 0 || b.Joins == 0 && !noSessionLayer {
		t.Error("nobody joined: the test shows nothing")
	}
	return wrong.Load()
}

// tenantTurn makes one tenant read in one way, some times.
func tenantTurn(db, hooked *sql.DB, tenant int, saw func(got, want int)) error {
	const data, mine = "SELECT tenant FROM data", "SELECT tenant FROM mine"
	ctx := context.WithValue(context.Background(), tenantKey{}, tenant)
	times := 5
	read := func(q interface {
		QueryRowContext(context.Context, string, ...any) *sql.Row
	}, query string, want int,
	) error {
		for range times {
			var got int
			if err := q.QueryRowContext(ctx, query).Scan(&got); err != nil {
				return err
			}
			saw(got, want)
		}
		return nil
	}
	onConn := func(query string, become string, args ...any) error {
		c, err := db.Conn(ctx)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.ExecContext(ctx, become, args...); err != nil {
			return err
		}
		if err := read(c, query, tenant); err != nil {
			return err
		}
		// What a pooled connection carries on is as with pgx: leave it as found.
		_, err = c.ExecContext(ctx, "RESET ALL; RESET ROLE")
		return err
	}
	switch rand.IntN(8) {
	case 0:
		return onConn(data, fmt.Sprintf("SET search_path = t%d", tenant))
	case 1:
		return onConn(mine, "SET ROLE "+tenantRole(tenant))
	case 2:
		return onConn(data, "SELECT set_config('search_path', $1, false)", fmt.Sprintf("t%d", tenant))
	case 3:
		return onConn(data, "INSERT INTO public.switcher VALUES ($1)", tenant)
	case 4:
		tx, err := db.BeginTx(ctx, nil)
		if err != nil {
			return err
		}
		defer tx.Rollback()
		if _, err := tx.ExecContext(ctx, fmt.Sprintf("SET LOCAL search_path = t%d", tenant)); err != nil {
			return err
		}
		if err := read(tx, data, tenant); err != nil {
			return err
		}
		return tx.Commit()
	case 5: // the hook makes each connection the tenant's; few, so that some meet
		tenant %= 8
		ctx = context.WithValue(ctx, tenantKey{}, tenant)
		times = 50
		return read(hooked, data, tenant)
	case 6: // nobody in particular
		times = 50
		return read(db, mine, -1)
	default:
		times = 50
		return read(db, data, -1)
	}
}
