-- Duplicates: identical (same bytes or same pixels), near (above the model's threshold) and similar (below it).
-- Images with equal pixels are represented by the first of them, so 2,000 copies are 1,999 pairs.

-- The threshold to use: the caller's, else the model's own, that of similar pairs where they are wanted. The only place that
-- chooses one. Raises PI007 where there is none, PI008 for one that is not valid.
create or replace function imgsearch._threshold(
    m imgsearch.model, threshold double precision, kinds text[] default null
) returns double precision
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    own double precision := case when 'similar' = any(kinds) then m.similar else m.near end;
begin
    if coalesce(threshold, own) is null then
        raise exception 'model % has no threshold for % pairs', m.name,
            case when 'similar' = any(kinds) then 'similar' else 'near' end using errcode = 'PI007',
            hint = case when m.near is null
                then format('measure it: pgimgsearch models calibrate %s; or give one, for example threshold => 0.95', m.name)
                else format('give one below that of near pairs, for example threshold => %s; or measure it: pgimgsearch models '
                            'calibrate %s', (m.near - 0.05)::numeric(5, 3), m.name) end;
    end if;
    if threshold not between 0 and 1 then
        raise exception 'the threshold must be 0 to 1, not %', threshold using errcode = 'PI008',
            hint = 'a similarity, where 1 is equal, for example threshold => 0.95';
    end if;
    return coalesce(threshold, own);
end $$;

-- The collection that thresholds are of: the one that is named, or the only one; null for all of several.
create or replace function imgsearch._calibrated_collection(collection text) returns integer
language sql stable parallel safe
begin atomic
    select case when _calibrated_collection.collection is not null
                then imgsearch._collection_id(_calibrated_collection.collection)
                else (select min(c.collection_id) from imgsearch.collection c having count(*) = 1) end;
end;

-- The model with the thresholds that were measured on a collection (null: on all), where they were, else with its own.
create or replace function imgsearch._with_thresholds(m imgsearch.model, collection text) returns imgsearch.model
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    measured imgsearch.calibration;
begin
    select c.* into measured from imgsearch.calibration c
    where c.model_id = m.model_id
        and c.collection_id is not distinct from imgsearch._calibrated_collection(_with_thresholds.collection);
    if found then
        m.near := measured.near;
        m."similar" := measured."similar";
    end if;
    return m;
end $$;

-- The contents that images of a request show; null where that is all.
create or replace function imgsearch._scope(request imgsearch._request) returns bigint[]
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    condition text := imgsearch._condition(request);
    result bigint[];
begin
    if condition = 'true' and not row_security_active('imgsearch.image') then return null; end if;
    execute format('select array_agg(distinct i.content_id) from imgsearch.image i where %s', condition)
        into result using request;
    return coalesce(result, '{}');
end $$;

-- Pairs with the verdict accepted (of these pixels; null: all), and the similarity that the model gives them: of the first
-- content of each that has a vector.
create or replace function imgsearch._accepted(m imgsearch.model, pixels bytea default null)
returns table (content_a bigint, content_b bigint, similarity double precision)
language plpgsql stable parallel safe rows 5 set search_path = pg_catalog, pg_temp as $$
begin
    return query execute format(
        'with verdict as materialized (
             select v.pixels_a, v.pixels_b from imgsearch.duplicate_verdict v
             where v.verdict = ''accepted'' and v.pixels_a <> v.pixels_b and ($2 is null or $2 in (v.pixels_a, v.pixels_b))),
         first as materialized (
             select distinct on (c.identity) c.identity, c.content_id, e.embedding
             from (select v.pixels_a as identity from verdict v union select v.pixels_b from verdict v) p
             join imgsearch.content c on c.identity = p.identity join %1$s e on e.content_id = c.content_id
             order by c.identity, c.content_id)
         select a.content_id, b.content_id, least(1 - (a.embedding %2$s b.embedding) / $1, 1)
         from verdict v join first a on a.identity = v.pixels_a join first b on b.identity = v.pixels_b',
        m.embeddings, imgsearch._operator(m))
        using imgsearch._distance_scale(m)::double precision, pixels;
end $$;

-- Pairs of duplicates: images with equal pixels against the first of them, and first images against each other. kinds
-- selects identical, near or similar. also names models that must find a pair as well (agree => 'all'), or may find others
-- (agree => 'any'), each by its own threshold. Pairs with the verdict accepted are near. transformed adds pairs that were
-- found under a transform. after is the last pair of the previous page.
create or replace function imgsearch.duplicates(
    threshold double precision default null, model text default 'duplicates', filter jsonb default null,
    collection text default null, among bigint[] default null, kinds text[] default null,
    also text[] default null, agree text default 'all', transformed boolean default false, k integer default null,
    after bigint[] default null
) returns table (image_a bigint, image_b bigint, similarity double precision, kind text, verdict text, transform text)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._with_thresholds(imgsearch._resolve_model(duplicates.model), duplicates.collection);
    by_pixels boolean := duplicates.kinds = array['identical'];  -- no model is asked
    cut double precision := case when by_pixels is not true then
        imgsearch._threshold(m, duplicates.threshold, duplicates.kinds) end;
    request imgsearch._request := imgsearch._restrictions(duplicates.filter, duplicates.collection, duplicates.among);
    condition text := imgsearch._condition(request);
    scope bigint[] := imgsearch._scope(request);
    other imgsearch.model;
    other_name text;
    ones bigint[];
    others bigint[];
    similarities double precision[];
    found_kinds text[];
    transforms text[];
begin
    if duplicates.agree not in ('all', 'any') then
        raise exception 'agree must be all or any, not %', duplicates.agree using errcode = 'PI008',
            hint = 'all: every model must find a pair; any: one is enough';
    end if;
    if not duplicates.kinds <@ array['identical', 'near', 'similar'] or cardinality(duplicates.kinds) = 0 then
        raise exception 'unknown kind among: %', duplicates.kinds using errcode = 'PI008',
            hint = 'kinds are identical, near and similar';
    end if;
    if duplicates.k < 1 then
        raise exception 'k must be at least 1, not %', duplicates.k using errcode = 'PI008',
            hint = 'k is the number of pairs of a page; leave it out for all';
    end if;
    select array_agg(p.content_a), array_agg(p.content_b), array_agg(p.similarity),
           array_agg(case when p.similarity >= coalesce(m.near, cut) then 'near' else 'similar' end), array_agg(p.transform)
    into ones, others, similarities, found_kinds, transforms
    from imgsearch._all_pairs(m, cut, scope) p
    where by_pixels is not true and (duplicates.transformed or p.transform is null);
    foreach other_name in array coalesce(duplicates.also, '{}') loop
        other := imgsearch._with_thresholds(imgsearch._resolve_model(other_name), duplicates.collection);
        if duplicates.agree = 'any' then
            select ones || array_agg(p.content_a), others || array_agg(p.content_b),
                   similarities || array_agg(p.similarity), found_kinds || array_agg('near'::text),
                   transforms || array_agg(p.transform)
            into ones, others, similarities, found_kinds, transforms
            from imgsearch._all_pairs(other, imgsearch._threshold(other, null), scope) p
            where duplicates.transformed or p.transform is null;
        else
            execute format(
                'select array_agg(p.a), array_agg(p.b), array_agg(p.similarity), array_agg(p.kind), array_agg(p.transform)
                 from unnest($1, $2, $3, $4, $5) as p (a, b, similarity, kind, transform)
                 join %1$s a on a.content_id = p.a join %1$s b on b.content_id = p.b
                 where a.embedding %2$s b.embedding <= $6', other.embeddings, imgsearch._operator(other))
                into ones, others, similarities, found_kinds, transforms
                using ones, others, similarities, found_kinds, transforms,
                      (1 - imgsearch._threshold(other, null)) * imgsearch._distance_scale(other);
        end if;
    end loop;
    if by_pixels is not true then
        select ones || array_agg(p.content_a), others || array_agg(p.content_b), similarities || array_agg(p.similarity),
               found_kinds || array_agg('near'::text), transforms || array_agg(null::text)
        into ones, others, similarities, found_kinds, transforms
        from imgsearch._accepted(m) p;
    end if;

    return query execute format(
        'with scope as materialized (
             select i.image_id, c.identity, first_value(i.image_id) over same_pixels as first_id
             from imgsearch.image i join imgsearch.content c on c.content_id = i.content_id
             where %s
             window same_pixels as (partition by c.identity order by i.image_id)),
         pair as (
             select distinct on (1, 2) least(a.image_id, b.image_id) as image_a, greatest(a.image_id, b.image_id) as image_b,
                    p.similarity, p.kind, v.verdict, p.transform
             from unnest($2, $3, $4, $5, $9) with ordinality as p (one, other, similarity, kind, transform, place)
             join imgsearch.content c on c.content_id = p.one
             join imgsearch.content d on d.content_id = p.other
             join scope a on a.identity = c.identity and a.image_id = a.first_id
             join scope b on b.identity = d.identity and b.image_id = b.first_id
             left join imgsearch.duplicate_verdict v
                 on v.pixels_a = least(c.identity, d.identity) and v.pixels_b = greatest(c.identity, d.identity)
             where a.image_id <> b.image_id
             order by 1, 2, p.kind, p.place),
         found as materialized (
             select s.first_id as image_a, s.image_id as image_b, 1::double precision as similarity,
                    ''identical'' as kind, v.verdict, null::text as transform
             from scope s
             left join imgsearch.duplicate_verdict v on v.pixels_a = s.identity and v.pixels_b = s.identity
             where s.image_id <> s.first_id
             union all select * from pair)
         select f.* from found f
         where f.verdict is distinct from ''rejected'' and ($8 is null or f.kind = any($8))
             and ($6 is null or (-f.similarity, f.image_a, f.image_b) > (
             select -x.similarity, x.image_a, x.image_b from found x where x.image_a = $6[1] and x.image_b = $6[2]))
         order by f.similarity desc, f.image_a, f.image_b limit $7', condition)
        using request, ones, others, similarities, found_kinds,
              duplicates.after, duplicates.k, duplicates.kinds, transforms;
    if not found and duplicates.after is not null and not exists (
        select from imgsearch.duplicates(duplicates.threshold, duplicates.model, duplicates.filter,
            duplicates.collection, duplicates.among, duplicates.kinds, duplicates.also, duplicates.agree,
            duplicates.transformed) d
        where d.image_a = duplicates.after[1] and d.image_b = duplicates.after[2])
        and not exists (  -- rejected since it was returned
            select from imgsearch.image i join imgsearch.content c on c.content_id = i.content_id
            join imgsearch.image j on j.image_id = duplicates.after[2] join imgsearch.content d on d.content_id = j.content_id
            join imgsearch.duplicate_verdict v on v.pixels_a = least(c.identity, d.identity)
                and v.pixels_b = greatest(c.identity, d.identity)
            where i.image_id = duplicates.after[1] and v.verdict = 'rejected') then
        raise exception 'the pair % is no longer among the duplicates', duplicates.after using errcode = 'PI008',
            hint = 'start again with the first page';
    end if;
end $$;

-- One image's copies, nearest first.
create or replace function imgsearch.duplicates_of(
    image_id bigint, threshold double precision default null, model text default 'duplicates',
    filter jsonb default null, collection text default null, among bigint[] default null
) returns setof imgsearch.duplicate
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._with_thresholds(imgsearch._resolve_model(duplicates_of.model), duplicates_of.collection);
    cut double precision := imgsearch._threshold(m, duplicates_of.threshold);
    content bigint := imgsearch._content_of(duplicates_of.image_id);
    request imgsearch._request := imgsearch._restrictions(duplicates_of.filter, duplicates_of.collection, duplicates_of.among);
    representative_id bigint := (select s.representative_id from imgsearch._representatives(m, array[content]) s);
begin
    if representative_id is null then
        perform imgsearch._raise_not_embedded(duplicates_of.image_id, m.name);
    end if;
    return query execute format(
        'with pair as (
             select p.content_a, p.content_b, p.similarity from imgsearch._pairs($3, $4, array[$5]) p
             union all
             select p.content_a, p.content_b, p.similarity from imgsearch.duplicate_pair p
             where (p.content_a = $5 or p.content_b = $5) and p.model_id = $6 and p.similarity >= $4 and p.transform is null
             union all
             select p.* from imgsearch._accepted($3, (select q.identity from imgsearch.content q where q.content_id = $2)) p),
         near as (
             select c.identity, max(p.similarity) as similarity
             from pair p join imgsearch.content c on c.content_id in (p.content_a, p.content_b) group by 1)
         select i.image_id, case when c.identity = q.identity then 1 else n.similarity end,
                case when c.identity = q.identity then ''identical''
                     when n.similarity >= $7 or v.verdict = ''accepted'' then ''near'' else ''similar'' end,
                l.name, i.key, i.path, c.width, c.height, c.bytes
         from imgsearch.content q
         join (select identity, similarity from near
               union all select q.identity, null from imgsearch.content q
                         where q.content_id = $2 and q.identity not in (select identity from near)) n on true
         join imgsearch.content c on c.identity = n.identity
         left join imgsearch.duplicate_verdict v
             on v.pixels_a = least(c.identity, q.identity) and v.pixels_b = greatest(c.identity, q.identity)
         join imgsearch.image i on i.content_id = c.content_id
         join imgsearch.collection l on l.collection_id = i.collection_id
         where q.content_id = $2 and i.image_id <> $8 and v.verdict is distinct from ''rejected'' and %s
         order by 2 desc, 1',
        imgsearch._condition(request))
        using request, content, m, cut, representative_id, m.model_id,
              coalesce(m.near, cut), duplicates_of.image_id;
end $$;

-- Record a verdict on two images: 'accepted' for copies, 'rejected' for a pair that is never to be reported again; null
-- removes it. The verdict applies to the pixel content, so it holds for all copies of both, and for every model.
create or replace function imgsearch.judge_duplicates(image_a bigint, image_b bigint, verdict text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    pixels bytea[] := array(
        select c.identity
        from unnest(array[imgsearch._content_of(image_a), imgsearch._content_of(image_b)]) x
        join imgsearch.content c on c.content_id = x order by 1);
begin
    if judge_duplicates.image_a = judge_duplicates.image_b then
        raise exception 'image % is itself', judge_duplicates.image_a using errcode = 'PI008',
            hint = 'give two images';
    end if;
    if judge_duplicates.verdict not in ('accepted', 'rejected') then
        raise exception 'unknown verdict: %', judge_duplicates.verdict using errcode = 'PI008',
            hint = 'accepted, rejected, or null to remove one';
    end if;
    if judge_duplicates.verdict is null then
        delete from imgsearch.duplicate_verdict v where v.pixels_a = pixels[1] and v.pixels_b = pixels[2];
    else
        insert into imgsearch.duplicate_verdict as v (pixels_a, pixels_b, verdict, owner)
        values (pixels[1], pixels[2], judge_duplicates.verdict, coalesce((
            select c.owner from imgsearch.image i join imgsearch.collection c on c.collection_id = i.collection_id
            join pg_roles r on r.rolname = c.owner
            where i.image_id = judge_duplicates.image_a and row_security_active('imgsearch.image')
                and pg_has_role(r.oid, 'usage')), current_user))
        on conflict on constraint duplicate_verdict_pkey do update
            set verdict = excluded.verdict, owner = excluded.owner, decided_by = excluded.decided_by,
                decided_at = excluded.decided_at;
    end if;
exception when insufficient_privilege then
    if not row_security_active('imgsearch.image')
        or not has_table_privilege('imgsearch.duplicate_verdict', 'insert') then raise; end if;
    raise exception 'the verdict on these images is not yours to change: another role owns it, or the images' using
        errcode = 'PI009', hint = 'ask the owner of the tables, or the owner of the collection';
end $$;
