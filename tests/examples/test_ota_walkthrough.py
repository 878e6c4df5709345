"""The walk-through of updates goes through, with both brokers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra `agent` is not installed")

from edgec.protocol.brokers import find_mosquitto, find_nats

RUN = Path(__file__).parents[2] / "examples/ota_walkthrough/run.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("broker", ["mosquitto", "nats"])
def test_every_step_goes_as_it_should(broker: str) -> None:
    found = find_mosquitto() if broker == "mosquitto" else find_nats()
    if found is None:
        pytest.skip(f"{broker} is not installed")
    done = subprocess.run(
        [sys.executable, str(RUN), "--broker", broker, "--json"], capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["passed"]
    assert len(result["steps"]) == 9
