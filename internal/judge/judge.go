// Package judge says of one SQL text whether its rows may be shared: what the
// text tells (package sqlscan) and what a database says about the names in it
// (package catalog), put together.
//
// Reading order: judge.go (both layers), names.go (what each kind of name must
// fulfil), company.go (what may be executed together), hint.go (what a user can do about a verdict).
package judge

import (
	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// A Layer is the part of the policy that decided.
type Layer uint8

const (
	Text    Layer = iota // the statement by itself
	Catalog              // the database's catalog, or the want of it
)

func (l Layer) String() string {
	if l == Catalog {
		return "catalog"
	}
	return "text"
}

// A Verdict is the answer on one text. Its rows may be shared if Class is
// sqlscan.Read.
type Verdict struct {
	sqlscan.Result
	Layer Layer

	// Stale: a name was not there when the catalog was read, so reading it again
	// may change the verdict.
	Stale bool

	// Company says with what a Read may be executed; anything else is Alone.
	Company Company
	// Relations are the OIDs of the tables that a Read reads, through views, sorted;
	// of partitioned tables and parents only these. It is nil if there are more than
	// 16, and without a catalog. It must not be changed.
	Relations []uint32

	fault *catalog.Fault // what Hint explains
}

// Options adapt Judge to what its caller knows.
type Options struct {
	// RLS lets reads of tables with row-level security pass: all who could share
	// them are the same role, in sessions with the same settings. What a policy
	// reaches is judged all the same.
	RLS bool

	// TrustNames, where there is no catalog, takes every name for what it seems:
	// tables are tables, operators and types are built in. Without both, only
	// names qualified with pg_catalog are known.
	TrustNames bool

	// Trusted reports, where there is no catalog, whether a relation is a table, or a view
	// that only reads. If it is not nil, operators, types and functions are taken for
	// built-in.
	Trusted func(schema, name string) bool
}

// Judge judges a text. Without a catalog, set is nil. Judge may be called from
// several goroutines at once.
//
// It takes time in proportion to the text's length. With a catalog there is a
// factor that the text has no part in: an unqualified table or type is looked for in
// each schema of search_path up to its own, and a call is held against each
// overload of its name. No other part of the catalog's size counts.
func Judge(sql string, set *catalog.Set, opts Options) Verdict {
	if set == nil {
		return withoutCatalog(sql, opts)
	}
	j := judges.Get().(*judge)
	defer j.release()
	j.set, j.rls = set, opts.RLS
	text := sqlscan.Options{Version: set.Version(), Visit: j.visitor}.Scan(sql)
	if f := set.Everything(); f != nil {
		j.find(sqlscan.UnsafeCast, f, &sqlscan.Name{Name: f.Object})
	}
	if f, kind := set.Pair(j.has, j.needs); f != nil {
		reason := sqlscan.UnsafeCast
		switch kind {
		case 'o':
			reason = sqlscan.UnsafeOperator
		case 'f':
			reason = sqlscan.UnsafeFunction
		}
		j.find(reason, f, &sqlscan.Name{Name: f.Object})
	}
	if j.item {
		j.take(&j.ofItem)
		j.meet(j.itemCompany)
	}

	found := &j.worst
	if j.unknown.reason != sqlscan.None && found.class != sqlscan.Other && text.Class != sqlscan.Write {
		// A view that is not known can do anything. But what is written to is
		// mostly a table: taking it for more would cost a session each time.
		found = &j.unknown
	}
	if !found.class.Worse(text.Class) {
		v := Verdict{Result: text}
		if text.Class == sqlscan.Read {
			v.Company, v.Relations = min(j.company, set.Company()), j.tables.take()
		}
		return v
	}
	v := Verdict{Result: text, Layer: Catalog, Stale: found.stale, fault: found.fault}
	v.Class, v.Reason, v.Name, v.Pos = found.class, found.reason, found.name, found.pos
	return v
}

// withoutCatalog judges by the text alone.
func withoutCatalog(sql string, opts Options) Verdict {
	text := sqlscan.Scan(sql)
	if opts.TrustNames || text.Class != sqlscan.Read {
		return Verdict{Result: text}
	}
	return withoutTrust(sql, text, opts.Trusted)
}

// withoutTrust looks for a name that only a catalog knows in a read.
func withoutTrust(sql string, read sqlscan.Result, trusted func(schema, name string) bool) Verdict {
	v := Verdict{Result: read}
	sqlscan.Names(sql, func(n sqlscan.Name) bool {
		switch n.Kind {
		case sqlscan.OtherName, sqlscan.GrammarType:
			return true
		case sqlscan.RelationName:
			if n.CTE || n.Schema == "information_schema" || trusted != nil && trusted(n.Schema, n.Name) {
				return true
			}
		default:
			if trusted != nil {
				return true
			}
		}
		if n.Schema == "pg_catalog" {
			return true
		}
		v.Class, v.Reason, v.Layer = sqlscan.Other, sqlscan.CatalogUnavailable, Catalog
		v.Name, v.Pos = n.Name, n.Pos
		return false
	})
	return v
}
