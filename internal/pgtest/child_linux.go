package pgtest

import (
	"bytes"
	"fmt"
	"os"
	"syscall"
)

// tieToParent asks the kernel to send signal when the starting thread ends.
func tieToParent(attr *syscall.SysProcAttr, signal syscall.Signal) {
	attr.Pdeathsig = signal
}

// watchParent has nothing to do here.
func watchParent(int, syscall.Signal) (unwatch func(), err error) {
	return func() {}, nil
}

// commandLine returns the arguments of a running process, or an empty string.
func commandLine(pid int) string {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return ""
	}
	return string(bytes.ReplaceAll(line, []byte{0}, []byte{' '}))
}
