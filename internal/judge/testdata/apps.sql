-- What the statements of apps.tsv read: the features of eleven kinds of applications. It is
-- made by the application's role, which owns all but what apps_admin.sql makes.

-- A web shop.
CREATE TYPE order_state AS ENUM ('cart', 'placed', 'paid', 'packed', 'shipped', 'returned', 'cancelled');
CREATE DOMAIN money_amount AS numeric(12, 2) CHECK (VALUE >= 0);
CREATE TABLE category (id serial PRIMARY KEY, parent_id int REFERENCES category, name text NOT NULL, slug citext UNIQUE, path ltree, position int NOT NULL DEFAULT 0);
CREATE TABLE product (id bigserial PRIMARY KEY, category_id int REFERENCES category, sku text UNIQUE NOT NULL, name text NOT NULL, description text,
	price money_amount NOT NULL, currency char(3) NOT NULL DEFAULT 'EUR', tags text[] NOT NULL DEFAULT '{}', attributes jsonb NOT NULL DEFAULT '{}', active bool NOT NULL DEFAULT true,
	search tsvector GENERATED ALWAYS AS (to_tsvector('simple', name || ' ' || coalesce(description, ''))) STORED, created_at timestamptz NOT NULL DEFAULT now());
CREATE TABLE stock (product_id bigint REFERENCES product, warehouse_id int, on_hand int NOT NULL, reserved int NOT NULL DEFAULT 0, PRIMARY KEY (product_id, warehouse_id));
CREATE TABLE customer (id bigserial PRIMARY KEY, email citext UNIQUE NOT NULL, name text, country char(2), settings hstore, created_at timestamptz NOT NULL DEFAULT now(), deleted_at timestamptz);
CREATE TABLE address (id bigserial PRIMARY KEY, customer_id bigint REFERENCES customer, kind text, line1 text, city text, postcode text, country char(2), is_default bool);
CREATE TABLE orders (id bigserial PRIMARY KEY, number text UNIQUE, customer_id bigint REFERENCES customer, state order_state NOT NULL DEFAULT 'cart', total money_amount, placed_at timestamptz, shipping jsonb, coupon_id int);
CREATE TABLE order_line (order_id bigint REFERENCES orders, line int, product_id bigint REFERENCES product, quantity int NOT NULL, unit_price money_amount, PRIMARY KEY (order_id, line));
CREATE TABLE coupon (id serial PRIMARY KEY, code text UNIQUE, percent int, valid daterange, uses int NOT NULL DEFAULT 0, max_uses int);
CREATE TABLE review (id bigserial PRIMARY KEY, product_id bigint REFERENCES product, customer_id bigint REFERENCES customer, stars int, body text, approved bool, created_at timestamptz DEFAULT now());
CREATE VIEW product_rating AS SELECT product_id, avg(stars)::numeric(3, 2) AS stars, count(*) AS reviews FROM review WHERE approved GROUP BY product_id;
CREATE MATERIALIZED VIEW best_sellers AS SELECT product_id, sum(quantity) AS sold FROM order_line GROUP BY product_id;
CREATE FUNCTION final_price(product bigint, customer bigint) RETURNS numeric LANGUAGE plpgsql STABLE AS $$
	DECLARE p numeric; BEGIN SELECT price INTO p FROM product WHERE id = $1; RETURN p * CASE WHEN customer IS NULL THEN 1 ELSE 0.95 END; END $$;
CREATE FUNCTION available(product bigint) RETURNS int LANGUAGE sql AS $$ SELECT sum(on_hand - reserved)::int FROM stock WHERE product_id = $1 $$;
CREATE FUNCTION next_order_number() RETURNS text LANGUAGE sql AS $$ SELECT 'O-' || nextval('orders_id_seq') $$;

-- A forum.
CREATE TABLE member (id serial PRIMARY KEY, name citext UNIQUE, email text, joined timestamptz, post_count int DEFAULT 0, last_seen timestamptz, role text, ip inet);
CREATE TABLE board (id serial PRIMARY KEY, title text, position int, topic_count int, post_count int);
CREATE TABLE topic (id bigserial PRIMARY KEY, board_id int REFERENCES board, author_id int REFERENCES member, title text, pinned bool, locked bool, views int, posted_at timestamptz, bumped_at timestamptz, deleted_at timestamptz);
CREATE TABLE post (id bigserial PRIMARY KEY, topic_id bigint REFERENCES topic, author_id int REFERENCES member, reply_to bigint, raw text, cooked text, likes int DEFAULT 0, posted_at timestamptz, search tsvector);
CREATE TABLE reaction (post_id bigint REFERENCES post, member_id int REFERENCES member, emoji text, at timestamptz, PRIMARY KEY (post_id, member_id, emoji));
CREATE TABLE topic_read (member_id int, topic_id bigint, last_post_id bigint, notify bool, PRIMARY KEY (member_id, topic_id));
CREATE TABLE notice (id bigserial PRIMARY KEY, member_id int, kind text, data jsonb, read bool DEFAULT false, at timestamptz);
CREATE TABLE badge (id serial PRIMARY KEY, name text, icon text);
CREATE TABLE member_badge (member_id int, badge_id int, granted_at timestamptz);

-- A wiki.
CREATE TABLE page (id bigserial PRIMARY KEY, namespace int, title text, latest bigint, touched timestamptz, length int, is_redirect bool, UNIQUE (namespace, title));
CREATE TABLE revision (id bigserial PRIMARY KEY, page_id bigint REFERENCES page, parent_id bigint, author_id int, comment text, minor bool, sha1 text, at timestamptz, content text);
CREATE TABLE page_link (from_id bigint, namespace int, title text);
CREATE TABLE category_link (from_id bigint, name text, sort_key text COLLATE "C");
CREATE TABLE watch (user_id int, page_id bigint, seen_at timestamptz);
CREATE TABLE file (id bigserial PRIMARY KEY, name text, size bigint, width int, height int, mime text, meta xml, data bytea, at timestamptz);
CREATE TABLE recent_change (id bigserial, at timestamptz, page_id bigint, user_id int, kind text, old_len int, new_len int, patrolled bool);

-- Monitoring.
CREATE TABLE host (id serial PRIMARY KEY, name text, address inet, mac macaddr, labels jsonb, agent_version text, maintenance tstzrange, last_seen timestamptz);
CREATE TABLE metric (id serial PRIMARY KEY, host_id int REFERENCES host, name text, unit text, labels jsonb);
CREATE TABLE sample (metric_id int, at timestamptz NOT NULL, value float8) PARTITION BY RANGE (at);
CREATE TABLE sample_2025 PARTITION OF sample FOR VALUES FROM ('2025-01-01') TO ('2026-01-01');
CREATE TABLE sample_2026 PARTITION OF sample FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
CREATE TABLE alert (id bigserial PRIMARY KEY, metric_id int, severity int, state text, opened_at timestamptz, closed_at timestamptz, message text, acknowledged_by int);
CREATE TABLE check_result (id bigserial PRIMARY KEY, host_id int, name text, status int, output text, took interval, at timestamptz);
CREATE UNLOGGED TABLE heartbeat (host_id int PRIMARY KEY, at timestamptz);
CREATE VIEW open_alerts AS SELECT a.*, h.name AS host FROM alert a JOIN metric m ON m.id = a.metric_id JOIN host h ON h.id = m.host_id WHERE closed_at IS NULL;

-- A job queue.
CREATE TABLE job (id bigserial PRIMARY KEY, queue text NOT NULL, kind text, args jsonb, state text, priority int, attempt int, max_attempts int, run_at timestamptz, started_at timestamptz, finished_at timestamptz, worker text, errors jsonb[], unique_key bytea, tags varchar(64)[]);
CREATE TABLE worker (id text PRIMARY KEY, hostname text, pid int, queues text[], started_at timestamptz, beat_at timestamptz);
CREATE TABLE schedule (id serial PRIMARY KEY, cron text, kind text, args jsonb, next_run timestamptz, enabled bool);
CREATE TABLE leader (name text PRIMARY KEY, holder text, elected_at timestamptz, expires_at timestamptz);

-- Maps.
CREATE TABLE place (id bigserial PRIMARY KEY, name text, kind text, at point, lat float8, lon float8, area polygon, tags hstore, rank int, country char(2));
CREATE TABLE track (id bigserial PRIMARY KEY, user_id int, name text, line path, bounds box, started timestamptz, length_m float8);
CREATE TABLE zone (id serial PRIMARY KEY, name text, area polygon, center point, radius float8, ring circle);
CREATE TABLE route_edge (id bigserial PRIMARY KEY, source bigint, target bigint, cost float8);
CREATE FUNCTION tile_bounds(z int, x int, y int) RETURNS box LANGUAGE sql IMMUTABLE AS $$ SELECT box(point(x * 360.0 / (1 << z) - 180, y), point((x + 1) * 360.0 / (1 << z) - 180, y + 1)) $$;

-- Software as a service for many tenants. To its owner row-level security does not apply,
-- unless it is forced.
CREATE TABLE tenant (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), slug text UNIQUE, plan text, seats int, created_at timestamptz, suspended bool DEFAULT false, config jsonb);
CREATE TABLE account (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid REFERENCES tenant, email citext, name text, role text, last_login timestamptz, UNIQUE (tenant_id, email));
CREATE TABLE project (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid, name text, archived bool, created_by uuid, created_at timestamptz);
CREATE TABLE task (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid, project_id uuid REFERENCES project, title text, status text, assignee uuid, due date, position numeric, custom jsonb, updated_at timestamptz);
CREATE TABLE comment (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid, task_id uuid, author uuid, body text, at timestamptz);
CREATE TABLE invoice (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid, period daterange, amount money_amount, state text, paid_at timestamptz);
CREATE TABLE usage_event (tenant_id uuid, kind text, quantity bigint, at timestamptz);
CREATE TABLE feature_flag (name text PRIMARY KEY, enabled bool, rollout int, tenants uuid[]);
CREATE TABLE secret (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), tenant_id uuid, name text, sealed bytea);
CREATE TABLE audit (id bigserial PRIMARY KEY, tenant_id uuid, actor uuid, action text, target text, diff jsonb, at timestamptz);
CREATE FUNCTION current_tenant() RETURNS uuid LANGUAGE sql STABLE AS $$ SELECT nullif(current_setting('app.tenant', true), '')::uuid $$;
CREATE POLICY by_tenant ON secret USING (tenant_id = current_tenant());
ALTER TABLE secret ENABLE ROW LEVEL SECURITY; ALTER TABLE secret FORCE ROW LEVEL SECURITY;
CREATE POLICY by_tenant ON audit USING (tenant_id = current_tenant());
ALTER TABLE audit ENABLE ROW LEVEL SECURITY;
CREATE VIEW my_audit AS SELECT * FROM audit;

-- An identity server.
CREATE TABLE realm (id serial PRIMARY KEY, name text UNIQUE, settings jsonb, enabled bool);
CREATE TABLE identity (id uuid PRIMARY KEY, realm_id int REFERENCES realm, username citext, email citext, verified bool, created_at timestamptz, traits jsonb, state text);
CREATE TABLE credential (id uuid PRIMARY KEY, identity_id uuid REFERENCES identity, kind text, hash text, config jsonb, created_at timestamptz);
CREATE TABLE client (id text PRIMARY KEY, realm_id int, secret_hash text, redirect_uris text[], scopes text[], grants text[], enabled bool);
CREATE TABLE login_session (id uuid PRIMARY KEY, identity_id uuid, token_hash bytea UNIQUE, ip inet, agent text, issued_at timestamptz, expires_at timestamptz, revoked bool);
CREATE TABLE grant_token (id bigserial PRIMARY KEY, client_id text, identity_id uuid, kind text, hash bytea, scopes text[], issued_at timestamptz, expires_at timestamptz, used_at timestamptz);
CREATE TABLE role (id serial PRIMARY KEY, realm_id int, name text, parent_id int);
CREATE TABLE role_member (role_id int, identity_id uuid);
CREATE TABLE permission (role_id int, resource text, action text);
CREATE TABLE login_attempt (username citext, ip inet, ok bool, at timestamptz);
CREATE FUNCTION has_permission(who uuid, what text, act text) RETURNS bool LANGUAGE sql STABLE AS $$
	WITH RECURSIVE r AS (SELECT role_id FROM role_member WHERE identity_id = $1 UNION SELECT ro.parent_id FROM role ro JOIN r ON ro.id = r.role_id)
	SELECT EXISTS (SELECT 1 FROM permission p JOIN r USING (role_id) WHERE p.resource = $2 AND p.action = $3) $$;
CREATE FUNCTION password_ok(username citext, password text) RETURNS bool LANGUAGE sql AS $$
	SELECT EXISTS (SELECT 1 FROM credential c JOIN identity i ON i.id = c.identity_id WHERE i.username = $1 AND c.hash = crypt($2, c.hash)) $$;

-- Migration tools.
CREATE TABLE schema_migrations (version bigint PRIMARY KEY, dirty bool);
CREATE TABLE migration_history (rank int PRIMARY KEY, version text, description text, type text, script text, checksum int, installed_by text, installed_on timestamp, execution_time int, success bool);
CREATE TABLE changelog_lock (id int PRIMARY KEY, locked bool, granted timestamp, locked_by text);
CREATE TABLE goose_version (id serial PRIMARY KEY, version_id bigint, is_applied bool, tstamp timestamp DEFAULT now());

-- Dashboards.
CREATE TABLE event (id bigserial PRIMARY KEY, name text, user_id bigint, session_id uuid, props jsonb, at timestamptz, country char(2), device text, revenue numeric);
CREATE TABLE daily (day date, metric text, value numeric, PRIMARY KEY (day, metric));
CREATE TABLE dashboard (id serial PRIMARY KEY, name text, owner int, layout jsonb, updated_at timestamptz);
CREATE TABLE saved_query (id serial PRIMARY KEY, name text, sql text, params jsonb);
CREATE VIEW table_sizes AS SELECT n.nspname AS schema, c.relname AS name, pg_total_relation_size(c.oid) AS bytes, c.reltuples::bigint AS rows
	FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname NOT LIKE 'pg\_%';
CREATE VIEW index_usage AS SELECT relname, indexrelname, idx_scan FROM pg_stat_user_indexes;
CREATE VIEW columns_of AS SELECT table_name, column_name, data_type, is_nullable FROM information_schema.columns WHERE table_schema = 'public';
CREATE FUNCTION bucket(at timestamptz, width interval) RETURNS timestamptz LANGUAGE sql IMMUTABLE AS $$ SELECT date_bin($2, $1, '2000-01-01Z') $$;
CREATE FUNCTION median_step(float8[], float8) RETURNS float8[] LANGUAGE sql IMMUTABLE AS $$ SELECT $1 || $2 $$;
CREATE FUNCTION median_end(float8[]) RETURNS float8 LANGUAGE sql IMMUTABLE AS $$ SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY v) FROM unnest($1) v $$;
CREATE AGGREGATE median(float8) (SFUNC = median_step, STYPE = float8[], FINALFUNC = median_end, INITCOND = '{}');
