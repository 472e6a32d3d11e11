-- What the catalog layer reads of one database: rows of (kind, oid, schema oid,
-- name, more), all of them text. load.go says what each kind means.
--
-- It must work for any role, so it reads only what everybody may read, and it
-- must stay one fast query for tens of thousands of relations: lists are put
-- together here, the closure over them is made in load.go. What refers to user
-- objects is known from pg_depend, which leaves out the built-ins; built-in
-- functions are found in the text of the stored trees.
with
rule as materialized (
  select r.oid, r.ev_class as rel, r.ev_action::text as tree
  from pg_catalog.pg_rewrite r join pg_catalog.pg_class c on c.oid = r.ev_class
  where c.relkind = 'v' and r.ev_type = '1' and c.oid >= 16384),
policy as materialized (
  select p.oid, polrelid, polqual
  from pg_catalog.pg_policy p join pg_catalog.pg_class c on c.oid = polrelid
  where relrowsecurity and polcmd in ('*', 'r') and polqual is not null),
tree(kind, oid, tree) as (
  select 'r', rel, tree from rule
  union all
  select 'r', polrelid, polqual::text from policy
  union all
  select 'r', d.adrelid, d.adbin::text
  from pg_catalog.pg_attrdef d join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
  where a.attgenerated = 'v'
  union all
  select 't', contypid, conbin::text from pg_catalog.pg_constraint where contypid >= 16384 and conbin is not null
  union all
  select 'f', oid, proargdefaults::text from pg_catalog.pg_proc where proargdefaults is not null and oid >= 16384),
mention as materialized (
  select distinct tree.kind, tree.oid, m[1] as field, m[2]::oid as target
  from tree, pg_catalog.regexp_matches(tree, ':(funcid|opfuncid|aggfnoid|winfnoid|opno|relid|typid|resulttype) (\d+)', 'g') m
  where m[2] <> '0'),
-- edge: a statement that uses the first object uses the second.
edge(kind, oid, target_kind, target) as materialized (
  select kind, oid, 'f', target from mention where field in ('funcid', 'opfuncid', 'aggfnoid', 'winfnoid')
  union
  select kind, oid, 'o', target from mention where field = 'opno' and target >= 16384
  union
  select kind, oid, 'r', target from mention where field = 'relid' and (kind, oid) <> ('r', target)
  union
  select kind, oid, 't', target from mention where field in ('typid', 'resulttype') and target >= 16384
  union
  select 'r', x.rel, c.kind, d.refobjid
  from (
    select 'pg_catalog.pg_rewrite'::pg_catalog.regclass as class, oid, rel from rule
    union all
    select 'pg_catalog.pg_policy'::pg_catalog.regclass, oid, polrelid from policy
    union all
    select 'pg_catalog.pg_attrdef'::pg_catalog.regclass, d.oid, d.adrelid
    from pg_catalog.pg_attrdef d join pg_catalog.pg_attribute a on a.attrelid = d.adrelid and a.attnum = d.adnum
    where a.attgenerated = 'v') x
  join pg_catalog.pg_depend d on d.classid = x.class and d.objid = x.oid
  join (values
    ('pg_catalog.pg_class'::pg_catalog.regclass, 'r'), ('pg_catalog.pg_proc'::pg_catalog.regclass, 'f'),
    ('pg_catalog.pg_operator'::pg_catalog.regclass, 'o'), ('pg_catalog.pg_type'::pg_catalog.regclass, 't'),
    ('pg_catalog.pg_opfamily'::pg_catalog.regclass, 'm')) c(class, kind) on c.class = d.refclassid
  where not (c.kind = 'r' and d.refobjid = x.rel)
  union
  select 't', k.contypid, c.kind, d.refobjid
  from pg_catalog.pg_constraint k
  join pg_catalog.pg_depend d on d.classid = 'pg_catalog.pg_constraint'::pg_catalog.regclass and d.objid = k.oid
  join (values
    ('pg_catalog.pg_proc'::pg_catalog.regclass, 'f'), ('pg_catalog.pg_operator'::pg_catalog.regclass, 'o'),
    ('pg_catalog.pg_type'::pg_catalog.regclass, 't'), ('pg_catalog.pg_opfamily'::pg_catalog.regclass, 'm')) c(class, kind)
    on c.class = d.refclassid
  where k.contypid >= 16384 and not (c.kind = 't' and d.refobjid = k.contypid)
  union
  -- aggregates
  select 'f', a.aggfnoid::oid, 'f', p
  from pg_catalog.pg_aggregate a,
    pg_catalog.unnest(array[aggtransfn, aggfinalfn, aggcombinefn, aggserialfn, aggdeserialfn, aggmtransfn, aggminvtransfn, aggmfinalfn]::oid[]) p
  where a.aggfnoid >= 16384 and p <> 0
  union
  select 'f', a.aggfnoid::oid, 'o', a.aggsortop from pg_catalog.pg_aggregate a where a.aggsortop >= 16384
  union
  -- types: input and output, elements, members
  select 't', t.oid, 'f', p
  from pg_catalog.pg_type t,
    pg_catalog.unnest(array[typinput, typoutput, typreceive, typsend, typmodin, typmodout]::oid[]) p
  where t.oid >= 16384 and p >= 16384
  union
  select 't', oid, 't', typbasetype from pg_catalog.pg_type where typbasetype >= 16384
  union
  select 't', rngtypid, 't', rngsubtype from pg_catalog.pg_range where rngtypid >= 16384
  union
  select 't', rngmultitypid, 't', rngtypid from pg_catalog.pg_range where rngtypid >= 16384
  union
  select 't', rngtypid, 'f', p
  from pg_catalog.pg_range, pg_catalog.unnest(array[rngcanonical, rngsubdiff]::oid[]) p
  where rngtypid >= 16384 and p <> 0
  union
  select 't', r.rngtypid, 'm', o.opcfamily
  from pg_catalog.pg_range r join pg_catalog.pg_opclass o on o.oid = r.rngsubopc
  where r.rngtypid >= 16384 and o.oid >= 16384
  union
  select 't', opcintype, 'm', opcfamily from pg_catalog.pg_opclass where oid >= 16384 and opcintype >= 16384
  union
  -- operators
  select 'o', oid, 'f', oprcode::oid from pg_catalog.pg_operator where oid >= 16384
  union
  select 'o', o.oid, 'o', p
  from pg_catalog.pg_operator o, pg_catalog.unnest(array[oprcom, oprnegate]) p
  where o.oid >= 16384 and p >= 16384
  union
  select 'o', amopopr, 'm', amopfamily from pg_catalog.pg_amop where oid >= 16384 and amopopr >= 16384
  union
  select 'm', amopfamily, 'o', amopopr from pg_catalog.pg_amop where oid >= 16384 and amopopr >= 16384
  union
  -- (functions of internal arguments are code of index methods, however they are declared)
  select 'm', a.amprocfamily, 'f', p.oid
  from pg_catalog.pg_amproc a join pg_catalog.pg_proc p on p.oid = a.amproc
  where a.oid >= 16384 and 2281 <> all (p.proargtypes)
  union
  -- relations: what their indexes and partition bounds compare with, partitions, children
  select 'r', i.indrelid, 'm', o.opcfamily
  from pg_catalog.pg_opclass o join pg_catalog.pg_index i on o.oid = any (i.indclass)
  where o.oid >= 16384
  union
  select 'r', p.partrelid, 'm', o.opcfamily
  from pg_catalog.pg_opclass o join pg_catalog.pg_partitioned_table p on o.oid = any (p.partclass)
  where o.oid >= 16384
  union
  select 'i', inhparent, 'r', inhrelid from pg_catalog.pg_inherits i
  where exists (select from pg_catalog.pg_class c where c.oid = i.inhrelid and c.relkind in ('r', 'p', 'f'))
  union
  select 'c', oid, 'f', castfunc from pg_catalog.pg_cast where oid >= 16384 and castfunc <> 0),
schema as materialized (
  select oid, nspname from pg_catalog.pg_namespace where nspname !~ '^pg_(toast|temp)')

select 'v', '', '', pg_catalog.current_setting('server_version_num'), ''
union all
select 's', oid::text, '', nspname::text, '' from schema
union all
select 'p', ord::text, '', name::text, ''
from pg_catalog.unnest(pg_catalog.current_schemas(true)) with ordinality x(name, ord)
union all
select 'r', c.oid::text, relnamespace::text, relname::text, relkind::text || ' ' || reltype || case when relrowsecurity then ' rls' else '' end
from pg_catalog.pg_class c join schema s on s.oid = c.relnamespace
where relkind in ('r', 'p', 'v', 'm', 'f', 'S', 'c') and relpersistence <> 't'
union all
select 'f', p.oid::text, pronamespace::text, proname::text,
  pg_catalog.concat_ws(' ', prokind, provolatile, pronargs, pronargdefaults, provariadic,
    case when prolang = 13 and prosrc in ('crosstab', 'crosstab_hash', 'connectby_text', 'connectby_text_serial', 'xpath_table') then 1 else 0 end,
    prorettype, proargtypes, pg_catalog.array_to_string(proallargtypes, ' '))
from pg_catalog.pg_proc p join schema s on s.oid = p.pronamespace
where p.oid >= 16384 or s.nspname <> 'pg_catalog'
union all
select 'b', p.oid::text, pronamespace::text, proname::text,
  provolatile::text || case when exists (
    select from pg_catalog.unnest(proargtypes || prorettype) t where t in (2281, 2275)) then ' internal' else '' end
from pg_catalog.pg_proc p
where p.oid in (select target from edge where target_kind = 'f' and target < 16384)
union all
select 't', t.oid::text, t.typnamespace::text, t.typname::text,
  pg_catalog.concat_ws(' ', t.typtype, t.typcategory, case when t.typcategory = 'A' then t.typelem else 0 end)
from pg_catalog.pg_type t
join schema s on s.oid = t.typnamespace
left join pg_catalog.pg_type e on e.oid = t.typelem and t.typcategory = 'A'
where t.typtype <> 'c' and coalesce(e.typtype, 'b') <> 'c'
union all
-- views that do more than read
select 'w', rel::text, '', '', pg_catalog.concat_ws(' ',
  case when tree like '%{ROWMARKCLAUSE %' then 'lock' end,
  case when tree like '%:hasModifyingCTE true%' then 'write' end,
  case when tree ~ '\{TABLESAMPLECLAUSE [^<]*:repeatable <>' or tree ~ ':tsmhandler (?!3313 |3314 )' then 'sample' end)
from rule
where tree like '%{ROWMARKCLAUSE %' or tree like '%:hasModifyingCTE true%' or tree like '%{TABLESAMPLECLAUSE %'
union all
-- arrays of rows: array, element
select 'a', '', '', '', pg_catalog.string_agg(t.oid || ' ' || e.oid, ' ')
from pg_catalog.pg_type t join pg_catalog.pg_type e on e.oid = t.typelem
where t.typcategory = 'A' and e.typtype = 'c' and e.oid >= 16384
union all
-- columns of user types: type, relations
select 'k', atttypid::text, '', '', pg_catalog.string_agg(attrelid::text, ' ')
from (select distinct atttypid, attrelid from pg_catalog.pg_attribute where atttypid >= 16384) x
group by atttypid
union all
select 'o', o.oid::text, oprnamespace::text, oprname::text, oprkind::text || ' ' || oprleft || ' ' || oprright || ' ' || oprresult
from pg_catalog.pg_operator o join schema s on s.oid = o.oprnamespace
where o.oid >= 16384 or s.nspname <> 'pg_catalog'
union all
select 'O', '', '', oprname::text, case when pg_catalog.bool_or(oprleft = 25 and oprright = 25) then 'text' else '' end
from pg_catalog.pg_operator where oid < 16384 and oprnamespace = 11
group by oprname
union all
select 'c', oid::text, '', '', pg_catalog.concat_ws(' ', castsource, casttarget, castcontext)
from pg_catalog.pg_cast where oid >= 16384
union all
select 'e', oid::text, kind, target_kind, pg_catalog.string_agg(target::text, ' ')
from edge
group by oid, kind, target_kind
