//go:build unix

package integration

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/flightpg/flightpg"
)

// Reads that write, which no rule sees where declarations are believed: the views'
// functions are STABLE by their own account.
const writingViews = `
CREATE TABLE written (n int);
CREATE FUNCTION write_row() RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN
	INSERT INTO written VALUES (1);
	RETURN 42;
END $$;
CREATE FUNCTION write_locked() RETURNS int LANGUAGE plpgsql VOLATILE AS $$ BEGIN
	PERFORM pg_advisory_lock(1); -- of the session: a rollback does not release it
	INSERT INTO written VALUES (1);
	PERFORM pg_advisory_unlock(1);
	RETURN 42;
END $$;
CREATE FUNCTION row_stable() RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN write_row(); END $$;
CREATE FUNCTION locked_stable() RETURNS int LANGUAGE plpgsql STABLE AS $$ BEGIN RETURN write_locked(); END $$;
CREATE VIEW v_writes AS SELECT v, row_stable() AS got FROM gate;
CREATE VIEW v_locks_and_writes AS SELECT v, locked_stable() AS got FROM gate;
`

// TestRefused lets many callers share a read that turns out to write. The server
// refuses it, and every caller runs it, once.
func TestRefused(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		g := newGate(t, dsn)
		g.exec(writingViews)
		for _, tc := range []struct {
			name     string
			poolMode string // "": none
			size     int
			params   string
		}{
			{"Direct", "", 0, ""},
			{"Direct/exec", "", 0, "default_query_exec_mode=exec"},
			{"Direct/simple_protocol", "", 0, "default_query_exec_mode=simple_protocol"},
			{"Direct/flight_guard=transaction", "", 0, "flight_guard=transaction"},
			{"pool_mode=transaction/size=4/exec", "transaction", 4, "default_query_exec_mode=exec"},
			{"pool_mode=transaction/size=4/cache_describe", "transaction", 4, "default_query_exec_mode=cache_describe"},
			{"pool_mode=transaction/size=4/simple_protocol", "transaction", 4, "default_query_exec_mode=simple_protocol"},
			{"pool_mode=transaction/size=1/exec", "transaction", 1, "default_query_exec_mode=exec"},
			{"pool_mode=session/size=40", "session", 40, ""},
		} {
			t.Run(tc.name, func(t *testing.T) {
				to := dsn
				if tc.poolMode != "" {
					// Round robin: what follows a flight runs on another server
					// connection, as it may under load.
					to = pgBouncer(t, dsn, tc.poolMode, tc.size, "server_round_robin = 1")
					leftNothing(t, to, tc.size, g.eye, g.conn) // opens all of them
				}
				for _, view := range []string{"v_writes", "v_locks_and_writes"} {
					t.Run(view, func(t *testing.T) {
						refuse(t, g, with(to, tc.params), "SELECT v, got FROM "+view+" WHERE v = $1")
						if tc.poolMode == "transaction" {
							leftNothing(t, to, tc.size, g.eye, g.conn)
						}
					})
				}
			})
		}
	})
}

func refuse(t *testing.T, g *gate, dsn, query string) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	g.exec("TRUNCATE written")
	db := open(t, "flightpg", with(dsn, "flight_trust_declared=on"))
	read := func() {
		var v, got int
		if err := db.QueryRowContext(ctx, query, 1).Scan(&v, &got); err != nil || v != 1 || got != 42 {
			t.Errorf("read = %d, %d, %v; want 1, 42", v, got, err)
		}
	}
	written := func() (n int) {
		t.Helper()
		if err := g.eye.QueryRow(context.Background(), "SELECT count(*) FROM written").Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}

	const callers = 20
	g.shut()
	var wg sync.WaitGroup
	for range callers {
		wg.Go(read)
	}
	until(t, "the callers share a flight", func() bool { return flightpg.ReadStats(db).Waiting == callers && g.waiting() == 1 })
	g.open()
	wg.Wait()
	if n := written(); n != callers {
		t.Errorf("%d rows written by %d callers; want one each", n, callers)
	}
	s := flightpg.ReadStats(db)
	if s.Flights != 1 || s.Joins != callers-1 || s.Refused != 1 || s.Bypasses[flightpg.ReasonRefused] != callers {
		t.Errorf("Stats = %+v; want one flight of %d, refused", s, callers)
	}

	read() // by itself, from now on
	if n := written(); n != callers+1 {
		t.Errorf("%d rows written after another call; want %d", n, callers+1)
	}
	if s := flightpg.ReadStats(db); s.Flights != 1 || s.Refused != 1 || s.Bypasses[flightpg.ReasonRefused] != callers+1 {
		t.Errorf("Stats = %+v; want the statement remembered", s)
	}
	until(t, "no advisory lock is held", func() bool {
		var n int
		err := g.eye.QueryRow(context.Background(), `SELECT count(*) FROM pg_locks
			WHERE locktype = 'advisory' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())`).Scan(&n)
		if err != nil {
			t.Fatal(fmt.Errorf("pg_locks: %w", err))
		}
		return n == 0
	})
}
