package faults

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/pgtest"
)

// TestOutOfConnections takes all of a server's connections but a few, and gives them
// back.
func TestOutOfConnections(t *testing.T) {
	server := pgtest.New(t, append(durable, pgtest.WithSetting("max_connections", "40"))...)
	w := newWorld(t, server, "out of connections", "connect 53300")
	w.config.MaxIdle = -1 // every use connects
	w.open(w.direct)
	w.number("SELECT 1") // the judge has one
	w.start(readers/2, writers/2)
	refused := 0
	shown := func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.errs["connect 53300"] > 0
	}
	w.roundsUntil(battery.Quick(1, battery.N(3, 30)), shown, func(r *rand.Rand) {
		var taken []*pgx.Conn
		for leave := r.IntN(4); ; {
			conn, err := pgx.Connect(t.Context(), with(w.direct, "application_name=taken"))
			if err == nil {
				taken = append(taken, conn)
				continue
			}
			refused++
			for range min(leave, len(taken)) {
				_ = taken[len(taken)-1].Close(t.Context())
				taken = taken[:len(taken)-1]
			}
			break
		}
		w.progress(100, time.Second)
		for _, conn := range taken {
			_ = conn.Close(t.Context())
		}
	})
	w.report.Set("refused", refused)
	if !shown() {
		t.Error("no caller was refused a connection: that was not shown")
	}
	w.finish()
}

// fillers are the tables and functions of TestDiskFull. Reading from boom fails
// after some rows, as a read does whose sort no longer fits on the disk.
const fillers = `
	CREATE TABLE full_disk (filler text);
	CREATE FUNCTION boom(idx bigint) RETURNS bigint LANGUAGE plpgsql STABLE AS $$ BEGIN
		IF idx >= 57 THEN RAISE EXCEPTION 'could not write: No space left on device' USING ERRCODE = 'disk_full'; END IF;
		RETURN idx; END $$`

// TestDiskFull runs out of space in all the ways there are: temp_file_limit, an error
// raised after some rows, the kernel's ENOSPC for a table whose file is /dev/full, and,
// where the test may mount one, a small file system for temporary files and a table.
// The reads and writes of the load go on beside them.
func TestDiskFull(t *testing.T) {
	small := smallDisk(t) // unmounted after the server has stopped
	server := pgtest.New(t, append(durable, pgtest.WithSetting("max_parallel_workers_per_gather", "0"))...)
	w := newWorld(t, server, "disk full", "53100", "53400")
	w.admin(func(conn *pgx.Conn) error {
		_, err := conn.Exec(t.Context(), fillers)
		return err
	})
	device := w.fullDevice()
	params := "work_mem=64kB&temp_file_limit=256kB"
	if small != "" {
		w.admin(func(conn *pgx.Conn) error {
			var data string
			if err := conn.QueryRow(t.Context(), "SHOW data_directory").Scan(&data); err != nil {
				return err
			}
			if err := giveTo(data, small); err != nil {
				return err
			}
			if _, err := conn.Exec(t.Context(), "CREATE TABLESPACE small LOCATION '"+small+"'"); err != nil {
				return err
			}
			_, err := conn.Exec(t.Context(), "CREATE TABLE small_disk (filler name) TABLESPACE small") // no TOAST: TRUNCATE is to need no space
			return err
		})
	}
	w.open(with(w.direct, params))
	if small != "" { // one more, whose temporary files go to the small disk, and have no other limit
		db, err := sql.Open("flightpg", with(w.direct, "work_mem=64kB&temp_tablespaces=small&application_name=faults&flight_max_result=64MB"))
		if err != nil {
			t.Fatal(err)
		}
		w.add(&handle{name: "small disk", db: db})
	}
	w.start(readers/2, writers/2)
	var mu sync.Mutex
	seen := map[string]int{}
	// expect notes an error that must be one of running out of space.
	expect := func(ctx context.Context, what string, err error, codes ...string) {
		var pgErr *pgconn.PgError
		if errors.As(err, &pgErr) {
			for _, code := range codes {
				if pgErr.Code == code {
					mu.Lock()
					seen[what+" "+code]++
					mu.Unlock()
					return
				}
			}
		}
		if kindOf(ctx, err) != ownEnd {
			w.violation("%s: %v; want SQLSTATE %v", what, err, codes)
		}
	}
	const sorted = "SELECT set, idx, total, pad, sum FROM (SELECT * FROM items WHERE set = $1 ORDER BY md5(pad || idx) OFFSET 0) s ORDER BY idx"
	missing := func() (list []string) {
		mu.Lock()
		defer mu.Unlock()
		for what, want := range map[string]bool{
			"sort 53400": true, "read 53100": true,
			"write to full_disk 53100": device != "", "write to small_disk 53100": small != "", "sort 53100": small != "",
		} {
			if want && seen[what] == 0 {
				list = append(list, what)
			}
		}
		return list
	}
	w.roundsUntil(battery.Quick(2, battery.N(3, 30)), func() bool { return missing() == nil }, func(r *rand.Rand) {
		var wg sync.WaitGroup
		for i := range 8 {
			seed := r.Uint64()
			wg.Go(func() {
				r := rand.New(rand.NewPCG(seed, uint64(i)))
				ctx, cancel := w.ctx(r)
				defer cancel()
				h := w.handles[r.IntN(len(w.handles))]
				onSmall := h.name == "small disk"

				// Sorts that fit and sorts that do not, of several callers at once.
				set := anySet(r)
				if i < 4 {
					set = 21
				}
				rows, err := h.db.QueryContext(ctx, sorted, set)
				n, wrong, err := drain(rows, err, set, sizeOf(set))
				switch {
				case wrong != "":
					w.violation("a sort: %s", wrong)
				case err == nil && set > 20 && !onSmall:
					w.violation("a sort of %d rows in 256 kB of temporary files: no error", n)
				case err != nil && onSmall:
					expect(ctx, "sort", err, "53100")
				case err != nil:
					expect(ctx, "sort", err, "53400")
				}

				// An error after some rows.
				rows, err = h.db.QueryContext(ctx, "SELECT set, boom(idx), total, pad, sum FROM items WHERE set = $1 ORDER BY idx", 11)
				_, wrong, err = drain(rows, err, 11, 100)
				switch {
				case wrong != "":
					w.violation("a read that runs out of disk after some rows: %s", wrong)
				case err == nil:
					w.violation("a read that runs out of disk after some rows: no error")
				default:
					expect(ctx, "read", err, "53100")
				}

				// Writes: what a transaction has written before it fails must go.
				table := "full_disk"
				if onSmall || small != "" && r.IntN(2) == 0 {
					table = "small_disk"
				}
				if table == "full_disk" && device == "" {
					return
				}
				id := w.begin(1, 1)
				f, err := func() (fate, error) {
					tx, err := h.db.BeginTx(ctx, nil)
					if err != nil {
						return never, err
					}
					defer tx.Rollback()
					if _, err := tx.ExecContext(ctx, insert, id, 1, 1); err != nil {
						return never, err
					}
					if _, err := tx.ExecContext(ctx, move, 1, 1); err != nil {
						return never, err
					}
					if _, err := tx.ExecContext(ctx, "INSERT INTO "+table+" SELECT md5(i::text) FROM (SELECT generate_series(1, $1::int) i) s", 1000+40_000*r.IntN(2)); err != nil {
						return never, err
					}
					err = tx.Commit()
					return acked(err), err
				}()
				w.wrote(ctx, "write to "+table+lasting, id, f, nil)
				if err != nil {
					expect(ctx, "write to "+table, err, "53100")
				} else if table == "full_disk" {
					w.violation("a write to a full device succeeded")
				}
			})
		}
		wg.Wait()
		w.progress(50, time.Second)
		if small != "" { // somebody makes room
			w.admin(func(conn *pgx.Conn) error {
				_, err := conn.Exec(t.Context(), "TRUNCATE small_disk")
				return err
			})
		}
	})
	w.report.Set("device", fmt.Sprintf("/dev/full: %v, small file system: %v", device != "", small != ""))
	w.report.Set("out of space", fmt.Sprint(seen))
	for _, what := range missing() {
		t.Errorf("no %s: that was not shown", what)
	}
	w.finish()
}

// fullDevice makes the file of full_disk the device that is always full, and returns
// its name, or "" where there is no such device.
func (w *world) fullDevice() string {
	const device = "/dev/full"
	if _, err := os.Stat(device); err != nil || w.server.PID() == 0 {
		w.Logf("NOT RUN: a table on %s: %v, server process %d", device, err, w.server.PID())
		return ""
	}
	w.admin(func(conn *pgx.Conn) error {
		var data, file string
		if err := conn.QueryRow(w.Context(), "SELECT current_setting('data_directory'), pg_relation_filepath('full_disk')").Scan(&data, &file); err != nil {
			return err
		}
		file = filepath.Join(data, file)
		if err := os.Remove(file); err != nil {
			return err
		}
		return os.Symlink(device, file)
	})
	return device
}

// TestSessionLimit lets pinned and absent callers hold all of the few sessions that a
// handle may have: the reads that are shared go on.
func TestSessionLimit(t *testing.T) {
	w := newWorld(t, pgtest.Shared(t), "shared reads go on when no session is free")
	db, err := sql.Open("flightpg", with(w.direct, "session_conns=2&flight_max_result=64MB&application_name=faults"))
	if err != nil {
		t.Fatal(err)
	}
	h := &handle{name: "two sessions", db: db, flown: true}
	w.add(h)
	if err := flightpg.RefreshCatalog(t.Context(), db); err != nil {
		t.Fatal(err)
	}
	var held []*sql.Tx
	for range 2 {
		tx, err := db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, tx)
		if _, err := tx.Exec("SELECT 1"); err != nil {
			t.Fatal(err)
		}
	}
	w.start(readers, 0)
	w.until("reads go on", func() bool { return w.count("read "+h.name).Load() > battery.N[int64](200, 5000) })
	w.stopLoad()
	w.loading.Wait()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := db.ExecContext(ctx, "SELECT 1"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a third session: %v; want to wait", err)
	}
	for _, tx := range held {
		if err := tx.Rollback(); err != nil {
			t.Error(err)
		}
	}
	if _, err := db.Exec("SELECT 1"); err != nil {
		t.Errorf("a session after that: %v", err)
	}
	w.finish()
}
