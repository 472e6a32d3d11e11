package isolation

import (
	"context"
	"database/sql/driver"
	"encoding/binary"
	"io"
)

// inner is a driver.Connector whose rows follow from the key that a query asks
// for. Like the drivers of other databases it reuses its memory: what a row
// referred to is overwritten when the next one is read, and at the end.
type inner struct{}

func (inner) Connect(context.Context) (driver.Conn, error) { return &innerConn{}, nil }
func (inner) Driver() driver.Driver                        { return nil }

type innerConn struct{}

func (c *innerConn) QueryContext(ctx context.Context, _ string, args []driver.NamedValue) (driver.Rows, error) {
	r := roundOf(ctx)
	select {
	case <-r.entered:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	return &innerRows{table: made(args[0].Value.(int64)), scratch: make([]byte, 0, 64)}, nil
}

func (c *innerConn) PrepareContext(context.Context, string) (driver.Stmt, error) {
	return &innerStmt{c}, nil
}

func (c *innerConn) CheckNamedValue(*driver.NamedValue) error { return nil }
func (c *innerConn) Prepare(string) (driver.Stmt, error)      { return &innerStmt{c}, nil }
func (c *innerConn) Begin() (driver.Tx, error)                { panic("not used") }
func (c *innerConn) Close() error                             { return nil }

type innerStmt struct{ c *innerConn }

func (s *innerStmt) Close() error  { return nil }
func (s *innerStmt) NumInput() int { return 1 }
func (s *innerStmt) QueryContext(ctx context.Context, args []driver.NamedValue) (driver.Rows, error) {
	return s.c.QueryContext(ctx, "", args)
}
func (s *innerStmt) Exec([]driver.Value) (driver.Result, error) { panic("not used") }
func (s *innerStmt) Query([]driver.Value) (driver.Rows, error)  { panic("not used") }

// table is what a key's rows must be: the bytes of each value, nil for NULL.
type table [][][]byte

var madeColumns = []string{"bytes", "text", "number", "more"}

// made returns the rows of a key: one, seldom up to four, so that all that a row
// can be is there.
func made(key int64) table {
	h := mix(uint64(key))
	n := 1
	if h%8 == 0 {
		n += int(h>>8) % 4
	}
	t := make(table, n)
	for i := range t {
		t[i] = [][]byte{
			pattern(h+uint64(i), int(h>>16)%40),
			pattern(h^uint64(i), 8),
			binary.BigEndian.AppendUint64(nil, h),
			nil,
		}
		if h%3 > 0 {
			t[i][3] = pattern(^h-uint64(i), 1+int(h>>24)%100)
		}
	}
	return t
}

// pattern returns n bytes that follow from h.
func pattern(h uint64, n int) []byte {
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		h = mix(h)
		binary.BigEndian.PutUint64(b[i:], h)
	}
	for i, c := range b[:n] {
		b[i] = 'a' + c%26
	}
	return b[:n:n]
}

// mix is the output function of SplitMix64.
func mix(z uint64) uint64 {
	z += 0x9e3779b97f4a7c15
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return z ^ z>>31
}

type innerRows struct {
	table   table
	n       int
	scratch []byte
}

func (r *innerRows) Columns() []string { return madeColumns }

func (r *innerRows) Next(dest []driver.Value) error {
	r.overwrite()
	if r.n == len(r.table) {
		return io.EOF
	}
	row := r.table[r.n]
	r.n++
	r.scratch = append(append(r.scratch[:0], row[0]...), row[3]...)
	dest[0] = r.scratch[:len(row[0])]
	dest[1] = string(row[1])
	dest[2] = int64(binary.BigEndian.Uint64(row[2]))
	dest[3] = nil
	if row[3] != nil {
		dest[3] = r.scratch[len(row[0]):]
	}
	return nil
}

func (r *innerRows) Close() error {
	r.overwrite()
	return nil
}

func (r *innerRows) overwrite() {
	for i := range r.scratch {
		r.scratch[i] = '#'
	}
}
