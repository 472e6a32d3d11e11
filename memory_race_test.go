//go:build race

package flightpg

// smallest is what Go's allocator takes for an integer: under the race detector it
// does not put several into one block.
const smallest = 16
