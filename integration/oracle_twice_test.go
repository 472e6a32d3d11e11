package integration

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"regexp"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// This file runs what is judged a read twice, in two sessions with the same
// snapshot: the answers must be equal and the sessions left as they were.

const twiceSchema = `
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE t (id int PRIMARY KEY, name text, parent int, data jsonb, created_at timestamptz, doc xml);
INSERT INTO t (id, name, parent, data, created_at)
	SELECT g, 'name ' || g, g % 7, jsonb_build_object('g', g, 'a', jsonb_build_array(g, 'x')), '2026-01-02 03:04:05+00'::timestamptz + g * interval '7 hours'
	FROM generate_series(1, 200) g;
CREATE TABLE u (id int, v text, n numeric);
INSERT INTO u SELECT g, chr(96 + g), g / 3.0 FROM generate_series(1, 20) g;
CREATE SEQUENCE s;
CREATE SCHEMA app;
`

// stateSQL is all that a session can be asked about itself, and the data. Only
// the locks of plain reads are left out.
const stateSQL = `SELECT concat_ws(' | ',
	(SELECT md5(string_agg(name || '=' || coalesce(setting, '') || source, ',' ORDER BY name)) FROM pg_settings),
	current_setting('a.b', true), current_setting('app.tenant', true), current_user, session_user,
	(SELECT 'locks ' || string_agg(concat_ws(' ', locktype, mode, relation, classid, objid, objsubid), ', ' ORDER BY locktype, mode, relation, objid)
		FROM pg_locks WHERE pid = pg_backend_pid() AND locktype <> 'virtualxid' AND mode <> 'AccessShareLock'),
	(SELECT 'prepared ' || string_agg(name, ', ' ORDER BY name) FROM pg_prepared_statements),
	(SELECT 'cursors ' || string_agg(name, ', ' ORDER BY name) FROM pg_cursors WHERE name <> ''),
	(SELECT 'listens ' || string_agg(c, ', ' ORDER BY c) FROM pg_listening_channels() c),
	'temp ' || pg_my_temp_schema(), 'xid ' || txid_current_if_assigned(),
	(SELECT concat_ws(' ', 's', last_value, is_called) FROM s),
	(SELECT 'classes ' || count(*) FROM pg_class), (SELECT 'large objects ' || count(*) FROM pg_largeobject_metadata),
	(SELECT 't ' || sum(hashtext(t::text)::bigint) FROM t), (SELECT 'u ' || sum(hashtext(u::text)::bigint) FROM u))`

// An outcome is what a statement gave.
type outcome struct {
	types string
	n     int
	rows  string // the first of them
	sum   uint64 // of all
	err   string
}

// A twice runs statements in fresh sessions.
type twice struct {
	t   *testing.T
	dsn string
}

func (w *twice) connect(heard ...func()) *pgconn.PgConn {
	w.t.Helper()
	cfg, err := pgconn.ParseConfig(w.dsn)
	if err != nil {
		w.t.Fatal(err)
	}
	cfg.RuntimeParams["statement_timeout"] = "1s"
	cfg.RuntimeParams["lock_timeout"] = "500ms"
	cfg.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) {
		for _, f := range heard {
			f()
		}
	}
	conn, err := pgconn.ConnectConfig(w.t.Context(), cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func (w *twice) exec(conn *pgconn.PgConn, sql string) {
	w.t.Helper()
	if _, err := conn.Exec(w.t.Context(), sql).ReadAll(); err != nil {
		w.t.Fatalf("%s: %v", sql, err)
	}
}

// query runs one statement. Parameters get the text 1.
func (w *twice) query(conn *pgconn.PgConn, sql string) (o outcome) {
	w.t.Helper()
	params := make([][]byte, sqlscan.Scan(sql).Params)
	for i := range params {
		params[i] = []byte("1")
	}
	rr := conn.ExecParams(w.t.Context(), sql, params, nil, nil, nil)
	var types strings.Builder
	rows, sum := new(strings.Builder), fnv.New64a()
	for _, f := range rr.FieldDescriptions() {
		fmt.Fprintf(&types, "%s %d %d, ", f.Name, f.DataTypeOID, f.TypeModifier)
	}
	for rr.NextRow() {
		o.n++
		for _, v := range rr.Values() {
			fmt.Fprintf(sum, "%t %d %s,", v == nil, len(v), v)
			if rows.Len() < 1000 {
				fmt.Fprintf(rows, "%s, ", v)
			}
		}
	}
	_, err := rr.Close()
	o.types, o.rows, o.sum = types.String(), rows.String(), sum.Sum64()
	var pgErr *pgconn.PgError
	switch {
	case errors.As(err, &pgErr):
		o = outcome{err: pgErr.Code + " " + pgErr.Message}
	case err != nil:
		w.t.Fatalf("%s: %v", sql, err)
	}
	return o
}

// state is what a session is like; sessions differ in it, but a read leaves its own.
func (w *twice) state(conn *pgconn.PgConn) string {
	w.t.Helper()
	o := w.query(conn, stateSQL)
	if o.err != "" {
		w.t.Fatalf("state: %s", o.err)
	}
	inTx := conn.TxStatus() == 'T'
	if inTx {
		w.exec(conn, "SAVEPOINT lastval")
	}
	last := w.query(conn, "SELECT 'lastval ' || lastval()")
	if inTx {
		w.exec(conn, "ROLLBACK TO lastval; RELEASE lastval")
	}
	return o.rows + last.rows + last.err
}

// session runs statements in a transaction with a snapshot; changed says what
// they changed of the session or the data, within the transaction or behind it.
func (w *twice) session(conn *pgconn.PgConn, snapshot string, statements []string) (outcomes []outcome, changed string) {
	w.t.Helper()
	outside := w.state(conn)
	w.exec(conn, "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '"+snapshot+"'")
	inside := w.state(conn)
	for _, sql := range statements {
		w.exec(conn, "SAVEPOINT a")
		o := w.query(conn, sql)
		if o.err != "" {
			w.exec(conn, "ROLLBACK TO a")
		}
		w.exec(conn, "RELEASE a")
		outcomes = append(outcomes, o)
	}
	if after := w.state(conn); after != inside {
		changed = fmt.Sprintf("within the transaction\n%s%s", inside, after)
	}
	w.exec(conn, "COMMIT")
	if after := w.state(conn); after != outside && changed == "" {
		changed = fmt.Sprintf("behind the transaction\n%s%s", outside, after)
	}
	return outcomes, changed
}

// export returns a snapshot that lives as long as the test, or until the
// connection is used again.
func (w *twice) export(conn *pgconn.PgConn) string {
	w.t.Helper()
	w.exec(conn, "ROLLBACK; BEGIN ISOLATION LEVEL REPEATABLE READ")
	o := w.query(conn, "SELECT pg_export_snapshot()")
	return strings.TrimSuffix(o.rows, ", ")
}

// clockWord finds statements whose answer is as old as their transaction. They
// are compared by their types and number of rows.
var clockWord = regexp.MustCompile(`(?i)\b(now|(statement|transaction)_timestamp|current_(date|time|timestamp)|localtime(stamp)?)\b|'(today|tomorrow|yesterday)'`)

// TestReadsTwice runs statements that are judged reads: those of the scanner's
// tables, generated ones, and a call of every built-in function that is Safe.
//
//	FLIGHTPG_SEED     of what is generated; 1
//	FLIGHTPG_TWICE_N  how many statements to generate; 1,500, or 300 with -short
func TestReadsTwice(t *testing.T) {
	loadBuiltins(t)
	forEachServer(t, func(t *testing.T, dsn string) {
		w := &twice{t, dsn}
		first := w.connect()
		w.exec(first, twiceSchema)
		version := serverVersion(t, dsn)
		judge := sqlscan.Options{Version: version}
		seed, n := envInt(t, "FLIGHTPG_SEED", 1), envInt(t, "FLIGHTPG_TWICE_N", battery.Quick[uint64](300, 1500))
		t.Logf("PostgreSQL %d, FLIGHTPG_SEED=%d FLIGHTPG_TWICE_N=%d", version, seed, n)

		calls, overload := safeCalls(t, dsn, seed)
		answered := map[int]bool{} // the overloads that ran without an error
		groups := []struct {
			name       string
			statements []string
			minimum    int // of statements without an error
		}{
			{"tables", loadSeeds(t), 100},
			{"generated", generateReads(seed, int(n)), int(n) * 3 / 4},
			{"functions", calls, battery.Quick(1500, 3000)},
		}
		exporter, a, b := w.connect(), w.connect(), w.connect()
		for _, g := range groups {
			var statements []string
			for _, sql := range g.statements {
				if judge.Scan(sql).Class == sqlscan.Read {
					statements = append(statements, sql)
				}
			}
			snapshot := w.export(exporter)
			ok, clocks, slow := 0, 0, 0
			for len(statements) > 0 {
				batch := statements[:min(len(statements), 100)]
				statements = statements[len(batch):]
				inA, changedA := w.session(a, snapshot, batch)
				inB, changedB := w.session(b, snapshot, batch)
				for i, sql := range batch {
					x, y := inA[i], inB[i]
					if clockWord.MatchString(sql) {
						clocks++
						x.rows, y.rows, x.sum, y.sum = "", "", 0, 0
					}
					if strings.HasPrefix(x.err, "57014") || strings.HasPrefix(y.err, "57014") {
						slow++
						continue
					}
					if x != y {
						t.Errorf("%s:\n%+v\nin another session:\n%+v", sql, x, y)
					}
					if x.err == "" {
						ok++
						if i, isCall := overload[sql]; isCall {
							answered[i] = true
						}
					}
				}
				if changedA+changedB != "" {
					w.blame(exporter, batch)
					a, b = w.connect(), w.connect()
					snapshot = w.export(exporter)
				}
			}
			t.Logf("%s: %d statements, %d judged reads and run twice, %d of them without an error, %d compared by types only, %d too slow",
				g.name, len(g.statements), count(g.statements, judge), ok, clocks, slow)
			if ok < g.minimum {
				t.Errorf("%s: %d statements without an error; want at least %d", g.name, ok, g.minimum)
			}
		}
		all := map[int]bool{}
		for _, i := range overload {
			all[i] = true
		}
		t.Logf("%d built-in functions that are Safe; %d of them gave an answer", len(all), len(answered))
	})
}

func count(statements []string, judge sqlscan.Options) (n int) {
	for _, sql := range statements {
		if judge.Scan(sql).Class == sqlscan.Read {
			n++
		}
	}
	return n
}

// blame reports which statements of a batch changed their session.
func (w *twice) blame(exporter *pgconn.PgConn, batch []string) {
	w.t.Helper()
	found := false
	for _, sql := range batch {
		conn := w.connect()
		if _, changed := w.session(conn, w.export(exporter), []string{sql}); changed != "" {
			w.t.Errorf("%s: changed %s", sql, changed)
			found = true
		}
		conn.Close(context.Background())
	}
	if !found {
		w.t.Errorf("together these changed their session: %q", batch)
	}
}

// TestReadsTwiceNotices: the same check must notice what is no read, or it is worth nothing.
func TestReadsTwiceNotices(t *testing.T) {
	forEachServer(t, func(t *testing.T, dsn string) {
		w := &twice{t, dsn}
		heard := false
		exporter, listener := w.connect(), w.connect(func() { heard = true })
		w.exec(exporter, twiceSchema)
		w.exec(listener, "LISTEN c")
		noticed := func(sql string) bool {
			a, b := w.connect(), w.connect()
			defer a.Close(context.Background())
			defer b.Close(context.Background())
			snapshot := w.export(exporter)
			inA, changedA := w.session(a, snapshot, []string{sql})
			inB, changedB := w.session(b, snapshot, []string{sql})
			heard = false
			w.exec(listener, "SELECT 1")
			w.exec(exporter, "ROLLBACK")
			return inA[0] != inB[0] || changedA+changedB != "" || heard
		}
		for _, sql := range []string{
			// Another answer in every session, or for every call.
			"SELECT random()", "SELECT gen_random_uuid()", "SELECT clock_timestamp()", "SELECT timeofday()", "SELECT pg_backend_pid()",
			"SELECT pid FROM pg_locks WHERE pid = pg_backend_pid()", "SELECT id FROM t TABLESAMPLE bernoulli(50)", "SELECT id FROM t ORDER BY random()",
			"SELECT pg_current_xact_id()", "SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()",
			// Session state.
			"SELECT set_config('work_mem', '8MB', false)", "SELECT set_config('work_mem', '8MB', true)", "SELECT set_config('a.b', 'c', false)",
			"SET work_mem = '8MB'", "UPDATE pg_settings SET setting = '1234' WHERE name = 'work_mem'",
			"SELECT pg_advisory_lock(1)", "SELECT pg_try_advisory_lock_shared(1, 2)", "SELECT pg_advisory_xact_lock(1)",
			"PREPARE p AS SELECT 1", "DECLARE c CURSOR FOR SELECT 1", "DECLARE c CURSOR WITH HOLD FOR SELECT 1", "LISTEN x",
			"CREATE TEMP TABLE x (a int)", "SELECT 1 INTO TEMP x", "SELECT query_to_xml('SELECT nextval(''s'')', true, false, '')",
			// Others see it.
			"SELECT nextval('s')", "SELECT setval('s', 100)", "SELECT lo_create(0)", "SELECT txid_current()", "SELECT pg_notify('c', 'x')", "NOTIFY c, 'y'",
			"SELECT id FROM t FOR UPDATE", "SELECT id FROM t FOR KEY SHARE", "SELECT * FROM (SELECT id FROM t FOR SHARE) x",
			"INSERT INTO u VALUES (99)", "UPDATE t SET name = 'x' WHERE id = 1", "DELETE FROM t WHERE id = 2", "SELECT 1 AS a INTO x",
			"WITH d AS (DELETE FROM t WHERE id = 3 RETURNING id) SELECT * FROM d", "CREATE TABLE y (a int)", "LOCK TABLE t", "TRUNCATE u",
			"COMMENT ON TABLE t IS 'x'", "DO $$ BEGIN PERFORM nextval('s'); END $$", "EXPLAIN ANALYZE SELECT nextval('s')",
		} {
			if c := sqlscan.Scan(sql).Class; c == sqlscan.Read {
				t.Errorf("Scan(%q) = %v", sql, c)
			}
			if strings.Contains(sql, "_xml") && w.query(listener, "SELECT xml '<a/>'").err != "" {
				continue // a server without libxml
			}
			if !noticed(sql) {
				t.Errorf("%s: nothing noticed", sql)
			}
		}
		for _, sql := range []string{"SELECT 1", "SELECT count(*) FROM t", "SELECT 1/0", "SHOW work_mem"} {
			if noticed(sql) {
				t.Errorf("%s: noticed something", sql)
			}
		}
	})
}

func serverVersion(t *testing.T, dsn string) (major int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if err := conn.QueryRow(t.Context(), "SELECT current_setting('server_version_num')::int / 10000").Scan(&major); err != nil {
		t.Fatal(err)
	}
	return major
}

// generateReads writes statements that fit twiceSchema.
func generateReads(seed uint64, n int) []string {
	g := newSQLgen()
	list := make([]string, n)
	for i := range list {
		g.pcg.Seed(seed, uint64(i))
		list[i] = g.text(g.statement(readGrammar, "stmt"), false)
	}
	return list
}

// readGrammar is about statements that mostly run: the types fit.
var readGrammar = parseGrammar(`
stmt: @8 <sel> | WITH q AS ( <sel> ) SELECT * FROM q | WITH q ( a ) AS MATERIALIZED ( SELECT <int> FROM t ) SELECT sum ( a ) , max ( a ) FROM q | ( SELECT <int> , <text> FROM t ) UNION ALL ( SELECT u.id , u.v FROM u ) ORDER BY 1 , 2 | SELECT <text> FROM t EXCEPT SELECT v FROM u ORDER BY 1 | WITH RECURSIVE r ( n ) AS ( SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 6 ) SELECT n , <cint> FROM r | VALUES ( <cint> , <ctext> ) , ( <cint> , <ctext> ) | TABLE u | SELECT <win>* FROM t ORDER BY t.id | SELECT * FROM ROWS FROM ( generate_series ( 1 , 3 ) , unnest ( ARRAY [ 'a' , 'b' ] ) ) WITH ORDINALITY x ( a , b , c )
sel: SELECT <any>* FROM t <more>? | @4 SELECT <any>* FROM t <join> <where>? ORDER BY t.id | @3 SELECT <any>* FROM t <where> ORDER BY t.id LIMIT 20 | @3 SELECT t.parent , <agg>* FROM t <where>? GROUP BY t.parent ORDER BY 1 | SELECT t.parent , count ( * ) , <agg> FROM t GROUP BY GROUPING SETS ( ( t.parent ) , ( ) ) ORDER BY 1 , 2 | SELECT DISTINCT <bool> , <cint> FROM t ORDER BY 1 | SELECT <agg>* FROM t <where>? | SELECT DISTINCT ON ( t.parent ) t.parent , <text> FROM t ORDER BY t.parent , t.id | SELECT <any> FROM t TABLESAMPLE system ( 50 ) REPEATABLE ( 3 )
more: <where> | WHERE t.id < 10
join: JOIN u ON u.id = t.id | LEFT JOIN u ON u.id = t.parent AND u.n > <cint> | CROSS JOIN LATERAL ( SELECT <int> AS x ) l | JOIN ( SELECT id , v FROM u WHERE id < 5 ) u ON u.id = t.parent | CROSS JOIN generate_series ( 1 , 2 ) g
where: WHERE <bool>
any: <int> | <text> | <bool> | <ts> | <json> | <numb> | <arr>
int: t.id | <cint> | t.parent | ( <int> + <int> ) | ( <int> * 2 ) | length ( <text> ) | coalesce ( <int> , 0 ) | abs ( <int> ) | extract ( year FROM <ts> ) :: int | ( SELECT count ( * ) :: int FROM u WHERE u.id < <int> ) | CASE WHEN <bool> THEN <int> ELSE <int> END | position ( 'a' IN <text> ) | cardinality ( <arr> ) | nullif ( <int> , <int> ) | greatest ( <int> , <int> ) | ( <json> ->> 'g' ) :: int | <int> % 7 | ( <arr> ) [ 1 ] | date_part ( 'day' , <ts> ) :: int | hashtext ( <text> )
cint: 1 | 0 | 42 | 7
text: t.name | <ctext> | ( <text> || <text> ) | upper ( <text> ) | lower ( <text> ) | substring ( <text> FROM 1 FOR 3 ) | left ( <text> , 2 ) | ( <int> ) :: text | to_char ( <ts> , 'YYYY-MM-DD HH24:MI' ) | md5 ( <text> ) | replace ( <text> , 'a' , 'b' ) | format ( '%s-%s' , <int> , <text> ) | ( <json> ->> 'a' ) | concat_ws ( ',' , <text> , <int> ) | trim ( BOTH 'n' FROM <text> ) | quote_literal ( <text> ) | regexp_replace ( <text> , '[0-9]' , '#' , 'g' ) | current_user :: text | current_schema :: text | pg_typeof ( <int> ) :: text | overlay ( <text> PLACING 'x' FROM 1 ) | coalesce ( <text> , 'none' ) | encode ( sha256 ( convert_to ( <text> , 'UTF8' ) ) , 'hex' )
ctext: 'abc' | '' | E'a\\b' | $$x'y$$ | 'é' | U&'\0061'
bool: t.id > <int> | <bool> AND <bool> | <bool> OR <bool> | NOT ( <bool> ) | <int> = <int> | <text> LIKE '%a%' | <text> ILIKE 'N%' | <int> BETWEEN 1 AND 50 | <int> IN ( 1 , 2 , <int> ) | EXISTS ( SELECT FROM u WHERE u.id = t.id ) | <int> = ANY ( <arr> ) | t.parent IS NULL | <text> IS DISTINCT FROM <text> | <json> @> '{"g": 1}' | <ts> < '2026-02-01' | <text> ~ '^n' | <json> ? 'a' | ( <int> , <int> ) < ( <int> , 5 ) | <int> NOT IN ( SELECT u.id FROM u ) | <text> SIMILAR TO '%(a|b)%' | starts_with ( <text> , 'n' )
ts: t.created_at | timestamptz '2026-01-05 00:00:00+00' | date_trunc ( 'day' , <ts> ) | <ts> + interval '1 day' | make_timestamptz ( 2026 , 1 , 2 , 3 , 4 , 5.5 ) | to_timestamp ( <int> ) | ( <ts> AT TIME ZONE 'UTC' ) :: timestamptz
json: t.data | jsonb_build_object ( 'g' , <int> , 'a' , <text> ) | <json> || '{"b": 2}' | to_jsonb ( <int> ) | jsonb_set ( t.data , '{g}' , '5' ) | jsonb_path_query_array ( <json> , '$.a[*]' ) | jsonb_strip_nulls ( <json> )
numb: <int> :: numeric / 3 | round ( <int> * 1.234 , 2 ) | sqrt ( abs ( <int> ) ) | ( SELECT sum ( n ) FROM u ) | <int> ^ 0.5 | ln ( 2.5 ) | trunc ( 7.9 )
arr: ARRAY [ <int> , <int> ] | array_append ( <arr> , <int> ) | ARRAY ( SELECT u.id FROM u WHERE u.id < 4 ORDER BY 1 ) | '{1,2,3}' :: int [] | array_remove ( <arr> , 2 )
agg: count ( * ) | sum ( <int> ) | max ( <text> ) | array_agg ( t.id ORDER BY t.id ) | string_agg ( <text> , ',' ORDER BY t.id ) | bool_or ( <bool> ) | count ( DISTINCT <int> ) FILTER ( WHERE <bool> ) | percentile_cont ( 0.5 ) WITHIN GROUP ( ORDER BY t.id ) | jsonb_object_agg ( t.id , <int> ORDER BY t.id ) | avg ( <int> ) | mode ( ) WITHIN GROUP ( ORDER BY t.parent ) | min ( <ts> )
win: row_number ( ) OVER ( ORDER BY t.id ) | sum ( <int> ) OVER ( PARTITION BY t.parent ORDER BY t.id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW ) | lag ( <text> ) OVER ( ORDER BY t.id ) | ntile ( 3 ) OVER ( ORDER BY t.id ) | first_value ( <int> ) OVER ( PARTITION BY t.parent ORDER BY t.id DESC )
`, map[string]func(*sqlgen){})

// callsSQL lists the built-in functions with the types of their arguments.
const callsSQL = `
SELECT proname::text, prokind::text, proretset, prorettype = 'record'::regtype AND proallargtypes IS NULL,
	coalesce(a.aggkind::text, ''), coalesce(a.aggnumdirectargs, 0)::int, provariadic <> 0,
	ARRAY(SELECT format_type(o, NULL) FROM unnest(proargtypes) WITH ORDINALITY x(o, i) ORDER BY i)
FROM pg_proc p LEFT JOIN pg_aggregate a ON a.aggfnoid = p.oid
WHERE pronamespace = 'pg_catalog'::regnamespace AND p.oid < 16384
ORDER BY proname, p.oid`

// safeCalls writes calls of every overload of every built-in that is Safe.
// overload tells them apart.
func safeCalls(t *testing.T, dsn string, seed uint64) (list []string, overload map[string]int) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), dsn)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	rows, err := conn.Query(t.Context(), callsSQL)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	g := newSQLgen()
	overloads := 0
	overload = map[string]int{}
	for rows.Next() {
		var name, kind, aggKind string
		var set, record, variadic bool
		var direct int
		var types []string
		if err := rows.Scan(&name, &kind, &set, &record, &aggKind, &direct, &variadic, &types); err != nil {
			t.Fatal(err)
		}
		if catalog.Function(name) != catalog.Safe {
			continue
		}
		overloads++
		g.pcg.Seed(seed, uint64(overloads))
		for range min(battery.Quick(1, 5), 1+2*len(types)) {
			args := make([]string, len(types))
			for i, typ := range types {
				args[i] = g.argument(typ)
				if variadic && i == len(types)-1 && typ != `"any"` {
					args[i] = "VARIADIC " + args[i]
				}
			}
			call := `pg_catalog."` + name + `"`
			join := func(args []string) string { return "(" + strings.Join(args, ", ") + ")" }
			switch {
			case kind == "w":
				call = "SELECT " + call + join(args) + " OVER (ORDER BY g) FROM (VALUES (1), (2)) v(g)"
			case aggKind == "o", aggKind == "h":
				direct = min(direct, len(args))
				call = "SELECT " + call + join(args[:direct]) + " WITHIN GROUP (ORDER BY " + strings.Join(append(args[direct:], "g")[:1], ", ") + ") FROM (VALUES (1), (2)) v(g)"
			case kind == "a" && len(args) == 0:
				call = "SELECT " + call + "(*) FROM (VALUES (1), (2)) v(g)"
			case kind == "a":
				call = "SELECT " + call + join(args) + " FROM (VALUES (1), (2)) v(g)"
			case record:
				call = "SELECT * FROM " + call + join(args) + " AS x(a int, b text)"
			case set:
				call = "SELECT * FROM " + call + join(args) + " LIMIT 1000"
			default:
				call = "SELECT " + call + join(args)
			}
			list = append(list, call)
			overload[call] = overloads
		}
	}
	if err := rows.Err(); err != nil {
		t.Fatal(err)
	}
	return list, overload
}

// argument returns a value of a type.
func (g *sqlgen) argument(typ string) string {
	if g.percent(4) && !strings.HasPrefix(typ, "any") && typ != `"any"` && typ != "record" {
		return "NULL::" + typ
	}
	switch values, ok := argumentValues[typ]; {
	case ok && strings.HasPrefix(values[0], "="):
		return strings.TrimPrefix(g.pick(values), "=")
	case ok:
		return "'" + strings.ReplaceAll(g.pick(values), "'", "''") + "'::" + typ
	case strings.HasSuffix(typ, "[]"):
		if values, ok := argumentValues[strings.TrimSuffix(typ, "[]")]; ok && !strings.HasPrefix(values[0], "=") {
			return "ARRAY['" + strings.Join(values[:min(len(values), 2)], "', '") + "']::" + typ
		}
		return "'{}'::" + typ
	}
	return "NULL::" + typ
}

// argumentValues holds values of types: text, or SQL behind a =.
var argumentValues = map[string][]string{
	"integer": {"1", "0", "5", "-3", "2020", "7"}, "smallint": {"1", "2", "-1"}, "bigint": {"1", "3", "100"}, "numeric": {"1.5", "0.25", "-7", "3"},
	"real": {"0.5", "1", "2"}, "double precision": {"0.5", "1", "2", "-0.1"}, "boolean": {"true", "false"}, "money": {"1.50", "2"},
	"text": {
		"abc", "a", "1", "", "UTC", "day", "YYYY-MM-DD", "2020-01-02", "hex", "base64", "t", "public", "postgres", "english", "a b c", "{1,2}", "SELECT", "UTF8",
		"lower", "table", "relation", "n", "g", "é", "10 kB",
	},
	"name": {"t", "public", "lower", "english", "postgres", "UTF8", "en_US"}, "character": {"a", "b"}, "\"char\"": {"a", "r", "v"}, "character varying": {"abc", "b"},
	"bytea": {`\x0102`, `\x`, `\x616263`, `\x0102030405060708`}, "date": {"2020-01-02", "2026-12-31", "infinity"}, "cstring": {"1"},
	"timestamp without time zone": {"2020-01-02 03:04:05", "2026-12-31 00:00:00"}, "timestamp with time zone": {"2020-01-02 03:04:05+00", "2026-12-31 00:00:00+02"},
	"time without time zone": {"03:04:05", "23:00"}, "time with time zone": {"03:04:05+00", "12:00+02"}, "interval": {"1 day", "2 hours 3 minutes", "1 mon"},
	"json": {`{"a": 1, "b": "x"}`, `[1, 2]`, `[{"a": 1}]`, `"x"`, `null`}, "jsonb": {`{"a": 1, "b": "x"}`, `[1, 2]`, `[{"a": 1}]`, `"x"`, `null`},
	"jsonpath": {"$.a", "$[*]", "$"}, "xml": {"<a/>", "<a>b</a>"}, "uuid": {"a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11", "00000000-0000-0000-0000-000000000000"},
	"inet": {"10.0.0.1/8", "::1"}, "cidr": {"10.0.0.0/8", "10.1.0.0/16"}, "macaddr": {"08:00:2b:01:02:03"}, "macaddr8": {"08:00:2b:01:02:03:04:05"},
	"point": {"(1,2)", "(0,0)"}, "box": {"(0,0),(2,2)", "(1,1),(3,3)"}, "lseg": {"[(0,0),(1,1)]", "[(0,1),(1,0)]"}, "path": {"((0,0),(1,1),(2,0))", "[(0,0),(1,1)]"},
	"polygon": {"((0,0),(1,1),(2,0))"}, "circle": {"<(0,0),2>", "<(1,1),1>"}, "line": {"{1,2,3}", "{1,-1,0}"}, "bit": {"1", "0"}, "bit varying": {"101", "010"},
	"oid": {"1259", "25", "1", "10", "2200"}, "regclass": {"t", "pg_class"}, "regproc": {"now"}, "regprocedure": {"lower(text)"}, "regoper": {"!~~*"},
	"regoperator": {"+(int,int)"}, "regtype": {"int", "text"}, "regrole": {"10"}, "regnamespace": {"public"}, "regconfig": {"english", "simple"},
	"regdictionary": {"simple", "english_stem"}, "regcollation": {`"C"`}, "tsvector": {"a:1 b:2", "cat rat"}, "tsquery": {"a & b", "cat | rat"}, "tid": {"(0,1)", "(1,2)"},
	"xid": {"3", "700"}, "xid8": {"3", "700"}, "cid": {"1"}, "pg_lsn": {"0/1", "16/B374D848"}, "int2vector": {"1 2"}, "oidvector": {"25 23"}, "refcursor": {"c"},
	"txid_snapshot": {"10:20:10,14"}, "pg_snapshot": {"10:20:10,14"}, "int4range": {"[1,5)", "(,7]"}, "int8range": {"[1,5)"}, "numrange": {"[1.5,5)"},
	"daterange": {"[2020-01-01,2020-02-01)"}, "tsrange": {"[2020-01-01,2020-02-01)"}, "tstzrange": {"[2020-01-01,2020-02-01)"}, "int4multirange": {"{[1,5),[7,9)}"},
	"int8multirange": {"{[1,5)}"}, "nummultirange": {"{[1,5)}"}, "datemultirange": {"{[2020-01-01,2020-02-01)}"}, "tsmultirange": {"{[2020-01-01,2020-02-01)}"},
	"tstzmultirange": {"{[2020-01-01,2020-02-01)}"}, "aclitem": {"=r/postgres"}, "void": {""},

	"anyelement": {"=1"}, "anyarray": {"=ARRAY[1, 2]"}, "anynonarray": {"=1"}, "anyenum": {"='sad'::mood", "='ok'::mood"}, "anyrange": {"=int4range(1, 5)", "=int4range(3, 9)"},
	"anymultirange": {"=int4multirange(int4range(1, 5))"}, "anycompatible": {"=1", "=5"}, "anycompatiblearray": {"=ARRAY[1, 2]"}, "anycompatiblenonarray": {"=1"},
	"anycompatiblerange": {"=int4range(1, 5)"}, "anycompatiblemultirange": {"=int4multirange(int4range(1, 5))"}, `"any"`: {"=1", "='a'::text"}, "record": {"=ROW(1, 'a'::text)"},
}
