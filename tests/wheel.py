"""The wheel, built as it is now, and what of it a device needs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# What compiling workstations and servers have, and no device imports.
ELSEWHERE = ("edgec/compiler/", "edgec/fleet/", "edgec/gateway/", "edgec/simulation/")


def wheel_sizes(folder: Path) -> tuple[int, int]:
    """Build the wheel into a folder; return its size in bytes, and that without what no device needs."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    wheel = next(folder.glob("*.whl"))
    with zipfile.ZipFile(wheel) as archive:
        # Beside its data, a member has two headers with its name.
        elsewhere = sum(
            member.compress_size + 2 * len(member.filename) + 76
            for member in archive.infolist()
            if member.filename.startswith(ELSEWHERE)
        )
    whole = wheel.stat().st_size
    return whole, whole - elsewhere
