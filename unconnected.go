package flightpg

import (
	"context"
	"errors"
	"net"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// unconnected returns a *pgx.Conn for Conn where there is none to be had, for the reason
// err. pgx finds out with the first thing that is asked of it, and then its error is err.
// It returns nil only if pgx cannot make one from the greeting of a server.
func unconnected(c *Connector, err error) *pgx.Conn {
	pc := defaultConfig().Copy()
	if of := c.source.config; of != nil {
		pc.Host, pc.Port, pc.Database, pc.User = of.Host, of.Port, of.Database, of.User
		pc.DefaultQueryExecMode = of.DefaultQueryExecMode
	}
	nobody := &nobody{err: err}
	pc.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	pc.DialFunc = func(context.Context, string, string) (net.Conn, error) {
		if nobody.greeted.Load() {
			return nil, err // to cancel
		}
		return nobody, nil
	}
	conn, made := pgx.ConnectConfig(context.Background(), pc)
	if made != nil {
		return nil
	}
	nobody.greeted.Store(true)
	return conn
}

var errNotPgx = errors.New("flightpg: the inner driver is not pgx: there is no *pgx.Conn")

// nobody is a network connection that greets as a server does, and fails then.
type nobody struct {
	greeted atomic.Bool
	said    int
	err     error
}

// greeting is AuthenticationOk, ReadyForQuery.
const greeting = "R\x00\x00\x00\x08\x00\x00\x00\x00" + "Z\x00\x00\x00\x05I"

func (n *nobody) Read(b []byte) (int, error) {
	if n.greeted.Load() || n.said == len(greeting) {
		return 0, n.err
	}
	k := copy(b, greeting[n.said:])
	n.said += k
	return k, nil
}

func (n *nobody) Write(b []byte) (int, error) {
	if n.greeted.Load() {
		return 0, n.err
	}
	return len(b), nil
}

func (n *nobody) Close() error                     { return nil }
func (n *nobody) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (n *nobody) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (n *nobody) SetDeadline(time.Time) error      { return nil }
func (n *nobody) SetReadDeadline(time.Time) error  { return nil }
func (n *nobody) SetWriteDeadline(time.Time) error { return nil }
