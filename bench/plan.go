package main

import (
	"fmt"
	"slices"
	"strings"
)

// cell is one measurement: a workload with a number of goroutines, a kind of
// context and a way to the server, for some contenders.
type cell struct {
	Workload   string   `json:"workload"`
	Goroutines int      `json:"goroutines"`
	Context    string   `json:"context"`
	Link       string   `json:"link"`
	Contenders []string `json:"contenders"`
}

// Kinds of contexts.
const (
	background = "background"
	timeout    = "timeout" // each call has one of its own, with a timeout
)

// Ways to the server.
const (
	direct    = "direct"    // TCP on loopback
	undelayed = "undelayed" // through the proxy, which adds nothing: what that costs
	delayed   = "delayed"   // through the proxy, 0.5 ms later in each direction
)

func (c *cell) String() string {
	s := fmt.Sprintf("%s, %d goroutines", c.Workload, c.Goroutines)
	if c.Goroutines == 1 {
		s = c.Workload + ", 1 goroutine"
	}
	if c.Context == timeout {
		s += ", timeouts"
	}
	if c.Link != direct {
		s += ", " + c.Link
	}
	return s
}

// is reports whether two cells measure the same.
func (c *cell) is(o *cell) bool {
	return c.Workload == o.Workload && c.Goroutines == o.Goroutines && c.Context == o.Context && c.Link == o.Link
}

var (
	base   = []string{pgx16, generic, pipelined}
	others = []string{pgx64, pgxPool, handRolled}
)

// shortPlan has the cells that the targets need, the contenders that say something
// there, and what the proxy costs.
func shortPlan() []*cell {
	var cells []*cell
	add := func(workload, context, link string, contenders []string, goroutines ...int) {
		for _, n := range goroutines {
			cells = append(cells, &cell{workload, n, context, link, contenders})
		}
	}
	add("hot 1 row", background, direct, with(base, parking), 16)
	add("hot 1 row", background, direct, with(base, pgx64, pgxPool, handRolled, noop, parking), 64, 256)
	add("hot 1 row", background, direct, with(base, parking), 1024, 4096)
	add("hot 10 ms", background, direct, base, 256)
	add("hot 100 rows", background, direct, with(base, handRolled), 64)
	add("hot 10000 rows", background, direct, with(base, pipelined1MB), 64)
	add("unique 1 row", timeout, direct, base, 1, 2, 4, 8)
	add("unique 1 row", timeout, direct, with(base, with(others, parking)...), 16, 64, 256)
	add("unique 1 ms", timeout, direct, with(base, pgx64), 16, 64)
	add("unique 1 row", timeout, delayed, with(base, pgx64), 16, 64, 256)
	add("unique 1 row", timeout, delayed, []string{pgx16}, 1)
	add("unique 1 row", timeout, undelayed, []string{pgx16}, 1, 16)
	add("unique 100 rows", timeout, direct, base, 1, 16, 64)
	add("unique 10000 rows", timeout, direct, with(base, pipelined1MB), 1, 16)
	add("zipf mix", background, direct, with(base, handRolled), 64)
	add("fast beside slow", timeout, direct, base, 64)
	add("2% slow", timeout, direct, base, 16, 64, 256)
	add("writes", timeout, direct, base, 1, 16)
	add("transactions", timeout, direct, base, 1, 16)
	return cells
}

func with(contenders []string, more ...string) []string { return slices.Concat(contenders, more) }

// allGoroutines are the numbers of goroutines of the full plan.
var allGoroutines = []int{1, 16, 64, 256, 1024, 4096}

// fullPlan has all combinations that end in time: what takes 10,000 rows or long
// has fewer goroutines.
func fullPlan(goroutines []int) []*cell {
	var cells []*cell
	for i := range workloads {
		w := &workloads[i]
		for _, link := range []string{direct, delayed} {
			for _, context := range []string{background, timeout} {
				for _, n := range goroutines {
					if w.most == 0 || n <= w.most {
						cells = append(cells, &cell{w.name, n, context, link, contendersFor(w)})
					}
				}
			}
		}
	}
	for _, n := range goroutines {
		cells = append(cells, &cell{"unique 1 row", n, timeout, undelayed, []string{pgx16, pipelined}})
	}
	return cells
}

// contendersFor returns all that can take part in a workload.
func contendersFor(w *workload) (names []string) {
	for i := range contenders {
		if c := &contenders[i]; (!c.reads || w.ceiling) && strings.Contains(w.name, c.only) {
			names = append(names, c.name)
		}
	}
	return names
}

// plan returns what is to be measured.
func (o *options) plan() ([]*cell, error) {
	cells := shortPlan()
	if o.profile {
		cells = profilePlan()
	}
	if o.full || len(o.goroutines)+len(o.links)+len(o.contexts) > 0 {
		numbers := o.goroutines
		if len(numbers) == 0 {
			numbers = allGoroutines
		}
		cells = fullPlan(numbers)
		if !o.full { // somebody looks at something: the targets' kind of context, unless they say
			if len(o.links) == 0 {
				o.links = []string{direct}
			}
			if len(o.contexts) == 0 {
				o.contexts = []string{timeout}
			}
			if len(o.contenders) == 0 {
				o.contenders = base
			}
		}
	}
	for _, name := range o.contenders {
		if !slices.ContainsFunc(contenders, func(c contender) bool { return c.name == name }) {
			return nil, fmt.Errorf("-contenders: there is no %q; there are %s", name, strings.Join(contenderNames(), ", "))
		}
	}
	for _, w := range o.workloads {
		if !slices.ContainsFunc(workloads, func(have workload) bool { return strings.Contains(have.name, w) }) {
			return nil, fmt.Errorf("-workloads: there is no %q; there are %s", w, strings.Join(workloadNames(), ", "))
		}
	}
	cells = slices.DeleteFunc(cells, func(c *cell) bool {
		return !matches(o.workloads, c.Workload) ||
			len(o.links) > 0 && !slices.Contains(o.links, c.Link) ||
			len(o.contexts) > 0 && !slices.Contains(o.contexts, c.Context)
	})
	if len(o.contenders) > 0 {
		for _, c := range cells {
			able := contendersFor(workloadNamed(c.Workload))
			c.Contenders = []string{pgx16}
			for _, name := range o.contenders {
				if name != pgx16 && slices.Contains(able, name) {
					c.Contenders = append(c.Contenders, name)
				}
			}
		}
	}
	return cells, nil
}
