// Package chart draws the benchmarks' figures as SVG: panels of ratios on a
// logarithmic scale, with the targets as marks. What it writes is readable on a
// light and on a dark background.
package chart

import (
	"encoding/xml"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
)

// Chart is a picture.
type Chart struct {
	Title  string
	Notes  []string // small print below
	Panels []Panel
}

// Panel is one diagram: values over places on the x axis.
type Panel struct {
	Title  string
	XLabel string
	Places []string // names on the x axis, from left to right
	Joined bool     // the points of a series are joined by lines: the places are an order
	Series []Series
	Marks  []Mark
}

// Series is a row of points of one colour. Series of the same name have the same
// colour in all panels.
type Series struct {
	Name   string
	Points []Point
}

// Point is a value with its spread. Values are above 0.
type Point struct {
	Place        int
	Y, Low, High float64
}

// Mark is a value that should be reached.
type Mark struct {
	Place int
	Y     float64
}

const (
	columns     = 2
	panelWidth  = 480
	panelHeight = 310
	left        = 52 // room within a panel
	right       = 14
	top         = 34
	bottom      = 66
	header      = 58
	legendRow   = 18
)

// palette has colours that can be told apart on white and on black.
var palette = []string{"#2f81f7", "#e5632e", "#2da44e", "#b05cd6", "#c69026", "#13a8a8", "#d6409f", "#8a8f98", "#7a6ff0"}

// style has greys that can be read on white and on black, for what shows pictures
// without knowing what is behind them, and better ones for what does.
const style = `text{font:12px system-ui,-apple-system,"Segoe UI",sans-serif;fill:#768390}.t{font-size:14px;font-weight:600}.h{font-size:17px;font-weight:600}.s{font-size:11px}.p{font-size:10px}.g{stroke:#8c959f;stroke-opacity:.35}.one{stroke:#768390;stroke-dasharray:5 3}.m{stroke:#768390;stroke-width:2.5}@media(prefers-color-scheme:light){text{fill:#32383f}.m{stroke:#24292f}}@media(prefers-color-scheme:dark){text{fill:#d1d9e0}.m{stroke:#e6edf3}}`

// Write writes the picture.
func (c *Chart) Write(to io.Writer) error {
	names := c.names()
	rows := (len(c.Panels) + columns - 1) / columns
	legend := (len(names) + 1 + 4) / 5 * legendRow // five in a row, and the targets' mark
	width := columns * panelWidth
	height := header + legend + rows*panelHeight + 16*len(c.Notes) + 16

	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" aria-label="%s">`+"\n", width, height, escape(c.Title))
	fmt.Fprintf(&b, "<style>%s</style>\n", style)
	fmt.Fprintf(&b, `<text class="h" x="16" y="28">%s</text>`+"\n", escape(c.Title))
	for i := range len(names) + 1 {
		x, y := 16+i%5*(width-32)/5, header+i/5*legendRow
		if i == len(names) {
			mark(&b, float64(x+8), float64(y-4))
			fmt.Fprintf(&b, `<text x="%d" y="%d">target</text>`+"\n", x+24, y)
			break
		}
		fmt.Fprintf(&b, `<circle cx="%d" cy="%d" r="5" fill="%s"/><text x="%d" y="%d">%s</text>`+"\n", x+8, y-4, colour(i), x+24, y, escape(names[i]))
	}
	for i := range c.Panels {
		fmt.Fprintf(&b, `<g transform="translate(%d %d)">`+"\n", i%columns*panelWidth, header+legend+i/columns*panelHeight)
		c.Panels[i].write(&b, names)
		b.WriteString("</g>\n")
	}
	for i, note := range c.Notes {
		fmt.Fprintf(&b, `<text class="s" x="16" y="%d">%s</text>`+"\n", header+legend+rows*panelHeight+16*(i+1), escape(note))
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(to, b.String())
	return err
}

// names returns the names of all series, in the order in which they first come.
func (c *Chart) names() (names []string) {
	for _, p := range c.Panels {
		for _, s := range p.Series {
			if !slices.Contains(names, s.Name) {
				names = append(names, s.Name)
			}
		}
	}
	return names
}

func colour(i int) string { return palette[i%len(palette)] }

func (p *Panel) write(b *strings.Builder, names []string) {
	low, high := p.bounds()
	y := func(v float64) float64 {
		v = min(max(v, low), high)
		return top + (panelHeight-top-bottom)*(1-math.Log(v/low)/math.Log(high/low))
	}
	step := float64(panelWidth-left-right) / float64(max(len(p.Places), 1))
	x := func(place int) float64 { return left + step*(float64(place)+0.5) }

	fmt.Fprintf(b, `<text class="t" x="%d" y="20">%s</text>`+"\n", left, escape(p.Title))
	for _, v := range ticks(low, high) {
		class := "g"
		if v == 1 {
			class = "one"
		}
		fmt.Fprintf(b, `<line class="%s" x1="%d" x2="%d" y1="%.1f" y2="%.1f"/><text class="s" x="%d" y="%.1f" text-anchor="end">×%g</text>`+"\n",
			class, left, panelWidth-right, y(v), y(v), left-6, y(v)+4, v)
	}
	for i, name := range p.Places {
		lines := strings.Split(name, "\n")
		for j, line := range lines {
			fmt.Fprintf(b, `<text class="p" x="%.1f" y="%d" text-anchor="middle">%s</text>`+"\n", x(i), panelHeight-bottom+16+12*j, escape(line))
		}
	}
	fmt.Fprintf(b, `<text class="s" x="%d" y="%d" text-anchor="middle">%s</text>`+"\n", (left+panelWidth-right)/2, panelHeight-10, escape(p.XLabel))

	for i, s := range p.Series {
		c := colour(slices.Index(names, s.Name))
		// Side by side, so that none hides another.
		beside := 0.0
		if !p.Joined {
			beside = (float64(i) - float64(len(p.Series)-1)/2) * min(9, step/float64(len(p.Series)+1))
		}
		if p.Joined && len(s.Points) > 1 {
			path := make([]string, len(s.Points))
			for j, pt := range s.Points {
				path[j] = fmt.Sprintf("%.1f,%.1f", x(pt.Place), y(pt.Y))
			}
			fmt.Fprintf(b, `<polyline fill="none" stroke="%s" stroke-width="2" points="%s"/>`+"\n", c, strings.Join(path, " "))
		}
		for _, pt := range s.Points {
			px := x(pt.Place) + beside
			if pt.Low > 0 && pt.High > pt.Low {
				fmt.Fprintf(b, `<line stroke="%s" stroke-opacity=".5" stroke-width="3" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`, c, px, px, y(pt.Low), y(pt.High))
			}
			fmt.Fprintf(b, `<circle cx="%.1f" cy="%.1f" r="4" fill="%s"><title>%s, %s: ×%.2f</title></circle>`+"\n",
				px, y(pt.Y), c, escape(s.Name), escape(strings.ReplaceAll(p.Places[pt.Place], "\n", " ")), pt.Y)
		}
	}
	for _, m := range p.Marks {
		mark(b, x(m.Place), y(m.Y))
	}
}

// mark draws the sign of a target.
func mark(b *strings.Builder, x, y float64) {
	fmt.Fprintf(b, `<line class="m" x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f"/>`+"\n", x-13, x+13, y, y)
}

// bounds returns the ends of the y axis: whole steps of 1, 2 and 5 around all that
// is drawn, and 1.
func (p *Panel) bounds() (low, high float64) {
	low, high = 1, 1
	take := func(v float64) {
		if v > 0 && !math.IsInf(v, 0) {
			low, high = min(low, v), max(high, v)
		}
	}
	for _, s := range p.Series {
		for _, pt := range s.Points {
			take(pt.Y)
			take(pt.Low)
			take(pt.High)
		}
	}
	for _, m := range p.Marks {
		take(m.Y)
	}
	return stepBelow(low * 0.999), stepAbove(high * 1.001)
}

func stepBelow(v float64) float64 {
	e := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{5, 2} {
		if m*e <= v {
			return m * e
		}
	}
	return e
}

func stepAbove(v float64) float64 {
	e := math.Pow(10, math.Floor(math.Log10(v)))
	for _, m := range []float64{1, 2, 5} {
		if m*e >= v {
			return m * e
		}
	}
	return 10 * e
}

// ticks returns the steps of 1, 2 and 5 from low to high.
func ticks(low, high float64) (at []float64) {
	for e := math.Floor(math.Log10(low)); e <= math.Ceil(math.Log10(high)); e++ {
		for _, m := range []float64{1, 2, 5} {
			v := m * math.Pow(10, e)
			if e < 0 {
				v = m / math.Pow(10, -e) // prints without a tail
			}
			if v >= low*0.999 && v <= high*1.001 {
				at = append(at, v)
			}
		}
	}
	return at
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a Builder does not fail
	return b.String()
}
