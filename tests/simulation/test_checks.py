"""Checks of orders, by simulated devices of one process."""

from __future__ import annotations

import threading

import pytest

pytest.importorskip("sqlalchemy", reason="simulated devices need the extra 'fleet'")

from edgec.simulation._checks import Checks


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgec.simulation._checks._TOGETHER_S", 2.0)
    monkeypatch.setattr("edgec.simulation._checks._MOST_S", 20.0)


@pytest.mark.usefixtures("patient")
def test_orders_that_come_together_are_heard_before_one_is_checked() -> None:
    checks, done, heard = Checks(), list[tuple[int, int]](), list[int]()
    over = threading.Event()

    def check(number: int) -> None:
        done.append((number, len(heard)))
        if len(done) == 20:
            over.set()

    try:
        for number in range(20):
            heard.append(number)
            checks.run(lambda number=number: check(number))  # type: ignore[misc]
        assert over.wait(60)
    finally:
        checks.close()
    # Unless this machine stood still for two seconds between two of them, all were asked for before.
    assert sorted(number for number, _ in done) == list(range(20))
    assert min(known for _, known in done) > 1


def test_none_waits_for_ever_for_others() -> None:
    checks, first, over = Checks(), threading.Event(), threading.Event()

    def go_on() -> None:
        while not over.wait(0.05):
            checks.run(lambda: None)

    other = threading.Thread(target=go_on)
    try:
        checks.run(first.set)
        other.start()
        assert first.wait(60)
    finally:
        over.set()
        other.join()
        checks.close()


@pytest.mark.usefixtures("patient")
def test_what_was_not_begun_ends_with_the_simulation() -> None:
    others = set(threading.enumerate())
    checks, begun = Checks(), list[int]()
    for number in range(50):
        checks.run(lambda number=number: begun.append(number))  # type: ignore[misc]
    checks.close()
    for thread in set(threading.enumerate()) - others:
        thread.join(60)
        assert not thread.is_alive()
    assert not begun
