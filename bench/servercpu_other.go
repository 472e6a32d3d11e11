//go:build !linux

package main

import "math"

// serverCPU cannot be told here.
func (b *bench) serverCPU() float64 { return math.NaN() }
