-- Groups of duplicates, without chains, each with the image to keep and why.

-- What a format tells of quality: lossless, then those that are smaller for the same picture, then the others.
create or replace function imgsearch._format_rank(format text) returns integer
language sql immutable parallel safe as $$
    select case when format in ('PNG', 'BMP', 'TIFF', 'PPM', 'TGA', 'QOI', 'DDS') then 2
                when format in ('HEIF', 'AVIF', 'JPEG2000', 'JXL') then 1 else 0 end
$$;

-- How much an image deserves to be kept, rule by rule; of two, the one with more at the first rule that tells them apart.
-- Raises PI008 for an unknown rule.
create or replace function imgsearch._worth(
    keep text[], prefer text[], path text, width integer, height integer, bytes bigint, format_rank integer,
    modified_at timestamptz, reference boolean
) returns double precision[]
language plpgsql immutable parallel safe as $$
declare
    result double precision[] := array[reference::integer];
    worth double precision;
    rule text;
begin
    foreach rule in array keep loop
        worth := case rule
            when 'pixels' then width::double precision * height
            when 'lossless' then format_rank
            when 'bytes' then bytes
            when 'oldest' then -coalesce(extract(epoch from modified_at), 'infinity')
            when 'newest' then coalesce(extract(epoch from modified_at), '-infinity')
            when 'path' then -length(path) - 1000000.0 * coalesce(
                (select min(n) from unnest(prefer) with ordinality as p (pattern, n) where path like pattern),
                cardinality(prefer) + 1, 1) end;
        if worth is null then
            raise exception 'unknown rule: %', rule using errcode = 'PI008',
                hint = 'rules are pixels, lossless, bytes, oldest, newest and path';
        end if;
        result := result || worth;
    end loop;
    return result;
end $$;

-- Groups over pairs: each picture and the medoid of its group. 'medoid' takes pictures in the order of how many are like
-- them; each becomes a medoid unless it is like an earlier one, and the others join the one they are most like.
-- 'components' joins whatever is connected, however far its ends are apart; the medoid is the picture with most pairs.
create or replace function imgsearch._medoids(
    ones bigint[], others bigint[], similarities double precision[], linkage text
) returns table (picture bigint, medoid bigint)
language plpgsql immutable as $$
declare
    pictures bigint[];  -- best first; a picture's place is what the rest goes by
    lows integer[];
    highs integer[];
    left_lows integer[];
    left_highs integer[];
    found integer[];
    medoids integer[] := '{}';
    labels integer[];
    before integer[];
begin
    select array_agg(n.picture order by n.pairs desc, n.total desc, n.picture) into pictures
    from (select p.picture, count(*) as pairs, sum(p.similarity) as total
          from (select * from unnest(ones, similarities) union all select * from unnest(others, similarities))
              as p (picture, similarity) group by 1) n;
    with place as (select * from unnest(pictures) with ordinality as n (picture, place))
    select array_agg(least(a.place, b.place) order by e.n), array_agg(greatest(a.place, b.place) order by e.n)
    into lows, highs
    from unnest(ones, others) with ordinality as e (one, other, n)
    join place a on a.picture = e.one join place b on b.picture = e.other;

    if linkage = 'components' then
        labels := array(select generate_series(1, cardinality(pictures)));
        while labels is distinct from before loop
            before := labels;
            with label as materialized (select * from unnest(before) with ordinality as l (label, place)),
            lowest as (
                select x.place, min(l.label) as label
                from (select e.low as place, e.high as other from unnest(lows, highs) as e (low, high)
                      union all select e.high, e.low from unnest(lows, highs) as e (low, high)) x
                join label l on l.place = x.other group by 1)
            -- the label of the label: paths halve
            select array_agg(j.label order by l.place) into labels
            from label l left join lowest w on w.place = l.place
            join label j on j.place = least(l.label, w.label);
        end loop;
        return query select pictures[n], pictures[l] from unnest(labels) with ordinality as x (l, n);
        return;
    end if;

    left_lows := lows;
    left_highs := highs;
    while cardinality(left_lows) > 0 loop
        with edge as materialized (select * from unnest(left_lows, left_highs) as e (low, high)),
        best as materialized (select e.low as place from edge e except select e.high from edge e),
        taken as materialized (
            select b.place from best b union select e.high from edge e join best b on b.place = e.low),
        remaining as (
            select e.* from edge e
            where e.low not in (select t.place from taken t) and e.high not in (select t.place from taken t))
        select (select array_agg(b.place) from best b), array_agg(r.low), array_agg(r.high)
        into found, left_lows, left_highs from remaining r;
        medoids := medoids || found;
    end loop;
    return query
        with edge as materialized (
            select e.low, e.high, e.similarity from unnest(lows, highs, similarities) as e (low, high, similarity)
            union all select e.high, e.low, e.similarity from unnest(lows, highs, similarities) as e (low, high, similarity)),
        chosen as (select x as place from unnest(medoids) x),
        -- like none that was chosen, so chosen too
        lone as (
            select n.place::integer from generate_series(1, cardinality(pictures)) as n (place)
            except select c.place from chosen c
            except select e.high from edge e join chosen c on c.place = e.low),
        centre as materialized (select * from chosen union all select * from lone)
        select pictures[c.place], pictures[c.place] from centre c
        union all
        select pictures[m.high], pictures[m.low] from (
            select distinct on (e.high) e.high, e.low
            from edge e join centre c on c.place = e.low
            where e.high not in (select x.place from centre x)
            order by e.high, e.similarity desc, e.low) m;
end $$;

-- Groups of duplicates: every member is at least as similar as the threshold to the group's medoid, whose image_id is the
-- group_id; linkage => 'components' joins whatever is connected. similarity and kind are with the keeper; what is no pair
-- with it by itself, and there through others, is linked. minimum and median are of all pairs of pictures in the group, or
-- beyond 100 pictures of those with the medoid. The keeper is found by the rules of keep in turn: prefer holds
-- patterns of paths, best first, for the rule path; all images of the collections named by reference are kept.
create or replace function imgsearch.duplicate_groups(
    threshold double precision default null, model text default 'duplicates', filter jsonb default null,
    collection text default null, among bigint[] default null, kinds text[] default null,
    also text[] default null, agree text default 'all', invariant boolean default false, linkage text default 'medoid',
    keep text[] default null, prefer text[] default null, reference text[] default null, k integer default null,
    after bigint default null
) returns table (group_id bigint, image_id bigint, keeper boolean, similarity double precision, kind text, turned text,
                 collection_name text, path text, width integer, height integer, bytes bigint, format text, reason text,
                 minimum double precision, median double precision)
language plpgsql stable parallel unsafe as $$
#variable_conflict use_column
declare
    m imgsearch.model := imgsearch._resolve_model(duplicate_groups.model);
    rules text[] := coalesce(duplicate_groups.keep, case
        when duplicate_groups.prefer is null then array['pixels', 'lossless', 'bytes', 'oldest', 'path']
        else array['path', 'pixels', 'lossless', 'bytes', 'oldest'] end);
    reasons jsonb := '{"reference": "reference collection", "pixels": "most pixels", "lossless": "better format",
                       "bytes": "most bytes", "oldest": "oldest", "newest": "newest", "path": "preferred path"}';
    kept_collections integer[] := array(
        select imgsearch._collection_id(x) from unnest(duplicate_groups.reference) x);
    pairs_a bigint[];
    pairs_b bigint[];
    pairs_similarity double precision[];
    pairs_kind text[];
    pairs_turned text[];
    copies bigint[];
    copied bigint[];
    pictures bigint[];
    medoids bigint[];
    apart_a bigint[];
    apart_b bigint[];
    apart_medoids bigint[];
    leaving bigint;
    left_out bigint[] := '{}';
begin
    if duplicate_groups.linkage not in ('medoid', 'components') then
        raise exception 'unknown linkage: %', duplicate_groups.linkage using errcode = 'PI008',
            hint = 'medoid: all are like one of them; components: whatever is connected';
    end if;
    if duplicate_groups.k < 1 then
        raise exception 'k must be at least 1, not %', duplicate_groups.k using errcode = 'PI008',
            hint = 'the groups of a page; leave it out for all';
    end if;
    select array_agg(d.image_a) filter (where d.kind <> 'identical'),
           array_agg(d.image_b) filter (where d.kind <> 'identical'),
           array_agg(d.similarity) filter (where d.kind <> 'identical'),
           array_agg(d.kind) filter (where d.kind <> 'identical'),
           array_agg(d.turned) filter (where d.kind <> 'identical'),
           array_agg(d.image_a) filter (where d.kind = 'identical'),
           array_agg(d.image_b) filter (where d.kind = 'identical')
    into pairs_a, pairs_b, pairs_similarity, pairs_kind, pairs_turned, copied, copies
    from imgsearch.duplicates(duplicate_groups.threshold, duplicate_groups.model, duplicate_groups.filter,
        duplicate_groups.collection, duplicate_groups.among, duplicate_groups.kinds, duplicate_groups.also,
        duplicate_groups.agree, duplicate_groups.invariant) d;

    select array_agg(g.picture), array_agg(g.medoid) into pictures, medoids
    from imgsearch._medoids(pairs_a, pairs_b, pairs_similarity, duplicate_groups.linkage) g;
    -- two that a person told apart are not in one group: who was told apart most, and then the later one, leaves
    select array_agg(least(a.picture, b.picture)), array_agg(greatest(a.picture, b.picture)), array_agg(a.medoid)
    into apart_a, apart_b, apart_medoids
    from imgsearch.duplicate_verdict v
    join imgsearch.content c on c.pixel_sha256 = v.pixels_a join imgsearch.image i on i.content_id = c.content_id
    join unnest(pictures, medoids) as a (picture, medoid) on a.picture = i.image_id
    join imgsearch.content d on d.pixel_sha256 = v.pixels_b join imgsearch.image j on j.content_id = d.content_id
    join unnest(pictures, medoids) as b (picture, medoid) on b.picture = j.image_id and b.medoid = a.medoid
    where v.verdict = 'rejected' and v.pixels_a <> v.pixels_b;
    loop
        select x.picture into leaving
        from unnest(apart_a || apart_b, apart_medoids || apart_medoids, apart_b || apart_a) as x (picture, medoid, other)
        where x.picture <> x.medoid and x.picture <> all(left_out) and x.other <> all(left_out)
        group by x.picture order by count(*) desc, x.picture desc limit 1;
        exit when not found;
        left_out := left_out || leaving;
    end loop;

    with grouped as (
        select * from unnest(pictures, medoids) as g (picture, medoid) where g.picture not in (select unnest(left_out))),
    member as (
        select * from grouped
        union all
        select distinct x, x from unnest(copied) x where x not in (select g.picture from grouped g)),
    whole as (
        select n.*, count(*) over (partition by n.medoid) > 1 or n.picture in (select unnest(copied)) as several
        from member n)
    select array_agg(x.picture), array_agg(x.medoid) into pictures, medoids
    from (select w.*, dense_rank() over (order by w.medoid) as place from whole w
          where w.several and (duplicate_groups.after is null or w.medoid > duplicate_groups.after)) x
    where duplicate_groups.k is null or x.place <= duplicate_groups.k;

    return query execute format(
        'with member as (select * from unnest($1, $2) as n (picture, medoid)),
         seen as materialized (
             select n.picture, n.medoid, count(*) over (partition by n.medoid) as size, v.embedding
             from member n
             join imgsearch.image i on i.image_id = n.picture
             join imgsearch.content c on c.content_id = i.content_id
             left join lateral (
                 select e.embedding from imgsearch.content t join %1$s e on e.content_id = t.content_id
                 where t.pixel_sha256 = c.pixel_sha256 order by t.content_id limit 1) v on true),
         pair as materialized (
             select a.medoid, a.picture as a, b.picture as b,
                    coalesce(p.similarity, 1 - (a.embedding %2$s b.embedding) / $3) as similarity
             from seen a
             join seen b on b.medoid = a.medoid and b.picture > a.picture
                 and (a.size <= 100 or a.medoid in (a.picture, b.picture))
             left join unnest($4, $5, $6) as p (a, b, similarity) on p.a = a.picture and p.b = b.picture),
         whole as (
             select p.medoid, min(p.similarity) as minimum,
                    percentile_cont(0.5) within group (order by p.similarity) as median
             from pair p group by p.medoid),
         shown as (
             select n.medoid, n.picture, n.picture as image_id from member n
             union all
             select n.medoid, n.picture, c.image_id
             from member n join unnest($7, $8) as c (picture, image_id) on c.picture = n.picture),
         ranked as (
             select s.medoid, s.image_id, s.picture, i.path, l.name, c.width, c.height, c.bytes, c.format,
                    i.collection_id = any($9) as reference, w.worth, row_number() over best as place,
                    lead(w.worth) over best as next_worth, first_value(s.picture) over best as kept_picture
             from shown s
             join imgsearch.image i on i.image_id = s.image_id
             join imgsearch.collection l on l.collection_id = i.collection_id
             join imgsearch.content c on c.content_id = i.content_id
             -- of files with the same pixels none is better for its format or size
             join (select y.picture, max(z.bytes) as bytes, max(imgsearch._format_rank(z.format)) as format_rank
                   from shown y join imgsearch.image x on x.image_id = y.image_id
                   join imgsearch.content z on z.content_id = x.content_id group by y.picture) q on q.picture = s.picture
             cross join lateral (
                 select imgsearch._worth($10, $11, i.path, c.width, c.height, q.bytes, q.format_rank, i.modified_at,
                                         i.collection_id = any($9)) as worth) w
             window best as (partition by s.medoid order by w.worth desc, s.image_id))
         select r.medoid, r.image_id, r.place = 1 or r.reference,
                case when r.picture = r.kept_picture then 1
                     else coalesce(p.similarity, 1 - (a.embedding %2$s b.embedding) / $3) end,
                case when r.place = 1 then null when r.picture = r.kept_picture then ''identical''
                     else coalesce(p.kind, ''linked'') end, p.turned,
                r.name, r.path, r.width, r.height, r.bytes, r.format,
                case when r.place = 1 or r.reference then coalesce(
                    (select $13 ->> x.rule
                     from unnest($14, r.worth, r.next_worth) with ordinality as x (rule, mine, next, n)
                     where r.place = 1 and x.mine <> x.next or r.reference order by x.n limit 1), ''first added'') end,
                coalesce(w.minimum, 1), coalesce(w.median, 1)
         from ranked r
         join seen a on a.picture = r.picture
         join seen b on b.picture = r.kept_picture
         left join unnest($4, $5, $6, $12, $15) as p (a, b, similarity, kind, turned)
             on p.a = least(r.picture, r.kept_picture) and p.b = greatest(r.picture, r.kept_picture)
         left join whole w on w.medoid = r.medoid
         order by r.medoid, r.place', m.embeddings, imgsearch._operator(m))
        using pictures, medoids, imgsearch._distance_scale(m)::double precision, pairs_a, pairs_b, pairs_similarity,
              copied, copies, kept_collections, rules, duplicate_groups.prefer,
              pairs_kind, reasons,
              array['reference'] || rules, pairs_turned;
end $$;
