"""What is installed on a device stays small; what pages need is installed with the fleet."""

from __future__ import annotations

import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.wheel import ROOT, wheel_sizes


@pytest.mark.slow
def test_what_a_device_needs_of_the_wheel_is_at_most_a_megabyte(tmp_path: Path) -> None:
    if find_spec("hatchling") is None:
        pytest.skip("hatchling, which builds the wheel, is not installed: pip install --group test")
    whole, of_a_device = wheel_sizes(tmp_path)
    assert 0 < of_a_device < whole
    assert of_a_device <= 1_000_000
    pages = ROOT / "fleet/edgec/fleet/dashboard"
    files = [f for part in ("templates", "static") for f in (pages / part).rglob("*") if f.is_file()]
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        assert {str(f.relative_to(ROOT / "fleet")) for f in files} <= set(wheel.namelist())
    # Templates, style, scripts and the two libraries of others.
    assert 100_000 < sum(f.stat().st_size for f in files) <= 300_000
