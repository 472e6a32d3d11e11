package integration

import (
	"bufio"
	"context"
	"database/sql"
	"errors"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg"
)

// caseRow is one statement of a table of cases, and what must become of it.
type caseRow struct{ sql, verdict string }

// readCases reads a table with a line of column names, among them sql and
// verdict, and with \n, \t, \r and \\ for what cannot stand in a cell.
func readCases(t *testing.T, path string) (rows []caseRow) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	unescape := strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t", `\r`, "\r")
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	at := map[string]int{}
	for lines.Scan() {
		cells := strings.Split(lines.Text(), "\t")
		switch {
		case len(at) == 0:
			for i, name := range cells {
				at[name] = i
			}
		case strings.HasPrefix(lines.Text(), "#") || lines.Text() == "":
		default:
			rows = append(rows, caseRow{unescape.Replace(cells[at["sql"]]), cells[at["verdict"]]})
		}
	}
	if lines.Err() != nil || len(rows) < 50 {
		t.Fatalf("%s: %d rows, %v", path, len(rows), lines.Err())
	}
	return rows
}

const judgeData = "../internal/judge/testdata/"

// caseTables are the tables of cases and the schema that each is about.
var caseTables = []struct{ schema, cases string }{
	{judgeData + "schema.sql", "../internal/sqlscan/testdata/classify.tsv"},
	{judgeData + "hostile.sql", judgeData + "hostile.tsv"},
}

// forEachCase runs f for each case, with a handle on a database that has the
// schema of its table.
func forEachCase(t *testing.T, f func(t *testing.T, dsn string, db *sql.DB, rows []caseRow)) {
	t.Helper()
	forEachServer(t, func(t *testing.T, dsn string) {
		for _, table := range caseTables {
			t.Run(table.cases[strings.LastIndexByte(table.cases, '/')+1:], func(t *testing.T) {
				to := newDatabase(t, dsn)
				schema, err := os.ReadFile(table.schema)
				if err != nil {
					t.Fatal(err)
				}
				conn, err := pgx.Connect(t.Context(), to)
				if err != nil {
					t.Fatal(err)
				}
				defer conn.Close(context.Background())
				if _, err := conn.PgConn().Exec(t.Context(), string(schema)).ReadAll(); err != nil {
					t.Fatal(err)
				}
				// With partitions no table is exempt from row-level security, to which the
				// server's superuser is not subject.
				db, err := flightpg.OpenDB(to, flightpg.Config{PartitionKey: func(context.Context) string { return "" }})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { db.Close() })
				f(t, to, db, readCases(t, table.cases))
			})
		}
	})
}

// TestCases holds the driver's verdict on every case to the table's.
func TestCases(t *testing.T) {
	forEachCase(t, func(t *testing.T, _ string, db *sql.DB, rows []caseRow) {
		for _, row := range rows {
			v, err := flightpg.Explain(t.Context(), db, row.sql)
			if err != nil {
				t.Fatal(err)
			}
			if v.Decision() != row.verdict {
				t.Errorf("%s: %s (%v %s); want %s", row.sql, v.Decision(), v.Reason, v.Name, row.verdict)
			}
		}
	})
}

// What a rewritten tree says of itself. Function 0 means: not looked up yet.
var (
	treeFunctions = regexp.MustCompile(`:(?:funcid|opfuncid|aggfnoid|winfnoid|inputfunc) ([1-9]\d*)`)
	treeRelations = regexp.MustCompile(`:relid ([1-9]\d*)`)
	treeDomains   = regexp.MustCompile(`\{COERCETODOMAIN [^{}]*:resulttype ([1-9]\d*)|\{COERCETODOMAIN .*?:resulttype ([1-9]\d*)`)
	treeUnsafe    = regexp.MustCompile(`:commandType [2-7]|:rowMarks \(|:hasModifyingCTE true|:hasForUpdate true|:securityQuals \(\{|\{NEXTVALUEEXPR`)
)

// TestRewrittenTrees asks PostgreSQL itself, for every case that is judged a
// read, what it becomes when views and policies are expanded and operators and
// casts resolved: no volatile function, no lock, no write, no relation that is
// not a plain one may be in the tree. Cases that are judged otherwise must
// often have one, else the test would show nothing.
func TestRewrittenTrees(t *testing.T) {
	forEachCase(t, func(t *testing.T, dsn string, db *sql.DB, rows []caseRow) {
		ctx := t.Context()
		config, err := pgx.ParseConfig(dsn)
		if err != nil {
			t.Fatal(err)
		}
		var tree string
		config.OnNotice = func(_ *pgconn.PgConn, n *pgconn.Notice) {
			if strings.Contains(n.Message, "rewritten") {
				tree += n.Detail
			}
		}
		conn, err := pgx.ConnectConfig(ctx, config)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close(context.Background())
		if _, err := conn.Exec(ctx, "SET client_min_messages = log; SET debug_print_rewritten = on; SET debug_pretty_print = off"); err != nil {
			t.Fatal(err)
		}
		facts := connect(t, dsn)
		// at returns what is at fault in a tree, "" if nothing is.
		at := func(tree string) (fault string) {
			if m := treeUnsafe.FindString(tree); m != "" {
				return m
			}
			var oids [3][]string
			for i, re := range []*regexp.Regexp{treeFunctions, treeRelations, treeDomains} {
				for _, m := range re.FindAllStringSubmatch(tree, -1) {
					oids[i] = append(oids[i], strings.Join(m[1:], ""))
				}
			}
			err := facts.QueryRow(ctx, `SELECT coalesce(min(what), '') FROM (
				SELECT 'volatile ' || proname FROM pg_proc WHERE oid = ANY($1::oid[]) AND provolatile = 'v'
				UNION ALL SELECT 'volatile part of ' || aggfnoid::text FROM pg_aggregate JOIN pg_proc p
					ON p.oid = ANY(ARRAY[aggtransfn, aggfinalfn, aggmtransfn, aggmfinalfn]::oid[]) AND p.provolatile = 'v'
					WHERE aggfnoid = ANY($1::oid[])
				UNION ALL SELECT 'relation ' || relname FROM pg_class WHERE oid = ANY($2::oid[]) AND relkind IN ('f', 'S')
				UNION ALL SELECT 'policies of ' || relname FROM pg_class WHERE oid = ANY($2::oid[]) AND relrowsecurity
				UNION ALL SELECT 'check of ' || typname FROM pg_type t JOIN pg_constraint k ON k.contypid = t.oid
					JOIN pg_depend d ON d.objid = k.oid AND d.refclassid = 'pg_proc'::regclass
					JOIN pg_proc p ON p.oid = d.refobjid AND p.provolatile = 'v' WHERE t.oid = ANY($3::oid[])
			) f(what)`, oids[0], oids[1], oids[2]).Scan(&fault)
			if err != nil {
				t.Fatal(err)
			}
			return fault
		}
		reads, seen, noticed := 0, 0, 0
		for _, row := range rows {
			v, err := flightpg.Explain(ctx, db, row.sql)
			if err != nil {
				t.Fatal(err)
			}
			tree = ""
			_, err = conn.PgConn().Prepare(ctx, "", row.sql, nil) // analyzes and rewrites, runs nothing
			var pgErr *pgconn.PgError
			if err != nil && !errors.As(err, &pgErr) {
				t.Fatal(err)
			}
			if tree == "" {
				continue // PostgreSQL refuses the statement, or has no tree for it
			}
			seen++
			fault := at(tree)
			if v.Coalesce {
				reads++
				if fault != "" {
					t.Errorf("%s is shared, but its tree has: %s", row.sql, fault)
				}
			} else if fault != "" {
				noticed++
			}
		}
		t.Logf("%d of %d statements have a tree; %d reads without a fault, %d others with one", seen, len(rows), reads, noticed)
		if reads < 20 || noticed < 10 {
			t.Errorf("%d reads seen and %d faults noticed: the test shows too little", reads, noticed)
		}
	})
}
