package pipeline

import (
	"testing"
	"time"
)

// TestPreparedSet checks that a connection's prepared statements are bounded in number
// and by their texts, and that those used last stay.
func TestPreparedSet(t *testing.T) {
	for _, tc := range []struct {
		name          string
		limit, length int
		keeps         int
	}{
		{"Number", 10, 100, 10},
		{"Bytes", 1000, preparedBytes / 8, 8},
		{"OneTooLong", 1000, 2 * preparedBytes, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := preparedSet{limit: tc.limit, known: make(map[string]*preparedStmt)}
			open := map[string]bool{} // on the server
			use := func(d *Desc) {
				prepare, evicted := s.use(d, tc.length)
				for _, name := range evicted {
					if !open[name] {
						t.Errorf("%s is closed, but not open", name)
					}
					delete(open, name)
				}
				if prepare == open[d.name] {
					t.Errorf("%s: prepare = %v, open = %v", d.name, prepare, open[d.name])
				}
				open[d.name] = true
			}
			first := &Desc{name: newName()}
			use(first)
			for range 100 {
				use(&Desc{name: newName()})
				if tc.keeps > 1 {
					use(first) // it stays in use
					if prepare, _ := s.use(first, tc.length); prepare {
						t.Error("the one that is used all the time had to go")
					}
				}
			}
			if len(open) != tc.keeps || len(s.known) != tc.keeps || s.bytes != tc.keeps*tc.length {
				t.Errorf("%d statements are open, %d known with %d bytes; want %d", len(open), len(s.known), s.bytes, tc.keeps)
			}
			for d := range open {
				s.remove(&Desc{name: d})
			}
			if s.bytes != 0 || s.first != nil || s.last != nil {
				t.Errorf("%d bytes are left of none", s.bytes)
			}
		})
	}
}

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
