"""Bounds that a process which may misbehave sets itself."""

from __future__ import annotations

import fcntl
import os
import resource
import select
import signal
from contextlib import suppress
from pathlib import Path

_MIB = 2**20


def contain(*, memory_mib: float | None = None, cpu_seconds: float | None = None) -> None:
    """Let this process go first where memory is short, leave no core file, and bound what it takes.

    Args:
        memory_mib: What it may have in memory, as a parent that looks sees to; the limit set here is of what
            is only reserved, too, and therefore higher. None for no limit.
        cpu_seconds: Of all cores together; None for no limit.
    """
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    _limit(resource.RLIMIT_CORE, 0)
    if cpu_seconds is not None:
        _limit(resource.RLIMIT_CPU, int(cpu_seconds))
    if memory_mib is not None:
        _limit(resource.RLIMIT_DATA, int(memory_mib * _MIB * 1.5) + 2**30)


def end_with(life: int) -> None:
    """End this process at once when the last writer of a pipe is gone, whatever it does then; Linux only.

    The kernel does it: no thread of this process has to run for it, and unlike the parent-death signal it
    does not take the end of the thread that started this process for the end of the parent.

    Args:
        life: Reading end of a pipe that nobody writes to; its writing end is the parent's alone.
    """
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    poller = select.poll()
    poller.register(life, 0)
    if poller.poll(0):  # it was gone before
        os._exit(1)


def _limit(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    if hard == resource.RLIM_INFINITY or limit <= hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(kind, (limit, hard))
