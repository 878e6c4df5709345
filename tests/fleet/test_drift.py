"""Drift against the calibration data of an artifact: told of enough values, and of nothing less."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the store needs the extra 'fleet'")
pytest.importorskip("scipy", reason="the store needs the extra 'fleet'")
pytest.importorskip("cbor2", reason="the store needs the extra 'fleet'")

from sqlalchemy import update
from tests.fleet.talkers import telemetry, window
from tests.runtime.test_observe import doubling

from edgec.artifact import Observation
from edgec.device_agent import encode_window
from edgec.fleet.drift import measure_drift
from edgec.fleet.store import DriftRow, Store
from edgec.fleet.store._schema import artifacts
from edgec.protocol import ModelWindow
from edgec.runtime import ObserveOptions, load
from edgec.sketch import Histogram, reference_bins

pytestmark = pytest.mark.slow
NOW = 1_790_000_000.0
DIGEST = "a" * 64
RANKS = [i / 20 for i in range(1, 20)]
# Of the standard normal distribution.
REFERENCE = {str(rank): NormalDist().inv_cdf(rank) for rank in RANKS}


@pytest.fixture
def fleet(store: Store) -> Store:
    row = {
        "sha256": DIGEST, "model": "m", "version": "1", "number": 1, "target": "cpu", "path": "m/1",
        "length": 1, "content_digest": "c", "reference": {"y": REFERENCE}, "report": None, "uploaded_at": NOW,
        "uploaded_by": "ann", "override": None, "input_reference": {"x": {"mean": REFERENCE}},
    }  # fmt: skip
    with store.database.write() as connection:
        connection.execute(artifacts.insert(), row)
    for name, hardware in (("d1", "cpu"), ("d2", "cpu"), ("n1", "npu")):
        store.devices.enrol(name, hardware, now=NOW, actor="ann")
    return store


def tell(
    store: Store, device: str, seq: int, n: int, *, moved: float = 0.0, hour: int = 0, model: str = "m",
    kind: str = "output",
) -> None:  # fmt: skip
    """Let a device say what a model has put out, or taken in, in an hour before now."""
    values = np.random.default_rng(100 + seq).normal(moved, 1.0, n)
    counted = Histogram(reference_bins(REFERENCE)[0])
    counted.add_many(values)
    part = window(n, model=model, since=NOW - 3600 * hour)
    of_outputs, of_inputs = {"y": counted.to_bytes()}, {"x/mean": counted.to_bytes()}
    part = replace(part, outputs=of_outputs) if kind == "output" else replace(part, input_bins=of_inputs)
    store.telemetry.ingest([(device, telemetry(seq, part))], NOW)


def now_of(rows: list[DriftRow]) -> list[DriftRow]:
    return [row for row in rows if row.hour == int(NOW // 3600)]


def test_what_has_not_moved_is_near_zero_and_what_has_is_told(fleet: Store) -> None:
    for seq, (device, moved) in enumerate([("d1", 0.0), ("d2", 0.0), ("n1", 0.5)]):
        tell(fleet, device, seq, 2000, moved=moved)
    same, other = now_of(measure_drift(fleet, NOW))
    assert (same.hardware, same.n, same.hours) == ("cpu", 4000, 1)
    # Less its bias, it is around zero.
    assert abs(same.psi) < 0.0075
    assert same.ks < 0.03
    assert (other.hardware, other.n) == ("npu", 2000)
    assert other.psi == pytest.approx(0.25, abs=0.08)
    assert other.ks == pytest.approx(0.198, abs=0.03)
    assert fleet.drift.newest(NOW) == [same, other]
    assert fleet.drift.history("m", since=NOW, until=NOW) == [same, other]


def test_inputs_that_have_moved_are_told_apart_from_outputs_that_have_not(fleet: Store) -> None:
    for seq, (device, moved, kind) in enumerate(
        [("d1", 0.0, "output"), ("d1", 0.0, "input"), ("n1", 0.0, "output"), ("n1", 0.5, "input")]
    ):
        tell(fleet, device, seq, 999, moved=moved, kind=kind)
        tell(fleet, device, 10 + seq, 1, moved=moved, kind=kind)
    found = now_of(measure_drift(fleet, NOW))
    assert [(r.hardware, r.kind, r.output, r.n) for r in found] == [
        ("cpu", "input", "x/mean", 1000), ("cpu", "output", "y", 1000),
        ("npu", "input", "x/mean", 1000), ("npu", "output", "y", 1000),
    ]  # fmt: skip
    assert [r.psi > 0.15 and r.ks > 0.1 for r in found] == [False, False, True, False]
    # Nobody asks for those of a device, whose rows are read by the gate.
    (of_device,) = fleet.telemetry.device("d1", "m", since=NOW, until=NOW).values()
    assert (sorted(of_device.outputs), of_device.inputs) == (["y"], {})
    assert fleet.drift.newest(NOW) == fleet.drift.history("m", since=NOW, until=NOW) == found


def test_inputs_are_measured_over_a_day_since_they_follow_it(fleet: Store) -> None:
    # Dark by night, bright by day: each for itself has moved, and both together have not.
    for seq, (hour, moved) in enumerate([(14, -1.0), (1, 1.0)]):
        tell(fleet, "d1", seq, 1500, moved=moved, hour=hour, kind="input")
        tell(fleet, "d1", 10 + seq, 1500, moved=moved, hour=hour)
    inputs, outputs = (
        next(r for r in measure_drift(fleet, NOW) if r.kind == kind) for kind in ("input", "output")
    )
    assert (inputs.n, inputs.hours, outputs.n, outputs.hours) == (3000, 14, 1500, 1)
    assert inputs.ks < outputs.ks / 2
    # The same hours of the day before: it has been seen for a day, but not by so few.
    for seq, n, hours in ((20, 149, 14), (21, 2, 24)):
        tell(fleet, "d1", seq, n, moved=1.0, hour=25, kind="input")
        inputs = next(r for r in measure_drift(fleet, NOW) if r.kind == "input")
        assert (inputs.n, inputs.hours) == (3000, hours)


def test_an_input_and_an_output_of_the_same_name_have_figures_of_their_own(fleet: Store) -> None:
    row = DriftRow(
        model="m", digest="a" * 16, hardware="cpu", output="x/mean", hour=7, hours=1, n=1000, psi=0.0, ks=0.0
    )
    rows = [replace(row, kind="input", psi=0.5), row]
    fleet.drift.write(rows)
    fleet.drift.write(rows)
    assert fleet.drift.history("m", since=0, until=NOW) == rows


def test_nothing_is_said_of_fewer_than_a_thousand_values(fleet: Store) -> None:
    tell(fleet, "d1", 0, 999, moved=3.0)
    assert measure_drift(fleet, NOW) == []
    tell(fleet, "d2", 0, 1, moved=3.0)
    (row,) = measure_drift(fleet, NOW)
    assert (row.n, row.ks > 0.8) == (1000, True)


def test_hours_with_few_values_are_measured_with_those_before(fleet: Store) -> None:
    for hour in range(26):
        tell(fleet, "d1", hour, 300, hour=hour)
    (row,) = now_of(measure_drift(fleet, NOW))
    assert (row.n, row.hours) == (1200, 4)
    # It is written again, not twice.
    tell(fleet, "d2", 0, 300)
    (row,) = now_of(measure_drift(fleet, NOW))
    assert (row.n, row.hours) == (1200, 3)
    assert len(fleet.drift.history("m", since=NOW, until=NOW)) == 1
    assert fleet.drift.prune(NOW + 500 * 86400) == 3


def test_other_models_edges_and_old_values_are_left_alone(fleet: Store) -> None:
    tell(fleet, "d1", 0, 2000, model="unknown")
    other = Histogram([0.0])
    other.add_many(np.zeros(5000))
    part = replace(window(5000, since=NOW), outputs={"y": other.to_bytes(), "z": other.to_bytes()})
    fleet.telemetry.ingest([("d1", telemetry(1, part))], NOW)
    tell(fleet, "d1", 2, 5000, hour=20)
    assert measure_drift(fleet, NOW) != []
    assert measure_drift(fleet, NOW + 30 * 3600) == []


def test_a_reference_without_values_is_passed_over(fleet: Store) -> None:
    with fleet.database.write() as connection:
        connection.execute(update(artifacts).values(reference={"z": {}}))
    tell(fleet, "d1", 0, 2000, kind="input")
    assert [row.output for row in measure_drift(fleet, NOW)] == ["x/mean"]


def test_inputs_of_a_real_session_that_move_are_found_by_the_fleet(fleet: Store, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    # Of means of a thousand values, which have a deviation of 1 / sqrt(1000).
    quantiles = {rank: value / 1000**0.5 for rank, value in REFERENCE.items()}
    path = doubling(
        tmp_path / "a.edgec", size=1000, observe=Observation(inputs={"x": ("mean", "std")}),
        input_reference={"x": {"mean": quantiles}},
    )  # fmt: skip
    with fleet.database.write() as connection:
        connection.execute(update(artifacts).values(input_reference={"x": {"mean": quantiles}}))
    random = np.random.default_rng(0)
    with load(path) as session:
        observer = session.observe(ObserveOptions(max_share=math.inf))
        for seq, (device, moved) in enumerate([("d1", 0.0), ("n1", 0.05)]):
            for _ in range(1000):
                session.run({"x": (random.standard_normal((1, 1000)) + moved).astype(np.float32)})
            # The agent names the file, by which the fleet knows it, not the content.
            seen = replace(observer.take(), artifact=f"sha256:{DIGEST}", since=NOW)
            part = ModelWindow.from_bytes(encode_window("m", seen))
            fleet.telemetry.ingest([(device, telemetry(seq, part))], NOW)
    same, other = now_of(measure_drift(fleet, NOW))
    assert [(r.hardware, r.kind, r.output, r.n) for r in (same, other)] == [
        ("cpu", "input", "x/mean", 1000), ("npu", "input", "x/mean", 1000)
    ]  # fmt: skip
    assert same.psi < 0.05
    assert other.psi > 1
    assert other.ks > 0.4
