"""The HTML report: one file that needs no network, no script and no other file."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from edgec.artifact import _report_text as _format
from edgec.compiler.report import _charts, _figures, _pareto, _verdict
from edgec.errors.extras import needs_extra

if TYPE_CHECKING:
    from jinja2 import Environment


def render_html(build: Mapping[str, Any]) -> str:
    """Return the report of one build as a self-contained HTML page.

    Every text of `build` is taken for hostile: escaped, and stripped of control characters.

    Args:
        build: As `edgec.compiler.report.Build`; what is missing or None is shown as not known.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    return _environment().get_template("template.html").render(build=build)


@cache
def _environment() -> Environment:
    with needs_extra("the HTML report", "compiler"):
        import jinja2

    files = resources.files("edgec.compiler.report")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (files / name).read_text(encoding="utf-8")),
        autoescape=True,
        # Looking into what is missing gives something missing again, which `finalize` shows.
        undefined=jinja2.ChainableUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "bytes": _format.bytes_text,
        "count": _format.count_text,
        "db": _format.decibel_text,
        "duration": _format.duration_text,
        "engine": _format.engine_title,
        "metric": _format.metric_title,
        "percent": _format.percent_text,
        "pretty": _pretty,
        "score": _format.score_text,
        "sentence": _format.sentence,
        "shape": _format.shape_text,
        "sig": _format.significant,
        "time": _format.time_text,
    }
    environment.globals |= {
        "accuracy_chart": _charts.accuracy_chart,
        "accuracy_text": _verdict.accuracy_text,
        "budget_text": _verdict.budget_text,
        "candidates_of": _verdict.candidates_of,
        "chosen": _verdict.chosen,
        "command_line": _command_line,
        "estimate_text": _verdict.estimate_text,
        "is_other_precision": _verdict.is_other_precision,
        "latency_chart": _charts.latency_chart,
        "overview": _verdict.overview,
        "pareto_plot": _pareto.pareto_plot,
        "placement_shares": _charts.placement_shares,
        "size_change": _verdict.size_change,
        "size_chart": _charts.size_chart,
        "layers_chart": _charts.layers_chart,
        "speed_text": _format.speed_text,
        "state_text": _verdict.state_text,
        "unit_of": _figures.unit_of,
        "warnings_of": _verdict.warnings_of,
        "winner_of": _verdict.winner_of,
    }
    return environment


def _shown(value: Any) -> Any:
    """Return what the page shows for `value`; jinja2 escapes it afterwards."""
    from jinja2 import Undefined
    from markupsafe import Markup

    if value is None or isinstance(value, Undefined):
        return _format.NOT_KNOWN
    if isinstance(value, str) and not isinstance(value, Markup):
        return _format.clean(value)
    return value


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, default=str)


def _command_line(words: Any) -> str:
    return shlex.join(str(w) for w in words) if isinstance(words, list | tuple) else str(words)
