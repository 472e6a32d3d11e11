//go:build unix

package consistency

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/flightpg/flightpg/internal/battery"
)

const part = "consistency"

// length is how many operations a history has.
func length() int64 { return battery.N[int64](4000, 21000) }

// handle draws how flightpg is opened. It changes with every tenth history, so
// that connections live for some time.
func handle(seed uint64, n int, mode string) Handle {
	rng := battery.Rand(seed^0xF11647, n/battery.N(3, 10))
	h := Handle{Connectors: 1 + rng.IntN(3)}
	h.Pool = h.Connectors > 1 && rng.IntN(2) == 0
	h.Params = fmt.Sprintf("flight_width=%d&flight_conns=%d&session_conns=%d",
		1+rng.IntN(3), []int{2, 4, 8}[rng.IntN(3)], []int{3, 6, 12}[rng.IntN(3)])
	if rng.IntN(4) == 0 {
		h.Params += "&flight_guard=transaction"
	}
	if mode == "fenced" && rng.IntN(3) == 0 {
		h.Params += "&flight_window=50ms"
	}
	if mode != "join" && rng.IntN(2) == 0 {
		h.Mode = mode
		if mode == "strict" && rng.IntN(2) == 0 {
			h.Params += "&flight_window=50ms" // which it never uses
		}
	} else {
		h.Params += "&flight_mode=" + mode
	}
	return h
}

// plan draws the rest.
func plan(rng *rand.Rand) (p Plan, keys int) {
	p.Budget = length()
	p.Clients = battery.N(24, 64) + rng.IntN(72)
	p.Writes = []float64{0.005, 0.01, 0.03}[rng.IntN(3)]
	p.Slow = []float64{0, 0.01, 0.1}[rng.IntN(3)]
	return p, 1 + rng.IntN(5)
}

// troubled adds what leaves outcomes unknown.
func troubled(rng *rand.Rand, p *Plan) {
	p.Cancel = []float64{0, 0.01, 0.05}[rng.IntN(3)]
	p.Unknown = []float64{0, 0.02, 0.1}[rng.IntN(3)]
	if rng.IntN(3) == 0 {
		p.Kill = battery.N[int64](300, 2000)
	}
}

// everybody is two processes with flightpg and one without, all reading and
// writing the same registers.
var everybody = []Role{RoleFlight, RoleFlight, RolePgx}

// foreign shapes the histories of everybody.
func foreign(seed uint64, mode string) func(*rand.Rand, int) (Plan, int, func(int, *Plan)) {
	return func(rng *rand.Rand, n int) (Plan, int, func(int, *Plan)) {
		p, keys := plan(rng)
		troubled(rng, &p)
		p.Handle = handle(seed, n, mode)
		return p, keys, func(_ int, p *Plan) {
			if p.Role == RolePgx {
				p.Clients = 2
				p.Writes = 0.2
				p.Handle = Handle{}
			}
		}
	}
}

// alone shapes histories in which one process writes, through flightpg, and
// another looks on without. A write that has returned has happened or not:
// killed backends leave that, cancelled contexts do not.
func alone(seed uint64, mode string) func(*rand.Rand, int) (Plan, int, func(int, *Plan)) {
	return func(rng *rand.Rand, n int) (Plan, int, func(int, *Plan)) {
		p, keys := plan(rng)
		troubled(rng, &p)
		p.Unknown = 0
		p.Clients += 16
		p.Handle = handle(seed, n, mode)
		return p, keys, func(_ int, p *Plan) {
			if p.Role == RolePgx {
				p.Clients = 3
				p.Writes, p.Unknown = 0, 0
				p.Handle = Handle{}
			}
		}
	}
}

// verdicts reports. What was caught was not vacuous.
func verdicts(t *testing.T, e *battery.Entry, y *tally, caught bool) {
	t.Helper()
	y.report(e)
	e.Set("illegal", y.illegal)
	e.Set("unknown", y.unknown)
	e.Set("longest_judgement", y.slowest)
	if v := y.vacuous(); v != "" && !caught {
		t.Errorf("the run is vacuous: %s", v)
	}
	t.Log(ways(y))
}

// ways lists how the operations were made.
func ways(y *tally) string {
	s := "operations by way:"
	for v, n := range y.vias {
		if n > 0 {
			s += fmt.Sprintf(" %v=%d", Via(v), n)
		}
	}
	return s
}

func TestStrict(t *testing.T) {
	t.Run("IsLinearizable", func(t *testing.T) {
		seed := battery.Seed(t)
		e := battery.Report(t, part, "strict is linearizable per key, whoever writes", seed)
		tr := trial{
			lab: newLab(t, "", false, everybody...), seed: seed, shape: foreign(seed, "strict"),
			linear: true, histories: battery.Quick(3, battery.N(6, 500)), operations: battery.N(0, 10_000_000),
		}
		verdicts(t, e, tr.run(t), false)
	})
}

func TestFenced(t *testing.T) {
	t.Run("IsLinearizableWhereTheProcessWrites", func(t *testing.T) {
		seed := battery.Seed(t)
		e := battery.Report(t, part, "fenced is linearizable per key where only the process writes, whoever reads", seed)
		tr := trial{
			lab: newLab(t, "", false, RoleFlight, RolePgx), seed: seed, shape: alone(seed, "fenced"),
			linear: true, histories: battery.Quick(2, battery.N(4, 50)),
		}
		verdicts(t, e, tr.run(t), false)
	})
	t.Run("ReadsItsWritesWhoeverWrites", func(t *testing.T) {
		seed := battery.Seed(t)
		e := battery.Report(t, part, "fenced reads see every write acknowledged in their process, whoever else writes", seed)
		tr := trial{
			lab: newLab(t, "", true, everybody...), seed: seed, shape: foreign(seed, "fenced"),
			mine: true, histories: battery.Quick(2, battery.N(4, 50)),
		}
		y := tr.run(t)
		verdicts(t, e, y, false)
		e.Set("reads_judged", y.judgedReads)
		e.Set("missed", y.missed)
	})
}

// control has histories made with a driver, or a mode, that is wrong, and fails if
// a judge that must see it approves of all of them.
type control struct {
	name, claim string
	mode        string
	long        bool // not with -short
	linear      bool // porcupine must see it
	mine        bool // readYourWrites must see it
	changes     []battery.Edit
}

const flightFile = "internal/flight/flight.go"

var controls = []control{
	{
		name: "Join", claim: "flight_mode=join is caught",
		mode: "join", linear: true, mine: true,
	},
	{
		name: "NoFences", claim: "fenced without fences is caught",
		mode: "fenced", linear: true, mine: true,
		changes: []battery.Edit{
			{flightFile, "func (e *Epoch) Raise() { e.n.Add(1) }", "func (e *Epoch) Raise() {}"},
			{flightFile, "	e.n.Add(1) // before the hold ends, so that no reader slips between\n", ""},
		},
	},
	{
		name: "StrictJoinsDispatched", claim: "strict that joins a dispatched flight is caught",
		mode: "strict", long: true, linear: true, mine: true,
		changes: []battery.Edit{{flightFile, "	case f.state == waiting:\n		return true\n", "	case f.state == waiting || rule == Strict:\n		return true\n"}},
	},
	{
		name: "NoHolds", claim: "fenced that joins old flights while a write is under way is caught",
		mode: "fenced", long: true, linear: true,
		changes: []battery.Edit{{"conn.go", "	if !cn.held {\n		cn.held = true\n		cn.c.db.Hold()\n	}\n", ""}},
	},
	{
		name: "FenceBeforeWrite", claim: "fenced whose fence is before the write, not after it, is caught",
		mode: "fenced", long: true, linear: true, mine: true,
		changes: []battery.Edit{
			{"conn.go", "	if v.writes() || rewrites(args) {\n		cn.holds(v)\n	}\n	defer cn.lifts()\n", "	cn.wrote(v)\n"},
			{"conn.go", "	cn.did(v, effects)\n	return res, err\n", "	_ = effects\n	return res, err\n"},
		},
	},
	{
		name: "CommitDoesNotFence", claim: "fenced without a fence at COMMIT is caught",
		mode: "fenced", long: true, mine: true,
		changes: []battery.Edit{{"conn.go", "	t.cn.tx = nil\n	if t.wrote {\n		t.cn.c.changed(t.effects)\n	}\n", "	t.cn.tx = nil\n"}},
	},
	{
		name: "NeverDispatched", claim: "flights that do not say that they are dispatched are caught",
		mode: "strict", long: true, linear: true, mine: true,
		changes: []battery.Edit{{flightFile, "		f.state = dispatched\n", ""}},
	},
}

func TestControl(t *testing.T) {
	for _, c := range controls {
		t.Run(c.name, func(t *testing.T) {
			if c.long && battery.Quick(true, false) {
				battery.Overlay(t, "../../..", c.changes...) // at least the code is as it expects
				t.Skip("NOT RUN with -short: two others are")
			}
			c.test(t)
		})
	}
}

func (c *control) test(t *testing.T) {
	seed := battery.Seed(t)
	e := battery.Report(t, part, "control: "+c.claim, seed)
	binary := ""
	if c.changes != nil {
		binary = breakDriver(t, c.changes...)
	}
	illegal, missed := 0, 0
	if c.linear {
		illegal = battery.N(1, 10)
	}
	if c.mine {
		missed = 1
	}
	shape := func(rng *rand.Rand, n int) (Plan, int, func(int, *Plan)) {
		p, keys, each := alone(seed, c.mode)(rng, n)
		p.Slow, p.Writes = 0.3, 0.03 // many old answers, and many that must not be old
		return p, keys, each
	}
	tr := trial{
		lab: newLab(t, binary, true, RoleFlight, RolePgx), seed: seed, shape: shape,
		linear: true, mine: true, histories: battery.N(60, 300),
		enough: func(y *tally) bool { return y.illegal >= illegal && y.missed >= missed && y.histories > 1 },
	}
	y := tr.run(t)
	verdicts(t, e, y, true)
	e.Set("missed", y.missed)
	if c.linear && y.illegal == 0 {
		t.Errorf("of %d histories none is illegal: porcupine did not catch this", y.histories)
	}
	if c.mine && y.missed == 0 {
		t.Errorf("no read of %d missed a write of its process: the judge of read-your-writes did not catch this", y.judgedReads)
	}
}
