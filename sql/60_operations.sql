-- Operations: what is embedded, what is missing, how well an index works, and who has access.

-- What each model covers. Without exact, large counts come from the planner's statistics.
-- missing = contents - embedded - skipped; failed counts files that could not be read for any model.
create or replace function imgsearch.coverage(exact boolean default false)
returns table (model text, status text, images bigint, contents bigint, embedded bigint, skipped bigint,
               failed bigint, missing bigint)
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    m imgsearch.model;
    small boolean := imgsearch._count('imgsearch.content', false) < 100000;
begin
    images := imgsearch._count('imgsearch.image', coverage.exact);
    for m in select x.* from imgsearch.model x order by x.name loop
        model := m.name;
        status := m.status;
        select count(*) into failed from imgsearch.ingest_failure f
        where f.kind = 'failed' and (f.model_id is null or f.model_id = m.model_id);
        if not exists (select from pg_class c where c.oid = m.embeddings) then  -- it was dropped
            contents := imgsearch._count('imgsearch.content', coverage.exact);
            embedded := 0; skipped := 0; missing := contents;
        elsif coverage.exact or small then
            select c.contents, c.embedded, c.skipped, c.missing into contents, embedded, skipped, missing
            from imgsearch._coverage(m) c;
        else
            contents := imgsearch._count('imgsearch.content', false);
            embedded := imgsearch._count(m.embeddings, false);
            select count(*) into skipped from imgsearch._skipped_contents(m.model_id);
            missing := greatest(contents - embedded - skipped, 0);
        end if;
        return next;
    end loop;
end $$;

-- The collections that sessions ingest into: they hold the locks of them, and killed ones do not.
create or replace function imgsearch._ingesting() returns setof bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return query
        select l.objid::bigint from pg_locks l where l.locktype = 'advisory' and l.granted and l.objsubid = 2
            and l.database = (select d.oid from pg_database d where d.datname = current_database())
            and l.classid::bigint = (hashtext('pgimgsearch.ingest')::bigint & 4294967295);
end $$;

-- The last runs, newest first, that are marked as running and are not: their processes were killed, or their collections are
-- gone.
create or replace function imgsearch._stale_runs() returns setof bigint
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return query
        select r.run_id from imgsearch.ingest_run r
        where r.status = 'running' and (r.collection_id is null or r.collection_id not in (select imgsearch._ingesting()))
        order by r.run_id desc limit 1000;
end $$;

-- What a model covers of the contents that images show, counted exactly.
create or replace function imgsearch._coverage(m imgsearch.model)
returns table (contents bigint, embedded bigint, skipped bigint, missing bigint)
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    return query execute format('
        with skips as materialized (select s as content_id from imgsearch._skipped_contents($1) s)
        select count(*), count(e.content_id), count(*) filter (where e.content_id is null and s.content_id is not null),
               count(*) filter (where e.content_id is null and s.content_id is null)
        from imgsearch.content c
        left join %s e on e.content_id = c.content_id
        left join skips s on s.content_id = c.content_id
        where exists (select from imgsearch.image i where i.content_id = c.content_id)', m.embeddings)
        using m.model_id;
end $$;

-- Contents that images show and a model has neither a vector of nor a reason to skip, in order, at most so many.
create or replace function imgsearch._missing_contents(m imgsearch.model, after bigint, most integer) returns setof bigint
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    return query execute format('
        with skips as materialized (select s as content_id from imgsearch._skipped_contents($1) s)
        select c.content_id from imgsearch.content c
        where c.content_id > $2
            and not exists (select from %s e where e.content_id = c.content_id and e.content_id > $2)
            and exists (select from imgsearch.image i where i.content_id = c.content_id)
            and not exists (select from skips s where s.content_id = c.content_id)
        order by c.content_id limit $3', m.embeddings) using m.model_id, after, most;
end $$;

-- Contents that a model skipped; a file counts while it has the bytes that it had then.
create or replace function imgsearch._skipped_contents(model_id integer) returns setof bigint
language sql stable parallel safe
begin atomic
    select distinct i.content_id
    from imgsearch.ingest_failure f
    join imgsearch.image i on i.collection_id = f.collection_id and i.key = f.key
    join imgsearch.content c on c.content_id = i.content_id
    where f.model_id = _skipped_contents.model_id and f.kind = 'skipped' and f.bytes = c.bytes
        and f.modified_at is not distinct from i.modified_at;
end;

-- Rows of a table with its partitions, by the planner's statistics.
create or replace function imgsearch._estimated(relation regclass) returns bigint
language sql stable parallel safe
begin atomic
    select coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint from pg_class c
    where c.relkind = 'r' and (c.oid = relation or c.oid in (select t.relid from pg_partition_tree(relation) t));
end;

-- Rows of a table: counted where exact or small, else by the planner's statistics.
create or replace function imgsearch._count(relation regclass, exact boolean) returns bigint
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    result bigint;
begin
    result := imgsearch._estimated(relation);
    if exact or result < 100000 or row_security_active('imgsearch.image') then
        execute format('select count(*) from %s', relation) into result;
    end if;
    return result;
end $$;

-- Grant a role what an application needs: 'reader' searches, 'writer' ingests as well.
create or replace function imgsearch.grant_access(role_name name, access text default 'reader') returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    writable text;
    columns text;
begin
    if access not in ('reader', 'writer') then
        raise exception 'unknown access: %', access using errcode = 'PI008', hint = 'reader or writer';
    end if;
    if not exists (select from pg_roles r where r.rolname = role_name) then
        raise exception 'there is no role %', role_name using errcode = 'PI008',
            hint = format('create it first: create role %I login password ''...''', role_name);
    end if;
    execute format('grant usage on schema imgsearch to %I', role_name);
    if not exists (select from pg_extension e where e.extname = 'vector'
                   and has_schema_privilege(role_name, e.extnamespace, 'usage')) then
        execute format('grant usage on schema @vector@ to %I', role_name);
    end if;
    execute format('grant select on all tables in schema imgsearch to %I', role_name);
    execute format('revoke select on imgsearch.text_embedding, imgsearch.content_claim from %I', role_name);
    perform imgsearch._grant_embedder(role_name);
    if access = 'writer' then
        for writable in
            select 'imgsearch.' || t from unnest(array['collection', 'image', 'ingest_run', 'ingest_failure', 'duplicate_scan',
                                             'duplicate_scanned', 'duplicate_pair', 'duplicate_verdict', 'cluster',
                                             'evaluation_run']) t
            union all select m.embeddings::text from imgsearch.model m
        loop
            -- ids are the database's own: one that a writer chose could be another's, or end the sequence
            select '(' || string_agg(quote_ident(a.attname), ', ') filter (where a.attidentity = '' and a.attgenerated = '') || ')'
            into columns from pg_attribute a
            where a.attrelid = writable::regclass and a.attnum > 0 and not a.attisdropped
            having bool_or(a.attidentity <> '');
            execute format('grant insert %1$s, update %1$s, delete on %2$s to %3$I', columns, writable, role_name);
        end loop;
    end if;
end $$;

-- The share of the k true neighbours that a model's index finds, for a random sample of stored vectors. Counted by
-- distance, so that ties and copies do not lower it. Null without an index or vectors.
create or replace function imgsearch.recall(
    model text default 'default', k integer default 10, sample integer default 100, ef_search integer default null
) returns double precision
language plpgsql volatile parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._resolve_model(recall.model);
begin
    if coalesce(recall.ef_search, 1) not between 1 and 1000 then
        raise exception 'ef_search must be 1 to 1000, not %', recall.ef_search using errcode = 'PI008',
            hint = 'leave it out to use the model''s own value';
    end if;
    if row_security_active('imgsearch.image') then
        raise exception 'recall is measured over all vectors, and row-level security hides images from %', current_user
            using errcode = 'PI008', hint = 'run it as the owner of the tables';
    end if;
    return (select avg(r.recall) from imgsearch._recalls(m, recall.k, imgsearch._sample_contents(m, recall.sample),
                                                         array[coalesce(recall.ef_search, m.ef_search)]) r);
end $$;

-- A random sample of a model's stored contents.
create or replace function imgsearch._sample_contents(m imgsearch.model, sample integer) returns bigint[]
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    stored double precision := greatest(imgsearch._estimated(m.embeddings), 1);
    result bigint[];
begin
    if coalesce(sample, 0) not between 1 and 10000 then
        raise exception 'sample must be 1 to 10000, not %', coalesce(sample::text, 'null') using errcode = 'PI008',
            hint = 'give the number of queries, for example sample => 100';
    end if;
    -- sampled at twice the rate, so that a large table is not read whole
    execute format('select array_agg(d.content_id) from (
                        select e.content_id from %s e tablesample bernoulli (%s) order by random() limit %s) d',
                   m.embeddings, least(100, 200 * sample / stored)::numeric, sample) into result;
    if coalesce(cardinality(result), 0) < sample then
        execute format('select array_agg(d.content_id) from (
                            select e.content_id from %s e order by random() limit %s) d', m.embeddings, sample) into result;
    end if;
    return result;
end $$;

-- For each ef_search and each content as a query: the recall of the index, and its time in milliseconds.
create or replace function imgsearch._recalls(m imgsearch.model, k integer, contents bigint[], efs integer[])
returns table (ef_search integer, recall double precision, milliseconds double precision)
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    operand text := case m.storage when 'bit' then format('$1::bit(%s)', m.dim)
                                   else format('$1::@vector@.%s', m.storage) end;
    distance text := format('e.embedding %s %s', imgsearch._operator(m), operand);
    ef bigint;
    margin double precision := case m.storage when 'bit' then 0 else 1e-3 end;
    query text;
    true_count bigint;
    true_distance double precision;
    queries text[] := '{}';
    true_counts bigint[] := '{}';
    true_distances double precision[] := '{}';
    found double precision[];
    settings text[];
    started timestamptz;
begin
    if m.index_method = 'none' then return; end if;
    if coalesce(_recalls.k, 0) not between 1 and 999 then
        raise exception 'k must be 1 to 999 here, not %', coalesce(_recalls.k::text, 'null') using errcode = 'PI008',
            hint = 'give the number of neighbours, for example k => 10';
    end if;
    for number in 1 .. coalesce(cardinality(contents), 0) loop
        execute format('select e.embedding::text from %s e where e.content_id = $1', m.embeddings)
            into query using contents[number];
        execute format('select count(*), max(n.distance) from (
                            select (%s) + 0 as distance from %s e where e.content_id <> $2 order by 1 limit $3) n',
                       distance, m.embeddings) into true_count, true_distance using query, contents[number], _recalls.k;
        queries := queries || query;
        true_counts := true_counts || true_count;
        true_distances := true_distances || true_distance;
    end loop;
    settings := imgsearch._push_scan_settings(40);
    foreach ef_search in array efs loop
        ef := imgsearch._ef_for(m, ef_search, _recalls.k + 1);
        perform imgsearch._push_scan_settings(ef);
        for number in 1 .. coalesce(cardinality(contents), 0) loop
            continue when true_counts[number] = 0;
            started := clock_timestamp();
            execute format('select array_agg(n.distance) from (%s) n where n.content_id <> $2',
                           imgsearch._nearest(m, operand, _recalls.k + 1, ef))
                into found using queries[number], contents[number];
            milliseconds := 1000 * extract(epoch from clock_timestamp() - started);
            recall := least((select count(*) from unnest(found) d where d <= true_distances[number] + margin),
                            true_counts[number])::double precision / true_counts[number];
            return next;
        end loop;
    end loop;
    perform imgsearch._pop_scan_settings(settings);
end $$;
