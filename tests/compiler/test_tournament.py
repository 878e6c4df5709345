"""The choice among candidates: figures in, winner and reasons out."""

from __future__ import annotations

import numpy as np
import pytest

from edgec.compiler.parity import OutputParity, Parity, Tolerance
from edgec.compiler.tournament import Aim, Contender, Gate, Verdict, choose
from edgec.evaluation import OutputComparison
from edgec.runtime.measurement import LatencySamples

RANKING = ("int8", "fp16", "fp32")
RULE = "int8 before fp16 before fp32"


def parity(error: float = 0.5) -> Parity:
    comparison = OutputComparison(name="y", max_abs_error=error, snr_db=40.0, cosine=1.0, agreement=1.0)
    tolerance = Tolerance(max_abs=1.0, rms=1.0)
    return Parity(
        outputs=(OutputParity(comparison=comparison, tolerance=tolerance, rms_error=0.0),), reference="r"
    )


def contender(
    precision: str, ms: float | None, *, verdict: Verdict = "pass", error: float = 0.5, noise: float = 0.01
) -> Contender:
    rng = np.random.default_rng(sum(map(ord, precision)))
    # The same noise for everyone, in another order: the medians have exactly the ratio that was asked for.
    spread = rng.permutation(np.linspace(-1.0, 1.0, 200))
    latency = None if ms is None else LatencySamples(ms * (1 + noise * spread))
    return Contender(
        name=f"engine {precision}",
        engine="engine",
        precision=precision,
        parity=parity(error),
        gate=Gate(verdict=verdict, reason=f"accuracy: {verdict}"),
        latency=latency,
    )


def test_the_fastest_admissible_candidate_wins() -> None:
    choice = choose([contender("fp32", 2.0), contender("fp16", 1.5), contender("int8", 1.0)], RANKING, RULE)
    assert choice.winner == "engine int8"
    assert "the fastest of those within the accuracy budget" in choice.decisions[0]
    assert "engine fp32 is slower: 2 ms" in choice.decisions[2]


def test_a_slower_optimized_candidate_never_wins() -> None:
    assert choose([contender("fp32", 1.0), contender("int8", 1.2)], RANKING, RULE).winner == "engine fp32"


def test_the_more_exact_one_wins_where_speed_cannot_be_told_apart() -> None:
    choice = choose([contender("fp32", 1.01, noise=0.2), contender("int8", 1.0, noise=0.2)], RANKING, RULE)
    assert choice.winner == "engine fp32"
    assert "as fast as engine int8 within noise" in choice.decisions[0]


@pytest.mark.parametrize("verdict", ["fail", "inconclusive"])
def test_the_accuracy_gate_takes_out_the_fastest(verdict: Verdict) -> None:
    choice = choose([contender("fp32", 2.0), contender("int8", 1.0, verdict=verdict)], RANKING, RULE)
    assert choice.winner == "engine fp32"
    assert choice.decisions[-1] == f"engine int8 is out: accuracy: {verdict}"


def test_failed_parity_takes_out_the_fastest() -> None:
    choice = choose([contender("fp32", 2.0), contender("int8", 1.0, error=3.0)], RANKING, RULE)
    assert choice.winner == "engine fp32"
    assert "output 'y' leaves its tolerance: max abs error 3 (allowed 1)" in choice.decisions[-1]


def test_a_problem_takes_out_the_fastest() -> None:
    bf16 = contender("bf16", 1.0)
    bf16.problem = "the engine runs it in fp32, not in bf16"
    choice = choose([contender("fp32", 2.0), bf16], RANKING, RULE)
    assert choice.winner == "engine fp32"
    assert choice.decisions[-1] == "engine bf16 is out: the engine runs it in fp32, not in bf16"


def test_nobody_wins_where_nobody_is_admissible() -> None:
    choice = choose(
        [contender("fp32", 1.0, error=2.0), contender("int8", 1.0, verdict="fail")], RANKING, RULE
    )
    assert choice.winner is None
    assert len(choice.decisions) == 2


def test_the_targets_own_ranking_decides_where_nothing_was_measured() -> None:
    choice = choose([contender("fp32", None), contender("fp16", None)], RANKING, RULE)
    assert choice.winner == "engine fp16"
    assert choice.decisions[0] == f"engine fp16 ships: nothing was measured for this target; {RULE}"


def test_a_candidate_over_budget_is_out() -> None:
    fast, small = contender("fp16", 1.0), contender("int8", 1.5)
    fast.size_bytes, small.size_bytes = 3_000_000, 1_000_000
    choice = choose([fast, small], RANKING, RULE, Aim(size_bytes=2_000_000))
    assert choice.winner == "engine int8"
    assert choice.decisions[-1] == "engine fp16 is right, but size 3 MB is over the budget of 2 MB"


def test_the_nearest_is_named_where_nobody_keeps_the_budget() -> None:
    choice = choose([contender("fp32", 2.0), contender("int8", 1.0)], RANKING, RULE, Aim(latency_ms=0.5))
    assert (choice.winner, choice.nearest) == (None, "engine int8")
    assert "latency 1 ms is over the budget of 0.5 ms" in choice.decisions[1]


def test_a_budget_on_what_was_not_measured_is_not_kept() -> None:
    choice = choose([contender("fp32", None)], RANKING, RULE, Aim(latency_ms=5.0))
    assert choice.winner is None
    assert "latency was not measured here" in choice.decisions[0]


def test_objectives_other_than_latency() -> None:
    exact, small = contender("fp32", 1.0), contender("int8", 2.0)
    exact.size_bytes, small.size_bytes = 4, 1
    exact.source_snr_db, small.source_snr_db = 120.0, 40.0
    assert choose([exact, small], RANKING, RULE, Aim(objective="size")).winner == "engine int8"
    assert choose([exact, small], RANKING, RULE, Aim(objective="accuracy")).winner == "engine fp32"
