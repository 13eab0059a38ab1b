"""Models declared before they are loaded, and how their index shall look."""

from alembic import op

revision = "0004"
down_revision = "0003"

UPGRADE = """
alter table imgsearch.model alter fingerprint drop not null,
    add index_wanted jsonb not null default '{"method": "hnsw", "m": 16, "ef_construction": 64}';
update imgsearch.model set fingerprint = null where fingerprint = '';
comment on column imgsearch.model.fingerprint is 'weights, preprocessing, output; null until the model is loaded first';
comment on column imgsearch.model.index_wanted is 'what index build makes: method (hnsw or none), m, ef_construction';
"""

# A model that was never loaded is nothing that the older release could use.
DOWNGRADE = """
update imgsearch.model set fingerprint = '' where fingerprint is null;
alter table imgsearch.model alter fingerprint set not null, drop index_wanted;
comment on column imgsearch.model.fingerprint is null;
"""


def upgrade() -> None:
    """Change the table."""
    op.get_context().config.attributes["run_sql"](UPGRADE)


def downgrade() -> None:
    """Change it back."""
    op.get_context().config.attributes["run_sql"](DOWNGRADE)
