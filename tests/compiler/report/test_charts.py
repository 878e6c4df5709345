from __future__ import annotations

from typing import Any

import pytest

from edgec.compiler.report._axis import padded_axis, positive_axis
from edgec.compiler.report._charts import (
    accuracy_chart,
    latency_chart,
    layers_chart,
    placement_shares,
    size_chart,
)
from edgec.compiler.report._pareto import pareto_plot


def _candidate(name: str, p50: float, score: float | None = None, **more: Any) -> dict[str, Any]:
    accuracy = None if score is None else {"metric": "top1", "artifact": score}
    return {"name": name, "status": "admissible", "latency_ms": {"p50": p50}, "accuracy": accuracy, **more}


@pytest.mark.parametrize(
    "values", [[0.02, 0.03], [3.0], [0.5, 900.0], [1e-6, 5.0], [99.0, 101.0], [1000.0, 1.0]]
)
def test_axis_of_positive_values_holds_them_and_few_marks(values: list[float]) -> None:
    axis = positive_axis(values)
    assert axis.low <= min(values)
    assert max(values) <= axis.high
    assert 2 <= len(axis.marks) <= 9
    places = [axis.at(v) for v in sorted(values)]
    assert places == sorted(places)
    assert all(0 <= x <= 100 for x in places)


def test_axis_is_logarithmic_only_where_values_span_much() -> None:
    assert not positive_axis([1.0, 10.0]).log
    assert positive_axis([1.0, 100.0]).log


@pytest.mark.parametrize("values", [[0.98, 0.99], [1.0, 1.0], [0.0], [0.5, 0.9], [-0.2, 0.3]])
def test_axis_of_scores_holds_them_and_ends_at_one(values: list[float]) -> None:
    axis = padded_axis(values, ceiling=1.0)
    assert axis.low <= min(values)
    assert max(values) <= axis.high <= 1.0
    assert 2 <= len(axis.marks) <= 7


def test_latency_chart_draws_what_was_measured() -> None:
    slow = _candidate("slow", 4.0)
    slow["latency_ms"] |= {"p90": 5.0, "p99": 8.0}
    chart = latency_chart([slow, _candidate("fast", 1.0), {"name": "failed", "latency_ms": None}])
    assert chart is not None
    assert [r.label for r in chart.rows] == ["slow", "fast"]
    assert chart.rows[0].dot == 50.0
    assert chart.rows[0].thick == (50.0, 62.5)
    assert chart.rows[0].thin == (62.5, 100.0)
    assert [t.label for t in chart.ticks] == ["0", "2", "4", "6", "8"]


def test_a_rare_slow_call_goes_off_the_scale() -> None:
    candidate = _candidate("jittery", 1.0)
    candidate["latency_ms"] |= {"p90": 2.0, "p99": 50.0}
    chart = latency_chart([candidate, _candidate("steady", 1.5)])
    assert chart is not None
    assert [t.label for t in chart.ticks] == ["0", "0.5", "1", "1.5", "2"]
    assert [r.beyond for r in chart.rows] == [True, False]
    assert chart.rows[0].thin == (100.0, 100.0)
    assert "arrow" in chart.note


@pytest.mark.parametrize("p50", [None, 0, -1.0, float("nan"), float("inf"), "2", True])
def test_charts_leave_out_what_is_no_figure(p50: Any) -> None:
    candidate = {**_candidate("odd", 1.0, size_bytes="12"), "latency_ms": {"p50": p50}}
    candidate["accuracy"] = {"metric": "top1", "artifact": p50 if p50 != 0 and p50 != -1.0 else "x"}
    assert latency_chart([candidate]) is None
    assert accuracy_chart([candidate]) is None
    assert size_chart([candidate], 100) is None
    assert pareto_plot([candidate, candidate]) is None


def test_frontier_joins_those_that_no_other_beats() -> None:
    candidates = [
        _candidate("fast", 1.0, 0.8),
        _candidate("good", 3.0, 0.9),
        _candidate("beaten", 4.0, 0.85),
    ]
    plot = pareto_plot(candidates)
    assert plot is not None
    at = {p.label.text: (p.x, p.y) for p in plot.points}
    (x1, y1), (x2, y2) = at["fast"], at["good"]
    assert plot.frontier == ((x1, y1, x2, y1), (x2, y1, x2, y2))
    assert y2 < y1 < at["beaten"][1] + 100


def test_lower_is_better_for_errors() -> None:
    candidates = [_candidate("a", 1.0), _candidate("b", 2.0), _candidate("c", 3.0)]
    for candidate, error in zip(candidates, (0.3, 0.1, 0.2), strict=True):
        candidate["accuracy"] = {"metric": "mse", "artifact": error}
    plot = pareto_plot(candidates)
    assert plot is not None
    at = {p.label.text: p.x for p in plot.points}
    assert [segment[2] for segment in plot.frontier] == [at["b"], at["b"]]
    assert "bottom left" in plot.note


def test_plot_shows_snr_where_there_is_no_accuracy() -> None:
    plot = pareto_plot([_candidate("a", 1.0, source_snr_db=30.0), _candidate("b", 2.0, source_snr_db=120.0)])
    assert plot is not None
    assert plot.title == "SNR against latency"


def test_snrs_against_different_references_are_not_compared() -> None:
    def of(name: str, p50: float, reference: str) -> dict[str, Any]:
        return _candidate(name, p50, parity={"passed": True, "snr_db": 40.0, "reference": reference})

    assert pareto_plot([of("a", 1.0, "source"), of("b", 2.0, "its own graph")]) is None
    assert pareto_plot([of("a", 1.0, "source"), of("b", 2.0, "source")]) is not None


def test_labels_of_a_plot_keep_off_each_other() -> None:
    candidates = [_candidate(f"candidate {n}", 1.0 + n / 50, 0.9) for n in range(4)]
    plot = pareto_plot(candidates)
    assert plot is not None
    assert len({(p.label.anchor, p.label.dy) for p in plot.points}) == 4


def test_placement_is_ranked_by_nodes() -> None:
    assert placement_shares({"CPU": 3, "GPU": 9, "NPU": 0}) == [("GPU", 9, 75.0), ("CPU", 3, 25.0)]
    assert placement_shares(None) == []


def test_layers_are_drawn_by_the_harm_of_int8_in_them() -> None:
    snr = {"quiet": 40.0, "culprit": -2.0, "middle": 20.0, "untried": None}
    layers = [{"name": name, "isolated_snr_db": db} for name, db in snr.items()]
    chart = layers_chart([{"name": "fp32"}, {"name": "int8", "layers": layers}])
    assert chart is not None
    assert [(r.label, r.bar) for r in chart.rows] == [("culprit", 0.0), ("middle", 50.0), ("quiet", 100.0)]
    assert layers_chart([{"name": "fp32"}]) is None
