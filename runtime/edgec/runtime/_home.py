"""Where what can be made again is kept, if nothing else is said."""

from __future__ import annotations

from pathlib import Path

from edgec.errors import OutputError


def user_cache(what: str, option: str) -> Path:
    """Return the user's directory of things that edgec can make again: ``~/.cache/edgec``.

    Args:
        what: Is to be kept there, for the error.
        option: That names another place.

    Raises:
        OutputError: The user has no home.
    """
    try:
        return Path.home() / ".cache" / "edgec"
    except RuntimeError as e:
        raise OutputError(f"this user has no home to keep {what} in: say where, with {option}") from e
