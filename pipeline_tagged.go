//go:build flightpg_pipeline

package flightpg

// defaultExecutor is what Config.Executor's zero value stands for in tests that
// hold the pipeline to what the generic executor does.
const defaultExecutor = ExecutorAuto
