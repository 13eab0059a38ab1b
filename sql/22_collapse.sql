-- Search without near-duplicates: of images that are near each other, the one most like the question.

-- The same as _search, without what is near an earlier answer by the model's own threshold, unless a person told the two
-- apart. Asks for more until k are left.
create or replace function imgsearch._collapsed(
    m imgsearch.model, query_vector @vector@.vector, query_bits bit varying, self bigint,
    k integer, filter jsonb, collection text, among bigint[], min_similarity double precision, exact boolean,
    after bigint, ef_search integer, key text
) returns setof imgsearch.match
language plpgsql stable parallel unsafe as $$
declare
    contents_only imgsearch.model := m;
    depth integer := 2 * _collapsed.k;
    found imgsearch.match[];
    earlier integer[];
    later integer[];
    near boolean[];
    answers imgsearch.match[];
    beyond boolean;
begin
    if _collapsed.k not between 1 and 1000 then
        raise exception 'k must be 1 to 1000 with collapse, not %', _collapsed.k using errcode = 'PI008',
            hint = 'after => goes on from there';
    end if;
    contents_only.near := null;
    loop
        found := array(select s from imgsearch._search(contents_only, query_vector, query_bits, _collapsed.self, depth,
            _collapsed.filter, _collapsed.collection, _collapsed.among, null, _collapsed.exact, null, true,
            _collapsed.ef_search, _collapsed.key) s);
        execute format(
            'with seen as materialized (
                 select n.place::integer as place, c.pixel_sha256, e.embedding
                 from unnest($1) with ordinality as n (image_id, place)
                 join imgsearch.image i on i.image_id = n.image_id
                 join imgsearch.content c on c.content_id = i.content_id
                 join %s e on e.content_id = i.content_id)
             select array_agg(a.place order by a.place, b.place), array_agg(b.place order by a.place, b.place)
             from seen a join seen b on b.place > a.place and a.embedding %s b.embedding <= $2
             where not exists (
                 select from imgsearch.duplicate_verdict v
                 where v.pixels_a = least(a.pixel_sha256, b.pixel_sha256)
                     and v.pixels_b = greatest(a.pixel_sha256, b.pixel_sha256) and v.verdict = ''rejected'')',
            m.embeddings, imgsearch._operator(m))
            into earlier, later
            using array(select x.image_id from unnest(found) x), (1 - m.near) * imgsearch._distance_scale(m);
        near := array_fill(false, array[cardinality(found)]);
        for n in 1 .. coalesce(cardinality(earlier), 0) loop
            if not near[earlier[n]] then near[later[n]] := true; end if;
        end loop;
        answers := '{}';
        beyond := _collapsed.after is null;
        for n in 1 .. cardinality(found) loop
            exit when cardinality(answers) = _collapsed.k;
            if beyond and not near[n] then answers := answers || found[n]; end if;
            beyond := beyond or found[n].image_id = _collapsed.after;
        end loop;
        exit when cardinality(answers) = _collapsed.k or cardinality(found) < depth or depth = 10000;
        depth := least(4 * depth, 10000);
    end loop;
    if not beyond then
        raise exception 'image % is not among the answers', _collapsed.after using errcode = 'PI008',
            hint = 'after is the last image of the page before';
    end if;
    return query select * from unnest(answers) r
        where _collapsed.min_similarity is null or r.similarity >= _collapsed.min_similarity;
end $$;
