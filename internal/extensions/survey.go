package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/judge"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// report is what was found of one extension.
type report struct {
	name, version string
	failed        string // why there is nothing else

	functions, volatile int
	wrong               map[string][]string // functions that are not what they are declared, by what is wrong with them
	reaching            map[string][]string // … that bypass for what they reach, by that
	types, operators    []string            // that bypass
	viewsBypassed       []string
	viewsShared         []string
	disturbed           []string // plain statements, and by what
	by                  []string // … by what, each once
	alone               []string // … which it moves to a worse company
	with                []string // extensions that it needs
}

// survey creates the extension and looks at it.
func (r *report) survey(ctx context.Context, conn *pgx.Conn) error {
	if _, err := conn.PgConn().Exec(ctx, plainSchema).ReadAll(); err != nil {
		return err
	}
	before, err := load(ctx, conn)
	if err != nil {
		return err
	}
	for _, sql := range plain {
		if v := judge.Judge(sql, before, judge.Options{}); v.Class != sqlscan.Read {
			return fmt.Errorf("not plain: %s: %v %s %s", sql, v.Reason, v.Name, v.Hint())
		}
	}
	if _, err := conn.PgConn().Exec(ctx, "SET client_min_messages = error; CREATE EXTENSION "+pgx.Identifier{r.name}.Sanitize()+" CASCADE").ReadAll(); err != nil {
		return err
	}
	const version = "SELECT extversion FROM pg_extension WHERE extname = $1"
	if err := conn.QueryRow(ctx, version, r.name).Scan(&r.version); err != nil {
		return err
	}
	const others = "SELECT extname::text FROM pg_extension WHERE extname <> all (array[$1, 'plpgsql']) ORDER BY 1"
	if r.with, err = column(ctx, conn, others, r.name); err != nil {
		return err
	}
	set, err := load(ctx, conn)
	if err != nil {
		return err
	}
	if err := r.lookAtFunctions(ctx, conn, set); err != nil {
		return err
	}
	if err := r.lookAtOthers(ctx, conn, set); err != nil {
		return err
	}

	// With the path as it is, and with all that the extension brings in it.
	r.compare(before, set, "")
	schemas, err := column(ctx, conn, `SELECT DISTINCT quote_ident(nspname) FROM pg_namespace n WHERE nspname NOT IN ('pg_catalog', 'information_schema', 'public')
		AND nspname !~ '^pg_' ORDER BY 1`)
	if err != nil || len(schemas) == 0 {
		return err
	}
	path := strings.Join(append(schemas, "public"), ", ")
	if _, err := conn.Exec(ctx, "SET search_path = "+path); err != nil {
		return err
	}
	if set, err = load(ctx, conn); err != nil {
		return err
	}
	r.compare(before, set, " with search_path = "+path)
	return nil
}

// compare holds plain statements to what they were before.
func (r *report) compare(before, set *catalog.Set, where string) {
	for _, sql := range plain {
		was, v := judge.Judge(sql, before, judge.Options{}), judge.Judge(sql, set, judge.Options{})
		switch {
		case v.Class != sqlscan.Read:
			if by := fmt.Sprintf("%v `%s`: %s", v.Reason, v.Name, v.Hint()); !slices.Contains(r.by, by) {
				r.by = append(r.by, by)
			}
			r.disturbed = append(r.disturbed, fmt.Sprintf("%s: %v %s: %s%s", sql, v.Reason, v.Name, v.Hint(), where))
		case v.Company < was.Company:
			r.alone = append(r.alone, fmt.Sprintf("%s: %v, was %v%s", sql, v.Company, was.Company, where))
		}
	}
}

// member is the condition that an object belongs to the extension.
const member = `EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
	WHERE d.deptype = 'e' AND d.classid = '%s'::regclass AND d.objid = x.oid AND e.extname = $1)`

func (r *report) lookAtFunctions(ctx context.Context, conn *pgx.Conn, set *catalog.Set) error {
	rows, err := conn.Query(ctx, `SELECT n.nspname::text, x.proname::text, x.pronargs::int, x.provolatile = 'v' OR x.prokind = 'p',
		EXISTS (SELECT FROM pg_proc o WHERE o.pronamespace = x.pronamespace AND o.proname = x.proname AND o.provolatile = 'v' AND o.prokind <> 'a')
		FROM pg_proc x JOIN pg_namespace n ON n.oid = x.pronamespace WHERE `+fmt.Sprintf(member, "pg_proc")+` ORDER BY 1, 2`, r.name)
	if err != nil {
		return err
	}
	r.wrong, r.reaching = map[string][]string{}, map[string][]string{}
	var schema, name string
	var args int
	var volatile, mixed bool
	_, err = pgx.ForEachRow(rows, []any{&schema, &name, &args, &volatile, &mixed}, func() error {
		r.functions++
		if volatile {
			r.volatile++
			return nil
		}
		u, _ := set.Function(schema, name, args)
		f := u.Fault
		switch {
		case f == nil, f.Cause == catalog.Volatile && mixed:
		case (f.Cause == catalog.RunsSQL || f.Cause == catalog.Misdeclared) && f.Object == name:
			note(r.wrong, causeText(f), qualified(schema, name))
		default:
			note(r.reaching, causeText(f)+" ("+f.Object+")", qualified(schema, name))
		}
		return nil
	})
	return err
}

func (r *report) lookAtOthers(ctx context.Context, conn *pgx.Conn, set *catalog.Set) error {
	for _, kind := range []struct {
		sql string
		see func(schema, name string)
	}{
		{"SELECT n.nspname::text, x.relname::text FROM pg_class x JOIN pg_namespace n ON n.oid = x.relnamespace WHERE relkind IN ('v', 'm') AND " + fmt.Sprintf(member, "pg_class"), func(schema, name string) {
			if v := judge.Judge("SELECT * FROM "+pgx.Identifier{schema, name}.Sanitize(), set, judge.Options{}); v.Class == sqlscan.Read {
				r.viewsShared = append(r.viewsShared, name)
			} else {
				r.viewsBypassed = append(r.viewsBypassed, name+": "+v.Hint())
			}
		}},
		{"SELECT n.nspname::text, x.typname::text FROM pg_type x JOIN pg_namespace n ON n.oid = x.typnamespace WHERE typtype <> 'c' AND typcategory <> 'A' AND " + fmt.Sprintf(member, "pg_type"), func(schema, name string) {
			if u, _ := set.Type(schema, name); u.Fault != nil {
				r.types = append(r.types, name+": "+causeText(u.Fault)+" "+u.Fault.Object)
			}
		}},
		{"SELECT DISTINCT n.nspname::text, x.oprname::text FROM pg_operator x JOIN pg_namespace n ON n.oid = x.oprnamespace WHERE " + fmt.Sprintf(member, "pg_operator"), func(schema, name string) {
			if u, _ := set.Operator(schema, name); u.Fault != nil {
				r.operators = append(r.operators, name+": "+causeText(u.Fault)+" "+u.Fault.Object)
			}
		}},
	} {
		rows, err := conn.Query(ctx, kind.sql+" ORDER BY 1, 2", r.name)
		if err != nil {
			return err
		}
		var schema, name string
		if _, err := pgx.ForEachRow(rows, []any{&schema, &name}, func() error { kind.see(schema, name); return nil }); err != nil {
			return err
		}
	}
	return nil
}

func note(m map[string][]string, key, name string) {
	if !slices.Contains(m[key], name) {
		m[key] = append(m[key], name)
	}
}

func causeText(f *catalog.Fault) string {
	switch f.Cause {
	case catalog.Volatile:
		return "volatile"
	case catalog.Dangerous:
		return "session's or moment's"
	case catalog.RunsSQL:
		return "runs SQL or reads what an argument names"
	case catalog.Misdeclared:
		return "effect, or answer of a call, session or moment"
	case catalog.MayWrite:
		return "body could write or run a text"
	case catalog.SystemView:
		return "view of the session or the server's statistics"
	case catalog.Foreign:
		return "foreign table"
	case catalog.Sequence:
		return "sequence"
	}
	return fmt.Sprintf("cause %d", f.Cause)
}

// load reads a session's catalog.
func load(ctx context.Context, conn *pgx.Conn) (*catalog.Set, error) {
	return catalog.Load(ctx, func(ctx context.Context, sql string, row func([]string) error) error {
		results, err := conn.PgConn().Exec(ctx, "BEGIN READ ONLY; "+sql+"; ROLLBACK").ReadAll()
		if err != nil {
			return err
		}
		for _, result := range results {
			for _, raw := range result.Rows {
				cells := make([]string, len(raw))
				for i, v := range raw {
					cells[i] = string(v)
				}
				if err := row(cells); err != nil {
					return err
				}
			}
		}
		return nil
	}, catalog.Options{Words: sqlscan.Words})
}

func column(ctx context.Context, conn *pgx.Conn, sql string, args ...any) ([]string, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// print says all that was found.
func (r *report) print(w io.Writer) {
	if r.failed != "" {
		fmt.Fprintf(w, "%s: not looked at: %s\n", r.name, r.failed)
		return
	}
	fmt.Fprintf(w, "%s %s: %d functions, %d of them declared volatile\n", r.name, r.version, r.functions, r.volatile)
	for _, part := range []struct {
		title string
		lists map[string][]string
	}{{"wrongly declared", r.wrong}, {"bypasses for what it reaches", r.reaching}} {
		for _, cause := range slices.Sorted(maps.Keys(part.lists)) {
			fmt.Fprintf(w, "  %s: %s: %s\n", part.title, cause, strings.Join(part.lists[cause], ", "))
		}
	}
	for _, part := range []struct {
		title string
		list  []string
	}{
		{"type bypasses", r.types},
		{"operator bypasses", r.operators},
		{"view bypasses", r.viewsBypassed},
		{"view is shared", r.viewsShared},
		{"PLAIN STATEMENT DISTURBED", r.disturbed},
		{"plain statement keeps worse company", r.alone},
	} {
		for _, line := range part.list {
			fmt.Fprintf(w, "  %s: %s\n", part.title, line)
		}
	}
}

// table is docs/extensions.md.
func table(version string, found []*report) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, `# Extensions

Written by `+"`make extensions`"+`: the extensions that Debian has for PostgreSQL %s, as far as they are there, each in a database of its own (%d plain statements on other tables, before and after it is created, also with its schemas in `+"`search_path`"+`).

*Volatile*: functions that are declared so; who calls one bypasses. *Known to be wrong*: functions in C that are declared STABLE or IMMUTABLE, but run SQL that an argument holds or names, have an effect, or answer by the call, the session or the moment; who calls one bypasses, too (internal/catalog/extensions.go). *Reach*: others that bypass for what their bodies call. *Disturbs*: plain statements that are no longer shared in that database.

| extension | version | functions | volatile | known to be wrong | reach | disturbs | notes |
|---|---|--:|--:|---|--:|---|---|
`, version, len(plain))
	var failed []*report
	for _, r := range found {
		if r.failed != "" {
			failed = append(failed, r)
			continue
		}
		var wrong []string
		for _, cause := range slices.Sorted(maps.Keys(r.wrong)) {
			names := r.wrong[cause]
			for i := range names {
				names[i] = "`" + names[i] + "`"
			}
			wrong = append(wrong, cause+": "+strings.Join(names, ", "))
		}
		var notes []string
		add := func(format string, n int, list []string) {
			if n > 0 {
				notes = append(notes, fmt.Sprintf(format, n, strings.Join(list, ", ")))
			}
		}
		add("%d of its views bypass%s", len(r.viewsBypassed), nil)
		add("%d of its views are shared (%s)", len(r.viewsShared), r.viewsShared)
		add("%d of its types bypass: %s", len(r.types), r.types)
		add("%d of its operators bypass: %s", len(r.operators), r.operators)
		add("%d plain statements go alone%s", len(r.alone), nil)
		if len(r.with) > 0 {
			notes = append(notes, "with "+strings.Join(r.with, ", "))
		}
		reach := 0
		for _, names := range r.reaching {
			reach += len(names)
		}
		disturbs := "none"
		if len(r.disturbed) > 0 {
			disturbs = fmt.Sprintf("%d: %s", len(r.disturbed), strings.Join(r.by, "; "))
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %s | %d | %s | %s |\n", r.name, r.version, r.functions, r.volatile,
			cell(strings.Join(wrong, "; ")), reach, cell(disturbs), cell(strings.Join(notes, "; ")))
	}
	if len(failed) > 0 {
		fmt.Fprint(&b, "\nNot created:\n\n")
		for _, r := range failed {
			fmt.Fprintf(&b, "- %s: %s\n", r.name, directories.ReplaceAllString(r.failed, ""))
		}
	}
	return b.Bytes()
}

// directories are those of a file's name in a message, which say nothing about the file.
var directories = regexp.MustCompile(`/[^ "]*/`)

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

// qualified is a name as its users write it.
func qualified(schema, name string) string {
	if schema == "public" {
		return name
	}
	return schema + "." + name
}
