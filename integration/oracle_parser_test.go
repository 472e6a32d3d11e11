//go:build cgo

package integration

import (
	"cmp"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pg_query "github.com/pganalyze/pg_query_go/v6"

	"github.com/flightpg/flightpg/internal/battery"
	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// This file holds the scanner to PostgreSQL's own parser (of version 17, as a
// library): what is judged a read must be one by its parse tree.

// parserVersion is the major version of the parser; scanVersions are what
// texts are judged for.
const parserVersion = 17

var scanVersions = [...]int{catalog.Oldest, parserVersion, catalog.Newest}

// parserMu serializes the parser: while it runs, it redirects the standard error
// of the whole process. For more than one core, run several processes.
var parserMu sync.Mutex

func parse(sql string) (tree string, err error) {
	parserMu.Lock()
	defer parserMu.Unlock()
	return pg_query.ParseToJSON(sql)
}

// plainNodes are the nodes of parse trees that plain reads are made of. What is
// not listed writes, locks, is a utility statement, or was not thought of.
var plainNodes = func() map[string]bool {
	set := map[string]bool{}
	for _, n := range strings.Fields(`SelectStmt ResTarget ColumnRef A_Star String A_Const A_Expr BoolExpr NullTest BooleanTest
		TypeCast TypeName CollateClause FuncCall NamedArgExpr A_Indices A_Indirection A_ArrayExpr List RowExpr CoalesceExpr MinMaxExpr
		SubLink CaseExpr CaseWhen ParamRef SQLValueFunction GroupingFunc GroupingSet SortBy WindowDef MergeSupportFunc
		RangeVar RangeSubselect RangeFunction RangeTableFunc RangeTableFuncCol RangeTableSample JoinExpr ColumnDef
		CommonTableExpr XmlExpr XmlSerialize JsonIsPredicate JsonValueExpr JsonKeyValue JsonObjectConstructor JsonArrayConstructor
		JsonArrayQueryConstructor JsonObjectAgg JsonArrayAgg JsonFuncExpr JsonTable JsonTableColumn JsonTablePathSpec JsonArgument
		JsonParseExpr JsonScalarExpr JsonSerializeExpr JsonBehavior Integer Float Boolean BitString SetToDefault`) {
		set[n] = true
	}
	return set
}()

// A treeWalker reads a parse tree in JSON and finds what makes it no plain read.
type treeWalker struct {
	s string
	i int

	bad       string // the first thing that is no part of a plain read, in any version
	since     int    // version that has all the functions
	maxParam  int
	mayCall   bool     // an attribute has the name of a function that is not Safe
	functions []string // called by name
	relations []string
	operators []string
	types     []string
}

// walkTree returns what is in a tree that the parser wrote.
func walkTree(tree string) (w treeWalker, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("tree not understood: %v: %s", r, tree)
		}
	}()
	w = treeWalker{s: tree, since: catalog.Oldest}
	if n := strings.Count(tree, `{"stmt":{`); n != 1 || !strings.HasPrefix(tree, `{"version":170007,"stmts":[{"stmt":{"SelectStmt":`) {
		w.note("not one SELECT")
	}
	w.value("", "")
	if w.i != len(w.s) {
		panic("trailing text")
	}
	return w, nil
}

func (w *treeWalker) note(what string) {
	if w.bad == "" {
		w.bad = what
	}
}

// value reads a value: that of key in an object that is a node.
func (w *treeWalker) value(node, key string) {
	switch c := w.s[w.i]; c {
	case '{':
		w.object(key)
	case '[':
		w.i++
		for w.s[w.i] != ']' {
			w.value(node, key)
			if w.s[w.i] == ',' {
				w.i++
			}
		}
		w.i++
	case '"':
		w.str()
	default:
		for strings.IndexByte(",}]", w.s[w.i]) < 0 {
			w.i++
		}
	}
}

// object reads an object. node is the key it stands under: the type of a node, or
// the name of a field whose type is known.
func (w *treeWalker) object(node string) {
	var schema, relation, kind, format, args string
	var function, operator []string
	repeatable := false
	for w.i++; w.s[w.i] != '}'; {
		key := w.str()
		w.i++ // :
		switch {
		case key[0] >= 'A' && key[0] <= 'Z':
			if !plainNodes[key] {
				w.note(key)
			}
			w.value(node, key)
		case key == "intoClause", key == "lockingClause":
			w.note(key)
			w.value(node, key)
		case key == "schemaname":
			schema = w.str()
		case key == "catalogname":
			w.str()
		case key == "relname":
			relation = w.str()
		case key == "kind" && node == "A_Expr":
			kind = w.str()
		case key == "funcformat":
			format = w.str()
		case key == "funcname":
			function = w.names()
		case key == "args" && node == "FuncCall":
			from := w.i
			w.value(node, key)
			args = w.s[from:w.i]
		case key == "number" && node == "ParamRef":
			from := w.i
			w.value(node, key)
			n, err := strconv.Atoi(w.s[from:w.i])
			if err != nil {
				panic(err)
			}
			w.maxParam = max(w.maxParam, n)
		case (key == "name" || key == "operName" || key == "useOp") && w.s[w.i] == '[':
			operator = w.names()
		case key == "names" && w.s[w.i] == '[':
			w.typeName(w.names())
		case key == "fields" || key == "indirection":
			w.attributes(key == "fields")
		case key == "method" && node == "RangeTableSample":
			switch m := strings.Join(w.names(), "."); m {
			case "system", "bernoulli", "pg_catalog.system", "pg_catalog.bernoulli":
			default:
				w.note("sampling method " + m)
			}
		default:
			repeatable = repeatable || key == "repeatable"
			w.value(node, key)
		}
		if w.s[w.i] == ',' {
			w.i++
		}
	}
	w.i++
	switch {
	case relation != "":
		w.relations = append(w.relations, relation)
		if tempSchema(schema) || (schema == "" || schema == "pg_catalog") && catalog.SessionView(relation) {
			w.note("relation " + schema + "." + relation)
		}
	case function != nil:
		w.function(function, args, format != "COERCE_SQL_SYNTAX")
	case operator != nil:
		if len(operator) > 1 && !(len(operator) == 2 && operator[0] == "pg_catalog") {
			w.note("operator " + strings.Join(operator, "."))
		}
		switch kind {
		case "", "AEXPR_OP", "AEXPR_OP_ANY", "AEXPR_OP_ALL":
			w.operators = append(w.operators, operator[len(operator)-1])
		}
	case node == "RangeTableSample" && !repeatable:
		w.note("sample that cannot be repeated")
	}
}

// serverSetting is current_setting's argument where that is a literal.
var serverSetting = regexp.MustCompile(`^\[\{"A_Const":\{"sval":\{"sval":"(\w+)"\}`)

func (w *treeWalker) function(name []string, args string, byName bool) {
	last := name[len(name)-1]
	full := strings.Join(name, ".")
	if len(name) > 2 || len(name) == 2 && name[0] != "pg_catalog" {
		w.note("function " + full)
		return
	}
	info := catalog.Lookup(last)
	if m := serverSetting.FindStringSubmatch(args); m != nil && last == "current_setting" && catalog.ServerSetting(m[1]) {
		return
	}
	if info.Class != catalog.Safe {
		w.note("function " + full)
		return
	}
	if byName {
		w.since = max(w.since, info.Since)
		switch full { // made by the grammar
		case "pg_catalog.like_escape", "pg_catalog.similar_to_escape":
		default:
			w.functions = append(w.functions, last)
		}
	}
}

// attributes reads the parts of a column or what hangs on a value: t.f and (t).f
// may call f.
func (w *treeWalker) attributes(column bool) {
	const open = `{"String":{"sval":`
	w.i++
	for i := 0; w.s[w.i] != ']'; i++ {
		if strings.HasPrefix(w.s[w.i:], open) {
			w.i += len(open)
			c := catalog.Function(w.str())
			w.mayCall = w.mayCall || (i > 0 || !column) && c != catalog.Safe && c != catalog.Unknown
			w.i += len("}}")
		} else {
			w.value("", "")
		}
		if w.s[w.i] == ',' {
			w.i++
		}
	}
	w.i++
}

func (w *treeWalker) typeName(names []string) {
	if tempSchema(names[0]) {
		w.note("type of " + names[0])
	}
	if len(names) != 2 || names[0] != "pg_catalog" { // int is pg_catalog.int4
		w.types = append(w.types, names[len(names)-1])
	}
}

func tempSchema(name string) bool {
	return name == "pg_temp" || strings.HasPrefix(name, "pg_temp_") || strings.HasPrefix(name, "pg_toast_temp")
}

// names reads a list of strings.
func (w *treeWalker) names() (list []string) {
	const open = `{"String":{"sval":`
	for w.i++; w.s[w.i] != ']'; {
		if !strings.HasPrefix(w.s[w.i:], open) {
			panic("no name at " + w.s[w.i:])
		}
		w.i += len(open)
		list = append(list, w.str())
		w.i += len("}}")
		if w.s[w.i] == ',' {
			w.i++
		}
	}
	w.i++
	return list
}

// str reads a string.
func (w *treeWalker) str() string {
	w.i++
	from, escaped := w.i, false
	for w.s[w.i] != '"' {
		if w.s[w.i] == '\\' {
			escaped = true
			w.i++
		}
		w.i++
	}
	s := w.s[from:w.i]
	w.i++
	if !escaped {
		return s
	}
	var b []byte
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b = append(b, s[i])
			continue
		}
		switch i++; s[i] {
		case 'b':
			b = append(b, '\b')
		case 'f':
			b = append(b, '\f')
		case 'n':
			b = append(b, '\n')
		case 'r':
			b = append(b, '\r')
		case 't':
			b = append(b, '\t')
		case 'u': // a control character or <
			n, err := strconv.ParseUint(s[i+1:i+5], 16, 8)
			if err != nil {
				panic(err)
			}
			b = append(b, byte(n))
			i += 4
		default:
			b = append(b, s[i])
		}
	}
	return string(b)
}

// A comparison is what came out for one text.
type comparison struct {
	scanned  [len(scanVersions)]sqlscan.Result
	read     bool // judged a read for some version
	parsed   bool // the parser accepted it
	bypassed bool // a plain read by its tree, yet not judged one
	fault    string
}

// compare judges a text and has it parsed: always if it is judged a read, else
// only if thorough, which tells whether too much is bypassed.
func compare(sql string, thorough bool) (c comparison) {
	for i, version := range scanVersions {
		r := sqlscan.Options{Version: version}.Scan(sql)
		c.scanned[i] = r
		c.read = c.read || r.Class == sqlscan.Read
		if r.Pos < 0 || r.Pos > len(sql) || (r.Class == sqlscan.Read) != (r.Reason == sqlscan.None) {
			c.fault = fmt.Sprintf("%+v is no verdict", r)
			return c
		}
	}
	if !c.read && !thorough || strings.IndexByte(sql, 0) >= 0 {
		return c // a text with a NUL cannot be sent
	}
	tree, err := parse(sql)
	if err != nil {
		return c
	}
	c.parsed = true
	w, err := walkTree(tree)
	if err != nil {
		c.fault = err.Error()
		return c
	}
	for i, version := range scanVersions {
		r := c.scanned[i]
		switch {
		case r.Class == sqlscan.Read && w.bad != "":
			c.fault = fmt.Sprintf("a read for version %d: %s", version, w.bad)
		case r.Class == sqlscan.Read && w.since > version:
			c.fault = fmt.Sprintf("a read for version %d, but it calls a function of %d", version, w.since)
		case r.Class == sqlscan.Read && r.Params != w.maxParam && w.maxParam <= 65535: // else the server refuses it
			c.fault = fmt.Sprintf("%d parameters; want %d", r.Params, w.maxParam)
		case r.Class != sqlscan.Read && version == parserVersion && w.bad == "" && !w.mayCall && w.since <= version:
			c.bypassed = true
		}
	}
	if c.fault == "" && c.read && thorough {
		c.fault = compareNames(sql, &w)
	}
	return c
}

// syntaxWords may name types, but Names takes them for syntax (BY in column
// definitions: f() AS x (partition by(1))). Nobody has a type of such a name.
var syntaxWords = func() map[string]bool {
	set := map[string]bool{}
	for _, w := range strings.Fields(`authorization binary by collation concurrently cross current_schema freeze full ilike inner is isnull
		join left like natural notnull outer overlaps right similar tablesample verbose`) {
		set[w] = true
	}
	return set
}()

// compareNames checks that Names visits what the tree of a read mentions: the
// catalog is asked about these names only.
func compareNames(sql string, w *treeWalker) (fault string) {
	type visited struct{ function, relation, operator, any bool }
	names := map[string]visited{}
	complete := sqlscan.Names(sql, func(n sqlscan.Name) bool {
		v := names[n.Name]
		v.any = true
		switch n.Kind {
		case sqlscan.FunctionName:
			v.function = true
		case sqlscan.RelationName:
			v.relation = true
		case sqlscan.OperatorName:
			v.operator = true
		}
		names[n.Name] = v
		return true
	})
	if !complete {
		return "Names stopped in the middle of a read"
	}
	for _, f := range w.functions {
		if !names[f].function {
			return "Names does not visit the function " + f
		}
	}
	for _, r := range w.relations {
		if !names[r].relation {
			return "Names does not visit the relation " + r
		}
	}
	for _, o := range w.operators {
		if !names[o].operator {
			return "Names does not visit the operator " + o
		}
	}
	for _, t := range w.types {
		if !names[t].any && !syntaxWords[t] {
			return "Names does not visit the type " + t
		}
	}
	return ""
}

// shrink takes away what the fault does not need.
func shrink(sql string, fails func(string) bool) string {
	for size := len(sql) / 2; size > 0; size /= 2 {
		for i := 0; i+size <= len(sql); {
			if shorter := sql[:i] + sql[i+size:]; fails(shorter) {
				sql = shorter
			} else {
				i++
			}
		}
	}
	return sql
}

// A tally counts what the runs of TestScanAgainstParser did.
type tally struct {
	executions uint64 // statements written and judged
	reads      uint64 // … and judged reads: all these were given to the parser
	accepted   uint64 // reads that the parser accepted: these were compared
	names      uint64 // … with their names
	sampled    uint64 // plain reads by their tree, of the statements that were parsed whatever the verdict
	bypassed   uint64 // … and not judged reads
	reasons    map[string]uint64
	examples   map[string]string
}

func (t *tally) add(o *tally) {
	t.executions += o.executions
	t.reads += o.reads
	t.accepted += o.accepted
	t.names += o.names
	t.sampled += o.sampled
	t.bypassed += o.bypassed
	for k, v := range o.reasons {
		if t.reasons == nil {
			t.reasons, t.examples = map[string]uint64{}, map[string]string{}
		}
		t.reasons[k] += v
		if old, ok := t.examples[k]; !ok || len(o.examples[k]) < len(old) {
			t.examples[k] = o.examples[k]
		}
	}
}

// kinds of statements that TestScanAgainstParser makes.
const (
	plainKind   = iota // generated, all of it can be shared
	unfitKind          // generated, anything
	mutantKind         // … with tokens changed
	mangledKind        // … with bytes changed
	seedKind           // from the tables, with tokens or bytes changed
	kinds
)

var kindNames = [kinds]string{"plain", "unfit", "mutants", "mangled", "seeds"}

// A sqlcase makes the statements of one run.
type sqlcase struct {
	*sqlgen
	seeds [][]string // tokens
	texts []string
	other []string
}

// make returns statement i of a run.
func (c *sqlcase) make(seed, i uint64) (sql string, kind int) {
	c.pcg.Seed(seed, i)
	switch p := c.n(100); {
	case p < 25:
		kind = plainKind
	case p < 55:
		kind = unfitKind
	case p < 75:
		kind = mutantKind
	case p < 85:
		kind = mangledKind
	default:
		kind = seedKind
	}
	c.unfit = kind == unfitKind || kind != plainKind && c.percent(60)
	if kind == seedKind {
		k := c.n(len(c.seeds))
		if c.seeds[k] == nil || c.percent(30) {
			return c.mangle(c.texts[k]), kind
		}
		return c.text(c.mutate(c.seeds[k], c.seeds[c.n(len(c.seeds))]), c.percent(20)), kind
	}
	toks := c.statement(anyGrammar, "stmt")
	switch kind {
	case mutantKind:
		other := c.other
		if c.percent(30) {
			other = c.seeds[c.n(len(c.seeds))]
		}
		c.other = nil
		mutant := c.mutate(toks, other)
		return c.text(mutant, c.percent(20)), kind
	case mangledKind:
		return c.mangle(c.text(toks, c.percent(20))), kind
	}
	return c.text(toks, false), kind
}

// seedTokens splits the statements of the tables with the parser's own scanner;
// those it refuses have none.
func seedTokens(texts []string) [][]string {
	list := make([][]string, len(texts))
	for i, sql := range texts {
		if strings.IndexByte(sql, 0) >= 0 {
			continue
		}
		parserMu.Lock()
		r, err := pg_query.Scan(sql)
		parserMu.Unlock()
		if err != nil {
			continue
		}
		for _, t := range r.Tokens {
			if t.Token != pg_query.Token_C_COMMENT && t.Token != pg_query.Token_SQL_COMMENT && t.Start < t.End {
				list[i] = append(list[i], sql[t.Start:t.End])
			}
		}
	}
	return list
}

// TestScanAgainstParser writes statements and compares the scanner's verdicts
// with the parser's trees. Statement i of a run depends on the seed and i alone.
//
//	FLIGHTPG_SEED    the seed, printed by every run; 1
//	FLIGHTPG_FUZZ_N  how many statements to write; 200,000, or what 45 seconds allow;
//	                 40,000 with -short
//	FLIGHTPG_FUZZ_I  the first of them; 0
func TestScanAgainstParser(t *testing.T) {
	loadBuiltins(t)
	texts := loadSeeds(t)
	tokens := seedTokens(texts)
	for _, sql := range texts {
		if c := compare(sql, true); c.fault != "" {
			t.Errorf("Scan(%q): %s", sql, c.fault)
		}
	}

	seed, n, first := envInt(t, "FLIGHTPG_SEED", 1), envInt(t, "FLIGHTPG_FUZZ_N", battery.Quick[uint64](40_000, 200_000)), envInt(t, "FLIGHTPG_FUZZ_I", 0)
	limit := 45 * time.Second // with the race detector on a slow machine it takes minutes
	if os.Getenv("FLIGHTPG_FUZZ_N") != "" {
		limit = 1000 * time.Hour
	}
	t.Logf("FLIGHTPG_SEED=%d FLIGHTPG_FUZZ_N=%d FLIGHTPG_FUZZ_I=%d", seed, n, first)
	var (
		mu     sync.Mutex // guards totals and faults
		totals [kinds]tally
		faults []string
		next   atomic.Uint64
		wg     sync.WaitGroup
	)
	start := time.Now()
	summary := func(t *tally) string {
		return fmt.Sprintf("%d executions, %d judged reads, %d of them accepted by the parser and compared (%d also by their names)",
			t.executions, t.reads, t.accepted, t.names)
	}
	total := func() *tally {
		var sum tally
		for i := range totals {
			sum.add(&totals[i])
		}
		return &sum
	}
	const block = 2000
	for range min(runtime.GOMAXPROCS(0), int(n/block)+1) {
		wg.Go(func() {
			gen := &sqlcase{sqlgen: newSQLgen(), seeds: tokens, texts: texts}
			for {
				from := next.Add(block) - block
				if from >= n || time.Since(start) > limit {
					return
				}
				var counts [kinds]tally
				for i := first + from; i < first+min(n, from+block); i++ {
					sql, kind := gen.make(seed, i)
					thorough := i%4 == 0
					c := compare(sql, thorough)
					count := &counts[kind]
					count.executions++
					if c.read {
						count.reads++
						if c.parsed {
							count.accepted++
							if thorough {
								count.names++
							}
						}
					}
					if thorough && c.parsed && (c.bypassed || c.scanned[1].Class == sqlscan.Read) {
						count.sampled++
					}
					if c.bypassed {
						count.bypassed++
						if count.reasons == nil {
							count.reasons, count.examples = map[string]uint64{}, map[string]string{}
						}
						why := c.scanned[1].Reason.String() + " " + c.scanned[1].Name
						count.reasons[why]++
						if old, ok := count.examples[why]; !ok || len(sql) < len(old) {
							count.examples[why] = sql
						}
					}
					if c.fault != "" {
						mu.Lock()
						if len(faults) < 20 {
							// The same fault, whatever it is about.
							about, _, _ := strings.Cut(c.fault, ":")
							small := shrink(sql, func(s string) bool {
								return strings.HasPrefix(compare(s, true).fault, about)
							})
							faults = append(faults, fmt.Sprintf("Scan(%q): %s\n(FLIGHTPG_SEED=%d FLIGHTPG_FUZZ_I=%d: %q)",
								small, compare(small, true).fault, seed, i, sql))
							fmt.Println("disagreement:", faults[len(faults)-1]) // a run can take hours
						}
						mu.Unlock()
					}
				}
				mu.Lock()
				before := total().executions
				for i := range counts {
					totals[i].add(&counts[i])
				}
				stop := len(faults) >= 20
				if after := total().executions; before/1_000_000 != after/1_000_000 {
					fmt.Fprintf(os.Stdout, "%v: %s; %d disagreements\n", time.Since(start).Round(time.Second), summary(total()), len(faults))
				}
				mu.Unlock()
				if stop {
					return
				}
			}
		})
	}
	wg.Wait()
	for _, f := range faults {
		t.Error(f)
	}
	for i := range totals {
		t.Logf("%s: %s; of %d plain reads parsed whatever the verdict %d bypassed", kindNames[i], summary(&totals[i]), totals[i].sampled, totals[i].bypassed)
	}
	t.Logf("all: %s in %v; %d disagreements", summary(total()), time.Since(start).Round(time.Second), len(faults))
	for i := range totals {
		if tl := &totals[i]; testing.Verbose() {
			whys := make([]string, 0, len(tl.reasons))
			for why := range tl.reasons {
				whys = append(whys, why)
			}
			slices.SortFunc(whys, func(a, b string) int {
				return cmp.Or(cmp.Compare(tl.reasons[b], tl.reasons[a]), strings.Compare(a, b))
			})
			for _, why := range whys[:min(len(whys), 12)] {
				t.Logf("bypassed, %s: %d %s, as in %q", kindNames[i], tl.reasons[why], why, tl.examples[why])
			}
		}
	}
	plain := &totals[plainKind]
	if plain.accepted*10 < plain.executions {
		t.Errorf("the parser accepted %d of %d generated statements; want more", plain.accepted, plain.executions)
	}
	if plain.sampled >= 1000 && plain.bypassed*100 > plain.sampled*5 { // fewer say little
		t.Errorf("%d of %d generated plain reads bypass; want at most 5 %%", plain.bypassed, plain.sampled)
	}
}

// FuzzScanAgainstParser is the same for Go's own fuzzing.
func FuzzScanAgainstParser(f *testing.F) {
	loadBuiltins(f)
	texts := loadSeeds(f)
	for _, sql := range texts {
		f.Add(sql)
	}
	gen := &sqlcase{sqlgen: newSQLgen(), seeds: seedTokens(texts), texts: texts}
	for i := range uint64(500) {
		sql, _ := gen.make(1, i)
		f.Add(sql)
	}
	f.Fuzz(func(t *testing.T, sql string) {
		if c := compare(sql, true); c.fault != "" {
			t.Errorf("Scan(%q): %s", sql, c.fault)
		}
	})
}

// TestTreeWalker: the oracle itself must see what is no plain read.
func TestTreeWalker(t *testing.T) {
	for sql, want := range map[string]string{
		"SELECT lower(a), $3 FROM t JOIN pg_class USING (x)": "",
		"SELECT 1;;":                       "",
		"":                                 "not one SELECT",
		"SELECT 1; SELECT 2":               "not one SELECT",
		"DELETE FROM t":                    "not one SELECT",
		"EXPLAIN SELECT 1":                 "not one SELECT",
		"SELECT 1 INTO x":                  "intoClause",
		"SELECT 1 UNION (SELECT 1 INTO x)": "intoClause",
		"SELECT (SELECT 1 FOR SHARE)":      "lockingClause",
		"WITH a AS (DELETE FROM t RETURNING 1) TABLE a":              "DeleteStmt",
		`SELECT U&"\0076ol"()`:                                       "function vol",
		"SELECT 1 LIMIT pg_catalog.nextval('s')":                     "function pg_catalog.nextval",
		"SELECT app.lower('a')":                                      "function app.lower",
		"SELECT a OPERATOR(app.+) b":                                 "operator app.+",
		"SELECT a = ANY (SELECT 1 ORDER BY 1 USING OPERATOR(app.<))": "operator app.<",
		"SELECT * FROM t TABLESAMPLE system(1)":                      "sample that cannot be repeated",
		"SELECT * FROM t TABLESAMPLE odd(1) REPEATABLE (1)":          "sampling method odd",
		`SELECT * FROM "pg_locks"`:                                   "relation .pg_locks",
		"SELECT 1::pg_temp.x":                                        "type of pg_temp",
		"SELECT treat(a AS nextval)":                                 "function pg_catalog.nextval",
	} {
		tree, err := parse(sql)
		if err != nil {
			t.Errorf("%q: %v", sql, err)
			continue
		}
		w, err := walkTree(tree)
		if err != nil || w.bad != want {
			t.Errorf("walkTree of %q = %q, %v; want %q", sql, w.bad, err, want)
		}
	}
	w, err := walkTree(`{"a":"x\"y\\\u003c\n"}`)
	if err != nil || w.bad == "" {
		t.Errorf("walkTree = %+v, %v", w, err)
	}
}
