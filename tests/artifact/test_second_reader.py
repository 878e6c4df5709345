"""A second reader of artifacts, written from ARCHITECTURE.md alone, agrees with the first one."""

from __future__ import annotations

import hashlib
import json
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.artifact.forge import Tiny

from edgec.artifact import GOLDEN, Artifact, Observation, Scores, pack


def read(data: bytes) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return the manifest and the members of an artifact of less than 4 GB; AssertionError if it is none."""
    comment = re.fullmatch(rb"edgec:0001:sha256:([0-9a-f]{64})", data[-82:])
    assert comment, "not an artifact of format version 1"
    end = len(data) - 104
    mark, zeros, count, count_2, size, start, length = struct.unpack("<4sIHHIIH", data[end:-82])
    assert (mark, zeros, count, length) == (b"PK\5\6", 0, count_2, 82)
    assert start + size == end
    members, place, at = {}, 0, start
    for _ in range(count):
        crc, stored, name_length, found_place = struct.unpack("<16xII4xH12xI", data[at : at + 46])[0:4]
        name = data[at + 46 : at + 46 + name_length]
        part = b"[A-Za-z0-9_][A-Za-z0-9_.+-]*"
        assert re.fullmatch(part + b"(/" + part + b")*", name), name
        assert data[at : at + 46 + name_length] == (
            struct.pack("<4s6HIII", b"PK\1\2", 813, 10, 0, 0, 0, 33, crc, stored, stored)
            + struct.pack("<5HII", name_length, 0, 0, 0, 0, 0x81A40000, place) + name
        )  # fmt: skip
        assert found_place == place, "members that overlap, or bytes that belong to nothing"
        extra = b""
        if name not in (b"manifest.json", b"report.json", b"golden.safetensors"):
            pad = -(place + 30 + name_length + 6) % 4096
            extra = struct.pack("<HHH", 0xD935, pad + 2, 4096) + bytes(pad)
        header = struct.pack(
            "<4s5HIIIHH", b"PK\3\4", 10, 0, 0, 0, 33, crc, stored, stored, name_length, len(extra)
        )
        begin = place + len(header) + name_length + len(extra)
        assert data[place:begin] == header + name + extra
        members[name.decode()] = data[begin : begin + stored]
        place, at = begin + stored, at + 46 + name_length
    assert (place, at) == (start, end)
    raw = members.pop("manifest.json")
    assert hashlib.sha256(raw).hexdigest().encode() == comment[1]
    manifest: dict[str, Any] = json.loads(raw)
    assert manifest["format_version"] == 1
    assert not manifest.get("requires")
    assert manifest["members"] == {
        name: {"sha256": hashlib.sha256(member).hexdigest(), "size": len(member)}
        for name, member in members.items()
    }
    content = {key: value for key, value in manifest.items() if key != "content_digest"}
    content["members"] = {name: value for name, value in content["members"].items() if name != "report.json"}
    # The canonical form of what has no fractions and ASCII keys.
    encoded = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert manifest["content_digest"] == "sha256:" + hashlib.sha256(encoded).hexdigest()
    return manifest, members


def read_golden(data: bytes) -> dict[str, tuple[str, list[int], bytes]]:
    """Return dtype, shape and bytes of each array of the golden vectors, by name."""
    (size,) = struct.unpack("<Q", data[:8])
    return {
        name: (entry["dtype"], entry["shape"], data[8 + size :][slice(*entry["data_offsets"])])
        for name, entry in json.loads(data[8 : 8 + size]).items()
    }


def test_it_reads_what_the_first_one_reads(tiny: Tiny, tmp_path: Path) -> None:
    path = tiny.pack(tmp_path / "a.edgec")
    manifest, members = read(path.read_bytes())
    golden = read_golden(members[GOLDEN])
    with Artifact.open(path) as artifact:
        assert tuple(members) == artifact.names()
        assert members == {name: artifact.read(name) for name in artifact.names()}
        assert manifest["content_digest"] == artifact.content_digest
        assert json.loads(members["report.json"]) == artifact.report
        for i, vector in enumerate(artifact.golden()):
            assert golden[f"{i}/inputs/image"] == ("U8", [1, 2, 2, 1], vector.inputs["image"].tobytes())
            assert golden[f"{i}/outputs/scores"] == ("F32", [1, 3], vector.outputs["scores"].tobytes())


def test_it_reads_what_is_worth_watching(tiny: Tiny, tmp_path: Path) -> None:
    observe = Observation(inputs={"image": ("mean", "std")}, scores=Scores(output="scores"))
    plain, _ = read(tiny.pack(tmp_path / "a.edgec").read_bytes())
    assert "observe" not in plain
    manifest, _ = read(
        pack(
            tmp_path / "b.edgec",
            replace(tiny.manifest, observe=observe, input_reference={"image": {"mean": {"0.5": 7.0}}}),
            tiny.members,
        ).read_bytes()
    )
    assert manifest["observe"] == {
        "inputs": {"image": ["mean", "std"]}, "scores": {"activation": "none", "output": "scores"}
    }  # fmt: skip
    assert manifest["input_reference"] == {"image": {"mean": {"0.5": 7}}}
    with Artifact.open(tmp_path / "b.edgec") as artifact:
        assert artifact.manifest.observe == observe
        assert artifact.content_digest == manifest["content_digest"] != plain["content_digest"]


def test_it_notices_damage(tiny: Tiny, tmp_path: Path) -> None:
    data = tiny.pack(tmp_path / "a.edgec").read_bytes()
    for at in range(0, len(data), 101):
        with pytest.raises((AssertionError, UnicodeDecodeError)):
            read(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
