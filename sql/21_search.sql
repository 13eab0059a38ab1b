-- Search: images like a stored one, like a vector, or like an image that is not stored.

-- Images like this one. The image itself is never among the results; its copies are.
create or replace function imgsearch.similar(
    image_id bigint, k integer default 10, model text default 'default', filter jsonb default null,
    collection text default null, among bigint[] default null, min_similarity double precision default null,
    exact boolean default false, after bigint default null, collapse boolean default false,
    ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
    query_vector @vector@.vector;
    query_bits bit varying;
begin
    if m.storage = 'bit' then
        query_bits := imgsearch._stored_bits(image_id, m);
    else
        query_vector := imgsearch._stored_vector(image_id, m);
    end if;
    return query select * from imgsearch._search(m, query_vector, query_bits,
        row(k, filter, collection, among, min_similarity, exact, after, collapse, ef_search, image_id, null, null)::imgsearch._request);
end $$;

-- Images like a vector of your own; a halfvec, as a view has it, needs ::vector.
create or replace function imgsearch.similar_to(
    embedding @vector@.vector, k integer default 10, model text default 'default', filter jsonb default null,
    collection text default null, among bigint[] default null, min_similarity double precision default null,
    exact boolean default false, after bigint default null, collapse boolean default false,
    ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
begin
    if m.storage = 'bit' or @vector@.vector_dims(embedding) is distinct from m.dim then
        raise exception 'model % takes % of dimension %, not a vector of dimension %', m.name,
            case m.storage when 'bit' then 'bits' else 'a vector' end, m.dim,
            coalesce(@vector@.vector_dims(embedding)::text, 'null') using errcode = 'PI002',
            hint = 'use a vector of the same model, or name the model that made it';
    end if;
    return query select * from imgsearch._search(m, embedding, null,
        row(k, filter, collection, among, min_similarity, exact, after, collapse, ef_search, null, null, null)::imgsearch._request);
end $$;

-- Images like a hash of your own.
create or replace function imgsearch.similar_to_bits(
    embedding bit varying, k integer default 10, model text default 'default', filter jsonb default null,
    collection text default null, among bigint[] default null, min_similarity double precision default null,
    exact boolean default false, after bigint default null, collapse boolean default false,
    ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
begin
    if m.storage <> 'bit' or length(embedding) is distinct from m.dim then
        raise exception 'model % takes % of dimension %, not % bits', m.name,
            case m.storage when 'bit' then 'bits' else 'a vector' end, m.dim,
            coalesce(length(embedding)::text, 'null') using errcode = 'PI002',
            hint = 'use a hash of the same model, or name the model that made it';
    end if;
    return query select * from imgsearch._search(m, null, embedding,
        row(k, filter, collection, among, min_similarity, exact, after, collapse, ef_search, null, null, null)::imgsearch._request);
end $$;

-- Images like one that is not in the database, through the embedder; crop is {x, y, width, height}.
create or replace function imgsearch.similar_to_image(
    bytes bytea, crop integer[] default null, k integer default 10, model text default 'default',
    filter jsonb default null, collection text default null, among bigint[] default null,
    min_similarity double precision default null, exact boolean default false, after bigint default null,
    collapse boolean default false, ef_search integer default null
) returns setof imgsearch.match
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
    answer text := imgsearch._ask_for_image(bytes, crop, m);
begin
    return query select * from imgsearch._search(
        m, case when m.storage <> 'bit' then answer::@vector@.vector end,
        case m.storage when 'bit' then answer::bit varying end,
        row(k, filter, collection, among, min_similarity, exact, after, collapse, ef_search, null, null, null)::imgsearch._request);
end $$;
