"""The tables of docs/chains.md, made from the steps themselves.

Run this file to write them into the page: python -m tests.docs.chain_tables
"""

from __future__ import annotations

from pathlib import Path

from tests.docs.pipeline_tables import section

from edgec.artifact.steps import Step
from edgec.runtime.chains._steps import STEPS, Model

PAGE = Path(__file__).parents[2] / "docs" / "chains.md"


_BEGIN, _END = "<!-- stages: from the code -->", "<!-- end of stages -->"


def with_tables(page: str) -> str:
    """Return a page with the tables between its marks as they should be."""
    before, after = page.split(_BEGIN)[0], page.split(_END)[1]
    stages: list[type[Step]] = [Model, *STEPS.values()]
    tables = "\n\n".join(section(step) for step in stages)
    return f"{before}{_BEGIN}\n\n{tables}\n\n{_END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
