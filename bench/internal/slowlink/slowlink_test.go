package slowlink

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a server with one handler for each connection, and returns its
// address.
func serve(t *testing.T, handle func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			handle(c.(*net.TCPConn))
			_ = c.Close()
		}
	}()
	t.Cleanup(func() {
		_ = l.Close()
		<-done
	})
	return l.Addr().String()
}

func listen(t *testing.T, to string, delay time.Duration) *Link {
	t.Helper()
	k, err := Listen(to, delay)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func dial(t *testing.T, addr string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(time.Minute))
	return c.(*net.TCPConn)
}

// TestLink_Bytes: what is sent in pieces of any size arrives whole and in order, in
// both directions, and so does its end.
func TestLink_Bytes(t *testing.T) {
	for _, delay := range []time.Duration{0, 500 * time.Microsecond} {
		addr := serve(t, func(c *net.TCPConn) {
			all, _ := io.ReadAll(c) // up to the client's end
			_, _ = c.Write(all)
		})
		c := dial(t, listen(t, addr, delay).Addr())
		rng := rand.New(rand.NewPCG(1, 2))
		sent := make([]byte, 3<<20)
		for i := range sent {
			sent[i] = byte(rng.Uint32())
		}
		for rest := sent; len(rest) > 0; {
			n := min(1+rng.IntN(100_000), len(rest))
			if _, err := c.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := c.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || !bytes.Equal(got, sent) {
			t.Errorf("delay %v: %d bytes came back of %d, equal: %v, %v", delay, len(got), len(sent), bytes.Equal(got, sent), err)
		}
	}
}

// TestLink_Delay: nothing arrives before its time, in any direction.
func TestLink_Delay(t *testing.T) {
	const delay = 2 * time.Millisecond
	addr := serve(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	c := dial(t, listen(t, addr, delay).Addr())
	buf := make([]byte, 1)
	for range 20 {
		start := time.Now()
		if _, err := c.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, buf); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took < 2*delay { // less is impossible; more is the machine's
			t.Errorf("there and back in %v; want at least %v", took, 2*delay)
		}
	}
}

// TestLink_Line: the delay does not add up over what is sent meanwhile. Were there a
// sleep for each piece, this would take far longer than the test may.
func TestLink_Line(t *testing.T) {
	const pieces, delay = 400, 300 * time.Millisecond
	addr := serve(t, func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
	c := dial(t, listen(t, addr, delay).Addr())
	_ = c.SetNoDelay(true)
	for i := range pieces {
		if _, err := c.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Microsecond) // so that they are read one by one
	}
	got := make([]byte, pieces)
	if _, err := io.ReadFull(c, got); err != nil { // dial's deadline is a minute: half of what sleeps would take
		t.Fatal(err)
	}
	for i := range got {
		if got[i] != byte(i) {
			t.Fatalf("piece %d is %d", i, got[i])
		}
	}
}

// TestLink_Ends: either side's end reaches the other, and Close ends everything.
func TestLink_Ends(t *testing.T) {
	addr := serve(t, func(*net.TCPConn) {}) // closes at once
	k := listen(t, addr, time.Millisecond)
	c := dial(t, k.Addr())
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("Read = %v; want io.EOF", err)
	}

	held := make(chan struct{})
	defer close(held)
	k = listen(t, serve(t, func(*net.TCPConn) { <-held }), time.Millisecond)
	c = dial(t, k.Addr())
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a read succeeded after Close")
	}
}

func TestLink_NobodyThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	_ = l.Close()
	c := dial(t, listen(t, addr, 0).Addr())
	if _, err := c.Read(make([]byte, 1)); err == nil {
		t.Error("a read succeeded though nobody listens")
	}
}
