//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package pgtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// crashSignals are the ways to go down that Restart must come back from.
var crashSignals = []os.Signal{syscall.SIGKILL, syscall.SIGQUIT, syscall.SIGINT}

// childEnv tells the test binary to be the process of childMain.
const childEnv = "FLIGHTPG_PGTEST_CHILD"

// childMain starts a server, says where, and stops it when its input ends.
func childMain() {
	if os.Getenv(childEnv) == "container" {
		containerChildMain()
		return
	}
	check := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	ctx := context.Background()
	s, err := Start(ctx)
	check(err)
	pids, err := query(ctx, s.DSN(), "select string_agg(pid::text, ' ') from pg_stat_activity")
	check(err)
	word, err := query(ctx, s.SocketDSN(), "select 'works'")
	check(err)
	fmt.Printf("%s %d\n%s\nuid %d %s\n", s.inst.(*cluster).dir, s.PID(), pids, os.Geteuid(), word)
	_, err = io.Copy(io.Discard, os.Stdin)
	check(err)
	check(s.Stop())
}

type childProcess struct {
	cmd   *exec.Cmd
	stdin io.Closer
	dir   string
	pids  []int // of its server
	word  string
}

// startChildProcess runs this test binary again, with a server of its own.
func startChildProcess(t *testing.T, tmp, exe string, cred *syscall.Credential) *childProcess {
	t.Helper()
	cmd := exec.Command(exe)
	cmd.Dir = tmp
	cmd.Env = append(os.Environ(), childEnv+"=cluster", "TMPDIR="+tmp, "HOME="+tmp)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: cred}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})

	c := &childProcess{cmd: cmd, stdin: stdin}
	var said []string
	lines := bufio.NewScanner(stdout)
	for len(said) < 3 && lines.Scan() {
		said = append(said, lines.Text())
	}
	if len(said) < 3 {
		t.Fatalf("the child process failed: %q", said)
	}
	var postmaster string
	c.dir, postmaster, _ = strings.Cut(said[0], " ")
	for _, s := range append(strings.Fields(said[1]), postmaster) {
		pid, err := strconv.Atoi(s)
		if err != nil {
			t.Fatalf("the child process said %q", said)
		}
		c.pids = append(c.pids, pid)
	}
	c.word = said[2]
	return c
}

// waitGone returns when none of the processes is there any more. They are not
// our children: there is nothing but to look.
func waitGone(t *testing.T, pids []int) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for _, pid := range pids {
		for !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) {
			if time.Now().After(deadline) {
				t.Fatalf("process %d is still there: %s", pid, commandLine(pid))
			}
			time.Sleep(pollInterval) // nothing tells: polling
		}
	}
}

// shortTempDir returns a directory that other users may enter and that is short
// enough for a socket.
func shortTempDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "flightpg-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	return dir
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestParentKilled(t *testing.T) {
	ownServer(t)
	tmp := shortTempDir(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	killed := startChildProcess(t, tmp, exe, nil)
	lives := startChildProcess(t, tmp, exe, nil)

	if err := killed.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	waitGone(t, killed.pids)
	t.Logf("its %d server processes were gone %v after the kill", len(killed.pids), time.Since(begin).Round(time.Millisecond))
	if !exists(killed.dir) {
		t.Fatalf("%s is gone: nothing left to sweep", killed.dir)
	}

	// Directories that only look like ours stay.
	foreign := filepath.Join(tmp, dirPrefix+"foreign")
	if err := os.MkdirAll(filepath.Join(foreign, dataDir), 0o755); err != nil {
		t.Fatal(err)
	}
	unnamed := filepath.Join(tmp, newPrefix+"1")
	if err := os.Mkdir(unnamed, 0o755); err != nil {
		t.Fatal(err)
	}

	t.Setenv("TMPDIR", tmp)
	New(t)
	if exists(killed.dir) {
		t.Errorf("the next start left %s of the killed process", killed.dir)
	}
	for _, dir := range []string{lives.dir, foreign, unnamed} {
		if !exists(dir) {
			t.Errorf("the next start removed %s", dir)
		}
	}
	if err := syscall.Kill(lives.pids[len(lives.pids)-1], 0); err != nil {
		t.Errorf("the next start ended the server of a live process: %v", err)
	}

	lives.stdin.Close()
	if err := lives.cmd.Wait(); err != nil {
		t.Errorf("the other process: %v", err)
	}
	if exists(lives.dir) {
		t.Errorf("Stop left %s", lives.dir)
	}
}

// A server that its parent's end did not stop is stopped by the sweep.
func TestSweepStopsServer(t *testing.T) {
	ownServer(t)
	s := New(t)
	c := s.inst.(*cluster)
	if err := sweepDir(c.dir); err == nil {
		t.Fatal("sweepDir removed a directory in use")
	}
	if err := syscall.Flock(int(c.lock.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := sweepDir(c.dir); err != nil {
		t.Fatal(err)
	}
	<-c.postmaster.done
	if exists(c.dir) {
		t.Errorf("%s is still there", c.dir)
	}
}

func TestUnprivileged(t *testing.T) {
	ownServer(t)
	if os.Geteuid() != 0 {
		t.Log("this process is an unprivileged user's already: every test here is this one")
		return
	}
	cred, err := serverUser()
	if err != nil {
		t.Fatal(err)
	}
	// go test's own directory is closed to others.
	tmp := shortTempDir(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	exe = filepath.Join(tmp, "pgtest.test")
	if err := os.WriteFile(exe, binary, 0o755); err != nil {
		t.Fatal(err)
	}

	c := startChildProcess(t, tmp, exe, cred)
	if want := fmt.Sprintf("uid %d works", cred.Uid); c.word != want {
		t.Errorf("the child process said %q; want %q", c.word, want)
	}
	c.stdin.Close()
	if err := c.cmd.Wait(); err != nil {
		t.Errorf("the child process: %v", err)
	}
	waitGone(t, c.pids)
	if exists(c.dir) {
		t.Errorf("Stop left %s", c.dir)
	}
}

func TestWatchdog(t *testing.T) {
	sleeper := func() *exec.Cmd {
		cmd := exec.Command("/bin/sh", "-c", "read -r _")
		if _, err := cmd.StdinPipe(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
		return cmd
	}
	t.Run("Unwatch", func(t *testing.T) {
		cmd := sleeper()
		unwatch, err := watchdog(cmd.Process.Pid, syscall.SIGTERM)
		if err != nil {
			t.Fatal(err)
		}
		unwatch()
		if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if sig := cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(); sig != syscall.SIGINT {
			t.Errorf("ended by %v; want %v: the watchdog was called off", sig, syscall.SIGINT)
		}
	})
	t.Run("ParentGone", func(t *testing.T) {
		cmd := sleeper()
		// A shell between us and the watchdog's pipe would be the parent; that
		// the pipe closes is all the watchdog sees of its end.
		_, end, err := startWatchdog(cmd.Process.Pid, syscall.SIGTERM)
		if err != nil {
			t.Fatal(err)
		}
		end.Close()
		_ = cmd.Wait()
		if sig := cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(); sig != syscall.SIGTERM {
			t.Errorf("ended by %v; want %v", sig, syscall.SIGTERM)
		}
	})
}
