//go:build !linux

package flightpg

import "net"

// notice leaves Go's keepalive as it is: a dialer of the user's own cannot be told from
// pgx's here.
func notice(*net.TCPConn) {}
