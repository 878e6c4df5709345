"""What tests of several modules are given."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.device_agent.followed import Device, device


@pytest.fixture
def here() -> Iterator[Device]:
    """A directory of models and a socket, without an agent."""
    with device() as made:
        yield made
