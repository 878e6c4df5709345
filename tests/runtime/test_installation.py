"""What is installed, told from the packages' own metadata."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest

from edgec.runtime.installation import Conflict, conflicts, engine_states, requirements

METADATA = """Metadata-Version: 2.1
Name: acme-camera
Version: 2.0
Requires-Dist: numpy (>=99)
Requires-Dist: click<1,>=0.5
Requires-Dist: pytest
Requires-Dist: acme-not-there~=3.1; extra == "lens"
Requires-Dist: acme-gone>=1
Requires-Dist: acme-old; python_version < "3.0"
Requires-Dist: acme-elsewhere; platform_machine == "vax"
Requires-Dist: acme-windows; sys_platform == "win32"
Requires-Dist: acme-everything; extra == "all"
"""


@pytest.fixture(autouse=True)
def camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package whose needs are not met."""
    folder = tmp_path / "acme_camera-2.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text(METADATA)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_each_requirement_says_how_it_stands() -> None:
    found = {r.package: (r.line, r.extra, r.status) for r in requirements("acme-camera")}
    assert found == {
        "numpy": (">=99", None, "too old"),
        "click": (">=0.5,<1", None, "too new"),
        "pytest": ("", None, "ok"),
        "acme-not-there": ("~=3.1", "lens", "missing"),
        "acme-gone": (">=1", None, "missing"),
        "acme-old": ("", None, "not needed"),
        "acme-elsewhere": ("", None, "not needed"),
    }


def test_conflicts_are_what_is_needed_and_not_there_or_another() -> None:
    assert [c for c in conflicts("acme-camera") if c.package == "acme-camera"] == [
        Conflict(package="acme-camera", needs="acme-gone>=1", installed=None),
        Conflict(package="acme-camera", needs="click>=0.5,<1", installed=version("click")),
        Conflict(package="acme-camera", needs="numpy>=99", installed=version("numpy")),
    ]


def test_what_is_not_installed_requires_nothing() -> None:
    assert requirements("acme-not-there") == []
    assert conflicts("acme-not-there") == []


def test_edgec_itself_is_whole() -> None:
    assert {r.extra for r in requirements()} >= {None, "onnxruntime", "openvino", "compiler"}
    assert conflicts() == []


def test_engines_say_where_they_run() -> None:
    found = {state.name: state for state in engine_states()}
    assert found.keys() >= {"onnxruntime", "openvino", "tensorrt"}
    assert found["onnxruntime"].devices == ("CPU",)
    assert "CPU" in found["openvino"].devices
    assert all(state.works or state.problem for state in found.values())
