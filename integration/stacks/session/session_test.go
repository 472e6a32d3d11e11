// Package session tests flightpg under scs, a session manager for HTTP servers,
// and its store in PostgreSQL.
package session_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/alexedwards/scs/postgresstore"
	"github.com/alexedwards/scs/v2"
	"go.uber.org/goleak"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/integration/stacks/internal/await"
	"github.com/flightpg/flightpg/integration/stacks/internal/stack"
)

func TestMain(m *testing.M) {
	// scs.New starts a store of its own, which the tests replace.
	stack.Main(m, goleak.IgnoreAnyFunction("github.com/alexedwards/scs/v2/memstore.(*MemStore).startCleanup"))
}

const (
	table = `CREATE TABLE sessions (token text PRIMARY KEY, data bytea NOT NULL, expiry timestamptz NOT NULL);
		CREATE INDEX sessions_expiry_idx ON sessions (expiry)`
	find = "SELECT data FROM sessions WHERE token = $1 AND current_timestamp < expiry" // as the store has it
)

// later is an expiry that no test lives to see.
var later = time.Date(2222, 2, 2, 2, 2, 2, 0, time.UTC)

// app is a web application: a visitor logs in, counts, looks at the count and
// logs out.
type app struct {
	sessions *scs.SessionManager
	handler  http.Handler
}

func newApp(db *sql.DB) *app {
	a := &app{sessions: scs.New()}
	a.sessions.Store = postgresstore.NewWithCleanupInterval(db, 0)
	a.sessions.ErrorFunc = func(w http.ResponseWriter, _ *http.Request, err error) {
		http.Error(w, err.Error(), http.StatusInternalServerError)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /login", func(w http.ResponseWriter, r *http.Request) {
		if err := a.sessions.RenewToken(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		a.sessions.Put(r.Context(), "count", 0)
	})
	mux.HandleFunc("POST /count", func(w http.ResponseWriter, r *http.Request) {
		n := a.sessions.GetInt(r.Context(), "count") + 1
		a.sessions.Put(r.Context(), "count", n)
		fmt.Fprint(w, n)
	})
	mux.HandleFunc("GET /count", func(w http.ResponseWriter, r *http.Request) {
		if !a.sessions.Exists(r.Context(), "count") {
			http.Error(w, "log in", http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, a.sessions.GetInt(r.Context(), "count"))
	})
	mux.HandleFunc("POST /logout", func(w http.ResponseWriter, r *http.Request) {
		if err := a.sessions.Destroy(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})
	a.handler = a.sessions.LoadAndSave(mux)
	return a
}

// request returns status, body, and the cookie that the visitor has afterwards.
func (a *app) request(ctx context.Context, method, path, cookie string) (int, string, string) {
	r := httptest.NewRequestWithContext(ctx, method, path, nil)
	if cookie != "" {
		r.AddCookie(&http.Cookie{Name: a.sessions.Cookie.Name, Value: cookie})
	}
	w := httptest.NewRecorder()
	a.handler.ServeHTTP(w, r)
	for _, c := range w.Result().Cookies() {
		cookie = c.Value
	}
	return w.Code, w.Body.String(), cookie
}

// login returns the visitor's cookie.
func (a *app) login(e *stack.Env) string {
	e.Helper()
	status, body, cookie := a.request(e.Context(), "POST", "/login", "")
	if status != http.StatusOK || cookie == "" {
		e.Fatalf("login: %d %s", status, body)
	}
	return cookie
}

// count looks at the visitor's count. It is -1 for nobody.
func (a *app) count(ctx context.Context, cookie string) (int64, error) {
	switch status, body, _ := a.request(ctx, "GET", "/count", cookie); status {
	case http.StatusOK:
		return strconv.ParseInt(body, 10, 64)
	case http.StatusUnauthorized:
		return -1, nil
	default:
		return 0, fmt.Errorf("status %d: %s", status, body)
	}
}

// TestSame compares what the store gives.
func TestSame(t *testing.T) {
	type result struct {
		Found  []string
		All    map[string][]byte
		Errors []string
	}
	stack.Compare(t, func(e *stack.Env) (r result) {
		db := e.Open()
		store := postgresstore.NewWithCleanupInterval(db, 0)
		note := func(err error) {
			if err != nil {
				r.Errors = append(r.Errors, err.Error())
			}
		}
		look := func(token string) {
			data, ok, err := store.Find(token)
			note(err)
			r.Found = append(r.Found, fmt.Sprintf("%s %v %v %x", token, ok, data == nil, data))
		}
		look("no table")
		note(store.Commit("no table", nil, later))
		e.SQL(table)
		look("missing")
		binary := []byte("\x00\xff'\\\x00")
		note(store.Commit("binary", binary, later))
		look("binary")
		binary[0] = 'x' // the caller's own again
		look("binary")
		note(store.Commit("binary", []byte("other"), later))
		look("binary")
		note(store.Commit("empty", []byte{}, later))
		look("empty")
		note(store.Commit("null", nil, later)) // not allowed by the table
		note(store.Commit("expired", []byte("old"), time.Unix(0, 0)))
		look("expired")
		note(store.Commit("zone", []byte("z"), later.In(time.FixedZone("", 3600))))
		note(store.Commit("\x00", []byte("no token"), later)) // not for PostgreSQL
		note(store.Delete("empty"))
		note(store.Delete("empty"))
		look("empty")
		all, err := store.All()
		note(err)
		r.All = all
		if len(r.Errors) != 4 || len(all) != 2 {
			e.Errorf("errors %q, sessions %q: the test shows nothing", r.Errors, all)
		}
		return r
	})
}

// TestShared lets 50 requests of one visitor come at once, as a page makes them.
func TestShared(t *testing.T) {
	stack.Each(t, func(e *stack.Env) {
		e.SQL(table)
		db := e.Open()
		a := newApp(db)
		visitor := a.login(e)
		e.Watch("sessions")
		look := func(ctx context.Context) error {
			if n, err := a.count(ctx, visitor); n != 0 || err != nil {
				return fmt.Errorf("count = %d, %v; want 0", n, err)
			}
			return nil
		}
		e.Shared(db, 50, look, "sessions")
		e.Wrote(map[string]int{}) // nothing has changed
		e.Explain(db, find, flightpg.ReasonNone)

		// Each request has rows of its own.
		store := a.sessions.Store
		e.Shared(db, 50, func(context.Context) error {
			data, ok, err := store.Find(visitor)
			if !ok || err != nil || len(data) == 0 || bytes.Contains(data, []byte("xxx")) {
				return fmt.Errorf("Find = %q, %v, %v", data, ok, err)
			}
			for i := range data {
				data[i] = 'x'
			}
			return nil
		}, "sessions")
	})
}

// TestIdleTimeout: with it, scs writes the session at the end of every request.
// What requests read at the same moment is shared all the same.
func TestIdleTimeout(t *testing.T) {
	stack.Each(t, func(e *stack.Env) {
		e.SQL(table)
		db := e.Open()
		a := newApp(db)
		a.sessions.IdleTimeout = time.Hour
		visitor := a.login(e)
		e.Watch("sessions")
		const callers = 20
		e.Shared(db, callers, func(ctx context.Context) error { _, err := a.count(ctx, visitor); return err }, "sessions")
		n := e.Writes()["INSERT sessions"]
		if n != callers+1 { // one before the storm
			e.Errorf("%d writes for %d requests; want each once", n, callers+1)
		}
	})
}

// TestReadYourWrites writes while a read that does not know it yet is under way
// on the server. Whoever asks after the write must not get that read's rows.
func TestReadYourWrites(t *testing.T) {
	data := func(n int64) []byte { return []byte(strconv.FormatInt(n, 10)) }
	stack.Each(t, func(e *stack.Env) {
		e.Hold()
		// The store finds sessions through a view that waits at the gate; what
		// it writes goes through at once.
		e.SQL(table + `; ALTER TABLE sessions RENAME TO kept;
			CREATE FUNCTION held(token text) RETURNS bool STABLE LANGUAGE plpgsql AS $$
			BEGIN
				RETURN current_query() !~* '^\s*SELECT' OR stack_hold(1) = 1;
			END $$;
			CREATE VIEW sessions AS SELECT * FROM kept WHERE held(token)`)
		e.Watch("kept")
		var params []string
		if e.Driver == stack.Flightpg {
			params = append(params, "flight_trust_declared=on") // the function looks at its statement
		}
		db := e.Open(params...)
		store := postgresstore.NewWithCleanupInterval(db, 0)
		if err := store.Commit("token", data(1), later); err != nil {
			e.Fatal(err)
		}
		read := func(context.Context) (int64, error) {
			b, ok, err := store.Find("token")
			if !ok || err != nil {
				return -1, err
			}
			return strconv.ParseInt(string(b), 10, 64)
		}
		e.SeesWrites(db, 1, 2, read, func(context.Context) error { return store.Commit("token", data(2), later) })

		// A row must be there to wait at the gate: those of all sessions.
		if err := store.Commit("other", data(0), later); err != nil {
			e.Fatal(err)
		}
		read = func(context.Context) (int64, error) {
			all, err := store.All()
			if err != nil || all["token"] == nil {
				return -1, err
			}
			return strconv.ParseInt(string(all["token"]), 10, 64)
		}
		e.SeesWrites(db, 2, -1, read, func(context.Context) error { return store.Delete("token") })
		if _, ok, err := store.Find("token"); ok || err != nil {
			e.Errorf("Find after Delete = %v, %v", ok, err)
		}
		// ON CONFLICT DO UPDATE counts as both.
		e.Wrote(map[string]int{"INSERT kept": 3, "UPDATE kept": 3, "DELETE kept": 1})
	})
}

// TestVisitors lets visitors count, each from one goroutine, and look from
// several: nobody may look and miss what had been counted when the look began,
// or be logged in after the logout. At the end the server has each write once.
func TestVisitors(t *testing.T) {
	const visitors, looks, rounds = 12, 4, 40
	writes := make(map[string]map[string]int)
	stack.Each(t, func(e *stack.Env) {
		e.SQL(table)
		e.Watch("sessions")
		db := e.Open()
		db.SetMaxOpenConns(40)
		a := newApp(db)
		e.Concurrently(visitors, func(ctx context.Context, _ int) error {
			cookie := a.login(e)
			var counted atomic.Int64 // what the visitor has been told
			var out atomic.Bool      // the visitor has been told to be logged out
			done := make(chan error, looks)
			for range looks {
				go func() {
					for {
						least, gone := counted.Load(), out.Load()
						n, err := a.count(ctx, cookie)
						switch {
						case err != nil:
						case gone && n >= 0:
							err = fmt.Errorf("a count of %d after the logout", n)
						case n < 0 && counted.Load() < rounds:
							err = errors.New("logged out, before the logout")
						case n >= 0 && n < least:
							err = fmt.Errorf("a count of %d when it was %d already", n, least)
						}
						if err != nil || gone {
							done <- err
							return
						}
					}
				}()
			}
			for i := range rounds {
				if status, body, _ := a.request(ctx, "POST", "/count", cookie); body != strconv.Itoa(i+1) {
					return fmt.Errorf("counting gave %d %s; want %d", status, body, i+1)
				}
				counted.Store(int64(i + 1))
			}
			if status, body, _ := a.request(ctx, "POST", "/logout", cookie); status != http.StatusOK {
				return fmt.Errorf("logout: %d %s", status, body)
			}
			out.Store(true)
			for range looks {
				if err := <-done; err != nil {
					return err
				}
			}
			return nil
		})
		writes[e.Driver] = e.Writes()
		if n := await.Value[int](e, e.Connect(), "SELECT count(*) FROM sessions"); n != 0 {
			e.Errorf("%d sessions are left", n)
		}
		s := flightpg.ReadStats(db)
		e.Logf("%s: flights %d, joins %d, fenced %d, bypasses %v; writes %v", e.Driver, s.Flights, s.Joins, s.Fenced, s.Bypasses, writes[e.Driver])
		if e.Driver == stack.Flightpg && (s.Joins == 0 || len(s.Bypasses) != 0) {
			e.Errorf("%+v; want reads that joined, and none that bypassed", s)
		}
	})
	want := map[string]int{"INSERT sessions": visitors * (rounds + 1), "UPDATE sessions": visitors * (rounds + 1), "DELETE sessions": visitors}
	for driver, got := range writes {
		if !maps.Equal(got, want) {
			t.Errorf("%s: writes on the server: %v; want %v", driver, got, want)
		}
	}
}

// TestMode shows what the tests above would say if nothing were shared, or if
// readers joined whatever is under way.
func TestMode(t *testing.T) {
	e := stack.New(t, stack.Flightpg)
	e.SQL(table)
	token := make([]byte, 16)
	_, _ = rand.Read(token)
	for mode, want := range map[string]int{"off": 20, "fenced": 1, "strict": 1, "join": 1} {
		db := e.Open("flight_mode=" + mode)
		store := postgresstore.NewWithCleanupInterval(db, 0)
		ev := e.Storm(db, 20, func(context.Context) error { _, _, err := store.Find(hex.EncodeToString(token)); return err }, "sessions")
		if mode == "strict" {
			// Those that come when the first flight has left take the next.
			if n := ev.Executions[0]; n > 2 {
				t.Errorf("%s: %d executions; want at most flight_width", mode, n)
			}
			continue
		}
		if !slices.Equal(ev.Executions, []int{want}) {
			t.Errorf("%s: %v executions; want %d", mode, ev.Executions, want)
		}
	}
}
