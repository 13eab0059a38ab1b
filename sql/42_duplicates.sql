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
