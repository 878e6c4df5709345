"""A model in a process of its own, which may crash, hang or leak without the application."""

from __future__ import annotations

import os
import random
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from threading import Condition, Event, Lock, Thread
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from edgec.errors import ArtifactError, BackendUnavailableError, EdgecError, InferenceError, IsolationError
from edgec.runtime._isolated_process import CRASH, Worker, too_large

if TYPE_CHECKING:
    from edgec.artifact import Artifact
    from edgec.runtime.backends import LoadOptions

T = TypeVar("T")
RESTARTING, CRASH_LOOP = "restarting", "crash-loop"
_MIB = 2**20
# How often the memory of the process is looked at between calls.
_WATCH_S = 0.05
# In a call, more is allowed: what leaks is to be replaced between calls.
_IN_CALL = 1.5
# A process that takes too much memory after fewer calls does not leak: it is too large.
_LEAK_CALLS = 10


@dataclass(frozen=True, kw_only=True)
class Isolation:
    """How a model runs in a process of its own; see `edgec.runtime.load`.

    Attributes:
        timeout_s: Longest time of one call, and longest wait for a process that is started again; a process
            that takes longer is ended. None for no limit.
        load_timeout_s: Longest time for starting the process and loading the model.
        retry: Whether a call that its process did not survive is made once more, in the next process.
        memory_mib: Most that the process may have in memory: above it, it is replaced between calls, and from
            one and a half times as much on ended in a call. None for no limit.
        backoff_s: Before the second start in a row that fails; it doubles from one to the next. The first
            is at once.
        longest_backoff_s: Longest of them.
        settle_s: A process that lived so long has ended a row of failures.
        crash_loop: Failures in a row from which calls fail at once while no process runs, and the
            session's state says so.
    """

    timeout_s: float | None = 30.0
    load_timeout_s: float = 300.0
    retry: bool = False
    memory_mib: float | None = None
    backoff_s: float = 0.5
    longest_backoff_s: float = 60.0
    settle_s: float = 30.0
    crash_loop: int = 3

    def __post_init__(self) -> None:
        """Raise ValueError where a number is out of range."""
        above = ("timeout_s", "load_timeout_s", "memory_mib", "backoff_s", "longest_backoff_s", "settle_s")
        problems = [
            f"{name} above 0, got {value}"
            for name in above
            if (value := getattr(self, name)) is not None and not value > 0
        ]
        if self.crash_loop < 1:
            problems.append(f"crash_loop from 1, got {self.crash_loop}")
        if problems:
            raise ValueError(f"expected {'; '.join(problems)}")


class IsolatedProgram:
    """A `edgec.runtime.backends.Program` that runs elsewhere. Safe from several threads, which take turns.

    Attributes:
        engine_version: Of the engine, as it says itself.
        placement: How many nodes run where.
    """

    engine_version: str
    placement: Mapping[str, int]

    def __init__(
        self,
        start: Callable[[], Worker],
        options: Isolation,
        *,
        clock: Callable[[], float] = time.monotonic,
        uniform: Callable[[float, float], float] = random.uniform,
    ) -> None:
        """Start the first process.

        Args:
            start: Starts a process and loads the model in it.
            options: How it is treated.
            clock: Monotonic, in seconds.
            uniform: Random numbers between two.

        Raises:
            EdgecError: The model cannot be loaded.
        """
        self._start = start
        self._options = options
        self._clock = clock
        self._uniform = uniform
        self._memory = None if options.memory_mib is None else options.memory_mib * _MIB
        self._turn = Lock()
        self._changed = Condition()
        self._closing = Event()
        self._failures = 0
        self._last = ""
        worker = start()
        self._worker: Worker | None = worker
        self._since = self._looked = clock()
        self._known: dict[str, Any] | None = None
        self.engine_version, self.placement = worker.engine_version, worker.placement

    @property
    def precision(self) -> str:
        """Effective precision; see `edgec.runtime.backends.Program`."""
        return str(self._told()["precision"])

    @property
    def precisions(self) -> Mapping[str, int]:
        """How many layers compute in which precision; see `edgec.runtime.backends.Program`."""
        found: Mapping[str, int] = self._told()["precisions"]
        return found

    @property
    def trouble(self) -> str:
        """``restarting``, ``crash-loop``, or nothing where it runs well."""
        with self._changed:
            settled = self._worker is not None and self._clock() - self._since >= self._options.settle_s
            if self._failures >= self._options.crash_loop and not settled:
                return CRASH_LOOP
            return "" if self._worker is not None else RESTARTING

    @property
    def pid(self) -> int | None:
        """Of the process; None while there is none."""
        worker = self._worker
        return None if worker is None else worker.pid

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run once; see `edgec.runtime.backends.Program.run`.

        Raises:
            IsolationError: The process ended, or was ended; the next one is being started.
            InferenceError: The engine failed, or this is closed.
        """
        options = self._options

        def call(worker: Worker) -> dict[str, NDArray[Any]]:
            most = None if self._memory is None else self._memory * _IN_CALL
            outputs = worker.run(inputs, options.timeout_s, most)
            if self._memory is not None:
                self._look(worker, self._memory)
            return outputs

        try:
            return self._with_worker(call)
        except IsolationError as e:
            if not options.retry or e.reason in (CRASH_LOOP, RESTARTING):
                raise
        return self._with_worker(call)

    def close(self) -> None:
        """End the process; a call that still runs ends as it would have."""
        with self._changed:
            self._closing.set()
            self._changed.notify_all()
        self._end_if_idle()

    def _told(self) -> dict[str, Any]:
        known = self._known
        if known is None:
            known = self._known = self._with_worker(lambda worker: worker.ask(self._options.load_timeout_s))
        return known

    def _with_worker(self, call: Callable[[Worker], T]) -> T:
        try:
            with self._turn:
                worker = self._running_worker()
                try:
                    return call(worker)
                except IsolationError as e:
                    self._lose(worker, e)
                    raise
        finally:
            if self._closing.is_set():
                self._end_if_idle()

    def _running_worker(self) -> Worker:
        """Return the process, once there is one."""
        worker = self._worker
        if worker is not None and not self._closing.is_set():
            if worker.is_alive:
                return worker
            # Between calls, so that no call is to blame.
            self._lose(worker, IsolationError("the process that runs the model ended between calls", CRASH))
        options = self._options
        with self._changed:
            self._changed.wait_for(
                lambda: self._worker or self._closing.is_set() or self._failures >= options.crash_loop,
                options.timeout_s,
            )
            if self._closing.is_set():
                raise InferenceError("the session is closed: load the artifact again")
            if self._worker is not None:
                return self._worker
            if self._failures >= options.crash_loop:
                raise IsolationError(
                    f"the process that runs the model failed {self._failures} times in a row, at last: "
                    f"{self._last}; it is started again later",
                    CRASH_LOOP,
                )
        raise IsolationError(
            f"the process that runs the model is still being started again: {self._last}", RESTARTING
        )

    def _look(self, worker: Worker, allowed: float) -> None:
        """Replace a process that has grown too large."""
        now = self._clock()
        if now - self._looked < _WATCH_S:
            return
        self._looked = now
        if (has := worker.resident_bytes) > allowed:
            self._lose(worker, too_large(has, allowed), failed=worker.calls < _LEAK_CALLS)

    def _lose(self, worker: Worker, error: IsolationError, *, failed: bool = True) -> None:
        """End a process, and have the next one started."""
        worker.end()
        with self._changed:
            self._worker = None
            if self._clock() - self._since >= self._options.settle_s:
                self._failures = 0
            self._failures += failed
            self._last = str(error)  # not the error, whose traceback would keep this alive
            if self._closing.is_set():
                return
        Thread(
            target=_restart, args=(weakref.ref(self), self._closing), name="edgec-restart", daemon=True
        ).start()

    def next_delay_s(self) -> float:
        """Return how long to wait before the next start."""
        options = self._options
        if self._failures < 2:
            return 0.0
        longest = min(options.longest_backoff_s, options.backoff_s * 2.0 ** min(self._failures - 2, 60))
        # All of the processes of a device, or of a fleet, that fail together must not start together.
        return self._uniform(longest / 2, longest)

    def try_start(self) -> bool:
        """Start a process; return whether that is over."""
        try:
            worker = self._start()
        except EdgecError as e:
            with self._changed:
                self._failures += 1
                self._last = str(e)
                self._changed.notify_all()
            return self._closing.is_set()
        with self._changed:
            self._worker, self._since = worker, self._clock()
            self._changed.notify_all()
        if self._closing.is_set():
            self._end_if_idle()
        return True

    def _end_if_idle(self) -> None:
        """End the process, unless a call runs, which then does."""
        if not self._turn.acquire(blocking=False):
            return
        try:
            with self._changed:
                worker, self._worker = self._worker, None
            if worker is not None:
                worker.end()
        finally:
            self._turn.release()


def _restart(program: weakref.ref[IsolatedProgram], closing: Event) -> None:
    """Start a process until that succeeds, or nobody wants it any more."""
    while (found := program()) is not None:
        delay = found.next_delay_s()
        del found  # it may go while this waits
        if closing.wait(delay):
            return
        found = program()
        if found is None or found.try_start():
            return


def load_isolated(
    artifact: Artifact, options: LoadOptions, isolation: Isolation, *, fallback: bool
) -> IsolatedProgram:
    """Load a model in a process of its own; see `edgec.runtime.backends.Backend.load`.

    Raises:
        BackendUnavailableError: This system cannot isolate, or the engine cannot work on this device.
        IsolationError: The process crashed or hung while it loaded the model.
        EdgecError: The model cannot be loaded.
    """
    if sys.platform != "linux":
        raise BackendUnavailableError("models run in processes of their own on Linux only: leave isolate out")
    try:
        descriptor = os.open(artifact.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as e:
        raise ArtifactError(f"cannot read the artifact {artifact.path}: {e.strerror}") from e
    manifest = artifact.manifest
    request = {
        "path": str(artifact.path),
        "content_digest": artifact.content_digest,
        "fallback": fallback,
        "threads": options.threads,
        "cache_dir": None if options.cache_dir is None else str(options.cache_dir),
        "delegate": None if options.delegate is None else str(options.delegate),
        "providers": {name: dict(given) for name, given in options.providers.items()},
        "memory_mib": isolation.memory_mib,
        # Those of this thread: the ones that start processes later are not bound as a pool's are.
        "cores": sorted(os.sched_getaffinity(0)),
    }

    def start() -> Worker:
        try:
            return Worker(request, descriptor, manifest.inputs, manifest.outputs, isolation.load_timeout_s)
        except OSError as e:
            raise InferenceError(f"a process for the model cannot be started: {e}") from e

    try:
        program = IsolatedProgram(start, isolation)
    except BaseException:
        os.close(descriptor)
        raise
    weakref.finalize(program, _close, descriptor)
    return program


def _close(descriptor: int) -> None:
    with suppress(OSError):
        os.close(descriptor)
