"""Collections, contents, images, models, aliases, cached text and ingest runs."""

from alembic import op

revision = "0001"
down_revision = None

UPGRADE = """
create table imgsearch.collection (
    collection_id integer generated always as identity primary key,
    name text not null unique check (name <> ''),
    root text,
    created_at timestamptz not null default now()
);
comment on table imgsearch.collection is 'a set of pictures below one root: a folder, a URL prefix or nothing';

create table imgsearch.content (
    content_id bigint generated always as identity primary key,
    sha256 bytea not null unique check (octet_length(sha256) = 32),
    pixel_sha256 bytea not null check (octet_length(pixel_sha256) = 32),
    bytes bigint not null,
    width integer not null,
    height integer not null,
    format text not null
);
create index content_pixel_sha256 on imgsearch.content (pixel_sha256);
comment on table imgsearch.content is 'one row for each distinct file content';

create table imgsearch.image (
    image_id bigint generated always as identity primary key,
    content_id bigint not null references imgsearch.content,
    collection_id integer not null references imgsearch.collection on delete cascade,
    path text not null,
    external_id text,
    modified_at timestamptz,
    group_key text,
    caption text,
    metadata jsonb not null default '{}',
    search tsvector generated always as (
        to_tsvector('pg_catalog.simple'::regconfig,
                    coalesce(caption, '') || ' ' || translate(path, '/._-', '    '))) stored,
    added_at timestamptz not null default now(),
    updated_at timestamptz not null default now(),
    unique (collection_id, path)
);
create index image_content on imgsearch.image (content_id);
create index image_external on imgsearch.image (external_id) where external_id is not null;
create index image_group on imgsearch.image (group_key) where group_key is not null;
create index image_metadata on imgsearch.image using gin (metadata jsonb_path_ops);
create index image_search on imgsearch.image using gin (search);
comment on table imgsearch.image is 'one row for each file; files of equal bytes share a content';

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
    fingerprint text not null,
    full_dim integer,
    has_text boolean not null default false,
    licence text,
    embeddings regclass,
    images regclass,
    index_method text not null default 'none' check (index_method in ('none', 'hnsw')),
    index_parameters jsonb not null default '{}',
    ef_search integer not null default 100 check (ef_search between 1 and 1000),
    near real,
    status text not null default 'building' check (status in ('building', 'ready', 'retired')),
    added_at timestamptz not null default now(),
    check ((storage = 'bit') = (metric = 'hamming'))
);
comment on table imgsearch.model is 'a model, its typed table of embeddings and how that is indexed';
comment on column imgsearch.model.full_dim is 'the dimension before a reduction (imgsearch.reduction), else null';

-- Large, so not in model, whose rows the functions pass around.
create table imgsearch.reduction (
    model_id integer primary key references imgsearch.model on delete cascade,
    kind text not null check (kind in ('pca', 'whiten', 'truncate')),
    matrix bytea not null,
    mean bytea not null,
    recall real
);
comment on table imgsearch.reduction is 'v becomes (v - mean) * matrix, before it is normalised again; float32, little '
    'endian, matrix by rows of the full dimension; recall is that of the ten true neighbours when it was fitted';

create table imgsearch.canary (
    model_id integer primary key references imgsearch.model on delete cascade,
    embeddings real[] not null,
    made_with jsonb not null,
    added_at timestamptz not null default now()
);
comment on table imgsearch.canary is 'vectors of four drawn pictures, and what made them: what they '
    'become later tells whether a model drifted';

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
comment on table imgsearch.alias is 'default, text, duplicates and your own names: what applications ask for';

create table imgsearch.text_embedding (
    model_id integer not null references imgsearch.model on delete cascade,
    key bytea not null,
    query text not null,
    template text not null,
    embedding @vector@.vector not null,
    used_at timestamptz not null default now(),
    primary key (model_id, key)
);
create index text_embedding_used on imgsearch.text_embedding (model_id, used_at);
comment on table imgsearch.text_embedding is 'embedded text queries: a bounded cache, least recently used out';

create table imgsearch.ingest_run (
    run_id bigint generated always as identity primary key,
    collection_id integer references imgsearch.collection on delete set null,
    source text not null,
    models text[] not null,
    placement jsonb not null default '{}',
    started_at timestamptz not null default now(),
    ended_at timestamptz,
    status text not null default 'running' check (status in ('running', 'complete', 'interrupted', 'failed')),
    counts jsonb not null default '{}',
    timings jsonb not null default '{}'
);
comment on table imgsearch.ingest_run is 'counts and timings of each run, and the device, dtype and runtime of '
    'each model; scanned = embedded + reused + unchanged + skipped + failed';

create table imgsearch.ingest_failure (
    collection_id integer not null references imgsearch.collection on delete cascade,
    path text not null,
    model_id integer references imgsearch.model on delete cascade,
    kind text not null check (kind in ('failed', 'skipped')),
    error_class text not null,
    message text not null,
    bytes bigint,
    modified_at timestamptz,
    attempts integer not null default 1,
    last_at timestamptz not null default now(),
    unique nulls not distinct (collection_id, path, model_id)
);
comment on table imgsearch.ingest_failure is 'files that failed (no model: whatever the model) or were skipped';

create type imgsearch.match as (
    image_id bigint, similarity double precision, collection text, path text,
    external_id text, group_key text, caption text, metadata jsonb
);
create type imgsearch.duplicate as (
    image_id bigint, similarity double precision, kind text, collection text, path text,
    external_id text, width integer, height integer, bytes bigint
);
"""

DOWNGRADE = """
drop type imgsearch.duplicate;
drop type imgsearch.match;
drop table imgsearch.ingest_failure, imgsearch.ingest_run, imgsearch.text_embedding, imgsearch.alias_history,
    imgsearch.alias, imgsearch.canary, imgsearch.reduction, imgsearch.model, imgsearch.image,
    imgsearch.content, imgsearch.collection;
"""


def upgrade() -> None:
    """Make the tables."""
    op.get_context().config.attributes["run_sql"](UPGRADE)


def downgrade() -> None:
    """Drop the tables."""
    op.get_context().config.attributes["run_sql"](DOWNGRADE)
