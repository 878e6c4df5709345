"""Times, figures and words as people read them, and the environment that all templates are made in."""

from __future__ import annotations

import json
import math
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edgec.artifact import _report_text as text

FOLDER = Path(__file__).parent
STATES = {
    "draft": "quiet", "running": "busy", "paused": "warn", "aborted": "quiet", "undoing": "bad",
    "undone": "bad", "finished": "good",
}  # fmt: skip
METRICS = {
    "installs": "Failed installations", "crashes": "Crashes", "silence": "Silent devices",
    "errors": "Failed calls", "non_finite": "NaN or infinity", "latency_p95": "Latency, 95th percentile",
    "confidence": "Confidence", "classes": "Classes", "disagreement": "Disagreement with the model before",
}  # fmt: skip
AGAINST = {
    "control": "other devices, at the same time", "before": "the same devices, before",
    "reference": "its calibration data", "limit": "the limit alone",
}  # fmt: skip


def environment() -> Environment:
    """Return what makes pages: everything is escaped, and what is missing is a bug, not a gap."""
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "ago": ago, "bytes": text.bytes_text, "count": text.count_text, "date": date, "metric": metric,
        "lasting": lasting, "ms": text.time_text, "percent": percent, "sig": text.significant,
        "sentence": text.sentence, "iso": iso, "pretty": pretty, "short": short,
    }  # fmt: skip
    made.globals |= {"state_tone": STATES, "against_words": AGAINST}
    return made


def ago(at: float | None, now: float) -> str:
    """Return how long something is past, or ahead: ``12 s ago``."""
    if not at:
        return "never"
    gone = now - at
    if abs(gone) < 1:
        return "just now"
    return f"{lasting(gone)} ago" if gone > 0 else f"in {lasting(-gone)}"


def lasting(seconds: float) -> str:
    """Return a time in its largest unit that fits: ``45 s``, ``12 min``, ``3 h``, ``9 days``."""
    for size, unit in ((2 * 86400, "days"), (2 * 3600, "h"), (120, "min")):
        if seconds >= size:
            return f"{seconds / {'days': 86400, 'h': 3600, 'min': 60}[unit]:.0f} {unit}"
    return f"{seconds:.0f} s"


def date(at: float) -> str:
    """Return a time as ``2026-01-31 14:05:09 UTC``."""
    return datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(at: float) -> str:
    """Return a time for programs."""
    return datetime.fromtimestamp(at, timezone.utc).isoformat(timespec="seconds")


def percent(fraction: float | None, digits: int = 1) -> str:
    """Return a share as per cent; a small one is not rounded to none."""
    if fraction is not None and 0 < abs(fraction) < 0.5 * 10 ** (-2 - digits):
        return f"< {10**-digits:g} %"
    return text.percent_text(fraction, digits)


def metric(name: str) -> str:
    """Return what people call a figure of the gate."""
    if name.startswith("output:"):
        return f"Output {name.removeprefix('output:')}"
    return METRICS.get(name, name.replace("_", " "))


def figure_of(name: str, value: float | None) -> str:
    """Return a figure of the gate in its own unit: a ratio, a share, or a distance."""
    if value is None or math.isnan(value):
        return text.NOT_KNOWN
    if name == "latency_p95":
        return f"{text.significant(value)}×"
    if name in ("confidence", "classes") or name.startswith("output:"):
        return f"{value:.3f}"
    if abs(value) > 1:
        return text.significant(value)
    return percent(value)


def pretty(value: Any) -> str:
    """Return a value as JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def short(digest: str | None) -> str:
    """Return enough of a digest to tell it from others."""
    return digest[:12] if digest else text.NOT_KNOWN


def _shown(value: Any) -> Any:
    if value is None:
        return text.NOT_KNOWN
    # Characters that make text read as something else are shown as such.
    return text.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
