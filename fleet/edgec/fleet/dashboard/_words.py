"""Times, figures and words as people read them, and the environment that all templates are made in."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from edgec.artifact import _report_text as text
from edgec.fleet._dates import date, iso

FOLDER = Path(__file__).parent
# Of a metric, as the gate names them.
_NAME = re.compile(r"[a-z0-9_]*|output:.*")
STATES = {
    "draft": "quiet", "running": "busy", "paused": "warn", "aborted": "quiet", "undoing": "bad",
    "undone": "bad", "finished": "good",
}  # fmt: skip
METRICS = {
    "installs": "Failed installations", "crashes": "Crashes", "silence": "Silent devices",
    "errors": "Failed calls", "non_finite": "NaN or infinity",
    "latency_p95": "95th percentile of the latency", "confidence": "Confidence", "classes": "Classes",
    "data": "Amount of data", "disagreement": "Disagreement with the model before",
}  # fmt: skip
ACTIONS = {
    "artifact.upload": "uploaded an artifact", "rollout.create": "drew up a rollout",
    "rollout.start": "started", "rollout.pause": "paused", "rollout.resume": "resumed",
    "rollout.abort": "aborted", "rollout.undo": "undid", "rollout.retry": "retried",
    "device.enrol": "let in", "device.label": "labelled", "device.revoke": "revoked",
    "device.settle": "picked a machine for", "device.credential": "gave a credential to",
    "device.readmit": "let back in", "group.set": "kept a group", "token.create": "made a token",
    "token.revoke": "revoked a token", "claim.create": "made a claim", "claim.withdraw": "withdrew a claim",
    "incident.close": "settled incident", "quarantine.add": "quarantined",
    "quarantine.release": "ended the quarantine of",
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
        "sentence": text.sentence, "reasons": reasons, "iso": iso, "pretty": pretty, "short": short,
        "unpacked": unpacked,
    }  # fmt: skip
    made.globals |= {"state_tone": STATES, "against_words": AGAINST, "actions": ACTIONS}
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


def reasons(names: str) -> str:
    """Return what decided, in words: ``failed calls and confidence``; what a person wrote as it is."""
    if not all(_NAME.fullmatch(name) for name in names.split(",")):
        return names
    words = [metric(name)[:1].lower() + metric(name)[1:] for name in names.split(",") if name]
    words = [word if not word.startswith("naN") else "NaN" + word[3:] for word in words]
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""


def figure_of(name: str, value: float | None) -> str:
    """Return a figure of the gate in its own unit: a ratio, a share, or a distance; never in two lines."""
    if value is None or math.isnan(value):
        return text.NOT_KNOWN
    if name == "latency_p95":
        return f"{text.significant(value)}×"
    if name in ("confidence", "classes") or name.startswith("output:"):
        return f"{value:.3f}"
    if abs(value) > 1:
        return text.significant(value)
    return percent(value).replace("-", "\u2212").replace(" ", "\u00a0")


def pretty(value: Any) -> str:
    """Return a value as JSON for people."""
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def unpacked(words: str) -> str:
    """Return JSON for people; other text as it is."""
    try:
        return pretty(json.loads(words))
    except ValueError:
        return words


def short(digest: str | None) -> str:
    """Return enough of a digest to tell it from others."""
    return digest[:12] if digest else text.NOT_KNOWN


def _shown(value: Any) -> Any:
    if value is None:
        return text.NOT_KNOWN
    # Characters that make text read as something else are shown as such.
    return text.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value
