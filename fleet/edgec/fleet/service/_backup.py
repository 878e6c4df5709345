"""A copy of a fleet's directory while its server runs, whose parts fit together."""

from __future__ import annotations

import os
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from edgec.artifact import atomic_write
from edgec.errors import FleetError

_DATABASE = "fleet.db"
_PARTS = ("repo", "keys", "tls")
_FILES = ("ports.json", "dashboard.key", "broker/fleet.password")
_SKIPPED = ("incoming",)


def back_up(data_dir: Path, out: Path) -> int:
    """Write all that a fleet needs to a tar file with mode 0600; return how many files are in it.

    The database comes first, and of repositories what names other files before these: whatever changes
    meanwhile, nothing is named that is not there. To restore it, unpack it into an empty directory.

    Args:
        data_dir: Of the fleet; its server may run.
        out: The file; replaced whole. It has the private keys in it.

    Raises:
        FleetError: There is no fleet in the directory, or its database is damaged.
        OutputError: It cannot be written.
    """
    if not (data_dir / "keys").is_dir():
        raise FleetError(f"there is no fleet in {data_dir}", "not_found")
    with atomic_write(out) as file, tempfile.TemporaryDirectory(dir=out.absolute().parent) as aside:
        os.fchmod(file.fileno(), 0o600)
        with tarfile.open(fileobj=file, mode="w") as tar:
            count = 0
            if (data_dir / _DATABASE).exists():
                copy = Path(aside, _DATABASE)
                _copy_database(data_dir / _DATABASE, copy)
                tar.add(copy, _DATABASE)
                count += 1
            for path in _files(data_dir):
                try:
                    tar.add(path, str(path.relative_to(data_dir)), recursive=False)
                except FileNotFoundError:
                    # An old version of metadata, which nothing names any more.
                    continue
                count += path.is_file()
    return count


def _copy_database(source: Path, copy: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as old,
            closing(sqlite3.connect(copy)) as new,
        ):
            old.backup(new)
    except sqlite3.Error as e:
        raise FleetError(f"cannot copy the database {source}: {e}", "database") from e


def _files(data_dir: Path) -> Iterator[Path]:
    for name in _FILES:
        if (data_dir / name).is_file():
            yield data_dir / name
    for part in _PARTS:
        paths = [
            path
            for path in (data_dir / part, *(data_dir / part).rglob("*"))
            if not set(path.relative_to(data_dir).parts) & set(_SKIPPED)
        ]
        # What a timestamp names is kept for a while after it is replaced.
        yield from sorted(paths, key=lambda path: (path.is_file(), path.name != "timestamp.json", str(path)))
