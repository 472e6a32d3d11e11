//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package pgtest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// clusters says that this package can run PostgreSQL's programs on this system.
const clusters = true

// A cluster lives in a directory of its own:
//
//	flightpg-pg-123456/        ours, entered by the server's user
//	    lock                   locked for as long as this process lives
//	    settings.conf          ours, included at the end of its postgresql.conf
//	    log                    what the server wrote
//	    data/                  the server's, as are its sockets in it
//
// The directory gets its name when its lock is held already. So one with that
// name, owned by this user, with a lock that nobody holds, was left behind by a
// process that is gone: see sweep. Any other directory is none of ours.
const (
	dirPrefix = "flightpg-pg-"
	newPrefix = "flightpg-new-" // before the lock is held
	lockFile  = "lock"
	confFile  = "settings.conf"
	logFile   = "log"
	dataDir   = "data"
)

// pollInterval is how often the files and processes of a server are looked at
// that is no child of ours to wait for, or that has no event to tell.
const pollInterval = 5 * time.Millisecond

type cluster struct {
	// Written once.
	bin  string
	dir  string
	lock *os.File
	port int
	cred *syscall.Credential // of the server; nil: ours

	mu         sync.Mutex // guards postmaster; held during starts and stops, so that there is one at a time
	postmaster *child     // nil when it is down
}

var _ instance = (*cluster)(nil)

func startCluster(ctx context.Context, bin string, o *options) (_ instance, err error) {
	cred, err := serverUser()
	if err != nil {
		return nil, err
	}
	base := tempBase(cred != nil)
	sweep(base)
	dir, lock, err := newDir(base)
	if err != nil {
		return nil, err
	}
	c := &cluster{bin: bin, dir: dir, lock: lock, cred: cred}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	if o.standbyOf != nil {
		err = c.copyOf(ctx, o.standbyOf)
	} else {
		err = c.initdb(ctx)
	}
	if err != nil {
		return nil, err
	}
	for _, f := range o.files {
		if err := c.write(f); err != nil {
			return nil, err
		}
	}
	// The port is free when it is chosen; that it still is when the server
	// takes it is likely, not certain.
	for try := 1; ; try++ {
		if c.port, err = freePort(); err != nil {
			return nil, err
		}
		if err := c.configure(o); err != nil {
			return nil, err
		}
		err = c.restart(ctx)
		if err == nil {
			return c, nil
		}
		if try == 5 || !strings.Contains(c.log(), "could not bind") {
			return nil, err
		}
		if err := os.Truncate(filepath.Join(dir, logFile), 0); err != nil {
			return nil, err
		}
	}
}

// serverUser returns who the server runs as: PostgreSQL refuses root.
func serverUser() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, err1 := strconv.ParseUint(u.Uid, 10, 32)
		gid, err2 := strconv.ParseUint(u.Gid, 10, 32)
		if err1 == nil && err2 == nil && uid != 0 {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL does not run as root, and there is no user postgres or nobody to run it as")
}

// tempBase returns where cluster directories go. A socket's path may have 103
// bytes, and another user must get there if the server runs as one.
func tempBase(otherUser bool) string {
	base := os.TempDir()
	if len(base) > 60 {
		return "/tmp"
	}
	if otherUser {
		for dir := filepath.Clean(base); ; dir = filepath.Dir(dir) {
			if info, err := os.Stat(dir); err != nil || info.Mode()&0o001 == 0 {
				return "/tmp"
			}
			if dir == filepath.Dir(dir) {
				break
			}
		}
	}
	return base
}

// newDir makes a cluster's directory, with its lock held.
func newDir(base string) (dir string, lock *os.File, err error) {
	unnamed, err := os.MkdirTemp(base, newPrefix)
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			os.RemoveAll(unnamed)
		}
	}()
	if err := os.Chmod(unnamed, 0o711); err != nil { // the server's user passes through
		return "", nil, err
	}
	lock, err = os.OpenFile(filepath.Join(unnamed, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		lock.Close()
		return "", nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	dir = filepath.Join(base, dirPrefix+strings.TrimPrefix(filepath.Base(unnamed), newPrefix))
	if err := os.Rename(unnamed, dir); err != nil {
		lock.Close()
		return "", nil, err
	}
	return dir, lock, nil
}

// command returns a command of the server's user with a clean environment.
func (c *cluster) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(c.bin, program), args...)
	cmd.Dir = filepath.Join(c.dir, dataDir)
	// PGDATA, PGPORT and the like are for another server, and we read the
	// messages: no locale.
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "PG") && !strings.HasPrefix(kv, "LC_") && !strings.HasPrefix(kv, "LANG") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "LC_ALL=C")
	if c.cred != nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: c.cred}
	}
	return cmd
}

// write puts a file into the data directory.
func (c *cluster) write(f file) error {
	path := filepath.Join(c.dir, dataDir, f.name)
	return errors.Join(os.WriteFile(path, []byte(f.content), 0o600), c.take(path))
}

// take makes what is at path the server's own, whom PostgreSQL wants to be the only
// one who gets there.
func (c *cluster) take(path string) error {
	return filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		mode := fs.FileMode(0o600)
		if d.IsDir() {
			mode = 0o700
		}
		if err := os.Chmod(path, mode); err != nil || c.cred == nil {
			return err
		}
		return os.Chown(path, int(c.cred.Uid), int(c.cred.Gid))
	})
}

// copyOf makes a standby's data: a copy of the primary's files while that is down,
// for not all builds of PostgreSQL have pg_basebackup.
func (c *cluster) copyOf(ctx context.Context, primary *Server) error {
	p, ok := primary.inst.(*cluster)
	if !ok {
		return (&options{standbyOf: primary}).programsOnly("this primary")
	}
	if err := p.copyTo(ctx, filepath.Join(c.dir, dataDir)); err != nil {
		return fmt.Errorf("copy of the primary: %w", err)
	}
	if err := c.take(filepath.Join(c.dir, dataDir)); err != nil {
		return err
	}
	conf, err := os.ReadFile(filepath.Join(c.dir, dataDir, "postgresql.conf"))
	if err != nil {
		return err
	}
	return errors.Join(
		// It includes the primary's settings, and is to include ours.
		c.write(file{"postgresql.conf", strings.ReplaceAll(string(conf), p.dir, c.dir)}),
		c.write(file{"postgresql.auto.conf", fmt.Sprintf("primary_conninfo = 'host=127.0.0.1 port=%d user=postgres sslmode=disable'\n", p.port)}),
		c.write(file{"standby.signal", ""}),
	)
}

// copyTo copies the data directory. The server is down meanwhile.
func (c *cluster) copyTo(ctx context.Context, dir string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.postmaster == nil {
		return errors.New("the server is down")
	}
	if err := c.endLocked(ctx, syscall.SIGINT); err != nil {
		return err
	}
	return errors.Join(os.CopyFS(dir, os.DirFS(filepath.Join(c.dir, dataDir))), c.startLocked(ctx))
}

func (c *cluster) initdb(ctx context.Context) error {
	data := filepath.Join(c.dir, dataDir)
	if err := os.Mkdir(data, 0o700); err != nil {
		return err
	}
	if err := c.take(data); err != nil {
		return err
	}
	var out bytes.Buffer
	cmd := c.command("initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	cmd.Stdout, cmd.Stderr = &out, &out
	run, err := startChild(cmd, syscall.SIGTERM)
	if err != nil {
		return fmt.Errorf("initdb: %w", err)
	}
	if err := run.wait(ctx); err != nil {
		if !run.ended() {
			_ = cmd.Process.Signal(syscall.SIGTERM) // it ends its own child
			<-run.done
		}
		return fmt.Errorf("%s: %w\n%s", cmd.Path, err, out.String())
	}
	// The last line of a name wins: ours.
	conf, err := os.OpenFile(filepath.Join(data, "postgresql.conf"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = conf.WriteString("include '" + filepath.Join(c.dir, confFile) + "'\n")
	return errors.Join(err, conf.Close())
}

// configure writes our settings and those of o.
func (c *cluster) configure(o *options) error {
	data := filepath.Join(c.dir, dataDir)
	var b strings.Builder
	line := func(name, value string) {
		value = strings.NewReplacer(`\`, `\\`, `'`, `''`).Replace(value)
		fmt.Fprintf(&b, "%s = '%s'\n", name, value)
	}
	line("listen_addresses", "127.0.0.1")
	line("port", strconv.Itoa(c.port))
	line("unix_socket_directories", data)
	for _, s := range throwAway {
		line(s.name, s.value)
	}
	var preload []string
	for _, name := range o.preload {
		if c.hasFiles(name) {
			preload = append(preload, name)
		}
	}
	if len(preload) > 0 {
		line("shared_preload_libraries", strings.Join(preload, ","))
	}
	for _, s := range o.settings {
		line(s.name, s.value)
	}
	return os.WriteFile(filepath.Join(c.dir, confFile), []byte(b.String()), 0o644)
}

// hasFiles reports whether the programs have the files of an extension.
func (c *cluster) hasFiles(name string) bool {
	out, _ := c.command("initdb", "--show", "-D", filepath.Join(c.dir, dataDir)).CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if share, ok := strings.CutPrefix(strings.TrimSpace(line), "share_path="); ok {
			_, err := os.Stat(filepath.Join(share, "extension", name+".control"))
			return err == nil
		}
	}
	return false
}

func (c *cluster) addresses() (tcp, socket *url.URL) {
	port := strconv.Itoa(c.port)
	tcp = &url.URL{
		Scheme:   "postgres",
		User:     url.User("postgres"),
		Host:     "127.0.0.1:" + port,
		Path:     "/postgres",
		RawQuery: "sslmode=disable",
	}
	socket = &url.URL{
		Scheme:   "postgres",
		User:     url.User("postgres"),
		Path:     "/postgres",
		RawQuery: url.Values{"host": {filepath.Join(c.dir, dataDir)}, "port": {port}, "sslmode": {"disable"}}.Encode(),
	}
	return tcp, socket
}

func (c *cluster) restart(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.endLocked(ctx, syscall.SIGINT); err != nil {
		return err
	}
	for {
		err := c.startLocked(ctx)
		// After a crash the backends notice that the postmaster is gone, but
		// in their own time, and a new one does not start before.
		if err == nil || !strings.Contains(err.Error(), "pre-existing shared memory block") {
			return err
		}
		if ctx.Err() != nil {
			return err
		}
		time.Sleep(pollInterval)
	}
}

// startLocked starts the postmaster and returns when it takes connections.
func (c *cluster) startLocked(ctx context.Context) error {
	out, err := os.OpenFile(filepath.Join(c.dir, logFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer out.Close()
	from, err := out.Seek(0, 2)
	if err != nil {
		return err
	}
	cmd := c.command("postgres", "-D", filepath.Join(c.dir, dataDir))
	cmd.Stdout, cmd.Stderr = out, out
	// An immediate shutdown: nobody will read the data again.
	run, err := startChild(cmd, syscall.SIGQUIT)
	if err != nil {
		return err
	}
	c.postmaster = run
	// There is no event for this that does not depend on the log's settings;
	// pg_ctl polls too.
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for !c.readyLocked() {
		select {
		case <-tick.C:
		case <-run.done:
			c.postmaster = nil
			return fmt.Errorf("postgres did not start (%w):\n%s", run.err, c.log()[from:])
		case <-ctx.Done():
			_ = c.endLocked(context.WithoutCancel(ctx), syscall.SIGQUIT)
			return fmt.Errorf("postgres was not ready in time (%w):\n%s", ctx.Err(), c.log()[from:])
		}
	}
	return nil
}

// readyLocked reports whether the postmaster says that it is ready: in line 8 of
// its pid file. A crashed one leaves such a file too, with another pid.
func (c *cluster) readyLocked() bool {
	pid, state := readPIDFile(filepath.Join(c.dir, dataDir))
	return pid == c.postmaster.cmd.Process.Pid && state == "ready"
}

func readPIDFile(data string) (pid int, state string) {
	file, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return 0, ""
	}
	lines := strings.Split(string(file), "\n")
	pid, _ = strconv.Atoi(strings.TrimSpace(lines[0]))
	if len(lines) >= 8 {
		state = strings.TrimSpace(lines[7])
	}
	return pid, state
}

// endLocked sends sig to the postmaster, if it is up, and returns when it has
// ended.
func (c *cluster) endLocked(ctx context.Context, sig os.Signal) error {
	if c.postmaster == nil {
		return nil
	}
	if err := c.postmaster.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-c.postmaster.done: // how it ended is no matter
		c.postmaster = nil
		return nil
	case <-ctx.Done():
		return fmt.Errorf("postgres is still there after %v: %w", sig, ctx.Err())
	}
}

func (c *cluster) crash(ctx context.Context, sig os.Signal) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.postmaster == nil {
		return errors.New("the server is down")
	}
	return c.endLocked(ctx, sig)
}

func (c *cluster) stop() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := c.endLocked(ctx, syscall.SIGQUIT)
	if err != nil {
		err = c.endLocked(context.Background(), syscall.SIGKILL)
	}
	return errors.Join(err, removeAll(c.dir), c.lock.Close())
}

func (c *cluster) pid() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.postmaster == nil || c.postmaster.ended() {
		return 0
	}
	return c.postmaster.cmd.Process.Pid
}

func (c *cluster) down() bool { return c.pid() == 0 }

func (c *cluster) log() string {
	b, _ := os.ReadFile(filepath.Join(c.dir, logFile))
	return string(b)
}

// sweep removes what processes left in base that did not call Stop. It is an
// attempt: what it cannot remove, a later one will.
func sweep(base string) {
	dirs, _ := filepath.Glob(filepath.Join(base, dirPrefix+"*"))
	for _, dir := range dirs {
		_ = sweepDir(dir)
	}
}

func sweepDir(dir string) error {
	info, err := os.Lstat(dir)
	if err != nil {
		return err
	}
	owner, ok := info.Sys().(*syscall.Stat_t)
	if !ok || !info.IsDir() || int(owner.Uid) != os.Geteuid() {
		return errors.New("not ours")
	}
	lock, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_RDWR|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return err // in use
	}
	data := filepath.Join(dir, dataDir)
	// The server was told to stop when its parent died. It may be at it still,
	// and where the kernel does not tell it, it may not know.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for sig := syscall.SIGQUIT; ; sig = 0 {
		pid, _ := readPIDFile(data)
		// The pid may be another's by now; that one does not name our directory.
		if pid <= 0 || !strings.Contains(commandLine(pid), data) {
			break
		}
		if err := syscall.Kill(pid, sig); err != nil {
			break
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the server in %s does not stop", dir)
		case <-time.After(pollInterval):
		}
	}
	return removeAll(dir)
}

// removeAll removes a directory in which the last processes of a killed server
// may still be making files.
func removeAll(dir string) error {
	var err error
	for range 100 {
		if err = os.RemoveAll(dir); err == nil {
			return nil
		}
		time.Sleep(pollInterval)
	}
	return err
}
