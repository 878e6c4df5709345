"""The memory of this process."""

from __future__ import annotations

import os
from contextlib import suppress


def give_back_memory() -> None:
    """Give the system what was freed, of which the C library keeps much; Linux with glibc only."""
    import ctypes
    import gc

    gc.collect()
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_bytes(pid: int | None = None) -> int:
    """Return how much of a process, this one if None, is in memory; 0 where the system does not tell."""
    try:
        with open(f"/proc/{'self' if pid is None else pid}/statm", "rb") as file:
            words = file.read().split()
    except OSError:
        return 0
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE") if len(words) > 1 else 0
