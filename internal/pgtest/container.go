package pgtest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// container is a server in Docker. The client stays attached to it and passes
// the signal on that it gets when this process ends; then the server shuts down
// and Docker removes the container.
type container struct {
	// Written once.
	docker string
	name   string
	port   int
	client *child
	out    *syncBuffer // of the server
}

var _ instance = (*container)(nil)

func startContainer(ctx context.Context, docker string, o *options) (_ instance, err error) {
	image := os.Getenv(EnvImage)
	if image == "" {
		image = DefaultImage
	}
	port, err := freePort()
	if err != nil {
		return nil, err
	}
	var id [6]byte
	_, _ = rand.Read(id[:]) // never fails
	c := &container{docker: docker, name: "flightpg-test-" + hex.EncodeToString(id[:]), port: port, out: &syncBuffer{}}

	args := []string{
		"run", "--rm", "--name", c.name,
		"--publish", "127.0.0.1:" + strconv.Itoa(port) + ":5432",
		"--env", "POSTGRES_HOST_AUTH_METHOD=trust",
		image, "postgres",
	}
	set := func(name, value string) { args = append(args, "-c", name+"="+value) }
	for _, s := range throwAway {
		set(s.name, s.value)
	}
	if len(o.preload) > 0 {
		preload, err := extensionsOf(ctx, docker, image, o.preload)
		if err != nil {
			return nil, err
		}
		if len(preload) > 0 {
			set("shared_preload_libraries", strings.Join(preload, ","))
		}
	}
	for _, s := range o.settings {
		set(s.name, s.value)
	}
	cmd := exec.Command(docker, args...)
	cmd.Stdout, cmd.Stderr = c.out, c.out
	if c.client, err = startChild(cmd, syscall.SIGINT); err != nil {
		return nil, fmt.Errorf("docker run: %w", err)
	}
	if err := c.ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("docker run %s: %w\n%s", image, err, c.log()), c.stop())
	}
	return c, nil
}

// ready returns when the server takes connections. The one that fills the data
// directory first has no TCP port, so this is the one to come.
func (c *container) ready(ctx context.Context) error {
	u, _ := c.addresses()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := connect(ctx, u)
		if err == nil {
			return conn.Close(ctx)
		}
		select {
		case <-tick.C:
		case <-c.client.done:
			return c.client.err
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		}
	}
}

// extensionsOf returns those of the extensions that the image has files for.
func extensionsOf(ctx context.Context, docker, image string, names []string) ([]string, error) {
	const script = `dir=$(pg_config --sharedir)/extension; for e; do [ ! -f "$dir/$e.control" ] || echo "$e"; done`
	args := append([]string{"run", "--rm", "--entrypoint", "sh", image, "-c", script, "sh"}, names...)
	out, err := exec.CommandContext(ctx, docker, args...).Output()
	if err != nil {
		return nil, fmt.Errorf("docker run %s: %w", image, err)
	}
	return strings.Fields(string(out)), nil
}

func (c *container) addresses() (tcp, socket *url.URL) {
	return &url.URL{
		Scheme:   "postgres",
		User:     url.User("postgres"),
		Host:     "127.0.0.1:" + strconv.Itoa(c.port),
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}, nil
}

func (c *container) restart(context.Context) error {
	return fmt.Errorf("%w by a container", errors.ErrUnsupported)
}

func (c *container) crash(context.Context, os.Signal) error {
	return fmt.Errorf("%w by a container", errors.ErrUnsupported)
}

func (c *container) pid() int { return 0 }

func (c *container) log() string { return c.out.String() }

func (c *container) stop() error {
	out, err := exec.Command(c.docker, "rm", "--force", "--volumes", c.name).CombinedOutput()
	if err != nil && !bytes.Contains(out, []byte("No such container")) {
		return fmt.Errorf("docker rm: %w: %s", err, bytes.TrimSpace(out))
	}
	<-c.client.done
	return nil
}

// syncBuffer is a buffer that is read while it is written.
type syncBuffer struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}
