"""The zip file around an artifact: every header follows from name, size, CRC-32 and place of a member.

The writer builds headers with the functions below. The reader takes those four facts from the
central directory, builds all headers again and compares them byte by byte, so that there is no
byte in the file that nobody looked at. ARCHITECTURE.md, "The artifact", has the same in words.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from edgec.artifact._manifest import FORMAT_VERSION
from edgec.errors import ArtifactError, IncompatibleArtifactError

ALIGNMENT = 4096
MAX_MEMBERS = 1024
MANIFEST = "manifest.json"
REPORT = "report.json"
GOLDEN = "golden.safetensors"
# Members that follow the payload, in this order, without alignment.
TAIL = (GOLDEN, REPORT, MANIFEST)

_MAX_NAME = 200
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*")

_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END_64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR_64 = struct.Struct("<4sIQI")
_EXTRA = struct.Struct("<HH")

_IN_64 = 0xFFFFFFFF
_NEEDS, _NEEDS_64 = 10, 45
_MADE_BY = 3 << 8 | 45  # Unix, version 4.5 of the specification
_TIME, _DATE = 0, 0x0021  # 1980-01-01 00:00:00
_MODE = 0o100644 << 16  # a regular file
_SIZES_ID, _PADDING_ID = 0x0001, 0xD935

_COMMENT = re.compile(rb"edgec:(\d{4}):sha256:([0-9a-f]{64})")
_COMMENT_SIZE = len(b"edgec:0001:sha256:") + 64


class Entry(NamedTuple):
    """A member, as the central directory has it.

    Attributes:
        name: Its name.
        crc: CRC-32 of its bytes.
        size: In bytes.
        header: Where its local header begins, from the beginning of the file.
    """

    name: str
    crc: int
    size: int
    header: int

    @property
    def start(self) -> int:
        """Where its bytes begin."""
        return self.header + len(local_header(self))

    @property
    def end(self) -> int:
        """Where its bytes end."""
        return self.start + self.size


def local_header(entry: Entry) -> bytes:
    """Return what stands before the bytes of a member; payload is aligned by its extra field."""
    name = entry.name.encode("ascii")
    large = entry.size >= _IN_64
    size = _IN_64 if large else entry.size
    extra = _EXTRA.pack(_SIZES_ID, 16) + struct.pack("<QQ", entry.size, entry.size) if large else b""
    if entry.name not in TAIL:
        used = entry.header + _LOCAL.size + len(name) + len(extra) + _EXTRA.size + 2
        padding = -used % ALIGNMENT
        extra += _EXTRA.pack(_PADDING_ID, 2 + padding) + struct.pack("<H", ALIGNMENT) + bytes(padding)
    needs = _NEEDS_64 if large else _NEEDS
    fixed = _LOCAL.pack(b"PK\3\4", needs, 0, 0, _TIME, _DATE, entry.crc, size, size, len(name), len(extra))
    return fixed + name + extra


def central_header(entry: Entry) -> bytes:
    """Return what the central directory has of a member."""
    name = entry.name.encode("ascii")
    wide = b""
    if entry.size >= _IN_64:
        wide += struct.pack("<QQ", entry.size, entry.size)
    if entry.header >= _IN_64:
        wide += struct.pack("<Q", entry.header)
    extra = _EXTRA.pack(_SIZES_ID, len(wide)) + wide if wide else b""
    size = min(entry.size, _IN_64)
    needs = _NEEDS_64 if wide else _NEEDS
    fixed = _CENTRAL.pack(
        b"PK\1\2", _MADE_BY, needs, 0, 0, _TIME, _DATE, entry.crc, size, size, len(name), len(extra),
        0, 0, 0, _MODE, min(entry.header, _IN_64),
    )  # fmt: skip
    return fixed + name + extra


def directory(entries: list[Entry], manifest_sha256: str) -> bytes:
    """Return all that follows the last member: central directory, end records, comment."""
    start = entries[-1].end
    headers = b"".join(map(central_header, entries))
    tail = headers
    if start >= _IN_64:
        count, size = len(entries), len(headers)
        tail += _END_64.pack(b"PK\6\6", 44, _MADE_BY, _NEEDS_64, 0, 0, count, count, size, start)
        tail += _LOCATOR_64.pack(b"PK\6\7", 0, start + size, 1)
    comment = f"edgec:{FORMAT_VERSION:04d}:sha256:{manifest_sha256}".encode()
    count = len(entries)
    tail += _END.pack(b"PK\5\6", 0, 0, count, count, len(headers), min(start, _IN_64), len(comment))
    return tail + comment


def check_name(name: str) -> None:
    """Do nothing if a member may be called `name`.

    Raises:
        ArtifactError: It could name a file outside of a directory it is extracted to, or one that
            some system cannot name.
    """
    if len(name) > _MAX_NAME:
        raise ArtifactError(
            f"the name of a member has {len(name)} characters; at most {_MAX_NAME} are allowed"
        )
    if not _NAME.fullmatch(name):
        raise ArtifactError(
            f"a member is called {name!r}; names are relative paths of letters, digits and _ . + - , "
            "no part of which begins with a dot or a sign"
        )


def check_names(names: list[str]) -> None:
    """Do nothing if members may be called `names`, in this order.

    Raises:
        ArtifactError: One is not allowed, two would be the same file, or the order is wrong.
    """
    seen: set[str] = set()
    for name in names:
        check_name(name)
        # Some file systems hold Model.onnx and model.onnx for the same.
        if name.lower() in seen:
            raise ArtifactError(f"two members are called {name!r} (case does not count)")
        seen.add(name.lower())
    for name in seen:
        parts = name.split("/")
        for i in range(1, len(parts)):
            if "/".join(parts[:i]) in seen:
                raise ArtifactError(f"member {'/'.join(parts[:i])!r} is a directory to member {name!r}")
    ranks = [TAIL.index(name) if name in TAIL else -1 for name in names]
    if ranks != sorted(ranks):
        raise ArtifactError(f"members are out of order: payload comes first, then {', '.join(TAIL)}")


def read_entries(data: memoryview) -> tuple[list[Entry], str]:
    """Return the members of an artifact in the order of the file, and the digest of its manifest.

    Reads headers only, no more than `MAX_MEMBERS` of them.

    Args:
        data: The whole file.

    Returns:
        The members, the manifest last, and the SHA-256 that the manifest must have, in hex.

    Raises:
        ArtifactError: Not a single byte outside of the members' own differs from what format
            version 1 prescribes, or this is raised.
        IncompatibleArtifactError: The file says that it has another format version.
    """
    count, start, stop, digest = _read_end(data)
    entries = _read_central(data[start:stop], count)
    check_names([entry.name for entry in entries])
    if entries[-1].name != MANIFEST:
        raise ArtifactError(f"the last member is {entries[-1].name!r}, not {MANIFEST!r}: not an artifact")
    place = 0
    for entry in entries:
        _check_local(data, entry, place, start)
        place = entry.end
    if place != start:
        raise ArtifactError(
            f"{start - place} bytes between the last member and the directory belong to nothing"
        )
    if data[start:] != directory(entries, digest):
        raise ArtifactError("the end of the file is not as format version 1 prescribes: it was changed")
    return entries, digest


def _read_end(data: memoryview) -> tuple[int, int, int, str]:
    """Return the number of members, where the central directory begins and ends, and the digest."""
    at = len(data) - _END.size - _COMMENT_SIZE
    if at < 0 or bytes(data[at : at + 4]) != b"PK\5\6":
        raise ArtifactError(
            "not an edgec artifact, or not a whole one: its end record is missing; "
            "the file was cut, or bytes were added to its end"
        )
    comment = _COMMENT.fullmatch(bytes(data[-_COMMENT_SIZE:]))
    if not comment:
        raise ArtifactError("a zip file, but not an edgec artifact: its comment is not one of edgec's")
    if int(comment[1]) != FORMAT_VERSION:
        raise IncompatibleArtifactError(
            f"the artifact has format version {int(comment[1])}, this edgec reads {FORMAT_VERSION}: update it"
        )
    _, _, _, _, count, size, start, _ = _END.unpack_from(data, at)
    if start == _IN_64:
        start, at = _read_end_64(data, at)
    if start + size != at:
        raise ArtifactError("the end record does not fit the file: it was cut, or bytes were put into it")
    if not 1 <= count <= MAX_MEMBERS:
        raise ArtifactError(f"the artifact has {count} members; 1 to {MAX_MEMBERS} are allowed")
    return count, start, at, comment[2].decode()


def _read_end_64(data: memoryview, end: int) -> tuple[int, int]:
    at = end - _LOCATOR_64.size - _END_64.size
    if at < 0 or bytes(data[at : at + 4]) != b"PK\6\6":
        raise ArtifactError("the zip64 end record is missing")
    start: int = _END_64.unpack_from(data, at)[-1]
    return start, at


def _read_central(central: memoryview, count: int) -> list[Entry]:
    entries: list[Entry] = []
    at = 0
    for i in range(count):
        if len(central) - at < _CENTRAL.size or bytes(central[at : at + 4]) != b"PK\1\2":
            raise ArtifactError(f"the directory has no entry {i + 1} of {count}: it was changed")
        entry = _read_entry(central[at:])
        expected = central_header(entry)
        if central[at : at + len(expected)] != expected:
            raise ArtifactError(
                f"member {entry.name!r}: its entry in the directory is not as version 1 prescribes"
            )
        entries.append(entry)
        at += len(expected)
    if at != len(central):
        raise ArtifactError(f"the directory has {len(central) - at} bytes that belong to no member")
    return entries


def _read_entry(header: memoryview) -> Entry:
    (_, _, _, flags, method, _, _, crc, stored, size, name_size, extra_size, _, _, _, mode, place) = (
        _CENTRAL.unpack_from(header)
    )
    raw = bytes(header[_CENTRAL.size : _CENTRAL.size + name_size])
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError as e:
        raise ArtifactError(f"a member is called {raw[:_MAX_NAME]!r}; names are ASCII") from e
    check_name(name)
    if method != 0:
        raise ArtifactError(f"member {name!r} is compressed (method {method}); members must be stored")
    if flags & 1:
        raise ArtifactError(f"member {name!r} is encrypted; members must be stored as they are")
    if mode >> 28 == 0o12:
        raise ArtifactError(f"member {name!r} is a symbolic link; members are files")
    if stored != size:
        raise ArtifactError(f"member {name!r} has {size} bytes of which {stored} are stored: it was changed")
    wide = header[_CENTRAL.size + name_size + _EXTRA.size :][: max(0, extra_size - _EXTRA.size)]
    numbers = list(struct.unpack(f"<{len(wide) // 8}Q", wide[: len(wide) // 8 * 8]))
    if size == _IN_64 and len(numbers) >= 2:
        size = numbers[0]
        del numbers[:2]
    if place == _IN_64 and numbers:
        place = numbers[0]
    return Entry(name=name, crc=crc, size=size, header=place)


def _check_local(data: memoryview, entry: Entry, place: int, stop: int) -> None:
    if entry.header < place:
        raise ArtifactError(f"member {entry.name!r} overlaps the one before it")
    if entry.header > place:
        raise ArtifactError(f"{entry.header - place} bytes before member {entry.name!r} belong to nothing")
    expected = local_header(entry)
    if data[place : place + len(expected)] != expected:
        raise ArtifactError(f"member {entry.name!r}: its header differs from its entry in the directory")
    if entry.end > stop:
        raise ArtifactError(f"member {entry.name!r} ends outside of the file: the file was cut")
