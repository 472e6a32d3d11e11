//go:build flightpg_generic

package flightpg

// autoExecutor is what ExecutorAuto stands for in tests that hold the generic
// executor to what the pipeline does.
const autoExecutor = ExecutorGeneric
