"""Figures of a report and of a fleet as people read them, the same in HTML and on the terminal."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import Any

NOT_KNOWN = "–"
# JSON has no infinity; a number beyond this stands for it.
_LARGEST = 1e300
_PERCENT_METRICS = frozenset({"top1", "top5"})
_METRIC_TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "map50": "mAP50",
    "auc": "AUC",
    "spearman": "Spearman ρ",
    "mse": "MSE",
}
_ENGINE_TITLES = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "litert": "LiteRT",
}
# Control characters could drive a terminal; bidirectional controls make text read as something else.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def clean(text: str) -> str:
    """Return `text` with every character that could deceive a reader shown as U+FFFD."""
    return _UNSAFE.sub("\ufffd", text)


def one_line(text: object) -> str:
    """Return `text` clean and on one line."""
    return NOT_KNOWN if text is None else clean(" ".join(str(text).split()))


def sentence(text: object) -> str:
    """Return `text` as a sentence: a capital first, a full stop last."""
    line = one_line(text)
    return line[:1].upper() + line[1:] + ("" if line.endswith((".", "!", "?")) else ".")


def number(value: Any) -> float | None:
    """Return `value` as a float, None where it is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def significant(value: Any, digits: int = 3) -> str:
    """Return `value` with `digits` significant digits, without an exponent from 1e-4 to 1e6."""
    x = number(value)
    if x is None:
        return NOT_KNOWN
    if x == 0:
        return "0"
    if abs(x) > _LARGEST:
        return "∞" if x > 0 else "-∞"
    if not 1e-4 <= abs(x) < 1e6:
        return f"{x:.{digits - 1}e}"
    return f"{x:.{max(0, digits - 1 - math.floor(math.log10(abs(x))))}f}"


def bytes_text(value: Any) -> str:
    """Return a size in bytes, kB, MB or GB (powers of 1000)."""
    x = number(value)
    if x is None:
        return NOT_KNOWN
    if abs(x) < 1000:
        return f"{x:.0f} B"
    for unit in ("kB", "MB", "GB"):
        x /= 1000
        if abs(x) < 999.5:
            return f"{significant(float(f'{x:.3g}'))} {unit}"
    return f"{x:.0f} GB"


def count_text(value: Any) -> str:
    """Return a whole number with thin spaces between its thousands."""
    x = number(value)
    return NOT_KNOWN if x is None else f"{round(x):,}".replace(",", "\u202f")


def time_unit(values_ms: Iterable[float]) -> tuple[str, float]:
    """Return the unit that suits all of `values_ms`, and what to multiply milliseconds by."""
    largest = max(values_ms, default=1.0)
    if largest < 1:
        return "µs", 1000.0
    return ("ms", 1.0) if largest < 10_000 else ("s", 0.001)


def time_text(value_ms: Any, unit: tuple[str, float] | None = None) -> str:
    """Return a time given in milliseconds, in `unit` of `time_unit`, or in the one that suits it."""
    x = number(value_ms)
    if x is None:
        return NOT_KNOWN
    name, factor = unit or time_unit([x])
    return f"{significant(x * factor)} {name}"


def duration_text(value_s: Any) -> str:
    """Return a duration given in seconds: ``12.3 s``, ``3 min 5 s``."""
    x = number(value_s)
    if x is None:
        return NOT_KNOWN
    return f"{significant(x)} s" if x < 90 else f"{x // 60:.0f} min {x % 60:.0f} s"


def percent_text(fraction: Any, digits: int = 1) -> str:
    """Return a fraction as per cent."""
    x = number(fraction)
    return NOT_KNOWN if x is None else f"{100 * x:.{digits}f} %"


def score_text(value: Any, metric: Any) -> str:
    """Return a score of `metric`: rates as per cent, errors with 4 digits, others with 3 decimals."""
    x = number(value)
    if x is None:
        return NOT_KNOWN
    if metric in _PERCENT_METRICS:
        return percent_text(x)
    return significant(x, 4) if metric == "mse" else f"{x:.3f}"


def difference_text(value: Any, metric: Any) -> str:
    """Return a difference of two scores of `metric`, without its sign."""
    x = number(value)
    if x is None:
        return NOT_KNOWN
    x = abs(x)
    if metric in _PERCENT_METRICS:
        return f"{100 * x:.2f} points"
    return percent_text(x, 2) if metric == "mse" else f"{x:.4f}"


def interval_text(interval: Any, metric: Any) -> str:
    """Return a confidence interval of scores of `metric`: ``96.1 – 98.9 %``."""
    if not isinstance(interval, list | tuple) or len(interval) != 2 or None in map(number, interval):
        return NOT_KNOWN
    low, high = (score_text(x, metric) for x in interval)
    return f"{low.removesuffix(' %')} – {high}"


def decibel_text(value: Any, *, max_abs_error: Any = None) -> str:
    """Return an SNR; ``identical`` where there was no error at all to make noise."""
    x = number(value)
    if x is not None:
        return f"{x:.1f} dB"
    identical = value == math.inf or (number(max_abs_error) == 0)
    return "identical" if identical else NOT_KNOWN


def shape_text(shape: Any) -> str:
    """Return a shape: ``[batch, 1, 8, 8]``."""
    return f"[{', '.join(str(n) for n in shape)}]" if isinstance(shape, list | tuple) else NOT_KNOWN


def metric_title(metric: Any) -> str:
    """Return what people call a metric."""
    return _METRIC_TITLES.get(str(metric), one_line(metric))


def engine_title(engine: Any) -> str:
    """Return what people call an engine."""
    return _ENGINE_TITLES.get(str(engine), one_line(engine))


def speed_text(speedup: Any) -> str | None:
    """Return a speed-up in words: ``2.31× faster than fp32``; None where it is not known."""
    x = number(speedup)
    if x is None or x <= 0:
        return None
    if 0.98 <= x <= 1.02:
        return "as fast as fp32"
    return f"{x:.2f}× faster than fp32" if x > 1 else f"{1 / x:.2f}× slower than fp32"
