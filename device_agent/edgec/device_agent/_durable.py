"""Small files and directories that survive a loss of power."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edgec.artifact import atomic_write, sync_directory

if TYPE_CHECKING:
    from pathlib import Path

MAX_JSON = 1 << 20


def make_directory(path: Path) -> None:
    """Make a directory and those above it, durably."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with suppress(FileExistsError):
        path.mkdir()
    sync_directory(path.parent)


def sync_file(path: Path) -> None:
    """Make what is in a file durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unlink(path: Path) -> None:
    """Remove a file or link, if it is there."""
    with suppress(FileNotFoundError):
        path.unlink()


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a small file; an empty one where there is none, or something else."""
    try:
        with path.open("rb") as file:
            plain = json.loads(file.read(MAX_JSON))
    except (OSError, ValueError):
        return {}
    return plain if isinstance(plain, dict) else {}


def write_json(path: Path, plain: dict[str, Any]) -> None:
    """Replace a small file by an object, whole or not at all.

    Raises:
        OutputError: It cannot be written; what was there is untouched.
    """
    with atomic_write(path) as file:
        file.write(json.dumps(plain, ensure_ascii=False, separators=(",", ":")).encode())
