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
    left_places integer[];
    place integer;
    beyond boolean;
    answers imgsearch.match[];
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
        left_places := array(select generate_series(1, cardinality(found)));
        answers := '{}';
        beyond := _collapsed.after is null;
        -- the first that is left is an answer, and what is near it goes
        while cardinality(left_places) > 0 and cardinality(answers) < _collapsed.k loop
            place := left_places[1];
            if beyond then answers := answers || found[place]; end if;
            beyond := beyond or found[place].image_id = _collapsed.after;
            execute format(
                'select array_agg(n.place order by n.place)
                 from unnest($1, $2) as n (place, image_id)
                 join imgsearch.image i on i.image_id = n.image_id
                 join imgsearch.content c on c.content_id = i.content_id
                 join %1$s e on e.content_id = i.content_id,
                 imgsearch.image j join imgsearch.content d on d.content_id = j.content_id
                 join %1$s f on f.content_id = j.content_id
                 where j.image_id = $3 and n.place <> $4 and (e.embedding %2$s f.embedding > $5 or exists (
                     select from imgsearch.duplicate_verdict v
                     where v.pixels_a = least(c.pixel_sha256, d.pixel_sha256)
                         and v.pixels_b = greatest(c.pixel_sha256, d.pixel_sha256) and v.verdict = ''rejected''))',
                m.embeddings, imgsearch._operator(m))
                into left_places
                using left_places, array(select found[n].image_id from unnest(left_places) n), found[place].image_id, place,
                      (1 - m.near) * imgsearch._distance_scale(m);
        end loop;
        exit when cardinality(answers) = _collapsed.k or cardinality(found) < depth;
        if depth = 10000 then
            raise exception 'the nearest 10,000 images are near-duplicates of % answers', cardinality(answers)
                using errcode = 'PI006', hint = 'ask for fewer, or without collapse';
        end if;
        depth := least(4 * depth, 10000);
    end loop;
    if not beyond then
        raise exception 'image % is not among the answers', _collapsed.after using errcode = 'PI008',
            hint = 'after is the last image of the page before';
    end if;
    return query select * from unnest(answers) r
        where _collapsed.min_similarity is null or r.similarity >= _collapsed.min_similarity;
end $$;
