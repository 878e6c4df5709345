"""Windows and reports of shadows as JSON, for the way from an application to the agent."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from edgec.artifact._fields import Fields, Parse, mapping, matching, text, wrong
from edgec.errors import ManifestError, ProtocolError
from edgec.runtime._link_messages import MAX_FROM_APPLICATION, Observed, count, finite, plain_text, short_text
from edgec.runtime._shadow import ShadowReport
from edgec.runtime._window import Window
from edgec.sketch import Histogram, QuantileSketch

_Sketch = TypeVar("_Sketch")
_T = TypeVar("_T")
_MOST_NAMES = 128
_MOST_CLASSES = 4200
_MOST_SKETCH = 64 * 1024
_ARTIFACT = matching(r"sha256:[0-9a-f]{64}", "sha256: and 64 hex digits")


def observed(digest: str, window: Window) -> Observed:
    """Return a window as a message; where it is too large, without statistics of inputs, then outputs ...

    Args:
        digest: Of the file.
        window: Of its calls.
    """
    message = Observed(digest=digest, window={})
    for smaller in _smaller(window):
        message = Observed(digest=digest, window=window_to_plain(smaller))
        if len(message.to_line()) <= MAX_FROM_APPLICATION:
            break
    return message


def _smaller(window: Window) -> Iterator[Window]:
    yield window
    yield (window := replace(window, inputs={}))
    yield (window := replace(window, input_bins={}))
    yield (window := replace(window, outputs={}))
    yield replace(window, classes={-1: sum(window.classes.values())}, errors={"others": window.error_count})


def window_to_plain(window: Window) -> dict[str, Any]:
    """Return a window as JSON can hold it."""
    plain = {entry.name: getattr(window, entry.name) for entry in fields(Window)}
    plain["latency_ms"] = _text(window.latency_ms)
    plain["confidence"] = None if window.confidence is None else _text(window.confidence)
    plain["classes"] = {str(key): n for key, n in window.classes.items()}
    plain["outputs"] = {name: _text(sketch) for name, sketch in window.outputs.items()}
    plain["inputs"] = _texts(window.inputs)
    plain["input_bins"] = _texts(window.input_bins)
    return plain


def window_from_plain(value: object) -> Window:
    """Return the window that an application sent.

    Raises:
        ProtocolError: It is none.
    """
    try:
        given = Fields(value, "window")
        counts = _named(count)
        return Window(
            model=given.need("model", text),
            model_version=given.need("model_version", text),
            artifact=given.need("artifact", _ARTIFACT),
            engine=given.need("engine", text),
            engine_version=given.need("engine_version", text),
            since=given.need("since", _time),
            seconds=given.need("seconds", _time),
            calls=given.need("calls", count),
            errors=given.may("errors", counts, {}),
            drops=given.may("drops", counts, {}),
            fallbacks=given.may("fallbacks", _named(count, short_text), {}),
            cache_hits=given.may("cache_hits", count, 0),
            cache_misses=given.may("cache_misses", count, 0),
            cache_saved_s=given.may("cache_saved_s", finite, 0.0),
            latency_ms=given.need("latency_ms", _quantiles),
            sampled=given.may("sampled", count, 0),
            non_finite=given.may("non_finite", count, 0),
            confidence=given.may("confidence", _or_none(_histogram), None),
            classes=given.may("classes", _classes, {}),
            outputs=given.may("outputs", _named(_histogram), {}),
            inputs=given.may("inputs", _named(_named(_quantiles)), {}),
            input_bins=given.may("input_bins", _named(_named(_histogram)), {}),
        )
    except ManifestError as e:
        raise ProtocolError(f"expected a window: {e}") from e


def report_to_plain(report: ShadowReport) -> dict[str, Any]:
    """Return a report as JSON can hold it."""
    plain = {entry.name: getattr(report, entry.name) for entry in fields(ShadowReport)}
    plain["max_abs_error"] = {name: _number(error) for name, error in report.max_abs_error.items()}
    plain["last_error"] = plain_text(report.last_error)
    return {name: _number(value) if isinstance(value, float) else value for name, value in plain.items()}


def report_from_plain(value: object) -> ShadowReport:
    """Return the report that an application sent.

    Raises:
        ProtocolError: It is none.
    """
    try:
        given = Fields(value, "report")
        errors = given.may("max_abs_error", _named(_or_nan), {})
        report = ShadowReport(
            sampled=given.need("sampled", count),
            dropped=given.need("dropped", count),
            failed=given.need("failed", count),
            compared=given.need("compared", count),
            disagreed=given.need("disagreed", count),
            non_finite=given.need("non_finite", count),
            max_abs_error={n: math.inf if math.isnan(error) else error for n, error in errors.items()},
            live_p50_ms=given.may("live_p50_ms", _or_nan, math.nan),
            candidate_p50_ms=given.may("candidate_p50_ms", _or_nan, math.nan),
            last_error=given.may("last_error", short_text, ""),
            scored=given.need("scored", count),
            live_score=given.may("live_score", _or_nan, math.nan),
            candidate_score=given.may("candidate_score", _or_nan, math.nan),
        )
    except ManifestError as e:
        raise ProtocolError(f"expected the report of a shadow: {e}") from e
    if max(report.disagreed, report.non_finite, report.scored) > report.compared:
        raise ProtocolError("the report of a shadow says more of compared calls than were compared")
    return report


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(sketch: Histogram | QuantileSketch) -> str:
    return base64.b64encode(sketch.to_bytes()).decode()


def _texts(of: Mapping[str, Mapping[str, Histogram | QuantileSketch]]) -> dict[str, dict[str, str]]:
    return {name: {word: _text(one) for word, one in by_word.items()} for name, by_word in of.items()}


def _time(value: object, where: str) -> float:
    found = finite(value, where)
    if not 0 <= found < 1e12:
        raise wrong(found, where, "seconds from 0")
    return found


def _or_none(parse: Parse[_T]) -> Parse[_T | None]:
    return lambda value, where: None if value is None else parse(value, where)


def _or_nan(value: object, where: str) -> float:
    return math.nan if value is None else finite(value, where)


def _named(parse: Parse[_T], check_key: Parse[str] = text) -> Parse[dict[str, _T]]:
    def parse_all(value: object, where: str) -> dict[str, _T]:
        given = mapping(value, where)
        if len(given) > _MOST_NAMES:
            raise ManifestError(f"{where} has {len(given)} entries; {_MOST_NAMES} are allowed")
        return {check_key(k, f"a key of {where}"): parse(v, f"{where}[{k!r:.60}]") for k, v in given.items()}

    return parse_all


def _classes(value: object, where: str) -> dict[int, int]:
    given = mapping(value, where)
    if len(given) > _MOST_CLASSES:
        raise ManifestError(f"{where} has {len(given)} entries; {_MOST_CLASSES} are allowed")
    index = matching(r"-1|[0-9]{1,9}", "the index of a class, or -1")
    return {int(index(k, f"a key of {where}")): count(v, f"{where}[{k}]") for k, v in given.items()}


def _sketch(read: Callable[[bytes], _Sketch]) -> Parse[_Sketch]:
    def parse(value: object, where: str) -> _Sketch:
        if not isinstance(value, str) or len(value) > _MOST_SKETCH:
            raise wrong(value, where, f"base64 of at most {_MOST_SKETCH} characters")
        try:
            return read(base64.b64decode(value, validate=True))
        except (binascii.Error, ValueError) as e:
            raise ManifestError(f"{where} is damaged: {e}") from e

    return parse


_quantiles = _sketch(QuantileSketch.from_bytes)
_histogram = _sketch(Histogram.from_bytes)


def reports_as_one(reports: Mapping[str, ShadowReport]) -> ShadowReport | None:
    """Return what several applications report of the same candidate as if one had; None of none."""
    if not reports:
        return None
    found = list(reports.values())
    scored = sum(r.scored for r in found)
    compared = sum(r.compared for r in found)

    def total(name: str) -> int:
        return sum(getattr(r, name) for r in found)

    def mean(name: str, weight: str, whole: int) -> float:
        values: list[tuple[float, int]] = [(getattr(r, name), getattr(r, weight)) for r in found]
        return sum((value * n for value, n in values if n), 0.0) / whole if whole else math.nan

    return ShadowReport(
        sampled=total("sampled"),
        dropped=total("dropped"),
        failed=total("failed"),
        compared=compared,
        disagreed=total("disagreed"),
        non_finite=total("non_finite"),
        max_abs_error={
            name: max(r.max_abs_error.get(name, 0.0) for r in found)
            for name in {name for r in found for name in r.max_abs_error}
        },
        live_p50_ms=mean("live_p50_ms", "compared", compared),
        candidate_p50_ms=mean("candidate_p50_ms", "compared", compared),
        last_error=next((r.last_error for r in found if r.last_error), ""),
        scored=scored,
        live_score=mean("live_score", "scored", scored),
        candidate_score=mean("candidate_score", "scored", scored),
    )
