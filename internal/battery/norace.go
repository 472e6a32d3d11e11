//go:build !race

package battery

// RaceDetector reports whether this is built with the race detector.
const RaceDetector = false
