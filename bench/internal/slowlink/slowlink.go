// Package slowlink is a network with a delay: a TCP proxy on loopback that hands
// on whatever it reads a fixed time later, in each direction.
//
// The delay is a line, not a sleep for each read: what comes in the meantime is
// taken in and delayed by as much, so order and bandwidth stay as they were. One
// thread keeps the time for all connections.
package slowlink

import (
	"errors"
	"net"
	"runtime"
	"sync"
	"time"
)

// Link is a proxy.
type Link struct {
	to    string
	delay time.Duration
	l     net.Listener
	line  chan parcel // all connections' parcels, in the order in which they are due

	closing chan struct{}
	running sync.WaitGroup

	mu     sync.Mutex // guards conns
	conns  map[net.Conn]bool
	closed bool
}

// parcel is something that was read, on its way.
type parcel struct {
	due  time.Time
	data []byte // nil: the end
	to   chan []byte
}

const (
	chunk    = 64 << 10 // how much is read at a time, at most
	capacity = 1 << 10  // of the line and of each connection, in parcels: far more than a delay's worth
)

// Listen starts a proxy to an address on a loopback port of its own.
func Listen(to string, delay time.Duration) (*Link, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	k := &Link{
		to:      to,
		delay:   delay,
		l:       l,
		line:    make(chan parcel, capacity),
		closing: make(chan struct{}),
		conns:   make(map[net.Conn]bool),
	}
	k.running.Go(k.accept)
	k.running.Go(k.keepTime)
	return k, nil
}

// Addr returns the address to connect to.
func (k *Link) Addr() string { return k.l.Addr().String() }

// Close closes all connections and waits until nothing of the proxy runs.
func (k *Link) Close() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return nil
	}
	k.closed = true
	close(k.closing)
	for c := range k.conns {
		_ = c.Close()
	}
	k.mu.Unlock()
	err := k.l.Close()
	k.running.Wait()
	return err
}

// add takes a connection in. It reports false after Close.
func (k *Link) add(c net.Conn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		_ = c.Close()
		return false
	}
	k.conns[c] = true
	return true
}

func (k *Link) remove(c net.Conn) {
	_ = c.Close()
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.conns, c)
}

func (k *Link) accept() {
	for {
		c, err := k.l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // of that connection
		}
		k.running.Go(func() { k.serve(c) })
	}
}

func (k *Link) serve(client net.Conn) {
	if !k.add(client) {
		return
	}
	defer k.remove(client)
	server, err := net.Dial("tcp", k.to)
	if err != nil || !k.add(server) {
		return
	}
	defer k.remove(server)
	var both sync.WaitGroup
	both.Go(func() { k.carry(server, client) })
	both.Go(func() { k.carry(client, server) })
	both.Wait()
}

// carry takes what comes from one side to the other, until that ends.
func (k *Link) carry(to, from net.Conn) {
	out := make(chan []byte, capacity)
	var writer sync.WaitGroup
	writer.Go(func() { k.write(to, from, out) })
	defer writer.Wait()
	buf := make([]byte, chunk)
	for {
		n, err := from.Read(buf)
		if n > 0 && !k.send(append([]byte{}, buf[:n]...), out) {
			return
		}
		if err != nil {
			k.send(nil, out)
			return
		}
	}
}

// send puts something on the line. It reports false after Close.
func (k *Link) send(data []byte, to chan []byte) bool {
	select {
	case k.line <- parcel{time.Now().Add(k.delay), data, to}:
		return true
	case <-k.closing:
		return false
	}
}

// write writes what the line delivers, up to the end.
func (k *Link) write(to, from net.Conn, out chan []byte) {
	for {
		select {
		case data := <-out:
			if data == nil {
				if half, ok := to.(interface{ CloseWrite() error }); ok {
					_ = half.CloseWrite()
				}
				return
			}
			if _, err := to.Write(data); err != nil {
				_ = from.Close() // its end comes down the line
			}
		case <-k.closing:
			return
		}
	}
}

// keepTime hands on each parcel when it is due.
func (k *Link) keepTime() {
	runtime.LockOSThread() // it sleeps, precisely
	precise()
	for {
		select {
		case p := <-k.line:
			sleepUntil(p.due)
			select {
			case p.to <- p.data:
			case <-k.closing:
				return
			}
		case <-k.closing:
			return
		}
	}
}
