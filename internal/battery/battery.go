// Package battery is what the parts of the battery have in common: the tests that
// try to break flightpg, which `make battery` runs at full length, `make test-all` in
// a short form and `make test`, with -short, in a quick one. They say how much they
// do by N and Quick, take their randomness from Seed, and report what they found as
// an Entry.
//
// Variables that the tests read:
//
//	FLIGHTPG_BATTERY=full    full length; anything else: the short form
//	FLIGHTPG_SEED=N          repeats a run: the seed that it printed
//	FLIGHTPG_BATTERY_REPORT  a file to which each Entry is appended, as JSON
package battery

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Names of the variables.
const (
	EnvLength = "FLIGHTPG_BATTERY"
	EnvSeed   = "FLIGHTPG_SEED"
	EnvReport = "FLIGHTPG_BATTERY_REPORT"
)

// Full reports whether the battery runs at full length.
func Full() bool { return os.Getenv(EnvLength) == "full" }

// N returns full if the battery runs at full length, short otherwise.
func N[T any](short, full T) T {
	if Full() {
		return full
	}
	return short
}

// Quick returns quick with -short, otherwise otherwise: a test that takes long does
// less of the same.
func Quick[T any](quick, otherwise T) T {
	if testing.Short() && !Full() {
		return quick
	}
	return otherwise
}

// Seed returns the seed of a test, from the environment or else at random, and
// logs how to repeat the test with it.
func Seed(tb testing.TB) uint64 {
	tb.Helper()
	seed := rand.Uint64()
	if s := os.Getenv(EnvSeed); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			tb.Fatalf("%s=%q: want a number without sign: %v", EnvSeed, s, err)
		}
	}
	tb.Logf("seed %d: %s=%d go test -run '^%s$' repeats it", seed, EnvSeed, seed, tb.Name())
	return seed
}

// Rand returns a source of randomness for a seed and a number: that of a
// schedule, a client, a round.
func Rand(seed uint64, n int) *rand.Rand { return rand.New(rand.NewPCG(seed, uint64(n))) }

// Entry is one line of the battery's report: a claim, and the figures that it
// was tested with. Its methods are safe for concurrent use.
type Entry struct {
	Part    string   `json:"part"`  // "consistency"
	Claim   string   `json:"claim"` // "strict is linearizable"
	Test    string   `json:"test"`
	Seed    uint64   `json:"seed,omitempty"`
	Full    bool     `json:"full"`
	Passed  bool     `json:"passed"`
	Seconds float64  `json:"seconds"`
	Figures []Figure `json:"figures"`

	mu    sync.Mutex // guards Figures
	begin time.Time
}

// Figure is a number that an Entry reports.
type Figure struct {
	Name  string `json:"name"`
	Value any    `json:"value"`
}

// Report begins the Entry of a claim. It is written when the test ends, with
// whether the test passed.
func Report(tb testing.TB, part, claim string, seed uint64) *Entry {
	tb.Helper()
	e := &Entry{Part: part, Claim: claim, Test: tb.Name(), Seed: seed, Full: Full(), begin: time.Now()}
	tb.Cleanup(func() {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.Passed = !tb.Failed() && !tb.Skipped()
		e.Seconds = time.Since(e.begin).Seconds()
		tb.Log(e.line())
		if err := e.append(os.Getenv(EnvReport)); err != nil {
			tb.Errorf("the battery's report: %v", err)
		}
	})
	return e
}

// Set reports a figure: a number, a duration, a short text. A name that was set
// before gets the new value.
func (e *Entry) Set(name string, value any) {
	if d, ok := value.(time.Duration); ok {
		value = d.String()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for i := range e.Figures {
		if e.Figures[i].Name == name {
			e.Figures[i].Value = value
			return
		}
	}
	e.Figures = append(e.Figures, Figure{name, value})
}

func (e *Entry) line() string {
	var b strings.Builder
	verdict := "passed"
	if !e.Passed {
		verdict = "FAILED"
	}
	fmt.Fprintf(&b, "battery: %s: %s: %s", e.Part, e.Claim, verdict)
	for _, f := range e.Figures {
		fmt.Fprintf(&b, ", %s=%v", f.Name, f.Value)
	}
	return b.String()
}

func (e *Entry) append(file string) error {
	if file == "" {
		return nil
	}
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}
