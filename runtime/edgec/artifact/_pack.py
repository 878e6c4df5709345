"""Writing artifacts: the same members and manifest give the same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, BinaryIO
from zlib import crc32

from edgec.artifact import _json
from edgec.artifact._artifact import MAX_REPORT_SIZE
from edgec.artifact._files import atomic_write
from edgec.artifact._golden import decode_golden
from edgec.artifact._layout import (
    GOLDEN,
    MANIFEST,
    MAX_MEMBERS,
    REPORT,
    Entry,
    check_names,
    directory,
    local_header,
)
from edgec.artifact._manifest import Manifest, Member
from edgec.artifact._manifest_json import manifest_to_json
from edgec.errors import ArtifactError, ManifestError

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 2**20
_UNKNOWN = Member(sha256="0" * 64, size=0)


def pack(
    path: str | Path,
    manifest: Manifest,
    members: Mapping[str, bytes | memoryview | Path],
    report: Mapping[str, Any] | None = None,
) -> Path:
    """Write an artifact.

    Args:
        path: Of the file; what is there is replaced, when all is written and not before.
        manifest: Without `members`, which is filled in from the argument of that name.
        members: Bytes, or the path of a file with them (read in pieces), by name; in the order that
            they shall have in the file: put first what changes least in size. Golden vectors are
            the member ``golden.safetensors`` (see `encode_golden`).
        report: What was measured; it is not in the digest of the content.

    Returns:
        `path`.

    Raises:
        ManifestError: The manifest or the report holds what an artifact cannot.
        ArtifactError: A member has an impossible name, or its file cannot be read.
        OutputError: The file cannot be written; what was at `path` is untouched.
    """

    from pathlib import Path

    sources = _ordered(members, report)
    # Refuses a wrong manifest before gigabytes are written.
    manifest_to_json(replace(manifest, members=dict.fromkeys(sources, _UNKNOWN)))
    with atomic_write(path) as file:
        entries: list[Entry] = []
        digests: dict[str, Member] = {}
        for name, source in sources.items():
            entry, sha256 = _append(file, name, source, entries)
            entries.append(entry)
            digests[name] = Member(sha256=sha256, size=entry.size)
        raw = manifest_to_json(replace(manifest, members=digests))
        entry, sha256 = _append(file, MANIFEST, raw, entries)
        entries.append(entry)
        file.write(directory(entries, sha256))
    return Path(path)


def _ordered(
    members: Mapping[str, bytes | memoryview | Path], report: Mapping[str, Any] | None
) -> dict[str, bytes | memoryview | Path]:
    """Return all members but the manifest in the order of the file, their names checked."""

    from pathlib import Path

    for name in (REPORT, MANIFEST):
        if name in members:
            raise ArtifactError(f"a member cannot be called {name!r}: edgec writes that one itself")
    ordered = {name: source for name, source in members.items() if name != GOLDEN}
    if GOLDEN in members:
        golden = members[GOLDEN]
        decode_golden(_read(golden) if isinstance(golden, Path) else golden)
        ordered[GOLDEN] = golden
    if report is not None:
        raw = _json.encode(report, "report")
        if len(raw) > MAX_REPORT_SIZE:
            raise ManifestError(f"the report has {len(raw)} bytes; at most {MAX_REPORT_SIZE} are stored")
        ordered[REPORT] = raw
    check_names([*ordered, MANIFEST])
    if len(ordered) >= MAX_MEMBERS:
        raise ArtifactError(f"{len(ordered)} members; at most {MAX_MEMBERS - 1} are stored")
    return ordered


def _append(
    file: BinaryIO, name: str, source: bytes | memoryview | Path, entries: list[Entry]
) -> tuple[Entry, str]:
    """Write one member; return its entry and its SHA-256."""
    from hashlib import sha256

    place = entries[-1].end if entries else 0
    entry = Entry(name=name, crc=0, size=_size(source), header=place)
    file.write(local_header(entry))
    digest, crc, size = sha256(), 0, 0
    for piece in _pieces(source):
        file.write(piece)
        digest.update(piece)
        crc = crc32(piece, crc)
        size += len(piece)
    if size != entry.size:
        raise ArtifactError(
            f"member {name!r} had {entry.size} bytes and then {size}: it was written to while being packed"
        )
    # The checksum is known only now; the header keeps its size.
    entry = entry._replace(crc=crc)
    file.seek(place)
    file.write(local_header(entry))
    file.seek(entry.end)
    return entry, digest.hexdigest()


def _size(source: bytes | memoryview | Path) -> int:
    from pathlib import Path

    if isinstance(source, Path):
        try:
            return source.stat().st_size
        except OSError as e:
            raise ArtifactError(f"cannot read the member {source}: {e.strerror}") from e
    return memoryview(source).nbytes


def _pieces(source: bytes | memoryview | Path) -> Iterator[memoryview | bytes]:
    from pathlib import Path

    if not isinstance(source, Path):
        whole = memoryview(source).cast("B")
        for at in range(0, len(whole), _CHUNK):
            yield whole[at : at + _CHUNK]
        return
    try:
        with open(source, "rb") as file:
            while piece := file.read(_CHUNK):
                yield piece
    except OSError as e:
        raise ArtifactError(f"cannot read the member {source}: {e.strerror}") from e


def _read(source: Path) -> bytes:
    return b"".join(_pieces(source))
