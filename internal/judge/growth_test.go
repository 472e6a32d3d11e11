package judge

import (
	"testing"

	"github.com/flightpg/flightpg/internal/judge/growth"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// TestGrowth: no text takes time or memory that grows much faster than its
// length. Texts of every length come from callers, and long ones are judged each
// time.
//
//	FLIGHTPG_GROWTH_N  how long the longest texts are; 32 KiB
func TestGrowth(t *testing.T) {
	set := smallSet(t)
	funcs := []growth.Func{
		{Name: "judge", Do: func(sql string) { Judge(sql, set, Options{}) }},
		{Name: "text", Do: func(sql string) { Judge(sql, nil, Options{}) }},
		{Name: "names", Do: func(sql string) { sqlscan.Names(sql, func(sqlscan.Name) bool { return true }) }},
		{Name: "commands", Do: func(sql string) { sqlscan.Commands(sql, func(sqlscan.Command) bool { return true }) }},
		{Name: "strip", Do: func(sql string) { sqlscan.StripComments(nil, sql) }},
	}
	sizes := growth.Sizes(t, 32<<10)
	t.Log(growth.Header())
	for _, shape := range growth.Shapes {
		texts := shape.Texts(sizes)
		for _, sql := range texts {
			// Else what is measured would be how soon it gives up.
			if v := Judge(sql, set, Options{}); shape.Read != (v.Class == sqlscan.Read) {
				t.Errorf("%s: Judge(%.200q…) = %v, %v %q; want a read %v", shape.Name, sql, v.Class, v.Reason, v.Name, shape.Read)
			}
		}
		t.Log(growth.Check(t, shape.Name, texts, 80, funcs))
	}
}
