"""What answers requests, without the socket that they come by: models, threads, and the application."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from edgec.runtime import Pool
from edgec.serving._app import App
from edgec.serving._chains import load_served
from edgec.serving._options import ServerOptions
from edgec.serving._repository import Loader, Repository
from edgec.serving._scheduling import Scheduling

_SPARE_THREADS = 2  # for large headers, and for loading models


@dataclass(frozen=True)
class Assembly:
    """Models, and the threads that run them; close it.

    Attributes:
        options: Its limits.
        repository: The models.
        executor: Whose threads run them.
        pool: Runs inferences by priority; None where each runs when it comes.
    """

    options: ServerOptions
    repository: Repository
    executor: ThreadPoolExecutor
    pool: Pool | None

    def app(self, is_draining: Callable[[], bool]) -> App:
        """Return the application, for one event loop; `App.start` it there."""
        return App(self.repository, self.options, self.executor, is_draining)

    def close(self) -> None:
        """Free models and threads; no request may be left."""
        self.executor.shutdown()
        self.repository.close()
        if self.pool is not None:
            self.pool.close()


def assemble(
    paths: Sequence[str | Path],
    options: ServerOptions,
    loader: Loader | None = None,
    *,
    may_be_empty: bool = False,
    room: int = 0,
) -> Assembly:
    """Load what is to be served.

    Args:
        paths: Of the artifacts, and of the TOML files of chains.
        options: How they are run; addresses, keys and certificates in it are left alone.
        loader: Loads one artifact or chain; as `edgec.runtime.load` and `load_chain` do if None.
        may_be_empty: Whether there may be no artifact.
        room: Artifacts that may be added later.

    Raises:
        ServingError: An artifact cannot be loaded.
    """
    width = _width(options.threads)
    most = max(width, 2 * options.max_batch) * (len(paths) + room) + _SPARE_THREADS
    executor = ThreadPoolExecutor(most, "edgec-serving")
    # With priorities, models take turns on as many workers as keep the cores busy.
    pool = Pool(width - 1, threads=None, max_queue=most) if options.priorities else None
    repository = Repository(
        [Path(path) for path in paths],
        loader or _loader(options),
        executor,
        width=width,
        queue=options.queue,
        observe=options.observe,
        scheduling=Scheduling(
            max_batch=options.max_batch,
            max_delay_ms=options.batch_delay_ms,
            side_by_side=width - 1,
            queue=max(1, options.queue),
            pool=pool,
            priorities=options.priorities,
            isolated=options.isolate,
        ),
        may_be_empty=may_be_empty,
    )
    return Assembly(options, repository, executor, pool)


def _loader(options: ServerOptions) -> Loader:
    return partial(load_served, threads=options.threads, isolate=options.isolate, device=options.device)


def _width(threads: int | None) -> int:
    """Return how many inferences of a model run at once: as many as keep the cores busy, and one more
    that is being read or written meanwhile."""
    cores = len(os.sched_getaffinity(0))
    return max(1, cores // (threads or cores)) + 1
