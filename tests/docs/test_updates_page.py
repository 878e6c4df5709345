"""The page on updates describes the state machine as it is."""

from __future__ import annotations

from tests.docs.update_tables import PAGE, phases, with_tables

from edgec.device_agent._turn import WORK


def test_the_tables_are_those_of_the_code() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == with_tables(page), "run  python -m tests.docs.update_tables"


def test_every_phase_is_in_the_tables() -> None:
    found = phases()
    assert set(WORK) | {"idle", "deferred", "cleaned"} == set(found)
    assert all(state.phase == phase for phase, state in found.items())
