//go:build !linux

package growth

import "time"

var start = time.Now()

// cpuTime returns the time, where a thread's is not to be had.
func cpuTime() time.Duration { return time.Since(start) }
