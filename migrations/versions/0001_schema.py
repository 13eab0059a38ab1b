"""The schema: collections, images, models, cached texts, runs, duplicates, clusters and evaluations.

Until the first release there is this one revision, which later work extends.
"""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None

DROP_TABLES = """
drop type imgsearch._request, imgsearch.duplicate, imgsearch.match;
drop table imgsearch.evaluation_run, imgsearch.cluster, imgsearch.duplicate_verdict, imgsearch.duplicate_pair,
    imgsearch.duplicate_scanned, imgsearch.duplicate_scan, imgsearch.calibration, imgsearch.ingest_failure,
    imgsearch.ingest_run, imgsearch.text_embedding, imgsearch.alias_history, imgsearch.alias, imgsearch.canary,
    imgsearch.reduction, imgsearch.model, imgsearch.image, imgsearch.content_claim, imgsearch.content,
    imgsearch.collection;
"""


def upgrade() -> None:
    """Create types and tables."""
    op.get_context().config.attributes["run_sql"](Path(__file__).with_suffix(".sql").read_text())


def downgrade() -> None:
    """Drop them."""
    op.get_context().config.attributes["run_sql"](DROP_TABLES)
