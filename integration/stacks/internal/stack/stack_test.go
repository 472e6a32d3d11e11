package stack

import (
	"context"
	"database/sql"
	"slices"
	"testing"

	"github.com/flightpg/flightpg"
)

func TestMain(m *testing.M) { Main(m) }

func setUp(e *Env) {
	e.Hold()
	e.SQL(`CREATE TABLE a (n bigint NOT NULL); CREATE TABLE b (n bigint NOT NULL);
		INSERT INTO a VALUES (1); INSERT INTO b VALUES (1);
		CREATE VIEW held AS SELECT stack_hold(n) AS n FROM a`)
}

func reader(db *sql.DB, queries ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		for _, query := range queries {
			var n int64
			if err := db.QueryRowContext(ctx, query).Scan(&n); err != nil {
				return err
			}
		}
		return nil
	}
}

func TestShared(t *testing.T) {
	Each(t, func(e *Env) {
		setUp(e)
		db := e.Open()
		e.Shared(db, 20, reader(db, "SELECT n FROM a", "SELECT n FROM b"), "a", "b")
	})
}

// Without sharing the count is what it is over pgx.
func TestStorm_ModeOff(t *testing.T) {
	e := New(t, Flightpg)
	setUp(e)
	db := e.Open("flight_mode=off")
	ev := e.Storm(db, 20, reader(db, "SELECT n FROM a"), "a")
	if !slices.Equal(ev.Executions, []int{20}) || ev.Flights != 0 {
		t.Errorf("%+v; want 20 executions", ev)
	}
	e.Bypassed(db, 5, flightpg.ReasonModeOff, reader(db, "SELECT n FROM a"), "a")
	db = e.Open()
	e.Bypassed(db, 5, flightpg.ReasonRowLock, reader(db, "SELECT n FROM a FOR KEY SHARE"), "a")
}

func TestStale(t *testing.T) {
	held := func(db *sql.DB) func(context.Context) (int64, error) {
		return func(ctx context.Context) (n int64, err error) {
			return n, db.QueryRowContext(ctx, "SELECT n FROM held").Scan(&n)
		}
	}
	write := func(db *sql.DB) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := db.ExecContext(ctx, "UPDATE a SET n = n + 1")
			return err
		}
	}
	Each(t, func(e *Env) {
		setUp(e)
		e.Watch("a")
		db := e.Open()
		e.SeesWrites(db, 1, 2, held(db), write(db))
		e.Wrote(map[string]int{"UPDATE a": 1})
	})
	// A driver that lets readers join what is under way would be found out.
	t.Run("join", func(t *testing.T) {
		e := New(t, Flightpg)
		setUp(e)
		db := e.Open("flight_mode=join")
		if first, second := e.Stale(db, 8, held(db), write(db)); !slices.Equal(first, []int64{1}) || !slices.Equal(second, []int64{1}) {
			t.Errorf("read %v, then %v; want 1 both times: the test shows nothing", first, second)
		}
	})
}
