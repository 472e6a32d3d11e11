// Command gen writes builtins_gen.go and ../sqlscan/keywords_gen.go from the
// system catalogs of running PostgreSQL servers.
//
//	go run ./gen -dsn postgres://…/postgres [-dsn …]
//
// With several servers the lists are merged: the worst class of a name wins, and
// each name carries the first major version that has it. A name that a newer
// server has dropped is left out, since a user's function may take its place
// there. The same server versions give the same bytes.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"go/format"
	"log"
	"maps"
	"os"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/catalog"
)

// A rule moves functions out of the class that their volatility suggests.
// Rules are tried in order; the first that matches a function decides.
type rule struct {
	names  string // regular expression for the whole name
	class  catalog.Class
	reason string
}

// rules holds every decision made by hand. What no rule matches is Denied when
// volatile or not callable from SQL, and Safe when stable or immutable.
var rules = []rule{
	// Stable or immutable, yet not to be shared.
	{
		`pg_backend_pid|inet_client_addr|inet_client_port|pg_listening_channels|pg_cursor|pg_prepared_statement|pg_trigger_depth|pg_lock_status`,
		catalog.Private, "state of the backend",
	},
	{
		`inet_server_addr|inet_server_port|pg_conf_load_time|pg_config|pg_get_replication_slots|icu_unicode_version|unicode_version`,
		catalog.Private, "of the connection or the backend, or differs across the hosts of one DSN",
	},
	{
		// As current_schemas, and most of information_schema, which these filter.
		`pg_my_temp_schema|pg_is_other_temp_schema`,
		catalog.Safe, "a pristine session has no temporary schema",
	},
	{
		// With several hosts nothing is shared, unless all sessions go to the primary.
		`version|pg_postmaster_start_time`,
		catalog.Safe, "the same for all sessions of a server, as long as it runs",
	},
	{
		`txid_current_if_assigned|pg_current_xact_id_if_assigned|txid_current_snapshot|pg_current_snapshot|mxid_age`,
		catalog.Private, "identity of the caller's transaction or snapshot",
	},
	{
		`txid_current|pg_current_xact_id`,
		catalog.NeutralWrite, "assigns a transaction id",
	},
	{
		`current_setting|pg_show_all_settings|pg_settings_get_flags|pg_client_encoding|get_current_ts_config`,
		catalog.Private, "the session's settings",
	},
	{
		`pg_stat_get_.*|pg_stat_have_stats|pg_timezone_names|pg_timezone_abbrevs.*|pg_relation_filepath|pg_available_extensions|pg_available_extension_versions|pg_extension_update_paths|pg_tablespace_location|pg_tablespace_databases|pg_numa_available|pg_get_sequence_data`,
		catalog.Private, "state of the server outside snapshots",
	},
	{
		`pg_event_trigger_.*`,
		catalog.Denied, "only inside event triggers",
	},
	{
		`(table|schema|database)_to_xml.*`,
		catalog.Denied, "reads relations named by a string, views included",
	},
	{
		`pg_input_is_valid|pg_input_error_info`,
		catalog.Denied, "runs the checks of a domain named by a string",
	},
	{
		`satisfies_hash_partition`,
		catalog.Denied, "runs the support functions of a table named by an oid",
	},

	// Volatile, but known to be harmless to the session.
	{
		`random|random_normal|gen_random_uuid|uuidv4|uuidv7|array_sample|array_shuffle`,
		catalog.Private, "a new value for every call",
	},
	{
		`clock_timestamp|timeofday|pg_sleep|pg_sleep_for|pg_sleep_until`,
		catalog.Private, "the clock of the call itself",
	},
	{
		`currval|lastval|pg_sequence_last_value`,
		catalog.Private, "sequence state, which no snapshot covers",
	},
	{
		`current_query|pg_jit_available|pg_get_backend_memory_contexts|pg_blocking_pids|pg_safe_snapshot_blocking_pids|pg_notification_queue_usage|pg_collation_actual_version|pg_database_collation_actual_version`,
		catalog.Private, "reads the state of backends",
	},
	{
		// No snapshot covers them: a flight's value is one that was true while it ran, as
		// the caller's own would be. Temporary tables are of pinned sessions.
		`pg_(relation|table|indexes|total_relation|database|tablespace)_size`,
		catalog.Safe, "the same for everybody at a moment, and slow to find out",
	},
	{
		`pg_partition_tree|pg_partition_ancestors|pg_column_toast_chunk_id`,
		catalog.Private, "reads storage, which no snapshot covers",
	},
	{
		// Likewise; a promotion changes it for all sessions at once.
		`pg_is_in_recovery`,
		catalog.Safe, "the same for all sessions of a server at a moment",
	},
	{
		`pg_is_wal_replay_paused|pg_get_wal_replay_pause_state|pg_current_wal_.*lsn|pg_last_wal_(receive|replay)_lsn|pg_last_xact_replay_timestamp|pg_control_(checkpoint|init|recovery|system)|pg_get_wal_resource_managers|pg_get_wal_summarizer_state|pg_available_wal_summaries|pg_wal_summary_contents`,
		catalog.Private, "reads the state of the WAL",
	},
	{
		`pg_xact_status|txid_status|pg_xact_commit_timestamp|pg_xact_commit_timestamp_origin|pg_last_committed_xact|pg_get_multixact_members|pg_prepared_xact`,
		catalog.Private, "reads the state of transactions",
	},
	{
		`pg_get_shmem_allocations|pg_get_shmem_allocations_numa|pg_get_aios|pg_get_loaded_modules|pg_get_wait_events|pg_hba_file_rules|pg_ident_file_mappings|pg_show_all_file_settings|pg_show_replication_origin_status|pg_current_logfile|pg_ls_.*|pg_read_file|pg_read_binary_file|pg_stat_file|amvalidate`,
		catalog.Private, "reads files or server memory",
	},
	{
		`nextval|setval`,
		catalog.NeutralWrite, "sequences: seen by everybody, never rolled back",
	},
	{
		`pg_notify`,
		catalog.NeutralWrite, "delivered at commit",
	},
	{
		`pg_advisory_xact_lock(_shared)?|pg_try_advisory_xact_lock(_shared)?`,
		catalog.NeutralWrite, "released at the end of the transaction",
	},
}

// A companyRule says with what calls of functions may share a connection.
type companyRule struct {
	names   string // regular expression for the whole name
	company catalog.Company
	reason  string
}

// companyRules holds every such decision made by hand, in order, about Safe
// functions. What no rule matches is Joined if immutable in every overload and
// version, and Apart otherwise.
var companyRules = []companyRule{
	{
		`pg_get_.*def|pg_get_.*def_.*|pg_get_expr|pg_get_function_.*|pg_mcv_list_items|pg_describe_object|pg_identify_object.*`,
		catalog.Alone, "puts constants out with the functions of their types",
	},
	{
		`format_type|to_?regtype|to_?regtypemod|to_?regprocedure|to_?regoperator|regtype|regprocedure|regoperator|has_type_privilege|has_function_privilege|pg_get_object_address`,
		catalog.Alone, "reads or writes a type's modifiers with its functions",
	},
	{
		`pg_index(am)?(_column)?_has_property`,
		catalog.Alone, "asks an index's access method",
	},
	{
		`(pg|txid|has|inet|lo|ts|xml|xpath)_.*|age|.*xml.*|xpath|reg(class|collation|config|dictionary|namespace|oper|proc|role)|reg[a-z]+send|to_reg.*`,
		catalog.Apart, "by its family",
	},
	{
		`.*tsvector.*|.*tsquery.*|tsq_.*|setweight|strip|numnode|querytree`,
		catalog.Apart, "text search",
	},
	{
		`convert|convert_from|convert_to|to_ascii`,
		catalog.Apart, "conversions, which are found by name",
	},
	{
		`now|transaction_timestamp|statement_timestamp|make_timestamptz|timezone|date_trunc|date_part|extract|date_add|date_subtract|overlaps|generate_series|` +
			`(date|timestamp|timestamptz)_(eq|ne|lt|le|gt|ge|cmp)_(date|timestamp|timestamptz)|timestamptz_(pl|mi)_interval|interval_pl_timestamptz|` +
			`date|time|timetz|timestamp|timestamptz|interval`,
		catalog.Joined, "stable for the time zone, or the transaction's clock",
	},
	{
		`to_char|to_date|to_timestamp|to_number|numeric|money`,
		catalog.Joined, "stable for the locale",
	},
	{
		`concat|concat_ws|format|array_to_string|quote_literal|quote_nullable|anytextcat|textanycat|length`,
		catalog.Joined, "stable for the output functions of their arguments' types",
	},
	{
		`to_jsonb?|jsonb?_agg(_strict)?|jsonb?_object_agg(_unique)?(_strict)?|jsonb?_build_(array|object)|row_to_json|array_to_json`,
		catalog.Joined, "likewise",
	},
	{
		`current_user|session_user|current_schemas?|current_database`,
		catalog.Joined, "the same for the whole session, but for its settings",
	},
}

const functionsSQL = `
select p.oid, proname::text, provolatile = 'v', provolatile = 'i',
  exists (select from unnest(array(select unnest(proargtypes)) || prorettype) t where t in
    (select oid from pg_type where typnamespace = 'pg_catalog'::regnamespace and typname in
      ('internal','cstring','trigger','event_trigger','language_handler','fdw_handler','index_am_handler','tsm_handler','table_am_handler','pg_ddl_command')))
  or proname ~ '_(send|validator)$'
from pg_proc p where pronamespace = 'pg_catalog'::regnamespace and p.oid < 16384`

// Type names can be called like functions: uuid('…') is '…'::uuid.
const typesSQL = `
select typname::text from pg_type
where typnamespace = 'pg_catalog'::regnamespace and typtype in ('b','r','m') and typcategory <> 'A' and typname !~ '^_' and oid < 16384`

// What a view reaches: pg_depend omits pinned objects, so its rule is read.
const viewsSQL = `
select c.relname::text, m[1], m[2]::oid
from pg_rewrite r join pg_class c on c.oid = r.ev_class and c.relkind = 'v' and c.oid < 16384
  cross join regexp_matches(r.ev_action::text, ':(funcid|opfuncid|aggfnoid|winfnoid|relid) (\d+)', 'g') m
where r.ev_type = '1'`

// Columns of any type are put out with the functions of that type.
const anyColumnsSQL = `
select distinct c.relname::text from pg_attribute a join pg_class c on c.oid = attrelid
where atttypid = 'anyarray'::regtype and c.oid < 16384`

const systemViewsSQL = `select relname::text from pg_class where relkind = 'v' and oid < 16384`

const relationsSQL = `select oid, relname::text from pg_class where oid < 16384`

// Settings that no session can have a value of its own of: those that are built in or
// set when the server starts, and those of its configuration, which each session reads
// again before the first command that it gets after a reload.
const settingsSQL = `select lower(name), context in ('internal', 'postmaster', 'sighup') from pg_settings`

// sessionSettings are of these contexts, and still about the session or its transaction.
var sessionSettings = map[string]bool{"in_hot_standby": true, "is_superuser": true}

const keywordsSQL = `select word, catcode::text from pg_get_keywords()`

// A server is what was read from one of them.
type server struct {
	major     int
	full      string
	functions map[string]catalog.Info // Since is filled in by merge
	views     map[string]bool
	plain     map[string]bool   // views of any schema that call only what is Apart or Joined
	any       map[string]bool   // relations with columns of any type
	keywords  map[string]string // word: catcode
	settings  map[string]bool   // every setting: whether all sessions have one value
}

func newServer() *server {
	return &server{
		functions: map[string]catalog.Info{}, views: map[string]bool{}, plain: map[string]bool{}, any: map[string]bool{},
		keywords: map[string]string{}, settings: map[string]bool{},
	}
}

// read reads one server.
func read(ctx context.Context, dsn string) (*server, error) {
	conn, err := pgx.Connect(ctx, dsn)
	if err != nil {
		return nil, err
	}
	defer conn.Close(ctx)
	s := newServer()
	var num string
	if err := conn.QueryRow(ctx, "show server_version_num").Scan(&num); err != nil {
		return nil, err
	}
	n, err := strconv.Atoi(num)
	if err != nil {
		return nil, err
	}
	s.major, s.full = n/10000, num

	rules := compile()
	byOID := map[uint32]string{}
	callable := map[string]bool{}
	err = each(ctx, conn, functionsSQL, func(row pgx.CollectableRow) error {
		var oid uint32
		var name string
		var volatile, immutable, internal bool
		if err := row.Scan(&oid, &name, &volatile, &immutable, &internal); err != nil {
			return err
		}
		byOID[oid] = name
		info, ok := s.functions[name]
		if !ok {
			info.Company = catalog.Joined
		}
		if !immutable {
			info.Company = catalog.Apart
		}
		info.Volatile = info.Volatile || volatile
		class := catalog.Safe
		if volatile {
			class = catalog.Denied
		}
		if c, ok := decide(rules, name); ok {
			class, internal = c, false
		}
		// An overload that SQL cannot call taints its name only if volatile,
		// or if there is no other.
		if !internal {
			callable[name] = true
		}
		if !internal || volatile {
			info.Class = max(info.Class, class)
		}
		s.functions[name] = info
		return nil
	})
	if err != nil {
		return nil, err
	}
	for name, info := range s.functions {
		if !callable[name] {
			info.Class = catalog.Denied
			s.functions[name] = info
		}
	}
	types, err := strs(ctx, conn, typesSQL)
	if err != nil {
		return nil, err
	}
	for _, name := range types {
		if s.functions[name].Class == catalog.Unknown {
			s.functions[name] = catalog.Info{Class: catalog.Safe, Company: catalog.Joined}
		}
	}
	for name, info := range s.functions {
		info.Company = company(name, info)
		s.functions[name] = info
	}
	if err := s.readViews(ctx, conn, byOID); err != nil {
		return nil, err
	}
	err = each(ctx, conn, settingsSQL, func(row pgx.CollectableRow) error {
		var name string
		var shared bool
		err := row.Scan(&name, &shared)
		s.settings[name] = shared && !sessionSettings[name]
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, each(ctx, conn, keywordsSQL, func(row pgx.CollectableRow) error {
		var word, code string
		err := row.Scan(&word, &code)
		s.keywords[word] = code
		return err
	})
}

// readViews finds the views that reach a function which is not Safe, directly
// or through other views.
func (s *server) readViews(ctx context.Context, conn *pgx.Conn, functions map[uint32]string) error {
	relations := map[uint32]string{}
	err := each(ctx, conn, relationsSQL, func(row pgx.CollectableRow) error {
		var oid uint32
		var name string
		err := row.Scan(&oid, &name)
		relations[oid] = name
		return err
	})
	if err != nil {
		return err
	}
	views, err := strs(ctx, conn, systemViewsSQL)
	if err != nil {
		return err
	}
	for _, name := range views {
		s.plain[name] = true
	}
	anyColumns, err := strs(ctx, conn, anyColumnsSQL)
	if err != nil {
		return err
	}
	for _, name := range anyColumns {
		s.any[name] = true
		delete(s.plain, name)
	}
	over := map[string][]string{} // relation: views over it
	err = each(ctx, conn, viewsSQL, func(row pgx.CollectableRow) error {
		var view, kind string
		var oid uint32
		if err := row.Scan(&view, &kind, &oid); err != nil {
			return err
		}
		if kind == "relid" {
			if rel := relations[oid]; rel != view {
				over[rel] = append(over[rel], view)
			}
			return nil
		}
		// Functions outside pg_catalog are those of information_schema, which
		// only take catalog rows apart.
		name, ok := functions[oid]
		if ok && s.functions[name].Class != catalog.Safe {
			s.views[view] = true
		}
		if ok && s.functions[name].Company == catalog.Alone {
			delete(s.plain, view)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for grown := true; grown; {
		grown = false
		for rel, users := range over {
			for _, view := range users {
				if s.views[rel] && !s.views[view] {
					s.views[view], grown = true, true
				}
				// A view leaves the columns of any type out, or has them itself.
				if isView := slices.Contains(views, rel); isView && !s.plain[rel] && s.plain[view] {
					delete(s.plain, view)
					grown = true
				}
			}
		}
	}
	return nil
}

// each runs a query and calls f with each row.
func each(ctx context.Context, conn *pgx.Conn, sql string, f func(pgx.CollectableRow) error) error {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := f(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

func strs(ctx context.Context, conn *pgx.Conn, sql string) ([]string, error) {
	rows, err := conn.Query(ctx, sql)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

type compiled struct {
	re    *regexp.Regexp
	class catalog.Class
}

func compile() []compiled {
	var out []compiled
	for _, r := range rules {
		out = append(out, compiled{regexp.MustCompile(`^(?:` + r.names + `)$`), r.class})
	}
	return out
}

func decide(rules []compiled, name string) (catalog.Class, bool) {
	for _, r := range rules {
		if r.re.MatchString(name) {
			return r.class, true
		}
	}
	return 0, false
}

var companies = func() (list []*regexp.Regexp) {
	for _, r := range companyRules {
		list = append(list, regexp.MustCompile(`^(?:`+r.names+`)$`))
	}
	return list
}()

// company decides on a name. That is Joined in info if it is immutable.
func company(name string, info catalog.Info) catalog.Company {
	if info.Class != catalog.Safe {
		return catalog.Alone
	}
	for i, re := range companies {
		if re.MatchString(name) {
			return companyRules[i].company
		}
	}
	return info.Company
}

// merge puts the servers, oldest first, together.
func merge(servers []*server) *server {
	all := newServer()
	dropped := map[string]bool{}
	odd := map[string]bool{} // views that are not plain in some version
	for _, s := range servers {
		for name := range all.functions {
			if s.functions[name].Class == catalog.Unknown {
				dropped[name] = true
			}
		}
		for name, info := range s.functions {
			was, ok := all.functions[name]
			if !ok {
				was.Since, was.Company = s.major, info.Company
			}
			was.Company = min(was.Company, info.Company)
			was.Class = max(was.Class, info.Class)
			was.Volatile = was.Volatile || info.Volatile
			all.functions[name] = was
		}
		for name := range s.views {
			all.views[name] = true
			odd[name] = odd[name] || !s.plain[name]
		}
		for name := range s.plain {
			all.plain[name] = true
		}
		for name := range all.plain {
			odd[name] = odd[name] || !s.plain[name] // or the version does not have it
		}
		for name := range s.any {
			all.any[name] = true
		}
		for name, shared := range s.settings {
			was, ok := all.settings[name]
			all.settings[name] = shared && (was || !ok)
		}
		// Newer servers know more keywords; the newest category counts.
		for word, code := range s.keywords {
			all.keywords[word] = code
		}
	}
	for name := range dropped {
		delete(all.functions, name)
	}
	for name := range odd {
		if odd[name] {
			delete(all.plain, name)
		}
	}
	return all
}

func main() {
	log.SetFlags(0)
	var dsns []string
	flag.Func("dsn", "connection string of a server; may be repeated (default $FLIGHTPG_TEST_DSN)", func(s string) error {
		dsns = append(dsns, s)
		return nil
	})
	flag.Parse()
	if len(dsns) == 0 {
		if dsns = []string{os.Getenv("FLIGHTPG_TEST_DSN")}; dsns[0] == "" {
			log.Fatal("gen: no -dsn and no FLIGHTPG_TEST_DSN")
		}
	}
	var servers []*server
	for _, dsn := range dsns {
		s, err := read(context.Background(), dsn)
		if err != nil {
			log.Fatal("gen: ", err)
		}
		servers = append(servers, s)
	}
	slices.SortFunc(servers, func(a, b *server) int { return a.major - b.major })
	write("builtins_gen.go", builtins(servers))
	write("../sqlscan/keywords_gen.go", keywords(servers))
}

func write(file string, src []byte) {
	out, err := format.Source(src)
	if err != nil {
		log.Fatal("gen: ", file, ": ", err)
	}
	if err := os.WriteFile(file, out, 0o644); err != nil {
		log.Fatal("gen: ", err)
	}
}

// header opens a generated file.
func header(b *bytes.Buffer, pkg string, servers []*server) {
	var majors []string
	for _, s := range servers {
		majors = append(majors, strconv.Itoa(s.major))
	}
	fmt.Fprintf(b, "// Code generated by internal/catalog/gen from PostgreSQL %s. DO NOT EDIT.\n\npackage %s\n\n",
		strings.Join(majors, ", "), pkg)
}

// builtins prints the function and view lists as switches: they need no start-up
// work and no memory of their own.
func builtins(servers []*server) []byte {
	all := merge(servers)
	var b bytes.Buffer
	header(&b, "catalog", servers)
	fmt.Fprintf(&b, "// Oldest is the oldest major version that the lists cover, Newest the newest.\nconst (\nOldest = %d\nNewest = %d\n)\n\n",
		servers[0].major, servers[len(servers)-1].major)

	groups := map[catalog.Info][]string{}
	for name, info := range all.functions {
		groups[info] = append(groups[info], name)
	}
	infos := make([]catalog.Info, 0, len(groups))
	for info := range groups {
		infos = append(infos, info)
	}
	slices.SortFunc(infos, func(a, b catalog.Info) int {
		switch {
		case a.Class != b.Class:
			return int(a.Class) - int(b.Class)
		case a.Company != b.Company:
			return int(b.Company) - int(a.Company)
		case a.Since != b.Since:
			return a.Since - b.Since
		case a.Volatile == b.Volatile:
			return 0
		case b.Volatile:
			return -1
		}
		return 1
	})
	b.WriteString("func builtin(name string) Info {\nswitch name {\n")
	for _, info := range infos {
		cases(&b, groups[info])
		class := [...]string{"Unknown", "Safe", "Private", "NeutralWrite", "Denied"}[info.Class]
		company := [...]string{"Alone", "Apart", "Joined"}[info.Company]
		fmt.Fprintf(&b, "return Info{%s, %t, %d, %s}\n", class, info.Volatile, info.Since, company)
	}
	b.WriteString("}\nreturn Info{}\n}\n")

	list(&b, "sessionView", all.views)
	list(&b, "plainView", all.plain)
	list(&b, "anyColumns", all.any)
	maps.DeleteFunc(all.settings, func(_ string, shared bool) bool { return !shared })
	list(&b, "serverSetting", all.settings)
	return b.Bytes()
}

// list prints a function that reports whether a name is one of a list.
func list(b *bytes.Buffer, function string, names map[string]bool) {
	fmt.Fprintf(b, "\nfunc %s(name string) bool {\nswitch name {\n", function)
	cases(b, slices.Collect(maps.Keys(names)))
	b.WriteString("return true\n}\nreturn false\n}\n")
}

// cases prints one case clause, a few names to the line.
func cases(b *bytes.Buffer, names []string) {
	sort.Strings(names)
	b.WriteString("case ")
	width := 0
	for i, name := range names {
		q := strconv.Quote(name)
		if i > 0 {
			b.WriteString(",")
			if width += len(q) + 2; width > 90 {
				b.WriteString("\n")
				width = len(q)
			}
		}
		b.WriteString(q)
	}
	b.WriteString(":\n")
}

// keywords prints the SQL key words with their category.
func keywords(servers []*server) []byte {
	all := merge(servers)
	var words []string
	for w := range all.keywords {
		words = append(words, w)
	}
	sort.Strings(words)
	category := map[string]string{"U": "unreserved", "C": "columnName", "T": "functionName", "R": "reserved"}

	var b bytes.Buffer
	header(&b, "sqlscan", servers)
	b.WriteString("const (\nnotKeyword keyword = iota\n")
	for _, w := range words {
		fmt.Fprintf(&b, "%s\n", ident(w))
	}
	b.WriteString(")\n\nvar keywordList = [...]struct {\nword string\ncategory category\n}{\nnotKeyword: {},\n")
	for _, w := range words {
		fmt.Fprintf(&b, "%s: {%q, %s},\n", ident(w), w, category[all.keywords[w]])
	}
	b.WriteString("}\n")
	return b.Bytes()
}

// ident turns current_date into kwCurrentDate.
func ident(word string) string {
	var b strings.Builder
	b.WriteString("kw")
	for _, part := range strings.Split(word, "_") {
		b.WriteString(strings.ToUpper(part[:1]) + part[1:])
	}
	return b.String()
}
