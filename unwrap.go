package flightpg

import (
	"database/sql/driver"
	"reflect"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// pgxUnder looks for pgx's connection under those that wrap it: tracers, loggers, hooks. Its
// catalog can be asked then, and flights guarded, whatever statements go through. It returns
// nil if there is none, or none that can be found.
//
// Some wrappers have a method for it; most are structs that keep what they wrap, or embed a
// struct that does, and the fields are looked at. Those that are made of functions hide it.
func pgxUnder(dc driver.Conn) *pgx.Conn {
	for range maxWrappers {
		var inner driver.Conn
		switch c := dc.(type) {
		case *stdlib.Conn:
			return c.Conn()
		case *conn: // flightpg's own: its sessions are not this connection's
			return nil
		case interface{ Unwrap() driver.Conn }:
			inner = c.Unwrap()
		case interface{ Raw() driver.Conn }: // XSAM/otelsql
			inner = c.Raw()
		case interface{ WrappedConn() driver.Conn }: // dd-trace-go
			inner = c.WrappedConn()
		}
		if inner == nil {
			inner = heldConn(reflect.ValueOf(dc), maxWrappers)
		}
		if inner == nil {
			return nil
		}
		dc = inner
	}
	return nil
}

// maxWrappers bounds how many wrappers are looked through: some could lead to themselves.
const maxWrappers = 16

var (
	typeOfConn = reflect.TypeFor[driver.Conn]()
	typeOfPgx  = reflect.TypeFor[*stdlib.Conn]()
)

// heldConn returns the connection that a struct keeps in a field, in an embedded struct's
// too, or nil.
func heldConn(v reflect.Value, depth int) driver.Conn {
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if v.Kind() != reflect.Struct || depth == 0 {
		return nil
	}
	if !v.CanAddr() { // fields that are not exported can be read where they lie
		at := reflect.New(v.Type()).Elem()
		at.Set(v)
		v = at
	}
	for i := range v.NumField() {
		t := v.Type().Field(i)
		f := reflect.NewAt(t.Type, v.Field(i).Addr().UnsafePointer()).Elem()
		if (f.Kind() == reflect.Interface && t.Type.Implements(typeOfConn) || t.Type == typeOfPgx) && !f.IsNil() {
			return f.Interface().(driver.Conn)
		}
	}
	for i := range v.NumField() {
		if t := v.Type().Field(i); t.Anonymous {
			f := reflect.NewAt(t.Type, v.Field(i).Addr().UnsafePointer()).Elem()
			if inner := heldConn(f, depth-1); inner != nil {
				return inner
			}
		}
	}
	return nil
}
