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
