"""Tables beside live ones, filled and indexed there; and the index of pgvectorscale."""

from alembic import op

revision = "0006"
down_revision = "0005"

UPGRADE = """
alter table imgsearch.model drop constraint model_index_method_check,
    add constraint model_index_method_check
        check (index_method in ('none', 'hnsw', 'hnsw-binary', 'ivfflat', 'diskann'));
comment on column imgsearch.model.index_wanted is
    'what index build makes: method (hnsw, hnsw-binary, ivfflat, diskann or none), m, ef_construction';
comment on column imgsearch.model.ef_search is
    'how far a search looks: candidates of a graph, of a rough index those measured anew, of ivfflat lists';
"""

# The older release knows nothing of a table that is not in its place yet, and what that holds must not be lost; and
# nothing of the index of pgvectorscale.
DOWNGRADE = """
do $$
declare
    m record;
begin
    for m in select model_id, to_regclass(format('imgsearch.%I', 'embedding_' || slug || '_' || dim)) as live,
                    to_regclass(format('imgsearch.embeddings_%s_aside', model_id)) as aside
             from imgsearch.model loop
        if m.aside is not null and m.live is not null then
            execute format('insert into %s select * from %s on conflict do nothing', m.live, m.aside);
        end if;
        execute format('drop table if exists imgsearch.embeddings_%1$s_aside, imgsearch.embeddings_%1$s_old',
                       m.model_id);
    end loop;
    for m in select c.relname from pg_class c where c.relnamespace = 'imgsearch'::regnamespace
             and c.relkind in ('i', 'I') and not c.relispartition
             and c.relname ~ '^embeddings?_.*_disk(_new|_old)?$' loop
        execute format('drop index imgsearch.%I', m.relname);
    end loop;
end $$;
update imgsearch.model set index_method = 'none', index_parameters = '{}', ef_search = 100
where index_method = 'diskann';
update imgsearch.model set index_wanted = index_wanted || '{"method": "hnsw"}'
where index_wanted ->> 'method' = 'diskann';
alter table imgsearch.model drop constraint model_index_method_check,
    add constraint model_index_method_check check (index_method in ('none', 'hnsw', 'hnsw-binary', 'ivfflat'));
comment on column imgsearch.model.index_wanted is
    'what index build makes: method (hnsw, hnsw-binary, ivfflat or none), m, ef_construction';
comment on column imgsearch.model.ef_search is
    'how far a search looks: candidates of a graph, of bits those that are measured anew, of ivfflat lists';
"""


def upgrade() -> None:
    """Change the table of models; the rest are functions, which come with every revision."""
    op.get_context().config.attributes["run_sql"](UPGRADE)


def downgrade() -> None:
    """Change it back, and put what is beside the tables into them."""
    op.get_context().config.attributes["run_sql"](DOWNGRADE)
