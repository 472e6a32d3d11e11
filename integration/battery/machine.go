package main

import (
	"context"
	"os"
	"runtime"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// postgresVersion returns the version of the server that the tests find.
func postgresVersion() string {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	server, err := pgtest.Start(ctx)
	if err != nil {
		return "no PostgreSQL: " + err.Error()
	}
	defer server.Stop()
	conn, err := pgx.Connect(ctx, server.DSN())
	if err != nil {
		return "no PostgreSQL: " + err.Error()
	}
	defer conn.Close(ctx)
	return "PostgreSQL " + conn.PgConn().ParameterStatus("server_version")
}

// cpu returns the processor's name, where the system tells it.
func cpu() string {
	info, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return runtime.GOARCH
	}
	for line := range strings.Lines(string(info)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return runtime.GOARCH
}
