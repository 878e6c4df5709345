"""Compilers of NPU makers: programs of their own, run once per candidate."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from edgec.errors import ConversionError


def run_tool(
    command: Sequence[str | Path], made: Path, *, what: str, timeout_s: float, directory: Path | None = None
) -> tuple[str, str]:
    """Run a compiler and wait for it; return what it printed to standard output and error.

    Args:
        command: The program and its arguments.
        made: The file that it is to write.
        what: Its name and version, for messages.
        timeout_s: After which it is given up.
        directory: Where it runs; None for here.

    Raises:
        ConversionError: It fails, writes no such file, or takes too long.
    """
    try:
        run = subprocess.run(
            command,
            cwd=directory,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as e:
        raise ConversionError(f"{what} did not finish within {timeout_s:.0f} s") from e
    if run.returncode != 0 or not made.is_file():
        said = [line.strip() for line in (run.stdout + run.stderr).splitlines() if line.strip()]
        raise ConversionError(f"{what} fails: {said[-1] if said else 'without a word'}")
    return run.stdout, run.stderr
