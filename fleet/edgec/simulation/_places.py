"""What simulated devices take of a machine: memory for their state, none of which is to last, and files."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MEMORY = Path("/dev/shm")
# Databases, slots and logs of a device, and what an update keeps free while it downloads.
_DEVICE_BYTES = 8 * 2**20


def file_digest(path: Path) -> str:
    """Return what a file is told by: the SHA-256 of its bytes.

    Raises:
        OSError: It cannot be read.
    """
    return hashlib.sha256(path.read_bytes()).hexdigest()


@contextmanager
def state_directory(devices: int, given: Path | None = None) -> Iterator[Path]:
    """Give a directory for the state of devices: a given one, which stays, or one that ends with the block.

    Agents wait for the disk at each step of an update, as they must. Hundreds on one disk would measure
    that disk: in memory they wait for nothing, and the settings of the agents are those of real ones.

    Args:
        devices: How many.
        given: Where to keep it.
    """
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        yield given.absolute()
        return
    parent = _MEMORY if _has_room(devices) else None
    folder = Path(tempfile.mkdtemp(prefix="edgec-sim-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def allow_files() -> None:
    """Let this process have as many files open as the system lets it: a device has about a dozen."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _has_room(devices: int) -> bool:
    try:
        return os.access(_MEMORY, os.W_OK) and shutil.disk_usage(_MEMORY).free > devices * _DEVICE_BYTES
    except OSError:
        return False
