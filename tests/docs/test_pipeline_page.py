"""The pages on pipelines and chains describe every step as the code declares it."""

from __future__ import annotations

from tests.docs import chain_tables
from tests.docs.pipeline_tables import PAGE, with_tables


def test_the_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "run  python tests/docs/pipeline_tables.py"


def test_the_tables_of_chains_are_those_of_the_code() -> None:
    page = chain_tables.PAGE.read_text(encoding="utf-8")
    assert page == chain_tables.with_tables(page), "run  python -m tests.docs.chain_tables"
