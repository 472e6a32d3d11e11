package pipeline

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

// script is a server that speaks the protocol over pipes in memory, so that tests
// can run in a synctest bubble. It understands texts of a few words:
//
//	echo           one row: its parameter
//	rows N         N rows: the parameter, and the row's number
//	sleep D        one row, after the time D; can be cancelled
//	busy           one row, after 10 µs, in groups that begin with 400 µs more and run
//	               one at a time: the machine has one CPU
//	tailed         one row, after 20 µs, or 20 ms where the parameter is one in 50
//	failing CODE   one row, or the error where the parameter ends in 3
//	fail CODE      the error with that SQLSTATE, when executed
//	die            the connection is closed, when executed
//	taint NAME V   one row; the setting is reported changed
//	cached N       the first N executions on all connections fail with 0A000
//	twocolumns     when columns is 2, else one
//	copy           a message that is no part of an answer, and one row
//	ready          the message that ends a group
//	changed CODE   a setting reported changed, two rows, and the error when the
//	               transaction ends
//	emptied        two rows, the answer to an empty query, and one more
//	commit CODE    one row, and the error when the transaction ends
type script struct {
	mu       sync.Mutex // guards what follows
	conns    map[uint32]*scripted
	all      []*scripted
	ran      map[string]int // executions, by "text parameter"
	failures map[string]int // of "cached"
	columns  int
	refuse   error         // of connecting
	delay    time.Duration // of requests to cancel
	dials    int
	cpu      chan struct{} // holds who has it
	// wrap may change the client's end of each new connection.
	wrap func(n int, c net.Conn) net.Conn
}

type scripted struct {
	s       *script
	id      uint32
	conn    net.Conn
	cancel  chan struct{} // has room for one
	busy    bool          // guarded by s.mu: not between two Syncs, where requests to cancel are ignored
	stmts   map[string]string
	running bool       // has s.cpu, until the group ends
	groups  [][]string // what each Sync ended, for tests that look
}

func newScript() *script {
	return &script{cpu: make(chan struct{}, 1), conns: make(map[uint32]*scripted), ran: make(map[string]int), failures: make(map[string]int), columns: 1}
}

func (s *script) count(what string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ran[what]
}

func (s *script) dial(context.Context, string, string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.refuse != nil {
		return nil, s.refuse
	}
	s.dials++
	ours, theirs := net.Pipe()
	c := &scripted{s: s, id: uint32(s.dials), conn: theirs, cancel: make(chan struct{}, 1), stmts: make(map[string]string)}
	go c.serve()
	if s.wrap != nil {
		ours = s.wrap(s.dials, ours)
	}
	return ours, nil
}

// end ends queries whose client's connection was cut: PostgreSQL does not notice
// either, for as long as they run.
func (s *script) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.all {
		select {
		case c.cancel <- struct{}{}:
		default:
		}
	}
}

func (s *script) connect(ctx context.Context) (*Link, error) {
	config, err := pgconn.ParseConfig("host=script user=u database=d sslmode=disable connect_timeout=0")
	if err != nil {
		return nil, err
	}
	config.DialFunc = s.dial
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return &Link{PgConn: pg, Types: pgtype.NewMap(), Grouped: true}, nil
}

// serve speaks with one client.
func (c *scripted) serve() {
	defer c.conn.Close()
	b := pgproto3.NewBackend(c.conn, c.conn)
	first, err := b.ReceiveStartupMessage()
	if err != nil {
		return
	}
	if r, ok := first.(*pgproto3.CancelRequest); ok {
		c.s.mu.Lock()
		delay := c.s.delay
		c.s.mu.Unlock()
		time.Sleep(delay) // the bubble's time
		c.s.mu.Lock()
		if target := c.s.conns[r.ProcessID]; target != nil && target.busy {
			select {
			case target.cancel <- struct{}{}:
			default:
			}
		}
		c.s.mu.Unlock()
		return
	}
	c.s.mu.Lock()
	c.s.conns[c.id] = c
	c.s.all = append(c.s.all, c)
	c.s.mu.Unlock()
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ParameterStatus{Name: "TimeZone", Value: "UTC"})
	b.Send(&pgproto3.BackendKeyData{ProcessID: c.id, SecretKey: []byte{1, 2, 3, 4}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if b.Flush() != nil {
		return
	}
	_ = c.loop(b)
}

var errDie = errors.New("die")

func (c *scripted) loop(b *pgproto3.Backend) error {
	var bound string // text and parameter of the portal
	skip := false
	var group []string
	for {
		msg, err := b.Receive()
		if err != nil {
			return err
		}
		_, isSync := msg.(*pgproto3.Sync)
		c.s.mu.Lock()
		c.busy = !isSync
		c.s.mu.Unlock()
		if skip {
			if _, ok := msg.(*pgproto3.Sync); !ok {
				continue
			}
		}
		fail := func(code string) {
			skip = true
			b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: code, Message: "script " + code})
		}
		switch msg := msg.(type) {
		case *pgproto3.Terminate:
			return nil
		case *pgproto3.Query: // pgx's Ping
			b.Send(&pgproto3.EmptyQueryResponse{})
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			if err := b.Flush(); err != nil {
				return err
			}
		case *pgproto3.Flush:
			if err := b.Flush(); err != nil {
				return err
			}
		case *pgproto3.Sync:
			skip = false
			if c.running {
				c.running = false
				<-c.s.cpu
			}
			if len(group) > 0 {
				c.s.mu.Lock()
				c.groups = append(c.groups, group)
				c.s.mu.Unlock()
				group = nil
			}
			select { // one that came too late for the last query is forgotten
			case <-c.cancel:
			default:
			}
			b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
			if err := b.Flush(); err != nil {
				return err
			}
		case *pgproto3.Parse:
			if _, taken := c.stmts[msg.Name]; taken {
				fail("42P05")
				continue
			}
			if strings.HasPrefix(msg.Query, "undefined") {
				fail("42P01")
				continue
			}
			c.stmts[msg.Name] = msg.Query
			b.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Close:
			delete(c.stmts, msg.Name)
			b.Send(&pgproto3.CloseComplete{})
		case *pgproto3.Describe:
			b.Send(&pgproto3.ParameterDescription{ParameterOIDs: []uint32{pgtype.TextOID}})
			b.Send(c.describe(c.stmts[msg.Name]))
		case *pgproto3.Bind:
			text, ok := c.stmts[msg.PreparedStatement]
			if !ok {
				fail("26000")
				continue
			}
			bound = text + "|" + string(msg.Parameters[0])
			b.Send(&pgproto3.BindComplete{})
		case *pgproto3.Execute:
			text, param, _ := strings.Cut(bound, "|")
			group = append(group, text+" "+param)
			c.s.mu.Lock()
			c.s.ran[text+" "+param]++
			c.s.mu.Unlock()
			code, err := c.execute(b, text, param, len(group) == 1)
			if err != nil {
				return err
			}
			if code != "" {
				fail(code)
			}
		default:
			return fmt.Errorf("unexpected %T", msg)
		}
	}
}

func (c *scripted) describe(text string) *pgproto3.RowDescription {
	n := 1
	if strings.HasPrefix(text, "rows") {
		n = 2
	}
	if text == "twocolumns" {
		c.s.mu.Lock()
		n = c.s.columns
		c.s.mu.Unlock()
	}
	d := &pgproto3.RowDescription{}
	for i := range n {
		d.Fields = append(d.Fields, pgproto3.FieldDescription{Name: []byte("c" + strconv.Itoa(i)), DataTypeOID: pgtype.TextOID, DataTypeSize: -1, TypeModifier: -1})
	}
	return d
}

func (c *scripted) execute(b *pgproto3.Backend, text, param string, first bool) (code string, err error) {
	row := func(values ...string) {
		m := &pgproto3.DataRow{}
		for _, v := range values {
			m.Values = append(m.Values, []byte(v))
		}
		b.Send(m)
	}
	word, rest, _ := strings.Cut(text, " ")
	select { // it hits whatever runs
	case <-c.cancel:
		return "57014", nil
	default:
	}
	switch word {
	case "echo":
		row(param)
	case "twocolumns":
		row(make([]string, len(c.describe(text).Fields))...)
	case "rows":
		n, _ := strconv.Atoi(rest)
		for i := range n {
			row(param, strconv.Itoa(i))
			if i%16 == 15 {
				if err := b.Flush(); err != nil {
					return "", err
				}
			}
		}
	case "busy":
		if first {
			c.s.cpu <- struct{}{}
			c.running = true
			time.Sleep(400 * time.Microsecond) // the bubble's time
		}
		time.Sleep(10 * time.Microsecond) // likewise
		row(param)
	case "sleep", "maybe", "tailed":
		d, _ := time.ParseDuration(rest)
		if word == "tailed" {
			d = 20 * time.Microsecond
			if n, _ := strconv.Atoi(param); n%50 == 0 {
				d = 20 * time.Millisecond
			}
		}
		if word == "maybe" && !strings.HasSuffix(param, "7") {
			d = 0
		}
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-c.cancel:
			return "57014", nil
		case <-timer.C:
		}
		row(param)
	case "fail":
		return rest, nil
	case "failing":
		if strings.HasSuffix(param, "3") {
			return rest, nil
		}
		row(param)
	case "die":
		return "", errDie
	case "dieonce":
		c.s.mu.Lock()
		defer c.s.mu.Unlock()
		if c.s.ran[text+" "+param] == 1 {
			return "", errDie
		}
		row(param)
	case "taint":
		name, value, _ := strings.Cut(rest, " ")
		row(param)
		b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
		b.Send(&pgproto3.ParameterStatus{Name: name, Value: value})
		return "", nil
	case "cached":
		n, _ := strconv.Atoi(rest)
		c.s.mu.Lock()
		c.s.failures[text]++
		failed := c.s.failures[text] <= n
		c.s.mu.Unlock()
		if failed {
			return "0A000", nil
		}
		row(param)
	case "changed":
		b.Send(&pgproto3.ParameterStatus{Name: "TimeZone", Value: "Mars"})
		row(param)
		row(param)
		b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 2")})
		return rest, nil
	case "emptied":
		row(param)
		row(param)
		b.Send(&pgproto3.EmptyQueryResponse{})
		row(param)
	case "copy":
		b.Send(&pgproto3.CopyOutResponse{})
		row(param)
	case "commit":
		row(param)
		b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
		return rest, nil
	case "ready":
		b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	default:
		return "42601", nil
	}
	b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
	return "", nil
}

// cutConn is a connection that fails after a number of bytes has been read.
type cutConn struct {
	net.Conn
	left int
}

func (c *cutConn) Read(b []byte) (int, error) {
	if c.left <= 0 {
		_ = c.Conn.Close()
		return 0, io.ErrUnexpectedEOF
	}
	n, err := c.Conn.Read(b[:min(len(b), c.left)])
	c.left -= n
	return n, err
}
