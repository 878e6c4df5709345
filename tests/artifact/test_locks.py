"""A lock that lasts as long as its process."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from edgec.artifact import hold

HOLD = "import sys; from pathlib import Path; from edgec.artifact import hold; hold(Path(sys.argv[1]))"


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_held_is_refused_to_others_until_it_is_let_go(tmp_path: Path, kind: str) -> None:
    path = tmp_path if kind == "directory" else tmp_path / "lock"
    held = hold(path, mode=0o600)
    try:
        open_files = len(os.listdir("/proc/self/fd"))
        with pytest.raises(BlockingIOError):
            hold(path)
        assert len(os.listdir("/proc/self/fd")) == open_files
        other = subprocess.run([sys.executable, "-c", HOLD, path], stderr=subprocess.PIPE, check=False)
        assert b"BlockingIOError" in other.stderr
    finally:
        os.close(held)
    subprocess.run([sys.executable, "-c", HOLD, path], check=True)  # it ends, and the lock with it
    os.close(hold(path))
    if kind == "file":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_what_cannot_be_opened_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        hold(tmp_path / "none" / "lock")
