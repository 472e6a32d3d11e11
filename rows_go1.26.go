//go:build !go1.27

package flightpg

import "database/sql/driver"

// Up to Go 1.26 database/sql scans driver.Values only, and what the server has
// sent is not needed once it is decoded.

// typeReaders is for later versions of Go.
type typeReaders struct{}

func (*session) typeReaders() *typeReaders { return nil }

// rawValues is for later versions of Go.
type rawValues struct{}

func (rawValues) add([][]byte, []driver.Value) int64 { return 0 }

func (rawValues) again() rawValues { return rawValues{} }

// scansColumns says that database/sql asks for each column by itself.
const scansColumns = false

// replayRows is a replay as database/sql shall see it.
type replayRows struct{ replay }

func (r *replayRows) rows() driver.Rows { return &r.replay }

func newFencedRows(rows driver.Rows, cn *conn, v *verdict) driver.Rows {
	return &fencedRows{passedRows{rows}, cn, v}
}
