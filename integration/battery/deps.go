package battery
import (
 _ "github.com/anishathalye/porcupine"
 _ "github.com/Shopify/toxiproxy/v2"
 _ "github.com/Shopify/toxiproxy/v2/toxics"
 _ "go.uber.org/goleak"
 _ "github.com/jackc/pgx/v5"
 _ "github.com/jackc/pgx/v5/pgproto3"
 _ "github.com/flightpg/flightpg"
 _ "golang.org/x/sync/errgroup"
)
