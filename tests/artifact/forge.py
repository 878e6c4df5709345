"""A second writer, made from ARCHITECTURE.md alone, that can write wrong artifacts too."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import sys
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from edgec.artifact import GOLDEN, Manifest, pack

Document = dict[str, Any]
# Of a process that shall find edgec where this one does, installed or not.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: object) -> bytes:
    """Canonical JSON of a value without fractions, and with ASCII keys."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass
class Part:
    """A member to be written, and the headers around it; fields of headers can be set to wrong values.

    Attributes:
        data: Its bytes.
        zeros: How many more bytes it has, which are 0 and take no disk.
        aligned: Whether it is payload.
        local: Changed fields of its local header.
        central: Changed fields of its header in the directory.
        before: Bytes that are put before it.
    """

    name: bytes
    data: bytes
    aligned: bool = True
    zeros: int = 0
    local: Document = field(default_factory=dict)
    central: Document = field(default_factory=dict)
    before: bytes = b""


LARGE = 2**32 - 1


def _fields(part: Part, changed: Document) -> Document:
    size = len(part.data) + part.zeros
    right: Document = {
        "needs": 45 if size >= LARGE else 10, "flags": 0, "method": 0, "time": 0, "date": 0x21,
        "crc": zlib.crc32(part.data), "stored": min(size, LARGE), "size": min(size, LARGE), "name": part.name,
        "mode": 0o100644 << 16, "extra": struct.pack("<QQ", size, size) if size >= LARGE else b"",
        "comment": b"",
    }  # fmt: skip
    return right | changed


def write_parts(file: IO[bytes], parts: list[Part], comment: bytes) -> None:
    """Write an artifact of `parts`, the second writer at work."""
    central = b""
    for part in parts:
        file.write(part.before)
        place = file.tell()
        f = _fields(part, part.local)
        extra = struct.pack("<HH", 1, len(f["extra"])) + f["extra"] if f["extra"] else b""
        if part.aligned:
            pad = -(place + 30 + len(f["name"]) + len(extra) + 6) % 4096
            extra += struct.pack("<HHH", 0xD935, pad + 2, 4096) + bytes(pad)
        file.write(struct.pack(
            "<IHHHHHIIIHH", 0x04034B50, f["needs"], f["flags"], f["method"], f["time"], f["date"],
            f["crc"], f["stored"], f["size"], len(f["name"]), len(extra),
        ) + f["name"] + extra + part.data)  # fmt: skip
        file.seek(part.zeros, os.SEEK_CUR)
        f = _fields(part, part.central)
        place = part.central.get("place", place)
        wide = f["extra"] + (struct.pack("<Q", place) if place >= LARGE else b"")
        extra = struct.pack("<HH", 1, len(wide)) + wide if wide else b""
        central += struct.pack(
            "<IHHHHHHIIIHHHHHII", 0x02014B50, 3 << 8 | 45, 45 if place >= LARGE else f["needs"], f["flags"],
            f["method"], f["time"], f["date"], f["crc"], f["stored"], f["size"], len(f["name"]), len(extra),
            len(f["comment"]), 0, 0, f["mode"], min(place, LARGE),
        ) + f["name"] + extra + f["comment"]  # fmt: skip
    start = file.tell()
    end = start + len(central)
    file.write(central)
    if start >= LARGE:
        counts = (len(parts), len(parts), len(central), start)
        file.write(struct.pack("<IQHHIIQQQQ", 0x06064B50, 44, 3 << 8 | 45, 45, 0, 0, *counts))
        file.write(struct.pack("<IIQI", 0x07064B50, 0, end, 1))
    counts = (len(parts), len(parts), len(central), min(start, LARGE))
    file.write(struct.pack("<IHHHHIIH", 0x06054B50, 0, 0, *counts, len(comment)) + comment)


def write_zip(parts: list[Part], *, comment: bytes, prefix: bytes = b"", suffix: bytes = b"") -> bytes:
    """Return the bytes of an artifact of `parts`."""
    file = io.BytesIO()
    file.write(prefix)
    write_parts(file, parts, comment)
    return file.getvalue() + suffix


def comment_of(manifest: bytes, version: int = 1) -> bytes:
    return b"edgec:%04d:sha256:%s" % (version, sha256(manifest).encode())


@dataclass(frozen=True)
class Tiny:
    """What a small artifact is made of.

    Attributes:
        manifest: Without members.
        members: Payload and golden vectors.
        report: What was measured.
    """

    manifest: Manifest
    members: Mapping[str, bytes]
    report: Mapping[str, Any]

    def pack(self, path: Path) -> Path:
        return pack(path, self.manifest, self.members, self.report)

    def document(self) -> Document:
        """Return the manifest as plain data, right but for its content_digest."""
        files = {**self.members, "report.json": canonical(self.report)}
        return {
            "format_version": 1,
            "model": self.manifest.model,
            "model_version": self.manifest.model_version,
            "target": self.manifest.target,
            "engine": {
                "name": "onnxruntime", "version": ">=1.23,<2", "device": "CPU", "precision": "fp32",
                "files": ["model.onnx", "weights.bin"],
            },
            "inputs": [{"name": "image", "dtype": "uint8", "shape": ["batch", 2, 2, 1], "layout": "NHWC"}],
            "outputs": [{"name": "scores", "dtype": "float32", "shape": ["batch", 3]}],
            "golden": {"scores": {"max_abs_error": 1}},
            "members": {name: {"sha256": sha256(data), "size": len(data)} for name, data in files.items()},
        }  # fmt: skip

    def parts(self, manifest: bytes) -> list[Part]:
        """Return the members in the order of the file, the manifest with the bytes given."""
        return [
            *(Part(name.encode(), data, aligned=name != GOLDEN) for name, data in self.members.items()),
            Part(b"report.json", canonical(self.report), aligned=False),
            Part(b"manifest.json", manifest, aligned=False),
        ]


def signed(document: Document) -> bytes:
    """Return the bytes of the manifest `document`, its content_digest filled in."""
    content = {key: value for key, value in document.items() if key != "content_digest"}
    if isinstance(content.get("members"), dict):
        content["members"] = {k: v for k, v in content["members"].items() if k != "report.json"}
    return canonical({**document, "content_digest": f"sha256:{sha256(canonical(content))}"})
