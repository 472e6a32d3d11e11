//go:build unix && !linux

package integration

import "syscall"

// tieToParent has no means here: a test binary that is killed leaves PgBouncer
// behind.
func tieToParent(*syscall.SysProcAttr) {}
