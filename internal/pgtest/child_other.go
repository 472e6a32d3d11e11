//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package pgtest

import (
	"os/exec"
	"strconv"
	"syscall"
)

// tieToParent has nothing to do here: see watchParent.
func tieToParent(*syscall.SysProcAttr, syscall.Signal) {}

// watchParent sends signal to pid when this process ends.
func watchParent(pid int, signal syscall.Signal) (unwatch func(), err error) {
	return watchdog(pid, signal)
}

// commandLine returns the arguments of a running process, or an empty string.
func commandLine(pid int) string {
	out, err := exec.Command("ps", "-o", "command=", "-p", strconv.Itoa(pid)).Output()
	if err != nil {
		return ""
	}
	return string(out)
}
