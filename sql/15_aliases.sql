-- Aliases: names that applications use for a model, which can be moved to another model at once and back.

-- The name of the model that an alias means; duplicates follows default until it is set. Null where it means nothing.
create or replace function imgsearch._alias_target(alias text) returns text
language sql stable parallel safe
return (select m.name from imgsearch.model m where m.model_id = coalesce(
    (select a.model_id from imgsearch.alias a where a.alias = _alias_target.alias),
    (select a.model_id from imgsearch.alias a where a.alias = 'default' and _alias_target.alias = 'duplicates')));

-- Point an alias at a model, or drop it with null; every change is kept in alias_history.
create or replace function imgsearch.set_alias(alias text, model text) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model;
begin
    perform pg_advisory_xact_lock(hashtext('pgimgsearch.alias'));
    if coalesce(btrim(set_alias.alias), '') = '' or set_alias.alias <> btrim(set_alias.alias) then
        raise exception 'an alias is a word, not "%"', coalesce(set_alias.alias, 'null') using errcode = 'PI008',
            hint = 'for example default, text, duplicates or one of your own';
    end if;
    if set_alias.model is null then
        delete from imgsearch.alias a where a.alias = set_alias.alias;
        if not found then return; end if;
    else
        m := imgsearch._resolve_model(set_alias.model);
        if exists (select from imgsearch.model x where x.name = set_alias.alias) then
            raise exception 'alias % is the name of a model', set_alias.alias using errcode = 'PI009',
                hint = 'choose another alias';
        end if;
        if set_alias.alias = 'text' then
            perform imgsearch._check_reads_text(m);
        end if;
        insert into imgsearch.alias as a (alias, model_id) values (set_alias.alias, m.model_id)
        on conflict on constraint alias_pkey do update set model_id = excluded.model_id
        where a.model_id <> excluded.model_id;
        if not found then return; end if;
    end if;
    insert into imgsearch.alias_history (alias, model_name) values (set_alias.alias, m.name);
end $$;

-- Move an alias to a model that has all stored images, or drop it with null: raises PI015 where the model misses more than
-- allow_missing contents (null allows any number), and PI009 where the alias no longer means the expected model ('' is none,
-- null skips this check).
create or replace function imgsearch.switch_alias(
    alias text, model text, expected text default null, allow_missing bigint default 0
) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    m imgsearch.model;
    target text;
    covered record;
begin
    perform pg_advisory_xact_lock(hashtext('pgimgsearch.alias'));
    target := imgsearch._alias_target(switch_alias.alias);
    if coalesce(target, '') <> switch_alias.expected then
        raise exception 'alias % was moved to % in the meantime, and stays there', switch_alias.alias,
            coalesce(target, 'nothing') using errcode = 'PI009', hint = 'run it again to move it from there';
    end if;
    if switch_alias.model is null then
        perform imgsearch.set_alias(switch_alias.alias, null);
        return;
    end if;
    m := imgsearch._resolve_model(switch_alias.model);
    if switch_alias.allow_missing is not null then
        select * into covered from imgsearch._coverage(m);
        if covered.missing > switch_alias.allow_missing then
            raise exception 'model % misses % of % contents; alias % stays', m.name, covered.missing, covered.contents,
                switch_alias.alias using errcode = 'PI015', hint = format('embed them: pgimgsearch models fill %s; '
                    'imgsearch.ingest_failure says why some cannot be; or allow it: allow_missing => %s', m.name,
                    covered.missing);
        end if;
    end if;
    update imgsearch.model x set status = 'ready' where x.model_id = m.model_id and x.status <> 'ready';
    if not exists (select from imgsearch.alias a where a.alias = switch_alias.alias and a.model_id = m.model_id) then
        perform imgsearch.set_alias(switch_alias.alias, m.name);
    end if;
end $$;

-- Point an alias back at the model that it meant before; run it again to undo the rollback. Returns the name of the model
-- that it means then.
create or replace function imgsearch.rollback_alias(alias text) returns text
language plpgsql volatile set search_path = pg_catalog, pg_temp as $$
declare
    target text;
    previous text;
    has_vectors boolean;
begin
    perform pg_advisory_xact_lock(hashtext('pgimgsearch.alias'));
    select m.name into target
    from imgsearch.alias a join imgsearch.model m on m.model_id = a.model_id where a.alias = rollback_alias.alias;
    select h.model_name into previous from imgsearch.alias_history h
    where h.alias = rollback_alias.alias and h.model_name is distinct from target and h.model_name is not null
    order by h.history_id desc limit 1;
    if previous is null and rollback_alias.alias = 'duplicates' and target is not null then
        perform imgsearch.switch_alias('duplicates', null, target);  -- it followed default before
        return imgsearch._alias_target('duplicates');
    end if;
    if previous is null then
        raise exception 'alias % meant no other model before', coalesce(rollback_alias.alias, 'null')
            using errcode = 'PI009', hint = 'see imgsearch.alias_history; pgimgsearch models alias points it anywhere';
    end if;
    if exists (select from imgsearch.model m where m.name = previous) then
        execute format('select exists (select from %s) or not exists (select from imgsearch.image)',
                       (imgsearch._resolve_model(previous)).embeddings) into has_vectors;
    end if;
    if not has_vectors then
        raise exception 'the model % that alias % meant before has no vectors any more', previous, rollback_alias.alias
            using errcode = 'PI009', hint = format('embed them again: pgimgsearch models fill %s', previous);
    end if;
    if has_vectors is null then
        raise exception 'the model % that alias % meant before was removed', previous, rollback_alias.alias
            using errcode = 'PI009', hint = format('add it again: pgimgsearch models switch %s --to %s',
                                                   rollback_alias.alias, previous);
    end if;
    perform imgsearch.switch_alias(rollback_alias.alias, previous, null, null);
    return previous;
end $$;
