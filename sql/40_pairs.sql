-- Pairs of similar contents: found through the index or exactly, and stored.

-- The number that turns a model's distance into 1 - similarity.
create or replace function imgsearch._distance_scale(m imgsearch.model) returns integer
language sql immutable parallel safe
begin atomic
    select case m.storage when 'bit' then m.dim else 1 end;
end;

-- For each of some contents, the representative of all contents with equal pixels: the first that has a vector.
create or replace function imgsearch._representatives(m imgsearch.model, contents bigint[])
returns table (content_id bigint, representative_id bigint)
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    return query execute format(  -- once for all that are equal, of which there may be many
        'with asked as materialized (
             select q.content_id, q.identity from (select distinct x from unnest($1) x) x
             join imgsearch.content q on q.content_id = x.x)
         select a.content_id, f.representative_id from asked a join (
             select c.identity, min(c.content_id) as representative_id
             from (select distinct a.identity from asked a) p
             join imgsearch.content c on c.identity = p.identity
             join %s e on e.content_id = c.content_id group by 1) f on f.identity = a.identity', m.embeddings)
        using contents;
end $$;

-- The contents in scope (null: all) whose pixels are those of an earlier one of them; all with a vector.
create or replace function imgsearch._equal_to_earlier(m imgsearch.model, scope bigint[] default null) returns bigint[]
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    result bigint[];
begin
    execute format(
        'select array_agg(content_id) from (
             select c.content_id, min(c.content_id) over (partition by c.identity) as first_id
             from %s e join imgsearch.content c on c.content_id = e.content_id
             where $1 is null or e.content_id = any($1)) c
         where content_id <> first_id', m.embeddings)
        into result using scope;
    return coalesce(result, '{}');
end $$;

-- The pairs that are stored of a content: its nearest ones, so that a clump of any size costs no more than its size.
create or replace function imgsearch._most_pairs() returns integer
language sql immutable parallel safe
begin atomic
    select 256;
end;

-- Pairs with a similarity of at least cut, one of asked and one in scope (null: any); may return a pair twice. vectors, in
-- the text form of the column, replace the stored vectors of asked. Through the index: contents whose neighbours are all
-- above cut are asked again for more of them, and exactly beyond 256. most (null: all) is the number of neighbours that
-- those return, of which contents with equal pixels are one, the first.
create or replace function imgsearch._pairs(
    m imgsearch.model, cut double precision, asked bigint[], scope bigint[] default null,
    vectors text[] default null, most integer default null
) returns table (content_a bigint, content_b bigint, similarity double precision)
language plpgsql stable parallel unsafe rows 20 set search_path = pg_catalog, pg_temp as $$
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
    -- unless reading the scope is as fast as a scan of the index, or row-level security hides rows from that
    through_index boolean := m.index_method <> 'none' and coalesce(cardinality(scope) > 5000, true)
        and not row_security_active('imgsearch.image');
    wanted integer := 16;
    ef bigint;
    ones bigint[];
    others bigint[];
    distances double precision[];
    settings text[];
begin
    while through_index and cardinality(asked) > 0 and wanted <= 256 loop
        ef := imgsearch._ef_for(m, case m.index_method when 'hnsw' then 64 else m.ef_search end, wanted);
        settings := imgsearch._push_scan_settings(ef);
        execute format(
            'select array_agg(a.content_id), array_agg(n.content_id), array_agg(n.distance)
             from %s a cross join lateral (%s) n where n.distance <= $2', source,
            imgsearch._nearest(m, 'a.embedding', wanted, ef))
            into ones, others, distances using asked, (1 - cut) * scale, all_asked, vectors;
        perform imgsearch._pop_scan_settings(settings);
        return query
            select least(n.a, n.b), greatest(n.a, n.b), least(1 - n.d / scale, 1)
            from unnest(ones, others, distances) as n (a, b, d)
            where n.a <> n.b and (scope is null or n.b = any(scope));
        asked := array(select a from unnest(ones) a group by a having count(*) >= wanted);
        wanted := wanted * 4;
    end loop;
    if cardinality(asked) > 0 and most is not null then
        return query execute format(
            'select least(a.content_id, n.content_id), greatest(a.content_id, n.content_id), least(1 - n.distance / $5, 1)
             from %3$s a cross join lateral (
                 select e.content_id, %2$s as distance from %1$s e
                 where e.content_id <> a.content_id and %2$s <= $2 and ($6 is null or e.content_id = any($6))
                     and e.content_id <> all($8)
                 order by 2, 1 limit $7) n', m.embeddings, distance, source)
            using asked, (1 - cut) * scale, all_asked, vectors, scale::double precision, scope, most,
                  imgsearch._equal_to_earlier(m, scope);
    elsif cardinality(asked) > 0 then
        return query execute format(
            'select least(a.content_id, e.content_id), greatest(a.content_id, e.content_id), least(1 - (%2$s) / $5, 1)
             from %3$s a
             join (select e.* from %1$s e where $6 is null or e.content_id = any($6)) e
                 on e.content_id <> a.content_id and %2$s <= $2', m.embeddings, distance, source)
            using asked, (1 - cut) * scale, all_asked, vectors, scale::double precision, scope;
    end if;
end $$;

-- Contents in scope (null: all) that no scan down to this cut has compared with the others yet.
create or replace function imgsearch._unscanned(m imgsearch.model, cut double precision, scope bigint[] default null)
returns bigint[]
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    result bigint[];
begin
    execute format(
        'select array_agg(e.content_id order by e.content_id) from %s e
         where ($1 is null or e.content_id = any($1)) and not exists (
             select from imgsearch.duplicate_scanned d join imgsearch.duplicate_scan s on s.model_id = d.model_id
             where d.content_id = e.content_id and d.model_id = $2 and s.threshold <= $3 + 1e-6
                 -- its pairs are those of its representative, which the caller must be able to see
                 and ((select not row_security_active(''imgsearch.image''))
                      or exists (select from imgsearch.content r where r.content_id = d.representative_id)))', m.embeddings)
        into result using scope, m.model_id, cut;
    return coalesce(result, '{}');
end $$;

-- All pairs with a similarity of at least cut, of contents in scope (null: all): the stored ones, and those of contents
-- that were not scanned yet, which are found now. May return a pair twice.
create or replace function imgsearch._all_pairs(m imgsearch.model, cut double precision, scope bigint[] default null)
returns table (content_a bigint, content_b bigint, similarity double precision, transform text)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
begin
    return query
        select p.content_a, p.content_b, p.similarity, p.transform from imgsearch.duplicate_pair p
        where p.model_id = m.model_id and p.similarity >= cut;
    return query
        select p.*, null::text
        from imgsearch._pairs(m, cut, imgsearch._unscanned(m, cut, scope), scope, most => imgsearch._most_pairs()) p;
end $$;

-- Start or continue a scan. A lower threshold than before starts over, a higher one changes nothing. Returns the threshold
-- down to which pairs are stored. Raises PI008 where row-level security hides images from the caller, who would mark
-- contents as compared with all others when they were not.
create or replace function imgsearch._begin_scan(m imgsearch.model, cut double precision) returns double precision
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    stored double precision;
begin
    if row_security_active('imgsearch.image') then
        raise exception 'pairs are stored for everyone, and row-level security hides images from %', current_user using
            errcode = 'PI008', hint = 'run it as the owner of the tables; imgsearch.duplicates() needs no scan';
    end if;
    select s.threshold into stored from imgsearch.duplicate_scan s where s.model_id = m.model_id for update;
    if stored <= cut + 1e-6 then
        return stored;
    end if;
    delete from imgsearch.duplicate_scanned d where d.model_id = m.model_id;
    insert into imgsearch.duplicate_scan (model_id, threshold) values (m.model_id, cut)
    on conflict (model_id) do update set threshold = excluded.threshold, started_at = now();
    return cut;
end $$;

-- Store pairs, and mark contents as compared with all others. Of contents with equal pixels only the representative is
-- stored. Returns the number of new pairs.
create or replace function imgsearch._store_pairs(
    m imgsearch.model, scanned bigint[], ones bigint[], others bigint[], similarities double precision[],
    transform text default null
) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    new_pairs bigint;
begin
    with shown as materialized (
        select * from imgsearch._representatives(m, array(select unnest(ones) union select unnest(others)))),
    pair as (
        select least(a.representative_id, b.representative_id) as a, greatest(a.representative_id, b.representative_id) as b, max(p.similarity) as similarity
        from unnest(ones, others, similarities) as p (one, other, similarity)
        join shown a on a.content_id = p.one join shown b on b.content_id = p.other
        where a.representative_id <> b.representative_id
        group by 1, 2)
    insert into imgsearch.duplicate_pair (model_id, content_a, content_b, similarity, transform)
    select m.model_id, p.a, p.b, p.similarity, _store_pairs.transform from pair p order by p.a, p.b
    on conflict on constraint duplicate_pair_pkey do update  -- a low threshold may have found the same pair without a transform
        set similarity = excluded.similarity, transform = excluded.transform
        where excluded.similarity > duplicate_pair.similarity + 1e-3;
    get diagnostics new_pairs = row_count;
    insert into imgsearch.duplicate_scanned (model_id, content_id, representative_id)
    select m.model_id, s.content_id, s.representative_id from imgsearch._representatives(m, scanned) s order by 1, 2
    on conflict do nothing;
    return new_pairs;
end $$;

-- Compare contents with all others through the index, and store the pairs. Returns the number of new ones.
create or replace function imgsearch._scan(m imgsearch.model, cut double precision, contents bigint[]) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    asked bigint[] := array(
        select s.content_id from imgsearch._representatives(m, contents) s where s.content_id = s.representative_id);
    ones bigint[];
    others bigint[];
    similarities double precision[];
begin
    select array_agg(p.content_a), array_agg(p.content_b), array_agg(p.similarity) into ones, others, similarities
    from imgsearch._pairs(m, cut, asked, most => imgsearch._most_pairs()) p;
    return imgsearch._store_pairs(m, contents, ones, others, similarities);
end $$;

-- Representatives that were compared with all others, but not under all of these transforms.
create or replace function imgsearch._not_yet_transformed(m imgsearch.model, transforms text[]) returns bigint[]
language sql stable parallel safe
begin atomic
    select coalesce(array_agg(d.content_id order by d.content_id), '{}')
    from imgsearch.duplicate_scanned d
    where d.model_id = m.model_id and d.representative_id = d.content_id and not d.transforms @> _not_yet_transformed.transforms;
end;

-- Compare transformed contents, by their vectors in text form, with all others, and store the pairs with the transform.
-- Returns the number of new ones.
create or replace function imgsearch._scan_transformed(
    m imgsearch.model, cut double precision, transform text, contents bigint[], vectors text[]
) returns bigint
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    ones bigint[];
    others bigint[];
    similarities double precision[];
begin
    select array_agg(p.content_a), array_agg(p.content_b), array_agg(p.similarity) into ones, others, similarities
    from imgsearch._pairs(m, cut, contents, null, vectors, imgsearch._most_pairs()) p;
    update imgsearch.duplicate_scanned d set transforms = array_append(d.transforms, _scan_transformed.transform)
    where d.model_id = m.model_id and d.content_id = any(contents) and _scan_transformed.transform <> all(d.transforms);
    return imgsearch._store_pairs(m, '{}', ones, others, similarities, _scan_transformed.transform);
end $$;
