package main

import (
	"context"
	"database/sql"
	"fmt"
	"net/url"
	"strconv"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	_ "github.com/jackc/pgx/v5/stdlib"
	"golang.org/x/sync/singleflight"

	"github.com/flightpg/flightpg"
)

// Names of contenders.
const (
	pgx16        = "pgx-16" // what the others are compared with
	pgx64        = "pgx-64"
	pgxPool      = "pgxpool"
	handRolled   = "singleflight"
	generic      = "generic"
	pipelined    = "pipeline"
	pipelined1MB = "pipeline-1MB"
	noop         = "no-op"
	parking      = "parking"
)

// conns is how many connections the contenders get that have a limit of their own.
const conns = 16

// contender is a way of doing what the workloads ask for.
type contender struct {
	name  string
	about string
	reads bool   // it can do nothing but read, and has no server
	only  string // workloads that it is for, by a part of their names
	open  func(ctx context.Context, dsn string) (client, error)
}

// maxResult is enough for 10,000 rows, which are more than flightpg shares by
// default.
const maxResult = 8 << 20

// client is an open contender. It is safe for concurrent use.
type client interface {
	do(ctx context.Context, o *op) error
	close()
}

var contenders = []contender{
	{name: pgx16, about: "pgx's database/sql driver, 16 connections", open: openPgx(16)},
	{name: pgx64, about: "the same with 64 connections", open: openPgx(64)},
	{name: pgxPool, about: "pgxpool without database/sql, 16 connections", open: openPool},
	{name: handRolled, about: "golang.org/x/sync/singleflight by hand around pgx-16, sharing what was scanned", open: openHandRolled},
	{
		name: generic, about: "flightpg, flight_executor=generic, flight_conns=16, flight_max_result=8MB",
		open: openFlight(flightpg.Config{Executor: flightpg.ExecutorGeneric, FlightConns: conns, SessionConns: conns, MaxResult: maxResult}),
	},
	{
		name: pipelined, about: "flightpg, flight_executor=pipeline, flight_conns=64, flight_max_result=8MB",
		open: openFlight(flightpg.Config{Executor: flightpg.ExecutorPipeline, FlightConns: 64, SessionConns: conns, MaxResult: maxResult}),
	},
	{
		name: pipelined1MB, about: "the same with flight_max_result as it is by default", only: "10000 rows",
		open: openFlight(flightpg.Config{Executor: flightpg.ExecutorPipeline, FlightConns: 64, SessionConns: conns}),
	},
	{name: noop, about: "a driver that answers at once: what database/sql can do", reads: true, open: openCeiling(false)},
	{name: parking, about: "a driver whose readers park and are woken together: what followers can do", reads: true, open: openCeiling(true)},
}

func contenderNames() (names []string) {
	for i := range contenders {
		names = append(names, contenders[i].name)
	}
	return names
}

func contenderNamed(name string) *contender {
	for i := range contenders {
		if contenders[i].name == name {
			return &contenders[i]
		}
	}
	return nil
}

// named returns the DSN with the name of an application, by which its connections
// are found again.
func named(dsn, application string) (string, error) {
	u, err := url.Parse(dsn)
	if err != nil {
		return "", fmt.Errorf("the DSN must be a URL")
	}
	q := u.Query()
	q.Set("application_name", application)
	u.RawQuery = q.Encode()
	return u.String(), nil
}

func openPgx(n int) func(context.Context, string) (client, error) {
	return func(_ context.Context, dsn string) (client, error) {
		db, err := sql.Open("pgx", dsn)
		if err != nil {
			return nil, err
		}
		db.SetMaxOpenConns(n)
		db.SetMaxIdleConns(n)
		return &sqlClient{db}, nil
	}
}

func openFlight(cfg flightpg.Config) func(context.Context, string) (client, error) {
	return func(_ context.Context, dsn string) (client, error) {
		db, err := flightpg.OpenDB(dsn, cfg)
		if err != nil {
			return nil, err
		}
		return &sqlClient{db}, nil
	}
}

// sqlClient works as most applications of database/sql do.
type sqlClient struct{ db *sql.DB }

func (c *sqlClient) close() { _ = c.db.Close() }

// item is what the reads scan.
type item struct {
	id, n int64
	name  string
}

func (c *sqlClient) do(ctx context.Context, o *op) error {
	switch o.kind {
	case readRow:
		var it item
		return c.db.QueryRowContext(ctx, o.text, o.a).Scan(&it.name, &it.n)
	case readWait:
		var it item
		return c.db.QueryRowContext(ctx, o.text, o.a, o.b).Scan(&it.name, &it.n)
	case readRows:
		n := int64(0)
		err := c.rows(ctx, o, func(*item) { n++ })
		return counted(o, n, err)
	case write:
		_, err := c.db.ExecContext(ctx, o.text, o.a)
		return err
	case inTx:
		return c.tx(ctx, o)
	}
	panic("unknown operation")
}

// counted is an error if a read of several rows has not had all of them.
func counted(o *op, n int64, err error) error {
	if want := o.b - o.a + 1; err == nil && n != want {
		return fmt.Errorf("a read of %d rows gave %d", want, n)
	}
	return err
}

func (c *sqlClient) rows(ctx context.Context, o *op, each func(*item)) error {
	rows, err := c.db.QueryContext(ctx, o.text, o.a, o.b)
	if err != nil {
		return err
	}
	defer rows.Close()
	var it item
	for rows.Next() {
		if err := rows.Scan(&it.id, &it.name, &it.n); err != nil {
			return err
		}
		each(&it)
	}
	return rows.Err()
}

func (c *sqlClient) tx(ctx context.Context, o *op) error {
	tx, err := c.db.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	var n int64
	if err := tx.QueryRowContext(ctx, lockingText, o.a).Scan(&n); err != nil {
		return err
	}
	if _, err := tx.ExecContext(ctx, writeText, o.a); err != nil {
		return err
	}
	return tx.Commit()
}

// poolClient uses pgx's own interface.
type poolClient struct{ pool *pgxpool.Pool }

func openPool(ctx context.Context, dsn string) (client, error) {
	cfg, err := pgxpool.ParseConfig(dsn)
	if err != nil {
		return nil, err
	}
	cfg.MaxConns = conns
	pool, err := pgxpool.NewWithConfig(ctx, cfg)
	if err != nil {
		return nil, err
	}
	return &poolClient{pool}, nil
}

func (c *poolClient) close() { c.pool.Close() }

func (c *poolClient) do(ctx context.Context, o *op) error {
	var it item
	switch o.kind {
	case readRow:
		return c.pool.QueryRow(ctx, o.text, o.a).Scan(&it.name, &it.n)
	case readWait:
		return c.pool.QueryRow(ctx, o.text, o.a, o.b).Scan(&it.name, &it.n)
	case readRows:
		rows, err := c.pool.Query(ctx, o.text, o.a, o.b)
		if err != nil {
			return err
		}
		defer rows.Close()
		n := int64(0)
		for rows.Next() {
			if err := rows.Scan(&it.id, &it.name, &it.n); err != nil {
				return err
			}
			n++
		}
		return counted(o, n, rows.Err())
	case write:
		_, err := c.pool.Exec(ctx, o.text, o.a)
		return err
	case inTx:
		return pgx.BeginFunc(ctx, c.pool, func(tx pgx.Tx) error {
			if err := tx.QueryRow(ctx, lockingText, o.a).Scan(&it.n); err != nil {
				return err
			}
			_, err := tx.Exec(ctx, writeText, o.a)
			return err
		})
	}
	panic("unknown operation")
}

// handClient is what people write by hand: a key for each read, and what was
// scanned is shared. Callers get the same values, not copies.
type handClient struct {
	sqlClient
	group singleflight.Group
}

func openHandRolled(ctx context.Context, dsn string) (client, error) {
	inner, err := openPgx(conns)(ctx, dsn)
	if err != nil {
		return nil, err
	}
	return &handClient{sqlClient: *inner.(*sqlClient)}, nil
}

func (c *handClient) do(ctx context.Context, o *op) error {
	if o.kind == write || o.kind == inTx {
		return c.sqlClient.do(ctx, o)
	}
	key := make([]byte, 0, 48)
	key = append(key, o.text[:12]...)
	key = strconv.AppendInt(append(key, ':'), o.a, 10)
	key = strconv.AppendInt(append(key, ':'), o.b, 10)
	// The caller's end must not be everybody's.
	shared := context.WithoutCancel(ctx)
	load := *o
	read := func() (any, error) {
		if load.kind == readRows {
			var items []item
			err := c.rows(shared, &load, func(it *item) { items = append(items, *it) })
			return items, counted(&load, int64(len(items)), err)
		}
		var it item
		args := []any{load.a, load.b}
		if load.kind == readRow {
			args = args[:1]
		}
		err := c.db.QueryRowContext(shared, load.text, args...).Scan(&it.name, &it.n)
		return it, err
	}
	if ctx.Done() == nil {
		_, err, _ := c.group.Do(string(key), read)
		return err
	}
	select {
	case res := <-c.group.DoChan(string(key), read):
		return res.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}
