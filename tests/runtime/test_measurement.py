"""Measuring side by side, on a clock of our own."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from edgec.runtime.measurement import LatencySamples, measure_interleaved, median_ratio


class Clock:
    """Time that passes only when a call takes it."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns

    def taking(self, milliseconds: Callable[[], float]) -> Callable[[], None]:
        def call() -> None:
            self.now_ns += int(milliseconds() * 1e6)

        return call


def test_every_call_is_measured_once_per_round_in_changing_order() -> None:
    clock = Clock()
    seen: list[str] = []

    def call(name: str, milliseconds: float) -> Callable[[], None]:
        take = clock.taking(lambda: milliseconds)

        def run() -> None:
            seen.append(name)
            take()

        return run

    calls = {"a": call("a", 1), "b": call("b", 2), "c": call("c", 3)}
    results = measure_interleaved(calls, duration_s=0.6, warmup_s=0, clock=clock)
    assert {name: result.n for name, result in results.items()} == {"a": 100, "b": 100, "c": 100}
    assert (results["a"].p50_ms, results["b"].p50_ms, results["c"].p50_ms) == (1.0, 2.0, 3.0)
    rounds = [tuple(seen[i : i + 3]) for i in range(0, len(seen), 3)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) == 6


def test_warm_up_is_thrown_away() -> None:
    clock = Clock()
    durations = iter([500.0, 400.0] + [1.0] * 1000)
    results = measure_interleaved(
        {"a": clock.taking(lambda: next(durations))}, duration_s=0.1, warmup_s=0.9, clock=clock
    )
    assert results["a"].max_ms == 1.0


def test_rounds_are_bounded_both_ways() -> None:
    clock = Clock()
    slow = {"slow": clock.taking(lambda: 1000)}
    assert measure_interleaved(slow, duration_s=0.1, min_rounds=7, warmup_s=0, clock=clock)["slow"].n == 7
    fast = {"fast": clock.taking(lambda: 0.001)}
    assert measure_interleaved(fast, duration_s=10, max_rounds=50, warmup_s=0, clock=clock)["fast"].n == 50


@pytest.mark.parametrize(("low", "high"), [(0, 5), (6, 5)])
def test_bounds_out_of_range_are_refused(low: int, high: int) -> None:
    with pytest.raises(ValueError, match="min_rounds"):
        measure_interleaved({"a": lambda: None}, min_rounds=low, max_rounds=high)


def test_nothing_to_measure_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one call"):
        measure_interleaved({})


def test_statistics() -> None:
    samples = LatencySamples(np.arange(1.0, 101.0))
    assert (samples.n, samples.p50_ms, samples.min_ms, samples.max_ms, samples.mean_ms) == (
        100,
        50.5,
        1,
        100,
        50.5,
    )
    assert samples.p90_ms == pytest.approx(90.1)
    assert samples.p99_ms == pytest.approx(99.01)
    assert samples.cv == pytest.approx(np.arange(1, 101).std() / 50.5)


def test_single_pauses_leave_a_run_stable_and_drift_does_not() -> None:
    steady = np.ones(1000)
    steady[::97] = 50
    assert LatencySamples(steady).is_stable
    assert LatencySamples(steady).cv > 1
    assert not LatencySamples(np.linspace(1, 1.5, 1000)).is_stable
    assert not LatencySamples(np.ones(9)).is_stable, "nine samples prove nothing"


def test_a_true_difference_shows_through_shared_drift() -> None:
    clock = Clock()
    noise = random.Random(3)

    def milliseconds(base: float) -> Callable[[], float]:
        return lambda: base * (1 + 0.5 * (clock.now_ns / 1e9)) * (1 + 0.05 * noise.random())

    calls = {"a": clock.taking(milliseconds(1.0)), "b": clock.taking(milliseconds(1.05))}
    results = measure_interleaved(calls, duration_s=2, warmup_s=0, clock=clock)
    ratio = median_ratio(results["b"], results["a"])
    assert ratio.differs
    assert ratio.lower < 1.05 < ratio.upper
    same = median_ratio(results["a"], results["a"])
    assert (same.ratio, same.lower, same.upper, same.differs) == (1, 1, 1, False)


def test_false_alarms_are_rare() -> None:
    generator = np.random.default_rng(0)
    alarms = 0
    for seed in range(100):
        disturbance = np.repeat(generator.gamma(2, 0.2, size=50), 4)
        first, second = (LatencySamples(1 + disturbance + generator.gamma(2, 0.05, 200)) for _ in range(2))
        alarms += median_ratio(first, second, resamples=200, seed=seed).differs
    assert alarms <= 10


def test_results_of_two_measurements_are_not_compared() -> None:
    with pytest.raises(ValueError, match="3 and 4"):
        median_ratio(LatencySamples(np.ones(3)), LatencySamples(np.ones(4)))
