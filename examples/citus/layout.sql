-- Spread a database over the workers of a Citus cluster, as its administrator on the coordinator:
--     psql "$DSN" --set ON_ERROR_STOP=1 --file layout.sql
-- Before it: create extension citus; create extension vector on every node; pgimgsearch db upgrade; models add NAME.
-- After it: pgimgsearch ingest DIR --model NAME --no-index, and then layout.sql again, which builds the index.
-- It does what is left to do, so run it after each models add.

-- What searches join stands whole on every worker; models, aliases and books stay on the coordinator, where the functions run.
do $$
declare
    name text;
begin
    foreach name in array array['collection', 'content', 'image'] loop
        if not exists (select from citus_tables t where t.table_name = ('imgsearch.' || name)::regclass
                       and t.citus_table_type = 'reference') then
            perform create_reference_table('imgsearch.' || name);
        end if;
    end loop;
end $$;

-- Vectors, by far the most, are spread by their contents; those of all models lie together. Citus takes no policy with a
-- sub-select, which ours has to spare those who may see all a look at each row.
do $$
declare
    m imgsearch.model;
begin
    for m in select * from imgsearch.model where partitions = 1 order by model_id loop
        if not exists (select from citus_tables t where t.table_name = m.embeddings
                       and t.citus_table_type = 'distributed') then
            execute format('alter policy read on %s using (imgsearch.visible(content_id))', m.embeddings);
            perform create_distributed_table(m.embeddings::text, 'content_id');
        end if;
    end loop;
end $$;

-- Settings of the coordinator do not reach the workers: ef_search there is that of the model that wants most.
select run_command_on_workers(format('alter database %I set hnsw.ef_search = %s', current_database(), max(ef_search)))
from imgsearch.model;

-- A graph for each part, all at once; each finds k of its own, so that together they find more than one graph would.
do $$
declare
    m imgsearch.model;
    name text;
begin
    for m in select * from imgsearch.model where storage in ('halfvec', 'vector') and index_method = 'none' loop
        name := (select relname from pg_class where oid = m.embeddings) || '_hnsw';
        continue when imgsearch._count(m.embeddings, true) = 0;
        execute format('create index %I on %s using hnsw (embedding %s_cosine_ops)', name, m.embeddings, m.storage);
        update imgsearch.model x set index_method = 'hnsw', index_parameters = '{"m": 16, "ef_construction": 64}'
        where x.model_id = m.model_id;
    end loop;
end $$;
