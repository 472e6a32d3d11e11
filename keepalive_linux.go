package flightpg

import (
	"net"
	"syscall"
	"time"
)

// tcpUserTimeout is TCP_USER_TIMEOUT, which package syscall does not have.
const tcpUserTimeout = 18

// What a net.Dialer sets that is told nothing, in seconds and probes.
const (
	goIdle     = 15
	goInterval = 15
	goCount    = 9
)

// notice sets what decides when the other side is given up, where nobody else has.
func notice(c *net.TCPConn) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(s uintptr) {
		fd := int(s)
		is := func(level, opt, want int) bool {
			v, err := syscall.GetsockoptInt(fd, level, opt)
			return err == nil && v == want
		}
		if is(syscall.SOL_SOCKET, syscall.SO_KEEPALIVE, 1) && is(syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, goIdle) &&
			is(syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, goInterval) && is(syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, goCount) {
			_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPIDLE, int(keepAliveIdle/time.Second))
			_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPINTVL, int(keepAliveInterval/time.Second))
			_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, syscall.TCP_KEEPCNT, keepAliveCount)
		}
		if is(syscall.IPPROTO_TCP, tcpUserTimeout, 0) {
			_ = syscall.SetsockoptInt(fd, syscall.IPPROTO_TCP, tcpUserTimeout, int(goneAfter/time.Millisecond))
		}
	})
}
