// Stampede shows what flightpg does for a hot key: hundreds of callers ask the
// same query at the same moment, as they do when a cache entry expires or a page
// goes viral.
//
//	go run ./examples/stampede
//
// It starts a throw-away PostgreSQL, or takes the database of -dsn, and loads a
// table into a schema of its own, which it drops at the end. It finds out how
// many rows make the query take about 50 ms. Then 500 goroutines ask it at once,
// three times, first through pgx with a pool of 16 connections, then through
// flightpg. Both have the same limits and settings, and their connections are
// open before the clock starts. A call's latency runs from the moment when all
// callers are let go to the row being scanned.
//
// At last writers increment counters and read back at once what they have
// committed, while hundreds of readers ask for the same rows: none may see an
// older value. With -mode join, which does not promise that, some do.
//
// The table at the end shows executions and connections as PostgreSQL counted
// them. On two cores that are otherwise idle it takes about a minute, nearly all
// of it spent in pgx's queue: 500 calls of 50 ms are 25 seconds of work.
//
// Reading order: main.go → load.go (the table, the query, the server's view) →
// rounds.go (the stampede) → race.go (reads and writes) → report.go.
package main

import (
	"context"
	"database/sql"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

func main() { os.Exit(interruptible()) }

func interruptible() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C does not wait for anything
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// run is the program: it returns the exit status.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg, err := parseFlags(args, stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
		return 0
	case err != nil:
		return 2
	}
	rep, err := demo(ctx, cfg, newProgress(stderr))
	switch {
	case ctx.Err() != nil:
		fmt.Fprintln(stderr, "stampede: interrupted")
		return 1
	case err != nil:
		fmt.Fprintln(stderr, "stampede:", err)
		return 1
	}
	if cfg.json {
		err = rep.writeJSON(stdout)
	} else {
		err = rep.writeTable(stdout)
	}
	if err == nil {
		err = rep.failure()
	}
	if err != nil {
		fmt.Fprintln(stderr, "stampede:", err)
		return 1
	}
	return 0
}

// config is what the flags say.
type config struct {
	dsn      string // empty: a throw-away server
	callers  int
	rounds   int
	pgxConns int
	query    time.Duration
	writes   int
	readers  int
	mode     flightpg.Mode
	json     bool
}

func parseFlags(args []string, stderr io.Writer) (config, error) {
	var cfg config
	fs := flag.NewFlagSet("stampede", flag.ContinueOnError)
	fs.SetOutput(stderr)
	number := func(to *int, name string, value, low, high int, usage string) {
		*to = value
		usage += fmt.Sprintf(" (default %d)", value)
		fs.Func(name, usage, func(s string) error {
			var rest string
			n, _ := fmt.Sscanf(s+" ", "%d%s", to, &rest)
			if n != 1 || *to < low || *to > high {
				return fmt.Errorf("use a number from %d to %d", low, high)
			}
			return nil
		})
	}
	var queryMS int
	fs.StringVar(&cfg.dsn, "dsn", "", "use the database of this `DSN` instead of a throw-away server")
	number(&cfg.callers, "callers", 500, 1, 100_000, "`number` of goroutines that ask at once")
	number(&cfg.rounds, "rounds", 3, 1, 1000, "`number` of times that they do, per driver")
	number(&cfg.pgxConns, "pgx-conns", 16, 1, 10_000, "`number` of connections that each pool may open")
	number(&queryMS, "query-ms", 50, 1, 10_000, "how long the query takes, in `milliseconds`")
	number(&cfg.writes, "writes", 1000, 0, 10_000_000, "`number` of writes that race with reads")
	number(&cfg.readers, "readers", 300, 1, 100_000, "`number` of goroutines that read while they do")
	fs.BoolVar(&cfg.json, "json", false, "print one JSON object instead of the table")
	fs.Func("mode", "flightpg's consistency `mode`: fenced, strict, join or off (default fenced)", func(s string) (err error) {
		cfg.mode, err = flightpg.ParseMode(s)
		return err
	})
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	cfg.query = time.Duration(queryMS) * time.Millisecond

	fail := func(why string) (config, error) {
		fmt.Fprintln(stderr, "stampede:", why)
		return cfg, errors.New(why)
	}
	if fs.NArg() > 0 {
		return fail(fmt.Sprintf("unexpected argument %q: see -help", fs.Arg(0)))
	}
	if cfg.dsn != "" {
		// The error stays out of the message: of a DSN that it does not
		// understand, pgx cannot always tell which part is the password.
		if _, err := pgx.ParseConfig(cfg.dsn); err != nil {
			return fail("the value of -dsn is not a DSN: use postgres://user:password@host:port/database or host=… user=… dbname=…")
		}
	}
	return cfg, nil
}

// demo runs all parts and returns what they measured.
func demo(ctx context.Context, cfg config, p *progress) (rep report, err error) {
	dsn := cfg.dsn
	if dsn == "" {
		p.say("starting a throw-away PostgreSQL")
		opts := []pgtest.Option{pgtest.WithPreload("pg_stat_statements")}
		if cfg.pgxConns > 100 { // it has room for 200 connections
			opts = append(opts, pgtest.WithSetting("max_connections", fmt.Sprint(2*cfg.pgxConns+20)))
		}
		server, err := pgtest.Start(ctx, opts...)
		if err != nil {
			return rep, err
		}
		defer func() {
			if err := server.Stop(); err != nil {
				p.say(err.Error())
			}
		}()
		dsn = server.DSN()
	}

	s, err := openShop(ctx, dsn, cfg)
	if err != nil {
		return rep, err
	}
	defer func() {
		if err := s.close(); err != nil {
			p.say(err.Error())
		}
	}()

	took, err := s.load(ctx, cfg.query, p)
	if err != nil {
		return rep, err
	}
	p.say(fmt.Sprintf("the query reads %s rows and takes %s", grouped(int64(s.upTo)), shortDuration(took)))

	rep = report{
		config:    cfg,
		Callers:   cfg.callers,
		Rounds:    cfg.rounds,
		PgxConns:  cfg.pgxConns,
		Mode:      cfg.mode.String(),
		CountedBy: s.countedBy(),
		Server:    s.version,
	}
	if rep.Pgx, err = measure(ctx, s, cfg, "pgx", openPgx, p); err != nil {
		return rep, err
	}
	if rep.Flightpg, err = measure(ctx, s, cfg, "flightpg", openFlightpg, p); err != nil {
		return rep, err
	}
	rep.QueryMS = rep.Flightpg.QueryMS
	rep.ReadYourWrites, err = race(ctx, s, cfg, p)
	return rep, err
}

// An opener opens the driver under test.
type opener func(dsn string, cfg config) (*sql.DB, error)

func openPgx(dsn string, cfg config) (*sql.DB, error) {
	db, err := sql.Open("pgx", dsn)
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(cfg.pgxConns)
	db.SetMaxIdleConns(cfg.pgxConns)
	return db, nil
}

func openFlightpg(dsn string, cfg config) (*sql.DB, error) {
	return flightpg.OpenDB(dsn, flightpg.Config{
		Mode:         cfg.mode,
		FlightConns:  cfg.pgxConns,
		SessionConns: cfg.pgxConns,
	})
}
