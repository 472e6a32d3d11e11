package main

import (
	"math"
	"os"
	"strconv"
	"strings"
)

// tick is the unit of /proc's times, in nanoseconds: 1/100 s on all machines that
// Go runs on.
const tick = 1e7

// serverCPU returns the time that the server's processes have had, in nanoseconds:
// those of now, and those that have ended, which are in the postmaster's account of
// its children. NaN if the server is not ours.
func (b *bench) serverCPU() float64 {
	if b.server == nil || b.server.PID() == 0 {
		return math.NaN()
	}
	postmaster := b.server.PID()
	pids, err := family(postmaster)
	if err != nil {
		return math.NaN()
	}
	sum := 0.0
	for _, pid := range pids {
		f := statOf(pid)
		switch {
		case len(f) < 15:
		case pid == postmaster:
			// Of its children that have ended: user and system time.
			sum += (parse(f[13]) + parse(f[14])) * tick
			fallthrough
		case parse(f[1]) == float64(postmaster):
			sum += running(pid, f)
		}
	}
	return sum
}

// family returns a process and its children, or where the kernel has no list of them
// all processes.
func family(of int) (pids []int, err error) {
	at := strconv.Itoa(of)
	names := []string{at}
	if text, err := os.ReadFile("/proc/" + at + "/task/" + at + "/children"); err == nil {
		names = append(names, strings.Fields(string(text))...)
	} else {
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return nil, err
		}
		names = nil
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// statOf returns the fields of /proc/PID/stat from the state on, which is the third.
func statOf(pid int) []string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return nil // it has ended
	}
	s := string(text)
	return strings.Fields(s[strings.LastIndexByte(s, ')')+1:])
}

// running returns the time that a process has had. The scheduler's own account is
// more precise than the ticks; a server process has one thread.
func running(pid int, stat []string) float64 {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/schedstat")
	if f := strings.Fields(string(text)); err == nil && len(f) > 0 {
		return parse(f[0])
	}
	return (parse(stat[11]) + parse(stat[12])) * tick
}

func parse(s string) float64 {
	v, err := strconv.ParseFloat(s, 64)
	if err != nil {
		return 0
	}
	return v
}
