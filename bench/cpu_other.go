//go:build !unix

package main

import "time"

// clientCPU cannot be told here.
func clientCPU() time.Duration { return 0 }
