"""Clients that others wrote work unmodified.

Each is in an environment of its own, since they pin what others need newer; together they are 640 MB. They
are made in the folder that EDGEC_CLIENT_ENVS names, and kept there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")

from tests.serving.clients import KSERVE, TRITON

from edgec.artifact import Pipeline
from edgec.runtime.testing import tiny_artifact
from edgec.serving import Server, ServerOptions


def environment(package: str) -> Path:
    """Return the Python of an environment that has a package; make it if need be."""
    folder = os.environ.get("EDGEC_CLIENT_ENVS")
    if not folder:
        pytest.skip("EDGEC_CLIENT_ENVS names no folder for the environments of clients (640 MB)")
    place = Path(folder) / package.partition("[")[0]
    python, done = place / "bin/python", place / "done"
    if not done.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", place], check=True)
        subprocess.run([python, "-m", "pip", "-q", "install", package], check=True)
        done.touch()
    return python


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("package", "program"), [("tritonclient[http]", TRITON), ("kserve", KSERVE)], ids=["triton", "kserve"]
)
def test_a_client_works_unmodified(package: str, program: str, tmp_path: Path) -> None:
    python = environment(package)
    path = tiny_artifact(tmp_path / "tiny.edgec", batch="n", pipeline=Pipeline())
    with Server([path], ServerOptions(port=0, allow_repository_calls=True)) as server:
        result = subprocess.run(
            [python, "-c", program, server.url], capture_output=True, text=True, check=False
        )
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.endswith("done\n")
