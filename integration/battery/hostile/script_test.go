package hostile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

// script says what a server lies about, and when. Everything in it follows from the
// seed.
type script struct {
	seed   uint64
	at     moment
	once   bool // only the nth time, else whenever the moment comes
	nth    int
	pooler bool // the honest answer to the guard is that there is a pooler
	hand   hand // or nil
}

// lie twists the answers of one moment. It is the same each time that the moment
// comes, and over any driver.
type lie struct {
	*script
	r *rand.Rand
}

// hand is a script that is written by hand: see TestServer/RowWidth.
type hand func(frames [][]byte) [][]byte

// speech is what is sent instead of an answer.
type speech struct {
	data   []byte
	hangUp bool          // then the connection is closed
	stall  bool          // then nothing comes any more
	pause  time.Duration // after each piece
	pieces int           // bytes in each
}

// parts yields what is written at a time.
func (s speech) parts() iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		for data := s.data; len(data) > 0; {
			n := len(data)
			if s.pieces > 0 {
				n = min(n, s.pieces)
			}
			if !yield(data[:n]) {
				return
			}
			data = data[n:]
		}
	}
}

// trails reports whether something follows the end of the answer: it is taken for
// the answer to what is asked next.
func (s speech) trails(at moment) bool {
	if at == atCancel {
		return false
	}
	data := s.data
	for len(data) >= 5 {
		n := int64(binary.BigEndian.Uint32(data[1:])) + 1
		if n < 5 || n > int64(len(data)) {
			return data[0] == 'Z' // nobody knows what it will be taken for
		}
		kind := data[0]
		data = data[n:]
		if kind == 'Z' {
			return len(data) > 0
		}
	}
	return false
}

// ready reports whether the server says that it is ready before it has told the end
// of a result, or more than once.
func (s speech) ready() bool {
	data, ended := s.data, false
	for len(data) >= 5 {
		n := int64(binary.BigEndian.Uint32(data[1:])) + 1
		if n < 5 || n > int64(len(data)) {
			return false
		}
		switch data[0] {
		case 'C', 'E', 'I':
			ended = true
		case 'T', 'D', 'G', 'H', 'W':
			ended = false
		case 'Z':
			if !ended {
				return true
			}
		}
		data = data[n:]
	}
	return false
}

// completes reports whether the end of a result is told, before anything that is no
// message, and whether more of a result follows it.
func (s speech) completes() (whole, more bool) {
	data := s.data
	for len(data) >= 5 {
		n := int64(binary.BigEndian.Uint32(data[1:])) + 1
		if n < 5 || n > int64(len(data)) {
			break
		}
		switch data[0] {
		case 'C', 'I':
			whole, more = true, more || whole
		case 'T', 'D', 'n':
			more = more || whole
		}
		data = data[n:]
	}
	return whole, more
}

func join(frames [][]byte) []byte { return bytes.Join(frames, nil) }

func frame(kind byte, body []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{kind}, uint32(len(body)+4)), body...)
}

// giants bounds declared lengths that are within what pgx takes: it allocates them
// before they arrive. TestServer/GiantMessages looks at that alone.
const giants = 4 << 20

// twist makes a speech of the true answer.
func (l *lie) twist(frames [][]byte) speech {
	if l.hand != nil {
		return speech{data: join(l.hand(frames))}
	}
	r := l.r
	frames = append([][]byte(nil), frames...)
	if len(frames) == 1 && len(frames[0]) == 0 {
		frames = nil
	}
	var s speech
	cut := -1
	if os.Getenv(envScript) != "" {
		fmt.Fprintf(os.Stderr, "at %s: %q\n", l.at, join(frames))
		defer func() { fmt.Fprintf(os.Stderr, "instead: %q %v %v\n", s.data, s.hangUp, s.stall) }()
	}
	for range 1 + r.IntN(3) {
		i := 0
		if len(frames) > 0 {
			i = r.IntN(len(frames))
		}
		op := r.IntN(15)
		if len(frames) == 0 && op != 11 && op != 12 {
			op = 3
		}
		switch op {
		case 0: // leave out
			frames = append(frames[:i:i], frames[i+1:]...)
		case 1: // say twice
			frames = insert(frames, i, frames[i])
		case 2: // change the order
			j := r.IntN(len(frames))
			frames[i], frames[j] = frames[j], frames[i]
		case 3, 4: // surprise
			frames = insert(frames, i, surprise(r))
		case 5:
			frames[i] = surprise(r)
		case 6: // another length
			f := bytes.Clone(frames[i])
			binary.BigEndian.PutUint32(f[1:], wrongLength(r, len(f)-1))
			frames[i] = f
		case 7: // other bytes
			f := bytes.Clone(frames[i])
			for range 1 + r.IntN(3) {
				k := r.IntN(len(f))
				if k == 0 || k >= 5 {
					f[k] = byte(r.Uint32())
				}
			}
			frames[i] = f
		case 8: // a body cut short, in a frame that fits
			f := frames[i]
			frames[i] = frame(f[0], f[5:5+r.IntN(len(f)-4)])
		case 9: // a body with more in it
			f := frames[i]
			frames[i] = frame(f[0], append(bytes.Clone(f[5:]), garbage(r)...))
		case 10:
			frames[i] = bend(r, frames[i])
		case 11: // an early end
			s.hangUp = r.IntN(3) > 0
			s.stall = !s.hangUp
			if n := len(join(frames)); n > 0 {
				cut = r.IntN(n + 1)
			}
		case 12: // a slow one
			s.pause = time.Duration(1+r.IntN(2000)) * time.Millisecond / time.Duration(1+r.IntN(200))
			s.pieces = 1 + r.IntN(20)
		case 13:
			for k, f := range frames {
				if r.IntN(2) == 0 {
					frames[k] = bend(r, f)
				}
			}
		case 14: // nothing of the real thing
			frames[i] = frame(byte(r.Uint32()), garbage(r))
		}
	}
	s.data = join(frames)
	if cut >= 0 {
		s.data = s.data[:min(cut, len(s.data))]
	}
	return s
}

func insert(frames [][]byte, i int, f []byte) [][]byte {
	return append(frames[:i:i], append([][]byte{f}, frames[i:]...)...)
}

func wrongLength(r *rand.Rand, right int) uint32 {
	switch r.IntN(6) {
	case 0:
		return uint32(right + 1 + r.IntN(100))
	case 1:
		return uint32(max(0, right-1-r.IntN(8)))
	case 2:
		return uint32(r.IntN(5))
	case 3: // negative
		return 1<<31 | r.Uint32()
	case 4: // more than PostgreSQL ever sends
		return 1<<30 + uint32(r.IntN(1<<30))
	}
	return uint32(r.IntN(giants))
}

func garbage(r *rand.Rand) []byte {
	b := make([]byte, r.IntN(64))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// bend makes a message another one of its kind.
func bend(r *rand.Rand, f []byte) []byte {
	switch f[0] {
	case 'D':
		var m pgproto3.DataRow
		if m.Decode(f[5:]) != nil {
			return f
		}
		values := append([][]byte(nil), m.Values...)
		switch k := r.IntN(len(values) + 1); {
		case r.IntN(4) == 0: // more
			values = append(values, garbage(r))
		case k == len(values): // fewer
			values = values[:r.IntN(k+1)]
		default:
			values[k] = badValue(r, values[k])
		}
		return encoded(&pgproto3.DataRow{Values: values}, f)
	case 'T':
		var m pgproto3.RowDescription
		if m.Decode(f[5:]) != nil {
			return f
		}
		fields := append([]pgproto3.FieldDescription(nil), m.Fields...)
		switch k := r.IntN(len(fields) + 1); {
		case k == len(fields):
			fields = append(fields, pgproto3.FieldDescription{Name: []byte("more"), DataTypeOID: anyOID(r), Format: int16(r.IntN(2))})
		case r.IntN(6) == 0:
			fields = fields[:k]
		case r.IntN(3) == 0:
			fields[k].Format = []int16{0, 1, 2, 7, -1, 32767}[r.IntN(6)]
		case r.IntN(3) == 0:
			fields[k].Name = []byte{0xff, 0xfe, 'x'}
			fields[k].TypeModifier = int32(r.Uint32())
		default:
			fields[k].DataTypeOID = anyOID(r)
		}
		return encoded(&pgproto3.RowDescription{Fields: fields}, f)
	case 't':
		oids := make([]uint32, r.IntN(4))
		if r.IntN(10) == 0 {
			oids = make([]uint32, 65535)
		}
		return encoded(&pgproto3.ParameterDescription{ParameterOIDs: oids}, f)
	case 'Z':
		return frame('Z', []byte{[]byte("ITEX\x00")[r.IntN(5)]})
	case 'C':
		tags := []string{"", "SELECT", "SELECT -1", "SELECT 99999999999999999999", "INSERT 0 1", "UPDATE x", "\xff\xfe", "BEGIN", strings.Repeat("x", 1<<12)}
		return encoded(&pgproto3.CommandComplete{CommandTag: []byte(tags[r.IntN(len(tags))])}, f)
	case 'S':
		return parameter(r)
	case 'R':
		return authentication(r)
	case 'K':
		return keyData(r)
	}
	return f
}

func encoded(m pgproto3.BackendMessage, otherwise []byte) []byte {
	data, err := m.Encode(nil)
	if err != nil {
		return otherwise
	}
	return data
}

func anyOID(r *rand.Rand) uint32 {
	if r.IntN(5) == 0 {
		return r.Uint32()
	}
	return columnKinds[r.IntN(len(columnKinds))].oid
}

// badValue makes a value that is none of its type, or of another one.
func badValue(r *rand.Rand, v []byte) []byte {
	be := binary.BigEndian
	switch r.IntN(9) {
	case 0:
		return nil
	case 1:
		return []byte{}
	case 2:
		return append(bytes.Clone(v), garbage(r)...)
	case 3:
		return v[:r.IntN(len(v)+1)]
	case 4: // a binary array that claims to have a billion elements
		b := be.AppendUint32(nil, 1+uint32(r.IntN(7)))
		b = be.AppendUint32(b, 0)
		b = be.AppendUint32(b, pgtype.Int4OID)
		b = be.AppendUint32(b, 1<<30+uint32(r.IntN(1<<30)))
		return be.AppendUint32(b, 1)
	case 5: // a numeric of as many digits
		b := be.AppendUint16(nil, 0x7fff)
		b = be.AppendUint16(b, uint16(r.Uint32()))
		b = be.AppendUint16(b, 0xC000)
		return be.AppendUint16(b, 0x3fff)
	case 6:
		return []byte("{{{{{{{{" + strings.Repeat("{", r.IntN(1000)))
	case 7:
		return []byte("1e999999999")
	}
	return garbage(r)
}

func parameter(r *rand.Rand) []byte {
	pairs := [][2]string{
		{"default_transaction_read_only", "off"},
		{"default_transaction_read_only", "on"},
		{"default_transaction_read_only", ""},
		{"standard_conforming_strings", "off"},
		{"standard_conforming_strings", "maybe"},
		{"client_encoding", "SJIS"},
		{"client_encoding", "\xff"},
		{"client_encoding", ""},
		{"server_version", "0"},
		{"server_version", strings.Repeat("9", 300)},
		{"integer_datetimes", "off"},
		{"TimeZone", "Nowhere/Never"},
		{"DateStyle", "German"},
		{"", ""},
		{"is_superuser", "on"},
		{"x", strings.Repeat("x", 1<<14)},
	}
	p := pairs[r.IntN(len(pairs))]
	return encoded(&pgproto3.ParameterStatus{Name: p[0], Value: p[1]}, nil)
}

func authentication(r *rand.Rand) []byte {
	body := binary.BigEndian.AppendUint32(nil, []uint32{0, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 99, 1 << 31}[r.IntN(13)])
	switch r.IntN(3) {
	case 0:
		body = append(body, garbage(r)...)
	case 1:
		body = append(body, "SCRAM-SHA-256\x00\x00"...)
	}
	return frame('R', body)
}

func keyData(r *rand.Rand) []byte {
	return frame('K', append(binary.BigEndian.AppendUint32(nil, r.Uint32()), make([]byte, []int{0, 4, 32, 256, 300}[r.IntN(5)])...))
}

func errorResponse(r *rand.Rand) []byte {
	codes := []string{"25006", "57014", "0A000", "26000", "08P01", "53300", "40001", "42601", "XX000", "57P01", "", "\xff"}
	m := &pgproto3.ErrorResponse{Severity: []string{"ERROR", "FATAL", "PANIC", "", "NOTICE"}[r.IntN(5)], Code: codes[r.IntN(len(codes))], Message: word(r)}
	switch r.IntN(6) {
	case 0:
		m.Message = strings.Repeat("m", 1<<16)
	case 1:
		m.Routine = []string{"RevalidateCachedQuery", "FetchPreparedStatement", "PortalSetResultFormat"}[r.IntN(3)]
	case 2:
		m.Message = "transaction blocks not allowed in statement pooling mode"
	case 3:
		return frame('E', garbage(r))
	case 4:
		return frame('E', []byte{0})
	case 5:
		m.Position = int32(r.Uint32())
	}
	return encoded(m, nil)
}

// surprise is a message that nobody has asked for.
func surprise(r *rand.Rand) []byte {
	switch r.IntN(24) {
	case 0:
		return encoded(&pgproto3.NotificationResponse{PID: r.Uint32(), Channel: word(r), Payload: word(r)}, nil)
	case 1:
		return encoded(&pgproto3.NoticeResponse{Severity: "NOTICE", Code: "00000", Message: word(r)}, nil)
	case 2: // a flood
		one := encoded(&pgproto3.NoticeResponse{Severity: "WARNING", Message: strings.Repeat("n", r.IntN(1000))}, nil)
		return bytes.Repeat(one, 1+r.IntN(300))
	case 3:
		return parameter(r)
	case 4:
		return keyData(r)
	case 5:
		return authentication(r)
	case 6:
		return encoded(&pgproto3.CopyInResponse{ColumnFormatCodes: make([]uint16, r.IntN(4))}, nil)
	case 7:
		return encoded(&pgproto3.CopyOutResponse{ColumnFormatCodes: make([]uint16, r.IntN(4))}, nil)
	case 8:
		return encoded(&pgproto3.CopyBothResponse{ColumnFormatCodes: make([]uint16, r.IntN(4))}, nil)
	case 9:
		return encoded(&pgproto3.CopyData{Data: garbage(r)}, nil)
	case 10:
		return encoded(&pgproto3.CopyDone{}, nil)
	case 11, 12, 13:
		return errorResponse(r)
	case 14:
		return bend(r, encoded(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")}, nil))
	case 15:
		return encoded(&pgproto3.EmptyQueryResponse{}, nil)
	case 16:
		return encoded(&pgproto3.NoData{}, nil)
	case 17:
		return encoded(&pgproto3.PortalSuspended{}, nil)
	case 18:
		return [][]byte{encoded(&pgproto3.ParseComplete{}, nil), encoded(&pgproto3.BindComplete{}, nil), encoded(&pgproto3.CloseComplete{}, nil)}[r.IntN(3)]
	case 19:
		return bend(r, encoded(&pgproto3.ReadyForQuery{TxStatus: 'I'}, nil))
	case 20:
		m := &pgproto3.DataRow{}
		for range r.IntN(6) {
			m.Values = append(m.Values, garbage(r))
		}
		return encoded(m, nil)
	case 21:
		m := &pgproto3.RowDescription{}
		for i := range r.IntN(6) {
			m.Fields = append(m.Fields, pgproto3.FieldDescription{Name: []byte(fmt.Sprint("s", i)), DataTypeOID: anyOID(r), Format: int16(r.IntN(3))})
		}
		return encoded(m, nil)
	case 22:
		return frame([]byte("vVGWHdcsn12")[r.IntN(11)], garbage(r))
	}
	return frame(byte(r.Uint32()), garbage(r))
}

// envScript names a variable: the number of the script that TestServer_Script
// repeats.
const envScript = "FLIGHTPG_SCRIPT"

func scriptVariable() string { return os.Getenv(envScript) }

// name is a database's of the script's own: those of one name share their fences.
func (s *script) name() string { return fmt.Sprintf("d%d", s.seed) }
