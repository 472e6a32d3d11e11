//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package pgtest

import (
	"context"
	"os/exec"
	"runtime"
	"syscall"
)

// child is a process that does not outlive this one, not even when this one is
// killed.
type child struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // of Wait; read it after done
}

// startChild starts cmd. When this process ends first, the child gets signal.
func startChild(cmd *exec.Cmd, signal syscall.Signal) (*child, error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	// A Ctrl-C at the terminal is for us; we then end the child.
	cmd.SysProcAttr.Setpgid = true
	tieToParent(cmd.SysProcAttr, signal)

	c := &child{cmd: cmd, done: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		// Linux ties the child to the thread that started it: keep the thread
		// for as long as the child runs.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()

		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		unwatch, err := watchParent(cmd.Process.Pid, signal)
		if err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			started <- err
			return
		}
		started <- nil
		c.err = cmd.Wait()
		unwatch()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// wait returns when the process has ended, or the context.
func (c *child) wait(ctx context.Context) error {
	select {
	case <-c.done:
		return c.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ended reports whether the process has ended.
func (c *child) ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}
