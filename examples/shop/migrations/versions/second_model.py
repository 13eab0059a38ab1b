"""Another model beside it, with a denser index, as ``pgimgsearch db revision`` writes it."""

from alembic import op

revision = "second_model"
down_revision = "first_model"


def upgrade() -> None:
    """Declare it, and request for its index; ``models fill`` and ``index build`` do the work beside the traffic."""
    op.add_embedding_model(
        "pdq",
        dim=256,
        backend="pdq",
        checkpoint="pdqhash",
        output="hash",
        storage="bit",
        near=0.87890625,
        licence="BSD-3-Clause",
    )
    op.set_index("pdq", m=24, ef_construction=96)


def downgrade() -> None:
    """Its vectors and its index go."""
    op.drop_embedding_model("pdq")
