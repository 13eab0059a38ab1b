"""Tables beside live ones, filled and indexed there; functions alone."""

from alembic import op

revision = "0006"
down_revision = "0005"

# The older release knows nothing of a table that is not in its place yet, and what that holds must not be lost.
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
end $$;
"""


def upgrade() -> None:
    """Nothing but functions, which come with every revision."""


def downgrade() -> None:
    """Put what is beside the tables into them."""
    op.get_context().config.attributes["run_sql"](DOWNGRADE)
