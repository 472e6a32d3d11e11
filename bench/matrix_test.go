package main

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMatrixPlan: the names tell the workloads apart, the quick form is a part of the
// full one in which each group that needs nothing to be installed has a say, and what
// was found to be slow once is in it.
func TestMatrixPlan(t *testing.T) {
	all, err := matrixPlan(true, "")
	if err != nil {
		t.Fatal(err)
	}
	quick, err := matrixPlan(false, "")
	if err != nil {
		t.Fatal(err)
	}
	names := func(shapes []shape) (names []string) {
		for i := range shapes {
			names = append(names, shapes[i].name())
		}
		return names
	}
	for i, name := range names(all) {
		s := &all[i]
		if slices.Index(names(all), name) != i {
			t.Errorf("%s is in the matrix twice", name)
		}
		if len(s.parts) == 0 || s.open > 0 && (len(s.parts) > 1 || s.parts[0].waves || s.open >= 1) {
			t.Errorf("%s: %d parts, of which a clock cannot be the load", name, len(s.parts))
		}
		for _, p := range s.parts {
			if p.call == nil || slices.Max(p.callers[:]) < 1 || len(s.parts) > 1 && p.name == "" {
				t.Errorf("%s: a part without a call, callers or a name: %+v", name, p)
			}
			for _, figure := range p.counted() {
				if lines := strings.Split(s.place(p.name, figure), "\n"); len(lines) > 4 {
					t.Errorf("%s takes %d lines below the picture: %q; want 4 at most", name, len(lines), lines)
				}
			}
			if p.waves && p.callers != always(p.callers[0]) {
				t.Errorf("%s: waves of %v callers", name, p.callers)
			}
		}
		if s.way != straight && poolers[s.way] == nil {
			t.Errorf("%s: nothing leads through %s", name, s.way)
		}
		group := func(o shape) bool { return o.group == s.group }
		if s.way != pgpoolTwo && !slices.ContainsFunc(quick, group) {
			t.Errorf("nothing of %q is in the quick form", s.group)
		}
	}
	for _, name := range names(quick) {
		if !slices.Contains(names(all), name) {
			t.Errorf("%s is in the quick form only", name)
		}
	}
	for _, name := range []string{"reference: distinct waves of 64", "reference: mixed 32 fast 32 slow", "unique rows: 256 callers"} {
		if !slices.Contains(names(quick), name) {
			t.Errorf("%s is not in the quick form", name)
		}
	}
	if only, err := matrixPlan(false, "^tails: Pareto asleep by text$"); err != nil || len(only) != 1 {
		t.Errorf("-only a workload that the quick form is without: %v, %v; want it", names(only), err)
	}
	for _, pattern := range []string{"nonsense", "("} {
		if _, err := matrixPlan(true, pattern); err == nil || !strings.Contains(err.Error(), "-only") {
			t.Errorf("-only %s: error %v; want one that says so", pattern, err)
		}
	}
	if err := (&matrixOptions{contenders: []string{"nonsense"}}).check(); err == nil || !strings.Contains(err.Error(), "nonsense") {
		t.Errorf("-contenders: error %v; want one that names what is unknown", err)
	}
}

// TestMatrix runs a workload of each kind against a server, for no longer than it takes;
// with -short some of them.
// Every read of those whose text says so is shareable, or the matrix would measure
// sessions; and none is shared, or it would measure that.
func TestMatrix(t *testing.T) {
	o := &matrixOptions{rounds: 2, length: 20 * time.Millisecond, budget: time.Minute, out: t.TempDir(), name: "workloads"}
	var plan, long []shape
	for _, s := range shapes() {
		switch s.name() {
		case "unique rows: 4 callers", "arrivals: 2 % asleep 20 ms", "busy loops beside: rows 16 callers", "through PgBouncer: rows 1 caller", "reference: distinct waves of 16":
			plan = append(plan, s)
		case "texts: distinct texts 1 ms built-in 16 callers", "CPU, user's function: 0.3 ms 16 callers", "load that changes: 16, 256, 16 callers rows",
			"through Pgpool-II: rows 1 caller", "reference: mixed 8 fast 8 slow":
			long = append(long, s)
		case "results: 20 MB cancelled early":
			s.parts[1].call = stream(2000, cancels)
			long = append(long, s)
		}
	}
	if len(plan) != 5 || len(long) != 6 {
		t.Fatalf("%d and %d workloads; want those that are named", len(plan), len(long))
	}
	if !testing.Short() {
		plan = append(plan, long...)
	}
	if err := runMatrix(context.Background(), o, plan); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(o.out, "workloads.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Workloads []struct {
			Workload, Skipped string
			Results           []struct {
				Contender, Error         string
				Connections              float64
				Opened                   float64 `json:"opened_a_minute"`
				Flights, Joins, Bypasses uint64
				Rounds                   [][]map[string]*float64
			}
		}
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Workloads) != len(plan) {
		t.Fatalf("%d workloads in the raw data; want %d", len(got.Workloads), len(plan))
	}
	for i, w := range got.Workloads {
		if w.Skipped != "" && plan[i].way != straight && strings.Contains(w.Skipped, errNoPooler.Error()) {
			t.Logf("NOT TESTED: %s", w.Skipped)
			continue
		}
		if w.Skipped != "" || len(w.Results) != len(rivals) {
			t.Errorf("%s: %d contenders, skipped %q; want %d", w.Workload, len(w.Results), w.Skipped, len(rivals))
		}
		for _, r := range w.Results {
			if r.Error != "" || len(r.Rounds) != 2 || r.Connections+r.Opened <= 0 {
				t.Errorf("%s, %s: %d rounds, %v connections, %s", w.Workload, r.Contender, len(r.Rounds), r.Connections, r.Error)
				continue
			}
			ours := r.Contender == byDefault || r.Contender == generic
			if ours && (r.Flights == 0 || r.Joins > 0 || r.Bypasses > 0) {
				t.Errorf("%s, %s: %d flights, %d joins, %d bypasses; want flights only", w.Workload, r.Contender, r.Flights, r.Joins, r.Bypasses)
			}
			for _, round := range r.Rounds {
				if len(round) != len(plan[i].parts) || plan[i].open == 0 && *round[0]["n"] <= 0 {
					t.Errorf("%s, %s: a round of %d parts, in whose first is %v", w.Workload, r.Contender, len(round), round[0])
				}
			}
		}
	}
	for _, name := range []string{"workloads.md", "workloads.svg"} {
		text, err := os.ReadFile(filepath.Join(o.out, name))
		if err != nil {
			t.Fatal(err)
		}
		for _, what := range []string{"NaN", "Inf", "%!"} {
			if bytes.Contains(text, []byte(what)) {
				t.Errorf("%s has %s in it", name, what)
			}
		}
		if name != "workloads.svg" {
			continue
		}
		for d := xml.NewDecoder(bytes.NewReader(text)); ; {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
		}
	}
}

// TestMatrix_Compare: ratios are within a round, more is better whatever the figure, and
// what is too low is marked.
func TestMatrix_Compare(t *testing.T) {
	s := &shape{group: "g", label: "l", strict: true, parts: []part{{callers: always(1), figures: []string{figRate, figP50}}}}
	res := &shapeResult{Name: s.name(), shape: s}
	for name, rates := range map[string][]number{pgx16: {100, 200, 50}, byDefault: {92, 184, 46}, generic: {184, 100, 46}} {
		r := rivalResult{Contender: name}
		for _, v := range rates {
			r.Rounds = append(r.Rounds, []partFigures{{N: 1, Rate: v, P50: 1e6 / v, P99: 1e6 / v}})
		}
		res.Results = append(res.Results, r)
	}
	slices.SortFunc(res.Results, func(a, b rivalResult) int { return strings.Compare(b.Contender, a.Contender) })
	res.compare()
	if len(res.Lines) != 2 {
		t.Fatalf("%d lines; want one for each figure", len(res.Lines))
	}
	for _, l := range res.Lines {
		d, g := l.of(byDefault), l.of(generic)
		if off(d.Median, 0.92) || off(d.Worst, 0.92) || d.Low || d.LowRound {
			t.Errorf("%s: %+v; want 0.92 in all rounds, and no mark", l.Figure, d)
		}
		if off(g.Median, 0.92) || off(g.Worst, 0.5) || !g.Low || !g.LowRound {
			t.Errorf("%s: %+v; want 0.92 and 0.5, both marked", l.Figure, g)
		}
	}
}

func off(got number, want float64) bool { return float64(got) < want-1e-9 || float64(got) > want+1e-9 }
