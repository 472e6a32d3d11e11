package pipeline

import (
	"context"
	"encoding/binary"
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
//	locked R D     one row, after the time D; reads relation R, see lock
//	table [CODE]   a row of the columns that it has at present: the parameter, and which
//	               version of the table it was, see alter; or the error where the
//	               parameter ends in 3
//	number         one row: the parameter, an int8
//	refused CODE   the error, when its parameter is bound
//	literal        a row: the parameter, and how the server read texts when it parsed this
//	               one, see reload
//	big N          N rows of 1,000 bytes and more: the parameter, and padding
//
// What comes behind a text's semicolon is padding.
type script struct {
	mu       sync.Mutex // guards what follows
	conns    map[uint32]*scripted
	all      []*scripted
	ran      map[string]int // executions, by "text parameter"
	failures map[string]int // of "cached"
	columns  int
	refuse   error         // of connecting
	refusing time.Duration // that this takes
	silent   bool          // who connects is not answered
	cuts     bool          // who is to be cancelled has his connection closed, as some proxies do
	delay    time.Duration // of requests to cancel
	deaf     bool          // they have no effect
	lag      time.Duration // of each transaction
	dials    int
	died     int
	dies     int           // the next executions close their connections
	patience time.Duration // of sessions with short timeouts
	unarmed  string        // the error with which timeouts are not set, or ""
	cpu      chan struct{} // holds who has it
	version  int           // of the table
	broken   string        // the error of what was prepared for another version
	reading  int           // of texts: 0 as in the beginning, 1 as after a reload of the configuration
	locks    [relations]relation
	unlocked chan struct{} // closed when any lock has been let go of
	// wrap may change the client's end of each new connection.
	wrap func(n int, c net.Conn) net.Conn

	buffer   int  // of connections, in bytes each way
	buffered bool // the client counts on it
	watch    *sim // sees what happens, or nil
}

// relations is how many there are to lock.
const relations = 3

// relation is one that "locked" reads.
type relation struct {
	readers map[*scripted]struct{} // in a transaction that has read it
	wanted  bool                   // by a stranger, for himself: nobody new may read it
	owned   bool                   // he has it
}

type scripted struct {
	s       *script
	id      uint32
	conn    *pipeEnd
	cancel  chan struct{} // has room for one
	client  *clientView
	timeout time.Duration // of statements, or 0
	running bool          // has s.cpu, until the group ends
	reading int           // of texts, as of the session's last transaction
	tells   bool          // that it has changed, when the transaction ends
	unsent  int           // bytes of rows

	// Guarded by s.mu.
	busy   bool // not between two Syncs, where requests to cancel are ignored
	stmts  map[string]preparedText
	groups [][]string // what each Sync ended, for tests that look
	reads  map[int]struct{}
	ended  bool
	forgot bool // what was prepared, once
}

// preparedText is a prepared statement.
type preparedText struct {
	text    string
	version int // of the table, then
	reading int // of the text
}

func newScript() *script {
	return &script{
		patience: 10 * time.Millisecond, cpu: make(chan struct{}, 1), conns: make(map[uint32]*scripted),
		ran: make(map[string]int), failures: make(map[string]int), columns: 1, buffer: 64 << 10, buffered: true,
	}
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
		if s.watch != nil {
			s.watch.failedDials.Add(1)
		}
		err, after := s.refuse, s.refusing
		s.mu.Unlock()
		time.Sleep(after) // the bubble's time
		s.mu.Lock()
		return nil, err
	}
	if s.dials++; s.watch != nil && s.dials > mostDials {
		s.watch.violate(simDials, "%d connections were opened", s.dials)
		return nil, errors.New("too many")
	}
	ours, theirs := pipe(s.buffer)
	c := &scripted{s: s, id: uint32(s.dials), conn: theirs, cancel: make(chan struct{}, 1), stmts: make(map[string]preparedText)}
	if s.watch != nil {
		c.client = &clientView{sim: s.watch, server: c}
		ours.onWrite = c.client.wrote
	}
	go c.serve()
	if s.wrap != nil {
		return s.wrap(s.dials, ours), nil
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

// mostDials is more than any schedule takes, requests to cancel included.
const mostDials = 1000

var scriptConfig = sync.OnceValues(func() (*pgconn.Config, error) {
	return pgconn.ParseConfig("host=script user=u database=d sslmode=disable connect_timeout=0")
})

func (s *script) connect(ctx context.Context) (*Link, error) {
	config, err := scriptConfig()
	if err != nil {
		return nil, err
	}
	config = config.Copy()
	config.DialFunc = s.dial
	config.LookupFunc = func(context.Context, string) ([]string, error) { return []string{"127.0.0.1"}, nil }
	pg, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	return &Link{
		PgConn: pg, Types: pgtype.NewMap(), Grouped: true, Arm: "arm " + s.patience.String(), Disarm: "disarm", Patience: s.patience,
		buffered: s.buffered,
	}, nil
}

// serve speaks with one client.
func (c *scripted) serve() {
	defer c.conn.Close()
	s := c.s
	b := pgproto3.NewBackend(c.conn, c.conn)
	first, err := b.ReceiveStartupMessage()
	if err != nil {
		return
	}
	if r, ok := first.(*pgproto3.CancelRequest); ok {
		s.mu.Lock()
		delay := s.delay
		s.mu.Unlock()
		time.Sleep(delay) // the bubble's time
		s.mu.Lock()
		defer s.mu.Unlock()
		target := s.conns[r.ProcessID]
		if target == nil || target.ended || s.deaf {
			return
		}
		if s.watch != nil {
			s.watch.requested(target)
		}
		if s.cuts {
			_ = target.conn.Close()
			return
		}
		if target.busy {
			select {
			case target.cancel <- struct{}{}:
			default:
			}
		}
		return
	}
	s.mu.Lock()
	silent := s.silent
	if !silent {
		s.conns[c.id] = c
		s.all = append(s.all, c)
	}
	s.mu.Unlock()
	if silent {
		_, _ = b.Receive()
		if s.watch != nil {
			s.watch.failedDials.Add(1)
		}
		return
	}
	b.Send(&pgproto3.AuthenticationOk{})
	b.Send(&pgproto3.ParameterStatus{Name: "TimeZone", Value: "UTC"})
	b.Send(&pgproto3.BackendKeyData{ProcessID: c.id, SecretKey: []byte{1, 2, 3, 4}})
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if b.Flush() == nil {
		_ = c.loop(b)
	}
	c.leave()
}

// leave ends the session.
func (c *scripted) leave() {
	if c.running {
		<-c.s.cpu
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.ended, c.busy = true, false
	c.unlockLocked()
}

var errDie = errors.New("die")

func (c *scripted) loop(b *pgproto3.Backend) error {
	s := c.s
	var bound preparedText
	var param string
	skip := false
	var group []string
	for {
		msg, err := b.Receive()
		if err != nil {
			return err
		}
		_, isSync := msg.(*pgproto3.Sync)
		if !isSync && !c.busy { // written by this goroutine only
			s.mu.Lock()
			c.busy = true
			c.tells = c.tells || c.reading != s.reading
			c.reading = s.reading
			lag := s.lag
			s.mu.Unlock()
			if lag > 0 {
				time.Sleep(lag) // the bubble's time
			}
		}
		if skip && !isSync {
			continue
		}
		fail := func(code string) {
			skip = true
			b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: code, Message: "script " + code})
		}
		switch msg := msg.(type) {
		case *pgproto3.Terminate:
			return nil
		case *pgproto3.Query: // pgx's Ping, or short timeouts
			c.query(b, msg.String)
			if err := c.ready(b); err != nil {
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
				<-s.cpu
			}
			if len(group) > 0 {
				s.mu.Lock()
				c.groups = append(c.groups, group)
				s.mu.Unlock()
				group = nil
			}
			if err := c.ready(b); err != nil {
				return err
			}
		case *pgproto3.Parse:
			if code := c.parse(msg); code != "" {
				fail(code)
				continue
			}
			b.Send(&pgproto3.ParseComplete{})
		case *pgproto3.Close:
			s.mu.Lock()
			delete(c.stmts, msg.Name)
			s.mu.Unlock()
			b.Send(&pgproto3.CloseComplete{})
		case *pgproto3.Describe:
			s.mu.Lock()
			st := c.stmts[msg.Name]
			s.mu.Unlock()
			b.Send(&pgproto3.ParameterDescription{ParameterOIDs: st.params()})
			b.Send(c.describe(st))
		case *pgproto3.Bind:
			var code string
			if bound, param, code = c.bind(msg); code != "" {
				fail(code)
				continue
			}
			b.Send(&pgproto3.BindComplete{})
		case *pgproto3.Execute:
			what := bound.text + " " + param
			group = append(group, what)
			s.mu.Lock()
			s.ran[what]++
			dies := s.dies > 0
			if dies {
				s.dies--
			}
			s.mu.Unlock()
			if dies {
				return errDie
			}
			code, err := c.execute(b, bound, param, len(group) == 1)
			if s.watch != nil && s.watch.executed(c, param, code, err) > mostTries {
				return errDie // so that it ends
			}
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

// ready ends a transaction.
func (c *scripted) ready(b *pgproto3.Backend) error {
	if c.tells {
		c.tells = false
		b.Send(&pgproto3.ParameterStatus{Name: Meanings[0], Value: strconv.Itoa(c.reading)})
	}
	b.Send(&pgproto3.ReadyForQuery{TxStatus: 'I'})
	c.s.mu.Lock()
	c.unlockLocked()
	c.busy = false
	select { // one that came too late for the last query is forgotten
	case <-c.cancel:
	default:
	}
	c.s.mu.Unlock()
	c.unsent = 0
	return b.Flush()
}

// query answers a simple query.
func (c *scripted) query(b *pgproto3.Backend, text string) {
	word, rest, _ := strings.Cut(text, " ")
	c.s.mu.Lock()
	lag := c.s.lag
	c.s.mu.Unlock()
	late := time.NewTimer(lag) // the bubble's time
	defer late.Stop()
	select {
	case <-late.C:
	case <-c.cancel:
		if c.s.watch != nil {
			if !c.conn.in.hasEnded() {
				c.s.watch.violate(simRequest, "connection %d: a request to cancel hits the setting of timeouts", c.id)
			}
			c.client.unarmed(c.timeout > 0)
		}
		b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: "57014", Message: "script 57014"})
		return
	}
	c.s.mu.Lock()
	unarmed := c.s.unarmed
	c.s.mu.Unlock()
	switch {
	case word == "arm" && unarmed != "":
		if c.s.watch != nil {
			c.client.unarmed(false)
		}
		b.Send(&pgproto3.ErrorResponse{Severity: "ERROR", SeverityUnlocalized: "ERROR", Code: unarmed, Message: "script " + unarmed})
	case word == "arm":
		c.timeout, _ = time.ParseDuration(rest)
		b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SET")})
	case word == "disarm":
		c.timeout = 0
		b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SET")})
	default:
		b.Send(&pgproto3.EmptyQueryResponse{})
	}
}

func (c *scripted) parse(msg *pgproto3.Parse) (code string) {
	s := c.s
	text, _, _ := strings.Cut(msg.Query, ";")
	switch {
	case strings.HasPrefix(text, "undefined"):
		return "42P01"
	case strings.HasPrefix(text, "locked"):
		if code := c.lock(text); code != "" {
			return code
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, taken := c.stmts[msg.Name]; taken && msg.Name != "" {
		if s.watch != nil {
			s.watch.violate(simPrepared, "%s is prepared twice on a connection", msg.Name)
		}
		return "42P05"
	}
	c.stmts[msg.Name] = preparedText{text, s.version, c.reading}
	return ""
}

func (c *scripted) bind(msg *pgproto3.Bind) (st preparedText, param, code string) {
	s := c.s
	s.mu.Lock()
	st, ok := c.stmts[msg.PreparedStatement]
	version, broken := s.version, s.broken
	if broken == "26000" && msg.PreparedStatement == "" {
		broken = "0A000" // the unnamed one is not lost like that
	}
	if ok && st.ofTable() && st.version != version && broken == "26000" {
		delete(c.stmts, msg.PreparedStatement) // it is the first to find out
		c.forgot = true
	}
	s.mu.Unlock()
	word, rest, _ := strings.Cut(st.text, " ")
	switch {
	case !ok:
		return st, "", "26000"
	case word == "table" && st.version != version:
		return st, "", broken
	case word == "refused":
		if s.watch != nil {
			s.watch.executed(c, paramOf(msg, pgtype.TextOID), rest, nil)
		}
		return st, "", rest
	case word == "locked":
		if code := c.lock(st.text); code != "" {
			return st, "", code
		}
	}
	param = paramOf(msg, st.params()[0])
	if st.params()[0] == pgtype.Int8OID && s.watch != nil {
		param = s.watch.encoded(c, param)
	}
	return st, param, ""
}

// paramOf returns the parameter as a text.
func paramOf(msg *pgproto3.Bind, oid uint32) string {
	v := msg.Parameters[0]
	if len(msg.ParameterFormatCodes) > 0 && msg.ParameterFormatCodes[0] == 1 && oid == pgtype.Int8OID && len(v) == 8 {
		return strconv.FormatInt(int64(binary.BigEndian.Uint64(v)), 10)
	}
	return string(v)
}

func (st preparedText) ofTable() bool { return strings.HasPrefix(st.text, "table") }

// params returns the types of its parameters.
func (st preparedText) params() []uint32 {
	if st.text == "number" || st.ofTable() && st.version%2 == 1 {
		return []uint32{pgtype.Int8OID}
	}
	return []uint32{pgtype.TextOID}
}

// alter makes the table another one: what is prepared for it fails with that error
// from now on.
func (s *script) alter(broken string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.broken = broken
}

// lock has a transaction read a relation, as PostgreSQL would: it waits for whoever
// has it for himself, or waits for that.
func (c *scripted) lock(text string) (code string) {
	n, _ := strconv.Atoi(strings.Fields(text)[1])
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.locks[n]
	if _, have := r.readers[c]; have {
		return ""
	}
	var timeout, deadlock <-chan time.Time
	if (r.owned || r.wanted) && c.timeout > 0 {
		t := time.NewTimer(c.timeout / 2)
		defer t.Stop()
		timeout = t.C
	}
	for r.owned || r.wanted {
		if deadlock == nil && len(c.reads) > 0 {
			t := time.NewTimer(deadlockTime)
			defer t.Stop()
			deadlock = t.C
		}
		unlocked := s.unlockedLocked()
		s.mu.Unlock()
		select {
		case <-unlocked:
		case <-c.cancel:
			code = "57014"
		case <-timeout:
			code = "55P03"
		case <-deadlock:
			code = "40P01"
		}
		s.mu.Lock()
		if s.watch != nil && code == "40P01" && s.unarmed == "" {
			s.watch.violate(simStranger, "a group that has locks waits for a stranger")
		}
		if code != "" {
			return code
		}
	}
	if r.readers == nil {
		r.readers = make(map[*scripted]struct{})
	}
	if c.reads == nil {
		c.reads = make(map[int]struct{})
	}
	r.readers[c] = struct{}{}
	c.reads[n] = struct{}{}
	return ""
}

// deadlockTime is PostgreSQL's deadlock_timeout, less because nobody else waits here.
const deadlockTime = 200 * time.Millisecond

// unlockedLocked returns what is closed when a lock is let go of.
func (s *script) unlockedLocked() chan struct{} {
	if s.unlocked == nil {
		s.unlocked = make(chan struct{})
	}
	return s.unlocked
}

func (s *script) changedLocked() {
	if s.unlocked != nil {
		close(s.unlocked)
		s.unlocked = nil
	}
}

// unlockLocked lets go of what a transaction has locked.
func (c *scripted) unlockLocked() {
	if len(c.reads) == 0 {
		return
	}
	for n := range c.reads {
		delete(c.s.locks[n].readers, c)
	}
	clear(c.reads)
	c.s.changedLocked()
}

// stranger takes relations for himself, one after the other, and lets go of them after
// a while. It returns how long he has waited for one, at most, not counting those that
// one on a session without short timeouts read.
func (s *script) stranger(which []int, pause, hold time.Duration) (waited time.Duration) {
	s.mu.Lock()
	for _, n := range which {
		r := &s.locks[n]
		r.wanted = true
		began, excused := time.Now(), false
		for len(r.readers) > 0 {
			for c := range r.readers {
				excused = excused || c.timeout == 0
			}
			unlocked := s.unlockedLocked()
			s.mu.Unlock()
			<-unlocked
			s.mu.Lock()
		}
		if took := time.Since(began); !excused {
			waited = max(waited, took)
		}
		r.owned, r.wanted = true, false
		s.mu.Unlock()
		time.Sleep(pause) // the bubble's time
		s.mu.Lock()
	}
	s.mu.Unlock()
	time.Sleep(hold) // likewise
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range which {
		s.locks[n].owned = false
	}
	s.changedLocked()
	return waited
}

// columnsOf returns how many columns a version of the table has.
func columnsOf(version int) int { return 1 + version%3 }

func (c *scripted) describe(st preparedText) *pgproto3.RowDescription {
	n := 1
	switch {
	case strings.HasPrefix(st.text, "rows"), strings.HasPrefix(st.text, "big"):
		n = 2
	case st.text == "twocolumns":
		c.s.mu.Lock()
		n = c.s.columns
		c.s.mu.Unlock()
	case st.ofTable():
		n = columnsOf(st.version)
	}
	d := &pgproto3.RowDescription{}
	for i := range n {
		d.Fields = append(d.Fields, pgproto3.FieldDescription{Name: []byte("c" + strconv.Itoa(i)), DataTypeOID: pgtype.TextOID, DataTypeSize: -1, TypeModifier: -1})
	}
	return d
}

func (c *scripted) execute(b *pgproto3.Backend, st preparedText, param string, first bool) (code string, err error) {
	row := func(values ...string) {
		m := &pgproto3.DataRow{}
		for _, v := range values {
			m.Values = append(m.Values, []byte(v))
			c.unsent += len(v)
		}
		b.Send(m)
		if c.unsent > 8<<10 {
			c.unsent = 0
			began := time.Now()
			if err = b.Flush(); c.timeout > 0 && time.Since(began) > c.timeout {
				code = "57014" // statement_timeout
			}
		}
	}
	text := st.text
	word, rest, _ := strings.Cut(text, " ")
	select { // it hits whatever runs
	case <-c.cancel:
		return "57014", nil
	default:
	}
	switch word {
	case "echo":
		row(param)
	case "literal":
		row(param + " " + strconv.Itoa(st.reading))
	case "twocolumns":
		row(make([]string, len(c.describe(st).Fields))...)
	case "table":
		if rest != "" && strings.HasSuffix(param, "3") {
			return rest, nil
		}
		values := make([]string, columnsOf(st.version))
		for i := range values {
			values[i] = strconv.Itoa(st.version)
		}
		values[0] = param
		row(values...)
	case "number":
		row(param)
	case "big":
		n, _ := strconv.Atoi(rest)
		for range n {
			if row(param, padding); err != nil || code != "" {
				return code, err
			}
		}
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
	case "sleep", "maybe", "tailed", "locked":
		d, _ := time.ParseDuration(rest)
		if word == "locked" {
			d, _ = time.ParseDuration(strings.Fields(text)[2])
		}
		if word == "tailed" {
			d = 20 * time.Microsecond
			if n, _ := strconv.Atoi(param); n%50 == 0 {
				d = 20 * time.Millisecond
			}
		}
		if word == "maybe" && !strings.HasSuffix(param, "7") {
			d = 0
		}
		over := c.timeout > 0 && d > c.timeout
		if over {
			d = c.timeout
		}
		timer := time.NewTimer(d)
		defer timer.Stop()
		select {
		case <-c.cancel:
			return "57014", nil
		case <-timer.C:
		}
		if over {
			return "57014", nil // statement_timeout
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
		dies := c.s.ran[text+" "+param] == 1
		if dies {
			c.s.died++
		}
		c.s.mu.Unlock()
		if dies {
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
	if err != nil {
		return "", err
	}
	b.Send(&pgproto3.CommandComplete{CommandTag: []byte("SELECT 1")})
	return "", nil
}

var padding = strings.Repeat(".", 1000)

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
