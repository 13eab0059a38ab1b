-- Tables beside live ones: filled and indexed there, and then put in their place.

-- Make an empty table beside a model's, of its own partitions, which nobody but the owner reads or writes.
create or replace function imgsearch._make_aside(model_id integer, partitions integer) returns void
language plpgsql volatile set search_path = imgsearch, @vector@, pg_temp set lock_timeout = '10s' as $$
declare
    m imgsearch.model;
    table_name text := format('imgsearch.embeddings_%s_aside', _make_aside.model_id);
    owner name := (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'imgsearch.image'::regclass);
    part regclass;
begin
    perform pg_advisory_xact_lock(hashtext('pgimgsearch.make_aside'), _make_aside.model_id);
    if to_regclass(table_name) is not null then return; end if;  -- another session has just made it
    select x.* into strict m from imgsearch.model x where x.model_id = _make_aside.model_id;
    m.partitions := _make_aside.partitions;
    perform imgsearch._make_table(m, table_name, format('embeddings_%s_aside', m.model_id));
    execute format('alter table %s enable row level security', table_name);
    execute format('comment on table %s is %L', table_name, 'embeddings of ' || m.name || ', not in use yet');
    if owner <> current_user then
        for part in select t.relid from pg_partition_tree(table_name) t where t.isleaf loop
            execute format('alter table %s owner to %I', part, owner);
        end loop;
        execute format('alter table %s owner to %I', table_name, owner);
    end if;
end $$;

-- What somebody has put on a model's table that another in its place would not have, each by kind and name.
create or replace function imgsearch._own_parts(m imgsearch.model) returns setof text
language sql stable parallel safe as $$
    select format('index %s', c.relname) from pg_index i join pg_class c on c.oid = i.indexrelid
    where i.indrelid = m.embeddings and not i.indisprimary and c.relname !~ '_(hnsw|bits|ivf|disk)(_new|_old)?$'
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
    where k.conrelid = m.embeddings and k.contype not in ('p', 'f', 'n')
    union all select distinct format('function %s', d.objid::regprocedure) from pg_depend d
    where d.classid = 'pg_proc'::regclass and d.refclassid = 'pg_class'::regclass and d.refobjid = m.embeddings
$$;

-- Copy what a model's table has, and the one beside it has not. Returns the number.
create or replace function imgsearch._catch_up(m imgsearch.model) returns bigint
language plpgsql volatile as $$
declare
    result bigint;
begin
    execute format('insert into imgsearch.embeddings_%s_aside select e.* from %s e where e.content_id in (
                        select x.content_id from %2$s x except select x.content_id from imgsearch.embeddings_%1$s_aside x)',
                   m.model_id, m.embeddings);
    get diagnostics result = row_count;
    return result;
end $$;

-- A table with its partitions and all of their indexes.
create or replace function imgsearch._tree(root regclass) returns setof pg_class
language sql stable parallel safe as $$
    with tables as (select root as oid union select t.relid from pg_partition_tree(root) t)
    select c.* from pg_class c
    where c.oid in (select t.oid from tables t)
        or c.oid in (select i.indexrelid from pg_index i where i.indrelid in (select t.oid from tables t))
$$;

-- Put the table beside a model's in its place, with indexes, view and rights. The former one stays as embeddings_ID_old,
-- for those who are about to read it. Writers wait meanwhile, and at the very end readers.
create or replace function imgsearch._swap_embeddings(model_id integer) returns void
language plpgsql volatile as $$
declare
    m imgsearch.model;
    live text;
    aside text := format('embeddings_%s_aside', _swap_embeddings.model_id);
    former text := format('embeddings_%s_old', _swap_embeddings.model_id);
    own text := (select string_agg(p, ', ') from imgsearch.model x, imgsearch._own_parts(x) p
                 where x.model_id = _swap_embeddings.model_id);
    new_parts integer := greatest(1, (select count(*) from pg_partition_tree('imgsearch.' || aside) t where t.isleaf));
    former_timeout text := current_setting('lock_timeout');
    part record;
begin
    select x.* into strict m from imgsearch.model x where x.model_id = _swap_embeddings.model_id;
    live := 'embedding_' || m.slug || '_' || m.dim;
    if own is not null then
        raise exception 'a new table of % would not have what was put on the old one: %', m.name, own using
            errcode = 'PI009', hint = 'drop that first, and make it again afterwards';
    end if;
    -- autovacuum gives way only to who waits for longer than deadlock_timeout; these locks wait for nobody else
    perform set_config('lock_timeout', '5s', true);
    execute format('lock table imgsearch.%I in access exclusive mode', aside);
    execute format('lock table imgsearch.%I in share update exclusive mode', live);
    perform set_config('lock_timeout', former_timeout, true);
    execute format('lock table imgsearch.%I in share row exclusive mode', live);
    perform imgsearch._catch_up(m);
    execute format('alter view %s set (security_invoker)', m.images);  -- locks it first, as those who read it do
    execute format('lock table imgsearch.%I in access exclusive mode', live);
    for part in select c.oid, c.relname, c.relkind from imgsearch._tree(m.embeddings) c loop
        execute format('alter %s imgsearch.%I rename to %I', case when part.relkind in ('i', 'I') then 'index' else 'table' end,
                       part.relname, former || case when part.relname <> live then '_' || part.oid else '' end);
    end loop;
    for part in select c.relname, c.relkind from imgsearch._tree(to_regclass('imgsearch.' || aside)) c loop
        execute format('alter %s imgsearch.%I rename to %I', case when part.relkind in ('i', 'I') then 'index' else 'table' end,
                       part.relname, regexp_replace(regexp_replace(regexp_replace(part.relname,
                           '^' || aside || '_(\d\d)', format('embeddings_%s_%s_\1', m.model_id, new_parts)),
                           '^' || aside, live), '_new$', ''));
    end loop;
    update imgsearch.model x set partitions = new_parts where x.model_id = m.model_id;
    perform imgsearch.create_embeddings(m.model_id);
    for part in select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as grantee,
                       a.privilege_type
                from pg_class c, aclexplode(c.relacl) a where c.oid = m.embeddings and a.grantee <> c.relowner loop
        execute format('grant %s on imgsearch.%I to %s', part.privilege_type, live, part.grantee);
    end loop;
end $$;
