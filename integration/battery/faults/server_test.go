package faults

import (
	"context"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// How many callers read and write in most of the tests.
const readers, writers = 24, 8

// TestCalm is the load without a fault: no caller sees an error but its own.
func TestCalm(t *testing.T) {
	w := newWorld(t, pgtest.Shared(t), "without a fault, no error")
	w.open(w.direct)
	w.start(readers, writers)
	w.rounds(battery.N(3, 10), func(*rand.Rand) { w.progress(battery.N[int64](100, 1000), patience) })
	w.finish()
}

// TestTerminateBackend ends the sessions of random connections, as administrators
// and poolers do.
func TestTerminateBackend(t *testing.T) {
	w := newWorld(t, pgtest.Shared(t), "terminated backends", "57P01", "EOF", "reset", "pipe", "closed", badConn+lasting)
	w.open(w.direct)
	w.start(readers, writers)
	ended := int64(0)
	w.rounds(battery.Quick(2, battery.N(3, 60)), func(r *rand.Rand) {
		for range 10 {
			n := w.number(`SELECT count(pg_terminate_backend(pid)) FROM (SELECT pid FROM pg_stat_activity
				WHERE datname = current_database() AND application_name = 'faults' ORDER BY random() LIMIT $1) b`, 1+r.IntN(4))
			ended += max(n, 0)
			w.progress(20, time.Second)
		}
	})
	w.report.Set("terminated", ended)
	w.finish()
}

// durable are settings of servers that crash: those of pgtest's servers may lose
// what was acknowledged. The operating system does not crash: no fsync.
var durable = []pgtest.Option{
	pgtest.WithSetting("synchronous_commit", "on"),
	pgtest.WithSetting("full_page_writes", "on"),
	pgtest.WithSetting("log_min_messages", "fatal"),
}

// down are the errors that a crash or a restart explains.
var down = []string{
	"57P01", "57P02", "57P03", "connect 57P01", "connect 57P02", "connect 57P03",
	"EOF", "reset", "pipe", "closed", badConn + lasting, "connect EOF", "connect reset", "connect refused", "connect pipe",
}

// TestRestart stops the server and starts it again: in order, at once, and killed.
func TestRestart(t *testing.T) {
	server := pgtest.New(t, durable...)
	if server.PID() == 0 {
		t.Skip("NOT RUN: it needs a server from PostgreSQL's programs on this machine")
	}
	for _, tc := range []struct {
		name   string
		signal os.Signal
	}{{"Fast", syscall.SIGINT}, {"Immediate", syscall.SIGQUIT}, {"Kill", syscall.SIGKILL}} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, server, "server restart: "+tc.name, down...)
			w.open(w.direct)
			w.start(readers, writers)
			w.rounds(battery.N(1, 6), func(r *rand.Rand) {
				if err := server.Crash(t.Context(), tc.signal); err != nil {
					t.Fatal(err)
				}
				w.progress(200, time.Duration(r.IntN(500))*time.Millisecond)
				if err := server.Restart(t.Context()); err != nil {
					t.Fatal(err)
				}
			})
			w.finish()
		})
	}
}

// backends returns the processes of random connections of the handles.
func (w *world) backends(n int) (pids []int) {
	_ = w.try(func(conn *pgx.Conn) error {
		rows, err := conn.Query(context.Background(), `SELECT pid FROM pg_stat_activity
			WHERE datname = current_database() AND application_name = 'faults' ORDER BY random() LIMIT $1`, n)
		if err != nil {
			return err
		}
		pids, err = pgx.CollectRows(rows, pgx.RowTo[int])
		return err
	})
	return pids
}

// TestKillBackend kills the process of a session, upon which PostgreSQL ends all
// others and recovers.
func TestKillBackend(t *testing.T) {
	server := pgtest.New(t, durable...)
	if server.PID() == 0 {
		t.Skip("NOT RUN: it needs a server from PostgreSQL's programs on this machine")
	}
	w := newWorld(t, server, "killed backends", down...)
	w.open(w.direct)
	w.start(readers, writers)
	w.rounds(battery.Quick(1, battery.N(2, 15)), func(*rand.Rand) {
		w.until("a backend to kill", func() bool {
			pids := w.backends(1)
			return len(pids) == 1 && syscall.Kill(pids[0], syscall.SIGKILL) == nil
		})
		w.progress(100, time.Second)
	})
	w.finish()
}

// TestStopBackend stops the processes of some sessions for a while, as a swapping
// or paused machine does, and lets them go on.
func TestStopBackend(t *testing.T) {
	server := pgtest.New(t, durable...)
	if server.PID() == 0 {
		t.Skip("NOT RUN: it needs a server from PostgreSQL's programs on this machine")
	}
	w := newWorld(t, server, "stopped backends")
	w.open(w.direct)
	w.start(readers, writers)
	stopped := 0
	w.rounds(battery.Quick(2, battery.N(4, 60)), func(r *rand.Rand) {
		pids := w.backends(1 + r.IntN(6))
		for _, pid := range pids {
			if syscall.Kill(pid, syscall.SIGSTOP) == nil { // else it has ended
				stopped++
			}
		}
		w.progress(100, time.Duration(r.IntN(300))*time.Millisecond) // where one holds a lock, all wait
		for _, pid := range pids {
			_ = syscall.Kill(pid, syscall.SIGCONT)
		}
	})
	w.report.Set("stopped", stopped)
	w.finish()
}
