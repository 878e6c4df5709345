"""Run by alembic, which gives the connection in ``config.attributes``."""

from __future__ import annotations

from alembic import context

from edgec.fleet.store._schema import metadata


def run() -> None:
    """Run the steps that are asked for; SQLite's tables are made anew where need be."""
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()


# Alembic gives the module this name; an import by any other does nothing.
if __name__ == "env_py":
    run()
