package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
)

// fault is something that goes wrong with servers and networks.
type fault struct {
	name   string
	weight int
	do     func(s *soak, ctx context.Context, rng *rand.Rand) error
}

// faultCount is how often a fault was made, and how often the rig could not.
type faultCount struct{ made, failed atomic.Int64 }

var faults = []fault{
	{"backends terminated", 30, (*soak).terminate},
	{"connections cut", 15, (*soak).cut},
	{"connections reset", 10, toxic(`{"type": "reset_peer", "stream": "downstream", "attributes": {"timeout": %d}}`, 3)},
	{"results cut short", 15, toxic(`{"type": "limit_data", "stream": "downstream", "attributes": {"bytes": %d}}`, 60_000)},
	{"slow network", 10, toxic(`{"type": "latency", "stream": "downstream", "attributes": {"latency": %d}}`, 400)},
	{"backend stopped", 15, (*soak).freeze},
	{"out of connections", 10, (*soak).burst},
	{"server restarted", 3, (*soak).restart},
	{"server crashed", 2, (*soak).crash},
}

// disturb makes one fault after the other, with calm times between them, until
// stop is closed.
func (s *soak) disturb(stop <-chan struct{}, rng *rand.Rand) {
	ctx := context.Background()
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	for {
		pause := time.Duration((0.3 + rng.ExpFloat64()*0.7) * float64(s.pause))
		if rng.IntN(8) == 0 && s.duration >= time.Minute {
			pause = calmAfter + 2*s.pause
		}
		select {
		case <-stop:
			return
		case <-time.After(pause):
		}
		pick, i := rng.IntN(total), 0
		for ; pick >= faults[i].weight; i++ {
			pick -= faults[i].weight
		}
		s.judge.fault(true)
		bounded, cancel := context.WithTimeout(ctx, patience)
		err := faults[i].do(s, bounded, rng)
		cancel()
		s.judge.fault(false)
		s.faulted[i].made.Add(1)
		if err != nil && !errors.Is(err, errors.ErrUnsupported) {
			s.faulted[i].failed.Add(1)
			fmt.Fprintf(s.out, "soak: fault %q: %v\n", faults[i].name, err)
		}
	}
}

// hold lets a fault last.
func hold(rng *rand.Rand, most time.Duration) {
	time.Sleep(time.Duration((0.1 + 0.9*rng.Float64()) * float64(most))) // how long a fault lasts; nothing hangs on it
}

// terminate ends some backends, at times all.
func (s *soak) terminate(ctx context.Context, rng *rand.Rand) error {
	n := 1 + rng.IntN(4)
	if rng.IntN(5) == 0 {
		n = connections
	}
	return s.admin(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, `SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE usename = $1 ORDER BY random() LIMIT $2) AS victims`, role, n)
		return err
	})
}

// cut stops a proxy for a moment: all its connections are closed, and new ones
// refused.
func (s *soak) cut(_ context.Context, rng *rand.Rand) error {
	p := s.proxies[rng.IntN(len(s.proxies))]
	p.Stop()
	hold(rng, time.Second)
	var err error
	for range 100 { // somebody may have its port
		if err = p.Start(); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond) // nothing tells: polling
	}
	return err
}

// toxic returns a fault of a network, with a number up to most in it.
func toxic(format string, most int) func(*soak, context.Context, *rand.Rand) error {
	return func(s *soak, ctx context.Context, rng *rand.Rand) error {
		p := s.proxies[rng.IntN(len(s.proxies))]
		t, err := p.Toxics.AddToxicJson(strings.NewReader(fmt.Sprintf(format, rng.IntN(most))))
		if err != nil {
			return err
		}
		hold(rng, 2*time.Second)
		return p.Toxics.RemoveToxic(ctx, t.Name)
	}
}

// freeze stops a backend, as a machine without memory does, and lets it go on.
func (s *soak) freeze(ctx context.Context, rng *rand.Rand) error {
	if s.server.PID() == 0 {
		return fmt.Errorf("%w: not a server of ours", errors.ErrUnsupported)
	}
	var pid int
	err := s.admin(ctx, func(conn *pgx.Conn) error {
		return conn.QueryRow(ctx, `SELECT pid FROM pg_stat_activity WHERE usename = $1 ORDER BY state = 'active' DESC, random() LIMIT 1`, role).Scan(&pid)
	})
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		return err
	}
	hold(rng, 2*time.Second)
	return syscall.Kill(pid, syscall.SIGCONT)
}

// burst takes all connections that the server has left.
func (s *soak) burst(ctx context.Context, rng *rand.Rand) error {
	var conns []*pgx.Conn
	defer func() {
		for _, conn := range conns {
			_ = conn.Close(ctx)
		}
	}()
	for {
		conn, err := pgx.Connect(ctx, s.direct.String())
		if err != nil {
			break // full
		}
		conns = append(conns, conn)
	}
	hold(rng, 2*time.Second)
	return nil
}

func (s *soak) restart(ctx context.Context, _ *rand.Rand) error { return s.server.Restart(ctx) }

// crash kills the server's backends with it, and starts it again.
func (s *soak) crash(ctx context.Context, rng *rand.Rand) error {
	if err := s.server.Crash(ctx, syscall.SIGQUIT); err != nil {
		return err
	}
	hold(rng, time.Second)
	return s.server.Restart(ctx)
}
