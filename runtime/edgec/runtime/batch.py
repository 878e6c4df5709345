"""Many samples through one session, several at a time, resumable, past those that fail."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from edgec.errors import EdgecError, OutputError
from edgec.runtime.journal import Journal

ERROR = "error"
# Samples that are read ahead, per worker: enough that none waits, few enough that memory stays flat.
_AHEAD = 4


@dataclass(frozen=True, kw_only=True)
class BatchSummary:
    """What came of a run.

    Attributes:
        done: Rows that have a result, those of earlier runs included.
        resumed: Those that were finished before.
        failed: Rows that failed: name and message.
    """

    done: int
    resumed: int
    failed: tuple[tuple[str, str], ...]


def run_many(
    samples: Iterable[tuple[str, object]],
    call: Callable[[Any], Mapping[str, Any]],
    journal: Journal,
    *,
    jobs: int = 1,
    advance: Callable[[], None] = lambda: None,
) -> BatchSummary:
    """Call a function on each sample that the journal does not have yet, and note what comes out.

    A sample on which it raises an `EdgecError` is counted as failed, and tried again by the next run.

    Args:
        samples: Name and content of each, in an order that is always the same.
        call: What to do with the content; safe from `jobs` threads.
        journal: Of this run.
        jobs: Samples at a time.
        advance: Called after each sample, those that were finished before included.

    Raises:
        OutputError: The journal cannot be written, or is of other samples; what it has stays.
        ValueError: `jobs` is below 1.
    """
    if jobs < 1:
        raise ValueError(f"expected at least 1 job, got {jobs}")
    resumed = len(journal.done)
    failed: list[tuple[str, str]] = []
    running: deque[tuple[int, str, Future[Mapping[str, Any]]]] = deque()

    def finish_one() -> None:
        index, name, future = running.popleft()
        try:
            journal.append(index, name, future.result())
        except EdgecError as e:
            if future.exception() is None:  # it is the journal that failed
                raise
            failed.append((name, str(e)))
        advance()

    with ThreadPoolExecutor(jobs, thread_name_prefix="edgec-run") as pool:
        try:
            for index, (name, data) in _todo(samples, journal, advance):
                running.append((index, name, pool.submit(call, data)))
                if len(running) >= jobs * _AHEAD:
                    finish_one()
            while running:
                finish_one()
        finally:
            for _, _, future in running:
                future.cancel()
    return BatchSummary(done=len(journal.done), resumed=resumed, failed=tuple(failed))


def _todo(
    samples: Iterable[tuple[str, object]], journal: Journal, advance: Callable[[], None]
) -> Iterator[tuple[int, tuple[str, object]]]:
    done = dict(journal.done)
    for index, sample in enumerate(samples):
        if index in done:
            if done[index] != sample[0]:
                raise OutputError(
                    f"row {index} is {sample[0]!r} now and was {done[index]!r} when the run began: the input "
                    "has changed; delete the journal to begin again"
                )
            advance()
        else:
            yield index, sample
