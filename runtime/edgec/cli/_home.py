"""Where the commands keep what can be made again: environments of converters, and builds."""

from __future__ import annotations

import os
from pathlib import Path


def default_home() -> Path:
    """Return where edgec keeps what it can make again: ``EDGEC_HOME``, or in the user's cache directory."""
    if home := os.environ.get("EDGEC_HOME"):
        return Path(home)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgec"
