"""Indexes of bits and of lists, and tables in partitions."""

from alembic import op

revision = "0005"
down_revision = "0004"

UPGRADE = """
alter table imgsearch.model drop constraint model_index_method_check,
    add constraint model_index_method_check check (index_method in ('none', 'hnsw', 'hnsw-binary', 'ivfflat')),
    add partitions integer not null default 1 check (partitions between 1 and 64);
comment on column imgsearch.model.partitions is 'hash partitions of its table';
update imgsearch.model m  -- a table that stayed in partitions over a downgrade
set partitions = greatest(1, (select count(*) from pg_partition_tree(m.embeddings) t where t.isleaf));
comment on column imgsearch.model.index_wanted is
    'what index build makes: method (hnsw, hnsw-binary, ivfflat or none), m, ef_construction';
comment on column imgsearch.model.index_parameters is
    'what the index was built with, the rows of then, and the recall as measured last';
comment on column imgsearch.model.ef_search is
    'how far a search looks: candidates of a graph, of bits those that are measured anew, of ivfflat lists';
"""

# The older release knows one method; what another has built is none to it, and would only cost those who write.
DOWNGRADE = """
do $$
declare
    m record;
    bits regprocedure;
begin
    for m in select model_id, slug, dim from imgsearch.model where index_method not in ('none', 'hnsw') loop
        execute format('drop index if exists imgsearch.%I', 'embedding_' || m.slug || '_' || m.dim || '_bits');
        execute format('drop index if exists imgsearch.%I', 'embedding_' || m.slug || '_' || m.dim || '_ivf');
        for bits in select p.oid::regprocedure from pg_proc p where p.pronamespace = 'imgsearch'::regnamespace
                        and p.proname ~ format('^_bits_%s_[0-9]+$', m.model_id) loop
            execute format('drop function %s', bits);
        end loop;
        update imgsearch.model x set index_method = 'none', index_parameters = '{}', ef_search = 100
        where x.model_id = m.model_id;
    end loop;
end $$;
update imgsearch.model set index_wanted = index_wanted || '{"method": "hnsw"}'
where index_wanted ->> 'method' not in ('none', 'hnsw');
alter table imgsearch.model drop constraint model_index_method_check,
    add constraint model_index_method_check check (index_method in ('none', 'hnsw')), drop partitions;
comment on column imgsearch.model.index_wanted is 'what index build makes: method (hnsw or none), m, ef_construction';
comment on column imgsearch.model.index_parameters is null;
comment on column imgsearch.model.ef_search is null;
"""


def upgrade() -> None:
    """Change the table."""
    op.get_context().config.attributes["run_sql"](UPGRADE)


def downgrade() -> None:
    """Change it back."""
    op.get_context().config.attributes["run_sql"](DOWNGRADE)
