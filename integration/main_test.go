// Package integration tests flightpg against whole PostgreSQL servers. It is a
// module of its own, so that what the tests need is no dependency of the driver.
//
// Every test runs on each server of servers_test.go, in a database of its own.
package integration

import (
	"fmt"
	"os"
	"testing"

	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

func TestMain(m *testing.M) {
	// The heap is not judged: this suite keeps more than the limit of leak.Main
	// (74 MB were seen), and what of it is the tests' own has not been traced.
	leak.Goroutines(func() int {
		code := m.Run()
		for _, stop := range []func() error{stopContainer, pgtest.StopShared} {
			if err := stop(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = max(code, 1)
			}
		}
		return code
	})
}
