"""Drift of inputs, beside that of outputs."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
_KEY = ["model", "digest", "hardware", "output", "hour"]


def upgrade() -> None:
    """Make the columns; figures that there are are of outputs."""
    op.add_column(
        "artifacts", sa.Column("input_reference", sa.JSON(), nullable=False, server_default=sa.text("'{}'"))
    )
    with op.batch_alter_table("drift") as table:
        table.add_column(sa.Column("kind", sa.String(length=8), nullable=False, server_default="output"))
        table.drop_constraint("pk_drift", type_="primary")
        table.create_primary_key("pk_drift", ["kind", *_KEY])


def downgrade() -> None:
    """Remove them, and figures of inputs."""
    op.execute("DELETE FROM drift WHERE kind <> 'output'")
    with op.batch_alter_table("drift") as table:
        table.drop_constraint("pk_drift", type_="primary")
        table.drop_column("kind")
        table.create_primary_key("pk_drift", _KEY)
    op.drop_column("artifacts", "input_reference")
