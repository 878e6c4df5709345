"""Every test that asks for a `store` runs on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from edgec.fleet.store import Store


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a PostgreSQL cluster without a database."""
    pytest.importorskip("psycopg", reason="PostgreSQL needs the extra 'postgres'")
    from tests.fleet.databases import running_cluster

    with running_cluster(tmp_path_factory.mktemp("postgresql")) as url:
        yield url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an empty database."""
    if request.param == "sqlite":
        return str(tmp_path / "fleet.db")
    from tests.fleet.databases import make_database

    return make_database(request.getfixturevalue("postgresql"))


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    """An empty store."""
    pytest.importorskip("sqlalchemy", reason="the store needs the extra 'fleet'")
    from edgec.fleet.store import Store

    opened = Store(url)
    yield opened
    opened.close()
