-- The layout of embeddings: a typed table for each model, its indexes, and the tables that are loaded and then swapped in.
-- This file is the only place that knows the names of these tables and indexes, and the expression that is indexed.

-- The name of a model's table, without the schema: 'live', 'shadow' (loaded and indexed before it is swapped in) or
-- 'retired' (swapped out, and still read by queries that started before).
create or replace function imgsearch._embedding_table(m imgsearch.model, role text default 'live') returns text
language sql immutable parallel safe
return 'embedding_' || m.slug || '_' || m.dim || case role when 'live' then '' else '__' || role end;

-- The name of a model's view, without the schema.
create or replace function imgsearch._view_name(m imgsearch.model) returns text
language sql immutable parallel safe
return 'images_' || m.slug;

-- The name of an index of a table. While it is built it ends with stage '__new', after it was replaced with '__old'.
create or replace function imgsearch._index_name(table_name text, method text, stage text default '') returns text
language sql immutable parallel safe
return table_name || case method when 'hnsw-binary' then '_bits' else '_hnsw' end || stage;

-- Our indexes of a table and of its partitions, those over partitions first.
create or replace function imgsearch._indexes(relation regclass)
returns table (name text, method text, stage text, over_partitions boolean, valid boolean, bytes bigint)
language sql stable parallel safe
begin atomic
    select c.relname::text, case p.parts[1] when 'bits' then 'hnsw-binary' else 'hnsw' end, coalesce(p.parts[2], ''),
           c.relkind = 'I', i.indisvalid, pg_relation_size(c.oid)
    from (select relation as oid union select t.relid from pg_partition_tree(relation) t) r
    join pg_class x on x.oid = r.oid
    join pg_index i on i.indrelid = r.oid join pg_class c on c.oid = i.indexrelid
    cross join lateral (select regexp_match(c.relname, '^' || x.relname || '_(hnsw|bits)(__new|__old)?$') as parts) p
    where p.parts is not null order by c.relkind <> 'I', c.relname;
end;

-- A vector as a model's index holds it: itself, or its bits.
create or replace function imgsearch._indexed(m imgsearch.model, operand text) returns text
language sql immutable parallel safe
begin atomic
    select case m.index_method
        when 'hnsw-binary' then format('imgsearch.%I(%s)::bit(%s)', m.index_state ->> 'bits', operand, m.dim)
        else operand end;
end;

-- The statement that creates an index of a relation (a quoted table, perhaps after "only"). state is what the model's row
-- will hold of the index.
create or replace function imgsearch._index_definition(
    m imgsearch.model, method text, state jsonb, relation text, index_name text, is_concurrent boolean
) returns text
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    m.index_method := _index_definition.method;
    m.index_state := _index_definition.state;
    return format('create index %s %I on %s using hnsw ((%s) @vector@.%s) with (m = %s, ef_construction = %s)',
        case when is_concurrent then 'concurrently' else '' end, index_name, relation,
        imgsearch._indexed(m, 'embedding'),
        case when method = 'hnsw-binary' or m.storage = 'bit' then 'bit_hamming_ops' else m.storage || '_cosine_ops' end,
        state ->> 'm', state ->> 'ef_construction');
end $$;

-- Make the index that was built (stage '__new') the model's own; the one before keeps the stage '__old' until it is dropped.
create or replace function imgsearch._use_new_index(
    model_id integer, method text, state jsonb, spec jsonb, ef_search integer
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model;
    index record;
begin
    select x.* into strict m from imgsearch.model x where x.model_id = _use_new_index.model_id;
    for index in select i.* from imgsearch._indexes(m.embeddings) i where i.stage <> '__old' order by i.stage loop
        execute format('alter index imgsearch.%I rename to %I', index.name,
                       case index.stage when '' then index.name || '__old' else left(index.name, -length('__new')) end);
    end loop;
    update imgsearch.model x
    set index_method = _use_new_index.method, index_state = _use_new_index.state, index_spec = x.index_spec || _use_new_index.spec,
        ef_search = _use_new_index.ef_search
    where x.model_id = m.model_id;
end $$;

-- Create an empty table of a model's vectors, whole or in hash partitions, whose indexes are built one by one.
create or replace function imgsearch._make_table(m imgsearch.model, table_name text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    part text;
begin
    execute format('create table imgsearch.%I (
            content_id bigint primary key references imgsearch.content on delete cascade,
            embedding %s(%s) not null%s
        ) %s', table_name, case m.storage when 'bit' then 'bit' else '@vector@.' || m.storage end, m.dim,
        -- a zero vector has no direction, so nothing can be said of its likeness; nor of one whose square is no float4
        case m.storage when 'halfvec' then ' constraint not_zero check (@vector@.l2_norm(embedding) > 0)'
                       when 'vector' then ' constraint not_zero check (@vector@.vector_norm(embedding) between 1e-15 and 1e15)' else '' end,
        case m.partitions when 1 then 'with (toast_tuple_target = 8160)' else 'partition by hash (content_id)' end);
    for number in 0 .. m.partitions - 1 loop
        exit when m.partitions = 1;
        part := table_name || '_p' || lpad(number::text, 2, '0');
        execute format('create table imgsearch.%I partition of imgsearch.%I for values with (modulus %s, remainder %s)
                        with (toast_tuple_target = 8160)', part, table_name, m.partitions, number);
        execute format('alter table imgsearch.%I enable row level security', part);  -- no policy: read it by the parent
    end loop;
    execute format('alter table imgsearch.%I alter embedding set storage external', table_name);
end $$;

-- Give a table and its partitions to the owner of imgsearch.image.
create or replace function imgsearch._give_to_owner(table_name text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    owner name := (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'imgsearch.image'::regclass);
    part regclass;
begin
    if owner = current_user then return; end if;
    for part in select t.relid from pg_partition_tree(format('imgsearch.%I', table_name)) t where t.isleaf loop
        execute format('alter table %s owner to %I', part, owner);
    end loop;
    execute format('alter table imgsearch.%I owner to %I', table_name, owner);
end $$;

-- Create a model's table and view, with the owner and grants of imgsearch.image, or restore what is missing of them.
-- Returns the table.
create or replace function imgsearch.create_embeddings(model_id integer) returns regclass
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '10s'
set client_min_messages = warning as $$
declare
    m imgsearch.model;
    owner name := (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'imgsearch.image'::regclass);
    table_name text;
    view_name text;
    unrestricted constant text := '(select not row_security_active(''imgsearch.image''))';
    shown text;
    privilege record;
begin
    select x.* into strict m from imgsearch.model x where x.model_id = create_embeddings.model_id;
    table_name := format('imgsearch.%I', imgsearch._embedding_table(m));
    view_name := format('imgsearch.%I', imgsearch._view_name(m));
    if to_regclass(table_name) is null then
        perform imgsearch._make_table(m, imgsearch._embedding_table(m));
    end if;
    if not exists (select from pg_constraint k where k.conrelid = table_name::regclass
                   and k.confrelid = 'imgsearch.content'::regclass) then
        execute format('delete from %s e where not exists (select from imgsearch.content c
                        where c.content_id = e.content_id)', table_name);
        execute format('alter table %s add foreign key (content_id) references imgsearch.content on delete cascade',
                       table_name);
    end if;
    execute format('alter table %s enable row level security', table_name);
    execute format('drop policy if exists read on %1$s; drop policy if exists add on %1$s;
        drop policy if exists change on %1$s; drop policy if exists remove on %1$s', table_name);
    -- as those of our other tables; "offset 0" keeps the condition from becoming a join, which would not use the index
    shown := format('%s or exists (select from imgsearch.image i where i.content_id = %I.content_id offset 0)',
                    unrestricted, imgsearch._embedding_table(m));
    execute format('create policy read on %s for select using (%s)', table_name, shown);
    execute format('create policy add on %s for insert with check (%s)', table_name, shown);
    execute format('create policy change on %s for update using (%s)', table_name, unrestricted);
    execute format('create policy remove on %s for delete using (%s)', table_name, unrestricted);
    execute format('comment on table %s is %L', table_name, 'embeddings of ' || m.name);
    execute format('create or replace view %s with (security_invoker) as
        select i.image_id, i.content_id, i.collection_id, i.key, i.path, i.modified_at, i.group_key, i.caption,
               i.metadata, i.added_at, i.updated_at, e.embedding
        from imgsearch.image i join %s e using (content_id)', view_name, table_name);
    update imgsearch.model x set embeddings = table_name::regclass, images = view_name::regclass
    where x.model_id = m.model_id;

    for privilege in
        select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as grantee,
               -- who may delete images is a writer, who may insert some of their columns alone
               case when bool_or(a.privilege_type = 'DELETE') then 'SELECT, INSERT, UPDATE, DELETE'
                    else string_agg(distinct a.privilege_type, ', ') end as privileges
        from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'imgsearch.image'::regclass and a.grantee <> c.relowner
            and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
        group by 1
    loop
        execute format('grant %s on %s to %s', privilege.privileges, table_name, privilege.grantee);
        if privilege.privileges like '%SELECT%' then
            execute format('grant select on %s to %s', view_name, privilege.grantee);
        end if;
    end loop;
    perform imgsearch._give_to_owner(imgsearch._embedding_table(m));
    if owner <> current_user then
        execute format('alter view %s owner to %I', view_name, owner);
    end if;
    return table_name::regclass;
end $$;

-- Split a model's empty table into hash partitions, or make it whole again with 1; raises PI009 where it has rows.
create or replace function imgsearch.partition_embeddings(model text, partitions integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '10s'
set client_min_messages = warning as $$
declare
    m imgsearch.model := imgsearch._resolve_model(partition_embeddings.model);
    live text := imgsearch._embedding_table(m);
    retired text := imgsearch._embedding_table(m, 'retired');
    filled boolean;
begin
    if partition_embeddings.partitions between 1 and 64 is not true then
        raise exception 'partitions must be 1 to 64, not %', coalesce(partition_embeddings.partitions::text, 'null')
            using errcode = 'PI008', hint = 'choose a number that gives each about 10 million rows';
    end if;
    if m.partitions = partition_embeddings.partitions then return; end if;
    lock table imgsearch.content in share row exclusive mode;  -- first, as writers take them in this order
    execute format('lock table imgsearch.%I in access exclusive mode', live);
    execute format('select exists (select from imgsearch.%I)', live) into filled;
    if filled then
        raise exception 'model % already has vectors', m.name using errcode = 'PI009',
            hint = format('this copies them: pgimgsearch index partition %s %s', m.name, partition_embeddings.partitions);
    end if;
    perform imgsearch._retire(m);
    update imgsearch.model x
    set partitions = partition_embeddings.partitions, index_method = 'none', index_state = '{}'
    where x.model_id = m.model_id;
    perform imgsearch.create_embeddings(m.model_id);
    execute format('drop table imgsearch.%I', retired);
end $$;

-- Create an empty shadow table for a model, with partitions of its own, that only the owner reads or writes.
create or replace function imgsearch._make_shadow(model_id integer, partitions integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '10s' as $$
declare
    m imgsearch.model;
    shadow text;
begin
    perform pg_advisory_xact_lock(hashtext('pgimgsearch.make_shadow'), _make_shadow.model_id);
    select x.* into strict m from imgsearch.model x where x.model_id = _make_shadow.model_id;
    shadow := imgsearch._embedding_table(m, 'shadow');
    if to_regclass(format('imgsearch.%I', shadow)) is not null then return; end if;  -- another session was first
    m.partitions := _make_shadow.partitions;
    perform imgsearch._make_table(m, shadow);
    execute format('alter table imgsearch.%I enable row level security', shadow);
    execute format('comment on table imgsearch.%I is %L', shadow, 'embeddings of ' || m.name || ', not in use yet');
    perform imgsearch._give_to_owner(shadow);
end $$;

-- Drop a model's view, tables and functions for bits.
create or replace function imgsearch._drop_embeddings(m imgsearch.model) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    -- by name, as the regclass of a table that somebody dropped is a number
    execute format('drop view if exists imgsearch.%I', imgsearch._view_name(m));
    execute format('drop table if exists imgsearch.%I, imgsearch.%I, imgsearch.%I', imgsearch._embedding_table(m),
                   imgsearch._embedding_table(m, 'shadow'), imgsearch._embedding_table(m, 'retired'));
    m.index_state := '{}';  -- no index needs its bits any more
    perform imgsearch._drop_bits_functions(m);
end $$;

-- Objects that users put on a model's table, and that replacing the table would lose: one line each.
create or replace function imgsearch._user_objects(m imgsearch.model) returns setof text
language sql stable parallel safe
begin atomic
    select format('index %s', c.relname) from pg_index i join pg_class c on c.oid = i.indexrelid
    where i.indrelid = m.embeddings and not i.indisprimary
        and c.relname not in (select x.name from imgsearch._indexes(m.embeddings) x)
    union all select format('column %s', a.attname) from pg_attribute a
    where a.attrelid = m.embeddings and a.attnum > 0 and not a.attisdropped and a.attname not in ('content_id', 'embedding')
    union all select format('trigger %s', t.tgname) from pg_trigger t where t.tgrelid = m.embeddings and not t.tgisinternal
    union all select format('policy %s', p.polname) from pg_policy p
    where p.polrelid = m.embeddings and p.polname not in ('read', 'add', 'change', 'remove')
    union all select format('publication %s', p.pubname) from pg_publication_rel r join pg_publication p on p.oid = r.prpubid
    where r.prrelid = m.embeddings
    union all select distinct format('view %s', r.ev_class::regclass) from pg_depend d join pg_rewrite r on r.oid = d.objid
    where d.classid = 'pg_rewrite'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = m.embeddings
        and r.ev_class <> m.images
    union all select format('foreign key %s', k.conname) from pg_constraint k
    where k.confrelid = m.embeddings and k.conparentid = 0 and k.conrelid <> m.embeddings
    union all select format('constraint %s', k.conname) from pg_constraint k
    where k.conrelid = m.embeddings and k.contype not in ('p', 'f', 'n') and k.conname <> 'not_zero'
    union all select distinct format('function %s', d.objid::regprocedure) from pg_depend d
    where d.classid = 'pg_proc'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = m.embeddings;
end;

-- Copy rows that a model's table has and its shadow lacks. Returns their number.
create or replace function imgsearch._catch_up(m imgsearch.model) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    result bigint;
begin
    execute format('insert into imgsearch.%1$I select e.* from %2$s e where e.content_id in (
                        select x.content_id from %2$s x except select x.content_id from imgsearch.%1$I x)',
                   imgsearch._embedding_table(m, 'shadow'), m.embeddings);
    get diagnostics result = row_count;
    return result;
end $$;

-- A table with its partitions and all of their indexes.
create or replace function imgsearch._relations(root regclass) returns setof pg_class
language sql stable parallel safe
begin atomic
    with tables as (select root as oid union select t.relid from pg_partition_tree(root) t)
    select c.* from pg_class c
    where c.oid in (select t.oid from tables t)
        or c.oid in (select i.indexrelid from pg_index i where i.indrelid in (select t.oid from tables t));
end;

-- Rename a model's table, with its partitions and indexes, out of the way: it becomes the retired one.
create or replace function imgsearch._retire(m imgsearch.model) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    live text := imgsearch._embedding_table(m);
    part record;
begin
    for part in select c.oid, c.relname, c.relkind from imgsearch._relations(m.embeddings) c loop
        execute format('alter %s imgsearch.%I rename to %I', case when part.relkind in ('i', 'I') then 'index' else 'table' end,
                       part.relname, imgsearch._embedding_table(m, 'retired')
                           || case when part.relname <> live then '_' || part.oid else '' end);
    end loop;
end $$;

-- Put a model's shadow table in place of the live one, with indexes, view and grants. The live one becomes the retired
-- table, for queries that are about to read it. Writers wait during the swap, readers at its very end.
create or replace function imgsearch._swap_embeddings(model_id integer) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model;
    live text;
    shadow text;
    user_objects text;
    new_partitions integer;
    lock_timeout_before text := current_setting('lock_timeout');
    part record;
begin
    select x.* into strict m from imgsearch.model x where x.model_id = _swap_embeddings.model_id;
    live := imgsearch._embedding_table(m);
    shadow := imgsearch._embedding_table(m, 'shadow');
    new_partitions := greatest(1, (select count(*) from pg_partition_tree(format('imgsearch.%I', shadow)) t where t.isleaf));
    select string_agg(p, ', ') into user_objects from imgsearch._user_objects(m) p;
    if user_objects is not null then
        raise exception 'replacing the table of % would lose these objects: %', m.name, user_objects using
            errcode = 'PI009', hint = 'drop them first, and create them again afterwards';
    end if;
    -- autovacuum gives way only to a wait longer than deadlock_timeout; these two locks wait for nothing else
    perform set_config('lock_timeout', '5s', true);
    execute format('lock table imgsearch.%I in access exclusive mode', shadow);
    execute format('lock table imgsearch.%I in share update exclusive mode', live);
    perform set_config('lock_timeout', lock_timeout_before, true);
    execute format('lock table imgsearch.%I in share row exclusive mode', live);
    perform imgsearch._catch_up(m);
    execute format('alter view %s set (security_invoker)', m.images);  -- locks it first, as its readers do
    execute format('lock table imgsearch.%I in access exclusive mode', live);
    perform imgsearch._retire(m);
    for part in select c.relname, c.relkind from imgsearch._relations(to_regclass(format('imgsearch.%I', shadow))) c loop
        execute format('alter %s imgsearch.%I rename to %I', case when part.relkind in ('i', 'I') then 'index' else 'table' end,
                       part.relname, live || substr(part.relname, length(shadow) + 1));
    end loop;
    update imgsearch.model x set partitions = new_partitions where x.model_id = m.model_id;
    perform imgsearch.create_embeddings(m.model_id);
    for part in select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as grantee,
                       a.privilege_type
                from pg_class c, aclexplode(c.relacl) a where c.oid = m.embeddings and a.grantee <> c.relowner loop
        execute format('grant %s on imgsearch.%I to %s', part.privilege_type, live, part.grantee);
    end loop;
end $$;
