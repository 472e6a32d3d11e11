package main

import (
	"os"
	"strings"
	"syscall"
)

// machineTimes returns the time that all CPUs have had since the machine started, in
// ticks: all of it, and what they were busy for or had to give to other machines.
func machineTimes() (all, busy float64) {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for i, f := range strings.Fields(line) {
		if i == 0 || i > 8 { // cpu; what guests had is in the others
			continue
		}
		all += parse(f)
		if i != 4 && i != 5 { // idle, waiting for a disk
			busy += parse(f)
		}
	}
	return all, busy
}

// familyTimes returns the time in ticks that this process has had and its children
// that have ended, with theirs.
func familyTimes() float64 {
	sum := 0.0
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var u syscall.Rusage
		if err := syscall.Getrusage(who, &u); err == nil {
			sum += float64(u.Utime.Nano()+u.Stime.Nano()) / tick
		}
	}
	return sum
}
