"""What a publisher says beside a target: which patches lead to it, and where the map of its chunks is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST = 64
_LONGEST_PATH = 512
_LARGEST = 2**40


@dataclass(frozen=True, kw_only=True)
class FileRef:
    """A file in the publisher's repository.

    Attributes:
        path: In the repository, parts joined by ``/``.
        length: Its bytes.
        sha256: Its digest, 64 hex digits.
    """

    path: str
    length: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Patch:
    """A patch that leads to a target.

    Attributes:
        old_sha256: Of the file it begins at.
        file: The patch.
    """

    old_sha256: str
    file: FileRef


@dataclass(frozen=True, kw_only=True)
class Offers:
    """What may make it cheaper to fetch a target.

    Attributes:
        patches: That lead to it.
        chunks: The map of its chunks.
    """

    patches: tuple[Patch, ...] = ()
    chunks: FileRef | None = None

    def to_custom(self) -> dict[str, Any]:
        """Return it as a part of ``custom`` of a target in signed metadata."""
        custom: dict[str, Any] = {}
        if self.patches:
            custom["deltas"] = [{"from": p.old_sha256, **_fields(p.file)} for p in self.patches]
        if self.chunks is not None:
            custom["chunks"] = _fields(self.chunks)
        return custom

    @classmethod
    def from_custom(cls, custom: Mapping[str, Any]) -> Offers:
        """Read it from ``custom`` of a target.

        An offer is never needed: what is malformed, or of a later version, is left out, and so are offers
        after the first 64.
        """
        listed = custom.get("deltas")
        patches = []
        for entry in listed[:_MOST] if isinstance(listed, list) else []:
            file = _file(entry)
            if file is not None and _is_digest(entry.get("from")):
                patches.append(Patch(old_sha256=entry["from"], file=file))
        return cls(patches=tuple(patches), chunks=_file(custom.get("chunks")))


def _fields(file: FileRef) -> dict[str, Any]:
    return {"path": file.path, "length": file.length, "sha256": file.sha256}


def _file(entry: object) -> FileRef | None:
    if not isinstance(entry, dict):
        return None
    path, length, digest = entry.get("path"), entry.get("length"), entry.get("sha256")
    good = isinstance(path, str) and 0 < len(path) <= _LONGEST_PATH
    good = good and isinstance(length, int) and not isinstance(length, bool) and 0 < length <= _LARGEST
    if not good or not _is_digest(digest):
        return None
    return FileRef(path=entry["path"], length=entry["length"], sha256=entry["sha256"])


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None
