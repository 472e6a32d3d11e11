//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd)

package pgtest

import (
	"context"
	"errors"
	"os/exec"
	"syscall"
)

// clusters says that here, servers come from FLIGHTPG_TEST_DSN or Docker only.
const clusters = false

func startCluster(context.Context, string, *options) (instance, error) {
	return nil, errors.New("PostgreSQL's programs are not supported on this system; set " + EnvDSN + " or start Docker")
}

// child is a process. Here it is not ended with its parent.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // of Wait; read it after done
}

func startChild(cmd *exec.Cmd, _ syscall.Signal) (*child, error) {
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{cmd: cmd, done: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c, nil
}
