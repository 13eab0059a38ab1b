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
language plpgsql stable parallel safe as $$
declare
    result integer;
begin
    if _collection_id.name is null then return null; end if;
    select c.collection_id into result from imgsearch.collection c where c.name = _collection_id.name;
    if not found then
        raise exception 'unknown collection: %', _collection_id.name using
            errcode = 'PI005', hint = 'see imgsearch.collection for the names';
    end if;
    return result;
end $$;

-- Set how an index is scanned, until the transaction ends or it is set back. Returns what was set before. Sequential
-- scans are off meanwhile, as the planner would read all vectors where an iterative scan may look at many.
create or replace function imgsearch._set_scan(
    ef_search text, iterative_scan text, max_scan_tuples text, scan_mem_multiplier text, enable_seqscan text default 'off'
) returns text[]
language plpgsql volatile parallel unsafe as $$
declare
    before text[] := array[current_setting('hnsw.ef_search'), current_setting('hnsw.iterative_scan'),
                           current_setting('hnsw.max_scan_tuples'), current_setting('hnsw.scan_mem_multiplier'),
                           current_setting('enable_seqscan')];
begin
    perform set_config('hnsw.ef_search', ef_search, true), set_config('hnsw.iterative_scan', iterative_scan, true),
            set_config('hnsw.max_scan_tuples', max_scan_tuples, true),
            set_config('hnsw.scan_mem_multiplier', scan_mem_multiplier, true),
            set_config('enable_seqscan', enable_seqscan, true);
    return before;
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
    only_collection integer := imgsearch._collection_id(_search.collection);
    condition text := imgsearch._condition(_search.filter, only_collection, _search.among, _search.key);
    restricted boolean := condition <> 'true' or row_security_active('imgsearch.image');
    wanted bigint := _search.k::bigint + (_search.self is not null)::integer + (_search.after is not null)::integer;
    ef bigint := greatest(coalesce(_search.ef_search, m.ef_search), wanted);
    exact_limit bigint := coalesce(nullif(current_setting('imgsearch.exact_limit', true), ''), '100000')::bigint;
    -- to length one, as the range of halfvec is small
    query_halfvec @vector@.halfvec :=
        case m.storage when 'halfvec' then @vector@.l2_normalize(query_vector)::@vector@.halfvec end;
    distance text := case m.storage
        when 'halfvec' then 'e.embedding OPERATOR(@vector@.<=>) $5'
        when 'vector' then 'e.embedding OPERATOR(@vector@.<=>) $6'
        else format('e.embedding OPERATOR(@vector@.<~>) $7::bit(%s)', m.dim) end;
    plan text := case when _search.exact or m.index_method = 'none' or ef > 1000 then 'exact'
                      when restricted or _search.after is not null then 'iterative' else 'index' end;
    after_content bigint;
    after_distance double precision;
    beyond text := '';
    share double precision;
    ids bigint;
    most_scanned bigint;
    scanned bigint;  -- how many of the nearest contents an iterative scan looks at
    enough bigint := 2 * wanted;  -- matches after which it ends: more than wanted, as its order is approximate
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
        most_scanned := greatest(current_setting('hnsw.max_scan_tuples')::bigint, 2 * wanted + 1);
        scanned := case when share >= 0.05 and _search.after is null
                        then least(most_scanned, ceil(16 * wanted / share)) else most_scanned end;
        if plan = 'iterative' and restricted then
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
                distance, m.embeddings, beyond, distance, scanned, condition, enough);
        else
            near := format('select e.content_id, %s as distance, 1::bigint as place from %s e order by %s limit %s',
                           distance, m.embeddings, distance, wanted);
        end if;
        if plan <> 'exact' then
            settings := imgsearch._set_scan(ef::text, case plan when 'index' then 'off' else 'relaxed_order' end,
                                            '2147483647', '1000');
        end if;
        execute 'select array_agg(n.content_id), array_agg(n.distance), min(n.place) from (' || near || ') n'
            into near_contents, near_distances, first_place
            using _search.filter, only_collection, _search.among, _search.key,
                  query_halfvec, query_vector, query_bits, after_distance, after_content;
        if plan <> 'exact' then
            perform imgsearch._set_scan(settings[1], settings[2], settings[3], settings[4], settings[5]);
            -- a run of equal vectors at its end: thousands of them at one distance hide from a graph what is nearer
            sorted := array(select d from unnest(near_distances) d order by d limit wanted);
            saturated := m.storage <> 'bit' and coalesce(sorted[cardinality(sorted)] > 1e-3
                and sorted[cardinality(sorted)] = sorted[cardinality(sorted) - greatest(2, least(9, wanted / 2))], false);
        end if;
        -- not dynamic, so that its plan is kept
        select array_agg(row(r.image_id, case m.storage when 'bit' then 1 - r.distance / m.dim
                                                        else least(1 - r.distance, 1) end,
                             r.name, r.path, r.external_id, r.group_key, r.caption, r.metadata)::imgsearch.match
                         order by r.distance, r.content_id, r.image_id)
        into result
        from (select i.*, n.distance, c.name
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
              order by n.distance, n.content_id, i.image_id limit _search.k) r;
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
                coalesce(cardinality(result), 0), _search.k, exact_limit using errcode = 'PI006',
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
declare
    m imgsearch.model := imgsearch._resolve_model(cache_text.model);
    cache_limit integer :=
        coalesce(nullif(current_setting('imgsearch.text_cache_limit', true), ''), '100000')::integer;
begin
    if @vector@.vector_dims(cache_text.embedding) is distinct from m.dim then
        raise exception 'model % takes a vector of dimension %, not %', m.name, m.dim,
            coalesce(@vector@.vector_dims(cache_text.embedding)::text, 'null') using errcode = 'PI002',
            hint = 'bring a vector of the same model';
    end if;
    if @vector@.vector_norm(cache_text.embedding) = 0 then
        raise exception 'a zero vector is like nothing' using errcode = 'PI002', hint = 'bring the vector of a text';
    end if;
    perform imgsearch._check_text(cache_text.query, cache_text.template);
    insert into imgsearch.text_embedding as t (model_id, key, query, template, embedding)
    values (m.model_id, imgsearch.text_key(cache_text.query, cache_text.template), btrim(cache_text.query),
            cache_text.template, cache_text.embedding)
    on conflict on constraint text_embedding_pkey
        do update set embedding = excluded.embedding, used_at = clock_timestamp();
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

-- Duplicates: identical (same bytes or same pixels) and near (above the model's threshold), by exact search.
-- Images with equal pixels form a picture, shown by its first image, so a picture of 2,000 copies costs 1,999 pairs.

-- The threshold to use; raises PI007 when neither the caller nor the model has one.
create or replace function imgsearch._threshold(m imgsearch.model, threshold double precision)
returns double precision
language plpgsql immutable parallel safe as $$
begin
    if coalesce(threshold, m.near) is null then
        raise exception 'model % has no threshold for duplicates', m.name using errcode = 'PI007',
            hint = 'give one, for example threshold => 0.95';
    end if;
    return coalesce(threshold, m.near);
end $$;

-- Pairs of duplicates: all copies of a picture against its first image, and first images against each other.
create or replace function imgsearch.duplicates(
    threshold double precision default null, model text default 'duplicates', filter jsonb default null,
    collection text default null, among bigint[] default null
) returns table (image_a bigint, image_b bigint, similarity double precision, kind text)
language plpgsql stable parallel unsafe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(duplicates.model);
    cut double precision := imgsearch._threshold(m, duplicates.threshold);
    collection_id integer := imgsearch._collection_id(duplicates.collection);
    distance text := case m.storage
        when 'bit' then format('(a.embedding OPERATOR(@vector@.<~>) b.embedding) / %s', m.dim)
        else 'a.embedding OPERATOR(@vector@.<=>) b.embedding' end;
begin
    return query execute format(
        'with scope as materialized (
             select i.image_id, i.content_id, first_value(i.image_id) over same_pixels as first_id
             from imgsearch.image i join imgsearch.content c on c.content_id = i.content_id
             where %s
             window same_pixels as (partition by c.pixel_sha256 order by i.image_id)),
         picture as materialized (
             select distinct on (s.first_id) s.first_id as image_id, e.embedding
             from scope s join %s e on e.content_id = s.content_id order by s.first_id, s.image_id)
         select s.first_id, s.image_id, 1::double precision, ''identical''
         from scope s where s.image_id <> s.first_id
         union all
         select a.image_id, b.image_id, 1 - (%s), case when 1 - (%s) >= $5 then ''near'' else ''similar'' end
         from picture a join picture b on a.image_id < b.image_id and %s <= 1 - $4
         order by 3 desc, 1, 2',
        imgsearch._condition(duplicates.filter, collection_id, duplicates.among), m.embeddings,
        distance, distance, distance)
        using duplicates.filter, collection_id, duplicates.among, cut, coalesce(m.near, cut);
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
    query_vector @vector@.vector :=
        case when m.storage <> 'bit' then imgsearch._stored_vector(duplicates_of.image_id, m) end;
    query_bits bit varying := case m.storage when 'bit' then imgsearch._stored_bits(duplicates_of.image_id, m) end;
    distance text := case m.storage
        when 'bit' then format('(e.embedding OPERATOR(@vector@.<~>) $9::bit(%s)) / %s', m.dim, m.dim)
        else format('e.embedding OPERATOR(@vector@.<=>) $8::@vector@.%s', m.storage) end;
begin
    return query execute format(
        'with near as materialized (
             select e.content_id, %s as distance from %s e where %s <= 1 - $5)
         select i.image_id,
                case when c.pixel_sha256 = q.pixel_sha256 then 1 else 1 - n.distance end,
                case when c.pixel_sha256 = q.pixel_sha256 then ''identical''
                     when 1 - n.distance >= $6 then ''near'' else ''similar'' end,
                l.name, i.path, i.external_id, c.width, c.height, c.bytes
         from imgsearch.content q
         join imgsearch.content c on c.pixel_sha256 = q.pixel_sha256
              or c.content_id in (select x.content_id from near x)
         left join near n on n.content_id = c.content_id
         join imgsearch.image i on i.content_id = c.content_id
         join imgsearch.collection l on l.collection_id = i.collection_id
         where q.content_id = $4 and i.image_id <> $7 and %s
         order by 2 desc, 1',
        distance, m.embeddings, distance, imgsearch._condition(duplicates_of.filter, collection_id, duplicates_of.among))
        using duplicates_of.filter, collection_id, duplicates_of.among, content, cut, coalesce(m.near, cut),
              duplicates_of.image_id, query_vector, query_bits;
end $$;

-- Groups of duplicates without chains: every member is within the threshold of its group's keeper.
-- Pictures are taken in the order of pixels, bytes and age: each becomes a keeper unless an earlier one took it.
-- A group's id is its keeper's image_id.
create or replace function imgsearch.duplicate_groups(
    threshold double precision default null, model text default 'duplicates', filter jsonb default null,
    collection text default null, among bigint[] default null
) returns table (group_id bigint, image_id bigint, keeper boolean, similarity double precision, kind text,
                 path text, width integer, height integer, bytes bigint, reason text)
language plpgsql stable parallel unsafe as $$
#variable_conflict use_column
declare
    pairs_a bigint[];
    pairs_b bigint[];
    pairs_similarity double precision[];
    pairs_kind text[];
    picture record;
    taken bigint[] := '{}';
    taken_by bigint[] := '{}';
begin
    select array_agg(d.image_a), array_agg(d.image_b), array_agg(d.similarity), array_agg(d.kind)
    into pairs_a, pairs_b, pairs_similarity, pairs_kind
    from imgsearch.duplicates(duplicate_groups.threshold, duplicate_groups.model, duplicate_groups.filter,
                              duplicate_groups.collection, duplicate_groups.among) d;

    for picture in
        with pair as (
            select * from unnest(pairs_a, pairs_b, pairs_kind) as p (a, b, kind)),
        shown_by as (  -- a picture, named by its first image, and the images that show it
            select p.a as id, p.a as image_id from pair p
            union select case p.kind when 'identical' then p.a else p.b end, p.b from pair p),
        neighbour as (
            select p.a as id, p.b as other from pair p where p.kind <> 'identical'
            union all select p.b, p.a from pair p where p.kind <> 'identical')
        select s.id, array(select n.other from neighbour n where n.id = s.id) as others
        from shown_by s
        join imgsearch.image i on i.image_id = s.image_id
        join imgsearch.content c on c.content_id = i.content_id
        where s.id in (select n.id from neighbour n)  -- the others keep their own copies, see below
        group by s.id
        order by max(c.width::bigint * c.height) desc, max(c.bytes) desc, min(i.modified_at), s.id
    loop
        continue when picture.id = any(taken);
        select taken || array_agg(x), taken_by || array_agg(picture.id) into taken, taken_by
        from unnest(picture.id || picture.others) x where x <> all(taken);
    end loop;

    return query
        with pair as (
            select * from unnest(pairs_a, pairs_b, pairs_similarity, pairs_kind) as p (a, b, similarity, kind)),
        kept as (
            select * from unnest(taken, taken_by) as t (id, keeper)
            union all
            select distinct p.a, p.a from pair p
            where p.kind = 'identical' and not exists (select from unnest(taken) t where t = p.a)),
        member as (
            select t.keeper, t.id as image_id, t.id as picture from kept t
            union all
            select t.keeper, p.b, t.id from kept t join pair p on p.a = t.id and p.kind = 'identical'),
        measured as (
            select m.keeper as keeper_picture, m.image_id, coalesce(p.similarity, 1) as similarity,
                   coalesce(p.kind, 'identical') as kind,
                   i.path, c.width, c.height, c.bytes, c.width::bigint * c.height as pixels,
                   row_number() over (partition by m.keeper order by m.picture <> m.keeper, c.bytes desc,
                                      i.modified_at, m.image_id) = 1 as keeper,
                   count(*) over (partition by m.keeper) as size
            from member m
            join imgsearch.image i on i.image_id = m.image_id
            join imgsearch.content c on c.content_id = i.content_id
            left join pair p on p.kind <> 'identical' and (p.a, p.b) in ((m.keeper, m.picture), (m.picture, m.keeper)))
        select min(m.image_id) filter (where m.keeper) over g, m.image_id, m.keeper, m.similarity,
               case when not m.keeper then m.kind end, m.path, m.width, m.height, m.bytes,
               case when not m.keeper then null
                    when m.pixels > min(m.pixels) over g then 'most pixels'
                    when m.bytes > min(m.bytes) over g then 'most bytes'
                    else 'oldest' end
        from measured m
        where m.size > 1
        window g as (partition by m.keeper_picture)
        order by 1, m.keeper desc, m.similarity desc, m.image_id;
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
begin
    images := imgsearch._count('imgsearch.image', coverage.exact);
    contents := imgsearch._count('imgsearch.content', coverage.exact);
    for m in select x.* from imgsearch.model x order by x.name loop
        model := m.name;
        status := m.status;
        embedded := imgsearch._count(m.embeddings, coverage.exact);
        select count(*) into failed from imgsearch.ingest_failure f
        where f.kind = 'failed' and (f.model_id is null or f.model_id = m.model_id);
        select count(distinct i.content_id) into skipped
        from imgsearch.ingest_failure f
        join imgsearch.image i on i.collection_id = f.collection_id and i.path = f.path
        where f.kind = 'skipped' and f.model_id = m.model_id;
        missing := greatest(contents - embedded - skipped, 0);
        return next;
    end loop;
end $$;

-- Rows of a table: counted when asked for or when small, else estimated by the planner.
create or replace function imgsearch._count(relation regclass, exact boolean) returns bigint
language plpgsql stable parallel safe as $$
declare
    result bigint;
begin
    select c.reltuples::bigint into result from pg_class c where c.oid = relation;
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
                                             'text_embedding']) t
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
    stored double precision;
    result bigint[];
begin
    if coalesce(sample, 0) not between 1 and 10000 then
        raise exception 'sample must be 1 to 10000, not %', coalesce(sample::text, 'null') using errcode = 'PI008',
            hint = 'give the number of queries, for example sample => 100';
    end if;
    select greatest(c.reltuples, 1) into stored from pg_class c where c.oid = m.embeddings;
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
    distance text := case m.storage
        when 'bit' then format('e.embedding OPERATOR(@vector@.<~>) $1::bit(%s)', m.dim)
        else format('e.embedding OPERATOR(@vector@.<=>) $1::@vector@.%s', m.storage) end;
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
    perform '[1]'::@vector@.vector;  -- loads the library, and with it its settings
    settings := imgsearch._set_scan('40', 'off', '20000', '1');
    foreach ef_search in array efs loop
        perform imgsearch._set_scan(greatest(ef_search, _recalls.k + 1)::text, 'off', '20000', '1');
        for number in 1 .. coalesce(cardinality(contents), 0) loop
            continue when true_counts[number] = 0;
            started := clock_timestamp();
            execute format('select array_agg(n.distance) from (
                                select e.content_id, %s as distance from %s e order by %s limit %s) n
                            where n.content_id <> $2', distance, m.embeddings, distance, _recalls.k + 1)
                into found using queries[number], contents[number];
            milliseconds := 1000 * extract(epoch from clock_timestamp() - started);
            recall := least((select count(*) from unnest(found) d where d <= true_distances[number] + margin),
                            true_counts[number])::double precision / true_counts[number];
            return next;
        end loop;
    end loop;
    perform imgsearch._set_scan(settings[1], settings[2], settings[3], settings[4], settings[5]);
end $$;
