package judge

import (
	"testing"

	"github.com/flightpg/flightpg/internal/sqlscan"
)

// BenchmarkJudge judges texts that were never seen before, against the catalog
// of the hostile database.
func BenchmarkJudge(b *testing.B) {
	set := load(b, connect(b, database(b, "testdata/hostile.sql")))
	for name, sql := range map[string]string{
		"bytes=200": `SELECT u.id, u.email, count(t.id) AS orders, coalesce(sum(t.id), 0) FROM u LEFT JOIN t ON u.t_id = t.id WHERE u.id = $1 AND t.created_at > now() - interval '7 days' GROUP BY u.id, u.email`,
		"bytes=35":  "SELECT id, name FROM t WHERE id = $1",
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			b.SetBytes(int64(len(sql)))
			for b.Loop() {
				if v := Judge(sql, set, Options{}); v.Class != sqlscan.Read {
					b.Fatalf("%v %q", v.Reason, v.Name)
				}
			}
		})
	}
}
