package main

import (
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	if proxied() || layered() || helped() { // this program is started by itself
		return
	}
	goleak.VerifyTestMain(m)
}

// TestTargets_AreMeasured: the short plan has a cell for each target, in which its
// contenders take part.
func TestTargets_AreMeasured(t *testing.T) {
	cells := shortPlan()
	for _, target := range targets {
		if target.layer != "" {
			continue
		}
		i := slices.IndexFunc(cells, func(c *cell) bool { return c.is(&target.cell) })
		if i < 0 {
			t.Errorf("%s is not in the short plan", &target.cell)
			continue
		}
		need := []string{pgx16, generic, pipelined}
		if target.figure == ofParking {
			need = append(need, parking)
		}
		for _, name := range need {
			if !slices.Contains(cells[i].Contenders, name) {
				t.Errorf("%s is without %s", &target.cell, name)
			}
		}
	}
	for i, c := range cells {
		if slices.IndexFunc(cells, c.is) != i {
			t.Errorf("%s is in the plan twice", c)
		}
	}
}

func TestPlan(t *testing.T) {
	for _, tc := range []struct {
		o    options
		n    int // cells, at least
		want string
	}{
		{options{}, 30, "unique 1 row, 256 goroutines, timeouts"},
		{options{full: true}, 200, "hot 1 row, 4096 goroutines, timeouts, delayed"},
		{options{workloads: []string{"zipf mix"}, goroutines: []int{3}}, 1, "zipf mix, 3 goroutines, timeouts"},
		{options{workloads: []string{"writes"}, contexts: []string{background}, goroutines: []int{3}}, 1, "writes, 3 goroutines"},
	} {
		cells, err := tc.o.plan()
		if err != nil {
			t.Fatal(err)
		}
		if len(cells) < tc.n || !slices.ContainsFunc(cells, func(c *cell) bool { return c.String() == tc.want }) {
			t.Errorf("%+v: %d cells; want at least %d, with %s", tc.o, len(cells), tc.n, tc.want)
		}
		for _, c := range cells {
			if c.Contenders[0] != pgx16 {
				t.Errorf("%s begins with %s; want what the others are compared with", c, c.Contenders[0])
			}
		}
	}
	for _, o := range []options{{workloads: []string{"nonsense"}}, {contenders: []string{"nonsense"}}} {
		if _, err := o.plan(); err == nil || !strings.Contains(err.Error(), "nonsense") {
			t.Errorf("%+v: error %v; want one that names what is unknown", o, err)
		}
	}
}

// TestRun runs some of everything, for no longer than it takes, against a server; with
// -short a third of it.
func TestRun(t *testing.T) {
	o := &options{rounds: 2, length: 5 * time.Millisecond, layers: "no", out: t.TempDir()}
	var cells []*cell
	for i := range workloads {
		w := &workloads[i]
		if testing.Short() && i%3 != 0 && w.name != "unique 1 row" {
			continue
		}
		link, kind := direct, timeout
		if i%4 == 0 {
			kind = background
		}
		if w.name == "unique 1 row" {
			link = delayed
		}
		cells = append(cells, &cell{w.name, 3, kind, link, contendersFor(w)})
	}
	if err := run(context.Background(), o, cells); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(o.out, "bench.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		Cells []struct {
			Workload string
			Results  []struct {
				Contender, Error string
				Backends         *float64
				Rounds           []map[string]*float64
			}
		}
	}
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if len(got.Cells) != len(cells) {
		t.Errorf("%d cells in the raw data; want %d", len(got.Cells), len(cells))
	}
	for i, c := range got.Cells {
		if len(c.Results) != len(cells[i].Contenders) {
			t.Errorf("%s: %d contenders; want %d", c.Workload, len(c.Results), len(cells[i].Contenders))
		}
		for _, r := range c.Results {
			if r.Error != "" || len(r.Rounds) != 2 {
				t.Errorf("%s, %s: %d rounds, %s", c.Workload, r.Contender, len(r.Rounds), r.Error)
				continue
			}
			if server := !contenderNamed(r.Contender).reads; server != (r.Backends != nil && *r.Backends > 0) {
				t.Errorf("%s, %s: connections %v", c.Workload, r.Contender, r.Backends)
			}
			for _, round := range r.Rounds {
				for name, v := range round {
					// The slow side has few calls, or none.
					if !strings.HasPrefix(name, "slow_") && (v == nil && name != "server_cpu_ns" || v != nil && *v < 0) {
						t.Errorf("%s, %s: %s is %v", c.Workload, r.Contender, name, v)
					}
				}
			}
		}
	}
	svg, err := os.Open(filepath.Join(o.out, "bench.svg"))
	if err != nil {
		t.Fatal(err)
	}
	defer svg.Close()
	for d := xml.NewDecoder(svg); ; {
		if _, err := d.Token(); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("bench.svg: %v", err)
		}
	}
}

// TestProfile: a contender's time is shared out among those who took it, and to nobody
// else.
func TestProfile(t *testing.T) {
	o := &options{profile: true, rounds: 1, length: time.Second, out: t.TempDir()}
	cells := []*cell{{"unique 1 row", 8, background, direct, []string{pgx16, pipelined, parking}}}
	if err := run(context.Background(), o, cells); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(o.out, "profile.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := make(map[string][]string)
	for line := range strings.Lines(string(text)) {
		if fields := strings.Split(strings.Trim(line, "| \n"), " | "); len(fields) == 4 {
			rows[fields[0]] = fields[1:]
		}
	}
	for name, want := range map[string][3]bool{ // pgx-16, pipeline, parking
		"network reads and writes": {true, true, false},
		"**client**":               {true, true, true},
	} {
		got := rows[name]
		for i := range want {
			if len(got) != 3 || (got[i] != "-" && got[i] != "0.00") != want[i] {
				t.Errorf("%s: %v; want figures for %v in\n%s", name, got, want, text)
				break
			}
		}
	}
	for name, got := range rows {
		if strings.HasPrefix(name, "flightpg") && (got[0] != "-" || got[2] != "-") {
			t.Errorf("%s: %v; want none but of the pipeline", name, got)
		}
	}
}

// TestLayers: the parts alone can be measured.
func TestLayers(t *testing.T) {
	for _, name := range []string{layerOurs, layerXSync, layerResenje} {
		values, err := inProcess(t.Context(), "distinct 100 10 "+name)
		if err != nil || len(values) != 1 || values[0] <= 0 {
			t.Errorf("%s, distinct keys: %v, %v", name, values, err)
		}
		values, err = inProcess(t.Context(), "waiters 100 "+name)
		if err != nil || len(values) != 2 || values[0] <= 0 || values[1] <= 0 {
			t.Errorf("%s, waiters: %v, %v", name, values, err)
		}
	}
	if values, err := inProcess(t.Context(), "readers 100"); err != nil || len(values) != 2 || values[0] <= 0 {
		t.Errorf("readers: %v, %v", values, err)
	}
	const calls = 2_000 // the figures are not judged
	if _, allocs := tableCost(calls); allocs > 100 {
		t.Errorf("the table allocates %v times", allocs)
	}
	if _, allocs, err := driverCost(calls); err != nil || allocs <= 0 {
		t.Errorf("the driver over a stub: %v allocations, %v", allocs, err)
	}
}

func sampleReport() *report {
	nan := math.NaN()
	c := &cellResult{cell: at("unique 1 row", 16, timeout, direct)}
	for name, rates := range map[string][]float64{pgx16: {100, 200, 50}, generic: {90, 180, 45}, pipelined: {200, 300, 80}} {
		r := contenderResult{Contender: name, Backends: nan}
		for _, v := range rates {
			r.Rounds = append(r.Rounds, figures{N: 1, Rate: v, P99: 1e6 / v, ServerCPU: nan, SlowRate: nan, SlowP99: nan})
		}
		c.Results = append(c.Results, r)
	}
	slices.SortFunc(c.Results, func(a, b contenderResult) int { return strings.Compare(b.Contender, a.Contender) })
	c.compare()
	rep := &report{Cells: []*cellResult{c}}
	rep.addLayer(layerDistinct256, layerOurs, 800)
	rep.addLayer(layerDistinct256, layerXSync, 100)
	rep.addLayer(layerWaiterKB, layerOurs, 7)
	rep.Targets = judge(rep)
	return rep
}

// TestJudge: targets are held against the median of the rounds' ratios, not against
// the ratio of medians.
func TestJudge(t *testing.T) {
	rep := sampleReport()
	got := make(map[string]targetResult)
	for _, r := range rep.Targets {
		if r.Met != notMeasured {
			got[r.What+", "+r.Figure] = r
		}
	}
	for what, want := range map[string]struct {
		measured float64
		met      string
	}{
		"unique 1 row, 16 goroutines, timeouts, rate ×":                            {1.6, "yes"},
		"unique 1 row, 16 goroutines, timeouts, p99 ×":                             {0.625, "no"},
		"table against x/sync, 256 goroutines on distinct keys, rate, over x/sync": {8, "yes"},
		"400,000 waiters on one flight, KB each, ":                                 {7, "no"},
	} {
		r, ok := got[what]
		if !ok || math.Abs(float64(r.Measured)-want.measured) > 1e-9 || r.Met != want.met {
			t.Errorf("%s: %+v; want %v, %s", what, r, want.measured, want.met)
		}
		delete(got, what)
	}
	for what := range got {
		t.Errorf("%s was not measured, but judged", what)
	}
}

// TestJudge_Failed: a contender that failed has no figures.
func TestJudge_Failed(t *testing.T) {
	rep := sampleReport()
	rep.Cells[0].result(pipelined).Error = "it broke"
	for _, r := range judge(rep) {
		if strings.HasPrefix(r.What, "unique") && r.Met != notMeasured {
			t.Errorf("%+v; want nothing of a contender that failed", r)
		}
	}
}

func TestMeta_Quiet(t *testing.T) {
	for share, want := range map[float64]string{0.01: "1 %", 0.4: "not quiet: other processes took 40 %", math.NaN(): ""} {
		if got := (&meta{Others: number(share)}).quiet(); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("of a share of %v it is said %q; want %q", share, got, want)
		}
	}
}

func TestNumber(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 1.5: "1.5", 123456.7: "123460", 0.000012345678: "0.000012346", math.Inf(1): "null"} {
		if got, err := json.Marshal(number(v)); err != nil || string(got) != want {
			t.Errorf("number(%v) = %s, %v; want %s", v, got, err, want)
		}
	}
	if got, _ := json.Marshal(number(math.NaN())); string(got) != "null" {
		t.Errorf("NaN = %s; want null", got)
	}
}

// TestCallers_HaveTheirOwnKeys: what is called unique is.
func TestCallers_HaveTheirOwnKeys(t *testing.T) {
	for _, goroutines := range allGoroutines {
		keys := int64(rowCount / goroutines)
		for _, n := range []int64{0, 1, keys, 5*keys + 3} {
			c := &caller{keys: keys, first: 1 + int64(goroutines-1)*keys, n: n}
			if k := c.own(); k < c.first || k >= c.first+keys || k > rowCount {
				t.Errorf("of %d callers the last has key %d", goroutines, k)
			}
		}
	}
	var o op
	for _, rows := range []int64{100, 10_000} {
		for _, key := range []int64{1, 50_000, rowCount} {
			many(rows, func(*caller) int64 { return key })[0].next(nil, &o)
			if o.a < 1 || o.b > rowCount || o.b-o.a+1 != rows {
				t.Errorf("%d rows from key %d on: %d to %d", rows, key, o.a, o.b)
			}
		}
	}
}

func TestHistograms_AreEmpty(t *testing.T) {
	b := &bench{}
	h := b.histograms(3)
	h[1].Add(time.Second)
	again := b.histograms(3)
	if n := again[1].N(); n != 0 || &again[0] != &h[0] {
		t.Errorf("a histogram has %d durations of the measurement before", n)
	}
}
