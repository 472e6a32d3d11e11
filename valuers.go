package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// How a driver.Valuer becomes part of a key: what its Value method returns is what it
// sends, and is asked for once, by the caller, when pgx would.

// converted stands for an argument that is a driver.Valuer, or for one of a list.
// To pgx it is nothing but that, so it goes the same way to the wire.
type converted struct {
	value driver.Value // what Value has returned, a copy
	err   error        // likewise: then it is for its caller alone
	from  any          // the argument, for what prints it (pgx's errors, tracers); nil in a copy
	typ   reflect.Type // of the argument
}

var _ driver.Valuer = converted{}

// Value implements driver.Valuer.
func (c converted) Value() (driver.Value, error) { return c.value, c.err }

// Format implements fmt.Formatter: it is printed as the argument would be. Its owner
// may want to hide what it holds, so a copy has its type's name only.
func (c converted) Format(f fmt.State, verb rune) {
	if c.from != nil {
		fmt.Fprintf(f, fmt.FormatString(f, verb), c.from)
		return
	}
	fmt.Fprintf(f, "(%v)", c.typ)
}

var errNotJSON = errors.New("flightpg: a list of converted arguments is not for JSON")

// MarshalJSON implements json.Marshaler. A list whose parameter has become a JSON one
// since the statement was described is not to be sent like this.
func (c converted) MarshalJSON() ([]byte, error) { return nil, errNotJSON }

// convert replaces those of a read's arguments that are Valuers, or lists of them, by
// what they send. It reports false if that cannot be told. The read's own caller calls
// it, so Value is not called any more when the call has returned; nor before the server
// has taken the statement, where pgx describes it first.
func (c *Connector) convert(ctx context.Context, r *read) (ok bool) {
	options := 0
	for options < len(r.args) && isOption(r.args[options].Value) {
		options++
	}
	var oids []uint32 // of the parameters; nil if the way it is executed does not look at them
	if c.describes(r, options) {
		if oids, ok = c.paramOIDs(ctx, r); !ok || len(oids) != len(r.args)-options {
			return false // for pgx to say
		}
	}
	facts := c.types.Load()
	args := slices.Clone(r.args)
	r.args, r.converted = args, true // those that were asked are not asked again, whatever comes of the others
	for i := options; i < len(args); i++ {
		v, oid := args[i].Value, uint32(0)
		if oids != nil {
			oid = oids[i-options]
		}
		switch v.(type) {
		case nil, string, int, int64, bool, []byte, time.Time:
			continue
		}
		for planOf(reflect.TypeOf(v)).convert == convertPointer {
			p := reflect.ValueOf(v)
			if p.IsNil() {
				v = nil
				break
			}
			v = p.Elem().Interface()
			if e := p.Elem(); e.Kind() == reflect.Pointer && e.IsNil() {
				return false // pgx may refuse that, or panic
			}
		}
		if v == nil {
			args[i].Value = nil
			continue
		}
		switch p := planOf(reflect.TypeOf(v)); p.convert {
		case convertNever:
			// What comes behind it may change it, and would be too late for pgx.
			if p.why == ReasonNone && p.shared && i+1 < len(args) {
				args[i].Value = copyValue(v)
			}
		case convertValue:
			valuer := v.(driver.Valuer)
			if !facts.asksValue(oid, valuer) {
				if p.plain {
					continue
				}
				return false
			}
			asked := askValuer(valuer, oids != nil)
			asked.from = args[i].Value
			args[i].Value = asked
		case convertList:
			nested := planOf(reflect.TypeOf(v).Elem()).convert == convertList
			if oid == 0 || !arrayOf(oid, nested) {
				return false
			}
			list := reflect.ValueOf(v)
			if facts != plainTypes && (nested || !facts.asksElems(oid, v, reflect.Zero(list.Type().Elem()).Interface().(driver.Valuer))) {
				if p.plain && !nested {
					continue
				}
				return false
			}
			if !even(list) {
				return false
			}
			elems, ok := convertElems(list)
			if !ok {
				return false
			}
			args[i].Value = elems
		}
	}
	return true
}

// askValuer asks a Valuer. Where that fails pgx asks again, to try the other format, if the
// statement was described.
func askValuer(valuer driver.Valuer, described bool) converted {
	asked := convertValuer(valuer, 0)
	if asked.err != nil && described {
		if again := convertValuer(valuer, 0); again.err == nil {
			return again
		}
	}
	return asked
}

// convertValuer asks a Valuer for its value, as pgx does (and database/sql): not where
// it is a nil pointer to a type that has the method itself.
func convertValuer(from driver.Valuer, depth int) converted {
	c := converted{from: from, typ: reflect.TypeOf(from)}
	if v := reflect.ValueOf(from); v.Kind() == reflect.Pointer && v.IsNil() && v.Type().Elem().Implements(valuerType) {
		return c
	}
	c.value, c.err = from.Value()
	switch v := c.value.(type) {
	case nil, int64, float64, bool, string, time.Time:
	case driver.Valuer:
		if c.err == nil && depth < maxValuers && planOf(reflect.TypeOf(v)).convert == convertValue {
			c.value = convertValuer(v, depth+1)
		}
	default:
		// It may be used again by the next one that is asked; pgx encodes it at once.
		if p := planOf(reflect.TypeOf(v)); p.why == ReasonNone && p.convert == convertNever {
			c.value = copyValue(v)
		}
	}
	return c
}

// maxValuers bounds Valuers that return Valuers; what goes on has no identity.
const maxValuers = 8

// even reports whether the lists in a list of lists are as long as each other, and none
// is nil. Else pgx refuses it, or takes part of it.
func even(v reflect.Value) bool {
	if planOf(v.Type().Elem()).convert != convertList {
		return true
	}
	for i := range v.Len() {
		if e := v.Index(i); e.IsNil() || e.Len() != v.Index(0).Len() || !even(e) {
			return false
		}
	}
	return true
}

// convertElems returns a list of the converted elements, of as many dimensions. It
// reports false if one of them has an error, for pgx to say.
func convertElems(v reflect.Value) (list any, ok bool) {
	switch {
	case v.Kind() == reflect.Slice && v.IsNil():
		return nil, true
	case planOf(v.Type().Elem()).convert == convertValue:
		out := make([]converted, v.Len())
		for i := range out {
			out[i] = convertValuer(v.Index(i).Interface().(driver.Valuer), 0)
			if out[i].err != nil {
				return nil, false
			}
		}
		return out, true
	case planOf(v.Type().Elem()).convert != convertList:
		return nil, false
	}
	var out reflect.Value
	for i := range v.Len() {
		elem, ok := convertElems(v.Index(i))
		if !ok || elem == nil {
			return nil, false
		}
		if !out.IsValid() {
			out = reflect.MakeSlice(reflect.SliceOf(reflect.TypeOf(elem)), 0, v.Len())
		}
		if out.Type().Elem() != reflect.TypeOf(elem) {
			return nil, false
		}
		out = reflect.Append(out, reflect.ValueOf(elem))
	}
	if !out.IsValid() {
		return []converted{}, true
	}
	return out.Interface(), true
}

// arrayOf reports whether a parameter is an array that pgx knows: whose elements it
// encodes one by one. Where nested is set they are in lists of lists: those would be
// elements themselves to a type that takes anything.
func arrayOf(oid uint32, nested bool) bool {
	t, ok := defaultTypes.TypeForOID(oid)
	if !ok {
		return false
	}
	array, ok := t.Codec.(*pgtype.ArrayCodec)
	if !ok {
		return false
	}
	switch array.ElementType.Codec.(type) {
	case *pgtype.JSONCodec, *pgtype.JSONBCodec, *pgtype.XMLCodec:
		return !nested
	}
	return true
}

// describes reports whether pgx describes a read's statement before it encodes the
// arguments, of which some are options.
func (c *Connector) describes(r *read, options int) bool {
	if r.via != viaQuery {
		return true
	}
	switch c.modeOf(r, options) {
	case pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec:
		return true
	}
	return false
}

// modeOf returns the mode in which pgx executes a query, of whose arguments some are
// options.
func (c *Connector) modeOf(r *read, options int) pgx.QueryExecMode {
	mode := c.source.config.DefaultQueryExecMode
	for _, a := range r.args[:options] {
		if m, is := a.Value.(pgx.QueryExecMode); is {
			mode = m
		}
	}
	return mode
}

// paramOIDs returns the types of the parameters of a read's statement. It asks the
// server once for each text, and reports false if that does not take it.
func (c *Connector) paramOIDs(ctx context.Context, r *read) (oids []uint32, ok bool) {
	st := c.pipe.serves(r)
	if st != nil {
		if oids, ok = st.ParamOIDs(); ok {
			return oids, true
		}
	}
	if oids := r.v.params.Load(); oids != nil {
		return *oids, true
	}
	if st != nil {
		if c.pipe.Describe(ctx, st) == nil {
			return st.ParamOIDs()
		}
		return nil, false
	}
	return c.describeOnce(ctx, r.v, r.query)
}

// describeOnce is paramOIDs without the pipeline. Callers at the same moment ask once.
func (c *Connector) describeOnce(ctx context.Context, v *verdict, query string) (oids []uint32, ok bool) {
	answer := c.describing.DoChan(partitionOf(ctx, c.cfg.PartitionKey)+"\x00"+query, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), describeTimeout)
		defer cancel()
		return c.askParams(ctx, query)
	})
	select {
	case a := <-answer:
		if a.Err != nil {
			return nil, false
		}
		c.learnParams(v, a.Val.([]uint32))
		return a.Val.([]uint32), true
	case <-ctx.Done():
		return nil, false
	}
}

// describeTimeout bounds how long the server may take to describe a statement for
// callers who may all have gone.
const describeTimeout = 30 * time.Second

// askParams asks a flight session. It runs in a goroutine where nobody could recover.
func (c *Connector) askParams(ctx context.Context, query string) (oids []uint32, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("flightpg: panic while a statement was described: %v", p)
		}
	}()
	l, err := c.flights.borrow(ctx)
	if err != nil {
		return nil, err
	}
	l.bad = true // until it returns
	defer l.release()
	_, oids, err = l.numInput(ctx, c.viaStmt == viaStmt && l.guard != GuardTransaction, query)
	l.bad = ctx.Err() != nil
	return oids, err
}

// notEncoded reports whether err is pgx's, of an argument that it cannot encode. It
// prints the argument, so its caller should have it from a query of its own.
func notEncoded(err error) bool {
	text := err.Error()
	return strings.HasPrefix(text, "failed to encode args[") || strings.HasPrefix(text, "unable to encode ")
}
