"""Calls that are joined: when, how, and when not."""

from __future__ import annotations

from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tests.runtime.test_session import repacked

from edgec.errors import DeadlineError, InferenceError, InputError, OverloadedError
from edgec.runtime import Batcher, Pool, Session, load
from edgec.runtime.testing import onnxruntime_spec, tiny_artifact

pytest.importorskip("onnxruntime", reason="needs onnxruntime")


def x(value: float, rows: int = 1) -> dict[str, NDArray[np.float32]]:
    return {"x": np.full((rows, 4), value, np.float32)}


class Watched:
    """A session's `run` that notes how many rows it gets, and can be held up."""

    def __init__(self, session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        self.go = Event()
        self.go.set()
        self.fails_from = 1000
        self._run = session.run
        monkeypatch.setattr(session, "run", self.run)

    def run(self, inputs: Any, outputs: Any = None) -> Any:
        """Note, wait, run."""
        self.sizes.append(len(inputs["x"]))
        self.go.wait(60)
        if len(inputs["x"]) >= self.fails_from:
            raise InferenceError("too many")
        return self._run(inputs, outputs)

    def hold(self, batcher: Batcher) -> Any:
        """Keep the batcher busy with one call until `go` is set."""
        self.go.clear()
        before = len(self.sizes)
        future = batcher.submit(x(0))
        until = monotonic() + 60
        while len(self.sizes) == before and monotonic() < until:
            sleep(0.001)
        return future


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tiny_artifact(tmp_path / "n.edgec", batch="n")


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let it pay, whatever the machine does meanwhile."""
    monkeypatch.setattr("edgec.runtime._batcher.LEAST_GAIN", 0.0)


def test_it_is_off_where_the_model_has_no_free_batch_and_says_so(tmp_path: Path) -> None:
    with load(tiny_artifact(tmp_path / "a.edgec")) as session, Batcher(session) as batcher:
        assert not batcher.enabled
        assert "named dimension in front" in batcher.reason
        assert batcher.run(x(1))["y"].shape == (1, 3)


def test_it_is_off_where_answers_would_depend_on_their_neighbours(path: Path) -> None:
    with load(repacked(path, engine=onnxruntime_spec(precision="int8-dynamic"))) as session:
        batcher = Batcher(session)
        assert not batcher.enabled
        assert "neighbours" in batcher.reason


def test_it_is_off_where_it_does_not_pay(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgec.runtime._batcher.LEAST_GAIN", 1e9)
    with load(path) as session, Batcher(session) as batcher:
        assert not batcher.enabled
        assert batcher.gain > 0
        assert "times as fast" in batcher.reason


@pytest.mark.usefixtures("always")
def test_calls_are_joined_and_each_gets_its_own_answer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path) as session, Batcher(session, max_batch=8, max_delay_ms=50) as batcher:
        assert batcher.enabled
        want = {i: session.run(x(i, 1 + i % 2))["y"] for i in range(12)}
        watched = Watched(session, monkeypatch)
        first = watched.hold(batcher)
        futures = {i: batcher.submit(x(i, 1 + i % 2)) for i in range(12)}
        watched.go.set()
        first.result(60)
        for i, future in futures.items():
            np.testing.assert_allclose(future.result(60)["y"], want[i], rtol=1e-6)
    assert sum(watched.sizes) == 1 + 18
    assert len(watched.sizes) <= 5
    assert max(watched.sizes) <= 8


@pytest.mark.usefixtures("always")
def test_a_call_waits_no_longer_than_it_may(path: Path) -> None:
    with load(path) as session, Batcher(session, max_delay_ms=60_000) as batcher:
        start = monotonic()
        assert batcher.submit(x(1), deadline_ms=1000).result(60)["y"].shape == (1, 3)
        assert monotonic() - start < 30


@pytest.mark.usefixtures("always")
def test_what_is_late_refused_or_cancelled_is_not_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path) as session, Batcher(session, max_queue=3, max_delay_ms=0) as batcher:
        watched = Watched(session, monkeypatch)
        first = watched.hold(batcher)
        late, unwanted = batcher.submit(x(1), deadline_ms=1), batcher.submit(x(2))
        good = batcher.submit(x(3))
        with pytest.raises(OverloadedError, match="3 calls wait"):
            batcher.submit(x(4))
        with pytest.raises(InputError):
            batcher.submit({"z": x(1)["x"]})
        assert unwanted.cancel()
        sleep(0.01)
        watched.go.set()
        assert first.result(60)["y"].shape == good.result(60)["y"].shape
        with pytest.raises(DeadlineError):
            late.result(60)
        with pytest.raises(CancelledError):
            unwanted.result(60)
        assert watched.sizes == [1, 1]


@pytest.mark.usefixtures("always")
def test_a_batch_that_fails_is_run_one_by_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with load(path) as session, Batcher(session, max_delay_ms=0) as batcher:
        watched = Watched(session, monkeypatch)
        first = watched.hold(batcher)
        watched.fails_from = 2
        small, large = batcher.submit(x(1)), batcher.submit(x(2, rows=2))
        watched.go.set()
        assert small.result(60)["y"].shape == (1, 3)
        with pytest.raises(InferenceError, match="too many"):
            large.result(60)
        first.result(60)
        assert batcher.run(x(5))["y"].shape == (1, 3)


@pytest.mark.usefixtures("always")
def test_it_works_through_a_pool_and_refuses_once_closed(path: Path) -> None:
    with Pool(2) as pool, load(path, pool=pool) as session, ThreadPoolExecutor(4) as callers:
        batcher = Batcher(session, max_delay_ms=1)
        want = [session.run(x(i))["y"] for i in range(40)]
        for got, expected in zip(callers.map(lambda i: batcher.run(x(i)), range(40)), want, strict=True):
            np.testing.assert_allclose(got["y"], expected, rtol=1e-6)
        batcher.close()
        with pytest.raises(InferenceError, match="batcher is closed"):
            batcher.submit(x(1))


@pytest.mark.parametrize("wrong", [{"max_batch": 1}, {"max_queue": 0}, {"max_delay_ms": -1.0}])
def test_wrong_bounds_are_refused(path: Path, wrong: dict[str, Any]) -> None:
    with load(path) as session, pytest.raises(ValueError, match="expected max_batch"):
        Batcher(session, **wrong)
