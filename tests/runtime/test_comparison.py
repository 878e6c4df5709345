"""Benchmarks against earlier ones: how often the verdict is right, and what is refused."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgec.errors import DataError
from edgec.runtime.comparison import compare_runs, read_baseline

RUNS, CALLS, SIMULATIONS = 10, 60, 500


def runs(random: np.random.Generator, factor: float) -> list[float]:
    """Return the medians of ten made-up runs: each of its own speed, with drift, noise and pauses within."""
    speed = np.exp(random.normal(0, 0.02, (RUNS, 1)))  # between runs
    drift = np.exp(np.cumsum(random.normal(0, 0.002, (RUNS, CALLS)), axis=1))
    noise = np.exp(np.abs(random.normal(0, 0.05, (RUNS, CALLS))))
    pauses = np.where(random.random((RUNS, CALLS)) < 0.03, 5.0, 1.0)
    return [float(p50) for p50 in np.median(factor * speed * drift * noise * pauses, axis=1)]


def share(verdict: str, factor: float) -> float:
    random = np.random.default_rng(5)
    found = [compare_runs(runs(random, factor), runs(random, 1.0)).verdict for _ in range(SIMULATIONS)]
    return found.count(verdict) / SIMULATIONS


def test_five_percent_are_found() -> None:
    assert share("slower", 1.05) >= 0.95
    assert share("faster", 1 / 1.05) >= 0.95


def test_false_alarms_are_rare() -> None:
    # Exactly 4.3 % for ten runs against ten; the rest is what chance may add in so many simulations.
    assert 1 - share("no difference shown", 1.0) <= 0.05 + 0.01


def test_the_interval_holds_the_truth() -> None:
    random = np.random.default_rng(6)
    found = [compare_runs(runs(random, 1.2), runs(random, 1.0)) for _ in range(200)]
    assert sum(f.lower <= 1.2 <= f.upper for f in found) >= 185


def test_calls_of_one_run_would_raise_false_alarms() -> None:
    """What is guarded against: calls of two runs differ though nothing did."""
    random = np.random.default_rng(7)

    def one_run() -> list[float]:
        return list(np.exp(random.normal(0, 0.02) + random.normal(0, 0.02, 50)))

    assert sum(compare_runs(one_run(), one_run()).verdict != "no difference shown" for _ in range(50)) >= 20


def test_the_p_value_is_that_of_all_orders() -> None:
    now, before = [1.0, 1.3, 1.7, 2.0, 2.2], [1.1, 1.2, 1.9, 2.4, 3.0]

    def u(chosen: tuple[float, ...], rest: list[float]) -> int:
        return sum(a > b for a in chosen for b in rest)

    values = now + before
    orders = [u(c, [v for v in values if v not in c]) for c in combinations(values, 5)]
    seen = u(tuple(now), before)
    tail = min(sum(o <= seen for o in orders), sum(o >= seen for o in orders)) / len(orders)
    assert compare_runs(now, before).p_value == pytest.approx(min(1.0, 2 * tail))


def test_one_disturbed_run_changes_nothing() -> None:
    now = [1.00, 1.01, 0.99, 1.02, 0.98, 1.00, 1.01, 50.0]
    assert compare_runs(now, [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 0.99]).verdict == "no difference shown"


@pytest.mark.parametrize(
    "now", [[1.0, 2.0], [], [1.0, 2.0, 3.0, 4.0, 0.0], [1.0, 2.0, 3.0, 4.0, float("nan")]]
)
def test_unfit_runs_are_refused(now: list[float]) -> None:
    with pytest.raises(ValueError, match=r"expected latencies|cannot show"):
        compare_runs(now, [1.0, 2.0, 3.0, 4.0, 5.0])


GOOD: dict[str, Any] = {
    "runs_p50_ms": [1.0] * 5, "call": "run", "inputs": "golden", "threads": None, "model": "m", "engine": "e",
    "engine_version": "1", "machine": {"cpu": "c", "cores": 2},
}  # fmt: skip


def test_a_baseline_is_read(tmp_path: Path) -> None:
    (tmp_path / "good.json").write_text(json.dumps(GOOD))
    assert read_baseline(tmp_path / "good.json").runs_p50_ms == (1.0,) * 5


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "{", "null", "[" * 5000,
        json.dumps({**GOOD, "runs_p50_ms": [1.0] * 4}),
        json.dumps({**GOOD, "runs_p50_ms": ["x"] * 5}),
        json.dumps({**GOOD, "runs_p50_ms": [-1.0] * 5}),
        json.dumps({**GOOD, "runs_p50_ms": 3}),
        json.dumps({**GOOD, "machine": "a"}),
    ],
)  # fmt: skip
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(DataError, match=r"bad\.json"):
        read_baseline(tmp_path / "bad.json")


def test_a_missing_baseline_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_baseline(tmp_path / "missing.json")
