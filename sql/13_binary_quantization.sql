-- Binary quantization: a generated function turns a vector into bits, one for each element above the mean of a sample.

-- Create the function that quantizes a model's vectors, with the mean of a sample of its rows. Returns its name. The mean is
-- part of the function, so that index and query are quantized alike; without it, every bit of a non-negative vector, such as
-- a ResNet's, would be 1. In plpgsql, as a SQL function would be inlined into every query with all its numbers.
create or replace function imgsearch._create_bits_function(m imgsearch.model, table_name text, rows bigint) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    number integer := 1 + coalesce(split_part(m.index_state ->> 'bits', '_', 4)::integer, 0);
    name text := format('_bits_%s_%s', m.model_id, number);
    owner name := (select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'imgsearch.image'::regclass);
    mean text;
begin
    execute format('select @vector@.avg(@vector@.l2_normalize(e.embedding))::text
                    from imgsearch.%I e tablesample system (%s)', table_name,
                   least(100, 100.0 * 10000 / greatest(rows, 1))) into mean;
    mean := coalesce(mean, array_fill(0::real, array[m.dim])::@vector@.vector::text);
    execute format('create function imgsearch.%I(embedding @vector@.%I) returns bit varying
                    language plpgsql immutable strict parallel safe
                    set search_path = pg_catalog, pg_temp as %L', name, m.storage, format('
begin
    return @vector@.binary_quantize(@vector@.l2_normalize(embedding) OPERATOR(@vector@.-) %L::@vector@.%I);
end ', mean, m.storage));
    execute format('grant execute on function imgsearch.%I to public', name);  -- readers and writers of the table call it
    execute format('alter function imgsearch.%I owner to %I', name, owner);
    return name;
end $$;

-- Drop a model's functions for bits, but for the one that its index uses and those that other indexes still need.
create or replace function imgsearch._drop_bits_functions(m imgsearch.model) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    bits regprocedure;
begin
    for bits in select p.oid::regprocedure from pg_proc p where p.pronamespace = 'imgsearch'::regnamespace
                    and p.proname ~ format('^_bits_%s_[0-9]+$', m.model_id)
                    and p.proname is distinct from (m.index_state ->> 'bits') loop
        begin
            execute format('drop function %s', bits);
        exception when dependent_objects_still_exist then null;  -- an index that could not be dropped yet
        end;
    end loop;
end $$;
