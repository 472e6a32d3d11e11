package catalog

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

func TestFunction(t *testing.T) {
	tests := map[Class]string{
		Safe: `lower count now age date_trunc jsonb_agg current_user current_schema current_schemas row_security_active
			has_table_privilege pg_has_role pg_get_viewdef to_tsvector generate_series uuid jsonb text int4 left right
			concat to_char current_database any_value array_sort session_user like overlaps version pg_postmaster_start_time pg_my_temp_schema pg_is_other_temp_schema
			pg_relation_size pg_table_size pg_indexes_size pg_total_relation_size pg_database_size pg_tablespace_size pg_is_in_recovery`,
		Private: `random clock_timestamp timeofday pg_sleep gen_random_uuid uuidv7 currval lastval inet_server_addr pg_conf_load_time pg_backend_pid
			current_setting inet_client_addr pg_stat_get_numscans txid_current_if_assigned pg_current_wal_lsn pg_listening_channels
			pg_last_wal_replay_lsn pg_lock_status mxid_age pg_read_file`,
		NeutralWrite: `nextval setval pg_notify pg_advisory_xact_lock pg_try_advisory_xact_lock txid_current`,
		Denied: `set_config pg_advisory_lock pg_try_advisory_lock pg_advisory_unlock_all pg_terminate_backend
			pg_cancel_backend pg_reload_conf lo_create lo_get lo_export lo_import setseed query_to_xml table_to_xml
			cursor_to_xml schema_to_xmlschema ts_stat ts_rewrite pg_export_snapshot pg_stat_reset
			pg_import_system_collations pg_input_is_valid pg_switch_wal domain_in pg_logical_slot_get_changes
			pg_logical_slot_peek_changes pg_replication_origin_session_setup binary_upgrade_set_next_pg_type_oid`,
		Unknown: `vol_f dblink dblink_exec crosstab treat coalesce select Lower LOWER void
			pg_read_file_old pg_stat_get_buf_written_backend uuid_generate_v4`,
	}
	for want, names := range tests {
		for _, name := range strings.Fields(names) {
			if got := Function(name); got != want {
				t.Errorf("Function(%q) = %v; want %v", name, got, want)
			}
		}
	}
	for _, name := range []string{"", " lower", "lower(", "пример"} {
		if got := Function(name); got != Unknown {
			t.Errorf("Function(%q) = %v; want unknown", name, got)
		}
	}
}

func TestLookup(t *testing.T) {
	for name, want := range map[string]Info{
		"lower":          {Safe, false, 15, Joined},
		"any_value":      {Safe, false, 16, Joined},
		"array_sort":     {Safe, false, 18, Joined},
		"random":         {Private, true, 15, Alone},
		"version":        {Safe, false, 15, Apart},
		"pg_backend_pid": {Private, false, 15, Alone},
		"pg_table_size":  {Safe, true, 15, Apart},
		"none":           {},
	} {
		if got := Lookup(name); got != want {
			t.Errorf("Lookup(%q) = %+v; want %+v", name, got, want)
		}
	}
}

func TestSessionView(t *testing.T) {
	for _, name := range strings.Fields(`pg_settings pg_stat_activity pg_stat_user_tables pg_statio_all_tables pg_locks
		pg_cursors pg_prepared_statements pg_sequences pg_timezone_names pg_replication_slots pg_stat_statements
		pg_stat_io pg_wait_events pg_shmem_allocations`) {
		if !SessionView(name) {
			t.Errorf("SessionView(%q) = false", name)
		}
	}
	for _, name := range strings.Fields(`pg_class pg_stats pg_stats_ext pg_indexes pg_tables pg_views pg_roles pg_user
		pg_user_mappings tables columns routines table_privileges t PG_SETTINGS pg_stat pg_statistic`) {
		if SessionView(name) {
			t.Errorf("SessionView(%q) = true", name)
		}
	}
}

func TestServerSetting(t *testing.T) {
	for _, name := range strings.Fields(`server_version server_version_num Server_Version max_connections block_size data_directory
		shared_buffers wal_level server_encoding lc_collate max_wal_size autovacuum listen_addresses log_timezone`) {
		if !ServerSetting(name) {
			t.Errorf("ServerSetting(%q) = false", name)
		}
	}
	// Set by anybody, by superusers, or when a session begins; of the session itself.
	for _, name := range strings.Fields(`work_mem TimeZone search_path statement_timeout DateStyle log_statement role app.tenant
		is_superuser session_authorization in_hot_standby transaction_isolation transaction_read_only application_name
		client_encoding standard_conforming_strings log_connections post_auth_delay row_security default_transaction_read_only
		session_preload_libraries lc_messages track_counts effective_cache_size`) {
		if ServerSetting(name) {
			t.Errorf("ServerSetting(%q) = true", name)
		}
	}
	for _, name := range []string{"", " server_version", "server_version ", "'server_version"} {
		if ServerSetting(name) {
			t.Errorf("ServerSetting(%q) = true", name)
		}
	}
}

// TestGenerated holds the generated file to what the lookups rely on.
func TestGenerated(t *testing.T) {
	src, err := os.ReadFile("builtins_gen.go")
	if err != nil {
		t.Fatal(err)
	}
	functions, views, ok := strings.Cut(string(src), "func sessionView")
	views, _, _ = strings.Cut(views, "\n}\n")
	if !ok {
		t.Fatal("no views in builtins_gen.go")
	}
	names := regexp.MustCompile(`"([^"]*)"`)
	for _, m := range names.FindAllStringSubmatch(functions, -1) {
		// A longer name would be cut by the server before it is looked up.
		if info := Lookup(m[1]); len(m[1]) > 63 || info.Class == Unknown || info.Since < Oldest || info.Since > Newest {
			t.Errorf("%q: %+v", m[1], info)
		}
		if info := Lookup(m[1]); info.Class == Safe && info.Volatile && m[1] != "pg_is_in_recovery" && !strings.HasSuffix(m[1], "_size") {
			t.Errorf("%q is safe and volatile", m[1])
		}
	}
	for _, m := range names.FindAllStringSubmatch(views, -1) {
		if !strings.HasPrefix(m[1], "pg_") {
			t.Errorf("view %q does not start with pg_", m[1])
		}
	}
}

func BenchmarkFunction(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		Function("count")
		Function("no_such_function")
	}
}
