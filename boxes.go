package flightpg

import (
	"database/sql/driver"
	"encoding/binary"
	"math"
	"unsafe"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// The values that most rows have are decoded here rather than by pgx's plans, and
// what their interfaces point at is taken from the allocator once for a row instead
// of once for a value. A value that somebody keeps keeps the row's, 24 bytes for each
// column at most, but no other's text.

// form is how a column is decoded.
type form uint8

const (
	formOther form = iota // by pgx's plan
	formText              // text as it is
	formInt2
	formInt4
	formInt8
	formFloat4
	formFloat8
)

// binaryForms are the forms of types in binary, if their codec is pgx's own.
var binaryForms = map[uint32]struct {
	form
	codec pgtype.Codec
}{
	pgtype.Int2OID:   {formInt2, pgtype.Int2Codec{}},
	pgtype.Int4OID:   {formInt4, pgtype.Int4Codec{}},
	pgtype.Int8OID:   {formInt8, pgtype.Int8Codec{}},
	pgtype.Float4OID: {formFloat4, pgtype.Float4Codec{}},
	pgtype.Float8OID: {formFloat8, pgtype.Float8Codec{}},
}

// formOf returns the form of a column. text says that stdlib makes a string of it.
func formOf(m *pgtype.Map, fd *pgconn.FieldDescription, text bool) form {
	if text && fd.Format == pgtype.TextFormatCode {
		return formText // pgx scans text into a string without asking the type
	}
	if own, ok := binaryForms[fd.DataTypeOID]; ok && fd.Format == pgtype.BinaryFormatCode {
		if t, ok := m.TypeForOID(fd.DataTypeOID); ok && t.Codec == own.codec {
			return own.form
		}
	}
	return formOther
}

// boxes are what the interfaces of a row's values point at. Its memory is taken when
// the first value needs it, for all of them.
type boxes struct {
	texts []string
	words []uint64 // integers and floats
	both  []textAndWord
	nText int
	nWord int
}

type textAndWord struct {
	text string
	word uint64
}

// Sizes of a box, in bytes.
const (
	textBox = int(unsafe.Sizeof(""))
	wordBox = int(unsafe.Sizeof(uint64(0)))
	bothBox = int(unsafe.Sizeof(textAndWord{}))
)

func (b *boxes) make(c *wireColumns) {
	switch {
	case c.words == 0:
		b.texts = make([]string, c.texts)
	case c.texts == 0:
		b.words = make([]uint64, c.words)
	default:
		b.both = make([]textAndWord, max(c.texts, c.words))
	}
}

// size returns what the boxes take in memory, in bytes.
func (b *boxes) size() int64 {
	return allocated(textBox*len(b.texts) + wordBox*len(b.words) + bothBox*len(b.both))
}

// text returns s in the next box.
func (b *boxes) text(c *wireColumns, s string) driver.Value {
	if b.texts == nil && b.both == nil {
		b.make(c)
	}
	box := (*string)(nil)
	if b.both != nil {
		box = &b.both[b.nText].text
	} else {
		box = &b.texts[b.nText]
	}
	b.nText++
	*box = s
	return boxed("", unsafe.Pointer(box))
}

// word returns a value like the sample in the next box.
func (b *boxes) word(c *wireColumns, word uint64, sample driver.Value) driver.Value {
	if b.words == nil && b.both == nil {
		b.make(c)
	}
	box := (*uint64)(nil)
	if b.both != nil {
		box = &b.both[b.nWord].word
	} else {
		box = &b.words[b.nWord]
	}
	b.nWord++
	*box = word
	return boxed(sample, unsafe.Pointer(box))
}

// boxed returns an interface of the sample's type whose value is at the address. It
// is how the compiler represents one of a type that is no pointer: nobody changes
// what is there from now on.
func boxed(sample driver.Value, at unsafe.Pointer) driver.Value {
	(*struct{ typ, data unsafe.Pointer })(unsafe.Pointer(&sample)).data = at
	return sample
}

var (
	anyInt   driver.Value = int64(0)
	anyFloat driver.Value = float64(0)
)

// smallInt is the first integer for which Go has no interface of its own.
const smallInt = 256

func (b *boxes) int(c *wireColumns, n int64) driver.Value {
	if n >= 0 && n < smallInt {
		return n
	}
	return b.word(c, uint64(n), anyInt)
}

// decode decodes the i-th value of a row, and returns by how many bytes more memory
// is taken for it, beside its box.
func (b *boxes) decode(c *wireColumns, i int, src []byte) (v driver.Value, size int64, err error) {
	if src == nil {
		return nil, 0, nil
	}
	switch f := c.forms[i]; {
	case f == formText:
		return b.text(c, string(src)), allocated(len(src)), nil
	case f == formInt4 && len(src) == 4:
		return b.int(c, int64(int32(binary.BigEndian.Uint32(src)))), 0, nil
	case f == formInt8 && len(src) == 8:
		return b.int(c, int64(binary.BigEndian.Uint64(src))), 0, nil
	case f == formInt2 && len(src) == 2:
		return b.int(c, int64(int16(binary.BigEndian.Uint16(src)))), 0, nil
	case f == formFloat8 && len(src) == 8:
		return b.word(c, binary.BigEndian.Uint64(src), anyFloat), 0, nil
	case f == formFloat4 && len(src) == 4:
		return b.word(c, math.Float64bits(float64(math.Float32frombits(binary.BigEndian.Uint32(src)))), anyFloat), 0, nil
	}
	v, err = c.decodeOther(i, src)
	if err != nil {
		return nil, 0, err
	}
	size, _ = sizeOf(v)
	return v, size, nil
}
