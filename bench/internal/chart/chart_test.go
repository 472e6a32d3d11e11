package chart

import (
	"encoding/xml"
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func sample() *Chart {
	return &Chart{
		Title: `A < B & "C"`,
		Notes: []string{"one", "two"},
		Panels: []Panel{
			{
				Title: "joined", Places: []string{"1", "16", "256"}, Joined: true,
				Series: []Series{
					{"pgx", []Point{{0, 1, 1, 1}, {1, 1, 1, 1}, {2, 1, 1, 1}}},
					{"flightpg", []Point{{0, 0.9, 0.8, 1}, {1, 4.6, 4, 5}, {2, 12, 11, 13}}},
				},
				Marks: []Mark{{1, 5}},
			},
			{
				Title: "apart", Places: []string{"a\nb", "c"},
				Series: []Series{{"flightpg", []Point{{0, 2.5, 0, 0}, {1, 0.01, 0, 0}}}, {"other", nil}},
			},
			{Title: "empty"},
		},
	}
}

// elements parses an SVG, and returns the attributes of its elements by name.
func elements(t *testing.T, svg string) map[string][]map[string]string {
	t.Helper()
	found := make(map[string][]map[string]string)
	for d := xml.NewDecoder(strings.NewReader(svg)); ; {
		tok, err := d.Token()
		if errors.Is(err, io.EOF) {
			return found
		}
		if err != nil {
			t.Fatalf("not XML: %v", err)
		}
		if e, ok := tok.(xml.StartElement); ok {
			attrs := make(map[string]string)
			for _, a := range e.Attr {
				attrs[a.Name.Local] = a.Value
			}
			found[e.Name.Local] = append(found[e.Name.Local], attrs)
		}
	}
}

func TestChart(t *testing.T) {
	var b strings.Builder
	if err := sample().Write(&b); err != nil {
		t.Fatal(err)
	}
	svg := b.String()
	el := elements(t, svg)
	if got := el["svg"][0]["aria-label"]; got != `A < B & "C"` {
		t.Errorf("the title is %q", got)
	}
	// 8 points, and three series in the legend.
	if got := len(el["circle"]); got != 11 {
		t.Errorf("%d circles; want 11", got)
	}
	if got := len(el["polyline"]); got != 2 {
		t.Errorf("%d lines; want one for each joined series", got)
	}
	marks := 0
	for _, l := range el["line"] {
		if l["class"] == "m" {
			marks++
		}
	}
	if marks != 2 { // the target, and the legend
		t.Errorf("%d marks; want 2", marks)
	}
	for _, what := range []string{"NaN", "Inf", "%!"} {
		if strings.Contains(svg, what) {
			t.Errorf("the picture has %s in it", what)
		}
	}
	for _, c := range el["circle"] {
		for _, at := range []struct {
			name string
			most float64
		}{{"cx", columns * panelWidth}, {"cy", panelHeight}} {
			if v, err := strconv.ParseFloat(c[at.name], 64); err != nil || v < 0 || v > at.most {
				t.Errorf("a circle is at %s=%s", at.name, c[at.name])
			}
		}
	}
	if !strings.Contains(svg, "prefers-color-scheme:dark") {
		t.Error("nothing is said of dark backgrounds")
	}
}

func TestBounds(t *testing.T) {
	p := sample().Panels[0]
	if low, high := p.bounds(); low != 0.5 || high != 20 {
		t.Errorf("bounds = %v, %v; want 0.5, 20", low, high)
	}
	empty := Panel{}
	if low, high := empty.bounds(); low >= 1 || high <= 1 {
		t.Errorf("bounds of nothing = %v, %v; want 1 between them", low, high)
	}
}

func TestTicks(t *testing.T) {
	if got := ticks(0.5, 20); !slices.Equal(got, []float64{0.5, 1, 2, 5, 10, 20}) {
		t.Errorf("ticks = %v", got)
	}
}
