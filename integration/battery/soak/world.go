package main

import (
	"context"
	"crypto/md5"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"strconv"
	"sync/atomic"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/rs/zerolog"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

const (
	items       = 400
	accounts    = 32
	sideRows    = 20
	connections = 80 // of the server; the handles may take 60
	role        = "soak"
)

// schema is what the clients work on. The rows of items are written by one client
// each, with rising versions, and hold hashes of id and version. A write that was
// lost and comes late finds a higher version and changes nothing.
//
// ledger has no unique key: a write that ran twice must show, not fail.
const schema = `
	CREATE TABLE items (id int PRIMARY KEY, ver bigint NOT NULL, body text NOT NULL, raw bytea NOT NULL) WITH (fillfactor = 50);
	INSERT INTO items SELECT id, 0, md5(id || ':0'), decode(md5(id || ':0'), 'hex') FROM generate_series(0, %[1]d - 1) id;
	CREATE FUNCTION slow_item(wanted int, ms int) RETURNS SETOF items LANGUAGE plpgsql STABLE AS
		$$ BEGIN PERFORM pg_sleep(ms / 1000.0); RETURN QUERY SELECT * FROM items WHERE id = wanted; END $$;
	CREATE TABLE ledger (client int NOT NULL, seq bigint NOT NULL, account int NOT NULL, amount bigint NOT NULL);
	CREATE TABLE accounts (id int PRIMARY KEY, balance bigint NOT NULL) WITH (fillfactor = 30);
	INSERT INTO accounts SELECT id, 0 FROM generate_series(0, %[2]d - 1) id;
	CREATE FUNCTION book(client int, seq bigint, account int, amount bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS
		$$ BEGIN
			INSERT INTO ledger VALUES (client, seq, account, amount);
			UPDATE accounts SET balance = balance + amount WHERE id = account;
			RETURN seq;
		END $$;
	CREATE TABLE side (id int, fixed int);
	INSERT INTO side SELECT id, id * 3 FROM generate_series(1, %[3]d) id;
	CREATE ROLE %[4]s LOGIN;
	ALTER TABLE side OWNER TO %[4]s;
	GRANT SELECT, INSERT, UPDATE ON items, ledger, accounts TO %[4]s;
	GRANT CREATE, USAGE ON SCHEMA public TO %[4]s;
	GRANT TEMPORARY ON DATABASE %[5]s TO %[4]s;`

// item is what is known of a row of items.
type item struct {
	attempted atomic.Int64 // the highest version that somebody tried to write
	acked     atomic.Int64 // the highest one that is known to be there
}

// hash is what the row of an item holds in a version.
func hash(id int, ver int64) [md5.Size]byte {
	return md5.Sum([]byte(strconv.Itoa(id) + ":" + strconv.FormatInt(ver, 10)))
}

func hexHash(id int, ver int64) string {
	h := hash(id, ver)
	return hex.EncodeToString(h[:])
}

// handle is a way to the database.
type handle struct {
	name   string
	domain int // handles to one address share their fences
	db     *sql.DB
	native bool // pgx's own driver

	// Statements prepared once, as applications do.
	readStmt, writeStmt *sql.Stmt
}

// world is the server, the networks to it, and the handles.
type world struct {
	server  *pgtest.Server
	direct  *url.URL // of the soak's role
	proxies []*toxiproxy.Proxy
	handles []*handle
	items   [items]item
}

// Domains of fences: each address has one, and what is written from outside
// another, in which no fenced read is.
const (
	domainDirect = iota
	domainCut    // behind the first proxy
	domainTight  // behind the second one
	domainOutside
	domains
)

// domainOf says through which address an item is written.
func domainOf(id int) int { return id % domains }

func newWorld(ctx context.Context, cfg *config) (_ *world, err error) {
	w := new(world)
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
		}
	}()
	// The server is killed at times, and what it has acknowledged must be there:
	// as no machine crashes, fsync need not be on for that.
	w.server, err = pgtest.Start(ctx,
		pgtest.WithSetting("max_connections", strconv.Itoa(connections)),
		pgtest.WithSetting("synchronous_commit", "on"),
		pgtest.WithSetting("log_temp_files", "0"))
	if err != nil {
		return nil, err
	}
	err = w.admin(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, fmt.Sprintf(schema, items, accounts, sideRows, role, pgx.Identifier{conn.Config().Database}.Sanitize()))
		return err
	})
	if err != nil {
		return nil, err
	}
	if w.direct, err = url.Parse(w.server.DSN()); err != nil {
		return nil, err
	}
	w.direct.User = url.User(role)
	for i := range 2 {
		p, err := newProxy(fmt.Sprintf("network %d", i+1), w.direct.Host)
		if err != nil {
			return nil, err
		}
		w.proxies = append(w.proxies, p)
	}

	err = errors.Join(
		w.add("direct", domainDirect, w.direct.Host, flightpg.Config{FlightConns: 8, SessionConns: 14}),
		w.add("window", domainDirect, w.direct.Host, flightpg.Config{FlightConns: 3, SessionConns: 6, Window: 2 * time.Millisecond, Width: 3, IgnoreComments: true}),
		w.add("cut", domainCut, w.proxies[0].Listen, flightpg.Config{FlightConns: 6, SessionConns: 10}),
		w.add("tight", domainTight, w.proxies[1].Listen, flightpg.Config{
			FlightConns: 2, SessionConns: 4, MaxResult: 32 << 10, Memory: 256 << 10,
			Guard: flightpg.GuardTransaction, MaxIdleTime: 3 * time.Second, MaxLifetime: 20 * time.Second,
		}),
	)
	if err != nil {
		return nil, err
	}
	native, err := sql.Open("pgx", w.direct.String())
	if err != nil {
		return nil, err
	}
	native.SetMaxOpenConns(6)
	native.SetMaxIdleConns(6)
	w.handles = append(w.handles, &handle{name: "pgx", domain: domainOutside, db: native, native: true})
	for _, h := range w.handles {
		if h.readStmt, err = h.db.PrepareContext(ctx, `SELECT id, ver, body, raw FROM items WHERE id = $1`); err != nil {
			return nil, err
		}
		if h.writeStmt, err = h.db.PrepareContext(ctx, updateItem); err != nil {
			return nil, err
		}
		if cfg.duration < time.Minute {
			continue // nobody looks at the memory
		}
		if err := h.fill(ctx); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// judgedTexts is how many texts flightpg remembers its verdicts of.
const judgedTexts = 10_000

// fill has flightpg judge as many texts as it remembers: the load, too, has texts
// that never come again, and what they take must not look like a leak for the half
// hour until there are as many.
func (h *handle) fill(ctx context.Context) error {
	if h.native {
		return nil
	}
	for i := range judgedTexts {
		if _, err := flightpg.Explain(ctx, h.db, fmt.Sprintf(literalBooking, 1_000_000, i, 0, 0)); err != nil {
			return err
		}
	}
	return nil
}

func (w *world) add(name string, domain int, host string, cfg flightpg.Config) error {
	u := *w.direct
	u.Host = host
	h := &handle{name: name, domain: domain}
	w.handles = append(w.handles, h)
	var err error
	if h.db, err = flightpg.OpenDB(u.String(), cfg); err != nil {
		return err
	}
	// A connection on which a session's state was changed shares nothing any more;
	// with a lifetime, as many applications set it, there are never many of them.
	h.db.SetConnMaxLifetime(500 * time.Millisecond)
	return nil
}

// newProxy starts a proxy. Its port is below the range that outgoing connections
// have theirs from, one of which could take it while the proxy is stopped.
func newProxy(name, upstream string) (p *toxiproxy.Proxy, err error) {
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	for range 100 {
		p = toxiproxy.NewProxy(server, name, net.JoinHostPort("127.0.0.1", strconv.Itoa(20000+rand.IntN(12000))), upstream)
		if err = p.Start(); err == nil {
			return p, nil
		}
	}
	return nil, fmt.Errorf("no proxy: %w", err)
}

// admin calls f with a connection of the superuser's, for whom the server always
// has room.
func (w *world) admin(ctx context.Context, f func(*pgx.Conn) error) error {
	conn, err := pgx.Connect(ctx, w.server.DSN())
	if err != nil {
		return err
	}
	defer conn.Close(context.WithoutCancel(ctx))
	return f(conn)
}

func (w *world) version(ctx context.Context) (v string, err error) {
	err = w.admin(ctx, func(conn *pgx.Conn) error {
		v = conn.PgConn().ParameterStatus("server_version")
		return nil
	})
	return v, err
}

// close closes the handles.
func (w *world) close() error {
	var errs []error
	for _, h := range w.handles {
		for _, stmt := range []*sql.Stmt{h.readStmt, h.writeStmt} {
			if stmt != nil {
				errs = append(errs, stmt.Close())
			}
		}
		if h.db != nil {
			errs = append(errs, h.db.Close())
		}
	}
	return errors.Join(errs...)
}

func (w *world) stop() error {
	for _, p := range w.proxies {
		p.Stop()
	}
	if w.server == nil {
		return nil
	}
	return w.server.Stop()
}
