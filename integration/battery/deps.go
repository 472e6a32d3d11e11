package main

import (
	_ "github.com/Shopify/toxiproxy/v2"
	_ "github.com/Shopify/toxiproxy/v2/toxics"
	_ "github.com/anishathalye/porcupine"
	_ "github.com/flightpg/flightpg"
	_ "github.com/jackc/pgx/v5"
	_ "github.com/jackc/pgx/v5/pgproto3"
	_ "go.uber.org/goleak"
	_ "golang.org/x/sync/errgroup"
)
