// Command extensions says what each extension that a PostgreSQL server has files for
// makes flightpg bypass, and holds it to leaving plain statements as they are.
//
//	extensions [-o FILE] [EXTENSION…]
//
// It starts throw-away servers of package pgtest, creates each extension in a database
// of its own, and writes what it finds to standard output, and as a table to FILE. Exit
// status: 0; 1 if an extension disturbs a plain statement, or on an error.
//
// Reading order: main.go (what is run and printed) → survey.go (what is looked at in one
// database) → plain.go (the plain statements).
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// preload are the libraries that extensions want to be loaded at the server's start.
var preload = []string{
	"pg_stat_statements", "pg_cron", "pg_qualstats", "pg_stat_kcache", "pg_wait_sampling", "powa",
	"pgaudit", "pg_prewarm", "plugin_debugger", "plpgsql_check", "set_user",
}

// lonely are libraries that do not stand the others, or start workers in each database.
var lonely = map[string]string{"pglogical": "pglogical", "pglogical_ticker": "pglogical", "pgautofailover": "pgautofailover"}

// settings are what some of them need; a server takes those of libraries that it has not.
var settings = []pgtest.Option{
	pgtest.WithSetting("wal_level", "logical"),
	pgtest.WithSetting("track_commit_timestamp", "on"),
	pgtest.WithSetting("max_worker_processes", "32"),
	pgtest.WithSetting("powa.frequency", "-1"),
	pgtest.WithSetting("cron.database_name", "x_pg_cron"),
	pgtest.WithSetting("cron.launch_active_jobs", "off"),
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "extensions:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	file := flag.String("o", "", "write the table to this `file`")
	flag.Parse()

	version, names, have, err := available(ctx)
	if err != nil {
		return err
	}
	if flag.NArg() > 0 {
		names = flag.Args()
	}
	groups := map[string][]string{}
	for _, name := range names {
		groups[lonely[name]] = append(groups[lonely[name]], name)
	}
	var found []*report
	for only, names := range groups {
		libraries := []string{only}
		if only == "" {
			libraries = slices.DeleteFunc(slices.Clone(preload), func(name string) bool { return !have(name) })
		} else if !have(only) {
			libraries = nil
		}
		reports, err := surveyAll(ctx, libraries, names)
		if err != nil {
			return err
		}
		found = append(found, reports...)
	}
	slices.SortFunc(found, func(a, b *report) int { return cmp.Compare(a.name, b.name) })
	disturbed := 0
	for _, r := range found {
		r.print(os.Stdout)
		if len(r.disturbed) > 0 {
			disturbed++
		}
	}
	if *file != "" {
		if err := os.WriteFile(*file, table(version, found), 0o644); err != nil {
			return err
		}
	}
	if disturbed > 0 {
		return fmt.Errorf("%d extensions disturb plain statements", disturbed)
	}
	return nil
}

// available returns the server's version, the extensions that it has files for, and
// whether it has a library.
func available(ctx context.Context) (version string, names []string, have func(string) bool, err error) {
	server, err := pgtest.Start(ctx)
	if err != nil {
		return "", nil, nil, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	conn, err := pgx.Connect(ctx, server.DSN())
	if err != nil {
		return "", nil, nil, err
	}
	defer conn.Close(ctx)
	var dir string
	if err := conn.QueryRow(ctx, "SELECT setting FROM pg_config WHERE name = 'PKGLIBDIR'").Scan(&dir); err != nil {
		return "", nil, nil, err
	}
	if err := conn.QueryRow(ctx, "SELECT split_part(version(), ' ', 2)").Scan(&version); err != nil {
		return "", nil, nil, err
	}
	rows, err := conn.Query(ctx, "SELECT name::text FROM pg_available_extensions WHERE name <> 'plpgsql' ORDER BY 1")
	if err != nil {
		return "", nil, nil, err
	}
	names, err = pgx.CollectRows(rows, pgx.RowTo[string])
	return version, names, func(library string) bool {
		_, err := os.Stat(filepath.Join(dir, library+".so"))
		return err == nil
	}, err
}

// surveyAll looks at extensions on a server with libraries loaded at its start.
func surveyAll(ctx context.Context, libraries, names []string) (found []*report, err error) {
	opts := append(slices.Clone(settings), pgtest.WithSetting("shared_preload_libraries", strings.Join(libraries, ",")))
	server, err := pgtest.Start(ctx, opts...)
	if err != nil {
		return nil, fmt.Errorf("with %v loaded: %w", libraries, err)
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	for _, name := range names {
		r := &report{name: name}
		if err := surveyOne(ctx, server.DSN(), r); err != nil {
			if ctx.Err() != nil {
				return nil, err
			}
			r.failed = strings.ReplaceAll(err.Error(), "\n", " ")
		}
		found = append(found, r)
	}
	return found, nil
}

// surveyOne looks at one extension in a database of its own.
func surveyOne(ctx context.Context, dsn string, r *report) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	database := "x_" + r.name
	admin, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return err
	}
	defer admin.Close(ctx)
	quoted := pgx.Identifier{database}.Sanitize()
	// It goes with the server: dropping it would wait for some extensions' workers.
	if _, err := admin.Exec(ctx, "CREATE DATABASE "+quoted); err != nil {
		return err
	}
	u, err := url.Parse(dsn)
	if err != nil {
		return err
	}
	u.Path = "/" + database
	conn, err := pgx.Connect(ctx, u.String())
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	return r.survey(ctx, conn)
}
