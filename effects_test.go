package flightpg

import "testing"

// TestEffectsOfComments: a comment behind a lock's name hides nothing that comes
// after it.
func TestEffectsOfComments(t *testing.T) {
	for sql, want := range map[string]effect{
		"SELECT pg_advisory_lock/* ( */(1)":                                 effectLocks,
		"SELECT pg_advisory_lock -- (\n(1)":                                 effectLocks,
		"SELECT pg_advisory_lock/*(1) --*/(1), set_config('a', 'b', false)": effectPins,
	} {
		if v := (rules{noCatalog: true}).judge(sql, nil); v.effects != want {
			t.Errorf("%s: effects %04b; want %04b", sql, v.effects, want)
		}
	}
}
