package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// settings keep one execution as long as the next: no workers that may or may
// not be free, no compiler that runs at some estimate, no plan that changes
// after five executions. All connections have them, whatever the driver.
var settings = []string{
	"jit", "off",
	"max_parallel_workers_per_gather", "0",
	"plan_cache_mode", "force_custom_plan",
}

// withParams adds connection parameters, given as names and values, to a DSN in
// either of its forms. The last one of a name wins.
func withParams(dsn string, params ...string) string {
	isURL := strings.HasPrefix(dsn, "postgres://") || strings.HasPrefix(dsn, "postgresql://")
	for i := 0; i < len(params); i += 2 {
		name, value := params[i], params[i+1]
		switch {
		case !isURL:
			dsn += " " + name + "='" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(value) + "'"
		case strings.Contains(dsn, "?"):
			dsn += "&" + name + "=" + escape(value)
		default:
			dsn += "?" + name + "=" + escape(value)
		}
	}
	return dsn
}

// escape writes a value as PostgreSQL's URLs have it, where a plus is a plus.
func escape(value string) string { return strings.ReplaceAll(url.QueryEscape(value), "+", "%20") }

// shop is the data that is asked for, in a schema of its own, and what the
// server says about who asks.
type shop struct {
	dsn        string // with settings
	schema     string
	conn       *pgx.Conn // for everything that is not measured
	version    string    // of the server
	versionNum int

	statements bool // executions are counted by pg_stat_statements

	rows int    // in orders
	upTo int    // the query reads the orders up to this id
	want string // its result

	alone int64 // executions by askAlone
}

// Names of applications, beside those of the drivers under test.
const (
	appSetup   = "stampede-setup"
	appAlone   = "stampede-alone"
	appMonitor = "stampede-monitor"
)

// openShop connects to a database and makes a schema there.
func openShop(ctx context.Context, dsn string, cfg config) (*shop, error) {
	s := &shop{dsn: withParams(dsn, settings...)}
	conn, err := pgx.Connect(ctx, withParams(s.dsn, "application_name", appSetup))
	if err != nil {
		return nil, err
	}
	s.conn = conn
	if err := s.create(ctx, cfg); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func (s *shop) create(ctx context.Context, cfg config) error {
	err := s.conn.QueryRow(ctx, "select current_setting('server_version'), current_setting('server_version_num')::int").
		Scan(&s.version, &s.versionNum)
	if err != nil {
		return err
	}
	s.version, _, _ = strings.Cut(s.version, " ")
	// In a database that is not ours, take the extension if it is there.
	if cfg.dsn == "" {
		_, _ = s.conn.Exec(ctx, "create extension if not exists pg_stat_statements")
	}
	// Without shared_preload_libraries it is there and fails.
	_, err = s.conn.Exec(ctx, "select from pg_stat_statements limit 1")
	s.statements = err == nil

	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	schema := "stampede_" + hex.EncodeToString(id[:])
	if _, err = s.conn.Exec(ctx, "create schema "+schema); err != nil {
		return err
	}
	s.schema = schema
	_, err = s.conn.Exec(ctx, s.sql(`
		create table SHOP.products (id int not null, price numeric(8,2) not null);
		create table SHOP.orders (id int primary key, product_id int not null, quantity int not null);
		create table SHOP.counters (id int primary key, value bigint not null);
		insert into SHOP.products select n, (n * 7919 % 10000) / 100.0 + 1 from generate_series(0, 999) n;
		analyze SHOP.products`))
	return err
}

// close drops the schema, over a connection that no cancelled query has closed.
func (s *shop) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_ = s.conn.Close(ctx)
	if s.schema == "" {
		return nil
	}
	if err := s.drop(ctx); err != nil {
		return fmt.Errorf("schema %s is left behind: %w", s.schema, err)
	}
	return nil
}

// drop drops the schema. A query that a closed handle has left running may lock the
// tables in another order: then PostgreSQL ends one of the two, and it may be ours.
func (s *shop) drop(ctx context.Context) error {
	conn, err := pgx.Connect(ctx, s.dsn)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	for {
		_, err := conn.Exec(ctx, "drop schema "+s.schema+" cascade")
		var refused *pgconn.PgError
		if !errors.As(err, &refused) || refused.Code != deadlockDetected {
			return err
		}
	}
}

// deadlockDetected is an SQLSTATE.
const deadlockDetected = "40P01"

// sql puts the schema's name into a text.
func (s *shop) sql(text string) string { return strings.ReplaceAll(text, "SHOP", s.schema) }

// revenue is the query that everybody asks. Its time grows with the highest
// order id it takes in.
const revenue = `select sum(o.quantity * p.price) from SHOP.orders o join SHOP.products p on p.id = o.product_id where o.id <= $1`

func (s *shop) query() string { return s.sql(revenue) }

const (
	firstRows = 50_000
	mostRows  = 50_000_000
)

// load fills the table until the query can take as long as it should, and finds
// how many rows that is. It returns how long it takes.
func (s *shop) load(ctx context.Context, target time.Duration, p *progress) (time.Duration, error) {
	for rows := firstRows; ; rows *= 2 {
		p.say(fmt.Sprintf("loading %s rows", grouped(int64(rows))))
		_, err := s.conn.Exec(ctx, s.sql(`
			insert into SHOP.orders
			select n, n::bigint * 104729 % 1000, n % 7 + 1 from generate_series($1::int, $2::int) n`), s.rows+1, rows)
		if err != nil {
			return 0, err
		}
		s.rows, s.upTo = rows, rows
		if _, err := s.conn.Exec(ctx, s.sql("vacuum (analyze) SHOP.orders")); err != nil {
			return 0, err
		}
		took, err := s.time(ctx)
		if err != nil {
			return 0, err
		}
		if took > target*5/4 {
			break
		}
		if rows*2 > mostRows {
			return 0, fmt.Errorf("%d rows take %v only: use a lower -query-ms", rows, took)
		}
	}

	p.say(fmt.Sprintf("measuring the query: it should take %s", shortDuration(target)))
	best, bestUpTo := time.Duration(-1), 0
	for range 8 {
		took, err := s.time(ctx)
		if err != nil {
			return 0, err
		}
		if best < 0 || (took-target).Abs() < (best-target).Abs() {
			best, bestUpTo = took, s.upTo
		}
		if (took - target).Abs() < target/20 {
			break
		}
		s.upTo = min(max(int(float64(s.upTo)*float64(target)/float64(took)), 1), s.rows)
	}
	s.upTo = bestUpTo
	_, err := s.askAlone(ctx, 0) // for the result
	return best, err
}

// time returns the median of a few executions.
func (s *shop) time(ctx context.Context) (time.Duration, error) {
	took, err := s.askAlone(ctx, 7)
	return median(took), err
}

// askAlone executes the query n times, one after the other, over a connection
// of its own, after once more that warms it up. It returns how long each took.
func (s *shop) askAlone(ctx context.Context, n int) ([]time.Duration, error) {
	conn, err := pgx.Connect(ctx, withParams(s.dsn, "application_name", appAlone))
	if err != nil {
		return nil, err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var took []time.Duration
	for range n + 1 {
		start := time.Now()
		if err := conn.QueryRow(ctx, s.query(), s.upTo).Scan(&s.want); err != nil {
			return nil, err
		}
		took = append(took, time.Since(start))
		s.alone++
	}
	return took[1:], nil
}

// countedBy says where executions come from.
func (s *shop) countedBy() string {
	if s.statements {
		return "pg_stat_statements"
	}
	return "pg_stat_user_tables"
}

// executions returns how often the server has executed the query so far,
// without those of askAlone. Without pg_stat_statements it returns when the
// application's connections have ended: sessions report their figures when they
// like, and at their end.
func (s *shop) executions(ctx context.Context, app string) (n int64, err error) {
	if s.statements {
		// The text is kept as its first execution had it, with the schema's
		// name that is nobody else's.
		err = s.conn.QueryRow(ctx, `
			select coalesce(sum(calls), 0)::bigint from pg_stat_statements
			where query = $1 and dbid = (select oid from pg_database where datname = current_database())`,
			s.query()).Scan(&n)
		return n - s.alone, err
	}
	for _, app := range []string{app, appAlone} {
		if err := s.waitGone(ctx, app); err != nil {
			return 0, err
		}
	}
	if s.versionNum < 15_00_00 { // its figures arrive up to half a second late
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	// Each execution scans the products once: they are the small side of the
	// join. They have no index, which planning would look into and count as
	// scans.
	err = s.conn.QueryRow(ctx, `
		select seq_scan from pg_stat_user_tables
		where schemaname = $1 and relname = 'products'`, s.schema).Scan(&n)
	return n - s.alone, err
}

// backends counts the connections of one application, as the server sees them.
const backends = `select count(*) from pg_stat_activity where application_name = $1 and datname = current_database()`

// waitGone returns when the application has no connection left.
func (s *shop) waitGone(ctx context.Context, app string) error {
	tick := time.NewTicker(sampleEvery)
	defer tick.Stop()
	for {
		var n int
		if err := s.conn.QueryRow(ctx, backends, app).Scan(&n); err != nil || n == 0 {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sampleEvery is how often the server is asked who is connected.
const sampleEvery = 5 * time.Millisecond

// sampler asks the server again and again how many connections an application
// has, over a connection of its own.
type sampler struct {
	now  chan struct{} // asks for a sample at this moment
	quit context.CancelFunc
	done chan struct{}

	// Written before done is closed, read after.
	samples, peak int
	err           error
}

func (s *shop) sample(ctx context.Context, app string) (*sampler, error) {
	conn, err := pgx.Connect(ctx, withParams(s.dsn, "application_name", appMonitor))
	if err != nil {
		return nil, err
	}
	sm := &sampler{now: make(chan struct{}, 1), done: make(chan struct{})}
	quit, cancel := context.WithCancel(ctx)
	sm.quit = cancel
	go func() {
		defer close(sm.done)
		defer conn.Close(context.WithoutCancel(ctx))
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			var n int
			if sm.err = conn.QueryRow(ctx, backends, app).Scan(&n); sm.err != nil {
				return
			}
			sm.samples++
			sm.peak = max(sm.peak, n)
			select {
			case <-sm.now:
			case <-tick.C:
			case <-quit.Done():
				return
			}
		}
	}()
	return sm, nil
}

// poke asks for a sample now.
func (sm *sampler) poke() {
	select {
	case sm.now <- struct{}{}:
	default: // one is due anyway
	}
}

// stop ends the sampling and returns the highest number seen.
func (sm *sampler) stop() (peak int, err error) {
	sm.quit()
	<-sm.done
	return sm.peak, sm.err
}
