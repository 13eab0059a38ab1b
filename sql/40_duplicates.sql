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
