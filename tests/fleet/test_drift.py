"""Drift against the calibration data of an artifact: told of enough values, and of nothing less."""

from __future__ import annotations

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest

pytest.importorskip("sqlalchemy", reason="the store needs the extra 'fleet'")
pytest.importorskip("scipy", reason="the store needs the extra 'fleet'")
pytest.importorskip("cbor2", reason="the store needs the extra 'fleet'")

from tests.fleet.talkers import telemetry, window

from edgec.fleet.drift import measure_drift
from edgec.fleet.store import DriftRow, Store
from edgec.fleet.store._schema import artifacts
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
        "uploaded_by": "ann", "override": None,
    }  # fmt: skip
    with store.database.write() as connection:
        connection.execute(artifacts.insert(), row)
    for name, hardware in (("d1", "cpu"), ("d2", "cpu"), ("n1", "npu")):
        store.devices.enrol(name, hardware, now=NOW, actor="ann")
    return store


def tell(
    store: Store, device: str, seq: int, n: int, *, moved: float = 0.0, hour: int = 0, model: str = "m"
) -> None:
    """Let a device say what a model has put out in an hour before now."""
    values = np.random.default_rng(100 + seq).normal(moved, 1.0, n)
    output = Histogram(reference_bins(REFERENCE)[0])
    output.add_many(values)
    part = window(n, model=model, since=NOW - 3600 * hour)
    message = telemetry(seq, replace(part, outputs={"y": output.to_bytes()}))
    store.telemetry.ingest([(device, message)], NOW)


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
