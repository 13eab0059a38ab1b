-- Types and tables of revision 0001.

create table imgsearch.collection (
    collection_id integer generated always as identity primary key,
    name text not null unique check (octet_length(name) between 1 and 2000),
    root text check (octet_length(root) <= 2000),
    owner name not null default current_user,
    created_at timestamptz not null default now() check (created_at between '0001-01-02' and '9999-12-30')
);
comment on table imgsearch.collection is 'a set of images, often below one root: a folder or a URL prefix';
comment on column imgsearch.collection.owner is
    'a role; under row-level security its members change the collection and see its runs and failures';

create table imgsearch.content (
    content_id bigint generated always as identity primary key,
    sha256 bytea not null unique check (octet_length(sha256) = 32),
    pixel_hash bytea check (octet_length(pixel_hash) = 16),
    identity bytea not null generated always as (coalesce(pixel_hash, sha256)) stored,
    bytes bigint not null check (bytes >= 0),
    width integer not null check (width > 0),
    height integer not null check (height > 0),
    format text not null check (octet_length(format) <= 100),
    about jsonb not null default '{}' check (jsonb_typeof(about) = 'object' and octet_length(about::text) <= 4000
        and not jsonb_path_exists(about, 'strict $.* ? (@.type() == "object" || @.type() == "array")')
        and not jsonb_path_exists(about, 'strict $.* ? (@.type() == "number" && (@.abs() > 1e15 || (@ != 0 && @.abs() < 1e-9)))'))
);
create index content_identity on imgsearch.content (identity);
comment on table imgsearch.content is 'one row for distinct bytes';
comment on column imgsearch.content.pixel_hash is 'BLAKE3 of all that is shown; null where only equal bytes are known to be identical';
comment on column imgsearch.content.about is
    'what would be lost with the file: taken_at, camera, latitude, longitude, tags, depth, frames, extra';
comment on column imgsearch.content.identity is 'contents that are identical have the same: pixel_hash, else sha256';

create table imgsearch.content_claim (
    content_id bigint not null references imgsearch.content on delete cascade,
    transaction_id xid8 not null default pg_current_xact_id(),
    primary key (content_id, transaction_id)
);
comment on table imgsearch.content_claim is 'contents whose bytes a writer under row-level security has brought, for the '
    'images of the same transaction';

create table imgsearch.image (
    image_id bigint generated always as identity primary key,
    content_id bigint not null references imgsearch.content,
    collection_id integer not null references imgsearch.collection on delete cascade,
    key text not null check (octet_length(key) <= 2600),
    path text not null check (octet_length(path) <= 2600),
    modified_at timestamptz check (modified_at between '0001-01-02' and '9999-12-30'),
    group_key text check (octet_length(group_key) <= 2600),
    caption text check (octet_length(caption) <= 1000000),
    -- what every program can read: 16 MB as text, not as it is packed on disk, numbers of double precision, 200 levels
    metadata jsonb not null default '{}' check (jsonb_typeof(metadata) = 'object'
        and octet_length(metadata::text) <= 16777216
        and not jsonb_path_exists(metadata, 'strict $.** ? (@.type() == "number" && @.abs() > 1e301)')
        and not jsonb_path_exists(metadata, 'strict $.**{200}')),
    search tsvector generated always as (
        to_tsvector('pg_catalog.simple'::regconfig,
                    coalesce(caption, '') || ' ' || translate(path, '/._-', '    '))) stored,
    added_at timestamptz not null default now() check (added_at between '0001-01-02' and '9999-12-30'),
    updated_at timestamptz not null default now() check (updated_at between '0001-01-02' and '9999-12-30'),
    unique (collection_id, key)
);
create index image_content on imgsearch.image (content_id);
create index image_group on imgsearch.image (group_key) where group_key is not null;
create index image_metadata on imgsearch.image using gin (metadata jsonb_path_ops);
create index image_search on imgsearch.image using gin (search);
comment on table imgsearch.image is 'what an application sees; images of equal bytes share a content';
comment on column imgsearch.image.key is
    'what the source calls the image: the relative path of a file, or the column key of a list or query';
comment on column imgsearch.image.path is 'where the file is: relative to the collection''s root, absolute, or a URL';

create table imgsearch.model (
    model_id integer generated always as identity primary key,
    name text not null unique check (name <> ''),
    slug text not null unique,
    dim integer not null check (dim > 0),
    storage text not null default 'halfvec' check (storage in ('halfvec', 'vector', 'bit')),
    metric text not null default 'cosine' check (metric in ('cosine', 'hamming')),
    backend text not null,
    checkpoint text not null,
    revision text,
    weights text,
    output text not null,
    preprocess jsonb not null,
    normalize boolean not null default true,
    logit_scale real,
    logit_bias real,
    fingerprint text,
    full_dim integer,
    has_text boolean not null default false,
    licence text,
    embeddings regclass,
    images regclass,
    partitions integer not null default 1 check (partitions between 1 and 64),
    index_spec jsonb not null default '{"method": "hnsw", "m": 16, "ef_construction": 64}',
    index_method text not null default 'none' check (index_method in ('none', 'hnsw', 'hnsw-binary')),
    index_state jsonb not null default '{}',
    ef_search integer not null default 100 check (ef_search between 1 and 1000),
    near real check (near between -1 and 1),
    "similar" real check ("similar" between -1 and 1),
    status text not null default 'building' check (status in ('building', 'ready', 'retired')),
    added_at timestamptz not null default now(),
    check ((storage = 'bit') = (metric = 'hamming'))
);
comment on table imgsearch.model is 'a model, its table of embeddings and how that is indexed';
comment on column imgsearch.model.fingerprint is
    'weights, preprocessing and output; null until a model that was only declared is loaded';
comment on column imgsearch.model.partitions is 'hash partitions of its table';
comment on column imgsearch.model.index_spec is
    'what index build builds: method (hnsw, hnsw-binary or none), m, ef_construction';
comment on column imgsearch.model.index_method is 'the method of the index that searches use';
comment on column imgsearch.model.index_state is
    'what the index was built with (m, ef_construction, bits: its function for bits), the rows then, its recall as last '
    'measured, the recall that is wanted, and a method that was refused or dropped';
comment on column imgsearch.model.ef_search is
    'candidates that a search keeps; of hnsw-binary those that the vectors rank again';
comment on column imgsearch.model.full_dim is 'the dimension before a reduction (imgsearch.reduction), else null';

-- Large, so not in model, whose rows the functions pass around.
create table imgsearch.reduction (
    model_id integer primary key references imgsearch.model on delete cascade,
    kind text not null check (kind in ('pca', 'truncate')),
    matrix bytea not null,
    recall real
);
comment on table imgsearch.reduction is 'v becomes v * matrix, before it is normalized again; float32, little endian, matrix by '
    'rows of the full dimension; recall is that of the ten true neighbours when it was fitted';

create table imgsearch.canary (
    model_id integer primary key references imgsearch.model on delete cascade,
    embeddings real[] not null,
    made_with jsonb not null,
    added_at timestamptz not null default now()
);
comment on table imgsearch.canary is 'vectors of four drawn images, and what made them; comparing later vectors with '
    'them shows whether a model has drifted';

create table imgsearch.alias (
    alias text primary key,
    model_id integer not null references imgsearch.model
);
create table imgsearch.alias_history (
    history_id bigint generated always as identity primary key,
    alias text not null,
    model_name text,
    changed_at timestamptz not null default now()
);
comment on table imgsearch.alias is 'default, text, duplicates and names of your own: what applications ask for';

create table imgsearch.text_embedding (
    model_id integer not null references imgsearch.model on delete cascade,
    key bytea not null,
    query text not null,
    template text not null,
    fingerprint text,
    embedding @vector@.vector not null,
    used_at timestamptz not null default now(),
    primary key (model_id, key)
);
create index text_embedding_used on imgsearch.text_embedding (model_id, used_at);
comment on table imgsearch.text_embedding is 'vectors of text queries: a bounded cache that evicts the least recently used';

create table imgsearch.ingest_run (
    run_id bigint generated always as identity primary key,
    collection_id integer references imgsearch.collection on delete set null,
    source text not null check (octet_length(source) <= 2000),
    models text[] not null check (octet_length(models::text) <= 100000),
    placement jsonb not null default '{}',
    started_at timestamptz not null default now() check (started_at between '0001-01-02' and '9999-12-30'),
    ended_at timestamptz check (ended_at between '0001-01-02' and '9999-12-30'),
    status text not null default 'running' check (status in ('running', 'complete', 'interrupted', 'failed')),
    counts jsonb not null default '{}',
    timings jsonb not null default '{}'
);
comment on table imgsearch.ingest_run is 'counts and timings of each run, and the device, dtype and runtime of '
    'each model; scanned = embedded + reused + unchanged + skipped + failed';

create table imgsearch.ingest_failure (
    collection_id integer not null references imgsearch.collection on delete cascade,
    key text not null check (octet_length(key) <= 2600),
    path text not null check (octet_length(path) <= 2600),
    model_id integer references imgsearch.model on delete cascade,
    kind text not null check (kind in ('failed', 'skipped')),
    error_class text not null check (octet_length(error_class) <= 200),
    message text not null check (octet_length(message) <= 4000),
    bytes bigint,
    modified_at timestamptz check (modified_at between '0001-01-02' and '9999-12-30'),
    attempts integer not null default 1 check (attempts between 1 and 1000000000),
    last_at timestamptz not null default now() check (last_at between '0001-01-02' and '9999-12-30'),
    unique nulls not distinct (collection_id, key, model_id)
);
comment on table imgsearch.ingest_failure is 'images that failed (without a model: for every model) or were skipped';

create type imgsearch.match as (
    image_id bigint, similarity double precision, collection text, key text, path text,
    group_key text, caption text, metadata jsonb
);
create type imgsearch.duplicate as (
    image_id bigint, similarity double precision, kind text, collection text, key text, path text,
    width integer, height integer, bytes bigint
);

-- What a search asks for, as the functions of the search engine pass it on.
create type imgsearch._request as (
    k integer, filter jsonb, collection text, among bigint[], min_similarity double precision, exact boolean,
    after bigint, collapse boolean, ef_search integer, self_id bigint, metadata_key text, collection_id integer
);

create table imgsearch.calibration (
    model_id integer not null references imgsearch.model on delete cascade,
    collection_id integer references imgsearch.collection on delete cascade,
    is_default boolean not null,
    near real not null check (near between 0 and 1),
    "similar" real check ("similar" between 0 and 1),
    precision real not null check (precision > 0 and precision < 1),
    copies real not null check (copies > 0 and copies <= 1),
    images bigint not null check (images >= 0),
    measured jsonb not null check (jsonb_typeof(measured) = 'object' and octet_length(measured::text) <= 1000000
        and not jsonb_path_exists(measured, '$.similar_precision ? (@.type() != "number" || @ <= 0 || @ >= 1)')),
    calibrated_at timestamptz not null default now() check (calibrated_at between '0001-01-02' and '9999-12-30'),
    unique nulls not distinct (model_id, collection_id)
);
create unique index calibration_default on imgsearch.calibration (model_id) where is_default;
comment on table imgsearch.calibration is 'thresholds of a model, and what they were measured on (collection null: all): reported '
    'pairs are copies with this precision if a share copies of the images has one; similar is null where it is near; '
    'the default is the model''s own, for collections without a row; measured has false pairs and recall by edit';

create table imgsearch.duplicate_scan (
    model_id integer primary key references imgsearch.model on delete cascade,
    threshold double precision not null check (threshold between 0 and 1),
    started_at timestamptz not null default now() check (started_at between '0001-01-02' and '9999-12-30')
);
create table imgsearch.duplicate_scanned (
    content_id bigint not null references imgsearch.content on delete cascade,
    model_id integer not null references imgsearch.duplicate_scan on delete cascade,
    representative_id bigint not null references imgsearch.content on delete cascade,
    transforms text[] not null default '{}',
    primary key (content_id, model_id)
);
create index duplicate_scanned_representative on imgsearch.duplicate_scanned (representative_id);
create table imgsearch.duplicate_pair (
    content_a bigint not null references imgsearch.content on delete cascade,
    content_b bigint not null references imgsearch.content on delete cascade,
    model_id integer not null references imgsearch.duplicate_scan on delete cascade,
    similarity double precision not null check (similarity between -1.001 and 1),
    transform text check (octet_length(transform) <= 100),
    primary key (content_a, content_b, model_id),
    check (content_a < content_b)
);
create index duplicate_pair_b on imgsearch.duplicate_pair (content_b);
comment on table imgsearch.duplicate_scan is 'models whose pairs are stored, and down to which similarity';
comment on table imgsearch.duplicate_scanned is 'contents that were compared with all others, under which transforms, and '
    'the representative of their equal pixels';
comment on table imgsearch.duplicate_pair is 'stored pairs of similar contents, perhaps only under a transform of one';

-- By pixels, so that a verdict outlives the rows: images that are removed and added again, and other models.
create table imgsearch.duplicate_verdict (
    pixels_a bytea not null check (octet_length(pixels_a) in (16, 32)),
    pixels_b bytea not null check (octet_length(pixels_b) in (16, 32)),
    verdict text not null check (verdict in ('accepted', 'rejected')),
    owner name not null default current_user,
    decided_by name not null default current_user,
    decided_at timestamptz not null default now() check (decided_at between '0001-01-02' and '9999-12-30'),
    primary key (pixels_a, pixels_b),
    check (pixels_a <= pixels_b)
);
create index duplicate_verdict_b on imgsearch.duplicate_verdict (pixels_b);
comment on table imgsearch.duplicate_verdict is 'verdicts on pairs of images, by their identity; a rejected pair is '
    'never reported again';

create table imgsearch.cluster (
    content_id bigint not null references imgsearch.content on delete cascade,
    model_id integer not null references imgsearch.model on delete cascade,
    cluster integer,
    probability real not null check (probability between 0 and 1),
    primary key (content_id, model_id)
);
create index cluster_model on imgsearch.cluster (model_id, cluster);
comment on table imgsearch.cluster is 'groups of similar images, as last made; the cluster null has those in none';

create table imgsearch.evaluation_run (
    evaluation_id bigint generated always as identity primary key,
    protocol text not null check (octet_length(protocol) <= 2000),
    data text not null check (octet_length(data) <= 2000),
    model text not null check (octet_length(model) <= 2000),
    fingerprint text check (octet_length(fingerprint) <= 2000),
    options jsonb not null default '{}' check (octet_length(options::text) <= 100000),
    questions integer not null,
    figures jsonb not null check (octet_length(figures::text) <= 1000000
        and not jsonb_path_exists(figures, 'strict $.* ? (@.type() != "object")')
        and not jsonb_path_exists(figures, 'strict $.*.* ? (@.type() != "null" && (@.type() != "number" || @.abs() > 1e15))')
        and not jsonb_path_exists(figures, '$.* ? (!exists(@.value) || !exists(@.low) || !exists(@.high))')),
    numbers jsonb not null default '{}' check (octet_length(numbers::text) <= 100000 and not jsonb_path_exists(numbers, 'strict $.* ? (@.type() != "null"
        && (@.type() != "number" || @.abs() > 1e15))')),
    notes jsonb not null default '[]' check (octet_length(notes::text) <= 100000),
    images_per_second double precision check (images_per_second between 0 and 1e15),
    query_ms double precision check (query_ms between 0 and 1e15),
    evaluated_at timestamptz not null default now() check (evaluated_at between '0001-01-02' and '9999-12-30'),
    evaluated_by name not null default current_user
);
create index evaluation_run_same on imgsearch.evaluation_run (protocol, data, model);
comment on table imgsearch.evaluation_run is 'how a model did in a protocol: each figure with its value and 95% interval; '
    'models by name and fingerprint, so that runs outlive them';

-- JSON that writers store and the owner's commands count with: objects of objects, of texts or of numbers from 0 on.
do $$
declare
    rule record;
begin
    for rule in
        select * from (values ('ingest_run', 'placement', 'string'), ('ingest_run', 'counts', 'number'),
                              ('ingest_run', 'timings', 'number')) t (name, field, kind)
    loop
        execute format(
            'alter table imgsearch.%1$I add check (jsonb_typeof(%2$I) = ''object'' and octet_length(%2$I::text) <= 1000000
                 and not jsonb_path_exists(%2$I, ''strict $.* ? (@.type() != "object")'')
                 and not jsonb_path_exists(%2$I, ''strict $.*.* ? (@.type() != "null" && (@.type() != "%3$s" || @ < 0 || @ > 1e15 || (@ > 0 && @ < 1e-9)))''))',
            rule.name, rule.field, rule.kind);
    end loop;
end $$;

-- Row-level security. Policies on image are the user's. Where they hold for a role, the policies here hide from it what
-- belongs to images that it does not see, and let it change what belongs to its own collections. Contents, claims and cached
-- texts have no policy for writing: functions with the owner's rights write them.
do $$
declare
    unrestricted constant text := '(select not row_security_active(''imgsearch.image''))';
    -- "offset 0" keeps the condition from becoming a join, for which no index of vectors would be used
    shown constant text := 'exists (select from imgsearch.image i where i.content_id = %I.%I offset 0)';
    pixels constant text := 'exists (select from imgsearch.content c where c.identity = %s offset 0)';
    roles constant text := '(select r.rolname from pg_roles r where pg_has_role(r.oid, ''usage''))';
    collections constant text := '(select c.collection_id from imgsearch.collection c where c.owner in ' || roles || ')';
    verdict constant text := 'owner in ' || roles || ' and ' || format(pixels, 'pixels_a') || ' and ' || format(pixels, 'pixels_b');
    rule record;
begin
    -- one policy a command, in which what costs least stands first: Postgres would try several in the reverse order of
    -- their names
    for rule in
        select t.name, concat_ws(' or ', unrestricted, t.own, t.visible) as readable, concat_ws(' or ', unrestricted, t.own) as writable
        from (values
            ('content', null, format(shown, 'content', 'content_id')),
            ('collection', 'owner in ' || roles,
             'exists (select from imgsearch.image i where i.collection_id = collection.collection_id offset 0)'),
            ('ingest_run', 'collection_id in ' || collections, null),
            ('ingest_failure', 'collection_id in ' || collections, null),
            ('calibration', 'not is_default and collection_id in ' || collections,
             'collection_id is null or exists (select from imgsearch.collection c where c.collection_id = calibration.collection_id offset 0)'),
            ('duplicate_scan', null, 'true'),
            ('duplicate_scanned', null, format(shown, 'duplicate_scanned', 'content_id') || ' and '
                                        || format(shown, 'duplicate_scanned', 'representative_id')),
            ('duplicate_pair', null, format(shown, 'duplicate_pair', 'content_a') || ' and '
                                     || format(shown, 'duplicate_pair', 'content_b')),
            ('duplicate_verdict', verdict, null),
            ('cluster', null, format(shown, 'cluster', 'content_id')),
            ('evaluation_run', 'evaluated_by in ' || roles, null)) t (name, own, visible)
    loop
        execute format('alter table imgsearch.%I enable row level security', rule.name);
        execute format('create policy read on imgsearch.%I for select using (%s)', rule.name, rule.readable);
        execute format('create policy add on imgsearch.%I for insert with check (%s)', rule.name, rule.writable);
        execute format('create policy change on imgsearch.%I for update using (%s)', rule.name, rule.writable);
        execute format('create policy remove on imgsearch.%I for delete using (%s)', rule.name, rule.writable);
    end loop;
end $$;
alter table imgsearch.content_claim enable row level security;
alter table imgsearch.text_embedding enable row level security;
