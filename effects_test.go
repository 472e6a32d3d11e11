package flightpg

import (
	"testing"

	"github.com/flightpg/flightpg/internal/judge/growth"
)

// TestEffectsOfComments: a comment behind a lock's name hides nothing that comes
// after it.
func TestEffectsOfComments(t *testing.T) {
	for sql, want := range map[string]effect{
		"SELECT pg_advisory_lock/* ( */(1)":                                 effectLocks,
		"SELECT pg_advisory_lock -- (\n(1)":                                 effectLocks,
		"SELECT pg_advisory_lock/*(1) --*/(1), set_config('a', 'b', false)": effectPins | effectLocks,
	} {
		if v := (rules{noCatalog: true}).judge(sql, nil); v.effects != want {
			t.Errorf("%s: effects %04b; want %04b", sql, v.effects, want)
		}
	}
}

// TestVerdictGrowth is the judge's TestGrowth for all that is found out about a
// text, once for each of its statements.
//
//	FLIGHTPG_GROWTH_N  how long the longest texts are; 16 KiB
func TestVerdictGrowth(t *testing.T) {
	sizes := growth.Sizes(t, 16<<10)
	funcs := []growth.Func{
		{Name: "new", Do: func(sql string) { rules{}.judge(sql, nil) }},
		{Name: "trusting", Do: func(sql string) { rules{noCatalog: true, ignoreComments: true}.judge(sql, nil) }},
	}
	t.Log(growth.Header())
	for _, shape := range growth.Shapes {
		t.Log(growth.Check(t, shape.Name, shape.Texts(sizes), 160, funcs))
	}
}
