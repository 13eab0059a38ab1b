-- The rank of a format by quality: lossless, then formats that are smaller at the same quality, then the others.
create or replace function imgsearch._format_rank(format text) returns integer
language sql immutable parallel safe
begin atomic
    select case when format in ('PNG', 'BMP', 'TIFF', 'PPM', 'TGA', 'QOI', 'DDS') then 2
                when format in ('HEIF', 'AVIF', 'JPEG2000', 'JXL') then 1 else 0 end;
end;

-- A number of JSON, 0 for anything else.
create or replace function imgsearch._number(value jsonb) returns double precision
language sql immutable parallel safe
begin atomic
    select case when jsonb_typeof(value) = 'number' then value::double precision else 0 end;
end;

-- The score of an image for each rule of keep; of two images, the one with the higher score at the first rule where they
-- differ is kept. Raises PI008 for an unknown rule.
create or replace function imgsearch._keeper_score(
    keep text[], prefer text[], path text, width integer, height integer, bytes bigint, format_rank integer,
    modified_at timestamp with time zone, reference boolean, about jsonb
) returns double precision[]
language plpgsql immutable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    result double precision[] := array[reference::integer];
    score double precision;
    rule text;
begin
    foreach rule in array keep loop
        score := case rule
            when 'original' then  -- what a camera wrote, which conversions and messengers leave out
                4 * (about ? 'taken_at')::integer + 2 * (about ? 'camera')::integer + (about ? 'latitude')::integer
            when 'unconverted' then imgsearch._number(about -> 'origin')
            when 'metadata' then imgsearch._number(about -> 'tags')
            when 'detail' then
                greatest(imgsearch._number(about -> 'depth'), 8) + 100 * least(imgsearch._number(about -> 'frames'), 1000000)
                + 1e9 * (about ? 'extra')::integer
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
                hint = 'rules are original, unconverted, metadata, detail, pixels, lossless, bytes, oldest, newest and path';
        end if;
        result := result || score;
    end loop;
    return result;
end $$;
