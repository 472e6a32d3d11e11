// Package zipf draws keys as many applications read them: few of them often.
package zipf

import (
	"math"
	"math/rand/v2"
)

// Keys draws numbers from 0 to n-1, of which the first are the most frequent: by
// Zipf's law, number i with a probability in proportion to 1/(i+1)^s. It is
// immutable, and safe for concurrent use.
type Keys struct {
	// Walker's alias method: a column is chosen at random, and in it one of two
	// numbers.
	share []float64 // of the column's own number
	other []uint32
}

// New8020 makes a Keys of n numbers in which a fifth of them gets four fifths of
// the draws. n must be at least 10.
func New8020(n int) *Keys { return New(n, exponent(n, 0.2, 0.8)) }

// New makes a Keys of n numbers with the exponent s.
func New(n int, s float64) *Keys {
	weights := make([]float64, n)
	sum := 0.0
	for i := range weights {
		weights[i] = math.Pow(float64(i+1), -s)
		sum += weights[i]
	}
	k := &Keys{share: make([]float64, n), other: make([]uint32, n)}
	var small, large []uint32
	for i := range weights {
		weights[i] *= float64(n) / sum
		if weights[i] < 1 {
			small = append(small, uint32(i))
		} else {
			large = append(large, uint32(i))
		}
	}
	for len(small) > 0 && len(large) > 0 {
		s, l := small[len(small)-1], large[len(large)-1]
		small = small[:len(small)-1]
		k.share[s], k.other[s] = weights[s], l
		if weights[l] -= 1 - weights[s]; weights[l] < 1 {
			large = large[:len(large)-1]
			small = append(small, l)
		}
	}
	for _, i := range append(small, large...) { // 1, but for rounding
		k.share[i], k.other[i] = 1, i
	}
	return k
}

// Draw returns a number.
func (k *Keys) Draw(rng *rand.Rand) int {
	i := rng.IntN(len(k.share))
	if rng.Float64() < k.share[i] {
		return i
	}
	return int(k.other[i])
}

// probability returns how likely a number is.
func (k *Keys) probability(i int) float64 {
	p := 0.0
	for column := range k.share {
		if column == i {
			p += k.share[column]
		}
		if int(k.other[column]) == i {
			p += 1 - k.share[column]
		}
	}
	return p / float64(len(k.share))
}

// exponent returns the exponent with which the first part of n numbers gets a
// share of the draws.
func exponent(n int, part, share float64) float64 {
	first := int(part * float64(n))
	low, high := 0.0, 4.0
	for range 60 {
		s := (low + high) / 2
		of, all := 0.0, 0.0
		for i := range n {
			w := math.Pow(float64(i+1), -s)
			if all += w; i < first {
				of += w
			}
		}
		if of/all < share {
			low = s
		} else {
			high = s
		}
	}
	return (low + high) / 2
}
