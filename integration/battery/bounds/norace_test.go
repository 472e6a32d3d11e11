//go:build !race

package bounds

const (
	raceEnabled = false
	// perCaller is for a caller that waits for a flight: its virtual connection,
	// what database/sql keeps for it, its goroutine.
	perCaller = 12 * kB
	// perFlight is for a flight, with its goroutine, and the caller that began it.
	perFlight = 24 * kB
)
