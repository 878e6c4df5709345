"""Progress of work on many samples, on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

_SILENT_S = 5.0  # shorter work needs no progress where nobody watches
_EVERY_S = 10.0


@contextmanager
def progress(label: str, total: int) -> Iterator[Callable[[], None]]:
    """Give a function to call after each of `total` samples.

    On a terminal it moves a bar with the time left; elsewhere it prints a line now and then, once
    the work has taken long enough to wonder.
    """
    if total > 1 and sys.stderr.isatty():
        with click.progressbar(length=total, label=label, file=sys.stderr) as bar:
            yield lambda: bar.update(1)
        return
    yield _Lines(label, total)


class _Lines:
    def __init__(self, label: str, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._label, self._total, self._clock = label, total, clock
        self._start = clock()
        self._next, self._done = self._start + _SILENT_S, 0

    def __call__(self) -> None:
        self._done += 1
        now = self._clock()
        if now >= self._next and self._done < self._total:
            left = (now - self._start) / self._done * (self._total - self._done)
            click.echo(f"{self._label}: {self._done} of {self._total}, about {left:.0f} s left", err=True)
            self._next = now + _EVERY_S
