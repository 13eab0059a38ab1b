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

-- Register a model row's table and view, with the owner and grants of imgsearch.image. Returns the table.
create or replace function imgsearch.create_embeddings(model_id integer) returns regclass
language plpgsql volatile set search_path = imgsearch, @vector@, pg_temp set lock_timeout = '10s' as $$
declare
    m imgsearch.model;
    owner name;
    table_name text;
    view_name text;
    privilege record;
begin
    select x.* into strict m from imgsearch.model x where x.model_id = create_embeddings.model_id;
    table_name := format('imgsearch.%I', 'embedding_' || m.slug || '_' || m.dim);
    view_name := format('imgsearch.%I', 'images_' || m.slug);
    execute format('create table %s (
            content_id bigint primary key references imgsearch.content on delete cascade,
            embedding %s(%s) not null
        ) with (toast_tuple_target = 8160)', table_name, m.storage, m.dim);
    execute format('alter table %s alter embedding set storage external, enable row level security', table_name);
    execute format('create policy read on %s for select using (
        (select not row_security_active(''imgsearch.image'')) or imgsearch.visible(content_id))', table_name);
    execute format('create policy add on %s for insert with check (true)', table_name);
    execute format('create policy change on %s for update using (true)', table_name);
    execute format('create policy remove on %s for delete using (true)', table_name);
    execute format('comment on table %s is %L', table_name, 'embeddings of ' || m.name);
    execute format('create view %s with (security_invoker) as
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
            execute format('drop view if exists %s', m.images);
            execute format('drop table if exists %s', m.embeddings);
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

-- Point an alias at the model that it meant before, and again to go forth. Returns that model's name.
create or replace function imgsearch.rollback_alias(alias text) returns text
language plpgsql volatile as $$
declare
    now_means text;
    meant text;
begin
    select m.name into now_means
    from imgsearch.alias a join imgsearch.model m on m.model_id = a.model_id where a.alias = rollback_alias.alias;
    select h.model_name into meant from imgsearch.alias_history h
    where h.alias = rollback_alias.alias and h.model_name is distinct from now_means and h.model_name is not null
    order by h.history_id desc limit 1;
    if meant is null then
        raise exception 'alias % meant no other model before', coalesce(rollback_alias.alias, 'null')
            using errcode = 'PI009', hint = 'see imgsearch.alias_history; pgimgsearch models alias points it anywhere';
    end if;
    if not exists (select from imgsearch.model m where m.name = meant) then
        raise exception 'the model % that alias % meant before was removed', meant, rollback_alias.alias
            using errcode = 'PI009', hint = format('add it again: pgimgsearch models switch %s --to %s',
                                                   rollback_alias.alias, meant);
    end if;
    perform imgsearch.set_alias(rollback_alias.alias, meant);
    return meant;
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
