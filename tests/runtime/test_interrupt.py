"""Calls that nobody waits for any more: those that run are stopped, where the engine can do that."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from tests.runtime.test_batcher import Watched, always, path, x

from edgec.errors import DeadlineError
from edgec.runtime import Batcher, Session, load
from edgec.runtime._interrupt import Interrupt
from edgec.runtime.testing import tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")
__all__ = ["always", "path"]


class Told(Interrupt):
    """Says when the engine has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = Event()

    def attach(self, stop: Callable[[], object] | None) -> None:
        """Note it."""
        super().attach(stop)
        self.begun.set()


@pytest.fixture(params=["bound", "large"])
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Session]:
    """One that copies inputs to bound buffers, and one that does not."""
    batch: int | str = 1 if request.param == "bound" else "n"
    with load(tiny_artifact(tmp_path / "tiny.edgec", batch=batch)) as opened:
        yield opened


def test_a_call_that_is_to_stop_is_stopped_and_the_next_one_runs(session: Session) -> None:
    interrupt = Interrupt()
    interrupt.ask()
    with interrupt, pytest.raises(DeadlineError, match="nobody waits"):
        session.run(x(1))
    told = Told()
    with told:
        assert session.run(x(1))["y"].shape == (1, 3)
    assert told.begun.is_set()
    told.ask()  # too late: nothing is stopped any more
    assert session.run(x(1))["y"].shape == (1, 3)


@pytest.mark.usefixtures("always")
def test_a_call_given_up_makes_room_in_the_batch(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path) as session:
        batcher = Batcher(session, max_batch=2, max_delay_ms=0)
        watched = Watched(session, monkeypatch)
        first = watched.hold(batcher)
        given_up, kept, last = (batcher.submit(x(value)) for value in (1, 2, 3))
        assert batcher.abandon(given_up)
        watched.go.set()
        for future, value in ((first, 0), (kept, 2), (last, 3)):
            assert np.isfinite(future.result(60)["y"]).all(), value
        assert given_up.cancelled()
        assert watched.sizes == [1, 2]
        batcher.close()


@pytest.mark.usefixtures("always")
def test_a_batch_is_stopped_when_the_last_of_its_callers_has_gone(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(path) as session:
        batcher = Batcher(session, max_batch=2, max_delay_ms=0)
        begun, go, sizes, run = [Event(), Event()], [Event(), Event()], [], session.run

        def gated(inputs: Any) -> Any:
            sizes.append(len(inputs["x"]))
            if (i := len(sizes) - 1) < 2:
                begun[i].set()
                assert go[i].wait(60)
            return run(inputs)

        monkeypatch.setattr(session, "run", gated)
        batcher.submit(x(0))
        assert begun[0].wait(60)
        both = [batcher.submit(x(1)), batcher.submit(x(2))]
        go[0].set()
        assert begun[1].wait(60)
        assert not batcher.abandon(both[0])
        assert not batcher._interrupt.asked
        assert not batcher.abandon(both[1])
        assert batcher._interrupt.asked
        go[1].set()
        for future in both:
            with pytest.raises(DeadlineError):
                future.result(60)
        assert batcher.run(x(4))["y"].shape == (1, 3)
        assert sizes == [1, 2, 1]
        batcher.close()


@pytest.mark.usefixtures("always")
def test_who_waits_for_a_joined_call_can_be_told_to_stop(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path) as session, ThreadPoolExecutor(1) as threads:
        batcher = Batcher(session, max_batch=2, max_delay_ms=0)
        watched = Watched(session, monkeypatch)
        watched.hold(batcher)
        told = Told()

        def call() -> None:
            with told:
                batcher.run(x(1))

        waiting = threads.submit(call)
        assert told.begun.wait(60)
        told.ask()
        with pytest.raises(DeadlineError, match="not run"):
            waiting.result(60)
        assert not told.was_begun
        watched.go.set()
        batcher.close()
        assert watched.sizes == [1]
