package integration

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// deaf is a proxy that can stop to pass on what either side says.
type deaf struct {
	net.Listener
	mu   sync.RWMutex // held by who stops it
	shut atomic.Int64 // connections that were closed
}

func newDeaf(t *testing.T, upstream string) *deaf {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &deaf{Listener: l}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			server, err := net.Dial("tcp", upstream)
			if err != nil {
				_ = client.Close()
				continue
			}
			pass := func(to, from net.Conn) {
				defer to.Close()
				buf := make([]byte, 32<<10)
				for {
					n, err := from.Read(buf)
					d.mu.RLock()
					if n > 0 {
						_, _ = to.Write(buf[:n])
					}
					d.mu.RUnlock()
					if err != nil {
						return
					}
				}
			}
			go pass(client, server)
			go func() {
				pass(server, client)
				d.shut.Add(1)
			}()
		}
	}()
	return d
}

// TestAlone: who reads what nobody else waits for runs his flight himself. He leaves when
// his context ends, though others have come meanwhile, whose read then begins anew; also
// where nothing is heard of the server any more.
func TestAlone(t *testing.T) {
	dsn := pgtest.Database(t)
	setUp(t, dsn)
	upstream, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	const query = "SELECT name FROM items WHERE id = $1"
	read := func(ctx context.Context, db *sql.DB) (name string, err error) {
		err = db.QueryRowContext(ctx, query, 7).Scan(&name)
		return name, err
	}
	// alone opens a database on which the query was read by one caller each time, so
	// that the next one runs it himself.
	alone := func(t *testing.T, dsn string) (db *sql.DB, want string) {
		db = open(t, "flightpg", with(dsn, "flight_executor=generic"))
		loaded(t, db)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 200 {
			if want, err = read(ctx, db); err != nil {
				t.Fatal(err)
			}
		}
		return db, want
	}
	// leads has a caller read who leaves once somebody follows him, or without.
	leads := func(t *testing.T, db *sql.DB, want string, followed bool, stuck func() bool) (follower chan error) {
		ctx, leave := context.WithCancel(t.Context())
		left, begun := make(chan error, 1), flightpg.ReadStats(db)
		go func() {
			_, err := read(ctx, db)
			left <- err
		}()
		until(t, "the leader waits", func() bool { return flightpg.ReadStats(db).Flights == begun.Flights+1 && stuck() })
		follower = make(chan error, 1)
		if followed {
			go func() {
				got, err := read(t.Context(), db)
				if err == nil && got != want {
					err = errors.New(got)
				}
				follower <- err
			}()
			until(t, "somebody follows him", func() bool { return flightpg.ReadStats(db).Joins == begun.Joins+1 })
		}
		leave()
		if err := <-left; !errors.Is(err, context.Canceled) { // what it waits for goes on
			t.Errorf("the leader's error is %v; want that he left", err)
		}
		return follower
	}

	t.Run("locked", func(t *testing.T) {
		for _, followed := range []bool{false, true} {
			db, want := alone(t, dsn)
			lock := connect(t, dsn)
			if _, err := lock.Exec(t.Context(), "BEGIN; LOCK TABLE items"); err != nil {
				t.Fatal(err)
			}
			eye := connect(t, dsn)
			waits := func() bool {
				var n int
				if err := eye.QueryRow(t.Context(), "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'items'::regclass").Scan(&n); err != nil {
					t.Fatal(err)
				}
				return n == 1
			}
			follower := leads(t, db, want, followed, waits)
			if followed {
				until(t, "it is read for who stays", waits)
			} else {
				until(t, "nobody reads any more", func() bool { return !waits() })
			}
			if _, err := lock.Exec(t.Context(), "COMMIT"); err != nil {
				t.Fatal(err)
			}
			if followed {
				if err := <-follower; err != nil {
					t.Errorf("who stayed: %v", err)
				}
			}
			if got, err := read(t.Context(), db); err != nil || got != want {
				t.Errorf("afterwards: %q, %v; want %q", got, err, want)
			}
			if s := flightpg.ReadStats(db); s.Flying != 0 || s.Waiting != 0 || s.BufferedBytes != 0 {
				t.Errorf("Stats = %+v; want nothing left", s)
			}
			_ = db.Close()
		}
	})

	t.Run("silent", func(t *testing.T) {
		for _, followed := range []bool{false, true} {
			d := newDeaf(t, upstream.Host)
			u := *upstream
			u.Host = d.Addr().String()
			db, want := alone(t, u.String())
			d.mu.Lock()
			follower := leads(t, db, want, followed, func() bool { return true })
			d.mu.Unlock()
			if followed {
				if err := <-follower; err != nil {
					t.Errorf("who stayed: %v", err)
				}
			}
			if got, err := read(t.Context(), db); err != nil || got != want {
				t.Errorf("afterwards: %q, %v; want %q", got, err, want)
			}
			_ = db.Close()
		}
	})

	// A result that is too large to be shared is its leader's, whose context ends it.
	t.Run("large", func(t *testing.T) {
		db, _ := alone(t, with(dsn, "flight_max_result=100000"))
		const large = "SELECT repeat(chr(64 + n), 1000) FROM generate_series(1, $1::int) n"
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		rowsOf := func(n int) (*sql.Rows, int, error) {
			rows, err := db.QueryContext(ctx, large, n)
			if err != nil {
				return nil, 0, err
			}
			read := 0
			for read < 100 && rows.Next() {
				read++
			}
			return rows, read, rows.Err()
		}
		for range 40 {
			rows, n, err := rowsOf(20)
			if err != nil || n != 20 {
				t.Fatalf("%d rows, %v; want 20", n, err)
			}
			_ = rows.Close()
		}
		begun := flightpg.ReadStats(db)
		rows, n, err := rowsOf(1_000_000)
		if err != nil || n != 100 {
			t.Fatalf("%d rows, %v; want 100", n, err)
		}
		if s := flightpg.ReadStats(db); s.Overflows != begun.Overflows+1 {
			t.Errorf("Stats = %+v; want that it was streamed", s)
		}
		leave()
		for rows.Next() { // what has come already
			n++
		}
		if err := rows.Err(); !errors.Is(err, context.Canceled) || n >= 1_000_000 {
			t.Errorf("%d rows, %v; want that they end with their reader's context", n, err)
		}
		_ = rows.Close()
		until(t, "nothing is under way", func() bool {
			s := flightpg.ReadStats(db)
			return s.Flying == 0 && s.BufferedBytes == 0
		})
		_ = db.Close()
	})

	// Who follows him has rows of his own then, which do not end when the leader leaves.
	t.Run("large, followed", func(t *testing.T) {
		const large, rowsEach = "SELECT repeat('x', 1000) FROM items, generate_series(1, $1::int)", 200
		count := func(ctx context.Context, db *sql.DB, n int, leave func()) (read int, err error) {
			rows, err := db.QueryContext(ctx, large, n)
			if err != nil {
				return 0, err
			}
			defer rows.Close()
			leave()
			for rows.Next() {
				read++
			}
			return read, rows.Err()
		}
		db := open(t, "flightpg", with(dsn, "flight_executor=generic&flight_max_result=1000000"))
		loaded(t, db)
		lock := connect(t, dsn)
		for i := range 20 {
			for range 40 {
				ctx, cancel := context.WithCancel(t.Context())
				if n, err := count(ctx, db, 1, func() {}); err != nil || n != rowsEach {
					t.Fatalf("%d rows, %v; want %d", n, err, rowsEach)
				}
				cancel()
			}
			begun := flightpg.ReadStats(db)
			if _, err := lock.Exec(t.Context(), "BEGIN; LOCK TABLE items"); err != nil {
				t.Fatal(err)
			}
			n := 100 + i // what was too large for some arguments bypasses for a while
			ctx, leave := context.WithCancel(t.Context())
			var both sync.WaitGroup
			both.Go(func() {
				if n, err := count(ctx, db, n, leave); !errors.Is(err, context.Canceled) {
					t.Errorf("the leader: %d rows, %v; want that he left", n, err)
				}
			})
			until(t, "he leads", func() bool { return flightpg.ReadStats(db).Flights == begun.Flights+1 })
			both.Go(func() {
				if got, err := count(t.Context(), db, n, func() {}); err != nil || got != n*rowsEach {
					t.Errorf("who follows: %d rows, %v; want %d", got, err, n*rowsEach)
				}
			})
			until(t, "somebody follows", func() bool { return flightpg.ReadStats(db).Joins == begun.Joins+1 })
			if _, err := lock.Exec(t.Context(), "COMMIT"); err != nil {
				t.Fatal(err)
			}
			both.Wait()
		}
		_ = db.Close()
	})
}

// TestAlone_Lost: a connection that breaks under a leader who runs his flight himself.
func TestAlone_Lost(t *testing.T) {
	dsn := pgtest.Database(t)
	setUp(t, dsn)
	db := open(t, "flightpg", with(dsn, "flight_executor=generic"))
	loaded(t, db)
	admin := connect(t, dsn)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for i := range 300 {
		var name string
		if err := db.QueryRowContext(ctx, "SELECT name FROM items WHERE id = $1", 7).Scan(&name); err != nil {
			t.Fatalf("read %d: %v (unexpected EOF: %t)", i, err, errors.Is(err, io.ErrUnexpectedEOF))
		}
		if i%50 == 49 {
			if _, err := admin.Exec(ctx, "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// deadlines is a pgx.QueryTracer that counts queries whose context has a deadline.
type deadlines struct{ with, without atomic.Int64 }

func (d *deadlines) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(data.SQL, "SELECT name FROM items") {
		if _, ok := ctx.Deadline(); ok {
			d.with.Add(1)
		} else {
			d.without.Add(1)
		}
	}
	return ctx
}

func (*deadlines) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// TestAlone_Learned: a leader runs his flight himself, under his own context, once the
// text was read by one caller at a time, and no more when it was shared.
func TestAlone_Learned(t *testing.T) {
	dsn := pgtest.Database(t)
	setUp(t, dsn)
	seen := &deadlines{}
	pc := config(t, dsn)
	pc.Tracer = seen
	c, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{})
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	closesAtEnd(t, db)
	loaded(t, db)
	ctx, cancel := context.WithTimeout(t.Context(), time.Hour)
	defer cancel()
	read := func() {
		t.Helper()
		var name string
		if err := db.QueryRowContext(ctx, "SELECT name FROM items WHERE id = $1", 7).Scan(&name); err != nil {
			t.Fatal(err)
		}
	}
	read()
	if n := seen.with.Load(); n != 0 {
		t.Errorf("the first read ran under its caller's context")
	}
	until(t, "a leader runs his flight", func() bool { read(); return seen.with.Load() > 0 })
	// Two callers share a read.
	lock := connect(t, dsn)
	if _, err := lock.Exec(ctx, "BEGIN; LOCK TABLE items"); err != nil {
		t.Fatal(err)
	}
	before := flightpg.ReadStats(db).Joins
	var both sync.WaitGroup
	for range 2 {
		both.Go(read)
	}
	until(t, "they share it", func() bool { return flightpg.ReadStats(db).Joins == before+1 })
	if _, err := lock.Exec(ctx, "COMMIT"); err != nil {
		t.Fatal(err)
	}
	both.Wait()
	own := seen.with.Load()
	for i := range 100 { // texts that are not read again
		if err := db.QueryRowContext(ctx, fmt.Sprintf("SELECT name FROM items WHERE id = %d", 1+i)).Scan(new(string)); err != nil {
			t.Fatal(err)
		}
	}
	if seen.with.Load() == own {
		t.Error("the first read of a text never ran under its caller's context, though nobody shared others")
	}
	with, without := seen.with.Load(), seen.without.Load()
	read()
	if seen.with.Load() != with || seen.without.Load() != without+1 {
		t.Errorf("after a read was shared the next one ran under its caller's context")
	}
}

// slowCancels is a proxy that holds requests to cancel back until it is told to let go.
func slowCancels(t *testing.T, upstream string, letGo <-chan struct{}, came *atomic.Int64) net.Addr {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer client.Close()
				first := make([]byte, 8)
				if _, err := io.ReadFull(client, first); err != nil {
					return
				}
				if binary.BigEndian.Uint32(first[4:]) == 80877102 { // the protocol's code of a CancelRequest
					came.Add(1)
					<-letGo
				}
				server, err := net.Dial("tcp", upstream)
				if err != nil {
					return
				}
				defer server.Close()
				_, _ = server.Write(first)
				go func() {
					_, _ = io.Copy(server, client)
					_ = server.Close()
				}()
				_, _ = io.Copy(client, server)
			}()
		}
	}()
	return l.Addr()
}

// TestAlone_LateCancel: while a request to cancel may still be on its way, nobody gets the
// connection that it is for.
func TestAlone_LateCancel(t *testing.T) {
	upstream, err := url.Parse(pgtest.Database(t))
	if err != nil {
		t.Fatal(err)
	}
	execAll(t, connect(t, upstream.String()), `CREATE FUNCTION slow_pid(seconds float8) RETURNS int LANGUAGE plpgsql STABLE AS $$
		BEGIN PERFORM pg_sleep(seconds); RETURN pg_backend_pid(); END $$`)
	letGo := make(chan struct{})
	u := *upstream
	var requests atomic.Int64
	u.Host = slowCancels(t, upstream.Host, letGo, &requests).String()
	db := open(t, "flightpg", with(u.String(), "flight_executor=generic&flight_conns=1&sslmode=disable&flight_trust_declared=on"))
	loaded(t, db)
	read := func(ctx context.Context, seconds float64) (pid int, err error) {
		err = db.QueryRowContext(ctx, "SELECT slow_pid($1)", seconds).Scan(&pid)
		return pid, err
	}
	var before int
	ctx, leave := context.WithCancel(t.Context())
	defer leave()
	for range 40 {
		if before, err = read(ctx, 0); err != nil {
			t.Fatal(err)
		}
	}
	begun := flightpg.ReadStats(db).Flights
	left := make(chan struct{})
	go func() {
		defer close(left)
		_, _ = read(ctx, 0.005) // it ends by itself, before it is cancelled
	}()
	until(t, "it is under way", func() bool { return flightpg.ReadStats(db).Flights == begun+1 })
	leave()
	<-left
	after, err := read(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	// On a busy machine it may have been left before it was sent, and then nothing is cancelled.
	if after == before && requests.Load() > 0 {
		t.Errorf("the next reader got the connection that is being cancelled")
	}
	close(letGo)
	for range 20 {
		if _, err := read(t.Context(), 0.01); err != nil {
			t.Errorf("a reader without a deadline: %v", err)
		}
	}
}

// bursting is a pgx.QueryTracer that panics at the end of a query.
type bursting struct{ now atomic.Bool }

func (b *bursting) TraceQueryStart(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryStartData) context.Context {
	return ctx
}

func (b *bursting) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {
	if b.now.Load() {
		panic("the tracer's")
	}
}

// TestAlone_LivePanic: what ends live rows with a panic leaves no memory behind.
func TestAlone_LivePanic(t *testing.T) {
	pc := config(t, pgtest.Database(t))
	tracer := &bursting{}
	pc.Tracer = tracer
	c, err := flightpg.NewConnectorWithConfig(pc, flightpg.Config{MaxResult: 100_000})
	if err != nil {
		t.Fatal(err)
	}
	db := sql.OpenDB(c)
	closesAtEnd(t, db)
	loaded(t, db)
	rows, err := db.Query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)")
	if err != nil {
		t.Fatal(err)
	}
	if !rows.Next() || flightpg.ReadStats(db).BufferedBytes == 0 {
		t.Fatalf("%v, Stats = %+v; want rows behind a buffer", rows.Err(), flightpg.ReadStats(db))
	}
	tracer.now.Store(true)
	func() {
		defer func() {
			if recover() == nil {
				t.Error("the tracer did not panic")
			}
		}()
		_ = rows.Close()
	}()
	tracer.now.Store(false)
	if s := flightpg.ReadStats(db); s.BufferedBytes != 0 {
		t.Errorf("Stats = %+v; want no memory held", s)
	}
}

// watched is a context that counts who waits for its end.
type watched struct {
	context.Context
	n atomic.Int64
}

// Value hides the context within, or package context would ask that one.
func (w *watched) Value(any) any { return nil }

// AfterFunc is what package context asks of a context that is not its own.
func (w *watched) AfterFunc(f func()) func() bool {
	w.n.Add(1)
	stop := context.AfterFunc(w.Context, f)
	return func() bool {
		w.n.Add(-1)
		return stop()
	}
}

// TestAlone_Contexts: nothing waits for the end of a reader's context any more when he has
// closed his rows.
func TestAlone_Contexts(t *testing.T) {
	for _, params := range []string{"", "flight_timeout=1m"} {
		db := open(t, "flightpg", with(pgtest.Database(t), "flight_executor=generic&flight_max_result=100000&"+params))
		loaded(t, db)
		parent, cancel := context.WithCancel(t.Context())
		defer cancel()
		ctx := &watched{Context: parent}
		for i := range 60 {
			n := 1
			if i == 50 {
				n = 10_000 // is streamed
			}
			rows, err := db.QueryContext(ctx, "SELECT repeat('x', 1000) FROM generate_series(1, $1::int)", n)
			if err != nil {
				t.Fatal(err)
			}
			for rows.Next() {
			}
			_ = rows.Close()
		}
		if s := flightpg.ReadStats(db); s.Overflows == 0 {
			t.Errorf("Stats = %+v; want one that was streamed", s)
		}
		until(t, params+": nobody waits for the context", func() bool { return ctx.n.Load() == 0 })
	}
}
