-- Objects that reach something volatile in ways that no name in a statement shows, and
-- some that only look like it. What is volatile counts itself in hits.
CREATE SEQUENCE hits;
SELECT nextval('hits'); -- from now on each call shows
CREATE FUNCTION hit() RETURNS int VOLATILE LANGUAGE sql AS $$SELECT nextval('public.hits')::int$$;
CREATE TABLE t (id int PRIMARY KEY, name text, j json, p point, b box);
INSERT INTO t SELECT i, 'n' || i, json_build_object('a', i), point(i, i), box(point(i, i), point(0, 0)) FROM generate_series(1, 3) i;

-- Types that are made of a column's: arrays, multiranges, arrays of rows.
CREATE TYPE feeling AS ENUM ('good', 'bad');
CREATE TYPE span AS RANGE (subtype = float8, multirange_type_name = spans);
CREATE TABLE mood (id int, f feeling);
CREATE TABLE ranged (id int, r span);
CREATE TABLE rowed (id int);
INSERT INTO mood VALUES (1, 'good');
INSERT INTO ranged VALUES (1, '[1,2]');
INSERT INTO rowed VALUES (1);
CREATE FUNCTION feelings_text(feeling[]) RETURNS text VOLATILE LANGUAGE sql AS $$SELECT public.hit()::text$$;
CREATE CAST (feeling[] AS text) WITH FUNCTION feelings_text(feeling[]);
CREATE FUNCTION spans_int(spans) RETURNS int VOLATILE LANGUAGE sql AS $$SELECT public.hit()$$;
CREATE CAST (spans AS int) WITH FUNCTION spans_int(spans);
CREATE FUNCTION rows_int(rowed[]) RETURNS int VOLATILE LANGUAGE sql AS $$SELECT public.hit()$$;
CREATE CAST (rowed[] AS int) WITH FUNCTION rows_int(rowed[]);

-- An implicit cast between two types of users: a value of the first is needed.
CREATE TYPE source AS (x int);
CREATE TYPE target AS ENUM ('a', 'b');
CREATE FUNCTION to_target(source) RETURNS target VOLATILE LANGUAGE sql AS $$SELECT CASE WHEN public.hit() > 0 THEN 'a'::public.target END$$;
CREATE CAST (source AS target) WITH FUNCTION to_target(source) AS IMPLICIT;
CREATE TABLE has_source (id int, s source);
CREATE TABLE has_target (id int, g target);
INSERT INTO has_source VALUES (1, ROW(1));
INSERT INTO has_target VALUES (1, 'a');
CREATE FUNCTION takes_target(target) RETURNS int IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';

-- Built-in types without a way of sorting, which somebody has given one.
CREATE FUNCTION json_cmp(json, json) RETURNS int VOLATILE LANGUAGE plpgsql AS $$ BEGIN PERFORM public.hit(); RETURN 0; END $$;
CREATE FUNCTION json_lt(json, json) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1::text < $2::text';
CREATE FUNCTION json_le(json, json) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1::text <= $2::text';
CREATE FUNCTION json_eq(json, json) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1::text = $2::text';
CREATE FUNCTION json_ge(json, json) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1::text >= $2::text';
CREATE FUNCTION json_gt(json, json) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1::text > $2::text';
CREATE OPERATOR <# (LEFTARG = json, RIGHTARG = json, PROCEDURE = json_lt);
CREATE OPERATOR <=# (LEFTARG = json, RIGHTARG = json, PROCEDURE = json_le);
CREATE OPERATOR =# (LEFTARG = json, RIGHTARG = json, PROCEDURE = json_eq);
CREATE OPERATOR >=# (LEFTARG = json, RIGHTARG = json, PROCEDURE = json_ge);
CREATE OPERATOR ># (LEFTARG = json, RIGHTARG = json, PROCEDURE = json_gt);
CREATE OPERATOR CLASS json_ops DEFAULT FOR TYPE json USING btree AS
  OPERATOR 1 <#, OPERATOR 2 <=#, OPERATOR 3 =#, OPERATOR 4 >=#, OPERATOR 5 >#, FUNCTION 1 json_cmp(json, json);
CREATE FUNCTION point_hash(point) RETURNS int VOLATILE LANGUAGE plpgsql AS $$ BEGIN PERFORM public.hit(); RETURN 1; END $$;
CREATE FUNCTION point_eq(point, point) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT $1 ~= $2';
CREATE OPERATOR =## (LEFTARG = point, RIGHTARG = point, PROCEDURE = point_eq, HASHES);
CREATE OPERATOR CLASS point_ops DEFAULT FOR TYPE point USING hash AS OPERATOR 1 =##, FUNCTION 1 point_hash(point);
CREATE DOMAIN doc AS json;
CREATE TABLE docs (id int, d doc);
INSERT INTO docs VALUES (1, '{}'), (1, '{}');
CREATE VIEW docs_view AS SELECT id, d::json AS d FROM docs;

-- Functions that are declared STABLE, and what their bodies do.
CREATE TABLE audit (x int);
CREATE FUNCTION logs() RETURNS int VOLATILE LANGUAGE plpgsql AS $$ BEGIN INSERT INTO public.audit VALUES (1); RETURN public.hit(); END $$;
CREATE FUNCTION swallows(int) RETURNS int STABLE LANGUAGE plpgsql AS $$
BEGIN
  BEGIN PERFORM public.logs(); EXCEPTION WHEN OTHERS THEN NULL; END;
  RETURN $1;
END $$;
CREATE FUNCTION swallows_deep(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT swallows($1)';
CREATE FUNCTION swallows_atomic(int) RETURNS int STABLE LANGUAGE sql RETURN swallows($1);
CREATE FUNCTION "Swallows"(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT "public" . "swallows" /* ( */ (1)';
CREATE FUNCTION dynamic(int) RETURNS int STABLE LANGUAGE plpgsql AS $$ DECLARE x int; BEGIN EXECUTE 'SELECT public.' || 'hit()' INTO x; RETURN x; END $$;
CREATE FUNCTION dynamic_query(int) RETURNS SETOF int STABLE LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY EXECUTE('SELECT public.' || 'hit()'); END $$;
CREATE FUNCTION inserts(int) RETURNS int STABLE LANGUAGE plpgsql AS $$ BEGIN IF $1 < 0 THEN INSERT INTO public.audit VALUES (1); END IF; RETURN 1; END $$;
CREATE FUNCTION updates(int) RETURNS int STABLE LANGUAGE plpgsql AS $$ BEGIN IF $1 < 0 THEN UPDATE public.audit SET x = 1; END IF; RETURN 1; END $$;
CREATE FUNCTION deletes(int) RETURNS int STABLE LANGUAGE plpgsql AS $$ BEGIN IF $1 < 0 THEN DELETE FROM public.audit; END IF; RETURN 1; END $$;
CREATE FUNCTION merges(int) RETURNS int STABLE LANGUAGE plpgsql AS $$ BEGIN IF $1 < 0 THEN
  MERGE INTO public.audit a USING public.t ON a.x = t.id WHEN MATCHED THEN DO NOTHING; END IF; RETURN 1; END $$;
CREATE FUNCTION performs(int) RETURNS int STABLE LANGUAGE plpgsql AS $$ BEGIN IF $1 < 0 THEN PERFORM comes_later($1); END IF; RETURN 1; END $$;
CREATE FUNCTION pid() RETURNS int STABLE LANGUAGE sql BEGIN ATOMIC SELECT pg_backend_pid(); END;
CREATE FUNCTION pid_text() RETURNS int STABLE LANGUAGE sql AS 'SELECT pg_backend_pid()';
CREATE FUNCTION pid_internal() RETURNS int STABLE LANGUAGE internal AS 'pg_backend_pid';
CREATE FUNCTION sets() RETURNS text STABLE LANGUAGE sql AS $$SELECT set_config('app.x', 'y', false)$$;
CREATE FUNCTION notifies() RETURNS void STABLE LANGUAGE sql AS $$SELECT pg_notify('a', 'b')$$;
CREATE FUNCTION locks() RETURNS bool STABLE LANGUAGE sql AS $$SELECT pg_try_advisory_lock(1)$$;
CREATE FUNCTION tenant() RETURNS text STABLE LANGUAGE sql AS $$SELECT pg_catalog.current_setting('app.tenant', true)$$;
CREATE FUNCTION rolls() RETURNS float8 STABLE LANGUAGE sql BEGIN ATOMIC SELECT random(); END;
CREATE FUNCTION activity() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM pg_stat_activity';
CREATE VIEW tenants AS SELECT tenant() AS tenant;
CREATE FUNCTION through_view() RETURNS text STABLE LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT tenant FROM public.tenants); END $$;
CREATE FUNCTION through_view_atomic() RETURNS text STABLE LANGUAGE sql RETURN (SELECT tenant FROM tenants);
CREATE AGGREGATE swallowing(int) (SFUNC = int4pl, STYPE = int, INITCOND = '0', FINALFUNC = swallows);
CREATE FUNCTION swallow_eq(int, int) RETURNS bool STABLE LANGUAGE sql AS 'SELECT swallows($1) = $2';
CREATE OPERATOR =@= (LEFTARG = int, RIGHTARG = int, PROCEDURE = swallow_eq);
CREATE FUNCTION positive(int) RETURNS bool IMMUTABLE LANGUAGE sql AS 'SELECT swallows($1) > 0';
CREATE DOMAIN counted AS int CHECK (positive(VALUE));

-- What only looks like it.
CREATE SCHEMA other;
CREATE TABLE simple (id int PRIMARY KEY, name text);
INSERT INTO simple VALUES (1, 'a');
CREATE FUNCTION other.plain(int) RETURNS int VOLATILE LANGUAGE sql AS 'SELECT public.hit()';
CREATE FUNCTION plain(int) RETURNS int STABLE LANGUAGE plpgsql AS $$
DECLARE
  n int; -- UPDATE t SET x = 1
  message text := 'INSERT INTO audit, hit(), EXECUTE';
BEGIN
  /* DELETE FROM t; PERFORM hit(); */
  SELECT count(*) INTO n FROM public.simple WHERE id = $1 AND name <> message;
  IF n > 1 THEN RAISE EXCEPTION 'insert into %', n; END IF;
  FOR n IN SELECT id FROM public.simple ORDER BY id LOOP EXIT WHEN n > 1; END LOOP;
  FOR i IN 1..n LOOP n := n + i; END LOOP;
  <<again>> FOR i IN REVERSE n..n - 1 LOOP EXIT again WHEN i = 0; END LOOP;
  PERFORM lower('x');
  RETURN coalesce(n, (SELECT max(id) FROM public.simple), greatest(1, 2));
EXCEPTION WHEN division_by_zero THEN
  RETURN date_part('year', now())::int;
END $$;
CREATE FUNCTION plain_sql(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT public.plain($1) + 1 FROM simple WHERE id = 1';
CREATE FUNCTION plain_atomic(int) RETURNS int STABLE LANGUAGE sql RETURN plain($1) + 1;
CREATE FUNCTION plain_internal(text) RETURNS text IMMUTABLE STRICT LANGUAGE internal AS 'upper';
CREATE FUNCTION documented(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT $1 AS updated /* nextval(''hits'') */ FROM (VALUES (1)) AS inserted(hit)';
CREATE DOMAIN checked AS int CHECK (plain_atomic(VALUE) > 0);

-- Bodies that name what is volatile without calling it: operators, casts, domains, tables.
CREATE FUNCTION hit_eq(int, int) RETURNS bool VOLATILE LANGUAGE sql AS 'SELECT public.hit() > 0';
CREATE OPERATOR =!= (LEFTARG = int, RIGHTARG = int, PROCEDURE = hit_eq);
CREATE FUNCTION hit_bool(int) RETURNS bool VOLATILE LANGUAGE sql AS 'SELECT public.hit() > 0';
CREATE DOMAIN hit_domain AS int CHECK (hit_bool(VALUE));
CREATE TYPE "Hit Type" AS (d hit_domain);
CREATE TABLE secured (id int);
INSERT INTO secured VALUES (1);
CREATE TABLE cast_from (g feeling);
CREATE FUNCTION by_operator(int) RETURNS bool STABLE LANGUAGE sql AS 'SELECT $1 =!= 1';
CREATE FUNCTION by_operator_named(int) RETURNS bool STABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1 OPERATOR(public.=!=)1; END';
CREATE FUNCTION by_cast(int) RETURNS int STABLE LANGUAGE sql AS 'SELECT $1::hit_domain::int';
CREATE FUNCTION by_variable(int) RETURNS int STABLE LANGUAGE plpgsql AS 'DECLARE x hit_domain := $1; BEGIN RETURN x; END';
CREATE FUNCTION by_row(int) RETURNS text STABLE LANGUAGE sql AS 'SELECT (ROW($1)::"Hit Type")::text';
CREATE FUNCTION by_between(int) RETURNS bool STABLE LANGUAGE sql AS 'SELECT x BETWEEN x AND x FROM (SELECT ROW(1)::source AS x) y';
CREATE FUNCTION by_attribute(int) RETURNS bool STABLE LANGUAGE sql AS 'SELECT ($1).hit_bool';
CREATE FUNCTION by_sort() RETURNS text STABLE LANGUAGE sql AS 'SELECT string_agg(id::text, '','' ORDER BY j) FROM t';
CREATE FUNCTION by_array() RETURNS text STABLE LANGUAGE sql AS 'SELECT array_agg(f)::text FROM mood';
CREATE VIEW by_view AS SELECT by_operator(1) AS x;

-- Stored trees in which only a constant tells the type.
CREATE TYPE sorted AS ENUM ('a', 'b');
CREATE FUNCTION sorted_cmp(sorted, sorted) RETURNS int VOLATILE LANGUAGE plpgsql AS $$ BEGIN PERFORM public.hit(); RETURN 0; END $$;
CREATE FUNCTION sorted_b(sorted, sorted) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
CREATE OPERATOR <# (LEFTARG = sorted, RIGHTARG = sorted, PROCEDURE = sorted_b);
CREATE OPERATOR =# (LEFTARG = sorted, RIGHTARG = sorted, PROCEDURE = sorted_b);
CREATE OPERATOR CLASS sorted_ops DEFAULT FOR TYPE sorted USING btree AS OPERATOR 1 <#, OPERATOR 3 =#, FUNCTION 1 sorted_cmp(sorted, sorted);
CREATE VIEW constants_json AS SELECT count(*) AS n FROM (SELECT DISTINCT x FROM (VALUES ('1'::json), ('2'::json)) v(x)) y;
CREATE VIEW constants_sorted AS SELECT count(*) AS n FROM (SELECT DISTINCT x FROM (VALUES ('a'::sorted), ('b'::sorted)) v(x)) y;
CREATE FUNCTION atomic_json() RETURNS bigint STABLE LANGUAGE sql RETURN (SELECT count(*) AS n FROM (SELECT DISTINCT x FROM (VALUES ('1'::json), ('2'::json)) v(x)) y);
CREATE FUNCTION atomic_sorted() RETURNS bigint STABLE LANGUAGE sql RETURN (SELECT count(*) AS n FROM (SELECT DISTINCT x FROM (VALUES ('a'::sorted), ('b'::sorted)) v(x)) y);
CREATE FUNCTION atomic_array() RETURNS bool STABLE LANGUAGE sql RETURN ARRAY['a'::sorted, 'b'::sorted] < ARRAY['b'::sorted];
CREATE FUNCTION default_sorted(x bool DEFAULT ARRAY['a'::sorted, 'b'::sorted] < ARRAY['b'::sorted]) RETURNS bool STABLE LANGUAGE plpgsql AS 'BEGIN RETURN x; END';
CREATE FUNCTION default_json(x bool DEFAULT ARRAY['1'::json] < ARRAY['2'::json]) RETURNS bool STABLE LANGUAGE plpgsql AS 'BEGIN RETURN x; END';
CREATE DOMAIN constant_check AS int CHECK (ARRAY['1'::json] <= ARRAY['2'::json]);

-- Casts that must be written, which take a value and a conversion, and what only a value
-- of a new type can mean.
CREATE TYPE written AS ENUM ('a', 'b');
CREATE FUNCTION written_int(written) RETURNS int VOLATILE LANGUAGE sql AS 'SELECT public.hit()';
CREATE FUNCTION written_text(written) RETURNS text VOLATILE LANGUAGE sql AS $$SELECT public.hit()::text$$;
CREATE FUNCTION written_source(written) RETURNS source VOLATILE LANGUAGE sql AS $$SELECT ROW(public.hit())::public.source$$;
CREATE FUNCTION int_written(int) RETURNS written VOLATILE LANGUAGE sql AS $$SELECT CASE WHEN public.hit() > 0 THEN 'a'::public.written END$$;
CREATE CAST (written AS int) WITH FUNCTION written_int(written);
CREATE CAST (written AS text) WITH FUNCTION written_text(written);
CREATE CAST (written AS source) WITH FUNCTION written_source(written);
CREATE CAST (int AS written) WITH FUNCTION int_written(int);
CREATE DOMAIN whole AS int;
CREATE TYPE whole_row AS (x int);
CREATE TABLE has_written (id int, w written, n int);
INSERT INTO has_written VALUES (1, 'a', 1), (2, 'b', 2);
CREATE VIEW written_cat AS SELECT id, w || 'x'::text AS x FROM has_written;
CREATE FUNCTION written_body(written) RETURNS int STABLE LANGUAGE sql AS 'SELECT $1::int';
CREATE FUNCTION written_cat(written) RETURNS text STABLE LANGUAGE plpgsql AS $$ BEGIN RETURN $1 || 'x'::text; END $$;
CREATE FUNCTION written_read() RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT max(CAST(w AS integer)) FROM public.has_written); END';
CREATE FUNCTION written_any(anyelement) RETURNS text STABLE LANGUAGE sql AS 'SELECT $1::text';
CREATE FUNCTION written_same(written) RETURNS written STABLE LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION initcap(written) RETURNS written VOLATILE LANGUAGE sql AS $$SELECT CASE WHEN public.hit() > 0 THEN $1 END$$;
CREATE FUNCTION written_eq(written, written) RETURNS bool VOLATILE LANGUAGE sql AS 'SELECT public.hit() > 0';
CREATE OPERATOR ~~ (LEFTARG = written, RIGHTARG = written, PROCEDURE = written_eq);
CREATE FUNCTION written_like(written) RETURNS bool STABLE LANGUAGE sql AS 'SELECT $1 LIKE $1';

CREATE FUNCTION written_numeric(written) RETURNS numeric VOLATILE LANGUAGE sql AS 'SELECT public.hit()::numeric';
CREATE FUNCTION written_varchar(written) RETURNS varchar VOLATILE LANGUAGE sql AS 'SELECT public.hit()::varchar';
CREATE FUNCTION written_time(written) RETURNS timestamptz VOLATILE LANGUAGE sql AS 'SELECT CASE WHEN public.hit() > 0 THEN now() END';
CREATE FUNCTION written_float(written) RETURNS float8 VOLATILE LANGUAGE sql AS 'SELECT public.hit()::float8';
CREATE CAST (written AS numeric) WITH FUNCTION written_numeric(written);
CREATE CAST (written AS varchar) WITH FUNCTION written_varchar(written);
CREATE CAST (written AS timestamptz) WITH FUNCTION written_time(written);
CREATE CAST (written AS float8) WITH FUNCTION written_float(written);

-- Built-ins behind a dot in bodies; x.nextval calls it if x has no such column.
CREATE FUNCTION dot_cast() RETURNS bigint STABLE LANGUAGE sql AS $$SELECT ('public.hits'::regclass).nextval$$;
CREATE FUNCTION dot_argument(regclass) RETURNS bigint STABLE LANGUAGE sql AS $$SELECT ($1).nextval$$;
CREATE FUNCTION dot_variable() RETURNS bigint STABLE LANGUAGE plpgsql AS $$ DECLARE x regclass := 'public.hits'; BEGIN RETURN (x)."nextval"; END $$;
CREATE FUNCTION dot_table() RETURNS bigint STABLE LANGUAGE sql AS $$SELECT x.nextval FROM CAST('public.hits' AS regclass) x$$;
CREATE FUNCTION dot_lock() RETURNS bool STABLE LANGUAGE sql AS $$SELECT (77::bigint).pg_try_advisory_lock$$;
CREATE FUNCTION dot_setting() RETURNS text STABLE LANGUAGE sql AS $$SELECT ('work_mem'::text).current_setting$$;
CREATE FUNCTION dot_seed() RETURNS void STABLE LANGUAGE sql AS $$SELECT (0.5::float8).setseed$$;
CREATE TABLE dotted (id int, version text, count int, age int, setval int, random int);
CREATE FUNCTION dot_columns() RETURNS bigint STABLE LANGUAGE sql AS $$SELECT sum(x.count + x.age + x.setval + x.random + (x.version).length) FROM public.dotted x$$;

-- A name in a body that is not decoded.
CREATE FUNCTION by_uescape() RETURNS int STABLE LANGUAGE sql AS $$SELECT public.U&"h!0069t" UESCAPE '!' ()$$;

-- Bodies by other rules: of strings, and in a language by another name.
CREATE FUNCTION escapes_sql() RETURNS text STABLE LANGUAGE sql SET standard_conforming_strings = off AS $$SELECT '\'' || public.hit() || 'x' -- '$$;
CREATE FUNCTION escapes_plpgsql() RETURNS text STABLE LANGUAGE plpgsql SET search_path = public SET Standard_Conforming_Strings = 'off' AS $$
	BEGIN RETURN '\'' || public.hit() || 'x'; -- '
	END $$;
CREATE FUNCTION escapes_not() RETURNS text STABLE LANGUAGE plpgsql SET search_path = public SET escape_string_warning = off AS $$ BEGIN RETURN '\'; END $$;
CREATE LANGUAGE another HANDLER plpgsql_call_handler INLINE plpgsql_inline_handler VALIDATOR plpgsql_validator;
CREATE FUNCTION in_another() RETURNS int STABLE LANGUAGE another AS $$ BEGIN PERFORM public.hit(); RETURN 1; END $$;
CREATE FUNCTION reads_in_another() RETURNS int STABLE LANGUAGE another AS $$ BEGIN RETURN 1; END $$;
-- Casts that functions apply to what they return, take and assign.
CREATE TYPE made AS ENUM ('a', 'b');
CREATE FUNCTION int_made(int) RETURNS made VOLATILE LANGUAGE sql AS $$SELECT CASE WHEN public.hit() > 0 THEN 'a'::public.made END$$;
CREATE CAST (int AS made) WITH FUNCTION int_made(int) AS ASSIGNMENT;
CREATE DOMAIN made_domain AS made;
CREATE TYPE made_row AS (x int, m made);
CREATE TABLE has_made (id int, m made, r made_row, a made[]);
INSERT INTO has_made VALUES (1, 'a', ROW(1, 'a'), '{a}');
CREATE FUNCTION makes_plpgsql() RETURNS made STABLE LANGUAGE plpgsql AS 'BEGIN RETURN 5; END';
CREATE FUNCTION makes_sql() RETURNS made STABLE LANGUAGE sql AS 'SELECT 5';
CREATE FUNCTION makes_atomic() RETURNS made STABLE LANGUAGE sql BEGIN ATOMIC SELECT 5; END;
CREATE FUNCTION makes_out(OUT made) STABLE LANGUAGE plpgsql AS 'BEGIN $1 := 5; END';
CREATE FUNCTION makes_table() RETURNS TABLE (x int, z made) STABLE LANGUAGE plpgsql AS 'BEGIN z := 5; RETURN NEXT; END';
CREATE FUNCTION makes_set() RETURNS SETOF made STABLE LANGUAGE plpgsql AS 'BEGIN RETURN NEXT 5; END';
CREATE FUNCTION makes_argument(x made) RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN x := 5; RETURN 1; END';
CREATE FUNCTION makes_like(x made) RETURNS int STABLE LANGUAGE plpgsql AS 'DECLARE y x%TYPE; BEGIN y := 5; RETURN 1; END';
CREATE FUNCTION makes_field(p has_made) RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN p.r.m := 5; RETURN 1; END';
CREATE FUNCTION makes_element(p has_made) RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN p.a[1] := 5; RETURN 1; END';
CREATE FUNCTION makes_rows() RETURNS SETOF made_row STABLE LANGUAGE sql AS 'SELECT 1, 5';
CREATE FUNCTION makes_domain() RETURNS made_domain STABLE LANGUAGE plpgsql AS 'BEGIN RETURN 5; END';
CREATE FUNCTION makes_any(anyelement) RETURNS anyelement STABLE LANGUAGE plpgsql AS 'BEGIN RETURN 5; END';
CREATE FUNCTION makes_any_sql(anyelement) RETURNS anyelement STABLE LANGUAGE sql AS 'SELECT 5';
CREATE FUNCTION makes_read() RETURNS int STABLE LANGUAGE plpgsql AS 'DECLARE v record; BEGIN SELECT * INTO v FROM has_made; v.m := 5; RETURN 1; END';
CREATE FUNCTION makes_step(made, int) RETURNS made STABLE LANGUAGE sql AS 'SELECT 5';
CREATE AGGREGATE makes(int) (SFUNC = makes_step, STYPE = made);
CREATE FUNCTION makes_nothing(int) RETURNS int STABLE LANGUAGE plpgsql AS 'BEGIN RETURN $1 + 5; END';
CREATE FUNCTION written_plain() RETURNS written STABLE LANGUAGE plpgsql AS 'BEGIN RETURN (SELECT min(w) FROM has_written); END';

-- A cast to json, which what makes JSON uses without its name.
CREATE TYPE jsoned AS ENUM ('a', 'b');
CREATE FUNCTION jsoned_json(jsoned) RETURNS json VOLATILE LANGUAGE sql AS 'SELECT to_json(public.hit())';
CREATE CAST (jsoned AS json) WITH FUNCTION jsoned_json(jsoned);
CREATE TABLE has_jsoned (id int, k jsoned);
INSERT INTO has_jsoned VALUES (1, 'a');
CREATE VIEW jsoned_view AS SELECT to_json(k) AS j FROM has_jsoned;
CREATE VIEW jsoned_agg AS SELECT pg_catalog.jsonb_agg(h) AS j FROM has_jsoned h;
CREATE FUNCTION jsoned_any(anyelement) RETURNS jsonb STABLE LANGUAGE sql AS 'SELECT pg_catalog.jsonb_build_array($1)';
CREATE FUNCTION jsoned_quoted(anyelement) RETURNS json STABLE LANGUAGE sql AS 'SELECT "to_json"($1)';
CREATE FUNCTION jsoned_atomic() RETURNS json STABLE LANGUAGE sql BEGIN ATOMIC SELECT json_agg(h) FROM has_jsoned h; END;
CREATE AGGREGATE jsoned_user(anyelement) (SFUNC = json_agg_transfn, STYPE = internal, FINALFUNC = json_agg_finalfn);

-- Casts to arrays, whose elements are what a statement names.
CREATE TYPE listed AS ENUM ('a', 'b');
CREATE TYPE listed_other AS ENUM ('a', 'b');
CREATE FUNCTION listed_texts(listed) RETURNS text[] VOLATILE LANGUAGE sql AS 'SELECT ARRAY[public.hit()::text]';
CREATE CAST (listed AS text[]) WITH FUNCTION listed_texts(listed);
CREATE FUNCTION listed_others(listed) RETURNS listed_other[] VOLATILE LANGUAGE sql AS $$SELECT CASE WHEN public.hit() > 0 THEN '{a}'::public.listed_other[] END$$;
CREATE CAST (listed AS listed_other[]) WITH FUNCTION listed_others(listed);
CREATE FUNCTION date_listed(date) RETURNS listed[] VOLATILE LANGUAGE sql AS $$SELECT CASE WHEN public.hit() > 0 THEN '{a}'::public.listed[] END$$;
CREATE CAST (date AS listed[]) WITH FUNCTION date_listed(date);
CREATE FUNCTION lseg_listed(lseg) RETURNS listed[] VOLATILE LANGUAGE sql AS $$SELECT CASE WHEN public.hit() > 0 THEN '{a}'::public.listed[] END$$;
CREATE CAST (lseg AS listed[]) WITH FUNCTION lseg_listed(lseg) AS ASSIGNMENT;
CREATE TABLE has_listed (id int, l listed);
INSERT INTO has_listed VALUES (1, 'a');
CREATE FUNCTION listed_body(date) RETURNS int STABLE LANGUAGE sql AS 'SELECT cardinality($1::public.listed[])';
CREATE FUNCTION listed_assigned(lseg) RETURNS int STABLE LANGUAGE plpgsql AS 'DECLARE l public.listed[]; BEGIN l := $1; RETURN 1; END';

-- The type of an aggregate's state, which its first value becomes.
CREATE DOMAIN state AS text CHECK (hit() > 0);
CREATE FUNCTION state_step(anyelement, int) RETURNS anyelement IMMUTABLE LANGUAGE sql AS 'SELECT $1';
CREATE FUNCTION state_end(anyelement) RETURNS int IMMUTABLE LANGUAGE sql AS 'SELECT 1';
CREATE AGGREGATE state_agg(int) (SFUNC = state_step, STYPE = state, INITCOND = '5', FINALFUNC = state_end);
CREATE AGGREGATE plain_agg(int) (SFUNC = int4pl, STYPE = int);
