"""Streams: a source, a model, and what happens when one is faster than the other.

One thread captures, another predicts, the application's own takes results; a buffer stands between the first
two, and one result waits for the last. A sample that is older than the deadline is dropped wherever that is
noticed, at the latest when it would be given out.
"""

from __future__ import annotations

import asyncio
import atexit
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import random
from threading import Condition, Event, Lock, Thread, current_thread
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from edgec.errors import DataError, DeadlineError, EdgecError, OverloadedError, SourceError
from edgec.runtime.streams._buffer import Buffer, Policy
from edgec.runtime.streams._results import CAUSES, StreamResult, StreamStatistics
from edgec.runtime.streams._source import Captured, Source
from edgec.sketch import QuantileSketch

if TYPE_CHECKING:
    from edgec.runtime._pool import Pool

_JOIN_S = 5.0


class Predictor(Protocol):
    """What a stream runs: a session, a chain, `Recurrent`, `Hosted`, or anything else that predicts."""

    def predict(self, sample: Any, /) -> Mapping[str, Any]:
        """Return the prediction for one sample."""
        ...


@dataclass(frozen=True, kw_only=True)
class Reconnect:
    """What to do about a source that fails and may work again: a camera, a network.

    Before attempt ``n`` in a row passes a random time of up to ``first_s * 2**n`` seconds, at most `most_s`.

    Attributes:
        attempts: In a row, after which its error ends the stream; 0 for none, None for no bound.
        first_s: Longest wait before the first.
        most_s: Longest wait before any.
    """

    attempts: int | None = 10
    first_s: float = 0.5
    most_s: float = 30.0

    def delay_s(self, attempt: int, chance: float) -> float:
        """Return how long to wait before an attempt, numbered from 0, for a `chance` from 0 to 1."""
        return chance * min(self.most_s, self.first_s * 2.0 ** min(attempt, 62))


class _Sample(NamedTuple):
    """What waits for its prediction: times are those of the stream's clock."""

    number: int
    captured: Captured
    time: float
    wall: float


class _Ready(NamedTuple):
    """A prediction that waits to be taken."""

    sample: _Sample
    prediction: Mapping[str, Any]
    latency_ms: float


class Stream:
    """Predictions for what a source gives, one after the other; close it, or use ``with``.

        with Stream("rtsp://camera/1", session, deadline_ms=200) as stream:
            for result in stream:
                print(result.name, result.prediction, result.age_ms)

    It is its own iterator, for one thread or, with ``async for``, one task. The source is opened when the
    first result is asked for, and read until it ends or the stream is closed; it belongs to the stream, and
    is closed with it, while session and pool stay open. Several streams may share a session.
    """

    def __init__(
        self,
        source: Source | str | int | Path | Iterable[Any],
        session: Predictor,
        *,
        policy: Policy | None = None,
        deadline_ms: float | None = None,
        queue: int = 8,
        on_error: Literal["raise", "drop"] = "raise",
        reconnect: Reconnect | None = None,
        pool: Pool | None = None,
        priority: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
        chance: Callable[[], float] = random,
    ) -> None:
        """Make a stream; nothing is opened yet.

        Args:
            source: A source, what `open_source` understands, or an iterable of samples.
            session: What predicts. Where it has a method ``stream``, as chains do, what that gives is used,
                which has a state of its own.
            policy: What happens to samples that come faster than they are predicted: ``latest`` keeps the
                newest only, ``drop_oldest`` the newest `queue`, ``block`` lets the source wait. None for
                ``latest`` where the source is live, and else ``block``.
            deadline_ms: The oldest that a sample may be when its result is given out; older ones are dropped.
                None for any age.
            queue: Samples that may wait; ``latest`` has 1.
            on_error: Whether an error of a prediction, or of one item of the source, is raised and ends the
                stream, or the sample is dropped and counted.
            reconnect: For sources that fail and may work again; None for ``Reconnect()``. The first time that
                the source is opened is never repeated: its error is raised.
            pool: Runs the predictions, so that streams share its threads; None for that of the session, or,
                where it has none, the stream's own thread.
            priority: In the pool.
            clock: Monotonic, in seconds; that of the source too.
            wall_clock: Seconds since 1970.
            chance: Random numbers from 0 to 1.

        Raises:
            SourceError: There is no such source.
            ValueError: A number, the policy or `on_error` is none that there can be.
        """
        if deadline_ms is not None and not deadline_ms > 0:
            raise ValueError(f"expected a deadline above 0 ms, got {deadline_ms}")
        if on_error not in ("raise", "drop"):
            raise ValueError(f"expected on_error of raise or drop, got {on_error!r}")
        from edgec.runtime.streams._open import as_source

        self._source = as_source(source, session)
        if policy is None:
            policy = "latest" if self._source.live else "block"
        self._buffer: Buffer[_Sample] = Buffer(policy, queue)
        self._predict = _predictor(session)
        self._pool: Pool | None = getattr(session, "pool", None) if pool is None else pool
        self._priority = priority
        self._deadline_s = None if deadline_ms is None else deadline_ms / 1e3
        self._drops_errors = on_error == "drop"
        self._reconnect = reconnect or Reconnect()
        self._clock, self._wall, self._chance = clock, wall_clock, chance
        self._stop = Event()
        self._changed = Condition(Lock())
        self._ready: _Ready | None = None
        self._failure: BaseException | None = None
        self._over = False
        self._waiters: deque[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = deque()
        self._threads: list[Thread] = []
        # What statistics are made of; changes under the lock.
        self._began: float | None = None
        self._ended: float | None = None
        self._captured = self._given = self._reconnects = 0
        self._dropped: dict[str, int] = dict.fromkeys(CAUSES, 0)
        self._last_index = -1
        self._last_error = ""
        self._latency, self._age = QuantileSketch(), QuantileSketch()

    # Taking results

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> StreamResult:
        """Wait for the next result.

        Raises:
            StopIteration: The source has ended, or the stream was closed.
            SourceError: The source failed for good; the stream has ended.
            EdgecError: A prediction failed, unless such samples are dropped; the stream has ended.
        """
        result = self._next(None)
        if result is None:
            raise StopIteration
        return result

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> StreamResult:
        """Wait for the next result without blocking the event loop; see `__next__`."""
        self._start()
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if (result := self._take()) is not None:
                    return result
                if self._over:
                    self._raise_failure()
                    raise StopAsyncIteration
                waiter = loop, loop.create_future()
                self._waiters.append(waiter)
            try:
                await waiter[1]
            finally:
                with self._changed:
                    if waiter in self._waiters:
                        self._waiters.remove(waiter)

    def run(
        self, *sinks: Callable[[StreamResult], object], duration_s: float | None = None
    ) -> StreamStatistics:
        """Give every result to sinks, until the source ends.

        Args:
            sinks: Called with each result, in their order; a sink of this package, or any function.
            duration_s: After which to return in any case; None for no bound.

        Raises:
            EdgecError: As of `__next__`, and what sinks raise.
        """
        until = None if duration_s is None else time.monotonic() + duration_s
        while (result := self._next(until)) is not None:
            for sink in sinks:
                sink(result)
        return self.statistics

    @property
    def statistics(self) -> StreamStatistics:
        """How it has done so far; a copy."""
        lost = self._source.lost
        with self._changed:
            dropped = {**self._dropped, "source": self._dropped["source"] + lost}
            captured = self._captured + lost
            began = self._clock() if self._began is None else self._began
            latency, age = QuantileSketch(), QuantileSketch()
            latency.merge(self._latency)
            age.merge(self._age)
            return StreamStatistics(
                seconds=(self._clock() if self._ended is None else self._ended) - began,
                captured=captured,
                given=self._given,
                dropped=dropped,
                pending=captured - self._given - sum(dropped.values()),
                reconnects=self._reconnects,
                last_error=self._last_error,
                latency_ms=latency,
                age_ms=age,
            )

    def close(self) -> None:
        """End it: results that nobody took are gone, source and threads with them; again, it does nothing.

        A prediction that runs is waited for, and so is a source that reads; one that does not come back, as
        an iterable that waits for ever, is left behind after 5 seconds with a warning.
        """
        self._stop.set()
        self._buffer.end(discard=True)
        with self._changed:
            self._ready = None
            self._finish()
            threads, self._threads = self._threads, []
        atexit.unregister(self.close)
        for thread in threads:
            # Ctrl-C may have come before it was started.
            if thread.is_alive() and thread is not current_thread():
                thread.join(_JOIN_S)
                if thread.is_alive():
                    from logging import getLogger

                    getLogger("edgec.runtime").warning(
                        "%s did not come back within %g s of its stream's end; its thread is left behind",
                        self._source.name, _JOIN_S,
                    )  # fmt: skip

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        return f"<Stream of {self._source.name}: {self._given} given>"

    def _start(self) -> None:
        with self._changed:
            if self._threads or self._over:
                return
            self._began = self._clock()
            for name, work in (("capture", self._capture), ("predict", self._infer)):
                self._threads.append(Thread(target=work, name=f"edgec-{name}", daemon=True))
            for thread in self._threads:
                thread.start()
        # An engine or a camera must not be caught in a call when the interpreter ends.
        atexit.register(self.close)

    def _next(self, until: float | None) -> StreamResult | None:
        """Wait for a result until a time of the monotonic clock; None where none comes any more."""
        self._start()
        with self._changed:
            while until is None or time.monotonic() < until:
                if (result := self._take()) is not None:
                    return result
                if self._over:
                    self._raise_failure()
                    return None
                self._changed.wait(None if until is None else max(0.0, until - time.monotonic()))
            return None

    def _take(self) -> StreamResult | None:
        """Return the result that waits, if it is not too old; under the lock."""
        ready, self._ready = self._ready, None
        if ready is None:
            return None
        self._changed.notify_all()
        sample = ready.sample
        age_s = self._clock() - sample.time
        if self._deadline_s is not None and age_s > self._deadline_s:
            self._dropped["deadline"] += 1
            return None
        self._given += 1
        self._age.add(age_s * 1e3)
        missed, self._last_index = sample.number - self._last_index - 1, sample.number
        return StreamResult(
            index=sample.number,
            name=sample.captured.name,
            sample=sample.captured.sample,
            picture=sample.captured.picture,
            prediction=ready.prediction,
            captured_at=sample.wall,
            age_ms=age_s * 1e3,
            latency_ms=ready.latency_ms,
            missed=missed,
        )

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    # Capturing

    def _capture(self) -> None:
        try:
            self._read_all()
        except BaseException as e:  # noqa: BLE001 - whatever it is, it belongs to who iterates
            self._fail(e)
        finally:
            self._source.close()
            self._buffer.end()

    def _read_all(self) -> None:
        attempt = 0
        while not self._stop.is_set():
            read = self._captured
            try:
                self._source.open()
                self._read_until_it_ends()
                return
            except SourceError as e:
                if self._captured > read:
                    attempt = 0
                first = self._reconnects == 0 and self._captured == 0 and attempt == 0
                most = self._reconnect.attempts
                if not e.transient or first or (most is not None and attempt >= most):
                    raise
                self._source.close()
                self._note(e)
            self._stop.wait(self._reconnect.delay_s(attempt, self._chance()))
            attempt += 1
            with self._changed:
                self._reconnects += 1

    def _read_until_it_ends(self) -> None:
        while not self._stop.is_set():
            try:
                captured = self._source.read(self._stop)
            except DataError as e:
                self._count_unfit(e)
                continue
            if captured is None:
                return
            now = self._clock()
            at = now if captured.captured_s is None else captured.captured_s
            sample = _Sample(self._next_index(), captured, at, self._wall() - (now - at))
            gave_way = self._buffer.put(sample)
            if gave_way and not self._stop.is_set():
                with self._changed:
                    self._dropped["queue"] += gave_way

    def _next_index(self) -> int:
        with self._changed:
            self._captured += 1
            return self._captured - 1

    def _count_unfit(self, error: DataError) -> None:
        if not self._drops_errors:
            raise error
        self._next_index()
        with self._changed:
            self._dropped["source"] += 1
        self._note(error)

    # Predicting

    def _infer(self) -> None:
        try:
            while (sample := self._buffer.get()) is not None:
                ready = self._predicted(sample)
                if ready is not None:
                    self._offer(ready)
                del sample, ready  # what they hold must not live until the next one
        except BaseException as e:  # noqa: BLE001 - whatever it is, it belongs to who iterates
            self._stop.set()
            self._buffer.end(discard=True)  # the capture may wait for room
            self._fail(e)
        finally:
            with self._changed:
                self._finish()

    def _predicted(self, sample: _Sample) -> _Ready | None:
        if self._drop_if_late(sample):
            return None
        start = self._clock()
        try:
            prediction = self._call(sample)
        except (DeadlineError, OverloadedError) as e:
            self._drop("deadline" if isinstance(e, DeadlineError) else "queue")
            self._note(e)
            return None
        except EdgecError as e:
            if not self._drops_errors:
                raise
            self._drop("error")
            self._note(e)
            return None
        latency_ms = (self._clock() - start) * 1e3
        with self._changed:
            self._latency.add(latency_ms)
        return None if self._drop_if_late(sample) else _Ready(sample, prediction, latency_ms)

    def _call(self, sample: _Sample) -> Mapping[str, Any]:
        if self._pool is None:
            return self._predict(sample.captured.sample)
        left_ms = None
        if self._deadline_s is not None:
            left_ms = max(0.0, self._deadline_s - (self._clock() - sample.time)) * 1e3
        return self._pool.submit(
            self._predict, sample.captured.sample, priority=self._priority, deadline_ms=left_ms
        ).result()

    def _offer(self, ready: _Ready) -> None:
        """Put a result where it is taken, once the one before has been."""
        with self._changed:
            while self._ready is not None and not self._stop.is_set():
                self._changed.wait()
            if not self._stop.is_set():
                self._ready = ready
                self._wake()

    def _drop_if_late(self, sample: _Sample) -> bool:
        late = self._deadline_s is not None and self._clock() - sample.time > self._deadline_s
        if late:
            self._drop("deadline")
        return late

    def _drop(self, cause: str) -> None:
        with self._changed:
            self._dropped[cause] += 1

    def _note(self, error: BaseException) -> None:
        with self._changed:
            self._last_error = f"{type(error).__name__}: {error}"

    def _fail(self, error: BaseException) -> None:
        """Keep an error for who iterates; what was ready before goes first."""
        self._note(error)
        with self._changed:
            if self._failure is None:
                self._failure = error

    def _finish(self) -> None:
        """Nothing comes any more; under the lock."""
        self._over = True
        if self._ended is None and self._began is not None:
            self._ended = self._clock()
        self._wake()

    def _wake(self) -> None:
        """Wake who waits for a result, or for room for one; under the lock."""
        self._changed.notify_all()
        while self._waiters:
            loop, waiter = self._waiters.popleft()
            try:
                loop.call_soon_threadsafe(_resolve, waiter)
            except RuntimeError:  # the loop is closed: nobody waits there any more
                continue


def _resolve(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _predictor(session: Predictor) -> Callable[[Any], Mapping[str, Any]]:
    begin = getattr(session, "stream", None)
    return session.predict if begin is None else begin().predict
