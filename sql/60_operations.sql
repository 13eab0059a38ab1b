-- Operations: what is embedded, what is missing, and who may use it.

-- What each model covers. Without exact, large counts come from the planner's statistics.
-- missing = contents - embedded - skipped; failed counts files that could not be read for any model.
create or replace function imgsearch.coverage(exact boolean default false)
returns table (model text, status text, images bigint, contents bigint, embedded bigint, skipped bigint,
               failed bigint, missing bigint)
language plpgsql stable parallel safe as $$
#variable_conflict use_column
declare
    m imgsearch.model;
begin
    images := imgsearch._count('imgsearch.image', coverage.exact);
    contents := imgsearch._count('imgsearch.content', coverage.exact);
    for m in select x.* from imgsearch.model x order by x.name loop
        model := m.name;
        status := m.status;
        embedded := imgsearch._count(m.embeddings, coverage.exact);
        select count(*) into failed from imgsearch.ingest_failure f
        where f.kind = 'failed' and (f.model_id is null or f.model_id = m.model_id);
        select count(distinct i.content_id) into skipped
        from imgsearch.ingest_failure f
        join imgsearch.image i on i.collection_id = f.collection_id and i.path = f.path
        where f.kind = 'skipped' and f.model_id = m.model_id;
        missing := greatest(contents - embedded - skipped, 0);
        return next;
    end loop;
end $$;

-- Rows of a table: counted when asked for or when small, else estimated by the planner.
create or replace function imgsearch._count(relation regclass, exact boolean) returns bigint
language plpgsql stable parallel safe as $$
declare
    result bigint;
begin
    select c.reltuples::bigint into result from pg_class c where c.oid = relation;
    if exact or result < 100000 or row_security_active('imgsearch.image') then
        execute format('select count(*) from %s', relation) into result;
    end if;
    return result;
end $$;

-- Give a role what an application needs: 'reader' searches, 'writer' ingests as well.
create or replace function imgsearch.grant_access(role_name name, access text default 'reader') returns void
language plpgsql volatile set search_path = imgsearch, @vector@, pg_temp as $$
declare
    writable text;
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
    perform imgsearch._grant_embedder(role_name);
    if access = 'writer' then
        for writable in
            select t::text from unnest(array['collection', 'content', 'image', 'ingest_run', 'ingest_failure',
                                             'text_embedding']) t
            union all select m.embeddings::text from imgsearch.model m
        loop
            execute format('grant insert, update, delete on %s to %I', writable, role_name);
        end loop;
    end if;
end $$;
