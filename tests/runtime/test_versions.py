"""Version lines of engines."""

from __future__ import annotations

import pytest

from edgec.errors import ManifestError
from edgec.runtime.backends._versions import is_in_line

IN = [
    ("1.23.2", ""),
    ("1.23.2", ">=1.23"),
    ("1.23.2", ">=1.23,<2"),
    ("1.23", ">=1.23.0"),
    ("1.23.0", "==1.23"),
    ("1.23.2", "==1.23.*"),
    ("1.24.0", "!=1.23.*"),
    ("1.23.2", "~=1.23.1"),
    ("1.31.1", "~=1.23"),
    ("10.3.0", ">=9"),
    ("2026.4.1-22982-e213a147257-releases/2026/4", ">=2026.2,<2027"),
    ("1.23.2+cpu", " >= 1.23 , < 1.24 "),
    ("1.24.0.dev20251001", ">=1.24"),
]
OUT = [
    ("1.22.9", ">=1.23"),
    ("2.0", ">=1.23,<2"),
    ("1.23.2", ">1.23.2"),
    ("1.3", ">=1.23"),
    ("1.24.0", "~=1.23.1"),
    ("2.0", "~=1.23"),
    ("1.24", "==1.23.*"),
    ("1.23.5", "!=1.23.*"),
    ("", ">=1"),
]


@pytest.mark.parametrize(("version", "line"), IN)
def test_versions_in_a_line(version: str, line: str) -> None:
    assert is_in_line(version, line)


@pytest.mark.parametrize(("version", "line"), OUT)
def test_versions_outside_of_a_line(version: str, line: str) -> None:
    assert not is_in_line(version, line)


@pytest.mark.parametrize(("version", "line"), [*IN, *OUT])
def test_packaging_says_the_same(version: str, line: str) -> None:
    specifiers = pytest.importorskip("packaging.specifiers")
    release = version.partition("-")[0].partition(".dev")[0]
    if not release:
        pytest.skip("packaging knows no empty version")
    assert (release in specifiers.SpecifierSet(line)) == is_in_line(version, line)


@pytest.mark.parametrize(
    "line", ["1.23", "=>1", ">=", ">=1.x", ">=1;<2", "~=1", ">=1.*", ">=1.2rc1", ">=" + "9" * 5000]
)
def test_what_is_no_line_is_refused(line: str) -> None:
    with pytest.raises(ManifestError, match="version line such as"):
        is_in_line("1.0", line)
