package isolation

import (
	"encoding/binary"
	"fmt"
)

// postgresQuery has a column of each type whose driver.Value is a []byte, an array,
// a text and a number.
const postgresQuery = `SELECT CASE WHEN i = 1 THEN decode($1, 'hex') END,
	('{"k": "' || $1 || '"}')::json, ('{"k": "' || $1 || '"}')::jsonb, ('<k>' || $1 || '</k>')::xml,
	ARRAY[$1, $1], $1, i
	FROM (SELECT 1::bigint AS i UNION ALL SELECT 2) AS two ORDER BY i`

var postgresColumns = []columnKind{kindWire, kindWire, kindBytes, kindWire, kindText, kindText, kindNumber}

// postgresTable returns the rows of a key.
func postgresTable(key int64) table {
	hex := postgresArg(key).(string)
	var t table
	for i := range 2 {
		row := [][]byte{
			binary.BigEndian.AppendUint64(nil, uint64(key)),
			[]byte(`{"k": "` + hex + `"}`), []byte(`{"k": "` + hex + `"}`), []byte("<k>" + hex + "</k>"),
			[]byte("{" + hex + "," + hex + "}"), []byte(hex),
			binary.BigEndian.AppendUint64(nil, uint64(i+1)),
		}
		if i == 1 {
			row[0] = nil
		}
		t = append(t, row)
	}
	return t
}

func postgresArg(key int64) any { return fmt.Sprintf("%016x", uint64(key)) }
