-- Fused searches: vectors and words, or several models.

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
language sql stable
begin atomic
    select i.image_id, s.score, c.name, i.key, i.path, i.group_key, i.caption, i.metadata
    from unnest(ids, scores) as s (id, score)
    join imgsearch.image i on i.image_id = s.id
    join imgsearch.collection c on c.collection_id = i.collection_id
    order by s.score desc, i.image_id;
end;

-- Reciprocal rank fusion (Cormack, Clarke and Buettcher 2009, with their constant of 60): the k best of ranked images.
-- A score of 1 is the first place in every list.
create or replace function imgsearch._fuse(
    ids bigint[], lists integer[], ranks bigint[], weights double precision[], k integer
) returns setof imgsearch.match
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
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
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
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
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    depth integer := imgsearch._depth(k);
    request imgsearch._request := imgsearch._restrictions(filter, collection, among);
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
                 select i.image_id from imgsearch.image i, websearch_to_tsquery(''simple'', $2) q
                 where i.search @@ q and %s order by ts_rank_cd(i.search, q) desc, i.image_id limit %s) w',
            imgsearch._condition(request), depth)
            into words using request, query;
    end if;
    return query select * from imgsearch._fuse(
        ids || words, array_fill(1, array[cardinality(ids)]) || array_fill(2, array[cardinality(words)]),
        array(select n from generate_series(1, cardinality(ids)) n)
            || array(select n from generate_series(1, cardinality(words)) n),
        array[1 - text_weight, text_weight], k);
end $$;

-- Images that several models find like this one, fused; similarity is the fused score, 1 at most.
create or replace function imgsearch.similar_fused(
    image_id bigint, models text[], weights double precision[] default null, k integer default 10,
    filter jsonb default null, collection text default null, among bigint[] default null,
    exact boolean default false, ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
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
