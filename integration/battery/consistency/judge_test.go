//go:build unix

package consistency

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
)

// porcupine searches for an order of each key's operations that a register allows,
// and would search for too long: all readers of a flight get the same value at
// about the same time, and where an order is a dead end it tries each subset of
// them. So the model is a register that also refuses what must lead into a dead
// end. As each value is written once, it is in the register for one stretch of any
// order. All its reads are in that stretch: the next write may come only when the
// last of them is done. If a Swap saw it, that is the next write. And reads of one
// value may stand there in the order of their calls: one that stands after another
// but was called before it can be moved to just before that one, still in its own
// time. The model accepts an order of the history if the plain register accepts
// one; TestJudge compares the verdicts of the two.

// input is what porcupine is told of an operation's call. The output is the value
// seen.
type input struct {
	kind Kind
	key  int64
	val  int64
	turn int32 // of a read: how many reads of its value were called before it

	// Of a write: what will become of its value.
	reads int32 // how many reads see it
	heir  int64 // what the Swap that saw it wrote, or 0
}

// stretch is the state of a register.
type stretch struct {
	val         int64
	done, reads int32 // reads in this stretch, so far and in all
	heir        int64
}

// register is porcupine's model of one row. Its first operation writes 0.
var register = porcupine.Model{
	Partition: byKey,
	Init:      func() any { return stretch{val: -1} },
	Step: func(state, in, out any) (bool, any) {
		s, i := state.(stretch), in.(input)
		if i.kind == Read {
			if out.(int64) != s.val || i.turn != s.done {
				return false, state
			}
			s.done++
			return true, s
		}
		if s.done != s.reads || s.heir != 0 && s.heir != i.val || i.kind == Swap && out.(int64) != s.val {
			return false, state
		}
		return true, stretch{i.val, 0, i.reads, i.heir}
	},
	Equal: func(a, b any) bool { return a.(stretch) == b.(stretch) },
	Hash: func(state any) uint64 {
		s := state.(stretch)
		return uint64(s.val+int64(s.done)) * 0x9E3779B97F4A7C15
	},
	DescribeOperation: func(in, out any) string {
		switch in := in.(input); in.kind {
		case Read:
			return fmt.Sprintf("read → %x", out)
		case Write:
			return fmt.Sprintf("write %x", in.val)
		default:
			return fmt.Sprintf("write %x → %x", in.val, out)
		}
	},
	DescribeState: func(state any) string { return fmt.Sprintf("%x", state.(stretch).val) },
}

// plain is the register as anybody would write it down.
var plain = porcupine.Model{
	Partition: byKey,
	Init:      func() any { return int64(-1) },
	Step: func(state, in, out any) (bool, any) {
		switch i := in.(input); i.kind {
		case Read:
			return out == state, state
		case Write:
			return true, i.val
		default:
			return out == state, i.val
		}
	},
}

func byKey(history []porcupine.Operation) [][]porcupine.Operation {
	parts := make(map[int64][]porcupine.Operation)
	for _, op := range history {
		key := op.Input.(input).key
		parts[key] = append(parts[key], op)
	}
	var out [][]porcupine.Operation
	for _, key := range slices.Sorted(maps.Keys(parts)) {
		out = append(out, parts[key])
	}
	return out
}

// operations returns a history as porcupine takes it: with a write of 0 before it
// all, and with what the model wants to know in advance. Clients are numbered from
// zero; a client whose write is open goes on under another number, since it is
// not waiting for it.
func operations(ops []Op) []porcupine.Operation {
	ops = slices.Clone(ops)
	slices.SortFunc(ops, func(a, b Op) int { return cmp.Compare(a.Call, b.Call) })
	reads := make(map[version]int32)
	turns := make([]int32, len(ops))
	heirs := make(map[version]int64)
	keys := make(map[int64]bool)
	for i, op := range ops {
		keys[op.Key] = true
		switch v := (version{op.Key, op.Out}); op.Kind {
		case Read:
			turns[i] = reads[v]
			reads[v]++
		case Swap:
			heirs[v] = op.In // if there are two, none of the orders is legal
		}
	}

	type who struct{ worker, client int16 }
	numbers := make(map[who]int)
	next := 0
	out := make([]porcupine.Operation, 0, len(ops)+len(keys))
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		v := version{key, 0}
		out = append(out, porcupine.Operation{
			Call: -2, Return: -1,
			Input: input{kind: Write, key: key, reads: reads[v], heir: heirs[v]}, Output: int64(0),
		})
	}
	for i, op := range ops {
		w := who{op.Worker, op.Client}
		n, ok := numbers[w]
		if !ok {
			n = next
			next++
			numbers[w] = n
		}
		if op.Return == Open {
			delete(numbers, w)
		}
		in := input{kind: op.Kind, key: op.Key, val: op.In, turn: turns[i]}
		if op.Kind != Read {
			v := version{op.Key, op.In}
			in.reads, in.heir = reads[v], heirs[v]
		}
		out = append(out, porcupine.Operation{
			ClientId: n, Call: op.Call, Return: op.Return,
			Input: in, Output: op.Out, Metadata: op.Via.String(),
		})
	}
	return out
}

// linearizable asks porcupine.
func linearizable(ops []Op, timeout time.Duration) porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(register, operations(ops), timeout)
}

// version is a state of a register: its place in the order of all its states.
type version struct{ key, val int64 }

// stale is a read that missed a write of its own process.
type stale struct {
	read  Op
	write Op // acknowledged before the read was called, and newer than what it saw
}

func (s stale) String() string { return fmt.Sprintf("%v\n\tmissed %v", s.read, s.write) }

// readYourWrites judges each worker by itself, by the order of versions that the
// server has logged: a read must not see a version older than one that the
// worker's own process has written and been told of before the read was called,
// whoever else writes. What Swap saw is judged as a read. An answer that the log
// does not have is an error.
func readYourWrites(ops []Op, log map[version]int64) (missed []stale, reads int, err error) {
	type event struct {
		at    int64
		op    *Op
		begin bool
	}
	type register struct {
		worker int16
		key    int64
	}
	histories := make(map[register][]event)
	for i := range ops {
		op := &ops[i]
		r := register{op.Worker, op.Key}
		if op.Kind != Write {
			if _, ok := log[version{op.Key, op.Out}]; !ok && op.Out != 0 {
				return nil, 0, fmt.Errorf("%v: the value was never committed", op)
			}
			histories[r] = append(histories[r], event{op.Call, op, true})
		}
		if op.Kind != Read && op.Return != Open {
			if _, ok := log[version{op.Key, op.In}]; !ok {
				return nil, 0, fmt.Errorf("%v: acknowledged, but never committed", op)
			}
			histories[r] = append(histories[r], event{op.Return, op, false})
		}
	}
	for _, events := range histories {
		slices.SortFunc(events, func(a, b event) int { return cmp.Compare(a.at, b.at) })
		var newest *Op
		floor := int64(math.MinInt64)
		for _, e := range events {
			if !e.begin {
				if ver := log[version{e.op.Key, e.op.In}]; ver > floor {
					newest, floor = e.op, ver
				}
				continue
			}
			reads++
			if log[version{e.op.Key, e.op.Out}] < floor { // value 0 is version 0
				missed = append(missed, stale{*e.op, *newest})
			}
		}
	}
	return missed, reads, nil
}
