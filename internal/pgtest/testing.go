package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
)

// New starts a server for one test and stops it at the test's end. Without a
// server to start, the test fails with what to install. Prefer [Shared]: a start
// takes a second.
func New(tb testing.TB, opts ...Option) *Server {
	tb.Helper()
	s, err := Start(tb.Context(), opts...)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := s.Stop(); err != nil {
			tb.Error(err)
		}
	})
	return s
}

// Database returns the DSN of a database made for one test, and drops it at the
// test's end. A test that leaves a backend, an advisory lock or a prepared
// transaction there fails.
func (s *Server) Database(tb testing.TB) string {
	tb.Helper()
	dsn, err := s.NewDatabase(tb.Context())
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		// The test's context has ended by now. A server that the test stopped,
		// or left crashed, has nothing to drop from. One that failed may have
		// left what it would have closed.
		if s.up() && !tb.Failed() {
			if err := ifLeft(s.leftIn(context.Background(), dsn, leavePatience)); err != nil {
				tb.Error(err)
			}
		}
		if err := s.DropDatabase(context.Background(), dsn); err != nil && s.up() {
			tb.Error(err)
		}
	})
	return dsn
}

// up reports whether the server is there as far as we know.
func (s *Server) up() bool {
	s.mu.Lock()
	stopped := s.stopped
	s.mu.Unlock()
	if stopped {
		return false
	}
	c, ok := s.inst.(interface{ down() bool })
	return !ok || !c.down()
}

// The server that the tests of a package share.
var shared struct {
	mu     sync.Mutex // guards the rest; held while the server starts, so that there is one
	opts   []Option
	server *Server
	err    error // why there is no server: every further test fails at once
}

// Main runs the tests of a package and then stops the server that they shared,
// if one of them asked for it. The options are for that server.
//
//	func TestMain(m *testing.M) { pgtest.Main(m) }
//
// A package with a TestMain of its own can call [StopShared]. One that calls
// neither leaves a directory behind, which the next server of this package
// removes; the server itself ends with the process in any case.
func Main(m *testing.M, opts ...Option) {
	os.Exit(Run(m, opts...))
}

// Run is Main without the end of the process: it returns the status for os.Exit.
func Run(m *testing.M, opts ...Option) int {
	shared.mu.Lock()
	shared.opts = opts
	shared.mu.Unlock()

	code := m.Run()
	if err := StopShared(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	return code
}

// Shared returns the package's shared server, which the first call starts. The
// test fails if there is none.
func Shared(tb testing.TB) *Server {
	tb.Helper()
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil && shared.err == nil {
		// Not the test's context: the server stays for the tests after it.
		shared.server, shared.err = Start(context.Background(), shared.opts...)
	}
	if shared.err != nil {
		tb.Fatal(shared.err)
	}
	return shared.server
}

// Database returns the DSN of a database on the shared server that is made for
// one test and dropped at its end: all that most tests need.
func Database(tb testing.TB) string {
	tb.Helper()
	return Shared(tb).Database(tb)
}

// StopShared stops the shared server, if one was started. Main and Run call it. The
// error says, too, if somebody has left something there.
func StopShared() error {
	shared.mu.Lock()
	defer shared.mu.Unlock()
	if shared.server == nil {
		return nil
	}
	var left error
	if shared.server.owned && shared.server.up() {
		left = ifLeft(shared.server.leftOnServer(context.Background(), leavePatience))
	}
	err := errors.Join(left, shared.server.Stop())
	shared.server, shared.err = nil, errors.New("pgtest: the shared server is stopped")
	return err
}
