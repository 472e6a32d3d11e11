package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"

	"github.com/flightpg/flightpg/bench/internal/slowlink"
)

// oneWay is the delay in each direction.
const oneWay = 500 * time.Microsecond

// envProxy makes this program a proxy. It is a process of its own, so that what it
// does is not taken for the client's CPU time.
const envProxy = "FLIGHTPG_BENCH_PROXY"

// proxied runs the proxy if this process is one. It ends with its standard input,
// which ends with its parent.
func proxied() bool {
	to, rest, ok := strings.Cut(os.Getenv(envProxy), " ")
	if !ok {
		return false
	}
	delay, err := time.ParseDuration(rest)
	if err != nil {
		fail(err)
	}
	runtime.GOMAXPROCS(max(8, runtime.NumCPU())) // one of them sleeps in the kernel
	l, err := slowlink.Listen(to, delay)
	if err != nil {
		fail(err)
	}
	fmt.Println(l.Addr())
	_, _ = io.Copy(io.Discard, os.Stdin)
	_ = l.Close()
	return true
}

// proxy starts a proxy, and returns its address.
func (b *bench) proxy(to string, delay time.Duration) (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	in, keep, err := os.Pipe()
	if err != nil {
		return "", err
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s", envProxy, to, delay))
	cmd.Stdin, cmd.Stderr = in, os.Stderr
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	_ = in.Close()
	if err != nil {
		return "", errors.Join(err, keep.Close())
	}
	b.links, b.stdins = append(b.links, cmd), append(b.stdins, keep)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("the proxy does not start: %w", err)
	}
	return strings.TrimSpace(line), nil
}
