//go:build !flightpg_pipeline

package flightpg

// defaultExecutor is what Config.Executor's zero value stands for.
const defaultExecutor = ExecutorGeneric
