package pipeline

import (
	"io"
	"net"
	"os"
	"sync"
	"time"
)

// pipe returns the two ends of a connection in memory. Unlike net.Pipe's it has
// buffers, of limit bytes in each direction, and a write blocks when its own is full.
func pipe(limit int) (client, server *pipeEnd) {
	up, down := &stream{limit: limit}, &stream{limit: limit}
	return &pipeEnd{in: down, out: up}, &pipeEnd{in: up, out: down}
}

// pipeEnd is one end of it.
type pipeEnd struct {
	in, out *stream
	onWrite func([]byte) // sees what is written, before the other side does; may be nil
}

// stream is one direction.
type stream struct {
	limit int

	mu            sync.Mutex // guards what follows
	buf           []byte
	off           int  // what is read of it
	ended         bool // by the writer
	gone          bool // the reader is
	readDeadline  time.Time
	writeDeadline time.Time
	changed       chan struct{} // closed when something has; nil: nobody waits
}

// change lets those who wait look again.
func (s *stream) change() {
	if s.changed != nil {
		close(s.changed)
		s.changed = nil
	}
}

// wait waits until something changes, or the deadline.
func (s *stream) wait(deadline time.Time) error {
	if s.changed == nil {
		s.changed = make(chan struct{})
	}
	changed := s.changed
	if deadline.IsZero() {
		s.mu.Unlock()
		<-changed
		s.mu.Lock()
		return nil
	}
	left := time.Until(deadline)
	if left <= 0 {
		return os.ErrDeadlineExceeded
	}
	s.mu.Unlock()
	timer := time.NewTimer(left)
	select {
	case <-changed:
	case <-timer.C:
	}
	timer.Stop()
	s.mu.Lock()
	return nil
}

func (s *stream) read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.gone:
			return 0, net.ErrClosed
		case !s.readDeadline.IsZero() && !time.Now().Before(s.readDeadline):
			return 0, os.ErrDeadlineExceeded
		case s.off < len(s.buf):
			n := copy(b, s.buf[s.off:])
			if s.off += n; s.off == len(s.buf) {
				s.buf, s.off = s.buf[:0], 0
			}
			s.change()
			return n, nil
		case s.ended:
			return 0, io.EOF
		}
		if err := s.wait(s.readDeadline); err != nil {
			return 0, err
		}
	}
}

func (s *stream) write(b []byte) (n int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for {
		switch {
		case s.ended:
			return n, net.ErrClosed
		case s.gone:
			return n, io.ErrClosedPipe
		case !s.writeDeadline.IsZero() && !time.Now().Before(s.writeDeadline):
			return n, os.ErrDeadlineExceeded
		}
		if room := s.limit - (len(s.buf) - s.off); room > 0 {
			m := min(room, len(b)-n)
			s.buf = append(s.buf, b[n:n+m]...)
			n += m
			s.change()
		}
		if n == len(b) {
			return n, nil
		}
		if err := s.wait(s.writeDeadline); err != nil {
			return n, err
		}
	}
}

func (s *stream) set(what *time.Time, t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	*what = t
	s.change()
}

// hasEnded reports whether its writer has closed it.
func (s *stream) hasEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

func (e *pipeEnd) Read(b []byte) (int, error) { return e.in.read(b) }

func (e *pipeEnd) Write(b []byte) (int, error) {
	if e.onWrite != nil {
		e.onWrite(b)
	}
	return e.out.write(b)
}

// Close lets the other side read what has been written.
func (e *pipeEnd) Close() error {
	for _, s := range []*stream{e.in, e.out} {
		s.mu.Lock()
		if s == e.in {
			s.gone = true
		} else {
			s.ended = true
		}
		s.change()
		s.mu.Unlock()
	}
	return nil
}

func (e *pipeEnd) SetReadDeadline(t time.Time) error {
	e.in.set(&e.in.readDeadline, t)
	return nil
}

func (e *pipeEnd) SetWriteDeadline(t time.Time) error {
	e.out.set(&e.out.writeDeadline, t)
	return nil
}

func (e *pipeEnd) SetDeadline(t time.Time) error {
	_ = e.SetReadDeadline(t)
	return e.SetWriteDeadline(t)
}

func (*pipeEnd) LocalAddr() net.Addr  { return pipeAddr{} }
func (*pipeEnd) RemoteAddr() net.Addr { return pipeAddr{} }

type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }
