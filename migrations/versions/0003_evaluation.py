"""Evaluations, kept so that they can be compared over time."""

from alembic import op

revision = "0003"
down_revision = "0002"

UPGRADE = """
create table imgsearch.evaluation_run (
    evaluation_id bigint generated always as identity primary key,
    protocol text not null,
    data text not null,
    model text not null,
    fingerprint text,
    options jsonb not null default '{}',
    questions integer not null,
    figures jsonb not null,
    numbers jsonb not null default '{}',
    notes jsonb not null default '[]',
    images_per_second double precision,
    query_ms double precision,
    evaluated_at timestamptz not null default now(),
    evaluated_by name not null default session_user
);
create index evaluation_run_same on imgsearch.evaluation_run (protocol, data, model);
comment on table imgsearch.evaluation_run is 'how good a model was by a protocol: each figure with value, low and high '
    'of its 95% interval; models by name and fingerprint, so that runs outlive them';

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
        execute format('grant select on imgsearch.evaluation_run to %s', grantee);
        if writes then
            execute format('grant insert, update, delete on imgsearch.evaluation_run to %s', grantee);
        end if;
    end loop;
end $do$;
"""

DOWNGRADE = """
drop table imgsearch.evaluation_run;
"""


def upgrade() -> None:
    """Make the table."""
    op.get_context().config.attributes["run_sql"](UPGRADE)


def downgrade() -> None:
    """Drop the table."""
    op.get_context().config.attributes["run_sql"](DOWNGRADE)
