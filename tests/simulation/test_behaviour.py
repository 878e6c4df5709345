"""What artifacts declare of their calls, and what is drawn from it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgec.artifact import Artifact
from edgec.simulation import (
    HEALTHY,
    POISONED,
    POISONS,
    Behaviour,
    BehaviourError,
    Poison,
    SimulationError,
    SimulationSettings,
    make_release,
)
from edgec.simulation._drawing import Chance, draw_window, read_declared


@pytest.mark.parametrize("kind", [None, *POISONS])
def test_a_release_declares_how_it_does(kind: str | None, tmp_path: Path) -> None:
    path = make_release(tmp_path / "1.edgec", "1", target="cpu-x86_64", poison=kind)
    declared = read_declared(path)
    assert declared.behaviour == POISONED.get(kind or "", HEALTHY)
    with Artifact.open(path) as artifact:
        artifact.verify()
        assert artifact.report is None  # nothing was compiled, and nothing pretends to have been
        assert artifact.content_digest == declared.digest


def test_versions_differ_and_the_same_one_is_the_same_bytes(tmp_path: Path) -> None:
    one, again, two = (
        make_release(tmp_path / f"{name}.edgec", version, target="cpu-x86_64").read_bytes()
        for name, version in (("a", "1"), ("b", "1"), ("c", "2"))
    )
    assert one == again
    assert one != two


def test_a_poison_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BehaviourError, match="expected a poison of crashes, slow"):
        make_release(tmp_path / "1.edgec", "1", target="cpu-x86_64", poison="rust")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "is no JSON"),
        (b"[]", "must hold an object"),
        (b'{"speed": 3}', "'speed' is unknown"),
        (b'{"latency_ms": "fast"}', "latency_ms must be a number"),
        (b'{"errors": true}', "errors must be a number"),
        (b'{"classes": [1, null]}', "classes must be numbers"),
        (b'{"errors": 2, "latency_ms": 0}', "errors must be from 0 to 1; latency_ms"),
        (b'{"classes": []}', "classes must be 1 to 1000 weights"),
        (b'{"classes": [0, 0]}', "not all 0"),
        (b"[" * 50_000, "is no JSON"),
        (b'{"latency_ms": 1' + b"0" * 400 + b"}", "latency_ms must be above 0"),
        (b'{"latency_ms": NaN}', "latency_ms must be above 0"),
    ],
)
def test_what_cannot_be_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(BehaviourError, match=message):
        Behaviour.from_json(data)


def test_a_behaviour_comes_back_as_it_was() -> None:
    for behaviour in (HEALTHY, *POISONED.values()):
        assert Behaviour.from_json(behaviour.to_json()) == behaviour
    assert Behaviour.from_json(json.dumps({"collapse": 0.5}).encode()).collapse == 0.5


def test_the_same_chance_draws_the_same_window(tmp_path: Path) -> None:
    declared = read_declared(make_release(tmp_path / "1.edgec", "1", target="cpu-x86_64"))
    windows = [
        draw_window(declared, Chance(3, "dev-7"), since=10.0, seconds=20.0, calls_per_s=50) for _ in range(2)
    ]
    other = draw_window(declared, Chance(3, "dev-8"), since=10.0, seconds=20.0, calls_per_s=50)
    assert windows[0].latency_ms == windows[1].latency_ms
    assert windows[0].classes == windows[1].classes
    assert other.classes != windows[0].classes
    assert (windows[0].artifact, windows[0].model_version) == (declared.digest, "1")
    # All devices of a model have the same edges, or their windows would not add up.
    assert windows[0].merge(other).calls == windows[0].calls + other.calls


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_inputs_are_drawn_where_the_artifact_says_what_they_usually_are(tmp_path: Path, shift: float) -> None:
    path = make_release(tmp_path / "1.edgec", "1", target="cpu-x86_64")
    usual = {"image": {"mean": {"0.25": -1.0, "0.5": 0.0, "0.75": 1.0}}}
    assert read_declared(path).input_reference == {}
    declared = replace(
        read_declared(path), input_reference=usual, behaviour=replace(HEALTHY, input_shift=shift)
    )
    drawn = draw_window(declared, Chance(1, "d"), since=0, seconds=100, calls_per_s=20)
    assert 0 < drawn.input_bins["image"]["mean"].count <= drawn.sampled
    assert (drawn.input_drift(usual)["image"]["mean"] > 0.25) is bool(shift)


def test_poisons_show_in_what_is_drawn(tmp_path: Path) -> None:
    def window(kind: str | None) -> tuple[float, float, float, float]:
        path = make_release(tmp_path / "x.edgec", "1", target="cpu-x86_64", poison=kind)
        drawn = draw_window(read_declared(path), Chance(1, "d"), since=0, seconds=100, calls_per_s=20)
        assert drawn.confidence is not None
        sure = drawn.confidence.counts[-5:].sum() / drawn.confidence.count
        first = drawn.classes.get(0, 0) / sum(drawn.classes.values())
        return drawn.latency_ms.quantile(0.95), drawn.non_finite / drawn.sampled, float(sure), first

    sound = window(None)
    assert window("slow")[0] > 1.7 * sound[0]
    assert window("nan")[1] > 0.05 > sound[1]
    assert window("low_confidence")[2] < 0.5 * sound[2]
    assert window("wrong_outputs")[3] > 0.4 > sound[3]


def test_a_release_that_is_bad_on_some_devices_is_sound_on_others() -> None:
    bad = Behaviour(errors=0.5, afflicted=0.3)
    lucks = [Chance(1, f"d{number}").luck("sha256:1") for number in range(2000)]
    assert 0.25 < np.mean([bad.of_device(luck) == bad for luck in lucks]) < 0.35


@pytest.mark.parametrize("text", ["rust", "slow:0", "slow:2", "slow:half", ":0.5", ""])
def test_a_poison_of_the_command_line_is_checked(text: str) -> None:
    with pytest.raises(SimulationError, match="expected"):
        Poison.parse(text)
    assert Poison.parse("slow:0.25") == Poison(kind="slow", share=0.25)


def test_settings_that_cannot_be_are_refused_all_at_once() -> None:
    with pytest.raises(SimulationError, match=r"calls_per_s .*; window_s"):
        SimulationSettings(calls_per_s=-1, window_s=0)
