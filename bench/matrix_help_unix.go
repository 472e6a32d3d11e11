//go:build unix

package main

import (
	"errors"
	"os"
	"os/exec"
	"os/user"
	"strconv"
	"syscall"
)

// runAs makes a command run as somebody, apart from the terminal.
func runAs(cmd *exec.Cmd, who *credential) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if who != nil {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: who.UID, Gid: who.GID}
	}
}

// unprivileged returns who poolers run as, as they refuse root: nil if this process is
// nobody special.
func unprivileged() (*credential, error) {
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
		if err := errors.Join(err1, err2); err != nil {
			return nil, err
		}
		return &credential{uint32(uid), uint32(gid)}, nil
	}
	return nil, errors.New("poolers do not run as root, and there is no user postgres or nobody to run them as")
}
