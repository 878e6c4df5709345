"""Files as a source: of a folder or a pattern, those that are there and those that come."""

from __future__ import annotations

import glob
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import numpy as np

from edgec.errors import DataError, SourceError
from edgec.runtime.streams._source import Captured

IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
ARRAYS = (".npy",)

_State = tuple[int, int]


class Files:
    """Images and ``.npy`` arrays, in the order of their names; of an image, its path is the sample.

    Watched, a new file is given out once its size and time have stayed as they are from one look to the next,
    or, replaced, once more. As far as a deadline goes, it was captured when it was seen so; without
    watching, when it was read.

    Attributes:
        name: For messages.
        live: False: what is not read in time stays where it is.
        lost: Always 0.
    """

    def __init__(
        self,
        where: str | Path,
        *,
        watch: bool = False,
        suffixes: tuple[str, ...] = IMAGES + ARRAYS,
        poll_s: float = 0.5,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a source; nothing is looked at yet.

        Args:
            where: A folder, without those within it, a file, or a pattern: ``images/**/*.jpg``.
            watch: Whether to wait for new files when all are read.
            suffixes: Which files of a folder; a pattern takes all that fit it.
            poll_s: Seconds between looks.
            clock: Monotonic, in seconds; that of the stream.
        """
        is_file = Path(where).is_file()
        self._where = glob.escape(str(where)) if is_file else str(where)
        self._is_pattern = is_file or (glob.has_magic(self._where) and not Path(where).is_dir())
        self._watches = watch
        self._suffixes = suffixes
        self._poll_s = poll_s
        self._clock = clock
        self._seen: dict[str, _State] = {}
        self._growing: dict[str, _State] = {}
        self._found: deque[tuple[str, float | None]] = deque()
        self.name = str(where)
        self.live = False
        self.lost = 0

    def open(self) -> None:
        """Look what is there.

        Raises:
            SourceError: There is no such folder, or nothing in it and nothing to wait for.
        """
        if not self._is_pattern and not Path(self._where).is_dir():
            raise SourceError(f"{self.name}: there is no such folder", transient=bool(self._seen))
        if not self._found:
            self._look(settled=not self._watches)
        if not self._found and not self._watches and not self._seen:
            wanted = "file that fits" if self._is_pattern else f"file of {', '.join(self._suffixes)}"
            raise SourceError(f"{self.name}: no {wanted}")

    def read(self, stop: Event) -> Captured | None:
        """Return the next file, or wait for one.

        Raises:
            DataError: It is no array.
            SourceError: The folder is gone.
        """
        while not self._found:
            if not self._watches or stop.wait(self._poll_s):
                return None
            self._look(settled=False)
        if stop.is_set():
            return None
        path, captured_s = self._found.popleft()
        return Captured(sample=_load(Path(path)), name=os.path.basename(path), captured_s=captured_s)

    def close(self) -> None:
        """Do nothing: what was read is not read again when it is opened again."""

    def _look(self, *, settled: bool) -> None:
        there = dict(sorted(self._states()))
        now = self._clock() if self._watches else None
        for path, state in there.items():
            if self._seen.get(path) == state:
                continue
            if settled or self._growing.get(path) == state:
                self._seen[path] = state
                self._found.append((path, now))
        self._growing = {path: state for path, state in there.items() if self._seen.get(path) != state}
        self._seen = {path: state for path, state in self._seen.items() if path in there}

    def _states(self) -> Iterator[tuple[str, _State]]:
        try:
            if self._is_pattern:
                paths = glob.glob(self._where, recursive=True)
            else:
                with os.scandir(self._where) as entries:
                    paths = [e.path for e in entries if Path(e.name).suffix.lower() in self._suffixes]
        except OSError as e:
            raise SourceError(f"{self.name}: {e.strerror}", transient=self._watches) from e
        for path in paths:
            try:
                status = os.stat(path)
            except FileNotFoundError:  # gone between two calls
                continue
            if os.path.isfile(path):
                yield path, (status.st_size, status.st_mtime_ns)


def _load(path: Path) -> object:
    if path.suffix.lower() not in ARRAYS:
        return path
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as e:
        raise DataError(f"{path}: expected an array as .npy: {e}") from e
