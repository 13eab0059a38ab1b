-- Clusters: groups of like images, made by the command cluster.

-- The images of a model's clusters, largest cluster first, the most typical image of each first; null is like no other.
create or replace function imgsearch.clusters(
    model text default 'default', filter jsonb default null, collection text default null, among bigint[] default null
) returns table (cluster integer, size bigint, image_id bigint, probability real, collection_name text, path text,
                 external_id text)
language plpgsql stable parallel safe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(clusters.model);
    collection_id integer := imgsearch._collection_id(clusters.collection);
begin
    if not exists (select from imgsearch.cluster x where x.model_id = m.model_id) then
        raise exception 'no clusters were made with model %', m.name using errcode = 'PI003',
            hint = format('run: pgimgsearch cluster --model %s', m.name);
    end if;
    return query execute format(
        'select x.cluster, count(*) over (partition by x.cluster), i.image_id, x.probability, l.name, i.path, i.external_id
         from imgsearch.cluster x
         join imgsearch.content s on s.content_id = x.content_id
         join imgsearch.content c on c.pixel_sha256 = s.pixel_sha256
         join imgsearch.image i on i.content_id = c.content_id
         join imgsearch.collection l on l.collection_id = i.collection_id
         where x.model_id = $4 and %s
         order by x.cluster is null, 2 desc, x.cluster, x.probability desc, i.image_id',
        imgsearch._condition(clusters.filter, collection_id, clusters.among))
        using clusters.filter, collection_id, clusters.among, m.model_id;
end $$;

-- The k nearest contents of each of some contents, through the index; itself is not among them.
create or replace function imgsearch._neighbours(m imgsearch.model, contents bigint[], k integer)
returns table (content_id bigint, neighbour bigint, distance double precision)
language plpgsql stable parallel unsafe as $$
declare
    effort bigint := imgsearch._effort(m, case m.index_method when 'hnsw' then 64 else m.ef_search end, k + 1);
    settings text[] := imgsearch._set_scan(m, effort);
begin
    return query execute format(
        'select a.content_id, n.content_id, n.distance / $2
         from (select e.* from %s e join unnest($1) x on x = e.content_id) a cross join lateral (%s) n
         where n.content_id <> a.content_id', m.embeddings, imgsearch._nearest(m, 'a.embedding', k + 1, effort))
        using contents, imgsearch._distance_scale(m)::double precision;
    perform imgsearch._put_settings(settings);
end $$;
