package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
)

// errNoPooler is the error where a pooler is not installed.
var errNoPooler = errors.New("not installed")

// pooler is a kind of program between the contenders and the server.
type pooler struct {
	programs []string // where it may be
	signal   int      // ends it at once
	files    func(dir string, port, control int, server *url.URL) map[string]string
	args     func(dir string) []string
}

var poolers = map[way]*pooler{
	pgBouncer: {
		programs: []string{"pgbouncer", "/usr/sbin/pgbouncer", "/opt/homebrew/opt/pgbouncer/bin/pgbouncer", "/usr/local/opt/pgbouncer/bin/pgbouncer"},
		signal:   15, // SIGTERM
		files: func(_ string, port, _ int, server *url.URL) map[string]string {
			return map[string]string{"pgbouncer.ini": fmt.Sprintf(`[databases]
* = host=%s port=%s user=%s
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = %d
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = %d
max_client_conn = 2000
log_connections = 0
log_disconnections = 0
log_stats = 0
`, server.Hostname(), server.Port(), server.User.Username(), port, conns)}
		},
		args: func(dir string) []string { return []string{"-q", filepath.Join(dir, "pgbouncer.ini")} },
	},
	pgpoolTwo: {
		programs: []string{"pgpool", "/usr/sbin/pgpool", "/usr/local/bin/pgpool"},
		signal:   2, // SIGINT: fast; it waits for its clients on SIGTERM
		files: func(dir string, port, control int, server *url.URL) map[string]string {
			return map[string]string{
				"pgpool.conf": fmt.Sprintf(`backend_clustering_mode = 'raw'
backend_hostname0 = '%s'
backend_port0 = %s
backend_weight0 = 1
listen_addresses = '127.0.0.1'
port = %d
socket_dir = '%[4]s'
pcp_listen_addresses = ''
pcp_socket_dir = '%[4]s'
pcp_port = %[5]d
pid_file_name = '%[4]s/pgpool.pid'
logdir = '%[4]s'
work_dir = '%[4]s'
num_init_children = 128
max_pool = 1
connection_cache = on
enable_pool_hba = off
sr_check_period = 0
health_check_period = 0
log_min_messages = fatal
`, server.Hostname(), server.Port(), port, dir, control),
				"pool_hba.conf": "host all all 127.0.0.1/32 trust\n",
				"pcp.conf":      "",
			}
		},
		args: func(dir string) []string {
			return []string{"-n", "-f", filepath.Join(dir, "pgpool.conf"), "-a", filepath.Join(dir, "pool_hba.conf"), "-F", filepath.Join(dir, "pcp.conf")}
		},
	},
}

// start runs the pooler in front of the server of dsn, and returns the DSN that leads
// through it, and what ends it.
func (p *pooler) start(ctx context.Context, dsn string) (through string, stop func(), err error) {
	program := ""
	for _, name := range p.programs {
		if program, err = exec.LookPath(name); err == nil {
			break
		}
	}
	if program == "" {
		return "", nil, errNoPooler
	}
	who, err := unprivileged()
	if err != nil {
		return "", nil, err
	}
	server, err := url.Parse(dsn)
	if err != nil || server.Hostname() == "" {
		return "", nil, errors.New("a pooler needs a DSN that is a URL with a host")
	}
	base := os.TempDir()
	if runtime.GOOS != "windows" {
		base = "/tmp" // a short path, for its socket, where another user gets
	}
	dir, err := os.MkdirTemp(base, "flightpg-pooler-")
	if err != nil {
		return "", nil, err
	}
	cleanUp := func() { _ = os.RemoveAll(dir) }
	port, err1 := openPort()
	control, err2 := openPort()
	if err := errors.Join(err1, err2, os.Chmod(dir, 0o777)); err != nil {
		cleanUp()
		return "", nil, err
	}
	for name, text := range p.files(dir, port, control, server) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			cleanUp()
			return "", nil, err
		}
	}
	h, err := help(helperJob{Program: append([]string{program}, p.args(dir)...), Number: p.signal, As: who})
	if err != nil {
		cleanUp()
		return "", nil, err
	}
	stop = func() {
		_ = h.end()
		cleanUp()
	}
	u := *server
	u.Host = net.JoinHostPort("127.0.0.1", fmt.Sprint(port))
	q := u.Query()
	q.Set("default_query_exec_mode", "exec")
	u.RawQuery = q.Encode()
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		conn, err := pgx.Connect(ctx, u.String())
		if err == nil {
			return u.String(), stop, conn.Close(ctx)
		}
		if time.Now().After(deadline) {
			stop()
			return "", nil, fmt.Errorf("%s takes no connection: %w", strings.Join(p.programs[:1], ""), err)
		}
	}
}

// openPort returns a port that is free now.
func openPort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
