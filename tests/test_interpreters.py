"""What a device carries runs on every Python from 3.10, JetPack 6's own, to 3.13.

For each interpreter that is asked for and installed here, its device tests run in a virtual environment of
its own, ``.venv-3.10`` and so on, which is made once and kept while ``pyproject.toml`` stays as it is. With
EDGEC_INTERPRETERS, of ``make test-interpreters``, all run on each that it names; without, each of them runs
once on the oldest, with the first of its parameters: what a Python lacks is missed by any.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ASKED_FOR = os.environ.get("EDGEC_INTERPRETERS", "").split()
DEVICE_TESTS = [
    *("tests/sketch", "tests/targets", "tests/artifact", "tests/runtime", "tests/conformance"),
    *("tests/protocol", "tests/trust", "tests/delta", "tests/device_agent"),
]
EXTRAS = "onnxruntime,openvino,litert,vision,text,agent"


def candidates(version: str) -> Iterator[Path]:
    """Yield where an interpreter may be: on the path, and where pyenv and uv put them."""
    if found := shutil.which(f"python{version}"):
        yield Path(found)
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))
    yield from sorted(Path.home().glob(f".local/share/uv/python/cpython-{version}.*/bin/python{version}"))


def find_interpreter(version: str) -> Path | None:
    """Return an interpreter of a version that starts; a shim may stand for one that is not there."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    for path in candidates(version):
        result = subprocess.run([path, "-c", code], capture_output=True, text=True, check=False)
        if result.returncode == 0 and result.stdout.strip() == version:
            return path
    return None


def environment(version: str, interpreter: Path) -> Path:
    """Return the Python of a virtual environment with what a device has, and what its tests need."""
    folder = ROOT / f".venv-{version}"
    python, made_from = folder / "bin/python", folder / "made-from"
    digest = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + EXTRAS.encode()).hexdigest()
    if python.exists() and made_from.exists() and made_from.read_text() == digest:
        return python
    # With the pip that is here: to give each environment one of its own, and then a newer one, takes a while.
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    run([interpreter, "-m", "venv", "--clear", "--without-pip", folder])
    run([*pip, "-q", "install", "-e", f".[{EXTRAS}]", "--group", "test"])
    made_from.write_text(digest)
    return python


def run(command: list[str | Path]) -> None:
    """Run a command in the repository; fail with the end of what it said."""
    names = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTEST_ADDOPTS")
    clean = {key: value for key, value in os.environ.items() if key not in names}
    result = subprocess.run(command, cwd=ROOT, env=clean, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        pytest.fail(f"{command}\n{result.stdout[-6000:]}\n{result.stderr[-3000:]}", pytrace=False)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("version", ASKED_FOR or ["3.10"])
def test_device_tests_pass_on_every_interpreter(version: str) -> None:
    if version == f"{sys.version_info[0]}.{sys.version_info[1]}":
        pytest.skip("this very interpreter runs all tests")
    interpreter = find_interpreter(version)
    if interpreter is None:
        pytest.skip(f"Python {version} is not installed")
    python = environment(version, interpreter)
    few = [] if ASKED_FOR else ["--once"]
    run([python, "-m", "pytest", "-q", "-m", "not slow and not models", *few, *DEVICE_TESTS])
