"""A repository of each test's own, copied from one that is made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.trust.simulator import Publisher, copied, make_publisher


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    return make_publisher(tmp_path_factory.mktemp("publisher"))


@pytest.fixture
def publisher(template: Publisher, tmp_path: Path) -> Publisher:
    return copied(template, tmp_path / "publisher")
