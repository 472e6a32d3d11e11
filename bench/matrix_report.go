package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/flightpg/flightpg"
	"github.com/flightpg/flightpg/bench/internal/chart"
	"github.com/flightpg/flightpg/bench/internal/stats"
)

// matrixReport is all that a run of the matrix has found.
type matrixReport struct {
	Meta   meta           `json:"meta"`
	Shapes []*shapeResult `json:"workloads"`
}

// shapeResult is what a shape gave.
type shapeResult struct {
	Name    string        `json:"workload"`
	Length  string        `json:"length"` // of a round
	Skipped string        `json:"skipped,omitempty"`
	Lines   []line        `json:"figures"`
	Results []rivalResult `json:"results"`

	shape *shape
}

// rivalResult is what a contender did in a shape.
type rivalResult struct {
	Contender string          `json:"contender"`
	Error     string          `json:"error,omitempty"`  // its figures do not count then
	First     int             `json:"connections"`      // opened in the warm-up
	Opened    number          `json:"opened_a_minute"`  // after it
	Cancels   number          `json:"cancels_a_minute"` // cancel requests sent, each by a connection of its own
	Flights   uint64          `json:"flights"`
	Joins     uint64          `json:"joins"`
	Bypasses  uint64          `json:"bypasses"`
	Retries   uint64          `json:"retries"`
	Rounds    [][]partFigures `json:"rounds"` // of each, those of each part

	before flightpg.Stats
	sent   int // cancel requests in the warm-up
	took   time.Duration
}

// line is a figure of a part, of all contenders.
type line struct {
	Part   string  `json:"part,omitempty"`
	Figure string  `json:"figure"`
	PGX    number  `json:"pgx"` // its median
	Ratios []ratio `json:"ratios"`

	part int
}

// ratio is a contender's figure by pgx's of the same round, turned so that more is
// better.
type ratio struct {
	Contender string `json:"contender"`
	Median    number `json:"median"`
	Worst     number `json:"worst"`
	P99       number `json:"p99"`  // pgx's p99 over the contender's, median
	CPU       number `json:"cpu"`  // of client and server for a call, over pgx's, median: less is better
	Late      number `json:"late"` // share of what arrived, of all rounds
	Low       bool   `json:"low"`  // the median is below what it should reach
	LowRound  bool   `json:"low_round"`
	Beyond    bool   `json:"beyond_noise"` // the median is low, and below all rounds of pgx again
}

// compare fills in the lines.
func (s *shapeResult) compare() {
	pgx := &s.Results[0]
	for p := range s.shape.parts {
		part := &s.shape.parts[p]
		for _, figure := range part.counted() {
			l := line{Part: part.name, Figure: figure, PGX: number(stats.Median(pgx.all(p, figure))), part: p}
			for i := range s.Results {
				r := &s.Results[i]
				if r.Error != "" || pgx.Error != "" {
					continue
				}
				values, p99 := better(r, pgx, p, figure), better(r, pgx, p, figP99)
				x := ratio{
					Contender: r.Contender,
					Median:    number(stats.Median(values)), Worst: number(stats.Quantile(values, 0)),
					P99:  number(stats.Median(p99)),
					CPU:  number(stats.Median(finite(stats.Ratios(r.cpu(), pgx.cpu())))),
					Late: number(mean(r.rounds(p, func(f *partFigures) float64 { return float64(f.Late) }))),
				}
				limit := s.shape.limit(r.Contender)
				x.Low, x.LowRound = float64(x.Median) < limit, float64(x.Worst) < limit
				l.Ratios = append(l.Ratios, x)
			}
			if again := l.of(pgxAgain); again != nil {
				for i := range l.Ratios {
					x := &l.Ratios[i]
					x.Beyond = x.Low && x.Median < again.Worst
				}
			}
			s.Lines = append(s.Lines, l)
		}
	}
}

// better returns the rounds' ratios to pgx, in which more is better: of those in which
// both have the figure, as nobody's p99 is that of no call.
func better(r, pgx *rivalResult, part int, figure string) []float64 {
	mine, base := r.all(part, figure), pgx.all(part, figure)
	if figure != figRate {
		mine, base = base, mine
	}
	return finite(stats.Ratios(mine, base))
}

func finite(values []float64) []float64 {
	return slices.DeleteFunc(values, func(v float64) bool { return math.IsNaN(v) || math.IsInf(v, 0) })
}

// cpu returns the CPU time of client and server for a call, of each round.
func (r *rivalResult) cpu() []float64 {
	values := make([]float64, len(r.Rounds))
	for i, parts := range r.Rounds {
		n := 0.0
		for _, f := range parts {
			n += float64(f.N)
		}
		values[i] = float64(parts[0].CPU) / n
	}
	return values
}

func mean(values []float64) float64 {
	sum := 0.0
	for _, v := range values {
		sum += v
	}
	return sum / float64(len(values))
}

func (r *rivalResult) rounds(part int, get func(*partFigures) float64) []float64 {
	values := make([]float64, len(r.Rounds))
	for i := range r.Rounds {
		values[i] = get(&r.Rounds[i][part])
	}
	return values
}

func (r *rivalResult) all(part int, figure string) []float64 {
	return r.rounds(part, func(f *partFigures) float64 { return f.get(figure) })
}

func (l *line) of(contender string) *ratio {
	for i := range l.Ratios {
		if l.Ratios[i].Contender == contender {
			return &l.Ratios[i]
		}
	}
	return nil
}

func (s *shapeResult) result(contender string) *rivalResult {
	for i := range s.Results {
		if s.Results[i].Contender == contender {
			return &s.Results[i]
		}
	}
	return nil
}

// name of a line: the shape's, and what is said of it.
func (l *line) name(s *shapeResult) string {
	n := s.Name
	if l.Part != "" {
		n += ", " + l.Part
	}
	return n
}

// value writes pgx's figure.
func (l *line) value() string {
	if l.Figure == figRate {
		return short(float64(l.PGX)) + " /s"
	}
	return duration(float64(l.PGX))
}

// marked writes a ratio, with a mark if it is low.
func marked(v number, low bool) string {
	if low {
		return "**" + short(float64(v)) + " ▼**"
	}
	return short(float64(v))
}

// print writes the shape for somebody who watches.
func (s *shapeResult) print(to io.Writer) {
	if s.Skipped != "" {
		fmt.Fprintf(to, "%-62s skipped: %s\n", s.Name, s.Skipped)
		return
	}
	for i := range s.Lines {
		l := &s.Lines[i]
		fmt.Fprintf(to, "%-62s %-4s %9s", l.name(s), l.Figure, l.value())
		for j := range s.Results {
			r := &s.Results[j]
			if r.Contender == pgx16 {
				continue
			}
			if x := l.of(r.Contender); x != nil {
				fmt.Fprintf(to, "  %s %s worst %s, %d+%s conns", r.Contender, marked(x.Median, x.Low), marked(x.Worst, x.LowRound), r.First, short(float64(r.Opened)))
			} else {
				fmt.Fprintf(to, "  %s failed", r.Contender)
			}
		}
		fmt.Fprintln(to)
	}
}

// summary counts what is low.
func (rep *matrixReport) summary() string {
	var b strings.Builder
	for _, r := range rivals[1:] {
		lines, low, lowRound, failed := 0, 0, 0, 0
		var beyond []string
		for _, s := range rep.Shapes {
			if res := s.result(r.name); res != nil && res.Error != "" {
				failed++
			}
			for i := range s.Lines {
				if x := s.Lines[i].of(r.name); x != nil {
					lines++
					if x.Low {
						low++
					}
					if x.Beyond {
						beyond = append(beyond, fmt.Sprintf("%s, %s: %s", s.Lines[i].name(s), s.Lines[i].Figure, short(float64(x.Median))))
					}
					if x.LowRound {
						lowRound++
					}
				}
			}
		}
		if lines+failed > 0 {
			fmt.Fprintf(&b, "- **%s**: %d figures; of %d the median is low, of %d the worst round; %d workloads failed", r.name, lines, low, lowRound, failed)
			if len(beyond) > 0 {
				fmt.Fprintf(&b, ". Beyond the noise, with a median below all rounds of *%s*, are %d: %s", pgxAgain, len(beyond), strings.Join(beyond, "; "))
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

func (rep *matrixReport) writeMarkdown(to io.Writer, name string) error {
	m := &rep.Meta
	var b strings.Builder
	fmt.Fprintf(&b, "# Workloads\n\nWritten by `make workloads`; [performance.md](../performance.md#workloads-in-which-nothing-is-shared) says what the figures mean.\n\n")
	fmt.Fprintf(&b, "Commit %s; %s, %s, %d CPUs (%s); %s, PostgreSQL %s", m.Commit, m.Date, m.OS, m.CPUs, m.CPU, m.Go, m.PostgreSQL)
	for _, module := range slices.Sorted(keysOf(m.Modules)) {
		fmt.Fprintf(&b, ", %s %s", module, m.Modules[module])
	}
	fmt.Fprintf(&b, ". %d rounds of %s each; it took %s. Client and server share the CPUs.%s\n\n", m.Rounds, rep.lengths(), m.Took, m.quiet())
	fmt.Fprintf(&b, "No two calls that are under way are the same. Ratios to pgx of the same round, in which more is better: rates over pgx's, pgx's times over ours. ▼: below 0.9, and of *generic* with unique rows and up to 256 callers below 0.95.\n\n")
	b.WriteString(rep.summary())
	fmt.Fprintf(&b, "\n![medians and worst rounds](%s.svg)\n\n", name)
	b.WriteString("Contenders: ")
	for i, r := range rivals {
		if i > 0 {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "**%s**: %s", r.name, r.about)
	}
	b.WriteString(".\n\nIn each pair: the median of the rounds, and the worst round. *p99*: pgx's p99 over the contender's, median. *CPU*: of client and server for a call, over pgx's, median: less is better; without what poolers take. *late*: what arrived by the clock and took more than 250 ms, pgx / default / generic. *connections*: opened in the warm-up + in a minute after it, pgx / default / generic.\n\n")
	b.WriteString("| workload | figure | pgx | pgx again | default | generic | p99 × default, generic | CPU × | late | connections |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, s := range rep.Shapes {
		if s.Skipped != "" {
			fmt.Fprintf(&b, "| %s | skipped: %s |||||||||\n", s.Name, cellText(s.Skipped))
			continue
		}
		for i := range s.Lines {
			l := &s.Lines[i]
			fmt.Fprintf(&b, "| %s | %s | %s |", l.name(s), l.Figure, l.value())
			for _, contender := range []string{pgxAgain, byDefault, generic} {
				switch x, r := l.of(contender), s.result(contender); {
				case x != nil:
					fmt.Fprintf(&b, " %s, %s |", marked(x.Median, x.Low), marked(x.Worst, x.LowRound))
				case r != nil && r.Error != "":
					fmt.Fprintf(&b, " **failed ▼**: %s |", cellText(r.Error))
				default:
					b.WriteString(" - |")
				}
			}
			var p99s, cpus, lates, opened []string
			for _, contender := range []string{pgx16, byDefault, generic} {
				p99, cpu, late := "-", "-", "-"
				if x := l.of(contender); x != nil {
					p99, cpu, late = short(float64(x.P99)), short(float64(x.CPU)), fmt.Sprintf("%.1f %%", 100*float64(x.Late))
				}
				if contender != pgx16 {
					p99s, cpus = append(p99s, p99), append(cpus, cpu)
				}
				lates = append(lates, late)
				if r := s.result(contender); r != nil {
					opened = append(opened, fmt.Sprintf("%d + %.0f", r.First, float64(r.Opened)))
				}
			}
			late := "-"
			if s.shape.open > 0 {
				late = strings.Join(lates, " / ")
			}
			fmt.Fprintf(&b, " %s | %s | %s | %s |\n", strings.Join(p99s, ", "), strings.Join(cpus, ", "), late, strings.Join(opened, " / "))
		}
	}
	_, err := io.WriteString(to, b.String())
	return err
}

// cellText fits into a cell of a table.
func cellText(s string) string {
	return strings.NewReplacer("|", "\\|", "\n", " ").Replace(s)
}

// lengths says how long the rounds were.
func (rep *matrixReport) lengths() string {
	r := &report{}
	for _, s := range rep.Shapes {
		r.Cells = append(r.Cells, &cellResult{Length: s.Length}) // none of those that were skipped
	}
	return r.lengths()
}

// writeJSON writes the raw data, one contender of a shape in a line.
func (rep *matrixReport) writeJSON(to io.Writer, _ string) error {
	text, err := json.Marshal(rep)
	if err != nil {
		return err
	}
	lines := strings.NewReplacer(`{"contender":`, "\n{\"contender\":", `{"workload":`, "\n{\"workload\":").Replace(string(text))
	_, err = io.WriteString(to, lines+"\n")
	return err
}

// writeSVG draws the medians, each with the range down to the worst round.
func (rep *matrixReport) writeSVG(to io.Writer, _ string) error {
	m := &rep.Meta
	c := &chart.Chart{
		Title: "No slower where nothing is shared: ratios to pgx's database/sql driver, as many connections",
		Notes: []string{
			fmt.Sprintf("%s, %d CPUs (%s), %s, PostgreSQL %s.", m.Date, m.CPUs, m.CPU, m.Go, m.PostgreSQL),
			fmt.Sprintf("Points: medians of %d interleaved rounds; below them: down to the worst round. More is better: rates over pgx's, pgx's times over ours.", m.Rounds),
			"pgx again: a second handle of pgx in the same rounds, which shows what the machine does. The short bars: 0.9.",
		},
	}
	if quiet := strings.TrimSpace(strings.ReplaceAll(m.quiet(), "**", "")); quiet != "" {
		c.Notes = append(c.Notes, quiet)
	}
	const wide = 7 // places in a panel
	type place struct {
		s *shapeResult
		l *line
	}
	var groups []string
	places := make(map[string][]place)
	for _, s := range rep.Shapes {
		for i := range s.Lines {
			g := s.shape.group
			if places[g] == nil {
				groups = append(groups, g)
			}
			places[g] = append(places[g], place{s, &s.Lines[i]})
		}
	}
	for _, g := range groups {
		for part := range slices.Chunk(places[g], wide) {
			p := chart.Panel{Title: g}
			for i, at := range part {
				p.Places = append(p.Places, at.s.shape.place(at.l.Part, at.l.Figure))
				p.Marks = append(p.Marks, chart.Mark{Place: i, Y: 0.9})
			}
			for _, r := range rivals[1:] {
				series := chart.Series{Name: r.name}
				for i, at := range part {
					if x := at.l.of(r.name); x != nil && x.Median > 0 && !math.IsInf(float64(x.Median), 0) {
						series.Points = append(series.Points, chart.Point{Place: i, Y: float64(x.Median), Low: float64(x.Worst), High: float64(x.Median)})
					}
				}
				if len(series.Points) > 0 {
					p.Series = append(p.Series, series)
				}
			}
			c.Panels = append(c.Panels, p)
		}
	}
	return c.Write(to)
}

// place is what the picture calls a figure of a shape.
func (s *shape) place(part, figure string) string {
	label := s.label
	if part != "" {
		label += " " + part
	}
	if len(s.parts) > 1 || len(s.parts[0].counted()) > 1 {
		label += " " + figure
	}
	return wrapped(label)
}

// wrapped breaks a label into lines of some 12 letters, of which a panel has room for
// four.
func wrapped(label string) string {
	var lines []string
	for _, word := range strings.Fields(label) {
		if n := len(lines); n > 0 && len(lines[n-1])+1+len(word) <= 12 {
			lines[n-1] += " " + word
		} else {
			lines = append(lines, word)
		}
	}
	return strings.Join(lines, "\n")
}
