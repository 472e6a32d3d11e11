package faults

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	toxiproxy "github.com/Shopify/toxiproxy/v2"
	"github.com/Shopify/toxiproxy/v2/toxics"
	"github.com/rs/zerolog"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// proxy stands between flightpg and the server.
type proxy struct {
	t *testing.T
	*toxiproxy.Proxy
}

// newProxy starts a proxy to the server of a DSN, and returns the DSN through it.
func newProxy(t *testing.T, dsn string) (*proxy, string) {
	t.Helper()
	u, err := url.Parse(dsn)
	if err != nil {
		t.Fatal(err)
	}
	server := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := &proxy{t, toxiproxy.NewProxy(server, "server", "127.0.0.1:0", u.Host)}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	u.Host = p.Listen // the port stays when the proxy is started again
	return p, u.String()
}

// add makes the network bad: for a part of the connections, both those that there
// are and those to come, if part is less than 1.
func (p *proxy) add(kind, stream string, part float64, attributes map[string]any) (remove func()) {
	p.t.Helper()
	name := fmt.Sprintf("%s_%s", kind, stream)
	config, err := json.Marshal(map[string]any{"name": name, "type": kind, "stream": stream, "toxicity": part, "attributes": attributes})
	if err != nil {
		p.t.Fatal(err)
	}
	if _, err := p.Toxics.AddToxicJson(bytes.NewReader(config)); err != nil {
		p.t.Fatal(err)
	}
	return func() {
		if err := p.Toxics.RemoveToxic(context.Background(), name); err != nil {
			p.t.Error(err)
		}
	}
}

// broken are the errors that a broken connection explains.
var broken = []string{
	"EOF", "reset", "pipe", "closed", badConn + lasting,
	"connect EOF", "connect reset", "connect refused", "connect pipe", "connect closed",
}

// anyStream returns a direction.
func anyStream(r *rand.Rand) string { return []string{"upstream", "downstream"}[r.IntN(2)] }

// TestNetwork cuts, stalls and slows down the connections of the load.
func TestNetwork(t *testing.T) {
	for _, tc := range []struct {
		name   string
		kinds  []string
		rounds int // of the full form
		fault  func(w *world, p *proxy, r *rand.Rand)
	}{
		{"Reset", broken, 40, func(w *world, p *proxy, r *rand.Rand) {
			remove := p.add("reset_peer", anyStream(r), 0.3+0.7*r.Float64(), map[string]any{"timeout": r.IntN(20)})
			w.progress(60, time.Second)
			remove()
		}},
		{"Close", broken, 40, func(w *world, p *proxy, r *rand.Rand) {
			p.Stop()
			w.progress(r.Int64N(60), time.Second)
			if err := p.Start(); err != nil {
				w.Fatal(err)
			}
		}},
		// After so many bytes of the server: in the middle of a handshake, of a
		// message, of a row.
		{"CutDownstream", broken, 80, func(w *world, p *proxy, r *rand.Rand) {
			remove := p.add("limit_data", "downstream", 0.5, map[string]any{"bytes": anyOffset(r)})
			w.progress(60, time.Second)
			remove()
		}},
		{"CutUpstream", broken, 80, func(w *world, p *proxy, r *rand.Rand) {
			remove := p.add("limit_data", "upstream", 0.5, map[string]any{"bytes": anyOffset(r)})
			w.progress(60, time.Second)
			remove()
		}},
		// Nothing comes through any more, but nothing is closed either; in the end
		// all is.
		{"Stall", broken, 40, func(w *world, p *proxy, r *rand.Rand) {
			remove := p.add("timeout", anyStream(r), 0.5+0.5*r.Float64(), map[string]any{"timeout": 0})
			w.progress(60, time.Duration(r.IntN(300))*time.Millisecond)
			remove()
		}},
		{"Latency", nil, 20, func(w *world, p *proxy, r *rand.Rand) {
			remove := p.add("latency", anyStream(r), 0.7, map[string]any{"latency": r.IntN(40), "jitter": 20})
			w.progress(100, 2*time.Second)
			remove()
		}},
		{"Bandwidth", nil, 20, func(w *world, p *proxy, r *rand.Rand) {
			remove := p.add("bandwidth", "downstream", 0.7, map[string]any{"rate": 500 + r.IntN(2000)}) // kB/s
			w.progress(60, 2*time.Second)
			remove()
		}},
		{"Slicer", nil, 20, func(w *world, p *proxy, r *rand.Rand) {
			size := 2 + r.IntN(1000)
			remove := p.add("slicer", "downstream", 1, map[string]any{"average_size": size, "size_variation": size / 2, "delay": 1})
			w.progress(60, 2*time.Second)
			remove()
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, pgtest.Shared(t), "network: "+tc.name, tc.kinds...)
			p, dsn := newProxy(t, w.direct)
			w.open(dsn)
			w.start(readers, writers)
			w.rounds(battery.Quick(1, battery.N(2, tc.rounds)), func(r *rand.Rand) { tc.fault(w, p, r) })
			w.finish(p.Stop)
		})
	}
}

// anyOffset returns a number of bytes, small or large.
func anyOffset(r *rand.Rand) int64 { return r.Int64N(1 << (4 + r.IntN(18))) }

// cut is a toxic that lets so many bytes through and then closes the connection, so
// many times.
type cut struct {
	// Of cuts; toxics are made from JSON.
	ID int `json:"id"`
}

// cuts are what the cuts with these numbers do.
var cuts sync.Map // int: *cutPlan

type cutPlan struct {
	armed atomic.Int64 // counts the times that it was; negative: all goes through
	bytes atomic.Int64 // that come through on each connection
	times atomic.Int64 // that it is still done
	done  atomic.Int64
}

// Pipe implements toxics.Toxic.
func (c *cut) Pipe(stub *toxics.ToxicStub) {
	plan, _ := cuts.Load(c.ID)
	p := plan.(*cutPlan)
	passed, since := int64(0), int64(0)
	for {
		select {
		case <-stub.Interrupt:
			return
		case chunk := <-stub.Input:
			if chunk == nil {
				stub.Close()
				return
			}
			if now := p.armed.Load(); now > 0 {
				if now != since {
					passed, since = 0, now
				}
				left := p.bytes.Load() - passed
				if left < int64(len(chunk.Data)) && p.times.Add(-1) >= 0 {
					chunk.Data = chunk.Data[:max(left, 0)]
					if len(chunk.Data) > 0 {
						stub.Output <- chunk
					}
					p.done.Add(1)
					stub.Close()
					return
				}
				passed += int64(len(chunk.Data))
			}
			stub.Output <- chunk
		}
	}
}

func init() { toxics.Register("cut", new(cut)) }

// TestCut cuts the response to a read at every byte. Cut once, every caller gets its
// rows from a second execution; cut as often as it is tried, every caller gets an
// error. A write that is cut is never made again.
func TestCut(t *testing.T) {
	const callers = 4
	for i, tc := range []struct {
		name, params string
		fresh        int64
	}{
		{"session", "flight_guard=session&flight_max_result=64MB", 0},
		{"transaction", "flight_guard=transaction&flight_max_result=64MB", 0},
		{"live", "flight_max_result=16kB", 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, pgtest.Shared(t), "connections cut at every byte: "+tc.name, broken...)
			p, dsn := newProxy(t, w.direct)
			plans := map[string]*cutPlan{}
			for j, stream := range []string{"downstream", "upstream"} {
				plans[stream] = new(cutPlan)
				id := 2*i + j
				cuts.Store(id, plans[stream])
				p.add("cut", stream, 1, map[string]any{"id": id})
			}
			down := plans["downstream"]
			db, err := sql.Open("flightpg", with(dsn, tc.params))
			if err != nil {
				t.Fatal(err)
			}
			h := &handle{name: tc.name, db: db, fresh: tc.fresh}
			w.add(h)

			// A large result that is streamed has one reader, or the cut would most
			// often be another's, who is not in the flight.
			streamed := func(set int64) bool { return tc.name == "live" && set > 4 }
			read := func(set int64) (oks int) {
				callers := callers
				if streamed(set) {
					callers = 1
				}
				var wg sync.WaitGroup
				var n atomic.Int64
				text := h.text() // all the same
				for range callers {
					wg.Go(func() {
						ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errHangs)
						defer cancel()
						rows, err := db.QueryContext(ctx, text, set)
						if rowsRead, wrong, err := drain(rows, err, set, sizeOf(set)); w.read(ctx, "a read that was cut", rowsRead, wrong, err) {
							n.Add(1)
						}
					})
				}
				wg.Wait()
				return int(n.Load())
			}
			// try does something with what the server sends, or gets, cut after so many
			// bytes, so many times, and reports how often that was.
			armed := int64(0)
			try := func(plan *cutPlan, offset, times int64, do func()) int64 {
				plan.bytes.Store(offset)
				plan.times.Store(times)
				plan.done.Store(0)
				armed++
				plan.armed.Store(armed)
				do()
				plan.armed.Store(-1)
				return plan.done.Load()
			}
			calm := func() {
				if n := read(1); n != callers {
					w.violation("%d of %d callers got their rows though nothing was cut", n, callers)
				}
			}
			calm()

			offsets, once, always, writes := int64(0), 0, 0, 0
			sweep := func(set, from, step int64) {
				for offset := from; ; offset += step {
					calm() // there is an idle connection
					var n int
					done := try(down, offset, 1, func() { n = read(set) })
					if done == 0 {
						return // the response is not that long
					}
					offsets++
					want := callers
					if streamed(set) {
						want = 0 // its rows may have been on their way to the caller
					}
					if once++; n < want {
						w.violation("offset %d of set %d: cut once, and %d of %d callers got rows; want %d, from the second execution", offset, set, n, callers, want)
					}
					if offsets%5 != 0 && !battery.Full() {
						continue
					}
					calm()
					try(down, offset, 1<<40, func() { read(set) })
					always++
				}
			}
			r := battery.Rand(w.seed, 1)
			sweep(1, r.Int64N(battery.N[int64](7, 1)), battery.N[int64](7, 1))
			sweep(11, r.Int64N(97), battery.N[int64](1999, 97))
			if battery.Full() || tc.name == "live" {
				sweep(21, r.Int64N(7919), battery.N[int64](400_003, 17_929))
			}

			// Writes, and what the server gets of them: a commit that has not arrived,
			// and one whose answer has not.
			for _, stream := range []string{"downstream", "upstream"} {
				for _, way := range []int{0, 6, 8} { // Exec, QueryRow and a transaction
					step := battery.N[int64](41, 3)
					for offset := r.Int64N(step); ; offset += step {
						r := battery.Rand(w.seed, 100_000*way+int(offset))
						if err := db.Ping(); err != nil { // there is an idle session
							t.Fatal(err)
						}
						if try(plans[stream], offset, 1, func() { w.write(r, h, way) }) == 0 {
							break
						}
						writes++
					}
				}
			}
			w.report.Set("offsets", offsets)
			w.report.Set("cut once", once)
			w.report.Set("cut each time", always)
			w.report.Set("cut writes", writes)
			if offsets < battery.N[int64](10, 200) || writes < battery.N(10, 200) {
				t.Errorf("%d offsets of reads and %d of writes were cut: too few", offsets, writes)
			}
			w.finish(p.Stop)
		})
	}
}

// TestReadStalled is a read whose connection stalls for good: callers leave when
// their contexts end, and flight_timeout ends it for those whose do not.
func TestReadStalled(t *testing.T) {
	w := newWorld(t, pgtest.Shared(t), "flight_timeout ends a stalled read", "foreign context", "EOF")
	p, dsn := newProxy(t, w.direct)
	db, err := sql.Open("flightpg", with(dsn, "flight_timeout=500ms"))
	if err != nil {
		t.Fatal(err)
	}
	w.add(&handle{name: "timeout", db: db})
	read := func() (int64, string, error) {
		ctx, cancel := context.WithTimeoutCause(context.Background(), patience, errHangs)
		defer cancel()
		rows, err := db.QueryContext(ctx, readSet, 11)
		return drain(rows, err, 11, 100)
	}
	for range 10 {
		w.read(t.Context(), "a read", 100, "", nil)
		if _, wrong, err := read(); wrong != "" || err != nil {
			t.Fatal(wrong, err)
		}
	}
	for range battery.N(2, 10) {
		remove := p.add("timeout", "downstream", 1, map[string]any{"timeout": 0})
		var wg sync.WaitGroup
		for range 20 {
			wg.Go(func() {
				if _, wrong, err := read(); wrong != "" || err == nil || !strings.Contains(err.Error(), "flight_timeout") {
					w.violation("a stalled read = %v %v; want flight_timeout's error", wrong, err)
				}
			})
		}
		wg.Wait()
		remove()
		w.hurt.Add(1)
		w.until("a read after it", func() bool {
			n, wrong, err := read()
			return w.read(t.Context(), "a read", n, wrong, err)
		})
	}
	if s := flightpg.ReadStats(db); s.Joins == 0 {
		t.Errorf("Stats = %+v; want callers that shared a stalled flight", s)
	}
	w.finish(p.Stop)
}
