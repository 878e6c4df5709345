"""Files that are there whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, BinaryIO

from edgec.errors import OutputError

if TYPE_CHECKING:
    from pathlib import Path

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}


@contextmanager
def atomic_write(
    path: str | Path, *, aside: str | Path | None = None, durable: bool = True
) -> Iterator[BinaryIO]:
    """Open `path` for writing so that it is replaced whole when the block ends, or not at all.

    The bytes go to a hidden file beside it, which is synced to disk and then renamed. When the
    block raises, that file is removed, and what was at `path` is untouched. A link is followed.

    Args:
        path: Of a file that may be there already, in a directory that is.
        aside: The hidden file, on the same file system; one that a killed process left is replaced. None
            for a new name each time.
        durable: Whether it is there, whole, after a power cut too; not waiting for the disk is for what can
            be made again.

    Yields:
        A binary file that can be written, read back and sought.

    Raises:
        OutputError: The disk is full, the directory is missing or not writable, or `path` is a
            directory, a device or a pipe.
    """
    try:
        final = _destination(path)
        directory = os.path.dirname(final)
        if aside is None:
            aside = os.path.join(directory, f".edgec-{os.getpid()}-{os.urandom(4).hex()}.partial")
        else:
            aside = os.fspath(aside)
            with suppress(FileNotFoundError):
                os.unlink(aside)
        descriptor = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as e:
        raise _cannot_write(path, e) from e
    is_there = False
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        os.replace(aside, final)
        is_there = True
        if durable:
            sync_directory(directory)
    except OSError as e:
        # Only what the file itself said; a write that fails names no file.
        if e.filename is None or os.fspath(e.filename) == aside:
            raise _cannot_write(path, e) from e
        raise
    finally:
        if not is_there:
            with suppress(FileNotFoundError):
                os.unlink(aside)


def _destination(path: str | Path) -> str:
    """Return where a file goes, as an absolute path; refuse what is there and is no file."""
    # Not `realpath`, which looks at each directory on the way, unless renaming would replace a link.
    final = os.path.abspath(path) if os.pardir not in os.fspath(path) else os.path.realpath(path)
    try:
        mode = os.lstat(final).st_mode
        if stat.S_ISLNK(mode):
            final = os.path.realpath(final)
            mode = os.stat(final).st_mode
    except FileNotFoundError:
        return final
    # Renaming onto /dev/null would replace that for everyone.
    _refuse_special(final, mode)
    return final


def _refuse_special(path: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {path}: it is a directory; give the path of a file")
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {path}: it is a device or a pipe; give the path of a file")


def sync_directory(directory: str | Path) -> None:
    """Make what was created, renamed or removed in a directory durable.

    Some file systems refuse to; what was done is done all the same.
    """
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _cannot_write(path: str | Path, e: OSError) -> OutputError:
    directory = os.path.dirname(path) or "."
    if e.errno in _FULL:
        return OutputError(f"cannot write {path}: {_FULL[e.errno]}; free some space and run again")
    if e.errno == errno.EFBIG:
        return OutputError(
            f"cannot write {path}: the file would be larger than this system allows (ulimit -f)"
        )
    if isinstance(e, FileNotFoundError) and os.path.isdir(directory):
        return OutputError(
            f"cannot write {path}: a link leads to a directory that does not exist, or the unfinished file "
            "was taken away meanwhile; mend the link, or run again"
        )
    if isinstance(e, FileNotFoundError):
        return OutputError(f"cannot write {path}: the directory {directory} does not exist; make it first")
    if isinstance(e, PermissionError) or e.errno == errno.EROFS:
        return OutputError(f"cannot write {path}: {directory} is not writable; choose another directory")
    return OutputError(f"cannot write {path}: {e.strerror or e}")
