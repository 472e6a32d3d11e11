package isolation

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
)

// round is one query and its callers.
type round struct {
	n       int // of the round, for its failures
	key     int64
	columns []columnKind
	table   table // what the rows must be
	callers int
	live    bool // the rows may be the inner driver's, whose memory ends with the row

	mu      sync.Mutex // guards arrived
	arrived int
	entered chan struct{} // closed when all callers are about to enter the flight
	barrier *barrier
}

// columnKind says what the driver.Value of a column is.
type columnKind uint8

const (
	kindBytes  columnKind = iota // a []byte
	kindWire                     // a []byte that pgx made of the same bytes from the server
	kindText                     // a string
	kindNumber                   // an int64
)

type roundKey struct{}

func roundOf(ctx context.Context) *round { return ctx.Value(roundKey{}).(*round) }

// partition is the Config.PartitionKey of all handles here: flightpg calls it with a
// caller's context just before the caller enters its flight. An execution that
// waits for entered is so likely to have all callers.
func partition(ctx context.Context) string {
	if r, ok := ctx.Value(roundKey{}).(*round); ok {
		r.mu.Lock()
		r.arrived++
		if r.arrived == r.callers {
			close(r.entered)
		}
		r.mu.Unlock()
	}
	return ""
}

// barrier is where callers wait for each other.
type barrier struct {
	mu      sync.Mutex // guards the rest
	cond    sync.Cond
	parties int
	waiting int
	phase   int
}

func newBarrier(parties int) *barrier {
	b := &barrier{parties: parties}
	b.cond.L = &b.mu
	return b
}

// await returns when all parties wait here.
func (b *barrier) await() {
	b.mu.Lock()
	defer b.mu.Unlock()
	phase := b.phase
	b.waiting++
	b.nextLocked()
	for b.phase == phase {
		b.cond.Wait()
	}
}

// leave is for a party that comes no more.
func (b *barrier) leave() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.parties--
	b.nextLocked()
}

func (b *barrier) nextLocked() {
	if b.waiting == b.parties {
		b.waiting = 0
		b.phase++
		b.cond.Broadcast()
	}
}

// keeper is a Scanner that keeps what it is given, as it must not but some do.
type keeper struct{ held []byte }

// Scan implements sql.Scanner.
func (k *keeper) Scan(src any) error {
	switch v := src.(type) {
	case nil:
		k.held = nil
	case []byte:
		k.held = v
	default:
		return fmt.Errorf("a Scanner got %T; want []byte", src)
	}
	return nil
}

// dest is where a value is scanned, and what the caller holds of it afterwards.
type dest struct {
	name string
	ptr  any
	held func() []byte
	row  bool // what it holds ends with the row
}

// dests make destinations for a column whose value is a []byte, in memory that the
// caller may write to.
var dests = []func() dest{
	func() dest {
		raw := new(sql.RawBytes)
		return dest{"RawBytes", raw, func() []byte { return *raw }, true}
	},
	func() dest { // twice as often
		raw := new(sql.RawBytes)
		return dest{"RawBytes", raw, func() []byte { return *raw }, true}
	},
	func() dest {
		k := new(keeper)
		return dest{"Scanner", k, func() []byte { return k.held }, false}
	},
	func() dest {
		k := new(keeper)
		return dest{"Scanner", k, func() []byte { return k.held }, false}
	},
	func() dest {
		b := new([]byte)
		return dest{"*[]byte", b, func() []byte { return *b }, false}
	},
	func() dest {
		v := new(any)
		return dest{"*any", v, func() []byte { b, _ := (*v).([]byte); return b }, false}
	},
	func() dest {
		n := new(sql.Null[json.RawMessage])
		return dest{"*sql.Null[json.RawMessage]", n, func() []byte { return n.V }, false}
	},
	func() dest {
		n := new(sql.Null[[]byte])
		return dest{"*sql.Null[[]byte]", n, func() []byte { return n.V }, false}
	},
}

// textDests are for values that are text: what they hold is the caller's by
// database/sql's own doing.
var textDests = []func() dest{
	func() dest {
		raw := new(sql.RawBytes)
		return dest{"RawBytes", raw, func() []byte { return *raw }, true}
	},
	func() dest {
		b := new([]byte)
		return dest{"*[]byte", b, func() []byte { return *b }, false}
	},
	func() dest {
		s := new(sql.NullString)
		return dest{"*sql.NullString", s, func() []byte {
			if !s.Valid {
				return nil
			}
			return []byte(s.String)
		}, true}
	},
}

// wireDests are further ones for rows that pgx has read and flightpg replays, since
// Go 1.27.
var wireDests []func() dest

// number is for an integer, which the table has as eight bytes.
func number() dest {
	n := new(int64)
	return dest{"*int64", n, func() []byte { return binary.BigEndian.AppendUint64(nil, uint64(*n)) }, true}
}

// caller is one of a round's.
type caller struct {
	*round
	who  int // its digit is what it writes
	rnd  *rand.Rand
	open func(ctx context.Context) (*sql.Rows, error)
	one  func(ctx context.Context) *sql.Row // instead of open, for a single row
	end  func() error                       // of what was opened for that
	mild bool                               // writes over nothing

	ds   []dest
	held [][]byte // of the current row
	want [][]byte // what must be there
	kept []keptValue
}

// keptValue is what a caller holds beyond its row.
type keptValue struct {
	what string
	held []byte
	want []byte
}

// run reads the rows and returns what is wrong. All callers of a round meet at the
// same barriers; one that fails leaves them.
func (c *caller) run(ctx context.Context) (err error) {
	defer func() {
		if c.end != nil {
			err = errors.Join(err, c.end())
		}
		c.barrier.leave()
	}()
	if c.one != nil {
		err = c.readOne(ctx)
	} else {
		err = c.read(ctx)
	}
	if err != nil {
		return err
	}
	c.barrier.await() // all rows are closed, and all has been written
	for _, k := range c.kept {
		if !bytes.Equal(k.held, k.want) {
			return fmt.Errorf("after the rows %s was changed by somebody else: %q; want %q", k.what, k.held, k.want)
		}
	}
	return nil
}

func (c *caller) read(ctx context.Context) error {
	rows, err := c.open(ctx)
	if err != nil {
		return err
	}
	defer rows.Close()
	i := 0
	for ; rows.Next(); i++ {
		if i == len(c.table) {
			return fmt.Errorf("more than %d rows", i)
		}
		if err := rows.Scan(c.dests()...); err != nil {
			return err
		}
		if err := c.row(i); err != nil {
			return fmt.Errorf("row %d: %w", i, err)
		}
	}
	if err := errors.Join(rows.Err(), rows.Close()); err != nil {
		return err
	}
	if i != len(c.table) {
		return fmt.Errorf("%d rows of %d, and no error", i, len(c.table))
	}
	return nil
}

func (c *caller) readOne(ctx context.Context) error {
	if err := c.one(ctx).Scan(c.dests()...); err != nil {
		return err
	}
	return c.row(0)
}

// dests makes the destinations of a row.
func (c *caller) dests() []any {
	c.ds = make([]dest, len(c.columns))
	ptrs := make([]any, len(c.columns))
	for i, kind := range c.columns {
		for {
			c.ds[i] = c.pick(kind)
			// sql.Row takes no RawBytes, and what a Scanner keeps of rows that are the
			// inner driver's has ended with them.
			if c.one == nil || c.ds[i].name != "RawBytes" && !(c.live && c.ds[i].name == "Scanner") {
				break
			}
		}
		ptrs[i] = c.ds[i].ptr
	}
	return ptrs
}

func (c *caller) pick(kind columnKind) dest {
	from := dests
	switch kind {
	case kindNumber:
		return number()
	case kindText:
		from = textDests
	case kindWire:
		if n := c.rnd.IntN(len(dests) + len(wireDests)); n >= len(dests) && !c.live && c.one == nil {
			return wireDests[n-len(dests)]()
		}
	}
	return from[c.rnd.IntN(len(from))]()
}

// row compares a row that was scanned, writes over it with all others, and looks
// again.
func (c *caller) row(i int) error {
	c.held = make([][]byte, len(c.ds))
	for col, d := range c.ds {
		c.held[col] = d.held()
		want := c.table[i][col]
		if !bytes.Equal(c.held[col], want) || (c.held[col] == nil) != (want == nil) && d.name != "RawBytes" {
			return fmt.Errorf("column %d in a %s is %q; want %q", col, d.name, c.held[col], want)
		}
	}
	c.barrier.await() // everyone has seen the row as it is
	c.want = c.table[i]
	if !c.mild {
		c.want = make([][]byte, len(c.held))
		for col, b := range c.held {
			c.want[col] = bytes.Repeat([]byte{byte('0' + c.who)}, len(b))
			copy(b, c.want[col])
		}
	}
	c.barrier.await() // everyone has written
	for col, d := range c.ds {
		if !bytes.Equal(c.held[col], c.want[col]) {
			return fmt.Errorf("column %d in a %s was changed by somebody else: %q; want %q", col, d.name, c.held[col], c.want[col])
		}
		if !d.row && !(c.live && d.name == "Scanner") {
			c.kept = append(c.kept, keptValue{fmt.Sprintf("row %d column %d in a %s", i, col, d.name), c.held[col], c.want[col]})
		}
	}
	return nil
}
