package main

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/internal/leak"
	"github.com/flightpg/flightpg/internal/pgtest"
)

func TestMain(m *testing.M) { leak.Main(func() int { return pgtest.Run(m) }) }

// newShop starts the shop over an empty database with its products.
func newShop(t *testing.T) (srv *httptest.Server, db *sql.DB, dsn string) {
	t.Helper()
	dsn = pgtest.Database(t)
	if err := loadProducts(t.Context(), dsn); err != nil {
		t.Fatal(err)
	}
	db, err := openDB(dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	srv = httptest.NewServer((&shop{db: db, log: log}).routes())
	t.Cleanup(srv.Close)
	return srv, db, dsn
}

// request returns the status of an answer and puts its body into v.
func request(ctx context.Context, method, url string, v any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return 0, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil && v != nil && resp.StatusCode < 300 {
		err = json.Unmarshal(body, v)
	}
	return resp.StatusCode, err
}

func TestShop_SharesReads(t *testing.T) {
	srv, db, dsn := newShop(t)
	const callers = 50

	// The first read waits for the lock, and the others for the first.
	blocker, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Close(context.Background())
	if _, err := blocker.Exec(t.Context(), "begin; lock table reviews in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	before := flightpg.ReadStats(db)
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			var p product
			status, err := request(t.Context(), "GET", srv.URL+"/products/7", &p)
			want := product{ID: 7, Name: "Product 7", PriceCents: 135, Stock: 1000, Reviews: 200, Stars: 3}
			if err != nil || status != http.StatusOK || p != want {
				t.Errorf("GET = %d, %v, %+v; want %+v", status, err, p, want)
			}
		})
	}
	waitFor(t, func() bool { return flightpg.ReadStats(db).Waiting == callers })
	if _, err := blocker.Exec(t.Context(), "rollback"); err != nil {
		t.Fatal(err)
	}
	all.Wait()

	var after flightpg.Stats
	if status, err := request(t.Context(), "GET", srv.URL+"/stats", &after); err != nil || status != http.StatusOK {
		t.Fatalf("GET /stats = %d, %v", status, err)
	}
	if flights, joins := after.Flights-before.Flights, after.Joins-before.Joins; flights != 1 || joins != callers-1 {
		t.Errorf("%d flights, %d joins; want 1, %d", flights, joins, callers-1)
	}
}

func TestShop_SeesItsPurchase(t *testing.T) {
	srv, _, _ := newShop(t)
	const purchases = 30

	// Readers keep the page in flight.
	ctx, stop := context.WithCancel(t.Context())
	var readers sync.WaitGroup
	for range 8 {
		readers.Go(func() {
			for ctx.Err() == nil {
				if status, err := request(ctx, "GET", srv.URL+"/products/1", nil); ctx.Err() == nil && (err != nil || status != http.StatusOK) {
					t.Errorf("GET = %d, %v", status, err)
				}
			}
		})
	}
	for n := range purchases {
		if status, err := request(ctx, "POST", srv.URL+"/products/1/buy", nil); err != nil || status != http.StatusCreated {
			t.Fatalf("POST = %d, %v; want %d", status, err, http.StatusCreated)
		}
		var p product
		if _, err := request(ctx, "GET", srv.URL+"/products/1", &p); err != nil || p.Stock != 1000-n-1 {
			t.Errorf("after %d purchases: stock = %d, %v; want %d", n+1, p.Stock, err, 1000-n-1)
		}
	}
	stop()
	readers.Wait()
}

func TestShop_Refuses(t *testing.T) {
	srv, db, _ := newShop(t)
	if _, err := db.ExecContext(t.Context(), "update products set stock = 0 where id = 3"); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/products/101", http.StatusNotFound},
		{"GET", "/products/x", http.StatusNotFound},
		{"GET", "/products/99999999999", http.StatusNotFound},
		{"POST", "/products/101/buy", http.StatusNotFound},
		{"POST", "/products/3/buy", http.StatusConflict},
		{"GET", "/products/3/buy", http.StatusMethodNotAllowed},
		{"GET", "/products/3", http.StatusOK},
	} {
		if got, err := request(t.Context(), tt.method, srv.URL+tt.path, nil); got != tt.want || err != nil {
			t.Errorf("%s %s = %d, %v; want %d", tt.method, tt.path, got, err, tt.want)
		}
	}
}

func TestRun(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	logs := newLogWriter()
	ended := make(chan error, 1)
	dsn := pgtest.Database(t)
	env := func(name string) string { return map[string]string{"DATABASE_URL": dsn}[name] }
	go func() { ended <- run(ctx, []string{"-addr", "127.0.0.1:0", "-load"}, env, logs) }()

	var url string
	select {
	case url = <-logs.url:
	case err := <-ended:
		t.Fatalf("run = %v\n%s", err, logs)
	}
	// A request that is under way when the signal comes is still answered.
	blocker, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer blocker.Close(context.Background())
	if _, err := blocker.Exec(t.Context(), "begin; lock table products in access exclusive mode"); err != nil {
		t.Fatal(err)
	}
	answered := make(chan string, 1)
	go func() {
		var p product
		status, err := request(t.Context(), "GET", url+"/products/5", &p)
		answered <- fmt.Sprint(status, err, p.Name)
	}()
	waitFor(t, func() bool {
		var s flightpg.Stats
		_, err := request(t.Context(), "GET", url+"/stats", &s)
		return err == nil && s.Waiting == 1
	})
	stop()
	waitFor(t, func() bool { return strings.Contains(logs.String(), "shutting down") })
	if _, err := blocker.Exec(t.Context(), "rollback"); err != nil {
		t.Fatal(err)
	}
	if got, want := <-answered, "200 <nil>Product 5"; got != want {
		t.Errorf("the request under way got %q; want %q", got, want)
	}
	if err := <-ended; err != nil {
		t.Errorf("run = %v; want nil", err)
	}
	if _, err := request(t.Context(), "GET", url+"/stats", nil); err == nil {
		t.Error("it still listens")
	}
}

func TestRun_Refuses(t *testing.T) {
	none := func(string) string { return "" }
	for _, args := range []string{"", "-nope", "-demo more"} {
		var stderr bytes.Buffer
		if err := run(t.Context(), strings.Fields(args), none, &stderr); !errors.Is(err, errUsage) || stderr.Len() == 0 {
			t.Errorf("run(%s) = %v, %q; want a usage error", args, err, &stderr)
		}
	}
	for _, dsn := range []string{"postgres://u:secret@127.0.0.1:1/x", "postgres://u:secret@127.0.0.1/x?flight_mode=fast"} {
		var stderr bytes.Buffer
		err := run(t.Context(), []string{"-dsn", dsn}, none, &stderr)
		if err == nil || strings.Contains(err.Error()+stderr.String(), "secret") {
			t.Errorf("run = %v, %q; want an error without the password", err, &stderr)
		}
	}
}

// waitFor waits for what nothing else reports.
func waitFor(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(time.Millisecond) { // nothing tells: polling
		if time.Now().After(deadline) {
			t.Fatal("timed out")
		}
	}
}

// logWriter keeps what is written, and finds the URL in it.
type logWriter struct {
	url chan string

	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func newLogWriter() *logWriter { return &logWriter{url: make(chan string, 1)} }

var logURL = regexp.MustCompile(`url=(http://\S+)`)

func (w *logWriter) Write(b []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m := logURL.FindSubmatch(b); m != nil {
		w.url <- string(m[1])
	}
	return w.b.Write(b)
}

func (w *logWriter) String() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.b.String()
}
