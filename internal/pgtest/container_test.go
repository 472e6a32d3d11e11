//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package pgtest

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// needDocker returns a docker client. In CI there must be one.
func needDocker(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("NOT RUN with -short: servers in Docker")
	}
	docker, err := findDocker(t.Context())
	switch {
	case err == nil:
	case os.Getenv("CI") == "true":
		t.Fatal(err)
	default:
		t.Skipf("NOT TESTED: servers in Docker: %v", err)
	}
	return docker
}

func TestContainer(t *testing.T) {
	needDocker(t)
	begin := time.Now()
	s := New(t, WithDocker(), WithSetting("cluster_name", "it's"), WithPreload("pg_stat_statements", "no_such_extension"))
	t.Logf("started after %v", time.Since(begin).Round(time.Millisecond))
	if got := queryString(t, s.Database(t), "show cluster_name"); got != "it's" {
		t.Errorf("cluster_name = %s; want it's", got)
	}
	if got := queryString(t, s.DSN(), "show shared_preload_libraries"); got != "pg_stat_statements" {
		t.Errorf("shared_preload_libraries = %s; want pg_stat_statements", got)
	}
	if s.SocketDSN() != "" || s.PID() != 0 {
		t.Errorf("SocketDSN, PID = %q, %d; want none of a container", s.SocketDSN(), s.PID())
	}
	if log := s.Log(); !strings.Contains(log, "ready to accept connections") {
		t.Errorf("Log lacks the server's words: %s", log)
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

func TestContainer_Fails(t *testing.T) {
	needDocker(t)
	_, err := Start(t.Context(), WithDocker(), WithSetting("max_connections", "none"))
	if err == nil || !strings.Contains(err.Error(), "max_connections") {
		t.Errorf("Start = %v; want the server's words on max_connections", err)
	}
}

// containerChildMain is childMain for a server in Docker.
func containerChildMain() {
	s, err := Start(context.Background(), WithDocker())
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(s.inst.(*container).name)
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func TestContainer_ParentKilled(t *testing.T) {
	docker := needDocker(t)
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), childEnv+"=container")
	cmd.Stderr = os.Stderr
	if _, err := cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer cmd.Process.Kill()
	name, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	name = strings.TrimSpace(name)
	defer exec.Command(docker, "rm", "--force", "--volumes", name).Run()

	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	// Docker tells when the container stops, but not when it is removed.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for exec.CommandContext(ctx, docker, "container", "inspect", name).Run() == nil {
		time.Sleep(pollInterval) // nothing tells: polling
	}
	if ctx.Err() != nil {
		t.Errorf("container %s is still there", name)
	}
}
