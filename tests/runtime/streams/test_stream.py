"""Streams: who waits for whom, what is dropped and why, and how they end."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.runtime.streams.parts import (
    WAIT_S,
    Clock,
    Doubling,
    Gate,
    all_accounted_for,
    ones,
    open_files,
    running_sum,
    stream_threads,
)

from edgec.errors import DataError, InferenceError, InputError, PipelineError, SourceError
from edgec.runtime import Host, Pool, load, load_chain
from edgec.runtime.streams import (
    Captured,
    Hosted,
    Items,
    Policy,
    Reconnect,
    Recurrent,
    Stream,
    StreamResult,
    open_source,
)
from edgec.runtime.testing import tiny_artifact


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    assert stream_threads() == []
    yield
    assert stream_threads() == []


def test_results_come_in_order_with_what_belongs_to_them() -> None:
    with Stream([10, Captured(sample=20, name="second", captured_s=None)], Doubling()) as stream:
        first, second = list(stream)
        assert list(stream) == []  # it stays ended
        done = stream.statistics
    assert (first.index, first.sample, first.prediction, first.name) == (0, 10, {"y": 20}, "")
    assert (second.index, second.sample, second.prediction, second.name) == (1, 20, {"y": 40}, "second")
    assert (first.missed, second.missed) == (0, 0)
    assert first.age_ms >= first.latency_ms >= 0
    assert abs(first.captured_at - time.time()) < 60
    assert (done.captured, done.given, done.pending) == (2, 2, 0)
    assert done.latency_ms.count == done.age_ms.count == 2
    assert done.to_dict()["dropped"] == {"source": 0, "queue": 0, "deadline": 0, "error": 0}


@pytest.mark.parametrize(
    ("policy", "queue", "indices"),
    [
        ("latest", 8, [0, 9]),
        ("drop_oldest", 3, [0, 7, 8, 9]),
        ("drop_oldest", 1, [0, 9]),
        ("block", 3, list(range(10))),
    ],
)
def test_what_gives_way_when_the_model_is_slow(policy: Policy, queue: int, indices: list[int]) -> None:
    gate, brought = Gate(), []

    def source() -> Iterator[int]:
        for number in range(10):
            if number == 1:
                assert gate.came.wait(WAIT_S)  # the model has the first and is busy
            brought.append(number)
            if len(brought) == (queue + 2 if policy == "block" else 10):
                blocked.set()
            yield number

    blocked = threading.Event()
    items = Items(source(), live=policy != "block")
    with Stream(items, Doubling(gate), policy=policy, queue=queue) as stream:
        results: list[StreamResult] = []
        taking = threading.Thread(target=lambda: results.extend(stream))
        taking.start()
        assert blocked.wait(WAIT_S)
        if policy == "block":
            assert len(brought) == queue + 2  # one predicted, `queue` that wait, one that has no place
        else:
            while stream.statistics.captured < 10 or len(stream._buffer) == 0:  # the last one is in its place
                time.sleep(0.001)
        gate.open.set()
        taking.join(WAIT_S)
        done = stream.statistics
    assert [result.index for result in results] == indices
    assert done.dropped["queue"] == 10 - len(indices)
    assert sum(result.missed for result in results) == 10 - len(indices)
    assert done.captured == 10
    assert done.pending == 0


def test_what_is_live_keeps_the_latest_and_what_is_not_waits() -> None:
    for live, least, most in ((True, 2, 3), (False, 10, 10)):
        gate = Gate()
        gate.open.set()

        def source(gate: Gate = gate) -> Iterator[int]:
            yield 0
            assert gate.came.wait(WAIT_S)
            yield from range(1, 10)

        taken = []
        with Stream(Items(source(), live=live), Doubling(gate)) as stream:
            taken.append(next(stream))
            while live and stream.statistics.captured < 10:
                time.sleep(0.001)
            taken += list(stream)
        # Live: the first, perhaps one that was ready and waited for us, and the last.
        assert least <= len(taken) <= most + 2 * live
        assert taken[-1].index == 9


def test_too_old_before_the_model_costs_no_prediction() -> None:
    clock = Clock()
    predicted: list[int] = []
    items = [Captured(sample=age, captured_s=clock() - age / 1e3) for age in (0, 99, 101, 500, 50)]
    with Stream(items, Doubling(predicted.append), deadline_ms=100, clock=clock) as stream:
        ages = [result.age_ms for result in stream]
        done = stream.statistics
    assert ages == pytest.approx([0, 99, 50])
    assert predicted == [0, 99, 50]
    assert done.dropped["deadline"] == 2


def test_too_old_after_the_model_is_dropped() -> None:
    clock = Clock()
    with Stream(
        [10, 120, 30], Doubling(lambda ms: clock.pass_s(ms / 1e3)), deadline_ms=100, clock=clock, queue=1
    ) as s:
        results = list(s)
        done = s.statistics
    assert 120 not in [result.sample for result in results]
    assert all(result.age_ms <= 100 for result in results)
    assert done.dropped["deadline"] == 3 - len(results)


def test_too_old_while_it_waits_to_be_taken_is_dropped() -> None:
    clock, ready = Clock(), threading.Event()

    def source() -> Iterator[int]:
        yield 1
        yield 2  # asked for when the first is in the buffer
        ready.wait(WAIT_S)
        yield 3

    with Stream(source(), Doubling(), deadline_ms=100, clock=clock) as stream:
        assert next(stream).sample == 1
        while stream.statistics.latency_ms.count < 2:  # the second is predicted, and waits
            time.sleep(0.001)
        clock.pass_s(0.2)
        ready.set()
        assert next(stream).sample == 3
        assert stream.statistics.dropped["deadline"] == 1


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 80), st.integers(0, 80), st.integers(0, 120)), min_size=1, max_size=30),
    st.sampled_from(["latest", "drop_oldest", "block"]),
    st.integers(1, 4),
    st.integers(1, 150),
)
def test_nothing_older_than_the_deadline_is_ever_given_out(
    times_ms: list[tuple[int, int, int]], policy: Policy, queue: int, deadline_ms: int
) -> None:
    """Whatever source, model and application take, in whatever order their threads run."""
    clock, captured_s = Clock(), {}

    def source() -> Iterator[Captured]:
        for number, (before, _, _) in enumerate(times_ms):
            clock.pass_s(before / 1e3)
            captured_s[number] = clock()
            yield Captured(sample=number, captured_s=captured_s[number])

    model = Doubling(lambda number: clock.pass_s(times_ms[number][1] / 1e3))
    taken_s, results = [], []
    with Stream(source(), model, policy=policy, queue=queue, deadline_ms=deadline_ms, clock=clock) as stream:
        for result in stream:
            results.append(result)
            taken_s.append(clock())
            clock.pass_s(times_ms[result.index][2] / 1e3)
        done = stream.statistics
    for result, taken in zip(results, taken_s, strict=True):
        assert result.age_ms <= deadline_ms
        assert 0 <= result.age_ms <= (taken - captured_s[result.index]) * 1e3 + 1e-6
    assert [r.index for r in results] == sorted({r.index for r in results})
    assert done.captured == len(times_ms)
    assert done.pending == 0
    assert all_accounted_for(done)
    assert sum(r.missed for r in results) == (results[-1].index + 1 - len(results) if results else 0)


def failing(sample: Any) -> None:
    if sample == 2:
        raise PipelineError("no image")


def test_an_error_of_the_model_is_raised_after_the_results_before_it() -> None:
    taken: list[int] = []
    with Stream([1, 2, 3], Doubling(failing)) as stream:
        with pytest.raises(PipelineError, match="no image"):
            stream.run(lambda result: taken.append(result.sample))
        assert list(stream) == []
        assert stream.statistics.last_error == "PipelineError: no image"
    assert taken == [1]


def test_errors_may_be_dropped_and_counted() -> None:
    with Stream([1, 2, 3], Doubling(failing), on_error="drop") as stream:
        assert [(r.sample, r.missed) for r in stream] == [(1, 0), (3, 1)]
        assert stream.statistics.dropped["error"] == 1
        assert stream.statistics.last_error == "PipelineError: no image"


def test_a_bug_of_the_application_is_raised_as_it_is_even_so() -> None:
    def broken(sample: Any) -> None:
        raise ZeroDivisionError("mine")

    with (
        Stream([1], Doubling(broken), on_error="drop") as stream,
        pytest.raises(ZeroDivisionError, match="mine"),
    ):
        next(stream)


def unplugged() -> Iterator[int]:
    yield 1
    raise OSError("unplugged")


def test_a_source_that_fails_is_a_typed_error_after_what_it_gave() -> None:
    with Stream(Items(unplugged(), name="camera 3"), Doubling()) as stream:
        assert next(stream).sample == 1
        with pytest.raises(SourceError, match="camera 3 failed: OSError: unplugged") as caught:
            next(stream)
        assert not caught.value.transient
        assert isinstance(caught.value.__cause__, OSError)


def test_a_source_that_can_begin_again_does_after_growing_waits() -> None:
    plugged_in = iter([unplugged(), unplugged(), iter([7])])
    chances = iter([0.5, 1.0, 0.25])
    with Stream(
        Items(lambda: next(plugged_in), live=True),
        Doubling(),
        policy="block",
        reconnect=Reconnect(first_s=0.001),
        chance=lambda: next(chances),
    ) as stream:
        assert [result.sample for result in stream] == [1, 1, 7]
        done = stream.statistics
    assert (done.reconnects, done.captured, done.last_error) == (
        2,
        3,
        "SourceError: the iterable failed: OSError: unplugged",
    )


def test_a_source_that_never_comes_back_ends_the_stream() -> None:
    opened = []

    def never() -> Iterator[int]:
        opened.append(1)
        if len(opened) > 1:
            raise OSError("gone")
        return unplugged()

    with Stream(Items(never), Doubling(), reconnect=Reconnect(attempts=3, first_s=0.0)) as stream:
        assert next(stream).sample == 1
        with pytest.raises(SourceError, match="gone"):
            next(stream)
    assert len(opened) == 1 + 3


def test_the_first_time_a_source_does_not_open_is_an_error() -> None:
    opened = []

    def never() -> Iterator[int]:
        opened.append(1)
        raise OSError("not there")

    with Stream(Items(never), Doubling()) as stream, pytest.raises(SourceError, match="not there"):
        next(stream)
    assert len(opened) == 1


def test_waits_are_bounded_however_often_it_fails() -> None:
    reconnect = Reconnect(first_s=0.5, most_s=30)
    assert [reconnect.delay_s(n, 1.0) for n in (0, 1, 2, 5, 6, 10_000)] == [0.5, 1, 2, 16, 30, 30]
    assert reconnect.delay_s(10_000, 0.0) == 0


class Unfit(Items):
    """Gives numbers, and a `DataError` for every other one."""

    def read(self, stop: threading.Event) -> Captured | None:
        captured = super().read(stop)
        if captured is not None and captured.sample % 2:
            raise DataError(f"{captured.sample} is odd")
        return captured


def test_an_item_that_is_unfit_is_an_error_or_counted() -> None:
    with Stream(Unfit(range(4)), Doubling(), on_error="drop") as stream:
        assert [r.sample for r in stream] == [0, 2]
        assert stream.statistics.dropped["source"] == 2
        assert all_accounted_for(stream.statistics)
    with Stream(Unfit(range(4)), Doubling()) as stream:
        assert next(stream).sample == 0
        with pytest.raises(DataError, match="1 is odd"):
            next(stream)


@pytest.mark.parametrize("policy", ["latest", "drop_oldest", "block"])
def test_closing_in_the_middle_leaves_nothing_behind(policy: Policy) -> None:
    def endless() -> Iterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    files = open_files()
    for _ in range(20):
        with Stream(Items(endless(), live=True), Doubling(), policy=policy) as stream:
            for result in stream:
                if result.index > 2:
                    break
        assert stream_threads() == []
        assert list(stream) == []
        stream.close()
    gc.collect()
    assert open_files() <= files


def test_closing_from_another_thread_ends_who_waits() -> None:
    never = threading.Event()

    def silent() -> Iterator[int]:
        never.wait()
        yield 1

    stream = Stream(silent(), Doubling())
    ended = threading.Thread(target=lambda: list(stream))
    ended.start()
    time.sleep(0.01)
    never.set()  # an iterable cannot be interrupted, but what it gives then goes nowhere
    stream.close()
    ended.join(WAIT_S)
    assert not ended.is_alive()


def test_closing_unused_does_nothing() -> None:
    stream = Stream([1], Doubling())
    stream.close()
    assert list(stream) == []


def test_run_gives_every_result_to_every_sink_and_ends_in_time() -> None:
    seen: list[int] = []
    with Stream([1, 2, 3], Doubling()) as stream:
        done = stream.run(lambda r: seen.append(r.sample), lambda r: seen.append(-r.sample))
    assert seen == [1, -1, 2, -2, 3, -3]
    assert done.given == 3
    silence = threading.Event()

    def silent() -> Iterator[int]:
        yield 1
        silence.wait(WAIT_S)

    with Stream(silent(), Doubling()) as stream:
        assert next(stream).sample == 1
        assert stream.run(duration_s=0.05).given == 1
        silence.set()


def test_async_iteration_shares_the_loop() -> None:
    async def main() -> tuple[list[int], list[int]]:
        async def take(stream: Stream) -> list[int]:
            async with stream:
                return [result.sample async for result in stream]

        slow = Doubling(lambda sample: time.sleep(0.002))
        return tuple(await asyncio.gather(take(Stream(range(5), slow)), take(Stream(range(7), slow))))  # type: ignore[return-value]

    assert asyncio.run(main()) == (list(range(5)), list(range(7)))


def test_async_iteration_that_is_cancelled_loses_no_result() -> None:
    gate = Gate()

    async def main() -> list[int]:
        async with Stream([1, 2], Doubling(gate)) as stream:
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(stream.__anext__(), 0.02)
            gate.open.set()
            return [result.sample async for result in stream]

    assert asyncio.run(main()) == [1, 2]


def test_async_errors_come_to_who_iterates() -> None:
    async def main() -> None:
        async with Stream([2], Doubling(failing)) as stream:
            async for _ in stream:
                pass

    with pytest.raises(PipelineError, match="no image"):
        asyncio.run(main())


def test_several_streams_share_a_session_and_its_pool(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "tiny.edgec")
    with Pool(workers=1) as pool, load(artifact, pool=pool) as session:
        streams = [Stream(ones(20), session, deadline_ms=60_000) for _ in range(3)]
        results: list[list[StreamResult]] = [[] for _ in streams]

        def take(number: int) -> None:
            with streams[number] as stream:
                results[number].extend(stream)

        threads = [threading.Thread(target=take, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(WAIT_S)
        expected = [session.predict(sample)["y"] for sample in ones(20)]
    for taken in results:
        assert len(taken) == 20
        for result, y in zip(taken, expected, strict=True):
            np.testing.assert_array_equal(result.prediction["y"], y)


@pytest.mark.slow
def test_a_model_of_a_host_and_a_swap_in_the_middle(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "tiny.edgec")
    with Host() as host:
        host.add("tiny", artifact)
        with Stream(ones(6), Hosted(host, "tiny")) as stream:
            for result in stream:
                if result.index == 2:
                    with host.session("tiny") as session:
                        session.swap(artifact)
            assert stream.statistics.given == 6


def test_a_session_that_is_closed_ends_the_stream_with_its_error(tmp_path: Path) -> None:
    session = load(tiny_artifact(tmp_path / "tiny.edgec"))
    with Stream(cycle(ones(1)), session) as stream:
        next(stream)
        session.close()
        with pytest.raises(InferenceError, match="closed"):
            list(stream)


def test_a_state_goes_from_window_to_window(tmp_path: Path) -> None:
    with load(running_sum(tmp_path / "sum.edgec")) as session:
        total = Recurrent(session, {"before": "after"})
        with Stream([np.array([i, 1], np.float32) for i in range(5)], total) as stream:
            totals = [result.prediction["total"].tolist() for result in stream]
        assert totals == [[[0, 1]], [[1, 2]], [[3, 3]], [[6, 4]], [[10, 5]]]
        assert total.state["before"].tolist() == [[10, 5]]
        with pytest.raises(InputError):
            total.predict(np.zeros((1, 3), np.float32))
        assert total.state["before"].tolist() == [[10, 5]]  # as it was
        total.reset()
        assert total.predict(np.ones(2, np.float32))["total"].tolist() == [[1, 1]]
        given = Recurrent(session, {"before": "after"}).predict({"x": np.ones((1, 2), np.float32)})
        assert list(given) == ["total"]


@pytest.mark.parametrize(
    ("state", "fixed", "problem"),
    [
        ({"hidden": "after"}, {}, "no input 'hidden' .there are x, before"),
        ({"before": "hidden"}, {}, "no output 'hidden' .there are total, after"),
        ({"before": "after"}, {"sr": np.array(1)}, "no input 'sr'"),
        ({"before": "after"}, {"x": np.array(1)}, "none is left"),
    ],
)
def test_a_state_that_the_model_has_not_is_refused(
    tmp_path: Path, state: dict[str, str], fixed: dict[str, Any], problem: str
) -> None:
    with load(running_sum(tmp_path / "sum.edgec")) as session, pytest.raises(InputError, match=problem):
        Recurrent(session, state, fixed=fixed)


def test_what_has_streams_of_its_own_begins_one_for_each() -> None:
    class WithState:
        begun = 0

        def predict(self, sample: Any) -> dict[str, Any]:
            raise AssertionError("the stateless call")

        def stream(self) -> Doubling:
            self.begun += 1
            return Doubling()

    chain = WithState()
    for _ in range(2):
        with Stream([4], chain) as stream:
            assert next(stream).prediction == {"y": 8}
    assert chain.begun == 2


@pytest.mark.parametrize(
    ("arguments", "error", "problem"),
    [
        ({"policy": "newest"}, ValueError, "latest, drop_oldest, block"),
        ({"queue": 0}, ValueError, "at least 1"),
        ({"deadline_ms": 0}, ValueError, "above 0"),
        ({"deadline_ms": float("nan")}, ValueError, "above 0"),
        ({"on_error": "ignore"}, ValueError, "raise or drop"),
        ({"source": 1.5}, SourceError, "got float"),
        ({"source": "nowhere.mp4"}, SourceError, "no source 'nowhere.mp4'"),
    ],
)
def test_wrong_arguments_are_refused_at_once(
    arguments: dict[str, Any], error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=problem):
        Stream(**{"source": [1], "session": Doubling(), **arguments})


def test_a_stream_that_is_interrupted_while_it_starts_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if thread.name == "edgec-predict":
            raise KeyboardInterrupt
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt), Stream([1], Doubling()) as stream:
        next(stream)
    assert stream_threads() == []


def test_what_is_no_source_says_what_is_one() -> None:
    with pytest.raises(SourceError, match="rtsp://"):
        open_source("no/such/thing")


def test_each_stream_over_a_chain_has_a_state_of_its_own(tmp_path: Path) -> None:
    running_sum(tmp_path / "sum.edgec")
    (tmp_path / "sum.chain.toml").write_text(
        """
name = "sums"
inputs.x = { shape = [1, 2] }
outputs = { total = "add.total" }

[[stages]]
name = "add"
artifact = "sum.edgec"
inputs = { x = "x" }
state = { input = "before", output = "after" }
"""
    )
    samples = [np.full((1, 2), n, np.float32) for n in range(4)]
    with load_chain(tmp_path / "sum.chain.toml") as chain:
        for _ in range(2):
            with Stream(samples, chain) as stream:
                totals = [float(np.asarray(result.prediction["total"]).flat[0]) for result in stream]
            assert totals == [0, 1, 3, 6]
