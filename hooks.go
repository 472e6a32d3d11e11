package flightpg

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"
)

// A connection is opened, and used again, for a caller, and foreign code gets to see his
// context then: hooks, dialers, tracers, the connectors and pools of others. What that
// code makes of the session may depend on who the caller is (a tenant, a role); mostly it
// does not: it registers types, or looks whether the connection is well. It can only know
// from the context, so that tells: what is asked for anything but what is harmless makes
// sessions depend on their callers, and so does a context of a type that is not the
// standard library's, which may be looked at in ways that nobody sees.
//
// From then on no read is shared without a Config.PartitionKey, and each virtual
// connection has a session of its own, as with pgx, which is used again for those only
// who would get the same answers, unless what prepares it for them asks anew. With a
// PartitionKey a session serves the partition only for which it was opened.

// A dependence says how it came out that sessions depend on their callers.
type dependence struct {
	hook string // the function that asked; "" if that cannot be told
	key  string // what for; "" for a context of a foreign type
	ctx  string // that type
}

// why says it in words.
func (d *dependence) why() string {
	hook := d.hook
	if hook == "" {
		hook = "a hook"
	}
	if d.key == "" {
		return "connections are opened with contexts of type " + d.ctx + ", which a hook may look into"
	}
	return hook + " asks the context of a connection's caller for " + d.key
}

// watched is a context for foreign code that prepares a connection for a caller.
type watched struct {
	context.Context
	c *Connector

	mu   sync.Mutex // guards asks
	asks []question
}

// sameContext reports whether two contexts are one. Not all can be compared.
func sameContext(a, b context.Context) bool {
	if t := reflect.TypeOf(a); t.Kind() == reflect.Pointer || t == background {
		return a == b
	}
	return equalValues(a, b)
}

var background = reflect.TypeOf(context.Background())

// question is what a context was asked for, and what it has answered.
type question struct{ key, value any }

// maxAsks bounds what is kept of one connection's.
const maxAsks = 64

// Value implements context.Context.
func (w *watched) Value(key any) any {
	value := w.Context.Value(key)
	if harmlessKey(key) {
		return value
	}
	if w.c.depends.Load() == nil {
		w.c.dependsOn(&dependence{hook: asker(), key: keyName(key)})
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.asks) < maxAsks && !slices.ContainsFunc(w.asks, func(a question) bool { return equalValues(a.key, key) }) {
		w.asks = append(w.asks, question{key, value})
	}
	return value
}

// askedOf returns what a context from watch was asked for until now.
func askedOf(ctx context.Context) []question {
	w, ok := ctx.(*watched)
	if !ok {
		return nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.asks)
}

// suits reports whether a session that was opened for one caller is right for another,
// with ctx, for whom foreign code has prepared it once more, and has asked for now: all
// that was asked for then was asked for again, or has the same answer.
func suits(then, now []question, ctx context.Context) bool {
	for _, a := range then {
		again := func(b question) bool { return equalValues(a.key, b.key) }
		if !slices.ContainsFunc(now, again) && !equalValues(a.value, ctx.Value(a.key)) {
			return false
		}
	}
	return len(then) < maxAsks
}

// equalValues reports whether two values can be compared, and are equal.
func equalValues(a, b any) bool {
	v, w := reflect.ValueOf(a), reflect.ValueOf(b)
	if !v.IsValid() || !w.IsValid() {
		return v.IsValid() == w.IsValid()
	}
	return v.Comparable() && w.Comparable() && a == b
}

// dependsOn notes that sessions depend on their callers.
func (c *Connector) dependsOn(d *dependence) {
	c.depends.CompareAndSwap(nil, d)
	if c.cfg.PartitionKey == nil {
		c.turnOff(ReasonHooks)
	}
}

// own reports whether each virtual connection must have a session of its own.
func (c *Connector) own() bool {
	return c.depends.Load() != nil && c.cfg.PartitionKey == nil && !c.source.pooled
}

// parted reports whether sessions serve one partition each.
func (c *Connector) parted() bool { return c.depends.Load() != nil && c.cfg.PartitionKey != nil }

// elsewhere reports whether a hook has led a connection to another database than the
// config's, of which the catalog says nothing.
func (c *Connector) elsewhere(dc *stdlib.Conn) bool {
	return c.source.config != nil && !c.source.pooled && dc.Conn().Config().Database != c.source.config.Database
}

// watch returns the context with which a connection is opened for a caller, or prepared
// for him. One of a foreign type is passed as it is.
func (c *Connector) watch(ctx context.Context) context.Context {
	if !c.source.doors || c.foreign(ctx) {
		return ctx
	}
	return &watched{Context: ctx, c: c}
}

// prepares reports whether foreign code gets the context for which a session is used again.
func (c *Connector) prepares() bool {
	return !c.source.fresh || c.cfg.ResetSession != nil || c.cfg.ShouldPing != nil
}

// foreign reports whether a caller's context is one that foreign code may look into, and
// notes that it is. Where there is no such code no context is.
func (c *Connector) foreign(ctx context.Context) bool {
	if !c.source.doors || standardContext(ctx) {
		return false
	}
	if c.depends.Load() == nil {
		c.dependsOn(&dependence{ctx: clipped(reflect.TypeOf(ctx).String())})
	}
	return true
}

// standardContext reports whether a context is the standard library's, or flightpg's.
func standardContext(ctx context.Context) bool {
	switch ctx.(type) {
	case *watched, *openingContext:
		return true
	}
	t := reflect.TypeOf(ctx)
	if t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.PkgPath() {
	case "context", "os/signal", "net":
		return true
	}
	return false
}

// openingContext is the context with which a connection is opened for the holder of a
// sql.Conn: he asks for it with the first statement on it, and with pgx it would have been
// opened when he got it, with the context of that. It is also that of a dial of the
// pipeline's, which ends with the pool and not with the caller.
type openingContext struct {
	context.Context                 // of the statement, or the dial
	checkout        context.Context //nolint:containedctx // whose values count
}

// Value implements context.Context.
func (o *openingContext) Value(key any) any {
	if key == cancelKey {
		return o.Context.Value(key)
	}
	return o.checkout.Value(key)
}

// opensFor returns how a connection that a caller waits for is given his context's values:
// hooks may look for a span. nil where nobody looks.
func (c *Connector) opensFor() func(ctx, caller context.Context) context.Context {
	if !c.source.doors {
		return nil
	}
	return func(ctx, caller context.Context) context.Context { return &openingContext{ctx, caller} }
}

// opening returns the context with which the connection's session is opened, for a
// statement with ctx.
func (cn *conn) opening(ctx context.Context) context.Context {
	checkout := cn.checkout
	switch {
	case !cn.c.source.doors || checkout == nil:
		return ctx
	case !standardContext(checkout):
		if checkout.Err() != nil {
			return context.WithoutCancel(checkout)
		}
		return checkout
	case sameContext(checkout, ctx):
		return ctx
	}
	return &openingContext{ctx, checkout}
}

// cancelKey is what package context asks contexts for, to find those that it can cancel.
// Others may ask for a *int, but not for this one.
var cancelKey = func() any {
	p := &probe{Context: context.Background(), done: make(chan struct{})}
	_, cancel := context.WithCancel(p)
	cancel()
	return p.key
}()

// probe is a context that remembers what it was asked for.
type probe struct {
	context.Context
	done chan struct{}
	key  any
}

// Done implements context.Context.
func (p *probe) Done() <-chan struct{} { return p.done }

// Value implements context.Context.
func (p *probe) Value(key any) any {
	p.key = key
	return nil
}

// keyType names the type of a context's key.
type keyType struct{ pkg, name string }

// harmlessKeys are the types of keys for which contexts are asked in order to observe what
// goes on, or to cancel it.
var harmlessKeys = map[keyType]bool{
	{"internal/nettrace", "TraceKey"}:                           true, // net's dialer and resolver
	{"internal/nettrace", "LookupIPAltResolverKey"}:             true,
	{"net/http/httptrace", "clientEventContextKey"}:             true,
	{"go.opentelemetry.io/otel/trace", "traceContextKeyType"}:   true, // the span
	{"runtime/trace", "traceContextKey"}:                        true, // its task, which says nothing
	{"github.com/exaring/otelpgx", "metricOperationNameCtxKey"}: true, // its own, which it looks for also where it put none
	{"github.com/opentracing/opentracing-go", "contextKey"}:     true, // the span, too
	{"go.opencensus.io/trace", "contextKey"}:                    true,
	{"github.com/rs/zerolog", "ctxKey"}:                         true, // the logger
	{reflect.TypeFor[modeKey]().PkgPath(), modeKeyName}:         true, // of WithMode
}

var modeKeyName = reflect.TypeFor[modeKey]().Name()

// harmlessKey reports whether nothing that a context has under a key can say who the
// caller is.
func harmlessKey(key any) bool {
	t := reflect.TypeOf(key)
	if t == nil {
		return false
	}
	if t.Kind() == reflect.Pointer {
		return key == cancelKey
	}
	return t.PkgPath() != "" && harmlessKeys[keyType{t.PkgPath(), t.Name()}]
}

// keyName names a context's key for people.
func keyName(key any) string {
	t := reflect.TypeOf(key)
	if t == nil {
		return "nil"
	}
	switch t.Kind() {
	case reflect.String:
		return clipped(fmt.Sprintf("%s(%q)", t, reflect.ValueOf(key).String()))
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return clipped(fmt.Sprintf("%s(%d)", t, reflect.ValueOf(key).Int()))
	case reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return clipped(fmt.Sprintf("%s(%d)", t, reflect.ValueOf(key).Uint()))
	}
	return clipped(t.String())
}

// clipped bounds what comes from others and is kept.
func clipped(s string) string {
	const most = 200
	if len(s) <= most {
		return strings.ToValidUTF8(s, "\uFFFD")
	}
	for !utf8.RuneStart(s[most]) {
		s = s[:len(s)-1]
		if len(s) <= most {
			break
		}
	}
	return strings.ToValidUTF8(s[:min(most, len(s))], "\uFFFD") + "…"
}

// asker names the hook that has asked a watched context: the function nearest to the
// question that pgx, database/sql or flightpg has called.
func asker() string {
	pcs := make([]uintptr, 64)
	frames := runtime.CallersFrames(pcs[:runtime.Callers(3, pcs)]) // Value's caller
	name := ""
	for {
		f, more := frames.Next()
		switch {
		case strings.HasPrefix(f.Function, "context."), strings.HasPrefix(f.Function, "runtime."),
			strings.HasPrefix(f.Function, "github.com/jackc/puddle/"): // pgxpool's pool has contexts of its own
		case betweenHooks(f.Function):
			if name == "" {
				name = f.Function // it asks itself
			}
			return clipped(name)
		default:
			name = f.Function
		}
		if !more {
			return clipped(name)
		}
	}
}

// betweenHooks reports whether a function is one that calls hooks.
func betweenHooks(function string) bool {
	for _, prefix := range []string{
		"github.com/jackc/", "database/sql.",
		flightpgPackage + ".(*Config).hooks", flightpgPackage + ".(*session)", flightpgPackage + ".sessionConnector", flightpgPackage + ".orClosed", flightpgPackage + ".(*watched)",
		flightpgPackage + ".noticing",
	} {
		if strings.HasPrefix(function, prefix) {
			return true
		}
	}
	return false
}

var flightpgPackage = reflect.TypeFor[Connector]().PkgPath()

// hasDoors reports whether foreign code gets the context for which a connection with the
// config is opened, or used.
func hasDoors(pc *pgx.ConnConfig) bool {
	own := defaultConfig()
	if _, traces := pc.Tracer.(pgx.ConnectTracer); traces {
		return true
	}
	return pc.AfterConnect != nil || pc.AfterNetConnect != nil || pc.OAuthTokenProvider != nil ||
		pc.ValidateConnect != nil && !pgxValidates(pc.ValidateConnect) ||
		!sameFunc(pc.DialFunc, own.DialFunc) || !sameFunc(pc.LookupFunc, own.LookupFunc)
}

// pgxValidates reports whether a function is one of those for target_session_attrs.
func pgxValidates(f pgconn.ValidateConnectFunc) bool {
	for _, own := range []pgconn.ValidateConnectFunc{
		pgconn.ValidateConnectTargetSessionAttrsReadWrite, pgconn.ValidateConnectTargetSessionAttrsReadOnly,
		pgconn.ValidateConnectTargetSessionAttrsPrimary, pgconn.ValidateConnectTargetSessionAttrsStandby,
		pgconn.ValidateConnectTargetSessionAttrsPreferStandby,
	} {
		if sameFunc(f, own) {
			return true
		}
	}
	return false
}

// poolHasDoors is hasDoors for a pool.
func poolHasDoors(pc *pgxpool.Config) bool {
	//lint:ignore SA1019 pgxpool honours it
	before := pc.BeforeAcquire
	_, traces := pc.ConnConfig.Tracer.(pgxpool.AcquireTracer)
	return pc.BeforeConnect != nil || pc.AfterConnect != nil || pc.PrepareConn != nil || before != nil || pc.ShouldPing != nil ||
		traces || hasDoors(pc.ConnConfig)
}

// hookFailed reports whether the error with which a connection could not be opened is one
// that a hook has made, and neither the network nor a server.
func hookFailed(err error) bool {
	var netErr net.Error
	var pgErr *pgconn.PgError
	switch {
	case err == nil, errors.As(err, &pgErr), errors.As(err, &netErr), errors.Is(err, net.ErrClosed),
		errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	}
	var why bypassError
	return !errors.As(err, &why) && !errors.Is(err, driver.ErrBadConn) && err != errPoolClosed && err != errOldPrimary
}

// hooked notes with what a connection for flights was opened.
func (c *Connector) hooked(err error) {
	switch {
	case err == nil:
		if c.hookErr.Load() != nil {
			c.hookErr.Store(nil)
		}
	case c.source.doors && hookFailed(err):
		c.hookErr.Store(&err)
	}
}

// hookError returns the error of the hook, or of another piece of foreign code, that the
// last connection for flights could not be opened for, or nil.
func (c *Connector) hookError() error {
	if err := c.hookErr.Load(); err != nil {
		return *err
	}
	return nil
}

// anothers reports whether a read on the connection may not be shared since its session
// would be like another's than who reads: sessions depend on their callers, and the
// context of a read on a sql.Conn is not that with which its session is opened; or a hook
// could look into a context that it would not get in a flight.
func (cn *conn) anothers(ctx context.Context) bool {
	c := cn.c
	if cn.foreign(ctx) {
		return true
	}
	return c.parted() && cn.checkout != nil && !sameContext(cn.checkout, ctx) &&
		partitionOf(cn.checkout, c.cfg.PartitionKey) != partitionOf(ctx, c.cfg.PartitionKey)
}

// foreign is Connector.foreign for a read on the connection.
func (cn *conn) foreign(ctx context.Context) bool {
	return cn.c.foreign(ctx) || cn.checkout != nil && cn.c.foreign(cn.checkout)
}
