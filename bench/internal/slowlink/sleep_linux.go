package slowlink

import (
	"syscall"
	"time"
)

// precise asks the kernel not to wake this thread later than it must, so as to
// wake several at once: by default it may take 50 µs.
func precise() {
	const setTimerSlack = 29
	_, _, _ = syscall.RawSyscall(syscall.SYS_PRCTL, setTimerSlack, 1, 0)
}

// sleepUntil sleeps in the kernel: a timer of Go's runtime may be a millisecond
// late when nothing else goes on.
func sleepUntil(due time.Time) {
	for {
		left := time.Until(due)
		if left <= 0 {
			return
		}
		ts := syscall.NsecToTimespec(left.Nanoseconds())
		_ = syscall.Nanosleep(&ts, nil) // interrupted: once more
	}
}
