//go:build before

package main

import (
	"context"

	"github.com/flightpg/before"
)

// before is an earlier flightpg beside this one, in one program: see scripts/bench-before.
func init() {
	contenders = append(contenders, contender{
		name: "before", about: "an earlier version of the pipeline, with the same limits",
		open: func(_ context.Context, dsn string) (client, error) {
			cfg := flightpg.Config{Executor: flightpg.ExecutorPipeline, FlightConns: 64, SessionConns: conns, MaxResult: maxResult}
			db, err := flightpg.OpenDB(dsn, cfg)
			if err != nil {
				return nil, err
			}
			return &sqlClient{db}, nil
		},
	})
}
