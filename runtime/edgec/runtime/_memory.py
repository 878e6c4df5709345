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


def resident_bytes() -> int:
    """Return how much of this process is in memory; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0
