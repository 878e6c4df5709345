"""Locks that last as long as a process, and go with it however it ends."""

from __future__ import annotations

import os
from pathlib import Path


def hold(path: Path, *, mode: int = 0o666) -> int:
    """Lock a file or a directory against other processes of this machine.

    Args:
        path: A directory; or a file, which is made where it is missing, and stays.
        mode: Of a file that is made.

    Returns:
        A descriptor: the lock lasts until it is closed, or the process ends.

    Raises:
        BlockingIOError: Another process, or another descriptor of this one, holds it.
        OSError: It cannot be opened.
    """
    import fcntl  # here, because only what runs on Linux locks anything

    kind = os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT
    descriptor = os.open(path, kind | os.O_CLOEXEC, mode)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
