"""The page on the protocol and the AsyncAPI document say what the code does."""

from __future__ import annotations

from tests.docs.protocol_tables import ASYNCAPI, PAGE, document, with_tables

ADVICE = "run  python tests/docs/protocol_tables.py"


def test_the_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), ADVICE


def test_the_asyncapi_document_is_that_of_the_code() -> None:
    assert ASYNCAPI.read_text(encoding="utf-8") == document(), ADVICE
