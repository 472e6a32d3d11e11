package pipeline

import (
	"testing"
	"time"
)

// TestTimes_Tail: a statement of which one call in fifty takes 20 ms is found to have a
// tail within a thousand executions. One on a machine that stands still for 5 ms now
// and then, and seldom for 200, so that whatever is executed is late, eight calls at a
// time or one, is not, however long that goes on.
func TestTimes_Tail(t *testing.T) {
	const usual = 300 * time.Microsecond
	t.Run("Statement", func(t *testing.T) {
		var st times
		n := 0
		for ; n < 1000 && !st.tailed.Load(); n++ {
			late := time.Duration(0)
			if n%50 == 49 {
				late = 20 * time.Millisecond
			}
			st.exceeded(late, late, usual)
		}
		if !st.tailed.Load() {
			t.Error("after 1000 executions it has no tail")
		}
		t.Logf("it has a tail after %d executions", n)
	})
	t.Run("Machine", func(t *testing.T) {
		var st times
		for n := range 100_000 {
			late := time.Duration(0)
			switch {
			case n%1000 < 8:
				late = 5 * time.Millisecond
			case n%10_000 == 5500:
				late = 200 * time.Millisecond
			}
			st.exceeded(late, late, usual)
			if st.tailed.Load() {
				t.Fatalf("it has a tail after %d executions", n)
			}
		}
	})
}
