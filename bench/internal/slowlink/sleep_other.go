//go:build !linux

package slowlink

import "time"

func precise() {}

func sleepUntil(due time.Time) { time.Sleep(time.Until(due)) }
