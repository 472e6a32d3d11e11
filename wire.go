package flightpg

import (
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"math"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"

	"github.com/flightpg/flightpg/internal/pipeline"
)

// What pgx's stdlib does with a result between the wire and database/sql, for
// flights: they run below stdlib, whose rows do not let go of what the server
// has sent. The rules are stdlib's; TestCompare holds the two together.

// binaryResults are the types that stdlib asks for in binary: those whose
// driver.Value is not their text.
var binaryResults = pgx.QueryResultFormatsByOID{
	pgtype.BoolOID:        pgtype.BinaryFormatCode,
	pgtype.ByteaOID:       pgtype.BinaryFormatCode,
	pgtype.CIDOID:         pgtype.BinaryFormatCode,
	pgtype.DateOID:        pgtype.BinaryFormatCode,
	pgtype.Float4OID:      pgtype.BinaryFormatCode,
	pgtype.Float8OID:      pgtype.BinaryFormatCode,
	pgtype.Int2OID:        pgtype.BinaryFormatCode,
	pgtype.Int4OID:        pgtype.BinaryFormatCode,
	pgtype.Int8OID:        pgtype.BinaryFormatCode,
	pgtype.OIDOID:         pgtype.BinaryFormatCode,
	pgtype.TimestampOID:   pgtype.BinaryFormatCode,
	pgtype.TimestamptzOID: pgtype.BinaryFormatCode,
	pgtype.XIDOID:         pgtype.BinaryFormatCode,
}

// wireSource is where rows come from as the server has sent them: pgx.Rows, or
// a pipeline's. The values are valid until the next call.
type wireSource interface {
	Next() bool
	RawValues() [][]byte
	FieldDescriptions() []pgconn.FieldDescription
	Err() error
	Close()
}

// wireRows are rows of a query that ran below stdlib.
type wireRows struct {
	*wireColumns
	cols   *columns // what results keep of them
	s      *session
	source wireSource
	ahead  bool        // the source is at a row that was not given yet
	done   func(error) // ends what the query ran in, with the query's error; or nil
}

// newWireRows reads up to the first row, as stdlib does: errors before it are the
// query's. simple says that pgx's simple protocol was used.
func newWireRows(s *session, source wireSource, v *verdict, simple bool) (*wireRows, error) {
	ahead := source.Next()
	if err := source.Err(); err != nil {
		source.Close()
		return nil, err
	}
	if r, ok := source.(pgx.Rows); ok && simple && !ahead && r.CommandTag().String() == "" {
		// pgx may have no result then, and panics when it is asked for its columns.
		source.Close()
		s.bad = true
		return nil, errors.New("flightpg: the server ended a query without a result")
	}
	cols := s.columnsOf(s.c.shapeOf(v, source.FieldDescriptions()))
	return &wireRows{wireColumns: cols.wire, cols: cols.columns, s: s, source: source, ahead: ahead}, nil
}

// shapeOf returns the Shape of a text's answer: mostly that of the one before it. The
// fields may live in the connection's memory.
func (c *Connector) shapeOf(v *verdict, fields []pgconn.FieldDescription) *pipeline.Shape {
	shape := v.answered.Load()
	if shape == nil || !slices.Equal(shape.Fields, fields) {
		shape = c.shapes.Of(slices.Clone(fields))
		v.answered.Store(shape)
		c.verdicts.describe(v, describedAnswer, descSize(fields, 0))
	}
	return shape
}

// sessionColumns are the columns of a result: what results keep, and what decodes
// rows with the connection's type map, which they must not keep.
type sessionColumns struct {
	*columns
	s    *session
	wire *wireColumns
}

// Bounds of what a session remembers of results' columns: how many results, and how
// many columns these have together.
const (
	maxShapes  = 1024
	maxColumns = 16 << 10
)

// columnsOf returns the columns of results with that Shape, on a connection of pgx.
func (s *session) columnsOf(shape *pipeline.Shape) *sessionColumns {
	cols := s.columns[shape]
	if cols == nil {
		if s.width += len(shape.Fields); s.columns == nil || len(s.columns) >= maxShapes || s.width > maxColumns {
			s.forgetColumns()
			s.width = len(shape.Fields)
		}
		wire := newWireColumns(s, shape.Fields)
		own := copyColumns(&wireRows{wireColumns: wire})
		// Without the decoders, and the connection's type map that they hold.
		own.wire = &wireColumns{readers: wire.readers, fields: wire.fields}
		own.size += int64(fieldSize * len(own.names))
		if shared, _ := shape.User.Load().(*columns); shared == nil {
			shape.User.Store(own)
		} else if slices.Equal(shared.types, own.types) {
			own.names, own.types = shared.names, shared.types
		}
		cols = &sessionColumns{columns: own, s: s, wire: wire}
		s.columns[shape] = cols
	}
	return cols
}

// forgetColumns is for when the connection's types may be others.
func (s *session) forgetColumns() { s.columns, s.width = make(map[*pipeline.Shape]*sessionColumns), 0 }

// advance goes to the next row. It returns io.EOF when there is none.
func (r *wireRows) advance() error {
	switch {
	case r.ahead:
		r.ahead = false
	case !r.source.Next():
		if err := r.source.Err(); err != nil {
			return err
		}
		return io.EOF
	}
	if n := len(r.source.RawValues()); n != len(r.fields) {
		// pgx does not look: a row that is too short would get the values of the
		// one before it.
		r.s.bad = true
		return fmt.Errorf("flightpg: the server sent a row of %d values in a result of %d columns", n, len(r.fields))
	}
	return nil
}

// Next implements driver.Rows.
func (r *wireRows) Next(dest []driver.Value) error {
	if err := r.advance(); err != nil {
		return err
	}
	var b boxes
	for i, src := range r.source.RawValues() {
		v, _, err := b.decode(r.wireColumns, i, src)
		if err != nil {
			return fmt.Errorf("convert field %d failed: %w", i, err)
		}
		dest[i] = v
	}
	return nil
}

// Close implements driver.Rows.
func (r *wireRows) Close() error {
	r.source.Close()
	err := r.source.Err()
	if r.done != nil {
		r.done(err)
		r.done = nil
	}
	return err
}

// wireColumns are the columns of a result on the wire. It belongs to the
// connection whose type map it uses, and serves one goroutine at a time.
type wireColumns struct {
	types   *pgtype.Map
	readers *typeReaders // for those who replay
	fields  []pgconn.FieldDescription
	decode  []func(src []byte) (driver.Value, error)

	// How most of them are decoded, and how many boxes a row needs.
	forms        []form
	texts, words int
}

func newWireColumns(s *session, fields []pgconn.FieldDescription) *wireColumns {
	m := s.pgx.Conn().TypeMap()
	c := &wireColumns{types: m, readers: s.typeReaders(), fields: fields, forms: make([]form, len(fields))}
	for i := range fields {
		text := decoders[fields[i].DataTypeOID] == nil
		switch c.forms[i] = formOf(m, &fields[i], text); c.forms[i] {
		case formOther:
		case formText:
			c.texts++
		default:
			c.words++
		}
	}
	return c
}

// scanInto returns a decoder that scans a T and makes a driver.Value of it.
func scanInto[T any](m *pgtype.Map, fd *pgconn.FieldDescription, value func(T) (driver.Value, error)) func([]byte) (driver.Value, error) {
	var d T
	plan := m.PlanScan(fd.DataTypeOID, fd.Format, &d)
	return func(src []byte) (driver.Value, error) {
		err := plan.Scan(src, &d)
		scanned := d
		d = *new(T) // a []byte must be a new one for each value, and none is kept here
		if err != nil {
			return nil, err
		}
		return value(scanned)
	}
}

func same[T any](d T) (driver.Value, error) { return d, nil }

func valueOf[T driver.Valuer](d T) (driver.Value, error) { return d.Value() }

// decoders make what makes a column's driver.Value, where that is not a string for want
// of anything better.
var decoders = map[uint32]func(*pgtype.Map, *pgconn.FieldDescription) func([]byte) (driver.Value, error){
	pgtype.BoolOID:        decoderOf(same[bool]),
	pgtype.ByteaOID:       decoderOf(same[[]byte]),
	pgtype.JSONOID:        decoderOf(same[[]byte]),
	pgtype.JSONBOID:       decoderOf(same[[]byte]),
	pgtype.XMLOID:         decoderOf(same[[]byte]),
	pgtype.CIDOID:         decoderOf(valueOf[pgtype.Uint32]),
	pgtype.OIDOID:         decoderOf(valueOf[pgtype.Uint32]),
	pgtype.XIDOID:         decoderOf(valueOf[pgtype.Uint32]),
	pgtype.DateOID:        decoderOf(valueOf[pgtype.Date]),
	pgtype.Float4OID:      decoderOf(func(d float32) (driver.Value, error) { return float64(d), nil }),
	pgtype.Float8OID:      decoderOf(same[float64]),
	pgtype.Int2OID:        decoderOf(func(d int16) (driver.Value, error) { return int64(d), nil }),
	pgtype.Int4OID:        decoderOf(func(d int32) (driver.Value, error) { return int64(d), nil }),
	pgtype.Int8OID:        decoderOf(same[int64]),
	pgtype.TimestampOID:   decoderOf(valueOf[pgtype.Timestamp]),
	pgtype.TimestamptzOID: decoderOf(valueOf[pgtype.Timestamptz]),
}

func decoderOf[T any](value func(T) (driver.Value, error)) func(*pgtype.Map, *pgconn.FieldDescription) func([]byte) (driver.Value, error) {
	return func(m *pgtype.Map, fd *pgconn.FieldDescription) func([]byte) (driver.Value, error) {
		return scanInto(m, fd, value)
	}
}

// decodeOther decodes a value of a column as pgx's plan does, which is made when it is
// needed: most columns have a form of their own.
func (c *wireColumns) decodeOther(i int, src []byte) (driver.Value, error) {
	if c.decode == nil {
		c.decode = make([]func([]byte) (driver.Value, error), len(c.fields))
	}
	if c.decode[i] == nil {
		fd := &c.fields[i]
		if of := decoders[fd.DataTypeOID]; of != nil {
			c.decode[i] = of(c.types, fd)
		} else {
			c.decode[i] = scanInto(c.types, fd, same[string])
		}
	}
	return c.decode[i](src)
}

// decodeRow decodes a row. It returns what the values refer to takes in memory, in
// bytes.
func (c *wireColumns) decodeRow(raw [][]byte, row []driver.Value) (size int64, err error) {
	var b boxes
	for i, src := range raw {
		v, n, err := b.decode(c, i, src)
		switch {
		case err == nil:
			row[i] = v
			size += n
		case scansColumns: // each for itself
			row[i] = badValue{err}
			size += stringSize
		default:
			return 0, fmt.Errorf("convert field %d failed: %w", i, err)
		}
	}
	return size + b.size(), nil
}

// Columns implements driver.Rows.
func (c *wireColumns) Columns() []string {
	names := make([]string, len(c.fields))
	for i := range names {
		names[i] = c.fields[i].Name
	}
	return names
}

// ColumnTypeDatabaseTypeName implements driver.RowsColumnTypeDatabaseTypeName.
func (c *wireColumns) ColumnTypeDatabaseTypeName(i int) string {
	oid := c.fields[i].DataTypeOID
	if t, ok := c.types.TypeForOID(oid); ok {
		return strings.ToUpper(t.Name)
	}
	return strconv.FormatInt(int64(oid), 10)
}

// lengthWord is the size of a varlena's length, which type modifiers include.
const lengthWord = 4

// ColumnTypeLength implements driver.RowsColumnTypeLength.
func (c *wireColumns) ColumnTypeLength(i int) (int64, bool) {
	fd := &c.fields[i]
	switch fd.DataTypeOID {
	case pgtype.TextOID, pgtype.ByteaOID:
		return math.MaxInt64, true
	case pgtype.VarcharOID, pgtype.BPCharOID:
		return int64(fd.TypeModifier - lengthWord), true
	case pgtype.VarbitOID:
		return int64(fd.TypeModifier), true
	}
	return 0, false
}

// ColumnTypePrecisionScale implements driver.RowsColumnTypePrecisionScale.
func (c *wireColumns) ColumnTypePrecisionScale(i int) (precision, scale int64, ok bool) {
	fd := &c.fields[i]
	if fd.DataTypeOID != pgtype.NumericOID {
		return 0, 0, false
	}
	mod := fd.TypeModifier - lengthWord
	return int64(mod >> 16 & 0xffff), int64(mod & 0xffff), true
}

var scanTypes = map[uint32]reflect.Type{
	pgtype.Float8OID:      reflect.TypeFor[float64](),
	pgtype.Float4OID:      reflect.TypeFor[float32](),
	pgtype.Int8OID:        reflect.TypeFor[int64](),
	pgtype.Int4OID:        reflect.TypeFor[int32](),
	pgtype.Int2OID:        reflect.TypeFor[int16](),
	pgtype.BoolOID:        reflect.TypeFor[bool](),
	pgtype.NumericOID:     reflect.TypeFor[float64](),
	pgtype.DateOID:        reflect.TypeFor[time.Time](),
	pgtype.TimestampOID:   reflect.TypeFor[time.Time](),
	pgtype.TimestamptzOID: reflect.TypeFor[time.Time](),
	pgtype.ByteaOID:       reflect.TypeFor[[]byte](),
}

// ColumnTypeScanType implements driver.RowsColumnTypeScanType.
func (c *wireColumns) ColumnTypeScanType(i int) reflect.Type {
	if t, ok := scanTypes[c.fields[i].DataTypeOID]; ok {
		return t
	}
	return reflect.TypeFor[string]()
}
