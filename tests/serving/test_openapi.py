"""The server against its own description, by schemathesis."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("schemathesis", reason="needs schemathesis: pip install --group test")

from edgec.runtime.testing import tiny_artifact
from edgec.serving import Server, ServerOptions


@pytest.mark.slow
def test_the_server_never_fails_on_what_its_description_allows(tmp_path: Path) -> None:
    path = tiny_artifact(tmp_path / "tiny.edgec", batch="n")
    with Server([path], ServerOptions(port=0)) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json"]
        command += ["--checks", "not_a_server_error,status_code_conformance,content_type_conformance"]
        result = subprocess.run(
            [*command, "--max-examples", "8", "--seed", "1"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-1000:]
