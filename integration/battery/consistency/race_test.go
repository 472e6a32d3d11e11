//go:build unix && race

package consistency

const raceEnabled = true
