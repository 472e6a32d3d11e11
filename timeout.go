package flightpg

import (
	"context"
	"reflect"

	"github.com/jackc/pgx/v5/pgconn"
)

// leftError makes the end of a caller's context, which he has met while he waited for a
// flight or a connection, an error like pgx's: pgconn.Timeout reports true.
func leftError(ctx context.Context, err error) error {
	if err == context.Canceled || err == context.DeadlineExceeded {
		if ctx.Err() == err { //nolint:errorlint // contexts give these two
			return leftEarly{err}
		}
	}
	return err
}

// leftEarly is to its callers what pgconn's errTimeout is, which cannot be made elsewhere.
type leftEarly struct{ err error }

func (e leftEarly) Error() string { return "timeout: " + e.err.Error() }
func (e leftEarly) Unwrap() error { return e.err }

// As lets pgconn.Timeout find its own type.
func (e leftEarly) As(target any) bool {
	t := reflect.TypeOf(target)
	if t.Kind() != reflect.Pointer || t.Elem().Kind() != reflect.Pointer {
		return false
	}
	t = t.Elem().Elem()
	if t.Name() != "errTimeout" || t.PkgPath() != reflect.TypeFor[pgconn.PgConn]().PkgPath() {
		return false
	}
	reflect.ValueOf(target).Elem().Set(reflect.New(t))
	return true
}
