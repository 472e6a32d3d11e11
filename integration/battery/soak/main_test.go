package main

import (
	"testing"

	"github.com/flightpg/flightpg/internal/leak"
)

func TestMain(m *testing.M) { leak.Main(m.Run, leak.Toxiproxy()...) }
