package catalog

import (
	"math/bits"
	"slices"
)

// This file finds the functions that are volatile by declaration alone: those that would
// be harmless if they were declared STABLE, so that a hint can say so.

// graph is what would be known of volatile functions if they were not.
type graph struct {
	roots []root
	uses  [][2]node // user, used
}

func (g *graph) fault(n node, cause Cause, object string, class Class) {
	g.roots = append(g.roots, root{n, &Fault{Cause: cause, Object: object, Class: class}})
}

func (g *graph) use(user, used node) { g.uses = append(g.uses, [2]node{user, used}) }

// Bounds of a search for what must be declared otherwise.
const (
	maxAlter  = 8    // statements of one hint
	maxSearch = 256  // objects that are looked at for it
	maxHints  = 4096 // objects that have hints
)

// readers tells those who reach nothing worse than volatile functions that only read what
// to declare these, and of other volatile functions what else they do.
func (l *loader) readers() {
	if len(l.volatile) == 0 {
		return
	}
	declared := func(r root) bool {
		_, ok := l.volatile[r.node]
		return ok && r.fault.Cause == Volatile
	}
	for _, u := range l.ifStable.uses {
		l.uses(u[0], u[1])
	}
	roots := l.ifStable.roots
	for _, r := range l.roots {
		if !declared(r) {
			roots = append(roots, r)
		}
	}
	found, paired := l.faults, l.paired
	l.pairs, l.textBits = nil, 0
	l.markFaults(roots)
	stable := l.faults
	l.faults, l.paired = found, paired

	used := map[node][]node{} // by those who are at fault for nothing else
	for n, users := range l.users {
		for _, user := range users {
			if found[n] != nil && found[user] != nil && stable[user] == nil {
				used[user] = append(used[user], n)
			}
		}
	}
	for _, list := range used {
		slices.Sort(list) // the same hint each time
	}
	for _, r := range l.roots {
		if declared(r) {
			r.fault.Why = stable[r.node]
		}
	}
	hints := 0
	for n, f := range found {
		if stable[n] != nil {
			continue
		}
		if hints++; hints > maxHints {
			break
		}
		f := *f
		f.Alter = l.alter(n, used)
		found[n] = &f
	}
	for n, bit := range l.bits {
		l.pairs[bits.TrailingZeros64(bit)].fault = found[n]
	}
}

// alter lists the volatile functions that an object reaches, the nearest first.
func (l *loader) alter(n node, used map[node][]node) (list []string) {
	seen := map[node]bool{n: true}
	for queue := []node{n}; len(queue) > 0 && len(list) < maxAlter; {
		n, queue = queue[0], queue[1:]
		if signature, ok := l.volatile[n]; ok {
			list = append(list, signature)
		}
		for _, next := range used[n] {
			if !seen[next] && len(seen) < maxSearch {
				seen[next] = true
				queue = append(queue, next)
			}
		}
	}
	return list
}
