"""What is installed on a device stays small."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.wheel import wheel_sizes


@pytest.mark.slow
def test_what_a_device_needs_of_the_wheel_is_at_most_a_megabyte(tmp_path: Path) -> None:
    if find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed: pip install --group test")
    whole, of_a_device = wheel_sizes(tmp_path)
    assert 0 < of_a_device < whole
    assert of_a_device <= 1_000_000
