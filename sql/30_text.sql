-- Text: queries are embedded once by a command, cached, and searched for in SQL from then on.

-- The cache key of a query in a template.
create or replace function imgsearch.text_key(query text, template text default '{}') returns bytea
language sql immutable parallel safe
return sha256(convert_to(template || chr(31) || btrim(query), 'UTF8'));

-- The cached vector of a text in a template; raises PI007 when the model has no text tower or the text is not cached.
create or replace function imgsearch.text_vector(
    query text, model text default 'text', template text default '{}'
) returns @vector@.vector
language plpgsql stable parallel safe as $$
declare
    m imgsearch.model := imgsearch._resolve_model(text_vector.model);
    result @vector@.vector;
    able text;
begin
    if not m.has_text then
        select string_agg(x.name, ', ' order by x.name) into able from imgsearch.model x where x.has_text;
        raise exception 'model % cannot read text', m.name using errcode = 'PI007',
            hint = 'models that can: ' || coalesce(able, 'none yet; add one, for example clip-vit-b-32');
    end if;
    select t.embedding into result from imgsearch.text_embedding t
    where t.model_id = m.model_id and t.key = imgsearch.text_key(text_vector.query, text_vector.template);
    if not found then
        raise exception 'the text "%" is not embedded yet for model %', coalesce(text_vector.query, 'null'), m.name
            using errcode = 'PI007',
            hint = format('run: pgimgsearch embed-text --model %s%s %s', quote_literal(m.name),
                          (select string_agg(' --template ' || quote_literal(t), '')
                           from string_to_table(nullif(text_vector.template, '{}'), chr(10)) t),
                          quote_literal(coalesce(text_vector.query, 'a text')));
    end if;
    return result;
end $$;

-- Keep the vector of a text; the least recently used leave beyond imgsearch.text_cache_limit (100,000) a model.
create or replace function imgsearch.cache_text(
    query text, embedding @vector@.vector, model text default 'text', template text default '{}'
) returns void
language plpgsql volatile as $$
declare
    m imgsearch.model := imgsearch._resolve_model(cache_text.model);
    cache_limit integer :=
        coalesce(nullif(current_setting('imgsearch.text_cache_limit', true), ''), '100000')::integer;
begin
    if @vector@.vector_dims(cache_text.embedding) is distinct from m.dim then
        raise exception 'model % takes a vector of dimension %, not %', m.name, m.dim,
            coalesce(@vector@.vector_dims(cache_text.embedding)::text, 'null') using errcode = 'PI002',
            hint = 'bring a vector of the same model';
    end if;
    insert into imgsearch.text_embedding as t (model_id, key, query, template, embedding)
    values (m.model_id, imgsearch.text_key(cache_text.query, cache_text.template), btrim(cache_text.query),
            cache_text.template, cache_text.embedding)
    on conflict on constraint text_embedding_pkey
        do update set embedding = excluded.embedding, used_at = clock_timestamp();
    delete from imgsearch.text_embedding t
    where t.model_id = m.model_id and t.key in (
        select o.key from imgsearch.text_embedding o where o.model_id = m.model_id
        order by o.used_at desc, o.key offset cache_limit);
end $$;

-- Text to image, in one SELECT.
create or replace function imgsearch.search_text(
    query text, k integer default 10, model text default 'text', filter jsonb default null,
    collection text default null, among bigint[] default null, min_similarity double precision default null,
    exact boolean default false, after bigint default null, collapse boolean default false,
    ef_search integer default null, template text default '{}'
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
begin
    return query select * from imgsearch._search(imgsearch._resolve_model(model),
        imgsearch.text_vector(query, model, template), null, null, k, filter, collection, among, min_similarity, exact, after, collapse, ef_search);
end $$;
