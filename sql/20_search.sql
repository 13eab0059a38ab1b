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
