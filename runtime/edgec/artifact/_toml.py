"""TOML files from outside: bounded, and refused with one kind of error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from edgec.errors import PipelineError

if TYPE_CHECKING:
    from pathlib import Path


def parse_toml(path: Path, limit: int) -> dict[str, Any]:
    """Return what a TOML file of at most `limit` bytes holds.

    Raises:
        PipelineError: It cannot be read, is larger, or is not TOML.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib

    try:
        data: dict[str, Any] = tomllib.loads(read_bounded(path, limit).decode("utf-8"))
    except UnicodeDecodeError as e:
        raise PipelineError(f"not UTF-8 text: {e.reason} at byte {e.start}") from e
    except (ValueError, RecursionError) as e:  # also of numbers and nesting that no sane file has
        raise PipelineError(f"not TOML: {e}") from e
    return data


def read_bounded(path: Path, limit: int) -> bytes:
    """Return the content of a file.

    Raises:
        PipelineError: It cannot be read, or is larger than `limit` bytes.
    """
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as e:
        raise PipelineError(f"cannot read {path}: {e.strerror}") from e
    if len(content) > limit:
        raise PipelineError(f"{path} is larger than {limit >> 20} MiB")
    return content
