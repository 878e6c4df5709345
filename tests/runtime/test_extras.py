"""Packages of extras that are installed and do not load: memory is short, a library is missing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest

from edgec.errors import BrokenExtraError, EdgecError, ExtraError, MissingExtraError
from edgec.errors.extras import import_advice, import_failed, needs_extra
from edgec.runtime.annotation import draw
from edgec.runtime.testing import tiny_artifact

NO_GL = "libGL.so.1: cannot open shared object file: No such file or directory"


def test_a_package_that_is_not_there_is_missing() -> None:
    expected = r"it needs 'edgec_none', .* 'edgec\[vision\]'"
    with pytest.raises(MissingExtraError, match=expected) as caught, needs_extra("it", "vision"):
        import_module("edgec_none")
    assert isinstance(caught.value, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ImportError(NO_GL, name="cv2"),
            "needs 'cv2', which is installed .* system's library libGL.so.1, libgl1",
        ),
        (ImportError("cv2.abi3.so: failed to map segment from shared object"), "too little memory"),
        (ImportError("libx.so: cannot allocate memory in static TLS block"), "too little memory"),
        (MemoryError(), "MemoryError; the process has too little memory"),
        (ModuleNotFoundError("no C extension"), "a package of 'edgec.vision.'.* --force-reinstall"),
        (OSError("sndfile library not found"), "a package of 'edgec.vision.'.* --force-reinstall"),
        (
            ImportError("numpy.core.multiarray failed to import", name="cv2"),
            "--force-reinstall 'edgec.vision.'",
        ),
    ],
)
def test_a_package_that_does_not_load_is_broken_and_says_what_to_do(
    error: ImportError | OSError | MemoryError, expected: str
) -> None:
    with (
        pytest.raises(BrokenExtraError, match=f"drawing .*{expected}") as caught,
        needs_extra("drawing", "vision"),
    ):
        raise error
    assert caught.value.__cause__ is error
    assert not isinstance(caught.value, ModuleNotFoundError)
    assert caught.value.extra == "vision"


def test_other_errors_and_errors_of_an_extra_stay_as_they_are() -> None:
    with pytest.raises(KeyError), needs_extra("it", "vision"):
        raise KeyError
    inner = MissingExtraError("inner", "tokenizers", "text")
    assert import_failed("outer", inner, "vision") is inner
    with pytest.raises(MissingExtraError) as caught, needs_extra("outer", "vision"):
        raise inner
    assert caught.value is inner
    assert inner.__cause__ is None
    assert isinstance(inner, EdgecError | ExtraError)
    assert import_advice(ImportError("else"), "do this") == "do this"


def broken(folder: Path, module: str, error: str) -> Path:
    (folder / module).mkdir(parents=True)
    (folder / module / "__init__.py").write_text(f"raise {error}\n")
    return folder


def test_opencv_that_does_not_load_is_one_line_wherever_it_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(tmp_path, "cv2", f"ImportError({NO_GL!r}, name='cv2')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "cv2", raising=False)
    with pytest.raises(BrokenExtraError, match="drawing on images needs 'cv2'"):
        draw(np.zeros((4, 4, 3), np.uint8), {"boxes": np.zeros((0, 4))})


@pytest.mark.parametrize(
    ("module", "arguments", "status"),
    [
        (
            "cv2",
            ["stream", "ARTIFACT", "--source", "rtsp://127.0.0.1:9/x"],
            "video needs 'cv2', which is installed",
        ),
        (
            "onnxruntime",
            ["verify", "ARTIFACT"],
            "cannot be imported .* install the system's library libGL.so.1",
        ),
    ],
)
def test_a_command_says_it_in_one_line(
    tmp_path: Path, module: str, arguments: list[str], status: str
) -> None:
    artifact = tiny_artifact(tmp_path / "tiny.edgec")
    folder = broken(tmp_path / "broken", module, f"ImportError({NO_GL!r}, name={module!r})")
    words = [str(artifact) if a == "ARTIFACT" else a for a in arguments]
    done = subprocess.run(
        [sys.executable, "-c", "from edgec.cli import main; main()", *words],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert re.search(status, done.stderr), done.stderr


@pytest.mark.parametrize("error", ["ImportError('numpy is too old')", "OSError('not a library')"])
def test_the_compiler_says_so_of_errors_without_a_name_too(tmp_path: Path, error: str) -> None:
    pytest.importorskip("onnx", reason="needs the extra 'compiler'")
    folder = broken(tmp_path, "onnxruntime", error)
    code = (
        "from edgec.errors import BrokenExtraError\n"
        "import edgec.compiler\n"
        "try:\n"
        "    edgec.compiler.compile_model\n"
        "except BrokenExtraError as e:\n"
        "    print(e)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "edgec.compiler needs a package of 'edgec[compiler]', which is installed" in done.stdout, (
        done.stderr
    )
