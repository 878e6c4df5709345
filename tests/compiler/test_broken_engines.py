"""Engines that are installed and do not load, as the compiler meets them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgec.compiler.converters import get_converter
from edgec.compiler.engines import find_judge
from edgec.errors import BrokenExtraError, ConversionError


@pytest.fixture
def broken_openvino(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let the import of OpenVINO, and of what edgec has for it, begin anew and fail."""
    (tmp_path / "openvino.py").write_text(f"raise {request.param}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in list(sys.modules):
        if "openvino" in name.split("."):
            monkeypatch.delitem(sys.modules, name)


FAILURES = pytest.mark.parametrize(
    ("broken_openvino", "told"),
    [
        ("ImportError('libtbb.so.12: cannot open shared object file')", "libtbb.so.12"),
        ("OSError('libtbb.so.12: cannot open shared object file')", "library libtbb.so.12"),
        ("MemoryError", "MemoryError.* too little memory"),
        ("ModuleNotFoundError('no C extension')", "no C extension"),
    ],
    indirect=["broken_openvino"],
)


@FAILURES
@pytest.mark.usefixtures("broken_openvino")
def test_a_converter_says_that_its_engine_does_not_load(told: str) -> None:
    with pytest.raises(ConversionError, match=rf"for openvino cannot import its engine \(.*{told}"):
        get_converter("openvino")


@FAILURES
@pytest.mark.usefixtures("broken_openvino")
def test_a_judge_that_does_not_load_is_told(told: str) -> None:
    with pytest.raises(BrokenExtraError, match=rf"verdict of openvino needs .* does not load: .*{told}"):
        find_judge("openvino")
