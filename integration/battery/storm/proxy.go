package main

import (
	"net"
	"sync"
	"time"
)

// proxy is a network between the callers and the server. What the battery has from
// toxiproxy drops the bytes of a connection that stalls, and knows no connection
// that is accepted and never answered; this one keeps them.
type proxy struct {
	listener net.Listener
	upstream string
	done     sync.WaitGroup

	mu     sync.Mutex // guards the rest
	closed bool
	links  map[*link]struct{}
	flow   chan struct{} // closed: bytes pass
	answer chan struct{} // closed: new connections are led to the server
	slow   bool
}

// link is one connection through the proxy.
type link struct {
	client, server *net.TCPConn
	answer         chan struct{} // the proxy's when it was accepted
}

// passing is what flow and answer are in good weather.
var passing = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

func newProxy(upstream string) (*proxy, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, upstream: upstream, links: make(map[*link]struct{}), flow: passing, answer: passing}
	p.done.Go(p.accept)
	return p, nil
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return
		}
		l := &link{client: conn.(*net.TCPConn)}
		p.mu.Lock()
		if p.closed {
			p.mu.Unlock()
			conn.Close()
			return
		}
		p.links[l] = struct{}{}
		l.answer = p.answer
		p.mu.Unlock()
		p.done.Go(func() { p.serve(l) })
	}
}

func (p *proxy) serve(l *link) {
	defer p.drop(l, false)
	<-l.answer
	conn, err := net.Dial("tcp", p.upstream)
	if err != nil {
		return
	}
	p.mu.Lock()
	_, there := p.links[l]
	l.server = conn.(*net.TCPConn)
	p.mu.Unlock()
	if !there {
		conn.Close()
		return
	}
	p.done.Go(func() { p.pump(l, l.server, l.client) })
	p.pump(l, l.client, l.server)
}

// Of a slow network: so many bytes at a time, and a rest after each.
const (
	slowBytes = 512
	slowRest  = time.Millisecond
)

// pump passes on what src sends.
func (p *proxy) pump(l *link, dst, src *net.TCPConn) {
	defer p.drop(l, false)
	buf := make([]byte, 16<<10)
	for {
		p.mu.Lock()
		slow := p.slow
		p.mu.Unlock()
		piece := buf
		if slow {
			piece = buf[:slowBytes]
		}
		n, err := src.Read(piece)
		p.mu.Lock()
		flow := p.flow
		p.mu.Unlock()
		<-flow
		if n > 0 {
			if _, err := dst.Write(piece[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
		if slow && n == slowBytes {
			time.Sleep(slowRest) // how slow it is
		}
	}
}

// drop ends a connection: in order, or by a reset.
func (p *proxy) drop(l *link, reset bool) {
	p.mu.Lock()
	_, there := p.links[l]
	delete(p.links, l)
	server := l.server
	p.mu.Unlock()
	if !there {
		return
	}
	if reset {
		_ = l.client.SetLinger(0)
	}
	l.client.Close()
	if server != nil {
		server.Close()
	}
}

// reset ends all connections by a reset.
func (p *proxy) reset() {
	p.mu.Lock()
	var links []*link
	for l := range p.links {
		links = append(links, l)
	}
	p.mu.Unlock()
	for _, l := range links {
		p.drop(l, true)
	}
}

// stall holds all bytes back until the returned function is called.
func (p *proxy) stall() (release func()) {
	c := make(chan struct{})
	p.mu.Lock()
	p.flow = c
	p.mu.Unlock()
	return func() {
		p.mu.Lock()
		p.flow = passing
		p.mu.Unlock()
		close(c)
	}
}

// silence lets new connections wait: until answer is called those to come, and until
// end is called those that wait by then, which are led to the server then, or closed.
func (p *proxy) silence() (answer func(), end func(closing bool)) {
	c := make(chan struct{})
	p.mu.Lock()
	p.answer = c
	p.mu.Unlock()
	answer = func() {
		p.mu.Lock()
		p.answer = passing
		p.mu.Unlock()
	}
	return answer, func(closing bool) {
		answer()
		p.mu.Lock()
		var waiting []*link
		for l := range p.links {
			if l.answer == c {
				waiting = append(waiting, l)
			}
		}
		p.mu.Unlock()
		if closing {
			for _, l := range waiting {
				p.drop(l, false)
			}
		}
		close(c)
	}
}

// setSlow makes the network slow, with small buffers, or as it was.
func (p *proxy) setSlow(slow bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slow = slow
	if !slow {
		return
	}
	for l := range p.links {
		for _, c := range []*net.TCPConn{l.client, l.server} {
			if c != nil {
				_, _ = c.SetReadBuffer(4<<10), c.SetWriteBuffer(4<<10)
			}
		}
	}
}

// stop closes everything, and waits for it. No bytes may be held back.
func (p *proxy) stop() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.listener.Close()
	p.reset()
	p.done.Wait()
}
