"""Thresholds that are measured, pairs of duplicates that are remembered, verdicts, and clusters."""

from alembic import op

revision = "0002"
down_revision = "0001"

UPGRADE = """
alter table imgsearch.model
    add "similar" real check ("similar" between -1 and 1), add check (near between -1 and 1);

create table imgsearch.calibration (
    model_id integer primary key references imgsearch.model on delete cascade,
    near real not null,
    "similar" real not null,
    precision real not null,
    copies real not null,
    images bigint not null,
    measured jsonb not null,
    calibrated_at timestamptz not null default now()
);
comment on table imgsearch.calibration is 'what the thresholds of a model were measured on: reported pairs are copies '
    'with this precision, if a share copies of the images has one; measured holds false pairs and recall by edit';

create table imgsearch.duplicate_scan (
    model_id integer primary key references imgsearch.model on delete cascade,
    threshold double precision not null,
    started_at timestamptz not null default now()
);
create table imgsearch.duplicate_scanned (
    content_id bigint not null references imgsearch.content on delete cascade,
    model_id integer not null references imgsearch.duplicate_scan on delete cascade,
    stand_in bigint not null references imgsearch.content on delete cascade,
    turns text[] not null default '{}',
    primary key (content_id, model_id)
);
create index duplicate_scanned_stand_in on imgsearch.duplicate_scanned (stand_in);
create table imgsearch.duplicate_pair (
    content_a bigint not null references imgsearch.content on delete cascade,
    content_b bigint not null references imgsearch.content on delete cascade,
    model_id integer not null references imgsearch.duplicate_scan on delete cascade,
    similarity double precision not null,
    turned text,
    primary key (content_a, content_b, model_id),
    check (content_a < content_b)
);
create index duplicate_pair_b on imgsearch.duplicate_pair (content_b);
alter table imgsearch.duplicate_pair enable row level security;
create policy read on imgsearch.duplicate_pair for select using (
    (select not row_security_active('imgsearch.image'))
    or exists (select from imgsearch.image i where i.content_id = content_a)
    and exists (select from imgsearch.image i where i.content_id = content_b));
create policy add on imgsearch.duplicate_pair for insert with check (true);
create policy change on imgsearch.duplicate_pair for update using (true);
create policy remove on imgsearch.duplicate_pair for delete using (true);
comment on table imgsearch.duplicate_scan is 'models whose pairs are remembered, and down to which similarity';
comment on table imgsearch.duplicate_scanned is 'contents that were compared with all others, also turned how; and the '
    'first of equal pixels, with which the mark goes';
comment on table imgsearch.duplicate_pair is 'pairs of contents that are alike, as far as they are remembered, perhaps '
    'only when one is turned';

-- By pixels, so that a verdict outlives the rows: pictures that are removed and come back, and other models.
create table imgsearch.duplicate_verdict (
    pixels_a bytea not null check (octet_length(pixels_a) = 32),
    pixels_b bytea not null check (octet_length(pixels_b) = 32),
    verdict text not null check (verdict in ('accepted', 'rejected')),
    decided_by name not null default session_user,
    decided_at timestamptz not null default now(),
    primary key (pixels_a, pixels_b),
    check (pixels_a <= pixels_b)
);
create index duplicate_verdict_b on imgsearch.duplicate_verdict (pixels_b);
comment on table imgsearch.duplicate_verdict is 'what people said of pairs of pictures, by their pixel_sha256; a '
    'rejected pair is never reported again';

create table imgsearch.cluster (
    content_id bigint not null references imgsearch.content on delete cascade,
    model_id integer not null references imgsearch.model on delete cascade,
    cluster integer,
    probability real not null,
    primary key (content_id, model_id)
);
create index cluster_model on imgsearch.cluster (model_id, cluster);
comment on table imgsearch.cluster is 'groups of like images, as last made; a null cluster is like no other';

-- Who may read or write images may do so here.
do $do$
declare
    grantee text;
    writes boolean;
begin
    for grantee, writes in
        select case when a.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end,
               bool_or(a.privilege_type = 'INSERT')
        from pg_class c, aclexplode(c.relacl) a
        where c.oid = 'imgsearch.image'::regclass and a.grantee <> c.relowner
            and a.privilege_type in ('SELECT', 'INSERT')
        group by 1
    loop
        execute format('grant select on imgsearch.calibration, imgsearch.duplicate_scan, imgsearch.duplicate_scanned,
            imgsearch.duplicate_pair, imgsearch.duplicate_verdict, imgsearch.cluster to %s', grantee);
        if writes then
            execute format('grant insert, update, delete on imgsearch.duplicate_scan, imgsearch.duplicate_scanned,
                imgsearch.duplicate_pair, imgsearch.duplicate_verdict, imgsearch.cluster to %s', grantee);
        end if;
    end loop;
end $do$;
"""

DOWNGRADE = """
drop table imgsearch.cluster, imgsearch.duplicate_verdict, imgsearch.duplicate_pair, imgsearch.duplicate_scanned,
    imgsearch.duplicate_scan, imgsearch.calibration;
alter table imgsearch.model drop "similar", drop constraint model_near_check;
"""


def upgrade() -> None:
    """Make the tables."""
    op.get_context().config.attributes["run_sql"](UPGRADE)


def downgrade() -> None:
    """Drop the tables."""
    op.get_context().config.attributes["run_sql"](DOWNGRADE)
