//go:build !go1.27

package flightpg

import (
	"database/sql/driver"
	"fmt"
)

// Up to Go 1.26 database/sql scans driver.Values only, and what the server has
// sent is not needed once it is decoded.

// typeReaders is for later versions of Go.
type typeReaders struct{}

func (*session) typeReaders() *typeReaders { return nil }

// rawValues is for later versions of Go.
type rawValues struct{}

func (rawValues) add([][]byte, []driver.Value) int64 { return 0 }

// nextRow reads the next row.
func nextRow(rows driver.Rows, row []driver.Value) (raw [][]byte, err error) {
	return nil, rows.Next(row)
}

// decodeRow decodes a row from the wire.
func decodeRow(w *wireColumns, raw [][]byte, row []driver.Value) ([][]byte, error) {
	for i, src := range raw {
		var err error
		if row[i], err = w.value(i, src); err != nil {
			return nil, fmt.Errorf("convert field %d failed: %w", i, err)
		}
	}
	return nil, nil
}

// rows returns the replay as database/sql shall see it.
func (r replay) rows() driver.Rows { return &r }

func newFencedRows(rows driver.Rows, cn *conn, v *verdict) driver.Rows {
	return &fencedRows{passedRows{rows}, cn, v}
}
