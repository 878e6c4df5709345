"""Counting and sampling the calls of a session, at a bounded cost."""

from __future__ import annotations

import math
import random
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgec.errors import DeadlineError, OverloadedError
from edgec.runtime._input_statistics import MOST_VALUES
from edgec.runtime._looking import Looker
from edgec.runtime._window import Window
from edgec.sketch import QuantileSketch

if TYPE_CHECKING:
    from concurrent.futures import Future

    from edgec.runtime._pool import Pool
    from edgec.runtime._session import Session

OVERLOADED, LATE = "overloaded", "deadline"
Arrays = Mapping[str, NDArray[Any]]
Run = Callable[[Arrays], "dict[str, NDArray[Any]]"]
# Times of calls that are kept before they are put into the sketch, together: that is ten times cheaper.
_MOST_TIMES = 512
_FEW = 12
# What looking into a call costs, in its own time: the calls after it find neither data nor code in the cache.
_DISTURBS = 2.0
# What counting takes of each call, about, and what looking keeps of the share where that is all of it.
_COUNTING_S = 1.2e-6
_LEAST_PART = 0.25
_MOST_NAMES = 64
_MOST_RECORDERS = 16
_OTHERS = "others"


@dataclass(frozen=True, kw_only=True)
class ObserveOptions:
    """What an observer looks at, and what that may cost.

    Attributes:
        max_share: Of the time of calls, what observing them may take: as many are looked into as counting all
            of them leaves room for, which takes about a microsecond each (`benchmarks/observe.py`); where it
            leaves none, a quarter of the share goes to looking. Infinity for looking into all.
        interval_s: One call is looked into that often in any case, as long as there are any.
        max_values: Of each tensor, values that are looked at, spread over it evenly; whether an output is
            finite is asked of all. Quantiles of inputs in an artifact are of statistics of 2048.
        inputs: Statistics by name of the input, ``{"image": ("mean", "std")}``; None for what the artifact
            names. Of ``mean``, ``std``, ``min`` and ``max``.
    """

    max_share: float = 0.01
    interval_s: float = 1.0
    max_values: int = MOST_VALUES
    inputs: Mapping[str, tuple[str, ...]] | None = None

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range, or a statistic unknown."""
        from edgec.artifact import STATISTICS

        problems = []
        if not self.max_share > 0:
            problems.append(f"a max_share above 0, got {self.max_share}")
        if not self.interval_s > 0:
            problems.append(f"an interval_s above 0, got {self.interval_s}")
        if self.max_values < 1:
            problems.append(f"max_values from 1, got {self.max_values}")
        for name, chosen in (self.inputs or {}).items():
            if unknown := [statistic for statistic in chosen if statistic not in STATISTICS]:
                problems.append(f"statistics of {', '.join(STATISTICS)} for {name!r}, got {unknown}")
        if problems:
            raise ValueError(f"expected {'; '.join(problems)}")


class Observer:
    """Counts and samples the calls of one session; made by ``Session.observe``. Safe from several threads.

    It stays with the session when that is swapped: the window then ends, and the next one is of the new
    artifact. After the session is closed, what was observed can still be taken.

    Attributes:
        options: What it was told.
        lost: Windows that were thrown away, because the session was swapped more than 15 times and nobody
            took them.
    """

    options: ObserveOptions
    lost: int

    def __init__(
        self,
        options: ObserveOptions | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """Make one that sees nothing yet; ``Session.set_observer`` shows it calls.

        Args:
            options: None for the defaults.
            clock: Monotonic, in seconds.
            wall: Seconds since 1970.
        """
        self.options = ObserveOptions() if options is None else options
        self.lost = 0
        self._clock = clock
        self._wall = wall
        self._lock = Lock()
        self._recorders: list[
            Recorder
        ] = []  # of all artifacts whose calls may still end; the last is current

    def take(self) -> Window:
        """Return what was observed since the last time, and begin anew.

        After a swap, the window of the artifact before comes first, and the next call returns that of the
        new one: windows come in order, and none is lost between two calls.

        Raises:
            ValueError: It was never given to a session.
        """
        with self._lock:
            self._check_used()
            for recorder in self._recorders[:-1]:
                over = recorder.is_over  # asked before: a call may end meanwhile
                window = recorder.take()
                if over:
                    self._recorders.remove(recorder)
                if not window.is_empty:
                    return window
            return self._recorders[-1].take()

    def take_all(self) -> list[Window]:
        """Return all windows that there are, those of artifacts before a swap first, and begin anew.

        Raises:
            ValueError: It was never given to a session.
        """
        with self._lock:
            self._check_used()
            going_on = [r for r in self._recorders[:-1] if not r.is_over] + self._recorders[-1:]
            windows = [recorder.take() for recorder in self._recorders]
            self._recorders = going_on
        return [window for window in windows[:-1] if not window.is_empty] + windows[-1:]

    def total(self) -> Window:
        """Return all that was observed of the present artifact, whatever was taken: for exporters.

        Raises:
            ValueError: It was never given to a session.
        """
        with self._lock:
            self._check_used()
            return self._recorders[-1].total()

    @property
    def has_seen(self) -> bool:
        """Whether it was ever given to a session."""
        return bool(self._recorders)

    @property
    def reference(self) -> Mapping[str, Mapping[str, float]]:
        """Quantiles of outputs that the present artifact names, for `Window.drift`; or nothing.

        Raises:
            ValueError: It was never given to a session.
        """
        self._check_used()
        return self._recorders[-1].reference

    @property
    def input_reference(self) -> Mapping[str, Mapping[str, Mapping[str, float]]]:
        """Quantiles of statistics of inputs that the present artifact names, for `Window.input_drift`.

        Raises:
            ValueError: It was never given to a session.
        """
        self._check_used()
        return self._recorders[-1].input_reference

    def watch(self, session: Session, run: Run) -> Run:
        """Return a function that runs a model as another one, and is observed; for sessions.

        Args:
            session: Whose present model it is.
            run: Of its program.
        """
        with self._lock:
            current = self._recorders[-1] if self._recorders else None
            if current is None or not current.is_of(session):
                current = Recorder(session, self.options, self._clock, self._wall)
                self._recorders.append(current)
                if len(self._recorders) > _MOST_RECORDERS:
                    self._recorders.pop(0)
                    self.lost += 1
            current.follow(session)
            return current.watch(run, self._is_current)

    def around(self, run: Run) -> Run:
        """Return a function that runs the model that is watched already in another way, and is observed."""
        recorders = self._recorders
        return recorders[-1].watch(run, self._is_current) if recorders else run

    def failed(self, error: BaseException) -> None:
        """Count a call that failed before it reached the engine."""
        with self._lock:
            if self._recorders:
                self._recorders[-1].fail(error)

    def dropped(self, reason: str) -> None:
        """Count a call that was given up before it ran."""
        with self._lock:
            if self._recorders:
                self._recorders[-1].drop(reason)

    def fell_back(self, what: str) -> None:
        """Count a question to a server, by its reason and what came of it."""
        with self._lock:
            if self._recorders:
                self._recorders[-1].fall_back(what)

    def cached(self, *, hit: bool, saved_s: float) -> None:
        """Count a question to the cache, and what it saved; negative for what it cost."""
        with self._lock:
            if self._recorders:
                self._recorders[-1].cache(hit, saved_s)

    def predicted(self, prediction: Mapping[str, Any]) -> None:
        """Look at a prediction of a whole pipeline, where that tells more than the outputs did: boxes."""
        recorders = self._recorders
        if recorders and "boxes" in prediction and "scores" in prediction:
            recorders[-1].look_at_boxes(prediction)

    def _is_current(self, recorder: Recorder) -> bool:
        recorders = self._recorders
        return bool(recorders) and recorders[-1] is recorder

    def _check_used(self) -> None:
        if not self._recorders:
            raise ValueError("this observer has seen no session: make it by session.observe()")


class Recorder:
    """What is observed of one artifact. Calls append to a list, which needs no lock."""

    def __init__(
        self,
        session: Session,
        options: ObserveOptions,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._options = options
        self._clock = clock
        self._wall = wall
        self._lock = Lock()
        self._looker = Looker(session.manifest, options.inputs, options.max_values)
        self._of = _identity(session)
        self.reference = session.manifest.reference
        self.input_reference = session.manifest.input_reference
        self._blank = Window(
            model=session.manifest.model,
            model_version=session.manifest.model_version,
            artifact=session.content_digest,
            engine=session.engine,
            engine_version=session.engine_version,
            since=wall(),
            seconds=0.0,
        )
        self._fallback = session.fallback_reason
        self._program: Callable[[], object | None] = _gone
        self._times: list[float] = []
        self._random = random.Random(0)
        self._cost_s = 0.0  # of looking once, about
        self._gap = 1  # calls between two that are looked into
        self._turn = 1  # length of the list at which the next one is
        self._due = 1  # length of the list at which there is something to do
        self._overdue = clock()  # when there is, whatever its length
        self._since_look = 0  # length that the list had when one was looked into
        self._seen_calls, self._seen_s = 0, 0.0  # since then, without those in the list
        self._boxes = 0
        self._total: Window | None = None
        self._begin()

    def _begin(self) -> None:
        self._since, self._start = self._wall(), self._clock()
        self._calls = 0
        self._latency = QuantileSketch()
        self._sight = self._looker.blank()
        self._errors: dict[str, int] = {}
        self._drops: dict[str, int] = {}
        self._asked: dict[str, int] = {}
        self._hits = self._misses = 0
        self._saved_s = 0.0

    def is_of(self, session: Session) -> bool:
        """Return whether a session runs what this is about."""
        return self._of == _identity(session)

    def follow(self, session: Session) -> None:
        """Note whose calls may still come."""
        try:
            self._program = weakref.ref(session.current_program())
        except TypeError:  # a third party's, that cannot be told of
            self._program = _gone

    @property
    def is_over(self) -> bool:
        """Whether no more calls can come."""
        return self._program() is None

    def watch(self, run: Run, is_current: Callable[[Recorder], bool]) -> Run:
        """Return `run`, observed."""
        clock, times, append = self._clock, self._times, self._times.append

        def observed(inputs: Arrays) -> dict[str, NDArray[Any]]:
            start = clock()
            try:
                outputs = run(inputs)
            except Exception as e:
                if is_current(self):  # else the session was swapped, and runs it again
                    self.fail(e)
                raise
            end = clock()
            append(end - start)
            if len(times) >= self._due or end >= self._overdue:
                self._see(inputs, outputs)
            return outputs

        return observed

    def fail(self, error: BaseException) -> None:
        """Count a call that failed."""
        with self._lock:
            _count(self._errors, type(error).__name__)

    def drop(self, reason: str) -> None:
        """Count a call that did not run."""
        with self._lock:
            _count(self._drops, reason)

    def fall_back(self, what: str) -> None:
        """Count a question to a server."""
        with self._lock:
            _count(self._asked, what)

    def cache(self, hit: bool, saved_s: float) -> None:
        """Count a question to the cache."""
        with self._lock:
            self._hits += hit
            self._misses += not hit
            self._saved_s += saved_s

    def look_at_boxes(self, prediction: Mapping[str, Any]) -> None:
        """Look at the boxes of a prediction, as often as at outputs."""
        self._boxes += 1
        if self._boxes >= self._gap and self._lock.acquire(blocking=False):
            try:
                self._boxes = 0
                self._sight.rate(prediction["scores"], prediction["classes"])
            finally:
                self._lock.release()

    def take(self) -> Window:
        """Return what was observed, and begin anew."""
        with self._lock:
            window = self._window()
            self._total = window if self._total is None else self._total.merge(window)
            self._begin()
            return window

    def total(self) -> Window:
        """Return all that was observed, now and before."""
        with self._lock:
            window = self._window()
            if self._total is None:
                return window.merge(
                    replace(self._blank, since=window.since)
                )  # a copy: the sketches of the window go on growing
            return self._total.merge(window)

    def _window(self) -> Window:
        self._fold()
        sight = self._sight
        calls = self._calls + sum(self._errors.values())
        return replace(
            self._blank,
            since=self._since,
            seconds=max(self._clock() - self._start, 0.0),
            calls=calls,
            errors=dict(self._errors),
            drops=dict(self._drops),
            fallbacks={**({self._fallback: calls} if self._fallback and calls else {}), **self._asked},
            cache_hits=self._hits,
            cache_misses=self._misses,
            cache_saved_s=self._saved_s,
            latency_ms=self._latency,
            sampled=sight.sampled,
            non_finite=sight.non_finite,
            confidence=sight.confidence,
            classes=dict(sight.classes),
            outputs=sight.outputs,
            inputs=sight.inputs,
            input_bins=sight.input_bins,
        )

    def _see(self, inputs: Arrays, outputs: Arrays) -> None:
        """Look into a call when its turn has come, and put times into the sketch when there are many."""
        if not self._lock.acquire(blocking=False):
            return  # another thread does it
        try:
            if not self._cost_s:  # the first time takes many times as long, and says nothing of the next
                self._looker.look(self._looker.blank(), inputs, outputs)
            start = self._clock()
            if len(self._times) >= self._turn or start >= self._overdue:
                self._looker.look(self._sight, inputs, outputs)
                end = self._clock()
                self._plan(end - start)
                self._overdue = end + self._options.interval_s
            if len(self._times) >= _MOST_TIMES:
                self._fold()
            self._due = min(self._turn, _MOST_TIMES)
        finally:
            self._lock.release()

    def _plan(self, cost_s: float) -> None:
        """Choose the next call to look into, so that looking stays within its share of the time of calls."""
        self._cost_s = 0.5 * (self._cost_s or cost_s) + 0.5 * cost_s
        length = len(self._times)
        calls = self._seen_calls + length - self._since_look
        seconds = self._seen_s + sum(self._times[self._since_look : length])
        share_s = self._options.max_share * max(seconds / max(calls, 1), 1e-9)
        allowed = max(share_s - _COUNTING_S, _LEAST_PART * share_s)
        self._gap = max(1, math.ceil(min(_DISTURBS * self._cost_s / allowed, 1e6)))
        self._seen_calls, self._seen_s, self._since_look = 0, 0.0, length
        # Not every n-th: calls may have a rhythm of their own, such as cameras that take turns.
        self._turn = length + (
            1 if self._gap == 1 else max(1, round(self._gap * self._random.uniform(0.5, 1.5)))
        )

    def _fold(self) -> None:
        """Put the times of calls into the sketch."""
        times = self._times
        taken = times[:]
        del times[: len(taken)]  # a call that has ended since stays
        if len(taken) <= _FEW:
            for seconds in taken:
                self._latency.add(seconds * 1e3)
        else:
            self._latency.add_many(np.multiply(taken, 1e3))
        self._calls += len(taken)
        unseen = taken[self._since_look :]
        self._seen_calls += len(unseen)
        self._seen_s += sum(unseen)
        self._since_look = 0
        self._turn = max(1, self._turn - len(taken))
        self._due = min(self._turn, _MOST_TIMES)


def _identity(session: Session) -> tuple[str, str, str]:
    return session.content_digest, session.engine, session.fallback_reason


def _count(counts: dict[str, int], name: str) -> None:
    known = name if name in counts or len(counts) < _MOST_NAMES else _OTHERS
    counts[known] = counts.get(known, 0) + 1


def _gone() -> None:
    return None


def submit_observed(
    observer: Observer,
    pool: Pool,
    run: Run,
    inputs: Arrays,
    priority: float,
    deadline_ms: float | None,
) -> Future[dict[str, NDArray[Any]]]:
    """Queue a call, and count it where it is dropped; see ``Session.submit``."""
    try:
        future = pool.submit(run, inputs, priority=priority, deadline_ms=deadline_ms)
    except OverloadedError:
        observer.dropped(OVERLOADED)
        raise
    if deadline_ms is not None:
        future.add_done_callback(partial(_count_late, observer))
    return future


def _count_late(observer: Observer, future: Future[Any]) -> None:
    if not future.cancelled() and isinstance(future.exception(), DeadlineError):
        observer.dropped(LATE)
