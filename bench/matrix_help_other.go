//go:build !unix

package main

import (
	"errors"
	"os/exec"
)

func runAs(*exec.Cmd, *credential) {}

func unprivileged() (*credential, error) {
	return nil, errors.New("poolers are run on Unix only")
}
