"""For how long metadata is valid, kept beside what waits for signatures."""

from __future__ import annotations

import json
from pathlib import Path

from edgec.artifact import atomic_write
from edgec.errors import TrustError
from edgec.trust._repository import Lifetimes

_SETTINGS = "staged/lifetimes.json"


def write_lifetimes(repository: Path, lifetimes: Lifetimes) -> None:
    """Keep the lifetimes that a repository is made with.

    Raises:
        OutputError: They cannot be written.
    """
    with atomic_write(repository / _SETTINGS) as file:
        file.write(json.dumps(vars(lifetimes), indent=1).encode())


def read_lifetimes(repository: Path) -> Lifetimes:
    """Return the lifetimes that a repository was made with.

    Raises:
        TrustError: There is no repository, or its settings are damaged.
    """
    try:
        values = json.loads((repository / _SETTINGS).read_bytes())
        return Lifetimes(**{name: float(values[name]) for name in vars(Lifetimes())})
    except FileNotFoundError as e:
        raise TrustError(
            f"{repository} is no repository; run  edgec repo init {repository}", "not_found"
        ) from e
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise TrustError(f"{repository / _SETTINGS} is damaged: {e}; restore it", "malformed") from e
