"""Writing to disk, with what can go wrong there as one error."""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path

from edgec.errors import TransferError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class Disk:
    """The system calls by which a transfer writes; tests put one that fails in its place."""

    def open(self, path: Path) -> int:
        """Open a file for reading and writing, made if need be; links are not followed."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)

    def reserve(self, descriptor: int, length: int) -> None:
        """Take the space for `length` bytes, where the file system can."""
        try:
            os.posix_fallocate(descriptor, 0, length)
        except OSError as e:
            if e.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
                raise
            os.ftruncate(descriptor, length)

    def write(self, descriptor: int, data: bytes | bytearray | memoryview, at: int) -> None:
        """Write all of `data` from place `at` on."""
        view = memoryview(data)
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written

    def truncate(self, descriptor: int, length: int) -> None:
        """Cut a file."""
        os.ftruncate(descriptor, length)

    def sync(self, descriptor: int) -> None:
        """Return when what was written would survive a power cut."""
        os.fsync(descriptor)

    def replace(self, old: Path, new: Path) -> None:
        """Rename a file, durably."""
        os.replace(old, new)
        self.sync_directory(new.parent)

    def sync_directory(self, directory: Path) -> None:
        """Make what was renamed in a directory durable; some file systems refuse."""
        with suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def disk_error(path: Path, e: OSError) -> TransferError:
    """Return the error of a transfer that cannot write."""
    if e.errno in _FULL:
        return TransferError(f"cannot write {path}: the disk is full; free some space", "disk_full")
    return TransferError(f"cannot write {path}: {e.strerror or e}", "disk")
