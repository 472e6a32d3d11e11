package catalog

import "strings"

// misdeclared reports whether a function of a shipped extension, by the symbol of its
// code in C, does more than the STABLE or IMMUTABLE that it is declared, and what.
// PostgreSQL cannot tell, and there is no body to read. class is what it does at worst.
//
// A symbol is the name of the C function, which extensions keep when they move to
// another schema and mostly when they get another version; those here are long enough to
// belong to one extension. Functions of an extension that are not in here are as
// declared, as far as make extensions and what is known of them tell, or read what does
// not change while sessions use it: settings, dictionaries, spatial_ref_sys, units. A
// function with a setting of its own is here only if it does not take it from a GUC:
// whatever sets it is here or volatile, and so its session serves nobody else.
func misdeclared(symbol string) (cause Cause, class Class, wrong bool) {
	switch symbol {
	// tablefunc: an argument is a query; connectby's name a table and its columns.
	case "crosstab", "crosstab_hash", "connectby_text", "connectby_text_serial":
		return RunsSQL, Denied, true
	// xml2: arguments are put together to a query.
	case "xpath_table":
		return RunsSQL, Denied, true

	// isn, up to 1.2: whether its types take what is not valid, in this session.
	case "accept_weak_input":
		return Misdeclared, Denied, true
	case "weak_input_status":
		return Misdeclared, Private, true

	// address_standardizer: tables or views by name.
	case "standardize_address", "standardize_address1":
		return RunsSQL, Denied, true

	// postgis: it makes a table.
	case "pgis_tablefromflatgeobuf":
		return Misdeclared, Denied, true
	// … and what an index holds now, for every transaction.
	case "_postgis_gserialized_index_extent":
		return Misdeclared, Private, true

	// postgis_raster: expressions; functions by OID, which may be volatile ones.
	case "RASTER_mapAlgebraExpr", "RASTER_mapAlgebra2", "RASTER_nMapAlgebraExpr",
		"RASTER_mapAlgebraFct", "RASTER_mapAlgebraFctNgb", "RASTER_nMapAlgebra",
		// … and tables or views by name.
		"RASTER_valueCountCoverage", "RASTER_summaryStatsCoverage", "RASTER_histogramCoverage", "RASTER_quantileCoverage":
		return RunsSQL, Denied, true
	// … samples at random, from the time of day, if they are told to look at a part only.
	case "RASTER_summaryStats", "RASTER_summaryStats_transfn", "RASTER_histogram", "RASTER_quantile",
		// … and files.
		"RASTER_addBandOutDB", "RASTER_setBandPath", "RASTER_getBandFileSize", "RASTER_getBandFileTimestamp":
		return Misdeclared, Private, true

	// postgis_topology: tables or views in a schema by name.
	case "GetEdgeByPoint", "GetFaceContainingPoint", "GetNodeByPoint", "GetRingEdges", "ST_GetFaceEdges", "ST_GetFaceGeometry":
		return RunsSQL, Denied, true

	// hll: defaults and forms of output of this session.
	case "hll_set_defaults", "hll_set_max_sparse", "hll_set_output_version":
		return Misdeclared, Denied, true

	// orafce: the generator of this session.
	case "dbms_random_initialize", "dbms_random_seed_int", "dbms_random_seed_varchar", "dbms_random_terminate", "dbms_random_string":
		return Misdeclared, Denied, true
	// … its sorting; the one that set_nls_sort has set.
	case "ora_set_nls_sort":
		return Misdeclared, Denied, true
	case "ora_nlssort":
		return Misdeclared, Private, true
	// … its holidays and the sign that stands for a value.
	case "plvdate_add_bizdays", "plvdate_bizdays_between", "plvdate_isbizday", "plvdate_nearest_bizday",
		"plvdate_next_bizday", "plvdate_prev_bizday", "plvsubst_string_array", "plvsubst_string_string":
		return Misdeclared, Private, true

	// pg_repack: it swaps indexes; it locks tables against everybody.
	case "repack_index_swap", "repack_get_table_and_inheritors":
		return Misdeclared, Denied, true

	// pglogical: a table by name, with the filters of replication sets.
	case "pglogical_table_data_filtered":
		return RunsSQL, Denied, true
	// … what a worker is doing.
	case "pglogical_show_subscription_status":
		return Misdeclared, Private, true

	// powa: the server's statistics.
	case "powa_stat_all_rel", "powa_stat_user_functions":
		return Misdeclared, Private, true

	// pg_snakeoil: files with signatures, as this session has read them.
	case "so_update_signatures":
		return Misdeclared, Denied, true
	case "so_is_infected", "so_virus_name":
		return Misdeclared, Private, true

	// omnidb_plpgsql_debugger: it connects to a database and stays connected.
	case "omnidb_enable_debugger":
		return Misdeclared, Denied, true
	}
	// pgrouting: each takes the queries that give edges, vertices and the like.
	if strings.HasPrefix(symbol, "_pgr_") {
		return RunsSQL, Denied, true
	}
	return 0, 0, false
}

// leavesNothing reports whether a function of a shipped extension that is declared VOLATILE,
// by its symbol, does nothing but to give each call its own answer: the session is as it was.
func leavesNothing(symbol string) bool {
	switch symbol {
	// pgcrypto
	case "pg_gen_salt", "pg_gen_salt_rounds", "pg_random_bytes", "pg_random_uuid", "pg_crypt",
		"pgp_sym_encrypt_text", "pgp_sym_encrypt_bytea", "pgp_pub_encrypt_text", "pgp_pub_encrypt_bytea",
		// uuid-ossp
		"uuid_generate_v1", "uuid_generate_v1mc", "uuid_generate_v4":
		return true
	}
	return false
}
