//go:build !flightpg_generic

package flightpg

// autoExecutor is what ExecutorAuto stands for.
const autoExecutor = ExecutorAuto
