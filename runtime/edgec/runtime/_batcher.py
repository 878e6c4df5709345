"""Calls that come at about the same time, run as one."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from statistics import median
from threading import Condition, Thread, current_thread
from time import monotonic, perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from edgec.errors import DeadlineError, InferenceError, OverloadedError
from edgec.runtime._batches import Outputs, join, rows, shape_key, split, why_not_batched
from edgec.runtime._inputs import check_inputs
from edgec.runtime._interrupt import Interrupt, interrupt_here

if TYPE_CHECKING:
    from concurrent.futures import Future

    from edgec.runtime._session import Session

Arrays = Mapping[str, NDArray[Any]]
# What a batch has to be faster by to be worth the wait.
LEAST_GAIN = 1.2
_ROUNDS, _PROBE_S = 7, 1.0


class _Call(NamedTuple):
    """One call that waits."""

    inputs: Arrays
    key: tuple[tuple[int, ...], ...]
    size: int
    came: float
    deadline: float
    future: Future[Outputs]


class Batcher:
    """Joins calls of one session that come within a few milliseconds; close it, or use ``with``.

    Off where the model does not allow it, or a measurement shows that it does not pay: calls then go
    straight to ``Session.submit``. Safe from several threads.

    Attributes:
        enabled: Whether calls are joined.
        reason: Why, in a sentence.
        batches: Calls of the engine that several were joined to, or one that came alone.
        calls: That went through them.
        gain: How many times faster `max_batch` calls are as one; NaN where that was not measured.
    """

    enabled: bool
    reason: str
    gain: float
    batches: int
    calls: int

    def __init__(
        self,
        session: Session,
        *,
        max_batch: int = 8,
        max_delay_ms: float = 2.0,
        max_queue: int = 256,
        sample: Arrays | None = None,
    ) -> None:
        """Measure, with a few calls, whether it pays.

        Args:
            session: Stays the caller's to close, after this.
            max_batch: Most rows of one joined call.
            max_delay_ms: How long a call may wait for others; one that comes while the model runs waits
                for that, too.
            max_queue: Calls that may wait; one more is refused.
            sample: Inputs to measure with; None for zeros, with 1 for every named dimension.

        Raises:
            ValueError: `max_batch` is below 2, `max_queue` below 1 or `max_delay_ms` negative.
            InputError, InferenceError: The session does not run the sample.
        """
        if max_batch < 2 or max_queue < 1 or not max_delay_ms >= 0:
            raise ValueError(
                f"expected max_batch from 2, max_queue from 1 and max_delay_ms from 0, got {max_batch}, "
                f"{max_queue} and {max_delay_ms}"
            )
        self._session = session
        self._most = max_batch
        self._delay = max_delay_ms / 1e3
        self._max_queue = max_queue
        self._changed = Condition()
        self._queue: deque[_Call] = deque()
        self._closed = False
        self._thread: Thread | None = None
        self._running: list[_Call] = []
        self._interrupt = Interrupt()
        self.gain = float("nan")
        self.batches = self.calls = 0
        self.reason = why_not_batched(session.manifest, session.promised.precision)
        if not self.reason:
            self.gain = _measured_gain(session, sample or _zeros(session), max_batch)
            faster = f"{max_batch} calls as one are {self.gain:.2f} times as fast"
            self.reason = f"{faster}; from {LEAST_GAIN} it pays"
        self.enabled = self.gain >= LEAST_GAIN

    def submit(self, inputs: Arrays, *, deadline_ms: float | None = None) -> Future[Outputs]:
        """Queue one inference; leave the arrays as they are until the future is done.

        Args:
            inputs: As of ``Session.run``.
            deadline_ms: From now: where it has not begun by then, it fails with `DeadlineError`.

        Raises:
            InputError: The inputs do not fit; nothing was queued.
            OverloadedError: `max_queue` calls wait already.
            InferenceError: This is closed.
        """
        if not self.enabled:
            if self._closed:
                raise InferenceError("the batcher is closed: make another")
            return self._session.submit(inputs, deadline_ms=deadline_ms)
        from concurrent.futures import Future  # here, because its import takes 5 ms

        check_inputs(self._session.inputs, inputs)
        now = monotonic()
        deadline = float("inf") if deadline_ms is None else now + deadline_ms / 1e3
        call = _Call(inputs, shape_key(inputs), rows(inputs), now, deadline, Future())
        with self._changed:
            if self._closed:
                raise InferenceError("the batcher is closed: make another")
            if len(self._queue) >= self._max_queue:
                self._count("overloaded")
                raise OverloadedError(
                    f"{len(self._queue)} calls wait already, and no more may: call again later or less often"
                )
            self._queue.append(call)
            if self._thread is None:
                self._thread = Thread(target=self._work, name="edgec-batches", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return call.future

    def abandon(self, future: Future[Outputs]) -> bool:
        """Give up a call that was queued: it makes room for others, or stops with the last one of its batch.

        Returns:
            Whether it had not begun.
        """
        with self._changed:
            waiting = next((call for call in self._queue if call.future is future), None)
            if waiting is not None:
                self._queue.remove(waiting)
            elif any(call.future is future for call in self._running):
                _settle(future, error=DeadlineError("nobody waits for the call any more; it was given up"))
                if all(call.future.done() for call in self._running):
                    self._interrupt.ask()
        if waiting is not None:
            future.cancel()
        return waiting is not None

    def run(self, inputs: Arrays, *, deadline_ms: float | None = None) -> Outputs:
        """Run one inference with others, and wait for it; see `submit`."""
        future = self.submit(inputs, deadline_ms=deadline_ms)
        interrupt = interrupt_here()
        if interrupt is None:
            return future.result()
        from concurrent.futures import CancelledError  # here, because its import takes 5 ms

        interrupt.attach(lambda: self.abandon(future))
        try:
            return future.result()
        except CancelledError as e:
            interrupt.was_begun = False
            raise DeadlineError("nobody waits for the call any more; it was not run") from e

    def predict(self, sample: object, *, deadline_ms: float | None = None) -> dict[str, Any]:
        """Run the whole pipeline on a sample; only the inference is joined with others.

        Args:
            sample: As of ``Session.predict``.
            deadline_ms: For the inference to begin, from when the sample is prepared; see `submit`.

        Raises:
            PipelineError: The sample does not fit the pipeline.
            InputError, OverloadedError, DeadlineError, InferenceError: As of `submit` and its future.
        """
        processor = self._session.current_processor()
        inputs, context = processor.preprocess(sample)
        outputs = self.run(inputs, deadline_ms=deadline_ms)
        if self._session.current_processor() is not processor:
            # Swapped meanwhile, for a model that may want its inputs otherwise.
            return self.predict(sample, deadline_ms=deadline_ms)
        return processor.postprocess(outputs, context)

    def close(self) -> None:
        """End it; what runs ends as it would have, what waits is cancelled."""
        with self._changed:
            self._closed = True
            waiting = list(self._queue)
            self._queue.clear()
            self._changed.notify_all()
        for call in waiting:
            call.future.cancel()
        if self._thread is not None and self._thread is not current_thread():
            self._thread.join()

    def __enter__(self) -> Batcher:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _work(self) -> None:
        while calls := self._next():
            begun = [call for call in calls if self._begins(call)]
            if begun:
                with self._changed:
                    self._running, self._interrupt = begun, Interrupt()
                with self._interrupt:
                    self._answer(begun)
                with self._changed:
                    self._running = []
            del calls, begun  # what they hold must not live until the next ones

    def _next(self) -> list[_Call]:
        """Wait for calls that can be joined; none once this is closed."""
        with self._changed:
            while True:
                if self._closed:
                    return []
                if not self._queue:
                    self._changed.wait()
                    continue
                chosen = self._chosen()
                left = min(call.came + self._delay for call in chosen) - monotonic()
                # A deadline ends the wait: half of it is left for the call to begin in.
                left = min([left, *((c.deadline + c.came) / 2 - monotonic() for c in chosen)])
                full = sum(call.size for call in chosen) >= self._most or len(chosen) < len(self._queue)
                if full or left <= 0:
                    taken = set(map(id, chosen))
                    self._queue = deque(call for call in self._queue if id(call) not in taken)
                    return chosen
                self._changed.wait(left)

    def _chosen(self) -> list[_Call]:
        """Return the first call, and those after it that fit to it."""
        first = self._queue[0]
        chosen, size = [first], first.size
        for call in list(self._queue)[1:]:
            if call.key == first.key and size + call.size <= self._most:
                chosen.append(call)
                size += call.size
        return chosen

    def _answer(self, calls: list[_Call]) -> None:
        session = self._session
        # A swap may have brought a model whose answers would depend on their neighbours.
        if len(calls) > 1 and not why_not_batched(session.manifest, session.promised.precision):
            try:
                parts = split(self._run(join([c.inputs for c in calls])), [c.size for c in calls])
            except Exception:  # noqa: BLE001 - whatever it is: one by one, only those fail that have to
                pass
            else:
                self.batches += 1
                self.calls += len(calls)
                for call, part in zip(calls, parts, strict=True):
                    _settle(call.future, part)
                return
        for call in calls:
            if not call.future.done():
                self._answer_one(call)

    def _answer_one(self, call: _Call) -> None:
        self.batches += 1
        self.calls += 1
        try:
            outputs = self._run(call.inputs)
        except BaseException as e:  # noqa: BLE001 - whatever it is, it belongs to who waits
            _settle(call.future, error=e)
        else:
            _settle(call.future, outputs)

    def _begins(self, call: _Call) -> bool:
        if not call.future.set_running_or_notify_cancel():
            return False
        if monotonic() <= call.deadline:
            return True
        self._count("deadline")
        call.future.set_exception(
            DeadlineError("the call waited until its deadline had passed; it was not run")
        )
        return False

    def _count(self, reason: str) -> None:
        if self._session.observer is not None:
            self._session.observer.dropped(reason)

    def _run(self, inputs: Arrays) -> Outputs:
        # Through the pool where there is one of the caller's: it knows what else the device has to do.
        session = self._session
        return session.run(inputs) if session.pool is None else session.submit(inputs).result()


def _settle(
    future: Future[Outputs], outputs: Outputs | None = None, error: BaseException | None = None
) -> None:
    """Answer a call, unless it was given up."""
    from concurrent.futures import InvalidStateError  # here, because its import takes 5 ms

    try:
        if outputs is None:
            future.set_exception(error)
        else:
            future.set_result(outputs)
    except InvalidStateError:
        pass


def _measured_gain(session: Session, sample: Arrays, count: int) -> float:
    """Return how many times faster calls are as one, joining and splitting included."""
    calls = [sample] * count
    sizes = [rows(sample)] * count
    alone, together = [], []
    begin = perf_counter()
    for i in range(_ROUNDS + 1):
        start = perf_counter()
        for call in calls:
            session.run(call)
        middle = perf_counter()
        split(session.run(join(calls)), sizes)
        end = perf_counter()
        if i:  # the first warms up
            alone.append(middle - start)
            together.append(end - middle)
            if end - begin > _PROBE_S:
                break
    return median(alone) / median(together)


def _zeros(session: Session) -> dict[str, NDArray[Any]]:
    return {
        s.name: np.full(
            [n if isinstance(n, int) else 1 for n in s.shape], "" if s.dtype == "object" else 0, s.dtype
        )
        for s in session.inputs
    }
