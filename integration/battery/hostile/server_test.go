package hostile

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

// Texts that the server knows.
const (
	targetText    = "SELECT 1 AS target"
	targetTable   = "SELECT id FROM items AS target" // needs the catalog
	bystanderText = "SELECT 2 AS bystander"
	writeText     = "INSERT INTO log VALUES (1)"
)

// A moment is a point of the conversation at which a script speaks.
type moment string

const (
	atStartup  moment = "startup"
	atArm      moment = "arm"     // the flight session's guard
	atCatalog  moment = "catalog" // the catalog query
	atDescribe moment = "describe"
	atExecute  moment = "execute"
	atPing     moment = "ping"
	atWrite    moment = "write"
	atBegin    moment = "begin"
	atRollback moment = "rollback"
	atCancel   moment = "cancel"
	atParse    moment = "parse" // of a statement that is executed in the same breath
	atOther    moment = "other"
)

// table is the true answer to a query.
type table struct {
	columns []column
	rows    [][]any // as Go values that pgtype encodes; nil is NULL
}

type column struct {
	name string
	oid  uint32
}

// server speaks PostgreSQL's protocol as a server does, but for what its script
// says. All of it is in memory.
type server struct {
	script *script
	tables map[string]*table

	lying atomic.Bool  // the script is in force
	lies  atomic.Int64 // how often it has spoken
	trail atomic.Bool  // something was sent behind the end of an answer: what follows is out of step, over any driver
	wg    sync.WaitGroup

	slow     atomic.Bool // a lie came in pieces, or nothing after it
	complete atomic.Bool // a lie had a result to its end in it
	several  atomic.Bool // and more behind it

	mu      sync.Mutex // guards what follows
	conns   map[*end]bool
	seen    map[moment]int
	opened  int
	stopped bool
}

func newServer(s *script, tables map[string]*table) *server {
	return &server{script: s, tables: tables, conns: map[*end]bool{}, seen: map[moment]int{}}
}

// dial is a pgconn.DialFunc.
func (s *server) dial(context.Context, string, string) (net.Conn, error) {
	client, mine := pipe()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, errors.New("the server has stopped")
	}
	s.conns[mine] = true
	s.opened++
	pid := uint32(s.opened)
	s.wg.Go(func() {
		c := &serverConn{s: s, end: mine, pid: pid, texts: map[string]string{}, status: 'I'}
		c.serve()
		mine.Close()
		s.mu.Lock()
		delete(s.conns, mine)
		s.mu.Unlock()
	})
	return client, nil
}

// open returns how many connections have not been closed by the other side.
func (s *server) open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// stop hangs up on everybody.
func (s *server) stop() {
	s.mu.Lock()
	s.stopped = true
	for c := range s.conns {
		c.Close()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

// serverConn is one connection's server side.
type serverConn struct {
	s   *server
	end *end
	pid uint32

	texts   map[string]string // of prepared statements
	bound   string            // the text of the portal
	formats []int16           // of the portal
	status  byte              // of the transaction
	simply  bool              // the simple protocol is spoken
	types   *pgtype.Map

	out  []message
	last moment // of what was answered last
}

// message is an answer, and when it is given.
type message struct {
	at   moment
	data []byte
}

func (c *serverConn) say(at moment, m pgproto3.BackendMessage) {
	data, err := m.Encode(nil)
	if err != nil {
		panic(err)
	}
	c.out = append(c.out, message{at, data})
	c.last = at
}

func (c *serverConn) ready(at moment) {
	c.say(at, &pgproto3.ReadyForQuery{TxStatus: c.status})
}

// flush sends what is to be said, each moment as the script wants it. It reports
// false if that was the end of the conversation.
func (c *serverConn) flush() bool {
	for len(c.out) > 0 {
		at := c.out[0].at
		n := 0
		var frames [][]byte
		for n < len(c.out) && c.out[n].at == at {
			frames = append(frames, c.out[n].data)
			n++
		}
		c.out = c.out[n:]
		speech := speech{data: join(frames)}
		if lie, ok := c.s.lie(at); ok {
			speech = lie.twist(frames)
			c.s.lies.Add(1)
			if speech.trails(at) {
				c.s.trail.Store(true)
			}
			if speech.pause > 0 || speech.stall {
				c.s.slow.Store(true)
			}
			if whole, more := speech.completes(); whole {
				c.s.complete.Store(true)
				if more {
					c.s.several.Store(true)
				}
			}
		}
		if c.simply && at != atArm && at != atCatalog && speech.ready() {
			// pgx waits for ever then, in the simple protocol, whatever becomes of its
			// caller. Who waits for that caller's lock would stop the bubble's time.
			speech.hangUp, speech.pause = true, 0
		}
		for part := range speech.parts() {
			if _, err := c.end.Write(part); err != nil {
				return false
			}
			if speech.pause > 0 {
				c.end.pause(speech.pause)
			}
		}
		switch {
		case speech.hangUp:
			return false
		case speech.stall:
			for { // until the other side gives up
				if _, err := c.end.Read(make([]byte, 1<<10)); err != nil {
					return false
				}
			}
		}
	}
	return true
}

// lie returns the script's part for a moment, if it has one now.
func (s *server) lie(at moment) (*lie, bool) {
	s.mu.Lock()
	n := s.seen[at]
	s.seen[at]++
	s.mu.Unlock()
	if !s.lying.Load() || s.script.at != at || s.script.once && n != s.script.nth {
		return nil, false
	}
	return &lie{s.script, rand.New(rand.NewPCG(s.script.seed, 1))}, true
}

func (c *serverConn) serve() {
	back := pgproto3.NewBackend(c.end, c.end)
	start, err := back.ReceiveStartupMessage()
	if err != nil {
		return
	}
	if _, ok := start.(*pgproto3.CancelRequest); ok {
		c.out = append(c.out, message{atCancel, nil}) // PostgreSQL says nothing, and hangs up
		c.flush()
		return
	}
	c.say(atStartup, &pgproto3.AuthenticationOk{})
	for _, p := range [][2]string{{"server_version", "15.4"}, {"client_encoding", "UTF8"}, {"standard_conforming_strings", "on"}, {"default_transaction_read_only", "off"}} {
		c.say(atStartup, &pgproto3.ParameterStatus{Name: p[0], Value: p[1]})
	}
	c.say(atStartup, &pgproto3.BackendKeyData{ProcessID: c.pid, SecretKey: binary.BigEndian.AppendUint32(nil, c.pid)})
	c.ready(atStartup)
	if !c.flush() {
		return
	}
	for {
		m, err := back.Receive()
		if err != nil {
			return
		}
		switch m := m.(type) {
		case *pgproto3.Terminate:
			return
		case *pgproto3.Query:
			c.simply = true
			c.simple(m.String)
			if !c.flush() {
				return
			}
		case *pgproto3.Parse:
			c.texts[m.Name] = m.Query
			c.say(atParse, &pgproto3.ParseComplete{})
		case *pgproto3.Describe:
			if m.ObjectType == 'S' {
				// In one breath with an execution it is part of that.
				if k := len(c.out) - 1; k >= 0 && c.out[k].at == atParse {
					c.out[k].at = c.at(c.texts[m.Name], atDescribe)
				}
				c.describe(c.texts[m.Name])
			} else {
				c.rowDescription(c.bound, c.formats)
			}
		case *pgproto3.Bind:
			c.bound, c.formats = c.texts[m.PreparedStatement], append([]int16(nil), m.ResultFormatCodes...)
			c.say(c.at(c.bound, atExecute), &pgproto3.BindComplete{})
		case *pgproto3.Execute:
			c.execute(c.at(c.bound, atExecute), c.bound, c.formats)
		case *pgproto3.Close:
			c.say(atOther, &pgproto3.CloseComplete{})
		case *pgproto3.Sync:
			c.simply = false
			c.ready(c.last)
			if !c.flush() {
				return
			}
		case *pgproto3.Flush:
			if !c.flush() {
				return
			}
		}
	}
}

// at says which moment of a statement's is meant: scripts have a target, and leave
// others alone.
func (c *serverConn) at(text string, target moment) moment {
	switch {
	case strings.HasPrefix(text, targetText), strings.HasPrefix(text, targetTable):
		return target
	case strings.HasPrefix(text, "BEGIN READ ONLY; SET LOCAL statement_timeout"):
		return atCatalog
	case strings.Contains(text, "set_config('default_transaction_read_only'"):
		return atArm
	case strings.HasPrefix(text, "BEGIN"), strings.HasPrefix(text, "begin"):
		return atBegin
	case strings.HasPrefix(text, "ROLLBACK"), strings.HasPrefix(text, "rollback"):
		return atRollback
	case strings.HasPrefix(text, writeText):
		return atWrite
	case strings.HasPrefix(text, "-- ping"):
		return atPing
	}
	return atOther
}

func (c *serverConn) describe(text string) {
	at := c.at(text, atDescribe)
	c.say(at, &pgproto3.ParameterDescription{})
	c.rowDescriptionAt(at, text, nil)
}

func (c *serverConn) rowDescription(text string, formats []int16) {
	c.rowDescriptionAt(c.at(text, atExecute), text, formats)
}

func (c *serverConn) rowDescriptionAt(at moment, text string, formats []int16) {
	t := c.s.tables[text]
	if t == nil {
		c.say(at, &pgproto3.NoData{})
		return
	}
	m := &pgproto3.RowDescription{}
	for i, col := range t.columns {
		m.Fields = append(m.Fields, pgproto3.FieldDescription{
			Name: []byte(col.name), DataTypeOID: col.oid, DataTypeSize: -1, TypeModifier: -1, Format: formatOf(formats, i),
		})
	}
	c.say(at, m)
}

func formatOf(formats []int16, i int) int16 {
	switch len(formats) {
	case 0:
		return 0
	case 1:
		return formats[0]
	}
	if i >= len(formats) {
		return 0
	}
	return formats[i]
}

// execute answers an Execute, or one statement of a simple query.
func (c *serverConn) execute(at moment, text string, formats []int16) {
	t := c.s.tables[text]
	if t == nil {
		tag := "OK"
		switch at {
		case atBegin:
			tag, c.status = "BEGIN", 'T'
		case atRollback:
			tag, c.status = "ROLLBACK", 'I'
		case atWrite:
			tag = "INSERT 0 1"
		}
		c.say(at, &pgproto3.CommandComplete{CommandTag: []byte(tag)})
		return
	}
	if c.types == nil {
		c.types = pgtype.NewMap()
	}
	for _, row := range t.rows {
		m := &pgproto3.DataRow{Values: make([][]byte, len(row))}
		for i, v := range row {
			m.Values[i] = encode(c.types, t.columns[i].oid, formatOf(formats, i), v)
		}
		c.say(at, m)
	}
	c.say(at, &pgproto3.CommandComplete{CommandTag: []byte(fmt.Sprintf("SELECT %d", len(t.rows)))})
}

func encode(m *pgtype.Map, oid uint32, format int16, v any) []byte {
	if v == nil {
		return nil
	}
	if s, ok := v.(string); ok {
		return []byte(s)
	}
	data, err := m.Encode(oid, format, v, []byte{})
	if err != nil {
		panic(fmt.Sprintf("%d %v: %v", oid, v, err))
	}
	return data
}

// simple answers a simple query.
func (c *serverConn) simple(text string) {
	at := c.at(text, atExecute)
	switch at {
	case atArm:
		direct := !c.s.script.pooler && strings.Contains(text, fmt.Sprintf("pg_backend_pid() OPERATOR(pg_catalog.=) %d ", c.pid))
		if !direct && !strings.Contains(text, "WHEN true") {
			c.cells(at, "set_config", "pooler")
		} else {
			c.cells(at, "set_config", "on")
			c.say(at, &pgproto3.ParameterStatus{Name: "default_transaction_read_only", Value: "on"})
		}
	case atCatalog:
		c.say(at, &pgproto3.CommandComplete{CommandTag: []byte("BEGIN")})
		c.say(at, &pgproto3.CommandComplete{CommandTag: []byte("SET")})
		c.cells(at, "kind oid in name more", catalogRows...)
		c.say(at, &pgproto3.CommandComplete{CommandTag: []byte("ROLLBACK")})
	case atPing:
		c.say(at, &pgproto3.EmptyQueryResponse{})
	default:
		if c.s.tables[text] != nil {
			c.rowDescriptionAt(at, text, nil)
		}
		c.execute(at, text, nil)
	}
	c.ready(at)
}

// cells answers with rows of text.
func (c *serverConn) cells(at moment, names string, cells ...string) {
	columns := strings.Fields(names)
	d := &pgproto3.RowDescription{}
	for _, name := range columns {
		d.Fields = append(d.Fields, pgproto3.FieldDescription{Name: []byte(name), DataTypeOID: pgtype.TextOID, DataTypeSize: -1, TypeModifier: -1})
	}
	c.say(at, d)
	for ; len(cells) > 0; cells = cells[len(columns):] {
		r := &pgproto3.DataRow{}
		for _, cell := range cells[:len(columns)] {
			r.Values = append(r.Values, []byte(cell))
		}
		c.say(at, r)
	}
	c.say(at, &pgproto3.CommandComplete{CommandTag: []byte("SELECT")})
}

// catalogRows are what the catalog query finds in a database with one table.
var catalogRows = []string{
	"v", "0", "0", "150004", "",
	"s", "11", "0", "pg_catalog", "",
	"s", "2200", "0", "public", "",
	"p", "0", "0", "pg_catalog", "",
	"p", "1", "0", "public", "",
	"r", "16384", "2200", "items", "r 16386",
	"r", "16390", "2200", "log", "r 16392",
	"f", "16400", "2200", "f", "f i 1 0 0 0 16386 23",
	"t", "16386", "2200", "items", "c C 0",
	"o", "16410", "2200", "+", "b 23 23 23",
	"e", "16384", "r", "t", "16386",
	"k", "16386", "0", "", "16384 16390",
	"c", "16420", "0", "", "16386 25 i",
}

// Columns that the true answers have, and their values.
var columnKinds = []struct {
	oid   uint32
	value func(r *rand.Rand) any
}{
	{pgtype.Int4OID, func(r *rand.Rand) any { return int32(r.Uint32()) }},
	{pgtype.Int8OID, func(r *rand.Rand) any { return int64(r.Uint64()) }},
	{pgtype.TextOID, func(r *rand.Rand) any { return word(r) }},
	{pgtype.VarcharOID, func(r *rand.Rand) any { return word(r) }},
	{pgtype.BoolOID, func(r *rand.Rand) any { return r.IntN(2) == 0 }},
	{pgtype.ByteaOID, func(r *rand.Rand) any { return []byte(word(r)) }},
	{pgtype.Float8OID, func(r *rand.Rand) any { return r.NormFloat64() }},
	{pgtype.NumericOID, func(r *rand.Rand) any { return fmt.Sprintf("%d.%03d", r.IntN(1e6), r.IntN(1000)) }},
	{pgtype.DateOID, func(r *rand.Rand) any { return time.Date(2000+r.IntN(50), 3, 1, 0, 0, 0, 0, time.UTC) }},
	{pgtype.TimestamptzOID, func(r *rand.Rand) any { return time.Unix(int64(r.IntN(2e9)), 0).UTC() }},
	{pgtype.JSONBOID, func(r *rand.Rand) any { return `{"a": "` + word(r) + `"}` }},
	{pgtype.UUIDOID, func(r *rand.Rand) any { return fmt.Sprintf("00000000-0000-4000-8000-%012d", r.IntN(1e9)) }},
	{pgtype.Int4ArrayOID, func(r *rand.Rand) any { return fmt.Sprintf("{%d,NULL}", r.IntN(100)) }},
	{pgtype.Int4rangeOID, func(r *rand.Rand) any { return fmt.Sprintf("[1,%d)", 2+r.IntN(100)) }},
	{pgtype.InetOID, func(r *rand.Rand) any { return netip.AddrFrom4([4]byte{10, byte(r.IntN(256))}).String() }},
	{987654, func(r *rand.Rand) any { return word(r) }}, // a type that nobody knows
}

func word(r *rand.Rand) string {
	b := make([]byte, r.IntN(12))
	for i := range b {
		b[i] = byte('a' + r.IntN(26))
	}
	return string(b)
}

// randomTable makes a true answer.
func randomTable(r *rand.Rand) *table {
	t := &table{}
	for i := range 1 + r.IntN(4) {
		t.columns = append(t.columns, column{fmt.Sprintf("c%d", i), columnKinds[r.IntN(len(columnKinds))].oid})
	}
	for range r.IntN(6) {
		row := make([]any, len(t.columns))
		for i, c := range t.columns {
			if r.IntN(8) == 0 {
				continue
			}
			for _, k := range columnKinds {
				if k.oid == c.oid {
					row[i] = k.value(r)
				}
			}
		}
		t.rows = append(t.rows, row)
	}
	return t
}
