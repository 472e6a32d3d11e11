package judge

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/flightpg/flightpg/internal/catalog"
	"github.com/flightpg/flightpg/internal/sqlscan"
)

// TestExempt: a table with row-level security is shared where the policies do not apply to
// the role, and only as far as it is the role that reads it. The policies say themselves
// whether they were asked.
func TestExempt(t *testing.T) {
	conn := connect(t, database(t))
	suffix := fmt.Sprintf("_%d", time.Now().UnixNano())
	roles := []string{"owner", "member", "bypass", "subject"}
	run(t, conn, strings.NewReplacer("{owner}", "owner"+suffix, "{member}", "member"+suffix, "{bypass}", "bypass"+suffix, "{subject}", "subject"+suffix).Replace(`
		CREATE ROLE {owner}; CREATE ROLE {subject}; CREATE ROLE {bypass} BYPASSRLS; CREATE ROLE {member} IN ROLE {owner};
		GRANT ALL ON SCHEMA public TO {owner}, {subject};
		CREATE SEQUENCE hits;
		SELECT nextval('hits');
		CREATE FUNCTION hit() RETURNS bool VOLATILE SECURITY DEFINER LANGUAGE plpgsql AS $$ BEGIN PERFORM nextval('hits'); RETURN true; END $$;
		SET ROLE {owner};
		CREATE TABLE doc (id int PRIMARY KEY);
		CREATE TABLE forced (id int PRIMARY KEY);
		CREATE TABLE part (id int) PARTITION BY LIST (id);
		CREATE TABLE part_1 PARTITION OF part FOR VALUES IN (1);
		CREATE TABLE front (id int); CREATE TABLE behind (id int);
		INSERT INTO front VALUES (1); INSERT INTO behind VALUES (1);
		INSERT INTO doc VALUES (1); INSERT INTO forced VALUES (1); INSERT INTO part VALUES (1);
		CREATE VIEW v_owner AS SELECT id FROM doc;
		CREATE VIEW v_invoker WITH (security_invoker) AS SELECT id FROM doc;
		CREATE VIEW v_not_invoker WITH (security_invoker = off, security_barrier) AS SELECT id FROM doc;
		GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC;
		SET ROLE {subject};
		CREATE VIEW v_subject AS SELECT id FROM doc;
		CREATE VIEW v_subject_over_invoker AS SELECT id FROM v_invoker;
		CREATE VIEW v_subject_over_owner AS SELECT id FROM v_owner;
		CREATE VIEW v_subject_part AS SELECT id FROM part;
		CREATE VIEW v_subject_front AS SELECT id FROM front;
		CREATE FUNCTION definer_front() RETURNS bigint STABLE SECURITY DEFINER BEGIN ATOMIC SELECT count(*) FROM front; END;
		CREATE FUNCTION definer() RETURNS bigint STABLE SECURITY DEFINER BEGIN ATOMIC SELECT count(*) FROM doc; END;
		SET ROLE {owner};
		CREATE VIEW v_owner_over_subject AS SELECT id FROM v_subject;
		CREATE POLICY p ON doc USING (hit()); CREATE POLICY p ON forced USING (hit()); CREATE POLICY p ON part USING (hit());
		CREATE POLICY p ON front USING (EXISTS (SELECT FROM behind)); CREATE POLICY p ON behind USING (hit());
		ALTER TABLE front ENABLE ROW LEVEL SECURITY; ALTER TABLE behind ENABLE ROW LEVEL SECURITY;
		ALTER TABLE doc ENABLE ROW LEVEL SECURITY;
		ALTER TABLE forced ENABLE ROW LEVEL SECURITY; ALTER TABLE forced FORCE ROW LEVEL SECURITY;
		ALTER TABLE part ENABLE ROW LEVEL SECURITY;
		RESET ROLE;
		GRANT SELECT ON ALL TABLES IN SCHEMA public TO PUBLIC; GRANT SELECT ON SEQUENCE hits TO PUBLIC`))
	t.Cleanup(func() {
		for _, role := range roles {
			_, _ = conn.Exec(context.Background(), "RESET ROLE; DROP OWNED BY "+role+suffix+" CASCADE; DROP ROLE "+role+suffix)
		}
	})
	as := func(role string) {
		if role == "superuser" {
			run(t, conn, "RESET ROLE")
		} else {
			run(t, conn, "SET ROLE "+role+suffix)
		}
	}
	everyone := append([]string{"superuser"}, roles...)
	sets, anyRole := map[string]*catalog.Set{}, map[string]*catalog.Set{}
	for _, role := range everyone {
		as(role)
		set, err := catalog.Load(t.Context(), queryFunc(conn), catalog.Options{Words: sqlscan.Words})
		if err != nil {
			t.Fatal(err)
		}
		sets[role], anyRole[role] = set, load(t, conn)
	}
	// Who gets it shared. Those for whom it is not, though no policy is asked, are in clean.
	for _, test := range []struct {
		sql    string
		shared []string
		clean  []string
	}{
		{"SELECT id FROM doc", []string{"superuser", "owner", "member", "bypass"}, nil},
		{"SELECT id FROM doc WHERE id IN (SELECT id FROM part)", []string{"superuser", "owner", "member", "bypass"}, nil},
		{"SELECT id FROM part", []string{"superuser", "owner", "member", "bypass"}, nil},
		{"SELECT id FROM part_1", []string{"superuser", "owner", "member", "bypass", "subject"}, nil},
		{"SELECT id FROM forced", []string{"superuser", "bypass"}, nil},
		{"SELECT id FROM v_invoker", []string{"superuser", "owner", "member", "bypass"}, nil},
		// A view is read as its owner: whether that one is exempt is not asked.
		{"SELECT id FROM v_owner", []string{"owner"}, []string{"superuser", "member", "bypass", "subject"}},
		{"SELECT id FROM v_not_invoker", []string{"owner"}, []string{"superuser", "member", "bypass", "subject"}},
		{"SELECT id FROM v_subject", nil, nil},
		{"SELECT id FROM v_subject_part", nil, nil},
		{"SELECT id FROM v_owner_over_subject", nil, nil},
		{"SELECT id FROM v_subject_over_invoker", nil, []string{"superuser", "owner", "member", "bypass"}},
		{"SELECT id FROM v_subject_over_owner", nil, []string{"superuser", "owner", "member", "bypass", "subject"}},
		{"SELECT definer()", nil, nil},
		// A policy reads a table with a policy.
		{"SELECT id FROM front", []string{"superuser", "owner", "member", "bypass"}, nil},
		{"SELECT id FROM v_subject_front", nil, nil},
		{"SELECT definer_front()", nil, nil},
	} {
		for _, role := range everyone {
			as(role)
			set := sets[role]
			before := rowHits(t, conn)
			run(t, conn, test.sql)
			asked := rowHits(t, conn) != before
			shared := slices.Contains(test.shared, role)
			if clean := shared || slices.Contains(test.clean, role); asked == clean {
				t.Errorf("as %s, %s: the policy was asked: %v; the table says %v", role, test.sql, asked, !clean)
			}
			if v := Judge(test.sql, set, Options{}); shared != (v.Class == sqlscan.Read) {
				t.Errorf("as %s, Judge(%q) = %v, %v: %s; want shared %v", role, test.sql, v.Class, v.Reason, v.Hint(), shared)
			}
			// flight_rls lets policies pass, but none that calls what must not be shared.
			if v := Judge(test.sql, set, Options{RLS: true}); asked && v.Class == sqlscan.Read {
				t.Errorf("as %s with RLS, Judge(%q) = %v; want it not shared", role, test.sql, v.Class)
			}
			if v := Judge(test.sql, set, Options{RLS: true}); asked && v.Company != Alone {
				t.Errorf("as %s with RLS, Judge(%q): company %v", role, test.sql, v.Company)
			}
			// Where sessions have several roles, nobody is exempt.
			if v := Judge(test.sql, anyRole[role], Options{}); v.Class == sqlscan.Read && test.sql != "SELECT id FROM part_1" {
				t.Errorf("as %s among others, Judge(%q) = %v; want it not shared", role, test.sql, v.Class)
			}
		}
	}
	run(t, conn, "RESET ROLE")
}

// rowHits is hits for any role.
func rowHits(t *testing.T, conn *pgx.Conn) (n int64) {
	t.Helper()
	if err := conn.QueryRow(t.Context(), "SELECT pg_sequence_last_value('public.hits')").Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}
