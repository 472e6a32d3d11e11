//go:build go1.27

package flightpg

import (
	"database/sql/driver"
	"reflect"
)

func init() {
	driverInterfaces["RowsColumnScanner"] = reflect.TypeFor[driver.RowsColumnScanner]()
}
