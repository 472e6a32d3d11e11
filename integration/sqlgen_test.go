package integration

import (
	"bufio"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/flightpg/flightpg/internal/catalog"
)

// A sqlgen writes random statements from a grammar. The same seed and the same
// calls give the same statements.
type sqlgen struct {
	pcg   *rand.PCG
	r     *rand.Rand
	toks  []string
	depth int
	unfit bool // what must not be shared may come up
	limit int  // tokens, above which only the first alternatives are taken
}

func newSQLgen() *sqlgen {
	pcg := rand.NewPCG(0, 0)
	return &sqlgen{pcg: pcg, r: rand.New(pcg), limit: 60}
}

func (g *sqlgen) n(n int) int            { return g.r.IntN(n) }
func (g *sqlgen) percent(p int) bool     { return g.r.IntN(100) < p }
func (g *sqlgen) emit(s string)          { g.toks = append(g.toks, s) }
func (g *sqlgen) pick(l []string) string { return l[g.n(len(l))] }

// statement returns the tokens of a statement, valid until the next call.
func (g *sqlgen) statement(gr *grammar, rule string) []string {
	g.toks, g.depth = g.toks[:0], 0
	g.limit = []int{10, 25, 60, 120}[g.n(4)]
	g.expand(gr.rules[rule])
	return g.toks
}

// A grammar is a set of rules, one a line:
//
//	name: alternative | alternative …
//
// An alternative is words, to be written as they are, and <rules>; a rule with a
// ? may be left out, with a * it comes several times with commas between them.
// @n gives an alternative n times the weight of the others, ! makes it one that
// only comes up in statements that are not to be shared. The first one is taken
// when a statement has become long enough: it should lead to an end.
type grammar struct{ rules map[string]*grammarRule }

type grammarRule struct {
	alts  []grammarAlt
	total [2]int // weights: of what can be shared, of all
	leaf  func(*sqlgen)
}

type grammarAlt struct {
	weight int
	unfit  bool
	items  []grammarItem
}

type grammarItem struct {
	word     string
	rule     *grammarRule
	optional bool
	list     bool
}

func parseGrammar(text string, leaves map[string]func(*sqlgen)) *grammar {
	gr := &grammar{rules: map[string]*grammarRule{}}
	rule := func(name string) *grammarRule {
		r := gr.rules[name]
		if r == nil {
			r = &grammarRule{}
			gr.rules[name] = r
		}
		return r
	}
	for name, leaf := range leaves {
		rule(name).leaf = leaf
	}
	for _, line := range strings.Split(text, "\n") {
		name, body, ok := strings.Cut(strings.TrimSpace(line), ": ")
		if !ok {
			continue
		}
		r := rule(name)
		for _, alt := range strings.Split(body, " | ") {
			a := grammarAlt{weight: 1}
			for _, f := range strings.Fields(alt) {
				switch {
				case len(a.items) == 0 && f[0] == '!' && f != "!=":
					a.unfit = true
					if f = f[1:]; f == "" {
						continue
					}
					fallthrough
				case len(a.items) == 0 && f[0] == '@' && len(f) > 1 && f[1] >= '0' && f[1] <= '9':
					if w, err := strconv.Atoi(f[1:]); f[0] == '@' && err == nil {
						a.weight = w
						continue
					}
				}
				item := grammarItem{word: f}
				if i := strings.IndexByte(f, '>'); f[0] == '<' && i > 1 && f[1] >= 'a' && f[1] <= 'z' {
					item = grammarItem{rule: rule(f[1:i]), optional: strings.HasSuffix(f, "?"), list: strings.HasSuffix(f, "*")}
				}
				a.items = append(a.items, item)
			}
			if r.total[1] += a.weight; !a.unfit {
				r.total[0] += a.weight
			}
			r.alts = append(r.alts, a)
		}
	}
	for name, r := range gr.rules {
		if r.leaf == nil && (len(r.alts) == 0 || r.total[0] == 0 && !strings.HasPrefix(name, "unfit")) {
			panic("grammar: no alternative for " + name)
		}
	}
	return gr
}

func (g *sqlgen) expand(r *grammarRule) {
	if r.leaf != nil {
		r.leaf(g)
		return
	}
	g.depth++
	defer func() { g.depth-- }()
	long := len(g.toks) > g.limit || g.depth > 40
	alt := &r.alts[0]
	if !long {
		total := r.total[0]
		if g.unfit {
			total = r.total[1]
		}
		w := g.n(total)
		for i := range r.alts {
			if r.alts[i].unfit && !g.unfit {
				continue
			}
			if w -= r.alts[i].weight; w < 0 {
				alt = &r.alts[i]
				break
			}
		}
	}
	for _, it := range alt.items {
		switch {
		case it.rule == nil:
			g.emit(it.word)
		case it.optional:
			if !long && g.n(3) == 0 {
				g.expand(it.rule)
			}
		case it.list:
			g.expand(it.rule)
			for !long && g.n(3) == 0 {
				g.emit(",")
				g.expand(it.rule)
			}
		default:
			g.expand(it.rule)
		}
	}
}

// anyGrammar is about texts: all that PostgreSQL's grammar lets stand in a
// SELECT, whether it makes sense or not. Names and types fit by chance.
var anyGrammar = parseGrammar(`
stmt: @40 <select> | @3 ( <select> ) | @2 <select> ; | !@4 <dml> | !@3 <utility> | !<select> ; <select> | !<dml> ; <select> | !<select> ; <dml> | !<select> ; <utility>

select: @9 <simple> <order>? <limit>? | @2 <with> <simple> <order>? <limit>? | @2 <arm> <setop> <arm> <order>? <limit>? | VALUES <row>* <order>? | TABLE <relation> | <with> ( <select> ) <order>? | <simple> <order>? FOR READ ONLY | !@2 <simple> <order>? <lock> <limit>? | !<simple> <limit> <lock> <lock>? | !( <select> ) <lock>
simple: SELECT <item> | @12 SELECT <distinct>? <item>* <into>? <fromclause>? <where>? <group>? <having>? <window>? | @12 SELECT <item>* <fromclause> <where>? <group>? <order>?
arm: <simple> | ( <select> ) | VALUES <row>* | TABLE <name> | <arm> <setop> <arm>
setop: UNION | UNION ALL | UNION DISTINCT | INTERSECT | INTERSECT ALL | EXCEPT | EXCEPT ALL
row: ( <expr>* )
distinct: ALL | DISTINCT | DISTINCT ON ( <expr>* )
item: @6 <expr> | @3 <expr> AS <label> | <expr> <bare> | * | <ident> . *
into: <nothing> | !INTO <name> | !INTO <intokind> <name>
intokind: TEMP | TEMPORARY | LOCAL TEMP | UNLOGGED | TABLE
where: WHERE <expr>
having: HAVING <expr>
group: GROUP BY <gitem>* | GROUP BY DISTINCT <gitem>* | GROUP BY ALL <gitem>*
gitem: <col> | <expr> | ( ) | ROLLUP ( <expr>* ) | CUBE ( <expr>* ) | GROUPING SETS ( <gset>* ) | ( <expr>* )
gset: <col> | ( ) | ( <expr>* ) | ROLLUP ( <expr>* ) | CUBE ( ( <expr>* ) , <expr> ) | GROUPING SETS ( <gset>* )
window: WINDOW <wdef>*
wdef: <ident> AS ( <wspec> )
wspec: <nothing> | <ident> | PARTITION BY <expr>* | <ident>? <wpart>? <order>? <frame>?
wpart: PARTITION BY <expr>*
frame: ROWS <bound> | RANGE BETWEEN <bound> AND <bound> <exclude>? | GROUPS BETWEEN <bound> AND <bound> <exclude>?
bound: CURRENT ROW | UNBOUNDED PRECEDING | UNBOUNDED FOLLOWING | <expr> PRECEDING | <expr> FOLLOWING
exclude: EXCLUDE TIES | EXCLUDE CURRENT ROW | EXCLUDE GROUP | EXCLUDE NO OTHERS
order: ORDER BY <sort>*
sort: <expr> | <expr> ASC | <expr> DESC NULLS LAST | <expr> NULLS FIRST | <expr> USING <op> | <expr> USING OPERATOR ( <qop> )
limit: LIMIT <expr> | LIMIT ALL | OFFSET <expr> | LIMIT <expr> OFFSET <expr> | OFFSET <expr> LIMIT <expr> | OFFSET <num> ROWS FETCH FIRST <num> ROWS ONLY | FETCH NEXT ROW ONLY | FETCH FIRST ( <expr> ) ROWS WITH TIES | OFFSET ( <expr> ) ROW
lock: FOR UPDATE | FOR NO KEY UPDATE | FOR SHARE | FOR KEY SHARE | FOR UPDATE OF <ident>* | FOR SHARE NOWAIT | FOR UPDATE SKIP LOCKED | FOR KEY SHARE OF <ident> NOWAIT
with: WITH <cte>* | WITH RECURSIVE <cte>*
cte: @4 <ident> AS ( <ctequery> ) | <ident> ( <ident>* ) AS ( <ctequery> ) | <ident> AS MATERIALIZED ( <ctequery> ) | <ident> AS NOT MATERIALIZED ( <ctequery> ) | <ident> ( <ident>* ) AS ( <ctequery> ) <search>? <cycle>?
ctequery: @3 <select> | !<dml>
search: SEARCH DEPTH FIRST BY <col>* SET <ident> | SEARCH BREADTH FIRST BY <col>* SET <ident>
cycle: CYCLE <col>* SET <ident> USING <ident> | CYCLE <col>* SET <ident> TO <str> DEFAULT <num> USING <ident>

fromclause: FROM <from>*
from: @8 <relation> <alias>? | @2 ( <select> ) <alias> | @3 <join> | ( <join> ) <alias>? | LATERAL ( <select> ) <alias>? | @2 <call> <alias>? | <call> WITH ORDINALITY <alias>? | LATERAL <call> <alias>? | ROWS FROM ( <rowsfrom>* ) <alias>? | ROWS FROM ( <rowsfrom>* ) WITH ORDINALITY <alias>? | LATERAL ROWS FROM ( <rowsfrom>* ) | <call> AS ( <coldef>* ) | <call> AS <ident> ( <coldef>* ) | <call> <ident> ( <coldef>* ) | <relation> <alias>? TABLESAMPLE <sample> | XMLTABLE ( <xmlns>? <expr> PASSING <passing> COLUMNS <xmlcol>* ) <alias>? | JSON_TABLE ( <expr> , <str> <jpath>? <jpassing>? COLUMNS ( <jcol>* ) <jonerror>? ) <alias>? | LATERAL XMLTABLE ( <expr> PASSING <expr> COLUMNS <xmlcol>* )
rowsfrom: <call> | <call> AS ( <coldef>* )
coldef: <ident> <type> | <ident> <type> COLLATE <collation>
sample: bernoulli ( <num> ) REPEATABLE ( <expr> ) | system ( <expr> ) REPEATABLE ( <num> ) | pg_catalog . system ( <num> ) REPEATABLE ( <num> ) | !bernoulli ( <num> ) | !system_rows ( <num> ) | !app . system ( <num> ) REPEATABLE ( <num> )
join: <relation> <alias>? CROSS JOIN <from> | @3 <from> JOIN <from> ON <expr> | @2 <from> <jointype> JOIN <from> ON <expr> | <from> <jointype> JOIN <from> USING ( <ident>* ) | <from> INNER JOIN <from> USING ( <ident> ) AS <ident> | <from> NATURAL JOIN <from> | <from> NATURAL <jointype> JOIN <from> | <from> JOIN <from> JOIN <from> ON <expr> ON <expr>
jointype: LEFT | RIGHT | FULL | INNER | LEFT OUTER | FULL OUTER
alias: <ident> | AS <ident> | <ident> ( <ident>* ) | AS <ident> ( <ident>* )
relation: <name> | @2 <name> | <name> * | ONLY <name> | ONLY ( <name> )
name: @6 <ident> | <ident> . <ident> | <ident> . <ident> . <ident> | pg_catalog . pg_class | information_schema . tables | pg_stats | !<sessionview> | !pg_catalog . <sessionview> | !pg_temp . <ident>
xmlns: XMLNAMESPACES ( <str> AS <label> ) , | XMLNAMESPACES ( DEFAULT <str> ) ,
passing: <primary> | BY REF <primary> | BY VALUE <primary> BY REF
xmlcol: <ident> FOR ORDINALITY | <ident> <type> | <ident> <type> PATH <primary> | <ident> <type> PATH <primary> DEFAULT <primary> NOT NULL | <ident> <type> DEFAULT <primary>
jpath: AS <ident>
jpassing: PASSING <expr> AS <label>
jcol: <ident> FOR ORDINALITY | <ident> <type> | <ident> <type> PATH <str> | <ident> <type> EXISTS PATH <str> | <ident> <type> FORMAT JSON PATH <str> WITH WRAPPER | NESTED PATH <str> AS <ident> COLUMNS ( <jcol>* ) | NESTED <str> COLUMNS ( <jcol>* ) | <ident> <type> PATH <str> DEFAULT <expr> ON EMPTY ERROR ON ERROR
jonerror: ERROR ON ERROR | EMPTY ON ERROR

expr: @14 <primary> | @4 <primary> <op> <primary> | <op1> <primary> | <expr> AND <expr> | <expr> OR <expr> | NOT <expr> | <primary> OPERATOR ( <qop> ) <primary> | OPERATOR ( <qop> ) <primary> | <primary> <like> <primary> | <primary> <like> <primary> ESCAPE <primary> | <primary> BETWEEN <primary> AND <primary> | <primary> NOT BETWEEN SYMMETRIC <primary> AND <primary> | <primary> IN ( <expr>* ) | <primary> NOT IN ( <select> ) | <primary> <cmp> ANY ( <select> ) | <primary> <cmp> ALL ( <expr> ) | <primary> LIKE ANY ( <expr> ) | <primary> OPERATOR ( <qop> ) SOME ( <select> ) | <primary> IS NULL | <primary> ISNULL | <primary> NOTNULL | <primary> IS NOT TRUE | <primary> IS UNKNOWN | <primary> IS DISTINCT FROM <primary> | <primary> IS NOT DISTINCT FROM <primary> | <primary> IS DOCUMENT | <primary> IS NORMALIZED | <primary> IS NOT NFKC NORMALIZED | <primary> IS JSON | <primary> IS JSON OBJECT WITH UNIQUE KEYS | <primary> AT TIME ZONE <primary> | <primary> AT LOCAL | <primary> COLLATE <collation> | <primary> :: <type> | <primary> :: <type> :: <type> | <expr> <op> <expr> | ( <expr> , <expr> ) OVERLAPS ( <expr> , <expr> ) | ( <expr>* ) <cmp> ( <select> )
primary: @12 <col> | @6 <const> | @10 <call> | @2 <special> | ( <expr> ) | ( <select> ) | EXISTS ( <select> ) | ARRAY [ <expr>* ] | ARRAY [ [ <num> ] , [ <num> ] ] | ARRAY ( <select> ) | ROW ( <expr>* ) | ROW ( ) | ( <expr> , <expr>* ) | ( <expr> ) . <label> | ( <expr> ) [ <expr> ] | <col> [ <expr> ] | <col> [ <expr> : <expr> ] | <col> [ : ] | <case> | <param> | CAST ( <expr> AS <type> ) | <typed> | GROUPING ( <expr>* ) | ( <call> ) . <label> | ( <select> ) . <label>
case: CASE WHEN <expr> THEN <expr> END | CASE <expr> WHEN <expr> THEN <expr> WHEN <expr> THEN <expr> ELSE <expr> END | CASE WHEN <expr> THEN <expr> ELSE <expr> END
call: @8 <func> ( <expr> ) | @4 <func> ( <expr> , <expr> ) | @2 <func> ( ) | <func> ( * ) | <func> ( DISTINCT <expr> ) | <func> ( ALL <expr>* ) | <func> ( <expr> ORDER BY <sort>* ) | <func> ( VARIADIC <expr> ) | <func> ( <expr> , VARIADIC <expr> ORDER BY <sort> ) | <func> ( <ident> => <expr> ) | <func> ( <expr> , <ident> := <expr> ) | <func> ( <expr> ) FILTER ( WHERE <expr> ) | <func> ( <expr> ) OVER ( <wspec> ) | <func> ( ) OVER <ident> | <func> ( <expr> ) FILTER ( WHERE <expr> ) OVER ( <wspec> ) | <func> ( <expr> ) WITHIN GROUP ( ORDER BY <sort>* )
special: COALESCE ( <expr>* ) | NULLIF ( <expr> , <expr> ) | GREATEST ( <expr>* ) | LEAST ( <expr>* ) | EXTRACT ( <field> FROM <expr> ) | POSITION ( <primary> IN <primary> ) | SUBSTRING ( <expr> FROM <expr> FOR <expr> ) | SUBSTRING ( <expr> FOR <expr> ) | SUBSTRING ( <expr> FOR <expr> FROM <expr> ) | SUBSTRING ( <expr> SIMILAR <expr> ESCAPE <expr> ) | SUBSTRING ( <expr> , <expr> ) | OVERLAY ( <expr> PLACING <expr> FROM <expr> FOR <expr> ) | OVERLAY ( <expr> , <expr> , <expr> ) | TRIM ( <expr> ) | TRIM ( BOTH <expr> FROM <expr> ) | TRIM ( LEADING FROM <expr>* ) | TRIM ( <expr> FROM <expr> ) | NORMALIZE ( <expr> ) | NORMALIZE ( <expr> , NFD ) | COLLATION FOR ( <expr> ) | CURRENT_DATE | CURRENT_TIME | CURRENT_TIMESTAMP ( 3 ) | LOCALTIME | LOCALTIMESTAMP ( 0 ) | CURRENT_USER | USER | SESSION_USER | CURRENT_ROLE | CURRENT_CATALOG | CURRENT_SCHEMA | XMLELEMENT ( NAME <label> , XMLATTRIBUTES ( <expr> AS <label> ) , <expr>* ) | XMLFOREST ( <expr> AS <label> ) | XMLCONCAT ( <expr>* ) | XMLPARSE ( DOCUMENT <expr> PRESERVE WHITESPACE ) | XMLPI ( NAME <label> , <expr> ) | XMLROOT ( <expr> , VERSION NO VALUE , STANDALONE YES ) | XMLSERIALIZE ( CONTENT <expr> AS <type> ) | XMLEXISTS ( <primary> PASSING <passing> ) | JSON_OBJECT ( <primary> : <expr> , <primary> VALUE <expr> ABSENT ON NULL WITH UNIQUE KEYS RETURNING <type> ) | JSON_OBJECT ( <expr> ) | JSON_ARRAY ( <expr>* NULL ON NULL ) | JSON_ARRAY ( <select> ) | JSON_ARRAYAGG ( <expr> ORDER BY <sort> ) FILTER ( WHERE <expr> ) | JSON_OBJECTAGG ( <primary> : <expr> ) OVER ( <wspec> ) | JSON_VALUE ( <expr> , <str> PASSING <expr> AS <label> RETURNING <type> DEFAULT <expr> ON EMPTY ) | JSON_QUERY ( <expr> , <expr> WITH CONDITIONAL WRAPPER KEEP QUOTES ) | JSON_EXISTS ( <expr> , <str> TRUE ON ERROR ) | JSON ( <expr> WITH UNIQUE KEYS ) | JSON_SCALAR ( <expr> ) | JSON_SERIALIZE ( <expr> RETURNING <type> ) | !TREAT ( <expr> AS <type> ) | !SYSTEM_USER
like: LIKE | NOT LIKE | ILIKE | NOT ILIKE | SIMILAR TO | NOT SIMILAR TO
cmp: = | <> | < | >= | !=
qop: pg_catalog . <op> | <op> | !app . <op> | !<ident> . <op>
collation: "C" | pg_catalog . "C" | <ident>
const: @4 <num> | @5 <str> | NULL | TRUE | FALSE
typed: date <str> | interval <str> | interval <str> DAY TO SECOND ( 3 ) | interval ( 2 ) <str> | timestamp <str> | timestamp ( 3 ) WITH TIME ZONE <str> | numeric ( 10 , 2 ) <str> | double precision <str> | <ident> <str> | bit ( 3 ) <str> | varchar ( 3 ) <str> | pg_catalog . int4 <str>
type: @4 int | text | bigint [] | numeric ( 10 , 2 ) | numeric | varchar ( 3 ) | character varying ( 5 ) | double precision | timestamp ( 3 ) without time zone | timestamp with time zone | time ( 2 ) with time zone | interval DAY TO SECOND ( 3 ) | interval ( 1 ) | bit varying ( 3 ) | char ( 3 ) [ 3 ] | "char" | pg_catalog . int4 | app . money2 | jsonb | int ARRAY [ 4 ] | text ARRAY | <ident> | pg_catalog . numeric ( 4 , 1 ) | name
field: epoch | year | 'month' | SECOND | <ident>

dml: <maybewith>? <dmlbody>
maybewith: <with>
dmlbody: INSERT INTO <name> VALUES <row>* <conflict>? <returning>? | INSERT INTO <name> ( <col>* ) <select> <conflict>? <returning>? | INSERT INTO <name> AS <ident> DEFAULT VALUES | UPDATE <relation> SET <col> = <expr> <fromclause>? <where>? <returning>? | UPDATE <name> <ident> SET ( <col> , <col> ) = ( <select> ) <where>? | DELETE FROM <relation> <where>? <returning>? | DELETE FROM <name> AS <ident> USING <from>* <where>? | MERGE INTO <name> <ident> USING <from> ON <expr> <when> <when>? | UPDATE <name> SET <col> = DEFAULT WHERE CURRENT OF <ident>
conflict: ON CONFLICT DO NOTHING | ON CONFLICT ( <expr> ) DO UPDATE SET <col> = <expr> <where>? | ON CONFLICT ON CONSTRAINT <ident> DO NOTHING
returning: RETURNING <item>* | RETURNING WITH ( OLD AS <ident> ) <item>*
when: WHEN MATCHED THEN DELETE | WHEN MATCHED AND <expr> THEN UPDATE SET <col> = <expr> | WHEN NOT MATCHED THEN INSERT ( <col> ) VALUES <row> | WHEN NOT MATCHED BY SOURCE THEN DO NOTHING
utility: BEGIN | COMMIT | ROLLBACK TO <ident> | SET <ident> = <str> | SET LOCAL <ident> TO DEFAULT | RESET ALL | SHOW <ident> | DISCARD ALL | PREPARE <ident> AS <select> | EXECUTE <ident> ( <expr>* ) | DEALLOCATE <ident> | DECLARE <ident> CURSOR FOR <select> | DECLARE <ident> CURSOR WITH HOLD FOR <select> <lock>? | FETCH ALL FROM <ident> | LISTEN <ident> | NOTIFY <ident> , <str> | LOCK TABLE <name> | DO <str> | CALL <call> | COPY <name> TO STDOUT | COPY ( <select> ) TO STDOUT | EXPLAIN <select> | EXPLAIN ( ANALYZE ) <dml> | EXPLAIN ANALYZE <select> | CREATE TABLE <name> AS <select> | CREATE TEMP TABLE <name> ( <coldef>* ) | CREATE VIEW <name> AS <select> | DROP TABLE <name> | TRUNCATE <name> | VACUUM <name> | ANALYZE <name> | REFRESH MATERIALIZED VIEW <name> | ALTER SYSTEM SET <ident> = <num> | CREATE FUNCTION <name> ( ) RETURNS <type> LANGUAGE sql RETURN <expr> | CREATE RULE <ident> AS ON SELECT TO <name> DO INSTEAD <select> | CHECKPOINT | ( <utility> )
`, map[string]func(*sqlgen){
	"nothing": func(*sqlgen) {},
	"ident":   (*sqlgen).ident,
	"col":     (*sqlgen).column,
	"label": func(g *sqlgen) { // any word at all
		if g.percent(30) {
			g.emit(g.pick(reservedWords))
		} else {
			g.ident()
		}
	},
	"bare": func(g *sqlgen) { // without AS
		if g.percent(40) {
			g.emit(g.pick(bareWords))
		} else {
			g.ident()
		}
	},
	"func":        (*sqlgen).function,
	"op":          func(g *sqlgen) { g.emit(g.pick(operators)) },
	"op1":         func(g *sqlgen) { g.emit(g.pick([]string{"-", "+", "@", "~", "|/", "!!", "@-@", "#"})) },
	"num":         func(g *sqlgen) { g.emit(g.pick(numbers)) },
	"str":         (*sqlgen).str,
	"param":       func(g *sqlgen) { g.emit("$" + strconv.Itoa(1+g.n(12))) },
	"sessionview": func(g *sqlgen) { g.emit(g.pick(sessionViews)) },
})

var (
	plainNames = strings.Fields(`a b c t u x y id name parent data doc created_at app items é naïve tbl$1 _x pg_x t1
		b1 e x1 n u_ select_ for_update updates`)
	// Key words that may name something, and functions of the same kind of name.
	softWords = strings.Fields(`update insert delete merge share key value values_ first next sets rollup cube by set conflict
		over filter within ordinality ties only_ no nothing materialized recursive search depth breadth cycle partition
		range rows groups exclude others current unbounded preceding following escape document content passing path
		columns nested ref name data type domain sequence cursor hold lock locked nowait_ skip of_ at zone year month
		day hour minute second begin commit rollback do call copy execute prepare show explain listen notify view
		temp temporary local unlogged returning_ matched source target instead also json_ format keys scalar string
		object absent error empty conditional unconditional wrapper quotes omit period plan window_ operator system
		repeatable method catalog schema database role user_ owner label comment version standalone strip whitespace
		nfc nfd uescape_ old new transaction isolation level read write work session parameter statement`)
	unfitLooking  = strings.Fields(`nextval random set_config pg_advisory_lock setval clock_timestamp lo_create vol_f dblink`)
	reservedWords = strings.Fields(`select from where into for as with union order group limit offset fetch having window
		all any array case when then else end cast create default distinct do except false grant in initially intersect
		not null on only or returning some table to true unique user using variadic both check collate column end
		lateral leading trailing symmetric session_user current_date update delete`)
	// Key words that may not name anything, yet need no AS in front of them.
	bareWords = strings.Fields(`all analyse and any asc asymmetric both case cast check collate column constraint
		current_catalog current_date current_role current_time current_timestamp current_user default deferrable desc
		distinct do else end false foreign in initially lateral leading localtime localtimestamp not null only or
		placing primary references select session_user some symmetric system_user table then trailing true unique
		user using variadic when authorization binary collation concurrently cross current_schema freeze full ilike
		inner is join left like natural outer right similar tablesample verbose between values row exists setof coalesce
		rows update delete insert merge share ordinality operator escape`)
	oddNames = []string{
		`"select"`, `"for"`, `"x y"`, `"a""b"`, `"A"`, `"now()"`, `"; delete from t"`, `"--"`, `"/*"`, `"é"`, `"$$"`, `"'"`,
		`U&"d\0061ta"`, `u&"x"`, `"update"`, `"into"`, `"nextval"`, `"U&"`, `"a.b"`, `"pg_catalog"`,
		"a_name_of_more_than_sixty_three_bytes_which_the_server_cuts_off_without_an_error",
	}
	operators = strings.Fields(`+ - * / % ^ = < > <= >= <> != || -> ->> #> #>> @> <@ ? ?| ?& && ~ !~ ~* << >> & | # <-> @@ |/ === ~~ *= -|- @? |&> +|`)
	numbers   = strings.Fields(`0 1 2 42 1.5 .5 1. 1e3 1.5e-3 007 1000000 0x1F 0b11 1_000 0o17`)
	texts     = []string{
		`'a'`, `'it''s'`, `''`, `'; DELETE FROM t'`, `'a\'`, `'--'`, `'/*'`, `E'\''`, `E'a\\'`, `e'\x41\n'`, `E'\\\''`, `$$x$$`, `$$; drop table t$$`,
		`$q$ $$ ' $q$`, `$é$"$é$`, `U&'d\0061t\+000061'`, `N'x'`, `B'101'`, `X'1F'`, `x''`, "'a'\n'b'", "'a' -- c\n 'b'", "E'a'\n'\\''", `'$1'`, `'now'`, `'$.a'`, `'{"a": 1}'`,
		`'2020-01-01'`, `'1 day'`, `'<a/>'`, `U&'d!0061' UESCAPE '!'`, `'$$'`,
	}
	sessionViews = strings.Fields(`pg_settings pg_locks pg_stat_activity "pg_settings" PG_LOCKS pg_cursors pg_stat_user_tables pg_prepared_statements U&"pg\005flocks" pg_timezone_names pg_sequences`)
	usualCalls   = strings.Fields(`lower upper count sum max min now length coalesce_ abs round array_agg string_agg jsonb_agg
		to_char date_trunc row_number rank lag first_value generate_series unnest jsonb_build_object concat left right
		replace format age current_schema json_to_recordset jsonb_each percentile_cont mode regexp_matches current_database`)
	userCalls = []string{
		"vol_f", "app.f", "public.lower", `"Lower"`, `"lower "`, `U&"lower"`, "pg_temp.now", "over", "filter", "first", "next", "conflict",
		"rollup", "cube", "sets", "by", "value", "values_", "columns", "recursive", "materialized", "operator", "escape", "ordinality",
		`"select"`, "db.pg_catalog.now", "dblink", "second", "insert", "update", "delete", "merge", "set", "join", "like", "ilike", "partition",
		"rows", "range", "path", "passing", "ref", "document", "lock", "share", "key", "do", "call", "within", "respect", "é", "treat", "json_table",
		"t.f", "(t).f", "app.select", "authorization", "left_", "is", "isnull", "notnull", "verbose", "freeze", "concurrently", "ties", "xmltable", "only",
	}
	sampleTokens = strings.Fields(`( ) [ ] , ; . :: : := * = < - + / ' " $$ -- /* */ E U& SELECT FROM WHERE INTO FOR UPDATE SHARE WITH AS NOT
		MATERIALIZED DELETE INSERT MERGE UNION VALUES TABLE ONLY ON CONFLICT DO ROWS JOIN USING CASE END OVER LATERAL GROUP BY ORDER
		OPERATOR DISTINCT ROLLUP CUBE GROUPING SETS SET RETURNING LIMIT FETCH FIRST NO KEY nextval('s') vol_f() pg_settings
		set_config random() pg_catalog. substring overlay TABLESAMPLE REPEATABLE $1 1 'a' a t NULL RECURSIVE SEARCH CYCLE IN AND`)

	safeBuiltins, unfitBuiltins []string
)

func (g *sqlgen) ident() {
	switch p := g.n(100); {
	case p < 62:
		g.emit(g.pick(plainNames))
	case p < 82:
		g.emit(g.pick(softWords))
	case p < 88:
		g.emit(g.pick(unfitLooking))
	case p < 90:
		g.emit(g.pick(safeBuiltins))
	default:
		g.emit(g.pick(oddNames))
	}
}

func (g *sqlgen) column() {
	g.ident()
	for g.percent(20) {
		g.emit(".")
		if g.percent(10) {
			g.emit(g.pick(reservedWords))
		} else {
			g.ident()
		}
	}
}

func (g *sqlgen) str() { g.emit(g.pick(texts)) }

// function emits the name of a called function.
func (g *sqlgen) function() {
	var name string
	switch {
	case g.unfit && g.percent(8):
		if g.percent(60) {
			g.emit(g.pick(userCalls))
			return
		}
		name = g.pick(unfitBuiltins)
	case g.percent(70):
		name = g.pick(usualCalls)
	default:
		name = g.pick(safeBuiltins)
	}
	name = strings.TrimSuffix(name, "_")
	switch p := g.n(20); {
	case p == 0:
		name = `"` + name + `"`
	case p == 1:
		name = strings.ToUpper(name)
	case p == 2:
		g.emit("pg_catalog")
		g.emit(".")
	case p == 3:
		g.emit(`"pg_catalog"`)
		g.emit(".")
		name = `"` + name + `"`
	}
	g.emit(name)
}

// loadBuiltins reads the names of the built-in functions from the generated list.
func loadBuiltins(tb testing.TB) {
	tb.Helper()
	if safeBuiltins != nil {
		return
	}
	src, err := os.ReadFile("../internal/catalog/builtins_gen.go")
	if err != nil {
		tb.Fatal(err)
	}
	functions, _, ok := strings.Cut(string(src), "func sessionView")
	var safe, unfit []string
	for _, m := range regexp.MustCompile(`"([a-z_0-9]+)"`).FindAllStringSubmatch(functions, -1) {
		if catalog.Function(m[1]) == catalog.Safe {
			safe = append(safe, m[1])
		} else {
			unfit = append(unfit, m[1])
		}
	}
	if !ok || len(safe) < 1000 || len(unfit) < 500 {
		tb.Fatalf("%d and %d built-in names; want more", len(safe), len(unfit))
	}
	safeBuiltins, unfitBuiltins = safe, unfit
}

// loadSeeds reads the statements of the scanner's own tables.
func loadSeeds(tb testing.TB) []string {
	tb.Helper()
	unescape := strings.NewReplacer(`\\`, `\`, `\n`, "\n", `\t`, "\t", `\r`, "\r", `\f`, "\f", `\v`, "\v", `\0`, "\x00")
	var seeds []string
	for file, column := range map[string]int{"verdicts.tsv": 3, "classify.tsv": 0} {
		f, err := os.Open("../internal/sqlscan/testdata/" + file)
		if err != nil {
			tb.Fatal(err)
		}
		for s := bufio.NewScanner(f); s.Scan(); {
			if row := strings.Split(s.Text(), "\t"); len(row) == 4 && row[column] != "sql" {
				seeds = append(seeds, unescape.Replace(row[column]))
			}
		}
		f.Close()
	}
	if len(seeds) < 500 {
		tb.Fatalf("%d statements in the tables; want more", len(seeds))
	}
	slices.Sort(seeds)
	return seeds
}

// text joins tokens with blanks and comments, in odd places too. wild also puts
// tokens together that then are others.
func (g *sqlgen) text(toks []string, wild bool) string {
	style := g.n(4) // of key words and blanks
	b := make([]byte, 0, 512)
	if g.percent(3) {
		b = append(b, g.pick(gaps)...)
	}
	for i, t := range toks {
		if i > 0 {
			switch {
			case style > 0 && g.percent(4):
				b = append(b, g.pick(gaps)...)
			case wild && g.percent(5):
			case style > 1 && (tight(b[len(b)-1]) || tight(t[0])):
			default:
				b = append(b, ' ')
			}
		}
		if style == 1 && t[0] != '"' && t[0] != '\'' && t[0] != '$' && strings.IndexByte(t, '\'') < 0 && strings.IndexByte(t, '"') < 0 {
			t = strings.ToLower(t)
		}
		b = append(b, t...)
	}
	if g.percent(3) {
		b = append(b, g.pick(gaps)...)
	}
	return string(b)
}

func tight(c byte) bool { return strings.IndexByte("(),;[]", c) >= 0 }

// gaps may stand between any two tokens.
var gaps = []string{
	"  ", "\n", "\t", "\r\n", "\f", " /* c */ ", "/**/", " /* a /* b */ c */ ", " -- c\n", "--\n", " -- ' \" $$ /*\n", " /* ' */ ", "/* ; DELETE FROM t */",
	" --\r", "/*--*/", "/*\n*/\n", " /* $$ */", "\n--\n\n", "/* \" */", " /* FOR UPDATE */ ", "/***/", "/*/**/*/",
}

// mutate changes tokens: the result is mostly no valid statement, or another one.
func (g *sqlgen) mutate(toks []string, other []string) []string {
	toks = append([]string(nil), toks...)
	for range 1 + g.n(3) {
		if len(toks) == 0 {
			return []string{g.pick(sampleTokens)}
		}
		i, j := g.n(len(toks)), g.n(len(toks))
		switch g.n(9) {
		case 0:
			toks = slices.Delete(toks, i, i+1)
		case 1:
			toks = slices.Insert(toks, i, toks[j])
		case 2:
			toks[i], toks[j] = toks[j], toks[i]
		case 3:
			toks[i] = g.pick(sampleTokens)
		case 4, 5:
			toks = slices.Insert(toks, i, g.pick(sampleTokens))
		case 6: // something of another statement
			if len(other) > 0 {
				k := g.n(len(other))
				toks = slices.Insert(toks, i, other[k:min(len(other), k+1+g.n(6))]...)
			}
		case 7: // … or its end
			if len(other) > 0 {
				toks = append(toks[:i:i], other[g.n(len(other)):]...)
			}
		case 8:
			toks = slices.Delete(toks, min(i, j), max(i, j))
		}
	}
	return toks
}

// mangle changes bytes.
func (g *sqlgen) mangle(s string) string {
	b := []byte(s)
	for range 1 + g.n(4) {
		if len(b) == 0 {
			break
		}
		i := g.n(len(b))
		switch g.n(6) {
		case 0:
			b = slices.Delete(b, i, i+1)
		case 1:
			b[i] = nastyBytes[g.n(len(nastyBytes))]
		case 2, 3:
			b = slices.Insert(b, i, nastyBytes[g.n(len(nastyBytes))])
		case 4:
			b[i] ^= 1 << g.n(8)
		case 5:
			k := min(len(b), i+1+g.n(8))
			b = slices.Insert(b, g.n(len(b)), b[i:k]...)
		}
	}
	return string(b)
}

const nastyBytes = "''\"\"$$\\\\/*-*/-;()[].,:&!?@#%^|`~<>=+ \n\r\t\f\v0123456789abeExXnNuUqQ_\xc3\xa9\xff\x00{}"

// envInt reads a number that the environment may set.
func envInt(t testing.TB, name string, otherwise uint64) uint64 {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}
