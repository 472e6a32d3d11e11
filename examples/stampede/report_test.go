package main

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/flightpg/flightpg"
)

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(i + 1)
	}
	for _, tt := range []struct {
		sorted []time.Duration
		p      float64
		want   time.Duration
	}{
		{nil, 50, 0},
		{[]time.Duration{7}, 0, 7},
		{[]time.Duration{7}, 99, 7},
		{[]time.Duration{1, 2}, 50, 1},
		{[]time.Duration{1, 2, 3}, 50, 2},
		{[]time.Duration{1, 2, 3}, 99, 3},
		{hundred, 50, 50},
		{hundred, 99, 99},
		{hundred, 100, 100},
	} {
		if got := percentile(tt.sorted, tt.p); got != tt.want {
			t.Errorf("percentile(%d values, %v) = %d; want %d", len(tt.sorted), tt.p, got, tt.want)
		}
	}
	values := []time.Duration{3, 1, 2}
	if got := median(values); got != 2 || !slices.Equal(values, []time.Duration{3, 1, 2}) {
		t.Errorf("median = %d of %v; want 2, and the values as they were", got, values)
	}
}

func TestWords(t *testing.T) {
	for _, tt := range []struct{ got, want string }{
		{grouped(0), "0"},
		{grouped(999), "999"},
		{grouped(1000), "1,000"},
		{grouped(-123456), "-123,456"},
		{grouped(1234567), "1,234,567"},
		{shortMS(0), "0.0 ms"},
		{shortMS(5.25), "5.2 ms"},
		{shortMS(51.7), "52 ms"},
		{shortMS(12345), "12.3 s"},
		{plural(1, "time", "times"), "1 time"},
		{plural(1500, "time", "times"), "1,500 times"},
		{times(1500, 3, "fewer", "more"), "500× fewer"},
		{times(3, 2, "fewer", "more"), "1.5× fewer"},
		{times(2, 3, "fewer", "more"), "1.5× more"},
		{times(100, 101, "fewer", "more"), ""},
		{times(0, 3, "fewer", "more"), ""},
		{ratio(3, 1500), "0.002"},
		{ratio(1, 0), "no"},
	} {
		if tt.got != tt.want {
			t.Errorf("got %q; want %q", tt.got, tt.want)
		}
	}
}

func sample() report {
	return report{
		Pgx: side{
			Calls: 1500, Executions: 1500, BackendsPeak: 16, QueryMS: 50.1,
			P50: 6200, P99: 12300, CallsPerS: 40.4,
		},
		Flightpg: side{
			Calls: 1500, Executions: 3, BackendsPeak: 1, QueryMS: 50.2,
			P50: 52, P99: 61.5, CallsPerS: 8000,
		},
		ReadYourWrites: raceResult{Writes: 1000, Reads: 100_000},
		QueryMS:        50.2, Callers: 500, Rounds: 3, PgxConns: 16,
		Mode: "fenced", CountedBy: "pg_stat_statements", Server: "17.5",
	}
}

func TestReport_Table(t *testing.T) {
	const want = `
500 callers ask the same query at once, 3 times.

                        pgx   flightpg
  calls               1,500      1,500
  executions          1,500          3   500× fewer
  peak backends          16          1
  query alone         50 ms      50 ms
  p50                 6.2 s      52 ms   119× faster
  p99                12.3 s      62 ms   200× faster
  calls per s            40      8,000   198× more
  errors                  0          0

pgx ran the query 1,500 times, flightpg 3 times: 0.002 executions per call.
Read your writes (mode fenced): 1,000 writes, each read back at once among 100,000 other reads: 0 stale.

Executions are those that PostgreSQL 17.5 counted in pg_stat_statements, backends
the connections in its pg_stat_activity, looked at every 5ms. Both drivers
may open 16, and had opened theirs before the clock started.
`
	var b bytes.Buffer
	if err := sample().writeTable(&b); err != nil {
		t.Fatal(err)
	}
	if got := b.String(); got != want {
		t.Errorf("table:\n%s\nwant:\n%s", got, want)
	}
}

func TestReport_JSON(t *testing.T) {
	var b bytes.Buffer
	if err := sample().writeJSON(&b); err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	for object, names := range map[string]string{
		"pgx":              "calls executions backends_peak p50_ms p99_ms calls_per_s errors",
		"flightpg":         "calls executions backends_peak p50_ms p99_ms calls_per_s errors",
		"read_your_writes": "writes stale",
	} {
		for _, name := range strings.Fields(names) {
			if _, ok := got[object].(map[string]any)[name].(float64); !ok {
				t.Errorf("%s.%s is not a number in %s", object, name, &b)
			}
		}
	}
}

func TestReport_Failure(t *testing.T) {
	good, failed, stale := sample(), sample(), sample()
	failed.Flightpg.Errors = 2
	failed.ReadYourWrites.Errors = 1
	stale.ReadYourWrites.Stale = 5
	joined := stale
	joined.config.mode = flightpg.ModeJoin
	for _, tt := range []struct {
		rep  report
		want string
	}{{good, ""}, {failed, "3 calls failed"}, {stale, "5 stale reads"}, {joined, ""}} {
		got := ""
		if err := tt.rep.failure(); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("failure = %q; want %q", got, tt.want)
		}
	}
}
