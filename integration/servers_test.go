package integration

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/modules/postgres"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// servers are what every test runs against. A server is started by the first
// test that asks it for a database, and serves them all.
var servers = []struct {
	name     string
	database func(*testing.T) (dsn string) // a fresh one, dropped when the test ends
}{
	{"testcontainers", containerDatabase},
	{"pgtest", func(t *testing.T) string { return pgtest.Database(t) }},
}

// envServers names the servers to run against, separated by commas, where not all
// are wanted: scripts/test-matrix is about the versions of one. With -short it is the
// last of them, unless the variable says otherwise.
const envServers = "FLIGHTPG_TEST_SERVERS"

// forEachServer runs f as a subtest for each server, with the DSN of a database
// that nobody else uses.
func forEachServer(t *testing.T, f func(t *testing.T, dsn string)) {
	t.Helper()
	wanted := strings.FieldsFunc(os.Getenv(envServers), func(r rune) bool { return r == ',' })
	for i, s := range servers {
		if len(wanted) > 0 && !slices.Contains(wanted, s.name) {
			continue
		}
		t.Run(s.name, func(t *testing.T) {
			if testing.Short() && len(wanted) == 0 && i < len(servers)-1 {
				t.Skipf("NOT RUN with -short: it runs on %s", servers[len(servers)-1].name)
			}
			f(t, s.database(t))
		})
	}
}

// container is the server that testcontainers-go started.
var container struct {
	sync.Mutex // guards the rest; held while it starts, so that there is one
	*postgres.PostgresContainer
	dsn string
	err error // why there is none: no second try
}

// errNoDocker says that there is nothing to start a container with.
var errNoDocker = errors.New("no Docker engine answers")

func containerDatabase(t *testing.T) (dsn string) {
	container.Lock()
	defer container.Unlock()
	if container.PostgresContainer == nil && container.err == nil {
		container.err = startContainer(context.Background())
		if errors.Is(container.err, errNoDocker) && !ci() {
			fmt.Fprintf(os.Stderr, "\n*** %v\n*** Only pgtest's server is tested. Start Docker to test what CI does.\n\n", container.err)
		}
	}
	switch {
	case container.err == nil:
		return newDatabase(t, container.dsn)
	case errors.Is(container.err, errNoDocker) && !ci():
		t.Skipf("NOT TESTED: PostgreSQL in a container: %v", container.err)
	default:
		t.Fatal(container.err)
	}
	return ""
}

// ci reports whether this is CI, where everything must be there.
func ci() bool { return os.Getenv("CI") == "true" }

// startContainer sets container, which the caller has locked.
func startContainer(ctx context.Context) error {
	// Before the start: a missing engine is told from a container that fails.
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return fmt.Errorf("%w: %w", errNoDocker, err)
	}
	defer provider.Close()
	if err := provider.Health(ctx); err != nil {
		return fmt.Errorf("%w: %w", errNoDocker, err)
	}

	image := os.Getenv(pgtest.EnvImage)
	if image == "" {
		image = pgtest.DefaultImage
	}
	c, err := postgres.Run(ctx, image,
		postgres.WithUsername("flightpg"),
		postgres.WithPassword("flightpg"),
		postgres.WithDatabase("flightpg"),
		postgres.BasicWaitStrategies(),
	)
	if err != nil {
		return errors.Join(fmt.Errorf("testcontainers: %s: %w", image, err), testcontainers.TerminateContainer(c))
	}
	container.PostgresContainer = c
	container.dsn, err = c.ConnectionString(ctx, "sslmode=disable")
	return err
}

// stopContainer removes the container, if one was started.
func stopContainer() error {
	container.Lock()
	defer container.Unlock()
	if container.PostgresContainer == nil {
		return nil
	}
	return testcontainers.TerminateContainer(container.PostgresContainer)
}

// newDatabase creates a database beside the one of dsn, and drops it when the
// test ends.
func newDatabase(t *testing.T, dsn string) string {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	name := "flightpg_test_" + strings.ToLower(rand.Text())
	exec := func(sql string) {
		t.Helper()
		ctx := context.Background() // also after the test's has ended
		conn, err := pgx.Connect(ctx, dsn)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(ctx)
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%s: %v", sql, err)
		}
	}
	exec("create database " + name)
	t.Cleanup(func() { exec("drop database " + name + " with (force)") })
	u.Path = "/" + name
	return u.String()
}
