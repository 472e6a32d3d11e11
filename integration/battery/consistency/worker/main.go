//go:build unix

// Command worker is a worker of package consistency by itself, for drivers that
// the test breaks and builds.
package main

import (
	"fmt"
	"os"

	"github.com/flightpg/flightpg/integration/battery/consistency"
)

func main() {
	if err := consistency.Work(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}
