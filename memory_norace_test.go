//go:build !race

package flightpg

const smallest = scalarSize
