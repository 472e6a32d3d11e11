-- What PostgreSQL 17 and 18 add to hostile.sql.
CREATE TABLE virtual_good (id int, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL, low text GENERATED ALWAYS AS (lower('X' || id::text)) VIRTUAL);
INSERT INTO virtual_good VALUES (1);
CREATE VIEW v_json_value AS SELECT JSON_VALUE('{"a":1}'::jsonb, '$.a' RETURNING vol_domain)::int AS v;
CREATE VIEW v_json_query AS SELECT (JSON_QUERY('{"a":[1]}'::jsonb, '$.a' RETURNING vol_domain[]))[1]::int AS v;
CREATE VIEW v_json_table AS SELECT x.b FROM JSON_TABLE('{"a":1}'::jsonb, '$' COLUMNS (a vol_domain PATH '$.a', b int PATH '$.b')) x;
CREATE VIEW v_json_good AS SELECT JSON_VALUE(data, '$.a' RETURNING int DEFAULT 1 ON EMPTY) AS v, JSON_EXISTS(data, '$.a') AS e, JSON_OBJECT('a': id) AS o,
  JSON_ARRAY(1, 2) AS a, x.k FROM t, JSON_TABLE(data, '$.n[*]' COLUMNS (n FOR ORDINALITY, k int PATH '$.x', NESTED PATH '$.y' COLUMNS (z good_domain PATH '$'))) x;
CREATE VIEW v_json_default AS SELECT JSON_VALUE('{}'::jsonb, '$.a' RETURNING int DEFAULT vol() ON EMPTY) AS v;

-- Syntax that uses a cast to json without its name.
CREATE TYPE jsoned AS ENUM ('a', 'b');
CREATE FUNCTION jsoned_json(jsoned) RETURNS json VOLATILE LANGUAGE sql AS $$SELECT to_json(nextval('public.hits'))$$;
CREATE CAST (jsoned AS json) WITH FUNCTION jsoned_json(jsoned);
CREATE TABLE has_jsoned (id int, k jsoned);
INSERT INTO has_jsoned VALUES (1, 'a');
CREATE VIEW jsoned_object AS SELECT JSON_OBJECT('a': k) AS j FROM has_jsoned;
CREATE VIEW jsoned_scalar AS SELECT JSON_SCALAR(k) AS j FROM has_jsoned;
CREATE FUNCTION jsoned_atomic() RETURNS json STABLE LANGUAGE sql BEGIN ATOMIC SELECT JSON_ARRAY(k) FROM has_jsoned; END;
CREATE FUNCTION jsoned_any(anyelement) RETURNS json STABLE LANGUAGE sql AS 'SELECT JSON_ARRAYAGG($1)';
