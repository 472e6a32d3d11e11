// Package stats has the few statistics that the benchmarks need.
package stats

import (
	"math"
	"math/bits"
	"slices"
	"time"
)

// Quantile returns the q-quantile of values, 0 ≤ q ≤ 1, by linear interpolation
// between the two nearest. It is NaN for no values.
func Quantile(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	at := q * float64(len(sorted)-1)
	low := int(math.Floor(at))
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// Median is the middle of values, or the mean of the two in the middle.
func Median(values []float64) float64 { return Quantile(values, 0.5) }

// Ratios divides each value by the base of the same round.
func Ratios(values, base []float64) []float64 {
	n := min(len(values), len(base))
	ratios := make([]float64, 0, n)
	for i := range n {
		ratios = append(ratios, values[i]/base[i])
	}
	return ratios
}

// Of a histogram: each power of two is divided into 64 buckets, so a quantile is
// at most 1/64 off; durations below 64 ns are exact.
const (
	subBits = 6
	sub     = 1 << subBits
	maxBits = 37 // 2^37 ns are 137 s; what is longer counts as that
	buckets = (maxBits - subBits + 1) * sub
)

// Histogram counts durations. The zero value is ready. It serves one goroutine at
// a time.
type Histogram struct {
	n      uint64
	counts [buckets]uint32
}

// bucketOf returns a duration's bucket.
func bucketOf(d time.Duration) int {
	v := uint64(max(d, 0))
	if v < sub {
		return int(v)
	}
	shift := bits.Len64(v) - 1 - subBits
	return min((shift+1)*sub+int(v>>shift)-sub, buckets-1)
}

// middle returns the duration in the middle of a bucket.
func middle(bucket int) float64 {
	if bucket < sub {
		return float64(bucket)
	}
	shift := bucket/sub - 1
	low := uint64(sub+bucket%sub) << shift
	return float64(low) + float64(uint64(1)<<shift)/2
}

// Add counts a duration.
func (h *Histogram) Add(d time.Duration) {
	h.n++
	h.counts[bucketOf(d)]++
}

// Merge adds what another histogram has counted.
func (h *Histogram) Merge(other *Histogram) {
	if other.n == 0 {
		return
	}
	h.n += other.n
	for i, n := range other.counts {
		h.counts[i] += n
	}
}

// Reset forgets everything.
func (h *Histogram) Reset() {
	if h.n > 0 {
		*h = Histogram{}
	}
}

// N returns how many durations were counted.
func (h *Histogram) N() uint64 { return h.n }

// Quantile returns a duration, in nanoseconds, below which a share q of those
// counted lie. It is NaN if there are none.
func (h *Histogram) Quantile(q float64) float64 {
	if h.n == 0 {
		return math.NaN()
	}
	want := uint64(math.Ceil(q * float64(h.n)))
	seen := uint64(0)
	for i, n := range h.counts {
		if seen += uint64(n); seen >= max(want, 1) {
			return middle(i)
		}
	}
	return middle(buckets - 1)
}
