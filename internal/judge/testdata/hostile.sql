-- Every way by which a SELECT can reach a volatile function or a fact that is not
-- its own, beside harmless look-alikes. All volatile functions draw from the
-- sequence hits, so a test can see whether a statement has called one.
CREATE SEQUENCE hits;
CREATE SCHEMA app;
CREATE SCHEMA "Other Schema";

CREATE FUNCTION vol() RETURNS int LANGUAGE plpgsql AS $$begin return nextval('public.hits'); end$$;
CREATE FUNCTION vol(int) RETURNS int LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return $1; end$$;
CREATE FUNCTION vol(text, text) RETURNS text LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return $1; end$$;
CREATE FUNCTION vol_bool(anyelement) RETURNS bool LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return true; end$$;
CREATE FUNCTION vol_true(int) RETURNS bool LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return true; end$$;
CREATE FUNCTION vol_set() RETURNS SETOF int LANGUAGE plpgsql AS $$begin return next nextval('public.hits')::int; end$$;
CREATE FUNCTION stable_f(int) RETURNS int LANGUAGE sql STABLE AS $$select $1 + 1$$;
CREATE FUNCTION stable_set(int) RETURNS SETOF int LANGUAGE sql STABLE AS $$select generate_series(1, $1)$$;
CREATE FUNCTION stable_table(int) RETURNS TABLE (a int, b text) LANGUAGE sql STABLE AS $$select 1, 'x'$$;
CREATE FUNCTION immutable_f(text) RETURNS text LANGUAGE sql IMMUTABLE AS $$select $1$$;

-- Overloads and schemas
CREATE FUNCTION two(int) RETURNS int LANGUAGE sql IMMUTABLE AS $$select 1$$;
CREATE FUNCTION two(int, int) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION kinds(int) RETURNS int LANGUAGE sql IMMUTABLE AS $$select 1$$;
CREATE FUNCTION kinds(text) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION app.only_app(int) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION app.safe_app(int) RETURNS int LANGUAGE sql STABLE AS $$select 1$$;
CREATE FUNCTION app.upper(text) RETURNS text LANGUAGE plpgsql AS $$begin perform vol(); return 'x'; end$$;
CREATE FUNCTION upper(int) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION length(text, int, int) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION public."substring"(text, text, int, int) RETURNS text LANGUAGE plpgsql AS $$begin perform vol(); return 'x'; end$$;
CREATE FUNCTION "MixedCase"(int) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION mixedcase(int) RETURNS int LANGUAGE sql IMMUTABLE AS $$select 1$$;
CREATE FUNCTION "Other Schema"."f(x)"(int) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION "Other Schema".good(int) RETURNS int LANGUAGE sql IMMUTABLE AS $$select 1$$;
CREATE FUNCTION a234567890123456789012345678901234567890123456789012345678901234567890() RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION g234567890123456789012345678901234567890123456789012345678901234567890() RETURNS int LANGUAGE sql IMMUTABLE AS $$select 1$$;
CREATE FUNCTION "é"() RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;

-- Arguments
CREATE FUNCTION with_default(a int, b int DEFAULT vol()) RETURNS int LANGUAGE plpgsql IMMUTABLE AS $$begin return a + b; end$$;
CREATE FUNCTION good_default(a int, b int DEFAULT 2, c timestamptz DEFAULT now()) RETURNS int LANGUAGE sql IMMUTABLE AS $$select a + b$$;
CREATE FUNCTION random_default(a int, b float DEFAULT random()) RETURNS float LANGUAGE sql IMMUTABLE AS $$select b$$;
CREATE FUNCTION vol_named(a int, b int DEFAULT 1, c int DEFAULT 1) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION vol_many(VARIADIC a int[]) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION good_many(int, VARIADIC a int[]) RETURNS int LANGUAGE sql IMMUTABLE AS $$select 1$$;
CREATE FUNCTION with_out(a int, OUT b int, OUT c int) LANGUAGE sql STABLE AS $$select 1, 2$$;
CREATE FUNCTION vol_out(a int, OUT b int, OUT c int) LANGUAGE plpgsql AS $$begin b := vol(); c := 1; end$$;
CREATE PROCEDURE proc(int) LANGUAGE sql AS $$select 1$$;

-- Aggregates and windows
CREATE FUNCTION vol_trans(int, int) RETURNS int LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return $1 + $2; end$$;
CREATE FUNCTION vol_final(int) RETURNS int LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return $1; end$$;
CREATE FUNCTION vol_final(int[], int) RETURNS int LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return 1; end$$;
CREATE AGGREGATE vol_agg(int) (SFUNC = vol_trans, STYPE = int, INITCOND = '0');
CREATE AGGREGATE vol_agg_final(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0', FINALFUNC = vol_final);
CREATE AGGREGATE good_agg(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0');
CREATE AGGREGATE good_avg(int8) (SFUNC = int8_avg_accum, STYPE = internal, FINALFUNC = numeric_poly_avg);
CREATE AGGREGATE vol_ordered(int ORDER BY int) (SFUNC = array_append, STYPE = int[], INITCOND = '{}', FINALFUNC = vol_final);
CREATE AGGREGATE moving_agg(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0', MSFUNC = vol_trans, MINVFUNC = vol_trans, MSTYPE = int, MINITCOND = '0');
CREATE FUNCTION good_final(int[]) RETURNS int LANGUAGE sql IMMUTABLE AS $$select $1[1]$$;
CREATE AGGREGATE good_ordered(ORDER BY int) (SFUNC = array_append, STYPE = int[], INITCOND = '{}', FINALFUNC = good_final);

-- Types
CREATE TYPE mood AS ENUM ('sad', 'ok', 'happy');
CREATE TYPE pair AS (a int, b text);
CREATE FUNCTION good_check(int) RETURNS bool LANGUAGE sql IMMUTABLE AS $$select $1 > 0$$;
CREATE DOMAIN good_domain AS int CHECK (good_check(VALUE) AND VALUE < 1000);
CREATE DOMAIN clock_domain AS timestamptz CHECK (VALUE < now() + interval '1 day');
CREATE DOMAIN vol_domain AS int CHECK (vol_true(VALUE));
CREATE DOMAIN random_domain AS int CHECK (random() >= 0);
CREATE DOMAIN over_domain AS vol_domain;
CREATE DOMAIN array_domain AS int[] CHECK (vol_bool(VALUE));
CREATE DOMAIN domain_array AS vol_domain[];
CREATE DOMAIN good_over AS good_domain CHECK (VALUE <> 7);
CREATE TYPE vol_pair AS (a vol_domain, b text);
CREATE TYPE vol_pair2 AS (p vol_pair, x int);
CREATE TYPE pair_array AS (p vol_pair[], x int);
CREATE TYPE good_range AS RANGE (subtype = float8, subtype_diff = float8mi);
CREATE FUNCTION vol_diff(int, int) RETURNS float8 LANGUAGE plpgsql IMMUTABLE AS $$begin return $1 - $2; end$$;
CREATE TYPE vol_range AS RANGE (subtype = int, subtype_diff = vol_diff);
ALTER FUNCTION vol_diff VOLATILE;
CREATE TYPE domain_range AS RANGE (subtype = vol_domain, subtype_opclass = int4_ops);
CREATE TYPE app.apptype AS ENUM ('a');
CREATE DOMAIN app.app_domain AS int CHECK (vol_true(VALUE));
CREATE DOMAIN "Odd Domain" AS int CHECK (vol_true(VALUE));
CREATE DOMAIN zone AS text CHECK (vol_bool(VALUE));

CREATE FUNCTION takes_domain(vol_domain) RETURNS int LANGUAGE sql IMMUTABLE AS $$select 1$$;
CREATE FUNCTION gives_domain(int) RETURNS vol_domain LANGUAGE sql STABLE AS $$select $1::vol_domain$$;

-- Tables
CREATE TABLE t (id int PRIMARY KEY, name text, created_at timestamptz DEFAULT now(), data jsonb, nums int[], feeling mood, dom good_domain, p pair);
INSERT INTO t VALUES (1, 'one', now(), '{"a": 1, "n": [{"x": 1}]}', '{1,2}', 'ok', 5, (1, 'x')), (2, 'two', now(), '{}', '{3}', 'sad', 6, (2, 'y'));
CREATE TABLE u (id int, t_id int, email text, version int, vol int, random int, upper text);
INSERT INTO u VALUES (1, 1, 'a@b', 1, 2, 3, 'x');
CREATE TABLE "Quoted Table" ("Col" int);
CREATE TABLE app.inside (id int);
CREATE TABLE defaults (id int DEFAULT vol(), CHECK (vol_true(id)));
INSERT INTO defaults VALUES (1);
CREATE TABLE has_vol_domain (id int, d vol_domain);
INSERT INTO has_vol_domain VALUES (1, 1);
CREATE TABLE has_domain_array (id int, d vol_domain[]);
INSERT INTO has_domain_array VALUES (1, '{1}');
CREATE TABLE has_vol_pair (id int, p vol_pair);
INSERT INTO has_vol_pair VALUES (1, (1, 'x'));
CREATE TABLE has_rows (id int, r has_vol_domain);
CREATE TABLE has_row_array (id int, r has_vol_domain[]);
CREATE TABLE stored (id int, twice int GENERATED ALWAYS AS (id * 2) STORED);
CREATE FUNCTION trg() RETURNS trigger LANGUAGE plpgsql AS $$begin perform vol(); return new; end$$;
CREATE TRIGGER tg BEFORE INSERT OR UPDATE ON stored FOR EACH ROW EXECUTE FUNCTION trg();
CREATE RULE r AS ON UPDATE TO stored DO ALSO SELECT vol();
CREATE UNLOGGED TABLE unlogged (id int);

-- Rows as arguments
CREATE FUNCTION row_f(t) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION row_good(t) RETURNS int LANGUAGE sql STABLE AS $$select $1.id$$;
CREATE FUNCTION any_f(anyelement) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION record_f(record) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION pair_f(pair) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE FUNCTION email(text) RETURNS text LANGUAGE plpgsql AS $$begin perform vol(); return $1; end$$;
CREATE FUNCTION "Row F"(t) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;

-- Partitions and inheritance
CREATE FOREIGN DATA WRAPPER dummy;
CREATE SERVER dummy FOREIGN DATA WRAPPER dummy;
CREATE FOREIGN TABLE foreign_t (id int) SERVER dummy;
CREATE TABLE parts (id int, x int) PARTITION BY RANGE (id);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
CREATE TABLE parts_1a PARTITION OF parts_1 FOR VALUES FROM (0) TO (5);
CREATE TABLE parts_2 PARTITION OF parts FOR VALUES FROM (10) TO (20);
CREATE TABLE remote (id int, x int) PARTITION BY RANGE (id);
CREATE TABLE remote_1 PARTITION OF remote FOR VALUES FROM (0) TO (10) PARTITION BY RANGE (id);
CREATE FOREIGN TABLE remote_1a PARTITION OF remote_1 FOR VALUES FROM (0) TO (5) SERVER dummy;
CREATE TABLE remote_2 PARTITION OF remote FOR VALUES FROM (10) TO (20);
CREATE TABLE mother (id int);
CREATE TABLE child (x int) INHERITS (mother);
CREATE TABLE mother2 (id int);
CREATE FOREIGN TABLE foreign_child (id int) INHERITS (mother2) SERVER dummy;
CREATE TABLE mother3 (id int);
CREATE TABLE rls_child (id int) INHERITS (mother3);
ALTER TABLE rls_child ENABLE ROW LEVEL SECURITY;
CREATE TABLE hashed (id int, x int) PARTITION BY HASH (id);
CREATE TABLE hashed_0 PARTITION OF hashed FOR VALUES WITH (MODULUS 1, REMAINDER 0);

-- Row-level security
CREATE TABLE rls (id int, tenant text);
ALTER TABLE rls ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON rls USING (id > 0);
CREATE TABLE rls_off (id int);
CREATE POLICY p ON rls_off USING (vol_true(id));
CREATE TABLE rls_vol (id int);
ALTER TABLE rls_vol ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON rls_vol FOR SELECT USING (vol_true(id));
CREATE TABLE rls_setting (id int, tenant text);
ALTER TABLE rls_setting ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON rls_setting USING (tenant = current_setting('app.tenant', true));
CREATE TABLE rls_insert (id int);
ALTER TABLE rls_insert ENABLE ROW LEVEL SECURITY;
CREATE POLICY p ON rls_insert FOR INSERT WITH CHECK (vol_true(id));
CREATE TABLE rls_sub (id int);
ALTER TABLE rls_sub ENABLE ROW LEVEL SECURITY;

-- Operators
CREATE FUNCTION op_vol(int, int) RETURNS bool LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return $1 = $2; end$$;
CREATE FUNCTION op_good(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS $$select $1 = $2$$;
CREATE FUNCTION op_unary(int) RETURNS int LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return $1; end$$;
CREATE FUNCTION op_row(t, t) RETURNS bool LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return true; end$$;
CREATE FUNCTION op_text(int, text) RETURNS bool LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return true; end$$;
CREATE FUNCTION op_like(jsonb, jsonb) RETURNS bool LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return true; end$$;
CREATE OPERATOR === (FUNCTION = op_vol, LEFTARG = int, RIGHTARG = int);
CREATE OPERATOR ~=~ (FUNCTION = op_good, LEFTARG = int, RIGHTARG = int);
CREATE OPERATOR ### (FUNCTION = op_unary, RIGHTARG = int);
CREATE OPERATOR app.@@@ (FUNCTION = op_vol, LEFTARG = int, RIGHTARG = int);
CREATE OPERATOR app.+@+ (FUNCTION = op_good, LEFTARG = int, RIGHTARG = int);
CREATE OPERATOR |== (FUNCTION = op_good, LEFTARG = int, RIGHTARG = int, NEGATOR = |!=);
CREATE OPERATOR |!= (FUNCTION = op_vol, LEFTARG = int, RIGHTARG = int, NEGATOR = |==);
CREATE OPERATOR ~~* (FUNCTION = op_like, LEFTARG = jsonb, RIGHTARG = jsonb);
CREATE OPERATOR <-> (FUNCTION = op_text, LEFTARG = int, RIGHTARG = text);

-- An ordering of integers with a volatile comparison, and a table that uses it
CREATE FUNCTION cmp_vol(int, int) RETURNS int LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return btint4cmp($1, $2); end$$;
CREATE FUNCTION lt_good(int, int) RETURNS bool LANGUAGE sql IMMUTABLE AS $$select $1 < $2$$;
CREATE OPERATOR =~= (FUNCTION = op_good, LEFTARG = int, RIGHTARG = int);
CREATE OPERATOR <<< (FUNCTION = lt_good, LEFTARG = int, RIGHTARG = int);
CREATE OPERATOR CLASS vol_ops FOR TYPE int USING btree AS OPERATOR 1 <<<, OPERATOR 3 =~=, FUNCTION 1 cmp_vol(int, int);
CREATE TABLE indexed (id int);
CREATE INDEX ON indexed (id vol_ops);
INSERT INTO indexed SELECT generate_series(1, 3);

-- A type of its own, with volatile comparison
CREATE TYPE money2 AS (amount int);
CREATE TYPE color AS ENUM ('red', 'blue');
CREATE FUNCTION color_eq(color, color) RETURNS bool LANGUAGE plpgsql AS $$begin perform nextval('public.hits'); return true; end$$;
CREATE OPERATOR = (FUNCTION = color_eq, LEFTARG = color, RIGHTARG = color);
CREATE TABLE colored (id int, c color);
INSERT INTO colored VALUES (1, 'red');
CREATE FUNCTION favourite() RETURNS color LANGUAGE sql IMMUTABLE AS $$select 'red'::color$$;

-- Casts
CREATE TYPE src AS (a int);
CREATE FUNCTION src_int(src) RETURNS int LANGUAGE plpgsql AS $$begin return vol(); end$$;
CREATE CAST (src AS int) WITH FUNCTION src_int(src);
CREATE TABLE has_src (id int, s src);
INSERT INTO has_src VALUES (1, ROW(1));
CREATE TYPE isrc AS (a int);
CREATE FUNCTION isrc_text(isrc) RETURNS text LANGUAGE plpgsql AS $$begin perform vol(); return 'x'; end$$;
CREATE CAST (isrc AS text) WITH FUNCTION isrc_text(isrc) AS IMPLICIT;
CREATE TABLE has_isrc (id int, s isrc);
INSERT INTO has_isrc VALUES (1, ROW(1));
CREATE TYPE dst AS (a int);
CREATE FUNCTION int_dst(int) RETURNS dst LANGUAGE plpgsql AS $$begin perform vol(); return ROW(1)::dst; end$$;
CREATE CAST (int AS dst) WITH FUNCTION int_dst(int);
CREATE TABLE has_dst (id int, d dst);
INSERT INTO has_dst VALUES (1, ROW(1));
CREATE TYPE gdst AS (a int);
CREATE FUNCTION int_gdst(int) RETURNS gdst LANGUAGE sql IMMUTABLE AS $$select ROW(1)::gdst$$;
CREATE CAST (int AS gdst) WITH FUNCTION int_gdst(int);

-- Views
CREATE VIEW v_plain AS SELECT id, name FROM t;
CREATE VIEW v_over AS SELECT * FROM v_plain WHERE id > 0;
CREATE VIEW v_clock AS SELECT now() AS n, current_date AS d, current_user AS u, session_user AS s, id FROM t;
CREATE VIEW v_builtins AS SELECT lower(name) AS l, id::text AS i, name::varchar(3) AS v, id = ANY (nums) AS e, data ->> 'a' AS j,
  extract(year FROM created_at) AS y, created_at AT TIME ZONE 'UTC' AS z, coalesce(name, 'x') AS c, id BETWEEN 1 AND 2 AS b,
  name LIKE 'a%' AS k, substring(name FROM 1 FOR 2) AS s, (id, name) < (2, 'b') AS r, greatest(id, 2) AS g, NULLIF(id, 1) AS f,
  id IS DISTINCT FROM 3 AS q, ARRAY[id] AS a, ARRAY(SELECT id FROM u) AS sub, xmlelement(name foo, id)::text AS x,
  array_position(nums, 1) AS p, data @> '{"a":1}' AS m, to_char(created_at, 'YYYY') AS o, feeling, dom, p AS pr, age(created_at) AS ag,
  id::numeric(10, 2) AS nu, created_at + interval '1 day' AS iv, jsonb_path_query_first(data, '$.a') AS jp
  FROM t;
CREATE VIEW v_agg AS SELECT count(*), sum(id), avg(id), array_agg(id ORDER BY id), string_agg(name, ','), jsonb_agg(data), max(created_at),
  percentile_cont(0.5) WITHIN GROUP (ORDER BY id), count(DISTINCT name) FILTER (WHERE id > 1) AS c2, bool_and(id > 0), stddev(id), min(name)
  FROM t GROUP BY ROLLUP (name) HAVING count(*) > 0;
CREATE VIEW v_window AS SELECT row_number() OVER (ORDER BY id), lag(name, 1) OVER w, rank() OVER w FROM t WINDOW w AS (PARTITION BY name ORDER BY id);
CREATE VIEW v_cte AS WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) SELECT r.n, g.g, x.e FROM r, generate_series(1, 2) g, unnest(ARRAY[1]) x(e), json_to_record('{"a":1}') AS j(a int);
CREATE VIEW v_sample AS SELECT id FROM t TABLESAMPLE bernoulli (50) REPEATABLE (1);
CREATE VIEW v_user_functions AS SELECT stable_f(id), good_agg(id) FROM t GROUP BY 1;
CREATE VIEW v_catalog AS SELECT c.relname, n.nspname, pg_get_userbyid(c.relowner) AS o FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace;
CREATE VIEW v_information AS SELECT table_name FROM information_schema.tables;
CREATE VIEW v_random AS SELECT id, random() AS r FROM t;
CREATE VIEW v_random2 AS SELECT id FROM v_random;
CREATE VIEW v_order AS SELECT id FROM t ORDER BY random();
CREATE VIEW v_uuid AS SELECT gen_random_uuid() AS u;
CREATE VIEW v_clock_timestamp AS SELECT clock_timestamp();
CREATE VIEW v_vol AS SELECT id, vol(id) AS v FROM t;
CREATE VIEW v_vol2 AS SELECT x.id FROM (SELECT id FROM u) x JOIN v_vol USING (id);
CREATE VIEW v_vol_sub AS SELECT id FROM t WHERE EXISTS (SELECT 1 FROM v_vol2);
CREATE VIEW v_nextval AS SELECT nextval('hits') AS n;
CREATE VIEW v_setting AS SELECT current_setting('app.tenant', true) AS tenant;
CREATE VIEW v_session AS SELECT pg_backend_pid();
CREATE VIEW v_stat AS SELECT * FROM pg_stat_activity;
CREATE VIEW v_settings AS SELECT name FROM pg_settings;
CREATE VIEW v_locks AS SELECT locktype FROM pg_catalog.pg_locks;
CREATE VIEW v_rls AS SELECT id FROM rls;
CREATE VIEW v_rls2 AS SELECT id FROM v_rls;
CREATE VIEW v_foreign AS SELECT id FROM foreign_t;
CREATE VIEW v_remote AS SELECT id FROM remote;
CREATE VIEW v_sequence AS SELECT last_value FROM hits;
CREATE VIEW v_lock AS SELECT id FROM t FOR UPDATE;
CREATE VIEW v_lock2 AS SELECT id FROM v_lock;
CREATE VIEW v_lock_sub AS SELECT id FROM u WHERE id IN (SELECT id FROM t FOR SHARE);
CREATE VIEW v_tablesample AS SELECT id FROM t TABLESAMPLE bernoulli (50);
CREATE VIEW v_op AS SELECT id FROM t WHERE id === 1;
CREATE VIEW v_op_any AS SELECT id FROM t WHERE id === ANY (ARRAY[1, 2]);
CREATE VIEW v_op_good AS SELECT id FROM t WHERE id ~=~ 1;
CREATE VIEW v_agg_vol AS SELECT vol_agg(id) FROM t;
CREATE VIEW v_window_vol AS SELECT vol_agg(id) OVER (ORDER BY id) FROM t;
CREATE VIEW v_default AS SELECT with_default(id) FROM t;
CREATE VIEW v_domain AS SELECT id::vol_domain::int AS d FROM t;
CREATE VIEW v_domain_column AS SELECT id::vol_domain AS d FROM t;
CREATE VIEW v_array_domain AS SELECT (ARRAY[id]::vol_domain[])[1]::int AS d FROM t;
CREATE VIEW v_pair AS SELECT (ROW(id, 'x')::vol_pair).b FROM t;
CREATE VIEW v_text_domain AS SELECT ('{1}'::text::domain_array)[1]::int AS d;
CREATE VIEW v_row_f AS SELECT t.row_f FROM t;
CREATE VIEW v_set AS SELECT * FROM vol_set();
CREATE VIEW v_rows_from AS SELECT * FROM ROWS FROM (generate_series(1, 2), vol_set()) AS x(a, b);
CREATE VIEW v_json_record AS SELECT x.b FROM json_to_record('{"a":1}') AS x(a vol_domain, b int);
CREATE VIEW v_xmltable AS SELECT x.b FROM xmltable('/r' PASSING ('<r><a>1</a></r>'::xml) COLUMNS a vol_domain PATH 'a', b int PATH 'b') x;
CREATE VIEW v_cast_src AS SELECT s::int AS i FROM has_src;
CREATE VIEW v_cast_dst AS SELECT (id::dst).a AS i FROM t;
CREATE VIEW v_using AS SELECT id FROM t ORDER BY id USING <<<;
CREATE VIEW v_rowcompare AS SELECT id FROM t WHERE (id, id) < (2, 2);
CREATE VIEW v_union AS SELECT id FROM t UNION SELECT vol() UNION SELECT 2;
CREATE VIEW v_limit AS SELECT id FROM t LIMIT vol();
CREATE VIEW v_values AS VALUES (vol()), (2);
CREATE VIEW v_cte_vol AS WITH x AS (SELECT vol() AS v) SELECT 1 AS a FROM x;
CREATE VIEW v_case AS SELECT CASE WHEN id = 1 THEN 1 ELSE vol() END AS c FROM t;
CREATE VIEW v_parts AS SELECT id FROM parts;
CREATE VIEW app.v_app AS SELECT vol() AS v;
CREATE VIEW v_over_app AS SELECT * FROM app.v_app;
CREATE VIEW "V Quoted" AS SELECT vol();
CREATE MATERIALIZED VIEW mv AS SELECT id, vol(id) AS v FROM t;
CREATE VIEW v_mv AS SELECT * FROM mv;
CREATE POLICY p ON rls_sub USING (id IN (SELECT id FROM v_vol));
CREATE VIEW v_rule AS SELECT id FROM t;
CREATE RULE up AS ON UPDATE TO v_rule DO INSTEAD SELECT vol();
CREATE VIEW v_barrier WITH (security_barrier) AS SELECT id FROM t WHERE id > 0;
CREATE TABLE late_view (id int);
CREATE TABLE log (a int);
SELECT setval('hits', 1);
