-- Models: names and aliases, their typed tables, and who may read them.

-- The model behind a name or an alias; raises PI001 when there is none.
create or replace function imgsearch._resolve_model(model text) returns imgsearch.model
language plpgsql stable parallel safe as $$
declare
    found_model imgsearch.model;
    known text;
begin
    select m.* into found_model
    from imgsearch.model m
    where m.model_id = coalesce(
        (select a.model_id from imgsearch.alias a where a.alias = _resolve_model.model),
        (select x.model_id from imgsearch.model x where x.name = _resolve_model.model),
        -- duplicates follows default until it is set
        (select a.model_id from imgsearch.alias a where a.alias = 'default' and _resolve_model.model = 'duplicates'));
    if not found then
        select string_agg(m.name, ', ' order by m.name) into known from imgsearch.model m;
        raise exception 'unknown model or alias: %', coalesce(_resolve_model.model, 'null') using
            errcode = 'PI001',
            hint = case when known is null then 'no model was added yet: run "pgimgsearch ingest DIR --model NAME"'
                        else 'known models: ' || known || '; add one with "pgimgsearch models add NAME"' end;
    end if;
    return found_model;
end $$;

-- Whether the caller may see an image of this content: the policy of every embedding table.
create or replace function imgsearch.visible(content_id bigint) returns boolean
language plpgsql stable parallel safe as $$
begin
    return not row_security_active('imgsearch.image')
        or exists (select from imgsearch.image i where i.content_id = visible.content_id);
end $$;

-- Make an empty table of a model's vectors, in one piece or in hash partitions, whose indexes are built one by one. Of
-- those who call it, as of create_embeddings, the search path has the vector extension.
create or replace function imgsearch._make_table(m imgsearch.model, table_name text, parts_name text) returns void
language plpgsql volatile as $$
declare
    part text;
begin
    execute format('create table %s (
            content_id bigint primary key references imgsearch.content on delete cascade,
            embedding %s(%s) not null
        ) %s', table_name, m.storage, m.dim,
        case m.partitions when 1 then 'with (toast_tuple_target = 8160)' else 'partition by hash (content_id)' end);
    for number in 0 .. m.partitions - 1 loop
        exit when m.partitions = 1;
        part := format('imgsearch.%s_%s', parts_name, lpad(number::text, 2, '0'));
        execute format('create table %s partition of %s for values with (modulus %s, remainder %s)
                        with (toast_tuple_target = 8160)', part, table_name, m.partitions, number);
        execute format('alter table %s enable row level security', part);  -- with no policy: read it by the whole
    end loop;
    execute format('alter table %s alter embedding set storage external', table_name);
end $$;

-- Lay a model's empty table out in so many hash partitions, or with 1 in one piece; raises PI009 where it has rows.
create or replace function imgsearch.partition_embeddings(model text, partitions integer) returns void
language plpgsql volatile set search_path = imgsearch, @vector@, pg_temp set lock_timeout = '10s'
set client_min_messages = warning as $$
declare
    m imgsearch.model := imgsearch._resolve_model(partition_embeddings.model);
    table_name text := 'embedding_' || m.slug || '_' || m.dim;
    former text := 'embeddings_' || m.model_id || '_old';
    filled boolean;
begin
    if partition_embeddings.partitions between 1 and 64 is not true then
        raise exception 'partitions must be 1 to 64, not %', coalesce(partition_embeddings.partitions::text, 'null')
            using errcode = 'PI008', hint = 'as many as make each of them some 10 million rows';
    end if;
    if m.partitions = partition_embeddings.partitions then return; end if;
    lock table imgsearch.content in share row exclusive mode;  -- first, as those who write take them in this order
    execute format('lock table imgsearch.%I in access exclusive mode', table_name);
    execute format('select exists (select from imgsearch.%I)', table_name) into filled;
    if filled then
        raise exception 'model % has vectors already', m.name using errcode = 'PI009',
            hint = format('this copies them: pgimgsearch index partition %s %s', m.name, partition_embeddings.partitions);
    end if;
    execute format('alter table imgsearch.%I rename to %I', table_name, former);
    execute format('alter index imgsearch.%I rename to %I', table_name || '_pkey', former || '_pkey');
    update imgsearch.model x
    set partitions = partition_embeddings.partitions, index_method = 'none', index_parameters = '{}'
    where x.model_id = m.model_id;
    perform imgsearch.create_embeddings(m.model_id);
    execute format('drop table imgsearch.%I', former);
end $$;

-- Register a model row's table and view, with the owner and grants of imgsearch.image, and put back what is missing of
-- them. Returns the table.
create or replace function imgsearch.create_embeddings(model_id integer) returns regclass
language plpgsql volatile set search_path = imgsearch, @vector@, pg_temp set lock_timeout = '10s'
set client_min_messages = warning as $$
declare
    m imgsearch.model;
    owner name;
    table_name text;
    view_name text;
    part regclass;
    privilege record;
begin
    select x.* into strict m from imgsearch.model x where x.model_id = create_embeddings.model_id;
    table_name := format('imgsearch.%I', 'embedding_' || m.slug || '_' || m.dim);
    view_name := format('imgsearch.%I', 'images_' || m.slug);
    if to_regclass(table_name) is null then
        perform imgsearch._make_table(m, table_name, format('embeddings_%s_%s', m.model_id, m.partitions));
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
    execute format('create policy read on %s for select using (
        (select not row_security_active(''imgsearch.image'')) or imgsearch.visible(content_id))', table_name);
    execute format('create policy add on %s for insert with check (true)', table_name);
    execute format('create policy change on %s for update using (true)', table_name);
    execute format('create policy remove on %s for delete using (true)', table_name);
    execute format('comment on table %s is %L', table_name, 'embeddings of ' || m.name);
    execute format('create or replace view %s with (security_invoker) as
        select i.image_id, i.content_id, i.collection_id, i.path, i.external_id, i.modified_at, i.group_key,
               i.caption, i.metadata, i.added_at, i.updated_at, e.embedding
        from imgsearch.image i join %s e using (content_id)', view_name, table_name);
    update imgsearch.model x set embeddings = table_name::regclass, images = view_name::regclass
    where x.model_id = m.model_id;

    select pg_get_userbyid(c.relowner) into owner from pg_class c where c.oid = 'imgsearch.image'::regclass;
    for privilege in
        select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end as grantee,
               string_agg(distinct a.privilege_type, ', ') as privileges
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
    if owner <> current_user then
        for part in select t.relid from pg_partition_tree(table_name) t where t.isleaf loop
            execute format('alter table %s owner to %I', part, owner);
        end loop;
        execute format('alter table %s owner to %I', table_name, owner);
        execute format('alter view %s owner to %I', view_name, owner);
    end if;
    return table_name::regclass;
end $$;

-- Drop a model with its table, view, index and cached text. Waits for its locks in short tries.
create or replace function imgsearch.drop_model(model text) returns void
language plpgsql volatile set search_path = imgsearch, @vector@, pg_temp set lock_timeout = '2s' as $$
declare
    m imgsearch.model := imgsearch._resolve_model(drop_model.model);
    aliases text;
    bits regprocedure;
begin
    select string_agg(a.alias, ', ' order by a.alias) into aliases from imgsearch.alias a where a.model_id = m.model_id;
    if aliases is not null then
        raise exception 'model % is in use by alias %', m.name, aliases using
            errcode = 'PI009', hint = 'move the alias first: pgimgsearch models alias ' || split_part(aliases, ',', 1)
                || ' OTHER; or select imgsearch.set_alias(''' || split_part(aliases, ',', 1)
                || ''', ''another model''), or drop it with null';
    end if;
    for attempt in 1 .. 10 loop
        begin
            -- by name: of a table that somebody dropped, regclass is a number
            execute format('drop view if exists imgsearch.%I', 'images_' || m.slug);
            execute format('drop table if exists imgsearch.%I', 'embedding_' || m.slug || '_' || m.dim);
            execute format('drop table if exists imgsearch.embeddings_%1$s_aside, imgsearch.embeddings_%1$s_old', m.model_id);
            for bits in select p.oid::regprocedure from pg_proc p where p.pronamespace = 'imgsearch'::regnamespace
                            and p.proname ~ format('^_bits_%s_[0-9]+$', m.model_id) loop
                execute format('drop function %s', bits);
            end loop;
            exit;
        exception when lock_not_available then
            if attempt = 10 then raise; end if;
            perform pg_sleep(0.2 * attempt);
        end;
    end loop;
    delete from imgsearch.model x where x.model_id = m.model_id;
end $$;

-- Point an alias at a model, or drop it with null; every change is kept in alias_history.
create or replace function imgsearch.set_alias(alias text, model text) returns void
language plpgsql volatile as $$
declare
    m imgsearch.model;
begin
    perform pg_advisory_xact_lock(hashtext('pgimgsearch.alias'));
    if coalesce(btrim(set_alias.alias), '') = '' or set_alias.alias <> btrim(set_alias.alias) then
        raise exception 'an alias is a word, not "%"', coalesce(set_alias.alias, 'null') using errcode = 'PI008',
            hint = 'for example default, text, duplicates or one of your own';
    end if;
    if set_alias.model is null then
        delete from imgsearch.alias a where a.alias = set_alias.alias;
        if not found then return; end if;
    else
        m := imgsearch._resolve_model(set_alias.model);
        if exists (select from imgsearch.model x where x.name = set_alias.alias) then
            raise exception 'alias % is the name of a model', set_alias.alias using errcode = 'PI009',
                hint = 'choose another alias';
        end if;
        if set_alias.alias = 'text' and not m.has_text then
            raise exception 'model % cannot read text', m.name using errcode = 'PI007',
                hint = 'point the alias text at a model that can';
        end if;
        insert into imgsearch.alias as a (alias, model_id) values (set_alias.alias, m.model_id)
        on conflict on constraint alias_pkey do update set model_id = excluded.model_id;
    end if;
    insert into imgsearch.alias_history (alias, model_name) values (set_alias.alias, m.name);
end $$;

-- Point an alias at a model that has all stored images; raises PI015 where it misses more than allow_missing.
create or replace function imgsearch.switch_alias(alias text, model text, allow_missing bigint default 0) returns void
language plpgsql volatile as $$
declare
    m imgsearch.model := imgsearch._resolve_model(switch_alias.model);
    covered record;
begin
    select * into covered from imgsearch._covered(m);
    if covered.missing > switch_alias.allow_missing then
        raise exception 'model % misses % of % contents; alias % stays', m.name, covered.missing, covered.contents,
            switch_alias.alias using errcode = 'PI015', hint = format('embed them: pgimgsearch models fill %s; '
                'imgsearch.ingest_failure says why some cannot be; or allow it: allow_missing => %s', m.name,
                covered.missing);
    end if;
    update imgsearch.model x set status = 'ready' where x.model_id = m.model_id and x.status <> 'ready';
    perform imgsearch.set_alias(switch_alias.alias, m.name);
end $$;

-- Point an alias at the model that it meant before, and again to go forth. Returns the name of the model it means then.
create or replace function imgsearch.rollback_alias(alias text) returns text
language plpgsql volatile as $$
declare
    now_means text;
    meant text;
    answers boolean;
begin
    perform pg_advisory_xact_lock(hashtext('pgimgsearch.alias'));
    select m.name into now_means
    from imgsearch.alias a join imgsearch.model m on m.model_id = a.model_id where a.alias = rollback_alias.alias;
    select h.model_name into meant from imgsearch.alias_history h
    where h.alias = rollback_alias.alias and h.model_name is distinct from now_means and h.model_name is not null
    order by h.history_id desc limit 1;
    if meant is null and rollback_alias.alias = 'duplicates' and now_means is not null then
        perform imgsearch.set_alias('duplicates', null);  -- it followed default before
        return (imgsearch._resolve_model('duplicates')).name;
    end if;
    if meant is null then
        raise exception 'alias % meant no other model before', coalesce(rollback_alias.alias, 'null')
            using errcode = 'PI009', hint = 'see imgsearch.alias_history; pgimgsearch models alias points it anywhere';
    end if;
    if exists (select from imgsearch.model m where m.name = meant) then
        execute format('select exists (select from %s) or not exists (select from imgsearch.image)',
                       (imgsearch._resolve_model(meant)).embeddings) into answers;
    end if;
    if not answers then
        raise exception 'the model % that alias % meant before has no vectors any more', meant, rollback_alias.alias
            using errcode = 'PI009', hint = format('embed them again: pgimgsearch models fill %s', meant);
    end if;
    if answers is null then
        raise exception 'the model % that alias % meant before was removed', meant, rollback_alias.alias
            using errcode = 'PI009', hint = format('bring it back: pgimgsearch models switch %s --to %s',
                                                   rollback_alias.alias, meant);
    end if;
    perform imgsearch.set_alias(rollback_alias.alias, meant);
    return meant;
end $$;

-- Declare a model and make its empty table; whoever loads it first says what its weights are. Returns its model_id, also
-- where it is there already; raises PI002 where that is another one by the same name.
create or replace function imgsearch.add_model(
    name text, dim integer, backend text, checkpoint text, output text, storage text default 'halfvec',
    revision text default null, has_text boolean default false, near double precision default null,
    licence text default null, unit_length boolean default true
) returns integer
language plpgsql volatile as $$
declare
    present imgsearch.model;
    result integer;
begin
    perform pg_advisory_xact_lock(hashtext('pgimgsearch.add_model'));
    select m.* into present from imgsearch.model m where m.name = add_model.name;
    if found then
        if (present.dim, present.storage, present.backend, present.checkpoint, present.normalize)
            is distinct from (add_model.dim, add_model.storage, add_model.backend, add_model.checkpoint,
                              add_model.unit_length)
            or 'auto' not in (add_model.output, present.output) and add_model.output <> present.output
            or present.fingerprint is null and add_model.revision <> present.revision then
            raise exception 'model % is there already, as %', present.name, concat_ws(', ', present.dim || ' dimensions',
                    present.storage, present.backend, present.checkpoint, present.output, present.revision)
                using errcode = 'PI002', hint = 'add this one under another name';
        end if;
        return present.model_id;
    end if;
    if exists (select from imgsearch.alias a where a.alias = add_model.name) then
        raise exception '% is an alias', add_model.name using errcode = 'PI009', hint = 'choose another name';
    end if;
    insert into imgsearch.model (name, slug, dim, backend, checkpoint, output, storage, metric, revision, has_text, near,
                                 licence, normalize, preprocess)
    values (add_model.name, imgsearch._slug(add_model.name), add_model.dim, add_model.backend, add_model.checkpoint,
            add_model.output, add_model.storage, case add_model.storage when 'bit' then 'hamming' else 'cosine' end,
            add_model.revision, add_model.has_text, add_model.near, add_model.licence,
            add_model.unit_length, '{}')
    returning model_id into result;
    perform imgsearch.create_embeddings(result);
    return result;
end $$;

-- A model's name as part of a table's name, taken by no other: [a-z0-9_], with a hash tail where it is long or taken.
create or replace function imgsearch._slug(name text) returns text
language plpgsql stable as $$
declare
    result text := trim(both '_' from regexp_replace(lower(_slug.name), '[^a-z0-9]+', '_', 'g'));
begin
    if length(result) > 36 or exists (select from imgsearch.model m where m.slug = result) then
        result := left(result, 27) || '_' || left(md5(_slug.name), 8);
    end if;
    return result;
end $$;

-- Record how a model's index shall look; "pgimgsearch index build" makes it so, beside the traffic. none drops it there.
-- hnsw is a graph of the vectors, hnsw-binary one of their bits, whose answers are measured anew, ivfflat is of lists, and
-- diskann the graph of pgvectorscale.
create or replace function imgsearch.set_index(
    model text, method text default 'hnsw', m integer default 16, ef_construction integer default 64
) returns void
language plpgsql volatile as $$
declare
    found_model imgsearch.model := imgsearch._resolve_model(set_index.model);
begin
    if coalesce(set_index.method, '') not in ('hnsw', 'hnsw-binary', 'ivfflat', 'diskann', 'none') then
        raise exception 'unknown index method: %', coalesce(set_index.method, 'null') using errcode = 'PI008',
            hint = 'hnsw, hnsw-binary, ivfflat, diskann or none';
    end if;
    if set_index.method in ('hnsw-binary', 'diskann') and found_model.storage = 'bit' then
        raise exception 'model % stores bits already', found_model.name using errcode = 'PI008',
            hint = 'its method is hnsw';
    end if;
    if (set_index.m between 2 and 100 and set_index.ef_construction between 4 and 1000
        and set_index.ef_construction >= 2 * set_index.m) is not true then
        raise exception 'm must be 2 to 100, and ef_construction 4 to 1000 and at least twice m' using errcode = 'PI008',
            hint = 'the defaults are 16 and 64';
    end if;
    update imgsearch.model x
    set index_wanted = jsonb_build_object('method', set_index.method, 'm', set_index.m,
                                          'ef_construction', set_index.ef_construction)
    where x.model_id = found_model.model_id;
end $$;

-- An image's stored vector, for hand-written SQL; raises PI004 or PI003 when there is none.
create or replace function imgsearch.embedding(image_id bigint, model text default 'default')
returns @vector@.vector
language plpgsql stable parallel safe as $$
begin
    return imgsearch._stored_vector(image_id, imgsearch._resolve_model(model));
end $$;

-- An image's stored hash; raises PI004 or PI003 when there is none.
create or replace function imgsearch.embedding_bits(image_id bigint, model text default 'default')
returns bit varying
language plpgsql stable parallel safe as $$
begin
    return imgsearch._stored_bits(image_id, imgsearch._resolve_model(model));
end $$;

-- The vector that a model stores of an image; raises PI002, PI003 or PI004.
create or replace function imgsearch._stored_vector(image_id bigint, m imgsearch.model) returns @vector@.vector
language plpgsql stable parallel safe as $$
declare
    result @vector@.vector;
begin
    if m.storage = 'bit' then
        raise exception 'model % stores bits, not a vector', m.name using errcode = 'PI002',
            hint = 'use imgsearch.embedding_bits()';
    end if;
    execute format('select e.embedding::@vector@.vector from %s e where e.content_id = $1', m.embeddings)
        into result using imgsearch._content_of(image_id);
    if result is null then
        perform imgsearch._raise_not_embedded(image_id, m.name);
    end if;
    return result;
end $$;

-- The hash that a model stores of an image; raises PI002, PI003 or PI004.
create or replace function imgsearch._stored_bits(image_id bigint, m imgsearch.model) returns bit varying
language plpgsql stable parallel safe as $$
declare
    result bit varying;
begin
    if m.storage <> 'bit' then
        raise exception 'model % stores vectors, not bits', m.name using errcode = 'PI002',
            hint = 'use imgsearch.embedding()';
    end if;
    execute format('select e.embedding from %s e where e.content_id = $1', m.embeddings)
        into result using imgsearch._content_of(image_id);
    if result is null then
        perform imgsearch._raise_not_embedded(image_id, m.name);
    end if;
    return result;
end $$;

-- The content of an image; raises PI004 when there is no such image, or none the caller may see.
create or replace function imgsearch._content_of(image_id bigint) returns bigint
language plpgsql stable parallel safe as $$
declare
    result bigint;
begin
    select i.content_id into result from imgsearch.image i where i.image_id = _content_of.image_id;
    if not found then
        raise exception 'no image with image_id %', coalesce(_content_of.image_id::text, 'null') using
            errcode = 'PI004', hint = 'see imgsearch.image for the images that are stored';
    end if;
    return result;
end $$;

-- Raise PI003: the image is known, but the model has no vector of it.
create or replace function imgsearch._raise_not_embedded(image_id bigint, model text) returns void
language plpgsql stable parallel safe as $$
begin
    raise exception 'image % has no embedding of model %', _raise_not_embedded.image_id, _raise_not_embedded.model using
        errcode = 'PI003', hint = format('run "pgimgsearch ingest DIR --model %s"; imgsearch.ingest_failure says '
            'whether it was skipped', _raise_not_embedded.model);
end $$;

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

-- Search: images like an image, or like a vector the application brings.

-- The condition that restricts images, over alias i, with $1 .. $4 for filter, collection_id, among and a metadata key.
-- Raises PI008 for a filter that is no object, as that would match nothing.
create or replace function imgsearch._condition(filter jsonb, collection integer, among bigint[], key text default null)
returns text
language plpgsql immutable parallel safe as $$
begin
    if jsonb_typeof(filter) <> 'object' then
        raise exception 'the filter is no object: %', left(filter::text, 100) using errcode = 'PI008',
            hint = 'give the metadata to hold, for example filter => ''{"colour": "red"}''';
    end if;
    return concat_ws(' and ',
        'true',
        case when filter is not null then 'i.metadata @> $1' end,
        case when collection is not null then 'i.collection_id = $2' end,
        case when among is not null then 'i.image_id = any($3)' end,
        case when key is not null then 'i.metadata ? $4 and i.metadata ->> $4 is not null' end);
end $$;

-- The share of images that match, from 32 ids that are drawn alike each time, where a gap counts as no match; and the
-- number of ids. Null under row-level security, where finding the ends may read many rows.
create or replace function imgsearch._share(filter jsonb, collection integer, among bigint[], key text)
returns table (share double precision, ids bigint)
language plpgsql stable parallel safe as $$
begin
    if row_security_active('imgsearch.image') then return; end if;
    -- not dynamic, so that its plan is kept
    return query
        with ends as (
            select min(i.image_id) as low, max(i.image_id) - min(i.image_id) + 1 as ids from imgsearch.image i)
        select (select count(*) / 32.0::double precision
                from imgsearch.image i
                where i.image_id = any(array(select e.low + (hashint8extended(n, 0) & 9223372036854775807) % e.ids
                                             from generate_series(1, 32) n))
                    and (_share.filter is null or i.metadata @> _share.filter)
                    and (_share.collection is null or i.collection_id = _share.collection)
                    and (_share.among is null or i.image_id = any(_share.among))
                    and (_share.key is null or i.metadata ->> _share.key is not null)), e.ids
        from ends e;
end $$;

-- The id of a collection, null for null; raises PI005 when there is none of that name.
create or replace function imgsearch._collection_id(name text) returns integer
language plpgsql stable strict parallel safe as $$
declare
    result integer;
begin
    select c.collection_id into result from imgsearch.collection c where c.name = _collection_id.name;
    if not found then
        raise exception 'unknown collection: %', _collection_id.name using
            errcode = 'PI005', hint = 'see imgsearch.collection for the names';
    end if;
    return result;
end $$;

-- The operator of a model's distance.
create or replace function imgsearch._operator(m imgsearch.model) returns text
language sql immutable parallel safe as $$
    select case m.storage when 'bit' then 'OPERATOR(@vector@.<~>)' else 'OPERATOR(@vector@.<=>)' end
$$;

-- What a model's index sorts by, for an operand in the type of the column: the distance, that of the bits alone, or that of
-- vectors of length one in the one type that pgvectorscale takes.
create or replace function imgsearch._sorted_by(m imgsearch.model, operand text) returns text
language sql immutable parallel safe as $$
    select case m.index_method
        when 'hnsw-binary' then format('imgsearch.%1$I(e.embedding)::bit(%2$s) OPERATOR(@vector@.<~>) imgsearch.%1$I(%3$s)::bit(%2$s)',
                                       m.index_parameters ->> 'bits', m.dim, operand)
        when 'diskann' then format('@vector@.l2_normalize(e.embedding)::@vector@.vector(%1$s) OPERATOR(@vector@.<=>) @vector@.l2_normalize(%2$s)::@vector@.vector(%1$s)',
                                   m.dim, operand)
        else format('e.embedding %s %s', imgsearch._operator(m), operand) end
$$;

-- Whether an index holds its vectors roughly, so that it only chooses candidates.
create or replace function imgsearch._is_rough(m imgsearch.model) returns boolean
language sql immutable parallel safe as $$
    select m.index_method in ('hnsw-binary', 'diskann')
$$;

-- How far an index looks so that it can give as many: candidates of a graph, and of one that holds its vectors roughly four
-- times that, as they are measured anew and the best are kept; of ivfflat the lists, which were chosen for ten neighbours.
create or replace function imgsearch._effort(m imgsearch.model, ef_search bigint, wanted bigint) returns bigint
language sql immutable parallel safe as $$
    select case when m.index_method = 'ivfflat' then least(ef_search * ((wanted + 49) / 50), greatest(ef_search, 1000))
                when imgsearch._is_rough(m) then greatest(ef_search, wanted, least(4 * wanted, 1000))
                else greatest(ef_search, wanted) end
$$;

-- The query for the contents nearest to an operand, which may be a column of a table before it in a lateral join: content_id
-- and distance, in order. A rough index only chooses so many candidates; their distances are those of the vectors.
create or replace function imgsearch._nearest(m imgsearch.model, operand text, wanted bigint, effort bigint) returns text
language sql stable parallel safe as $$
    select case
        when imgsearch._is_rough(m) then
            format('select e.content_id, e.embedding %s %s as distance from (select e.* from %s e order by %s limit %s) e
                    order by 2 limit %s', imgsearch._operator(m), operand, m.embeddings, imgsearch._sorted_by(m, operand),
                   effort, wanted)
        else format('select e.content_id, %1$s as distance from %2$s e order by %1$s limit %3$s',
                    imgsearch._sorted_by(m, operand), m.embeddings, wanted) end
$$;

-- Set how an index is scanned, until the transaction ends or it is set back. Returns the settings as they were before, for
-- _put_settings. Sequential scans are off meanwhile, as the planner would read all vectors where an iterative scan may
-- look at many.
create or replace function imgsearch._set_scan(
    m imgsearch.model, effort bigint, iterative_scan text default 'off', max_scan_tuples text default '20000',
    scan_mem_multiplier text default '1'
) returns text[]
language plpgsql volatile parallel unsafe as $$
declare
    before text[];
begin
    perform '[1]'::@vector@.vector;  -- loads the library, and with it its settings
    if m.index_method = 'ivfflat' then
        before := array['ivfflat.probes', current_setting('ivfflat.probes'),
                        'ivfflat.iterative_scan', current_setting('ivfflat.iterative_scan'),
                        'ivfflat.max_probes', current_setting('ivfflat.max_probes'),
                        'enable_seqscan', current_setting('enable_seqscan')];
        perform set_config('ivfflat.probes', effort::text, true),
                set_config('ivfflat.iterative_scan', iterative_scan, true),
                set_config('ivfflat.max_probes', '32768', true),
                set_config('enable_seqscan', 'off', true);
    elsif m.index_method = 'diskann' then  -- which goes on for as long as it is read, and cannot measure an expression anew
        before := array['diskann.query_search_list_size', nullif(current_setting('diskann.query_search_list_size', true), ''),
                        'diskann.query_rescore', nullif(current_setting('diskann.query_rescore', true), ''),
                        'enable_seqscan', current_setting('enable_seqscan')];
        perform set_config('diskann.query_search_list_size', effort::text, true),
                set_config('diskann.query_rescore', '0', true),
                set_config('enable_seqscan', 'off', true);
    else
        before := array['hnsw.ef_search', current_setting('hnsw.ef_search'),
                        'hnsw.iterative_scan', current_setting('hnsw.iterative_scan'),
                        'hnsw.max_scan_tuples', current_setting('hnsw.max_scan_tuples'),
                        'hnsw.scan_mem_multiplier', current_setting('hnsw.scan_mem_multiplier'),
                        'enable_seqscan', current_setting('enable_seqscan')];
        perform set_config('hnsw.ef_search', least(effort, 1000)::text, true),
                set_config('hnsw.iterative_scan', iterative_scan, true),
                set_config('hnsw.max_scan_tuples', max_scan_tuples, true),
                set_config('hnsw.scan_mem_multiplier', scan_mem_multiplier, true),
                set_config('enable_seqscan', 'off', true);
    end if;
    return before;
end $$;

-- Put settings back until the transaction ends: their names, each before its value; null is that of the session.
create or replace function imgsearch._put_settings(settings text[]) returns void
language plpgsql volatile parallel unsafe as $$
begin
    perform set_config(settings[i], settings[i + 1], true) from generate_series(1, cardinality(settings), 2) i;
end $$;

-- The engine of every search: the k images nearest to one operand, complete under any restriction.
-- The operand is a vector or bits. Contents come from the index, from an iterative scan of it, or from all rows that
-- match; the images that show them are looked up alike. self is left out; key is one that the metadata must have.
create or replace function imgsearch._search(
    m imgsearch.model, query_vector @vector@.vector, query_bits bit varying, self bigint,
    k integer, filter jsonb, collection text, among bigint[], min_similarity double precision, exact boolean,
    after bigint, collapse boolean, ef_search integer, key text default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
#variable_conflict use_column
declare
    only_collection integer;
    condition text := 'true';
    restricted boolean := row_security_active('imgsearch.image'::regclass);
    wanted bigint := _search.k::bigint + (_search.self is not null)::integer + (_search.after is not null)::integer;
    ef bigint := imgsearch._effort(m, coalesce(_search.ef_search, m.ef_search), wanted);
    exact_limit bigint := coalesce(nullif(current_setting('imgsearch.exact_limit', true), ''), '100000')::bigint;
    -- to length one, as the range of halfvec is small
    query_halfvec @vector@.halfvec :=
        case m.storage when 'halfvec' then @vector@.l2_normalize(query_vector)::@vector@.halfvec end;
    operand text := case m.storage when 'halfvec' then '$5' when 'vector' then '$6' else format('$7::bit(%s)', m.dim) end;
    distance text := format('e.embedding %s %s', imgsearch._operator(m), operand);
    plan text;
    after_content bigint;
    after_distance double precision;
    beyond text := '';
    share double precision;
    ids bigint;
    most_scanned bigint;
    scanned bigint;  -- how many of the nearest contents an iterative scan looks at
    -- matches after which it ends: more than wanted, as its order is approximate, that of bits and lists above all
    enough bigint := case when imgsearch._is_rough(m) then ef else 2 * wanted end
        * case when _search.after is not null and m.index_method <> 'hnsw' then 4 else 1 end;
    first_place bigint;  -- of a match among the nearest
    saturated boolean;
    near text;
    near_contents bigint[];
    near_distances double precision[];
    sorted double precision[];
    candidates bigint;
    settings text[];
    result imgsearch.match[];
begin
    if coalesce(_search.k, 0) not between 1 and 10000 then
        raise exception 'k must be 1 to 10000, not %', coalesce(_search.k::text, 'null') using errcode = 'PI008',
            hint = 'give the number of images wanted, for example k => 10; after => goes on from there';
    end if;
    if coalesce(_search.ef_search, 1) < 1 then
        raise exception 'ef_search must be at least 1, not %', _search.ef_search using errcode = 'PI008',
            hint = 'leave it out for the value that the model has';
    end if;
    if query_vector is not null and @vector@.vector_norm(query_vector) = 0 then
        raise exception 'a zero vector is like nothing' using errcode = 'PI002',
            hint = 'bring the vector of a picture or a text';
    end if;
    if _search.collapse and m.near is not null then
        return query select * from imgsearch._collapsed(m, query_vector, query_bits, _search.self, _search.k,
            _search.filter, _search.collection, _search.among, _search.min_similarity, _search.exact, _search.after,
            _search.ef_search, _search.key);
        return;
    end if;
    if num_nonnulls(_search.filter, _search.collection, _search.among, _search.key) > 0 then
        only_collection := imgsearch._collection_id(_search.collection);
        condition := imgsearch._condition(_search.filter, only_collection, _search.among, _search.key);
        restricted := true;
    end if;
    plan := case when _search.exact or m.index_method = 'none' or ef > 1000 then 'exact'
                 when restricted or _search.after is not null then 'iterative' else 'index' end;
    if _search.after is not null then
        after_content := imgsearch._content_of(_search.after);
        execute format('select %s from %s e where e.content_id = $8', distance, m.embeddings) into after_distance
            using _search.filter, only_collection, _search.among, _search.key,
                  query_halfvec, query_vector, query_bits, after_content;
        if after_distance is null then
            perform imgsearch._raise_not_embedded(_search.after, m.name);
        end if;
        beyond := format(' and (%s, e.content_id) >= ($8, $9)', distance);
    end if;

    -- Reading all matches takes longer the more they are, a scan of the index the rarer they are.
    if plan = 'iterative' and restricted then
        if cardinality(_search.among) <= 10000 then
            plan := 'exact';
        else
            select x.share, x.ids into share, ids
            from imgsearch._share(_search.filter, only_collection, _search.among, _search.key) x;
            if share >= 0.05 then
                if share * share * ids < 500 and share * ids <= exact_limit then plan := 'exact'; end if;
            elsif ids <= 200000 then
                plan := 'exact';
            else
                execute format('select count(*) from (select from imgsearch.image i where %s limit 10001) c', condition)
                    into candidates using _search.filter, only_collection, _search.among, _search.key;
                if candidates <= 10000 then plan := 'exact'; end if;
            end if;
        end if;
    end if;
    if plan <> 'exact' then
        perform '[1]'::@vector@.vector;  -- loads the library, and with it its settings
        most_scanned := greatest(current_setting('hnsw.max_scan_tuples')::bigint, enough + 1);
        scanned := case when share >= 0.05 and _search.after is null
                        then least(most_scanned, ceil(8 * enough / share)) else most_scanned end;
        if plan = 'iterative' and restricted and m.index_method <> 'ivfflat' then
            -- the rarer the matches, the farther off they lie, where the graph is in poor order
            ef := least(1000, greatest(ef, ceil(0.8 * wanted / power(greatest(coalesce(share, 0), 0.1), 2))));
        end if;
    end if;

    loop
        if plan = 'exact' then
            -- adding zero keeps the order from the index, which is approximate
            near := format(
                'select e.content_id, %s as distance, 1::bigint as place from %s e
                 where e.content_id in (select i.content_id from imgsearch.image i where %s)%s
                 order by (%s) + 0, e.content_id limit %s',
                distance, m.embeddings, condition, beyond, distance, wanted);
        elsif plan = 'iterative' then
            -- Limited here: where pgvector itself ends a scan, what it returns last is not in order. Limit 1 in the
            -- lateral holds the scan of the index outside and the test of the image inside.
            near := format(
                'select n.content_id, n.distance, n.place from (
                     select d.*, row_number() over () as place from (
                         select e.content_id, %s as distance from %s e where true%s order by %s limit %s) d) n
                 cross join lateral (
                     select from imgsearch.image i where i.content_id = n.content_id and %s limit 1) v limit %s',
                distance, m.embeddings, beyond, imgsearch._sorted_by(m, operand), scanned, condition, enough);
        else
            near := format('select n.*, 1::bigint as place from (%s) n', imgsearch._nearest(m, operand, wanted, ef));
        end if;
        if plan <> 'exact' then
            settings := imgsearch._set_scan(m, ef, case plan when 'index' then 'off' else 'relaxed_order' end,
                                            '2147483647', '1000');
        end if;
        execute 'select array_agg(n.content_id), array_agg(n.distance), min(n.place) from (' || near || ') n'
            into near_contents, near_distances, first_place
            using _search.filter, only_collection, _search.among, _search.key,
                  query_halfvec, query_vector, query_bits, after_distance, after_content;
        if plan <> 'exact' then
            perform imgsearch._put_settings(settings);
            -- a run of equal vectors at its end: thousands of them at one distance hide from a graph what is nearer
            sorted := near_distances;
            if plan = 'iterative' then
                sorted := array(select d from unnest(near_distances) d order by d limit wanted);
            end if;
            saturated := m.storage <> 'bit' and coalesce(sorted[cardinality(sorted)] > 1e-3
                and sorted[cardinality(sorted)] = sorted[cardinality(sorted) - greatest(2, least(9, wanted / 2))], false);
        end if;
        -- not dynamic, so that its plan is kept
        result := array(
            select row(i.image_id, case m.storage when 'bit' then 1 - n.distance / m.dim else least(1 - n.distance, 1) end,
                       c.name, i.path, i.external_id, i.group_key, i.caption, i.metadata)::imgsearch.match
            from unnest(near_contents, near_distances) as n (content_id, distance)
            cross join lateral (
                select i.* from imgsearch.image i
                where i.content_id = n.content_id and i.image_id is distinct from _search.self
                    and (_search.filter is null or i.metadata @> _search.filter)
                    and (only_collection is null or i.collection_id = only_collection)
                    and (_search.among is null or i.image_id = any(_search.among))
                    and (_search.key is null or i.metadata ->> _search.key is not null)
                    and (_search.after is null or (n.distance, n.content_id, i.image_id) > (
                        after_distance, after_content,
                        case when _search.collapse then 9223372036854775807 else _search.after end))
                order by i.image_id limit case when _search.collapse then 1 else _search.k end) i
            join imgsearch.collection c on c.collection_id = i.collection_id
            order by n.distance, n.content_id, i.image_id limit _search.k);
        exit when plan = 'exact' or cardinality(result) >= _search.k
            and (enough = scanned or not saturated and (
                plan = 'index' or cardinality(near_contents) = enough
                and (first_place <= 4 / greatest(share, 0.01)) is not false));
        if plan = 'index' and not saturated then
            plan := 'iterative';
            continue;
        end if;
        execute format('select count(*) from (select from imgsearch.image i join %s e on e.content_id = i.content_id
                                              where %s limit %s) c', m.embeddings, condition, exact_limit + 1)
            into candidates using _search.filter, only_collection, _search.among, _search.key;
        if candidates <= exact_limit then
            plan := 'exact';
        elsif enough < most_scanned then  -- once more, with all of the nearest that a scan may look at
            plan := 'iterative';
            scanned := most_scanned;
            enough := most_scanned;
        else
            raise exception 'the index gave % of % images, and more than % images match',
                cardinality(result), _search.k, exact_limit using errcode = 'PI006',
                hint = 'raise the setting: set imgsearch.exact_limit = 1000000; or ask for fewer images';
        end if;
    end loop;
    return query select * from unnest(result) r
        where _search.min_similarity is null or r.similarity >= _search.min_similarity;
end $$;

-- Images like this one. The image itself is never among the answers; its copies are.
create or replace function imgsearch.similar(
    image_id bigint, k integer default 10, model text default 'default', filter jsonb default null,
    collection text default null, among bigint[] default null, min_similarity double precision default null,
    exact boolean default false, after bigint default null, collapse boolean default false,
    ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
    query_vector @vector@.vector;
    query_bits bit varying;
begin
    if m.storage = 'bit' then
        query_bits := imgsearch._stored_bits(image_id, m);
    else
        query_vector := imgsearch._stored_vector(image_id, m);
    end if;
    return query select * from imgsearch._search(m, query_vector, query_bits, image_id, k, filter, collection,
        among, min_similarity, exact, after, collapse, ef_search);
end $$;

-- Images like a vector that the application brings; a view's halfvec needs ::vector.
create or replace function imgsearch.similar_to(
    embedding @vector@.vector, k integer default 10, model text default 'default', filter jsonb default null,
    collection text default null, among bigint[] default null, min_similarity double precision default null,
    exact boolean default false, after bigint default null, collapse boolean default false,
    ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
begin
    if m.storage = 'bit' or @vector@.vector_dims(embedding) is distinct from m.dim then
        raise exception 'model % takes % of dimension %, not a vector of dimension %', m.name,
            case m.storage when 'bit' then 'bits' else 'a vector' end, m.dim,
            coalesce(@vector@.vector_dims(embedding)::text, 'null') using errcode = 'PI002',
            hint = 'bring a vector of the same model, or name the model it comes from';
    end if;
    return query select * from imgsearch._search(m, embedding, null, null, k, filter, collection,
        among, min_similarity, exact, after, collapse, ef_search);
end $$;

-- Images like a hash that the application brings.
create or replace function imgsearch.similar_to_bits(
    embedding bit varying, k integer default 10, model text default 'default', filter jsonb default null,
    collection text default null, among bigint[] default null, min_similarity double precision default null,
    exact boolean default false, after bigint default null, collapse boolean default false,
    ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
begin
    if m.storage <> 'bit' or length(embedding) is distinct from m.dim then
        raise exception 'model % takes % of dimension %, not % bits', m.name,
            case m.storage when 'bit' then 'bits' else 'a vector' end, m.dim,
            coalesce(length(embedding)::text, 'null') using errcode = 'PI002',
            hint = 'bring a hash of the same model, or name the model it comes from';
    end if;
    return query select * from imgsearch._search(m, null, embedding, null, k,
        filter, collection, among, min_similarity,
        exact, after, collapse, ef_search);
end $$;

-- Images like a picture that is not in the database, through the embedder; crop is {x, y, width, height}.
create or replace function imgsearch.similar_to_image(
    bytes bytea, crop integer[] default null, k integer default 10, model text default 'default',
    filter jsonb default null, collection text default null, among bigint[] default null,
    min_similarity double precision default null, exact boolean default false, after bigint default null,
    collapse boolean default false, ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
    answer text := imgsearch._picture_answer(bytes, crop, m);
begin
    return query select * from imgsearch._search(
        m, case when m.storage <> 'bit' then answer::@vector@.vector end,
        case m.storage when 'bit' then answer::bit varying end, null, k, filter, collection,
        among, min_similarity, exact, after, collapse, ef_search);
end $$;

-- Search without near-duplicates: of images that are near each other, the one most like the question.

-- The same as _search, without what is near an earlier answer by the model's own threshold, unless a person told the two
-- apart. Asks for more until k are left.
create or replace function imgsearch._collapsed(
    m imgsearch.model, query_vector @vector@.vector, query_bits bit varying, self bigint,
    k integer, filter jsonb, collection text, among bigint[], min_similarity double precision, exact boolean,
    after bigint, ef_search integer, key text
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    contents_only imgsearch.model := m;
    depth integer := 2 * _collapsed.k;
    found imgsearch.match[];
    left_places integer[];
    place integer;
    beyond boolean;
    answers imgsearch.match[];
begin
    if _collapsed.k not between 1 and 1000 then
        raise exception 'k must be 1 to 1000 with collapse, not %', _collapsed.k using errcode = 'PI008',
            hint = 'after => goes on from there';
    end if;
    contents_only.near := null;
    loop
        found := array(select s from imgsearch._search(contents_only, query_vector, query_bits, _collapsed.self, depth,
            _collapsed.filter, _collapsed.collection, _collapsed.among, null, _collapsed.exact, null, true,
            _collapsed.ef_search, _collapsed.key) s);
        left_places := array(select generate_series(1, cardinality(found)));
        answers := '{}';
        beyond := _collapsed.after is null;
        -- the first that is left is an answer, and what is near it goes
        while cardinality(left_places) > 0 and cardinality(answers) < _collapsed.k loop
            place := left_places[1];
            if beyond then answers := answers || found[place]; end if;
            beyond := beyond or found[place].image_id = _collapsed.after;
            execute format(
                'select array_agg(n.place order by n.place)
                 from unnest($1, $2) as n (place, image_id)
                 join imgsearch.image i on i.image_id = n.image_id
                 join imgsearch.content c on c.content_id = i.content_id
                 join %1$s e on e.content_id = i.content_id,
                 imgsearch.image j join imgsearch.content d on d.content_id = j.content_id
                 join %1$s f on f.content_id = j.content_id
                 where j.image_id = $3 and n.place <> $4 and (e.embedding %2$s f.embedding > $5 or exists (
                     select from imgsearch.duplicate_verdict v
                     where v.pixels_a = least(c.pixel_sha256, d.pixel_sha256)
                         and v.pixels_b = greatest(c.pixel_sha256, d.pixel_sha256) and v.verdict = ''rejected''))',
                m.embeddings, imgsearch._operator(m))
                into left_places
                using left_places, array(select found[n].image_id from unnest(left_places) n), found[place].image_id, place,
                      (1 - m.near) * imgsearch._distance_scale(m);
        end loop;
        exit when cardinality(answers) = _collapsed.k or cardinality(found) < depth;
        if depth = 10000 then
            raise exception 'the nearest 10,000 images are near-duplicates of % answers', cardinality(answers)
                using errcode = 'PI006', hint = 'ask for fewer, or without collapse';
        end if;
        depth := least(4 * depth, 10000);
    end loop;
    if not beyond then
        raise exception 'image % is not among the answers', _collapsed.after using errcode = 'PI008',
            hint = 'after is the last image of the page before';
    end if;
    return query select * from unnest(answers) r
        where _collapsed.min_similarity is null or r.similarity >= _collapsed.min_similarity;
end $$;

-- The embedder: a program ("pgimgsearch serve") that holds the models. It is asked through dblink for the vectors of
-- new texts and new pictures; what is stored or cached needs neither.

-- The schema of dblink, quoted, where an embedder is connected; else null.
create or replace function imgsearch._dblink() returns text
language sql stable parallel safe
return (select quote_ident(n.nspname)
        from pg_extension e join pg_namespace n on n.oid = e.extnamespace
        where e.extname = 'dblink'
            and exists (select from pg_foreign_server s where s.srvname = 'imgsearch_embedder'));

-- How long the embedder may take for an answer, from the setting imgsearch.embedder_timeout (30s).
create or replace function imgsearch._embedder_timeout() returns interval
language sql stable parallel safe
return coalesce(nullif(current_setting('imgsearch.embedder_timeout', true), ''), '30s')::interval;

-- Ask the embedder: its answers in their order. Sends and polls, so that a cancel and a statement timeout work, over a
-- connection that the session keeps. Raises PI010 to PI014, or what the embedder raises.
create or replace function imgsearch._ask_embedder(message jsonb) returns text[]
language plpgsql stable parallel unsafe as $$
declare
    schema constant text := imgsearch._dblink();
    server constant text := 'imgsearch_embedder';
    -- of the session's connection: another after connect_embedder
    name constant text := server || (select '_' || s.oid from pg_foreign_server s where s.srvname = server);
    deadline constant timestamptz := clock_timestamp() + imgsearch._embedder_timeout();
    kept boolean;
    sent integer;
    busy integer;
    pause double precision;
    answers text[];
    state text;
    said text;
    detail text;
begin
    if schema is null then
        raise exception 'no embedder is connected to this database' using errcode = 'PI010',
            hint = 'run: pgimgsearch serve; and once: pgimgsearch db connect-embedder HOST PORT';
    end if;
    if not has_server_privilege(server, 'usage') then
        raise exception 'role % may not use the embedder', current_user using errcode = 'PI010',
            hint = format('as the owner run: pgimgsearch db grant reader %I', current_user);
    end if;
    execute format('select coalesce($1 = any(%s.dblink_get_connections()), false)', schema) into kept using name;
    loop
        begin
            if not kept then
                execute format('select %s.dblink_connect($1, $2)', schema) using name, server;
            end if;
            execute format('select %s.dblink_send_query($1, $2)', schema) into sent using name, message::text;
            if sent <> 1 then
                raise exception 'the question could not be sent' using errcode = '08006';
            end if;
            pause := 0.0005;
            loop
                execute format('select %s.dblink_is_busy($1)', schema) into busy using name;
                exit when busy = 0;
                if clock_timestamp() > deadline then
                    raise exception 'the embedder did not answer within %', imgsearch._embedder_timeout()
                        using errcode = 'PI013',
                        hint = 'see whether it is overloaded, or raise the setting imgsearch.embedder_timeout';
                end if;
                perform pg_sleep(pause);
                pause := least(pause * 1.1, 0.002);
            end loop;
            execute format('select array_agg(r.answer) from %s.dblink_get_result($1) as r (answer text)', schema)
                into answers using name;
            execute format('select from %s.dblink_get_result($1) as r (answer text)', schema) using name;  -- ends it
            return answers;
        exception when others or query_canceled then
            get stacked diagnostics state = returned_sqlstate, said = message_text, detail = pg_exception_detail;
            begin  -- an answer that comes later must not be taken for that of the next question
                execute format('select %s.dblink_disconnect($1)', schema) using name;
            exception when others then null;
            end;
            if state not like '08%' then raise; end if;
            if not kept then
                said := regexp_replace(coalesce(nullif(detail, ''), said), '\s+', ' ', 'g');
                raise exception 'the embedder cannot be reached: %', said using errcode = 'PI010', hint =
                    case when said like '%password authentication failed%'
                         then 'give its password: pgimgsearch db connect-embedder HOST PORT --password-file FILE'
                         else 'is "pgimgsearch serve" running where "pgimgsearch db connect-embedder" says?' end;
            end if;
            kept := false;  -- a kept connection was dead: once more over a new one
        end;
    end loop;
end $$;

-- What the embedder holds, and whether that is what made the stored vectors; raises PI010 or PI013.
create or replace function imgsearch.embedder_status()
returns table (model text, serves boolean, device text, problem text)
language plpgsql stable parallel unsafe as $$
#variable_conflict use_column
declare
    answers text[] := imgsearch._ask_embedder('{"ask": "status"}');
begin
    return query
        select m.name, a.fingerprint is not null and a.fingerprint = m.fingerprint, a.device,
               case when a.fingerprint is null then 'not served'
                    when a.fingerprint <> m.fingerprint then 'another version is served' end
        from imgsearch.model m
        left join (select s ->> 'model' as model, s ->> 'fingerprint' as fingerprint, s ->> 'device' as device
                   from unnest(answers) u (answer), cast(u.answer as jsonb) s) a on a.model = m.name
        order by m.name;
end $$;

-- Ask the embedder for the vector or the hash of a picture's bytes, in its text form.
create or replace function imgsearch._picture_answer(bytes bytea, crop integer[], m imgsearch.model) returns text
language plpgsql stable parallel unsafe as $$
begin
    if bytes is null or octet_length(bytes) = 0 then
        raise exception 'there is no picture in these bytes' using errcode = 'PI014',
            hint = 'bring the content of an image file';
    end if;
    if octet_length(bytes) > 67108864 then
        raise exception 'the picture has % bytes, 64 MB is the limit', octet_length(bytes) using errcode = 'PI014',
            hint = 'make it smaller; models look at a few hundred pixels';
    end if;
    if crop is not null and (cardinality(crop) <> 4 or array_position(crop, null) is not null) then
        raise exception 'crop is % and has to be {x, y, width, height}', crop using errcode = 'PI008',
            hint = 'pixels of the upright picture, for example crop => ''{10, 20, 300, 200}''';
    end if;
    return (imgsearch._ask_embedder(jsonb_build_object(
        'ask', 'picture', 'model', m.name, 'fingerprint', m.fingerprint, 'crop', to_jsonb(crop),
        'bytes', translate(encode(bytes, 'base64'), E'\n', ''))))[1];
end $$;

-- The vector of a picture that is not in the database, through the embedder; crop is {x, y, width, height}.
create or replace function imgsearch.image_vector(
    bytes bytea, model text default 'default', crop integer[] default null
) returns @vector@.vector
language plpgsql stable parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(image_vector.model);
begin
    if m.storage = 'bit' then
        raise exception 'model % makes bits, not a vector', m.name using errcode = 'PI002',
            hint = 'use imgsearch.similar_to_image()';
    end if;
    return imgsearch._picture_answer(bytes, crop, m)::@vector@.vector;
end $$;

-- Make the way to the embedder: a foreign server, a user mapping with the password, and its use for all readers.
create or replace function imgsearch.connect_embedder(
    host text, port integer, password text, sslmode text default 'prefer'
) returns void
language plpgsql volatile set search_path = imgsearch, @vector@, pg_temp as $$
declare
    reader name;
begin
    if not exists (select from pg_foreign_data_wrapper f where f.fdwname = 'dblink_fdw'
                   and has_foreign_data_wrapper_privilege(f.oid, 'usage')) then
        raise exception 'role % cannot use dblink here', current_user using errcode = 'PI010',
            hint = format('as an administrator run: create extension if not exists dblink; '
                          'grant usage on foreign data wrapper dblink_fdw to %I', current_user);
    end if;
    if exists (select from pg_foreign_server s where s.srvname = 'imgsearch_embedder') then
        drop server imgsearch_embedder cascade;
    end if;
    execute format('create server imgsearch_embedder foreign data wrapper dblink_fdw options (
        host %L, port %L, dbname ''pgimgsearch'', connect_timeout ''2'', sslmode %L)', host, port, sslmode);
    begin
        execute format('create user mapping for public server imgsearch_embedder options (
            user ''pgimgsearch'', password %L)', password);
    exception when others then  -- anew, as the context of the error would show the password
        raise exception '%', sqlerrm using errcode = sqlstate;
    end;
    for reader in
        select case when a.grantee = 0 then 'public' else pg_get_userbyid(a.grantee) end
        from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'imgsearch.image'::regclass and a.privilege_type = 'SELECT'
        union select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'imgsearch.image'::regclass
    loop
        perform imgsearch._grant_embedder(reader);
    end loop;
end $$;

-- Let a role use the embedder, where one is connected and the caller may.
create or replace function imgsearch._grant_embedder(role_name name) returns void
language plpgsql volatile as $$
declare
    schema text := imgsearch._dblink();
    grantee text := case when role_name = 'public' then 'public' else quote_ident(role_name) end;
begin
    if schema is null or not has_server_privilege('imgsearch_embedder', 'usage with grant option') then return; end if;
    execute format('grant usage on foreign server imgsearch_embedder to %s', grantee);
    if not has_schema_privilege(role_name, schema::regnamespace, 'usage') then
        execute format('grant usage on schema %s to %s', schema, grantee);
    end if;
end $$;

-- Text: queries are embedded once, by a command or by the embedder, cached, and searched for in SQL.

-- The cache key of a query in a template.
create or replace function imgsearch.text_key(query text, template text default '{}') returns bytea
language sql immutable parallel safe
return sha256(convert_to(template || chr(31) || btrim(query), 'UTF8'));

-- As a shell takes it.
create or replace function imgsearch._shell_quoted(value text) returns text
language sql immutable parallel safe
return '''' || replace(value, '''', '''\''''') || '''';

-- The vectors of texts in a template, in their order: from the cache, else from the embedder.
-- Raises PI007 when the model has no text tower, or when a text is not cached and no embedder is connected.
create or replace function imgsearch._text_vectors(queries text[], m imgsearch.model, template text)
returns @vector@.vector[]
language plpgsql stable parallel unsafe as $$
declare
    texts text[];
    found @vector@.vector[];
    missing text[];
    answers text[];
    able text;
begin
    if not m.has_text then
        select string_agg(x.name, ', ' order by x.name) into able from imgsearch.model x where x.has_text;
        raise exception 'model % cannot read text', m.name using errcode = 'PI007',
            hint = 'models that can: ' || coalesce(able, 'none yet; add one, for example clip-vit-b-32');
    end if;
    perform imgsearch._check_text(q, template) from unnest(queries) q;
    select array_agg(btrim(n.query) order by n.number), array_agg(t.embedding order by n.number),
           array_agg(distinct btrim(n.query)) filter (where t.key is null)
    into texts, found, missing
    from unnest(queries) with ordinality as n (query, number)
    left join imgsearch.text_embedding t
        on t.model_id = m.model_id and t.key = imgsearch.text_key(n.query, _text_vectors.template);
    if missing is null then return found; end if;
    if imgsearch._dblink() is null then
        raise exception 'the text "%" is not embedded yet for model %', missing[1], m.name
            using errcode = 'PI007',
            hint = format('run: pgimgsearch embed-text --model %s%s %s; or, for every text from now on: pgimgsearch serve',
                          imgsearch._shell_quoted(m.name),
                          (select string_agg(' --template ' || imgsearch._shell_quoted(t), '')
                           from string_to_table(nullif(template, '{}'), chr(10)) t),
                          case when missing[1] like '-%' then '-- ' else '' end || imgsearch._shell_quoted(missing[1]));
    end if;
    answers := imgsearch._ask_embedder(jsonb_build_object(
        'ask', 'text', 'model', m.name, 'fingerprint', m.fingerprint, 'texts', to_jsonb(missing), 'template', template));
    return array(select coalesce(n.embedding, answers[array_position(missing, n.text)]::@vector@.vector)
                 from unnest(texts, found) with ordinality as n (text, embedding, number) order by n.number);
end $$;

-- Raise PI008 for a text or a template that cannot be embedded.
create or replace function imgsearch._check_text(query text, template text) returns void
language plpgsql immutable parallel safe as $$
begin
    if query is null or btrim(query) = '' then
        raise exception 'the text is empty' using errcode = 'PI008', hint = 'give the words to look for';
    end if;
    if length(query) > 10000 then
        raise exception 'the text has % characters, 10000 is the limit', length(query) using errcode = 'PI008',
            hint = 'models read the first few dozen words';
    end if;
    if template is null or exists (select from string_to_table(template, chr(10)) t where strpos(t, '{}') = 0) then
        raise exception 'the template has no place for the text: %', coalesce(template, 'null')
            using errcode = 'PI008', hint = 'write "a photo of a {}", one template a line';
    end if;
end $$;

-- The vector of a text in a template: from the cache, else from the embedder. Raises PI007, PI008, PI010 to PI013.
create or replace function imgsearch.text_vector(
    query text, model text default 'text', template text default '{}'
) returns @vector@.vector
language plpgsql stable parallel unsafe as $$
begin
    return (imgsearch._text_vectors(array[query], imgsearch._resolve_model(model), template))[1];
end $$;

-- Keep the vector of a text; the least recently used leave beyond imgsearch.text_cache_limit (100,000) a model.
create or replace function imgsearch.cache_text(
    query text, embedding @vector@.vector, model text default 'text', template text default '{}'
) returns void
language plpgsql volatile as $$
begin
    perform imgsearch._cache_texts(imgsearch._resolve_model(cache_text.model), array[cache_text.query],
                                   array[cache_text.embedding], cache_text.template);
end $$;

-- Keep the vectors of texts in a template. Raises PI002 and PI008 for what cannot be one.
create or replace function imgsearch._cache_texts(
    m imgsearch.model, queries text[], embeddings @vector@.vector[], template text
) returns void
language plpgsql volatile as $$
declare
    given record;
    begun timestamptz := clock_timestamp();
    cache_limit integer :=
        coalesce(nullif(current_setting('imgsearch.text_cache_limit', true), ''), '100000')::integer;
begin
    for given in select n.query, n.embedding from unnest(queries, embeddings) n (query, embedding) loop
        if @vector@.vector_dims(given.embedding) is distinct from m.dim then
            raise exception 'model % takes a vector of dimension %, not %', m.name, m.dim,
                coalesce(@vector@.vector_dims(given.embedding)::text, 'null') using errcode = 'PI002',
                hint = 'bring a vector of the same model';
        end if;
        if @vector@.vector_norm(given.embedding) = 0 then
            raise exception 'a zero vector is like nothing' using errcode = 'PI002', hint = 'bring the vector of a text';
        end if;
        perform imgsearch._check_text(given.query, _cache_texts.template);
    end loop;
    insert into imgsearch.text_embedding as t (model_id, key, query, template, embedding, used_at)
    select distinct on (2) m.model_id, imgsearch.text_key(n.query, _cache_texts.template), btrim(n.query),
           _cache_texts.template, n.embedding, begun + n.number * interval '1 microsecond'
    from unnest(queries, embeddings) with ordinality n (query, embedding, number)
    order by 2, n.number desc
    on conflict on constraint text_embedding_pkey
        do update set embedding = excluded.embedding, used_at = excluded.used_at;
    delete from imgsearch.text_embedding t
    where t.model_id = m.model_id and t.key in (
        select o.key from imgsearch.text_embedding o where o.model_id = m.model_id
        order by o.used_at desc, o.key offset cache_limit);
end $$;

-- Text to image, in one SELECT.
create or replace function imgsearch.search_text(
    query text, k integer default 10, model text default 'text', filter jsonb default null,
    collection text default null, among bigint[] default null, min_similarity double precision default null,
    exact boolean default false, after bigint default null, collapse boolean default false,
    ef_search integer default null, template text default '{}'
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
begin
    return query select * from imgsearch._search(imgsearch._resolve_model(model),
        imgsearch.text_vector(query, model, template), null, null, k, filter, collection,
        among, min_similarity, exact, after, collapse, ef_search);
end $$;

-- Images like one image and like a text at once: "like this, but in blue". The image itself is never an answer.
create or replace function imgsearch.search_mixed(
    image_id bigint, query text, text_weight double precision default 0.5, k integer default 10,
    model text default 'text', filter jsonb default null, collection text default null, among bigint[] default null,
    min_similarity double precision default null, exact boolean default false, after bigint default null,
    collapse boolean default false, ef_search integer default null, template text default '{}'
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
    mixed @vector@.vector;
begin
    if text_weight is null or text_weight not between 0 and 1 then
        raise exception 'text_weight must be between 0 and 1, not %', coalesce(text_weight::text, 'null')
            using errcode = 'PI008', hint = '0 is the image alone, 1 the text alone';
    end if;
    mixed := imgsearch._mean(
        array[@vector@.l2_normalize(imgsearch._stored_vector(image_id, m)),
              @vector@.l2_normalize(imgsearch.text_vector(query, model, template))],
        array[1 - text_weight, text_weight]);
    return query select * from imgsearch._search(m, mixed, null, image_id, k, filter, collection,
        among, min_similarity, exact, after, collapse, ef_search);
end $$;

-- Several questions at once: vectors and words, several models, several pictures of one thing.

-- The weighted mean of vectors; every weight is 1 where none are given.
create or replace function imgsearch._mean(vectors @vector@.vector[], weights double precision[] default null)
returns @vector@.vector
language sql immutable parallel safe
return (select array_agg(mean order by number)::real[]::@vector@.vector
        from (select x.number, sum(x.value * coalesce(weights[v.number], 1)) / sum(coalesce(weights[v.number], 1)) as mean
              from unnest(vectors) with ordinality as v (vector, number)
              cross join lateral unnest(v.vector::real[]) with ordinality as x (value, number)
              group by x.number) m);

-- Images by id with the score that each has, as matches, best first.
create or replace function imgsearch._matches(ids bigint[], scores double precision[])
returns setof imgsearch.match
language sql stable as $$
    select i.image_id, s.score, c.name, i.path, i.external_id, i.group_key, i.caption, i.metadata
    from unnest(ids, scores) as s (id, score)
    join imgsearch.image i on i.image_id = s.id
    join imgsearch.collection c on c.collection_id = i.collection_id
    order by s.score desc, i.image_id
$$;

-- Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009, with their constant of 60): the k best of ranked images.
-- A score of 1 is the first place in every list.
create or replace function imgsearch._fuse(
    ids bigint[], lists integer[], ranks bigint[], weights double precision[], k integer
) returns setof imgsearch.match
language plpgsql stable as $$
declare
    found bigint[];
    scores double precision[];
begin
    select array_agg(f.id), array_agg(f.score) into found, scores
    from (select r.id, sum(weights[r.list] * 61 / (60 + r.rank)) / (select sum(w) from unnest(weights) w) as score
          from unnest(ids, lists, ranks) as r (id, list, rank)
          group by r.id order by 2 desc, 1 limit k) f;
    return query select * from imgsearch._matches(found, scores);
end $$;

-- How deep the lists go that are fused for k answers.
create or replace function imgsearch._depth(k integer) returns integer
language plpgsql immutable parallel safe as $$
begin
    if coalesce(k, 0) not between 1 and 1000 then
        raise exception 'k must be 1 to 1000 here, not %', coalesce(k::text, 'null') using errcode = 'PI008',
            hint = 'give the number of answers wanted, for example k => 10';
    end if;
    return least(greatest(4 * k, 100), 1000);
end $$;

-- Vectors and words fused: images that look like the text, and images whose caption or path have its words (as
-- websearch_to_tsquery reads them: all words, "phrases", or, -not). similarity is the fused score, 1 at most.
create or replace function imgsearch.search_hybrid(
    query text, k integer default 10, model text default 'text', filter jsonb default null,
    collection text default null, among bigint[] default null, exact boolean default false,
    ef_search integer default null, template text default '{}', text_weight double precision default 0.5
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    depth integer := imgsearch._depth(k);
    collection_id integer := imgsearch._collection_id(collection);
    ids bigint[] := '{}';
    words bigint[] := '{}';
begin
    if text_weight is null or text_weight not between 0 and 1 then
        raise exception 'text_weight must be between 0 and 1, not %', coalesce(text_weight::text, 'null')
            using errcode = 'PI008', hint = '0 is the vectors alone, 1 the words alone';
    end if;
    if text_weight < 1 then
        ids := array(select s.image_id from imgsearch.search_text(query, depth, model, filter, collection, among, null,
                                                                exact, null, false, ef_search, template) s);
    end if;
    if text_weight > 0 then
        execute format(
            'select coalesce(array_agg(w.image_id), ''{}'') from (
                 select i.image_id from imgsearch.image i, websearch_to_tsquery(''simple'', $5) q
                 where i.search @@ q and %s order by ts_rank_cd(i.search, q) desc, i.image_id limit %s) w',
            imgsearch._condition(filter, collection_id, among), depth)
            into words using filter, collection_id, among, null::text, query;
    end if;
    return query select * from imgsearch._fuse(
        ids || words, array_fill(1, array[cardinality(ids)]) || array_fill(2, array[cardinality(words)]),
        array(select n from generate_series(1, cardinality(ids)) n)
            || array(select n from generate_series(1, cardinality(words)) n),
        array[1 - text_weight, text_weight], k);
end $$;

-- Images like this one to several models, whose answers are fused; similarity is the fused score, 1 at most.
create or replace function imgsearch.similar_fused(
    image_id bigint, models text[], weights double precision[] default null, k integer default 10,
    filter jsonb default null, collection text default null, among bigint[] default null,
    exact boolean default false, ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    depth integer := imgsearch._depth(k);
    ids bigint[] := '{}';
    lists integer[] := '{}';
    ranks bigint[] := '{}';
    answers bigint[];
begin
    if coalesce(cardinality(models), 0) = 0 or array_position(models, null) is not null then
        raise exception 'no models are given' using errcode = 'PI008',
            hint = 'for example models => array[''dinov3'', ''palette'']';
    end if;
    weights := coalesce(weights, array_fill(1.0::double precision, array[cardinality(models)]));
    if cardinality(weights) <> cardinality(models)
        or not (select bool_and(coalesce(w, -1) between 0 and 1e6) and sum(w) > 0 from unnest(weights) w) then
        raise exception 'the weights % do not fit % models', weights, cardinality(models) using errcode = 'PI008',
            hint = 'give one for each model, none below zero and one above';
    end if;
    for place in 1 .. cardinality(models) loop
        continue when weights[place] = 0;
        answers := array(select s.image_id from imgsearch.similar(image_id, depth, models[place], filter, collection,
                                                                among, null, exact, null, false, ef_search) s);
        ids := ids || answers;
        lists := lists || array_fill(place, array[cardinality(answers)]);
        ranks := ranks || array(select n from generate_series(1, cardinality(answers)) n);
    end loop;
    return query select * from imgsearch._fuse(ids, lists, ranks, weights, k);
end $$;

-- Pairs of contents that are alike: found through the index or exactly, and remembered.

-- What a model's distance is divided by, to be 1 - similarity.
create or replace function imgsearch._distance_scale(m imgsearch.model) returns integer
language sql immutable parallel safe as $$
    select case m.storage when 'bit' then m.dim else 1 end
$$;

-- For each of some contents the one that stands for all of equal pixels: the first that the model has a vector of.
create or replace function imgsearch._stand_ins(m imgsearch.model, contents bigint[])
returns table (content_id bigint, stand_in bigint)
language plpgsql stable parallel safe as $$
begin
    return query execute format(
        'select q.content_id, min(c.content_id)
         from unnest($1) x join imgsearch.content q on q.content_id = x
         join imgsearch.content c on c.pixel_sha256 = q.pixel_sha256
         join %s e on e.content_id = c.content_id group by q.content_id', m.embeddings) using contents;
end $$;

-- Pairs at least as similar as cut of which one is asked, and the other in scope (null: any). May tell a pair twice.
-- With vectors, in the text form of the column, those are compared instead of the stored ones of what is asked.
-- Through the index: what has only answers above cut is asked again for more of them, and exactly beyond 256.
create or replace function imgsearch._pairs(
    m imgsearch.model, cut double precision, asked bigint[], scope bigint[] default null,
    vectors text[] default null
) returns table (content_a bigint, content_b bigint, similarity double precision)
language plpgsql stable parallel unsafe rows 20 as $$
declare
    all_asked bigint[] := asked;
    source text := case
        when vectors is null then
            format('(select e.* from %s e join unnest($1) x on x = e.content_id)', m.embeddings)
        else format('(select x.content_id, x.vector::%s as embedding
                      from unnest($3, $4) as x (content_id, vector) where x.content_id = any($1))',
                    case m.storage when 'bit' then format('bit(%s)', m.dim)
                                   else format('@vector@.%s(%s)', m.storage, m.dim) end) end;
    scale integer := imgsearch._distance_scale(m);
    distance text := format('a.embedding %s e.embedding', imgsearch._operator(m));
    -- not where reading the scope takes no longer than a scan of the index, nor where rows are hidden from that
    through_index boolean := m.index_method <> 'none' and coalesce(cardinality(scope) > 5000, true)
        and not row_security_active('imgsearch.image');
    wanted integer := 16;
    effort bigint;
    ones bigint[];
    others bigint[];
    distances double precision[];
    settings text[];
begin
    while through_index and cardinality(asked) > 0 and wanted <= 256 loop
        effort := imgsearch._effort(m, case m.index_method when 'hnsw' then 64 else m.ef_search end, wanted);
        settings := imgsearch._set_scan(m, effort);
        execute format(
            'select array_agg(a.content_id), array_agg(n.content_id), array_agg(n.distance)
             from %s a cross join lateral (%s) n where n.distance <= $2', source,
            imgsearch._nearest(m, 'a.embedding', wanted, effort))
            into ones, others, distances using asked, (1 - cut) * scale, all_asked, vectors;
        perform imgsearch._put_settings(settings);
        return query
            select least(n.a, n.b), greatest(n.a, n.b), least(1 - n.d / scale, 1)
            from unnest(ones, others, distances) as n (a, b, d)
            where n.a <> n.b and (scope is null or n.b = any(scope));
        asked := array(select a from unnest(ones) a group by a having count(*) >= wanted);
        wanted := wanted * 4;
    end loop;
    if cardinality(asked) > 0 then
        return query execute format(
            'select least(a.content_id, e.content_id), greatest(a.content_id, e.content_id), least(1 - (%2$s) / $5, 1)
             from %3$s a
             join (select e.* from %1$s e where $6 is null or e.content_id = any($6)) e
                 on e.content_id <> a.content_id and %2$s <= $2', m.embeddings, distance, source)
            using asked, (1 - cut) * scale, all_asked, vectors, scale::double precision, scope;
    end if;
end $$;

-- Contents in scope (null: all) that no scan with this cut has compared with the others yet.
create or replace function imgsearch._unscanned(m imgsearch.model, cut double precision, scope bigint[] default null)
returns bigint[]
language plpgsql stable parallel safe as $$
declare
    result bigint[];
begin
    execute format(
        'select array_agg(e.content_id order by e.content_id) from %s e
         where ($1 is null or e.content_id = any($1)) and not exists (
             select from imgsearch.duplicate_scanned d join imgsearch.duplicate_scan s on s.model_id = d.model_id
             where d.content_id = e.content_id and d.model_id = $2 and s.threshold <= $3 + 1e-6
                 -- its pairs are those of the content that stands for it, which the caller has to see
                 and ((select not row_security_active(''imgsearch.image'')) or imgsearch.visible(d.stand_in)))', m.embeddings)
        into result using scope, m.model_id, cut;
    return coalesce(result, '{}');
end $$;

-- All pairs at least as similar as cut, of contents in scope (null: all): those remembered, and those of contents that
-- were not scanned yet, which are found now. May tell a pair twice.
create or replace function imgsearch._all_pairs(m imgsearch.model, cut double precision, scope bigint[] default null)
returns table (content_a bigint, content_b bigint, similarity double precision, turned text)
language plpgsql stable parallel unsafe as $$
begin
    return query
        select p.content_a, p.content_b, p.similarity, p.turned from imgsearch.duplicate_pair p
        where p.model_id = m.model_id and p.similarity >= cut;
    return query
        select p.*, null::text from imgsearch._pairs(m, cut, imgsearch._unscanned(m, cut, scope), scope) p;
end $$;

-- Begin or go on with a scan. A lower threshold than before starts anew, a higher one changes nothing.
-- Returns the threshold down to which pairs are remembered. Raises PI008 where rows are hidden from the caller, who would
-- mark as compared with all what was compared with some.
create or replace function imgsearch._begin_scan(m imgsearch.model, cut double precision) returns double precision
language plpgsql volatile as $$
declare
    remembered double precision;
begin
    if row_security_active('imgsearch.image') then
        raise exception 'pairs are remembered for all, and row-level security hides images from %', current_user using
            errcode = 'PI008', hint = 'let the owner of the tables run it; imgsearch.duplicates() answers without';
    end if;
    select s.threshold into remembered from imgsearch.duplicate_scan s where s.model_id = m.model_id for update;
    if remembered <= cut + 1e-6 then
        return remembered;
    end if;
    delete from imgsearch.duplicate_scanned d where d.model_id = m.model_id;
    insert into imgsearch.duplicate_scan (model_id, threshold) values (m.model_id, cut)
    on conflict (model_id) do update set threshold = excluded.threshold, started_at = now();
    return cut;
end $$;

-- Remember pairs, and that contents were compared with all others. Of contents with equal pixels only one is remembered,
-- with which the mark of the others goes. Returns the number of pairs that are new.
create or replace function imgsearch._remember(
    m imgsearch.model, scanned bigint[], ones bigint[], others bigint[], similarities double precision[],
    turned text default null
) returns bigint
language plpgsql volatile as $$
declare
    new_pairs bigint;
begin
    with shown as materialized (
        select * from imgsearch._stand_ins(m, array(select unnest(ones) union select unnest(others)))),
    pair as (
        select least(a.stand_in, b.stand_in) as a, greatest(a.stand_in, b.stand_in) as b, max(p.similarity) as similarity
        from unnest(ones, others, similarities) as p (one, other, similarity)
        join shown a on a.content_id = p.one join shown b on b.content_id = p.other
        where a.stand_in <> b.stand_in
        group by 1, 2)
    insert into imgsearch.duplicate_pair (model_id, content_a, content_b, similarity, turned)
    select m.model_id, p.a, p.b, p.similarity, _remember.turned from pair p order by p.a, p.b
    on conflict on constraint duplicate_pair_pkey do update  -- a low threshold may have met the same two, not turned
        set similarity = excluded.similarity, turned = excluded.turned
        where excluded.similarity > duplicate_pair.similarity + 1e-3;
    get diagnostics new_pairs = row_count;
    insert into imgsearch.duplicate_scanned (model_id, content_id, stand_in)
    select m.model_id, s.content_id, s.stand_in from imgsearch._stand_ins(m, scanned) s order by 1, 2
    on conflict do nothing;
    return new_pairs;
end $$;

-- Compare contents with all others through the index, and remember what is found. Returns the number of new pairs.
create or replace function imgsearch._scan(m imgsearch.model, cut double precision, contents bigint[]) returns bigint
language plpgsql volatile as $$
declare
    asked bigint[] := array(
        select s.content_id from imgsearch._stand_ins(m, contents) s where s.content_id = s.stand_in);
    ones bigint[];
    others bigint[];
    similarities double precision[];
begin
    select array_agg(p.content_a), array_agg(p.content_b), array_agg(p.similarity) into ones, others, similarities
    from imgsearch._pairs(m, cut, asked) p;
    return imgsearch._remember(m, contents, ones, others, similarities);
end $$;

-- Contents that were compared with all others, but not turned in all of these ways; those that stand for others alone.
create or replace function imgsearch._unturned(m imgsearch.model, turns text[]) returns bigint[]
language sql stable parallel safe as $$
    select coalesce(array_agg(d.content_id order by d.content_id), '{}')
    from imgsearch.duplicate_scanned d
    where d.model_id = m.model_id and d.stand_in = d.content_id and not d.turns @> _unturned.turns
$$;

-- Compare turned contents, by their vectors in text form, with all others, and remember what is found and how it was
-- turned. Returns the number of new pairs.
create or replace function imgsearch._scan_turned(
    m imgsearch.model, cut double precision, turn text, contents bigint[], vectors text[]
) returns bigint
language plpgsql volatile as $$
declare
    ones bigint[];
    others bigint[];
    similarities double precision[];
begin
    select array_agg(p.content_a), array_agg(p.content_b), array_agg(p.similarity) into ones, others, similarities
    from imgsearch._pairs(m, cut, contents, null, vectors) p;
    update imgsearch.duplicate_scanned d set turns = array_append(d.turns, turn)
    where d.model_id = m.model_id and d.content_id = any(contents) and turn <> all(d.turns);
    return imgsearch._remember(m, '{}', ones, others, similarities, turn);
end $$;

-- Duplicates: identical (same bytes or same pixels), near (above the model's threshold) and similar (below it).
-- Images with equal pixels form a picture, shown by its first image, so a picture of 2,000 copies costs 1,999 pairs.

-- The threshold to use: the caller's, else the model's own, that of similar pairs where they are wanted.
-- Raises PI007 when there is none, PI008 for one that cannot be.
create or replace function imgsearch._threshold(
    m imgsearch.model, threshold double precision, kinds text[] default null
) returns double precision
language plpgsql immutable parallel safe as $$
declare
    own double precision := case when 'similar' = any(kinds) then m.similar else m.near end;
begin
    if coalesce(threshold, own) is null then
        raise exception 'model % has no threshold for % pairs', m.name,
            case when 'similar' = any(kinds) then 'similar' else 'near' end using errcode = 'PI007',
            hint = format('measure it: pgimgsearch models calibrate %s; or give one, for example threshold => 0.95', m.name);
    end if;
    if threshold not between 0 and 1 then
        raise exception 'the threshold must be 0 to 1, not %', threshold using errcode = 'PI008',
            hint = 'a similarity: 1 is the same, for example threshold => 0.95';
    end if;
    return coalesce(threshold, own);
end $$;

-- The contents that images under a condition show; null where that is all.
create or replace function imgsearch._scope(filter jsonb, collection_id integer, among bigint[]) returns bigint[]
language plpgsql stable parallel safe as $$
declare
    condition text := imgsearch._condition(filter, collection_id, among);
    result bigint[];
begin
    if condition = 'true' and not row_security_active('imgsearch.image') then return null; end if;
    execute format('select array_agg(distinct i.content_id) from imgsearch.image i where %s', condition)
        into result using filter, collection_id, among;
    return coalesce(result, '{}');
end $$;

-- Pairs that a person accepted, with the similarity that the model has for them.
create or replace function imgsearch._accepted(m imgsearch.model)
returns table (content_a bigint, content_b bigint, similarity double precision)
language plpgsql stable parallel safe rows 5 as $$
begin
    return query execute format(
        'select a.content_id, b.content_id, least(1 - (x.embedding %2$s y.embedding) / $1, 1)
         from imgsearch.duplicate_verdict v
         join imgsearch.content a on a.pixel_sha256 = v.pixels_a join %1$s x on x.content_id = a.content_id
         join imgsearch.content b on b.pixel_sha256 = v.pixels_b join %1$s y on y.content_id = b.content_id
         where v.verdict = ''accepted'' and v.pixels_a <> v.pixels_b', m.embeddings, imgsearch._operator(m))
        using imgsearch._distance_scale(m)::double precision;
end $$;

-- Pairs of duplicates: all copies of a picture against its first image, and first images against each other.
-- kinds leaves out the others. also names models that have to find a pair as well (agree => 'all'), or that may find
-- others (agree => 'any'), each by its own threshold. What a person accepted is near. invariant adds pairs that were
-- found turned. after is the last pair of the page before.
create or replace function imgsearch.duplicates(
    threshold double precision default null, model text default 'duplicates', filter jsonb default null,
    collection text default null, among bigint[] default null, kinds text[] default null,
    also text[] default null, agree text default 'all', invariant boolean default false, k integer default null,
    after bigint[] default null
) returns table (image_a bigint, image_b bigint, similarity double precision, kind text, verdict text, turned text)
language plpgsql stable parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(duplicates.model);
    by_pixels boolean := duplicates.kinds = array['identical'];  -- no model is asked
    cut double precision := case when by_pixels is not true then
        imgsearch._threshold(m, duplicates.threshold, duplicates.kinds) end;
    collection_id integer := imgsearch._collection_id(duplicates.collection);
    condition text := imgsearch._condition(duplicates.filter, collection_id, duplicates.among);
    scope bigint[] := imgsearch._scope(duplicates.filter, collection_id, duplicates.among);
    other imgsearch.model;
    other_name text;
    ones bigint[];
    others bigint[];
    similarities double precision[];
    found_kinds text[];
    turns text[];
begin
    if duplicates.agree not in ('all', 'any') then
        raise exception 'agree must be all or any, not %', duplicates.agree using errcode = 'PI008',
            hint = 'all: every model has to find a pair; any: one is enough';
    end if;
    if not duplicates.kinds <@ array['identical', 'near', 'similar'] or cardinality(duplicates.kinds) = 0 then
        raise exception 'unknown kind among: %', duplicates.kinds using errcode = 'PI008',
            hint = 'kinds are identical, near and similar';
    end if;
    if duplicates.k < 1 then
        raise exception 'k must be at least 1, not %', duplicates.k using errcode = 'PI008',
            hint = 'the pairs of a page; leave it out for all';
    end if;
    select array_agg(p.content_a), array_agg(p.content_b), array_agg(p.similarity),
           array_agg(case when p.similarity >= coalesce(m.near, cut) then 'near' else 'similar' end), array_agg(p.turned)
    into ones, others, similarities, found_kinds, turns
    from imgsearch._all_pairs(m, cut, scope) p
    where by_pixels is not true and (duplicates.invariant or p.turned is null);
    foreach other_name in array coalesce(duplicates.also, '{}') loop
        other := imgsearch._resolve_model(other_name);
        if duplicates.agree = 'any' then
            select ones || array_agg(p.content_a), others || array_agg(p.content_b),
                   similarities || array_agg(p.similarity), found_kinds || array_agg('near'::text),
                   turns || array_agg(p.turned)
            into ones, others, similarities, found_kinds, turns
            from imgsearch._all_pairs(other, imgsearch._threshold(other, null), scope) p
            where duplicates.invariant or p.turned is null;
        else
            execute format(
                'select array_agg(p.a), array_agg(p.b), array_agg(p.similarity), array_agg(p.kind), array_agg(p.turned)
                 from unnest($1, $2, $3, $4, $5) as p (a, b, similarity, kind, turned)
                 join %1$s a on a.content_id = p.a join %1$s b on b.content_id = p.b
                 where a.embedding %2$s b.embedding <= $6', other.embeddings, imgsearch._operator(other))
                into ones, others, similarities, found_kinds, turns
                using ones, others, similarities, found_kinds, turns,
                      (1 - imgsearch._threshold(other, null)) * imgsearch._distance_scale(other);
        end if;
    end loop;
    if by_pixels is not true then
        select ones || array_agg(p.content_a), others || array_agg(p.content_b), similarities || array_agg(p.similarity),
               found_kinds || array_agg('near'::text), turns || array_agg(null::text)
        into ones, others, similarities, found_kinds, turns
        from imgsearch._accepted(m) p;
    end if;

    return query execute format(
        'with scope as materialized (
             select i.image_id, c.pixel_sha256, first_value(i.image_id) over same_pixels as first_id
             from imgsearch.image i join imgsearch.content c on c.content_id = i.content_id
             where %s
             window same_pixels as (partition by c.pixel_sha256 order by i.image_id)),
         pair as (
             select distinct on (1, 2) least(a.image_id, b.image_id) as image_a, greatest(a.image_id, b.image_id) as image_b,
                    p.similarity, p.kind, v.verdict, p.turned
             from unnest($4, $5, $6, $7, $11) with ordinality as p (one, other, similarity, kind, turned, place)
             join imgsearch.content c on c.content_id = p.one
             join imgsearch.content d on d.content_id = p.other
             join scope a on a.pixel_sha256 = c.pixel_sha256 and a.image_id = a.first_id
             join scope b on b.pixel_sha256 = d.pixel_sha256 and b.image_id = b.first_id
             left join imgsearch.duplicate_verdict v
                 on v.pixels_a = least(c.pixel_sha256, d.pixel_sha256) and v.pixels_b = greatest(c.pixel_sha256, d.pixel_sha256)
             where a.image_id <> b.image_id
             order by 1, 2, p.kind, p.place),
         found as materialized (
             select s.first_id as image_a, s.image_id as image_b, 1::double precision as similarity,
                    ''identical'' as kind, v.verdict, null::text as turned
             from scope s
             left join imgsearch.duplicate_verdict v on v.pixels_a = s.pixel_sha256 and v.pixels_b = s.pixel_sha256
             where s.image_id <> s.first_id
             union all select * from pair)
         select f.* from found f
         where f.verdict is distinct from ''rejected'' and ($10 is null or f.kind = any($10))
             and ($8 is null or (-f.similarity, f.image_a, f.image_b) > (
             select -x.similarity, x.image_a, x.image_b from found x where x.image_a = $8[1] and x.image_b = $8[2]))
         order by f.similarity desc, f.image_a, f.image_b limit $9', condition)
        using duplicates.filter, collection_id, duplicates.among, ones, others, similarities, found_kinds,
              duplicates.after, duplicates.k, duplicates.kinds, turns;
    if not found and duplicates.after is not null and not exists (
        select from imgsearch.duplicates(duplicates.threshold, duplicates.model, duplicates.filter,
            duplicates.collection, duplicates.among, duplicates.kinds, duplicates.also, duplicates.agree,
            duplicates.invariant) d
        where d.image_a = duplicates.after[1] and d.image_b = duplicates.after[2])
        and not exists (  -- judged since it was shown
            select from imgsearch.image i join imgsearch.content c on c.content_id = i.content_id
            join imgsearch.image j on j.image_id = duplicates.after[2] join imgsearch.content d on d.content_id = j.content_id
            join imgsearch.duplicate_verdict v on v.pixels_a = least(c.pixel_sha256, d.pixel_sha256)
                and v.pixels_b = greatest(c.pixel_sha256, d.pixel_sha256)
            where i.image_id = duplicates.after[1] and v.verdict = 'rejected') then
        raise exception 'the pair % is no longer among the duplicates', duplicates.after using errcode = 'PI008',
            hint = 'begin with the first page again';
    end if;
end $$;

-- One image's copies, nearest first.
create or replace function imgsearch.duplicates_of(
    image_id bigint, threshold double precision default null, model text default 'duplicates',
    filter jsonb default null, collection text default null, among bigint[] default null
) returns setof imgsearch.duplicate
language plpgsql stable parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(duplicates_of.model);
    cut double precision := imgsearch._threshold(m, duplicates_of.threshold);
    content bigint := imgsearch._content_of(duplicates_of.image_id);
    collection_id integer := imgsearch._collection_id(duplicates_of.collection);
    stand_in bigint := (select s.stand_in from imgsearch._stand_ins(m, array[content]) s);
begin
    if stand_in is null then
        perform imgsearch._raise_not_embedded(duplicates_of.image_id, m.name);
    end if;
    return query execute format(
        'with pair as (
             select p.content_a, p.content_b, p.similarity from imgsearch._pairs($5, $6, array[$7]) p
             union all
             select p.content_a, p.content_b, p.similarity from imgsearch.duplicate_pair p
             where (p.content_a = $7 or p.content_b = $7) and p.model_id = $8 and p.similarity >= $6 and p.turned is null
             union all
             select p.* from imgsearch._accepted($5) p, imgsearch.content q
             where q.content_id = $4 and exists (
                 select from imgsearch.content c
                 where c.content_id in (p.content_a, p.content_b) and c.pixel_sha256 = q.pixel_sha256)),
         near as (
             select c.pixel_sha256, max(p.similarity) as similarity
             from pair p join imgsearch.content c on c.content_id in (p.content_a, p.content_b) group by 1)
         select i.image_id, case when c.pixel_sha256 = q.pixel_sha256 then 1 else n.similarity end,
                case when c.pixel_sha256 = q.pixel_sha256 then ''identical''
                     when n.similarity >= $9 or v.verdict = ''accepted'' then ''near'' else ''similar'' end,
                l.name, i.path, i.external_id, c.width, c.height, c.bytes
         from imgsearch.content q
         join (select pixel_sha256, similarity from near
               union all select q.pixel_sha256, null from imgsearch.content q
                         where q.content_id = $4 and q.pixel_sha256 not in (select pixel_sha256 from near)) n on true
         join imgsearch.content c on c.pixel_sha256 = n.pixel_sha256
         left join imgsearch.duplicate_verdict v
             on v.pixels_a = least(c.pixel_sha256, q.pixel_sha256) and v.pixels_b = greatest(c.pixel_sha256, q.pixel_sha256)
         join imgsearch.image i on i.content_id = c.content_id
         join imgsearch.collection l on l.collection_id = i.collection_id
         where q.content_id = $4 and i.image_id <> $10 and v.verdict is distinct from ''rejected'' and %s
         order by 2 desc, 1',
        imgsearch._condition(duplicates_of.filter, collection_id, duplicates_of.among))
        using duplicates_of.filter, collection_id, duplicates_of.among, content, m, cut, stand_in, m.model_id,
              coalesce(m.near, cut), duplicates_of.image_id;
end $$;

-- Keep what a person says of two images: 'accepted' for copies, 'rejected' for others, which are never reported again;
-- null forgets it. It is said of the pixels, so it holds for all copies of both, and for every model.
create or replace function imgsearch.judge_duplicates(image_a bigint, image_b bigint, verdict text) returns void
language plpgsql volatile as $$
declare
    pixels bytea[] := array(
        select c.pixel_sha256
        from unnest(array[imgsearch._content_of(image_a), imgsearch._content_of(image_b)]) x
        join imgsearch.content c on c.content_id = x order by 1);
begin
    if judge_duplicates.image_a = judge_duplicates.image_b then
        raise exception 'image % is itself', judge_duplicates.image_a using errcode = 'PI008',
            hint = 'give two images';
    end if;
    if judge_duplicates.verdict not in ('accepted', 'rejected') then
        raise exception 'unknown verdict: %', judge_duplicates.verdict using errcode = 'PI008',
            hint = 'accepted, rejected, or null to forget one';
    end if;
    if judge_duplicates.verdict is null then
        delete from imgsearch.duplicate_verdict v where v.pixels_a = pixels[1] and v.pixels_b = pixels[2];
    else
        insert into imgsearch.duplicate_verdict as v (pixels_a, pixels_b, verdict)
        values (pixels[1], pixels[2], judge_duplicates.verdict)
        on conflict on constraint duplicate_verdict_pkey do update
            set verdict = excluded.verdict, decided_by = excluded.decided_by, decided_at = excluded.decided_at;
    end if;
end $$;

-- Groups of duplicates, without chains, each with the image to keep and why.

-- What a format tells of quality: lossless, then those that are smaller for the same picture, then the others.
create or replace function imgsearch._format_rank(format text) returns integer
language sql immutable parallel safe as $$
    select case when format in ('PNG', 'BMP', 'TIFF', 'PPM', 'TGA', 'QOI', 'DDS') then 2
                when format in ('HEIF', 'AVIF', 'JPEG2000', 'JXL') then 1 else 0 end
$$;

-- How much an image deserves to be kept, rule by rule; of two, the one with more at the first rule that tells them apart.
-- Raises PI008 for an unknown rule.
create or replace function imgsearch._worth(
    keep text[], prefer text[], path text, width integer, height integer, bytes bigint, format_rank integer,
    modified_at timestamptz, reference boolean
) returns double precision[]
language plpgsql immutable parallel safe as $$
declare
    result double precision[] := array[reference::integer];
    worth double precision;
    rule text;
begin
    foreach rule in array keep loop
        worth := case rule
            when 'pixels' then width::double precision * height
            when 'lossless' then format_rank
            when 'bytes' then bytes
            when 'oldest' then -coalesce(extract(epoch from modified_at), 'infinity')
            when 'newest' then coalesce(extract(epoch from modified_at), '-infinity')
            when 'path' then -length(path) - 1000000.0 * coalesce(
                (select min(n) from unnest(prefer) with ordinality as p (pattern, n) where path like pattern),
                cardinality(prefer) + 1, 1) end;
        if worth is null then
            raise exception 'unknown rule: %', rule using errcode = 'PI008',
                hint = 'rules are pixels, lossless, bytes, oldest, newest and path';
        end if;
        result := result || worth;
    end loop;
    return result;
end $$;

-- Groups over pairs: each picture and the medoid of its group. 'medoid' takes pictures in the order of how many are like
-- them; each becomes a medoid unless it is like an earlier one, and the others join the one they are most like.
-- 'components' joins whatever is connected, however far its ends are apart; the medoid is the picture with most pairs.
create or replace function imgsearch._medoids(
    ones bigint[], others bigint[], similarities double precision[], linkage text
) returns table (picture bigint, medoid bigint)
language plpgsql immutable as $$
declare
    pictures bigint[];  -- best first; a picture's place is what the rest goes by
    lows integer[];
    highs integer[];
    left_lows integer[];
    left_highs integer[];
    found integer[];
    medoids integer[] := '{}';
    labels integer[];
    before integer[];
begin
    select array_agg(n.picture order by n.pairs desc, n.total desc, n.picture) into pictures
    from (select p.picture, count(*) as pairs, sum(p.similarity) as total
          from (select * from unnest(ones, similarities) union all select * from unnest(others, similarities))
              as p (picture, similarity) group by 1) n;
    with place as (select * from unnest(pictures) with ordinality as n (picture, place))
    select array_agg(least(a.place, b.place) order by e.n), array_agg(greatest(a.place, b.place) order by e.n)
    into lows, highs
    from unnest(ones, others) with ordinality as e (one, other, n)
    join place a on a.picture = e.one join place b on b.picture = e.other;

    if linkage = 'components' then
        labels := array(select generate_series(1, cardinality(pictures)));
        while labels is distinct from before loop
            before := labels;
            with label as materialized (select * from unnest(before) with ordinality as l (label, place)),
            lowest as (
                select x.place, min(l.label) as label
                from (select e.low as place, e.high as other from unnest(lows, highs) as e (low, high)
                      union all select e.high, e.low from unnest(lows, highs) as e (low, high)) x
                join label l on l.place = x.other group by 1)
            -- the label of the label: paths halve
            select array_agg(j.label order by l.place) into labels
            from label l left join lowest w on w.place = l.place
            join label j on j.place = least(l.label, w.label);
        end loop;
        return query select pictures[n], pictures[l] from unnest(labels) with ordinality as x (l, n);
        return;
    end if;

    left_lows := lows;
    left_highs := highs;
    while cardinality(left_lows) > 0 loop
        with edge as materialized (select * from unnest(left_lows, left_highs) as e (low, high)),
        best as materialized (select e.low as place from edge e except select e.high from edge e),
        taken as materialized (
            select b.place from best b union select e.high from edge e join best b on b.place = e.low),
        remaining as (
            select e.* from edge e
            where e.low not in (select t.place from taken t) and e.high not in (select t.place from taken t))
        select (select array_agg(b.place) from best b), array_agg(r.low), array_agg(r.high)
        into found, left_lows, left_highs from remaining r;
        medoids := medoids || found;
    end loop;
    return query
        with edge as materialized (
            select e.low, e.high, e.similarity from unnest(lows, highs, similarities) as e (low, high, similarity)
            union all select e.high, e.low, e.similarity from unnest(lows, highs, similarities) as e (low, high, similarity)),
        chosen as (select x as place from unnest(medoids) x),
        -- like none that was chosen, so chosen too
        lone as (
            select n.place::integer from generate_series(1, cardinality(pictures)) as n (place)
            except select c.place from chosen c
            except select e.high from edge e join chosen c on c.place = e.low),
        centre as materialized (select * from chosen union all select * from lone)
        select pictures[c.place], pictures[c.place] from centre c
        union all
        select pictures[m.high], pictures[m.low] from (
            select distinct on (e.high) e.high, e.low
            from edge e join centre c on c.place = e.low
            where e.high not in (select x.place from centre x)
            order by e.high, e.similarity desc, e.low) m;
end $$;

-- Groups of duplicates: every member is at least as similar as the threshold to the group's medoid, whose image_id is the
-- group_id; linkage => 'components' joins whatever is connected. similarity and kind are with the keeper; what is no pair
-- with it by itself, and there through others, is linked. minimum and median are of all pairs of pictures in the group, or
-- beyond 100 pictures of those with the medoid. The keeper is found by the rules of keep in turn: prefer holds
-- patterns of paths, best first, for the rule path; all images of the collections named by reference are kept.
create or replace function imgsearch.duplicate_groups(
    threshold double precision default null, model text default 'duplicates', filter jsonb default null,
    collection text default null, among bigint[] default null, kinds text[] default null,
    also text[] default null, agree text default 'all', invariant boolean default false, linkage text default 'medoid',
    keep text[] default null, prefer text[] default null, reference text[] default null, k integer default null,
    after bigint default null
) returns table (group_id bigint, image_id bigint, keeper boolean, similarity double precision, kind text, turned text,
                 collection_name text, path text, width integer, height integer, bytes bigint, format text, reason text,
                 minimum double precision, median double precision)
language plpgsql stable parallel unsafe as $$
#variable_conflict use_column
declare
    m imgsearch.model := imgsearch._resolve_model(duplicate_groups.model);
    rules text[] := coalesce(duplicate_groups.keep, case
        when duplicate_groups.prefer is null then array['pixels', 'lossless', 'bytes', 'oldest', 'path']
        else array['path', 'pixels', 'lossless', 'bytes', 'oldest'] end);
    reasons jsonb := '{"reference": "reference collection", "pixels": "most pixels", "lossless": "better format",
                       "bytes": "most bytes", "oldest": "oldest", "newest": "newest", "path": "preferred path"}';
    kept_collections integer[] := array(
        select imgsearch._collection_id(x) from unnest(duplicate_groups.reference) x);
    pairs_a bigint[];
    pairs_b bigint[];
    pairs_similarity double precision[];
    pairs_kind text[];
    pairs_turned text[];
    copies bigint[];
    copied bigint[];
    pictures bigint[];
    medoids bigint[];
    apart_a bigint[];
    apart_b bigint[];
    apart_medoids bigint[];
    leaving bigint;
    left_out bigint[] := '{}';
begin
    if duplicate_groups.linkage not in ('medoid', 'components') then
        raise exception 'unknown linkage: %', duplicate_groups.linkage using errcode = 'PI008',
            hint = 'medoid: all are like one of them; components: whatever is connected';
    end if;
    if duplicate_groups.k < 1 then
        raise exception 'k must be at least 1, not %', duplicate_groups.k using errcode = 'PI008',
            hint = 'the groups of a page; leave it out for all';
    end if;
    select array_agg(d.image_a) filter (where d.kind <> 'identical'),
           array_agg(d.image_b) filter (where d.kind <> 'identical'),
           array_agg(d.similarity) filter (where d.kind <> 'identical'),
           array_agg(d.kind) filter (where d.kind <> 'identical'),
           array_agg(d.turned) filter (where d.kind <> 'identical'),
           array_agg(d.image_a) filter (where d.kind = 'identical'),
           array_agg(d.image_b) filter (where d.kind = 'identical')
    into pairs_a, pairs_b, pairs_similarity, pairs_kind, pairs_turned, copied, copies
    from imgsearch.duplicates(duplicate_groups.threshold, duplicate_groups.model, duplicate_groups.filter,
        duplicate_groups.collection, duplicate_groups.among, duplicate_groups.kinds, duplicate_groups.also,
        duplicate_groups.agree, duplicate_groups.invariant) d;

    select array_agg(g.picture), array_agg(g.medoid) into pictures, medoids
    from imgsearch._medoids(pairs_a, pairs_b, pairs_similarity, duplicate_groups.linkage) g;
    -- two that a person told apart are not in one group: who was told apart most, and then the later one, leaves
    select array_agg(least(a.picture, b.picture)), array_agg(greatest(a.picture, b.picture)), array_agg(a.medoid)
    into apart_a, apart_b, apart_medoids
    from imgsearch.duplicate_verdict v
    join imgsearch.content c on c.pixel_sha256 = v.pixels_a join imgsearch.image i on i.content_id = c.content_id
    join unnest(pictures, medoids) as a (picture, medoid) on a.picture = i.image_id
    join imgsearch.content d on d.pixel_sha256 = v.pixels_b join imgsearch.image j on j.content_id = d.content_id
    join unnest(pictures, medoids) as b (picture, medoid) on b.picture = j.image_id and b.medoid = a.medoid
    where v.verdict = 'rejected' and v.pixels_a <> v.pixels_b;
    loop
        select x.picture into leaving
        from unnest(apart_a || apart_b, apart_medoids || apart_medoids, apart_b || apart_a) as x (picture, medoid, other)
        where x.picture <> x.medoid and x.picture <> all(left_out) and x.other <> all(left_out)
        group by x.picture order by count(*) desc, x.picture desc limit 1;
        exit when not found;
        left_out := left_out || leaving;
    end loop;

    with grouped as (
        select * from unnest(pictures, medoids) as g (picture, medoid) where g.picture not in (select unnest(left_out))),
    member as (
        select * from grouped
        union all
        select distinct x, x from unnest(copied) x where x not in (select g.picture from grouped g)),
    whole as (
        select n.*, count(*) over (partition by n.medoid) > 1 or n.picture in (select unnest(copied)) as several
        from member n)
    select array_agg(x.picture), array_agg(x.medoid) into pictures, medoids
    from (select w.*, dense_rank() over (order by w.medoid) as place from whole w
          where w.several and (duplicate_groups.after is null or w.medoid > duplicate_groups.after)) x
    where duplicate_groups.k is null or x.place <= duplicate_groups.k;

    return query execute format(
        'with member as (select * from unnest($1, $2) as n (picture, medoid)),
         seen as materialized (
             select n.picture, n.medoid, count(*) over (partition by n.medoid) as size, v.embedding
             from member n
             join imgsearch.image i on i.image_id = n.picture
             join imgsearch.content c on c.content_id = i.content_id
             left join lateral (
                 select e.embedding from imgsearch.content t join %1$s e on e.content_id = t.content_id
                 where t.pixel_sha256 = c.pixel_sha256 order by t.content_id limit 1) v on true),
         pair as materialized (
             select a.medoid, a.picture as a, b.picture as b,
                    coalesce(p.similarity, 1 - (a.embedding %2$s b.embedding) / $3) as similarity
             from seen a
             join seen b on b.medoid = a.medoid and b.picture > a.picture
                 and (a.size <= 100 or a.medoid in (a.picture, b.picture))
             left join unnest($4, $5, $6) as p (a, b, similarity) on p.a = a.picture and p.b = b.picture),
         whole as (
             select p.medoid, min(p.similarity) as minimum,
                    percentile_cont(0.5) within group (order by p.similarity) as median
             from pair p group by p.medoid),
         shown as (
             select n.medoid, n.picture, n.picture as image_id from member n
             union all
             select n.medoid, n.picture, c.image_id
             from member n join unnest($7, $8) as c (picture, image_id) on c.picture = n.picture),
         ranked as (
             select s.medoid, s.image_id, s.picture, i.path, l.name, c.width, c.height, c.bytes, c.format,
                    i.collection_id = any($9) as reference, w.worth, row_number() over best as place,
                    lead(w.worth) over best as next_worth, first_value(s.picture) over best as kept_picture
             from shown s
             join imgsearch.image i on i.image_id = s.image_id
             join imgsearch.collection l on l.collection_id = i.collection_id
             join imgsearch.content c on c.content_id = i.content_id
             -- of files with the same pixels none is better for its format or size
             join (select y.picture, max(z.bytes) as bytes, max(imgsearch._format_rank(z.format)) as format_rank
                   from shown y join imgsearch.image x on x.image_id = y.image_id
                   join imgsearch.content z on z.content_id = x.content_id group by y.picture) q on q.picture = s.picture
             cross join lateral (
                 select imgsearch._worth($10, $11, i.path, c.width, c.height, q.bytes, q.format_rank, i.modified_at,
                                         i.collection_id = any($9)) as worth) w
             window best as (partition by s.medoid order by w.worth desc, s.image_id))
         select r.medoid, r.image_id, r.place = 1 or r.reference,
                case when r.picture = r.kept_picture then 1
                     else coalesce(p.similarity, 1 - (a.embedding %2$s b.embedding) / $3) end,
                case when r.place = 1 then null when r.picture = r.kept_picture then ''identical''
                     else coalesce(p.kind, ''linked'') end, p.turned,
                r.name, r.path, r.width, r.height, r.bytes, r.format,
                case when r.place = 1 or r.reference then coalesce(
                    (select $13 ->> x.rule
                     from unnest($14, r.worth, r.next_worth) with ordinality as x (rule, mine, next, n)
                     where r.place = 1 and x.mine <> x.next or r.reference order by x.n limit 1), ''first added'') end,
                coalesce(w.minimum, 1), coalesce(w.median, 1)
         from ranked r
         join seen a on a.picture = r.picture
         join seen b on b.picture = r.kept_picture
         left join unnest($4, $5, $6, $12, $15) as p (a, b, similarity, kind, turned)
             on p.a = least(r.picture, r.kept_picture) and p.b = greatest(r.picture, r.kept_picture)
         left join whole w on w.medoid = r.medoid
         order by r.medoid, r.place', m.embeddings, imgsearch._operator(m))
        using pictures, medoids, imgsearch._distance_scale(m)::double precision, pairs_a, pairs_b, pairs_similarity,
              copied, copies, kept_collections, rules, duplicate_groups.prefer,
              pairs_kind, reasons,
              array['reference'] || rules, pairs_turned;
end $$;

-- Groups: products instead of pictures. Images of one group_key are one thing; an image without one stands for itself.

-- The groups nearest to one or several vectors, each shown by its nearest image. similarity is that of this image to the
-- nearest of the vectors (best), or the mean over the group's images of that to the vectors' mean (mean), which is never
-- more than its best. The own group, or image, is left out. Candidates come from the index while what it did not give
-- cannot be nearer, else all images are read.
create or replace function imgsearch._similar_groups(
    m imgsearch.model, queries @vector@.vector[], own_group text, own_image bigint, k integer, aggregate text,
    filter jsonb, collection text, among bigint[], exact boolean, ef_search integer
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    depth integer := imgsearch._depth(k);
    collection_id integer := imgsearch._collection_id(collection);
    compared @vector@.vector[] := case aggregate when 'mean' then array[imgsearch._mean(queries)] else queries end;
    score text := format('1 - (e.embedding OPERATOR(@vector@.<=>) %s::@vector@.%s)',
                         case aggregate when 'mean' then '($5)[1]' else 'q.vector' end, m.storage);
    found imgsearch.match[];
    answers imgsearch.match[];
    unseen double precision;  -- no image that was not found is nearer than this
    complete boolean;
    narrowed text := '';
    images bigint[];
    similarities double precision[];
begin
    if aggregate is null or aggregate not in ('best', 'mean') then
        raise exception 'unknown aggregate: %', coalesce(aggregate, 'null') using errcode = 'PI008',
            hint = 'best (the nearest image of each group) or mean (over all its images)';
    end if;
    loop
        if not exact then
            found := '{}';
            unseen := -1;
            complete := true;
            for place in 1 .. cardinality(compared) loop
                answers := array(select s from imgsearch._search(m, compared[place], null, null, depth, filter, collection,
                                                               among, null, false, null, false, ef_search) s);
                found := found || answers;
                if cardinality(answers) = depth then
                    complete := false;
                    unseen := greatest(unseen, answers[depth].similarity);
                end if;
            end loop;
            narrowed := ' and (i.group_key = any($6) or i.group_key is null and i.image_id = any($7))';
        end if;
        execute format(
            case aggregate when 'best' then
                'select array_agg(g.image_id), array_agg(g.similarity) from (
                     select i.image_id, x.similarity,
                            row_number() over (partition by i.group_key, case when i.group_key is null then i.image_id end
                                               order by x.similarity desc, i.image_id) as place
                     from imgsearch.image i join %s e on e.content_id = i.content_id
                     cross join lateral (select max(least(%s, 1)) as similarity from unnest($5) as q (vector)) x
                     where %s and %s%s order by place, 2 desc, 1 limit %s) g where g.place = 1'
            else
                'select array_agg(g.image_id), array_agg(g.similarity) from (
                     select (array_agg(i.image_id order by %2$s desc, i.image_id))[1] as image_id,
                            avg(least(%2$s, 1)) as similarity
                     from imgsearch.image i join %1$s e on e.content_id = i.content_id
                     where %3$s and %4$s%5$s
                     group by i.group_key, case when i.group_key is null then i.image_id end
                     order by 2 desc, 1 limit %6$s) g'
            end, m.embeddings, score, imgsearch._condition(filter, collection_id, among),
            case when own_group is not null then 'i.group_key is distinct from $8' else 'i.image_id is distinct from $9' end,
            narrowed, k)
            into images, similarities
            using filter, collection_id, among, null::text, compared,
                  array(select f.group_key from unnest(found) f where f.group_key is not null),
                  array(select f.image_id from unnest(found) f where f.group_key is null), own_group, own_image;
        exit when exact or complete
            or coalesce(cardinality(images), 0) = k and similarities[k] >= unseen;
        exact := depth = 1000;
        depth := 1000;
        narrowed := '';
    end loop;
    return query select * from imgsearch._matches(images, similarities);
end $$;

-- Raise PI002 for a model of hashes.
create or replace function imgsearch._check_vectors(m imgsearch.model) returns void
language plpgsql immutable parallel safe as $$
begin
    if m.storage = 'bit' then
        raise exception 'model % makes hashes, and groups are compared by vectors', m.name using errcode = 'PI002',
            hint = 'name a model of vectors, for example model => ''palette''';
    end if;
end $$;

-- Groups like an image, whose own group is left out. One row a group: its nearest image.
create or replace function imgsearch.similar_groups(
    image_id bigint, k integer default 10, model text default 'default', aggregate text default 'best',
    filter jsonb default null, collection text default null, among bigint[] default null,
    exact boolean default false, ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
    query @vector@.vector;
    own_group text;
begin
    perform imgsearch._check_vectors(m);
    query := imgsearch._stored_vector(image_id, m);
    select i.group_key into own_group from imgsearch.image i where i.image_id = similar_groups.image_id;
    return query select * from imgsearch._similar_groups(m, array[query], own_group, image_id, k, aggregate,
        filter, collection, among, exact, ef_search);
end $$;

-- Groups like a group, by all its images (a hundred at most). One row a group: its nearest image.
create or replace function imgsearch.similar_groups(
    group_key text, k integer default 10, model text default 'default', aggregate text default 'best',
    filter jsonb default null, collection text default null, among bigint[] default null,
    exact boolean default false, ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
    images bigint[];
    queries @vector@.vector[];
begin
    perform imgsearch._check_vectors(m);
    images := array(select min(i.image_id) from imgsearch.image i where i.group_key = similar_groups.group_key
                    group by i.content_id order by 1 limit 100);
    if cardinality(images) = 0 then
        raise exception 'no image with group_key %', coalesce(similar_groups.group_key, 'null') using errcode = 'PI004',
            hint = 'ingest --group-by and the column group set it; see imgsearch.image';
    end if;
    execute format('select array_agg(e.embedding::@vector@.vector order by i.image_id)
                    from imgsearch.image i join %s e on e.content_id = i.content_id where i.image_id = any($1)',
                   m.embeddings) into queries using images;
    if queries is null then
        perform imgsearch._raise_not_embedded(images[1], m.name);
    end if;
    return query select * from imgsearch._similar_groups(m, queries, similar_groups.group_key, null, k, aggregate,
        filter, collection, among, exact, ef_search);
end $$;

-- Clusters: groups of like images, made by the command cluster.

-- The images of a model's clusters, largest cluster first, the most typical image of each first; null is like no other.
create or replace function imgsearch.clusters(
    model text default 'default', filter jsonb default null, collection text default null, among bigint[] default null
) returns table (cluster integer, size bigint, image_id bigint, probability real, collection_name text, path text,
                 external_id text)
language plpgsql stable parallel safe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(clusters.model);
    collection_id integer := imgsearch._collection_id(clusters.collection);
begin
    if not exists (select from imgsearch.cluster x where x.model_id = m.model_id) then
        raise exception 'no clusters were made with model %', m.name using errcode = 'PI003',
            hint = format('run: pgimgsearch cluster --model %s', m.name);
    end if;
    return query execute format(
        'select x.cluster, count(*) over (partition by x.cluster), i.image_id, x.probability, l.name, i.path, i.external_id
         from imgsearch.cluster x
         join imgsearch.content s on s.content_id = x.content_id
         join imgsearch.content c on c.pixel_sha256 = s.pixel_sha256
         join imgsearch.image i on i.content_id = c.content_id
         join imgsearch.collection l on l.collection_id = i.collection_id
         where x.model_id = $4 and %s
         order by x.cluster is null, 2 desc, x.cluster, x.probability desc, i.image_id',
        imgsearch._condition(clusters.filter, collection_id, clusters.among))
        using clusters.filter, collection_id, clusters.among, m.model_id;
end $$;

-- The k nearest contents of each of some contents, through the index; itself is not among them.
create or replace function imgsearch._neighbours(m imgsearch.model, contents bigint[], k integer)
returns table (content_id bigint, neighbour bigint, distance double precision)
language plpgsql stable parallel unsafe as $$
declare
    effort bigint := imgsearch._effort(m, case m.index_method when 'hnsw' then 64 else m.ef_search end, k + 1);
    settings text[] := imgsearch._set_scan(m, effort);
begin
    return query execute format(
        'select a.content_id, n.content_id, n.distance / $2
         from (select e.* from %s e join unnest($1) x on x = e.content_id) a cross join lateral (%s) n
         where n.content_id <> a.content_id', m.embeddings, imgsearch._nearest(m, 'a.embedding', k + 1, effort))
        using contents, imgsearch._distance_scale(m)::double precision;
    perform imgsearch._put_settings(settings);
end $$;

-- Labels: by words (zero-shot), or by what the nearest images are labelled.

-- How well labels in a template fit an image, with the model's own temperature: a softmax over the labels (CLIP), or
-- for each label by itself (SigLIP, which has a bias). Raises PI007 for a model that was not trained for either.
create or replace function imgsearch.classify(
    image_id bigint, labels text[], model text default 'text', template text default '{}'
) returns table (label text, probability double precision, similarity double precision)
language plpgsql stable parallel unsafe as $$
#variable_conflict use_column
declare
    m imgsearch.model := imgsearch._resolve_model(classify.model);
    query @vector@.vector := @vector@.l2_normalize(imgsearch._stored_vector(classify.image_id, m));
    vectors @vector@.vector[];
begin
    if coalesce(cardinality(classify.labels), 0) = 0 then
        raise exception 'no labels are given' using errcode = 'PI008',
            hint = 'for example labels => array[''a dog'', ''a cat'']';
    end if;
    if m.logit_scale is null and m.has_text then
        raise exception 'model % has no temperature, so no probabilities', m.name using errcode = 'PI007',
            hint = 'use a model like clip-vit-b-32 or siglip2-b-16-224; or compare imgsearch.text_vector() yourself';
    end if;
    vectors := imgsearch._text_vectors(classify.labels, m, classify.template);
    return query
        with compared as (
            select l.label, l.number, 1 - (v.vector OPERATOR(@vector@.<=>) query) as similarity
            from unnest(classify.labels, vectors) with ordinality as l (label, vector, number)
            cross join lateral (select l.vector) v),
        scaled as (
            select c.*, m.logit_scale * c.similarity + coalesce(m.logit_bias, 0) as logit from compared c),
        weighed as (
            -- less the largest, so that exp stays finite
            select s.*, exp(s.logit - max(s.logit) over ()) as weight from scaled s)
        select w.label, case when m.logit_bias is null then w.weight / sum(w.weight) over ()
                             else 1 / (1 + exp(least(-w.logit, 700))) end, w.similarity
        from weighed w order by 2 desc, w.number;
end $$;

-- What the nearest images say under a metadata key: each votes with its similarity, only images that have the key.
create or replace function imgsearch.predict_label(
    image_id bigint, key text, k integer default 10, model text default 'default', filter jsonb default null,
    collection text default null, among bigint[] default null, exact boolean default false
) returns table (label text, score double precision, votes bigint)
language plpgsql stable parallel unsafe as $$
#variable_conflict use_column
declare
    m imgsearch.model := imgsearch._resolve_model(predict_label.model);
begin
    if coalesce(predict_label.key, '') = '' then
        raise exception 'no metadata key is given' using errcode = 'PI008', hint = 'for example key => ''category''';
    end if;
    return query
        select v.label, sum(v.weight) / nullif(sum(sum(v.weight)) over (), 0), count(*)
        from (select s.metadata ->> predict_label.key as label, greatest(s.similarity, 0) as weight
              from imgsearch._search(
                  m, case when m.storage <> 'bit' then imgsearch._stored_vector(predict_label.image_id, m) end,
                  case m.storage when 'bit' then imgsearch._stored_bits(predict_label.image_id, m) end,
                  predict_label.image_id, predict_label.k, predict_label.filter, predict_label.collection,
                  predict_label.among, null, predict_label.exact, null, false, null, predict_label.key) s) v
        group by v.label order by 2 desc, 3 desc, 1;
end $$;

-- Operations: what is embedded, what is missing, and who may use it.

-- What each model covers. Without exact, large counts come from the planner's statistics.
-- missing = contents - embedded - skipped; failed counts files that could not be read for any model.
create or replace function imgsearch.coverage(exact boolean default false)
returns table (model text, status text, images bigint, contents bigint, embedded bigint, skipped bigint,
               failed bigint, missing bigint)
language plpgsql stable parallel safe as $$
#variable_conflict use_column
declare
    m imgsearch.model;
    small boolean := imgsearch._count('imgsearch.content', false) < 100000;
begin
    images := imgsearch._count('imgsearch.image', coverage.exact);
    for m in select x.* from imgsearch.model x order by x.name loop
        model := m.name;
        status := m.status;
        select count(*) into failed from imgsearch.ingest_failure f
        where f.kind = 'failed' and (f.model_id is null or f.model_id = m.model_id);
        if not exists (select from pg_class c where c.oid = m.embeddings) then  -- somebody has dropped it
            contents := imgsearch._count('imgsearch.content', coverage.exact);
            embedded := 0; skipped := 0; missing := contents;
        elsif coverage.exact or small then
            select c.contents, c.embedded, c.skipped, c.missing into contents, embedded, skipped, missing
            from imgsearch._covered(m) c;
        else
            contents := imgsearch._count('imgsearch.content', false);
            embedded := imgsearch._count(m.embeddings, false);
            select count(*) into skipped from imgsearch._skips(m.model_id);
            missing := greatest(contents - embedded - skipped, 0);
        end if;
        return next;
    end loop;
end $$;

-- What a model covers of the contents that images show, counted.
create or replace function imgsearch._covered(m imgsearch.model)
returns table (contents bigint, embedded bigint, skipped bigint, missing bigint)
language plpgsql stable parallel safe as $$
begin
    return query execute format('
        with skips as materialized (select s as content_id from imgsearch._skips($1) s)
        select count(*), count(e.content_id), count(*) filter (where e.content_id is null and s.content_id is not null),
               count(*) filter (where e.content_id is null and s.content_id is null)
        from imgsearch.content c
        left join %s e on e.content_id = c.content_id
        left join skips s on s.content_id = c.content_id
        where exists (select from imgsearch.image i where i.content_id = c.content_id)', m.embeddings)
        using m.model_id;
end $$;

-- Contents that images show and a model has neither a vector of nor a reason to skip, in order; at most so many.
create or replace function imgsearch._lacking(m imgsearch.model, after bigint, most integer) returns setof bigint
language plpgsql stable parallel safe as $$
begin
    return query execute format('
        with skips as materialized (select s as content_id from imgsearch._skips($1) s)
        select c.content_id from imgsearch.content c
        where c.content_id > $2
            and not exists (select from %s e where e.content_id = c.content_id and e.content_id > $2)
            and exists (select from imgsearch.image i where i.content_id = c.content_id)
            and not exists (select from skips s where s.content_id = c.content_id)
        order by c.content_id limit $3', m.embeddings) using m.model_id, after, most;
end $$;

-- Contents in which a model found too little: said of a file that still has the bytes it had then.
create or replace function imgsearch._skips(model_id integer) returns setof bigint
language sql stable parallel safe as $$
    select distinct i.content_id
    from imgsearch.ingest_failure f
    join imgsearch.image i on i.collection_id = f.collection_id and i.path = f.path
    join imgsearch.content c on c.content_id = i.content_id
    where f.model_id = _skips.model_id and f.kind = 'skipped' and f.bytes = c.bytes
        and f.modified_at is not distinct from i.modified_at
$$;

-- Rows of a table as the planner knows them, of all its partitions.
create or replace function imgsearch._estimated(relation regclass) returns bigint
language sql stable parallel safe as $$
    select coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint from pg_class c
    where c.relkind = 'r' and (c.oid = relation or c.oid in (select t.relid from pg_partition_tree(relation) t))
$$;

-- Rows of a table: counted when asked for or when small, else estimated by the planner.
create or replace function imgsearch._count(relation regclass, exact boolean) returns bigint
language plpgsql stable parallel safe as $$
declare
    result bigint;
begin
    result := imgsearch._estimated(relation);
    if exact or result < 100000 or row_security_active('imgsearch.image') then
        execute format('select count(*) from %s', relation) into result;
    end if;
    return result;
end $$;

-- Give a role what an application needs: 'reader' searches, 'writer' ingests as well.
create or replace function imgsearch.grant_access(role_name name, access text default 'reader') returns void
language plpgsql volatile set search_path = imgsearch, @vector@, pg_temp as $$
declare
    writable text;
begin
    if access not in ('reader', 'writer') then
        raise exception 'unknown access: %', access using errcode = 'PI008', hint = 'reader or writer';
    end if;
    if not exists (select from pg_roles r where r.rolname = role_name) then
        raise exception 'there is no role %', role_name using errcode = 'PI008',
            hint = format('create it first: create role %I login password ''...''', role_name);
    end if;
    execute format('grant usage on schema imgsearch to %I', role_name);
    if not exists (select from pg_extension e where e.extname = 'vector'
                   and has_schema_privilege(role_name, e.extnamespace, 'usage')) then
        execute format('grant usage on schema @vector@ to %I', role_name);
    end if;
    execute format('grant select on all tables in schema imgsearch to %I', role_name);
    perform imgsearch._grant_embedder(role_name);
    if access = 'writer' then
        for writable in
            select t::text from unnest(array['collection', 'content', 'image', 'ingest_run', 'ingest_failure',
                                             'text_embedding', 'duplicate_scan', 'duplicate_scanned', 'duplicate_pair',
                                             'duplicate_verdict', 'cluster', 'evaluation_run']) t
            union all select m.embeddings::text from imgsearch.model m
        loop
            execute format('grant insert, update, delete on %s to %I', writable, role_name);
        end loop;
    end if;
end $$;

-- The share of the k true neighbours that a model's index finds, for stored vectors drawn at random. Counted by
-- distance, so that ties and copies do not depress it. null without an index or vectors.
create or replace function imgsearch.recall(
    model text default 'default', k integer default 10, sample integer default 100, ef_search integer default null
) returns double precision
language plpgsql volatile parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(recall.model);
begin
    if coalesce(recall.ef_search, 1) not between 1 and 1000 then
        raise exception 'ef_search must be 1 to 1000, not %', recall.ef_search using errcode = 'PI008',
            hint = 'leave it out for the value that the model has';
    end if;
    return (select avg(r.recall) from imgsearch._recalls(m, recall.k, imgsearch._drawn(m, recall.sample),
                                                         array[coalesce(recall.ef_search, m.ef_search)]) r);
end $$;

-- Stored contents of a model, drawn at random.
create or replace function imgsearch._drawn(m imgsearch.model, sample integer) returns bigint[]
language plpgsql volatile as $$
declare
    stored double precision := greatest(imgsearch._estimated(m.embeddings), 1);
    result bigint[];
begin
    if coalesce(sample, 0) not between 1 and 10000 then
        raise exception 'sample must be 1 to 10000, not %', coalesce(sample::text, 'null') using errcode = 'PI008',
            hint = 'give the number of queries, for example sample => 100';
    end if;
    -- twice as many as wanted, by blocks and rows, so that a large table is not read whole
    execute format('select array_agg(d.content_id) from (
                        select e.content_id from %s e tablesample bernoulli (%s) order by random() limit %s) d',
                   m.embeddings, least(100, 200 * sample / stored)::numeric, sample) into result;
    if coalesce(cardinality(result), 0) < sample then
        execute format('select array_agg(d.content_id) from (
                            select e.content_id from %s e order by random() limit %s) d', m.embeddings, sample) into result;
    end if;
    return result;
end $$;

-- For each ef_search, and each of the contents as a query: the recall of the index, and the milliseconds it took.
create or replace function imgsearch._recalls(m imgsearch.model, k integer, contents bigint[], efs integer[])
returns table (ef_search integer, recall double precision, milliseconds double precision)
language plpgsql volatile as $$
#variable_conflict use_column
declare
    operand text := case m.storage when 'bit' then format('$1::bit(%s)', m.dim)
                                   else format('$1::@vector@.%s', m.storage) end;
    distance text := format('e.embedding %s %s', imgsearch._operator(m), operand);
    effort bigint;
    margin double precision := case m.storage when 'bit' then 0 else 1e-3 end;
    query text;
    true_count bigint;
    true_distance double precision;
    queries text[] := '{}';
    true_counts bigint[] := '{}';
    true_distances double precision[] := '{}';
    found double precision[];
    settings text[];
    started timestamptz;
begin
    if m.index_method = 'none' then return; end if;
    if coalesce(_recalls.k, 0) not between 1 and 999 then
        raise exception 'k must be 1 to 999 here, not %', coalesce(_recalls.k::text, 'null') using errcode = 'PI008',
            hint = 'give the number of neighbours, for example k => 10';
    end if;
    for number in 1 .. coalesce(cardinality(contents), 0) loop
        execute format('select e.embedding::text from %s e where e.content_id = $1', m.embeddings)
            into query using contents[number];
        execute format('select count(*), max(n.distance) from (
                            select (%s) + 0 as distance from %s e where e.content_id <> $2 order by 1 limit $3) n',
                       distance, m.embeddings) into true_count, true_distance using query, contents[number], _recalls.k;
        queries := queries || query;
        true_counts := true_counts || true_count;
        true_distances := true_distances || true_distance;
    end loop;
    settings := imgsearch._set_scan(m, 40);
    foreach ef_search in array efs loop
        effort := imgsearch._effort(m, ef_search, _recalls.k + 1);
        perform imgsearch._set_scan(m, effort);
        for number in 1 .. coalesce(cardinality(contents), 0) loop
            continue when true_counts[number] = 0;
            started := clock_timestamp();
            execute format('select array_agg(n.distance) from (%s) n where n.content_id <> $2',
                           imgsearch._nearest(m, operand, _recalls.k + 1, effort))
                into found using queries[number], contents[number];
            milliseconds := 1000 * extract(epoch from clock_timestamp() - started);
            recall := least((select count(*) from unnest(found) d where d <= true_distances[number] + margin),
                            true_counts[number])::double precision / true_counts[number];
            return next;
        end loop;
    end loop;
    perform imgsearch._put_settings(settings);
end $$;
