//go:build unix

package consistency

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/flightpg/flightpg/internal/battery"
)

// TestJudge checks the judges on histories that need no server.
func TestJudge(t *testing.T) {
	// What the model knows in advance must not change porcupine's verdict, on small
	// random histories of which many are not linearizable.
	t.Run("ModelHasTheVerdictOfThePlainRegister", func(t *testing.T) {
		seed := battery.Seed(t)
		e := battery.Report(t, part, "the model's verdict is that of the plain register", seed)
		rounds := battery.Quick(4_000, battery.N(20_000, 1_000_000))
		var legal, illegal int
		for n := range rounds {
			ops := operations(randomHistory(battery.Rand(seed, n)))
			want := porcupine.CheckOperations(plain, ops)
			if got := porcupine.CheckOperations(register, ops); got != want {
				t.Fatalf("seed %d: round %d: linearizable = %v; want %v\n%v", seed, n, got, want, ops)
			}
			if want {
				legal++
			} else {
				illegal++
			}
		}
		e.Set("histories", rounds)
		e.Set("legal", legal)
		e.Set("illegal", illegal)
		if legal < rounds/20 || illegal < rounds/20 {
			t.Errorf("%d legal and %d illegal histories: too few to compare by", legal, illegal)
		}
	})

	t.Run("Linearizable", func(t *testing.T) {
		r := func(call, ret, val int64) Op { return Op{Kind: Read, Call: call, Return: ret, Out: val} }
		w := func(call, ret, val int64) Op { return Op{Kind: Write, Call: call, Return: ret, In: val} }
		s := func(call, ret, val, before int64) Op {
			return Op{Kind: Swap, Call: call, Return: ret, In: val, Out: before}
		}
		for _, tc := range []struct {
			name string
			ops  []Op
			want porcupine.CheckResult
		}{
			{"ReadAfterWrite", []Op{w(1, 2, 7), r(3, 4, 7)}, porcupine.Ok},
			{"StaleRead", []Op{w(1, 2, 7), r(3, 4, 0)}, porcupine.Illegal},
			{"ReadBesideWrite", []Op{w(1, 4, 7), r(2, 3, 0)}, porcupine.Ok},
			{"NewThenOld", []Op{w(1, 9, 7), r(2, 3, 7), r(4, 5, 0)}, porcupine.Illegal},
			{"ValueFromNowhere", []Op{w(1, 2, 7), r(3, 4, 8)}, porcupine.Illegal},
			{"OpenWriteSeenLate", []Op{w(1, Open, 7), r(2, 3, 0), r(4, 5, 7)}, porcupine.Ok},
			{"OpenWriteNeverSeen", []Op{w(1, Open, 7), r(2, 3, 0), r(4, 5, 0)}, porcupine.Ok},
			{"OpenWriteSeenAndGone", []Op{w(1, Open, 7), r(2, 3, 7), r(4, 5, 0)}, porcupine.Illegal},
			{"LostUpdate", []Op{s(1, 2, 7, 0), s(3, 4, 8, 0)}, porcupine.Illegal},
			{"WrittenTwice", []Op{s(1, 2, 7, 7)}, porcupine.Illegal},
			{"OtherKey", []Op{w(1, 2, 7), {Key: 1, Kind: Read, Call: 3, Return: 4}}, porcupine.Ok},
		} {
			if got := linearizable(tc.ops, time.Minute); got != tc.want {
				t.Errorf("%s: %v; want %v", tc.name, got, tc.want)
			}
		}
	})

	t.Run("ReadYourWrites", func(t *testing.T) {
		log := map[version]int64{{0, 7}: 1, {0, 8}: 2, {0, 9}: 3}
		for _, tc := range []struct {
			name   string
			ops    []Op
			missed int
			err    bool
		}{
			{"Own", []Op{{Kind: Write, In: 7, Call: 1, Return: 2}, {Out: 7, Call: 3, Return: 4}}, 0, false},
			{"OwnMissed", []Op{{Kind: Write, In: 7, Call: 1, Return: 2}, {Client: 5, Out: 0, Call: 3, Return: 4}}, 1, false},
			{"NewerOfAnother", []Op{{Kind: Write, In: 7, Call: 1, Return: 2}, {Worker: 1, Kind: Write, In: 8, Call: 1, Return: 2}, {Out: 8, Call: 3, Return: 4}}, 0, false},
			{"AnothersMissed", []Op{{Worker: 1, Kind: Write, In: 7, Call: 1, Return: 2}, {Out: 0, Call: 3, Return: 4}}, 0, false},
			{"OlderOfAnother", []Op{{Kind: Write, In: 8, Call: 1, Return: 2}, {Worker: 1, Kind: Write, In: 7, Call: 1, Return: 2}, {Out: 7, Call: 3, Return: 4}}, 1, false},
			{"NotYetAcknowledged", []Op{{Kind: Write, In: 7, Call: 1, Return: 4}, {Out: 0, Call: 3, Return: 5}}, 0, false},
			{"Open", []Op{{Kind: Write, In: 7, Call: 1, Return: Open}, {Out: 0, Call: 3, Return: 5}}, 0, false},
			{"SwapSaw", []Op{{Kind: Write, In: 8, Call: 1, Return: 2}, {Kind: Swap, In: 9, Out: 7, Call: 3, Return: 5}}, 1, false},
			{"FromNowhere", []Op{{Out: 70, Call: 3, Return: 5}}, 0, true},
			{"LostWrite", []Op{{Kind: Write, In: 70, Call: 3, Return: 5}}, 0, true},
		} {
			missed, _, err := readYourWrites(tc.ops, log)
			if len(missed) != tc.missed || (err != nil) != tc.err {
				t.Errorf("%s: %v, %v; want %d missed, an error: %v", tc.name, missed, err, tc.missed, tc.err)
			}
		}
	})
}

// randomHistory makes one of a register in which each operation takes effect at
// its own moment, somewhere in its time, and then makes some of it untrue.
func randomHistory(rng *rand.Rand) []Op {
	var ops []Op
	val, written := int64(0), int64(0)
	wide := int64(5 + rng.IntN(60))
	for at := int64(1000); at < 1000+10*int64(8+rng.IntN(10)); at += 10 {
		op := Op{Call: at - rng.Int64N(wide), Return: at + 1 + rng.Int64N(wide)}
		switch rng.IntN(8) {
		case 0:
			written++
			op.Kind, op.In = Swap, written
			op.Out, val = val, written
		case 1, 2:
			written++
			op.Kind, op.In = Write, written
			switch rng.IntN(6) {
			case 0: // open, without effect
				op.Return = Open
			case 1: // open, with effect
				op.Return = Open
				val = written
			default:
				val = written
			}
		default:
			op.Out = val
		}
		ops = append(ops, op)
	}
	for range rng.IntN(3) {
		switch op := &ops[rng.IntN(len(ops))]; {
		case op.Kind == Read:
			op.Out = rng.Int64N(written + 1)
		case op.Return != Open: // its effect was at another time
			op.Call += wide
			op.Return += wide
		}
	}
	rng.Shuffle(len(ops), func(i, j int) { ops[i], ops[j] = ops[j], ops[i] })
	for i := range ops { // moments are of one operation each, as the clock gives them
		ops[i].Call = ops[i].Call*100 + int64(i)
		if ops[i].Return != Open {
			ops[i].Return = ops[i].Return*100 + int64(i)
		}
	}
	return ops
}
