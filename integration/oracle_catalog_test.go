package integration

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// This file asks servers for all that they come with, and holds the verdicts on
// it to what they say. The lists of internal/catalog were generated from some
// servers; this is the one at hand.

// A serverFunction is a row of pg_proc.
type serverFunction struct {
	OID      uint32
	Name     string
	Volatile bool
	SQL      bool     // written in SQL
	Source   string   // … as text
	Calls    []uint32 // … as a tree: functions that it calls
	System   bool     // in pg_catalog
}

// bodyCalls finds the functions in a tree that the server stores.
var bodyCalls = regexp.MustCompile(`:(?:funcid|opfuncid|aggfnoid|winfnoid|hashfuncid|negfuncid) (\d+)`)

func callsIn(tree string) (list []uint32) {
	for _, m := range bodyCalls.FindAllStringSubmatch(tree, -1) {
		if n, err := strconv.ParseUint(m[1], 10, 32); err == nil && n != 0 {
			list = append(list, uint32(n))
		}
	}
	return list
}

func collect[T any](t *testing.T, conn *pgx.Conn, sql string, scan func(pgx.CollectableRow) (T, error)) []T {
	t.Helper()
	rows, err := conn.Query(t.Context(), sql)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	list, err := pgx.CollectRows(rows, scan)
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return list
}

func serverFunctions(t *testing.T, conn *pgx.Conn) map[uint32]*serverFunction {
	t.Helper()
	list := collect(t, conn, `
		SELECT p.oid, proname::text, provolatile = 'v', lanname = 'sql', prosrc, coalesce(prosqlbody::text, ''), pronamespace = 'pg_catalog'::regnamespace
		FROM pg_proc p JOIN pg_language l ON l.oid = prolang WHERE p.oid < 16384 ORDER BY proname, p.oid`,
		func(row pgx.CollectableRow) (*serverFunction, error) {
			var f serverFunction
			var body string
			err := row.Scan(&f.OID, &f.Name, &f.Volatile, &f.SQL, &f.Source, &body, &f.System)
			if f.SQL {
				f.Calls = callsIn(body)
			}
			return &f, err
		})
	byOID := map[uint32]*serverFunction{}
	for _, f := range list {
		byOID[f.OID] = f
	}
	return byOID
}

// wantClass is the verdict on a statement that calls a function of some class.
var wantClass = map[catalog.Class]sqlscan.Class{
	catalog.Unknown: sqlscan.Other, catalog.Safe: sqlscan.Read, catalog.Private: sqlscan.PrivateRead,
	catalog.NeutralWrite: sqlscan.Write, catalog.Denied: sqlscan.Other,
}

// volatileOnly reports whether f is declared volatile for no other reason than that its
// answer is not part of a snapshot: at a moment it is the same for everybody.
func volatileOnly(f *serverFunction) bool {
	switch f.Name {
	case "pg_relation_size", "pg_table_size", "pg_indexes_size", "pg_total_relation_size", "pg_database_size", "pg_tablespace_size",
		"pg_is_in_recovery":
		return f.System
	}
	return false
}

// mayShare reports whether calling f is harmless, as far as its name and its
// declaration tell.
func mayShare(f *serverFunction) bool {
	return (!f.Volatile || volatileOnly(f)) && catalog.Function(f.Name) == catalog.Safe
}

// TestServerFunctions calls every function of pg_proc: none that is declared
// volatile, or has a volatile sibling, makes a read; nor does one that is written
// in SQL and calls another that makes none.
func TestServerFunctions(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		conn, version := connect(t, dsn), serverVersion(t, dsn)
		judge := sqlscan.Options{Version: version}
		byOID := serverFunctions(t, conn)
		names, unlisted, reads, bodies := map[string]bool{}, map[string]bool{}, 0, 0
		for _, f := range byOID {
			if !f.System {
				continue
			}
			names[f.Name] = true
			class := catalog.Function(f.Name)
			quoted := `"` + strings.ReplaceAll(f.Name, `"`, `""`) + `"`
			for _, sql := range []string{
				"SELECT pg_catalog." + quoted + "()",
				"SELECT * FROM t WHERE " + quoted + "(id, $1) = 2",
				"SELECT a FROM " + quoted + "('x') WITH ORDINALITY x(a)",
				"SELECT (SELECT 1 FROM t ORDER BY pg_catalog . /* c */ " + quoted + " (VARIADIC a) LIMIT 1)",
			} {
				got := judge.Scan(sql)
				if got.Class == sqlscan.Read && f.Volatile && !volatileOnly(f) {
					t.Errorf("Scan(%q) is a read, but %s is volatile", sql, f.Name)
				}
				// A server that is newer than the list has functions that are not on it.
				if want := wantClass[class]; got.Class != want && version <= catalog.Newest {
					t.Errorf("Scan(%q) = %v; want %v", sql, got.Class, want)
				}
			}
			if class == catalog.Unknown {
				unlisted[f.Name] = true // dropped by a later version, or added by one
			}
			if class != catalog.Safe {
				continue
			}
			reads++
			if !f.SQL {
				continue
			}
			bodies++
			for _, called := range f.Calls {
				// As to_tsvector does: a setting, the same in all pristine sessions.
				if g := byOID[called]; !mayShare(g) && g.Name != "get_current_ts_config" {
					t.Errorf("%s is safe, but calls %s", f.Name, g.Name)
				}
			}
			if len(f.Calls) == 0 {
				if got := judge.Scan(f.Source); got.Class != sqlscan.Read && !strings.HasPrefix(f.Source, "see ") {
					t.Errorf("%s is safe, but its body is a %v (%v): %s", f.Name, got.Class, got.Reason, f.Source)
				}
			}
		}
		t.Logf("PostgreSQL %d: %d functions of %d names, %d of them not listed; %d functions are safe, %d of them written in SQL",
			version, len(byOID), len(names), len(unlisted), reads, bodies)
		if len(names) < 2000 || reads < 1000 {
			t.Error("that is too few")
		}
		if len(unlisted) > 60 && version <= catalog.Newest {
			t.Errorf("not listed: %v", unlisted)
		}
	})
}

// TestServerOperators: operators, casts, types and aggregates run functions that no
// text names. The scanner lets all those of pg_catalog pass, so none may be
// volatile or unfit.
func TestServerOperators(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		conn, version := connect(t, dsn), serverVersion(t, dsn)
		judge := sqlscan.Options{Version: version}
		byOID := serverFunctions(t, conn)

		type operator struct {
			Name, Left, Right string
			Function          uint32
		}
		operators := collect(t, conn, `
			SELECT oprname::text, oprleft::regtype::text, oprright::regtype::text, oprcode::oid
			FROM pg_operator WHERE oprnamespace = 'pg_catalog'::regnamespace AND oprcode <> 0 ORDER BY 1, 2, 3`, pgx.RowToStructByPos[operator])
		for _, o := range operators {
			if f := byOID[o.Function]; !mayShare(f) {
				t.Errorf("%s %s %s runs %s: volatile %v, %v", o.Left, o.Name, o.Right, f.Name, f.Volatile, catalog.Function(f.Name))
			}
			left := "a "
			if o.Left == "-" {
				left = ""
			}
			for _, sql := range []string{
				fmt.Sprintf("SELECT %s%s b FROM t", left, o.Name),
				fmt.Sprintf("SELECT %sOPERATOR(pg_catalog.%s) $1", left, o.Name),
			} {
				if got := judge.Scan(sql); got.Class != sqlscan.Read {
					t.Errorf("Scan(%q) = %v, %v; want a read", sql, got.Class, got.Reason)
				}
			}
		}

		type hidden struct {
			What     string
			Function uint32
		}
		implicit := collect(t, conn, `
			SELECT 'cast ' || castsource::regtype || ' to ' || casttarget::regtype, castfunc::oid FROM pg_cast WHERE castfunc <> 0 AND oid < 16384
			UNION ALL SELECT 'aggregate ' || aggfnoid, f FROM pg_aggregate, LATERAL unnest(ARRAY[aggtransfn, aggfinalfn, aggcombinefn, aggmtransfn, aggminvtransfn, aggmfinalfn]::oid[]) f
				WHERE f <> 0 AND aggfnoid < 16384
			UNION ALL SELECT 'input of ' || typname, typinput::oid FROM pg_type WHERE oid < 16384 AND typtype IN ('b', 'c', 'e', 'r', 'm', 'd')
			UNION ALL SELECT 'output of ' || typname, typoutput::oid FROM pg_type WHERE oid < 16384 AND typtype IN ('b', 'c', 'e', 'r', 'm', 'd')
			UNION ALL SELECT 'binary output of ' || typname, typsend::oid FROM pg_type WHERE oid < 16384 AND typsend <> 0 AND typtype IN ('b', 'c', 'e', 'r', 'm', 'd')`,
			pgx.RowToStructByPos[hidden])
		for _, h := range implicit {
			if f := byOID[h.Function]; f.Volatile {
				t.Errorf("%s runs %s, which is volatile", h.What, f.Name)
			}
		}
		t.Logf("PostgreSQL %d: %d operators, %d functions of casts, aggregates and types", version, len(operators), len(implicit))
		if len(operators) < 500 || len(implicit) < 500 {
			t.Error("that is too few")
		}
	})
}

// TestServerViews: no system view is a read that reaches a function that is none,
// through other views and functions too.
func TestServerViews(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		conn, version := connect(t, dsn), serverVersion(t, dsn)
		judge := sqlscan.Options{Version: version}
		byOID := serverFunctions(t, conn)

		type view struct {
			OID          uint32
			Schema, Name string
			Rule         string
		}
		views := collect(t, conn, `
			SELECT c.oid, relnamespace::regnamespace::text, relname::text, r.ev_action::text
			FROM pg_class c JOIN pg_rewrite r ON r.ev_class = c.oid AND r.ev_type = '1'
			WHERE c.oid < 16384 AND relkind IN ('v', 'm') ORDER BY 2, 3`, pgx.RowToStructByPos[view])
		index := map[uint32]view{}
		for _, v := range views {
			index[v.OID] = v
		}
		relation := regexp.MustCompile(`:relid (\d+)`)
		var reaches func(v view, seen map[uint32]bool) string
		var calls func(oid uint32, seen map[uint32]bool) string
		calls = func(oid uint32, seen map[uint32]bool) string {
			f := byOID[oid]
			if f == nil || seen[oid] {
				return ""
			}
			seen[oid] = true
			if f.Volatile && !volatileOnly(f) || f.System && catalog.Function(f.Name) != catalog.Safe {
				return f.Name
			}
			for _, g := range f.Calls {
				if bad := calls(g, seen); bad != "" {
					return bad
				}
			}
			return ""
		}
		reaches = func(v view, seen map[uint32]bool) string {
			if seen[v.OID] {
				return ""
			}
			seen[v.OID] = true
			for _, oid := range callsIn(v.Rule) {
				if bad := calls(oid, seen); bad != "" {
					return bad
				}
			}
			for _, m := range relation.FindAllStringSubmatch(v.Rule, -1) {
				oid, _ := strconv.ParseUint(m[1], 10, 32)
				if w, ok := index[uint32(oid)]; ok {
					if bad := reaches(w, seen); bad != "" {
						return w.Name + ", " + bad
					}
				}
			}
			return ""
		}
		unfit, strict := 0, []string(nil)
		for _, v := range views {
			bad := reaches(v, map[uint32]bool{})
			forms := []string{"SELECT * FROM " + v.Schema + "." + v.Name, `SELECT 1 FROM t, "` + v.Schema + `"."` + v.Name + `" x`, "TABLE " + v.Schema + " . /* c */ " + strings.ToUpper(v.Name)}
			if v.Schema == "pg_catalog" {
				forms = append(forms, "SELECT * FROM "+v.Name, "SELECT (SELECT count(*) FROM ONLY ("+v.Name+"))")
			}
			if bad != "" {
				unfit++
			}
			for i, sql := range forms {
				got := judge.Scan(sql)
				switch {
				case bad != "" && got.Class == sqlscan.Read:
					t.Errorf("Scan(%q) is a read, but the view reaches %s", sql, bad)
				case bad == "" && got.Class != sqlscan.Read && i == 0:
					strict = append(strict, v.Name)
				}
			}
		}
		slices.Sort(strict)
		t.Logf("PostgreSQL %d: %d system views; %d reach what is no read; bypassed without that: %v", version, len(views), unfit, strict)
		if len(views) < 100 || unfit < 40 {
			t.Error("that is too few")
		}
		if len(strict)*5 > len(views) {
			t.Errorf("%d of %d system views bypass without need", len(strict), len(views))
		}
	})
}
