"""The tables of docs/pipeline.md, made from the steps themselves.

Run this file to write them into the page.
"""

from __future__ import annotations

import json
from inspect import cleandoc
from pathlib import Path

from edgec.artifact.steps import POSTPROCESS, PREPROCESS, Key, Step

PAGE = Path(__file__).parents[2] / "docs" / "pipeline.md"
_BEGIN, _END = "<!-- {}: from the code -->", "<!-- end of {} -->"


def tables(stage: str) -> str:
    """Return the sections of a stage's steps."""
    known = {"preprocess": PREPROCESS, "postprocess": POSTPROCESS}[stage]
    return "\n\n".join(section(step) for step in known.values())


def with_tables(page: str) -> str:
    """Return a page with the tables between its marks as they should be."""
    for stage in ("preprocess", "postprocess"):
        begin, end = _BEGIN.format(stage), _END.format(stage)
        before, after = page.split(begin)[0], page.split(end)[1]
        page = f"{before}{begin}\n\n{tables(stage)}\n\n{end}{after}"
    return page


def section(step: type[Step]) -> str:
    """Return what the page says of a step."""
    rows = [_row(name, key) for name, key in step.keys.items()]
    head = "| key | takes | default | meaning |\n|---|---|---|---|\n"
    return f"### {step.step}\n\n{cleandoc(step.__doc__ or '')}\n\n{head}" + "\n".join(rows)


def _row(name: str, key: Key) -> str:
    cells = (f"`{name}`", key.check.expected.replace("'", "`"), _default(key), key.doc)
    return "| " + " | ".join(cells) + " |"


def _default(key: Key) -> str:
    if key.required:
        return "required"
    value = key.default[0] if isinstance(key.default, tuple) and len(key.default) == 1 else key.default
    if isinstance(value, float):
        return f"`{value:g}`"
    return "" if value is None else f"`{json.dumps(value)}`"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
