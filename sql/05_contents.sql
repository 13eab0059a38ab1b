-- Contents and collections under row-level security: what works with the owner's rights, so that a role stores and removes
-- contents of which it sees only its own.

-- The role that called, as seen from a function with the owner's rights.
create or replace function imgsearch._caller() returns name
language sql stable parallel safe
return coalesce(nullif(current_setting('role'), 'none')::name, session_user);

-- Raise unless the caller may write images: functions with the owner's rights ask, as a restored dump may have lost grants.
create or replace function imgsearch._check_writer() returns void
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    if not has_any_column_privilege(imgsearch._caller(), 'imgsearch.image', 'insert') then
        raise exception 'role % may not write images', imgsearch._caller() using errcode = '42501',
            hint = format('as the owner run: pgimgsearch db grant writer %I', imgsearch._caller());
    end if;
end $$;

-- The collections whose owner is a role or one that it inherits from: for a policy on imgsearch.image, which must not read
-- imgsearch.collection itself.
create or replace function imgsearch.own_collections(role_name name default current_user) returns setof integer
language plpgsql stable parallel safe security definer set search_path = pg_catalog, pg_temp as $$
begin
    return query select c.collection_id from imgsearch.collection c
    where c.owner in (select r.rolname from pg_roles r where pg_has_role(role_name, r.oid, 'usage'))
    and pg_has_role(imgsearch._caller(), role_name, 'usage');
end $$;

-- Find contents by their hashes, and add those that are new, which need all facts. Returns the ordinal and content_id of
-- each; one that is neither stored nor has a width is left out. claim lets this transaction add images of them where
-- row-level security hides them. For writers.
create or replace function imgsearch._store_contents(
    ordinals integer[], sha256s bytea[], pixel_hashes bytea[], sizes bigint[], widths integer[], heights integer[],
    formats text[], abouts jsonb[], claim boolean
) returns table (ordinal integer, content_id bigint)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    missing integer[];  -- places in the arrays
    found_ordinals integer[] := '{}';
    found_ids bigint[] := '{}';
    more_ordinals integer[];
    more_ids bigint[];
begin
    perform imgsearch._check_writer();
    for attempt in 1 .. 10 loop  -- one that is stored may be swept before it is locked
        missing := array(select n.place from unnest(ordinals) with ordinality as n (ordinal, place)
                         where n.ordinal not in (select unnest(found_ordinals)));
        -- in the order of a key, so that two runs rarely lock the same rows crosswise
        with new_content as (
            insert into imgsearch.content (sha256, pixel_hash, bytes, width, height, format, about)
            select distinct on (sha256s[n]) sha256s[n], pixel_hashes[n], sizes[n], widths[n], heights[n], formats[n],
                   coalesce(abouts[n], '{}')
            from unnest(missing) n where widths[n] is not null order by sha256s[n]
            on conflict (sha256) do nothing
            returning content_id, sha256)
        select array_agg(ordinals[n]), array_agg(c.content_id) into more_ordinals, more_ids
        from unnest(missing) n join new_content c on c.sha256 = sha256s[n];
        found_ordinals := found_ordinals || more_ordinals;
        found_ids := found_ids || more_ids;
        exit when cardinality(found_ordinals) = cardinality(ordinals);
        -- a limit in a lateral makes each row one lookup, however large the database
        select array_agg(x.ordinal), array_agg(x.content_id) into more_ordinals, more_ids from (
            select ordinals[n] as ordinal, c.content_id from unnest(missing) n
            cross join lateral (
                select c.content_id from imgsearch.content c where c.sha256 = sha256s[n] limit 1 for key share) c
            where ordinals[n] not in (select unnest(found_ordinals))) x;
        found_ordinals := found_ordinals || more_ordinals;
        found_ids := found_ids || more_ids;
        exit when not exists (select from unnest(missing) n where widths[n] is not null
                              and ordinals[n] not in (select unnest(found_ordinals)));
    end loop;
    return query select * from unnest(found_ordinals, found_ids);
    if claim then
        delete from imgsearch.content_claim c where (c.content_id, c.transaction_id) in (
            select x.content_id, x.transaction_id from imgsearch.content_claim x
            where x.transaction_id <> pg_current_xact_id() for update skip locked);
        insert into imgsearch.content_claim (content_id)
        select c.content_id from imgsearch.content c where c.sha256 = any(sha256s) on conflict do nothing;
    end if;
end $$;

-- Delete those of some contents that no image shows; one that another session has started to use stays. For writers.
create or replace function imgsearch._sweep(contents bigint[]) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp as $$
begin
    perform imgsearch._check_writer();
    delete from imgsearch.content c where c.content_id = any(contents)
        and not exists (select from imgsearch.image i where i.content_id = c.content_id);
exception when foreign_key_violation then
    if cardinality(contents) > 1 then  -- one of them is in use, so each by itself
        perform imgsearch._sweep(array[n]) from unnest(contents) n;
    end if;
end $$;

-- Whether this transaction has brought the bytes of a content.
create or replace function imgsearch._is_claimed(content_id bigint) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp as $$
begin
    return exists (select from imgsearch.content_claim c
                   where c.content_id = _is_claimed.content_id and c.transaction_id = pg_current_xact_id_if_assigned());
end $$;

-- Refuse an image of a content that its writer neither sees nor has brought the bytes of.
create or replace function imgsearch._check_content() returns trigger
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
begin
    if not imgsearch._is_claimed(new.content_id)
        and not exists (select from imgsearch.image i where i.content_id = new.content_id) then
        raise exception 'role % does not see content %', current_user, new.content_id using errcode = '42501',
            hint = 'ingest the file: pgimgsearch ingest';
    end if;
    return new;
end $$;
create or replace trigger check_content before insert on imgsearch.image
    for each row when (row_security_active('imgsearch.image')) execute function imgsearch._check_content();
create or replace trigger check_new_content before update of content_id on imgsearch.image
    for each row when (new.content_id <> old.content_id and row_security_active('imgsearch.image'))
    execute function imgsearch._check_content();
