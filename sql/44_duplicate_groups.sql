-- Groups of duplicates, without chains, each with the image to keep and why.

-- Groups over pairs: each image and the medoid of its group. 'medoid' takes images by descending number of pairs; each
-- becomes a medoid unless it is paired with an earlier one, and the others join the most similar medoid. 'components' joins
-- all that is connected, however dissimilar its ends; the medoid is the image with most pairs.
create or replace function imgsearch._medoids(
    ones bigint[], others bigint[], similarities double precision[], linkage text
) returns table (representative bigint, medoid bigint)
language plpgsql immutable set search_path = pg_catalog, pg_temp as $$
declare
    representatives bigint[];  -- best first; the rest refers to them by their place
    lows integer[];
    highs integer[];
    neighbours integer[];  -- of each place the later ones, from its start on
    starts integer[];
    taken boolean[];
    medoids integer[] := '{}';
    labels integer[];
    before integer[];
begin
    select array_agg(n.representative order by n.pairs desc, n.total desc, n.representative) into representatives
    from (select p.representative, count(*) as pairs, sum(p.similarity) as total
          from (select * from unnest(ones, similarities) union all select * from unnest(others, similarities))
              as p (representative, similarity) group by 1) n;
    with place as (select * from unnest(representatives) with ordinality as n (representative, place))
    select array_agg(least(a.place, b.place) order by e.n), array_agg(greatest(a.place, b.place) order by e.n)
    into lows, highs
    from unnest(ones, others) with ordinality as e (one, other, n)
    join place a on a.representative = e.one join place b on b.representative = e.other;

    if linkage = 'components' then
        labels := array(select generate_series(1, cardinality(representatives)));
        while labels is distinct from before loop
            before := labels;
            with label as materialized (select * from unnest(before) with ordinality as l (label, place)),
            lowest as (
                select x.place, min(l.label) as label
                from (select e.low as place, e.high as other from unnest(lows, highs) as e (low, high)
                      union all select e.high, e.low from unnest(lows, highs) as e (low, high)) x
                join label l on l.place = x.other group by 1)
            -- the label of the label, so that paths halve
            select array_agg(j.label order by l.place) into labels
            from label l left join lowest w on w.place = l.place
            join label j on j.place = least(l.label, w.label);
        end loop;
        return query select representatives[n], representatives[l] from unnest(labels) with ordinality as x (l, n);
        return;
    end if;

    select array_agg(e.high order by e.low) into neighbours from unnest(lows, highs) as e (low, high);
    starts := array(
        select 1 + coalesce(sum(count(e.low)) over (order by p.place rows between unbounded preceding and 1 preceding), 0)
        from generate_series(1, cardinality(representatives) + 1) as p (place)
        left join unnest(lows) as e (low) on e.low = p.place group by p.place order by p.place);
    taken := array_fill(false, array[coalesce(cardinality(representatives), 0)]);
    for n in 1 .. coalesce(cardinality(representatives), 0) loop  -- once over all pairs, however they hang together
        continue when taken[n];
        medoids := medoids || n;
        for edge in starts[n] .. starts[n + 1] - 1 loop
            taken[neighbours[edge]] := true;
        end loop;
    end loop;
    return query
        with edge as materialized (
            select e.low, e.high, e.similarity from unnest(lows, highs, similarities) as e (low, high, similarity)
            union all select e.high, e.low, e.similarity from unnest(lows, highs, similarities) as e (low, high, similarity)),
        chosen as (select x as place from unnest(medoids) x),
        -- paired with none that was chosen, so chosen too
        lone as (
            select n.place::integer from generate_series(1, cardinality(representatives)) as n (place)
            except select c.place from chosen c
            except select e.high from edge e join chosen c on c.place = e.low),
        centre as materialized (select * from chosen union all select * from lone)
        select representatives[c.place], representatives[c.place] from centre c
        union all
        select representatives[m.high], representatives[m.low] from (
            select distinct on (e.high) e.high, e.low
            from edge e join centre c on c.place = e.low
            where e.high not in (select x.place from centre x)
            order by e.high, e.similarity desc, e.low) m;
end $$;

-- The images that leave groups for the sake of rejected pairs, of which both are in the group of a medoid: the one with most
-- rejections first, of equals the later one, until no rejected pair is left. A medoid stays.
create or replace function imgsearch._leaving(ones bigint[], others bigint[], medoids bigint[]) returns bigint[]
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    representatives bigint[];  -- the later ones first
    neighbours integer[];  -- by their places in representatives, of each place from its start on
    starts integer[];
    counts integer[];  -- of those that have not left; null for a medoid, and once left
    most integer;
    left_out bigint[] := '{}';
begin
    with pair as materialized (
        select p.one, p.other, p.medoid from unnest(ones, others, medoids) as p (one, other, medoid)
        union select p.other, p.one, p.medoid from unnest(ones, others, medoids) as p (one, other, medoid)),
    place as materialized (
        select p.one as representative, row_number() over (order by p.one desc)::integer as place, count(*) as pairs,
               p.one = p.medoid as stays
        from pair p group by p.one, p.medoid)
    select array_agg(l.representative order by l.place), array_agg(case when not l.stays then l.pairs end order by l.place),
           array_agg(l.start order by l.place),
           (select array_agg(o.place order by s.place) from pair p
            join place s on s.representative = p.one join place o on o.representative = p.other)
    into representatives, counts, starts, neighbours
    from (select p.*, 1 + coalesce(sum(p.pairs) over (order by p.place rows between unbounded preceding and 1 preceding), 0)
                     as start from place p) l;
    starts := starts || (coalesce(cardinality(neighbours), 0) + 1);
    loop
        most := (select max(c) from unnest(counts) c);
        exit when coalesce(most, 0) = 0;
        for n in 1 .. cardinality(counts) loop  -- counts only fall, so none comes to have most
            continue when counts[n] is distinct from most;
            left_out := left_out || representatives[n];
            counts[n] := null;
            for edge in starts[n] .. starts[n + 1] - 1 loop
                counts[neighbours[edge]] := counts[neighbours[edge]] - 1;
            end loop;
        end loop;
    end loop;
    return left_out;
end $$;

-- The members of groups of duplicates and their medoids, of k groups (null: all) after so many, in the order of the medoids.
-- originals are images with copies of equal pixels, which form a group by themselves.
create or replace function imgsearch._duplicate_members(
    pairs_a bigint[], pairs_b bigint[], similarities double precision[], originals bigint[], linkage text, k integer,
    after bigint
) returns table (representative bigint, medoid bigint)
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    representatives bigint[];
    medoids bigint[];
    left_out bigint[];
begin
    select array_agg(g.representative), array_agg(g.medoid) into representatives, medoids
    from imgsearch._medoids(pairs_a, pairs_b, similarities, linkage) g;
    select imgsearch._leaving(array_agg(a.representative), array_agg(b.representative), array_agg(a.medoid)) into left_out
    from imgsearch.duplicate_verdict v
    join imgsearch.content c on c.identity = v.pixels_a join imgsearch.image i on i.content_id = c.content_id
    join unnest(representatives, medoids) as a (representative, medoid) on a.representative = i.image_id
    join imgsearch.content d on d.identity = v.pixels_b join imgsearch.image j on j.content_id = d.content_id
    join unnest(representatives, medoids) as b (representative, medoid) on b.representative = j.image_id and b.medoid = a.medoid
    where v.verdict = 'rejected' and v.pixels_a <> v.pixels_b;
    return query
    with grouped as (
        select * from unnest(representatives, medoids) as g (representative, medoid) where g.representative not in (select unnest(left_out))),
    member as (
        select * from grouped
        union all
        select distinct x, x from unnest(originals) x where x not in (select g.representative from grouped g)),
    whole as (
        select n.*, count(*) over (partition by n.medoid) > 1 or n.representative in (select unnest(originals)) as several
        from member n)
    select x.representative, x.medoid
    from (select w.*, dense_rank() over (order by w.medoid) as number from whole w where w.several) x
    where x.number > _duplicate_members.after and (_duplicate_members.k is null or x.number <= _duplicate_members.after + _duplicate_members.k);
end $$;

-- Groups in full, numbered after so many others: each image with its similarity to the keeper, and the reason for which the
-- keeper is kept.
create or replace function imgsearch._describe_groups(
    m imgsearch.model, representatives bigint[], medoids bigint[], pairs_a bigint[], pairs_b bigint[],
    similarities double precision[], kinds text[], transforms text[], originals bigint[], copies bigint[],
    kept_collections integer[], rules text[], prefer text[], after bigint
) returns setof record
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
declare
    reasons jsonb := '{"reference": "reference collection", "original": "camera metadata", "unconverted": "as the camera wrote it", "metadata": "most metadata", "detail": "more than its pixels", "pixels": "most pixels", "lossless": "better format",
                       "bytes": "most bytes", "oldest": "oldest", "newest": "newest", "path": "preferred path"}';
begin
    if prefer is null then
        reasons := reasons || '{"path": "shorter path"}';
    end if;
    return query execute format(
        'with member as (select * from unnest($1, $2) as n (representative, medoid)),
         seen as materialized (
             select n.representative, n.medoid, count(*) over (partition by n.medoid) as size, v.embedding
             from member n
             join imgsearch.image i on i.image_id = n.representative
             join imgsearch.content c on c.content_id = i.content_id
             left join lateral (
                 select e.embedding from imgsearch.content t join %1$s e on e.content_id = t.content_id
                 where t.identity = c.identity order by t.content_id limit 1) v on true),
         pair as materialized (
             select a.medoid, a.representative as a, b.representative as b,
                    coalesce(p.similarity, 1 - (a.embedding %2$s b.embedding) / $3) as similarity
             from seen a
             join seen b on b.medoid = a.medoid and b.representative > a.representative
                 and (a.size <= 100 or a.medoid in (a.representative, b.representative))
             left join unnest($4, $5, $6) as p (a, b, similarity) on p.a = a.representative and p.b = b.representative),
         whole as (
             select p.medoid, min(p.similarity) as minimum,
                    percentile_cont(0.5) within group (order by p.similarity) as median
             from pair p group by p.medoid),
         shown as (
             select n.medoid, n.representative, n.representative as image_id from member n
             union all
             select n.medoid, n.representative, c.image_id
             from member n join unnest($7, $8) as c (representative, image_id) on c.representative = n.representative),
         ranked as (
             select s.medoid, s.image_id, s.representative, i.path, l.name, c.width, c.height, c.bytes, c.format,
                    i.collection_id = any($9) as reference, w.score, row_number() over best as place,
                    lead(w.score) over best as next_score, first_value(s.representative) over best as kept_representative
             from shown s
             join imgsearch.image i on i.image_id = s.image_id
             join imgsearch.collection l on l.collection_id = i.collection_id
             join imgsearch.content c on c.content_id = i.content_id
             -- of files with the same pixels none is better for its format or size
             join (select y.representative, max(z.bytes) as bytes, max(imgsearch._format_rank(z.format)) as format_rank
                   from shown y join imgsearch.image x on x.image_id = y.image_id
                   join imgsearch.content z on z.content_id = x.content_id group by y.representative) q on q.representative = s.representative
             cross join lateral (
                 select imgsearch._keeper_score($10, $11, i.path, c.width, c.height, q.bytes, q.format_rank, i.modified_at,
                                         i.collection_id = any($9), c.about) as score) w
             window best as (partition by s.medoid order by w.score desc, s.image_id))
         select dense_rank() over (order by r.medoid) + $16, r.image_id, r.place = 1 or r.reference,
                case when r.representative = r.kept_representative then 1
                     else coalesce(p.similarity, 1 - (a.embedding %2$s b.embedding) / $3) end,
                case when r.place = 1 then null when r.representative = r.kept_representative then ''identical''
                     else coalesce(p.kind, ''linked'') end, p.transform,
                r.name, r.path, r.width, r.height, r.bytes, r.format,
                case when r.place = 1 or r.reference then coalesce(
                    (select $12 ->> x.rule
                     from unnest($13, r.score, r.next_score) with ordinality as x (rule, mine, next, n)
                     where r.place = 1 and x.mine <> x.next or r.reference order by x.n limit 1), ''first added'') end,
                coalesce(w.minimum, 1), coalesce(w.median, 1)
         from ranked r
         join seen a on a.representative = r.representative
         join seen b on b.representative = r.kept_representative
         left join unnest($4, $5, $6, $14, $15) as p (a, b, similarity, kind, transform)
             on p.a = least(r.representative, r.kept_representative) and p.b = greatest(r.representative, r.kept_representative)
         left join whole w on w.medoid = r.medoid
         order by r.medoid, r.place', m.embeddings, imgsearch._operator(m))
        using representatives, medoids, imgsearch._distance_scale(m)::double precision, pairs_a, pairs_b, similarities,
              originals, copies, kept_collections, rules, prefer, reasons, array['reference'] || rules, kinds, transforms, after;
end $$;

-- Groups of duplicates, numbered from 1: every member has at least the threshold as similarity to the group's medoid;
-- linkage => 'components' joins all that is connected. after is the last group of the page before. similarity and kind are relative to the keeper; an image
-- that is no pair with it, but connected through others, is linked. minimum and median are over all pairs of the group, or
-- beyond 100 members over those with the medoid. The rules of keep choose the keeper, in order: prefer has patterns of
-- paths, best first, for the rule path; all images of the collections in reference are kept.
create or replace function imgsearch.duplicate_groups(
    threshold double precision default null, model text default 'duplicates', filter jsonb default null,
    collection text default null, among bigint[] default null, kinds text[] default null,
    also text[] default null, agree text default 'all', transformed boolean default false, linkage text default 'medoid',
    keep text[] default null, prefer text[] default null, reference text[] default null, k integer default null,
    after bigint default null
) returns table (group_id bigint, image_id bigint, keeper boolean, similarity double precision, kind text, transform text,
                 collection_name text, path text, width integer, height integer, bytes bigint, format text, reason text,
                 minimum double precision, median double precision)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    m imgsearch.model := imgsearch._resolve_model(duplicate_groups.model);
    rules text[] := array['original', 'unconverted', 'metadata', 'detail', 'pixels', 'lossless', 'bytes', 'oldest'];
    kept_collections integer[] := array(
        select imgsearch._collection_id(x) from unnest(duplicate_groups.reference) x);
    pairs_a bigint[];
    pairs_b bigint[];
    pairs_similarity double precision[];
    pairs_kind text[];
    pairs_transform text[];
    copies bigint[];
    originals bigint[];
    representatives bigint[];
    medoids bigint[];
begin
    if duplicate_groups.linkage not in ('medoid', 'components') then
        raise exception 'unknown linkage: %', duplicate_groups.linkage using errcode = 'PI008',
            hint = 'medoid: all are similar to one of them; components: all that is connected';
    end if;
    if duplicate_groups.k < 1 then
        raise exception 'k must be at least 1, not %', duplicate_groups.k using errcode = 'PI008',
            hint = 'k is the number of groups of a page; leave it out for all';
    end if;
    if duplicate_groups.after < 0 then
        raise exception 'after must be at least 0, not %', duplicate_groups.after using errcode = 'PI008',
            hint = 'after is the last group_id of the page before';
    end if;
    rules := coalesce(duplicate_groups.keep,
                      case when duplicate_groups.prefer is null then rules || 'path'::text else 'path'::text || rules end);
    select array_agg(d.image_a) filter (where d.kind <> 'identical'),
           array_agg(d.image_b) filter (where d.kind <> 'identical'),
           array_agg(d.similarity) filter (where d.kind <> 'identical'),
           array_agg(d.kind) filter (where d.kind <> 'identical'),
           array_agg(d.transform) filter (where d.kind <> 'identical'),
           array_agg(d.image_a) filter (where d.kind = 'identical'),
           array_agg(d.image_b) filter (where d.kind = 'identical')
    into pairs_a, pairs_b, pairs_similarity, pairs_kind, pairs_transform, originals, copies
    from imgsearch.duplicates(duplicate_groups.threshold, duplicate_groups.model, duplicate_groups.filter,
        duplicate_groups.collection, duplicate_groups.among, duplicate_groups.kinds, duplicate_groups.also,
        duplicate_groups.agree, duplicate_groups.transformed) d;

    select array_agg(n.representative), array_agg(n.medoid) into representatives, medoids
    from imgsearch._duplicate_members(pairs_a, pairs_b, pairs_similarity, originals, duplicate_groups.linkage,
                                      duplicate_groups.k, coalesce(duplicate_groups.after, 0)) n;
    return query select * from imgsearch._describe_groups(m, representatives, medoids, pairs_a, pairs_b, pairs_similarity,
        pairs_kind, pairs_transform, originals, copies, kept_collections, rules, duplicate_groups.prefer, coalesce(duplicate_groups.after, 0))
        as d (group_id bigint, image_id bigint, keeper boolean, similarity double precision, kind text, transform text,
              collection_name text, path text, width integer, height integer, bytes bigint, format text, reason text,
              minimum double precision, median double precision);
end $$;
