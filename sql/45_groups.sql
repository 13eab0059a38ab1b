-- Groups: products instead of images. Images with one group_key are one thing; an image without one is a group by itself.

-- The groups nearest to one or several vectors, each shown by its nearest image. similarity is that of this image to the
-- nearest of the vectors (best), or the mean over the group's images of that to the vectors' mean (mean), which is never
-- more than its best. The own group, or image, is left out. Candidates come from the index while what it did not give
-- cannot be nearer, else all images are read.
create or replace function imgsearch._similar_groups(
    m imgsearch.model, queries @vector@.vector[], own_group text, own_image bigint, k integer, aggregate text,
    filter jsonb, collection text, among bigint[], exact boolean, ef_search integer
) returns setof imgsearch.match
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    depth integer := imgsearch._depth(k);
    request imgsearch._request := imgsearch._restrictions(filter, collection, among);
    page imgsearch._request := row(depth, filter, collection, among, null, false, null, false, ef_search, null, null,
                                   null)::imgsearch._request;
    compared @vector@.vector[] := case aggregate when 'mean' then array[imgsearch._mean(queries)] else queries end;
    score text := format('1 - (e.embedding OPERATOR(@vector@.<=>) %s::@vector@.%s)',
                         case aggregate when 'mean' then '($2)[1]' else 'q.vector' end, m.storage);
    found imgsearch.match[];
    answers imgsearch.match[];
    unseen double precision;  -- no image that was not found is more similar than this
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
                page.k := depth;
                answers := array(select s from imgsearch._search(m, compared[place], null, page) s);
                found := found || answers;
                if cardinality(answers) = depth then
                    complete := false;
                    unseen := greatest(unseen, answers[depth].similarity);
                end if;
            end loop;
            narrowed := ' and (i.group_key = any($3) or i.group_key is null and i.image_id = any($4))';
        end if;
        execute format(
            case aggregate when 'best' then
                'select array_agg(g.image_id), array_agg(g.similarity) from (
                     select i.image_id, x.similarity,
                            row_number() over (partition by i.group_key, case when i.group_key is null then i.image_id end
                                               order by x.similarity desc, i.image_id) as place
                     from imgsearch.image i join %s e on e.content_id = i.content_id
                     cross join lateral (select max(least(%s, 1)) as similarity from unnest($2) as q (vector)) x
                     where %s and %s%s order by place, 2 desc, 1 limit %s) g where g.place = 1'
            else
                'select array_agg(g.image_id), array_agg(g.similarity) from (
                     select (array_agg(i.image_id order by %2$s desc, i.image_id))[1] as image_id,
                            avg(least(%2$s, 1)) as similarity
                     from imgsearch.image i join %1$s e on e.content_id = i.content_id
                     where %3$s and %4$s%5$s
                     group by i.group_key, case when i.group_key is null then i.image_id end
                     order by 2 desc, 1 limit %6$s) g'
            end, m.embeddings, score, imgsearch._condition(request),
            case when own_group is not null then 'i.group_key is distinct from $5' else 'i.image_id is distinct from $6' end,
            narrowed, k)
            into images, similarities
            using request, compared,
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
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    if m.storage = 'bit' then
        raise exception 'model % makes hashes, and groups are compared by vectors', m.name using errcode = 'PI002',
            hint = 'name a model that stores vectors, for example model => ''palette''';
    end if;
end $$;

-- Groups like an image, whose own group is left out. One row a group: its nearest image.
create or replace function imgsearch.similar_groups(
    image_id bigint, k integer default 10, model text default 'default', aggregate text default 'best',
    filter jsonb default null, collection text default null, among bigint[] default null,
    exact boolean default false, ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
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
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
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
