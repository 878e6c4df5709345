"""The page on pipelines describes every step as the code declares it."""

from __future__ import annotations

from tests.docs.pipeline_tables import PAGE, with_tables


def test_the_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "run  python tests/docs/pipeline_tables.py"
