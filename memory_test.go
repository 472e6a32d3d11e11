package flightpg

import (
	"database/sql/driver"
	"fmt"
	"math"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestBudget_CountsWhatIsKept holds what a buffered result is counted for to what
// it keeps in memory, for results of many shapes.
func TestBudget_CountsWhatIsKept(t *testing.T) {
	value := func(of func(n int) driver.Value) func(width, n int) []driver.Value {
		return func(width, n int) []driver.Value {
			row := make([]driver.Value, width)
			for i := range row {
				row[i] = of(n)
			}
			return row
		}
	}
	text := func(length int) func(width, n int) []driver.Value {
		return value(func(int) driver.Value { return strings.Repeat("x", length) })
	}
	raw := func(length int) func(width, n int) []driver.Value {
		return value(func(int) driver.Value { return make([]byte, length) })
	}
	ints := value(func(n int) driver.Value { return int64(n + 1000) })
	for _, tc := range []struct {
		name        string
		width, rows int
		row         func(width, n int) []driver.Value
	}{
		{"NoRows", 3, 0, ints},
		{"OneInteger", 1, 1, ints},
		{"ManyColumns", 200, 1, ints},
		{"ManyColumnsAndRows", 100, 11, ints},
		{"ThreeRows", 2, 3, ints},
		{"ManyIntegers", 2, 9_000, ints},
		{"Times", 3, 3_000, value(func(n int) driver.Value { return time.Unix(int64(n), 0) })},
		{"Null", 3, 5_000, value(func(int) driver.Value { return nil })},
		{"ShortTexts", 1, 20_000, text(1)},
		{"Texts33", 1, 8_000, text(33)},
		{"Texts130", 1, 3_000, text(130)},
		{"Texts1025", 1, 500, text(1025)},
		{"Texts4097", 1, 150, text(4097)},
		{"Texts32769", 1, 25, text(32769)},
		{"OneText", 1, 1, text(1_000_001)},
		{"ShortBytes", 1, 10_000, raw(9)},
		{"Bytes8193", 1, 100, raw(8193)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			budget := &budget{limit: math.MaxInt64}
			const results = 20
			kept := make([]*result, 0, results)
			before := heapInUse()
			for range results {
				kept = append(kept, bufferMade(budget, tc.width, tc.rows, tc.row))
			}
			took := heapInUse() - before
			counted := int64(results * resultSize)
			if tc.rows > 0 { // an empty result never asks
				counted = budget.used.Load()
			}
			t.Logf("a result takes %d bytes and is counted for %d", took/results, counted/results)
			// What remains are other sizes of the allocator's.
			small := int64(results * tc.width * tc.rows * (smallest - scalarSize))
			if limit := counted + counted/16 + small + results*1024; took > limit {
				t.Errorf("%d results took %d bytes; want at most %d: counted were %d", results, took, limit, counted)
			}
			if limit := took + took/4 + results*1024; counted > limit {
				t.Errorf("%d results were counted for %d bytes; want at most %d: they took %d", results, counted, limit, took)
			}
			for _, r := range kept {
				r.Share(0)
			}
			if n := budget.used.Load(); n != 0 {
				t.Errorf("%d bytes are still counted", n)
			}
		})
	}
}

// bufferMade buffers a result of rows that are made as they are read.
func bufferMade(budget *budget, width, rows int, row func(width, n int) []driver.Value) *result {
	made := &madeRows{fakeRows: fakeRows{}, rows: rows, row: row}
	for i := range width {
		made.names = append(made.names, fmt.Sprintf("column_%d", i))
	}
	return buffer(made, budget, math.MaxInt64, func(*read) bool { return false }, nil)
}

type madeRows struct {
	fakeRows
	rows int
	row  func(width, n int) []driver.Value
}

// Next implements driver.Rows.
func (r *madeRows) Next(dest []driver.Value) error {
	if r.n < r.rows {
		r.fakeRows.rows = append(r.fakeRows.rows[:0], r.row(len(r.names), r.n))
		copy(dest, r.fakeRows.rows[0])
		r.n++
		return nil
	}
	r.fakeRows.rows, r.n = nil, 0
	return r.fakeRows.Next(dest)
}

// heapInUse returns how many bytes are in use, once there is nothing to collect any more:
// what pools hold, and what has a cleanup or a finalizer, survives some collections, and
// other tests' goroutines may be about to end.
func heapInUse() int64 {
	var m runtime.MemStats
	for least, same := uint64(math.MaxUint64), 0; same < 5; {
		runtime.GC()
		runtime.ReadMemStats(&m)
		if same++; m.HeapAlloc < least-min(least, 256) {
			same = 0
		}
		least = min(least, m.HeapAlloc)
	}
	return int64(m.HeapAlloc)
}
