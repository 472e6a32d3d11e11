package main

import (
	"context"
	"crypto/md5"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// keys is how many rows each table has.
const keys = 24

// Defaults of the sides' roles: nobody may see others.
const (
	zone             = "Asia/Kathmandu" // +05:45
	zoneOffset       = "+05:45"
	lockTimeout      = "11min"
	statementTimeout = "12min"
)

// schema is what each side has a copy of. Rows say by a hash whose they are. The
// other role may read two of the tables only. Functions are STABLE, and change
// settings for the rest of what they believe to be their caller's transaction.
const schema = `
CREATE FUNCTION public.hash(t text, id int, ver int) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT md5(t || ':' || id || ':' || ver) $$;
CREATE TYPE mood AS ENUM ('sad', 'ok', 'glad');
CREATE TYPE place AS (x int, y int);
CREATE TYPE tint AS ENUM ('red', 'blue');
CREATE TABLE items (id int PRIMARY KEY, ver int NOT NULL, body text NOT NULL, n int NOT NULL);
INSERT INTO items SELECT id, 0, hash('items', id, 0), id * 7 FROM generate_series(0, %[1]d - 1) id;
CREATE TABLE orders (id int PRIMARY KEY, item_id int NOT NULL, body text NOT NULL, at timestamp NOT NULL);
INSERT INTO orders SELECT id, id * 3 %% %[1]d, hash('orders', id, 0), timestamp '2024-01-01' + id * interval '1 hour' FROM generate_series(0, %[1]d - 1) id;
CREATE TABLE refill (id int PRIMARY KEY, ver int NOT NULL, body text NOT NULL);
INSERT INTO refill SELECT id, 0, hash('refill', id, 0) FROM generate_series(0, %[1]d - 1) id;
CREATE TABLE moods (id int PRIMARY KEY, m mood NOT NULL, p place NOT NULL, body text NOT NULL, t tint NOT NULL);
INSERT INTO moods SELECT id, (enum_range(NULL::mood))[1 + id %% 3], ROW(id, -id)::place, hash('moods', id, 0), (enum_range(NULL::tint))[1 + id %% 2] FROM generate_series(0, %[1]d - 1) id;
CREATE TABLE docs (id int PRIMARY KEY, u uuid NOT NULL, at timestamptz NOT NULL, amount numeric NOT NULL, j jsonb NOT NULL, tags text[] NOT NULL, body text NOT NULL);
INSERT INTO docs SELECT id, hash('uuid', id, 0)::uuid, timestamptz '2024-01-01 00:00:00Z' + id * interval '1 hour', id + 0.25, jsonb_build_object('id', id), ARRAY['t' || id, 'all'], hash('docs', id, 0) FROM generate_series(0, %[1]d - 1) id;
CREATE TABLE logs (id int PRIMARY KEY, item_id int NOT NULL, body text NOT NULL);
INSERT INTO logs SELECT id, id %% 4, hash('logs', id, 0) FROM generate_series(0, %[1]d - 1) id;
CREATE TABLE locka (id int PRIMARY KEY, body text NOT NULL);
INSERT INTO locka SELECT id, hash('locka', id, 0) FROM generate_series(0, %[1]d - 1) id;
CREATE TABLE lockb (id int PRIMARY KEY, body text NOT NULL);
INSERT INTO lockb SELECT id, hash('lockb', id, 0) FROM generate_series(0, %[1]d - 1) id;
CREATE VIEW log_view AS SELECT id, body FROM logs WHERE id >= 0;
CREATE SCHEMA alt;
CREATE TABLE alt.docs AS TABLE docs;
CREATE TABLE alt.locka AS TABLE locka;
CREATE TABLE alt.lockb AS TABLE lockb;
CREATE FUNCTION limits() RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN
	RETURN concat_ws(',', current_user, current_setting('TimeZone'), current_setting('lock_timeout'), current_setting('statement_timeout'));
END $$;
CREATE FUNCTION in_zone(k int) RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN
	PERFORM set_config('TimeZone', 'America/Caracas', true);
	RETURN k || ' ' || current_setting('TimeZone');
END $$;
CREATE FUNCTION as_other(k int) RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN
	PERFORM set_config('role', '%[2]s', true);
	RETURN k || ' ' || current_user;
END $$;
CREATE FUNCTION with_limits(k int) RETURNS text LANGUAGE plpgsql STABLE AS $$ BEGIN
	PERFORM set_config('lock_timeout', '71ms', true), set_config('statement_timeout', '7s', true);
	RETURN k || ' ' || current_setting('lock_timeout');
END $$;
GRANT SELECT ON logs, docs, log_view TO %[2]s;
`

// hash is what the body of a row is.
func hash(table string, id, ver int) string {
	h := md5.Sum([]byte(table + ":" + strconv.Itoa(id) + ":" + strconv.Itoa(ver)))
	return hex.EncodeToString(h[:])
}

// The two sides.
const (
	flight = iota
	plain
	sides
)

// side is a driver with its own copy of everything.
type side struct {
	name   string
	role   string          // of its connections
	other  string          // what a function makes of it
	dsn    string          // of its database, as the superuser
	direct *pgx.ConnConfig // past the proxy, as the side's role
	proxy  *proxy
	db     *sql.DB
	book   *book
	shared atomic.Int64 // uses of a codec by two at once

	// Versions of the rows of refill: what was written for sure, and what may have been.
	written, attempted atomic.Int64

	// Of the weather alone.
	column, bigint, tz      bool // state of the schema
	indexes, labels, bodies int
}

// world is the server with the sides.
type world struct {
	server  *pgtest.Server
	own     bool // the server is ours alone
	version string
	sides   [sides]*side
}

func newWorld(ctx context.Context, cfg *config) (_ *world, err error) {
	w := new(world)
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
		}
	}()
	if w.server = cfg.server; w.server == nil {
		w.own = true
		if w.server, err = pgtest.Start(ctx, settings(cfg.conns)...); err != nil {
			return nil, err
		}
	}
	if err := w.admin(ctx, func(conn *pgx.Conn) error {
		w.version = conn.PgConn().ParameterStatus("server_version")
		return nil
	}); err != nil {
		return nil, err
	}
	for i, name := range []string{cfg.driver, "pgx"} {
		s := &side{name: name, book: newBook()}
		w.sides[i] = s
		if err = w.open(ctx, cfg, s, i == flight); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// settings are those of a server on which each side may have so many connections.
func settings(conns int) []pgtest.Option {
	return []pgtest.Option{
		pgtest.WithSetting("max_connections", strconv.Itoa(2*conns+80)),
		pgtest.WithSetting("deadlock_timeout", "200ms"),
	}
}

// open makes a side's database and its handle.
func (w *world) open(ctx context.Context, cfg *config, s *side, judged bool) (err error) {
	if s.dsn, err = w.server.NewDatabase(ctx); err != nil {
		return err
	}
	u, err := url.Parse(s.dsn)
	if err != nil {
		return err
	}
	database := u.Path[1:]
	s.role = strings.Replace(database, "flightpg_test", "storm", 1)
	s.other = s.role + "_other"
	if err := w.admin(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, fmt.Sprintf(`
			CREATE ROLE %[1]s LOGIN;
			CREATE ROLE %[2]s;
			GRANT %[2]s TO %[1]s;
			ALTER DATABASE %[3]s OWNER TO %[1]s;
			ALTER ROLE %[1]s SET TimeZone = '%[4]s';
			ALTER ROLE %[1]s SET lock_timeout = '%[5]s';
			ALTER ROLE %[1]s SET statement_timeout = '%[6]s'`,
			s.role, s.other, database, zone, lockTimeout, statementTimeout))
		return err
	}); err != nil {
		return err
	}
	u.User = url.User(s.role)
	if s.direct, err = pgx.ParseConfig(u.String()); err != nil {
		return err
	}
	s.direct.RuntimeParams["application_name"] = adminName
	if err := s.migrator(ctx, func(conn *pgx.Conn) error {
		// The public schema is the superuser's, but the database's owner may do
		// all there.
		_, err := conn.Exec(ctx, fmt.Sprintf(schema, keys, s.other))
		return err
	}); err != nil {
		return err
	}
	if s.proxy, err = newProxy(u.Host); err != nil {
		return err
	}
	u.Host = s.proxy.address()
	hook := hooks(&s.shared)
	if judged && cfg.hook != nil {
		types := hook
		hook = func(ctx context.Context, conn *pgx.Conn) error {
			return errors.Join(types(ctx, conn), cfg.hook(ctx, conn))
		}
	}
	if s.name == "pgx" {
		pc, err := pgx.ParseConfig(u.String())
		if err != nil {
			return err
		}
		s.db = stdlib.OpenDB(*pc, stdlib.OptionAfterConnect(hook))
	} else {
		fc := flightpg.Config{AfterConnect: hook, TrustDeclared: true} // its functions set things for their transactions
		if s.name == "generic" {
			fc.Executor = flightpg.ExecutorGeneric
		}
		if s.db, err = flightpg.OpenDB(u.String(), fc); err != nil {
			return err
		}
		s.name = "flightpg"
	}
	s.db.SetMaxOpenConns(cfg.conns)
	s.db.SetMaxIdleConns(cfg.conns)
	return nil
}

// adminName is the application_name of connections that no weather may touch.
const adminName = "storm weather"

// migrator calls f with a connection of the side's role, past the proxy.
func (s *side) migrator(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := pgx.ConnectConfig(ctx, s.direct)
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return f(conn)
}

// admin calls f with a connection of the superuser's.
func (w *world) admin(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, w.server.DSN())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return f(conn)
}

func (w *world) stop() error {
	var errs []error
	for _, s := range w.sides {
		if s == nil {
			continue
		}
		closed := make(chan error, 1)
		if s.db != nil {
			// A driver that hangs must not keep the storm from telling: without its
			// network it may end.
			go func() { closed <- s.db.Close() }()
			select {
			case err := <-closed:
				errs = append(errs, err)
				closed <- nil
			case <-time.After(5 * time.Second):
			}
		}
		if s.proxy != nil {
			s.proxy.stop()
		}
		if s.db != nil {
			select {
			case <-closed:
			case <-time.After(20 * time.Second):
				errs = append(errs, fmt.Errorf("storm: the handle of %s does not close", s.name))
			}
		}
	}
	switch {
	case w.server == nil:
		return errors.Join(errs...)
	case w.own:
		return errors.Join(append(errs, w.server.Stop())...)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	for _, s := range w.sides {
		if s == nil || s.dsn == "" {
			continue
		}
		errs = append(errs, w.server.DropDatabase(ctx, s.dsn), w.admin(ctx, func(conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, fmt.Sprintf(`DROP ROLE IF EXISTS %s, %s`, s.role, s.other))
			return err
		}))
	}
	return errors.Join(errs...)
}
