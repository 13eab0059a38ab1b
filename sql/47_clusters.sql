-- Clusters: groups of similar images, made by "pgimgsearch cluster".

-- The images of a model's clusters, largest cluster first, the most typical image of each first; the cluster null has images that are in none.
create or replace function imgsearch.clusters(
    model text default 'default', filter jsonb default null, collection text default null, among bigint[] default null
) returns table (cluster integer, size bigint, image_id bigint, probability real, collection_name text, key text,
                 path text)
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._resolve_model(clusters.model);
    request imgsearch._request := imgsearch._restrictions(clusters.filter, clusters.collection, clusters.among);
begin
    if not exists (select from imgsearch.cluster x where x.model_id = m.model_id) then
        raise exception 'there are no clusters of model %', m.name using errcode = 'PI003',
            hint = format('run: pgimgsearch cluster --model %s', m.name);
    end if;
    return query execute format(
        'select x.cluster, count(*) over (partition by x.cluster), i.image_id, x.probability, l.name, i.key, i.path
         from imgsearch.cluster x
         join imgsearch.content s on s.content_id = x.content_id
         join imgsearch.content c on c.identity = s.identity
         join imgsearch.image i on i.content_id = c.content_id
         join imgsearch.collection l on l.collection_id = i.collection_id
         where x.model_id = $2 and %s
         order by x.cluster is null, 2 desc, x.cluster, x.probability desc, i.image_id',
        imgsearch._condition(request))
        using request, m.model_id;
end $$;

-- The k nearest contents of each of some contents, through the index, without itself.
create or replace function imgsearch._neighbours(m imgsearch.model, contents bigint[], k integer)
returns table (content_id bigint, neighbour bigint, distance double precision)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    ef bigint := imgsearch._ef_for(m, case m.index_method when 'hnsw' then 64 else m.ef_search end, k + 1);
    settings text[] := imgsearch._push_scan_settings(ef);
begin
    return query execute format(
        'select a.content_id, n.content_id, n.distance / $2
         from (select e.* from %s e join unnest($1) x on x = e.content_id) a cross join lateral (%s) n
         where n.content_id <> a.content_id', m.embeddings, imgsearch._nearest(m, 'a.embedding', k + 1, ef))
        using contents, imgsearch._distance_scale(m)::double precision;
    perform imgsearch._pop_scan_settings(settings);
end $$;
