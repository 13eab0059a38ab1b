-- Models: names, what is stored of them, and the vectors of single images.

-- The model behind a name or an alias; raises PI001 when there is none.
create or replace function imgsearch._resolve_model(model text) returns imgsearch.model
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
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
            hint = case when known is null then 'no model has been added yet: run "pgimgsearch ingest DIR --model NAME"'
                        else 'known models: ' || known || '; add one with "pgimgsearch models add NAME"' end;
    end if;
    return found_model;
end $$;

-- Declare a model and create its empty table; the first load completes its row. Returns its model_id, also where the model
-- exists; raises PI002 where another model has that name. normalized is the column normalize, which is a keyword of SQL and
-- cannot name a parameter.
create or replace function imgsearch.add_model(
    name text, dim integer, backend text, checkpoint text, output text, storage text default 'halfvec',
    revision text default null, has_text boolean default false, near double precision default null,
    licence text default null, normalized boolean default true
) returns integer
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    present imgsearch.model;
    result integer;
begin
    perform pg_advisory_xact_lock(hashtext('pgimgsearch.add_model'));
    select m.* into present from imgsearch.model m where m.name = add_model.name;
    if found then
        if (present.dim, present.storage, present.backend, present.checkpoint, present.normalize)
            is distinct from (add_model.dim, add_model.storage, add_model.backend, add_model.checkpoint,
                              add_model.normalized)
            or 'auto' not in (add_model.output, present.output) and add_model.output <> present.output
            or present.fingerprint is null and add_model.revision <> present.revision then
            raise exception 'model % already exists, as %', present.name, concat_ws(', ', present.dim || ' dimensions',
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
            add_model.normalized, '{}')
    returning model_id into result;
    perform imgsearch.create_embeddings(result);
    return result;
end $$;

-- A model's name as part of the names of its tables: [a-z0-9_], unique, with a hash where it is long or taken. Tables,
-- partitions and indexes add up to 36 characters, and Postgres cuts names at 63.
create or replace function imgsearch._slug(name text) returns text
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    result text := trim(both '_' from regexp_replace(lower(_slug.name), '[^a-z0-9]+', '_', 'g'));
begin
    if length(result) > 27 or exists (select from imgsearch.model m where m.slug = result) then
        result := left(result, 18) || '_' || left(md5(_slug.name), 8);
    end if;
    return result;
end $$;

-- Drop a model with its table, view, index and cached texts. Takes its locks in short attempts.
create or replace function imgsearch.drop_model(model text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp set lock_timeout = '2s' as $$
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
            perform imgsearch._drop_embeddings(m);
            exit;
        exception when lock_not_available then
            if attempt = 10 then raise; end if;
            perform pg_sleep(0.2 * attempt);
        end;
    end loop;
    delete from imgsearch.model x where x.model_id = m.model_id;
end $$;

-- Record which index a model should have; "pgimgsearch index build" builds it while searches go on, or drops it for none.
-- hnsw is a graph of the vectors, hnsw-binary a graph of their bits, whose candidates are ranked again by the vectors.
create or replace function imgsearch.set_index(
    model text, method text default 'hnsw', m integer default 16, ef_construction integer default 64
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    found_model imgsearch.model := imgsearch._resolve_model(set_index.model);
begin
    if coalesce(set_index.method, '') not in ('hnsw', 'hnsw-binary', 'none') then
        raise exception 'unknown index method: %', coalesce(set_index.method, 'null') using errcode = 'PI008',
            hint = 'hnsw, hnsw-binary or none';
    end if;
    if set_index.method = 'hnsw-binary' and found_model.storage = 'bit' then
        raise exception 'model % stores bits already', found_model.name using errcode = 'PI008',
            hint = 'choose the method hnsw';
    end if;
    if (set_index.m between 2 and 100 and set_index.ef_construction between 4 and 1000
        and set_index.ef_construction >= 2 * set_index.m) is not true then
        raise exception 'm must be 2 to 100, and ef_construction 4 to 1000 and at least twice m' using errcode = 'PI008',
            hint = 'the defaults are 16 and 64';
    end if;
    update imgsearch.model x
    set index_spec = jsonb_build_object('method', set_index.method, 'm', set_index.m,
                                          'ef_construction', set_index.ef_construction)
    where x.model_id = found_model.model_id;
end $$;

-- An image's stored vector, for SQL of your own; raises PI004 or PI003 where there is none.
create or replace function imgsearch.embedding(image_id bigint, model text default 'default')
returns @vector@.vector
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    return imgsearch._stored_vector(image_id, imgsearch._resolve_model(model));
end $$;

-- An image's stored hash; raises PI004 or PI003 where there is none.
create or replace function imgsearch.embedding_bits(image_id bigint, model text default 'default')
returns bit varying
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    return imgsearch._stored_bits(image_id, imgsearch._resolve_model(model));
end $$;

-- The vector of an image that a model has stored; raises PI002, PI003 or PI004.
create or replace function imgsearch._stored_vector(image_id bigint, m imgsearch.model) returns @vector@.vector
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
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

-- The hash of an image that a model has stored; raises PI002, PI003 or PI004.
create or replace function imgsearch._stored_bits(image_id bigint, m imgsearch.model) returns bit varying
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
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
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
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
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    raise exception 'image % has no embedding of model %', _raise_not_embedded.image_id, _raise_not_embedded.model using
        errcode = 'PI003', hint = format('run "pgimgsearch ingest DIR --model %s"; imgsearch.ingest_failure says '
            'whether it was skipped', _raise_not_embedded.model);
end $$;

-- Raise PI007 for a model without a text tower.
create or replace function imgsearch._check_reads_text(m imgsearch.model) returns void
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    able text;
begin
    if m.has_text then return; end if;
    select string_agg(x.name, ', ' order by x.name) into able from imgsearch.model x where x.has_text;
    raise exception 'model % cannot read text', m.name using errcode = 'PI007',
        hint = 'models that can: ' || coalesce(able, 'none yet; add one, for example clip-vit-b-32');
end $$;
