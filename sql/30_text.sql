-- Text: queries are embedded once, by a command or by the embedder, cached, and searched with in SQL.

-- The cache key of a query in a template.
create or replace function imgsearch.text_key(query text, template text default '{}') returns bytea
language sql immutable parallel safe
return sha256(convert_to(template || chr(31) || btrim(query), 'UTF8'));

-- A value quoted for a shell.
create or replace function imgsearch._shell_quoted(value text) returns text
language sql immutable parallel safe
return '''' || replace(value, '''', '''\''''') || '''';

-- The vectors of texts in a template, in their order: from the cache, else from the embedder.
-- Raises PI007 when the model has no text tower, or when a text is not cached and no embedder is connected.
create or replace function imgsearch._text_vectors(queries text[], m imgsearch.model, template text)
returns @vector@.vector[]
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    texts text[];
    found @vector@.vector[];
    missing text[];
    answers text[];
    note text;
begin
    perform imgsearch._check_reads_text(m);
    perform imgsearch._check_text(q, template) from unnest(queries) q;
    select array_agg(btrim(n.query) order by n.number), array_agg(t.embedding order by n.number),
           array_agg(distinct btrim(n.query)) filter (where t.key is null)
    into texts, found, missing
    from unnest(queries) with ordinality as n (query, number)
    left join imgsearch._cached_texts(m.model_id, m.fingerprint, array(
        select imgsearch.text_key(q, _text_vectors.template) from unnest(queries) q)) t
        on t.key = imgsearch.text_key(n.query, _text_vectors.template);
    if missing is null then return found; end if;
    if imgsearch._dblink() is null then
        raise exception 'the text "%" is not embedded yet for model %', missing[1], m.name
            using errcode = 'PI007',
            hint = format('run: pgimgsearch embed-text --model %s%s %s; or, for every text from now on: pgimgsearch serve',
                          imgsearch._shell_quoted(m.name),
                          (select string_agg(' --template ' || imgsearch._shell_quoted(t), '')
                           from string_to_table(nullif(template, '{}'), chr(10)) t),
                          case when missing[1] like '-%' then '-- ' else '' end || imgsearch._shell_quoted(missing[1]));
    end if;
    answers := imgsearch._ask_embedder(jsonb_build_object(
        'ask', 'text', 'model', m.name, 'fingerprint', m.fingerprint, 'texts', to_jsonb(missing), 'template', template));
    foreach note in array coalesce(answers[cardinality(missing) + 1:], '{}') loop  -- of texts that are longer than the model reads
        raise notice '%', note;
    end loop;
    return array(select coalesce(n.embedding, answers[array_position(missing, n.text)]::@vector@.vector)
                 from unnest(texts, found) with ordinality as n (text, embedding, number) order by n.number);
end $$;

-- Cached vectors by their keys. Only who knows a text finds it: the table shows everybody's searches to its owner alone.
create or replace function imgsearch._cached_texts(model_id integer, fingerprint text, keys bytea[])
returns table (key bytea, embedding @vector@.vector)
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    return query select t.key, t.embedding from imgsearch.text_embedding t
    where t.model_id = _cached_texts.model_id and t.key = any(keys)
        and t.fingerprint is not distinct from _cached_texts.fingerprint;
end $$;

-- Those texts that are not cached, each once, in their order. With touch, the others count as used just now.
create or replace function imgsearch._missing_texts(model_id integer, queries text[], template text, touch boolean)
returns setof text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
begin
    if touch then
        update imgsearch.text_embedding t set used_at = clock_timestamp()
        where t.model_id = _missing_texts.model_id
            and t.key in (select imgsearch.text_key(q, _missing_texts.template) from unnest(queries) q);
    end if;
    return query
        select n.query from unnest(queries) with ordinality as n (query, number)
        where not exists (select from imgsearch.text_embedding t join imgsearch.model m on m.model_id = t.model_id
                          where t.model_id = _missing_texts.model_id and t.fingerprint is not distinct from m.fingerprint
                              and t.key = imgsearch.text_key(n.query, _missing_texts.template))
        group by n.query order by min(n.number);
end $$;

-- Whether the caller's role may cache texts: a writer may; under row-level security on images only who owns the tables, as
-- everybody searches with what is cached.
create or replace function imgsearch._may_cache_texts() returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
    return pg_has_role(imgsearch._caller(), c.relowner, 'usage')
        or not c.relrowsecurity and has_any_column_privilege(imgsearch._caller(), c.oid, 'insert')
    from pg_class c where c.oid = 'imgsearch.image'::regclass;
end $$;

-- Raise PI008 for a text or a template that cannot be embedded.
create or replace function imgsearch._check_text(query text, template text) returns void
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
begin
    if query is null or btrim(query) = '' then
        raise exception 'the text is empty' using errcode = 'PI008', hint = 'give the words to search for';
    end if;
    if length(query) > 10000 then
        raise exception 'the text has % characters, 10000 is the limit', length(query) using errcode = 'PI008',
            hint = 'models read the first few dozen words';
    end if;
    if template is null or exists (select from string_to_table(template, chr(10)) t where strpos(t, '{}') = 0) then
        raise exception 'the template has no place for the text: %', coalesce(template, 'null')
            using errcode = 'PI008', hint = 'write "a photo of a {}", one template a line';
    end if;
    if length(template) > 100000 or (length(template) - length(replace(template, '{}', ''))) / 2 > 4096 then
        raise exception 'the template has % characters, or more than 4096 places for the text', length(template)
            using errcode = 'PI008', hint = 'write "a photo of a {}", one template a line';
    end if;
    if (select max(length(t) + (length(t) - length(replace(t, '{}', ''))) / 2 * length(query)) > 12000
        from string_to_table(template, chr(10)) t) then
        raise exception 'a text in its template is longer than 12000 characters' using errcode = 'PI008',
            hint = 'models read the first few dozen words';
    end if;
end $$;

-- The vector of a text in a template: from the cache, else from the embedder. Raises PI007, PI008, PI010 to PI013.
create or replace function imgsearch.text_vector(
    query text, model text default 'text', template text default '{}'
) returns @vector@.vector
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
begin
    return (imgsearch._text_vectors(array[query], imgsearch._resolve_model(model), template))[1];
end $$;

-- Cache the vector of a text; beyond imgsearch.text_cache_limit (100,000) a model, the least recently used are evicted.
create or replace function imgsearch.cache_text(
    query text, embedding @vector@.vector, model text default 'text', template text default '{}'
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._resolve_model(cache_text.model);
begin
    perform imgsearch._cache_texts(m.name, m.fingerprint, array[cache_text.query],
                                   array[cache_text.embedding], cache_text.template);
end $$;

-- Cache the vectors of texts in a template, which weights of this fingerprint made. Raises PI002 and PI008 for vectors and
-- texts that are not valid.
create or replace function imgsearch._cache_texts(
    model text, fingerprint text, queries text[], embeddings @vector@.vector[], template text
) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._resolve_model(_cache_texts.model);
    given record;
    started timestamptz := clock_timestamp();
    cache_limit integer :=
        coalesce(nullif(current_setting('imgsearch.text_cache_limit', true), ''), '100000')::integer;
begin
    if not imgsearch._may_cache_texts() then
        raise exception 'role % may not cache texts', imgsearch._caller() using errcode = '42501',
            hint = 'searches need no right to cache where "pgimgsearch serve" runs; writers may cache, and under row-level '
                'security on imgsearch.image only its owner';
    end if;
    if _cache_texts.fingerprint is distinct from m.fingerprint then
        raise exception 'these vectors are of another version of model %', m.name using errcode = 'PI002',
            hint = 'start the embedder again: pgimgsearch serve';
    end if;
    for given in select n.query, n.embedding from unnest(queries, embeddings) n (query, embedding) loop
        if @vector@.vector_dims(given.embedding) is distinct from m.dim then
            raise exception 'model % takes a vector of dimension %, not %', m.name, m.dim,
                coalesce(@vector@.vector_dims(given.embedding)::text, 'null') using errcode = 'PI002',
                hint = 'use a vector of the same model';
        end if;
        if @vector@.vector_norm(given.embedding) = 0 then
            raise exception 'a zero vector is similar to nothing' using errcode = 'PI002', hint = 'use the vector of a text';
        end if;
        perform imgsearch._check_text(given.query, _cache_texts.template);
    end loop;
    insert into imgsearch.text_embedding as t (model_id, key, query, template, fingerprint, embedding, used_at)
    select distinct on (2) m.model_id, imgsearch.text_key(n.query, _cache_texts.template), btrim(n.query),
           _cache_texts.template, m.fingerprint, n.embedding, started + n.number * interval '1 microsecond'
    from unnest(queries, embeddings) with ordinality n (query, embedding, number)
    order by 2, n.number desc
    on conflict on constraint text_embedding_pkey
        do update set embedding = excluded.embedding, fingerprint = excluded.fingerprint, used_at = excluded.used_at;
    delete from imgsearch.text_embedding t
    where t.model_id = m.model_id and t.key in (
        select o.key from imgsearch.text_embedding o where o.model_id = m.model_id
        order by o.used_at desc, o.key offset cache_limit);
end $$;

-- Images that match a text.
create or replace function imgsearch.search_text(
    query text, k integer default 10, model text default 'text', filter jsonb default null,
    collection text default null, among bigint[] default null, min_similarity double precision default null,
    exact boolean default false, after bigint default null, collapse boolean default false,
    ef_search integer default null, template text default '{}'
) returns setof imgsearch.match
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
begin
    return query select * from imgsearch._search(imgsearch._resolve_model(model),
        imgsearch.text_vector(query, model, template), null,
        row(k, filter, collection, among, min_similarity, exact, after, collapse, ef_search, null, null, null)::imgsearch._request);
end $$;

-- Images like an image and a text together: "like this, but in blue". The image itself is never a result.
create or replace function imgsearch.search_mixed(
    image_id bigint, query text, text_weight double precision default 0.5, k integer default 10,
    model text default 'text', filter jsonb default null, collection text default null, among bigint[] default null,
    min_similarity double precision default null, exact boolean default false, after bigint default null,
    collapse boolean default false, ef_search integer default null, template text default '{}'
) returns setof imgsearch.match
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._resolve_model(model);
    mixed @vector@.vector;
begin
    if text_weight is null or text_weight not between 0 and 1 then
        raise exception 'text_weight must be between 0 and 1, not %', coalesce(text_weight::text, 'null')
            using errcode = 'PI008', hint = '0 is the image alone, 1 the text alone';
    end if;
    mixed := imgsearch._mean(
        array[@vector@.l2_normalize(imgsearch._stored_vector(image_id, m)),
              @vector@.l2_normalize(imgsearch.text_vector(query, model, template))],
        array[1 - text_weight, text_weight]);
    return query select * from imgsearch._search(m, mixed, null,
        row(k, filter, collection, among, min_similarity, exact, after, collapse, ef_search, image_id, null, null)::imgsearch._request);
end $$;
