-- The embedder: "pgimgsearch serve", which holds the models. SQL asks it through dblink for the vectors of new texts and new
-- images; what is stored or cached needs neither.

-- What this database is, but for its replicas: a copy that was restored elsewhere is another one.
create or replace function imgsearch._database_identity() returns text
language plpgsql stable parallel safe set search_path = pg_catalog, pg_temp as $$
declare
    result text := (select d.oid::text from pg_database d where d.datname = current_database());
begin
    if has_function_privilege('public', 'pg_control_system()', 'execute') then  -- not on every hosted server
        result := (select c.system_identifier from pg_control_system() c) || ' ' || result;
    end if;
    return result;
end $$;

-- The schema of dblink, quoted, where an embedder is connected to this database; else null.
create or replace function imgsearch._dblink() returns text
language sql stable parallel safe
return (select quote_ident(n.nspname)
        from pg_extension e join pg_namespace n on n.oid = e.extnamespace
        where e.extname = 'dblink'
            and exists (select from pg_foreign_server s where s.srvname = 'imgsearch_embedder'
                        and obj_description(s.oid, 'pg_foreign_server') = 'for ' || imgsearch._database_identity()));

-- How long the embedder may take for an answer, from the setting imgsearch.embedder_timeout (30s).
create or replace function imgsearch._embedder_timeout() returns interval
language sql stable parallel safe
return coalesce(nullif(current_setting('imgsearch.embedder_timeout', true), ''), '30s')::interval;

-- Ask the embedder: its answers in order. Sends and polls, so that a cancel and a statement timeout work, over a connection
-- that the session keeps. Raises PI010 to PI014, or what the embedder raises.
create or replace function imgsearch._ask_embedder(message jsonb) returns text[]
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    schema constant text := imgsearch._dblink();
    server constant text := 'imgsearch_embedder';
    -- of the session's connection: another after connect_embedder
    name constant text := server || (select '_' || s.oid from pg_foreign_server s where s.srvname = server);
    deadline constant timestamptz := clock_timestamp() + imgsearch._embedder_timeout();
    kept boolean;
    sent integer;
    busy integer;
    pause double precision;
    answers text[];
    state text;
    said text;
    detail text;
begin
    if schema is null then
        raise exception '%', case when exists (select from pg_foreign_server s where s.srvname = server)
                then 'the embedder was connected to another database, of which this is a copy'
                else 'no embedder is connected to this database' end using errcode = 'PI010',
            hint = 'run: pgimgsearch serve; and once: pgimgsearch db connect-embedder HOST PORT';
    end if;
    if not has_server_privilege(server, 'usage') then
        raise exception 'role % may not use the embedder', current_user using errcode = 'PI010',
            hint = format('as the owner run: pgimgsearch db grant reader %I', current_user);
    end if;
    execute format('select coalesce($1 = any(%s.dblink_get_connections()), false)', schema) into kept using name;
    loop
        begin
            if not kept then
                execute format('select %s.dblink_connect($1, $2)', schema) using name, server;
            end if;
            execute format('select %s.dblink_send_query($1, $2)', schema) into sent using name, message::text;
            if sent <> 1 then
                raise exception 'the request could not be sent' using errcode = '08006';
            end if;
            pause := 0.0005;
            loop
                execute format('select %s.dblink_is_busy($1)', schema) into busy using name;
                exit when busy = 0;
                if clock_timestamp() > deadline then
                    raise exception 'the embedder did not answer within %', imgsearch._embedder_timeout()
                        using errcode = 'PI013',
                        hint = 'check whether it is overloaded, or raise the setting imgsearch.embedder_timeout';
                end if;
                perform pg_sleep(pause);
                pause := least(pause * 1.1, 0.002);
            end loop;
            execute format('select array_agg(r.answer) from %s.dblink_get_result($1) as r (answer text)', schema)
                into answers using name;
            execute format('select from %s.dblink_get_result($1) as r (answer text)', schema) using name;  -- ends it
            return answers;
        exception when others or query_canceled then
            get stacked diagnostics state = returned_sqlstate, said = message_text, detail = pg_exception_detail;
            begin  -- a late answer must not be taken for that of the next request
                execute format('select %s.dblink_disconnect($1)', schema) using name;
            exception when others then null;
            end;
            if state not like '08%' then raise; end if;
            if not kept then
                said := regexp_replace(coalesce(nullif(detail, ''), said), '\s+', ' ', 'g');
                raise exception 'the embedder cannot be reached: %', said using errcode = 'PI010', hint =
                    case when said like '%password authentication failed%'
                         then 'give its password: pgimgsearch db connect-embedder HOST PORT --password-file FILE'
                         else 'is "pgimgsearch serve" running where "pgimgsearch db connect-embedder" says?' end;
            end if;
            kept := false;  -- a kept connection was dead: try again over a new one
        end;
    end loop;
end $$;

-- The models that the embedder serves, and whether they are those that made the stored vectors; raises PI010 or PI013.
create or replace function imgsearch.embedder_status()
returns table (model text, serves boolean, device text, problem text)
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    answers text[] := imgsearch._ask_embedder('{"ask": "status"}');
begin
    return query
        select m.name, a.fingerprint is not null and a.fingerprint = m.fingerprint, a.device,
               case when a.fingerprint is null then 'not served'
                    when a.fingerprint <> m.fingerprint then 'another version is served' end
        from imgsearch.model m
        left join (select s ->> 'model' as model, s ->> 'fingerprint' as fingerprint, s ->> 'device' as device
                   from unnest(answers) u (answer), cast(u.answer as jsonb) s) a on a.model = m.name
        order by m.name;
end $$;

-- Ask the embedder for the vector or the hash of an image file, in text form.
create or replace function imgsearch._ask_for_image(bytes bytea, crop integer[], m imgsearch.model) returns text
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
begin
    if bytes is null or octet_length(bytes) = 0 then
        raise exception 'there are no bytes of an image' using errcode = 'PI014',
            hint = 'pass the content of an image file';
    end if;
    if octet_length(bytes) > 67108864 then
        raise exception 'the image has % bytes, 64 MB is the limit', octet_length(bytes) using errcode = 'PI014',
            hint = 'make it smaller; models use a few hundred pixels';
    end if;
    if crop is not null and (cardinality(crop) <> 4 or array_position(crop, null) is not null) then
        raise exception 'crop is %, not {x, y, width, height}', crop using errcode = 'PI008',
            hint = 'pixels of the upright image, for example crop => ''{10, 20, 300, 200}''';
    end if;
    return (imgsearch._ask_embedder(jsonb_build_object(
        'ask', 'image', 'model', m.name, 'fingerprint', m.fingerprint, 'crop', to_jsonb(crop),
        'bytes', translate(encode(bytes, 'base64'), E'\n', ''))))[1];
end $$;

-- The vector of an image that is not in the database, through the embedder; crop is {x, y, width, height}.
create or replace function imgsearch.image_vector(
    bytes bytea, model text default 'default', crop integer[] default null
) returns @vector@.vector
language plpgsql stable parallel unsafe set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model := imgsearch._resolve_model(image_vector.model);
begin
    if m.storage = 'bit' then
        raise exception 'model % makes bits, not a vector', m.name using errcode = 'PI002',
            hint = 'use imgsearch.similar_to_image()';
    end if;
    return imgsearch._ask_for_image(bytes, crop, m)::@vector@.vector;
end $$;

-- Connect the embedder: a foreign server, a user mapping with the password, and usage for all readers.
create or replace function imgsearch.connect_embedder(
    host text, port integer, password text, sslmode text default 'prefer'
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    reader name;
begin
    if not exists (select from pg_foreign_data_wrapper f where f.fdwname = 'dblink_fdw'
                   and has_foreign_data_wrapper_privilege(f.oid, 'usage')) then
        raise exception 'role % cannot use dblink here', current_user using errcode = 'PI010',
            hint = format('as an administrator run: create extension if not exists dblink; '
                          'grant usage on foreign data wrapper dblink_fdw to %I', current_user);
    end if;
    if exists (select from pg_foreign_server s where s.srvname = 'imgsearch_embedder') then
        drop server imgsearch_embedder cascade;
    end if;
    execute format('create server imgsearch_embedder foreign data wrapper dblink_fdw options (
        host %L, port %L, dbname ''pgimgsearch'', connect_timeout ''2'', tcp_user_timeout ''10000'', sslmode %L)', host, port, sslmode);
    -- no other server, whoever has taken its place, is told the password
    if current_setting('server_version_num')::integer >= 160000 then
        alter server imgsearch_embedder options (add require_auth 'scram-sha-256');
    end if;
    execute format('comment on server imgsearch_embedder is %L', 'for ' || imgsearch._database_identity());
    begin
        execute format('create user mapping for public server imgsearch_embedder options (
            user ''pgimgsearch'', password %L)', password);
    exception when others then  -- raised again, as the error's context would show the password
        raise exception '%', sqlerrm using errcode = sqlstate;
    end;
    for reader in
        select case when a.grantee = 0 then 'public' else pg_get_userbyid(a.grantee) end
        from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'imgsearch.image'::regclass and a.privilege_type = 'SELECT'
        union select pg_get_userbyid(c.relowner) from pg_class c where c.oid = 'imgsearch.image'::regclass
    loop
        perform imgsearch._grant_embedder(reader);
    end loop;
end $$;

-- Grant a role the use of the embedder, where one is connected and the caller may grant it.
create or replace function imgsearch._grant_embedder(role_name name) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    schema text := imgsearch._dblink();
    grantee text := case when role_name = 'public' then 'public' else quote_ident(role_name) end;
begin
    if schema is null or not has_server_privilege('imgsearch_embedder', 'usage with grant option') then return; end if;
    execute format('grant usage on foreign server imgsearch_embedder to %s', grantee);
    if not has_schema_privilege(role_name, schema::regnamespace, 'usage') then
        execute format('grant usage on schema %s to %s', schema, grantee);
    end if;
end $$;
