package flightpg

import (
	"context"
	"errors"
	"fmt"
	"path"
	"runtime"
	"runtime/debug"
	"strings"
)

// HookPanicError is the error of a call for which a hook has panicked: Config.BeforeConnect,
// AfterConnect, ResetSession, ShouldPing or PartitionKey, one of pgx's config or of a pool,
// or a connector of your own, while a connection was opened or taken into use again.
//
// With pgx that is a panic of db.Conn or db.Query. flightpg opens connections when a
// statement needs one, and there database/sql holds locks that a panic would leave locked:
// the Close of a sql.Conn, a sql.Tx or a sql.Stmt would wait for ever. Who wants the panic
// finds it with errors.As.
type HookPanicError struct {
	Value any    // what the hook has panicked with
	Stack []byte // of its goroutine at that moment, as debug.Stack returns it

	where string // the function, with its file and line; "" if that cannot be told
}

// Error says what the panic was, and where. It does not have the stack.
func (e *HookPanicError) Error() string {
	return fmt.Sprintf("flightpg: panic%s while a connection was opened or taken into use: %v", e.where, e.Value)
}

// Unwrap returns Value if it is an error.
func (e *HookPanicError) Unwrap() error {
	err, _ := e.Value.(error)
	return err
}

// hookPanic returns the error for a panic that a deferred function has recovered.
func hookPanic(p any) *HookPanicError {
	if known, ok := p.(*HookPanicError); ok {
		return known
	}
	return &HookPanicError{Value: p, Stack: debug.Stack(), where: panicked()}
}

// panicked names the function that has panicked, for a deferred function.
func panicked() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(1, pcs)])
	for since := false; ; {
		f, more := frames.Next()
		inRuntime := strings.HasPrefix(f.Function, "runtime.")
		switch {
		case since && !inRuntime && f.Function != "":
			return clipped(fmt.Sprintf(" in %s (%s:%d)", f.Function, path.Base(f.File), f.Line))
		case f.Function == "runtime.gopanic":
			since = true
		}
		if !more {
			return ""
		}
	}
}

// panicking returns a PartitionKey whose panics are those that recovered knows.
func panicking(key func(context.Context) string) func(context.Context) string {
	return func(ctx context.Context) string {
		defer func() {
			if p := recover(); p != nil {
				panic(hookPanic(p))
			}
		}()
		return key(ctx)
	}
}

// recovered makes the panic of a PartitionKey its caller's error, in what database/sql
// calls with locks held. It is to be deferred.
func recovered(err *error) {
	p := recover()
	if p == nil {
		return
	}
	var known *HookPanicError
	if e, ok := p.(error); !ok || !errors.As(e, &known) {
		panic(p)
	}
	*err = known
}
