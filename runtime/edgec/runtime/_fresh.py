"""Runs a module of the runtime in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edgec.errors import InferenceError


def run_fresh(path: str | Path, module: str, *words: str) -> str:
    """Run a module with arguments, for an artifact that errors name; return what it printed.

    Raises:
        InferenceError: The process failed; the message is what it said last.
    """
    command = [sys.executable, "-m", module, *words]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        said = process.stderr.strip().splitlines()
        raise InferenceError(
            f"{path}: a fresh process could not run it (exit status {process.returncode}): "
            f"{said[-1] if said else 'it said nothing'}"
        )
    return process.stdout
