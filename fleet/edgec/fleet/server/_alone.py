"""One server at a time on a directory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgec.artifact import hold
from edgec.errors import FleetError, OutputError


@contextmanager
def alone_on(path: Path, what: str) -> Iterator[None]:
    """Keep a second server of this machine away, for as long as this process lives.

    Args:
        path: Of a file that is made for that, and stays.
        what: It is about, for people.

    Raises:
        FleetError: There is one (``reason`` ``conflict``).
        OutputError: The file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = hold(path, mode=0o600)
    except BlockingIOError as e:
        raise FleetError(f"another server runs on {what}; stop it first", "conflict") from e
    except OSError as e:
        raise OutputError(f"cannot write to {path.parent}: {e.strerror}") from e
    try:
        yield
    finally:
        os.close(descriptor)
