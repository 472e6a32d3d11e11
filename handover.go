package flightpg

import (
	"context"
	"crypto/tls"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/puddle/v2"
)

// How a connection goes from the pool in which it lies idle to the one that needs it, when
// the server takes no more. pgx has no way to make a connection of what another has left,
// but it can be told how to dial: it gets the one that there is, and in place of a server's
// answer to its startup message what that has answered once. All else happens as with a new
// connection: who looks at one, or sets it up, does so.

// handover is the network connection that pgx gets.
type handover struct {
	net.Conn
	startup map[string]string // the parameters with which the connection was opened
	answer  []byte            // to them
	greeted bool
}

// NetConn returns what it wraps.
func (h *handover) NetConn() net.Conn { return h.Conn }

func (h *handover) Write(b []byte) (int, error) {
	if h.greeted {
		return h.Conn.Write(b)
	}
	var msg pgproto3.StartupMessage
	if len(b) < 8 || msg.Decode(b[4:]) != nil || !maps.Equal(msg.Parameters, h.startup) {
		return 0, errors.New("flightpg: the connection that lies idle was opened with other parameters")
	}
	h.greeted = true
	return len(b), nil
}

func (h *handover) Read(b []byte) (int, error) {
	if !h.greeted {
		return 0, io.ErrUnexpectedEOF
	}
	if len(h.answer) == 0 {
		return h.Conn.Read(b)
	}
	n := copy(b, h.answer)
	h.answer = h.answer[n:]
	return n, nil
}

// newHandover makes one of a connection that pgx has let go of.
func newHandover(from *pgconn.HijackedConn) (*handover, error) {
	h := &handover{Conn: from.Conn, startup: maps.Clone(from.Config.RuntimeParams)}
	if was, ok := from.Conn.(*handover); ok { // it has been handed over before
		h.Conn = was.Conn
	}
	if h.startup == nil {
		h.startup = make(map[string]string)
	}
	h.startup["user"] = from.Config.User
	if from.Config.Database != "" {
		h.startup["database"] = from.Config.Database
	}
	messages := []pgproto3.BackendMessage{&pgproto3.AuthenticationOk{}}
	for _, name := range slices.Sorted(maps.Keys(from.ParameterStatuses)) {
		messages = append(messages, &pgproto3.ParameterStatus{Name: name, Value: from.ParameterStatuses[name]})
	}
	messages = append(messages, &pgproto3.BackendKeyData{ProcessID: from.PID, SecretKey: from.SecretKey}, &pgproto3.ReadyForQuery{TxStatus: 'I'})
	var err error
	for _, m := range messages {
		if h.answer, err = m.Encode(h.answer); err != nil {
			return nil, err
		}
	}
	return h, nil
}

// handedOver returns a copy of a config, with which pgx gets the connection when it dials
// first. What it dials later, to cancel a query, is encrypted if the connection is.
func handedOver(pc *pgx.ConnConfig, h *handover, from *pgconn.HijackedConn) *pgx.ConnConfig {
	pc = pc.Copy()
	dial, given := pc.DialFunc, false
	pc.DialFunc = func(ctx context.Context, network, addr string) (net.Conn, error) {
		if !given {
			given = true
			return h, nil
		}
		conn, err := dial(ctx, network, addr)
		if err != nil || from.TLSConfig == nil {
			return conn, err
		}
		if conn, err = encrypted(conn, from.TLSConfig, pc.SSLNegotiation == "direct"); err != nil {
			return nil, fmt.Errorf("flightpg: %w", err)
		}
		return conn, nil
	}
	pc.LookupFunc = func(_ context.Context, host string) ([]string, error) { return []string{host}, nil }
	pc.AfterNetConnect = nil // it has seen this one
	pc.TLSConfig, pc.Fallbacks = nil, nil
	pc.RequireAuth, pc.ChannelBinding, pc.SSLCertMode = "", "", "" // they were met when it was opened
	return pc
}

// encrypted begins TLS on a connection to a server, as the protocol has it.
func encrypted(conn net.Conn, config *tls.Config, direct bool) (net.Conn, error) {
	if !direct {
		ask, err := (&pgproto3.SSLRequest{}).Encode(nil)
		if err == nil {
			_, err = conn.Write(ask)
		}
		answer := []byte{0}
		if err == nil {
			_, err = io.ReadFull(conn, answer)
		}
		if err == nil && answer[0] != 'S' {
			err = errors.New("the server refuses TLS")
		}
		if err != nil {
			_ = conn.Close()
			return nil, err
		}
	}
	return tls.Client(conn, config), nil
}

// hands reports whether connections go from one pool to the other. Behind a pooler a session
// cannot be cleared: it is others' too.
func (c *Connector) hands() bool { return c.direct.Load() && c.source.handed != nil }

// cede gives up a connection that lies idle; and one that is given back within patience, if
// this pool has more than twice as many as who wants it. It returns nil if there is none.
func (p *pool) cede(ctx context.Context, wants int64, patience time.Duration) *pgconn.HijackedConn {
	if !p.connector.c.hands() {
		return nil
	}
	if p.pipe != nil {
		if h := p.pipe.Cede(wants, cedePatience); h != nil {
			return cleared(ctx, h)
		}
	}
	l := p.takeFree(ctx)
	if l == nil && patience > 0 && p.ready.Load() > 2*wants {
		late := time.NewTimer(patience)
		defer late.Stop()
		select {
		case res := <-p.hand: // with its place
			l, _ = p.use(ctx, res, "", usual)
		case <-late.C:
		case <-ctx.Done():
		}
	}
	if l == nil {
		return nil
	}
	defer l.release()
	if l.pgx == nil || !l.idle() {
		return nil
	}
	l.bad = true
	pg := l.pgx.Conn().PgConn()
	if pg.SyncConn(ctx) != nil { // else what it has read ahead would be lost
		return nil
	}
	h, err := pg.Hijack()
	if err != nil {
		return nil
	}
	return cleared(ctx, h)
}

// cleared makes the session of a connection as it was when it was opened. It returns nil,
// and closes it, if it cannot.
func cleared(ctx context.Context, h *pgconn.HijackedConn) *pgconn.HijackedConn {
	ctx, cancel := context.WithTimeout(ctx, closePatience)
	defer cancel()
	clear(h.CustomData)
	conn := h.Conn
	pg, err := pgconn.Construct(h)
	if err == nil {
		_, err = pg.Exec(ctx, "DISCARD ALL").ReadAll()
	}
	if err == nil {
		err = pg.SyncConn(ctx)
	}
	if err == nil {
		h, err = pg.Hijack()
	}
	if err != nil {
		_ = conn.Close()
		return nil
	}
	return h
}

// adopt takes a connection of the other pool, for a session of this one. It returns nil if
// that has none to spare, or this none to take.
func (p *pool) adopt(ctx context.Context, patience time.Duration) *lease {
	if !p.mayAwait(nil) || !p.connector.c.hands() {
		return nil
	}
	if p.places != nil {
		select {
		case p.places <- struct{}{}:
		default:
			return nil
		}
	}
	h := p.other.cede(ctx, p.ready.Load(), patience)
	if h == nil {
		p.leave()
		return nil
	}
	var idle []*puddle.Resource[*slot] // given back meanwhile
	res, err := p.slots.Acquire(ctx)
	for err == nil && res.Value().session != nil && p.slots.Stat().TotalResources() < p.slots.Stat().MaxResources() {
		idle = append(idle, res)
		res, err = p.slots.Acquire(ctx)
	}
	giveBack(idle)
	if err != nil {
		_ = h.Conn.Close()
		p.leave()
		return nil
	}
	l := &lease{p: p, res: res}
	sl := res.Value()
	if sl.session != nil { // there is room for no more
		p.idle.Add(-1)
		_ = l.close()
	}
	taken := false
	p.open.Add(1)
	defer func() {
		if !taken { // a panic in a hook included
			p.open.Add(-1)
			l.drop()
		}
	}()
	dc, err := p.connector.over(ctx, h)
	if err != nil {
		return nil
	}
	p.ready.Add(1)
	sl.session, sl.opened = dc.(*session), time.Now()
	l.session, taken = sl.session, true
	return l
}

// over opens a session on a connection that another pool has ceded.
func (sc sessionConnector) over(ctx context.Context, from *pgconn.HijackedConn) (driver.Conn, error) {
	h, err := newHandover(from)
	if err == nil {
		sc.inner = sc.c.source.handed(sc.flights, h, from)
		sc.dials = nil
		var dc driver.Conn
		if dc, err = sc.Connect(ctx); err == nil {
			return dc, nil
		}
	}
	_ = from.Conn.Close()
	return nil, err
}

// how says how a session is to be had.
type how uint8

const (
	usual    how = iota // one that lies idle; or opened, if that has not failed a moment ago
	insisted            // one that lies idle, or opened
	anew                // opened
)

// spare takes a session that lies idle here, or makes one of a connection that does in the
// other pool.
func (p *pool) spare(ctx context.Context, patience time.Duration) *lease {
	if l := p.takeFree(ctx); l != nil {
		return l
	}
	return p.adopt(ctx, patience)
}
