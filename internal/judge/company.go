package judge

import (
	"slices"
	"strings"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// Company says with what the execution of a read may share a connection at a time.
type Company = catalog.Company

// The companies. What is not known is Alone.
const (
	Alone  = catalog.Alone
	Apart  = catalog.Apart
	Joined = catalog.Joined
)

// meet takes the company of a name into account.
func (j *judge) meet(c Company) { j.company = min(j.company, c) }

// meetAttribute is meet for x.name.
func (j *judge) meetAttribute(n *sqlscan.Name, row, value, conversion catalog.Use) {
	j.meet(row.Company)
	c := min(value.Company, conversion.Company)
	// A built-in function, too. Those that take rows are Joined, or nobody calls a
	// column like them.
	if info := catalog.Lookup(n.Name); info.Class == catalog.Safe {
		built := j.set.Builtin(n.Name)
		if built == Alone || strings.HasPrefix(n.Name, "pg_") {
			j.meet(built)
		}
		c = min(c, built)
	}
	if n.Bare || j.item {
		j.meet(c)
	} else {
		j.itemCompany = min(j.itemCompany, c)
	}
}

// syntaxCompany returns the company of what looks like a function and is syntax.
func syntaxCompany(name string) Company {
	if strings.HasPrefix(name, "xml") {
		return Apart
	}
	return Joined
}

// tables are those that a statement reads.
type tables struct {
	list [catalog.MaxTables + 1]uint32 // sorted; one more than is told
	n    int
	of   []uint32 // those of one relation, of which no copy is needed
}

// add adds sorted OIDs.
func (t *tables) add(oids []uint32) {
	if t.n == 0 {
		t.of = oids
	}
	for _, oid := range oids {
		i, ok := slices.BinarySearch(t.list[:t.n], oid)
		if ok || t.n == len(t.list) {
			continue
		}
		copy(t.list[i+1:t.n+1], t.list[i:t.n])
		t.list[i] = oid
		t.n++
	}
}

// take returns the OIDs, nil if there are too many.
func (t *tables) take() []uint32 {
	switch {
	case t.n == 0, t.n > catalog.MaxTables:
		return nil
	case t.n == len(t.of):
		return t.of
	}
	return slices.Clone(t.list[:t.n])
}
