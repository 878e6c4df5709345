"""The summary that a terminal shows at the end of a build."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from edgec.artifact._report_text import (
    bytes_text,
    decibel_text,
    metric_title,
    number,
    one_line,
    score_text,
    significant,
    time_unit,
)
from edgec.compiler.report._verdict import (
    accuracy_text,
    candidates_of,
    chosen,
    drop_bound_text,
    estimate_text,
    overview,
    parity_text,
    state_text,
    warnings_of,
    winner_of,
)

_INDENT = "  "
# Columns that go, the first one first, until the table fits.
_EXPENDABLE = ("p99", "size", "parity", "status")
_NARROWEST_NAME = 12
_OUT = ("refused", "failed", "skipped")


def render_text(build: Mapping[str, Any], *, width: int = 100) -> str:
    """Return a summary of one build: per target its candidates, the winner, why, and where it is.

    Control characters in texts of `build` are replaced, so that none of them drives the terminal.

    Args:
        build: As `edgec.compiler.report.Build`; what is missing or None is left out.
        width: Of the terminal, in characters; lines that can be broken are not longer.
    """
    width = max(width, 40)
    blocks = []
    warned = warnings_of(build)
    if warned:
        blocks.append([line for w in warned for line in _wrapped(_warning(w.target, w.text), width)])
    blocks += [_artifact(a, width) for a in build.get("artifacts") or ()]
    blocks.append(_wrapped(overview(build), width, indent=""))
    return "\n\n".join("\n".join(block) for block in blocks) + "\n"


def _warning(target: str | None, text: str) -> str:
    return f"WARNING {target + ': ' if target else ''}{text}"


def _artifact(artifact: Mapping[str, Any], width: int) -> list[str]:
    target = one_line(artifact.get("target"))
    title = one_line(artifact.get("target_title") or "")
    lines = [target + (f"  ({title})" if title and len(target) + len(title) + 4 <= width else "")]
    decisions = [str(d) for d in artifact.get("decisions") or ()]
    lines += _table(candidates_of(artifact), decisions, width)
    lines += _fact("chosen", _chosen(artifact), width)
    estimated = estimate_text(artifact.get("estimate"))
    if estimated is not None:
        lines += _fact("estimate", estimated, width)
    lines += _facts("why", decisions, width)
    lines += _facts("not run", artifact.get("not_run") or (), width)
    # A path is never broken: it is there to be copied.
    size = bytes_text(artifact.get("size_bytes"))
    return [*lines, f"{_INDENT}{'artifact':<9}{one_line(artifact.get('path'))} ({size})"]


def _chosen(artifact: Mapping[str, Any]) -> str:
    won = winner_of(artifact)
    accuracy = artifact.get("accuracy") or won.get("accuracy") or {}
    parts = [chosen(artifact)]
    if number(accuracy.get("artifact")) is not None:
        metric = accuracy.get("metric")
        said = "; ".join(filter(None, (accuracy_text(accuracy), drop_bound_text(accuracy))))
        text = f"{metric_title(metric)} {score_text(accuracy['artifact'], metric)}"
        parts.append(f"{text} ({said})" if said else text)
    parts.append(f"parity {parity_text(artifact.get('parity') or won.get('parity'))}")
    parts += filter(None, [state_text(artifact.get("state"))])
    return "; ".join(parts)


def _table(candidates: Sequence[Mapping[str, Any]], decisions: Sequence[str], width: int) -> list[str]:
    """Return a line per candidate, and beneath one that is out the reason, unless a decision gives it."""
    if not candidates:
        return []
    header, rows = _cells(candidates)
    columns = [n for n in range(len(header)) if n == 0 or any(row[n] for row in rows)]
    for name in _EXPENDABLE:
        if _table_width(header, rows, columns) > width:
            columns = [n for n in columns if header[n] != name]
    widths = {n: max(len(line[n]) for line in (header, *rows)) for n in columns}
    widths[0] = max(_NARROWEST_NAME, widths[0] - max(0, _table_width(header, rows, columns) - width))
    lines = [_line(" ", header, columns, widths)]
    for candidate, row in zip(candidates, rows, strict=True):
        status, reason = candidate.get("status"), str(candidate.get("reason") or "")
        lines.append(_line("*" if status == "winner" else " ", row, columns, widths))
        if status in _OUT and reason and not any(reason in d for d in decisions):
            lines += _wrapped(reason, width, indent=_INDENT * 3)
    return lines


def _cells(candidates: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the cells of the table; a cell of something not known is empty."""
    times = [x for c in candidates for k in ("p50", "p99") if (x := _latency(c, k)) is not None]
    unit, factor = time_unit(times)
    metrics = [a["metric"] for c in candidates if (a := c.get("accuracy")) and a.get("metric")]
    score = metric_title(metrics[0]) if metrics else "accuracy"
    header = ["candidate", "status", f"p50 {unit}", "p99", "vs fp32", score, "parity", "size"]
    return header, [_row(c, factor) for c in candidates]


def _row(candidate: Mapping[str, Any], factor: float) -> list[str]:
    p50, p99 = _latency(candidate, "p50"), _latency(candidate, "p99")
    speedup = number(candidate.get("speedup"))
    accuracy, parity = candidate.get("accuracy"), candidate.get("parity")
    size = candidate.get("size_bytes")
    return [
        one_line(candidate.get("name")),
        one_line(candidate.get("status")),
        "" if p50 is None else significant(p50 * factor),
        "" if p99 is None else significant(p99 * factor),
        "" if speedup is None else f"{significant(speedup)}x",
        score_text(accuracy.get("artifact"), accuracy.get("metric")) if accuracy else "",
        _parity_cell(parity) if parity else "",
        "" if size is None else bytes_text(size),
    ]


def _parity_cell(parity: Mapping[str, Any]) -> str:
    figure = decibel_text(parity.get("snr_db"), max_abs_error=parity.get("max_abs_error"))
    return figure if parity.get("passed") else f"FAILED {figure}"


def _latency(candidate: Mapping[str, Any], key: str) -> float | None:
    return number((candidate.get("latency_ms") or {}).get(key))


def _table_width(header: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    cells = sum(max(len(line[n]) for line in (header, *rows)) for n in columns)
    return len(_INDENT) + cells + 2 * (len(columns) - 1)


def _line(mark: str, cells: Sequence[str], columns: Sequence[int], widths: Mapping[int, int]) -> str:
    """Return one line of the table: texts to the left, figures to the right."""
    shown = [cells[n] if len(cells[n]) <= widths[n] else cells[n][: widths[n] - 1] + "…" for n in columns]
    placed = [
        f"{text:<{widths[n]}}" if n < 2 else f"{text:>{widths[n]}}"
        for n, text in zip(columns, shown, strict=True)
    ]
    return f"{mark} {'  '.join(placed)}".rstrip()


def _facts(name: str, texts: Sequence[object], width: int) -> list[str]:
    """Return a paragraph per text, the first one with the name before it."""
    return [line for n, text in enumerate(texts) for line in _fact("" if n else name, text, width)]


def _fact(name: str, text: object, width: int) -> list[str]:
    return _wrapped(str(text), width, indent=f"{_INDENT}{name:<9}")


def _wrapped(text: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        one_line(text),
        width,
        initial_indent=indent,
        subsequent_indent=" " * len(indent),
        break_long_words=False,
        break_on_hyphens=False,
    )
