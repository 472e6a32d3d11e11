package flightpg

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"database/sql/driver"
	"encoding/binary"
	"maps"
	"math"
	"math/bits"
	"reflect"
	"slices"
	"sync"
	"time"
	"unsafe"

	"github.com/jackc/pgx/v5"
)

// A flight key says what makes two reads identical: the SQL text as sent, the
// way it is executed, the partition, and every argument. What reaches PostgreSQL
// is an argument's identity, so a key tells everything that pgx's encoders can
// see of it: the exact Go type (pgx chooses the wire form by it: $1::text takes
// "1" but not 1) and the value; of a driver.Valuer what Value returns, see
// arguments.go.
//
// The encoding is canonical and prefix-free (every part is tagged and has a
// fixed or leading length), and flights are found by comparing it in full. What is
// long has its digest there instead, so that neither the table's memory nor the time
// for which it is locked depends on how large arguments are. No choice of arguments
// makes two different reads meet.

// keyBuffers hold *[]byte to encode keys in.
var keyBuffers = sync.Pool{New: func() any { return new([]byte) }}

const (
	// maxKeyArgs bounds each argument, and all that is encoded, in bytes. A flight
	// has a copy of its arguments: what is larger bypasses.
	maxKeyArgs = 1 << 20
	// maxPlain is up to where a key, and an argument in it, is there as it is.
	maxPlain = 1 << 10
)

// digested marks a key that is the digest of one, in its first byte, beside the way of
// execution.
const digested = 0x80

// appendDigest appends what stands for data, which must not change meanwhile. It is of
// a fixed length. Nobody who does not see into the process finds two that have the same:
// GHASH is universal under its secret key, random for each process, which nothing
// outside can learn of: what it yields stays in keys. For data of up to 1 MiB chosen
// without knowledge of the key, two are equal with a probability of 2^-111. It takes a
// quarter of SHA-256's time, and that of hash/maphash, whose 64 bits are too few. A
// nonce is for those who publish what comes out.
func appendDigest(b, data []byte) []byte { return digester()(b, data) }

var digester = sync.OnceValue(func() func(b, data []byte) []byte {
	var key [16]byte
	_, _ = rand.Read(key[:]) // it never fails
	if block, err := aes.NewCipher(key[:]); err == nil {
		if gcm, err := cipher.NewGCM(block); err == nil {
			nonce := make([]byte, gcm.NonceSize())
			return func(b, data []byte) []byte { return gcm.Seal(b, nonce, nil, data) }
		}
	}
	return appendSHA // GODEBUG=fips140=only
})

func appendSHA(b, data []byte) []byte {
	sum := sha256.Sum256(data)
	return append(b, sum[:]...)
}

// appendLarge appends an argument's bytes behind their length, or their digest. There
// are no more than maxKeyArgs.
func (k *keying) appendLarge(b, data []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(data)))
	switch {
	case len(data) <= maxPlain:
		return append(b, data...)
	case k.large == nil:
		return appendDigest(b, data)
	}
	*k.large = append(*k.large, data)
	return appendSample(b, data)
}

// appendSample appends a little of data, so that most that differ do so there: both
// ends, and words from places that nobody knows.
func appendSample(b, data []byte) []byte {
	const end, word = 32, 8
	b = append(b, data[:end]...)
	for _, secret := range samples() {
		at, _ := bits.Mul64(secret, uint64(len(data)-word))
		b = append(b, data[at:at+word]...)
	}
	return append(b, data[len(data)-end:]...)
}

var samples = sync.OnceValue(func() (secrets [8]uint64) {
	for i := range secrets {
		var b [8]byte
		_, _ = rand.Read(b[:])
		secrets[i] = binary.LittleEndian.Uint64(b[:])
	}
	return secrets
})

// digestOf is what decides whether arguments are the same of which keys have samples.
func digestOf(large [][]byte) string {
	var b []byte
	for _, data := range large {
		b = appendDigest(b, data)
	}
	return string(b)
}

// Tags of the types that have an encoding of their own. Every other type gets
// tagPlan and the number of its plan.
const (
	tagNil byte = iota
	tagFalse
	tagTrue
	tagInt
	tagInt8
	tagInt16
	tagInt32
	tagInt64
	tagUint
	tagUint8
	tagUint16
	tagUint32
	tagUint64
	tagFloat32
	tagFloat64
	tagString
	tagBytesNil
	tagBytes
	tagTime
	tagValue // what a Valuer has returned
	tagExecMode
	tagFormats
	tagFormatsByOID
	tagPlan
)

// Ways of executing the same text that may give different results: pgx's exec
// and simple modes describe a prepared statement but not a plain query.
const (
	viaQuery byte = iota
	viaStmt
	viaPrepare // the flight prepares the text and yields its shape
)

// keying is how a key is made.
type keying struct {
	asIs  bool      // takes Valuers that hold nothing but bytes, such as UUIDs, for what they hold
	large *[][]byte // or nil: takes what is long, of which the key has samples then
}

// appendKey appends everything of the flight key but the SQL text. It returns
// a Reason other than ReasonNone if an argument cannot be part of a key: reasonConvert
// if it can when it has been converted.
func (k *keying) appendKey(b []byte, via byte, partition string, args []driver.NamedValue) ([]byte, Reason) {
	start := len(b)
	b = append(b, via)
	b = appendString(b, partition)
	b = binary.AppendUvarint(b, uint64(len(args)))
	for i := range args {
		b = appendString(b, args[i].Name)
		var why Reason
		if b, why = k.appendValue(b, args[i].Value); why != ReasonNone {
			return b, why
		}
		if len(b) > maxKeyArgs {
			break
		}
	}
	if len(b) > maxKeyArgs { // it may be cut short
		return b, ReasonArgument
	}
	if n := len(b); n-start > maxPlain {
		b = appendDigest(b, b[start:])
		b = append(b[:start+1], b[n:]...)
		b[start] |= digested
	}
	return b, ReasonNone
}

func appendString(b []byte, s string) []byte {
	return appendBounded(binary.AppendUvarint(b, uint64(len(s))), s)
}

// appendBounded appends s, but no more than it takes for a key to be too long: a
// copy of all of a huge argument would be for nothing.
func appendBounded[T string | []byte](b []byte, s T) []byte {
	return append(b, s[:min(len(s), maxKeyArgs+1)]...)
}

func (k *keying) appendValue(b []byte, v any) ([]byte, Reason) {
	switch v := v.(type) {
	case nil:
		return append(b, tagNil), ReasonNone
	case bool:
		if v {
			return append(b, tagTrue), ReasonNone
		}
		return append(b, tagFalse), ReasonNone
	case int:
		return binary.BigEndian.AppendUint64(append(b, tagInt), uint64(v)), ReasonNone
	case int8:
		return append(b, tagInt8, byte(v)), ReasonNone
	case int16:
		return binary.BigEndian.AppendUint16(append(b, tagInt16), uint16(v)), ReasonNone
	case int32:
		return binary.BigEndian.AppendUint32(append(b, tagInt32), uint32(v)), ReasonNone
	case int64:
		return binary.BigEndian.AppendUint64(append(b, tagInt64), uint64(v)), ReasonNone
	case uint:
		return binary.BigEndian.AppendUint64(append(b, tagUint), uint64(v)), ReasonNone
	case uint8:
		return append(b, tagUint8, v), ReasonNone
	case uint16:
		return binary.BigEndian.AppendUint16(append(b, tagUint16), v), ReasonNone
	case uint32:
		return binary.BigEndian.AppendUint32(append(b, tagUint32), v), ReasonNone
	case uint64:
		return binary.BigEndian.AppendUint64(append(b, tagUint64), v), ReasonNone
	case float32:
		return binary.BigEndian.AppendUint32(append(b, tagFloat32), math.Float32bits(v)), ReasonNone
	case float64:
		return binary.BigEndian.AppendUint64(append(b, tagFloat64), math.Float64bits(v)), ReasonNone
	case string:
		if len(v) > maxKeyArgs {
			return b, ReasonArgument
		}
		return k.appendLarge(append(b, tagString), unsafe.Slice(unsafe.StringData(v), len(v))), ReasonNone
	case []byte:
		if v == nil { // NULL to pgx; an empty slice is not
			return append(b, tagBytesNil), ReasonNone
		}
		if len(v) > maxKeyArgs {
			return b, ReasonArgument
		}
		return k.appendLarge(append(b, tagBytes), v), ReasonNone
	case time.Time:
		return appendTime(append(b, tagTime), v), ReasonNone
	case converted:
		if v.err != nil {
			return b, ReasonArgument
		}
		return k.appendValue(append(b, tagValue), v.value)

	case pgx.QueryExecMode:
		return binary.BigEndian.AppendUint32(append(b, tagExecMode), uint32(v)), ReasonNone
	case pgx.QueryResultFormats:
		b = binary.AppendUvarint(append(b, tagFormats), uint64(len(v)))
		for _, format := range v {
			b = binary.BigEndian.AppendUint16(b, uint16(format))
		}
		return b, ReasonNone
	case pgx.QueryResultFormatsByOID:
		b = binary.AppendUvarint(append(b, tagFormatsByOID), uint64(len(v)))
		for _, oid := range slices.Sorted(maps.Keys(v)) {
			b = binary.BigEndian.AppendUint32(b, oid)
			b = binary.BigEndian.AppendUint16(b, uint16(v[oid]))
		}
		return b, ReasonNone
	}
	p := planOf(reflect.TypeOf(v))
	switch {
	case p.convert != convertNever && !(k.asIs && p.plain):
		return b, reasonConvert
	case p.why != ReasonNone:
		return b, p.why
	}
	b = binary.AppendUvarint(append(b, tagPlan), p.id)
	rv := reflect.ValueOf(v)
	if p.memory != nil && !rv.IsNil() {
		data := p.memory(rv)
		if len(data) > maxKeyArgs {
			return b, ReasonArgument
		}
		return k.appendLarge(append(b, 1), data), ReasonNone
	}
	return p.encode(b, rv), ReasonNone
}

// appendTime encodes what an encoder can see of a time: the instant, the zone's
// offset (the same instant in two zones gives different ::timestamp values) and,
// since pgx sends a time to parameters of text types as Time.String, what else
// that prints: the zone's abbreviation and the monotonic reading.
func appendTime(b []byte, t time.Time) []byte {
	zone, offset := t.Zone()
	b = binary.BigEndian.AppendUint64(b, uint64(t.Unix()))
	b = binary.BigEndian.AppendUint32(b, uint32(t.Nanosecond()))
	b = binary.BigEndian.AppendUint32(b, uint32(int32(offset)))
	b = appendString(b, zone)
	if t == t.Round(0) { // which strips the monotonic reading
		return append(b, 0)
	}
	return binary.BigEndian.AppendUint64(append(b, 1), uint64(t.Sub(processStart)))
}

// processStart has a monotonic reading: that of another time is told by the
// difference, which is exact.
var processStart = time.Now()

// isOption reports whether an argument is one of pgx's options, which come before
// the arguments of the query.
func isOption(v any) bool {
	switch v.(type) {
	case pgx.QueryExecMode, pgx.QueryResultFormats, pgx.QueryResultFormatsByOID, pgx.QueryRewriter:
		return true
	}
	return false
}

// positional returns the query and the arguments that pgx makes of named ones
// (pgx.NamedArgs, StrictNamedArgs), which come last and alone. It leaves anything
// else as it is, and what is wrong for pgx to say.
func positional(query string, args []driver.NamedValue) (string, []driver.NamedValue) {
	last := len(args) - 1
	if last < 0 {
		return query, args
	}
	var rewriter pgx.QueryRewriter
	switch v := args[last].Value.(type) {
	case pgx.NamedArgs:
		rewriter = v
	case pgx.StrictNamedArgs:
		rewriter = v
	default:
		return query, args
	}
	text, values, err := rewriter.RewriteQuery(context.Background(), nil, query, nil) // these two need no connection
	if err != nil {
		return query, args
	}
	out := make([]driver.NamedValue, 0, last+len(values))
	for _, option := range args[:last] {
		if !isOption(option.Value) {
			return query, args
		}
		out = append(out, option)
	}
	for _, v := range values {
		if isOption(v) { // it would be one where it goes now
			return query, args
		}
		out = append(out, driver.NamedValue{Ordinal: len(out) + 1, Value: v})
	}
	return text, out
}
