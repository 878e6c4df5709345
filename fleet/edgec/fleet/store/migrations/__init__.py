"""How the tables came to be what they are: alembic's environment, and one module per step in `versions`."""
