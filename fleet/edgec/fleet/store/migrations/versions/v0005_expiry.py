"""When certificates of devices end."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the column, and fill it in."""
    op.add_column("credentials", sa.Column("expires_at", sa.Float(), nullable=True))
    fill_in(op.get_bind())


def fill_in(connection: sa.Connection) -> None:
    """Write down when the certificates that there are end."""
    from cryptography import x509

    table = sa.table(
        "credentials", *(sa.column(name) for name in ("fingerprint", "kind", "document", "expires_at"))
    )
    certificates = sa.select(table.c.fingerprint, table.c.document).where(table.c.kind == "certificate")
    for fingerprint, document in connection.execute(certificates).all():
        ends = x509.load_pem_x509_certificate(document.encode()).not_valid_after_utc.timestamp()
        connection.execute(table.update().where(table.c.fingerprint == fingerprint).values(expires_at=ends))


def downgrade() -> None:
    """Remove it."""
    op.drop_column("credentials", "expires_at")
