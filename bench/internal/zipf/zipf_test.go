package zipf

import (
	"math"
	"math/rand/v2"
	"testing"
)

func TestKeys_FollowTheLaw(t *testing.T) {
	const n, s = 500, 0.9
	k := New(n, s)
	sum := 0.0
	for i := range n {
		sum += k.probability(i)
	}
	if math.Abs(sum-1) > 1e-9 {
		t.Errorf("the probabilities add up to %v", sum)
	}
	first := k.probability(0)
	for _, i := range []int{1, 2, 9, 99, 499} {
		if got, want := k.probability(i)/first, math.Pow(float64(i+1), -s); math.Abs(got-want) > 1e-9 {
			t.Errorf("number %d is %v times as likely as 0; want %v", i, got, want)
		}
	}
}

func TestNew8020(t *testing.T) {
	for _, n := range []int{10, 1000, 10_000} {
		k := New8020(n)
		rng := rand.New(rand.NewPCG(1, 2))
		hot, draws := 0, 200_000
		for range draws {
			i := k.Draw(rng)
			if i < 0 || i >= n {
				t.Fatalf("of %d numbers Draw gave %d", n, i)
			}
			if i < n/5 {
				hot++
			}
		}
		if got := float64(hot) / float64(draws); math.Abs(got-0.8) > 0.01 {
			t.Errorf("of %d numbers, a fifth got %.3f of the draws; want 0.8", n, got)
		}
	}
}
