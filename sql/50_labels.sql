-- Labels: by words (zero-shot), or by the labels of the nearest images.

-- How well labels in a template fit an image, with the model's own temperature: a softmax over the labels (CLIP), or
-- for each label by itself (SigLIP, which has a bias). Raises PI007 for a model that was not trained for either.
create or replace function imgsearch.classify(
    image_id bigint, labels text[], model text default 'text', template text default '{}'
) returns table (label text, probability double precision, similarity double precision)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    m imgsearch.model := imgsearch._resolve_model(classify.model);
    query @vector@.vector := @vector@.l2_normalize(imgsearch._stored_vector(classify.image_id, m));
    vectors @vector@.vector[];
begin
    if coalesce(cardinality(classify.labels), 0) = 0 then
        raise exception 'no labels are given' using errcode = 'PI008',
            hint = 'for example labels => array[''a dog'', ''a cat'']';
    end if;
    if m.logit_scale is null and m.has_text then
        raise exception 'model % has no temperature, so no probabilities', m.name using errcode = 'PI007',
            hint = 'use a model like clip-vit-b-32 or siglip2-b-16-224; or compare imgsearch.text_vector() in SQL of your own';
    end if;
    vectors := imgsearch._text_vectors(classify.labels, m, classify.template);
    return query
        with compared as (
            select l.label, l.number, 1 - (v.vector OPERATOR(@vector@.<=>) query) as similarity
            from unnest(classify.labels, vectors) with ordinality as l (label, vector, number)
            cross join lateral (select l.vector) v),
        scaled as (
            select c.*, m.logit_scale * c.similarity + coalesce(m.logit_bias, 0) as logit from compared c),
        weighed as (
            -- less the largest, so that exp stays finite
            select s.*, exp(s.logit - max(s.logit) over ()) as weight from scaled s)
        select w.label, case when m.logit_bias is null then w.weight / sum(w.weight) over ()
                             else 1 / (1 + exp(least(-w.logit, 700))) end, w.similarity
        from weighed w order by 2 desc, w.number;
end $$;

-- The label of the nearest images under a metadata key: each votes with its similarity, only images that have the key.
create or replace function imgsearch.predict_label(
    image_id bigint, key text, k integer default 10, model text default 'default', filter jsonb default null,
    collection text default null, among bigint[] default null, exact boolean default false
) returns table (label text, score double precision, votes bigint)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    m imgsearch.model := imgsearch._resolve_model(predict_label.model);
begin
    if coalesce(predict_label.key, '') = '' then
        raise exception 'no metadata key is given' using errcode = 'PI008', hint = 'for example key => ''category''';
    end if;
    return query
        select v.label, sum(v.weight) / nullif(sum(sum(v.weight)) over (), 0), count(*)
        from (select s.metadata ->> predict_label.key as label, greatest(s.similarity, 0) as weight
              from imgsearch._search(
                  m, case when m.storage <> 'bit' then imgsearch._stored_vector(predict_label.image_id, m) end,
                  case m.storage when 'bit' then imgsearch._stored_bits(predict_label.image_id, m) end,
                  row(predict_label.k, predict_label.filter, predict_label.collection, predict_label.among, null,
                      predict_label.exact, null, false, null, predict_label.image_id, predict_label.key,
                      null)::imgsearch._request) s) v
        group by v.label order by 2 desc, 3 desc, 1;
end $$;
