from __future__ import annotations

import math
from typing import Any

import pytest

from edgec.artifact import _report_text as _format


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.000012345, "1.23e-05"), (0.0123, "0.0123"), (1.5, "1.50"), (152.34, "152"),
     (12345.6, "12346"),     (1.7e308, "∞"), (None, "–"), (math.nan, "–"), ("7", "–"), (True, "–")],
)  # fmt: skip
def test_significant_digits(value: Any, text: str) -> None:
    assert _format.significant(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (63_801, "63.8 kB"), (999_700, "1.00 MB"),
     (2.5e9, "2.50 GB"), (7e13, "70000 GB"), (None, "–")],
)  # fmt: skip
def test_sizes(value: Any, text: str) -> None:
    assert _format.bytes_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0182, "18.2 µs"), (1.0, "1.00 ms"), (250.4, "250 ms"), (12_345.0, "12.3 s")]
)
def test_times(value: float, text: str) -> None:
    assert _format.time_text(value) == text


@pytest.mark.parametrize(("value", "text"), [(41.7, "41.7 s"), (185, "3 min 5 s"), (None, "–")])
def test_durations(value: Any, text: str) -> None:
    assert _format.duration_text(value) == text


def test_times_of_one_table_have_one_unit() -> None:
    unit = _format.time_unit([0.4, 3.0])
    assert [_format.time_text(t, unit) for t in (0.4, 3.0)] == ["0.400 ms", "3.00 ms"]


@pytest.mark.parametrize(
    ("metric", "text"), [("top1", "98.9 %"), ("map50", "0.989"), ("mse", "0.9889"), ("mine", "0.989")]
)
def test_scores_are_shown_as_their_metric_is(metric: str, text: str) -> None:
    assert _format.score_text(0.9889, metric) == text


def test_intervals() -> None:
    assert _format.interval_text([0.961, 0.989], "top1") == "96.1 – 98.9 %"
    assert _format.interval_text((0.5, 0.6), "auc") == "0.500 – 0.600"
    assert _format.interval_text([0.5], "auc") == "–"


@pytest.mark.parametrize(
    ("speedup", "text"),
    [
        (2.314, "2.31× faster than fp32"),
        (0.5, "2.00× slower than fp32"),
        (1.01, "as fast as fp32"),
        (None, None),
    ],
)
def test_speeds(speedup: float | None, text: str | None) -> None:
    assert _format.speed_text(speedup) == text


def test_decibels() -> None:
    assert _format.decibel_text(38.23) == "38.2 dB"
    assert _format.decibel_text(math.inf) == "identical"
    assert _format.decibel_text(None, max_abs_error=0.0) == "identical"
    assert _format.decibel_text(None, max_abs_error=0.1) == "–"


def test_text_that_deceives_is_marked() -> None:
    assert _format.clean("a\x1bb\u202ec\ud800d\te") == "a\ufffdb\ufffdc\ufffdd\te"
