"""Worker threads that sessions share: bounded, by priority, with deadlines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from threading import Condition, Lock, Thread, current_thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from edgec.errors import DeadlineError, InferenceError, OverloadedError

if TYPE_CHECKING:
    from concurrent.futures import Future

T = TypeVar("T")


class _Job(NamedTuple):
    """One call that waits; comes before another by its first two fields."""

    rank: float
    number: int
    deadline: float | None
    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]


class Pool:
    """Threads that run the calls of several sessions; close it, or use ``with``.

    Give it to `edgec.runtime.load`: the sessions then run what is submitted to them here, each inference on
    `threads` threads, and no more than `workers` at once. Calls of a higher priority go first; a call that
    runs is never interrupted. Safe from several threads.

    Attributes:
        workers: Calls that run at once.
        threads: Of one inference, for sessions whose `load` says nothing else; None for the engine's choice.
        max_queue: Calls that may wait.
        affinity: Numbers of the cores that the workers, and what engines start while they load, are bound
            to; None for all.
    """

    workers: int
    threads: int | None
    max_queue: int
    affinity: frozenset[int] | None

    def __init__(
        self,
        workers: int | None = None,
        *,
        threads: int | None = 1,
        max_queue: int = 1024,
        affinity: Iterable[int] | None = None,
    ) -> None:
        """Make a pool; its threads start with the first call.

        Args:
            workers: Calls that run at once; None for one per core that this process may use.
            threads: Of one inference.
            max_queue: Calls that may wait; one more is refused.
            affinity: Numbers of cores; Linux only.

        Raises:
            ValueError: A number is below 1, or `threads` above 1024, or there is no such core, or this
                system binds no threads.
        """
        cores = _affinity(affinity)
        self.workers = _positive("worker", _cores(cores) if workers is None else workers)
        self.threads = None if threads is None else check_threads(threads)
        self.max_queue = _positive("place in the queue", max_queue)
        self.affinity = cores
        self._changed = Condition(Lock())
        self._waiting: list[_Job] = []
        self._number = 0
        self._running: list[Thread] = []
        self._idle = 0
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many calls wait."""
        return len(self._waiting)

    def submit(
        self,
        function: Callable[..., T],
        *arguments: Any,
        priority: float = 0.0,
        deadline_ms: float | None = None,
    ) -> Future[T]:
        """Queue a call.

        Args:
            function: What to call.
            arguments: For it.
            priority: Calls of a higher one go first, of the same one in their order.
            deadline_ms: From now: where it has not begun by then, it fails with `DeadlineError`.

        Raises:
            OverloadedError: `max_queue` calls wait already.
            InferenceError: The pool is closed.
        """
        from concurrent.futures import Future  # here, because its import takes 5 ms

        future: Future[T] = Future()
        deadline = None if deadline_ms is None else monotonic() + deadline_ms / 1e3
        with self._changed:
            if self._closed:
                raise InferenceError("the pool is closed: make another, and load the session with it")
            if len(self._waiting) >= self.max_queue:
                raise OverloadedError(
                    f"{len(self._waiting)} calls wait already, and no more may: call again later, call less "
                    "often, or give the pool a larger max_queue or more workers"
                )
            self._number += 1
            heappush(self._waiting, _Job(-priority, self._number, deadline, future, function, arguments))
            if self._idle < len(self._waiting) and len(self._running) < self.workers:
                self._start()
            self._changed.notify()
        return future

    def run_here(self, function: Callable[[], T]) -> T:
        """Call a function on a worker and wait for it, so that threads it starts are bound as workers are.

        Called on a worker already, it is simply called.
        """
        if current_thread() in self._running:
            return function()
        return self.submit(function, priority=float("inf")).result()

    def close(self) -> None:
        """End the workers; what runs ends as it would have, what waits is cancelled."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            threads = list(self._running)
            self._changed.notify_all()
        for job in waiting:
            job.future.cancel()
        for thread in threads:
            if thread is not current_thread():
                thread.join()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        if not self._running:
            import atexit
            from weakref import WeakMethod

            # Engines must not be caught in a call when the interpreter ends.
            ends = WeakMethod(self.close)
            atexit.register(lambda: (end := ends()) is not None and end())
        thread = Thread(target=self._work, name=f"edgec-{len(self._running)}", daemon=True)
        self._running.append(thread)
        thread.start()

    def _work(self) -> None:
        if self.affinity is not None:
            os.sched_setaffinity(0, self.affinity)  # of this thread, on Linux
        while True:
            with self._changed:
                self._idle += 1
                while not self._waiting and not self._closed:
                    self._changed.wait()
                self._idle -= 1
                if not self._waiting:
                    return
                job = heappop(self._waiting)
            _run(job)
            del job  # what it holds must not live until the next one


def _run(job: _Job) -> None:
    future = job.future
    if not future.set_running_or_notify_cancel():
        return
    if job.deadline is not None and monotonic() > job.deadline:
        future.set_exception(DeadlineError("the call waited until its deadline had passed; it was not run"))
        return
    try:
        result = job.function(*job.arguments)
    except BaseException as e:  # noqa: BLE001 - whatever it is, it belongs to who waits
        future.set_exception(e)
    else:
        future.set_result(result)


_default: Pool | None = None
_MAX_THREADS = 1024
_making = Lock()


def default_pool() -> Pool:
    """Return the pool of sessions that were loaded without one; it leaves threads to the engines."""
    global _default  # one per process
    with _making:
        if _default is None:
            _default = Pool(threads=None)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(after_in_child=_forget)
        return _default


def _forget() -> None:
    """Threads do not come along into a child process."""
    global _default, _making
    _default, _making = None, Lock()


def check_threads(threads: int) -> int:
    """Return the threads of one inference if engines survive so many: XNNPACK crashes, ONNX Runtime hangs.

    Raises:
        ValueError: There are none, or more than 1024.
    """
    if _positive("thread", threads) > _MAX_THREADS:
        raise ValueError(f"expected at most {_MAX_THREADS} threads, got {threads}")
    return threads


def _positive(what: str, number: int) -> int:
    if number < 1:
        raise ValueError(f"expected at least 1 {what}, got {number}")
    return number


def _cores(affinity: frozenset[int] | None) -> int:
    if affinity is not None:
        return len(affinity)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _affinity(cores: Iterable[int] | None) -> frozenset[int] | None:
    if cores is None:
        return None
    wanted = frozenset(cores)
    if not hasattr(os, "sched_setaffinity"):
        raise ValueError("this system binds no threads to cores: leave affinity out")
    there = os.sched_getaffinity(0)
    if not wanted or wanted - there:
        raise ValueError(f"expected cores of {sorted(there)}, got {sorted(wanted)}")
    return wanted
