-- What the catalog layer reads of one database: rows of (kind, oid, schema oid,
-- name, more), all of them text. load.go says what each kind means.
--
-- It must work for any role, so it reads only what everybody may read, and it
-- must stay fast for tens of thousands of relations: lists are put together here,
-- the closure over them is made in load.go. What refers to user objects is known
-- from pg_depend, which leaves out the built-ins; built-in functions are found in
-- the text of the stored trees.
--
-- It runs as the application's role: what it calls must not depend on who may
-- create objects where. Each name and operator in it is qualified (no IN, LIKE,
-- BETWEEN, IS DISTINCT FROM, USING, CASE x WHEN, which look for their operators in
-- the search_path), and once that is read it has one of its own, in the transaction
-- that QueryFunc promises. All OPERATOR() bind alike, to the left. UNION, GROUP BY
-- and conversions look nothing up by name: they go by the operator class or the
-- cast of a built-in type, and only a superuser makes these.
select 'p', ord::pg_catalog.text, '', name::pg_catalog.text, ''
from pg_catalog.unnest(pg_catalog.current_schemas(true)) with ordinality x(name, ord);

set local search_path = pg_catalog, pg_temp;

with
rule as materialized (
  select r.oid, r.ev_class as rel, r.ev_action::pg_catalog.text as tree
  from pg_catalog.pg_rewrite r join pg_catalog.pg_class c on c.oid operator(pg_catalog.=) r.ev_class
  where c.relkind operator(pg_catalog.=) 'v' and r.ev_type operator(pg_catalog.=) '1' and c.oid operator(pg_catalog.>=) 16384),
policy as materialized (
  select p.oid, polrelid, polqual
  from pg_catalog.pg_policy p join pg_catalog.pg_class c on c.oid operator(pg_catalog.=) polrelid
  where relrowsecurity and polcmd operator(pg_catalog.=) any ('{*,r}'::pg_catalog."char"[]) and polqual is not null),
tree(kind, oid, tree) as (
  select 'r', rel, tree from rule
  union all
  select 'P', polrelid, polqual::pg_catalog.text from policy
  union all
  select 'r', d.adrelid, d.adbin::pg_catalog.text
  from pg_catalog.pg_attrdef d
  join pg_catalog.pg_attribute a on a.attrelid operator(pg_catalog.=) d.adrelid and a.attnum operator(pg_catalog.=) d.adnum
  where a.attgenerated operator(pg_catalog.=) 'v'
  union all
  select 't', contypid, conbin::pg_catalog.text
  from pg_catalog.pg_constraint where contypid operator(pg_catalog.>=) 16384 and conbin is not null
  union all
  select 'f', oid, proargdefaults::pg_catalog.text
  from pg_catalog.pg_proc where proargdefaults is not null and oid operator(pg_catalog.>=) 16384
  union all
  -- (BEGIN ATOMIC, from 14 on)
  select 'F', p.oid, pg_catalog.to_jsonb(p) operator(pg_catalog.->>) 'prosqlbody'
  from pg_catalog.pg_proc p
  where p.oid operator(pg_catalog.>=) 16384 and prolang operator(pg_catalog.=) 14 and prosrc operator(pg_catalog.=) ''),
-- built-in types that somebody has given a default way of comparing, which sorting,
-- grouping and the like use without a name; and their arrays
compared as materialized (
  select t.oid
  from pg_catalog.pg_type t
  join pg_catalog.pg_opclass o on o.opcintype operator(pg_catalog.=) t.oid or o.opcintype operator(pg_catalog.=) t.typelem and t.typcategory operator(pg_catalog.=) 'A'
  where t.oid operator(pg_catalog.<) 16384 and o.oid operator(pg_catalog.>=) 16384 and o.opcdefault
    and o.opcmethod operator(pg_catalog.=) any ('{403,405}'::pg_catalog.oid[])),
mention as materialized (
  select tree.kind, tree.oid, m[1] as field, m[2]::pg_catalog.oid as target
  from tree, pg_catalog.regexp_matches(tree, ':(funcid|opfuncid|aggfnoid|winfnoid|opno|relid|typid|resulttype) (\d+)', 'g') m
  where m[2] operator(pg_catalog.<>) '0'
  group by 1, 2, 3, 4),
-- edge: a statement that uses the first object uses the second.
edge(kind, oid, target_kind, target) as materialized (
  select kind, oid, 'f', target
  from mention where field operator(pg_catalog.=) any ('{funcid,opfuncid,aggfnoid,winfnoid}'::pg_catalog.text[])
  union
  select kind, oid, 'o', target from mention where field operator(pg_catalog.=) 'opno' and target operator(pg_catalog.>=) 16384
  union
  select kind, oid, 'r', target
  from mention
  where field operator(pg_catalog.=) 'relid' and (kind operator(pg_catalog.<>) 'r' or oid operator(pg_catalog.<>) target)
  union
  select kind, oid, 't', target
  from mention
  where field operator(pg_catalog.=) any ('{typid,resulttype}'::pg_catalog.text[]) and target operator(pg_catalog.>=) 16384
  union
  select x.kind, x.rel, c.kind, d.refobjid
  from (
    select 'r' as kind, 'pg_catalog.pg_rewrite'::pg_catalog.regclass as class, oid, rel from rule
    union all
    select 'P', 'pg_catalog.pg_policy'::pg_catalog.regclass, oid, polrelid from policy
    union all
    select 'r', 'pg_catalog.pg_attrdef'::pg_catalog.regclass, d.oid, d.adrelid
    from pg_catalog.pg_attrdef d
    join pg_catalog.pg_attribute a on a.attrelid operator(pg_catalog.=) d.adrelid and a.attnum operator(pg_catalog.=) d.adnum
    where a.attgenerated operator(pg_catalog.=) 'v') x
  join pg_catalog.pg_depend d on d.classid operator(pg_catalog.=) x.class and d.objid operator(pg_catalog.=) x.oid
  join (values
    ('pg_catalog.pg_class'::pg_catalog.regclass, 'r'), ('pg_catalog.pg_proc'::pg_catalog.regclass, 'f'),
    ('pg_catalog.pg_operator'::pg_catalog.regclass, 'o'), ('pg_catalog.pg_type'::pg_catalog.regclass, 't'),
    ('pg_catalog.pg_opfamily'::pg_catalog.regclass, 'm')) c(class, kind) on c.class operator(pg_catalog.=) d.refclassid
  where not (c.kind operator(pg_catalog.=) 'r' and d.refobjid operator(pg_catalog.=) x.rel)
  union
  select x.kind, x.oid, c.kind, d.refobjid
  from (
    select 'f' as kind, oid from pg_catalog.pg_proc where proargdefaults is not null and oid operator(pg_catalog.>=) 16384
    union all
    select kind, oid from tree where kind operator(pg_catalog.=) 'F') x
  join pg_catalog.pg_depend d on d.classid operator(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid operator(pg_catalog.=) x.oid
  join (values
    ('pg_catalog.pg_class'::pg_catalog.regclass, 'r'), ('pg_catalog.pg_proc'::pg_catalog.regclass, 'f'),
    ('pg_catalog.pg_operator'::pg_catalog.regclass, 'o'), ('pg_catalog.pg_type'::pg_catalog.regclass, 't'),
    ('pg_catalog.pg_opfamily'::pg_catalog.regclass, 'm')) c(class, kind) on c.class operator(pg_catalog.=) d.refclassid
  where not (c.kind operator(pg_catalog.=) 'f' and d.refobjid operator(pg_catalog.=) x.oid)
  union
  -- (JSON_OBJECT and its like do what to_json does)
  select kind, oid, 'f', 3176
  from tree where pg_catalog.strpos(tree, '{JSONCONSTRUCTOREXPR ') operator(pg_catalog.>) 0
  union
  -- (pg_depend has no built-in types)
  select kind, oid, 't', m[1]::pg_catalog.oid
  from tree, pg_catalog.regexp_matches(tree, ':[a-z_]*type[a-z]* (\d+)', 'g') m
  where exists (select from compared) and m[1] operator(pg_catalog.=) any (array(select oid::pg_catalog.text from compared))
  union
  select 't', k.contypid, c.kind, d.refobjid
  from pg_catalog.pg_constraint k
  join pg_catalog.pg_depend d on d.classid operator(pg_catalog.=) 'pg_catalog.pg_constraint'::pg_catalog.regclass and d.objid operator(pg_catalog.=) k.oid
  join (values
    ('pg_catalog.pg_proc'::pg_catalog.regclass, 'f'), ('pg_catalog.pg_operator'::pg_catalog.regclass, 'o'),
    ('pg_catalog.pg_type'::pg_catalog.regclass, 't'), ('pg_catalog.pg_opfamily'::pg_catalog.regclass, 'm')) c(class, kind)
    on c.class operator(pg_catalog.=) d.refclassid
  where k.contypid operator(pg_catalog.>=) 16384 and not (c.kind operator(pg_catalog.=) 't' and d.refobjid operator(pg_catalog.=) k.contypid)
  union
  -- aggregates
  select 'f', a.aggfnoid::pg_catalog.oid, 'f', p
  from pg_catalog.pg_aggregate a,
    pg_catalog.unnest(array[aggtransfn, aggfinalfn, aggcombinefn, aggserialfn, aggdeserialfn, aggmtransfn, aggminvtransfn, aggmfinalfn]::pg_catalog.oid[]) p
  where a.aggfnoid operator(pg_catalog.>=) 16384 and p operator(pg_catalog.<>) 0
  union
  select 'f', a.aggfnoid::pg_catalog.oid, 't', t
  from pg_catalog.pg_aggregate a, pg_catalog.unnest(array[aggtranstype, aggmtranstype]) t
  where a.aggfnoid operator(pg_catalog.>=) 16384 and t operator(pg_catalog.>=) 16384
  union
  select 'f', a.aggfnoid::pg_catalog.oid, 'o', a.aggsortop
  from pg_catalog.pg_aggregate a where a.aggsortop operator(pg_catalog.>=) 16384
  union
  -- built-ins by another name (aggregates all have the same)
  select 'f', p.oid, 'f', b.oid
  from pg_catalog.pg_proc p
  join pg_catalog.pg_proc b on b.prosrc operator(pg_catalog.=) p.prosrc and b.prolang operator(pg_catalog.=) 12 and b.oid operator(pg_catalog.<) 16384
  where p.oid operator(pg_catalog.>=) 16384 and p.prolang operator(pg_catalog.=) 12 and p.prokind operator(pg_catalog.<>) 'a'
  union
  -- types: input and output, elements, members
  select 't', t.oid, 'f', p
  from pg_catalog.pg_type t,
    pg_catalog.unnest(array[typinput, typoutput, typreceive, typsend, typmodin, typmodout]::pg_catalog.oid[]) p
  where t.oid operator(pg_catalog.>=) 16384 and p operator(pg_catalog.>=) 16384
  union
  select 't', oid, 't', typbasetype from pg_catalog.pg_type where oid operator(pg_catalog.>=) 16384 and typbasetype operator(pg_catalog.<>) 0
  union
  select 't', rngtypid, 't', rngsubtype from pg_catalog.pg_range where rngtypid operator(pg_catalog.>=) 16384
  union
  select 't', rngmultitypid, 't', rngtypid from pg_catalog.pg_range where rngtypid operator(pg_catalog.>=) 16384
  union
  select 'd', rngtypid, 't', rngmultitypid from pg_catalog.pg_range where rngtypid operator(pg_catalog.>=) 16384
  union
  select 't', rngtypid, 'f', p
  from pg_catalog.pg_range, pg_catalog.unnest(array[rngcanonical, rngsubdiff]::pg_catalog.oid[]) p
  where rngtypid operator(pg_catalog.>=) 16384 and p operator(pg_catalog.<>) 0
  union
  select 't', r.rngtypid, 'm', o.opcfamily
  from pg_catalog.pg_range r join pg_catalog.pg_opclass o on o.oid operator(pg_catalog.=) r.rngsubopc
  where r.rngtypid operator(pg_catalog.>=) 16384 and o.oid operator(pg_catalog.>=) 16384
  union
  select 't', opcintype, 'm', opcfamily
  from pg_catalog.pg_opclass
  where oid operator(pg_catalog.>=) 16384
    and (opcintype operator(pg_catalog.>=) 16384 or opcdefault and opcmethod operator(pg_catalog.=) any ('{403,405}'::pg_catalog.oid[]))
  union
  -- what makes a compared value of something else
  select 'f', p.oid, 't', c.oid
  from pg_catalog.pg_proc p
  join compared c on c.oid operator(pg_catalog.=) p.prorettype or c.oid operator(pg_catalog.=) any (p.proallargtypes) or c.oid operator(pg_catalog.=) any (p.proargtypes)
  union
  select 'o', o.oid, 't', c.oid
  from pg_catalog.pg_operator o join compared c on c.oid operator(pg_catalog.=) o.oprresult
  where o.oprleft operator(pg_catalog.<>) all (select oid from compared) and o.oprright operator(pg_catalog.<>) all (select oid from compared)
  union
  -- operators
  select 'o', oid, 'f', oprcode::pg_catalog.oid from pg_catalog.pg_operator where oid operator(pg_catalog.>=) 16384
  union
  select 'o', o.oid, 'o', p
  from pg_catalog.pg_operator o, pg_catalog.unnest(array[oprcom, oprnegate]) p
  where o.oid operator(pg_catalog.>=) 16384 and p operator(pg_catalog.>=) 16384
  union
  select 'o', amopopr, 'm', amopfamily
  from pg_catalog.pg_amop where oid operator(pg_catalog.>=) 16384 and amopopr operator(pg_catalog.>=) 16384
  union
  select 'm', amopfamily, 'o', amopopr
  from pg_catalog.pg_amop where oid operator(pg_catalog.>=) 16384 and amopopr operator(pg_catalog.>=) 16384
  union
  -- (functions of internal arguments are code of index methods, however they are declared)
  select 'm', a.amprocfamily, 'f', p.oid
  from pg_catalog.pg_amproc a join pg_catalog.pg_proc p on p.oid operator(pg_catalog.=) a.amproc
  where a.oid operator(pg_catalog.>=) 16384 and 2281 operator(pg_catalog.<>) all (p.proargtypes)
  union
  -- relations: what their indexes and partition bounds compare with, partitions, children
  select 'r', i.indrelid, 'm', o.opcfamily
  from pg_catalog.pg_opclass o join pg_catalog.pg_index i on o.oid operator(pg_catalog.=) any (i.indclass)
  where o.oid operator(pg_catalog.>=) 16384
  union
  select 'r', p.partrelid, 'm', o.opcfamily
  from pg_catalog.pg_opclass o join pg_catalog.pg_partitioned_table p on o.oid operator(pg_catalog.=) any (p.partclass)
  where o.oid operator(pg_catalog.>=) 16384
  union
  select 'i', inhparent, 'r', inhrelid from pg_catalog.pg_inherits i
  where exists (
    select from pg_catalog.pg_class c
    where c.oid operator(pg_catalog.=) i.inhrelid and c.relkind operator(pg_catalog.=) any ('{r,p,f}'::pg_catalog."char"[]))
  union
  select 'c', oid, 'f', castfunc
  from pg_catalog.pg_cast where oid operator(pg_catalog.>=) 16384 and castfunc operator(pg_catalog.<>) 0
  union
  -- what planning a read of a table can run, if all its arguments are constants
  select 'x', x.rel, c.kind, d.refobjid
  from (
    select 'pg_catalog.pg_class'::pg_catalog.regclass as class, indexrelid as oid, indrelid as rel
    from pg_catalog.pg_index where indexprs is not null or indpred is not null
    union all
    select 'pg_catalog.pg_class'::pg_catalog.regclass, partrelid, partrelid
    from pg_catalog.pg_partitioned_table where partexprs is not null
    union all
    select 'pg_catalog.pg_constraint'::pg_catalog.regclass, oid, conrelid
    from pg_catalog.pg_constraint where contype operator(pg_catalog.=) 'c' and conrelid operator(pg_catalog.>=) 16384
    union all
    select 'pg_catalog.pg_statistic_ext'::pg_catalog.regclass, oid, stxrelid
    from pg_catalog.pg_statistic_ext where stxexprs is not null) x
  join pg_catalog.pg_depend d on d.classid operator(pg_catalog.=) x.class and d.objid operator(pg_catalog.=) x.oid
  join (values
    ('pg_catalog.pg_proc'::pg_catalog.regclass, 'f'), ('pg_catalog.pg_operator'::pg_catalog.regclass, 'o'),
    ('pg_catalog.pg_type'::pg_catalog.regclass, 't')) c(class, kind) on c.class operator(pg_catalog.=) d.refclassid
  where d.refobjid operator(pg_catalog.>=) 16384),
-- what bodies are written in: a language's name can be anybody's
language(oid, name) as materialized (
  select l.oid, case
    when l.oid operator(pg_catalog.=) 14 then 'sql'
    when h.prosrc operator(pg_catalog.=) 'plpgsql_call_handler' then 'plpgsql'
    when l.lanname operator(pg_catalog.<>) all ('{sql,plpgsql}'::pg_catalog.name[]) then l.lanname::pg_catalog.text
    else '' end
  from pg_catalog.pg_language l left join pg_catalog.pg_proc h on h.oid operator(pg_catalog.=) l.lanplcallfoid),
-- functions whose bodies have strings by rules of their own
otherwise as materialized (
  select oid from pg_catalog.pg_proc
  where proconfig is not null and pg_catalog.array_to_string(proconfig, ' ') operator(pg_catalog.~*) 'standard_conforming_strings='),
schema as materialized (
  select oid, nspname from pg_catalog.pg_namespace where nspname operator(pg_catalog.!~) '^pg_(toast|temp)')

select 'v', '', '', pg_catalog.current_setting('server_version_num'), ''
union all
select 's', oid::pg_catalog.text, '', nspname::pg_catalog.text, '' from schema
union all
select 'r', c.oid::pg_catalog.text, relnamespace::pg_catalog.text, relname::pg_catalog.text,
  pg_catalog.concat_ws(' ', relkind, reltype,
    case when relrowsecurity then case when pg_catalog.row_security_active(c.oid) then 'rls' else 'exempt' end end,
    case when relam operator(pg_catalog.>=) 16384 then 'am' end,
    case when relkind operator(pg_catalog.=) 'v' and (pg_catalog.pg_get_userbyid(relowner) operator(pg_catalog.=) current_user or exists (
      select from pg_catalog.pg_options_to_table(reloptions)
      where option_name operator(pg_catalog.=) 'security_invoker' and option_value::pg_catalog.bool)) then 'invoker' end)
from pg_catalog.pg_class c join schema s on s.oid operator(pg_catalog.=) c.relnamespace
where relkind operator(pg_catalog.=) any ('{r,p,v,m,f,S,c}'::pg_catalog."char"[]) and relpersistence operator(pg_catalog.<>) 't'
union all
-- built-in functions with a name that a user's has, too
select 'B', '', '', proname::pg_catalog.text, proargtypes::pg_catalog.text
from pg_catalog.pg_proc
where oid operator(pg_catalog.<) 16384 and pronamespace operator(pg_catalog.=) 11 and provariadic operator(pg_catalog.=) 0
  and pronargdefaults operator(pg_catalog.=) 0 and pronargs operator(pg_catalog.>) 0
  and proname operator(pg_catalog.=) any (array(select proname from pg_catalog.pg_proc where oid operator(pg_catalog.>=) 16384))
union all
-- (before functions and operators)
select 'q', oid::pg_catalog.text, '', '', '' from compared
union all
select 'Q', p.oid::pg_catalog.text, p.pronamespace::pg_catalog.text, p.proname::pg_catalog.text, ''
from pg_catalog.pg_proc p
where p.oid operator(pg_catalog.<) 16384 and exists (
  select from compared c where c.oid operator(pg_catalog.=) p.prorettype or c.oid operator(pg_catalog.=) any (p.proallargtypes))
union all
select 'f', p.oid::pg_catalog.text, pronamespace::pg_catalog.text, proname::pg_catalog.text,
  pg_catalog.concat_ws(' ', pg_catalog.concat(prokind, case when proargnames is not null then 'n' end,
      case when prolang operator(pg_catalog.<>) all ('{12,13}'::pg_catalog.oid[]) then 'l' end), provolatile, pronargs, pronargdefaults, provariadic,
    case when prolang operator(pg_catalog.=) 13 and prosrc operator(pg_catalog.!~) '\s'
      then prosrc else '-' end,
    prorettype, proargtypes, pg_catalog.array_to_string(proallargtypes, ' '))
from pg_catalog.pg_proc p join schema s on s.oid operator(pg_catalog.=) p.pronamespace
where p.oid operator(pg_catalog.>=) 16384 or s.nspname operator(pg_catalog.<>) 'pg_catalog'
union all
-- bodies of functions that are not declared volatile; without a language they cannot be read
select 'y', p.oid::pg_catalog.text, '', case when p.oid operator(pg_catalog.<>) all (array(select oid from otherwise)) then l.name else '' end, p.prosrc
from pg_catalog.pg_proc p join language l on l.oid operator(pg_catalog.=) p.prolang
where p.oid operator(pg_catalog.>=) 16384 and p.provolatile operator(pg_catalog.<>) 'v'
  and p.prokind operator(pg_catalog.=) any ('{f,w}'::pg_catalog."char"[])
  and p.prolang operator(pg_catalog.<>) all ('{12,13}'::pg_catalog.oid[]) and p.prosrc operator(pg_catalog.<>) ''
union all
-- … and of those that are, with what ALTER FUNCTION calls them, but for triggers' and
-- extensions' (of BEGIN ATOMIC the tree says whether it writes)
select 'y', p.oid::pg_catalog.text, p.oid::pg_catalog.regprocedure::pg_catalog.text,
  case when p.oid operator(pg_catalog.<>) all (array(select oid from otherwise)) then l.name else '' end, p.prosrc
from pg_catalog.pg_proc p join language l on l.oid operator(pg_catalog.=) p.prolang
where p.oid operator(pg_catalog.>=) 16384 and p.provolatile operator(pg_catalog.=) 'v' and p.prokind operator(pg_catalog.=) 'f'
  and l.name operator(pg_catalog.=) any ('{sql,plpgsql}'::pg_catalog.text[])
  and p.prorettype operator(pg_catalog.<>) all ('{2279,3838}'::pg_catalog.oid[])
  and pg_catalog.octet_length(p.prosrc) operator(pg_catalog.<) 8192 -- for a hint
  and not exists (
    select from pg_catalog.pg_depend d
    where d.classid operator(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid operator(pg_catalog.=) p.oid
      and d.deptype operator(pg_catalog.=) 'e')
  and (p.prosrc operator(pg_catalog.<>) ''
    or pg_catalog.to_jsonb(p) operator(pg_catalog.->>) 'prosqlbody' operator(pg_catalog.!~) ':commandType [^1]|\{ROWMARKCLAUSE ')
union all
select 'b', p.oid::pg_catalog.text, pronamespace::pg_catalog.text, proname::pg_catalog.text,
  pg_catalog.concat_ws(' ', provolatile,
    case when prorettype operator(pg_catalog.=) any ('{2281,2275}'::pg_catalog.oid[])
      or 2281 operator(pg_catalog.=) any (proargtypes) or 2275 operator(pg_catalog.=) any (proargtypes) then 'internal' end)
from pg_catalog.pg_proc p
where p.oid operator(pg_catalog.=) any (select target from edge where target_kind operator(pg_catalog.=) 'f' and target operator(pg_catalog.<) 16384)
union all
select 't', t.oid::pg_catalog.text, t.typnamespace::pg_catalog.text, t.typname::pg_catalog.text,
  pg_catalog.concat_ws(' ', t.typtype, t.typcategory, case when t.typcategory operator(pg_catalog.=) 'A' then t.typelem else 0 end,
    case when t.typispreferred then 'preferred' end)
from pg_catalog.pg_type t
join schema s on s.oid operator(pg_catalog.=) t.typnamespace
left join pg_catalog.pg_type e on e.oid operator(pg_catalog.=) t.typelem and t.typcategory operator(pg_catalog.=) 'A'
where t.typtype operator(pg_catalog.<>) 'c' and coalesce(e.typtype, 'b') operator(pg_catalog.<>) 'c'
union all
-- views that do more than read, or call functions without a name
select 'w', rel::pg_catalog.text, '', '', pg_catalog.concat_ws(' ',
  case when locks then 'lock' end,
  case when writes then 'write' end,
  case when tree operator(pg_catalog.~) '\{TABLESAMPLECLAUSE [^<]*:repeatable <>'
    or tree operator(pg_catalog.~) ':tsmhandler (?!3313 |3314 )' then 'sample' end,
  case when syntax then 'syntax' end)
from (
  select rel, case when samples then tree end as tree, locks, writes, samples, syntax
  from rule, lateral (
    select pg_catalog.strpos(tree, '{ROWMARKCLAUSE ') operator(pg_catalog.>) 0,
      pg_catalog.strpos(tree, ':hasModifyingCTE true') operator(pg_catalog.>) 0,
      pg_catalog.strpos(tree, '{TABLESAMPLECLAUSE ') operator(pg_catalog.>) 0,
      pg_catalog.strpos(tree, '{XMLEXPR ') operator(pg_catalog.>) 0 or pg_catalog.strpos(tree, '{TABLEFUNC ') operator(pg_catalog.>) 0
    offset 0) x(locks, writes, samples, syntax)) v
where locks or writes or samples or syntax
union all
-- code of users that any statement can reach without a name: comparisons of built-in
-- types, conversions of encodings, text search
select 'u', '', '', '', pg_catalog.concat_ws(' ',
  case when exists (select from pg_catalog.pg_conversion where oid operator(pg_catalog.>=) 16384)
    or exists (
      select from pg_catalog.pg_opclass
      where oid operator(pg_catalog.>=) 16384 and opcdefault and opcintype operator(pg_catalog.<) 16384
        and opcmethod operator(pg_catalog.=) any ('{403,405}'::pg_catalog.oid[]))
    or exists (
      select from pg_catalog.pg_amproc
      where oid operator(pg_catalog.>=) 16384 and amprocfamily operator(pg_catalog.<) 16384
        and amproclefttype operator(pg_catalog.<) 16384 and amprocrighttype operator(pg_catalog.<) 16384)
    or exists (
      select from pg_catalog.pg_amop
      where oid operator(pg_catalog.>=) 16384 and amopfamily operator(pg_catalog.<) 16384
        and amoplefttype operator(pg_catalog.<) 16384 and amoprighttype operator(pg_catalog.<) 16384)
  then 'all' end,
  case when exists (select from pg_catalog.pg_ts_template where oid operator(pg_catalog.>=) 16384)
    or exists (select from pg_catalog.pg_ts_parser where oid operator(pg_catalog.>=) 16384) then 'search' end)
union all
-- arrays of rows: array, element
select 'a', '', '', '', pg_catalog.string_agg(pg_catalog.concat(t.oid, ' ', e.oid), ' ')
from pg_catalog.pg_type t join pg_catalog.pg_type e on e.oid operator(pg_catalog.=) t.typelem
where t.typcategory operator(pg_catalog.=) 'A' and e.typtype operator(pg_catalog.=) 'c' and e.oid operator(pg_catalog.>=) 16384
union all
-- columns of user types, and of those that name objects: type, relations
select 'k', atttypid::pg_catalog.text, '', '', pg_catalog.string_agg(attrelid::pg_catalog.text, ' ')
from (
  select atttypid, attrelid from pg_catalog.pg_attribute
  where atttypid operator(pg_catalog.>=) 16384
    or atttypid operator(pg_catalog.=) any ('{2202,2204,2206}'::pg_catalog.oid[]) and attrelid operator(pg_catalog.>=) 16384
    or atttypid operator(pg_catalog.=) any (select oid from compared)
  group by 1, 2) x
group by atttypid
union all
select 'o', o.oid::pg_catalog.text, oprnamespace::pg_catalog.text, oprname::pg_catalog.text,
  pg_catalog.concat_ws(' ', oprkind, oprleft, oprright, oprresult)
from pg_catalog.pg_operator o join schema s on s.oid operator(pg_catalog.=) o.oprnamespace
where o.oid operator(pg_catalog.>=) 16384 or s.nspname operator(pg_catalog.<>) 'pg_catalog'
  or o.oprresult operator(pg_catalog.=) any (select oid from compared)
    and o.oprleft operator(pg_catalog.<>) all (select oid from compared) and o.oprright operator(pg_catalog.<>) all (select oid from compared)
union all
select 'O', '', '', oprname::pg_catalog.text,
  pg_catalog.concat_ws(' ', case when pg_catalog.bool_or(oprleft operator(pg_catalog.=) 25 and oprright operator(pg_catalog.=) 25) then 'text' end,
    pg_catalog.string_agg(pg_catalog.concat(oprleft, ',', oprright), ' '))
from pg_catalog.pg_operator where oid operator(pg_catalog.<) 16384 and oprnamespace operator(pg_catalog.=) 11
group by oprname
union all
select 'c', oid::pg_catalog.text, '', '', pg_catalog.concat_ws(' ', castsource, casttarget, castcontext)
from pg_catalog.pg_cast where oid operator(pg_catalog.>=) 16384
union all
select 'e', oid::pg_catalog.text, kind, target_kind, pg_catalog.string_agg(target::pg_catalog.text, ' ')
from edge
group by oid, kind, target_kind
