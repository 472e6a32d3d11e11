package flightpg

import (
	"context"
	"database/sql/driver"
	"go/importer"
	"go/token"
	"go/types"
	"reflect"
	"slices"
	"testing"

	"github.com/jackc/pgx/v5/stdlib"
)

// driverInterfaces are all interfaces of database/sql/driver, those of Go 1.27 in
// contract_go1.27_test.go. database/sql asks a driver's values for them, so what
// pgx's have ours must have too, and what they have not, database/sql must not
// find here either.
var driverInterfaces = map[string]reflect.Type{
	//lint:ignore SA1019 database/sql may still ask for it
	"ColumnConverter":    reflect.TypeFor[driver.ColumnConverter](),
	"Conn":               reflect.TypeFor[driver.Conn](),
	"ConnBeginTx":        reflect.TypeFor[driver.ConnBeginTx](),
	"ConnPrepareContext": reflect.TypeFor[driver.ConnPrepareContext](),
	"Connector":          reflect.TypeFor[driver.Connector](),
	"Driver":             reflect.TypeFor[driver.Driver](),
	"DriverContext":      reflect.TypeFor[driver.DriverContext](),
	//lint:ignore SA1019 database/sql may still ask for it
	"Execer":            reflect.TypeFor[driver.Execer](),
	"ExecerContext":     reflect.TypeFor[driver.ExecerContext](),
	"NamedValueChecker": reflect.TypeFor[driver.NamedValueChecker](),
	"Pinger":            reflect.TypeFor[driver.Pinger](),
	//lint:ignore SA1019 database/sql may still ask for it
	"Queryer":                        reflect.TypeFor[driver.Queryer](),
	"QueryerContext":                 reflect.TypeFor[driver.QueryerContext](),
	"Result":                         reflect.TypeFor[driver.Result](),
	"Rows":                           reflect.TypeFor[driver.Rows](),
	"RowsColumnTypeDatabaseTypeName": reflect.TypeFor[driver.RowsColumnTypeDatabaseTypeName](),
	"RowsColumnTypeLength":           reflect.TypeFor[driver.RowsColumnTypeLength](),
	"RowsColumnTypeNullable":         reflect.TypeFor[driver.RowsColumnTypeNullable](),
	"RowsColumnTypePrecisionScale":   reflect.TypeFor[driver.RowsColumnTypePrecisionScale](),
	"RowsColumnTypeScanType":         reflect.TypeFor[driver.RowsColumnTypeScanType](),
	"RowsNextResultSet":              reflect.TypeFor[driver.RowsNextResultSet](),
	"SessionResetter":                reflect.TypeFor[driver.SessionResetter](),
	"Stmt":                           reflect.TypeFor[driver.Stmt](),
	"StmtExecContext":                reflect.TypeFor[driver.StmtExecContext](),
	"StmtQueryContext":               reflect.TypeFor[driver.StmtQueryContext](),
	"Tx":                             reflect.TypeFor[driver.Tx](),
	"Validator":                      reflect.TypeFor[driver.Validator](),
	"ValueConverter":                 reflect.TypeFor[driver.ValueConverter](),
	"Valuer":                         reflect.TypeFor[driver.Valuer](),
}

// TestContract compares pgx's concrete types with ours, interface by interface.
func TestContract(t *testing.T) {
	pkg, err := importer.ForCompiler(token.NewFileSet(), "source", nil).Import("database/sql/driver")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, name := range pkg.Scope().Names() {
		obj, ok := pkg.Scope().Lookup(name).(*types.TypeName)
		if ok && obj.Exported() && types.IsInterface(obj.Type()) && name != "Value" { // any
			names = append(names, name)
		}
	}
	for _, name := range names {
		if driverInterfaces[name] == nil {
			t.Errorf("database/sql/driver has an interface %s that this test does not know: see what pgx and flightpg shall do with it", name)
		}
	}
	for name := range driverInterfaces {
		if !slices.Contains(names, name) {
			t.Errorf("database/sql/driver has no interface %s", name)
		}
	}

	// The rows of sessions are pgx's own.
	var replays, fenced driver.Rows = newReplay(context.Background(), &result{cols: &columns{wire: new(wireColumns)}}), newFencedRows(new(stdlib.Rows), nil, nil)
	for _, pair := range []struct {
		pgx   reflect.Type
		ours  []reflect.Type
		more  []string // what ours have beside
		where string
	}{
		{reflect.TypeFor[*stdlib.Driver](), []reflect.Type{reflect.TypeFor[*Driver]()}, nil, ""},
		{reflect.TypeOf(stdlib.GetConnector(*defaultConfig())), []reflect.Type{reflect.TypeFor[*Connector]()}, nil, ""},
		{
			reflect.TypeFor[*stdlib.Conn](),
			[]reflect.Type{reflect.TypeFor[*conn]()},
			[]string{"Validator"},
			"IsValid is where a session goes back to its pool",
		},
		{reflect.TypeFor[*stdlib.Stmt](), []reflect.Type{reflect.TypeFor[*stmt]()}, nil, ""},
		{
			reflect.TypeFor[*stdlib.Rows](),
			[]reflect.Type{reflect.TypeOf(replays), reflect.TypeOf(fenced)},
			[]string{"RowsNextResultSet", "RowsColumnTypeNullable"},
			"other inner drivers have them; the answers are database/sql's own for rows without",
		},
	} {
		for _, ours := range pair.ours {
			for name, iface := range driverInterfaces {
				switch has, want := ours.Implements(iface), pair.pgx.Implements(iface); {
				case has == want:
				case has && slices.Contains(pair.more, name):
				default:
					t.Errorf("%v implements %s: %v; %v: %v", ours, name, has, pair.pgx, want)
				}
			}
		}
	}
}
