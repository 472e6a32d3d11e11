package main

import (
	"testing"

	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

func TestMain(m *testing.M) {
	leak.Main(func() int { return pgtest.Run(m, settings(testConns)...) })
}
