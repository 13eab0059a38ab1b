-- The rank of a format by quality: lossless, then formats that are smaller at the same quality, then the others.
create or replace function imgsearch._format_rank(format text) returns integer
language sql immutable parallel safe
begin atomic
    select case when format in ('PNG', 'BMP', 'TIFF', 'PPM', 'TGA', 'QOI', 'DDS') then 2
                when format in ('HEIF', 'AVIF', 'JPEG2000', 'JXL') then 1 else 0 end;
end;

-- The score of an image for each rule of keep; of two images, the one with the higher score at the first rule where they
-- differ is kept. Raises PI008 for an unknown rule.
create or replace function imgsearch._keeper_score(
    keep text[], prefer text[], path text, width integer, height integer, bytes bigint, format_rank integer,
    modified_at timestamp with time zone, reference boolean
) returns double precision[]
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    result double precision[] := array[reference::integer];
    score double precision;
    rule text;
begin
    foreach rule in array keep loop
        score := case rule
            when 'pixels' then width::double precision * height
            when 'lossless' then format_rank
            when 'bytes' then bytes
            when 'oldest' then -coalesce(extract(epoch from modified_at), 'infinity')
            when 'newest' then coalesce(extract(epoch from modified_at), '-infinity')
            when 'path' then -length(path) - 1000000.0 * coalesce(
                (select min(n) from unnest(prefer) with ordinality as p (pattern, n) where path like pattern),
                cardinality(prefer) + 1, 1) end;
        if score is null then
            raise exception 'unknown rule: %', rule using errcode = 'PI008',
                hint = 'rules are pixels, lossless, bytes, oldest, newest and path';
        end if;
        result := result || score;
    end loop;
    return result;
end $$;
