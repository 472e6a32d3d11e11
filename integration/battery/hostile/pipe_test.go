package hostile

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// pipe returns the two ends of a connection in memory. Other than net.Pipe's it has
// a buffer without end, as the kernel's seems to have: a write never waits. All
// waiting is on channels, so that a test in a bubble of testing/synctest passes the
// time that a stalled server takes at once, and notices who waits for ever.
func pipe() (client, server *end) {
	a, b := newBuffer(), newBuffer()
	return &end{r: a, w: b}, &end{r: b, w: a, serves: true}
}

// end is one end of a connection.
type end struct {
	r, w   *buffer
	serves bool
}

type buffer struct {
	mu       sync.Mutex // guards the rest
	data     []byte
	closed   bool
	silent   bool          // nothing will come, unless something is asked
	deadline time.Time     // of reads
	changed  chan struct{} // closed when something of it does
}

func newBuffer() *buffer { return &buffer{changed: make(chan struct{})} }

// change changes the buffer and wakes its reader.
func (b *buffer) change(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f()
	close(b.changed)
	b.changed = make(chan struct{})
}

// Read implements net.Conn.
func (e *end) Read(p []byte) (int, error) {
	b := e.r
	for {
		b.mu.Lock()
		n := copy(p, b.data)
		b.data = b.data[n:]
		closed, silent, deadline, changed := b.closed, b.silent, b.deadline, b.changed
		b.mu.Unlock()
		if n > 0 || closed {
			e.hush(false)
		} else {
			e.hush(true)
		}
		switch {
		case n > 0:
			return n, nil
		case closed:
			return 0, io.EOF
		case silent && !deadline.IsZero():
			return 0, os.ErrDeadlineExceeded // sooner or later
		case deadline.IsZero():
			<-changed
			continue
		}
		left := time.Until(deadline)
		if left <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		timer := time.NewTimer(left)
		select {
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// Write implements net.Conn.
func (e *end) Write(p []byte) (n int, err error) {
	e.w.change(func() {
		if e.w.closed {
			err = io.ErrClosedPipe
			return
		}
		e.w.data = append(e.w.data, p...)
		n = len(p)
	})
	return n, err
}

// hush says that the server waits, and so writes nothing. A deadline of the other
// side's reader then comes at once: database/sql waits for a mutex when a context
// ends while rows are read, and a bubble's time stands still for as long as anybody
// waits for a mutex.
func (e *end) hush(silent bool) {
	if !e.serves {
		return
	}
	e.w.mu.Lock()
	same := e.w.silent == silent
	e.w.mu.Unlock()
	if !same {
		e.w.change(func() { e.w.silent = silent })
	}
}

// pause waits, but not for a reader with a deadline, for the same reason.
func (e *end) pause(d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	for {
		e.w.mu.Lock()
		hurry, changed := e.w.closed || !e.w.deadline.IsZero(), e.w.changed
		e.w.mu.Unlock()
		if hurry {
			return
		}
		select {
		case <-timer.C:
			return
		case <-changed:
		}
	}
}

// Close implements net.Conn. What was written before can still be read.
func (e *end) Close() error {
	e.w.change(func() { e.w.closed = true })
	e.r.change(func() { e.r.closed = true })
	return nil
}

// SetReadDeadline implements net.Conn.
func (e *end) SetReadDeadline(t time.Time) error {
	e.r.change(func() { e.r.deadline = t })
	return nil
}

// SetDeadline implements net.Conn.
func (e *end) SetDeadline(t time.Time) error { return e.SetReadDeadline(t) }

// SetWriteDeadline implements net.Conn.
func (e *end) SetWriteDeadline(time.Time) error { return nil }

// LocalAddr implements net.Conn.
func (e *end) LocalAddr() net.Addr { return addr{} }

// RemoteAddr implements net.Conn.
func (e *end) RemoteAddr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "tcp" }
func (addr) String() string  { return "127.0.0.1:1" }
