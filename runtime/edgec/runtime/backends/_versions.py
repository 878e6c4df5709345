"""Version lines of engines."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from edgec.errors import BackendUnavailableError, ManifestError

_CLAUSE = re.compile(r"\s*(>=|<=|==|!=|~=|>|<)\s*(\d{1,9}(?:\.\d{1,9})*)(\.\*)?\s*", re.ASCII)
_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
    "==": operator.eq,
    "!=": operator.ne,
}


def is_in_line(version: str, line: str) -> bool:
    """Return whether a version is in a version line.

    Args:
        version: As an engine says it itself; what follows its leading numbers does not count:
            ``2026.4.1-22982-e213a147257``.
        line: A PEP 440 specifier of released versions: ``>=1.23,<2``; empty for any.

    Raises:
        ManifestError: The line is no such specifier.
    """
    release = _numbers("".join(takewhile("0123456789.".__contains__, version)))
    return all(_holds(release, clause, line) for clause in line.split(",") if line.strip())


def check_version(engine: str, extra: str, version: str, line: str) -> None:
    """Do nothing if the version of an engine is in a version line.

    Raises:
        BackendUnavailableError: It is not.
        ManifestError: The line is no specifier.
    """
    if not is_in_line(version, line):
        raise BackendUnavailableError(
            f"the artifact needs {engine} {line}, this is {engine} {version}: "
            f"run  pip install '{extra}{line}'  or compile for a target with this version"
        )


def _holds(release: tuple[int, ...], clause: str, line: str) -> bool:
    match = _CLAUSE.fullmatch(clause)
    if (
        match is None
        or (match[3] and match[1] not in ("==", "!="))
        or (match[1] == "~=" and "." not in match[2])
    ):
        raise ManifestError(f"expected a version line such as '>=1.23,<2', got {line!r}")
    comparison, bound = match[1], _numbers(match[2])
    if comparison == "~=":
        return _padded(release, len(bound)) >= bound and release[: len(bound) - 1] == bound[:-1]
    if match[3]:
        return _COMPARE[comparison](_padded(release, len(bound))[: len(bound)], bound)
    size = max(len(release), len(bound))
    return _COMPARE[comparison](_padded(release, size), _padded(bound, size))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part)


def _padded(release: tuple[int, ...], size: int) -> tuple[int, ...]:
    return release + (0,) * (size - len(release))
