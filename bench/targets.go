package main

import (
	"fmt"
	"math"
	"slices"

	"github.com/flightpg/flightpg/bench/internal/stats"
)

// target is something that flightpg wants to reach: its pipelined executor beside
// pgx-16 in the same rounds, unless it says otherwise.
type target struct {
	what   string
	cell   cell   // of a workload
	layer  string // or of a part alone, and then the contender there
	figure string // see figureOf
	least  float64
	most   float64
}

// Figures that targets are about, besides those of ratios.
const (
	ratioRate     = "rate ×"
	ratioP99      = "p99 ×"
	ratioSlowRate = "slow rate ×"
	ratioCPU      = "CPU ×"
	ofParking     = "rate, of the parking ceiling"
	p99Millis     = "p99, ms"
	allocs        = "allocations"
	backends      = "backends"
	ofLayer       = "" // the layer's own
	overXSync     = "rate, over x/sync"
)

var none = math.Inf(-1)

// targets is the one list of what is wanted.
var targets = slices.Concat(
	each("hot 1 row", background, direct, ratioRate, map[int]float64{16: 5, 64: 8.5, 256: 12, 1024: 10}),
	each("hot 1 row", background, direct, ofParking, map[int]float64{256: 0.85, 1024: 0.85, 4096: 0.85}),
	[]target{
		least("hot 10 ms", 256, background, ratioRate, 15.7),
		most("hot 10 ms", 256, background, p99Millis, 13),
		most("hot 10 ms", 256, background, backends, 4),
		least("hot 100 rows", 64, background, ratioRate, 7),
		least("hot 10000 rows", 64, background, ratioRate, 7),
	},
	each("unique 1 row", timeout, direct, ratioRate, map[int]float64{1: 0.97, 2: 0.97, 4: 0.97, 8: 0.97, 16: 1.5, 64: 2.5, 256: 2.8}),
	[]target{
		most("unique 1 row", 16, timeout, ratioP99, 0.5),
		most("unique 1 row", 64, timeout, ratioP99, 0.5),
		most("unique 1 row", 256, timeout, ratioP99, 0.5),
		most("unique 1 row", 1, timeout, allocs, 24),
		most("unique 1 row", 64, timeout, allocs, 24),
	},
	each("unique 1 row", timeout, delayed, ratioRate, map[int]float64{16: 1, 64: 3.4, 256: 8}),
	each("unique 100 rows", timeout, direct, ratioRate, map[int]float64{1: 0.98, 16: 1, 64: 1.1}),
	each("unique 10000 rows", timeout, direct, ratioRate, map[int]float64{1: 0.95, 16: 1}),
	[]target{
		least("zipf mix", 64, background, ratioRate, 2.5),
		least("fast beside slow", 64, timeout, ratioRate, 2.2),
		most("fast beside slow", 64, timeout, ratioP99, 1),
		least("fast beside slow", 64, timeout, ratioSlowRate, 0.97),
	},
	each("unique 1 ms", timeout, direct, ratioRate, map[int]float64{16: 0.97, 64: 0.97}),
	each("2% slow", timeout, direct, ratioRate, map[int]float64{16: 1, 64: 1, 256: 1}),
	each("writes", timeout, direct, ratioRate, map[int]float64{1: 0.97, 16: 0.97}),
	each("transactions", timeout, direct, ratioRate, map[int]float64{1: 0.97, 16: 0.97}),
	[]target{
		{what: "the flight table over none, µs", layer: layerTableCost, most: 0.3, least: none},
		{what: "the flight table over none, allocations", layer: layerTableAllocs, most: 1, least: none},
		{what: "table against x/sync, 256 goroutines on distinct keys", layer: layerDistinct256, figure: overXSync, least: 7, most: math.Inf(1)},
		{what: "table against x/sync, 400,000 goroutines on distinct keys", layer: layerDistinct400k, figure: overXSync, least: 3.5, most: math.Inf(1)},
		{what: "400,000 waiters on one flight, KB each", layer: layerWaiterKB, most: 6, least: none},
		{what: "400,000 waiters on one flight, s to the last", layer: layerWaiterLast, most: 1.5, least: none},
		{what: "a cancelled caller's lateness, p99 over a bare timer's, ms", layer: layerLateness, most: 0.5, least: none},
	},
)

func at(workload string, n int, context, link string) cell {
	return cell{Workload: workload, Goroutines: n, Context: context, Link: link}
}

func least(workload string, n int, context, figure string, bound float64) target {
	return target{cell: at(workload, n, context, direct), figure: figure, least: bound, most: math.Inf(1)}
}

func most(workload string, n int, context, figure string, bound float64) target {
	return target{cell: at(workload, n, context, direct), figure: figure, least: none, most: bound}
}

// each makes a target for each number of goroutines.
func each(workload, context, link, figure string, bounds map[int]float64) (ts []target) {
	for n, bound := range bounds {
		ts = append(ts, target{cell: at(workload, n, context, link), figure: figure, least: bound, most: math.Inf(1)})
	}
	slices.SortFunc(ts, func(a, b target) int { return a.cell.Goroutines - b.cell.Goroutines })
	return ts
}

const notMeasured = "not measured"

// targetResult is what became of a target.
type targetResult struct {
	What     string `json:"what"`
	Figure   string `json:"figure"`
	Target   string `json:"target"`
	Measured number `json:"measured"` // NaN: was not measured
	Low      number `json:"low"`      // of the rounds
	High     number `json:"high"`
	Generic  number `json:"generic"` // the same for the generic executor
	Met      string `json:"met"`     // yes, no or not measured
}

// judge holds what was measured against the targets.
func judge(rep *report) (results []targetResult) {
	for i := range targets {
		t := &targets[i]
		r := targetResult{What: t.what, Figure: t.figure, Met: notMeasured}
		if r.What == "" {
			r.What = t.cell.String()
		}
		if math.IsInf(t.most, 1) {
			r.Target = fmt.Sprintf("≥ %g", t.least)
		} else {
			r.Target = fmt.Sprintf("≤ %g", t.most)
		}
		values := rep.values(t, pipelined)
		r.Measured = number(stats.Median(values))
		r.Low, r.High = number(stats.Quantile(values, 0)), number(stats.Quantile(values, 1))
		r.Generic = number(math.NaN())
		if t.layer == "" {
			r.Generic = number(stats.Median(rep.values(t, generic)))
		}
		switch {
		case len(values) == 0:
		case float64(r.Measured) >= t.least && float64(r.Measured) <= t.most:
			r.Met = "yes"
		default:
			r.Met = "no"
		}
		results = append(results, r)
	}
	return results
}

// values returns a target's figure of each round.
func (rep *report) values(t *target, contender string) []float64 {
	if t.layer != "" {
		values := rep.layer(t.layer, layerOurs)
		if t.figure == overXSync {
			values = stats.Ratios(values, rep.layer(t.layer, layerXSync))
		}
		return values
	}
	for _, c := range rep.Cells {
		if c.is(&t.cell) {
			return c.figure(t.figure, contender)
		}
	}
	return nil
}

// figure returns a figure of each round of a contender. It has none if it failed.
func (c *cellResult) figure(name, contender string) []float64 {
	r := c.result(contender)
	if r == nil || r.Error != "" {
		return nil
	}
	over := func(get func(*figures) *float64, other string) []float64 {
		base := c.result(other)
		if base == nil || base.Error != "" {
			return nil
		}
		return stats.Ratios(r.all(get), base.all(get))
	}
	switch name {
	case ratioRate:
		return over(rate, pgx16)
	case ratioP99:
		return over(p99, pgx16)
	case ratioCPU:
		return over(func(f *figures) *float64 {
			sum := f.ClientCPU + f.ServerCPU
			return &sum
		}, pgx16)
	case ratioSlowRate:
		return over(slowRate, pgx16)
	case ofParking:
		return over(rate, parking)
	case p99Millis:
		values := r.all(p99)
		for i := range values {
			values[i] /= 1e6
		}
		return values
	case allocs:
		return r.all(allocations)
	case backends:
		if math.IsNaN(r.Backends) {
			return nil
		}
		return []float64{r.Backends}
	}
	panic("unknown figure " + name)
}
