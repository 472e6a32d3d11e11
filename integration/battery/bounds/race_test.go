//go:build race

package bounds

// Under the race detector stacks are twice as large, and callers are fewer in the
// short form.
const (
	raceEnabled = true
	perCaller   = 20 * kB
	perFlight   = 40 * kB
)
