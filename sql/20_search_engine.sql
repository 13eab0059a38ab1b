-- The search engine: how the nearest images are found through an index, completely under any restriction.

-- The condition on images (alias i) for dynamic SQL whose parameter $1 is the request. Raises PI008 for a filter that is not
-- an object, as that would match nothing.
create or replace function imgsearch._condition(request imgsearch._request) returns text
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    if jsonb_typeof(request.filter) <> 'object' then
        raise exception 'the filter is not an object: %', left(request.filter::text, 100) using errcode = 'PI008',
            hint = 'give the metadata that images must have, for example filter => ''{"colour": "red"}''';
    end if;
    return concat_ws(' and ',
        'true',
        case when request.filter is not null then 'i.metadata @> ($1).filter' end,
        case when request.collection_id is not null then 'i.collection_id = ($1).collection_id' end,
        case when request.among is not null then 'i.image_id = any(($1).among)' end,
        case when request.metadata_key is not null then
            'i.metadata ? ($1).metadata_key and i.metadata ->> ($1).metadata_key is not null' end);
end $$;

-- A request that holds restrictions alone.
create or replace function imgsearch._restrictions(filter jsonb, collection text, among bigint[])
returns imgsearch._request
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    request imgsearch._request;
begin
    request.filter := _restrictions.filter;
    request.collection_id := imgsearch._collection_id(_restrictions.collection);
    request.among := _restrictions.among;
    return request;
end $$;

-- The share of images that match a request, by a fixed sample of 32 ids where a gap counts as no match; and the number of
-- ids. Null under row-level security, where finding the ends may read many rows.
create or replace function imgsearch._share(request imgsearch._request)
returns table (share double precision, ids bigint)
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    if row_security_active('imgsearch.image') then return; end if;
    -- not dynamic, so that its plan is kept
    return query
        with ends as (
            select min(i.image_id) as low, least(max(i.image_id)::numeric - min(i.image_id) + 1, 9223372036854775807)::bigint as ids
            from imgsearch.image i)
        select (select count(*) / 32.0::double precision
                from imgsearch.image i
                where i.image_id = any(array(select e.low + (hashint8extended(n, 0) & 9223372036854775807) % e.ids
                                             from generate_series(1, 32) n))
                    and (request.filter is null or i.metadata @> request.filter)
                    and (request.collection_id is null or i.collection_id = request.collection_id)
                    and (request.among is null or i.image_id = any(request.among))
                    and (request.metadata_key is null or i.metadata ->> request.metadata_key is not null)), e.ids
        from ends e;
end $$;

-- The id of a collection, null for null; raises PI005 when there is none of that name.
create or replace function imgsearch._collection_id(name text) returns integer
language plpgsql stable strict parallel safe set search_path = pg_catalog, pg_temp as $$
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
language sql immutable parallel safe
begin atomic
    select case m.storage when 'bit' then 'OPERATOR(@vector@.<~>)' else 'OPERATOR(@vector@.<=>)' end;
end;

-- Whether an index holds quantized vectors, so that it only finds candidates, which the stored vectors rank again.
create or replace function imgsearch._is_quantized(m imgsearch.model) returns boolean
language sql immutable parallel safe
begin atomic
    select m.index_method = 'hnsw-binary';
end;

-- The expression that a query orders by to use a model's index: the distance, or that of the bits alone. The operand is in
-- the type of the column.
create or replace function imgsearch._index_expression(m imgsearch.model, operand text) returns text
language sql immutable parallel safe
begin atomic
    select format('%s %s %s', imgsearch._indexed(m, 'e.embedding'),
                  case when imgsearch._is_quantized(m) then 'OPERATOR(@vector@.<~>)' else imgsearch._operator(m) end,
                  imgsearch._indexed(m, operand));
end;

-- The ef_search that gives as many results as wanted; of a quantized index four times as many candidates.
create or replace function imgsearch._ef_for(m imgsearch.model, ef_search bigint, wanted bigint) returns bigint
language sql immutable parallel safe
begin atomic
    select case when imgsearch._is_quantized(m) then greatest(ef_search, wanted, least(4 * wanted, 1000))
                else greatest(ef_search, wanted) end;
end;

-- The query for the contents nearest to an operand, which may be a column of an earlier table of a lateral join: content_id
-- and distance, in order. A quantized index finds ef candidates; their distances are those of the vectors.
create or replace function imgsearch._nearest(m imgsearch.model, operand text, wanted bigint, ef bigint) returns text
language sql stable parallel safe
begin atomic
    select case
        when imgsearch._is_quantized(m) then
            format('select e.content_id, e.embedding %s %s as distance from (select e.* from %s e order by %s limit %s) e
                    order by 2 limit %s', imgsearch._operator(m), operand, m.embeddings, imgsearch._index_expression(m, operand),
                   ef, wanted)
        else format('select e.content_id, %1$s as distance from %2$s e order by %1$s limit %3$s',
                    imgsearch._index_expression(m, operand), m.embeddings, wanted) end;
end;

-- Set how an index is scanned until the transaction ends. Returns the settings as they were before, for
-- _pop_scan_settings. Sequential scans are off meanwhile, as the planner would read all vectors where an iterative scan may
-- read many.
create or replace function imgsearch._push_scan_settings(
    ef bigint, iterative_scan text default 'off', max_scan_tuples text default '20000',
    scan_mem_multiplier text default '1'
) returns text[]
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    before text[];
begin
    perform '[1]'::@vector@.vector;  -- loads the library, and with it its settings
    before := array['hnsw.ef_search', current_setting('hnsw.ef_search'),
                    'hnsw.iterative_scan', current_setting('hnsw.iterative_scan'),
                    'hnsw.max_scan_tuples', current_setting('hnsw.max_scan_tuples'),
                    'hnsw.scan_mem_multiplier', current_setting('hnsw.scan_mem_multiplier'),
                    'enable_seqscan', current_setting('enable_seqscan')];
    perform set_config('hnsw.ef_search', least(ef, 1000)::text, true),
            set_config('hnsw.iterative_scan', iterative_scan, true),
            set_config('hnsw.max_scan_tuples', max_scan_tuples, true),
            set_config('hnsw.scan_mem_multiplier', scan_mem_multiplier, true),
            set_config('enable_seqscan', 'off', true);
    return before;
end $$;

-- Restore settings until the transaction ends: their names, each before its value.
create or replace function imgsearch._pop_scan_settings(settings text[]) returns void
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp as $$
begin
    perform set_config(settings[i], settings[i + 1], true) from generate_series(1, cardinality(settings), 2) i;
end $$;

-- The engine of every search: the k images nearest to a vector or to bits, complete under any restriction. Contents come
-- from the index, from an iterative scan of it, or from all rows that match; then the images that show them are looked up.
-- One function, as calling another costs more than it reads.
create or replace function imgsearch._search(
    m imgsearch.model, query_vector @vector@.vector, query_bits bit varying, request imgsearch._request
) returns setof imgsearch.match
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    condition text := 'true';
    restricted boolean := row_security_active('imgsearch.image'::regclass);
    wanted bigint := request.k::bigint + (request.self_id is not null)::integer + (request.after is not null)::integer;
    ef bigint := imgsearch._ef_for(m, coalesce(request.ef_search, m.ef_search), wanted);
    exact_limit bigint := coalesce(nullif(current_setting('imgsearch.exact_limit', true), ''), '100000')::bigint;
    -- normalized, as the range of halfvec is small
    query_halfvec @vector@.halfvec :=
        case m.storage when 'halfvec' then @vector@.l2_normalize(query_vector)::@vector@.halfvec end;
    operand text := case m.storage when 'halfvec' then '$2' when 'vector' then '$3' else format('$4::bit(%s)', m.dim) end;
    distance text := format('e.embedding %s %s', imgsearch._operator(m), operand);
    plan text;
    after_content bigint;
    after_distance double precision;
    beyond text := '';
    share double precision;
    ids bigint;
    most_scanned bigint;
    scanned bigint;  -- how many of the nearest contents an iterative scan reads
    -- matches after which it ends: more than wanted, as its order is approximate, that of bits above all
    enough bigint := case when imgsearch._is_quantized(m) then ef else 2 * wanted end
        * case when request.after is not null and imgsearch._is_quantized(m) then 4 else 1 end;
    first_place bigint;  -- of the first match among the nearest
    saturated boolean;
    near text;
    near_contents bigint[];
    near_distances double precision[];
    sorted double precision[];
    candidates bigint;
    settings text[];
    result imgsearch.match[];
begin
    if coalesce(request.k, 0) not between 1 and 10000 then
        raise exception 'k must be 1 to 10000, not %', coalesce(request.k::text, 'null') using errcode = 'PI008',
            hint = 'give the number of images, for example k => 10; after => continues from there';
    end if;
    if coalesce(request.ef_search, 1) < 1 then
        raise exception 'ef_search must be at least 1, not %', request.ef_search using errcode = 'PI008',
            hint = 'leave it out to use the model''s own value';
    end if;
    if query_vector is not null and @vector@.vector_norm(query_vector) = 0 then
        raise exception 'a zero vector is similar to nothing' using errcode = 'PI002',
            hint = 'use the vector of an image or a text';
    end if;
    if request.collapse and m.near is not null then
        return query select * from imgsearch._collapsed(
            imgsearch._with_thresholds(m, request.collection), query_vector, query_bits, request);
        return;
    end if;
    if num_nonnulls(request.filter, request.collection, request.among, request.metadata_key) > 0 then
        request.collection_id := imgsearch._collection_id(request.collection);
        condition := imgsearch._condition(request);
        restricted := true;
    end if;
    plan := case when request.exact or m.index_method = 'none' or ef > 1000 then 'exact'
                 when restricted or request.after is not null then 'iterative' else 'index' end;
    if request.after is not null then
        after_content := imgsearch._content_of(request.after);
        execute format('select %s from %s e where e.content_id = $5', distance, m.embeddings) into after_distance
            using request, query_halfvec, query_vector, query_bits, after_content;
        if after_distance is null then
            perform imgsearch._raise_not_embedded(request.after, m.name);
        end if;
        beyond := format(' and (%s, e.content_id) >= ($5, $6)', distance);
    end if;

    -- Reading all matches takes longer the more there are, a scan of the index the rarer they are.
    if plan = 'iterative' and restricted then
        if cardinality(request.among) <= 10000 then
            plan := 'exact';
        else
            select x.share, x.ids into share, ids
            from imgsearch._share(request) x;
            if share >= 0.05 then
                if share * share * ids < 500 and share * ids <= exact_limit then plan := 'exact'; end if;
            elsif ids <= 200000 then
                plan := 'exact';
            else
                execute format('select count(*) from (select from imgsearch.image i where %s limit 10001) c', condition)
                    into candidates using request;
                if candidates <= 10000 then plan := 'exact'; end if;
            end if;
        end if;
    end if;
    if plan <> 'exact' then
        perform '[1]'::@vector@.vector;  -- loads the library, and with it its settings
        most_scanned := greatest(current_setting('hnsw.max_scan_tuples')::bigint, enough + 1);
        scanned := case when share >= 0.05 and request.after is null
                        then least(most_scanned, ceil(8 * enough / share)) else most_scanned end;
        if plan = 'iterative' and restricted then
            -- the rarer the matches, the farther away they are, where the order of the graph is poor
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
                distance, m.embeddings, beyond, imgsearch._index_expression(m, operand), scanned, condition, enough);
        else
            near := format('select n.*, 1::bigint as place from (%s) n', imgsearch._nearest(m, operand, wanted, ef));
        end if;
        if plan <> 'exact' then
            settings := imgsearch._push_scan_settings(ef, case plan when 'index' then 'off' else 'relaxed_order' end,
                                                      '2147483647', '1000');
        end if;
        execute 'select array_agg(n.content_id), array_agg(n.distance), min(n.place) from (' || near || ') n'
            into near_contents, near_distances, first_place
            using request, query_halfvec, query_vector, query_bits, after_distance, after_content;
        if plan <> 'exact' then
            perform imgsearch._pop_scan_settings(settings);
            -- a run of equal vectors at the end: thousands of them at one distance hide nearer ones from a graph
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
                       c.name, i.key, i.path, i.group_key, i.caption, i.metadata)::imgsearch.match
            from unnest(near_contents, near_distances) as n (content_id, distance)
            cross join lateral (
                select i.* from imgsearch.image i
                where i.content_id = n.content_id and i.image_id is distinct from request.self_id
                    and (request.filter is null or i.metadata @> request.filter)
                    and (request.collection_id is null or i.collection_id = request.collection_id)
                    and (request.among is null or i.image_id = any(request.among))
                    and (request.metadata_key is null or i.metadata ->> request.metadata_key is not null)
                    and (request.after is null or (n.distance, n.content_id, i.image_id) > (
                        after_distance, after_content,
                        case when request.collapse then 9223372036854775807 else request.after end))
                order by i.image_id limit case when request.collapse then 1 else request.k end) i
            join imgsearch.collection c on c.collection_id = i.collection_id
            order by n.distance, n.content_id, i.image_id limit request.k);
        exit when plan = 'exact' or cardinality(result) >= request.k
            and (enough = scanned or not saturated and (
                plan = 'index' or cardinality(near_contents) = enough
                and (first_place <= 4 / greatest(share, 0.01)) is not false));
        if plan = 'index' and not saturated then
            plan := 'iterative';
            continue;
        end if;
        execute format('select count(*) from (select from imgsearch.image i join %s e on e.content_id = i.content_id
                                              where %s limit %s) c', m.embeddings, condition, exact_limit + 1)
            into candidates using request;
        if candidates <= exact_limit then
            plan := 'exact';
        elsif enough < most_scanned then  -- again, with all of the nearest that a scan may read
            plan := 'iterative';
            scanned := most_scanned;
            enough := most_scanned;
        else
            raise exception 'the index gave % of % images, and more than % images match',
                cardinality(result), request.k, exact_limit using errcode = 'PI006',
                hint = 'raise the setting: set imgsearch.exact_limit = 1000000; or ask for fewer images';
        end if;
    end loop;
    return query select * from unnest(result) r
        where request.min_similarity is null or r.similarity >= request.min_similarity;
end $$;

-- The same as _search, without near-duplicates: what is near an earlier result by the model's threshold is left out,
-- unless the pair was rejected as duplicates. Searches deeper until k are left.
create or replace function imgsearch._collapsed(
    m imgsearch.model, query_vector @vector@.vector, query_bits bit varying, request imgsearch._request
) returns setof imgsearch.match
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    contents_only imgsearch.model := m;
    deeper imgsearch._request := request;
    depth integer := 2 * request.k;
    found imgsearch.match[];
    left_places integer[];
    place integer;
    beyond boolean;
    answers imgsearch.match[];
begin
    if request.k not between 1 and 1000 then
        raise exception 'k must be 1 to 1000 with collapse, not %', request.k using errcode = 'PI008',
            hint = 'after => continues from there';
    end if;
    contents_only.near := null;
    deeper.min_similarity := null;
    deeper.after := null;
    deeper.collapse := true;
    loop
        deeper.k := depth;
        found := array(select s from imgsearch._search(contents_only, query_vector, query_bits, deeper) s);
        left_places := array(select generate_series(1, cardinality(found)));
        answers := '{}';
        beyond := request.after is null;
        -- the first that is left is a result, and what is near it is removed
        while cardinality(left_places) > 0 and cardinality(answers) < request.k loop
            place := left_places[1];
            if beyond then answers := answers || found[place]; end if;
            beyond := beyond or found[place].image_id = request.after;
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
                     where v.pixels_a = least(c.identity, d.identity)
                         and v.pixels_b = greatest(c.identity, d.identity) and v.verdict = ''rejected''))',
                m.embeddings, imgsearch._operator(m))
                into left_places
                using left_places, array(select found[n].image_id from unnest(left_places) n), found[place].image_id, place,
                      (1 - m.near) * imgsearch._distance_scale(m);
        end loop;
        exit when cardinality(answers) = request.k or cardinality(found) < depth;
        if depth = 10000 then
            raise exception 'the nearest 10,000 images are near-duplicates of % results', cardinality(answers)
                using errcode = 'PI006', hint = 'ask for fewer, or without collapse';
        end if;
        depth := least(4 * depth, 10000);
    end loop;
    if not beyond then
        raise exception 'image % is not among the results', request.after using errcode = 'PI008',
            hint = 'after is the last image of the previous page';
    end if;
    return query select * from unnest(answers) r
        where request.min_similarity is null or r.similarity >= request.min_similarity;
end $$;
