// Webapp is a small shop over HTTP, to copy from. flightpg stands in one line,
// in openDB, where pgx would be; nothing else knows of it, but for GET /stats.
//
//	go run ./examples/webapp -demo
//	curl localhost:8080/products/1
//	curl -X POST localhost:8080/products/1/buy
//	curl localhost:8080/stats
//
// With -demo it starts a throw-away PostgreSQL with some products in it. Else it
// uses the database of -dsn or of DATABASE_URL; -load makes the tables there.
//
// The page of a product is what everybody asks for: however many requests for it
// arrive at a time, PostgreSQL answers one or two. Who buys sees the new stock
// in the next request. SIGINT or SIGTERM lets open requests finish, and ends it.
//
// Reading order: main.go (start and end) → shop.go (what it does).
package main

import (
	"context"
	"database/sql"
	_ "embed"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest" // for -demo only
)

// openDB opens the database. With pgx it would be sql.Open("pgx", dsn).
func openDB(dsn string) (*sql.DB, error) {
	// sql.Open("flightpg", dsn) does the same, with these limits in the DSN as
	// flight_conns=8&session_conns=16&flight_timeout=5s.
	return flightpg.OpenDB(dsn, flightpg.Config{
		FlightConns:  8,              // connections for shared reads
		SessionConns: 16,             // connections for writes and transactions
		Timeout:      requestTimeout, // of one shared read, whoever waits for it
	})
}

const (
	requestTimeout  = 5 * time.Second  // from a request's arrival to its answer
	shutdownTimeout = 10 * time.Second // for open requests, once a signal came
)

//go:embed schema.sql
var schema string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal does not wait
	switch err := run(ctx, os.Args[1:], os.Getenv, os.Stderr); {
	case errors.Is(err, flag.ErrHelp):
	case errors.Is(err, errUsage):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "webapp:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage") // said already

// loadProducts makes the tables, over a handle of its own, as for all migrations:
// a connection that ran DDL keeps its session, and shares no reads any more.
func loadProducts(ctx context.Context, dsn string) error {
	db, err := openDB(dsn)
	if err != nil {
		return err
	}
	_, err = db.ExecContext(ctx, schema)
	return errors.Join(err, db.Close())
}

// run serves until the context ends.
func run(ctx context.Context, args []string, getenv func(string) string, stderr io.Writer) (err error) {
	fs := flag.NewFlagSet("webapp", flag.ContinueOnError)
	fs.SetOutput(stderr)
	addr := fs.String("addr", "localhost:8080", "listen on this `address`")
	dsn := fs.String("dsn", "", "use the database of this `DSN` (default $DATABASE_URL)")
	demo := fs.Bool("demo", false, "start a throw-away PostgreSQL with some products")
	load := fs.Bool("load", false, "make the tables and some products where there are none")
	if err := fs.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return err
		}
		return errUsage
	}
	if *dsn == "" {
		*dsn = getenv("DATABASE_URL")
	}
	if fs.NArg() > 0 || (*dsn == "" && !*demo) {
		fmt.Fprintln(stderr, "webapp: use -dsn or DATABASE_URL for a database, or -demo: see -help")
		return errUsage
	}
	log := slog.New(slog.NewTextHandler(stderr, nil))

	if *demo {
		log.Info("starting a throw-away PostgreSQL")
		server, err := pgtest.Start(ctx)
		if err != nil {
			return err
		}
		defer func() {
			if err := server.Stop(); err != nil {
				log.Error("stop PostgreSQL", "error", err)
			}
		}()
		*dsn = server.DSN()
	}
	startCtx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if *load || *demo {
		if err := loadProducts(startCtx, *dsn); err != nil {
			return err
		}
	}
	db, err := openDB(*dsn)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }() // after the last request
	if err := db.PingContext(startCtx); err != nil {
		return err
	}

	srv := &http.Server{
		Handler:           (&shop{db: db, log: log}).routes(),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       10 * time.Second,
		WriteTimeout:      10 * time.Second,
		IdleTimeout:       time.Minute,
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(listener) }()
	log.Info("listening", "url", "http://"+listener.Addr().String())

	select {
	case err := <-served: // it never ends well by itself
		return err
	case <-ctx.Done():
	}
	log.Info("shutting down")
	endCtx, cancel := context.WithTimeout(context.Background(), shutdownTimeout)
	defer cancel()
	return srv.Shutdown(endCtx)
}
