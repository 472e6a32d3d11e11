package stats

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestQuantile(t *testing.T) {
	for _, tc := range []struct {
		values []float64
		q      float64
		want   float64
	}{
		{[]float64{3}, 0.5, 3},
		{[]float64{3, 1, 2}, 0.5, 2},
		{[]float64{4, 1, 3, 2}, 0.5, 2.5},
		{[]float64{5, 1, 2, 3, 4}, 0.25, 2},
		{[]float64{1, 2}, 0, 1},
		{[]float64{1, 2}, 1, 2},
	} {
		if got := Quantile(tc.values, tc.q); got != tc.want {
			t.Errorf("Quantile(%v, %v) = %v; want %v", tc.values, tc.q, got, tc.want)
		}
	}
	if got := Median(nil); !math.IsNaN(got) {
		t.Errorf("Median of nothing = %v; want NaN", got)
	}
	values := []float64{3, 1, 2}
	if Median(values); !slices.Equal(values, []float64{3, 1, 2}) {
		t.Errorf("Median has sorted its argument: %v", values)
	}
}

func TestRatios(t *testing.T) {
	if got := Ratios([]float64{2, 9, 1}, []float64{1, 3, 4}); !slices.Equal(got, []float64{2, 3, 0.25}) {
		t.Errorf("Ratios = %v; want round by round", got)
	}
}

func TestHistogram_Bucket(t *testing.T) {
	last := -1
	for d := time.Duration(0); d < 1<<20; d++ {
		b := bucketOf(d)
		if b != last && b != last+1 {
			t.Fatalf("%d ns is in bucket %d, the one before it in %d", d, b, last)
		}
		last = b
		if m := middle(b); math.Abs(m-float64(d)) > float64(d)/sub {
			t.Fatalf("%d ns is in the bucket around %v", d, m)
		}
	}
	for _, d := range []time.Duration{-1, 0, time.Hour, math.MaxInt64} {
		if b := bucketOf(d); b < 0 || b >= buckets {
			t.Errorf("%v is in bucket %d of %d", d, b, buckets)
		}
	}
}

func TestHistogram_Quantile(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var parts [3]Histogram
	var all []float64
	for i := range 30_000 {
		d := time.Duration(math.Exp(rng.NormFloat64()) * 1e5)
		parts[i%3].Add(d)
		all = append(all, float64(d))
	}
	var h Histogram
	for i := range parts {
		h.Merge(&parts[i])
	}
	if h.N() != 30_000 {
		t.Errorf("N = %d; want 30000", h.N())
	}
	for _, q := range []float64{0, 0.5, 0.9, 0.99, 0.999, 1} {
		got, want := h.Quantile(q), Quantile(all, q)
		if math.Abs(got-want) > want*0.02+1 {
			t.Errorf("Quantile(%v) = %v; want %v", q, got, want)
		}
	}
	h.Reset()
	if got := h.Quantile(0.5); h.N() != 0 || !math.IsNaN(got) {
		t.Errorf("after Reset N = %d, median %v", h.N(), got)
	}
}
