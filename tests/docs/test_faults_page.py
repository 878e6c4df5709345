"""Every fault that a device answers for has a test, and the page names it."""

from __future__ import annotations

from tests.docs.fault_tables import FAULTS, PAGE, named_rows, with_table


def test_every_fault_has_a_test() -> None:
    assert set(FAULTS) - set(named_rows()) == set()


def test_the_table_is_that_of_the_tests() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_table(page), "run  python -m tests.docs.fault_tables"
