package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/flightpg/flightpg/bench/internal/chart"
	"github.com/flightpg/flightpg/bench/internal/stats"
)

// report is all that a run has found.
type report struct {
	Meta    meta           `json:"meta"`
	Targets []targetResult `json:"targets"`
	Cells   []*cellResult  `json:"cells"`
	Layers  []layerResult  `json:"layers"`
}

// meta says where and with what a run was.
type meta struct {
	Date       string            `json:"date"`
	Took       string            `json:"took"`
	Others     number            `json:"others"` // the share of the CPUs that went to other processes
	Commit     string            `json:"commit"`
	Go         string            `json:"go"`
	PostgreSQL string            `json:"postgresql"`
	Modules    map[string]string `json:"modules"`
	OS         string            `json:"os"`
	CPU        string            `json:"cpu"`
	CPUs       int               `json:"cpus"`
	GOMAXPROCS int               `json:"gomaxprocs"`
	Rounds     int               `json:"rounds"`
	Flags      []string          `json:"flags"`
}

func newMeta(o *options) meta {
	m := meta{
		Date:       time.Now().UTC().Format("2006-01-02 15:04 UTC"),
		Commit:     commit(),
		Go:         runtime.Version(),
		Modules:    make(map[string]string),
		OS:         runtime.GOOS + "/" + runtime.GOARCH,
		CPU:        cpuModel(),
		CPUs:       runtime.NumCPU(),
		GOMAXPROCS: runtime.GOMAXPROCS(0),
		Rounds:     o.rounds,
	}
	for i, arg := range os.Args[1:] {
		if arg == "-o" || i > 0 && os.Args[i] == "-o" {
			continue // where it was written is the writer's matter
		}
		if strings.Contains(arg, "://") || i > 0 && strings.HasSuffix(os.Args[i], "dsn") {
			arg = "…" // it may have a password
		}
		m.Flags = append(m.Flags, arg)
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, d := range info.Deps {
			if slices.Contains([]string{"github.com/jackc/pgx/v5", "golang.org/x/sync", "resenje.org/singleflight"}, d.Path) {
				m.Modules[d.Path] = d.Version
			}
		}
	}
	return m
}

// commit says what was measured, as far as git is there and knows it.
func commit() string {
	out, err := exec.Command("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// cpuModel returns the processor's name, as far as the system tells it.
func cpuModel() string {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err == nil {
		for line := range strings.Lines(string(text)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				return strings.TrimSpace(value)
			}
		}
	}
	return "unknown"
}

// number is a figure as it is written: with five digits, or as null if there is
// none.
type number float64

// MarshalJSON implements json.Marshaler.
func (n number) MarshalJSON() ([]byte, error) {
	v := float64(n)
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return []byte("null"), nil
	}
	short, err := strconv.ParseFloat(strconv.FormatFloat(v, 'g', 5, 64), 64)
	if err != nil {
		return nil, err
	}
	return strconv.AppendFloat(nil, short, 'f', -1, 64), nil
}

// fields are the figures with their names, for the raw data.
var fields = []struct {
	name string
	get  func(*figures) *float64
}{
	{"n", func(f *figures) *float64 { return &f.N }},
	{"seconds", func(f *figures) *float64 { return &f.Seconds }},
	{"rate", rate},
	{"p50_ns", p50},
	{"p99_ns", p99},
	{"client_cpu_ns", clientTime},
	{"server_cpu_ns", serverTime},
	{"allocs", allocations},
	{"bytes", func(f *figures) *float64 { return &f.Bytes }},
	{"slow_rate", slowRate},
	{"slow_p99_ns", func(f *figures) *float64 { return &f.SlowP99 }},
}

func rate(f *figures) *float64        { return &f.Rate }
func p50(f *figures) *float64         { return &f.P50 }
func p99(f *figures) *float64         { return &f.P99 }
func clientTime(f *figures) *float64  { return &f.ClientCPU }
func serverTime(f *figures) *float64  { return &f.ServerCPU }
func allocations(f *figures) *float64 { return &f.Allocs }
func slowRate(f *figures) *float64    { return &f.SlowRate }

// MarshalJSON implements json.Marshaler.
func (f figures) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, field := range fields {
		if i > 0 {
			b = append(b, ',')
		}
		v, err := number(*field.get(&f)).MarshalJSON()
		if err != nil {
			return nil, err
		}
		b = append(append(append(strconv.AppendQuote(b, field.name), ':'), v...), ' ')
	}
	return append(b, '}'), nil
}

// cellResult is what a cell gave.
type cellResult struct {
	cell
	Length  string            `json:"length"` // of a measurement
	Results []contenderResult `json:"results"`
}

// contenderResult is what a contender did in a cell.
type contenderResult struct {
	Contender string    `json:"contender"`
	Error     string    `json:"error,omitempty"` // its figures do not count then
	Backends  float64   `json:"-"`               // connections at the end; NaN: none are known
	Rounds    []figures `json:"rounds"`

	Ratio    number `json:"ratio"` // to pgx-16: the median of the rounds' ratios of rates
	Low      number `json:"low"`
	High     number `json:"high"`
	RatioP99 number `json:"ratio_p99"`
	RatioCPU number `json:"ratio_cpu"` // of client and server together, for an operation
	Open     number `json:"backends"`

	app     string
	profile profiled // with -profile
}

func (c *cellResult) result(contender string) *contenderResult {
	for i := range c.Results {
		if c.Results[i].Contender == contender {
			return &c.Results[i]
		}
	}
	return nil
}

// all returns a figure of all rounds.
func (r *contenderResult) all(get func(*figures) *float64) []float64 {
	values := make([]float64, len(r.Rounds))
	for i := range r.Rounds {
		values[i] = *get(&r.Rounds[i])
	}
	return values
}

func (r *contenderResult) median(get func(*figures) *float64) float64 {
	return stats.Median(r.all(get))
}

// compare fills in the ratios.
func (c *cellResult) compare() {
	for i := range c.Results {
		r := &c.Results[i]
		rates := c.figure(ratioRate, r.Contender)
		r.Ratio = number(stats.Median(rates))
		r.Low, r.High = number(stats.Quantile(rates, 0)), number(stats.Quantile(rates, 1))
		r.RatioP99 = number(stats.Median(c.figure(ratioP99, r.Contender)))
		r.RatioCPU = number(stats.Median(c.figure(ratioCPU, r.Contender)))
		r.Open = number(r.Backends)
	}
}

// print writes the cell for somebody who watches.
func (c *cellResult) print(to io.Writer) {
	for i := range c.Results {
		r := &c.Results[i]
		fmt.Fprintf(to, "%-44s %-12s ", c.cell.String(), r.Contender)
		if r.Error != "" {
			fmt.Fprintln(to, "failed:", r.Error)
			continue
		}
		fmt.Fprintf(to, "×%-6s [%s–%s] %9.0f/s  p50 %-8s p99 %-8s cpu ×%-5s %s + %s  allocs %s  conns %s",
			short(float64(r.Ratio)), short(float64(r.Low)), short(float64(r.High)), r.median(rate), duration(r.median(p50)), duration(r.median(p99)),
			short(float64(r.RatioCPU)), duration(r.median(clientTime)), duration(r.median(serverTime)), short(r.median(allocations)), short(r.Backends))
		if v := r.median(slowRate); !math.IsNaN(v) {
			fmt.Fprintf(to, "  slow side ×%s", short(stats.Median(c.figure(ratioSlowRate, r.Contender))))
		}
		fmt.Fprintln(to)
	}
}

// short writes a figure with three digits, and - for none.
func short(v float64) string {
	switch {
	case math.IsNaN(v) || math.IsInf(v, 0):
		return "-"
	case math.Abs(v) >= 100:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case math.Abs(v) >= 10:
		return strconv.FormatFloat(v, 'f', 1, 64)
	}
	return strconv.FormatFloat(v, 'f', 2, 64)
}

// duration writes nanoseconds with three digits.
func duration(ns float64) string {
	switch {
	case math.IsNaN(ns):
		return "-"
	case ns >= 1e9:
		return short(ns/1e9) + " s"
	case ns >= 1e6:
		return short(ns/1e6) + " ms"
	case ns >= 1e3:
		return short(ns/1e3) + " µs"
	}
	return short(ns) + " ns"
}

// writeTargets writes the table of targets, or of those that were measured.
func (rep *report) writeTargets(to io.Writer, all bool) {
	fmt.Fprintln(to, "| what | figure | target | measured | rounds | generic executor | met |")
	fmt.Fprintln(to, "|---|---|---|---|---|---|---|")
	for _, t := range rep.Targets {
		if t.Met == notMeasured && !all {
			continue
		}
		fmt.Fprintf(to, "| %s | %s | %s | %s | %s – %s | %s | %s |\n", t.What, t.Figure, t.Target,
			short(float64(t.Measured)), short(float64(t.Low)), short(float64(t.High)), short(float64(t.Generic)), t.Met)
	}
}

func (rep *report) writeMarkdown(to *os.File) error {
	m := &rep.Meta
	var b strings.Builder
	fmt.Fprintf(&b, "# Benchmarks\n\nWritten by `make bench`; [performance.md](../performance.md) says what the figures mean.\n\n")
	fmt.Fprintf(&b, "Commit %s; %s, %s, %d CPUs (%s); %s, PostgreSQL %s", m.Commit, m.Date, m.OS, m.CPUs, m.CPU, m.Go, m.PostgreSQL)
	for _, name := range slices.Sorted(keysOf(m.Modules)) {
		fmt.Fprintf(&b, ", %s %s", name, m.Modules[name])
	}
	fmt.Fprintf(&b, ". %d rounds of %s each; it took %s. Client and server share the CPUs.%s\n\n", m.Rounds, rep.lengths(), m.Took, m.quiet())
	fmt.Fprintf(&b, "![ratios to pgx](bench.svg)\n\n## Targets\n\n")
	rep.writeTargets(&b, true)
	b.WriteString("\n## All figures\n\nContenders: ")
	for i := range contenders {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "**%s**: %s", contenders[i].name, contenders[i].about)
	}
	b.WriteString(".\n\n| workload | contender | rate × | rounds | rate /s | p50 | p99 | p99 × | CPU × | client CPU | server CPU | allocations | connections |\n|---|---|---|---|---|---|---|---|---|---|---|---|---|\n")
	for _, c := range rep.Cells {
		for i := range c.Results {
			r := &c.Results[i]
			if r.Error != "" {
				fmt.Fprintf(&b, "| %s | %s | failed: %s |||||||||||\n", c.cell.String(), r.Contender, strings.ReplaceAll(r.Error, "|", "\\|"))
				continue
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s – %s | %.0f | %s | %s | %s | %s | %s | %s | %s | %s |\n", c.cell.String(), r.Contender,
				short(float64(r.Ratio)), short(float64(r.Low)), short(float64(r.High)), r.median(rate), duration(r.median(p50)), duration(r.median(p99)),
				short(float64(r.RatioP99)), short(float64(r.RatioCPU)), duration(r.median(clientTime)), duration(r.median(serverTime)), short(r.median(allocations)), short(r.Backends))
		}
	}
	if len(rep.Layers) > 0 {
		b.WriteString("\n## Parts alone\n\n| what | contender | median | rounds |\n|---|---|---|---|\n")
		for _, l := range rep.Layers {
			fmt.Fprintf(&b, "| %s | %s | %s | %s – %s |\n", l.What, l.Contender,
				short(stats.Median(l.Rounds)), short(stats.Quantile(l.Rounds, 0)), short(stats.Quantile(l.Rounds, 1)))
		}
	}
	_, err := io.WriteString(to, b.String())
	return err
}

// quiet says what else went on.
func (m *meta) quiet() string {
	switch share := float64(m.Others) * 100; {
	case math.IsNaN(share):
		return ""
	case share > busyMachine*100:
		return fmt.Sprintf(" **The machine was not quiet: other processes took %.0f %% of its CPU time. The rates say little; CPU time, allocations and connections say more.**", share)
	default:
		return fmt.Sprintf(" Other processes took %.0f %% of the CPU time.", share)
	}
}

// busyMachine is the share of the CPUs which others may have on a quiet machine.
const busyMachine = 0.05

// lengths says how long the measurements were.
func (rep *report) lengths() string {
	var shortest, longest time.Duration
	for _, c := range rep.Cells {
		d, err := time.ParseDuration(c.Length)
		if err != nil {
			continue
		}
		if shortest == 0 || d < shortest {
			shortest = d
		}
		longest = max(longest, d)
	}
	if shortest == longest {
		return shortest.String()
	}
	return fmt.Sprintf("%s to %s", shortest, longest)
}

func keysOf(m map[string]string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for k := range m {
			if !yield(k) {
				return
			}
		}
	}
}

// writeJSON writes the raw data, one contender of a cell in a line.
func (rep *report) writeJSON(to *os.File) error {
	text, err := json.Marshal(rep)
	if err != nil {
		return err
	}
	lines := strings.NewReplacer(`{"contender"`, "\n{\"contender\"", `{"workload"`, "\n{\"workload\"", `{"what"`, "\n{\"what\"").Replace(string(text))
	_, err = io.WriteString(to, strings.ReplaceAll(lines, " }", "}")+"\n")
	return err
}

// panels are the diagrams in which goroutines grow.
var panels = []struct {
	title string
	of    cell
}{
	{"hot 1 row", at("hot 1 row", 0, background, direct)},
	{"unique 1 row, a timeout for each", at("unique 1 row", 0, timeout, direct)},
	{"unique 1 row, 1 ms round trip", at("unique 1 row", 0, timeout, delayed)},
	{"unique 100 rows, a timeout for each", at("unique 100 rows", 0, timeout, direct)},
}

// writeSVG draws the ratios of rates.
func (rep *report) writeSVG(to *os.File) error {
	m := &rep.Meta
	c := &chart.Chart{
		Title: "Operations per second, as a ratio to pgx's database/sql driver with 16 connections",
		Notes: []string{
			fmt.Sprintf("%s, %d CPUs (%s), %s, PostgreSQL %s.", m.Date, m.CPUs, m.CPU, m.Go, m.PostgreSQL),
			fmt.Sprintf("Points: medians of %d interleaved rounds; behind them: all rounds. The dashed line is pgx.", m.Rounds),
			"generic, pipeline: flightpg's executors. no-op, parking: drivers without a server, as ceilings. singleflight: x/sync by hand.",
		},
	}
	if quiet := strings.TrimSpace(strings.ReplaceAll(m.quiet(), "**", "")); quiet != "" {
		c.Notes = append(c.Notes, quiet)
	}
	inPanels := make(map[*cellResult]bool)
	for _, p := range panels {
		var cells []*cellResult
		for _, r := range rep.Cells {
			if p.of.Goroutines = r.Goroutines; p.of.is(&r.cell) {
				cells = append(cells, r)
				inPanels[r] = true
			}
		}
		slices.SortFunc(cells, func(a, b *cellResult) int { return a.Goroutines - b.Goroutines })
		if len(cells) > 0 {
			c.Panels = append(c.Panels, panel(p.title, "goroutines", true, cells, func(r *cellResult) string { return strconv.Itoa(r.Goroutines) }))
		}
	}
	var rest []*cellResult
	for _, r := range rep.Cells {
		if !inPanels[r] && r.Link != undelayed {
			rest = append(rest, r)
		}
	}
	const wide = 5 // places in a panel
	for part := range slices.Chunk(rest, wide) {
		if len(c.Panels) > 40 {
			break // of the full plan: the table has them all
		}
		c.Panels = append(c.Panels, panel("other workloads", "", false, part, func(r *cellResult) string {
			return strings.ReplaceAll(r.Workload, " ", "\n") + "\n" + strconv.Itoa(r.Goroutines)
		}))
	}
	return c.Write(to)
}

func panel(title, x string, joined bool, cells []*cellResult, place func(*cellResult) string) chart.Panel {
	p := chart.Panel{Title: title, XLabel: x, Joined: joined}
	for i, r := range cells {
		p.Places = append(p.Places, place(r))
		for _, t := range targets {
			if t.figure == ratioRate && t.cell.is(&r.cell) {
				p.Marks = append(p.Marks, chart.Mark{Place: i, Y: t.least})
			}
		}
	}
	for _, name := range contenderNames() {
		if name == pgx16 {
			continue // ×1
		}
		s := chart.Series{Name: name}
		for i, c := range cells {
			if r := c.result(name); r != nil && r.Error == "" && float64(r.Ratio) > 0 {
				s.Points = append(s.Points, chart.Point{Place: i, Y: float64(r.Ratio), Low: float64(r.Low), High: float64(r.High)})
			}
		}
		if len(s.Points) > 0 {
			p.Series = append(p.Series, s)
		}
	}
	return p
}
