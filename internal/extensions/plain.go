package main

// plainSchema is what the plain statements read: no extension has a part in it.
const plainSchema = `
CREATE TABLE accounts (
	id int PRIMARY KEY, name text NOT NULL, email varchar(80), code char(3), balance numeric(12, 2), ratio float8, active bool,
	created timestamptz, day date, tags text[], scores int[], profile jsonb, token uuid, flags bigint, photo bytea);
CREATE TABLE orders (id bigint PRIMARY KEY, account_id int REFERENCES accounts, total numeric, placed timestamp, note text, lines jsonb);
CREATE INDEX ON orders (account_id);
CREATE VIEW big_orders AS SELECT o.id, a.name, o.total FROM orders o JOIN accounts a ON a.id = o.account_id WHERE o.total > 100`

// plain are statements that must be shared in every database that has the tables.
var plain = []string{
	"SELECT 1",
	"SELECT * FROM accounts",
	"SELECT * FROM accounts WHERE id = $1",
	"SELECT name, email FROM accounts WHERE email = $1 AND active",
	"SELECT id FROM accounts WHERE id = ANY ($1) ORDER BY id",
	"SELECT id FROM accounts WHERE id IN (1, 2, 3) AND name <> 'x' AND balance >= 10.5",
	"SELECT a.name, o.total FROM accounts a JOIN orders o ON o.account_id = a.id WHERE a.id = $1 ORDER BY o.placed DESC LIMIT 10",
	"SELECT a.id, count(o.id), sum(o.total), max(o.placed) FROM accounts a LEFT JOIN orders o ON o.account_id = a.id GROUP BY a.id HAVING count(*) > 1",
	"SELECT name FROM accounts WHERE name LIKE 'a%' OR name ILIKE '%b' OR name ~ '^c' OR name ~* 'd$'",
	"SELECT lower(name) || ' ' || upper(email), length(name), substr(name, 1, 3), substring(name from 2 for 3), trim(name) FROM accounts",
	"SELECT replace(name, 'a', 'b'), split_part(email, '@', 2), left(name, 2), right(name, 2), lpad(name, 5, '0'), rpad(name, 5), position('a' in name) FROM accounts",
	"SELECT coalesce(email, 'none'), nullif(name, ''), greatest(id, 5), least(balance, 1), CASE WHEN active THEN 'y' ELSE 'n' END FROM accounts",
	"SELECT round(balance, 1), abs(ratio), ceil(ratio), floor(balance), trunc(balance), sqrt(ratio), power(2, id), id % 7, id / 2 FROM accounts",
	"SELECT id::text, '5'::int, balance::float8, created::date, name::varchar(10), CAST(id AS numeric), '{1,2}'::int[] FROM accounts",
	"SELECT created + interval '1 day', date_trunc('day', created), extract(year FROM created), to_char(created, 'YYYY-MM-DD'), age(created) FROM accounts",
	"SELECT id FROM accounts WHERE created > now() - interval '7 days' AND day BETWEEN '2026-01-01' AND current_date",
	"SELECT created AT TIME ZONE 'UTC', to_date('2026-01-02', 'YYYY-MM-DD'), to_timestamp(0), date_part('dow', day) FROM accounts",
	"SELECT profile->>'city', profile->'a'->0, profile #>> '{a,b}', profile ? 'x' FROM accounts WHERE profile @> '{\"vip\": true}'",
	"SELECT jsonb_array_length(lines), jsonb_build_object('id', id, 'total', total), to_jsonb(note) FROM orders",
	"SELECT o.id, l->>'sku' FROM orders o CROSS JOIN LATERAL jsonb_array_elements(o.lines) l",
	"SELECT id FROM accounts WHERE token = $1 OR token = '6ba7b810-9dad-11d1-80b4-00c04fd430c8'::uuid",
	"SELECT id FROM accounts WHERE tags && ARRAY['a', 'b'] OR tags @> '{c}' OR 'd' = ANY (tags) OR scores <@ ARRAY[1, 2]",
	"SELECT unnest(tags), array_length(scores, 1), cardinality(tags), array_to_string(tags, ','), tags || 'x'::text FROM accounts",
	"SELECT array_agg(name ORDER BY id), string_agg(name, ', '), jsonb_agg(profile), bool_and(active), avg(ratio), min(name), count(DISTINCT email) FROM accounts",
	"SELECT name, row_number() OVER (PARTITION BY active ORDER BY balance DESC), lag(id) OVER (ORDER BY id), sum(balance) OVER () FROM accounts",
	"SELECT DISTINCT ON (active) active, name FROM accounts ORDER BY active, name COLLATE \"C\" NULLS LAST",
	"WITH recent AS (SELECT * FROM orders WHERE placed > $1) SELECT count(*) FROM recent r WHERE EXISTS (SELECT 1 FROM accounts a WHERE a.id = r.account_id)",
	"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10) SELECT i FROM n",
	"SELECT id, name FROM accounts UNION SELECT id::int, note FROM orders EXCEPT SELECT 1, 'x' ORDER BY 1 OFFSET 2",
	"SELECT i, d FROM generate_series(1, 10) i, generate_series('2026-01-01'::date, '2026-01-03'::date, '1 day') d",
	"SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY total), stddev(total), variance(total) FROM orders WHERE note IS NOT NULL",
	"SELECT format('%s-%s', id, name), concat(name, email), concat_ws(',', name, code), md5(name), encode(photo, 'hex'), regexp_replace(name, 'a', 'b', 'g') FROM accounts",
	"SELECT flags & 4, flags | 1, flags << 2, flags # 3, ~flags, -balance, +id, 2 ^ 3, @ id FROM accounts WHERE flags & 1 = 0",
	"SELECT * FROM big_orders WHERE total > 500 ORDER BY total DESC, name LIMIT 5",
	"SELECT (SELECT max(total) FROM orders o WHERE o.account_id = a.id) FROM accounts a WHERE (a.id, a.name) > (1, 'b') AND code = 'abc'",
	"SELECT a, a.name FROM accounts a WHERE a.email IS DISTINCT FROM 'x' AND NOT a.active",
}
