//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package pgtest

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// watchdog sends signal to pid when this process ends. Linux has something
// better; there it is compiled for its test.
func watchdog(pid int, signal syscall.Signal) (unwatch func(), err error) {
	cmd, pipe, err := startWatchdog(pid, signal)
	if err != nil {
		return nil, err
	}
	return func() {
		// Before the pipe closes: pid may be someone else's by now.
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		pipe.Close()
	}, nil
}

// startWatchdog starts a shell that sends the signal when the pipe closes, whose
// only writer is this process.
func startWatchdog(pid int, signal syscall.Signal) (cmd *exec.Cmd, pipe *os.File, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	cmd = exec.Command("/bin/sh", "-c", `read -r _; kill -"$1" "$2" 2>/dev/null`,
		"sh", strconv.Itoa(int(signal)), strconv.Itoa(pid))
	cmd.Stdin = r
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is not for it
	if err := cmd.Start(); err != nil {
		w.Close()
		return nil, nil, err
	}
	return cmd, w, nil
}
