package main

import (
	"context"
	"database/sql/driver"
	"sync/atomic"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// ownCodec is a codec as applications write them: with a buffer and a map of its own,
// for one connection. Who uses it at the same time as somebody else is counted.
type ownCodec struct {
	pgtype.Codec
	shared *atomic.Int64 // how often two used it at once
	busy   atomic.Bool
	buf    []byte
	seen   map[string]int
}

// hooks returns a hook for AfterConnect that gives each connection codecs of its own
// for the types of the schema.
func hooks(shared *atomic.Int64) func(context.Context, *pgx.Conn) error {
	return func(ctx context.Context, conn *pgx.Conn) error {
		for _, name := range []string{"public.mood", "public.place"} {
			t, err := conn.LoadType(ctx, name)
			if err != nil {
				return err
			}
			t.Codec = &ownCodec{Codec: t.Codec, shared: shared, seen: make(map[string]int)}
			conn.TypeMap().RegisterType(t)
		}
		return nil
	}
}

// own calls f with a copy of src in the codec's buffer.
func (c *ownCodec) own(src []byte, f func([]byte) error) error {
	if !c.busy.CompareAndSwap(false, true) {
		c.shared.Add(1)
		return f(src)
	}
	defer c.busy.Store(false)
	if src == nil {
		return f(nil)
	}
	c.buf = append(c.buf[:0], src...)
	if len(c.seen) > 1000 {
		clear(c.seen)
	}
	c.seen[string(src)]++
	return f(c.buf)
}

// PlanScan implements pgtype.Codec.
func (c *ownCodec) PlanScan(m *pgtype.Map, oid uint32, format int16, target any) pgtype.ScanPlan {
	plan := c.Codec.PlanScan(m, oid, format, target)
	if plan == nil {
		return nil
	}
	return &ownScan{c, plan}
}

type ownScan struct {
	codec *ownCodec
	plan  pgtype.ScanPlan
}

func (p *ownScan) Scan(src []byte, target any) error {
	return p.codec.own(src, func(src []byte) error { return p.plan.Scan(src, target) })
}

// PlanEncode implements pgtype.Codec.
func (c *ownCodec) PlanEncode(m *pgtype.Map, oid uint32, format int16, value any) pgtype.EncodePlan {
	plan := c.Codec.PlanEncode(m, oid, format, value)
	if plan == nil {
		return nil
	}
	return &ownEncode{c, plan}
}

type ownEncode struct {
	codec *ownCodec
	plan  pgtype.EncodePlan
}

func (p *ownEncode) Encode(value any, buf []byte) ([]byte, error) {
	made, err := p.plan.Encode(value, nil)
	if err != nil || made == nil {
		return nil, err
	}
	err = p.codec.own(made, func(own []byte) error {
		buf = append(buf, own...)
		return nil
	})
	return buf, err
}

// DecodeDatabaseSQLValue implements pgtype.Codec.
func (c *ownCodec) DecodeDatabaseSQLValue(m *pgtype.Map, oid uint32, format int16, src []byte) (v driver.Value, err error) {
	err = c.own(src, func(src []byte) (err error) {
		v, err = c.Codec.DecodeDatabaseSQLValue(m, oid, format, src)
		return err
	})
	return v, err
}

// DecodeValue implements pgtype.Codec.
func (c *ownCodec) DecodeValue(m *pgtype.Map, oid uint32, format int16, src []byte) (v any, err error) {
	err = c.own(src, func(src []byte) (err error) {
		v, err = c.Codec.DecodeValue(m, oid, format, src)
		return err
	})
	return v, err
}
