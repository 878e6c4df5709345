"""Rounds of many agents in one thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="simulated devices need the extra 'fleet'")

from edgec.device_agent import AgentConfig
from edgec.simulation import Simulation
from edgec.simulation._rounds import Rounds

_NEVER_S = 1e6


@pytest.fixture
def rounds() -> Iterator[Rounds]:
    made = Rounds()
    made.start()
    yield made
    made.close()


def test_what_is_asked_for_is_done_after_it_was_asked_for(rounds: Rounds) -> None:
    seen, wanted = [0], [0]
    done = threading.Condition()

    def turn() -> float:
        with done:
            seen[0] = wanted[0]
            done.notify_all()
        return _NEVER_S

    added = rounds.add(turn)
    for number in range(1, 500):
        with done:
            wanted[0] = number
        added.ask()
    with done:
        assert done.wait_for(lambda: seen[0] == 499, 60)


def test_what_is_due_is_done_unasked(rounds: Rounds) -> None:
    twice = threading.Semaphore(0)

    def turn() -> float:
        twice.release()
        return 0.1

    rounds.add(turn)
    for _ in range(3):
        assert twice.acquire(timeout=60)


def test_nobody_is_at_what_was_removed(rounds: Rounds) -> None:
    begun, others = threading.Event(), threading.Event()
    ended = list[int]()

    def slow() -> float:
        begun.set()
        time.sleep(0.5)
        ended.append(1)
        return 0.0

    added = rounds.add(slow)
    assert begun.wait(60)
    rounds.remove(added)
    assert ended == [1]
    added.ask()
    rounds.add(lambda: others.set() or _NEVER_S)  # type: ignore[func-returns-value]
    assert others.wait(60)
    assert ended == [1]


def test_an_error_ends_one_and_is_told(rounds: Rounds, caplog: pytest.LogCaptureFixture) -> None:
    tried, others = list[int](), threading.Semaphore(0)

    def broken() -> float:
        tried.append(1)
        raise RuntimeError("a bug")

    def sound() -> float:
        others.release()
        return _NEVER_S

    added, other = rounds.add(broken), rounds.add(sound)
    for _ in range(3):
        assert others.acquire(timeout=60)
        added.ask()
        other.ask()
    assert len(tried) == 1
    assert "a bug" in caplog.text


def test_what_was_never_begun_ends(tmp_path: Path) -> None:
    Rounds().close()
    root = tmp_path / "root.json"
    config = AgentConfig(
        device="dev1", hardware=("cpu-x86_64",), state_dir=tmp_path, image_root=root, director_root=root
    )
    simulation = Simulation([config])
    simulation.close()
    simulation.close()
