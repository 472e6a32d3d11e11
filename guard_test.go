package flightpg

import (
	"testing"

	"github.com/flightpg/flightpg/internal/pgtest"
)

// A session looks at its settings when the server has told of one since it looked, and
// only then.
func TestSilent(t *testing.T) {
	db, err := OpenDB(pgtest.Database(t), Config{Executor: ExecutorGeneric})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	if err := db.Ping(); err != nil {
		t.Fatal(err)
	}
	c, _ := connectorOf(db)
	for _, tc := range []struct {
		name, text        string
		silent, armed, ok bool
	}{
		{"Nothing", "SELECT 1", true, true, true},
		{"NotTold", "SET work_mem = '8MB'", true, true, true},
		{"Back", "SET TimeZone = 'UTC'; SET TimeZone = 'Asia/Tokyo'; RESET TimeZone", true, true, true},
		{"Other", "SET TimeZone = 'Asia/Tokyo'", false, true, false},
		{"Meaning", "SET standard_conforming_strings = off", false, true, false},
		{"Unarmed", "SET default_transaction_read_only = off", false, false, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, err := c.flights.borrow(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer l.release()
			if l.silent() && !l.fresh {
				l.heard = "" // by the one before
			}
			if l.unsettled() || !l.silent() || !l.armed() || l.bad {
				t.Fatalf("unsettled, or not silent, or not armed, or bad, before anything was told: pgx keeps a ParameterStatus elsewhere (at %d)?", toldAt)
			}
			if _, err := l.pgx.Conn().PgConn().Exec(t.Context(), tc.text).ReadAll(); err != nil {
				t.Fatal(err)
			}
			if silent, armed := l.silent(), l.armed(); silent != tc.silent || armed != tc.armed {
				t.Errorf("silent = %v, armed = %v; want %v, %v", silent, armed, tc.silent, tc.armed)
			}
			for range 2 { // what was wrong once stays so
				_ = l.unsettled()
				if l.bad == tc.ok {
					t.Errorf("bad = %v; want %v", l.bad, !tc.ok)
				}
				if l.armed() != tc.armed {
					t.Errorf("armed = %v after a look; want %v", !tc.armed, tc.armed)
				}
			}
			l.bad = l.bad || !tc.armed
		})
	}
}
