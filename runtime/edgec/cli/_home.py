"""Where the commands keep what can be made again, and what a user has told them."""

from __future__ import annotations

import os
from pathlib import Path


def default_home() -> Path:
    """Return where edgec keeps what it can make again: ``EDGEC_HOME``, or in the user's cache directory."""
    if home := os.environ.get("EDGEC_HOME"):
        return Path(home)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgec"


def config_home() -> Path:
    """Return where edgec keeps what a user has told it: ``EDGEC_CONFIG``, or in the user's settings."""
    if home := os.environ.get("EDGEC_CONFIG"):
        return Path(home)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "edgec"
