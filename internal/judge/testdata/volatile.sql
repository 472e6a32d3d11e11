-- Functions that are volatile because nobody has said anything else, and what they do.
CREATE EXTENSION pgcrypto;
CREATE TABLE item (id int PRIMARY KEY, price numeric NOT NULL, parent int);
CREATE TABLE log (at timestamptz);
INSERT INTO item VALUES (1, 2, NULL), (2, 3, 1);

-- They only read.
CREATE FUNCTION price(int) RETURNS numeric LANGUAGE plpgsql AS $$
	DECLARE found numeric; BEGIN SELECT i.price INTO found FROM item i WHERE id = $1; RETURN found; END $$;
CREATE FUNCTION total(int) RETURNS numeric LANGUAGE sql AS $$ SELECT price($1) * 2 $$;
CREATE FUNCTION recursive(n int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN IF n > 0 THEN RETURN recursive(n - 1); END IF; RETURN 0; END $$;
CREATE FUNCTION atomic(int) RETURNS int BEGIN ATOMIC SELECT id FROM item WHERE id = $1; END;
CREATE FUNCTION latest(VARIADIC names text[], OUT name text) LANGUAGE sql AS $$ SELECT max(n) FROM unnest(names) n $$;
CREATE FUNCTION loops(n int) RETURNS SETOF int LANGUAGE plpgsql AS $$
	DECLARE r record; BEGIN
	FOR i IN 1..n LOOP RETURN NEXT i; END LOOP;
	FOR r IN SELECT id FROM item LOOP RETURN NEXT r.id; END LOOP;
	BEGIN RETURN NEXT 1 / 0; EXCEPTION WHEN division_by_zero THEN NULL; END;
	END $$;
CREATE FUNCTION sized(text) RETURNS bigint LANGUAGE sql AS $$ SELECT pg_total_relation_size($1::regclass) $$;
CREATE FUNCTION secured(int) RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = public AS $$ SELECT count(*) FROM item WHERE parent = $1 $$;
CREATE FUNCTION near(int, int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RETURN abs($1 - $2) < 2; END $$;
CREATE OPERATOR <~> (FUNCTION = near, LEFTARG = int, RIGHTARG = int);
CREATE FUNCTION summed_step(int, int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN $1 + $2; END $$;
CREATE AGGREGATE summed(int) (SFUNC = summed_step, STYPE = int, INITCOND = '0');
CREATE FUNCTION is_small(int) RETURNS bool LANGUAGE plpgsql AS $$ BEGIN RETURN $1 < 10; END $$;
CREATE DOMAIN small AS int CHECK (is_small(VALUE));
CREATE SCHEMA "Odd Schema";
CREATE TYPE "Odd Schema"."Odd Type" AS ENUM ('a');
CREATE FUNCTION "Odd Schema"."Odd Name"("Odd Schema"."Odd Type", int[] DEFAULT '{}') RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN 1; END $$;
CREATE VIEW prices AS SELECT id, price(id) FROM item;
CREATE VIEW prices2 AS SELECT * FROM prices;
CREATE VIEW both_of_them AS SELECT price(id), atomic(id) FROM item;
CREATE VIEW generated AS SELECT * FROM item WHERE price > (SELECT price(1));

-- It is not the application's to declare.
CREATE FUNCTION shipped(int) RETURNS numeric LANGUAGE sql AS $$ SELECT price($1) $$;
ALTER EXTENSION pgcrypto ADD FUNCTION shipped(int);

-- They do more.
CREATE FUNCTION inserts(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN INSERT INTO log VALUES (now()); RETURN $1; END $$;
CREATE VIEW inserting AS SELECT inserts(id) FROM item;
CREATE FUNCTION calls_writer(int) RETURNS int LANGUAGE plpgsql AS $$ BEGIN RETURN inserts($1); END $$;
CREATE FUNCTION truncates() RETURNS int LANGUAGE plpgsql AS $$ BEGIN TRUNCATE log; RETURN 1; END $$;
CREATE FUNCTION creates() RETURNS int LANGUAGE plpgsql AS $$ BEGIN IF true THEN CREATE TEMP TABLE x (i int); END IF; RETURN 1; END $$;
SET check_function_bodies = off;
CREATE FUNCTION makes_table() RETURNS void LANGUAGE sql AS $$ SELECT * INTO copied FROM item $$;
CREATE FUNCTION locks(int) RETURNS int LANGUAGE sql AS $$ SELECT id FROM item WHERE id = $1 FOR UPDATE $$;
CREATE FUNCTION locks_table() RETURNS int LANGUAGE plpgsql AS $$ BEGIN LOCK TABLE log; RETURN 1; END $$;
CREATE FUNCTION atomic_write(int) RETURNS void BEGIN ATOMIC DELETE FROM log; END;
CREATE FUNCTION atomic_lock(int) RETURNS int BEGIN ATOMIC SELECT id FROM item WHERE id = $1 FOR SHARE; END;
CREATE FUNCTION dynamic(text) RETURNS int LANGUAGE plpgsql AS $$ DECLARE n int; BEGIN EXECUTE $1 INTO n; RETURN n; END $$;
CREATE FUNCTION notifies() RETURNS int LANGUAGE plpgsql AS $$ BEGIN NOTIFY changed; RETURN 1; END $$;
CREATE FUNCTION sets() RETURNS int LANGUAGE plpgsql AS $$ BEGIN SET work_mem = '8MB'; RETURN 1; END $$;
CREATE FUNCTION resets() RETURNS void LANGUAGE sql AS $$ SELECT 1; RESET work_mem; $$;
CREATE FUNCTION configures() RETURNS int LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('work_mem', '8MB', false); RETURN 1; END $$;
CREATE FUNCTION draws() RETURNS float8 LANGUAGE sql AS $$ SELECT random() $$;
CREATE FUNCTION atomic_draws() RETURNS float8 BEGIN ATOMIC SELECT random(); END;
CREATE FUNCTION not_read() RETURNS float8 LANGUAGE internal AS 'drandom';
CREATE FUNCTION calls_not_read() RETURNS float8 LANGUAGE plpgsql AS $$ BEGIN RETURN not_read(); END $$;
CREATE FUNCTION looks_at_sessions() RETURNS bigint LANGUAGE sql AS $$ SELECT count(*) FROM pg_stat_activity $$;
